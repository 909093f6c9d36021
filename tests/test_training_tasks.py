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
"""Training on what tasks learn: normals, objects that are told apart, and tokens that a checkpoint lacks."""

import io
import json

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor, add_dense_tokens
from densemllm.normals_densemllm import bin_directions, bin_neighbours
from densemllm.parts_densemllm import add_tokens_to
from densemllm.tasks_densemllm import Normals
from densemllm.tokens_densemllm import X_SCALE, Y_SCALE
from densemllm.train_hf import main, run
from densemllm.training.arguments import DenseTrainingArguments
from densemllm.training.collator import DenseCollator
from densemllm.training.datasets import DenseDataset, DenseIterableDataset, DenseSource
from densemllm.training.maps import read_mask
from densemllm.training.samples import Augmentation, read_sample
from densemllm.training.trainer import DenseTrainer
from tiny import ID2LABEL, NUM_DEPTH_BINS, make_image, make_model, make_processor, make_tokenizer


NUM_NORMAL_BINS = 16
LEFT, RIGHT = (-0.6, 0.0, 0.8), (0.6, 0.0, 0.8)  # of two walls


@pytest.fixture(scope="module")
def processor():
    processor = make_processor()
    add_dense_tokens(processor.tokenizer, NUM_DEPTH_BINS, 64, num_normal_bins=NUM_NORMAL_BINS)
    return processor


def make_row(**columns):
    """Two red balls that touch, before a wall whose halves face left and right."""
    pixels = np.full((16, 32, 3), 200, np.uint8)
    pixels[:, 16:] = 90
    pixels[4:12, 8:24] = (255, 0, 0)
    segmentation, instances = np.zeros((2, 16, 32), np.uint8)
    segmentation[4:12, 8:24] = 2
    instances[4:12, 8:16], instances[4:12, 16:24] = 1, 2
    return {"image": PIL.Image.fromarray(pixels), "segmentation": segmentation, "instances": instances, **columns}


def make_normals():
    normals = np.empty((16, 32, 3), np.float32)
    normals[:, :16], normals[:, 16:] = LEFT, RIGHT
    return normals


def trained(model, processor, dataset, folder, **options):
    """A model after a few steps, and its losses."""
    args = DenseTrainingArguments(
        output_dir=str(folder), max_steps=12, learning_rate=1e-2, lr_scheduler_type="constant", logging_steps=1,
        per_device_train_batch_size=2, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    collator = DenseCollator(processor, **options)
    trainer = DenseTrainer(model, args, train_dataset=dataset, data_collator=collator, processing_class=processor)
    trainer.train()
    return model.eval(), [row["ntp_m_loss"] for row in trainer.state.log_history if "ntp_m_loss" in row]


# ---- normals ----


def test_normals_are_learned(processor, tmp_path):
    row = {"image": make_row()["image"], "normals": make_normals()}
    model, losses = trained(make_model(processor), processor, DenseDataset(DenseSource([row] * 2)), tmp_path)
    assert losses[-1] < 0.5 * losses[0]
    found = model.predict_dense(row["image"], task=Normals.name, processor=processor).normals.numpy()
    assert (found[:, :8, 0] < found[:, -8:, 0]).mean() > 0.9


def test_normals_are_mirrored_with_their_image(processor):
    row = {"image": make_image(16, 32), "normals": make_normals()}
    row["normals"][:, 16:] = (0.0, 0.6, 0.8)
    mirrored = DenseDataset(DenseSource([row]), Augmentation(flip_probability=1.0))[0]
    np.testing.assert_allclose(mirrored["normals"][0, 0], (0.0, 0.6, 0.8), atol=1e-6)
    np.testing.assert_allclose(mirrored["normals"][0, -1], RIGHT, atol=1e-6)
    batch = DenseCollator(processor)([mirrored])
    ids = processor.scale_token_ids(Normals.scales[0])
    for token, normal in ((0, (0.0, 0.6, 0.8)), (3, RIGHT)):
        nearest = int((bin_directions(NUM_NORMAL_BINS) @ torch.tensor(normal)).argmax())
        expected = {ids[nearest], *(ids[number - 1] for number in bin_neighbours(NUM_NORMAL_BINS)[nearest])}
        assert set(batch["dense_targets"][token].tolist()) - {-100} == expected


@pytest.mark.parametrize("kind", ["floats", "PNG", "JPEG"])
def test_normals_come_as_numbers_and_as_images(kind):
    normals = make_normals()
    normals[:, :8] = 0
    value = normals
    if kind != "floats":
        pixels = np.round((normals + 1) * 127.5).astype(np.uint8)
        pixels[:8, :8] = 0  # both mean that nothing is known
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, kind, quality=95, subsampling=0)
        value = {"bytes": file.getvalue(), "path": None}
    found = read_sample({"image": make_image(16, 32), "normals": value})["normals"]
    assert found.dtype == np.float32 and (found[:, :8] == 0).all()
    np.testing.assert_allclose(found[:, 8:16], normals[:, 8:16], atol=0.05 if kind == "JPEG" else 0.01)
    with pytest.raises(ValueError, match="row 3, column `normals`: it must be floats, or `uint8`.* got uint16"):
        read_sample({"image": make_image(2, 2), "normals": np.ones((2, 2, 3), np.uint16)}, "row 3")


