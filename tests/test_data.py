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
"""Samples from data sets and folders: checked, augmented, mixed, streamed, collated."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image
from hypothesis import given, settings
from hypothesis import strategies as st

from densemllm.formats.folders import load_samples
from densemllm.formats.labels import load_id2label
from densemllm.training.collator import DenseCollator
from densemllm.training.datasets import DenseDataset, DenseIterableDataset, DenseSource
from densemllm.training.maps import CorruptFileError
from densemllm.training.samples import Augmentation, read_sample
from tiny import ID2LABEL, make_image, make_processor


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def make_row(seed=0, height=24, width=32, **columns):
    generator = np.random.default_rng(seed)
    return {
        "image": make_image(height, width, seed),
        "segmentation": PIL.Image.fromarray(generator.integers(0, 3, (height, width)).astype(np.uint8)),
        "depth": PIL.Image.fromarray(generator.integers(0, 8000, (height, width)).astype(np.uint16)),
        **columns,
    }


def write_row(folder, name, row):
    for column, picture in row.items():
        (folder / column).mkdir(parents=True, exist_ok=True)
        picture.save(folder / column / f"{name}.png")


# ---- schema ----


def test_row_becomes_arrays_in_metres():
    row = make_row()
    sample = read_sample(row, id2label=ID2LABEL, depth_scale=0.001)
    np.testing.assert_array_equal(sample["segmentation"], np.asarray(row["segmentation"]))
    np.testing.assert_allclose(sample["depth"], np.asarray(row["depth"]) * 0.001, rtol=1e-6)
    assert sample["depth"].dtype == np.float32 and sample["image"].mode == "RGB"
    floats = read_sample({**row, "depth": np.full((24, 32), 2.5)}, id2label=ID2LABEL)
    assert (floats["depth"] == 2.5).all()
    mask = read_sample({"image": row["image"], "mask": PIL.Image.fromarray(np.eye(24, 32, dtype=np.uint8) * 255)})
    np.testing.assert_array_equal(mask["mask"], np.eye(24, 32, dtype=bool))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": None}, "no `image`"),
        ({"image": 3}, "column `image`"),
        ({"segmentation": make_image(24, 32)}, "column `segmentation`: it must have the upright image's size"),
        ({"segmentation": np.zeros((32, 24), dtype=int)}, "column `segmentation`"),
        ({"segmentation": np.full((24, 32), 7)}, "class ids \\[7\\]"),
        ({"segmentation": np.zeros((24, 32))}, "column `segmentation`: it must be integers"),
        ({"segmentation": np.full((24, 32), -1)}, "column `segmentation`: class ids"),
        ({"depth": np.zeros((24, 32), dtype=bool)}, "column `depth`: it must be numbers"),
        ({"mask": None, "expression": "the cat"}, "no `mask`"),
        ({"mask": np.ones((24, 32)), "expression": " "}, "column `expression`"),
        ({"messages": "hello"}, "column `messages`"),
        ({"messages": [{"role": "user", "content": "hello"}]}, "column `messages`"),
        ({"focal_length": -1.0}, "column `focal_length`"),
    ],
)
def test_rows_that_break_the_schema_are_named(change, words):
    with pytest.raises(ValueError, match=f"row 3.*{words}") as error:
        read_sample({**make_row(), **change}, "row 3", ID2LABEL, 0.001)
    assert not isinstance(error.value, CorruptFileError)


def test_pictures_are_read_as_in_prediction(processor):
    clear = PIL.Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    grey = PIL.Image.fromarray(np.full((8, 8), 30000, np.uint16))
    turned = make_image(8, 16)
    turned.getexif()[0x0112] = 6
    for image, shape in ((clear, (8, 8)), (grey, (8, 8)), (turned, (16, 8))):
        sample = read_sample({"image": image, "mask": np.ones(shape, bool)})
        expected = processor.image_processor.load_picture(image)
        np.testing.assert_array_equal(np.asarray(sample["image"]), np.asarray(expected))
    assert read_sample({"image": clear})["image"].getpixel((0, 0)) == (255, 255, 255)
    assert read_sample({"image": grey})["image"].getpixel((0, 0)) == (117, 117, 117)


def test_integers_of_depth_need_their_scale_and_classes_their_names():
    with pytest.raises(ValueError, match="column `depth`: `depth_scale`"):
        read_sample(make_row(), id2label=ID2LABEL)
    with pytest.raises(ValueError, match="column `segmentation`: `id2label`"):
        read_sample(make_row(), depth_scale=0.001)


# ---- sources ----


@pytest.mark.parametrize("kind", ["saved", "splits", "parquet", "imagefolder", "folder", "split folder"])
@pytest.mark.parametrize("streaming", [False, True])
def test_data_sets_of_every_kind_give_the_same_samples(tmp_path, kind, streaming):
    rows = [make_row(seed, 16 + 4 * seed, 24) for seed in range(3)]
    features = Features({"image": Image(), "segmentation": Image(), "depth": Image()})
    if kind in ("saved", "splits", "parquet"):
        data = Dataset.from_list(rows, features=features)
        if kind == "saved":
            data.save_to_disk(tmp_path / "data")
        elif kind == "splits":
            DatasetDict({"train": data, "validation": data.select([0])}).save_to_disk(tmp_path / "data")
        else:
            (tmp_path / "data").mkdir()
            data.to_parquet(tmp_path / "data/train.parquet")
    elif kind == "imagefolder":
        lines = []
        for index, row in enumerate(rows):
            write_row(tmp_path / "data/train", str(index), row)
            names = {f"{column}_file_name": f"{column}/{index}.png" for column in row}
            lines.append(json.dumps({"file_name": names.pop("image_file_name"), **names}))
        (tmp_path / "data/train/metadata.jsonl").write_text("\n".join(lines))
        # `image/` beside the maps is a plain folder as well: with the metadata elsewhere it is not.
        (tmp_path / "data/train/image").rename(tmp_path / "data/train/pictures")
        text = (tmp_path / "data/train/metadata.jsonl").read_text().replace("image/", "pictures/")
        (tmp_path / "data/train/metadata.jsonl").write_text(text)
    else:
        for index, row in enumerate(rows):
            write_row(tmp_path / ("data/train" if kind == "split folder" else "data"), str(index), row)
    data = load_samples(str(tmp_path / "data"), "train", streaming)
    source = DenseSource(data, None, ID2LABEL, 0.001)
    samples = list(DenseIterableDataset(source)) if streaming else list(iter_rows(DenseDataset(source)))
    assert len(samples) == 3
    for row, sample in zip(rows, samples, strict=True):
        np.testing.assert_array_equal(np.asarray(sample["image"]), np.asarray(row["image"]))
        np.testing.assert_array_equal(sample["segmentation"], np.asarray(row["segmentation"]))
        np.testing.assert_allclose(sample["depth"], np.asarray(row["depth"]) * 0.001, rtol=1e-6)


def test_files_added_to_a_folder_with_a_card_are_seen(tmp_path):
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: '*.parquet'\n---\n"
    (tmp_path / "README.md").write_text(card)
    features = Features({"image": Image(), "segmentation": Image(), "depth": Image()})
    for index in range(2):
        Dataset.from_list([make_row(index)], features=features).to_parquet(tmp_path / f"{index}.parquet")
        assert len(load_samples(str(tmp_path))) == index + 1


def iter_rows(dataset):
    return (dataset[index] for index in range(len(dataset)))


def test_plain_folder_takes_npy_and_missing_maps(tmp_path):
    write_row(tmp_path, "a", {"image": make_image(16, 16)})
    write_row(tmp_path, "b", {"image": make_image(16, 16, 1)})
    (tmp_path / "depth").mkdir()
    np.save(tmp_path / "depth/b.npy", np.full((16, 16), 1.5, dtype=np.float32))
    first, second = iter_rows(DenseDataset(DenseSource(load_samples(str(tmp_path)))))
    assert "depth" not in first and (second["depth"] == 1.5).all()
    np.save(tmp_path / "depth/c.npy", np.zeros((16, 16)))
    with pytest.raises(ValueError, match="lacks the pictures of \\['c'\\]"):
        load_samples(str(tmp_path))


def test_sources_without_annotations_or_splits_are_named(tmp_path):
    Dataset.from_dict({"image": ["a.png"], "caption": ["a cat"]}).save_to_disk(tmp_path / "captions")
    with pytest.raises(ValueError, match="nothing to learn from"):
        load_samples(str(tmp_path / "captions"))
    DatasetDict({"test": Dataset.from_list([make_row()])}).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match="`split` must be one of \\['test'\\]"):
        load_samples(str(tmp_path / "splits"))
    (tmp_path / "labels.json").write_text('["wall"]')
    with pytest.raises(ValueError, match="labels.json"):
        load_id2label(tmp_path / "labels.json")


def test_corrupt_pictures_are_named_skipped_and_counted(tmp_path, caplog):
    for index in range(10):
        write_row(tmp_path, str(index), {"image": make_image(8, 8, index), "mask": make_image(8, 8).convert("L")})
    whole = (tmp_path / "image/3.png").read_bytes()
    (tmp_path / "image/3.png").write_bytes(whole[: len(whole) // 2])
    data = load_samples(str(tmp_path))
    dataset = DenseDataset(DenseSource(data), max_corrupt_share=0.1)
    samples = list(iter_rows(dataset)) + [dataset[3]]
    assert len(samples) == 11
    np.testing.assert_array_equal(np.asarray(samples[3]["image"]), np.asarray(samples[4]["image"]))
    assert int(dataset.corrupt[0].sum()) == 1

    (tmp_path / "mask/7.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="2 of 10 rows can't be read.*row 3 of source 0, row 7 of source 0"):
        list(iter_rows(dataset))
    with pytest.raises(ValueError, match="`max_corrupt_share` = 0.01"):
        list(DenseIterableDataset(DenseSource(load_samples(str(tmp_path), streaming=True))))


def test_workers_count_corrupt_rows_together(tmp_path):
    for index in range(8):
        write_row(tmp_path, str(index), {"image": make_image(8, 8, index), "mask": make_image(8, 8).convert("L")})
    for index in (1, 6):
        (tmp_path / f"image/{index}.png").write_bytes(b"")
    dataset = DenseDataset(DenseSource(load_samples(str(tmp_path))), max_corrupt_share=0.3)
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=list)
    assert len([sample for batch in loader for sample in batch]) == 8
    assert dataset.corrupt[0].nonzero()[:, 0].tolist() == [1, 6]


# ---- mixing ----


def numbered(count, start):
    """Samples that are known by their colour."""
    return [
        {"image": PIL.Image.new("RGB", (8, 8), (start + index, 0, 0)), "mask": np.eye(8)} for index in range(count)
    ]


def colors(dataset):
    return [sample["image"].getpixel((0, 0))[0] for sample in iter_rows(dataset)]


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3), weights=st.data(), epochs=st.integers(1, 5))
def test_weights_share_out_an_epoch_and_lose_nothing(lengths, weights, epochs):
    weights = weights.draw(st.lists(st.floats(0.2, 5), min_size=len(lengths), max_size=len(lengths)))
    sources = [DenseSource(numbered(n, 50 * k), w) for k, (n, w) in enumerate(zip(lengths, weights, strict=True))]
    dataset = DenseDataset(sources)
    assert len(dataset) == sum(lengths)
    seen = []
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        found = colors(dataset)
        assert found == colors(dataset)
        seen += found
    for number, (length, weight) in enumerate(zip(lengths, weights, strict=True)):
        own = [color for color in seen if color // 50 == number]
        assert abs(len(own) / epochs - weight / sum(weights) * len(dataset)) <= 1
        counts = np.bincount(np.array(own, dtype=int) % 50, minlength=length)
        assert counts.max() - counts.min() <= 1  # none comes twice more than another


def test_stream_is_mixed_by_weights_and_ends_with_its_first_source():
    dataset = DenseIterableDataset([DenseSource(numbered(150, 0), 3.0), DenseSource(numbered(50, 200), 1.0)])
    found = [sample["image"].getpixel((0, 0))[0] for sample in dataset]
    assert found == [sample["image"].getpixel((0, 0))[0] for sample in dataset]
    first, second = ([color for color in found if (color >= 200) == late] for late in (False, True))
    assert first == list(range(len(first))) and second == list(range(200, 200 + len(second)))
    assert len(first) == 150 or len(second) == 50
    assert 0.65 < len(first) / len(found) < 0.85


def test_repeated_stream_goes_round_by_itself():
    sources = [DenseSource(numbered(3, 0), 2.0), DenseSource(numbered(50, 200), 1.0)]
    dataset = DenseIterableDataset(sources, Augmentation(flip_probability=0.5), repeat=True)
    found = [sample["image"].getpixel((0, 0))[0] for sample, _ in zip(dataset, range(60), strict=False)]
    first = [color for color in found if color < 200]
    assert len(first) > 30 and first == [index % 3 for index in range(len(first))]
    assert list(DenseIterableDataset(DenseSource([]), repeat=True)) == []


def test_a_shuffled_stream_has_another_order_each_time():
    rows = Dataset.from_list(
        [{"image": row["image"], "mask": make_image(8, 8).convert("L")} for row in numbered(20, 0)]
    )
    stream = rows.cast_column("image", Image(decode=False)).to_iterable_dataset().shuffle(seed=0, buffer_size=20)
    dataset = DenseIterableDataset(DenseSource(stream), repeat=True)
    found = [sample["image"].getpixel((0, 0))[0] for sample, _ in zip(dataset, range(40), strict=False)]
    assert sorted(found[:20]) == sorted(found[20:]) == list(range(20)) and found[:20] != found[20:]


def test_workers_that_stay_know_the_epoch():
    change = Augmentation(flip_probability=0.5)
    dataset = DenseDataset(DenseSource([coordinates(8, 8) for _ in range(16)]), change)
    dataset.sources[0].columns = ("image", "mask")
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=8, num_workers=1, persistent_workers=True, collate_fn=list
    )
    for epoch in range(3):
        dataset.set_epoch(epoch)
        found = [np.asarray(sample["image"]) for batch in loader for sample in batch]
        expected = [np.asarray(sample["image"]) for sample in iter_rows(dataset)]
        np.testing.assert_array_equal(found, expected)


def test_weights_and_shares_that_cannot_be_used_are_named():
    with pytest.raises(ValueError, match="`weight`"):
        DenseDataset([DenseSource(numbered(2, 0), 1.0), DenseSource(numbered(2, 0))])
    with pytest.raises(ValueError, match="`weight`"):
        DenseDataset([DenseSource(numbered(2, 0), 0.0), DenseSource(numbered(2, 0), 1.0)])
    with pytest.raises(ValueError, match="`sources`"):
        DenseDataset([])
    with pytest.raises(ValueError, match="`max_corrupt_share`"):
        DenseDataset(DenseSource(numbered(2, 0)), max_corrupt_share=2)
    with pytest.raises(IndexError):
        DenseDataset(DenseSource(numbered(2, 0)))[2]


# ---- augmentation ----


def coordinates(height, width, **columns):
    """A picture and maps in which every pixel knows where it was."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([y, x, np.zeros_like(x)], axis=-1).astype(np.uint8)
    return {
        "image": PIL.Image.fromarray(image), "segmentation": y * 256 + x, "depth": (1 + y + x).astype(np.float32),
        "mask": (y + x) % 2 == 0, **columns,
    }  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(4, 40),
    width=st.integers(4, 40),
    crop=st.tuples(st.integers(1, 48), st.integers(1, 48)),
    flip=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 99),
)
def test_crops_and_flips_keep_image_and_maps_together(height, width, crop, flip, seed):
    sample = coordinates(height, width)
    changed = Augmentation(crop_size=crop, flip_probability=flip)(sample, np.random.default_rng(seed))
    image = np.asarray(changed["image"]).astype(int)
    assert image.shape[:2] == (min(crop[0], height), min(crop[1], width))
    np.testing.assert_array_equal(changed["segmentation"], image[..., 0] * 256 + image[..., 1])
    np.testing.assert_array_equal(changed["depth"], 1 + image[..., 0] + image[..., 1])
    np.testing.assert_array_equal(changed["mask"], (image[..., 0] + image[..., 1]) % 2 == 0)
    assert (np.diff(image[0, :, 1]) == (-1 if flip else 1)).all()
    assert sample["segmentation"].shape == (height, width)  # the sample itself stays


