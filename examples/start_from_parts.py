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
r"""A language model that has never seen a picture learns to segment and to measure depth, and still answers text.

    python examples/start_from_parts.py --text_model FOLDER_OR_NAME [--gguf_file FILE] [--steps 300]

Takes any causal language model (tried with SmolLM2-135M-Instruct) and a new small vision tower, trains both on
rendered rooms, tower and projector at a high learning rate and the language model at a low one, and compares before
and after: dense metrics against the best constant answer, perplexity on a fixed text, and an answer.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from quickstart import DEPTH_RANGES, FIRST_EVAL_SEED, ID2LABEL, NUM_DEPTH_BINS, constant_answer, make_samples
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMImageProcessor
from densemllm.evaluation.predict import evaluate_dense
from densemllm.files import OVERWRITE_HELP, check_outputs_of_script
from densemllm.training.arguments import DenseTrainingArguments
from densemllm.training.collator import DenseCollator
from densemllm.training.trainer import DenseTrainer


HEIGHT, WIDTH = 96, 128
TOWER = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": 16,
    "window_size": None,
    "initializer_range": 0.06,
}
TEXT = (
    "Bread is made from flour, water, salt and yeast. The yeast feeds on the sugar in the flour and gives off a gas, "
    "which makes the dough rise. After an hour the baker folds the dough, shapes it into a loaf and leaves it to rest "
    "again. Then it goes into a hot oven for about forty minutes, until the crust is brown and the loaf sounds hollow."
)
QUESTION = "What is the capital of France?"


@torch.no_grad()
def perplexity(model, tokenizer) -> float:
    """Of the fixed text."""
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"].to(model.device)
    return math.exp(float(model.eval()(input_ids=ids, labels=ids).loss))


def text_state(model) -> dict:
    """Perplexity on the fixed text, and the answer to the question."""
    processor = model.get_processor()
    prompt = processor.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True)
    inputs = processor.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(model.device)
    answer = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return {
        "perplexity": perplexity(model, processor.tokenizer),
        "answer": processor.tokenizer.decode(answer, skip_special_tokens=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text_model", required=True, help="folder or Hub name of a causal language model")
    parser.add_argument("--gguf_file", help="its file, for a model in GGUF form (needs the package gguf)")
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps")
    parser.add_argument("--batch_size", type=int, default=4, help="rooms a step")
    parser.add_argument("--train_scenes", type=int, default=640)
    parser.add_argument("--eval_scenes", type=int, default=48)
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="of tower and projector")
    parser.add_argument("--language_model_learning_rate", type=float, default=3e-5)
    parser.add_argument("--output_dir", type=Path, default=Path("out/start_from_parts"))
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args()
    outputs = [args.output_dir / "results.json"]
    check_outputs_of_script(parser, outputs, [args.text_model], args.overwrite, "--output_dir")
    started = time.monotonic()
    set_seed(0)
    samples = make_samples(
        [*range(args.train_scenes), *range(FIRST_EVAL_SEED, FIRST_EVAL_SEED + args.eval_scenes)], HEIGHT, WIDTH
    )
    train, evaluation = samples[: args.train_scenes], samples[args.train_scenes :]
    files = {"gguf_file": args.gguf_file} if args.gguf_file else {}
    tokenizer = AutoTokenizer.from_pretrained(args.text_model, **files)
    text_model = AutoModelForCausalLM.from_pretrained(args.text_model, dtype=torch.float32, **files)
    alone = {"perplexity": perplexity(text_model, tokenizer)}
    model = DenseMLLMForConditionalGeneration.from_pretrained_parts(
        TOWER,
        text_model,
        tokenizer=tokenizer,
        image_processor=DenseMLLMImageProcessor(patch_size=16, merge_size=1, max_num_patches=1024),
        spatial_merge_size=1,
        num_depth_bins=NUM_DEPTH_BINS,
        num_coordinates=0,
        depth_ranges=DEPTH_RANGES,
        referring_crop_size=HEIGHT,
        vision_attention="bidirectional",
        ntp_m_top_k=10,
    )
    processor = model.get_processor()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {len(processor.tokenizer)} tokens")
    results = {
        "constant answer": constant_answer(train, evaluation),
        "language model alone": alone,
        "before": {**evaluate_dense(model, processor, evaluation, ID2LABEL), **text_state(model)},
    }
    trainer = DenseTrainer(
        model=model,
        args=DenseTrainingArguments(
            output_dir=str(args.output_dir), per_device_train_batch_size=args.batch_size, max_steps=args.steps,
            learning_rate=args.learning_rate, language_model_learning_rate=args.language_model_learning_rate,
            lr_scheduler_type="cosine", warmup_steps=20, weight_decay=0.01, logging_steps=min(10, args.steps),
            save_strategy="no", report_to="none", seed=0,
        ),
        train_dataset=train,
        data_collator=DenseCollator(processor, ID2LABEL),
        processing_class=processor,
    )  # fmt: skip
    trainer.train()
    results["after"] = {**evaluate_dense(model, processor, evaluation, ID2LABEL), **text_state(model)}
    logged = [row for row in trainer.state.log_history if "ntp_m_loss" in row]
    results["losses"] = [{name: row[name] for name in ("step", "loss", "text_loss", "ntp_m_loss")} for row in logged]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    first, last = logged[0], logged[-1]
    print()
    for name in ("loss", "text_loss", "ntp_m_loss"):
        print(f"{name:12}{first[name]:8.3f} -> {last[name]:.3f}")
    print("\n| | mIoU | delta1 | perplexity | answer |\n|---|---|---|---|---|")
    for name in ("constant answer", "language model alone", "before", "after"):
        row = {column: f"{value:.3f}" for column, value in results[name].items() if isinstance(value, float)}
        cells = [row.get(column, "") for column in ("mean_iou", "delta1", "perplexity")]
        print(f"| {name} | {' | '.join(cells)} | {results[name].get('answer', '')} |")
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
