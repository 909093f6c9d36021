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
"""Rewards of answers in words, for TRL's trainers: `completions, **columns -> list[float | None]`.

A reward is in [0, 1], and `None` where it has nothing to compare an answer with: it is not about that question. What
is true stands in columns that `training/prompts.py` makes, whose names are the rewards' parameters:

| reward | column | value |
|---|---|---|
| `class_list_iou` | `true_classes` | the names' intersection over union; a repeated name counts as a wrong one |
| `box_iou` | `true_box` | 1 above an IoU of 0.5, else in proportion to it; divided by the number of boxes |
| `detection_map` | `true_objects` | mean of precision times recall over classes and IoU from 0.5 to 0.95 |
| `polygon_iou` | `true_mask` | IoU of all that is outlined |
| `count_accuracy` | `true_count` | up to 10 whether it is the number; of more, 1 less the relative error |
| `pose_pck` | `true_person` | the share of joints within half of the head's size |
| `format` | any of these | whether the answer is whole and has what was asked for |
| `repetition` | none | the share of different stretches of three words and tags |
| `language` | `prompts` | the share of letters of the question's scripts |

An answer is what a model makes up: it may be anything and of any length. It costs time in proportion to its length,
and what can't be read is worth 0.
"""

import inspect
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..answers_densemllm import (
    PolygonMasks,
    all_refs,
    normalize_name,
    parse_counting,
    parse_detection,
    parse_grounding,
    parse_polygons,
    parse_pose,
)
from ..evaluation import text_metrics


Completion = str | Sequence[Mapping[str, Any]]  # a text, or a chat whose last message is the answer
Size = tuple[int, int]
Reward = Callable[..., list[float | None]]

HALF = 0.5  # of an IoU, from which on a box is right
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
MOST_DETECTIONS = 100  # of a class, as in COCO's metric; more are wrong without being looked at
SMALL_COUNT = 10  # up to which a number is right or wrong
STRETCH = 3  # words and tags that are looked at together
_UNIT = re.compile(r"<[^<>\s]*>|[^\s<>]+|[<>]")
_TAG = re.compile(r"<[^<>\s]*>")


def answer_texts(completions: Sequence[Completion]) -> list[str]:
    """What TRL gives of each completion as a text: the text itself, or the content of the last message."""
    return [text if isinstance(text, str) else _content(text) for text in completions]


def _content(messages: Sequence[Mapping[str, Any]]) -> str:
    content = messages[-1].get("content") if messages else None
    if isinstance(content, (list, tuple)):
        return "".join(part.get("text") or "" for part in content)
    return content or ""


# ---- what an answer names ----


def class_list_iou(
    completions: Sequence[Completion], true_classes: Sequence[Sequence[str] | None], **columns: Any
) -> list[float | None]:
    """The paper's reward on class names: how many of the named and the true ones are both.

    A name that is repeated counts as one that is wrong: a list that goes round gets less the longer it is.

    Args:
        completions: the answers, with `<ref>name</ref>`.
        true_classes: the names of what is there; `None` or none: another question.
    """
    return [
        _list_iou(text, {normalize_name(name) for name in true}) if true else None
        for text, true in zip(answer_texts(completions), true_classes, strict=True)
    ]


def _list_iou(text: str, true: set[str]) -> float:
    right = true & set(all_refs(text))
    named = text.count("<ref>")  # also those without a name, or without an end
    return len(right) / (named + len(true - right))


# ---- places ----


def box_iou(
    completions: Sequence[Completion],
    true_box: Sequence[Sequence[float] | None],
    image_size: Sequence[Size],
    resized_size: Sequence[Size],
    **columns: Any,
) -> list[float | None]:
    """1 where the first box has an IoU above 0.5 with the true one, else twice the IoU; divided by the number of
    boxes, so that nobody tries many.

    Args:
        completions: the answers, see [`parse_grounding`].
        true_box: (x0, y0, x1, y1) in pixels of the image.
        image_size, resized_size: `(height, width)` in pixels of the image, and of what the model saw.
    """
    rewards: list[float | None] = []
    for text, true, *sizes in zip(answer_texts(completions), true_box, image_size, resized_size, strict=True):
        if true is None:
            rewards.append(None)
            continue
        boxes = parse_grounding(text, *sizes)["boxes"].numpy()
        overlap = float(text_metrics.box_iou(boxes[:1], [true])[0, 0]) if len(boxes) else 0.0
        rewards.append(min(1.0, overlap / HALF) / max(1, len(boxes)))
    return rewards


