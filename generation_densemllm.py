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
"""How `query` uses `generate`: which of its arguments it takes, and how it goes on from an image that was read."""

import copy
from typing import TYPE_CHECKING

from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
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
