"""The pipelines: each in the form that its users expect, and with what `predict_dense` gives."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import (
    AutoModelForDepthEstimation,
    AutoModelForSemanticSegmentation,
    DepthEstimationPipeline,
    pipeline,
)

import densemllm
from densemllm import DenseMLLMConfig, DenseMLLMForConditionalGeneration, DenseMLLMProcessor
from densemllm.pipeline_densemllm import DenseDepthEstimationPipeline, DenseImageSegmentationPipeline
from tiny import ID2LABEL, assert_maps_agree, make_image, make_model, make_processor


IMAGES = [make_image(30, 50), make_image(24, 16, 1), make_image(40, 40, 2)]
CHATS = [
    [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
    for image, text in zip(IMAGES, ("what?", "what is on the table?", "a cat?"), strict=True)
]
# `max_new_tokens` beside them would be written into this dict by the pipeline.
GREEDY = {"generate_kwargs": {"max_new_tokens": 5, "do_sample": False}, "return_full_text": False}


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
        assert_maps_agree(result["segmentation"], expected.segmentation)
        assert_maps_agree(result["predicted_depth"], expected.predicted_depth)
        assert [row["label"] for row in result["segments_info"]] == [row["label"] for row in expected.segments_info]
        assert result["depth"].size == image.size and "mask" not in result


def test_a_checkpoint_of_the_release_before_has_its_own_pipelines():
    # Its code knows no pipelines in the place of transformers' own.
    config = DenseMLLMConfig.from_pretrained(Path(__file__).parent / "data/written_by_0.1.0")
    for own in (config, copy.deepcopy(config)):
        assert "depth-estimation" not in own.custom_pipelines and "dense-prediction" in dict(own.custom_pipelines)
    for own in (make_model(make_processor()).config, DenseMLLMConfig.from_dict(DenseMLLMConfig().to_dict())):
        assert "depth-estimation" in own.custom_pipelines and len(own.custom_pipelines) == 1


@pytest.mark.parametrize("task", ["dense-prediction", None])
@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": True}], ids=["no flag", "flag"])
def test_the_installed_package_needs_no_flag(folder, model, task, trust):
    pipe = pipeline(task, model=str(folder), **trust)
    assert type(pipe) is densemllm.DensePredictionPipeline and type(pipe.model) is type(model)
    expected = model.predict_dense(IMAGES[0], labels=["wall", "floor"]).segmentation
    assert torch.equal(pipe(IMAGES[0], labels=["wall", "floor"])["segmentation"], expected)


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
        assert_maps_agree(result["mask"], mask)
        assert result["mask"].dtype == torch.bool
    cameras = [{"image": image, "focal_length": 60.0 + 30 * place} for place, image in enumerate(IMAGES)]
    road = {"task": "depth", "depth_range": "road"}
    for rows in (cameras, [*cameras[:2], {"image": IMAGES[2]}]):  # the last one's own, or unknown
        for result, row in zip(pipe(rows, batch_size=3, **road), rows, strict=True):
            alone = model.predict_dense(row["image"], focal_length=row.get("focal_length"), **road)
            assert_maps_agree(result["predicted_depth"], alone.predicted_depth)
    with pytest.raises(TypeError, match="'labls'"):
        pipe(IMAGES[0], labls=["wall"])
    with pytest.raises(ValueError, match="`image`"):
        pipe({"picture": IMAGES[0]})
    with pytest.raises(ValueError, match="`task`"):
        pipe(IMAGES[0], task="deep")
    with pytest.raises(TypeError, match="`text` must be one"):
        pipe({"image": IMAGES[0], "text": ["a", "b"]}, task="referring")


class Images(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def agree(one, other):
    # Near ties fall either way in another batch.
    return one.shape == other.shape and torch.isclose(one.float(), other.float(), atol=1e-4).float().mean() > 0.95


@pytest.mark.parametrize("form", [list, tuple, many, Images])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_lists_of_a_call_belong_to_the_images(model, form, batch_size):
    pipe = model.as_pipeline()
    images = [*IMAGES, IMAGES[0]]
    lengths, sizes = [100.0, 60.0, None, 250.0], [(8, 9), (20, 10), (7, 7), (30, 50)]
    options = {"task": "depth", "depth_range": "road"}
    found = list(pipe(form(images), batch_size=batch_size, focal_length=lengths, target_sizes=sizes, **options))
    assert len(found) == 4
    for result, image, length, size in zip(found, images, lengths, sizes, strict=True):
        alone = model.predict_dense(image, focal_length=length, target_sizes=size, **options).predicted_depth
        assert agree(result["predicted_depth"], alone)
    texts, boxes = ["a", "the chair", None, "it"], [None, (1, 2, 9, 9), (0, 0, 20, 20.5), None]
    found = list(pipe(form(images), batch_size=batch_size, task="referring", text=texts, box=boxes))
    for result, image, text, box in zip(found, images, texts, boxes, strict=True):
        assert result.get("box") == box
        assert agree(result["mask"], model.predict_dense(image, task="referring", text=text, box=box).mask)


def test_one_value_is_for_all_images_and_a_dict_for_its_own(model):
    pipe = model.as_pipeline()
    options = {"task": "depth", "depth_range": "road"}
    inputs = [{"image": IMAGES[0], "focal_length": 50.0, "target_sizes": (5, 6)}, IMAGES[1], IMAGES[2]]
    found = pipe(inputs, batch_size=3, focal_length=200.0, **options)
    for result, image, length in zip(found, IMAGES, (50.0, 200.0, 200.0), strict=True):
        size = (5, 6) if length == 50 else (image.height, image.width)
        alone = model.predict_dense(image, focal_length=length, target_sizes=size, **options)
        assert agree(result["predicted_depth"], alone.predicted_depth)
    for box in ((1, 2, 9, 9), torch.tensor([1, 2, 9, 9]), [1.0, 2.0, 9.0, 9.0]):
        assert [result["box"] for result in pipe(IMAGES, task="referring", box=box)] == [(1, 2, 9, 9)] * 3
    assert pipe(IMAGES[0], focal_length=[50.0], **options)["predicted_depth"].shape == (30, 50)
    assert all(result["segmentation"].shape == (4, 5) for result in pipe(IMAGES, labels=["a"], target_sizes=(4, 5)))
    assert pipe([], task="depth") == []


@pytest.mark.parametrize("form", [list, many, Images])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("focal_length", [50.0, 60.0]), ("focal_length", np.full(4, 50.0)), ("text", ["a"] * 4),
        ("box", [(1, 2, 9, 9)] * 2), ("target_sizes", torch.full((2, 2), 5)), ("text", []),
    ],
)  # fmt: skip
def test_a_list_of_another_length_is_refused(model, form, name, values):
    with pytest.raises(ValueError, match=f"`{name}` must be one, or one an image, got {len(values)} for"):
        list(model.as_pipeline()(form(IMAGES), task="referring", **{"text": "a", name: values}))


def test_lists_need_the_images_of_a_call(model):
    with pytest.raises(ValueError, match="`text` must be one, or one an image, got 2 for 1"):
        model.as_pipeline()(IMAGES[0], task="referring", text=["a", "b"])
    with pytest.raises(ValueError, match="`focal_length` must be one value here"):
        model.as_pipeline(focal_length=[50.0, 60.0])
    with pytest.raises(TypeError, match="`batch_size` must be"):
        model.as_pipeline()(IMAGES, batch_size="a")
    with pytest.raises(ValueError, match="`num_workers` must be"):
        model.as_pipeline()(IMAGES, num_workers=-1)
    with pytest.raises(TypeError, match="`batch_size` must be"):
        model.as_pipeline(batch_size="a")


@pytest.mark.parametrize("form", [list, many, Images])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_broken_image_is_named_or_skipped(model, tmp_path, caplog, form, batch_size):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    pipe = model.as_pipeline()
    images = [IMAGES[0], str(tmp_path / "broken.png"), {"image": IMAGES[1]}, IMAGES[2]]
    lengths = [50.0, 60.0, 70.0, 200.0]
    options = {"task": "depth", "depth_range": "road", "focal_length": lengths, "batch_size": batch_size}
    with pytest.raises(ValueError, match=r"`images\[1\]` .*broken.png"):
        list(pipe(form(images), **options))
    with caplog.at_level("WARNING"):
        found = list(pipe(form(images), on_error="skip", **options))
    assert [message for message in caplog.messages if "`images[1]`" in message and "broken.png" in message]
    assert found[1] is None
    for place in (0, 2, 3):
        image = IMAGES[max(0, place - 1)]
        alone = model.predict_dense(image, task="depth", depth_range="road", focal_length=lengths[place])
        assert agree(found[place]["predicted_depth"], alone.predicted_depth)
    assert pipe(str(tmp_path / "broken.png"), on_error="skip", task="depth") is None
    with pytest.raises(ValueError, match="`on_error`"):
        pipe(IMAGES[0], on_error="ignore", task="depth")


def test_the_key_depth_has_one_meaning(folder, model):
    """That of transformers' own pipeline: the image of `predicted_depth`, from the least (0) to the most (255)."""
    dense = model.as_pipeline()(IMAGES[0], task="depth")
    own, theirs = (
        pipeline("depth-estimation", model=str(folder), trust_remote_code=True, **kwargs)(IMAGES[0])
        for kwargs in ({}, {"pipeline_class": DepthEstimationPipeline})
    )
    assert own.keys() == theirs.keys() == {"predicted_depth", "depth"}
    for result in (dense, own, theirs):
        depth = result["predicted_depth"].numpy()
        expected = ((depth - depth.min()) / (depth.max() - depth.min()) * 255).astype(np.uint8)
        assert result["depth"].mode == "L"
        np.testing.assert_allclose(np.asarray(result["depth"], int), expected, atol=1)


