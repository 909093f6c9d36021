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
r"""What a mixture comes to with the full data sets: steps, tokens, and memory under FSDP.

    python examples/mixture_on_paper.py examples/configs/mixture.yaml --gpus 8 --chat_rows 157712
    python examples/mixture_on_paper.py examples/configs/mixture.yaml --gpus 16 --per_device_train_batch_size 2

Takes what `train_hf.py` takes. No data is opened and no weight is made: this is arithmetic from published counts of
images, one typical image size a set, the image processor's own rule of sizes, and the shapes of the released model.
It prints tables in Markdown. Nothing in them is measured.
"""

import argparse
import math
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from densemllm import DenseMLLMConfig, DenseMLLMForConditionalGeneration, DenseMLLMImageProcessor
from densemllm.released_densemllm import RELEASED_TEXT_CONFIG
from densemllm.train_hf import parse_arguments
from densemllm.training.datasets import DenseDataset, DenseSource


@dataclass(frozen=True)
class FullSet:
    """A data set as it is published.

    Attributes:
        rows: samples of its training split, as this package counts them.
        size: height and width in pixels of a typical image.
        text: text tokens of a sample: question, answer and template. An assumption.
        scale: factor on the images with which the paper measures on it.
        crop: height and width of a further image, which no scale changes; `None`: there is none.
        is_scaled: whether augmentation changes its size; a chat keeps its geometry.
    """

    rows: int
    size: tuple[int, int]
    text: int
    scale: float = 1.0
    crop: tuple[int, int] | None = None
    is_scaled: bool = True


CHAT = "chat"
SETS = {
    "ade20k": FullSet(20_210, (512, 683), 120, 4.0),
    "coco_stuff": FullSet(118_287, (480, 640), 100, 3.0),
    "nyuv2": FullSet(795, (480, 640), 40, 3.0),
    "refcoco": FullSet(120_624, (480, 640), 60, crop=(1280, 1280)),  # a square object; with its template twice
    "refcoco+": FullSet(120_191, (480, 640), 60, crop=(1280, 1280)),
    "refcocog": FullSet(80_512, (480, 640), 60, crop=(1280, 1280)),
}
SCALES = 50  # factors of the random resize over which tokens are averaged


def vision_tokens(size: tuple[int, int], scale: float = 1.0) -> int:
    """Vision tokens of an image `(height, width)`, resized by `scale`, with the released image processor."""
    processor = DenseMLLMImageProcessor()
    height, width = processor.get_resized_size(*size, {"scale": scale})
    return height * width // (processor.patch_size * processor.merge_size) ** 2


def trained_tokens(full: FullSet, lowest: float, highest: float) -> float:
    """Vision tokens of a sample, the mean over factors from `lowest` to `highest`."""
    factors = [lowest + (highest - lowest) * (place + 0.5) / SCALES for place in range(SCALES)]
    factors = factors if full.is_scaled else [1.0]
    mean = sum(vision_tokens(full.size, factor) for factor in factors) / len(factors)
    return mean + (vision_tokens(full.crop) if full.crop else 0)


def supervised_tokens(full: FullSet, mean: float) -> float:
    """Those of [`trained_tokens`] that NTP-M learns from: a mask is learned from the crop alone, chat from text."""
    if not full.is_scaled:
        return 0
    return vision_tokens(full.crop) if full.crop else mean


def sets_of(names: list[str], chat_rows: int) -> list[FullSet]:
    """The full set of each entry of `dataset`: by the name of its layout; what has none is chat."""
    known = []
    for name in names:
        layout, colon, _ = name.partition(":")
        if colon and layout not in SETS:
            raise ValueError(f"`dataset` must be of {sorted(SETS)}, or a path, which is taken for chat, got {name}")
        known.append(SETS[layout] if colon else FullSet(chat_rows, (480, 640), 300, is_scaled=False))
    return known


@cache
def released_model() -> DenseMLLMForConditionalGeneration:
    """The released model's shapes, without weights."""
    config = DenseMLLMConfig(text_config={"model_type": "youtu", **RELEASED_TEXT_CONFIG})
    with torch.device("meta"):
        return DenseMLLMForConditionalGeneration(config)


