# Copyright 2026 The densemllm authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Files of commands and scripts: inputs are never written over, outputs are whole, errors name what they are of."""

import argparse
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from .whole_files_densemllm import whole_file as whole_file


OVERWRITE_HELP = "replace files that are there already; inputs are never written over"
# What commands say in one line on stderr instead of a traceback: of arguments and files, and of a device whose memory
# is too small or that lacks an operation (`RuntimeError`).
USER_ERRORS = (ValueError, TypeError, OSError, OverflowError, RuntimeError, MemoryError)
MAX_SAID = 600  # characters; transformers lists all model types that it knows


def read_json_or_yaml(path: str | os.PathLike) -> Any:
    """What is in a JSON file, `.json`, or else in a YAML file; UTF-8, with a byte order mark or without.

    Raises:
        OSError: the file is not there.
        ValueError: it has something else.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8-sig")
    try:
        return json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def check_outputs(
    outputs: Iterable[str | os.PathLike],
    inputs: Iterable[str | os.PathLike] = (),
    overwrite: bool = False,
    argument: str = "--out",
) -> None:
    """Refuse, before any work, to write where something would be lost. Nothing is written or made.

    Args:
        outputs: the files that will be written.
        inputs: files that are read, and folders whose files are read, at any depth.
        overwrite: whether `outputs` may be there already. An input is refused all the same, whatever it is called: by
            another path, through a link, or in capitals where the file system doesn't tell them apart.
        argument: how messages call what `outputs` come from.

    Raises:
        ValueError: an output is an input, is there already, is a folder, is there twice, or can't be written there.
    """
    read = {}
    for path in map(Path, inputs):
        for file in path.rglob("*") if path.is_dir() else [path]:
            with suppress(OSError):  # what is not there can't be lost
                if file.is_file():
                    read[_identity(file)] = file
    written = set()
    for path in map(Path, outputs):
        if path.is_dir():
            raise ValueError(f"{argument} must be a file to write, but {path} is a folder")
        if os.path.lexists(path):
            if path.exists() and _identity(path) in read:
                raise ValueError(
                    f"{argument} must not be an input, but {path} is ({read[_identity(path)]}); inputs are never "
                    "written over: give another name or folder"
                )
            if not overwrite:
                raise ValueError(f"{argument}: {path} is there already; give another name, or --overwrite")
        place = os.path.normcase(path.resolve())
        if place in written:
            raise ValueError(f"{argument}: {path} would be written more than once")
        written.add(place)
        folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
        if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            raise ValueError(f"{argument}: {path} can't be written, {folder} is not a folder that one may write to")


def check_outputs_of_script(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
    """[`check_outputs`] for a script, which ends with a line on stderr where something would be lost."""
    try:
        check_outputs(*args, **kwargs)
    except ValueError as error:
        parser.error(str(error))


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


@contextmanager
def reading(what: str, error_class: type[Exception] = ValueError) -> Iterator[None]:
    """What goes wrong while a checkpoint or a data set is loaded is said in one sentence: libraries raise errors of
    any class for files that are cut, of another kind or of other shapes, bare `Exception`s among them.

    Args:
        what: the argument and its value.
        error_class: of what is raised; errors of this class itself have said it already, where it is another than
            `ValueError`.

    Raises:
        ValueError: anything in the block did; it is the cause.
    """
    try:
        yield
    except Exception as error:
        if error_class is not ValueError and isinstance(error, error_class):
            raise
        said = one_line(error)
        said = said if len(said) <= MAX_SAID else f"{said[:MAX_SAID]}..."
        if not isinstance(error, (OSError, ValueError)):
            said = f"{type(error).__name__}: {said}"  # `KeyError: 'model_type'` says more than `'model_type'`
        raise error_class(f"{what} can't be loaded: {said}") from error


def one_line(text: "str | BaseException") -> str:
    """A text, or what an error says, in one line."""
    return " ".join(str(text).split()) or type(text).__name__
