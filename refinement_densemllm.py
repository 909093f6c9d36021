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
"""Refinement of label maps along the edges of the image: a fully connected CRF, cut off at a window."""

import inspect
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F


NEGLIGIBLE = 1e-4  # change of a probability in a step by labels that are left out of the messages
LABELS_AT_ONCE, ELEMENTS_AT_ONCE = 8, 2**24  # the larger of the two: in small images all labels
KEPT_LABELS, KEPT_ELEMENTS = 24, 2**27  # the larger of the two: 512 MB
WINDOW_ELEMENTS = 2**26  # kernel values that are kept: 256 MB, of images up to some 340x340 at the default radius
TILE_ELEMENTS, CACHED_ELEMENTS = 2**22, 2**19  # kernel values used at once, and made at once on a CPU
GATHERED_ELEMENTS = 2**24  # values of neighbours at once, where kernel values are kept
MAX_TILE, MAX_PAIRS = 16, 2**12  # of the bilateral term's tiles along an axis: own pixels, and pairs
LOWEST = -64.0  # exponent of two of the smallest kernel value: too small to change a sum
STRIP = 128  # pixels of an axis that the spatial term works on at once
MIN_PROBABILITY = 1e-5  # floor of the unary term's probabilities, as in pydensecrf's `unary_from_softmax`


@torch.no_grad()
def refine_crf(
    probabilities: torch.Tensor,
    image: "np.ndarray | PIL.Image.Image",
    iterations: int = 5,
    spatial_weight: float = 3.0,
    spatial_sigma: float = 3.0,
    spatial_radius: int = 9,
    bilateral_weight: float = 10.0,
    bilateral_sigma: float = 80.0,
    color_sigma: float = 13.0,
    bilateral_radius: int = 8,
    bilateral_dilation: int | None = None,
) -> torch.Tensor:
    r"""Mean-field inference of a fully connected CRF whose pairwise terms end at a window.

    The model is that of Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
    Potentials" (NIPS 2011, algorithm 1), with Potts compatibility. With pixels i, j at positions p and colours c:

        spatial_ij   = exp(-|p_i - p_j|^2 / (2 spatial_sigma^2))
        bilateral_ij = exp(-|p_i - p_j|^2 / (2 bilateral_sigma^2) - |c_i - c_j|^2 / (2 color_sigma^2))
        Q_i(l)  <-  softmax_l( log P_i(l) + sum over kernels of weight * sum_{j != i} k_ij Q_j(l) / sqrt(n_i n_j) )

    where n_i is the sum of k_ij over all j in the window, i included (`NORMALIZE_SYMMETRIC` of pydensecrf). Weights
    and sigmas are those of pydensecrf's README. Unlike pydensecrf, whose lattice filter can't tell a pixel from its
    neighbours, a pixel sends itself no message, as in the paper.

    Both windows are squares. The spatial one is dense. The bilateral one is SAMPLED: of the pixels up to
    `bilateral_radius * bilateral_dilation` away, only those at multiples of `bilateral_dilation` on both axes send a
    message; at dilation 1 all do, and with windows as wide as the image the result is the exact fully connected
    one. Time grows with `iterations * height * width * num_labels * bilateral_radius ** 2`, whatever the sigmas and
    the dilation; memory is about twice that of `probabilities`, and 256 MB at most for kernel values; of maps that
    are to be resized, and of which only the best is wanted, [`refine_crf_argmax`] needs less. A wide window at small
    cost is a large dilation; a large image is refined faster at a smaller size, with the sigmas (all but
    `color_sigma`) scaled alike.

    Args:
        probabilities: float `[num_labels, height, width]`, at least 0, normalised here at each pixel and
            floored at 1e-5; a pixel of zeros counts as undecided. Their device is where all is computed, in float32.
        image: PIL image, or `uint8 [height, width, 3]`, RGB, of the same size.
        iterations: mean-field steps, all pixels at once.
        spatial_weight: of the messages from near pixels, at least 0; they smooth away specks.
        spatial_sigma: in pixels.
        spatial_radius: half the edge of the spatial window, in pixels.
        bilateral_weight: of the messages from pixels of like colour, at least 0; they pull edges to the image's.
        bilateral_sigma: in pixels.
        color_sigma: in grey levels of 0 to 255.
        bilateral_radius: half the edge of the bilateral window, in steps of `bilateral_dilation` pixels.
        bilateral_dilation: in pixels; where left out the smallest with which the window reaches `bilateral_sigma`
            pixels, or the far end of a smaller image.

    Returns:
        `float32 [num_labels, height, width]`, probabilities that sum to 1 at each pixel.

    Raises:
        ValueError: an argument out of range, or an image and probabilities that do not fit.
    """
    probabilities, colors = _check_maps(probabilities, image)
    options = {
        "spatial_weight": spatial_weight, "spatial_sigma": spatial_sigma, "spatial_radius": spatial_radius,
        "bilateral_weight": bilateral_weight, "bilateral_sigma": bilateral_sigma, "color_sigma": color_sigma,
        "bilateral_radius": bilateral_radius, "bilateral_dilation": bilateral_dilation,
    }  # fmt: skip
    kernels = _message_kernels(colors, iterations, **options)
    total = probabilities.sum(dim=0).clamp(min=torch.finfo(torch.float32).tiny)

    def log_unary(labels: slice) -> torch.Tensor:
        return (probabilities[labels] / total).clamp_(min=MIN_PROBABILITY).log_()

    refined = torch.empty_like(probabilities)
    blocks = _label_blocks(len(probabilities), probabilities.shape[1:])
    normalizer = _mean_field(log_unary, blocks, kernels, iterations, len(blocks), None, refined.__setitem__)
    return refined.sub_(normalizer).exp_()


