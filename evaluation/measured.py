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
"""What is measured how: the tasks of an evaluation in one table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ..answers_densemllm import normalize_name, parse_refs
from ..configuration_densemllm import DenseMLLMConfig
from ..image_encoding_densemllm import EncodedImage
from ..object_tasks_densemllm import Foreground
from ..processing_densemllm import DenseMLLMProcessor
from ..targets_densemllm import IGNORE_INDEX, index_values, present_values
from ..task_base_densemllm import DenseRequest, DenseTask
from ..tasks_densemllm import TASKS, Classes, DenseMaps, Depth, Normals, Panoptic
from ..text_tasks_densemllm import COUNTING, DETECTION, GROUNDING, POSE
from ..tokens_densemllm import BACKGROUND_LABEL
from ..training.maps import read_mask, read_metres, read_normals
from .language import TEXT, Answers, TextMetrics, ask_choices, collect_answers, text_likelihood, true_choices
from .measured_words import (
    ask_box,
    ask_boxes,
    ask_counts,
    ask_pose,
    check_scales,
    true_box,
    true_boxes,
    true_person,
)
from .metrics import (
    METRICS,
    ClassListMetrics,
    DenseMetrics,
    DepthMetrics,
    NormalsMetrics,
    ReferringMetrics,
    SegmentationMetrics,
)
from .panoptic import InstanceMetrics, PanopticMetrics, Segments
from .text_metrics import CountingMetrics, DetectionMetrics, GroundingMetrics, PoseMetrics


ALWAYS, WHERE_POSSIBLE, NEVER = "always", "where possible", "never"


@dataclass(frozen=True)
class Settings:
    """How samples are read and compared, whatever the task.

    Attributes:
        id2label: class id to name; `None` where no task needs it.
        names: the same names as the model writes them, from [`DenseMLLMProcessor.normalize_labels`].
        ignore_index: value of pixels that are not annotated, for samples that don't bring their own.
        depth_scale: metres a unit of depth, for samples that don't bring their own.
        depth_range: row of the config's `depth_ranges`; its default row where left out.
        refine: as for `predict_dense`, of the tasks that take it.
        thing_labels: names or ids of the classes whose objects are told apart; those of the model's config where left
            out.
        thing_ids: their ids in `id2label`, once [`MeasuredTask.prepare`] has found them.
        normals_source: `"tokens"` or `"depth"`, as `source` of `predict_dense`; [`MeasuredTask.prepare`] decides where
            left out.
        min_depth, max_depth, crop, depth_average, depth_align: as for [`DepthMetrics`].
        mirror: average the depth of an image with that of its mirror image, as ZoeDepth's evaluation does.
        extra_labels: names of classes that compete although no image is annotated with them: what is predicted as one
            is a miss.
        shuffle_labels: whether names stand in an order of their own for each image, where the model is asked about
            them in words.
        label_prompts: what it is asked then, with `{text}` where the names belong; one of them is drawn for each
            image.
        seed: of what is drawn for an image, beside its place in the data.
        detection_scales: factors on the image's size at which objects are detected, whose boxes are put together.
        text: whose perplexity is measured.
        answers: all answers of the data, once [`MeasuredTask.survey`] has seen them.
    """

    id2label: dict[int, str] | None = None
    names: dict[int, str] = field(default_factory=dict)
    ignore_index: int = IGNORE_INDEX
    depth_scale: float | None = None
    depth_range: str | None = None
    refine: str | None = None
    thing_labels: tuple[str | int, ...] | None = None
    thing_ids: tuple[int, ...] = ()
    normals_source: str | None = None
    min_depth: float | None = None
    max_depth: float | None = None
    crop: str = "none"
    depth_average: str = "images"
    depth_align: str = "none"
    mirror: bool = False
    extra_labels: tuple[str, ...] = ()
    shuffle_labels: bool = False
    label_prompts: tuple[str, ...] = (Classes.list_question + Classes.no_background,)
    seed: int = 0
    detection_scales: Sequence[float] = (1.0,)
    text: str = TEXT
    answers: Answers = Answers()

    @property
    def candidates(self) -> dict[int, str]:
        """The classes that compete for pixels: those of `id2label`, and `extra_labels` with ids above these."""
        first = max(self.id2label, default=-1) + 1
        return self.id2label | dict(enumerate(self.extra_labels, first))

    def only_known(self, segmentation: torch.Tensor) -> torch.Tensor:
        """Predicted ids, with -1, none of the classes, where it is one of `extra_labels`."""
        return segmentation.masked_fill(segmentation > max(self.id2label), -1) if self.extra_labels else segmentation

    def ignored(self, sample: dict) -> int:
        """The value of pixels of a sample that are not annotated."""
        return sample.get("ignore_index", self.ignore_index)


def _no_arguments(samples: list[dict], settings: Settings) -> dict:
    return {}


def _refined(task: DenseTask, settings: Settings) -> dict:
    """`refine`, where the task takes it."""
    return {"refine": settings.refine} if settings.refine in task.refinements else {}


def _what_came(prediction: Any, settings: Settings) -> Any:
    return prediction


def _no_check(processor: DenseMLLMProcessor, settings: Settings) -> None:
    return None


def _as_they_are(settings: Settings, config: DenseMLLMConfig, processor: DenseMLLMProcessor) -> Settings:
    return settings


def _unseen(data: Any, settings: Settings) -> Settings:
    return settings


def _never(settings: Settings) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class MeasuredTask:
    """A task as an evaluation sees it: what annotates it, what is asked, and what is compared by which metric.

    Attributes:
        task: what `predict_dense` is asked for; `None`: `question` is asked instead.
        name: in options and results; that of `task` where left out.
        columns: what annotates an image: alternatives, of which a data set must have one. The first is that of a
            sample as [`read_sample`] gives it; its map, whose size predictions get, is in front.
        make_metrics: settings to the accumulator of the task's metrics.
        score: key of the metric by which images are compared with each other.
        reference: sample and settings to what is true, as the metrics take it; `None`: nothing is known.
        prediction: of a [`DensePrediction`], or of the answer to `question`, and settings to what the metrics take.
        arguments: samples and settings to what `predict_dense` needs to know beside images, sizes and cameras.
        question: asked in words instead of `predict_dense`.
        answer_options: arguments of `query` for it.
        ask: of the model, samples, settings and the options of `predict_dense` that all tasks share (`processor`,
            `batch_size`, those of the image processor) to a prediction of each sample, where neither `task` alone nor
            `question` says how the model is asked.
        takes_encodings: whether `ask` reads images by [`encode_samples`].
        needs_labels: whether classes are compared, so that their names are needed.
        needs_camera: settings to whether the prediction needs the image's `focal_length`.
        check: processor and settings; raises a `ValueError` where the two don't fit.
        prepare: settings, the model's config and its processor to settings in which nothing that this task needs is
            left open; raises a `ValueError` where it can't be known.
        survey: rows of the data, with the columns that annotate the task, and settings to settings with what has to
            be known of all of them.
        once: of the model, its processor, settings and the metrics, to which it adds what is of no sample.
        any_columns: whether a sample may have any of the alternatives of `columns`, as they are.
        in_training: whether a training measures it: `"always"` where samples are annotated; `"where possible"`, where
            `prepare` finds all that it needs; or `"never"`.
        average: of the predictions of an image and of its mirror image to their mean, where the task has one.
        options: options of an evaluation that change this task's results, with their defaults: a card names those
            that differ.
        facts: more that a card says of its results.
        label_prefix: of what tables call its results for each class, where another task has the same.
        score_name: what `score` is called where it is that of one image; as tables call it where left out.
    """

    task: DenseTask | None = None
    name: str = ""
    columns: tuple[tuple[str, ...], ...]
    make_metrics: Callable[[Settings], DenseMetrics]
    score: str
    reference: Callable[[dict, Settings], Any]
    prediction: Callable[[Any, Settings], Any]
    arguments: Callable[[list[dict], Settings], dict] = _no_arguments
    question: str | None = None
    answer_options: dict[str, Any] = field(default_factory=dict)
    ask: Callable[[Any, list[dict], Settings, dict[str, Any]], list] | None = None
    takes_encodings: bool = False
    needs_labels: bool = False
    needs_camera: Callable[[Settings], bool] = _never
    check: Callable[[DenseMLLMProcessor, Settings], object] = _no_check
    prepare: Callable[[Settings, DenseMLLMConfig, DenseMLLMProcessor], Settings] = _as_they_are
    survey: Callable[[Any, Settings], Settings] = _unseen
    once: Callable[[Any, DenseMLLMProcessor, Settings, Any], None] | None = None
    any_columns: bool = False
    in_training: str = ALWAYS
    average: Callable[[Any, Any], Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    label_prefix: str = ""
    score_name: str | None = None

    def __post_init__(self) -> None:
        if self.task is not None and not self.name:
            object.__setattr__(self, "name", self.task.name)

    @property
    def score_title(self) -> str:
        """What `score` of one image is called."""
        return self.score_name or METRICS[self.score].name

    def columns_text(self) -> str:
        """The alternatives of `columns` in words."""
        return ", or ".join(" and ".join(names) for names in self.columns)

    def annotates(self, sample: dict, settings: Settings) -> bool:
        """Whether a sample, as [`read_sample`] gives it, has this task's annotation, and what the prediction needs."""
        camera = ("focal_length",) if self.needs_camera(settings) else ()
        alternatives = self.columns if self.any_columns else self.columns[:1]
        return any(all(sample.get(column) is not None for column in (*names, *camera)) for names in alternatives)

    @property
    def reads_whole(self) -> bool:
        """Whether it looks at each image as it is: what others have read of it serves."""
        if self.ask is not None:
            return self.takes_encodings
        return self.question is not None or not self.task.on_crops

    def shares_pass(self, other: "MeasuredTask") -> bool:
        """Whether one call of `predict_dense` does both: what looks at crops, or fills the same map with something
        else, has one of its own."""
        if any(own.task is None or own.ask is not None or own.task.on_crops for own in (self, other)):
            return False
        return self.task is other.task or self.task.map_field != other.task.map_field


