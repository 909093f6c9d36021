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
import json
import os
import subprocess
import sys

import PIL.Image
import pytest
import released
import torch
from datasets import Dataset, DatasetDict
from test_parts import make_text

from densemllm import DenseMLLMForConditionalGeneration
from densemllm.convert_youtu_vl_to_densemllm import convert
from repository import ROOT, load_script, require
from tiny import ID2LABEL, make_image


require("examples")


@pytest.fixture(scope="module")
def photograph():
    data = pytest.importorskip("skimage.data")
    return os.path.join(os.path.dirname(data.__file__), "chelsea.png")


@pytest.mark.slow
def test_quickstart_runs_on_a_real_photograph(tmp_path, photograph):
    command = [
        sys.executable,
        ROOT / "examples/quickstart.py",
        "--quick",
        "--output_dir",
        tmp_path,
        "--image",
        photograph,
    ]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == {"best constant", "untrained", "trained"}
    assert all(0 <= row["mean_iou"] <= 1 and 0 <= row["delta1"] <= 1 for row in results.values())
    with PIL.Image.open(tmp_path / "predictions.png") as sheet:
        assert sheet.height > 4 * 288  # three rooms and the photograph
    model = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path / "checkpoint").eval()
    with PIL.Image.open(photograph) as image:
        prediction = model.predict_dense(photograph, task=("segmentation", "depth"), labels=["floor", "wall"])
        assert prediction.segmentation.shape == prediction.predicted_depth.shape == (image.height, image.width)
    assert bool((prediction.predicted_depth > 0).all())


@pytest.mark.parametrize("arguments", [["--epochs", "0"], ["--image", "no/such.png"], ["--train_scenes", "-1"]])
def test_quickstart_names_bad_arguments(tmp_path, arguments, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--output_dir", str(tmp_path / "out"), *arguments])
    with pytest.raises(SystemExit) as ended:
        load_script("examples/quickstart.py").main()
    assert ended.value.code == 2 and arguments[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ablation_trains_every_variant(tmp_path):
    options = ["--steps", "1", "--train_scenes", "8", "--eval_scenes", "2", "--output_dir", tmp_path]
    run = subprocess.run([sys.executable, ROOT / "examples/ablation.py", *options], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = json.loads((tmp_path / "results.json").read_text())
    assert len(rows) == 7 and {row["vision_attention"] for row in rows} == {"causal", "bidirectional"}


@pytest.mark.slow
def test_start_from_parts_compares_before_and_after(tmp_path):
    make_text(tmp_path / "text")
    options = ["--steps", "2", "--train_scenes", "4", "--eval_scenes", "2", "--output_dir", tmp_path / "out"]
    command = [sys.executable, ROOT / "examples/start_from_parts.py", "--text_model", tmp_path / "text", *options]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["before"]["perplexity"] > 1 and results["after"]["answer"] is not None
    assert [row["step"] for row in results["losses"]][-1] == 2


@pytest.mark.slow
def test_youtu_vl_draws_every_task(tmp_path, photograph):
    released.make_source(tmp_path / "source")
    convert(str(tmp_path / "source"), str(tmp_path / "model"))
    with PIL.Image.open(photograph) as image:
        image.resize((96, 64)).save(tmp_path / "photo.png")
    options = ["--model", tmp_path / "model", "--image", tmp_path / "photo.png", "--labels", "wall", "floor"]
    options += ["--focal_length", "80", "--max_new_tokens", "16", "--output_dir", tmp_path / "out"]
    run = subprocess.run([sys.executable, ROOT / "examples/youtu_vl.py", *options], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    report = json.loads((tmp_path / "out/answers.json").read_text())
    assert {"segmentation", "depth_nyuv2", "referring", "open_set", "detection", "pose", "counting"} <= set(report)
    for name in report:
        with PIL.Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert picture.size == (96, 64), name


def test_answers_are_drawn_where_they_are():
    image = PIL.Image.new("RGB", (40, 30), "black")
    answer = {"boxes": torch.tensor([[5.0, 6.0, 20.0, 25.0]]), "labels": ["cup"]}
    answer |= {"polygons": [[torch.tensor([[25.0, 2.0], [38.0, 2.0], [30.0, 10.0]])]]}
    answer |= {"keypoints": torch.tensor([[[30.0, 20.0, 1.0], [10.0, 28.0, 0.0]]])}
    drawn = load_script("examples/youtu_vl.py").draw_answer(image, answer)
    lit = {(x, y) for x in range(40) for y in range(30) if drawn.getpixel((x, y)) != (0, 0, 0)}
    assert {(5, 15), (12, 25), (30, 2), (30, 20)} <= lit
    assert not {(10, 28), (2, 2), (38, 28)} & lit  # not visible, outside
    assert image.getextrema() == ((0, 0), (0, 0), (0, 0))


def test_a_small_tokenizer_and_what_its_codes_do_to_maps(tmp_path, monkeypatch):
    maps = [{"segmentation": PIL.Image.new("L", (16, 16), seed), "depth": [[900] * 16] * 16} for seed in range(3)]
    rows = [{"image": make_image(16, 16, seed), **own} for seed, own in enumerate(maps)]
    DatasetDict({name: Dataset.from_list(rows) for name in ("train", "validation")}).save_to_disk(tmp_path / "data")
    (tmp_path / "data/id2label.json").write_text(json.dumps(ID2LABEL))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setattr(sys, "argv", [
        "train_image_tokenizer.py", "--data", str(tmp_path / "data"), "--steps", "2", "--batch_size", "2",
        "--image_size", "24", "--crop_size", "16", "--eval_images", "2", "--num_codes", "8",
        "--output_dir", "tokenizer",
    ])  # fmt: skip
    load_script("examples/train_image_tokenizer.py").main()
    found = json.loads((tmp_path / "tokenizer/results.json").read_text())
    assert 1 <= found["code_perplexity"] <= found["codes_in_use"] <= 8 and found["images"] == 2
    with PIL.Image.open(tmp_path / "tokenizer/images.png") as sheet:
        assert sheet.size == (2 * 64, 2 * 64)
    script = load_script("examples/codebook.py")
    words = [
        "codebook.py",
        "--data",
        str(tmp_path / "data"),
        "--image_tokenizer",
        "tokenizer",
        "--output_dir",
        "codebook",
        "--dense_steps",
        "1",
        "--codebook_steps",
        "10",
        "--seeds",
        "1",
        "--train_views",
        "2",
        "--eval_views",
        "2",
    ]
    monkeypatch.setattr(sys, "argv", words)
    script.main()
    results = json.loads((tmp_path / "codebook/results.json").read_text())
    rows = {row["variant"]: row for row in results["rows"]}
    assert list(rows) == ["dense", "codebook, then dense", "longer dense"]
    assert len(rows["codebook, then dense"]["codebook_loss"]) == 1 and (tmp_path / "codebook/seen.png").exists()
    script.main()  # all is done
    assert json.loads((tmp_path / "codebook/results.json").read_text()) == results
    monkeypatch.setattr(sys, "argv", [*words, "--dense_steps", "2"])
    with pytest.raises(SystemExit):
        script.main()
