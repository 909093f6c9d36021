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
"""Large images in tiles: where they lie, what they say together, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densemllm.tiles_densemllm import TiledMap, Tiling, check_tiling
from tiny import ID2LABEL, YOUTU, assert_maps_agree, make_image, make_model, make_processor, peak_bytes


EDGES = st.integers(1, 40)
LABELS = list(ID2LABEL.values())


@st.composite
def tilings(draw) -> Tiling:
    height, width = draw(EDGES), draw(EDGES)
    return Tiling((height, width), draw(st.integers(0, min(height, width) - 1)))


@settings(max_examples=200, deadline=None)
@given(tilings(), st.tuples(EDGES, EDGES))
def test_tiles_cover_the_grid_and_share_at_least_the_overlap(tiling, grid):
    covered = torch.zeros(grid)
    height, width = tiling.shown_of(grid)
    windows = list(tiling.windows(grid))
    for rows, columns in windows:
        assert (rows.stop - rows.start, columns.stop - columns.start) == (height, width)
        covered[rows, columns] += 1
    assert covered.min() >= 1 and len(set(map(str, windows))) == len(windows)
    for edge in (0, 1):
        starts = sorted({window[edge].start for window in windows})
        size = (height, width)[edge]
        assert starts[0] == 0 and starts[-1] + size == grid[edge]
        assert all(after - before <= size - tiling.overlap for before, after in zip(starts, starts[1:], strict=False))


@settings(max_examples=50, deadline=None)
@given(tilings(), st.tuples(EDGES, EDGES))
def test_tiles_of_one_map_are_that_map(tiling, grid):
    values = torch.randn(*grid, 3)
    tiled = TiledMap(tiling, grid)
    for window in tiling.windows(grid):
        tiled.add(window, values[window].flatten(0, 1))
    assert torch.allclose(tiled.mean(torch.float32), values.flatten(0, 1), atol=1e-5)


def test_tiles_weigh_less_towards_their_edges():
    weights = Tiling((4, 6), 2).weights((8, 12))
    assert weights[0].tolist() == [1, 2, 3, 3, 2, 1] and weights[:, 0].tolist() == [1, 2, 2, 1]
    assert Tiling((4, 6), 0).weights((8, 12)).unique().tolist() == [1]


@pytest.mark.parametrize(
    ("tile", "overlap", "expected"),
    [
        (None, None, None),
        (64, None, Tiling((8, 8), 1)),
        ((60, 33), None, Tiling((8, 5), 0)),
        ([64, 128], 9, Tiling((8, 16), 2)),
        (torch.tensor([64, 64]), 0, Tiling((8, 8), 0)),
    ],
)
def test_edges_are_rounded_up_to_vision_tokens(tile, overlap, expected):
    assert check_tiling(tile, overlap, 8) == expected


@pytest.mark.parametrize(
    ("tile", "overlap", "error", "message"),
    [
        (None, 8, ValueError, "`tile_overlap` needs `tile`"),
        (0, None, ValueError, "`tile` must be at least 1 pixel, got 0"),
        ((64, -1), None, ValueError, "`tile` must be at least 1 pixel"),
        (True, None, TypeError, "`tile` must be an edge or"),
        (64.5, None, TypeError, "`tile` must be an edge or"),
        ((1, 2, 3), None, TypeError, "`tile` must be an edge or"),
        ("64", None, TypeError, "`tile` must be an edge or"),
        (64, 57, ValueError, "`tile_overlap` must be less than the tile's edges"),
        (64, -1, ValueError, "`tile_overlap` must be a whole number of at least 0"),
    ],
)
def test_what_is_no_tile_is_refused(tile, overlap, error, message):
    with pytest.raises(error, match=message):
        check_tiling(tile, overlap, 8)


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def model(processor):
    return make_model(processor)


@pytest.fixture(scope="module")
def blind_model(processor):
    """A model whose tokens see nothing of each other: what it says of a cell is the same in any tile."""
    model = make_model(processor, seed=1)
    for name, parameter in model.named_parameters():
        if "o_proj" in name or "out_proj" in name:
            parameter.data.zero_()
    return model


def test_an_image_that_fits_into_a_tile_is_read_as_without(model, processor):
    image = make_image(40, 56)
    arguments = {"task": ("segmentation", "depth"), "labels": LABELS, "processor": processor, "return_logits": True}
    whole = model.predict_dense(image, **arguments)
    tiled = model.predict_dense(image, **arguments, tile=(64, 64))
    for task, logits in whole.logits.items():
        assert torch.allclose(tiled.logits[task], logits, atol=1e-5)
    assert_maps_agree(tiled.segmentation, whole.segmentation)


@pytest.mark.parametrize("tile_overlap", [0, 8, None])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_tiles_are_put_where_they_were_cut(blind_model, processor, tile_overlap, scale):
    image = make_image(70, 100)
    arguments = {
        "task": ("segmentation", "depth"), "labels": LABELS, "processor": processor, "return_logits": True,
        "scale": scale, "max_num_patches": 4096,
    }  # fmt: skip
    whole = blind_model.predict_dense(image, **arguments)
    tiled = blind_model.predict_dense([image], **arguments, tile=(24, 40), tile_overlap=tile_overlap)[0]
    for task, logits in whole.logits.items():
        assert tiled.logits[task].shape == logits.shape
        assert torch.allclose(tiled.logits[task], logits, atol=1e-4)
    assert_maps_agree(tiled.segmentation, whole.segmentation, 0.99)
    assert_maps_agree(tiled.predicted_depth, whole.predicted_depth, 0.99)


def test_tiles_know_their_own_surroundings_only(model, processor):
    """Of the first tile, what is beyond it changes nothing, but for where a neighbour overlaps."""
    image = make_image(64, 128)
    other = image.copy()
    other.paste(make_image(64, 64, 5), (64, 0))
    arguments = {"labels": LABELS, "processor": processor, "return_logits": True, "tile": 64, "tile_overlap": 0}
    one, two = (model.predict_dense(entry, **arguments).logits for entry in (image, other))
    half = one.shape[2] // 2
    assert torch.equal(one[..., :half], two[..., :half])
    assert not torch.allclose(one[..., half:], two[..., half:])


def test_the_cap_on_patches_is_that_of_a_tile(model, processor):
    image, patches = make_image(64, 96), 64
    capped = model.encode_image(image, processor=processor, max_num_patches=patches)
    tiled = model.encode_image(image, processor=processor, max_num_patches=patches, tile=32)
    assert math.prod(capped.grid) < math.prod(tiled.grid) == len(tiled.hidden_states) == len(tiled.image_features)
    with pytest.raises(ValueError, match="`tile` must have at most `max_num_patches` = 64 patches, got 64"):
        model.predict_dense(image, labels=LABELS, processor=processor, max_num_patches=patches, tile=64)


def test_positions_are_those_of_a_tile(processor):
    model = make_model(processor, text={**YOUTU, "max_position_embeddings": 120})
    image = make_image(96, 160)
    with pytest.raises(ValueError, match="120"):
        model.predict_dense(image, labels=LABELS, processor=processor)
    prediction = model.predict_dense(image, labels=LABELS, processor=processor, tile=48)
    assert prediction.segmentation.shape == (96, 160)


def test_what_is_asked_in_words_is_asked_of_the_whole_image(model, processor, monkeypatch):
    image, asked = make_image(64, 96), []
    answer = f"<ref>{LABELS[0]}</ref><ref>{LABELS[2]}</ref>"

    def query(self, images, texts, *args, **kwargs):
        asked.extend(encoded.grid for encoded in images)
        return [answer] * len(images)

    monkeypatch.setattr(type(model), "query", query)
    whole = model.encode_image(image, processor=processor).grid
    prediction = model.predict_dense(
        image, labels=LABELS, labels_from_answer=True, processor=processor, tile=32, scale=2.0
    )
    assert asked == [whole] and list(prediction.labels.values()) == [LABELS[0], LABELS[2]]


def test_an_image_of_tiles_is_asked_as_one(model, processor):
    encoded = model.encode_image(make_image(64, 96), processor=processor, tile=32)
    assert encoded.past_key_values is None
    assert isinstance(model.query(encoded, "What is there?", processor, max_new_tokens=2), str)


def test_tiles_take_less_memory(model, processor):
    image = make_image(256, 256)
    arguments = {"labels": LABELS, "processor": processor, "max_num_patches": 4096}
    whole = peak_bytes(lambda: model.predict_dense(image, **arguments))
    tiled = peak_bytes(lambda: model.predict_dense(image, **arguments, tile=64))
    assert tiled < whole / 2
