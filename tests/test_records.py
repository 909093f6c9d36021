"""Predictions and encoded images go from process to process, with and without the code that made them."""

import copy
import gc
import os
import pickle
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from densemllm import DensePrediction, EncodedImage
from tiny import ID2LABEL, make_image, make_model, make_processor


IMAGE = make_image(24, 32)


@pytest.fixture(scope="module")
def model():
    processor = make_processor()
    model = make_model(processor)
    model.set_processor(processor)
    return model


def predict(model, image=IMAGE):
    return model.predict_dense(image, ("segmentation", "depth"), labels=ID2LABEL, return_logits=True)


def fields_of(record):
    """Those of a record, or of what stands in its place, without what it remembers of the process."""
    return {name: value for name, value in vars(record).items() if not name.startswith("_")}


def assert_same(own, other):
    own, other = (value if isinstance(value, dict) else fields_of(value) for value in (own, other))
    assert list(own) == list(other)
    for name, value in other.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(own[name], value)
        elif isinstance(value, dict):
            assert_same(own[name], value)
        elif name != "past_key_values":
            assert own[name] == value


@pytest.fixture
def remote(monkeypatch):
    """The two classes as those of a checkpoint's own code, in a module that is loaded."""
    module = ModuleType("transformers_modules.checkpoint.prediction_densemllm")
    for base in (DensePrediction, EncodedImage):
        name = base.__name__
        setattr(module, name, type(name, (base,), {"__module__": module.__name__, "__qualname__": name}))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_fields_there_and_back(model):
    prediction = predict(model)
    values = prediction.to_dict()
    assert type(values) is dict and values["predicted_depth"] is not None and values["mask"] is None
    again = DensePrediction.from_dict(pickle.loads(pickle.dumps(values)))
    assert_same(again, prediction)
    assert (
        again.to_pil("segmentation", legend=True).tobytes() == prediction.to_pil("segmentation", legend=True).tobytes()
    )
    assert_same(DensePrediction.from_dict({"text": "nothing"}), DensePrediction(text="nothing"))
    with pytest.raises(ValueError, match=r"fields of a DensePrediction: unknown \['depth'\]"):
        DensePrediction.from_dict({"depth": 1})
    with pytest.raises(ValueError, match=r"fields of a EncodedImage: unknown \[\], missing \['hidden_states'"):
        EncodedImage.from_dict({"prompt": ""})


def test_an_encoded_image_without_its_cache_answers_the_same(model):
    encoded = model.encode_image(IMAGE)
    values = encoded.to_dict()
    assert "past_key_values" not in values
    again = EncodedImage.from_dict(pickle.loads(pickle.dumps(values)))
    assert again.past_key_values is None and again.image_size == encoded.image_size
    assert_same(predict(model, again), predict(model, encoded))
    answers = [model.query(own, "what is there?", max_new_tokens=4) for own in (again, encoded)]
    assert answers[0] == answers[1]


def test_pickles_of_the_package_are_of_its_classes(model):
    for record in (predict(model), model.encode_image(IMAGE)):
        for own in (pickle.loads(pickle.dumps(record)), copy.copy(record), copy.deepcopy(record)):
            assert type(own) is type(record)
            assert_same(own, record)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_remote_code(model, remote, monkeypatch, protocol):
    for record in (predict(model), model.encode_image(IMAGE)):
        own = getattr(remote, type(record).__name__)(**fields_of(record))
        data = pickle.dumps(own, protocol)
        for again in (pickle.loads(data), copy.copy(own), copy.deepcopy(own)):
            assert type(again) is type(own)
            assert_same(again, record)
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, remote.__name__)
            plain = pickle.loads(data)
            assert type(plain) is SimpleNamespace
            assert_same(plain, record)
        assert_same(type(record).from_dict(plain), record)


WORKER = """
import multiprocessing, pickle, sys
from PIL import Image


def work(folder):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    encoded = model.encode_image(Image.open("image.png"))
    assert type(encoded).__module__.startswith("transformers_modules.")
    return model.predict_dense(encoded, "depth"), encoded


if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        prediction, encoded = pool.apply_async(work, sys.argv[1:]).get(timeout=100)
    assert not any(name.startswith("transformers_modules") for name in sys.modules)
    with open("result.pickle", "wb") as file:
        pickle.dump((prediction, encoded), file)
"""


@pytest.mark.slow
def test_a_pool_that_loads_remote_code(model, tmp_path):
    """The parent has not loaded the model, nor has this process."""
    model.save_pretrained(tmp_path / "checkpoint")
    model.get_processor().save_pretrained(tmp_path / "checkpoint")
    IMAGE.save(tmp_path / "image.png")
    (tmp_path / "worker.py").write_text(WORKER)
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment["OMP_NUM_THREADS"] = "1"
    subprocess.run([sys.executable, "worker.py", "checkpoint"], cwd=tmp_path, check=True, timeout=120, env=environment)
    prediction, encoded = pickle.loads((tmp_path / "result.pickle").read_bytes())
    assert_same(DensePrediction.from_dict(prediction), model.predict_dense(IMAGE, "depth"))
    assert_same(predict(model, EncodedImage.from_dict(encoded)), predict(model))


def test_an_encoded_image_asks_the_model_that_read_it(model):
    encoded = model.encode_image(IMAGE)
    options = {"max_new_tokens": 6}
    messages = [{"role": "user", "content": "What is there?"}]
    assert encoded.query("What is there?", **options) == model.query(encoded, "What is there?", **options)
    answer = model.chat(encoded, messages, **options)
    assert encoded.chat(messages, **options) == copy.copy(encoded).chat(messages, **options) == answer
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And what else?"}]
    assert encoded.chat(messages, **options) == model.chat(encoded, messages, **options)
    with pytest.raises(ValueError, match="messages"):
        encoded.chat([])


def test_an_encoded_image_without_its_model_says_whom_to_ask():
    processor = make_processor()
    gone = make_model(processor)
    gone.set_processor(processor)
    encoded = gone.encode_image(IMAGE)
    elsewhere = pickle.loads(pickle.dumps(encoded))
    with pytest.raises(ValueError, match=r"another process.*model.chat\(encoded"):
        elsewhere.chat([{"role": "user", "content": "What is there?"}])
    del gone
    gc.collect()  # the record doesn't keep it
    with pytest.raises(ValueError, match="is gone"):
        encoded.query("What is there?")
