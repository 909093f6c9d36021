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
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

import densemllm.refinement_densemllm as refinement
from densemllm.refinement_densemllm import refine_crf, refine_crf_argmax
from tiny import peak_bytes


WHOLE = {"spatial_radius": 100, "bilateral_radius": 100, "bilateral_dilation": 1}


def random_case(num_labels, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(num_labels, height, width, generator=generator) + 0.05
    image = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy()
    return probabilities, image


def brute_force(
    probabilities,
    image,
    iterations,
    spatial_weight=3.0,
    spatial_sigma=3.0,
    spatial_radius=None,
    bilateral_weight=10.0,
    bilateral_sigma=80.0,
    color_sigma=13.0,
    bilateral_radius=None,
    bilateral_dilation=1,
):
    """The paper's algorithm 1 over all pairs of pixels, [N, N] matrices and label costs written out, in float64."""
    num_labels, height, width = probabilities.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    position = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    offset = position[:, None] - position[None]
    squared = offset.square().sum(-1).double()
    color = torch.tensor(image).reshape(-1, 3).double()
    color_squared = (color[:, None] - color[None]).square().sum(-1)
    kernels = [
        (spatial_weight, torch.exp(-squared / (2 * spatial_sigma**2)), spatial_radius, 1),
        (
            bilateral_weight,
            torch.exp(-squared / (2 * bilateral_sigma**2) - color_squared / (2 * color_sigma**2)),
            bilateral_radius,
            bilateral_dilation,
        ),
    ]
    prior = probabilities.double().reshape(num_labels, -1)
    unary = -(prior / prior.sum(0)).log()
    refined = (-unary).softmax(0)
    compatibility = 1 - torch.eye(num_labels, dtype=torch.float64)
    for _ in range(iterations):
        energy = unary.clone()
        for weight, kernel, radius, dilation in kernels:
            inside = (offset % dilation == 0).all(-1)
            if radius is not None:
                inside &= offset.abs().amax(-1) <= radius * dilation
            kernel = torch.where(inside, kernel, 0.0)
            norm = kernel.sum(1)
            kernel = kernel / (norm[:, None] * norm[None]).sqrt()
            kernel.fill_diagonal_(0)
            energy += compatibility @ (weight * refined @ kernel)
        refined = (-energy).softmax(0)
    return refined.reshape(num_labels, height, width)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(1, 3),
    st.sampled_from([(3.0, 0.0), (0.0, 10.0), (3.0, 10.0), (0.4, 1.3)]),
    st.sampled_from([13.0, 60.0, 300.0]),
    st.integers(0, 2**31),
)
def test_equals_dense_crf_where_windows_cover_the_grid(num_labels, height, width, iterations, weights, color, seed):
    probabilities, image = random_case(num_labels, height, width, seed)
    options = {"spatial_weight": weights[0], "bilateral_weight": weights[1], "color_sigma": color}
    refined = refine_crf(probabilities, image, iterations, **options, **WHOLE)
    expected = brute_force(probabilities, image, iterations, **options)
    assert refined.dtype == torch.float32
    torch.testing.assert_close(refined.double(), expected, atol=1e-5, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 2**31),
)
def test_equals_pairs_within_windows(height, width, spatial_radius, bilateral_radius, dilation, seed):
    probabilities, image = random_case(3, height, width, seed)
    options = {
        "spatial_sigma": 1.5,
        "bilateral_sigma": 4.0,
        "color_sigma": 80.0,
        "spatial_radius": spatial_radius,
        "bilateral_radius": bilateral_radius,
        "bilateral_dilation": dilation,
    }
    refined = refine_crf(probabilities, image, 2, **options)
    expected = brute_force(probabilities, image, 2, **options)
    torch.testing.assert_close(refined.double(), expected, atol=1e-5, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(1, 34), st.integers(1, 34)),
    spatial_radius=st.integers(1, 9),
    radius=st.integers(1, 9),
    dilation=st.integers(1, 5),
    color=st.sampled_from([2.0, 13.0, 300.0]),
    tile=st.sampled_from([1, 3, 16]),
    pairs=st.sampled_from([20, 2**12]),
    strip=st.sampled_from([4, 128]),
    kept=st.booleans(),
    at_once=st.sampled_from([0, 700, 2**19]),
    seed=st.integers(0, 2**31),
)
def test_equals_pairs_however_the_image_is_cut(
    size, spatial_radius, radius, dilation, color, tile, pairs, strip, kept, at_once, seed
):
    probabilities, image = random_case(3, *size, seed)
    image = image // 4
    options = {
        "color_sigma": color, "spatial_radius": spatial_radius, "bilateral_radius": radius,
        "bilateral_dilation": dilation,
    }  # fmt: skip
    sizes = {
        "MAX_TILE": tile, "MAX_PAIRS": pairs, "STRIP": strip, "WINDOW_ELEMENTS": 2**26 if kept else 0,
        "TILE_ELEMENTS": at_once, "CACHED_ELEMENTS": at_once, "GATHERED_ELEMENTS": at_once,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in sizes.items():
            patch.setattr(refinement, name, value)
        refined = refine_crf(probabilities, image, 2, **options)
    expected = brute_force(probabilities, image, 2, **options)
    torch.testing.assert_close(refined.double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "size, radius, sigma, dilation",
    [((5, 6), 8, 80.0, 1), ((30, 41), 8, 80.0, 5), ((30, 41), 8, 20.0, 3), ((1, 1), 1, 80.0, 1)],
)
def test_dilation_left_out_reaches_sigma_or_the_far_end(size, radius, sigma, dilation):
    probabilities, image = random_case(2, *size, 0)
    options = {"bilateral_radius": radius, "bilateral_sigma": sigma}
    torch.testing.assert_close(
        refine_crf(probabilities, image, **options),
        refine_crf(probabilities, image, bilateral_dilation=dilation, **options),
        atol=0,
        rtol=0,
    )


@settings(max_examples=40, deadline=None)
@given(
    num_labels=st.integers(1, 9),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    sharpness=st.sampled_from([0.3, 3.0, 12.0]),
    at_once=st.sampled_from([1, 2, 100]),
    kept=st.sampled_from([0, 2, 100]),
    iterations=st.integers(1, 4),
    weights=st.sampled_from([(3.0, 10.0), (0.0, 10.0), (3.0, 0.0), (0.0, 0.0)]),
    seed=st.integers(0, 2**31),
)
def test_argmax_equals_that_of_whole_maps(num_labels, grid, size, sharpness, at_once, kept, iterations, weights, seed):
    """Whatever is left out, kept or computed again."""
    generator = torch.Generator().manual_seed(seed)
    chances = (sharpness * torch.randn(num_labels, *grid, generator=generator)).softmax(dim=0)
    image = random_case(1, *size, seed)[1] // 4 * 2
    options = {
        "iterations": iterations, "spatial_weight": weights[0], "bilateral_weight": weights[1],
        "bilateral_radius": 3, "spatial_radius": 3,
    }  # fmt: skip
    whole = F.interpolate(chances[None], size=size, mode="bilinear", align_corners=False)[0]
    expected = refine_crf(whole, image, **options)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("LABELS_AT_ONCE", at_once), ("KEPT_LABELS", kept)):
            patch.setattr(refinement, name, value)
        for name in ("ELEMENTS_AT_ONCE", "KEPT_ELEMENTS"):
            patch.setattr(refinement, name, 0)
        best, probability = refine_crf_argmax(chances, image, **options)
    assert best.dtype == torch.int64 and probability.dtype == torch.float32
    torch.testing.assert_close(probability, expected.amax(dim=0), atol=2e-3, rtol=0)
    # The chosen label is the best one, or within the tolerance of it.
    chosen = expected.gather(0, best[None])[0]
    torch.testing.assert_close(chosen, expected.amax(dim=0), atol=2e-3, rtol=0)


