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
"""Cityscapes in its own layout: classes, objects and disparity of two small images."""

import json

import numpy as np
import PIL.Image
import pytest

from densemllm.formats.folders import load_samples
from densemllm.formats.registry import open_format
from densemllm.training.samples import read_sample


AACHEN, ULM = "aachen/aachen_000000_000019", "ulm/ulm_000001_000019"
# unlabeled, road, caravan, car; person (a crowd), person, licence plate's 255, bicycle
LABEL_IDS = [[0, 7, 29, 26], [24, 24, 255, 33]]
TRAIN_IDS = [[255, 0, 255, 13], [11, 11, 255, 18]]
INSTANCE_IDS = [[0, 7, 29000, 26001], [24, 24000, 0, 33012]]
INSTANCES = [[0, 0, 0, 26001], [0, 24000, 0, 33012]]
DISPARITY = [[0, 1, 257, 513], [2561, 385, 129, 12801]]  # invalid, invalid, then 1, 2, 10, 1.5, 0.5, 50 pixels
BASELINE, FX = 0.2, 2000.0
METRES = [[0, 0, 400, 200], [40, 800 / 3, 800, 8]]


def save(path, values, dtype):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.array(values, dtype)).save(path)


@pytest.fixture
def root(tmp_path):
    """Images of three splits; annotations come with [`add_labels`] and [`add_depth`]."""
    for split, name in (("train", ULM), ("train", AACHEN), ("val", "lindau/lindau_000000_000019")):
        save(tmp_path / f"leftImg8bit/{split}/{name}_leftImg8bit.png", np.zeros((2, 4, 3)), np.uint8)
    save(tmp_path / "leftImg8bit/test/bonn/bonn_000000_000019_leftImg8bit.png", np.zeros((2, 4, 3)), np.uint8)
    return tmp_path


def add_labels(root, ending="labelIds", values=LABEL_IDS, instances=True):
    for name in (AACHEN, ULM):
        save(root / f"gtFine/train/{name}_gtFine_{ending}.png", values, np.uint8)
        if instances:
            save(root / f"gtFine/train/{name}_gtFine_instanceIds.png", INSTANCE_IDS, np.uint16)


def add_depth(root, names=(AACHEN, ULM)):
    for name in names:
        save(root / f"disparity/train/{name}_disparity.png", DISPARITY, np.uint16)
        camera = root / f"camera/train/{name}_camera.json"
        camera.parent.mkdir(parents=True, exist_ok=True)
        extrinsic = {"baseline": BASELINE, "pitch": 0.038, "roll": 0.0, "x": 1.7, "y": 0.1, "yaw": -0.0195, "z": 1.22}
        intrinsic = {"fx": FX, "fy": 2265.3, "u0": 1096.98, "v0": 513.137}
        camera.write_text(json.dumps({"extrinsic": extrinsic, "intrinsic": intrinsic}))


def read_row(data, row):
    facts = data.facts
    return read_sample(data[row], "row", facts.id2label, facts.depth_scale, facts.ignore_index)


@pytest.mark.parametrize("ending, values", [("labelIds", LABEL_IDS), ("labelTrainIds", TRAIN_IDS)])
def test_ids_become_those_of_the_benchmark(root, ending, values):
    add_labels(root, ending, values)
    data = load_samples(f"cityscapes:{root}", "train")
    assert data.column_names == ["image", "segmentation", "instances"]
    assert [AACHEN in data[0]["image"], ULM in data[1]["image"]] == [True, True]
    for row in range(2):
        sample = read_row(data, row)
        assert sample["segmentation"].tolist() == TRAIN_IDS
        assert sample["instances"].tolist() == INSTANCES


def test_names_and_things(root):
    add_labels(root)
    facts = load_samples(f"cityscapes:{root}", "train").facts
    assert [facts.id2label[number] for number in (0, 8, 11, 13, 18)] == [
        "road",
        "vegetation",
        "person",
        "car",
        "bicycle",
    ]
    assert (len(facts.id2label), len(facts.thing_labels), facts.depth_range) == (19, 8, None)
    assert set(facts.thing_labels) == {facts.id2label[number] for number in range(11, 19)}


def test_depth_is_baseline_times_focal_length_over_disparity(root):
    add_depth(root)
    data = load_samples(f"cityscapes_depth:{root}", "train")
    assert data.column_names == ["image", "depth", "focal_length"]
    assert data.facts.depth_range == "cityscapes"
    sample = read_row(data, 0)
    np.testing.assert_allclose(sample["depth"], METRES, rtol=1e-6)
    assert (sample["depth"].dtype, sample["focal_length"]) == (np.float32, FX)


def test_classes_and_depth_of_one_image_are_one_sample(root):
    add_labels(root, instances=False)
    add_depth(root, [ULM])
    data = load_samples(f"cityscapes:{root}", "train")
    assert data.column_names == ["image", "segmentation", "depth", "focal_length"]
    both, one = read_row(data, 1), read_row(data, 0)
    assert (both["segmentation"].tolist(), one["segmentation"].tolist()) == (TRAIN_IDS, TRAIN_IDS)
    np.testing.assert_allclose(both["depth"], METRES, rtol=1e-6)
    assert not {"depth", "focal_length"} & set(one)
    assert set(data.select_columns(["image", "focal_length"])[1]) == {"image", "focal_length"}


def test_the_test_split_has_images_alone(root):
    assert open_format(f"cityscapes:{root}", "test").column_names == ["image"]
    with pytest.raises(ValueError, match="nothing to learn from"):
        load_samples(f"cityscapes:{root}", "test")


def test_what_lacks_is_named(root):
    with pytest.raises(ValueError, match="must have the folder gtFine/val"):
        load_samples(f"cityscapes:{root}", "val")
    with pytest.raises(ValueError, match="must have the folder disparity/train"):
        load_samples(f"cityscapes_depth:{root}", "train")
    with pytest.raises(ValueError, match=r"\['train', 'val', 'test'\].*got 'testA'"):
        load_samples(f"cityscapes:{root}", "testA")
    with pytest.raises(ValueError, match="must have the folder gtFine/val"):
        load_samples(f"cityscapes:{root}", "validation")
    add_labels(root)
    (root / f"gtFine/train/{ULM}_gtFine_labelIds.png").unlink()
    with pytest.raises(ValueError, match=f"_gtFine_labelIds.png: .* lacks the files of {ULM}"):
        load_samples(f"cityscapes:{root}", "train")
    add_depth(root, [AACHEN])
    with pytest.raises(ValueError, match=f"disparity/train lacks the files of {ULM}"):
        load_samples(f"cityscapes_depth:{root}", "train")


def test_cameras_and_disparities_that_are_none_are_refused(root):
    add_depth(root)
    (root / f"camera/train/{AACHEN}_camera.json").write_text('{"intrinsic": {"fx": 2000}}')
    save(root / f"disparity/train/{ULM}_disparity.png", np.zeros((2, 4)), np.uint8)
    data = load_samples(f"cityscapes_depth:{root}", "train")
    with pytest.raises(ValueError, match=r"_camera.json must be JSON with extrinsic.baseline"):
        data[0]
    with pytest.raises(ValueError, match="must be a PNG of 16 bits"):
        data[1]
