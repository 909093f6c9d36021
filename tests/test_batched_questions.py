"""Questions that are generated as one batch: each answer is that of a call of its own, token for token."""

import pytest
import torch
from transformers import StoppingCriteria, TextStreamer
from transformers.utils import logging

from densemllm import DenseMLLMForConditionalGeneration
from densemllm.tasks_densemllm import TASKS
from tiny import LLAMA, YOUTU, make_image, make_model, make_processor


SHAPE = {name: value for name, value in LLAMA.items() if name != "model_type"}
TEXT_MODELS = {
    "youtu": YOUTU,
    "llama": LLAMA,
    "qwen3": {**SHAPE, "model_type": "qwen3", "head_dim": 16},
    "every layer with a window": {
        **SHAPE, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0,
    },
    "gemma2": {**SHAPE, "model_type": "gemma2", "head_dim": 16, "sliding_window": 24},
    "gemma3": {**SHAPE, "model_type": "gemma3_text", "head_dim": 16, "sliding_window": 64, "num_hidden_layers": 6},
    "bloom": {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 2},
    "chunks, read alone": {
        **SHAPE, "model_type": "llama4_text", "head_dim": 16, "attention_chunk_size": 32, "num_local_experts": 2,
        "intermediate_size_mlp": 48, "layer_types": ["chunked_attention", "full_attention"],
    },
}  # fmt: skip
WINDOWS = ("every layer with a window", "gemma2", "gemma3")  # questions of another length are another batch
ALONE_MODELS = ("chunks, read alone",)
IMAGES = [make_image(*size, seed) for seed, size in enumerate([(30, 50), (16, 16), (40, 24), (16, 40), (64, 48)])]
TEXTS = ["what is it?", "who?", "name the cat on the table", "how many red balls are there?", "sky?"]
ENDS = list(range(60, 110))  # some of many tokens end an answer: soon for one row, late for another


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def make(processor):
    """Models by their options, each made once."""
    made = {}

    def get(text="youtu", **options) -> DenseMLLMForConditionalGeneration:
        key = text, *sorted(options.items())
        if key not in made:
            # Large weights, and no embedding that is read twice: else all answers are one token, again and again.
            shape = {**TEXT_MODELS[text], "initializer_range": 0.4}
            made[key] = make_model(processor, text=shape, tie_word_embeddings=False, **options)
            made[key].generation_config.eos_token_id = None
            made[key].set_processor(processor)
        return made[key]

    return get


@pytest.fixture
def ids(processor, monkeypatch):
    """Answers are the generated ids as text, without padding: two texts may be alike where ids differ."""
    pad = processor.tokenizer.pad_token_id

    def spell(rows):
        rows = [[int(token_id) for token_id in row] for row in rows]
        return [str(row[: 1 + max(place for place, token_id in enumerate(row) if token_id != pad)]) for row in rows]

    monkeypatch.setattr(processor, "post_process_image_text_to_text", spell)


