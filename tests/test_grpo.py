"""`train_grpo.py`: questions about samples, rewards and the dense loss beside them, at tiny size."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor
from densemllm.training.arguments import DenseTrainingArguments
from densemllm.training.collator import DenseCollator
from densemllm.training.datasets import DenseDataset, DenseSource
from densemllm.training.prompts import QUESTIONS, TRUTHS, choose_questions, make_prompts
from densemllm.training.trainer import DenseTrainer
from repository import require
from tiny import ID2LABEL, LLAMA, make_image, make_model, make_processor, make_samples


pytest.importorskip("trl")

from densemllm.train_grpo import main, parse_arguments, run  # noqa: E402
from densemllm.training import grpo  # noqa: E402
from densemllm.training.grpo import DenseGRPOTrainer, make_rewards  # noqa: E402


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny model, data, and the words for both."""
    folder = tmp_path_factory.mktemp("grpo")
    processor = make_processor()
    make_model(processor, text=LLAMA).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    rows = make_samples(4)
    Dataset.from_list([{**row, "depth": None} for row in rows]).remove_columns("depth").save_to_disk(folder / "data")
    (folder / "labels.json").write_text(json.dumps(ID2LABEL))
    config = {
        "model_name_or_path": str(folder / "model"), "dataset": [str(folder / "data")],
        "id2label": [str(folder / "labels.json")], "reward_funcs": ["class_list_iou", "repetition", "soft_overlong"],
        "soft_punish_cache": 4, "max_completion_length": 6, "num_generations": 2, "per_device_train_batch_size": 4,
        "max_steps": 2, "learning_rate": 1e-3, "use_cpu": True, "report_to": "none", "logging_steps": 1,
        "disable_tqdm": True, "bf16": False, "gradient_checkpointing": False,
    }  # fmt: skip
    (folder / "grpo.yaml").write_text(yaml.safe_dump(config))
    return folder


def logs_of(folder: Path) -> list[dict]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [row for row in history if "reward" in row]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return DenseMLLMForConditionalGeneration.from_pretrained(folder).state_dict()


# ---- the script ----


def test_a_step_from_a_file(source, tmp_path):
    out = tmp_path / "out"
    words = ["--output_dir", str(out), "--dense_loss_weight", "0.5", "--save_strategy", "no"]
    metrics = main([str(source / "grpo.yaml"), *words])
    assert math.isfinite(metrics["train_loss"])
    rows = logs_of(out)
    assert len(rows) == 2
    for row in rows:
        for name in ("loss", "grad_norm", "reward", "ntp_m_loss", "rewards/class_list_iou/mean"):
            assert math.isfinite(row[name]), name
        assert 0 <= row["rewards/repetition/mean"] <= 1
        assert -1 <= row["rewards/soft_overlong_punishment_reward/mean"] <= 0
    before, after = weights_of(source / "model"), weights_of(out)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    processor = DenseMLLMProcessor.from_pretrained(out)
    model = DenseMLLMForConditionalGeneration.from_pretrained(out)
    assert model.predict_dense(make_image(16, 24), labels=["wall"], processor=processor).segmentation.shape == (16, 24)
    assert "ntp_m_loss" not in (main([str(source / "grpo.yaml"), *words[:2], *words[4:]]), logs_of(out)[0])[1]
