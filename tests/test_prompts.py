"""Samples as questions: what is asked about them, in the tasks' words, and what is true."""

import pickle

import numpy as np
import PIL.Image
import pytest

from densemllm.evaluation.measured_words import person_place
from densemllm.object_tasks_densemllm import Foreground
from densemllm.tasks_densemllm import Classes
from densemllm.text_tasks_densemllm import COUNT_INSTRUCTION, COUNTING, DETECTION, GROUNDING, POLYGON, POSE, TEXT_TASKS
from densemllm.training.datasets import DenseDataset, DenseSource
from densemllm.training.prompts import QUESTIONS, TRUTHS, choose_questions, make_prompts, need_measured
from densemllm.training.rewards import REWARDS, columns_of, get_rewards
from repository import require
from tiny import ID2LABEL, make_image, make_processor


require("training/prompts.py")


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def a_map(**corners) -> np.ndarray:
    """A map of 32x48 zeros with numbers in boxes."""
    values = np.zeros((32, 48), dtype=np.uint8)
    for number, (x0, y0, x1, y1) in corners.items():
        values[y0:y1, x0:x1] = int(number[1:])
    return values


def asked(processor, row: dict, kinds=None, **source) -> list[dict]:
    options = {"id2label": ID2LABEL, "is_measured": True} | source
    data = make_prompts(DenseDataset(DenseSource([row], **options)), processor, kinds)
    return [data[place] for place in range(len(data))]


def text_of(row: dict) -> str:
    (message,) = row["prompt"]
    assert message["role"] == "user" and message["content"][0] == {"type": "image"}
    return message["content"][1]["text"]


def truth_of(row: dict) -> dict:
    return {name: row[name] for name in TRUTHS if row[name] is not None}


def test_each_truth_has_a_reward():
    assert {truth for reward in REWARDS.values() for truth in columns_of([reward])} == set(TRUTHS)
    assert choose_questions(columns_of(get_rewards(["class_list_iou", "format"]))) == [Classes.name]
    assert choose_questions(columns_of(get_rewards(["format"]))) == list(QUESTIONS)
    assert choose_questions({"true_box"}, [COUNTING]) == [COUNTING]
    assert need_measured([GROUNDING, COUNTING]) and not need_measured([Classes.name, GROUNDING, POLYGON])
    for kinds in ([], ["sums"]):
        with pytest.raises(ValueError, match="`questions`"):
            choose_questions((), kinds)


def test_classes(processor):
    row = {"image": make_image(32, 48), "segmentation": a_map(_1=(0, 0, 9, 9), _255=(9, 9, 20, 20))}
    (found,) = asked(processor, row)
    assert text_of(found) == Classes.question and truth_of(found) == {"true_classes": ["wall", "floor"]}
    assert found["image_size"] == (32, 48) and found["resized_size"] == (32, 48) and found["place"] == 0


def test_the_model_sees_an_image_as_maps_are_asked_for(processor):
    row = {"image": make_image(32, 48), "segmentation": a_map(), "focal_length": 50.0}
    (found,) = asked(processor, row, depth_range="road")  # whose focal length is 100
    assert found["image"].size == (96, 64) and found["image_size"] == (32, 48) and found["resized_size"] == (64, 96)
    (found,) = asked(processor, row, depth_range="room")
    assert found["image"].size == (48, 32)


@pytest.mark.parametrize("drawn", [False, True])
def test_referred_objects(processor, drawn):
    row = {"image": make_image(32, 48), "expression": "the cat", "mask": a_map(_1=(8, 4, 20, 12)) > 0}
    if drawn:
        row = {"image": row["image"], "expressions": ["the cat"], "expression_instances": [7]}
        row["instances"] = a_map(_7=(8, 4, 20, 12), _3=(0, 20, 9, 30))
    box, outline = asked(processor, row)
    assert text_of(box) == Foreground.question.format(text="the cat")
    assert truth_of(box) == {"true_box": (8.0, 4.0, 20.0, 12.0)}
    assert text_of(outline) == TEXT_TASKS[POLYGON].question.format(text="the cat")
    assert (truth_of(outline)["true_mask"] == (a_map(_1=(8, 4, 20, 12)) > 0)).all()
    (found,) = asked(processor, row, [GROUNDING])
    assert truth_of(found) == truth_of(box)


def test_listed_objects(processor):
    objects = {"bbox": [[2, 3, 10, 20], [5, 5, 4, 4]], "category": [2, 1], "iscrowd": [0, 1]}
    (found,) = asked(processor, {"image": make_image(32, 48), "objects": objects})
    assert text_of(found) == TEXT_TASKS[DETECTION].plain_question
    expected = {"boxes": [[2, 3, 12, 23], [5, 5, 9, 9]], "labels": ["red ball", "floor"], "iscrowd": [0, 1]}
    assert truth_of(found) == {"true_objects": expected}


