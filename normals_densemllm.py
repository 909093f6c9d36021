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
"""Surface normals as bins of a grid on the hemisphere, as maps read from logits, and from a map of depth.

A normal is a unit vector (x, y, z) in the axes of the camera as OpenGL has them: x to the right, y up, z from the
scene towards the camera. A wall that is seen straight on has (0, 0, 1), the floor of a level camera (0, 1, 0). Normals
in OpenCV's axes (y down, z away from the camera) become these by negating y and z.
"""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from .checks_densemllm import check_count, check_positive, shown
from .decoding_densemllm import upsampled_strips


# A surface is seen if its normal is less than 90 degrees from the direction to the camera: off the optical axis, z may
# be below 0, down to minus the sine of the ray's angle to the axis. A view of 90 degrees has none below this.
LEAST_Z = -(0.5**0.5)
NEAREST = 24  # bins around a bin among which its neighbours are looked for: about twice as many as can be
VALUES_AT_ONCE = 2**22  # of what grows with pixels times bins


def bin_directions(num_bins: int) -> torch.Tensor:
    """The centres of the bins: a Fibonacci spiral on the hemisphere z > 0, from its rim (bin 1) to (0, 0, 1).

    Bin k has z = (k - 1/2) / `num_bins`, so that all bins have the same area, and turns by the golden angle,
    pi (3 - sqrt(5)), from one to the next (Swinbank and Purser 2006, "Fibonacci grids: a novel approach to global
    modelling"). No direction with z >= 0 is further from a bin than 18.7 degrees for 64 bins, 8.9 for 256, 4.7 for
    1000.

    Returns:
        `float32 [num_bins, 3]`, unit vectors; row k - 1 is bin k.

    Raises:
        TypeError, ValueError: `num_bins` is not a whole number of at least 1.
    """
    return torch.from_numpy(_directions(check_count("num_bins", num_bins)).astype(np.float32))


def _directions(num_bins: int) -> np.ndarray:
    k = np.arange(num_bins)
    z = (k + 0.5) / num_bins
    turn, radius = k * (math.pi * (3 - math.sqrt(5))), np.sqrt(1 - z * z)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn), z], axis=1)


@lru_cache(maxsize=8)
def bin_neighbours(num_bins: int) -> tuple[tuple[int, ...], ...]:
    """The bins that border each bin: there is a line on the hemisphere to which the two are the nearest bins.

    Returns:
        a tuple for each bin: entry k - 1 has the neighbours of bin k (up to 7 of them), counted from 1, ascending.

    Raises:
        TypeError, ValueError: `num_bins` is not a whole number of at least 1.
    """
    directions = _directions(check_count("num_bins", num_bins))
    count = min(NEAREST, len(directions) - 1)
    neighbours = []
    for own, direction in enumerate(directions):
        closeness = directions @ direction
        closeness[own] = -math.inf
        others = np.argpartition(-closeness, count - 1)[:count] if count else np.empty(0, int)
        borders = others[_borders(direction, directions[others])]
        neighbours.append(tuple(sorted((borders + 1).tolist())))
    return tuple(neighbours)