def detection_map(
    completions: Sequence[Completion],
    true_objects: Sequence[Mapping[str, Any] | None],
    image_size: Sequence[Size],
    resized_size: Sequence[Size],
    **columns: Any,
) -> list[float | None]:
    """Mean average precision of boxes at IoU from 0.5 to 0.95, over the classes that are there or are named.

    The boxes of an answer have no scores. The curve of precision and recall is one point then, and the area under it
    is precision times recall: every box too many costs something. A named class that is not there has 0, and so has a
    box without a name; boxes in a crowd of their class don't count.

    Args:
        completions: the answers, see [`parse_detection`].
        true_objects: `boxes` `[n, 4]`, (x0, y0, x1, y1) in pixels of the image, `labels`, their names, and `iscrowd`,
            1 of a box around several objects.
        image_size, resized_size: see [`box_iou`].
    """
    rewards: list[float | None] = []
    for text, true, *sizes in zip(answer_texts(completions), true_objects, image_size, resized_size, strict=True):
        rewards.append(None if true is None else _mean_precision(parse_detection(text, *sizes), true))
    return rewards


def _mean_precision(found: Mapping[str, Any], true: Mapping[str, Any]) -> float:
    own = _by_name(found["labels"], found["boxes"].numpy())
    names = np.array([normalize_name(name) for name in true["labels"]], dtype=object)
    boxes = np.asarray(true["boxes"], dtype=np.float64).reshape(-1, 4)
    is_crowd = np.asarray(true.get("iscrowd", np.zeros(len(names))), dtype=bool)
    alone, crowds = (_by_name(names[kind], boxes[kind]) for kind in (~is_crowd, is_crowd))
    values = [
        _precision(own.get(name, []), alone.get(name, []), crowds.get(name, []))
        for name in dict.fromkeys((*alone, *own))
    ]
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else 0.0


def _by_name(names: Sequence[str], boxes: np.ndarray) -> dict[str, list]:
    found: dict[str, list] = {}
    for name, box in zip(names, boxes.tolist(), strict=True):
        found.setdefault(name, []).append(box)
    return found


def _precision(found: list, true: list, crowds: list) -> float | None:
    """Precision times recall of a class, the mean over thresholds; `None` of boxes that all lie in a crowd."""
    looked_at = np.asarray(found[:MOST_DETECTIONS], dtype=np.float64).reshape(-1, 4)
    pairs = _match(text_metrics.box_iou(looked_at, true))
    inside = _share_inside(looked_at, crowds)
    values, is_counted = [], False
    for threshold in IOU_THRESHOLDS:
        hits = [one for one, overlap in pairs if overlap >= threshold]
        in_crowd = inside >= threshold
        in_crowd[hits] = False
        counted = len(found) - int(in_crowd.sum())
        is_counted |= counted > 0
        values.append(len(hits) ** 2 / (counted * len(true)) if hits else 0.0)
    return float(np.mean(values)) if true or is_counted else None


def _match(overlaps: np.ndarray) -> list[tuple[int, float]]:
    """Pairs of boxes that overlap by a half, the best first, each box in one: (place in the rows, IoU)."""
    rows, columns = np.nonzero(overlaps >= IOU_THRESHOLDS[0])
    order = np.argsort(-overlaps[rows, columns], kind="stable")
    matched, taken, pairs = set(), set(), []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in matched and column not in taken:
            matched.add(row)
            taken.add(column)
            pairs.append((row, float(overlaps[row, column])))
    return pairs


