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
"""The metrics, and their modules for `evaluate`."""

import math
import socket

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from densemllm.evaluation.metrics import (
    ClassListMetrics,
    DepthMetrics,
    ReferringMetrics,
    SegmentationMetrics,
    boundary_region,
)
from densemllm.evaluation.predict import predict_batch
from repository import require
from tiny import ID2LABEL, assert_maps_agree, make_image, make_model, make_processor, make_samples


def test_segmentation_by_hand():
    metrics = SegmentationMetrics(4)
    prediction = torch.tensor([[0, 0, 1], [1, 1, -1]])
    reference = torch.tensor([[0, 1, 1], [1, 255, 2]])
    metrics.add(prediction, reference)
    result = metrics.compute()
    # Class 0: 1 hit of 2; class 1: 2 hits of 3; class 2: found nowhere; class 3: occurs nowhere.
    assert result["per_label_iou"][:3] == pytest.approx([1 / 2, 2 / 3, 0])
    assert np.isnan(result["per_label_iou"][3])
    assert result["mean_iou"] == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert result["pixel_accuracy"] == pytest.approx(3 / 5)


def test_images_add_up_before_the_ratio():
    metrics = SegmentationMetrics(2)
    metrics.add(torch.zeros(1, 9, dtype=torch.long), torch.zeros(1, 9, dtype=torch.long))
    metrics.add(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.long))
    assert metrics.compute()["per_label_iou"] == pytest.approx([9 / 10, 0])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 6), images=st.integers(1, 3))
def test_segmentation_is_the_brute_force(seed, classes, images):
    generator = np.random.default_rng(seed)
    metrics, predictions, references = SegmentationMetrics(classes), [], []
    for _ in range(images):
        prediction = generator.integers(-1, classes, (5, 7))
        reference = np.where(generator.random((5, 7)) < 0.2, 255, generator.integers(0, classes, (5, 7)))
        metrics.add(prediction, reference)
        predictions.append(prediction)
        references.append(reference)
    prediction, reference = np.concatenate(predictions), np.concatenate(references)
    counted = reference != 255
    prediction, reference = prediction[counted], reference[counted]
    ious = []
    for k in range(classes):
        union = ((prediction == k) | (reference == k)).sum()
        ious.append(((prediction == k) & (reference == k)).sum() / union if union else np.nan)
    result = metrics.compute()
    np.testing.assert_allclose(result["per_label_iou"], ious)
    if counted.any():
        assert result["pixel_accuracy"] == pytest.approx((prediction == reference).mean())


def test_depth_by_hand():
    metrics = DepthMetrics()
    reference = torch.tensor([[1.0, 2.0, 4.0], [0.0, float("nan"), 8.0]])
    prediction = torch.tensor([[1.2, 3.0, 4.0], [9.0, 9.0, 1.0]])
    metrics.add(prediction, reference)
    result = metrics.compute()
    assert result["delta1"] == pytest.approx(2 / 4)  # ratios 1.2, 1.5, 1 and 8
    assert result["delta2"] == pytest.approx(3 / 4)  # 1.25 ** 2 is 1.5625
    assert result["delta3"] == pytest.approx(3 / 4)
    assert result["abs_rel"] == pytest.approx((0.2 + 0.5 + 0 + 7 / 8) / 4)
    assert result["rmse"] == pytest.approx(((0.04 + 1 + 0 + 49) / 4) ** 0.5)


def test_depth_without_a_valid_pixel_is_nan():
    metrics = DepthMetrics()
    metrics.add(torch.ones(2, 2), torch.zeros(2, 2))
    assert all(np.isnan(value) for value in metrics.compute().values())


