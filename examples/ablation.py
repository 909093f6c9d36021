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
r"""What each part of NTP-M brings, on rendered rooms.

    python examples/ablation.py [--steps 300] [--output_dir out/ablation]

The paper's three steps on ADE20K are plain BCE 16.7, separate means for positives and negatives 32.7, and relevant
negatives 51.2 mIoU. Here the same three, several numbers of relevant negatives, and causal against bidirectional
vision tokens, each trained from the same weights on the same rooms in the same order. Writes `results.json` and, with
matplotlib, `ablation.png`.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from quickstart import FIRST_EVAL_SEED, ID2LABEL, make_model_and_processor, make_samples
from transformers import set_seed

from densemllm import DenseMLLMConfig, DenseMLLMForConditionalGeneration
from densemllm.evaluation.predict import evaluate_dense
from densemllm.files import OVERWRITE_HELP, check_outputs_of_script
from densemllm.loss_densemllm import candidate_mask, fused_cross_entropy, one_kind_a_row, supervised_tokens
from densemllm.training.arguments import DenseTrainingArguments
from densemllm.training.collator import DenseCollator
from densemllm.training.trainer import DenseTrainer


ALL = 10**6  # more negatives than any vocabulary has: all of them


class PlainBCETrainer(DenseTrainer):
    """The NTP-M loss replaced by the mean of binary cross entropies over all annotated ids."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = {name: value for name, value in inputs.items() if name != "num_dense_items_in_batch"}
        labels, targets, candidates, ranges = (
            inputs.pop(name) for name in ("labels", "dense_targets", "dense_candidates", "dense_candidate_ranges")
        )
        states = model.model(**inputs).last_hidden_state
        text_loss = fused_cross_entropy(states[:, :-1].flatten(0, 1), model.lm_head, labels[:, 1:].flatten())
        vision_states = states[model.model.get_image_token_mask(inputs["input_ids"], None)]
        vision_states, targets, candidates = one_kind_a_row(vision_states, targets, candidates)
        rows = supervised_tokens(targets, candidates)
        logits = model.lm_head(vision_states[rows])
        positives = torch.zeros(len(logits), logits.shape[1] + 1)
        positives = positives.scatter_(1, targets[rows].masked_fill(targets[rows] < 0, logits.shape[1]), 1.0)[:, :-1]
        annotated = candidate_mask(ranges, logits.shape[1])[candidates[rows]]
        dense_loss = F.binary_cross_entropy_with_logits(logits[annotated], positives[annotated])
        return text_loss + model.config.ntp_m_weight * dense_loss


def train(name, data, steps, top_k, attention="bidirectional", trainer_class=DenseTrainer, seed=0) -> dict:
    """Train one variant and measure it."""
    set_seed(seed)
    model, processor = make_model_and_processor()
    config = DenseMLLMConfig.from_dict({**model.config.to_dict(), "ntp_m_top_k": top_k, "vision_attention": attention})
    set_seed(seed)
    model = DenseMLLMForConditionalGeneration(config)
    trainer = trainer_class(
        model=model,
        args=DenseTrainingArguments(
            output_dir="unused", per_device_train_batch_size=8, max_steps=steps, learning_rate=1.5e-3,
            lr_scheduler_type="cosine", warmup_steps=20, weight_decay=0.05, save_strategy="no", logging_steps=100,
            report_to="none", seed=seed,
        ),
        train_dataset=data["train"],
        data_collator=DenseCollator(processor, ID2LABEL),
        processing_class=processor,
    )  # fmt: skip
    started = time.monotonic()
    trainer.train()
    metrics = evaluate_dense(trainer.model, processor, data["evaluation"], ID2LABEL)
    row = {
        "name": name, "top_k": top_k, "vision_attention": attention, "mean_iou": metrics["mean_iou"],
        "pixel_accuracy": metrics["pixel_accuracy"], "delta1": metrics["delta1"],
        "seconds": time.monotonic() - started,
    }  # fmt: skip
    print(f"{name:32} mIoU {row['mean_iou']:.3f}  delta1 {row['delta1']:.3f}", flush=True)
    return row


def draw(rows: list[dict], path: Path) -> None:
    """The variants' metrics as bars; needs matplotlib."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return print("matplotlib is not installed: no plot")
    figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
    places = range(len(rows))
    axes.barh([place - 0.2 for place in places], [row["mean_iou"] for row in rows], 0.4, label="mIoU")
    axes.barh([place + 0.2 for place in places], [row["delta1"] for row in rows], 0.4, label="delta1")
    axes.set_yticks(places, [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("out/ablation"))
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps of 8 rooms, for each variant")
    parser.add_argument("--train_scenes", type=int, default=640)
    parser.add_argument("--eval_scenes", type=int, default=64)
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args()
    outputs = [args.output_dir / "results.json", args.output_dir / "ablation.png"]
    check_outputs_of_script(parser, outputs, overwrite=args.overwrite, argument="--output_dir")
    samples = make_samples([*range(args.train_scenes), *range(FIRST_EVAL_SEED, FIRST_EVAL_SEED + args.eval_scenes)])
    data = {"train": samples[: args.train_scenes], "evaluation": samples[args.train_scenes :]}
    rows = [
        train("plain BCE", data, args.steps, ALL, trainer_class=PlainBCETrainer),
        train("separate means", data, args.steps, ALL),
        *[train(f"relevant negatives, k = {k}", data, args.steps, k) for k in (10, 50, 100, 500)],
        train("k = 10, causal vision tokens", data, args.steps, 10, attention="causal"),
    ]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "results.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    print("\n| variant | mIoU | pixel accuracy | delta1 |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['name']} | {row['mean_iou']:.3f} | {row['pixel_accuracy']:.3f} | {row['delta1']:.3f} |")
    draw(rows, args.output_dir / "ablation.png")


if __name__ == "__main__":
    main()
