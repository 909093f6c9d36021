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
"""Guided upsampling against a reference that is written out, and in every task that takes it."""

import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

import densemllm.guided_densemllm as guided
from densemllm import add_dense_tokens
from densemllm.decoding_densemllm import decode_bin_places, decode_segmentation, resize_map
from densemllm.evaluation.measured import MEASURED, Settings
from densemllm.evaluation.report import CARD_OPTIONS, update_card
from densemllm.guided_densemllm import guided_resize, guided_segmentation
from densemllm.tasks_densemllm import TASKS
from tiny import answer_with, make_image, make_model, make_processor, peak_bytes


LABELS = ["cat", "red ball", "table", "floor"]


def random_case(num_maps, grid, size, seed):
    """Maps, and a blurred image, in which neighbours are alike."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(num_maps, *grid, generator=generator)
    image = PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return maps, image.resize((size[1], size[0]), PIL.Image.Resampling.BICUBIC)


def mean_colors(image, size):
    means = np.asarray(image.resize((size[1], size[0]), PIL.Image.Resampling.BOX)).astype(np.float64)
    return torch.from_numpy(means - 0.75 * means.mean(axis=2, keepdims=True))


def average_alike(scores, image):
    """Pair by pair, in float64."""
    num_labels, height, width = scores.shape
    colors, values = mean_colors(image, (height, width)), scores.double()
    variance = (values - values.mean(dim=(1, 2), keepdim=True)).square().mean().clamp(min=1e-30)
    averaged = torch.zeros_like(values)
    for row in range(height):
        for column in range(width):
            total = 0
            for y in range(max(0, row - guided.TOKEN_RADIUS), min(height, row + guided.TOKEN_RADIUS + 1)):
                for x in range(max(0, column - guided.TOKEN_RADIUS), min(width, column + guided.TOKEN_RADIUS + 1)):
                    distance = ((y - row) ** 2 + (x - column) ** 2) / 4.0**2
                    distance += (colors[y, x] - colors[row, column]).square().sum() / 30.0**2
                    change = values[:, y, x] - values[:, row, column]
                    distance += change.square().mean() / variance / 0.35**2
                    weight = (-distance / 2).exp()
                    averaged[:, row, column] += weight * values[:, y, x]
                    total += weight
            averaged[:, row, column] /= total
    return averaged


def fit_by_window(maps, colors, radius, smoothness):
    """Ridge regression in each window by itself, in float64."""
    num_maps, height, width = maps.shape
    fitted = torch.zeros(4, num_maps, height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            window = (
                slice(max(0, row - radius), row + radius + 1), slice(max(0, column - radius), column + radius + 1)
            )  # fmt: skip
            x, y = colors[window].reshape(-1, 3), maps[:, window[0], window[1]].reshape(num_maps, -1).T
            away = x - x.mean(dim=0)
            gram = away.T @ away / len(x) + smoothness * torch.eye(3, dtype=torch.float64)
            slopes = torch.linalg.solve(gram, away.T @ (y - y.mean(dim=0)) / len(x))
            fitted[1:, :, row, column] = slopes
            fitted[0, :, row, column] = y.mean(dim=0) - x.mean(dim=0) @ slopes
    return fitted


def read_at(fitted, colors):
    finer = F.interpolate(fitted.flatten(0, 1)[None], size=colors.shape[:2], mode="bilinear", align_corners=False)[0]
    finer = finer.unflatten(0, (4, -1))
    return finer[0] + torch.einsum("cnhw,hwc->nhw", finer[1:], colors)


def brute_force(maps, image, between, smoothness):
    grid, size = maps.shape[1:], (image.height, image.width)
    blocks = [cells * max(1, min(6, edge // cells)) for edge, cells in zip(size, grid, strict=True)]
    of_cells = fit_by_window(maps.double(), mean_colors(image, grid), 1, smoothness)
    of_blocks = mean_colors(image, blocks)
    values = between(read_at(of_cells, of_blocks))
    return read_at(fit_by_window(values, of_blocks, 2, smoothness), mean_colors(image, size))


GRIDS = st.tuples(st.integers(1, 4), st.integers(1, 4))
SIZES = st.tuples(st.integers(1, 23), st.integers(1, 23))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), GRIDS, SIZES, st.sampled_from([5.0, 400.0]), st.integers(0, 2**31))
def test_strips_equal_a_reference_written_out(num_maps, grid, size, smoothness, seed):
    maps, image = random_case(num_maps, grid, size, seed)

    def between(values):
        return (values / 2).softmax(dim=0)

    found = torch.cat([strip for _, strip in guided.guided_strips(maps, image, between, smoothness)], dim=1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), brute_force(maps, image, between, smoothness), atol=1e-5, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), GRIDS, SIZES, st.booleans(), st.integers(0, 2**31))
def test_segmentation_is_the_best_of_the_reference(num_labels, grid, size, background, seed):
    logits, image = random_case(num_labels, grid, size, seed)
    logits = logits * 3 if background else logits
    found, scores = guided_segmentation(logits, image, background)
    assert found.dtype == torch.int64 and scores.dtype == torch.float32 and found.shape == scores.shape == size
    floor = 0.5 if background else 1 / num_labels
    chances = (logits / 4).sigmoid() if background else (logits / 0.2).softmax(dim=0)
    kept = [place for place, chance in enumerate(chances) if chance.max() >= floor - 1e-6]
    if not kept:
        assert (found == -1).all() and (scores == floor).all()
        return
    smoothness = guided.CLASS_SMOOTHNESS
    between = (lambda x: (x / 4).sigmoid()) if background else (lambda x: (x / 0.2).softmax(dim=0))
    values = brute_force(average_alike(logits, image)[kept], image, between, smoothness)
    best = values.amax(dim=0).clamp(floor, 1).float()
    torch.testing.assert_close(scores, best, atol=1e-4, rtol=0)
    whole = torch.full((num_labels + 1, *size), -1.0)
    whole[kept], whole[-1] = values.float(), floor if background else -2.0
    chosen = whole.gather(0, (found % (num_labels + 1))[None])[0]
    torch.testing.assert_close(chosen, whole.amax(dim=0), atol=1e-4, rtol=0)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), GRIDS, st.sampled_from([1, 2, 8]), st.sampled_from([1, 100, 2**20]), st.integers(0, 2**31))
def test_like_tokens_are_averaged(num_labels, grid, radius, at_once, seed):
    """However many rows at once."""
    scores, image = random_case(num_labels, grid, (30, 40), seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guided, "TOKEN_RADIUS", radius)
        patch.setattr(guided, "VALUES_AT_ONCE", at_once)
        averaged = guided._averaged(scores, image)
        torch.testing.assert_close(averaged.double(), average_alike(scores, image), atol=1e-5, rtol=1e-5)


def test_a_token_that_stands_out_agrees_with_those_around():
    """Its scores are a little off in an area of one colour; those of another colour don't count."""
    image = np.full((64, 64, 3), (60, 120, 150), np.uint8)
    image[:, 32:] = (150, 110, 60)
    scores = torch.zeros(2, 8, 8)
    scores[0, :, :4], scores[1, :, 4:] = 8, 8
    scores[:, 3, 1] = torch.tensor([5.0, 5.5])
    found, _ = guided_segmentation(scores, image)
    assert (found[:, :32] == 0).all() and (found[:, 32:] == 1).all()
    assert (decode_segmentation(scores, (64, 64))[0][:, :32] != 0).any()


