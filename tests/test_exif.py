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
"""Focal lengths from EXIF data, alone and as `focal_length="exif"`."""

from io import BytesIO

import numpy as np
import PIL.Image
import pytest
from PIL.ExifTags import IFD, Base
from transformers import pipeline

from densemllm.exif_densemllm import exif_focal_length
from tiny import ID2LABEL, make_image, make_model, make_processor


def make_photo(size=(48, 32), orientation=None, **tags):
    """An image file as a camera writes it, in memory."""
    exif = PIL.Image.Exif()
    if orientation is not None:
        exif[Base.Orientation] = orientation
    if tags:
        exif[IFD.Exif] = {Base[name]: value for name, value in tags.items()}
    file = BytesIO()
    make_image(size[1], size[0]).save(file, "JPEG", exif=exif)
    file.seek(0)
    return file


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"FocalLengthIn35mmFilm": 27}, 27 / 36 * 48),
        ({"FocalLengthIn35mmFilm": 27, "orientation": 6}, 27 / 36 * 48),
        ({"FocalLengthIn35mmFilm": 27, "size": (32, 48)}, 27 / 36 * 48),
        ({"FocalLengthIn35mmFilm": 27, "FocalLength": 4.5, "FocalPlaneXResolution": 1000.0}, 27 / 36 * 48),
        # 4.5 mm with 254 pixels an inch, which is 10 a millimetre.
        ({"FocalLength": 4.5, "FocalPlaneXResolution": 254.0, "FocalPlaneResolutionUnit": 2}, 45.0),
        ({"FocalLength": 4.5, "FocalPlaneXResolution": 254.0}, 45.0),
        ({"FocalLength": 4.5, "FocalPlaneXResolution": 100.0, "FocalPlaneResolutionUnit": 3}, 45.0),
        ({"FocalLength": 4.5, "FocalPlaneXResolution": 10.0, "FocalPlaneResolutionUnit": 4}, 45.0),
        ({"FocalLength": 4.5, "FocalPlaneXResolution": 10.0, "FocalPlaneResolutionUnit": 1}, None),
        # The camera took twice the pixels.
        ({"FocalLength": 4.5, "FocalPlaneXResolution": 254.0, "ExifImageWidth": 96, "ExifImageHeight": 64}, 22.5),
        ({"FocalLengthIn35mmFilm": 0, "FocalLength": 4.5}, None),
        ({}, None),
    ],
)
def test_what_cameras_write(tags, expected):
    found = exif_focal_length(make_photo(**tags))
    assert found is None if expected is None else found == pytest.approx(expected)
    if set(tags) == {"FocalLengthIn35mmFilm", "FocalLength"}:
        assert exif_focal_length(make_photo(**tags), sensor_width=6.0) == pytest.approx(36.0)


