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
"""Class maps of official data sets: files that belong together by name, and their codes as class ids."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ..targets_densemllm import IGNORE_INDEX, present_values
from ..training.maps import open_file, refuse_jpeg


UNKNOWN = -1
SHOWN = 5  # of names that lack, in a message


def code_table(ids: Mapping[int, int]) -> np.ndarray:
    """Class id by code, `int16 [n]`; `UNKNOWN` for codes that `ids` lacks."""
    table = np.full(max(ids) + 1, UNKNOWN, np.int16)
    table[list(ids)] = list(ids.values())
    return table


def read_codes(path: str, where: str, name: str = "segmentation") -> np.ndarray:
    """The numbers of a map as they are stored, integers `[height, width]`; of a palette image, those of the palette.

    Args:
        path: an image, or another file that [`open_file`] takes.
        where: how messages name the data set.
        name: of the array in a file of several.

    Raises:
        CorruptFileError: the file is missing or damaged.
        ValueError: it isn't one channel of integers, or a JPEG.
    """
    opened = open_file(path, where, name)
    if getattr(opened, "format", None) == "JPEG":
        refuse_jpeg(opened, f"{where}: {path}")
    codes = np.asarray(opened)
    if codes.ndim != 2 or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"{where}: {path} must have one channel of integers, got {codes.dtype} {codes.shape}")
    return codes


def read_classes(path: str, table: np.ndarray, where: str, name: str = "segmentation") -> np.ndarray:
    """A class map, `uint8 [height, width]`: class ids and `IGNORE_INDEX`.

    Args:
        table: of [`code_table`].
        path, where, name: as for [`read_codes`].

    Raises:
        CorruptFileError: the file is missing or damaged.
        ValueError: it has codes that `table` lacks, or is no class map.
    """
    codes = read_codes(path, where, name)
    unknown = [code for code in present_values(codes).tolist() if not 0 <= code < len(table) or table[code] == UNKNOWN]
    if unknown:
        known = np.flatnonzero(table != UNKNOWN).tolist()
        raise ValueError(
            f"{where}: {path} has the codes {unknown[:10]}; those of this layout are {known[0]} to {known[-1]}"
            + ("" if len(known) == known[-1] - known[0] + 1 else f", {len(known)} of them")
        )
    return table[codes].astype(np.uint8)


def from_one(count: int) -> np.ndarray:
    """The table of maps that count their classes from 1, where 0 is no class, and neither is 255."""
    return code_table({0: IGNORE_INDEX, **{code: code - 1 for code in range(1, count + 1)}, 255: IGNORE_INDEX})


def find_root(path: str, names: Iterable[str], inside: str, where: str) -> Path:
    """The folder that has the folder `inside`: `path`, or the first of `names` in it.

    Raises:
        ValueError: none has.
    """
    names = list(names)
    for root in (Path(path), *(Path(path) / name for name in names)):
        if (root / inside).is_dir():
            return root
    raise ValueError(f"{where}: {path} must have the folder {inside}, or be what {' or '.join(names)} stands in")


def list_files(folder: Path, endings: Iterable[str]) -> dict[str, str]:
    """The files of a folder with one of these endings: their names without it, sorted, to their paths."""
    found = {}
    for ending in endings:
        for path in sorted(folder.iterdir()):
            if path.name.endswith(ending) and not path.name.startswith("."):
                found.setdefault(path.name.removesuffix(ending), str(path))
    return found


def read_names(file: Path) -> list[str]:
    """The names of a split, one a line."""
    return [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def check_complete(names: Iterable[str], files: Mapping[str, object], folder: Path, where: str) -> None:
    """Raise a `ValueError` where `folder` lacks a file of one of `names`."""
    missing = [name for name in names if name not in files]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise ValueError(f"{where}: {folder} lacks the files of {', '.join(missing[:SHOWN])}{more}")


__all__ = [
    "check_complete",
    "code_table",
    "find_root",
    "from_one",
    "list_files",
    "read_classes",
    "read_codes",
    "read_names",
]
