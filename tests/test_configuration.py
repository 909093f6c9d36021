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
import json

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from densemllm import DenseMLLMConfig, DenseMLLMForConditionalGeneration, DenseMLLMVisionConfig
from densemllm.configuration_densemllm import _check_sizes, check_depth_ranges
from tiny import LLAMA, VISION, YOUTU


TEXT = {**LLAMA, "vocab_size": 300}
IDS = {"image_token_id": 3, "vision_start_token_id": 4, "vision_end_token_id": 5}


def make(**kwargs):
    return DenseMLLMConfig(**{"text_config": TEXT, "vision_config": VISION, **IDS, **kwargs})


def test_defaults_have_the_released_geometry():
    with torch.device("meta"):
        model = DenseMLLMForConditionalGeneration(DenseMLLMConfig())
    model.tie_weights()

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    assert round(count(model.model.language_model) / 1e9, 3) == 4.895
    assert round(count(model.model.vision_tower) / 1e6) == 412
    assert round(count(model.model.multi_modal_projector) / 1e6) == 33
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert count(model) == count(model.model)


@pytest.mark.parametrize(
    "name, value",
    [
        ("position_embedding", "sine"),
        ("hidden_size", 0),
        ("intermediate_size", -1),
        ("num_hidden_layers", 0),
        ("num_attention_heads", 0),
        ("num_attention_heads", 5),
        ("num_channels", 0),
        ("patch_size", 0),
        ("spatial_merge_size", 0),
        ("layer_norm_eps", 0.0),
        ("rope_theta", 0),
        ("attention_dropout", 1.0),
        ("window_size", 12),
        ("window_size", 0),
        ("fullatt_block_indexes", [2]),
        ("fullatt_block_indexes", [-1]),
    ],
)
def test_vision_fields_are_checked(name, value):
    DenseMLLMVisionConfig(**VISION)
    with pytest.raises(ValueError, match=f"`{name}`"):
        DenseMLLMVisionConfig(**{**VISION, name: value})


@pytest.mark.parametrize(
    "name, value",
    [
        ("hidden_size", 10**9),
        ("intermediate_size", 10**9),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", 10**9),
        ("num_attention_heads", 10**9),
        ("num_channels", 10**9),
        ("patch_size", 10**6),
        ("spatial_merge_size", 10**6),
        ("num_patches", -4),
        ("num_patches", 10**18),
        ("window_size", 8 * 10**9),
        ("layer_norm_eps", float("inf")),
        ("rope_theta", float("inf")),
        ("rope_theta", float("nan")),
        ("initializer_range", -1.0),
        ("initializer_range", float("nan")),
        ("hidden_act", "gelou"),
    ],
)
def test_hostile_vision_fields_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        DenseMLLMVisionConfig(**{**VISION, name: value})


@pytest.mark.parametrize("text", [LLAMA, YOUTU, {"model_type": "gpt2"}], ids=lambda text: text["model_type"])
@pytest.mark.parametrize("value", [-1, 0, 10**10])
def test_hostile_text_fields_are_refused_by_name(text, value):
    names = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"]
    if "intermediate_size" in text:
        names += ["intermediate_size", "num_key_value_heads"]
    names += [name for name in text if name.endswith(("_rank", "head_dim"))]
    for name in names:
        with pytest.raises(ValueError, match=rf"`text_config\.{name}`"):
            make(text_config={**text, "vocab_size": 300, name: value})


def test_sizes_of_every_language_model_are_accepted():
    checked = 0
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = CONFIG_MAPPING[model_type]()
        except Exception:  # some have no defaults of their own
            continue
        _check_sizes(config.get_text_config(decoder=True))
        checked += 1
    assert checked > 100


def test_a_checkpoint_with_a_hostile_config_is_refused_by_field(tmp_path):
    config = make()
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    for change, field in (
        ({"num_depth_bins": 10**9}, "num_depth_bins"),
        ({"projector_hidden_act": "gelou"}, "projector_hidden_act"),
        ({"text_config": {**written["text_config"], "num_hidden_layers": -1}}, r"text_config\.num_hidden_layers"),
        ({"vision_config": {**written["vision_config"], "num_hidden_layers": -1}}, "num_hidden_layers"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**written, **change}))
        for auto in (AutoConfig, DenseMLLMConfig, AutoModel):
            with pytest.raises(ValueError, match=f"`{field}`"):
                auto.from_pretrained(tmp_path)


