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
r"""What is saved where many things are asked for at once.

    python benchmarks/throughput.py [--quick] [--only batch_query_speedup ...]

A trained checkpoint in float32 and views of its validation split. Each line is two ways, taken in turn, which have to
give the same; the ratio is that of the medians of their wall-clock seconds. That of their processor seconds stands
beside it under `KEY_cpu`: on a machine that has other work it is the steadier one. Ends with one line of JSON:

- `batch_query_speedup`: 8 calls of `query` over one call with 8 images and 8 questions, those of class lists;
- `batch_short_query_speedup`: the same with questions that are answered in one or two tokens;
- `batch_encoded_query_speedup`: the same short questions about images that are encoded already;
- `referring_8_over_1`: 8 expressions of one image over one of them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import PIL.Image
import torch

from densemllm import DenseMLLMForConditionalGeneration
from densemllm.formats.folders import load_samples
from densemllm.tasks_densemllm import get_task
from densemllm.training.samples import read_sample


@dataclass
class Setting:
    """The model, views with their focal lengths, and how many of each thing."""

    model: DenseMLLMForConditionalGeneration
    images: list[PIL.Image.Image]
    focal_lengths: list[float]
    repeats: int

    @property
    def count(self) -> int:
        return len(self.images)


# Two ways, and which of their times goes over the other.
Ways = tuple[Callable[[], object], Callable[[], object]]
SHORT_QUESTIONS = (
    "How many chairs are there?", "Is there a table?", "What color is the sofa?", "Is there a lamp?",
    "How many windows are there?", "Is there a bed?", "What is left of the door?", "How many plants are there?",
)  # fmt: skip
EXPRESSIONS = (
    "the table", "the chair", "the door", "the lamp", "the bed", "the sofa", "the window", "the plant",
)  # fmt: skip


def ask(setting: Setting, images: list, questions: list[str], focal_lengths: list[float | None]) -> Ways:
    """Calls one by one, and one call; `images` may be encoded."""
    model = setting.model

    def calls():
        rows = zip(images, questions, focal_lengths, strict=True)
        return [model.query(image, question, focal_length=focal) for image, question, focal in rows]

    def together():
        return model.query(images, questions, focal_length=focal_lengths)

    assert calls() == together(), "a batch must answer what single calls do"
    return calls, together


def class_lists(setting: Setting) -> Ways:
    question = get_task("segmentation").question
    return ask(setting, setting.images, [question] * setting.count, setting.focal_lengths)


def short_questions(setting: Setting) -> Ways:
    return ask(setting, setting.images, list(SHORT_QUESTIONS[: setting.count]), setting.focal_lengths)


def short_questions_encoded(setting: Setting) -> Ways:
    encoded = setting.model.encode_image(setting.images, focal_length=setting.focal_lengths)
    return ask(setting, encoded, list(SHORT_QUESTIONS[: setting.count]), [None] * setting.count)


def expressions(setting: Setting) -> Ways:
    image, focal_length, model = setting.images[0], setting.focal_lengths[0], setting.model
    texts = list(EXPRESSIONS[: setting.count])

    def refer(text):
        return model.predict_dense(image, "referring", text=text, focal_length=focal_length)

    for own, text in zip(refer(texts), texts, strict=True):
        share = (own.mask == refer(text).mask).float().mean()
        assert share > 0.999, "expressions of one call must get the masks of single calls"
    return lambda: refer(texts), lambda: refer(texts[0])


TABLE: dict[str, Callable[[Setting], Ways]] = {
    "batch_query_speedup": class_lists,
    "batch_short_query_speedup": short_questions,
    "batch_encoded_query_speedup": short_questions_encoded,
    "referring_8_over_1": expressions,
}


def paired_times(calls: Ways, repeats: int) -> tuple[list[float], list[float]]:
    """Median wall-clock and processor seconds of each call, taken in turn after one round that doesn't count."""
    clocks = (time.perf_counter, time.process_time)
    spent = [[[] for _ in calls] for _ in clocks]
    for index in range(repeats + 1):
        for place, call in enumerate(calls):
            starts = [clock() for clock in clocks]
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            for own, clock, start in zip(spent, clocks, starts, strict=True):
                if index:
                    own[place].append(clock() - start)
    return tuple([statistics.median(times) for times in own] for own in spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/densemllm-rooms")
    parser.add_argument("--data", default="examples/rooms/sample", help="folder that render.py wrote")
    parser.add_argument("--only", nargs="+", choices=TABLE, default=list(TABLE), help="lines of the table")
    parser.add_argument("--quick", action="store_true", help="two of everything, once: shows that it runs")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = DenseMLLMForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval().to(device)
    data = load_samples(args.data, "validation")
    rows = [data[place] for place in range(2 if args.quick else 8)]
    samples = [read_sample({name: row[name] for name in ("image", "focal_length")}) for row in rows]
    images, focal_lengths = ([sample[name] for sample in samples] for name in ("image", "focal_length"))
    setting = Setting(model, images, focal_lengths, 1 if args.quick else 5)
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {setting.count} of each")
    results = {}
    for name in args.only:
        wall, cpu = paired_times(TABLE[name](setting), setting.repeats)
        results |= {name: wall[0] / wall[1], f"{name}_cpu": cpu[0] / cpu[1]}
        for kind, (first, second) in (("wall", wall), ("cpu", cpu)):
            print(f"  {name:28} {kind:4} {first * 1e3:8.0f} ms / {second * 1e3:8.0f} ms = {first / second:.2f}")
    print("\n" + json.dumps({name: round(value, 3) for name, value in results.items()}))


if __name__ == "__main__":
    main()
