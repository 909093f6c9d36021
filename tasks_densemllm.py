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

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .answers_densemllm import normalize_name, parse_refs
from .checks_densemllm import check_choice, shown
from .code_tasks_densemllm import Codes
from .crops_densemllm import empty_map
from .decoding_densemllm import (
    class_probabilities,
    contending_labels,
    decode_bin_places,
    decode_depth_bins,
    decode_segmentation,
    resize_map,
)
from .drawing_densemllm import Palette, add_names, draw_depth, normals_to_colors
from .guided_densemllm import guided_resize, guided_segmentation
from .instances_densemllm import coordinate_numbers, decode_instances, encode_centres, make_panoptic
from .normals_densemllm import bin_neighbours, decode_normals, depth_to_normals, normals_to_bins
from .object_tasks_densemllm import Foreground, OpenSet
from .records_densemllm import Record
from .refinement_densemllm import refine_crf_argmax
from .targets_densemllm import IGNORE_INDEX, Targets, check_ignore_index, present_values
from .task_base_densemllm import (
    CRF,
    GUIDED,
    REFINEMENTS,
    DenseRequest,
    DenseTask,
    Limits,
    PixelWords,
    SegmentMap,
    TaskProcessor,
    ThingLabels,
    bin_targets,
    needed_token_ids,
)
from .tokens_densemllm import (
    BACKGROUND_LABEL,
    DEPTH_SCALE,
    X_SCALE,
    Y_SCALE,
    TokenScale,
    add_missing_tokens,
)


