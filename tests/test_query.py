"""Questions about images: `query` answers what `generate` does, or refuses an argument by its name."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig, StoppingCriteria, TextStreamer

from densemllm import DenseMLLMForConditionalGeneration
from densemllm.compat_densemllm import ENCODES_IMAGES_FIRST
from tiny import LLAMA, make_config, make_image, make_model, make_processor


IMAGE = make_image(30, 50)
QUESTION = "what is it?"
GEMMA = {
    **{name: value for name, value in LLAMA.items() if name != "model_type"},
    "model_type": "gemma2", "head_dim": 16, "sliding_window": 24,
}  # fmt: skip


@pytest.fixture(scope="module")
def processor():
    return make_processor()


MODELS = {"causal": {}, "bidirectional": {"vision_attention": "bidirectional"}, "sliding window": {"text": GEMMA}}


@pytest.fixture(scope="module")
def models(processor) -> dict[str, DenseMLLMForConditionalGeneration]:
    made = {name: make_model(processor, **options) for name, options in MODELS.items()}
    for model in made.values():
        model.generation_config.eos_token_id = None
    return made


@pytest.fixture(scope="module", params=MODELS)
def model(models, request):
    return models[request.param]


@pytest.fixture(scope="module")
def causal(models):
    return models["causal"]


def spelled(processor, word):
    """An argument of `generate` with which every answer is `word`, again and again."""
    ids = processor.tokenizer.convert_tokens_to_ids(list(word))
    return {"prefix_allowed_tokens_fn": lambda batch, before: [ids[len(before) % len(ids)]]}


def generated(model, processor, image=IMAGE, question=QUESTION, **options):
    """The texts that `generate` gives for the same prompt."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[image], text=[text], return_tensors="pt")
    torch.manual_seed(0)
    ids = model.generate(**inputs, **{"max_new_tokens": 8, "do_sample": False, **options})
    return processor.post_process_image_text_to_text(ids[:, inputs["input_ids"].shape[1] :])


class Stop(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= 90)


