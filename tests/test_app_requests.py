"""The demo page's requests: bounded in time, size and memory, and errors in words."""

import json
import threading

import numpy as np
import PIL.Image
import pytest

from repository import load_script
from tiny import make_image, make_model, make_processor


gr = pytest.importorskip("gradio", reason="the page: pip install densemllm[demo]")
app = load_script("examples/app.py")

ID2LABEL = {0: "wall", 2: "the cat, sat", 5: "red ball"}
MAX_PIXELS = 64 * 48


def make_demo(**kwargs):
    processor = make_processor(referring_prompt="find {text}")
    model = make_model(processor, id2label=ID2LABEL)
    model.get_processor(processor)
    return app.Demo(model, **{"max_pixels": MAX_PIXELS, **kwargs})


@pytest.fixture(scope="module")
def demo():
    return make_demo()


@pytest.fixture
def photo(tmp_path):
    make_image(48, 64).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def look(demo, path, labels=None, text="", focal_length=None):
    return demo.look(path, demo.labels if labels is None else labels, text, focal_length, progress=lambda *_, **__: 0)


def click(x, y):
    return gr.SelectData(target=None, data={"index": [x, y], "value": None})


def kept_bytes(state) -> int:
    return sum(value.nbytes for value in state.values() if isinstance(value, np.ndarray))


def test_clicks_tell_what_the_model_predicts(demo, photo):
    *_, state, hint = look(demo, photo)
    model = demo.model
    seen = model.predict_dense(photo, task=("segmentation", "depth"), labels=ID2LABEL)
    for x, y in ((0, 0), (63, 47), (20, 30)):
        name = ID2LABEL[int(seen.segmentation[y, x])]
        assert demo.probe(state, click(x, y)).startswith(f"({x}, {y}): **{name}**, **")
        metres = float(demo.probe(state, click(x, y)).rsplit("**", 2)[1].removesuffix(" m"))
        assert metres == pytest.approx(float(seen.predicted_depth[y, x]), abs=0.006)
    assert demo.probe(state, click(64, 0)) == demo.probe(state, click(-1, 0)) == hint
    assert "Look" in demo.probe(None, click(0, 0)) and "Look" in demo.probe_picture(None, click(0, 0))


@pytest.mark.parametrize("size", [(480, 640), (1, 9000), (700, 3)])
def test_a_large_picture_is_made_smaller_and_little_of_it_is_kept(demo, tmp_path, size):
    make_image(*size).save(tmp_path / "large.png")
    classes, depth, found, words, state, _ = look(demo, str(tmp_path / "large.png"), text="the cat")
    height, width = state["segmentation"].shape
    assert width * height <= MAX_PIXELS and max(width, height) <= app.MAX_EDGE
    assert found.size == (width, height) and "cat" in words + "cat"
    assert kept_bytes(state) <= 4 * width * height
    json.dumps({key: value for key, value in state.items() if not isinstance(value, np.ndarray)})  # nothing large
    # A click on the upload is in its own pixels.
    last = demo.probe_picture(state, click(size[1] - 1, size[0] - 1))
    assert last.startswith(f"({width - 1}, {height - 1}): ")


def test_many_names_are_kept_in_a_type_that_holds_them(demo, photo):
    *_, state, _ = look(demo, photo, labels="\n".join(f"cat {k}" for k in range(200)))
    assert state["segmentation"].dtype == np.int16 and state["segmentation"].max() < 200


def test_names_with_commas_keep_their_numbers(demo, photo):
    assert demo.labels == "wall\nthe cat, sat\nred ball"
    assert demo.names_of(demo.labels) == demo.names_of("wall\r\n the cat,  sat\n\nred ball\n") == ID2LABEL
    assert demo.names_of("the cat, sat\nred ball") == ["the cat, sat", "red ball"]
    assert demo.names_of(" \n") is None
    *_, state, _ = look(demo, photo)
    assert state["labels"] == ID2LABEL and set(np.unique(state["segmentation"])) <= set(ID2LABEL)


def save(folder, name, content: bytes):
    (folder / name).write_bytes(content)
    return str(folder / name)