MILLIMETRES = 1000
AXIS_SHARE = math.sin(math.radians(22.5))  # of a unit vector, from which it is turned along an axis
AXES = (("left", "", "right"), ("down", "", "up"), ("away", "", "to the camera"))
DIRECTIONS = {
    x + 3 * y + 9 * z: ", ".join(filter(None, (AXES[1][y + 1], AXES[0][x + 1], AXES[2][z + 1]))) or "unknown"
    for x, y, z in itertools.product((-1, 0, 1), repeat=3)
}  # fmt: skip


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
        normals (`torch.FloatTensor [height, width, 3]`): unit vectors (x, y, z): x to the right, y up, z towards the
            camera.
        mask (`torch.BoolTensor [height, width]`): the referred object.
        box (`tuple[float, float, float, float]`): of the referred object: x0, y0, x1, y1 in pixels of the image.
        scores (`torch.FloatTensor [height, width]`): confidence in [0, 1]: of the chosen label, of the depth bin, or
            of the foreground. With several tasks in one call a dict from task to map. That of a label compares it with
            the other labels of the call: it is not the probability that such a thing is in the image. A label alone
            has 1 everywhere, unless `background` or `<OTHERS>` gives it something to compete with.
        logits (`torch.FloatTensor [num_labels, grid_height, grid_width]`): label logits, with `return_logits=True`
            only; of a panoptic map, those of the bins of x and of y follow. With several tasks in one call a dict
            from task to tensor.
        codes (`torch.LongTensor [grid_height, grid_width]`): of each vision token, as a visual tokenizer counts them;
            -1 of the first one, which nobody says.
        text (`str`): what the model answered where it was asked for a class list or a box.
    """

    segmentation: torch.Tensor | None = None
    segments_info: list[dict] | None = None
    labels: dict[int, str] | None = None
    predicted_depth: torch.Tensor | None = None
    normals: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    box: tuple[float, float, float, float] | None = None
    scores: "torch.Tensor | dict[str, torch.Tensor] | None" = None
    logits: "torch.Tensor | dict[str, torch.Tensor] | None" = None
    codes: torch.Tensor | None = None
    text: str | None = None


class Classes(SegmentMap, DenseTask):
    """A class for each pixel, of names that the caller gives, or that the model names."""

    name = "segmentation"
    about = "a class for each pixel"
    map_field = "segmentation"
    column = "segmentation"
    column_options = ("id2label", "ignore_index")
    options = ("labels", "background", "threshold", "refine", "labels_from_answer")
    refinements = REFINEMENTS
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
        self, annotation: Mapping[str, Any], processor: TaskProcessor, where: str, candidates: str,
        size: tuple[int, int],
    ) -> list[Targets]:  # fmt: skip
        values = self._read_map(annotation, where)
        id2label = annotation.get("id2label")
        if id2label is None:
            raise ValueError(f"{where} needs `id2label`, a dict from class id to name")
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{where} must be integers (class ids), got {values.dtype}")
        ignored = annotation.get("ignore_index", IGNORE_INDEX)
        check_ignore_index(ignored, id2label)
        names = processor.normalize_labels(id2label)
        unknown = sorted(set(present_values(values).tolist()) - set(names) - {ignored})
        if unknown:
            raise ValueError(f"{where} has class ids {unknown[:10]} that `id2label` and `ignore_index` lack")
        ids = processor.known_label_ids(id2label)
        own = tuple(token_id for name_ids in ids for token_id in name_ids)
        annotated = (own, "text") if candidates == "vocabulary" else (own,)
        return [Targets(values, dict(zip(names, ids, strict=True)), ignored, annotated)]

    def teach(
        self, annotation: Mapping[str, Any], request: DenseRequest, processor: TaskProcessor
    ) -> tuple[str, str] | None:
        present = set(present_values(annotation[self.column]).tolist())
        names = processor.normalize_labels(annotation["id2label"])
        refs = "".join(f"<ref>{name}</ref>" for key, name in names.items() if key in present)
        # Where all of it is ignored, what there is isn't known.
        return (self.question, f"The target categories include {refs}.") if refs else None

    def contenders(self, logits: torch.Tensor, request: DenseRequest) -> torch.Tensor | None:
        kept, _, background = self._competing(request)
        return contending_labels(_rows(logits, kept), background) if kept and request.refine is None else None

    def finish(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {**fields, "segments_info": class_segments(fields["segmentation"], fields["scores"], fields["labels"])}

    def decode(self, logits: torch.Tensor, request: DenseRequest, processor: TaskProcessor) -> dict[str, Any]:
        names = request.labels or {}
        if not names:
            nothing = torch.full(request.size, -1, dtype=torch.long)
            return {"segmentation": nothing, "scores": empty_map(request.size), "labels": {}}
        segmentation, scores, rest = self._read_classes(logits, request, processor)
        if request.threshold is not None:
            is_weak = (scores < request.threshold) & (segmentation != rest)
            segmentation = segmentation.masked_fill(is_weak, -1)
        return {"segmentation": segmentation, "scores": scores, "labels": names}

    def _competing(self, request: DenseRequest) -> tuple[list[int], int, bool]:
        """Places of the labels whose logits are read, the key of pixels that are none of them, and whether there may
        be such pixels."""
        names = request.labels or {}
        others = [place for place, name in enumerate(names.values()) if name == BACKGROUND_LABEL]
        # The background's own logit is not read: it wins wherever no label has a probability above one half.
        kept = [place for place in range(len(names)) if place not in others]
        return (kept, list(names)[others[0]], True) if others else (kept, -1, request.background)

    def _read_classes(
        self, logits: torch.Tensor, request: DenseRequest, processor: TaskProcessor
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Keys of the labels and their scores, `[height, width]`, and the key of pixels that are none of them."""
        kept, rest, background = self._competing(request)
        keys = [key for place, key in enumerate(request.labels) if place in set(kept)]
        logits = _rows(logits, kept)
        if not keys:
            segmentation = torch.full(request.size, rest, dtype=torch.long, device=logits.device)
            scores = torch.full(request.size, 0.5, dtype=torch.float32, device=logits.device)
            return segmentation, scores, rest
        if request.refine == CRF:
            best, scores = _refine_classes(logits, request, background, processor.crf_options)
        elif request.refine == GUIDED:
            best, scores = guided_segmentation(logits, request.image_of_maps(), background)
        else:
            best, scores = decode_segmentation(logits, request.size, background, contenders=request.contenders)
        return torch.tensor([rest, *keys], device=best.device)[best.add_(1)], scores, rest


