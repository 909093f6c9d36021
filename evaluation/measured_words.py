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
"""How the tasks are measured that a model answers in words: what it is asked, what of its answer counts, and what is
true."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from ..answers_densemllm import normalize_name
from ..crops_densemllm import mask_corners
from ..object_tasks_densemllm import Foreground, OpenSet
from ..text_tasks_densemllm import COUNT_INSTRUCTION, COUNTING, DETECTION, GROUNDING, POSE
from ..training.maps import read_mask
from ..training.samples import read_objects, read_person
from .text_metrics import box_iou


if TYPE_CHECKING:
    from ..image_encoding_densemllm import EncodedImage
    from ..modeling_densemllm import DenseMLLMForConditionalGeneration
    from .measured import Settings


NMS_IOU = 0.7  # above which, of two boxes of a class, only the better one counts (Youtu-VL report, arXiv 2601.19798)
# Of a person's box, how much is cut out: what methods on MPII cut out of its centre and scale (Xiao et al. 2018,
# "Simple baselines for human pose estimation").
PERSON_MARGIN = 1.25
COUNT_LENGTH = 64  # tokens of an answer that is a number, and of the words around it
POSE_LENGTH = 1024  # a person has some 90; a crop may show several


def _encode(
    model: "DenseMLLMForConditionalGeneration",
    image: PIL.Image.Image,
    sample: dict,
    settings: "Settings",
    options: dict[str, Any],
) -> "EncodedImage":
    """One image at a time: answers are written one by one, and the caches of a batch of enlarged ones would add up."""
    camera = {"focal_length": sample.get("focal_length"), "depth_range": settings.depth_range}
    return model.encode_image(image, **camera, **options)


# ---- counting ----


def ask_counts(
    model: "DenseMLLMForConditionalGeneration", samples: list[dict], settings: "Settings", options: dict[str, Any]
) -> list[int | None]:
    """The number in the answer to each sample's `question`, after which the published wording is put; `None` where
    there is none."""
    return [
        model.predict(
            _encode(model, sample["image"], sample, settings, options),
            COUNTING,
            prompt=f"{sample['question'].strip()} {COUNT_INSTRUCTION}",
            processor=options["processor"],
            max_new_tokens=COUNT_LENGTH,
        )["count"]
        for sample in samples
    ]


# ---- detection ----


def check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """`detection_scales` as floats, or a `ValueError`."""
    is_list = isinstance(scales, (list, tuple)) and len(scales) > 0
    if not is_list or any(
        isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf for scale in scales
    ):
        raise ValueError(f"`detection_scales` must be numbers greater than 0, at least one, got {scales!r}")
    return tuple(float(scale) for scale in scales)


def ask_boxes(
    model: "DenseMLLMForConditionalGeneration", samples: list[dict], settings: "Settings", options: dict[str, Any]
) -> list[dict[str, np.ndarray]]:
    """The objects that the model names when it is asked for all of them, at each of `detection_scales`.

    Returns:
        for each sample `boxes` `float64 [n, 4]`, (x0, y0, x1, y1) in pixels of the image, `labels` `int64 [n]`, the
        class ids that the names are of, and `scores` `float64 [n]`, the box's share of the image, the greatest first;
        without boxes of a class that overlap a greater one with an IoU above 0.7, and without things whose
        name is not that of a class.
    """
    key_of = {normalize_name(name): key for key, name in settings.names.items()}
    scales = check_scales(settings.detection_scales)
    results = []
    for sample in samples:
        image, found = sample["image"], []
        for scale in scales:
            scaled = options if scale == 1 else options | {"scale": options.get("scale", 1.0) * scale}
            encoded = _encode(model, image, sample, settings, scaled)
            answer = model.predict(encoded, DETECTION, processor=options["processor"], **OpenSet.answer_options)
            pairs = zip(answer["boxes"].tolist(), answer["labels"], strict=True)
            found += [(box, key_of[name]) for box, name in pairs if name in key_of]
        results.append(_rank(found, image.width * image.height))
    return results


def _rank(found: list[tuple[list[float], int]], pixels: int) -> dict[str, np.ndarray]:
    boxes = np.array([box for box, _ in found], dtype=np.float64).reshape(-1, 4)
    labels = np.array([label for _, label in found], dtype=np.int64)
    scores = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) / pixels
    kept = suppress(boxes, labels, scores)
    return {"boxes": boxes[kept], "labels": labels[kept], "scores": scores[kept]}


def suppress(boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, most: float = NMS_IOU) -> list[int]:
    """Non-maximum suppression: of the boxes of a class, the best first, those that overlap none of the kept ones with
    an IoU above `most`.

    Args:
        boxes: `[n, 4]`, (x0, y0, x1, y1).
        labels, scores: `[n]`.
        most: in [0, 1].

    Returns:
        places in `boxes`, the best first; of equal scores the first one is.
    """
    overlaps = (box_iou(boxes, boxes) > most) & (labels[:, None] == labels)
    kept: list[int] = []
    for place in np.argsort(-scores, kind="stable").tolist():
        if not overlaps[place, kept].any():
            kept.append(place)
    return kept


def true_boxes(sample: dict, settings: "Settings") -> dict[str, np.ndarray]:
    """The objects of a sample as [`DetectionMetrics`] takes them."""
    objects = read_objects(sample["objects"], "column `objects`", settings.id2label)
    boxes = np.array(objects["bbox"], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return {
        "boxes": boxes,
        "labels": np.array(objects["category"], dtype=np.int64),
        "iscrowd": np.array(objects["iscrowd"], dtype=np.int64),
    }


# ---- grounding ----


def ask_box(
    model: "DenseMLLMForConditionalGeneration", samples: list[dict], settings: "Settings", options: dict[str, Any]
) -> list[list[float] | None]:
    """The first box of the answer to each sample's `expression`, (x0, y0, x1, y1) in pixels; `None` without one."""
    boxes = [
        model.predict(
            _encode(model, sample["image"], sample, settings, options),
            GROUNDING,
            sample["expression"],
            processor=options["processor"],
            **Foreground.answer_options,
        )["boxes"].tolist()
        for sample in samples
    ]
    return [own[0] if own else None for own in boxes]


