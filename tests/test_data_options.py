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
"""What a user says of columns and class ids: the rule, and what can't be used."""

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densemllm.formats.options import (
    complete_column_map,
    facts_of,
    prepare,
    read_column_map,
    read_ignore_index,
    read_label_map,
)
from densemllm.formats.own_folders import load_label_colors
from repository import require


require("modeling_densemllm.py")

NAMES = {0: "wall", 1: "floor", 2: "rug", 3: "person"}


def prepared(values, **options):
    return prepare([{"image": None, "segmentation": np.asarray(values)}], **options)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
    st.dictionaries(st.integers(0, 8), st.one_of(st.none(), st.integers(0, 8)), max_size=5),
    st.booleans(),
    st.lists(st.integers(10, 14), min_size=1, max_size=3, unique=True),
)
def test_each_pixel_becomes_what_the_options_say(values, label_map, reduce_labels, ignored):
    values = [*values, *ignored]
    data = prepared([values], label_map=label_map, reduce_labels=reduce_labels, ignore_index=ignored)
    unknown = facts_of(data).ignore_index
    expected = []
    for value in values:
        if value in ignored or reduce_labels and value == 0:
            expected.append(unknown)
            continue
        value -= reduce_labels
        value = label_map.get(value, value)
        expected.append(unknown if value is None else value)
    assert data[0]["segmentation"].tolist() == [expected]
    assert unknown not in range(9)


@pytest.mark.parametrize(
    ("label_map", "names", "expected"),
    [
        ("2=1,3=255", {0: "wall", 1: "floor"}, [0, 1, 1, 255]),
        ("1=ground,2=ground", {0: "wall", 1: "ground", 3: "person"}, [0, 1, 1, 3]),
        ({3: None, "0": "null"}, {1: "floor", 2: "rug"}, [255, 1, 2, 255]),
        ({2: "wall"}, {0: "wall", 1: "floor", 3: "person"}, [0, 1, 0, 3]),
        ("0=1,1=0", NAMES, [1, 0, 2, 3]),  # at once, not one after another
    ],
)
def test_classes_are_merged_and_dropped_with_their_names(label_map, names, expected):
    data = prepared([[0, 1, 2, 3]], label_map=label_map, id2label=NAMES)
    assert data[0]["segmentation"].tolist() == [expected]
    assert facts_of(data).id2label == names


def test_a_class_map_in_a_file_stays_turned_and_a_jpeg_is_left_alone(tmp_path):
    values = np.array([[0, 1, 2], [3, 2, 1]], np.uint8)
    for name in ("a.png", "a.jpg"):
        exif = PIL.Image.Exif()
        exif[274] = 6
        PIL.Image.fromarray(values).save(tmp_path / name, exif=exif)
    rows = [{"image": None, "segmentation": str(tmp_path / name)} for name in ("a.png", "a.jpg")]
    data = prepare(rows, label_map="3=0")
    read = data[0]["segmentation"]
    assert read.getexif()[274] == 6
    np.testing.assert_array_equal(np.asarray(read), np.where(values == 3, 0, values))
    assert getattr(data[1]["segmentation"], "format", None) == "JPEG"


def test_samples_are_chosen_by_row_and_column():
    data = prepare(
        [{"photo": number, "label": np.array([[number]]), "image": "another"} for number in range(3)],
        "image=photo,segmentation=label",
        "2=1",
    )
    assert data.column_names == ["image", "segmentation"] and len(data) == 3
    assert [row["image"] for row in data.select([2, 0])] == [2, 0]
    assert data.select_columns(["segmentation"])[2] == {"segmentation": np.array([[1]])}
    with pytest.raises(ValueError, match="`names` must be some of"):
        data.select_columns(["depth"])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["pixel_values", "label"], {"image": "pixel_values", "segmentation": "label"}),
        (["jpg", "png"], {"image": "jpg", "segmentation": "png"}),
        (["image", "segmentation"], {}),
        (["image", "objects"], {}),  # for an evaluation
        (["image", "objects", "label"], {"segmentation": "label"}),  # to learn from
    ],
)
def test_columns_of_known_names_are_taken(names, expected):
    assert complete_column_map({}, names, None, "here") == expected


def test_columns_that_may_be_meant_are_named():
    with pytest.raises(ValueError, match=r"such as segmentation=annotation\|labels"):
        complete_column_map({}, ["image", "annotation", "labels"], None, "here")
    with pytest.raises(ValueError, match=r"such as segmentation=annotation\|labels"):
        complete_column_map({}, ["image", "objects", "annotation", "labels"], None, "here")
    with pytest.raises(ValueError, match=r"`column_map` must name columns of here, \['a'\], got 'photo'"):
        complete_column_map({"image": "photo"}, ["a"], None, "here")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"column_map": "image"}, "`column_map` must be column=name"),
        ({"column_map": "images=photo"}, "`column_map` must map columns of"),
        ({"column_map": "image=a,segmentation=a"}, "`column_map` must have each name once"),
        ({"label_map": "3"}, "`label_map` must be a .json or .yaml file, or id=id"),
        ({"label_map": "wall=0"}, "`label_map` must have class ids by class id"),
        ({"label_map": {0: 1.5}}, "1.5 is neither an id nor a name"),
        ({"label_map": {0: True}}, "True is neither an id nor a name"),
        ({"label_map": {9: 0}}, "`label_map` has the id 9, which `id2label` lacks"),
        ({"label_map": {0: 9}}, "`label_map` makes 0 to 9, which `id2label` lacks"),
        ({"ignore_index": "255,x"}, "`ignore_index` must be integers"),
        ({"ignore_index": []}, "`ignore_index` must be one integer or several"),
        ({"ignore_index": 3}, "`ignore_index`"),
    ],
)
def test_what_cannot_be_used_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        prepared([[0]], id2label=NAMES, **options)


@pytest.mark.parametrize("content", [b"- 1\n- 2\n", b"\xff\xfe\x00\x81", b"{1: [", b"3"])
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_files_that_cannot_be_used_are_named(tmp_path, content, suffix):
    file = tmp_path / f"map{suffix}"
    file.write_bytes(content)
    for argument, read in (("label_map", read_label_map), ("label_colors", load_label_colors)):
        with pytest.raises(ValueError, match=f"`{argument}`") as error:
            read(str(file))
        assert str(file) in str(error.value)


def test_values_in_all_their_forms(tmp_path):
    (tmp_path / "map.yaml").write_text("3: 5\n7: null\n8: floor\n")
    (tmp_path / "map.json").write_text('{"3": 5, "7": null, "8": "floor"}', encoding="utf-8-sig")
    for value in (str(tmp_path / "map.yaml"), tmp_path / "map.json", "3=5,7=,8=floor", {3: 5, "7": None, 8: "floor"}):
        assert read_label_map(value) == {3: 5, 7: None, 8: "floor"}
    assert read_ignore_index("0, 255") == read_ignore_index([0, 255]) == (0, 255)
    assert read_ignore_index(-1) == (-1,) and read_ignore_index(None) is None
    assert read_column_map("image = photo") == {"image": "photo"}
    with pytest.raises(TypeError, match="`column_map` must be a dict"):
        read_column_map(["image"])