def test_a_loaded_model_is_a_pipeline(model):
    expected = model.predict_dense(IMAGES[0], task="depth").predicted_depth
    result = model.as_pipeline()(IMAGES[0], task="depth")
    torch.testing.assert_close(result["predicted_depth"], expected)
    # With the package imported, `pipeline` knows the task by itself.
    pipe = pipeline("dense-prediction", model=model, processor=model.get_processor())
    torch.testing.assert_close(pipe(IMAGES[0], task="depth")["predicted_depth"], expected)
    with pytest.raises(ValueError, match="each call"):
        model.as_pipeline(task="depth")


@pytest.mark.parametrize("task", ["dense-prediction", "depth-estimation", "image-segmentation"])
def test_a_pipeline_saves_a_whole_checkpoint(folder, tmp_path, task):
    pipeline(task, model=str(folder), trust_remote_code=True).save_pretrained(tmp_path)
    saved, first = (json.loads((path / "config.json").read_text()) for path in (tmp_path, folder))
    assert saved["auto_map"] == first["auto_map"] and saved["custom_pipelines"] == first["custom_pipelines"]
    assert {path.name for path in folder.iterdir()} <= {path.name for path in tmp_path.iterdir()}
    assert (
        DenseMLLMProcessor.from_pretrained(tmp_path).to_dict() == DenseMLLMProcessor.from_pretrained(folder).to_dict()
    )


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("form", [list, many])
def test_depth_estimation(folder, model, batch_size, form):
    pipe = pipeline("depth-estimation", model=str(folder), batch_size=batch_size, trust_remote_code=True)
    results = list(pipe(form(IMAGES)))
    for image, result in zip(IMAGES, results, strict=True):
        expected = model.predict_dense(image, task="depth").predicted_depth
        assert_maps_agree(result["predicted_depth"], expected)
        assert isinstance(result["depth"], PIL.Image.Image) and result["depth"].size == image.size
    assert isinstance(pipe(IMAGES[0]), dict)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("form", [list, many])
