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
"""iBims-1: 100 images with dense depth, to test on, as MATLAB files or as folders.

What is read of `ibims1:PATH`, in PATH or in its folder `ibims1_core_raw` or `ibims1_core_mat`, whichever is there:

- `rgb/NAME.png`, `depth/NAME.png` of 16 bits (65535 is 50 m, 0 invalid), `calib/NAME.txt` (fx, fy, cx, cy), and
  `mask_invalid/NAME.png` and `mask_transp/NAME.png`, not 0 where depth is valid and nothing is transparent;
- `NAME.mat` with the struct `data` of `rgb`, `depth` (metres), `calib`, `mask_invalid` and `mask_transp`.

`imagelist.txt`, in PATH or beside the files, says which; all where it lacks.
"""

import re
from pathlib import Path

import numpy as np
import PIL.Image

from .base import Facts, Format, FormatSamples, load_mat


MASKS = ("mask_invalid", "mask_transp")
MAX_DEPTH = 50.0  # metres, of 65535
COLUMNS = ("image", "depth", "focal_length")


def open_ibims1(path: str, split: str) -> FormatSamples:
    """iBims-1. Depth is 0 where it is not valid, and where the surface is transparent, as the set's own evaluation
    has it.

    Args:
        path: see this module.
        split: `"test"`, all that there is.

    Raises:
        ValueError: a folder or file that lacks.
    """
    root = Path(path)
    for folder in (root, root / "ibims1_core_raw", root / "ibims1_core_mat"):
        if (folder / "rgb").is_dir():
            rows = _names(root, folder, folder / "rgb", ".png")
            for name in ("rgb", "depth", "calib", *MASKS):
                _check_files(folder / name, rows, ".txt" if name == "calib" else ".png")
            return FormatSamples([(str(folder), name) for name in rows], _read_files, COLUMNS, Facts())
        if any(folder.glob("*.mat")):
            rows = _names(root, folder, folder, ".mat")
            _check_files(folder, rows, ".mat")
            return FormatSamples([str(folder / f"{name}.mat") for name in rows], _read_mat, COLUMNS, Facts())
    raise ValueError(f"ibims1: {path} must have the folders rgb, depth, calib, mask_invalid and mask_transp, or *.mat")


def _names(root: Path, folder: Path, files: Path, suffix: str) -> list[str]:
    for place in (folder, root, folder.parent):
        if (place / "imagelist.txt").is_file():
            words = (place / "imagelist.txt").read_text(encoding="utf-8").split()
            return [word.removesuffix(suffix) for word in words]
    return sorted(file.stem for file in files.glob(f"*{suffix}"))


def _check_files(folder: Path, names: list[str], suffix: str) -> None:
    there = {file.name for file in folder.glob(f"*{suffix}")}
    missing = [name for name in names if f"{name}{suffix}" not in there]
    if missing:
        raise ValueError(f"ibims1: {folder} must have the file {missing[0]}{suffix}; {len(missing)} such files lack")


def _read_files(row: tuple[str, str], wanted: frozenset[str]) -> dict:
    folder, name = Path(row[0]), row[1]
    found = {"image": str(folder / "rgb" / f"{name}.png")}
    if "focal_length" in wanted:
        found["focal_length"] = _read_calibration(folder / "calib" / f"{name}.txt")
    if "depth" in wanted:
        units = _read_png(folder / "depth" / f"{name}.png")
        masks = [_read_png(folder / mask / f"{name}.png") for mask in MASKS]
        found["depth"] = _valid_depth(units.astype(np.float32) * np.float32(MAX_DEPTH / 65535), masks)
    return found


def _read_png(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as image:
        return np.asarray(image)


def _valid_depth(metres: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
    valid = np.logical_and.reduce([mask.astype(bool) for mask in masks])
    return np.where(valid, metres, np.float32(0))


def _read_calibration(path: Path) -> float:
    values = re.split(r"[\s,;]+", path.read_text(encoding="utf-8").strip())
    try:
        return float(values[0])
    except ValueError as error:
        raise ValueError(f"ibims1: {path} must have the numbers fx, fy, cx, cy, got {values[:4]}") from error


def _read_mat(path: str, wanted: frozenset[str]) -> dict:
    data = load_mat(path).get("data")
    names = () if data is None else data.dtype.names or ()
    lacking = [name for name in ("rgb", "depth", "calib", *MASKS) if name not in names]
    if lacking:
        raise ValueError(f"ibims1: {path} must have the struct 'data' with {lacking[0]!r}, it has {list(names)}")
    data = data[0, 0]
    return {
        "image": PIL.Image.fromarray(np.ascontiguousarray(data["rgb"], dtype=np.uint8)),
        "depth": _valid_depth(data["depth"].astype(np.float32), [data[mask] for mask in MASKS]),
        "focal_length": float(data["calib"].flat[0]),  # fx stands first, however the matrix is turned
    }


FORMATS = {
    "ibims1": Format(open_ibims1, ("test",), "iBims-1: folders rgb, depth, calib and masks, or .mat files"),
}

__all__ = ["FORMATS", "open_ibims1"]
