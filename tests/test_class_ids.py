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
"""Class ids: ignored values, ids of any size, files of names, and warnings of maps that don't fit them."""

import json
import tracemalloc

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from densemllm import evaluate_densemllm
from densemllm.evaluation.metrics import SegmentationMetrics
from densemllm.evaluation.predict import evaluate_dense
from densemllm.formats.folders import load_samples
from densemllm.formats.labels import find_id2label, load_id2label
from densemllm.prediction_densemllm import DensePrediction
from densemllm.train_hf import main, make_datasets, parse_arguments
from densemllm.training.arguments import DenseTrainingArguments
from densemllm.training.collator import DenseCollator
from densemllm.training.datasets import DenseDataset, DenseIterableDataset, DenseSource
from densemllm.training.samples import read_sample
from densemllm.training.trainer import DenseTrainer
from tiny import ID2LABEL, make_image, make_model, make_processor


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def halves(left, right, dtype=np.int64):
    """A row whose map has two values."""
    values = np.full((16, 16), left, dtype)
    values[:, 8:] = right
    return {"image": make_image(16, 16), "segmentation": values}


# ---- ignored values ----


@pytest.mark.parametrize(
    ("ignore_index", "dtype"), [(-1, np.int64), (-1, np.int32), (65535, np.uint16), (0, np.uint8), (254, np.uint8)]
)
def test_any_value_can_be_the_ignored_one(processor, ignore_index, dtype):
    names = {1: "wall", 255: "floor"}
    row = halves(255, ignore_index, dtype)
    sample = DenseDataset(DenseSource([row], id2label=names, ignore_index=ignore_index))[0]
    plain = DenseCollator(processor, names, ignore_index=ignore_index)([row])
    batch = DenseCollator(processor)([sample])
    for name, values in batch.items():
        torch.testing.assert_close(plain[name], values)
    targets = batch["dense_targets"].unflatten(0, (2, 2))
    assert (targets[:, 0] >= 0).any(-1).all() and (targets[:, 1] == -100).all()
    answer = processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100])
    assert answer.startswith("The target categories include <ref>floor</ref>.")


@pytest.mark.parametrize("ignore_index", [255, 1])
def test_a_class_cannot_be_the_ignored_value(processor, ignore_index):
    names, row = {1: "wall", 255: "floor"}, halves(1, 255)
    for refused in (
        lambda: DenseSource([row], id2label=names, ignore_index=ignore_index),
        lambda: read_sample(row, id2label=names, ignore_index=ignore_index),
        lambda: DenseCollator(processor, names, ignore_index=ignore_index),
        lambda: processor.encode_annotations(
            [{"segmentation": row["segmentation"], "id2label": names, "ignore_index": ignore_index}], [[1, 4, 4]]
        ),
        lambda: SegmentationMetrics(2, ignore_index, sorted(names)),
        lambda: SegmentationMetrics(300, ignore_index),
    ):
        with pytest.raises(ValueError, match=f"`ignore_index` must not be a class.*{ignore_index}.*such as -1"):
            refused()
    for wrong in (None, "255", 1.5, True):
        with pytest.raises(TypeError, match="`ignore_index` must be an integer"):
            DenseSource([row], id2label=names, ignore_index=wrong)


def test_ids_that_are_neither_classes_nor_ignored_are_named():
    for value, words in ((-2, "at least 0.*-2"), (7, "class ids \\[7\\].*`ignore_index` = -1")):
        with pytest.raises(ValueError, match=words):
            read_sample(halves(1, value), id2label=ID2LABEL, ignore_index=-1)


def test_class_255_is_learned_and_scored(processor, tmp_path):
    names = {0: "wall", 255: "floor"}
    rows = [halves(0, 255), halves(255, 255)]
    data = DenseDataset(DenseSource(rows, id2label=names, ignore_index=-1))
    args = DenseTrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    model = make_model(processor)
    trainer = DenseTrainer(model, args, eval_dataset=data, data_collator=DenseCollator(processor))
    metrics = evaluate_dense(model, processor, rows, names, ignore_index=-1)
    assert len(metrics["per_label_iou"]) == 2 and np.isfinite(metrics["per_label_iou"]).all()
    assert trainer.evaluate()["eval_mean_iou"] == pytest.approx(metrics["mean_iou"])
    mixed = DenseDataset([DenseSource(rows, id2label=names, ignore_index=value) for value in (-1, 254)])
    with pytest.raises(ValueError, match="differ in.*`ignore_index`"):
        DenseTrainer(model, args, eval_dataset=mixed, data_collator=DenseCollator(processor))


