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
"""Depth as points in space, with colours and normals, and the files that programs for point clouds read."""

import os
from dataclasses import dataclass

import numpy as np

from .checks_densemllm import check_positive, shown
from .whole_files_densemllm import whole_file


@dataclass
class PointCloud:
    """Points of one image, row by row.

    The axes are those of cameras in OpenCV: x to the right, y down, z forward, away from the camera, which is at
    (0, 0, 0).

    Attributes:
        points (`float32 [n, 3]`): metres.
        colors (`uint8 [n, 3]`): red, green and blue.
        normals (`float32 [n, 3]`): unit vectors in the same axes, towards the camera; `None` where they aren't known.
    """

    points: np.ndarray
    colors: np.ndarray
    normals: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.points)

    def save(self, path: str | os.PathLike, overwrite: bool = False) -> None:
        """Write a binary PLY file, which Blender, CloudCompare, MeshLab, Open3D and Gradio's `Model3D` read.

        Raises:
            OSError: the file can't be written, or is there already.
        """
        columns = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
        parts = [self.points, self.colors]
        if self.normals is not None:
            columns[3:3] = [("nx", "<f4"), ("ny", "<f4"), ("nz", "<f4")]
            parts.insert(1, self.normals)
        rows = np.empty(len(self), dtype=columns)
        for (name, _), values in zip(columns, (axis for part in parts for axis in part.T), strict=True):
            rows[name] = values
        kinds = {"<f4": "float", "u1": "uchar"}
        header = ["ply", "format binary_little_endian 1.0", "comment x right, y down, z forward, in metres"]
        header += [f"element vertex {len(self)}", *(f"property {kinds[kind]} {name}" for name, kind in columns)]
        with whole_file(path, overwrite) as staged, open(staged, "wb") as file:
            file.write("\n".join([*header, "end_header", ""]).encode("ascii"))
            file.write(rows.tobytes())


def depth_to_points(
    depth: np.ndarray, focal_length: float, colors: np.ndarray, normals: np.ndarray | None = None
) -> PointCloud:
    """A depth map as points: the pixel u columns and v rows from the map's centre, the principal point, is at
    Z (u / f, v / f, 1), with Z its depth and f the focal length.

    Args:
        depth: metres along the optical axis, floats `[height, width]`; pixels that are not finite or not above 0 give
            no point.
        focal_length: pixels of this map; the same in both directions.
        colors: `uint8 [height, width, 3]`.
        normals: `[height, width, 3]`, as [`DensePrediction`] has them: y up and z towards the camera.

    Raises:
        TypeError, ValueError: `focal_length` is not a finite number above 0, or a map is of another size.
    """
    focal_length = check_positive("focal_length", focal_length, " of pixels")
    height, width = depth.shape
    for name, values in (("colors", colors), ("normals", normals)):
        if values is not None and values.shape != (height, width, 3):
            raise ValueError(f"`{name}` must be [{height}, {width}, 3], as the depth map is, got {shown(values)}")
    is_valid = np.isfinite(depth) & (depth > 0)
    rows, columns = np.nonzero(is_valid)
    metres = depth[is_valid].astype(np.float32)
    points = np.empty((len(metres), 3), dtype=np.float32)
    points[:, 0] = (columns + 0.5 - width / 2) / focal_length * metres
    points[:, 1] = (rows + 0.5 - height / 2) / focal_length * metres
    points[:, 2] = metres
    own = None if normals is None else (normals[is_valid] * (1, -1, -1)).astype(np.float32)
    return PointCloud(points, colors[is_valid], own)


__all__ = ["PointCloud", "depth_to_points"]
