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
"""What a vLLM server gives, against transformers in this process: the second half of tools/check_vllm.sh.

    python tools/check_vllm.py maps URL CHECKPOINT      # of a server with `--runner pooling`
    python tools/check_vllm.py answers URL CHECKPOINT   # of one without
    python tools/check_vllm.py untie CHECKPOINT FOLDER  # a copy with an output embedding of its own

Ends with exit code 1 at the first difference. The server has to compute in float32.
"""

import argparse
import sys
from pathlib import Path

import PIL.Image
import torch

from densemllm import DenseMLLMForConditionalGeneration
from densemllm.client import DenseClient


TOLERANCE = 5e-5  # of logits: sums of float32 numbers in another order
QUESTIONS = (
    "Segment all objects in this image.",
    "How many chairs are there?",
    "Is there a table?",
    "What is on the floor?",
)


def scenes() -> list[PIL.Image.Image]:
    """A room in several sizes and forms."""
    with PIL.Image.open(Path(__file__).resolve().parents[1] / "examples" / "rooms" / "room.jpg") as file:
        room = file.convert("RGB")
    width, height = room.size
    return [
        room,
        room.crop((0, 0, width // 2, height)),
        room.resize((width // 2 + 5, height // 2 + 3)),
        room.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT),
        room.resize((640, 480)),
    ]


def largest_difference(own, expected) -> float:
    """Of two predictions' logits, of one task or of several."""
    pairs = [(own, expected)] if isinstance(own, torch.Tensor) else [(own[name], expected[name]) for name in expected]
    return max(float((one - other).abs().max()) for one, other in pairs)


def check_maps(client: DenseClient, model: DenseMLLMForConditionalGeneration) -> None:
    """Logits and maps of every task that needs no words."""
    labels = model.config.label_names or ["floor", "wall", "chair", "table"]
    asked = [
        {"task": ("segmentation", "depth"), "labels": labels},
        {"task": ("segmentation", "depth"), "labels": labels, "focal_length": 172.0},
        {"labels": ["floor", "wall", "chair"], "refine": "crf"},
        {"task": "depth", "scale": 1.5},
    ]
    if model.get_processor().referring_prompt is not None:
        asked.append({"task": "referring", "text": "the table"})
    images = scenes()
    for arguments in asked:
        expected = model.predict_dense(images, **arguments, return_logits=True)
        own = client.predict_dense(images, **arguments, return_logits=True)
        worst, agree, count = 0.0, 0, 0
        for one, other in zip(own, expected, strict=True):
            worst = max(worst, largest_difference(one.logits, other.logits))
            for name in ("segmentation", "mask", "predicted_depth"):
                if getattr(other, name) is not None:
                    agree += int(torch.isclose(getattr(one, name), getattr(other, name), atol=1e-4).sum())
                    count += getattr(other, name).numel()
        shown = {name: value for name, value in arguments.items() if name != "labels"}
        print(f"{shown}: logits differ by up to {worst:.1e}, {100 * agree / count:.4f} % of the pixels are equal")
        if worst > TOLERANCE or agree < 0.9999 * count:
            sys.exit("the maps differ")


def check_answers(client: DenseClient, model: DenseMLLMForConditionalGeneration) -> None:
    """Ids of prompts and answers, and the answers' texts."""
    images, equal = scenes(), 0
    processor = model.get_processor()
    for question in QUESTIONS:
        expected = model.query(images, question)
        own = client.query(images, question)
        for one, other in zip(own, expected, strict=True):
            if one != other:
                sys.exit(f"{question} is answered with {one!r} by the server, and with {other!r} here")
            equal += 1
        fields = {"max_completion_tokens": 256, "temperature": 0, "return_token_ids": True}
        image = images[0]
        _, sent, _ = client._as_sent(image, question, 0, True, None, None, processor)
        answer = client._chat(sent, "", question, fields)
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        )  # fmt: skip
        output = model.generate(**inputs, do_sample=False, max_new_tokens=256)[0]
        length = inputs["input_ids"].shape[1]
        if answer["prompt_token_ids"] != output[:length].tolist():
            sys.exit(f"the prompt of {question!r} has other ids on the server")
        if answer["choices"][0]["token_ids"] != output[length:].tolist():
            sys.exit(f"the answer to {question!r} has other ids on the server")
    print(f"{equal} of {equal} answers are equal; {len(QUESTIONS)} prompts and answers have the same ids")


def untie(checkpoint: str, folder: str) -> None:
    """A copy whose output embedding is not the input embedding: that, mixed a little."""
    model = DenseMLLMForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    processor = model.get_processor()
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
    weight = model.get_input_embeddings().weight.detach()
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    model.lm_head.weight = torch.nn.Parameter(weight + 0.1 * weight.std() * noise)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("maps", "answers", "untie"))
    parser.add_argument("source", metavar="URL or CHECKPOINT")
    parser.add_argument("target", metavar="CHECKPOINT or FOLDER")
    args = parser.parse_args()
    if args.command == "untie":
        untie(args.source, args.target)
        return
    model = DenseMLLMForConditionalGeneration.from_pretrained(args.target, dtype=torch.float32).eval()
    with DenseClient(args.source, args.target) as client:
        {"maps": check_maps, "answers": check_answers}[args.command](client, model)


if __name__ == "__main__":
    main()
