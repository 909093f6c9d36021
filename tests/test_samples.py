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

"""The table of a sample's columns: what each is read with, and what becomes of it when the image is changed."""

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densemllm.formats import folders
from densemllm.training import samples
from densemllm.training.datasets import DenseDataset, DenseSource
from densemllm.training.samples import Augmentation, Column, read_sample
from tiny import ID2LABEL, make_image


def read_flow(values, sample, where, options):
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"{where}, column `flow`: it must be floats, got {values.dtype}")
    return values.astype(np.float32)


# Pixels that each point moves by, (x, y): a map that all changes of the geometry change.
FLOW = Column(
    read_flow,
    is_learned=True,
    is_map=True,
    channels=2,
    on_scale=lambda values, factor: values * np.float32(factor),
    on_mirror=lambda values: values * np.array([-1, 1], np.float32),
)


@pytest.fixture(scope="module", autouse=True)
def with_flow():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(samples.SCHEMA, "flow", FLOW)
        patch.setitem(samples.MAPS, "flow", FLOW)
        yield


def make_flow(height: int, width: int) -> np.ndarray:
    """Each point moves to the image's top left corner."""
    return -np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float64)


def test_a_new_column_is_one_row_of_the_table(tmp_path):
    sample = read_sample({"image": make_image(6, 9), "flow": make_flow(6, 9), "other": 3})
    assert set(sample) == {"image", "flow"} and sample["flow"].dtype == np.float32
    np.savez(tmp_path / "flow.npz", flow=make_flow(6, 9), confidence=np.zeros(3))
    stored = read_sample({"image": make_image(6, 9), "flow": str(tmp_path / "flow.npz")})
    np.testing.assert_array_equal(stored["flow"], sample["flow"])
    folder = tmp_path / "data"
    (folder / "image").mkdir(parents=True)
    (folder / "flow").mkdir()
    make_image(6, 9).save(folder / "image/a.png")
    np.save(folder / "flow/a.npy", make_flow(6, 9))
    row = folders.load_samples(str(folder))[0]
    np.testing.assert_array_equal(read_sample(row)["flow"], sample["flow"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((6, 9)), r"the upright image's size, \(6, 9\), and 2 channels, got \(6, 9\)"),
        (np.zeros((6, 9, 3)), r"2 channels, got \(6, 9, 3\)"),
        (np.zeros((6, 9, 2), int), "it must be floats, got int64"),
    ],
)
def test_its_errors_name_row_and_column(values, words):
    with pytest.raises(ValueError, match=f"row 3, column `flow`: .*{words}"):
        read_sample({"image": make_image(6, 9), "flow": values}, "row 3")


def test_a_map_of_several_channels_is_not_turned():
    """Its values may be directions, which turn as well: taken as they are, they would be wrong without a word."""
    image = make_image(6, 9)
    image.getexif()[0x0112] = 6
    with pytest.raises(ValueError, match="column `flow`: a map of several channels isn't turned.*orientation is 6"):
        read_sample({"image": image, "flow": make_flow(6, 9)})
    assert read_sample({"image": image, "flow": make_flow(9, 6)})["flow"].shape == (9, 6, 2)  # upright already


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    factor=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
    mirrored=st.booleans(),
    seed=st.integers(0, 99),
)
def test_maps_follow_the_image(size, factor, mirrored, seed):
    """Positions in three maps of other kinds stay those of the same point."""
    height, width = size
    numbers = np.arange(height * width).reshape(size)
    sample = {"image": PIL.Image.new("RGB", (width, height)), "instances": numbers, "flow": make_flow(*size)}
    sample["depth"] = (1.0 + numbers).astype(np.float32)
    change = Augmentation(scale=(factor, factor), flip_probability=float(mirrored))
    changed = change(sample, np.random.default_rng(seed))
    shape = (changed["image"].height, changed["image"].width)
    rows, columns = np.divmod(changed["instances"], width)
    np.testing.assert_allclose(changed["depth"], (1.0 + changed["instances"]) / factor, rtol=1e-6)
    np.testing.assert_allclose(changed["flow"][..., 1], -rows * factor)
    np.testing.assert_allclose(changed["flow"][..., 0], columns * factor * (1 if mirrored else -1))
    assert changed["flow"].shape == (*shape, 2) and changed["instances"].shape == shape
    assert (np.diff(columns, axis=1) * (-1 if mirrored else 1) >= 0).all()


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "500", True])
def test_focal_lengths_that_are_none_are_named(value):
    words = "row 3, column `focal_length` must be a finite number of pixels greater than 0, got"
    with pytest.raises(ValueError, match=words):
        read_sample({"image": make_image(6, 9), "focal_length": value}, "row 3")