def _check_labels(processor: DenseMLLMProcessor, settings: Settings) -> None:
    if settings.id2label is not None:
        processor.label_token_ids(settings.candidates)


def _make_segmentation_metrics(settings: Settings) -> SegmentationMetrics:
    # Without names, which only a check of the other options lacks, any class will do that isn't ignored.
    keys = sorted(settings.id2label) if settings.id2label else [0 if settings.ignore_index else 1]
    return SegmentationMetrics(len(keys), settings.ignore_index, keys)


def _make_depth_metrics(settings: Settings) -> DepthMetrics:
    return DepthMetrics(
        settings.min_depth, settings.max_depth, settings.crop, settings.depth_average, settings.depth_align
    )


def _average_depth(prediction: DenseMaps, mirrored: DenseMaps) -> DenseMaps:
    depth = (prediction.predicted_depth + mirrored.predicted_depth.flip(-1)) / 2
    return replace(prediction, predicted_depth=depth)


def _true_metres(sample: dict, settings: Settings) -> Any:
    return read_metres(
        sample[Depth.column], sample.get("depth_scale", settings.depth_scale), f"column `{Depth.column}`"
    )


def _true_names(sample: dict, settings: Settings) -> list[str] | None:
    """The names of the classes that are in an image."""
    present = present_values(sample[Classes.column]).tolist()
    if set(present) <= {settings.ignored(sample)}:
        return None
    names = [settings.names.get(key, BACKGROUND_LABEL) for key in present]
    return [name for name in names if name != BACKGROUND_LABEL]


