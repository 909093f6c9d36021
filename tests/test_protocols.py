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
"""Published protocols: what they say, that a user's word wins, and their figures on official layouts, by hand."""

import json

import numpy as np
import pytest
import torch

from densemllm.evaluate_densemllm import main, parse_arguments
from densemllm.evaluation.arguments import EvaluationArguments
from densemllm.evaluation.measured import MEASURED, Settings
from densemllm.evaluation.metrics import METRICS
from densemllm.evaluation.predict import predict_samples
from densemllm.evaluation.protocols import PROTOCOLS, compare_protocol, describe_protocols
from densemllm.formats.folders import load_samples
from densemllm.modeling_densemllm import DenseMLLMForConditionalGeneration
from densemllm.prediction_densemllm import DensePrediction
from densemllm.tasks_densemllm import Classes
from official_trees import TREES
from repository import ROOT
from tiny import ID2LABEL, make_image, make_model, make_processor, make_samples


# Of the official trees, when class A is predicted everywhere: IoU 4/5 and 0; and when class B is: 0 and 1/5.
ALL_A, ALL_B = 0.4, 0.1
# 2.4 m everywhere: right in the first image, wrong in the second; each image counts the same.
DEPTH = {"delta1": 0.5, "abs_rel": (0.1 / 2.5 + 2.6 / 5) / 2}
# The left half of the image, 24 pixels: 16 of the box of 20, and all 4 of that of 4.
MASKS = {"ciou": (16 + 4) / (28 + 24), "giou": (16 / 28 + 4 / 24) / 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    processor = make_processor()
    make_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def answers(monkeypatch):
    """A model that predicts the first of its labels, 2.4 m and the left half; what it is asked is kept."""
    seen = {"calls": [], "questions": [], "answer": ""}

    def predict_dense(self, images, task, labels=None, *, target_sizes, **kwargs):
        single = not isinstance(images, list)
        seen["calls"].append(kwargs)
        sizes = [target_sizes] if single else target_sizes
        found = []
        for size in sizes:
            left = torch.zeros(size, dtype=torch.bool)
            left[:, : size[1] // 2] = True
            first = min(labels) if labels else -1
            found.append(
                DensePrediction(
                    segmentation=torch.full(size, first), predicted_depth=torch.full(size, 2.4), mask=left,
                    segments_info=[], labels=labels,
                )
            )  # fmt: skip
        return found[0] if single else found

    def query(self, images, questions, *args, **kwargs):
        single = not isinstance(images, list)
        count = 1 if single else len(images)
        seen["questions"] += [questions] * count if isinstance(questions, str) else questions
        return seen["answer"] if single else [seen["answer"]] * len(images)

    encode = DenseMLLMForConditionalGeneration.encode_image

    def encode_image(self, images, *args, **kwargs):
        seen["calls"].append(kwargs)
        return encode(self, images, *args, **kwargs)

    monkeypatch.setattr(DenseMLLMForConditionalGeneration, "encode_image", encode_image)
    monkeypatch.setattr(DenseMLLMForConditionalGeneration, "predict_dense", predict_dense)
    monkeypatch.setattr(DenseMLLMForConditionalGeneration, "query", query)
    return seen


def evaluate(folder, tmp_path, name, *more):
    TREES[name](tmp_path / "data")
    words = ["--protocol", name, "--model", folder, "--data", tmp_path / "data", "--output_dir", tmp_path / "out"]
    words += ["--cases", "0", "--device", "cpu", "--max_num_patches", "200000", *more]
    return main(list(map(str, words)))


def test_every_protocol_says_options_that_there_are():
    assert set(TREES) <= set(PROTOCOLS)
    for name, protocol in PROTOCOLS.items():
        args = EvaluationArguments(model="m", data="d", protocol=name)
        assert args.data == f"{protocol.format}:d" and args.task == list(protocol.tasks)
        for option, value in protocol.settings.items():
            assert getattr(args, option) == value
        assert compare_protocol(args, protocol.samples.get(args.split, 1))["differs"] == {}
        assert set(protocol.samples) <= set(protocol.splits) and set(protocol.published) <= set(protocol.splits)
        for figures in protocol.published.values():
            computed = MEASURED[protocol.tasks[0]].make_metrics(Settings(ID2LABEL)).compute()
            assert set(figures) <= set(computed) <= set(METRICS) | {"per_label_iou", "per_label_boundary_iou"}
            assert all(0 < value < 1 for value in figures.values())


@pytest.mark.parametrize("option", ["crop", "min_depth", "max_depth", "split", "scale"])
def test_a_users_word_wins_and_is_reported(option, tmp_path):
    given = {"crop": "none", "min_depth": 0.0, "max_depth": 80.0, "split": "train", "scale": 1.0}[option]
    for words in (["--protocol", "nyuv2", f"--{option}", str(given)], ["config.json"]):
        if words == ["config.json"]:
            words = [str(tmp_path / "config.json")]
            (tmp_path / "config.json").write_text(json.dumps({"protocol": "nyuv2", option: given}))
        args = parse_arguments([*words, "--model", "m", "--data", "d"])
        assert getattr(args, option) == given
        assert compare_protocol(args, 654)["differs"] == {option: [given, PROTOCOLS["nyuv2"].settings[option]]}


def test_what_differs_beside_the_options():
    args = EvaluationArguments(model="m", data="folder:d", protocol="refcoco", split="val", limit=3)
    comparison = compare_protocol(args, 3)
    assert comparison["differs"] == {
        "limit": [3, None], "data": ["folder:d", "refcoco:PATH"], "samples": [3, 10834]
    }  # fmt: skip
    assert comparison["published"] == {"ciou": 0.807}
    assert compare_protocol(EvaluationArguments(model="m", data="d", task=["depth"]), 3) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "ade"}, r"`protocol` must be one of \['ade20k', .*got 'ade'"),
        ({}, "`task` is needed where no `protocol` says it"),
        ({"task": ["segmentation"], "mirror": True}, r"`mirror` needs a `task` of \['depth'\]"),
        ({"protocol": "ade20k", "label_prompts": ["Segment it"]}, "`label_prompts` must have {text} once each"),
        ({"protocol": "ade20k", "tile": [64], "tile_overlap": 64}, "`tile_overlap` must be less than"),
        ({"protocol": "ade20k", "tile": [0]}, "`tile` must be"),
    ],
)
def test_what_cannot_be_asked_is_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        EvaluationArguments(model="m", data="d", **options)


