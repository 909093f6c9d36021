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
"""Attention beyond that of the language model: latent attention in blocks on a CPU, and images whose tokens see each
other."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.configuration_utils import PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


def sdpa_padded_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`sdpa` for values narrower than keys, as latent attention has them: on a CPU, torch's attention in blocks takes
    one width only, and without it there is a matrix `[n_tokens, n_tokens]` in float32 for each head."""
    width = value.shape[-1]
    value = F.pad(value, (0, query.shape[-1] - width))
    output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output[..., :width], weights


AttentionInterface.register("sdpa_padded", sdpa_padded_attention_forward)
AttentionMaskInterface.register("sdpa_padded", sdpa_mask)


@contextmanager
def attention_in_blocks(config: PreTrainedConfig, device: torch.device) -> Iterator[None]:
    """Latent attention by [`sdpa_padded_attention_forward`] on a CPU, for as long as this lasts.

    Only without gradients: a layer that is computed again in the backward pass would be so outside of it.
    """
    narrow = (getattr(config, "v_head_dim", None) or 0) < (getattr(config, "qk_head_dim", None) or 0)
    applies = narrow and device.type == "cpu" and config._attn_implementation == "sdpa"
    if not applies or torch.is_grad_enabled() or torch.compiler.is_compiling():
        yield
        return
    config._attn_implementation = "sdpa_padded"
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def vision_block_ids(is_image: torch.Tensor, past_length: int) -> torch.Tensor:
    """Number of the image that each position belongs to, -1 for text: a run of image tokens is an image.

    Args:
        is_image: `bool [batch_size, sequence_length]`, of the new positions.
        past_length: number of positions before them, in the cache.

    Returns:
        `int64 [batch_size, past_length + sequence_length]`.
    """
    starts = is_image & ~F.pad(is_image, (1, 0))[:, :-1]
    blocks = torch.where(is_image, starts.cumsum(dim=1) - 1, -1)
    return F.pad(blocks, (past_length, 0), value=-1)


__all__ = ["attention_in_blocks", "vision_block_ids"]
