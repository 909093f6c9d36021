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
"""Logits on the grid of vision tokens to maps of pixels (paper, section on decoding); it knows nothing of labels."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F


VALUES_AT_ONCE = 2**20  # of maps at the size of pixels: 4 MB, which stay in a CPU's cache
VALUES_ON_DEVICES = 2**24  # 64 MB: a small strip takes less time than to start what computes it
FEW_LABELS = 8  # all of which are resized, without a look at which of them can win


def upsampled_strips(maps: torch.Tensor, size: tuple[int, int]) -> Iterator[tuple[int, torch.Tensor]]:
    """Bilinear resize (`align_corners=False`) of all maps in strips of rows: the `[num_maps, height, width]` volume is
    never there as a whole.

    Args:
        maps: `[num_maps, grid_height, grid_width]`.
        size: `(height, width)` in pixels.

    Yields:
        the first row of a strip, and the strip, `float32 [num_maps, rows, width]`.
    """
    maps = maps.float()
    (height, width), grid_height = size, maps.shape[1]
    at_once = VALUES_AT_ONCE if maps.device.type == "cpu" else VALUES_ON_DEVICES
    rows_per_strip = max(1, at_once // (maps.shape[0] * width))
    for top in range(0, height, rows_per_strip):
        rows = torch.arange(top, min(top + rows_per_strip, height), dtype=torch.float32, device=maps.device)
        source = ((rows + 0.5) * (grid_height / height) - 0.5).clamp(min=0)
        low = source.floor().long()
        high = (low + 1).clamp(max=grid_height - 1)
        strip = torch.lerp(maps[:, low], maps[:, high], (source - low)[None, :, None])
        yield top, F.interpolate(strip[None], size=(len(rows), width), mode="bilinear", align_corners=False)[0]


def upsample_argmax(
    maps: torch.Tensor, size: tuple[int, int], softmax: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """[`upsampled_strips`], then the best map at each pixel.

    Args:
        maps: `float [num_maps, grid_height, grid_width]`.
        size: `(height, width)` in pixels.
        softmax: return the best map's softmax over all maps instead of its value.

    Returns:
        `int64 [height, width]` index of the best map, and `float32 [height, width]` its value.
    """
    maps = maps.float()
    best, value = maps.new_empty(size, dtype=torch.long), maps.new_empty(size)
    for top, strip in upsampled_strips(maps, size):
        rows = slice(top, top + strip.shape[1])
        strip_value, best[rows] = strip.max(dim=0)
        if softmax:
            strip_value = (strip_value - strip.logsumexp(dim=0)).exp()
        value[rows] = strip_value
    return best, value


def class_probabilities(logits: torch.Tensor, background: bool = False, temperature: float = 0.2) -> torch.Tensor:
    """Class scores on the grid of vision tokens to probabilities in [0, 1], `float32` of the same shape; see
    [`decode_segmentation`]."""
    return (logits.float() / 4).sigmoid() if background else (logits.float() / temperature).softmax(dim=0)


def contending_labels(logits: torch.Tensor, background: bool = False, temperature: float = 0.2) -> torch.Tensor | None:
    """Which classes can win a pixel: `bool [num_labels]`, or `None` where there are too few to look. Arguments as for
    [`decode_segmentation`], which takes the result as a list of places."""
    if len(logits) <= FEW_LABELS:
        return None
    # A resized map never exceeds its highest cell, and the winner of a pixel is never below the floor: classes that
    # stay under it everywhere can't win a pixel and need not be resized.
    floor = 0.5 if background else 1 / len(logits)
    return class_probabilities(logits, background, temperature).amax(dim=(1, 2)) >= floor - 1e-6


def decode_segmentation(
    logits: torch.Tensor, size: tuple[int, int], background: bool = False, temperature: float = 0.2,
    contenders: list[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Class scores on the grid of vision tokens to a segmentation (paper, section on decoding).

    Without a background: softmax over the classes at `temperature`, bilinear resize, argmax. With one: scores / 4,
    sigmoid, against a background of constant 0.5.

    Args:
        logits: `[num_labels, grid_height, grid_width]`, the score of each class at each vision token.
        size: `(height, width)` of the result in pixels.
        background: whether pixels may be none of the labels.
        temperature: of the softmax; lower is sharper.
        contenders: places of [`contending_labels`], where they have been read before; else they are read here.

    Returns:
        `int64 [height, width]`, positions in the labels, -1 for the background, and `float32 [height, width]`, the
        confidence of that choice in [0, 1].
    """
    probabilities = class_probabilities(logits, background, temperature)
    floor = 0.5 if background else 1 / len(logits)
    if contenders is None:
        contending = contending_labels(logits, background, temperature)
        contenders = range(len(logits)) if contending is None else contending.nonzero()[:, 0].tolist()
    if len(contenders) == 0:
        return logits.new_full(size, -1, dtype=torch.long), logits.new_full(size, floor, dtype=torch.float)
    if len(contenders) == len(logits):
        segmentation, scores = upsample_argmax(probabilities, size)
    else:
        places = torch.tensor(contenders, device=logits.device)
        best, scores = upsample_argmax(probabilities[places], size)
        segmentation = places[best]
    if background:
        segmentation = segmentation.masked_fill(scores <= floor, -1)
        scores = scores.clamp(min=floor)
    return segmentation, scores


