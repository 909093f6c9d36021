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
"""The evaluation of what a model answers in words: counts, boxes, referred boxes and poses, to the end."""

import json
import sys

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset

from densemllm.answers_densemllm import MPII_KEYPOINTS
from densemllm.evaluate_densemllm import main
from densemllm.evaluation.arguments import EvaluationArguments
from densemllm.evaluation.measured import MEASURED, Settings
from densemllm.evaluation.predict import evaluate_dense, predict_batch
from densemllm.evaluation.state import State
from densemllm.formats.options import prepare
from densemllm.modeling_densemllm import DenseMLLMForConditionalGeneration
from densemllm.text_tasks_densemllm import POSE_QUESTION
from repository import require
from tiny import ID2LABEL, make_image, make_model, make_processor


require("evaluation/measured_words.py")

TASKS = ["counting", "detection", "pose", "grounding"]
# Multiples of the 8 pixels of a vision token, so that nothing is resized.
SIZES = ((48, 64), (48, 56))
BOXES = ([[8, 8, 24, 16], [32, 8, 20, 32]], [[0, 0, 40, 40]])  # x, y, width, height
CATEGORIES = ([2, 0], [2])
JOINTS = [[16 + place, 10 + 2 * place, 1.0] for place in range(16)]


def corners(box):
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def annotated() -> list[dict]:
    samples = []
    for place, (height, width) in enumerate(SIZES):
        mask = np.zeros((height, width), np.uint8)
        mask[8:24, 16:40] = 255
        samples.append({
            "image": make_image(height, width, place),
            "question": f"How many balls are in image {place}?", "answer": 3 + place,
            "objects": {"bbox": BOXES[place], "category": CATEGORIES[place]},
            "person": {"box": [8, 8, 40, 40], "keypoints": JOINTS, "head_size": 10.0},
            "mask": PIL.Image.fromarray(mask), "expression": f"the ball of image {place}",
        })  # fmt: skip
    return samples


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def model(processor):
    return make_model(processor)


@pytest.fixture(scope="module")
def made(model, processor, tmp_path_factory):
    """A folder with a checkpoint and a data set."""
    folder = tmp_path_factory.mktemp("words")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    Dataset.from_list(annotated()).save_to_disk(folder / "data")
    (folder / "data/id2label.json").write_text(json.dumps(ID2LABEL))
    return folder


@pytest.fixture
def options(made, tmp_path):
    return {
        "model": made / "model", "data": made / "data", "task": TASKS, "output_dir": tmp_path / "out",
        "batch_size": 2, "device": "cpu", "cases": 0,
    }  # fmt: skip


def words(options: dict) -> list[str]:
    values = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
    return [word for name, own in values.items() for word in (f"--{name}", *map(str, own))]


def box_text(box) -> str:
    x0, y0, x1, y1 = (round(edge) for edge in box)
    return f"<box><x_{x0}><y_{y0}><x_{x1}><y_{y1}></box>"


def person_text(box, joints) -> str:
    points = "".join(f"<kpt><x_{round(x)}><y_{round(y)}><v_1.0></kpt>" for x, y, *_ in joints)
    return f"<person>{box_text(box)}{points}</person>"


def answer_with(monkeypatch, answer):
    """Let the model answer what `answer` says of the question and of the sizes of the image and of what is seen."""
    asked = []

    def query(self, images, texts, processor=None, max_new_tokens=None, **kwargs):
        images, texts = (images, texts) if isinstance(images, list) else ([images], [texts])
        texts = [texts] * len(images) if isinstance(texts, str) else texts
        asked.extend(texts)
        pairs = zip(texts, images, strict=True)
        return [answer(text, image.image_size, self._resized_size(image)) for text, image in pairs]

    monkeypatch.setattr(DenseMLLMForConditionalGeneration, "query", query)
    return asked