def _list_question(names: list[str], row: int, settings: Settings) -> str:
    """What the model is asked about the names of classes: drawn for each row of the data, the same in every run."""
    rng = np.random.default_rng((settings.seed, row))
    prompt = settings.label_prompts[rng.integers(len(settings.label_prompts))]
    order = rng.permutation(len(names)) if settings.shuffle_labels else range(len(names))
    return prompt.replace("{text}", ", ".join(names[place] for place in order))


def _ask_for_labels(model: Any, samples: list[dict], settings: Settings, options: dict[str, Any]) -> list[DenseMaps]:
    """Segmentations in which only those classes compete that the model names when it gets the list of all."""
    names = list(options["processor"].normalize_labels(settings.candidates).values())
    questions = [_list_question(names, sample.get("row", 0), settings) for sample in samples]
    return _segment_named(model, samples, questions, settings, options)


def _ask_for_names(model: Any, samples: list[dict], settings: Settings, options: dict[str, Any]) -> list[DenseMaps]:
    """Segmentations in which only those classes compete that the model names by itself."""
    return _segment_named(model, samples, [Classes.question] * len(samples), settings, options)


def cameras(samples: list[dict], settings: Settings) -> dict[str, Any]:
    """Of samples, as `predict_dense` and `encode_image` take them."""
    return {
        "focal_length": [sample.get("focal_length") for sample in samples], "depth_range": settings.depth_range,
    }  # fmt: skip


