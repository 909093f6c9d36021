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
"""`densemllm`: what is said before torch is there, the table that it is said from, and what each command shows."""

import json
import os
import subprocess
import sys

import pytest

from densemllm.addresses import find_model
from densemllm.cli import OWN_COMMANDS, main
from densemllm.commands.tables import FILE, make_tables, read_tables
from densemllm.saving_densemllm import FORMATS
from densemllm.tasks_densemllm import TASKS, Codes, tasks_with
from tiny import ID2LABEL, make_image, make_model, make_processor


HEAVY = ("torch", "transformers", "numpy", "datasets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("command_tables")
    processor = make_processor(referring_prompt="find {text}")
    make_model(processor, id2label=ID2LABEL, thing_labels=["red ball"]).save_pretrained(path / "model")
    processor.save_pretrained(path / "model")
    make_image(30, 50).save(path / "a.png")
    return path


def test_the_table_is_what_the_tasks_say():
    """`python tools/write_command_tables.py` writes it anew."""

    assert json.loads(FILE.read_text(encoding="utf-8")) == make_tables()
    tables = read_tables()
    assert list(tables.tasks) == list(TASKS) and list(tables.formats) == list(FORMATS)
    for option in {option for task in TASKS.values() for option in task.options}:
        assert tuple(tables.tasks_with(option)) == tasks_with(option)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, "evaluate"),
        (["segment", "--help"], 0, "--labels"),
        (["depth", "none.jpg", "--model", "none", "--out", "x.png"], 2, "IMAGE must be a file, got none.jpg"),
        (["depth", "a.png", "--model", "./none", "--out", "x.png"], 2, "--model ./none can't be loaded"),
        (["none.jpg"], 2, "invalid choice: 'none.jpg'"),
        (["depth", "a.png", "--model", "m", "--out", "x.png", "--scale", "0"], 2, "--scale must be"),
        (["tasks"], 0, "panoptic: a class for each pixel"),
    ],
)
def test_what_needs_no_model_does_not_wait_for_torch(folder, arguments, code, words):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "densemllm", *arguments],
        cwd=folder, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert done.returncode == code and words in done.stdout + done.stderr, done.stderr[-500:]
    assert "densemllm.cli" in imported and not imported & set(HEAVY)


def help_of(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as done:
        main([*arguments, "--help"])
    assert done.value.code == 0
    return capsys.readouterr().out


def test_a_command_shows_the_options_that_it_takes(capsys):
    segment, depth, predict = (help_of(capsys, name) for name in ("segment", "depth", "predict"))
    for option in ("--labels", "--threshold", "--background", "--polygons", "geojson (", "yolo ("):
        assert option in segment and option in predict and option not in depth
    for option in ("--source", "--thing_labels", "--text"):
        assert option in predict and option not in segment and option not in depth
    assert "ply (" in depth and "ply (" not in segment
    for text, name in ((segment, "segment"), (depth, "depth"), (predict, "predict"), (help_of(capsys, "ask"), "ask")):
        assert f"    densemllm {name} " in text  # an example
        assert max(map(len, text.splitlines())) <= 120


def test_every_command_is_in_the_help(capsys):
    text = help_of(capsys)
    for name in ("predict", "segment", "depth", "ask", "tasks", "env", *OWN_COMMANDS):
        assert f"\n    {name}" in text


def test_an_option_that_is_not_shown_is_refused_by_name(folder, capsys):
    words = ["depth", str(folder / "a.png"), "--model", "m", "--out", "x.png", "--labels", "wall"]
    assert main(words) == 2
    assert "--labels is for --task" in capsys.readouterr().err


def test_tasks_of_a_checkpoint(folder, capsys):

    assert main(["tasks", "--model", str(folder / "model")]) == 0
    text = capsys.readouterr().out
    for words in ("0 wall, 1 floor, 2 red ball", "room", "0.5 to 80 m, log, camera of 100 pixels", "find {text}"):
        assert words in text
    assert main(["tasks", "--model", str(folder / "model"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["classes"] == {str(key): name for key, name in ID2LABEL.items()}
    assert set(found["tasks"]) == set(TASKS) and found["thing_labels"] == ["red ball"]
    missing = {name for name, row in found["tasks"].items() if row["missing"]}
    assert missing == {Codes.name}  # this tokenizer has all that the others need; normals come from depth
    assert main(["tasks"]) == 0
    text = capsys.readouterr().out
    assert all(f"{name}: {task.about}" in text for name, task in TASKS.items())


def test_models_are_found_without_waiting(folder, tmp_path, monkeypatch):
    assert find_model(str(folder / "model")) == str(folder / "model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no config.json"):
        find_model(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="there is no such folder, and no such name"):
        find_model("a/b/c")
    with pytest.raises(ValueError, match="not in the cache"):
        find_model("nobody/none")


@pytest.mark.parametrize("cached", [False, True])
def test_without_a_network_the_cache_is_used(folder, monkeypatch, cached):
    """The Hub is asked once; what it takes to know that nobody answers is one try."""
    import huggingface_hub

    asked = []

    class ConnectError(Exception):
        pass

    def refuse(*args, **kwargs):
        asked.append(args)
        raise ConnectError("no route")

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    place = str(folder / "model" / "config.json") if cached else None
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: place)
    if cached:
        assert find_model("somebody/model") == str(folder / "model")
    else:
        with pytest.raises(ValueError, match=r"the Hub can't be reached \(no route\)"):
            find_model("somebody/model")
    assert len(asked) == 1


def test_a_slow_network_is_left_to_the_download(monkeypatch):
    import huggingface_hub

    class ConnectTimeout(Exception):
        pass

    def wait(*args, **kwargs):
        raise ConnectTimeout

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", wait)
    assert find_model("somebody/model") == "somebody/model"
