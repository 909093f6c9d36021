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
r"""A finer grid without a head: does it help to split a vision token into the patches that it was merged from?

    python benchmarks/rooms_dense_stride.py [--steps 150] [--views 133] [--quick]

Two models start from the same checkpoint and are trained on the same batches, by NTP-M alone:

- `cells`: as it is. A vision token has the labels of its cell;
- `sub_cells`: the features of each of its patches, as the tower gives them before the merge, go through a small MLP
  and are added to the token's last hidden state; the same output embedding reads what comes out, which learns the
  labels of that patch. The last layer starts at zero, so that at first a patch says what its token does.

Both are measured on the same held-out views: classes and depth, resized bilinearly and by guided upsampling (the
`refine="guided"` of `predict_dense`, on either grid). Ends with one line of JSON: mIoU, mean boundary IoU and delta1
of each, seconds of training, and the ratios of `sub_cells` to `cells`.
"""

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
from measure import autocast
from rooms_instances import make_optimizer
from torch import nn
from tqdm.auto import tqdm

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor
from densemllm.decoding_densemllm import decode_bin_places, decode_segmentation, resize_map
from densemllm.evaluation.metrics import DepthMetrics, SegmentationMetrics
from densemllm.formats.folders import load_samples
from densemllm.formats.labels import load_id2label
from densemllm.guided_densemllm import guided_resize, guided_segmentation
from densemllm.loss_densemllm import fused_ntp_m_loss
from densemllm.training.collator import DenseCollator, at_focal_length
from densemllm.training.datasets import DenseDataset, DenseSource
from densemllm.training.samples import Augmentation


COLUMNS = ("image", "segmentation", "depth", "focal_length")
CANDIDATES, MIN_LABEL_SHARE = "labels", 0.25  # as the checkpoint was trained


