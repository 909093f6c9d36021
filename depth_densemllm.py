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
"""Metres to depth bins and back, in named ranges."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .checks_densemllm import check_choice, check_positive
from .configuration_densemllm import check_depth_ranges
from .image_processing_densemllm import MAX_SCALE, MIN_SCALE


if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class DepthBins:
    """How metres become bins: `num_bins` of them in each range of a table.

    Args:
        ranges: name to row; see [`check_depth_ranges`].
        default: the row used when a caller names none.
        num_bins: number of depth tokens.
    """

    ranges: dict[str, dict[str, Any]]
    default: str
    num_bins: int

    def __post_init__(self) -> None:
        check_depth_ranges(self.ranges, self.default)

    def row(self, name: str | None = None) -> dict[str, Any]:
        """A row by its name, the default one for `None`.

        Raises:
            ValueError: there is no such row.
        """
        name = self.default if name is None else name
        return self.ranges[check_choice("depth_range", name, self.ranges)]

    def scale(self, focal_length: float | None, name: str | None = None) -> float | None:
        """The factor by which an image of a known focal length, in pixels, is resized: to that of its depth range.
        `None`: it is left as it is, since either is unknown. `ValueError`: a focal length that no camera has."""
        if focal_length is None or not self.row(name).get("focal_length"):
            return None
        row = self.row(name)
        scale = _focal_scale(row, focal_length)
        if not MIN_SCALE <= scale <= MAX_SCALE:
            raise ValueError(
                f"`focal_length` must be from {row['focal_length'] / MAX_SCALE:g} to "
                f"{row['focal_length'] / MIN_SCALE:g} pixels for images of this depth range, got {focal_length}"
            )
        return scale

    def encode(self, depth: "ArrayLike", name: str | None = None, focal_length: float | None = None) -> np.ndarray:
        """Metres to bins; see `DenseMLLMProcessor.depth_to_bins`."""
        row = self.row(name)
        depth = np.asarray(depth, dtype=np.float64) * _focal_scale(row, focal_length)
        low, high = row["min_depth"], row["max_depth"]
        with np.errstate(invalid="ignore"):
            valid = np.isfinite(depth) & (depth > 0) & (depth >= low) & (depth <= high)
        depth = np.where(valid, depth, high)
        if row["mapping"] == "log":
            position = np.log(depth / low) / math.log(high / low)
        else:
            position = (depth - low) / (high - low)
        bins = np.clip((position * self.num_bins).astype(np.int64) + 1, 1, self.num_bins)
        return np.where(valid, bins, 0)

    def metres(self, places: torch.Tensor, name: str | None = None, focal_length: float | None = None) -> torch.Tensor:
        """Metres of places among the bins: k is the centre of bin k, 0.5 and `num_bins` + 0.5 are the range's ends.

        Args:
            places: floats, any shape.
            name, focal_length: as for [`encode`].
        """
        row = self.row(name)
        low, high = row["min_depth"], row["max_depth"]
        position = (places - 0.5) / self.num_bins
        if row["mapping"] == "log":
            metres = low * torch.exp(position * math.log(high / low))
        else:
            metres = low + position * (high - low)
        return metres / _focal_scale(row, focal_length)

    def decode(
        self, bins: "torch.Tensor | ArrayLike", name: str | None = None, focal_length: float | None = None
    ) -> torch.Tensor:
        """Bins to metres; see `DenseMLLMProcessor.bins_to_depth`."""
        bins = torch.as_tensor(bins)
        if bins.numel() and not (0 <= int(bins.min()) and int(bins.max()) <= self.num_bins):
            raise ValueError(f"`bins` must lie in 0..{self.num_bins}, got {int(bins.min())}..{int(bins.max())}")
        return self.look_up(bins, name, focal_length)

    def look_up(self, bins: torch.Tensor, name: str | None = None, focal_length: float | None = None) -> torch.Tensor:
        """[`decode`] of bins that are known to be some: their values are not looked at."""
        numbers = torch.arange(1, self.num_bins + 1, dtype=torch.float64, device="cpu")  # MPS has no float64
        centres = self.metres(numbers, name, focal_length)
        return torch.cat([centres.new_zeros(1), centres]).float().to(bins.device)[bins.long()]


def _focal_scale(row: dict, focal_length: float | None) -> float:
    if focal_length is None or row.get("focal_length") is None:
        return 1.0
    return row["focal_length"] / check_positive("focal_length", focal_length, " of pixels")


__all__ = ["DepthBins"]