def perfect(text: str, size, resized) -> str:
    if text.endswith(" Output the final answer as a single number."):
        place = int(text.split("image ")[1][0])
        return f"I see {3 + place} balls."
    factor = resized[0] / size[0]
    if text == "Detect all objects in the provided image.":
        place = SIZES.index(tuple(size))
        pairs = zip(CATEGORIES[place], BOXES[place], strict=True)
        scaled = [(ID2LABEL[key].title(), np.array(corners(box)) * factor) for key, box in pairs]
        return "".join(f"<ref>{name}</ref>{box_text(box)}" for name, box in scaled)
    if text == POSE_QUESTION:
        # 1.25 times (8, 8, 40, 40), so that the crop begins at (4, 4).
        assert tuple(size) == (40, 40)
        return person_text((4, 4, 36, 36), np.array(JOINTS) - (4, 4, 0))
    return box_text((16, 8, 40, 24))


def test_every_task_runs_to_the_end(options, tmp_path, monkeypatch):
    """With what a random model really writes, if only some words of it."""
    query = DenseMLLMForConditionalGeneration.query

    def short(self, image, text, processor=None, max_new_tokens=None, **kwargs):
        return query(self, image, text, processor, 4, **kwargs)

    monkeypatch.setattr(DenseMLLMForConditionalGeneration, "query", short)
    results = main(words(options | {"cases": 1}))
    assert results["images"] == dict.fromkeys(TASKS, 2)
    assert results["metrics"] == {
        "counting": {"counting_accuracy": 0.0, "counting_rmse": pytest.approx((9 / 2 + 16 / 2) ** 0.5)},
        "detection": {"box_ap": 0.0, "box_ap50": 0.0, "box_ap75": 0.0},
        "pose": {"pckh": 0.0},
        "grounding": {"grounding_accuracy": 0.0},
    }
    table = (tmp_path / "out/results.md").read_text()
    assert (
        "| counting | counting RMSE |" in table and "| class | box AP |" in table and "| red ball | 0.0000 |" in table
    )
    assert (tmp_path / "out/cases.png").is_file()


def test_perfect_answers_are_measured_as_such(options, tmp_path, monkeypatch):
    asked = answer_with(monkeypatch, perfect)
    results = main(words(options | {"cases": 1, "detection_scales": ["1", "2"]}))
    assert results["metrics"] == {
        "counting": {"counting_accuracy": 1.0, "counting_rmse": 0.0},
        "detection": {"box_ap": pytest.approx(1), "box_ap50": pytest.approx(1), "box_ap75": pytest.approx(1)},
        "pose": {"pckh": 1.0},
        "grounding": {"grounding_accuracy": 1.0},
    }
    assert "How many balls are in image 1? Output the final answer as a single number." in asked
    assert any("region this sentence describes: the ball of image 0" in text for text in asked)
    with PIL.Image.open(tmp_path / "out/cases.png") as sheet:
        assert sheet.width > 1500
    with pytest.raises(ValueError, match=r"`detection_scales` was \[1.0, 2.0\], is \[1.0\]"):
        main(words(options | {"cases": 1}))


def test_some_answers_are_wrong(model, processor, monkeypatch):
    def answer(text, size, resized):
        if tuple(size) in (SIZES[0], (40, 40)):
            return perfect(text, size, resized)
        return "<ref>red ball</ref><box><x_0><y_0><x_30><y_40></box> or 6"  # 0.75 of the true box

    answer_with(monkeypatch, answer)
    metrics = {task: MEASURED[task].make_metrics(Settings(ID2LABEL)) for task in TASKS}
    for _, task, prediction, reference in predict_batch(model, processor, annotated(), TASKS, ID2LABEL):
        metrics[task].add(prediction, reference)
    results = {task: metric.compute() for task, metric in metrics.items()}
    # In words with a box, one thing is there: that is how the parser counts.
    assert results["counting"] == {"counting_accuracy": 0.5, "counting_rmse": pytest.approx((9 / 2) ** 0.5)}
    assert results["grounding"]["grounding_accuracy"] == 0.5
    # The larger box ranks first. Up to an IoU of 0.75 both are found; above it one of two, behind a false one.
    assert results["detection"]["box_ap75"] == pytest.approx(1)
    balls = (6 + 4 * (51 / 101) / 2) / 10
    assert results["detection"]["per_label_box_ap"] == pytest.approx([1, float("nan"), balls], nan_ok=True)


