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
"""The plug-in for lmms-eval: its own evaluator runs our model on our tasks, on samples that are on the disk."""

import json
import shutil
import sys
import tomllib
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
import yaml

from densemllm import DenseMLLMForConditionalGeneration, DensePrediction
from densemllm.answers_densemllm import decode_rle, encode_rle
from densemllm.evaluation.metrics import ReferringMetrics
from repository import require
from tiny import assert_maps_agree, make_image, make_model, make_processor


FOLDER = require("integrations/lmms_eval")
pytest.importorskip("lmms_eval", reason="needs lmms-eval")
GROUP = "lmms_eval.models"
SIZES = [(24, 40), (32, 16)]
EXPRESSIONS = ["the red ball", "the table beside a lamp"]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The plug-in as pip would install it: on the path, with the entry points of its pyproject.toml."""
    with open(FOLDER / "pyproject.toml", "rb") as file:
        entries = tomllib.load(file)["project"]["entry-points"]
    installed = tmp_path_factory.mktemp("site")
    record = installed / "densemllm_lmms_eval-0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: densemllm-lmms-eval\nVersion: 0\n")
    lines = [f"{name} = {value}\n" for name, value in entries[GROUP].items()]
    (record / "entry_points.txt").write_text(f"[{GROUP}]\n{''.join(lines)}")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        patch.syspath_prepend(str(installed))
        from lmms_eval.models import MODEL_REGISTRY_V2

        MODEL_REGISTRY_V2.load_entrypoint_manifests(overwrite=True)
        yield FOLDER / "densemllm_lmms_eval" / "tasks"
    for name in [name for name in sys.modules if name.split(".")[0] == "densemllm_lmms_eval"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    processor = make_processor(referring_prompt="find {text}")
    make_model(processor, seed=1).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def masks():
    generator = np.random.default_rng(0)
    return [generator.random(size) > 0.6 for size in SIZES]


def images():
    return [make_image(*size, seed) for seed, size in enumerate(SIZES)]


def write_rows(folder, plugin, rows, features):
    """A folder as the README says: the data, and a copy of the task beside it."""
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(folder / "test.parquet")
    shutil.copy(plugin / "densemllm_referring.yaml", folder)


def write_samples(folder, plugin):
    rows = [
        {"image": image, "expression": text, "mask": PIL.Image.fromarray(mask.astype(np.uint8) * 255)}
        for image, text, mask in zip(images(), EXPRESSIONS, masks(), strict=True)
    ]
    image = datasets.Image()
    write_rows(folder, plugin, rows, {"image": image, "expression": datasets.Value("string"), "mask": image})


def evaluate(folder, checkpoint, task="densemllm_referring", model="densemllm", **options):
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    arguments = f"pretrained={checkpoint},device=cpu" if model == "densemllm" else options.pop("model_args", None)
    return simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=[task],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False, model_name="densemllm"),
        batch_size=options.pop("batch_size", 2),
        bootstrap_iters=0,
        process_docs_parallel=1,
        **options,
    )


def expected_scores(checkpoint, images, expressions, masks):
    """What our own metrics say of the model's maps."""
    model = DenseMLLMForConditionalGeneration.from_pretrained(checkpoint).eval()
    metrics, found = ReferringMetrics(), []
    for image, text, mask in zip(images, expressions, masks, strict=True):
        found.append(model.predict_dense(image, task="referring", text=text))
        metrics.add(found[-1].mask, torch.from_numpy(mask))
    return found, metrics.compute()


def scores(results, task="densemllm_referring"):
    return {name: results["results"][task][f"{name},none"] for name in ("ciou", "giou", "boundary_iou")}


