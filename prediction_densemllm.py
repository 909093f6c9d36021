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
"""Dense prediction with a DenseMLLM: maps of images from the logits of their vision tokens. No head, no decoder."""

import difflib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import PIL.Image
import torch
from transformers.utils import logging

from .checks_densemllm import (
    Box,
    FocalLengths,
    Sizes,
    check_choice,
    check_corners,
    check_count,
    check_flag,
    check_share,
    check_target_sizes,
    check_text,
    is_flat,
    one_an_image,
    plain,
    shown,
)
from .crops_densemllm import CropMaps, check_box, crop_box
from .exif_densemllm import find_focal_lengths
from .image_encoding_densemllm import (
    EncodedImage,
    ImageOrEncoded,
    at_places,
    check_images_kwargs,
    check_processor,
    load_images,
    with_focal_scale,
)
from .numbers_densemllm import copies_on_host, read_numbers
from .processing_densemllm import DenseMLLMProcessor
from .questions_densemllm import QuestionMixin
from .saving_densemllm import StoredMaps
from .streams_densemllm import takes_iterators
from .task_base_densemllm import DenseRequest, DenseTask, Labels, ThingLabels
from .tasks_densemllm import DEFAULT_TASK, check_refine, get_task, tasks_with
from .tiles_densemllm import Tiling
from .tokens_densemllm import BACKGROUND_LABEL


logger = logging.get_logger(__name__)


@dataclass
class DensePrediction(StoredMaps):
    """Maps of one image, with what shows and stores them; the fields are those of [`DenseMaps`].

    A prediction goes from process to process as a pickle, or as [`to_dict`] and [`from_dict`]; where a checkpoint's
    own code is not loaded, a pickle of it is read as a `types.SimpleNamespace` of the fields.
    """


@dataclass
class _View:
    """One task on one image: what is asked of it, and what is found.

    Attributes:
        task, request: what is asked.
        entry: the RGB image, or one that is encoded already.
        images_kwargs: of the image processor, for this image.
        prompt: the text before the image.
        question: what the model is asked about the image first, for what the request lacks.
        encoded: the image as the model read it; `None` where only crops of it are looked at.
        asked: the same for the question.
        answer: to the question.
        fields: of [`DenseMaps`], once they are there.
    """

    task: DenseTask
    request: DenseRequest
    entry: PIL.Image.Image | EncodedImage
    images_kwargs: dict[str, Any]
    prompt: str
    question: str | None
    encoded: EncodedImage | None = None
    asked: EncodedImage | None = None
    answer: str | None = None
    fields: dict[str, Any] | None = None


