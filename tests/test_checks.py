"""What a caller gives is checked at the public entry: one sentence with the argument's name, before any work."""

import logging

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiny import ID2LABEL, make_image, make_model, make_processor


LABELS = ["cat", "sky"]
IMAGE = make_image(16, 24)


@pytest.fixture(scope="module")
def model():
    processor = make_processor(referring_prompt="find {text}")
    model = make_model(processor, id2label=ID2LABEL)
    model.get_processor(processor)
    return model


@pytest.fixture
def closed(tmp_path):
    IMAGE.save(tmp_path / "image.png")
    image = PIL.Image.open(tmp_path / "image.png")
    image.close()
    return image


def lazy(path):
    """An image whose file was closed before its pixels were read."""
    with path.open("rb") as file:
        return PIL.Image.open(file)


# ---- junk ----

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 40), st.floats(0.25, 40), st.sampled_from([-0.5, 0.0, 5.7]),
    st.sampled_from([float("nan"), float("inf"), 10**30, -(10**400), 2**63, 1 + 2j]), st.text(max_size=4),
    st.binary(max_size=4), st.sampled_from(["\ud800", "172", "0.5", "crf", "road", "abcd", "depth"]),
    st.builds(object), st.just(range(3)), st.just(np.str_("cat")),
    st.sampled_from([np.float32(2), np.int64(3), np.bool_(True), np.datetime64("2020-01-01"), np.float64("nan")]),
    st.just(torch.tensor(5.0)), st.just(torch.tensor(2 + 1j)), st.just(torch.zeros(2, device="meta")),
)  # fmt: skip
JUNK = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=4),
    st.lists(SCALARS, max_size=4).map(tuple),
    st.lists(st.lists(SCALARS, max_size=4), max_size=3),
    st.dictionaries(st.one_of(st.integers(-1, 3), st.text(max_size=2), st.floats(0, 2)), SCALARS, max_size=2),
    st.just({1, 2}), st.just(np.array([object()] * 3)), st.just(np.array(["a", "b"])), st.just(np.zeros((2, 2))),
    st.just(torch.zeros(3, dtype=torch.complex64)), st.just(torch.zeros(2, 2).to_sparse()), st.just(np.array(0.5)),
    st.just(b"x" * 1000), st.just("x" * 1000), st.just(type), st.just(len),
)  # fmt: skip
DENSE = [
    "task", "labels", "text", "box", "background", "threshold", "depth_range", "focal_length", "target_sizes",
    "refine", "return_logits", "processor", "batch_size", "on_error", "scale", "max_num_patches", "patch_size",
    "max_image_pixels", "do_resize", "resample", "images",
]  # fmt: skip
ENCODE = ["prompt", "batch_size", "use_cache", "focal_length", "depth_range", "on_error", "scale", "processor"]
ANSWER = ["task", "text", "prompt", "max_new_tokens", "focal_length", "depth_range", "on_error", "processor"]
PIPELINE = [
    name for name in DENSE if name not in ("processor", "patch_size", "max_image_pixels", "do_resize", "resample")
]
BASES = {
    "text": {"task": "referring"},
    "box": {"task": "referring"},
    "depth_range": {"task": "depth"},
    "focal_length": {"task": "depth", "depth_range": "road"},
}


def accepts_or_names(name, call):
    """The call works, or says in one sentence what is wrong with this argument."""
    try:
        call()
    except (ValueError, TypeError) as error:
        # What one argument refuses may be said of another that does not fit it: a `text` without a `box`.
        assert f"`{name}" in str(error) or (name == "box" and "`text" in str(error)), repr(error)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(DENSE), value=JUNK)
def test_junk_for_predict_dense_is_named(model, name, value):
    arguments = {"labels": LABELS, **BASES.get(name, {}), name: value}
    image = arguments.pop("images", IMAGE)
    if name == "labels" and value is None:
        return
    accepts_or_names(name, lambda: model.predict_dense(image, **arguments))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(ENCODE), value=JUNK)
def test_junk_for_encode_image_is_named(model, name, value):
    base = {"depth_range": "road"} if name == "focal_length" else {}
    accepts_or_names(name, lambda: model.encode_image(IMAGE, **{**base, name: value}))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(ANSWER), value=JUNK)
