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
"""The image processor on any device: torchvision resizes, torch cuts into patches, images of one size in a batch.

Only who asks for this file imports it: the image processor of `image_processing_densemllm.py` is used everywhere
unless told otherwise, whether torchvision is there or not.
"""

from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import group_images_by_shape, reorder_images
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict, infer_channel_dimension_format
from transformers.processing_utils import Unpack
from transformers.utils import TensorType, requires_backends

from .configuration_densemllm import AUTO_MAP
from .image_processing_densemllm import (
    DenseMLLMImageProcessor,
    DenseMLLMImageProcessorKwargs,
    DenseMLLMImageProcessorMixin,
    channels_to_rgb,
    patch_grid,
    to_patches,
    white_level,
)


UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)
RESAMPLING = tuple(PILImageResampling[name] for name in ("NEAREST", "BILINEAR", "BICUBIC", "LANCZOS"))


class DenseMLLMImageProcessorTorchvision(DenseMLLMImageProcessorMixin, TorchvisionBackend):
    r"""
    [`DenseMLLMImageProcessor`] with torch and torchvision: same arguments, same images, same patches, which stay
    tensors on the device. Where an image keeps its size, the outputs differ by the rounding of floating-point numbers
    only; where it is resized, by at most one of the 255 levels of a pixel, as Pillow and torch round in other ways
    (`NEAREST` takes other pixels; floating-point numbers without `do_rescale` differ by two, as Pillow cuts them down
    to levels). `resample` is `NEAREST`, `BILINEAR`, `BICUBIC` or `LANCZOS`.

    Two arguments of a call do nothing in the PIL backend:

    - `device`: where all images go, and where the outputs are. Left out, tensors stay where they are and the rest is
      done on the CPU; where one image is a tensor on another device, all go there.
    - `disable_grouping`: whether each image is resized alone instead of with those of its size; left out, they are
      grouped on every device but the CPU.

    What is saved names no backend: it is that of [`DenseMLLMImageProcessor`], and loads with and without torchvision.
    `AutoImageProcessor` gives the PIL backend always, as it would take this one unasked where torchvision is
    installed; ask [`DenseMLLMProcessor`] for it, or call `from_pretrained` of this class.

    Example:

    ```python
    >>> from transformers import AutoProcessor

    >>> processor = AutoProcessor.from_pretrained(folder, backend="torchvision", trust_remote_code=True)
    >>> inputs = processor(images=images, text=texts, return_tensors="pt", device="cuda")
    >>> prediction = model.predict_dense(images, processor=processor, device="cuda")
    ```
    """

    def __init__(self, **kwargs: Unpack[DenseMLLMImageProcessorKwargs]) -> None:
        requires_backends(self, ["torchvision"])
        super().__init__(**kwargs)

    def _validate_preprocess_kwargs(self, **kwargs):
        resample, device = kwargs["resample"], kwargs["device"]
        if kwargs["do_resize"] and isinstance(resample, int) and resample not in RESAMPLING:
            raise ValueError(
                f"`resample` must be one of {[way.name for way in RESAMPLING]}, got {resample!r}; the PIL backend "
                "takes all of Pillow's"
            )
        try:
            torch.device("cpu" if device is None else device)
        except RuntimeError as error:
            raise ValueError(f"`device` must be the name of a device that torch knows, got {device!r}") from error
        super()._validate_preprocess_kwargs(**kwargs)

    def process_image(
        self,
        image: PIL.Image.Image | np.ndarray | torch.Tensor,
        device: "str | torch.device | None" = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """One image to a channel-first tensor `[3, height, width]`, upright, `uint8`; without `do_rescale`,
        floating-point arrays and tensors as `float32` of the same numbers."""
        if isinstance(image, torch.Tensor) and image.layout == torch.strided and not image.is_quantized:
            pixels = self._tensor_to_channels_first(image.detach(), **kwargs)
        else:
            array = self.to_channels_first(image, **kwargs)
            if array.dtype.kind == "f":
                array = array.astype(np.float32)
            if not array.flags.writeable or min(array.strides) < 0:
                array = array.copy()  # torch shares memory that may be written to and is read forwards
            pixels = torch.from_numpy(array)
        return pixels if device is None else pixels.to(device)

    def _tensor_to_channels_first(
        self,
        image: torch.Tensor,
        max_image_pixels: int | None = None,
        do_rescale: bool | None = True,
        do_convert_rgb: bool | None = True,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """`to_channels_first` of a tensor, on its device."""
        self.check_image_size(image, max_image_pixels)
        data_format = input_data_format or infer_channel_dimension_format(image, (1, 3, 4))
        rows = image if data_format == ChannelDimension.LAST else image.movedim(0, -1)
        if do_rescale or not rows.is_floating_point():
            rows = _to_bytes(rows)
        else:
            rows = rows.float()
        if do_convert_rgb and rows.shape[-1] != 3:
            rows = channels_to_rgb(rows).to(rows.dtype)
        return rows.movedim(-1, 0)

    def _preprocess(
        self,
        images: list[torch.Tensor],
        do_resize: bool,
        resample: "PILImageResampling | None",
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float] | None,
        image_std: float | list[float] | None,
        patch_size: int,
        merge_size: int,
        max_num_patches: int,
        scale: float,
        return_tensors: str | TensorType | None,
        disable_grouping: bool | None = None,
        **kwargs,
    ) -> BatchFeature:
        device = next((image.device for image in images if image.device.type != "cpu"), torch.device("cpu"))
        rule = {"merge_size": merge_size, "max_num_patches": max_num_patches, "scale": scale}
        sizes = [self.target_size(*image.shape[-2:], do_resize, patch_size, **rule) for image in images]
        groups, places = group_images_by_shape(
            [image.to(device) for image in images],
            disable_grouping=device.type == "cpu" if disable_grouping is None else disable_grouping,
        )
        size_of = {places[place][0]: size for place, size in enumerate(sizes)}  # images of one shape get one size
        patches = {}
        for group, batch in groups.items():
            if size_of[group] != tuple(batch.shape[-2:]):
                height, width = size_of[group]
                batch = self.resize(batch, SizeDict(height=height, width=width), resample)
            batch = self.rescale_and_normalize(batch, do_rescale, rescale_factor, do_normalize, image_mean, image_std)
            patches[group] = to_patches(batch.float(), patch_size, merge_size)
        data = {
            "pixel_values": torch.cat(reorder_images(patches, places)) if images else torch.empty(0),
            "image_grid_thw": torch.tensor([patch_grid(*size, patch_size) for size in sizes], dtype=torch.int64),
        }
        return BatchFeature(data=data, tensor_type=return_tensors)

    def to_dict(self) -> dict:
        saved = super().to_dict()
        saved.pop("device", None)
        # Read by machines with another device, and without torchvision.
        saved["image_processor_type"] = DenseMLLMImageProcessor.__name__
        if "auto_map" in saved:
            saved["auto_map"] = {**saved["auto_map"], "AutoImageProcessor": AUTO_MAP["AutoImageProcessor"]}
        return saved


def _to_bytes(image: torch.Tensor) -> torch.Tensor:
    """The numbers of an image as `uint8` from 0 to 255, on their device; `ValueError` where they can't be."""
    if image.is_floating_point():
        kind = "f"
        image = image.float() if image.element_size() < 4 else image  # few operations know the small ones
    else:
        kind = "b" if image.dtype == torch.bool else "u" if image.dtype in UNSIGNED else "i"
        kind = "c" if image.is_complex() else kind

    def limits() -> tuple:
        numbers = image if image.is_floating_point() else image.long()
        return numbers.min().item(), numbers.max().item()

    white = white_level(kind, image.dtype, limits)
    if image.dtype == torch.uint8:
        return image
    if white == 1:
        image = (image * 255.0).round()
    elif white == 65535:
        image = (image.float() / 257).round()
    return (image.round() if image.is_floating_point() else image).to(torch.uint8)


DenseMLLMImageProcessorTorchvision.register_for_auto_class()

__all__ = ["DenseMLLMImageProcessorTorchvision"]
