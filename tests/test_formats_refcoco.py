"""RefCOCO, RefCOCO+, RefCOCOg and GRefCOCO, read from small trees in the official layout."""

import json
import pickle
from collections import OrderedDict, deque

import numpy as np
import pytest

from densemllm.formats.folders import load_samples
from densemllm.formats.refcoco import read_plain_pickle
from densemllm.formats.registry import open_format
from densemllm.training.samples import draw_expression, read_sample
from repository import require
from tiny import make_image


require("formats/refcoco.py")

pytest.importorskip("pycocotools")

NAME = "COCO_train2014_000000581857.jpg"
# Two objects of which the smaller one lies on the larger one, and one that a third covers altogether.
BOXES = {1719310: (0, 0, 5, 4), 1720000: (1, 1, 3, 3), 1730000: (5, 4, 8, 6), 1740000: (5, 4, 8, 6)}


def ref(ann_id, texts, split="train", **more):
    """An entry as `refs(unc).p` has it."""
    sentences = [
        {"tokens": text.split(), "raw": text.upper(), "sent_id": place, "sent": text}
        for place, text in enumerate(texts)
    ]
    return {
        "sent_ids": list(range(len(texts))),
        "file_name": "COCO_train2014_000000581857_16.jpg",
        "ann_id": ann_id,
        "ref_id": 0,
        "image_id": 581857,
        "split": split,
        "sentences": sentences,
        "category_id": 1,
        **more,
    }


REFS = [
    ref(1719310, ["the man", "large one"]),
    ref(1720000, ["small one"]),
    ref(1730000, ["covered"]),
    ref(1740000, ["on top", " "]),
    ref(1720000, ["tiny"], "val"),
    ref(1719310, ["big"], "testB"),
]


def write_tree(root, name, files):
    """A data set's folder, with COCO's images beside it as `refer` has them."""
    images = root / "images" / "mscoco" / "images" / "train2014"
    images.mkdir(parents=True)
    make_image(6, 8).save(images / NAME)
    folder = root / name
    folder.mkdir()
    annotations = [
        {
            "id": key,
            "image_id": 581857,
            "category_id": 1,
            "iscrowd": 0,
            "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        }
        for key, (x0, y0, x1, y1) in BOXES.items()
    ]
    image = {"id": 581857, "file_name": NAME, "height": 6, "width": 8}
    content = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    (folder / "instances.json").write_text(json.dumps(content))
    for file, refs in files.items():
        (folder / file).write_bytes(pickle.dumps(refs, 2) if file.endswith(".p") else json.dumps(refs).encode())
    return folder


def box_mask(*boxes):
    mask = np.zeros((6, 8), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("refcoco", "refs(unc).p"),
        ("refcoco+", "refs(unc).p"),
        ("refcoco", "refs(unc).json"),
        ("refcocog", "refs(umd).p"),
    ],
)
def test_every_sentence_is_a_sample(tmp_path, name, file):
    folder = write_tree(tmp_path, name, {file: REFS})
    data = load_samples(f"{name}:{folder}", "train")
    assert [data[place]["expression"] for place in range(len(data))] == [
        "the man",
        "large one",
        "small one",
        "covered",
        "on top",
    ]
    sample = read_sample(data[1])
    np.testing.assert_array_equal(sample["mask"], box_mask(BOXES[1719310]))
    np.testing.assert_array_equal(read_sample(data[2])["mask"], box_mask(BOXES[1720000]))
    assert sample["image"].size == (8, 6) and data.facts.id2label is None
    # The folder above, as `refer` is given it, and another process.
    above = pickle.loads(pickle.dumps(load_samples(f"{name}:{tmp_path}", "validation")))
    assert [row["expression"] for row in above] == ["tiny"]
    assert data.select_columns(["expression"])[0] == {"expression": "the man"}


def test_splits(tmp_path):
    folder = write_tree(tmp_path, "refcoco", {"refs(unc).p": REFS, "refs(google).p": REFS[:1]})
    assert load_samples(f"refcoco:{folder}", "testB")[0]["expression"] == "big"
    with pytest.raises(ValueError, match=r"refs\(unc\).p has no expressions of the split 'testA'"):
        load_samples(f"refcoco:{folder}", "testA")
    with pytest.raises(ValueError, match=r"`split` must be one of \['train', 'validation', 'testA', 'testB'\]"):
        load_samples(f"refcoco:{folder}", "test")
    assert len(open_format(f"refcoco:{folder}", "train", split_by="google")) == 2


