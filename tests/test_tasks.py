"""Tasks as objects: what holds for all of them, normals, panoptic maps, and the wording of the released checkpoint."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from densemllm import DensePrediction, add_dense_tokens
from densemllm.normals_densemllm import bin_directions
from densemllm.tasks_densemllm import MAP_TASKS, SCALES, TASKS, Normals
from densemllm.text_tasks_densemllm import DETECT_THEN_COUNT, TEXT_TASKS
from tiny import DEPTH_RANGES, ID2LABEL, make_image, make_model, make_processor, make_tokenizer


IMAGE = make_image(32, 48)


@pytest.fixture(scope="module")
def processor():
    processor = make_processor()
    add_dense_tokens(processor.tokenizer, processor.num_depth_bins, 64, num_normal_bins=64)
    return processor


@pytest.fixture(scope="module")
def model(processor):
    model = make_model(processor)
    model.set_processor(processor)
    return model


def test_every_task_fills_a_field_of_a_prediction(processor):
    fields = {field.name for field in dataclasses.fields(DensePrediction)}
    for name, task in TASKS.items():
        assert task.name == name and task.map_field in fields
        assert set(task.scales) <= set(SCALES)
    assert list(MAP_TASKS)[:3] == ["segmentation", "predicted_depth", "mask"]
    columns = [task.column for task in TASKS.values() if task.column is not None]
    assert len(set(columns)) == len(columns)


def test_tokens_of_a_task_are_added_on_demand():
    tokenizer = make_tokenizer()
    assert add_dense_tokens(tokenizer, 16, 64) == 0
    assert add_dense_tokens(tokenizer, 16, 64, num_normal_bins=5) == 5
    assert "<normal_5>" in tokenizer.get_vocab() and "<normal_6>" not in tokenizer.get_vocab()
    with pytest.raises(TypeError, match="num_edge_bins"):
        add_dense_tokens(tokenizer, num_edge_bins=3)


# ---- normals ----


def test_normals_of_tokens_come_back(processor):
    ids = processor.scale_token_ids(Normals.scales[0])
    directions = bin_directions(64).numpy()
    chosen = np.array([[3, 40], [63, 20]])  # one direction a cell of 8 pixels
    normals = directions[chosen].repeat(8, axis=0).repeat(8, axis=1)
    encoded = processor.encode_annotations([{"normals": normals}], [[1, 4, 4]])
    for token, place in enumerate(chosen.ravel()):
        targets = set(encoded["dense_targets"][token].tolist()) - {-100}
        assert ids[place] in targets and 4 <= len(targets) <= 8  # the bin and those around it
        assert all(directions[ids.index(target)] @ directions[place] > 0.8 for target in targets)
    ranges = encoded["dense_candidate_ranges"][0]
    assert [tuple(row) for row in ranges.tolist()] == [(ids[0], ids[-1] + 1)]
    logits = torch.full((64, 2, 2), -20.0)
    logits[chosen, [[0, 0], [1, 1]], [[0, 1], [0, 1]]] = 20.0
    found = processor.decode_dense("normals", logits, (16, 16))
    angles = np.degrees(np.arccos(np.clip((found["normals"].numpy() * normals).sum(-1), -1, 1)))
    assert angles[::15, ::15].max() < 1  # the corners, where no other cell is mixed in


def test_normals_that_are_not_annotated_supervise_nothing(processor):
    normals = np.zeros((16, 16, 3), np.float32)
    normals[:8, :8] = (0, 0, 1)
    encoded = processor.encode_annotations([{"normals": normals}], [[1, 4, 4]])
    assert (encoded["dense_candidates"][:, 0] >= 0).tolist() == [True, False, False, False]
    with pytest.raises(ValueError, match=r"annotations\[0\]\['normals'\].*height, width, 3"):
        processor.encode_annotations([{"normals": normals[..., 0]}], [[1, 4, 4]])


@pytest.mark.parametrize("tilt", [-40, 0, 25])
def test_normals_from_depth_are_those_of_a_plane(processor, tilt):
    """A plane through (0, 0, -3 m), turned about the axis that points to the right."""
    size, focal = (64, 64), 60.0
    direction = np.array([0, math.sin(math.radians(tilt)), math.cos(math.radians(tilt))])
    rows, columns = np.mgrid[:16, :16]  # the grid of tokens, 4 pixels each
    rays = np.stack([(columns + 0.5 - 8) * 4 / focal, -(rows + 0.5 - 8) * 4 / focal, -np.ones((16, 16))], axis=-1)
    metres = (np.array([0, 0, -3.0]) @ direction) / (rays @ direction)
    row = DEPTH_RANGES["room"]
    place = (metres - row["min_depth"]) / (row["max_depth"] - row["min_depth"]) * 16 + 0.5  # between bins' centres
    logits = torch.from_numpy(-((np.arange(1, 17)[:, None, None] - place) ** 2)).float()
    found = processor.decode_dense(
        "normals", logits, size, depth_range="room", focal_length=2 * focal, source="depth"
    )["normals"]  # fmt: skip
    assert found.shape == (64, 64, 3) and torch.allclose(found.norm(dim=-1), torch.ones(size))
    angles = torch.rad2deg(torch.acos((found @ torch.from_numpy(direction).float()).clamp(-1, 1)))
    assert float(angles[16:-16, 16:-16].mean()) < 6


def test_normals_say_what_they_need(model, processor):
    with pytest.raises(ValueError, match="`focal_length` is needed"):
        model.predict_dense(IMAGE, task="normals", source="depth")
    with pytest.raises(ValueError, match="`source` must be"):
        model.predict_dense(IMAGE, task="normals", source="magic")
    plain = make_processor()
    other = make_model(plain)
    with pytest.raises(ValueError, match="<normal_1>"):
        other.predict_dense(IMAGE, task="normals", source="tokens", processor=plain)
    found = other.predict_dense(IMAGE, task=("normals", "depth"), focal_length=40.0, processor=plain)
    assert found.normals.shape == (32, 48, 3) and found.predicted_depth.shape == (32, 48)
    assert set(found.scores) == {"normals", "depth"}


def test_normals_are_drawn_as_colours(model):
    found = model.predict_dense(IMAGE, task="normals")
    picture = np.asarray(found.to_pil())
    expected = np.round((found.normals.numpy() + 1) * 127.5)
    assert np.abs(picture - expected).max() <= 1
    assert found.to_pil(legend=True).width > found.to_pil().width
    assert found.overlay(IMAGE).size == IMAGE.size


# ---- panoptic ----


def logits_of(processor, segmentation, instances, things, grid):
    """Logits of the panoptic task's labels that say exactly what an annotation does."""
    names = {key: name for key, name in ID2LABEL.items()}
    height, width = segmentation.shape
    encoded = processor.encode_annotations(
        [{"segmentation": segmentation, "id2label": names, "instances": instances, "thing_labels": things}],
        [[1, grid[0] * 2, grid[1] * 2]],
    )
    labels = [ids[0] for ids in processor.task_label_ids("panoptic", names, (height, width))]
    rows = encoded["dense_targets"]
    return torch.stack([(rows == token_id).any(dim=1).float() * 30 for token_id in labels]).unflatten(1, grid)


