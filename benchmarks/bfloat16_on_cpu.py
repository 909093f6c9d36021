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
"""bfloat16 against float32 on this CPU: a prediction, a step of training, and Muon's update.

    python benchmarks/bfloat16_on_cpu.py [--quick]

Depth of one view of the sample; forward and backward of two; and an update of all inner matrices by torch's Muon,
which computes in bfloat16, and by this package's, which does so only where that is fast. In turn. Ends with one line
of JSON: the ratios of bfloat16 to float32, and of torch's Muon to ours.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from measure import paired_seconds

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor
from densemllm.formats.folders import load_samples
from densemllm.formats.labels import load_id2label
from densemllm.training.collator import DenseCollator
from densemllm.training.datasets import DenseDataset, DenseSource
from densemllm.training.optimizers import Muon


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/densemllm-rooms")
    parser.add_argument("--data", default="examples/rooms/sample", help="folder that render.py wrote")
    parser.add_argument("--quick", action="store_true", help="once each, of one view: shows that it runs")
    args = parser.parse_args()
    repeats = 1 if args.quick else 3
    processor = DenseMLLMProcessor.from_pretrained(args.model)
    id2label = load_id2label(str(Path(args.data) / "id2label.json"))
    columns = ("image", "segmentation", "depth", "focal_length")
    data = DenseDataset(DenseSource(load_samples(args.data, "train"), None, id2label, 0.002, columns=columns))
    samples = [data[place] for place in range(1 if args.quick else 2)]
    batch = DenseCollator(processor, candidates="labels")(samples)
    models = {
        dtype: DenseMLLMForConditionalGeneration.from_pretrained(
            args.model, dtype=dtype, attn_implementation="eager"
        ).eval()
        for dtype in ("bfloat16", "float32")
    }
    learner = models["float32"]

    def predict(dtype: str) -> None:
        models[dtype].predict_dense(samples[0]["image"], task="depth", focal_length=172)

    def learn(enabled: bool) -> None:
        learner.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = learner(**batch).loss
        loss.backward()

    calls = {
        "predict_bfloat16": partial(predict, "bfloat16"), "predict_float32": partial(predict, "float32"),
        "train_bfloat16": partial(learn, True), "train_float32": partial(learn, False),
    }  # fmt: skip
    results = dict(zip(calls, paired_seconds(*calls.values(), repeats=repeats), strict=True))
    matrices = [
        p for name, p in learner.named_parameters() if p.ndim == 2 and "embed" not in name and "lm_head" not in name
    ]
    groups = [{"params": matrices, "lr": 0.0, "weight_decay": 0.0}]
    calls = {
        "muon_of_torch": torch.optim.Muon(groups, adjust_lr_fn="match_rms_adamw").step,
        "muon": Muon(groups).step,
    }
    results |= zip(calls, paired_seconds(*calls.values(), repeats=repeats), strict=True)
    print(f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    for name, value in results.items():
        print(f"  {name:17} {1000 * value:8.0f} ms")
    ratios = {
        "predict_bfloat16_over_float32": results["predict_bfloat16"] / results["predict_float32"],
        "train_bfloat16_over_float32": results["train_bfloat16"] / results["train_float32"],
        "muon_of_torch_over_ours": results["muon_of_torch"] / results["muon"],
    }
    print(json.dumps({name: round(value, 2) for name, value in ratios.items()}))


if __name__ == "__main__":
    main()