def test_junk_for_predict_is_named(model, name, value):
    base = {"task": "counting", "text": "cups", "max_new_tokens": 1}
    base |= {"depth_range": "road"} if name == "focal_length" else {}
    accepts_or_names(name, lambda: model.predict(IMAGE, **{**base, name: value}))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(PIPELINE), value=JUNK, own=st.booleans())
def test_junk_for_the_pipeline_is_named(model, name, value, own):
    pipe = model.as_pipeline()
    if name == "labels" and value is None:
        return
    arguments = {"labels": LABELS, **BASES.get(name, {}), name: value}
    if own and name in ("text", "box", "focal_length", "target_sizes"):
        images = {"image": IMAGE, name: arguments.pop(name)}
    else:
        images = arguments.pop("images", [IMAGE, IMAGE])
    accepts_or_names(name, lambda: pipe(images, **{"batch_size": 2, **arguments}))


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "`focal_length` must be .* got 'abc'", {"focal_length": "abc"}),
        (TypeError, "`focal_length` must be .* got '172'", {"focal_length": "172"}),
        (TypeError, "`focal_length` must be .* got True", {"focal_length": True}),
        (ValueError, "`focal_length` must be .* got nan", {"focal_length": float("nan")}),
        (TypeError, "`threshold` must be .* got '0.5'", {"threshold": "0.5"}),
        (ValueError, "`threshold` must be .* got nan", {"threshold": float("nan")}),
        (TypeError, "`target_sizes` must be .* got 5", {"target_sizes": 5}),
        (TypeError, "`target_sizes` must be .* got nan", {"target_sizes": float("nan")}),
        (ValueError, r"`target_sizes` must be .* got \(5.7, 5\)", {"target_sizes": (5.7, 5)}),
        (ValueError, "`target_sizes` must be", {"target_sizes": [(5, float("nan"))]}),
        (ValueError, "`target_sizes` must be", {"target_sizes": torch.tensor([[5.5, 5.0]])}),
        (TypeError, "`box` must be .* got 'abcd'", {"task": "referring", "box": "abcd"}),
        (TypeError, "`box` must be", {"task": "referring", "box": {1, 2, 3, 4}}),
        (ValueError, "`box` must be", {"task": "referring", "box": (1, 2, 3)}),
        (TypeError, "`task` must be .* got None", {"task": None}),
        (TypeError, "`batch_size` must be .* got 'a'", {"batch_size": "a"}),
        (ValueError, "`batch_size` must be .* got 1.5", {"batch_size": 1.5}),
        (ValueError, "`labels` must be .*surrogates", {"labels": ["cat\ud800"]}),
        (ValueError, "`text` must be .*surrogates", {"task": "referring", "text": "\ud800"}),
        (TypeError, "`text` must be .* got 5", {"task": "referring", "text": 5}),
        (TypeError, "`background` must be .* got 'no'", {"background": "no"}),
        (TypeError, "`return_logits` must be", {"return_logits": np.array([1, 2])}),
        (ValueError, "`depth_range` must be one of", {"task": "depth", "depth_range": ["road"]}),
        (ValueError, "`refine` must be", {"refine": np.array(["crf", "crf"])}),
        (TypeError, "`processor` must be", {"processor": "densemllm"}),
        (TypeError, "`scale` must be", {"scale": "2"}),
        (TypeError, "`max_num_patches` can't be 'a'", {"max_num_patches": "a"}),
        (ValueError, "`patch_size` must be the model's own, 4", {"patch_size": 8}),
        (TypeError, "`skale` is not an argument", {"skale": 2.0}),
        (TypeError, "`return_tensors` is not an argument", {"return_tensors": "pt"}),
        (ValueError, "`on_error` must be one of", {"on_error": "ignore"}),
    ],
)
def test_arguments_are_named_before_an_image_is_read(model, monkeypatch, error, message, arguments):
    def refuse(*args, **kwargs):
        raise AssertionError("an image was read")

    image_processor = model.get_processor().image_processor
    monkeypatch.setattr(type(image_processor), "load_picture", refuse)
    with pytest.raises(error, match=message) as found:
        model.predict_dense(IMAGE, **{"labels": LABELS, **arguments})
    assert "\n" not in str(found.value)