def test_image_segmentation(folder, model, batch_size, form):
    pipe = pipeline("image-segmentation", model=str(folder), batch_size=batch_size, trust_remote_code=True)
    results = list(pipe(form(IMAGES)))
    for image, result in zip(IMAGES, results, strict=True):
        expected = model.predict_dense(image, task="segmentation", labels=ID2LABEL).segmentation
        found = np.full(expected.shape, -1)
        for row in result:
            assert set(row) == {"score", "label", "mask"} and row["mask"].mode == "L"
            key = next(key for key, name in ID2LABEL.items() if name == row["label"])
            found[np.asarray(row["mask"]) == 255] = key
        assert np.array_equal(found, expected.numpy())


def test_arguments_of_depth_estimation_work_or_are_refused(folder, model):
    pipe = pipeline("depth-estimation", model=str(folder), trust_remote_code=True)
    found = []
    for options in (
        {}, {"depth_range": "road"}, {"depth_range": "road", "focal_length": 50.0}, {"scale": 2.0},
        {"target_sizes": (5, 6)}, {"max_num_patches": 16},
    ):  # fmt: skip
        result = pipe(IMAGES[0], **options)
        assert agree(
            result["predicted_depth"], model.predict_dense(IMAGES[0], task="depth", **options).predicted_depth
        )
        found.append(result["predicted_depth"])
    assert not any(torch.equal(found[0], other) for other in found[1:])
    results = pipe(IMAGES, depth_range="road", focal_length=[50.0, 100.0, 200.0], batch_size=2)
    alone = [pipe({"image": IMAGES[k], "focal_length": 50.0 * 2**k}, depth_range="road") for k in range(3)]
    assert all(agree(a["predicted_depth"], b["predicted_depth"]) for a, b in zip(results, alone, strict=True))
    for name in ("labels", "text", "task", "threshold", "timeout", "focal"):
        with pytest.raises(TypeError, match=f"'{name}'"):
            pipe(IMAGES[0], **{name: 1})
    with pytest.raises(ValueError, match="'box'"):
        pipe({"image": IMAGES[0], "box": (0, 0, 9, 9)})
    assert pipe([IMAGES[0], None], on_error="skip")[1] is None


