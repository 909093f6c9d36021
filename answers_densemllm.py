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
"""Answers in words as objects: boxes, polygons, poses, counts and run lengths, in pixels of the image.

Every function reads the text once, from left to right; what is malformed or cut off is not an error: it is left out,
and returned as `unparsed`.
"""

import operator
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch


MPII_KEYPOINTS = (
    "right ankle", "right knee", "right hip", "left hip", "left knee", "left ankle", "pelvis", "thorax", "upper neck",
    "head top", "right wrist", "right elbow", "right shoulder", "left shoulder", "left elbow", "left wrist",
)  # fmt: skip
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
LARGER_WORDS = ("hundred", "hundreds", "thousand", "thousands", "million", "millions", "dozen", "dozens")

_TOKEN = re.compile(r"<(/?)(ref|box|ins|poly|person|kpt)>|<(x|y)_(\d{1,6})>|<v_([01])\.0>")
_RUN = re.compile(r"[\s,]*\(\s*(\d+)\s*,\s*(\d+)\s*\)")
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)|\d+|[a-z]+")
_MOST_DIGITS = 18  # of a number that is read: Python's conversion of very long ones is not linear, and it has a limit
_MOST_POINTS = 4096  # of a polygon: the time to draw one is not linear in them
_MOST_UNPARSED = 1000
_MOST_LETTERS = 500  # of a name: the time to compose one is not linear in its accents
_REF = re.compile(rf"<ref>([^<]{{0,{_MOST_LETTERS}}})</ref>")


