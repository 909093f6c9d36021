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
r"""From nothing to dense maps in about five minutes on two CPU cores.

    python examples/quickstart.py --image photo.jpg

Renders rooms with class maps and metric depth, trains a small DenseMLLM on them with the Trainer of `train_hf.py`,
measures it on rooms that it has not seen against the untrained model and the best constant answer, saves the
checkpoint, loads it back with `AutoModel`, and writes a picture of what it sees.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
from synthetic_rooms import ID2LABEL, IGNORE_INDEX, MAX_DEPTH, render_room
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import AutoModel, PreTrainedTokenizerFast, set_seed

from densemllm import (
    DenseMLLMConfig,
    DenseMLLMForConditionalGeneration,
    DenseMLLMImageProcessor,
    DenseMLLMProcessor,
    add_dense_tokens,
)
from densemllm.evaluation.metrics import DepthMetrics, SegmentationMetrics
from densemllm.evaluation.predict import evaluate_dense
from densemllm.files import OVERWRITE_HELP, check_outputs_of_script
from densemllm.tasks_densemllm import TASKS
from densemllm.training.arguments import DenseTrainingArguments
from densemllm.training.collator import DenseCollator
from densemllm.training.trainer import DenseTrainer


HEIGHT, WIDTH = 192, 256
# A cell's depth bins are all its positives: few bins, each 11 % deep, leave its class a part in the loss.
NUM_DEPTH_BINS = 32
DEPTH_RANGES = {"rooms": {"mapping": "log", "min_depth": 0.4, "max_depth": MAX_DEPTH}}
FIRST_EVAL_SEED = 1_000_000  # no training room has a seed this high


def make_sample(seed: int, height: int = HEIGHT, width: int = WIDTH) -> dict:
    """One room as a training sample: image, class map, metres."""
    room = render_room(seed, height, width)
    return {"image": PIL.Image.fromarray(room.image), "segmentation": room.segmentation, "depth": room.depth}


def make_samples(seeds: list[int], height: int = HEIGHT, width: int = WIDTH) -> list[dict]:
    """Rooms of these seeds, rendered on all cores."""
    render = partial(make_sample, height=height, width=width)
    # Workers that are forked after torch has started its threads can hang.
    with multiprocessing.get_context("spawn").Pool(min(os.cpu_count() or 1, 8)) as pool:
        return list(tqdm(pool.imap(render, seeds, chunksize=4), total=len(seeds), desc="rendering rooms"))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few hundred tokens, which knows the class names, plus the tokens of DenseMLLM."""
    texts = [" ".join(ID2LABEL.values()), "system You are a helpful assistant. user The target categories include ."]
    texts += [name for name in ID2LABEL.values() for _ in range(8)] + [task.question or "" for task in TASKS.values()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=640, special_tokens=special, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1], pad_token=special[2],
        padding_side="left",
    )  # fmt: skip
    add_dense_tokens(fast, NUM_DEPTH_BINS, num_coordinates=0)
    return fast


def make_model_and_processor() -> tuple[DenseMLLMForConditionalGeneration, DenseMLLMProcessor]:
    """The paper's architecture, scaled down to 1.6 million parameters and to cells of 16 pixels.

    Weights start larger than a pretrained model's would: the widths are small, and the steps are few.
    """
    tokenizer = make_tokenizer()
    image_processor = DenseMLLMImageProcessor(patch_size=16, merge_size=1, max_num_patches=1024)
    processor = DenseMLLMProcessor(
        image_processor, tokenizer, depth_ranges=DEPTH_RANGES, num_depth_bins=NUM_DEPTH_BINS, referring_crop_size=192
    )
    config = DenseMLLMConfig(
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "patch_size": 16,
            "spatial_merge_size": 1,
            "window_size": 128,
            "fullatt_block_indexes": [0, 2],
            "initializer_range": 0.08,
        },
        text_config={
            "model_type": "youtu",
            "vocab_size": len(tokenizer),
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "q_lora_rank": None,
            "kv_lora_rank": 96,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 16,
            "v_head_dim": 48,
            "max_position_embeddings": 4096,
            "initializer_range": 0.07,
            "embedding_initializer_range": 0.02,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_id=processor.image_token_id,
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        vision_attention="bidirectional",
        num_depth_bins=NUM_DEPTH_BINS,
        depth_ranges=DEPTH_RANGES,
        spatial_merge_size=1,
        ntp_m_top_k=6,
        id2label=ID2LABEL,
    )
    return DenseMLLMForConditionalGeneration(config), processor


def constant_answer(train: list[dict], evaluation: list[dict]) -> dict:
    """What the best constant scores: the training set's commonest class, and its depth with the highest delta1."""
    counts = sum(np.bincount(sample["segmentation"].ravel(), minlength=256) for sample in train)[: len(ID2LABEL)]
    depths = np.concatenate([sample["depth"].ravel()[::37] for sample in train])
    choices = np.linspace(0.5, MAX_DEPTH, 96)
    best = max(choices, key=lambda depth: np.mean(np.maximum(depth / depths, depths / depth) < 1.25))
    segmentation, depth = SegmentationMetrics(len(ID2LABEL), IGNORE_INDEX), DepthMetrics()
    for sample in evaluation:
        segmentation.add(np.full_like(sample["segmentation"], counts.argmax()), sample["segmentation"])
        depth.add(np.full_like(sample["depth"], best), sample["depth"])
    return {**segmentation.compute(), **depth.compute()}


