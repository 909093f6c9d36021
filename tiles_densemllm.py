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
"""Large images in tiles: which cells each tile has, and what they say of a cell together."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .checks_densemllm import check_count, plain, shown


Window = tuple[slice, slice]  # rows and columns of a grid of vision tokens


@dataclass(frozen=True)
class Tiling:
    """How the grid of an image's vision tokens is cut into tiles, which the model reads one after another.

    Attributes:
        tile: `(height, width)` of a tile in vision tokens.
        overlap: vision tokens, at least, that neighbouring tiles share along an edge.
    """

    tile: tuple[int, int]
    overlap: int = 0

    def shown_of(self, grid: tuple[int, int]) -> tuple[int, int]:
        """`(height, width)` of the largest tile of an image with that grid."""
        return min(self.tile[0], grid[0]), min(self.tile[1], grid[1])

    def windows(self, grid: tuple[int, int]) -> Iterator[Window]:
        """The tiles of a grid `(height, width)`, row by row. All are of one size, and together they cover the grid."""
        starts = [_starts(edge, size, self.overlap) for edge, size in zip(grid, self.shown_of(grid), strict=True)]
        height, width = self.shown_of(grid)
        for top in starts[0]:
            for left in starts[1]:
                yield slice(top, top + height), slice(left, left + width)

    def weights(self, grid: tuple[int, int]) -> torch.Tensor:
        """What a tile's cells weigh where tiles overlap, `float32 [height, width]`: less towards its edges, where the
        model sees less of what is around."""
        rows, columns = (_ramp(size, self.overlap) for size in self.shown_of(grid))
        return rows[:, None] * columns


class TiledMap:
    """The weighted mean of tiles, put together as they come.

    Label logits are a product of hidden states with columns of the vocabulary: the mean of hidden states has the mean
    of logits.

    Args:
        tiling, grid: of the image.
    """

    def __init__(self, tiling: Tiling, grid: tuple[int, int]):
        self.grid, self.tile_weights = grid, tiling.weights(grid)
        self.sums: torch.Tensor | None = None
        self.total = torch.zeros(grid, dtype=torch.float32, device="cpu")

    def add(self, window: Window, values: torch.Tensor) -> None:
        """Add the values of a tile, `[cells, channels]`, row by row."""
        if self.sums is None:
            self.sums = values.new_zeros(*self.grid, values.shape[1], dtype=torch.float32)
        weights = self.tile_weights.to(values.device)
        self.sums[window] += values.float().unflatten(0, weights.shape) * weights[..., None]
        self.total[window] += self.tile_weights

    def mean(self, dtype: torch.dtype) -> torch.Tensor:
        """`[grid_height * grid_width, channels]`."""
        return self.sums.div_(self.total.to(self.sums.device)[..., None]).flatten(0, 1).to(dtype)


def check_tiling(tile: Any, tile_overlap: int | None, cell: int) -> Tiling | None:
    """The tiles that a caller asks for; `None` where there are none.

    Args:
        tile: one edge, or `(height, width)`, in pixels; edges are rounded up to whole vision tokens.
        tile_overlap: pixels, rounded up likewise; an eighth of the shorter edge where left out.
        cell: edge of a vision token in pixels.

    Raises:
        TypeError, ValueError: something else, or an overlap that leaves a tile nothing of its own.
    """
    if tile is None:
        if tile_overlap is not None:
            raise ValueError("`tile_overlap` needs `tile`, the size of the tiles that overlap")
        return None
    edges = plain(tile)
    edges = edges if isinstance(edges, list) else [edges, edges]
    if len(edges) != 2 or any(isinstance(edge, bool) or not isinstance(edge, int) for edge in edges):
        raise TypeError(f"`tile` must be an edge or (height, width) in pixels, got {shown(tile)}")
    if min(edges) < 1:
        raise ValueError(f"`tile` must be at least 1 pixel, got {shown(tile)}")
    height, width = (math.ceil(edge / cell) for edge in edges)
    if tile_overlap is None:
        return Tiling((height, width), min(height, width) // 8)
    overlap = math.ceil(check_count("tile_overlap", tile_overlap, 0) / cell)
    if overlap >= min(height, width):
        raise ValueError(
            f"`tile_overlap` must be less than the tile's edges in whole vision tokens of {cell} pixels, got "
            f"{tile_overlap} for `tile` {shown(tile)}"
        )
    return Tiling((height, width), overlap)


def _starts(edge: int, size: int, overlap: int) -> list[int]:
    """Where tiles of a `size` begin along an edge, evenly apart."""
    if size >= edge:
        return [0]
    count = math.ceil((edge - overlap) / (size - overlap))
    return [round(number * (edge - size) / (count - 1)) for number in range(count)]


def _ramp(size: int, overlap: int) -> torch.Tensor:
    steps = torch.arange(1, size + 1, dtype=torch.float32, device="cpu")
    return torch.minimum(steps, steps.flip(0)).clamp(max=overlap + 1)


__all__ = ["TiledMap", "Tiling", "check_tiling"]