class Panoptic(Classes):
    """Every object by itself, and every class whose objects aren't counted as one segment.

    Vision tokens of an object learn how far it is from them to its centre, in tokens of coordinates: the middle one of
    these says "here". They vote, and those that vote for one place are one object; the classes are those of
    [`Classes`], read from the same logits. (Centres that count from the image's edges were not learned in the same
    time: benchmarks/rooms_instances.py.)
    """

    name = "panoptic"
    about = "a class for each pixel, and the objects of `thing_labels` each by itself"
    column = "instances"
    column_options = ("thing_labels",)
    options = (*Classes.options, "thing_labels")
    scales = (X_SCALE, Y_SCALE)
    origin = "token"
    has_objects = True
    max_bins = 64  # of a coordinate: places are found between them

    def check(self, request: DenseRequest, processor: TaskProcessor) -> None:
        super().check(request, processor)
        if request.thing_labels is None:
            raise ValueError(
                f"`thing_labels` is needed for the task {self.name!r}: the classes whose objects are told apart; or "
                "`config.thing_labels`"
            )
        if request.labels is not None:
            unknown = [thing for thing in request.thing_labels if not _keys_of(thing, request.labels)]
            if request.are_things_asked and unknown:
                raise ValueError(f"`thing_labels` must be names or keys of `labels`, got {unknown[:10]}")
        self.check_tokens(processor)

    def check_tokens(self, processor: TaskProcessor) -> None:
        """Raise a `ValueError` where the tokenizer has no coordinates."""
        self._coordinate_ids(processor, None)

    def is_annotated(self, sample: Mapping[str, Any]) -> bool:
        # Numbers of objects are there for other reasons, too: which are told apart is for the caller to say.
        needed = (Classes.column, *self.column_options)
        return super().is_annotated(sample) and all(sample.get(name) is not None for name in needed)

    def teach(
        self, annotation: Mapping[str, Any], request: DenseRequest, processor: TaskProcessor
    ) -> tuple[str, str] | None:
        return None  # that of the classes beside it says it all

    def label_ids(self, request: DenseRequest, processor: TaskProcessor) -> list[list[int]]:
        x_ids, y_ids = self._coordinate_ids(processor, request.resized_size)
        return super().label_ids(request, processor) + [[token_id] for token_id in (*x_ids, *y_ids)]

    def encode(
        self, annotation: Mapping[str, Any], processor: TaskProcessor, where: str, candidates: str,
        size: tuple[int, int],
    ) -> list[Targets]:  # fmt: skip
        instances = self._read_map(annotation, where)
        if annotation.get(Classes.column) is None or annotation.get("id2label") is None:
            raise ValueError(f"{where} needs `{Classes.column}` and `id2label` beside it, the classes of the objects")
        if not np.issubdtype(instances.dtype, np.integer):
            raise ValueError(f"{where} must be integers (numbers of objects), got {instances.dtype}")
        segmentation = np.asarray(annotation[Classes.column])
        if segmentation.shape != instances.shape:
            raise ValueError(
                f"{where} must be of the size of `{Classes.column}`, {segmentation.shape}, got {instances.shape}"
            )
        names, thing_labels = processor.normalize_labels(annotation["id2label"]), annotation.get("thing_labels")
        thing_ids = list(names) if thing_labels is None else thing_keys(thing_labels, names)
        instances = np.where(instances == annotation.get("ignore_index", IGNORE_INDEX), 0, instances)
        ids = self._coordinate_ids(processor, size)
        bins = encode_centres(segmentation, instances, thing_ids, *map(len, ids), self.origin)
        # A token has one vote: a corner of another object in its cell is none, where `min_label_share` says so.
        return [
            replace(bin_targets(values, [[token_id] for token_id in axis_ids]), needs_share=True)
            for values, axis_ids in zip(bins, ids, strict=True)
        ]

    def decode(self, logits: torch.Tensor, request: DenseRequest, processor: TaskProcessor) -> dict[str, Any]:
        n_x, n_y = map(len, self._coordinate_ids(processor, request.resized_size))
        class_logits, x_logits, y_logits = logits.split([len(logits) - n_x - n_y, n_x, n_y])
        fields = super().decode(class_logits, request, processor)
        names = {key: name for key, name in fields["labels"].items() if name != BACKGROUND_LABEL}
        if not names:  # all of it is the background
            return {**fields, "segmentation": torch.full_like(fields["segmentation"], -1), "segments_info": []}
        thing_ids = [key for thing in request.thing_labels for key in _keys_of(thing, names)]
        segmentation = fields["segmentation"]
        instances = decode_instances(
            x_logits, y_logits, segmentation, thing_ids, self.origin,
            image=request.image_of_maps() if request.refine == GUIDED else None,
        )  # fmt: skip
        cell = segmentation.numel() // math.prod(logits.shape[1:])  # less than a token sees is no object
        found = make_panoptic(segmentation, fields["scores"], instances, thing_ids, names, min_area=max(1, cell))
        segments = found["segmentation"].long()
        return {
            **fields,
            "segmentation": segments.masked_fill(segments == 0, -1),
            "segments_info": found["segments_info"],
        }

    def finish(self, fields: dict[str, Any]) -> dict[str, Any]:
        return fields

    def _coordinate_ids(self, processor: TaskProcessor, size: tuple[int, int] | None) -> tuple[list[int], list[int]]:
        """The tokens of the bins of x and of y, in an image that the model gets in a size `(height, width)`."""
        found = []
        for scale, edge in zip(self.scales, (0, 0) if size is None else size[::-1], strict=True):
            ids = needed_token_ids(scale, processor, f"the task {self.name!r}")
            edge = edge or len(ids)
            count = min(self.max_bins, len(ids), edge)
            found.append([ids[number] for number in coordinate_numbers(count, len(ids), edge)])
        return found[0], found[1]


