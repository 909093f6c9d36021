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
"""Results don't depend on torch's global settings, and nothing on a device needs a type that the device lacks."""

import argparse
import ast
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import densemllm
from densemllm import image_encoding_densemllm
from densemllm.commands.models import load_model
from densemllm.evaluation.metrics import DepthMetrics, ReferringMetrics, SegmentationMetrics
from densemllm.loss_densemllm import fused_cross_entropy, fused_ntp_m_loss
from densemllm.training.arguments import DenseTrainingArguments
from densemllm.training.collator import DenseCollator
from densemllm.training.trainer import DenseTrainer
from tiny import ID2LABEL, answer_with, make_image, make_model, make_processor, make_samples


ROOT = Path(densemllm.__file__).parent
IMAGE = make_image(30, 50)
CALLS = {
    "segmentation": {"labels": ["cat", "red ball"], "return_logits": True},
    "background": {"labels": ["cat", "red ball"], "background": True},
    "only others": {"labels": ["<OTHERS>"]},
    "refined": {"labels": ["cat", "red ball"], "refine": "crf"},
    "guided": {"labels": ["cat", "red ball"], "refine": "guided"},
    "guided_depth": {"task": "depth", "refine": "guided"},
    "depth": {"task": "depth", "depth_range": "road", "focal_length": 50.0, "return_logits": True},
    "both": {"task": ("segmentation", "depth"), "labels": ["cat"], "target_sizes": (12, 14)},
    "referring": {"task": "referring", "box": (2, 2, 20, 20)},
    "nothing found": {"task": "referring", "text": "cat"},
    "open set": {"task": "open_set", "labels": ["cat", "red ball"]},
    "named classes": {},
}


@pytest.fixture(scope="module")
def model():
    processor = make_processor()
    model = make_model(processor)
    model.get_processor(processor)
    return model


def maps(prediction):
    for field in ("segmentation", "predicted_depth", "mask", "scores", "logits"):
        value = getattr(prediction, field)
        yield from value.values() if isinstance(value, dict) else [] if value is None else [value]


@pytest.fixture(params=[torch.float64, torch.float16, torch.bfloat16])
def default_dtype(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("call", CALLS)
def test_decoding_is_the_same_with_another_default_dtype(model, default_dtype, call, monkeypatch):
    box = "<ref>cat</ref><box><x_0><y_0><x_48><y_28></box>"
    if call == "open set":
        answer_with(monkeypatch, model, box)
    own = list(maps(model.predict_dense(IMAGE, **CALLS[call])))
    torch.set_default_dtype(torch.float32)
    expected = list(maps(model.predict_dense(IMAGE, **CALLS[call])))
    assert own and len(own) == len(expected)
    for value, other in zip(own, expected, strict=True):
        assert value.dtype == other.dtype and torch.equal(value, other)


def test_losses_and_metrics_are_the_same_with_another_default_dtype(default_dtype):
    def results():
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(9, 6, generator=generator, dtype=torch.float32).requires_grad_()
        head = nn.Linear(6, 30, dtype=torch.float32)
        for parameter in head.parameters():
            nn.init.constant_(parameter, 0.1)
        targets = torch.randint(0, 30, (9, 2), generator=generator)
        dense = (targets, torch.zeros(9, dtype=torch.long), torch.tensor([[[0, 30]]]))
        losses = [fused_ntp_m_loss(states, head, *dense, 4), fused_cross_entropy(states, head, targets[:, 0])]
        maps = torch.rand(8, 9, generator=generator, dtype=torch.float32) + 0.5
        metrics = [DepthMetrics(), SegmentationMetrics(3), ReferringMetrics()]
        for metric in metrics:
            metric.add(maps, maps.flip(0))
        return losses + [metric.totals for metric in metrics]

    own = results()
    torch.set_default_dtype(torch.float32)
    for value, expected in zip(own, results(), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


@pytest.mark.parametrize("wrapped", [False, True])
def test_label_logits_are_float32_under_autocast(model, wrapped, monkeypatch):
    encoded = model.encode_image(IMAGE)
    ids = [[k] for k in model.get_processor().depth_token_ids] + [[5, 9, 11]]
    if wrapped:

        class Wrapped(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = model.lm_head

            def forward(self, states):
                return self.inner(states)

        head = Wrapped()
        monkeypatch.setattr(type(model), "get_output_embeddings", lambda self: head)
    for states in (encoded.hidden_states, encoded.hidden_states.bfloat16()):
        expected = model.label_logits(states, ids)
        with torch.autocast("cpu", torch.bfloat16):
            own = model.label_logits(states, ids)
        assert own.dtype == torch.float32
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)


class NoFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, (tuple, list)) else [output]:
            assert not (isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64), function
        return output


def test_a_training_step_needs_no_float64(tmp_path):
    processor = make_processor()
    collator = DenseCollator(processor, ID2LABEL)
    args = DenseTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer = DenseTrainer(make_model(processor).train(), args, data_collator=collator)
    batch = collator(make_samples(2))
    with NoFloat64():
        for _ in range(2):
            batch |= {"num_dense_items_in_batch": torch.tensor(5)}
            trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(7)).backward()


