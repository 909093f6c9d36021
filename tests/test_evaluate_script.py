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
"""The evaluation script."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor, evaluate_densemllm
from densemllm.evaluate_densemllm import main, parse_arguments
from densemllm.evaluation import run as evaluation
from densemllm.evaluation.predict import evaluate_dense
from densemllm.evaluation.report import draw_confusion, pick_cases
from densemllm.evaluation.state import State
from tiny import ID2LABEL, make_model, make_processor, make_samples


SCRIPT = Path(evaluate_densemllm.__file__)
COUNT = 7


def annotated():
    """Samples with all annotations but where some lack."""
    samples = make_samples(COUNT)
    for index, sample in enumerate(samples):
        mask = np.zeros(np.array(sample["segmentation"]).shape, dtype=np.uint8)
        mask[4 : 8 + index, 3:12] = 255
        there = index != 3
        sample["mask"] = PIL.Image.fromarray(mask) if there else None
        sample["expression"] = f"the red ball {index}" if there else None
    return samples


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a checkpoint and a data set."""
    folder = tmp_path_factory.mktemp("evaluation")
    processor = make_processor()
    make_model(processor).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    Dataset.from_list(annotated()).save_to_disk(folder / "data")
    (folder / "data/id2label.json").write_text(json.dumps(ID2LABEL))
    return folder


@pytest.fixture
def options(made, tmp_path):
    return {
        "model": str(made / "model"), "data": str(made / "data"), "task": ["segmentation", "depth", "referring"],
        "output_dir": str(tmp_path / "out"), "batch_size": 2, "save_every": 1, "device": "cpu", "cases": 0,
    }  # fmt: skip


def as_arguments(options):
    words = []
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def run(options, **kwargs):
    return main(as_arguments({**options, **kwargs}))


def read(options):
    results = json.loads((Path(options["output_dir"]) / "results.json").read_text())
    return {name: results[name] for name in ("metrics", "images", "samples", "per_label")}


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
    """What an undisturbed run of one process gives for `options`."""
    own = {
        "model": str(made / "model"), "data": str(made / "data"), "task": ["segmentation", "depth", "referring"],
        "output_dir": str(tmp_path_factory.mktemp("whole") / "out"), "batch_size": 2, "device": "cpu", "cases": 0,
    }  # fmt: skip
    main(as_arguments(own))
    return read(own)


def test_all_tasks_and_all_files(made, options, capsys):
    tasks = ["segmentation", "depth", "referring", "class_list"]
    results = run(options, task=tasks, cases=1, max_depth=6)
    model = DenseMLLMForConditionalGeneration.from_pretrained(options["model"]).eval()
    processor = DenseMLLMProcessor.from_pretrained(options["model"])
    assert results["images"] == {"segmentation": 7, "depth": 6, "referring": 6, "class_list": 7}
    plain = evaluate_dense(model, processor, annotated(), ID2LABEL, batch_size=2)
    for name in ("mean_iou", "pixel_accuracy", "mean_boundary_iou"):
        assert results["metrics"]["segmentation"][name] == pytest.approx(plain[name], abs=1e-3)
    for name in ("ciou", "giou", "boundary_iou"):
        assert results["metrics"]["referring"][name] == pytest.approx(plain[name], abs=1e-3)
    assert results["metrics"]["depth"]["rmse"] != pytest.approx(plain["rmse"])  # of the nearer pixels only
    assert [row["label"] for row in results["per_label"]] == list(ID2LABEL.values())
    assert [row["iou"] for row in results["per_label"]] == pytest.approx(plain["per_label_iou"], abs=1e-3)
    pixels = sum(int((np.array(sample["segmentation"]) != 255).sum()) for sample in annotated())
    assert sum(row["pixels"] for row in results["per_label"]) == pixels

    folder = Path(options["output_dir"])
    text = (folder / "results.json").read_text()
    assert "NaN" not in text and json.loads(text) == results
    assert results["options"]["max_depth"] == 6 and results["versions"]["torch"] == torch.__version__
    table = (folder / "results.md").read_text()
    assert f"| segmentation | mIoU | {results['metrics']['segmentation']['mean_iou']:.4f} | 7 |" in table
    assert "| red ball |" in table and table in capsys.readouterr().out
    for name in ("confusion.png", "cases.png"):
        with PIL.Image.open(folder / name) as picture:
            assert min(picture.size) > 200 and len(np.unique(np.array(picture))) > 10
    assert not list(folder.rglob("*.tmp"))


