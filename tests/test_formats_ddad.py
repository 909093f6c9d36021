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
"""DDAD as iDisc's and packnet-sfm's preparations leave it."""

import json

import numpy as np
import PIL.Image
import pytest

from densemllm.formats.ddad import open_ddad
from densemllm.formats.folders import load_samples
from densemllm.training.samples import read_sample


CAMERAS = ("CAMERA_01", "CAMERA_05")
TIME = "15616458249936530"


def write_ddad(root, scenes=("000000", "000150"), as_npz=False):
    matrices = {}
    for scene in scenes:
        for number, camera in enumerate(CAMERAS):
            image = root / scene / "rgb" / camera / f"{TIME}.png"
            depth = root / scene / ("depth/lidar" if as_npz else "depth") / camera / f"{TIME}.png"
            image.parent.mkdir(parents=True)
            depth.parent.mkdir(parents=True)
            PIL.Image.new("RGB", (5, 4)).save(image)
            metres = np.zeros((4, 5), np.float32)
            metres[2, 3] = 100.5 + number
            if as_npz:
                np.savez(depth.with_suffix(".npz"), depth=metres, intrinsics=np.eye(3))
            else:
                PIL.Image.fromarray((256 * metres).astype(np.uint16)).save(depth)
            matrices[f"{scene}/rgb/{camera}/{TIME}.png"] = [[2181.5 + number, 0, 2], [0, 2181.6, 2], [0, 0, 1]]
    (root / "ddad_intrinsics.json").write_text(json.dumps(matrices))


@pytest.mark.parametrize("as_npz", [False, True])
@pytest.mark.parametrize("folder", ["", "ddad_results"])
def test_scenes(tmp_path, folder, as_npz):
    write_ddad(tmp_path / folder, as_npz=as_npz)
    samples = load_samples(f"ddad:{tmp_path}", "val")
    assert samples.facts.depth_range == "ddad" and len(samples) == 2
    for number, row in enumerate(samples):
        assert "/000150/" in row["image"]
        sample = read_sample(row, depth_scale=samples.facts.depth_scale)
        assert sample["focal_length"] == 2181.5 + number and sample["image"].size == (5, 4)
        assert sample["depth"][2, 3] == 100.5 + number and np.count_nonzero(sample["depth"]) == 1
    assert len(open_ddad(str(tmp_path), "train", camera="CAMERA_05")) == 1
    with pytest.raises(ValueError, match=r"`camera` must be one of \['CAMERA_01', 'CAMERA_05'\], got 'CAMERA_07'"):
        open_ddad(str(tmp_path), "train", camera="CAMERA_07")


def test_a_list(tmp_path):
    write_ddad(tmp_path)
    line = f"000000/rgb/CAMERA_01/{TIME}.png 000000/depth/CAMERA_01/{TIME}.png\n"
    (tmp_path / "ddad_val.txt").write_text(line)
    (row,) = load_samples(f"ddad:{tmp_path}", "val")
    assert read_sample(row, depth_scale=1 / 256)["depth"][2, 3] == 100.5
    (tmp_path / "ddad_val.txt").write_text("one.png\n")
    with pytest.raises(ValueError, match="ddad_val.txt, line 1 must be an image and a depth file, got 'one.png'"):
        load_samples(f"ddad:{tmp_path}", "val")
    (tmp_path / "ddad_val.txt").write_text(line.replace("000000/rgb", "000001/rgb"))
    with pytest.raises(ValueError, match="must have the matrix of 000001/rgb/CAMERA_01"):
        load_samples(f"ddad:{tmp_path}", "val")


def test_what_lacks_is_named(tmp_path):
    write_ddad(tmp_path, scenes=("000000",))
    with pytest.raises(ValueError, match="must have the list ddad_val.txt, or .* of the scenes 000150 to 000199"):
        load_samples(f"ddad:{tmp_path}", "val")
    (tmp_path / "000000/depth/CAMERA_05" / f"{TIME}.png").unlink()
    with pytest.raises(ValueError, match=f"must have the file CAMERA_05/{TIME}.png or lidar/"):
        load_samples(f"ddad:{tmp_path}", "train")
    (tmp_path / "ddad_intrinsics.json").unlink()
    with pytest.raises(ValueError, match="must have the file ddad_intrinsics.json"):
        load_samples(f"ddad:{tmp_path}", "train")
