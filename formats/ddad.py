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
"""DDAD as prepared depth maps: the official set has point clouds, which others have projected into the images.

What is read of `ddad:PATH` is the preparation of iDisc and UniDepth (`splits/ddad/get_ddad.py` of the former), in PATH
or in its folder `ddad_results`:

- `SCENE/rgb/CAMERA/TIME.png` (or `.jpg`);
- `SCENE/depth/CAMERA/TIME.png`, 16 bits of 256 units a metre, 0 where the lidar saw nothing; or, as packnet-sfm writes
  them, `SCENE/depth/lidar/CAMERA/TIME.npz` with `depth` in metres;
- `ddad_intrinsics.json`, in PATH or in that folder: the path of each image, as above, to its matrix
  `[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]`;
- `ddad_train.txt` and `ddad_val.txt`, there too, with image and depth file on a line. Where a list lacks, the split is
  the official one by scenes: 000000 to 000149 to train on, 000150 to 000199 to validate on.
"""

import json
from pathlib import Path

import numpy as np

from .base import Facts, Format, FormatSamples, find_file


INTRINSICS = "ddad_intrinsics.json"
SCENES = {"train": range(150), "val": range(150, 200)}


def open_ddad(path: str, split: str, camera: str | None = None) -> FormatSamples:
    """A split of DDAD.

    Args:
        path: see this module.
        split: `"train"` or `"val"`.
        camera: such as `"CAMERA_01"`, the front one: images of that camera alone.

    Raises:
        ValueError: a file that lacks, or an image without a matrix.
    """
    root = Path(path)
    images = root / "ddad_results" if (root / "ddad_results").is_dir() else root
    places = [place for place in (root, images) if (place / INTRINSICS).is_file()]
    intrinsics = find_file((places or [root])[0], (INTRINSICS,), "ddad")
    matrices = json.loads(intrinsics.read_text(encoding="utf-8"))
    listed = [place / f"ddad_{split}.txt" for place in (root, images) if (place / f"ddad_{split}.txt").is_file()]
    pairs = _pairs_of_list(listed[0]) if listed else _pairs_of_folder(images, SCENES[split])
    if camera is not None:
        cameras = sorted({image.split("/")[-2] for image, _ in pairs})
        if camera not in cameras:
            raise ValueError(f"`camera` must be one of {cameras}, got {camera!r}")
        pairs = [pair for pair in pairs if pair[0].split("/")[-2] == camera]
    if not pairs:
        raise ValueError(
            f"ddad: {images} must have the list ddad_{split}.txt, or images SCENE/rgb/CAMERA/*.png with depth maps "
            f"SCENE/depth/CAMERA/*.png of the scenes {SCENES[split][0]:06d} to {SCENES[split][-1]:06d}"
        )
    kinds = {Path(depth).suffix.lower() for _, depth in pairs}
    if len(kinds) > 1:
        raise ValueError(f"ddad: depth maps of {path} must be of one kind, PNG or NPZ, got {sorted(kinds)}")
    rows = [
        (str(images / image), str(images / depth), _focal_length(matrices, image, intrinsics))
        for image, depth in pairs
    ]
    facts = Facts(depth_scale=1 / 256 if kinds == {".png"} else None, depth_range="ddad")
    return FormatSamples(rows, _read_row, ("image", "depth", "focal_length"), facts)


def _read_row(row: tuple[str, str, float], wanted: frozenset[str]) -> dict:
    return dict(zip(("image", "depth", "focal_length"), row, strict=True))


def _pairs_of_list(path: Path) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if len(words) == 1 or len(words) > 3:
            raise ValueError(f"ddad: {path}, line {number} must be an image and a depth file, got {line!r}")
        if words:
            pairs.append((words[0].lstrip("/"), words[1].lstrip("/")))
    return pairs


def _pairs_of_folder(root: Path, scenes: range) -> list[tuple[str, str]]:
    pairs = []
    for scene in sorted(root.glob("[0-9]*/rgb")):
        if not scene.parent.name.isdigit() or int(scene.parent.name) not in scenes:
            continue
        for image in sorted([*scene.glob("*/*.png"), *scene.glob("*/*.jpg")]):
            place = f"{image.parent.name}/{image.stem}"
            folder = scene.parent / "depth"
            depth = find_file(folder, (f"{place}.png", f"lidar/{place}.npz", f"{place}.npz"), "ddad")
            pairs.append((image.relative_to(root).as_posix(), depth.relative_to(root).as_posix()))
    return pairs


def _focal_length(matrices: dict, image: str, file: Path) -> float:
    matrix = np.asarray(matrices.get(image, ()), dtype=np.float64)
    if matrix.size not in (9, 12):
        raise ValueError(f"ddad: {file} must have the matrix of {image}, 3 x 3 numbers")
    return float(matrix.flat[0])


FORMATS = {
    "ddad": Format(
        open_ddad,
        ("train", "val"),
        "DDAD as iDisc prepares it: SCENE/rgb/CAMERA/*.png, SCENE/depth/CAMERA/*.png and ddad_intrinsics.json",
        ("camera",),
    )
}

__all__ = ["FORMATS", "open_ddad"]
