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
"""Image processor of DenseMLLM: any picture to packed, merge-block-major patches, and dense outputs back to maps."""

import base64
import binascii
import bisect
import math
import numbers
import os
from io import BytesIO

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
import torch.nn.functional as F
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType

from .checks_densemllm import check_target_sizes
from .compat_densemllm import httpx


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
        A picture with more pixels is refused before it is decoded.
    """

    patch_size: int
    merge_size: int
    max_num_patches: int
    scale: float
    max_image_pixels: int


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


def open_image(source: "str | os.PathLike | PIL.Image.Image") -> PIL.Image.Image:
    """Open a path, URL, data URI or base64 string as a PIL image without decoding its pixels."""
    if isinstance(source, PIL.Image.Image):
        return source
    name = os.fspath(source)
    try:
        if name.startswith(("http://", "https://")):
            return PIL.Image.open(BytesIO(httpx.get(name, follow_redirects=True).raise_for_status().content))
        if os.path.isfile(name):
            return PIL.Image.open(name)
        encoded = name.split(",", 1)[1] if name.startswith("data:image/") else name
        return PIL.Image.open(BytesIO(base64.b64decode(encoded, validate=True)))
    except (OSError, binascii.Error, IndexError, httpx.HTTPError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(
            f"`images` has an entry that is no readable picture: {name[:200]!r} ({error}). Accepted are the path of "
            "an image file, an http(s) URL, a data URI or base64 text."
        ) from error


def upsample_argmax(
    maps: torch.Tensor, size: tuple[int, int], softmax: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bilinear resize (`align_corners=False`) of all maps, then the best one at each pixel, in strips of rows: the
    `[num_maps, height, width]` volume is never there as a whole.

    Args:
        maps: `float [num_maps, grid_height, grid_width]`.
        size: `(height, width)` in pixels.
        softmax: return the best map's softmax over all maps instead of its value.

    Returns:
        `int64 [height, width]` index of the best map, and `float32 [height, width]` its value.
    """
    maps = maps.float()
    height, width = size
    grid_height = maps.shape[1]
    best, value = [], []
    rows_per_strip = max(1, 2**20 // (maps.shape[0] * width))
    for top in range(0, height, rows_per_strip):
        rows = torch.arange(top, min(top + rows_per_strip, height), dtype=torch.float32, device=maps.device)
        source = ((rows + 0.5) * (grid_height / height) - 0.5).clamp(min=0)
        low = source.floor().long()
        high = (low + 1).clamp(max=grid_height - 1)
        strip = torch.lerp(maps[:, low], maps[:, high], (source - low)[None, :, None])
        strip = F.interpolate(strip[None], size=(len(rows), width), mode="bilinear", align_corners=False)[0]
        strip_value, strip_best = strip.max(dim=0)
        best.append(strip_best)
        value.append((strip_value - strip.logsumexp(dim=0)).exp() if softmax else strip_value)
    return torch.cat(best), torch.cat(value)


def class_chances(logits: torch.Tensor, background: bool = False, temperature: float = 0.2) -> torch.Tensor:
    """Class scores on the grid of vision tokens to chances in [0, 1], `float32` of the same shape; see
    [`decode_segmentation`]."""
    return (logits.float() / 4).sigmoid() if background else (logits.float() / temperature).softmax(dim=0)


def decode_segmentation(
    logits: torch.Tensor, size: tuple[int, int], background: bool = False, temperature: float = 0.2
) -> tuple[torch.Tensor, torch.Tensor]:
    """Class scores on the grid of vision tokens to a segmentation (paper, section on decoding).

    Without a background: softmax over the classes at `temperature`, bilinear resize, argmax. With one: scores / 4,
    sigmoid, against a background of constant 0.5.

    Args:
        logits: `[num_labels, grid_height, grid_width]`, the score of each class at each vision token.
        size: `(height, width)` of the result in pixels.
        background: whether pixels may be none of the labels.
        temperature: of the softmax; lower is sharper.

    Returns:
        `int64 [height, width]`, positions in the labels, -1 for the background, and `float32 [height, width]`, the
        confidence of that choice in [0, 1].
    """
    chances = class_chances(logits, background, temperature)
    floor = 0.5 if background else 1 / len(logits)
    # A resized map never exceeds its highest cell, and the winner of a pixel is never below the floor: classes that
    # stay under it everywhere can't win a pixel and need not be resized.
    contenders = (chances.amax(dim=(1, 2)) >= floor - 1e-6).nonzero()[:, 0]
    if len(contenders) == 0:
        return logits.new_full(size, -1, dtype=torch.long), logits.new_full(size, floor, dtype=torch.float)
    best, scores = upsample_argmax(chances[contenders], size)
    segmentation = contenders[best]
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


def resize_map(values: torch.Tensor, size: tuple[int, int], mode: str = "bilinear") -> torch.Tensor:
    """Resize a floating-point map `[height, width]` to `size`, (height, width) in pixels."""
    align_corners = False if mode == "bilinear" else None
    return F.interpolate(values[None, None], size=tuple(size), mode=mode, align_corners=align_corners)[0, 0]


class DenseMLLMImageProcessor(PilBackend):
    r"""
    Turns pictures into packed patches. `pixel_values` is `float32 [n_patches, patch_size * patch_size * 3]`, the
    patches of all pictures one after another; `image_grid_thw` is `int64 [n_images, 3]`, rows `(1, patches high,
    patches wide)`. Patches are merge-block-major: `merge_size**2` consecutive rows are one block, the cell of one
    vision token; the features of a patch are ordered `(dy, dx, channel)`.

    Pictures may be PIL images, paths, URLs, numpy or torch arrays (HWC or CHW), or lists of them, converted so: the
    EXIF orientation is applied; transparency is laid on white; palettes, grey, CMYK and others become RGB; 16-bit and
    32-bit integer pictures are divided by 257 (65535 is white); floating-point PIL pictures and all other arrays are
    taken as 0 to 255. NaN and infinite values, pictures of zero size, truncated files and pictures of more than
    `max_image_pixels` pixels raise a `ValueError`; the last of these before anything is decoded.
    """

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
    valid_kwargs = DenseMLLMImageProcessorKwargs
    model_input_names = ["pixel_values", "image_grid_thw"]

    def preprocess(self, images: ImageInput, **kwargs: Unpack[DenseMLLMImageProcessorKwargs]) -> BatchFeature:
        return super().preprocess(images, **kwargs)

    def _validate_preprocess_kwargs(self, **kwargs):
        for name in ("patch_size", "merge_size", "max_image_pixels"):
            if kwargs[name] < 1:
                raise ValueError(f"`{name}` must be at least 1, got {kwargs[name]}")
        # The size is found from the picture itself: there is no `size` for the common check to ask for.
        super()._validate_preprocess_kwargs(**{**kwargs, "do_resize": False})

    def fetch_images(self, image_url_or_urls):
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(entry) for entry in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, os.PathLike)):
            return open_image(image_url_or_urls)
        if isinstance(image_url_or_urls, (np.ndarray, torch.Tensor)) and image_url_or_urls.ndim == 2:
            return image_url_or_urls[..., None]  # transformers' own checks know grey arrays with a channel axis only
        return super().fetch_images(image_url_or_urls)

    def process_image(self, image, max_image_pixels: int | None = None, **kwargs) -> np.ndarray:
        """One picture to a channel-first array `[3, height, width]`, upright, in the range 0 to 255."""
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
        if isinstance(image, PIL.Image.Image):
            try:
                image = PIL.ImageOps.exif_transpose(image)
                image.load()
            except (OSError, SyntaxError, ValueError) as error:
                name = getattr(image, "filename", "") or "a picture in memory"
                raise ValueError(f"`images` has an entry that can't be decoded: {name} ({error})") from error
            if image.mode.startswith("I"):
                image = PIL.Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
            elif image.mode == "F":
                image = PIL.Image.fromarray(_checked(np.asarray(image)).clip(0, 255).round().astype(np.uint8))
        else:
            image = _checked(image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else image)
            if image.dtype == np.bool_:
                image = image.astype(np.uint8) * 255
            elif image.dtype.kind == "u" and image.dtype.itemsize == 2:
                image = (image / 257).round().astype(np.uint8)
            elif image.dtype.kind in "iu" and image.dtype != np.uint8:
                if image.min() < 0 or image.max() > 255:
                    raise ValueError(
                        f"`images` has an array of {image.dtype} with values {image.min()}..{image.max()}; accepted "
                        "are 0 to 255, or all values of `uint16`"
                    )
                image = image.astype(np.uint8)
        return super().process_image(image, **kwargs)

    def load_picture(self, image) -> PIL.Image.Image:
        """One image of any accepted kind as an upright RGB picture, for [`predict_dense`].

        Args:
            image: PIL image, path, URL, numpy array `[height, width]` or `[height, width, channels]`, or torch tensor
                `[height, width]` or `[channels, height, width]`; arrays of integers as they are, floating-point ones
                in [0, 1].

        Raises:
            TypeError: something else.
            ValueError: see the class.
        """
        data_format = None
        if isinstance(image, (np.ndarray, torch.Tensor)):
            array = image.detach().cpu().float().numpy() if _is_floating_tensor(image) else np.asarray(image)
            data_format = "channels_first" if isinstance(image, torch.Tensor) else "channels_last"
            if array.ndim == 2:
                array, data_format = array[..., None], "channels_last"
            channels = array.shape[0 if data_format == "channels_first" else -1] if array.ndim == 3 else 0
            if channels not in (1, 3, 4) and 0 not in array.shape:
                raise ValueError(
                    "`images` has an array of shape "
                    f"{tuple(array.shape)}; accepted are numpy [height, width, channels] and torch [channels, height, "
                    "width] with 1, 3 or 4 channels, and [height, width]"
                )
            if np.issubdtype(array.dtype, np.floating) and array.size:
                low, high = float(_checked(array).min()), float(array.max())
                if low < 0 or high > 1:
                    raise ValueError(
                        f"`images` has a floating-point array with values {low}..{high}; accepted are 0 to 1"
                    )
                array = (array * 255).round().astype(np.uint8)
            image = array
        elif not isinstance(image, (str, os.PathLike, PIL.Image.Image)):
            raise TypeError(
                "`images` must be PIL images, paths, URLs, numpy or torch arrays, or a list of them, got "
                f"{type(image).__name__}"
            )
        else:
            image = open_image(image)
        pixels = self.process_image(image, do_convert_rgb=True, input_data_format=data_format)
        return PIL.Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))

    def get_resized_size(self, height: int, width: int, images_kwargs: dict | None = None) -> tuple[int, int]:
        """The size `(height, width)` in pixels that a picture of that size is resized to; see [`get_resized_size`]."""
        kwargs = {**self.__dict__, **(images_kwargs or {})}
        factor = kwargs["patch_size"] * kwargs["merge_size"]
        return get_resized_size(
            height, width, factor, kwargs["patch_size"], kwargs["max_num_patches"], kwargs["scale"]
        )

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict | None = None) -> int:
        """Number of patches of a picture of that size in pixels."""
        resized_height, resized_width = self.get_resized_size(height, width, images_kwargs)
        patch_size = (images_kwargs or {}).get("patch_size", self.patch_size)
        return (resized_height // patch_size) * (resized_width // patch_size)

    def patchify(self, image: np.ndarray, patch_size: int, merge_size: int) -> tuple[np.ndarray, list[int]]:
        """`[channels, height, width]` to merge-block-major patches `[n_patches, patch_size**2 * channels]`."""
        channels, height, width = image.shape
        cell = patch_size * merge_size
        if height % cell or width % cell:
            raise ValueError(
                f"without `do_resize`, image edges must be multiples of {cell} pixels, got height {height} and width "
                f"{width}"
            )
        blocks = image.reshape(
            channels, height // cell, merge_size, patch_size, width // cell, merge_size, patch_size
        ).transpose(1, 4, 2, 5, 3, 6, 0)
        grid = [1, height // patch_size, width // patch_size]
        return np.ascontiguousarray(blocks, dtype=np.float32).reshape(grid[1] * grid[2], -1), grid

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
        patches, grids = [], []
        for image in images:
            if do_resize:
                height, width = get_resized_size(
                    *image.shape[-2:], patch_size * merge_size, patch_size, max_num_patches, scale
                )
                if (height, width) != image.shape[-2:]:
                    image = self.resize(image, SizeDict(height=height, width=width), resample)
            if do_rescale:
                image = self.rescale(image, rescale_factor)
            if do_normalize:
                image = self.normalize(image, image_mean, image_std)
            image_patches, grid = self.patchify(image, patch_size, merge_size)
            if grid[1] * grid[2] > max_num_patches:
                raise ValueError(
                    f"without `do_resize`, an image has {grid[1] * grid[2]} patches; accepted are at most "
                    f"`max_num_patches` = {max_num_patches}"
                )
            patches.append(image_patches)
            grids.append(grid)
        data = {"pixel_values": np.concatenate(patches), "image_grid_thw": np.array(grids, dtype=np.int64)}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def post_process_semantic_segmentation(
        self,
        outputs,
        target_sizes: list[tuple[int, int]] | None = None,
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
            return_segmentation_scores: give the chances of all labels, too: `num_labels * height * width` numbers.

        Returns:
            one `int64 [height, width]` map an image: positions in the labels, -1 for the background; or, with
            `return_segmentation_scores`, an object with that map as `segmentation` and with `segmentation_scores`,
            `float32 [num_labels, height, width]`, the chance of each label in [0, 1].
        """
        if target_sizes is None:
            target_sizes = [logits.shape[-2:] for logits in outputs.logits]
        sizes = check_target_sizes(target_sizes, len(outputs.logits))
        rests = getattr(outputs, "background_label", None)
        rests = [-1] * len(sizes) if rests is None else rests.tolist()
        results = []
        for logits, size, rest in zip(outputs.logits, sizes, rests, strict=True):
            own_background = background or rest >= 0
            result, _ = decode_segmentation(logits, size, own_background)
            if rest >= 0:
                result = result.masked_fill(result < 0, rest)
            if return_segmentation_scores:
                chances = class_chances(logits, own_background)[None]
                scores = F.interpolate(chances, size=size, mode="bilinear", align_corners=False)[0]
                result = SemanticSegmentationPostProcessorOutput(
                    data={"segmentation": result, "segmentation_scores": scores}
                )
            results.append(result)
        return results

    def post_process_depth_estimation(
        self, outputs, target_sizes: list[tuple[int, int]] | None = None
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
            [depth.shape for depth in maps] if target_sizes is None else target_sizes, len(maps)
        )
        return [{"predicted_depth": resize_map(depth.float(), size)} for depth, size in zip(maps, sizes, strict=True)]


def _is_floating_tensor(image) -> bool:
    return isinstance(image, torch.Tensor) and image.is_floating_point()


def _checked(array: np.ndarray) -> np.ndarray:
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise ValueError("`images` has an entry with NaN or infinite values; accepted are finite numbers")
    return array


DenseMLLMImageProcessor.register_for_auto_class()

__all__ = ["DenseMLLMImageProcessor"]
