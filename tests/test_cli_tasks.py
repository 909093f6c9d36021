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
"""`densemllm predict`: tasks as the task objects say, normals and panoptic maps among them."""

import json

import numpy as np
import PIL.Image
import pytest

from densemllm import DenseMLLMForConditionalGeneration
from densemllm.answers_densemllm import decode_rle
from densemllm.cli import main
from densemllm.tasks_densemllm import TASKS
from tiny import ID2LABEL, answer_with, make_image, make_model, make_processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli_tasks")
    processor = make_processor()
    make_model(processor, id2label=ID2LABEL, thing_labels=["red ball"]).save_pretrained(path / "model")
    processor.save_pretrained(path / "model")
    make_image(30, 50).save(path / "a.png")
    return path


@pytest.fixture(scope="module")
def model(folder):
    return DenseMLLMForConditionalGeneration.from_pretrained(folder / "model").eval()


def run(folder, *arguments) -> int:
    words = ("predict", folder / "a.png", "--model", folder / "model", *arguments)
    return main([str(word) for word in words])


def read_image(path) -> np.ndarray:
    with PIL.Image.open(path) as image:
        return np.asarray(image)


def test_every_task_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, task in TASKS.items():
        assert task.about and f"{name}: {task.about}" in text
        assert set(task.needs) <= set(task.options)


def test_normals_in_every_form(folder, model, tmp_path, capsys):
    expected = model.predict_dense(folder / "a.png", task="normals", source="depth", focal_length=40.0)
    options = ["--task", "normals", "--source", "depth", "--focal_length", "40", "--out"]
    assert run(folder, *options, tmp_path / "n.npy") == 0
    assert np.allclose(np.load(tmp_path / "n.npy"), expected.normals.numpy(), atol=1e-5)
    assert "to the camera" in capsys.readouterr().out
    assert run(folder, *options, tmp_path / "raw.png", "--format", "raw") == 0
    raw = read_image(tmp_path / "raw.png")
    assert raw.shape == (30, 50, 3) and np.abs(raw / 127.5 - 1 - expected.normals.numpy()).max() < 0.01
    assert run(folder, *options, tmp_path / "n.png") == 0
    image = read_image(tmp_path / "n.png")
    assert np.array_equal(image[:30, :50], np.asarray(expected.to_pil())) and image.shape[1] > 50  # the legend
    assert run(folder, *options, tmp_path / "o.png", "--format", "overlay") == 0
    with PIL.Image.open(folder / "a.png") as scene:
        assert np.array_equal(read_image(tmp_path / "o.png"), np.asarray(expected.overlay(scene)))


@pytest.mark.parametrize("things", [None, "wall,red ball", '["wall"]'])
def test_panoptic_maps_in_every_form(folder, model, tmp_path, things):
    names = {None: ["red ball"], "wall,red ball": ["wall", "red ball"], '["wall"]': ["wall"]}[things]
    expected = model.predict_dense(folder / "a.png", task="panoptic", labels=ID2LABEL, thing_labels=names)
    options = ["--task", "panoptic", *(["--thing_labels", things] if things else []), "--out"]
    assert run(folder, *options, tmp_path / "p.npy") == 0
    assert np.array_equal(np.load(tmp_path / "p.npy"), expected.segmentation.numpy())
    assert run(folder, *options, tmp_path / "raw.png", "--format", "raw") == 0
    numbers = expected.segmentation.numpy()
    assert np.array_equal(read_image(tmp_path / "raw.png"), np.where(numbers < 0, 255, numbers))
    assert run(folder, *options, tmp_path / "p.json") == 0
    rows = json.loads((tmp_path / "p.json").read_text())
    assert len(rows) == len(expected.segments_info)
    for row, segment in zip(rows, expected.segments_info, strict=True):
        assert np.array_equal(decode_rle(row["segmentation"]), expected.segmentation.numpy() == segment["id"])
        assert (row["category_id"], row["category"]) == (segment["label_id"], segment["label"])
        assert row["score"] == pytest.approx(segment["score"]) and row["area"] == segment["area"]
    assert run(folder, *options, tmp_path / "p.png") == 0
    image = read_image(tmp_path / "p.png")
    assert np.array_equal(image[:30, :50], np.asarray(expected.to_pil())) and image.shape[1] > 50
    assert run(folder, *options, tmp_path / "o.png", "--format", "overlay") == 0
    assert read_image(tmp_path / "o.png").shape == (30, 50, 3)


def test_classes_of_an_answer(folder, tmp_path, monkeypatch):
    answer_with(monkeypatch, DenseMLLMForConditionalGeneration, "<ref>wall</ref><ref>red ball</ref>")
    assert run(folder, "--labels_from_answer", "--out", tmp_path / "s.npy") == 0
    assert set(np.unique(np.load(tmp_path / "s.npy"))) <= {0, 2}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "depth", "--source", "depth"], "--source is for --task normals, not for depth"),
        (["--task", "depth", "--refine", "crf"], "`refine` must be None, or 'crf' with the task 'segmentation'"),
        (["--thing_labels", "wall"], "--thing_labels is for --task panoptic, not for segmentation"),
        (["--task", "depth", "--labels_from_answer"], "--labels_from_answer is for --task segmentation and panoptic"),
        (["--task", "panoptic", "--thing_labels", "sofa"], "`thing_labels` must be names or keys"),
        (["--task", "panoptic", "--thing_labels", "[1"], "--thing_labels must be a JSON list"),
        (["--task", "panoptic", "--thing_labels", "no.txt"], "--thing_labels no.txt can't be read"),
        (["--task", "normals"], "`focal_length` is needed"),
        (["--task", "normals", "--source", "tokens"], "<normal_1>"),
        (["--task", "open_set"], "--task open_set needs --labels"),
        (["--task", "referring"], "--task referring needs --text"),
    ],
)
def test_what_a_task_cannot_use_is_said_in_one_line(folder, tmp_path, capsys, arguments, words):
    assert run(folder, *arguments, "--out", tmp_path / "x.png") == 2
    assert words in capsys.readouterr().err.splitlines()[-1] and not list(tmp_path.iterdir())


def test_normals_are_no_run_lengths(folder, tmp_path, capsys):
    assert run(folder, "--task", "normals", "--focal_length", "40", "--out", tmp_path / "x.json") == 2
    assert "--out .json is for classes and masks" in capsys.readouterr().err
