"""`DenseClient` gives what the model gives, against a server on loopback that answers in vLLM's form."""

import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from densemllm import DenseMLLMForConditionalGeneration
from densemllm.client import DenseClient, OutputEmbedding, ServerError
from tiny import ID2LABEL, LLAMA, make_image, make_model, make_processor
from vllm_server import serving


REFERRING_PROMPT = "find {text}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "model"
    processor = make_processor(referring_prompt=REFERRING_PROMPT)
    make_model(processor, id2label=ID2LABEL).save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return DenseMLLMForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def pooling(model):
    with serving(model, pools=True) as server:
        yield server


@pytest.fixture(scope="module")
def chatting(model):
    with serving(model, pools=False) as server:
        yield server


@pytest.fixture
def client(folder, pooling, chatting):
    for server in (pooling, chatting):
        server.seen.clear()
        server.faults.clear()
    with DenseClient(pooling.url, folder, chat_url=chatting.url, retries=0) as client:
        yield client


def assert_same(own, expected) -> None:
    """Two predictions with logits: these to 1e-5, and all maps equal."""
    for name in ("logits", "scores"):
        pair = getattr(own, name), getattr(expected, name)
        for one, other in zip(*(x.values() if isinstance(x, dict) else [x] for x in pair), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    for name in ("segmentation", "mask"):
        one, other = getattr(own, name), getattr(expected, name)
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    for name in ("predicted_depth", "normals"):
        one, other = getattr(own, name), getattr(expected, name)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert (own.labels, own.box, own.text) == (expected.labels, expected.box, expected.text)


@pytest.mark.parametrize(
    "arguments",
    [
        {"labels": ["wall", "floor", "red ball"]},
        {"labels": ID2LABEL, "background": True, "threshold": 0.1, "refine": "crf"},
        {"task": "depth"},
        {"task": "depth", "depth_range": "road", "focal_length": 80.0},
        {"task": "depth", "depth_range": "camera"},  # with a text before the image
        {"task": ("segmentation", "depth"), "labels": ["wall", "cat"], "target_sizes": (20, 30)},
        {"task": "referring", "text": "the red ball"},
        {"task": "referring", "text": "the red ball", "box": (4, 4, 30, 20)},  # a crop
        {"task": "normals", "source": "depth", "focal_length": 60.0},
        {"labels": ["wall", "floor"], "scale": 2.0},
        {"labels": ["wall", "floor"], "max_num_patches": 40, "resample": 3},
    ],
)
def test_maps_are_those_of_the_model(client, model, arguments):
    image = make_image(30, 50)
    own = client.predict_dense(image, **arguments, return_logits=True)
    assert_same(own, model.predict_dense(image, **arguments, return_logits=True))


def test_lists_of_images(client, pooling, model, tmp_path):
    images = [make_image(30, 50), make_image(24, 40, 1), make_image(16, 16, 2), make_image(40, 24, 3)]
    path = tmp_path / "a.png"
    images[1].save(path)
    images[1] = path
    task = {"task": ("segmentation", "depth"), "labels": ID2LABEL, "return_logits": True}
    for batch_size in (1, 3, 8):
        own = client.predict_dense(images, **task, batch_size=batch_size)
        for one, image in zip(own, images, strict=True):
            assert_same(one, model.predict_dense(image, **task))
    assert len([path for path, _ in pooling.seen if path == "/pooling"]) == 3 * len(images)  # both tasks in one pass
    own = client.predict_dense([images[0], b"no image", images[2]], **task, on_error="skip")
    assert own[1] is None
    assert_same(own[2], model.predict_dense(images[2], **task))
    assert client.predict_dense([], **task) == []


def test_an_image_is_read_once_for_many_labels(client, pooling, model):
    image = make_image(30, 50)
    encoded, expected = client.encode_image(image), model.encode_image(image)
    torch.testing.assert_close(encoded.hidden_states, expected.hidden_states, rtol=0, atol=1e-5)
    assert encoded.grid == expected.grid and torch.equal(encoded.input_ids, expected.input_ids)
    for labels in (["wall", "floor"], ["cat", "red ball"], ["cup"]):
        own = client.predict_dense(encoded, labels=labels, return_logits=True)
        assert_same(own, model.predict_dense(image, labels=labels, return_logits=True))
    assert len([path for path, _ in pooling.seen if path == "/pooling"]) == 1
    # A text before the image is another pass.
    own = client.predict_dense(encoded, task="referring", text="a cat", return_logits=True)
    assert_same(own, model.predict_dense(image, task="referring", text="a cat", return_logits=True))
    assert len([path for path, _ in pooling.seen if path == "/pooling"]) == 2
    assert client.predict_dense(encoded.from_dict(encoded.to_dict()), labels=["cat"]).segmentation is not None


def test_answers_are_those_of_the_model(client, chatting, model):
    image, images = make_image(30, 50), [make_image(30, 50), make_image(24, 40, 1)]
    ask = {"max_new_tokens": 6}
    assert client.query(image, "a cat?", **ask) == model.query(image, "a cat?", **ask)
    assert client.query(images, ["a cat?", "a cup?"], **ask) == model.query(images, ["a cat?", "a cup?"], **ask)
    scaled = {"focal_length": 80.0, "depth_range": "road", **ask}
    assert client.query(image, "a cat?", **scaled) == model.query(image, "a cat?", **scaled)
    encoded, expected = (one.encode_image(image, prompt="look:") for one in (client, model))
    assert client.query(encoded, "a cat?", **ask) == model.query(expected, "a cat?", **ask)
    answer = model.query(image, "a cat?", max_new_tokens=12)
    stop = next(letter for letter in answer[1:] if letter.strip())
    assert client.query(image, "a cat?", stop_strings=stop, max_new_tokens=12) == model.query(
        image, "a cat?", stop_strings=stop, max_new_tokens=12
    )
    body = chatting.seen[-1][1]
    assert body["temperature"] == 0 and body["include_stop_str_in_output"] is True
    own, expected = (one.predict(image, "detection", text="cats", max_new_tokens=4) for one in (client, model))
    assert own["text"] == expected["text"] and own.keys() == expected.keys()
    sampled = client.query(image, "a cat?", do_sample=True, num_return_sequences=3, max_new_tokens=3)
    assert len(sampled) == 3 and chatting.seen[-1][1]["temperature"] == 1.0


def test_chats_are_those_of_the_model(client, chatting, model):
    image, images = make_image(30, 50), [make_image(30, 50), make_image(24, 40, 1)]
    ask = {"max_new_tokens": 6}
    chat = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "a cat?"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "text", "text": "and a cup?"}]},
    ]
    assert client.chat(image, chat, **ask) == model.chat(image, chat, **ask)
    sent = chatting.seen[-1][1]["messages"]
    assert [message["role"] for message in sent] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in sent[1]["content"]] == ["image_url", "text"]
    assert client.chat(images, [chat, chat[1:2]], **ask) == model.chat(images, [chat, chat[1:2]], **ask)
    encoded, expected = (one.encode_image(image, prompt="look:") for one in (client, model))
    assert encoded.chat(chat, **ask) == expected.chat(chat, **ask)
    with pytest.raises(ValueError, match="`messages` must be a list of messages for each image"):
        client.chat(images, chat)