def test_sizes_and_ids_are_checked():
    with pytest.raises(ValueError, match="`prediction` is"):
        SegmentationMetrics(2).add(torch.zeros(2, 2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="`reference` has the class id 2"):
        SegmentationMetrics(2).add(torch.zeros(2, 2), torch.full((2, 2), 2))
    with pytest.raises(ValueError, match="`prediction` has the class id 5"):
        SegmentationMetrics(2).add(torch.full((2, 2), 5), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="`prediction` is"):
        DepthMetrics().add(torch.zeros(2, 2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"must be \[height, width\]"):
        ReferringMetrics().add(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="`num_labels`"):
        SegmentationMetrics(0)
    with pytest.raises(ValueError, match="`prediction` must be a list of names"):
        ClassListMetrics().add("wall", ["wall"])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"min_depth": 3.0, "max_depth": 2.0}, "`min_depth` and `max_depth`"),
        ({"min_depth": -1.0}, "`min_depth` and `max_depth`"),
        ({"max_depth": float("nan")}, "`min_depth` and `max_depth`"),
        ({"crop": "middle"}, "`crop` must be one of"),
        ({"average": "classes"}, "`average` must be"),
        ({"align": "mean"}, "`align` must be"),
    ],
)
def test_depth_options_are_checked(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DepthMetrics(**kwargs)


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 6))
def test_confusion_is_that_of_scikit_learn(seed, classes):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(seed)
    metrics, predictions, references = SegmentationMetrics(classes, ignore_index=99), [], []
    for _ in range(2):
        height, width = generator.integers(1, 30, 2)
        predictions.append(generator.integers(0, classes, (height, width)))
        reference = generator.integers(0, classes, (height, width))
        references.append(np.where(generator.random((height, width)) < 0.2, 99, reference))
        metrics.add(predictions[-1], references[-1])
    prediction, reference = (np.concatenate([part.ravel() for part in parts]) for parts in (predictions, references))
    if not (reference != 99).any():
        return
    labels = list(range(classes))
    # With `labels`, scikit-learn leaves out pairs of which one is none of them.
    expected = sklearn_metrics.confusion_matrix(reference, prediction, labels=labels)
    np.testing.assert_array_equal(metrics.confusion[:, :-1].numpy(), expected)
    assert not metrics.confusion[:, -1].any()
    result, counted = metrics.compute(), reference != 99
    assert result["pixel_accuracy"] == pytest.approx(
        sklearn_metrics.accuracy_score(reference[counted], prediction[counted])
    )
    there = np.union1d(reference[counted], prediction[counted])
    jaccard = sklearn_metrics.jaccard_score(reference[counted], prediction[counted], labels=there, average=None)
    np.testing.assert_allclose(np.array(result["per_label_iou"])[there], jaccard)


# ---- boundary IoU ----


def square(height, width, top, left, edge):
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top : top + edge, left : left + edge] = True
    return mask


def test_boundary_iou_by_hand():
    reference, prediction = square(12, 12, 2, 2, 4), square(12, 12, 2, 3, 4)
    # Rings of one pixel, 12 each: they share three pixels of the upper and three of the lower side.
    metrics = ReferringMetrics()
    metrics.add(prediction, reference)
    assert metrics.compute() == pytest.approx({"ciou": 12 / 20, "giou": 12 / 20, "boundary_iou": 6 / 18})
    # Of a segmentation, the outline of the other class counts too: the hole's edge and the picture's.
    metrics = SegmentationMetrics(2)
    metrics.add(prediction, reference)
    result = metrics.compute()
    assert result["per_label_boundary_iou"][1] == pytest.approx(6 / 18)
    # The picture's frame is 44 pixels, what lies around a square of 4 is 20.
    around = [boundary_region(mask) & ~mask for mask in (prediction, reference)]
    assert int(around[0].sum()) == int(around[1].sum()) == 44 + 20
    shared, either = int((around[0] & around[1]).sum()), int((around[0] | around[1]).sum())
    assert result["per_label_boundary_iou"][0] == pytest.approx(shared / either)


