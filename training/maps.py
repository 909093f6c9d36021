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


"""Image and maps of a sample: from files of many kinds to upright arrays.

One rule for EXIF: image and maps are all turned upright. An image is turned by its orientation tag, a map by its own,
or, where it has none, together with its image if its size says that it belongs to the image as it is stored. Where the
size can't say it (180 degrees, mirrored, square), a map without a tag is refused.
"""

import os
from contextlib import closing, nullcontext
from io import BytesIO
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import PIL.TiffImagePlugin


if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from ..image_processing_densemllm import DenseMLLMImageProcessor


MAPS = ("segmentation", "depth", "mask", "instances")
IGNORE_INDEX = 255
LOSSY_FORMATS = ("JPEG", "MPO")
# What files that are no images begin with. The formats with a reader below are read.
SIGNATURES = {
    b"\x93NUMPY": "npy", b"PK\x03\x04": "npz", b"MATLAB 5.0": "mat", b"\x89HDF\r\n": "HDF5",
    b"\x76\x2f\x31\x01": "OpenEXR", b"#?RADIANCE": "Radiance HDR",
}  # fmt: skip
TIFF_SIGNATURES = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
ACCEPTED = "images that Pillow opens, TIFF, .npy, .npz and, with scipy, .mat"
# By EXIF orientation, for arrays [H, W].
TURNS = {
    1: lambda values: values,
    2: lambda values: values[:, ::-1],
    3: lambda values: values[::-1, ::-1],
    4: lambda values: values[::-1],
    5: lambda values: values.T,
    6: lambda values: values[::-1].T,
    7: lambda values: values[::-1, ::-1].T,
    8: lambda values: values.T[::-1],
}


class Samples(Protocol):
    """Annotated samples by number: a list of dicts, a data set of `datasets` or of torch."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class CorruptFileError(ValueError):
    """An image or a map of a sample that can't be read."""


class _RefusedError(ValueError):
    """A file that may be sound, but isn't read."""


def open_file(
    value: "PIL.Image.Image | np.ndarray | str | os.PathLike[str] | BytesIO | dict[str, Any]",
    where: str,
    column: str,
    max_image_pixels: int | None = None,
) -> "PIL.Image.Image | np.ndarray":
    """An image or map of a row: its pixels decoded, as they are stored.

    Args:
        value: PIL image, array, path, or what the `Image` feature of `datasets` gives, a dict of `bytes` and `path`.
        where: how messages name it.
        column: its name, which picks an array from a file of several.
        max_image_pixels: an image with more is refused before it is decoded.

    Raises:
        CorruptFileError: the file is missing or damaged.
        ValueError: it is of a format that isn't read, too large, or no file at all.
    """
    if isinstance(value, np.ndarray):
        return value
    source, name = value, "an image"
    if isinstance(value, dict):
        name = value.get("path") or name
        source = BytesIO(value["bytes"]) if value.get("bytes") is not None else value.get("path")
    elif isinstance(value, (str, os.PathLike)):
        source = name = os.fspath(value)
    if not isinstance(source, (str, BytesIO, PIL.Image.Image)):
        raise ValueError(f"{where}: it must be an image or a path, got {type(value).__name__}")
    named, picture = f"{where}: {name}", source
    try:
        if not isinstance(source, PIL.Image.Image):
            kind = _array_format(source, name)
            if kind is not None:
                return _read_array(source, kind, column, named)
            picture = PIL.Image.open(source)
        if max_image_pixels is not None and picture.width * picture.height > max_image_pixels:
            raise _RefusedError(
                f"{named} has {picture.width} x {picture.height} pixels; accepted are at most `max_image_pixels` = "
                f"{max_image_pixels}"
            )
        picture.load()
    except (CorruptFileError, _RefusedError):
        raise
    except PIL.UnidentifiedImageError:
        return _read_unidentified(source, name, named)
    except (OSError, SyntaxError, ValueError, EOFError, PIL.Image.DecompressionBombError) as error:
        raise CorruptFileError(f"{named} can't be read ({error})") from error
    return picture


