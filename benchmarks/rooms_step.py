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
r"""What a training step of the small rooms model costs: attention as matrix products against torch's own (`eager`
against `sdpa`), and the tower alone against the whole model.

    python benchmarks/rooms_step.py [--quick]

Forward and backward of the same batch of views with classes, depth and expressions, in bfloat16 where that is fast,
without the optimiser, in turn. Ends with one line of JSON: seconds of each, `tower_sdpa_over_eager`,
`whole_sdpa_over_eager`, and `whole_over_tower`, with `eager`.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from measure import autocast, fast_dtype, paired_seconds

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor
from densemllm.formats.folders import load_samples
from densemllm.formats.labels import load_id2label
from densemllm.training.collator import DenseCollator
from densemllm.training.datasets import DenseDataset, DenseSource


COLUMNS = ("image", "segmentation", "depth", "focal_length", "mask", "expression")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/densemllm-rooms")
    parser.add_argument("--data", default="examples/rooms/sample", help="folder that render.py wrote")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="two views, once: shows that it runs")
    args = parser.parse_args()
    batch_size, repeats = (2, 1) if args.quick else (args.batch_size, 9)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    processor = DenseMLLMProcessor.from_pretrained(args.model)
    id2label = load_id2label(str(Path(args.data) / "id2label.json"))
    data = DenseDataset(DenseSource(load_samples(args.data, "train"), None, id2label, 0.002, columns=COLUMNS))
    batch = DenseCollator(processor, candidates="labels")([data[place] for place in range(batch_size)])
    batch = {name: value.to(device) for name, value in batch.items()}
    steps = {}
    for attention in ("eager", "sdpa"):
        model = DenseMLLMForConditionalGeneration.from_pretrained(
            args.model, dtype=torch.float32, attn_implementation=attention
        )
        model.to(device).train()
        tower = model.model.vision_tower

        def step(read, model=model):
            with autocast(device):
                loss = read()
            loss.backward()
            model.zero_grad()

        def read_tower(tower=tower):
            return tower(batch["pixel_values"], batch["image_grid_thw"]).last_hidden_state.float().square().mean()

        steps[f"tower_{attention}"] = partial(step, read_tower)
        steps[f"whole_{attention}"] = partial(step, lambda model=model: model(**batch).loss)
    results = dict(zip(steps, paired_seconds(*steps.values(), repeats=repeats), strict=True))
    print(
        f"{device}, {torch.get_num_threads()} threads, {fast_dtype(device)}, {batch_size} views, "
        f"{len(batch['pixel_values'])} patches"
    )
    for name, value in results.items():
        print(f"  {name:12} {1000 * value:8.0f} ms")
    ratios = {
        "tower_sdpa_over_eager": results["tower_sdpa"] / results["tower_eager"],
        "whole_sdpa_over_eager": results["whole_sdpa"] / results["whole_eager"],
        "whole_over_tower": results["whole_eager"] / results["tower_eager"],
    }
    print("\n" + json.dumps({name: round(value, 3) for name, value in {**results, **ratios}.items()}))


if __name__ == "__main__":
    main()