@settings(max_examples=15, deadline=None)
@given(GRIDS, SIZES, st.sampled_from([1, 300, 2000]), st.integers(0, 2**31))
def test_however_the_image_is_cut(grid, size, at_once, seed):
    maps, image = random_case(3, grid, size, seed)
    expected = guided_segmentation(maps, image), guided_resize(maps, image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guided, "VALUES_AT_ONCE", at_once)
        found = guided_segmentation(maps, image), guided_resize(maps, image)
    # Sums in another order: 1.7e-5 on a CPU with AVX2.
    torch.testing.assert_close(found[0][1], expected[0][1], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[1], expected[1], atol=1e-4, rtol=1e-4)
    differ = found[0][0] != expected[0][0]
    assert differ.float().mean() < 0.02  # ties


def test_constant_maps_stay_constant():
    image = make_image(37, 50)
    resized = guided_resize(torch.tensor([3.0, -1e4]).view(2, 1, 1).expand(2, 4, 5), image)
    torch.testing.assert_close(resized, torch.tensor([3.0, -1e4]).view(2, 1, 1).expand(2, 37, 50))
    found, scores = guided_segmentation(torch.tensor([0.1, 2.0]).view(2, 1, 1).expand(2, 4, 5), image)
    assert (found == 1).all() and (scores > 0.999).all()