def thing_keys(thing_labels: ThingLabels, id2label: dict[int, str]) -> list[int]:
    """The keys in `id2label` of the classes whose objects are told apart.

    Args:
        thing_labels: their names or keys.
        id2label: class id to name.

    Raises:
        TypeError: `thing_labels` is not a list of names or keys.
        ValueError: one that `id2label` lacks.
    """
    if isinstance(thing_labels, str) or not isinstance(thing_labels, (list, tuple)):
        raise TypeError(f"`thing_labels` must be a list of names or keys of classes, got {shown(thing_labels)}")
    names = {int(key): normalize_name(name) for key, name in id2label.items()}
    found = {thing: _keys_of(thing, names) for thing in thing_labels}
    unknown = [thing for thing, keys in found.items() if not keys]
    if unknown:
        raise ValueError(f"`thing_labels` must be names or keys of `id2label`, got {unknown[:10]}")
    return list(dict.fromkeys(key for keys in found.values() for key in keys))


def check_things(thing_labels: ThingLabels, id2label: dict[int, str] | None, processor: TaskProcessor) -> None:
    """Raise an error where votes of objects can't be learned: see [`thing_keys`], and a `ValueError` where the
    tokenizer has no coordinates. `id2label` may be known later."""
    if id2label is not None:
        thing_keys(thing_labels, id2label)
    TASKS[Panoptic.name].check_tokens(processor)


def _keys_of(thing: str | int, names: dict[int, str]) -> list[int]:
    """The key in `names` of a class that is told by its name or key; none where it isn't there."""
    if isinstance(thing, str):
        return [key for key, name in names.items() if name == normalize_name(thing)]
    return [thing] if thing in names else []


