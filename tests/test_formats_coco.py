"""COCO, its panoptic and stuff maps, and one's own files of its kind, read from small trees in the official layout."""

import json
import pickle

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densemllm.formats import coco_index
from densemllm.formats.coco import NEVER_ANNOTATED, STUFF_NAMES
from densemllm.formats.coco_index import index_json
from densemllm.formats.folders import load_samples
from densemllm.formats.registry import open_format
from densemllm.tokens_densemllm import BACKGROUND_LABEL
from densemllm.training.samples import read_sample
from repository import require
from tiny import make_image


require("formats/coco.py")

pytest.importorskip("pycocotools")

CATEGORIES = [
    {"supercategory": "person", "id": 1, "name": "person"},
    {"supercategory": "animal", "id": 18, "name": "dog"},
    {"supercategory": "indoor", "id": 90, "name": "toothbrush"},
]
IMAGE_ID = 139


def box_polygon(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def instances_json():
    """Two images of 8 x 6 pixels: a person with a dog on top and a crowd of dogs, and one without any object."""
    annotations = [
        {
            "segmentation": [box_polygon(1, 1, 2, 2)],
            "area": 1.0,
            "iscrowd": 0,
            "image_id": IMAGE_ID,
            "bbox": [1, 1, 1, 1],
            "category_id": 18,
            "id": 11,
        },
        {
            "segmentation": [box_polygon(0, 0, 4, 3)],
            "area": 12.0,
            "iscrowd": 0,
            "image_id": IMAGE_ID,
            "bbox": [0, 0, 4, 3],
            "category_id": 1,
            "id": 12,
        },
        # Column by column: 6 columns of 6 without, the whole column 6, then the rest without.
        {
            "segmentation": {"counts": [36, 6, 6], "size": [6, 8]},
            "area": 6,
            "iscrowd": 1,
            "image_id": IMAGE_ID,
            "bbox": [6, 0, 1, 6],
            "category_id": 18,
            "id": 900100000012,
        },
    ]
    images = [
        {"license": 3, "file_name": "000000000139.jpg", "height": 6, "width": 8, "id": IMAGE_ID},
        {"license": 3, "file_name": "000000000285.jpg", "height": 6, "width": 8, "id": 285},
    ]
    return {
        "info": {"description": "COCO 2017 Dataset", "year": 2017},
        "licenses": [{"url": "http://y", "id": 3}],
        "images": images,
        "annotations": annotations,
        "categories": CATEGORIES,
    }


def write_images(folder, names):
    folder.mkdir(parents=True)
    for name in names:
        make_image(6, 8).save(folder / name)


@pytest.fixture
def coco(tmp_path):
    write_images(tmp_path / "val2017", ["000000000139.jpg", "000000000285.jpg"])
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(instances_json()))
    return tmp_path


# 1 is the person, whose number is 2, and 18 the dog, whose number is 1.
CLASSES = np.full((6, 8), 255)
CLASSES[:3, :4], CLASSES[1, 1], CLASSES[:, 6] = 1, 18, 18
INSTANCES = np.zeros((6, 8), dtype=int)
INSTANCES[:3, :4], INSTANCES[1, 1], INSTANCES[:, 6] = 2, 1, 255


def test_objects(coco):
    data = load_samples(f"coco:{coco}", "validation")
    assert len(data) == 2 and data.column_names == ["image", "segmentation", "instances"]
    assert data.facts.id2label == {1: "person", 18: "dog", 90: "toothbrush"}
    assert data.facts.thing_labels == ("person", "dog", "toothbrush") and data.facts.ignore_index == 255
    sample = read_sample(data[0], id2label=data.facts.id2label)
    np.testing.assert_array_equal(sample["segmentation"], CLASSES)
    np.testing.assert_array_equal(sample["instances"], INSTANCES)
    assert sample["image"].size == (8, 6)
    empty = read_sample(data[1], id2label=data.facts.id2label)
    assert (empty["segmentation"] == 255).all() and not empty["instances"].any()