def _array_format(source, name: str) -> str | None:
    """The format of a file that is no image by its first bytes, or by its name where those say nothing."""
    head = _head(source)
    for signature, kind in SIGNATURES.items():
        if head.startswith(signature):
            return kind
    suffix = os.path.splitext(name)[1].lower()
    return suffix[1:] if suffix in (".npy", ".npz", ".mat") else None


def _head(source) -> bytes:
    if isinstance(source, BytesIO):
        return source.getvalue()[:16]
    with open(source, "rb") as file:
        return file.read(16)


def _read_array(source, kind: str, column: str, named: str) -> np.ndarray:
    if kind == "mat":
        try:
            from scipy.io import loadmat
        except ImportError as error:
            raise _RefusedError(f"{named} is a .mat file, which needs scipy: `pip install scipy`") from error
    elif kind not in ("npy", "npz"):
        raise _RefusedError(f"{named} is {kind}, which isn't read; accepted are {ACCEPTED}")
    try:
        loaded = loadmat(source) if kind == "mat" else np.load(source)
        if isinstance(loaded, np.ndarray):
            return loaded
        with closing(loaded) if kind == "npz" else nullcontext():
            arrays = {key: loaded[key] for key in loaded if not key.startswith("__")}
    except NotImplementedError as error:  # of `loadmat`
        raise _RefusedError(
            f"{named} is a .mat file of version 7.3 (HDF5), which isn't read; save it as -v7"
        ) from error
    except Exception as error:  # of a damaged file, the two libraries raise whatever its bytes lead to
        if "allow_pickle" in str(error):
            raise _RefusedError(
                f"{named} has an array of Python objects, which isn't read; it must be numbers"
            ) from error
        raise CorruptFileError(f"{named} can't be read ({error})") from error
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    if column not in arrays:
        raise _RefusedError(f"{named} must have one array, or one named {column!r}; it has {sorted(arrays)}")
    return arrays[column]


def _read_unidentified(source, name: str, named: str) -> np.ndarray:
    """A file that Pillow takes for no image: a TIFF of numbers such as float16 and float64, another format, or a
    damaged file."""
    if _head(source).startswith(TIFF_SIGNATURES):
        return _read_tiff(source, named)
    suffix = os.path.splitext(name)[1].lower()
    if suffix and suffix not in PIL.Image.registered_extensions():
        raise _RefusedError(f"{named} is a {suffix} file, which isn't read; accepted are {ACCEPTED}")
    raise CorruptFileError(f"{named} can't be read (Pillow finds no image in it)")


def _read_tiff(source, named: str) -> np.ndarray:
    try:
        from tifffile import imread
    except ImportError as error:
        try:
            PIL.TiffImagePlugin.TiffImageFile(source)
        except SyntaxError as reason:
            if "pixel mode" not in str(reason):
                raise CorruptFileError(f"{named} can't be read ({reason})") from reason
        raise _RefusedError(
            f"{named} is a TIFF of numbers that Pillow can't read; tifffile can: `pip install tifffile`. Or save it "
            "as float32"
        ) from error
    if isinstance(source, BytesIO):
        source.seek(0)
    try:
        return imread(source)
    except Exception as error:  # whatever a damaged file leads to
        raise CorruptFileError(f"{named} can't be read ({error})") from error


def exif_orientation(image: object) -> int:
    """The EXIF orientation of a PIL image, 1 (upright) to 8; 1 of anything else."""
    value = image.getexif().get(PIL.ExifTags.Base.Orientation, 1) if isinstance(image, PIL.Image.Image) else 1
    return value if value in TURNS else 1


def upright_sample(sample: dict, where: str, image_processor: "DenseMLLMImageProcessor") -> dict:
    """A copy of a sample with an upright RGB `image`, and its maps as upright arrays `[H, W]` of the same size.

    Args:
        sample: see `data_densemllm`; only `image` and maps are read.
        where: how messages name it.
        image_processor: a [`DenseMLLMImageProcessor`].

    Raises:
        CorruptFileError: a file is missing or damaged.
        ValueError: an image or map can't be used; see [`open_file`] and this module's EXIF rule.
    """
    stored, most = sample["image"], image_processor.max_image_pixels
    if isinstance(stored, str) and stored.startswith(("http://", "https://", "data:")):
        stored = image_processor.fetch_images(stored)
    elif not hasattr(stored, "ndim"):  # neither numpy's nor torch's
        stored = open_file(stored, f"{where}, column `image`", "image", most)
    try:
        image = image_processor.load_picture(stored)
    except ValueError as error:
        raise ValueError(f"{where}, column `image`: {error}") from error
    maps = {
        column: _read_map(sample[column], column, stored, image, f"{where}, column `{column}`")
        for column in MAPS
        if sample.get(column) is not None
    }
    return {**sample, "image": image, **maps}


