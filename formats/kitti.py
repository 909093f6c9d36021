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
"""KITTI's depth maps with its raw images: the official training and validation drives, and the split of Eigen et al.

What is read of `kitti:PATH`:

- raw data, `DATE/DRIVE_sync/image_02/data/*.png` (or `.jpg`) with `DATE/calib_cam_to_cam.txt`, in PATH itself or in
  its folder `raw`, `raw_data`, `kitti_raw`, `data` or `input`;
- annotated depth (`data_depth_annotated.zip`), `DRIVE_sync/proj_depth/groundtruth/image_02/*.png`, in PATH, or in its
  folder `data_depth_annotated`, `gts`, `gt_depth` or `depth`, in `train` and `val` there or without these;
- for Eigen's split a list in PATH or its folder `splits`, such as `kitti_eigen_test_files_with_gt.txt`. A line is
  `IMAGE DEPTH FOCAL_LENGTH`, an image alone, or `DATE/DRIVE_sync FRAME l`.

Depth PNG files have 256 units a metre, and 0 where nothing was measured.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Self

from transformers.utils import logging

from .base import Facts, Format, FormatSamples


logger = logging.get_logger(__name__)

RAW_FOLDERS = ("", "raw", "raw_data", "kitti_raw", "data", "input")
DEPTH_FOLDERS = tuple(
    f"{folder}/{split}".strip("/")
    for folder in ("", "data_depth_annotated", "gts", "gt_depth", "depth")
    for split in ("", "train", "val")
)
LISTS = (
    "kitti_eigen_{}_files_with_gt.txt", "kitti_eigen_{}.txt", "eigen_{}_files.txt", "{}_files_eigen.txt",
    "{}_files.txt",
)  # fmt: skip
CAMERAS = {"l": "image_02", "r": "image_03"}
DRIVE = re.compile(r"(\d{4}_\d{2}_\d{2})_drive_\d{4}_sync")
CALIBRATION = "calib_cam_to_cam.txt"


@dataclass(frozen=True)
class _Places:
    """The folders of `root` that are there, for raw data and for depth maps: looked up once for all files."""

    root: Path
    raw: tuple[Path, ...]
    depth: tuple[Path, ...]

    @classmethod
    def of(cls, root: Path) -> Self:
        raw, depth = (
            tuple(root / name for name in names if (root / name).is_dir()) for names in (RAW_FOLDERS, DEPTH_FOLDERS)
        )
        return cls(root, raw, depth)

    def find_image(self, drive: str, camera: str, frame: str) -> Path:
        stem = f"{drive[:10]}/{drive}/{camera}/data/{frame}"
        files = (folder / f"{stem}{suffix}" for folder in self.raw for suffix in (".png", ".jpg"))
        image = next((file for file in files if file.is_file()), None)
        if image is None:
            raise ValueError(
                f"kitti: {self.root} must have the image {stem}.png (or .jpg), which has a depth map, in itself or in "
                f"one of the folders {', '.join(RAW_FOLDERS[1:])}"
            )
        return image

    def find_depth(self, drive: str, camera: str, frame: str) -> Path | None:
        name = f"{drive}/proj_depth/groundtruth/{camera}/{frame}.png"
        dated = f"{drive[:10]}/{name}"  # beside the raw data
        files = [*(folder / name for folder in self.depth), *(folder / dated for folder in self.raw)]
        return next((file for file in files if file.is_file()), None)


def open_kitti(path: str, split: str) -> FormatSamples:
    """A split of KITTI's depth; the focal length of each image is that of its day's calibration, `P_rect_02`.

    Args:
        path: see this module.
        split: `"train"` or `"val"`, the official drives, left camera; `"eigen_train"` or `"eigen_test"`, the list of
            that name. Of its images those without annotated depth (45 of the 697 to test on) are left out.

    Raises:
        ValueError: a folder, a list, an image or a calibration that lacks.
    """
    root = Path(path)
    if split in ("train", "val"):
        rows = _rows_of_drives(root, split)
    else:
        rows = _rows_of_list(root, split.removeprefix("eigen_"))
    return FormatSamples(rows, _read_row, ("image", "depth", "focal_length"), Facts(depth_scale=1 / 256))


def _read_row(row: tuple[str, str, float], wanted: frozenset[str]) -> dict:
    return dict(zip(("image", "depth", "focal_length"), row, strict=True))


def _rows_of_drives(root: Path, split: str) -> list[tuple[str, str, float]]:
    folders = [root / folder for folder in DEPTH_FOLDERS if PurePosixPath(folder).name == split]
    for folder in folders:
        depths = sorted(folder.glob("*_sync/proj_depth/groundtruth/image_02/*.png"))
        if depths:
            places = _Places.of(root)
            return [_row(places, depth.parts[-5], "image_02", depth.stem, depth) for depth in depths]
    raise ValueError(
        f"kitti: {root} must have the folder {split} or data_depth_annotated/{split}, with depth maps "
        "DRIVE_sync/proj_depth/groundtruth/image_02/*.png"
    )


def _rows_of_list(root: Path, split: str) -> list[tuple[str, str, float]]:
    names = [name.format(split) for name in LISTS]
    files = [place / name for place in (root, root / "splits") for name in names if (place / name).is_file()]
    if not files:
        raise ValueError(f"kitti: {root} must have the list of the split 'eigen_{split}', one of {', '.join(names)}")
    file, places = files[0], _Places.of(root)
    rows, missing = [], 0
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        words = line.split()
        drive, camera, frame = _image_of_line(words, f"{file}, line {number}")
        says_none = len(words) == 3 and words[1] == "None"
        depth = None if says_none else places.find_depth(drive, camera, frame)
        if depth is None:
            missing += 1
        else:
            rows.append(_row(places, drive, camera, frame, depth, words))
    if not rows:
        raise ValueError(
            f"kitti: {root} has no depth map of the {missing} images of {file}; they must be in "
            "DRIVE_sync/proj_depth/groundtruth/image_02 of it, or of one of its folders "
            f"{', '.join(filter(None, DEPTH_FOLDERS))}"
        )
    if missing:
        total = missing + len(rows)
        logger.warning(f"kitti: {missing} of {total} images of {file} have no depth map and are left out")
    return rows


def _image_of_line(words: list[str], where: str) -> tuple[str, str, str]:
    """Drive, camera and frame of a line."""
    drive = DRIVE.search(words[0].split("/")[-1] if words[0].count("/") == 1 else words[0])
    if drive and len(words) == 3 and words[2] in CAMERAS:
        return drive[0], CAMERAS[words[2]], f"{int(words[1]):010d}"
    camera = re.search(r"image_0[23]", words[0])
    if not drive or not camera:
        raise ValueError(
            f"kitti: {where} must be IMAGE DEPTH FOCAL_LENGTH, IMAGE, or DATE/DRIVE_sync FRAME l, got "
            f"{' '.join(words)!r}"
        )
    return drive[0], camera[0], PurePosixPath(words[0]).stem


def _row(
    places: _Places, drive: str, camera: str, frame: str, depth: Path, words: list[str] | None = None
) -> tuple[str, str, float]:
    """Image, depth and focal length; `words` of a list may end with the last."""
    image = places.find_image(drive, camera, frame)
    focal_length = _read_focal_length(image.parents[3] / CALIBRATION, camera)
    if focal_length is None and words and len(words) == 3 and words[2] not in CAMERAS:
        focal_length = float(words[2])
    if focal_length is None:
        raise ValueError(f"kitti: {image.parents[3]} must have the file {CALIBRATION}, for the focal length")
    return str(image), str(depth), focal_length


@cache  # one file a day
def _read_focal_length(path: Path, camera: str) -> float | None:
    """fx, in pixels of the rectified image, of a calibration; `None` where there is no such file."""
    if not path.is_file():
        return None
    name = f"P_rect_{camera[-2:]}:"
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            values = line.removeprefix(name).split()
            if len(values) == 12:
                return float(values[0])
    raise ValueError(f"kitti: {path} must have a line {name} of 12 numbers")


FORMATS = {
    "kitti": Format(
        open_kitti,
        ("train", "val", "eigen_train", "eigen_test"),
        "KITTI: raw images with annotated depth, the official drives or a list of Eigen's split",
    )
}

__all__ = ["FORMATS", "open_kitti"]
