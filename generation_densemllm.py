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
"""How `query` uses `generate`: which of its arguments it takes, how it goes on from images that were read, and what it
may generate in one batch."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation import GenerationConfig, GenerationMode

from .compat_densemllm import CACHE_NAMES, ENCODES_IMAGES_FIRST


if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel


MAX_NEW_TOKENS = 256  # where nobody says how long an answer may be
# Arguments of `generate` that `query` doesn't take.
INPUTS = (
    "inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids", "mm_token_type_ids", "pixel_values",
    "image_grid_thw", "mm_encoder_outputs", "token_healing", *CACHE_NAMES,
)  # fmt: skip
OUTPUTS = ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states")
# Other modes read the whole prompt themselves, whatever is in the cache.
MODES_FROM_CACHE = (
    GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE,
)  # fmt: skip
# Those in which an answer hangs on nothing but its own prompt: a sample hangs on what was drawn before it, too.
MODES_TOGETHER = (GenerationMode.GREEDY_SEARCH, GenerationMode.BEAM_SEARCH)
# What a config may say of a batch. What isn't named here may read a prompt as a whole, and its padding with it
# (`repetition_penalty`, `no_repeat_ngram_size`), or count from its start (`max_length`).
OPTIONS_TOGETHER = {
    "max_new_tokens", "min_new_tokens", "stop_strings", "eos_token_id", "pad_token_id", "bos_token_id", "num_beams",
    "num_return_sequences", "length_penalty", "early_stopping", "use_cache", "suppress_tokens",
    "begin_suppress_tokens", "bad_words_ids", "renormalize_logits", "remove_invalid_values", "temperature", "top_k",
    "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "transformers_version", "disable_compile",
}  # fmt: skip
# Values with which the others do nothing.
NEUTRAL = {
    "repetition_penalty": 1, "encoder_repetition_penalty": 1, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "guidance_scale": 1, "min_length": 0, "diversity_penalty": 0,
    "num_beam_groups": 1,
}  # fmt: skip
LAYERS_TOGETHER = ("full_attention", "sliding_attention")


def generation_options(
    default: GenerationConfig, arguments: dict, max_new_tokens: int | None = None
) -> tuple[GenerationConfig, dict]:
    """One config of all that says how to generate, and the arguments of `generate` that are no part of a config.

    Args:
        default: the model's own config.
        arguments: of `generate`; a `generation_config` among them goes before `default`, and the others before that.
        max_new_tokens: goes before all of them.

    Raises:
        ValueError: an argument that `query` doesn't take, or values that `generate` refuses.
    """
    arguments = {name: value for name, value in arguments.items() if value is not None}
    given = arguments.pop("generation_config", None)
    given = {name: value for name, value in vars(given or {}).items() if value is not None} if given else {}
    asked = {**{name: value for name, value in given.items() if not name.startswith("_")}, **arguments}
    for name in INPUTS:
        if asked.get(name) is not None and asked[name] is not False:
            raise ValueError(f"`{name}` is not taken by `query`, which makes the model's inputs; `generate` takes it")
    for name in OUTPUTS:
        if asked.get(name):
            raise ValueError(f"`{name}` is not taken by `query`, which returns text; `generate` takes it")
    if max_new_tokens is not None:
        asked["max_new_tokens"] = max_new_tokens
    elif "max_new_tokens" not in asked:
        asked["max_new_tokens"] = None if "max_length" in asked else MAX_NEW_TOKENS
    config = copy.deepcopy(default)
    rest = config.update(**{"do_sample": False, **asked, **dict.fromkeys(OUTPUTS, False)})
    return config, {name: value for name, value in rest.items() if name in arguments}


def check_assistant(assistant: "PreTrainedModel | None", model: "PreTrainedModel") -> None:
    """`ValueError` for a model that can't propose words to `model`."""
    if assistant is None or ENCODES_IMAGES_FIRST or assistant.config.model_type == model.config.model_type:
        return
    raise ValueError(
        f"`assistant_model` must be of type {model.config.model_type!r} in this version of transformers, got "
        f"{assistant.config.model_type!r}"
    )


def can_start_from_cache(config: GenerationConfig, arguments: dict) -> bool:
    """Whether generation can go on from a dynamic cache that holds the first part of the prompt."""
    return (
        config.use_cache is not False
        and config.cache_implementation is None
        and (config.prefill_chunk_size is None or ENCODES_IMAGES_FIRST)
        and arguments.get("custom_generate") is None
        and config.get_generation_mode(arguments.get("assistant_model")) in MODES_FROM_CACHE
    )


