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
"""PQ and mask AP against hand-worked cases and the original programs, and COCO's files."""

import json
import sys

import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings

from densemllm.evaluation.panoptic import (
    InstanceMetrics,
    PanopticMetrics,
    coco_instances,
    save_coco_panoptic,
    segments_of_coco,
)


LABELS, THINGS = [3, 7, 12, 20], [3, 7]
CATEGORIES = [{"id": key, "name": f"class {key}", "isthing": int(key in THINGS)} for key in LABELS]

seeds = st.integers(0, 2**32 - 1)


def rows(*labels, first=1, **more):
    """A row for each class id, numbered from `first`."""
    return [{"id": number, "label_id": label, **more} for number, label in enumerate(labels, first)]


def random_pair(rng, size=(12, 14), count=6, crowds=False):
    """A prediction and a reference of rectangles over each other, some of them in both; the rest is no segment."""
    maps = [np.zeros(size, dtype=np.int64), np.full(size, -1, dtype=np.int64)]
    infos = [[], []]
    for number in range(1, count + 1):
        top, left = rng.integers(0, size[0] - 3), rng.integers(0, size[1] - 3)
        height, width = rng.integers(2, 9, 2)
        label = int(rng.choice(LABELS))
        for values, info, shift in zip(maps, infos, rng.integers(0, 2, 2), strict=True):
            if rng.random() < 0.85:
                values[top + shift : top + height, left : left + width] = number
                info.append({"id": number, "label_id": label if rng.random() < 0.9 else 3})
    infos[0] = [row | {"score": round(rng.random(), 1)} for row in infos[0]]
    if crowds:
        infos[1] = [row | {"iscrowd": int(rng.random() < 0.3)} for row in infos[1]]
    return tuple(zip(maps, infos, strict=True))


# ---- PQ ----


