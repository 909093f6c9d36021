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
"""Checkpoints in layouts of others: how their configs and the names of their weights become ours, a row a layout."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from transformers import YoutuConfig
from transformers.configuration_utils import PreTrainedConfig


@dataclass(frozen=True)
class ReleasedLayout:
    """A layout: a flat config, whose top level is that of the language model, and weights under names of its own.

    Attributes:
        text_config_class: the language model's.
        text_defaults: what its config holds where a file says nothing, in place of the class's own defaults.
        neutral_fields: what a file may hold beside the fields of the two configs, at its top level or the tower's,
            without a change to what is computed. `None` accepts any value, else the value has to be the one given.
        kept_fields: top-level fields that are ours under the same name.
        agreeing_values: what some fields have to be, as they follow from others: from the language model's fields,
            names as messages write them and the accepted values, the expected one first.
        key_patterns: patterns of the weights' names, and ours in their place. All rows' are tried on every checkpoint
            that is loaded: one must match names of its own layout only.
    """

    text_config_class: type[PreTrainedConfig]
    text_defaults: dict[str, Any]
    neutral_fields: dict[str, Any]
    kept_fields: tuple[str, ...]
    agreeing_values: Callable[[dict[str, Any]], dict[str, tuple[Any, ...]]]
    key_patterns: dict[str, str]


# Youtu-LLM at the dimensions of the released 4B checkpoint (`YoutuConfig`'s own defaults are a smaller model's).
RELEASED_TEXT_CONFIG = {
    "vocab_size": 283386,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "rope_interleave": True,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "pad_token_id": 128001,
    "tie_word_embeddings": True,
}


def _agreeing_values_of_youtu_vl(text: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    qk_head_dim = text["qk_nope_head_dim"] + text["qk_rope_head_dim"]
    return {
        "qk_head_dim": (qk_head_dim,),
        "head_dim": (text["qk_rope_head_dim"], text["v_head_dim"], qk_head_dim),
        "vision_config.out_hidden_size": (text["hidden_size"],),
    }


# By the `model_type` of their configs.
RELEASED_LAYOUTS = {
    "youtu_vl": ReleasedLayout(  # tencent/Youtu-VL-4B-Instruct
        text_config_class=YoutuConfig,
        text_defaults=RELEASED_TEXT_CONFIG,
        neutral_fields={
            **dict.fromkeys(
                (
                    "_commit_hash", "_name_or_path", "architectures", "auto_map", "dtype", "model_type", "torch_dtype",
                    "transformers_version", "use_cache", "video_token_id", "vision_config", "vision_start_token_id",
                    "vision_end_token_id", "image_token_id", "rope_theta", "rope_scaling", "head_dim", "qk_head_dim",
                    "out_hidden_size", "image_size", "initializer_range", "attention_dropout",
                )
            ),
            "mlp_bias": False,
            "vision_use_head": False,
            "temporal_patch_size": 1,
        },
        kept_fields=("image_token_id", "vision_start_token_id", "vision_end_token_id", "tie_word_embeddings"),
        agreeing_values=_agreeing_values_of_youtu_vl,
        key_patterns={
            r"^siglip2\.vision_model\.": "model.vision_tower.",
            r"^merger\.ln_q\.": "model.multi_modal_projector.norm.",
            r"^merger\.mlp\.0\.": "model.multi_modal_projector.linear_1.",
            r"^merger\.mlp\.2\.": "model.multi_modal_projector.linear_2.",
            r"^model\.embed_tokens\.": "model.language_model.embed_tokens.",
            r"^model\.layers\.": "model.language_model.layers.",
            r"^model\.norm\.": "model.language_model.norm.",
        },
    ),
}  # fmt: skip

# The names of the weights of all layouts, as patterns, and ours.
RELEASED_KEYS = {
    pattern: name for layout in RELEASED_LAYOUTS.values() for pattern, name in layout.key_patterns.items()
}

_BASE_FIELDS = set(PreTrainedConfig().to_dict()) | set(getattr(PreTrainedConfig, "__dataclass_fields__", ()))
_BASE_FIELDS_OF_TEXT = {"bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"}


def translate_config(
    values: dict[str, Any], model_type: str, vision_fields: Collection[str], ignored: Collection[str] = ()
) -> dict[str, Any]:
    """A config in one of [`RELEASED_LAYOUTS`] as the fields of ours.

    Args:
        values: what its `config.json` holds.
        model_type: of our config.
        vision_fields: names of the fields of our tower's config that such a file may hold.
        ignored: names of fields, as messages write them, to leave out without knowing what they do.

    Raises:
        ValueError: a `model_type` that is none of the layouts; fields that aren't known, so that they might change
            what is computed, or that contradict each other. The message lists all of them.
    """
    released_type = values.get("model_type")
    if released_type not in RELEASED_LAYOUTS:
        raise ValueError(f"`model_type` must be one of {sorted(RELEASED_LAYOUTS)}, got {released_type!r}")
    layout = RELEASED_LAYOUTS[released_type]
    vision_values = dict(values.get("vision_config") or {})
    text_fields = set(layout.text_config_class.__dataclass_fields__) - _BASE_FIELDS | _BASE_FIELDS_OF_TEXT
    text, text_problems = _known_fields("", values, text_fields, layout, ignored)
    vision, vision_problems = _known_fields(
        "vision_config.", vision_values, set(vision_fields) - _BASE_FIELDS, layout, ignored
    )
    text = {
        **layout.text_defaults,
        **text,
        "model_type": layout.text_config_class.model_type,
        "rope_parameters": values.get("rope_parameters") or _rope_parameters(values, layout),
    }
    given = {**values, **{f"vision_config.{name}": value for name, value in vision_values.items()}}
    problems = text_problems + vision_problems + _disagreements(given, layout.agreeing_values(text), ignored)
    if problems:
        raise ValueError(f"the {released_type!r} config differs from what is known: {'; '.join(problems)}")
    return {
        "model_type": model_type,
        "vision_config": vision,
        "text_config": text,
        "dtype": values.get("dtype", values.get("torch_dtype")),
        **{name: values[name] for name in layout.kept_fields if name in values},
    }


def _known_fields(
    prefix: str, values: dict[str, Any], fields: Collection[str], layout: ReleasedLayout, ignored: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """Of one level of a config, what is in `fields`, and what is wrong with the rest."""
    problems = []
    for name, value in values.items():
        if name in fields or name in _BASE_FIELDS or f"{prefix}{name}" in ignored:
            continue
        if name not in layout.neutral_fields:
            problems.append(f"{prefix}{name} = {value!r} is not known")
        elif layout.neutral_fields[name] is not None and value not in (layout.neutral_fields[name], None):
            problems.append(f"{prefix}{name} = {value!r}, expected {layout.neutral_fields[name]!r}")
    return {name: value for name, value in values.items() if name in fields}, problems


def _rope_parameters(values: dict[str, Any], layout: ReleasedLayout) -> dict[str, Any]:
    """`rope_parameters` of a config that has `rope_theta` and `rope_scaling`, as before transformers 5."""
    theta = values.get("rope_theta", layout.text_defaults["rope_parameters"]["rope_theta"])
    return {"rope_type": "default", "rope_theta": theta, **(values.get("rope_scaling") or {})}


def _disagreements(given: dict[str, Any], accepted: dict[str, tuple[Any, ...]], ignored: Collection[str]) -> list[str]:
    """What is said of fields that are given, and aren't what they have to be."""
    return [
        f"{name} = {given[name]!r}, expected {values[0]!r}"
        for name, values in accepted.items()
        if given.get(name) is not None and given[name] not in values and name not in ignored
    ]