def copy_cache(cache: Cache, repeats: int = 1) -> Cache:
    """A cache to go on from, `repeats` times in the batch, that leaves the given one as it is.

    A dynamic cache puts new tensors into its layers and never writes into the old ones, so they are shared.
    """
    if type(cache) is DynamicCache and all(isinstance(layer, DynamicLayer) for layer in cache.layers):
        copied = copy.copy(cache)
        copied.layers = [copy.copy(layer) for layer in cache.layers]
    else:
        copied = copy.deepcopy(cache)
    if repeats > 1:
        copied.batch_repeat_interleave(repeats)
    return copied


def can_ask_together(config: GenerationConfig, arguments: dict, language_model: "PreTrainedModel") -> bool:
    """Whether each row of a left-padded batch gets the answer that it gets alone.

    Args:
        config, arguments: of [`generation_options`].
        language_model: whose layers must not mind padding.
    """
    text_config = language_model.config
    layers = getattr(text_config, "layer_types", None) or getattr(text_config, "attention_layers", None) or ()
    asked = {
        name
        for name, value in vars(config).items()
        if value is not None and value is not False and not name.startswith("_")
        and not (name == "max_length" and config.max_new_tokens is not None)  # which goes before it
        and not (name in NEUTRAL and value == NEUTRAL[name])
    }  # fmt: skip
    return (
        not arguments  # functions and models of the caller's, which see the whole batch
        and asked <= OPTIONS_TOGETHER
        and config.get_generation_mode() in MODES_TOGETHER
        and not getattr(language_model, "_is_stateful", False)
        and set(layers) <= set(LAYERS_TOGETHER)
        and getattr(text_config, "attention_chunk_size", None) is None
    )


def can_join(cache: Cache | None) -> bool:
    """Whether [`join_caches`] knows all layers of a cache."""
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return type(cache) is DynamicCache and all(type(layer) in kinds for layer in cache.layers)


def has_window(cache: Cache) -> bool:
    """Whether a layer of a cache forgets what is far away: then there must be no gap between its tokens."""
    return any(layer.is_sliding for layer in cache.layers)


def join_caches(caches: Sequence[Cache], repeats: int = 1) -> Cache:
    """Caches of one sequence each as that of a batch to go on from, shorter ones filled up on the left.

    Args:
        caches: for which [`can_join`] holds. They stay as they are.
        repeats: rows of the batch for each of them.
    """
    if len(caches) == 1:
        return copy_cache(caches[0], repeats)
    # With all that it counts besides: how many tokens a window has seen.
    joined = copy_cache(max(caches, key=lambda cache: cache.get_seq_length()))
    for place, layer in enumerate(joined.layers):
        own = [cache.layers[place] for cache in caches]
        if layer.keys is not None and layer.keys.ndim == 4:  # a layer that reads another's has none
            layer.keys = _stack([row.keys for row in own])
            layer.values = _stack([row.values for row in own])
    if repeats > 1:
        joined.batch_repeat_interleave(repeats)
    return joined


def _stack(rows: list[torch.Tensor]) -> torch.Tensor:
    """`[1, heads, length, width]` each to `[n, heads, longest, width]`, with zeros on the left."""
    longest = max(row.shape[-2] for row in rows)
    return torch.cat([F.pad(row, (0, 0, longest - row.shape[-2], 0)) for row in rows])


def pad_left(rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
    """`int64 [length]` each to `int64 [n, longest]`."""
    longest = max(len(row) for row in rows)
    return torch.stack([F.pad(row, (longest - len(row), 0), value=value) for row in rows])


def padding_id(config: GenerationConfig, tokenizer: Any) -> int | None:
    """A special token to fill rows up with: it is left out of their texts. `None`: there is none."""
    ends = config.eos_token_id
    known = [config.pad_token_id, tokenizer.pad_token_id, *([ends] if isinstance(ends, int) else ends or [])]
    return next((token_id for token_id in known if token_id in tokenizer.all_special_ids), None)


def without_padding(answers: torch.Tensor, ends: int | Sequence[int] | None) -> list[list[int]]:
    """Rows of generated ids `int64 [n, length]`, each up to the first of the ids that end it."""
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    rows = answers.tolist()
    stops = [next((place for place, token_id in enumerate(row) if token_id in ends), len(row)) for row in rows]
    return [row[: stop + 1] for row, stop in zip(rows, stops, strict=True)]
