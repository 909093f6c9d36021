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
"""Cityscapes: classes, objects and depth of street scenes, as its archives unpack.

What is read of `cityscapes:PATH` and `cityscapes_depth:PATH`:

- `leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`;
- `gtFine/SPLIT/CITY/*_gtFine_labelIds.png`, the 19 classes of the benchmark out of 34 codes, or where these are not
  there, `*_gtFine_labelTrainIds.png`; all else is 255;
- `gtFine/SPLIT/CITY/*_gtFine_instanceIds.png`, where these are there: objects of the 8 classes that have such. What
  has no number of its own there (crowds, far cars) belongs to no object;
- `disparity/SPLIT/CITY/*_disparity.png` with `camera/SPLIT/CITY/*_camera.json`: metres are
  `baseline * fx / ((value - 1) / 256)`, invalid where the value is 0 or 1; `fx` is the focal length.

`cityscapes` has classes and objects, and depth as well where `disparity` and `camera` are there for the split. Its
split "test" has no classes. `cityscapes_depth` has depth alone.
"""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np

from ..drawing_densemllm import PALETTES
from ..targets_densemllm import IGNORE_INDEX
from .base import Facts, Format, FormatSamples, check_split, find_folder
from .class_maps import check_complete, code_table, find_root, list_files, read_classes, read_codes


ID2LABEL = dict(enumerate(PALETTES["cityscapes"]))
# By train id, that is, in the order of `ID2LABEL`.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
LARGEST_LABEL_ID = 33
THINGS = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
THING_IDS = [LABEL_IDS[number] for number, name in ID2LABEL.items() if name in THINGS]
TRAIN_IDS = {number: number for number in ID2LABEL}
# A licence plate is -1 in the official table, which is 255 in a file.
CODES = {
    "_gtFine_labelIds.png": code_table(
        {
            **dict.fromkeys([*range(LARGEST_LABEL_ID + 1), 255], IGNORE_INDEX),
            **{code: number for number, code in enumerate(LABEL_IDS)},
        }
    ),
    "_gtFine_labelTrainIds.png": code_table({**TRAIN_IDS, 255: IGNORE_INDEX}),
}
LABEL_SPLITS = ("train", "val")
SPLITS = (*LABEL_SPLITS, "test")
DEPTH_SPLITS = (*SPLITS, "train_extra")
DEPTH_RANGE = "cityscapes"  # the row of a model's `depth_ranges`


# ---- rows ----


def open_cityscapes(path: str, split: str) -> FormatSamples:
    """The samples of a split, with `image` and what there is of `segmentation`, `instances`, `depth` and
    `focal_length`.

    Args:
        path: the folder with `leftImg8bit` and `gtFine`.
        split: "train", "val" or "test", which has no classes.

    Raises:
        ValueError: another split, or files that lack.
    """
    where = f"cityscapes:{path}"
    check_split(split, SPLITS, where)
    root = find_root(path, ("cityscapes",), "leftImg8bit", where)
    rows, columns = _list_images(root, split, where), ["image"]
    if split in LABEL_SPLITS:
        columns += _add_labels(rows, root, split, where)
    if _has_depth(root, split):
        columns += _add_depth(rows, root, split)
    depth_range = DEPTH_RANGE if "depth" in columns else None
    facts = Facts(ID2LABEL, depth_range=depth_range, thing_labels=THINGS)
    return FormatSamples(rows, partial(_read, where), columns, facts)


def open_cityscapes_depth(path: str, split: str) -> FormatSamples:
    """The samples of a split, with `image`, `depth` and `focal_length`.

    Args:
        path: the folder with `leftImg8bit`, `disparity` and `camera`.
        split: "train", "val", "test" or "train_extra".

    Raises:
        ValueError: another split, or files that lack.
    """
    where = f"cityscapes_depth:{path}"
    check_split(split, DEPTH_SPLITS, where)
    root = find_root(path, ("cityscapes",), "leftImg8bit", where)
    rows = _list_images(root, split, where)
    for kind in ("disparity", "camera"):
        find_folder(root, (f"{kind}/{split}",), where)
    columns = _add_depth(rows, root, split)
    for column in ("disparity", "camera"):
        check_complete(
            (row["name"] for row in rows),
            {row["name"] for row in rows if column in row},
            root / column / split,
            where,
        )
    return FormatSamples(rows, partial(_read, where), ["image", *columns], Facts(depth_range=DEPTH_RANGE))


def _list_images(root: Path, split: str, where: str) -> list[dict[str, str]]:
    """A row for each image: its path, and its name, `CITY/CITY_SEQUENCE_FRAME`."""
    folder = find_folder(root, (f"leftImg8bit/{split}",), where)
    images = _list_cities(folder, "_leftImg8bit.png")
    if not images:
        raise ValueError(f"{where}: {folder} must have folders of cities with files *_leftImg8bit.png")
    return [{"name": name, "image": path} for name, path in images.items()]