def test_objects_of_a_class_that_touch_are_told_apart(processor):
    segmentation = np.zeros((128, 128), np.int64)
    segmentation[64:] = 1
    segmentation[32:96, 16:112] = 2  # two red balls that touch, six tokens wide
    instances = np.zeros((128, 128), np.int64)
    instances[32:96, 16:64], instances[32:96, 64:112] = 4, 9
    logits = logits_of(processor, segmentation, instances, [2], (16, 16))
    found = processor.decode_dense("panoptic", logits, (128, 128), ID2LABEL, thing_labels=["red ball"])
    rows = found["segments_info"]
    assert [row["label"] for row in rows if row["isthing"]] == ["red ball"] * 2
    assert sorted(row["label"] for row in rows if not row["isthing"]) == ["floor", "wall"]
    for number in (4, 9):
        overlaps = [
            ((found["segmentation"].numpy() == row["id"]) & (instances == number)).sum()
            / ((found["segmentation"].numpy() == row["id"]) | (instances == number)).sum()
            for row in rows
        ]
        assert max(overlaps) > 0.8
    assert {"id", "label_id", "score", "was_fused", "isthing", "box", "area"} <= set(rows[0])
    present = set(found["segmentation"].unique().tolist()) - {-1}
    assert present == {row["id"] for row in rows}


def test_panoptic_maps_of_a_model(model):
    options = {"task": "panoptic", "labels": ID2LABEL}
    with pytest.raises(ValueError, match="`thing_labels` is needed"):
        model.predict_dense(IMAGE, **options)
    with pytest.raises(ValueError, match="`thing_labels` must be names or keys"):
        model.predict_dense(IMAGE, **options, thing_labels=["sofa"])
    with pytest.raises(TypeError, match="`thing_labels`"):
        model.predict_dense(IMAGE, **options, thing_labels="wall")
    stuff = model.predict_dense(IMAGE, **options, thing_labels=[])
    classes = model.predict_dense(IMAGE, task="segmentation", labels=ID2LABEL)
    names = {row["id"]: row["label_id"] for row in stuff.segments_info}
    assert all(row["was_fused"] and not row["isthing"] for row in stuff.segments_info)
    same = torch.tensor([names.get(value, -1) for value in stuff.segmentation.flatten().tolist()])
    assert torch.equal(same.view(32, 48), classes.segmentation)
    both = model.predict_dense([IMAGE, IMAGE], **{**options, "task": ("panoptic", "depth")}, thing_labels=[2, "wall"])
    assert [found.predicted_depth.shape for found in both] == [(32, 48)] * 2
    with pytest.raises(ValueError, match="different maps"):
        model.predict_dense(IMAGE, task=("segmentation", "panoptic"), labels=ID2LABEL, thing_labels=[])


def test_things_are_those_of_the_config_where_nobody_says_which(model, monkeypatch):
    monkeypatch.setattr(model.config, "thing_labels", ["Red Ball", "sofa"])
    found = model.predict_dense(IMAGE, task="panoptic", labels=ID2LABEL)
    assert {row["label"] for row in found.segments_info if row["isthing"]} <= {"red ball"}


