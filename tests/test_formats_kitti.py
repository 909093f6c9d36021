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
"""KITTI's depth in the layout of its downloads, with the lists of Eigen's split in the forms that go around."""

import numpy as np
import PIL.Image
import pytest

from densemllm.formats.folders import load_samples
from densemllm.training.samples import read_sample


DAY, DRIVE = "2011_09_26", "2011_09_26_drive_0002_sync"
FRAMES = ("0000000005", "0000000069")
CALIBRATION = """calib_time: 09-Jan-2012 13:57:47
corner_dist: 9.950000e-02
S_rect_02: 1.242000e+03 3.750000e+02
P_rect_02: 7.215377e+02 0 6.095593e+02 4.485728e+01 0 7.215377e+02 1.728540e+02 2.163791e-01 0 0 1 2.745884e-03
P_rect_03: 7.315377e+02 0 6.095593e+02 -3.395242e+02 0 7.215377e+02 1.728540e+02 2.199936e+00 0 0 1 2.729905e-03
"""


def write_kitti(root, raw="raw", depth="data_depth_annotated/train", frames=FRAMES, suffix=".png"):
    images = root / raw / DAY / DRIVE / "image_02/data"
    images.mkdir(parents=True)
    (root / raw / DAY / "calib_cam_to_cam.txt").write_text(CALIBRATION)
    maps = root / depth / DRIVE / "proj_depth/groundtruth/image_02"
    maps.mkdir(parents=True)
    for place, frame in enumerate(frames):
        PIL.Image.new("RGB", (9, 4), (place, 0, 0)).save(images / f"{frame}{suffix}")
        values = np.zeros((4, 9), np.uint16)
        values[1, 2] = 256 * 10 + 64 + place * 256  # 10.25 metres and a metre more for each
        PIL.Image.fromarray(values).save(maps / f"{frame}.png")


def read(samples):
    return [read_sample(row, depth_scale=samples.facts.depth_scale) for row in samples]


@pytest.mark.parametrize(
    ("raw", "depth", "suffix"),
    [("raw", "data_depth_annotated/train", ".png"), (".", "train", ".jpg"), ("data", "gts/train", ".png")],
)
def test_official_drives(tmp_path, raw, depth, suffix):
    write_kitti(tmp_path, raw, depth, suffix=suffix)
    samples = load_samples(f"kitti:{tmp_path}", "train")
    assert samples.facts.depth_scale == 1 / 256 and samples.facts.depth_range is None
    first, second = read(samples)
    assert first["image"].size == (9, 4) and first["focal_length"] == pytest.approx(721.5377)
    assert first["depth"][1, 2] == 10.25 and second["depth"][1, 2] == 11.25 and np.count_nonzero(first["depth"]) == 1
    with pytest.raises(ValueError, match="kitti: .* must have the folder val or data_depth_annotated/val"):
        load_samples(f"kitti:{tmp_path}", "val")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "kitti_eigen_test_files_with_gt.txt",
            [f"{DAY}/{DRIVE}/image_02/data/{FRAMES[1]}.png {DRIVE}/proj_depth/groundtruth/image_02/{FRAMES[1]}.png 7",
             f"{DAY}/{DRIVE}/image_02/data/0000000008.png None 721.5377"],
        ),
        ("splits/kitti_eigen_test.txt", [f"{DAY}/{DRIVE}/image_02/data/{FRAMES[1]}.png", ""]),
        ("eigen_test_files.txt", [f"{DAY}/{DRIVE} 0000000069 l", f"{DAY}/{DRIVE} 0000000004 l"]),
        ("test_files_eigen.txt", [f"{DAY}/{DRIVE}/image_02/data/{FRAMES[1]}.jpg"]),
    ],
)  # fmt: skip
def test_lists_of_eigen(tmp_path, name, lines):
    write_kitti(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("\n".join(lines))
    samples = load_samples(f"kitti:{tmp_path}", "eigen_test")
    (sample,) = read(samples)
    assert samples[0]["image"].endswith(f"{FRAMES[1]}.png") and sample["image"].getpixel((0, 0)) == (1, 0, 0)
    assert sample["depth"][1, 2] == 11.25 and sample["focal_length"] == pytest.approx(721.5377)  # the calibration's
    with pytest.raises(ValueError, match="must have the list of the split 'eigen_train', one of kitti_eigen_train"):
        load_samples(f"kitti:{tmp_path}", "eigen_train")


def test_a_list_has_the_focal_length_where_there_is_no_calibration(tmp_path):
    write_kitti(tmp_path)
    (tmp_path / "raw" / DAY / "calib_cam_to_cam.txt").unlink()
    with pytest.raises(ValueError, match="must have the file calib_cam_to_cam.txt, for the focal length"):
        load_samples(f"kitti:{tmp_path}", "train")
    line = f"{DAY}/{DRIVE}/image_02/data/{FRAMES[0]}.png {DRIVE}/proj_depth/groundtruth/image_02/{FRAMES[0]}.png 707.0"
    (tmp_path / "kitti_eigen_train.txt").write_text(line)
    assert load_samples(f"kitti:{tmp_path}", "eigen_train")[0]["focal_length"] == 707


def test_what_lacks_is_named(tmp_path):
    write_kitti(tmp_path)
    listed = tmp_path / "kitti_eigen_test.txt"
    listed.write_text("a line of words\n")
    with pytest.raises(ValueError, match="kitti_eigen_test.txt, line 1 must be IMAGE DEPTH .* got 'a line of words'"):
        load_samples(f"kitti:{tmp_path}", "eigen_test")
    listed.write_text(f"{DAY}/{DRIVE} 4 l\n")
    with pytest.raises(ValueError, match="has no depth map of the 1 images"):
        load_samples(f"kitti:{tmp_path}", "eigen_test")
    (tmp_path / "raw" / DAY / DRIVE / "image_02/data" / f"{FRAMES[0]}.png").unlink()
    with pytest.raises(ValueError, match=f"must have the image {DAY}/{DRIVE}/image_02/data/{FRAMES[0]}.png"):
        load_samples(f"kitti:{tmp_path}", "train")
    (tmp_path / "raw" / DAY / "calib_cam_to_cam.txt").write_text("S_rect_02: 1 2\n")
    listed.write_text(f"{DAY}/{DRIVE} 69 l\n")
    with pytest.raises(ValueError, match="must have a line P_rect_02: of 12 numbers"):
        load_samples(f"kitti:{tmp_path}", "eigen_test")
