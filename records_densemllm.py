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
"""Records that go from process to process, also from a checkpoint's own code to where that is not loaded."""

import dataclasses
import importlib
import operator
from types import SimpleNamespace
from typing import Any, Self, SupportsIndex

import torch
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME


class _Later:
    """What a call gives, made when a pickle is read and not when it is written."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class Record:
    """Base of a dataclass that any process can receive.

    A pickle names the class, and reading it imports the module. The module of a checkpoint's own code
    (`trust_remote_code=True`) can't be imported where no model has been loaded, and a pool of processes hangs on a
    result that it can't read. So such a pickle has a way out: where the class is not there, the fields arrive as a
    `types.SimpleNamespace`, and [`from_dict`] takes it once the class is there.
    """

    _left_out = ()  # fields that `to_dict` leaves out

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as plain values: tensors are on the CPU."""
        values = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in self._left_out:
                values[field.name] = value.detach().cpu() if isinstance(value, torch.Tensor) else value
        return values

    @classmethod
    def from_dict(cls, values: "dict[str, Any] | SimpleNamespace") -> Self:
        """The record of which [`to_dict`], or a pickle read without this class, gave the fields.

        Raises:
            ValueError: fields that are unknown, or missing.
        """
        values = dict(values) if isinstance(values, dict) else dict(vars(values))
        fields = dataclasses.fields(cls)
        unknown = sorted(set(values) - {field.name for field in fields})
        missing = [field.name for field in fields if field.default is dataclasses.MISSING and field.name not in values]
        if unknown or missing:
            raise ValueError(f"`values` must be the fields of a {cls.__name__}: unknown {unknown}, missing {missing}")
        return cls(**values)

    def __copy__(self) -> Self:
        return dataclasses.replace(self)

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        own = type(self)
        if own.__module__.split(".")[0] != TRANSFORMERS_DYNAMIC_MODULE_NAME:
            return super().__reduce_ex__(protocol)
        # An empty getattr(sys.modules.get(module), name, SimpleNamespace), and then the fields.
        loaded = _Later(getattr, _Later(importlib.import_module, "sys"), "modules")
        module = _Later(dict.get, loaded, own.__module__)
        found = _Later(getattr, module, own.__qualname__, SimpleNamespace)
        return operator.call, (_Later(getattr, found, "__new__"), found), self.__getstate__()