@pytest.mark.parametrize("name", ["ade20k", "coco_stuff", "context59", "voc20", "cityscapes"])
def test_classes(name, folder, tmp_path, answers, capsys):
    TREES[name](tmp_path / "names")
    labels = load_samples(f"{name}:{tmp_path / 'names'}", "validation").facts.id2label
    answers["answer"] = f"<ref>{labels[1]}</ref><ref>a thing that was not asked for</ref>"  # class B
    results = evaluate(folder, tmp_path, name)
    assert results["metrics"]["segmentation"]["mean_iou"] == pytest.approx(ALL_A)
    assert results["metrics"]["answered_labels"]["mean_iou"] == pytest.approx(ALL_B)
    rows = {row["id"]: row for row in results["per_label"]}
    first, second = sorted(rows)[:2]
    assert (rows[first]["iou"], rows[first]["answered_iou"]) == pytest.approx((0.8, 0))
    assert (rows[second]["iou"], rows[second]["answered_iou"]) == pytest.approx((0, 0.2))
    protocol = PROTOCOLS[name]
    first_call = answers["calls"][0]
    assert first_call["scale"] == protocol.options["scale"]
    assert first_call.get("tile") == protocol.options.get("tile")
    question = answers["questions"][0]
    assert question.startswith("Segment: ") and question.endswith(", without the background class.")
    asked = question.removeprefix("Segment: ").removesuffix(", without the background class.").split(", ")
    count = len(rows) + len(protocol.options.get("extra_labels", []))
    assert len(asked) == count and asked != sorted(asked)
    said = capsys.readouterr().out
    assert f"Protocol {name}." in said and "`samples` differs: 1" in said and "Published of the 4B model: mIoU" in said
    assert results["protocol"]["differs"]["max_num_patches"] == [200000, None]
    text = (tmp_path / "out/results.md").read_text()
    assert f"| {protocol.published['validation']['mean_iou']} |" in text and "answered IoU" in text
    assert json.loads((tmp_path / "out/results.json").read_text())["protocol"]["name"] == name


def test_classes_without_an_annotation_compete_and_are_misses(folder, tmp_path, answers):
    answers["answer"] = "<ref>hat</ref>"
    results = evaluate(folder, tmp_path, "coco_stuff")
    assert results["metrics"]["answered_labels"]["mean_iou"] == 0
    assert results["metrics"]["segmentation"]["mean_iou"] == pytest.approx(ALL_A)
    answers["answer"] = "nothing"
    results = evaluate(folder, tmp_path / "again", "ade20k")
    assert results["metrics"]["answered_labels"]["mean_iou"] == 0


