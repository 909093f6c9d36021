"""What differs between language models: layers of several types, positions, and how a prompt is read."""

import re

import pytest
import torch
from transformers import StaticCache

from densemllm.compat_densemllm import ENCODES_IMAGES_FIRST
from tiny import LLAMA, YOUTU, make_config, make_image, make_model, make_processor


SHAPE = {name: value for name, value in LLAMA.items() if name != "model_type"}
LANGUAGE_MODELS = {
    "youtu": YOUTU,
    "llama": LLAMA,
    "qwen2": {**SHAPE, "model_type": "qwen2"},
    "qwen3": {**SHAPE, "model_type": "qwen3", "head_dim": 16},
    "qwen2 with a window": {
        **SHAPE, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1,
    },
    "gemma2": {**SHAPE, "model_type": "gemma2", "head_dim": 16, "sliding_window": 64},
    "gemma3": {**SHAPE, "model_type": "gemma3_text", "head_dim": 16, "sliding_window": 64, "num_hidden_layers": 6},
}  # fmt: skip
every_language_model = pytest.mark.parametrize("text", LANGUAGE_MODELS.values(), ids=LANGUAGE_MODELS)


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def inputs(processor):
    """Two images of 28 and 4 tokens, text before, between and after them."""
    content = [
        {"type": "text", "text": "look"}, {"type": "image", "image": make_image(30, 50)},
        {"type": "image", "image": make_image(16, 16)}, {"type": "text", "text": "what is it?"},
    ]  # fmt: skip
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt",
        add_generation_prompt=True,
    )  # fmt: skip


def generated(model, inputs, **options):
    model.generation_config.eos_token_id = None
    output = model.generate(
        **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True, **options
    )
    return output.sequences, torch.cat(output.logits)


@every_language_model
@pytest.mark.parametrize("vision_attention", ["causal", "bidirectional"])
def test_a_static_cache_gives_what_no_cache_gives(processor, inputs, text, vision_attention):
    model = make_model(processor, text=text, vision_attention=vision_attention)
    expected = generated(model, inputs, use_cache=False)
    for named in ({}, {"mm_token_type_ids": None}):
        own = generated(model, {**inputs, **named}, cache_implementation="static")
        assert torch.equal(own[0], expected[0])
        torch.testing.assert_close(own[1], expected[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text", [LANGUAGE_MODELS["llama"], LANGUAGE_MODELS["gemma3"]], ids=["llama", "gemma3"])
@pytest.mark.parametrize("where", ["argument", "generation config"])
def test_chunks_of_a_prompt_give_the_same_logits_or_are_refused(processor, inputs, text, where):
    model = make_model(processor, text=text, vision_attention="bidirectional")
    expected = generated(model, inputs)[1]
    is_image = inputs["input_ids"][0] == processor.image_token_id
    length, done = len(is_image), []
    for chunk in (4, 31, length - 20, *range(60, length, 7), length, 500):
        cuts = any(is_image[edge - 1] and is_image[edge] for edge in range(chunk, length, chunk))
        options = {"prefill_chunk_size": chunk}
        if where == "generation config":
            model.generation_config.prefill_chunk_size, options = chunk, {}
        if cuts or not ENCODES_IMAGES_FIRST:
            with pytest.raises(ValueError, match=f"`prefill_chunk_size` ({chunk} would cut|leaves images out)"):
                generated(model, inputs, **options)
        else:
            torch.testing.assert_close(generated(model, inputs, **options)[1], expected, atol=1e-5, rtol=1e-5)
        done.append(cuts)
    assert True in done and False in done[:-2]


@pytest.mark.skipif(not ENCODES_IMAGES_FIRST, reason="this version of transformers can't")
def test_chunks_may_cut_what_is_causal_or_in_the_cache(processor, inputs):
    causal = make_model(processor)
    torch.testing.assert_close(
        generated(causal, inputs, prefill_chunk_size=7)[1], generated(causal, inputs)[1], atol=1e-5, rtol=1e-5
    )
    model = make_model(processor, vision_attention="bidirectional")
    image = model.encode_image(make_image(30, 50), processor=processor)
    answer = model.query(image, "what is it?", processor, max_new_tokens=4)
    assert model.query(image, "what is it?", processor, max_new_tokens=4, prefill_chunk_size=3) == answer


@pytest.mark.parametrize("vision_attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("name", ["youtu", "llama", "gemma3"])
def test_a_step_of_decoding_compiles_into_one_graph(processor, inputs, name, vision_attention):
    model = make_model(processor, text=LANGUAGE_MODELS[name], vision_attention=vision_attention)
    assert model._can_compile_fullgraph
    length = inputs["input_ids"].shape[1]
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=length + 2)
    with torch.no_grad():
        model(**inputs, past_key_values=cache)
        expected = model(
            input_ids=torch.cat([inputs["input_ids"], torch.full((1, 1), 7)], dim=1),
            **{key: inputs[key] for key in ("pixel_values", "image_grid_thw")},
        ).logits[:, -1:]
        step = model.prepare_inputs_for_generation(
            torch.full((1, 1), 7), attention_mask=torch.ones(1, length + 1, dtype=torch.long),
            position_ids=torch.full((1, 1), length), past_key_values=cache, use_cache=True,
        )  # fmt: skip
        torch._dynamo.reset()
        compiled = torch.compile(model.forward, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(**step).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("vision_attention", ["causal", "bidirectional"])
def test_sequences_of_a_prompt_see_its_own_images(processor, vision_attention):
    model = make_model(processor, vision_attention=vision_attention)
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": image} for image in images] + [
            {"type": "text", "text": "what is it?"}]}]
        for images in ([make_image(30, 50), make_image(16, 16)], [make_image(24, 24, 1)])
    ]  # fmt: skip
    batch = processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"padding": True}
    )
    options = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
    alone = model.generate(**batch, do_sample=False, **options).logits[0]
    for more in ({"do_sample": True, "num_return_sequences": 3}, {"num_beams": 3}):
        several = model.generate(**batch, **more, **options).logits[0]
        torch.testing.assert_close(several, alone.repeat_interleave(3, dim=0), atol=1e-5, rtol=1e-5)