def test_drawn_objects_are_those_of_things(processor):
    row = {
        "image": make_image(32, 48),
        "segmentation": a_map(_2=(0, 0, 20, 20), _1=(30, 0, 40, 20)),
        "instances": a_map(_1=(2, 2, 9, 9), _2=(10, 2, 22, 12), _3=(31, 0, 39, 9)),  # the third one is floor
    }
    found = [truth_of(row) for row in asked(processor, row, thing_labels=["red ball"])]
    objects = {"boxes": [[2, 2, 9, 9], [10, 2, 22, 12]], "labels": ["red ball"] * 2, "iscrowd": [0, 0]}
    assert {"true_objects": objects} in found and len(found) == 2
    assert len(asked(processor, row)) == 1  # nobody says what is told apart


def test_counts(processor):
    (found,) = asked(processor, {"image": make_image(32, 48), "question": " How many cats? ", "answer": 3})
    assert text_of(found) == f"How many cats? {COUNT_INSTRUCTION}" and truth_of(found) == {"true_count": 3}


def test_poses_are_asked_of_a_crop(processor):
    joints = [[10.0 + number, 12.0, 1] for number in range(16)]
    person = {"box": [8, 8, 28, 24], "keypoints": joints, "head_size": 4.0}
    image = make_image(32, 48)
    (found,) = asked(processor, {"image": image, "person": person})
    x, y, *_ = place = person_place(person["box"], image.size)
    assert text_of(found) == TEXT_TASKS[POSE].plain_question
    assert np.array_equal(found["image"], image.crop(place)) and found["image_size"] == (place[3] - y, place[2] - x)
    true = truth_of(found)["true_person"]
    assert true["box"] == [8 - x, 8 - y, 28 - x, 24 - y] and true["keypoints"][1] == [11 - x, 12 - y, 1]


def test_a_sample_gives_a_question_for_each_annotation(processor):
    row = {
        "image": make_image(32, 48), "segmentation": a_map(), "mask": a_map(_1=(0, 0, 9, 9)) > 0,
        "expression": "a cat", "question": "How many?", "answer": 1,
    }  # fmt: skip
    kinds = [set(truth_of(found)) for found in asked(processor, row)]
    assert kinds == [{"true_classes"}, {"true_box"}, {"true_mask"}, {"true_count"}]
    assert len(asked(processor, row, columns=["image", "segmentation"])) == 1
    depth = {"image": row["image"], "depth": np.ones((32, 48), np.float32)}
    with pytest.raises(ValueError, match="question of the kinds"):
        asked(processor, depth)


def test_a_row_that_lacks_an_annotation_is_asked_something_else(processor):
    nothing = PIL.Image.fromarray(np.full((32, 48), 255, np.uint8))
    rows = [
        {"image": make_image(32, 48, 0), "segmentation": nothing, "question": "How many?", "answer": 2},
        {"image": make_image(32, 48, 1), "segmentation": nothing, "question": None, "answer": None},
        {"image": make_image(32, 48, 2), "segmentation": a_map(), "question": None, "answer": None},
    ]
    data = make_prompts(DenseDataset(DenseSource(rows, id2label=ID2LABEL, is_measured=True)), processor)
    found = [(row["place"], *truth_of(row)) for row in (data[place] for place in range(len(data)))]
    assert len(data) == 6 and found[:2] == [(0, "true_count")] * 2
    assert found[2:] == [(2, "true_classes")] * 4  # the second row can't be asked anything: the next one is
    empty = make_prompts(DenseDataset(DenseSource(rows[1:2], id2label=ID2LABEL, is_measured=True)), processor)
    with pytest.raises(ValueError, match="no sample is annotated"):
        empty[0]


def test_rows_are_read_when_they_are_asked_for(processor):
    reads = []

    class Rows(list):
        def __getitem__(self, place):
            reads.append(place)
            return super().__getitem__(place)

    rows = Rows({"image": make_image(32, 48, seed), "segmentation": a_map()} for seed in range(3))
    source = DenseSource(rows, is_measured=True, id2label=ID2LABEL)
    samples = DenseDataset(source)
    data = make_prompts(samples, processor)
    reads.clear()
    assert np.array_equal(data[1]["image"], rows[1]["image"]) and set(reads) == {1}
    reads.clear()
    assert data[[1, 1, 2]]["place"] == [1, 1, 2] and reads == [2]  # once for all answers
    samples.set_epoch(1)
    assert data[1]["place"] == 1 and reads == [2, 1]
    source.data = list(rows)
    reader = pickle.loads(pickle.dumps(data.format["format_kwargs"]["transform"]))
    assert reader.row(2, Classes.name)["place"] == 2
