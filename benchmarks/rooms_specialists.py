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
r"""Specialists on the Rooms data, for the same time as the small DenseMLLM: SegFormer-B0 for classes, GLPN for depth.

    python benchmarks/rooms_specialists.py --data out/rooms/data --minutes 60 --output_dir out/rooms/specialists

Both are transformers' own models at their smallest geometry (mix transformer B0, 3.7 million parameters), from random
weights, with the same rooms, optimiser and metrics as `train_hf.py examples/rooms/train.yaml` and its augmentation,
cropped to one size. Depth is learned as a camera of one focal length would have it, and turned back. Each is trained
for `--minutes`: half of what DenseMLLM took for both tasks gives the two together the same time on the same machine.
`--depth_loss silog` is GLPN's own loss, which forgives half of a factor on all depths; `l1` is the absolute error of
the logarithm, which the tower of DenseMLLM is pretrained with.
With `--output_dir`, the same command goes on where it was stopped; with no more minutes than there were, it only
measures, on any `--data` and `--split`. Ends with one line of JSON: `mean_iou`, `delta1`, `abs_rel`, `silog`,
`median_ratio` (predicted to true depth, the median view)..., and the steps of each.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure import autocast
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import (
    GLPNConfig,
    GLPNForDepthEstimation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    set_seed,
)

from densemllm.evaluation.metrics import DepthMetrics, SegmentationMetrics
from densemllm.files import whole_file
from densemllm.formats.folders import load_samples
from densemllm.formats.labels import load_id2label
from densemllm.targets_densemllm import IGNORE_INDEX
from densemllm.training.datasets import DenseDataset, DenseSource
from densemllm.training.optimizers import MuonWithAdamW
from densemllm.training.samples import Augmentation, read_sample


FOCAL_LENGTH = 144.0  # pixels, of the camera whose depth is learned
MEAN, STD = 0.45, 0.225
WEIGHT_DECAY = 0.05


def to_batch(samples: list[dict], size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Pictures and maps at one size, filled up where a random scale made them smaller."""
    pixels = torch.zeros(len(samples), 3, *size)
    classes = torch.full((len(samples), *size), IGNORE_INDEX)
    metres = torch.zeros(len(samples), *size)
    for place, sample in enumerate(samples):
        picture = (np.asarray(sample["image"], dtype=np.float32) / 255 - MEAN) / STD
        height, width = (min(own, edge) for own, edge in zip(picture.shape[:2], size, strict=True))
        pixels[place, :, :height, :width] = torch.from_numpy(picture).permute(2, 0, 1)[:, :height, :width]
        classes[place, :height, :width] = torch.from_numpy(sample["segmentation"][:height, :width].astype(np.int64))
        depth = sample["depth"][:height, :width] * FOCAL_LENGTH / sample["focal_length"]
        metres[place, :height, :width] = torch.from_numpy(depth)
    return {"pixel_values": pixels, "classes": classes, "metres": metres}


def loss_of(model, batch: dict, depth_loss: str) -> torch.Tensor:
    if isinstance(model, SegformerForSemanticSegmentation):
        logits = model(batch["pixel_values"]).logits.float()
        size = batch["classes"].shape[-2:]
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return F.cross_entropy(logits, batch["classes"], ignore_index=IGNORE_INDEX)
    known = batch["metres"] > 0
    predicted = model(batch["pixel_values"]).predicted_depth.float().clamp(min=0.05)
    error = predicted[known].log() - batch["metres"][known].log()
    return error.abs().mean() if depth_loss == "l1" else (error.square().mean() - 0.5 * error.mean().square()).sqrt()


