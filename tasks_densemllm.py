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
"""Dense tasks: each knows its labels, how an annotation becomes targets, how logits become maps, and what it asks.

Whoever predicts, trains, evaluates or draws loops over tasks and never looks at a task's name.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .answers_densemllm import parse_detection, parse_grounding, parse_refs
from .checks_densemllm import shown
from .crops_densemllm import Corners, CropMaps, empty_map, lay_back
from .decoding_densemllm import class_probabilities, decode_depth_bins, decode_segmentation, resize_map
from .drawing_densemllm import Palette, draw_depth, draw_labels
from .records_densemllm import Record
from .refinement_densemllm import refine_crf_argmax
from .targets_densemllm import Targets, check_ignore_index, present_values
from .task_base_densemllm import DenseRequest, DenseTask, TaskProcessor, bin_targets
from .tokens_densemllm import (
    BACKGROUND_LABEL,
    DEPTH_SCALE,
    FOREGROUND_LABELS,
    X_SCALE,
    Y_SCALE,
    TokenScale,
    add_missing_tokens,
)


MILLIMETRES = 1000


@dataclass
class DenseMaps(Record):
    """What tasks find in one image, at its own size unless asked otherwise. Fields that no task fills in are `None`.

    Attributes:
        segmentation (`torch.LongTensor [height, width]`): positions in `labels`, or its keys where a dict was given;
            -1 where none of them is chosen. Of tasks that tell objects apart, the `id` of each segment.
        segments_info (`list[dict]`): a row a segment: `id` (the value in `segmentation`), `label_id` (position in
            `labels` or key), `label`, `score` (mean confidence), `area` (pixels), `was_fused`; of objects `box`.
        labels (`dict[int, str]`): the names asked for, or those that the model named, by their value.
        predicted_depth (`torch.FloatTensor [height, width]`): metres.
        mask (`torch.BoolTensor [height, width]`): the referred object.
        box (`tuple[float, float, float, float]`): of the referred object: x0, y0, x1, y1 in pixels of the image.
        scores (`torch.FloatTensor [height, width]`): confidence in [0, 1]: of the chosen label, of the depth bin, or
            of the foreground. With several tasks in one call a dict from task to map. That of a label compares it with
            the other labels of the call: it is not the probability that such a thing is in the image. A label alone
            has 1 everywhere, unless `background` or `<OTHERS>` gives it something to compete with.
        logits (`torch.FloatTensor [num_labels, grid_height, grid_width]`): label logits, with `return_logits=True`
            only. With several tasks in one call a dict from task to tensor.
        text (`str`): what the model answered where it was asked for a class list or a box.
    """

    segmentation: torch.Tensor | None = None
    segments_info: list[dict] | None = None
    labels: dict[int, str] | None = None
    predicted_depth: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    box: tuple[float, float, float, float] | None = None
    scores: "torch.Tensor | dict[str, torch.Tensor] | None" = None
    logits: "torch.Tensor | dict[str, torch.Tensor] | None" = None
    text: str | None = None


class Classes(DenseTask):
    """A class for each pixel, of names that the caller gives, or that the model names."""

    name = "segmentation"
    map_field = "segmentation"
    column = "segmentation"
    column_options = ("id2label", "ignore_index")
    options = ("labels", "background", "threshold", "refine", "labels_from_answer")
    question = "Segment all objects in this image."
    list_question = "Segment: {text}"  # of the released checkpoint, which answers with those that it sees
    no_background = ", without the background class."
    answer_options = {"stop_at": "<mask>"}  # with which the released checkpoint begins a mask in words

    def check(self, request: DenseRequest, processor: TaskProcessor) -> None:
        if request.labels_from_answer and request.labels is None:
            raise ValueError("`labels_from_answer` needs `labels`, of which the model is asked for those that it sees")

    def ask(self, request: DenseRequest, processor: TaskProcessor) -> str | None:
        if request.labels is None:
            return self.question
        if not request.labels_from_answer:
            return None
        names = [name for name in request.labels.values() if name != BACKGROUND_LABEL]
        allows_none = request.background or len(names) < len(request.labels)
        return self.list_question.format(text=", ".join(names)) + ("." if allows_none else self.no_background)

    def take_answer(self, answer: str, request: DenseRequest) -> None:
        seen = parse_refs(answer)
        if request.labels is None:
            request.labels = dict(enumerate(seen))
            request.background = request.background or BACKGROUND_LABEL in answer
        else:
            kept = {*seen, BACKGROUND_LABEL}
            request.labels = {key: name for key, name in request.labels.items() if name in kept}

    def label_ids(self, request: DenseRequest, processor: TaskProcessor) -> list[list[int]]:
        return processor.known_label_ids(request.labels) if request.labels != {} else []

    def encode(
        self, annotation: Mapping[str, Any], processor: TaskProcessor, where: str, candidates: str
    ) -> list[Targets]:
        values = self._read_map(annotation, where)
        id2label = annotation.get("id2label")
        if id2label is None:
            raise ValueError(f"{where} needs `id2label`, a dict from class id to name")
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{where} must be integers (class ids), got {values.dtype}")
        ignored = annotation.get("ignore_index", 255)
        check_ignore_index(ignored, id2label)
        names = processor.normalize_labels(id2label)
        unknown = sorted(set(present_values(values).tolist()) - set(names) - {ignored})
        if unknown:
            raise ValueError(f"{where} has class ids {unknown[:10]} that `id2label` and `ignore_index` lack")
        ids = processor.known_label_ids(id2label)
        own = tuple(token_id for name_ids in ids for token_id in name_ids)
        annotated = (own, "text") if candidates == "vocabulary" else (own,)
        return [Targets(values, dict(zip(names, ids, strict=True)), ignored, annotated)]

    def decode(self, logits: torch.Tensor, request: DenseRequest, processor: TaskProcessor) -> dict[str, Any]:
        names = request.labels or {}
        if not names:
            nothing = torch.full(request.size, -1, dtype=torch.long)
            return {"segmentation": nothing, "segments_info": [], "labels": {}, "scores": empty_map(request.size)}
        segmentation, scores, rest = self._read_classes(logits, names, request, processor)
        if request.threshold is not None:
            is_weak = (scores < request.threshold) & (segmentation != rest)
            segmentation = segmentation.masked_fill(is_weak, -1)
        return {
            "segmentation": segmentation,
            "scores": scores,
            "segments_info": class_segments(segmentation, scores, names),
            "labels": names,
        }

    def _read_classes(
        self, logits: torch.Tensor, names: dict[int, str], request: DenseRequest, processor: TaskProcessor
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Keys of `names` and their scores, `[height, width]`, and the key of pixels that are none of the others."""
        keys, background, rest = list(names), request.background, -1
        others = [place for place, name in enumerate(names.values()) if name == BACKGROUND_LABEL]
        if others:
            # The background's own logit is not read: it wins wherever no label has a probability above one half.
            kept = [place for place in range(len(keys)) if place not in others]
            logits, rest, background = logits[kept], keys[others[0]], True
            keys = [keys[place] for place in kept]
        if not keys:
            segmentation = torch.full(request.size, rest, dtype=torch.long, device=logits.device)
            scores = torch.full(request.size, 0.5, dtype=torch.float32, device=logits.device)
            return segmentation, scores, rest
        if request.refine is None:
            best, scores = decode_segmentation(logits, request.size, background)
        else:
            best, scores = _refine_classes(logits, request, background, processor.crf_options)
        return torch.tensor([rest, *keys], device=best.device)[best.add_(1)], scores, rest

    def draw(self, maps: DenseMaps, legend: bool = False, palette: Palette | None = None) -> PIL.Image.Image:
        names = {row["id"]: row["label"] for row in maps.segments_info or []}
        values = maps.segmentation.cpu().numpy()
        return draw_labels(values, names, {-1: "none of them"}, legend, palette)

    def is_drawn(self, values: np.ndarray) -> np.ndarray:
        return values >= 0

    def to_numbers(self, maps: DenseMaps) -> np.ndarray:
        values = getattr(maps, self.map_field).numpy()
        # 255, or 65535, is none of them.
        kind = np.uint8 if self._highest_number(maps) < 255 else np.uint16
        return np.where(values < 0, np.iinfo(kind).max, values).astype(kind)

    def _highest_number(self, maps: DenseMaps) -> int:
        # Of the names and not of what is there: the files of several images are of one kind.
        return max(maps.labels or {}, default=0)

    def describe(self, maps: DenseMaps) -> str:
        count = maps.segmentation.numel()
        rows = sorted(maps.segments_info, key=lambda row: -row["area"])
        return ", ".join(f"{row['label']} {100 * row['area'] / count:.1f} %" for row in rows) or "none of them"