def test_the_files_of_2014(coco):
    (coco / "annotations" / "instances_val2017.json").rename(coco / "annotations" / "instances_val2014.json")
    (coco / "images").mkdir()
    (coco / "val2017").rename(coco / "images" / "val2014")
    row = load_samples(f"coco:{coco}", "validation")[0]
    assert row["image"] == str(coco / "images" / "val2014" / "000000000139.jpg")


def test_background_as_a_class(coco):
    data = open_format(f"coco:{coco}", "validation", background="class")
    assert data.facts.id2label[0] == BACKGROUND_LABEL and BACKGROUND_LABEL not in data.facts.thing_labels
    np.testing.assert_array_equal(data[0]["segmentation"], np.where(CLASSES == 255, 0, CLASSES))
    with pytest.raises(ValueError, match="`background` must be one of"):
        open_format(f"coco:{coco}", "validation", background="stuff")


def test_rows_are_read_when_they_are_asked_for(coco):
    (coco / "val2017" / "000000000285.jpg").unlink()
    data = pickle.loads(pickle.dumps(load_samples(f"coco:{coco}", "validation")))
    assert data.select([1]).select_columns(["image"])[0] == {"image": str(coco / "val2017" / "000000000285.jpg")}
    np.testing.assert_array_equal(data[0]["segmentation"], CLASSES)


def test_more_objects_than_the_ignored_number(coco):
    content = instances_json()
    content["annotations"] = [
        {"segmentation": [box_polygon(0, 0, 1, 1)], "iscrowd": 0, "image_id": 285, "category_id": 1, "id": key}
        for key in range(253)
    ]
    content["annotations"] += [
        {"segmentation": [box_polygon(x, 4, x + 1, 5)], "iscrowd": 0, "image_id": 285, "category_id": 1, "id": 300 + x}
        for x in range(3)
    ]
    (coco / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    assert load_samples(f"coco:{coco}", "validation")[1]["instances"][4, :4].tolist() == [254, 256, 257, 0]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: (root / "annotations" / "instances_val2017.json").unlink(), "instances_val2017.json"),
        (lambda root: (root / "val2017").rename(root / "val"), "must have the folder val2017"),
        (lambda root: (root / "annotations" / "instances_val2017.json").write_text("[]"), "must be a JSON object"),
        (lambda root: (root / "annotations" / "instances_val2017.json").write_text('{"images": [{"id": 1'), "byte"),
        (lambda root: (root / "annotations" / "instances_val2017.json").write_text('{"images": [1]}'), "JSON object"),
        (lambda root: (root / "annotations" / "instances_val2017.json").write_text("{}"), "must have `images`"),
    ],
)
def test_what_lacks_is_named(coco, break_it, message):
    break_it(coco)
    with pytest.raises(ValueError, match=message) as caught:
        load_samples(f"coco:{coco}", "validation")
    assert str(coco) in str(caught.value)


def test_options_and_splits_are_checked(coco):
    with pytest.raises(ValueError, match="`split` must be one of"):
        load_samples(f"coco:{coco}", "test")
    with pytest.raises(ValueError, match="`colour` can't be given"):
        open_format(f"coco:{coco}", "validation", colour=1)


def test_an_outline_of_another_size_is_refused(coco):
    content = instances_json()
    content["annotations"][2]["segmentation"]["size"] = [8, 6]
    (coco / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="annotation 900100000012 .*its size is"):
        load_samples(f"coco:{coco}", "validation")[0]


# ---- boxes ----


def test_boxes_of_every_image(coco):
    data = load_samples(f"coco_detection:{coco}", "validation")
    assert len(data) == 2 and data.column_names == ["image", "objects"]
    assert data.facts.id2label == {1: "person", 18: "dog", 90: "toothbrush"}
    sample = read_sample(data[0], id2label=data.facts.id2label, measured=True)
    assert sample["objects"] == {
        "bbox": [[1, 1, 1, 1], [0, 0, 4, 3], [6, 0, 1, 6]],
        "category": [18, 1, 18],
        "area": [1, 12, 6],
        "iscrowd": [0, 0, 1],
    }
    empty = {"bbox": [], "category": [], "area": [], "iscrowd": []}
    assert read_sample(data[1], measured=True)["objects"] == empty
    assert "objects" not in read_sample(data[0])  # nothing is learned from them


