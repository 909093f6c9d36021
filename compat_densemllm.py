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
"""What differs between the versions of transformers that this code runs on: known here, and in no other file.

Everything is found out by looking, never by a version number.
"""

from dataclasses import fields
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.generation import utils as generation_utils
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.processing_utils import ProcessingKwargs


try:  # huggingface_hub 2 has a copy of its own
    from huggingface_hub.utils import httpx
except ImportError:
    import httpx  # noqa: F401


# Private parts of transformers that the files of a checkpoint use, as there is no public way; a test names one that
# disappears. (Those of `Trainer` stand in training/trainer.py.)
# - `PreTrainedModel._from_config`: the tower with the attention implementation and the type of its config.
# - `PreTrainedConfig._attn_implementation`: what attention a model computes with; native models read it, too.
# - `ProcessorMixin._get_arguments_from_pretrained`, `_load_tokenizer_from_pretrained`: our image processor without a
#   question whether this same code is trusted.
# - `ProcessorMixin._get_num_multimodal_tokens`: what vLLM asks a processor for.
# - `PilBackend._preprocess`, `_validate_preprocess_kwargs`, `TorchvisionBackend` likewise: where a processor of one's
#   own says what it does, by transformers' documentation.
# - `Pipeline._sanitize_parameters`, `_forward`: the same for a pipeline.
# - `_tied_weights_keys`, `_can_record_outputs`, `_no_split_modules` and their like: class attributes of every model.


# What the key-value cache is called in forwards, in `generate` and in outputs: from 5.24 on `cache`.
CACHE = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"
CACHE_NAMES = ("cache", "past_key_values")
# Whether `generate` encodes images before it reads the prompt. Where it doesn't, a prompt that is read in chunks
# (`prefill_chunk_size`) loses its images and what is in the cache, and other models can't assist.
ENCODES_IMAGES_FIRST = "mm_encoder_outputs" in getattr(
    generation_utils, "MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL", ("mm_encoder_outputs",)
)


def either_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """The key-value cache under whichever name the caller gave it.

    Raises:
        ValueError: both names were given.
    """
    if cache is not None and past_key_values is not None:
        raise ValueError("give one of `cache` and `past_key_values`, not both: they are two names of one argument")
    return past_key_values if cache is None else cache


def cache_argument(cache: Cache | None) -> dict[str, Cache | None]:
    """The key-value cache under the name that transformers has for it, as an argument of a call or an output."""
    return {CACHE: cache}


def get_cache(outputs: Any) -> Cache | None:
    """The key-value cache of a model's outputs."""
    return getattr(outputs, CACHE, None)


def select_positions(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The hidden states whose logits are asked for.

    Args:
        hidden_states: `[batch_size, sequence_length, hidden_size]`.
        logits_to_keep: the last so many positions (0: all), their indices `int64 [n]` or `int64 [batch_size, n]`, or a
            mask `bool [batch_size, sequence_length]`.

    Returns:
        `[batch_size, n, hidden_size]`; of a mask `[n_true, hidden_size]`.
    """
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:] if logits_to_keep else hidden_states
    if logits_to_keep.ndim == 1:
        return hidden_states[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return hidden_states[logits_to_keep]
    return torch.take_along_dim(hidden_states, logits_to_keep[..., None], dim=1)


class ProcessorDefaults(ProcessingKwargs, total=False):
    """What a call of the processor does unless told otherwise. Its class attributes say the same from 5.23 on."""

    _defaults = {"text_kwargs": {"return_token_type_ids": False, "return_mm_token_type_ids": True}}
