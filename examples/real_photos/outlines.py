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
"""Classes drawn by hand: polygons in `outlines.json` to class maps, and which photographs are kept back."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw


CLASSES = ("floor", "wall", "ceiling", "door", "window", "table", "chair", "bed", "plant", "person")
IGNORED = "ignored"
IGNORE_INDEX = 255
FILE = Path(__file__).with_name("outlines.json")


def read_outlines(file: str | Path = FILE) -> dict[str, dict]:
    """What was drawn, by the photograph's name.

    Args:
        file: JSON: for each photograph `classes`, a list of `{"label": a class or "ignored", "points": [[x, y], ...]}`
            from what is behind to what is before it, and perhaps `no_depth`, a list of lists of points.

    Raises:
        ValueError: anything else.
    """
    outlines = json.loads(Path(file).read_text(encoding="utf-8"))
    if not isinstance(outlines, dict):
        raise ValueError(f"{file} must be an object with an entry for each photograph, got {type(outlines).__name__}")
    for name, entry in outlines.items():
        where = f"{file}, photograph {name!r}"
        if not isinstance(entry, dict) or not isinstance(entry.get("classes"), list):
            raise ValueError(f"{where} must have a list `classes`")
        for polygon in entry["classes"]:
            label = polygon.get("label") if isinstance(polygon, dict) else None
            if label not in (*CLASSES, IGNORED):
                raise ValueError(f"{where}: `label` must be one of {[*CLASSES, IGNORED]}, got {label!r}")
            _check_points(polygon.get("points"), f"{where}, {label}")
        for points in entry.get("no_depth", []):
            _check_points(points, f"{where}, no_depth")
    return outlines


def _check_points(points: object, where: str) -> None:
    pairs = isinstance(points, list) and all(isinstance(point, list) and len(point) == 2 for point in points)
    if not pairs or len(points) < 3 or not np.isfinite(np.asarray(points, dtype=float)).all():
        raise ValueError(f"{where}: `points` must be three pairs [x, y] of pixels or more, got {points!r}")


def draw(polygons: Sequence[tuple[int, Sequence]], size: tuple[int, int], background: int) -> np.ndarray:
    """Polygons as a map.

    Args:
        polygons: of each its value, 0 to 255, and its points (x, y); a later one covers those before it. A point is a
            pixel, and the outline belongs to its polygon.
        size: (height, width).
        background: value of what no polygon covers.

    Returns:
        `uint8 [height, width]`.
    """
    canvas = PIL.Image.new("L", size[::-1], background)
    pen = PIL.ImageDraw.Draw(canvas)
    for value, points in polygons:
        pen.polygon([tuple(point) for point in points], fill=value, outline=value)
    return np.array(canvas)


def draw_classes(entry: Mapping, size: tuple[int, int]) -> np.ndarray:
    """The class map of an entry of [`read_outlines`]: places in `CLASSES`, `IGNORE_INDEX` where nothing was drawn or
    what was drawn is unclear."""
    values = {**{name: place for place, name in enumerate(CLASSES)}, IGNORED: IGNORE_INDEX}
    polygons = [(values[polygon["label"]], polygon["points"]) for polygon in entry["classes"]]
    return draw(polygons, size, IGNORE_INDEX)


def draw_no_depth(entry: Mapping, size: tuple[int, int]) -> np.ndarray:
    """Where the depth of a photograph is known to be wrong, `bool [height, width]`."""
    return draw([(1, points) for points in entry.get("no_depth", [])], size, 0).astype(bool)


def kept_back(outlines: Mapping[str, Mapping]) -> set[str]:
    """The photographs that are measured and never looked at: every second one by name, from the second on."""
    return set(sorted(outlines)[1::2])