@pytest.fixture(scope="module")
def evaluated(plugin, checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_samples(folder, plugin)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMMS_EVAL_DATASETS_CACHE", str(folder / "cache"))
        return evaluate(folder, checkpoint, log_samples=True)


def test_scores_of_two_samples_are_those_of_our_own_metrics(evaluated, checkpoint):
    _, expected = expected_scores(checkpoint, images(), EXPRESSIONS, masks())
    assert 0.05 < expected["ciou"] < 0.95  # or else there would be nothing to find wrong
    assert scores(evaluated) == pytest.approx(expected, abs=1e-6)
    assert evaluated["results"]["densemllm_referring"]["unreadable,none"] == 0


def test_answers_are_what_sam3_would_write(evaluated, checkpoint):
    """lmms-eval's own code, given our model's mask, the box around it and its score, writes the same."""
    from lmms_eval.models.simple.sam3 import SAM3

    samples = sorted(evaluated["samples"]["densemllm_referring"], key=lambda sample: sample["doc_id"])
    found, _ = expected_scores(checkpoint, images(), EXPRESSIONS, masks())
    assert len(samples) == 2
    for sample, prediction, (height, width) in zip(samples, found, SIZES, strict=True):
        (answer,) = sample["filtered_resps"]
        rows, columns = np.nonzero(prediction.mask.numpy())
        box = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        score = prediction.scores[prediction.mask].mean()
        theirs = {"masks": [prediction.mask], "boxes": [box], "scores": [score]}
        expected = json.loads(SAM3._format_results(theirs, width, height))
        own = json.loads(answer)
        assert list(own) == list(expected)
        assert own["masks"] == expected["masks"]
        assert own["boxes"][0] == pytest.approx(expected["boxes"][0])
        assert own["scores"] == pytest.approx(expected["scores"], abs=1e-5)
        assert 0.5 <= own["scores"][0] <= 1


def test_sa_co_reads_the_answers(evaluated):
    """The scoring of lmms-eval's own task of masks finds one mask in each, and it is the right one."""
    from lmms_eval.tasks.saco.utils import saco_process_results

    for sample in evaluated["samples"]["densemllm_referring"]:
        (answer,) = sample["filtered_resps"]
        document = {"expression": sample["target"], "human_1_masks": json.loads(answer)["masks"]}
        found = saco_process_results(document, [answer])
        assert (found["IL_TP"], found["count_accuracy"]) == (1, 1)
        assert found["loc_counts"] == {"tp": [1] * 10, "fp": [0] * 10, "fn": [0] * 10}


def test_words_in_place_of_masks_are_counted_and_hit_nothing(plugin, checkpoint, tmp_path):
    write_samples(tmp_path, plugin)
    results = evaluate(tmp_path, checkpoint, model="dummy", model_args="response=a red ball", log_samples=False)
    assert scores(results) == {"ciou": 0, "giou": 0, "boundary_iou": 0}
    assert results["results"]["densemllm_referring"]["unreadable,none"] == 1


def test_masks_may_be_run_lengths(plugin, checkpoint, evaluated, tmp_path):
    from pycocotools import mask as coco_mask

    rows = []
    for image, text, mask in zip(images(), EXPRESSIONS, masks(), strict=True):
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        rle["counts"] = rle["counts"].decode()
        rows.append({"image": image, "expression": text, "mask": rle})
    size, text = datasets.List(datasets.Value("int32")), datasets.Value("string")
    features = {"image": datasets.Image(), "expression": text, "mask": {"size": size, "counts": text}}
    write_rows(tmp_path, plugin, rows, features)
    assert scores(evaluate(tmp_path, checkpoint, batch_size=1)) == pytest.approx(scores(evaluated), abs=1e-6)


def test_refcoco_as_lmms_eval_has_it(plugin, checkpoint, tmp_path):
    """Polygons, and several expressions a row, each of which is a document."""
    rectangles = [(4, 2, 20, 14), (0, 8, 10, 30)]
    texts = [["the red ball", "a lamp"], ["the table beside a lamp"]]
    rows, true = [], []
    for image, (x0, y0, x1, y1), answer in zip(images(), rectangles, texts, strict=True):
        polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
        rows.append({"question_id": "7", "image": image, "answer": answer, "segmentation": polygon})
        true.append(np.zeros((image.height, image.width), dtype=bool))
        true[-1][y0:y1, x0:x1] = True
    text, number = datasets.Value("string"), datasets.Value("float32")
    features = {"question_id": text, "image": datasets.Image(), "answer": datasets.List(text)}
    write_rows(tmp_path, plugin, rows, {**features, "segmentation": datasets.List(number)})
    (tmp_path / "densemllm_referring.yaml").unlink()
    task = {"include": str(plugin / "_refcoco_yaml"), "task": "local_refcoco", "test_split": "val"}
    task |= {"dataset_path": "parquet", "dataset_kwargs": {"data_files": {"val": str(tmp_path / "test.parquet")}}}
    (tmp_path / "local.yaml").write_text(yaml.safe_dump(task))
    results = evaluate(tmp_path, checkpoint, "local_refcoco", log_samples=True)
    assert [sample["doc"]["expression"] for sample in results["samples"]["local_refcoco"]] == [*texts[0], *texts[1]]
    pictures = [images()[0], images()[0], images()[1]]
    _, expected = expected_scores(checkpoint, pictures, [*texts[0], *texts[1]], [true[0], true[0], true[1]])
    assert scores(results, "local_refcoco") == pytest.approx(expected, abs=1e-6)


def test_every_task_is_found(plugin):
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(FOLDER), include_defaults=False)
    refcoco = {f"densemllm_refcoco{kind}_{split}" for kind in ("", "+") for split in ("val", "testA", "testB")}
    refcoco |= {"densemllm_refcocog_val", "densemllm_refcocog_test"}
    assert set(manager.all_subtasks) == refcoco | {"densemllm_referring", "densemllm_rooms"}
    assert set(manager.task_index["densemllm_refcoco"]["task"]) == refcoco
    for name in refcoco:
        config = manager._get_config(name)
        assert name.endswith(config["test_split"]) and config["dataset_kwargs"] is None
        assert config["process_docs"].__name__ == "one_row_each"
    rooms = manager._get_config("densemllm_rooms")
    assert rooms["metric_list"] == manager._get_config("densemllm_referring")["metric_list"]
    assert all(
        Path(file).is_absolute() and Path(file).is_file() for file in rooms["dataset_kwargs"]["data_files"]["test"]
    )


