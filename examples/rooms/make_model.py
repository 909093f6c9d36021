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
r"""An untrained DenseMLLM of the size of `checkpoints/densemllm-rooms`, and its processor, for `train_hf.py`.

    python examples/rooms/make_model.py --data examples/rooms/sample --output_dir out/rooms/untrained

The paper's architecture, scaled down: a tower with 2-D RoPE and windows, a projector that joins 2x2 patches, a
language model with latent attention. The tokenizer is trained on the texts of the data set, so that every class name
is one token.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast, set_seed

from densemllm import (
    DenseMLLMConfig,
    DenseMLLMForConditionalGeneration,
    DenseMLLMImageProcessor,
    DenseMLLMProcessor,
    add_dense_tokens,
)
from densemllm.files import OVERWRITE_HELP, check_outputs_of_script
from densemllm.formats.folders import load_samples
from densemllm.formats.labels import load_id2label
from densemllm.tasks_densemllm import TASKS


# 64 bins of 5.5 % each: the middle of a bin is within 2.7 % of the truth, and a cell of one surface has few bins at
# once, so that its depth doesn't crowd its class out of the positives. So small a model sees nothing finer.
NUM_DEPTH_BINS = 64
# Pictures are seen at one focal length: without it, a small thing that is near looks like a large one far away.
# It is somewhat longer than theirs, for a finer grid of tokens; most of the training sees them smaller (`train.yaml`).
DEPTH_RANGES = {"rooms": {"mapping": "log", "min_depth": 0.5, "max_depth": 15.0, "focal_length": 215.0}}
REFERRING_PROMPT = "Find {text}."
# Narrower than the defaults, which pull the faint edge between wall and ceiling away: chosen on validation rooms.
CRF_OPTIONS = {"bilateral_sigma": 30.0, "color_sigma": 5.0}


# What every conversation repeats is worth few tokens.
FIXED_TEXTS = (
    "system\nYou are a helpful assistant.", "\n", "user\n", "assistant\n", TASKS["segmentation"].question,
    "The target categories include ",
)  # fmt: skip


def iterate_texts(samples) -> Iterable[str]:
    """Every text of a data set."""
    for row in samples.select_columns([name for name in ("expression", "messages") if name in samples.column_names]):
        yield row.get("expression") or ""
        for message in row.get("messages") or []:
            yield message["content"]


def make_tokenizer(texts: Iterable[str], names: list[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the given texts, which knows each name as one token, plus the tokens of DenseMLLM."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [*texts, *FIXED_TEXTS * 500],
        trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1], pad_token=special[2],
        padding_side="left",
    )  # fmt: skip
    add_dense_tokens(fast, NUM_DEPTH_BINS, num_coordinates=0)
    split = [name for name in names if len(fast(name, add_special_tokens=False)["input_ids"]) > 1]
    if split:
        raise ValueError(f"`vocab_size` is too small: {split} are several tokens")
    return fast


def make_processor(tokenizer, patch_size: int, merge_size: int) -> DenseMLLMProcessor:
    image_processor = DenseMLLMImageProcessor(patch_size=patch_size, merge_size=merge_size, max_num_patches=4096)
    return DenseMLLMProcessor(
        image_processor, tokenizer, depth_ranges=DEPTH_RANGES, num_depth_bins=NUM_DEPTH_BINS,
        referring_crop_size=192, referring_prompt=REFERRING_PROMPT, crf_options=CRF_OPTIONS,
    )  # fmt: skip


@torch.no_grad()
def start_attention(tower: nn.Module) -> None:
    """Attention weights in the tower that look as trained ones do, so that a short run needn't find it out ("Mimetic
    Initialization of Self-Attention Layers", arXiv 2305.09828): a patch attends to those like it, and what it reads is
    taken off what it has."""
    for layer in tower.encoder.layers:
        attention = layer.self_attn
        width = attention.q_proj.in_features
        identity, std = torch.eye(width), width**-0.5
        query = torch.randn(width, width) * std
        attention.q_proj.weight.copy_(query)
        attention.k_proj.weight.copy_(0.7 * (query + torch.randn(width, width) * std))
        attention.v_proj.weight.copy_(0.7 * identity + 0.4 * std * torch.randn(width, width))
        attention.out_proj.weight.copy_(-0.7 * identity + 0.4 * std * torch.randn(width, width))


@torch.no_grad()
def start_language_model(language_model: nn.Module) -> None:
    """Layers that add nothing yet: at first, what the projector gives is read as it is by the embedding of the labels
    ("Fixup Initialization", arXiv 1901.09321, starts residual branches so)."""
    for layer in language_model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()


def make_model(
    processor: DenseMLLMProcessor,
    id2label: dict[int, str],
    vision: dict | None = None,
    text: dict | None = None,
    **kwargs,
) -> DenseMLLMForConditionalGeneration:
    """The model; `vision`, `text` and `kwargs` change fields of the configs."""
    tokenizer, merge_size = processor.tokenizer, processor.image_processor.merge_size
    config = DenseMLLMConfig(
        vision_config={
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 5,
            "num_attention_heads": 3,
            "patch_size": processor.image_processor.patch_size,
            "spatial_merge_size": merge_size,
            "window_size": 64,
            "fullatt_block_indexes": [2, 4],
            "rope_theta": 100.0,  # a grid of 16x16 turns little under wavelengths of thousands
            "initializer_range": 0.06,
            **(vision or {}),
        },
        text_config={
            "model_type": "youtu",
            "vocab_size": len(tokenizer),
            "hidden_size": 256,
            "intermediate_size": 704,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "q_lora_rank": None,
            "kv_lora_rank": 96,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 32,
            "v_head_dim": 64,
            "max_position_embeddings": 8192,
            "initializer_range": 0.06,
            "embedding_initializer_range": 0.02,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **(text or {}),
        },
        image_token_id=processor.image_token_id,
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        num_depth_bins=NUM_DEPTH_BINS,
        depth_ranges=DEPTH_RANGES,
        spatial_merge_size=merge_size,
        id2label=id2label,
        **{"ntp_m_top_k": 10, **kwargs},
    )
    model = DenseMLLMForConditionalGeneration(config)
    start_attention(model.model.vision_tower)
    start_language_model(model.model.language_model)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that render.py wrote")
    parser.add_argument("--output_dir", type=Path, required=True, help="where model and processor are saved")
    parser.add_argument("--patch_size", type=int, default=8, help="pixels of a patch of the tower")
    parser.add_argument("--merge_size", type=int, default=2, help="patches along an edge of a vision token")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args()
    outputs = [args.output_dir / name for name in ("config.json", "model.safetensors")]
    check_outputs_of_script(parser, outputs, [args.data], args.overwrite, "--output_dir")
    id2label = load_id2label(str(args.data / "id2label.json"))
    names = [name for name in id2label.values() for _ in range(200)]  # each of them worth a token
    names += [f"<ref>{name}</ref>" for name in id2label.values()]
    texts = [*names, *iterate_texts(load_samples(str(args.data), "train"))]
    tokenizer = make_tokenizer(texts, list(id2label.values()))
    processor = make_processor(tokenizer, args.patch_size, args.merge_size)
    set_seed(args.seed)
    model = make_model(processor, id2label)
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)
    counts = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (
        model.model.vision_tower, model.model.multi_modal_projector, model.model.language_model)]  # fmt: skip
    print(f"{len(tokenizer)} tokens; million parameters: tower {counts[0]:.2f}, projector {counts[1]:.2f}, "
          f"language model {counts[2]:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
