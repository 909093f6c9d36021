"""The tower of the rooms' model, pretrained on its patches."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor
from repository import require
from tiny import ID2LABEL, make_image, make_model, make_processor


sys.path.insert(0, str(require("examples/rooms")))
import pretrain_tower  # noqa: E402
import publish  # noqa: E402


def test_a_patch_learns_the_shares_and_the_depth_of_its_pixels():
    processor = make_processor(default_depth_range="road")  # seen at a focal length of 100, in patches of 4
    classes = np.zeros((16, 16), dtype=np.uint8)
    classes[:2, :4] = 2  # half of the first patch
    classes[:4, 4:8] = 255  # all of the second one
    depth = np.full((16, 16), 3.0, dtype=np.float32)
    depth[:, 8:] = 0  # unknown
    sample = {"image": make_image(16, 16), "segmentation": classes, "depth": depth, "focal_length": 100.0}
    batch = pretrain_tower.PatchCollator(processor, 3)([sample])
    assert batch["image_grid_thw"].tolist() == [[1, 4, 4]] and batch["pixel_values"].shape == (16, 48)
    assert batch["shares"][:3].tolist() == [[0.5, 0, 0.5], [0, 0, 0], [1, 0, 0]]  # the third one is below the first
    known = torch.arange(16) // 4 % 2 == 0  # blocks of 2x2 patches, every other one on the right
    np.testing.assert_allclose(batch["log_depth"][known], math.log(3), rtol=1e-6)
    assert batch["log_depth"][~known].isnan().all()
    # Twice the focal length: half as large, and as far away.
    small = pretrain_tower.PatchCollator(processor, 3)([{**sample, "focal_length": 200.0}])
    assert small["image_grid_thw"].tolist() == [[1, 2, 2]]
    np.testing.assert_allclose(small["log_depth"][[0, 2]], math.log(3), rtol=1e-6)


def test_a_pretrained_tower_is_in_a_whole_model(tmp_path):
    processor = make_processor(default_depth_range="road")
    model = make_model(processor)
    model.save_pretrained(tmp_path / "untrained")
    processor.save_pretrained(tmp_path / "untrained")
    words = ["--model_name_or_path", str(tmp_path / "untrained"), "--output_dir", str(tmp_path / "pretrained")]
    words += ["--data", str(Path(pretrain_tower.__file__).parent / "sample"), "--batch_size", "1"]
    pretrain_tower.main([*words, "--max_steps", "2"])
    trained = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path / "pretrained")
    pairs = zip(model.state_dict().items(), trained.state_dict().values(), strict=True)
    changed = {name.split(".")[1] for (name, old), new in pairs if not torch.equal(old, new)}
    assert changed == {"vision_tower"}
    DenseMLLMProcessor.from_pretrained(tmp_path / "pretrained")


def test_runs_of_a_published_checkpoint_go_on(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="draws the curve: pip install densemllm[rooms]")
    processor, runs = make_processor(default_depth_range="road"), []
    model = make_model(processor, id2label=ID2LABEL)
    for name, steps, loss in (("first", 1200, "loss"), ("second", 30, "ntp_m_loss"), ("third", 50, "ntp_m_loss")):
        runs.append(tmp_path / name)
        model.save_pretrained(runs[-1])
        processor.save_pretrained(runs[-1])
        log = [
            {"step": steps, "learning_rate": 2e-3, loss: 0.5, "text_loss": 0.1},
            {"step": steps, "train_runtime": 90.0},
        ]
        state = {"log_history": log, "train_batch_size": 4, "global_step": steps}
        (runs[-1] / "trainer_state.json").write_text(json.dumps(state))

    def write(folder, *words):
        monkeypatch.setattr(sys, "argv", ["publish.py", "--output_dir", str(tmp_path / folder), *map(str, words)])
        publish.main()
        return (tmp_path / folder / "README.md").read_text()

    write("two", "--trained", *runs[:2], "--rooms", 10, 20, "--processes", 1, 2)
    card = write("three", "--before", tmp_path / "two", "--trained", runs[2], "--rooms", 30, "--processes", 2)
    assert "| 1 | the tower | 1,200 | 4 | 10 | 0.002 |" in card
    assert "| 3 | the whole model | 50 | 8 | 30 | 0.002 |" in card
    assert "for 4 minutes: 5,440 samples, 1,280 steps" in card and "varied rooms" in card
    log = json.loads((tmp_path / "three/training_log.json").read_text())
    assert [(row["run"], row["step"]) for row in log] == [
        (k, n) for k, n in enumerate((1200, 1230, 1280)) for _ in "ab"
    ]
    for share in (0, 1.5):
        with pytest.raises(SystemExit, match="--share must be"):
            write("five", "--before", runs[1], "--trained", runs[2], "--rooms", 30, "--share", share)
    with pytest.raises(SystemExit, match="--share must be"):
        write("five", "--trained", runs[2], "--rooms", 30, "--share", 0.5)
    with pytest.raises(SystemExit, match="no table of runs"):
        (tmp_path / "two/README.md").write_text("# another\n")
        write("four", "--before", tmp_path / "two", "--trained", runs[2], "--rooms", 30)


def test_a_mean_of_weights_keeps_the_rows_of_new_tokens(tmp_path):
    processor = make_processor()
    start = make_model(processor)
    start.save_pretrained(tmp_path)
    trained = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path)
    count = len(trained.lm_head.weight)
    trained.resize_token_embeddings(count + 2)
    with torch.no_grad():
        for values in trained.parameters():
            values += 1.0
    before = {name: values.clone() for name, values in trained.state_dict().items()}
    publish.mix_weights(trained, tmp_path, 0.25)
    for name, old in start.state_dict().items():
        mixed = trained.state_dict()[name]
        torch.testing.assert_close(mixed[: len(old)], old + 0.25, msg=name)
        assert torch.equal(mixed[len(old) :], before[name][len(old) :])
    assert len(trained.lm_head.weight) == count + 2