# ---- the model by itself ----


class Asked:
    """The model `densemllm` with documents, and what its vision tower has read."""

    def __init__(self, checkpoint, **options):
        from lmms_eval.models import get_model

        self.lm = get_model("densemllm").create_from_arg_string(f"pretrained={checkpoint},device=cpu", options)
        self.images_read = 0
        self.lm._model.model.vision_tower.register_forward_hook(self.count)

    def count(self, module, arguments, output):
        self.images_read += len(arguments[1])  # a row of the grid for each image

    def __call__(self, documents, texts, **options):
        from lmms_eval.api.instance import Instance

        self.lm.task_dict = {"task": {"test": documents}}
        requests = [
            Instance(
                request_type="generate_until",
                arguments=(text, options, lambda doc: doc["images"], place, "task", "test"),
                idx=0,
                metadata={"task": "task", "doc_id": place, "repeats": 1},
            )
            for place, text in enumerate(texts)
        ]
        return self.lm.generate_until(requests)


@pytest.fixture(scope="module")
def asked(plugin, checkpoint):
    return Asked(checkpoint, batch_size=2)


def test_questions_are_answered_in_words(asked, checkpoint):
    model = DenseMLLMForConditionalGeneration.from_pretrained(checkpoint).eval()
    image, question = images()[0], "what is on the table ?"
    expected = model.query(image, question, max_new_tokens=6)
    assert len(expected) > 2
    document = {"images": [image], "expression": "something else"}
    options = {"max_new_tokens": 6, "temperature": 0, "top_p": 1.0, "image_aspect_ratio": "pad"}
    assert asked([document], [question], **options) == [expected]
    assert asked([document], [question], until=[expected[2:4]], **options) == [expected.split(expected[2:4])[0]]


def test_an_image_is_read_once_for_all_that_is_asked_of_it(asked, checkpoint):
    """Mixed requests, answered in their own order; equal images are one, whatever objects they are."""
    first, second = images()
    asking = [(first, "the red ball"), (first.copy(), "a lamp"), (second, "a lamp"), (first.copy(), "what ?")]
    documents = [{"images": [image], "expression": text if text != "what ?" else None} for image, text in asking]
    before = asked.images_read
    answers = asked(documents, [text for _, text in asking], max_new_tokens=4)
    assert asked.images_read - before == 2
    model = DenseMLLMForConditionalGeneration.from_pretrained(checkpoint).eval()
    for (image, text), answer in zip(asking[:3], answers, strict=False):
        mask = model.predict_dense(image, task="referring", text=text).mask
        assert json.loads(answer)["masks"] == [encode_rle(mask.numpy())]
    assert answers[3] == model.query(first, "what ?", max_new_tokens=4)


