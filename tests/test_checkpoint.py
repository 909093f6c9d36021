"""The checkpoint in the repository: whole, small, and of some use, for every door."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel

import exchange
from densemllm.configuration_densemllm import AUTO_MAP, CUSTOM_PIPELINES
from densemllm.evaluation.metrics import DepthMetrics, SegmentationMetrics
from densemllm.formats.folders import load_samples
from densemllm.formats.labels import load_id2label
from densemllm.training.samples import read_sample
from repository import ROOT, require
from tiny import assert_maps_agree


CHECKPOINT = ROOT / "checkpoints/densemllm-rooms"
SAMPLE = ROOT / "examples/rooms/sample"


@pytest.fixture(scope="module")
def samples():
    require("checkpoints")
    id2label = load_id2label(str(SAMPLE / "id2label.json"))
    rows = load_samples(str(SAMPLE), "validation")
    return id2label, [read_sample(rows[k], id2label=id2label, depth_scale=0.002) for k in range(0, 400, 50)]


def test_it_is_whole_and_small():
    require("checkpoints")
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP and config["custom_pipelines"] == CUSTOM_PIPELINES
    named = {value.split(".")[0] for value in AUTO_MAP.values()} | {"pipeline_densemllm"}
    for path in CHECKPOINT.glob("*.py"):
        assert path.read_bytes() == (ROOT / path.name).read_bytes(), f"{path.name} is not the repository's"
    assert {f"{name}.py" for name in named} <= {path.name for path in CHECKPOINT.glob("*.py")}
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 40e6
    data = ModelCard.load(CHECKPOINT / "README.md").data
    assert data.license and data.library_name == "transformers" and data.pipeline_tag and data.eval_results
    assert {result.metric_type for result in data.eval_results} >= {"mean_iou", "delta1", "ciou", "f1"}


def test_a_checkpoint_of_the_release_before_gives_the_same_maps():
    exchange.read(Path(__file__).parent / "data/written_by_0.1.0")


def test_it_knows_rooms_with_furniture_that_it_has_not_seen(samples):
    id2label, rows = samples
    model = AutoModel.from_pretrained(CHECKPOINT).eval()
    assert {int(key): name for key, name in model.config.id2label.items()} == id2label
    classes, depth = SegmentationMetrics(len(id2label)), DepthMetrics()
    for row in rows:
        seen = model.predict_dense(
            row["image"], ("segmentation", "depth"), labels=id2label, focal_length=row["focal_length"]
        )
        classes.add(seen.segmentation, row["segmentation"])
        depth.add(seen.predicted_depth, row["depth"])
    # Far below what it reaches, and far above what nothing but the commonest answer does.
    assert classes.compute()["pixel_accuracy"] > 0.6 and depth.compute()["delta1"] > 0.55


# Not importing the package, in another folder.
DOORS = r"""
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "densemllm" or name.startswith("densemllm."):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
import torch
from transformers import AutoModel, pipeline

source, picture = sys.argv[1:]
trust = {"trust_remote_code": True}
model = AutoModel.from_pretrained(source, **trust).eval()
chat = [{"role": "user", "content": [{"type": "image", "path": picture}, {"type": "text", "text": "Is there a bed?"}]}]
dense = pipeline("dense-prediction", model=source, **trust)
results = {
    "model": model.predict_dense(picture, ("segmentation", "depth"), labels=model.config.id2label),
    "dense": dense([picture] * 3, task=("segmentation", "depth"), labels=model.config.id2label, batch_size=2),
    "referring": dense({"image": picture, "text": "the window"}, task="referring"),
    "depth": pipeline("depth-estimation", model=source, **trust)([picture] * 3, batch_size=2),
    "classes": list(pipeline("image-segmentation", model=source, **trust)(own for own in [picture] * 3)),
    "text": pipeline("image-text-to-text", model=source, **trust)(text=chat, return_full_text=False),
}
results["model"] = {name: getattr(results["model"], name) for name in ("segmentation", "predicted_depth")}
torch.save(results, "results.pt")
"""


@pytest.mark.slow
def test_every_door_opens_in_a_fresh_process(samples, tmp_path):
    samples[1][0]["image"].save(tmp_path / "room.png")
    done = subprocess.run(
        [sys.executable, "-c", DOORS, str(CHECKPOINT), "room.png"],
        cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    results = torch.load(tmp_path / "results.pt", weights_only=False)
    expected = results["model"]
    for dense, depth, classes in zip(results["dense"], results["depth"], results["classes"], strict=True):
        assert_maps_agree(dense["segmentation"], expected["segmentation"], share=0.99)
        assert_maps_agree(dense["predicted_depth"], expected["predicted_depth"], share=0.99)
        assert_maps_agree(depth["predicted_depth"], expected["predicted_depth"], share=0.99)
        assert sum((np.asarray(row["mask"]) == 255).sum() for row in classes) == expected["segmentation"].numel()
    assert results["referring"]["mask"].shape == expected["segmentation"].shape
    assert isinstance(results["text"][0]["generated_text"], str) and results["text"][0]["generated_text"]