class Depth(DenseTask):
    """Metric depth, by depth tokens."""

    name = "depth"
    map_field = "predicted_depth"
    column = "depth"
    column_options = ("depth_range", "focal_length")
    options = ("depth_range", "focal_length")
    scales = (DEPTH_SCALE,)

    def check(self, request: DenseRequest, processor: TaskProcessor) -> None:
        processor.depth_bins.row(request.depth_range)

    def prompt(self, request: DenseRequest, processor: TaskProcessor) -> str:
        return processor.depth_bins.row(request.depth_range).get("prompt") or ""

    def label_ids(self, request: DenseRequest, processor: TaskProcessor) -> list[list[int]]:
        return depth_label_ids(processor)

    def encode(
        self, annotation: Mapping[str, Any], processor: TaskProcessor, where: str, candidates: str
    ) -> list[Targets]:
        values = self._read_map(annotation, where)
        if not np.issubdtype(values.dtype, np.number):
            raise ValueError(f"{where} must be numbers (metres), got {values.dtype}")
        bins = processor.depth_bins.encode(values, annotation.get("depth_range"), annotation.get("focal_length"))
        return [bin_targets(bins, depth_label_ids(processor))]

    def decode(self, logits: torch.Tensor, request: DenseRequest, processor: TaskProcessor) -> dict[str, Any]:
        bins, scores = decode_depth_bins(logits)
        depth = processor.depth_bins.decode(bins, request.depth_range, request.model_focal_length)
        return {"predicted_depth": resize_map(depth, request.size), "scores": resize_map(scores, request.size)}

    def draw(self, maps: DenseMaps, legend: bool = False, palette: Palette | None = None) -> PIL.Image.Image:
        return draw_depth(maps.predicted_depth.cpu().numpy(), legend)

    def to_numbers(self, maps: DenseMaps) -> np.ndarray:
        # 0 is what readers of such images take for "not known".
        return np.clip(np.round(maps.predicted_depth.numpy() * MILLIMETRES), 1, 65535).astype(np.uint16)

    def describe(self, maps: DenseMaps) -> str:
        depth = maps.predicted_depth
        low, high, median = (float(value) for value in (depth.min(), depth.max(), depth.median()))
        return f"{low:.2f} to {high:.2f} m, median {median:.2f} m"


