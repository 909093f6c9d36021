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
"""PASCAL VOC and Context in their own layouts: a small `VOCdevkit`."""

import numpy as np
import PIL.Image
import pytest

from densemllm.drawing_densemllm import label_colors
from densemllm.formats.folders import load_samples
from densemllm.formats.pascal import CONTEXT_RELEASE_CODES
from densemllm.training.samples import read_sample


def write_images(root, names):
    (root / "JPEGImages").mkdir(parents=True)
    for name in names:
        PIL.Image.new("RGB", (4, 2), "gray").save(root / "JPEGImages" / f"{name}.jpg")


def write_lists(folder, **splits):
    folder.mkdir(parents=True)
    for split, names in splits.items():
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def write_palette(path, codes):
    """A palette image, as VOC has its maps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = PIL.Image.fromarray(np.array(codes, np.uint8)).convert("P")
    image.putdata(np.array(codes).reshape(-1).tolist())
    image.putpalette(label_colors(256, "voc").reshape(-1).tolist())
    image.save(path)
    assert PIL.Image.open(path).mode == "P"


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOCdevkit/VOC2012"
    write_images(root, ["2007_000032", "2007_000033", "2008_000001"])
    write_lists(
        root / "ImageSets/Segmentation",
        train=["2007_000032"],
        val=["2007_000033"],
        trainval=["2007_000032", "2007_000033"],
    )
    write_palette(root / "SegmentationClass/2007_000032.png", [[0, 255, 1, 1], [15, 255, 20, 20]])
    write_palette(root / "SegmentationObject/2007_000032.png", [[0, 255, 1, 1], [2, 255, 3, 4]])
    write_palette(root / "SegmentationClass/2007_000033.png", [[0, 0, 0, 11], [0, 0, 0, 18]])
    write_palette(root / "SegmentationObject/2007_000033.png", [[0, 0, 0, 1], [0, 0, 0, 2]])
    return root


@pytest.fixture
def context(tmp_path):
    root = tmp_path / "VOCdevkit/VOC2010"
    write_images(root, ["2008_000002", "2008_000003"])
    return root


def read_row(data, row):
    return read_sample(data[row], "row", data.facts.id2label, ignore_index=data.facts.ignore_index)


@pytest.mark.parametrize(
    "name, classes",
    [("voc", [[0, 255, 1, 1], [15, 255, 20, 20]]), ("voc20", [[255, 255, 0, 0], [14, 255, 19, 19]])],
)
def test_the_background_of_voc_is_a_class_or_ignored(voc, name, classes):
    data = load_samples(f"{name}:{voc}", "train")
    sample = read_row(data, 0)
    assert sample["segmentation"].tolist() == classes
    assert sample["instances"].tolist() == [[0, 0, 1, 1], [2, 0, 3, 4]]
    names = data.facts.id2label
    assert [names[number] for number in (classes[0][2], classes[1][0], classes[1][2])] == [
        "aeroplane",
        "person",
        "tvmonitor",
    ]
    assert ("background" in names.values()) == (name == "voc")
    assert (len(names), len(data.facts.thing_labels)) == (21 if name == "voc" else 20, 20)
    assert set(data.facts.thing_labels) <= set(names.values())


def test_splits_are_the_lists(voc):
    for path in (voc, voc.parent, voc.parent.parent):
        assert [len(load_samples(f"voc:{path}", split)) for split in ("train", "val", "trainval")] == [1, 1, 2]
    with pytest.raises(ValueError, match=r"\['train', 'val', 'trainval'\].*got 'test'"):
        load_samples(f"voc:{voc}", "test")


def test_voc_without_objects_has_classes_alone(voc):
    for file in (voc / "SegmentationObject").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="SegmentationObject lacks the files of 2007_000032"):
        load_samples(f"voc:{voc}", "train")
    (voc / "SegmentationObject").rmdir()
    assert load_samples(f"voc:{voc}", "train").column_names == ["image", "segmentation"]


def test_what_voc_lacks_is_named(voc):
    (voc / "SegmentationClass/2007_000032.png").unlink()
    with pytest.raises(ValueError, match="voc20:.*SegmentationClass lacks the files of 2007_000032"):
        load_samples(f"voc20:{voc}", "trainval")
    (voc / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(ValueError, match="must have the file ImageSets/Segmentation/val.txt"):
        load_samples(f"voc:{voc}", "val")
    with pytest.raises(ValueError, match="must have the folder JPEGImages"):
        load_samples(f"voc:{voc / 'ImageSets'}", "val")


def test_context_of_mmsegmentation(context):
    write_lists(context / "ImageSets/SegmentationContext", train=["2008_000002"], val=["2008_000003"])
    (context / "SegmentationClassContext").mkdir()
    for name, codes in (("2008_000002", [[0, 1, 2, 59], [0, 37, 40, 50]]), ("2008_000003", [[0] * 4, [3] * 4])):
        file = context / "SegmentationClassContext" / f"{name}.png"
        PIL.Image.fromarray(np.array(codes, np.uint8)).save(file)
    data = load_samples(f"context59:{context.parent}", "train")
    assert read_row(data, 0)["segmentation"].tolist() == [[255, 0, 1, 58], [255, 36, 39, 49]]
    names = [data.facts.id2label[number] for number in (0, 1, 36, 39, 49, 58)]
    assert names == ["aeroplane", "bag", "person", "pottedplant", "table", "wood"]
    assert len(data.facts.id2label) == 59
    assert read_row(load_samples(f"context59:{context}", "val"), 0)["segmentation"].tolist() == [[255] * 4, [2] * 4]


def test_context_as_it_was_released(context):
    io = pytest.importorskip("scipy.io")
    write_lists(context / "ImageSets/Main", train=["2008_000002"], val=["2008_000003"])
    (context / "trainval").mkdir()
    labels = np.array([[2, 9, 458, 1], [431, 284, 459, 397]], np.uint16)
    io.savemat(context / "trainval/2008_000002.mat", {"LabelMap": labels})
    data = load_samples(f"context59:{context}", "train")
    assert read_row(data, 0)["segmentation"].tolist() == [[0, 1, 58, 255], [255, 36, 255, 49]]
    with pytest.raises(ValueError, match="trainval lacks the files of 2008_000003"):
        load_samples(f"context59:{context}", "val")


def test_both_forms_of_context_have_one_order():
    """What mmsegmentation does, by hand: codes sorted, counted from 1; names in the order of the alphabet."""
    assert len(CONTEXT_RELEASE_CODES) == len(set(CONTEXT_RELEASE_CODES.values())) == 59
    assert list(CONTEXT_RELEASE_CODES.values()) == sorted(CONTEXT_RELEASE_CODES.values())
    assert list(CONTEXT_RELEASE_CODES) == sorted(CONTEXT_RELEASE_CODES)


def test_context_without_maps_says_which_are_read(context):
    with pytest.raises(ValueError, match="SegmentationClassContext, or trainval"):
        load_samples(f"context59:{context}", "train")
