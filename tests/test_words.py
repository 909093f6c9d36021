"""What maps say in words at each pixel, and which tasks a tokenizer has the tokens for."""

import numpy as np
import pytest
import torch

from densemllm import DenseMLLMProcessor, DensePrediction
from densemllm.tasks_densemllm import (
    TASKS,
    Classes,
    Depth,
    Foreground,
    Normals,
    OpenSet,
    Panoptic,
    add_dense_tokens,
)
from tiny import make_processor, make_tokenizer


def words_of(task, **maps) -> list[list[str]]:
    found = TASKS[task.name].to_words(DensePrediction(**maps))
    return np.array(found.words)[found.places].tolist()


def test_classes_and_objects_have_their_names():
    rows = [{"id": 4, "label": "chair"}, {"id": 7, "label": "chair"}, {"id": 9, "label": "wall"}]
    segmentation = torch.tensor([[4, 7, -1], [9, 9, 4]])
    for task in (Classes, Panoptic, OpenSet):
        assert words_of(task, segmentation=segmentation, segments_info=rows) == [
            ["chair", "chair", "none of them"], ["wall", "wall", "chair"],
        ]  # fmt: skip
    # Two chairs are two rows of a legend.
    found = TASKS[Panoptic.name].to_words(DensePrediction(segmentation=segmentation, segments_info=rows))
    assert found.words.count("chair") == 2 and found.values is None


def test_metres_have_two_places_and_count():
    depth = torch.tensor([[2.004, 1.996], [0.5, 11.25]])
    assert words_of(Depth, predicted_depth=depth) == [["2.00 m", "2.00 m"], ["0.50 m", "11.25 m"]]
    found = TASKS[Depth.name].to_words(DensePrediction(predicted_depth=depth))
    assert found.values.tolist() == [0.5, 2.0, 11.25]


def test_a_mask_says_where_something_was_found():
    assert words_of(Foreground, mask=torch.tensor([[True, False]])) == [["found", "not found"]]
    assert words_of(Foreground, mask=torch.tensor([[False, False]])) == [["not found", "not found"]]


@pytest.mark.parametrize(
    ("normal", "words"),
    [
        ((0, 1, 0), "up"), ((0, -1, 0), "down"), ((0, 0, 1), "to the camera"), ((-1, 0, 0), "left"),
        ((1, 0, 1), "right, to the camera"), ((0.1, 0.99, 0.1), "up"), ((1, 1, 1), "up, right, to the camera"),
        ((0, 0, 0), "unknown"), ((0, 0, -1), "away"),
    ],
)  # fmt: skip
def test_normals_say_where_a_surface_looks(normal, words):
    normal = torch.tensor(normal, dtype=torch.float32)
    normal = normal / normal.norm().clamp_min(1e-6)
    assert words_of(Normals, normals=normal.expand(2, 3, 3)) == [[words] * 3] * 2


def test_a_task_is_known_by_its_tokens():
    whole = make_processor()
    plain = DenseMLLMProcessor(whole.image_processor, make_tokenizer(num_coordinates=0), num_depth_bins=16)
    assert {name for name, task in TASKS.items() if task.is_known(whole)} == set(TASKS) - {"codes"}
    add_dense_tokens(whole.tokenizer, num_image_codes=8)
    whole.forget_tokens()
    assert {name for name, task in TASKS.items() if task.is_known(whole)} == set(TASKS)
    assert {name for name, task in TASKS.items() if task.is_known(plain)} == {"segmentation", "depth", "normals"}
    plain.referring_prompt = "find {text}"
    assert TASKS[Foreground.name].is_known(plain) and not TASKS[OpenSet.name].is_known(plain)
