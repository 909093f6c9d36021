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
"""Checks of what a caller gives: each returns the value in plain Python, or raises one sentence with the argument's
name, what is accepted, and what was given. A `TypeError` is for another kind of thing, a `ValueError` for a value that
can't be used."""

import math
import reprlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch


# What users give. A sequence is a list or a tuple: type checkers take `list` for one of exactly its entries' type.
Box = Sequence[float] | np.ndarray | torch.Tensor  # (x0, y0, x1, y1)
Sizes = Sequence[int] | Sequence[Sequence[int]] | np.ndarray | torch.Tensor  # (height, width), one or one an image
FocalLengths = float | str | Sequence[float | str | None] | np.ndarray | torch.Tensor  # or "exif"; one, or one each

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60


def shown(value: object) -> str:
    """What was given, in a few words: the type and shape of an array, a short `repr` of anything else."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return f"{type(value).__name__} of {value.dtype} and shape {tuple(value.shape)}"
    try:
        return _REPR.repr(value)
    except Exception:  # a number of thousands of digits, or the `__repr__` of a stranger
        return f"a {type(value).__name__}"


def plain(value: object) -> Any:
    """Arrays, tensors and their scalars, alone or in a list or tuple, as numbers and lists."""
    if isinstance(value, (list, tuple)):
        return [_from_array(entry) for entry in value]
    return _from_array(value)


def _from_array(value):
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, type) or not hasattr(value, "tolist"):
        return value
    try:
        return value.tolist()
    except (TypeError, RuntimeError):  # a tensor that holds no numbers here: on the meta device, sparse
        return value


def check_flag(name: str, value: object) -> bool:
    """`True` or `False`, also of numpy or torch."""
    flag = _from_array(value)
    if not isinstance(flag, bool):
        raise TypeError(f"`{name}` must be True or False, got {shown(value)}")
    return flag


def check_number(name: str, value: object, accepted: str, is_accepted: Callable[[float], bool]) -> float:
    """A number, also of numpy or torch, for which `is_accepted` holds; `accepted` says the same in words."""
    number = _number(value)
    if number is None:
        raise TypeError(f"`{name}` must be {accepted}, got {shown(value)}")
    if not is_accepted(number):
        raise ValueError(f"`{name}` must be {accepted}, got {shown(value)}")
    return number


def check_positive(name: str, value: object, unit: str = "") -> float:
    """A finite number above 0; `unit` is read after it in the message, such as `" of pixels"`."""
    return check_number(name, value, f"a finite number{unit} greater than 0", lambda x: 0 < x < math.inf)


def check_share(name: str, value: object) -> float:
    """A number in [0, 1]."""
    return check_number(name, value, "a number in [0, 1]", lambda x: 0 <= x <= 1)


def check_count(name: str, value: object, least: int = 1) -> int:
    """A whole number of at least `least`."""
    accepted = f"a whole number of at least {least}"
    return int(check_number(name, value, accepted, lambda x: x >= least and float(x).is_integer()))


def check_text(name: str, value: object, accepted: str = "a text") -> str:
    """A string that can be written as Unicode: one with a lone surrogate can't, and no tokenizer takes it."""
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be {accepted}, got {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"`{name}` must be {accepted} without lone surrogates, got {shown(value)}") from None
    return value


def check_choice(name: str, value: object, choices: Iterable[str]) -> str:
    """One of the strings `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {sorted(choices)}, got {shown(value)}")
    return value


def check_corners(name: str, value: object) -> tuple[float, float, float, float]:
    """A box: four finite numbers."""
    corners = plain(value)
    accepted = f"`{name}` must be (x0, y0, x1, y1) in pixels, got {shown(value)}"
    numbers = [_number(corner) for corner in corners] if isinstance(corners, list) else [None]
    if None in numbers:
        raise TypeError(accepted)
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise ValueError(accepted)
    return tuple(numbers)


def check_target_sizes(target_sizes: Sizes, count: int, max_pixels: int = 178_956_970) -> list[tuple[int, int]]:
    """Sizes of `count` maps as pairs (height, width), from one pair for all of them or a pair for each.

    Raises:
        TypeError: not made of pairs of numbers.
        ValueError: another number of pairs, an edge that is not a whole number of at least 1, or a map of more than
            `max_pixels` pixels.
    """
    accepted = f"`target_sizes` must be one pair (height, width) or {count} of them, in whole pixels of at least 1"
    sizes = plain(target_sizes)
    if not isinstance(sizes, list):
        raise TypeError(f"{accepted}, got {shown(target_sizes)}")
    if sizes and not any(isinstance(size, list) for size in sizes):
        sizes = [sizes] * count if count else [sizes]
    edges = [_number(edge) for size in sizes for edge in (size if isinstance(size, list) else [size, None])]
    if None in edges:
        raise TypeError(f"{accepted}, got {shown(target_sizes)}")
    if any(len(size) != 2 for size in sizes) or not all(1 <= edge < 2**31 and edge == int(edge) for edge in edges):
        raise ValueError(f"{accepted}, got {shown(target_sizes)}")
    sizes = [(int(height), int(width)) for height, width in sizes] if count else []
    if len(sizes) != count:
        raise ValueError(f"{accepted}, got {shown(target_sizes)}")
    for height, width in sizes:
        if height * width > max_pixels:
            raise ValueError(
                f"`target_sizes` has {height}x{width}, which is {height * width} pixels; accepted are at most "
                f"{max_pixels} an image"
            )
    return sizes


def one_an_image(name: str, value: object, count: int, check: Callable, is_one: Callable | None = None) -> list:
    """`value` for each of `count` images: the same for all, or a list with one for each.

    Args:
        check: gives an entry in its plain form, or raises; `None` is left as it is, for what is not known.
        is_one: tells one value that is a list itself from a list of them.

    Raises:
        ValueError: a list of another length.
    """
    values = plain(value)
    if not isinstance(values, list) or (is_one is not None and is_one(values)):
        return [None if value is None else check(value)] * count
    if len(values) != count:
        raise ValueError(f"`{name}` must be one, or one an image, got {len(values)} for {count} images")
    return [None if entry is None else check(entry) for entry in values]


def is_flat(values: list) -> bool:
    """Whether a list is one box or one size, and not a list of them with one, or `None`, for each image."""
    return bool(values) and not any(entry is None or isinstance(entry, list) for entry in map(_from_array, values))


def _number(value) -> float | None:
    """A real number in plain Python; `None` for anything else, infinite where the integer is larger than 64 bits."""
    value = _from_array(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, int) and abs(value) >= 2**63:
        return math.inf if value > 0 else -math.inf
    return value