def test_an_interrupted_run_goes_on_with_the_same_numbers(options, whole, monkeypatch):
    save, predict, asked = State.save, evaluation.predict_samples, []

    def interrupted(self, piece):
        if len(list(self.folder.glob("piece-*.json"))) == 2:
            raise KeyboardInterrupt
        save(self, piece)

    monkeypatch.setattr(State, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(options)
    assert not (Path(options["output_dir"]) / "results.json").exists()
    monkeypatch.setattr(State, "save", save)
    monkeypatch.setattr(
        evaluation, "predict_samples", lambda *args, **kwargs: asked.append(args) or predict(*args, **kwargs)
    )
    run(options)
    assert len(asked) == 2  # of four batches, the two that were not saved
    assert read(options) == whole
    run(options)  # nothing is left to do
    assert len(asked) == 2 and read(options) == whole


KILLED = """
import os, signal
from densemllm.evaluate_densemllm import main
from densemllm.evaluation.state import State
save = State.save
def killed(self, piece):
    save(self, piece)
    if piece["batches"][0] >= 2:
        os.kill(os.getpid(), signal.SIGKILL)
State.save = killed
main()
"""


def launch(options, *command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, command), *as_arguments(options)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(options, whole):
    launched = launch(options, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, SCRIPT)
    assert launched.returncode == 0, launched.stderr[-3000:]
    assert read(options) == whole
    assert json.loads((Path(options["output_dir"]) / "results.json").read_text())["processes"] == 2
    assert launched.stdout.count("| segmentation | mIoU |") == 1


@pytest.mark.slow
def test_a_killed_run_goes_on_in_two_processes(options, whole):
    killed = launch(options, "-c", KILLED)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    folder = Path(options["output_dir"])
    assert len(list(folder.glob("state/piece-*.json"))) == 3 and not (folder / "results.json").exists()
    launched = launch(options, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, SCRIPT)
    assert launched.returncode == 0, launched.stderr[-3000:]
    assert read(options) == whole


def test_processes_that_do_not_know_of_each_other_are_refused(options, whole, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched"):
        run(options)


def test_another_evaluation_is_refused(made, options, tmp_path):
    run(options, limit=2)
    before = read(options)
    for kwargs, message in (
        ({"batch_size": 3}, "`batch_size` was 2, is 3"),
        ({"max_depth": 5.0}, "`max_depth` was None, is 5.0"),
        ({"task": "depth"}, "`task` was"),
    ):
        with pytest.raises(ValueError, match=message + ".*--overwrite"):
            run(options, limit=2, **kwargs)
    with pytest.raises(ValueError, match="`samples` was 2, is 7"):
        run(options)

    other = tmp_path / "other"
    processor = make_processor()
    make_model(processor, seed=1).save_pretrained(other)
    processor.save_pretrained(other)
    with pytest.raises(ValueError, match="`model_digest` has changed"):
        run(options, limit=2, model=other)
    samples = annotated()
    samples[1]["segmentation"].putpixel((0, 0), 2 - samples[1]["segmentation"].getpixel((0, 0)))
    Dataset.from_list(samples).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match="`data_digest` has changed"):
        run(options, limit=2, data=tmp_path / "data", id2label=made / "data/id2label.json")
    assert read(options) == before
    run(options, limit=2, model=other, overwrite=True)
    assert read(options) != before
    (Path(options["output_dir"]) / "state/run.json").unlink()
    with pytest.raises(ValueError, match="the state of another evaluation"):
        run(options, limit=2, model=other)


def test_the_same_evaluation_elsewhere_is_the_same(made, options, tmp_path):
    """What is compared is what is in the checkpoint and the data, not where they are."""
    run(options, limit=2)
    (tmp_path / "model").symlink_to(made / "model")
    run(options, limit=2, model=tmp_path / "model", save_every=5)


def test_the_card_keeps_what_it_had(made, options, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (made / "model").iterdir():
        (folder / path.name).symlink_to(path)
    options = {**options, "model": str(folder), "task": ["segmentation", "depth"]}
    run(options, limit=3, update_card=True)
    card = ModelCard.load(folder / "README.md")
    assert card.data.model_name == "model" and len(card.data.eval_results) == 9
    assert json.loads((folder / "config.json").read_text())["model_type"] == "densemllm"

    card.data.license = "apache-2.0"
    card.data.eval_results[0].metric_value = 0.9
    index = yaml.safe_load(card.content.split("---")[1])["model-index"]
    other = {
        "task": {"type": "text-generation"}, "dataset": {"type": "user/words", "name": "Words", "split": "test"},
        "metrics": [{"type": "accuracy", "value": 0.5, "name": "accuracy"}],
    }  # fmt: skip
    index[0]["results"].insert(0, other)
    front = {"license": "apache-2.0", "model-index": index}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(front)}---\n\n# Mine\n\nSome text.\n")
    results = run(options, limit=3, update_card=True)
    results = run(options, limit=3, update_card=True, overwrite=True, max_depth=6.0)
    text = (folder / "README.md").read_text()
    assert "---\n\n# Mine\n\nSome text.\n\n<!-- evaluation: " in text
    assert text.count("## Evaluated on ") == text.count("| segmentation | mIoU | ") == 1
    row = results["per_label"][0]
    assert f"| {row['label']} | {row['iou']:.4f} | " in text and text.endswith("validation -->\n")
    written = yaml.safe_load(text.split("---")[1])
    assert written["license"] == "apache-2.0" and written["model-index"][0]["results"][0] == other
    card = ModelCard.load(folder / "README.md")
    values = {(row.metric_type, str(row.metric_args)): row.metric_value for row in card.data.eval_results}
    assert len(card.data.eval_results) == len(values) == 1 + 3 + 6 + 6  # depth has another cap beside the first
    assert values["mean_iou", "{'limit': 3}"] == round(results["metrics"]["segmentation"]["mean_iou"], 4)
    assert values["rmse", "{'limit': 3, 'max_depth': 6.0}"] == round(results["metrics"]["depth"]["rmse"], 4)
    assert values["rmse", "{'limit': 3}"] != values["rmse", "{'limit': 3, 'max_depth': 6.0}"]

    # Another folder of the same name is other data, and a name can be given.
    twin = folder.parent / "twin/data"
    shutil.copytree(options["data"], twin)
    for name in (None, "Mine"):
        options |= {} if name is None else {"data_name": name}
        run(options, limit=3, update_card=True, task="depth", data=twin, output_dir=folder.parent / f"twin/{name}")
    names = {row.dataset_name for row in ModelCard.load(folder / "README.md").data.eval_results}
    assert names == {"Words", options["data"], str(twin), "Mine"}

    (folder / "README.md").write_text("---\nmodel-index: [1\n---\n")
    with pytest.raises(ValueError, match="`update_card`: the metadata of"):
        run(options, limit=3, update_card=True)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"task": "tracking"}, "`task` must be of"),
        ({"task": ["depth", "depth"]}, "`task` must be of"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"limit": 0}, "`limit` must be at least 1"),
        ({"cases": -1}, "`cases` must be at least 0"),
        ({"scale": -1}, "`scale` must be"),
        ({"crop": "middle"}, "`crop` must be one of"),
        ({"min_depth": 5, "max_depth": 4}, "`min_depth` and `max_depth`"),
        ({"depth_average": "rows"}, "`average` must be"),
        ({"depth_align": "mean"}, "`align` must be"),
        ({"refine": "blur"}, "`refine` must be"),
        ({"dtype": "int8"}, "`dtype` must be"),
        ({"device": "cuda:99"}, "`device` 'cuda:99' can't be used"),
        ({"model": "user/name", "update_card": True}, "`update_card` needs"),
        ({"depth_range": "moon"}, "depth_range"),
    ],
)
def test_options_that_cannot_be_used_are_named(options, kwargs, message):
    with pytest.raises(ValueError, match=message):
        run(options, **kwargs)
    assert not Path(options["output_dir"]).exists()


