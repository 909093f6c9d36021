"""Rewards of answers in words, worked out by hand; what must not pay off; and whatever a model may make up."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densemllm.training import rewards
from densemllm.training.rewards import REWARDS, columns_of, get_rewards
from repository import require


require("training/rewards.py")

SIZE = {"image_size": [(100, 200)], "resized_size": [(50, 100)]}  # coordinates count two pixels each


def refs(*names: str) -> str:
    return "The target categories include " + "".join(f"<ref>{name}</ref>" for name in names) + "."


def box(x0: int, y0: int, x1: int, y1: int) -> str:
    return f"<box><x_{x0}><y_{y0}><x_{x1}><y_{y1}></box>"


def polygon(*points: tuple[int, int]) -> str:
    return "<poly>" + "".join(f"<x_{x}><y_{y}>" for x, y in points) + "</poly>"


def value(name: str, answer: str, **columns) -> float | None:
    (found,) = REWARDS[name]([answer], **{column: [true] for column, true in columns.items()}, **SIZE)
    return found


# ---- worked out by hand ----


def test_class_list_iou():
    def iou(*names):
        return value("class_list_iou", refs(*names), true_classes=["wall", "Floor", "red ball"])

    assert iou("wall", "floor", "red ball") == 1
    assert iou("red  ball", "WALL", "floor") == 1  # neither order nor spelling counts
    assert iou("wall", "floor") == pytest.approx(2 / 3)
    assert iou("wall", "floor", "red ball", "sky") == pytest.approx(3 / 4)
    assert iou("sky") == iou() == 0


def test_box_iou():
    def iou(*boxes):
        return value("box_iou", "".join(box(*own) for own in boxes), true_box=(20, 20, 60, 40))

    assert iou((10, 10, 30, 20)) == 1
    assert iou((10, 10, 26, 20)) == 1  # an IoU of 0.8
    assert iou((10, 10, 18, 20)) == pytest.approx(0.8)  # of 0.4
    assert iou((18, 10, 38, 20)) == pytest.approx(2 * 24 / 56)
    assert iou((60, 10, 70, 20)) == iou() == 0
    assert iou((10, 10, 30, 20), (60, 10, 70, 20)) == pytest.approx(1 / 2)


def test_detection_map():
    true = {"boxes": [[0, 0, 40, 40], [60, 0, 100, 40], [0, 60, 40, 100]], "labels": ["Cup", "cup", "table"]}

    def precision(answer, **more):
        return value("detection_map", answer, true_objects=true | more)

    cups, table = "<ref>cup</ref>" + box(0, 0, 20, 20) + box(30, 0, 50, 20), "<ref>table</ref>" + box(0, 30, 20, 50)
    assert precision(cups + table) == precision(table + cups) == 1
    assert precision(cups) == pytest.approx(1 / 2)
    # One of two cups: a recall of a half, and a precision of 1.
    assert precision("<ref>cup</ref>" + box(0, 0, 20, 20) + table) == pytest.approx((1 / 2 + 1) / 2)
    # Half of its boxes are right: a precision of a half.
    assert precision(cups + box(70, 0, 90, 20) + box(70, 30, 90, 50) + table) == pytest.approx((1 / 2 + 1) / 2)
    # An IoU of 0.8 is enough for seven of the ten thresholds.
    assert precision(cups + "<ref>table</ref>" + box(0, 30, 16, 50)) == pytest.approx((1 + 0.7) / 2)
    # A class that isn't there has nothing, and counts.
    assert precision(cups + table + "<ref>lamp</ref>" + box(70, 0, 90, 20)) == pytest.approx(2 / 3)
    assert precision(box(0, 0, 20, 20) + cups + table) == pytest.approx(2 / 3)  # without a name
    # In a crowd of its class a box doesn't count, in that of another one it does.
    crowd = {"iscrowd": [0, 1, 0]}
    assert precision(cups + table, **crowd) == 1
    assert precision(cups + table + box(30, 0, 50, 20), **crowd) == pytest.approx((1 + 1 / 2) / 2)
    assert precision("nothing") == 0


def test_polygon_iou():
    mask = np.zeros((100, 200), dtype=bool)
    mask[20:61, 20:61] = True  # an outline is part of what it goes around

    def iou(*polygons):
        return value("polygon_iou", "".join(f"<ins>{polygon(*own)}</ins>" for own in polygons), true_mask=mask)

    square = ((10, 10), (30, 10), (30, 30), (10, 30))
    left, right = ((10, 10), (20, 10), (20, 30), (10, 30)), ((20, 10), (30, 10), (30, 30), (20, 30))
    assert iou(square) == iou(left, right) == iou(square, square) == 1
    assert iou(left) == pytest.approx(21 / 41)
    assert iou(((50, 10), (60, 10), (60, 30))) == iou() == 0


def test_pose_pck():
    joints = [[2.0 * number, 40.0, 1.0] for number in range(16)]
    joints[0][2] = 0  # isn't annotated
    person = {"box": [0, 0, 40, 80], "keypoints": joints, "head_size": 8.0}

    def pck(*shifts, x=0):
        people = []
        for shift in shifts:
            points = "".join(f"<kpt><x_{number + x}><y_{20 + shift(number)}><v_1.0></kpt>" for number in range(16))
            people.append(f"<person>{box(x, 0, 20 + x, 40)}{points}</person>")
        return value("pose_pck", "".join(people), true_person=person)

    assert pck(lambda number: 0) == pck(lambda number: 2) == 1  # 4 pixels are half of the head
    assert pck(lambda number: 3) == 0
    # Wrong are one that isn't annotated, pelvis and thorax, which don't count, and one more of thirteen.
    assert pck(lambda number: 9 * (number in (0, 6, 7, 8))) == pytest.approx(12 / 13)
    assert pck(lambda number: 0, lambda number: 0) == 1 / 2
    assert pck() == 0
    assert value("pose_pck", "", true_person=None) is None


@pytest.mark.parametrize(
    ("answer", "true", "expected"),
    [
        ("3", 3, 1), ("There are three.", 3, 1), ("4", 3, 0), ("0", 0, 1), ("none of them", 3, 0), ("11", 10, 0),
        ("20", 20, 1), ("15", 20, 0.75), ("25", 20, 0.75), ("50", 20, 0), (box(0, 0, 9, 9) * 18, 20, 0.9),
    ],
)  # fmt: skip
def test_count_accuracy(answer, true, expected):
    size = SIZE | {"image_size": [(100, 200)]}
    assert REWARDS["count_accuracy"]([answer], true_count=[true], **size) == [pytest.approx(expected)]


@pytest.mark.parametrize(
    ("column", "true", "answer", "expected"),
    [
        ("true_classes", ["wall"], refs("wall"), 1), ("true_classes", ["wall"], refs("sky"), 1),
        ("true_classes", ["wall"], "wall", 0), ("true_classes", ["wall"], refs("wall") + "<ref>flo", 0),
        ("true_classes", ["wall"], "<ref></ref>", 0),
        ("true_box", (0, 0, 9, 9), box(0, 0, 9, 9), 1), ("true_box", (0, 0, 9, 9), "<box><x_0><y_0></box>", 0),
        ("true_objects", {}, "<ref>cup</ref>" + box(0, 0, 9, 9), 1), ("true_objects", {}, box(0, 0, 9, 9), 0),
        ("true_mask", np.ones(1), polygon((0, 0), (9, 0), (9, 9)), 1), ("true_mask", np.ones(1), polygon((0, 0)), 0),
        ("true_count", 3, "seven", 1), ("true_count", 3, "many", 0), ("true_person", {}, "<person></person>", 0),
        ("true_count", None, "seven", None),
    ],
)  # fmt: skip
def test_format(column, true, answer, expected):
    assert value("format", answer, **{column: true}) == expected


def test_repetition():
    assert value("repetition", "a b c d") == value("repetition", "a") == 1
    assert value("repetition", "") == 0
    assert value("repetition", "a b c a b c") == 3 / 4  # the fourth stretch is the first one
    assert value("repetition", "a " * 12) == 1 / 10


def test_language():
    def share(answer, question="Wie viele Stühle?"):
        prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        return value("language", answer, prompts=prompt)

    assert share("drei chairs") == 1 and share("три") == 0
    assert share("zwei два") == pytest.approx(4 / 7)
    assert share("три", "сколько?") == 1
    assert share(box(0, 0, 9, 9)) == share("3") == 1  # a tag's letters are of no language
    assert share(" ") == 0 and share("3", "?") is None


def test_what_a_question_is_not_about_has_no_reward():
    for name, column in (("class_list_iou", "true_classes"), ("box_iou", "true_box"), ("polygon_iou", "true_mask")):
        assert value(name, "", **{column: None}) is None
    assert value("class_list_iou", "", true_classes=[]) is None  # nothing is known to be there
    assert value("format", "") is None


def test_rewards_by_name():
    chosen = get_rewards(["class_list_iou", "format"])
    assert [reward.__name__ for reward in chosen] == ["class_list_iou", "format"]
    assert columns_of(chosen) == {"true_classes"} and columns_of(get_rewards(["format", "repetition"])) == set()
    for names in ([], ["iou"], ["format", "format"]):
        with pytest.raises(ValueError, match="reward_funcs"):
            get_rewards(names)


def test_completions_are_texts_or_chats():
    chats = [[{"role": "assistant", "content": refs("wall")}], [{"role": "assistant", "content": None}]]
    assert rewards.class_list_iou(chats, true_classes=[["wall"], ["wall"]]) == [1, 0]
    parts = [[{"role": "assistant", "content": [{"type": "text", "text": refs("wall")}]}]]
    assert rewards.class_list_iou(parts, true_classes=[["wall"]]) == [1]


# ---- what pays off, and must not ----


def test_longer_lists_and_repeated_names_are_penalised():
    def iou(*names):
        return value("class_list_iou", refs(*names), true_classes=["wall", "floor", "chair"])

    honest, vocabulary = iou("wall", "floor"), ["wall", "floor", "chair", *(f"class {number}" for number in range(40))]
    assert iou(*vocabulary) < honest / 5  # every name that there is
    repeated = [iou("wall", "floor", *["wall"] * times) for times in (0, 1, 5, 50)]
    assert repeated == sorted(repeated, reverse=True) and len(set(repeated)) == 4 and repeated[-1] < honest / 10
    assert value("class_list_iou", refs("wall") + "<ref>", true_classes=["wall"]) == 1 / 2
    # Another word of the same length doesn't cost more than a repeated one: there is nothing to gain from either.
    assert iou("wall", "floor", "wall") == iou("wall", "floor", "sky")


def test_more_boxes_are_penalised():
    true, right = {"boxes": [[0, 0, 40, 40]], "labels": ["cup"]}, box(0, 0, 20, 20)
    for name, columns in (("detection_map", {"true_objects": true}), ("box_iou", {"true_box": (0, 0, 40, 40)})):
        for more in (right, box(50, 0, 70, 20)):  # the same again, or elsewhere
            values = [value(name, "<ref>cup</ref>" + right + more * times, **columns) for times in (0, 1, 5)]
            assert values == sorted(values, reverse=True) and values[2] == pytest.approx(1 / 6)
    many = "<ref>cup</ref>" + right + "".join(box(x, y, x + 9, y + 9) for x in range(50) for y in range(20, 30))
    assert value("detection_map", many, true_objects=true) == pytest.approx(1 / 501)
    everywhere = "<ins>" + polygon((0, 0), (99, 0), (99, 49), (0, 49)) + "</ins>"
    mask = np.zeros((100, 200), dtype=bool)
    mask[:20, :20] = True
    assert value("polygon_iou", everywhere, true_mask=mask) == pytest.approx(400 / 20000, rel=0.05)


# ---- anything at all ----


FRAGMENTS = (
    "<ref>", "</ref>", "<box>", "</box>", "<ins>", "</ins>", "<poly>", "</poly>", "<person>", "</person>", "<kpt>",
    "</kpt>", "<v_1.0>", "<v_0.0>", "<x_3>", "<y_40>", "<x_999999>", "<y_0>", "<x_>", "wall", "cup", "7", "1,000", "<",
    ">", "ten", "\u0301", "字", "\x00", "\ud800", " ", "9" * 30, box(0, 0, 9, 9), polygon((0, 0), (9, 0), (9, 9)),
    refs("cup"),
)  # fmt: skip
ANSWERS = st.one_of(st.text(max_size=200), st.lists(st.sampled_from(FRAGMENTS), max_size=60).map("".join))
MASK = np.zeros((100, 200), dtype=bool)
MASK[10:50, 10:90] = True
TRUE = {
    "true_classes": ["wall", "cup"],
    "true_box": (10, 10, 90, 50),
    "true_objects": {"boxes": [[10, 10, 90, 50], [0, 0, 9, 9]], "labels": ["cup", "cup"], "iscrowd": [0, 1]},
    "true_mask": MASK,
    "true_count": 7,
    "true_person": {"box": [0, 0, 40, 80], "keypoints": [[2, 40, 1]] * 16, "head_size": 8.0},
    "prompts": "How many?",
}


@settings(max_examples=60, deadline=None)
@given(ANSWERS)
def test_no_answer_is_an_error(answer):
    for name in REWARDS:
        found = value(name, answer, **TRUE)
        assert isinstance(found, float) and 0 <= found <= 1, (name, answer)


def work_of(name: str, answer: str) -> int:
    """How many lines of Python, and calls of anything, a reward takes."""
    count = 0

    def tracer(frame, event, argument):
        nonlocal count
        count += 1
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        value(name, answer, **TRUE)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize(
    "piece",
    [
        "<ref>", "<ref>cup</ref>", "<box>", box(0, 0, 9, 9), "<ins><poly>", polygon((0, 0), (9, 0), (9, 9)),
        "<x_1><y_2>", "<person>", "9", "one ", "<ref>cup</ref>" + box(0, 0, 50, 30), "</ref>", "word ", "<",
    ],
)  # fmt: skip
def test_work_is_linear_in_the_length(name, piece):
    value(name, piece * 10, **TRUE)  # what is done once
    short, long = (work_of(name, piece * count) for count in (60, 240))
    assert long <= 5 * short


def test_names_of_accents_are_not_composed_without_end():
    """Putting n accents in order takes n x n steps; a name that long is not one."""
    name = "a" + "\u0301" * 300 + "\u0323" * 300
    assert value("class_list_iou", refs(name, "cup"), true_classes=["cup"]) == 1 / 2
    assert value("format", refs(name, "cup"), true_classes=["cup"]) == 0
    assert value("detection_map", f"<ref>{name}</ref>" + box(5, 5, 45, 25), true_objects=TRUE["true_objects"]) == 0
