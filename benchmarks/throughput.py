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
- `referring_8_over_1`: 8 expressions of one image over one of them;
- `tile_time`: an image of 4000x3000 pixels in tiles over the same as a whole, at 36,864 patches, through a tower of
  the released width with one windowed and one full layer and a small language model, random weights; `tile_memory` is
  the ratio of the memory at its peak, beyond what is held before;
- `tile_agreement`: the share of pixels that have the class of the whole image, and its depth within 25 %, where views
  of twice their size are read in tiles of 320 pixels that share 64;
- `two_process_speedup`: images a second of `densemllm predict FOLDER` by two processes over one, with one thread each;
- `host_reads_forward`: how often a training forward waits for the device; see `host_reads.py`.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch
from measure import extra_bytes

from densemllm import DenseMLLMConfig, DenseMLLMForConditionalGeneration
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


# ---- measured in other ways ----


def tiles(args: argparse.Namespace) -> dict[str, float]:
    """Time and memory of an image in tiles, each over that of the whole."""
    size, tile, patches = ((600, 800), 192, 2500) if args.quick else ((3000, 4000), 1216, 36864)
    processor = DenseMLLMForConditionalGeneration.from_pretrained(args.model).get_processor()
    vocab_size = len(processor.tokenizer)
    torch.manual_seed(0)
    text = {
        "model_type": "llama", "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 16384,
        "vocab_size": vocab_size,
    }  # fmt: skip
    vision = {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 2, "num_attention_heads": 16,
        "patch_size": 16, "spatial_merge_size": 2, "window_size": 256, "fullatt_block_indexes": [1],
    }  # fmt: skip
    image_processor = type(processor.image_processor)(patch_size=16, merge_size=2, max_num_patches=patches)
    processor = type(processor)(
        image_processor, processor.tokenizer, chat_template=processor.chat_template,
        depth_ranges=processor.depth_ranges, default_depth_range=processor.default_depth_range,
        num_depth_bins=processor.num_depth_bins,
    )  # fmt: skip
    config = DenseMLLMConfig(
        text_config=text, vision_config=vision, image_token_id=processor.image_token_id,
        num_depth_bins=processor.num_depth_bins, depth_ranges=processor.depth_ranges,
        default_depth_range=processor.default_depth_range,
    )  # fmt: skip
    model = DenseMLLMForConditionalGeneration(config).eval()
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    # Both see the same pixels: the scale is the one that the cap on patches leaves of the whole image.
    resized = processor.image_processor.get_resized_size(*size)
    scale = min(edge / own for edge, own in zip(resized, size, strict=True)) * 0.999
    options = {"labels": ["floor", "wall"], "processor": processor, "scale": scale}
    calls = (
        lambda: model.predict_dense(image, **options, tile=tile),
        lambda: model.predict_dense(image, **options),
    )
    wall, _ = paired_times(calls, 1)
    memory = [extra_bytes(call) / 2**20 for call in calls]
    print(f"  {'tile_time':28} wall {wall[0] * 1e3:8.0f} ms / {wall[1] * 1e3:8.0f} ms = {wall[0] / wall[1]:.2f}")
    print(f"  {'tile_memory':28}      {memory[0]:8.0f} MiB / {memory[1]:7.0f} MiB = {memory[0] / memory[1]:.2f}")
    return {"tile_time": wall[0] / wall[1], "tile_memory": memory[0] / memory[1]}


def tile_agreement(args: argparse.Namespace) -> dict[str, float]:
    """How far a trained model's maps change with what a tile can't see, on views of twice their size."""
    model = DenseMLLMForConditionalGeneration.from_pretrained(args.model).eval()
    data, shares = load_samples(args.data, "validation"), [[], []]
    for place in range(0, len(data), 200 if args.quick else 20):
        sample = read_sample({name: data[place][name] for name in ("image", "focal_length")})
        options = {
            "task": ("segmentation", "depth"), "labels": model.config.label_names, "scale": 2.0,
            "focal_length": sample["focal_length"], "max_num_patches": 16384,
        }  # fmt: skip
        whole = model.predict_dense(sample["image"], **options)
        tiled = model.predict_dense(sample["image"], **options, tile=320, tile_overlap=64)
        ratio = whole.predicted_depth / tiled.predicted_depth
        shares[0].append(float((whole.segmentation == tiled.segmentation).float().mean()))
        shares[1].append(float((torch.maximum(ratio, 1 / ratio) < 1.25).float().mean()))
    classes, depth = map(statistics.mean, shares)
    print(f"  {'tile_agreement':28} same class {classes:.3f}, depth within 25 % {depth:.3f}, {len(shares[0])} views")
    return {"tile_agreement_classes": classes, "tile_agreement_depth": depth}


def two_processes(args: argparse.Namespace) -> dict[str, float]:
    """Images a second of one and of two processes, as the command prints them."""
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        data = load_samples(args.data, "validation").select(range(8 if args.quick else 96))
        (Path(folder) / "images").mkdir()
        for number, row in enumerate(data):
            read_sample({"image": row["image"]})["image"].save(f"{folder}/images/{number}.png")
        for count in (1, 2):
            command = [
                sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count), "-m", "densemllm",
                "predict", f"{folder}/images", "--model", args.model, "--out", f"{folder}/{count}", "--save_every",
                "8", "--device", "cpu",
            ]  # fmt: skip
            done = subprocess.run(
                command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True, text=True
            )
            rates.append(float(re.search(r"([0-9.]+) images/s", done.stdout)[1]))
    print(f"  {'two_process_speedup':28} {rates[1]:.2f} / {rates[0]:.2f} images/s = {rates[1] / rates[0]:.2f}")
    return {"two_process_speedup": rates[1] / rates[0]}


def host_reads(args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).with_name("host_reads.py")), *(["--quick"] if args.quick else [])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    count = json.loads(done.stdout.strip().splitlines()[-1])["host_reads_forward"]
    print(f"  {'host_reads_forward':28} {count}")
    return {"host_reads_forward": count}


OTHERS: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "tile_time": tiles,
    "tile_agreement": tile_agreement,
    "two_process_speedup": two_processes,
    "host_reads_forward": host_reads,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/densemllm-rooms")
    parser.add_argument("--data", default="examples/rooms/sample", help="folder that render.py wrote")
    parser.add_argument(
        "--only", nargs="+", choices=[*TABLE, *OTHERS], default=[*TABLE, *OTHERS], help="lines of the table"
    )
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
        if name in OTHERS:
            results |= OTHERS[name](args)
            continue
        wall, cpu = paired_times(TABLE[name](setting), setting.repeats)
        results |= {name: wall[0] / wall[1], f"{name}_cpu": cpu[0] / cpu[1]}
        for kind, (first, second) in (("wall", wall), ("cpu", cpu)):
            print(f"  {name:28} {kind:4} {first * 1e3:8.0f} ms / {second * 1e3:8.0f} ms = {first / second:.2f}")
    print("\n" + json.dumps({name: round(value, 3) for name, value in results.items()}))


if __name__ == "__main__":
    main()
