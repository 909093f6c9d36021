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
"""Images and maps of samples: formats of files, EXIF orientations, units of depth, masks."""

import io
import sys

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import scipy.io
import tifffile
from datasets import Dataset, Features, Image

from densemllm.evaluation.metrics import ReferringMetrics
from densemllm.evaluation.predict import evaluate_dense, predict_batch
from densemllm.formats.folders import load_samples
from densemllm.training.arguments import DenseTrainingArguments
from densemllm.training.collator import DenseCollator
from densemllm.training.datasets import DenseDataset, DenseSource
from densemllm.training.maps import CorruptFileError
from densemllm.training.samples import read_sample
from densemllm.training.trainer import DenseTrainer
from tiny import ID2LABEL, make_image, make_model, make_processor


@pytest.fixture(scope="module")
def processor():
    return make_processor()


# ---- formats ----


def write_depth(path, values):
    """A file of a depth map, by its suffix; `name` is that of the array in a file of several."""
    if path.name == "several.npz":
        np.savez(path, depth=values, confidence=np.ones_like(values))
    elif path.suffix == ".npz":
        np.savez_compressed(path, values)
    elif path.suffix == ".mat":
        scipy.io.savemat(path, {"depths": values.astype(np.promote_types(values.dtype, np.float32))})
    elif path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".pfm":
        PIL.Image.fromarray(values.astype(np.float32)).save(path)
    else:
        tifffile.imwrite(path, values)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", ["a.npy", "a.npz", "several.npz", "a.mat", "a.tif", "a.pfm"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_depth_is_read_from_every_format_that_libraries_read(tmp_path, name, dtype, in_memory):
    values = np.random.default_rng(0).uniform(0.5, 8, (6, 5)).astype(dtype)
    path = tmp_path / name
    write_depth(path, values)
    value = {"bytes": path.read_bytes(), "path": None} if in_memory else str(path)
    sample = read_sample({"image": make_image(6, 5), "depth": value})
    assert sample["depth"].dtype == np.float32
    np.testing.assert_array_equal(sample["depth"], values.astype(np.float32))


def test_integers_of_every_format_are_read(tmp_path):
    values = np.random.default_rng(0).integers(0, 3, (6, 5))
    np.savez(tmp_path / "a.npz", values)
    scipy.io.savemat(tmp_path / "a.mat", {"labels": values})
    tifffile.imwrite(tmp_path / "a.tif", values.astype(np.int64))
    for name in ("a.npz", "a.mat", "a.tif"):
        sample = read_sample({"image": make_image(6, 5), "segmentation": str(tmp_path / name)}, id2label=ID2LABEL)
        np.testing.assert_array_equal(sample["segmentation"], values)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.exr", b"\x76\x2f\x31\x01" + bytes(60), "OpenEXR"),
        ("a.exr", b"", r"\.exr"),
        ("a.hdr", b"#?RADIANCE\n" + bytes(60), "Radiance HDR"),
        ("a.mat", b"\x89HDF\r\n\x1a\n" + bytes(60), "HDF5"),
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(60), "HDF5"),
        ("a.dpt", b"PIEH" + bytes(60), r"\.dpt"),
        ("a.bin", bytes(60), r"\.bin"),
    ],
)
@pytest.mark.parametrize("column", ["depth", "mask", "image"])
def test_formats_that_are_not_read_are_named_and_not_called_corrupt(tmp_path, name, content, words, column):
    (tmp_path / name).write_bytes(content)
    row = {"image": make_image(6, 5), column: str(tmp_path / name)}
    with pytest.raises(ValueError, match=f"row 3, column `{column}`.*{words}.*accepted are") as error:
        read_sample(row, "row 3")
    assert not isinstance(error.value, CorruptFileError)


def test_a_file_of_several_arrays_or_of_objects_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", near=np.ones((6, 5)), far=np.ones((6, 5)))
    np.save(tmp_path / "b.npy", np.array([[None] * 5] * 6), allow_pickle=True)
    for name, words in (("a.npz", "named 'depth'.*'far', 'near'"), ("b.npy", "Python objects")):
        with pytest.raises(ValueError, match=words) as error:
            read_sample({"image": make_image(6, 5), "depth": str(tmp_path / name)})
        assert not isinstance(error.value, CorruptFileError)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.mat", "a.tif", "a.png"])
