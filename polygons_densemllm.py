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
"""Segments as polygons along the edges of their pixels, by shapely: with holes, in several parts, or as one line."""

from collections.abc import Sequence
from typing import Any

import numpy as np


NEEDS = "polygons need shapely: `pip install 'densemllm[polygons]'`"


def _shapely() -> Any:
    try:
        import shapely
    except ImportError as error:
        raise ImportError(NEEDS) from error
    return shapely


def segment_polygons(values: np.ndarray, tolerance: float = 1.0) -> "dict[int, Any]":
    """The segments of a map as geometries of shapely, in pixels: x to the right, y down, (0, 0) the image's corner.

    Neighbours keep their common edges, whatever the tolerance: there are neither gaps nor overlaps. Pixels that touch
    at a corner only are parts of their own.

    Args:
        values: integers `[height, width]`; those below 0 are not a segment.
        tolerance: how far edges may move, roughly, in pixels: corners go whose triangles have an area below its
            square; edges of the image stay. 0: the polygons are exactly the pixels.

    Returns:
        a valid `MultiPolygon` by each number that is there.

    Raises:
        ImportError: shapely is not installed.
    """
    shapely = _shapely()
    faces = shapely.get_parts(shapely.polygonize(_edges(shapely, values)))
    inside = [_number_inside(shapely, face, values) for face in faces]
    if tolerance > 0:
        faces = shapely.coverage_simplify(faces, tolerance, simplify_boundary=False)
    else:
        faces = shapely.simplify(faces, 0)  # only what lies on a straight line
    faces = shapely.orient_polygons(faces)  # as GeoJSON asks for it: outlines one way round, holes the other
    parts: dict[int, list] = {}
    for number, face in zip(inside, faces, strict=True):
        if number >= 0:
            parts.setdefault(number, []).append(face)
    return {number: shapely.multipolygons(parts[number]) for number in sorted(parts)}


def _edges(shapely: Any, values: np.ndarray) -> Any:
    """Lines between different numbers and around the map, cut where another line meets them."""
    height, width = values.shape
    across = np.ones((height + 1, width), dtype=bool)  # [y, x]: from (x, y) to (x + 1, y)
    across[1:-1] = values[1:] != values[:-1]
    down = np.ones((height, width + 1), dtype=bool)  # [y, x]: from (x, y) to (x, y + 1)
    down[:, 1:-1] = values[:, 1:] != values[:, :-1]
    meets_down = np.zeros((height + 1, width + 1), dtype=bool)
    meets_down[1:] |= down
    meets_down[:-1] |= down
    meets_across = np.zeros_like(meets_down)
    meets_across[:, 1:] |= across
    meets_across[:, :-1] |= across
    lines = []
    for edges, meets, is_across in ((across, meets_down, True), (down.T, meets_across.T, False)):
        # Along each row: a line begins where the one before ends, which is where it is met.
        begins = edges & np.concatenate([np.ones_like(edges[:, :1]), ~edges[:, :-1] | meets[:, 1:-1]], axis=1)
        ends = edges & np.concatenate([~edges[:, 1:] | meets[:, 1:-1], np.ones_like(edges[:, :1])], axis=1)
        (row, first), (_, last) = np.nonzero(begins), np.nonzero(ends)
        points = np.stack([np.stack([first, row], 1), np.stack([last + 1, row], 1)], axis=1)
        lines.append(points if is_across else points[..., ::-1])
    return shapely.linestrings(np.concatenate(lines).astype(np.float64))


def _number_inside(shapely: Any, face: Any, values: np.ndarray) -> int:
    """The number of the pixels of a face: of the one below and to the right of its highest corner, the leftmost."""
    corners = shapely.get_coordinates(shapely.get_exterior_ring(face))
    x, y = corners[np.lexsort((corners[:, 0], corners[:, 1]))[0]]
    return int(values[int(y), int(x)])


def simple_rings(polygons: Any) -> list[np.ndarray]:
    """A geometry as rings without holes, `float64 [n, 2]` of x and y, the first point not repeated: what COCO and YOLO
    can say. A part with holes is cut through these.

    Args:
        polygons: of [`segment_polygons`].
    """
    shapely = _shapely()
    rings, waiting = [], list(shapely.get_parts(polygons))[::-1]
    while waiting:
        polygon = waiting.pop()
        holes = shapely.get_num_interior_rings(polygon)
        if holes == 0:
            rings.append(shapely.get_coordinates(polygon)[:-1])
            continue
        left, top, right, bottom = shapely.bounds(polygon)
        hole = shapely.bounds(shapely.get_interior_ring(polygon, holes // 2))
        middle = (hole[0] + hole[2]) / 2
        halves = [shapely.box(left, top, middle, bottom), shapely.box(middle, top, right, bottom)]
        pieces = shapely.get_parts(shapely.intersection(polygon, halves))
        waiting += [piece for piece in pieces if shapely.get_type_id(piece) == 3][::-1]  # 3: with an area
    return rings


def joined_ring(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Rings as one, `float64 [n, 2]`: from each a line goes to the next and back, which has no area."""
    whole = np.asarray(rings[0])
    for ring in rings[1:]:
        gaps = ((whole[:, None] - ring[None]) ** 2).sum(axis=-1)
        here, there = np.unravel_index(gaps.argmin(), gaps.shape)
        around = np.roll(ring, -there, axis=0)
        whole = np.concatenate([whole[: here + 1], around, around[:1], whole[here:]])
    return whole


__all__ = ["joined_ring", "segment_polygons", "simple_rings"]
