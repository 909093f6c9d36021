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
"""Visual tokenizers: what they may return, where their codes are made, and training with them from end to end."""

import json
from types import SimpleNamespace

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from test_codes import NUM_CODES, make_coded
from torch import nn
from transformers import JanusVQVAE, JanusVQVAEConfig

from densemllm import DenseMLLMForConditionalGeneration
from densemllm.train_hf import main
from densemllm.training.arguments import DenseTrainingArguments
from densemllm.training.collator import DenseCollator
from densemllm.training.datasets import DenseDataset, DenseSource
from densemllm.training.image_tokenizer import ImageTokenizer, add_codes
from densemllm.training.samples import Augmentation, read_sample
from densemllm.training.trainer import DenseTrainer
from tiny import ID2LABEL, make_image, make_model, make_processor, make_samples


CELL = 4


class Brightness(nn.Module):
    """The brightness of cells of 4 pixels, in 12 steps, as codes; `form` makes of them what `encode` returns."""

    def __init__(self, form=lambda codes: codes, cell=CELL):
        super().__init__()
        self.form, self.cell, self.config = form, cell, SimpleNamespace(codebook_size=NUM_CODES)

    def encode(self, pixel_values):
        assert pixel_values.dtype == torch.float32 and pixel_values.abs().max() <= 1
        cells = F.avg_pool2d(pixel_values, self.cell).mean(dim=1)
        return self.form(((cells + 1) / 2 * (NUM_CODES - 1)).round().long())

    def decode(self, ids):
        shades = ids.view(1, 1, *(ids.shape[1:] if ids.ndim == 3 else (2, 3))) / (NUM_CODES - 1) * 2 - 1
        return F.interpolate(shades.float(), scale_factor=self.cell).expand(-1, 3, -1, -1)


def shades(values, cell) -> PIL.Image.Image:
    """An image of even cells of so many pixels."""
    pixels = np.asarray(values, dtype=np.uint8).repeat(cell, axis=0).repeat(cell, axis=1)
    return PIL.Image.fromarray(pixels).convert("RGB")


VALUES = np.array([[0, 5, 11], [3, 8, 1]])
SHADES = np.round(VALUES * 255 / 11)
IMAGE = shades(SHADES, 8)  # with a vision token for each cell of the tiny models


@pytest.mark.parametrize(
    "form",
    [
        lambda codes: codes,
        lambda codes: codes[0],
        lambda codes: codes[None],
        lambda codes: codes.flatten(1),
        lambda codes: codes.flatten(),
        lambda codes: codes.flatten()[:, None],
        lambda codes: (torch.zeros(1, 3), [None, 0.5, {"indices": codes.int()}]),
        lambda codes: {"latents": torch.zeros(3), "ids": codes.to(torch.uint8)},
    ],
)
def test_codes_in_every_form(form):
    tokenizer = ImageTokenizer(Brightness(form))
    assert tokenizer.num_codes == NUM_CODES and tokenizer.cell == CELL
    codes = tokenizer(shades(SHADES, CELL), (2, 3))
    assert codes.dtype == np.int32 and (codes == VALUES).all()
    image = tokenizer.decode(codes)
    assert image.size == (3 * CELL, 2 * CELL)
    assert np.abs(np.asarray(image)[::CELL, ::CELL, 0] - SHADES).max() <= 1
    unknown = np.where(np.arange(6).reshape(2, 3) == 0, -1, codes)  # as a model says them
    first = np.asarray(tokenizer.decode(torch.from_numpy(unknown)))[0, 0, 0]
    assert first == np.asarray(image)[0, CELL, 0]


def test_a_grid_that_does_not_fit_takes_the_nearest_codes():
    # A tokenizer that gives one row and column more than asked for, but of its own probe.
    def more(codes):
        return codes if codes.shape[-1] == 16 else F.pad(codes.float(), (0, 1, 0, 1)).long()

    assert ImageTokenizer(Brightness(more))(IMAGE, (2, 3)).shape == (2, 3)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda codes: codes.float(), "one tensor of whole numbers, the codes, got 0"),
        (lambda codes: (codes, codes), "one tensor of whole numbers, the codes, got 2"),
        (lambda codes: codes.flatten()[:-3], "as many in a row"),
        (lambda codes: codes[None].repeat(2, 1, 1, 1), "as many in a row"),
        (lambda codes: codes[:, :0], "as many in a row"),
        (lambda codes: codes.nothing, r"can't encode pixel values of \(1, 3, 64, 64\): AttributeError"),
    ],
)
def test_what_is_not_codes_is_refused(form, message):
    with pytest.raises(ValueError, match=message):
        ImageTokenizer(Brightness(form))


