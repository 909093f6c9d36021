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
r"""Does a converted checkpoint compute what the original code does? For owners of the original weights.

    # 1. here
    python convert_youtu_vl_to_densemllm.py tencent/Youtu-VL-4B-Instruct youtu-vl
    # 2. where the original remote code runs (transformers 4.57.1 and its other requirements)
    python tools/check_parity.py record tencent/Youtu-VL-4B-Instruct photo.jpg reference.safetensors
    # 3. here
    python tools/check_parity.py compare youtu-vl reference.safetensors

`record` needs nothing of this package. It runs the original model once on a picture and keeps its inputs, the outputs
of the vision tower, of the projector and of the language model's last norm. `compare` feeds the same inputs to the
converted model and prints how far each output is off. It ends with exit code 1 if one is further off than
`--tolerance`.
"""

import argparse
import os
import sys

import torch
from safetensors.torch import load_file, save_file


# What the original calls its parts is known from the names of its weights.
ORIGINAL_PARTS = {
    "vision_tower": "siglip2.vision_model.post_layernorm",
    "projector": "merger.mlp.2",
    "hidden_states": "model.norm",
}


@torch.no_grad()
def record(model: torch.nn.Module, inputs: dict) -> dict[str, torch.Tensor]:
    """Run a model with the original's names once, and keep its inputs and its parts' outputs."""
    kept = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda module, args, output, name=name: kept.__setitem__(f"output.{name}", output)
        )
        for name, path in ORIGINAL_PARTS.items()
    ]
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: value.detach().cpu().contiguous() for name, value in kept.items()}


@torch.no_grad()
def compare(model: torch.nn.Module, recorded: dict[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """How far the converted model's outputs are from the recorded ones: the norm of the difference over the norm, and
    the largest difference."""
    features = recorded["pixel_values"].flatten(0, -2).to(model.device)
    grid = recorded["image_grid_thw"].to(model.device)
    tower = model.model.vision_tower(features, grid).last_hidden_state
    tokens = model.model.multi_modal_projector(tower)
    own = {
        "vision_tower": tower,
        "projector": tokens,
        "hidden_states": model.model(
            input_ids=recorded["input_ids"].to(model.device), pixel_values=features, image_grid_thw=grid
        ).last_hidden_state,
    }
    rows = {}
    for name, value in own.items():
        value, expected = value.float().cpu(), recorded[f"output.{name}"].float()
        if value.numel() != expected.numel():
            raise ValueError(f"{name} is {tuple(value.shape)} here, but {tuple(expected.shape)} in the recording")
        difference = value.reshape(expected.shape) - expected
        rows[name] = {
            "relative": float(difference.norm() / expected.norm()), "largest": float(difference.abs().max())
        }  # fmt: skip
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run the original code")
    recording.add_argument("model")
    recording.add_argument("image")
    recording.add_argument("out")
    comparing = commands.add_parser("compare", help="compare the converted checkpoint")
    comparing.add_argument("model")
    comparing.add_argument("reference")
    comparing.add_argument("--tolerance", type=float, default=0.02, help="relative; 0.02 is what bfloat16 leaves open")
    comparing.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args(arguments)
    if args.command == "record":
        if os.path.lexists(args.out):  # the picture itself, too
            recording.error(f"{args.out} is there already; give another name")
        from transformers import AutoModelForCausalLM, AutoProcessor

        processor = AutoProcessor.from_pretrained(args.model, trust_remote_code=True)
        model = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True, torch_dtype="auto").eval()
        content = [
            {"type": "image", "image": args.image},
            {"type": "text", "text": "Segment all objects in this image."},
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
        kept = record(model, dict(inputs))
        save_file(kept, args.out)
        print(f"{args.out}: {', '.join(sorted(kept))}")
        return 0
    from densemllm import DenseMLLMForConditionalGeneration

    model = DenseMLLMForConditionalGeneration.from_pretrained(args.model, dtype=args.dtype).eval()
    rows = compare(model, load_file(args.reference))
    print(f"{'':16}{'relative':>12}{'largest':>12}")
    for name, row in rows.items():
        print(f"{name:16}{row['relative']:12.2e}{row['largest']:12.2e}")
    agree = all(row["relative"] <= args.tolerance for row in rows.values())
    print("they agree" if agree else f"they differ by more than {args.tolerance}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