def iterate_batches(data: DenseDataset, batch_size: int, size, step: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches from `step` on, made by a worker as those of `train.yaml` are."""
    epoch, place = divmod(step, len(data) // batch_size)
    while True:
        data.set_epoch(epoch)
        order = np.random.default_rng([0, epoch]).permutation(len(data))
        batches = [order[at : at + batch_size].tolist() for at in range(0, len(data), batch_size)]
        batches = batches[place : len(data) // batch_size]
        yield from DataLoader(data, batch_sampler=batches, num_workers=1, collate_fn=partial(to_batch, size=size))
        epoch, place = epoch + 1, 0


def make_optimizer(model, learning_rate: float, muon_learning_rate: float) -> torch.optim.Optimizer:
    """As `train.yaml` has it: Muon for matrices, AdamW for all others, which are convolutions here, too."""
    if not muon_learning_rate:
        return torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    groups = {"muon": [], "decayed": [], "others": []}
    for parameter in model.parameters():
        groups["muon" if parameter.ndim == 2 else "decayed" if parameter.ndim > 2 else "others"].append(parameter)
    rates = {"learning_rate": learning_rate, "muon_learning_rate": muon_learning_rate}
    return MuonWithAdamW.of_parameters(**groups, **rates, weight_decay=WEIGHT_DECAY)


def train(
    model, data: DenseDataset, minutes: float, batch_size: int, optimizer: torch.optim.Optimizer, size,
    state: Path | None, depth_loss: str,
) -> int:  # fmt: skip
    """Steps made: the schedule follows the clock, so that it ends where the time does. `state` is a file that keeps
    what is needed to go on, written every five minutes."""
    # A step takes a quarter less time with this layout on a CPU.
    model.train().to(memory_format=torch.channels_last)
    peaks = [group["lr"] for group in optimizer.param_groups]
    before, step = 0.0, 0
    if state is not None and state.is_file():
        known = torch.load(state, weights_only=True)
        model.load_state_dict(known["model"])
        optimizer.load_state_dict(known["optimizer"])
        before, step = known["seconds"], known["step"]
    batches = iterate_batches(data, batch_size, size, step)
    started = saved = time.monotonic()
    progress = tqdm(total=round(60 * minutes), initial=round(before), unit="s", desc=type(model).__name__)

    def save() -> None:
        if state is None:
            return
        kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        with whole_file(state, overwrite=True) as staged:
            torch.save({**kept, "seconds": before + time.monotonic() - started}, staged)

    while (spent := before + time.monotonic() - started) < 60 * minutes:
        share = spent / (60 * minutes)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * share))
        batch = next(batches)
        with autocast("cpu"):
            loss = loss_of(model, batch, depth_loss)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        progress.update(round(before + time.monotonic() - started) - progress.n)
        progress.set_postfix(loss=f"{loss.item():.3f}")
        if time.monotonic() - saved > 300:
            save()
            saved = time.monotonic()
    save()
    return step


@torch.no_grad()
def evaluate(models: dict, rows, id2label: dict[int, str], depth_scale: float, size) -> dict:
    classes, depth, ratios = SegmentationMetrics(len(id2label)), DepthMetrics(), []
    for row in tqdm(rows, desc="evaluating"):
        sample = read_sample(row, id2label=id2label, depth_scale=depth_scale)
        pixels = to_batch([sample], size)["pixel_values"]
        if "segmentation" in models:
            logits = models["segmentation"](pixels).logits
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
            classes.add(logits[0].argmax(dim=0), sample["segmentation"])
        if "depth" in models:
            metres = models["depth"](pixels).predicted_depth[0] * sample["focal_length"] / FOCAL_LENGTH
            depth.add(metres, sample["depth"])
            known = sample["depth"] > 0
            ratios.append(float(np.median(metres.numpy()[known] / sample["depth"][known])))
    metrics = classes.compute() if "segmentation" in models else {}
    return metrics | (depth.compute() | {"median_ratio": float(np.median(ratios))} if "depth" in models else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="examples/rooms/sample", help="folder that render.py wrote")
    parser.add_argument("--split", default="validation", help="split to measure on")
    parser.add_argument("--task", nargs="+", choices=("segmentation", "depth"), default=["segmentation", "depth"])
    parser.add_argument("--depth_loss", choices=("silog", "l1"), default="silog", help="what GLPN is trained with")
    parser.add_argument("--minutes", type=float, default=60, help="of training, for each of the two")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="of AdamW")
    parser.add_argument("--muon_learning_rate", type=float, default=5e-3, help="of Muon; 0: AdamW alone")
    parser.add_argument("--depth_scale", type=float, default=0.002, help="metres a unit")
    parser.add_argument("--limit", type=int, help="rows to measure on, at most")
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--quick", action="store_true", help="a few steps: shows that it runs")
    args = parser.parse_args()
    if args.quick:
        args.minutes, args.batch_size, args.limit = 0.05, 4, 8
    set_seed(0)
    id2label = load_id2label(str(Path(args.data) / "id2label.json"))
    source = DenseSource(
        load_samples(args.data, "train"), None, id2label, args.depth_scale,
        columns=("image", "segmentation", "depth", "focal_length"),
    )  # fmt: skip
    rows = load_samples(args.data, args.split)
    rows = rows.select(range(min(args.limit or len(rows), len(rows))))
    size = np.asarray(read_sample(rows[0], id2label=id2label, depth_scale=args.depth_scale)["image"]).shape[:2]
    augmentation = Augmentation(scale=(0.7, 1.3), crop_size=size, flip_probability=0.5, color_jitter=0.5)
    data = DenseDataset(source, augmentation)
    make = {
        "segmentation": lambda: SegformerForSemanticSegmentation(
            SegformerConfig(num_labels=len(id2label), id2label=id2label)
        ),
        "depth": lambda: GLPNForDepthEstimation(GLPNConfig(max_depth=12)),
    }
    models = {task: make[task]() for task in args.task}
    results = {}
    for task, model in models.items():
        name = f"{task}_{args.depth_loss}" if task == "depth" else task  # one loss doesn't go on with the other's
        state = args.output_dir / f"{name}.pt" if args.output_dir is not None else None
        optimizer = make_optimizer(model, args.learning_rate, args.muon_learning_rate)
        results[f"{task}_steps"] = train(
            model, data, args.minutes, args.batch_size, optimizer, size, state, args.depth_loss
        )
        results[f"{task}_parameters"] = sum(p.numel() for p in model.parameters())
        model.eval()
        if args.output_dir is not None:
            model.save_pretrained(args.output_dir / name)
    metrics = evaluate(models, rows, id2label, args.depth_scale, size)
    for key, name in id2label.items() if "segmentation" in models else ():
        print(f"  {name:12}{metrics['per_label_iou'][key]:8.3f}")
    names = ("mean_iou", "pixel_accuracy", "delta1", "abs_rel", "rmse", "silog", "median_ratio")
    results |= {name: metrics[name] for name in names if name in metrics}
    print("\n" + json.dumps({name: round(value, 4) for name, value in results.items()}))


if __name__ == "__main__":
    main()