@pytest.fixture
def batches(monkeypatch):
    """The number of rows of each call of `generate`."""
    rows = []
    generate = DenseMLLMForConditionalGeneration.generate

    def count(model, *args, input_ids, **kwargs):
        rows.append(len(input_ids))
        return generate(model, *args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(DenseMLLMForConditionalGeneration, "generate", count)
    return rows


def one_by_one(model, images, texts, **options):
    return [model.query(*pair, **options) for pair in zip(images, texts, strict=True)]


def encoded(model, form):
    """`IMAGES` in one of several forms."""
    if form == "images":
        return IMAGES
    prompts = ["", "look at", "", "look at", ""]
    caches = {"encoded": [True] * 5, "without caches": [False] * 5, "mixed": [True, False, True, True, False]}[form]
    read = [model.encode_image(*row[:2], use_cache=row[2]) for row in zip(IMAGES, prompts, caches, strict=True)]
    return [*read[:3], IMAGES[3], read[4]] if form == "mixed" else read


@pytest.mark.parametrize(
    ("text", "vision_attention"),
    [*((text, "causal") for text in TEXT_MODELS), ("youtu", "bidirectional"), ("gemma3", "bidirectional")],
)
@pytest.mark.parametrize("form", ["images", "encoded", "without caches", "mixed"])
def test_a_batch_answers_what_single_calls_do(make, ids, batches, text, form, vision_attention):
    model = make(text, vision_attention=vision_attention)
    images, options = encoded(model, form), {"max_new_tokens": 8, "eos_token_id": ENDS}
    expected = one_by_one(model, images, TEXTS, **options)
    batches.clear()
    assert model.query(images, TEXTS, **options) == expected
    assert len(set(expected)) == 5 and len({answer.count(",") for answer in expected}) > 1
    assert sum(batches) == 5 and (text in ALONE_MODELS or form == "mixed" or max(batches) > 1 or text in WINDOWS)
    alike = ["what is it?"] * 5
    expected = one_by_one(model, images, alike, **options)
    batches.clear()
    assert model.query(images, "what is it?", **options) == expected
    assert sum(batches) == 5 and (max(batches) > 1) is (text not in ALONE_MODELS)


@pytest.mark.parametrize("form", ["images", "encoded", "without caches"])
def test_images_in_another_order_are_answers_in_that_order(make, ids, form):
    model = make()
    images = encoded(model, form)
    answers = model.query(images, TEXTS, max_new_tokens=8, batch_size=3)
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        shuffled = [[values[place] for place in order] for values in (images, TEXTS)]
        assert model.query(*shuffled, max_new_tokens=8, batch_size=3) == [answers[place] for place in order]


TOGETHER = {
    "beams": {"num_beams": 3},
    "several beams": {"num_beams": 3, "num_return_sequences": 2, "eos_token_id": ENDS},
    "ends": {"eos_token_id": ENDS},
    "ends that are no special tokens": {"eos_token_id": ENDS, "pad_token_id": 65},
    "end of the text": {"stop_at": "a", "bad_words_ids": [[65], [66, 67]]},
    "stop strings": {"stop_strings": ["a", "e", "b"], "max_new_tokens": 20, "eos_token_id": ENDS},
    "suppressed": {"suppress_tokens": [65, 66], "begin_suppress_tokens": [67], "min_new_tokens": 2},
    "without cache": {"use_cache": False},
    "does nothing": {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "temperature": 0.5},
}


@pytest.mark.parametrize("form", ["encoded", "without caches"])
@pytest.mark.parametrize("options", TOGETHER.values(), ids=TOGETHER)
def test_options_of_a_batch(make, ids, batches, options, form):
    model = make("llama")
    images, options = encoded(model, form), {"max_new_tokens": 8, **options}
    expected = one_by_one(model, images, TEXTS, **options)
    batches.clear()
    assert model.query(images, TEXTS, **options) == expected
    assert len(batches) < 5


def test_stop_strings_end_rows_at_different_lengths(make, processor, batches):
    """Texts: the padding of a row that has ended is not in its answer."""
    model = make("llama")
    spelling = [processor.tokenizer.convert_tokens_to_ids(letter) for letter in "abcdefgh"]
    free = [token for token in range(len(processor.tokenizer)) if token not in spelling]
    options = {"suppress_tokens": free, "stop_strings": ["a", "e"], "max_new_tokens": 20}
    for end, together in ((processor.tokenizer.eos_token_id, True), (None, False)):
        model.generation_config.eos_token_id = end
        expected = one_by_one(model, IMAGES, TEXTS, **options)
        batches.clear()
        answers = model.query(IMAGES, TEXTS, **options)
        assert answers == expected and len({len(answer) for answer in answers}) > 1
        assert (max(batches) > 1) is together


class Stop(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= 90)


ALONE = {
    "samples": {"do_sample": True, "num_return_sequences": 2},
    "sample": {"do_sample": True, "temperature": 2.0},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "static cache": {"cache_implementation": "static"},
    "penalty": {"repetition_penalty": 3.0},
    "repeated words": {"no_repeat_ngram_size": 2},
    "whole length": {"max_length": 130, "max_new_tokens": None},
    "stopping criteria": {"stopping_criteria": [Stop()]},
    "allowed tokens": {"prefix_allowed_tokens_fn": lambda batch, before: [65 + (before.shape[0] + batch) % 7]},
    "logits processor": {"logits_processor": [lambda ids, scores: scores.roll(ids.shape[1], dims=1)]},
    "guidance": {"guidance_scale": 1.5},
}


@pytest.mark.parametrize("options", ALONE.values(), ids=ALONE)
def test_what_a_batch_would_change_is_asked_one_by_one(make, ids, batches, options):
    model, options = make("llama"), {"max_new_tokens": 6, **options}
    torch.manual_seed(0)
    expected = one_by_one(model, IMAGES[:3], TEXTS[:3], **options)
    batches.clear()
    torch.manual_seed(0)
    assert model.query(IMAGES[:3], TEXTS[:3], **options) == expected
    assert batches[:3] == [1] * 3


def test_a_stream_of_a_list(make, processor, capsys):
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True)
    answers = make().query(IMAGES[:2], TEXTS[:2], max_new_tokens=4, streamer=streamer)
    assert capsys.readouterr().out == "".join(f"{answer}\n" for answer in answers)


