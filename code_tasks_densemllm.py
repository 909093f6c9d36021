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
"""The task of a visual codebook: the code that a tokenizer of images gives to each vision token's cell."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image
import torch

from .drawing_densemllm import Palette, draw_labels
from .targets_densemllm import IGNORED, Targets
from .task_base_densemllm import DenseRequest, DenseTask, Limits, PixelWords, TaskProcessor, needed_token_ids
from .tokens_densemllm import CODE_SCALE


MAX_IMAGE_NUMBER = 2**16 - 1


class Codes(DenseTask):
    """Codes of a visual tokenizer, learned as the next token (the first stage of the paper's recipe, VLUAS).

    A vision token says the code of the next one of its image, in the order of rows, and so the code of the first one
    is not known. Maps are of the size of the grid of vision tokens, whatever size is asked for: between two codes
    there is nothing.
    """

    name = "codes"
    about = "the code of each vision token, of a model that has learned a visual codebook"
    map_field = "codes"
    column = "codes"
    scales = (CODE_SCALE,)
    in_order = True

    def check(self, request: DenseRequest, processor: TaskProcessor) -> None:
        self.label_ids(request, processor)

    def label_ids(self, request: DenseRequest, processor: TaskProcessor) -> list[list[int]]:
        return [[token_id] for token_id in needed_token_ids(CODE_SCALE, processor, f"the task {self.name!r}")]

    def encode(
        self, annotation: Mapping[str, Any], processor: TaskProcessor, where: str, candidates: str,
        size: tuple[int, int],
    ) -> list[Targets]:  # fmt: skip
        return []  # no label of a cell, but the next token: `encode_next`

    def encode_next(
        self, annotation: Mapping[str, Any], processor: TaskProcessor, where: str, grid: tuple[int, int]
    ) -> np.ndarray:
        codes = self._read_map(annotation, where)
        n_codes = len(needed_token_ids(CODE_SCALE, processor, where))
        if not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(f"{where} must be integers (codes), got {codes.dtype}")
        if codes.shape != tuple(grid):
            raise ValueError(
                f"{where} must have a code for each vision token, {tuple(grid)} for this image as the model gets it, "
                f"got shape {codes.shape}"
            )
        if codes.max() >= n_codes:
            raise ValueError(f"{where} must be below {n_codes}, the codes of the tokenizer, got {int(codes.max())}")
        return np.where(codes < 0, IGNORED, codes).astype(np.int64).ravel()

    def decode(self, logits: torch.Tensor, request: DenseRequest, processor: TaskProcessor) -> dict[str, Any]:
        values, best = logits.flatten(1).max(dim=0)
        probability = (values - logits.flatten(1).logsumexp(dim=0)).exp()
        codes, scores = torch.full_like(best, -1), torch.zeros_like(probability)
        codes[1:], scores[1:] = best[:-1], probability[:-1]
        grid = logits.shape[1:]
        return {"codes": codes.view(grid), "scores": scores.view(grid)}

    def draw(
        self, maps: Any, legend: bool = False, palette: Palette | None = None, limits: Limits | None = None
    ) -> PIL.Image.Image:
        return draw_labels(maps.codes.cpu().numpy(), {}, {}, False, palette)  # codes have no names

    def is_drawn(self, values: np.ndarray) -> np.ndarray:
        return values >= 0

    def to_numbers(self, maps: Any) -> np.ndarray:
        codes = maps.codes.numpy()
        if codes.max() >= MAX_IMAGE_NUMBER:  # the highest number is what is not known
            raise ValueError(
                f"codes above {MAX_IMAGE_NUMBER - 1} have no image of 16 bits: take .npy, got {codes.max()}"
            )
        return np.where(codes < 0, MAX_IMAGE_NUMBER, codes).astype(np.uint16)

    def to_words(self, maps: Any) -> PixelWords:
        numbers, places = np.unique(maps.codes.cpu().numpy(), return_inverse=True)
        words = ["not known" if number < 0 else f"code {number}" for number in numbers.tolist()]
        return PixelWords(places.reshape(maps.codes.shape), words)

    def describe(self, maps: Any) -> str:
        height, width = maps.codes.shape
        return f"{len(maps.codes[maps.codes >= 0].unique())} different codes on a grid of {height} x {width}"


__all__ = ["Codes"]