def test_classes_that_the_model_names(client, model):
    image = make_image(30, 50)
    own, expected = (one.predict_dense(image, task="segmentation") for one in (client, model))
    assert own.text == expected.text and own.labels == expected.labels
    assert torch.equal(own.segmentation, expected.segmentation)


@pytest.mark.parametrize("kind", ["untied", "sharded", "llama", "bfloat16"])
def test_rows_of_the_output_embedding(tmp_path, kind):
    processor = make_processor()
    options = {"text": {**LLAMA, "tie_word_embeddings": False}, "tie_word_embeddings": False}
    if kind == "llama":
        options = {"text": LLAMA, "tie_word_embeddings": True}
    model = make_model(processor, **options)
    if kind == "bfloat16":
        model = model.bfloat16()
    model.save_pretrained(tmp_path, max_shard_size="20KB" if kind == "sharded" else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (kind == "sharded")
    embedding = OutputEmbedding(str(tmp_path), model.config, {})
    expected = model.get_output_embeddings().weight.detach().float()
    for ids in ([5], [7, 3, 4, 5, 3], list(range(len(expected)))):
        assert torch.equal(embedding.rows(ids), expected[ids])
    states = torch.randn(9, expected.shape[1])
    processor.save_pretrained(tmp_path)
    client = DenseClient("http://127.0.0.1:9", tmp_path)
    for labels in ([[3], [7, 8, 9], [4, 4]], []):
        torch.testing.assert_close(client.label_logits(states, labels), model.label_logits(states, labels))
    with pytest.raises(ValueError, match="`processor` does not belong to this model"):
        client.label_logits(states, [[len(expected)]])


def test_checkpoints_without_rows_to_read_are_refused(folder, tmp_path):
    for name in ("none", "quantised"):
        shutil.copytree(folder, tmp_path / name)
    weights = load_file(folder / "model.safetensors")
    heads = [key for key, value in weights.items() if "embed_tokens" in key or "lm_head" in key]
    save_file({key: value for key, value in weights.items() if key not in heads}, tmp_path / "none/model.safetensors")
    with pytest.raises(ValueError, match="`checkpoint` .* must have one output embedding of shape .* found none"):
        DenseClient("http://127.0.0.1:9", tmp_path / "none")
    quantised = {key: value.to(torch.int8) if key in heads else value for key, value in weights.items()}
    save_file(quantised, tmp_path / "quantised/model.safetensors")
    with pytest.raises(ValueError, match="output embedding of I8"):
        DenseClient("http://127.0.0.1:9", tmp_path / "quantised")
    (tmp_path / "none/model.safetensors").unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        DenseClient("http://127.0.0.1:9", tmp_path / "none")


def test_arguments_are_refused_before_a_server_is_asked(client, folder, pooling, chatting):
    image = make_image(30, 50)
    for call, message in (
        (lambda: client.predict_dense(image, task="colours"), "`task`"),
        (lambda: client.predict_dense(image, labels=["wall"], do_normalize=False), "`do_normalize` can't be given to"),
        (lambda: client.predict_dense(image, labels=["wall"], do_resize=False), "would make it 32x56"),
        (
            lambda: client.predict_dense(image, labels=["wall"], max_num_patches=2000, scale=4.0),
            "`max_num_patches` 1024",
        ),
        (lambda: client.query(image, "a cat?", num_beams=2), "`num_beams` is not taken"),
        (lambda: client.query(image, "a cat?", max_new_tokens=0), "`max_new_tokens`"),
        (lambda: client.query(image, "cat " * 5000), "positions"),
        (lambda: DenseClient("localhost:8000", folder), "`url` must be the address of a server"),
        (lambda: DenseClient("http://a", folder, chat_url="ftp://b"), "`chat_url` must be the address of a server"),
        (lambda: DenseClient("http://a", folder, timeout=0), "`timeout`"),
        (lambda: DenseClient("http://a", folder, retries=-1), "`retries`"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="`text` must be"):
        client.query(image, None)
    with pytest.raises(TypeError, match="`retry` is not an argument"):
        DenseClient("http://a", folder, retry=1)
    assert pooling.seen == chatting.seen == []


def test_what_a_server_refuses_is_said(client, folder, pooling, chatting, model):
    image = make_image(30, 50)
    with DenseClient(chatting.url, folder) as other:
        with pytest.raises(ServerError, match=r"/pooling answered with HTTP 404: .*`--runner pooling`") as caught:
            other.predict_dense(image, labels=["wall"])
        assert caught.value.status == 404
    with DenseClient(pooling.url, folder) as other:
        with pytest.raises(ServerError, match="HTTP 404.*`chat_url`"):
            other.query(image, "a cat?")
    with DenseClient(pooling.url, folder, model="another") as other:
        with pytest.raises(ServerError, match=r"The model `another` does not exist\.$"):
            other.predict_dense(image, labels=["wall"])
    pooling.models.append("second")
    try:
        with pytest.raises(ServerError, match=r"`model` must be given: .*\['served', 'second'\]"):
            client.predict_dense(image, labels=["wall"])
        with DenseClient(pooling.url + "/v1/", folder, model="second", api_key="secret") as other:
            other.predict_dense(image, labels=["wall"])
        body = pooling.seen[-1][1]
        assert body["model"] == "second" and body["headers"]["Authorization"] == "Bearer secret"
    finally:
        pooling.models.remove("second")
    pooling.faults = [lambda handler: handler.answer(bytes(17))]
    with pytest.raises(ServerError, match="17 bytes, and not .* tokens of 32 float32 numbers"):
        client.predict_dense(image, labels=["wall"])
    chatting.faults = [lambda handler: handler.answer(b"<html>"), lambda handler: handler.answer_json({"choices": 3})]
    with pytest.raises(ServerError, match="something else than JSON: '<html>'"):
        client.query(image, "a cat?")
    with pytest.raises(ServerError, match="gave no answers"):
        client.query(image, "a cat?")
    # One of many is an error of all.
    pooling.faults = [lambda handler: handler.answer_json({"error": {"message": "too long"}}, 400)]
    with pytest.raises(ServerError, match="HTTP 400: too long$"):
        client.predict_dense([image] * 6, labels=["wall"], batch_size=2)
    assert len(pooling.faults) == 0


def test_what_may_pass_is_tried_again(folder, pooling, model):
    image = make_image(30, 50)

    def hang_up(handler):
        handler.close_connection = True

    pooling.seen.clear()
    with DenseClient(pooling.url, folder, retries=2) as client:
        pooling.faults = [
            lambda handler: handler.answer_json({"detail": "busy"}, 503, {"retry-after": "0"}),
            hang_up,
        ]
        own = client.predict_dense(image, labels=["wall", "cat"], return_logits=True)
        assert_same(own, model.predict_dense(image, labels=["wall", "cat"], return_logits=True))
        assert [path for path, _ in pooling.seen] == ["/v1/models", "/pooling", "/pooling", "/pooling"]
        pooling.faults = [lambda handler: handler.answer_json({"detail": "busy"}, 503, {"retry-after": "0"})] * 3
        with pytest.raises(ServerError, match="HTTP 503"):
            client.predict_dense(image, labels=["wall"])
        pooling.seen.clear()
        pooling.faults = [lambda handler: handler.answer_json({"error": {"message": "bad"}}, 400)]
        with pytest.raises(ServerError, match="HTTP 400: bad"):
            client.predict_dense(image, labels=["wall"])
        assert len(pooling.seen) == 1
    pooling.faults = [hang_up]
    with (
        DenseClient(pooling.url, folder, retries=0) as client,
        pytest.raises(ConnectionError, match="/pooling can't be"),
    ):
        client.predict_dense(image, labels=["wall"])


def test_nobody_waits_for_ever(folder, pooling):
    image = make_image(30, 50)
    with DenseClient("http://127.0.0.1:9", folder, retries=0) as client:
        with pytest.raises(ConnectionError, match="http://127.0.0.1:9/v1/models can't be reached"):
            client.predict_dense(image, labels=["wall"])
    with DenseClient(pooling.url, folder, timeout=0.3, retries=2) as client:
        client._model_of(client.url)
        pooling.seen.clear()
        pooling.faults = [lambda handler: time.sleep(1.5)]
        with pytest.raises(TimeoutError, match="did not answer within `timeout` = 0.3 seconds"):
            client.predict_dense(image, labels=["wall"])
        assert len(pooling.seen) == 1  # it may be at work still


def test_bidirectional_checkpoints_are_refused(tmp_path):
    processor = make_processor()
    make_model(processor, vision_attention="bidirectional").save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'bidirectional', which vLLM can't serve"):
        DenseClient("http://127.0.0.1:9", tmp_path)