def plain_name(name: str) -> str:
    """A name in Unicode's composed form (NFC: é is one character, however it was typed), its words a blank apart."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def normalize_name(name: str) -> str:
    """[`plain_name`] in lower case: the form in which names are compared, and in which classes are tokenised."""
    return unicodedata.normalize("NFC", plain_name(name).lower())


def all_refs(text: str) -> list[str]:
    """Names in `<ref>name</ref>`, as [`normalize_name`] makes them, in order of appearance, repeated ones
    as well."""
    names = (normalize_name(name) for name in _REF.findall(text))
    return [name for name in names if name]


def parse_refs(text: str) -> list[str]:
    """Those of [`all_refs`], each once."""
    return list(dict.fromkeys(all_refs(text)))


def _items(text: str) -> tuple[list[tuple], str | None]:
    """The complete pieces of a text in their order, and the rest.

    Pieces are ("ref", name), ("box", points), ("poly", points), ("ins", polygons), ("person", box, keypoints) and
    ("point", (x, y)); points are pairs of whole numbers, a key point is (x, y, visible). Boxes and polygons inside a
    person or an instance are part of it.
    """
    if not isinstance(text, str):
        raise TypeError(f"`text` must be a string, got {type(text).__name__}")
    items, broken = [], []
    outer = leaf = None  # what is open: (name, start, content); a leaf may stand in an outer
    x = visible = None

    def leave(piece, end):
        if piece is not None:
            broken.append(text[piece[1] : min(end, piece[1] + _MOST_UNPARSED)])

    for match in _TOKEN.finditer(text):
        closing, name, axis, number, visibility = match.groups()
        if axis == "x":
            x = int(number)
        elif axis == "y":
            if x is not None and leaf is not None and leaf[0] != "ref":
                leaf[2].append((x, int(number)))
            elif x is not None and leaf is None and outer is None:
                items.append(("point", (x, int(number))))
            x = None
        elif visibility is not None:
            visible = int(visibility)
        elif name in ("ins", "person"):
            leave(leaf, match.start())
            leaf = x = None
            if not closing:
                leave(outer, match.start())
                outer = (name, match.start(), [])
            elif outer is not None and outer[0] == name and _whole(outer):
                items.append(_outer_item(outer))
                outer = None
            else:
                leave(outer, match.end())
                outer = None
        elif not closing:
            leave(leaf, match.start())
            leaf, x, visible = (name, match.start(), []), None, None
        elif leaf is not None and leaf[0] == name:
            if name == "ref":
                words = text[leaf[1] + len("<ref>") : match.start()]
                piece = (name, plain_name(words) if len(words) <= _MOST_LETTERS else "")
                complete = bool(piece[1])
            elif name == "kpt":
                piece = (name, (*leaf[2][0], visible)) if len(leaf[2]) == 1 and visible is not None else None
                complete = piece is not None
            else:
                piece = (name, leaf[2])
                complete = _has_area(leaf[2]) if name == "box" else 2 < len(leaf[2]) <= _MOST_POINTS
            if not complete:
                leave(leaf, match.end())
            elif outer is not None and name != "ref":
                outer[2].append(piece)
            else:
                items.append(piece)
            leaf = x = None
        else:
            leave(leaf, match.end())
            leaf = x = None
    leave(outer if outer is not None else leaf, len(text))
    return items, " ".join(broken)[:_MOST_UNPARSED] if broken else None


def _has_area(points: list[tuple[int, int]]) -> bool:
    return len(points) == 2 and points[0][0] != points[1][0] and points[0][1] != points[1][1]


def _whole(outer: tuple) -> bool:
    kinds = [piece[0] for piece in outer[2]]
    if outer[0] == "ins":
        return bool(kinds) and set(kinds) == {"poly"}
    return kinds == ["box"] + ["kpt"] * len(MPII_KEYPOINTS)


def _outer_item(outer: tuple) -> tuple:
    if outer[0] == "ins":
        return ("ins", [points for _, points in outer[2]])
    (_, box), *keypoints = outer[2]
    return ("person", box, [keypoint for _, keypoint in keypoints])


class _Scale:
    """From pixels of the resized image to pixels of the image, clipped to it."""

    def __init__(self, image_size, resized_size) -> None:
        for name, size in (("image_size", image_size), ("resized_size", resized_size)):
            if len(size) != 2 or min(size) < 1:
                raise ValueError(f"`{name}` must be (height, width) in pixels, at least 1, got {tuple(size)}")
        (self.height, self.width), (height, width) = image_size, resized_size
        self.factors = (self.width / width, self.height / height)

    def point(self, point) -> tuple[float, float]:
        x, y = (value * factor for value, factor in zip(point[:2], self.factors, strict=True))
        return min(x, float(self.width)), min(y, float(self.height))

    def box(self, points) -> list[float]:
        (x0, y0), (x1, y1) = (self.point(point) for point in points)
        return [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]


def _boxes(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def _labelled_boxes(items: list[tuple], scale: _Scale) -> Iterator[tuple[str | None, list[float]]]:
    """Boxes that lie within the image, with the name before them."""
    name = None
    for kind, content, *_ in items:
        if kind == "ref":
            name = content
        elif kind == "box":
            box = scale.box(content)
            if box[0] < box[2] and box[1] < box[3]:
                yield name, box


def parse_grounding(text: str, image_size: tuple[int, int], resized_size: tuple[int, int]) -> dict:
    """Boxes, `<box><x_155><y_154><x_221><y_206></box>`.

    Args:
        text: what the model answered; its coordinates are pixels of the resized image.
        image_size: `(height, width)` of the image in pixels.
        resized_size: `(height, width)` of what the model saw.

    Returns:
        `boxes`: `float32 [n, 4]`, (x0, y0, x1, y1) in pixels of the image, within it; boxes without area are left out.
        `unparsed`: what was malformed or cut off, or `None`.

    Raises:
        TypeError: `text` is not a string.
        ValueError: a size below 1.
    """
    items, rest = _items(text)
    found = _labelled_boxes(items, _Scale(image_size, resized_size))
    return {"boxes": _boxes([box for _, box in found]), "unparsed": rest}


def parse_detection(text: str, image_size: tuple[int, int], resized_size: tuple[int, int]) -> dict:
    """Boxes of named objects, `<ref>bowl</ref><box>..</box><box>..</box><ref>cup</ref><box>..</box>`.

    Args and errors as for [`parse_grounding`].

    Returns:
        `boxes` and `unparsed` as there, and `labels`, a name in lower case for each box ("" before the first name).
    """
    items, rest = _items(text)
    found = list(_labelled_boxes(items, _Scale(image_size, resized_size)))
    labels = [normalize_name(name or "") for name, _ in found]
    return {"boxes": _boxes([box for _, box in found]), "labels": labels, "unparsed": rest}


class PolygonMasks(Sequence):
    """The masks of objects with outlines, each drawn when it is asked for: an answer may name more objects than there
    is memory for their masks. `torch.stack(list(masks))` is all of them, where there are some.

    Args:
        objects: for each object a list of `float [k, 2]` arrays, (x, y) in pixels of the image.
        image_size: `(height, width)` of the image in pixels.

    An item is `bool [height, width]`, true within any polygon of its object; a slice is a [`PolygonMasks`].
    """

    def __init__(self, objects: list[list[np.ndarray]], image_size: tuple[int, int]):
        self.objects = objects
        self.image_size = tuple(image_size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(objects, height, width)`."""
        return len(self.objects), *self.image_size

    def __len__(self) -> int:
        return len(self.objects)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> "PolygonMasks": ...

    def __getitem__(self, index: int | slice) -> "torch.Tensor | PolygonMasks":
        if isinstance(index, slice):
            return PolygonMasks(self.objects[index], self.image_size)
        mask = PIL.Image.new("1", self.image_size[::-1])
        draw = PIL.ImageDraw.Draw(mask)
        for polygon in self.objects[index]:
            draw.polygon([tuple(point) for point in polygon.tolist()], fill=1)
        return torch.from_numpy(np.array(mask))


