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
"""Pipelines: `dense-prediction`, and those of transformers' own names that this model can do."""

import os
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image
from torch.utils.data import Dataset
from transformers import Pipeline
from transformers.pipelines.base import GenericTensor
from transformers.utils import logging

from .checks_densemllm import (
    check_choice,
    check_corners,
    check_count,
    check_share,
    check_target_sizes,
    check_text,
    is_flat,
    plain,
    shown,
)
from .configuration_densemllm import class_names
from .drawing_densemllm import depth_to_gray
from .exif_densemllm import EXIF, check_focal_length, read_exif
from .image_encoding_densemllm import ImageOrEncoded, load_image
from .object_tasks_densemllm import OpenSet
from .prediction_densemllm import DensePrediction
from .task_base_densemllm import Labels, ThingLabels
from .tasks_densemllm import DEFAULT_TASK, Classes, Depth, Panoptic
from .text_tasks_densemllm import DETECTION
from .tokens_densemllm import X_SCALE


logger = logging.get_logger(__name__)

DEPTH_IMAGE = "depth"  # as transformers' own depth estimation calls the image beside its map


@dataclass(frozen=True)
class _Input:
    """One input of a call, with its place in a list of them and what lists among the call's arguments give it."""

    value: object
    place: int | None = None
    per_image_kwargs: dict = field(default_factory=dict)


class _Inputs(Dataset):
    """A data set's entries as [`_Input`]."""

    def __init__(self, inputs, lists: dict[str, list]):
        self.inputs, self.lists = inputs, lists

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, place: int) -> _Input:
        return _Input(self.inputs[place], place, {name: values[place] for name, values in self.lists.items()})


