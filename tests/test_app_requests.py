"""The page's requests: what they show, bounded in time, size and memory, and errors in words. No browser is needed."""

import base64
import html
import json
import re
import socket
import threading
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from tiny import answer_with, make_image, make_model, make_processor


gr = pytest.importorskip("gradio", reason="the page: pip install densemllm[demo]")
from densemllm import DensePrediction  # noqa: E402
from densemllm.app import limits, main, readings  # noqa: E402
from densemllm.app.demo import Demo, PageError  # noqa: E402
from densemllm.app.main import make_parser  # noqa: E402
from densemllm.app.page import EXAMPLES, launch, make_page  # noqa: E402
from densemllm.commands.models import load_model  # noqa: E402
from densemllm.exif_densemllm import exif_focal_length  # noqa: E402
from densemllm.task_base_densemllm import PixelWords  # noqa: E402
from densemllm.tasks_densemllm import TASKS, Classes, Codes, Foreground, add_dense_tokens  # noqa: E402
from vllm_server import serving  # noqa: E402


ID2LABEL = {0: "wall", 2: "the cat, sat", 5: "red ball"}
MAX_PIXELS = 64 * 48


def make_demo(**kwargs):
    processor = make_processor(referring_prompt="find {text}")
    model = make_model(processor, id2label=ID2LABEL)
    model.get_processor(processor)
    return Demo(model, **{"max_pixels": MAX_PIXELS, **kwargs})


@pytest.fixture(scope="module")
def demo():
    return make_demo()


@pytest.fixture
def photo(tmp_path):
    make_image(48, 64).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def predict(demo, path, task="segmentation", labels=None, **kwargs):
    return demo.predict(path, task, labels=demo.labels if labels is None else labels, **kwargs)


def read_places(text: str) -> dict[str, np.ndarray]:
    """The words at each place that a browser finds in the page's HTML, by the name of the map."""
    maps = json.loads(html.unescape(re.search('data-maps="([^"]*)"', text).group(1)))
    found = {}
    for row in maps:
        places = np.frombuffer(zlib.decompress(base64.b64decode(row["places"])), f"<u{row['bytes']}")
        found[row["name"]] = np.array(row["words"])[places].reshape(row["height"], row["width"])
    return found


def test_places_tell_what_the_model_predicts(demo, photo):
    shown = predict(demo, photo)
    seen = demo.model.predict_dense(photo, task=("segmentation", "depth"), labels=ID2LABEL)
    places = read_places(shown.reading)
    assert list(places) == ["segmentation", "depth"]  # what was asked first, and what costs nothing more
    names = np.array([ID2LABEL.get(key, "none of them") for key in range(-1, 6)])
    assert (places["segmentation"] == names[seen.segmentation.numpy() + 1]).all()
    metres = np.char.rstrip(places["depth"], " m").astype(float)
    assert np.allclose(metres, seen.predicted_depth.numpy(), atol=0.0051)
    assert shown.image.size == shown.drawn.size == (64, 48)


@pytest.mark.parametrize("size", [(480, 640), (1, 9000), (700, 3)])
def test_a_large_image_is_made_smaller(demo, tmp_path, size):
    make_image(*size).save(tmp_path / "large.png")
    shown = predict(demo, str(tmp_path / "large.png"), "referring", text="the cat")
    width, height = shown.drawn.size
    assert width * height <= MAX_PIXELS and max(width, height) <= limits.MAX_EDGE
    assert list(read_places(shown.reading)) == ["referring", "segmentation", "depth"]


def test_what_the_browser_gets_is_bounded():
    words = PixelWords(np.arange(4000 * 3000).reshape(4000, 3000) % 70_000, [str(k) for k in range(70_000)])
    thin = readings.thin_out(words)
    assert thin.places.size <= limits.MAX_READING
    assert thin.places.dtype == np.uint32 and (thin.places == words.places[3::7, 3::7]).all()
    found = read_places(readings.reading("", {"map": thin}))["map"]
    assert (found.astype(int) == thin.places).all()


