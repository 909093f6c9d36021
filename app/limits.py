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
"""What the page holds a request to: its time, and the sizes of what is uploaded and kept."""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn


if TYPE_CHECKING:
    from densemllm.client import DenseClient


FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_UPLOAD_BYTES = 20 * 2**20
MAX_UPLOAD_PIXELS = 50_000_000  # decoded, it has 150 MB
MAX_PIXELS = 2**20  # of what the model reads
MAX_EDGE = 4096  # likewise
MAX_LABELS, MAX_CHARACTERS = 256, 10_000
MAX_TURNS, MAX_NEW_TOKENS = 20, 256  # of a chat, and of an answer
FOCAL_LENGTHS = (0.05, 100)  # of the image's longer edge; 170 degrees to half a degree
SECONDS = 60.0  # that a request may take
MAX_QUEUE = 32  # requests that wait
MAX_ENCODED = 4  # images that stay as the model has read them, of all visitors
MAX_READING = 2**18  # pixels of what the browser gets to read places from
MAX_POINTS = 300_000  # that the browser draws
MAX_FOLDERS = 8  # of files that the page has not shown yet
FILE_SECONDS = 30 * 60  # after which uploads and what was made of them are removed


class PageError(ValueError):
    """What a visitor is told, in one sentence."""


class TimeLimit:
    """Ends a request that takes too long, between two layers of the model: no thread can be ended from outside.

    Args:
        model: whose forward passes are watched. That of a server has none here: its client waits no longer than its
            own `timeout` for each answer.
        seconds: that a request may take.
    """

    def __init__(self, model: "nn.Module | DenseClient", seconds: float):
        self.seconds = seconds
        self._own = threading.local()
        for module in model.modules() if isinstance(model, nn.Module) else ():
            module.register_forward_pre_hook(self._check)

    def _check(self, *_: object) -> None:
        if time.monotonic() > getattr(self._own, "end", math.inf):
            raise TimeoutError

    @contextmanager
    def request(self) -> Iterator[None]:
        """What is done in the block, by this thread, is one request; `TimeoutError` where it takes too long."""
        self._own.end = time.monotonic() + self.seconds
        try:
            yield
        finally:
            self._own.end = math.inf