# ---- objects that are told apart ----


def votes(processor, batch, token):
    """The bins of coordinates that a vision token learns, by axis: of each of its pixels the way to the centre."""
    targets = set(batch["dense_targets"][token].tolist())
    return [
        [number for number, token_id in enumerate(processor.scale_token_ids(scale)) if token_id in targets]
        for scale in (X_SCALE, Y_SCALE)
    ]


def test_objects_are_learned(processor, tmp_path):
    source = DenseSource([make_row()] * 2, id2label=ID2LABEL, thing_labels=["Red Ball"])
    model, losses = trained(make_model(processor), processor, DenseDataset(source), tmp_path)
    assert losses[-1] < 0.5 * losses[0]
    assert model.config.thing_labels == ["red ball"] and model.config.id2label == ID2LABEL


@pytest.mark.parametrize("things", [["red ball"], [2], ("wall", 2)])
def test_tokens_of_things_learn_where_the_centre_is(processor, things):
    dataset = DenseDataset(DenseSource([make_row()], id2label=ID2LABEL, thing_labels=things))
    batch = DenseCollator(processor)([dataset[0]])
    assert votes(processor, batch, 0) == [[], []]  # without a number
    # Objects of 8x8 pixels whose centres are at (12, 8) and (20, 8); 32 and 16 bins: a pixel is in their middle.
    assert votes(processor, batch, 1) == votes(processor, batch, 2) == [list(range(12, 20)), [8, 9, 10, 11]]
    plain = DenseCollator(processor, ID2LABEL, thing_labels=things)([make_row()])
    assert torch.equal(plain["dense_targets"], batch["dense_targets"])


def test_votes_are_learned_only_where_things_are_named(processor):
    without = DenseDataset(DenseSource([make_row()], id2label=ID2LABEL))[0]
    assert "instances" not in without
    for batch in (DenseCollator(processor)([without]), DenseCollator(processor, ID2LABEL)([make_row()])):
        assert votes(processor, batch, 1) == [[], []]
    alone = {name: value for name, value in make_row().items() if name != "segmentation"}
    assert "dense_targets" in DenseCollator(processor, ID2LABEL, thing_labels=[2])([alone])


def test_numbers_of_objects_that_are_not_annotated_give_no_vote(processor):
    row = make_row()
    row["instances"][row["instances"] == 2] = 255
    batch = DenseCollator(processor, ID2LABEL, thing_labels=[2])([row])
    assert votes(processor, batch, 1)[1] == [8, 9, 10, 11] and votes(processor, batch, 2) == [[], []]


def test_one_image_teaches_objects_and_an_expression(processor):
    row = make_row(expressions=["the ball"], expression_instances=[2])
    settings = {"id2label": ID2LABEL, "thing_labels": ["red ball"]}
    stored = row | {name: PIL.Image.fromarray(row[name]) for name in ("segmentation", "instances")}
    stream = Dataset.from_list([stored]).to_iterable_dataset()
    for sample in (
        DenseDataset(DenseSource([row], **settings), Augmentation())[0],
        next(iter(DenseIterableDataset(DenseSource(stream, **settings)))),
    ):
        whole, crop = DenseCollator(processor).entries(sample)
        assert {"segmentation", "instances"} <= set(whole[1]) and set(crop[1]) == {"mask"}
        assert sample["expression"] == "the ball" and whole[2][1].startswith("<box>")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"thing_labels": ["sofa"]}, ValueError, r"`thing_labels` must be names or keys of `id2label`.*sofa"),
        ({"thing_labels": [7]}, ValueError, r"`thing_labels` must be names or keys of `id2label`.*7"),
        ({"thing_labels": "wall"}, TypeError, "`thing_labels` must be a list"),
        ({"thing_labels": ["wall"], "id2label": None}, ValueError, "`thing_labels` needs `id2label`"),
    ],
)
def test_things_that_are_no_classes_are_named(processor, options, error, words):
    with pytest.raises(error, match=words):
        DenseSource([make_row()], **{"id2label": ID2LABEL, **options})
    if options.get("id2label", ID2LABEL):
        with pytest.raises(error, match=words):
            DenseCollator(processor, ID2LABEL, **options)


def test_things_need_coordinates_before_anything_is_trained(tmp_path):
    processor = make_processor()
    processor.tokenizer = make_tokenizer(num_coordinates=0)
    with pytest.raises(ValueError, match="<x_0>.*add_dense_tokens"):
        DenseCollator(processor, ID2LABEL, thing_labels=[2])
    dataset = DenseDataset(DenseSource([make_row()], id2label=ID2LABEL, thing_labels=[2]))
    model = make_model(processor)
    with pytest.raises(ValueError, match="<x_0>.*add_dense_tokens"):
        trained(model, processor, dataset, tmp_path)
    assert model.config.thing_labels is None