class DensePredictionPipeline(Pipeline):
    """`pipeline("dense-prediction")`: [`predict_dense`] for single images, lists, generators and data sets.

    The arguments of `predict_dense` in `OPTIONS` can be given with each call; all but `task`, which is `pipeline`'s
    own, when the pipeline is made, too. An input is an image (PIL, path, URL, array, tensor), or a dict with `image`
    and any of `text`, `box`, `focal_length` and `target_sizes` (one `(height, width)`), which differ between images.
    Lists of these among the arguments of a call have one entry for each of its inputs, whatever the batches are.

    Returns for every image a dict of what the tasks fill in: `segmentation`, `segments_info`, `labels`,
    `predicted_depth` (metres), `depth` (PIL image of it, mode `L`, far is bright, as in transformers' own
    `depth-estimation`), `mask`, `box`, `scores`, `logits`, `text`; shapes and types are those of [`DensePrediction`].
    With `on_error="skip"`, `None` for an image that can't be read.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    NAME = "dense-prediction"
    OPTIONS = (
        "task", "labels", "text", "box", "background", "threshold", "depth_range", "focal_length", "refine",
        "return_logits", "target_sizes", "scale", "max_num_patches", "on_error", "source", "thing_labels",
        "labels_from_answer",
    )  # fmt: skip
    PER_IMAGE_OPTIONS = ("text", "box", "focal_length", "target_sizes")

    def __init__(self, *args: Any, task: str | None = None, **kwargs: Any):
        if task not in (None, self.NAME):
            raise ValueError(f"`task` {task!r} has to be given with each call: pipe(images, task={task!r})")
        super().__init__(*args, task=self.NAME, **_check_counts(kwargs))
        if self.device.type == "meta":  # of a model whose weights are offloaded
            self.device = self.model._input_device

    def __call__(
        self,
        inputs: ImageOrEncoded | Sequence[ImageOrEncoded] | Dataset | Iterator[ImageOrEncoded],
        *args: Any,
        **kwargs: Any,
    ) -> Any:  # what a pipeline makes of an image, a list of it, or an iterator for a data set or a generator
        kwargs = _check_counts(kwargs)
        lists = {name: plain(kwargs.pop(name)) for name in self.PER_IMAGE_OPTIONS if _is_list(name, kwargs.get(name))}
        if isinstance(inputs, types.GeneratorType) or (isinstance(inputs, Dataset) and not hasattr(inputs, "__len__")):
            inputs = _number_inputs(inputs, lists)
        elif isinstance(inputs, (list, tuple, Dataset)):
            _check_lengths(lists, len(inputs))
            numbered = _Inputs(inputs, lists)
            inputs = numbered if isinstance(inputs, Dataset) else [numbered[place] for place in range(len(inputs))]
            if not numbered:
                return []
        else:
            _check_lengths(lists, 1)
            inputs = _Input(inputs, per_image_kwargs={name: values[0] for name, values in lists.items()})
        return super().__call__(inputs, *args, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Model and processor, as a checkpoint that works alone."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def _sanitize_parameters(self, **kwargs):
        unknown = sorted(set(kwargs) - set(self.OPTIONS))
        if unknown:
            raise TypeError(f"{unknown} can't be given to this pipeline; it takes {list(self.OPTIONS)}")
        for name in self.PER_IMAGE_OPTIONS:  # when the pipeline is made
            if _is_list(name, kwargs.get(name)):
                raise ValueError(f"`{name}` must be one value here; a list, one an image, goes with the images' call")
        first = {} if kwargs.get("on_error") is None else {"on_error": kwargs["on_error"]}
        kwargs.pop("on_error", None)
        if "focal_length" in kwargs:  # read from the images before they are loaded, where it is "exif"
            first["focal_length"] = check_focal_length(kwargs["focal_length"])
            kwargs["focal_length"] = None if first["focal_length"] == EXIF else first["focal_length"]
        return first, kwargs, {}

    def preprocess(self, inputs: _Input, on_error: str = "raise", focal_length: float | str | None = None) -> dict:
        check_choice("on_error", on_error, ("raise", "skip"))
        value, name = inputs.value, "`images`" if inputs.place is None else f"`images[{inputs.place}]`"
        given = dict(value) if isinstance(value, dict) else {"image": value}
        accepted = [option for option in self.PER_IMAGE_OPTIONS if option in self.OPTIONS]
        unknown = sorted(set(given) - {"image", *accepted}, key=str)
        if unknown or "image" not in given:
            raise ValueError(f"{name} must have `image` and may have {accepted}, got {sorted(given, key=str)}")
        image = given.pop("image")
        per_image_kwargs = {
            option: self._check_per_image(option, entry)
            for option, entry in {**inputs.per_image_kwargs, **given}.items()
            if entry is not None
        }
        if per_image_kwargs.get("focal_length", focal_length) == EXIF:
            image, per_image_kwargs["focal_length"] = read_exif(image, self.processor.image_processor, {}, name)
        try:
            loaded = load_image(image, self.processor.image_processor, name)
        except (TypeError, ValueError) as error:
            if on_error == "raise":
                raise
            logger.warning(f"skipped: {error}")
            loaded = None
        # In lists, so that batches of them are lists as well.
        return {"images": [loaded], "per_image_kwargs": [per_image_kwargs]}

    def _check_per_image(self, name: str, value):
        """What one input has for itself, in plain numbers."""
        if name == "text":
            return check_text(name, value, "one expression for an input")
        if name == "box":
            return check_corners(name, value)
        if name == "focal_length":
            return check_focal_length(value)
        return check_target_sizes(value, 1)[0]

    def _forward(self, model_inputs: dict, **options) -> dict[str, GenericTensor]:
        images, per_image_kwargs = (_flat(model_inputs[name]) for name in ("images", "per_image_kwargs"))
        places = [place for place, image in enumerate(images) if image is not None]
        images, per_image_kwargs = ([values[place] for place in places] for values in (images, per_image_kwargs))
        options = {"task": DEFAULT_TASK, "processor": self.processor, **options}
        for name in {name: None for row in per_image_kwargs for name in row}:
            shared = [options.get(name)] * len(images)
            if name == "target_sizes" and shared[0] is None:
                shared = [(image.height, image.width) for image in images]
            options[name] = [row.get(name, default) for row, default in zip(per_image_kwargs, shared, strict=True)]
        predictions: list = [None] * len(_flat(model_inputs["images"]))
        if images:
            found = self.model.predict_dense(images, batch_size=len(images), **options)
            for place, prediction in zip(places, found, strict=True):
                predictions[place] = prediction
        return {"predictions": predictions}

    def postprocess(self, model_outputs: dict) -> dict | None:
        (prediction,) = _flat(model_outputs["predictions"])
        return None if prediction is None else self._result(prediction)

    def _result(self, prediction):
        fields = {name: value for name, value in vars(prediction).items() if value is not None}
        if prediction.predicted_depth is not None:
            fields[DEPTH_IMAGE] = depth_to_gray(prediction.predicted_depth.numpy())
        return fields


class DenseDepthEstimationPipeline(DensePredictionPipeline):
    """`pipeline("depth-estimation")` with the arguments of `predict_dense` that tell about depth: those in `OPTIONS`,
    for the call or for an input (see [`DensePredictionPipeline`]). Others are refused, not ignored.

    Returns for every image what transformers' own pipeline does: a dict of `predicted_depth`, `float32 [height,
    width]` in metres, and `depth`, a PIL image of it, mode `L`, far is bright.
    """

    NAME = "depth-estimation"
    OPTIONS = ("depth_range", "focal_length", "target_sizes", "scale", "max_num_patches", "on_error")

    def _forward(self, model_inputs: dict, **options) -> dict[str, GenericTensor]:
        return super()._forward(model_inputs, task=Depth.name, **options)

    def _result(self, prediction):
        fields = super()._result(prediction)
        return {name: fields[name] for name in (Depth.map_field, DEPTH_IMAGE)}


class DenseImageSegmentationPipeline(DensePredictionPipeline):
    """`pipeline("image-segmentation")` with the arguments of `predict_dense` for a segmentation: those in `OPTIONS`,
    for the call or for an input (see [`DensePredictionPipeline`]). Others are refused, not ignored. `labels` are those
    of `config.id2label` where left out.

    `subtask` is one of transformers' own: `"semantic"` (the default), a class for each pixel; `"panoptic"`, objects of
    the classes that `thing_labels` names and all other classes; `"instance"`, these objects alone.

    Returns for every image what transformers' own pipeline does: a list of a dict for each segment that is there, with
    `label`, `mask` (PIL image of mode `L`, 255 inside) and `score`, which is `None` for a semantic segmentation: its
    classes are not objects with one score each.
    """

    NAME = "image-segmentation"
    OPTIONS = (
        "labels", "background", "threshold", "depth_range", "focal_length", "refine", "target_sizes", "scale",
        "max_num_patches", "on_error", "subtask", "thing_labels", "labels_from_answer",
    )  # fmt: skip
    SUBTASKS = {"semantic": Classes.name, "panoptic": Panoptic.name, "instance": Panoptic.name}

    def _sanitize_parameters(self, **kwargs):
        subtask = kwargs.pop("subtask", None)
        preprocess, forward, _ = super()._sanitize_parameters(**kwargs)
        own = {} if subtask is None else {"subtask": check_choice("subtask", subtask, self.SUBTASKS)}
        shared = {"labels": kwargs["labels"]} if "labels" in kwargs else {}
        return preprocess, {**forward, **own}, {**shared, **own}

    def _forward(
        self, model_inputs: dict, labels=None, subtask: str = "semantic", **options
    ) -> dict[str, GenericTensor]:
        labels = class_names(self.model.config) if labels is None else labels
        return super()._forward(model_inputs, task=self.SUBTASKS[subtask], labels=labels, **options)

    def postprocess(
        self, model_outputs: dict, labels: Labels | None = None, subtask: str = "semantic"
    ) -> list[dict] | None:
        found = super().postprocess(model_outputs)
        if found is None:
            return None
        labels = class_names(self.model.config) if labels is None else labels  # as they are written there
        rows = []
        for row in found["segments_info"]:
            if subtask == "instance" and not row["isthing"]:
                continue
            mask = (found[Classes.map_field] == row["id"]).numpy().astype(np.uint8) * 255
            score = None if subtask == "semantic" else row["score"]
            rows.append({"score": score, "label": labels[row["label_id"]], "mask": PIL.Image.fromarray(mask)})
        return rows


class DenseObjectDetectionPipeline(DensePredictionPipeline):
    """`pipeline("object-detection")` with the arguments of `predict_dense` in `OPTIONS` (see
    [`DensePredictionPipeline`]).

    Where the checkpoint has `config.thing_labels`, or the call gives `thing_labels`, the objects are those of a
    panoptic map. Otherwise the model is asked for the boxes of `labels` in words: those of `config.id2label` where
    left out, and where that has none those that the model names itself. Either way an object has a mask, whose mean
    probability is its `score`. `threshold` is the lowest score, `top_k` the number of objects at most.

    Returns for every image what transformers' own pipeline does: a list of a dict for each object, with `score`,
    `label` and `box` (a dict of `xmin`, `ymin`, `xmax` and `ymax`, whole pixels of the image), the best one first.

    Raises:
        ValueError: the checkpoint has no coordinate tokens, which boxes and centres of objects are made of.
    """

    NAME = "object-detection"
    OPTIONS = (
        "labels", "thing_labels", "threshold", "top_k", "focal_length", "depth_range", "scale", "max_num_patches",
        "on_error",
    )  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not self.processor.scale_token_ids(X_SCALE):
            token = X_SCALE.template.format(X_SCALE.first)
            raise ValueError(
                f"`task` {self.NAME!r} is not for this checkpoint: its tokenizer has no coordinate tokens "
                f"({token}...), which `add_dense_tokens` adds, and training on `objects` or `instances` teaches; "
                "`pipeline('image-segmentation')` finds its classes"
            )

    def _sanitize_parameters(self, **kwargs):
        preprocess, forward, _ = super()._sanitize_parameters(**kwargs)
        kept = {name: forward.pop(name) for name in ("threshold", "top_k") if name in forward}
        if kept.get("threshold") is not None:
            check_share("threshold", kept["threshold"])
        if kept.get("top_k") is not None:
            check_count("top_k", kept["top_k"])
        return preprocess, forward, kept

    def _forward(
        self,
        model_inputs: dict,
        labels: Labels | None = None,
        thing_labels: ThingLabels | None = None,
        **options,
    ) -> dict[str, GenericTensor]:
        config, images = self.model.config, _flat(model_inputs["images"])
        if thing_labels is not None or config.thing_labels:
            options |= {"task": Panoptic.name, "thing_labels": thing_labels}
            labels = class_names(config) if labels is None else labels
        elif labels is None:
            labels = config.label_names
        if labels is not None:
            return self._with_labels(model_inputs, [_numbered(labels)] * len(images), **options)
        return self._with_labels(model_inputs, [self._names_in(image) for image in images], **options)

    def _names_in(self, image: PIL.Image.Image | None) -> dict[int, str]:
        """The classes of the objects that the model names where it is asked for all of them."""
        if image is None:
            return {}
        names = self.model.predict(image, DETECTION, processor=self.processor)["labels"]
        return _numbered([name for name in dict.fromkeys(names) if name])

    def _with_labels(
        self, model_inputs: dict, labels: list[dict[int, str]], task: str = OpenSet.name, **options
    ) -> dict[str, GenericTensor]:
        """Objects of the classes that each image has for itself; images with the same ones are read together."""
        images, per_image_kwargs = (_flat(model_inputs[name]) for name in ("images", "per_image_kwargs"))
        # Of an image in which the model names nothing, there is nothing to ask.
        predictions = [None if image is None else DensePrediction(segments_info=[]) for image in images]
        places: dict[tuple, list[int]] = {}
        for place, names in enumerate(labels):
            if names and images[place] is not None:
                places.setdefault(tuple(names.items()), []).append(place)
        for own in places.values():
            part = {"images": [images[place] for place in own]}
            part["per_image_kwargs"] = [per_image_kwargs[place] for place in own]
            names = labels[own[0]]
            found = super()._forward(part, task=task, labels=names, **options)["predictions"]
            for place, prediction in zip(own, found, strict=True):
                for row in prediction.segments_info:
                    row["label"] = names[row["label_id"]]  # as it is written there
                predictions[place] = prediction
        return {"predictions": predictions}

    def postprocess(
        self, model_outputs: dict, threshold: float | None = None, top_k: int | None = None
    ) -> list[dict] | None:
        found = super().postprocess(model_outputs)
        if found is None:
            return None
        rows = []
        for row in found["segments_info"]:
            if row.get("isthing", True) and (threshold is None or row["score"] >= threshold):
                edges = (int(edge) for edge in row["box"])
                box = dict(zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True))
                rows.append({"score": row["score"], "label": row["label"], "box": box})
        return sorted(rows, key=lambda row: -row["score"])[:top_k]


class DenseZeroShotObjectDetectionPipeline(DenseObjectDetectionPipeline):
    """`pipeline("zero-shot-object-detection")`: the boxes of the classes that `candidate_labels` names, as
    [`DenseObjectDetectionPipeline`] asks for them in words; results and errors are the same.

    `candidate_labels` are a list of names, or one text with commas between them; for the call, for each of its inputs
    (a list of such lists), or beside an image: `{"image": image, "candidate_labels": ["cup", "plate"]}`.
    """

    NAME = "zero-shot-object-detection"
    OPTIONS = (
        "candidate_labels", "threshold", "top_k", "focal_length", "depth_range", "scale", "max_num_patches",
        "on_error",
    )  # fmt: skip
    PER_IMAGE_OPTIONS = (*DensePredictionPipeline.PER_IMAGE_OPTIONS, "candidate_labels")

    def __call__(
        self,
        image: ImageOrEncoded | Sequence[ImageOrEncoded] | Dataset | Iterator[ImageOrEncoded],
        candidate_labels: str | list[str] | list[list[str]] | None = None,
        **kwargs: Any,
    ) -> Any:  # as for every pipeline of this file
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        return super().__call__(image, **kwargs)

    def _sanitize_parameters(self, **kwargs):
        preprocess, forward, kept = super()._sanitize_parameters(**kwargs)
        if forward.get("candidate_labels") is not None:
            forward["candidate_labels"] = self._check_per_image("candidate_labels", forward["candidate_labels"])
        return preprocess, forward, kept

    def _check_per_image(self, name: str, value):
        if name != "candidate_labels":
            return super()._check_per_image(name, value)
        names = value.split(",") if isinstance(value, str) else plain(value)
        if not isinstance(names, (list, tuple)) or not names:
            raise TypeError(f"`candidate_labels` must be a list of names, got {shown(value)}")
        return [check_text("candidate_labels", own, "a list of names").strip() for own in names]

    def _forward(
        self, model_inputs: dict, candidate_labels: list[str] | None = None, **options
    ) -> dict[str, GenericTensor]:
        rows = _flat(model_inputs["per_image_kwargs"])
        labels = [row.get("candidate_labels", candidate_labels) for row in rows]
        if None in labels:
            raise ValueError("`candidate_labels` is needed: the names of what to look for, got None")
        rows = [{name: value for name, value in row.items() if name != "candidate_labels"} for row in rows]
        labels = [_numbered(own) for own in labels]
        return self._with_labels({**model_inputs, "per_image_kwargs": rows}, labels, **options)


def _numbered(labels: Labels) -> dict[int, str]:
    return labels if isinstance(labels, dict) else dict(enumerate(labels))


def _check_counts(kwargs: dict) -> dict:
    """Arguments with a checked `batch_size` and `num_workers`, where they are given."""
    least = {"batch_size": 1, "num_workers": 0}
    given = [name for name in least if kwargs.get(name) is not None]
    return {**kwargs, **{name: check_count(name, kwargs[name], least[name]) for name in given}}


def _is_list(name: str, value) -> bool:
    """Whether an argument of a call has one entry for each image."""
    values = plain(value)
    if name == "candidate_labels" and isinstance(values, (list, tuple)):
        return any(isinstance(own, (list, tuple)) for own in values)
    return isinstance(values, list) and not (name in ("box", "target_sizes") and is_flat(values))


def _check_lengths(lists: dict[str, list], count: int) -> None:
    for name, values in lists.items():
        if len(values) != count:
            raise ValueError(f"`{name}` must be one, or one an image, got {len(values)} for {count} images")


def _number_inputs(inputs: Iterable, lists: dict[str, list]) -> Iterator[_Input]:
    """[`_Inputs`] of a stream, whose length shows at its end, or where a list ends before it."""
    place = -1
    for place, value in enumerate(inputs):
        for name, values in lists.items():
            if place >= len(values):
                raise ValueError(f"`{name}` must be one, or one an image, got {len(values)} for more images than that")
        yield _Input(value, place, {name: values[place] for name, values in lists.items()})
    _check_lengths(lists, place + 1)


def _flat(values) -> list:
    """A batch of lists of one, or one such list, as a list."""
    values = values if isinstance(values, list) else [values]
    return [entry for value in values for entry in (value if isinstance(value, list) else [value])]


__all__ = [
    "DenseDepthEstimationPipeline",
    "DenseImageSegmentationPipeline",
    "DenseObjectDetectionPipeline",
    "DensePredictionPipeline",
    "DenseZeroShotObjectDetectionPipeline",
]
