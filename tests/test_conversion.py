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
"""The released checkpoint's layout: converted, loaded as it is, and compared with what it computes."""

import json
import os
import signal
import subprocess
import sys

import pytest
import released
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from densemllm import DenseMLLMConfig, DenseMLLMForConditionalGeneration, DenseMLLMProcessor
from densemllm.configuration_densemllm import RELEASED_DEPTH_RANGES, translate_released_config
from densemllm.convert_youtu_vl_to_densemllm import ConversionError, convert, main, rename
from repository import load_script, require
from tiny import make_image


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    config, weights = released.make_source(folder / "source")
    (folder / "source/README.md").write_text("---\nlicense: other\nlicense_name: some-terms\n---\n# Original\n")
    convert(str(folder / "source"), str(folder / "out"))
    model = DenseMLLMForConditionalGeneration.from_pretrained(folder / "out").eval()
    return folder, config, weights, model


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_lands_where_it_should(tmp_path, head, dtype):
    _, weights = released.make_source(tmp_path / "source", head=head, dtype=dtype)
    convert(str(tmp_path / "source"), str(tmp_path / "out"))
    stored = {}
    for file in (tmp_path / "out").glob("*.safetensors"):
        stored |= load_file(file)
    expected = {
        "siglip2.vision_model.encoder.layers.2.mlp.fc1.bias": "model.vision_tower.encoder.layers.2.mlp.fc1.bias",
        "merger.ln_q.weight": "model.multi_modal_projector.norm.weight",
        "merger.mlp.0.weight": "model.multi_modal_projector.linear_1.weight",
        "merger.mlp.2.bias": "model.multi_modal_projector.linear_2.bias",
        "model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
        "model.norm.weight": "model.language_model.norm.weight",
        "model.layers.1.self_attn.kv_b_proj.weight": "model.language_model.layers.1.self_attn.kv_b_proj.weight",
    }
    assert all(rename(key) == name for key, name in expected.items())
    body = {key: weight for key, weight in weights.items() if key != "lm_head.weight"}
    assert set(stored) == {rename(key) for key in body}
    for key, weight in body.items():
        assert stored[rename(key)].dtype == dtype and torch.equal(stored[rename(key)], weight), key
    model, info = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == dtype and model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("size", [(24, 40), (17, 70), (8, 8), (50, 33)])
def test_each_piece_agrees_with_the_reference(converted, size):
    _, config, weights, model = converted
    image = make_image(*size)
    patches, grid = released.patchify(image)
    processor = model.get_processor()
    inputs = processor.image_processor([image], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, *grid]]
    torch.testing.assert_close(inputs["pixel_values"], patches, atol=1e-5, rtol=0)
    with torch.no_grad():
        features = model.model.vision_tower(patches, inputs["image_grid_thw"]).last_hidden_state
        expected = released.tower(weights, patches, grid)
        torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
        tokens = model.model.multi_modal_projector(expected)
        torch.testing.assert_close(tokens, released.merger(weights, expected), atol=1e-4, rtol=1e-4)
        ids = torch.randint(0, 300, (2, 9))
        logits = released.language_model(config, weights)(input_ids=ids).logits
        torch.testing.assert_close(model(input_ids=ids).logits, logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(24, 40), (17, 70)])