def test_what_is_not_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(TypeError, match="with `encode"):
        ImageTokenizer(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="can't be loaded"):
        ImageTokenizer.from_pretrained(tmp_path)
    make_model(make_processor()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must be a model with `encode"):
        ImageTokenizer.from_pretrained(tmp_path)
    reader = Brightness()
    reader.decode = None
    tokenizer = ImageTokenizer(reader)
    with pytest.raises(TypeError, match="has no `decode`"):
        tokenizer.decode(VALUES)
    for codes in (VALUES.ravel(), VALUES * 0.5, np.full((2, 2), -1)):
        with pytest.raises(ValueError, match="`codes` must be integers"):
            ImageTokenizer(Brightness()).decode(codes)


def test_a_model_gets_as_many_codes_as_the_tokenizer_has():
    processor = make_processor()
    model, tokenizer = make_model(processor), ImageTokenizer(Brightness())
    with pytest.raises(ValueError, match="`use_peft`"):
        add_codes(model, processor, tokenizer, trains_embeddings=False)
    add_codes(model, processor, tokenizer)
    assert model.config.num_image_codes == NUM_CODES
    add_codes(model, processor, tokenizer, trains_embeddings=False)  # they are there
    larger = Brightness()
    larger.config.codebook_size = 13
    with pytest.raises(ValueError, match="13 codes, and the model 12"):
        add_codes(model, processor, ImageTokenizer(larger))
    unknown = Brightness()
    unknown.config = None
    assert ImageTokenizer(unknown, num_codes=5).num_codes == 5
    with pytest.raises(ValueError, match="`num_image_codes` is needed"):
        add_codes(model, processor, ImageTokenizer(unknown))


# ---- samples ----


@pytest.mark.parametrize(
    "codes", [VALUES, VALUES.tolist(), VALUES.astype(np.int16), PIL.Image.fromarray(VALUES.astype(np.uint8))]
)
def test_the_column_is_read(codes, tmp_path):
    found = read_sample({"image": IMAGE, "codes": codes})["codes"]
    assert found.dtype == np.int32 and (found == VALUES).all()
    np.save(tmp_path / "codes.npy", np.asarray(codes))
    found = read_sample({"image": IMAGE, "codes": str(tmp_path / "codes.npy")})["codes"]
    assert (found == VALUES).all()


@pytest.mark.parametrize(
    "codes", [[1, 2, 3], [[0.5, 1]], [[1, 2], [3]], [[]], "nowhere.npy", np.zeros((2, 2, 3), int)]
)
def test_a_column_that_is_no_codes_is_refused(codes):
    with pytest.raises((ValueError, OSError), match="codes|nowhere"):
        read_sample({"image": IMAGE, "codes": codes}, "row 3")


def test_samples_with_codes_are_not_changed_and_tokenizers_see_the_change(coded, caplog):
    _, processor = coded
    change = Augmentation(flip_probability=1.0)
    with_codes = read_sample({"image": IMAGE, "codes": VALUES})
    kept = change(with_codes, np.random.default_rng(0))
    assert kept["image"] is with_codes["image"] and "are not augmented" in caplog.text
    collator = DenseCollator(processor, image_tokenizer=ImageTokenizer(Brightness(cell=8)))
    mirrored = change(read_sample({"image": IMAGE}), np.random.default_rng(0))
    assert collator([mirrored])["image_codes"].view(2, 3).tolist() == VALUES[:, ::-1].tolist()
    # A column goes before the tokenizer.
    assert collator([{**with_codes, "codes": VALUES * 0 + 7}])["image_codes"].tolist() == [7] * 6


@pytest.fixture(scope="module")
def coded():
    return make_coded()


def test_batches_have_codes_where_samples_have(coded):
    _, processor = coded
    samples = [{"image": IMAGE, "codes": VALUES}, {"image": make_image(16, 16)}]
    batch = DenseCollator(processor)(samples)
    assert batch["image_codes"].tolist() == [*VALUES.ravel().tolist(), *[-100] * 4]
    with pytest.raises(ValueError, match=r"`annotations\[0\]\['codes'\]` must have a code for each vision token"):
        DenseCollator(processor)([{"image": make_image(16, 16), "codes": VALUES}])
    # An image whose depth has a prompt of its own learns codes without it.
    sample = {"image": IMAGE, "depth": np.full((16, 24), 2.0, np.float32), "codes": VALUES, "depth_range": "camera"}
    batch = DenseCollator(processor)([sample])
    assert len(batch["image_grid_thw"]) == 2
    assert batch["image_codes"].tolist() == [*[-100] * 6, *VALUES.ravel().tolist()]


def test_lengths_know_that_samples_with_codes_keep_their_size():
    rows = [{"image": IMAGE, "codes": VALUES}, {"image": IMAGE}]
    data = DenseDataset(DenseSource(rows), Augmentation(scale=(2.0, 2.0)))
    assert data.estimated_lengths([None]) == [16 * 24, 4 * 16 * 24]


# ---- training ----


def test_the_same_gradients_in_any_parts(tmp_path):
    samples = [
        {"image": make_image(16, 8 * width, width), "codes": np.full((2, width), width)} for width in (1, 2, 3, 4)
    ]
    found = []
    for steps in (1, 4):
        model, processor = make_coded()
        trainer = DenseTrainer(
            model,
            DenseTrainingArguments(
                output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4 // steps, logging_steps=1,
                gradient_accumulation_steps=steps, report_to="none", use_cpu=True, save_strategy="no",
                disable_tqdm=True, learning_rate=1e-3, optim="sgd", max_grad_norm=0.0,
            ),
            train_dataset=samples, data_collator=DenseCollator(processor), processing_class=processor,
        )  # fmt: skip
        trainer.train()
        log = trainer.state.log_history[0]
        expected = 0.5 * log["codebook_loss"]
        assert log["loss"] == pytest.approx(expected, rel=1e-3) and log["text_loss"] == log["ntp_m_loss"] == 0
        found.append({name: own.detach().clone() for name, own in model.named_parameters()})
    for name, own in found[0].items():
        torch.testing.assert_close(own, found[1][name], rtol=1e-5, atol=1e-7, msg=name)


def test_a_run_without_codes_logs_none(coded, tmp_path):
    model, processor = make_coded()
    trainer = DenseTrainer(
        model,
        DenseTrainingArguments(
            output_dir=str(tmp_path), max_steps=1, logging_steps=1, report_to="none", use_cpu=True,
            save_strategy="no", disable_tqdm=True,
        ),
        train_dataset=make_samples(2), data_collator=DenseCollator(processor, ID2LABEL), processing_class=processor,
    )  # fmt: skip
    trainer.train()
    assert "codebook_loss" not in trainer.state.log_history[0] and trainer.state.log_history[0]["ntp_m_loss"] > 0


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tokenizer of transformers, a model without codes, and images."""
    folder, processor = tmp_path_factory.mktemp("codes"), make_processor()
    make_model(processor).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = JanusVQVAEConfig(
        embed_dim=4, num_embeddings=20, latent_channels=32, base_channels=32, channel_multiplier=[1, 1],
        num_res_blocks=1, num_patches=2,
    )  # fmt: skip
    JanusVQVAE(config).save_pretrained(folder / "tokenizer")
    rows = [{"image": make_image(16, 16, seed)} for seed in range(4)]
    Dataset.from_list(rows).save_to_disk(folder / "data")
    return folder


def script(folders, output, *more):
    return main(
        [
            "--model", str(folders / "model"), "--dataset", str(folders / "data"), "--output_dir", str(output),
            "--max_steps", "2", "--report_to", "none", "--use_cpu", "--disable_tqdm", "true", "--save_strategy", "no",
            "--logging_steps", "1", "--flip_probability", "0.5", "--skip_data_check", *map(str, more),
        ]
    )  # fmt: skip


def test_the_script_from_end_to_end(folders, tmp_path):
    script(folders, tmp_path / "out", "--image_tokenizer", folders / "tokenizer", "--codebook_weight", 0.25)
    log = json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"]
    assert log[0]["codebook_loss"] == pytest.approx(np.log(20), rel=0.1)
    assert log[0]["loss"] == pytest.approx(0.25 * log[0]["codebook_loss"], rel=1e-2)
    model = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert model.config.num_image_codes == 20 and model.config.codebook_weight == 0.25
    tokenizer = ImageTokenizer.from_pretrained(folders / "tokenizer")
    codes = model.predict_dense(make_image(16, 16), task="codes").codes
    assert codes.shape == (2, 2) and tokenizer.decode(codes).size == (4, 4)
    with pytest.raises(ValueError, match=r"can't decode codes of \(1, 3\)"):
        tokenizer.decode(codes.new_zeros(1, 3))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--image_tokenizer", "nowhere"], "`image_tokenizer` nowhere can't be loaded"),
        (["--num_image_codes", 10], "has 20 codes, more than `num_codes`, 10"),
        (["--codebook_weight", -1], "`codebook_weight` must be"),
        (["--use_peft"], "`use_peft`"),
    ],
)
def test_the_script_names_what_can_not_be(folders, tmp_path, more, message):
    if "--use_peft" in more:
        pytest.importorskip("peft")
    with pytest.raises(ValueError, match=message):
        script(folders, tmp_path / "out", "--image_tokenizer", folders / "tokenizer", *more)
    assert not (tmp_path / "out/model.safetensors").exists()