def parse_polygons(text: str, image_size: tuple[int, int], resized_size: tuple[int, int]) -> dict:
    """Outlines, `<ins><poly><x_..><y_..>..</poly></ins>`: the polygons of one `<ins>` are one object; a polygon
    outside any is one by itself.

    Args and errors as for [`parse_grounding`].

    Returns:
        `polygons`: for each object a list of `float32 [k, 2]` arrays, (x, y) in pixels of the image. `labels`: the
        name before it, or `None`. `boxes`: `float32 [n, 4]` around the objects. `masks`: a [`PolygonMasks`] of
        `bool [height, width]` masks. `unparsed`: see [`parse_grounding`]; a polygon of more than 4096 points, too.
    """
    items, rest = _items(text)
    scale = _Scale(image_size, resized_size)
    objects, labels, name = [], [], None
    for kind, content, *_ in items:
        if kind == "ref":
            name = content
        elif kind in ("ins", "poly"):
            polygons = content if kind == "ins" else [content]
            objects.append([np.array([scale.point(point) for point in points], np.float32) for points in polygons])
            labels.append(name)
    boxes = []
    for polygons in objects:
        points = np.concatenate(polygons)
        boxes.append([*points.min(axis=0).tolist(), *points.max(axis=0).tolist()])
    masks = PolygonMasks(objects, image_size)
    return {"polygons": objects, "labels": labels, "boxes": _boxes(boxes), "masks": masks, "unparsed": rest}


def parse_pose(text: str, image_size: tuple[int, int], resized_size: tuple[int, int]) -> dict:
    """People, `<person><box>..</box><kpt><x_..><y_..><v_1.0></kpt> x16</person>`, key points in MPII's order.

    Args and errors as for [`parse_grounding`].

    Returns:
        `keypoints`: `float32 [n, 16, 3]`, (x, y) in pixels of the image and 1 where visible, else 0. `boxes`:
        `float32 [n, 4]`. `keypoint_names`: the sixteen. `unparsed`: see [`parse_grounding`].
    """
    items, rest = _items(text)
    scale = _Scale(image_size, resized_size)
    people = [item for item in items if item[0] == "person"]
    keypoints = [[(*scale.point(point), float(point[2])) for point in points] for _, _, points in people]
    return {
        "keypoints": torch.tensor(keypoints, dtype=torch.float32).reshape(-1, len(MPII_KEYPOINTS), 3),
        "boxes": _boxes([scale.box(box) for _, box, _ in people]),
        "keypoint_names": MPII_KEYPOINTS,
        "unparsed": rest,
    }


