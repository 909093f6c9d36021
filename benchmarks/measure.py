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
"""Time and peak extra memory of a call, on the CPU and on CUDA."""

import statistics
import time
from collections.abc import Callable

import torch

from densemllm.loading_densemllm import computes_bfloat16


def seconds(call: Callable, repeats: int = 5, warmup: int = 1) -> float:
    """Median wall-clock seconds of `call`, after `warmup` calls that don't count."""
    times = []
    for index in range(warmup + repeats):
        _synchronize()
        start = time.perf_counter()
        call()
        _synchronize()
        if index >= warmup:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def paired_seconds(*calls: Callable, repeats: int = 5) -> list[float]:
    """Median seconds of each call, taken in turn, so that a machine that slows down does so for all of them."""
    times = [[] for _ in calls]
    for index in range(repeats + 1):
        for call, own in zip(calls, times, strict=True):
            own.append(seconds(call, repeats=1, warmup=1 if index == 0 else 0))
    return [statistics.median(own[1:]) for own in times]


def fast_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16; float32 on a CPU that emulates it, which would be what any benchmark measured."""
    return torch.bfloat16 if computes_bfloat16(device) else torch.float32


def autocast(device: torch.device | str) -> torch.autocast:
    """Products in [`fast_dtype`]."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=computes_bfloat16(device))


def relative_error(own: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected. Two ways that select the same number of highest scores
    break a near-tie either way: a few elements then differ by all that they are worth, and the norm hardly does."""
    return float((own - expected).norm() / expected.norm().clamp(min=torch.finfo(expected.dtype).tiny))


def extra_bytes(call: Callable) -> int:
    """Peak bytes that torch's allocator holds during `call` beyond what it held before."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    held = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