def test_data_that_cannot_be_used_is_named(options, tmp_path):
    samples = [{"image": sample["image"], "segmentation": sample["segmentation"]} for sample in annotated()]
    Dataset.from_list(samples).save_to_disk(tmp_path / "data")
    options = {**options, "data": str(tmp_path / "data")}
    with pytest.raises(
        ValueError, match=r"`task` 'depth' needs the columns image, depth; .*data has \['image', 'segmentation'\]"
    ):
        run(options)
    with pytest.raises(ValueError, match="`id2label` is needed for segmentation"):
        run(options, task="segmentation")
    (tmp_path / "id2label.json").write_text('{"0": "wall"}')
    with pytest.raises(ValueError, match=r"row 0, column `segmentation`.*\[1, 2\]"):
        run(options, task="segmentation", id2label=tmp_path / "id2label.json")
    with pytest.raises(ValueError, match="image, mask and expression, or instances and expressions and expression_"):
        run(options, task="referring")
    Dataset.from_list([{**sample, "mask": None, "expression": None} for sample in samples]).save_to_disk(
        tmp_path / "empty"
    )
    with pytest.raises(ValueError, match="no sample of .* has mask and expression"):
        run(options, task="referring", data=tmp_path / "empty")


def test_objects_of_training_data_are_found_as_those_of_masks(options, tmp_path):
    """Of `instances` with one expression each, what is drawn is what `mask` and `expression` say."""
    samples = [sample for sample in annotated() if sample["mask"] is not None]
    instances = [
        {
            "image": sample["image"],
            "instances": PIL.Image.fromarray((np.asarray(sample["mask"]) > 0).astype(np.uint8) * 7),
            "expressions": [sample["expression"]],
            "expression_instances": [7],
        }
        for sample in samples
    ]
    values = []
    for name, rows in (("mask", samples), ("instances", instances)):
        Dataset.from_list(rows).save_to_disk(tmp_path / name)
        run(options, task="referring", data=tmp_path / name, output_dir=tmp_path / f"out_{name}")
        values.append(json.loads((tmp_path / f"out_{name}/results.json").read_text())["metrics"])
    assert values[0] == values[1]