def test_memory_does_not_grow_with_labels(monkeypatch):
    monkeypatch.setattr(refinement, "ELEMENTS_AT_ONCE", 0)  # as in a large image
    monkeypatch.setattr(refinement, "KEPT_ELEMENTS", 0)
    monkeypatch.setattr(refinement, "WINDOW_ELEMENTS", 0)
    monkeypatch.setattr(refinement, "TILE_ELEMENTS", 2**8)
    monkeypatch.setattr(refinement, "STRIP", 8)
    image = random_case(1, 48, 32, 0)[1]
    options = {"iterations": 1, "bilateral_radius": 1, "spatial_radius": 1}
    peaks = []
    for num_labels in (40, 160):
        chances = torch.rand(num_labels, 3, 2, generator=torch.Generator().manual_seed(0)) + 0.5
        peaks.append(peak_bytes(lambda chances=chances: refine_crf_argmax(chances, image, **options)) / (48 * 32 * 4))
    assert peaks[1] < peaks[0] + 3 and max(peaks) < 80, peaks


def test_labels_that_can_not_win_send_no_messages(monkeypatch):
    shapes = []
    windows_sum = refinement._Windows.sum
    monkeypatch.setattr(
        refinement._Windows, "sum", lambda self, values: shapes.append(len(values)) or windows_sum(self, values)
    )
    logits = torch.randn(150, 3, 4, generator=torch.Generator().manual_seed(0))
    logits[[7, 90, 149]] += 12
    chances = logits.softmax(dim=0)
    image = random_case(1, 24, 32, 0)[1]
    best, _ = refine_crf_argmax(chances, image)
    assert max(shapes) == 3 and set(best.unique().tolist()) <= {7, 90, 149}


def test_sums_to_one_and_repeats_itself():
    probabilities, image = random_case(5, 40, 50, 3)
    refined = refine_crf(probabilities, image)
    torch.testing.assert_close(refined.sum(0), torch.ones(40, 50), atol=1e-5, rtol=0)
    assert (refined >= 0).all()
    assert torch.equal(refined, refine_crf(probabilities, image))


