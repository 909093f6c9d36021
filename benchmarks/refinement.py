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
r"""What refinement gains and costs on held-out rooms: bilinear maps, the dense CRF, guided upsampling, a finer grid.

    python benchmarks/refinement.py [--quick] [--views 133] [--out refinement.json]

One run over the same views, evenly spaced: classes (mIoU, mean boundary IoU), depth (delta1, AbsRel, and both within
4 pixels of a step of at least a tenth in the true depth), normals from depth (mean angle; the true ones are
differences of the true depth) and referred objects (cIoU). "places" is depth that is read between the bins' centres,
as guided depth is, and resized bilinearly. "scale 2" reads the image at twice the size, as far as `max_num_patches`
lets it.

Seconds are medians over the views, on the CPU's clock of this process and on the wall's, of the maps from an image
that was encoded before; "scale 2" has an encoding of its own. `added` is what a way takes beyond the bilinear one,
over all that the model takes for the bilinear one, encoding included: the ratio of CPU seconds. Bytes are the peak
that torch holds during one call. Ends with one line of JSON.
"""

import argparse
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measure import extra_bytes
from tqdm.auto import tqdm

from densemllm import DenseMLLMForConditionalGeneration
from densemllm.decoding_densemllm import decode_bin_places, resize_map
from densemllm.evaluation.metrics import DepthMetrics, NormalsMetrics, ReferringMetrics, SegmentationMetrics
from densemllm.files import OVERWRITE_HELP, check_outputs_of_script
from densemllm.formats.folders import load_samples
from densemllm.formats.labels import load_id2label
from densemllm.loading_densemllm import choose_dtype
from densemllm.normals_densemllm import depth_to_normals
from densemllm.training.samples import read_sample


STEP, NEAR = 1.1, 4  # of depth edges: ratio of the depths of two neighbours; pixels around
WAYS = {
    "classes": ("bilinear", "crf", "guided", "scale 2"),
    "depth": ("bilinear", "places", "guided", "scale 2"),
    "normals": ("bilinear", "guided"),
    "referring": ("bilinear", "guided"),
}
REFINE = {"crf": "crf", "guided": "guided"}


class DepthAtEdges:
    """[`DepthMetrics`] of whole images and of the pixels near steps in the true depth."""

    def __init__(self):
        self.whole, self.edges = DepthMetrics(), DepthMetrics()

    def add(self, prediction: torch.Tensor, reference: np.ndarray) -> None:
        self.whole.add(prediction, reference)
        depth = torch.from_numpy(reference).float()
        logs = depth.clamp(min=1e-3).log()
        is_step = torch.zeros(depth.shape, dtype=torch.bool)
        for dim in (0, 1):
            steps = logs.diff(dim=dim).abs() > math.log(STEP)
            count = steps.shape[dim]
            is_step.narrow(dim, 0, count).logical_or_(steps)
            is_step.narrow(dim, 1, count).logical_or_(steps)
        near = F.max_pool2d(is_step[None].float(), 2 * NEAR + 1, 1, NEAR)[0] > 0
        if (near & (depth > 0)).any():
            self.edges.add(prediction, torch.where(near, depth, 0))

    def compute(self) -> dict:
        whole, edges = self.whole.compute(), self.edges.compute()
        names = ("delta1", "abs_rel")
        return {**{name: whole[name] for name in names}, **{f"edge_{name}": edges[name] for name in names}}


def timed(call: Callable, *args, **kwargs) -> tuple[Any, tuple[float, float]]:
    """What a call gives, and its seconds on the CPU's clock and on the wall's."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call(*args, **kwargs)
    return result, (time.process_time() - cpu, time.perf_counter() - wall)


def places_resized(model, encoded, size: tuple[int, int], focal_length: float) -> torch.Tensor:
    """Depth between the bins' centres, without a guide."""
    processor = model.get_processor()
    found = model.predict_dense(encoded, "depth", return_logits=True)
    cell = processor.image_processor.patch_size * processor.image_processor.merge_size
    focal_length *= math.sqrt(math.prod(edge * cell for edge in encoded.grid) / math.prod(encoded.image_size))
    places, _ = decode_bin_places(found.logits)
    return resize_map(processor.depth_bins.metres(places, focal_length=focal_length), size)