def _read_map(value, column: str, stored, image: PIL.Image.Image, where: str) -> np.ndarray:
    if isinstance(value, (dict, str, os.PathLike, BytesIO, PIL.Image.Image)):
        value = open_file(value, where, column)
    own, turned = exif_orientation(value), exif_orientation(stored)
    is_lossy = getattr(value, "format", None) in LOSSY_FORMATS
    values, size = np.asarray(value), (image.height, image.width)
    if values.ndim == 2 and own != 1:
        values = TURNS[own](values)
    elif values.ndim == 2 and turned != 1 and values.shape == (stored.height, stored.width):
        with_image = TURNS[turned](values)
        if with_image.shape != values.shape:
            values = with_image
        elif (with_image != values).any():
            raise ValueError(
                f"{where}: the image has the EXIF orientation {turned}, and the map has none: its size doesn't tell "
                "whether it belongs to the upright image or to the image as it is stored. Save the image upright "
                "(PIL.ImageOps.exif_transpose), or give the map a tag of its own"
            )
    if values.shape != size:
        tag = "" if turned == 1 else f" (it has the EXIF orientation {turned})"
        raise ValueError(
            f"{where}: it must have the upright image's size{tag}, {size}, and one channel, got {values.shape}"
        )
    if is_lossy and column in ("segmentation", "instances"):
        raise ValueError(f"{where}: a JPEG changes the numbers that it stores; save it as PNG")
    if is_lossy and column == "mask":
        values = values > values.max(initial=0) / 2  # what is near 0 or near the highest value was just that
    return np.require(values, requirements=("C", "W"))


def read_metres(values: "ArrayLike | PIL.Image.Image", depth_scale: float | None, where: str) -> np.ndarray:
    """Depth as `float32` metres.

    Args:
        values: numbers `[H, W]`.
        depth_scale: metres a unit. `None`: floats are metres, and integers are refused.
        where: how messages name it.
    """
    values = np.asarray(values)
    if not (np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer)):
        raise ValueError(f"{where}: it must be numbers, got {values.dtype}")
    if depth_scale is not None:
        return values.astype(np.float32) * np.float32(depth_scale)
    if np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{where}: `depth_scale`, metres a unit, is needed for depth as {values.dtype}")
    return values.astype(np.float32)


def read_mask(values: "ArrayLike | PIL.Image.Image", ignore_index: int = IGNORE_INDEX) -> np.ndarray:
    """A mask as booleans `[H, W]`; or, where some of it isn't annotated, as `int8`: 1, 0 and -1 for what isn't.

    Args:
        values: `[H, W]`; the foreground is what is not 0, and in `uint8` shades of grey up to 255, as soft edges have
            them, what is above 127. `ignore_index` marks what isn't annotated beside an object of ones, as in PASCAL
            VOC, and wherever it is below 0; in a mask of 0 and 255, 255 is the object.
        ignore_index: see [`DenseSource`].
    """
    values = np.asarray(values)
    unknown = values == ignore_index
    if values.dtype == np.uint8 and values.max(initial=0) == 255 and ((values > 63) & (values < 192)).any():
        return values > 127
    if values.dtype == np.bool_ or not unknown.any():
        return values != 0
    rest = values[~unknown]
    if ignore_index >= 0 and not ((rest == 1).any() and ((rest == 0) | (rest == 1)).all()):
        return values != 0
    return np.where(unknown, -1, values != 0).astype(np.int8)


__all__ = ["CorruptFileError", "exif_orientation", "open_file", "read_mask", "read_metres", "upright_sample"]