def test_every_task_of_the_checkpoint_is_on_the_page(demo, photo, monkeypatch):
    answer_with(monkeypatch, demo.model, "<ref>red ball</ref><box><x_8><y_8><x_40><y_32></box>")
    tokens = {name for name, task in TASKS.items() if task.is_known(demo.model.get_processor())}
    assert set(demo.tasks) == tokens == set(TASKS) - {Codes.name}  # the tiny tokenizer has coordinates
    given = {"text": "the cat", "things": "red ball", "focal_length": "60"}
    for name in demo.tasks:
        shown = predict(demo, photo, name, **given)
        assert list(read_places(shown.reading))[0] == name.replace("_", " ") and shown.legend
        assert all(open(path, "rb").read(4) for path in shown.files) and len(shown.files) >= 3


def test_codes_lie_on_the_grid_of_tokens(photo):
    processor = make_processor()
    add_dense_tokens(processor.tokenizer, num_image_codes=8)
    processor.forget_tokens()
    first = processor.tokenizer.convert_tokens_to_ids("<image_code_0>")
    model = make_model(processor, id2label=ID2LABEL, image_code_token_id=first, num_image_codes=8)
    model.get_processor(processor)
    demo = Demo(model, max_pixels=MAX_PIXELS)  # whose files are there as long as it is
    shown = predict(demo, photo, Codes.name)
    codes = model.predict_dense(photo, Codes.name).codes
    words = np.array(["not known", *(f"code {number}" for number in range(8))])
    assert (read_places(shown.reading)[Codes.name] == words[codes.numpy() + 1]).all()
    assert (np.load(shown.files[2])[Codes.map_field] == codes.numpy()).all()


def test_files_have_what_was_predicted(demo, photo):
    seen = demo.model.predict_dense(photo, task=("segmentation", "depth"), labels=ID2LABEL)
    numbers, raw, masks = predict(demo, photo).files[1:]
    assert (np.asarray(PIL.Image.open(numbers)) == seen.segmentation.numpy()).all()
    assert (np.load(raw)["segmentation"] == seen.segmentation.numpy()).all()
    assert {row["name"] for row in json.load(open(masks))["categories"]} == set(ID2LABEL.values())
    numbers, raw = predict(demo, photo, "depth").files[1:]
    assert np.asarray(PIL.Image.open(numbers)).dtype == np.uint16
    assert np.allclose(np.load(raw)["predicted_depth"], seen.predicted_depth.numpy())


def test_names_with_commas_keep_their_numbers(demo):
    assert demo.labels == "wall\nthe cat, sat\nred ball"
    assert demo.names_of(demo.labels) == demo.names_of("wall\r\n the cat,  sat\n\nred ball\n") == ID2LABEL
    assert demo.names_of("the cat, sat\nred ball") == ["the cat, sat", "red ball"]
    assert demo.names_of(" \n") is None


def test_names_are_text_and_not_markup(demo, photo):
    shown = predict(demo, photo, labels="<img src=x onerror=alert(1)>\n\"'&")
    assert "<img" not in shown.legend + shown.reading
    assert set(np.unique(read_places(shown.reading)["segmentation"])) <= {"<img src=x onerror=alert(1)>", "\"'&"}


def test_what_is_refined_differs(demo, photo):
    plain, guided = (predict(demo, photo, "depth", refine=refine).files[2] for refine in ("", "guided"))
    plain, guided = (np.load(path)["predicted_depth"] for path in (plain, guided))
    assert plain.shape == guided.shape and not np.array_equal(plain, guided)


def test_a_conversation_goes_on_about_one_encoding(demo, photo, monkeypatch):
    monkeypatch.setattr(limits, "MAX_NEW_TOKENS", 8)
    asked, encode = [], demo.model.encode_image
    monkeypatch.setattr(demo.model, "encode_image", lambda *args, **kwargs: asked.append(1) or encode(*args, **kwargs))
    demo._seen.clear()
    turns = [{"role": "user", "content": "How many?"}]
    first = demo.answer(photo, turns)
    turns += [{"role": "assistant", "content": first}, {"role": "user", "content": "And now?"}]
    second = demo.answer(photo, turns)
    assert second == demo.model.chat(photo, turns, max_new_tokens=limits.MAX_NEW_TOKENS)
    predict(demo, photo)
    assert len(asked) == 1
    with pytest.raises(PageError, match="20 questions"):
        demo.answer(photo, [{"role": "user", "content": "x"}] * 41)
    with pytest.raises(PageError, match="20000 characters"):
        demo.answer(photo, [{"role": "user", "content": "x" * 20_000}])


