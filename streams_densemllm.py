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
"""Predictions of images that come one after another, without a list of them: the next ones are loaded meanwhile."""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from transformers.utils import logging

from .checks_densemllm import check_choice, check_count, is_flat, plain, shown
from .exif_densemllm import EXIF
from .image_encoding_densemllm import EncodedImage, check_processor, load_image
from .image_loading_densemllm import is_image_source


logger = logging.get_logger(__name__)


def takes_iterators(predict: Callable[..., Any]) -> Callable[..., Any]:
    """A method that predicts a list of images, made to take an iterator, too: it gives a generator then.

    Images are drawn and decoded by a thread, one batch ahead of the model. What the arguments lack is said at once;
    what is wrong with an image, when its turn comes.
    """

    @functools.wraps(predict)
    def call(self: Any, images: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(images, Iterator) or is_image_source(images):
            return predict(self, images, *args, **kwargs)
        given = inspect.signature(predict).bind(self, images, *args, **kwargs).arguments
        for name in ("text", "box", "focal_length", "target_sizes"):
            value = plain(given.get(name))
            if isinstance(value, list) and not (name in ("box", "target_sizes") and is_flat(value)):
                raise ValueError(f"`{name}` must be one value for all images of an iterator, got {shown(value)}")
        predict(self, [], *args, **kwargs)
        return _predict_ahead(self, images, functools.partial(predict, self), args, kwargs)

    return call


def _predict_ahead(model: Any, images: Iterator, predict: Callable[..., list], args: tuple, kwargs: dict) -> Iterator:
    processor = model._choose_processor(check_processor(kwargs.get("processor")))
    batch_size = check_count("batch_size", kwargs.get("batch_size", 8))
    skips = check_choice("on_error", kwargs.get("on_error", "raise"), ("raise", "skip")) == "skip"
    numbers = itertools.count()
    # Where a file says its focal length, it has to come undecoded.
    is_loaded = not (isinstance(kwargs.get("focal_length"), str) and kwargs["focal_length"] == EXIF)
    names = set(processor.image_processor.valid_kwargs.__annotations__)
    options = {name: value for name, value in kwargs.items() if name in names and value is not None}

    def load_part() -> list:
        return [load(image) for image in itertools.islice(images, batch_size)]

    def load(image: Any) -> Any:
        number = next(numbers)
        if not is_loaded or isinstance(image, EncodedImage):
            return image
        try:
            return load_image(image, processor.image_processor, f"`images[{number}]`", **options)
        except (TypeError, ValueError) as error:
            if not skips:
                raise
            logger.warning(f"skipped: {error}")
            return None

    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = pool.submit(load_part)
        while part := ahead.result():
            ahead = pool.submit(load_part)
            found = iter(predict([image for image in part if image is not None], *args, **kwargs))
            for image in part:
                yield None if image is None else next(found)


__all__ = ["takes_iterators"]
