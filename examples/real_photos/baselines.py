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
"""Depth without a model: constants and planes, fitted to an image's own true depth.

They know the answer: they say how much of a metric an image gives away to whoever knows its scale, or its scale and
its tilt. Each metric has the best that any of them reaches, not always with the same one.
"""

import numpy as np


THRESHOLD = 1.25  # of delta1
STEPS = 20  # of the reweighted least squares


def best_constant(depth: np.ndarray) -> tuple[float, float]:
    """The highest delta1 and the lowest AbsRel that constants have: exact.

    Args:
        depth: true metres; pixels that are not above 0 don't count.

    Raises:
        ValueError: no pixel counts.
    """
    values = _known(depth)
    return tuple(score(values, constant)[place] for place, constant in enumerate(_constants(values)))


def best_plane(depth: np.ndarray) -> tuple[float, float]:
    """The highest delta1 and the lowest AbsRel of the planes in space that were tried, constants among them.

    A plane's inverse depth is `a x + b y + c` of the pixel, whatever the focal length and the principal point are.
    With `q` for the true depth times that, AbsRel is the mean of `|1 - q| / q`. It and the mean of `|1 - q|`, which
    heeds near outliers less, are brought down by least squares that are reweighted step by step; every step is a
    plane that is tried. Where a plane is behind the camera or beyond the furthest true depth, that is its depth.

    Args:
        depth: true metres, `[height, width]`; pixels that are not above 0 don't count.

    Raises:
        ValueError: no pixel counts.
    """
    values = _known(depth)
    rows, columns = np.nonzero(_counted(depth))
    axes = np.stack([columns / depth.shape[1] - 0.5, rows / depth.shape[0] - 0.5, np.ones(len(rows))], axis=1)
    design = axes * values[:, None]
    planes = [np.array([0, 0, 1 / constant]) for constant in _constants(values)]
    for heeds_near in (False, True):
        weights = np.ones(len(values))
        for _ in range(STEPS):
            roots = np.sqrt(weights)
            planes.append(np.linalg.lstsq(design * roots[:, None], roots, rcond=None)[0])
            ratio = design @ planes[-1]
            weights = 1 / np.maximum(np.abs(1 - ratio), 1e-3)
            if heeds_near:
                weights /= np.maximum(ratio, 0.1)
    scores = [score(values, 1 / np.maximum(axes @ plane, 1 / values.max())) for plane in planes]
    return max(delta1 for delta1, _ in scores), min(abs_rel for _, abs_rel in scores)


def score(values: np.ndarray, predicted: np.ndarray | float) -> tuple[float, float]:
    """delta1 and AbsRel of metres, all of them known."""
    ratio = np.maximum(predicted / values, values / predicted)
    return float((ratio < THRESHOLD).mean()), float((np.abs(predicted - values) / values).mean())


def _constants(values: np.ndarray) -> tuple[float, float]:
    """Those with the highest delta1 and the lowest AbsRel."""
    values = np.sort(values)
    # A constant c is right from c / 1.25 to 1.25 c, both left out: all that are less than 1.25^2 times the least.
    ends = np.searchsorted(values, values * THRESHOLD**2, side="left")
    first = int((ends - np.arange(len(values))).argmax())
    of_delta1 = float(np.sqrt(values[first] * values[ends[first] - 1]))
    # The median of the depths, weighted by one over depth.
    weights = np.cumsum(1 / values)
    return of_delta1, float(values[np.searchsorted(weights, weights[-1] / 2)])


def _counted(depth: np.ndarray) -> np.ndarray:
    return np.isfinite(depth) & (depth > 0)


def _known(depth: np.ndarray) -> np.ndarray:
    values = depth[_counted(depth)].astype(np.float64)
    if not len(values):
        raise ValueError("`depth` must have a pixel above 0, got none")
    return values