def test_boxes_of_all_sizes_are_put_together(model, processor, monkeypatch):
    seen = []

    def answer(text, size, resized):
        seen.append(resized[0] / size[0])
        boxes = {
            1: "<ref>red ball</ref><box><x_8><y_8><x_32><y_24></box><ref>lamp</ref><box><x_0><y_0><x_9><y_9></box>"
        }
        # At twice the size, the same ball 2 pixels further, and the wall.
        boxes[2] = (
            "<ref>red ball</ref><box><x_18><y_16><x_66><y_48></box><ref>WALL</ref><box><x_64><y_16><x_104><y_80></box>"
        )
        return boxes[round(seen[-1])]

    answer_with(monkeypatch, answer)
    ((*_, found, true),) = predict_batch(
        model, processor, annotated()[:1], ["detection"], ID2LABEL, detection_scales=[1, 2]
    )
    assert seen == [1, 2]
    assert found["boxes"].tolist() == [[32, 8, 52, 40], [8, 8, 32, 24]] and found["labels"].tolist() == [0, 2]
    np.testing.assert_allclose(found["scores"], [20 * 32 / (48 * 64), 24 * 16 / (48 * 64)])
    assert true["boxes"].tolist() == [corners(box) for box in BOXES[0]] and true["labels"].tolist() == [2, 0]
    seen.clear()
    predict_batch(model, processor, annotated()[:1], ["detection"], ID2LABEL, detection_scales=[1], scale=2.0)
    assert seen == [2]


def test_of_several_people_the_one_in_the_middle_is_meant(model, processor, monkeypatch):
    """The crop begins at (4, 4), and has 40 x 40 pixels."""
    joints = np.array(JOINTS)
    people = [
        person_text((0, 0, 30, 30), joints + 8),
        person_text((10, 10, 30, 30), joints + 2),
        person_text((5, 5, 35, 35), joints - (4, 4, 0)),  # its centre is that of the one before
    ]
    answer_with(monkeypatch, lambda *sizes: "".join(people))
    ((*_, found, true),) = predict_batch(model, processor, annotated()[:1], ["pose"])
    np.testing.assert_allclose(found, JOINTS)
    assert true["head_size"] == 10.0
    answer_with(monkeypatch, lambda *sizes: "nobody")
    ((*_, found, _),) = predict_batch(model, processor, annotated()[:1], ["pose"])
    assert found is None


def test_a_crop_that_the_image_cuts_is_scaled_back(model, processor, monkeypatch):
    """(-4, 8, 28, 40) grows to (-8, 4, 32, 44), of which the image has 32 x 40 pixels from (0, 4)."""
    sizes = []

    def answer(text, size, resized):
        sizes.append(size)
        return person_text((0, 4, 28, 36), np.array(JOINTS) - (0, 4, 0))

    answer_with(monkeypatch, answer)
    sample = annotated()[0]
    sample["person"] = sample["person"] | {"box": [-4, 8, 28, 40]}
    ((*_, found, _),) = predict_batch(model, processor, [sample], ["pose"])
    assert [tuple(size) for size in sizes] == [(40, 32)]
    np.testing.assert_allclose(found, JOINTS)


def test_expressions_for_nothing_have_no_box(model, processor, monkeypatch):
    answer_with(monkeypatch, perfect)
    sample = annotated()[0] | {"mask": np.zeros(SIZES[0], bool)}
    assert predict_batch(model, processor, [sample], ["grounding"]) == []


def test_images_without_objects_count(model, processor, monkeypatch):
    answer_with(monkeypatch, perfect)
    samples = annotated()
    samples[1]["objects"] = {"bbox": [], "category": []}
    metrics = MEASURED["detection"].make_metrics(Settings(ID2LABEL))
    for *_, prediction, reference in predict_batch(model, processor, samples, ["detection"], ID2LABEL):
        metrics.add(prediction, reference)
    # The ball that isn't there covers more than the one that is: first, and false.
    assert metrics.compute()["per_label_box_ap"] == pytest.approx([1, float("nan"), 0.5], nan_ok=True)


