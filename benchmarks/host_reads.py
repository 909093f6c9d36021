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
r"""How often the host waits for the device in a training step and in `predict_dense`.

    python benchmarks/host_reads.py [--quick]

Counted is every operation that stops the host until the device has come that far:

- numbers that are read: `.item()`, `int()`, `bool()` and the like (`aten::_local_scalar_dense`, `aten::equal`);
- results whose size is a value: `nonzero`, an index that is a mask, `masked_select`, `unique`, `repeat_interleave`
  without `output_size`, and `bincount`, which looks for its largest value;
- tensors that are copied to the CPU: `.cpu()`, `.tolist()`. The maps that `predict_dense` returns are among them.

Copies to the device are not counted. With CUDA it is tensors on the GPU that are looked at. Without, it is those of a
stand-in: tensors that compute on the CPU and say of themselves that they are on another device. An operation on both
fails, as it would there.

The model of the rooms reads views of its sample. Prints each wait with its place in the code. Ends with one line of
JSON: `host_reads_forward` and `host_reads_backward` of a collated batch with classes, depth and expressions, and
`host_reads_predict` of 4 images and two tasks.
"""

import argparse
import json
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor
from densemllm.formats.folders import load_samples
from densemllm.formats.labels import load_id2label
from densemllm.training.collator import DenseCollator
from densemllm.training.datasets import DenseDataset, DenseSource


COLUMNS = ("image", "segmentation", "depth", "focal_length", "mask", "expression")
# Of all types of device that torch knows, the one whose backward pass runs in the caller's thread, and that needs
# no driver. Nothing of the lazy backend itself is used.
STAND_IN = torch.device("lazy")
READS = {"_local_scalar_dense", "equal"}
SIZES = {"nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount"}
COPIES = {"_to_copy", "copy_", "copy"}


