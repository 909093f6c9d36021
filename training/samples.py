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

"""Annotated samples: the columns that they have, a row read as a checked sample, and its changes in training.

A sample is a dict. `image` is needed, and any of the others supervise it, all at once:

| column | type | meaning |
|---|---|---|
| `image` | image | what the model sees |
| `segmentation` | image or integers `[H, W]` | class ids, keys of the source's `id2label`, or `ignore_index` (255) |
| `depth` | metres, floats `[H, W]`; or an image or other units, and `depth_scale`, metres a unit | 0 is invalid |
| `mask` | image or booleans `[H, W]` | foreground: not 0, of shades of grey the brighter half; see [`read_mask`] |
| `normals` | RGB image or floats `[H, W, 3]` | directions that surfaces face, see [`read_normals`]; 0 is invalid |
| `instances` | image or integers `[H, W]` | numbers of objects, 0 and below: none; `ignore_index`: not annotated |
| `codes` | integers `[h, w]` | what a visual tokenizer gives to each vision token; negative: not annotated |
| `expression` | string | names the object of `mask`; without it, `mask` is the image's one foreground |
| `expressions`, `expression_instances` | lists | names of objects in `instances`, see [`draw_expression`] |
| `messages` | list of `{"role", "content"}` | ordinary chat; every answer of the assistant is learned |
| `focal_length` | float, pixels | of `image`, for a depth range that has a focal length |
| `question` | string | asked about the image; an evaluation compares the answer with `answer` |
| `answer` | integer of at least 0 | the number that `question` asks for |
| `objects` | dict of lists | `bbox`, `category`, `area` and `iscrowd` of each object, see [`read_objects`] |
| `person` | dict | `box`, `keypoints` and `head_size` of one person, see [`read_person`] |

The last four are there for an evaluation alone: nothing is learned from them. Their places are pixels of the upright
image.

An image is a PIL image, a path, or what the `Image` feature of `datasets` gives; a map may also be a file of numbers:
`.npy`, `.npz`, `.mat` (with scipy), TIFF; `codes` may be one, too. `instances` are learned from beside a
`segmentation`, where the source has `thing_labels`. Maps have the upright image's size: see `training/maps.py` for the
rule of EXIF orientations. What is done with each column stands in one table, `SCHEMA`.
"""

import math
import operator
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
from transformers.utils import logging

from ..answers_densemllm import MPII_KEYPOINTS
from ..chat_densemllm import read_parts
from ..checks_densemllm import check_positive, shown
from ..image_processing_densemllm import DenseMLLMImageProcessor
from ..targets_densemllm import IGNORE_INDEX, check_ignore_index, nearest_resize, present_values
from ..tasks_densemllm import Classes, Codes, Depth, Foreground, Normals, Panoptic
from .camera_effects import apply_camera_effects
from .maps import open_file, read_map, read_mask, read_metres, read_normals, refuse_jpeg, split_jpeg


logger = logging.get_logger(__name__)

IMAGE_PROCESSOR = DenseMLLMImageProcessor()  # transparent and 16-bit images are trained on as they are predicted on
SIDES = re.compile(r"\b(left|right)(most|hand|ward|wards)?\b", re.IGNORECASE)
COLORS = re.compile(
    r"\b(colou?rs?|coloured|colored|black|white|gr[ae]y|red|orange|yellow|green|blue|purple|violet|pink|brown|beige|"
    r"dark|light|bright)(er|est|ish)?\b",
    re.IGNORECASE,
)


# ---- the checker of each column ----


@dataclass(frozen=True)
class ReadOptions:
    """What the columns of a sample are read with; see [`DenseSource`]."""

    id2label: dict[int, str] | None = None
    depth_scale: float | None = None
    ignore_index: int = IGNORE_INDEX

    def __post_init__(self) -> None:
        check_ignore_index(self.ignore_index, self.id2label)


