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
r"""What a grid of vision tokens can say at most: the mIoU and delta1 of a model that knows the truth of every cell.

    python benchmarks/rooms_token_grid.py --data out/rooms/data

A cell's logits are the shares of its pixels that each class has, its depth is the geometric mean; both are resized to
the picture as `predict_dense` resizes them. What is lost is what the grid is too coarse for. Compares several grids in
one run.

Then, for one grid, what labels leave open: a model that knows which classes are labels of a cell (`min_label_share`,
0 for the paper's rule), but to which all labels of a cell are alike, with ties broken at random.

Ends with one line of JSON: for each edge, in tokens, `mean_iou`, `delta1`, and the tokens' ratio; for each share
`mean_iou`, `mean_iou_ratio` (to a model that knows the shares) and the IoU of the first class, the floor.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from densemllm.evaluation.metrics import DepthMetrics, SegmentationMetrics
from densemllm.formats.folders import load_samples
from densemllm.formats.labels import load_id2label
from densemllm.training.samples import read_sample


def read_from_grid(values: torch.Tensor, edge: int) -> torch.Tensor:
    """Maps `[n, H, W]` as a grid of `edge` x `edge` cells keeps them: means of cells, resized back."""
    cells = F.adaptive_avg_pool2d(values[None], edge)
    return F.interpolate(cells, size=values.shape[-2:], mode="bilinear", align_corners=False)[0]


def labels_alike(shares: torch.Tensor, edge: int, min_label_share: float, generator: torch.Generator) -> torch.Tensor:
    """Classes `[H, W]` read from scores that are 1 for each label of a cell, as the processor's `encode_annotations`
    chooses labels, and 0 for all others, with too little noise to change more than ties."""
    cells = F.adaptive_avg_pool2d(shares[None], edge)[0]
    needed = torch.minimum(min_label_share * cells.sum(dim=0), cells.amax(dim=0)) - 1e-6
    scores = ((cells > 0) & (cells >= needed)).float()
    scores += 0.01 * torch.rand(scores.shape, generator=generator)
    resized = F.interpolate(scores[None], size=shares.shape[-2:], mode="bilinear", align_corners=False)
    return resized[0].argmax(dim=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="examples/rooms/sample", help="folder that render.py wrote")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--edges", type=int, nargs="+", default=[8, 10, 12, 16, 20, 32], help="of grids, in tokens")
    parser.add_argument("--min_label_shares", type=float, nargs="+", default=[0, 0.1, 0.25, 0.5, 1])
    parser.add_argument(
        "--label_edge", type=int, default=16, help="of the grid that labels are looked at on, in tokens"
    )
    parser.add_argument("--depth_scale", type=float, default=0.002, help="metres a unit")
    parser.add_argument("--quick", action="store_true", help="few pictures: shows that it runs")
    args = parser.parse_args()
    id2label = load_id2label(str(Path(args.data) / "id2label.json"))
    rows = load_samples(args.data, args.split)
    rows = rows.select(range(min(8, len(rows)))) if args.quick else rows
    metrics = {edge: (SegmentationMetrics(len(id2label)), DepthMetrics()) for edge in args.edges}
    of_labels = {share: SegmentationMetrics(len(id2label)) for share in args.min_label_shares}
    of_shares, generator = SegmentationMetrics(len(id2label)), torch.Generator().manual_seed(0)
    for row in tqdm(rows):
        sample = read_sample(row, id2label=id2label, depth_scale=args.depth_scale)
        classes = torch.from_numpy(sample["segmentation"].astype(np.int64))
        shares = torch.stack([(classes == key).float() for key in id2label])
        known = torch.from_numpy(sample["depth"])
        metres = known.clamp(min=1e-3).log()[None]
        for edge, (segmentation, depth) in metrics.items():
            segmentation.add(read_from_grid(shares, edge).argmax(dim=0), sample["segmentation"])
            depth.add(read_from_grid(metres, edge)[0].exp(), sample["depth"])
        of_shares.add(read_from_grid(shares, args.label_edge).argmax(dim=0), sample["segmentation"])
        for share, metric in of_labels.items():
            metric.add(labels_alike(shares, args.label_edge, share, generator), sample["segmentation"])
    results: dict = {"edges": {}, "min_label_shares": {}}
    for edge, (segmentation, depth) in metrics.items():
        scores = {**segmentation.compute(), **depth.compute()}
        results["edges"][edge] = {name: round(scores[name], 3) for name in ("mean_iou", "delta1")}
        results["edges"][edge]["tokens_ratio"] = round(edge**2 / max(args.edges) ** 2, 3)
        print(f"{edge:3d} x {edge:<3d} mIoU {scores['mean_iou']:.3f}  delta1 {scores['delta1']:.3f}")
    best = of_shares.compute()
    for share, metric in of_labels.items():
        scores = metric.compute()
        mean, floor = scores["mean_iou"], scores["per_label_iou"][0]
        results["min_label_shares"][share] = {
            "mean_iou": round(mean, 3), "mean_iou_ratio": round(mean / best["mean_iou"], 3),
            "floor_iou": round(floor, 3),
        }  # fmt: skip
        print(f"labels with {share:4.2f} of a cell: mIoU {mean:.3f}  floor {floor:.3f}")
    print(f"shares known: mIoU {best['mean_iou']:.3f}  floor {best['per_label_iou'][0]:.3f}")
    print("\n" + json.dumps(results))


if __name__ == "__main__":
    main()