def test_scripts_take_the_ignored_value(processor, tmp_path):
    make_model(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    rows = [{**halves(0, 255), "segmentation": halves(0, 255)["segmentation"].tolist()} for _ in range(2)]
    Dataset.from_list(rows).save_to_disk(tmp_path / "data")
    (tmp_path / "data/id2label.json").write_text(json.dumps({0: "wall", 255: "floor"}))
    words = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "data"), "--task", "segmentation"]
    words += ["--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    with pytest.raises(ValueError, match="`ignore_index` must not be a class"):
        evaluate_densemllm.main(words)
    results = evaluate_densemllm.main([*words, "--ignore_index", "-1"])
    assert [row["pixels"] for row in results["per_label"]] == [256, 256]
    assert results["options"]["ignore_index"] == -1

    words = ["--model_name_or_path", str(tmp_path / "model"), "--dataset", *[str(tmp_path / "data")] * 2]
    words += ["--output_dir", str(tmp_path / "trained"), "--eval_split", "train", "--use_cpu", "--max_steps", "1"]
    words += ["--report_to", "none", "--save_strategy", "no"]
    with pytest.raises(ValueError, match="`ignore_index` must not be a class"):
        main(words)
    train, evaluation = make_datasets(parse_arguments([*words, "--ignore_index", "-1", "-2"])[1], 0)
    assert [source.ignore_index for source in train.sources] == [-1, -2] and evaluation.sources[0].ignore_index == -1
    assert main([*words, "--ignore_index", "-1"])["eval_pixel_accuracy"] >= 0
    words += ["--depth_scale", "0.001", "1"]
    train, evaluation = make_datasets(parse_arguments([*words, "--ignore_index", "-1"])[1], 0)
    assert [source.depth_scale for source in train.sources] == [0.001, 1] and evaluation.sources[
        0
    ].depth_scale == 0.001


# ---- warnings ----


@pytest.mark.parametrize("streaming", [False, True])
def test_maps_that_do_not_fit_are_warned_of(caplog, streaming):
    def read(*rows):
        caplog.clear()
        source = DenseSource(rows, id2label={0: "wall", 1: "floor"})
        list(DenseIterableDataset(source)) if streaming else DenseDataset(source)
        return [record.getMessage() for record in caplog.records]

    assert read(halves(0, 1)) == read(halves(0, 0), halves(1, 255)) == []
    (found,) = read(*[halves(0, 255)] * 3)  # a mask of 0 and 255 is no map of 0 and 1
    assert "all 3 rows" in found and "never occur: 1 (floor)" in found and "50%" in found
    (found,) = read(halves(255, 255), halves(0, 1), halves(255, 255))
    assert "never occur" not in found and "67%" in found and "`ignore_index` is 255" in found


def test_a_bounded_number_of_maps_is_looked_at(caplog):
    class Rows(list):
        asked = 0

        def __getitem__(self, index):
            self.asked += 1
            return super().__getitem__(index)

    rows = Rows([halves(0, 0)] * 1000)
    DenseDataset(DenseSource(rows, id2label={0: "wall", 1: "floor"}))
    assert rows.asked <= 100 and "100 of 1000 rows" in caplog.text


def test_maps_that_cannot_be_read_are_left_to_reading(caplog, tmp_path):
    (tmp_path / "a.png").write_bytes(b"?")
    rows = [
        {"image": make_image(8, 8), "segmentation": value} for value in (str(tmp_path / "a.png"), "b.png", 3, None)
    ]
    assert len(DenseDataset(DenseSource([*rows, halves(0, 1)], id2label={0: "wall", 1: "floor"}))) == 5
    assert not caplog.records


# ---- ids of any size ----


@settings(max_examples=60, deadline=None)
@given(data=st.data(), share=st.sampled_from([0.0, 0.3, 1.0]))
def test_large_ids_have_the_targets_of_small_ones(processor, data, share):
    count = data.draw(st.integers(1, 5))
    ids = data.draw(st.lists(st.integers(0, 2**40), min_size=count, max_size=count, unique=True))
    names = ["wall", "floor", "red ball", "cat", "chair"][:count]
    small = np.random.default_rng(data.draw(st.integers(0, 99))).integers(-1, count, (24, 24))
    large = np.where(small < 0, -1, np.array(ids)[small])
    maps = [(small, dict(enumerate(names))), (large, dict(zip(ids, names, strict=True)))]
    one, other = (
        processor.encode_annotations(
            [{"segmentation": values, "id2label": id2label, "ignore_index": -1}], [[1, 6, 6]], "labels", share
        )
        for values, id2label in maps
    )
    for name, values in one.items():
        torch.testing.assert_close(torch.sort(other[name]).values, torch.sort(values).values)


def peak_of(function):
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_is_that_of_the_image_whatever_the_ids_are(processor):
    for ids in ((11000, 26001), (5, 3_000_000_000)):
        names = dict(zip(ids, ("wall", "floor"), strict=True))
        row = halves(*ids)
        annotation = {"segmentation": row["segmentation"], "id2label": names}
        processor.encode_annotations([annotation], [[1, 4, 4]])
        assert peak_of(lambda: processor.encode_annotations([annotation], [[1, 4, 4]])) < 2**21  # noqa: B023
        prediction = DensePrediction(
            segmentation=torch.from_numpy(row["segmentation"]), labels=names,
            segments_info=[{"id": key, "label": name} for key, name in names.items()],
        )  # fmt: skip
        assert peak_of(lambda: prediction.to_pil(legend=True)) < 2**24  # noqa: B023
        colors = np.asarray(prediction.to_pil())
        assert (colors[:, :8] == colors[0, 0]).all() and (colors[0, 0] != colors[0, 8]).any()
        metrics = SegmentationMetrics(2, label_ids=ids)
        assert peak_of(lambda: metrics.add(row["segmentation"], row["segmentation"])) < 2**21  # noqa: B023
        assert metrics.compute()["mean_iou"] == 1 and metrics.totals.numel() < 100


def test_a_map_of_many_classes_needs_no_table_of_all(processor):
    values = np.arange(32 * 32).reshape(32, 32)
    names = {key: f"{key}" for key in range(1024)}
    one = processor.encode_annotations([{"segmentation": values, "id2label": names, "ignore_index": -1}], [[1, 8, 8]])
    ids = processor.label_token_ids(names)
    for token, targets in enumerate(one["dense_targets"].tolist()):
        row, column = token // 4 * 8, token % 4 * 8
        own = values[row : row + 8, column : column + 8].ravel().tolist()
        assert {target for target in targets if target >= 0} == {part for key in own for part in ids[key]}


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_metrics_of_large_ids_are_those_of_small_ones(data):
    count = data.draw(st.integers(1, 4))
    ids = data.draw(st.lists(st.integers(0, 2**40), min_size=count, max_size=count, unique=True))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    prediction, reference = (rng.integers(-1, count, (9, 11)) for _ in range(2))
    small, large = SegmentationMetrics(count, -1), SegmentationMetrics(count, -1, ids)
    small.add(prediction, reference)
    large.add(*(np.where(values < 0, -1, np.array(ids)[values]) for values in (prediction, reference)))
    assert torch.equal(small.totals, large.totals)
    for wrong in ([ids[0]] * 2, [-1], []):
        with pytest.raises(ValueError, match="`label_ids`|`num_labels`"):
            SegmentationMetrics(len(wrong), label_ids=wrong)


# ---- files ----


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '{"0": "wall", "1": "café table"}'),
        ("a.json.txt", '{"0": "wall", "1": "café table"}'),
        ("a.txt", "wall\ncafé table\n"),
        ("a.TXT", "0: wall\r\n1: café table\r\n"),
        ("a.txt", "1\tcafé table\n0\twall"),
        ("a.txt", "0,wall\n1,café table"),
    ],
)
def test_names_are_read_from_json_and_text(tmp_path, name, content, encoding):
    (tmp_path / name).write_bytes(content.encode(encoding))
    assert load_id2label(str(tmp_path / name)) == {0: "wall", 1: "café table"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b""), ("a.json", b"[1"), ("a.json", b'["wall"]'), ("a.json", b'{"wall": 0}'),
        ("a.json", b'{"0": 1}'), ("a.json", b"{}"),
        ("a.json", b'{"0": "wall", "00": "floor"}'), ("a.json", "caf\xe9".encode("latin-1")),
        ("a.txt", b""), ("a.txt", b"wall\n\nfloor"), ("a.txt", b"0 wall\n0 floor"),
        ("a.txt", b"0: wall\nfloor"), ("a.txt", b"Idx\tRatio\tName\n1\t0.1\twall"),
        ("a.txt", "caf\xe9".encode("latin-1")),
    ],
)  # fmt: skip
def test_files_of_names_that_cannot_be_used_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        load_id2label(str(tmp_path / name))


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl", "csv"])
@pytest.mark.parametrize("streaming", [False, True])
def test_one_file_is_a_data_set(tmp_path, kind, streaming):
    rows = []
    for index in range(3):
        for column in ("image", "mask"):
            picture = make_image(8, 8, index) if column == "image" else PIL.Image.fromarray(np.eye(8, dtype=np.uint8))
            picture.save(tmp_path / f"{column}{index}.png")
        rows.append({column: str(tmp_path / f"{column}{index}.png") for column in ("image", "mask")})
    path, data = tmp_path / f"a[1].{kind}", Dataset.from_list(rows)
    {"parquet": data.to_parquet, "csv": data.to_csv}.get(kind, data.to_json)(str(path))
    (tmp_path / "id2label.txt").write_text("wall\n")
    read = load_samples(str(path), streaming=streaming)
    samples = list(DenseIterableDataset(DenseSource(read)) if streaming else DenseDataset(DenseSource(read)))
    assert [np.asarray(s["image"]).tolist() for s in samples] == [
        np.asarray(make_image(8, 8, k)).tolist() for k in range(3)
    ]
    assert find_id2label(str(path)) == find_id2label(str(tmp_path)) == str(tmp_path / "id2label.txt")
    with pytest.raises(ValueError, match="`split` must be 'train'"):
        load_samples(str(path), "validation")


def test_files_that_are_no_data_set_are_named(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="a.tar must be a folder.*parquet"):
        load_samples(str(tmp_path / "a.tar"))
    with pytest.raises(ValueError, match="b.parquet is no file"):
        load_samples(str(tmp_path / "b.parquet"))
