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
r"""Objects without a head: votes of vision tokens for the centres of their objects, against connected components of
the class map of the same checkpoint, on the same views of held-out rooms.

    python benchmarks/rooms_instances.py [--minutes 30] [--output_dir out/rooms/instances] [--quick]
    python benchmarks/rooms_instances.py --model out/rooms/instances

A checkpoint without coordinate tokens gets 32 of x and of y, and is trained on the rooms of `--data` with classes,
depth and centres at once. Things are all classes but floor, wall and ceiling. Three ways make objects of one class
map, and two of the one that `refine="guided"` gives:

- `components`: regions of one class whose pixels are side by side;
- `near`: the rule that `task="panoptic"` has, but every token votes for its own place: what joining regions that are
  near each other brings, without anything that was learned;
- `votes`: `predict_dense(task="panoptic")`;
- `guided`: the same with `refine="guided"`; `guided_components`: regions of the guided class map.

All leave out what is smaller than a token's cell. Ends with one line of JSON: panopticapi's PQ, SQ and RQ over
things of each, and the ratios `votes_over_components`, `votes_over_near`, `guided_over_guided_components` and
`guided_over_votes`.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from measure import autocast
from torch import nn
from tqdm.auto import tqdm

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor
from densemllm.evaluation.measured import PANOPTIC, Settings, true_segments
from densemllm.evaluation.panoptic import PanopticMetrics
from densemllm.formats.folders import load_samples
from densemllm.formats.labels import load_id2label
from densemllm.instances_densemllm import connected_components, decode_instances, make_panoptic
from densemllm.parts_densemllm import add_tokens_to
from densemllm.training.collator import DenseCollator
from densemllm.training.datasets import DenseDataset, DenseSource
from densemllm.training.optimizers import MuonWithAdamW
from densemllm.training.samples import Augmentation, read_sample


STUFF = ("floor", "wall", "ceiling")
LEARNED = ("image", "segmentation", "depth", "focal_length", "instances")
COORDINATES = 32
WAYS = ("components", "near", "votes", "guided_components", "guided")


def make_optimizer(model: DenseMLLMForConditionalGeneration, learner: nn.Module | None = None) -> MuonWithAdamW:
    """Muon for inner matrices, AdamW for embeddings, norms and biases, as the checkpoint was trained: of the model, or
    of a `learner` that has it."""
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    parameters = [parameter for parameter in (learner or model).parameters() if parameter.requires_grad]
    inner = [parameter for parameter in parameters if parameter.ndim == 2 and id(parameter) not in ends]
    decayed = [parameter for parameter in parameters if parameter.ndim > 1 and id(parameter) in ends]
    others = [parameter for parameter in parameters if parameter.ndim < 2]
    return MuonWithAdamW.of_parameters(inner, decayed, others, 8e-4, 2e-3, 0.05, betas=(0.9, 0.98))


def train(model: DenseMLLMForConditionalGeneration, args: argparse.Namespace, id2label: dict[int, str]) -> int:
    """Train for some minutes, or steps; gives back how many steps it was."""
    processor = model.get_processor()
    things = [name for name in id2label.values() if name not in STUFF]
    source = DenseSource(
        load_samples(args.data, "train"), None, id2label, args.depth_scale, columns=LEARNED, thing_labels=things
    )
    augmentation = Augmentation(tuple(args.train_scales), flip_probability=0.5, color_jitter=0.4)
    data = DenseDataset(source, augmentation)
    collate = DenseCollator(processor, candidates="labels", min_label_share=0.25)
    optimizer = make_optimizer(model.train())
    rates = [group["lr"] for group in optimizer.param_groups]
    start, steps, losses, order = time.monotonic(), 0, [], []
    while True:
        done = steps / args.steps if args.steps else (time.monotonic() - start) / (60 * args.minutes)
        if done >= 1:
            return steps
        if len(order) < args.batch_size:
            data.set_epoch(steps)
            order = np.random.default_rng(steps).permutation(len(data)).tolist()
        batch = collate([data[order.pop()] for _ in range(args.batch_size)])
        batch = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (steps + 1) / 30) * (1 - done)
        with autocast(model.device):
            loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        steps += 1
        if steps % 25 == 0:
            print(f"step {steps}, {time.monotonic() - start:.0f} s, loss {np.mean(losses[-25:]):.3f}", flush=True)


def objects_of(fields: dict, instances: torch.Tensor, things: list[int], names: dict[int, str], cell: int) -> tuple:
    """A class map and its objects in the form that the metric takes."""
    found = make_panoptic(fields["segmentation"], fields["scores"], instances, things, names, min_area=cell)
    return found["segmentation"], found["segments_info"]


def evaluate(
    model: DenseMLLMForConditionalGeneration, args: argparse.Namespace, id2label: dict[int, str]
) -> dict[str, PanopticMetrics]:
    """The metrics of each way on the held-out views."""
    rows = load_samples(args.data, args.split)
    rows = rows.select(range(min(4, len(rows)))) if args.quick else rows
    names = model.get_processor().normalize_labels(id2label)
    things = [key for key, name in id2label.items() if name not in STUFF]
    settings = Settings(id2label, thing_labels=tuple(id2label[key] for key in things))
    settings = PANOPTIC.prepare(settings, model.config, model.get_processor())
    metrics = {name: PanopticMetrics(list(id2label), things) for name in WAYS}
    for row in tqdm(rows):
        sample = read_sample({name: row[name] for name in LEARNED}, id2label=id2label, depth_scale=args.depth_scale)
        encoded = model.encode_image(
            sample["image"], focal_length=sample["focal_length"], use_cache=False, scale=args.scale
        )
        classes = vars(model.predict_dense(encoded, task="segmentation", labels=id2label))
        voted = model.predict_dense(encoded, task="panoptic", labels=id2label, thing_labels=things)
        here = torch.zeros(3, *encoded.grid)
        here[1] = 100
        segmentation, cell = (
            classes["segmentation"],
            classes["segmentation"].numel() // encoded.grid[0] // encoded.grid[1],
        )
        near = decode_instances(here, here, segmentation, things, origin="token", min_votes=1e9)
        true = true_segments(sample, settings)
        components = connected_components(segmentation, things)
        metrics["components"].add(objects_of(classes, components, things, names, cell), true)
        metrics["near"].add(objects_of(classes, near, things, names, cell), true)
        metrics["votes"].add((voted.segmentation, voted.segments_info), true)
        classes = vars(model.predict_dense(encoded, task="segmentation", labels=id2label, refine="guided"))
        components = connected_components(classes["segmentation"], things)
        metrics["guided_components"].add(objects_of(classes, components, things, names, cell), true)
        voted = model.predict_dense(encoded, task="panoptic", labels=id2label, thing_labels=things, refine="guided")
        metrics["guided"].add((voted.segmentation, voted.segments_info), true)
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/densemllm-rooms", help="one with coordinates isn't trained")
    parser.add_argument("--data", default="examples/rooms/sample", help="folder that render.py wrote")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--depth_scale", type=float, default=0.002, help="metres a unit")
    parser.add_argument("--minutes", type=float, default=30, help="of training")
    parser.add_argument("--steps", type=int, help="instead of minutes")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--train_scales", type=float, nargs=2, default=[0.6, 0.95], help="of training views")
    parser.add_argument("--scale", type=float, default=0.78, help="of validation views")
    parser.add_argument("--output_dir", help="where the trained model is saved")
    parser.add_argument("--quick", action="store_true", help="few steps and views: shows that it runs")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.batch_size = 2, 2
    torch.manual_seed(0)
    id2label = load_id2label(str(Path(args.data) / "id2label.json"))
    processor = DenseMLLMProcessor.from_pretrained(args.model)
    model = DenseMLLMForConditionalGeneration.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation="eager"
    ).to("cuda" if torch.cuda.is_available() else "cpu")
    model.set_processor(processor)
    results: dict = {}
    if add_tokens_to(model, processor, num_coordinates=COORDINATES):
        results["steps"] = train(model, args, id2label)
        if args.output_dir:
            model.config.thing_labels = [name for name in id2label.values() if name not in STUFF]
            model.save_pretrained(args.output_dir)
            processor.save_pretrained(args.output_dir)
    for name, metric in evaluate(model.eval(), args, id2label).items():
        values = metric.compute()
        results[name] = {key: round(values[f"{key}_things"], 4) for key in ("pq", "sq", "rq")}
        print(f"{name:18}", "  ".join(f"{key} {value:.4f}" for key, value in results[name].items()))
    for way, other in (
        ("votes", "components"), ("votes", "near"), ("guided", "guided_components"), ("guided", "votes"),
    ):  # fmt: skip
        results[f"{way}_over_{other}"] = round(results[way]["pq"] / max(results[other]["pq"], 1e-9), 3)
    print("\n" + json.dumps(results))


if __name__ == "__main__":
    main()