class DensePredictionMixin(QuestionMixin):
    """What [`DenseMLLMForConditionalGeneration`] does beyond forward and generate: `encode_image`, `predict_dense`,
    `query` and `predict`. It needs nothing of the model but its backbone and its output embedding."""

    @overload
    def predict_dense(
        self, images: ImageOrEncoded, task: str | tuple[str, ...] = ..., labels: Labels | None = ...,
        text: str | None = ..., box: Sequence[float] | None = ..., background: bool = ...,
        threshold: float | None = ..., depth_range: str | None = ..., focal_length: FocalLengths | None = ...,
        target_sizes: Sizes | None = ..., refine: str | None = ..., return_logits: bool = ...,
        processor: DenseMLLMProcessor | None = ..., batch_size: int = ..., on_error: Literal["raise"] = ...,
        labels_from_answer: bool = ..., source: str | None = ..., thing_labels: ThingLabels | None = ...,
        tile: int | tuple[int, int] | None = ..., tile_overlap: int | None = ..., **images_kwargs: Any,
    ) -> DensePrediction: ...  # fmt: skip

    @overload  # several objects of one image
    def predict_dense(
        self, images: ImageOrEncoded, task: str | tuple[str, ...] = ..., labels: Labels | None = ...,
        text: str | Sequence[str | None] | None = ..., box: Sequence[Box | None] | None = ..., background: bool = ...,
        threshold: float | None = ..., depth_range: str | None = ..., focal_length: FocalLengths | None = ...,
        target_sizes: Sizes | None = ..., refine: str | None = ..., return_logits: bool = ...,
        processor: DenseMLLMProcessor | None = ..., batch_size: int = ..., on_error: Literal["raise"] = ...,
        labels_from_answer: bool = ..., source: str | None = ..., thing_labels: ThingLabels | None = ...,
        tile: int | tuple[int, int] | None = ..., tile_overlap: int | None = ..., **images_kwargs: Any,
    ) -> list[DensePrediction]: ...  # fmt: skip

    @overload
    def predict_dense(
        self, images: Sequence[ImageOrEncoded], task: str | tuple[str, ...] = ..., labels: Labels | None = ...,
        text: str | Sequence[str | None] | None = ..., box: Box | Sequence[Box | None] | None = ...,
        background: bool = ..., threshold: float | None = ..., depth_range: str | None = ...,
        focal_length: FocalLengths | None = ..., target_sizes: Sizes | None = ..., refine: str | None = ...,
        return_logits: bool = ..., processor: DenseMLLMProcessor | None = ..., batch_size: int = ...,
        on_error: Literal["raise"] = ...,
        labels_from_answer: bool = ..., source: str | None = ..., thing_labels: ThingLabels | None = ...,
        tile: int | tuple[int, int] | None = ..., tile_overlap: int | None = ..., **images_kwargs: Any,
    ) -> list[DensePrediction]: ...  # fmt: skip

    @overload
    def predict_dense(
        self, images: ImageOrEncoded | Sequence[ImageOrEncoded], task: str | tuple[str, ...] = ...,
        labels: Labels | None = ..., text: str | Sequence[str | None] | None = ...,
        box: Box | Sequence[Box | None] | None = ..., background: bool = ..., threshold: float | None = ...,
        depth_range: str | None = ..., focal_length: FocalLengths | None = ..., target_sizes: Sizes | None = ...,
        refine: str | None = ..., return_logits: bool = ..., processor: DenseMLLMProcessor | None = ...,
        batch_size: int = ..., on_error: str = ...,
        labels_from_answer: bool = ..., source: str | None = ..., thing_labels: ThingLabels | None = ...,
        tile: int | tuple[int, int] | None = ..., tile_overlap: int | None = ..., **images_kwargs: Any,
    ) -> DensePrediction | list[DensePrediction] | list[DensePrediction | None] | None: ...  # fmt: skip

    @overload
    def predict_dense(
        self, images: Iterator[ImageOrEncoded], task: str | tuple[str, ...] = ..., labels: Labels | None = ...,
        text: str | None = ..., *, on_error: Literal["raise"] = ..., **kwargs: Any,
    ) -> Iterator[DensePrediction]: ...  # fmt: skip

    @overload
    def predict_dense(
        self, images: Iterator[ImageOrEncoded], task: str | tuple[str, ...] = ..., labels: Labels | None = ...,
        text: str | None = ..., *, on_error: str = ..., **kwargs: Any,
    ) -> Iterator[DensePrediction | None]: ...  # fmt: skip

    @takes_iterators
    @torch.no_grad()
    def predict_dense(
        self,
        images: ImageOrEncoded | Sequence[ImageOrEncoded],
        task: str | tuple[str, ...] = DEFAULT_TASK,
        labels: Labels | None = None,
        text: str | Sequence[str | None] | None = None,
        box: Box | Sequence[Box | None] | None = None,
        background: bool = False,
        threshold: float | None = None,
        depth_range: str | None = None,
        focal_length: FocalLengths | None = None,
        target_sizes: Sizes | None = None,
        refine: str | None = None,
        return_logits: bool = False,
        processor: DenseMLLMProcessor | None = None,
        batch_size: int = 8,
        on_error: str = "raise",
        labels_from_answer: bool = False,
        source: str | None = None,
        thing_labels: ThingLabels | None = None,
        tile: int | tuple[int, int] | None = None,
        tile_overlap: int | None = None,
        **images_kwargs: Any,
    ) -> DensePrediction | list[DensePrediction] | list[DensePrediction | None] | None:
        """Dense maps from the vision tokens' logits: the columns of the label tokens, and an argmax. No head.

        Args:
            images: a PIL image, a path, a numpy array `uint8 [height, width, 3]`, a torch tensor `[3, height, width]`
                (`uint8`, or floating point in [0, 1]), an [`EncodedImage`], or a list of these; or an iterator, of any
                length, which is drawn from by a thread, a batch ahead of the model. What is said of each image by
                itself (`text`, `box`, `focal_length`, `target_sizes`) is then one value for all.
            task: `"segmentation"`, `"panoptic"` (objects of `thing_labels` each by itself), `"depth"`, `"normals"`,
                `"referring"`, `"open_set"` (the model detects the boxes of each class and segments what is in them:
                `segmentation` then has an id for each object), `"codes"` (of a visual tokenizer, on the grid of vision
                tokens whatever `target_sizes` say), or a tuple of tasks that fill different maps, but for the two that
                look at boxes: these share one pass over the image where the text before the image is the same.
            labels: class names, or a dict from id to name. `None`: the model names the classes itself. Names that
                `config.id2label` lacks, where the model has one, are warned of once.
            text: expression of the object to find, for referring; one, or one an image; several for one image give a
                list.
            box: `(x0, y0, x1, y1)` in pixels of the image around that object, as for `text`. `None`: the model finds
                it from `text`.
            background: whether pixels may be none of the labels (-1); so, too, where `<OTHERS>` is one of them.
            threshold: pixels of a segmentation whose score is lower become -1; those of `<OTHERS>` stay.
            depth_range: row of `config.depth_ranges`; the config's default where left out.
            focal_length: of the image in pixels; one, or one an image (`None` where it is unknown, `"exif"` where the
                image's EXIF data say it, see [`exif_focal_length`]). In a range with a focal length of its own, the
                image is scaled to that for every task, as far as the patch cap lets it, and depth is corrected for
                the rest; a warning says once where it isn't known.
            target_sizes: `(height, width)` of the maps, or one an image; the images' own sizes where left out.
            refine: move the edges of maps to the image's. `"guided"`: maps follow the image's colours from token to
                token ([`guided_segmentation`], [`guided_resize`]), of every task and at little cost. `"crf"`, for
                classes: near pixels of like colour agree, by [`refine_crf`] with the processor's `crf_options`.
            return_logits: keep the label logits on the grid of vision tokens; an open set has none.
            processor: found from the checkpoint where left out.
            batch_size: images a forward pass.
            on_error: `"raise"`, or `"skip"`: an image that can't be read is warned of, by its place in the list, and
                has `None` in the result, and all others are predicted.
            labels_from_answer: ask the model first which of `labels` it sees, in the released checkpoint's words
                (`Segment: a, b, ...`), and let only those compete, as its authors do; else all of them compete.
            source: of normals: `"tokens"`, or `"depth"`, from the slopes of the depth map, which needs a
                `focal_length`; tokens where left out and the tokenizer has them.
            thing_labels: names, or keys of `labels`, of the classes whose objects are told apart in a panoptic map;
                those of `config.thing_labels` where left out.
            tile: edge, or `(height, width)`, in pixels of the image as the model gets it, of tiles that are read one
                after another, for images of more patches than memory or the model has room for: `max_num_patches` is
                then that of a tile. Logits are averaged where tiles overlap. What is asked in words first (classes
                that are left out, boxes) is asked of the image as a whole, without `scale`.
            tile_overlap: pixels, at least, that neighbouring tiles share; an eighth of the shorter edge where left
                out.
            images_kwargs: for the image processor (`scale`, `max_num_patches`...).

        Returns:
            one [`DensePrediction`], or a list for a list, or a generator for an iterator; maps are on the CPU.

        Raises:
            ValueError, TypeError: an argument that can't be used, named; before anything is computed.
        """
        processor = self._choose_processor(check_processor(processor))
        tasks = _check_tasks(task)
        common = _check_options(
            tasks, processor, labels=labels, background=background, threshold=threshold, depth_range=depth_range,
            refine=refine, return_logits=return_logits, labels_from_answer=labels_from_answer, source=source,
            thing_labels=thing_labels, model_things=self.config.thing_labels,
        )  # fmt: skip
        batch_size = check_count("batch_size", batch_size)
        images_kwargs = check_images_kwargs(images_kwargs, processor)
        tiling = self._check_tiling(tile, tile_overlap, processor, images_kwargs)
        for one in tasks if tiling is not None else ():
            if one.in_order:
                raise ValueError(
                    f"`tile` can't be given with the task {one.name!r}, which reads an image in one order"
                )
        single = not isinstance(images, (list, tuple))
        images = [images] if single else images
        objects = _count_objects(text, box) if single and _takes_objects(tasks) else None
        images, focal_lengths = find_focal_lengths(
            images, focal_length, processor.image_processor, images_kwargs, single
        )
        asked = _check_each(tasks, common, len(images), objects, text, box, focal_lengths, target_sizes, processor)
        _warn_of_focal_lengths(tasks, depth_range, focal_lengths, processor)
        per_image_kwargs = [with_focal_scale(images_kwargs, processor, focal, depth_range) for focal in focal_lengths]
        if objects is not None:  # one dict for all of them: the image is read once
            per_image_kwargs *= objects
        if images_kwargs and images and all(isinstance(image, EncodedImage) for image in images):
            raise ValueError(f"{sorted(images_kwargs)} can't be given for images that are encoded already")
        if common.labels is not None:
            self._warn_of_unknown_labels(common.labels.values())

        entries, places = load_images(images, processor, single, on_error, images_kwargs, encoded=True)
        if objects is not None:  # of one image
            entries, places, single = entries * objects, list(range(objects * len(entries))), False
        requests = [_complete(asked[place], entry) for entry, place in zip(entries, places, strict=True)]
        for one in tasks:
            for request in requests:  # of images that are there: one that is skipped has no focal length in its file
                one.check_image(request, processor)
        per_image_kwargs = [per_image_kwargs[place] for place in places]
        rows = zip(entries, requests, per_image_kwargs, strict=True)
        views = [[_view(one, *row, processor) for one in tasks] for row in rows]
        self._check_lengths([view for of_image in views for view in of_image], processor, tiling)
        predictions = []
        read = [(id(of_image[0].entry), *(view.prompt for view in of_image)) for of_image in views]
        for part in _parts(read, batch_size):
            together = [view for of_image in views[part] for view in of_image]
            self._encode_views(together, processor, batch_size, tiling)
            self._ask_views(together, processor, batch_size)
            self._read_views(together, processor, batch_size, images_kwargs)
            _bring_to_host(together, return_logits)
            for of_image in views[part]:
                predictions.append(_join(of_image, return_logits))
                of_image.clear()  # and with them what the model kept of the image
        return at_places(predictions, places, len(asked), single)

    def _check_lengths(self, views: list[_View], processor: DenseMLLMProcessor, tiling: Tiling | None) -> None:
        """Refuse images with more tokens than the language model has positions, before any is read."""
        for prompt in {view.prompt: None for view in views}:
            fresh = [
                view for view in views
                if view.prompt == prompt and not isinstance(view.entry, EncodedImage) and _reads_image(view, processor)
            ]  # fmt: skip
            kwargs = [view.images_kwargs for view in fresh]
            self._check_prompt_lengths([view.entry for view in fresh], prompt, "", processor, kwargs, tiling)

    def _encode_views(
        self, views: list[_View], processor: DenseMLLMProcessor, batch_size: int, tiling: Tiling | None
    ) -> None:
        """Read each image once for each text before it; what is in tiles, and asked about, once more as a whole."""
        by_prompt: dict[str, dict[tuple[int, int], list[_View]]] = {}
        for view in views:
            if _reads_image(view, processor):
                same = by_prompt.setdefault(view.prompt, {})
                same.setdefault((id(view.entry), id(view.images_kwargs)), []).append(view)
        read: dict[tuple[int, int], EncodedImage] = {}  # by the tower, which sees no text
        again: list[tuple[EncodedImage, list[_View]]] = []
        for prompt, same in by_prompt.items():
            for key, group in list(same.items()) if tiling is None else []:
                seen = read.get(key, group[0].entry)
                if isinstance(seen, EncodedImage) and seen.prompt != prompt:
                    again.append((seen, same.pop(key)))
            if same:
                self._encode_fresh(same, prompt, processor, batch_size, tiling)
                read |= {key: group[0].encoded for key, group in same.items()}
        for start in range(0, len(again), batch_size):
            part = again[start : start + batch_size]
            images, features, grids = zip(
                *((seen.image, seen.image_features, seen.grid) for seen, _ in part), strict=True
            )
            prompts = [group[0].prompt for _, group in part]
            encoded = self._prefill_images(images, features, grids, prompts, processor, False)
            for (_, group), image in zip(part, encoded, strict=True):
                for view in group:
                    view.encoded = view.asked = image

    def _encode_fresh(
        self, same: dict[tuple[int, int], list[_View]], prompt: str, processor: DenseMLLMProcessor, batch_size: int,
        tiling: Tiling | None,
    ) -> None:  # fmt: skip
        """Read images by tower and language model, those of one group of views once."""
        firsts = [group[0] for group in same.values()]
        together = [view for group in same.values() for view in group]
        asks = any(view.question is not None for view in together)
        is_cut = tiling is not None and any(_reads_whole(view, processor) for view in together)
        entries, kwargs = [view.entry for view in firsts], [view.images_kwargs for view in firsts]
        as_asked = whole = None
        if tiling is None or is_cut:
            whole = self._encode_entries(entries, prompt, asks, kwargs, processor, batch_size, tiling)
        if tiling is not None and asks:
            as_asked = self._encode_entries(entries, prompt, True, [{}] * len(entries), processor, batch_size)
        for place, group in enumerate(same.values()):
            for view in group:
                view.encoded = (whole or as_asked)[place]
                view.asked = (as_asked or whole)[place]

    def _ask_views(self, views: list[_View], processor: DenseMLLMProcessor, batch_size: int) -> None:
        """Ask the model for what was left out: names of classes, boxes; at once for all views that are asked alike."""
        alike: dict[str, list[_View]] = {}
        for view in views:
            if view.question is not None:
                alike.setdefault(repr(view.task.answer_options), []).append(view)
        for asked in alike.values():
            images, texts = [view.asked for view in asked], [view.question for view in asked]
            options = {**asked[0].task.answer_options, "batch_size": batch_size}
            for view, answer in zip(asked, self.query(images, texts, processor, **options), strict=True):
                view.answer = answer
                view.request.resized_size = self._resized_size(view.asked)
                view.task.take_answer(view.answer, view.request)

    def _read_views(
        self, views: list[_View], processor: DenseMLLMProcessor, batch_size: int, images_kwargs: dict[str, Any]
    ) -> None:
        """Label logits to maps: of whole images, and of crops, which get `images_kwargs`."""
        whole = [view for view in views if _reads_whole(view, processor)]
        logits, contending = [], {}
        for place, view in enumerate(whole):
            view.request.resized_size = self._resized_size(view.encoded)
            logits.append(self._grid_logits(view.encoded, view.task.label_ids(view.request, processor)))
            contending[str(place)] = view.task.contenders(logits[-1], view.request)
        # The host waits once for all of them.
        found = read_numbers({name: mask for name, mask in contending.items() if mask is not None})
        for name, flags in found.items():
            whole[int(name)].request.contenders = [place for place, flag in enumerate(flags) if flag]
        for view, own in zip(whole, logits, strict=True):
            view.fields = {**view.task.decode(own, view.request, processor), "logits": own}
        cropped = [view for view in views if view.fields is None]
        boxes = [view.task.crops(view.request, processor) for view in cropped]
        pairs = [(view, box) for view, found in zip(cropped, boxes, strict=True) for box in found]
        crops = self._look_at_crops(pairs, processor, batch_size, images_kwargs)
        for view, found in zip(cropped, boxes, strict=True):
            view.fields = view.task.compose(itertools.islice(crops, len(found)), view.request)

    def _look_at_crops(
        self, pairs: list[tuple[_View, tuple]], processor: DenseMLLMProcessor, batch_size: int,
        images_kwargs: dict[str, Any],
    ) -> Iterator[CropMaps]:  # fmt: skip
        """The core target of each box of an image, `batch_size` crops a forward pass."""
        for start in range(0, len(pairs), batch_size):
            batch = pairs[start : start + batch_size]
            short_edge = processor.referring_crop_size
            crops, places = zip(*(crop_box(view.request.image, box, short_edge) for view, box in batch), strict=True)
            encodings = self._encode(crops, "", processor, batch_size, False, [images_kwargs] * len(crops))
            for (view, _), encoded, place in zip(batch, encodings, places, strict=True):
                logits = self._grid_logits(encoded, view.task.label_ids(view.request, processor))
                request = DenseRequest(encoded.image_size, encoded.image_size, refine=view.request.refine)
                if request.refine is not None:  # along the edges of what is there, and not of the box around it
                    request.image = view.request.image.crop(place)
                fields = {name: value.cpu() for name, value in view.task.decode(logits, request, processor).items()}
                yield CropMaps(place, fields["mask"], fields["scores"], logits.cpu())

    def _grid_logits(self, encoded: EncodedImage, label_ids: list[list[int]]) -> torch.Tensor:
        """`float32 [num_labels, grid_height, grid_width]`."""
        return self.label_logits(encoded.hidden_states, label_ids).T.unflatten(1, encoded.grid)

    def _warn_of_unknown_labels(self, names) -> None:
        """Warn of each name once that a model which knows its classes does not know, and of what may be meant."""
        if self.config.label_names is None:
            return
        known = {" ".join(name.lower().split()): name for name in self.config.label_names.values()}
        warned = self.__dict__.setdefault("_warned_labels", set(known) | {BACKGROUND_LABEL.lower()})
        unknown = [name for name in names if name.lower() not in warned]
        warned.update(name.lower() for name in unknown)
        hints = []
        for name in unknown[:10]:
            near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75)
            hints.append(f"{name!r} (did you mean {known[near[0]]!r}?)" if near else repr(name))
        if unknown:
            more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
            logger.warning(
                f"`labels` has names that are not among the {len(known)} classes of this model (`config.id2label`): "
                f"{', '.join(hints)}{more}; they compete for the pixels, though the model has not learned them"
            )


