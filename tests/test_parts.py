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
"""A model from a tower and a language model that don't know each other."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    Siglip2VisionConfig,
    Siglip2VisionModel,
)

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor, DenseMLLMVisionConfig
from densemllm.training.collator import DenseCollator
from tiny import TEXTS, VISION, make_image


TOWER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4,
    "num_patches": 16,
}  # fmt: skip
OPTIONS = {"num_depth_bins": 16, "num_coordinates": 32}


def make_text(folder, tied=True, vocab_size=300):
    """A language model that has never heard of images, with its tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet)
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1]).save_pretrained(
        folder
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=tied, initializer_range=0.2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return make_text(tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize("tied", [True, False])
def test_text_is_answered_as_before(tmp_path, tied):
    folder = make_text(tmp_path, tied)
    before = LlamaForCausalLM.from_pretrained(folder).eval()
    model = DenseMLLMForConditionalGeneration.from_pretrained_parts(VISION, folder, **OPTIONS)
    ids = torch.randint(0, 290, (2, 12))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    assert logits.shape[-1] == len(model.get_processor().tokenizer) > 300
    torch.testing.assert_close(logits[..., :290], before(input_ids=ids).logits[..., :290])
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied


def test_new_rows_start_at_their_descriptions(text):
    before = LlamaForCausalLM.from_pretrained(text).get_input_embeddings().weight
    model = DenseMLLMForConditionalGeneration.from_pretrained_parts(VISION, text, **OPTIONS)
    tokenizer = model.get_processor().tokenizer
    rows = model.get_input_embeddings().weight.detach()

    def row(token):
        return rows[tokenizer.convert_tokens_to_ids(token)]

    def described(text):
        return before[tokenizer(text, add_special_tokens=False)["input_ids"]].mean(dim=0)

    torch.testing.assert_close(row("<FG>"), described("foreground object"))
    bins = torch.stack([row(f"<custom_{k}>") for k in range(1, 17)])
    ends = described("very near"), described("near")
    torch.testing.assert_close(bins[0], torch.lerp(*ends, 0.5 / 16 * 4))
    torch.testing.assert_close(
        row("<x_31>"), torch.lerp(described("right"), described("right edge"), 31.5 / 32 * 4 - 3)
    )
    # Neighbours are alike, and the nearest and the farthest less so.
    assert float((bins[1:] - bins[:-1]).norm(dim=1).max()) < float((bins[0] - bins[-1]).norm())


@pytest.mark.parametrize("whole", [False, True])
def test_tower_keeps_its_features(tmp_path, text, whole):
    torch.manual_seed(1)
    if whole:  # a two-tower checkpoint, with a pooling head
        reference = Siglip2Model(Siglip2Config(vision_config=TOWER, text_config={**TOWER, "vocab_size": 64})).eval()
        reference.save_pretrained(tmp_path)
        reference = reference.vision_model
    else:
        reference = Siglip2VisionModel(Siglip2VisionConfig(**TOWER, vision_use_head=False)).eval()
        reference.save_pretrained(tmp_path)
    model = DenseMLLMForConditionalGeneration.from_pretrained_parts(tmp_path, text, **OPTIONS)
    loaded = DenseMLLMForConditionalGeneration.from_pretrained_parts(reference, text, **OPTIONS)
    patches = torch.randn(8, 48)
    grid = torch.tensor([[1, 2, 4]])
    raster = [0, 1, 4, 5, 2, 3, 6, 7]  # merge-block-major to raster
    with torch.no_grad():
        expected = reference(patches[raster][None], torch.ones(1, 8, dtype=torch.long), torch.tensor([[2, 4]]))
        for own in (model, loaded):
            features = own.model.vision_tower(patches, grid).last_hidden_state
            torch.testing.assert_close(features[raster], expected.last_hidden_state[0], atol=1e-5, rtol=0)


def test_vision_tokens_have_the_size_of_embeddings(text):
    model = DenseMLLMForConditionalGeneration.from_pretrained_parts(VISION, text, **OPTIONS)
    inputs = model.get_processor()(images=[make_image(64, 64)], text=["<|image_pad|>"], return_tensors="pt")
    with torch.no_grad():
        features = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output[0]
    sizes = features.square().mean().sqrt(), model.get_input_embeddings().weight[:290].square().mean().sqrt()
    assert 0.5 < float(sizes[0] / sizes[1]) < 2


def test_saved_model_and_processor_work_on(tmp_path, text):
    model = DenseMLLMForConditionalGeneration.from_pretrained_parts(
        VISION, text, vision_attention="bidirectional", ntp_m_top_k=7, **OPTIONS
    )
    assert (model.config.vision_attention, model.config.ntp_m_top_k) == ("bidirectional", 7)
    model.save_pretrained(tmp_path)
    model.get_processor().save_pretrained(tmp_path)
    again = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path).eval()
    image = make_image(24, 32)
    for task, labels in (("depth", None), ("segmentation", ["cat", "red ball"])):
        own, other = (m.predict_dense(image, task=task, labels=labels, return_logits=True) for m in (model, again))
        torch.testing.assert_close(own.logits, other.logits)
    assert again.query(image, "what?", max_new_tokens=3) == model.query(image, "what?", max_new_tokens=3)


def test_a_step_of_training_changes_every_part(text):
    model = DenseMLLMForConditionalGeneration.from_pretrained_parts(VISION, text, **OPTIONS).train()
    collator = DenseCollator(model.get_processor(), {0: "cat", 1: "lamp"})
    sample = {"image": make_image(16, 16), "segmentation": torch.randint(0, 2, (16, 16)).numpy()}
    loss = model(**collator([sample])).loss
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("kind", ["missing", "non-finite"])
def test_parts_without_all_their_weights_are_refused(tmp_path, text, kind):
    make = DenseMLLMForConditionalGeneration.from_pretrained_parts
    tower, broken = tmp_path / "tower", shutil.copytree(text, tmp_path / "text")

    def change(folder, own):
        weights = load_file(folder / "model.safetensors")
        own(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    def spoil(weights):
        (name,) = [
            name for name in weights if name.endswith(("layers.1.mlp.up_proj.weight", "layers.1.mlp.fc1.weight"))
        ]
        if kind == "missing":
            del weights[name]
        else:
            weights[name][0] = float("nan")

    Siglip2VisionModel(Siglip2VisionConfig(**TOWER)).save_pretrained(tower)
    # The pooling head stays behind, so it needn't be there.
    change(tower, lambda weights: [weights.pop(name) for name in list(weights) if "head." in name])
    make(tower, text, **OPTIONS)
    change(tower, spoil)
    change(broken, spoil)
    for vision, language in ((VISION, broken), (tower, text)):
        with pytest.raises(ValueError, match=rf"1 {kind}: .*layers\.1\.mlp\.(up_proj|fc1)\.weight"):
            make(vision, language, **OPTIONS)


def test_loaded_parts_need_their_tokenizer(text):
    loaded = LlamaForCausalLM.from_pretrained(text)
    with pytest.raises(ValueError, match="`tokenizer` is needed"):
        DenseMLLMForConditionalGeneration.from_pretrained_parts(VISION, loaded, **OPTIONS)
    tokenizer = AutoTokenizer.from_pretrained(text)
    config = DenseMLLMVisionConfig(**VISION)
    model = DenseMLLMForConditionalGeneration.from_pretrained_parts(config, loaded, tokenizer=tokenizer, **OPTIONS)
    assert model.model.language_model is loaded.model  # no copy
    assert isinstance(model.get_processor(), DenseMLLMProcessor)


def test_parts_that_cannot_be_used_are_named(tmp_path, text):
    make = DenseMLLMForConditionalGeneration.from_pretrained_parts
    with pytest.raises(ValueError, match="`vision` must be a SigLIP2-NaFlex checkpoint"):
        make(text, text)
    with pytest.raises(TypeError, match="`vision`.*got int"):
        make(3, text)
    with pytest.raises(TypeError, match="`text`.*got int"):
        make(VISION, 3)
    loaded = LlamaForCausalLM.from_pretrained(text)
    loaded.lm_head = torch.nn.Linear(32, 300)
    with pytest.raises(ValueError, match="without a bias"):
        make(VISION, loaded, tokenizer=AutoTokenizer.from_pretrained(text))
    small = LlamaForCausalLM(
        LlamaConfig(**{**LlamaForCausalLM.from_pretrained(text).config.to_dict(), "vocab_size": 9})
    )
    with pytest.raises(ValueError, match="`tokenizer` does not belong to `text`"):
        make(VISION, small, tokenizer=AutoTokenizer.from_pretrained(text))