def test_label_logits_agree_with_the_reference(converted, size):
    _, config, weights, model = converted
    image, processor = make_image(*size), model.get_processor()
    logits, grid = released.vision_logits(config, weights, processor.tokenizer, image)
    labels = ["cat", "red ball", "wall"]
    prediction = model.predict_dense(image, task=("segmentation", "depth"), labels=labels, return_logits=True)
    ids = [processor.tokenizer(name, add_special_tokens=False)["input_ids"] for name in labels]
    expected = torch.stack([logits[:, own].mean(dim=1) for own in ids]).unflatten(1, grid)
    torch.testing.assert_close(prediction.logits["segmentation"], expected, atol=1e-4, rtol=1e-4)
    bins = processor.tokenizer.convert_tokens_to_ids([f"<custom_{k}>" for k in range(1, 1001)])
    torch.testing.assert_close(prediction.logits["depth"], logits[:, bins].T.unflatten(1, grid), atol=1e-4, rtol=1e-4)
    # A known camera's prompt stands before the image.
    prompt = RELEASED_DEPTH_RANGES["nyuv2"]["prompt"]
    logits, _ = released.vision_logits(config, weights, processor.tokenizer, image, prompt)
    known = model.predict_dense(image, task="depth", depth_range="nyuv2", return_logits=True)
    torch.testing.assert_close(known.logits, logits[:, bins].T.unflatten(1, grid), atol=1e-4, rtol=1e-4)


def test_decoding_by_hand(converted):
    """Softmax at temperature 0.2 and bilinear for classes; bilinear twice, argmax and bin centres for depth."""
    _, config, weights, model = converted
    image, processor = make_image(24, 40), model.get_processor()
    logits, grid = released.vision_logits(config, weights, processor.tokenizer, image)
    ids = [processor.tokenizer(name, add_special_tokens=False)["input_ids"] for name in ("cat", "wall")]
    scores = torch.stack([logits[:, own].mean(dim=1) for own in ids])
    chances = (scores / 0.2).softmax(dim=0).unflatten(1, grid)[None]
    chances = torch.nn.functional.interpolate(chances, size=(24, 40), mode="bilinear", align_corners=False)[0]
    prediction = model.predict_dense(image, labels=["cat", "wall"])
    assert (prediction.segmentation == chances.argmax(dim=0)).float().mean() > 0.999
    bins = processor.tokenizer.convert_tokens_to_ids([f"<custom_{k}>" for k in range(1, 1001)])
    doubled = torch.nn.functional.interpolate(
        logits[:, bins].T.unflatten(1, grid)[None], scale_factor=2, mode="bilinear", align_corners=False
    )
    metres = 0.5 * (100 / 0.5) ** ((doubled[0].argmax(dim=0) + 0.5) / 1000)
    metres = torch.nn.functional.interpolate(metres[None, None], size=(24, 40), mode="bilinear", align_corners=False)
    depth = model.predict_dense(image, task="depth").predicted_depth
    assert ((depth - metres[0, 0]).abs() < 1e-3).float().mean() > 0.99


def test_source_loads_as_it_is(converted, tmp_path):
    folder, _, _, model = converted
    direct = DenseMLLMForConditionalGeneration.from_pretrained(folder / "source").eval()
    assert direct.config.model_type == "densemllm"
    for (name, weight), (other, expected) in zip(direct.named_parameters(), model.named_parameters(), strict=True):
        assert name == other and torch.equal(weight, expected), name
    image = make_image(24, 40)
    own, expected = (m.predict_dense(image, task="depth").predicted_depth for m in (direct, model))
    torch.testing.assert_close(own, expected)
    direct.save_pretrained(tmp_path)  # in our layout, whatever it was loaded from
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert all(key.startswith("model.") and not key.startswith("model.layers") for key in file.keys())
    again = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, direct.lm_head.weight)


