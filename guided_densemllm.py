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
"""Maps on the grid of vision tokens to the image's pixels along its edges: guided upsampling, in closed form.

Around each place of a grid, a map is taken to be a linear function of the image's colours; what fits the grid's values
and the grid's mean colours best is then read at the colours of a finer grid. That is the guided filter of He, Sun and
Tang (ECCV 2010) with the coefficients found on the coarse grid (He and Sun, arXiv 1505.00996), in two steps: from
vision tokens to blocks of a few pixels, and from these to pixels. Before them, the scores of classes are averaged over
near tokens of like scores and colours, which are of one thing: a bilateral filter.
"""

from collections.abc import Callable, Iterator

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

from .decoding_densemllm import class_probabilities


BLOCKS = 6  # of the second step, along an edge of a cell
RADIUS, BLOCK_RADIUS = 1, 2  # half the window's edge in cells, and in blocks
CLASS_SMOOTHNESS, NUMBER_SMOOTHNESS = 3.0, 50.0  # in squared grey levels
BRIGHTNESS = 0.25  # how much of a difference in brightness counts: shadow and light end where no thing does
NEAR, LIKE_COLORS, LIKE_SCORES = (
    4.0,
    30.0,
    0.35,
)  # standard deviations: tokens, grey levels, a share of the scores' own
TOKEN_RADIUS = 8  # half the edge of the window in which tokens are averaged
VALUES_AT_ONCE = 2**20  # of coefficients at the size of pixels, and of pairs of tokens


@torch.no_grad()
def guided_segmentation(
    logits: torch.Tensor, image: "np.ndarray | PIL.Image.Image", background: bool = False, temperature: float = 0.2
) -> tuple[torch.Tensor, torch.Tensor]:
    """Class scores on the grid of vision tokens to a segmentation along the image's edges: what `decode_segmentation`
    is, with guided upsampling in the place of the bilinear one.

    Scores are averaged over like tokens; the first step of the upsampling reads them, the second the probabilities
    that they are on blocks. Classes whose probability reaches its floor, `1 / num_labels` or 0.5 with a background, at
    no token win no pixel.

    Args:
        logits: `[num_labels, grid_height, grid_width]`, the score of each class at each vision token.
        image: PIL image, or `uint8 [height, width, 3]`, RGB, of the size of the result.
        background: whether pixels may be none of the labels.
        temperature: of the softmax between the steps, without a background.

    Returns:
        `int64 [height, width]`, positions in the labels, -1 for the background, and `float32 [height, width]`, the
        confidence of that choice in [0, 1]; both on the device of `logits`.

    Raises:
        ValueError: `logits` or `image` that can't be used.
    """
    image = _check(logits, image, "logits")
    logits, size = logits.float(), (image.height, image.width)
    floor = 0.5 if background else 1 / len(logits)
    contenders = (class_probabilities(logits, background, temperature).amax(dim=(1, 2)) >= floor - 1e-6).nonzero()
    best = torch.full(size, -1, dtype=torch.long, device=logits.device)
    scores = torch.full(size, floor, dtype=torch.float32, device=logits.device)
    if len(contenders) == 0:
        return best, scores

    def between(values: torch.Tensor) -> torch.Tensor:
        return class_probabilities(values, background, temperature)

    contenders = contenders[:, 0]
    for top, strip in guided_strips(_averaged(logits, image)[contenders], image, between, CLASS_SMOOTHNESS):
        rows = slice(top, top + strip.shape[1])
        highest, place = strip.max(dim=0)
        found = contenders[place]
        best[rows] = found.masked_fill(highest <= floor, -1) if background else found
        scores[rows] = highest.clamp(min=floor, max=1)
    return best, scores