def test_a_resumed_evaluation_has_the_same_ap(options, tmp_path, monkeypatch):
    answer_with(monkeypatch, lambda text, size, resized: perfect(text, size, resized).replace("x_40", "x_32"))
    options = options | {"task": "detection", "batch_size": 1, "save_every": 1}
    whole = main(words(options))["metrics"]
    assert 0 < whole["detection"]["box_ap"] < 1
    save = State.save

    def interrupted(self, piece):
        if any(self.folder.glob("piece-*.json")):
            raise KeyboardInterrupt
        save(self, piece)

    again = options | {"output_dir": tmp_path / "again"}
    monkeypatch.setattr(State, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(words(again))
    monkeypatch.setattr(State, "save", save)
    assert main(words(again))["metrics"] == whole


@pytest.mark.parametrize("scales", [[], [0.0], [-1.0], [float("nan")], [float("inf")]])
def test_scales_that_cannot_be_used_are_named(model, processor, scales):
    with pytest.raises(ValueError, match="`detection_scales` must be numbers greater than 0, at least one"):
        EvaluationArguments("m", "d", "detection", detection_scales=scales)
    with pytest.raises(ValueError, match="`detection_scales` must be numbers greater than 0, at least one"):
        predict_batch(model, processor, annotated(), ["detection"], ID2LABEL, detection_scales=scales)


def test_what_has_to_be_installed_is_said_before_anything_is_done(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(ValueError, match="`task`: the AP of boxes needs pycocotools"):
        EvaluationArguments("m", "d", "detection")
    EvaluationArguments("m", "d", "pose")


def test_what_lacks_is_named(options, model, processor, made, tmp_path):
    with pytest.raises(ValueError, match="`id2label` is needed to detect objects"):
        predict_batch(model, processor, annotated(), ["detection"])
    Dataset.load_from_disk(str(made / "data")).remove_columns("answer").save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match="`task` 'counting' needs the columns image, question and answer"):
        main(words(options | {"data": tmp_path / "data", "task": "counting"}))


def test_class_ids_of_boxes_change_as_those_of_maps():
    data = prepare(annotated(), label_map="0=2,1=255", id2label=ID2LABEL)
    assert data.facts.id2label == {2: "red ball"} and data[0]["objects"]["category"] == [2, 2]
    data = prepare(annotated(), label_map="0=255", id2label=ID2LABEL)
    assert data[0]["objects"] == {"bbox": [[8, 8, 24, 16]], "category": [2], "area": [24 * 16], "iscrowd": [0]}
    rows = [{"image": None, "objects": "something else"}]
    assert prepare(rows, label_map="0=2", id2label=ID2LABEL)[0]["objects"] == "something else"


def test_a_training_measures_none_of_it(model, processor, monkeypatch):
    answer_with(monkeypatch, perfect)
    assert not set(evaluate_dense(model, processor, annotated(), ID2LABEL)) & {
        "counting_accuracy", "box_ap", "pckh", "grounding_accuracy",
    }  # fmt: skip


# ---- from the official layouts ----


def test_tallyqa_to_the_end(options, tmp_path, monkeypatch):
    answer_with(monkeypatch, lambda text, size, resized: "4 of them" if "cups" in text else "none")
    rows = [("cups", 4, True), ("dogs", 0, True), ("people", 2, False)]
    content = [
        {"image": "VG_100K/1.jpg", "question": f"How many {name}?", "answer": count, "issimple": simple}
        for name, count, simple in rows
    ]
    (tmp_path / "tallyqa/VG_100K").mkdir(parents=True)
    (tmp_path / "tallyqa/test.json").write_text(json.dumps(content))
    make_image(16, 24).save(tmp_path / "tallyqa/VG_100K/1.jpg")
    options = options | {"data": f"tallyqa:{tmp_path / 'tallyqa'}", "task": "counting"}
    results = main(words(options | {"split": "test"}))
    # "none" is not a number: wrong for 0 and for 2, of which it is as far away as 0 is.
    assert results["metrics"]["counting"] == {
        "counting_accuracy": pytest.approx(1 / 3), "counting_rmse": pytest.approx((4 / 3) ** 0.5),
    }  # fmt: skip
    simple = main(words(options | {"split": "test_simple", "output_dir": tmp_path / "simple"}))
    assert simple["images"] == {"counting": 2} and simple["metrics"]["counting"]["counting_accuracy"] == 0.5


def test_coco_to_the_end(options, tmp_path, monkeypatch):
    """A person, a dog and a crowd of dogs, in which the model sees one dog by itself."""
    answer_with(
        monkeypatch,
        lambda text, size, resized: (
            "<ref>Person</ref><box><x_8><y_8><x_24><y_40></box><ref>dog</ref><box><x_24><y_24><x_40><y_32></box>"
            "<box><x_44><y_4><x_60><y_40></box><ref>unicorn</ref><box><x_0><y_0><x_8><y_8></box>"
        ),
    )
    annotations = [
        {"bbox": [8, 8, 16, 32], "category_id": 1, "iscrowd": 0, "area": 300},
        {"bbox": [24, 24, 16, 8], "category_id": 18, "iscrowd": 0, "area": 100},
        {"bbox": [40, 0, 24, 48], "category_id": 18, "iscrowd": 1, "area": 900},
    ]
    content = {
        "images": [{"id": 139, "file_name": "000000000139.jpg", "height": 48, "width": 64}],
        "annotations": [{"id": key, "image_id": 139, **row} for key, row in enumerate(annotations, 1)],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 90, "name": "toothbrush"}],
    }
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    (root / "annotations/instances_val2017.json").write_text(json.dumps(content))
    make_image(48, 64).save(root / "val2017/000000000139.jpg")
    results = main(words(options | {"data": f"coco_detection:{root}", "task": "detection", "cases": 1}))
    assert results["metrics"]["detection"] == {
        "box_ap": pytest.approx(1), "box_ap50": pytest.approx(1), "box_ap75": pytest.approx(1),
    }  # fmt: skip
    assert [row["box_ap"] for row in results["per_label"]] == [pytest.approx(1), pytest.approx(1), None]