@pytest.mark.parametrize("size", [0, 20, 150])
def test_cut_files_are_corrupt_whatever_their_format(tmp_path, name, size):
    path, values = tmp_path / name, np.random.default_rng(0).uniform(0, 9, (20, 30))
    if name == "a.png":
        PIL.Image.fromarray(values.astype(np.uint16)).save(path)
    else:
        write_depth(path, values)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorruptFileError, match="column `depth`.*can't be read"):
        read_sample({"image": make_image(20, 30), "depth": str(path)})


def test_large_images_are_refused_before_they_are_decoded(processor, monkeypatch):
    value = encoded(make_image(20, 30))
    value["bytes"] = value["bytes"][:60]  # decoding would fail
    monkeypatch.setattr(processor.image_processor, "max_image_pixels", 599)
    for image in (value, PIL.Image.open(io.BytesIO(value["bytes"]))):
        with pytest.raises(ValueError, match="30 x 20 pixels.*`max_image_pixels` = 599") as error:
            DenseCollator(processor)([{"image": image}])
        assert not isinstance(error.value, CorruptFileError)


def test_a_tiff_that_needs_another_library_says_so(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((6, 5)))
    (tmp_path / "b.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:20])
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ValueError, match="pip install tifffile") as error:
        read_sample({"image": make_image(6, 5), "depth": str(tmp_path / "a.tif")})
    assert not isinstance(error.value, CorruptFileError)
    with pytest.raises(CorruptFileError):
        read_sample({"image": make_image(6, 5), "depth": str(tmp_path / "b.tif")})


# ---- EXIF ----


def tagged(picture, orientation):
    """The picture as a camera that was held otherwise stores it: upright with its tag applied."""
    inverse = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    turned = picture.copy()
    turned.getexif()[0x0112] = inverse
    turned = PIL.ImageOps.exif_transpose(turned)
    turned.getexif()[0x0112] = orientation
    return turned


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, exif=picture.getexif(), **options)
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(6, 10), (8, 8)])
def test_image_and_maps_are_upright_together(processor, orientation, size):
    image, classes = make_image(*size), np.random.default_rng(0).integers(0, 3, size).astype(np.uint8)
    stored, classes = tagged(image, orientation), PIL.Image.fromarray(classes)
    tagged_map, untagged = tagged(classes, orientation), tagged(classes, orientation)
    del untagged.getexif()[0x0112]
    ambiguous = orientation in (2, 3, 4) or (size[0] == size[1] and orientation != 1)
    for place, value in enumerate(
        (tagged_map, encoded(tagged_map), untagged, encoded(untagged), np.asarray(untagged), classes)
    ):
        row = {"image": encoded(stored), "segmentation": value}
        if ambiguous and place > 1:
            with pytest.raises(ValueError, match=f"column `segmentation`.*EXIF orientation {orientation}"):
                read_sample(row, id2label=ID2LABEL)
            with pytest.raises(ValueError, match=f"column `segmentation`.*EXIF orientation {orientation}"):
                DenseCollator(processor, ID2LABEL)([{"image": stored, "segmentation": value}])
            continue
        sample = read_sample(row, id2label=ID2LABEL)
        np.testing.assert_array_equal(np.asarray(sample["image"]), np.asarray(image))
        np.testing.assert_array_equal(sample["segmentation"], np.asarray(classes))
        # The same of samples that nothing has read before: a plain data set's.
        (_, annotation, _), *_ = DenseCollator(processor, ID2LABEL).entries({"image": stored, "segmentation": value})
        np.testing.assert_array_equal(annotation["segmentation"], np.asarray(classes))


def test_maps_that_look_the_same_either_way_are_taken():
    row = {"image": encoded(tagged(make_image(8, 8), 3)), "mask": np.ones((8, 8), np.uint8), "depth": np.ones((8, 8))}
    assert read_sample(row)["mask"].all()


def test_a_map_of_another_size_names_the_tag():
    row = {"image": encoded(tagged(make_image(6, 10), 6)), "mask": np.ones((6, 9), np.uint8)}
    with pytest.raises(ValueError, match="EXIF orientation 6.*got \\(6, 9\\)"):
        read_sample(row)


# ---- depth ----