def test_the_picture_s_edge_is_a_boundary():
    assert boundary_region(torch.ones(5, 6)).sum() == 5 * 6 - 3 * 4


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 120), width=st.integers(1, 120))
def test_boundary_is_the_region_minus_its_erosion(seed, height, width):
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 3, (height // 9 + 1, width // 9 + 1)).repeat(9, 0).repeat(9, 1)
    labels = torch.as_tensor(coarse[:height, :width])
    d = max(1, round(0.02 * math.hypot(height, width)))
    for key in range(3):
        mask = (labels == key).float()
        background = torch.nn.functional.pad(1 - mask, (d, d, d, d), value=1.0)
        eroded = torch.nn.functional.max_pool2d(background[None, None], 2 * d + 1, stride=1)[0, 0] == 0
        assert torch.equal(boundary_region(labels) & (mask > 0), (mask > 0) & ~eroded)


def test_ignored_pixels_are_no_boundary_to_get_wrong():
    reference = torch.zeros(12, 12, dtype=torch.long)
    reference[:, 6:] = 255
    metrics = SegmentationMetrics(2)
    metrics.add(torch.where(reference == 255, 1, 0), reference)  # another class, but in the ignored part only
    assert metrics.compute()["per_label_boundary_iou"][0] == 1
    assert math.isnan(metrics.compute()["per_label_boundary_iou"][1])


def test_empty_masks_agree():
    metrics, empty = ReferringMetrics(), torch.zeros(4, 4)
    assert all(math.isnan(value) for value in metrics.compute().values())
    metrics.add(empty, empty)
    metrics.add(torch.ones(4, 4), empty)
    assert metrics.compute() == {"ciou": 0.0, "giou": 0.5, "boundary_iou": 0.5}


# ---- depth ----


def test_depth_cap_by_hand():
    reference = torch.tensor([[0.5, 2.0, 4.0, 10.0]])
    prediction = torch.tensor([[9.0, 20.0, 4.0, 1.0]])
    metrics = DepthMetrics(min_depth=1.0, max_depth=10.0)
    metrics.add(prediction, reference)
    result = metrics.compute()  # the pixels of 2 m, where 20 is taken for 10, and 4 m
    assert result["abs_rel"] == pytest.approx((8 / 2 + 0) / 2)
    assert result["rmse"] == pytest.approx((64 / 2) ** 0.5)
    assert result["delta1"] == 0.5


@pytest.mark.parametrize(
    ("crop", "size", "place"),
    [
        ("nyu", (480, 640), (45, 471, 41, 601)),
        ("garg", (375, 1242), (153, 371, 44, 1197)),
        ("eigen", (375, 1242), (124, 342, 44, 1197)),
    ],
)
def test_crops_are_the_customary_pixels(crop, size, place):
    top, bottom, left, right = place
    reference = torch.zeros(size)
    reference[top:bottom, left:right] = 2.0
    metrics = DepthMetrics(crop=crop, average="pixels")
    metrics.add(torch.full(size, 2.0), torch.full(size, 2.0))
    assert metrics.totals[2] == (bottom - top) * (right - left)
    inside = DepthMetrics(crop=crop, average="pixels")
    inside.add(torch.full(size, 2.0), reference)
    assert torch.equal(inside.totals, metrics.totals)


def test_silog_by_hand():
    metrics = DepthMetrics()
    reference = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    metrics.add(torch.tensor([[math.e, 1.0], [1.0, 5.0]]), reference)
    # Logarithmic errors 1, 0, 0: mean square 1/3, square of the mean 1/9.
    assert metrics.compute()["silog"] == pytest.approx(100 * (1 / 3 - 1 / 9) ** 0.5)
    metrics.add(torch.full((2, 2), 7.0), reference)  # a factor alone is no error
    assert metrics.compute()["silog"] == pytest.approx(50 * (1 / 3 - 1 / 9) ** 0.5)


def test_aligned_medians_by_hand():
    metrics = DepthMetrics(align="median", max_depth=10.0)
    # The pixel without a reference has no part in the medians, 20 and 2 metres; 20 is above the limit only unscaled.
    metrics.add(torch.tensor([[10.0, 20.0, 60.0, 0.1]]), torch.tensor([[1.0, 2.0, 4.0, 0.0]]))
    result = metrics.compute()
    assert result["abs_rel"] == pytest.approx((0 + 0 + 0.5) / 3)
    assert result["delta1"] == pytest.approx(2 / 3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.floats(0.01, 100))
def test_a_factor_is_nothing_where_medians_are_aligned(seed, factor):
    generator = torch.Generator().manual_seed(seed)
    prediction, reference = (0.5 + torch.rand(2, 5, 7, generator=generator, dtype=torch.float64)).unbind()
    as_it_is, scaled = DepthMetrics(align="median"), DepthMetrics(align="median")
    as_it_is.add(prediction, reference)
    scaled.add(factor * prediction, reference)
    torch.testing.assert_close(scaled.totals, as_it_is.totals)


def test_images_can_weigh_the_same():
    images = [(torch.tensor([[2.0, 2.0, 2.0]]), torch.tensor([[1.0, 1.0, 1.0]])), (torch.ones(1, 1), torch.ones(1, 1))]
    pixels, each = DepthMetrics(average="pixels"), DepthMetrics()
    for metrics in (pixels, each):
        for pair in [*images, (torch.ones(1, 1), torch.zeros(1, 1))]:  # the last has no valid pixel
            metrics.add(*pair)
    assert pixels.compute()["abs_rel"] == 0.75 and each.compute()["abs_rel"] == 0.5
    assert pixels.compute()["rmse"] == pytest.approx(0.75**0.5) and each.compute()["rmse"] == 0.5


# ---- class lists ----


def test_class_list_by_hand():
    metrics = ClassListMetrics()
    metrics.add(["Cafe\u0301"], ["café"])  # two spellings of one name
    assert metrics.compute()["f1"] == 1.0
    metrics = ClassListMetrics()
    metrics.add(["Wall", "red  ball", "wall"], ["wall", "floor", "red ball"])
    metrics.add(["sky"], ["floor"])
    assert metrics.compute() == pytest.approx({"precision": 2 / 3, "recall": 2 / 4, "f1": 4 / 7})
    nothing = ClassListMetrics()
    nothing.add([], ["wall"])
    assert math.isnan(nothing.compute()["precision"])
    assert nothing.compute()["recall"] == nothing.compute()["f1"] == 0


# ---- all of them ----


def make_pairs(task, generator, count):
    for _ in range(count):
        size = generator.integers(1, 20, 2)
        if task == "segmentation":
            yield generator.integers(-1, 3, size), generator.choice([0, 1, 2, 255], size)
        elif task == "depth":
            yield generator.uniform(0.1, 9, size), generator.choice([0.0, 0.4, 3.0, 7.5], size)
        elif task == "referring":
            yield generator.random(size) < 0.5, generator.random(size) < 0.5
        else:
            yield [list(generator.choice(["a", "b", "c"], n)) for n in generator.integers(0, 4, 2)]


MAKE = {
    "segmentation": lambda: SegmentationMetrics(3),
    "depth": lambda: DepthMetrics(max_depth=8.0),
    "referring": ReferringMetrics,
    "class_list": ClassListMetrics,
}


def flat(result):
    """Lists as entries of their own."""
    rows = {name: value if isinstance(value, list) else [value] for name, value in result.items()}
    return {(name, place): value for name, values in rows.items() for place, value in enumerate(values)}


@pytest.mark.parametrize("task", MAKE)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 6), max_size=3))
def test_batches_do_not_matter(task, seed, cuts):
    pairs = list(make_pairs(task, np.random.default_rng(seed), 6))
    whole = MAKE[task]()
    for pair in pairs:
        whole.add(*pair)
    edges = [0, *sorted(cuts), 6]
    together = MAKE[task]()
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        part = MAKE[task]()
        for pair in pairs[start:stop]:
            part.add(*pair)
        together.totals += part.totals
    assert flat(together.compute()) == pytest.approx(flat(whole.compute()), nan_ok=True, rel=1e-12)
    assert flat(MAKE[task]().compute(whole.totals)) == pytest.approx(flat(whole.compute()), nan_ok=True)


