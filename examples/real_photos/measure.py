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
r"""Checkpoints on real photographs: classes against polygons, depth against stereo, beside what needs no model.

    pip install -e ".[examples]" && pip install --no-deps stereodemo==0.7 && apt-get install mrpt-common
    python examples/real_photos/measure.py --model checkpoints/densemllm-rooms [--refine none guided] [--out all.json]

A table for each checkpoint and way of refinement: a row for each photograph, and one for each group. Classes of a
group are measured over all of its pixels, its depth is the mean over its photographs.
"""

import argparse
import json
import math
from collections.abc import Sequence

import numpy as np
from baselines import best_constant, best_plane
from checkpoint import labels_of, load, reference_classes, see
from outlines import CLASSES
from photographs import DEPTH_ONLY, KEPT, LOOK, Photograph, add_arguments, photographs_of

from densemllm import DenseMLLMForConditionalGeneration
from densemllm.evaluation.metrics import DepthMetrics, SegmentationMetrics
from densemllm.files import OVERWRITE_HELP, check_outputs_of_script, whole_file
from densemllm.task_base_densemllm import REFINEMENTS


# What is measured of a photograph, by its key in the results: the head of its column.
COLUMNS = {
    "known": "depth known",
    "mean_iou": "mIoU",
    "floor": "floor",
    "wall": "wall",
    "delta1": "delta1",
    "abs_rel": "AbsRel",
    "delta1_scaled": "delta1, scaled",
    "abs_rel_scaled": "AbsRel, scaled",
    "delta1_constant": "delta1, constant",
    "abs_rel_constant": "AbsRel, constant",
    "delta1_plane": "delta1, plane",
    "abs_rel_plane": "AbsRel, plane",
}
OF_CLASSES = ("mean_iou", "floor", "wall")


def measure_classes(metric: SegmentationMetrics) -> dict[str, float]:
    """`OF_CLASSES` of what a metric has seen: `mean_iou` is that of all classes that were drawn or predicted; the IoU
    of a surface is NaN where it wasn't drawn."""
    found = metric.compute()
    drawn = metric.confusion.sum(dim=1).tolist()
    iou = {
        CLASSES[place]: value if count else math.nan
        for place, value, count in zip(metric.label_ids, found["per_label_iou"], drawn, strict=True)
    }
    return {"mean_iou": found["mean_iou"], **{name: iou.get(name, math.nan) for name in ("floor", "wall")}}


def measure_depth(depth: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """A predicted depth as it is and with its scale corrected to the reference's median."""
    results = {}
    for ending, align in (("", "none"), ("_scaled", "median")):
        metric = DepthMetrics(align=align)
        metric.add(depth, reference)
        found = metric.compute()
        results |= {f"{key}{ending}": found[key] for key in ("delta1", "abs_rel")}
    return results


def measure_baselines(reference: np.ndarray) -> dict[str, float]:
    """What depth without a model reaches that is fitted to the reference itself."""
    known = {"known": float((reference > 0).mean())}
    for name, best in (("constant", best_constant), ("plane", best_plane)):
        known[f"delta1_{name}"], known[f"abs_rel_{name}"] = best(reference)
    return known


def measure(
    model: DenseMLLMForConditionalGeneration,
    photographs: Sequence[Photograph],
    baselines: dict[str, dict[str, float]],
    refine: str | None,
) -> dict[str, dict[str, dict[str, float]]]:
    """The keys of `COLUMNS` for each photograph and, as "all", for its group, by group and name."""
    labels = labels_of(model)
    results = {}
    for group in (LOOK, KEPT, DEPTH_ONLY):
        rows, whole = {}, SegmentationMetrics(len(labels), label_ids=list(labels))
        for photograph in photographs:
            if photograph.group != group:
                continue
            seen = see(model, photograph, labels, refine)
            row = {**baselines[photograph.name], **measure_depth(seen.predicted_depth.numpy(), photograph.depth)}
            if photograph.classes is not None:
                single = SegmentationMetrics(len(labels), label_ids=list(labels))
                for metric in (single, whole):
                    metric.add(seen.segmentation, reference_classes(photograph, labels))
                row |= measure_classes(single)
            rows[photograph.name] = row
        if rows:
            keys = [key for key in COLUMNS if key not in OF_CLASSES]
            means = {key: float(np.mean([row[key] for row in rows.values()])) for key in keys}
            classes = {} if whole.is_empty else measure_classes(whole)
            results[group] = {**rows, "all": {**means, **classes}}
            if not whole.is_empty:
                results[group]["all"]["iou"] = dict(
                    zip(labels.values(), whole.compute()["per_label_iou"], strict=True)
                )
    return results


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """What [`measure`] found as Markdown."""
    lines = [f"| | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for group, rows in results.items():
        for name, row in rows.items():
            title = f"**{len(rows) - 1} {group}**" if name == "all" else name
            if name == "all" and len(rows) == 2:  # of one photograph
                continue
            cells = [row.get(key, math.nan) for key in COLUMNS]
            said = ["" if math.isnan(value) else f"{value:.3f}" for value in cells]
            lines.append(f"| {title} | {' | '.join(said)} |")
    return "\n".join(lines)


def per_class(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """The IoU of every class over a group, as a line of text for each group."""
    lines = []
    for group, rows in results.items():
        iou = rows["all"].get("iou", {})
        said = ", ".join(f"{name} {value:.2f}" for name, value in iou.items() if not math.isnan(value))
        if said:
            lines.append(f"IoU, {group}: {said}")
    return "\n".join(lines)


def without_nan(values):
    """The same with `None` for NaN, which JSON doesn't have."""
    if isinstance(values, dict):
        return {key: without_nan(value) for key, value in values.items()}
    return None if isinstance(values, float) and math.isnan(values) else values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["checkpoints/densemllm-rooms"], help="one or several")
    ways = ["none", *REFINEMENTS]
    parser.add_argument("--refine", nargs="+", choices=ways, default=["none"], help="of classes and depth; or several")
    parser.add_argument("--out", help="JSON file of all numbers")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    add_arguments(parser)
    args = parser.parse_args()
    if args.out is not None:
        inputs = [*args.model, *(own for own in (args.stereo_folder, args.kinect_file, args.outlines) if own)]
        check_outputs_of_script(parser, [args.out], inputs, args.overwrite)
    photographs = photographs_of(parser, args)
    baselines = {photograph.name: measure_baselines(photograph.depth) for photograph in photographs}
    everything = {}
    for name in args.model:
        model = load(name)
        missing = [label for label in CLASSES if label not in labels_of(model).values()]
        for refine in args.refine:
            results = measure(model, photographs, baselines, None if refine == "none" else refine)
            print(f"\n{name}, refine {refine}\n\n{table(results)}\n\n{per_class(results)}")
            if missing:
                print(f"ignored, as the checkpoint has no name for them: {', '.join(missing)}")
            everything[f"{name}, refine {refine}"] = results
    if args.out is not None:
        with whole_file(args.out, args.overwrite) as path:
            path.write_text(json.dumps(without_nan(everything), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