def float64_on_a_device(tree: ast.AST) -> list[int]:
    """Lines that make float64 tensors of anything but what is on the CPU by its own words.

    Allowed are numpy's float64, `x.cpu().double()`, `device="cpu"` in the same call, comparisons with a dtype, and
    `torch.float64 if x.dtype == torch.float64 else ...`, which is only what the caller has himself.
    """
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("float64", "double"):
            if isinstance(node.value, ast.Name) and node.value.id in ("np", "numpy"):
                continue
            parent = parents[node]
            is_method = node.attr == "double" and isinstance(parent, ast.Call) and parent.func is node
            if is_method:
                of = node.value
                allowed = isinstance(of, ast.Call) and isinstance(of.func, ast.Attribute) and of.func.attr == "cpu"
            elif isinstance(parent, ast.Compare):
                allowed = True
            elif isinstance(parent, ast.IfExp):
                allowed = "dtype == torch.float64" in ast.unparse(parent.test)
            else:
                call = parents[parent] if isinstance(parent, ast.keyword) else parent
                devices = [word.value for word in getattr(call, "keywords", []) if word.arg == "device"]
                allowed = any(isinstance(device, ast.Constant) and device.value == "cpu" for device in devices)
            if not allowed:
                lines.append(node.lineno)
        elif isinstance(node, ast.ImportFrom) and node.module == "torch":
            lines += [node.lineno for name in node.names if name.name in ("float64", "double", "DoubleTensor", "*")]
        elif isinstance(node, ast.Constant) and node.value in ("float64", "double"):
            lines.append(node.lineno)
        elif isinstance(node, ast.keyword) and node.arg == "dtype" and isinstance(node.value, ast.Name):
            lines += [node.value.lineno] if node.value.id == "float" else []
    return lines


@pytest.mark.parametrize("path", sorted(ROOT.glob("*_densemllm.py")), ids=lambda path: path.name)
def test_no_float64_on_a_device(path):
    """Apple's MPS has none. A GPU is not needed to see it."""
    assert float64_on_a_device(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "line, is_found",
    [
        ("x.double()", True),
        ("x.to(torch.float64)", True),
        ("torch.zeros(3, dtype=torch.double)", True),
        ("torch.zeros(3, dtype=torch.double, device=x.device)", True),
        ("getattr(torch, 'float64')", True),
        ("x.cuda().double()", True),
        ("from torch import float64", True),
        ("torch.tensor(x, dtype=float)", True),
        ("wide = torch.float64 if many else torch.float32", True),
        ("x.cpu().double()", False),
        ("torch.zeros(3, dtype=torch.float64, device='cpu')", False),
        ("np.asarray(x, dtype=np.float64)", False),
        ("wide = torch.float64 if x.dtype == torch.float64 else torch.float32", False),
    ],
)
def test_the_search_for_float64_finds_it(line, is_found):
    assert bool(float64_on_a_device(ast.parse(line))) == is_found


@pytest.mark.parametrize("capability", ["AVX2", "AVX512", "DEFAULT"])
def test_a_cpu_that_emulates_bfloat16_computes_in_float32(tmp_path, monkeypatch, capability):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    processor = make_processor()
    make_model(processor).bfloat16().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    said = []
    monkeypatch.setattr(image_encoding_densemllm.logger, "warning_once", said.append)
    for dtype, loaded, warned in (
        ("auto", torch.float32 if capability == "AVX2" else torch.bfloat16, False),
        ("bfloat16", torch.bfloat16, capability == "AVX2"),  # what is asked for is done
        ("float32", torch.float32, False),
    ):
        model = load_model(argparse.Namespace(model=str(tmp_path), dtype=dtype, device="cpu", server=None))
        assert model.dtype == loaded
        said.clear()
        model.predict_dense(IMAGE, task="depth")
        assert any("emulates" in text for text in said) == warned
