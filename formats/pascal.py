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
"""PASCAL VOC and PASCAL Context, as the `VOCdevkit` has them.

What is read of `voc:PATH` and `voc20:PATH`, PATH being `VOC2012`, or the folder that it or its `VOCdevkit` stands in:

- the names of a split in `ImageSets/Segmentation/{train,val,trainval}.txt`, and `JPEGImages/*.jpg`;
- `SegmentationClass/*.png`, palette images: 0 is the background, 1 to 20 are the classes, 255 is the border of an
  object, which is ignored. `voc` has 21 classes with the background as 0; `voc20` has 20 from 0, and ignores it;
- `SegmentationObject/*.png`, where that folder is there: numbers of objects from 1. The border is no object.

What is read of `context59:PATH`, PATH being `VOC2010`, or the folder that it or its `VOCdevkit` stands in:

- `SegmentationClassContext/*.png` with `ImageSets/SegmentationContext/{train,val}.txt`, what mmsegmentation's
  `pascal_context.py` writes with the detail API: 0 is the background, which is ignored, 1 to 59 are the classes;
- or else the original release, a folder `trainval` of `.mat` files (it needs scipy) in PATH or in `VOC2010`, with a
  `LabelMap` of the 459 codes of its `labels.txt`: those of the 59 classes, the rest is ignored. Its splits are
  `ImageSets/SegmentationContext/{train,val}.txt`, or where that folder isn't there, VOC2010's
  `ImageSets/Main/{train,val}.txt`, which are the same 4,998 and 5,105 images.

`trainval_merged.json` of the detail API is not read by itself.
"""

from functools import partial
from pathlib import Path

import numpy as np

from ..drawing_densemllm import PALETTES
from ..targets_densemllm import IGNORE_INDEX
from .base import Facts, Format, FormatSamples, check_split, find_file, find_folder
from .class_maps import (
    check_complete,
    code_table,
    find_root,
    from_one,
    list_files,
    read_classes,
    read_codes,
    read_names,
)


VOC_NAMES = tuple(PALETTES["voc"])
VOC_SPLITS = ("train", "val", "trainval")
VOC_THINGS = VOC_NAMES[1:]
VOC_CODES = code_table({**{code: code for code in range(len(VOC_NAMES))}, 255: IGNORE_INDEX})
BORDER = 255

CONTEXT_SPLITS = ("train", "val")
# The classes in the order of the benchmark, with their codes in the original release.
CONTEXT_RELEASE_CODES = {
    "aeroplane": 2, "bag": 9, "bed": 18, "bedclothes": 19, "bench": 22, "bicycle": 23, "bird": 25, "boat": 31,
    "book": 33, "bottle": 34, "building": 44, "bus": 45, "cabinet": 46, "car": 59, "cat": 65, "ceiling": 68,
    "chair": 72, "cloth": 80, "computer": 85, "cow": 98, "cup": 104, "curtain": 105, "dog": 113, "door": 115,
    "fence": 144, "floor": 158, "flower": 159, "food": 162, "grass": 187, "ground": 189, "horse": 207,
    "keyboard": 220, "light": 232, "motorbike": 258, "mountain": 259, "mouse": 260, "person": 284, "plate": 295,
    "platform": 296, "pottedplant": 308, "road": 324, "rock": 326, "sheep": 347, "shelves": 349, "sidewalk": 354,
    "sign": 355, "sky": 360, "snow": 366, "sofa": 368, "table": 397, "track": 415, "train": 416, "tree": 420,
    "truck": 424, "tvmonitor": 427, "wall": 440, "water": 445, "window": 454, "wood": 458,
}  # fmt: skip
CONTEXT_CODES = from_one(len(CONTEXT_RELEASE_CODES))
CONTEXT_LARGEST_CODE = 459
CONTEXT_RELEASE_TABLE = code_table(
    {
        **dict.fromkeys(range(CONTEXT_LARGEST_CODE + 1), IGNORE_INDEX),
        **{code: number for number, code in enumerate(CONTEXT_RELEASE_CODES.values())},
    }
)


# ---- VOC ----