def decode_depth_bins(logits: torch.Tensor, upsampling: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the depth tokens to depth bins: bilinear x2, then argmax (paper, section on decoding).

    Args:
        logits: `[num_bins, grid_height, grid_width]`.
        upsampling: factor on the grid before the argmax.

    Returns:
        `int64 [upsampling * grid_height, upsampling * grid_width]` bins, counted from 1, and the probability of that
        bin among all, `float32` of the same shape.
    """
    size = (logits.shape[1] * upsampling, logits.shape[2] * upsampling)
    best, scores = upsample_argmax(logits, size, softmax=True)
    return best + 1, scores


def decode_bin_places(
    logits: torch.Tensor, upsampling: int = 1, reach: float = 1 / 16
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of bins to places between their centres: the mean of the bins near the best one, each weighted with its
    probability. Whole bins are steps; the mean of those nearby is a slope where there is one.

    Args:
        logits: `[num_bins, grid_height, grid_width]`.
        upsampling: factor on the grid, bilinear.
        reach: share of all bins that count on either side of the best one; at least one bin does.

    Returns:
        `float32 [upsampling * grid_height, upsampling * grid_width]` places, 1 is the centre of the first bin, and the
        probability of the bins that counted among all, of the same shape.
    """
    num_bins, near = len(logits), max(1, round(reach * len(logits)))
    size = (logits.shape[1] * upsampling, logits.shape[2] * upsampling)
    numbers = torch.arange(1, num_bins + 1, dtype=torch.float32, device=logits.device)[:, None, None]
    maps = logits.new_empty((2, *size), dtype=torch.float32)
    for top, strip in upsampled_strips(logits, size):
        best = strip.argmax(dim=0) + 1
        weights = strip.softmax(dim=0) * ((numbers - best).abs() <= near)
        total = weights.sum(dim=0)
        rows = slice(top, top + strip.shape[1])
        maps[0, rows], maps[1, rows] = (weights * numbers).sum(dim=0) / total, total
    return maps[0], maps[1].clamp(max=1)


def resize_map(values: torch.Tensor, size: tuple[int, int], mode: str = "bilinear") -> torch.Tensor:
    """Resize a floating-point map `[height, width]` to `size`, (height, width) in pixels."""
    align_corners = False if mode == "bilinear" else None
    return F.interpolate(values[None, None], size=tuple(size), mode=mode, align_corners=align_corners)[0, 0]


__all__ = [
    "class_probabilities",
    "contending_labels",
    "decode_bin_places",
    "decode_depth_bins",
    "decode_segmentation",
    "resize_map",
    "upsample_argmax",
    "upsampled_strips",
]