def test_vision_fields_that_need_each_other_are_checked():
    with pytest.raises(ValueError, match="`num_patches`"):
        DenseMLLMVisionConfig(**{**VISION, "position_embedding": "table", "num_patches": 15})
    with pytest.raises(ValueError, match="multiple of 4"):
        DenseMLLMVisionConfig(**{**VISION, "hidden_size": 12, "num_attention_heads": 2})


@pytest.mark.parametrize(
    "name, value",
    [
        ("vision_attention", "full"),
        ("spatial_merge_size", 3),
        ("ntp_m_top_k", 0),
        ("ntp_m_weight", -1.0),
        ("ntp_m_weight", float("nan")),
        ("ntp_m_weight", float("inf")),
        ("num_depth_bins", 0),
        ("num_depth_bins", 10**9),
        ("ntp_m_top_k", 10**12),
        ("projector_hidden_act", "gelou"),
        ("image_token_id", 300),
        ("image_token_id", -1),
        ("vision_start_token_id", -1),
        ("vision_start_token_id", 3),
        ("vision_end_token_id", 3),
        ("default_depth_range", "moon"),
        ("depth_ranges", {}),
        ("vision_config", {"model_type": "siglip2_vision_model"}),
    ],
)
def test_fields_are_checked(name, value):
    make()
    with pytest.raises(ValueError, match=f"`{name}`"):
        make(**{name: value})


@pytest.mark.parametrize(
    "message, row",
    [
        ("must be a dict", 3),
        ("unknown entries", {"mapping": "linear", "min_depth": 0, "max_depth": 1, "depth": 1}),
        ("`mapping`", {"min_depth": 0, "max_depth": 1}),
        ("`mapping`", {"mapping": "cubic", "min_depth": 0, "max_depth": 1}),
        ("min_depth < max_depth", {"mapping": "linear", "min_depth": 2, "max_depth": 1}),
        ("min_depth < max_depth", {"mapping": "linear", "min_depth": 0, "max_depth": float("inf")}),
        ("min_depth < max_depth", {"mapping": "linear", "min_depth": 0}),
        ("min_depth > 0", {"mapping": "log", "min_depth": 0, "max_depth": 1}),
        ("`prompt`", {"mapping": "linear", "min_depth": 0, "max_depth": 1, "prompt": 3}),
        ("`focal_length`", {"mapping": "linear", "min_depth": 0, "max_depth": 1, "focal_length": 0}),
        ("`focal_length`", {"mapping": "linear", "min_depth": 0, "max_depth": 1, "focal_length": float("inf")}),
    ],
)
def test_depth_ranges_are_checked(message, row):
    with pytest.raises(ValueError, match=message) as error:
        check_depth_ranges({"own": row}, "own")
    assert "depth_ranges['own']" in str(error.value)


def test_the_first_row_of_a_table_is_its_default():
    rows = {name: {"mapping": "linear", "min_depth": 0, "max_depth": 1} for name in ("b", "a")}
    assert make(depth_ranges=rows).default_depth_range == "b"
    assert make().default_depth_range == "open_world"


def test_merge_size_is_one_number_for_both():
    assert make().spatial_merge_size == 2
    vision = {name: value for name, value in VISION.items() if name not in ("spatial_merge_size", "window_size")}
    assert make(spatial_merge_size=4, vision_config=vision).vision_config.spatial_merge_size == 4


def test_round_trips(tmp_path):
    config = make(vision_attention="bidirectional", ntp_m_top_k=7, id2label={0: "floor", 1: "wall"})
    config.save_pretrained(tmp_path)
    for other in (DenseMLLMConfig.from_pretrained(tmp_path), DenseMLLMConfig.from_dict(config.to_dict())):
        own, expected = other.to_dict(), config.to_dict()
        for values in (own, expected):
            values.pop("_name_or_path", None)
        assert own == expected
        assert other.text_config.model_type == "llama" and other.id2label == {0: "floor", 1: "wall"}