class Foreground(DenseTask):
    """The object that an expression names: `<FG>` against `<BG>` in the crop around its box (paper), or in the whole
    image where the processor has a `referring_prompt`."""

    name = "referring"
    map_field = "mask"
    column = "mask"
    options = ("text", "box")
    question = "Please provide the bounding box coordinate of the region this sentence describes: {text}"
    answer_options = {"max_new_tokens": 32}
    on_crops = True

    def crops(self, request: DenseRequest, processor: TaskProcessor) -> list[Corners] | None:
        if request.box is None and processor.referring_prompt is not None:
            return None
        return [] if request.box is None else [request.box]

    def prompt(self, request: DenseRequest, processor: TaskProcessor) -> str:
        if self.crops(request, processor) is not None:
            return ""
        return processor.referring_prompt.replace("{text}", request.expression.strip())

    def ask(self, request: DenseRequest, processor: TaskProcessor) -> str | None:
        is_known = request.box is not None or self.crops(request, processor) is None
        return None if is_known else self.question.format(text=request.expression.strip())

    def take_answer(self, answer: str, request: DenseRequest) -> None:
        boxes = parse_grounding(answer, request.image_size, request.resized_size)["boxes"].tolist()
        request.box = tuple(boxes[0]) if boxes else None

    def label_ids(self, request: DenseRequest, processor: TaskProcessor) -> list[list[int]]:
        return [[token_id] for token_id in processor.token_ids(FOREGROUND_LABELS)]

    def encode(
        self, annotation: Mapping[str, Any], processor: TaskProcessor, where: str, candidates: str
    ) -> list[Targets]:
        values = self._read_map(annotation, where)
        if values.dtype != np.bool_ and (values.dtype != np.int8 or set(present_values(values)) - {-1, 0, 1}):
            raise ValueError(f"{where} must be booleans, or `int8` of 1, 0 and -1, got {values.dtype}")
        ids = processor.token_ids(FOREGROUND_LABELS)
        return [Targets(values, {place: [token_id] for place, token_id in enumerate(ids)}, -1, (tuple(ids),))]

    def decode(self, logits: torch.Tensor, request: DenseRequest, processor: TaskProcessor) -> dict[str, Any]:
        best, scores = decode_segmentation(logits, request.size, temperature=1.0)
        return {"mask": best == 1, "scores": torch.where(best == 1, scores, 1 - scores)}

    def compose(self, crops: Iterable[CropMaps], request: DenseRequest) -> dict[str, Any]:
        crops = list(crops)
        mask, scores = lay_back(crops, request.image_size)
        if tuple(request.size) != tuple(mask.shape):
            mask, scores = (resize_map(whole.float(), request.size, mode="nearest-exact") for whole in (mask, scores))
        return {"mask": mask > 0.5, "scores": scores, "box": request.box, "logits": crops[0].logits if crops else None}

    def draw(self, maps: DenseMaps, legend: bool = False, palette: Palette | None = None) -> PIL.Image.Image:
        # What is not found is black, as what has no class.
        values = np.where(maps.mask.cpu().numpy(), 1, -1)
        return draw_labels(values, {}, {1: "found"}, legend, palette)

    def is_drawn(self, values: np.ndarray) -> np.ndarray:
        return values > 0

    def to_numbers(self, maps: DenseMaps) -> np.ndarray:
        return maps.mask.numpy().astype(np.uint8) * 255

    def describe(self, maps: DenseMaps) -> str:
        return f"{100 * float(maps.mask.float().mean()):.1f} % of the image"