@pytest.mark.parametrize("kind", ["empty", "cut", "html", "header only", "too large", "a bomb", "nothing"])
def test_what_cannot_be_read_is_said_in_words(demo, photo, tmp_path, monkeypatch, kind):
    whole = open(photo, "rb").read()
    if kind in ("too large", "a bomb"):
        size = (8000, 8000) if kind == "too large" else (20000, 20000)
        PIL.Image.new("1", size).save(tmp_path / "large.png")
        monkeypatch.setattr(PIL.Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    path = {
        "empty": lambda: save(tmp_path, "a.png", b""), "cut": lambda: save(tmp_path, "a.png", whole[:-2000]),
        "html": lambda: save(tmp_path, "a.jpg", b"<html><body>404</body></html>"),
        "header only": lambda: save(tmp_path, "a.png", whole[:60]), "nothing": lambda: None,
        "too large": lambda: str(tmp_path / "large.png"), "a bomb": lambda: str(tmp_path / "large.png"),
    }[kind]()  # fmt: skip
    with pytest.raises(gr.Error) as error:
        look(demo, path)
    words = {"too large": "too large", "a bomb": "too large", "nothing": "no picture yet"}
    assert words.get(kind, "can't be read as a picture") in error.value.message
    assert str(tmp_path) not in error.value.message


@pytest.mark.parametrize("focal_length", [1e-5, 1e9, -3, float("nan"), float("inf")])
def test_focal_lengths_that_no_camera_has_are_refused(demo, photo, focal_length):
    with pytest.raises(gr.Error, match="must be 3 to 6400 pixels"):
        look(demo, photo, focal_length=focal_length)


def test_names_and_words_are_bounded(demo, photo):
    for labels, text, words in (
        ("\n".join(map(str, range(300))), "", "300 classes"), ("a" * 20_000, "", "20000 characters"),
        (None, "a" * 20_000, "20000 characters"), ("wall\nwall", "", "twice"),
    ):  # fmt: skip
        with pytest.raises(gr.Error) as error:
            look(demo, photo, labels, text)
        assert words in error.value.message


def test_the_model_reads_no_more_than_the_page_lets_it(demo):
    processor = demo.model.get_processor().image_processor
    assert processor.get_number_of_image_patches(4000, 3000, {"scale": 50.0}) <= MAX_PIXELS / processor.patch_size**2


def test_a_request_that_takes_too_long_is_ended_between_two_layers(photo):
    demo = make_demo(seconds=0)
    called = []
    demo.model.model.vision_tower.encoder.layers[0].register_forward_hook(lambda *_: called.append(1))
    with pytest.raises(gr.Error, match="took more than 0 seconds"):
        look(demo, photo)
    assert not called
    # Another thread's request has a time of its own, and so has what isn't a request.
    demo.limit.seconds, own = 600, []
    with demo.limit.request():
        demo.limit.seconds = 0
        thread = threading.Thread(target=lambda: pytest.raises(gr.Error, look, demo, photo) and own.append(1))
        thread.start()
        thread.join()
        demo.model.predict_dense(photo, task="depth")
    demo.model.predict_dense(photo, task="depth")
    assert own and called


def test_the_rest_of_the_page_waits_for_nobodys_prediction(demo, photo, monkeypatch):
    client = pytest.importorskip("gradio_client")
    started, go_on, encode = threading.Event(), threading.Event(), demo.model.encode_image

    def slow(*args, **kwargs):
        started.set()
        assert go_on.wait(60)
        return encode(*args, **kwargs)

    monkeypatch.setattr(demo.model, "encode_image", slow)
    page = app.make_page(demo)
    _, address, _ = app.launch(page, prevent_thread_lock=True, quiet=True)
    try:
        first, second = (client.Client(address, verbose=False) for _ in range(2))
        looking = first.submit(client.handle_file(photo), demo.labels, "", None, api_name="/look")
        assert started.wait(60)
        assert app.HINT in second.predict(api_name="/forget")
        assert not looking.done()
        go_on.set()
        assert looking.result(60)
    finally:
        go_on.set()
        page.close()


def test_the_page_serves_and_keeps_a_few_sessions_only(demo, photo, tmp_path, monkeypatch):
    client = pytest.importorskip("gradio_client")
    monkeypatch.setattr(app, "MAX_SESSIONS", 3)
    monkeypatch.setattr(app, "MAX_UPLOAD_BYTES", 10**5)
    page = app.make_page(demo)
    state = next(block for block in page.blocks.values() if isinstance(block, gr.State))
    assert state.time_to_live == app.SESSION_SECONDS
    _, address, _ = app.launch(page, prevent_thread_lock=True, quiet=True)
    try:
        for _ in range(5):
            visitor = client.Client(address, verbose=False)
            shown = visitor.predict(client.handle_file(photo), demo.labels, "the cat", None, api_name="/look")
        assert len(shown) >= 4
        kept = [data for session in page.state_holder.session_data.values() for data in session.state_data.values()]
        assert 1 <= sum(value is not None for value in kept) <= 3
        with pytest.raises(Exception, match="can't be read as a picture"):
            visitor.predict(
                client.handle_file(save(tmp_path, "x.png", b"<html>")), demo.labels, "", None, api_name="/look"
            )
        with pytest.raises(Exception, match="(?i)size|413"):
            visitor.predict(
                client.handle_file(save(tmp_path, "y.png", bytes(10**6))), demo.labels, "", None, api_name="/look"
            )
    finally:
        page.close()
