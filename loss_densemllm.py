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

import torch
import torch.nn.functional as F


IGNORED = -100


def supervised_tokens(dense_targets: torch.Tensor, dense_candidates: torch.Tensor) -> torch.Tensor:
    """Which vision tokens have a target: `bool [n_tokens]`. Arguments as for [`ntp_m_loss`]."""
    return (dense_candidates >= 0) & (dense_targets != IGNORED).any(dim=-1)


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
    second term is 0.

    Args:
        logits: `[n_tokens, vocab_size]`, any floating-point type; computed in float32.
        dense_targets: `int64 [n_tokens, max_targets]`, positive ids, filled up with -100. Ids outside the token's
            candidates don't count.
        dense_candidates: `int64 [n_tokens]`, the token's row of the next argument, -1 where not supervised.
        dense_candidate_ranges: `int64 [n_rows, n_ranges, 2]`, the annotated ids M_i as half-open ranges, which don't
            overlap within a row; (0, 0) is empty.
        top_k: how many negatives a token gets.
        num_items: divide the sum over tokens by this and not by the number of supervised tokens: the global count
            where a batch is spread over several steps or processes.

    Returns:
        scalar `float32` (or `float64`); 0 with a gradient of 0 where no token is supervised.

    Raises:
        ValueError: shapes that don't fit, `top_k` below 1, or ids outside the vocabulary.
    """
    n_tokens, vocab_size = logits.shape
    check_dense_targets(n_tokens, vocab_size, dense_targets, dense_candidates, dense_candidate_ranges, top_k)
    rows = supervised_tokens(dense_targets, dense_candidates).nonzero()[:, 0]
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


def check_dense_targets(
    n_tokens: int,
    vocab_size: int,
    dense_targets: torch.Tensor,
    dense_candidates: torch.Tensor,
    dense_candidate_ranges: torch.Tensor,
    top_k: int,
) -> None:
    """Raise a `ValueError` that names the argument if targets don't fit `[n_tokens, vocab_size]` logits."""
    if top_k < 1:
        raise ValueError(f"`top_k` must be at least 1, got {top_k}")
    if dense_targets.ndim != 2 or dense_targets.shape[0] != n_tokens:
        raise ValueError(
            f"`dense_targets` must be [n_vision_tokens, max_targets] with {n_tokens} vision tokens, got "
            f"{tuple(dense_targets.shape)}"
        )
    if tuple(dense_candidates.shape) != (n_tokens,):
        raise ValueError(
            f"`dense_candidates` must be [n_vision_tokens] with {n_tokens} vision tokens, got "
            f"{tuple(dense_candidates.shape)}"
        )
    if dense_candidate_ranges.ndim != 3 or dense_candidate_ranges.shape[-1] != 2:
        raise ValueError(
            f"`dense_candidate_ranges` must be [n_rows, n_ranges, 2], got {tuple(dense_candidate_ranges.shape)}"
        )
    n_rows = dense_candidate_ranges.shape[0]
    if n_tokens and int(dense_candidates.max()) >= n_rows:
        raise ValueError(
            f"`dense_candidates` names row {int(dense_candidates.max())} of `dense_candidate_ranges`, which has "
            f"{n_rows}"
        )
    for name, values, high in (
        ("dense_targets", dense_targets[dense_targets != IGNORED], vocab_size - 1),
        ("dense_candidate_ranges", dense_candidate_ranges, vocab_size),
    ):
        if values.numel() and not (0 <= int(values.min()) and int(values.max()) <= high):
            raise ValueError(
                f"`{name}` has ids {int(values.min())}..{int(values.max())}, which a vocabulary of {vocab_size} lacks"
            )


__all__ = ["ntp_m_loss"]