class Depth(DenseTask):
    """Metric depth, by depth tokens."""

    name = "depth"
    about = "metres"
    map_field = "predicted_depth"
    column = "depth"
    column_options = ("depth_range", "focal_length")
    options = ("depth_range", "focal_length", "refine")
    refinements = (GUIDED,)
    scales = (DEPTH_SCALE,)

    def check(self, request: DenseRequest, processor: TaskProcessor) -> None:
        processor.depth_bins.row(request.depth_range)

    def prompt(self, request: DenseRequest, processor: TaskProcessor) -> str:
        return depth_prompt(request, processor)

    def label_ids(self, request: DenseRequest, processor: TaskProcessor) -> list[list[int]]:
        return depth_label_ids(processor)

    def encode(
        self, annotation: Mapping[str, Any], processor: TaskProcessor, where: str, candidates: str,
        size: tuple[int, int],
    ) -> list[Targets]:  # fmt: skip
        values = self._read_map(annotation, where)
        if not np.issubdtype(values.dtype, np.number):
            raise ValueError(f"{where} must be numbers (metres), got {values.dtype}")
        bins = processor.depth_bins.encode(values, annotation.get("depth_range"), annotation.get("focal_length"))
        return [bin_targets(bins, depth_label_ids(processor))]

    def decode(self, logits: torch.Tensor, request: DenseRequest, processor: TaskProcessor) -> dict[str, Any]:
        if request.refine == GUIDED:
            # Places among the bins, of which the means along an edge are those of neighbours on the same side of it.
            places, scores = decode_bin_places(logits)
            places = guided_resize(places[None], request.image_of_maps())[0]
            depth = processor.depth_bins.metres(places, request.depth_range, request.model_focal_length)
            return {"predicted_depth": depth, "scores": resize_map(scores, request.size)}
        bins, scores = decode_depth_bins(logits)
        depth = processor.depth_bins.look_up(bins, request.depth_range, request.model_focal_length)
        return {"predicted_depth": resize_map(depth, request.size), "scores": resize_map(scores, request.size)}

    def draw(
        self, maps: DenseMaps, legend: bool = False, palette: Palette | None = None, limits: Limits | None = None
    ) -> PIL.Image.Image:
        return draw_depth(maps.predicted_depth.cpu().numpy(), legend, *(limits or self.limits(maps)))

    def limits(self, maps: DenseMaps) -> Limits | None:
        return float(maps.predicted_depth.min()), float(maps.predicted_depth.max())

    def to_numbers(self, maps: DenseMaps) -> np.ndarray:
        # 0 is what readers of such images take for "not known".
        return np.clip(np.round(maps.predicted_depth.numpy() * MILLIMETRES), 1, 65535).astype(np.uint16)

    def to_words(self, maps: DenseMaps) -> PixelWords:
        values, places = np.unique(np.round(maps.predicted_depth.cpu().numpy(), 2), return_inverse=True)
        words = [f"{value:.2f} m" for value in values]
        return PixelWords(places.reshape(maps.predicted_depth.shape), words, values)

    def describe(self, maps: DenseMaps) -> str:
        depth = maps.predicted_depth
        low, high, median = (float(value) for value in (depth.min(), depth.max(), depth.median()))
        return f"{low:.2f} to {high:.2f} m, median {median:.2f} m"


