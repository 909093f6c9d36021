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
r"""What a first stage with a visual codebook does to dense maps learned afterwards.

    python examples/train_image_tokenizer.py --output_dir out/image_tokenizer
    python examples/codebook.py --image_tokenizer out/image_tokenizer

The quickstart's model on the rooms of `examples/rooms/sample`, from the same weights and in the same order, three ways
and three seeds:

- dense: `--dense_steps` of classes and depth;
- codebook, then dense: `--codebook_steps` in which vision tokens learn the codes of images alone, then the same dense
  training;
- longer dense: as many steps as both stages together, all of them dense.

Measured on validation rooms, none of which, nor any of their furniture, was trained on. Writes `results.json`, which
is also where a run that was stopped goes on from, and `seen.png`: images, what the tokenizer keeps of them, and what
the codes that the model says make of them.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import numpy as np
import PIL.Image
from quickstart import make_model_and_processor
from transformers import set_seed

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor
from densemllm.evaluation.predict import evaluate_dense
from densemllm.formats.folders import load_samples
from densemllm.formats.labels import load_id2label
from densemllm.targets_densemllm import nearest_resize
from densemllm.tasks_densemllm import Codes
from densemllm.training.arguments import DenseTrainingArguments
from densemllm.training.collator import DenseCollator
from densemllm.training.image_tokenizer import ImageTokenizer, add_codes
from densemllm.training.samples import read_sample
from densemllm.training.trainer import DenseTrainer


GRID = 8  # vision tokens along an edge, of 16 pixels each
DENSE, BOTH, LONGER = "dense", "codebook, then dense", "longer dense"
MEASURES = ("mean_iou", "pixel_accuracy", "delta1", "abs_rel")


def load_rooms(data: str, split: str, count: int, names: dict[int, str], tokenizer: ImageTokenizer) -> list[dict]:
    """Views of rooms with their codes, small enough for a model that trains in minutes."""
    rows, edge, samples = load_samples(data, split), 16 * GRID, []
    for row in rows.select(range(min(count, len(rows)))):
        row = {name: row[name] for name in ("image", "segmentation", "depth")}
        sample = read_sample(row, id2label=names, depth_scale=0.002)
        image = sample["image"].resize((edge, edge), PIL.Image.Resampling.BILINEAR)
        maps = {name: nearest_resize(sample[name], edge, edge) for name in ("segmentation", "depth")}
        samples.append({"image": image, **maps, "codes": tokenizer(image, (GRID, GRID))})
    return samples


def only(samples: list[dict], *columns: str) -> list[dict]:
    """Samples with some of their columns."""
    return [{name: sample[name] for name in ("image", *columns)} for sample in samples]


def train(model, processor, samples: list[dict], names: dict[int, str], steps: int, seed: int) -> list[dict]:
    """Train a model in place; returns what was logged."""
    trainer = DenseTrainer(
        model=model,
        args=DenseTrainingArguments(
            output_dir="unused", per_device_train_batch_size=8, max_steps=steps, learning_rate=1.5e-3,
            lr_scheduler_type="cosine", warmup_steps=20, weight_decay=0.05, save_strategy="no", logging_steps=10,
            report_to="none", seed=seed, disable_tqdm=True, use_cpu=True,
        ),
        train_dataset=samples,
        data_collator=DenseCollator(processor, names),
        processing_class=processor,
    )  # fmt: skip
    trainer.train()
    return trainer.state.log_history


def read_codes(
    model: DenseMLLMForConditionalGeneration, processor: DenseMLLMProcessor, samples: list[dict]
) -> list[np.ndarray]:
    """The codes that the model says; -1 for the first one of an image, which nobody says."""
    found = model.eval().predict_dense([sample["image"] for sample in samples], Codes.name, processor=processor)
    return [prediction.codes.numpy() for prediction in found]


def code_accuracy(found: list[np.ndarray], data: dict[str, list[dict]]) -> dict[str, float]:
    """The share of codes that are right, and that of an answer which is always the commonest code of the training."""
    said, is_said = np.stack(found), np.stack(found) >= 0
    learned, true = (np.stack([sample["codes"] for sample in data[part]]) for part in ("train", "evaluation"))
    commonest = np.bincount(learned.ravel()).argmax()
    return {
        "code_accuracy": float((said == true)[is_said].mean()),
        "commonest_code": float((true == commonest)[is_said].mean()),
    }


def run(variant: str, seed: int, data: dict, names: dict[int, str], tokenizer: ImageTokenizer, args) -> tuple:
    """Train one variant and measure it: its row, and the model after the first stage, if there is one."""
    started = time.monotonic()
    set_seed(seed)
    model, processor = make_model_and_processor()
    set_seed(seed)
    add_codes(model, processor, tokenizer)
    row, seen = {"variant": variant, "seed": seed}, None
    if variant == BOTH:
        log = train(model, processor, only(data["train"], "codes"), names, args.codebook_steps, seed)
        losses = [entry["codebook_loss"] for entry in log if "codebook_loss" in entry]
        model.eval()
        found = read_codes(model, processor, data["evaluation"])
        row |= {"codebook_loss": losses} | code_accuracy(found, data)
        seen = found[:6]
    steps = args.dense_steps + (args.codebook_steps if variant == LONGER else 0)
    log = train(model, processor, only(data["train"], "segmentation", "depth"), names, steps, seed)
    row["ntp_m_loss"] = [entry["ntp_m_loss"] for entry in log if "ntp_m_loss" in entry]
    metrics = evaluate_dense(model, processor, only(data["evaluation"], "segmentation", "depth"), names)
    row |= {name: metrics[name] for name in MEASURES} | {"seconds": time.monotonic() - started}
    print(f"{variant:22} seed {seed}: " + ", ".join(f"{name} {row[name]:.3f}" for name in MEASURES), flush=True)
    return row, seen


def draw(samples: list[dict], seen: list[np.ndarray], tokenizer: ImageTokenizer) -> PIL.Image.Image:
    """Rows: images, their own codes as an image, and the codes that the model says."""
    edge = 16 * GRID
    sheet = PIL.Image.new("RGB", (len(seen) * (edge + 4), 3 * (edge + 4)), "white")
    for place, (sample, codes) in enumerate(zip(samples[: len(seen)], seen, strict=True)):
        for row, image in enumerate((sample["image"], tokenizer.decode(sample["codes"]), tokenizer.decode(codes))):
            sheet.paste(image.resize((edge, edge)), (place * (edge + 4), row * (edge + 4)))
    return sheet


def print_table(rows: list[dict]) -> None:
    """Means over seeds, with the standard deviation."""
    print("\n| variant | mIoU | pixel accuracy | delta1 | AbsRel |\n|---|---|---|---|---|")
    for variant in dict.fromkeys(row["variant"] for row in rows):
        cells = []
        for name in MEASURES:
            values = [row[name] for row in rows if row["variant"] == variant]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        print(f"| {variant} | {' | '.join(cells)} |")
    for row in rows:
        if row["variant"] == BOTH:
            first, last = row["codebook_loss"][0], row["codebook_loss"][-1]
            print(
                f"seed {row['seed']}: codebook loss {first:.3f} to {last:.3f} (all codes alike: "
                f"{math.log(row['num_codes']):.3f}); {row['code_accuracy']:.3f} of the codes of new rooms are right "
                f"(always the commonest one: {row['commonest_code']:.3f})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_tokenizer", required=True, help="folder of `train_image_tokenizer.py`")
    parser.add_argument("--data", default="examples/rooms/sample")
    parser.add_argument("--output_dir", type=Path, default=Path("out/codebook"))
    parser.add_argument("--dense_steps", type=int, default=200, help="of 8 views")
    parser.add_argument("--codebook_steps", type=int, default=100, help="of 8 views")
    parser.add_argument("--train_views", type=int, default=596)
    parser.add_argument("--eval_views", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3, help="more of them add to what is done")
    args = parser.parse_args()
    tokenizer = ImageTokenizer.from_pretrained(args.image_tokenizer)
    names = load_id2label(str(Path(args.data) / "id2label.json"))
    file = args.output_dir / "results.json"
    options = {name: str(value) for name, value in vars(args).items() if name not in ("seeds", "output_dir")}
    done = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"options": options, "rows": []}
    if done["options"] != options:
        parser.error(f"--output_dir {args.output_dir} has the results of other options: take another folder")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    data = {
        "train": load_rooms(args.data, "train", args.train_views, names, tokenizer),
        "evaluation": load_rooms(args.data, "validation", args.eval_views, names, tokenizer),
    }
    rows = done["rows"]
    for seed in range(args.seeds):
        for variant in (DENSE, BOTH, LONGER):
            if any((row["variant"], row["seed"]) == (variant, seed) for row in rows):
                continue
            row, seen = run(variant, seed, data, names, tokenizer, args)
            rows.append(row | {"num_codes": tokenizer.num_codes})
            if seen is not None and seed == 0:
                draw(data["evaluation"], seen, tokenizer).save(args.output_dir / "seen.png")
            file.write_text(json.dumps(done, indent=2), encoding="utf-8")
    print_table(rows)


if __name__ == "__main__":
    main()
