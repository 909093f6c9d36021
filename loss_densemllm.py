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
"""NTP-M: next-token prediction with several labels a vision token (arXiv 2602.14134, the paper's loss)."""

import itertools

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from .numbers_densemllm import (
    IGNORED,
    DenseNumbers,
    label_numbers,
    supervised_tokens,
    true_places,
)


CHUNK_ELEMENTS = 2**24  # scores at a time: 64 MB in float32
CHUNK_ROWS = 1024  # tokens at a time; with fewer, a matrix product spends its time on reading the embedding
HEAD_CALL_ROWS = 256  # tokens in a call of a layer of which only the forward is known: 290 MB of released logits
GROUP = 32  # scores whose maximum is looked at first; any number gives the same result
LONG_RANGE = 1024  # ids; a shorter range of an embedding is copied


def one_kind_a_row(
    states: torch.Tensor, dense_targets: torch.Tensor, dense_candidates: torch.Tensor, count: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States (or logits) `[n_tokens, d]` and their targets with a row for each kind of annotation that a token has,
    so that `dense_candidates` becomes one-dimensional. Arguments as for [`ntp_m_loss`]; `count` of `dense_candidates`
    are known not to be -1."""
    if dense_candidates.ndim == 1:
        return states, dense_targets, dense_candidates
    if dense_candidates.shape[1] == 1:
        return states, dense_targets, dense_candidates[:, 0]
    if count is None:
        tokens, kinds = (dense_candidates >= 0).nonzero(as_tuple=True)
    else:
        places = true_places((dense_candidates >= 0).flatten(), count)
        tokens = places.div(dense_candidates.shape[1], rounding_mode="floor")
        kinds = places - tokens * dense_candidates.shape[1]
    return states[tokens], dense_targets[tokens], dense_candidates[tokens, kinds]


def candidate_mask(dense_candidate_ranges: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Half-open ranges of ids `int64 [n_rows, n_ranges, 2]` as `bool [n_rows, vocab_size]`."""
    steps = dense_candidate_ranges.new_zeros(dense_candidate_ranges.shape[0], vocab_size + 1)
    starts, ends = dense_candidate_ranges.unbind(dim=-1)
    steps.scatter_add_(1, starts, torch.ones_like(starts))
    steps.scatter_add_(1, ends, -torch.ones_like(ends))
    return steps.cumsum(dim=1)[:, :-1] > 0


def ntp_m_loss(
    logits: torch.Tensor,
    dense_targets: torch.Tensor,
    dense_candidates: torch.Tensor,
    dense_candidate_ranges: torch.Tensor,
    top_k: int,
    num_items: "torch.Tensor | int | None" = None,
) -> torch.Tensor:
    """The NTP-M loss in its plain form: the paper's equations over full logits.

    For vision token i with probabilities p_iv = sigmoid(z_iv), annotated ids M_i, positives P_i and negatives
    C_i = M_i without P_i, let N_i be the `top_k` members of C_i with the highest p_iv (all, where there are fewer):

        L = mean over supervised i of  -mean over P_i of log p_iv  -  mean over N_i of log(1 - p_iv)

    Positives and negatives are averaged apart. A token without a positive is not supervised; without a negative, its
    second term is 0. In the paper a sample has one kind of annotation: classes, or depth, or a foreground. One that
    has several counts as so many samples, each with its own M_i; otherwise the hardest negatives of the classes would
    all be depth bins, whose neighbours can hardly be told apart.

    Args:
        logits: `[n_tokens, vocab_size]`, any floating-point type; computed in float32.
        dense_targets: `int64 [n_tokens, max_targets]`, positive ids, filled up with -100. Ids outside the token's
            candidates don't count.
        dense_candidates: `int64 [n_tokens]` or `[n_tokens, n_kinds]`, the token's row of the next argument for each
            kind of annotation, -1 where it has none. The mean runs over all pairs of a token and a kind.
        dense_candidate_ranges: `int64 [n_rows, n_ranges, 2]`, the annotated ids M_i as half-open ranges, which don't
            overlap within a row; (0, 0) is empty.
        top_k: how many negatives a token gets.
        num_items: divide the sum by this and not by the number of supervised tokens (of each kind): the global
            count where a batch is spread over several steps or processes.

    Returns:
        scalar `float32` (or `float64`); 0 with a gradient of 0 where no token is supervised.

    Raises:
        ValueError: shapes that don't fit, `top_k` below 1, or ids outside the vocabulary.
    """
    n_tokens, vocab_size = logits.shape
    numbers = check_dense_targets(n_tokens, vocab_size, dense_targets, dense_candidates, dense_candidate_ranges, top_k)
    logits, dense_targets, dense_candidates = one_kind_a_row(
        logits, dense_targets, dense_candidates, numbers.num_pairs
    )
    rows = true_places(supervised_tokens(dense_targets, dense_candidates), sum(numbers.supervised))
    scores = logits[rows]
    scores = scores if scores.dtype == torch.float64 else scores.float()
    candidates = candidate_mask(dense_candidate_ranges, vocab_size)[dense_candidates[rows]]
    targets = dense_targets[rows]
    # The extra column takes what only fills up.
    positives = candidates.new_zeros(len(rows), vocab_size + 1)
    positives.scatter_(1, targets.masked_fill(targets == IGNORED, vocab_size), True)
    positives = positives[:, :-1] & candidates
    n_positives = positives.sum(dim=1)
    positive_term = F.softplus(-scores).masked_fill(~positives, 0).sum(dim=1) / n_positives.clamp(min=1)
    hardest = scores.masked_fill(~candidates | positives, float("-inf")).topk(min(top_k, vocab_size), dim=1).values
    n_negatives = (hardest != float("-inf")).sum(dim=1)
    negative_term = F.softplus(hardest).sum(dim=1) / n_negatives.clamp(min=1)
    has_positive = n_positives > 0
    total = ((positive_term + negative_term) * has_positive).sum()
    return total / (has_positive.sum().clamp(min=1) if num_items is None else num_items)


class _Columns:
    """The annotated ids of one row of ranges as the columns of a score matrix, in order of id, cut into pieces.

    Long ranges are read from the embedding where it lies; short ones are gathered.

    Attributes:
        num_ids: columns of all pieces together.
    """

    def __init__(self, ranges: tuple[tuple[int, int], ...], device: torch.device):
        self.ranges = ranges  # in order, none empty
        lengths = torch.tensor([end - start for start, end in self.ranges], dtype=torch.long)
        self.num_ids = int(lengths.sum())
        self.starts = torch.tensor([start for start, _ in self.ranges], dtype=torch.long, device=device)
        self.ends = self.starts + lengths.to(device)
        self.offsets = (lengths.cumsum(dim=0) - lengths).to(device)

    def pieces(self, size: int) -> list[list[tuple[int, int, slice | torch.Tensor]]]:
        """Pieces of `size` columns, the last one of what is left; a piece is a list of its parts: first column in the
        piece, one past the last, and ids."""
        pieces: list[list] = []
        room = 0
        for start, end in self.ranges:
            while start < end:
                if not room:
                    pieces.append([])
                    room = size
                stop = min(end, start + room)
                pieces[-1].append((start, stop))
                room -= stop - start
                start = stop
        return [self._parts(piece) for piece in pieces]

    def _parts(self, ranges: list[tuple[int, int]]) -> list[tuple[int, int, slice | torch.Tensor]]:
        parts, column = [], 0
        for is_long, group in itertools.groupby(ranges, key=lambda pair: pair[1] - pair[0] >= LONG_RANGE):
            group = list(group)
            if is_long:
                ids = [(end - start, slice(start, end)) for start, end in group]
            else:
                short = torch.cat([torch.arange(*pair) for pair in group])
                ids = [(len(short), short.to(self.starts.device))]
            for length, chosen in ids:
                parts.append((column, column + length, chosen))
                column += length
        return parts

    def positions(self, ids: torch.Tensor) -> torch.Tensor:
        """Column of each id; -1 for an id that is not annotated."""
        row = (torch.searchsorted(self.starts, ids, right=True) - 1).clamp(min=0)
        inside = (ids >= self.starts[row]) & (ids < self.ends[row])
        return torch.where(inside, ids - self.starts[row] + self.offsets[row], -1)

    def ids(self, positions: torch.Tensor) -> torch.Tensor:
        """Id of each column."""
        row = torch.searchsorted(self.offsets, positions, right=True) - 1
        return positions - self.offsets[row] + self.starts[row]


class _TopScores:
    """The `k` highest scores of each row and their columns, over pieces of a score matrix that come one by one.

    A score that enters stands in a group of columns whose maximum is above the lowest score so far, and at most in
    the `k` groups with the highest maxima: only those groups are looked through, which is many times faster than a
    selection over all columns.
    """

    def __init__(self, rows: int, k: int, dtype: torch.dtype, device: torch.device):
        self.k = k
        self.values = torch.full((rows, k), float("-inf"), dtype=dtype, device=device)
        self.columns = torch.zeros(rows, k, dtype=torch.long, device=device)

    def add(self, scores: torch.Tensor, first_column: int) -> None:
        """Add columns `first_column`... of the matrix; the number of them is a multiple of `GROUP`."""
        grouped = scores.view(len(scores), GROUP, -1)
        maxima = grouped.amax(dim=1)
        number = min(self.k, maxima.shape[1])
        if scores.device.type == "cpu":  # elsewhere the host would wait for each piece
            number = min(number, int((maxima > self.values.amin(dim=1, keepdim=True)).sum(dim=1).max()))
            if not number:
                return
        groups = maxima.topk(number, dim=1, sorted=False).indices
        values = grouped.gather(2, groups[:, None].expand(-1, GROUP, -1)).flatten(1)
        self.values, position = torch.cat([self.values, values], dim=1).topk(self.k, dim=1, sorted=False)
        new = (position - self.k).clamp(min=0)
        member = new.div(groups.shape[1], rounding_mode="floor")
        new = groups.gather(1, new - member * groups.shape[1]) + member * grouped.shape[2] + first_column
        old = self.columns.gather(1, position.clamp(max=self.k - 1))
        self.columns = torch.where(position < self.k, old, new)


def _chosen_scores(states, weights, columns: _Columns, size: int, positions, top_k: int, buffer: torch.Tensor):
    """Scores of the positives at `positions [n, max_targets]` (0 where that is -1), and the `top_k` highest of the
    other columns with their positions (-inf where there are fewer)."""
    positive = torch.zeros(positions.shape, dtype=buffer.dtype, device=buffer.device)
    top = _TopScores(len(buffer), top_k, buffer.dtype, buffer.device)
    for index, parts in enumerate(columns.pieces(size)):
        width = parts[-1][1]
        for start, end, ids in parts:
            torch.mm(states[0], weights[0][ids].T, out=buffer[:, start:end])
            for state, weight in zip(states[1:], weights[1:], strict=True):
                buffer[:, start:end].addmm_(state, weight[ids].T)
        buffer[:, width:] = float("-inf")
        local = positions - index * size
        is_here = (local >= 0) & (local < width)
        local = torch.where(is_here, local, width)
        positive = torch.where(is_here, buffer.gather(1, local), positive)
        buffer.scatter_(1, local, float("-inf"))
        top.add(buffer, index * size)
    return positive, top.values, top.columns


class _FusedNTPM(torch.autograd.Function):
    """Forward: scores of a block of tokens and columns at a time, of which only ids and derivatives of the positives
    and chosen negatives are kept. Backward: weighted sums of those ids' rows, and of those tokens' states."""

    @staticmethod
    def forward(ctx, dense_targets, dense_candidates, numbers, top_k, num_items, n_factors, *factors) -> torch.Tensor:
        states, weights = factors[:n_factors], factors[n_factors:]
        weights = [weight.to(states[0].dtype) for weight in weights]  # under autocast a copy, for as long as this runs
        device = states[0].device
        # Ids of a token in order, so that one that is named twice stands next to itself.
        targets = dense_targets.sort(dim=1).values
        again = torch.zeros_like(targets, dtype=torch.bool)
        again[:, 1:] = targets[:, 1:] == targets[:, :-1]
        targets = targets.masked_fill(again, IGNORED)
        supervised = supervised_tokens(targets, dense_candidates)

        wide = torch.float64 if states[0].dtype == torch.float64 else torch.float32
        total, count = torch.zeros((), dtype=wide, device=device), torch.zeros((), dtype=torch.long, device=device)
        kept: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # tokens, ids, derivatives
        # Tokens of all images that are annotated alike go together.
        table = {ranges: _Columns(ranges, device) for ranges in numbers.ranges}
        number = {ranges: index for index, ranges in enumerate(table)}
        own, counts = [number[ranges] for ranges in numbers.ranges], [0] * len(table)
        for index, supervised_with in zip(own, numbers.supervised, strict=True):
            counts[index] += supervised_with
        # In order of these, with what is not supervised at the end: their numbers are known without a look.
        group = torch.tensor([*own, len(table)], device=device)[dense_candidates.masked_fill(~supervised, len(own))]
        in_order = group.argsort(stable=True)[: sum(counts)].split(counts)
        top_k = min(top_k, max((columns.num_ids for columns in table.values()), default=0))
        for tokens, columns in zip(in_order, table.values(), strict=True):
            if not len(tokens) or not columns.num_ids:
                continue
            n_rows = min(len(tokens), max(CHUNK_ROWS, CHUNK_ELEMENTS // columns.num_ids))
            size = min(columns.num_ids, max(1, CHUNK_ELEMENTS // n_rows))
            # At least one column that nothing fills, up to a multiple of the group.
            buffer = torch.empty(n_rows, (size // GROUP + 1) * GROUP, dtype=states[0].dtype, device=device)
            for chunk in tokens.split(n_rows):
                positions = columns.positions(targets[chunk])
                positive, hardest, hard_positions = _chosen_scores(
                    [state[chunk] for state in states], weights, columns, size, positions, top_k, buffer[: len(chunk)]
                )
                positive, hardest = positive.to(wide), hardest.to(wide)
                is_positive, is_negative = positions >= 0, hardest != float("-inf")

                # A token whose targets all lie outside its candidates is not supervised after all.
                n_positives = is_positive.sum(dim=1, keepdim=True)
                has_positive = n_positives > 0
                positive_weight = is_positive.to(wide) / n_positives.clamp(min=1)
                n_negatives = is_negative.sum(dim=1, keepdim=True)
                negative_weight = (is_negative & has_positive).to(wide) / n_negatives.clamp(min=1)
                hardest = hardest.masked_fill(~is_negative, 0)
                losses = (F.softplus(-positive) * positive_weight).sum(dim=1)
                losses += (F.softplus(hardest) * negative_weight).sum(dim=1)
                total += losses.sum()
                count += has_positive.sum()
                ids = torch.cat([targets[chunk], columns.ids(hard_positions)], dim=1)
                slopes = torch.cat(
                    [-torch.sigmoid(-positive) * positive_weight, torch.sigmoid(hardest) * negative_weight], dim=1
                )
                kept.append((chunk, ids.masked_fill(slopes == 0, 0), slopes))
        kept = [torch.cat(parts) for parts in zip(*kept, strict=True)] if kept else []
        divisor = count.clamp(min=1) if num_items is None else num_items
        ctx.divisor, ctx.n_factors = divisor, n_factors
        ctx.save_for_backward(*factors, *kept)
        return total / divisor

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output) -> tuple[torch.Tensor | None, ...]:
        n = ctx.n_factors
        saved = ctx.saved_tensors  # once: a checkpoint lets them go
        states, weights, kept = saved[:n], saved[n : 2 * n], saved[2 * n :]
        needed = ctx.needs_input_grad[6:]
        if not kept:
            return *[None] * 6, *[torch.zeros_like(x) if need else None for x, need in zip(saved, needed, strict=True)]
        grads = [None] * (2 * n)
        tokens, ids, slopes = kept
        slopes = slopes * (grad_output / ctx.divisor)
        for index in range(n):
            if needed[index]:
                grads[index] = torch.zeros_like(states[index])
                rows = _weighted_rows(weights[index], ids, slopes)
                grads[index][tokens] = rows.to(states[index].dtype)
        if any(needed[n:]):
            vocab_size, tokens = len(weights[0]), tokens[:, None].expand_as(slopes)
            if ids.device.type == "cpu":
                used = slopes != 0
                tokens, ids, slopes = tokens[used], ids[used], slopes[used]
            else:  # to leave out what has no derivative is to wait for its number: shared out, its zeros cost little
                spread = torch.arange(ids.numel(), device=ids.device).view_as(ids) % vocab_size
                tokens, ids, slopes = (x.flatten() for x in (tokens, torch.where(slopes == 0, spread, ids), slopes))
            ids, order = ids.sort()
            tokens, slopes = tokens[order], slopes[order]
            starts = torch.searchsorted(ids, torch.arange(vocab_size, device=ids.device))
            for index in range(n):
                if needed[n + index]:
                    table = states[index].to(weights[index].dtype)  # the gradient's type: summed and rounded once
                    grads[n + index] = _weighted_rows(table, tokens, slopes, starts)
        return *[None] * 6, *grads


def _weighted_rows(table, rows, weights, offsets=None) -> torch.Tensor:
    """Weighted sums of a table's rows without a copy of them: of each row of `rows [n, k]`, or of the stretches of
    `rows [n]` that start at `offsets`; accumulated in float32."""
    return F.embedding_bag(rows, table, offsets, mode="sum", per_sample_weights=weights.to(table.dtype))


@torch.compiler.disable
def fused_ntp_m_loss(
    hidden_states: torch.Tensor,
    head: nn.Module,
    dense_targets: torch.Tensor,
    dense_candidates: torch.Tensor,
    dense_candidate_ranges: torch.Tensor,
    top_k: int,
    num_items: "torch.Tensor | int | None" = None,
    numbers: DenseNumbers | None = None,
) -> torch.Tensor:
    """[`ntp_m_loss`] of `head(hidden_states)` without the logits.

    Only the positives and the chosen negatives of a token have a derivative. Scores are computed for a few tokens at
    a time and over the annotated ids alone; the backward pass visits `max_targets + top_k` rows a token. Time is that
    of one matrix product of `[n_tokens, hidden_size]` with the annotated columns, memory does not grow with
    `n_tokens * vocab_size`.

    Args:
        hidden_states: `[n_tokens, hidden_size]`, any floating-point type; scores have this type, sums are in float32
            (or `float64`).
        head: the output embedding: a `nn.Linear`, or one with a LoRA adapter; for anything else (quantised, sharded)
            its own forward is called on a few tokens at a time, and again in the backward pass, and the gradients of
            its weights are summed by autograd, in their own type. Several processes call it equally often, so that all
            of them have to compute the loss, as sharded weights ask for anyway.
        dense_targets, dense_candidates, dense_candidate_ranges, top_k, num_items: see [`ntp_m_loss`].
        numbers: of the targets, where they have been read before; else the host waits once for them.

    Returns:
        scalar `float32` (or `float64`).

    Raises:
        ValueError: see [`ntp_m_loss`].
    """
    vocab_size = getattr(head, "out_features", None)
    arguments = (dense_targets, dense_candidates, dense_candidate_ranges)
    if vocab_size is not None:
        numbers = check_dense_targets(len(hidden_states), vocab_size, *arguments, top_k, numbers)
    elif numbers is None:
        numbers = DenseNumbers.read(*arguments)
    hidden_states, dense_targets, dense_candidates = one_kind_a_row(
        hidden_states, dense_targets, dense_candidates, numbers.num_pairs
    )
    factors = head_factors(head, hidden_states)
    if factors is not None:
        states, weights = zip(*factors, strict=True)
        arguments = (dense_targets, dense_candidates, numbers, top_k, num_items)
        return _FusedNTPM.apply(*arguments, len(states), *states, *weights)

    rows = true_places(supervised_tokens(dense_targets, dense_candidates), sum(numbers.supervised))

    def chunk_loss(states, chunk):
        targets = (dense_targets[chunk], dense_candidates[chunk], dense_candidate_ranges)
        return ntp_m_loss(head(states).to(states.device), *targets, top_k, num_items=1)

    pieces = [rows[piece] for piece in _equally_many_pieces(len(rows), hidden_states.device)]
    total = sum(checkpoint(chunk_loss, hidden_states[piece], piece, use_reentrant=False) for piece in pieces)
    if num_items is None:
        candidates = dense_candidate_ranges[dense_candidates[rows]]  # [n, n_ranges, 2]
        targets = dense_targets[rows][:, :, None]
        inside = (targets >= candidates[:, None, :, 0]) & (targets < candidates[:, None, :, 1])
        num_items = inside.any(dim=2).any(dim=1).sum().clamp(min=1)
    return total / num_items


class _FusedCrossEntropy(torch.autograd.Function):
    """Sum of cross entropies over all positions and a block of the vocabulary at a time; the logits are computed again
    in the backward pass.

    A block's rows of the embedding's gradient are one product over all positions, which the hardware sums in float32
    and rounds once, as it does with plain logits: no sum of rounded parts, and no float32 copy of that gradient.
    Weights are cast to the states' type a block at a time, so that nothing of their size is kept.
    """

    @staticmethod
    def forward(ctx, labels, n_factors, *factors) -> torch.Tensor:
        states, weights = factors[:n_factors], factors[n_factors:]
        wide = torch.float64 if states[0].dtype == torch.float64 else torch.float32
        normalizer = torch.full(labels.shape, float("-inf"), dtype=wide, device=labels.device)
        own = torch.zeros_like(normalizer)
        for block in _vocabulary_blocks(states[0], weights[0]):
            logits = _logits(states, weights, block).to(wide)
            normalizer = torch.logaddexp(normalizer, logits.logsumexp(dim=1))
            column, is_here = _columns_of(labels, block)
            own = torch.where(is_here, logits.gather(1, column[:, None])[:, 0], own)
        ctx.n_factors = n_factors
        ctx.save_for_backward(labels, normalizer, *factors)
        return (normalizer - own).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output) -> tuple[torch.Tensor | None, ...]:
        n = ctx.n_factors
        labels, normalizer, *factors = ctx.saved_tensors  # once: a checkpoint lets them go
        states, weights = factors[:n], factors[n:]
        needed = ctx.needs_input_grad[2:]
        sums = [
            torch.zeros_like(t, dtype=normalizer.dtype) if need else None
            for t, need in zip(states, needed[:n], strict=True)
        ]
        grads = [torch.empty_like(t) if need else None for t, need in zip(weights, needed[n:], strict=True)]
        for block in _vocabulary_blocks(states[0], weights[0]):
            slopes = _logits(states, weights, block).to(normalizer.dtype).sub_(normalizer[:, None]).exp_()
            column, is_here = _columns_of(labels, block)
            slopes.scatter_add_(1, column[:, None], -is_here[:, None].to(slopes.dtype))
            slopes = slopes.mul_(grad_output).to(states[0].dtype)
            for state, weight, state_sum, grad in zip(states, weights, sums, grads, strict=True):
                if state_sum is not None:
                    state_sum += slopes @ weight[block].to(slopes.dtype)
                if grad is not None:
                    grad[block] = slopes.T @ state
        sums = [None if own is None else own.to(state.dtype) for own, state in zip(sums, states, strict=True)]
        return None, None, *sums, *grads


def _vocabulary_blocks(states: torch.Tensor, weight: torch.Tensor) -> list[slice]:
    """So many ids that neither their logits at all positions nor their rows of the embedding exceed
    `CHUNK_ELEMENTS`."""
    size = max(1, CHUNK_ELEMENTS // max(1, *states.shape))
    return [slice(start, min(start + size, len(weight))) for start in range(0, len(weight), size)]


def _columns_of(labels: torch.Tensor, block: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Column of each label in a block of the vocabulary (an arbitrary one where it lies outside), and whether it is
    there."""
    is_here = (labels >= block.start) & (labels < block.stop)
    return torch.where(is_here, labels - block.start, 0), is_here


def _logits(states, weights, block: slice) -> torch.Tensor:
    logits = states[0] @ weights[0][block].to(states[0].dtype).T
    for state, weight in zip(states[1:], weights[1:], strict=True):
        logits.addmm_(state, weight[block].to(state.dtype).T)
    return logits


@torch.compiler.disable
def fused_cross_entropy(
    hidden_states: torch.Tensor, head: nn.Module, labels: torch.Tensor, num_items: "torch.Tensor | int | None" = None,
    numbers: list[int] | None = None, ids: slice = slice(None),
) -> torch.Tensor:  # fmt: skip
    """Cross entropy of `head(hidden_states)`, computed only where there is a label, a part of the vocabulary at a
    time.

    Beyond the gradients it holds two or three blocks of `CHUNK_ELEMENTS` (64 MB in float32; 170 MB were measured), the
    gradient of the states in float32, and one number a position. Each row of the embedding's gradient is summed over
    all positions in float32 and rounded once.

    Args:
        hidden_states: `[n_positions, hidden_size]`.
        head: see [`fused_ntp_m_loss`].
        labels: `int64 [n_positions]`, the token that each position has to predict, -100 where none.
        num_items: divide the sum by this and not by the number of labels.
        numbers: [`label_numbers`] of the labels, where they have been read before; else the host waits once for them.
        ids: a stretch of the vocabulary, `slice(first, end)`: its ids alone compete, and labels are places in it.

    Returns:
        scalar `float32` (or `float64`); 0 where there is no label.
    """
    vocab_size = getattr(head, "out_features", None)
    vocab_size = None if vocab_size is None else len(range(vocab_size)[ids])
    count, low, high = label_numbers(labels).tolist() if numbers is None else numbers
    if count and not (0 <= low and (vocab_size is None or high < vocab_size)):
        raise ValueError(f"`labels` has ids {low}..{high}, which a vocabulary of {vocab_size} lacks")
    rows = true_places(labels != IGNORED, count)
    hidden_states, labels = hidden_states[rows], labels[rows]
    factors = head_factors(head, hidden_states)
    wide = torch.float64 if hidden_states.dtype == torch.float64 else torch.float32
    if factors is not None:
        states, weights = zip(*factors, strict=True)
        if ids != slice(None):  # a view of all would copy the gradient of all
            weights = [weight[ids] for weight in weights]
        total = _FusedCrossEntropy.apply(labels, len(states), *states, *weights)
    else:

        def chunk_loss(states, chunk):
            return F.cross_entropy(head(states)[:, ids].to(states.device, wide), chunk, reduction="sum")

        pieces = _equally_many_pieces(len(labels), hidden_states.device)
        total = sum(
            checkpoint(chunk_loss, hidden_states[piece], labels[piece], use_reentrant=False) for piece in pieces
        )
    return total / (max(len(labels), 1) if num_items is None else num_items)


def _equally_many_pieces(count: int, device: torch.device) -> list[slice]:
    """`count` rows in pieces of `HEAD_CALL_ROWS`, as many on each process: who has fewer rows gets empty ones. The
    weights of a layer of which only the forward is known may be sharded, and each call of it a collective."""
    number = max(1, -(-count // HEAD_CALL_ROWS))
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        most = torch.tensor(number, device=device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        number = int(most)
    return [slice(index * HEAD_CALL_ROWS, (index + 1) * HEAD_CALL_ROWS) for index in range(number)]


def head_factors(head: nn.Module, hidden_states: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """An output embedding as a sum of products: pairs of states `[n, d]`, in the type in which the layer computes, and
    weights `[vocab_size, d]` in their own; `None` for a layer that is more than that (quantised, offloaded,
    partitioned...).

    Under autocast the losses cast the weights themselves, so that no copy of them is kept for the backward pass.

    A bias is a product with states of one, a LoRA adapter one with the states that its first matrix gives.
    """
    base = getattr(head, "base_layer", None)
    pairs = []
    if base is not None:
        variants = getattr(head, "lora_variant", None) or {}
        if getattr(head, "disable_adapters", True) or getattr(head, "merged", True):
            adapters = []
        else:
            adapters = [name for name in head.active_adapters if name in getattr(head, "lora_A", {})]
        if not hasattr(head, "lora_A") or any(name in variants for name in adapters):
            return None
        for name in adapters:
            states = head.lora_dropout[name](hidden_states.to(head.lora_A[name].weight.dtype))
            pairs.append((head.lora_A[name](states) * head.scaling[name], head.lora_B[name].weight))
        head = base
    if type(head) is not nn.Linear or head.weight.is_meta or head.weight.ndim != 2 or not head.weight.numel():
        return None
    if head._forward_hooks or head._forward_pre_hooks or type(head.weight.data) is not torch.Tensor:
        return None
    if head.weight.device != hidden_states.device:
        return None
    pairs.insert(0, (hidden_states, head.weight))
    if head.bias is not None:
        pairs.append((hidden_states.new_ones(len(hidden_states), 1), head.bias[:, None]))
    device_type = hidden_states.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    else:
        dtype = hidden_states.dtype
    return [(states.to(dtype), weight) for states, weight in pairs]


def check_dense_targets(
    n_tokens: int,
    vocab_size: int,
    dense_targets: torch.Tensor,
    dense_candidates: torch.Tensor,
    dense_candidate_ranges: torch.Tensor,
    top_k: int,
    numbers: DenseNumbers | None = None,
) -> DenseNumbers:
    """Raise a `ValueError` that names the argument if targets don't fit `[n_tokens, vocab_size]` logits.

    Returns:
        `numbers`; read here where they were not given.
    """
    if top_k < 1:
        raise ValueError(f"`top_k` must be at least 1, got {top_k}")
    if dense_targets.ndim != 2 or dense_targets.shape[0] != n_tokens:
        raise ValueError(
            f"`dense_targets` must be [n_vision_tokens, max_targets] with {n_tokens} vision tokens, got "
            f"{tuple(dense_targets.shape)}"
        )
    if dense_candidates.ndim not in (1, 2) or len(dense_candidates) != n_tokens:
        raise ValueError(
            f"`dense_candidates` must be [n_vision_tokens] or [n_vision_tokens, n_kinds] with {n_tokens} vision "
            f"tokens, got {tuple(dense_candidates.shape)}"
        )
    if dense_candidate_ranges.ndim != 3 or dense_candidate_ranges.shape[-1] != 2:
        raise ValueError(
            f"`dense_candidate_ranges` must be [n_rows, n_ranges, 2], got {tuple(dense_candidate_ranges.shape)}"
        )
    n_rows = dense_candidate_ranges.shape[0]
    if numbers is None:
        numbers = DenseNumbers.read(dense_targets, dense_candidates, dense_candidate_ranges)
    if numbers.highest_row >= n_rows:
        raise ValueError(
            f"`dense_candidates` names row {numbers.highest_row} of `dense_candidate_ranges`, which has {n_rows}"
        )
    for name, found, highest in (
        ("dense_targets", numbers.target_ids, vocab_size - 1),
        ("dense_candidate_ranges", numbers.range_ids, vocab_size),
    ):
        if found is not None and not (0 <= found[0] and found[1] <= highest):
            raise ValueError(f"`{name}` has ids {found[0]}..{found[1]}, which a vocabulary of {vocab_size} lacks")
    return numbers


__all__ = ["fused_cross_entropy", "fused_ntp_m_loss", "ntp_m_loss"]