def true_box(sample: dict, settings: "Settings") -> list[float] | None:
    """The box around a sample's mask; `None` where the mask is empty, as an expression for nothing has no box."""
    mask = np.asarray(read_mask(sample[Foreground.column], settings.ignored(sample))) > 0
    corners = mask_corners(mask)
    return None if corners is None else [float(edge) for edge in corners]


# ---- pose ----


def person_place(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """What is cut out around a person: 1.25 times its box, as far as the image goes.

    Args:
        box: (x0, y0, x1, y1) in pixels.
        size: `(width, height)` of the image in pixels.

    Returns:
        (x0, y0, x1, y1) in whole pixels of the image.
    """
    x0, y0, x1, y1 = box
    grow_x, grow_y = (PERSON_MARGIN - 1) / 2 * (x1 - x0), (PERSON_MARGIN - 1) / 2 * (y1 - y0)
    return (
        max(0, math.floor(x0 - grow_x)),
        max(0, math.floor(y0 - grow_y)),
        min(size[0], math.ceil(x1 + grow_x)),
        min(size[1], math.ceil(y1 + grow_y)),
    )


def ask_pose(
    model: "DenseMLLMForConditionalGeneration", samples: list[dict], settings: "Settings", options: dict[str, Any]
) -> list[np.ndarray | None]:
    """The joints of the person in each sample's `person` box, from a crop around it, see [`person_place`].

    Returns:
        for each sample `float64 [16, 3]`, x and y in pixels of the image and 1 where the model says that it is
        visible, of the person whose box's centre is nearest to that of the given box; of those as near, the largest.
        `None` where the answer has nobody.
    """
    results: list[np.ndarray | None] = []
    for sample in samples:
        box = true_person(sample, settings)["box"]
        place = person_place(box, sample["image"].size)
        encoded = _encode(model, sample["image"].crop(place), sample, settings, options)
        answer = model.predict(encoded, POSE, processor=options["processor"], max_new_tokens=POSE_LENGTH)
        chosen = _nearest(answer["boxes"].numpy().astype(np.float64) + (place[:2] * 2), box)
        joints = answer["keypoints"].numpy().astype(np.float64) + (*place[:2], 0)
        results.append(None if chosen is None else joints[chosen])
    return results


def _nearest(boxes: np.ndarray, box: Sequence[float]) -> int | None:
    """The place of the box whose centre is nearest to that of another one; `None` of none."""
    if not len(boxes):
        return None
    middle = np.add(box[:2], box[2:]) / 2
    distances = np.linalg.norm((boxes[:, :2] + boxes[:, 2:]) / 2 - middle, axis=1).round(6)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return int(np.lexsort((-areas, distances))[0])


def true_person(sample: dict, settings: "Settings") -> dict[str, Any]:
    """The person of a sample as [`PoseMetrics`] takes it."""
    image = sample["image"]
    return read_person(sample["person"], "column `person`", (image.height, image.width))


__all__ = [
    "ask_box",
    "ask_boxes",
    "ask_counts",
    "ask_pose",
    "check_scales",
    "person_place",
    "suppress",
    "true_box",
    "true_boxes",
    "true_person",
]
