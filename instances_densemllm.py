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
"""Instances without a head: centres of objects as bins of coordinates, and votes of vision tokens for them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .checks_densemllm import check_choice, check_count, check_positive, shown
from .decoding_densemllm import upsample_argmax


# A vision token of a thing (a class whose objects are counted) learns where the centre of its object is: one bin of x
# and one of y. Tokens that vote for one place are one object, so that things of one class that touch stay apart, and
# an object that something else stands before is one, not several.
ORIGINS = ("image", "token")
CELLS_PER_TOKEN = 2  # of the histogram of votes, along each edge
MAX_OBJECTS = 256  # of an image


def encode_centres(
    segmentation: np.ndarray,
    instances: np.ndarray,
    thing_ids: Iterable[int],
    num_x_bins: int,
    num_y_bins: int,
    origin: str = "image",
) -> tuple[np.ndarray, np.ndarray]:
    """The centre of each pixel's object as bins of x and of y: what its vision token learns.

    An object is what has one number and one class; its centre is the mean of its pixels. The bins are equal shares of
    the image's width and height, so they stay the same when the image is resized.

    Args:
        segmentation: integers `[height, width]`, class ids.
        instances: integers `[height, width]`, numbers of objects; 0 and below where there is none.
        thing_ids: the classes whose objects are told apart.
        num_x_bins, num_y_bins: how many bins.
        origin: what a bin counts from. `"image"`: the left and the upper edge, bin k is the share from (k - 1) / n to
            k / n. `"token"`: the pixel itself, which is the middle of the bins; centres that are half an image or more
            away are in the first or the last bin.

    Returns:
        x bins and y bins, `int64 [height, width]` in 1..n each, and 0 where there is no thing.

    Raises:
        TypeError: a map that is not of integers, or a number of bins that is none.
        ValueError: maps that are not `[height, width]` of one size, less than one bin, or an unknown `origin`.
    """
    _check_map("segmentation", segmentation)
    _check_map("instances", instances)
    if segmentation.shape != instances.shape:
        raise ValueError(
            f"`instances` must have the shape of `segmentation`, {segmentation.shape}, got {instances.shape}"
        )
    counts = check_count("num_x_bins", num_x_bins), check_count("num_y_bins", num_y_bins)
    check_choice("origin", origin, ORIGINS)
    things = (instances > 0) & np.isin(segmentation, sorted(thing_ids))
    objects = np.zeros(things.shape, dtype=np.int64)
    numbers = np.stack([instances[things].astype(np.int64), segmentation[things].astype(np.int64)])
    objects[things] = np.unique(numbers, axis=1, return_inverse=True)[1].reshape(-1) + 1
    areas = np.maximum(np.bincount(objects.ravel()), 1)
    bins = []
    for axis, count in zip((1, 0), counts, strict=True):
        places = (np.arange(objects.shape[axis]) + 0.5) / objects.shape[axis]
        places = np.broadcast_to(places if axis == 1 else places[:, None], objects.shape)
        centres = (np.bincount(objects.ravel(), weights=places.ravel()) / areas)[objects]
        if origin == "token":
            centres = centres - places + 0.5
        own = np.clip((centres * count).astype(np.int64) + 1, 1, count)
        bins.append(np.where(things, own, 0))
    return bins[0], bins[1]


def coordinate_numbers(num_bins: int, num_tokens: int, edge: int) -> np.ndarray:
    """Which tokens `<x_k>` (or `<y_k>`) are the bins of an image.

    In the released vocabulary, 2048 of each, they count the pixels of the resized image: a bin is the token of the
    pixel in its middle, which means the same as in a box. A vocabulary that has fewer tokens than the image has pixels
    counts shares of it: a bin is the token in the middle of its share.

    Args:
        num_bins: number of bins, at most the smaller of the other two.
        num_tokens: how many of these tokens the tokenizer has.
        edge: width (for x) or height (for y) of the resized image, in pixels.

    Returns:
        `int64 [num_bins]`, rising; k of the bins' tokens in their order.

    Raises:
        ValueError: more bins than there are tokens or pixels.
    """
    room = edge if edge <= num_tokens else num_tokens
    if not 1 <= num_bins <= room:
        raise ValueError(f"`num_bins` must be from 1 to {room}, got {num_bins}")
    return ((np.arange(num_bins) + 0.5) * room / num_bins).astype(np.int64)


def decode_centres(
    x_logits: torch.Tensor, y_logits: torch.Tensor, origin: str = "image", neighbours: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the coordinate bins to the places that vision tokens vote for.

    A place is the expectation over the best bin and its neighbours.

    Args:
        x_logits, y_logits: `[num_x_bins, grid_height, grid_width]` and `[num_y_bins, grid_height, grid_width]`.
        origin: as in [`encode_centres`].
        neighbours: bins on either side of the best one that count.

    Returns:
        places `float32 [2, grid_height, grid_width]`, y and x in tokens from the upper left corner of the grid, inside
        of it; and how sure they are, `float32 [grid_height, grid_width]` in [0, 1]: the geometric mean of the
        probabilities of the bins that counted.
    """
    check_choice("origin", origin, ORIGINS)
    places, certainty = [], 1.0
    for axis, logits in enumerate((y_logits, x_logits)):
        probabilities = logits.float().softmax(dim=0)
        bins = torch.arange(len(logits), device=logits.device)[:, None, None]
        probabilities = probabilities * ((bins - probabilities.argmax(dim=0)).abs() <= neighbours)
        near = probabilities.sum(dim=0)
        place = (probabilities * (bins + 0.5)).sum(dim=0) / near / len(logits)
        edge = logits.shape[1 + axis]
        if origin == "token":
            own = (torch.arange(edge, device=logits.device) + 0.5) / edge
            place = place - 0.5 + (own[:, None] if axis == 0 else own)
        places.append(place.clamp(0, 1) * edge)
        certainty = certainty * near
    return torch.stack(places), certainty.sqrt()


