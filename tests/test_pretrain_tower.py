"""The tower of the rooms' model, pretrained on its patches."""

import math
import sys
from pathlib import Path

import numpy as np
import torch

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor
from repository import require
from tiny import make_image, make_model, make_processor


sys.path.insert(0, str(require("examples/rooms")))
import pretrain_tower  # noqa: E402


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