class OpenSet(Foreground):
    """The model detects the boxes of each class, and the object in each of them is told from its surroundings."""

    name = "open_set"
    map_field = "segmentation"
    column = None
    options = ("labels", "threshold")
    has_logits = False
    question = "Detect every objects that belongs to the following categories: {text}"
    answer_options = {"max_new_tokens": 1024}

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

    draw, is_drawn, describe = Classes.draw, Classes.is_drawn, Classes.describe
    to_numbers = Classes.to_numbers

    def _highest_number(self, maps: DenseMaps) -> int:
        return int(maps.segmentation.max())


def depth_label_ids(processor: TaskProcessor) -> list[list[int]]:
    """The vocabulary id of each depth bin."""
    return [[token_id] for token_id in processor.scale_token_ids(DEPTH_SCALE, processor.depth_bins.num_bins)]


def class_segments(segmentation: torch.Tensor, scores: torch.Tensor, names: dict[int, str]) -> list[dict]:
    """A row for each class of a map of keys; see `segments_info` of [`DenseMaps`]."""
    keys = torch.tensor(sorted(names), device="cpu")
    areas = torch.zeros(len(keys), dtype=torch.long, device=keys.device)
    sums = torch.zeros(len(keys), dtype=torch.double, device="cpu")
    # In parts: sorting a map, or its scores in float64, takes several times its memory; and on the CPU: megapixels of
    # scores can't be summed in float32, and MPS has no float64.
    for ids, own in zip(segmentation.flatten().split(2**20), scores.flatten().split(2**20), strict=True):
        ids, own = ids.cpu(), own.cpu().double()
        place = torch.searchsorted(keys, ids[ids >= 0])
        areas += torch.bincount(place, minlength=len(keys))
        sums += torch.bincount(place, weights=own[ids >= 0], minlength=len(keys))
    return [
        {"id": key, "label_id": key, "label": names[key], "score": total / area, "area": area, "was_fused": False}
        for key, area, total in zip(keys.tolist(), areas.tolist(), sums.tolist(), strict=True)
        if area
    ]


