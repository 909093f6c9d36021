"""What `from_pretrained` refuses: weights that are missing, unexpected, of another shape or not finite."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModel, pipeline

from densemllm import (
    DenseMLLMForConditionalGeneration,
    DenseMLLMForDepthEstimation,
    DenseMLLMForSemanticSegmentation,
    DenseMLLMModel,
)
from densemllm.cli import main
from tiny import LLAMA, make_image, make_model, make_processor


FC1 = "model.vision_tower.encoder.layers.0.mlp.fc1.weight"
NORM = "model.vision_tower.post_layernorm.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    processor = make_processor()
    make_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def without(name):
    return lambda weights: weights.pop(name)


def with_another(weights):
    weights["model.vision_tower.head.weight"] = torch.zeros(3)


def with_value(name, value):
    return lambda weights: weights[name].view(-1)[-1:].fill_(value)


def with_shape(weights):
    weights[FC1] = weights[FC1][:-1].clone()


CHANGES = {
    "missing": (without(FC1), FC1),
    "unexpected": (with_another, "model.vision_tower.head.weight"),
    "nan": (with_value(NORM, math.nan), NORM),
    "infinite": (with_value(FC1, -math.inf), FC1),
    "mismatched": (with_shape, FC1),
}
CLASSES = (
    AutoModel,
    DenseMLLMForConditionalGeneration,
    DenseMLLMForDepthEstimation,
    DenseMLLMForSemanticSegmentation,
    DenseMLLMModel,
)


@pytest.mark.parametrize("auto", CLASSES, ids=lambda auto: auto.__name__)
@pytest.mark.parametrize("kind", CHANGES)
def test_weights_that_are_not_the_models_are_refused_by_name(checkpoint, kind, auto):
    change, name = CHANGES[kind]
    change_weights(checkpoint, change)
    if auto is DenseMLLMModel:
        name = name.removeprefix("model.")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        auto.from_pretrained(checkpoint)


def test_pipelines_refuse_them_too(checkpoint):
    change_weights(checkpoint, without(FC1))
    for task in ("dense-prediction", "depth-estimation"):
        with pytest.raises(ValueError, match="fc1"):
            pipeline(task, model=str(checkpoint), trust_remote_code=True)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_weight_counts(whole, tmp_path, data):
    names = sorted(load_file(whole / "model.safetensors"))
    lost = data.draw(st.sets(st.sampled_from(names), max_size=2))
    bad = data.draw(st.sets(st.sampled_from(names), max_size=2)) - lost
    folder = tmp_path / "checkpoint"
    shutil.copytree(whole, folder, dirs_exist_ok=True)

    def change(weights):
        for name in lost:
            del weights[name]
        for name in bad:
            weights[name].view(-1)[0] = math.nan

    change_weights(folder, change)
    _, info = DenseMLLMForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    missing = info["missing_keys"] - {"lm_head.weight"}  # tied to the embedding
    assert (missing, info["non_finite_keys"]) == (lost, bad)
    if lost | bad:
        with pytest.raises(ValueError) as caught:
            DenseMLLMForConditionalGeneration.from_pretrained(folder)
        assert all(name in str(caught.value) for name in lost | bad)
    else:
        DenseMLLMForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize("dtype", ["auto", torch.float16, torch.bfloat16])
def test_non_finite_weights_of_each_type(checkpoint, dtype):
    change_weights(checkpoint, with_value(NORM, 1e30))  # infinite as float16 only
    if dtype == torch.float16:
        with pytest.raises(ValueError, match=f"1 non-finite: {NORM}"):
            DenseMLLMForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype)
    else:
        DenseMLLMForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype)


@pytest.mark.parametrize("auto", CLASSES[:2], ids=lambda auto: auto.__name__)
def test_a_caller_may_ask_for_what_is_there(checkpoint, whole, auto):
    change_weights(checkpoint, without(FC1))
    change_weights(checkpoint, with_another)
    change_weights(checkpoint, with_value(NORM, math.nan))
    model = auto.from_pretrained(checkpoint, strict=False)
    whole_weights, weights = load_file(whole / "model.safetensors"), dict(model.named_parameters())
    assert all(torch.equal(weights[name], whole_weights[name]) for name in set(whole_weights) - {FC1, NORM})
    assert weights[FC1].isfinite().all() and weights[FC1].std() > 0
    loaded, info = auto.from_pretrained(checkpoint, output_loading_info=True)
    assert info["missing_keys"] == {FC1} and info["unexpected_keys"] == {"model.vision_tower.head.weight"}
    assert info["non_finite_keys"] == {NORM} and isinstance(loaded, DenseMLLMForConditionalGeneration)
    with pytest.raises(ValueError, match="fc1"):
        auto.from_pretrained(checkpoint, output_loading_info=True, strict=True)


def test_another_shape_is_a_choice_of_its_own(checkpoint):
    change_weights(checkpoint, with_shape)
    for strict in (None, False):
        with pytest.raises(ValueError, match=r"1 mismatched: .*fc1.weight \(\[47, 32\], the model has \[48, 32\]\)"):
            DenseMLLMForConditionalGeneration.from_pretrained(checkpoint, strict=strict)
    model = DenseMLLMForConditionalGeneration.from_pretrained(checkpoint, ignore_mismatched_sizes=True)
    assert model.model.vision_tower.encoder.layers[0].mlp.fc1.weight.shape == (48, 32)


def test_a_long_list_is_cut(checkpoint):
    change_weights(checkpoint, lambda weights: [weights.pop(name) for name in sorted(weights)[-30:]])
    with pytest.raises(ValueError, match="30 missing: .* and 10 more"):
        DenseMLLMForConditionalGeneration.from_pretrained(checkpoint)


def test_the_backbone_needs_no_head(tmp_path):
    processor = make_processor()
    model = make_model(processor, text=LLAMA, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" in load_file(tmp_path / "model.safetensors")
    assert DenseMLLMModel.from_pretrained(tmp_path).vision_tower is not None
    change_weights(tmp_path, without("lm_head.weight"))
    with pytest.raises(ValueError, match="1 missing: lm_head.weight"):
        DenseMLLMForConditionalGeneration.from_pretrained(tmp_path)


def test_the_command_line_says_it_in_words(checkpoint, tmp_path, capsys):
    change_weights(checkpoint, without(FC1))
    make_image(16, 16).save(tmp_path / "image.png")
    out = tmp_path / "depth.png"
    assert main(["depth", str(tmp_path / "image.png"), "--model", str(checkpoint), "--out", str(out)]) == 2
    assert FC1 in capsys.readouterr().err and not out.exists()
