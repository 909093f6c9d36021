"""`train_hf.py`: what it does when it is told to, and what it says where something can't be used."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict
from safetensors import SafetensorError

from densemllm import DenseMLLMForConditionalGeneration
from densemllm.formats.folders import load_samples
from densemllm.train_hf import main, parse_arguments, run
from repository import require
from tiny import ID2LABEL, make_image, make_model, make_processor, make_samples


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model and a data set with all splits."""
    folder, processor = tmp_path_factory.mktemp("script"), make_processor()
    make_model(processor).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    splits = {name: Dataset.from_list(make_samples(4, seed)[1:]) for seed, name in enumerate(("train", "validation"))}
    DatasetDict({**splits, "test": splits["validation"]}).save_to_disk(folder / "data")
    (folder / "data/id2label.json").write_text(json.dumps(ID2LABEL))
    return folder


@pytest.fixture
def words(source, tmp_path):
    return [
        "--model_name_or_path", str(source / "model"), "--dataset", str(source / "data"),
        "--output_dir", str(tmp_path / "out"), "--per_device_train_batch_size", "2", "--max_steps", "2",
        "--report_to", "none", "--use_cpu", "--disable_tqdm", "true", "--save_strategy", "no",
    ]  # fmt: skip


def state(folder):
    """Every file with its content."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def said(capsys, *arguments) -> str:
    """The one line on stderr of a run that ends with 2."""
    capsys.readouterr()
    assert run([str(argument) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train_hf.py: ")]
    assert len(lines) == 1
    return lines[0]


# ---- what it does ----


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        (["--eval_split", "validation"], {"train_loss", "eval_loss"}),
        (["--eval_split", "validation", "--do_train", "true", "--do_eval", "false"], {"train_loss"}),
        (["--eval_split", "validation", "--do_eval"], {"eval_loss", "eval_mean_iou"}),
        (["--eval_split", "validation", "--do_train", "false", "--do_eval", "true"], {"eval_loss", "eval_mean_iou"}),
        (["--test_split", "test", "--do_predict"], {"predict_loss", "predict_mean_iou"}),
        (["--test_split", "test", "--do_predict", "--do_train"], {"train_loss", "predict_loss"}),
    ],
)
def test_tasks_are_done_as_asked(source, words, tmp_path, options, keys):
    before = state(source)
    metrics = main([*words, *options])
    assert keys <= set(metrics) and state(source) == before
    assert {key.split("_")[0] for key in keys} == {key.split("_")[0] for key in metrics if key.endswith("_loss")}
    trains = "train_loss" in keys
    assert (tmp_path / "out/model.safetensors").exists() == (tmp_path / "out/README.md").exists() == trains
    assert keys <= set(json.loads((tmp_path / "out/all_results.json").read_text()))


@pytest.mark.parametrize("folder", ["model", "data", "model/checkpoint-4"])
def test_an_output_folder_that_is_an_input_is_refused(source, words, tmp_path, folder, capsys):
    own = tmp_path / "own"
    shutil.copytree(source, own)
    shutil.copytree(source / "model", own / "model/checkpoint-4")
    words[1], words[3], words[5] = str(own / folder), str(own / "data"), str(own / folder)
    if folder == "data":
        words[1] = str(own / "model")
    if folder == "model/checkpoint-4":
        words[5] = str(own / "model")
    before = state(own)
    for more in ([], ["--eval_split", "validation", "--do_train", "false", "--do_eval", "true"]):
        if not (more and "checkpoint" in folder):
            assert "`output_dir`" in said(capsys, *words, *more)
    assert state(own) == before


def test_a_finetuned_model_names_its_own_classes(source, words, tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"0": "sky", "1": "grass", "2": "tree"}))
    main([*words, "--id2label", str(tmp_path / "other.json")])
    config = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path / "out").config
    assert list(config.id2label.values()) == ["sky", "grass", "tree"]
    main([*words, "--model_id2label", str(tmp_path / "other.json")])
    config = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path / "out").config
    assert list(config.id2label.values()) == ["sky", "grass", "tree"]


@pytest.mark.parametrize("name", ["finetune.yaml", "lora.yaml"])
def test_example_configurations_run_without_a_gpu(source, words, tmp_path, name):
    if torch.accelerator.is_available():
        pytest.skip("has an accelerator")
    options = words[:6] + ["--max_steps", "1", "--dataloader_num_workers", "0", "--disable_tqdm", "true"]
    metrics = main([str(require("examples/configs") / name), *options])
    assert np.isfinite(metrics["train_loss"])


# ---- what it says ----


def test_what_is_missing_is_said(words, capsys, tmp_path):
    assert "nothing to do" in said(capsys, *words, "--do_train", "false")
    assert "`do_eval` needs `eval_split`" in said(capsys, *words, "--do_eval")
    assert "`do_predict` needs `test_split`" in said(capsys, *words, "--do_predict")
    assert "has no checkpoint" in said(capsys, *words, "--resume_from_checkpoint", "true")
    assert "has no trainer_state.json" in said(capsys, *words, "--resume_from_checkpoint", tmp_path)
    assert "'test2'" in said(capsys, *words, "--do_predict", "--test_split", "test2")
    assert "nowhere" in said(capsys, *words, "--id2label", tmp_path / "nowhere.json")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: [a", "can't be read"),
        ("a: 1\n\0", "can't be read"),
        ("- a", "unknown: list"),
        ("", "unknown: NoneType"),
        ("learningrate: 1\n1: 2", "unknown: \\[1, 'learningrate'\\]"),
        ("max_steps: [1, 2]", "`max_steps` must be one value"),
    ],
)
def test_configuration_files_that_cannot_be_used_are_named(words, tmp_path, capsys, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        parse_arguments([str(tmp_path / "config.yaml"), *words])
    assert "config.yaml" in said(capsys, tmp_path / "config.yaml", *words)
    assert "nowhere.json" in said(capsys, tmp_path / "nowhere.json", *words)


@pytest.mark.parametrize(
    "values", [{"learning_rate": "much"}, {"bf16": 3}, {"lora_r": {"a": 1}}, {"crop_size": [8, "b"]}]
)
def test_values_of_a_configuration_file_are_checked_as_those_of_the_command_line(words, tmp_path, capsys, values):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(SystemExit) as stop:
        run([str(tmp_path / "config.yaml"), *words])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and len(message.splitlines()) < 5
    assert next(iter(values)) in message


def test_values_of_a_configuration_file_arrive(words, tmp_path):
    values = {
        "dataset": ["a", "b"], "random_scale": [0.5, 2], "lr_scheduler_kwargs": {"num_cycles": 2}, "seed": 7,
        "do_eval": False, "eval_split": None, "lora_target_modules": "q_proj", "flip_probability": 0.5,
        "run_name": "-a b", "report_to": ["none"],
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8-sig")
    words = [str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path), "--use_cpu", "--seed", "8"]
    model, data, args = parse_arguments(words)
    assert (data.dataset, data.random_scale, data.flip_probability) == (["a", "b"], [0.5, 2.0], 0.5)
    assert (args.lr_scheduler_kwargs, args.seed, args.do_eval) == ({"num_cycles": 2}, 8, False)
    assert (args.run_name, model.lora_target_modules, data.eval_split) == ("-a b", ["q_proj"], None)


def spoil(folder, how):
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "cut weights":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif how == "other shape":
        values = json.loads(config.read_text())
        values["vision_config"]["intermediate_size"] = 12
        config.write_text(json.dumps(values))
    elif how == "cut tokenizer":
        (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text()[:1000])
    elif how == "wrong type":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"ntp_m_top_k": "many"}))
    elif how == "no config":
        config.unlink()
    elif how == "no folder":
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "how", ["cut weights", "other shape", "cut tokenizer", "wrong type", "no config", "no folder"]
)
def test_a_model_that_cannot_be_loaded_is_named(source, words, tmp_path, capsys, how):
    shutil.copytree(source / "model", tmp_path / "own")
    spoil(tmp_path / "own", how)
    words[1] = str(tmp_path / "own")
    assert f"{tmp_path / 'own'} can't be loaded: " in said(capsys, *words)
    assert not (tmp_path / "out").exists()


def test_a_run_goes_on_with_adapters_as_it_began(words, tmp_path, capsys):
    words[-1] = "steps"
    words += ["--save_steps", "1"]
    for first, then, message in (
        (["--use_peft"], [], "has LoRA adapters: go on with `--use_peft`"),
        (["--use_peft"], ["--use_peft", "--lora_r", "4"], "was trained with `--lora_r 16`, got 4"),
        ([], ["--use_peft"], "was trained without `--use_peft`"),
    ):
        main([*words, *first])
        assert message in said(capsys, *words, *then, "--resume_from_checkpoint", "true")
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_row_that_breaks_the_schema_is_named(words, tmp_path, capsys, workers):
    (tmp_path / "few.json").write_text(json.dumps({"0": "wall"}))
    options = ["--id2label", tmp_path / "few.json", "--dataloader_num_workers", workers]
    message = said(capsys, *words, *options)
    assert "column `segmentation`: it has the class ids [1, 2]" in message and "Traceback" not in message


def test_a_metric_that_no_evaluation_has_is_named(words, capsys):
    options = ["--eval_split", "validation", "--eval_strategy", "steps", "--eval_steps", "1", "--save_steps", "1"]
    words[-1] = "steps"
    message = said(capsys, *words, *options, "--metric_for_best_model", "nothing", "--load_best_model_at_end")
    assert "metric_for_best_model" in message and "eval_mean_iou" in message


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data/4"),
    ],
)
def test_a_full_disk_is_named_and_leaves_nothing_half_written(words, tmp_path, capsys, monkeypatch, error):
    def save_pretrained(self, folder, **kwargs):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(DenseMLLMForConditionalGeneration, "save_pretrained", save_pretrained)
    for strategy in ("no", "steps"):
        words[-1] = strategy
        message = said(capsys, *words, "--save_steps", "1")
        assert str(tmp_path / "out") in message and "can't be written" in message
        left = {path.name for path in (tmp_path / "out").iterdir()}
        assert not left & {"unfinished", "_lock", "model.safetensors", "README.md", "checkpoint-1"}


@pytest.mark.slow
def test_the_command_ends_without_a_traceback(source, tmp_path):
    command = [sys.executable, "-m", "densemllm.train_hf", "--dataset", str(tmp_path), "--output_dir", str(tmp_path)]
    ended = subprocess.run(
        [*command, "--model_name_or_path", str(source / "model"), "--use_cpu"], capture_output=True, text=True
    )
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "train_hf.py: `output_dir` must not be the folder of `dataset`" in ended.stderr


# ---- splits ----


def test_a_split_that_a_folder_lacks_is_refused(tmp_path):
    """As for parquet: training data would be measured on, and a card would say so."""
    for parent in (tmp_path / "plain", tmp_path / "splits/train"):
        for column in ("image", "mask"):
            (parent / column).mkdir(parents=True)
            picture = make_image(8, 8) if column == "image" else PIL.Image.new("L", (8, 8), 255)
            picture.save(parent / column / "a.png")
    Dataset.from_list(make_samples(2)).save_to_disk(tmp_path / "saved")
    for name in ("plain", "splits", "saved"):
        assert len(load_samples(str(tmp_path / name), "train")) > 0
        for streaming in (False, True):
            with pytest.raises(ValueError, match=r"`split` must be .*'train'.*got 'validation'"):
                load_samples(str(tmp_path / name), "validation", streaming)
    assert len(load_samples(str(tmp_path / "saved"), "validation", whole=True)) == 2