# ---- as the released checkpoint does it ----


def test_classes_that_the_model_answers_compete(model, monkeypatch):
    asked = []

    def query(images, questions, *args, **kwargs):
        asked.extend((question, kwargs["stop_at"]) for question in questions)
        return ["The target categories include <ref>red ball</ref><ref>wall</ref>.<mask>(0,4)"] * len(images)

    monkeypatch.setattr(model, "query", query)
    found = model.predict_dense(IMAGE, labels=ID2LABEL, labels_from_answer=True)
    assert asked == [("Segment: wall, floor, red ball, without the background class.", "<mask>")]
    assert found.labels == {0: "wall", 2: "red ball"} and set(found.segmentation.unique().tolist()) <= {0, 2}
    model.predict_dense(IMAGE, labels=[*ID2LABEL.values(), "<OTHERS>"], labels_from_answer=True)
    assert asked[-1][0] == "Segment: wall, floor, red ball."
    with pytest.raises(ValueError, match="`labels_from_answer` needs `labels`"):
        model.predict_dense(IMAGE, labels_from_answer=True)


def test_questions_are_those_that_were_published():
    assert TEXT_TASKS["counting"].ask("counting", "cups", None)[0] == (
        "How many cups are there in the image? Output the final answer as a single number."
    )
    assert TEXT_TASKS["classification"].ask("classification", None, None)[0] == (
        "What is the category of the primary object in this image? Answer the question with a single word or phrase."
    )
    pose = TEXT_TASKS["pose"].ask("pose", None, None)[0]
    assert pose.startswith("Detect all persons and their poses from the image within the class set of MPII")
    assert "(0) right_ankle, (1) right_knee" in pose and "(15) left_wrist. Please output all detected" in pose
    assert "{text}" in DETECT_THEN_COUNT


def test_a_class_without_a_list_is_the_answer(processor):
    _, parse = processor.answer_task("classification")
    assert parse("A tabby cat.")["label"] == "A tabby cat"
    _, parse = processor.answer_task("classification", ["dog", "cat"])
    assert parse("A tabby cat.")["label"] == "cat"


def test_the_penalty_of_the_checkpoint_holds(model, monkeypatch):
    seen = {}

    def generate(self, *args, generation_config=None, **kwargs):
        seen["penalty"] = generation_config.repetition_penalty
        return kwargs["input_ids"]

    monkeypatch.setattr(type(model), "generate", generate)
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 1.05)
    model.query(IMAGE, "what?")
    assert seen["penalty"] == 1.05
    model.query(IMAGE, "what?", repetition_penalty=1.0)
    assert seen["penalty"] == 1.0


def test_an_answer_ends_with_a_text_that_is_no_token(model, processor):
    whole = model.query(IMAGE, "what?", max_new_tokens=24)
    vocabulary = processor.tokenizer.get_vocab()
    pieces = [whole[at : at + length] for at in range(len(whole) // 2) for length in (1, 2, 3)]
    stop = next(piece for piece in pieces if piece not in vocabulary)
    answer = model.query(IMAGE, "what?", max_new_tokens=24, stop_at=stop)
    assert stop in answer and whole.startswith(answer) and len(answer) < len(whole)


# ---- what is read once, and what is refused ----


def test_several_objects_of_an_image_share_its_encoding(model):
    seen = []
    hook = model.model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(args[1] if len(args) > 1 else kwargs["image_grid_thw"])),
        with_kwargs=True,
    )
    try:
        found = model.predict_dense(IMAGE, task="referring", text=["wall", "floor", "red ball"], batch_size=2)
    finally:
        hook.remove()
    assert len(found) == 3 and seen[0] == 1


def test_maps_by_hand_are_those_of_the_model(model, processor):
    options = {"labels": ID2LABEL, "thing_labels": [2]}
    whole = model.predict_dense(IMAGE, task="panoptic", return_logits=True, **options)
    height, width = whole.logits.shape[1:]
    assert len(processor.task_label_ids("panoptic", ID2LABEL, (8 * height, 8 * width))) == len(whole.logits)
    by_hand = processor.decode_dense("panoptic", whole.logits, (32, 48), **options)
    assert torch.equal(by_hand["segmentation"], whole.segmentation)
    with pytest.raises(ValueError, match="`logits` must have a row"):
        processor.decode_dense("panoptic", whole.logits[1:], (32, 48), **options)
    with pytest.raises(ValueError, match="`thing_labels` is needed"):
        processor.decode_dense("panoptic", whole.logits, (32, 48), ID2LABEL)


def test_nothing_but_the_background_is_no_segment(model):
    found = model.predict_dense(IMAGE, task="panoptic", labels=["<OTHERS>"], thing_labels=[])
    assert found.segments_info == [] and set(found.segmentation.unique().tolist()) == {-1}


def test_a_source_is_for_normals(model):
    with pytest.raises(ValueError, match="`source` can be given with the task 'normals'"):
        model.predict_dense(IMAGE, task="depth", source="depth")