OPTIONS = {
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "beams": {"num_beams": 3},
    "several beams": {"num_beams": 3, "num_return_sequences": 2},
    "samples": {"do_sample": True, "num_return_sequences": 3},
    "beam samples": {"do_sample": True, "num_beams": 2, "num_return_sequences": 2},
    "one sample": {"do_sample": True, "top_p": 0.9, "temperature": 1.5},
    "static cache": {"cache_implementation": "static"},
    "dynamic cache": {"cache_implementation": "dynamic"},
    "no cache": {"use_cache": False},
    **({"chunks": {"prefill_chunk_size": 500}} if ENCODES_IMAGES_FIRST else {}),
    "penalty": {"repetition_penalty": 3.0, "no_repeat_ngram_size": 2},
    "stopping criteria": {"stopping_criteria": [Stop()]},
    "logits processor": {"logits_processor": [lambda ids, scores: scores.index_fill(1, torch.tensor([65]), 1e3)]},
    "allowed tokens": {"prefix_allowed_tokens_fn": lambda batch, ids: [65, 66]},
    "bad words": {"bad_words_ids": [[65]], "suppress_tokens": [66, 67]},
    "end": {"eos_token_id": list(range(100, 200))},
    "length": {"max_new_tokens": 3, "min_new_tokens": 3},
    "config": {"generation_config": GenerationConfig(max_new_tokens=5, do_sample=True, num_return_sequences=2)},
    "greedy config": {"generation_config": GenerationConfig(max_new_tokens=5)},
    "nothing asked": {"return_dict_in_generate": False, "output_scores": None, "assistant_model": None},
    "guidance": {"guidance_scale": 1.5},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(
    ("name", "form"),
    [("causal", "image"), ("causal", "without cache"), ("bidirectional", "encoded"), ("sliding window", "encoded")],
)
def test_query_answers_what_generate_does(models, processor, options, name, form):
    model, image = models[name], IMAGE
    if form != "image":
        image = model.encode_image(IMAGE, processor=processor, use_cache=form == "encoded")
    expected = {**options} if "generation_config" in options else {"max_new_tokens": 8, **options}
    config = options.get("generation_config")
    reference = copy.deepcopy(config)
    known = {"max_new_tokens": config.max_new_tokens, "do_sample": bool(config.do_sample)} if config else {}
    torch.manual_seed(0)
    answer = model.query(image, QUESTION, processor, **expected)
    texts = generated(model, processor, **{**options, **known})
    assert answer == (texts if len(texts) > 1 else texts[0])
    if config is not None:
        assert config.to_dict() == reference.to_dict()


@pytest.mark.parametrize("kind", ["of the same size", "smaller", "text only"])
def test_an_assistant_changes_nothing(model, processor, kind):
    if kind == "text only":
        assistant = AutoModelForCausalLM.from_config(make_config(processor, text=LLAMA).get_text_config()).eval()
    else:
        assistant = make_model(processor, seed=1, text=LLAMA if kind == "smaller" else None)
    expected = generated(model, processor)[0]
    encoded = model.encode_image(IMAGE, processor=processor)
    if kind == "text only" and not ENCODES_IMAGES_FIRST:
        with pytest.raises(ValueError, match="`assistant_model` must be of type 'densemllm'"):
            model.query(encoded, QUESTION, processor, assistant_model=assistant)
        return
    assert model.query(encoded, QUESTION, processor, max_new_tokens=8, assistant_model=assistant) == expected
    assert model.query(IMAGE, QUESTION, processor, max_new_tokens=8, assistant_model=assistant) == expected


@pytest.mark.parametrize("where", ["argument", "config", "model"])
def test_stop_strings_end_an_answer(causal, processor, where, monkeypatch):
    varied = {"max_new_tokens": 12, **spelled(processor, "abcdefghijklmnopqrstuvwxyz")}
    free = causal.query(IMAGE, QUESTION, processor, **varied)
    stop, options = free[3:5], {}
    if where == "argument":
        options = {"stop_strings": stop}
    elif where == "config":
        options = {"generation_config": GenerationConfig(stop_strings=[stop])}
    else:
        monkeypatch.setattr(causal.generation_config, "stop_strings", [stop])
    stopped = causal.query(IMAGE, QUESTION, processor, **varied, **options)
    assert stopped == free[: free.index(stop) + len(stop)] and stopped != free


def test_two_ends_of_an_answer(causal, processor):
    spell = spelled(processor, "abcdef")
    for ends in ("ad", "da"):
        stop_at, end = ends[0], processor.tokenizer.convert_tokens_to_ids(ends[1])
        answer = causal.query(IMAGE, QUESTION, processor, stop_at=stop_at, eos_token_id=end, **spell)
        assert answer[-1] in "ad" and not set(answer[:-1]) & set("ad")


def test_a_stream_of_words(causal, processor, capsys):
    answer = causal.query(
        IMAGE, QUESTION, processor, max_new_tokens=6, streamer=TextStreamer(processor.tokenizer, skip_prompt=True)
    )
    assert capsys.readouterr().out == answer + "\n"


def test_a_list_of_images_is_a_list_of_answers(causal, processor):
    images = [IMAGE, make_image(16, 16, 1), causal.encode_image(make_image(40, 24, 2), processor=processor)]
    questions = ["what?", "who?", "name the cat"]
    alone = [causal.query(image, "what?", processor, max_new_tokens=6) for image in images]
    assert causal.query(images, "what?", processor, max_new_tokens=6) == alone
    assert causal.query(tuple(images[:1]), "what?", processor, max_new_tokens=6) == alone[:1]
    assert causal.query([], "what?", processor) == []
    alone = [causal.query(*pair, processor, max_new_tokens=6) for pair in zip(images, questions, strict=True)]
    assert causal.query(images, questions, processor, max_new_tokens=6) == alone
    options = {"max_new_tokens": 4, "num_beams": 2, "num_return_sequences": 2}
    alone = [causal.query(image, "what?", processor, **options) for image in images]
    assert causal.query(images, "what?", processor, **options) == alone and len(alone[0]) == 2
    camera = {"depth_range": "road", "max_new_tokens": 6}
    alone = [
        causal.query(image, "what?", processor, focal_length=focal_length, **camera)
        for image, focal_length in zip(images[:2], (50, None), strict=True)
    ]
    assert causal.query(images[:2], "what?", processor, focal_length=[50, None], **camera) == alone
    with pytest.raises(ValueError, match="`text` must be one, or one an image, got 2 for 3 images"):
        causal.query(images, questions[:2], processor)
    with pytest.raises(ValueError, match="`focal_length`"):
        causal.query(images, "what?", processor, focal_length=[50, 60])
    with pytest.raises(ValueError, match="`text` must be one, or one an image, got 3 for 1 images"):
        causal.query(IMAGE, questions, processor)


REFUSED = {
    "return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_attentions": True,
    "output_hidden_states": True, "token_healing": True, "input_ids": torch.ones(1, 1, dtype=torch.long),
    "inputs": torch.ones(1, 1, dtype=torch.long), "inputs_embeds": torch.ones(1, 1, 32),
    "attention_mask": torch.ones(1, 1), "pixel_values": torch.ones(4, 48), "past_key_values": DynamicCache(),
    "cache": DynamicCache(), "mm_encoder_outputs": {},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_query_does_not_take_is_named(causal, processor, name, monkeypatch):
    monkeypatch.setattr(causal, "encode_image", None)
    monkeypatch.setattr(causal, "_encode", None)  # nothing is computed before
    with pytest.raises(ValueError, match=f"`{name}` is not taken by `query`"):
        causal.query(IMAGE, QUESTION, processor, **{name: REFUSED[name]})


def test_what_a_config_asks_for_is_named(causal, processor, monkeypatch):
    config = GenerationConfig(return_dict_in_generate=True, max_new_tokens=4)
    with pytest.raises(ValueError, match="`return_dict_in_generate` is not taken by `query`"):
        causal.query(IMAGE, QUESTION, processor, generation_config=config)
    answer = causal.query(IMAGE, QUESTION, processor, max_new_tokens=4)
    monkeypatch.setattr(causal.generation_config, "return_dict_in_generate", True)  # nobody asked `query` for it
    assert causal.query(IMAGE, QUESTION, processor, max_new_tokens=4) == answer


def test_unknown_and_impossible_options_are_refused(causal, processor):
    with pytest.raises(ValueError, match="max_new_tokenz"):
        causal.query(IMAGE, QUESTION, processor, max_new_tokenz=3)
    with pytest.raises(ValueError, match="num_return_sequences"):
        causal.query(IMAGE, QUESTION, processor, num_return_sequences=2)
    with pytest.raises(ValueError, match="`num_return_sequences`"):
        causal.predict(IMAGE, "grounding", "cat", processor=processor, num_beams=2, num_return_sequences=2)


def test_length_of_an_answer(causal, processor):
    prompt = causal.encode_image(IMAGE, processor=processor)
    length = prompt.input_ids.shape[1] + len(causal._prompt_ids(processor, "", QUESTION)[1])
    options = spelled(processor, "a")
    assert len(causal.query(prompt, QUESTION, processor, **options)) == 256
    assert len(causal.query(prompt, QUESTION, processor, max_length=length + 5, **options)) == 5
    config = GenerationConfig(max_new_tokens=7)
    assert len(causal.query(prompt, QUESTION, processor, generation_config=config, **options)) == 7
    assert len(causal.query(prompt, QUESTION, processor, 3, generation_config=config, **options)) == 3


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}])
def test_a_question_leaves_the_cache_as_it_is_and_copies_no_tensor_of_it(model, processor, options, monkeypatch):
    encoded = model.encode_image(IMAGE, processor=processor)
    tensors = [(layer.keys, layer.values) for layer in encoded.past_key_values.layers]
    values = [(keys.clone(), own.clone()) for keys, own in tensors]
    states = [{name: value for name, value in vars(layer).items()} for layer in encoded.past_key_values.layers]
    large = tensors[0][0].numel()
    copied = []
    deepcopy = torch.Tensor.__deepcopy__

    def count(tensor, memo):
        copied.append(tensor.numel())
        return deepcopy(tensor, memo)

    monkeypatch.setattr(torch.Tensor, "__deepcopy__", count)
    first, second = (model.query(encoded, QUESTION, processor, max_new_tokens=4, **options) for _ in range(2))
    assert first == second and max(copied, default=0) < large
    for layer, pair, value, state in zip(encoded.past_key_values.layers, tensors, values, states, strict=True):
        assert layer.keys is pair[0] and layer.values is pair[1]
        assert torch.equal(layer.keys, value[0]) and torch.equal(layer.values, value[1])
        assert all(vars(layer)[name] is own or vars(layer)[name] == own for name, own in state.items())


def test_a_cache_of_another_kind_is_copied_whole(causal, processor):
    encoded = causal.encode_image(IMAGE, processor=processor)
    expected = causal.query(encoded, QUESTION, processor, max_new_tokens=4)

    class Kept(DynamicCache):
        pass

    encoded.past_key_values.__class__ = Kept
    assert causal.query(encoded, QUESTION, processor, max_new_tokens=4) == expected
    assert causal.query(encoded, QUESTION, processor, max_new_tokens=4) == expected