def test_a_documents_own_focal_length_goes_before_that_of_all(plugin, tmp_path):
    processor = make_processor(referring_prompt="find {text}", default_depth_range="road")
    make_model(processor, seed=1).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    asked = Asked(tmp_path, batch_size=3, focal_length=50)
    image = make_image(48, 64)
    document = {"images": [image], "expression": "a lamp"}
    answers = asked([document, {**document, "focal_length": 200.0}, document], ["a lamp"] * 3)
    model = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path).eval()
    expected = [model.predict_dense(image, task="referring", text="a lamp", focal_length=f).mask for f in (50, 200)]
    assert not torch.equal(*expected)
    own = [torch.from_numpy(decode_rle(json.loads(answer)["masks"][0])) for answer in answers]
    assert torch.equal(own[0], own[2])
    for mask, whole in zip(own, expected, strict=False):
        assert_maps_agree(mask, whole)


def test_nothing_found_is_three_empty_lists(plugin):
    from densemllm_lmms_eval.model import to_answer

    nothing = DensePrediction(mask=torch.zeros(4, 6, dtype=torch.bool), scores=torch.zeros(4, 6))
    assert json.loads(to_answer(nothing)) == {"masks": [], "boxes": [], "scores": []}


@pytest.mark.parametrize("given, said", [([], "none"), (images(), "Image"), ([{"array": 1}], "dict")])
def test_only_one_image_can_be_asked_about(asked, given, said):
    with pytest.raises(ValueError, match=rf"one image, but document 0 of the task 'task' has .*{said}"):
        asked([{"images": given}], ["what ?"])


def test_what_is_not_there_says_so(asked, checkpoint):
    for name in ("loglikelihood", "generate_until_multi_round"):
        with pytest.raises(NotImplementedError, match=name):
            getattr(asked.lm, name)([])
    for value in (0, "auto", 1.5):
        with pytest.raises(ValueError, match="`batch_size` must be an integer of at least 1"):
            type(asked.lm)(str(checkpoint), batch_size=value)


@pytest.mark.parametrize(
    "answer", ["", "a ball", "[]", "{}", '{"masks": 3}', '{"masks": [{"size": [4, 6]}]}',
               '{"masks": [{"size": [4, 6], "counts": "#"}]}', '{"masks": [{"size": [2, 2], "counts": "4"}]}'],
)  # fmt: skip
def test_an_answer_of_another_shape_is_not_a_mask(plugin, answer):
    from densemllm_lmms_eval.tasks.utils import process_results, read_answer

    assert read_answer(answer, (4, 6)) is None
    nothing = {"mask": encode_rle(np.zeros((4, 6), dtype=bool))}
    assert process_results(nothing, [answer]) == {
        "ciou": [1, 0, 0, 0, 0], "giou": [1, 0, 0, 0, 0], "boundary_iou": [1, 0, 0, 0, 0], "unreadable": 1
    }  # fmt: skip


def test_masks_of_an_answer_are_put_together(plugin):
    from densemllm_lmms_eval.tasks.utils import process_results, read_answer

    whole = np.arange(24).reshape(4, 6) % 3 == 0
    upper, lower = whole.copy(), whole.copy()
    upper[2:], lower[:2] = False, False
    answer = json.dumps({"masks": [encode_rle(upper), encode_rle(lower)], "boxes": [], "scores": []})
    np.testing.assert_array_equal(read_answer(answer, (4, 6)), whole)
    assert process_results({"mask": encode_rle(whole)}, [answer])["giou"][:4] == [1, 8, 8, 1]
    assert not read_answer('{"masks": []}', (4, 6)).any()
    with pytest.raises(ValueError, match="must have `mask`, or a polygon"):
        process_results({"expression": "a lamp"}, [answer])