def memory(gpus: int, tokens: float, patches: float) -> list[tuple[str, str, float]]:
    """Rows of what a GPU holds: what it is, how it is worked out, and bytes.

    Args:
        gpus: over which weights, gradients and optimizer states are sharded.
        tokens: of the language model in a micro-batch, vision and text.
        patches: of the tower in it.
    """
    model = released_model()
    text, vision = model.config.text_config, model.config.vision_config

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    total, layer = count(model), count(model.model.language_model.layers[0])
    embedding = count(model.get_input_embeddings())
    root = embedding + count(model.model.multi_modal_projector)
    heads = text.num_attention_heads
    attention = heads * (2 * (text.qk_nope_head_dim + text.qk_rope_head_dim) + 2 * text.v_head_dim)
    # Of the larger layer, as they are not there at once: gate, up and their products; queries, keys, values; states.
    numbers = max(
        tokens * (4 * text.intermediate_size + attention + 3 * text.hidden_size),
        patches * (2 * vision.intermediate_size + 7 * vision.hidden_size),
    )
    return [
        ("weights, float32", f"4 x {total / 1e9:.3f}e9 / {gpus}", 4 * total / gpus),
        ("gradients, float32", f"4 x {total / 1e9:.3f}e9 / {gpus}", 4 * total / gpus),
        ("AdamW's two moments, float32", f"8 x {total / 1e9:.3f}e9 / {gpus}", 8 * total / gpus),
        ("embedding and projector, gathered, bf16", f"2 x {root / 1e9:.3f}e9", 2 * root),
        ("two gradients of the embedding, bf16", f"2 x 2 x {embedding / 1e9:.3f}e9", 4 * embedding),
        ("two layers, gathered, bf16", f"2 x 2 x {layer / 1e9:.3f}e9", 4 * layer),
        (
            "kept for the backward pass: the input of each layer, bf16",
            f"{text.num_hidden_layers} x {tokens:,.0f} x {text.hidden_size} x 2",
            text.num_hidden_layers * tokens * text.hidden_size * 2,
        ),
        (
            "the tower's, the input of each layer, bf16",
            f"{vision.num_hidden_layers} x {patches:,.0f} x {vision.hidden_size} x 2",
            vision.num_hidden_layers * patches * vision.hidden_size * 2,
        ),
        ("one layer computed again, with its gradients, bf16", f"2 x {numbers:,.0f} x 2", 4 * numbers),
        ("the losses: pieces of logits, the states' gradient", f"{tokens:,.0f} x {text.hidden_size} x 4 + 0.2e9",
         tokens * text.hidden_size * 4 + 0.2e9),
    ]  # fmt: skip


def report(words: list[str], gpus: int, chat_rows: int) -> list[str]:
    """The tables, a line each.

    Args:
        words: the arguments of `train_hf.py`.
        gpus: of the launch.
        chat_rows: samples of what has no layout.

    Raises:
        ValueError: arguments that `train_hf.py` would refuse, or a set whose size isn't known.
    """
    _, data, args = parse_arguments(words)
    sets = sets_of(data.dataset, chat_rows)
    weights = data.dataset_weights or [own.get("weight") for own in data.own_options]
    sources = [DenseSource(range(full.rows), weight) for full, weight in zip(sets, weights, strict=True)]
    counts = DenseDataset(sources).counts  # as a training shares them out
    lowest, highest = data.random_scale or (1.0, 1.0)
    tokens = [trained_tokens(full, lowest, highest) for full in sets]
    lines = [
        f"| set | images or expressions | weight | samples an epoch | passes | tokens an image: x1 | x {lowest:g} to "
        f"{highest:g} | as the paper measures | vision tokens an epoch | share of NTP-M's |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    learned = [count * supervised_tokens(full, mean) for count, full, mean in zip(counts, sets, tokens, strict=True)]
    rows = zip(data.dataset, sets, weights, counts, tokens, learned, strict=True)
    for name, full, weight, count, mean, taught in rows:
        crop = f" + {vision_tokens(full.crop):,} of the crop" if full.crop else ""
        measured = f"{vision_tokens(full.size, full.scale):,} (x{full.scale:g})" if full.scale > 1 else "as x1"
        lines.append(
            f"| {name.partition(':')[0] if ':' in name else CHAT} | {full.rows:,} | {weight or '-'} | {count:,} | "
            f"{count / full.rows:.2f} | {vision_tokens(full.size):,}{crop} | {mean:,.0f} | {measured} | "
            f"{count * mean / 1e6:,.0f} M | {taught / max(sum(learned), 1):.0%} |"
        )
    samples = sum(counts)
    vision = sum(count * mean for count, mean in zip(counts, tokens, strict=True))
    text = sum(count * full.text for count, full in zip(counts, sets, strict=True))
    micro, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    batches = math.ceil(samples / (micro * gpus))
    steps = math.ceil(batches / accumulated)
    per_step = micro * accumulated * gpus
    lines += [
        "",
        f"{samples:,} samples an epoch, {per_step} a step ({gpus} GPUs x {micro} x {accumulated}): {steps:,} steps. "
        f"{vision / 1e6:,.0f} M vision tokens and about {text / 1e6:,.0f} M text tokens an epoch, "
        f"{(vision + text) / steps / 1e3:,.0f} thousand a step.",
    ]
    processor = DenseMLLMImageProcessor()
    patches = micro * vision / samples * processor.merge_size**2
    most = micro * processor.max_num_patches
    for title, count in (("the mean micro-batch", patches), ("all images at the cap of patches", most)):
        own = count / processor.merge_size**2 + micro * text / samples
        table = memory(gpus, own, count)
        lines += ["", f"| a GPU of {gpus}, {title}: {own:,.0f} tokens | bytes | GB |", "|---|---|---|"]
        lines += [f"| {what} | {how} | {size / 1e9:.2f} |" for what, how, size in table]
        lines.append(f"| **all** | | **{sum(size for _, _, size in table) / 1e9:.1f}** |")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", help="configuration file of a training, such as examples/configs/mixture.yaml")
    parser.add_argument("--gpus", type=int, default=8, help="of the launch (8)")
    parser.add_argument("--chat_rows", type=int, default=157_712, help="samples of chat (LLaVA-Instruct: 157712)")
    args, rest = parser.parse_known_args(arguments)
    try:
        for name in ("gpus", "chat_rows"):
            if getattr(args, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(args, name)}")
        print("\n".join(report([args.config, *rest], args.gpus, args.chat_rows)))
    except (ValueError, OSError) as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
