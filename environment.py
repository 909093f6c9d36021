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
"""What a bug report needs to know of the machine: `densemllm env`."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch
from transformers.utils import is_flash_attn_2_available, is_torch_flex_attn_available

from . import __version__


PACKAGES = (
    "torch", "transformers", "tokenizers", "huggingface-hub", "safetensors", "accelerate", "datasets", "evaluate",
    "peft", "trl", "bitsandbytes", "numpy", "pillow", "torchvision",
)  # fmt: skip


def describe_environment() -> dict[str, str]:
    """Versions, devices and attention implementations, each as a line of text by its name."""
    lines = {
        "densemllm": __version__,
        "Python": platform.python_version(),
        "platform": platform.platform(),
    }
    for package in PACKAGES:
        try:
            lines[package] = version(package)
        except PackageNotFoundError:
            lines[package] = "not installed"
    return lines | {"device": _devices(), "attention": ", ".join(_attention_implementations())}


def _devices() -> str:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return f"cuda {torch.version.cuda or torch.version.hip}: {', '.join(names)}"
    kind = "mps" if torch.backends.mps.is_available() else "cpu"
    return f"{kind}, {torch.get_num_threads()} threads"


def _attention_implementations() -> list[str]:
    found = {"eager": True, "sdpa": True, "flash_attention_2": is_flash_attn_2_available(),
             "flex_attention": is_torch_flex_attn_available()}  # fmt: skip
    return [name for name, available in found.items() if available]
