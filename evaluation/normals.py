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
"""Metrics of surface normals."""

import math

import torch

from .metrics import DenseMetrics


STEP = 0.05  # degrees


class NormalsMetrics(DenseMetrics):
    """Mean and median of the angle between predicted and true normals, and the shares of pixels with an angle below
    11.25, 22.5 and 30 degrees (Fouhey et al. 2013, "Data-driven 3D primitives for single image understanding").

    Every valid pixel of the data set weighs the same, as is the custom on NYUv2 and ScanNet. The median is read from a
    histogram with steps of 0.05 degrees, so that parts of a data set can be added up: it is within a step of the exact
    one, and nearer where many pixels share the step, in which it is interpolated.
    """

    THRESHOLDS = {"under_11_25": 11.25, "under_22_5": 22.5, "under_30": 30.0}

    def __init__(self) -> None:
        # Pixels, the sum of their angles in degrees, how many are below each threshold, and the histogram.
        self.totals = torch.zeros(2 + len(self.THRESHOLDS) + round(180 / STEP), dtype=torch.float64, device="cpu")

    def count(self, prediction: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """What one image adds: vectors `[height, width, 3]` in the same axes, of any length above 0. Pixels whose
        reference is not finite or (0, 0, 0) don't count; where only the prediction is, the angle is 180 degrees."""
        prediction, reference = (torch.as_tensor(values).cpu().double() for values in (prediction, reference))
        if prediction.shape != reference.shape:
            raise ValueError(f"`prediction` is {tuple(prediction.shape)}, but `reference` {tuple(reference.shape)}")
        if prediction.ndim != 3 or prediction.shape[2] != 3:
            raise ValueError(f"`prediction` is {tuple(prediction.shape)}, but must be [height, width, 3]")
        counted = _is_direction(reference)
        prediction, reference = prediction[counted], reference[counted]
        # Unlike the arc cosine, exact for small angles too.
        sine = torch.linalg.cross(prediction, reference).norm(dim=-1)
        angles = torch.atan2(sine, (prediction * reference).sum(dim=-1)).rad2deg()
        angles[~_is_direction(prediction)] = 180
        bins = round(180 / STEP)
        histogram = torch.bincount((angles / STEP).long().clamp(max=bins - 1), minlength=bins)
        below = [(angles < threshold).sum().item() for threshold in self.THRESHOLDS.values()]
        sums = torch.tensor([len(angles), angles.sum().item(), *below], dtype=torch.float64, device="cpu")
        return torch.cat([sums, histogram])

    def compute(self, totals: torch.Tensor | None = None) -> dict:
        """`mean_angle` and `median_angle` in degrees, `under_11_25`, `under_22_5` and `under_30` as shares in [0, 1];
        NaN without a valid pixel."""
        pixels, *sums = (self.totals if totals is None else totals)[: 2 + len(self.THRESHOLDS)].tolist()
        histogram = (self.totals if totals is None else totals)[2 + len(self.THRESHOLDS) :].cpu().double()
        mean, *shares = (value / pixels if pixels else math.nan for value in sums)
        return {
            "mean_angle": mean,
            "median_angle": _median(histogram),
            **dict(zip(self.THRESHOLDS, shares, strict=True)),
        }


def _is_direction(vectors: torch.Tensor) -> torch.Tensor:
    return vectors.isfinite().all(dim=-1) & vectors.any(dim=-1)


def _median(histogram: torch.Tensor) -> float:
    """Where half of the pixels are below, in degrees: those of a step are taken to lie evenly in it."""
    up_to = histogram.cumsum(0)
    half = float(up_to[-1]) / 2
    if half == 0:
        return math.nan
    step = int(torch.searchsorted(up_to, half))
    return STEP * (step + 1 - (float(up_to[step]) - half) / float(histogram[step]))


__all__ = ["NormalsMetrics"]
