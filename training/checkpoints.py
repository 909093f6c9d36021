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

"""Folders of a training: what is written is whole before it gets its name, and one training has a folder at a time."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from transformers.trainer_utils import sort_checkpoints


UNFINISHED = "unfinished"  # what is being written or deleted stands in a folder of this name, beside what is whole
LOCK_NAME = "_lock"  # of the training that writes into a folder; uploads leave out names that begin so
# What makes a folder a model, and the weights that it may have: no part of an older model may stay beside a new one.
CONFIG_NAMES = ("config.json", "adapter_config.json")
WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")
STATE_NAME = "trainer_state.json"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Remove a folder in which something can't be written to its end.

    Raises:
        OSError: it names the folder; what torch and safetensors say of a full disk names nothing.
    """
    try:
        yield
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)) or "PytorchStreamWriter" in str(error):
            raise OSError(f"{folder} can't be written: {error}") from error
        raise


def replace_model(folder: Path, staged: Path) -> None:
    """Move the files of a model from `staged`, a folder inside of `folder`, over those of an older model.

    The configs go first and come last: in between, the folder doesn't load. Without its config, an older model's
    weights can't be taken for the new one's, nor the new weights for the older model's.
    """
    new = {path.name for path in staged.iterdir()}
    is_whole = any(name in new for name in CONFIG_NAMES)
    if is_whole:
        for name in CONFIG_NAMES:
            (folder / name).unlink(missing_ok=True)
        for pattern in WEIGHT_PATTERNS:
            for path in folder.glob(pattern):
                if path.name not in new:
                    path.unlink()
    for path in sorted(staged.iterdir(), key=lambda path: path.name in CONFIG_NAMES):
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
    staged.rmdir()


def replace_checkpoint(folder: Path, staged: Path) -> None:
    """Move a checkpoint that is whole from `staged`, in the folder [`UNFINISHED`] beside it, to `folder`, in the place
    of one of a run that was resumed from before it."""
    if folder.is_dir():
        delete_checkpoint(folder)
    os.replace(staged, folder)
    staged.parent.rmdir()


def delete_checkpoint(folder: Path) -> None:
    """Delete a checkpoint under another name: a kill in the middle leaves nothing that looks like one."""
    trash = folder.parent / UNFINISHED / f"old-{folder.name}"
    trash.parent.mkdir(exist_ok=True)
    shutil.rmtree(trash, ignore_errors=True)
    os.replace(folder, trash)
    shutil.rmtree(trash)
    if not any(trash.parent.iterdir()):
        trash.parent.rmdir()


def delete_oldest(folder: str, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints of a folder but `limit` (`None` and 0: no limit), never the last one, nor `best`,
    the path of the best one."""
    if not limit or limit < 0:
        return
    checkpoints = sort_checkpoints(folder, use_mtime=True)
    old = [path for path in checkpoints[:-1] if not _is_same(path, best)]
    for path in old[: max(len(checkpoints) - limit, 0)]:
        delete_checkpoint(Path(path))


def delete_all_but(best: str) -> None:
    """Delete the checkpoints beside `best`, the path of one."""
    for path in sort_checkpoints(str(Path(best).parent)):
        if not _is_same(path, best):
            delete_checkpoint(Path(path))


def _is_same(path: str, best: str | None) -> bool:
    return best is not None and os.path.isdir(best) and os.path.samefile(path, best)


@contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Hold a folder to write into, which is made where it lacks.

    Raises:
        ValueError: it is held already, by another process or by this one.
    """
    path = Path(folder).resolve() / LOCK_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"`output_dir` {folder} is in use: another training writes into it. Take another folder, or wait for its "
            "end"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # still held: who comes now makes a new one
            path.unlink()
        lock.release()


__all__ = [
    "LOCK_NAME",
    "STATE_NAME",
    "UNFINISHED",
    "delete_all_but",
    "delete_checkpoint",
    "delete_oldest",
    "locked",
    "replace_checkpoint",
    "replace_model",
    "writing",
]
