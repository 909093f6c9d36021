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
"""Metrics of what a model answers in words, worked out by hand."""

import json
import math

import numpy as np
import pytest
import torch

from densemllm.answers_densemllm import MPII_KEYPOINTS
from densemllm.evaluation.measured_words import person_place, suppress
from densemllm.evaluation.text_metrics import (
    CountingMetrics,
    DetectionMetrics,
    GroundingMetrics,
    PoseMetrics,
    box_iou,
)
from repository import require


require("evaluation/text_metrics.py")


def in_parts(make, pairs):
    """Metrics of pairs that were added at once, and of two parts whose records went through JSON."""
    whole, joined = make(), make()
    for pair in pairs:
        whole.add(*pair)
        joined.add_record(json.loads(json.dumps(whole.to_record(whole.count(*pair)))))
    first, second = whole.compute(), joined.compute()
    assert {key: str(value) for key, value in first.items()} == {key: str(value) for key, value in second.items()}
    return first


def test_iou_of_boxes():
    ones = [[0, 0, 4, 4], [2, 2, 2, 5]]
    others = [[0, 0, 4, 4], [2, 0, 6, 4], [4, 4, 8, 8]]
    # 8 of 24 pixels; a box that only touches; one without area.
    np.testing.assert_allclose(box_iou(ones, others), [[1, 8 / 24, 0], [0, 0, 0]])
    assert box_iou(np.zeros((0, 4)), others).shape == (0, 3)


def test_counts():
    results = in_parts(CountingMetrics, [(3, 3), (5, 3), (None, 4), (0, 0)])
    assert results == {"counting_accuracy": 0.5, "counting_rmse": pytest.approx(math.sqrt((4 + 16) / 4))}
    assert math.isnan(CountingMetrics().compute()["counting_rmse"]) and CountingMetrics().is_empty
    # No number is not the number 0, though it is as far away.
    assert in_parts(CountingMetrics, [(None, 0)]) == {"counting_accuracy": 0.0, "counting_rmse": 0.0}


@pytest.mark.parametrize("pair", [(1.0, 1), (-1, 1), (True, 1), (1, None), ("1", 1)])
def test_other_things_than_counts_are_refused(pair):
    with pytest.raises(ValueError, match="must be an integer of at least 0"):
        CountingMetrics().count(*pair)


def test_referred_boxes():
    # IoU 1; 8 of 16 pixels, exactly one half; 8 of 17; none.
    true = [0, 0, 4, 4]
    pairs = [(true, true), ([0, 0, 4, 2], true), ([0, 0, 4, 2], [0, 0, 17, 1]), (None, true)]
    assert in_parts(GroundingMetrics, pairs) == {"grounding_accuracy": 0.5}
    with pytest.raises(ValueError, match="must be boxes"):
        GroundingMetrics().count([0, 0, 4], true)


def found(boxes, labels, scores):
    return {"boxes": boxes, "labels": labels, "scores": scores}


def true(boxes, labels, **more):
    return {"boxes": boxes, "labels": labels, **more}


PERSON, DOG = [0, 0, 10, 10], [20, 20, 30, 40]


@pytest.fixture
def coco():
    pytest.importorskip("pycocotools")


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        # All found.
        ([(found([PERSON, DOG], [1, 18], [0.9, 0.1]), true([PERSON, DOG], [1, 18]))], (1, 1, 1)),
        # One of two persons: precision 1 up to a recall of 0.5, which is 51 of the 101 points.
        ([(found([PERSON], [1], [0.9]), true([PERSON, [50, 50, 60, 60]], [1, 1]))], (51 / 101,) * 3),
        # The better one is false, so that the precision is one half everywhere.
        ([(found([DOG, PERSON], [1, 1], [0.9, 0.2]), true([PERSON], [1]))], (0.5,) * 3),
        # In another image, with a lower score, it doesn't matter.
        (
            [
                (found([PERSON], [1], [0.9]), true([PERSON], [1])),
                (found([DOG], [1], [0.2]), true([], [])),
            ],
            (1, 1, 1),
        ),
        # An IoU of 0.72: found at 0.5 to 0.7, 5 of 10 thresholds.
        ([(found([[0, 0, 10, 7.2]], [1], [0.5]), true([PERSON], [1]))], (0.5, 1, 0)),
        # The right box with another class's name; the classes are a mean.
        ([(found([PERSON, DOG], [18, 18], [0.1, 0.9]), true([PERSON, DOG], [1, 18]))], (0.5,) * 3),
        # A class that isn't measured, and one that has no true object.
        ([(found([PERSON, DOG], [1, 7], [0.5, 0.9]), true([PERSON, DOG], [1, 7]))], (1, 1, 1)),
    ],
)
def test_boxes(coco, pairs, expected):
    results = in_parts(lambda: DetectionMetrics([1, 18, 90]), pairs)
    assert [results[key] for key in ("box_ap", "box_ap50", "box_ap75")] == pytest.approx(expected)


def test_what_lies_in_a_crowd_does_not_count(coco):
    boxes, labels = [PERSON, [100, 0, 200, 100]], [1, 1]
    # Two boxes in the crowd, better than the person's: neither hits nor false.
    inside = found([[100, 0, 150, 50], [120, 20, 160, 60], PERSON], [1, 1, 1], [0.9, 0.8, 0.1])
    metrics = DetectionMetrics([1])
    metrics.add(inside, true(boxes, labels, iscrowd=[0, 1]))
    assert metrics.compute()["box_ap"] == pytest.approx(1)
    metrics = DetectionMetrics([1])
    metrics.add(inside, true(boxes, labels))
    # Told apart, 1 of 2 is found, as the third of three: a precision of 1/3 up to a recall of 0.5.
    assert metrics.compute()["box_ap"] == pytest.approx(51 / 101 / 3)