def _check_tasks(task: str | tuple[str, ...]) -> list[DenseTask]:
    names = (task,) if isinstance(task, str) else task
    if not isinstance(names, (tuple, list)):
        raise TypeError(f"`task` must be a name or a tuple of names, got {shown(task)}")
    tasks = [get_task(name) for name in names]
    if not tasks or len({task.name for task in tasks}) < len(tasks):
        raise ValueError(f"`task` must name at least one task, each once, got {task!r}")
    alone = [one.name for one in tasks if one.on_crops]
    if alone and len(tasks) > 1:
        raise ValueError(f"`task` {alone[0]!r} looks at crops of the image and has to be alone, got {task!r}")
    by_map = {one.map_field: one for one in tasks}
    if len(by_map) < len(tasks):
        raise ValueError(f"`task` must name tasks that fill different maps, got {task!r}")
    return tasks


def _check_options(
    tasks: list[DenseTask], processor: DenseMLLMProcessor, labels, background, threshold, depth_range, refine,
    return_logits, labels_from_answer, source, thing_labels, model_things,
) -> DenseRequest:  # fmt: skip
    """What is asked of all images alike; all tokens that this needs are there."""
    if depth_range is not None:
        check_choice("depth_range", depth_range, processor.depth_ranges)  # whatever is asked for
    takes_labels = any("labels" in task.options for task in tasks)
    request = DenseRequest(
        size=(0, 0),
        labels=processor.normalize_labels(labels) if takes_labels and labels is not None else None,
        background=check_flag("background", background),
        threshold=None if threshold is None else check_share("threshold", threshold),
        depth_range=depth_range,
        refine=refine,
        labels_from_answer=check_flag("labels_from_answer", labels_from_answer),
        source=source,
        thing_labels=_check_things(model_things if thing_labels is None else thing_labels),
        are_things_asked=thing_labels is not None,
    )
    for task in tasks:
        task.check(request, processor)
    if check_flag("return_logits", return_logits):
        for task in tasks:
            if not task.has_logits:
                raise ValueError(f"`return_logits` can't be given with the task {task.name!r}: it has no one map")
    check_refine(refine, tasks)
    if source is not None and not any("source" in task.options for task in tasks):
        names = " or ".join(map(repr, tasks_with("source")))
        raise ValueError(f"`source` can be given with the task {names}, got {shown(source)}")
    for task in tasks:
        if request.labels is not None or "labels" not in task.options:
            task.label_ids(request, processor)
    return request