def find_peaks(
    places: torch.Tensor, weights: torch.Tensor, size: tuple[int, int], radius: float, min_votes: float
) -> torch.Tensor:
    """Where votes meet: the peaks of their weighted histogram, smoothed by a Gaussian.

    Args:
        places: `float32 [2, n]`, y and x in tokens.
        weights: `float32 [n]`, at least 0.
        size: of the grid, `(height, width)` in tokens.
        radius: in tokens; peaks are further apart, and the Gaussian's standard deviation is half of it. Its middle is
            1, so that n equal votes of weight 1 are a peak of height n.
        min_votes: lowest height of a peak. The highest one always is one, where anything has weight.

    Returns:
        `float32 [n_peaks, 2]`, y and x in tokens, the highest first; at most 256.
    """
    cells = CELLS_PER_TOKEN
    histogram = places.new_zeros([edge * cells + 2 for edge in size])
    corners = (places * cells).floor()
    within = places * cells - corners  # a vote is shared out among the four cells around it
    for down in (0, 1):
        for right in (0, 1):
            share = (within[0] - 1 + down).abs() * (within[1] - 1 + right).abs()
            index = (corners[0].long() + down) * histogram.shape[1] + corners[1].long() + right
            histogram.view(-1).index_add_(0, index, share * weights)
    deviation = radius * cells / 2
    reach = max(1, round(3 * deviation))
    kernel = torch.arange(-reach, reach + 1, dtype=torch.float32, device=places.device)
    kernel = torch.exp(-0.5 * (kernel / deviation) ** 2)
    heights = F.conv2d(histogram[None, None], kernel[:, None][None, None], padding=(reach, 0))
    heights = F.conv2d(heights, kernel[None, None, None], padding=(0, reach))
    window = max(1, round(radius * cells))
    is_peak = heights == F.max_pool2d(heights, 2 * window + 1, stride=1, padding=window)
    highest = float(heights.max())
    is_peak &= (heights >= min(min_votes, highest)) & (heights > 0)
    rows, columns = is_peak[0, 0].nonzero(as_tuple=True)
    order = heights[0, 0, rows, columns].argsort(descending=True, stable=True)[: 4 * MAX_OBJECTS]
    peaks = torch.stack([rows, columns], dim=1)[order].float() / cells
    # Equal heights side by side are all of them highest in their window: the first one stands for them.
    near = torch.cdist(peaks, peaks) <= radius
    kept: list[int] = []
    for index, own in enumerate(near.cpu().numpy()):
        if not own[kept].any():
            kept.append(index)
    return peaks[kept[:MAX_OBJECTS]]