def _share_inside(boxes: np.ndarray, crowds: list) -> np.ndarray:
    """How much of each box lies in that crowd which has the most of it: `float64 [n]`."""
    if not crowds or not len(boxes):
        return np.zeros(len(boxes))
    around = np.asarray(crowds, dtype=np.float64)
    starts, ends = np.maximum(boxes[:, None, :2], around[:, :2]), np.minimum(boxes[:, None, 2:], around[:, 2:])
    both = (ends - starts).clip(min=0).prod(axis=-1).max(axis=1)
    return both / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).clip(min=np.finfo(np.float32).tiny)


def polygon_iou(
    completions: Sequence[Completion],
    true_mask: Sequence[np.ndarray | None],
    image_size: Sequence[Size],
    resized_size: Sequence[Size],
    **columns: Any,
) -> list[float | None]:
    """The IoU of all that an answer outlines with the true mask.

    Args:
        completions: the answers, see [`parse_polygons`].
        true_mask: `bool [height, width]` of the image.
        image_size, resized_size: see [`box_iou`].
    """
    rewards: list[float | None] = []
    for text, true, *sizes in zip(answer_texts(completions), true_mask, image_size, resized_size, strict=True):
        if true is None:
            rewards.append(None)
            continue
        objects = parse_polygons(text, *sizes)["polygons"]
        # All of them in one mask, however many there are.
        whole = [polygon for polygons in objects for polygon in polygons]
        mask, true = PolygonMasks([whole], sizes[0])[0].numpy(), np.asarray(true, dtype=bool)
        union = int((mask | true).sum())
        rewards.append(int((mask & true).sum()) / union if whole and union else 0.0)
    return rewards


def pose_pck(
    completions: Sequence[Completion],
    true_person: Sequence[Mapping[str, Any] | None],
    image_size: Sequence[Size],
    resized_size: Sequence[Size],
    **columns: Any,
) -> list[float | None]:
    """PCKh@0.5 of the person in the answer whose box has its centre nearest to that of the true one: the share of
    annotated joints, but for pelvis and thorax, within half of the head's size; divided by the number of people.

    Args:
        completions: the answers, see [`parse_pose`].
        true_person: see [`read_person`], in pixels of the image.
        image_size, resized_size: see [`box_iou`].
    """
    rewards: list[float | None] = []
    for text, true, *sizes in zip(answer_texts(completions), true_person, image_size, resized_size, strict=True):
        if true is None:
            rewards.append(None)
            continue
        found, box = parse_pose(text, *sizes), np.asarray(true["box"])
        boxes = found["boxes"].numpy()
        if not len(boxes):
            rewards.append(0.0)
            continue
        distances = np.linalg.norm((boxes[:, :2] + boxes[:, 2:]) / 2 - (box[:2] + box[2:]) / 2, axis=1)
        metrics = text_metrics.PoseMetrics()
        share = metrics.compute(metrics.count(found["keypoints"][int(distances.argmin())].numpy(), true))["pckh"]
        rewards.append(None if math.isnan(share) else share / len(boxes))  # no joint is annotated
    return rewards


# ---- numbers ----


def count_accuracy(
    completions: Sequence[Completion], true_count: Sequence[int | None], **columns: Any
) -> list[float | None]:
    """Up to 10, 1 for the very number and 0 for any other; of more, 1 less the error's share of the number.

    Args:
        completions: the answers, see [`parse_counting`].
        true_count: how many there are.
    """
    rewards: list[float | None] = []
    for text, true in zip(answer_texts(completions), true_count, strict=True):
        if true is None:
            rewards.append(None)
            continue
        found = parse_counting(text, (1, 1), (1, 1))["count"]
        if found is None or true <= SMALL_COUNT:
            rewards.append(float(found == true))
        else:
            rewards.append(max(0.0, 1.0 - abs(found - true) / true))
    return rewards


# ---- how an answer is written ----


def _has_names(text: str) -> bool:
    return bool(all_refs(text)) and parse_detection(text, (1, 1), (1, 1))["unparsed"] is None


def _has_boxes(text: str) -> bool:
    found = parse_grounding(text, *_ANY_SIZE)
    return len(found["boxes"]) > 0 and found["unparsed"] is None


def _has_objects(text: str) -> bool:
    found = parse_detection(text, *_ANY_SIZE)
    return len(found["boxes"]) > 0 and all(found["labels"]) and found["unparsed"] is None


