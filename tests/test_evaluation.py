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
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from densemllm.evaluation_densemllm import DepthMetrics, SegmentationMetrics


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