def test_other_images(tmp_path):
    file = tmp_path / "photo.jpg"
    file.write_bytes(make_photo(FocalLengthIn35mmFilm=36).getvalue())
    for source in (file, str(file), file.read_bytes(), PIL.Image.open(file)):
        assert exif_focal_length(source) == 48
    with PIL.Image.open(file) as image:
        assert exif_focal_length(image) == 48 and image.getpixel((0, 0))  # which stays open
    assert exif_focal_length(make_image(4, 6)) is None
    data = bytearray(make_photo(FocalLengthIn35mmFilm=36).getvalue())
    data[30:60] = bytes(30)
    assert exif_focal_length(bytes(data)) is None
    with pytest.raises(ValueError, match="`sensor_width` must be a finite number of millimetres greater than 0"):
        exif_focal_length(file, sensor_width=0)
    with pytest.raises(ValueError, match="there is no such file"):
        exif_focal_length(tmp_path / "none.jpg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    processor = make_processor()
    make_model(processor, id2label=ID2LABEL).save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    from densemllm import DenseMLLMForConditionalGeneration

    return DenseMLLMForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture
def photo(tmp_path):
    """A photo of 48 pixels with 64 as its focal length; the range "road" has 100."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(make_photo(FocalLengthIn35mmFilm=48).getvalue())
    return path


ROAD = {"task": "depth", "depth_range": "road"}


def test_predictions(model, photo):
    expected = model.predict_dense(photo, focal_length=64.0, **ROAD).predicted_depth
    for image in (photo, str(photo), photo.read_bytes(), BytesIO(photo.read_bytes()), PIL.Image.open(photo)):
        found = model.predict_dense(image, focal_length="exif", **ROAD).predicted_depth
        np.testing.assert_array_equal(found, expected)
    plain = PIL.Image.open(photo).convert("RGB")
    plain.info.clear()
    mixed = model.predict_dense([photo, plain, plain], focal_length=["exif", 64, None], **ROAD)
    np.testing.assert_array_equal(mixed[0].predicted_depth, expected)
    np.testing.assert_array_equal(mixed[1].predicted_depth, expected)
    assert (mixed[2].predicted_depth != expected).any()


def test_what_reads_images_takes_it(model, photo):
    camera = {"depth_range": "road"}
    grids = [model.encode_image(photo, focal_length=length, **camera).grid for length in ("exif", 64.0)]
    assert grids[0] == grids[1] != model.encode_image(photo, **camera).grid
    for ask in (
        lambda **options: model.query(photo, "what?", max_new_tokens=3, **options),
        lambda **options: model.query([photo], "what?", max_new_tokens=3, **options),
        lambda **options: model.predict(photo, "counting", "cats", max_new_tokens=3, **options)["text"],
    ):
        assert ask(focal_length="exif", **camera) == ask(focal_length=64.0, **camera)


def test_an_image_without_it_is_named(model, photo, tmp_path):
    without = tmp_path / "without.jpg"
    make_image(8, 8).save(without)
    accepted = "which has no focal length in EXIF data; it must be given in pixels"
    with pytest.raises(
        ValueError, match=rf"`focal_length` can't be 'exif' for `images\[1\]` \(.*without.jpg\), {accepted}"
    ):
        model.predict_dense([photo, without], focal_length="exif", **ROAD)
    for image in (np.zeros((8, 8, 3), np.uint8), model.encode_image(photo)):
        with pytest.raises(ValueError, match=f"`focal_length` can't be 'exif' for `images`, {accepted}"):
            model.predict_dense(image, focal_length="exif", **ROAD)
    with pytest.raises(TypeError, match="`focal_length` must be"):
        model.predict_dense(photo, focal_length="EXIF data", **ROAD)
    with pytest.raises(ValueError, match="there is no such file"):
        model.predict_dense(tmp_path / "none.jpg", focal_length="exif", **ROAD)
    skipped = model.predict_dense([tmp_path / "none.jpg", photo], focal_length="exif", on_error="skip", **ROAD)
    assert skipped[0] is None and skipped[1] is not None


@pytest.mark.parametrize("task", ["dense-prediction", "depth-estimation"])
def test_pipelines(folder, model, photo, task):
    own = {"task": "depth"} if task == "dense-prediction" else {}
    expected = model.predict_dense(photo, focal_length=64.0, **ROAD).predicted_depth
    pipe = pipeline(task, model=str(folder), trust_remote_code=True, depth_range="road", focal_length="exif")
    inputs = {"image": str(photo), "focal_length": "exif"}
    found = [
        pipe(str(photo), **own), *pipe([str(photo)] * 2, batch_size=2, **own), pipe(inputs, focal_length=None, **own),
        pipe(str(photo), focal_length=64.0, **own),
        *pipe([str(photo)] * 2, focal_length=["exif", 64.0], **own),
    ]  # fmt: skip
    for row in found:
        np.testing.assert_array_equal(row["predicted_depth"], expected)
    with pytest.raises(ValueError, match="`focal_length` can't be 'exif' for `images`"):
        pipe(make_image(8, 8), **own)


def test_a_range_with_a_focal_length_warns_once(model, photo, caplog):
    from densemllm import prediction_densemllm

    prediction_densemllm.logger.warning_once.cache_clear()
    prediction_densemllm.logger.addHandler(caplog.handler)
    try:
        for options in (
            {"focal_length": "exif"},
            {"task": "segmentation", "labels": ["wall"]},
            {"depth_range": "room"},
        ):
            model.predict_dense(photo, **{**ROAD, **options})
        assert not [text for text in caplog.messages if "focal_length" in text]
        for _ in range(2):
            model.predict_dense(photo, **ROAD)
    finally:
        prediction_densemllm.logger.removeHandler(caplog.handler)
    (message,) = {text for text in caplog.messages if "focal_length" in text}
    assert "the depth range 'road' is that of a camera of 100 pixels: depth is 100 / f times the true one" in message