def _read_segmentation(values: np.ndarray, sample: dict, where: str, options: ReadOptions) -> np.ndarray:
    where, id2label, ignore_index = f"{where}, column `{Classes.column}`", options.id2label, options.ignore_index
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{where}: it must be integers, got {values.dtype}")
    if id2label is None:
        raise ValueError(f"{where}: `id2label` is needed, a dict from class id to name")
    unknown = set(present_values(values).tolist()) - set(id2label) - {ignore_index}
    if unknown and min(unknown) < 0:
        raise ValueError(
            f"{where}: class ids must be at least 0, or `ignore_index` = {ignore_index}, got {min(unknown)}"
        )
    if unknown:
        raise ValueError(
            f"{where}: it has the class ids {sorted(unknown)[:10]}, which `id2label` lacks, and which aren't "
            f"`ignore_index` = {ignore_index}"
        )
    return values


def _read_depth(values: np.ndarray, sample: dict, where: str, options: ReadOptions) -> np.ndarray:
    return read_metres(values, options.depth_scale, f"{where}, column `{Depth.column}`")


def _read_mask(values: np.ndarray, sample: dict, where: str, options: ReadOptions) -> np.ndarray:
    return read_mask(values, options.ignore_index)


def _read_normals(values: np.ndarray, sample: dict, where: str, options: ReadOptions) -> np.ndarray:
    return read_normals(values, f"{where}, column `{Normals.column}`")


def _read_instances(values: np.ndarray, sample: dict, where: str, options: ReadOptions) -> np.ndarray:
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{where}, column `{Panoptic.column}`: it must be integers, got {values.dtype}")
    return values


def _read_codes(value, sample: dict, where: str, options: ReadOptions) -> np.ndarray:
    where = f"{where}, column `{Codes.column}`"
    if isinstance(value, (dict, str, os.PathLike, BytesIO, PIL.Image.Image)):
        value = open_file(value, where, Codes.column)
    try:
        codes = np.asarray(value)
    except ValueError:  # of rows of several lengths
        codes = np.empty(0)
    if codes.ndim != 2 or 0 in codes.shape or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(
            f"{where}: it must be integers [height, width], a code for each vision token, got {codes.dtype} of shape "
            f"{codes.shape}"
        )
    return codes.astype(np.int32)


def _read_expression(text, sample: dict, where: str, options: ReadOptions) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}, column `expression`: it must be a text, got {text!r}")
    if Foreground.column not in sample:
        raise ValueError(f"{where} has an `expression` but no `{Foreground.column}` of what it names")
    return text


def _read_expressions(texts, sample: dict, where: str, options: ReadOptions):
    numbers = sample.get("expression_instances")
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{where}, column `expressions`: it must be a list of texts, got {texts!r}")
    instances = sample.get(Panoptic.column)
    if instances is None:
        raise ValueError(
            f"{where} has `expressions` but no `{Panoptic.column}`, a map of integers that tells what they name"
        )
    if numbers is None or len(numbers) != len(texts):
        raise ValueError(
            f"{where}, column `expression_instances`: it must have a number for each of {len(texts)} expressions, got "
            f"{numbers!r}"
        )
    missing = set(numbers) - set(present_values(instances).tolist())
    if missing:
        raise ValueError(f"{where}, column `expression_instances`: `{Panoptic.column}` lacks {sorted(missing)}")
    return texts


def _read_messages(messages, sample: dict, where: str, options: ReadOptions) -> list[dict]:
    where = f"{where}, column `messages`"
    if not isinstance(messages, (list, tuple)) or not all(
        isinstance(message, dict) and {"role", "content"} <= set(message) for message in messages
    ):
        raise ValueError(f"{where}: it must be a list of dicts with `role` and `content`")
    roles = [message["role"] for message in messages if message["role"] != "system"]
    expected = [("user", "assistant")[index % 2] for index in range(len(roles))]
    if not roles or len(roles) % 2 or roles != expected:
        raise ValueError(f"{where}: user and assistant must take turns and the assistant have the last, got {roles}")
    try:
        return read_parts(messages)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _read_focal_length(value, sample: dict, where: str, options: ReadOptions) -> float:
    try:
        return check_positive("focal_length", value, " of pixels")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}, column {error}") from None


# ---- what an evaluation compares answers in words with ----


def _read_question(text, sample: dict, where: str, options: ReadOptions) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}, column `question`: it must be a text, got {shown(text)}")
    return text


