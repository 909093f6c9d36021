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
"""Equal images of a batch are encoded once: the answers of a group are all about the same one."""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import nn


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # of as many bytes as a pixel's value


def first_equals(tensors: Sequence[torch.Tensor], keys: Sequence[Hashable]) -> list[int]:
    """For each tensor the place of the first one that is equal to it: its own where none before is.

    Args:
        tensors: of one dtype, such as the patches of each image.
        keys: what besides must be equal, such as an image's row of `image_grid_thw`.
    """
    # A sum of whole numbers doesn't depend on its order, so that equal images have equal ones. All are read at once.
    sums = [tensor.detach().view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64) for tensor in tensors]
    firsts: dict[tuple, int] = {}
    places = []
    for place, key in enumerate(zip(torch.stack(sums).tolist(), keys, strict=True)):
        first = firsts.setdefault(key, place)
        places.append(first if first == place or torch.equal(tensors[first], tensors[place]) else place)
    return places


class EqualImagesOnce:
    """Makes a vision tower encode equal images of a batch once. What it returns, and the gradients, are the same, but
    for rounding; the time is that of the different images.

    Args:
        tower: a [`DenseMLLMVisionModel`]. It gets two hooks, which stay until `remove` takes them off.
    """

    def __init__(self, tower: nn.Module):
        self._pieces: tuple[list[int], list[int]] | None = None
        self._handles = (
            tower.register_forward_pre_hook(self._take_different, with_kwargs=True),
            tower.register_forward_hook(self._repeat),
        )

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _take_different(self, tower: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        self._pieces = None
        inputs = {**dict(zip(("pixel_values", "image_grid_thw"), args, strict=False)), **kwargs}
        pixel_values, grid = inputs.get("pixel_values"), inputs.get("image_grid_thw")
        if pixel_values is None or grid is None or grid.ndim != 2 or int(grid.prod(dim=-1).sum()) != len(pixel_values):
            return None  # the tower says so
        images = pixel_values.split(grid.prod(dim=-1).tolist())
        places = first_equals(images, [tuple(row) for row in grid.tolist()])
        different = sorted(set(places))
        if len(different) == len(places):
            return None
        self._pieces = ([different.index(place) for place in places], [len(images[place]) for place in different])
        inputs["pixel_values"] = torch.cat([images[place] for place in different])
        return (), {**inputs, "image_grid_thw": grid[different]}

    def _repeat(self, tower: nn.Module, args: tuple, outputs: Any) -> Any:
        if self._pieces is not None:
            places, lengths = self._pieces
            features = outputs.last_hidden_state.split(lengths)
            outputs.last_hidden_state = torch.cat([features[place] for place in places])
        return outputs


__all__ = ["EqualImagesOnce", "first_equals"]