@pytest.mark.parametrize("name", ["nyuv2", "kitti_eigen", "ddad", "ibims1", "cityscapes_depth"])
def test_depth(name, folder, tmp_path, answers):
    results = evaluate(folder, tmp_path, name)
    assert results["samples"] == 2
    found = results["metrics"]["depth"]
    assert {key: found[key] for key in DEPTH} == pytest.approx(DEPTH, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        (name, split)
        for name in ("refcoco", "refcoco+", "refcocog")
        for split in ("validation", *PROTOCOLS[name].splits[1:])
    ],
)
def test_referring(name, split, folder, tmp_path, answers):
    results = evaluate(folder, tmp_path, name, "--split", split)
    assert results["samples"] == 2
    found = results["metrics"]["referring"]
    assert {key: found[key] for key in MASKS} == pytest.approx(MASKS)
    assert results["protocol"]["published"] == PROTOCOLS[name].published[split]


def test_detection(folder, tmp_path, answers):
    """One of two is found: at a recall of 0.5 the precision is 1, and 51 of COCO's 101 places are up to there."""
    answers["answer"] = "<ref>person</ref><box><x_8><y_8><x_24><y_24></box>"
    results = evaluate(folder, tmp_path, "coco_detection", "--detection_scales", "1")
    assert results["metrics"]["detection"]["box_ap"] == pytest.approx(51 / 101)
    assert results["protocol"]["differs"]["detection_scales"] == [[1.0], [1.0, 2.0, 3.0, 4.0]]


def test_counting(folder, tmp_path, answers):
    answers["answer"] = "There is one."
    results = evaluate(folder, tmp_path, "tallyqa")
    assert results["metrics"]["counting"] == {"counting_accuracy": 0.5, "counting_rmse": pytest.approx(2**0.5)}
    assert answers["questions"][0] == "How many dogs? Output the final answer as a single number."


def test_names_are_shuffled_the_same_way_in_every_run(folder, tmp_path, answers):
    for run in ("one", "two"):
        evaluate(folder, tmp_path / run, "ade20k", "--label_prompts", "Segment: {text}.", "Find {text}!")
    evaluate(folder, tmp_path / "three", "ade20k", "--seed", "1")
    evaluate(folder, tmp_path / "four", "ade20k", "--shuffle_labels", "false")
    one, two, three, four = answers["questions"]
    assert one == two != three and one.endswith((".", "!"))
    assert four.startswith("Segment: wall, building, sky")


def test_depth_is_averaged_with_that_of_the_mirror_image():
    processor = make_processor()
    model = make_model(processor)
    sample = {"image": make_image(32, 48), "depth": np.full((32, 48), 2.0, np.float32)}
    ((_, _, averaged, _),) = predict_samples(model, processor, [sample], ["depth"], Settings(mirror=True))
    image = sample["image"]
    mirrored = image.transpose(0)  # left and right
    one, other = (model.predict_dense(entry, "depth", processor=processor) for entry in (image, mirrored))
    expected = (one.predicted_depth + other.predicted_depth.flip(1)) / 2
    assert torch.allclose(averaged, expected, atol=1e-4)
    assert not torch.allclose(averaged, one.predicted_depth, atol=1e-2)


def test_only_what_the_model_answers_competes(monkeypatch):
    """With the real `predict_dense`, as `labels_from_answer` has it."""
    processor = make_processor()
    model = make_model(processor)
    samples = make_samples(2)
    names = list(ID2LABEL.values())
    answer = f"<ref>{names[0]}</ref><ref>{names[2]}</ref>"
    monkeypatch.setattr(
        type(model),
        "query",
        lambda self, image, *_, **__: [answer] * len(image) if isinstance(image, list) else answer,
    )
    settings = Settings(ID2LABEL, processor.normalize_labels(ID2LABEL))
    found = predict_samples(model, processor, samples, ["answered_labels"], settings)
    for (_, _, segmentation, _), sample in zip(found, samples, strict=True):
        expected = model.predict_dense(
            sample["image"], labels=ID2LABEL, labels_from_answer=True, processor=processor
        ).segmentation
        assert torch.equal(segmentation, expected)


def test_named_labels_are_those_of_the_models_own_list(monkeypatch):
    processor = make_processor()
    model, samples = make_model(processor), make_samples(2)
    asked = []

    def query(self, image, text, *rest, **options):
        asked.extend(text)
        return ["<ref>wall</ref><ref>unicorn</ref><ref>red ball</ref>"] * len(image)

    monkeypatch.setattr(type(model), "query", query)
    settings = Settings(ID2LABEL, processor.normalize_labels(ID2LABEL))
    found = predict_samples(model, processor, samples, ["named_labels"], settings)
    for (_, _, segmentation, _), sample in zip(found, samples, strict=True):
        expected = model.predict_dense(sample["image"], labels={0: "wall", 2: "red ball"}, processor=processor)
        assert torch.equal(segmentation, expected.segmentation)
    assert asked == [Classes.question] * 2


def test_the_page_has_the_table():
    if not (ROOT / "docs").is_dir():
        pytest.skip("an installed package has no pages")
    assert describe_protocols() in (ROOT / "docs/protocols.md").read_text()