@torch.no_grad()
def refine_crf_argmax(
    probabilities: torch.Tensor, image: "np.ndarray | PIL.Image.Image", iterations: int = 5, **options: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best label of each pixel after [`refine_crf`] of maps that are resized to the image, and its probability.

    There is no array of all labels at all pixels: memory is that of some 70 float32 maps of the image's size at most
    (280 bytes a pixel; of small images below 1.3 GB), however many labels there are. Labels are coupled by the
    normaliser of each pixel alone. So what all labels add to it is summed up a few labels at a time; a label's state,
    where it was not kept, is computed again from its unary term and the normalisers of the steps before: three times
    the work in 5 iterations, for those beyond the first 24 at 12 megapixels. Labels that can't win a pixel send no
    messages: together they would change no probability of a step by more than `NEGLIGIBLE`. Apart from that, and from
    rounding, the result is that of [`refine_crf`].

    Args:
        probabilities: float `[num_labels, grid_height, grid_width]`, of at least 0, on the grid of vision tokens;
            resized bilinearly, and normalised there.
        image, iterations, options: see [`refine_crf`]; the image's size is that of the result.

    Returns:
        `int64 [height, width]`, position of the best label, and `float32 [height, width]`, its probability in [0, 1].

    Raises:
        ValueError: see [`refine_crf`].
    """
    probabilities, colors = _check_maps(probabilities, image, same_size=False)
    defaults = {name: value.default for name, value in inspect.signature(refine_crf).parameters.items()}
    options = {name: options.pop(name, defaults[name]) for name in list(defaults)[3:]} | options
    kernels = _message_kernels(colors, iterations, **options)
    size = tuple(colors.shape[:2])
    total = _resized(probabilities.sum(dim=0, keepdim=True), size).clamp_(min=torch.finfo(torch.float32).tiny)

    def unary(labels) -> torch.Tensor:
        return _resized(probabilities[labels], size).div_(total).clamp_(min=MIN_PROBABILITY)

    blocks = _label_blocks(len(probabilities), size)
    highest = torch.cat([unary(block).amax(dim=(1, 2)) for block in blocks])
    rest = None
    active = _can_matter(highest, kernels, iterations, torch.ones_like(total))
    if not active.all():
        idle = (~active).nonzero()[:, 0]
        rest = sum(unary(part).sum(dim=0) for part in idle.split(blocks[0].stop)).log_()
    labels = active.nonzero()[:, 0]
    blocks = _label_blocks(len(labels), size)
    best = torch.zeros(size, dtype=torch.long, device=probabilities.device)
    highest = torch.full(size, float("-inf"), dtype=torch.float32, device=probabilities.device)

    def choose(block: slice, logits: torch.Tensor) -> None:
        value, position = logits.max(dim=0)
        is_better = value > highest
        best.copy_(torch.where(is_better, labels[block][position], best))
        highest.copy_(torch.where(is_better, value, highest))

    num_kept = max(KEPT_LABELS, KEPT_ELEMENTS // math.prod(size)) // max(1, blocks[0].stop)
    if len(blocks) == 1:  # small enough to keep
        only = unary(labels).log_()

        def log_unary(block: slice) -> torch.Tensor:
            return only.clone()
    else:

        def log_unary(block: slice) -> torch.Tensor:
            return unary(labels[block]).log_()

    normalizer = _mean_field(log_unary, blocks, kernels, iterations, num_kept, rest, choose)
    return best, (highest - normalizer).exp_()


def _mean_field(
    log_unary: Callable[[slice], torch.Tensor],
    blocks: list[slice],
    kernels: list[tuple],
    iterations: int,
    num_kept: int,
    rest: torch.Tensor | None,
    last: Callable[[slice, torch.Tensor], None],
) -> torch.Tensor:
    """Mean-field steps over blocks of labels.

    Args:
        log_unary: log-probabilities `float32 [labels of the block, height, width]`, each time anew.
        blocks: of labels.
        kernels: see [`_message_kernels`].
        iterations: number of steps.
        num_kept: blocks whose state is kept from step to step; that of the others is computed again.
        rest: log of the sum of the probabilities of labels that belong to no block.
        last: takes each block and its logits of the last step.

    Returns:
        `float32 [height, width]`, the logsumexp of the last step's logits of all labels.
    """

    def update(block: slice, logits: torch.Tensor, normalizer: torch.Tensor) -> torch.Tensor:
        refined = logits.sub_(normalizer).exp_()
        logits = log_unary(block)
        for weight, message_sum, scale in kernels:
            # Potts: a cost for the mass on other labels, which is 1 less that on the same one; the 1 cancels out.
            logits.addcmul_(message_sum(refined * scale), scale, value=weight)
        return logits

    total = rest
    for block in blocks:
        total = _log_add(total, log_unary(block))
    normalizers = [total]
    kept: dict[int, torch.Tensor] = {}
    for step in range(iterations):
        total = rest
        for index, block in enumerate(blocks):
            logits = kept.pop(index, None)
            if logits is None:
                logits = log_unary(block)
                for normalizer in normalizers[:-1]:
                    logits = update(block, logits, normalizer)
            logits = update(block, logits, normalizers[-1])
            total = _log_add(total, logits)
            if step == iterations - 1:
                last(block, logits)
            elif index < num_kept:
                kept[index] = logits
        normalizers.append(total)
    return normalizers[-1]


def _log_add(total: torch.Tensor | None, logits: torch.Tensor) -> torch.Tensor:
    summed = logits.logsumexp(dim=0)
    return summed if total is None else torch.logaddexp(total, summed)


def _label_blocks(num_labels: int, size: tuple[int, int]) -> list[slice]:
    """Labels that are worked on at once: the weights of a pair of pixels serve them all."""
    at_once = max(LABELS_AT_ONCE, ELEMENTS_AT_ONCE // math.prod(size))
    return [slice(start, min(start + at_once, num_labels)) for start in range(0, num_labels, at_once)]


def _can_matter(highest: torch.Tensor, kernels: list[tuple], iterations: int, ones: torch.Tensor) -> torch.Tensor:
    """Which labels can win a pixel, or change the probabilities of others by their messages: `bool [num_labels]`.

    With m the largest sum of a pixel's weighted kernel values, a label of probability at most p everywhere has at most
    q = p exp(m q') after a step, where q' is that of the step before: the normaliser is never below 1.

    Args:
        highest: largest probability of each label over all pixels, `float32 [num_labels]`.
        kernels, iterations: see [`_mean_field`].
        ones: `float32 [1, height, width]`.
    """
    share = 1 / len(highest) - 1e-6  # the winner of a pixel has no less
    if not kernels:
        return highest >= share  # the unary term decides
    if not (highest < 0.02).any():  # none of them will be left out: save a sum over all windows
        return torch.ones_like(highest, dtype=torch.bool)
    strongest = sum(weight * message_sum(ones * scale) * scale for weight, message_sum, scale in kernels).max()
    reached = highest
    for _ in range(iterations):
        reached, before = (highest * (strongest * reached).exp()).clamp(max=1), reached
    change = highest * torch.expm1(strongest * before)
    order = highest.argsort()
    is_idle = torch.zeros_like(highest, dtype=torch.bool)
    is_idle[order] = change[order].cumsum(dim=0) <= NEGLIGIBLE
    return ~(is_idle & (reached < share))


def _resized(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def _message_kernels(
    colors: torch.Tensor,
    iterations: int,
    spatial_weight: float,
    spatial_sigma: float,
    spatial_radius: int,
    bilateral_weight: float,
    bilateral_sigma: float,
    color_sigma: float,
    bilateral_radius: int,
    bilateral_dilation: int | None,
) -> list[tuple[float, Callable[[torch.Tensor], torch.Tensor], torch.Tensor]]:
    """The weight of each pairwise term, its sum over a pixel's window (which leaves the pixel out), and the factor
    `float32 [1, height, width]` that normalises it on both sides. Arguments: see [`refine_crf`]."""
    for name, sigma in (
        ("spatial_sigma", spatial_sigma),
        ("bilateral_sigma", bilateral_sigma),
        ("color_sigma", color_sigma),
    ):
        if not (sigma > 0 and math.isfinite(sigma)):
            raise ValueError(f"`{name}` must be a finite number greater than 0, got {sigma}")
    for name, weight in (("spatial_weight", spatial_weight), ("bilateral_weight", bilateral_weight)):
        if not (weight >= 0 and math.isfinite(weight)):
            raise ValueError(f"`{name}` must be a finite number of at least 0, got {weight}")
    if bilateral_dilation is None and bilateral_radius >= 1:
        reach = min(bilateral_sigma, max(colors.shape[:2]) - 1)
        bilateral_dilation = max(1, math.ceil(reach / bilateral_radius))
    for name, count in (
        ("iterations", iterations),
        ("spatial_radius", spatial_radius),
        ("bilateral_radius", bilateral_radius),
        ("bilateral_dilation", bilateral_dilation),
    ):
        if not (isinstance(count, int) and count >= 1):
            raise ValueError(f"`{name}` must be a whole number of at least 1, got {count}")
    filters = []
    if spatial_weight > 0:
        filters.append((spatial_weight, lambda values: _spatial_sum(values, spatial_sigma, spatial_radius)))
    if bilateral_weight > 0:
        windows = _Windows(colors, bilateral_sigma, color_sigma, bilateral_radius, bilateral_dilation)
        filters.append((bilateral_weight, windows.sum))
    # The sums leave a pixel itself out; its own kernel value, 1, belongs to the norm.
    ones = torch.ones((1, *colors.shape[:2]), dtype=torch.float32, device=colors.device)
    return [(weight, message_sum, (message_sum(ones) + 1).rsqrt()) for weight, message_sum in filters]


def check_crf_options(options: dict) -> dict:
    """A copy of the options, if [`refine_crf`] takes them; a `ValueError` if not."""
    known = list(inspect.signature(refine_crf).parameters)[2:]
    if not isinstance(options, dict) or set(options) - set(known):
        raise ValueError(f"`crf_options` must be a dict with names of {known}, got {options!r}")
    try:  # on an image of one pixel
        refine_crf(torch.ones(1, 1, 1), np.zeros((1, 1, 3), np.uint8), **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`crf_options` can't be used: {error}") from error
    return dict(options)


def _check_maps(probabilities: torch.Tensor, image, same_size: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Both inputs as tensors on one device, `float32 [num_labels, height, width]` and `uint8 [height, width, 3]`."""
    if not (isinstance(probabilities, torch.Tensor) and probabilities.is_floating_point()):
        kind = probabilities.dtype if isinstance(probabilities, torch.Tensor) else type(probabilities).__name__
        raise ValueError(f"`probabilities` must be a floating-point tensor, got {kind}")
    if probabilities.dim() != 3 or probabilities.numel() == 0:
        raise ValueError(f"`probabilities` must be [num_labels, height, width], got {list(probabilities.shape)}")
    probabilities = probabilities.float()
    if not (probabilities.isfinite().all() and (probabilities >= 0).all()):
        raise ValueError("`probabilities` must be finite and at least 0; are these logits?")
    colors = np.asarray(image.convert("RGB") if isinstance(image, PIL.Image.Image) else image)
    size = tuple(probabilities.shape[1:])
    if not same_size and colors.ndim == 3:
        size = tuple(colors.shape[:2])
    if colors.dtype != np.uint8 or colors.shape != (*size, 3):
        raise ValueError(
            f"`image` must be uint8 {[*size, 3]}, the size of `probabilities`, got {colors.dtype} {list(colors.shape)}"
        )
    return probabilities, torch.tensor(colors, device=probabilities.device)


def _spatial_sum(values: torch.Tensor, sigma: float, radius: int) -> torch.Tensor:
    """Gaussian-weighted sum over a pixel's square window, without the pixel: `[num_maps, height, width]`, same shape.

    A Gaussian in a square is the product of one along each axis. Along an axis it is a band matrix, and the product
    with it is taken a strip of `STRIP` pixels at a time: few large steps, where shifts would be many small ones.
    """
    summed = values
    for dim in (1, 2):
        line, size = summed, values.shape[dim]
        summed = torch.empty_like(values)
        for start in range(0, size, STRIP):
            end = min(start + STRIP, size)
            low, high = max(0, start - radius), min(size, end + radius)
            own, near = (torch.arange(*ends, device=values.device) for ends in ((start, end), (low, high)))
            steps = (near[:, None] - own).abs_()
            band = (steps.float().square_() / (-2 * sigma**2)).exp_().masked_fill_(steps > radius, 0)
            part = line.narrow(dim, low, high - low)
            summed.narrow(dim, start, end - start).copy_(part @ band if dim == 2 else band.T @ part)
    return summed.sub_(values)


class _Windows:
    """The kernel of the bilateral term, as matrices.

    With dilation d the pixels of an image are d * d phases, none of which sends messages to another. A phase is cut
    into tiles, and the windows of a tile's pixels lie within one block. So the messages of all labels are a matrix
    product for each tile, `[labels, near] @ [near, own]`, and those of many tiles one batch of products. Matrices are
    kept from step to step where all of them have no more than `WINDOW_ELEMENTS`, and made anew where not.

    Args:
        colors: `uint8 [height, width, 3]`.
        sigma, color_sigma, radius, dilation: as in [`refine_crf`].
    """

    def __init__(self, colors: torch.Tensor, sigma: float, color_sigma: float, radius: int, dilation: int):
        self.size = tuple(colors.shape[:2])
        # Red, green, blue, and 1; a row and a column of zeros stand for what is outside.
        self.colors = F.pad(F.pad(colors, (0, 1), value=1), (0, 0, 0, 1, 0, 1)).flatten(0, 1)
        self.color_factor = -1 / (2 * math.log(2) * color_sigma**2)
        self.axes = [_cut_axis(size, sigma, radius, dilation, colors.device) for size in self.size]
        shape = [math.prod(axis[0][2].shape[place] for axis in self.axes) for place in (0, 1)]
        num_tiles = math.prod(sum(len(own) for own, _, _ in axis) for axis in self.axes)
        self.kept = None
        if num_tiles * math.prod(shape) <= WINDOW_ELEMENTS:
            weights = torch.empty((num_tiles, *shape), dtype=torch.float32, device=colors.device)
            places = [batch[:2] for batch in self._batches(weights)]
            self.kept = (*(torch.cat(part) for part in zip(*places, strict=True)), weights)

    def _batches(self, out: torch.Tensor | None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Of some tiles at a time: their pixels `int64 [tiles, own]` and those of their blocks `int64 [tiles, near]`,
        as rows of a table of all pixels, and kernel values `float32 [tiles, near, own]`: in `out`, if it is given."""
        done = 0
        for (own_rows, near_rows, down), (own_columns, near_columns, across) in itertools.product(*self.axes):
            exponents = (down[:, None, :, None] + across[:, None]).flatten(2).flatten(0, 1)
            num_tiles, at_once = len(own_rows) * len(own_columns), max(1, TILE_ELEMENTS // exponents.numel())
            for start in range(0, num_tiles, at_once):
                tiles = torch.arange(start, min(start + at_once, num_tiles), device=self.colors.device)
                row, column = tiles.div(len(own_columns), rounding_mode="floor"), tiles.remainder(len(own_columns))
                own, near = (
                    (rows[row][:, :, None] * (self.size[1] + 1) + columns[column][:, None]).flatten(1)
                    for rows, columns in ((own_rows, own_columns), (near_rows, near_columns))
                )
                if out is None:
                    weights = exponents.new_empty((len(tiles), *exponents.shape))
                else:
                    weights, done = out[done : done + len(tiles)], done + len(tiles)
                self._fill(weights, own, near, exponents)
                yield own, near, weights

    def _fill(self, weights: torch.Tensor, own: torch.Tensor, near: torch.Tensor, exponents: torch.Tensor) -> None:
        """Kernel values of tiles; those out of the window, and any smaller ones, are 2 ** `LOWEST`.

        Args: weights, own, near: see `_batches`; exponents: of two, for the distances of pixels, `[near, own]`.
        """
        own, near = (self.colors.index_select(0, part.flatten()).view(*part.shape, 4).float() for part in (own, near))
        own, near = own[..., :3] - 128, near[..., :3] - 128
        # Squared distances of colours as products: all numbers are whole and below 2 ** 24, hence exact.
        own_norm, near_norm = own.square().sum(dim=2, keepdim=True), near.square().sum(dim=2, keepdim=True)
        near = torch.cat([near, near_norm, torch.ones_like(near_norm)], dim=2)
        own = torch.cat([own.mul_(-2), torch.ones_like(own_norm), own_norm], dim=2).transpose(1, 2)
        # On a CPU, as many at once as stay in its cache.
        at_once = max(1, CACHED_ELEMENTS // exponents.numel()) if weights.device.type == "cpu" else len(own)
        buffer = torch.empty_like(weights[:at_once])
        for near_part, own_part, part in zip(*(all_.split(at_once) for all_ in (near, own, weights)), strict=True):
            distance = torch.bmm(near_part, own_part, out=buffer[: len(part)])
            # Powers of two, none of them denormal: on CPUs several times as fast as others.
            torch.add(exponents, distance, alpha=self.color_factor, out=part).clamp_(min=LOWEST).exp2_()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """`[num_maps, height, width]` to weighted sums over windows, without the pixel itself; same shape."""
        (height, width), num_maps = self.size, len(values)
        table = values.new_zeros((height + 1, width + 1, num_maps))
        table[:height, :width] = values.permute(1, 2, 0)
        summed = torch.empty_like(table)
        batches = self._batches()
        if self.kept is not None:
            at_once = max(1, GATHERED_ELEMENTS // (self.kept[1].shape[1] * num_maps))
            batches = zip(*(part.split(at_once) for part in self.kept), strict=True)
        for own, near, weights in batches:
            messages = table.view(-1, num_maps).index_select(0, near.flatten()).view(*near.shape, num_maps)
            messages = (messages.transpose(1, 2) @ weights).transpose(1, 2)
            summed.view(-1, num_maps).index_copy_(0, own.flatten(), messages.reshape(-1, num_maps))
        summed -= table  # a pixel's own kernel value is 1
        return summed[:height, :width].permute(2, 0, 1)


def _cut_axis(
    size: int, sigma: float, radius: int, dilation: int, device: torch.device
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Tiles along an axis, of all phases, in groups whose blocks begin alike.

    Returns:
        `int64 [tiles, own]`, the pixels of each; `int64 [tiles, near]`, those of its block, in both `size` where there
        is none; and `float32 [near, own]`, exponents of two for their distances, -inf out of the window.
    """
    length = -(-size // dilation)  # of the longest phase

    def block(own: int) -> int:
        starts = range(0, length, own)
        return max(min(length, start + own + radius) - max(0, start - radius) for start in starts)

    def cost(own: int) -> int:  # smaller products have fewer pairs out of the window, larger ones are faster
        return -(-length // own) * (own + 4) * block(own)

    sizes = range(1, min(length, MAX_TILE) + 1)
    own = min((own for own in sizes if own == 1 or own * block(own) <= MAX_PAIRS), key=cost)
    near = block(own)
    groups: dict[int, list[int]] = {}
    for start in range(0, length, own):
        groups.setdefault(start - max(0, min(start - radius, length - near)), []).append(start)
    phases = torch.arange(min(dilation, size), device=device)
    own, near = torch.arange(own, device=device), torch.arange(near, device=device)
    cut = []
    for before, starts in groups.items():
        first = (phases[:, None] + dilation * torch.tensor(starts, device=device)).flatten()[:, None]
        steps = (near[:, None] - before - own).abs_()
        exponents = (steps.float() * dilation).square_() * (-1 / (2 * math.log(2) * sigma**2))
        pixels = [(first + dilation * part).clamp_(max=size) for part in (own, near - before)]
        cut.append((*pixels, exponents.masked_fill_(steps > radius, float("-inf"))))
    return cut


__all__ = ["check_crf_options", "refine_crf", "refine_crf_argmax"]
