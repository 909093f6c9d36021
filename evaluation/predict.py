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
"""Predictions beside their references, and the metrics of both."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import PIL.Image
import PIL.ImageOps
from tqdm.auto import tqdm

from ..processing_densemllm import DenseMLLMProcessor
from ..targets_densemllm import IGNORE_INDEX
from ..training.maps import Samples
from ..training.samples import upright_sample
from .measured import ALWAYS, MEASURED, NEVER, MeasuredTask, Settings, cameras, encode_samples
from .metrics import DenseMetrics


if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..configuration_densemllm import DenseMLLMConfig
    from ..modeling_densemllm import DenseMLLMForConditionalGeneration


def predict_batch(
    model: "DenseMLLMForConditionalGeneration",
    processor: DenseMLLMProcessor,
    samples: list[dict],
    tasks: Sequence[str],
    id2label: dict[int, str] | None = None,
    depth_range: str | None = None,
    batch_size: int = 8,
    refine: str | None = None,
    depth_scale: float | None = None,
    ignore_index: int = IGNORE_INDEX,
    thing_labels: Sequence[str | int] | None = None,
    normals_source: str | None = None,
    detection_scales: Sequence[float] = (1.0,),
    **images_kwargs: Any,
) -> list[tuple[int, str, Any, Any]]:
    """What a model says of a few samples, and what is true, at the annotations' own size.

    Args:
        model, processor, id2label, depth_range, batch_size: as for [`evaluate_dense`].
        samples: see [`evaluate_dense`]; `focal_length`, in pixels, as for `predict_dense`.
        tasks: names in `MEASURED`, such as `"depth"`, or `"class_list"` (the names of the classes that are in the
            image, for which the model is asked); a sample is left out where its annotation lacks.
        refine, images_kwargs: as for `predict_dense`.
        depth_scale, ignore_index: see [`DenseSource`], for samples that don't bring their own.
        thing_labels: as for `predict_dense`.
        normals_source: `source` of `predict_dense`.
        detection_scales: see [`Settings`].

    Returns:
        (position in `samples`, task, prediction, reference), the latter two as the task's metrics take them.

    Raises:
        ValueError: a task that is not measured, or for which the model lacks something.
    """
    names = processor.normalize_labels(id2label) if id2label else {}
    things = None if thing_labels is None else tuple(thing_labels)
    settings = Settings(
        id2label, names, ignore_index, depth_scale, depth_range, refine, things, normals_source=normals_source,
        detection_scales=detection_scales,
    )  # fmt: skip
    return predict_samples(model, processor, samples, tasks, settings, batch_size, **images_kwargs)


def predict_samples(
    model: "DenseMLLMForConditionalGeneration",
    processor: DenseMLLMProcessor,
    samples: list[dict],
    tasks: Sequence[str],
    settings: Settings,
    batch_size: int = 8,
    **images_kwargs: Any,
) -> list[tuple[int, str, Any, Any]]:
    """[`predict_batch`] with all that an evaluation may say.

    Args:
        settings: with `names` where there are classes.
        images_kwargs: `tile` and `tile_overlap` of `predict_dense`, too.
    """
    unknown = set(tasks) - set(MEASURED)
    if unknown:
        raise ValueError(f"`tasks` must be of {sorted(MEASURED)}, got {sorted(unknown)}")
    for name in tasks:
        settings = MEASURED[name].prepare(settings, model.config, processor)
    options = {"processor": processor, "batch_size": batch_size, **images_kwargs}
    samples = [
        upright_sample(sample, f"`samples[{position}]`", processor.image_processor)
        for position, sample in enumerate(samples)
    ]
    results = []
    groups = _group(samples, tasks, settings)
    samples = _read_once(model, samples, groups, settings, options)
    for shared, positions in groups.items():
        asked = [MEASURED[name] for name in shared]
        group = [samples[position] for position in positions]
        predictions = _ask(model, group, asked, settings, options)
        if settings.mirror and any(task.average is not None for task in asked):
            mirrored = [{**sample, "image": PIL.ImageOps.mirror(sample["image"])} for sample in map(_unread, group)]
            others = _ask(model, mirrored, asked, settings, options)
            predictions = [_average(asked, *pair) for pair in zip(predictions, others, strict=True)]
        for position, sample, prediction in zip(positions, group, predictions, strict=True):
            results += [(position, *pair) for pair in _compare(sample, prediction, asked, settings)]
    return results


def _average(tasks: list[MeasuredTask], prediction: Any, mirrored: Any) -> Any:
    """A prediction with the fields of those tasks averaged that can be."""
    for task in tasks:
        if task.average is not None:
            prediction = task.average(prediction, mirrored)
    return prediction


def _group(samples: list[dict], tasks: Sequence[str], settings: Settings) -> dict[tuple[str, ...], list[int]]:
    """Samples that share a forward pass: tasks that are predicted together, and the positions of all samples that have
    the annotations of just these."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for position, sample in enumerate(samples):
        there = [task for task in MEASURED.values() if task.name in tasks and task.annotates(sample, settings)]
        for shared in _passes(there):
            groups.setdefault(shared, []).append(position)
    return groups


def _passes(tasks: Iterable[MeasuredTask]) -> list[tuple[str, ...]]:
    """The names of tasks that are predicted together, each with the first that it can share a pass with."""
    passes: list[list[MeasuredTask]] = []
    for task in tasks:
        fitting = (own for own in passes if all(task.shares_pass(other) for other in own))
        own = next(fitting, None)
        if own is None:
            passes.append([task])
        else:
            own.append(task)
    return [tuple(task.name for task in own) for own in passes]