def test_boxes_alone_are_enough_for_detection(coco):
    content = instances_json()
    for annotation in content["annotations"]:
        del annotation["segmentation"], annotation["area"], annotation["iscrowd"]
    (coco / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    data = load_samples(f"coco_detection:{coco}", "validation")
    objects = read_sample(data[0], id2label=data.facts.id2label, measured=True)["objects"]
    assert objects["area"] == [1, 12, 6] and objects["iscrowd"] == [0, 0, 0]
    del content["annotations"][1]["bbox"]
    (coco / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="an annotation of 000000000139.jpg without 'bbox'"):
        load_samples(f"coco_detection:{coco}", "validation")[0]
    with pytest.raises(ValueError, match="the folder of the images, .*nowhere, isn't there"):
        open_format(f"coco_detection:{coco}", "validation", images=str(coco / "nowhere"))


# ---- one's own files ----


def own_json(names=("a.png",), **changes):
    """A file as annotation tools write it: keys in another order, no sizes, a class 0, compressed run lengths."""
    from pycocotools import mask

    runs = mask.encode(np.asfortranarray(np.eye(6, 8, dtype=np.uint8)))
    annotations = [
        {
            "id": 1,
            "image_id": "x0",
            "category_id": 0,
            "bbox": [0, 0, 6, 6],
            "segmentation": {"size": [6, 8], "counts": runs["counts"].decode()},
        },
        {"id": 2, "image_id": "x0", "category_id": 7, "bbox": [0, 0, 6, 6], "segmentation": []},
        {
            "id": 3,
            "image_id": "x0",
            "category_id": 7,
            "bbox": [6, 0, 2, 1],
            "segmentation": [box_polygon(6, 0, 8, 1), [1, 2, 3, 4]],
        },
    ]
    content = {
        "categories": [{"id": 0, "name": "Käfer"}, {"id": 7, "name": "leaf"}],
        "annotations": annotations,
        "images": [{"file_name": name, "id": f"x{place}"} for place, name in enumerate(names)],
    }
    return json.dumps(content | changes, indent=2, ensure_ascii=False)


@pytest.mark.parametrize("images", ["", "images", "../images"])
def test_own_file(tmp_path, images):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "train.json").write_text(own_json(), encoding="utf-8-sig")
    (tmp_path / "labels" / images).mkdir(exist_ok=True)
    make_image(6, 8).save(tmp_path / "labels" / images / "a.png")
    data = load_samples(f"coco_json:{tmp_path}/labels/train.json")
    assert data.facts.id2label == {0: "Käfer", 7: "leaf"}
    sample = read_sample(data[0], id2label=data.facts.id2label)
    expected = np.where(np.eye(6, 8), 0, 255)
    expected[0, 6:] = 7
    np.testing.assert_array_equal(sample["segmentation"], expected)
    assert sample["instances"][0, 7] == 3 and sample["instances"][1, 1] == 1


def test_own_folders_of_splits(tmp_path):
    for folder in ("train", "valid"):
        write_images(tmp_path / folder, [f"{folder}.png"])
        (tmp_path / folder / "_annotations.coco.json").write_text(own_json([f"{folder}.png"]), encoding="utf-8")
    for split, folder in (("train", "train"), ("validation", "valid")):
        assert load_samples(f"coco_json:{tmp_path}", split)[0]["image"].endswith(f"{folder}.png")
        by_name = load_samples(f"coco_json:{tmp_path}/{{split}}/_annotations.coco.json", folder)
        assert by_name[0]["image"].endswith(f"{folder}.png")
    with pytest.raises(ValueError, match="`split` must be one of the folders"):
        load_samples(f"coco_json:{tmp_path}", "test")