def test_things_of_all_sources_are_those_of_the_model(processor, tmp_path):
    other = {0: "sofa", 1: "wall", 2: "red ball"}
    sources = [
        DenseSource([make_row()], id2label=ID2LABEL, thing_labels=["red ball"]),
        DenseSource([make_row()], id2label=other, thing_labels=[0, "red ball"]),
        DenseSource([make_row()], id2label=ID2LABEL),
    ]
    model, _ = trained(make_model(processor), processor, DenseDataset(sources), tmp_path)
    assert model.config.thing_labels == ["red ball", "sofa"]
    assert set(model.config.id2label.values()) == {"wall", "floor", "red ball", "sofa"}


def test_a_mask_that_was_read_stays():
    mask = np.array([[1, 0, -1]], np.int8)
    assert read_mask(mask).tolist() == [[1, 0, -1]] == read_mask(read_mask(mask, 255), 255).tolist()


def test_what_drawn_masks_leave_open_is_learned_as_neither(processor):
    row = make_row(expressions=["the ball"], expression_instances=[1])
    row["instances"][row["instances"] == 2] = 255
    sample = DenseDataset(DenseSource([row], columns=["image", "instances", "expressions", "expression_instances"]))[0]
    _, crop = DenseCollator(processor).entries(sample)
    assert set(np.unique(crop[1]["mask"])) == {-1, 0, 1}


# ---- tokens that a checkpoint lacks ----


def test_added_tokens_leave_what_is_there():
    processor = make_processor()
    model = make_model(processor)
    ids, rows = dict(processor.tokenizer.get_vocab()), model.lm_head.weight.detach().clone()
    old = processor.label_token_ids(list(ID2LABEL.values())), processor.depth_token_ids
    assert add_tokens_to(model, processor, num_coordinates=64, num_normal_bins=5) == 5
    assert len(model.lm_head.weight) == len(processor.tokenizer) == model.config.get_text_config().vocab_size
    assert (
        torch.equal(model.lm_head.weight[: len(rows)], rows) and ids.items() <= processor.tokenizer.get_vocab().items()
    )
    assert (processor.label_token_ids(list(ID2LABEL.values())), processor.depth_token_ids) == old
    assert len(processor.scale_token_ids(Normals.scales[0])) == 5
    assert add_tokens_to(model, processor, num_coordinates=66) == 4
    added = processor.scale_token_ids(X_SCALE)[-1]
    assert 0 < float(model.lm_head.weight[added].detach().norm()) <= float(rows.norm(dim=1).max())
    with pytest.raises(TypeError, match="`num_depth_bins` is not an argument"):
        add_tokens_to(model, processor, num_depth_bins=20)
    with pytest.raises(ValueError, match="`num_normal_bins` must be"):
        add_tokens_to(model, processor, num_normal_bins=0)


def test_the_script_trains_objects_and_normals(tmp_path, capsys):
    processor = make_processor()
    processor.tokenizer = make_tokenizer(num_coordinates=0)
    make_model(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    for name in ("image", "segmentation", "instances", "normals"):
        (tmp_path / "data" / name).mkdir(parents=True)
    row = make_row()
    row["image"].save(tmp_path / "data/image/a.png")
    for name in ("segmentation", "instances"):
        PIL.Image.fromarray(row[name]).save(tmp_path / f"data/{name}/a.png")
    np.save(tmp_path / "data/normals/a.npy", make_normals())
    (tmp_path / "data/id2label.json").write_text(json.dumps(ID2LABEL))
    words = [
        "--model_name_or_path", str(tmp_path / "model"), "--dataset", str(tmp_path / "data"),
        "--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--report_to", "none", "--use_cpu",
        "--disable_tqdm", "true", "--save_strategy", "no", "--thing_labels", "red ball,1",
    ]  # fmt: skip
    assert run([*words, "--num_normal_bins", "8"]) == 2
    assert "needs a tokenizer with `<x_0>`" in capsys.readouterr().err
    main([*words, "--num_normal_bins", "8", "--num_coordinates", "32"])
    model = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path / "out")
    saved = DenseMLLMProcessor.from_pretrained(tmp_path / "out")
    assert model.config.thing_labels == ["red ball", "floor"]
    assert [len(saved.scale_token_ids(scale)) for scale in (X_SCALE, Normals.scales[0])] == [32, 8]
    assert model.predict_dense(row["image"], task="panoptic").segmentation.shape == (16, 32)
    found = model.predict_dense(row["image"], task=("panoptic", "normals"), labels=ID2LABEL)
    assert found.normals.shape == (16, 32, 3) and found.segments_info


def test_adapters_train_no_added_tokens(tmp_path, capsys):
    words = ["--model_name_or_path", str(tmp_path), "--dataset", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert run([*words, "--use_peft", "--num_coordinates", "8", "--do_train", "--use_cpu", "--report_to", "none"]) == 2