def test_a_server_computes_in_the_place_of_the_page(tmp_path, photo, monkeypatch):
    monkeypatch.setattr(limits, "MAX_NEW_TOKENS", 6)
    own = make_demo()
    own.model.save_pretrained(tmp_path / "model")
    own.model.get_processor().save_pretrained(tmp_path / "model")
    turns = [{"role": "user", "content": "How many?"}]
    with serving(own.model, pools=True) as pooling, serving(own.model, pools=False) as chatting:
        words = ["--model", str(tmp_path / "model"), "--server", pooling.url, "--chat_server", chatting.url]
        args = make_parser().parse_args(words)
        with load_model(args, timeout=30.0) as client:
            demo = Demo(client, max_pixels=MAX_PIXELS)
            for task in (Classes.name, Foreground.name):
                places, expected = (
                    read_places(predict(one, photo, task, text="the cat").reading) for one in (demo, own)
                )
                assert places.keys() == expected.keys()
                assert all((places[name] == expected[name]).mean() > 0.99 for name in places)
            turns += [{"role": "assistant", "content": demo.answer(photo, turns)}, {"role": "user", "content": "And?"}]
            assert demo.answer(photo, turns) == own.answer(photo, turns)
            assert {path for path, _ in pooling.seen} == {"/v1/models", "/pooling"}
    with pytest.raises(PageError, match="can't be reached|closed"):
        demo.answer(photo, turns)
    assert main(["--model", str(tmp_path / "model"), "--chat_server", "http://localhost:1"]) == 2


def test_a_few_encodings_are_kept(demo, tmp_path):
    seen = []
    for seed in range(limits.MAX_ENCODED + 2):
        make_image(20, 20, seed).save(tmp_path / f"{seed}.png")
        seen += predict(demo, str(tmp_path / f"{seed}.png"), "depth", labels=f"cat\n{seed}").files
        predict(demo, str(tmp_path / f"{seed}.png"), "depth", labels="dog")
    assert len(demo._seen) == limits.MAX_ENCODED
    assert all(len(own.beside) == 1 for own in demo._seen.values())
    folders = list(Path(demo._folder.name).iterdir())
    assert len(folders) == limits.MAX_FOLDERS and not Path(seen[0]).exists() and Path(seen[-1]).exists()