def open_voc(path: str, split: str, with_background: bool = True) -> FormatSamples:
    """The samples of a split, with `image`, `segmentation` and, where there are such files, `instances`.

    Args:
        path: `VOC2012`, or the folder that it or its `VOCdevkit` stands in.
        split: "train", "val" or "trainval".
        with_background: take the background for a class.

    Raises:
        ValueError: another split, or files that lack.
    """
    where = f"{'voc' if with_background else 'voc20'}:{path}"
    check_split(split, VOC_SPLITS, where)
    root = find_root(path, ("VOC2012", "VOCdevkit/VOC2012"), "JPEGImages", where)
    names = read_names(find_file(root, (f"ImageSets/Segmentation/{split}.txt",), where))
    folders = {"image": (root / "JPEGImages", ".jpg"), "segmentation": (root / "SegmentationClass", ".png")}
    if (root / "SegmentationObject").is_dir():
        folders["instances"] = (root / "SegmentationObject", ".png")
    labels = VOC_NAMES if with_background else VOC_THINGS
    table = VOC_CODES if with_background else from_one(len(VOC_THINGS))
    return FormatSamples(
        _list_rows(names, folders, where),
        partial(_read_voc, where, table),
        folders,
        Facts(dict(enumerate(labels)), thing_labels=VOC_THINGS),
    )


def _list_rows(names: list[str], folders: dict[str, tuple[Path, str]], where: str) -> list[dict[str, str]]:
    """A row of paths for each name; `folders` are those of the columns, with the ending of their files."""
    files = {}
    for column, (folder, ending) in folders.items():
        files[column] = list_files(find_folder(folder.parent, (folder.name,), where), (ending,))
        check_complete(names, files[column], folder, where)
    return [{column: paths[name] for column, paths in files.items()} for name in names]


def _read_voc(where: str, table: np.ndarray, row: dict[str, str], wanted: frozenset[str]) -> dict:
    sample = {"image": row["image"]}
    if "segmentation" in wanted:
        sample["segmentation"] = read_classes(row["segmentation"], table, where)
    if "instances" in wanted:
        numbers = read_codes(row["instances"], where)
        sample["instances"] = np.where(numbers == BORDER, 0, numbers)
    return sample


# ---- Context ----


def open_context59(path: str, split: str) -> FormatSamples:
    """The samples of a split, with `image` and `segmentation`.

    Args:
        path: `VOC2010`, or the folder that it or its `VOCdevkit` stands in.
        split: "train" or "val".

    Raises:
        ValueError: another split, or files that lack.
    """
    where = f"context59:{path}"
    check_split(split, CONTEXT_SPLITS, where)
    root = find_root(path, ("VOC2010", "VOCdevkit/VOC2010"), "JPEGImages", where)
    maps, ending, table = _find_context_maps(Path(path), root, where)
    lists = [f"ImageSets/SegmentationContext/{split}.txt"]
    if ending == ".mat":
        lists.append(f"ImageSets/Main/{split}.txt")
    names = read_names(find_file(root, lists, where))
    folders = {"image": (root / "JPEGImages", ".jpg"), "segmentation": (maps, ending)}
    return FormatSamples(
        _list_rows(names, folders, where),
        partial(_read_context, where, table),
        folders,
        Facts(dict(enumerate(CONTEXT_RELEASE_CODES))),
    )


def _find_context_maps(path: Path, root: Path, where: str) -> tuple[Path, str, np.ndarray]:
    """The folder of class maps, the ending of its files, and the table of their codes."""
    if (root / "SegmentationClassContext").is_dir():
        return root / "SegmentationClassContext", ".png", CONTEXT_CODES
    for folder in (root / "trainval", path / "trainval"):
        if folder.is_dir():
            return folder, ".mat", CONTEXT_RELEASE_TABLE
    raise ValueError(f"{where}: {root} must have the folder SegmentationClassContext, or trainval with .mat files")


def _read_context(where: str, table: np.ndarray, row: dict[str, str], wanted: frozenset[str]) -> dict:
    sample = {"image": row["image"]}
    if "segmentation" in wanted:
        sample["segmentation"] = read_classes(row["segmentation"], table, where, "LabelMap")
    return sample


FORMATS = {
    "voc": Format(
        open_voc,
        VOC_SPLITS,
        "PASCAL VOC, 21 classes with the background: VOC2012 with SegmentationClass, and SegmentationObject if there",
    ),
    "voc20": Format(
        partial(open_voc, with_background=False), VOC_SPLITS, "the same without the background, which is ignored"
    ),
    "context59": Format(
        open_context59,
        CONTEXT_SPLITS,
        "PASCAL Context, 59 classes: VOC2010 with SegmentationClassContext, or the original trainval/*.mat",
    ),
}

__all__ = ["FORMATS", "open_context59", "open_voc"]