def _list_cities(folder: Path, ending: str) -> dict[str, str]:
    """The files of a split by `CITY/CITY_SEQUENCE_FRAME`, sorted."""
    if not folder.is_dir():
        return {}
    cities = sorted(city for city in folder.iterdir() if city.is_dir())
    return {f"{city.name}/{stem}": path for city in cities for stem, path in list_files(city, (ending,)).items()}


def _add_labels(rows: list[dict[str, str]], root: Path, split: str, where: str) -> list[str]:
    """Add the files of classes and objects to the rows; the columns that these have."""
    folder = find_folder(root, (f"gtFine/{split}",), where)
    found = {ending: _list_cities(folder, ending) for ending in CODES}
    ending = next((ending for ending in CODES if found[ending]), next(iter(CODES)))
    check_complete((row["name"] for row in rows), found[ending], folder, f"{where}, files *{ending}")
    instances = _list_cities(folder, "_gtFine_instanceIds.png")
    if instances:
        check_complete((row["name"] for row in rows), instances, folder, f"{where}, files *_gtFine_instanceIds.png")
    for row in rows:
        row["classes"], row["ending"] = found[ending][row["name"]], ending
        if instances:
            row["instances"] = instances[row["name"]]
    return ["segmentation", "instances"] if instances else ["segmentation"]


def _has_depth(root: Path, split: str) -> bool:
    return all((root / kind / split).is_dir() for kind in ("disparity", "camera"))


def _add_depth(rows: list[dict[str, str]], root: Path, split: str) -> list[str]:
    """Add the files of disparity and camera to the rows that have them; the columns that these have."""
    for kind, ending in (("disparity", "_disparity.png"), ("camera", "_camera.json")):
        files = _list_cities(root / kind / split, ending)
        for row in rows:
            if row["name"] in files:
                row[kind] = files[row["name"]]
    return ["depth", "focal_length"]


# ---- reading ----


def _read(where: str, row: dict[str, str], wanted: frozenset[str]) -> dict:
    sample = {"image": row["image"]}
    if "segmentation" in wanted and "classes" in row:
        sample["segmentation"] = read_classes(row["classes"], CODES[row["ending"]], where)
    if "instances" in wanted and "instances" in row:
        sample["instances"] = _read_instances(row["instances"], where)
    if "camera" in row and not wanted.isdisjoint(("depth", "focal_length")):
        baseline, focal_length = _read_camera(row["camera"], where)
        sample["focal_length"] = focal_length
        if "depth" in wanted and "disparity" in row:
            sample["depth"] = _read_depth(row["disparity"], baseline * focal_length, where)
    return sample


def _read_instances(path: str, where: str) -> np.ndarray:
    """Numbers of objects, `int32 [height, width]`, 0 where there is none. A file has `label id * 1000 + number` where
    objects are told apart, and the label id alone where not."""
    codes = read_codes(path, where).astype(np.int32)
    return np.where(np.isin(codes // 1000, THING_IDS), codes, 0)


def _read_camera(path: str, where: str) -> tuple[float, float]:
    """The baseline in metres and the horizontal focal length in pixels."""
    try:
        camera = json.loads(Path(path).read_text(encoding="utf-8"))
        values = float(camera["extrinsic"]["baseline"]), float(camera["intrinsic"]["fx"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{where}: {path} must be JSON with extrinsic.baseline and intrinsic.fx ({error!r})"
        ) from error
    if not all(0 < value < math.inf for value in values):
        raise ValueError(f"{where}: {path} must have a baseline and an fx > 0, got {values}")
    return values


def _read_depth(path: str, baseline_pixels: float, where: str) -> np.ndarray:
    """Metres, `float32 [height, width]`, 0 where invalid.

    Args:
        baseline_pixels: baseline times focal length, in metres times pixels.
    """
    values = read_codes(path, where)
    if values.dtype == np.uint8:
        raise ValueError(f"{where}: {path} must be a PNG of 16 bits, got 8")
    disparity = (values.astype(np.float32) - 1) / 256
    metres = np.zeros(values.shape, np.float32)
    return np.divide(np.float32(baseline_pixels), disparity, out=metres, where=disparity > 0)


FORMATS = {
    "cityscapes": Format(
        open_cityscapes,
        SPLITS,
        "Cityscapes, 19 classes: leftImg8bit and gtFine (labelIds or labelTrainIds, instanceIds), with depth where "
        "disparity and camera are there",
    ),
    "cityscapes_depth": Format(
        open_cityscapes_depth, DEPTH_SPLITS, "the depth of Cityscapes: leftImg8bit, disparity and camera"
    ),
}

__all__ = ["FORMATS", "open_cityscapes", "open_cityscapes_depth"]