def decode_instances(
    x_logits: torch.Tensor,
    y_logits: torch.Tensor,
    segmentation: torch.Tensor,
    thing_ids: Iterable[int],
    origin: str = "image",
    radius: float = 1.5,
    min_votes: float = 1.0,
    within_class: bool = False,
) -> torch.Tensor:
    """Votes of vision tokens to objects.

    Each token votes for its object's centre, with the share of its cell that things have in the class map and with how
    sure it is. Peaks of the votes are objects, tokens belong to the peak that is nearest to their vote, and pixels of
    things to that of the tokens around them.

    Args:
        x_logits, y_logits, origin: as for [`decode_centres`].
        segmentation: integers `[height, width]`, class ids, below 0 for none.
        thing_ids: the classes whose objects are told apart.
        radius, min_votes: as for [`find_peaks`], in tokens.
        within_class: count the votes of each class apart: an object has the pixels of one class only. Otherwise those
            of all things are counted together, and an object may have pixels of several: where the class map is not
            sure of a class, it is one object still, and [`make_panoptic`] gives it the class that it has most of.

    Returns:
        `int64 [height, width]`: numbers of objects from 1, and 0 where there is no thing.

    Raises:
        TypeError, ValueError: arguments that are not as above.
    """
    _check_logits(x_logits, y_logits)
    _check_map("segmentation", segmentation)
    radius = check_positive("radius", radius, " of tokens")
    grid = tuple(x_logits.shape[1:])
    places, certainty = decode_centres(x_logits, y_logits, origin)
    instances = torch.zeros(segmentation.shape, dtype=torch.long, device=segmentation.device)
    count = 0
    for group in _groups(segmentation, thing_ids, within_class):
        shares = F.adaptive_avg_pool2d(group.float()[None], grid)[0].to(places.device)
        peaks = find_peaks(places.flatten(1), (shares * certainty).flatten(), grid, radius, min_votes)
        if not len(peaks):
            continue
        distances = (places - peaks[:, :, None, None]).square().sum(dim=1)
        # Of each token, how much it is each object's; a token with few pixels of things has little say.
        belongs = (distances / (-2 * radius**2)).softmax(dim=0) * shares
        owners = upsample_argmax(belongs, tuple(segmentation.shape))[0].to(instances.device)
        instances = torch.where(group, owners + (1 + count), instances)
        count += len(peaks)
    return instances


def connected_components(segmentation: torch.Tensor, thing_ids: Iterable[int]) -> torch.Tensor:
    """Objects without votes: regions of one class whose pixels are side by side (left, right, above or below).

    Args, returns: as for [`decode_instances`].
    """
    _check_map("segmentation", segmentation)
    values = segmentation.cpu().numpy()
    height, width = values.shape
    # Runs along rows are joined where runs of two rows touch; a run knows a lower one, until all know the lowest.
    starts = np.ones((height, width), dtype=bool)
    starts[:, 1:] = values[:, 1:] != values[:, :-1]
    runs = starts.ravel().cumsum().reshape(height, width) - 1
    touching = values[1:] == values[:-1]
    pairs = np.unique(np.stack([runs[:-1][touching], runs[1:][touching]]), axis=1)
    lowest = np.arange(runs[-1, -1] + 1)
    while True:
        ends = np.sort(lowest[pairs], axis=0)
        if (ends[0] == ends[1]).all():
            break
        np.minimum.at(lowest, ends[1], ends[0])
        while (lowest[lowest] != lowest).any():
            lowest = lowest[lowest]
    things = np.isin(values, sorted(thing_ids))
    instances = np.zeros((height, width), dtype=np.int64)
    instances[things] = np.unique(lowest[runs[things]], return_inverse=True)[1].reshape(-1) + 1
    return torch.from_numpy(instances).to(segmentation.device)


