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
r"""Does the model wait for its data? Samples a second of the loader alone, against those of a training step.

    python benchmarks/data_loader.py [--quick]

Pictures of 640x480 as PNG files in memory with a class map of 150 classes and 16-bit depth; reading, augmenting,
cutting into patches, tokenising and building targets happen in the loader's workers. Random weights. Ends with one
line of JSON: samples a second of each, and `loader_over_step`, which has to be above 1.
"""

import argparse
import json
import os
import time
from io import BytesIO

import numpy as np
import PIL.Image
import torch
from measure import seconds
from predict_dense import make_image, make_model
from torch.utils.data import DataLoader

from densemllm.training.collator import DenseCollator
from densemllm.training.datasets import DenseDataset, DenseSource
from densemllm.training.samples import Augmentation


def encoded(picture: PIL.Image.Image) -> dict:
    """A picture as the `Image` feature of `datasets` holds it."""
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def make_rows(count: int, height: int, width: int, num_classes: int) -> list[dict]:
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        blocks = generator.integers(0, num_classes, (height // 32 + 1, width // 32 + 1)).astype(np.uint8)
        classes = np.kron(blocks, np.ones((32, 32), dtype=np.uint8))[:height, :width]
        ramp = np.linspace(500, 20_000, height)[:, None] + generator.uniform(0, 500, (1, width))
        rows.append(
            {
                "image": encoded(make_image(height, width)),
                "segmentation": encoded(PIL.Image.fromarray(classes)),
                "depth": encoded(PIL.Image.fromarray(ramp.astype(np.uint16))),
            }
        )
    return rows


def loader_rate(dataset, collator, batch_size: int, workers: int) -> float:
    """Samples a second over one pass, from the first batch on."""
    loader = DataLoader(dataset, batch_size, collate_fn=collator, num_workers=workers)
    batches = iter(loader)
    next(batches)
    start, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch["image_grid_thw"])
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer samples, under a minute")
    args = parser.parse_args()
    if args.quick:
        args.samples, args.batch_size = 24, 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = make_model(*((256, 4, 512, 6) if args.quick else (512, 8, 1024, 12)), device).train()
    id2label = {index: f"thing {index}" for index in range(150)}
    collator = DenseCollator(model.get_processor())
    source = DenseSource(make_rows(args.samples, 480, 640, len(id2label)), None, id2label, 0.001)
    dataset = DenseDataset(source, Augmentation((0.8, 1.2), (480, 640), 0.5, 0.2))
    print(
        f"device {device}, {torch.get_num_threads()} threads, {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M"
    )

    rates = {workers: loader_rate(dataset, collator, args.batch_size, workers) for workers in (0, args.workers)}
    for workers, rate in rates.items():
        print(f"  loader alone, {workers} workers {rate:10.2f} samples/s")
    batch = collator([dataset[index] for index in range(args.batch_size)])
    batch = {name: value.to(device) for name, value in batch.items()}

    def step():
        model(**batch).loss.backward()
        model.zero_grad()

    step_rate = args.batch_size / seconds(step, repeats=1 if args.quick else 3, warmup=0 if args.quick else 1)
    print(f"  step alone            {step_rate:10.2f} samples/s")
    results = {
        "loader_samples_per_second": rates[args.workers],
        "step_samples_per_second": step_rate,
        "loader_over_step": rates[args.workers] / step_rate,
    }
    print("\n" + json.dumps({name: round(value, 3) for name, value in results.items()}))


if __name__ == "__main__":
    main()