class Cells(nn.Module):
    """A vision token's state is that of its cell."""

    edge = 1  # of a token, in cells

    def __init__(self, model: DenseMLLMForConditionalGeneration):
        super().__init__()
        self.model = model

    def split(self, states: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        return states

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """States `[n_cells, hidden_size]`, the cells of a token after each other."""
        model = self.model.model
        ids, grid = batch["input_ids"], batch["image_grid_thw"]
        features = model.get_image_features(batch["pixel_values"], grid)
        found = model(
            input_ids=ids, attention_mask=batch["attention_mask"], image_grid_thw=grid,
            mm_encoder_outputs={"image": features}, use_cache=False,
        )  # fmt: skip
        is_image = model.get_image_token_mask(ids, None)
        return self.split(found.last_hidden_state[is_image], features.last_hidden_state)


class SubCells(Cells):
    """Its patches have states of their own."""

    def __init__(self, model: DenseMLLMForConditionalGeneration):
        super().__init__(model)
        self.edge = model.config.spatial_merge_size
        width, hidden_size = model.config.vision_config.hidden_size, model.config.get_text_config().hidden_size
        last = nn.Linear(hidden_size, hidden_size, bias=False)
        nn.init.zeros_(last.weight)
        self.own = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, hidden_size), nn.SiLU(), last)

    def split(self, states: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        return states.repeat_interleave(self.edge**2, dim=0) + self.own(patches)


class Batches:
    """Samples to a batch with the targets of both grids."""

    def __init__(self, processor: DenseMLLMProcessor):
        self.collate = DenseCollator(processor, candidates=CANDIDATES, min_label_share=MIN_LABEL_SHARE)
        self.fine = copy.deepcopy(processor)
        self.fine.image_processor.merge_size = 1

    def __call__(self, samples: list[dict]) -> tuple[dict, dict[int, tuple]]:
        """What the model reads, and targets, candidates and ranges of tokens' cells by their edge in cells."""
        batch = self.collate(samples)
        names = ("dense_targets", "dense_candidates", "dense_candidate_ranges")
        annotations = [entry[1] for sample in samples for entry in self.collate.entries(sample)]
        grid, merge = batch["image_grid_thw"], self.collate.processor.image_processor.merge_size
        fine = self.fine.encode_annotations(annotations, grid, CANDIDATES, MIN_LABEL_SHARE)
        orders, first = [], 0
        for _, height, width in grid.tolist():
            orders.append(first + by_token(height, width, merge))
            first += height * width
        order = torch.cat(orders)
        targets = {1: tuple(batch.pop(name) for name in names)}
        targets[merge] = (fine[names[0]][order], fine[names[1]][order], fine[names[2]])
        return batch, targets


def by_token(height: int, width: int, edge: int) -> torch.Tensor:
    """Places of a grid's cells, row by row, in the order of tokens of `edge` x `edge` cells."""
    places = torch.arange(height * width).view(height // edge, edge, width // edge, edge)
    return places.transpose(1, 2).flatten()


def read_data(
    args: argparse.Namespace, split: str, id2label: dict[int, str], augmentation: Augmentation | None = None
) -> DenseDataset:
    rows = load_samples(args.data, split)
    return DenseDataset(DenseSource(rows, None, id2label, args.depth_scale, columns=COLUMNS), augmentation)


def train(learner: Cells, args: argparse.Namespace, id2label: dict[int, str]) -> float:
    """Train on the same samples in the same order whatever the learner; gives back the seconds."""
    model = learner.model
    data = read_data(
        args, "train", id2label, Augmentation(tuple(args.train_scales), flip_probability=0.5, color_jitter=0.4)
    )
    make_batch, optimizer = Batches(model.get_processor()), make_optimizer(model, learner.train())
    rates = [group["lr"] for group in optimizer.param_groups]
    start, losses, order = time.monotonic(), [], []
    for step in range(args.steps):
        if len(order) < args.batch_size:
            data.set_epoch(step)
            order = np.random.default_rng(step).permutation(len(data)).tolist()
        batch, targets = make_batch([data[order.pop()] for _ in range(args.batch_size)])
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = args.rate * rate * min(1.0, (step + 1) / 20) * (1 - step / args.steps)
        with autocast("cpu"):
            states = learner(batch)
        loss = fused_ntp_m_loss(states.float(), model.lm_head, *targets[learner.edge], model.config.ntp_m_top_k)
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if (step + 1) % 25 == 0:
            spent = time.monotonic() - start
            print(f"step {step + 1}, {spent:.0f} s, loss {np.mean(losses[-25:]):.3f}", flush=True)
    return time.monotonic() - start


@torch.no_grad()
def evaluate(learner: Cells, args: argparse.Namespace, id2label: dict[int, str]) -> dict[str, dict[str, float]]:
    """Classes and depth of the held-out views, resized in both ways."""
    model = learner.eval().model
    processor = model.get_processor()
    data = read_data(args, "validation", id2label)
    collate, labels = DenseCollator(processor, candidates=CANDIDATES), processor.known_label_ids(id2label)
    ids = [*labels, *([token] for token in processor.depth_token_ids)]
    metrics = {way: (SegmentationMetrics(len(id2label)), DepthMetrics()) for way in ("bilinear", "guided")}
    for place in tqdm(np.unique(np.linspace(0, len(data) - 1, args.views).astype(int)).tolist()):
        sample = data[place]
        image, size = sample["image"], (sample["image"].height, sample["image"].width)
        _, focal_length = at_focal_length(image, sample, processor)
        batch = collate([sample])
        height, width = (batch["image_grid_thw"][0, 1:] // model.config.spatial_merge_size * learner.edge).tolist()
        logits = model.label_logits(learner(batch), ids)
        cells = torch.empty_like(logits)
        cells[by_token(height, width, learner.edge)] = logits
        cells = cells.T.unflatten(1, (height, width))
        classes, bins = cells[: len(labels)], cells[len(labels) :]
        metres = processor.depth_bins.metres(decode_bin_places(bins)[0], focal_length=focal_length)
        found = {
            "bilinear": (decode_segmentation(classes, size)[0], resize_map(metres, size)),
            "guided": (guided_segmentation(classes, image)[0], guided_resize(metres[None], image)[0]),
        }
        for way, (segmentation, depth) in found.items():
            metrics[way][0].add(segmentation, sample["segmentation"])
            metrics[way][1].add(depth, sample["depth"])
    results = {}
    for way, own in metrics.items():
        values = {**own[0].compute(), **own[1].compute()}
        results[way] = {name: round(values[name], 4) for name in ("mean_iou", "mean_boundary_iou", "delta1")}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/densemllm-rooms")
    parser.add_argument("--data", default="examples/rooms/sample", help="folder that render.py wrote")
    parser.add_argument("--depth_scale", type=float, default=0.002, help="metres a unit")
    parser.add_argument("--views", type=int, default=133)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rate", type=float, default=0.3, help="share of the learning rates of a first training")
    parser.add_argument("--train_scales", type=float, nargs=2, default=[0.6, 1.1], help="of training views")
    parser.add_argument("--quick", action="store_true", help="few steps and views: shows that it runs")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.batch_size, args.views = 2, 2, 2
    id2label = load_id2label(str(Path(args.data) / "id2label.json"))
    results: dict = {"steps": args.steps, "views": args.views}
    for name, kind in (("cells", Cells), ("sub_cells", SubCells)):
        torch.manual_seed(0)
        model = DenseMLLMForConditionalGeneration.from_pretrained(
            args.model, dtype=torch.float32, attn_implementation="eager"
        )
        model.set_processor(DenseMLLMProcessor.from_pretrained(args.model))
        learner = kind(model)
        seconds = train(learner, args, id2label)
        results[name] = {"seconds": round(seconds, 1), **evaluate(learner, args, id2label)}
        print(name, results[name], flush=True)
    for way in ("bilinear", "guided"):
        results[f"{way}_ratios"] = {
            key: round(results["sub_cells"][way][key] / max(value, 1e-9), 3)
            for key, value in results["cells"][way].items()
        }
    results["seconds_ratio"] = round(results["sub_cells"]["seconds"] / results["cells"]["seconds"], 2)
    print("\n" + json.dumps(results))


if __name__ == "__main__":
    main()
