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
r"""What the dense CRF of `refine="crf"` costs, against the model's own call.

    python benchmarks/refinement_crf.py [--quick] [--busy 2]

One image of 256x256 and the classes of the rooms model, in turn: `predict_dense`, the CRF on what it found, and the
CRF on maps in which no class can be left out. Wall-clock and CPU seconds with one thread and with two (medians);
`--busy` keeps that many other processes computing meanwhile. Ends with one line of JSON, in which `crf_over_model` is
the ratio of CPU seconds.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from densemllm import DenseMLLMForConditionalGeneration
from densemllm.decoding_densemllm import class_probabilities
from densemllm.formats.labels import load_id2label
from densemllm.loading_densemllm import choose_dtype
from densemllm.refinement_densemllm import refine_crf_argmax


def compute_for_ever() -> None:
    while True:
        sum(range(10_000))


def measure(calls: dict, repeats: int) -> dict[str, dict[str, float]]:
    times = {name: ([], []) for name in calls}
    for index in range(repeats + 1):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            if index:  # the first warms up
                times[name][0].append(time.perf_counter() - wall)
                times[name][1].append(time.process_time() - cpu)
    return {
        name: {"seconds": statistics.median(wall), "cpu_seconds": statistics.median(cpu)}
        for name, (wall, cpu) in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/densemllm-rooms")
    parser.add_argument("--data", default="examples/rooms/sample", help="folder with `id2label.json`")
    parser.add_argument("--image", default="examples/rooms/room.jpg")
    parser.add_argument("--busy", type=int, default=0, help="number of other processes that compute meanwhile")
    parser.add_argument("--quick", action="store_true", help="once, with one thread")
    args = parser.parse_args()
    model = DenseMLLMForConditionalGeneration.from_pretrained(args.model, dtype=choose_dtype("auto", "cpu")).eval()
    id2label = load_id2label(str(Path(args.data) / "id2label.json"))
    image = PIL.Image.open(args.image).convert("RGB").resize((256, 256))
    options = model.get_processor().crf_options
    found = model.predict_dense(image, "segmentation", labels=id2label, return_logits=True)
    probabilities = class_probabilities(found.logits)
    noise = torch.randn(probabilities.shape, generator=torch.Generator().manual_seed(0)).mul_(3).softmax(dim=0)
    pixels = np.asarray(image)
    calls = {
        "model": lambda: model.predict_dense(image, "segmentation", labels=id2label),
        "crf": lambda: refine_crf_argmax(probabilities, pixels, **options),
        "crf_all_classes": lambda: refine_crf_argmax(noise, pixels, **options),
    }
    others = [multiprocessing.Process(target=compute_for_ever, daemon=True) for _ in range(args.busy)]
    for other in others:
        other.start()
    results = {"classes": len(probabilities), "crf_options": options, "busy": args.busy}
    try:
        for threads in (1,) if args.quick else (1, 2):
            torch.set_num_threads(threads)
            times = measure(calls, 1 if args.quick else 5)
            for name, own in times.items():
                print(f"{threads} threads, {name:16} {own['seconds']:7.3f} s {own['cpu_seconds']:7.3f} CPU seconds")
            ratio = times["crf"]["cpu_seconds"] / times["model"]["cpu_seconds"]
            results[f"{threads}_threads"] = {**times, "crf_over_model": ratio}
    finally:
        for other in others:
            other.terminate()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
