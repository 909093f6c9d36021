"""The tower, the model around it, generation and losses."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, Siglip2VisionConfig, Siglip2VisionModel

from densemllm import (
    DenseMLLMForConditionalGeneration,
    DenseMLLMModel,
    DenseMLLMVisionConfig,
    DenseMLLMVisionModel,
    ntp_m_loss,
)
from tiny import LLAMA, VISION, YOUTU, make_config, make_image, make_model, make_processor


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def make_tower(seed=0, **kwargs):
    torch.manual_seed(seed)
    return DenseMLLMVisionModel(DenseMLLMVisionConfig(**{**VISION, **kwargs})).eval()


def make_patches(grids, features=48, seed=0):
    torch.manual_seed(seed)
    grid = torch.tensor([[1, height, width] for height, width in grids])
    return torch.randn(int(grid.prod(-1).sum()), features), grid


def raster_index(height, width, merge):
    """Position of each raster-order patch in merge-block-major order."""
    blocks = torch.arange(height * width).view(height // merge, width // merge, merge, merge)
    return blocks.permute(0, 2, 1, 3).flatten()


def chat(processor, images_and_questions):
    texts, images = [], []
    for pictures, question in images_and_questions:
        content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": question}]
        texts.append(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
        images += pictures
    return processor(images=images or None, text=texts, padding=True, return_tensors="pt")


# ---- tower ----


@pytest.mark.parametrize("grids", [[(4, 4)], [(6, 2), (2, 8), (6, 2)]])
def test_tower_with_table_agrees_with_siglip2(grids):
    shared = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(0)
    reference = Siglip2VisionModel(
        Siglip2VisionConfig(**shared, patch_size=4, num_patches=16, vision_use_head=False)
    ).eval()
    tower = make_tower(
        **shared, patch_size=4, num_patches=16, position_embedding="table", window_size=None, fullatt_block_indexes=[]
    )
    tower.load_state_dict(reference.state_dict())  # strict: the keys are the same

    patches, grid = make_patches(grids)
    output = tower(patches, grid).last_hidden_state
    most = max(height * width for height, width in grids)
    start = 0
    for height, width in grids:
        raster = raster_index(height, width, 2)
        own = patches[start : start + height * width][raster]
        padded = F.pad(own, (0, 0, 0, most - len(own)))[None]
        mask = (torch.arange(most) < len(own))[None]
        expected = reference(padded, mask, torch.tensor([[height, width]])).last_hidden_state[0, : len(own)]
        torch.testing.assert_close(output[start : start + height * width][raster], expected, atol=1e-5, rtol=0)
        start += height * width


def test_released_tower_equals_a_written_out_reference():
    """RoPE and windows by a dense mask over one image, as the method states them."""
    tower = make_tower(num_hidden_layers=3, fullatt_block_indexes=[1], window_size=16)
    height, width = 10, 6  # 5 x 3 cells in windows of 2 x 2 cells: ragged at the right and at the bottom
    patches, grid = make_patches([(height, width)])
    heads, dim = 2, 16
    raster = raster_index(height, width, 2)
    row, column = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    frequency = 10000.0 ** (-torch.arange(0, dim // 2, 2) / (dim // 2))
    angle = torch.cat([row[:, None] * frequency, column[:, None] * frequency], dim=1)
    cos, sin = angle.repeat(1, 2).cos(), angle.repeat(1, 2).sin()
    window = (row // 4) * 100 + column // 4
    same_window = window[:, None] == window[None, :]

    def rotate(x):
        return x * cos + torch.cat([-x[..., dim // 2 :], x[..., : dim // 2]], dim=-1) * sin

    x = tower.embeddings.patch_embedding(patches[raster])
    for index, layer in enumerate(tower.encoder.layers):
        y = layer.layer_norm1(x)
        attention = layer.self_attn
        query, key, value = (
            projection(y).view(-1, heads, dim).transpose(0, 1)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        scores = rotate(query) @ rotate(key).transpose(1, 2) / math.sqrt(dim)
        if index != 1:
            scores = scores.masked_fill(~same_window, float("-inf"))
        x = x + attention.out_proj((scores.softmax(-1) @ value).transpose(0, 1).reshape(height * width, -1))
        x = x + layer.mlp(layer.layer_norm2(x))
    expected = tower.post_layernorm(x)
    torch.testing.assert_close(tower(patches, grid).last_hidden_state[raster], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position_embedding", ["rope", "table"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_images_equal_single_images(position_embedding, implementation):
    tower = make_tower(position_embedding=position_embedding)
    tower.set_attn_implementation(implementation)
    grids = [(4, 6), (10, 2), (4, 6), (2, 2)]
    patches, grid = make_patches(grids)
    together = tower(patches, grid).last_hidden_state
    start = 0
    for row in grid:
        end = start + int(row.prod())
        torch.testing.assert_close(together[start:end], tower(patches[start:end], row[None]).last_hidden_state)
        start = end


def test_eager_and_sdpa_agree_and_eager_gives_attentions():
    tower = make_tower()
    patches, grid = make_patches([(10, 6)])
    sdpa = tower(patches, grid).last_hidden_state
    tower.set_attn_implementation("eager")
    output = tower(patches, grid, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(output.last_hidden_state, sdpa, atol=1e-5, rtol=1e-5)
    assert len(output.hidden_states) == 3 and output.hidden_states[0].shape == (60, 32)
    windows, full = output.attentions
    assert full.shape == (1, 2, 60, 60)
    assert sum(part.shape[0] * part.shape[2] for part in windows) == 60
    for part in (*windows, full):
        torch.testing.assert_close(part.sum(-1), torch.ones(part.shape[:-1]))


def test_window_attention_never_sees_another_window():
    tower = make_tower(num_hidden_layers=1, fullatt_block_indexes=[], window_size=8, position_embedding="rope")
    patches, grid = make_patches([(8, 8)])
    before = tower(patches, grid).last_hidden_state
    patches[:4] += 1.0  # the first cell, which is a window of its own
    changed = (tower(patches, grid).last_hidden_state - before).abs().amax(-1) > 1e-6
    assert changed[:4].all() and not changed[4:].any()


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([[1, 4, 4]], "image_grid_thw"),
        ([[1, 3, 4]], "multiples of 2"),
        ([[2, 2, 4]], r"\(1, h, w\)"),
        ([[1, 0, 4]], "image_grid_thw"),
        ([1, 4, 3], r"\[n_images, 3\]"),
        (None, r"\[n_images, 3\]"),
    ],
)
def test_grid_that_does_not_match_the_patches(grid, message):
    grid = None if grid is None else torch.tensor(grid)
    with pytest.raises(ValueError, match=message):
        make_tower()(torch.randn(12, 48), grid)


def test_patches_of_another_size():
    with pytest.raises(ValueError, match=r"`pixel_values` must be \[n_patches, 48\]"):
        make_tower()(torch.randn(16, 47), torch.tensor([[1, 4, 4]]))


# ---- loading ----


@pytest.mark.parametrize("options", [{}, {"device_map": "auto"}, {"device_map": "cpu"}, {"low_cpu_mem_usage": True}])
@pytest.mark.parametrize("text", [YOUTU, LLAMA], ids=["youtu", "llama"])
def test_loading_through_the_meta_device_gives_the_same_outputs(processor, tmp_path, options, text):
    model = make_model(processor, text=text)
    model.save_pretrained(tmp_path)
    loaded = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path, **options).eval()
    inputs = chat(processor, [([make_image(30, 50)], "what is it?")])
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_sharded_save_keeps_the_tied_head(processor, tmp_path):
    model = make_model(processor)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    for (name, weight), other in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(weight, other), name


def test_tied_head_of_a_language_model_with_other_names(processor):
    gpt2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512}
    model = make_model(processor, text=gpt2)
    assert model.lm_head.weight is model.model.language_model.wte.weight
    inputs = chat(processor, [([make_image(30, 50)], "what?")])
    assert model.generate(**inputs, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(processor, tmp_path, dtype):
    model = make_model(processor)
    model.save_pretrained(tmp_path)
    half = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype).eval()
    assert {p.dtype for p in half.parameters()} == {dtype}
    inputs = chat(processor, [([make_image(30, 50)], "what is it?")])
    with torch.no_grad():
        expected, logits = model(**inputs).logits, half(**inputs).logits.float()
    assert (logits - expected).norm() / expected.norm() < 0.05


def test_attention_implementation_of_each_part(processor):
    model = make_model(processor)
    model.set_attn_implementation({"vision_config": "eager", "text_config": "sdpa"})
    assert model.model.vision_tower.config._attn_implementation == "eager"
    assert model.model.language_model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("vision_attention", ["causal", "bidirectional"])
def test_attention_in_blocks_for_latent_attention_changes_nothing(processor, vision_attention, monkeypatch):
    widths = []
    attend = F.scaled_dot_product_attention

    def record(query, key, value, **kwargs):
        widths.append((query.shape[-1], value.shape[-1]))
        return attend(query, key, value, **kwargs)

    model = make_model(processor, vision_attention=vision_attention)
    model.model.vision_tower.set_attn_implementation("eager")
    inputs = chat(processor, [([make_image(30, 50)], "what is it?"), ([make_image(8, 16, 1)], "?")])
    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    results = {}
    with torch.no_grad():
        results["blocks"] = model(**inputs).logits, model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert set(widths) == {(16, 16)}
    assert model.model.language_model.config._attn_implementation == "sdpa"
    widths.clear()
    with torch.enable_grad():
        results["with gradients"] = model(**inputs).logits.detach(), results["blocks"][1]
    assert set(widths) == {(16, 8)}
    model.model.language_model.set_attn_implementation("eager")
    with torch.no_grad():
        results["eager"] = model(**inputs).logits, model.generate(**inputs, max_new_tokens=6, do_sample=False)
    real = inputs["attention_mask"].bool()
    for logits, text in results.values():
        torch.testing.assert_close(logits[real], results["eager"][0][real], atol=1e-5, rtol=1e-5)
        assert torch.equal(text, results["eager"][1])


def test_base_model_alone(processor):
    model = DenseMLLMModel(make_config(processor)).eval()
    inputs = chat(processor, [([make_image(16, 16)], "?")])
    assert model(**inputs).last_hidden_state.shape == (*inputs["input_ids"].shape, 32)


# ---- images and placeholders ----


def test_batch_of_several_images_a_prompt_equals_single_prompts(processor):
    model = make_model(processor)
    rows = [
        ([make_image(40, 24), make_image(16, 60, 1)], "two"),
        ([], "none at all, but longer"),
        ([make_image(33, 9)], "one"),
    ]
    batch = chat(processor, rows)
    assert (batch["attention_mask"][:, 0] == 0).any()  # left padding
    with torch.no_grad():
        logits = model(**batch).logits
        for index, row in enumerate(rows):
            alone = model(**chat(processor, [row])).logits[0]
            torch.testing.assert_close(logits[index, -len(alone) :], alone, atol=1e-4, rtol=1e-4)


def test_number_of_placeholders_must_match(processor):
    model = make_model(processor)
    inputs = chat(processor, [([make_image(30, 50)], "what is it?")])
    keep = inputs["input_ids"][0] != processor.image_token_id
    keep[keep.logical_not().nonzero()[0]] = True
    short = {name: inputs[name][:, keep] for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="1 image placeholders"):
        model(**short, pixel_values=inputs["pixel_values"], image_grid_thw=inputs["image_grid_thw"])


def test_bidirectional_vision_tokens_see_their_own_image_only(processor):
    model = make_model(processor, vision_attention="bidirectional")
    inputs = chat(processor, [([make_image(16, 16), make_image(16, 24, 1)], "what")])
    is_image = (inputs["input_ids"][0] == processor.image_token_id).nonzero()[:, 0]
    first, second = is_image[:4], is_image[4:]

    def states(pixel_values):
        with torch.no_grad():
            return model.model(**{**inputs, "pixel_values": pixel_values}).last_hidden_state[0]

    before = states(inputs["pixel_values"])
    changed = inputs["pixel_values"].clone()
    changed[-1] += 1.0  # the last patch of the second image
    moved = (states(changed) - before).abs().amax(-1) > 1e-6
    assert not moved[first].any(), "an image must not see a later one"
    assert moved[second].all(), "all of an image must see its last patch"


def test_vision_states_do_not_depend_on_later_text(processor):
    for vision_attention in ("causal", "bidirectional"):
        model = make_model(processor, vision_attention=vision_attention)
        states = []
        for question in ("what is it?", "name the cat"):
            inputs = chat(processor, [([make_image(30, 50)], question)])
            with torch.no_grad():
                hidden = model.model(**inputs).last_hidden_state
            states.append(hidden[inputs["input_ids"] == processor.image_token_id])
        torch.testing.assert_close(*states)


# ---- generation ----


@pytest.mark.parametrize("vision_attention", ["causal", "bidirectional"])
@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=["no cache", "static cache", "assisted"],
)
def test_generation_gives_the_same_text_however_it_is_done(processor, vision_attention, options):
    model = make_model(processor, vision_attention=vision_attention)
    model.generation_config.eos_token_id = None
    inputs = chat(processor, [([make_image(30, 50), make_image(16, 16)], "what is it?")])
    expected = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(model.generate(**inputs, max_new_tokens=8, do_sample=False, **options), expected)


def test_generation_of_a_left_padded_batch_equals_single_prompts(processor):
    model = make_model(processor)
    model.generation_config.eos_token_id = None
    rows = [([make_image(40, 24)], "what is it that you see?"), ([make_image(16, 16)], "?")]
    batch = model.generate(**chat(processor, rows), max_new_tokens=6, do_sample=False)[:, -6:]
    for index, row in enumerate(rows):
        assert torch.equal(
            model.generate(**chat(processor, [row]), max_new_tokens=6, do_sample=False)[0, -6:], batch[index]
        )


def test_beams_and_samples_repeat_the_images(processor):
    model = make_model(processor)
    model.generation_config.eos_token_id = None
    inputs = chat(processor, [([make_image(40, 24), make_image(16, 16)], "two"), ([make_image(16, 60)], "one")])
    options = {"max_new_tokens": 3, "num_return_sequences": 2}
    assert model.generate(**inputs, num_beams=3, **options).shape[0] == 4
    assert model.generate(**inputs, do_sample=True, **options).shape[0] == 4


def test_logits_to_keep_can_pick_the_vision_positions(processor):
    model = make_model(processor)
    inputs = chat(processor, [([make_image(30, 50)], "what is it?")])
    vision = inputs["input_ids"] == processor.image_token_id
    with torch.no_grad():
        everything = model(**inputs).logits
        torch.testing.assert_close(model(**inputs, logits_to_keep=2).logits, everything[:, -2:])
        picked = model(**inputs, logits_to_keep=vision).logits
    torch.testing.assert_close(picked.flatten(0, -2), everything[vision])


# ---- losses ----


@pytest.fixture(scope="module")
def batch(processor):
    images = [make_image(30, 50), make_image(16, 24, 1)]
    inputs = chat(processor, [([image], "name them") for image in images])
    generator = torch.Generator().manual_seed(0)
    annotations = [
        {"segmentation": torch.randint(0, 3, (image.height, image.width), generator=generator).numpy(),
         "id2label": {0: "cat", 1: "red ball", 2: "sky"},
         "depth": 8 * torch.rand(image.height, image.width, generator=generator).numpy()}
        for image in images
    ]  # fmt: skip
    targets = processor.encode_annotations(annotations, inputs["image_grid_thw"])
    labels = inputs["input_ids"].masked_fill(torch.arange(inputs["input_ids"].shape[1]) < 60, -100)
    return {**inputs, "labels": labels}, targets


def test_loss_is_the_weighted_sum_of_its_parts(processor, batch):
    inputs, targets = batch
    model = make_model(processor, ntp_m_weight=0.25)
    with torch.no_grad():
        both, dense = model(**inputs, **targets), model(**{**inputs, "labels": None}, **targets)
        text = model(**inputs)
    assert text.ntp_m_loss is None and dense.text_loss is None
    torch.testing.assert_close(text.loss, text.text_loss)
    torch.testing.assert_close(dense.loss, 0.25 * dense.ntp_m_loss)
    torch.testing.assert_close(both.loss, text.text_loss + 0.25 * dense.ntp_m_loss)


def test_losses_are_those_of_the_full_logits(processor, batch):
    inputs, targets = batch
    model = make_model(processor)
    with torch.no_grad():
        output = model(**inputs, **targets)
    vision = inputs["input_ids"] == processor.image_token_id
    torch.testing.assert_close(output.ntp_m_loss, ntp_m_loss(output.logits[vision], **targets, top_k=8))
    shifted = inputs["labels"].masked_fill(vision, -100)[:, 1:].flatten()
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1).float(), shifted, ignore_index=-100)
    torch.testing.assert_close(output.text_loss, expected)


def test_loss_falls_when_the_model_is_fitted(processor, batch):
    inputs, targets = batch
    model = make_model(processor).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        output = model(**inputs, **targets)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((float(output.text_loss), float(output.ntp_m_loss)))
    assert losses[-1][0] < 0.5 * losses[0][0] and losses[-1][1] < 0.8 * losses[0][1]


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(processor, batch, reentrant):
    inputs, targets = batch
    gradients = []
    for checkpointing in (False, True):
        model = make_model(processor).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(**inputs, **targets, use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_a_batch_without_text_labels_has_text_loss_zero(processor, batch):
    inputs, targets = batch
    inputs = {**inputs, "labels": torch.full_like(inputs["labels"], -100)}
    output = make_model(processor)(**inputs, **targets)
    assert float(output.text_loss) == 0 and float(output.loss) == float(output.ntp_m_loss) > 0


def test_dense_targets_must_match_the_images(processor, batch):
    inputs, targets = batch
    model = make_model(processor)
    with pytest.raises(ValueError, match="`dense_targets` must be"):
        model(**inputs, **{**targets, "dense_targets": targets["dense_targets"][:-1]})
    with pytest.raises(ValueError, match="dense_candidates"):
        model(**inputs, dense_targets=targets["dense_targets"])


def test_auto_model_gives_the_full_model(processor, tmp_path):
    make_model(processor).save_pretrained(tmp_path)
    assert isinstance(AutoModel.from_pretrained(tmp_path), DenseMLLMForConditionalGeneration)
