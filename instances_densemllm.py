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
import PIL.Image
import torch
import torch.nn.functional as F

from .checks_densemllm import check_choice, check_count, check_positive, shown
from .decoding_densemllm import upsample_argmax
from .guided_densemllm import guided_argmax


# A vision token of a thing (a class whose objects are counted) learns where the centre of its object is: one bin of x
# and one of y. Tokens that vote for one place are one object, so that things of one class that touch fall apart, and
# an object that something else stands before is one, not several.
ORIGINS = ("image", "token")
CELLS_PER_TOKEN = 2  # of the histogram of votes, along each edge
MAX_OBJECTS = 256  # of an image
SEPARATION = 2.0  # of two places that votes meet in, in standard deviations


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
    x_logits: torch.Tensor, y_logits: torch.Tensor, origin: str = "image", neighbours: int = 3
) -> torch.Tensor:
    """Logits of the coordinate bins to the places that vision tokens vote for.

    A place is the expectation over the best bin and its neighbours.

    Args:
        x_logits, y_logits: `[num_x_bins, grid_height, grid_width]` and `[num_y_bins, grid_height, grid_width]`.
        origin: as in [`encode_centres`].
        neighbours: bins on either side of the best one that count.

    Returns:
        `float32 [2, grid_height, grid_width]`, y and x in tokens from the upper left corner of the grid, inside of it.
    """
    check_choice("origin", origin, ORIGINS)
    places = []
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
    return torch.stack(places)


def find_peaks(places: torch.Tensor, weights: torch.Tensor, radius: float, min_votes: float) -> torch.Tensor:
    """Where votes meet: the peaks of their weighted histogram, smoothed by a Gaussian.

    Args:
        places: `float32 [2, n]`, y and x in tokens.
        weights: `float32 [n]`, at least 0.
        radius: in tokens; peaks are further apart, and the Gaussian's standard deviation is a third of it. Its middle
            is 1, so that n equal votes of weight 1 are a peak of height n.
        min_votes: lowest height of a peak. The highest one always is one, where anything has weight.

    Returns:
        `float32 [n_peaks, 2]`, y and x in tokens, the highest first; at most 256.
    """
    cells = CELLS_PER_TOKEN
    if not (weights > 0).any():
        return places.new_zeros(0, 2)
    first = places.amin(dim=1, keepdim=True).floor()
    within = (places - first) * cells
    corners = within.floor()
    within = within - corners  # a vote is shared out among the four cells around it
    histogram = places.new_zeros([int(edge) + 2 for edge in corners.amax(dim=1)])
    for down in (0, 1):
        for right in (0, 1):
            share = (within[0] - 1 + down).abs() * (within[1] - 1 + right).abs()
            index = (corners[0].long() + down) * histogram.shape[1] + corners[1].long() + right
            histogram.view(-1).index_add_(0, index, share * weights)
    deviation = radius * cells / 3
    reach = max(1, round(3 * deviation))
    kernel = torch.arange(-reach, reach + 1, dtype=torch.float32, device=places.device)
    kernel = torch.exp(-0.5 * (kernel / deviation) ** 2)
    heights = F.conv2d(histogram[None, None], kernel[:, None][None, None], padding=(reach, 0))
    heights = F.conv2d(heights, kernel[None, None, None], padding=(0, reach))
    window = max(1, round(radius * cells))
    highest_near = F.max_pool2d(heights, (2 * window + 1, 1), stride=1, padding=(window, 0))
    is_peak = heights == F.max_pool2d(highest_near, (1, 2 * window + 1), stride=1, padding=(0, window))
    highest = float(heights.max())
    is_peak &= (heights >= min(min_votes, highest)) & (heights > 0)
    rows, columns = is_peak[0, 0].nonzero(as_tuple=True)
    order = heights[0, 0, rows, columns].argsort(descending=True, stable=True)[: 4 * MAX_OBJECTS]
    peaks = torch.stack([rows, columns], dim=1)[order].float() / cells + first[:, 0]
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
    radius: float = 2.5,
    min_votes: float = 2.0,
    within_class: bool = False,
    image: PIL.Image.Image | None = None,
) -> torch.Tensor:
    """Votes of vision tokens to objects.

    Each token votes for the centre of its object. A region of the class map ([`connected_components`]) in which the
    votes meet in several places falls apart into that many; then regions whose votes meet, on average, are one object.
    Averages are what makes it robust: a single token's vote is often some tokens off.

    Args:
        x_logits, y_logits, origin: as for [`decode_centres`].
        segmentation: integers `[height, width]`, class ids, below 0 for none.
        thing_ids: the classes whose objects are told apart.
        radius: in tokens; centres that are less far apart are those of one object.
        min_votes: tokens of a region that have to agree on a place before the region falls apart.
        within_class: an object has the pixels of one class only. Otherwise it may have those of several: where the
            class map is not sure of a class, it is one object still, and [`make_panoptic`] gives it the class that it
            has most of.
        image: of the size of `segmentation`; objects of one region then part along its edges.

    Returns:
        `int64 [height, width]`: numbers of objects from 1, and 0 where there is no thing.

    Raises:
        TypeError, ValueError: arguments that are not as above.
    """
    _check_logits(x_logits, y_logits)
    _check_map("segmentation", segmentation)
    if image is not None and (image.height, image.width) != tuple(segmentation.shape):
        raise ValueError(
            f"`image` must be of the size of `segmentation`, {list(segmentation.shape)}, got "
            f"{[image.height, image.width]}"
        )
    radius = check_positive("radius", radius, " of tokens")
    min_votes = check_positive("min_votes", min_votes, " of tokens")
    places = decode_centres(x_logits, y_logits, origin).cpu()
    regions = connected_components(segmentation.cpu(), thing_ids)
    cells = _cells(regions.shape, places.shape[1:])
    regions = _split_regions(regions, places, cells, radius, min_votes, image)
    areas = np.bincount(regions.ravel())
    centres = [np.bincount(regions.ravel(), weights=own.flatten().numpy()[cells].ravel()) for own in places]
    centres = np.stack(centres, axis=1) / np.maximum(areas, 1)[:, None]
    labels = np.zeros(len(areas), dtype=np.int64)
    labels[regions.ravel()] = segmentation.cpu().numpy().ravel()
    owners = _merge_regions(areas, centres, labels if within_class else np.zeros_like(labels), radius)
    return torch.from_numpy(owners[regions]).to(segmentation.device)


