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
from collections.abc import Callable
from contextlib import closing, nullcontext
from io import BytesIO
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import PIL.TiffImagePlugin

from ..targets_densemllm import IGNORE_INDEX


if TYPE_CHECKING:
    from numpy.typing import ArrayLike


LOSSY_FORMATS = ("JPEG", "MPO")
# What files that are not images begin with. The formats with a reader below are read.
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
    named, image = f"{where}: {name}", source
    try:
        if not isinstance(source, PIL.Image.Image):
            kind = _array_format(source, name)
            if kind is not None:
                return _read_array(source, kind, column, named)
            image = PIL.Image.open(source)
        if max_image_pixels is not None and image.width * image.height > max_image_pixels:
            raise _RefusedError(
                f"{named} has {image.width} x {image.height} pixels; accepted are at most `max_image_pixels` = "
                f"{max_image_pixels}"
            )
        image.load()
    except (CorruptFileError, _RefusedError):
        raise
    except PIL.UnidentifiedImageError:
        return _read_unidentified(source, name, named)
    except (OSError, SyntaxError, ValueError, EOFError, PIL.Image.DecompressionBombError) as error:
        raise CorruptFileError(f"{named} can't be read ({error})") from error
    return image


def _array_format(source, name: str) -> str | None:
    """The format of a file that is not an image by its first bytes, or by its name where those say nothing."""
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


def refuse_jpeg(values: np.ndarray, where: str) -> np.ndarray:
    """For a map of numbers that stand for something: a JPEG changes them."""
    raise ValueError(f"{where}: a JPEG changes the numbers that it stores; save it as PNG")


def split_jpeg(values: np.ndarray, where: str) -> np.ndarray:
    """For a map of two values: what is near 0 or near the highest value in a JPEG was just that."""
    return values > values.max(initial=0) / 2


def read_map(
    value: Any,
    column: str,
    stored: Any,
    size: tuple[int, int],
    where: str,
    channels: int | None = None,
    on_jpeg: Callable[[np.ndarray, str], np.ndarray] | None = None,
) -> np.ndarray:
    """A map of a sample as an upright array of the upright image's size, contiguous and not read-only.

    Args:
        value: what [`open_file`] takes, or anything that numpy makes an array of.
        column: its name, which picks an array from a file of several.
        stored: the image as it is stored, with its orientation tag.
        size: `(height, width)` of the upright image.
        where: how messages name it.
        channels: the map is `[H, W, channels]`; `[H, W]` where left out.
        on_jpeg: takes the values of a JPEG, see [`refuse_jpeg`] and [`split_jpeg`]; they stay where left out.

    Raises:
        CorruptFileError: the file is missing or damaged.
        ValueError: the map is of another size, or it isn't known how it is turned.
    """
    if isinstance(value, (dict, str, os.PathLike, BytesIO, PIL.Image.Image)):
        value = open_file(value, where, column)
    is_lossy = getattr(value, "format", None) in LOSSY_FORMATS
    values = np.asarray(value)
    if values.ndim == (2 if channels is None else 3):
        values = _turn_map(values, exif_orientation(value), stored, where)
    expected = size if channels is None else (*size, channels)
    if values.shape != expected:
        turned = exif_orientation(stored)
        tag = "" if turned == 1 else f" (it has the EXIF orientation {turned})"
        count = "one channel" if channels is None else f"{channels} channels"
        raise ValueError(
            f"{where}: it must have the upright image's size{tag}, {size}, and {count}, got {values.shape}"
        )
    if is_lossy and on_jpeg is not None:
        values = on_jpeg(values, where)
    return np.require(values, requirements=("C", "W"))


def _turn_map(values: np.ndarray, own: int, stored, where: str) -> np.ndarray:
    """A map turned upright by this module's EXIF rule; `own` is its own orientation."""
    turned = exif_orientation(stored)
    fits_stored = turned != 1 and values.shape[:2] == (stored.height, stored.width)
    if values.ndim > 2 and (own != 1 or fits_stored):  # its channels may be directions, which turn as well
        raise ValueError(
            f"{where}: a map of several channels isn't turned, and the EXIF orientation is "
            f"{turned if own == 1 else own}. Save image and map upright (PIL.ImageOps.exif_transpose)"
        )
    if own != 1:
        return TURNS[own](values)
    if fits_stored:
        with_image = TURNS[turned](values)
        if with_image.shape != values.shape:
            return with_image
        if (with_image != values).any():
            raise ValueError(
                f"{where}: the image has the EXIF orientation {turned}, and the map has none: its size doesn't tell "
                "whether it belongs to the upright image or to the image as it is stored. Save the image upright "
                "(PIL.ImageOps.exif_transpose), or give the map a tag of its own"
            )
    return values


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
        values: `[H, W]`, or what this function gave; the foreground is what is not 0, and in `uint8` shades of grey up
            to 255, as soft edges have them, what is above 127. `ignore_index` marks what isn't annotated beside an
            object of ones, as in PASCAL VOC, and wherever it is below 0; in a mask of 0 and 255, 255 is the object.
        ignore_index: see [`DenseSource`].
    """
    values = np.asarray(values)
    if values.dtype == np.int8 and (values == -1).any() and values.min() == -1 and values.max() <= 1:
        return values  # read already
    unknown = values == ignore_index
    if values.dtype == np.uint8 and values.max(initial=0) == 255 and ((values > 63) & (values < 192)).any():
        return values > 127
    if values.dtype == np.bool_ or not unknown.any():
        return values != 0
    rest = values[~unknown]
    if ignore_index >= 0 and not ((rest == 1).any() and ((rest == 0) | (rest == 1)).all()):
        return values != 0
    return np.where(unknown, -1, values != 0).astype(np.int8)


def read_normals(values: "ArrayLike | PIL.Image.Image", where: str) -> np.ndarray:
    """Surface normals as `float32 [H, W, 3]`, in the axes of `normals_densemllm.py`; 0 where they aren't annotated.

    Args:
        values: floats `[H, W, 3]`, of any length; or `uint8`, as of an RGB image, in which 0 to 255 stand for -1 to 1.
            Of `uint8`, vectors whose length is off 1 by more than a half are not annotated: (0, 0, 0), (128, 128, 128)
            and what a JPEG makes of these.
        where: how messages name it.
    """
    values = np.asarray(values)
    if np.issubdtype(values.dtype, np.floating):
        return values.astype(np.float32)
    if values.dtype != np.uint8:
        raise ValueError(f"{where}: it must be floats, or `uint8` in which 0 to 255 are -1 to 1, got {values.dtype}")
    normals = values.astype(np.float32) / np.float32(127.5) - np.float32(1)
    lengths = np.sqrt(np.square(normals).sum(axis=-1, keepdims=True))
    return np.where(np.abs(lengths - 1) <= 0.5, normals, np.float32(0))


__all__ = [
    "CorruptFileError",
    "exif_orientation",
    "open_file",
    "read_map",
    "read_mask",
    "read_metres",
    "read_normals",
    "refuse_jpeg",
    "split_jpeg",
]
