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
"""Metrics of what a model answers in words: counts, boxes of named objects, of referred ones, and poses."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..answers_densemllm import MPII_KEYPOINTS
from ..checks_densemllm import shown
from .metrics import DenseMetrics
from .panoptic import InstanceMetrics


GROUNDING_IOU = 0.5  # from which on a box is right
HEAD_SHARE = 0.5  # of the head's size, up to which a joint is right
# Their places can hardly be seen: MPII's own evaluation leaves them out of the mean.
UNSEEN_JOINTS = ("pelvis", "thorax")


def box_iou(ones: Any, others: Any) -> np.ndarray:
    """The IoU of each box with each other one.

    Args:
        ones, others: `[n, 4]` and `[m, 4]`, (x0, y0, x1, y1).

    Returns:
        `float64 [n, m]`, 0 of boxes without area.
    """
    ones, others = (np.asarray(boxes, dtype=np.float64).reshape(-1, 4) for boxes in (ones, others))
    starts, ends = np.maximum(ones[:, None, :2], others[:, :2]), np.minimum(ones[:, None, 2:], others[:, 2:])
    both = (ends - starts).clip(min=0).prod(axis=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=-1) for boxes in (ones, others)]
    union = areas[0][:, None] + areas[1] - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


class CountingMetrics(DenseMetrics):
    """The share of answers that are the very number, and the root of the mean squared difference (Acharya et al. 2019,
    "TallyQA"). An answer without a number is wrong, and counts as 0 in the second."""

    def __init__(self) -> None:
        # Answers, how many of them are right, and the sum of the squared differences.
        self.totals = torch.zeros(3, dtype=torch.float64, device="cpu")

    def count(self, prediction: int | None, reference: int) -> torch.Tensor:
        """What one answer adds: numbers of at least 0; `None` where the answer has none."""
        for name, value in (("prediction", prediction), ("reference", reference)):
            is_none = name == "prediction" and value is None
            if not is_none and (isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0):
                raise ValueError(f"`{name}` must be an integer of at least 0, got {shown(value)}")
        difference = float(reference) - float(prediction or 0)
        return torch.tensor([1, float(prediction == reference), difference**2], dtype=torch.float64, device="cpu")

    def compute(self, totals: torch.Tensor | None = None) -> dict:
        """`counting_accuracy` in [0, 1], and `counting_rmse`; NaN without an answer."""
        answers, right, squares = (self.totals if totals is None else totals).tolist()
        return {
            "counting_accuracy": right / answers if answers else math.nan,
            "counting_rmse": math.sqrt(squares / answers) if answers else math.nan,
        }


class GroundingMetrics(DenseMetrics):
    """The share of boxes whose IoU with the true one is at least 0.5."""

    def __init__(self) -> None:
        self.totals = torch.zeros(2, dtype=torch.long)

    def count(self, prediction: Sequence[float] | None, reference: Sequence[float]) -> torch.Tensor:
        """What one expression adds: boxes (x0, y0, x1, y1) in pixels; `None` where the model gave none."""
        if np.shape(reference) != (4,) or (prediction is not None and np.shape(prediction) != (4,)):
            raise ValueError(
                f"`prediction` and `reference` must be boxes (x0, y0, x1, y1), got {shown(prediction)} and "
                f"{shown(reference)}"
            )
        is_right = prediction is not None and box_iou(prediction, reference)[0, 0] >= GROUNDING_IOU
        return torch.tensor([1, int(is_right)])

    def compute(self, totals: torch.Tensor | None = None) -> dict:
        """`grounding_accuracy` in [0, 1]; NaN without an expression."""
        expressions, right = (self.totals if totals is None else totals).tolist()
        return {"grounding_accuracy": right / expressions if expressions else math.nan}


class DetectionMetrics(InstanceMetrics):
    """AP of boxes by COCO's definition, from `pycocotools`: over IoU from 0.5 to 0.95, at 0.5 and at 0.75, for objects
    of any size and up to 100 detections of an image and class. A detection that lies in a crowd of its class doesn't
    count. Parts of a data set are put together as with [`InstanceMetrics`].

    Args:
        label_ids: the ids of the classes that count; boxes of others are left out.

    Raises:
        ImportError: `pycocotools` is not installed.
    """

    name = "box_ap"
    iou_type = "bbox"

    def count(self, prediction: Mapping[str, Any], reference: Mapping[str, Any]) -> list[dict]:
        """What one image adds.

        Args:
            prediction: `boxes` `[n, 4]`, (x0, y0, x1, y1) in pixels of the image, `labels` `[n]`, class ids, and
                `scores` `[n]`, as transformers' `post_process_object_detection` gives them.
            reference: `boxes` and `labels`, and `iscrowd` `[n]`, 1 of a box around several objects, where there are
                such.

        Returns:
            rows as of [`InstanceMetrics.count`].
        """
        both = _coco_boxes("prediction", prediction, "scores"), _coco_boxes("reference", reference, "iscrowd")
        found, true = ([row for row in rows if row["category_id"] in self.label_ids] for rows in both)
        return self._match(found, true, (1, 1))  # the size is of masks alone

    def compute(self, totals: list[dict] | None = None) -> dict:
        """`box_ap`, the mean over classes and IoU thresholds, `box_ap50` and `box_ap75`, in [0, 1], over the classes
        that have a true object; `per_label_box_ap` in the order of `label_ids`, NaN where there is none."""
        return super().compute(totals)


def _coco_boxes(name: str, objects: Mapping[str, Any], extra: str) -> list[dict]:
    """COCO's rows of the boxes of an image, with what `extra` has of each under COCO's name for it."""
    is_found = extra == "scores"
    needed = ("boxes", "labels", extra) if is_found else ("boxes", "labels")
    if not isinstance(objects, Mapping) or not set(needed) <= set(objects):
        raise ValueError(f"`{name}` must be a dict with {list(needed)}, got {shown(objects)}")
    boxes, labels = np.asarray(objects["boxes"], dtype=np.float64).reshape(-1, 4), np.asarray(objects["labels"])
    more = np.asarray(objects.get(extra, np.zeros(len(boxes), dtype=int)))
    if not len(boxes) == len(labels) == len(more):
        raise ValueError(
            f"`{name}` must have a label and an entry of `{extra}` for each box, got {len(boxes)} boxes, "
            f"{len(labels)} labels and {len(more)} of `{extra}`"
        )
    return [
        {
            "image_id": 0,
            "category_id": int(label),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0),
            **({"score": float(value)} if is_found else {"iscrowd": int(value)}),
        }
        for (x0, y0, x1, y1), label, value in zip(boxes.tolist(), labels.tolist(), more.tolist(), strict=True)
    ]


class PoseMetrics(DenseMetrics):
    """PCKh@0.5 (Andriluka et al. 2014, "2D human pose estimation"): the share of annotated joints that were placed no
    further away than half of the head's size. As in MPII's own evaluation, it is over all joints of all people but
    pelvis and thorax; a person who was not found has every joint wrong."""

    def __init__(self) -> None:
        # Of each joint, how often it is annotated, and how often it is right.
        self.totals = torch.zeros(len(MPII_KEYPOINTS), 2, dtype=torch.long)

    def count(self, prediction: Any, reference: Mapping[str, Any]) -> torch.Tensor:
        """What one person adds.

        Args:
            prediction: `[16, 2]` or more columns, x and y in pixels; `None`: not found.
            reference: `keypoints` `[16, 3]`, (x, y, annotated), and `head_size`, in pixels.
        """
        true = np.asarray(reference["keypoints"], dtype=np.float64)
        found = np.full((len(MPII_KEYPOINTS), 2), np.nan) if prediction is None else np.asarray(prediction)
        if true.shape != (len(MPII_KEYPOINTS), 3) or found.ndim != 2 or len(found) != len(true) or found.shape[1] < 2:
            raise ValueError(
                f"`prediction` must be [16, 2] and the `keypoints` of `reference` [16, 3], got {found.shape} and "
                f"{true.shape}"
            )
        is_annotated = true[:, 2] > 0
        distances = np.linalg.norm(found[:, :2].astype(np.float64) - true[:, :2], axis=1) / reference["head_size"]
        is_right = is_annotated & (distances <= HEAD_SHARE)  # of NaN, not
        return torch.from_numpy(np.stack([is_annotated, is_right], axis=1).astype(np.int64))

    def compute(self, totals: torch.Tensor | None = None) -> dict:
        """`pckh`, over all joints but pelvis and thorax, and `per_joint_pckh`, of each of the 16 in MPII's order, in
        [0, 1]; NaN where nothing is annotated."""
        annotated, right = (self.totals if totals is None else totals).cpu().double().unbind(dim=1)
        counted = torch.tensor([name not in UNSEEN_JOINTS for name in MPII_KEYPOINTS])
        return {
            "pckh": float(right[counted].sum() / annotated[counted].sum()),
            "per_joint_pckh": (right / annotated).tolist(),
        }


__all__ = [
    "CountingMetrics",
    "DetectionMetrics",
    "GroundingMetrics",
    "PoseMetrics",
    "box_iou",
]
