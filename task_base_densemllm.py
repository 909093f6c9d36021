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
"""What a dense task is: the interface of the classes in `tasks_densemllm`, and what is asked of an image."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import PIL.Image
import torch

from .crops_densemllm import Corners, CropMaps
from .depth_densemllm import DepthBins
from .drawing_densemllm import Palette, draw_labels
from .targets_densemllm import Targets
from .tokens_densemllm import TokenScale


CRF, GUIDED = REFINEMENTS = ("crf", "guided")  # what moves a map to the edges of its image
NO_LABEL = "none of them"  # how legends call pixels without one
Labels = list[str] | tuple[str, ...] | dict[int, str]  # names of classes, or `id2label`
ThingLabels = list[str] | list[int] | tuple[str | int, ...]  # names or keys of classes
Limits = tuple[float, float]  # the ends of a scale


@dataclass
class DenseRequest:
    """What is asked of one image, and what is known of it.

    Attributes:
        size: `(height, width)` of the maps in pixels.
        image_size: `(height, width)` of the image in pixels.
        image: the RGB image, for what looks at its colours.
        labels: class names by key, as `normalize_labels` gives them; `None`: the model names them.
        expression: words for an object.
        box: (x0, y0, x1, y1) of that object in pixels of the image.
        boxes: of objects that the model found: (key in `labels`, corners).
        focal_length: of the image in pixels.
        resized_size: `(height, width)` in pixels of the image as the model gets it; `None`: as it is.
        background, threshold, depth_range, refine, labels_from_answer, source: as for `predict_dense`.
        thing_labels: names or keys of the classes whose objects are told apart; `None`: nobody says which.
        are_things_asked: whether the caller said so, and not the model's config.
        contenders: what [`DenseTask.contenders`] found, as places; `None`: nobody looked.
    """

    size: tuple[int, int]
    image_size: tuple[int, int] | None = None
    image: PIL.Image.Image | None = None
    labels: dict[int, str] | None = None
    expression: str | None = None
    box: Corners | None = None
    boxes: list[tuple[int, Corners]] = field(default_factory=list)
    background: bool = False
    threshold: float | None = None
    depth_range: str | None = None
    focal_length: float | None = None
    resized_size: tuple[int, int] | None = None
    refine: str | None = None
    labels_from_answer: bool = False
    source: str | None = None
    thing_labels: tuple[str | int, ...] | None = None
    are_things_asked: bool = False
    contenders: list[int] | None = None

    @property
    def model_focal_length(self) -> float | None:
        """The focal length, in pixels, of the image as the model gets it."""
        if self.focal_length is None or self.resized_size is None:
            return self.focal_length
        return self.focal_length * math.sqrt(math.prod(self.resized_size) / math.prod(self.image_size))

    def image_of_maps(self) -> PIL.Image.Image:
        """The image in the size of the maps. `ValueError`: there is none."""
        if self.image is None:
            raise ValueError(f"`image` is needed with `refine` {self.refine!r}, got None")
        height, width = self.size
        return self.image.resize((width, height), PIL.Image.Resampling.BILINEAR)


@dataclass
class PixelWords:
    """What a map says of each pixel, in a few words.

    Attributes:
        places: integers `[height, width]`, the place in `words` of what a pixel has.
        words: of each place; two objects have a place each, and may have the same words.
        values: `[len(words)]`, the numbers that the words say, from the least, where they count along something.
    """

    places: np.ndarray
    words: list[str]
    values: np.ndarray | None = None


class TaskProcessor(Protocol):
    """What a task asks of a processor: it does not look into the tokenizer by itself."""

    crf_options: dict[str, Any]
    referring_prompt: str | None

    @property
    def depth_bins(self) -> DepthBins: ...

    def normalize_labels(self, labels: Labels) -> dict[int, str]: ...

    def label_token_ids(self, labels: Labels) -> list[list[int]]: ...

    def known_label_ids(self, labels: Labels) -> list[list[int]]: ...

    def token_ids(self, tokens: Sequence[str]) -> list[int]: ...

    def scale_token_ids(self, scale: TokenScale, count: int | None = None) -> list[int]: ...


class DenseTask(ABC):
    """A dense task. One instance of each class stands in [`TASKS`].

    Attributes:
        name: as callers say it.
        about: what its map has, for the help of commands.
        map_field: the map that it fills of `DenseMaps`.
        column: of a sample or an annotation that trains and evaluates it; `None`: none of its own.
        column_options: entries of an annotation that say how to read the column.
        options: arguments of `predict_dense` that say something to it.
        refinements: values of the option `refine` that it takes.
        needs: those of `options` of which one must be given; none of them has to be where empty.
        question: what the model is asked in words where something was left out; `None`: nothing can be.
        answer_options: arguments of `query` for that question.
        scales: tokens that its labels are, where these count along something.
        on_crops: whether it may look at crops of the image, and not at the whole as other tasks do.
        has_logits: whether it has one map of label logits an image.
        in_order: whether what a vision token says is of the next one, so that it has to be read in one order, and not
            in tiles.
    """

    name: ClassVar[str]
    about: ClassVar[str] = ""
    map_field: ClassVar[str]
    column: ClassVar[str | None] = None
    column_options: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[tuple[str, ...]] = ()
    refinements: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    question: ClassVar[str | None] = None
    answer_options: ClassVar[dict[str, Any]] = {}
    scales: ClassVar[tuple[TokenScale, ...]] = ()
    on_crops: ClassVar[bool] = False
    has_logits: ClassVar[bool] = True
    in_order: ClassVar[bool] = False

    # ---- what it needs ----

    def is_known(self, processor: TaskProcessor) -> bool:
        """Whether the tokenizer has the tokens that it needs, with nothing but an image and words given."""
        return all(processor.scale_token_ids(scale) for scale in self.scales)

    def check(self, request: DenseRequest, processor: TaskProcessor) -> None:  # noqa: B027 - most tasks need nothing
        """Raise a `ValueError` for what can't be asked of any image; before anything is computed."""

    def check_image(self, request: DenseRequest, processor: TaskProcessor) -> None:  # noqa: B027 - most tasks need nothing
        """Raise a `ValueError` for what can't be asked of one image; before anything is computed."""

    def prompt(self, request: DenseRequest, processor: TaskProcessor) -> str:
        """The text before the image."""
        return ""

    def ask(self, request: DenseRequest, processor: TaskProcessor) -> str | None:
        """The question for what the request lacks; `None` where it lacks nothing."""
        return None

    def take_answer(self, answer: str, request: DenseRequest) -> None:
        """Put what the model answered to [`ask`] into the request, whose `resized_size` is known."""
        raise TypeError(f"the task {self.name!r} asks nothing in words")

    def crops(self, request: DenseRequest, processor: TaskProcessor) -> list[Corners] | None:
        """The boxes to look at by themselves, once all is known; `None`: the whole image is read."""
        return None

    # ---- what is learned ----

    def is_annotated(self, sample: Mapping[str, Any]) -> bool:
        """Whether a sample, with its settings by name, has what this task learns from; see `training/samples.py`."""
        return self.column is not None and sample.get(self.column) is not None

    def learned_crops(
        self, annotation: Mapping[str, Any], request: DenseRequest, processor: TaskProcessor
    ) -> list[Corners] | None:
        """The boxes of the crops whose vision tokens learn an annotation; `None`: those of the whole image do."""
        return None

    def teach(
        self, annotation: Mapping[str, Any], request: DenseRequest, processor: TaskProcessor
    ) -> tuple[str, str] | None:
        """A question, and its answer by an annotation, in words; `None`: there is none. `resized_size` is known."""
        return None

    # ---- labels, targets, maps ----

    @abstractmethod
    def label_ids(self, request: DenseRequest, processor: TaskProcessor) -> list[list[int]]:
        """The vocabulary ids of each label whose logits are read."""

    @abstractmethod
    def encode(
        self, annotation: Mapping[str, Any], processor: TaskProcessor, where: str, candidates: str,
        size: tuple[int, int],
    ) -> list[Targets]:  # fmt: skip
        """An annotation of an image, which has this task's `column`, as one or several kinds of targets.

        Args:
            annotation: column and its options by name.
            processor: of the model.
            where: how messages name the annotation.
            candidates: see `DenseMLLMProcessor.encode_annotations`.
            size: `(height, width)` in pixels of the image as the model gets it.

        Raises:
            ValueError: the annotation can't be used.
        """

    def encode_next(
        self, annotation: Mapping[str, Any], processor: TaskProcessor, where: str, grid: tuple[int, int]
    ) -> np.ndarray | None:
        """The code that each vision token stands for, as the one before it has to say; `None` of a task that has
        none.

        Args:
            annotation, processor, where: as for [`encode`].
            grid: `(height, width)` in vision tokens of the image as the model gets it.

        Returns:
            `int64 [height * width]`, -100 where it is ignored.

        Raises:
            ValueError: the annotation can't be used.
        """
        return None

    @abstractmethod
    def decode(self, logits: torch.Tensor, request: DenseRequest, processor: TaskProcessor) -> dict[str, Any]:
        """Label logits of one image to the fields of `DenseMaps` (paper, section on decoding).

        Args:
            logits: `float32 [num_labels, grid_height, grid_width]`, in the order of [`label_ids`].
            request: what is asked of the image.
            processor: of the model.

        Returns:
            the fields by name, `scores` among them; maps are of the size that the request says, on the device of
            `logits`.
        """

    def contenders(self, logits: torch.Tensor, request: DenseRequest) -> torch.Tensor | None:
        """What [`decode`] would have to read of the logits before it begins, so that the host waits once for several
        images: `bool [n]`, whose true places it finds in the request; `None`: nothing."""
        return None

    def finish(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of [`decode`] with those that are worked out on the CPU, from maps that are there by now."""
        return fields

    def compose(self, crops: Iterable[CropMaps], request: DenseRequest) -> dict[str, Any]:
        """Fields of the whole image from those of its crops, which are read one after another."""
        raise TypeError(f"the task {self.name!r} reads the whole image, and no crops of it")

    # ---- how its map is shown ----

    @abstractmethod
    def draw(
        self, maps: Any, legend: bool = False, palette: Palette | None = None, limits: Limits | None = None
    ) -> PIL.Image.Image:
        """An image of its map; see `DensePrediction.to_pil`."""

    def limits(self, maps: Any) -> Limits | None:
        """The ends of the scale of its map, for images that share one; `None`: it has no scale."""
        return None

    def is_drawn(self, values: np.ndarray) -> np.ndarray:
        """Where a map is laid over an image: `bool`, of the same shape."""
        return np.ones(values.shape[:2], dtype=bool)

    @abstractmethod
    def to_numbers(self, maps: Any) -> np.ndarray:
        """Its map as `uint8` or `uint16`, for a PNG."""

    @abstractmethod
    def to_words(self, maps: Any) -> PixelWords:
        """What its map says of each pixel."""

    @abstractmethod
    def describe(self, maps: Any) -> str:
        """What its map has, in one line."""

    def _read_map(self, annotation: Mapping[str, Any], where: str) -> np.ndarray:
        values = np.asarray(annotation[self.column])
        if values.ndim != 2 or 0 in values.shape:
            raise ValueError(f"{where} must be [height, width], got shape {values.shape}")
        return values


class SegmentMap:
    """How a map of segments, `segmentation` of `DenseMaps`, is shown: what tasks that fill it share.

    Attributes:
        has_objects: whether the map's values are the `id`s of objects, and not the keys of names.
    """

    has_objects: ClassVar[bool] = False

    def draw(
        self, maps: Any, legend: bool = False, palette: Palette | None = None, limits: Limits | None = None
    ) -> PIL.Image.Image:
        names = {row["id"]: row["label"] for row in maps.segments_info or []}
        values = maps.segmentation.cpu().numpy()
        return draw_labels(values, names, {-1: NO_LABEL}, legend, palette)

    def is_drawn(self, values: np.ndarray) -> np.ndarray:
        return values >= 0

    def to_numbers(self, maps: Any) -> np.ndarray:
        values = maps.segmentation.numpy()
        # Of the names and not of what is there, where it can be: the files of several images are of one kind.
        highest = int(values.max()) if self.has_objects else max(maps.labels or {}, default=0)
        kind = np.uint8 if highest < 255 else np.uint16  # 255, or 65535, is none of them
        return np.where(values < 0, np.iinfo(kind).max, values).astype(kind)

    def to_words(self, maps: Any) -> PixelWords:
        names = {row["id"]: row["label"] for row in maps.segments_info or []}
        numbers, places = np.unique(maps.segmentation.cpu().numpy(), return_inverse=True)
        words = [names.get(number, NO_LABEL) for number in numbers.tolist()]
        return PixelWords(places.reshape(maps.segmentation.shape), words)

    def describe(self, maps: Any) -> str:
        count = maps.segmentation.numel()
        rows = sorted(maps.segments_info, key=lambda row: -row["area"])
        return ", ".join(f"{row['label']} {100 * row['area'] / count:.1f} %" for row in rows) or NO_LABEL


def needed_token_ids(scale: TokenScale, processor: TaskProcessor, needed_by: str) -> list[int]:
    """The vocabulary ids of a scale's tokens; a `ValueError` says what they are `needed_by` where there are none."""
    ids = processor.scale_token_ids(scale)
    if not ids:
        first = scale.template.format(scale.first)
        raise ValueError(f"{needed_by} needs a tokenizer with `{first}`...: `add_dense_tokens` adds them")
    return ids


def bin_targets(bins: np.ndarray, label_ids: list[list[int]]) -> Targets:
    """Targets of a map of bins, 1..n; 0 isn't annotated. All that occur in a cell count.

    Args:
        bins: integers `[height, width]`.
        label_ids: of each bin, its own token first; of these, all first ones are annotated.
    """
    own = tuple(ids[0] for ids in label_ids)
    return Targets(bins, dict(enumerate(label_ids, start=1)), 0, (own,), needs_share=False)


__all__ = [
    "CRF",
    "GUIDED",
    "REFINEMENTS",
    "DenseRequest",
    "DenseTask",
    "NO_LABEL",
    "Labels",
    "Limits",
    "PixelWords",
    "SegmentMap",
    "TaskProcessor",
    "ThingLabels",
    "bin_targets",
    "needed_token_ids",
]