@pytest.mark.parametrize("own", [DenseDepthEstimationPipeline, DenseImageSegmentationPipeline])
def test_with_the_package_imported_a_class_stands_for_the_flag(folder, model, own):
    pipe = pipeline(own.NAME, model=str(folder), pipeline_class=own)
    assert len(pipe(IMAGES, depth_range="road", focal_length=[50.0, None, 70.0], batch_size=2)) == 3
    with pytest.raises(ValueError, match="trust_remote_code"):
        pipeline(own.NAME, model=str(folder))
    # And around a model that is there.
    assert own(model=model, processor=model.get_processor())(IMAGES[0])


def test_arguments_of_image_segmentation_work_or_are_refused(folder, model):
    pipe = pipeline("image-segmentation", model=str(folder), trust_remote_code=True)
    for options in (
        {"labels": ["Cat", "sky"]}, {"labels": {7: "cat", 3: "sky"}, "background": True}, {"threshold": 0.5},
        {"refine": "crf"}, {"target_sizes": (9, 8)}, {"scale": 2.0}, {"subtask": "semantic"},
    ):  # fmt: skip
        labels = options.get("labels", ID2LABEL)
        rest = {name: value for name, value in options.items() if name not in ("labels", "subtask")}
        expected = model.predict_dense(IMAGES[0], labels=labels, **rest).segmentation.numpy()
        rows = pipe(IMAGES[0], **options)
        assert [row["label"] for row in rows] == [labels[key] for key in np.unique(expected) if key >= 0]
        for row, key in zip(rows, (key for key in np.unique(expected) if key >= 0), strict=True):
            assert ((np.asarray(row["mask"]) == 255) == (expected == key)).mean() > 0.95
    for name in ("text", "box", "mask_threshold", "lables"):
        with pytest.raises(TypeError, match=f"'{name}'"):
            pipe(IMAGES[0], **{name: 1})
    assert pipe([b"", IMAGES[0]], on_error="skip", batch_size=2)[0] is None


def test_models_of_the_pipelines_refuse_what_they_do_not_take(folder, model):
    inputs = model.get_processor().image_processor(IMAGES[0], return_tensors="pt")
    for auto in (AutoModelForDepthEstimation, AutoModelForSemanticSegmentation):
        with pytest.raises(TypeError, match="focal_length"):
            auto.from_pretrained(folder)(**inputs, focal_length=50.0)


def test_names_need_not_be_numbered_without_gaps(folder, tmp_path):
    processor = make_processor()
    names = {2: "wall", 5: "floor"}
    make_model(processor, id2label=names).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pipe = pipeline("image-segmentation", model=str(tmp_path), trust_remote_code=True)
    labels = {row["label"] for row in pipe(IMAGES[0])}
    assert labels and labels <= set(names.values())


def test_classes_with_a_background(tmp_path):
    processor = make_processor()
    names = {0: "wall", 3: "<OTHERS>", 4: "floor", 7: "cat"}
    model = make_model(processor, id2label=names)
    with torch.no_grad():  # chances on both sides of one half
        model.lm_head.weight.mul_(8)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    found = pipeline("image-segmentation", model=str(tmp_path), batch_size=2, trust_remote_code=True)(IMAGES)
    areas = {name: 0 for name in names.values()}
    for image, rows in zip(IMAGES, found, strict=True):
        expected = model.predict_dense(image, labels=names, processor=processor).segmentation.numpy()
        assert {row["label"] for row in rows} == {names[key] for key in np.unique(expected)}
        for row in rows:
            key = next(key for key, name in names.items() if name == row["label"])
            assert np.array_equal(np.asarray(row["mask"]) == 255, expected == key)
            areas[row["label"]] += (expected == key).sum()
    assert areas["<OTHERS>"] and sum(area > 0 for area in areas.values()) > 1


