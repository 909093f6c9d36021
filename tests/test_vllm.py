"""What vLLM gets of a checkpoint, as far as it can be seen without vLLM; tools/check_vllm.sh runs the real one."""

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMModel
from tiny import LLAMA, make_config, make_image, make_model, make_processor


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module", autouse=True)
def attention():
    """vLLM gives its attention this name, on the config of the language model alone, and then asks `AutoModel`."""
    AttentionInterface.register("vllm", sdpa_attention_forward)
    AttentionMaskInterface.register("vllm", sdpa_mask)


def config_for_vllm(processor, **kwargs):
    config = make_config(processor, **kwargs)
    config.get_text_config()._attn_implementation = "vllm"
    return config


def test_the_backbone_is_built_without_an_output_embedding(processor):
    with torch.device("meta"):
        model = AutoModel.from_config(config_for_vllm(processor))
        whole = AutoModel.from_config(make_config(processor))
    assert isinstance(model, DenseMLLMModel) and isinstance(whole, DenseMLLMForConditionalGeneration)
    assert set(dict(model.named_children())) == {"vision_tower", "multi_modal_projector", "language_model"}


def test_an_output_embedding_of_its_own_is_not_left_out(processor, tmp_path):
    """vLLM leaves out what the backbone ignores. Its own output embedding would then have whatever was in memory."""
    text = {**LLAMA, "tie_word_embeddings": False}
    options = {"text": text, "tie_word_embeddings": False}
    assert not DenseMLLMModel(config_for_vllm(processor, **options))._keys_to_ignore_on_load_unexpected
    make_model(processor, **options).save_pretrained(tmp_path)
    backbone, info = DenseMLLMModel.from_pretrained(tmp_path, output_loading_info=True)
    assert backbone._keys_to_ignore_on_load_unexpected and not info["unexpected_keys"]


def test_bidirectional_images_are_refused(processor):
    config = config_for_vllm(processor, vision_attention="bidirectional")
    for build in (AutoModel.from_config, DenseMLLMModel, DenseMLLMForConditionalGeneration):
        with pytest.raises(ValueError, match="`vision_attention` must be 'causal' in a checkpoint that vLLM serves"):
            build(config)


class OtherLinear(nn.Module):
    """A layer in the place of `nn.Linear` that has its weights only, as vLLM's own."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(inputs, self.weight, self.bias)


@torch.no_grad()
def test_other_linear_layers_give_the_same(processor):
    model = DenseMLLMModel(config_for_vllm(processor)).eval()
    inputs = processor(images=[make_image(16, 24)], text=["<|image_pad|> a cat"], return_tensors="pt")
    expected = model(**inputs).last_hidden_state
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, OtherLinear(child))
    torch.testing.assert_close(model(**inputs).last_hidden_state, expected)