# ---- modules for `evaluate` ----


@pytest.fixture
def load_module(tmp_path, monkeypatch):
    """`evaluate.load` of a folder, with no network."""

    def refuse(*args, **kwargs):
        raise OSError("a module of this repository needs no network")

    evaluate = pytest.importorskip("evaluate", reason="pip install densemllm[metrics]")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return lambda name: evaluate.load(str(require("metrics") / name), cache_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "task", "options"),
    [
        ("dense_segmentation", "segmentation", {"num_labels": 3, "ignore_index": 255}),
        ("dense_depth", "depth", {"max_depth": 8.0}),
        ("referring_segmentation", "referring", {}),
        ("class_list", "class_list", {}),
    ],
)
def test_modules_compute_the_same(load_module, name, task, options):
    pairs = list(make_pairs(task, np.random.default_rng(0), 5))
    if task == "depth":  # as it comes from a batch
        pairs = [tuple(np.asarray(values, dtype=np.float32) for values in pair) for pair in pairs]
        pairs[0][1][0, 0] = np.nan
    metrics, module = MAKE[task](), load_module(name)
    for pair in pairs:
        metrics.add(*pair)
    expected = flat(metrics.compute())
    for batch in (pairs[:2], pairs[2:]):
        module.add_batch(predictions=[pair[0] for pair in batch], references=[pair[1] for pair in batch])
    assert flat(module.compute(**options)) == pytest.approx(expected, nan_ok=True)
    once = module.compute(predictions=[pair[0] for pair in pairs], references=[pair[1] for pair in pairs], **options)
    assert flat(once) == pytest.approx(expected, nan_ok=True)