def test_drawn_expressions_are_the_same_in_every_run(options, tmp_path):
    """Of several expressions, each run draws the same ones, in batches of any size."""
    rows = []
    for sample in annotated():
        numbers = np.zeros(np.array(sample["segmentation"]).shape, dtype=np.uint8)
        numbers[:8], numbers[8:] = 1, 2
        rows.append({
            "image": sample["image"], "instances": PIL.Image.fromarray(numbers),
            "expressions": ["the ceiling", "the floor"], "expression_instances": [1, 2],
        })  # fmt: skip
    Dataset.from_list(rows).save_to_disk(tmp_path / "data")
    options = {**options, "task": "referring", "data": tmp_path / "data"}
    values = []
    for size in (1, 3):
        run(options, batch_size=size, output_dir=tmp_path / f"out{size}")
        values.append(json.loads((tmp_path / f"out{size}/results.json").read_text())["metrics"]["referring"])
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_configuration_file_and_command_line(tmp_path):
    lines = ["model_name_or_path: some/model", "data: rooms", "task: [depth]", "max_depth: 10", "limit: 5"]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    args = parse_arguments([str(tmp_path / "config.yaml"), "--limit", "3", "--task", "segmentation", "depth"])
    assert (args.model, args.data, args.max_depth, args.limit) == ("some/model", "rooms", 10, 3)
    assert args.task == ["segmentation", "depth"]
    (tmp_path / "config.yaml").write_text("\n".join([*lines, "maxdepth: 1"]))
    with pytest.raises(ValueError, match="maxdepth"):
        parse_arguments([str(tmp_path / "config.yaml")])


def test_cases_are_the_best_the_median_and_the_worst():
    scores = [(0.1 * index, index) for index in range(9)] + [(float("nan"), 9)]
    picked = pick_cases(scores, 2)
    assert [(name, index) for name, _, index in picked] == [
        ("best", 8), ("best", 7), ("median", 5), ("median", 4), ("worst", 1), ("worst", 0),
    ]  # fmt: skip
    assert [index for _, _, index in pick_cases(scores[:1], 3)] == [0]
    assert pick_cases(scores, 0) == pick_cases([], 3) == []


@pytest.mark.parametrize("count", [1, 5, 150, 171])
def test_confusion_pictures_of_any_size(count):
    confusion = np.eye(count, count + 1, dtype=np.int64)
    confusion[0, -1] = 1
    picture = draw_confusion(confusion, [f"a class with a long name, number {k}" for k in range(count)])
    pixels = np.array(picture)
    dark = (pixels == (8, 48, 107)).all(axis=-1)
    cell = 36 if count <= 16 else 14
    # The diagonal is dark, but for the first row, half of which is predicted as none of the classes.
    assert dark.sum() >= (min(count, 150) - 1) * (cell - 4) ** 2 * 0.5
    assert picture.height >= min(count, 150) * cell
