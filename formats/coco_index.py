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
"""JSON files of COCO's kind, read once: where each annotation stands in the file, and none of it kept."""

import json
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL.Image


WINDOW = 1 << 23  # bytes of a file that are looked at together
NO_BLANK = re.compile(r"[^ \t\n\r]")
DECODER = json.JSONDecoder()
LISTS = ("images", "annotations", "categories")
NO_ID = -1


@dataclass(frozen=True, eq=False)
class CocoIndex:
    """What is kept of a JSON file of COCO's kind: its images and classes, and where the annotations of each image
    stand. They are read from the file again when they are asked for: 860,000 annotations take 20 MB so.

    Attributes:
        path: of the file.
        categories: as they stand in the file.
        files: `file_name` of each image.
        sizes: `[num_images, 2]`, height and width of each in pixels; 0 where the file doesn't say.
        places: id of an image to its place in `files`.
        firsts: `[num_images + 1]`: an image has the annotations from its number to the next one.
        starts, lengths: `[num_annotations]`, bytes of the file, ordered by image, then as they stand in the file.
        ids: `[num_annotations]`, ids of the annotations; -1 where they have no number.
        outlined: how many annotations have a `segmentation`, and not only a box.
    """

    path: str
    categories: list[dict[str, Any]]
    files: list[str]
    sizes: np.ndarray
    places: dict[Any, int]
    firsts: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    ids: np.ndarray
    outlined: int

    @property
    def id2label(self) -> dict[int, str]:
        """Class id to name."""
        return {category["id"]: category["name"] for category in self.categories}

    def annotations(self, place: int) -> list[dict[str, Any]]:
        """The annotations of an image, as they stand in the file."""
        return self._read(range(self.firsts[place], self.firsts[place + 1]))

    def annotations_of(self, place: int, ids: tuple[int, ...]) -> list[dict[str, Any]]:
        """Those annotations of an image that have one of the ids."""
        first, end = self.firsts[place], self.firsts[place + 1]
        return self._read(first + np.flatnonzero(np.isin(self.ids[first:end], ids)))

    def _read(self, numbers: Any) -> list[dict[str, Any]]:
        found = []
        with open(self.path, "rb") as file:
            for number in numbers:
                file.seek(int(self.starts[number]))
                found.append(json.loads(file.read(int(self.lengths[number]))))
        return found


def index_json(path: str | Path, where: str) -> CocoIndex:
    """The index of a JSON file with COCO's `images`, `annotations` and `categories`; it is read once, piece by piece.

    Args:
        path: of the file.
        where: how messages name the data set.

    Raises:
        ValueError: the file has something else, or an annotation of an image that it lacks.
    """
    categories: list[dict[str, Any]] = []
    files: list[str] = []
    places: dict[Any, int] = {}
    sizes, starts, lengths, ids = array("i"), array("q"), array("i"), array("q")
    outlined = 0
    owners: list[Any] = []  # ids of images: annotations may stand in front of them
    try:
        with open(path, "rb") as file:
            for name, value, start, length in _elements(_Reader(file), LISTS):
                if name == "images":
                    places[value["id"]] = len(files)
                    files.append(value["file_name"])
                    sizes.extend((int(value.get("height") or 0), int(value.get("width") or 0)))
                elif name == "annotations":
                    number = value.get("id", NO_ID)
                    ids.append(number if isinstance(number, int) else NO_ID)
                    owners.append(value["image_id"])
                    outlined += bool(value.get("segmentation"))
                    starts.append(start)
                    lengths.append(length)
                else:
                    categories.append({**value, "id": int(value["id"]), "name": str(value["name"]).strip()})
        of_images = np.fromiter((places[owner] for owner in owners), np.int64, len(owners))
    except KeyError as error:
        raise ValueError(f"{where}: {path} has no `{error.args[0]}`, which it refers to, or which is needed") from None
    except (AttributeError, OverflowError, TypeError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{where}: {path} must be a JSON object with COCO's {LISTS} ({error})") from error
    if not files or not categories or len(places) < len(files):
        raise ValueError(f"{where}: {path} must have `images`, each id once, and `categories`")
    if any(category["id"] < 0 or not category["name"] for category in categories):
        raise ValueError(f"{where}: {path}: `categories` must have ids of at least 0 and names")
    order = np.argsort(of_images, kind="stable")
    firsts = np.concatenate([[0], np.bincount(of_images, minlength=len(files)).cumsum()]).astype(np.int64)
    return CocoIndex(
        str(path),
        categories,
        files,
        np.array(sizes, np.int32).reshape(-1, 2),
        places,
        firsts,
        np.array(starts, np.int64)[order],
        np.array(lengths, np.int32)[order],
        np.array(ids, np.int64)[order],
        outlined,
    )


class JsonList:
    """The elements of a JSON file that is one list, each read from the file when it is asked for: of an element 12
    bytes are kept.

    Args:
        path: of the file, which is read once, piece by piece.
        where: how messages name the data set.
        keep: of an element, whether it is one of the list's; all where left out.

    Raises:
        ValueError: the file has something else.
    """

    def __init__(self, path: str | Path, where: str, keep: Callable[[Any], bool] | None = None):
        self.path = str(path)
        starts, lengths = array("q"), array("i")
        try:
            with open(path, "rb") as file:
                for value, start, length in _list_elements(_Reader(file)):
                    if keep is None or keep(value):
                        starts.append(start)
                        lengths.append(length)
        except (UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"{where}: {path} must be a JSON list ({error})") from error
        self.starts, self.lengths = np.array(starts, np.int64), np.array(lengths, np.int32)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, place: int) -> Any:
        with open(self.path, "rb") as file:
            file.seek(int(self.starts[place]))
            return json.loads(file.read(int(self.lengths[place])))


