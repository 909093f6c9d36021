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

"""Folders of a training, and the card of its model."""

import os

import pytest
import yaml
from transformers import TrainerState, TrainingArguments

from densemllm.training.checkpoints import (
    LOCK_NAME,
    UNFINISHED,
    delete_all_but,
    delete_oldest,
    locked,
    replace_checkpoint,
    writing,
)
from densemllm.training.model_card import make_model_card


def make_checkpoints(folder, steps=(1, 2, 3, 4)):
    for step in steps:
        path = folder / f"checkpoint-{step}"
        path.mkdir(parents=True)
        (path / "state.json").write_text(str(step))
        os.utime(path, (step, step))


def steps_of(folder) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.iterdir())


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, None, [1, 2, 3, 4]),
        (0, None, [1, 2, 3, 4]),
        (2, None, [3, 4]),
        (1, None, [4]),
        (1, 2, [2, 4]),  # never the last one nor the best one
        (2, 1, [1, 4]),
        (9, 1, [1, 2, 3, 4]),
    ],
)
def test_the_oldest_are_deleted(tmp_path, limit, best, kept):
    make_checkpoints(tmp_path)
    delete_oldest(str(tmp_path), limit, best and str(tmp_path / f"checkpoint-{best}"))
    assert steps_of(tmp_path) == kept


def test_all_but_one_are_deleted(tmp_path):
    make_checkpoints(tmp_path)
    delete_all_but(str(tmp_path / "checkpoint-3"))
    assert steps_of(tmp_path) == [3]


def test_a_checkpoint_takes_the_place_of_an_older_one(tmp_path):
    make_checkpoints(tmp_path, [7])
    make_checkpoints(tmp_path / UNFINISHED, [7])
    (tmp_path / UNFINISHED / "checkpoint-7/state.json").write_text("new")
    replace_checkpoint(tmp_path / "checkpoint-7", tmp_path / UNFINISHED / "checkpoint-7")
    assert (tmp_path / "checkpoint-7/state.json").read_text() == "new" and steps_of(tmp_path) == [7]


@pytest.mark.parametrize(("error", "words"), [(OSError("no space left"), "can't be written"), (KeyError("x"), "x")])
def test_what_is_not_whole_is_removed(tmp_path, error, words):
    with pytest.raises((OSError, KeyError), match=words) as raised:
        with writing(tmp_path / "staged"):
            make_checkpoints(tmp_path / "staged")
            raise error
    assert not list(tmp_path.iterdir()) and isinstance(raised.value, type(error))


def test_a_folder_is_held_once_at_a_time(tmp_path):
    with locked(tmp_path / "out"):
        with pytest.raises(ValueError, match="`output_dir` .*out is in use"):
            with locked(os.path.relpath(tmp_path / "out")):
                pass
        assert (tmp_path / "out" / LOCK_NAME).is_file()
    with locked(tmp_path / "out"):
        pass
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_card_has_the_last_evaluation(tmp_path, evaluated):
    state = TrainerState(global_step=30, epoch=1.5)
    if evaluated:
        state.log_history = [
            {"eval_loss": 3.0, "eval_mean_iou": 0.1},
            {"eval_loss": 2.0, "eval_mean_iou": 0.25, "eval_abs_rel": None},
            {"loss": 1.0},
        ]
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, learning_rate=3e-4)
    card = make_model_card(
        args, state, {0: "wall"}, "me/rooms", "you/base", ["a", "b"], "you/a", "extra", license="mit"
    )
    data = yaml.safe_load(card.content.split("---")[1])
    assert (data["license"], data["base_model"], data["datasets"]) == ("mit", "you/base", ["you/a"])
    assert data["tags"] == ["densemllm", "depth-estimation", "image-segmentation", "custom_code", "extra"]
    assert ("model-index" in data) == evaluated
    if evaluated:
        (result,) = data["model-index"][0]["results"]
        assert result["dataset"] == {"name": "a, b", "type": "you/a"}
        assert result["metrics"] == [{"type": "mean_iou", "value": 0.25, "name": "mIoU"}]
    lines = card.content.splitlines()
    assert ("| mIoU | 0.25 |" in lines, "| loss | 2.0000 |" in lines) == (evaluated, evaluated)
    assert "| learning_rate | 0.0003 |" in lines and "| steps | 30 (1.50 epochs) |" in lines
    assert "| data | a, b |" in lines
    card = make_model_card(args, state, None, "me/rooms", dataset=["a", "b"], evaluated_on="b")
    assert "On b, after 30 steps:" in card.content.splitlines() and "| data | a, b |" in card.content.splitlines()
    assert "Its classes: wall." in lines and "On a, b, after 30 steps:" in lines
