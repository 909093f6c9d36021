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
"""What is looked at and kept when a model is loaded: whether its weights are all there, and where its processor is."""

import math
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


LISTED = 20  # names of each kind in a message
# Arguments of `from_pretrained` that say which files are meant.
FILE_OPTIONS = ("cache_dir", "local_files_only", "proxies", "revision", "subfolder", "token")


@dataclass
class CheckpointFiles:
    """Where a model was loaded from, so that what belongs to it is found there later on.

    Attributes:
        path: an absolute folder, or a name on the Hub.
        options: of [`FILE_OPTIONS`], those that the model was loaded with. A token is never written into a pickle.
    """

    path: str
    options: dict = field(default_factory=dict, repr=False)

    @classmethod
    def of_call(cls, path: str | os.PathLike[str], options: dict) -> "CheckpointFiles":
        """Those of a call of `from_pretrained`."""
        path = os.fspath(path)
        if os.path.isdir(path):
            path = os.path.abspath(path)
        return cls(path, {name: options[name] for name in FILE_OPTIONS if options.get(name) is not None})

    def __deepcopy__(self, memo: dict[int, Any]) -> "CheckpointFiles":
        return self  # nothing changes it; with its token, unlike a pickle

    def __getstate__(self) -> dict:
        options = {name: value for name, value in self.options.items() if name not in ("token", "proxies")}
        return {"path": self.path, "options": options}


def computes_bfloat16(device: torch.device | str) -> bool:
    """Whether bfloat16 takes no longer there than float32.

    A CPU whose widest instructions are AVX2, as most laptops' are, emulates it: `benchmarks/bfloat16_on_cpu.py`.
    """
    return torch.device(device).type != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX2"


def choose_dtype(dtype: str, device: torch.device | str) -> str:
    """The type of weights for `from_pretrained`: `"auto"` becomes float32 where a CPU would emulate another."""
    return "float32" if dtype == "auto" and not computes_bfloat16(device) else dtype


def non_finite_weights(model: nn.Module) -> list[str]:
    """Names of the parameters that have a NaN or an infinite value.

    Weights that aren't in memory (offloaded, sharded away) or that are stored quantised are not looked at.
    """
    names = []
    for name, weight in model.named_parameters():
        is_plain = type(weight) is nn.Parameter and weight.is_floating_point() and weight.itemsize > 1
        if not is_plain or weight.is_meta or not weight.numel():
            continue
        # The ends are NaN where any value is, and no memory is taken.
        if not all(math.isfinite(float(end)) for end in torch.aminmax(weight.detach())):
            names.append(name)
    return names


def check_loaded_weights(
    model: nn.Module, loading_info: dict, source: object, refused: tuple[str, ...], way_out: str | None = None
) -> dict:
    """Refuse a model that doesn't have the weights of its checkpoint, all of them, as finite numbers.

    Args:
        model: as `from_pretrained` gives it.
        loading_info: what `from_pretrained(..., output_loading_info=True)` gives beside it.
        source: of the weights, for the message.
        refused: any of `"missing"`, `"unexpected"`, `"non_finite"` and `"mismatched"` (of another shape).
        way_out: what a caller can do, for the message.

    Returns:
        `loading_info` with `non_finite_keys`, a set as the others are.

    Raises:
        ValueError: with the names of the weights that are refused.
    """
    loading_info = {**loading_info, "non_finite_keys": set(non_finite_weights(model))}
    faults = []
    for kind in refused:
        names = loading_info[f"{kind}_keys"]
        if kind == "mismatched":
            names = [f"{name} ({list(given)}, the model has {list(own)})" for name, given, own in names]
        if names:
            rest = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            faults.append(f"{len(names)} {kind.replace('_', '-')}: {', '.join(sorted(names)[:LISTED])}{rest}")
    if faults:
        raise ValueError(
            f"the weights of {source} are not those of this {type(model).__name__}: {'; '.join(faults)}"
            + (f"; {way_out}" if way_out else "")
        )
    return loading_info