@pytest.mark.parametrize("edge", [19, 26, 40])
@pytest.mark.parametrize("noise", [0, 6])
def test_a_boundary_within_a_cell_moves_to_the_edge_of_the_image(edge, noise):
    """Cells of 16 pixels; the edge leans."""
    height, width, cell = 64, 80, 16
    rows, columns = np.mgrid[:height, :width]
    truth = torch.from_numpy(columns >= edge + rows // 12)
    colors = np.where(truth[..., None], [150, 110, 60], [60, 120, 150])
    colors = colors + np.random.default_rng(0).normal(0, noise, colors.shape)
    image = PIL.Image.fromarray(colors.clip(0, 255).astype(np.uint8))
    shares = F.avg_pool2d(truth[None].float(), cell)
    logits = torch.cat([1 - shares, shares]).clamp(min=0.02).log()
    before = (decode_segmentation(logits, (height, width))[0] != truth).sum()
    after = (guided_segmentation(logits, image)[0] != truth).sum()
    assert before > 80 and after < 0.1 * before
    metres = 2 + 3 * shares
    wanted = 2 + 3 * truth.float()
    error_before = (resize_map(metres[0], (height, width)) - wanted).abs().mean()
    error = (guided_resize(metres, image)[0] - wanted).abs().mean()
    assert error < 0.25 * error_before


def test_numbers_stay_within_those_around():
    maps, image = random_case(2, (4, 5), (45, 61), 3)
    resized = guided_resize(maps, image)
    assert resized.dtype == torch.float32 and resized.shape == (2, 45, 61)
    low, high = (
        resize_map(part, (45, 61)) for part in (-F.max_pool2d(-maps, 3, 1, 1)[0], F.max_pool2d(maps, 3, 1, 1)[0])
    )
    assert (resized[0] >= low - 1e-5).all() and (resized[0] <= high + 1e-5).all()


def test_memory_does_not_grow_with_labels(monkeypatch):
    monkeypatch.setattr(guided, "VALUES_AT_ONCE", 2**16)  # as in a large image
    image = make_image(1024, 48)
    peaks = []
    for num_labels in (20, 80):
        logits = torch.randn(num_labels, 64, 3, generator=torch.Generator().manual_seed(0))
        peaks.append(peak_bytes(lambda logits=logits: guided_segmentation(logits, image)) / (1024 * 48 * 4))
    # In maps of the image's size: those of all labels would be 60 more, and their coefficients at all blocks 33.
    assert peaks[1] < peaks[0] + 8 and max(peaks) < 20, peaks


def test_one_label_and_nothing_at_all():
    logits, image = random_case(1, (3, 4), (20, 30), 0)
    found, scores = guided_segmentation(logits, image)
    assert (found == 0).all() and torch.allclose(scores, torch.ones(20, 30))
    found, scores = guided_segmentation(-logits.abs() - 1, image, background=True)
    assert (found == -1).all() and (scores == 0.5).all()


def test_inputs_stay_and_may_be_of_any_kind():
    logits, image = random_case(3, (3, 4), (21, 30), 1)
    before = logits.clone()
    found, scores = guided_segmentation(logits, image)
    assert torch.equal(logits, before)
    for other in (np.asarray(image), image.convert("RGBA")):
        assert torch.equal(guided_segmentation(logits, other)[0], found)
    assert guided_segmentation(logits.bfloat16(), image)[1].dtype == torch.float32
    assert not guided_segmentation(logits.clone().requires_grad_(), image)[1].requires_grad
    gray = guided_resize(logits, image.convert("L"))
    assert gray.isfinite().all()


@pytest.mark.parametrize(
    ("name", "logits", "image"),
    [
        ("logits", torch.ones(3, 4), make_image(8, 8)),
        ("logits", torch.ones(0, 4, 4), make_image(8, 8)),
        ("logits", torch.ones(1, 4, 4, dtype=torch.long), make_image(8, 8)),
        ("logits", np.ones((1, 4, 4), np.float32), make_image(8, 8)),
        ("logits", torch.full((1, 4, 4), float("nan")), make_image(8, 8)),
        ("image", torch.ones(1, 4, 4), np.ones((8, 8), np.uint8)),
        ("image", torch.ones(1, 4, 4), np.ones((8, 8, 3), np.float32)),
        ("image", torch.ones(1, 4, 4), None),
    ],
)
def test_errors_name_the_argument(name, logits, image):
    with pytest.raises(ValueError, match=f"^`{name}` must"):
        guided_segmentation(logits, image)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_on_cuda():
    maps, image = random_case(4, (6, 7), (90, 100), 6)
    found = guided_resize(maps.cuda(), image)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), guided_resize(maps, image), atol=1e-4, rtol=1e-4)
    scores = guided_segmentation(maps.cuda(), image)[1]
    torch.testing.assert_close(scores.cpu(), guided_segmentation(maps, image)[1], atol=1e-3, rtol=0)