def test_a_full_memory_is_said_and_made_room_in(demo, photo, monkeypatch):
    predict(demo, photo, "depth")

    def fail(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(demo.model, "predict_dense", fail)
    with pytest.raises(PageError, match="not enough memory"):
        predict(demo, photo, "depth")
    assert not demo._seen


def test_depth_becomes_points_in_space(demo, photo):
    cloud = demo.measure(photo, "50")
    header, body = open(cloud.file, "rb").read().split(b"end_header\n")
    assert f"element vertex {64 * 48}".encode() in header and cloud.about == f"{64 * 48} points."
    depth = demo.model.predict_dense(photo, task="depth", focal_length=50.0).predicted_depth
    rows = np.frombuffer(body, [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    assert np.allclose(rows["xyz"][:, 2], depth.ravel())
    assert np.allclose(rows["xyz"][0, 0], (0.5 - 32) / 50 * depth[0, 0])
    assert "60 degrees is assumed" in demo.measure(photo).about
    viewed = np.frombuffer(open(cloud.shown, "rb").read().split(b"end_header\n")[1], rows.dtype)["xyz"]
    assert (viewed[:, 2] < 0).all() and viewed[0, 1] > 0  # y is up there


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
    demo._seen.clear()
    for call in (predict, Demo.measure, lambda demo, path: demo.answer(path, [{"role": "user", "content": "x"}])):
        with pytest.raises(PageError) as error:
            call(demo, path)
        words = {"too large": "too large", "a bomb": "too large", "nothing": "no image yet"}
        assert words.get(kind, "can't be read as an image") in str(error.value)
        assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("focal_length", ["1e-5", "1e9", "-3", "nan", "inf", "wide", "１２;"])
def test_focal_lengths_that_no_camera_has_are_refused(demo, photo, focal_length):
    with pytest.raises(PageError, match="must be 3 to 6400 pixels"):
        predict(demo, photo, focal_length=focal_length)


def test_an_unknown_focal_length_is_empty_and_a_known_one_is_filled_in(demo, photo, tmp_path):
    assert demo.camera(photo) == demo.camera(None) == demo.camera(save(tmp_path, "x.jpg", b"no image")) == ""
    assert len(EXAMPLES) == 3
    for example in EXAMPLES:
        assert float(demo.camera(str(example))) == round(exif_focal_length(example)) > 100


def test_names_and_words_are_bounded(demo, photo):
    for task, given, words in (
        ("segmentation", {"labels": "\n".join(map(str, range(300)))}, "300 names"),
        ("segmentation", {"labels": "a" * 20_000}, "20000 characters"),
        ("referring", {"text": "a" * 20_000}, "20000 characters"),
        ("panoptic", {"things": "\n".join(map(str, range(300)))}, "300 names"),
        ("segmentation", {"labels": "wall\nwall"}, "twice"),
        ("referring", {"text": " "}, "“find” is empty"),
        ("normals", {}, "“focal length” is needed"),
        ("panoptic", {}, "“objects told apart” is needed"),
        ("panoptic", {"things": "sky"}, "“objects told apart” must be"),
    ):
        with pytest.raises(PageError) as error:
            predict(demo, photo, task, **given)
        assert words in str(error.value) and "`" not in str(error.value)


def test_the_model_reads_no_more_than_the_page_lets_it(demo):
    processor = demo.model.get_processor().image_processor
    assert processor.get_number_of_image_patches(4000, 3000, {"scale": 50.0}) <= MAX_PIXELS / processor.patch_size**2


def test_a_request_that_takes_too_long_is_ended_between_two_layers(photo):
    demo = make_demo(seconds=0)
    called = []
    demo.model.model.vision_tower.encoder.layers[0].register_forward_hook(lambda *_: called.append(1))
    with pytest.raises(PageError, match="took more than 0 seconds"):
        predict(demo, photo)
    assert not called
    # Another thread's request has a time of its own, and so has what isn't a request.
    demo.limit.seconds, own = 600, []
    with demo.limit.request():
        demo.limit.seconds = 0
        thread = threading.Thread(target=lambda: pytest.raises(PageError, predict, demo, photo) and own.append(1))
        thread.start()
        thread.join()
        demo.model.predict_dense(photo, task="depth")
    demo.model.predict_dense(photo, task="depth")
    assert own and called


def test_a_scale_runs_from_the_least_to_the_most():
    values = np.array([0.5, 2.0, 2.5])
    words = PixelWords(np.array([[0, 1], [2, 2]]), ["0.50 m", "2.00 m", "2.50 m"], values)
    colors = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 0, 255]]], np.uint8)
    everywhere = np.ones((2, 2), bool)
    text = readings.legend(words, colors, everywhere)
    assert "#ff0000 0.0%, #00ff00 75.0%, #0000ff 100.0%" in text
    assert re.findall("<span>(.*?)</span>", text) == ["0.50 m", "2.00 m", "2.50 m"]
    flat = readings.legend(PixelWords(np.zeros((2, 2), int), ["1.00 m"], values[:1]), colors, everywhere)
    assert flat.count("<span>") == 1


def test_a_legend_has_each_object_and_not_too_many():
    words = PixelWords(np.arange(100).reshape(10, 10), [f"chair {k}" for k in range(100)])
    text = readings.legend(words, np.zeros((10, 10, 3), np.uint8), np.arange(100).reshape(10, 10) != 1)
    assert text.count("background:none") == 1 and text.count("background:#000000") == readings.MAX_ROWS - 1
    assert text.count("<i ") == readings.MAX_ROWS and "and 36 more" in text


# ---- served ----


@pytest.fixture
def serve():
    client = pytest.importorskip("gradio_client")
    pages = []

    def start(demo):
        pages.append(make_page(demo))
        _, address, _ = launch(pages[-1])
        return lambda: client.Client(address, verbose=False)

    yield start
    for page in pages:
        page.close()


def ask_for_map(visitor, path, demo, task="segmentation", **kwargs):
    given = {"text": "", "labels": demo.labels, "thing_labels": "", "focal_length": "", "refine": "", **kwargs}
    handle_file = pytest.importorskip("gradio_client").handle_file
    return visitor.predict(None if path is None else handle_file(path), task, *given.values(), api_name="/predict")