def test_a_single_value_is_checked_without_images(model):
    with pytest.raises(TypeError, match="`focal_length`"):
        model.predict_dense([], task="depth", focal_length="abc")
    with pytest.raises(TypeError, match="`target_sizes`"):
        model.predict_dense([], labels=LABELS, target_sizes=5)


@pytest.mark.parametrize("sizes", [(5.0, 6.0), torch.tensor([5, 6]), np.array([[5.0, 6.0]]), [torch.tensor([5, 6])]])
def test_whole_numbers_of_any_kind_are_sizes(model, sizes):
    assert model.predict_dense(IMAGE, labels=LABELS, target_sizes=sizes).segmentation.shape == (5, 6)


@pytest.mark.parametrize("sizes", [5, (5.7, 5), "ab", [(5, None)], [(5, 5)] * 3])
def test_post_processing_checks_sizes_alike(model, sizes):
    class Outputs:
        logits = [torch.zeros(3, 2, 2)] * 2

    for owner in (model.get_processor(), model.get_processor().image_processor):
        with pytest.raises((ValueError, TypeError), match="`target_sizes` must be"):
            owner.post_process_semantic_segmentation(Outputs, target_sizes=sizes)


# ---- images ----


@pytest.mark.parametrize(
    "image",
    [
        None, b"abc", {}, {1}, object(), "\ud800", "a\0b", np.array([[object()] * 3] * 3),
        np.zeros((4, 4, 3), complex), np.zeros((4, 4, 3), "U1"), np.zeros((4, 4), "datetime64[s]"),
        np.zeros((4, 4, 3), [("a", "f4")]), torch.zeros(3, 4, 4, dtype=torch.complex64),
        torch.zeros(3, 4, 4, device="meta"), torch.zeros(3, 4, 4).to_sparse(), [[IMAGE]],
    ],
    ids=lambda image: type(image).__name__,
)  # fmt: skip
def test_what_is_not_an_image_is_named(model, image):
    for images, name in (([IMAGE, image], r"`images\[1\]`"), (image, "`images")):
        if not isinstance(images, list) or isinstance(images[0], PIL.Image.Image):
            with pytest.raises((ValueError, TypeError), match=name):
                model.predict_dense(images, labels=LABELS)


def test_a_generator_in_a_list_is_named(model):
    with pytest.raises(TypeError, match=r"`images\[1\]`"):  # alone it is taken for images that come
        model.predict_dense([IMAGE, (image for image in [IMAGE])], labels=LABELS)


def test_closed_files_are_named(model, closed, tmp_path):
    for image in (closed, lazy(tmp_path / "image.png")):
        with pytest.raises(ValueError, match=r"^`images\[2\]`"):
            model.predict_dense([IMAGE, IMAGE, image], labels=LABELS)