def _read_once(
    model: "DenseMLLMForConditionalGeneration",
    samples: list[dict],
    groups: dict[tuple[str, ...], list[int]],
    settings: Settings,
    options: dict,
) -> list[dict]:
    """The samples; those whose image several of the groups look at as a whole have it read, under `encoded`."""
    looks = Counter(
        position
        for shared, positions in groups.items() if all(MEASURED[name].reads_whole for name in shared)
        for position in positions
    )  # fmt: skip
    if options.get("tile") is not None:  # maps and words are of other readings
        return samples
    several = [position for position, count in looks.items() if count > 1]
    encodings = encode_samples(model, [samples[position] for position in several], settings, options)
    read = dict(zip(several, encodings, strict=True))
    return [
        {**sample, "encoded": read[position]} if position in read else sample
        for position, sample in enumerate(samples)
    ]


def _unread(sample: dict) -> dict:
    return {name: value for name, value in sample.items() if name != "encoded"}


def _ask(
    model: "DenseMLLMForConditionalGeneration",
    samples: list[dict],
    tasks: list[MeasuredTask],
    settings: Settings,
    options: dict,
) -> list:
    """What the model says of each sample: maps, or the answer to a question."""
    if tasks[0].ask is not None:
        return tasks[0].ask(model, samples, settings, options)
    question = tasks[0].question
    if question is not None:
        encodings = encode_samples(model, samples, settings, options)
        return model.query(encodings, question, options["processor"], **tasks[0].answer_options)
    images = [sample["image"] for sample in samples]
    if all(task.reads_whole for task in tasks):
        images = [sample.get("encoded", sample["image"]) for sample in samples]
    if not any(
        image is sample["image"] for image, sample in zip(images, samples, strict=True)
    ):  # how it is read was said then
        options = {name: options[name] for name in ("processor", "batch_size")}
    arguments = {name: value for task in tasks for name, value in task.arguments(samples, settings).items()}
    return model.predict_dense(
        images,
        task=tuple(dict.fromkeys(task.task.name for task in tasks)),
        target_sizes=[sample[tasks[0].columns[0][0]].shape[:2] for sample in samples],
        **arguments,
        **cameras(samples, settings),
        **options,
    )


def _compare(
    sample: dict, prediction: Any, tasks: list[MeasuredTask], settings: Settings
) -> list[tuple[str, Any, Any]]:
    """Task, prediction and reference, of those tasks whose truth is known."""
    pairs = [(task.name, task.prediction(prediction, settings), task.reference(sample, settings)) for task in tasks]
    return [pair for pair in pairs if pair[2] is not None]


def evaluate_dense(
    model: "DenseMLLMForConditionalGeneration",
    processor: DenseMLLMProcessor,
    samples: Samples,
    id2label: dict[int, str] | None = None,
    depth_range: str | None = None,
    batch_size: int = 8,
    accelerator: "Accelerator | None" = None,
    depth_scale: float | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> dict:
    """Metrics of `predict_dense` on annotated samples, at the annotations' own size.

    Args:
        model: a [`DenseMLLMForConditionalGeneration`].
        processor: its processor.
        samples: sequence of samples with `image` and any of `segmentation`, `depth`, `mask` with `expression`,
            `instances` beside `segmentation`, and `normals`; see [`DenseDataset`].
        id2label: class id to name; segmentation is left out without it, as are panoptic maps without a class that
            `config.thing_labels` names.
        depth_range: as for `predict_dense`.
        batch_size: images a forward pass.
        accelerator (`accelerate.Accelerator`, *optional*): share the samples among its processes; each returns the
            metrics over all of them.
        depth_scale, ignore_index: see [`DenseSource`], for samples that don't bring their own.

    Returns:
        what the metrics of all tasks in `MEASURED` that are predicted as maps compute, of those that had a sample:
        [`SegmentationMetrics`], [`DepthMetrics`], [`ReferringMetrics`], [`NormalsMetrics`] (by tokens where the
        tokenizer has them, else from depth where the sample has a `focal_length`) and [`PanopticMetrics`]. AP, which
        needs more than sums, is the evaluation's alone.
    """
    was_training = model.training
    model.eval()
    metrics = _training_metrics(Settings(id2label, ignore_index=ignore_index), model.config, processor)
    first, processes = (accelerator.process_index, accelerator.num_processes) if accelerator is not None else (0, 1)
    indices = range(first, len(samples), processes)
    starts = range(0, len(indices), batch_size)
    for start in tqdm(starts, desc="evaluating", leave=False, disable=first > 0):
        batch = [samples[index] for index in indices[start : start + batch_size]]
        predicted = predict_batch(
            model, processor, batch, tuple(metrics), id2label, depth_range, batch_size,
            depth_scale=depth_scale, ignore_index=ignore_index,
        )  # fmt: skip
        for _, task, prediction, reference in predicted:
            metrics[task].add(prediction, reference)
    results = {}
    for metric in metrics.values():
        if processes > 1:
            metric.reduce(accelerator)
        if not metric.is_empty:
            results |= metric.compute()
    model.train(was_training)
    return results


def _training_metrics(
    settings: Settings, config: "DenseMLLMConfig", processor: DenseMLLMProcessor
) -> dict[str, DenseMetrics]:
    """The accumulators of the tasks that a training measures, of those that this model can do."""
    kept = []
    for task in MEASURED.values():
        if task.in_training == NEVER or (task.needs_labels and not settings.id2label):
            continue
        try:
            settings = task.prepare(settings, config, processor)
        except ValueError:
            if task.in_training == ALWAYS:
                raise
            continue
        kept.append(task)
    return {task.name: task.make_metrics(settings) for task in kept}


__all__ = ["evaluate_dense", "predict_batch", "predict_samples"]