def _check_things(thing_labels) -> tuple[str | int, ...] | None:
    values = plain(thing_labels)
    is_entry = [isinstance(value, (str, int)) and not isinstance(value, bool) for value in values or []]
    if values is not None and not (isinstance(values, list) and all(is_entry)):
        raise TypeError(f"`thing_labels` must be a list of names or keys of classes, got {shown(thing_labels)}")
    return None if values is None else tuple(values)


def _takes_objects(tasks: list[DenseTask]) -> bool:
    return any("box" in task.options for task in tasks)


def _check_each(
    tasks: list[DenseTask], common: DenseRequest, n_images: int, objects: int | None, text, box, focal_lengths,
    target_sizes, processor: DenseMLLMProcessor,
) -> list[DenseRequest]:  # fmt: skip
    """What is asked of each image, or of each of `objects` of one image. Sizes that aren't given are (0, 0)."""
    count = n_images if objects is None else objects
    focal_lengths = focal_lengths if objects is None else focal_lengths * objects
    most = processor.image_processor.max_image_pixels
    expressions, boxes = [None] * count, [None] * count
    if _takes_objects(tasks):
        expressions, boxes = _check_objects(text, box, count)
    sizes = [(0, 0)] * count if target_sizes is None else check_target_sizes(target_sizes, count, most)
    requests = [
        replace(common, size=size, expression=expression, box=corners, focal_length=focal)
        for size, expression, corners, focal in zip(sizes, expressions, boxes, focal_lengths, strict=True)
    ]
    return requests