def _borders(direction: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of `others` `[count, 3]` have a border with `direction`: booleans `[count]`.

    Two bins are equally near on a great circle, middle cos(a) + side sin(a). A third bin is not nearer on that half
    of it on which the product with (direction - third) is at least 0; z >= 0 is a half as well. Halves of a circle
    have an arc in common if their middles lie within less than half a circle: a gap of more than half is left.
    """
    if not len(others):
        return np.zeros(0, dtype=bool)
    middle, side = direction + others, np.cross(direction, others)
    middle, side = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (middle, side))
    halves = np.concatenate([direction - others, [[0.0, 0.0, 1.0]]])
    angles = np.arctan2(side @ halves.T, middle @ halves.T)  # [count, count + 1]
    diagonal = np.arange(len(others))
    angles[diagonal, diagonal] = angles[:, -1]  # the other itself doesn't cut the circle
    angles.sort(axis=1)
    gaps = np.diff(angles, axis=1, append=angles[:, :1] + 2 * math.pi)
    return gaps.max(axis=1) > math.pi + 1e-9


def normals_to_bins(normals: "np.ndarray | torch.Tensor", num_bins: int) -> np.ndarray:
    """Normals to the nearest bins.

    Args:
        normals: floats `[height, width, 3]`, in this module's axes; of any length, only the direction counts. Invalid
            are those that are not finite or 0, and those that face away from the camera by more than any surface that
            a view of 90 degrees shows (z below -0.71 of the length); others with z < 0 get the nearest bin at the rim.
        num_bins: of the grid, see [`bin_directions`].

    Returns:
        `int64 [height, width]`: 1..`num_bins`, and 0 where invalid.

    Raises:
        TypeError, ValueError: `normals` are not floats of that shape, or `num_bins` is not a whole number of at least
            1.
    """
    directions = bin_directions(num_bins).T
    normals = _floats("normals", normals, "[height, width, 3]", lambda shape: len(shape) == 3 and shape[2] == 3)
    size, normals = normals.shape[:2], normals.cpu().reshape(-1, 3)
    bins = torch.empty(len(normals), dtype=torch.long)
    rows = max(1, VALUES_AT_ONCE // num_bins)
    for some, nearest in zip(normals.split(rows), bins.split(rows), strict=True):
        largest = some.abs().amax(dim=1, keepdim=True)  # lengths of very large and very small vectors stay finite
        valid = largest.isfinite() & (largest > 0)
        some = F.normalize(torch.where(valid, some / largest, 0.0), dim=1)
        valid = valid[:, 0] & (some[:, 2] >= LEAST_Z)
        nearest[:] = torch.where(valid, (some @ directions).argmax(dim=1) + 1, 0)
    return bins.reshape(size).numpy()


def decode_normals(
    logits: torch.Tensor, size: tuple[int, int], upsampling: int = 2
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the normals' bins to normals: bilinear x2 and the best bin, as depth bins are decoded; then the mean
    of the directions of the best bin and its neighbours, each weighted with its probability; bilinear to `size`.

    Args:
        logits: `[num_bins, grid_height, grid_width]`, the score of each bin at each vision token.
        size: `(height, width)` of the result in pixels.
        upsampling: factor on the grid before the best bin is chosen.

    Returns:
        `float32 [height, width, 3]`, unit vectors, and `float32 [height, width]`, the probability of the best bin and
        its neighbours together among all bins.
    """
    num_bins, grid_height, grid_width = logits.shape
    finer = (grid_height * upsampling, grid_width * upsampling)
    members, is_member = (table.to(logits.device) for table in _members(num_bins))
    directions = bin_directions(num_bins).to(logits.device)
    maps = torch.empty(4, *finer, device=logits.device)  # x, y, z, probability
    for top, strip in upsampled_strips(logits, finer):
        best = strip.argmax(dim=0)
        around = members[best].movedim(-1, 0)  # [members, rows, width]
        weights = (strip.gather(0, around) - strip.logsumexp(dim=0)).exp() * is_member[best].movedim(-1, 0)
        mean = torch.einsum("krw,krwc->crw", weights, directions[around])
        maps[:3, top : top + strip.shape[1]] = F.normalize(mean, dim=0)
        maps[3, top : top + strip.shape[1]] = weights.sum(dim=0)
    maps = F.interpolate(maps[None], size=tuple(size), mode="bilinear", align_corners=False)[0]
    # All directions have z > 0: no mean of them is 0.
    return F.normalize(maps[:3], dim=0).permute(1, 2, 0).contiguous(), maps[3].clamp(max=1)


@lru_cache(maxsize=8)
def _members(num_bins: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Places (bins - 1) of each bin and its neighbours, `int64 [num_bins, most]`, and which are not padding."""
    rows = [(own, *(bin - 1 for bin in neighbours)) for own, neighbours in enumerate(bin_neighbours(num_bins))]
    most = max(map(len, rows))
    members = torch.tensor([row + row[:1] * (most - len(row)) for row in rows])
    return members, torch.arange(most) < torch.tensor([len(row) for row in rows])[:, None]


def depth_to_normals(depth: "np.ndarray | torch.Tensor", focal_length: float, step: int = 1) -> torch.Tensor:
    """Normals of the surface that a depth map shows, by finite differences between the neighbours of each pixel: the
    two beside it and the two above and below; at the border the pixel itself stands for the one that lacks.

    The pixel u columns and v rows from the image's centre, the principal point, is at Z (u / f, -v / f, -1), with Z
    its depth and f the focal length. A plane gives its normal to the precision of the depths, and all normals face
    the camera.

    Args:
        depth: metres along the optical axis, floats `[height, width]`, at least 2x2; invalid where not finite or not
            above 0.
        focal_length: pixels of this map; the same in both directions.
        step: pixels from a pixel to its neighbours, or to the border where that is nearer. Depth that comes from bins
            has steps itself; the further the neighbours, the less these weigh, and the more of the surface's own
            shape is smoothed.

    Returns:
        `float32 [height, width, 3]`, unit vectors in this module's axes, on the device of `depth`; (0, 0, 0) where the
        pixel or a neighbour that it needs is invalid.

    Raises:
        TypeError, ValueError: `depth` is not floats of that shape, `focal_length` not a finite number above 0, or
            `step` not a whole number of at least 1.
    """
    step = check_count("step", step)
    focal_length = check_positive("focal_length", focal_length, " of pixels")
    depth = _floats("depth", depth, "[height, width], at least 2x2", lambda shape: len(shape) == 2 and min(shape) > 1)
    height, width = depth.shape
    normals = torch.empty(height, width, 3, device=depth.device)
    rows = max(1, VALUES_AT_ONCE // (4 * width), step)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        # With the rows before and after that the neighbours are in, where there are any.
        first, last = max(top - step, 0), min(bottom + step, height)
        strip = _normals_of_rows(depth[first:last], first - height / 2, focal_length, step)
        normals[top:bottom] = strip[top - first : bottom - first]
    return normals


def _normals_of_rows(depth: torch.Tensor, top: float, focal_length: float, step: int) -> torch.Tensor:
    """[`depth_to_normals`] of whole rows, the first of which begins `top` rows below the principal point."""
    height, width = depth.shape
    valid = depth.isfinite() & (depth > 0)
    depth = torch.where(valid, depth, 1.0)
    # With p the ray (x, y, -1) of a pixel, neighbours 1 and 2 of it in a row are at Z1 (p + u1 e / f) and
    # Z2 (p + u2 e / f), where e is the x axis. Their difference is a p + b e with a = Z2 - Z1 and
    # b = (Z2 u2 - Z1 u1) / f > 0; likewise in a column. The cross product of the two differences is then along
    # (a / b, -c / d, 1 + x a / b - y c / d), whose product with p is -1: it faces the camera.
    slope_x, valid_x = _slopes(depth, valid, step)
    slope_y, valid_y = (values.T for values in _slopes(depth.T, valid.T, step))
    slope_x, slope_y = slope_x * focal_length, slope_y * focal_length
    x = (torch.arange(width, dtype=torch.float32, device=depth.device) + (0.5 - width / 2)) / focal_length
    down = (torch.arange(height, dtype=torch.float32, device=depth.device) + (0.5 + top)) / focal_length
    normals = torch.stack([slope_x, -slope_y, 1 + slope_x * x + slope_y * down[:, None]], dim=-1)
    return F.normalize(normals, dim=-1) * (valid & valid_x & valid_y)[..., None]


def _slopes(depth: torch.Tensor, valid: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(Z2 - Z1) / (Z2 u2 - Z1 u1) of each pixel's neighbours in its row, at u1 <= 0 and u2 >= 0 pixels from it, and
    whether the neighbours are valid."""
    columns = torch.arange(depth.shape[1], device=depth.device)
    before, after = (columns - step).clamp(min=0), (columns + step).clamp(max=depth.shape[1] - 1)
    first, second = depth[:, before], depth[:, after]
    slopes = (second - first) / (second * (after - columns) - first * (before - columns))
    return slopes, valid[:, before] & valid[:, after]


def _floats(name: str, values, accepted: str, is_accepted) -> torch.Tensor:
    """`float32` tensor of a shape that is accepted, from an array or a tensor."""
    if not isinstance(values, (np.ndarray, torch.Tensor)):
        raise TypeError(f"`{name}` must be an array or a tensor of floats {accepted}, got {shown(values)}")
    is_float = values.is_floating_point() if isinstance(values, torch.Tensor) else values.dtype.kind == "f"
    if not is_float or not is_accepted(tuple(values.shape)):
        raise ValueError(f"`{name}` must be floats {accepted}, got {shown(values)}")
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return values.float()


__all__ = ["bin_directions", "bin_neighbours", "decode_normals", "depth_to_normals", "normals_to_bins"]