def _has_polygons(text: str) -> bool:
    found = parse_polygons(text, *_ANY_SIZE)
    return len(found["polygons"]) > 0 and found["unparsed"] is None


def _has_number(text: str) -> bool:
    found = parse_counting(text, *_ANY_SIZE)
    return found["count"] is not None and found["unparsed"] is None


def _has_people(text: str) -> bool:
    found = parse_pose(text, *_ANY_SIZE)
    return len(found["boxes"]) > 0 and found["unparsed"] is None


_ANY_SIZE = ((10**6, 10**6), (10**6, 10**6))  # in which every box that can be written has its place
# What an answer must have, by the column of what is true.
_WRITTEN = {
    "true_classes": _has_names,
    "true_box": _has_boxes,
    "true_objects": _has_objects,
    "true_mask": _has_polygons,
    "true_count": _has_number,
    "true_person": _has_people,
}


def format(completions: Sequence[Completion], **columns: Any) -> list[float | None]:
    """1 where the answer has what was asked for, and nothing of it is malformed or cut off; else 0.

    Args:
        completions: the answers.
        columns: those of what is true; the one that is not `None` says what was asked for.
    """
    rewards: list[float | None] = []
    for place, text in enumerate(answer_texts(completions)):
        checks = [check for name, check in _WRITTEN.items() if name in columns and columns[name][place] is not None]
        rewards.append(float(all(check(text) for check in checks)) if checks else None)
    return rewards


def repetition(completions: Sequence[Completion], **columns: Any) -> list[float | None]:
    """The share of different ones of all stretches of three words and tags: 1 where nothing is said twice, close to 0
    where it goes round and round. An empty answer has 0."""
    rewards: list[float | None] = []
    for text in answer_texts(completions):
        units = _UNIT.findall(text)
        stretches = list(zip(*(units[start:] for start in range(STRETCH)), strict=False))
        rewards.append(len(set(stretches)) / len(stretches) if stretches else float(bool(units)))
    return rewards


def language(completions: Sequence[Completion], prompts: Sequence[Completion], **columns: Any) -> list[float | None]:
    """The share of letters that are of a script in which the question is written: Latin, Greek, Chinese... 1 of an
    answer without letters outside of its tags, 0 of an empty one.

    Args:
        completions: the answers.
        prompts: the questions, as TRL gives them.
    """
    rewards: list[float | None] = []
    for text, question in zip(answer_texts(completions), answer_texts(prompts), strict=True):
        asked, letters = set(_scripts(question)), _scripts(_TAG.sub(" ", text))
        share = sum(script in asked for script in letters) / len(letters) if letters else float(bool(text.strip()))
        rewards.append(share if asked else None)
    return rewards


def _scripts(text: str) -> list[str]:
    """The script of each letter, which is the first word of its name in Unicode."""
    return [unicodedata.name(letter, "?").partition(" ")[0] for letter in text if letter.isalpha()]


# ---- by name ----


REWARDS: dict[str, Reward] = {
    reward.__name__: reward
    for reward in (
        class_list_iou, box_iou, detection_map, polygon_iou, pose_pck, count_accuracy, format, repetition, language,
    )
}  # fmt: skip


def get_rewards(names: Sequence[str]) -> list[Reward]:
    """Rewards by their names.

    Raises:
        ValueError: no name, one that there isn't, or one that comes twice.
    """
    unknown = [name for name in names if name not in REWARDS]
    if unknown or not names or len(set(names)) < len(names):
        raise ValueError(f"`reward_funcs` must be some of {list(REWARDS)}, each once, got {list(names)}")
    return [REWARDS[name] for name in names]


def columns_of(rewards: Sequence[Reward]) -> set[str]:
    """The names of the columns of what is true that rewards compare with."""
    return {name for reward in rewards for name in inspect.signature(reward).parameters if name in _WRITTEN}


__all__ = [
    "REWARDS",
    "answer_texts",
    "box_iou",
    "class_list_iou",
    "columns_of",
    "count_accuracy",
    "detection_map",
    "get_rewards",
    "language",
    "polygon_iou",
    "pose_pck",
    "repetition",
]
