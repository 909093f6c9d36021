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
"""Tasks that look at crops: an object that is referred to, and the objects of classes that the model detects."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import PIL.Image
import torch

from .answers_densemllm import parse_detection, parse_grounding
from .crops_densemllm import Corners, CropMaps, empty_map, lay_back, mask_corners
from .decoding_densemllm import decode_segmentation, resize_map
from .drawing_densemllm import Palette, draw_labels
from .guided_densemllm import guided_segmentation
from .targets_densemllm import Targets, present_values
from .task_base_densemllm import GUIDED, DenseRequest, DenseTask, Limits, PixelWords, SegmentMap, TaskProcessor
from .tokens_densemllm import FOREGROUND_LABELS, X_SCALE, Y_SCALE


class Foreground(DenseTask):
    """The object that an expression names: `<FG>` against `<BG>` in the crop around its box (paper), or in the whole
    image where the processor has a `referring_prompt`."""

    name = "referring"
    about = "the object that `text` describes"
    map_field = "mask"
    column = "mask"
    options = ("text", "box", "refine")
    refinements = (GUIDED,)
    needs = ("text", "box")
    question = "Please provide the bounding box coordinate of the region this sentence describes: {text}"
    answer_options = {"max_new_tokens": 32}
    on_crops = True

    def is_known(self, processor: TaskProcessor) -> bool:
        return processor.referring_prompt is not None or has_boxes(processor)

    def crops(self, request: DenseRequest, processor: TaskProcessor) -> list[Corners] | None:
        if request.box is None and processor.referring_prompt is not None:
            return None
        return [] if request.box is None else [request.box]

    def prompt(self, request: DenseRequest, processor: TaskProcessor) -> str:
        if request.expression is None or self.crops(request, processor) is not None:
            return ""
        return processor.referring_prompt.replace("{text}", request.expression.strip())

    def ask(self, request: DenseRequest, processor: TaskProcessor) -> str | None:
        is_known = request.box is not None or self.crops(request, processor) is None
        return None if is_known else self.question.format(text=request.expression.strip())

    def take_answer(self, answer: str, request: DenseRequest) -> None:
        boxes = parse_grounding(answer, request.image_size, request.resized_size)["boxes"].tolist()
        request.box = tuple(boxes[0]) if boxes else None

    def learned_crops(
        self, annotation: Mapping[str, Any], request: DenseRequest, processor: TaskProcessor
    ) -> list[Corners] | None:
        # Without words for it, a mask is the image's one foreground.
        if request.expression is None or self.crops(request, processor) is None:
            return None
        corners = mask_corners(annotation[self.column] > 0)
        return [] if corners is None else [corners]

    def teach(
        self, annotation: Mapping[str, Any], request: DenseRequest, processor: TaskProcessor
    ) -> tuple[str, str] | None:
        boxes = self.learned_crops(annotation, request, processor)
        if not boxes:
            return None
        # Coordinate tokens count the pixels of the resized image.
        tokens = []
        for edge, axis, scale in zip(boxes[0], (1, 0, 1, 0), (X_SCALE, Y_SCALE) * 2, strict=True):
            most = request.resized_size[axis]
            number = min(int(edge * (most / request.image_size[axis])), most - 1)
            if number >= len(processor.scale_token_ids(scale)):
                return None
            tokens.append(scale.template.format(number))
        return self.question.format(text=request.expression.strip()), f"<box>{''.join(tokens)}</box>"

    def label_ids(self, request: DenseRequest, processor: TaskProcessor) -> list[list[int]]:
        return [[token_id] for token_id in processor.token_ids(FOREGROUND_LABELS)]

    def encode(
        self, annotation: Mapping[str, Any], processor: TaskProcessor, where: str, candidates: str,
        size: tuple[int, int],
    ) -> list[Targets]:  # fmt: skip
        values = self._read_map(annotation, where)
        if values.dtype != np.bool_ and (values.dtype != np.int8 or set(present_values(values)) - {-1, 0, 1}):
            raise ValueError(f"{where} must be booleans, or `int8` of 1, 0 and -1, got {values.dtype}")
        ids = processor.token_ids(FOREGROUND_LABELS)
        return [Targets(values, {place: [token_id] for place, token_id in enumerate(ids)}, -1, (tuple(ids),))]

    def decode(self, logits: torch.Tensor, request: DenseRequest, processor: TaskProcessor) -> dict[str, Any]:
        if request.refine == GUIDED:
            best, scores = guided_segmentation(logits, request.image_of_maps(), temperature=1.0)
        else:
            best, scores = decode_segmentation(logits, request.size, temperature=1.0)
        return {"mask": best == 1, "scores": torch.where(best == 1, scores, 1 - scores)}

    def compose(self, crops: Iterable[CropMaps], request: DenseRequest) -> dict[str, Any]:
        crops = list(crops)
        mask, scores = lay_back(crops, request.image_size)
        if tuple(request.size) != tuple(mask.shape):
            mask, scores = (resize_map(whole.float(), request.size, mode="nearest-exact") for whole in (mask, scores))
        return {"mask": mask > 0.5, "scores": scores, "box": request.box, "logits": crops[0].logits if crops else None}

    def draw(
        self, maps: Any, legend: bool = False, palette: Palette | None = None, limits: Limits | None = None
    ) -> PIL.Image.Image:
        # What is not found is black, as what has no class.
        values = np.where(maps.mask.cpu().numpy(), 1, -1)
        return draw_labels(values, {}, {1: "found"}, legend, palette)

    def is_drawn(self, values: np.ndarray) -> np.ndarray:
        return values > 0

    def to_numbers(self, maps: Any) -> np.ndarray:
        return maps.mask.numpy().astype(np.uint8) * 255

    def to_words(self, maps: Any) -> PixelWords:
        return PixelWords(maps.mask.cpu().numpy().astype(np.uint8), ["not found", "found"])

    def describe(self, maps: Any) -> str:
        return f"{100 * float(maps.mask.float().mean()):.1f} % of the image"


class OpenSet(SegmentMap, Foreground):
    """The model detects the boxes of each class, and the object in each of them is told from its surroundings."""

    name = "open_set"
    about = "objects of `labels`, each by itself"
    map_field = "segmentation"
    column = None
    options = ("labels", "threshold", "refine")
    needs = ("labels",)
    has_logits = False
    has_objects = True
    question = "Detect every objects that belongs to the following categories: {text}"
    answer_options = {"max_new_tokens": 1024}

    def is_known(self, processor: TaskProcessor) -> bool:
        return has_boxes(processor)

    def check(self, request: DenseRequest, processor: TaskProcessor) -> None:
        processor.normalize_labels(request.labels if request.labels is not None else [])

    def crops(self, request: DenseRequest, processor: TaskProcessor) -> list[Corners] | None:
        return [box for _, box in request.boxes]

    def ask(self, request: DenseRequest, processor: TaskProcessor) -> str | None:
        return self.question.format(text=",".join(request.labels.values()))

    def take_answer(self, answer: str, request: DenseRequest) -> None:
        found = parse_detection(answer, request.image_size, request.resized_size)
        keys = {name: key for key, name in request.labels.items()}
        pairs = zip(found["labels"], found["boxes"].tolist(), strict=True)
        request.boxes = [(keys[name], tuple(box)) for name, box in pairs if name in keys]

    def compose(self, crops: Iterable[CropMaps], request: DenseRequest) -> dict[str, Any]:
        objects = []
        for (key, box), crop in zip(request.boxes, crops, strict=True):
            objects.append((int(crop.at_place()[0].sum()), key, box, crop))
        objects.sort(key=lambda entry: -entry[0])  # the smaller lies over the larger
        segmentation, scores = torch.full(request.image_size, -1), empty_map(request.image_size)
        for number, (*_, crop) in enumerate(objects):
            mask, own_scores = crop.at_place()
            if request.threshold is not None:
                mask = mask & (own_scores >= request.threshold)
            segmentation[crop.window][mask], scores[crop.window][mask] = number, own_scores[mask]
        if tuple(request.size) != tuple(request.image_size):
            segmentation = resize_map(segmentation.float(), request.size, mode="nearest-exact").long()
            scores = resize_map(scores, request.size, mode="nearest-exact")
        rows = []
        for number, (_, key, box, _) in enumerate(objects):
            is_own = segmentation == number
            if is_own.any():
                rows.append(
                    {
                        "id": number, "label_id": key, "label": request.labels[key], "box": box, "was_fused": False,
                        "score": float(scores[is_own].mean()), "area": int(is_own.sum()),
                    }
                )  # fmt: skip
        return {
            "segmentation": segmentation, "scores": scores, "segments_info": rows, "labels": request.labels,
            "logits": None,
        }  # fmt: skip


def has_boxes(processor: TaskProcessor) -> bool:
    """Whether the tokenizer has tokens of coordinates, in which the model says where something is."""
    return all(processor.scale_token_ids(scale) for scale in (X_SCALE, Y_SCALE))


__all__ = ["Foreground", "OpenSet"]
