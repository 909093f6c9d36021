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
r"""Images a second from a vLLM server with 1, 4 and 16 clients, against a process of transformers that takes one
request after another.

    vllm serve CHECKPOINT --trust-remote-code --model-impl transformers --runner pooling \
        --pooler-config '{"task": "token_embed"}'
    OMP_NUM_THREADS=1 python benchmarks/serving.py --server http://localhost:8000 --checkpoint CHECKPOINT [--quick]

Both give segmentation and depth of the same images, decoded to maps, in turn; no image comes twice, as a server keeps
what it has read. Ends with one line of JSON: `served_1`, `served_4`, `served_16` and `in_turn` in images a second,
their ratios `served_N_over_in_turn`, and `largest_difference` of logits. It is end to end: what the client does (PNG,
maps) is in it, and on one machine it competes with the server for the same cores. `OMP_NUM_THREADS` is how many
threads the process of transformers has: on a CPU, as many as the server's log says that its worker is bound to.
"""

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import torch

from densemllm import DenseMLLMForConditionalGeneration
from densemllm.client import DenseClient


CLIENTS = (1, 4, 16)
LABELS = ["floor", "wall", "ceiling", "chair", "table"]


def make_images(count: int, edge: int, seed: int) -> list[PIL.Image.Image]:
    """Different smooth images of one size."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return [PIL.Image.fromarray(pixels).resize((edge, edge), PIL.Image.Resampling.BICUBIC) for pixels in small]


def rate_of_clients(clients: list[DenseClient], images: list[PIL.Image.Image], asked: dict) -> float:
    """Images a second where each client asks for one image after another."""

    def work(number: int) -> None:
        for image in images[number :: len(clients)]:
            clients[number].predict_dense(image, **asked)

    start = time.perf_counter()
    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(work, range(len(clients))))
    return len(images) / (time.perf_counter() - start)


def rate_in_turn(model: DenseMLLMForConditionalGeneration, images: list[PIL.Image.Image], asked: dict) -> float:
    """Images a second of a process that answers one request after another."""
    start = time.perf_counter()
    for image in images:
        model.predict_dense(image, **asked)
    return len(images) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, metavar="URL", help="a vLLM server with `--runner pooling`")
    parser.add_argument("--checkpoint", required=True, help="what it serves: folder or Hub name")
    parser.add_argument("--images", type=int, default=64, help="of each measurement")
    parser.add_argument("--edge", type=int, default=256, help="of the images, in pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="here; the server has its own --dtype",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of the process here")
    parser.add_argument("--quick", action="store_true", help="a few images, once")
    args = parser.parse_args()
    count, repeats = (16, 1) if args.quick else (args.images, args.repeats)
    model = DenseMLLMForConditionalGeneration.from_pretrained(args.checkpoint, dtype=getattr(torch, args.dtype))
    model = model.eval().to(args.device)
    asked = {"task": ("segmentation", "depth"), "labels": LABELS}
    clients = [DenseClient(args.server, args.checkpoint) for _ in range(max(CLIENTS))]
    first = make_images(2, args.edge, 0)
    pairs = zip(*(one.predict_dense(first, **asked, return_logits=True) for one in (clients[0], model)), strict=True)
    difference = max(float((own.logits[k] - other.logits[k]).abs().max()) for own, other in pairs for k in own.logits)
    rate_of_clients(clients, make_images(max(CLIENTS), args.edge, 1), asked)  # connections, label rows
    rates: dict[str, list[float]] = {f"served_{n}": [] for n in CLIENTS} | {"in_turn": []}
    for repeat in range(repeats):
        for place, n in enumerate(CLIENTS):
            images = make_images(count, args.edge, 100 + repeat * len(CLIENTS) + place)
            rates[f"served_{n}"].append(rate_of_clients(clients[:n], images, asked))
            rates["in_turn"].append(rate_in_turn(model, images, asked))
    result = {name: statistics.median(values) for name, values in rates.items()}
    result |= {f"served_{n}_over_in_turn": result[f"served_{n}"] / result["in_turn"] for n in CLIENTS}
    for name, value in result.items():
        print(f"{name:24} {value:.2f}")
    result = {name: round(value, 3) for name, value in result.items()}
    print(json.dumps({**result, "largest_difference": difference, "images": count, "edge": args.edge}))


if __name__ == "__main__":
    main()
