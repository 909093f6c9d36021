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
"""Bins of surface normals, their decoding, the normals of a depth map, and the metrics."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from densemllm.evaluation.metrics import NormalsMetrics
from densemllm.normals_densemllm import (
    bin_directions,
    bin_neighbours,
    decode_normals,
    depth_to_normals,
    normals_to_bins,
)


# Degrees between a direction with z >= 0 and the nearest bin, at most; found with 400,000 directions all over the
# hemisphere and 20,000 on its rim, where the largest are.
RADIUS = {64: 18.7, 256: 8.9, 1000: 4.65}

seeds = st.integers(0, 2**32 - 1)


def angles(one, other):
    """Degrees between unit vectors."""
    one, other = torch.broadcast_tensors(torch.as_tensor(one).double(), torch.as_tensor(other).double())
    return torch.atan2(torch.linalg.cross(one, other).norm(dim=-1), (one * other).sum(dim=-1)).rad2deg()


def random_normals(seed, *size):
    normals = torch.randn(*size, 3, generator=torch.Generator().manual_seed(seed))
    normals[..., 2] = normals[..., 2].abs()
    return torch.nn.functional.normalize(normals, dim=-1)


def plane_depth(normal, height, width, focal_length, distance=2.0):
    """Depth of a plane in float64, NaN where it is behind the camera; rays as in the docstring of the module."""
    x = (np.arange(width) + 0.5 - width / 2) / focal_length
    y = -(np.arange(height) + 0.5 - height / 2) / focal_length
    along = -(normal[0] * x[None] + normal[1] * y[:, None] - normal[2])
    with np.errstate(divide="ignore"):
        return np.where(along > 0.02, distance / along, np.nan)


@pytest.mark.parametrize("num_bins", [1, 2, 7, 64, 1000])
def test_directions_are_unit_vectors_that_face_the_camera(num_bins):
    directions = bin_directions(num_bins)
    assert directions.shape == (num_bins, 3) and directions.dtype == torch.float32
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(num_bins))
    assert (directions[:, 2] > 0).all() and (directions[:, 2].diff() > 0).all()


@pytest.mark.parametrize("num_bins", RADIUS)
def test_no_direction_is_further_from_its_bin_than_the_radius(num_bins):
    turn = torch.linspace(0, 2 * math.pi, 2000)
    rim = torch.stack([turn.cos(), turn.sin(), torch.zeros(2000)], dim=-1)
    normals = torch.cat([random_normals(0, 20, 2000), rim[None]])
    bins = normals_to_bins(normals, num_bins)
    assert bins.dtype == np.int64 and bins.shape == (21, 2000)
    found = angles(normals, bin_directions(num_bins)[torch.from_numpy(bins) - 1])
    assert 0.75 * RADIUS[num_bins] < found.max() <= RADIUS[num_bins]


@given(num_bins=st.integers(1, 300), factor=st.sampled_from([1e-38, 0.3, 1.0, 1e38]))
@settings(max_examples=30, deadline=None)
def test_a_bin_has_its_own_direction_of_any_length(num_bins, factor):
    directions = bin_directions(num_bins).double().numpy()[None] * factor
    np.testing.assert_array_equal(normals_to_bins(directions, num_bins), [range(1, num_bins + 1)])


def test_invalid_normals_have_no_bin():
    nan, inf = math.nan, math.inf
    invalid = [[0, 0, 0], [nan, 0, 1], [0, inf, 1], [0, 0, -1], [0.1, 0, -0.9]]
    beyond_the_rim = [[1, 0, -0.3], [0, -1, -0.99], [0.5, 0.5, -0.5]]
    bins = normals_to_bins(np.array([invalid, [[0, 0, 1]] * 2 + beyond_the_rim], dtype=np.float32), 64)
    assert (bins[0] == 0).all() and (bins[1, :2] == 64).all()
    assert (bins[1, 2:] > 0).all() and (bin_directions(64)[bins[1, 2:] - 1, 2] < 0.35).all()


@pytest.mark.parametrize("num_bins", [5, 16, 64, 256])
def test_neighbours_are_those_of_the_convex_hull(num_bins):
    spatial = pytest.importorskip("scipy.spatial")
    # With the mirrored bins below, the border of two bins of the hemisphere stays what it is.
    directions = bin_directions(num_bins).double().numpy()
    hull = spatial.ConvexHull(np.concatenate([directions, directions * [1, 1, -1]]))
    edges = {(a + 1, b + 1) for corner in hull.simplices.tolist() for a in corner for b in corner if a != b}
    expected = {edge for edge in edges if max(edge) <= num_bins}
    neighbours = bin_neighbours(num_bins)
    assert {(own, other) for own, row in enumerate(neighbours, 1) for other in row} == expected
    assert len(neighbours) == num_bins and all(list(row) == sorted(set(row)) for row in neighbours)


def test_few_bins_have_all_others_as_neighbours():
    assert bin_neighbours(1) == ((),)
    assert bin_neighbours(3) == ((2, 3), (1, 3), (1, 2))


@given(num_bins=st.integers(1, 100), seed=seeds)
@settings(max_examples=25, deadline=None)
def test_one_hot_logits_give_the_direction_of_their_bin(num_bins, seed):
    bins = torch.randint(num_bins, (1,), generator=torch.Generator().manual_seed(seed))
    logits = torch.zeros(num_bins, 3, 2)
    logits[bins] = 40.0
    normals, scores = decode_normals(logits, (11, 5))
    assert normals.shape == (11, 5, 3) and scores.shape == (11, 5)
    torch.testing.assert_close(normals, bin_directions(num_bins)[bins].expand(11, 5, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(scores, torch.ones(11, 5))


def test_decoding_by_hand():
    """The mean over a bin and its neighbours, and nothing of the bins beyond."""
    num_bins, best = 64, 40
    around = [best, *bin_neighbours(num_bins)[best - 1]]
    far = next(other for other in range(1, num_bins + 1) if other not in around)
    logits = torch.full((num_bins, 1, 1), -100.0)
    logits[best - 1], logits[around[1] - 1], logits[far - 1] = math.log(0.5), math.log(0.3), math.log(0.2)
    normals, scores = decode_normals(logits, (4, 4))
    directions = bin_directions(num_bins)
    expected = 0.5 * directions[best - 1] + 0.3 * directions[around[1] - 1]
    torch.testing.assert_close(normals, (expected / expected.norm()).expand(4, 4, 3))
    torch.testing.assert_close(scores, torch.full((4, 4), 0.8))


@given(seed=seeds, height=st.integers(1, 9), width=st.integers(1, 9), dtype=st.sampled_from(["float32", "bfloat16"]))
@settings(max_examples=25, deadline=None)
def test_decoded_normals_are_unit_vectors_whatever_the_strips(seed, height, width, dtype):
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(64, 4, 3, generator=generator)).to(getattr(torch, dtype))
    normals, scores = decode_normals(logits, (height, width))
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(height, width))
    assert normals.dtype == scores.dtype == torch.float32 and (normals[..., 2] > 0).all()
    assert (scores > 0).all() and (scores <= 1).all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("densemllm.normals_densemllm.VALUES_AT_ONCE", 64 * 6 * 3)
        strips = decode_normals(logits, (height, width))
    torch.testing.assert_close(strips, (normals, scores), atol=1e-5, rtol=0)


@given(
    seed=seeds,
    height=st.integers(2, 24),
    width=st.integers(2, 24),
    view=st.floats(0.3, 3.0),
    step=st.integers(1, 5),
    values_at_once=st.sampled_from([1, 200, 2**22]),
)
@settings(max_examples=50, deadline=None)
def test_a_plane_has_its_own_normal_everywhere(seed, height, width, view, step, values_at_once):
    focal_length = view * max(height, width)
    normal = random_normals(seed, 1)[0].double().numpy()
    depth = plane_depth(normal, height, width, focal_length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("densemllm.normals_densemllm.VALUES_AT_ONCE", values_at_once)
        normals = depth_to_normals(depth, focal_length, step)
    assert normals.shape == (height, width, 3) and normals.dtype == torch.float32
    valid = normals.any(dim=-1)
    assert valid.all() or np.isnan(depth).any()
    assert (angles(normals, torch.from_numpy(normal))[valid] < 0.05).all()


def test_which_normals_a_level_camera_sees():
    """A floor below the camera points up, a wall on the left to the right, a wall ahead to the camera."""
    floor, left, ahead = (plane_depth(np.array(normal), 8, 8, 4.0) for normal in np.eye(3)[[1, 0, 2]])
    for depth, normal, seen in (
        (floor, (0, 1, 0), np.s_[5:]),
        (left, (1, 0, 0), np.s_[:, :3]),
        (ahead, (0, 0, 1), ...),
    ):
        normals = depth_to_normals(depth, 4.0)
        torch.testing.assert_close(normals[seen], torch.tensor(normal).float().expand_as(normals[seen]))
    assert not depth_to_normals(floor, 4.0)[:4].any()  # above the horizon there is none


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_the_mirrored_map_has_mirrored_normals(seed):
    depth = np.random.default_rng(seed).uniform(0.5, 3, (7, 6))
    normals = depth_to_normals(depth, 20.0)
    for axis, sign in ((1, [-1, 1, 1]), (0, [1, -1, 1])):
        mirrored = depth_to_normals(np.flip(depth, axis), 20.0)
        torch.testing.assert_close(mirrored, normals.flip(axis) * torch.tensor(sign), atol=1e-5, rtol=0)
    torch.testing.assert_close(depth_to_normals(7 * depth, 20.0), normals, atol=1e-5, rtol=0)


@pytest.mark.parametrize("invalid", [0.0, -1.0, math.nan, math.inf])
def test_an_invalid_depth_leaves_its_pixel_and_those_beside_without_a_normal(invalid):
    depth = np.ones((6, 7), np.float32)
    depth[2, 3] = depth[5, 0] = invalid
    lacking = np.zeros((6, 7), bool)
    lacking[[2, 1, 3, 2, 2], [3, 3, 3, 2, 4]] = True
    lacking[[5, 4, 5], [0, 0, 1]] = True
    normals = depth_to_normals(depth, 10.0)
    np.testing.assert_array_equal(~normals.any(dim=-1).numpy(), lacking)
    np.testing.assert_array_equal(normals_to_bins(normals, 64) == 0, lacking)
    assert normals.isfinite().all()


def test_what_is_not_accepted_is_named():
    for call, error, words in (
        (lambda: bin_directions(0), ValueError, "num_bins"),
        (lambda: bin_directions("many"), TypeError, "num_bins"),
        (lambda: normals_to_bins(np.zeros((4, 4)), 8), ValueError, "normals.*height, width, 3"),
        (lambda: normals_to_bins(np.zeros((4, 4, 3), np.uint8), 8), ValueError, "normals.*floats"),
        (lambda: normals_to_bins([[[0.0, 0.0, 1.0]]], 8), TypeError, "normals"),
        (lambda: depth_to_normals(np.ones((1, 5)), 10.0), ValueError, "depth.*2x2"),
        (lambda: depth_to_normals(np.ones((5, 5)), 0), ValueError, "focal_length"),
        (lambda: depth_to_normals(np.ones((5, 5), np.int64), 10.0), ValueError, "depth.*floats"),
        (lambda: depth_to_normals(np.ones((5, 5)), 10.0, step=0), ValueError, "step"),
    ):
        with pytest.raises(error, match=words):
            call()


# ---- metrics ----


def turned(*degrees):
    """Normals that differ from (0, 0, 1) by these angles."""
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.sin(), torch.zeros_like(radians), radians.cos()], dim=-1)[None]


def test_metrics_by_hand():
    prediction = turned(0.01, 5, 11.26, 25, 29.5, 90, 180)
    reference = turned(*[0] * 7)
    metrics = NormalsMetrics()
    metrics.add(prediction, 3 * reference)
    results = metrics.compute()
    assert results["mean_angle"] == pytest.approx((0.01 + 5 + 11.26 + 25 + 29.5 + 90 + 180) / 7)
    assert results["median_angle"] == pytest.approx(25, abs=0.05)
    shares = [results[name] for name in ("under_11_25", "under_22_5", "under_30")]
    assert shares == pytest.approx([2 / 7, 3 / 7, 5 / 7])


def test_invalid_references_do_not_count_and_invalid_predictions_are_wrong():
    reference, prediction = turned(*[0] * 5), turned(*[0] * 5)
    reference[0, 0], reference[0, 1] = 0, math.nan
    prediction[0, 1], prediction[0, 2], prediction[0, 3] = math.inf, 0, math.nan
    metrics = NormalsMetrics()
    metrics.add(prediction, reference)
    results = metrics.compute()
    assert results["mean_angle"] == pytest.approx(120) and results["median_angle"] == pytest.approx(180, abs=0.05)
    assert all(math.isnan(value) for value in NormalsMetrics().compute().values())
    for wrong, other in ((prediction[:, 1:], reference), (prediction[0], reference[0])):
        with pytest.raises(ValueError, match="prediction"):
            metrics.count(wrong, other)


@given(seed=seeds, spread=st.floats(0.01, 3.0))
@settings(max_examples=20, deadline=None)
def test_metrics_of_parts_are_those_of_all_pixels(seed, spread):
    generator = torch.Generator().manual_seed(seed)
    reference = random_normals(seed, 6, 20)
    prediction = reference + spread * torch.randn(6, 20, 3, generator=generator)
    whole, parts = NormalsMetrics(), [NormalsMetrics(), NormalsMetrics()]
    whole.add(prediction, reference)
    for part, rows in zip(parts, (slice(2), slice(2, None)), strict=True):
        part.add(prediction[rows], reference[rows])
    assert whole.compute(parts[0].totals + parts[1].totals) == pytest.approx(whole.compute())
    exact = angles(torch.nn.functional.normalize(prediction, dim=-1), reference).flatten().sort().values
    results = whole.compute()
    assert results["mean_angle"] == pytest.approx(float(exact.mean()), abs=1e-3)
    assert exact[59] - 0.05 <= results["median_angle"] <= exact[60] + 0.05
    assert results["under_22_5"] == pytest.approx(float((exact < 22.5).double().mean()), abs=0.009)