# ---- plans ----


def test_the_plan_to_shard_names_every_layer_once_and_nothing_else(processor):
    model = make_model(processor)
    modules = dict(model.named_modules())
    shards = {rule: re.compile(re.escape(rule).replace(r"\*", r"\d+")) for rule in model.fsdp_plan}
    for rule, pattern in shards.items():
        assert any(pattern.fullmatch(name) for name in modules), f"{rule} is no part of the model"
    for index in range(2):
        for layers in ("vision_tower.encoder.layers", "language_model.layers"):
            assert sum(bool(pattern.fullmatch(f"model.{layers}.{index}")) for pattern in shards.values()) == 1


# ---- positions ----


SHORT = {**LLAMA, "max_position_embeddings": 76}
TOO_LONG = "tokens, more than the 76 positions of the language model"


@pytest.fixture
def short(processor):
    """A model of 76 positions, and the list of what its parts have run."""
    model = make_model(processor, text=SHORT)
    calls = []
    for module in (model.model.vision_tower, model.model.language_model):
        module.register_forward_pre_hook(lambda module, args: calls.append(type(module).__name__))
    return model, calls


@pytest.mark.parametrize("options", [{}, {"scale": 4.0}, {"do_resize": False}])
def test_images_with_more_tokens_than_positions_are_refused(processor, short, options):
    model, calls = short
    edge = 32 if options.get("scale") else 128
    images = [make_image(16, 16), make_image(edge, edge)]  # the first would fit
    tasks = [
        ("depth", None),
        ("segmentation", ["cat", "sky"]),
        ("segmentation", None),
        (("segmentation", "depth"), ["cat"]),
    ]
    for task, labels in tasks:
        with pytest.raises(ValueError, match=TOO_LONG):
            model.predict_dense(images, task, labels, processor=processor, batch_size=1, **options)
    with pytest.raises(ValueError, match=TOO_LONG):
        model.predict_dense(images[1], "referring", text="cat", processor=processor, **options)
    with pytest.raises(ValueError, match=TOO_LONG):
        model.predict_dense(images, "open_set", ["cat"], processor=processor, **options)
    with pytest.raises(ValueError, match=TOO_LONG):
        model.encode_image(images, processor=processor, batch_size=1, **options)
    assert not calls
    if not options:
        for ask in (
            lambda: model.query(images[1], "?", processor),
            lambda: model.predict(images[1], "pose", processor=processor),
        ):
            with pytest.raises(ValueError, match=TOO_LONG):
                ask()
        assert not calls


def test_prompts_longer_than_the_positions_are_refused(processor, short):
    model, calls = short
    with pytest.raises(ValueError, match=TOO_LONG):  # image and question fit, each without the other
        model.query(make_image(16, 16), "a " * 20, processor)
    assert not calls
    encoded = model.encode_image(make_image(16, 16), processor=processor)
    calls.clear()
    with pytest.raises(ValueError, match=TOO_LONG):
        model.query(encoded, "a " * 20, processor)
    ids = torch.full((1, 77), 7)
    for arguments in ({"input_ids": ids}, {"inputs_embeds": model.get_input_embeddings()(ids)}):
        with pytest.raises(ValueError, match=TOO_LONG):
            model(**arguments)
        with pytest.raises(ValueError, match=TOO_LONG):
            model.generate(**arguments, max_new_tokens=2)
    with pytest.raises(ValueError, match=TOO_LONG):
        model.generate(ids, max_new_tokens=2)
    assert not calls


def test_what_fits_the_positions_runs(processor, short):
    model, calls = short
    model.generation_config.eos_token_id = None
    ids = torch.full((1, 100), 7)
    mask = torch.ones_like(ids)
    mask[:, :40] = 0  # padding needs no positions
    assert model.generate(ids, attention_mask=mask, max_new_tokens=2).shape == (1, 102)
    positions = torch.arange(50).repeat(2)[None]  # two samples in one row
    assert model(input_ids=ids, position_ids=positions).logits.shape[1] == 100
    encoded = model.encode_image(make_image(16, 16), processor=processor)
    tokens = encoded.input_ids.shape[1] + len(model._prompt_ids(processor, "", "?")[1])
    answer = model.query(
        encoded, "?", processor, logits_processor=[lambda ids, scores: scores.index_fill(1, torch.tensor([7]), 1e4)]
    )
    assert len(answer) == 76 - tokens + 1  # the last token needs no position


def rope(kind, factor, **scaling):
    return {"rope_parameters": {"rope_type": kind, "factor": factor, "rope_theta": 1e4, **scaling}}


@pytest.mark.parametrize(
    ("positions", "text", "expected"),
    [
        (48, {}, 48),
        (48, rope("linear", 2.0), 96),
        (48, rope("dynamic", 4.0), 192),
        (48, rope("yarn", 4.0, original_max_position_embeddings=48), 192),
        (192, rope("yarn", 4.0, original_max_position_embeddings=48), 192),
        (None, {"model_type": "bloom"}, None),
    ],
)
def test_number_of_positions(processor, positions, text, expected):
    assert (
        make_config(processor, text={**SHORT, "max_position_embeddings": positions, **text}).num_positions == expected
    )
