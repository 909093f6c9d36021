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
"""Centres of objects as bins of coordinates, votes for them, and the segments that come of it."""

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densemllm.instances_densemllm import (
    connected_components,
    coordinate_numbers,
    decode_centres,
    decode_instances,
    encode_centres,
    find_peaks,
    make_panoptic,
)


CELL = 8  # pixels of a token's edge
ID2LABEL = {0: "wall", 1: "chair", 5: "table"}
THINGS = (1, 5)


def perfect_logits(bins: np.ndarray, count: int) -> torch.Tensor:
    """Logits of a model that knows the bin of the pixel in the middle of each token's cell."""
    middles = torch.from_numpy(bins[CELL // 2 :: CELL, CELL // 2 :: CELL])
    return 20 * torch.nn.functional.one_hot(middles, count + 1).permute(2, 0, 1)[1:].float()


def same_partition(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two maps of numbers have the same regions, whatever their numbers are."""
    pairs = set(zip(first.flatten().tolist(), second.flatten().tolist(), strict=True))
    return len(pairs) == len({one for one, _ in pairs}) == len({two for _, two in pairs})


def are_found(found: torch.Tensor, instances: np.ndarray) -> bool:
    """Whether there are as many regions as objects, each nearly the same: where corners meet, some pixels may go to
    the neighbour, as between the tokens of any map that is resized."""
    numbers = [number for number in np.unique(instances).tolist() if number]
    best = []
    for number in numbers:
        own = torch.from_numpy(instances == number)
        region = found == found[own].mode().values
        best.append(int((region & own).sum()) / int((region | own).sum()))
    return len(numbers) == len(found.unique()) - int((found == 0).any()) and min(best, default=1) > 0.9


@st.composite
def layouts(draw):
    """Class and instance maps of rectangles of whole cells, each of which has a tile of 4x4 cells of its own to lie
    in, of 3 to 4 cells an edge: neighbours touch, and centres are some cells apart."""
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    segmentation = np.zeros((rows * 4 * CELL, columns * 4 * CELL), dtype=np.int64)
    instances = np.zeros_like(segmentation)
    for tile in range(rows * columns):
        label = draw(st.sampled_from((0, 1, 1, 5)))
        height, width = draw(st.integers(3, 4)), draw(st.integers(3, 4))
        top, left = (4 * place * CELL for place in divmod(tile, columns))
        if label:
            place = slice(top, top + height * CELL), slice(left, left + width * CELL)
            segmentation[place], instances[place] = label, tile + 1
    return segmentation, instances


@settings(max_examples=60, deadline=None)
@given(layouts(), st.sampled_from(("image", "token")), st.booleans(), st.integers(24, 64))
def test_perfect_votes_give_the_instances_back(layout, origin, within_class, count):
    segmentation, instances = layout
    x_bins, y_bins = encode_centres(segmentation, instances, THINGS, count, count, origin)
    found = decode_instances(
        perfect_logits(x_bins, count), perfect_logits(y_bins, count), torch.from_numpy(segmentation), THINGS,
        origin=origin, radius=2, within_class=within_class,
    )  # fmt: skip
    assert found.shape == segmentation.shape
    assert are_found(found, instances) and ((found > 0).numpy() == (instances > 0)).all()
    result = make_panoptic(torch.from_numpy(segmentation), torch.full(found.shape, 0.5), found, THINGS, ID2LABEL)
    infos = [info for info in result["segments_info"] if info["isthing"]]
    assert len(infos) == len(set(instances[instances > 0].tolist()))
    for info in infos:
        own = result["segmentation"] == info["id"]
        rows, columns = own.any(dim=1).nonzero()[:, 0], own.any(dim=0).nonzero()[:, 0]
        assert info["area"] == int(own.sum()) and 0.45 < info["score"] <= 0.5 and not info["was_fused"]
        assert info["box"] == (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        assert info["label_id"] == int(torch.from_numpy(segmentation)[own].mode().values)
        assert info["label"] == ID2LABEL[info["label_id"]]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), st.integers(0, 9999))
def test_any_logits_give_a_partition_of_the_things(grid_height, grid_width, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(2, 16, grid_height, grid_width, generator=generator)
    segmentation = torch.randint(-1, 4, (height, width), generator=generator)
    scores = torch.rand(height, width, generator=generator)
    id2label = dict(enumerate("abcd"))
    for within_class in (False, True):
        instances = decode_instances(*logits, segmentation, (2, 3), within_class=within_class)
        assert instances.shape == (height, width) and ((instances > 0) == (segmentation >= 2)).all()
        result = make_panoptic(segmentation, scores, instances, (2, 3), id2label)
        ids = [info["id"] for info in result["segments_info"]]
        assert ids == list(range(1, len(ids) + 1)) and set(ids) == set(result["segmentation"].unique().tolist()) - {0}
        assert ((result["segmentation"] == 0) == (segmentation < 0)).all()
        for info in result["segments_info"]:
            own = result["segmentation"] == info["id"]
            assert info["area"] == int(own.sum()) and 0 <= info["score"] <= 1
            if within_class or not info["isthing"]:
                assert (segmentation[own] == info["label_id"]).all()
                assert info["score"] == pytest.approx(float(scores[own].mean()), abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9999))
def test_without_things_the_segments_are_the_class_map(seed):
    generator = torch.Generator().manual_seed(seed)
    segmentation = torch.randint(-1, 3, (12, 15), generator=generator)
    instances = decode_instances(torch.zeros(4, 3, 3), torch.zeros(4, 3, 3), segmentation, ())
    assert not instances.any()
    result = make_panoptic(segmentation, torch.ones(12, 15), instances, (), dict(enumerate("abc")))
    labels = torch.tensor([-1, *(info["label_id"] for info in result["segments_info"])])
    assert torch.equal(labels[result["segmentation"].long()], segmentation)
    assert all(info["was_fused"] and not info["isthing"] for info in result["segments_info"])
    assert result["segmentation"].dtype == torch.int32


def test_an_object_in_two_parts_is_one_and_two_that_touch_are_two():
    segmentation = np.zeros((4 * CELL, 12 * CELL), dtype=np.int64)
    segmentation[:, : 4 * CELL] = segmentation[:, 6 * CELL :] = 1
    instances = np.where(segmentation > 0, 1, 0)
    instances[:, 9 * CELL :] = 2
    instances[:, 6 * CELL : 9 * CELL] = 1
    assert int(connected_components(torch.from_numpy(segmentation), (1,)).max()) == 2
    bins = encode_centres(segmentation, instances, (1,), 24, 24)
    found = decode_instances(*(perfect_logits(own, 24) for own in bins), torch.from_numpy(segmentation), (1,))
    assert same_partition(found, torch.from_numpy(instances))


def test_uncertain_votes_leave_a_region_whole_and_certain_ones_do_not():
    segmentation, generator = torch.ones(10 * CELL, 20 * CELL, dtype=torch.long), torch.Generator().manual_seed(0)
    numbers = torch.arange(40)[:, None, None]
    columns = torch.where(torch.arange(20) < 10, 10, 30).expand(10, 20)
    for spread, expected in ((0, 2), (30, 1)):
        votes = columns + spread * (torch.rand(10, 20, generator=generator) - 0.5)
        x_logits = -((numbers - votes) ** 2).float()
        y_logits = -((numbers - 20.0) ** 2).expand(40, 10, 20)
        assert int(decode_instances(x_logits, y_logits, segmentation, (1,)).max()) == expected


@pytest.mark.parametrize("border", [37, 42])  # pixels of three, and of six columns, of a cell's eight
def test_objects_that_touch_part_along_the_edge_of_an_image(border):
    """Two tables, a dark and a light one, whose border is inside of cells, at a slant."""
    height, width = 48, 80
    columns = np.arange(width) + np.arange(height)[:, None] / 12
    instances = np.where(columns < border, 1, 2)
    segmentation = np.full((height, width), 5)
    pixels = np.where(instances == 1, 60, 170)[..., None] + np.random.default_rng(0).integers(
        -6, 7, (height, width, 3)
    )
    image = PIL.Image.fromarray(pixels.astype(np.uint8))
    logits = [perfect_logits(own, 24) for own in encode_centres(segmentation, instances, THINGS, 24, 24)]
    wrong = {}
    for name, given_image in (("tokens", None), ("guided", image)):
        found = decode_instances(*logits, torch.from_numpy(segmentation), THINGS, image=given_image).numpy()
        assert sorted(np.unique(found)) == [1, 2]
        first = found[0, 0]
        wrong[name] = int(((found == first) != (instances == 1)).sum())
    assert wrong["guided"] <= 24 and wrong["guided"] < 0.4 * wrong["tokens"], wrong
    with pytest.raises(ValueError, match="`image` must be of the size"):
        decode_instances(*logits, torch.from_numpy(segmentation), THINGS, image=image.crop((0, 0, 8, 8)))


def test_an_object_takes_the_class_that_most_of_it_has():
    segmentation = torch.tensor([[1, 1, 1, 5, 0]])
    scores = torch.tensor([[0.9, 0.9, 0.6, 0.8, 1.0]])
    result = make_panoptic(segmentation, scores, torch.tensor([[1, 1, 1, 1, 0]]), THINGS, ID2LABEL)
    assert result["segmentation"].tolist() == [[2, 2, 2, 2, 1]]
    wall, chair = result["segments_info"]
    assert (wall["label"], chair["label"], chair["area"], chair["box"]) == ("wall", "chair", 4, (0, 0, 4, 1))
    assert chair["score"] == pytest.approx(2.4 / 4)
    smaller = make_panoptic(segmentation, scores, torch.tensor([[1, 1, 1, 2, 0]]), THINGS, ID2LABEL, min_area=2)
    assert smaller["segmentation"].tolist() == [[2, 2, 2, 0, 1]]


def test_centres_by_hand():
    segmentation = np.array([[1, 1, 0, 5], [1, 1, 0, 5]])
    instances = np.array([[3, 3, 9, 3], [3, 3, 9, 0]])
    x_bins, y_bins = encode_centres(segmentation, instances, THINGS, 4, 2)
    # the chair's centre is at a quarter of the width and half the height, the table's pixel at 7/8 and 1/4
    assert x_bins.tolist() == [[2, 2, 0, 4], [2, 2, 0, 0]]
    assert y_bins.tolist() == [[2, 2, 0, 1], [2, 2, 0, 0]]
    x_bins, _ = encode_centres(segmentation, instances, THINGS, 8, 2, origin="token")
    # from the pixels' own places, 1/8 and 3/8: 1/8 to the right is bin 6, as much to the left bin 4
    assert x_bins.tolist() == [[6, 4, 0, 5], [6, 4, 0, 0]]
    places = decode_centres(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
    assert places.tolist() == [[[1.0] * 3] * 2, [[1.5] * 3] * 2]  # one bin is all of the image
    best = torch.zeros(4, 1, 1)
    best[2] = 100
    assert decode_centres(best, best, origin="token").flatten().tolist() == pytest.approx([0.625, 0.625])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.integers(0, 9999))
def test_components_are_those_of_a_flood_fill(height, width, labels, seed):
    segmentation = torch.randint(0, labels + 1, (height, width), generator=torch.Generator().manual_seed(seed))
    things = set(range(1, labels + 1))
    expected, count = torch.zeros_like(segmentation), 0
    for start in ((segmentation > 0).nonzero()).tolist():
        if expected[tuple(start)]:
            continue
        count, todo = count + 1, [tuple(start)]
        while todo:
            row, column = todo.pop()
            inside = 0 <= row < height and 0 <= column < width
            if inside and not expected[row, column] and segmentation[row, column] == segmentation[tuple(start)]:
                expected[row, column] = count
                todo += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    found = connected_components(segmentation, things)
    assert same_partition(found, expected)
    assert set(found.unique().tolist()) | {0} == set(range(count + 1))


def test_bins_are_tokens():
    assert coordinate_numbers(4, 2048, 1000).tolist() == [125, 375, 625, 875]  # pixels
    assert coordinate_numbers(4, 8, 1000).tolist() == [1, 3, 5, 7]  # shares
    assert coordinate_numbers(8, 8, 1000).tolist() == list(range(8))
    with pytest.raises(ValueError, match="num_bins"):
        coordinate_numbers(9, 8, 1000)


def test_peaks_are_apart_and_high_enough():
    places = torch.tensor([[1.0, 1.0, 1.2, 6.0, 6.0], [1.0, 1.2, 1.0, 6.0, 2.0]])
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.2])
    peaks = find_peaks(places, weights, radius=1.5, min_votes=0.9)
    assert len(peaks) == 2 and torch.allclose(peaks, torch.tensor([[1.0, 1.0], [6.0, 6.0]]), atol=0.3)
    assert len(find_peaks(places, 0.01 * weights, radius=1.5, min_votes=0.9)) == 1
    assert len(find_peaks(places, 0 * weights, radius=1.5, min_votes=0.9)) == 0


def test_what_can_not_be_used_is_named():
    ids = np.zeros((4, 4), dtype=np.int64)
    with pytest.raises(TypeError, match="`segmentation` must be a map of integers"):
        encode_centres(ids.astype(float), ids, (1,), 4, 4)
    with pytest.raises(ValueError, match="`instances` must have the shape"):
        encode_centres(ids, ids[:2], (1,), 4, 4)
    with pytest.raises(ValueError, match="`num_x_bins`"):
        encode_centres(ids, ids, (1,), 0, 4)
    with pytest.raises(ValueError, match="`origin` must be one of"):
        encode_centres(ids, ids, (1,), 4, 4, origin="corner")
    logits = torch.zeros(4, 2, 2)
    with pytest.raises(ValueError, match="`x_logits` and `y_logits`"):
        decode_instances(logits, logits[:, :1], torch.from_numpy(ids), (1,))
    with pytest.raises(ValueError, match="`radius`"):
        decode_instances(logits, logits, torch.from_numpy(ids), (1,), radius=0)
    with pytest.raises(ValueError, match="must have one shape"):
        make_panoptic(torch.from_numpy(ids), torch.ones(2, 2), torch.from_numpy(ids), (1,), ID2LABEL)
