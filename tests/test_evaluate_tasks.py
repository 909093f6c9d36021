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
"""The evaluation of surface normals, panoptic maps and instances."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset

from densemllm import add_dense_tokens, evaluate_densemllm
from densemllm.answers_densemllm import decode_rle
from densemllm.evaluate_densemllm import main
from densemllm.evaluation import run as evaluation
from densemllm.evaluation.arguments import EvaluationArguments
from densemllm.evaluation.measured import (
    INSTANCES,
    MEASURED,
    PANOPTIC,
    Settings,
    true_segments,
)
from densemllm.evaluation.panoptic import InstanceMetrics
from densemllm.evaluation.predict import evaluate_dense, predict_batch, predict_samples
from densemllm.evaluation.state import State
from tiny import ID2LABEL, make_model, make_processor, make_samples


COUNT = 5
SCRIPT = Path(evaluate_densemllm.__file__)


def annotated() -> list[dict]:
    """`COUNT` samples with two objects that touch and with normals, and one that lacks all annotations."""
    samples = make_samples(COUNT)
    for index, sample in enumerate(samples):
        height, width = np.shape(sample["segmentation"])
        classes, numbers = np.zeros((2, height, width), dtype=np.uint8)
        classes[height // 2 :] = 1
        classes[4:12, 2 : 14 + index] = 2
        numbers[4:12, 2:8], numbers[4:12, 8 : 14 + index] = 1, 2
        normals = np.zeros((height, width, 3), dtype=np.float32)
        normals[..., 1] = 1
        sample |= {
            "segmentation": PIL.Image.fromarray(classes), "instances": PIL.Image.fromarray(numbers),
            "normals": normals, "focal_length": 40.0,
        }  # fmt: skip
    return [
        *samples,
        samples[0] | {"segmentation": None, "instances": None, "normals": None},
    ]


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def model(processor):
    return make_model(processor, thing_labels=["Red Ball"])


@pytest.fixture(scope="module")
def made(model, processor, tmp_path_factory):
    """A folder with a checkpoint and a data set."""
    folder = tmp_path_factory.mktemp("tasks")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    Dataset.from_list(
        [
            {**sample, "normals": None if sample["normals"] is None else sample["normals"].tolist(), "depth": None}
            for sample in annotated()
        ]
    ).save_to_disk(folder / "data")
    (folder / "data/id2label.json").write_text(json.dumps(ID2LABEL))
    return folder


@pytest.fixture
def options(made, tmp_path):
    return {
        "model": made / "model", "data": made / "data", "task": ["panoptic", "instances"],
        "output_dir": tmp_path / "out", "batch_size": 2, "save_every": 1, "device": "cpu", "cases": 0,
    }  # fmt: skip


def words(options: dict) -> list[str]:
    values = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
    return [word for name, own in values.items() for word in (f"--{name}", *map(str, own))]


# ---- what is true ----


def test_segments_of_a_reference_worked_out_by_hand():
    classes = [
        [0, 0, 0, 2, 2, 255],
        [0, 2, 2, 2, 2, 1],
        [1, 2, 2, 2, 1, 1],
        [1, 1, 1, 2, 1, 1],
    ]
    numbers = [
        [5, 0, 0, 7, 7, 7],  # the number of what is no thing says nothing
        [0, 3, 3, 7, 0, 0],
        [0, 3, 3, -1, 0, 0],  # things without a number: nobody says which they are
        [0, 0, 0, 255, 0, 0],
    ]
    sample = {"segmentation": np.array(classes, np.uint8), "instances": np.array(numbers)}
    values, rows = true_segments(sample, Settings(ID2LABEL, thing_ids=(2,)))
    assert values.tolist() == [
        [1, 1, 1, 4, 4, 0],
        [1, 3, 3, 4, 0, 2],
        [2, 3, 3, 0, 2, 2],
        [2, 2, 2, 0, 2, 2],
    ]
    assert rows == [
        {"id": 1, "label_id": 0, "isthing": False},
        {"id": 2, "label_id": 1, "isthing": False},
        {"id": 3, "label_id": 2, "isthing": True},
        {"id": 4, "label_id": 2, "isthing": True},
    ]
    # Both balls found as one, of which 4 of 7 pixels are the first: IoU 4/7 once, and one is missed.
    metrics = PANOPTIC.make_metrics(Settings(ID2LABEL, thing_ids=(2,)))
    fused = np.where(sample["segmentation"] == 2, 3, values)
    metrics.add((fused, [{**row, "score": 0.5} for row in rows[:3]]), (values, rows))
    assert metrics.compute()["per_label_pq"] == pytest.approx([1, 1, 4 / 7 / 1.5])


def test_objects_of_other_classes_and_what_nobody_knows():
    sample = {"segmentation": np.full((2, 3), 2), "instances": np.array([[1, 1, 2], [0, 0, 0]])}
    settings = Settings(ID2LABEL, thing_ids=(2,))
    values, rows = true_segments(sample, settings)
    assert values.tolist() == [[1, 1, 2], [0, 0, 0]] and [row["label_id"] for row in rows] == [2, 2]
    halves = sample | {"segmentation": np.array([[1, 2, 2], [1, 2, 2]])}  # one number over two classes
    values, rows = true_segments(halves, Settings(ID2LABEL, thing_ids=(1, 2)))
    assert values.tolist() == [[1, 2, 3], [0, 0, 0]] and [row["label_id"] for row in rows] == [1, 2, 2]
    assert true_segments(sample | {"instances": np.zeros((2, 3), int)}, settings) is None
    others = Settings({**ID2LABEL, 2: "<OTHERS>"}, thing_ids=())
    assert true_segments(sample, others) is None


# ---- what is asked ----


def test_tasks_share_a_call_unless_they_fill_the_same_map(model, processor, monkeypatch):
    predict, asked = type(model).predict_dense, []

    def counted(self, images, task=None, **kwargs):
        asked.append(task)
        return predict(self, images, task=task, **kwargs)

    monkeypatch.setattr(type(model), "predict_dense", counted)
    samples = annotated()[COUNT - 1 :]
    tasks = ("segmentation", "panoptic", "instances", "normals")
    predicted = predict_batch(model, processor, samples, tasks, ID2LABEL)
    assert asked == [("segmentation", "normals"), ("panoptic",)]  # and nothing of what isn't annotated
    assert sorted(task for _, task, _, _ in predicted) == sorted(tasks)
    found = {task: prediction for _, task, prediction, _ in predicted}
    assert found["panoptic"] == found["instances"]
    asked.clear()
    predict_batch(model, processor, samples, ("instances", "panoptic", "normals"), ID2LABEL)
    assert asked == [("normals", "panoptic")]
    for one, other in itertools.combinations(MEASURED.values(), 2):
        assert one.shares_pass(other) == other.shares_pass(one)


def test_normals_are_those_of_tokens_or_of_depth(model, processor):
    samples = annotated()[:1]
    ((*_, prediction, reference),) = predict_batch(model, processor, samples, ("normals",))
    expected = model.predict_dense(
        samples[0]["image"], task="normals", source="depth", focal_length=40.0, processor=processor
    )
    assert torch.allclose(prediction, expected.normals, atol=1e-4) and reference.shape == prediction.shape
    without = [sample | {"focal_length": None} for sample in samples]
    assert predict_batch(model, processor, without, ("normals",)) == []
    with pytest.raises(ValueError, match="`source` 'tokens' needs a tokenizer"):
        predict_batch(model, processor, samples, ("normals",), normals_source="tokens")
    own = make_processor()
    add_dense_tokens(own.tokenizer, own.num_depth_bins, 64, num_normal_bins=16)
    assert len(predict_batch(make_model(own), own, without, ("normals",))) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "`thing_labels` is needed"),
        (["sofa"], r"`thing_labels` must be names or keys of `labels`, got \['sofa'\]"),
    ],
)
def test_things_have_to_be_known(processor, given, message):
    with pytest.raises(ValueError, match=message):
        PANOPTIC.prepare(Settings(ID2LABEL, thing_labels=given), make_model(processor).config, processor)


def test_classes_have_to_be_known(model, processor):
    with pytest.raises(ValueError, match="`id2label` is needed for segments"):
        predict_batch(model, processor, annotated(), ("panoptic",))


def test_things_of_the_config_and_of_the_command_line(model, processor):
    config = model.config
    assert PANOPTIC.prepare(Settings(ID2LABEL), config, processor).thing_ids == (2,)
    with pytest.raises(ValueError, match=r"`thing_labels`: none of \['Red Ball'\] is a class of `id2label`"):
        INSTANCES.prepare(Settings({0: "wall"}), config, processor)
    args = EvaluationArguments("m", "d", "panoptic", thing_labels=["wall,Red  Ball", "lamp, table"])
    for id2label, expected in ((ID2LABEL, 4), ({0: "lamp, table"}, 3)):
        assert len(args.settings(id2label).thing_labels) == expected
    by_id = EvaluationArguments("m", "d", "panoptic", thing_labels=["0,2"])
    assert by_id.settings(ID2LABEL).thing_labels == (0, 2)
    assert PANOPTIC.prepare(by_id.settings({**ID2LABEL, 5: "0"}), config, processor).thing_ids == (2, 5)
    settings = args.settings({**ID2LABEL, 3: "lamp, table"})
    assert PANOPTIC.prepare(settings, config, processor).thing_ids == (0, 2, 3)


def test_a_training_measures_what_the_model_can_do(model, processor):
    samples = annotated()[:3]
    measured = evaluate_dense(model, processor, samples, ID2LABEL)
    assert {"mean_iou", "pq", "rq_things", "median_angle"} <= set(measured) and "mask_ap" not in measured
    plain = evaluate_dense(make_model(processor), processor, samples, ID2LABEL)
    assert "mean_iou" in plain and "pq" not in plain
    cameraless = [sample | {"focal_length": None} for sample in samples]
    assert "mean_angle" not in evaluate_dense(model, processor, cameraless, ID2LABEL)


def test_what_has_to_be_installed_is_said_before_anything_is_done(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(ValueError, match="`task`: the AP of masks needs pycocotools"):
        EvaluationArguments("m", "d", "instances")
    EvaluationArguments("m", "d", "panoptic")


# ---- the whole evaluation ----


def almost_right(*args, **kwargs):
    """As `predict_samples`, but the predictions are the references, with objects that are cut or not found."""
    results = []
    for position, task, _, reference in predict_samples(*args, **kwargs):
        found, values = [], reference[0].copy()
        for row in reference[1]:
            inside, place = np.flatnonzero(values == row["id"]), values.size + row["id"]
            if row["isthing"] and place % 3 == 0:
                values.flat[inside[: len(inside) // 3]] = 0
            if not row["isthing"] or place % 4:
                found.append({**row, "score": (place * 5 % 11) / 11})
        results.append((position, task, (values, found), reference))
    return results


def test_panoptic_maps_and_instances_end_to_end(options, tmp_path):
    results = main(words(options | {"cases": 1, "task": ["segmentation", "panoptic", "instances"]}))
    assert results["images"] == dict.fromkeys(("segmentation", "panoptic", "instances"), COUNT)
    assert {"pq", "sq_things", "rq_stuff"} <= set(results["metrics"]["panoptic"])
    assert [row["label"] for row in results["per_label"]] == list(ID2LABEL.values())
    assert set(results["per_label"][2]) == {
        "id", "label", "iou", "boundary_iou", "pixels", "pq", "sq", "rq", "mask_ap",
    }  # fmt: skip
    table = (tmp_path / "out/results.md").read_text()
    assert "| class | IoU | boundary IoU | PQ | SQ | RQ | mask AP | pixels of the reference |" in table
    assert "| panoptic | PQ of things |" in table and "| instances | mask AP50 |" in table
    with PIL.Image.open(tmp_path / "out/cases.png") as sheet:
        assert sheet.width > 1500
    with pytest.raises(ValueError, match="`thing_labels` was None"):
        main(words(options | {"cases": 1, "task": ["segmentation", "panoptic", "instances"], "thing_labels": "wall"}))


def test_a_resumed_evaluation_has_the_same_ap_and_files(options, model, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "predict_samples", almost_right)
    options = options | {"save_coco": tmp_path / "coco"}
    whole = main(words(options))["metrics"]
    assert 0.1 < whole["instances"]["mask_ap"] < 0.9 and 0.1 < whole["panoptic"]["pq"] < 0.95
    files = {path.name: path.read_bytes() for path in (tmp_path / "coco").rglob("*") if path.is_file()}
    assert len(files) == COUNT + 2

    again = options | {"output_dir": tmp_path / "again", "save_coco": tmp_path / "coco2"}
    save = State.save

    def interrupted(self, piece):
        if any(self.folder.glob("piece-*.json")):
            raise KeyboardInterrupt
        save(self, piece)

    monkeypatch.setattr(State, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(words(again))
    assert not (tmp_path / "coco2").exists()
    monkeypatch.setattr(State, "save", save)
    assert main(words(again))["metrics"] == whole
    assert {path.name: path.read_bytes() for path in (tmp_path / "coco2").rglob("*") if path.is_file()} == files

    at_once = InstanceMetrics([2])
    settings = Settings(ID2LABEL, processor.normalize_labels(ID2LABEL))
    for *_, prediction, reference in almost_right(model, processor, annotated(), ("instances",), settings):
        at_once.add(prediction, reference)
    assert at_once.compute()["mask_ap"] == pytest.approx(whole["instances"]["mask_ap"])


def test_files_in_the_formats_of_coco(options, tmp_path, model, processor):
    folder = tmp_path / "coco"
    main(words(options | {"task": "instances", "save_coco": folder}))
    panoptic = json.loads((folder / "panoptic.json").read_text())
    rows = json.loads((folder / "instances.json").read_text())
    assert panoptic["categories"] == [
        {"id": key, "name": name, "isthing": int(key == 2)} for key, name in ID2LABEL.items()
    ]
    assert [image["id"] for image in panoptic["images"]] == list(range(COUNT))
    for index, sample in enumerate(annotated()[:COUNT]):
        expected = model.predict_dense(
            sample["image"], task="panoptic", labels=ID2LABEL, processor=processor, focal_length=40.0
        )
        things = [row for row in expected.segments_info if row["isthing"]]
        own = [row for row in rows if row["image_id"] == index]
        assert len(own) == len(things) and {row["category_id"] for row in own} <= {2}
        for row, thing in zip(own, things, strict=True):
            mask = (expected.segmentation == thing["id"]).numpy()
            assert (decode_rle(row["segmentation"]) == mask).mean() > 0.95 and 0 <= row["score"] <= 1
        with PIL.Image.open(folder / "panoptic" / panoptic["images"][index]["file_name"]) as image:
            numbers = np.asarray(image).astype(int) @ [1, 256, 65536]
        segments = panoptic["annotations"][index]["segments_info"]
        assert [(numbers == row["id"]).sum() for row in segments] == [row["area"] for row in segments]
    for change, message in (
        ({"output_dir": tmp_path / "other"}, "panoptic.json is there already"),
        ({"save_coco": tmp_path / "moved"}, "`save_coco` was"),
        ({"output_dir": tmp_path / "other", "save_coco": options["data"] / "found"}, "must not be in the folder of"),
        ({"output_dir": tmp_path / "other", "task": "segmentation"}, "`save_coco` needs a `task` of"),
    ):
        with pytest.raises(ValueError, match=message):
            main(words({**options, "task": "instances", "save_coco": folder, **change}))
    (folder / "panoptic.json").unlink()
    (folder / "instances.json").unlink()
    with pytest.raises(ValueError, match="has PNGs already"):
        main(words(options | {"task": "instances", "save_coco": folder, "output_dir": tmp_path / "other"}))


@pytest.mark.slow
def test_two_processes_write_what_one_does(options, tmp_path):
    one = options | {"save_coco": tmp_path / "coco"}
    expected = main(words(one))["metrics"]
    two = options | {"save_coco": tmp_path / "coco2", "output_dir": tmp_path / "out2"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *words(two)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out2/results.json").read_text())
    assert found["metrics"] == expected and found["processes"] == 2
    for path in (tmp_path / "coco").rglob("*.*"):
        assert (tmp_path / "coco2" / path.relative_to(tmp_path / "coco")).read_bytes() == path.read_bytes()


def test_normals_end_to_end(made, options, tmp_path):
    results = main(words(options | {"task": ["normals", "panoptic"], "cases": 1}))
    assert results["images"] == {"normals": COUNT, "panoptic": COUNT}
    assert set(results["metrics"]["normals"]) == {
        "mean_angle", "median_angle", "under_11_25", "under_22_5", "under_30",
    }  # fmt: skip
    data = Dataset.load_from_disk(str(made / "data")).remove_columns("focal_length")
    data.save_to_disk(tmp_path / "data")
    options = options | {"output_dir": tmp_path / "other"}
    with pytest.raises(ValueError, match="`task` 'normals' of this model needs the column focal_length"):
        main(words(options | {"task": "normals", "data": tmp_path / "data"}))
    with pytest.raises(ValueError, match="`normals_source` must be one of"):
        main(words(options | {"task": "normals", "normals_source": "magic"}))
