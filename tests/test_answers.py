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
"""Answers in words as objects, and COCO's run lengths."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from densemllm.answers_densemllm import (
    MPII_KEYPOINTS,
    decode_rle,
    encode_rle,
    parse_counting,
    parse_detection,
    parse_grounding,
    parse_polygons,
    parse_pose,
    parse_run_length,
)


SIZES = ((20, 30), (40, 60))  # of the image and of what the model saw: everything halves
DETECTION = (
    "<ref>bowl</ref><box><x_2><y_4><x_10><y_12></box><box><x_20><y_4><x_30><y_12></box>"
    "<ref>Red  cup</ref><box><x_0><y_0><x_59><y_39></box>"
)
POSE = "<person><box><x_2><y_4><x_10><y_12></box>" + "<kpt><x_4><y_6><v_1.0></kpt><kpt><x_8><y_2><v_0.0></kpt>" * 8
POSE = (POSE + "</person>") * 2
POLYGONS = (
    "The segmentation result is <ins><poly><x_2><y_2><x_22><y_2><x_22><y_22><x_2><y_22></poly>"
    "<poly><x_40><y_2><x_50><y_2><x_50><y_10></poly></ins>, <ref>cat</ref><ins><poly><x_0><y_30><x_8><y_30><x_8><y_38>"
    "</poly></ins>."
)
RUNS = "The target categories include <ref>road</ref><ref>car</ref>.<mask>(0,5),(1,3),(0,4)</mask>"
PARSERS = {
    "grounding": parse_grounding,
    "detection": parse_detection,
    "polygon": parse_polygons,
    "pose": parse_pose,
    "counting": parse_counting,
    "run length": lambda text, image_size, resized_size: parse_run_length(text, image_size),
}


def test_boxes_are_scaled_to_the_image():
    found = parse_grounding("at <box><x_10><y_30><x_50><y_4></box>, or so", *SIZES)
    assert found["boxes"].tolist() == [[5.0, 2.0, 25.0, 15.0]]  # corners in order
    assert found["unparsed"] is None and found["boxes"].dtype == torch.float32
    beyond = parse_grounding("<box><x_10><y_30><x_2000><y_2000></box>", *SIZES)
    assert beyond["boxes"].tolist() == [[5.0, 15.0, 30.0, 20.0]]
    outside = parse_grounding("<box><x_500><y_30><x_600><y_39></box>", *SIZES)
    assert outside["boxes"].shape == (0, 4)


def test_every_box_has_its_name():
    found = parse_detection(DETECTION, *SIZES)
    assert found["labels"] == ["bowl", "bowl", "red cup"]
    assert found["boxes"].tolist() == [[1, 2, 5, 6], [10, 2, 15, 6], [0, 0, 29.5, 19.5]]


def test_polygons_of_an_instance_are_one_object():
    found = parse_polygons(POLYGONS, *SIZES)
    assert [len(polygons) for polygons in found["polygons"]] == [2, 1]
    assert found["labels"] == [None, "cat"]
    np.testing.assert_array_equal(found["polygons"][0][0], [[1, 1], [11, 1], [11, 11], [1, 11]])
    assert found["boxes"].tolist() == [[1, 1, 25, 11], [0, 15, 4, 19]]
    mask = found["masks"][0]
    assert mask.shape == (20, 30) and mask[1:12, 1:12].all() and not mask[13:].any() and mask[2, 24]
    assert parse_polygons("<poly><x_2><y_2><x_4><y_2><x_4><y_6></poly>", *SIZES)["masks"].shape[0] == 1


def test_people_have_sixteen_key_points():
    found = parse_pose(POSE, *SIZES)
    assert found["keypoints"].shape == (2, 16, 3) and len(MPII_KEYPOINTS) == len(set(MPII_KEYPOINTS)) == 16
    assert found["keypoints"][0, :2].tolist() == [[2, 3, 1], [4, 1, 0]]
    assert found["boxes"].tolist() == [[1, 2, 5, 6]] * 2
    short = parse_pose(POSE.replace("<kpt><x_4><y_6><v_1.0></kpt>", "", 1), *SIZES)
    assert short["keypoints"].shape == (1, 16, 3) and short["unparsed"].startswith("<person>")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (DETECTION, 3),
        ("<x_1><y_2> and <x_3><y_4>", 2),
        ("There are 12 chairs.", 12),
        ("I see Seven of them", 7),
        ("There are twenty-five chairs.", 25),
        ("Thirty chairs, forty at most", 30),
        ("1,234 people", 1234),
        ("1, 2 or 3", 1),
        ("three hundred", None),
        ("twenty five thousand", None),
        ("There are 12345678901 grains", 12345678901),
        ("1,000,000,000,000 or so", 10**12),
        ("9" * 5000, None),
        ("1" + ",000" * 5000, None),
        ("a " * 1000 + "two cats", 2),
        ("none that I know", None),
        ("", None),
    ],
)
def test_counting(text, count):
    assert parse_counting(text, *SIZES)["count"] == count


def test_run_lengths_fill_the_image_row_by_row():
    found = parse_run_length(RUNS, (3, 4))
    assert found["segmentation"].tolist() == [[0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]]
    assert found["labels"] == {0: "road", 1: "car"} and found["unparsed"] is None
    core = "The results are 0 for <ref><BG></ref> and 1 for <ref><FG></ref>.<mask>(0,2),(1,2)</mask>"
    assert parse_run_length(core, (2, 2))["segmentation"].tolist() == [[0, 0], [1, 1]]
    assert parse_run_length(core, (2, 2))["labels"] == {0: "<BG>", 1: "<FG>"}
    early = parse_run_length(RUNS.removesuffix("(0,4)</mask>") + "(0,", (3, 4))
    assert early["segmentation"].tolist() == [[0, 0, 0, 0], [0, 1, 1, 1], [-1, -1, -1, -1]]
    assert early["unparsed"] == "(0,"
    assert parse_run_length(RUNS.replace("(0,4)", "(0,999999999)"), (3, 4))["segmentation"][2].tolist() == [0] * 4
    assert (parse_run_length(RUNS.replace("(1,3)", "(7,3)"), (3, 4))["segmentation"][1, 1:] == -1).all()
    assert (parse_run_length("nothing", (3, 4))["segmentation"] == -1).all()


@settings(max_examples=100, deadline=None)
@given(
    before=st.lists(st.sampled_from("there are about, roughly some in view: only".split()), max_size=50),
    number=st.integers(0, 10**18 - 1),
    form=st.sampled_from(["{}", "{:,}"]),
    after=st.lists(st.sampled_from("cats dogs 3 seven and more".split()), max_size=5),
)
def test_the_first_number_is_the_count(before, number, form, after):
    text = " ".join([*before, form.format(number), *after])
    assert parse_counting(text, *SIZES)["count"] == number


def test_a_run_that_cannot_be_read_ends_the_map():
    """Where the next run begins is not known then: it must not move up."""
    found = parse_run_length("<ref>road</ref><ref>car</ref><mask>(0,2),(1,x),(1,2)</mask>", (1, 6))
    assert found["segmentation"].tolist() == [[0, 0, -1, -1, -1, -1]] and found["unparsed"] == "(1,x),(1,2)"
    long = parse_run_length(f"<ref>road</ref><ref>car</ref><mask>(0,2), ( 1, {'9' * 5000})</mask>", (1, 4))
    assert long["segmentation"].tolist() == [[0, 0, 1, 1]] and long["unparsed"] is None


def test_masks_of_polygons_are_drawn_when_asked_for():
    """A megabyte of polygons in a large image: all masks at once would be a terabyte."""
    piece = "<ins><poly><x_2><y_2><x_22><y_2><x_22><y_22></poly></ins>"
    found = parse_polygons(piece * 20_000, (8000, 6000), (8000, 6000))
    masks = found["masks"]
    assert masks.shape == (20_000, 8000, 6000) and len(masks) == len(found["polygons"]) == 20_000
    assert masks[7].dtype == torch.bool and int(masks[-1].sum()) == 231  # a triangle with two edges of 21 pixels
    few = parse_polygons(POLYGONS, *SIZES)["masks"]
    assert torch.stack(list(few)).shape == (2, 20, 30) and torch.equal(few[1:][0], few[1])
    with pytest.raises(IndexError):
        few[2]
    endless = parse_polygons("<poly>" + "<x_1><y_2><x_3><y_5>" * 10_000 + "</poly>" + POLYGONS, *SIZES)
    assert len(endless["polygons"]) == 2 and endless["unparsed"].startswith("<poly><x_1>")


@pytest.mark.parametrize("parse", [parse_detection, parse_polygons, parse_pose, parse_counting])
def test_a_text_that_is_cut_off_gives_what_is_complete(parse):
    text = {parse_detection: DETECTION, parse_polygons: POLYGONS, parse_pose: POSE, parse_counting: DETECTION}[parse]
    name = {parse_polygons: "boxes", parse_pose: "keypoints"}.get(parse, "boxes")
    whole = parse(text, *SIZES)[name]
    counts = []
    for end in range(len(text) + 1):
        part = parse(text[:end], *SIZES)
        counts.append(len(part[name]))
        torch.testing.assert_close(part[name], whole[: len(part[name])])
    assert counts == sorted(counts) and counts[-1] == len(whole)
    assert parse(text, *SIZES)["unparsed"] is None
    assert parse(text[: text.rindex("</")], *SIZES)["unparsed"] is not None


PIECES = "<ref> </ref> <box> </box> <ins> </ins> <poly> </poly> <person> </person> <kpt> </kpt> <mask> </mask>".split()
PIECES += [
    "<x_3>",
    "<y_59>",
    "<x_2047>",
    "<y_999999999999>",
    "<v_1.0>",
    "<v_0.0>",
    "cat",
    "<",
    "(0,5)",
    "(1,",
    "7",
    " ",
    "9" * 5000,
    "1" + ",000" * 2000,
    "(" + "9" * 5000 + ",5)",
    "(0," + "9" * 5000 + ")",
]


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=40))
@example(pieces=["<ins>", "<box>", "<x_3>", "<y_59>", "<x_1>", "<y_2>", "</box>", "</ins>"])
@example(pieces=["<person>", "<kpt>", "<x_3>", "<y_59>", "</kpt>", "</person>"])
def test_no_text_breaks_a_parser(pieces):
    text = "".join(pieces)
    for parse in PARSERS.values():
        found = parse(text, (20, 30), (64, 64))
        assert found["unparsed"] is None or isinstance(found["unparsed"], str)
        if "boxes" in found:
            boxes = found["boxes"]
            assert boxes.shape[1:] == (4,) and (boxes >= 0).all()
            assert (boxes[:, :2] <= boxes[:, 2:]).all() and (boxes[:, 2:] <= torch.tensor([30.0, 20.0])).all()


@pytest.mark.parametrize(
    "piece",
    [
        "<box>",
        "<ref>",
        "</ref>",
        "<x_1>",
        "<y_1>",
        "<x_1><y_1>",
        "<ins><poly>",
        "<person>",
        "(1,1),",
        "<kpt>",
        "1",
        "a ",
        ",111",
        "(0,0),",
        "( ",
    ],
)
def test_a_long_text_is_read_once(piece):
    """A megabyte of what a model stuck in a loop writes: a parser that is not linear would not come back."""
    text = "<ref>a</ref><mask>" + piece * (1_000_000 // len(piece))
    for parse in PARSERS.values():
        assert len(parse(text, (20, 30), (64, 64))["unparsed"] or "") <= 1000


@pytest.mark.parametrize("parse", list(PARSERS.values()), ids=list(PARSERS))
def test_bad_arguments_are_named(parse):
    with pytest.raises(TypeError, match="`text` must be a string, got int"):
        parse(3, (20, 30), (64, 64))
    with pytest.raises(ValueError, match="`image_size` must be"):
        parse("", (0, 30), (64, 64))


# ---- COCO's run lengths ----


@settings(max_examples=200, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), share=st.floats(0, 1), seed=st.integers(0, 999))
@example(height=1, width=1, share=1.0, seed=0)
def test_run_lengths_come_back(height, width, share, seed):
    mask = np.random.default_rng(seed).random((height, width)) < share
    encoded = encode_rle(mask)
    assert encoded["size"] == [height, width]
    np.testing.assert_array_equal(decode_rle(encoded), mask)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_run_lengths_are_those_of_pycocotools(share):
    coco = pytest.importorskip("pycocotools.mask")
    generator = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 5), (64, 48), (300, 400)):
        mask = generator.random((height, width)) < share
        mask[height // 3 : height // 2, width // 3 :] ^= True
        expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert encode_rle(mask)["counts"].encode() == expected["counts"]
        np.testing.assert_array_equal(decode_rle(expected), mask)
        np.testing.assert_array_equal(coco.decode(encode_rle(mask)).astype(bool), mask)


def to_counts(values):
    """Numbers as `encode_rle` writes them, each as it is: differences and their groups of 5 bits are the caller's."""
    text = ""
    for value in values:
        more = True
        while more:
            low, value = value & 31, value >> 5
            more = value != (-1 if low & 16 else 0)
            text += chr(48 + (low | 32 if more else low))
    return text


