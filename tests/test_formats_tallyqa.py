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
"""TallyQA, read from a small tree in the official layout."""

import json
import pickle

import pytest

from densemllm.formats.coco_index import JsonList
from densemllm.formats.folders import load_samples
from densemllm.formats.registry import open_format
from densemllm.training.datasets import DenseSource
from densemllm.training.samples import read_sample
from repository import require
from tiny import make_image


require("formats/tallyqa.py")

# As the files have them: Visual Genome's images in two folders, COCO's in two.
TEST = [
    {"image": "VG_100K_2/2410408.jpg", "answer": 1, "issimple": False, "image_id": 2410408,
     "question_id": 30094105, "question": "How many of the chairs are leather?"},
    {"image": "VG_100K/92410.jpg", "answer": 2, "issimple": True, "image_id": 92410,
     "question_id": 30094106, "question": "How many cafés are there?"},
    {"image": "val2014/COCO_val2014_000000000042.jpg", "answer": 0, "issimple": True, "image_id": 42,
     "question_id": 3, "question": "How many dogs?"},
]  # fmt: skip


@pytest.fixture
def tallyqa(tmp_path):
    for row in TEST:
        (tmp_path / row["image"]).parent.mkdir(parents=True, exist_ok=True)
        make_image(16, 24).save(tmp_path / row["image"])
    (tmp_path / "test.json").write_text(json.dumps(TEST, ensure_ascii=False), encoding="utf-8")
    train = [{**row, "data_source": "imported_genome"} for row in TEST[:2]]
    (tmp_path / "train.json").write_text(json.dumps(train, indent=1))
    return tmp_path


def test_a_question_is_a_sample(tallyqa):
    data = load_samples(f"tallyqa:{tallyqa}", "test")
    assert len(data) == 3 and data.column_names == ["image", "question", "answer"]
    assert data[0]["image"] == str(tallyqa / "VG_100K_2/2410408.jpg")
    sample = read_sample(data[1], measured=True)
    assert (sample["question"], sample["answer"]) == ("How many cafés are there?", 2)
    assert sample["image"].size == (24, 16)
    assert set(read_sample(data[1])) == {"image"}  # what nothing is learned from
    assert len(load_samples(f"tallyqa:{tallyqa}", "train")) == 2


def test_simple_and_complex_questions(tallyqa):
    answers = {
        split: [row["answer"] for row in load_samples(f"tallyqa:{tallyqa}", split)]
        for split in ("test", "test_simple", "test_complex")
    }
    assert answers == {"test": [1, 2, 0], "test_simple": [2, 0], "test_complex": [1]}


def test_questions_are_read_when_they_are_asked_for(tallyqa):
    for row in TEST:
        (tallyqa / row["image"]).unlink()
    data = pickle.loads(pickle.dumps(load_samples(f"tallyqa:{tallyqa}", "test")))
    assert data.select([2]).select_columns(["answer"])[0] == {"answer": 0}


def test_images_elsewhere(tallyqa, tmp_path):
    data = open_format(f"tallyqa:{tallyqa}", "test", images=str(tmp_path / "VG_100K"))
    assert data[1]["image"] == str(tmp_path / "VG_100K" / "VG_100K/92410.jpg")
    with pytest.raises(ValueError, match="the folder of the images, .*nowhere, isn't there"):
        open_format(f"tallyqa:{tallyqa}", "test", images=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "must be a JSON list"),
        ('[{"image": "a.jpg"', "must be a JSON list .*byte"),
        ("[]", "has no questions of the split 'test'"),
        ('[{"image": "a.jpg", "answer": 1}]', "list of dicts with image, question and answer .*question"),
        ("[3]", "list of dicts with image, question and answer"),
    ],
)
def test_files_with_something_else_are_named(tallyqa, content, message):
    (tallyqa / "test.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_samples(f"tallyqa:{tallyqa}", "test")
    assert str(tallyqa) in str(caught.value)


def test_what_lacks_is_named(tallyqa):
    with pytest.raises(ValueError, match=r"`split` must be one of \['train', 'test', 'test_simple', 'test_complex'\]"):
        load_samples(f"tallyqa:{tallyqa}", "validation")
    (tallyqa / "train.json").write_text('[{"image": "a.jpg", "question": "How many?", "answer": 1}]')
    (tallyqa / "test.json").write_text('[{"image": "a.jpg", "question": "How many?", "answer": 1}]')
    assert load_samples(f"tallyqa:{tallyqa}", "test")[0]["answer"] == 1
    with pytest.raises(ValueError, match="must have `issimple`"):
        load_samples(f"tallyqa:{tallyqa}", "test_simple")
    (tallyqa / "test.json").unlink()
    with pytest.raises(ValueError, match="must have the file test.json"):
        load_samples(f"tallyqa:{tallyqa}", "test")


def test_nothing_can_be_learned_from_it(tallyqa):
    with pytest.raises(ValueError, match="`data` has nothing to learn from: .*'answer'.* are for an evaluation alone"):
        DenseSource(load_samples(f"tallyqa:{tallyqa}", "train"))


def test_a_list_is_indexed_whatever_its_form(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(' [ 1 , "a,]é" ,\n{"b": [2, 3]},[]\n, 5] ', encoding="utf-8")
    entries = JsonList(path, "here")
    assert [entries[place] for place in range(len(entries))] == [1, "a,]é", {"b": [2, 3]}, [], 5]
    assert len(JsonList(path, "here", lambda value: isinstance(value, int))) == 2