def test_inputs_stay_and_may_be_of_any_kind():
    probabilities, image = random_case(3, 12, 10, 4)
    before = probabilities.clone(), image.copy()
    refined = refine_crf(probabilities, image)
    assert torch.equal(probabilities, before[0]) and np.array_equal(image, before[1])
    assert torch.equal(refine_crf(probabilities, PIL.Image.fromarray(image)), refined)
    torch.testing.assert_close(refine_crf(7 * probabilities.double(), image), refined, atol=1e-5, rtol=1e-4)
    assert refine_crf(probabilities.bfloat16(), image).dtype == torch.float32
    wanted = probabilities.clone().requires_grad_()
    assert not refine_crf(wanted, image).requires_grad
    turned = refine_crf(probabilities.transpose(1, 2), image.transpose(1, 0, 2), bilateral_dilation=2)
    straight = refine_crf(probabilities, image, bilateral_dilation=2)
    torch.testing.assert_close(turned.transpose(1, 2), straight, atol=1e-5, rtol=1e-4)


def test_no_pairwise_weight_returns_the_normalised_input():
    probabilities, image = random_case(4, 9, 8, 5)
    refined = refine_crf(probabilities, image, 7, spatial_weight=0, bilateral_weight=0)
    torch.testing.assert_close(refined, probabilities / probabilities.sum(0), atol=1e-6, rtol=1e-5)


def test_zero_chances_stay_finite():
    probabilities, image = torch.zeros(3, 6, 6), np.zeros((6, 6, 3), np.uint8)
    torch.testing.assert_close(refine_crf(probabilities, image), torch.full((3, 6, 6), 1 / 3))
    probabilities[0] = 1
    assert (refine_crf(probabilities, image)[0] > 0.999).all()


def test_a_pixel_sends_itself_no_message():
    probabilities = torch.tensor([0.7, 0.3])[:, None, None]
    refined = refine_crf(probabilities, np.zeros((1, 1, 3), np.uint8), 5)
    torch.testing.assert_close(refined, probabilities)


@pytest.mark.parametrize("dilation", [None, 1, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noisy_map_moves_to_the_edge_of_the_picture(seed, dilation):
    rng = np.random.default_rng(seed)
    height, width = 60, 80
    rows, columns = np.mgrid[:height, :width]
    truth = columns > 40 + 12 * np.sin(rows / 9)
    colors = np.where(truth[..., None], [150, 110, 60], [60, 120, 150])
    image = np.clip(colors + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)
    # A blurred, shifted edge and noise, as of a map that was decoded on a coarse grid.
    slope = (columns - 44 - 12 * np.sin((rows // 16 * 16 + 8) / 9)) / 8
    chance = 1 / (1 + np.exp(-slope - rng.normal(0, 1.5, (height, width))))
    probabilities = torch.from_numpy(np.stack([1 - chance, chance]))
    refined = refine_crf(probabilities, image, bilateral_dilation=dilation)
    wrong_before = int((probabilities.argmax(0).numpy() != truth).sum())
    wrong_after = int((refined.argmax(0).numpy() != truth).sum())
    assert wrong_before > 300
    assert wrong_after < 0.25 * wrong_before


@pytest.mark.parametrize(
    "name, value",
    [
        ("probabilities", torch.ones(2, 4, 5, dtype=torch.long)),
        ("probabilities", np.ones((2, 4, 5), np.float32)),
        ("probabilities", torch.ones(4, 5)),
        ("probabilities", torch.ones(0, 4, 5)),
        ("probabilities", torch.full((2, 4, 5), float("nan"))),
        ("probabilities", torch.full((2, 4, 5), float("inf"))),
        ("probabilities", torch.full((2, 4, 5), -0.1)),
        ("image", np.zeros((5, 4, 3), np.uint8)),
        ("image", np.zeros((4, 5), np.uint8)),
        ("image", np.zeros((4, 5, 3), np.float32)),
        ("image", PIL.Image.new("RGB", (4, 5))),
        ("iterations", 0),
        ("iterations", 1.5),
        ("spatial_weight", -1.0),
        ("bilateral_weight", float("nan")),
        ("spatial_sigma", 0.0),
        ("bilateral_sigma", -80.0),
        ("bilateral_sigma", float("inf")),
        ("color_sigma", float("nan")),
        ("spatial_radius", 0),
        ("bilateral_radius", 0),
        ("bilateral_radius", 2.5),
        ("bilateral_dilation", 0),
    ],
)
def test_errors_name_the_argument(name, value):
    arguments = {"probabilities": torch.ones(2, 4, 5), "image": np.zeros((4, 5, 3), np.uint8), name: value}
    with pytest.raises(ValueError, match=f"^`{name}` must"):
        refine_crf(**arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_on_cuda():
    probabilities, image = random_case(4, 30, 40, 6)
    refined = refine_crf(probabilities.cuda(), image)
    assert refined.is_cuda
    assert torch.equal(refined, refine_crf(probabilities.cuda(), image))
    torch.testing.assert_close(refined.cpu(), refine_crf(probabilities, image), atol=1e-5, rtol=1e-4)