@pytest.mark.parametrize("objects", [
    {"bbox": [[1, 2, 3, 4], [0, 0, 5, 2]], "category": [2, 0], "id": [7, 8], "iscrowd": [0, 1]},
    [{"bbox": [1, 2, 3, 4], "category": 2}, {"bbox": (0, 0, 5, 2), "category": 0, "area": None, "iscrowd": True}],
    {"bbox": np.array([[1, 2, 3, 4], [0, 0, 5, 2]]), "category": np.array([2, 0]), "iscrowd": np.array([0, 1])},
])  # fmt: skip
def test_objects_in_whatever_form_the_hub_has_them(objects):
    sample = read_sample({"image": make_image(6, 9), "objects": objects}, id2label=ID2LABEL, measured=True)
    assert sample["objects"] == {
        "bbox": [[1, 2, 3, 4], [0, 0, 5, 2]], "category": [2, 0], "area": [12, 10], "iscrowd": [0, 1],
    }  # fmt: skip


def person(**changes):
    return {"box": [1, 1, 5, 5], "keypoints": [[1, 2, 1]] * 16, "head_size": 2} | changes


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("question", " ", "it must be a text, got ' '"),
        ("answer", -1, "it must be an integer of at least 0, got -1"),
        ("answer", 2.0, "it must be an integer of at least 0, got 2.0"),
        ("answer", True, "it must be an integer of at least 0, got True"),
        ("answer", "yes", "it must be an integer of at least 0, got 'yes'"),
        ("objects", {"bbox": [[0, 0, 1, 1]]}, "a dict with the lists `bbox` and `category`"),
        ("objects", {"bbox": [[0, 0, 1, 1]], "category": []}, "an entry for each object in all of its lists"),
        ("objects", {"bbox": [[0, 0, 1]], "category": [0]}, r"each `bbox` must be \(x, y, width, height\)"),
        ("objects", {"bbox": [[0, 0, 1, -1]], "category": [0]}, "a width and height of at least 0"),
        ("objects", {"bbox": [[0, 0, 1, float("nan")]], "category": [0]}, "each `bbox` must be"),
        ("objects", {"bbox": [[0, 0, 1, 1]], "category": ["ball"]}, "each `category` must be a class id, got 'ball'"),
        ("objects", {"bbox": [[0, 0, 1, 1]], "category": [9]}, "the class id 9, which `id2label` lacks"),
        ("person", [1, 2], "a dict with `box`, `keypoints` and `head_size`"),
        ("person", person(box=[5, 1, 1, 5]), "`box` must have x0 < x1 and y0 < y1"),
        ("person", person(box=[9, 1, 12, 5]), "some of it within an image of 9x6"),
        ("person", person(keypoints=[[1, 2, 1]] * 15), "a row for each of 16 joints"),
        ("person", person(keypoints=[[1, 2]] * 16), r"each row of `keypoints` must be \(x, y, annotated\)"),
        ("person", person(head_size=0), "`head_size` must be greater than 0"),
    ],
)
def test_what_an_evaluation_compares_with_is_checked(column, value, words):
    row = {"image": make_image(6, 9), column: value}
    with pytest.raises(ValueError, match=f"row 3, column `{column}`.*{words}"):
        read_sample(row, "row 3", ID2LABEL, measured=True)
    assert set(read_sample(row, "row 3", ID2LABEL)) == {
        "image"
    }  # a data set to learn from may have other things there


def test_training_leaves_out_what_nothing_is_learned_from():
    rows = [{"image": make_image(6, 9), "segmentation": np.zeros((6, 9), int), "answer": "yes", "objects": 3}]
    sample = DenseDataset(DenseSource(rows, id2label=ID2LABEL))[0]
    assert "segmentation" in sample and not {"answer", "objects"} & set(sample)


def test_a_person_is_read():
    row = {"image": make_image(6, 9), "person": person(), "answer": np.int64(3), "question": "How many?"}
    sample = read_sample(row, measured=True)
    assert sample["person"] == {"box": [1, 1, 5, 5], "keypoints": [[1, 2, 1]] * 16, "head_size": 2}
    assert sample["answer"] == 3 and type(sample["answer"]) is int


def test_all_columns_have_a_row_and_messages_name_what_there_is(tmp_path):
    table = samples.__doc__.split("|---|---|---|")[1]
    assert [name for name in samples.COLUMNS if f"`{name}`" not in table] == []
    (tmp_path / "image").mkdir()
    make_image(6, 9).save(tmp_path / "image/a.png")
    with pytest.raises(ValueError, match="nothing to learn from: its columns are \\['image'\\]"):
        folders.load_samples(str(tmp_path))


def test_a_row_is_not_changed_by_reading_it():
    row = {"image": make_image(6, 9), "segmentation": np.zeros((6, 9), int), "depth": np.ones((6, 9))}
    before = dict(row)
    read_sample(row, id2label=ID2LABEL)
    assert all(row[name] is value for name, value in before.items())
