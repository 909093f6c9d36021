"""The pipelines: each in the form that its users expect, and with what `predict_dense` gives."""

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoModelForDepthEstimation, AutoModelForSemanticSegmentation, pipeline

from densemllm import DenseMLLMForConditionalGeneration
from tiny import ID2LABEL, make_image, make_model, make_processor


IMAGES = [make_image(30, 50), make_image(24, 16, 1), make_image(40, 40, 2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    processor = make_processor(referring_prompt="find {text}")
    make_model(processor, id2label=ID2LABEL).save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return DenseMLLMForConditionalGeneration.from_pretrained(folder).eval()


def many(images):
    yield from images


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("form", [list, many])
def test_dense_prediction(folder, model, batch_size, form):
    pipe = pipeline("dense-prediction", model=str(folder), trust_remote_code=True, batch_size=batch_size)
    results = list(pipe(form(IMAGES), task=("segmentation", "depth"), labels=["wall", "floor"]))
    assert len(results) == len(IMAGES)
    for image, result in zip(IMAGES, results, strict=True):
        expected = model.predict_dense(image, task=("segmentation", "depth"), labels=["wall", "floor"])
        assert torch.equal(result["segmentation"], expected.segmentation)
        torch.testing.assert_close(result["predicted_depth"], expected.predicted_depth)
        assert [row["label"] for row in result["segments_info"]] == [row["label"] for row in expected.segments_info]
        assert result["depth"].size == image.size and "mask" not in result


def test_dense_prediction_of_one_image_and_of_dicts(folder, model, tmp_path):
    IMAGES[0].save(tmp_path / "image.png")
    pipe = pipeline("dense-prediction", model=str(folder), trust_remote_code=True)
    one = pipe(str(tmp_path / "image.png"), task="depth", depth_range="road", return_logits=True)
    expected = model.predict_dense(IMAGES[0], task="depth", depth_range="road", return_logits=True)
    torch.testing.assert_close(one["predicted_depth"], expected.predicted_depth)
    torch.testing.assert_close(one["logits"], expected.logits)
    inputs = [{"image": image, "text": text} for image, text in zip(IMAGES, ("a cat", "the chair", "it"), strict=True)]
    for result, row in zip(pipe(inputs, task="referring", batch_size=2), inputs, strict=True):
        mask = model.predict_dense(row["image"], task="referring", text=row["text"]).mask
        assert torch.equal(result["mask"], mask) and result["mask"].dtype == torch.bool
    with pytest.raises(TypeError, match="'labls'"):
        pipe(IMAGES[0], labls=["wall"])
    with pytest.raises(ValueError, match="`image`"):
        pipe({"picture": IMAGES[0]})
    with pytest.raises(ValueError, match="`task`"):
        pipe(IMAGES[0], task="deep")


def test_a_loaded_model_is_a_pipeline(model):
    result = model.as_pipeline()(IMAGES[0], task="depth")
    torch.testing.assert_close(result["predicted_depth"], model.predict_dense(IMAGES[0], task="depth").predicted_depth)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("form", [list, many])
def test_depth_estimation(folder, model, batch_size, form):
    pipe = pipeline("depth-estimation", model=str(folder), batch_size=batch_size)
    results = list(pipe(form(IMAGES)))
    for image, result in zip(IMAGES, results, strict=True):
        expected = model.predict_dense(image, task="depth").predicted_depth
        torch.testing.assert_close(result["predicted_depth"], expected)
        assert isinstance(result["depth"], PIL.Image.Image) and result["depth"].size == image.size
    assert isinstance(pipe(IMAGES[0]), dict)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("form", [list, many])
def test_image_segmentation(folder, model, batch_size, form):
    pipe = pipeline("image-segmentation", model=str(folder), batch_size=batch_size)
    results = list(pipe(form(IMAGES)))
    for image, result in zip(IMAGES, results, strict=True):
        expected = model.predict_dense(image, task="segmentation", labels=ID2LABEL).segmentation
        found = np.full(expected.shape, -1)
        for row in result:
            assert set(row) == {"score", "label", "mask"} and row["mask"].mode == "L"
            key = next(key for key, name in ID2LABEL.items() if name == row["label"])
            found[np.asarray(row["mask"]) == 255] = key
        assert np.array_equal(found, expected.numpy())


def test_names_need_not_be_numbered_without_gaps(folder, tmp_path):
    processor = make_processor()
    names = {2: "wall", 5: "floor"}
    make_model(processor, id2label=names).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    labels = {row["label"] for row in pipeline("image-segmentation", model=str(tmp_path))(IMAGES[0])}
    assert labels and labels <= set(names.values())


def test_models_of_the_pipelines_have_the_checkpoints_weights(folder, model):
    for auto in (AutoModelForDepthEstimation, AutoModelForSemanticSegmentation):
        own, info = auto.from_pretrained(folder, output_loading_info=True)
        assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        for (name, weight), (_, expected) in zip(own.state_dict().items(), model.state_dict().items(), strict=True):
            assert torch.equal(weight, expected), name


@pytest.mark.parametrize("batch_size", [1, 2])
def test_image_text_to_text(folder, batch_size):
    pipe = pipeline("image-text-to-text", model=str(folder), batch_size=batch_size)
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "what?"}]}]
        for image in IMAGES
    ]
    options = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}
    together = pipe(text=chats, **options)
    alone = [pipe(text=chat, **options) for chat in chats]
    assert [own[0]["generated_text"] for own in together] == [own[0]["generated_text"] for own in alone]