def _cells(size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """The vision token of each pixel, `int64 [height, width]`, counted row by row."""
    rows, columns = (np.arange(edge) * count // edge for edge, count in zip(size, grid, strict=True))
    return rows[:, None] * grid[1] + columns


def _split_regions(
    regions: torch.Tensor, places: torch.Tensor, cells: np.ndarray, radius: float, min_votes: float,
    image: PIL.Image.Image | None,
) -> np.ndarray:  # fmt: skip
    """Regions of whose votes there are several peaks, as one region a peak; see [`decode_instances`]."""
    result = regions.numpy().copy()
    count, n_tokens = int(result.max()), places[0].numel()
    width = places.shape[2]
    row_cells, column_cells = cells[:, 0] // width, cells[0] % width
    shares = np.bincount(cells.ravel(), minlength=n_tokens)
    pairs, pixels = np.unique(result.astype(np.int64) * n_tokens + cells, return_counts=True)
    owners, tokens = np.divmod(pairs, n_tokens)
    votes = torch.from_numpy(pixels / shares[tokens]).float()
    flat = places.flatten(1)
    edges = np.searchsorted(owners, np.arange(1, count + 2))
    for region, (start, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True), start=1):
        own, weights = flat[:, tokens[start:stop]], votes[start:stop]
        # Each of two peaks needs its votes, and some of the votes to be far from others.
        if float(weights.sum()) < 2 * min_votes or float((own.amax(1) - own.amin(1)).norm()) <= radius:
            continue
        peaks = _separate_peaks(find_peaks(own, weights, radius, min_votes), own, weights)
        if len(peaks) < 2:
            continue
        # The tokens of the region, and the pixels of these tokens.
        rows, columns = (slice(found.min(), found.max() + 1) for found in np.divmod(tokens[start:stop], width))
        top, left = np.searchsorted(row_cells, rows.start), np.searchsorted(column_cells, columns.start)
        bottom, right = np.searchsorted(row_cells, rows.stop), np.searchsorted(column_cells, columns.stop)
        share = torch.zeros(n_tokens)
        share[tokens[start:stop]] = weights
        share = share.reshape(places.shape[1:])[rows, columns]
        distances = (places[:, rows, columns] - peaks[:, :, None, None]).square().sum(dim=1)
        belongs = (distances / (-2 * radius**2)).softmax(dim=0) * share
        if image is None:
            nearest = upsample_argmax(belongs, (bottom - top, right - left))[0].numpy()
        else:
            nearest = guided_argmax(belongs, image.crop((left, top, right, bottom))).numpy()
        part = result[top:bottom, left:right]
        moved = (part == region) & (nearest > 0)
        part[moved] = count + nearest[moved]
        count += len(peaks) - 1
    return result


def _separate_peaks(peaks: torch.Tensor, places: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The peaks that are well apart: between the means of their votes lies more than `SEPARATION` times the standard
    deviations of both along that line. A single cloud of uncertain votes that is cut in two has 1.3 (normal) to 1.7
    (uniform) times as much. Of two that are not, the one with fewer votes goes."""
    votes = places.T
    while len(peaks) > 1:
        owners = torch.cdist(votes, peaks).argmin(dim=1)
        shares = F.one_hot(owners, len(peaks)) * weights[:, None]
        totals = shares.sum(dim=0).clamp(min=1e-6)
        means = (shares.T @ votes) / totals[:, None]
        ways = means - means[:, None]  # [n_peaks, n_peaks, 2], from the first to the second
        lengths = ways.norm(dim=2)
        ways = ways / lengths.clamp(min=1e-6)[..., None]
        offsets = votes - means[owners]
        along = torch.einsum("vd,ijd->vij", offsets, ways).square()
        variances = torch.einsum("vi,vij->ij", shares, along) / totals[:, None]
        deviations = variances.sqrt()
        apart = lengths - SEPARATION * (deviations + deviations.T)
        apart.fill_diagonal_(torch.inf)
        first, second = divmod(int(apart.argmin()), len(peaks))
        if apart[first, second] > 0:
            break
        weaker = first if totals[first] < totals[second] else second
        peaks = torch.cat([peaks[:weaker], peaks[weaker + 1 :]])
    return peaks


def _merge_regions(areas: np.ndarray, centres: np.ndarray, labels: np.ndarray, radius: float) -> np.ndarray:
    """The object of each region, from 1: regions join the nearest object that is less than `radius` away, the largest
    ones first; an object's centre is the mean of its regions'.

    Args:
        areas: `[n_regions + 1]`, pixels of regions; the first entry is no region.
        centres: `[n_regions + 1, 2]`, in tokens.
        labels: `[n_regions + 1]`; only those of one label join.
    """
    owners = np.zeros(len(areas), dtype=np.int64)
    totals, sums, own_labels = np.zeros(len(areas)), np.zeros((len(areas), 2)), np.zeros_like(labels)
    count = 0
    for region in np.argsort(-areas[1:], kind="stable") + 1:
        if not areas[region]:
            continue
        distances = np.linalg.norm(sums[:count] / totals[:count, None] - centres[region], axis=1)
        distances[own_labels[:count] != labels[region]] = np.inf
        nearest = int(distances.argmin()) if count else 0
        if not count or distances[nearest] >= radius:
            nearest, count = count, count + 1
            own_labels[nearest] = labels[region]
        owners[region] = nearest + 1
        totals[nearest] += areas[region]
        sums[nearest] += areas[region] * centres[region]
    return owners


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
    # Two runs touch along a stretch: where it starts, one of them does.
    touching = (values[1:] == values[:-1]) & (starts[1:] | starts[:-1])
    pairs = np.stack([runs[:-1][touching], runs[1:][touching]])
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
