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
"""Several data sets in one run, each with options of its own, and the depth ranges that a model lacks."""

import json
import math

import pytest
import yaml
from huggingface_hub import ModelCard

from densemllm import evaluate_densemllm, train_hf
from densemllm.train_hf import make_datasets, parse_arguments
from repository import load_script, require
from tiny import make_model, make_processor
from trees import write_ade20k, write_mixture, write_nyuv2


MIXTURE = require("examples/configs/mixture.yaml")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model and the five data sets, which commands are started in."""
    folder, processor = tmp_path_factory.mktemp("mixture"), make_processor()
    make_model(processor).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    write_mixture(folder / "data")
    return folder


@pytest.fixture
def start(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def kind_of(sample: dict) -> str:
    """The data set of the mixture that a sample is of, by what it is annotated with."""
    if "segmentation" in sample:
        return {150: "ade20k", 171: "coco_stuff"}[len(sample["id2label"])]
    return next(name for name in ("depth", "expression", "messages") if name in sample)


def said(capsys, *arguments) -> str:
    """The one line on stderr of a training that ends with 2."""
    capsys.readouterr()
    assert train_hf.run([str(argument) for argument in arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train_hf.py: ")]
    return line


# ---- the mixture ----


def test_each_data_set_is_drawn_by_its_weight(start):
    train, evaluated = make_datasets(parse_arguments([str(MIXTURE)])[1], seed=0)
    entries = yaml.safe_load(MIXTURE.read_text(encoding="utf-8"))["dataset"]
    weights = [entry["weight"] for entry in entries]
    assert [source.weight for source in train.sources] == weights
    assert train.counts == [6, 6, 2, 4, 2] == [len(train) * weight / sum(weights) for weight in weights]
    kinds = [kind_of(train[index]) for index in range(len(train))]
    expected = dict(zip(("ade20k", "coco_stuff", "depth", "expression", "messages"), train.counts, strict=True))
    assert {kind: kinds.count(kind) for kind in kinds} == expected
    assert {name: len(own) for name, own in evaluated.items()} == {"ade20k": 2, "nyuv2": 1}
    assert len(evaluated["ade20k"].sources[0].id2label) == 150


def test_weights_of_the_command_line_go_before_those_of_the_file(start):
    words = [str(MIXTURE), "--dataset_weights", "1", "1", "1", "1", "16"]
    assert make_datasets(parse_arguments(words)[1], seed=0)[0].counts == [1, 1, 1, 1, 16]


def test_the_example_trains_and_evaluates(start, tmp_path, caplog):
    words = ["--model_name_or_path", "model", "--output_dir", str(tmp_path / "out"), "--dataloader_num_workers", "0"]
    words += ["--use_cpu", "--per_device_train_batch_size", "5", "--gradient_accumulation_steps", "2"]
    words += ["--logging_steps", "1", "--eval_steps", "2", "--save_steps", "2", "--disable_tqdm", "true"]
    metrics = train_hf.main([str(MIXTURE), *words])
    (warning,) = [record.message for record in caplog.records if "no depth range" in record.message]
    assert "'nyuv2'" in warning and "'room'" in warning and "`depth_range`" in warning
    assert math.isfinite(metrics["train_loss"])
    log = json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"]
    steps = [row for row in log if "loss" in row]
    assert len(steps) == 2  # an epoch: 20 samples, 10 a step
    for row in steps:
        assert all(math.isfinite(row[name]) for name in ("loss", "text_loss", "ntp_m_loss", "grad_norm"))
        assert row["text_loss"] > 0 and row["ntp_m_loss"] > 0
    for name, metric in (("ade20k", "mean_iou"), ("nyuv2", "delta1")):
        rows = [row for row in log if f"eval_{name}_loss" in row]
        assert [row["step"] for row in rows] == [2, 2]  # while it trains, and at the end
        for row in rows:
            assert math.isfinite(row[f"eval_{name}_loss"]) and 0 <= row[f"eval_{name}_{metric}"] <= 1
    card = ModelCard.load(tmp_path / "out/README.md")
    results = {(result.dataset_name, result.metric_type) for result in card.data.eval_results}
    assert {("ade20k", "mean_iou"), ("nyuv2", "delta1")} <= results and ("nyuv2", "mean_iou") not in results
    assert "On ade20k, after 2 steps:" in card.content and "| data | ade20k:data/ADE" in card.content
    assert (tmp_path / "out/model.safetensors").is_file()


def test_ade20k_is_trained_by_one_command_and_measured_by_another(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_ade20k(tmp_path / "ADEChallengeData2016")
    data = "ade20k:ADEChallengeData2016"
    train_hf.main(["--model", str(place / "model"), "--dataset", data, "--output_dir", "out"])
    results = evaluate_densemllm.main(["--model", "out", "--data", data, "--task", "segmentation"])
    assert results["samples"] == 2 and math.isfinite(results["metrics"]["segmentation"]["mean_iou"])
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert len(config["id2label"]) == 150 and config["id2label"]["0"] == "wall"


# ---- options of one data set ----


def sources_of(tmp_path, entries, *words):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"dataset": entries}))
    args = parse_arguments([str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path / "out"), *words])[1]
    return make_datasets(args, seed=0)


def test_options_of_an_entry_are_its_alone(start, tmp_path):
    entries = [
        {"dataset": "ade20k:data/ADEChallengeData2016", "split": "validation", "label_map": {0: None, 1: 148},
         "columns": ["image", "segmentation"], "ignore_index": 255, "depth_range": None},
        "nyuv2:data/nyuv2",
        {"dataset": "nyuv2:data/nyuv2", "split": "test", "depth_range": "camera", "depth_scale": 0.01},
        {"dataset": "refcoco:data/refcoco", "sentences": "image"},
        {"dataset": "coco_stuff:data/coco", "thing_labels": ["person"], "names": "all", "reduce_labels": False},
    ]  # fmt: skip
    train, evaluated = sources_of(
        tmp_path, entries, "--depth_range", "room", "--eval_split", "train", "--eval_dataset", "refcoco:data/refcoco"
    )
    ade, nyu, other, referring, stuff = train.sources
    assert [len(source.data) for source in train.sources] == [2, 1, 1, 1, 6]
    assert [source.depth_range for source in train.sources] == ["room", "room", "camera", "room", "room"]
    assert 0 not in ade.id2label and 1 not in ade.id2label and ade.columns == ["image", "segmentation"]
    assert (nyu.depth_scale, other.depth_scale) == (0.001, 0.01) and len(nyu.id2label or {}) == 0
    assert referring.data.column_names == ["image", "instances", "expressions", "expression_instances"]
    assert stuff.thing_labels == ["person"] and len(stuff.id2label) == 182
    assert evaluated.sources[0].data.column_names == referring.data.column_names


def test_an_entry_is_the_same_on_the_command_line(start):
    entry = json.dumps({"dataset": "nyuv2:data/nyuv2", "split": "test", "depth_range": "camera"})
    train = make_datasets(parse_arguments(["--dataset", entry, "--output_dir", "out"])[1], seed=0)[0]
    assert (len(train), train.sources[0].depth_range) == (1, "camera")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"weight": 2}, "`dataset` must have a name as `dataset`"),
        ({"dataset": ["a"]}, "`dataset` must have a name as `dataset`"),
        ({"dataset": "ade20k:x", "wieght": 2}, r"`wieght` can't be given for ade20k:x; it takes \['weight', 'split'"),
        ({"dataset": "nyuv2:x", "sentences": "image"}, "`sentences` can't be given for nyuv2:x"),
        ({"dataset": "a", "weight": "much"}, "`weight` of a must be int or float, got 'much'"),
        ({"dataset": "a", "weight": True}, "`weight` of a must be int or float, got True"),
        ({"dataset": "a", "split": ["train"]}, r"`split` of a must be str, got \['train'\]"),
        ({"dataset": "a", "reduce_labels": "yes"}, "`reduce_labels` of a must be bool, got 'yes'"),
        ("{dataset: a}", "`dataset` must be a name or a JSON object, got {dataset: a}"),
    ],
)
def test_entries_that_cannot_be_used_are_named(tmp_path, entry, message):
    with pytest.raises(ValueError, match=message):
        sources_of(tmp_path, [entry])


def test_what_is_measured_while_training(start, tmp_path):
    entries = [{"dataset": "refcoco:data/refcoco", "eval_split": "train"}, "nyuv2:data/nyuv2",
               {"dataset": "refcoco:data/refcoco", "eval_split": "train", "sentences": "image"},
               {"dataset": "data/chat.jsonl", "eval_split": "train"}]  # fmt: skip
    evaluated = sources_of(tmp_path, entries)[1]
    assert {name: len(own) for name, own in evaluated.items()} == {"refcoco": 3, "refcoco_2": 1, "chat": 4}
    # A split for one of them goes before their own.
    evaluated = sources_of(tmp_path, entries, "--eval_split", "test", "--eval_dataset", "nyuv2:data/nyuv2")[1]
    assert len(evaluated) == 1 and evaluated.sources[0].data.column_names == ["image", "depth", "focal_length"]
    assert sources_of(tmp_path, entries[1:2])[1] is None


def test_data_sets_are_measured_alone(start, tmp_path):
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"dataset": [{"dataset": "ade20k:data/ADEChallengeData2016", "eval_split": "validation"}]})
    )
    words = ["--model", "model", "--output_dir", str(tmp_path / "out"), "--use_cpu", "--do_eval"]
    metrics = train_hf.main([str(tmp_path / "config.yaml"), *words])
    assert 0 <= metrics["eval_ade20k_mean_iou"] <= 1 and "train_loss" not in metrics


def test_weights_are_said_of_all_or_of_none(start, tmp_path):
    entries = [{"dataset": "nyuv2:data/nyuv2", "weight": 2}, "refcoco:data/refcoco"]
    with pytest.raises(ValueError, match="`weight` must be greater than 0 in every source or in none"):
        sources_of(tmp_path, entries)


def test_the_folder_of_a_named_layout_is_not_written_into(start, capsys):
    words = ["--model", "model", "--dataset", "nyuv2:data/nyuv2", "--output_dir", "data/nyuv2"]
    assert "`output_dir` must not be the folder of `dataset`" in said(capsys, *words)


# ---- depth ranges that a model lacks ----


def test_a_range_of_the_data_that_the_model_lacks_is_its_default(place, tmp_path, caplog, capsys):
    write_nyuv2(tmp_path / "nyuv2")
    data, model = f"nyuv2:{tmp_path / 'nyuv2'}", str(place / "model")
    words = ["--model", model, "--dataset", data, "--max_steps", "1", "--eval_split", "test", "--save_strategy", "no"]
    metrics = train_hf.main([*words, "--output_dir", str(tmp_path / "out"), "--use_cpu"])
    assert math.isfinite(metrics["eval_delta1"])
    assert sum("no depth range 'nyuv2'" in record.message for record in caplog.records) == 1
    caplog.clear()
    measure = ["--model", model, "--data", data, "--split", "test", "--task", "depth", "--device", "cpu"]
    results = evaluate_densemllm.main([*measure, "--output_dir", str(tmp_path / "measured")])
    assert results["options"]["depth_range"] == "room" and math.isfinite(results["metrics"]["depth"]["delta1"])
    assert sum("no depth range 'nyuv2'" in record.message for record in caplog.records) == 1
    caplog.clear()
    # What the user names is taken at its word.
    evaluate_densemllm.main([*measure, "--depth_range", "camera", "--output_dir", str(tmp_path / "other")])
    assert not any("depth range" in record.message for record in caplog.records)
    with pytest.raises(ValueError, match=r"`depth_range` must be one of \['camera', 'road', 'room'\], got 'nyuv2'"):
        evaluate_densemllm.main([*measure, "--depth_range", "nyuv2", "--output_dir", str(tmp_path / "third")])
    capsys.readouterr()
    message = said(capsys, *words, "--depth_range", "nyuv2", "--output_dir", tmp_path / "fourth")
    assert "`depth_range` must be one of ['camera', 'road', 'room'], got 'nyuv2'" in message


def test_a_range_of_the_data_that_the_model_has_is_taken(tmp_path, caplog):
    room = {"mapping": "linear", "min_depth": 0.0, "max_depth": 8.0}
    processor = make_processor(depth_ranges={"room": room, "nyuv2": room | {"max_depth": 10.0}})
    make_model(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    write_nyuv2(tmp_path / "nyuv2")
    words = ["--model", str(tmp_path / "model"), "--data", f"nyuv2:{tmp_path / 'nyuv2'}", "--split", "test"]
    results = evaluate_densemllm.main([*words, "--task", "depth", "--output_dir", str(tmp_path / "out")])
    assert results["options"]["depth_range"] == "nyuv2"
    assert not any("depth range" in record.message for record in caplog.records)


# ---- with the full sets ----


def rows_of(text: str, title: str) -> list[list[str]]:
    """The rows of the first table whose header begins with a title."""
    lines = text.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(f"| {title}"))
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip(" *") for cell in line.strip("|").split("|")])
    return table


def test_the_full_sets_on_paper(capsys):
    script = load_script("examples/mixture_on_paper.py")
    words = [str(MIXTURE), "--gpus", "8", "--chat_rows", "1000", "--dataset_weights", "1", "1", "1", "1", "1"]
    assert script.main([*words, "--random_scale", "1", "1"]) == 0
    printed = capsys.readouterr().out
    sets = rows_of(printed, "set ")
    counts = [int(row[3].replace(",", "")) for row in sets]
    assert [row[0] for row in sets] == ["ade20k", "coco_stuff", "nyuv2", "refcoco", "chat"]
    assert sum(counts) == 20_210 + 118_287 + 795 + 120_624 + 1000 and max(counts) - min(counts) <= 1
    # 512x704 and 480x640 pixels, cells of 32; a crop of 1280x1280 besides.
    assert [int(row[6].replace(",", "")) for row in sets] == [16 * 22, 15 * 20, 300, 300 + 40 * 40, 300]
    assert f"{math.ceil(math.ceil(sum(counts) / 32) / 4):,} steps" in printed
    parts = [float(row[2]) for row in rows_of(printed, "a GPU of 8, the mean")]
    assert parts[:3] == [2.67, 2.67, 5.34] and parts[-1] == pytest.approx(sum(parts[:-1]), abs=0.1)
    assert script.main([str(MIXTURE), "--gpus", "0"]) == 2 and "`gpus` must be at least 1" in capsys.readouterr().err
    assert script.main([str(MIXTURE), "--dataset", "kitti:x"]) == 2 and "got kitti:x" in capsys.readouterr().err