def test_pq_by_hand():
    reference = torch.tensor([[1, 1, 2, 2, 3, 0]] * 4), rows(3, 3, 12)
    prediction = torch.tensor([[10, 10, 10, 11, 12, 12]] + [[10, 10, 11, -1, 12, 12]] * 3), rows(3, 3, 12, first=10)
    metrics = PanopticMetrics(LABELS, THINGS)
    # 10 is 1 and a pixel more: 8 / 9. 11 is half of 2, which is not above 0.5: false, and 2 is missed. Half of 12 is
    # where the reference has nothing; the rest is all of 3.
    expected = torch.tensor([[8 / 9, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(metrics.count(prediction, reference), expected)
    metrics.add(prediction, reference)
    results = metrics.compute()
    assert results["pq"] == pytest.approx((4 / 9 + 1) / 2)
    assert results["sq"] == pytest.approx((8 / 9 + 1) / 2)
    assert results["rq"] == pytest.approx(0.75)
    assert [results[f"{name}_things"] for name in ("pq", "sq", "rq")] == pytest.approx([4 / 9, 8 / 9, 0.5])
    assert [results[f"{name}_stuff"] for name in ("pq", "sq", "rq")] == [1, 1, 1]
    assert results["per_label_pq"] == pytest.approx([4 / 9, np.nan, 1, np.nan], nan_ok=True)


def test_a_class_without_a_match_counts_as_zero():
    metrics = PanopticMetrics(LABELS, THINGS)
    metrics.add((np.array([[1, 2]]), rows(3, 12)), (np.array([[1, 2]]), rows(7, 12)))
    results = metrics.compute()
    assert results["per_label_sq"] == pytest.approx([0, 0, 1, np.nan], nan_ok=True)
    assert results["pq"] == pytest.approx(1 / 3) and results["pq_things"] == 0 and results["pq_stuff"] == 1


@pytest.mark.parametrize(("void", "false"), [(3, 0), (2, 1)])
def test_a_prediction_mostly_where_nothing_is_annotated_is_not_false(void, false):
    reference = np.array([[0] * void + [1] * (4 - void) + [1] * 8]), rows(3)
    prediction = np.array([[1] * 4 + [0] * 8]), rows(7)
    metrics = PanopticMetrics(LABELS, THINGS)
    metrics.add(prediction, reference)
    assert metrics.totals[:, 2].tolist() == [0, false, 0, 0] and metrics.totals[:, 3].tolist() == [1, 0, 0, 0]


def test_crowds_are_neither_matched_nor_missed():
    reference = np.array([[1, 1, 1, 2]]), [{"id": 1, "label_id": 3, "iscrowd": True}, {"id": 2, "label_id": 3}]
    metrics = PanopticMetrics(LABELS, THINGS)
    same = metrics.count((np.array([[5, 5, 5, 6]]), rows(3, 3, first=5)), reference)
    other = metrics.count((np.array([[5, 5, 5, 6]]), rows(7, 3, first=5)), reference)
    assert same.tolist() == [[1, 1, 0, 0], [0] * 4, [0] * 4, [0] * 4]
    assert other.tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0] * 4, [0] * 4]  # not the class of the crowd


def count_slowly(prediction, reference):
    """PQ's counts from the definition, mask by mask."""
    (predicted, predicted_rows), (true, true_rows) = prediction, reference
    predicted_rows = [row for row in predicted_rows if (predicted == row["id"]).any()]
    true_rows = [row for row in true_rows if (true == row["id"]).any()]
    void = ~np.isin(true, [row["id"] for row in true_rows])
    totals = np.zeros((len(LABELS), 4))
    matched = set()
    for other in true_rows:
        if other.get("iscrowd"):
            continue
        for row in predicted_rows:
            one, two = predicted == row["id"], true == other["id"]
            iou = (one & two).sum() / ((one & ~void) | two).sum()
            if row["label_id"] == other["label_id"] and iou > 0.5:
                matched |= {("predicted", row["id"]), ("true", other["id"])}
                totals[LABELS.index(row["label_id"])] += [iou, 1, 0, 0]
        totals[LABELS.index(other["label_id"]), 3] += ("true", other["id"]) not in matched
    for row in predicted_rows:
        crowds = [other["id"] for other in true_rows if other.get("iscrowd") and other["label_id"] == row["label_id"]]
        share = (void | np.isin(true, crowds))[predicted == row["id"]].mean()
        totals[LABELS.index(row["label_id"]), 2] += ("predicted", row["id"]) not in matched and share <= 0.5
    return totals


@given(seed=seeds)
@settings(max_examples=60, deadline=None)
def test_pq_counts_are_those_of_the_definition(seed):
    prediction, reference = random_pair(np.random.default_rng(seed), crowds=True)
    counted = PanopticMetrics(LABELS, THINGS).count(prediction, reference)
    torch.testing.assert_close(counted, torch.from_numpy(count_slowly(prediction, reference)))


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_pq_of_parts_adds_up_and_the_numbers_of_segments_mean_nothing(seed):
    rng = np.random.default_rng(seed)
    pairs = [random_pair(rng) for _ in range(3)]
    whole, parts = PanopticMetrics(LABELS, THINGS), [PanopticMetrics(LABELS, THINGS) for _ in pairs]
    for part, ((predicted, infos), reference) in zip(parts, pairs, strict=True):
        whole.add((predicted, infos), reference)
        renumbered = np.where(predicted > 0, 10**6 - 7 * predicted, -1)
        part.add((renumbered, [row | {"id": 10**6 - 7 * row["id"]} for row in infos[::-1]]), reference)
    sums = sum(part.totals for part in parts)
    torch.testing.assert_close(sums, whole.totals)
    assert whole.compute(sums)["pq"] == pytest.approx(whole.compute()["pq"])


def test_what_is_perfect_and_what_is_empty():
    metrics = PanopticMetrics(LABELS, THINGS)
    _, reference = random_pair(np.random.default_rng(0))
    metrics.add(reference, reference)
    results = metrics.compute()
    assert results["pq"] == results["sq"] == results["rq"] == 1
    empty = PanopticMetrics(LABELS, THINGS)
    empty.add((np.zeros((3, 3), int), []), (np.zeros((3, 3), int), []))
    assert np.isnan(empty.compute()["pq"])


def test_pq_is_that_of_panopticapi(tmp_path):
    evaluation = pytest.importorskip("panopticapi.evaluation")
    rng = np.random.default_rng(1)
    pairs = [random_pair(rng) for _ in range(12)]
    metrics = PanopticMetrics(LABELS, THINGS)
    for prediction, reference in pairs:
        reference[1][0]["iscrowd"] = 1  # it knows one crowd of a class at most
        metrics.add(prediction, reference)
    for name, segments in (("predicted", [pair[0] for pair in pairs]), ("true", [pair[1] for pair in pairs])):
        save_coco_panoptic(enumerate(segments), tmp_path / f"{name}.json", tmp_path / name, CATEGORIES)
    theirs = evaluation.pq_compute(str(tmp_path / "true.json"), str(tmp_path / "predicted.json"))
    ours = metrics.compute()
    for ending, part in (("", "All"), ("_things", "Things"), ("_stuff", "Stuff")):
        assert {name: ours[f"{name}{ending}"] for name in ("pq", "sq", "rq")} == pytest.approx(
            {name: theirs[part][name] for name in ("pq", "sq", "rq")}
        )


# ---- AP ----


def test_ap_by_hand():
    pytest.importorskip("pycocotools")
    reference = np.array([[1, 1, 2, 2, 3, 3]] * 2), rows(3, 3, 12)
    prediction = (
        np.array([[1, 1, 2, 2, 4, 4]] * 2),
        [
            {"id": 1, "label_id": 3, "score": 0.9},
            {"id": 2, "label_id": 3, "score": 0.7},
            {"id": 4, "label_id": 3, "score": 0.8},  # false, and ranked between the two
        ],
    )
    metrics = InstanceMetrics(THINGS)
    metrics.add(prediction, reference)
    # Precision is 1 at the 51 recalls from 0 to 0.5, and 2 / 3 at the 50 above.
    assert metrics.compute() == {
        "mask_ap": pytest.approx((51 + 50 * 2 / 3) / 101),
        "mask_ap50": pytest.approx((51 + 50 * 2 / 3) / 101),
        "mask_ap75": pytest.approx((51 + 50 * 2 / 3) / 101),
        "per_label_mask_ap": pytest.approx([(51 + 50 * 2 / 3) / 101, np.nan], nan_ok=True),
    }


def test_ap_at_some_thresholds():
    """A mask whose IoU is 0.7 is found at 0.5 to 0.7, five of the ten thresholds."""
    pytest.importorskip("pycocotools")
    metrics = InstanceMetrics(THINGS)
    metrics.add((np.array([[1] * 7 + [0] * 3]), rows(7, score=0.5)), (np.array([[1] * 10]), rows(7)))
    results = metrics.compute()
    assert (results["mask_ap"], results["mask_ap50"], results["mask_ap75"]) == pytest.approx((0.5, 1, 0))


@pytest.mark.parametrize("crowds", [False, True])
def test_ap_is_that_of_pycocotools_over_all_images(crowds, tmp_path, capsys):
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    rng = np.random.default_rng(2)
    pairs = [random_pair(rng, count=9, crowds=crowds) for _ in range(12)]
    metrics = InstanceMetrics(THINGS[::-1])
    for prediction, reference in pairs:
        metrics.add(prediction, reference)
    assert not capsys.readouterr().out  # pycocotools is talkative
    true = [
        {"iscrowd": 0, **row}
        for image, (_, reference) in enumerate(pairs)
        for row in coco_instances(image, reference, THINGS)
    ]
    content = {
        "images": [{"id": image, "height": 12, "width": 14} for image in range(len(pairs))],
        "annotations": [{"id": number, **row} for number, row in enumerate(true, 1)],
        "categories": [{"id": key} for key in THINGS],
        "info": {},
    }
    (tmp_path / "true.json").write_text(json.dumps(content))
    found = [row for image, pair in enumerate(pairs) for row in coco_instances(image, pair[0], THINGS)]
    (tmp_path / "found.json").write_text(json.dumps(found))
    truth = coco.COCO(str(tmp_path / "true.json"))
    evaluation = cocoeval.COCOeval(truth, truth.loadRes(str(tmp_path / "found.json")), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    ours = metrics.compute()
    assert 0.1 < ours["mask_ap"] < 0.9
    assert [ours[name] for name in ("mask_ap", "mask_ap50", "mask_ap75")] == pytest.approx(evaluation.stats[:3])
    # Parts of the data, as they are saved.
    saved = InstanceMetrics(THINGS[::-1])
    assert saved.is_empty
    for pair in pairs:
        saved.add_record(json.loads(json.dumps(metrics.to_record(metrics.count(*pair)))))
    assert not saved.is_empty and saved.compute() == ours


def test_ap_without_anything():
    pytest.importorskip("pycocotools")
    metrics = InstanceMetrics(THINGS)
    assert all(np.isnan(value).all() for value in metrics.compute().values())
    metrics.add((np.zeros((2, 2), int), []), (np.array([[1, 1], [2, 2]]), rows(3, 12)))
    results = metrics.compute()
    assert results["mask_ap"] == 0 and results["per_label_mask_ap"] == pytest.approx([0, np.nan], nan_ok=True)


def test_ap_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(ImportError, match="pip install pycocotools"):
        InstanceMetrics(THINGS)


# ---- files ----


def read_png(path):
    colors = np.asarray(PIL.Image.open(path)).astype(np.int64)
    return colors[..., 0] + 256 * colors[..., 1] + 256**2 * colors[..., 2]


def test_panoptic_files(tmp_path):
    many = np.arange(-1, 599).reshape(20, 30)
    infos = rows(*[LABELS[number % 4] for number in range(600)], first=0)
    small = (
        torch.tensor([[7, 7, 2], [7, -1, 2]]),
        [
            {"id": 2, "label_id": 12, "score": 0.5, "isthing": False, "was_fused": False},
            {"id": 7, "label_id": 3, "score": 0.25, "iscrowd": True},
            {"id": 9, "label_id": 3},  # has no pixel
        ],
    )
    predictions = ((key, segments) for key, segments in [(139, (many, infos)), ("room_1", small)])
    save_coco_panoptic(predictions, tmp_path / "a.json", tmp_path / "a", CATEGORIES)
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["categories"] == CATEGORIES
    assert content["images"] == [
        {"id": 139, "file_name": "000000000139.png", "height": 20, "width": 30},
        {"id": "room_1", "file_name": "room_1.png", "height": 2, "width": 3},
    ]
    np.testing.assert_array_equal(read_png(tmp_path / "a" / "000000000139.png"), many + 1)
    assert [row["id"] for row in content["annotations"][0]["segments_info"]] == list(range(1, 600))
    np.testing.assert_array_equal(read_png(tmp_path / "a" / "room_1.png"), [[2, 2, 1], [2, 0, 1]])
    assert content["annotations"][1] == {
        "image_id": "room_1",
        "file_name": "room_1.png",
        "segments_info": [
            {"id": 1, "category_id": 12, "area": 2, "bbox": [2, 0, 1, 2], "iscrowd": 0},
            {"id": 2, "category_id": 3, "area": 3, "bbox": [0, 0, 2, 2], "iscrowd": 1},
        ],
    }
    with pytest.raises(ValueError, match="path_json"):
        save_coco_panoptic([("room_1", small)], tmp_path / "a.json", tmp_path / "a", CATEGORIES)
    with pytest.raises(FileExistsError, match="room_1.png"):
        save_coco_panoptic([("room_1", small)], tmp_path / "b.json", tmp_path / "a", CATEGORIES)
    save_coco_panoptic([("room_1", small)], tmp_path / "a.json", tmp_path / "a", CATEGORIES, overwrite=True)
    assert len(json.loads((tmp_path / "a.json").read_text())["images"]) == 1


def test_instances_are_rows_that_pycocotools_reads():
    mask = pytest.importorskip("pycocotools.mask")
    prediction = np.array([[4, 4, 5], [0, 4, 5]]), [{"id": 4, "label_id": 3, "score": 0.5}, *rows(12, first=5)]
    (row,) = coco_instances("a", prediction, THINGS)
    np.testing.assert_array_equal(mask.decode(row.pop("segmentation")), [[1, 1, 0], [0, 1, 0]])
    assert row == {"image_id": "a", "category_id": 3, "area": 3, "bbox": [0, 0, 2, 2], "score": 0.5}
    assert len(coco_instances("a", prediction)) == 2


@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_rows_of_coco_are_the_segments_again(seed):
    prediction, _ = random_pair(np.random.default_rng(seed))
    values, found = segments_of_coco(coco_instances(5, prediction), prediction[0].shape)
    there = [row for row in prediction[1] if (prediction[0] == row["id"]).any()]
    assert [row["id"] for row in found] == list(range(1, len(there) + 1))
    for row, own in zip(there, found, strict=True):
        assert (own["label_id"], own["score"]) == (row["label_id"], row["score"])
        assert np.array_equal(values == own["id"], prediction[0] == row["id"])


def test_what_is_not_accepted_is_named(tmp_path):
    segments = np.array([[1, 2]]), rows(3, 12)
    metrics = PanopticMetrics(LABELS, THINGS)

    def save(categories=CATEGORIES, key=1):
        save_coco_panoptic([(key, segments)], tmp_path / "a.json", tmp_path / "a", categories)

    for call, words in (
        (lambda: PanopticMetrics([], []), "label_ids"),
        (lambda: PanopticMetrics([1, 1], []), "label_ids"),
        (lambda: PanopticMetrics([1, 2], [3]), "thing_ids.*3"),
        (lambda: metrics.count(segments[0], segments), "prediction.*pair"),
        (lambda: metrics.count(segments, (np.array([[1.0, 2]]), rows(3, 12))), "reference.*integers"),
        (lambda: metrics.count(segments, (np.array([[1], [2]]), rows(3, 12))), r"\(1, 2\).*\(2, 1\)"),
        (lambda: metrics.count((segments[0], rows(3, 99)), segments), "prediction.*99"),
        (lambda: metrics.count((segments[0], [{"id": 1}]), segments), "label_id"),
        (lambda: metrics.count(segments, (segments[0], rows(3) + rows(12))), "reference.*its own|of its own"),
        (lambda: save(categories=[{"id": 3, "name": "a"}]), "isthing"),
        (lambda: save(categories=CATEGORIES[:1]), "class id 12"),
        (lambda: save(key="../outside"), "outside"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert not (tmp_path / "a.json").exists()
    pytest.importorskip("pycocotools")
    with pytest.raises(ValueError, match="score"):
        InstanceMetrics(THINGS).count(segments, segments)
