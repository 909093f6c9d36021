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
"""MPII Human Pose in the form in which its validation split is passed on: JSON of people, and MATLAB's of heads."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..answers_densemllm import MPII_KEYPOINTS
from .base import Facts, Format, FormatSamples, check_split, find_file, find_folder, load_mat


SPLITS = ("validation",)  # the one whose heads are known
FOLDERS = ("annot", "annotations")
PEOPLE_FILES = ("valid.json", "mpii_val.json")
HEAD_FILES = ("gt_valid.mat", "mpii_gt_val.mat")
SCALE_PIXELS = 200  # of the height of a person, to a unit of `scale`
LOWER_PIXELS = 15  # to a unit of `scale`: `center` lies a little high, and methods on MPII put it so much lower
HEAD_SHARE = 0.6  # of the diagonal of the head's box: the head's size, by MPII's own evaluation
FIRST_PIXEL = 1  # MATLAB counts from 1


def open_mpii(path: str, split: str, images: str | None = None) -> FormatSamples:
    """MPII's validation split: `annot/valid.json`, a list of people with `image`, `center` and `scale`, and
    `annot/gt_valid.mat` (or `annot/mpii_gt_val.mat`) with `headboxes_src` [2, 2, people], `jnt_missing` [16, people]
    and `pos_gt_src` [16, 2, people]; the images in `images/`. A person is a sample.

    `box` of a `person` is the square of 200 pixels a unit of `scale` around `center`, which is put 15 pixels a unit
    lower, as is the custom; `keypoints` are `pos_gt_src`, or `joints` of the JSON file where that lacks, counted from
    0; `head_size` is 0.6 times the diagonal of the head's box.

    Args:
        path: folder of the data set.
        split: "validation".
        images: folder of the images, where it is another one.

    Raises:
        ImportError: scipy isn't installed.
        ValueError: a file or folder that lacks, or a file with something else.
    """
    where = f"mpii:{path}"
    check_split(split, SPLITS, where)
    folder = find_folder(path, FOLDERS, where)
    people_file, heads_file = (find_file(folder, names, where) for names in (PEOPLE_FILES, HEAD_FILES))
    image_folder = find_folder(path, ("images",), where) if images is None else Path(images)
    if not image_folder.is_dir():
        raise ValueError(f"{where}: the folder of the images, {image_folder}, isn't there")
    try:
        people = json.loads(people_file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{where}: {people_file} must be a JSON file ({error})") from error
    if not isinstance(people, list) or not people:
        raise ValueError(f"{where}: {people_file} must be a list of people")
    heads, missing, joints = _read_heads(heads_file, len(people), where)
    rows = []
    for place, person in enumerate(people):
        try:
            image, box = str(image_folder / person["image"]), _person_box(person["center"], person["scale"])
            points = np.asarray(person["joints"] if joints is None else joints[..., place], dtype=np.float64)
            points = np.nan_to_num(points.reshape(len(MPII_KEYPOINTS), 2), nan=0) - FIRST_PIXEL  # NaN: not annotated
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{where}: {people_file} must have image, center, scale and 16 joints of each person ({error!r}, "
                f"person {place})"
            ) from error
        rows.append((image, box, np.column_stack([points, 1 - missing[:, place]]), float(heads[place])))
    return FormatSamples(rows, _read, ("image", "person"), Facts())


def _person_box(center: Any, scale: Any) -> list[float]:
    x, y = (float(value) - FIRST_PIXEL for value in center)
    scale = float(scale)
    y, half = y + LOWER_PIXELS * scale, SCALE_PIXELS * scale / 2
    return [x - half, y - half, x + half, y + half]


def _read_heads(file: Path, count: int, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Sizes of heads `[people]` in pixels, which joints lack `[16, people]`, and where they are `[16, 2, people]` if
    the file says so."""
    content = load_mat(file)
    shapes = {
        "headboxes_src": (2, 2, count),
        "jnt_missing": (len(MPII_KEYPOINTS), count),
        "pos_gt_src": (len(MPII_KEYPOINTS), 2, count),
    }
    found = {}
    for name, shape in shapes.items():
        values = content.get(name)
        if values is None and name == "pos_gt_src":
            continue
        # MATLAB drops a last axis of 1.
        if values is None or values.shape not in ((shape,) if count > 1 else (shape, shape[:-1])):
            got = "no such variable" if values is None else f"{values.shape}"
            raise ValueError(f"{where}: {file} must have `{name}` {list(shape)}, a last entry a person, got {got}")
        found[name] = np.asarray(values, dtype=np.float64).reshape(shape)
    boxes = found["headboxes_src"]
    sizes = HEAD_SHARE * np.linalg.norm(boxes[1] - boxes[0], axis=0)
    return sizes, (found["jnt_missing"] != 0).astype(np.float64), found.get("pos_gt_src")


def _read(row: tuple[str, list[float], np.ndarray, float], wanted: frozenset[str]) -> dict[str, Any]:
    image, box, keypoints, head_size = row
    return {"image": image, "person": {"box": box, "keypoints": keypoints.tolist(), "head_size": head_size}}


FORMATS: dict[str, Format] = {
    "mpii": Format(open_mpii, SPLITS, "MPII's people of the validation split, with their heads' sizes", ("images",)),
}


__all__ = ["FORMATS", "open_mpii"]