def test_all_sentences_of_an_image_at_once(tmp_path):
    folder = write_tree(tmp_path, "refcoco", {"refs(unc).p": REFS})
    data = open_format(f"refcoco:{folder}", "train", sentences="image")
    assert len(data) == 1 and data.column_names == ["image", "instances", "expressions", "expression_instances"]
    sample = read_sample(data[0])
    assert sample["expressions"] == ["the man", "large one", "small one", "on top"]  # one object can't be seen
    assert sample["expression_instances"][0] == sample["expression_instances"][1]
    drawn = {}
    for seed in range(40):
        one = draw_expression(sample, np.random.default_rng(seed))
        drawn[one["expression"]] = one["mask"]
    small = box_mask(BOXES[1720000])
    np.testing.assert_array_equal(drawn["small one"], small)
    np.testing.assert_array_equal(drawn["the man"], box_mask(BOXES[1719310]) & ~small)
    np.testing.assert_array_equal(drawn["on top"], box_mask(BOXES[1740000]))


@pytest.mark.parametrize("file", ["grefs(unc).json", "grefs(unc).p"])
def test_expressions_for_several_objects_and_for_none(tmp_path, file):
    refs = [
        ref([1720000, 1730000], ["both"], "testA", category_id=[1, 1], no_target=False),
        ref([-1], ["the elephant"], "testA", category_id=[-1], no_target=True),
    ]
    folder = write_tree(tmp_path, "grefcoco", {file: refs})
    data = load_samples(f"grefcoco:{folder}", "testA")
    np.testing.assert_array_equal(read_sample(data[0])["mask"], box_mask(BOXES[1720000], BOXES[1730000]))
    none = read_sample(data[1])
    assert none["expression"] == "the elephant" and none["mask"].dtype == bool and not none["mask"].any()
    with pytest.raises(ValueError, match=r"`sentences` must be one of \('each',\)"):
        open_format(f"grefcoco:{folder}", "testA", sentences="image")


def test_what_lacks_is_named(tmp_path):
    folder = write_tree(tmp_path, "refcoco", {"refs(unc).p": REFS})
    (folder / "refs(google).p").write_bytes(pickle.dumps([ref(5, ["no such object"])], 2))
    with pytest.raises(ValueError, match=r"lacks the annotations \[5\]"):
        open_format(f"refcoco:{folder}", "train", split_by="google")
    (folder / "refs(umd).json").write_text('[{"split": "train"}]')
    with pytest.raises(ValueError, match="must be a list of dicts with split"):
        open_format(f"refcoco:{folder}", "train", split_by="umd")
    with pytest.raises(ValueError, match="`sentences` must be one of"):
        open_format(f"refcoco:{folder}", "train", sentences="all")
    with pytest.raises(ValueError, match="nowhere, isn't there"):
        open_format(f"refcoco:{folder}", "train", images=str(tmp_path / "nowhere"))
    (folder / "refs(unc).p").unlink()
    with pytest.raises(ValueError, match=r"must have the file refs\(unc\).p or refs\(unc\).json"):
        load_samples(f"refcoco:{folder}")
    (folder / "refs(unc).p").write_bytes(b"")
    (tmp_path / "images").rename(tmp_path / "pictures")
    with pytest.raises(ValueError, match="must have COCO's images in one of"):
        load_samples(f"refcoco:{folder}")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({self.path!r}, 'w')",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_runs_no_code(tmp_path, protocol):
    path, trace = tmp_path / "refs(unc).p", tmp_path / "trace"
    path.write_bytes(pickle.dumps([Bomb(str(trace))], protocol))
    with pytest.raises(ValueError, match=r"can't be read as a pickle of plain containers \(it has .*exec"):
        read_plain_pickle(path)
    assert not trace.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles(tmp_path, protocol):
    path = tmp_path / "plain.p"
    content = [{"a": (1, 2.5, None, True)}, OrderedDict(b="ü"), {3, 4}, 10**30]
    path.write_bytes(pickle.dumps(content, protocol))
    assert read_plain_pickle(path) == content
    path.write_bytes(pickle.dumps(deque(), protocol))
    with pytest.raises(ValueError, match="it has collections.deque"):
        read_plain_pickle(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"(lp0\nS'sent'\np1\naV\xe9\np2\na.", ["sent", "é"]),
        (b"\x80\x02U\x02\xc3\xa9.", "é"),
        (b"\x80\x02U\x01\xe9.", "�"),
    ],
)
def test_pickles_of_python_2(tmp_path, content, expected):
    path = tmp_path / "old.p"
    path.write_bytes(content)
    assert read_plain_pickle(path) == expected


@pytest.mark.parametrize("content", [b"", b"\x80", b"junk", b"cos\nsystem\n(S'true'\ntR.", b"Pid\n."])
def test_damaged_and_harmful_files(tmp_path, content):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="can't be read as a pickle of plain containers"):
        read_plain_pickle(path)