def test_own_images_in_a_given_folder_and_large_class_ids(tmp_path):
    write_images(tmp_path / "elsewhere", ["a.png"])
    file = tmp_path / "labels.json"
    file.write_text(own_json(categories=[{"id": 0, "name": "a"}, {"id": 7, "name": "b"}, {"id": 255, "name": "c"}]))
    with pytest.raises(ValueError, match="the image a.png must be in one of"):
        load_samples(f"coco_json:{file}")
    with pytest.raises(ValueError, match="isn't there"):
        open_format(f"coco_json:{file}", "train", images=str(tmp_path / "nowhere"))
    data = open_format(f"coco_json:{file}", "train", images=str(tmp_path / "elsewhere"), background="class")
    assert data.facts.ignore_index == -1 and data.facts.id2label[256] == BACKGROUND_LABEL
    assert read_sample(data[0], id2label=data.facts.id2label, ignore_index=-1)["segmentation"][5, 0] == 256


def test_boxes_alone_are_refused(tmp_path):
    write_images(tmp_path / "images", ["a.png"])
    file = tmp_path / "boxes.json"
    file.write_text(own_json(annotations=[{"id": 1, "image_id": "x0", "category_id": 7, "bbox": [0, 0, 6, 6]}]))
    with pytest.raises(ValueError, match="it has only boxes"):
        load_samples(f"coco_json:{file}")


def test_annotations_of_images_that_lack(tmp_path):
    file = tmp_path / "labels.json"
    file.write_text(own_json(images=[{"id": "y", "file_name": "a.png"}]))
    with pytest.raises(ValueError, match="labels.json has no `x0`"):
        load_samples(f"coco_json:{file}")


# ---- the index ----