def _read_answer(value, sample: dict, where: str, options: ReadOptions) -> int:
    try:
        number = -1 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(f"{where}, column `answer`: it must be an integer of at least 0, got {shown(value)}")
    return number


def _numbers(values: Any, count: int, where: str, what: str) -> list[float]:
    """`count` finite numbers as floats, or a `ValueError`."""
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError):
        found = []
    if len(found) != count or not all(map(math.isfinite, found)):
        raise ValueError(f"{where} must be {what}, got {shown(values)}")
    return found


def read_objects(value: Any, where: str, id2label: Mapping[int, str] | None = None) -> dict[str, list]:
    """The objects of an image, as data sets on the Hub have them.

    Args:
        value: a dict of lists, or a list of dicts: `bbox`, (x, y, width, height) in pixels of the upright image;
            `category`, a class id each; and where known `area`, in pixels, and `iscrowd`, 1 of a box around several
            objects that nobody told apart. Other keys are left out.
        where: how messages name it.
        id2label: class id to name, if known.

    Returns:
        a dict of the four lists: floats, integers, floats (width times height where not known), and 0 or 1.

    Raises:
        ValueError: anything else.
    """
    keys = ("bbox", "category", "area", "iscrowd")
    if isinstance(value, (list, tuple)) and all(isinstance(row, Mapping) for row in value):
        value = {key: [row.get(key) for row in value] for key in keys if any(key in row for row in value) or not value}
    if not isinstance(value, Mapping) or any(not hasattr(value.get(key), "__len__") for key in keys[:2]):
        raise ValueError(f"{where} must be a dict with the lists `bbox` and `category`, got {shown(value)}")
    lists = {key: list(value[key]) for key in keys if value.get(key) is not None}
    if len({len(values) for values in lists.values()}) > 1:
        lengths = {key: len(values) for key, values in lists.items()}
        raise ValueError(f"{where} must have an entry for each object in all of its lists, got {lengths}")
    boxes = [_numbers(box, 4, f"{where}: each `bbox`", "(x, y, width, height) in pixels") for box in lists["bbox"]]
    if any(min(box[2:]) < 0 for box in boxes):
        raise ValueError(f"{where}: each `bbox` must have a width and height of at least 0, got {shown(boxes)}")
    for label in lists["category"]:
        if isinstance(label, bool) or not isinstance(label, (int, np.integer)):
            raise ValueError(f"{where}: each `category` must be a class id, got {shown(label)}")
        if id2label is not None and int(label) not in id2label:
            raise ValueError(f"{where}: `category` has the class id {int(label)}, which `id2label` lacks")
    areas = [
        box[2] * box[3] if area is None else _numbers([area], 1, f"{where}: each `area`", "a number of pixels")[0]
        for box, area in zip(boxes, lists.get("area", [None] * len(boxes)), strict=True)
    ]
    return {
        "bbox": boxes,
        "category": [int(label) for label in lists["category"]],
        "area": areas,
        "iscrowd": [int(bool(crowd)) for crowd in lists.get("iscrowd", [0] * len(boxes))],
    }


