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
r"""`predict_dense` against the released way of decoding, on the same random weights.

    python benchmarks/released_decoding.py [--quick]

The released way: logits of the whole prompt over the whole vocabulary in float32, the answer's words generated from
the same cache, then the labels' columns sliced out of the vision positions, softmax, every class's map interpolated,
the argmax written as run lengths in text, and that text parsed back into a mask. Both ways have to give the same mask.

Then the tower's attention over a picture of 4000x3000 pixels: peak memory against its own activations (queries, keys,
values, and both outputs).

Ends with one line of JSON: `speedup`, `memory_ratio`, and `attention_over_activations`.
"""

import argparse
import json
import re

import numpy as np
import torch
import torch.nn.functional as F
from measure import extra_bytes, fast_dtype, paired_seconds
from predict_dense import make_image, make_model
from transformers import DynamicCache

from densemllm import DenseMLLMVisionConfig, DenseMLLMVisionModel


LABELS = "wall floor ceiling door window picture table chair cabinet lamp plant ball sofa bed rug shelf".split()
RUN = re.compile(r"\((\d+),(\d+)\)")


def write_run_lengths(segmentation: np.ndarray) -> str:
    flat = segmentation.ravel()
    ends = np.append(np.flatnonzero(np.diff(flat)) + 1, flat.size)
    values, lengths = flat[ends - 1], np.diff(ends, prepend=0)
    return ",".join(f"({value},{length})" for value, length in zip(values.tolist(), lengths.tolist(), strict=True))


def read_run_lengths(text: str, shape: tuple[int, int]) -> np.ndarray:
    values, lengths = zip(*((int(value), int(length)) for value, length in RUN.findall(text)), strict=True)
    return np.repeat(values, lengths).reshape(shape)


@torch.no_grad()
def released_way(model, image, generate: bool) -> np.ndarray:
    processor = model.get_processor()
    question = f"Segment: {', '.join(LABELS)}, without the background class."
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[image], text=[prompt], return_tensors="pt").to(model.device)
    cache = DynamicCache(config=model.config.get_text_config())
    logits = model(**inputs, past_key_values=cache, use_cache=True).logits.float()
    if generate:
        refs = "".join(f"<ref>{name}</ref>" for name in LABELS)
        answer = f"The target categories include {refs}, numbered sequentially starting from 0, "
        answer += "without the background class."
        count = len(processor.tokenizer(answer)["input_ids"])
        token = logits[:, -1:].argmax(dim=-1)
        for _ in range(count):
            token = model(input_ids=token, past_key_values=cache, use_cache=True).logits.float().argmax(dim=-1)
    vision = logits[inputs["input_ids"] == model.config.image_token_id]
    ids = processor.label_token_ids(LABELS)
    scores = torch.stack([vision[:, own].mean(dim=1) for own in ids], dim=1)
    height, width = (int(edge) // model.config.spatial_merge_size for edge in inputs["image_grid_thw"][0, 1:])
    chances = (scores / 0.2).softmax(dim=1).T.reshape(1, len(ids), height, width)
    chances = F.interpolate(chances, size=(image.height, image.width), mode="bilinear", align_corners=False)
    text = write_run_lengths(chances[0].argmax(dim=0).cpu().numpy())
    return read_run_lengths(text, (image.height, image.width))


def attention_memory(device, height: int, width: int) -> float:
    """Peak of one attention layer beyond what was there, over its own activations; the larger of both kinds."""
    config = DenseMLLMVisionConfig(num_hidden_layers=2, fullatt_block_indexes=[1])
    tower = DenseMLLMVisionModel(config).eval().to(device)
    grid = torch.tensor([[1, height // 32 * 2, width // 32 * 2]], device=device)
    patches = int(grid.prod())
    states = torch.randn(patches, config.hidden_size, device=device)
    full, windows = tower.attention_segments(grid)
    activations = 5 * states.nbytes
    ratios = []
    for name, layer, segments in (("windows", 0, windows), ("full", 1, full)):
        attention = tower.encoder.layers[layer].self_attn
        with torch.no_grad():
            peak = extra_bytes(lambda attention=attention, segments=segments: attention(states, segments))
        ratios.append(peak / activations)
        print(f"  attention, {name:8} {peak / 2**20:9.1f} MiB = {ratios[-1]:.2f} activations, {patches} patches")
    return max(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller model and picture, under a minute")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="of the weights; bfloat16, as released, unless the CPU emulates it",
    )
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, args.dtype) if args.dtype else fast_dtype(device)
    torch.manual_seed(0)
    sizes, vocabulary, edge = ((256, 2, 256, 2), 50_000, 512) if args.quick else ((512, 8, 1024, 12), 283_386, 1024)
    model = make_model(*sizes, device, vocabulary).to(dtype)
    image = make_image(edge, edge)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"device {device}, {torch.get_num_threads()} threads, {dtype}, {size:.0f} M parameters, vocabulary "
          f"{vocabulary}")  # fmt: skip

    def ours():
        return model.predict_dense(image, task="segmentation", labels=LABELS)

    same = ours().segmentation.numpy() == released_way(model, image, False)
    # The released way rounds its logits to the model's dtype, which decides between labels that are nearly tied.
    assert same.mean() > {torch.float32: 0.999, torch.bfloat16: 0.98}[dtype], same.mean()
    repeats = 1 if args.quick else 3
    ways = (ours, lambda: released_way(model, image, True), lambda: released_way(model, image, False))
    own, released, silent = paired_seconds(*ways, repeats=repeats)
    own_bytes, released_bytes = (extra_bytes(way) for way in (ours, ways[2]))
    tokens = (edge // 32) ** 2
    print(f"{len(LABELS)} labels on {tokens} vision tokens")
    print(f"  predict_dense               {own:8.2f} s {own_bytes / 2**20:9.1f} MiB")
    print(f"  released way                {released:8.2f} s {released_bytes / 2**20:9.1f} MiB")
    print(f"  released way, no words      {silent:8.2f} s")
    results = {"speedup": released / own, "memory_ratio": released_bytes / own_bytes}
    results["attention_over_activations"] = attention_memory(device, *((960, 1280) if args.quick else (3000, 4000)))
    print("\n" + json.dumps({name: round(value, 3) for name, value in results.items()}))


if __name__ == "__main__":
    main()