def make_metrics(num_labels: int) -> dict[tuple[str, str], object]:
    makers = {
        "classes": lambda: SegmentationMetrics(num_labels), "depth": DepthAtEdges, "normals": NormalsMetrics,
        "referring": ReferringMetrics,
    }  # fmt: skip
    return {(kind, way): makers[kind]() for kind, ways in WAYS.items() for way in ways}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/densemllm-rooms")
    parser.add_argument("--data", default="examples/rooms/sample", help="folder that render.py wrote")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--views", type=int, default=133)
    parser.add_argument("--depth_scale", type=float, default=0.002, help="metres a unit")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="the JSON, in a file")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    parser.add_argument("--quick", action="store_true", help="few views: shows that it runs")
    args = parser.parse_args()
    check_outputs_of_script(parser, [args.out] if args.out else [], [args.data], args.overwrite)
    torch.set_num_threads(args.threads)
    model = DenseMLLMForConditionalGeneration.from_pretrained(args.model, dtype=choose_dtype("auto", "cpu")).eval()
    id2label = load_id2label(str(Path(args.data) / "id2label.json"))
    data = load_samples(args.data, args.split)
    rows = np.unique(np.linspace(0, len(data) - 1, 4 if args.quick else args.views).astype(int)).tolist()
    metrics, times = make_metrics(len(id2label)), defaultdict(list)
    for row in tqdm(rows):
        sample = read_sample(data[row], id2label=id2label, depth_scale=args.depth_scale)
        image, focal_length = sample["image"], sample["focal_length"]
        camera = {"focal_length": focal_length}
        encodings = {}
        for scale in (1.0, 2.0):
            found, spent = timed(model.encode_image, image, scale=scale, **camera)
            encodings[scale] = found
            times["encode", "scale 2" if scale == 2 else "bilinear"].append(spent)
        for way in WAYS["classes"]:
            encoded = encodings[2.0 if way == "scale 2" else 1.0]
            found, spent = timed(
                model.predict_dense, encoded, "segmentation", id2label, refine=REFINE.get(way), **camera
            )
            times["classes", way].append(spent)
            metrics["classes", way].add(found.segmentation, sample["segmentation"])
        for way in WAYS["depth"]:
            encoded = encodings[2.0 if way == "scale 2" else 1.0]
            if way == "places":
                depth = places_resized(model, encoded, sample["depth"].shape, focal_length)
            else:
                found, spent = timed(model.predict_dense, encoded, "depth", refine=REFINE.get(way), **camera)
                times["depth", way].append(spent)
                depth = found.predicted_depth
            metrics["depth", way].add(depth, sample["depth"])
        true_normals = depth_to_normals(sample["depth"], focal_length)
        for way in WAYS["normals"]:
            found = model.predict_dense(encodings[1.0], "normals", source="depth", refine=REFINE.get(way), **camera)
            metrics["normals", way].add(found.normals, true_normals)
        if sample.get("expression"):
            for way in WAYS["referring"]:
                found = model.predict_dense(
                    image, "referring", text=sample["expression"], refine=REFINE.get(way), **camera
                )
                metrics["referring", way].add(found.mask, sample["mask"] > 0)
    report(model, encodings, id2label, camera, metrics, times, {"views": len(rows), "threads": args.threads}, args.out)


def report(model, encodings, id2label, camera, metrics, times, results: dict, out: Path | None) -> None:
    """Print what was found, and write it."""
    seconds = {
        key: [statistics.median(spent[clock] for spent in own) for clock in (0, 1)] for key, own in times.items()
    }
    encode = seconds["encode", "bilinear"][0]
    results |= {"encode_cpu_seconds": encode, "encode_seconds": seconds["encode", "bilinear"][1]}
    print(f"encoding: {encode:.3f} CPU seconds, {results['encode_seconds']:.3f} s")
    for (kind, way), metric in metrics.items():
        kept = (
            "mean_iou",
            "mean_boundary_iou",
            "delta1",
            "abs_rel",
            "edge_delta1",
            "edge_abs_rel",
            "mean_angle",
            "ciou",
        )
        row = {name: value for name, value in metric.compute().items() if name in kept}
        if (kind, way) in seconds:
            own_encode = seconds["encode", way if way == "scale 2" else "bilinear"][0]
            cpu, wall = seconds[kind, way]
            plain = encode + seconds[kind, "bilinear"][0]
            task = {"classes": "segmentation"}.get(kind, kind)
            encoded = encodings[2.0 if way == "scale 2" else 1.0]
            options = {"labels": id2label} if kind == "classes" else {}
            row |= {
                "cpu_seconds": cpu, "seconds": wall, "added": (own_encode + cpu - plain) / plain,
                "bytes": extra_bytes(
                    lambda encoded=encoded, task=task, way=way, options=options: model.predict_dense(
                        encoded, task, refine=REFINE.get(way), **options, **camera
                    )
                ),
            }  # fmt: skip
        results.setdefault(kind, {})[way] = row
        values = "  ".join(
            f"{name} {value / 2**20:.1f} MB" if name == "bytes" else f"{name} {value:.4f}"
            for name, value in row.items()
        )
        print(f"{kind:9} {way:9} {values}")
    classes = results["classes"]
    results["boundary_iou_over_bilinear"] = {
        way: row["mean_boundary_iou"] / classes["bilinear"]["mean_boundary_iou"] for way, row in classes.items()
    }
    line = json.dumps(results)
    if out is not None:
        out.write_text(line + "\n", encoding="utf-8")
    print("\n" + line)


if __name__ == "__main__":
    main()
