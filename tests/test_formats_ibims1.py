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
"""iBims-1 in both of its downloads."""

import numpy as np
import PIL.Image
import pytest

from densemllm.formats.folders import load_samples
from densemllm.training.samples import read_sample


NAMES = ("corridor_01", "kitchen_02")
FOCAL_LENGTH = 550.39
UNITS = np.array([[13107, 26214, 65535], [39321, 0, 13107]], np.uint16)  # 10, 20, 50, 30, 0 and 10 metres
METRES = np.array([[10, 0, 50], [0, 0, 10]], np.float32)  # the second is transparent, the fourth invalid
TRANSPARENT, INVALID = np.ones((2, 3), bool), np.ones((2, 3), bool)
TRANSPARENT[0, 1] = INVALID[1, 0] = False  # not 0 is valid


def write_raw(root):
    for folder in ("rgb", "depth", "calib", "mask_invalid", "mask_transp"):
        (root / folder).mkdir(parents=True)
    for name in NAMES:
        PIL.Image.new("RGB", (3, 2), (7, 8, 9)).save(root / "rgb" / f"{name}.png")
        PIL.Image.fromarray(UNITS).save(root / "depth" / f"{name}.png")
        (root / "calib" / f"{name}.txt").write_text(f"{FOCAL_LENGTH},551.2,322.5,241.1\n")
        PIL.Image.fromarray(TRANSPARENT).save(root / "mask_transp" / f"{name}.png")  # of 1 bit
        PIL.Image.fromarray(INVALID.astype(np.uint8) * 255).save(root / "mask_invalid" / f"{name}.png")


def write_mat(root):
    savemat = pytest.importorskip("scipy.io").savemat
    root.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        data = {
            "rgb": np.full((2, 3, 3), (7, 8, 9), np.uint8), "depth": UNITS * (50 / 65535),
            "calib": np.array([[FOCAL_LENGTH, 0, 0], [0, 551.2, 0], [322.5, 241.1, 1]]), "edges": np.zeros((2, 3)),
            "mask_transp": TRANSPARENT.astype(np.uint8), "mask_invalid": INVALID.astype(np.uint8),
        }  # fmt: skip
        savemat(root / f"{name}.mat", {"data": data})


@pytest.mark.parametrize("write", [write_raw, write_mat])
@pytest.mark.parametrize("folder", ["", "core"])
def test_both_layouts(tmp_path, write, folder):
    write(tmp_path / (folder and {write_raw: "ibims1_core_raw", write_mat: "ibims1_core_mat"}[write]))
    samples = load_samples(f"ibims1:{tmp_path}", "test")
    assert len(samples) == 2 and samples.facts.depth_scale is None
    for row in samples:
        sample = read_sample(row)
        assert sample["focal_length"] == FOCAL_LENGTH and sample["image"].getpixel((2, 1)) == (7, 8, 9)
        np.testing.assert_allclose(sample["depth"], METRES, rtol=1e-6)
    (tmp_path / "imagelist.txt").write_text(f"{NAMES[1]}\n")
    assert len(load_samples(f"ibims1:{tmp_path}", "test")) == 1


def test_what_lacks_is_named(tmp_path):
    with pytest.raises(ValueError, match="ibims1: .* must have the folders rgb, depth, calib"):
        load_samples(f"ibims1:{tmp_path}", "test")
    write_raw(tmp_path)
    (tmp_path / "calib/kitchen_02.txt").write_text("no numbers")
    with pytest.raises(ValueError, match="kitchen_02.txt must have the numbers fx, fy, cx, cy, got"):
        load_samples(f"ibims1:{tmp_path}", "test")[1]
    (tmp_path / "mask_transp/kitchen_02.png").unlink()
    with pytest.raises(ValueError, match="mask_transp must have the file kitchen_02.png; 1 such files lack"):
        load_samples(f"ibims1:{tmp_path}", "test")


def test_a_struct_of_other_fields(tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    savemat(tmp_path / "corridor_01.mat", {"data": {"rgb": np.zeros((2, 3, 3), np.uint8)}})
    with pytest.raises(ValueError, match=r"must have the struct 'data' with 'depth', it has \['rgb'\]"):
        load_samples(f"ibims1:{tmp_path}", "test")[0]


def test_a_damaged_file_is_named(tmp_path):
    pytest.importorskip("scipy.io")
    (tmp_path / "corridor_01.mat").write_bytes(b"\x00" * 200)
    with pytest.raises(ValueError, match=r"corridor_01.mat must be a MATLAB file before version 7.3"):
        load_samples(f"ibims1:{tmp_path}", "test")[0]
