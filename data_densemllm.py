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

"""Annotated samples to batches for training."""

from functools import partial

import numpy as np
import torch

from .processing_densemllm import TASKS, DenseMLLMProcessor


class DenseCollator:
    """Samples to one batch for [`DenseMLLMForConditionalGeneration.forward`]: packed patches, padded text, targets.

    A sample with a segmentation but no `messages` learns to name its classes, in the released checkpoint's words.

    Args:
        processor: of the model.
        id2label: class id to name, for `segmentation`.
        depth_range: row of `processor.depth_ranges`, for `depth`; its default row where left out.
        candidates: see `DenseMLLMProcessor.encode_annotations`.
    """

    def __init__(
        self,
        processor: DenseMLLMProcessor,
        id2label: dict[int, str] | None = None,
        depth_range: str | None = None,
        candidates: str = "vocabulary",
    ):
        self.processor = processor
        self.id2label = None if id2label is None else processor.normalize_labels(id2label)
        self.depth_range = depth_range
        self.candidates = candidates

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        processor = self.processor
        annotations = [self.annotation(sample) for sample in samples]
        conversations = [self.conversation(*pair) for pair in zip(samples, annotations, strict=True)]
        prompts = [processor.apply_chat_template(prompt, add_generation_prompt=True) for prompt, _ in conversations]
        images = [processor.image_processor.load_picture(sample["image"]) for sample in samples]
        inputs = processor(images=images, text=prompts)
        ids, labels = [], []
        for prompt_ids, (_, answer) in zip(inputs["input_ids"], conversations, strict=True):
            # Apart from the prompt, as in generation, where the prompt is tokenised before there is an answer.
            answer_ids = processor.tokenizer(answer, add_special_tokens=False)["input_ids"] if answer else []
            if answer_ids and processor.tokenizer.eos_token_id is not None:
                answer_ids = answer_ids + [processor.tokenizer.eos_token_id]
            ids.append(torch.tensor(list(prompt_ids) + answer_ids))
            labels.append(torch.tensor([-100] * len(prompt_ids) + answer_ids))
        pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True, padding_side=processor.tokenizer.padding_side)
        grid = torch.as_tensor(np.asarray(inputs["image_grid_thw"]))
        return {
            "input_ids": pad(ids, padding_value=processor.tokenizer.pad_token_id or 0),
            "attention_mask": pad([torch.ones_like(row) for row in ids], padding_value=0),
            "labels": pad(labels, padding_value=-100),
            "pixel_values": torch.as_tensor(np.asarray(inputs["pixel_values"])),
            "image_grid_thw": grid,
            **processor.encode_annotations(annotations, grid, self.candidates),
        }

    def annotation(self, sample: dict) -> dict:
        """A sample's maps in the form of `encode_annotations`."""
        annotation = {}
        if sample.get("segmentation") is not None:
            if self.id2label is None:
                raise ValueError("`id2label` is needed: the data has a `segmentation`")
            segmentation = np.asarray(sample["segmentation"])
            annotation |= {"segmentation": segmentation, "id2label": self.id2label}
        if sample.get("depth") is not None:
            depth = np.asarray(sample["depth"], dtype=np.float32)
            annotation |= {"depth": depth, "depth_range": self.depth_range}
        if sample.get("mask") is not None:
            annotation["mask"] = np.asarray(sample["mask"]) > 0
        return annotation

    def conversation(self, sample: dict, annotation: dict) -> tuple[list[dict], str]:
        """The chat before the last answer, and that answer (empty: no text to learn)."""
        image = [{"type": "image"}]
        if sample.get("messages"):
            *before, last = sample["messages"]
            return before, last["content"] if isinstance(last["content"], str) else last["content"][0]["text"]
        if "segmentation" in annotation:
            present = np.unique(annotation["segmentation"])
            names = "".join(f"<ref>{name}</ref>" for key, name in self.id2label.items() if key in present)
            question = [{"type": "text", "text": TASKS["segmentation"].question}]
            return [{"role": "user", "content": image + question}], f"The target categories include {names}."
        if "depth" in annotation:
            prompt = self.processor.get_depth_range(self.depth_range).get("prompt")
            image = ([{"type": "text", "text": prompt}] if prompt else []) + image
        return [{"role": "user", "content": image}], ""


__all__ = ["DenseCollator"]
