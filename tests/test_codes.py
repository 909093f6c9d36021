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
"""Codes of a visual tokenizer: their loss against a plain one, their tokens, and how a model's codes are read."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_fused_loss import Wrapped

import densemllm.loss_densemllm as loss_module
from densemllm import DenseMLLMConfig, DenseMLLMForConditionalGeneration, add_dense_tokens
from densemllm.cli import main as command
from densemllm.parts_densemllm import add_tokens_to
from densemllm.supervision_densemllm import shift_codes
from densemllm.tokens_densemllm import code_ids_of
from densemllm.training.collator import DenseCollator
from tiny import ID2LABEL, make_config, make_image, make_model, make_processor, make_samples


NUM_CODES = 12


def make_coded(seed: int = 0, **kwargs):
    """A tiny model that has codes, and its processor."""
    processor = make_processor()
    add_dense_tokens(processor.tokenizer, 16, 64, num_image_codes=NUM_CODES)
    processor.forget_tokens()
    first, count = code_ids_of(processor.tokenizer)
    model = make_model(processor, seed, image_code_token_id=first, num_image_codes=count, **kwargs)
    model.set_processor(processor)
    return model, processor


@pytest.fixture(scope="module")
def coded():
    return make_coded()


def make_batch(processor, grids=((3, 4), (2, 2), (2, 5)), ignored=(2, 13)):
    """Images of several sizes, the last two of them in one row; and codes of all their vision tokens."""
    images = [make_image(8 * height, 8 * width, place) for place, (height, width) in enumerate(grids)]
    messages = [
        [{"role": "user", "content": [*[{"type": "image"}] * count, {"type": "text", "text": "what?"}]}]
        for count in (1, len(grids) - 1)
    ]
    texts = [processor.apply_chat_template(own, add_generation_prompt=True) for own in messages]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
    n_tokens = sum(height * width for height, width in grids)
    codes = torch.randint(0, NUM_CODES, (n_tokens,), generator=torch.Generator().manual_seed(0))
    codes[list(ignored)] = -100
    return dict(inputs), codes


def plain_loss(model, inputs, codes, grids=((3, 4), (2, 2), (2, 5))):
    """Image by image, from all logits in float64: token i says the code of token i + 1."""
    logits = model(**inputs, skip_logits=False).logits
    of_vision = logits[inputs["input_ids"] == model.config.image_token_id]
    first = model.config.image_code_token_id
    losses, start = [], 0
    for height, width in grids:
        own = of_vision[start : start + height * width, first : first + NUM_CODES].double()
        labels = codes[start : start + height * width]
        for place in range(height * width - 1):
            if labels[place + 1] >= 0:
                losses.append(F.cross_entropy(own[place][None], labels[place + 1][None]))
        start += height * width
    return torch.stack(losses).mean() if losses else torch.zeros(()), len(losses)


def gradients(model):
    found = {name: own.grad.clone() for name, own in model.named_parameters() if own.grad is not None}
    model.zero_grad()
    return found


# ---- loss ----


@pytest.mark.parametrize("chunk", [2**24, 40])
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_loss_is_the_plain_one(chunk, wrapped, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(loss_module, "HEAD_CALL_ROWS", 7)
    model, processor = make_coded()
    model = model.double()
    inputs, codes = make_batch(processor)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    expected, count = plain_loss(model, inputs, codes)
    assert count == 12 + 4 + 10 - 3 - 2  # neither the first of an image, nor what is ignored
    expected.backward()
    expected_gradients = gradients(model)
    if wrapped:
        model.lm_head = Wrapped(model.lm_head)
    output = model(**inputs, image_codes=codes)
    assert output.loss.item() == pytest.approx(0.5 * expected.item(), rel=1e-12)
    assert output.codebook_loss.item() == pytest.approx(expected.item(), rel=1e-12)
    output.codebook_loss.backward()
    own = {name.replace("lm_head.inner", "lm_head"): value for name, value in gradients(model).items()}
    assert set(own) == set(expected_gradients)
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-9, atol=1e-12, msg=name)
    # Of the vocabulary, codes alone get a gradient as outputs; here they are inputs nowhere.
    rows = own["model.language_model.embed_tokens.weight"].abs().sum(dim=1).nonzero()[:, 0].tolist()
    seen = set(inputs["input_ids"].flatten().tolist())
    assert set(rows) <= {*range(model.config.code_ids.start, model.config.code_ids.stop), *seen}


def test_losses_add_up(coded):
    model, processor = coded
    samples = [{**sample, "codes": None} for sample in make_samples(2)]
    batch = DenseCollator(processor, ID2LABEL)(samples)
    assert "image_codes" not in batch
    n_tokens = int((batch["input_ids"] == processor.image_token_id).sum())
    codes = torch.arange(n_tokens) % NUM_CODES
    without, output = model(**batch), model(**batch, image_codes=codes)
    assert without.codebook_loss is None
    assert output.text_loss.item() == without.text_loss.item()
    assert output.ntp_m_loss.item() == without.ntp_m_loss.item()
    expected = without.loss + model.config.codebook_weight * output.codebook_loss
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    half = model(**batch, image_codes=codes, num_items_in_batch=7, num_dense_items_in_batch=5,
                 num_code_items_in_batch=2 * int((shift_codes(codes, batch["input_ids"] == processor.image_token_id)
                                                  >= 0).sum()))  # fmt: skip
    assert half.codebook_loss.item() == pytest.approx(output.codebook_loss.item() / 2, rel=1e-6)


def test_a_model_with_codes_is_the_same_without_them():
    plain, coded = make_model(make_processor()), make_coded()[0]
    with torch.no_grad():  # the first ids and all other weights are those of the plain one
        state = plain.state_dict()
        for name, value in coded.state_dict().items():
            value[: len(state[name])] = state[name] if value.ndim else value
    batch = DenseCollator(make_processor(), ID2LABEL)(make_samples(2))
    own, expected = coded(**batch), plain(**batch)
    assert own.ntp_m_loss.item() == pytest.approx(expected.ntp_m_loss.item(), rel=1e-6)
    assert own.codebook_loss is None


@pytest.mark.parametrize("length", [0, 26])
def test_nothing_to_predict_is_a_loss_of_zero(coded, length):
    model, processor = coded
    inputs, _ = make_batch(processor)
    if not length:  # no image at all
        inputs = dict(processor(text=["what?"], return_tensors="pt"))
    output = model(**inputs, image_codes=torch.full((length,), -1))
    assert output.codebook_loss.item() == output.loss.item() == 0
    output.loss.backward()
    assert all(not gradient.any() for gradient in gradients(model).values())


def test_codes_shift_within_an_image():
    is_image = torch.tensor([[0, 1, 1, 1, 0, 1, 1], [1, 1, 0, 0, 0, 0, 1]]).bool()
    codes = torch.tensor([5, 6, 7, 1, 2, 8, -3, 4])
    expected = [-100, 6, 7, -100, -100, 2, -100, -100, -100, -100, -100, -100, -100, -100]
    assert shift_codes(codes, is_image).tolist() == expected


@pytest.mark.parametrize(
    ("codes", "more", "message"),
    [
        (torch.zeros(25), {}, "one code for each of 26 vision tokens, got 25"),
        (torch.zeros(27), {}, "one code for each of 26 vision tokens, got 27"),
        (torch.full((26,), NUM_CODES), {}, "must be below `config.num_image_codes`, 12, got 12"),
        (torch.zeros(26, 1), {}, r"must be \[n_vision_tokens\], got \(26, 1\)"),
        (torch.zeros(26), {"num_items_in_batch": 4}, "`num_code_items_in_batch` must do so with the codebook loss"),
    ],
)
def test_codes_that_do_not_fit_are_refused(coded, codes, more, message):
    model, processor = coded
    inputs, _ = make_batch(processor)
    with pytest.raises(ValueError, match=message):
        model(**inputs, image_codes=codes.long(), **more)


def test_a_model_without_codes_says_how_it_gets_them():
    processor = make_processor()
    model = make_model(processor)
    inputs, codes = make_batch(processor)
    with pytest.raises(ValueError, match="`add_tokens_to"):
        model(**inputs, image_codes=codes)
    with pytest.raises(ValueError, match="`image_codes` were given to the model without its head"):
        model.model(**inputs, image_codes=codes)
    model.set_processor(processor)
    with pytest.raises(ValueError, match="the task 'codes' needs a tokenizer with `<image_code_0>`"):
        model.predict_dense(make_image(16, 16), task="codes")


# ---- tokens and config ----


def test_a_checkpoint_gets_codes_and_keeps_them(tmp_path):
    processor = make_processor()
    model = make_model(processor)
    size = len(processor.tokenizer)
    assert add_tokens_to(model, processor, num_image_codes=NUM_CODES) == NUM_CODES
    assert (model.config.image_code_token_id, model.config.num_image_codes) == (size, NUM_CODES)
    assert model.config.code_ids == slice(size, size + NUM_CODES)
    assert add_tokens_to(model, processor, num_image_codes=NUM_CODES) == 0
    with pytest.raises(ValueError, match="`num_image_codes` must be 12"):
        add_tokens_to(model, processor, num_image_codes=NUM_CODES + 1)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.num_image_codes == NUM_CODES and again.config.codebook_weight == 0.5
    prediction = again.predict_dense(make_image(16, 24), task="codes")
    assert prediction.codes.shape == (2, 3)


def test_codes_are_no_negatives_of_classes(coded):
    _, processor = coded
    first, count = code_ids_of(processor.tokenizer)
    annotation = {"segmentation": np.zeros((16, 16), np.uint8), "id2label": ID2LABEL}
    found = processor.encode_annotations([annotation], [[1, 4, 4]])
    ranges = found["dense_candidate_ranges"][0].tolist()
    assert all(end <= first or start >= first + count for start, end in ranges if end > start)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_image_codes": 4},
        {"num_image_codes": 4, "image_code_token_id": -1},
        {"num_image_codes": 4, "image_code_token_id": 10**6},
        {"num_image_codes": -1, "image_code_token_id": 3},
        {"codebook_weight": -0.5},
        {"codebook_weight": float("inf")},
    ],
)
def test_a_config_names_what_can_not_be(fields):
    values = make_config(make_processor()).to_dict()
    with pytest.raises(ValueError, match="num_image_codes|codebook_weight"):
        DenseMLLMConfig(**{**values, **fields})


def test_codes_with_gaps_in_the_vocabulary_are_refused():
    tokenizer = make_processor().tokenizer
    tokenizer.add_tokens(["<image_code_0>", "<gap>", "<image_code_1>"])
    with pytest.raises(ValueError, match="2 image codes one after another"):
        code_ids_of(tokenizer)


# ---- targets and maps ----


def test_targets_of_several_images(coded):
    _, processor = coded
    codes = np.array([[3, 1], [-7, 0]])
    found = processor.encode_annotations([{}, {"codes": codes}], [[1, 2, 4], [1, 4, 4]])
    assert found["image_codes"].tolist() == [-100, -100, 3, 1, -100, 0]
    assert not (found["dense_targets"] >= 0).any()
    nothing = processor.encode_annotations([{"codes": np.full((2, 2), -1)}], [[1, 4, 4]])
    assert "image_codes" not in nothing


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((2, 3), int), r"a code for each vision token, \(2, 2\)"),
        (np.zeros(4, int), r"must be \[height, width\]"),
        (np.zeros((2, 2)), "must be integers"),
        (np.full((2, 2), NUM_CODES), "must be below 12"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(coded, codes, message):
    with pytest.raises(ValueError, match=message):
        coded[1].encode_annotations([{"codes": codes}], [[1, 4, 4]])


def test_codes_are_read_where_they_were_learned(coded):
    model, _ = coded
    images = [make_image(16, 24), make_image(8, 8, 1)]
    found = model.predict_dense(images, task="codes", return_logits=True)
    logits = found[0].logits.flatten(1)
    assert found[0].codes.flatten().tolist() == [-1, *logits.argmax(dim=0)[:-1].tolist()]
    scores = logits.softmax(dim=0).amax(dim=0)
    torch.testing.assert_close(found[0].scores.flatten(), torch.cat([torch.zeros(1), scores[:-1]]))
    assert found[1].codes.tolist() == [[-1]]
    with pytest.raises(ValueError, match="`tile` can't be given with the task 'codes'"):
        model.predict_dense(images, task="codes", tile=16)


def test_a_fitted_model_says_the_codes():
    torch.manual_seed(0)
    model, processor = make_coded(vision_attention="bidirectional")
    codes = np.arange(12).reshape(3, 4)[:, ::-1] % NUM_CODES
    batch = DenseCollator(processor)([{"image": make_image(24, 32), "codes": codes}])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = model.train()(**batch).codebook_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < 2 < losses[0]
    found = model.eval().predict_dense(make_image(24, 32), task="codes")
    assert found.codes[0, 0] == -1 and (found.codes.flatten()[1:].numpy() == codes.ravel()[1:]).all()
    assert found.to_pil().size == (4, 3)
    together = model.predict_dense(make_image(24, 32), task=("depth", "codes"))
    assert torch.equal(together.codes, found.codes) and set(together.scores) == {"depth", "codes"}


def test_codes_on_the_command_line(tmp_path):
    model, processor = make_coded()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    make_image(16, 24).save(tmp_path / "a.png")
    words = ["predict", str(tmp_path / "a.png"), "--model", str(tmp_path / "model"), "--task", "codes", "--out"]
    assert command([*words, str(tmp_path / "c.npy")]) == 0
    expected = model.predict_dense(tmp_path / "a.png", task="codes").codes.numpy()
    assert (np.load(tmp_path / "c.npy") == expected).all()
    assert command([*words, str(tmp_path / "c.png"), "--format", "raw"]) == 0
    assert json.loads((tmp_path / "model/config.json").read_text())["num_image_codes"] == NUM_CODES