# ---- tasks ----


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def model(processor):
    model = make_model(processor)
    model.set_processor(processor)
    return model


@pytest.fixture(scope="module")
def image():
    return random_case(1, (1, 1), (45, 61), 5)[1]


def at_size(image, size):
    return image.resize((size[1], size[0]), PIL.Image.Resampling.BILINEAR)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("size", [None, (30, 77)])
def test_classes(model, image, background, size):
    options = {"labels": LABELS, "background": background, "target_sizes": size, "return_logits": True}
    found = model.predict_dense(image, refine="guided", **options)
    own = image if size is None else at_size(image, size)
    expected, scores = guided_segmentation(found.logits, own, background)
    assert torch.equal(found.segmentation, expected) and torch.equal(found.scores, scores)
    assert found.scores.min() >= 0 and found.scores.max() <= 1
    assert not torch.equal(found.scores, model.predict_dense(image, **options).scores)


def test_others_and_threshold(model, image):
    found = model.predict_dense(image, labels={3: "cat", 5: "<OTHERS>"}, refine="guided", threshold=0.9)
    assert set(found.segmentation.unique().tolist()) <= {-1, 3, 5}


def test_depth_and_classes_of_one_pass(model, processor, image):
    encoded = model.encode_image(image)
    both = model.predict_dense(
        encoded, ("segmentation", "depth"), labels=LABELS, refine="guided", return_logits=True, target_sizes=(33, 40)
    )
    own = at_size(image, (33, 40))
    places, _ = decode_bin_places(both.logits["depth"])
    expected = processor.depth_bins.metres(guided_resize(places[None], own)[0])
    torch.testing.assert_close(both.predicted_depth, expected)
    assert torch.equal(both.segmentation, guided_segmentation(both.logits["segmentation"], own)[0])
    assert both.scores["depth"].shape == (33, 40) and both.scores["depth"].max() <= 1
    # The CRF is of classes alone; depth beside it is as it was.
    mixed = model.predict_dense(encoded, ("segmentation", "depth"), labels=LABELS, refine="crf")
    plain = model.predict_dense(encoded, "depth")
    torch.testing.assert_close(mixed.predicted_depth, plain.predicted_depth)


def test_normals_from_depth(model, image):
    options = {"task": "normals", "source": "depth", "focal_length": 60.0}
    found = model.predict_dense(image, refine="guided", **options)
    plain = model.predict_dense(image, **options)
    torch.testing.assert_close(found.normals.norm(dim=-1), torch.ones(45, 61))
    assert torch.equal(found.scores, plain.scores) and not torch.equal(found.normals, plain.normals)


def test_normals_from_tokens(image):
    processor = make_processor()
    add_dense_tokens(processor.tokenizer, 16, 64, num_normal_bins=32)
    model = make_model(processor)
    found = model.predict_dense(image, "normals", refine="guided", processor=processor, target_sizes=(20, 33))
    torch.testing.assert_close(found.normals.norm(dim=-1), torch.ones(20, 33))
    assert found.scores.shape == (20, 33)


def test_panoptic(model, image):
    found = model.predict_dense(image, "panoptic", labels=LABELS, thing_labels=["cat"], refine="guided")
    classes = model.predict_dense(image, labels=LABELS, refine="guided")
    torch.testing.assert_close(found.scores, classes.scores, atol=1e-4, rtol=0)
    assert found.segments_info


def test_referred_objects(model, processor, image, monkeypatch):
    monkeypatch.setattr(processor, "referring_prompt", "find {text}")
    found = model.predict_dense(image, "referring", text="the cat", refine="guided", return_logits=True)
    best, scores = guided_segmentation(found.logits, image, temperature=1.0)
    assert torch.equal(found.mask, best == 1)
    torch.testing.assert_close(found.scores, torch.where(best == 1, scores, 1 - scores))


