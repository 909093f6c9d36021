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
"""DenseMLLM as a model of lmms-eval: masks for expressions, words for questions."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm

from densemllm import DenseMLLMForConditionalGeneration, DensePrediction
from densemllm.crops_densemllm import mask_corners


# Of the `generation_kwargs` of a task, which are for many models, what `query` is told as it stands.
GENERATION = ("max_new_tokens", "num_beams", "do_sample", "temperature", "top_p", "top_k")


@dataclass
class _Request:
    """A request of lmms-eval: its place in the list, the image and what tells it from others, and what is asked.

    Attributes:
        key: equal for equal images of one focal length.
        is_referring: whether `text` names an object whose mask is wanted; else it is a question.
        options: the task's `generation_kwargs`.
    """

    place: int
    image: PIL.Image.Image
    key: tuple
    text: str
    is_referring: bool
    focal_length: float | None
    options: dict[str, Any]


class DenseMLLM(lmms):
    """A DenseMLLM that answers as the model `sam3` of lmms-eval does where a mask is wanted, and in words elsewhere.

    A mask is wanted where the text of a request is the `expression` of its document. The answer is then a JSON text

        {"masks": [{"size": [H, W], "counts": "..."}],
         "boxes": [{"x_min": 0.1, "y_min": 0.2, "x_max": 0.3, "y_max": 0.4}],
         "scores": [0.9]}

    with the mask in COCO's run lengths, the box around it in shares of the image's edges, and the mean foreground
    score of its pixels in [0, 1]. There is one mask an expression, and all three lists are empty where none is found.

    Args:
        pretrained: folder or Hub name of the checkpoint.
        device: where it runs, as torch names it; a GPU where there is one, and the process's own in a distributed run.
        dtype: of the weights, as for `from_pretrained`.
        batch_size: images that are read together. Each is read once, however many requests in a row are about it.
        attn_implementation: as for `from_pretrained`.
        focal_length: of all images in pixels, as for `predict_dense`; a document's own `focal_length` goes before it.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        attn_implementation: str | None = None,
        focal_length: float | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"`batch_size` must be an integer of at least 1, got {batch_size!r}")
        self.batch_size = int(batch_size)
        self.focal_length = focal_length
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        alone = self._world_size == 1
        self.device = torch.device(device) if device is not None and alone else self.accelerator.device
        given = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        model = DenseMLLMForConditionalGeneration.from_pretrained(pretrained, dtype=dtype, **given)
        self._model = model.to(self.device).eval()

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """A JSON text with a mask, or words, for each request; see the class.

        Raises:
            ValueError: a request that is not about one image.
        """
        answers = [""] * len(requests)
        with tqdm(total=len(requests), desc="densemllm", disable=self.rank != 0) as progress:
            for batch in self._batches(requests):
                for request, answer in zip(batch, self._answer(batch), strict=True):
                    answers[request.place] = answer
                progress.update(len(batch))
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not there: raises a `NotImplementedError`."""
        raise NotImplementedError("densemllm answers `generate_until` only; it has no `loglikelihood`")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not there: raises a `NotImplementedError`."""
        raise NotImplementedError("densemllm answers `generate_until` only; it has no `generate_until_multi_round`")

    def _batches(self, requests: list[Instance]) -> Iterator[list[_Request]]:
        """Stretches of the requests with up to `batch_size` different images; only these are in memory."""
        batch: list[_Request] = []
        for place, instance in enumerate(requests):
            request = self._read(place, instance)
            keys = {one.key for one in batch}
            if request.key not in keys and len(keys) == self.batch_size:
                yield batch
                batch = []
            batch.append(request)
        if batch:
            yield batch

    def _read(self, place: int, instance: Instance) -> _Request:
        text, options, doc_to_visual, doc_id, task, split = instance.args
        doc = self.task_dict[task][split][doc_id]
        images = doc_to_visual(doc) if doc_to_visual is not None else None
        images = [images] if isinstance(images, (str, PIL.Image.Image)) else images or []
        if len(images) != 1 or not isinstance(images[0], (str, PIL.Image.Image)):
            kinds = [type(image).__name__ for image in images]
            raise ValueError(
                f"densemllm answers about one image, but document {doc_id} of the task {task!r} has {kinds or 'none'}"
            )
        image = self._model.get_processor().image_processor.load_picture(images[0])
        focal_length = doc.get("focal_length") or self.focal_length
        key = (image.size, hashlib.blake2b(image.tobytes()).digest(), focal_length)
        is_referring = isinstance(text, str) and doc.get("expression") == text
        return _Request(place, image, key, text, is_referring, focal_length, options)

    def _answer(self, batch: list[_Request]) -> list[str]:
        """The answers to a batch. An image that is asked about more than once is encoded first."""
        times = [request.key for request in batch]
        shared = {request.key: request for request in batch if times.count(request.key) > 1}
        encoded = self._model.encode_image(
            [request.image for request in shared.values()],
            focal_length=[request.focal_length for request in shared.values()],
            batch_size=self.batch_size,
        )
        images = {request.key: request.image for request in batch} | dict(zip(shared, encoded, strict=True))
        answers = {}
        referring = [request for request in batch if request.is_referring]
        if referring:
            predictions = self._model.predict_dense(
                [images[request.key] for request in referring],
                task="referring",
                text=[request.text for request in referring],
                focal_length=[request.focal_length for request in referring],
                batch_size=self.batch_size,
            )
            answers = {request.place: to_answer(one) for request, one in zip(referring, predictions, strict=True)}
        for request in batch:
            if not request.is_referring:
                answers[request.place] = self._ask(images[request.key], request)
        return [answers[request.place] for request in batch]

    def _ask(self, image: Any, request: _Request) -> str:
        """Words, up to the first of the texts that end an answer."""
        options = {name: request.options[name] for name in GENERATION if request.options.get(name) is not None}
        if options.get("temperature") == 0:  # how tasks ask for greedy decoding
            options.pop("temperature")
            options["do_sample"] = False
        if not options.get("do_sample"):
            options = {name: value for name, value in options.items() if name not in ("temperature", "top_p", "top_k")}
        until = request.options.get("until") or []
        until = [text for text in ([until] if isinstance(until, str) else until) if text]
        if until:
            options["stop_strings"] = until
        answer = self._model.query(image, request.text, focal_length=request.focal_length, **options)
        ends = [place for place in (answer.find(text) for text in until) if place >= 0]
        return answer[: min(ends, default=len(answer))]


def to_answer(prediction: DensePrediction) -> str:
    """A mask in the JSON text that the model `sam3` of lmms-eval answers with; see [`DenseMLLM`].

    Args:
        prediction: with `mask`, `bool [H, W]`, and `scores`, `float32 [H, W]`, of each pixel to be foreground.
    """
    mask = prediction.mask.numpy()
    if not mask.any():
        return json.dumps({"masks": [], "boxes": [], "scores": []})
    height, width = mask.shape
    x0, y0, x1, y1 = mask_corners(mask)
    box = {"x_min": x0 / width, "y_min": y0 / height, "x_max": x1 / width, "y_max": y1 / height}
    score = float(prediction.scores[prediction.mask].mean())
    return json.dumps({"masks": [prediction.to_rle()], "boxes": [box], "scores": [score]})


__all__ = ["DenseMLLM", "to_answer"]