class _Reader:
    """The values of a JSON file, one after the other; of the file no more is in memory than a window.

    The text is taken for latin-1, so that a character is a byte: what JSON's structure consists of is ASCII in UTF-8
    as well, and a value with anything else is decoded once more.
    """

    def __init__(self, file: IO[bytes]):
        self.file, self.text, self.place, self.start = file, "", 0, 0
        if file.read(3) != b"\xef\xbb\xbf":  # a byte order mark
            file.seek(0)
        self.start = file.tell()

    def peek(self) -> str:
        """The next character that is no blank."""
        while True:
            found = NO_BLANK.search(self.text, self.place)
            if found is not None:
                self.place = found.start()
                return found[0]
            self.place = len(self.text)
            if not self._grow():
                raise ValueError(f"it ends at byte {self.start + self.place}, in the middle")

    def take(self, accepted: str) -> str:
        """The next character that is no blank, which must be one of `accepted`; the place is behind it then."""
        found = self.peek()
        if found not in accepted:
            raise ValueError(f"at byte {self.start + self.place} there must be one of {accepted!r}, not {found!r}")
        self.place += 1
        return found

    def value(self) -> tuple[Any, int, int]:
        """The next value, and its first byte and length in the file; the place is behind it then."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.place)
            except JSONDecodeError as error:
                if not self._grow():
                    raise ValueError(f"at byte {self.start + error.pos}: {error.msg}") from error
            else:
                # A number may go on behind the window: `1` with `.5` or `e-5`, of which `.` or `e-` may be there.
                if end + 2 < len(self.text) or not self._grow():
                    break
        raw, start = self.text[self.place : end], self.start + self.place
        self.place = end
        return (value if raw.isascii() else json.loads(raw.encode("latin-1"))), start, len(raw)

    def _grow(self) -> bool:
        """More of the file behind what is left of the window; `False` at the file's end."""
        kept = self.text[self.place :]
        more = self.file.read(max(WINDOW, len(kept)))
        if more:
            self.start, self.text, self.place = self.start + self.place, kept + more.decode("latin-1"), 0
        return bool(more)


def _elements(reader: _Reader, names: tuple[str, ...]) -> Iterator[tuple[str, Any, int, int]]:
    """The elements of those lists of a JSON object that are called one of `names`: name, value, first byte, length."""
    reader.take("{")
    if reader.peek() == "}":
        return
    while True:
        name, _, _ = reader.value()
        reader.take(":")
        if name in names and reader.peek() == "[":
            for element in _list_elements(reader):
                yield name, *element
        else:
            reader.value()
        if reader.take(",}") == "}":
            return


def _list_elements(reader: _Reader) -> Iterator[tuple[Any, int, int]]:
    """The elements of a list: value, first byte, length."""
    reader.take("[")
    if reader.peek() == "]":
        reader.take("]")
        return
    while True:
        yield reader.value()
        if reader.take(",]") == "]":
            return


def object_mask(annotation: dict[str, Any], height: int, width: int, where: str) -> np.ndarray:
    """The pixels of an annotation's `segmentation`, polygons or run lengths, as booleans `[height, width]`; none where
    it has only a box.

    Raises:
        ImportError: pycocotools isn't installed.
        ValueError: it is of another size, or nothing of the kind.
    """
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ImportError("pycocotools is needed for COCO's masks: `pip install densemllm[datasets]`") from error
    outline = annotation.get("segmentation")
    if not outline:
        return np.zeros((height, width), dtype=bool)
    try:
        if isinstance(outline, dict):
            if tuple(outline["size"]) != (height, width):
                raise ValueError(f"its size is {outline['size']}, that of the image {[height, width]}")
            is_text = isinstance(outline["counts"], (str, bytes))
            runs = outline if is_text else coco_mask.frPyObjects(outline, height, width)
        else:
            polygons = outline if isinstance(outline[0], list) else [outline]
            polygons = [polygon for polygon in polygons if len(polygon) >= 6]  # fewer than three points are a line
            if not polygons:
                return np.zeros((height, width), dtype=bool)
            runs = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        return coco_mask.decode(runs).astype(bool)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: the annotation {annotation.get('id')} must have polygons or run lengths ({error})"
        ) from error


def image_size(index: CocoIndex, place: int, path: str) -> tuple[int, int]:
    """Height and width of an image: as the JSON file says, or the image itself where that doesn't."""
    height, width = index.sizes[place].tolist()
    if height > 0 and width > 0:
        return height, width
    with PIL.Image.open(path) as image:
        return image.height, image.width


def number_objects(count: int, ignore_index: int) -> list[int]:
    """Numbers from 1 on for `count` objects, without the one that stands for what isn't annotated."""
    return [number + (0 < ignore_index <= number) for number in range(1, count + 1)]


__all__ = ["CocoIndex", "JsonList", "image_size", "index_json", "number_objects", "object_mask"]