def test_the_rest_of_the_page_waits_for_nobodys_prediction(demo, photo, monkeypatch, serve):
    client = pytest.importorskip("gradio_client")
    started, go_on, encode = threading.Event(), threading.Event(), demo.model.encode_image

    def slow(*args, **kwargs):
        started.set()
        assert go_on.wait(60)
        return encode(*args, **kwargs)

    demo._seen.clear()
    monkeypatch.setattr(demo.model, "encode_image", slow)
    visit = serve(demo)
    try:
        first, second = visit(), visit()
        given = [client.handle_file(photo), "segmentation", "", demo.labels, "", "", ""]
        looking = first.submit(*given, api_name="/predict")
        assert started.wait(60)
        assert second.predict(client.handle_file(str(EXAMPLES[0])), api_name="/forget")[0] == demo.camera(EXAMPLES[0])
        assert not looking.done()
        go_on.set()
        assert len(looking.result(60)) == 5
    finally:
        go_on.set()


def test_the_page_serves_and_says_what_is_wrong(demo, photo, tmp_path, monkeypatch, serve):
    client = pytest.importorskip("gradio_client")
    monkeypatch.setattr(limits, "MAX_UPLOAD_BYTES", 10**5)
    visitor = serve(demo)()
    _, view, reading, legend, files = ask_for_map(visitor, photo, demo)
    assert "data-maps" in reading and "red ball" in legend + reading
    assert len(view["value"]) == 2 and len(files["value"]) == 4
    said, view, *_ = ask_for_map(visitor, None, demo)
    assert "no image yet" in said and view["value"] is None and not view["visible"]
    assert "can&#x27;t be read" in ask_for_map(visitor, save(tmp_path, "x.png", b"<html>"), demo)[0]
    with pytest.raises(Exception, match="(?i)size|413"):
        ask_for_map(visitor, save(tmp_path, "y.png", bytes(10**6)), demo)
    answer_with(monkeypatch, demo.model, "two")
    monkeypatch.setattr(demo.model, "chat", lambda encoded, messages, **_: f"{len(messages)} <ref>cat</ref>")
    turns, said, question = visitor.predict(client.handle_file(photo), "How many?", [], "", api_name="/ask")
    assert (said, question) == ("", "") and "1 <ref>cat</ref>" in json.dumps(turns)
    turns, *_ = visitor.predict(client.handle_file(photo), "And now?", turns, "", api_name="/ask")
    assert len(turns) == 4 and "3 <ref>cat</ref>" in json.dumps(turns[-1])
    said, cloud, _ = visitor.predict(client.handle_file(photo), "50", api_name="/points")
    assert "points" in said and cloud["value"].endswith(".ply")


def test_the_command_serves_the_page_of_its_model(monkeypatch, tmp_path, capsys):
    processor, launched = make_processor(), []
    make_model(processor).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    address = "http://127.0.0.1:80"
    monkeypatch.setattr(
        "densemllm.app.page.launch", lambda *a, **kw: launched.append((*a, kw)) or (None, address, None)
    )
    monkeypatch.setattr(gr.Blocks, "block_thread", lambda _: None)
    assert main(["--model", str(tmp_path), "--device", "cpu", "--port", "80", "--share"]) == 0
    (page, kwargs), *more = launched
    assert isinstance(page, gr.Blocks) and not more
    assert capsys.readouterr().out == f"densemllm app: {address} (Ctrl+C ends it)\n"
    assert kwargs == {"server_name": "127.0.0.1", "server_port": 80, "share": True}


def test_a_port_that_is_taken_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("densemllm.commands.models.load_model", lambda args, **_: make_demo().model)
    (tmp_path / "config.json").write_text("{}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["--model", str(tmp_path), "--port", port]) == 2
    assert (
        capsys.readouterr().err
        == f"densemllm app: --port {port} of --host 127.0.0.1 is taken, or can't be listened at\n"
    )


def test_arguments_that_cannot_be_used_are_said_in_a_line(capsys, tmp_path):
    for arguments, words in (
        (["--max_pixels", "0"], "--max_pixels must be greater than 0"),
        (["--seconds", "nan"], "--seconds must be greater than 0"),
        (["--port", "70000"], "--port must be in"),
        ([], f"--model {tmp_path} can't be loaded"),
    ):
        assert main(["--model", str(tmp_path), *arguments]) == 2
        said = capsys.readouterr().err
        assert words in said and said.startswith("densemllm app: ") and said.count("\n") == 1


def test_maps_without_masks_are_written_without_them(tmp_path):
    from densemllm.app.demo import save_files

    prediction = DensePrediction(predicted_depth=torch.ones(4, 5))
    names = [path.rsplit("/", 1)[1] for path in save_files(prediction, make_image(4, 5), str(tmp_path / "a"))]
    assert names == ["a.png", "a_numbers.png", "a.npz"]
