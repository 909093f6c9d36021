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
"""Checkpoints in other layouts: a row of a table translates a config and the names of the weights."""

import re
from dataclasses import replace

import pytest
from transformers import LlamaConfig

from densemllm import DenseMLLMConfig
from densemllm.configuration_densemllm import default_depth_range_of, translate_released_config
from densemllm.released_densemllm import RELEASED_KEYS, RELEASED_LAYOUTS, translate_config
from tiny import LLAMA, VISION, make_model, make_processor


@pytest.fixture
def second_layout(monkeypatch):
    """A flat config of a Llama with a tower; nothing but a row of the table knows of it."""
    layout = replace(
        RELEASED_LAYOUTS["youtu_vl"],
        text_config_class=LlamaConfig,
        text_defaults={"hidden_size": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        neutral_fields={"model_type": None, "vision_config": None, "image_token_id": None, "uses_heads": False},
        kept_fields=("image_token_id",),
        agreeing_values=lambda text: {"text_width": (text["hidden_size"],)},
    )
    monkeypatch.setitem(RELEASED_LAYOUTS, "llama_vl", layout)


def test_a_second_layout_is_one_more_row(second_layout):
    values = {**LLAMA, "model_type": "llama_vl", "vocab_size": 400, "image_token_id": 7, "vision_config": VISION}
    config = DenseMLLMConfig.from_dict(translate_released_config(values))
    assert config.text_config.model_type == "llama" and config.text_config.vocab_size == 400
    assert config.text_config.num_key_value_heads == LLAMA["num_key_value_heads"]
    assert config.image_token_id == 7 and config.vision_config.window_size == VISION["window_size"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "another_vl"}, "`model_type` must be one of ['llama_vl', 'youtu_vl'], got 'another_vl'"),
        ({"model_type": None}, "got None"),
        ({"kv_lora_rank": 4}, "kv_lora_rank = 4 is not known"),
        ({"uses_heads": True}, "uses_heads = True, expected False"),
        (
            {"vision_config": {"position_embedding": "table"}},
            "vision_config.position_embedding = 'table' is not",
        ),
    ],
)
def test_what_a_row_does_not_know_is_named(second_layout, fields, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        translate_released_config({"model_type": "llama_vl", **fields})


def test_all_that_is_wrong_is_said_at_once_but_what_is_left_out_knowingly():
    values = {"model_type": "youtu_vl", "sliding_window": 8, "mlp_bias": True, "qk_head_dim": 3}
    with pytest.raises(ValueError) as error:
        translate_config(values, "ours", ["hidden_size"], ignored=["mlp_bias"])
    assert str(error.value) == (
        "the 'youtu_vl' config differs from what is known: sliding_window = 8 is not known; qk_head_dim = 3, "
        "expected 192"
    )
    assert translate_config(values, "ours", [], ["sliding_window", "mlp_bias", "qk_head_dim"])["model_type"] == "ours"


def test_patterns_of_the_layouts_leave_our_own_names_as_they_are():
    names = make_model(make_processor()).state_dict()
    assert not [name for name in names for pattern in RELEASED_KEYS if re.search(pattern, name)]
    assert len(RELEASED_KEYS) == sum(len(layout.key_patterns) for layout in RELEASED_LAYOUTS.values())


def test_default_range_is_open_world_or_else_the_first_row():
    assert default_depth_range_of({"room": {}, "open_world": {}}) == "open_world"
    assert default_depth_range_of({"room": {}, "road": {}}) == "room"
