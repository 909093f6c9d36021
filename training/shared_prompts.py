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
"""Answers to the same question in one row, behind a prompt that is read once for all of them.

A prompt with an image has some hundreds of tokens, an answer a few dozen. Scored each for itself, a group's answers
cost their prompt every time. Here each sees the prompt and itself alone, at the positions that it has when it stands
alone:

    prompt without its last token | last token, answer 1 | last token, answer 2 | ...

so that probabilities and gradients are those of the answers alone, but for rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from ..loss_densemllm import IGNORED


TAKES_MASKS = ("eager", "sdpa")  # attention that takes a mask of which position sees which


def check_shared_prompts(text_config: PreTrainedConfig) -> None:
    """Raise a `ValueError` where a language model can't read packed answers."""
    attention = text_config._attn_implementation
    if attention not in TAKES_MASKS:
        raise ValueError(f"`share_prompts` needs `attn_implementation` to be one of {TAKES_MASKS}, got {attention!r}")
    windows = (getattr(text_config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    kinds = {*(getattr(text_config, "layer_types", None) or ()), *windows} - {"full_attention", None}
    if kinds:
        raise ValueError(f"`share_prompts` needs layers of full attention only, got {sorted(map(str, kinds))}")


@dataclass(frozen=True)
class PackedAnswers:
    """Answers behind their prompts, as the model reads them.

    Attributes:
        input_ids, position_ids: `int64 [n_prompts, length]`.
        sees: `bool [n_prompts, length, length]`, whether the first position sees the second.
        labels: `int64 [n_prompts, length]`, the answers' tokens, -100 elsewhere.
        places: `int64 [n_rows]`, where each row's answer is: its prompt's number times `n_slots` plus its slot's.
        n_slots: answers to a prompt, at most.
        n_answer: tokens of an answer, with its padding.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    sees: torch.Tensor
    labels: torch.Tensor
    places: torch.Tensor
    n_slots: int
    n_answer: int

    def additive_mask(self, dtype: torch.dtype) -> torch.Tensor:
        """`sees` as attention takes it: `[n_prompts, 1, length, length]`, 0 where it sees."""
        mask = torch.zeros(self.sees.shape, dtype=dtype, device=self.sees.device)
        return mask.masked_fill_(~self.sees, torch.finfo(dtype).min)[:, None]

    def of_rows(self, values: torch.Tensor) -> torch.Tensor:
        """What there is for each label but the first, `[n_prompts, length - 1]`, as `[n_rows, n_answer]`."""
        width = self.n_answer + 1
        return values[:, -self.n_slots * width :].reshape(-1, width)[self.places, 1:]


def pack_answers(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    n_answer: int,
    prompts: Sequence[int],
    blocks: torch.Tensor | None = None,
) -> PackedAnswers:
    """Rows of prompt and answer as rows of a prompt and all its answers.

    Args:
        input_ids, attention_mask: `int64 [n_rows, length]`; prompts are padded on the left, answers on the right.
        n_answer: tokens of an answer, with its padding.
        prompts: for each row the first one that has the same prompt and images.
        blocks: `int64 [n_rows, length]`, of positions that see each other, as an image's may, -1 elsewhere.
    """
    n_head = input_ids.shape[1] - n_answer - 1
    different = sorted(set(prompts))
    groups = [[row for row, prompt in enumerate(prompts) if prompt == own] for own in different]
    n_slots = max(map(len, groups))
    places = {row: number * n_slots + slot for number, rows in enumerate(groups) for slot, row in enumerate(rows)}
    filled = torch.tensor([rows + rows[:1] * (n_slots - len(rows)) for rows in groups], device=input_ids.device)
    is_empty = torch.tensor([[slot >= len(rows) for slot in range(n_slots)] for rows in groups])

    def joined(values: torch.Tensor, tails: torch.Tensor) -> torch.Tensor:
        return torch.cat([values[different, :n_head], tails.flatten(1)], dim=1)

    tails, is_there = input_ids[filled, n_head:], attention_mask[filled, n_head:].bool()
    is_there &= ~is_empty.to(is_there.device)[..., None]
    labels = tails.masked_fill(~is_there, IGNORED)
    labels[..., 0] = IGNORED  # the prompt's last token, which the answer's first one is predicted from
    positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    slots = torch.arange(1, n_slots + 1, device=input_ids.device)[None, :, None].expand_as(tails)
    slot_of = joined(torch.zeros_like(input_ids), slots)
    keys = joined(attention_mask.bool(), is_there)
    length = slot_of.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
    own_or_prompt = (slot_of[:, None, :] == 0) | (slot_of[:, None, :] == slot_of[:, :, None])
    sees = before & own_or_prompt
    if blocks is not None:
        block_of = joined(blocks, torch.full_like(tails, -1))
        sees |= (block_of[:, None, :] == block_of[:, :, None]) & (block_of >= 0)[:, None, :]
    return PackedAnswers(
        input_ids=joined(input_ids, tails),
        position_ids=joined(positions, positions[filled, n_head:]),
        sees=sees & keys[:, None, :],
        labels=joined(torch.full_like(input_ids, IGNORED), labels),
        places=torch.tensor([places[row] for row in range(len(prompts))], device=input_ids.device),
        n_slots=n_slots,
        n_answer=n_answer,
    )


__all__ = ["PackedAnswers", "check_shared_prompts", "pack_answers"]