def test_run_lengths_that_cannot_be_read_are_named():
    with pytest.raises(ValueError, match="`mask` must be booleans"):
        encode_rle(np.zeros((2, 2)))
    for counts in ("\x00\x01", "o", "PPPPPPPPPPPPPPPPPPPPPPPP0", "4", "", "\u00e9", "\ud800"):
        with pytest.raises(ValueError, match="`counts`"):
            decode_rle({"size": [2, 3], "counts": counts})
    for rle in (None, "6", {}, {"size": [2, 3]}, {"size": [2, 3], "counts": [6]}, {"counts": "6"}):
        with pytest.raises(TypeError, match="`rle` must be a dict"):
            decode_rle(rle)
    for size in (3, None, [2], [2, 3, 1], [2.5, 3], ["2", "3"], [-2, -3], [-6, 1], [10**9, 10**9], [2**40, 2**24]):
        with pytest.raises(ValueError, match="`size` must be"):
            decode_rle({"size": size, "counts": "6"})
    assert decode_rle({"size": (2, 3), "counts": b"6"}).tolist() == [[False] * 3] * 2
    with pytest.raises(ValueError, match="`max_pixels` = 5 "):
        decode_rle({"size": [2, 3], "counts": "6"}, max_pixels=5)
    for shape in ((0, 3), (2, 0), (0, 0)):
        assert decode_rle(encode_rle(np.zeros(shape, bool))).shape == shape


@pytest.mark.parametrize(
    "values",
    [
        [2**62, 2**62, 2**62, 2**62 + 6],  # the sum wraps to 6
        [2**63 - 1, 2**63 - 1, 8],
        [2**40, -(2**40) + 6],
        [-6, 12],
        [3, 3, 3, -3],
        [7],
        [5],
        [0] * 500 + [2**33] * 500,
    ],
)
def test_hostile_run_lengths_write_nothing(values):
    with pytest.raises(ValueError, match="`counts`"):
        decode_rle({"size": [2, 3], "counts": to_counts(values)})


@settings(max_examples=300, deadline=None)
@given(
    counts=st.binary(max_size=60)
    | st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=60)
    | st.lists(st.integers(-(2**64), 2**64) | st.integers(-40, 40), max_size=12).map(to_counts),
    size=st.tuples(st.integers(0, 12), st.integers(0, 12)),
)
def test_run_lengths_are_a_mask_or_refused(counts, size):
    try:
        mask = decode_rle({"size": size, "counts": counts})
    except ValueError as error:
        assert "`counts`" in str(error)
        return
    assert mask.shape == size and mask.dtype == np.bool_
    np.testing.assert_array_equal(decode_rle(encode_rle(mask)), mask)
