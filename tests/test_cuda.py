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
"""What runs on a GPU has to agree with the CPU: losses, attention, maps, a training step, compiled, in two processes.

    pytest tests -m cuda

Skipped without a GPU. With `DENSEMLLM_TEST_DEVICE=cpu` the same tests run on the CPU, so that they themselves are
tried where there is none (`tools/run_on_gpu.sh --cpu`).
"""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from densemllm.image_processing_densemllm import DenseMLLMImageProcessor
from densemllm.loss_densemllm import fused_cross_entropy, fused_ntp_m_loss, ntp_m_loss
from densemllm.training.collator import DenseCollator
from tiny import ID2LABEL, LLAMA, YOUTU, make_image, make_model, make_processor, make_samples


DEVICE = os.environ.get("DENSEMLLM_TEST_DEVICE") or "cuda"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU"),
]
LABELS = list(ID2LABEL.values())
TEXTS = {"youtu": YOUTU, "llama": LLAMA}


@pytest.fixture(scope="module")
def processor():
    return make_processor(DenseMLLMImageProcessor(patch_size=4, merge_size=2, max_num_patches=1024))


def loss_problem(dtype, vocab_size=5000, width=64, n_tokens=300):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(n_tokens, width, generator=generator).to(dtype)
    head = torch.nn.Linear(width, vocab_size, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) / width**0.5)
    targets = torch.randint(0, vocab_size, (n_tokens, 4), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.4] = -100
    candidates = torch.randint(-1, 2, (n_tokens,), generator=generator)
    ranges = torch.tensor([[[0, vocab_size]], [[vocab_size // 2, vocab_size]]])
    return states, head.to(dtype), (targets, candidates, ranges)


def float64_reference(states, head, targets, top_k):
    states, head = states.double().requires_grad_(), copy.deepcopy(head).double()
    loss = ntp_m_loss(head(states), *targets, top_k)
    return loss.detach(), [gradient.detach() for gradient in torch.autograd.grad(loss, [states, head.weight])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("top_k", [20, 10**6])
def test_ntp_m_losses_are_those_of_float64(dtype, top_k):
    states, head, targets = loss_problem(dtype)
    expected, gradients = float64_reference(states, head, targets, top_k)
    states, head = states.to(DEVICE).requires_grad_(), head.to(DEVICE)
    targets = [values.to(DEVICE) for values in targets]
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for loss in (
        fused_ntp_m_loss(states, head, *targets, top_k),
        ntp_m_loss(head(states).float(), *targets, top_k),
    ):
        torch.testing.assert_close(loss.detach().cpu().double(), expected, rtol=tolerance, atol=0)
        own = torch.autograd.grad(loss, [states, head.weight])
        for one, other in zip(own, gradients, strict=True):  # near-ties of negatives may be broken either way
            assert float((one.cpu().double() - other).norm() / other.norm()) < 5 * tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_is_that_of_float64(dtype):
    states, head, (labels, _, _) = loss_problem(dtype)
    labels = labels[:, 0]
    expected = torch.nn.functional.cross_entropy(head.double()(states.double()), labels)
    loss = fused_cross_entropy(states.to(DEVICE), head.to(dtype).to(DEVICE), labels.to(DEVICE))
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(loss.detach().cpu().double(), expected.detach(), rtol=tolerance, atol=0)


@pytest.mark.parametrize("text", sorted(TEXTS))
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_are_those_of_the_cpu(processor, text, attention, dtype):
    model = make_model(processor, text=TEXTS[text])
    images = [make_image(64, 96), make_image(48, 40, 1)]
    arguments = {"task": ("segmentation", "depth"), "labels": LABELS, "processor": processor, "return_logits": True}
    expected = model.predict_dense(images, **arguments)
    model.set_attn_implementation(attention)
    found = model.to(DEVICE, dtype).predict_dense(images, **arguments)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    for one, other in zip(found, expected, strict=True):
        for task, logits in other.logits.items():
            scale = float(logits.abs().max())
            torch.testing.assert_close(one.logits[task].float(), logits, rtol=tolerance, atol=tolerance * scale)
        assert one.segmentation.device.type == one.predicted_depth.device.type == "cpu"


def test_tiles_refinement_and_words(processor):
    model = make_model(processor).to(DEVICE)
    image = make_image(64, 96)
    prediction = model.predict_dense(image, labels=LABELS, processor=processor, tile=32, refine="crf")
    assert prediction.segmentation.shape == (64, 96)
    single = [model.query(entry, "What is there?", processor, max_new_tokens=4) for entry in (image, image)]
    assert model.query([image, image], "What is there?", processor, max_new_tokens=4) == single


def test_a_training_step_is_that_of_the_cpu(processor):
    batch = DenseCollator(processor, ID2LABEL)(make_samples(3))
    losses, norms = [], []
    for device in ("cpu", DEVICE):
        model = make_model(processor).to(device).train()
        inputs = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        loss = model(**inputs).loss
        loss.backward()
        losses.append(float(loss))
        norms.append(float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and norms[1] == pytest.approx(norms[0], rel=1e-2)


def test_a_step_in_bfloat16_learns(processor):
    batch = DenseCollator(processor, ID2LABEL)(make_samples(3))
    model = make_model(processor).to(DEVICE).train()
    inputs = {key: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(8):
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]


@pytest.mark.skipif(DEVICE == "cpu", reason="compiling for the CPU takes minutes, and has tests of its own")
def test_compiled(processor):
    model = make_model(processor).to(DEVICE)
    image = make_image(64, 96)
    arguments = {"labels": LABELS, "processor": processor, "return_logits": True}
    expected = model.predict_dense(image, **arguments).logits
    model.model.language_model = torch.compile(model.model.language_model)
    torch.testing.assert_close(model.predict_dense(image, **arguments).logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(DEVICE == "cuda" and torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_processes_train_as_one(tmp_path):
    script = Path(__file__).with_name("distributed_step.py")
    files = {}
    for count in (1, 2):
        files[count] = tmp_path / f"{count}.pt"
        launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2"] if count == 2 else []
        command = [sys.executable, *launch, str(script), "fully_shard", str(files[count])]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "DENSEMLLM_TEST_DEVICE": DEVICE}
        subprocess.run(command, check=True, timeout=300, env=environment)
    one, two = (torch.load(file) for file in files.values())
    for name, gradient in one.items():
        torch.testing.assert_close(two[name].cpu(), gradient.cpu(), rtol=1e-3, atol=1e-5)