class Normals(DenseTask):
    """Surface normals: by tokens of a grid of directions, or from the slopes of the depth map.

    A pixel's tokens are those of the bin of its normal and of the bins around it, as all depth bins of a cell are the
    cell's: they are nearly right.
    """

    name = "normals"
    about = "the direction of each surface"
    map_field = "normals"
    column = "normals"
    options = ("source", "depth_range", "focal_length", "refine")
    refinements = (GUIDED,)
    scales = (
        TokenScale(
            "<normal_{}>", 1, "num_normal_bins", 0,
            ("seen from the side", "turned away", "slanted", "turned towards the camera", "facing the camera"),
        ),
    )  # fmt: skip
    sources = ("tokens", "depth")

    def source(self, request: DenseRequest, processor: TaskProcessor) -> str:
        """Where normals come from: what the request says, else tokens where the tokenizer has them, else depth."""
        if request.source is not None:
            return check_choice("source", request.source, self.sources)
        return self.sources[0] if processor.scale_token_ids(self.scales[0]) else self.sources[1]

    def is_known(self, processor: TaskProcessor) -> bool:
        return any(processor.scale_token_ids(scale) for scale in (*self.scales, DEPTH_SCALE))

    def check(self, request: DenseRequest, processor: TaskProcessor) -> None:
        if self.source(request, processor) == self.sources[0]:
            needed_token_ids(self.scales[0], processor, "`source` 'tokens'")

    def check_image(self, request: DenseRequest, processor: TaskProcessor) -> None:
        if self.source(request, processor) == self.sources[1] and request.focal_length is None:
            raise ValueError("`focal_length` is needed for normals from depth, in pixels of the image, got None")

    def prompt(self, request: DenseRequest, processor: TaskProcessor) -> str:
        return depth_prompt(request, processor) if self.source(request, processor) == self.sources[1] else ""

    def label_ids(self, request: DenseRequest, processor: TaskProcessor) -> list[list[int]]:
        if self.source(request, processor) == self.sources[1]:
            return depth_label_ids(processor)
        return [[token_id] for token_id in processor.scale_token_ids(self.scales[0])]

    def encode(
        self, annotation: Mapping[str, Any], processor: TaskProcessor, where: str, candidates: str,
        size: tuple[int, int],
    ) -> list[Targets]:  # fmt: skip
        ids = needed_token_ids(self.scales[0], processor, where)
        try:
            bins = normals_to_bins(np.asarray(annotation[self.column]), len(ids))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error
        around = bin_neighbours(len(ids))
        label_ids = [[ids[place], *(ids[number - 1] for number in around[place])] for place in range(len(ids))]
        return [bin_targets(bins, label_ids)]

    def decode(self, logits: torch.Tensor, request: DenseRequest, processor: TaskProcessor) -> dict[str, Any]:
        is_guided = request.refine == GUIDED
        if self.source(request, processor) == self.sources[0]:
            if not is_guided:
                normals, scores = decode_normals(logits, request.size)
                return {"normals": normals, "scores": scores}
            normals, scores = decode_normals(logits, logits.shape[1:], upsampling=1)
            return self._guided(normals.permute(2, 0, 1), scores, request)
        # Between the bins' centres, a token a pixel: the steps of whole bins, and those of a finer map between its
        # tokens, would be slopes of their own (benchmarks/rooms_normals.py).
        places, scores = decode_bin_places(logits, upsampling=1 if min(logits.shape[1:]) > 1 else 2)
        depth = processor.depth_bins.metres(places, request.depth_range, request.model_focal_length)
        pixels = math.sqrt(math.prod(depth.shape) / math.prod(request.image_size))
        normals = depth_to_normals(depth.float(), request.focal_length * pixels).permute(2, 0, 1)
        if is_guided:
            return self._guided(normals, scores, request)
        normals = torch.stack([resize_map(axis, request.size) for axis in normals], dim=-1)
        return {"normals": F.normalize(normals, dim=-1), "scores": resize_map(scores, request.size)}

    def _guided(self, normals: torch.Tensor, scores: torch.Tensor, request: DenseRequest) -> dict[str, Any]:
        """The fields of [`decode`] of normals `[3, height, width]` on a grid, along the image's edges."""
        normals = guided_resize(normals, request.image_of_maps()).permute(1, 2, 0)
        return {"normals": F.normalize(normals, dim=-1), "scores": resize_map(scores, request.size)}

    def draw(
        self, maps: DenseMaps, legend: bool = False, palette: Palette | None = None, limits: Limits | None = None
    ) -> PIL.Image.Image:
        image = PIL.Image.fromarray(self.to_numbers(maps))
        names = {"right": (1, 0, 0), "up": (0, 1, 0), "to the camera": (0, 0, 1)}
        rows = [(name, normals_to_colors(np.array(axis, np.float32))) for name, axis in names.items()]
        return add_names(image, rows) if legend else image

    def is_drawn(self, values: np.ndarray) -> np.ndarray:
        return (values != 0).any(axis=-1)

    def to_numbers(self, maps: DenseMaps) -> np.ndarray:
        return normals_to_colors(maps.normals.cpu().numpy())

    def to_words(self, maps: DenseMaps) -> PixelWords:
        normals = maps.normals.cpu().numpy()
        # Of each axis whether a surface is turned along it, against it, or within 22.5 degrees of neither.
        steps = ((normals > AXIS_SHARE).astype(np.int8) - (normals < -AXIS_SHARE)) @ np.array([1, 3, 9])
        numbers, places = np.unique(steps, return_inverse=True)
        return PixelWords(places.reshape(steps.shape), [DIRECTIONS[number] for number in numbers.tolist()])

    def describe(self, maps: DenseMaps) -> str:
        axes = {"up": maps.normals[..., 1], "to the camera": maps.normals[..., 2], "aside": maps.normals[..., 0].abs()}
        least = math.cos(math.radians(30))
        shares = (f"{100 * float((axis > least).float().mean()):.1f} % {name}" for name, axis in axes.items())
        return f"{', '.join(shares)}, each within 30 degrees"