def _first_number(text: str) -> int | None:
    words = (match.group() for match in _NUMBER.finditer(text.lower()))
    for word in words:
        if word[0].isdigit():
            digits = word.replace(",", "")
            number, after = int(digits) if len(digits) <= _MOST_DIGITS else None, next(words, "")
        elif word in NUMBER_WORDS:
            number, after = NUMBER_WORDS.index(word), next(words, "")
        elif word in TENS_WORDS:
            number, after = 20 + 10 * TENS_WORDS.index(word), next(words, "")
            if after in NUMBER_WORDS[1:10]:
                number, after = number + NUMBER_WORDS.index(after), next(words, "")
        else:
            continue
        return None if after in LARGER_WORDS else number  # three hundred is not three
    return None


def parse_counting(text: str, image_size: tuple[int, int], resized_size: tuple[int, int]) -> dict:
    """How many: boxes, or points where there is no box, or the first number of the text, in digits or in words below a
    hundred.

    Args and errors as for [`parse_grounding`].

    Returns:
        `count`: `int`, or `None` where the text has none of these, or a number of more than 18 digits. `boxes`:
        `float32 [n, 4]`. `points`: `float32 [n, 2]`. `unparsed`: see [`parse_grounding`].
    """
    items, rest = _items(text)
    scale = _Scale(image_size, resized_size)
    boxes = [box for _, box in _labelled_boxes(items, scale)]
    points = [scale.point(item[1]) for item in items if item[0] == "point"]
    count = len(boxes) or len(points)
    if not count:
        count = _first_number(_TOKEN.sub(" ", text))
    points = torch.tensor(points, dtype=torch.float32).reshape(-1, 2)
    return {"count": count, "boxes": _boxes(boxes), "points": points, "unparsed": rest}


def parse_run_length(text: str, image_size: tuple[int, int]) -> dict:
    """A map in words, `<ref>road</ref><ref>car</ref>..<mask>(v,n),(v,n)</mask>`: n pixels of the v-th name, row by row
    over the whole image.

    Args:
        text: what the model answered.
        image_size: `(height, width)` of the image in pixels.

    Returns:
        `segmentation`: `int64 [height, width]`, positions in the names; -1 where the text ends too early or names no
        class. `labels`: position to name. `unparsed`: what is left of a mask that is cut off, or `None`.

    Raises:
        TypeError: `text` is not a string.
        ValueError: a size below 1.
    """
    _Scale(image_size, image_size)
    items, rest = _items(text)
    start = text.find("<mask>")
    head = text if start < 0 else text[:start]
    names = dict(enumerate(item[1] for item in _items(head)[0] if item[0] == "ref"))
    total = image_size[0] * image_size[1]
    flat = np.full(total, -1, dtype=np.int64)
    if start < 0:
        return {"segmentation": torch.from_numpy(flat.reshape(image_size)), "labels": names, "unparsed": rest}
    end = text.find("</mask>", start)
    values, lengths, filled, position = [], [], 0, start + len("<mask>")
    # The place of a run is the sum of those before it: after one that can't be read, no place is known.
    while filled < total and (match := _RUN.match(text, position, len(text) if end < 0 else end)):
        value, length = (int(digits) if len(digits) <= _MOST_DIGITS else None for digits in match.groups())
        values.append(value if value in names else -1)
        lengths.append(total - filled if length is None else min(length, total - filled))
        filled += lengths[-1]
        position = match.end()
    flat[:filled] = np.repeat(np.array(values, dtype=np.int64), lengths)
    if end < 0 or filled < total:
        left = text[position : (len(text) if end < 0 else end)].lstrip(",")[:_MOST_UNPARSED]
        rest = left or f"the mask ends after {filled} of {total} pixels"
    return {"segmentation": torch.from_numpy(flat.reshape(image_size)), "labels": names, "unparsed": rest}