def _warn_of_focal_lengths(tasks, depth_range, focal_lengths, processor: DenseMLLMProcessor) -> None:
    """Say once what metres are where their range is that of a camera, and an image's own is unknown."""
    ranged = processor.depth_bins.row(depth_range).get("focal_length")
    in_metres = any("depth_range" in task.options for task in tasks)
    if in_metres and ranged is not None and None in focal_lengths:
        name = processor.default_depth_range if depth_range is None else depth_range
        logger.warning_once(
            f"`focal_length` is not given for an image, and the depth range {name!r} is that of a camera of "
            f"{ranged:g} pixels: depth is {ranged:g} / f times the true one for a camera of f pixels. Give "
            "`focal_length` in pixels, or 'exif' where the image's file says it"
        )


def _count_objects(text, box) -> int | None:
    """How many objects of one image are asked for; `None` where it is one, and not a list."""
    if isinstance(text, (list, tuple)):
        return len(text)
    boxes = plain(box)
    return len(boxes) if isinstance(boxes, list) and not is_flat(boxes) else None


def _check_objects(text, box, count: int) -> tuple[list[str | None], list[tuple | None]]:
    """The expression and the box of each of `count` objects, at least one of the two."""
    accepted = "an expression, or one an image"
    expressions = one_an_image("text", text, count, lambda value: check_text("text", value, accepted))
    boxes = one_an_image("box", box, count, lambda value: check_corners("box", value), is_flat)
    for expression, corners in zip(expressions, boxes, strict=True):
        if corners is None and not (expression or "").strip():
            raise ValueError(f"`text` must be an expression where no `box` is given, got {expression!r}")
    return expressions, boxes


