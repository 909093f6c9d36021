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
"""MPII Human Pose, read from small trees in the form in which its validation split is passed on."""

import json

import numpy as np
import pytest

from densemllm.formats.folders import load_samples
from densemllm.formats.registry import open_format
from densemllm.training.samples import read_sample
from repository import require
from tiny import make_image


require("formats/mpii.py")

savemat = pytest.importorskip("scipy.io").savemat

NAMES = ("015601864.jpg", "015599452.jpg")


def joints_of(number):
    """Of MATLAB's pixels, which count from 1."""
    return [[11.0 + place, 21.0 + 10 * number] for place in range(16)]


def write_mpii(root, count=3, folder="annot", people="valid.json", heads="gt_valid.mat", **changes):
    """`count` people in two images: heads of 3 x 4 pixels, those of the last person twice as large."""
    (root / folder).mkdir(parents=True)
    (root / "images").mkdir()
    for name in NAMES:
        make_image(60, 80).save(root / "images" / name)
    rows = [
        {
            "joints_vis": [1] * 16,
            "joints": joints_of(number),
            "image": NAMES[number % 2],
            "scale": 0.1 * (number + 1),
            "center": [31.0, 21.0],
        }
        for number in range(count)
    ]
    (root / folder / people).write_text(json.dumps(rows))
    boxes = np.zeros((2, 2, count))
    boxes[0], boxes[1] = [[5.0], [6.0]], [[8.0], [10.0]]
    boxes[1, :, -1] = (11, 14)
    missing = np.zeros((16, count), np.uint8)
    missing[5, 0] = 1
    content = {
        "headboxes_src": boxes,
        "jnt_missing": missing,
        "pos_gt_src": np.array([joints_of(number) for number in range(count)]).transpose(1, 2, 0),
        "dataset_joints": np.array(["rank"] * 16, dtype=object),
    }
    savemat(root / folder / heads, {name: value for name, value in (content | changes).items() if value is not None})
    return root


def test_a_person_is_a_sample(tmp_path):
    data = load_samples(f"mpii:{write_mpii(tmp_path)}", "validation")
    assert len(data) == 3 and data.column_names == ["image", "person"]
    assert data[2]["image"] == str(tmp_path / "images" / NAMES[0])
    sample = read_sample(data[1], measured=True)
    # A unit of scale is 200 pixels, and the centre is put 15 pixels of them lower: 20 + 15 * 0.2 = 23, from 3 to 43.
    assert sample["person"]["box"] == pytest.approx([10, 3, 50, 43])
    assert sample["person"]["head_size"] == pytest.approx(0.6 * 5)
    assert sample["person"]["keypoints"] == [[10.0 + place, 30.0, 1.0] for place in range(16)]
    annotated = [row[2] for row in read_sample(data[0], measured=True)["person"]["keypoints"]]
    assert annotated == [1.0] * 5 + [0.0] + [1.0] * 10
    assert data[2]["person"]["head_size"] == pytest.approx(0.6 * 10)


def test_other_names_and_joints_of_the_json(tmp_path):
    names = {"folder": "annotations", "people": "mpii_val.json", "heads": "mpii_gt_val.mat"}
    root = write_mpii(tmp_path, pos_gt_src=None, **names)
    expected = [[10.0 + place, 20.0, float(place != 5)] for place in range(16)]
    assert load_samples(f"mpii:{root}", "val")[0]["person"]["keypoints"] == expected


def test_joints_are_those_of_the_evaluation(tmp_path):
    """Where the two files differ, MATLAB's is what the official evaluation compares with; joints that lack may be NaN
    there."""
    joints = np.full((16, 2, 1), 7.0)
    joints[5] = np.nan
    missing = np.zeros((16, 1))
    missing[5] = 1
    root = write_mpii(tmp_path, 1, pos_gt_src=joints, jnt_missing=missing)
    points = read_sample(load_samples(f"mpii:{root}", "validation")[0], measured=True)["person"]["keypoints"]
    assert points[4] == [6.0, 6.0, 1.0] and points[5][2] == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"headboxes_src": np.zeros((2, 2, 2))}, r"`headboxes_src` \[2, 2, 3\], .* got \(2, 2, 2\)"),
        ({"jnt_missing": None}, r"`jnt_missing` \[16, 3\], .* got no such variable"),
    ],
)
def test_heads_that_do_not_fit_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_samples(f"mpii:{write_mpii(tmp_path, **changes)}", "validation")


def test_what_lacks_is_named(tmp_path):
    root = write_mpii(tmp_path)
    with pytest.raises(ValueError, match="`split` must be one of"):
        load_samples(f"mpii:{root}", "train")
    with pytest.raises(ValueError, match="the folder of the images, .*nowhere, isn't there"):
        open_format(f"mpii:{root}", "validation", images=str(root / "nowhere"))
    (root / "annot/valid.json").write_text('[{"image": "a.jpg", "center": [1, 1]}]')
    savemat(root / "annot/gt_valid.mat", {"headboxes_src": np.zeros((2, 2)), "jnt_missing": np.zeros((16, 1))})
    with pytest.raises(ValueError, match="must have image, center, scale and 16 joints .*scale.*person 0"):
        load_samples(f"mpii:{root}", "validation")
    (root / "annot/valid.json").write_text("[")
    with pytest.raises(ValueError, match="valid.json must be a JSON file"):
        load_samples(f"mpii:{root}", "validation")
    (root / "annot/gt_valid.mat").unlink()
    with pytest.raises(ValueError, match="must have the file gt_valid.mat or mpii_gt_val.mat"):
        load_samples(f"mpii:{root}", "validation")