@torch.no_grad()
def guided_argmax(maps: torch.Tensor, image: "np.ndarray | PIL.Image.Image") -> torch.Tensor:
    """The best map at each pixel, with borders where the image has edges: what `upsample_argmax` finds, guided.

    Args:
        maps: `float [num_maps, grid_height, grid_width]`.
        image: PIL image, or `uint8 [height, width, 3]`, RGB, of the size of the result.

    Returns:
        `int64 [height, width]`, places in `maps`, on their device.

    Raises:
        ValueError: `maps` or `image` that can't be used.
    """
    image = _check(maps, image, "maps")
    best = torch.empty((image.height, image.width), dtype=torch.long, device=maps.device)
    for top, strip in guided_strips(maps.float(), image, None, CLASS_SMOOTHNESS):
        best[top : top + strip.shape[1]] = strip.argmax(dim=0)
    return best


@torch.no_grad()
def guided_resize(maps: torch.Tensor, image: "np.ndarray | PIL.Image.Image") -> torch.Tensor:
    """Maps of numbers on the grid of vision tokens at the image's size, with steps where the image has edges.

    Args:
        maps: `float [num_maps, grid_height, grid_width]`; few of them: all are there at once.
        image: PIL image, or `uint8 [height, width, 3]`, RGB, of the size of the result.

    Returns:
        `float32 [num_maps, height, width]` on the device of `maps`; a pixel is never outside of what the tokens around
        it have.

    Raises:
        ValueError: `maps` or `image` that can't be used.
    """
    image = _check(maps, image, "maps")
    maps = maps.float()
    resized = maps.new_empty((len(maps), image.height, image.width))
    around = torch.cat([-F.max_pool2d(-maps, 3, 1, 1), F.max_pool2d(maps, 3, 1, 1)])
    for top, strip in guided_strips(maps, image, None, NUMBER_SMOOTHNESS):
        rows = torch.arange(top, top + strip.shape[1], device=maps.device)
        low, high = _resized_rows(around, (image.height, image.width), rows).chunk(2)
        resized[:, top : top + strip.shape[1]] = strip.clamp_(min=low, max=high)
    return resized