def test_an_assistant_of_a_list(make, processor, ids):
    model = make()
    options = {"max_new_tokens": 6, "assistant_model": make_model(processor, seed=1)}
    assert model.query(IMAGES[:2], TEXTS[:2], **options) == one_by_one(model, IMAGES[:2], TEXTS[:2], max_new_tokens=6)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_size_of_a_batch(make, ids, batches, count):
    model = make()
    images = encoded(model, "encoded")
    expected = one_by_one(model, images, TEXTS, max_new_tokens=4)
    batches.clear()
    assert model.query(images, TEXTS, max_new_tokens=4, batch_size=count) == expected
    assert batches == [min(count, 5 - start) for start in range(0, 5, count)]
    with pytest.raises(ValueError, match="`batch_size` must be a whole number of at least 1, got 0"):
        model.query(images, TEXTS, batch_size=0)


def test_an_image_of_many_questions_is_read_once(make, ids, monkeypatch):
    model, calls = make(), []
    expected = [model.query(IMAGES[0], text, max_new_tokens=4) for text in TEXTS]
    tower = model.model.vision_tower.register_forward_pre_hook(lambda module, args: calls.append(module))
    try:
        assert model.query([IMAGES[0]] * 5, TEXTS, max_new_tokens=4, batch_size=2) == expected
    finally:
        tower.remove()
    assert len(calls) == 1
    for use_cache in (False, True):
        read = model.encode_image(IMAGES[0], use_cache=use_cache)
        assert model.query([read] * 5, TEXTS, max_new_tokens=4) == expected


def test_images_of_very_different_size_are_not_filled_up(make, ids, batches):
    model = make()
    images = [make_image(160, 160, 1), *IMAGES[1:4]]
    read = model.encode_image(images, use_cache=False)
    expected = one_by_one(model, read, TEXTS[:4], max_new_tokens=4)
    batches.clear()
    assert model.query(read, TEXTS[:4], max_new_tokens=4) == expected
    assert sorted(batches) == [1, 3]


@pytest.mark.parametrize("text", ["youtu", "gemma2"])
def test_caches_stay_as_they_are(make, ids, text):
    model = make(text)
    read = encoded(model, "encoded")
    tensors = [(layer.keys, layer.keys.clone()) for one in read for layer in one.past_key_values.layers]
    first, second = (model.query(read, TEXTS, max_new_tokens=4) for _ in range(2))
    assert first == second
    layers = [layer for one in read for layer in one.past_key_values.layers]
    for layer, (keys, values) in zip(layers, tensors, strict=True):
        assert layer.keys is keys and torch.equal(keys, values)


