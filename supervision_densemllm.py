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
"""All losses of a forward: next token of text, NTP-M of vision tokens, next code of a visual codebook."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .loss_densemllm import fused_cross_entropy, fused_ntp_m_loss
from .numbers_densemllm import IGNORED, read_forward_numbers, true_places


Count = torch.Tensor | int | None


def shift_codes(image_codes: torch.Tensor, is_image: torch.Tensor) -> torch.Tensor:
    """The code that each position has to predict: a vision token that of the next one of its image.

    Nobody predicts the first code of an image: what stands before it has not seen the image. What becomes of it in
    the original (Youtu-VL, arXiv 2601.19798) is not known.

    Args:
        image_codes: `int64 [n_vision_tokens]`, codes in the order of the placeholders, negative where ignored.
        is_image: `bool [batch_size, sequence_length]`, the image placeholders; a run of them is an image.

    Returns:
        `int64 [batch_size * sequence_length]`, -100 where there is nothing to predict.
    """
    follows = F.pad(is_image[:, :-1] & is_image[:, 1:], (0, 1)).flatten()
    if not len(image_codes):
        return torch.full_like(follows, IGNORED, dtype=torch.long)
    # A number of codes that is not that of the placeholders is named once both are known on the host.
    next_token = is_image.flatten().cumsum(dim=0).clamp(max=len(image_codes) - 1)
    codes = image_codes.long()[next_token]
    return codes.masked_fill(~follows | (codes < 0), IGNORED)


class Losses(NamedTuple):
    """Scalars; `None` for what has no labels, targets or codes."""

    text: torch.Tensor | None
    dense: torch.Tensor | None
    codes: torch.Tensor | None


class Supervision:
    """What all losses of a forward are of. The host waits for the device once, here, and not in the forward.

    Attributes:
        inputs: numbers of the forward's own inputs.

    Args:
        is_image: `bool [batch_size, sequence_length]`, the image placeholders.
        image_grid_thw, attention_mask: of the forward.
        labels: `int64 [batch_size * sequence_length]`, what each position has to predict, or `None`.
        dense: `dense_targets`, `dense_candidates` and `dense_candidate_ranges` of [`ntp_m_loss`], or `None`.
        image_codes: see [`shift_codes`], or `None`.
        code_ids: the stretch of the vocabulary that is the codes.

    Raises:
        ValueError: `image_codes` that don't fit.
    """

    def __init__(
        self,
        is_image: torch.Tensor,
        image_grid_thw: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor | None,
        dense: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
        image_codes: torch.Tensor | None = None,
        code_ids: slice = slice(0, 0),
    ):
        self.is_image, self.labels, self.dense = is_image.flatten(), labels, dense
        self.code_labels, self.code_ids = None, code_ids
        if image_codes is not None:
            if image_codes.ndim != 1:
                raise ValueError(f"`image_codes` must be [n_vision_tokens], got {tuple(image_codes.shape)}")
            self.code_labels = shift_codes(image_codes, is_image)
        self.inputs, self.text_numbers, self.dense_numbers, self.code_numbers = read_forward_numbers(
            is_image, image_grid_thw, attention_mask, labels, dense, self.code_labels
        )
        if image_codes is None:
            return
        if len(image_codes) != self.inputs.n_placeholders:
            raise ValueError(
                f"`image_codes` must have one code for each of {self.inputs.n_placeholders} vision tokens, got "
                f"{len(image_codes)}"
            )
        n_codes, (count, _, highest) = code_ids.stop - code_ids.start, self.code_numbers
        if count and highest >= n_codes:
            raise ValueError(
                f"`image_codes` must be below `config.num_image_codes`, {n_codes}, got {highest}: give the model the "
                "codes of its tokenizer of images (`num_image_codes`)"
            )

    def losses(
        self,
        hidden_states: torch.Tensor,
        head: nn.Module,
        top_k: int,
        num_items: Count = None,
        num_dense_items: Count = None,
        num_code_items: Count = None,
    ) -> Losses:
        """[`fused_cross_entropy`], [`fused_ntp_m_loss`] and the codebook loss of `hidden_states [batch_size,
        sequence_length, d]`. The latter is the cross entropy among the codes alone: no other id of the vocabulary
        competes, and so none is pushed down at the vision tokens, whose logits are dense maps."""
        hidden_states = hidden_states.flatten(0, 1)
        text_loss = dense_loss = code_loss = None
        if self.labels is not None:
            text_loss = fused_cross_entropy(hidden_states, head, self.labels, num_items, self.text_numbers)
        if self.dense is not None:
            states = hidden_states[true_places(self.is_image, self.inputs.n_placeholders)]
            dense_loss = fused_ntp_m_loss(states, head, *self.dense, top_k, num_dense_items, self.dense_numbers)
        if self.code_labels is not None:
            numbers, ids = self.code_numbers, self.code_ids
            code_loss = fused_cross_entropy(hidden_states, head, self.code_labels, num_code_items, numbers, ids)
        return Losses(text_loss, dense_loss, code_loss)


def check_loss_arguments(
    dense: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
    has_codes: bool,
    n_codes: int,
    counts: tuple[Count, Count, Count],
) -> None:
    """`ValueError` where `dense_targets` or `image_codes` lack what they need beside them.

    Args:
        dense: `dense_targets`, `dense_candidates` and `dense_candidate_ranges`.
        has_codes: whether there are `image_codes`.
        n_codes: those that the model has.
        counts: `num_items_in_batch`, `num_dense_items_in_batch` and `num_code_items_in_batch`.
    """
    if dense[0] is not None and any(part is None for part in dense):
        raise ValueError("`dense_targets` need `dense_candidates` and `dense_candidate_ranges` beside them")
    if has_codes and not n_codes:
        raise ValueError(
            "`image_codes` need a model with codes in its vocabulary, and `config.num_image_codes` is 0: "
            "`add_tokens_to(model, processor, num_image_codes=...)` adds them"
        )
    given = ((dense[0] is not None, "dense_targets", "dense"), (has_codes, "image_codes", "code"))
    for (is_there, name, kind), count in zip(given, counts[1:], strict=True):
        if is_there and counts[0] is not None and count is None:
            loss = {"dense": "NTP-M", "code": "codebook"}[kind]
            raise ValueError(
                f"`num_items_in_batch` divides the text loss by the count of a larger batch; with `{name}`, "
                f"`num_{kind}_items_in_batch` must do so with the {loss} loss. `DenseTrainer` gives both; leave out "
                "both for the means of this batch"
            )


__all__ = ["Losses", "Supervision", "check_loss_arguments", "shift_codes"]