def _complete(request: DenseRequest, entry: PIL.Image.Image | EncodedImage) -> DenseRequest:
    """A request with what is known once its image is there."""
    image = entry.image if isinstance(entry, EncodedImage) else entry
    box = None if request.box is None else check_box(request.box, image.size)
    image_size = (image.height, image.width)
    return replace(
        request, image=image, image_size=image_size, box=box, size=request.size if any(request.size) else image_size
    )


def _parts(keys: list, batch_size: int) -> Iterator[slice]:
    """Stretches of a list with up to `batch_size` different keys each: of an image, and of the texts before it."""
    start, seen = 0, set()
    for place, key in enumerate(keys):
        if key not in seen and len(seen) == batch_size:
            yield slice(start, place)
            start, seen = place, set()
        seen.add(key)
    if keys:
        yield slice(start, len(keys))


def _view(
    task: DenseTask, entry: PIL.Image.Image | EncodedImage, request: DenseRequest, images_kwargs: dict[str, Any],
    processor: DenseMLLMProcessor,
) -> _View:  # fmt: skip
    request = replace(request)  # each task has its own, into which answers go
    return _View(task, request, entry, images_kwargs, task.prompt(request, processor), task.ask(request, processor))


def _reads_whole(view: _View, processor: DenseMLLMProcessor) -> bool:
    """Whether the image is read as a whole, and not crops of it."""
    return view.task.crops(view.request, processor) is None


