"""The pipelines of objects: in transformers' forms, and with what `predict_dense` gives."""

import logging

import pytest
import torch
from transformers import ImageSegmentationPipeline, pipeline

from densemllm import DenseMLLMForConditionalGeneration, DenseObjectDetectionPipeline
from tiny import ID2LABEL, answer_with, make_image, make_model, make_processor, make_tokenizer


IMAGES = [make_image(32, 48), make_image(32, 48, 1), make_image(40, 40, 2)]
ANSWER = (
    "<ref>wall</ref><box><x_2><y_3><x_30><y_20></box><ref>red ball</ref><box><x_20><y_4><x_40><y_30></box>"
    "<box><x_0><y_16><x_24><y_31></box>"
)
FLAG = {"trust_remote_code": True}


def save(folder, tokenizer=None, **config):
    processor = make_processor()
    if tokenizer is not None:
        processor.tokenizer = tokenizer
    model = make_model(processor, **config)
    with torch.no_grad():  # scores that differ
        model.lm_head.weight.mul_(8)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("checkpoint"), id2label=ID2LABEL)


def expected_of(model, image, **options) -> list[dict]:
    rows = model.predict_dense(image, **options).segments_info
    names = ("xmin", "ymin", "xmax", "ymax")
    found = [
        {"score": row["score"], "label": row["label"], "box": dict(zip(names, map(int, row["box"]), strict=True))}
        for row in rows
        if row.get("isthing", True)
    ]
    return sorted(found, key=lambda row: -row["score"])


def assert_rows(rows: list[dict], expected: list[dict]) -> None:
    """Near ties of two scores may stand in either order."""

    def key(row):
        return row["label"], *row["box"].values()

    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    for row, other in zip(sorted(rows, key=key), sorted(expected, key=key), strict=True):
        assert key(row) == key(other) and row["score"] == pytest.approx(other["score"], abs=0.02)


@pytest.mark.parametrize("form", [list, iter], ids=["list", "generator"])
def test_zero_shot_object_detection(folder, monkeypatch, form):
    pipe = pipeline("zero-shot-object-detection", model=str(folder), **FLAG)
    asked = []
    answer_with(monkeypatch, pipe.model, ANSWER, asked)
    names = ["red ball", "wall"]
    one = pipe(IMAGES[0], candidate_labels=names)
    assert asked == ["Detect every objects that belongs to the following categories: red ball,wall"]
    expected = expected_of(pipe.model, IMAGES[0], task="open_set", labels=names)
    assert_rows(one, expected)
    assert {row["label"] for row in one} == set(names) and all(0.5 <= row["score"] <= 1 for row in one)
    assert all(type(edge) is int for row in one for edge in row["box"].values())
    assert_rows(pipe(IMAGES[0], "red ball, wall"), expected)
    assert pipe(IMAGES[0], names, top_k=1) == one[:1]
    assert pipe(IMAGES[0], names, threshold=1.0) == []
    own = [["Red Ball"], names, ["wall"]]  # as they are written
    rows = [{"image": image, "candidate_labels": labels} for image, labels in zip(IMAGES, own, strict=True)]
    for found in (
        pipe((row for row in rows) if form is iter else rows, batch_size=2),
        pipe((image for image in IMAGES) if form is iter else IMAGES, own, batch_size=3),
    ):
        for place, result in enumerate(found):
            expected = expected_of(pipe.model, IMAGES[place], task="open_set", labels=[n.lower() for n in own[place]])
            for row in expected:
                row["label"] = next(name for name in own[place] if name.lower() == row["label"])
            assert_rows(result, expected)


def test_what_zero_shot_object_detection_needs(folder, monkeypatch):
    pipe = pipeline("zero-shot-object-detection", model=str(folder), **FLAG)
    answer_with(monkeypatch, pipe.model, ANSWER)
    with pytest.raises(ValueError, match="`candidate_labels` is needed"):
        pipe(IMAGES[0])
    for labels in ([], 3, [3], {"wall"}):
        with pytest.raises((TypeError, ValueError), match="`candidate_labels`"):
            pipe(IMAGES[0], labels)
    with pytest.raises(ValueError, match="`candidate_labels` must be one, or one an image, got 2 for 3"):
        pipe(IMAGES, [["wall"], ["cup"]])
    with pytest.raises(TypeError, match="'labels'"):
        pipe(IMAGES[0], labels=["wall"])
    with pytest.raises(ValueError, match="`threshold`"):
        pipe(IMAGES[0], ["wall"], threshold=2)
    with pytest.raises(ValueError, match="`top_k`"):
        pipe(IMAGES[0], ["wall"], top_k=0)
    answer_with(monkeypatch, pipe.model, "nothing to be seen")
    assert pipe(IMAGES[0], ["wall"]) == []
    assert pipe([IMAGES[0], b""], ["wall"], on_error="skip", batch_size=2) == [[], None]


