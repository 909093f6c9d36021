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
"""Loading the model that a command asks, without the noise of the libraries below."""

import argparse
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from huggingface_hub.utils import enable_progress_bars

from .. import register
from ..client import DenseClient
from ..files import reading
from ..loading_densemllm import choose_dtype
from ..modeling_densemllm import DenseMLLMForConditionalGeneration


@contextmanager
def quiet() -> Iterator[None]:
    """Leave stderr to what is said of the user's own files: no bar of loading weights, no hints of libraries."""
    logging = transformers.utils.logging
    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    enable_progress_bars()  # of downloads, which take minutes
    try:
        with warnings.catch_warnings():
            for module in ("torch", "transformers", "huggingface_hub"):
                warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
            yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()


def check_device(device: str | None) -> str:
    """The device to run on, which can be used; cuda where there is one and nobody says otherwise.

    Raises:
        ValueError: it can't be used.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device).item()  # of a device without memory, too
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} can't be used here: {error}") from error
    return device


def load_model(args: argparse.Namespace, **client_options: Any) -> "DenseMLLMForConditionalGeneration | DenseClient":
    """The model on its device, or the server that has it.

    Args:
        client_options: of [`DenseClient`], such as `timeout`.

    Raises:
        ValueError: it can't be loaded, or the device can't be used.
    """
    register()
    if args.server is not None:
        with reading(f"--model {args.model}"):
            return DenseClient(
                args.server, args.model, args.chat_server, api_key=os.environ.get("VLLM_API_KEY") or None,
                **client_options,
            )  # fmt: skip
    device = check_device(args.device)
    with reading(f"--model {args.model}"):
        model = DenseMLLMForConditionalGeneration.from_pretrained(args.model, dtype=choose_dtype(args.dtype, device))
        model.get_processor()
    return model.eval().to(device)