def test_a_broken_image_is_named_by_its_place(model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG not a picture")
    images = [IMAGE, make_image(8, 8), tmp_path / "broken.png", IMAGE]
    calls = (
        lambda: model.predict_dense(images, labels=LABELS),
        lambda: model.encode_image(images),
        lambda: model.predict(images, task="counting", text="cups", max_new_tokens=1),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"^`images\[2\]` .*broken.png"):
            call()


def same(one, other):
    return (one == other).float().mean() > 0.95  # a near tie falls either way in another batch


def test_a_broken_image_is_skipped_and_the_rest_is_kept(model, caplog):
    images = [
        make_image(16, 24, 1),
        b"not an image",
        make_image(24, 16, 2),
        np.zeros((0, 3, 3)),
        make_image(16, 16, 3),
    ]
    kept = [0, 2, 4]
    options = {"on_error": "skip", "batch_size": 2}
    with caplog.at_level(logging.WARNING):
        found = model.predict_dense(images, labels=LABELS, target_sizes=[(5, 6 + k) for k in range(5)], **options)
    assert [message for message in caplog.messages if "images[1]" in message]
    assert [message for message in caplog.messages if "images[3]" in message]
    assert [place for place, one in enumerate(found) if one is not None] == kept
    for place in kept:
        alone = model.predict_dense(images[place], labels=LABELS, target_sizes=(5, 6 + place))
        assert same(found[place].segmentation, alone.segmentation)
    lengths = [50.0, None, 100.0, 20.0, 200.0]
    found = model.predict_dense(images, task="depth", depth_range="road", focal_length=lengths, **options)
    for place in kept:
        alone = model.predict_dense(images[place], task="depth", depth_range="road", focal_length=lengths[place])
        assert same(found[place].predicted_depth, alone.predicted_depth)
    texts, boxes = list("abcde"), [(0, 0, 9, 9 + k) for k in range(5)]
    found = model.predict_dense(images, task="referring", text=texts, box=boxes, **options)
    assert [one and one.box for one in found] == [(0, 0, 9, 9), None, (0, 0, 9, 11), None, (0, 0, 9, 13)]
    encoded = model.encode_image(images, **options)
    assert [one and one.image_size for one in encoded] == [(16, 24), None, (24, 16), None, (16, 16)]
    # What was skipped is skipped again.
    found = model.predict_dense(encoded, labels=LABELS, on_error="skip")
    assert [place for place, one in enumerate(found) if one is not None] == kept
    answers = model.predict(images, task="counting", text="cups", max_new_tokens=1, on_error="skip")
    assert [place for place, one in enumerate(answers) if one is not None] == kept
    assert model.predict_dense(b"not an image", labels=LABELS, on_error="skip") is None
    assert model.predict_dense(images[1::2], labels=LABELS, on_error="skip") == [None, None]


def test_one_broken_image_of_several_objects(model):
    assert model.predict_dense(b"no", task="referring", text=["a", "b"], on_error="skip") == [None, None]


def test_no_question_is_asked_before_all_images_are_read(model, monkeypatch):
    monkeypatch.setattr(type(model), "query", lambda *args, **kwargs: pytest.fail("a question was asked"))
    with pytest.raises(TypeError, match=r"`images\[1\]`"):
        model.predict([IMAGE, None], task="counting", text="cups")
    with pytest.raises(ValueError, match="`box` must have"):
        model.predict_dense(
            [IMAGE] * 2, task="referring", text=["a", None], box=[None, (90, 90, 99, 99)], processor=make_processor()
        )


# ---- names that a model does not know ----


@pytest.fixture
def knowing():
    processor = make_processor()
    model = make_model(processor, id2label={0: "Wall", 1: "floor", 2: "red ball"})
    model.get_processor(processor)
    return model


def warnings_of(caplog, call):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        call()
    return [message for message in caplog.messages if "`labels`" in message]


def test_names_that_the_model_does_not_know_are_warned_of_once(knowing, caplog):
    (message,) = warnings_of(caplog, lambda: knowing.predict_dense(IMAGE, labels=["flor", "zebra", "Red  Ball"]))
    assert "'flor' (did you mean 'floor'?)" in message and "'zebra'" in message and "red ball" not in message
    assert not warnings_of(caplog, lambda: knowing.predict_dense(IMAGE, labels=["flor", "zebra"]))
    (message,) = warnings_of(caplog, lambda: knowing.predict_dense(IMAGE, labels={5: "wal", 9: "zebra"}))
    assert "'wal' (did you mean 'Wall'?)" in message and "zebra" not in message
    (message,) = warnings_of(caplog, lambda: knowing.predict_dense(IMAGE, labels=[f"thing {k}" for k in range(30)]))
    assert "and 20 more" in message


def test_known_names_and_models_without_names_give_no_warning(knowing, caplog):
    labels = ["wall", "FLOOR", "red ball", "<OTHERS>"]
    assert not warnings_of(caplog, lambda: knowing.predict_dense(IMAGE, labels=labels))
    assert not warnings_of(caplog, lambda: knowing.predict_dense(IMAGE, task="depth", labels=["zebra"]))
    processor = make_processor()
    assert not warnings_of(
        caplog, lambda: make_model(processor).predict_dense(IMAGE, labels=["zebra"], processor=processor)
    )