@pytest.mark.slow
def test_folder_is_complete(converted):
    folder, config, _, model = converted
    names = {path.name for path in (folder / "out").iterdir()}
    assert {
        "config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "chat_template.jinja",
        "model.safetensors.index.json", "model-00003-of-00003.safetensors", "README.md", "modeling_densemllm.py",
        "configuration_densemllm.py", "processing_densemllm.py", "image_processing_densemllm.py",
        "prediction_densemllm.py", "loss_densemllm.py",
    } <= names  # fmt: skip
    assert not list(folder.glob(".*"))
    card = ModelCard.load(folder / "out/README.md")
    assert (card.data.license, card.data.license_name) == ("other", "some-terms") and "source" in card.text
    assert model.generation_config.temperature == 0.1 and model.generation_config.top_p == 0.001
    assert model.generation_config.repetition_penalty == 1.05  # which `query` keeps: tests/test_tasks.py
    assert model.config.text_config.rope_parameters["rope_theta"] == 500000.0
    code = (
        "import sys; from transformers import AutoModel, AutoProcessor\n"
        "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
        "print(tuple(model.predict_dense(sys.argv[2], task='depth').predicted_depth.shape))"
    )
    make_image(20, 30).save(folder / "image.png")
    run = subprocess.run(
        [sys.executable, "-c", code, folder / "out", folder / "image.png"], capture_output=True, text=True, cwd=folder
    )
    assert run.stdout.strip().endswith("(20, 30)"), run.stderr[-2000:]


def test_second_run_says_so(converted, capsys):
    folder = converted[0]
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "out").iterdir()}
    assert main([str(folder / "source"), str(folder / "out")]) == 1
    assert "is finished already" in capsys.readouterr().err
    assert before == {path.name: path.stat().st_mtime_ns for path in (folder / "out").iterdir()}
    (folder / "taken").mkdir(exist_ok=True)
    (folder / "taken/notes.txt").write_text("mine")
    assert main([str(folder / "source"), str(folder / "taken")]) == 1
    assert "is no converted checkpoint" in capsys.readouterr().err


def change_shard(folder, change):
    file = sorted(folder.glob("*.safetensors"))[0]
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {key: name for key, name in index["weight_map"].items() if name != file.name}
    index["weight_map"] |= dict.fromkeys(weights, file.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_all_differences_of_weights_are_listed(tmp_path):
    released.make_source(tmp_path / "source", shards=1)

    def change(weights):
        weights["extra.weight"] = torch.zeros(2)
        weights["merger.ln_q.weight"] = torch.zeros(5)
        del weights["model.embed_tokens.weight"]

    change_shard(tmp_path / "source", change)
    with pytest.raises(ConversionError) as error:
        convert(str(tmp_path / "source"), str(tmp_path / "out"))
    message = str(error.value)
    assert "differs in 3 places" in message
    assert "unknown weight extra.weight" in message
    assert "missing weight model.language_model.embed_tokens.weight" in message
    assert "merger.ln_q.weight is [5], expected [32]" in message
    assert not list(tmp_path.glob("out*"))


def test_a_head_that_is_not_the_embedding_is_found(tmp_path):
    released.make_source(tmp_path / "source", shards=1, head=True)

    def change(weights):
        weights["lm_head.weight"][7, 3] += 1

    change_shard(tmp_path / "source", change)
    with pytest.raises(ConversionError, match="lm_head.weight differs from model.embed_tokens.weight"):
        convert(str(tmp_path / "source"), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sliding_window": 128}, "sliding_window = 128 is not known"),
        ({"mlp_bias": True}, "mlp_bias = True, expected False"),
        ({"qk_head_dim": 99}, "qk_head_dim = 99"),
        ({"vision_config": {**released.VISION, "deepstack": [1]}}, "vision_config.deepstack"),
        ({"vision_config": {**released.VISION, "out_hidden_size": 7}}, "vision_config.out_hidden_size = 7"),
        ({"model_type": "qwen2_vl"}, "expected 'youtu_vl'"),
        ({"image_token_id": 5}, "image_token_id is 5 in the config, but <|image_pad|> is"),
    ],
)
def test_differences_of_the_config_stop_it(tmp_path, fields, words):
    released.make_source(tmp_path / "source", **fields)
    with pytest.raises(ConversionError) as error:
        convert(str(tmp_path / "source"), str(tmp_path / "out"))
    assert words in str(error.value) and not list(tmp_path.glob("out*"))