def test_classes_without_names_are_refused(folder, tmp_path):
    processor = make_processor()
    make_model(processor).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pipe = pipeline("image-segmentation", model=str(tmp_path), trust_remote_code=True)
    with pytest.raises(ValueError, match="`config.id2label`"):
        pipe(IMAGES[0])
    pipe.model.config.id2label = {0: "cat", 1: "sky"}
    assert {row["label"] for row in pipe(IMAGES[0])} <= {"cat", "sky"}
    with pytest.raises(ValueError, match="panoptic"):
        pipe(IMAGES[0], subtask="panoptic")


def test_models_of_the_pipelines_have_the_checkpoints_weights(folder, model):
    for auto in (AutoModelForDepthEstimation, AutoModelForSemanticSegmentation):
        own, info = auto.from_pretrained(folder, output_loading_info=True)
        assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        for (name, weight), (_, expected) in zip(own.state_dict().items(), model.state_dict().items(), strict=True):
            assert torch.equal(weight, expected), name


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("form", [list, many])
def test_image_text_to_text(folder, model, batch_size, form):
    pipe = pipeline("image-text-to-text", model=str(folder), batch_size=batch_size)
    answers = [row["generated_text"] for (row,) in pipe(form(CHATS), **GREEDY)]
    questions = [chat[0]["content"][1]["text"] for chat in CHATS]
    assert answers == [model.query(*pair, max_new_tokens=5) for pair in zip(IMAGES, questions, strict=True)]
    (full,) = pipe(CHATS[0], generate_kwargs=GREEDY["generate_kwargs"])
    assert full["generated_text"][-1] == {"role": "assistant", "content": answers[0]}


def test_image_text_to_text_without_a_chat(folder):
    pipe = pipeline("image-text-to-text", model=str(folder))
    text = "<|image_pad|> what?"
    together = pipe(images=IMAGES, text=[text] * 3, **GREEDY)
    inputs = ({"images": image, "text": text} for image in IMAGES)
    alone = [row for (row,) in pipe(inputs, **GREEDY)]
    assert [row["generated_text"] for row in together] == [row["generated_text"] for row in alone]


# The package is hidden from the process that runs this, wherever pip has put it.
FRESH = r"""
import sys
from pathlib import Path

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "densemllm" or name.startswith("densemllm."):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
import torch
from transformers import pipeline

source, paths = sys.argv[1], ["0.png", "1.png", "2.png"]
results = {}
for task in ("dense-prediction", "depth-estimation", "image-segmentation", "image-text-to-text"):
    pipe = pipeline(task, model=source, trust_remote_code=True)
    options, inputs = {}, paths
    if task == "dense-prediction":
        options = {"task": ("segmentation", "depth"), "labels": ["wall", "floor"]}
    if task == "image-text-to-text":
        options = {"generate_kwargs": {"max_new_tokens": 5, "do_sample": False}, "return_full_text": False}
        inputs = [
            [{"role": "user", "content": [{"type": "image", "path": path}, {"type": "text", "text": "what?"}]}]
            for path in paths
        ]
    forms = (pipe(list(inputs), batch_size=2, **options), pipe((own for own in inputs), batch_size=2, **options),
             [pipe(own, **options) for own in inputs])
    results[task] = [list(form) for form in forms]
torch.save(results, "results.pt")
"""


@pytest.mark.slow
def test_all_of_them_in_a_fresh_process(folder, model, tmp_path):
    for index, image in enumerate(IMAGES):
        image.save(tmp_path / f"{index}.png")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(folder)],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    results = torch.load(tmp_path / "results.pt", weights_only=False)
    options = {"task": ("segmentation", "depth"), "labels": ["wall", "floor"]}
    for form in range(3):  # a list, a generator, one by one
        dense, depth, classes, answers = (results[task][form] for task in results)
        for index, image in enumerate(IMAGES):
            expected = model.predict_dense(image, **options)
            assert_maps_agree(dense[index]["segmentation"], expected.segmentation)
            assert_maps_agree(dense[index]["predicted_depth"], expected.predicted_depth)
            assert_maps_agree(depth[index]["predicted_depth"], expected.predicted_depth)
            assert dense[index]["depth"].size == depth[index]["depth"].size == image.size
            named = model.predict_dense(image, labels=ID2LABEL).segmentation.numpy()
            assert {row["label"] for row in classes[index]} == {ID2LABEL[key] for key in np.unique(named)}
            for row in classes[index]:
                assert row["score"] is None
                assert np.array_equal(
                    np.asarray(row["mask"]) == 255, np.vectorize(ID2LABEL.get)(named) == row["label"]
                )
            assert answers[index][0]["generated_text"] == model.query(image, "what?", max_new_tokens=5)
