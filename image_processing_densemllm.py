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
"""Image processor of DenseMLLM: any image to packed, merge-block-major patches, and dense outputs back to maps."""

import bisect
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import torch
import torch.nn.functional as F
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType

from .checks_densemllm import Sizes, check_target_sizes
from .decoding_densemllm import class_probabilities, decode_segmentation, resize_map
from .image_loading_densemllm import LOADING_KWARGS, ImageSource, is_image_source, open_image


AnyImage = ImageSource | np.ndarray | torch.Tensor  # what an image may be, wherever this package takes one

MIN_SCALE, MAX_SCALE = 1e-6, 1e6  # far beyond what any image needs


class DenseMLLMImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    patch_size (`int`, *optional*, defaults to 16):
        Edge of a patch in pixels.
    merge_size (`int`, *optional*, defaults to 2):
        Edge, in patches, of the block that becomes one vision token.
    max_num_patches (`int`, *optional*, defaults to 36864):
        No image gets more patches than this.
    scale (`float`, *optional*, defaults to 1.0):
        Factor on both edges of an image before they are rounded up to whole blocks (the paper evaluates at 2 to 4).
    max_image_pixels (`int`, *optional*, defaults to 178956970):
        An image with more pixels is refused before it is decoded.
    allow_urls (`bool`, *optional*, defaults to `True`):
        Whether images are downloaded; see [`open_image`] for this and the next two.
    url_timeout (`float`, *optional*, defaults to 30.0):
        Seconds that a download may take in all.
    max_url_bytes (`int`, *optional*, defaults to 67108864):
        A larger download is stopped.
    """

    patch_size: int
    merge_size: int
    max_num_patches: int
    scale: float
    max_image_pixels: int
    allow_urls: bool
    url_timeout: float | int
    max_url_bytes: int


def check_scale(scale: float) -> None:
    """`ValueError` for a factor on the edges of an image that is not a number from `MIN_SCALE` to `MAX_SCALE`."""
    if not (isinstance(scale, numbers.Real) and MIN_SCALE <= scale <= MAX_SCALE):
        raise ValueError(f"`scale` must be a number from {MIN_SCALE:g} to {MAX_SCALE:g}, got {scale!r}")


def get_resized_size(
    height: int, width: int, factor: int, patch_size: int, max_num_patches: int, scale: float = 1.0
) -> tuple[int, int]:
    """The size, in pixels, that an image is resized to.

    Both edges are multiplied by `scale` and rounded UP to a multiple of `factor`; while that gives more than
    `max_num_patches` patches, the scale is lowered by 0.02 (the released processor's rule), and by 2 % once it would
    reach zero that way, so that the cap holds for every size.

    Args:
        height, width: size of the image in pixels, at least 1.
        factor: edge of a vision token's cell in pixels, `patch_size * merge_size`.
        patch_size: edge of a patch in pixels.
        max_num_patches: the cap; at least one cell's patches.
        scale: factor on both edges, from 1e-6 to 1e6.

    Returns:
        `(height, width)` in pixels, multiples of `factor`.
    """
    if height < 1 or width < 1:
        raise ValueError(f"an image must have at least 1x1 pixels, got height {height} and width {width}")
    check_scale(scale)
    if max_num_patches < (factor // patch_size) ** 2:
        raise ValueError(
            f"`max_num_patches` must be at least {(factor // patch_size) ** 2} (one vision token), got "
            f"{max_num_patches}"
        )

    def resized(scale: float) -> tuple[int, int]:
        return tuple(max(1, math.ceil(edge * scale / factor)) * factor for edge in (height, width))

    def fits(scale: float) -> bool:
        return math.prod(edge // patch_size for edge in resized(scale)) <= max_num_patches

    steps = math.floor(scale / 0.02) + 1
    while steps > 0 and scale - 0.02 * steps <= 0.01:
        steps -= 1  # twice at most
    # Once a scale fits, all lower ones do: the first step that fits is found without trying all before it.
    scale -= 0.02 * bisect.bisect_left(range(steps), True, key=lambda step: fits(scale - 0.02 * step))
    while not fits(scale):
        scale *= 0.98  # from at most 0.03, until a long thin image fits
    return resized(scale)


def patch_grid(height: int, width: int, patch_size: int) -> list[int]:
    """The row of `image_grid_thw` of an image of that size in pixels."""
    return [1, height // patch_size, width // patch_size]


def to_patches(images: np.ndarray | torch.Tensor, patch_size: int, merge_size: int) -> np.ndarray | torch.Tensor:
    """Images to merge-block-major patches.

    Args:
        images: numpy array or tensor `[n_images, channels, height, width]`.
        patch_size: edge of a patch in pixels.
        merge_size: edge, in patches, of the block that becomes one vision token.

    Returns:
        of the same kind and dtype, `[n_images, n_patches, patch_size**2 * channels]`; `merge_size**2` consecutive
        patches are one block, the features of a patch are ordered `(dy, dx, channel)`.

    Raises:
        ValueError: an edge is not a multiple of `patch_size * merge_size` pixels.
    """
    count, channels, height, width = images.shape
    cell = patch_size * merge_size
    if height % cell or width % cell:
        raise ValueError(
            f"without `do_resize`, image edges must be multiples of {cell} pixels, got height {height} and width "
            f"{width}"
        )
    blocks = images.reshape(
        count, channels, height // cell, merge_size, patch_size, width // cell, merge_size, patch_size
    )
    reorder = blocks.permute if isinstance(blocks, torch.Tensor) else blocks.transpose
    features = patch_size**2 * channels
    return reorder(0, 2, 5, 3, 6, 4, 7, 1).reshape(count, (height // patch_size) * (width // patch_size), features)


def channels_to_rgb(pixels: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
    """Grey repeated, transparency laid on white.

    Args:
        pixels: numpy array or tensor `[height, width, 1, 3 or 4]`, `uint8` or floating-point numbers in [0, 1].

    Returns:
        of the same kind, `[height, width, 3]`: of `uint8`, whole numbers from 0 to 255 in any dtype.

    Raises:
        ValueError: another number of channels, or transparent numbers that are not in [0, 1].
    """
    channels = pixels.shape[-1]
    if channels not in (1, 3, 4):
        raise ValueError(f"`images` has an array with {channels} channels; accepted are 1, 3 and 4")
    if channels < 4:
        return pixels[..., [0, 0, 0]] if channels == 1 else pixels
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    if pixels.dtype in (np.uint8, torch.uint8):
        alpha = alpha / 255
        return (alpha * colours + (1 - alpha) * 255).round()
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"`images` has an array of floats with transparency; accepted are values from 0 to 1, got {low} to {high}"
        )
    return alpha * colours + (1 - alpha)


class DenseMLLMImageProcessorMixin:
    """What the image processors of all backends share: defaults, checks, the kinds of images, sizes, maps. A class of
    one derives from this and from the backend, and has `process_image` and `_preprocess`."""

    do_resize = True
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    do_convert_rgb = True
    patch_size = 16
    merge_size = 2
    max_num_patches = 36864
    scale = 1.0
    max_image_pixels = 178_956_970  # the size at which PIL itself speaks of a decompression bomb
    allow_urls = True
    url_timeout = 30.0
    max_url_bytes = 64 * 2**20
    valid_kwargs = DenseMLLMImageProcessorKwargs
    model_input_names = ["pixel_values", "image_grid_thw"]

    def __init__(self, **kwargs: Unpack[DenseMLLMImageProcessorKwargs]):
        super().__init__(**kwargs)

    def preprocess(self, images: ImageInput, **kwargs: Unpack[DenseMLLMImageProcessorKwargs]) -> BatchFeature:
        return super().preprocess(self.fetch_images(images, **kwargs), **kwargs)

    def _validate_preprocess_kwargs(self, **kwargs):
        for name in ("patch_size", "merge_size", "max_image_pixels"):
            if kwargs[name] < 1:
                raise ValueError(f"`{name}` must be at least 1, got {kwargs[name]}")
        # The size is found from the image itself: there is no `size` for the common check to ask for.
        super()._validate_preprocess_kwargs(**{**kwargs, "do_resize": False})

    def fetch_images(
        self, image_url_or_urls: AnyImage | Sequence[Any], **kwargs: Any
    ) -> PIL.Image.Image | np.ndarray | torch.Tensor | list[Any]:
        """Paths, URLs and all else that [`open_image`] takes as PIL images; arrays as they are.

        Args:
            image_url_or_urls: an image, or a list of images.
            kwargs: `allow_urls`, `url_timeout` and `max_url_bytes`; the processor's own where left out.
        """
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(entry, **kwargs) for entry in image_url_or_urls]
        if is_image_source(image_url_or_urls):
            return open_image(image_url_or_urls, **self.loading_options(kwargs))
        if isinstance(image_url_or_urls, (np.ndarray, torch.Tensor)) and image_url_or_urls.ndim == 2:
            return image_url_or_urls[..., None]  # transformers' own checks know grey arrays with a channel axis only
        return super().fetch_images(image_url_or_urls)

    def loading_options(self, kwargs: dict) -> dict:
        """The arguments of [`open_image`]: those of a call, and the processor's own where it names none."""
        given = {name: kwargs[name] for name in LOADING_KWARGS if kwargs.get(name) is not None}
        return {name: given.get(name, getattr(self, name)) for name in LOADING_KWARGS}

    def check_image_size(
        self, image: PIL.Image.Image | np.ndarray | torch.Tensor, max_image_pixels: int | None = None
    ) -> None:
        """`ValueError` for an image of no pixels, or of more than `max_image_pixels`; the processor's own where left
        out."""
        max_image_pixels = self.max_image_pixels if max_image_pixels is None else max_image_pixels
        size = image.size[::-1] if isinstance(image, PIL.Image.Image) else tuple(image.shape)
        if 0 in size:
            raise ValueError(f"`images` has an entry of zero size: {size}")
        channels = min(size[0], size[-1]) if len(size) == 3 else 1
        if math.prod(size) // channels > max_image_pixels:
            raise ValueError(
                f"`images` has an entry of size {size}; accepted are at most `max_image_pixels` = {max_image_pixels} "
                "pixels"
            )

    def to_channels_first(
        self,
        image: PIL.Image.Image | np.ndarray | torch.Tensor,
        max_image_pixels: int | None = None,
        do_rescale: bool | None = True,
        do_convert_rgb: bool | None = True,
        input_data_format: str | ChannelDimension | None = None,
        most: int = 255,
        **kwargs: Any,
    ) -> np.ndarray:
        """One image to a channel-first array `[3, height, width]`, upright, `uint8`. Without `do_rescale`,
        floating-point arrays stay as they are; `most` is the largest value that is taken of them with it, and further
        arguments of a call aren't needed."""
        self.check_image_size(image, max_image_pixels)
        if isinstance(image, PIL.Image.Image):
            image = _upright(image)
            pixels = np.asarray(_to_rgb(image) if do_convert_rgb else image)
            return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        array = _to_numpy(image)
        convert = _byte_conversion(array, most) if do_rescale or array.dtype.kind != "f" else None
        data_format = input_data_format or infer_channel_dimension_format(array, (1, 3, 4))
        rows = array if data_format == ChannelDimension.LAST else np.moveaxis(array, 0, -1)
        if convert is not None:
            rows = _in_bands(rows, convert)
        if do_convert_rgb and rows.shape[-1] != 3:
            rows = _in_bands(rows, lambda band: channels_to_rgb(band).astype(band.dtype))
        return np.moveaxis(rows, -1, 0)

    def load_picture(self, image: AnyImage, **kwargs: Any) -> PIL.Image.Image:
        """One image of any accepted kind as an upright RGB image, for [`predict_dense`].

        Args:
            image: what [`open_image`] takes, a numpy array `[height, width]` or `[height, width, channels]`, or a
                torch tensor `[height, width]` or `[channels, height, width]`; arrays of integers as they are,
                floating-point ones in [0, 1].
            kwargs: arguments of a call, of which `max_image_pixels`, `allow_urls`, `url_timeout` and `max_url_bytes`
                are used; the processor's own where left out.

        Raises:
            TypeError: something else.
            ValueError: see the class.
        """
        data_format = None
        if isinstance(image, (np.ndarray, torch.Tensor)):
            data_format = "channels_first" if isinstance(image, torch.Tensor) else "channels_last"
            if image.ndim == 2:
                image, data_format = image[..., None], "channels_last"
            channels = image.shape[0 if data_format == "channels_first" else -1] if image.ndim == 3 else 0
            if channels not in (1, 3, 4) and 0 not in image.shape:
                raise ValueError(
                    "`images` has an array of shape "
                    f"{tuple(image.shape)}; accepted are numpy [height, width, channels] and torch [channels, height, "
                    "width] with 1, 3 or 4 channels, and [height, width]"
                )
        else:
            image = open_image(image, **self.loading_options(kwargs))
        pixels = self.to_channels_first(image, kwargs.get("max_image_pixels"), most=1, input_data_format=data_format)
        return PIL.Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))

    def get_resized_size(self, height: int, width: int, images_kwargs: dict | None = None) -> tuple[int, int]:
        """The size `(height, width)` in pixels that an image of that size is resized to; see [`get_resized_size`]."""
        kwargs = {**self.__dict__, **(images_kwargs or {})}
        factor = kwargs["patch_size"] * kwargs["merge_size"]
        return get_resized_size(
            height, width, factor, kwargs["patch_size"], kwargs["max_num_patches"], kwargs["scale"]
        )

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict | None = None) -> int:
        """Number of patches of an image of that size in pixels."""
        resized_height, resized_width = self.get_resized_size(height, width, images_kwargs)
        patch_size = (images_kwargs or {}).get("patch_size", self.patch_size)
        return (resized_height // patch_size) * (resized_width // patch_size)

    def target_size(self, height: int, width: int, do_resize: bool, patch_size: int, **kwargs: Any) -> tuple[int, int]:
        """The size, in pixels, whose patches an image of that size becomes; `ValueError` where they are too many."""
        if do_resize:
            return self.get_resized_size(height, width, {"patch_size": patch_size, **kwargs})
        n_patches = (height // patch_size) * (width // patch_size)
        if n_patches > kwargs["max_num_patches"]:
            raise ValueError(
                f"without `do_resize`, an image has {n_patches} patches; accepted are at most "
                f"`max_num_patches` = {kwargs['max_num_patches']}"
            )
        return height, width

    def patchify(self, image: np.ndarray, patch_size: int, merge_size: int) -> tuple[np.ndarray, list[int]]:
        """`[channels, height, width]` to merge-block-major patches `[n_patches, patch_size**2 * channels]`."""
        blocks = to_patches(image[None], patch_size, merge_size)[0]
        return np.ascontiguousarray(blocks, dtype=np.float32), patch_grid(*image.shape[-2:], patch_size)

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sizes | None = None,
        background: bool = False,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Class scores to segmentation maps, in the form of transformers' own image processors.

        Args:
            outputs: object with `logits`, one `[num_labels, grid_height, grid_width]` tensor an image (a list, or one
                tensor with a batch dimension); where it has `background_label`, `int64 [n_images]`, that label stands
                for the background of its image (-1: none does).
            target_sizes: `(height, width)` in pixels, one an image; the grid's own size where left out.
            background: whether pixels may be none of the labels.
            return_segmentation_scores: give the probabilities of all labels, too: `num_labels` maps of the size.

        Returns:
            one `int64 [height, width]` map an image: positions in the labels, -1 for the background; or, with
            `return_segmentation_scores`, an object with that map as `segmentation` and with `segmentation_scores`,
            `float32 [num_labels, height, width]`, the probability of each label in [0, 1].
        """
        if target_sizes is None:
            target_sizes = [logits.shape[-2:] for logits in outputs.logits]
        sizes = check_target_sizes(target_sizes, len(outputs.logits), self.max_image_pixels)
        rests = getattr(outputs, "background_label", None)
        rests = [-1] * len(sizes) if rests is None else rests.tolist()
        results = []
        for logits, size, rest in zip(outputs.logits, sizes, rests, strict=True):
            own_background = background or rest >= 0
            result, _ = decode_segmentation(logits, size, own_background)
            if rest >= 0:
                result = result.masked_fill(result < 0, rest)
            if return_segmentation_scores:
                probabilities = class_probabilities(logits, own_background)[None]
                scores = F.interpolate(probabilities, size=size, mode="bilinear", align_corners=False)[0]
                result = SemanticSegmentationPostProcessorOutput(
                    data={"segmentation": result, "segmentation_scores": scores}
                )
            results.append(result)
        return results

    def post_process_depth_estimation(
        self, outputs: Any, target_sizes: Sizes | None = None
    ) -> list[dict[str, torch.Tensor]]:
        """Depth maps to the images' sizes, in the form of transformers' own image processors.

        Args:
            outputs: object with `predicted_depth`, one `[height, width]` map in metres an image (a list, or one tensor
                with a batch dimension).
            target_sizes: `(height, width)` in pixels, one an image; left as they are where left out.

        Returns:
            one `{"predicted_depth": float32 [height, width]}` an image, in metres.
        """
        maps = outputs.predicted_depth
        sizes = check_target_sizes(
            [depth.shape for depth in maps] if target_sizes is None else target_sizes, len(maps), self.max_image_pixels
        )
        return [{"predicted_depth": resize_map(depth.float(), size)} for depth, size in zip(maps, sizes, strict=True)]


class DenseMLLMImageProcessor(DenseMLLMImageProcessorMixin, PilBackend):
    r"""
    Turns images into packed patches. `pixel_values` is `float32 [n_patches, patch_size * patch_size * 3]`, the
    patches of all images one after another; `image_grid_thw` is `int64 [n_images, 3]`, rows `(1, patches high,
    patches wide)`. Patches are merge-block-major: `merge_size**2` consecutive rows are one block, the cell of one
    vision token; the features of a patch are ordered `(dy, dx, channel)`.

    Images may be what [`open_image`] takes, numpy or torch arrays (HWC or CHW), or lists of them, converted so: the
    EXIF orientation is applied; transparency is laid on white; palettes, grey, CMYK and others become RGB. White is
    65535 in 16-bit images and arrays of `uint16`, and in 32-bit integer PIL images with a value above 255; it is
    255 in all other integers. Floating-point numbers, of PIL images and arrays alike, are 0 to 1, or 0 to 255 where
    one is at least 2; with `do_rescale=False`, arrays of them are left as they are. Other values, NaN among them,
    images of zero size, truncated files and images of more than `max_image_pixels` pixels raise a `ValueError`;
    the last of these before anything is decoded.
    """

    def process_image(self, image: PIL.Image.Image | np.ndarray | torch.Tensor, **kwargs: Any) -> np.ndarray:
        """See `to_channels_first`."""
        return self.to_channels_first(image, **kwargs)

    def _preprocess(
        self,
        images: list[np.ndarray],
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
        **kwargs,
    ) -> BatchFeature:
        rule = {"merge_size": merge_size, "max_num_patches": max_num_patches, "scale": scale}
        resized, grids = [], []
        for image in images:
            height, width = self.target_size(*image.shape[-2:], do_resize, patch_size, **rule)
            if (height, width) != image.shape[-2:]:
                image = self.resize(image, SizeDict(height=height, width=width), resample)
            grids.append(patch_grid(height, width, patch_size))
            resized.append(image)
        features = [patch_size**2 * len(image) for image in resized]
        patches = np.empty((sum(math.prod(grid) for grid in grids), *set(features)), dtype=np.float32)
        done = 0
        for image in resized:
            # In bands of whole cells: in floating point, an image is many times as large as its pixels.
            cell = patch_size * merge_size
            rows = max(1, 2**20 // (cell * image.shape[0] * image.shape[2])) * cell
            for top in range(0, image.shape[1], rows):
                band = image[:, top : top + rows]
                if do_rescale:
                    band = self.rescale(band, rescale_factor)
                if do_normalize:
                    band = self.normalize(band, image_mean, image_std)
                band_patches, _ = self.patchify(band, patch_size, merge_size)
                patches[done : done + len(band_patches)] = band_patches
                done += len(band_patches)
        data = {"pixel_values": patches, "image_grid_thw": np.array(grids, dtype=np.int64)}
        return BatchFeature(data=data, tensor_type=return_tensors)


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image decoded, turned as its EXIF orientation says, with 8 bits a channel."""
    file_format = image.format
    try:
        if image.getexif().get(PIL.ExifTags.Base.Orientation, 1) != 1:
            image = PIL.ImageOps.exif_transpose(image)
        image.load()
    except Exception as error:  # Pillow's plugins raise whatever a damaged file leads them to
        name = getattr(image, "filename", "") or "an image in memory"
        raise ValueError(f"`images` has an entry that can't be decoded: {name} ({error})") from error
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if image.mode == "I" and values.min() >= 0 and values.max() <= 65535:
        # 32 bits are room for more than one range. Files of these formats have 16 bits where Pillow gives 32.
        values = values.astype(np.uint16 if values.max() > 255 or file_format in ("PNG", "PPM") else np.uint8)
    return PIL.Image.fromarray(_in_bands(values, _byte_conversion(values, 255)))


def _to_numpy(image: "np.ndarray | torch.Tensor") -> np.ndarray:
    if isinstance(image, np.ndarray):
        return image
    try:
        image = image.detach().cpu()
        # numpy has no bfloat16, and none of the smaller ones
        return (image.float() if image.is_floating_point() and image.element_size() < 4 else image).numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ValueError(f"`images` has a tensor that numpy can't take: {image.dtype}, {image.layout}") from error


def white_level(kind: str, dtype: np.dtype | torch.dtype, limits: "Callable[[], tuple]", most: int = 255) -> int:
    """What white is in an image of numbers: 1, 255 or 65535.

    Args:
        kind: of the numbers, as numpy's `dtype.kind`.
        dtype: of the numbers, for messages; its `itemsize` is looked at.
        limits: the lowest and the highest number; called where it matters only.
        most: the largest floating-point number that is taken, 1 or 255.

    Raises:
        ValueError: the numbers are none of these.
    """
    if kind == "b":
        return 1
    if kind == "u" and dtype.itemsize <= 2:
        return 255 if dtype.itemsize == 1 else 65535
    if kind not in "iuf":
        raise ValueError(f"`images` has an array of {dtype}; accepted are booleans, integers and floats")
    low, high = limits()
    if kind == "f":
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("`images` has an entry with NaN or infinite values; accepted are finite numbers")
        if 0 <= low and high <= 1:
            return 1
        # A little over 1 is an overshoot in the range 0 to 1, and not a black image in the other one.
        if 0 <= low and 2 <= high <= most:
            return 255
        accepted = "0 to 1" if most == 1 else f"0 to 1, or 0 to {most} with one of at least 2"
        raise ValueError(f"`images` has a floating-point array with values {low}..{high}; accepted are {accepted}")
    if low < 0 or high > 255:
        raise ValueError(
            f"`images` has an array of {dtype} with values {low}..{high}; accepted are 0 to 255, or all values "
            "of `uint16`"
        )
    return 255


def _byte_conversion(array: np.ndarray, most: int) -> "Callable[[np.ndarray], np.ndarray]":
    """What makes the numbers of an image, or some of them, `uint8` from 0 to 255; `ValueError` where nothing can."""
    white = white_level(array.dtype.kind, array.dtype, lambda: (array.min(), array.max()), most)
    if array.dtype == np.uint8:
        return lambda part: part
    if white == 1:
        return lambda part: (part * np.float32(255)).round().astype(np.uint8)
    if white == 65535:
        return lambda part: (part / 257).round().astype(np.uint8)
    return lambda part: part.round().astype(np.uint8)


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image of any mode in RGB, what is transparent laid on white: on transformers before 5.23 as well."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def _in_bands(rows: np.ndarray, function: "Callable[[np.ndarray], np.ndarray]") -> np.ndarray:
    """`function` of bands of rows, one after another: what it needs on its way is not needed for all at once."""
    count = min(len(rows), math.ceil(rows.size / 2**20))
    parts = (function(band) for band in np.array_split(rows, count))
    first = next(parts)
    result = np.empty((len(rows), *first.shape[1:]), first.dtype)
    result[: len(first)], done = first, len(first)
    for part in parts:
        result[done : done + len(part)] = part
        done += len(part)
    return result


DenseMLLMImageProcessor.register_for_auto_class()

__all__ = ["DenseMLLMImageProcessor"]
