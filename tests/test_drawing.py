"""Colours: well apart, the same for a label everywhere, and the data set's own where asked for."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densemllm import DensePrediction
from densemllm.drawing_densemllm import COLORS, PALETTES, depth_to_gray, label_colors


def make_prediction(rows, names):
    segmentation = torch.tensor(rows)
    found = [key for key in segmentation.unique().tolist() if key >= 0]
    info = [{"id": key, "label_id": key, "label": names[key], "score": 0.5, "area": 1} for key in found]
    return DensePrediction(segmentation=segmentation, segments_info=info, labels=names)


@pytest.mark.parametrize(("count", "least"), [(20, 20.0), (50, 15.0), (150, 10.0), (256, 8.0)])
def test_any_two_of_the_first_colors_are_apart(count, least):
    color = pytest.importorskip("skimage.color")
    # Black stands for no label, white is the ground of a legend.
    lab = color.rgb2lab(np.concatenate([label_colors(count), np.array([[0, 0, 0], [255, 255, 255]], np.uint8)]))
    distances = color.deltaE_ciede2000(lab[:, None], lab[None])
    np.fill_diagonal(distances, np.inf)
    assert distances.min() >= least


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_a_label_has_one_color_whatever_else_is_there(numbers):
    together = label_colors(numbers)
    for number, color in zip(numbers, together, strict=True):
        assert (label_colors([number])[0] == color).all() and (color == COLORS[number % 256]).all()


def test_numbers_may_be_sparse():
    prediction = make_prediction([[3_000_000_000, 26001, -1]], {3_000_000_000: "a", 26001: "b"})
    image = np.asarray(prediction.to_pil())
    assert image.shape == (1, 3, 3) and (image[0, 2] == 0).all()
    np.testing.assert_array_equal(image[0, :2], label_colors([3_000_000_000, 26001]))
    assert prediction.to_pil(legend=True).width > 3


def test_palettes_of_data_sets_go_by_name():
    assert [PALETTES["voc"][name] for name in ("background", "aeroplane", "person", "tvmonitor")] == [
        (0, 0, 0), (128, 0, 0), (192, 128, 128), (0, 64, 128),
    ]  # fmt: skip
    assert {name: len(rows) for name, rows in PALETTES.items()} == {"ade20k": 150, "voc": 21, "cityscapes": 19}
    assert PALETTES["ade20k"]["wall"] == (120, 120, 120) and PALETTES["ade20k"]["flag"] == (92, 0, 255)
    names = {0: "building, edifice", 4: "chest of drawers;chest;bureau", 7: "Screen  Door", 9: "zebra"}
    colors = label_colors([0, 4, 7, 9], "ade20k", names).tolist()
    assert colors == [[180, 120, 120], [6, 51, 255], [0, 173, 255], label_colors([9])[0].tolist()]
    prediction = make_prediction([[0, 1, 2]], {0: "Person", 1: "zebra", 2: "road"})
    image = np.asarray(prediction.to_pil(palette="cityscapes"))[0].tolist()
    assert image == [[220, 20, 60], label_colors(2)[1].tolist(), [128, 64, 128]]


@pytest.mark.parametrize(
    "palette",
    [
        {"person": (1, 2, 3), 1: [4, 5, 6]},
        [(1, 2, 3), (4, 5, 6)],
        np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8),
        torch.tensor([[1, 2, 3], [4, 5, 6]]),
    ],
)
def test_a_palette_of_ones_own(palette):
    prediction = make_prediction([[0, 1, 2]], {0: "person", 1: "zebra", 2: "road"})
    image = np.asarray(prediction.to_pil(palette=palette))[0].tolist()
    assert image == [[1, 2, 3], [4, 5, 6], label_colors(3)[2].tolist()]
    scene = np.zeros((1, 3, 3), np.uint8)
    assert np.asarray(prediction.overlay(scene, alpha=1.0, palette=palette))[0].tolist() == image


@settings(max_examples=50)
@given(
    st.one_of(
        st.text(), st.integers(), st.lists(st.integers(), min_size=1), st.just([(1, 2)]), st.just([(0, 0, 256)]),
        st.just([(0, 0, -1)]), st.just([(0.5, 0, 0)]), st.just({"person": "red"}), st.just({0: None}),
        st.just([("1", "2", "3")]), st.just(b"abc"), st.just(np.zeros((2, 2))),
    )
)  # fmt: skip
def test_what_is_not_a_palette_is_refused(palette):
    prediction = make_prediction([[0]], {0: "person"})
    with pytest.raises(ValueError, match="`palette` must be"):
        prediction.to_pil(palette=palette)


@pytest.mark.parametrize("field", [5, "mask", ["segmentation"], np.array(["segmentation", "mask"])])
def test_a_field_that_is_not_there_is_named(field):
    with pytest.raises(ValueError, match="`field` must be one of"):
        make_prediction([[0]], {0: "person"}).to_pil(field)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("image", {"image": None}), ("image", {"image": b"abc"}), ("image", {"image": np.zeros((2, 2, 3), complex)}),
        ("alpha", {"alpha": "0.5"}), ("alpha", {"alpha": float("nan")}), ("alpha", {"alpha": None}),
        ("field", {"field": 5}), ("palette", {"palette": "cityscape"}),
    ],
)  # fmt: skip
def test_junk_for_overlays_is_named(name, arguments):
    scene = np.zeros((1, 1, 3), np.uint8)
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        make_prediction([[0]], {0: "person"}).overlay(**{"image": scene, **arguments})
    with pytest.raises(TypeError, match="`legend` must be"):
        make_prediction([[0]], {0: "person"}).to_pil(legend="yes")


def test_far_is_bright_in_gray():
    depth = np.array([[1.0, 2.0], [4.0, 5.0]], dtype=np.float32)
    image = depth_to_gray(depth)
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), [[0, 63], [191, 255]])
    assert not np.asarray(depth_to_gray(np.full((2, 2), 3.0, np.float32))).any()