def test_object_detection_in_words(folder, monkeypatch, tmp_path):
    pipe = pipeline("object-detection", model=str(folder), **FLAG)
    asked = []
    answer_with(monkeypatch, pipe.model, ANSWER, asked)
    for images, options in ((IMAGES, {}), (IMAGES[:1], {"labels": ["red ball"]})):
        labels = options.get("labels", ID2LABEL)
        for image, rows in zip(images, pipe(images, batch_size=2, **options), strict=True):
            assert_rows(rows, expected_of(pipe.model, image, task="open_set", labels=labels))
    assert asked[0].endswith("categories: wall,floor,red ball")
    # A checkpoint that names no classes finds its own.
    pipe.model.config.id2label = None
    asked.clear()
    rows = pipe(IMAGES[0])
    assert asked[0] == "Detect all objects in the provided image." and asked[1].endswith("categories: wall,red ball")
    assert_rows(rows, expected_of(pipe.model, IMAGES[0], task="open_set", labels=["wall", "red ball"]))
    answer_with(monkeypatch, pipe.model, "an empty room")
    assert pipe(IMAGES[:2]) == [[], []]


def test_object_detection_of_learned_things(tmp_path):
    save(tmp_path, id2label=ID2LABEL, thing_labels=["red ball", "floor"])
    pipe = pipeline("object-detection", model=str(tmp_path), **FLAG)
    for options in ({}, {"thing_labels": ["wall"]}):
        found = pipe(IMAGES, batch_size=2, **options)
        for image, rows in zip(IMAGES, found, strict=True):
            expected = expected_of(pipe.model, image, task="panoptic", labels=ID2LABEL, **options)
            assert_rows(rows, expected)
        assert any(found)


def test_a_loaded_model_detects(folder, monkeypatch):
    """With the package imported, its class stands for the flag."""
    model = DenseMLLMForConditionalGeneration.from_pretrained(folder).eval()
    answer_with(monkeypatch, model, ANSWER)
    pipe = DenseObjectDetectionPipeline(model=model, processor=model.get_processor())
    expected = expected_of(model, IMAGES[0], task="open_set", labels=ID2LABEL)
    assert_rows(pipe(IMAGES[0]), expected)
    answer_with(monkeypatch, DenseMLLMForConditionalGeneration, ANSWER)
    own = pipeline("object-detection", model=str(folder), pipeline_class=DenseObjectDetectionPipeline)
    assert_rows(own(IMAGES[0]), expected)
    with pytest.raises(ValueError, match="trust_remote_code"):
        pipeline("object-detection", model=str(folder))


@pytest.mark.parametrize("task", ["object-detection", "zero-shot-object-detection"])
def test_a_checkpoint_that_cannot_detect_says_so(tmp_path, task):
    save(tmp_path, make_tokenizer(num_coordinates=0), id2label=ID2LABEL)
    with pytest.raises(ValueError, match=rf"`task` '{task}' is not for this checkpoint.*<x_0>.*image-segmentation"):
        pipeline(task, model=str(tmp_path), **FLAG)


@pytest.mark.parametrize("flag", [{}, FLAG], ids=["no flag", "flag"])
@pytest.mark.parametrize(
    ("task", "way"),
    [("mask-generation", "image-segmentation"), ("zero-shot-image-classification", "task='classification'")],
)
def test_tasks_of_other_models_name_a_way(folder, task, way, flag, monkeypatch):
    monkeypatch.setattr(DenseMLLMForConditionalGeneration, "__init__", lambda *_: pytest.fail("a model was made"))
    with pytest.raises(ValueError, match=f"`task` '{task}' is not one of a DenseMLLM; .*{way}"):
        pipeline(task, model=str(folder), **flag)


def test_nothing_is_said_about_models_that_are_not_supported(folder, caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        for options in (FLAG, {"pipeline_class": ImageSegmentationPipeline}):
            assert pipeline("image-segmentation", model=str(folder), **{**FLAG, **options})(IMAGES[0])
    finally:
        logger.removeHandler(caplog.handler)
    assert "not supported" not in caplog.text
