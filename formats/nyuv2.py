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
"""NYU Depth v2: the labeled set's MATLAB file with its official split, or folders of image and depth files.

What is read of `nyuv2:PATH`, whichever is there:

- `nyu_depth_v2_labeled.mat` with `splits.mat` beside it (795 images to train on, 654 to test on); metres;
- pairs of `rgb_*.jpg` (or PNG) and `sync_depth_*.png` of 16 bits in millimetres, at any depth of the folder of the
  split, which is `SPLIT`, `official_splits/SPLIT` or, where a list of the split names its files, `PATH` itself. A list
  is `nyu_SPLIT.txt` or `nyudepthv2_SPLIT_files_with_gt.txt`, with image and depth file on a line.
"""

import os
from pathlib import Path

import numpy as np
import PIL.Image

from .base import Facts, Format, FormatSamples, find_file, load_mat


LABELED, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
# fx of the colour camera, in pixels of the 640 x 480 images, from `camera_params.m` of the set's toolbox. (fy is
# 519.47; the images have one focal length here.)
FOCAL_LENGTH = 518.85790117450188
DEPTH_MAPS = {"raw": "rawDepths", "filled": "depths"}
# Of the folder layout, what the community extracts from the labeled set.
IMAGE_STEM, DEPTH_STEM = "rgb_", "sync_depth_"
MILLIMETRES = 0.001
LISTS = ("nyu_{}.txt", "nyudepthv2_{}_files_with_gt.txt")


class _LabeledFile:
    """Rows of the MATLAB file, which each process opens for itself: a file that is open can't be pickled, and HDF5's
    must not be shared with a forked process."""

    def __init__(self, path: Path, maps: str):
        self.path, self.maps = path, maps
        self._process, self._file = None, None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_process": None, "_file": None}

    def open(self):
        if self._process != os.getpid():
            self._process, self._file = os.getpid(), _open_hdf5(self.path)
        return self._file

    def __call__(self, row: int, wanted: frozenset[str]) -> dict:
        file = self.open()
        found = {"focal_length": FOCAL_LENGTH}
        # MATLAB writes columns first: what it calls [480, 640, 3, 1449] is [1449, 3, 640, 480] here.
        if "image" in wanted:
            found["image"] = PIL.Image.fromarray(np.ascontiguousarray(file["images"][row].transpose(2, 1, 0)))
        if "depth" in wanted:
            found["depth"] = np.ascontiguousarray(file[self.maps][row].T, dtype=np.float32)
        return found


def open_nyuv2(path: str, split: str, depth: str = "raw", depth_scale: float = MILLIMETRES) -> FormatSamples:
    """A split of NYU Depth v2.

    Args:
        path: see this module.
        split: `"train"` or `"test"`.
        depth: `"raw"`, what the sensor measured, 0 where it saw nothing, as published figures use it; or `"filled"`,
            with the holes painted in by colorization. Folders have the one depth that was written into them.
        depth_scale: metres a unit of the folders' PNG files.

    Raises:
        ValueError: a file that lacks, or an option that isn't known.
    """
    if depth not in DEPTH_MAPS:
        raise ValueError(f"`depth` must be one of {sorted(DEPTH_MAPS)}, got {depth!r}")
    root = Path(path)
    labeled = root if root.is_file() else root / LABELED
    if labeled.is_file():
        return _open_labeled(labeled, split, DEPTH_MAPS[depth])
    pairs = _pairs_of_list(root, split) or _pairs_of_folder(root, split)
    if not pairs:
        raise ValueError(
            f"nyuv2: {path} must have {LABELED} with {SPLITS}, or files {IMAGE_STEM}*.jpg with {DEPTH_STEM}*.png in "
            f"the folder {split} or official_splits/{split}, or one of the lists "
            f"{', '.join(name.format(split) for name in LISTS)}"
        )
    facts = Facts(depth_scale=depth_scale, depth_range="nyuv2")
    return FormatSamples(pairs, _read_pair, ("image", "depth", "focal_length"), facts)


def _open_labeled(path: Path, split: str, maps: str) -> FormatSamples:
    rows = _rows_of_split(find_file(path.parent, (SPLITS,), "nyuv2"), split)
    read = _LabeledFile(path, maps)
    file = read.open()
    lacking = [name for name in ("images", maps) if name not in file]
    if lacking:
        raise ValueError(f"nyuv2: {path} must have the variable {lacking[0]!r}, it has {sorted(file)}")
    count = len(file["images"])
    if max(rows, default=0) >= count:
        raise ValueError(f"nyuv2: {path.parent / SPLITS} names the image {max(rows) + 1}, and {path} has {count}")
    return FormatSamples(rows, read, ("image", "depth", "focal_length"), Facts(depth_range="nyuv2"))


def _open_hdf5(path: Path):
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{path} needs h5py: `pip install densemllm[datasets]`") from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"nyuv2: {path} must be a MATLAB file of version 7.3 (HDF5): {error}") from error


def _rows_of_split(path: Path, split: str) -> list[int]:
    found = load_mat(path)
    name = f"{split}Ndxs"
    if name not in found:
        raise ValueError(f"nyuv2: {path} must have the variable {name!r}, it has {sorted(found)}")
    return (found[name].reshape(-1).astype(np.int64) - 1).tolist()  # MATLAB counts from 1


def _pairs_of_list(root: Path, split: str) -> list[tuple[str, str]]:
    """Image and depth file of each line of a list, relative to the folder of the split or to `root`."""
    file = next((root / name.format(split) for name in LISTS if (root / name.format(split)).is_file()), None)
    if file is None:
        return []
    folders = [folder for folder in (*_folders_of(root, split), root) if folder.is_dir()]
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        names = line.split()[:2]
        if len(names) == 2 and names[1] != "None":
            rows.append(tuple(_find(name, folders, file) for name in names))
    return rows


def _find(name: str, folders: list[Path], file: Path) -> str:
    for folder in folders:
        if (folder / name.lstrip("/")).is_file():
            return str(folder / name.lstrip("/"))
    raise ValueError(f"nyuv2: {name}, which {file} names, is in none of {[str(folder) for folder in folders]}")


def _folders_of(root: Path, split: str) -> list[Path]:
    return [root / "official_splits" / split, root / split]


def _pairs_of_folder(root: Path, split: str) -> list[tuple[str, str]]:
    folder = next((folder for folder in _folders_of(root, split) if folder.is_dir()), None)
    pairs = []
    for depth in sorted(folder.rglob(f"{DEPTH_STEM}*.png")) if folder is not None else []:
        stem = IMAGE_STEM + depth.stem.removeprefix(DEPTH_STEM)
        image = find_file(depth.parent, (f"{stem}.jpg", f"{stem}.png"), "nyuv2")
        pairs.append((str(image), str(depth)))
    return pairs


def _read_pair(row: tuple[str, str], wanted: frozenset[str]) -> dict:
    return {"image": row[0], "depth": row[1], "focal_length": FOCAL_LENGTH}


FORMATS = {
    "nyuv2": Format(
        open_nyuv2,
        ("train", "test"),
        f"NYU Depth v2: {LABELED} with {SPLITS}, or folders of {IMAGE_STEM}*.jpg and {DEPTH_STEM}*.png (millimetres)",
        ("depth", "depth_scale"),
    )
}

__all__ = ["FORMATS", "open_nyuv2"]