def test_scale_of_depth_is_that_of_floats_too(processor):
    image = make_image(16, 16)
    for values in (np.full((16, 16), 2500.0), np.full((16, 16), 2500), np.full((16, 16), 2500, np.float16)):
        sample = read_sample({"image": image, "depth": values}, depth_scale=0.001)
        np.testing.assert_allclose(sample["depth"], 2.5, rtol=1e-6)
    assert (read_sample({"image": image, "depth": np.full((16, 16), 2.5)})["depth"] == 2.5).all()
    source = DenseSource([{"image": image, "depth": np.full((16, 16), 2500.0)}], depth_scale=0.001)
    # The sample's depth is in metres now: the collator scales it no more.
    batch = DenseCollator(processor, depth_scale=0.001)([DenseDataset(source)[0]])
    expected = processor.depth_token_ids[int(processor.depth_to_bins(np.array(2.5))) - 1]
    assert (batch["dense_targets"][:, 0] == expected).all()


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf")])
def test_scales_that_cannot_be_used_are_named(scale):
    with pytest.raises(ValueError, match="`depth_scale`"):
        DenseSource([], depth_scale=scale)


def test_a_plain_data_set_has_the_same_units(processor, tmp_path):
    depth = PIL.Image.fromarray(np.full((16, 16), 2500, np.uint16))
    data = Dataset.from_list(
        [{"image": make_image(16, 16), "depth": depth}] * 2, features=Features({"image": Image(), "depth": Image()})
    )
    with pytest.raises(ValueError, match="`depth_scale`"):
        DenseCollator(processor)([data[0]])
    batch = DenseCollator(processor, depth_scale=0.001)([data[0]])
    expected = processor.depth_token_ids[int(processor.depth_to_bins(np.array(2.5))) - 1]
    assert (batch["dense_targets"][:, 0] == expected).all()
    model, collator = make_model(processor), DenseCollator(processor, depth_scale=0.001)
    options = {"report_to": "none", "use_cpu": True, "save_strategy": "no", "max_steps": 1, "disable_tqdm": True}
    args = DenseTrainingArguments(output_dir=str(tmp_path), **options)
    trainer = DenseTrainer(model, args, train_dataset=data, eval_dataset=data, data_collator=collator)
    trainer.train()
    metrics = trainer.evaluate()
    metres = [{"image": row["image"], "depth": np.full((16, 16), 2.5)} for row in data]
    expected = evaluate_dense(model, processor, metres)
    assert metrics["eval_rmse"] == pytest.approx(expected["rmse"], rel=1e-5)
    with pytest.raises(ValueError, match="`depth_scale`"):
        evaluate_dense(model, processor, [data[0]])


# ---- masks ----


def disc(size=64):
    y, x = np.mgrid[:size, :size]
    return (y - size / 2) ** 2 + (x - size / 2) ** 2 < (size / 3) ** 2


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_a_jpeg_mask_has_the_pixels_that_it_was_made_of(processor, quality):
    mask, image = disc(), make_image(64, 64)
    value = encoded(PIL.Image.fromarray(mask.astype(np.uint8) * 255), "JPEG", quality=quality)
    found = read_sample({"image": image, "mask": value})["mask"]
    assert found.dtype == np.bool_ and (found != mask).mean() < 0.005
    decoded = PIL.Image.open(io.BytesIO(value["bytes"]))  # as a plain data set gives it
    (_, annotation, _), *_ = DenseCollator(processor).entries({"image": image, "mask": decoded})
    np.testing.assert_array_equal(annotation["mask"], found)
    empty = encoded(PIL.Image.new("L", (64, 64)), "JPEG")
    assert not read_sample({"image": image, "mask": empty})["mask"].any()


def test_soft_edges_are_half_in_and_half_out():
    large = PIL.Image.fromarray(disc(512).astype(np.uint8) * 255)
    soft = np.asarray(large.resize((64, 64), PIL.Image.Resampling.BICUBIC))
    assert ((soft > 0) & (soft < 128)).any()
    for value in (soft, encoded(PIL.Image.fromarray(soft))):
        found = read_sample({"image": make_image(64, 64), "mask": value})["mask"]
        np.testing.assert_array_equal(found, soft > 127)


@pytest.mark.parametrize("column", ["segmentation", "instances"])
def test_numbers_in_a_jpeg_are_refused(column):
    row = {"image": make_image(64, 64), column: encoded(PIL.Image.fromarray(disc().astype(np.uint8)), "JPEG")}
    with pytest.raises(ValueError, match=f"column `{column}`.*JPEG"):
        read_sample(row, id2label=ID2LABEL)