# ---- predictions ----


def test_predict_batch_asks_for_the_classes_and_minds_the_camera():
    processor = make_processor()
    model = make_model(processor)
    samples = make_samples(3)[1:] + [{"image": make_image(16, 24), "depth": np.full((16, 24), 3.0)}]
    samples[0]["focal_length"] = 50.0
    results = predict_batch(
        model, processor, samples, ("segmentation", "depth", "class_list"), ID2LABEL, depth_range="road"
    )
    found = {(position, task): (prediction, reference) for position, task, prediction, reference in results}
    assert len(results) == len(found) == 7 and (2, "segmentation") not in found
    for position in (0, 1):
        present = np.unique(np.array(samples[position]["segmentation"]))
        given, true = found[position, "class_list"]
        assert true == [ID2LABEL[key] for key in present if key != 255]
        own = model.predict_dense(samples[position]["image"], processor=processor)
        assert given == list(own.labels.values())
    for position, focal_length in ((0, 50.0), (1, None)):
        own = model.predict_dense(
            samples[position]["image"], task="depth", depth_range="road", focal_length=focal_length,
            processor=processor,
        )  # fmt: skip
        assert_maps_agree(found[position, "depth"][0], own.predicted_depth)


@pytest.mark.parametrize("options", [{}, {"scale": 1.5}], ids=["as it is", "scaled"])
def test_an_image_is_read_once_for_all_that_looks_at_the_whole_of_it(monkeypatch, options):
    processor = make_processor()
    model = make_model(processor)
    samples = make_samples(3)
    samples[0]["focal_length"] = 50.0
    tasks = ("segmentation", "depth", "class_list", "named_labels", "answered_labels")
    alone = [
        row for task in tasks for row in predict_batch(model, processor, samples, (task,), ID2LABEL, **options)
    ]  # fmt: skip
    read, tower = [], model.model.get_image_features

    def count(pixel_values, image_grid_thw, **kwargs):
        read.extend(image_grid_thw.tolist())
        return tower(pixel_values, image_grid_thw, **kwargs)

    monkeypatch.setattr(model.model, "get_image_features", count)
    together = predict_batch(model, processor, samples, tasks, ID2LABEL, **options)
    assert len(read) == len(samples)
    found = {row[:2]: row[2] for row in together}
    assert len(found) == len(together) == len(alone)
    for position, task, prediction, _ in alone:
        if isinstance(prediction, torch.Tensor):
            assert_maps_agree(found[position, task], prediction)
        else:
            assert found[position, task] == prediction