def test_a_field_can_be_left_out_knowingly(tmp_path):
    released.make_source(tmp_path / "source", sliding_window=128)
    assert main([str(tmp_path / "source"), str(tmp_path / "out"), "--ignore_config_fields", "sliding_window"]) == 0


def test_released_geometry_is_the_default():
    flat = {"model_type": "youtu_vl", "vision_config": {}, "torch_dtype": "bfloat16"}
    config, default = DenseMLLMConfig.from_dict(translate_released_config(flat)), DenseMLLMConfig()
    assert config.text_config.to_dict() == default.text_config.to_dict()
    assert config.vision_config.to_dict() == default.vision_config.to_dict()


@pytest.mark.slow
def test_a_kill_leaves_nothing_that_looks_finished(tmp_path):
    released.make_source(tmp_path / "source")
    code = (
        "import os, signal, sys\n"
        "from densemllm import convert_youtu_vl_to_densemllm as conversion\n"
        "save, calls = conversion.save_file, []\n"
        "def killed(*args, **kwargs):\n"
        "    save(*args, **kwargs)\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "conversion.save_file = killed\n"
        "conversion.convert(*sys.argv[1:])"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "source", tmp_path / "out"], capture_output=True)
    assert run.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    convert(str(tmp_path / "source"), str(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    DenseMLLMProcessor.from_pretrained(tmp_path / "out")


def test_a_missing_source_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main([str(tmp_path / "none"), str(tmp_path / "out")]) == 1
    assert "is no folder" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


class Original(torch.nn.Module):
    """A stand-in for the original code: its parts' names, the reference's outputs."""

    def __init__(self, config, weights, model):
        super().__init__()
        self.config, self.weights, self.reference = config, weights, model
        identity = torch.nn.Identity
        self.siglip2 = torch.nn.ModuleDict({"vision_model": torch.nn.ModuleDict({"post_layernorm": identity()})})
        self.merger = torch.nn.ModuleDict({"mlp": torch.nn.ModuleList([identity(), identity(), identity()])})
        self.model = torch.nn.ModuleDict({"norm": identity()})

    def forward(self, input_ids, pixel_values, image_grid_thw, **kwargs):
        grid = tuple(image_grid_thw[0, 1:].tolist())
        states = self.siglip2.vision_model.post_layernorm(released.tower(self.weights, pixel_values, grid))
        tokens = self.merger.mlp[2](released.merger(self.weights, states))
        lm = released.language_model(self.config, self.weights)
        embeds = lm.get_input_embeddings()(input_ids)
        embeds[input_ids == self.config["image_token_id"]] = tokens
        return self.model.norm(lm.model(inputs_embeds=embeds).last_hidden_state)


def test_parity_tool_tells_agreement_from_difference(converted, tmp_path, capsys):
    folder, config, weights, model = converted
    content = [{"type": "image"}, {"type": "text", "text": "what?"}]
    processor = model.get_processor()
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[make_image(24, 40)], text=[text], return_tensors="pt")
    check_parity = load_script("tools/check_parity.py")
    recorded = check_parity.record(Original(config, weights, model), dict(inputs))
    save_file(recorded, tmp_path / "reference.safetensors")
    command = ["compare", str(folder / "out"), str(tmp_path / "reference.safetensors"), "--dtype", "float32"]
    assert check_parity.main([*command, "--tolerance", "1e-5"]) == 0
    assert "they agree" in capsys.readouterr().out
    recorded["output.projector"] *= 1.1
    save_file(recorded, tmp_path / "reference.safetensors")
    assert check_parity.main(command) == 1


@pytest.mark.full_geometry
def test_full_geometry_converts_loads_and_predicts(tmp_path):
    script = require("benchmarks/released_geometry.py")
    run = subprocess.run([sys.executable, script, "--folder", tmp_path], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    results = json.loads(run.stdout.splitlines()[-1])
    assert results["parameters"] == 5_340_551_024
    assert results["convert_peak_gib"] < 1.2 * results["largest_shard_gib"] + 0.5