TEXTS = st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), window=st.integers(1, 40), ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_the_index_finds_what_a_json_parser_reads(tmp_path_factory, data, window, ascii_only, indent):
    """However the file is cut into windows, whatever else stands in it and in whatever order."""
    image_ids = data.draw(st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True))
    annotations = [
        {
            **data.draw(st.dictionaries(TEXTS, VALUES, max_size=3)),
            "image_id": data.draw(st.sampled_from(image_ids)),
            "id": number,
        }
        for number in range(data.draw(st.integers(0, 6)))
    ]
    content = {
        **{f"other {key}": value for key, value in data.draw(st.dictionaries(TEXTS, VALUES, max_size=3)).items()},
        "images": [{"id": key, "file_name": data.draw(TEXTS)} for key in image_ids],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    content = dict(data.draw(st.permutations(list(content.items()))))
    path = tmp_path_factory.mktemp("index") / "file.json"
    path.write_text(
        json.dumps(content, ensure_ascii=ascii_only, indent=indent), encoding="utf-8", errors="surrogatepass"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_index, "WINDOW", window)
        index = index_json(path, "here")
    assert index.files == [image["file_name"] for image in content["images"]]
    for place, key in enumerate(image_ids):
        assert index.annotations(place) == [entry for entry in annotations if entry["image_id"] == key]


@pytest.mark.parametrize("number", ["0.5", "-12.25", "1e-05", "2.5E+300", "-0.0", "7"])
@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_a_number_may_be_cut_anywhere(tmp_path, monkeypatch, number, window):
    monkeypatch.setattr(coco_index, "WINDOW", window)
    rows = f'"images": [{{"id": 1, "file_name": "a"}}], "annotations": [{{"image_id": 1, "score": {number}}}]'
    path = tmp_path / "file.json"
    path.write_text(f'{{"version": {number}, {rows}, "categories": [{{"id": 1, "name": "thing"}}]}}')
    assert index_json(path, "here").annotations(0) == [{"image_id": 1, "score": float(number)}]


# ---- panoptic ----


def test_panoptic(tmp_path):
    write_images(tmp_path / "train2017", ["000000000139.jpg", "000000000285.jpg"])
    segments = [
        {"id": 255, "category_id": 1, "iscrowd": 0, "bbox": [0, 0, 2, 2], "area": 4},
        {"id": 0x030201, "category_id": 1, "iscrowd": 0, "bbox": [2, 0, 2, 2], "area": 4},
        {"id": 0x0A0000, "category_id": 184, "iscrowd": 0, "bbox": [0, 2, 8, 1], "area": 8},
        {"id": 77, "category_id": 18, "iscrowd": 1, "bbox": [0, 5, 8, 1], "area": 8},
    ]
    ids = np.zeros((6, 8), dtype=int)
    ids[:2, :2], ids[:2, 2:4], ids[2], ids[5] = 255, 0x030201, 0x0A0000, 77
    categories = [
        {"supercategory": "person", "isthing": 1, "id": 1, "name": "person"},
        {"supercategory": "animal", "isthing": 1, "id": 18, "name": "dog"},
        {"supercategory": "plant", "isthing": 0, "id": 184, "name": "tree-merged"},
    ]
    content = instances_json() | {
        "annotations": [{"segments_info": segments, "file_name": "000000000139.png", "image_id": IMAGE_ID}],
        "categories": categories,
    }
    maps = tmp_path / "annotations" / "panoptic_train2017"
    maps.mkdir(parents=True)
    (tmp_path / "annotations" / "panoptic_train2017.json").write_text(json.dumps(content))
    colors = np.stack([ids & 255, (ids >> 8) & 255, ids >> 16], axis=-1).astype(np.uint8)
    PIL.Image.fromarray(colors).save(maps / "000000000139.png")

    data = load_samples(f"coco_panoptic:{tmp_path}", "train")
    assert len(data) == 1  # the image that is annotated
    assert data.facts.thing_labels == ("person", "dog") and data.facts.id2label[184] == "tree-merged"
    sample = read_sample(data[0], id2label=data.facts.id2label)
    expected = np.full((6, 8), 255)
    expected[:2, :4], expected[2] = 1, 184
    np.testing.assert_array_equal(sample["segmentation"], expected)
    expected = np.zeros((6, 8), dtype=int)
    expected[:2, :2], expected[:2, 2:4], expected[5] = 1, 2, 255
    np.testing.assert_array_equal(sample["instances"], expected)

    colors[3, 3] = 9
    PIL.Image.fromarray(colors).save(maps / "000000000139.png")
    with pytest.raises(ValueError, match=r"has the segments \[592137\]"):
        data[0]
    with pytest.raises(ValueError, match="panoptic_val2017.json"):
        load_samples(f"coco_panoptic:{tmp_path}", "validation")


# ---- COCO-Stuff ----


@pytest.mark.parametrize("top", ["stuffthingmaps", "stuffthingmaps_trainval2017", "annotations"])
def test_stuff(tmp_path, top):
    write_images(tmp_path / "images" / "val2017", ["000000000139.jpg"])
    maps = tmp_path / top / "val2017"
    maps.mkdir(parents=True)
    values = np.full((6, 8), 255, dtype=np.uint8)
    values[0], values[1] = 0, 181
    PIL.Image.fromarray(values).save(maps / "000000000139.png")
    PIL.Image.fromarray(values).save(maps / "000000000139_labelTrainIds.png")  # as another tool leaves it there
    data = load_samples(f"coco_stuff:{tmp_path}", "validation")
    sample = read_sample(data[0], id2label=data.facts.id2label)
    np.testing.assert_array_equal(sample["segmentation"], values)
    assert len(data) == 1 and len(data.facts.id2label) == 171
    assert data.facts.id2label[0] == "person" and data.facts.id2label[181] == "wood"
    assert len(open_format(f"coco_stuff:{tmp_path}", "validation", names="all").facts.id2label) == 182
    with pytest.raises(ValueError, match="`names` must be"):
        open_format(f"coco_stuff:{tmp_path}", "validation", names="none")
    with pytest.raises(ValueError, match="must have the folder stuffthingmaps/train2017"):
        load_samples(f"coco_stuff:{tmp_path}", "train")


def test_names_of_stuff():
    """Where the ids of COCO have their gaps, and the ends of things and stuff."""
    assert len(STUFF_NAMES) == len(set(STUFF_NAMES)) == 182
    gaps = [value + 1 for value, name in enumerate(STUFF_NAMES) if name in NEVER_ANNOTATED]
    assert gaps == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91]
    assert [STUFF_NAMES[key - 1] for key in (13, 90, 92, 124, 149, 169, 182)] == [
        "stop sign",
        "toothbrush",
        "banner",
        "grass",
        "road",
        "tree",
        "wood",
    ]
