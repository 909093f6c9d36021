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

from functools import partial

import numpy as np
import PIL.Image
import torch

from ..chat_densemllm import read_parts
from ..crops_densemllm import crop_box
from ..processing_densemllm import DenseMLLMProcessor
from ..targets_densemllm import IGNORE_INDEX, check_ignore_index, present_values
from ..tasks_densemllm import TASKS
from .maps import read_mask, read_metres
from .samples import text_of, upright_sample


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
        id2label, depth_range, depth_scale, ignore_index: see [`DenseSource`], for samples that don't bring their own,
            such as those of a plain data set.
        candidates, min_label_share: see `DenseMLLMProcessor.encode_annotations`.
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
    ):
        self.processor = processor
        self.id2label = None if id2label is None else processor.normalize_labels(id2label)
        self.depth_range = depth_range
        check_ignore_index(ignore_index, self.id2label)
        self.depth_scale, self.ignore_index = depth_scale, ignore_index
        self.candidates, self.min_label_share = candidates, min_label_share
        self._vocabulary = processor.tokenizer.get_vocab()

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        processor = self.processor
        entries = [entry for sample in samples for entry in self.entries(sample)]
        images, annotations, conversations = zip(*entries, strict=True)
        inputs = processor(images=list(images), text=[texts[0] for texts in conversations])
        ids, labels = [], []
        for prompt_ids, (_, *texts) in zip(inputs["input_ids"], conversations, strict=True):
            row, learned = list(prompt_ids), [-100] * len(prompt_ids)
            for turn, text in enumerate(texts):
                # Each piece apart, as in generation, where a prompt is tokenised before there is an answer.
                piece = processor.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
                is_answer = turn % 2 == 0
                if is_answer and piece and processor.tokenizer.eos_token_id is not None:
                    piece = piece + [processor.tokenizer.eos_token_id]
                row += piece
                learned += piece if is_answer else [-100] * len(piece)
            ids.append(torch.tensor(row))
            labels.append(torch.tensor(learned))
        pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True, padding_side=processor.tokenizer.padding_side)
        grid = torch.as_tensor(np.asarray(inputs["image_grid_thw"]))
        return {
            "input_ids": pad(ids, padding_value=processor.tokenizer.pad_token_id or 0),
            "attention_mask": pad([torch.ones_like(row) for row in ids], padding_value=0),
            "labels": pad(labels, padding_value=-100),
            "pixel_values": torch.as_tensor(np.asarray(inputs["pixel_values"])),
            "image_grid_thw": grid,
            **processor.encode_annotations(list(annotations), grid, self.candidates, self.min_label_share),
        }

    def entries(self, sample: dict) -> list[tuple[PIL.Image.Image, dict, list[str]]]:
        """A sample as (image, its annotations, its conversation) once or more: prompt, answer, next prompt..."""
        sample = upright_sample(sample, "a sample", self.processor.image_processor)
        original = image = sample["image"]
        ignore_index = sample.get("ignore_index", self.ignore_index)
        depth_range = sample.get("depth_range") or self.depth_range
        image, focal_length = self._at_focal_length(image, sample, depth_range)
        annotation, first = {}, []
        if sample.get("segmentation") is not None:
            id2label = self.id2label if sample.get("id2label") is None else sample["id2label"]
            if id2label is None:
                raise ValueError("`id2label` is needed: the data has a `segmentation`")
            annotation |= {"segmentation": sample["segmentation"], "id2label": id2label, "ignore_index": ignore_index}
        if sample.get("depth") is not None:
            metres = read_metres(sample["depth"], sample.get("depth_scale", self.depth_scale), "column `depth`")
            depth = {"depth": metres, "depth_range": depth_range, "focal_length": focal_length}
            prompt = self.processor.get_depth_range(depth_range).get("prompt")
            if prompt:
                first = [(image, depth, self._texts([{"role": "user", "content": ""}], prompt))]
                if not annotation and sample.get("mask") is None and not sample.get("messages"):
                    return first
            else:
                annotation |= depth
        mask = None if sample.get("mask") is None else read_mask(sample["mask"], ignore_index)
        expression = sample.get("expression")
        one_pass = self.processor.referring_prompt is not None
        if expression is None or mask is None or one_pass or not (mask > 0).any():
            if mask is not None and (expression is None or one_pass):
                annotation["mask"] = mask
            return [*first, (image, annotation, self.conversation(sample, annotation))]
        rows, columns = (np.flatnonzero((mask > 0).any(axis=axis)) for axis in (1, 0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        crop, (x0, y0, x1, y1) = crop_box(original, box, self.processor.referring_crop_size)
        scales = (image.width / original.width, image.height / original.height) * 2
        box = [edge * scale for edge, scale in zip(box, scales, strict=True)]
        whole = (image, annotation, self.conversation(sample, annotation, self._box_text(box, image)))
        cropped = (crop, {"mask": mask[y0:y1, x0:x1]}, self._texts([{"role": "user", "content": ""}]))
        return [*first, whole, cropped]

    def _box_text(self, box: list[float], image: PIL.Image.Image) -> str | None:
        """A box in pixels as coordinate tokens, which count the pixels of the resized image."""
        height, width = self.processor.image_processor.get_resized_size(image.height, image.width)
        scales = (width / image.width, height / image.height) * 2
        x0, y0, x1, y1 = (
            min(int(edge * scale), most - 1)
            for edge, scale, most in zip(box, scales, (width, height) * 2, strict=True)
        )
        tokens = [f"<x_{x0}>", f"<y_{y0}>", f"<x_{x1}>", f"<y_{y1}>"]
        if not all(token in self._vocabulary for token in tokens):
            return None
        return f"<box>{''.join(tokens)}</box>"

    def _at_focal_length(self, image: PIL.Image.Image, sample: dict, depth_range: str | None):
        """The image as `predict_dense` resizes it for its focal length, and the focal length that it has then."""
        focal_length = sample.get("focal_length")
        scale = self.processor.get_scale(focal_length, depth_range)
        if scale is None:
            return image, None
        height, width = self.processor.image_processor.get_resized_size(image.height, image.width, {"scale": scale})
        resized = image.resize((width, height), PIL.Image.Resampling(self.processor.image_processor.resample))
        # The processor's own scale comes on top.
        height, width = self.processor.image_processor.get_resized_size(height, width)
        return resized, focal_length * (height * width / (image.height * image.width)) ** 0.5

    def conversation(self, sample: dict, annotation: dict, answer: str | None = None) -> list[str]:
        """Prompt, answer, next prompt, ... of a sample; a prompt alone where there is no text. `answer` is its
        expression's box."""
        before = None  # the text in front of the image
        if sample.get("expression") and "mask" in annotation:
            before = self.processor.referring_prompt.replace("{text}", sample["expression"].strip())
        if sample.get("messages"):
            return self._texts(sample["messages"], before)
        if answer is not None:
            question = TASKS["referring"].question.format(text=sample["expression"].strip())
        elif "segmentation" in annotation:
            present = set(present_values(annotation["segmentation"]).tolist())
            names = self.processor.normalize_labels(annotation["id2label"])
            refs = "".join(f"<ref>{name}</ref>" for key, name in names.items() if key in present)
            if not refs:  # all of it is ignored: what there is isn't known
                return self._texts([{"role": "user", "content": ""}], before)
            question = TASKS["segmentation"].question
            answer = f"The target categories include {refs}."
        else:
            return self._texts([{"role": "user", "content": ""}], before)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return self._texts(messages, before)

    def _texts(self, messages: list[dict], before: str | None = None) -> list[str]:
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


__all__ = ["DenseCollator"]
