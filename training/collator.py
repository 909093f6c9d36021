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

"""Samples to batches: packed patches, padded text and targets for both losses."""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import torch

from ..chat_densemllm import read_parts
from ..checks_densemllm import check_count
from ..crops_densemllm import Corners, crop_box
from ..loss_densemllm import IGNORED
from ..processing_densemllm import DenseMLLMProcessor
from ..targets_densemllm import IGNORE_INDEX, check_ignore_index
from ..task_base_densemllm import DenseRequest, DenseTask
from ..tasks_densemllm import ANNOTATED_TASKS, Codes, check_things
from .image_tokenizer import ImageTokenizer
from .samples import SCHEMA, ReadOptions, text_of, upright_sample


# What samples may bring, and the collator has for those that don't.
SETTINGS = ("id2label", "depth_range", "depth_scale", "ignore_index", "thing_labels")
SILENCE = ({"role": "user", "content": ""},)  # a prompt without words


class DenseCollator:
    """Samples to one batch for [`DenseMLLMForConditionalGeneration.forward`]: packed patches, padded text, targets.

    A sample has one conversation: its `messages`; else, with an `expression`, the question for the object's box; else,
    with a `segmentation`, the question for its classes, in the released checkpoint's words. An `expression` adds a
    second image, as `predict_dense` will see it: the crop around the object, whose vision tokens learn its mask.
    With a processor's `referring_prompt` it stands before the image instead, whose vision tokens learn the mask.
    Depth in a range with a prompt is learned from the image with that prompt alone, as `predict_dense` asks for it:
    once more where the sample has anything else.

    Args:
        processor: of the model.
        id2label, depth_range, depth_scale, ignore_index, thing_labels: see [`DenseSource`], for samples that don't
            bring their own, such as those of a plain data set.
        candidates, min_label_share: see `DenseMLLMProcessor.encode_annotations`.
        image_tokenizer: makes the `codes` of samples that bring none, of their image as the model gets it, after all
            changes in training; not of crops.
        max_num_patches: of an image, at most, where that is not what the processor says; larger ones are read smaller.

    Raises:
        ValueError: a `max_num_patches` that is less than one vision token's.
    """

    def __init__(
        self,
        processor: DenseMLLMProcessor,
        id2label: dict[int, str] | None = None,
        depth_range: str | None = None,
        candidates: str = "vocabulary",
        min_label_share: float = 0.0,
        depth_scale: float | None = None,
        ignore_index: int = IGNORE_INDEX,
        thing_labels: Sequence[str | int] | None = None,
        image_tokenizer: ImageTokenizer | None = None,
        max_num_patches: int | None = None,
    ):
        if max_num_patches is not None:
            processor = copy.copy(processor)
            processor.image_processor = copy.copy(processor.image_processor)
            processor.image_processor.max_num_patches = check_count("max_num_patches", max_num_patches)
            processor.image_processor.get_resized_size(1, 1)  # names a cap below one token's
        self.processor = processor
        self.id2label = None if id2label is None else processor.normalize_labels(id2label)
        self.depth_range = depth_range
        check_ignore_index(ignore_index, self.id2label)
        self.depth_scale, self.ignore_index = depth_scale, ignore_index
        self.candidates, self.min_label_share = candidates, min_label_share
        if thing_labels is not None:
            check_things(thing_labels, self.id2label, processor)
        self.thing_labels, self.image_tokenizer = thing_labels, image_tokenizer

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        processor = self.processor
        entries = [entry for sample in samples for entry in self.entries(sample)]
        images, annotations, conversations = zip(*entries, strict=True)
        inputs = processor(images=list(images), text=[texts[0] for texts in conversations])
        ids, labels = [], []
        for prompt_ids, (_, *texts) in zip(inputs["input_ids"], conversations, strict=True):
            row, learned = list(prompt_ids), [IGNORED] * len(prompt_ids)
            for turn, text in enumerate(texts):
                # Each piece apart, as in generation, where a prompt is tokenised before there is an answer.
                piece = processor.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
                is_answer = turn % 2 == 0
                if is_answer and piece and processor.tokenizer.eos_token_id is not None:
                    piece = piece + [processor.tokenizer.eos_token_id]
                row += piece
                learned += piece if is_answer else [IGNORED] * len(piece)
            ids.append(torch.tensor(row))
            labels.append(torch.tensor(learned))
        pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True, padding_side=processor.tokenizer.padding_side)
        grid = torch.as_tensor(np.asarray(inputs["image_grid_thw"]))
        return {
            "input_ids": pad(ids, padding_value=processor.tokenizer.pad_token_id or 0),
            "attention_mask": pad([torch.ones_like(row) for row in ids], padding_value=0),
            "labels": pad(labels, padding_value=IGNORED),
            "pixel_values": torch.as_tensor(np.asarray(inputs["pixel_values"])),
            "image_grid_thw": grid,
            **processor.encode_annotations(list(annotations), grid, self.candidates, self.min_label_share),
        }

    def entries(self, sample: dict) -> list[tuple[PIL.Image.Image, dict, list[str]]]:
        """A sample as (image, its annotations, its conversation) once or more: prompt, answer, next prompt..."""
        sample = {**sample, **{name: self._setting(sample, name) for name in SETTINGS}}
        sample = upright_sample(sample, "a sample", self.processor.image_processor)
        original, processor = sample["image"], self.processor
        image, focal_length = at_focal_length(original, sample, processor)
        if self.image_tokenizer is not None and sample.get(Codes.column) is None:
            sample[Codes.column] = self.image_tokenizer(image, self._grid(image))
        request = DenseRequest(
            size=(original.height, original.width), image_size=(original.height, original.width),
            resized_size=processor.image_processor.get_resized_size(image.height, image.width),
            expression=sample.get("expression"), depth_range=sample["depth_range"],
        )  # fmt: skip
        apart, crops = [], []
        whole, before, talk = {}, "", None
        for task in ANNOTATED_TASKS:
            if not task.is_annotated(sample):
                continue
            annotation = self._annotation(task, sample, focal_length)
            # The question for one object goes before that for all classes, which comes first.
            talk = task.teach(annotation, request, processor) or talk
            boxes = task.learned_crops(annotation, request, processor)
            prompt = task.prompt(request, processor)
            if boxes is not None:
                crops += [self._crop(task, original, annotation, box) for box in boxes]
            elif prompt and not task.on_crops:
                apart.append((image, annotation, self._texts(SILENCE, prompt)))
            else:  # words for an object stand before what everything else is learned from, too
                whole, before = whole | annotation, before or prompt
        if apart and not (whole or crops or talk or sample.get("messages")):
            return apart
        return [*apart, (image, whole, self._conversation(sample, talk, before)), *crops]

    def _grid(self, image: PIL.Image.Image) -> tuple[int, int]:
        """`(height, width)` of an image in vision tokens."""
        image_processor = self.processor.image_processor
        height, width = image_processor.get_resized_size(image.height, image.width)
        cell = image_processor.patch_size * image_processor.merge_size
        return height // cell, width // cell

    def _setting(self, sample: dict, name: str) -> Any:
        """What a sample says of itself, or else the collator of all samples."""
        return getattr(self, name) if sample.get(name) is None else sample[name]

    def _annotation(self, task: DenseTask, sample: dict, focal_length: float | None) -> dict:
        """What a task learns from a sample: its column and the options that say how to read it."""
        options = ReadOptions(sample["id2label"], sample["depth_scale"], sample["ignore_index"])
        values = SCHEMA[task.column].read(sample[task.column], sample, "a sample", options)
        known = {**sample, "focal_length": focal_length}  # that of the image as the model gets it
        return {task.column: values, **{name: known[name] for name in task.column_options}}

    def _crop(self, task: DenseTask, image: PIL.Image.Image, annotation: dict, box: Corners) -> tuple:
        """The crop around an object as `predict_dense` sees it, and the annotation in it."""
        crop, (x0, y0, x1, y1) = crop_box(image, box, self.processor.referring_crop_size)
        return crop, {**annotation, task.column: annotation[task.column][y0:y1, x0:x1]}, self._texts(SILENCE)

    def _conversation(self, sample: dict, talk: tuple[str, str] | None, before: str) -> list[str]:
        """Prompt, answer, next prompt, ... of a sample; a prompt alone where there is no text.

        Args:
            sample: its `messages` are the conversation where it has any.
            talk: else this question and its answer are.
            before: the text in front of the image.
        """
        if sample.get("messages"):
            return self._texts(sample["messages"], before)
        if talk is None:
            return self._texts(SILENCE, before)
        question, answer = talk
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return self._texts(messages, before)

    def _texts(self, messages: Sequence[dict], before: str = "") -> list[str]:
        """A chat as prompt, answer, next prompt, ...; the first user message gets the image if none is there, and
        the text before it."""
        messages = read_parts([dict(message) for message in messages])
        user = next(message for message in messages if message["role"] == "user")
        if isinstance(user["content"], str):
            user["content"] = [{"type": "text", "text": user["content"]}] if user["content"] else []
        if not any(part["type"] == "image" for part in user["content"]):
            user["content"] = [{"type": "image"}, *user["content"]]
        if before:
            user["content"] = [{"type": "text", "text": before}, *user["content"]]
        template, eos = self.processor.apply_chat_template, self.processor.tokenizer.eos_token or ""
        texts, done = [], ""
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            kinds = set() if isinstance(message["content"], str) else {part["type"] for part in message["content"]}
            if kinds - {"text"}:
                raise ValueError(f"`messages` must have answers that are text, got parts of type {sorted(kinds)}")
            prompt = template(messages[:turn], add_generation_prompt=True)
            texts += [prompt.removeprefix(done).removeprefix(eos if texts else ""), text_of(message["content"])]
            done = prompt + texts[-1]
        return texts or [template(messages, add_generation_prompt=True)]


def at_focal_length(
    image: PIL.Image.Image, sample: Mapping[str, Any], processor: DenseMLLMProcessor
) -> tuple[PIL.Image.Image, float | None]:
    """The image as `predict_dense` resizes it for its focal length, and the focal length that it has then; `None`
    where the sample's `focal_length` and `depth_range` don't ask for that."""
    focal_length = sample.get("focal_length")
    scale = processor.get_scale(focal_length, sample["depth_range"])
    if scale is None:
        return image, None
    height, width = processor.image_processor.get_resized_size(image.height, image.width, {"scale": scale})
    resized = image.resize((width, height), PIL.Image.Resampling(processor.image_processor.resample))
    # The processor's own scale comes on top.
    height, width = processor.image_processor.get_resized_size(height, width)
    return resized, focal_length * (height * width / (image.height * image.width)) ** 0.5


__all__ = ["DenseCollator", "at_focal_length"]