# ---- COCO's run lengths ----


def encode_rle(mask: np.ndarray) -> dict:
    """A mask as COCO's compressed run lengths, the form of `pycocotools.mask.encode`.

    Args:
        mask: booleans `[height, width]`.

    Returns:
        `size`: `[height, width]`. `counts`: the lengths of runs of 0 and 1 in turn, column by column, each as its
        difference to the one before the last, in groups of 5 bits as ASCII.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"`mask` must be booleans [height, width], got {mask.dtype} {mask.shape}")
    flat = np.concatenate([[False], mask.ravel(order="F")])
    edges = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]), [flat.size - 1]])
    values = np.diff(edges)
    values[3:] -= values[1:-2].copy()
    digits, kept = [], []
    more = np.ones(len(values), dtype=bool)
    while more.any():
        low = values & 31
        values = values >> 5
        goes_on = np.where(low & 16, values != -1, values != 0)
        digits.append(np.where(goes_on, low | 32, low) + 48)
        kept.append(more)
        more = more & goes_on
    characters = np.stack(digits, axis=1)[np.stack(kept, axis=1)].astype(np.uint8)
    return {"size": list(mask.shape), "counts": characters.tobytes().decode("ascii")}


def decode_rle(rle: dict, max_pixels: int = 178_956_970) -> np.ndarray:
    """The inverse of [`encode_rle`]: `bool [height, width]`. Every run is checked before the mask is made.

    Args:
        rle: `size`, `(height, width)`, and `counts`, `str` or `bytes`; see [`encode_rle`].
        max_pixels: a larger mask is refused, as the image processor refuses a larger image.

    Raises:
        TypeError: `rle` has no such entries.
        ValueError: a size below 0 or above `max_pixels`; run lengths that are not such a text, or don't fill the mask.
    """
    if not (isinstance(rle, dict) and {"size", "counts"} <= set(rle) and isinstance(rle["counts"], (str, bytes))):
        raise TypeError("`rle` must be a dict with `size`, (height, width), and `counts`, COCO's compressed run "
                        f"lengths as a string, got {str(rle)[:80]}")  # fmt: skip
    try:
        height, width = (operator.index(edge) for edge in rle["size"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"`size` must be two integers (height, width), got {str(rle['size'])[:80]}") from error
    if min(height, width) < 0 or height * width > max_pixels:
        raise ValueError(
            f"`size` must be (height, width) of at least 0 and at most `max_pixels` = {max_pixels} pixels in all, got "
            f"{height}x{width}"
        )
    counts = rle["counts"].encode(errors="replace") if isinstance(rle["counts"], str) else rle["counts"]
    digits = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    if not len(digits) and height * width == 0:
        return np.zeros((height, width), dtype=bool)
    last = (digits & 32) == 0
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or not last[-1]:
        raise ValueError(f"`counts` must be COCO's compressed run lengths, got {counts[:40]!r}")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    # 12 groups are 60 bits, which int64 holds.
    values = np.add.reduceat((digits & 31) << (5 * place.clip(max=11)), starts)
    values -= np.where((digits[ends] & 16) != 0, 1 << (5 * (place[ends].clip(max=11) + 1)), 0)
    if place.max() > 11 or abs(values).max() > height * width:
        raise ValueError(f"`counts` has a number that is larger than a mask of `size` {height}x{width}")
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    # Sums of int64 wrap, those of float64 don't, and are exact up to 2**53.
    if values.min() < 0 or values.max() > height * width or values.sum(dtype=np.float64) != height * width:
        raise ValueError(f"`counts` must have runs of at least 0 pixels that fill `size`, {height}x{width}")
    return np.repeat(np.arange(len(values)) % 2 == 1, values).reshape(width, height).T
