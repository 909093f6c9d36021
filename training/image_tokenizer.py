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

"""Visual tokenizers: images to codes on the grid of vision tokens, and codes to the image that they stand for."""

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..parts_densemllm import add_tokens_to
from ..processing_densemllm import DenseMLLMProcessor
from ..targets_densemllm import nearest_resize


PROBE_SIZE = 64  # pixels of an edge
# What configs call the number of codes.
COUNT_FIELDS = ("codebook_size", "num_embeddings", "n_embed", "num_codes")


class ImageTokenizer:
    """A visual tokenizer of any kind: a model with `encode(pixel_values)`.

    `encode` gets `float32 [1, 3, height, width]` in RGB, normalised with `mean` and `std`. What it returns must have
    one tensor of whole numbers, the codes, be it that tensor or anywhere in a tuple, a list, a dict or an output of
    transformers: `[height, width]`, or flat, row by row; with leading dimensions of 1. `decode`, where there is one,
    gets them as `int64` `[1, height, width]`, or `[1, height * width]` where `encode` gives them flat, and returns the
    pixel values.

    Images are resized so that they have a code for each vision token; where the grid of codes is another one all the
    same, the nearest code is taken.

    Args:
        model: the tokenizer, in evaluation mode from now on.
        mean, std: of each channel, of pixels in [0, 1].
        num_codes: how many there are, where the model's config doesn't say it; else `None` where nobody does.
        name: how messages call it.

    Raises:
        TypeError: `model` has no `encode`.
        ValueError: what `encode` returns has no codes, or there are more than `num_codes`.
    """

    def __init__(
        self,
        model: nn.Module,
        mean: "list[float] | tuple[float, ...]" = (0.5, 0.5, 0.5),
        std: "list[float] | tuple[float, ...]" = (0.5, 0.5, 0.5),
        num_codes: int | None = None,
        name: str = "`image_tokenizer`",
    ):
        if not callable(getattr(model, "encode", None)):
            raise TypeError(f"{name} must be a model with `encode(pixel_values)`, got {type(model).__name__}")
        self.model, self.name = model.eval().requires_grad_(False), name
        self.mean, self.std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (mean, std))
        config = getattr(model, "config", None)
        found = (getattr(config, field, None) for field in COUNT_FIELDS)
        self.num_codes = next((count for count in found if isinstance(count, int)), num_codes)
        if num_codes is not None and num_codes < self.num_codes:
            raise ValueError(f"{name} has {self.num_codes} codes, more than `num_codes`, {num_codes}")
        probe, self._is_flat = self._encode(PIL.Image.new("RGB", (PROBE_SIZE, PROBE_SIZE), (128, 128, 128)))
        self.cell = PROBE_SIZE / len(probe)  # pixels of a code's edge

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], trust_remote_code: bool = False, num_codes: int | None = None
    ) -> "ImageTokenizer":
        """A tokenizer from a folder or the Hub: a model that `AutoModel` loads, or a class of transformers that the
        config's `architectures` names, such as `JanusVQVAE`. Mean and standard deviation are those of its image
        processor where it has one.

        Raises:
            ValueError: it can't be loaded, or is not a tokenizer.
        """
        where = f"`image_tokenizer` {name}"
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
            classes = [getattr(transformers, entry, None) for entry in config.architectures or ()]
            known = next((entry for entry in classes if hasattr(entry, "encode")), None)
            if known is None:
                model = AutoModel.from_pretrained(name, dtype="float32", trust_remote_code=trust_remote_code)
            else:
                model = known.from_pretrained(name, dtype="float32")
        except Exception as error:  # files that are cut, of other models: each library has its own
            raise ValueError(f"{where} can't be loaded: {error}") from error
        try:
            values, _ = BaseImageProcessor.get_image_processor_dict(name)
        except (OSError, ValueError):  # it has none
            values = {}
        fields = {"mean": values.get("image_mean"), "std": values.get("image_std")}
        options = {option: value for option, value in fields.items() if value is not None}
        try:
            return cls(model, num_codes=num_codes, name=where, **options)
        except TypeError as error:
            raise ValueError(str(error)) from error

    @torch.no_grad()
    def _encode(self, image: PIL.Image.Image) -> tuple[np.ndarray, bool]:
        """The codes of an image as it is, `int64 [height, width]`, and whether they came flat."""
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
        device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        pixels = ((pixels - self.mean) / self.std)[None].to(device)
        try:
            output = self.model.encode(pixels)
        except Exception as error:  # of a model that takes something else
            raise ValueError(
                f"{self.name} can't encode pixel values of {tuple(pixels.shape)}: {type(error).__name__}: {error}"
            ) from error
        found = [tensor for tensor in _tensors(output) if not (tensor.is_floating_point() or tensor.is_complex())]
        if len(found) != 1:
            raise ValueError(
                f"{self.name}: `encode` must return one tensor of whole numbers, the codes, got {len(found)} of them"
            )
        codes = found[0].cpu().long()
        shape = tuple(codes.shape)
        while codes.ndim > 2 and len(codes) == 1:
            codes = codes[0]
        is_flat = codes.ndim == 1 or (codes.ndim == 2 and 1 in codes.shape)
        if is_flat:
            height = max(1, round(math.sqrt(codes.numel() * image.height / image.width)))
            codes = codes.flatten().view(height, -1) if codes.numel() % height == 0 else codes
        if codes.ndim != 2 or not codes.numel():
            raise ValueError(
                f"{self.name}: `encode` must return codes [height, width] of one image, or as many in a row, got "
                f"{shape} for {image.height} x {image.width} pixels"
            )
        return codes.numpy(), is_flat

    def __call__(self, image: PIL.Image.Image, grid: tuple[int, int]) -> np.ndarray:
        """The codes of an image on a grid of vision tokens.

        Args:
            image: upright, RGB, as it is learned from.
            grid: `(height, width)` in vision tokens.

        Returns:
            `int32 [height, width]`.
        """
        height, width = (max(1, round(edge * self.cell)) for edge in grid)
        codes, _ = self._encode(image.resize((width, height), PIL.Image.Resampling.BILINEAR))
        return nearest_resize(codes, *grid).astype(np.int32)

    @torch.no_grad()
    def decode(self, codes: "np.ndarray | torch.Tensor") -> PIL.Image.Image:
        """The image that codes stand for, such as those of `predict_dense`: what the model sees.

        Args:
            codes: integers `[height, width]`; a negative one, which is not known, becomes the next one that is.

        Raises:
            TypeError: the tokenizer has no `decode`.
            ValueError: codes of another shape, or that it can't decode.
        """
        if not callable(getattr(self.model, "decode", None)):
            raise TypeError(f"{self.name} has no `decode`: {type(self.model).__name__} reads images, and makes none")
        values = np.asarray(codes)
        if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer) or (values < 0).all():
            raise ValueError(
                f"`codes` must be integers [height, width], some of them at least 0, got {values.dtype} of shape "
                f"{values.shape}"
            )
        flat = values.ravel().astype(np.int64)
        known = np.flatnonzero(flat >= 0)
        flat = flat[known[np.searchsorted(known, np.arange(len(flat))).clip(max=len(known) - 1)]]
        ids = torch.from_numpy(flat)[None] if self._is_flat else torch.from_numpy(flat).view(1, *values.shape)
        device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        try:
            output = self.model.decode(ids.to(device))
        except Exception as error:  # of a model that takes another number of codes
            raise ValueError(
                f"{self.name} can't decode codes of {tuple(ids.shape)}: {type(error).__name__}: {error}"
            ) from error
        images = [tensor for tensor in _tensors(output) if tensor.is_floating_point() and tensor.ndim == 4]
        if not images:
            raise ValueError(f"{self.name}: `decode` must return pixel values [1, 3, height, width]")
        pixels = images[0][0].float().cpu() * self.std + self.mean
        return PIL.Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def _tensors(output: Any) -> list[torch.Tensor]:
    """All tensors in a nest of tuples, lists and dicts."""
    if isinstance(output, torch.Tensor):
        return [output]
    entries = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return [tensor for entry in entries for tensor in _tensors(entry)]


def add_codes(
    model: PreTrainedModel, processor: DenseMLLMProcessor, tokenizer: ImageTokenizer, trains_embeddings: bool = True
) -> None:
    """Give a model the codes of a visual tokenizer where it has none, in place.

    Args:
        model: a DenseMLLM.
        processor: its processor.
        tokenizer: the visual tokenizer.
        trains_embeddings: whether the new embeddings will be trained.

    Raises:
        ValueError: nobody says how many codes there are, the model has fewer, or it would get some to no use.
    """
    there, count = model.config.num_image_codes, tokenizer.num_codes
    if count is None:
        raise ValueError(f"`num_image_codes` is needed: {tokenizer.name} doesn't say how many codes it has")
    if there and there < count:
        raise ValueError(f"{tokenizer.name} has {count} codes, and the model {there}, those of another one")
    if not there and not trains_embeddings:
        raise ValueError("`image_tokenizer` can't be given with `use_peft`: adapters train no embeddings of its codes")
    if not there:
        add_tokens_to(model, processor, num_image_codes=count)


__all__ = ["ImageTokenizer", "add_codes"]
