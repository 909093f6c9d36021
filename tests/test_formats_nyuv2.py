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
"""NYU Depth v2 in its own layouts: the labeled MATLAB file with its split, and folders of PNG."""

import pickle

import numpy as np
import PIL.Image
import pytest

from densemllm.formats.folders import load_samples
from densemllm.formats.nyuv2 import open_nyuv2
from densemllm.training.samples import read_sample


def write_labeled(folder, count=4):
    """The file as MATLAB 7.3 stores it: axes in reverse. Image k has 10 k in its first row."""
    h5py, savemat = pytest.importorskip("h5py"), pytest.importorskip("scipy.io").savemat
    images = np.zeros((count, 3, 8, 6), np.uint8)  # [N, channel, width, height]
    depths = np.full((count, 8, 6), 2.5, np.float32)
    for k in range(count):
        images[k, 0, :, 0] = 10 * k
        depths[k, 7, 0] = 1 + k  # the upper right corner
    raw = depths.copy()
    raw[:, 0, 5] = 0  # the lower left one
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        file["images"], file["depths"], file["rawDepths"] = images, depths, raw
    savemat(folder / "splits.mat", {"trainNdxs": np.array([[3], [1]]), "testNdxs": np.array([[4], [2]])})


def write_pair(folder, number=45):
    folder.mkdir(parents=True)
    PIL.Image.new("RGB", (8, 6), (9, 9, 9)).save(folder / f"rgb_{number:05d}.jpg")
    depth = np.full((6, 8), 1234, np.uint16)
    depth[0, 0] = 0
    PIL.Image.fromarray(depth).save(folder / f"sync_depth_{number:05d}.png")


def test_the_labeled_file(tmp_path):
    write_labeled(tmp_path)
    samples = load_samples(f"nyuv2:{tmp_path}", "test")
    assert len(samples) == 2 and samples.column_names == ["image", "depth", "focal_length"]
    assert samples.facts.depth_range == "nyuv2" and samples.facts.depth_scale is None
    for sample, number in zip(map(read_sample, samples), (3, 1), strict=True):  # images 4 and 2 of MATLAB's count
        assert sample["image"].size == (8, 6) and sample["focal_length"] == pytest.approx(518.8579)
        assert sample["image"].getpixel((5, 0)) == (10 * number, 0, 0) and sample["image"].getpixel((5, 1)) == (
            0,
            0,
            0,
        )
        expected = np.full((6, 8), 2.5, np.float32)
        expected[0, 7], expected[5, 0] = 1 + number, 0
        np.testing.assert_array_equal(sample["depth"], expected)
    assert len(load_samples(f"nyuv2:{tmp_path / 'nyu_depth_v2_labeled.mat'}", "train")) == 2


def test_filled_depth_and_columns(tmp_path):
    write_labeled(tmp_path)
    filled = open_nyuv2(str(tmp_path), "train", depth="filled")
    assert read_sample(filled[0])["depth"][5, 0] == 2.5 and read_sample(filled[0])["depth"][0, 7] == 3
    assert set(filled.select_columns(["depth"])[0]) == {"depth"}
    with pytest.raises(ValueError, match=r"`depth` must be one of \['filled', 'raw'\], got 'inpainted'"):
        open_nyuv2(str(tmp_path), "train", depth="inpainted")


def test_workers_open_the_file_themselves(tmp_path):
    write_labeled(tmp_path)
    samples = open_nyuv2(str(tmp_path), "test")
    samples[0]
    again = pickle.loads(pickle.dumps(samples))
    np.testing.assert_array_equal(again[1]["depth"], samples[1]["depth"])


def test_what_the_labeled_file_lacks(tmp_path):
    write_labeled(tmp_path, count=3)
    with pytest.raises(ValueError, match="splits.mat names the image 4, and .* has 3"):
        open_nyuv2(str(tmp_path), "test")
    (tmp_path / "splits.mat").unlink()
    with pytest.raises(ValueError, match="nyuv2: .* must have the file splits.mat"):
        open_nyuv2(str(tmp_path), "test")
    with pytest.raises(ValueError, match=r"`split` must be one of \['train', 'test'\]"):
        load_samples(f"nyuv2:{tmp_path}", "validation")


@pytest.mark.parametrize("place", ["official_splits/test/bathroom", "test/bathroom"])
def test_folders_of_png(tmp_path, place):
    write_pair(tmp_path / place)
    samples = load_samples(f"nyuv2:{tmp_path}", "test")
    (sample,) = [read_sample(row, depth_scale=samples.facts.depth_scale) for row in samples]
    assert sample["depth"][0, 0] == 0 and sample["depth"][5, 7] == pytest.approx(1.234)
    assert samples.facts.depth_range == "nyuv2" and sample["focal_length"] == pytest.approx(518.8579)
    with pytest.raises(ValueError, match="nyuv2: .* must have nyu_depth_v2_labeled.mat with splits.mat, or files"):
        load_samples(f"nyuv2:{tmp_path}", "train")
    next((tmp_path / place).glob("*.jpg")).unlink()
    with pytest.raises(ValueError, match=r"must have the file rgb_00045.jpg or rgb_00045.png"):
        load_samples(f"nyuv2:{tmp_path}", "test")


def test_a_list_of_files(tmp_path):
    for number in (45, 46):
        write_pair(tmp_path / f"scene{number}", number)
    line = "/scene46/rgb_00046.jpg /scene46/sync_depth_00046.png 518.8579\n"
    (tmp_path / "nyudepthv2_test_files_with_gt.txt").write_text(line)
    (row,) = load_samples(f"nyuv2:{tmp_path}", "test")
    assert row["image"] == str(tmp_path / "scene46/rgb_00046.jpg") and row["depth"].endswith("sync_depth_00046.png")
    (tmp_path / "nyudepthv2_test_files_with_gt.txt").write_text(line.replace("46/", "47/"))
    with pytest.raises(ValueError, match="nyuv2: /scene47/rgb_00046.jpg, which .* names, is in none of"):
        load_samples(f"nyuv2:{tmp_path}", "test")
