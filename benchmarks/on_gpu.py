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
r"""What a GPU does: losses at the size of a large vocabulary, maps an image, training tokens a second, peak memory.

    python benchmarks/on_gpu.py
    python benchmarks/on_gpu.py --device cpu --quick     (tries the script itself)

The losses are compared in one run, at 8,192 tokens, width 4,096 and a vocabulary of 131,072 in bfloat16, forward and
backward: one forward matrix product (a limit), the plain NTP-M loss over all logits where they fit, the fused one, and
Liger's fused linear cross entropy where `liger-kernel` is installed, which does another, smaller job: it selects
nothing. Then the rooms checkpoint: images a second of `predict_dense` in batches, and tokens a second of a training
step. The last line is JSON.
"""

import argparse
import json
from pathlib import Path

import torch
from measure import extra_bytes, paired_seconds, seconds

from densemllm import DenseMLLMForConditionalGeneration
from densemllm.loss_densemllm import fused_ntp_m_loss, ntp_m_loss
from densemllm.training.collator import DenseCollator


CHECKPOINT = Path(__file__).resolve().parents[1] / "checkpoints/densemllm-rooms"


def loss_calls(device: str, tokens: int, width: int, vocab_size: int, top_k: int) -> dict:
    """Each way to a loss, as a function without arguments."""
    generator = torch.Generator(device).manual_seed(0)
    states = torch.randn(tokens, width, generator=generator, device=device, dtype=torch.bfloat16).requires_grad_()
    head = torch.nn.Linear(width, vocab_size, bias=False, device=device, dtype=torch.bfloat16)
    targets = torch.randint(0, vocab_size, (tokens, 4), generator=generator, device=device)
    candidates = torch.zeros(tokens, dtype=torch.long, device=device)
    ranges = torch.tensor([[[0, vocab_size]]], device=device)

    def backward(loss):
        torch.autograd.grad(loss, [states, head.weight])

    def product():
        with torch.no_grad():
            head(states)

    calls = {
        "forward_product": product,
        "fused": lambda: backward(fused_ntp_m_loss(states, head, targets, candidates, ranges, top_k)),
        "plain": lambda: backward(ntp_m_loss(head(states), targets, candidates, ranges, top_k)),
    }
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        return calls
    liger = LigerFusedLinearCrossEntropyLoss()
    return calls | {"liger_cross_entropy": lambda: backward(liger(head.weight, states, targets[:, 0].contiguous()))}


def measure_losses(args: argparse.Namespace) -> dict:
    sizes = (512, 64, 4096, 20) if args.quick else (8192, 4096, 131072, 100)
    calls, found = loss_calls(args.device, *sizes), {}
    for name, call in list(calls.items()):
        try:
            found[name] = {"mib": extra_bytes(call) / 2**20}
        except torch.OutOfMemoryError:
            found[name] = {"mib": None}  # and no time
            del calls[name]
            torch.cuda.empty_cache()
    for name, value in zip(calls, paired_seconds(*calls.values(), repeats=2 if args.quick else 10), strict=True):
        found[name]["ms"] = 1000 * value
    return found


def measure_model(args: argparse.Namespace) -> dict:
    """Images a second of two tasks, and tokens a second of a training step."""
    model = DenseMLLMForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.bfloat16).to(args.device).eval()
    processor = model.get_processor()
    size, count = ((64, 64), 2) if args.quick else ((512, 512), 64)
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for _ in range(count)]
    labels = ["floor", "wall", "chair"]
    options = {"task": ("segmentation", "depth"), "labels": labels, "focal_length": 172.0, "batch_size": 16}
    took = seconds(lambda: model.predict_dense(images, **options), repeats=3)
    samples = [{"image": image, "segmentation": image[0].numpy() % 3} for image in images[:16]]
    batch = DenseCollator(processor, dict(enumerate(labels)))(samples)
    inputs = {key: value.to(args.device) if torch.is_tensor(value) else value for key, value in batch.items()}
    model.train()

    def step():
        model(**inputs).loss.backward()
        model.zero_grad()

    step_took, memory = seconds(step, repeats=3), extra_bytes(step)
    return {
        "predict_images_per_second": count / took,
        "train_tokens_per_second": inputs["input_ids"].numel() / step_took,
        "train_step_mib": memory / 2**20,
    }


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the script itself")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU; --device cpu --quick tries the script")
    card = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    losses = measure_losses(args)
    print(f"| {card} | ms | MiB beyond what is held before | times the forward product |\n|---|---|---|---|")
    for name, row in losses.items():
        time, memory = row.get("ms"), row["mib"]
        ratio = None if time is None else time / losses["forward_product"]["ms"]
        cells = ["out of memory" if value is None else f"{value:.1f}" for value in (time, memory, ratio)]
        print(f"| {name} | {' | '.join(cells)} |")
    model = measure_model(args)
    for name, value in model.items():
        print(f"{name}: {value:.1f}")
    results = {"card": card, "torch": torch.__version__, "losses": losses, **model}
    print(json.dumps(results))
    return results


if __name__ == "__main__":
    main()
