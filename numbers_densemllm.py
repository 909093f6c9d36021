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
"""Numbers that the host has to know of tensors on a device, such as how many labels there are: read all at once, as
each look at a value makes the host wait until the device has come that far, and then the device for the host."""

from dataclasses import dataclass
from typing import NamedTuple

import torch


IGNORED = -100
PACKED_VALUES = 2**24  # of maps that are copied together: 64 MB in float32, for as long as it takes


def read_numbers(tensors: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    """The values of tensors of whole numbers, each flattened: with one copy from each device, however many there are.

    A copy makes the host wait until the device has come that far.
    """
    by_device: dict[torch.device, list[str]] = {}
    for name, tensor in tensors.items():
        by_device.setdefault(tensor.device, []).append(name)
    found = {}
    for names in by_device.values():
        parts = [tensors[name].flatten().long() for name in names]
        values = torch.cat(parts).tolist()
        for name, part in zip(names, parts, strict=True):
            found[name], values = values[: len(part)], values[len(part) :]
    return found


def copies_on_host(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors on the CPU, each with memory of its own: those of one type with one copy, where they are small."""
    parts: dict[tuple, list[list[int]]] = {}
    for place, tensor in enumerate(tensors):
        groups = parts.setdefault((tensor.device, tensor.dtype), [[]])
        if groups[-1] and sum(tensors[other].numel() for other in groups[-1]) + tensor.numel() > PACKED_VALUES:
            groups.append([])
        groups[-1].append(place)
    copies = list(tensors)
    for (device, _), groups in parts.items():
        for group in groups if device.type != "cpu" else ():
            sizes = [tensors[place].numel() for place in group]
            packed = torch.cat([tensors[place].flatten() for place in group]).cpu()
            for place, copy in zip(group, packed.split(sizes), strict=True):
                # A part of what is packed would keep all of it, and take it along into a file.
                copies[place] = (copy.clone() if len(group) > 1 else copy).view(tensors[place].shape)
    return copies


def true_places(mask: torch.Tensor, count: int) -> torch.Tensor:
    """`mask.nonzero()[:, 0]` of a `bool [n]` in which `count` are known to be true: no wait for their number."""
    if mask.device.type == "cpu":
        return mask.nonzero()[:, 0]
    return (~mask).byte().argsort(stable=True)[:count]


def supervised_tokens(dense_targets: torch.Tensor, dense_candidates: torch.Tensor) -> torch.Tensor:
    """Which vision tokens have a target, of each kind: `bool`, the shape of `dense_candidates`. Arguments as for
    `ntp_m_loss`."""
    has_target = (dense_targets != IGNORED).any(dim=-1)
    return (dense_candidates >= 0) & (has_target if dense_candidates.ndim == 1 else has_target[:, None])


def label_numbers(labels: torch.Tensor) -> torch.Tensor:
    """How many `labels` there are but -100, and the smallest and the largest of them: `int64 [3]`, on their device."""
    is_label, largest = labels != IGNORED, torch.iinfo(torch.int64).max
    if not labels.numel():
        return labels.new_zeros(3, dtype=torch.long)
    low, high = labels.long().masked_fill(~is_label, largest).amin(), labels.masked_fill(~is_label, IGNORED).amax()
    return torch.stack([is_label.sum(), low, high.long()])


@dataclass(frozen=True)
class DenseNumbers:
    """What the host has to know of the targets of `ntp_m_loss`, read at once.

    Attributes:
        num_pairs: entries of `dense_candidates` that aren't -1.
        highest_row: the largest of them.
        target_ids, range_ids: smallest and largest id of `dense_targets` and of `dense_candidate_ranges`; `None` where
            there is none.
        ranges: the ranges of each row, in order, none of them empty.
        supervised: how many pairs of a token and a kind are supervised with each row.
    """

    num_pairs: int
    highest_row: int
    target_ids: tuple[int, int] | None
    range_ids: tuple[int, int] | None
    ranges: list[tuple[tuple[int, int], ...]]
    supervised: list[int]

    @staticmethod
    def asked(
        dense_targets: torch.Tensor, dense_candidates: torch.Tensor, dense_candidate_ranges: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """What [`of`] needs, on the arguments' devices, for [`read_numbers`]; nothing where their shapes don't fit
        each other, which `check_dense_targets` says."""
        if dense_targets.ndim != 2 or dense_candidates.ndim not in (1, 2) or dense_candidate_ranges.ndim != 3:
            return {}
        if len(dense_targets) != len(dense_candidates) or dense_candidate_ranges.shape[2] != 2:
            return {}
        is_target, n_rows = dense_targets != IGNORED, len(dense_candidate_ranges)
        supervised = supervised_tokens(dense_targets, dense_candidates)
        rows = torch.where(supervised, dense_candidates.clamp(max=n_rows), n_rows).flatten().long()
        counts = rows.new_zeros(n_rows + 1).index_add_(0, rows, torch.ones_like(rows))
        largest = torch.iinfo(torch.int64).max
        pairs = (dense_candidates >= 0).sum()
        asked = {"dense_pairs": pairs, "dense_ranges": dense_candidate_ranges, "dense_supervised": counts}
        if dense_candidates.numel():
            asked["dense_row"] = dense_candidates.amax()
        if dense_targets.numel():
            low = dense_targets.masked_fill(~is_target, largest).amin()
            asked["dense_targets"] = torch.stack([low, dense_targets.masked_fill(~is_target, -largest).amax()])
        return asked

    @classmethod
    def of(cls, found: dict[str, list[int]], dense_candidate_ranges: torch.Tensor) -> "DenseNumbers":
        """From what [`read_numbers`] has `found`."""
        n_ranges, edges = dense_candidate_ranges.shape[1], found["dense_ranges"]
        pairs = list(zip(edges[::2], edges[1::2], strict=True))
        rows = [pairs[row * n_ranges : (row + 1) * n_ranges] for row in range(len(dense_candidate_ranges))]
        low, high = found.get("dense_targets", (0, -1))
        return cls(
            num_pairs=found["dense_pairs"][0],
            highest_row=found.get("dense_row", [-1])[0],
            target_ids=(low, high) if low <= high else None,
            range_ids=(min(edges), max(edges)) if edges else None,
            ranges=[tuple(sorted((start, end) for start, end in row if end > start)) for row in rows],
            supervised=found["dense_supervised"][:-1],
        )

    @classmethod
    def read(
        cls, dense_targets: torch.Tensor, dense_candidates: torch.Tensor, dense_candidate_ranges: torch.Tensor
    ) -> "DenseNumbers":
        asked = cls.asked(dense_targets, dense_candidates, dense_candidate_ranges)
        return cls.of(read_numbers(asked), dense_candidate_ranges)


class InputNumbers(NamedTuple):
    """What the host has to know of a forward's inputs: read once, and handed on.

    Attributes:
        grid: `image_grid_thw` on the CPU.
        n_placeholders: image placeholders in `input_ids`.
        is_padded: whether `attention_mask [batch_size, sequence_length]` leaves anything out; `None`: nobody looked.
    """

    grid: torch.Tensor | None
    n_placeholders: int
    is_padded: bool | None = None

    @staticmethod
    def asked(
        is_image: torch.Tensor, image_grid_thw: torch.Tensor | None, attention_mask: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """What [`of`] needs, for [`read_numbers`]; `is_image` are the placeholders, `bool`."""
        asked = {"placeholders": is_image.sum()}
        if isinstance(image_grid_thw, torch.Tensor):
            asked["grid"] = image_grid_thw
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            asked["padding"] = (attention_mask == 0).any()
        return asked

    @classmethod
    def of(cls, found: dict[str, list[int]], image_grid_thw: torch.Tensor | None) -> "InputNumbers":
        """From what [`read_numbers`] has `found`."""
        grid = image_grid_thw
        if "grid" in found:
            grid = torch.tensor(found["grid"], dtype=torch.long, device="cpu").reshape(image_grid_thw.shape)
        is_padded = bool(found["padding"][0]) if "padding" in found else None
        return cls(grid, found["placeholders"][0], is_padded)


def read_forward_numbers(
    is_image: torch.Tensor,
    image_grid_thw: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    labels: torch.Tensor | None = None,
    dense: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    code_labels: torch.Tensor | None = None,
) -> tuple[InputNumbers, list[int] | None, DenseNumbers | None, list[int] | None]:
    """All that a forward has to know on the host, with one wait.

    Args:
        is_image, image_grid_thw, attention_mask: see [`InputNumbers`].
        labels: `int64 [n]` of the text loss.
        dense: `dense_targets`, `dense_candidates` and `dense_candidate_ranges`.
        code_labels: `int64 [n]` of the codebook loss.

    Returns:
        numbers of the inputs, of `labels` ([`label_numbers`]), of `dense` and of `code_labels`; `None` for what isn't
        given, and where the shapes of `dense` don't fit each other, which the loss says.
    """
    asked = InputNumbers.asked(is_image, image_grid_thw, attention_mask)
    if labels is not None:
        asked["labels"] = label_numbers(labels)
    if code_labels is not None:
        asked["code_labels"] = label_numbers(code_labels)
    if dense is not None:
        asked |= DenseNumbers.asked(*dense)
    found = read_numbers(asked)
    dense_numbers = DenseNumbers.of(found, dense[2]) if "dense_ranges" in found else None
    inputs = InputNumbers.of(found, image_grid_thw)
    return inputs, found.get("labels"), dense_numbers, found.get("code_labels")


__all__ = [
    "IGNORED",
    "DenseNumbers",
    "InputNumbers",
    "copies_on_host",
    "label_numbers",
    "read_forward_numbers",
    "read_numbers",
    "supervised_tokens",
    "true_places",
]
