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
"""What every reader of a data set's own layout gives: rows that are read as samples when they are asked for."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ..targets_densemllm import IGNORE_INDEX


@dataclass(frozen=True)
class Facts:
    """What a data set says of itself, and nobody has to say again; see [`DenseSource`] for the fields.

    Attributes:
        id2label: class id to name; `None` where it has no classes.
        ignore_index: value of class maps where they aren't annotated.
        depth_scale: metres a unit of `depth`; `None`: floats are metres.
        depth_range: row of a model's `depth_ranges` that the data set is known by, such as `"nyuv2"`.
        thing_labels: names of the classes whose objects are told apart.
    """

    id2label: dict[int, str] | None = None
    ignore_index: int = IGNORE_INDEX
    depth_scale: float | None = None
    depth_range: str | None = None
    thing_labels: tuple[str, ...] | None = None


class FormatSamples(Sequence):
    """The rows of a data set in its own layout as samples of the schema (`training/samples.py`), read one at a time.

    Args:
        rows: what is known without opening a file: paths, numbers. A list, or a `datasets.Dataset`, whose rows take no
            memory.
        read: a row and the names of the columns that are wanted, to a dict of these: paths where the schema takes
            them, arrays where a map has to be made.
        column_names: columns that samples have.
        facts: what the data set says of itself.
    """

    features: dict[str, Any] = {}

    def __init__(
        self,
        rows: Sequence[Any],
        read: Callable[[Any, frozenset[str]], dict[str, Any]],
        column_names: Iterable[str],
        facts: Facts,
    ):
        self.rows, self.read, self.facts = rows, read, facts
        self.column_names = list(column_names)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} samples")
        wanted = frozenset(self.column_names)
        found = self.read(self.rows[index % len(self)], wanted)
        return {name: found.get(name) for name in self.column_names}

    def select(self, indices: Iterable[int]) -> Self:
        """The samples at `indices`."""
        rows = self.rows.select(indices) if hasattr(self.rows, "select") else [self.rows[index] for index in indices]
        return type(self)(rows, self.read, self.column_names, self.facts)

    def select_columns(self, names: Sequence[str]) -> Self:
        """The same with these columns alone; what only the others need is not opened.

        Raises:
            ValueError: a column that is not there.
        """
        unknown = sorted(set(names) - set(self.column_names))
        if unknown:
            raise ValueError(f"`names` must be some of {self.column_names}, got {unknown}")
        return type(self)(self.rows, self.read, names, self.facts)


@dataclass(frozen=True)
class Format:
    """One layout that data sets come in.

    Attributes:
        open: folder or file, split and further options by name to the samples.
        splits: that it has; `None`: as many as the folder has.
        about: one line on what is read.
        options: names of further options that `open` takes.
    """

    open: Callable[..., FormatSamples]
    splits: tuple[str, ...] | None
    about: str
    options: tuple[str, ...] = field(default=())


def check_split(split: str, splits: Iterable[str], where: object) -> str:
    """`split`, or a `ValueError` that names those of the data set."""
    splits = list(splits)
    if split not in splits:
        raise ValueError(f"`split` must be one of {splits}, the splits of {where}, got {split!r}")
    return split


def find_folder(root: str | Path, names: Sequence[str], where: str) -> Path:
    """The first of `names` that is a folder in `root`.

    Raises:
        ValueError: none is.
    """
    for name in names:
        if (Path(root) / name).is_dir():
            return Path(root) / name
    raise ValueError(f"{where}: {root} must have the folder {' or '.join(names)}")


def find_file(root: str | Path, names: Sequence[str], where: str) -> Path:
    """The first of `names` that is a file in `root`.

    Raises:
        ValueError: none is.
    """
    for name in names:
        if (Path(root) / name).is_file():
            return Path(root) / name
    raise ValueError(f"{where}: {root} must have the file {' or '.join(names)}")


def load_mat(path: str | Path) -> dict[str, Any]:
    """The variables of a MATLAB file before version 7.3.

    Raises:
        ImportError: scipy isn't installed.
        ValueError: the file has something else.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(f"{path} needs scipy: `pip install densemllm[datasets]`") from error
    try:
        return loadmat(path)
    except Exception as error:  # of a damaged file, whatever its bytes lead to
        raise ValueError(f"{path} must be a MATLAB file before version 7.3: {error}") from error


__all__ = ["Facts", "Format", "FormatSamples", "check_split", "find_file", "find_folder", "load_mat"]
