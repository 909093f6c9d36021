"""The processor of a model: which one it is, and where it is found."""

import copy
import pickle
import shutil

import pytest
import torch
from transformers import AutoModel

from densemllm import (
    DenseMLLMForConditionalGeneration,
    DenseMLLMForDepthEstimation,
    DenseMLLMForSemanticSegmentation,
    DenseMLLMProcessor,
)
from tiny import ID2LABEL, make_image, make_model, make_processor


IMAGE = make_image(16, 24)
CLASSES = (AutoModel, DenseMLLMForConditionalGeneration, DenseMLLMForDepthEstimation, DenseMLLMForSemanticSegmentation)
each_class = pytest.mark.parametrize("auto", CLASSES, ids=lambda auto: auto.__name__)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint whose processor is known by the size of its crops."""
    folder = tmp_path_factory.mktemp("whole")
    save(folder, crop_size=48)
    return folder


def save(folder, crop_size: int) -> None:
    processor = make_processor(referring_crop_size=crop_size)
    make_model(processor, id2label=ID2LABEL).save_pretrained(folder)
    processor.save_pretrained(folder)


CALLS = {
    "predict_dense": lambda model, own: model.predict_dense(IMAGE, labels=ID2LABEL, processor=own),
    "encode_image": lambda model, own: model.encode_image(IMAGE, processor=own),
    "query": lambda model, own: model.query(IMAGE, "what?", processor=own, max_new_tokens=1),
    "predict": lambda model, own: model.predict(IMAGE, "detection", processor=own, max_new_tokens=1),
    "as_pipeline": lambda model, own: model.as_pipeline(own)(IMAGE, labels=["wall"]),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("loaded", [True, False])
def test_a_processor_given_to_the_first_call_does_not_stay(whole, call, loaded):
    given = make_processor(referring_crop_size=64)
    model = DenseMLLMForConditionalGeneration.from_pretrained(whole) if loaded else make_model(given)
    CALLS[call](model, given)
    if loaded:
        assert model.get_processor().referring_crop_size == 48
    else:
        with pytest.raises(ValueError, match="`processor` is needed"):
            CALLS[call](model, None)


def test_set_processor(whole):
    model = DenseMLLMForConditionalGeneration.from_pretrained(whole)
    given = make_processor(referring_crop_size=64)
    assert model.get_processor(given) is given and model.get_processor() is not given
    model.set_processor(given)
    assert model.get_processor() is given
    with pytest.raises(ValueError, match="does not belong to this model: its `num_depth_bins`"):
        model.set_processor(make_processor(num_depth_bins=8))
    assert model.get_processor() is given


@each_class
def test_a_relative_path_outlives_a_change_of_folder(whole, tmp_path, monkeypatch, auto):
    shutil.copytree(whole, tmp_path / "here" / "checkpoint")
    (tmp_path / "there").mkdir()
    save(tmp_path / "there" / "checkpoint", crop_size=32)
    monkeypatch.chdir(tmp_path / "here")
    model = auto.from_pretrained("checkpoint")
    monkeypatch.chdir(tmp_path / "there")
    assert model.get_processor().referring_crop_size == 48


@each_class
def test_a_subfolder_is_that_of_the_model(whole, tmp_path, auto):
    shutil.copytree(whole, tmp_path / "checkpoints" / "last")
    save(tmp_path, crop_size=32)
    model = auto.from_pretrained(tmp_path, subfolder="checkpoints/last")
    assert model.get_processor().referring_crop_size == 48


@each_class
def test_revision_and_cache_are_those_of_the_model(whole, tmp_path, auto):
    repository = tmp_path / "cache" / "models--me--model"
    (repository / "refs").mkdir(parents=True)
    for number, (revision, crop_size) in enumerate({"main": 32, "v1": 48}.items()):
        commit = str(number) * 40
        (repository / "refs" / revision).write_text(commit)
        save(repository / "snapshots" / commit, crop_size)
    where = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    for revision, crop_size in (("v1", 48), ("main", 32), (None, 32)):
        model = auto.from_pretrained("me/model", **where, **({} if revision is None else {"revision": revision}))
        for own in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert own.get_processor().referring_crop_size == crop_size


def test_the_token_is_that_of_the_model_and_no_pickle_has_it(whole, monkeypatch):
    model = DenseMLLMForConditionalGeneration.from_pretrained(whole, token="hf_secret")
    given = {}
    load = DenseMLLMProcessor.from_pretrained
    monkeypatch.setattr(
        DenseMLLMProcessor, "from_pretrained", lambda path, **options: given.update(options) or load(path)
    )
    assert b"hf_secret" not in pickle.dumps(model)
    assert "hf_secret" not in repr(vars(model))
    copy.deepcopy(model).get_processor()
    assert given["token"] == "hf_secret"


@pytest.mark.parametrize("lost", ["all", "tokenizer.json"])
def test_a_model_without_its_processor_says_what_to_do(whole, tmp_path, lost):
    if lost == "all":
        DenseMLLMForConditionalGeneration.from_pretrained(whole).save_pretrained(tmp_path)
    else:
        shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
        (tmp_path / lost).unlink()
    model = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"`processor` is needed: none can be .*save_pretrained.*set_processor"
    ) as error:
        model.predict_dense(IMAGE, labels=ID2LABEL)
    assert str(tmp_path) in str(error.value)
    given = make_processor()
    expected = model.predict_dense(IMAGE, labels=ID2LABEL, processor=given)
    given.save_pretrained(tmp_path)  # as it was told: no need to load the model again
    assert torch.equal(model.predict_dense(IMAGE, labels=ID2LABEL).segmentation, expected.segmentation)


def test_a_pipelines_model_without_a_processor_saves_nothing(whole, tmp_path):
    DenseMLLMForDepthEstimation.from_pretrained(whole).save_pretrained(tmp_path / "whole")
    assert DenseMLLMProcessor.from_pretrained(tmp_path / "whole").referring_crop_size == 48
    DenseMLLMForConditionalGeneration.from_pretrained(whole).save_pretrained(tmp_path / "bare")
    model = DenseMLLMForDepthEstimation.from_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="`processor` is needed"):
        model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()