def _reads_image(view: _View, processor: DenseMLLMProcessor) -> bool:
    """Whether the image is encoded as a whole: to be read, or to be asked about."""
    return view.question is not None or _reads_whole(view, processor)


def _bring_to_host(views: list[_View], return_logits: bool) -> None:
    """What was found to the CPU, the maps of all images together, and what is worked out there."""
    fields = [
        (view.fields, name) for view in views for name, value in view.fields.items()
        if isinstance(value, torch.Tensor) and (return_logits or name != "logits")
    ]  # fmt: skip
    for (own, name), copy in zip(fields, copies_on_host([own[name] for own, name in fields]), strict=True):
        own[name] = copy
    for view in views:
        view.fields = view.task.finish(view.fields)


def _join(views: list[_View], return_logits: bool) -> DensePrediction:
    """The tasks of one image as one prediction, on the CPU."""
    prediction = DensePrediction()
    found = {view.task.name: view.fields for view in views}
    for view in views:
        prediction.text = view.answer if view.answer is not None else prediction.text
        for name, value in view.fields.items():
            if name not in ("scores", "logits"):
                setattr(prediction, name, value.cpu() if isinstance(value, torch.Tensor) else value)
    for name in ("scores", "logits") if return_logits else ("scores",):
        maps = {task: None if fields[name] is None else fields[name].cpu() for task, fields in found.items()}
        setattr(prediction, name, maps if len(views) > 1 else next(iter(maps.values())))
    return prediction


__all__ = ["DensePrediction", "DensePredictionMixin", "EncodedImage"]