def test_each_answer_ends_where_its_own_positions_do(processor, ids):
    model = make_model(processor, text={**LLAMA, "max_position_embeddings": 96})
    model.generation_config.eos_token_id = None
    read = [model.encode_image(image, processor=processor) for image in IMAGES[:4]]
    expected = one_by_one(model, read, TEXTS[:4], processor=processor)
    assert model.query(read, TEXTS[:4], processor) == expected
    assert len({answer.count(",") for answer in expected}) == 4  # each has room for another number of tokens
    calls = []
    model.model.register_forward_pre_hook(lambda module, args: calls.append(module))
    with pytest.raises(ValueError, match="more than the 96 positions"):
        model.query([*IMAGES[:4], make_image(128, 128)], "?", processor)
    assert not calls


def test_nothing_is_computed_before_all_images_are_read(make, monkeypatch):
    model = make()
    monkeypatch.setattr(model, "_encode", None)
    with pytest.raises(TypeError, match=r"`image\[1\]`"):
        model.query([IMAGES[0], 3], "what?")


def test_progress_of_a_long_list(make, capsys):
    model = make()
    model.query(IMAGES, "what?", max_new_tokens=2, batch_size=5)
    model.query(IMAGES[0], "what?", max_new_tokens=2, batch_size=1)
    assert not capsys.readouterr().err
    model.query(IMAGES, "what?", max_new_tokens=2, batch_size=2)
    assert "questions" in capsys.readouterr().err
    logging.disable_progress_bar()
    try:
        model.query(IMAGES, "what?", max_new_tokens=2, batch_size=2)
    finally:
        logging.enable_progress_bar()
    assert not capsys.readouterr().err


# ---- questions whose answers become objects, or classes ----


def test_predict_of_a_list(make, batches):
    model = make()
    images = encoded(model, "mixed")
    options = {"task": "detection", "max_new_tokens": 12, "stop_at": "a"}
    expected = str([model.predict(image, **options) for image in images])
    batches.clear()
    assert str(model.predict(images, **options)) == expected
    assert len(batches) < 4
    batches.clear()
    assert str(model.predict(images, batch_size=1, **options)) == expected
    assert batches == [1] * 5
    alone = model.predict(IMAGES[0], **options)
    assert str(model.predict([IMAGES[0], None], on_error="skip", **options)) == str([alone, None])
    with pytest.raises(ValueError, match="`batch_size`"):
        model.predict(images, "detection", batch_size=1.5)


@pytest.mark.parametrize(
    "options",
    [
        {"task": "segmentation"},
        {"task": "segmentation", "labels": ["cat", "red ball"], "labels_from_answer": True},
        {"task": "referring", "text": "cat"},
        {"task": "open_set", "labels": ["cat", "red ball"]},
    ],
    ids=["class lists", "classes of an answer", "boxes", "open set"],
)
def test_maps_ask_at_once(make, batches, options, monkeypatch):
    model = make()
    asked = TASKS[options["task"]].answer_options
    monkeypatch.setitem(asked, "max_new_tokens", 12)  # a random model goes on to the end
    expected = [model.predict_dense(image, **options) for image in IMAGES]
    assert batches == [1] * 5
    batches.clear()
    found = model.predict_dense(IMAGES, **options)
    assert batches == [5]
    for own, alone in zip(found, expected, strict=True):
        assert own.text == alone.text
        assert own.box == alone.box and own.segments_info == alone.segments_info


def test_expressions_of_an_image_ask_at_once(make, batches):
    model, texts = make(), ["cat", "the red ball", "a lamp beside the table"]
    expected = [model.predict_dense(IMAGES[0], "referring", text=text).text for text in texts]
    batches.clear()
    assert [one.text for one in model.predict_dense(IMAGES[0], "referring", text=texts)] == expected
    assert batches == [3]