def guided_strips(
    maps: torch.Tensor,
    image: PIL.Image.Image,
    between: Callable[[torch.Tensor], torch.Tensor] | None,
    smoothness: float,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Guided upsampling of all maps in strips of rows: the `[num_maps, height, width]` volume is never there as a
    whole, nor that of the blocks.

    Args:
        maps: `float32 [num_maps, grid_height, grid_width]`.
        image: RGB, of the size of the result.
        between: what becomes of the first step's maps, `[num_maps, rows, columns]`, before the second.
        smoothness: the variance of colours, in squared grey levels, below which a map doesn't follow them.

    Yields:
        the first row of a strip, and the strip, `float32 [num_maps, rows, width]`.
    """
    size, grid, device = (image.height, image.width), tuple(maps.shape[1:]), maps.device
    blocks = tuple(cells * max(1, min(BLOCKS, edge // cells)) for edge, cells in zip(size, grid, strict=True))
    colors = torch.tensor(np.asarray(image), device=device).permute(2, 0, 1)  # bytes: most of an image's are not used
    block_colors = _mean_colors(image, blocks, device)
    of_cells = _fit(maps, _mean_colors(image, grid, device), RADIUS, smoothness)
    rows_per_strip = max(1, VALUES_AT_ONCE // (of_cells.shape[0] * of_cells.shape[1] * size[1]))
    # Bands of blocks have windows that reach over their edges: they are at least as high as a cell.
    rows_per_band = max(rows_per_strip, -(-size[0] // grid[0]))
    for top in range(0, size[0], rows_per_band):
        rows = torch.arange(top, min(top + rows_per_band, size[0]), device=device)
        # The blocks that the band lies between, and those in the windows of these.
        low, high, _ = _sources(rows, size[0], blocks[0])
        first, last = int(low[0]), int(high[-1])
        start, end = max(0, first - BLOCK_RADIUS), min(blocks[0], last + 1 + BLOCK_RADIUS)
        near = block_colors[:, start:end]
        values = _read(of_cells, near, blocks, torch.arange(start, end, device=device))
        of_blocks = _fit(values if between is None else between(values), near, BLOCK_RADIUS, smoothness)
        of_blocks = of_blocks[:, :, first - start : last + 1 - start]
        for place, part in zip(range(top, size[0], rows_per_strip), rows.split(rows_per_strip), strict=False):
            part_colors = _centred(colors[:, place : place + len(part)])
            yield place, _read(of_blocks, part_colors, size, part, first, blocks[0])


def _averaged(scores: torch.Tensor, image: PIL.Image.Image) -> torch.Tensor:
    """Means over near tokens that have like scores and colours, `float32 [num_labels, grid_height, grid_width]`; some
    rows at a time, as there are many pairs of tokens."""
    num_labels, height, width = scores.shape
    device = scores.device
    rows, columns = (torch.arange(edge, dtype=torch.float32, device=device) for edge in (height, width))
    spread = scores - scores.mean(dim=(1, 2), keepdim=True)
    spread = spread / spread.square().mean().mul(num_labels).sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    # Half the squared distance of two tokens' features is the exponent of their weight.
    features = torch.cat(
        [
            (rows / NEAR).expand(1, width, height).transpose(1, 2), (columns / NEAR).expand(1, height, width),
            _mean_colors(image, (height, width), device) / LIKE_COLORS, spread / LIKE_SCORES,
        ]
    )  # fmt: skip
    is_far = (columns[:, None] - columns).abs() > TOKEN_RADIUS
    averaged, at_once = torch.empty_like(scores), height
    while at_once > 1 and at_once * min(height, at_once + 2 * TOKEN_RADIUS) * width**2 > VALUES_AT_ONCE:
        at_once = (at_once + 1) // 2
    for top in range(0, height, at_once):
        bottom = min(top + at_once, height)
        start, end = max(0, top - TOKEN_RADIUS), min(height, bottom + TOKEN_RADIUS)
        own, near = features[:, top:bottom].flatten(1), features[:, start:end].flatten(1)
        weights = torch.addmm(near.square().sum(dim=0) / -2, own.T, near)  # but for what all weights of a token share
        weights = weights.view(bottom - top, width, end - start, width)
        is_out = (rows[top:bottom, None] - rows[start:end]).abs() > TOKEN_RADIUS
        weights.masked_fill_(is_out[:, None, :, None] | is_far[:, None], float("-inf"))
        weights = weights.flatten(0, 1).flatten(1).softmax(dim=1)
        averaged[:, top:bottom] = (scores[:, start:end].flatten(1) @ weights.T).view(num_labels, -1, width)
    return averaged


def _fit(maps: torch.Tensor, colors: torch.Tensor, radius: int, smoothness: float) -> torch.Tensor:
    """The linear function of colours that is nearest to the maps in the window of each place, by ridge regression.

    Args:
        maps: `[num_maps, height, width]`.
        colors: `[3, height, width]`.
        radius: half the window's edge; a window ends where the maps do.
        smoothness: what is added to the colours' variances.

    Returns:
        `[4, num_maps, height, width]`: values at colour 0, and slopes along the three colours.
    """

    def mean(values: torch.Tensor) -> torch.Tensor:
        flat = values.flatten(0, -3)
        means = F.avg_pool2d(flat[None], 2 * radius + 1, 1, radius, count_include_pad=False)[0]
        return means.view(values.shape)

    # Products of large numbers that differ little are inexact: the mean over all places is added again at the end.
    level = maps.mean(dim=(1, 2), keepdim=True)
    maps = maps - level
    color_means, map_means = mean(colors), mean(maps)
    fitted = maps.new_empty((4, *maps.shape))
    offsets, slopes = fitted[0], fitted[1:]
    slopes.copy_(mean(colors[:, None] * maps)).sub_(color_means[:, None] * map_means)
    first, second = [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]
    rr, rg, rb, gg, gb, bb = mean(colors[first] * colors[second]) - color_means[first] * color_means[second]
    # A symmetric 3 x 3 system at each place, as L D L^T.
    r = rr.clamp_(min=0) + smoothness
    g_r, b_r = rg / r, rb / r
    g = (gg - g_r * rg).clamp_(min=0) + smoothness
    b_g = (gb - b_r * rg) / g
    b = (bb - b_r * rb - b_g.square() * g).clamp_(min=0) + smoothness
    slopes[1].addcmul_(g_r, slopes[0], value=-1)
    slopes[2].addcmul_(b_r, slopes[0], value=-1).addcmul_(b_g, slopes[1], value=-1)
    slopes[2].div_(b)
    slopes[1].div_(g).addcmul_(b_g, slopes[2], value=-1)
    slopes[0].div_(r).addcmul_(g_r, slopes[1], value=-1).addcmul_(b_r, slopes[2], value=-1)
    torch.add(map_means, level, out=offsets)
    for slope, color in zip(slopes, color_means, strict=True):
        offsets.addcmul_(slope, color, value=-1)
    return fitted


def _read(
    fitted: torch.Tensor, colors: torch.Tensor, size: tuple[int, int], rows: torch.Tensor, first: int = 0,
    num_rows: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """Linear functions of colours, resized to some rows of a finer grid, at the colours that are there.

    Args:
        fitted: see [`_fit`].
        colors: `[3, rows, columns]` of the finer grid.
        size: `(rows, columns)` of the whole finer grid.
        rows: those of it that are wanted.
        first, num_rows: the first row that `fitted` has, of how many.

    Returns:
        `[num_maps, rows, columns]`
    """
    finer = _resized_rows(fitted.flatten(0, 1), size, rows, first, num_rows).unflatten(0, fitted.shape[:2])
    values = finer[0]
    for slope, color in zip(finer[1:], colors, strict=True):
        values.addcmul_(slope, color)
    return values


def _resized_rows(
    maps: torch.Tensor, size: tuple[int, int], rows: torch.Tensor, first: int = 0, num_rows: int | None = None
) -> torch.Tensor:
    """Rows of a bilinear resize (`align_corners=False`), from maps that begin with row `first` of `num_rows`."""
    low, high, share = _sources(rows, size[0], num_rows or maps.shape[1])
    between = torch.lerp(maps[:, low - first], maps[:, high - first], share[:, None])
    return F.interpolate(between[None], size=(len(rows), size[1]), mode="bilinear", align_corners=False)[0]


def _sources(rows: torch.Tensor, size: int, num_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The two of `num_rows` rows that each of `rows` of `size` lies between, and its way from one to the other."""
    places = ((rows.float() + 0.5) * (num_rows / size) - 0.5).clamp(min=0)
    low = places.floor().long().clamp(max=num_rows - 1)
    return low, (low + 1).clamp(max=num_rows - 1), places - low


def _mean_colors(image: PIL.Image.Image, size: tuple[int, int], device: torch.device) -> torch.Tensor:
    means = image.resize((size[1], size[0]), PIL.Image.Resampling.BOX)
    return _centred(torch.tensor(np.asarray(means), device=device).permute(2, 0, 1))


def _centred(colors: torch.Tensor) -> torch.Tensor:
    """Colours `[3, height, width]` of 0 to 255 as they are compared: around 0, most of their brightness taken out."""
    colors = colors.float() - 128
    return colors.sub_((1 - BRIGHTNESS) * colors.mean(dim=0))


def _check(maps: torch.Tensor, image, name: str) -> PIL.Image.Image:
    if not (isinstance(maps, torch.Tensor) and maps.is_floating_point() and maps.dim() == 3 and maps.numel()):
        found = f"{maps.dtype} {list(maps.shape)}" if isinstance(maps, torch.Tensor) else type(maps).__name__
        raise ValueError(f"`{name}` must be floats [number, grid_height, grid_width], got {found}")
    if not maps.isfinite().all():
        raise ValueError(f"`{name}` must be finite")
    if isinstance(image, PIL.Image.Image):
        return image.convert("RGB")
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"`image` must be a PIL image or uint8 [height, width, 3], got {found}")
    return PIL.Image.fromarray(image)


__all__ = ["guided_argmax", "guided_resize", "guided_segmentation", "guided_strips"]