def depth_prompt(request: DenseRequest, processor: TaskProcessor) -> str:
    """The text before the image that the depth range asks for."""
    return processor.depth_bins.row(request.depth_range).get("prompt") or ""


def depth_label_ids(processor: TaskProcessor) -> list[list[int]]:
    """The vocabulary id of each depth bin."""
    return [[token_id] for token_id in processor.scale_token_ids(DEPTH_SCALE, processor.depth_bins.num_bins)]


def class_segments(segmentation: torch.Tensor, scores: torch.Tensor, names: dict[int, str]) -> list[dict]:
    """A row for each class of a map of keys; see `segments_info` of [`DenseMaps`]."""
    keys = torch.tensor(sorted(names), dtype=torch.long, device="cpu")
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


def _rows(logits: torch.Tensor, places: list[int]) -> torch.Tensor:
    if places == list(range(len(places))):
        return logits[: len(places)]
    return logits[torch.tensor(places, device=logits.device)]


def _refine_classes(
    logits: torch.Tensor, request: DenseRequest, background: bool, crf_options: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """[`decode_segmentation`] with a CRF on the image's pixels before the argmax."""
    probabilities = class_probabilities(logits, background)
    if background:
        probabilities = torch.cat([probabilities, torch.full_like(probabilities[:1], 0.5)])
    best, scores = refine_crf_argmax(probabilities, request.image_of_maps(), **crf_options)
    return (best.masked_fill(best == len(logits), -1) if background else best), scores


TASKS: dict[str, DenseTask] = {
    task.name: task for task in (Classes(), Depth(), Foreground(), OpenSet(), Normals(), Panoptic(), Codes())
}
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


def check_refine(refine: Any, tasks: Iterable[DenseTask]) -> str | None:
    """`refine` of `predict_dense`, if it is `None` or one of the tasks takes it; a `ValueError` if not."""
    if refine is None or (isinstance(refine, str) and any(refine in task.refinements for task in tasks)):
        return refine
    takers = {name: [task.name for task in TASKS.values() if name in task.refinements] for name in REFINEMENTS}
    accepted = ", or ".join(f"{name!r} with the task {' or '.join(map(repr, own))}" for name, own in takers.items())
    raise ValueError(f"`refine` must be None, or {accepted}, got {shown(refine)}")


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
        counts: number of tokens of other tasks, none where left out: `num_normal_bins`, and `num_image_codes`, those
            of a visual tokenizer.

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
    "Codes",
    "DenseMaps",
    "Depth",
    "Normals",
    "Panoptic",
    "Foreground",
    "OpenSet",
    "add_dense_tokens",
    "check_refine",
    "check_things",
    "class_segments",
    "get_task",
    "tasks_with",
    "thing_keys",
]
