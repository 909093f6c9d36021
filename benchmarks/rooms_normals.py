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
r"""Surface normals of a model that knows depth only: from the map of depth as `predict_dense` gives it, and as
`task="normals"` reads them, between the depth bins and on the grid of tokens.

    python benchmarks/rooms_normals.py [--quick]

The true normals are finite differences of the true depth of held-out rooms. The slopes of a map of whole bins are
those of its steps; `facing`, for comparison, has every surface face the camera. Ends with one line of JSON: mean and
median angle in degrees and the shares of pixels under 11.25, 22.5 and 30 degrees of each, and `mean_angle_ratio`, of
the map's to the task's.
"""

import argparse
import json

import torch
from tqdm.auto import tqdm

from densemllm import DenseMLLMForConditionalGeneration
from densemllm.evaluation.metrics import NormalsMetrics
from densemllm.formats.folders import load_samples
from densemllm.normals_densemllm import depth_to_normals
from densemllm.training.samples import read_sample


COLUMNS = ("image", "depth", "focal_length")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/densemllm-rooms")
    parser.add_argument("--data", default="examples/rooms/sample", help="folder that render.py wrote")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--depth_scale", type=float, default=0.002, help="metres a unit")
    parser.add_argument("--quick", action="store_true", help="few images: shows that it runs")
    args = parser.parse_args()
    rows = load_samples(args.data, args.split)
    rows = rows.select(range(min(4, len(rows)))) if args.quick else rows
    model = DenseMLLMForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    metrics = {name: NormalsMetrics() for name in ("task", "map", "facing")}
    for row in tqdm(rows):
        sample = read_sample({name: row[name] for name in COLUMNS}, depth_scale=args.depth_scale)
        camera = {"focal_length": sample["focal_length"], "depth_range": None}
        true = depth_to_normals(sample["depth"], sample["focal_length"])
        found = model.predict_dense(sample["image"], task=("depth", "normals"), source="depth", **camera)
        metrics["task"].add(found.normals, true)
        metrics["map"].add(depth_to_normals(found.predicted_depth, sample["focal_length"]), true)
        metrics["facing"].add(torch.tensor([0.0, 0.0, 1.0]).expand(true.shape).contiguous(), true)
    results: dict = {name: metric.compute() for name, metric in metrics.items()}
    for name, values in results.items():
        print(f"{name:8}", "  ".join(f"{key} {value:.3f}" for key, value in values.items()))
    results = {name: {key: round(value, 3) for key, value in values.items()} for name, values in results.items()}
    results["mean_angle_ratio"] = round(results["map"]["mean_angle"] / results["task"]["mean_angle"], 3)
    print("\n" + json.dumps(results))


if __name__ == "__main__":
    main()
