"""Folders of one's own, and what a user says of columns and class ids."""

import json

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, Features, Value

from densemllm.formats.folders import DataOptions, load_samples, open_samples
from densemllm.formats.options import facts_of, prepare
from densemllm.training.datasets import DenseDataset, DenseIterableDataset, DenseSource
from densemllm.training.samples import read_sample
from repository import require


require("modeling_densemllm.py")

IDS = np.array([[0, 1, 2], [7, 255, 1]])
NAMES = {0: "wall", 1: "floor", 2: "chair", 7: "lamp"}


def write(path, values=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = PIL.Image.new("RGB", (3, 2)) if values is None else PIL.Image.fromarray(values)
    image.save(path)


@pytest.mark.parametrize("order", ["images/val", "val/images"])
@pytest.mark.parametrize("masks", ["masks", "labels", "segmentation", "annotations"])
@pytest.mark.parametrize("streaming", [False, True])
def test_splits_in_both_orders_nested_with_names_in_lines(tmp_path, order, masks, streaming):
    write(tmp_path / order / "a/x.png")
    write(tmp_path / order.replace("images", masks) / "a/x.png", IDS.astype(np.uint16))
    (tmp_path / "classes.txt").write_text("\n".join(f"{key}: {name}" for key, name in NAMES.items()))
    data, facts = open_samples(str(tmp_path), "validation", DataOptions(), streaming)
    assert facts.id2label == NAMES
    make = DenseIterableDataset if streaming else DenseDataset
    dataset = make(DenseSource(data, id2label=facts.id2label))
    sample = next(iter(dataset)) if streaming else dataset[0]
    np.testing.assert_array_equal(sample["segmentation"], IDS)
    with pytest.raises(ValueError, match="`split` must be one of \\['val'\\]"):
        load_samples(str(tmp_path), "train")


def test_patterns_and_colors(tmp_path):
    write(tmp_path / "images/a_leftImg8bit.png")
    colors = np.array([[[1, 2, 3], [4, 5, 6], [1, 2, 3]], [[0, 0, 0]] * 3], dtype=np.uint8)
    write(tmp_path / "masks/a_gt.png", colors)
    write(tmp_path / "masks/a_other.png", colors)
    (tmp_path / "colors.txt").write_text("name,r,g,b\nroad,1,2,3\nsky,4,5,6\nvoid,0,0,0\n")
    options = {"image_pattern": "{stem}_leftImg8bit.png", "mask_pattern": "{stem}_gt.png"}
    with pytest.raises(ValueError, match="a pattern such as {stem}"):
        write(tmp_path / "images/a.png")
        load_samples(str(tmp_path))
    (tmp_path / "images/a.png").unlink()
    data = load_samples(f"folder:{tmp_path}", **options, label_colors=str(tmp_path / "colors.txt"))
    sample = read_sample(data[0], id2label=facts_of(data).id2label)
    assert facts_of(data).id2label == {0: "road", 1: "sky"}
    np.testing.assert_array_equal(sample["segmentation"], [[0, 1, 0], [255] * 3])
    with pytest.raises(ValueError, match="`label_colors` must say"):
        load_samples(f"folder:{tmp_path}", **options)[0]


@pytest.mark.parametrize("kind", ["list", "Dataset", "stream"])
def test_ids_are_merged_dropped_and_reduced(kind):
    rows = [{"pixel_values": np.zeros((2, 3, 3), np.uint8).tolist(), "label": (IDS % 255).tolist()}]
    data = rows if kind == "list" else Dataset.from_list(rows)
    data = data.to_iterable_dataset() if kind == "stream" else data
    names = {0: "floor", 1: "chair", 6: "lamp"}
    read = prepare(data, "image=pixel_values,segmentation=label", {"1": "floor", 6: None}, True, [255], names)
    row = next(iter(read))
    assert facts_of(read).id2label == {0: "floor"} and set(row) == {"image", "segmentation"}
    np.testing.assert_array_equal(row["segmentation"], [[255, 0, 0], [255, 255, 0]])
    assert facts_of(read).ignore_index == 255


def test_names_that_are_known_are_taken_or_suggested(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "b.png", IDS.astype(np.uint8))
    row = {"pixel_values": str(tmp_path / "a.png"), "annotation": str(tmp_path / "b.png")}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    data = load_samples(str(tmp_path / "rows.jsonl"))
    np.testing.assert_array_equal(read_sample(data[0], id2label=NAMES)["segmentation"], IDS)
    features = Features({"image": Value("string"), "label": Value("int64")})
    Dataset.from_list([{"image": "a", "label": 3}], features).save_to_disk(tmp_path / "classes")
    with pytest.raises(ValueError, match="nothing to learn from"):
        load_samples(str(tmp_path / "classes"))