def test_boxes_are_counted_as_pycocotools_does(coco):
    """On random boxes, whole sets through `COCO.loadRes` and `COCOeval`."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    pairs, annotations, results = [], [], []
    for image in range(6):
        boxes = rng.integers(0, 40, (8, 4)).astype(float)
        boxes[:, 2:] = boxes[:, :2] + rng.integers(5, 30, (8, 2))
        labels, crowds = rng.integers(1, 4, 8), (rng.random(8) < 0.2).astype(int)
        guesses, scores = boxes + rng.normal(0, 2, (8, 4)), rng.random(8)
        pairs.append((found(guesses, labels, scores), true(boxes, labels, iscrowd=crowds)))
        for place in range(8):
            own = {"image_id": image, "category_id": int(labels[place])}
            x0, y0, x1, y1 = boxes[place].tolist()
            annotations.append({**own, "id": len(annotations) + 1, "bbox": [x0, y0, x1 - x0, y1 - y0],
                                "area": (x1 - x0) * (y1 - y0), "iscrowd": int(crowds[place])})  # fmt: skip
            x0, y0, x1, y1 = guesses[place].tolist()
            results.append({**own, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": float(scores[place])})
    coco = COCO()
    coco.dataset = {"images": [{"id": image} for image in range(6)], "annotations": annotations, "info": {},
                    "categories": [{"id": key} for key in (1, 2, 3)]}  # fmt: skip
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    own = in_parts(lambda: DetectionMetrics([1, 2, 3]), pairs)
    assert [own[key] for key in ("box_ap", "box_ap50", "box_ap75")] == pytest.approx(evaluation.stats[:3].tolist())
    assert 0.1 < own["box_ap"] < 0.9


def test_boxes_that_cannot_be_compared_are_named(coco):
    metrics = DetectionMetrics([1])
    with pytest.raises(ValueError, match=r"`prediction` must be a dict with \['boxes', 'labels', 'scores'\]"):
        metrics.count(true([PERSON], [1]), true([PERSON], [1]))
    with pytest.raises(ValueError, match="`reference` must have a label .* got 1 boxes, 2 labels"):
        metrics.count(found([PERSON], [1], [1.0]), true([PERSON], [1, 1]))


def test_of_boxes_that_overlap_the_better_one_is_kept():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 7], [0, 0, 10, 8], [20, 0, 30, 10]], dtype=float)
    labels, scores = np.array([1, 1, 1, 2, 1]), np.array([0.5, 0.4, 0.35, 0.4, 0.6])
    # 0.8 of the first is too much, exactly 0.7 isn't, and another class stays.
    assert suppress(boxes, labels, scores) == [4, 0, 3, 2]
    # What was left out leaves out nothing: the third overlaps only the second by more than 0.75.
    assert suppress(boxes[:3], labels[:3], scores[:3], 0.75) == [0, 2]
    assert suppress(boxes[[1, 2]], labels[:2], scores[1:3], 0.75) == [0]
    assert suppress(np.zeros((0, 4)), labels[:0], scores[:0]) == []


def person(head_size=10.0):
    """Joints 30 pixels apart, all of which are annotated but the left wrist."""
    joints = np.array([[30.0 * place, 5.0, 1.0] for place in range(16)])
    joints[15, 2] = 0
    return {"keypoints": joints, "head_size": head_size}


def test_joints_by_the_size_of_the_head():
    found = np.array(person()["keypoints"])
    results = in_parts(PoseMetrics, [(found, person())])
    assert results["pckh"] == 1.0 and results["per_joint_pckh"][:15] == [1.0] * 15
    assert math.isnan(results["per_joint_pckh"][15])
    off = found.copy()
    off[0, 0] += 5.0  # exactly half of the head
    off[1] += (3, 4.1, 0)  # 5.08 pixels
    off[MPII_KEYPOINTS.index("pelvis"), 1] += 100  # isn't in the mean
    off[MPII_KEYPOINTS.index("thorax"), 1] += 100
    off[15, 0] += 100  # isn't annotated
    assert in_parts(PoseMetrics, [(off, person())])["pckh"] == pytest.approx(12 / 13)
    # A larger head forgives more. Two people weigh as their joints do; one who wasn't found has all wrong.
    assert in_parts(PoseMetrics, [(off, person(20.0))])["pckh"] == 1.0
    few = person()
    few["keypoints"][3:, 2] = 0
    assert in_parts(PoseMetrics, [(off, person()), (None, few)])["pckh"] == pytest.approx(12 / 16)
    few["keypoints"][:, 2] = 0
    assert math.isnan(in_parts(PoseMetrics, [(off, few)])["pckh"])
    with pytest.raises(ValueError, match=r"`prediction` must be \[16, 2\]"):
        PoseMetrics().count(off[:3], person())
    assert PoseMetrics().count(torch.from_numpy(off), person()).sum() == 15 + 12


def test_what_is_cut_out_around_a_person():
    # 40 x 80 pixels become 50 x 100, in whole pixels, as far as the image goes.
    assert person_place((100, 100, 140, 180), (640, 480)) == (95, 90, 145, 190)
    assert person_place((0.5, 10, 20.5, 30), (22, 480)) == (0, 7, 22, 33)