def make_panoptic(
    segmentation: torch.Tensor,
    scores: torch.Tensor,
    instances: torch.Tensor,
    thing_ids: Iterable[int],
    id2label: dict[int, str],
    min_area: int = 1,
) -> dict[str, Any]:
    """A class map and its objects as one map of segments, in the form of transformers'
    `post_process_panoptic_segmentation`.

    Args:
        segmentation: integers `[height, width]`, class ids; what `id2label` lacks is not a segment.
        scores: `[height, width]`, of the class of each pixel, in [0, 1].
        instances: integers `[height, width]`, from [`decode_instances`] or [`connected_components`]; looked at where
            the class is a thing's, and 0 there is not a segment.
        thing_ids: the classes whose objects are told apart; all others are one segment each.
        id2label: names of the classes.
        min_area: objects of fewer pixels are left out.

    Returns:
        `segmentation`: `int32 [height, width]`, ids of segments from 1, and 0 where there is none.
        `segments_info`: a row for each, in the order of their ids: `id`; `label_id` and `label`, of an object the
        class of most of its pixels; `score`, the sum of the scores of its pixels of that class over its area;
        `area` in pixels; `box`, `(x0, y0, x1, y1)` in pixels around it, the right and the lower edge outside;
        `isthing`; and `was_fused`, which is true of all but things.
    """
    for name, values in (("segmentation", segmentation), ("instances", instances)):
        _check_map(name, values)
    if not segmentation.shape == instances.shape == scores.shape:
        raise ValueError(
            "`segmentation`, `scores` and `instances` must have one shape, got "
            f"{[tuple(values.shape) for values in (segmentation, scores, instances)]}"
        )
    classes = segmentation.cpu().numpy()
    keys = np.array(sorted(id2label), dtype=np.int64)
    is_thing = np.isin(keys, sorted(thing_ids))
    places = np.searchsorted(keys, classes).clip(max=len(keys) - 1)
    known = keys[places] == classes
    # Things and stuff in one numbering: an object's number, or that of its class after all of them.
    own = instances.cpu().numpy().astype(np.int64)
    count = int(own.max(initial=0)) + 1
    numbers = np.where(is_thing[places], own, count + places)
    known &= numbers > 0
    present, segments = np.unique(numbers[known], return_inverse=True)
    segments = segments.reshape(-1)
    table = np.zeros((len(present), len(keys)), dtype=np.int64)
    np.add.at(table, (segments, places[known]), 1)
    labels, areas = table.argmax(axis=1), table.sum(axis=1)
    agrees = places[known] == labels[segments]
    weights = np.where(agrees, scores.float().cpu().numpy()[known], 0)
    sums = np.bincount(segments, weights=weights, minlength=len(present))
    things = present < count
    kept = np.flatnonzero(~things | (areas >= min_area))
    kept = kept[np.lexsort((present[kept], labels[kept]))]
    ids = np.zeros(len(present), dtype=np.int32)
    ids[kept] = np.arange(1, len(kept) + 1)
    result = np.zeros(classes.shape, dtype=np.int32)
    result[known] = ids[segments]
    boxes = _boxes(result, len(kept))
    rows = [
        {
            "id": number, "label_id": int(keys[labels[place]]), "label": id2label[int(keys[labels[place]])],
            "score": float(sums[place] / areas[place]), "area": int(areas[place]), "box": box,
            "isthing": bool(things[place]), "was_fused": not things[place],
        }
        for number, (place, box) in enumerate(zip(kept, boxes, strict=True), start=1)
    ]  # fmt: skip
    return {"segmentation": torch.from_numpy(result).to(segmentation.device), "segments_info": rows}


def _boxes(segments: np.ndarray, count: int) -> list[tuple[int, int, int, int]]:
    """The boxes of the ids 1..`count` of a map."""
    edges = []
    for axis in (1, 0):
        length = segments.shape[axis]
        present = np.zeros((count + 1, length), dtype=bool)
        places = np.arange(length) if axis == 1 else np.arange(length)[:, None]
        present[segments, np.broadcast_to(places, segments.shape)] = True
        edges.append((present.argmax(axis=1), length - present[:, ::-1].argmax(axis=1)))
    (lefts, rights), (tops, bottoms) = edges
    return list(zip(*(values[1:].tolist() for values in (lefts, tops, rights, bottoms)), strict=True))


def _groups(segmentation: torch.Tensor, thing_ids: Iterable[int], within_class: bool) -> list[torch.Tensor]:
    """Where things are: `bool [height, width]`, of all together or of each class apart."""
    known = torch.tensor(sorted(thing_ids), dtype=segmentation.dtype, device=segmentation.device)
    things = torch.isin(segmentation, known)
    if not within_class:
        return [things]
    return [segmentation == key for key in segmentation[things].unique().tolist()]


def _check_map(name: str, values: Any) -> None:
    if not isinstance(values, (np.ndarray, torch.Tensor)) or "int" not in str(values.dtype):
        raise TypeError(f"`{name}` must be a map of integers, got {shown(values)}")
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"`{name}` must be [height, width], got shape {tuple(values.shape)}")


def _check_logits(x_logits: torch.Tensor, y_logits: torch.Tensor) -> None:
    if x_logits.ndim != 3 or y_logits.ndim != 3 or x_logits.shape[1:] != y_logits.shape[1:]:
        raise ValueError(
            "`x_logits` and `y_logits` must be [num_bins, grid_height, grid_width] on one grid, got "
            f"{tuple(x_logits.shape)} and {tuple(y_logits.shape)}"
        )