def read_person(value: Any, where: str, size: tuple[int, int]) -> dict[str, Any]:
    """One person of an image, with the joints of MPII.

    Args:
        value: a dict of `box`, (x0, y0, x1, y1) around the person in pixels of the upright image; `keypoints`, a row
            (x, y, annotated) for each of the 16 joints in MPII's order, those whose third number is 0 don't count; and
            `head_size`, in pixels, by which distances are measured.
        where: how messages name it.
        size: `(height, width)` of the image in pixels, in which some of the box must lie.

    Returns:
        a dict of the three: 4 floats, 16 rows of 3 floats, and a float.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, Mapping) or not {"box", "keypoints", "head_size"} <= set(value):
        raise ValueError(f"{where} must be a dict with `box`, `keypoints` and `head_size`, got {shown(value)}")
    box = _numbers(value["box"], 4, f"{where}: `box`", "(x0, y0, x1, y1) in pixels")
    x0, y0, x1, y1 = box
    if not (x0 < x1 and y0 < y1 and x0 < size[1] and y0 < size[0] and x1 > 0 and y1 > 0):
        raise ValueError(
            f"{where}: `box` must have x0 < x1 and y0 < y1, some of it within an image of {size[1]}x{size[0]}, got "
            f"{box}"
        )
    keypoints = value["keypoints"]
    if not hasattr(keypoints, "__len__") or len(keypoints) != len(MPII_KEYPOINTS):
        raise ValueError(f"{where}: `keypoints` must have a row for each of 16 joints, got {shown(keypoints)}")
    rows = [_numbers(row, 3, f"{where}: each row of `keypoints`", "(x, y, annotated)") for row in keypoints]
    head_size = _numbers([value["head_size"]], 1, f"{where}: `head_size`", "a number of pixels")[0]
    if head_size <= 0:
        raise ValueError(f"{where}: `head_size` must be greater than 0 pixels, got {head_size}")
    return {"box": box, "keypoints": rows, "head_size": head_size}


def _read_objects(value, sample: dict, where: str, options: ReadOptions) -> dict[str, list]:
    return read_objects(value, f"{where}, column `objects`", options.id2label)


def _read_person(value, sample: dict, where: str, options: ReadOptions) -> dict[str, Any]:
    image = sample["image"]
    return read_person(value, f"{where}, column `person`", (image.height, image.width))


# ---- the schema ----


def _as_it_is(value: Any, *rest: Any) -> Any:
    return value


@dataclass(frozen=True)
class Column:
    """One column of a sample: how it is read, and what becomes of it when the image is changed.

    Args:
        read: a function of `(value, sample, where, options)` that gives the value in the form that the sample keeps,
            or raises a `ValueError`. The image and all maps are upright by then; columns further down in `SCHEMA` are
            as they stand in the row. `where` names the row.
        is_learned: whether the column is something to learn from.
        is_measured: whether it is there for an evaluation to compare with, and for nothing else.
        is_map: whether it has a value for each pixel, `[H, W]`, that goes where the image's pixel goes.
        channels: of a map with several values a pixel, `[H, W, channels]`.
        on_jpeg: what is made of a map that was stored as a JPEG, which changes values: a function of `(values, where)`
            that gives the values, or raises a `ValueError`.
        on_scale: what is made of a map's values, resized already, by a resize of the image: a function of `(values,
            factor)`.
        on_mirror: what is made of a map's values, mirrored already, by mirroring the image: a function of `values`.
    """

    read: Callable[[Any, dict, str, ReadOptions], Any] = _as_it_is
    is_learned: bool = False
    is_measured: bool = False
    is_map: bool = False
    channels: int | None = None
    on_jpeg: Callable[[np.ndarray, str], np.ndarray] = _as_it_is
    on_scale: Callable[[np.ndarray, float], np.ndarray] = _as_it_is
    on_mirror: Callable[[np.ndarray], np.ndarray] = _as_it_is


def _divide_depth(metres: np.ndarray, factor: float) -> np.ndarray:
    """A larger image of the same things is what the same camera sees from nearer."""
    return metres / np.float32(factor)


def _mirror_normals(normals: np.ndarray) -> np.ndarray:
    """What faced to the right faces to the left."""
    return normals * np.array([-1, 1, 1], dtype=normals.dtype)


# In the order in which they are checked.
SCHEMA = {
    "image": Column(),
    Classes.column: Column(_read_segmentation, is_learned=True, is_map=True, on_jpeg=refuse_jpeg),
    Depth.column: Column(_read_depth, is_learned=True, is_map=True, on_scale=_divide_depth),
    Foreground.column: Column(_read_mask, is_learned=True, is_map=True, on_jpeg=split_jpeg),
    Normals.column: Column(_read_normals, is_learned=True, is_map=True, channels=3, on_mirror=_mirror_normals),
    Panoptic.column: Column(_read_instances, is_learned=True, is_map=True, on_jpeg=refuse_jpeg),
    Codes.column: Column(_read_codes, is_learned=True),
    "expression": Column(_read_expression),
    "expressions": Column(_read_expressions),
    "expression_instances": Column(),
    "messages": Column(_read_messages, is_learned=True),
    "focal_length": Column(_read_focal_length),
    "question": Column(_read_question, is_measured=True),
    "answer": Column(_read_answer, is_measured=True),
    "objects": Column(_read_objects, is_measured=True),
    "person": Column(_read_person, is_measured=True),
}
COLUMNS = tuple(SCHEMA)
MAPS = {name: column for name, column in SCHEMA.items() if column.is_map}


# ---- reading ----


def read_sample(
    row: dict,
    where: str = "sample",
    id2label: dict[int, str] | None = None,
    depth_scale: float | None = None,
    ignore_index: int = IGNORE_INDEX,
    measured: bool = False,
) -> dict:
    """A row of a data set as a checked sample: an upright RGB image, `segmentation` and `instances` as integers,
    `depth` as float32 metres, `mask` as booleans (or as [`read_mask`] says), `normals` as float32 vectors, all of one
    size. Columns that the schema doesn't know are left out.

    Args:
        row: the row; see this module's table.
        where: how messages name it.
        id2label, depth_scale, ignore_index: see [`DenseSource`].
        measured: read the columns, too, that are there for an evaluation alone. A data set to learn from may have
            something else under their names, which is left out then.

    Raises:
        CorruptFileError: an image can't be read.
        ValueError: anything else that doesn't follow the schema; the message names row and column.
    """
    options = ReadOptions(id2label, depth_scale, ignore_index)
    names = [name for name, column in SCHEMA.items() if measured or not column.is_measured]
    sample = {name: row[name] for name in names if row.get(name) is not None}
    if "image" not in sample:
        raise ValueError(f"{where} has no `image`; its columns are {sorted(row)}")
    sample = upright_sample(sample, where, IMAGE_PROCESSOR)
    for name in names:
        if name in sample:
            sample[name] = SCHEMA[name].read(sample[name], sample, where, options)
    return sample


def upright_sample(sample: dict, where: str, image_processor: DenseMLLMImageProcessor) -> dict:
    """A copy of a sample with an upright RGB `image`, and its maps as upright arrays of the same size.

    Args:
        sample: see this module's table; only `image` and maps are read.
        where: how messages name it.
        image_processor: a [`DenseMLLMImageProcessor`].

    Raises:
        CorruptFileError: a file is missing or damaged.
        ValueError: an image or map can't be used; see [`open_file`] and the EXIF rule of `training/maps.py`.
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
    size = (image.height, image.width)
    maps = {
        name: read_map(sample[name], name, stored, size, f"{where}, column `{name}`", column.channels, column.on_jpeg)
        for name, column in MAPS.items()
        if sample.get(name) is not None
    }
    return {**sample, "image": image, **maps}


def text_of(content: str | list[dict]) -> str:
    """The text of a message's content, a string or a list of parts."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


# ---- changes in training ----


@dataclass
class Augmentation:
    """Changes of image and maps together; what becomes of the values of a map stands in `SCHEMA`.

    A sample with `messages` keeps its geometry, as its text may speak of places and of what there is; one with an
    `expression` isn't cropped, and isn't mirrored if that speaks of sides. One with `codes` stays as it is, and a
    warning says so once: the codes of a changed image are not those of the image, changed in the same way.

    Args:
        scale: lowest and highest factor of a random resize. Depth is divided by it.
        crop_size: `(height, width)` in pixels of a random crop; smaller images stay as they are.
        flip_probability: of mirroring left and right.
        color_jitter: brightness, contrast and saturation change by a factor of up to 1 plus or minus this, but where
            `expression` or `messages` speak of colours.
        camera_effects: strength, in [0, 1], of what other cameras do: exposure, noise, blur, JPEG and more, see
            [`apply_camera_effects`]. Hues stay where texts speak of colours.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    crop_size: tuple[int, int] | None = None
    flip_probability: float = 0.0
    color_jitter: float = 0.0
    camera_effects: float = 0.0

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < float("inf"):
            raise ValueError(f"`scale` must be two factors, 0 < lowest <= highest, got {self.scale}")
        if self.crop_size is not None and (len(self.crop_size) != 2 or min(self.crop_size) < 1):
            raise ValueError(f"`crop_size` must be (height, width) in pixels, got {self.crop_size}")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"`flip_probability` must be in [0, 1], got {self.flip_probability}")
        if not 0 <= self.color_jitter < 1:
            raise ValueError(f"`color_jitter` must be in [0, 1), got {self.color_jitter}")
        if not 0 <= self.camera_effects <= 1:
            raise ValueError(f"`camera_effects` must be in [0, 1], got {self.camera_effects}")

    def draw_scale(self, rng: np.random.Generator) -> float:
        """The factor of the random resize: what a call draws first from its generator."""
        return float(rng.uniform(*self.scale))

    def __call__(self, sample: dict, rng: np.random.Generator) -> dict:
        """A changed copy of a sample of [`read_sample`]."""
        sample = dict(sample)
        if sample.get(Codes.column) is not None:
            logger.warning_once(
                f"samples with `{Codes.column}` are not augmented, as these are of the image as it is; leave the "
                "column out, and give the tokenizer itself (`image_tokenizer`), which reads images after their changes"
            )
            return sample
        factor = self.draw_scale(rng)
        expression = sample.get("expression")
        said = [text_of(message["content"]) for message in sample.get("messages") or ()]
        speaks_of_colors = any(COLORS.search(text) for text in (expression or "", *said))
        if self.color_jitter and not speaks_of_colors:
            for enhance in (PIL.ImageEnhance.Brightness, PIL.ImageEnhance.Contrast, PIL.ImageEnhance.Color):
                sample["image"] = enhance(sample["image"]).enhance(1 + self.color_jitter * rng.uniform(-1, 1))
        if self.camera_effects:
            sample["image"] = apply_camera_effects(sample["image"], self.camera_effects, rng, speaks_of_colors)
        if sample.get("messages"):
            return sample
        if self.scale != (1.0, 1.0):
            image = sample["image"]
            height, width = (max(1, round(edge * factor)) for edge in (image.height, image.width))
            sample["image"] = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
            _change_maps(sample, lambda values, column: column.on_scale(nearest_resize(values, height, width), factor))
        if self.crop_size is not None and expression is None:
            image = sample["image"]
            height, width = min(self.crop_size[0], image.height), min(self.crop_size[1], image.width)
            top, left = rng.integers(image.height - height + 1), rng.integers(image.width - width + 1)
            sample["image"] = image.crop((left, top, left + width, top + height))
            _change_maps(sample, lambda values, column: values[top : top + height, left : left + width])
        if rng.random() < self.flip_probability and not SIDES.search(expression or ""):
            sample["image"] = PIL.ImageOps.mirror(sample["image"])
            _change_maps(sample, lambda values, column: column.on_mirror(values[:, ::-1]))
        return sample


def draw_expression(sample: dict, rng: np.random.Generator, ignore_index: int = IGNORE_INDEX) -> dict:
    """A copy of a sample with one of its `expressions` as its `expression`, and the `mask` of what that names. Data
    sets do so anew each time with an augmentation; without one, where there is no `expression`. Where `instances` is
    `ignore_index`, and no expression names that number, the mask isn't annotated (-1)."""
    sample = dict(sample)
    instances = sample.get(Panoptic.column)
    expressions, numbers = (sample.pop(column, None) for column in ("expressions", "expression_instances"))
    if instances is not None and expressions is not None and len(expressions):
        place = int(rng.integers(len(expressions)))
        mask, unknown = instances == numbers[place], instances == ignore_index
        if unknown.any() and ignore_index not in numbers:
            mask = np.where(unknown, -1, mask).astype(np.int8)
        sample |= {"expression": expressions[place], Foreground.column: mask}
    return sample


def _change_maps(sample: dict, change: Callable[[np.ndarray, Column], np.ndarray]) -> None:
    for name, column in MAPS.items():
        if sample.get(name) is not None:
            sample[name] = np.ascontiguousarray(change(sample[name], column))


__all__ = [
    "Augmentation",
    "Column",
    "ReadOptions",
    "draw_expression",
    "read_objects",
    "read_person",
    "read_sample",
    "upright_sample",
]