def test_crops_are_refined_along_what_is_in_them(model, image):
    """And not along the line that is drawn around the box."""
    box = (5, 4, 40, 30)
    found = model.predict_dense(image, "referring", box=box, refine="guided", return_logits=True)
    plain = model.predict_dense(image, "referring", box=box, return_logits=True)
    assert torch.equal(found.logits, plain.logits) and not torch.equal(found.scores, plain.scores)
    x0, y0, x1, y1 = 1, 1, 44, 33  # 1.2 times the box
    scale = 32 / (y1 - y0)
    crop = image.crop((x0, y0, x1, y1)).resize((round((x1 - x0) * scale), 32), PIL.Image.Resampling.BILINEAR)
    best, _ = guided_segmentation(found.logits, crop, temperature=1.0)
    inside = resize_map((best == 1).float(), (y1 - y0, x1 - x0), mode="nearest-exact") > 0.5
    assert torch.equal(found.mask[y0:y1, x0:x1], inside)
    assert not found.mask[:, x1:].any()


def test_open_sets(model, image, monkeypatch):
    answer = "<ref>cat</ref><box><x_4><y_4><x_40><y_36></box>"
    answer_with(monkeypatch, model, answer)
    found = model.predict_dense(image, "open_set", labels=["cat"], refine="guided")
    box = found.segments_info[0]["box"] if found.segments_info else None
    if box is not None:
        alone = model.predict_dense(image, "referring", box=box, refine="guided")
        assert torch.equal(found.segmentation == 0, alone.mask)
    assert found.segmentation.shape == (45, 61)


def test_images_that_are_read_in_tiles(model, image):
    found = model.predict_dense(image, labels=LABELS, refine="guided", tile=32, return_logits=True)
    assert torch.equal(found.segmentation, guided_segmentation(found.logits, image)[0])


@pytest.mark.parametrize(
    ("task", "refine"), [("depth", "crf"), ("normals", "crf"), ("segmentation", "blur"), ("depth", ("guided",))]
)
def test_what_a_task_does_not_take_is_refused(model, image, task, refine):
    with pytest.raises(ValueError, match="`refine` must be None, or 'crf' with the task .*'guided' with the task"):
        model.predict_dense(image, task, labels=LABELS, refine=refine, source=None, focal_length=50.0)


def test_tasks_say_what_they_take():
    assert {name for name, task in TASKS.items() if "guided" in task.refinements} == set(TASKS) - {"codes"}
    assert {name for name, task in TASKS.items() if "crf" in task.refinements} == {"segmentation", "panoptic"}
    assert all(("refine" in task.options) == bool(task.refinements) for task in TASKS.values())


def test_decode_dense(processor, image):
    logits = random_case(len(processor.task_label_ids("depth")), (3, 4), (1, 1), 0)[0]
    found = processor.decode_dense("depth", logits, (45, 61), refine="guided", image=image)
    assert found["predicted_depth"].shape == (45, 61)
    with pytest.raises(ValueError, match="`image` is needed with `refine` 'guided'"):
        processor.decode_dense("depth", logits, (45, 61), refine="guided")
    with pytest.raises(ValueError, match="`refine` must be None"):
        processor.decode_dense("depth", logits, (45, 61), refine="crf", image=image)


@pytest.mark.parametrize(("refine", "is_there"), [("guided", True), ("crf", False), (None, False)])
def test_an_evaluation_asks_for_it_where_it_is_taken(tmp_path, refine, is_there):
    task = MEASURED["depth"]
    assert task.arguments([{}], Settings(refine=refine)) == ({"refine": refine} if is_there else {})
    (tmp_path / "README.md").write_text("---\ntags: []\n---\n")
    options = {**CARD_OPTIONS, **task.options, "refine": refine, "data_name": "rooms", "split": "validation"}
    update_card(
        str(tmp_path),
        {"options": options, "data": "rooms", "metrics": {"depth": {"delta1": 0.5}}, "images": {"depth": 1}},
    )
    assert ("refine: guided" in (tmp_path / "README.md").read_text()) == is_there
    assert "crf" not in (tmp_path / "README.md").read_text()
