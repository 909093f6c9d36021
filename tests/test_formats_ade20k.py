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
"""ADE20K in its own layout: a small `ADEChallengeData2016`."""

import numpy as np
import PIL.Image
import pytest

from densemllm.formats.folders import load_samples
from densemllm.training.maps import CorruptFileError
from densemllm.training.samples import read_sample


@pytest.fixture
def root(tmp_path):
    """Two images for training and one for validation."""
    root = tmp_path / "ADEChallengeData2016"
    for folder, name, codes in (
        ("training", "ADE_train_00000002", [[1, 2, 3], [0, 0, 150]]),
        ("training", "ADE_train_00000001", [[13, 13, 0], [21, 21, 21]]),
        ("validation", "ADE_val_00000001", [[4, 4, 4], [5, 5, 6]]),
    ):
        for kind in ("images", "annotations"):
            (root / kind / folder).mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (3, 2), "gray").save(root / "images" / folder / f"{name}.jpg")
        PIL.Image.fromarray(np.array(codes, np.uint8)).save(root / "annotations" / folder / f"{name}.png")
    return root


def read_row(data, row):
    return read_sample(data[row], "row", data.facts.id2label, ignore_index=data.facts.ignore_index)


def test_zero_is_ignored_and_classes_begin_at_zero(root):
    data = load_samples(f"ade20k:{root}", "train")
    assert (len(data), data.column_names) == (2, ["image", "segmentation"])
    assert read_row(data, 0)["segmentation"].tolist() == [[12, 12, 255], [20, 20, 20]]  # sorted by name
    assert read_row(data, 1)["segmentation"].tolist() == [[0, 1, 2], [255, 255, 149]]
    assert read_row(load_samples(f"ade20k:{root}", "validation"), 0)["segmentation"].tolist() == [[3, 3, 3], [4, 4, 5]]


def test_its_names_are_those_of_the_benchmark(root):
    names = load_samples(f"ade20k:{root}", "train").facts.id2label
    known = {0: "wall", 1: "building", 8: "windowpane", 12: "person", 20: "car", 44: "chest of drawers", 149: "flag"}
    assert (len(names), len(set(names.values()))) == (150, 150)
    assert {number: names[number] for number in known} == known


def test_the_folder_around_it_is_enough(root):
    assert len(load_samples(f"ade20k:{root.parent}", "train")) == 2


def test_maps_are_opened_when_they_are_asked_for(root):
    (root / "annotations/training/ADE_train_00000001.png").write_bytes(b"no image")
    data = load_samples(f"ade20k:{root}", "train")
    assert set(data.select_columns(["image"])[0]) == {"image"}
    with pytest.raises(CorruptFileError, match="ADE_train_00000001.png can't be read"):
        data[0]


@pytest.mark.parametrize("kind, lacking", [("images", "annotations"), ("annotations", "images")])
def test_files_that_lack_are_named(root, kind, lacking):
    next((root / lacking / "validation").iterdir()).unlink()
    with pytest.raises(ValueError, match=f"ade20k:.*{lacking}/validation lacks the files of ADE_val_00000001"):
        load_samples(f"ade20k:{root}", "validation")


def test_other_folders_splits_and_codes_are_refused(root):
    with pytest.raises(ValueError, match=r"must be one of \['train', 'validation'\].*got 'test'"):
        load_samples(f"ade20k:{root}", "test")
    assert len(load_samples(f"ade20k:{root}", "val")) == len(load_samples(f"ade20k:{root}", "validation"))
    with pytest.raises(ValueError, match="must have the folder images"):
        load_samples(f"ade20k:{root / 'images'}", "train")
    PIL.Image.fromarray(np.full((2, 3), 151, np.uint8)).save(root / "annotations/validation/ADE_val_00000001.png")
    with pytest.raises(ValueError, match=r"has the codes \[151\]"):
        load_samples(f"ade20k:{root}", "validation")[0]
    PIL.Image.new("RGB", (3, 2)).save(root / "annotations/validation/ADE_val_00000001.png")
    with pytest.raises(ValueError, match="one channel of integers"):
        load_samples(f"ade20k:{root}", "validation")[0]
