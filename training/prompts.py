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
"""Samples as questions to be rewarded: what a model is asked about an image, and what is true, for TRL's trainers.

A sample gives a question for each kind of annotation that it has:

| kind | asked of | true |
|---|---|---|
| `segmentation` | `segmentation` | `true_classes`, the names that occur |
| `grounding` | `expression` and `mask`, or one of `expressions` | `true_box`, the box around the object |
| `polygon` | the same | `true_mask` |
| `detection` | `objects`, or `instances` of the source's `thing_labels` | `true_objects` |
| `counting` | `question` and `answer` | `true_count` |
| `pose` | `person`, in a crop around its box | `true_person` |

The words are the tasks' own. The model sees the image as it does when it is asked for maps: resized where the depth
range has a focal length and the sample, too. Places are pixels of the image as it was.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import datasets
import numpy as np

from ..answers_densemllm import parse_refs
from ..evaluation.measured_words import person_place
from ..object_tasks_densemllm import Foreground
from ..processing_densemllm import DenseMLLMProcessor
from ..targets_densemllm import present_values
from ..task_base_densemllm import DenseRequest
from ..tasks_densemllm import TASKS, Classes, Panoptic, thing_keys
from ..text_tasks_densemllm import COUNT_INSTRUCTION, COUNTING, DETECTION, GROUNDING, POLYGON, POSE, TEXT_TASKS
from .collator import at_focal_length
from .datasets import DenseDataset
from .samples import COLUMNS, SCHEMA


KEPT_SAMPLES = 32  # a trainer reads a row once for each of its answers, and again for each step that learns from them


def _request(sample: Mapping[str, Any], processor: DenseMLLMProcessor) -> DenseRequest:
    size = (sample["image"].height, sample["image"].width)
    image, _ = at_focal_length(sample["image"], sample, processor)
    resized = processor.image_processor.get_resized_size(image.height, image.width)
    return DenseRequest(size=size, image_size=size, resized_size=resized, expression=sample.get("expression"))


def _ask_classes(sample: Mapping[str, Any], processor: DenseMLLMProcessor) -> dict[str, Any] | None:
    talk = TASKS[Classes.name].teach(sample, _request(sample, processor), processor)
    return None if talk is None else {"question": talk[0], "true_classes": parse_refs(talk[1])}


def _ask_box(sample: Mapping[str, Any], processor: DenseMLLMProcessor) -> dict[str, Any] | None:
    task, request = TASKS[Foreground.name], _request(sample, processor)
    talk = task.teach(sample, request, processor)
    if talk is None:  # nothing is there, or there are no tokens for its place
        return None
    (box,) = task.learned_crops(sample, request, processor)
    return {"question": talk[0], "true_box": tuple(map(float, box))}


def _ask_outline(sample: Mapping[str, Any], processor: DenseMLLMProcessor) -> dict[str, Any] | None:
    if _ask_box(sample, processor) is None:
        return None
    question, _ = TEXT_TASKS[POLYGON].ask(POLYGON, sample["expression"], None)
    return {"question": question, "true_mask": np.asarray(sample[Foreground.column]) > 0}


def _ask_objects(sample: Mapping[str, Any], processor: DenseMLLMProcessor) -> dict[str, Any] | None:
    true = _listed(sample) if sample.get("objects") is not None else _drawn(sample)
    if not true["labels"]:
        return None
    return {"question": TEXT_TASKS[DETECTION].ask(DETECTION, None, None)[0], "true_objects": true}


def _listed(sample: Mapping[str, Any]) -> dict[str, list]:
    """The objects that a sample lists, but for those whose class has no name."""
    names, objects = sample.get("id2label") or {}, sample["objects"]
    rows = [
        ([x, y, x + width, y + height], names[key], crowd)
        for (x, y, width, height), key, crowd in zip(
            objects["bbox"], objects["category"], objects["iscrowd"], strict=True
        )
        if key in names
    ]
    return {name: [row[place] for row in rows] for place, name in enumerate(("boxes", "labels", "iscrowd"))}


def _drawn(sample: Mapping[str, Any]) -> dict[str, list]:
    """The objects of a map of numbers, each of the class that most of it has."""
    names, instances, classes = sample["id2label"], sample[Panoptic.column], sample[Classes.column]
    things, boxes, labels = set(thing_keys(sample["thing_labels"], names)), [], []
    for number in present_values(instances).tolist():
        if number <= 0 or number == sample["ignore_index"]:
            continue
        rows, columns = np.nonzero(instances == number)
        keys, counts = np.unique(classes[rows, columns], return_counts=True)
        key = int(keys[counts.argmax()])
        if key in things:
            edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            boxes.append([float(edge) for edge in edges])
            labels.append(names[key])
    return {"boxes": boxes, "labels": labels, "iscrowd": [0] * len(labels)}


def _ask_count(sample: Mapping[str, Any], processor: DenseMLLMProcessor) -> dict[str, Any]:
    return {"question": f"{sample['question'].strip()} {COUNT_INSTRUCTION}", "true_count": sample["answer"]}


def _ask_pose(sample: Mapping[str, Any], processor: DenseMLLMProcessor) -> dict[str, Any]:
    person = sample["person"]
    place = person_place(person["box"], sample["image"].size)
    shift = np.array(place[:2])
    true = {
        "box": (np.asarray(person["box"]) - np.tile(shift, 2)).tolist(),
        "keypoints": [[*(np.asarray(row[:2]) - shift).tolist(), row[2]] for row in person["keypoints"]],
        "head_size": person["head_size"],
    }
    question, _ = TEXT_TASKS[POSE].ask(POSE, None, None)
    return {"question": question, "true_person": true, "image": sample["image"].crop(place)}


@dataclass(frozen=True)
class Question:
    """A kind of question.

    Attributes:
        truth: the column of what is true.
        needs: columns and settings of a sample without which there is no such question; any of the tuples will do.
        ask: the question and what is true of a sample that has them; `None`: nothing can be asked all the same.
    """

    truth: str
    needs: tuple[tuple[str, ...], ...]
    ask: Callable[[Mapping[str, Any], DenseMLLMProcessor], dict[str, Any] | None]

    def is_annotated(self, sample: Mapping[str, Any]) -> bool:
        """Whether a sample has what is needed."""
        return any(all(sample.get(name) is not None for name in names) for names in self.needs)


_REFERRED = (("expression", Foreground.column),)
QUESTIONS: dict[str, Question] = {
    Classes.name: Question("true_classes", ((Classes.column, "id2label"),), _ask_classes),
    GROUNDING: Question("true_box", _REFERRED, _ask_box),
    POLYGON: Question("true_mask", _REFERRED, _ask_outline),
    DETECTION: Question(
        "true_objects",
        (("objects", "id2label"), (Panoptic.column, Classes.column, "id2label", *Panoptic.column_options)),
        _ask_objects,
    ),
    COUNTING: Question("true_count", (("question", "answer"),), _ask_count),
    POSE: Question("true_person", (("person",),), _ask_pose),
}
TRUTHS = tuple(question.truth for question in QUESTIONS.values())


def choose_questions(truths: Collection[str], kinds: Sequence[str] | None = None) -> list[str]:
    """The kinds of questions that are asked.

    Args:
        truths: the columns with which rewards compare; see [`columns_of`].
        kinds: those that the user wants; `None`: every one that a reward compares, or all where none compares any.

    Raises:
        ValueError: a kind that there isn't.
    """
    unknown = [kind for kind in kinds or () if kind not in QUESTIONS]
    if unknown or (kinds is not None and not kinds):
        raise ValueError(f"`questions` must be some of {list(QUESTIONS)}, got {list(kinds or ())}")
    if kinds is not None:
        return list(dict.fromkeys(kinds))
    return [kind for kind, question in QUESTIONS.items() if not truths or question.truth in truths]


def need_measured(kinds: Sequence[str]) -> bool:
    """Whether one of these kinds of questions is about columns that nothing is learned from; see [`DenseSource`]."""
    needed = {name for kind in kinds for names in QUESTIONS[kind].needs for name in names}
    return any(column.is_measured for name, column in SCHEMA.items() if name in needed)


class PromptReader:
    """Rows of a data set of [`make_prompts`], read from samples when they are asked for."""

    def __init__(self, samples: DenseDataset, processor: DenseMLLMProcessor, kinds: Sequence[str]):
        self.samples, self.processor, self.kinds = samples, processor, list(kinds)
        self._read = lru_cache(maxsize=KEPT_SAMPLES)(self._read_sample)

    def __getstate__(self) -> dict[str, Any]:  # a cache can't be sent to a loader's worker
        return {name: value for name, value in vars(self).items() if name != "_read"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._read = lru_cache(maxsize=KEPT_SAMPLES)(self._read_sample)

    def _read_sample(self, epoch: int, place: int) -> dict:
        return self.samples[place]

    def __call__(self, batch: Mapping[str, list]) -> dict[str, list]:
        """Columns `prompt`, `image`, the sizes, what is true, and `sample`, from numbers of samples and kinds."""
        rows = [self.row(place, kind) for place, kind in zip(batch["place"], batch["kind"], strict=True)]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def row(self, place: int, kind: str) -> dict[str, Any]:
        """One question. A sample that lacks its kind is asked something else; one that can't be asked anything gives
        way to the next.

        Raises:
            ValueError: no sample can be asked anything.
        """
        order = [kind, *(other for other in self.kinds if other != kind)]
        for step in range(len(self.samples)):
            number = (place + step) % len(self.samples)
            sample = self._read(self.samples.epoch, number)
            for other in order:
                asked = QUESTIONS[other].ask(sample, self.processor) if QUESTIONS[other].is_annotated(sample) else None
                if asked is not None:
                    return self._row(number, sample, asked)
        raise ValueError(f"no sample is annotated with anything that a question of the kinds {self.kinds} is about")

    def _row(self, place: int, sample: dict, asked: dict[str, Any]) -> dict[str, Any]:
        image = asked.get("image", sample["image"])
        shown, _ = at_focal_length(image, sample, self.processor)
        parts = [{"type": "image"}, {"type": "text", "text": asked["question"]}]
        return {
            "prompt": [{"role": "user", "content": parts}],
            "image": shown,
            "image_size": (image.height, image.width),
            "resized_size": self.processor.image_processor.get_resized_size(shown.height, shown.width),
            **{truth: asked.get(truth) for truth in TRUTHS},
            "place": place,
            "sample": sample,
        }


def make_prompts(
    samples: DenseDataset, processor: DenseMLLMProcessor, kinds: Sequence[str] | None = None
) -> datasets.Dataset:
    """A data set of questions about samples, as TRL's trainers take one: a row for each sample and kind.

    Args:
        samples: what is asked about, whose sources have `is_measured=True` where questions need columns that nothing
            is learned from. Images must keep their geometry: what is true of places is not changed with them.
        processor: of the model.
        kinds: of questions, see [`choose_questions`]; all where left out.

    Returns:
        rows that are read when they are asked for: `prompt`, a chat with a placeholder for `image`; `image_size` and
        `resized_size`, `(height, width)` in pixels of the sample's image and of what the model sees; the columns of
        what is true, all but one of them `None`; `place` and `sample`, which sample of `samples` it is, and the
        sample.

    Raises:
        ValueError: a kind that there isn't, or no sample that has the columns for one.
    """
    kinds = choose_questions((), kinds)
    places: list[int] = []
    asked: list[str] = []
    start = 0
    for count, source in zip(samples.counts, samples.sources, strict=True):
        there = _columns_of(source)
        own = [kind for kind in kinds if QUESTIONS[kind].is_annotated(there)]
        places += [place for place in range(start, start + count) for _ in own]
        asked += own * count
        start += count
    if not places:
        raise ValueError(
            f"no data set has the columns for a question of the kinds {kinds}: they follow `reward_funcs` where "
            "`questions` doesn't say them"
        )
    rows = datasets.Dataset.from_dict({"place": places, "kind": asked})
    return rows.with_transform(PromptReader(samples, processor, kinds))


def _columns_of(source: Any) -> dict[str, Any]:
    """What samples of a source may have, by name; the values say nothing."""
    names = getattr(source.data, "column_names", None) or list(source.data[0])
    names = {name for name in names if name in (source.columns or COLUMNS)}
    if "expressions" in names:  # one of them is drawn
        names |= {"expression", Foreground.column}
    settings = {name: getattr(source, name) for name in ("id2label", *Panoptic.column_options)}
    return {**dict.fromkeys(names, True), **settings}


__all__ = ["QUESTIONS", "TRUTHS", "PromptReader", "Question", "choose_questions", "make_prompts", "need_measured"]
