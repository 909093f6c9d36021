"""The cards of trained models: what they say is there, and what they show runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import yaml
from huggingface_hub import ModelCard

from densemllm import DenseCollator, DenseDataset, DenseSource, DenseTrainer, DenseTrainingArguments
from densemllm.evaluation.measured import MEASURED
from densemllm.evaluation.report import load_card, update_card
from densemllm.training.model_card import SHEET, licence_of
from repository import ROOT
from tiny import ID2LABEL, make_image, make_model, make_processor, make_samples


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a model that was evaluated on two data sets."""
    folder, processor = tmp_path_factory.mktemp("run") / "rooms-model", make_processor()
    data = DenseDataset(DenseSource(make_samples(4), None, ID2LABEL))
    trainer = DenseTrainer(
        make_model(processor),
        DenseTrainingArguments(str(folder), report_to="none", use_cpu=True, max_steps=1),
        train_dataset=data,
        eval_dataset={"rooms": data, "yards": DenseDataset(DenseSource(make_samples(2, 1), None, ID2LABEL))},
        data_collator=DenseCollator(processor),
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()
    metrics = trainer.evaluate()
    trainer.create_model_card(finetuned_from="you/base", dataset=["rooms", "yards"], license="apache-2.0")
    return folder, metrics


def test_a_card_has_what_the_hub_reads(trained):
    folder, metrics = trained
    card = ModelCard.load(folder / "README.md")
    data = yaml.safe_load(card.content.split("---")[1])
    assert data["license"] == "apache-2.0" and data["base_model"] == "you/base"
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "image-segmentation")
    assert "custom_code" in data["tags"]
    results = {(row.dataset_name, row.metric_type): row.metric_value for row in card.data.eval_results}
    for name in ("rooms", "yards"):
        assert results[name, "mean_iou"] == pytest.approx(metrics[f"eval_{name}_mean_iou"], abs=1e-4)
    assert card.text.strip().startswith("# rooms-model\n")


def test_a_card_has_each_class_with_its_score(trained):
    folder, metrics = trained
    text = (folder / "README.md").read_text()
    for name in ("rooms", "yards"):
        table = text.split(f"Its classes on {name}:")[1].split("\n\n")[1].splitlines()
        assert table[0].startswith("| class | IoU | boundary IoU |")
        scores = [float(row.split("|")[2]) for row in table[2:] if row.split("|")[2].strip() != "-"]
        assert [row.split("|")[1].strip() for row in table[2:]] == list(ID2LABEL.values())
        assert sum(scores) / len(scores) == pytest.approx(metrics[f"eval_{name}_mean_iou"], abs=1e-4)


def test_a_card_shows_predictions(trained):
    folder, _ = trained
    assert f"]({SHEET})" in (folder / "README.md").read_text()
    with PIL.Image.open(folder / SHEET) as sheet:
        assert sheet.height > 600 and sheet.width > 400  # three samples: image, classes, depth
    assert (folder / SHEET).stat().st_size < 300_000


@pytest.mark.slow
def test_the_snippet_of_a_card_runs(trained):
    folder, _ = trained
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    make_image(40, 48).save(folder.parent / "photo.jpg")
    check = "\nassert result.segmentation.shape == result.predicted_depth.shape == (40, 48)"
    environment = {**os.environ, "HF_HOME": str(folder.parent / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code + check], cwd=folder.parent, env=environment, capture_output=True, text=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_model_without_classes_has_a_card(tmp_path):
    processor = make_processor()
    model = make_model(processor)
    arguments = DenseTrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    DenseTrainer(model, arguments, data_collator=DenseCollator(processor)).create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "depth-estimation" and 'task="depth"' in card.text
    assert SHEET not in card.text and not (tmp_path / SHEET).exists()


def test_a_card_is_written_where_an_image_cannot_be(trained, tmp_path, monkeypatch):
    processor = make_processor()
    trainer = DenseTrainer(
        make_model(processor),
        DenseTrainingArguments(str(tmp_path), report_to="none", use_cpu=True),
        data_collator=DenseCollator(processor),
        eval_dataset=DenseDataset(DenseSource(make_samples(2), None, ID2LABEL)),
    )
    monkeypatch.setattr(type(trainer.model), "predict_dense", lambda *_, **__: 1 / 0)
    trainer.create_model_card()
    assert SHEET not in (tmp_path / "README.md").read_text()


def test_a_licence_is_that_of_the_model_that_is_trained_on(tmp_path):
    assert licence_of(ROOT / "checkpoints/densemllm-rooms") in ("apache-2.0", None)  # `None` outside the repository
    assert licence_of(tmp_path) is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert licence_of(tmp_path) == "mit"
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    assert licence_of(tmp_path) is None


def test_tables_of_an_evaluation_replace_their_older_ones(tmp_path):
    def results(name: str, iou: float) -> dict:
        options = {
            "data_name": name, "split": "test", "refine": None, "protocol": None, "limit": None, "scale": None,
            "max_num_patches": None, "depth_range": None, "tile": None, "tile_overlap": None,
        }  # fmt: skip
        options |= MEASURED["segmentation"].options
        return {
            "metrics": {"segmentation": {"mean_iou": iou}}, "images": {"segmentation": 3}, "options": options,
            "data": name, "per_label": [{"id": 0, "label": "a|b", "iou": iou}],
        }  # fmt: skip

    for name, iou in (("rooms", 0.25), ("yards", 0.5), ("rooms", 0.75)):
        update_card(str(tmp_path), results(name, iou))
    text = (Path(tmp_path) / "README.md").read_text()
    assert re.findall(r"## Evaluated on (\w+), test", text) == ["rooms", "yards"]
    assert re.findall(r"\| a\\\|b \| (\S+) \|", text) == ["0.7500", "0.5000"]
    assert {row.metric_value for row in load_card(str(tmp_path)).data.eval_results} == {0.75, 0.5}