class HostReads(TorchDispatchMode):
    """Counts what the host waits for as long as it lasts; see the module.

    Attributes:
        sites: (kind, operation, place in the code) of each, in order; kinds are `read`, `size` and `copy`.
    """

    def __init__(self):
        super().__init__()
        self.sites: list[tuple[str, str, str]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        kind = _kind(func, args, kwargs)
        if kind is not None:
            self.sites.append((kind, func.overloadpacket.__name__, _site()))
        return _compute(func, args, kwargs)

    def __len__(self) -> int:
        return len(self.sites)


class _TensorsOfNumbers(TorchFunctionMode):
    """`torch.tensor` and its like in two steps, the second of which is a copy: made on a device in one, a tensor is
    not seen by a `TorchDispatchMode`."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor):
            device = kwargs.pop("device", None)
            made = func(*args, **kwargs)
            return made if device is None else made.to(device)
        return func(*args, **kwargs)


class StandIn(torch.Tensor):
    """A tensor on the CPU that says it is on `STAND_IN`, for use within a [`HostReads`]."""

    own: torch.Tensor

    @staticmethod
    def __new__(cls, own: torch.Tensor):
        layout = {"strides": own.stride(), "storage_offset": own.storage_offset()}
        tensor = torch.Tensor._make_wrapper_subclass(cls, own.shape, dtype=own.dtype, device=STAND_IN, **layout)
        tensor.own = own
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})

    @property
    def data(self) -> torch.Tensor:
        return self.own  # which is a plain tensor, as that of a weight on a device is

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"StandIn({self.own})"


def count_host_reads(call: Callable[[], Any]) -> HostReads:
    """What `call` made the host wait for."""
    is_enabled = torch.is_autocast_enabled

    def is_autocast_enabled(
        device_type: str | None = None,
    ) -> bool:  # torch's own refuses types that it has no table for
        return device_type != STAND_IN.type and (is_enabled() if device_type is None else is_enabled(device_type))

    with (
        HostReads() as reads,
        _TensorsOfNumbers(),
        mock.patch.object(torch, "is_autocast_enabled", is_autocast_enabled),
    ):
        call()
    return reads


def counting_device() -> torch.device:
    """Where tensors have to be for [`count_host_reads`] to see their reads."""
    return torch.device("cuda") if torch.cuda.is_available() else STAND_IN


def to_device(value: Any, device: torch.device) -> Any:
    """A model, a tensor, or a dict of them on `device`, also on the stand-in; anything else stays."""
    if isinstance(value, dict):
        return {name: to_device(entry, device) for name, entry in value.items()}
    if not hasattr(value, "to"):
        return value
    with HostReads():  # which knows the stand-in
        value = value.to(device)
        if hasattr(value, "tie_weights"):  # each has become a parameter of its own
            value.tie_weights()
    return value


def _is_away(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type not in ("cpu", "meta")


def _kind(func, args: tuple, kwargs: dict) -> str | None:
    name = func.overloadpacket.__name__
    tensors = [value for value in tree_flatten((args, kwargs))[0] if _is_away(value)]
    if name in READS and tensors:
        return "read"
    if name in SIZES and tensors:
        return "size"
    if name in ("index", "index_put", "index_put_") and tensors:
        masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
        # A mask and one number are filled in without a look at how many there are.
        is_fill = name != "index" and args[2].numel() == 1 and not any(args[3:])
        return "size" if masks and not is_fill else None
    if name == "repeat_interleave" and tensors and kwargs.get("output_size") is None:
        return "size"
    if name == "_to_copy" and tensors and torch.device(kwargs.get("device") or args[0].device).type == "cpu":
        return "copy"
    if name in ("copy_", "copy") and _is_away(args[1]) and not _is_away(args[0]):
        return "copy"
    return None


def _site() -> str:
    """The last place in this package, or else anywhere, but in torch and here."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
    frames = [frame for frame in frames if f"{Path(torch.__file__).parent}" not in frame.filename]
    if not frames:
        return "torch"  # the backward pass of one of its own operations
    frame = frames[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"


def _compute(func, args: tuple, kwargs: dict) -> Any:
    """An operation of which some tensors, or the device that is asked for, may be the stand-in's."""
    flat = tree_flatten((args, kwargs))[0]
    is_away = any(isinstance(value, StandIn) for value in flat)
    asked = kwargs.get("device")
    if asked is not None:
        is_away = torch.device(asked).type == STAND_IN.type
    elif is_away:
        near = [value for value in flat if isinstance(value, torch.Tensor) and not isinstance(value, StandIn)]
        name = func.overloadpacket.__name__
        if any(value.ndim for value in near) and name not in {*COPIES, "index", "index_put_", "index_put"}:
            raise RuntimeError(f"aten::{name} of tensors on two devices")
    with _disable_current_modes():
        result = func(*tree_map(_near, args), **tree_map(_near, kwargs))
    if not is_away or (func.overloadpacket.__name__ == "copy_" and not isinstance(args[0], StandIn)):
        return args[0] if func.overloadpacket.__name__ == "copy_" else result
    result = tree_map(lambda value: StandIn(value) if isinstance(value, torch.Tensor) else value, result)
    return return_and_correct_aliasing(func, args, kwargs, result)


def _near(value: Any) -> Any:
    if isinstance(value, StandIn):
        return value.own
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == STAND_IN.type else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/densemllm-rooms")
    parser.add_argument("--data", default="examples/rooms/sample", help="folder that render.py wrote")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="two views")
    args = parser.parse_args()
    device = counting_device()
    processor = DenseMLLMProcessor.from_pretrained(args.model)
    model = to_device(DenseMLLMForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32), device)
    id2label = load_id2label(str(Path(args.data) / "id2label.json"))
    data = DenseDataset(DenseSource(load_samples(args.data, "train"), None, id2label, 0.002, columns=COLUMNS))
    samples = [data[place] for place in range(2 if args.quick else args.batch_size)]
    batch = to_device(DenseCollator(processor, candidates="labels")(samples), device)
    images = [samples[place % len(samples)]["image"] for place in range(4)]
    losses = []

    def predict() -> None:
        model.predict_dense(images, ("segmentation", "depth"), labels=id2label, processor=processor)

    model.train()
    reads = {"forward": count_host_reads(lambda: losses.append(model(**batch).loss))}
    reads["backward"] = count_host_reads(lambda: losses[0].backward())
    model.eval()
    reads["predict"] = count_host_reads(predict)
    for name, found in reads.items():
        print(f"{name}: {len(found)}")
        for (kind, operation, site), count in Counter(found.sites).most_common():
            print(f"  {count} x {kind} {operation:20} {site}")
    print("\n" + json.dumps({f"host_reads_{name}": len(found) for name, found in reads.items()}))


if __name__ == "__main__":
    main()