# ---- chats ----

TURNS = [
    {"role": "user", "content": "what is it?"}, {"role": "assistant", "content": "a red ball"},
    {"role": "user", "content": "where?"},
]  # fmt: skip


def generated(model, processor, image, content, system=None):
    """The answer of `generate` to `TURNS`, with `content` as the first of them."""
    chat = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    chat += [{"role": "user", "content": content}]
    chat += [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in TURNS[1:]]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(images=[image], text=[text], return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return processor.post_process_image_text_to_text(output[:, inputs["input_ids"].shape[1] :])[0]


@pytest.mark.parametrize("vision_attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("form", ["image", "encoded", "without cache"])
def test_a_chat_of_several_turns(make, processor, ids, form, vision_attention):
    model = make(vision_attention=vision_attention)
    image, words = {"type": "image"}, {"type": "text", "text": "what is it?"}
    look = {"type": "text", "text": "look at"}

    def read(prompt=""):
        if form == "image":
            return IMAGES[0]
        return model.encode_image(IMAGES[0], prompt=prompt, use_cache=form == "encoded")

    own = model.chat(read(), TURNS, max_new_tokens=8)
    assert own == generated(model, processor, IMAGES[0], [image, words])
    after = [{"role": "user", "content": [words, image]}, *TURNS[1:]]
    assert model.chat(read(), after, max_new_tokens=8) == generated(model, processor, IMAGES[0], [words, image])
    system = [{"role": "system", "content": "be brief"}, *TURNS]
    told = generated(model, processor, IMAGES[0], [image, words], "be brief")
    assert model.chat(read(), system, max_new_tokens=8) == told
    if form != "image":
        expected = generated(model, processor, IMAGES[0], [look, image, words])
        assert model.chat(read("look at"), TURNS, max_new_tokens=8) == expected
    assert model.chat(read(), TURNS[:1], max_new_tokens=8) == model.query(read(), "what is it?", max_new_tokens=8)


def test_chats_about_several_images(make, ids, batches):
    model = make()
    chats = [TURNS, TURNS[:1], [{"role": "system", "content": "be brief"}, *TURNS]]
    images = [IMAGES[0], model.encode_image(IMAGES[1]), IMAGES[2]]
    expected = [model.chat(*pair, max_new_tokens=6) for pair in zip(images, chats, strict=True)]
    batches.clear()
    assert model.chat(images, chats, max_new_tokens=6) == expected and len(batches) < 3
    several = model.chat(images[:2], chats[:2], max_new_tokens=4, num_beams=2, num_return_sequences=2)
    assert [len(answers) for answers in several] == [2, 2]


@pytest.mark.parametrize(
    ("messages", "error", "match"),
    [
        ("what?", TypeError, "`messages` must be a list of dicts"),
        (["what?"], TypeError, "`messages` must be a list of dicts"),
        ([], ValueError, "one of the user's among them"),
        (TURNS[:2], ValueError, "not end with the assistant's"),
        ([{"role": "user"}], ValueError, "`role` and `content`"),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}], ValueError, "can have one part"),
        ([{"role": "user", "content": [{"type": "image", "url": "a.png"}]}], ValueError, "can have one part"),
        ([{"role": "user", "content": "what <|image_pad|> is it?"}], ValueError, "one image placeholder, got 2"),
    ],
)
def test_what_is_not_a_chat_is_named(make, monkeypatch, messages, error, match):
    model = make()
    monkeypatch.setattr(model, "_encode", None)
    with pytest.raises(error, match=match):
        model.chat(IMAGES[0], messages)
    with pytest.raises(ValueError, match="`messages` must be a list of messages for each image"):
        model.chat(IMAGES[:2], [TURNS])
