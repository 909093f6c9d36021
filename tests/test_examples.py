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
from pathlib import Path

import PIL.Image
import pytest
from test_parts import make_text

from densemllm import DenseMLLMForConditionalGeneration


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def photograph():
    data = pytest.importorskip("skimage.data")
    return os.path.join(os.path.dirname(data.__file__), "chelsea.png")


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
def test_quickstart_names_bad_arguments(tmp_path, arguments):
    command = [sys.executable, ROOT / "examples/quickstart.py", "--output_dir", tmp_path / "out", *arguments]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2 and arguments[0] in run.stderr
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