def encode_samples(model: Any, samples: list[dict], settings: Settings, options: dict[str, Any]) -> list[EncodedImage]:
    """The image of each sample as the model read it: what stands under `encoded`, or else read now."""
    fresh = [sample for sample in samples if "encoded" not in sample]
    read = iter(
        model.encode_image([sample["image"] for sample in fresh], **cameras(fresh, settings), **options)
        if fresh else []
    )  # fmt: skip
    return [sample["encoded"] if "encoded" in sample else next(read) for sample in samples]


def _segment_named(
    model: Any, samples: list[dict], questions: list[str], settings: Settings, options: dict[str, Any]
) -> list[DenseMaps]:
    processor = options["processor"]
    names = processor.normalize_labels(settings.candidates)
    asked = encodings = encode_samples(model, samples, settings, options)
    if options.get("tile") is not None:  # what is asked in words is asked of the whole image, as in `predict_dense`
        asked = model.encode_image([sample["image"] for sample in samples], processor=processor)
    answers = model.query(asked, questions, processor, batch_size=options["batch_size"], **Classes.answer_options)
    predictions = []
    for sample, encoded, answer in zip(samples, encodings, answers, strict=True):
        seen, size = set(parse_refs(answer)), sample[Classes.column].shape[:2]
        kept = {key: name for key, name in names.items() if name in seen}
        if kept:
            prediction = model.predict_dense(
                encoded, TASKS[Classes.name].name, kept, target_sizes=size, refine=settings.refine, processor=processor
            )
        else:
            prediction = DenseMaps(segmentation=torch.full(size, -1), labels={}, segments_info=[])
        predictions.append(prediction)
    return predictions


def _prepare_normals(settings: Settings, config: DenseMLLMConfig, processor: DenseMLLMProcessor) -> Settings:
    task, request = TASKS[Normals.name], DenseRequest(size=(0, 0), source=settings.normals_source)
    task.check(request, processor)
    return replace(settings, normals_source=task.source(request, processor))


def _prepare_things(settings: Settings, config: DenseMLLMConfig, processor: DenseMLLMProcessor) -> Settings:
    if not settings.id2label:
        raise ValueError("`id2label` is needed for segments: a dict from class id to name")
    names = processor.normalize_labels(settings.id2label)
    things = config.thing_labels if settings.thing_labels is None else settings.thing_labels
    request = DenseRequest(
        size=(0, 0), labels=names, thing_labels=None if things is None else tuple(things),
        are_things_asked=settings.thing_labels is not None,
    )  # fmt: skip
    TASKS[Panoptic.name].check(request, processor)
    wanted = {normalize_name(thing) if isinstance(thing, str) else thing for thing in things}
    thing_ids = tuple(key for key, name in names.items() if name in wanted or key in wanted)
    if not thing_ids:
        raise ValueError(f"`thing_labels`: none of {sorted(map(str, things))[:10]} is a class of `id2label`")
    return replace(settings, names=names, thing_ids=thing_ids)


def segment_ids(settings: Settings) -> list[int]:
    """The classes that segments are of; without names, which only a check of the other options lacks, any will do."""
    names = settings.names or settings.id2label or {0: ""}
    return sorted(key for key, name in names.items() if name != BACKGROUND_LABEL)


def _make_instance_metrics(settings: Settings) -> InstanceMetrics:
    try:
        return InstanceMetrics(settings.thing_ids or segment_ids(settings)[:1])
    except ImportError as error:
        raise ValueError(f"`task`: {error}") from error


def _make_detection_metrics(settings: Settings) -> DetectionMetrics:
    check_scales(settings.detection_scales)
    try:
        return DetectionMetrics(segment_ids(settings))
    except ImportError as error:
        raise ValueError(f"`task`: {error}") from error


def _prepare_detection(settings: Settings, config: DenseMLLMConfig, processor: DenseMLLMProcessor) -> Settings:
    if not settings.id2label:
        raise ValueError("`id2label` is needed to detect objects: a dict from class id to name")
    check_scales(settings.detection_scales)
    return replace(settings, names=processor.normalize_labels(settings.id2label))