def _refine_classes(
    logits: torch.Tensor, request: DenseRequest, background: bool, crf_options: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """[`decode_segmentation`] with a CRF on the image's pixels before the argmax."""
    probabilities = class_probabilities(logits, background)
    if background:
        probabilities = torch.cat([probabilities, torch.full_like(probabilities[:1], 0.5)])
    height, width = request.size
    pixels = np.asarray(request.image.resize((width, height), PIL.Image.Resampling.BILINEAR))
    best, scores = refine_crf_argmax(probabilities, pixels, **crf_options)
    return (best.masked_fill(best == len(logits), -1) if background else best), scores


TASKS: dict[str, DenseTask] = {task.name: task for task in (Classes(), Depth(), Foreground(), OpenSet())}
DEFAULT_TASK = Classes.name
# Annotations of an image are read by the tasks that have a column, in this order.
ANNOTATED_TASKS: tuple[DenseTask, ...] = tuple(task for task in TASKS.values() if task.column is not None)
# The maps of a prediction, and the first task that fills each.
MAP_TASKS: dict[str, DenseTask] = {}
for _task in TASKS.values():
    MAP_TASKS.setdefault(_task.map_field, _task)
SCALES: tuple[TokenScale, ...] = tuple(
    dict.fromkeys((X_SCALE, Y_SCALE, *(scale for task in TASKS.values() for scale in task.scales)))
)


def get_task(name: str) -> DenseTask:
    """A task by its name, or a `ValueError` that names the accepted ones."""
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(f"`task` must be one of {sorted(TASKS)} or a tuple of them, got {shown(name)}")
    return TASKS[name]


def tasks_with(option: str) -> tuple[str, ...]:
    """Names of the tasks to which an argument of `predict_dense` says something."""
    return tuple(task.name for task in TASKS.values() if option in task.options)


def add_dense_tokens(
    tokenizer: PreTrainedTokenizerBase, num_depth_bins: int = 1000, num_coordinates: int = 2048, **counts: int
) -> int:
    """Add the tokens of DenseMLLM that `tokenizer` lacks, so that any tokenizer can become a DenseMLLM one.

    The image tokens are added as special ones. The others (`<ref>`, `<FG>`, depth bins `<custom_1>`..., coordinates
    `<x_0>`...) are part of answers, so they are ordinary added tokens and stay when special tokens are skipped. The
    model's embeddings have to be resized afterwards: `model.resize_token_embeddings(len(tokenizer))`.

    Args:
        tokenizer: any tokenizer of transformers; changed in place.
        num_depth_bins: number of depth tokens.
        num_coordinates: number of x and of y coordinate tokens; 0 for none.
        counts: number of tokens of other tasks, none where left out: `num_normal_bins`.

    Returns:
        number of tokens that were added.

    Raises:
        TypeError: a count that no task has.
    """
    counts = {"num_depth_bins": num_depth_bins, "num_coordinates": num_coordinates, **counts}
    unknown = sorted(set(counts) - {scale.argument for scale in SCALES})
    if unknown:
        raise TypeError(f"`{unknown[0]}` is not an argument; accepted are {sorted({s.argument for s in SCALES})}")
    return add_missing_tokens(tokenizer, {scale: counts.get(scale.argument, scale.default) for scale in SCALES})


__all__ = [
    "ANNOTATED_TASKS",
    "DEFAULT_TASK",
    "MAP_TASKS",
    "SCALES",
    "TASKS",
    "Classes",
    "DenseMaps",
    "Depth",
    "Foreground",
    "OpenSet",
    "add_dense_tokens",
    "class_segments",
    "get_task",
    "tasks_with",
]
