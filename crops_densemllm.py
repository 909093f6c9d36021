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
"""Parts of an image that are looked at by themselves: boxes, crops around them, and maps of crops laid back."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch

from .checks_densemllm import Box, check_corners
from .decoding_densemllm import resize_map


Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class CropMaps:
    """What was found in the crop around a box, as small as the crop was for the model: maps of the image's size would
    add up.

    Attributes:
        place: (x0, y0, x1, y1) of the crop in whole pixels of the image.
        mask: `bool [height, width]` of the resized crop, the foreground.
        scores: `float32 [height, width]`, its probability.
        logits: `float32 [2, grid_height, grid_width]`, of background and foreground.
    """

    place: tuple[int, int, int, int]
    mask: torch.Tensor
    scores: torch.Tensor
    logits: torch.Tensor

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the image that the crop covers."""
        x0, y0, x1, y1 = self.place
        return slice(y0, y1), slice(x0, x1)

    def at_place(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`mask` and `scores` at the size of the crop in the image."""
        x0, y0, x1, y1 = self.place
        mask, scores = (
            resize_map(values.float(), (y1 - y0, x1 - x0), mode="nearest-exact") for values in (self.mask, self.scores)
        )
        return mask > 0.5, scores


def lay_back(crops: Iterable[CropMaps], image_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask and scores of crops in the whole image, `bool` and `float32 [height, width]`; nothing outside of them."""
    mask, scores = torch.zeros(image_size, dtype=torch.bool, device="cpu"), empty_map(image_size)
    for crop in crops:
        mask[crop.window], scores[crop.window] = crop.at_place()
    return mask, scores


def empty_map(size: tuple[int, int]) -> torch.Tensor:
    """Zeros, `float32 [height, width]` on the CPU, whatever torch's defaults are."""
    return torch.zeros(tuple(size), dtype=torch.float32, device="cpu")


def mask_corners(mask: "np.ndarray | torch.Tensor") -> tuple[int, int, int, int] | None:
    """The box around what is not 0 in a mask `[height, width]`, (x0, y0, x1, y1) in whole pixels, of which x1 and y1
    are behind the last ones; `None` around nothing."""
    found = np.asarray(mask) != 0
    rows, columns = (np.flatnonzero(found.any(axis=axis)).tolist() for axis in (1, 0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if rows else None


def check_box(box: Box, image_size: tuple[int, int]) -> Corners:
    """`box` clipped to an image of `(width, height)` pixels, or a `ValueError` if it has no area there."""
    values = check_corners("box", box)
    width, height = image_size
    x0, x1 = (min(max(value, 0.0), float(width)) for value in values[0::2])
    y0, y1 = (min(max(value, 0.0), float(height)) for value in values[1::2])
    if not (x1 > x0 and y1 > y0):
        raise ValueError(f"`box` must have x0 < x1 and y0 < y1 within an image of {width}x{height}, got {values}")
    return x0, y0, x1, y1


def crop_box(
    image: PIL.Image.Image, box: Corners, short_edge: int, padding: float = 1.2
) -> tuple[PIL.Image.Image, tuple[int, int, int, int]]:
    """Draw `box` with a line of 1 px, cut out `padding` times its size and resize the short edge (paper, decoding); of
    a long thin one less, to no more than 16 times the pixels of a square one.

    Returns:
        the crop, and its place (x0, y0, x1, y1) in whole pixels of the image.
    """
    x0, y0, x1, y1 = box
    grow_x, grow_y = (padding - 1) / 2 * (x1 - x0), (padding - 1) / 2 * (y1 - y0)
    place = (
        max(0, math.floor(x0 - grow_x)),
        max(0, math.floor(y0 - grow_y)),
        min(image.width, math.ceil(x1 + grow_x)),
        min(image.height, math.ceil(y1 + grow_y)),
    )
    crop = image.crop(place)
    corners = [int(x0), int(y0), max(int(x0), math.ceil(x1) - 1), max(int(y0), math.ceil(y1) - 1)]
    corners = [corner - start for corner, start in zip(corners, place[:2] * 2, strict=True)]
    PIL.ImageDraw.Draw(crop).rectangle(corners, outline=(255, 0, 0), width=1)
    width, height = crop.size
    scale = min(short_edge / min(width, height), 4 * short_edge / math.sqrt(width * height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return crop.resize(size, PIL.Image.Resampling.BILINEAR), place


__all__ = ["CropMaps", "check_box", "crop_box", "empty_map", "lay_back", "mask_corners"]
