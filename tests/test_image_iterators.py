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
"""Images that come from an iterator: predictions as they come, loading ahead, and what goes wrong on the way."""

import threading

import pytest
import torch

from tiny import ID2LABEL, make_image, make_model, make_processor


LABELS = list(ID2LABEL.values())


@pytest.fixture(scope="module")
def model():
    processor = make_processor()
    model = make_model(processor)
    model.set_processor(processor)
    return model


def test_an_iterator_gives_what_a_list_gives(model):
    images = [make_image(24 + 8 * number, 40, number) for number in range(5)]
    expected = model.predict_dense(images, ("segmentation", "depth"), LABELS, batch_size=2)
    found = model.predict_dense(iter(images), ("segmentation", "depth"), LABELS, batch_size=2)
    assert iter(found) is found
    found = list(found)
    assert len(found) == 5
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.segmentation, other.segmentation)
        assert torch.equal(one.predicted_depth, other.predicted_depth)
    assert list(model.predict_dense(iter([]), labels=LABELS)) == []


def test_one_batch_is_loaded_ahead_and_no_more(model):
    drawn, main = [], threading.current_thread()

    def images():
        for number in range(20):
            assert threading.current_thread() is not main
            drawn.append(number)
            yield make_image(24, 24, number)

    predictions = model.predict_dense(images(), labels=LABELS, batch_size=3)
    assert drawn == []  # nothing is drawn before the first is asked for
    next(predictions)
    assert 3 <= len(drawn) <= 6
    predictions.close()
    assert len(drawn) == 6


def test_an_image_that_cannot_be_read_is_skipped_or_named(model, tmp_path, caplog):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    images = [make_image(24, 24), str(tmp_path / "broken.jpg"), make_image(32, 24)]
    found = list(model.predict_dense(iter(images), labels=LABELS, on_error="skip", batch_size=2))
    assert found[1] is None and [one.segmentation.shape for one in (found[0], found[2])] == [(24, 24), (32, 24)]
    predictions = model.predict_dense(iter(images), labels=LABELS, batch_size=1)
    assert next(predictions).segmentation.shape == (24, 24)
    with pytest.raises(ValueError, match=r"`images\[1\]`.*broken.jpg"):
        next(predictions)


def test_what_fails_in_the_iterator_itself_is_raised(model):
    def images():
        yield make_image(24, 24)
        raise RuntimeError("the disk is gone")

    predictions = model.predict_dense(images(), labels=LABELS, batch_size=1)
    next(predictions)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(predictions)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task": "colour"}, ValueError, "`task`"),
        ({"labels": LABELS, "batch_size": 0}, ValueError, "`batch_size`"),
        ({"labels": LABELS, "target_sizes": [(8, 8), (8, 8)]}, ValueError, "`target_sizes`"),
        ({"labels": LABELS, "on_error": "ignore"}, ValueError, "`on_error`"),
        ({"labels": LABELS, "colour": 3}, TypeError, "`colour`"),
    ],
)
def test_what_cannot_be_asked_is_said_before_an_image_is_drawn(model, options, error, message):
    drawn = []
    with pytest.raises(error, match=message):
        model.predict_dense((drawn.append(1) for _ in range(3)), **options)
    assert not drawn


def test_encoded_images_and_files_may_come_too(model, tmp_path):
    image = make_image(24, 24)
    image.save(tmp_path / "image.png")
    encoded = model.encode_image(image)
    with open(tmp_path / "image.png", "rb") as file:
        single = model.predict_dense(file, labels=LABELS)  # an open file is an iterator, too, and an image
    for one in model.predict_dense(iter([encoded, str(tmp_path / "image.png"), image]), labels=LABELS):
        assert torch.equal(one.segmentation, single.segmentation)