def draw_panel(image: PIL.Image.Image, prediction, title: str, height: int = 288) -> PIL.Image.Image:
    """Image, segmentation with a legend and depth with a scale in metres, side by side."""
    header = 26
    parts = [(title, image.resize((round(image.width * height / image.height), height)))]
    for name, field in (("segmentation", "segmentation"), ("depth", "predicted_depth")):
        picture = prediction.to_pil(field, legend=True)
        parts.append((name, picture.resize((round(picture.width * height / picture.height), height))))
    panel = PIL.Image.new("RGB", (sum(part.width + 6 for _, part in parts), height + header + 8), "white")
    draw, x = PIL.ImageDraw.Draw(panel), 6
    for name, part in parts:
        draw.text((x, 7), name, fill="black")
        panel.paste(part, (x, header))
        x += part.width + 6
    return panel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("out/quickstart"), help="where everything is written")
    parser.add_argument("--image", help="a photograph to look at with the trained model")
    parser.add_argument("--train_scenes", type=int, default=640, help="rooms to train on")
    parser.add_argument("--eval_scenes", type=int, default=32, help="rooms to measure on")
    parser.add_argument("--epochs", type=float, default=9, help="passes over the training rooms")
    parser.add_argument("--learning_rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the order of the rooms")
    parser.add_argument("--quick", action="store_true", help="a few steps only: shows that it runs, learns little")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args()
    if args.quick:
        args.train_scenes, args.eval_scenes, args.epochs = 32, 4, 1
    for name in ("train_scenes", "eval_scenes", "epochs", "learning_rate"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name} must be greater than 0, got {getattr(args, name)}")
    if args.image is not None and not os.path.isfile(args.image):
        parser.error(f"--image must be an image file, got {args.image}")
    checkpoint, names = args.output_dir / "checkpoint", ("predictions.png", "results.json")
    outputs = [*(args.output_dir / name for name in names), checkpoint / "config.json"]
    inputs = [] if args.image is None else [args.image]
    check_outputs_of_script(parser, outputs, inputs, args.overwrite, "--output_dir")
    started = time.monotonic()
    set_seed(args.seed)

    samples = make_samples([*range(args.train_scenes), *range(FIRST_EVAL_SEED, FIRST_EVAL_SEED + args.eval_scenes)])
    train, evaluation = samples[: args.train_scenes], samples[args.train_scenes :]
    model, processor = make_model_and_processor()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {len(processor.tokenizer)} tokens")
    results = {
        "best constant": constant_answer(train, evaluation),
        "untrained": evaluate_dense(model, processor, evaluation, ID2LABEL),
    }

    trainer = DenseTrainer(
        model=model,
        args=DenseTrainingArguments(
            output_dir=str(args.output_dir / "trainer"), per_device_train_batch_size=8, num_train_epochs=args.epochs,
            learning_rate=args.learning_rate, lr_scheduler_type="cosine", warmup_steps=20, weight_decay=0.05,
            logging_steps=40, save_strategy="no", report_to="none", seed=args.seed,
            dataloader_num_workers=0,
        ),
        train_dataset=train,
        data_collator=DenseCollator(processor, ID2LABEL),
        processing_class=processor,
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(checkpoint))
    results["trained"] = evaluate_dense(trainer.model, processor, evaluation, ID2LABEL)

    # From here on as any user of the checkpoint would.
    loaded = AutoModel.from_pretrained(checkpoint).eval()
    pictures = [sample["image"] for sample in evaluation[:3]]
    predictions = loaded.predict_dense(pictures, task=("segmentation", "depth"), labels=ID2LABEL)
    panels = [draw_panel(*pair, "a room not seen in training") for pair in zip(pictures, predictions, strict=True)]
    if args.image is not None:
        # As large as the rooms were: so small a model knows things at one size only.
        photo = loaded.get_processor().image_processor.load_picture(args.image)
        encoded = loaded.encode_image(photo, scale=min(1.0, WIDTH / photo.width))
        prediction = loaded.predict_dense(encoded, task=("segmentation", "depth"), labels=ID2LABEL)
        panels.append(draw_panel(encoded.image, prediction, Path(args.image).name))
    sheet = PIL.Image.new("RGB", (max(p.width for p in panels), sum(p.height for p in panels)), "white")
    top = 0
    for panel in panels:
        sheet.paste(panel, (0, top))
        top += panel.height
    sheet.save(args.output_dir / "predictions.png")
    answer = loaded.query(pictures[0], TASKS["segmentation"].question, max_new_tokens=64)
    with open(args.output_dir / "results.json", "w", encoding="utf-8") as file:
        json.dump(results, file, indent=2)

    print(f"\n{'':15}{'mIoU':>8}{'delta1':>8}")
    for name, metrics in results.items():
        print(f"{name:15}{metrics['mean_iou']:8.3f}{metrics['delta1']:8.3f}")
    print(f"\nAsked {TASKS['segmentation'].question!r}, it answers {answer!r}")
    print(f"Picture: {args.output_dir / 'predictions.png'}   checkpoint: {checkpoint}")
    print(f"Done in {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    sys.exit(main())