def test_mpii_to_the_end(options, tmp_path, monkeypatch):
    savemat = pytest.importorskip("scipy.io").savemat
    root = tmp_path / "mpii"
    (root / "annot").mkdir(parents=True)
    (root / "images").mkdir()
    make_image(64, 64).save(root / "images/a.jpg")
    # A box of 32 pixels around (31, 31), put 2.4 lower: (15, 17.4, 47, 49.4), which grows to (11, 13, 51, 54).
    joints = [[17.0 + place, 25.0] for place in range(16)]
    people = [{"image": "a.jpg", "center": [32.0, 32.0], "scale": 0.16, "joints": joints, "joints_vis": [1] * 16}]
    (root / "annot/valid.json").write_text(json.dumps(people))
    boxes = np.array([[[2.0], [2.0]], [[8.0], [10.0]]])  # a head of 0.6 * 10 pixels: 3 are near enough
    missing = np.zeros((16, 1))
    missing[9] = 1
    savemat(root / "annot/gt_valid.mat", {"headboxes_src": boxes, "jnt_missing": missing})
    sizes = []

    def answer(text, size, resized):
        sizes.append(tuple(size))
        points = np.array([[16 + place - 11, 24 - 13] for place in range(16)], dtype=float)
        points[0, 0] += 2  # near enough
        points[1, 0] += 4  # too far
        points[9] = 0  # not annotated
        points[MPII_KEYPOINTS.index("pelvis")] = 0  # left out of the mean
        scale = np.array(resized[::-1]) / np.array(size[::-1])
        return person_text((1, 1, *resized[::-1]), points * scale)

    answer_with(monkeypatch, answer)
    results = main(words(options | {"data": f"mpii:{root}", "task": "pose", "cases": 1}))
    assert set(sizes) == {(41, 40)}
    # 13 joints are annotated and in the mean.
    assert results["metrics"]["pose"] == {"pckh": pytest.approx(12 / 13)}
