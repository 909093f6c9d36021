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
"""Annotated maps to sparse multi-label targets of vision tokens (paper, NTP-M); it knows nothing of tasks."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from .loss_densemllm import IGNORED


IGNORE_INDEX = 255  # of pixels without annotation, where nobody says another one


@dataclass(frozen=True)
class Targets:
    """One kind of annotation of one image, before it is shared out to vision tokens.

    Attributes:
        values: integers `[height, width]`.
        label_ids: the vocabulary ids of each value: all of them become targets of a token in whose cell the value is.
        ignored: the value of pixels without annotation.
        annotated: names of the sets of ids that this kind annotates (M_i in the paper): ids by themselves, or
            `"text"`, all that text is made of.
        needs_share: whether `min_label_share` holds for it. Values whose neighbours are nearly right, such as bins of
            depth, all count.
    """

    values: np.ndarray
    label_ids: Mapping[int, list[int]]
    ignored: int
    annotated: tuple[tuple[int, ...] | str, ...]
    needs_share: bool = True


def nearest_resize(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Nearest-neighbour resize of `[H, W]` by pixel centres: the labels' side of the resize that an image gets."""
    rows = ((np.arange(height) + 0.5) * (values.shape[0] / height)).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * (values.shape[1] / width)).astype(np.int64)
    return values[rows[:, None], columns[None, :]]


def check_ignore_index(ignore_index: int, id2label: dict[int, str] | None) -> None:
    """Refuse a value for pixels without annotation that is a class, which would then be neither learned nor scored.

    Raises:
        TypeError: `ignore_index` is not an integer.
        ValueError: it is a key of `id2label`.
    """
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, (int, np.integer)):
        raise TypeError(f"`ignore_index` must be an integer, got {ignore_index!r}")
    if id2label is not None and ignore_index in id2label:
        raise ValueError(
            f"`ignore_index` must not be a class of `id2label`, got {ignore_index}, which is "
            f"{id2label[ignore_index]!r}; give another value, such as -1"
        )


def present_values(values: np.ndarray) -> np.ndarray:
    """The values of a map of integers, sorted; a table is much faster than sorting where they are small."""
    if not values.size or values.min() < 0 or values.max() > 2**16:
        return np.unique(values)
    return np.flatnonzero(np.bincount(values.ravel().astype(np.int64, copy=False)))


def index_values(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of a map of integers, sorted, and the index of each element's value among them, `int64`."""
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if high - low > 2**16:
        present, places = np.unique(values, return_inverse=True)
        return present, places.reshape(values.shape)
    places = values.astype(np.int64)
    if low:
        places -= low
    found = np.bincount(places.ravel())
    present = np.flatnonzero(found)
    table = np.zeros(len(found), dtype=np.int64)
    table[present] = np.arange(len(present))
    return present + low, table[places]


def cell_targets(
    targets: Targets, size: tuple[int, int], cell: int, min_label_share: float
) -> tuple[np.ndarray, np.ndarray]:
    """What the cells of one annotated map have, as (token, id) pairs, each once.

    Args:
        targets: the map and the ids of its values.
        size: `(height, width)` in pixels that the image is resized to; the map is, too (nearest neighbour).
        cell: edge of a vision token's cell in pixels.
        min_label_share: share of a cell's annotated pixels that a value needs; the largest always is a target.

    Returns:
        `int64 [n]` numbers of vision tokens, and `int64 [n]` vocabulary ids.
    """
    tokens, values, present = _cell_values(targets, size, cell, min_label_share if targets.needs_share else 0.0)
    if not len(tokens):
        return tokens, values
    label_ids = [targets.label_ids.get(value, []) for value in present.tolist()]
    lengths = np.array([len(entry) for entry in label_ids])
    starts = np.cumsum(lengths) - lengths
    counts = lengths[values]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    ids = np.concatenate([np.asarray(entry, dtype=np.int64) for entry in label_ids])
    ids = ids[np.repeat(starts[values], counts) + within]
    # Two labels of a cell may share a sub-word: each id once.
    tokens, ids = np.unique(np.stack([np.repeat(tokens, counts), ids]), axis=1)
    return tokens, ids


def _cell_values(
    targets: Targets, size: tuple[int, int], cell: int, min_label_share: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(token, place of a value) pairs, and the values that are present."""
    values = nearest_resize(targets.values, *size)
    cells = (np.arange(size[0]) // cell)[:, None] * (size[1] // cell) + (np.arange(size[1]) // cell)[None, :]
    # By their place among the values that the map has: ids may be as large and as sparse as they like.
    present, places = index_values(values)
    n_cells, n_present = size[0] // cell * (size[1] // cell), len(present)
    places += cells * n_present
    if n_cells * n_present <= values.size:
        pixels = np.bincount(places.ravel())
        pairs = np.flatnonzero(pixels)
        pixels = pixels[pairs]
    else:  # a table of all pairs would be larger than the map
        pairs, pixels = np.unique(places, return_counts=True)
    tokens, values = np.divmod(pairs, n_present)
    is_annotated = present[values] != targets.ignored
    tokens, values, pixels = tokens[is_annotated], values[is_annotated], pixels[is_annotated]
    most = np.zeros(n_cells, dtype=np.int64)
    np.maximum.at(most, tokens, pixels)
    needed = np.minimum(min_label_share * np.bincount(tokens, pixels, minlength=n_cells), most)
    kept = pixels >= needed[tokens]
    return tokens[kept], values[kept], present


def id_ranges(ids: np.ndarray) -> np.ndarray:
    """Sorted unique ids to half-open ranges `[n_ranges, 2]`."""
    breaks = np.flatnonzero(np.diff(ids) != 1)
    return np.stack([ids[np.r_[0, breaks + 1]], ids[np.r_[breaks, len(ids) - 1]] + 1], axis=1)


def stack_ranges(tables: list[np.ndarray]) -> torch.Tensor:
    stacked = np.zeros((len(tables), max((len(table) for table in tables), default=0), 2), dtype=np.int64)
    for row, table in enumerate(tables):
        stacked[row, : len(table)] = table
    return torch.from_numpy(stacked)


def pad_ragged(tokens: list[np.ndarray], ids: list[np.ndarray], n_tokens: int) -> torch.Tensor:
    """(token, id) pairs to `[n_tokens, most ids of a token]`, filled up with -100."""
    tokens = np.concatenate([np.zeros(0, dtype=np.int64), *tokens])
    ids = np.concatenate([np.zeros(0, dtype=np.int64), *ids])
    order = np.argsort(tokens, kind="stable")
    tokens, ids = tokens[order], ids[order]
    counts = np.bincount(tokens, minlength=n_tokens)
    column = np.arange(len(tokens)) - np.repeat(np.cumsum(counts) - counts, counts)
    padded = np.full((n_tokens, counts.max(initial=0)), IGNORED, dtype=np.int64)
    padded[tokens, column] = ids
    return torch.from_numpy(padded)


__all__ = [
    "IGNORED",
    "IGNORE_INDEX",
    "Targets",
    "cell_targets",
    "check_ignore_index",
    "id_ranges",
    "index_values",
    "nearest_resize",
    "pad_ragged",
    "present_values",
    "stack_ranges",
]
