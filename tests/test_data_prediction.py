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
"""Whole data sets: `densemllm predict FOLDER` in every form, stopped and gone on with, and in two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, Features, Image, Value, load_dataset

from densemllm import data_prediction
from densemllm.cli import main
from densemllm.data_prediction import PredictionJob, predict_dataset
from densemllm.modeling_densemllm import DenseMLLMForConditionalGeneration
from tiny import ID2LABEL, make_image, make_model, make_processor


NAMES = ("a.png", "b.jpg", "deep/er/a.png", "deep/c.png", "d.png")
LABELS = json.dumps(list(ID2LABEL.values()))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    processor = make_processor()
    make_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(model_folder):
    return DenseMLLMForConditionalGeneration.from_pretrained(model_folder).eval()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        make_image(24 + 8 * number, 32, number).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"no image")
    return folder


def run(images, model_folder, out, *more):
    return main(["predict", *map(str, (images, "--model", model_folder, "--out", out, "--device", "cpu", *more))])


def expected(model, images, task, name, **options):
    return model.predict_dense(str(images / name), task, labels=list(ID2LABEL.values()), **options)


def test_maps_of_a_folder_of_several_tasks(images, model_folder, model, tmp_path, capsys):
    words = ("--task", "segmentation", "depth", "--labels", LABELS, "--batch_size", "2", "--save_every", "2")
    assert run(images, model_folder, tmp_path / "out", *words) == 0
    assert "5 images in " in capsys.readouterr().out
    for name in NAMES:
        stem = Path(name).with_suffix("")
        prediction = expected(model, images, ("segmentation", "depth"), name)
        classes = np.asarray(PIL.Image.open(tmp_path / f"out/segmentation/{stem}.png"))
        assert (classes == prediction.segmentation.numpy()).all()
        millimetres = np.asarray(PIL.Image.open(tmp_path / f"out/depth/{stem}.png"))
        assert np.abs(millimetres / 1000 - prediction.predicted_depth.numpy()).max() < 1e-3
    summary = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [row["name"] for row in summary["images"]] == sorted(NAMES)


def test_arrays(images, model_folder, model, tmp_path):
    assert run(images, model_folder, tmp_path / "out", "--labels", LABELS, "--format", "npz") == 0
    for name in NAMES:
        with np.load(tmp_path / "out" / Path(name).with_suffix(".npz")) as arrays:
            assert list(arrays) == ["segmentation"]
            assert (arrays["segmentation"] == expected(model, images, "segmentation", name).segmentation.numpy()).all()


def test_coco(images, model_folder, model, tmp_path):
    tools = pytest.importorskip("pycocotools.coco")
    assert run(images, model_folder, tmp_path / "out", "--labels", LABELS, "--format", "coco") == 0
    coco = tools.COCO(tmp_path / "out/coco.json")
    assert sorted(row["file_name"] for row in coco.imgs.values()) == sorted(NAMES)
    for row in coco.imgs.values():
        prediction = expected(model, images, "segmentation", row["file_name"])
        annotations = coco.imgToAnns[row["id"]]
        assert len(annotations) == len(prediction.segments_info)
        for annotation, segment in zip(annotations, prediction.segments_info, strict=True):
            mask = coco.annToMask(annotation).astype(bool)
            assert (mask == (prediction.segmentation == segment["id"]).numpy()).all()
            assert coco.cats[annotation["category_id"]]["name"] == segment["label"]
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["bbox"] == box and annotation["area"] == mask.sum()


def test_a_mask_of_what_a_text_names(images, model_folder, tmp_path):
    words = ("--task", "referring", "--text", "the wall", "--format", "coco")
    assert run(images, model_folder, tmp_path / "out", *words) == 0
    found = json.loads((tmp_path / "out/coco.json").read_text())
    assert len(found["images"]) == 5
    assert all(row["name"] == "the wall" for row in found["categories"])


def test_rows_of_a_file_to_rows_of_a_file(images, model_folder, model, tmp_path):
    rows = [{"photo": {"bytes": (images / name).read_bytes(), "path": None}, "label": 1} for name in NAMES]
    data = Dataset.from_list(rows, features=Features({"photo": Image(), "label": Value("int64")}))
    data.to_parquet(tmp_path / "rows.parquet")
    words = ("--labels", LABELS, "--format", "parquet", "--save_every", "2")
    assert run(tmp_path / "rows.parquet", model_folder, tmp_path / "out", *words) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("part-*")) == [
        f"part-{n:08d}.parquet" for n in range(3)
    ]
    found = load_dataset("parquet", data_files=str(tmp_path / "out/part-*.parquet"), split="train")
    assert found["name"] == [f"{number:08d}" for number in range(5)]
    for row, name in zip(found, NAMES, strict=True):
        prediction = expected(model, images, "segmentation", name)
        assert (np.asarray(row["segmentation"]) == prediction.segmentation.numpy()).all()


def test_an_image_that_cannot_be_read_is_listed_and_left_out(images, model_folder, tmp_path, capsys):
    (images / "broken.png").write_bytes(b"no image")
    (images / "cut.png").write_bytes((images / "a.png").read_bytes()[:200])
    assert run(images, model_folder, tmp_path / "out", "--labels", LABELS, "--focal_length", "30") == 0
    rows = json.loads((tmp_path / "out/predictions.json").read_text())["images"]
    errors = {row["name"]: row["error"] for row in rows if "error" in row}
    assert set(errors) == {"broken.png", "cut.png"} and "is not an image that Pillow can read" in errors["broken.png"]
    assert "2 could not be read" in capsys.readouterr().out
    assert run(images, model_folder, tmp_path / "out", "--labels", LABELS, "--focal_length", "30") == 0
    assert "all 7 images were done already" in capsys.readouterr().out
    assert len(list((tmp_path / "out/segmentation").rglob("*.png"))) == 5


def test_a_run_that_was_stopped_goes_on(images, model, tmp_path, monkeypatch):
    job = PredictionJob(
        str(images), tmp_path / "out", ("segmentation",), batch_size=1, save_every=2,
        options={"labels": list(ID2LABEL.values())},
    )  # fmt: skip
    written, write = [], data_prediction._write_image

    def stop(job, row, prediction):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(row["name"])
        return write(job, row, prediction)

    monkeypatch.setattr(data_prediction, "_write_image", stop)
    with pytest.raises(KeyboardInterrupt):
        predict_dataset(model, job)
    assert not (tmp_path / "out/predictions.json").exists()
    monkeypatch.setattr(data_prediction, "_write_image", lambda *args: written.append(args[1]["name"]) or write(*args))
    assert predict_dataset(model, job)["images"] == 3  # a piece of two was done
    assert written == [*sorted(NAMES)[:3], *sorted(NAMES)[2:]]
    assert len(list((tmp_path / "out/segmentation").rglob("*.png"))) == 5
    assert predict_dataset(model, job)["images"] == 0
    other = PredictionJob(**{**vars(job), "tasks": ("depth",), "options": {}})
    with pytest.raises(ValueError, match="`tasks` was"):
        predict_dataset(model, other)
    other.overwrite = True
    assert predict_dataset(model, other)["images"] == 5


def test_nothing_is_written_where_something_is_or_cannot_be_asked(images, model_folder, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    (tmp_path / "empty").mkdir()
    (tmp_path / "twins").mkdir()
    for name in ("one.png", "one.jpg"):
        make_image(8, 8).save(tmp_path / "twins" / name)
    for data, out, words, message in (
        (images, "mine", [], "thesis.txt already"),
        (images, "images/out", [], "must not be in the folder of `data`"),
        (images, "out", ["--format", "ply"], "--format ply is for --task depth, not for"),
        (
            images,
            "out",
            ["--format", "coco", "--task", "depth"],
            "--format coco is for --task segmentation and referring",
        ),
        (images, "out", ["--batch_size", "0"], "--batch_size must be at least 1"),
        (images, "out", ["--task", "depth", "--threshold", "0.5"], "--threshold is for"),
        (images / "a.png", "out.png", ["--task", "segmentation", "depth"], "--task must be one for image files"),
        (images / "a.png", "out.png", ["--format", "coco"], "--format coco must be written as .json"),
        (tmp_path / "empty", "out", [], "empty"),
        (tmp_path / "twins", "out", [], "would be written to the same file"),
        (tmp_path / "nothing.parquet", "out", [], "nothing.parquet"),
    ):
        labels = [] if "--task" in words else ["--labels", LABELS]
        assert run(data, model_folder, tmp_path / out, *labels, *words) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


@pytest.mark.slow
def test_two_processes_share_the_images(images, model_folder, tmp_path):
    """A process each half of them; together what one alone finds."""
    words = ["predict", images, "--model", model_folder, "--labels", LABELS, "--save_every", "1", "--device", "cpu"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "densemllm"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, *map(str, words), "--out", str(tmp_path / "two")],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert run(images, model_folder, tmp_path / "one", "--labels", LABELS) == 0
    for file in (tmp_path / "one/segmentation").rglob("*.png"):
        other = tmp_path / "two/segmentation" / file.relative_to(tmp_path / "one/segmentation")
        assert np.array_equal(np.asarray(PIL.Image.open(file)), np.asarray(PIL.Image.open(other)))
    summaries = [json.loads((tmp_path / name / "predictions.json").read_text())["images"] for name in ("one", "two")]
    assert summaries[0] == summaries[1] and len(summaries[0]) == 5
    assert torch.distributed.is_initialized() is False
