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
r"""What `predict_dense` costs, against the ways it replaces.

    python benchmarks/predict_dense.py [--quick]

Random weights. Ends with one line of JSON: `head_speedup` and `head_memory_ratio` (label columns against full logits
then slicing), `second_query_speedup` (a further label set on an encoded image against the first call),
`two_tasks_over_one`, `batch_over_calls` (8 images of different sizes in one call against 8 calls).
"""

import argparse
import json

import numpy as np
import PIL.Image
import torch
from measure import extra_bytes, paired_seconds, seconds
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from densemllm import (
    DenseMLLMConfig,
    DenseMLLMForConditionalGeneration,
    DenseMLLMImageProcessor,
    DenseMLLMProcessor,
    DenseMLLMVisionConfig,
    DenseMLLMVisionModel,
    add_dense_tokens,
)


def make_model(vision_width, vision_layers, text_width, text_layers, device, vocab_size=None):
    """A model of the released architecture at other widths, and a processor with a byte-level tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<eos>": 0, **{c: i + 1 for i, c in enumerate(alphabet)}}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")
    add_dense_tokens(tokenizer)
    processor = DenseMLLMProcessor(DenseMLLMImageProcessor(), tokenizer)
    heads = text_width // 128
    config = DenseMLLMConfig(
        vision_config={
            "hidden_size": vision_width, "intermediate_size": 4 * vision_width, "num_hidden_layers": vision_layers,
            "num_attention_heads": vision_width // 64, "fullatt_block_indexes": [vision_layers - 1],
        },
        text_config={
            "model_type": "youtu", "vocab_size": vocab_size or len(tokenizer), "hidden_size": text_width,
            "intermediate_size": 4 * text_width, "num_hidden_layers": text_layers, "num_attention_heads": heads,
            "num_key_value_heads": heads, "q_lora_rank": text_width // 2, "kv_lora_rank": text_width // 4,
            "eos_token_id": 0, "bos_token_id": None, "pad_token_id": 0,
        },
        image_token_id=processor.image_token_id,
    )  # fmt: skip
    model = DenseMLLMForConditionalGeneration(config).eval().to(device)
    model.get_processor(processor)
    return model


def make_image(height: int, width: int) -> PIL.Image.Image:
    pixels = np.random.default_rng(height * width).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return PIL.Image.fromarray(pixels).resize((width, height), PIL.Image.Resampling.BICUBIC)


def head_cost(device, tokens, width, vocabulary=151_936, labels=150) -> dict:
    """The readout alone: hidden states of `tokens` vision tokens to the scores of `labels` labels."""
    config = DenseMLLMConfig(
        vision_config={"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64},
        text_config={"model_type": "llama", "hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 1,
                     "num_attention_heads": 1, "vocab_size": vocabulary},
    )  # fmt: skip
    model = DenseMLLMForConditionalGeneration(config).eval().to(device)
    states = torch.randn(tokens, width, device=device)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(vocabulary, (1 + k % 3,), generator=generator).tolist() for k in range(labels)]

    @torch.no_grad()
    def columns():
        return model.label_logits(states, ids)

    @torch.no_grad()
    def full_then_slice():
        logits = model.lm_head(states)
        return torch.stack([logits[:, label].mean(dim=1) for label in ids], dim=1)

    torch.testing.assert_close(columns(), full_then_slice(), atol=1e-3, rtol=1e-3)
    fast, slow = paired_seconds(columns, full_then_slice)
    fast_bytes, slow_bytes = extra_bytes(columns), extra_bytes(full_then_slice)
    print(f"readout of {labels} labels, {tokens} tokens, vocabulary {vocabulary}, width {width}")
    print(f"  full logits then slice {slow * 1e3:9.1f} ms {slow_bytes / 2**20:9.1f} MiB")
    print(f"  label columns          {fast * 1e3:9.1f} ms {fast_bytes / 2**20:9.1f} MiB")
    return {"head_speedup": slow / fast, "head_memory_ratio": slow_bytes / fast_bytes}


def calls(device, quick) -> dict:
    model = make_model(*((256, 4, 512, 6) if quick else (512, 8, 1024, 12)), device)
    print(f"\ncalls, {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters, image of 640x480")
    image = make_image(480, 640)
    labels, others = ["sky", "tree", "road", "car"], ["cup", "plate"]
    repeats = 3 if quick else 5

    def first():
        return model.predict_dense(image, task="segmentation", labels=labels)

    def both():
        return model.predict_dense(image, task=("segmentation", "depth"), labels=labels)

    one, two = paired_seconds(first, both, repeats=repeats)
    encoded = model.encode_image(image)
    second = seconds(lambda: model.predict_dense(encoded, task="segmentation", labels=others), repeats=9)
    print(f"  first call             {one * 1e3:9.1f} ms")
    print(f"  two tasks              {two * 1e3:9.1f} ms")
    print(f"  second label set       {second * 1e3:9.1f} ms")

    sizes = [(480, 640), (320, 480), (640, 480), (224, 224), (600, 400), (333, 500), (512, 512), (240, 640)]
    images = [make_image(*size) for size in sizes]
    options = {"task": ("segmentation", "depth"), "labels": labels, "return_logits": True}
    together = model.predict_dense(images, **options)
    singles = [model.predict_dense(picture, **options) for picture in images]
    for a, b in zip(together, singles, strict=True):
        for name in a.logits:
            torch.testing.assert_close(a.logits[name], b.logits[name], atol=1e-4, rtol=1e-4)
    batch, single = paired_seconds(
        lambda: model.predict_dense(images, **options),
        lambda: [model.predict_dense(picture, **options) for picture in images],
        repeats=repeats,
    )
    print(f"  8 images in one call   {batch * 1e3:9.1f} ms")
    print(f"  8 calls                {single * 1e3:9.1f} ms")
    return {"second_query_speedup": one / second, "two_tasks_over_one": two / one, "batch_over_calls": batch / single}


def tower(device, quick) -> None:
    """One windowed and one full layer of the released width over a large image."""
    size = (1200, 1600) if quick else (3000, 4000)
    config = DenseMLLMVisionConfig(num_hidden_layers=2, fullatt_block_indexes=[1])
    model = DenseMLLMVisionModel(config).eval().to(device)
    inputs = DenseMLLMImageProcessor()(make_image(*size), return_tensors="pt").to(device)
    patches = inputs["pixel_values"].shape[0]

    @torch.no_grad()
    def run():
        model(inputs["pixel_values"], inputs["image_grid_thw"])

    peak = extra_bytes(run)
    print(f"\ntower of width 1152, one windowed and one full layer, image of {size[1]}x{size[0]}: {patches} patches")
    print(
        f"  peak extra memory      {peak / 2**20:9.1f} MiB = {peak / (patches * 1152 * 4):.1f} activations [n, 1152]"
    )
    print(f"  an n x n mask or score matrix alone would be {patches**2 * 4 / 2**20:.0f} MiB a head")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, under a minute")
    args = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"device {device}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    results = head_cost(device, *((256, 512) if args.quick else (1024, 1024)))
    results |= calls(device, args.quick)
    tower(device, args.quick)
    print("\n" + json.dumps({name: round(value, 3) for name, value in results.items()}))


if __name__ == "__main__":
    main()
