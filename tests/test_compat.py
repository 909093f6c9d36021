"""One set of files on every version of transformers: both names of the cache, and no word about what is deprecated."""

import subprocess
import sys

import pytest
import torch
import transformers
from transformers import DynamicCache, Pipeline, PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.models.auto import modeling_auto

from densemllm.compat_densemllm import CACHE, CACHE_NAMES, get_cache, select_positions
from densemllm.configuration_densemllm import NAMED_MODELS
from tiny import make_image, make_model, make_processor


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module", params=["causal", "bidirectional"])
def model(processor, request):
    return make_model(processor, vision_attention=request.param)


@pytest.fixture(scope="module")
def inputs(processor):
    text = "<|vision_start|><|image_pad|><|vision_end|>what is it?"
    return processor(images=[make_image(16, 24)], text=[text], return_tensors="pt")


@pytest.mark.parametrize("name", CACHE_NAMES)
@pytest.mark.parametrize("part", ["with head", "without head"])
def test_both_names_of_the_cache_are_taken(model, inputs, name, part):
    called = model if part == "with head" else model.model
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad():
        first = called(**inputs, use_cache=True, **{name: cache})
        token = {"input_ids": torch.tensor([[5]]), "attention_mask": torch.ones(1, inputs["input_ids"].shape[1] + 1)}
        later = called(**token, **{name: get_cache(first)})
        longer = dict(inputs, input_ids=torch.cat([inputs["input_ids"], token["input_ids"]], dim=1))
        longer["attention_mask"] = torch.ones_like(longer["input_ids"])
        longer["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 1))
        whole = called(**longer)
    assert get_cache(first) is cache and CACHE in first
    field = "logits" if part == "with head" else "last_hidden_state"
    torch.testing.assert_close(later[field][:, -1], whole[field][:, -1], atol=1e-5, rtol=1e-4)


def test_not_both_names_at_once(model, inputs):
    cache = DynamicCache(config=model.config.get_text_config())
    with pytest.raises(ValueError, match="`cache` and `past_key_values`"):
        model(**inputs, cache=cache, past_key_values=cache)


def test_positions_are_selected_as_transformers_does():
    states = torch.arange(2 * 5 * 3.0).view(2, 5, 3)
    assert torch.equal(select_positions(states, 0), states)
    assert torch.equal(select_positions(states, 2), states[:, 3:])
    assert torch.equal(select_positions(states, torch.tensor([1, 4])), states[:, [1, 4]])
    rows = torch.tensor([[0, 1], [3, 4]])
    assert torch.equal(select_positions(states, rows), torch.stack([states[0, :2], states[1, 3:]]))
    mask = torch.tensor([[True, False, False, True, False], [False] * 5])
    assert torch.equal(select_positions(states, mask), states[0, [0, 3]])


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (PreTrainedModel, ["_from_config", "_tied_weights_keys", "_can_record_outputs", "_no_split_modules"]),
        (PreTrainedConfig, ["_attn_implementation"]),
        (ProcessorMixin, ["_get_arguments_from_pretrained", "_load_tokenizer_from_pretrained"]),
        (PilBackend, ["_preprocess", "_validate_preprocess_kwargs"]),
        (Pipeline, ["_sanitize_parameters", "_forward"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_private_parts_of_transformers_are_there(owner, names):
    gone = [name for name in names if not hasattr(owner, name)]
    assert not gone, f"transformers {transformers.__version__} has no {owner.__name__}.{gone[0]} any more"


def test_tables_of_names_are_there():
    gone = [name for name in NAMED_MODELS if not hasattr(modeling_auto, name)]
    assert not gone, f"transformers {transformers.__version__} has no {gone[0]} any more"
    assert {getattr(modeling_auto, name)["densemllm"] for name in NAMED_MODELS} == set(NAMED_MODELS.values())


QUIET = r"""
import sys, warnings
warnings.simplefilter("error", FutureWarning)
warnings.simplefilter("error", DeprecationWarning)
import torch
import densemllm
from transformers import AutoModel, AutoProcessor, pipeline

folder = sys.argv[1]
model = AutoModel.from_pretrained(folder).eval()
processor = AutoProcessor.from_pretrained(folder)
image = torch.zeros(3, 16, 24, dtype=torch.uint8)
model.predict_dense(image, ("segmentation", "depth"), labels=["wall"])
model.query(image, "what is it?", max_new_tokens=2)
inputs = processor(images=[image], text=["<|vision_start|><|image_pad|><|vision_end|>what?"], return_tensors="pt")
model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["mm_token_type_ids"] == 1, -100)).loss.backward()
model.generate(**inputs, max_new_tokens=2, do_sample=False)
model.generate(**inputs, max_new_tokens=2, do_sample=False, cache_implementation="static", disable_compile=True)
pipeline("dense-prediction", model=folder)(image, labels=["wall"])
model.save_pretrained(sys.argv[2])
"""


@pytest.mark.slow
def test_nothing_warns_of_what_is_deprecated(processor, tmp_path):
    make_model(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-c", QUIET, str(tmp_path / "model"), str(tmp_path / "again")]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [line for line in done.stderr.splitlines() if "deprecat" in line.lower() or "Warning" in line]
    assert not said, said