def test_a_larger_picture_is_a_nearer_one():
    sample = coordinates(20, 30)
    changed = Augmentation(scale=(2.0, 2.0))(sample, np.random.default_rng(0))
    assert changed["image"].size == (60, 40) and changed["segmentation"].shape == (40, 60)
    np.testing.assert_array_equal(changed["segmentation"][::2, ::2], sample["segmentation"])
    np.testing.assert_allclose(changed["depth"][::2, ::2], sample["depth"] / 2)


@pytest.mark.parametrize(
    ("columns", "flips", "crops"),
    [
        ({"expression": "the LEFT chair"}, False, False),
        ({"expression": "the rightmost one"}, False, False),
        ({"expression": "the bright chair"}, True, False),  # "right" is a part of "bright" only
        ({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}, False, False),
        ({}, True, True),
    ],
)
def test_text_forbids_what_would_make_it_wrong(columns, flips, crops):
    change = Augmentation(flip_probability=1.0, crop_size=(8, 8), color_jitter=0.2)
    changed = change(coordinates(16, 16, **columns), np.random.default_rng(0))
    assert (changed["segmentation"][0, 0] > changed["segmentation"][0, 1]) == flips
    assert (changed["segmentation"].shape == (8, 8)) == crops


def test_colours_that_are_spoken_of_stay():
    change = Augmentation(color_jitter=0.5)
    chat = [{"role": "user", "content": "What color is the chair?"}, {"role": "assistant", "content": "white"}]
    for columns, stays in (
        ({"expression": "the white chair"}, True), ({"messages": chat}, True), ({"expression": "the chair"}, False),
        ({"messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "two"}]}, False),
        ({"expression": "the covered table"}, False),  # "red" is a part of "covered" only
    ):  # fmt: skip
        sample = {**coordinates(16, 16), "image": make_image(16, 16), **columns}
        same = (np.asarray(change(sample, np.random.default_rng(0))["image"]) == np.asarray(sample["image"])).all()
        assert same == stays, columns


def test_expressions_are_drawn_with_their_masks():
    instances = np.zeros((24, 32), np.uint8)
    instances[:, 8:16], instances[4:, 20:] = 3, 7
    row = make_row(instances=PIL.Image.fromarray(instances), expressions=["the cup", "the dog"],
                   expression_instances=[7, 3])  # fmt: skip
    known = {"expression": "the bowl", "mask": instances == 3}
    for augmentation in (Augmentation(), None):  # without one too: in evaluation
        drawn = list(iter_rows(DenseDataset(DenseSource([row] * 12, None, ID2LABEL, 0.001), augmentation)))
        assert {own["expression"] for own in drawn} == {"the cup", "the dog"}
        for own in drawn:
            assert (own["mask"] == (instances == {"the cup": 7, "the dog": 3}[own["expression"]])).all()
            assert "instances" not in own
        one = DenseDataset(DenseSource([row | known], None, ID2LABEL, 0.001), augmentation)[0]
        assert (one["expression"] == "the bowl") == (augmentation is None)
    for change, words in (
        ({"expression_instances": [7]}, "a number for each"), ({"expression_instances": [7, 4]}, "lacks"),
        ({"instances": None}, "no `instances`"), ({"expressions": ["the cup", " "]}, "list of texts"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            read_sample({**row, **change}, id2label=ID2LABEL, depth_scale=0.001)


def test_sizes_are_known_without_decoding(tmp_path):
    rows = [make_row(k, height=16 + 8 * k, focal_length=50.0 + k) for k in range(3)]
    write_row(tmp_path / "train", "0", {"image": rows[0]["image"], "depth": rows[0]["depth"]})
    sources = [
        DenseSource(rows, id2label=ID2LABEL, depth_scale=0.001),
        DenseSource(rows, id2label=ID2LABEL, columns=("image", "segmentation", "focal_length")),
        DenseSource(load_samples(str(tmp_path)), depth_scale=0.001),
    ]
    content = (tmp_path / "train/image/0.png").read_bytes()
    (tmp_path / "train/image/0.png").write_bytes(content[: len(content) // 2])  # decoding would fail
    lengths = DenseDataset(sources).estimated_lengths([100.0, 100.0, 100.0])
    resized = [(16 + 8 * k) * 32 * (100 / (50 + k)) ** 2 for k in range(3)]
    assert lengths == pytest.approx([*resized, *resized, 16 * 32])

    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    rows = [make_row(k, height=64, width=96, messages=said if k == 3 else None) for k in range(6)]
    weighted = [DenseSource(rows, weight, ID2LABEL, 0.001) for weight in (1.0, 3.0)]
    data = DenseDataset(weighted, Augmentation(scale=(0.5, 2.0), color_jitter=0.5))  # colours don't change sizes
    data.set_epoch(2)
    sizes = [sample["image"].width * sample["image"].height for sample in iter_rows(data)]
    np.testing.assert_allclose(data.estimated_lengths([None, None]), sizes, rtol=0.05)
    for wrong in (0, "50", float("nan")):  # reading the row will name it
        assert DenseDataset(DenseSource([make_row(focal_length=wrong)])).estimated_lengths([100.0]) == [24 * 32]


def test_colors_change_and_maps_do_not():
    sample = {**coordinates(16, 16), "image": make_image(16, 16)}
    changed = Augmentation(color_jitter=0.5)(sample, np.random.default_rng(0))
    assert (np.asarray(changed["image"]) != np.asarray(sample["image"])).any()
    np.testing.assert_array_equal(changed["segmentation"], sample["segmentation"])


def test_camera_effects_change_the_image_and_nothing_else():
    ramp = np.linspace(30, 220, 64)[None, :, None] + np.zeros((48, 1, 3))
    image = PIL.Image.fromarray(ramp.astype(np.uint8))
    sample = {**coordinates(48, 64), "image": image}
    change = Augmentation(camera_effects=1.0)
    changed = [change(sample, np.random.default_rng(seed)) for seed in range(12)]
    for own in changed:
        assert own["image"].size == image.size and own["image"].mode == "RGB"
        np.testing.assert_array_equal(own["segmentation"], sample["segmentation"])
    assert len({own["image"].tobytes() for own in changed}) > 8
    assert changed[3]["image"].tobytes() == change(sample, np.random.default_rng(3))["image"].tobytes()
    weak = [Augmentation(camera_effects=0.05)(sample, np.random.default_rng(seed))["image"] for seed in range(12)]
    shift = [np.abs(np.asarray(own, float) - np.asarray(image, float)).mean() for own in weak]
    assert np.median(shift) < 5


def test_camera_effects_keep_hues_that_are_spoken_of():
    image = PIL.Image.new("RGB", (32, 32), (190, 60, 60))
    for expression, stays in (("the red chair", True), ("the chair", False)):
        sample = {**coordinates(32, 32), "image": image, "expression": expression}
        greys, hues = 0, []
        for seed in range(60):
            changed = Augmentation(camera_effects=1.0)(sample, np.random.default_rng(seed))["image"]
            red, green, blue = np.asarray(changed, float).mean(axis=(0, 1))
            greys += max(red, green, blue) - min(red, green, blue) < 1
            hues.append(green - blue)
        assert (greys == 0 and np.abs(hues).max() < 4) == stays, expression


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"scale": (0, 1)}, "scale"),
        ({"scale": (2, 1)}, "scale"),
        ({"crop_size": (0, 4)}, "crop_size"),
        ({"flip_probability": 1.5}, "flip_probability"),
        ({"color_jitter": -1}, "color_jitter"),
        ({"camera_effects": 1.5}, "camera_effects"),
    ],
)
def test_augmentations_that_cannot_be_used_are_named(kwargs, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        Augmentation(**kwargs)


# ---- batches ----


def answers(processor, batch, row):
    """The learned texts of a row, in one string."""
    return processor.tokenizer.decode(batch["labels"][row][batch["labels"][row] != -100])


def test_every_answer_of_a_chat_is_learned(processor):
    messages = [
        {"role": "user", "content": "what?"},
        {"role": "assistant", "content": "a cat"},
        {"role": "user", "content": [{"type": "text", "text": "where?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "on the table"}]},
    ]
    batch = DenseCollator(processor)([{"image": make_image(16, 16), "messages": messages}])
    assert answers(processor, batch, 0) == "a cat<|end_of_text|>on the table<|end_of_text|>"
    # The picture stands in the first question, and the whole reads as the template writes it.
    messages[0]["content"] = [{"type": "image"}, {"type": "text", "text": "what?"}]
    text = processor.apply_chat_template(messages)
    expected = processor(images=[make_image(16, 16)], text=[text])["input_ids"][0]
    written = processor.tokenizer.decode(batch["input_ids"][0])
    assert written == processor.tokenizer.decode(expected).removesuffix("\n")


def test_expression_learns_its_box_and_the_mask_in_the_crop(processor):
    mask = np.zeros((32, 40), dtype=bool)
    mask[8:24, 10:30] = True
    mask[8:12, 10:14] = False
    sample = {"image": make_image(32, 40), "mask": mask, "expression": "the red ball", "depth": np.full((32, 40), 2.0)}
    batch = DenseCollator(processor)([sample])
    assert answers(processor, batch, 0) == "<box><x_10><y_8><x_30><y_24></box><|end_of_text|>"
    assert answers(processor, batch, 1) == ""
    assert len(batch["image_grid_thw"]) == 2
    # The whole picture learns depth; the crop learns foreground and background.
    background, foreground = processor.foreground_token_ids
    tokens = int(batch["image_grid_thw"][0].prod()) // 4
    whole, crop = batch["dense_targets"][:tokens], batch["dense_targets"][tokens:]
    assert not torch.isin(whole, torch.tensor([background, foreground])).any()
    assert (whole[:, 0] == processor.depth_token_ids[4]).all()
    assert (crop == foreground).any() and (crop == background).any()


def test_expression_stands_before_the_picture_in_one_pass():
    processor = make_processor(referring_prompt="find {text}")
    mask = np.zeros((32, 40), bool)
    mask[8:24, 8:32] = True
    messages = [{"role": "user", "content": "how many?"}, {"role": "assistant", "content": "one"}]
    sample = {"image": make_image(32, 40), "mask": mask, "expression": "the red ball", "depth": np.full((32, 40), 2.0)}
    for extra in ({}, {"messages": messages}):
        batch = DenseCollator(processor)([sample | extra])
        assert len(batch["image_grid_thw"]) == 1
        ids = batch["input_ids"][0].tolist()
        before = processor.tokenizer.decode(ids[: ids.index(processor.image_token_id)])
        after = processor.tokenizer.decode(ids[len(ids) - ids[::-1].index(processor.image_token_id) :])
        assert before.endswith("find the red ball<|vision_start|>") and "find" not in after
        assert ("how many?" in after) == bool(extra)
        background, foreground = processor.foreground_token_ids
        targets = batch["dense_targets"].unflatten(0, (4, 5))
        assert (targets == foreground).any(-1)[1:3, 1:4].all()
        assert not (targets == background).any(-1)[1:3, 1:4].any() and (targets == background).any(-1)[0].all()
        depth = processor.depth_token_ids[int(processor.depth_to_bins(np.array(2.0))) - 1]
        assert (targets == depth).any(-1).all()


def test_a_source_can_leave_columns_out(processor):
    rows = [make_row(mask=np.ones((24, 32), np.uint8), expression="the cat", depth=np.ones((24, 32), np.float32))]
    kept = DenseDataset(DenseSource(rows, columns=["image", "depth"]))[0]
    assert kept["depth"].shape == (24, 32) and "mask" not in kept and "expression" not in kept
    for columns in (["depth"], ["image", "deep"]):
        with pytest.raises(ValueError, match="`columns`"):
            DenseSource(rows, columns=columns)


def test_box_that_the_vocabulary_cannot_write_is_not_asked_for():
    processor = make_processor()
    processor.image_processor.max_num_patches = 4096
    mask = np.zeros((160, 160), dtype=bool)
    mask[100:150, 100:150] = True  # coordinates end at 63
    batch = DenseCollator(processor)([{"image": make_image(160, 160), "mask": mask, "expression": "the ball"}])
    assert (batch["labels"] == -100).all() and len(batch["image_grid_thw"]) == 2


def test_mask_alone_is_the_foreground_of_the_picture(processor):
    batch = DenseCollator(processor)([{"image": make_image(16, 16), "mask": np.ones((16, 16))}])
    assert (batch["dense_targets"][:, 0] == processor.foreground_token_ids[1]).all()


def test_focal_length_scales_the_picture_as_in_prediction(processor, monkeypatch):
    depth = np.full((16, 24), 10.0, dtype=np.float32)
    collator = DenseCollator(processor, depth_range="road")
    sample = {"image": make_image(16, 24), "focal_length": 50.0}
    assert collator([{**sample, "mask": depth > 0}])["image_grid_thw"].tolist() == [[1, 8, 12]]
    batch = collator([{**sample, "depth": depth}])
    assert batch["image_grid_thw"].tolist() == [[1, 8, 12]]  # twice the size, at the range's 100 pixels
    expected = processor.depth_to_bins(np.array([10.0]), "road")[0]
    assert (batch["dense_targets"][:, 0] == processor.depth_token_ids[expected - 1]).all()
    monkeypatch.setattr(processor.image_processor, "scale", 0.5)  # on top: the model sees it at 50 pixels
    batch = collator([{**sample, "depth": depth}])
    assert batch["image_grid_thw"].tolist() == [[1, 4, 6]]
    expected = processor.depth_to_bins(np.array([10.0]), "road", focal_length=50.0)[0]
    assert (batch["dense_targets"][:, 0] == processor.depth_token_ids[expected - 1]).all()


def test_sources_bring_names_and_ranges_of_their_own(processor):
    sources = [
        DenseSource([make_row(0)], None, ID2LABEL, 0.001, "room"),
        DenseSource([make_row(1)], None, {0: "sky", 1: "tree", 2: "cat"}, 0.01, "road"),
    ]
    batch = DenseCollator(processor)(list(iter_rows(DenseDataset(sources))))
    assert "<ref>wall</ref>" in answers(processor, batch, 0)
    assert "<ref>sky</ref>" in answers(processor, batch, 1)