def true_segments(sample: dict, settings: Settings) -> Segments | None:
    """The segments of a sample: each object of a thing, by its class and number, and each other class.

    Args:
        sample: of [`read_sample`], with `segmentation` and `instances`.
        settings: with names and things.

    Returns:
        a map of segments, `int64 [height, width]`, numbered from 1, and its rows, see [`PanopticMetrics`]; `None`
        where nothing is known. No segment, 0, is what `ignore_index` marks in one of the two maps, what is of no class
        but the background, and what is of a thing but has no number above 0: nobody says which object it is.
    """
    ignored = settings.ignored(sample)
    classes, places = index_values(np.asarray(sample[Classes.column]))
    numbers, number_places = index_values(np.asarray(sample[Panoptic.column]))
    kept = set(segment_ids(settings)) - {ignored}
    is_known, is_thing = (np.isin(classes, sorted(ids)) for ids in (kept, kept & set(settings.thing_ids)))
    is_numbered = (numbers > 0) & (numbers != ignored)
    is_object = is_thing[places]
    known = is_known[places] & (is_numbered[number_places] | ~is_object)
    # A class and the place of the number, 0 of what is no thing.
    codes = places * (len(numbers) + 1) + np.where(is_object, number_places + 1, 0)
    present, segments = np.unique(codes[known], return_inverse=True)
    if not len(present):
        return None
    values = np.zeros(places.shape, dtype=np.int64)
    values[known] = segments.reshape(-1) + 1
    owners = (present // (len(numbers) + 1)).tolist()
    rows = [
        {"id": number, "label_id": int(classes[place]), "isthing": bool(is_thing[place])}
        for number, place in enumerate(owners, 1)
    ]
    return values, rows


def _found_segments(prediction: Any, settings: Settings) -> Segments:
    return prediction.segmentation, prediction.segments_info


def _panoptic_arguments(samples: list[dict], settings: Settings) -> dict:
    return {"labels": settings.id2label, "refine": settings.refine, "thing_labels": list(settings.thing_ids)}


SEGMENTATION = MeasuredTask(
    task=TASKS[Classes.name],
    columns=((Classes.column,),),
    make_metrics=_make_segmentation_metrics,
    score="mean_iou",
    reference=lambda sample, settings: sample[Classes.column],
    prediction=lambda prediction, settings: settings.only_known(prediction.segmentation),
    arguments=lambda samples, settings: {"labels": settings.candidates, "refine": settings.refine},
    needs_labels=True,
    check=_check_labels,
    options={"refine": None, "extra_labels": None},
)
DEPTH = MeasuredTask(
    task=TASKS[Depth.name],
    columns=((Depth.column,),),
    make_metrics=_make_depth_metrics,
    score="delta1",
    reference=_true_metres,
    prediction=lambda prediction, settings: prediction.predicted_depth,
    arguments=lambda samples, settings: _refined(TASKS[Depth.name], settings),
    check=lambda processor, settings: processor.get_depth_range(settings.depth_range),
    average=_average_depth,
    options={
        "refine": None,
        "min_depth": None,
        "max_depth": None,
        "crop": "none",
        "depth_average": "images",
        "depth_align": "none",
        "mirror": False,
    },
)
REFERRING = MeasuredTask(
    task=TASKS[Foreground.name],
    columns=((Foreground.column, "expression"), (Panoptic.column, "expressions", "expression_instances")),
    make_metrics=lambda settings: ReferringMetrics(),
    score="giou",
    reference=lambda sample, settings: read_mask(sample[Foreground.column], settings.ignored(sample)),
    prediction=lambda prediction, settings: prediction.mask,
    arguments=lambda samples, settings: {
        "text": [sample["expression"] for sample in samples],
        **_refined(TASKS[Foreground.name], settings),
    },
    options={"refine": None},
    score_name="IoU",
)
CLASS_LIST = MeasuredTask(
    name="class_list",
    columns=((Classes.column,),),
    make_metrics=lambda settings: ClassListMetrics(),
    score="f1",
    reference=_true_names,
    prediction=lambda answer, settings: parse_refs(answer),
    question=Classes.question,
    answer_options=Classes.answer_options,
    needs_labels=True,
    check=_check_labels,
    in_training=NEVER,
)
NORMALS = MeasuredTask(
    task=TASKS[Normals.name],
    columns=((Normals.column,),),
    make_metrics=lambda settings: NormalsMetrics(),
    score="under_11_25",
    reference=lambda sample, settings: read_normals(sample[Normals.column], f"column `{Normals.column}`"),
    prediction=lambda prediction, settings: prediction.normals,
    arguments=lambda samples, settings: {
        "source": settings.normals_source,
        **_refined(TASKS[Normals.name], settings),
    },
    needs_camera=lambda settings: settings.normals_source == Normals.sources[1],
    prepare=_prepare_normals,
    in_training=WHERE_POSSIBLE,
    options={"normals_source": None, "refine": None},
)
PANOPTIC = MeasuredTask(
    task=TASKS[Panoptic.name],
    columns=((Classes.column, Panoptic.column),),
    make_metrics=lambda settings: PanopticMetrics(segment_ids(settings), settings.thing_ids),
    score="pq",
    reference=true_segments,
    prediction=_found_segments,
    arguments=_panoptic_arguments,
    needs_labels=True,
    check=_check_labels,
    prepare=_prepare_things,
    in_training=WHERE_POSSIBLE,
    options={"thing_labels": None, "refine": None},
)
INSTANCES = replace(
    PANOPTIC, name=Panoptic.column, make_metrics=_make_instance_metrics, score="mask_ap", in_training=NEVER
)
# The published segmentation figures are most likely of this reading: which of the classes compete, the model says.
ANSWERED = replace(
    SEGMENTATION,
    name="answered_labels",
    ask=_ask_for_labels,
    takes_encodings=True,
    in_training=NEVER,
    options=SEGMENTATION.options | {"shuffle_labels": False, "label_prompts": None, "seed": 0},
    facts={"labels": "answered"},
    label_prefix="answered_",
)
NAMED = replace(
    ANSWERED,
    name="named_labels",
    ask=_ask_for_names,
    takes_encodings=True,
    options=SEGMENTATION.options,
    facts={"labels": "named"},
    label_prefix="named_",
)
COUNTS = MeasuredTask(
    name=COUNTING,
    columns=(("question", "answer"),),
    make_metrics=lambda settings: CountingMetrics(),
    score="counting_accuracy",
    reference=lambda sample, settings: sample["answer"],
    prediction=_what_came,
    ask=ask_counts,
    in_training=NEVER,
)
BOXES = MeasuredTask(
    name=DETECTION,
    columns=(("objects",),),
    make_metrics=_make_detection_metrics,
    score="box_ap",
    reference=true_boxes,
    prediction=_what_came,
    ask=ask_boxes,
    needs_labels=True,
    prepare=_prepare_detection,
    in_training=NEVER,
    options={"detection_scales": [1.0]},
)
POSES = MeasuredTask(
    name=POSE,
    columns=(("person",),),
    make_metrics=lambda settings: PoseMetrics(),
    score="pckh",
    reference=true_person,
    prediction=_what_came,
    ask=ask_pose,
    in_training=NEVER,
)
REFERRED_BOX = MeasuredTask(
    name=GROUNDING,
    columns=REFERRING.columns,
    make_metrics=lambda settings: GroundingMetrics(),
    score="grounding_accuracy",
    reference=true_box,
    prediction=_what_came,
    ask=ask_box,
    in_training=NEVER,
)


def _survey_answers(data: Any, settings: Settings) -> Settings:
    names = [name for name in ("messages", "question", "answer") if name in data.column_names]
    rows = data.select_columns(names)
    return replace(settings, answers=collect_answers(rows[row] for row in range(len(rows))))


def _measure_text(model: Any, processor: DenseMLLMProcessor, settings: Settings, metrics: TextMetrics) -> None:
    metrics.add_text(text_likelihood(model, processor.tokenizer, settings.text))


LANGUAGE = MeasuredTask(
    name="text",
    columns=(("messages",), ("question", "answer")),
    make_metrics=lambda settings: TextMetrics(),
    score="choice_accuracy",
    reference=true_choices,
    prediction=_what_came,
    ask=ask_choices,
    survey=_survey_answers,
    once=_measure_text,
    any_columns=True,
    in_training=NEVER,
    options={"text_file": None, "seed": 0},
)
MEASURED = {
    task.name: task
    for task in (
        SEGMENTATION, ANSWERED, NAMED, DEPTH, REFERRING, CLASS_LIST, NORMALS, PANOPTIC, INSTANCES, COUNTS, BOXES,
        POSES, REFERRED_BOX, LANGUAGE,
    )
}  # fmt: skip


__all__ = [
    "ALWAYS",
    "ANSWERED",
    "BOXES",
    "CLASS_LIST",
    "COUNTS",
    "DEPTH",
    "INSTANCES",
    "LANGUAGE",
    "MEASURED",
    "NAMED",
    "NEVER",
    "NORMALS",
    "PANOPTIC",
    "POSES",
    "REFERRED_BOX",
    "REFERRING",
    "SEGMENTATION",
    "WHERE_POSSIBLE",
    "MeasuredTask",
    "Settings",
    "segment_ids",
    "true_segments",
]
