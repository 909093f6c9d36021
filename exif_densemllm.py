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
"""The focal length that a camera wrote into an image's EXIF data, in pixels."""

import math
import os
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import PIL.ExifTags
import PIL.Image

from .checks_densemllm import FocalLengths, check_positive, one_an_image
from .image_loading_densemllm import ImageSource, is_image_source, open_image


if TYPE_CHECKING:
    from .image_processing_densemllm import DenseMLLMImageProcessor

EXIF = "exif"  # in the place of a focal length: read it from the image
FILM_WIDTH = 36.0  # millimetres, of a frame of 35 mm film
# Millimetres of the units of a focal plane's resolution: inch, centimetre, and, beyond the standard, millimetre and
# micrometre. The standard's 1 is no unit that is known.
UNITS = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}


def exif_focal_length(image: ImageSource, sensor_width: float | None = None) -> float | None:
    """The focal length of an image in pixels, from what its camera wrote into its EXIF data.

    It is that of the image at hand, upright or not: pixels are taken for square. An image that was cropped has the
    focal length of the whole one, which EXIF data don't tell.

    Read are, whichever is there first (names of the EXIF standard, Exif 2.32, section 4.6.5):

    1. `FocalLengthIn35mmFilm`, against the 36 mm of such a frame and the image's long edge;
    2. `FocalLength`, in millimetres, with `FocalPlaneXResolution` and its unit. Where the image was resized since, by
       the width that `PixelXDimension` and `PixelYDimension` say;
    3. `FocalLength` with `sensor_width`.

    Args:
        image: what [`open_image`] takes; its pixels are not decoded.
        sensor_width: millimetres along the image's long edge, for a camera whose files say nothing else.

    Returns:
        pixels, or `None` where the image has no such data.

    Raises:
        TypeError, ValueError: an image that can't be opened, or a `sensor_width` that is not above 0.
    """
    if sensor_width is not None:
        sensor_width = check_positive("sensor_width", sensor_width, " of millimetres")
    opened = open_image(image)
    try:
        tags = _tags(opened)
        edge = max(opened.size)
    finally:
        if opened is not image:
            opened.close()
    on_film = tags.get("FocalLengthIn35mmFilm")
    if on_film is not None:
        return on_film / FILM_WIDTH * edge
    length, resolution = tags.get("FocalLength"), tags.get("FocalPlaneXResolution")
    unit = UNITS.get(int(tags.get("FocalPlaneResolutionUnit", 2)))
    if length is not None and resolution is not None and unit is not None:
        taken = max(tags.get("ExifImageWidth", 0), tags.get("ExifImageHeight", 0)) or edge
        return length * resolution / unit * edge / taken
    if length is not None and sensor_width is not None:
        return length / sensor_width * edge
    return None


def _tags(image: PIL.Image.Image) -> dict[str, float]:
    """What the camera wrote that is a number above 0; 0 says that it didn't know."""
    try:
        found = image.getexif().get_ifd(PIL.ExifTags.IFD.Exif)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error):  # damaged
        return {}
    tags = {}
    for name in (
        "FocalLengthIn35mmFilm", "FocalLength", "FocalPlaneXResolution", "FocalPlaneResolutionUnit", "ExifImageWidth",
        "ExifImageHeight",
    ):  # fmt: skip
        try:
            value = float(found.get(PIL.ExifTags.Base[name], 0))
        except (TypeError, ValueError, ZeroDivisionError):
            continue
        if 0 < value < math.inf:
            tags[name] = value
    return tags


def check_focal_length(focal_length: object) -> float | str | None:
    """A focal length in pixels, `"exif"`, or `None` where it isn't known."""
    if focal_length is None or (isinstance(focal_length, str) and focal_length == EXIF):
        return focal_length
    return check_positive("focal_length", focal_length, " of pixels")


def find_focal_lengths(
    images: Sequence, focal_length: FocalLengths | None, image_processor: "DenseMLLMImageProcessor",
    images_kwargs: dict[str, Any], single: bool,
) -> tuple[list, list[float | None]]:  # fmt: skip
    """Images, and the focal length of each in pixels, read from the image where it is `"exif"`.

    Args:
        images: in any form that `predict_dense` takes.
        focal_length: one, or one an image.
        image_processor: whose options images are opened with, where `images_kwargs` don't say them.
        images_kwargs: arguments of the call.
        single: whether the caller gave one image, and not a list of one.

    Raises:
        ValueError: an image that has no focal length in its EXIF data; or another argument of the name.
    """
    images, lengths = list(images), one_an_image("focal_length", focal_length, len(images), check_focal_length)
    for place, length in enumerate(lengths):
        if length == EXIF:
            name = "`images`" if single else f"`images[{place}]`"
            images[place], lengths[place] = read_exif(images[place], image_processor, images_kwargs, name)
    return images, lengths


def read_exif(
    image: Any, image_processor: "DenseMLLMImageProcessor", images_kwargs: dict[str, Any], name: str
) -> tuple[Any, float | None]:
    """[`find_focal_lengths`] of one image, which comes back opened where it is read once only: from a URL, from an
    open file. One that can't be opened has no focal length: whoever loads it says why."""
    length = None
    if is_image_source(image):
        try:
            opened = open_image(image, **image_processor.loading_options(images_kwargs))
        except (TypeError, ValueError):
            return image, None
        length = exif_focal_length(opened)
        if isinstance(image, (str, os.PathLike)) and getattr(opened, "filename", ""):
            opened.close()  # lists of images are longer than the list of files that may be open
        else:
            image = opened
    if length is None:
        file = f" ({os.fspath(image)})" if isinstance(image, (str, os.PathLike)) else ""
        raise ValueError(
            f"`focal_length` can't be {EXIF!r} for {name}{file}, which has no focal length in EXIF data; it must be "
            "given in pixels"
        )
    return image, length


__all__ = ["EXIF", "check_focal_length", "exif_focal_length", "find_focal_lengths", "read_exif"]