@pytest.mark.parametrize(
    ("values", "ignore_index", "expected"),
    [
        ([0, 1, 255], 255, [0, 1, -1]),
        ([0, 255, 255], 255, [False, True, True]),  # 255 is the object
        ([0, 1, 255], -1, [False, True, True]),
        ([0, 1, -1], -1, [0, 1, -1]),
        ([0, -1, -1], -1, [0, -1, -1]),
        ([0, 3, 255], 255, [False, True, True]),  # numbers of objects
        ([0, 1, 2], 255, [False, True, True]),
        ([0, 1, 65535], 65535, [0, 1, -1]),
    ],
)
def test_the_border_of_a_mask_is_not_its_object(processor, values, ignore_index, expected):
    mask = np.repeat(np.array(values).reshape(1, 3), 8, axis=1).repeat(8, axis=0)  # [8, 24]: three tokens
    found = read_sample({"image": make_image(8, 24), "mask": mask}, ignore_index=ignore_index)["mask"]
    assert found[0, ::8].tolist() == expected
    batch = DenseCollator(processor, ignore_index=ignore_index)([{"image": make_image(8, 24), "mask": mask}])
    background, foreground = processor.foreground_token_ids
    ids = {0: background, 1: foreground, -1: -100}
    assert batch["dense_targets"][:, 0].tolist() == [ids[int(value)] for value in expected]


def test_the_border_of_instances_is_no_part_of_a_mask():
    instances = np.zeros((24, 32), np.uint8)
    instances[:, 8:16], instances[:, 16:18], instances[4:, 20:] = 3, 255, 7
    row = {
        "image": make_image(24, 32),
        "instances": instances,
        "expressions": ["the cup"],
        "expression_instances": [3],
    }
    mask = DenseDataset(DenseSource([row]))[0]["mask"]
    assert (mask[:, 16:18] == -1).all() and (mask[:, 8:16] == 1).all() and (mask == 0).sum() == 24 * 32 - 24 * 10
    assert not (DenseDataset(DenseSource([row | {"expression_instances": [255]}]))[0]["mask"] < 0).any()


def test_the_border_of_a_mask_is_not_scored(processor):
    reference = np.zeros((20, 20), np.int8)
    reference[4:12, 4:12], reference[12:14, 4:12] = 1, -1
    metrics = ReferringMetrics()
    for border in (True, False):  # whatever is predicted there
        prediction = reference == 1
        prediction[12:14, 4:12] = border
        metrics.add(prediction, reference)
    assert metrics.compute() == {"ciou": 1, "giou": 1, "boundary_iou": 1}
    values = np.where(reference < 0, 255, reference).astype(np.uint8)
    sample = {"image": make_image(20, 20), "mask": values, "expression": "the cat"}
    ((_, task, _, found),) = predict_batch(make_model(processor), processor, [sample], ["referring"])
    assert task == "referring" and (found == reference).all()


# ---- what is all ignored ----


def test_a_map_that_is_all_ignored_teaches_no_answer(processor):
    ignored = np.full((16, 16), 255, np.uint8)
    batch = DenseCollator(processor, ID2LABEL)([{"image": make_image(16, 16), "segmentation": ignored}])
    assert (batch["labels"] == -100).all() and (batch["dense_targets"] == -100).all()
    assert (batch["dense_candidates"] == -1).all()
    assert "Segment" not in processor.tokenizer.decode(batch["input_ids"][0])


def test_classes_of_a_map_that_is_all_ignored_are_not_scored(processor):
    samples = [{"image": make_image(16, 16), "segmentation": np.full((16, 16), value)} for value in (255, 1)]
    model = make_model(processor)
    found = predict_batch(model, processor, samples, ["class_list"], ID2LABEL)
    assert [(position, true) for position, _, _, true in found] == [(1, ["floor"])]


# ---- plain folders ----


def write(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def test_plain_folders_may_have_sub_folders_and_litter(tmp_path):
    mask = PIL.Image.fromarray(np.eye(8, dtype=np.uint8))
    for name in ("one/a.png", "one/b.png", "two/a.png", "c.png"):
        write(tmp_path / "image" / name, make_image(8, 8))
        write(tmp_path / "mask" / name, mask)
    for name in (
        "image/Thumbs.db",
        "mask/one/Thumbs.db",
        "mask/desktop.ini",
        "image/__MACOSX/._a.png",
        "mask/.DS_Store",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"?")
    data = load_samples(str(tmp_path))
    assert len(data) == 4
    for row in data:
        assert row["image"].split("image/")[1] == row["mask"].split("mask/")[1]
    assert len(list(DenseDataset(DenseSource(data)))) == 4
    (tmp_path / "mask/one/d.png").write_bytes(b"?")
    with pytest.raises(ValueError, match="lacks the pictures of \\['one/d'\\]"):
        load_samples(str(tmp_path))
