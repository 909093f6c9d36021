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
"""Images from paths, URLs, texts, bytes and files; the ranges of their numbers; what they may cost."""

import asyncio
import base64
import io
import threading
import time
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import PIL.Image
import pytest
import torch

from densemllm import DenseMLLMImageProcessor
from densemllm.checks_densemllm import check_target_sizes
from densemllm.drawing_densemllm import colorize_depth
from densemllm.image_loading_densemllm import open_image
from densemllm.prediction_densemllm import DensePrediction
from densemllm.tasks_densemllm import class_segments
from tiny import make_image, make_model, make_processor


IMAGE = make_image(20, 30)
ARRAY = np.asarray(IMAGE)


def to_png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


PNG = to_png(IMAGE)
TEXT = base64.b64encode(PNG).decode()


@pytest.fixture(scope="module")
def image_processor():
    return DenseMLLMImageProcessor()


@pytest.fixture(scope="module")
def processor():
    return make_processor()


# ---- forms ----


def in_lines(text):
    return "\n".join(text[start : start + 76] for start in range(0, len(text), 76)) + "\n"


FORMS = {
    "path": lambda path: str(path),
    "Path": lambda path: path,
    "file URL": lambda path: path.as_uri(),
    "data URI": lambda path: "data:image/png;base64," + TEXT,
    "data URI of no type": lambda path: "data:;base64," + TEXT,
    "data URI, upper case": lambda path: "DATA:image/png;BASE64," + TEXT,
    "data URI in lines": lambda path: "data:image/png;base64,\r\n" + in_lines(TEXT),
    "base64": lambda path: TEXT,
    "base64 in lines": lambda path: in_lines(TEXT),
    "bytes": lambda path: PNG,
    "bytearray": lambda path: bytearray(PNG),
    "memoryview": lambda path: memoryview(PNG),
    "BytesIO": lambda path: io.BytesIO(PNG),
    "open file": lambda path: open(path, "rb"),  # noqa: SIM115
}


@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_is_the_same_image(image_processor, processor, form, tmp_path):
    path = tmp_path / "an image.png"
    path.write_bytes(PNG)
    source = FORMS[form](path)
    np.testing.assert_array_equal(np.asarray(image_processor.load_picture(source)), ARRAY)
    expected = processor.image_processor(IMAGE, return_tensors="pt")["pixel_values"]
    several = processor.image_processor([source, source], return_tensors="pt")
    assert torch.equal(several["pixel_values"], torch.cat([expected] * 2))
    inputs = processor(images=source, text="<|image_pad|>", return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], expected)


@pytest.mark.parametrize(
    "source, message",
    [
        ("there/is/no/such.png", "'there/is/no/such.png' .*there is no such file"),
        ("abcd", "'abcd' .*there is no such file"),  # base64, too, but of no image
        ("", "there is no such file"),
        ("file:///there/is/no/such.png", "there is no such file"),
        ("file://elsewhere/a.png", "names no host"),
        ("ftp://127.0.0.1/a.png", "URLs that start with ftp: are not read"),
        ("s3://bucket/a.png", "URLs that start with s3: are not read"),
        ("data:image/png;base64", "comma"),
        ("data:image/png;base64,AAA", "base64 text is damaged"),
        ("data:image/png;base64,AAAA", "not an image that Pillow can read"),
        ("data:text/html,<html></html>", "not an image that Pillow can read"),
        (b"", "not an image that Pillow can read: 0 bytes"),
        (b"<html></html>", "not an image that Pillow can read: 13 bytes"),
        (io.BytesIO(PNG[:4]), "not an image that Pillow can read"),
        (io.StringIO("text"), "`images`"),
        ("x\0y", "`images`"),
        ("\ud800", "`images`"),
        ("http://", "can't be opened: 'http://'"),
        ("http://[::1", "can't be opened"),
        ("https://a b/", "can't be opened"),
        ("http://127.0.0.1:99999999/", "can't be opened"),
        ("http://127.0.0.1:1/", "can't be opened"),
        ("http://" + "a" * 300 + ".example/", "can't be opened"),
        ("HTTP://127.0.0.1:1/", "can't be opened"),
    ],
)
def test_what_cannot_be_opened_is_named(image_processor, source, message):
    for call in (open_image, image_processor.load_picture, image_processor):
        with pytest.raises(ValueError, match=message) as caught:
            call(source)
        assert "`images`" in str(caught.value) and len(str(caught.value)) < 600 and "\n" not in str(caught.value)


def test_folders_closed_files_and_other_things(image_processor, tmp_path):
    for source in (str(tmp_path), tmp_path, tmp_path.as_uri()):
        with pytest.raises(ValueError, match="it is not a file"):
            image_processor.load_picture(source)
    closed = io.BytesIO(PNG)
    closed.close()
    with pytest.raises(ValueError, match="`images` has an entry that can't be opened"):
        image_processor.load_picture(closed)
    image = PIL.Image.open(io.BytesIO(PNG))
    image.close()
    with pytest.raises(ValueError, match="`images` has an entry that can't be decoded"):
        image_processor.load_picture(image)
    for thing in (3, None, object(), {"path": "a.png"}):
        with pytest.raises(TypeError, match="`images`"):
            image_processor.load_picture(thing)


# ---- URLs ----


class Handler(BaseHTTPRequestHandler):
    seen = []

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.seen.append(self.path)
        if self.path.startswith("/redirect"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/redirect?"))
            self.end_headers()
            return
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path == "/drip":  # a header that never ends: each read is quick
            for _ in range(300):
                self.wfile.write(b"H")
                self.wfile.flush()
                time.sleep(0.1)
            return
        body = {"/image": PNG, "/html": b"<html></html>", "/large": b"\x89PNG" + bytes(3_000_000)}.get(self.path, b"")
        self.send_response(200)
        if self.path != "/large":  # its length is not announced
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:100] if self.path == "/image" else body)
        if self.path == "/image":
            self.wfile.write(body[100:])


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # a client that has hung up


@pytest.fixture(scope="module")
def server():
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_urls_are_read(image_processor, processor, server):
    np.testing.assert_array_equal(np.asarray(image_processor.load_picture(f"{server}/image")), ARRAY)
    inputs = processor(images=f"{server}/image", text="<|image_pad|>", return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], processor.image_processor(IMAGE, return_tensors="pt")["pixel_values"])
    for page, message in (("missing", "404"), ("html", "not an image"), ("empty", "not an image")):
        with pytest.raises(ValueError, match=f"`images` .*{message}"):
            image_processor(f"{server}/{page}")


def test_downloads_have_limits(image_processor, processor, server):
    calls = (
        lambda **limit: image_processor(f"{server}/{page}", **limit),
        lambda **limit: processor(images=f"{server}/{page}", text="<|image_pad|>", **limit),
        lambda **limit: processor(images=f"{server}/{page}", text="<|image_pad|>", images_kwargs=limit),
        lambda **limit: image_processor.load_picture(f"{server}/{page}", **limit),
        lambda **limit: DenseMLLMImageProcessor(**limit).load_picture(f"{server}/{page}"),
        lambda **limit: open_image(f"{server}/{page}", **limit),
    )
    for call in calls:
        page = "large"
        with pytest.raises(ValueError, match="`images` .* `max_url_bytes` = 100000"):
            call(max_url_bytes=100_000)
        page = "drip"
        with pytest.raises(ValueError, match="`images` .* `url_timeout` = 0.2 seconds"):
            call(url_timeout=0.2)
        page = "image"
        before = len(Handler.seen)
        with pytest.raises(ValueError, match="`images` .* `allow_urls` is False"):
            call(allow_urls=False)
        assert len(Handler.seen) == before
    for name, value in (("url_timeout", 0), ("url_timeout", float("nan")), ("max_url_bytes", 0)):
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            open_image(f"{server}/image", **{name: value})


def test_servers_can_refuse_urls(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    careful = DenseMLLMImageProcessor(allow_urls=False)
    with pytest.raises(ValueError, match="`allow_urls` is False"):
        careful.load_picture((tmp_path / "a.png").as_uri())
    np.testing.assert_array_equal(np.asarray(careful.load_picture("data:image/png;base64," + TEXT)), ARRAY)
    careful.save_pretrained(tmp_path)
    assert DenseMLLMImageProcessor.from_pretrained(tmp_path).allow_urls is False


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "10.0.0.1",
                                  "169.254.169.254", "2130706433"])  # fmt: skip
def test_a_redirect_does_not_lead_inside(server, host):
    before = len(Handler.seen)
    port = server.rpartition(":")[2]
    with pytest.raises(ValueError, match="`images` .*redirected to .*not public"):
        open_image(f"{server}/redirect?http://{host}:{port}/image")
    assert len(Handler.seen) == before + 1


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/a", "http://"])
def test_a_redirect_stays_with_http(server, target):
    with pytest.raises(ValueError, match="`images` has an entry that can't be opened"):
        open_image(f"{server}/redirect?{target}")


def test_urls_are_read_within_an_event_loop(server):
    """A notebook has one."""

    async def call():
        return open_image(f"{server}/image")

    assert asyncio.run(call()).size == IMAGE.size


def test_redirects_end(server, monkeypatch):
    async def let_pass(url):
        pass

    monkeypatch.setattr("densemllm.image_loading_densemllm._check_public", let_pass)
    assert open_image(f"{server}/redirect?/image").size == IMAGE.size
    before = len(Handler.seen)
    with pytest.raises(ValueError, match="redirected more than 5 times"):
        open_image(f"{server}/redirect?" * 8 + "/image")
    assert len(Handler.seen) == before + 6


# ---- ranges ----


GREY = np.arange(0, 240, 40, dtype=np.uint8).reshape(2, 3)
RGB = np.stack([GREY] * 3, axis=-1)


@pytest.mark.parametrize(
    "image",
    [
        PIL.Image.fromarray(GREY.astype(np.int32)),
        PIL.Image.fromarray(GREY.astype(np.int32) * 257),
        PIL.Image.fromarray(GREY.astype(np.uint16) * 257),
        PIL.Image.fromarray(GREY.astype(np.float32)),
        PIL.Image.fromarray(GREY.astype(np.float32) / 255),
        RGB.astype(np.float32) / 255,
        RGB.astype(np.float64) / 255,
        (RGB / 255).astype(np.float16),
        torch.from_numpy(RGB).permute(2, 0, 1) / 255,
        torch.from_numpy(RGB).permute(2, 0, 1).half() / 255,
        torch.from_numpy(RGB).permute(2, 0, 1).double() / 255,
        GREY / 255,
        RGB.astype(np.uint16) * 257,
        RGB.astype(np.int64),
    ],
    ids=lambda image: f"{type(image).__module__} {getattr(image, 'dtype', getattr(image, 'mode', ''))}",
)
def test_the_same_numbers_are_the_same_image_everywhere(image_processor, image):
    """`predict_dense` and a call of the processor see one image, whichever kind holds its numbers."""
    np.testing.assert_array_equal(np.asarray(image_processor.load_picture(image)), RGB)
    expected = image_processor(PIL.Image.fromarray(RGB), return_tensors="pt")["pixel_values"]
    assert torch.equal(image_processor(image, return_tensors="pt")["pixel_values"], expected)


def test_floats_up_to_255_and_without_rescaling(image_processor):
    expected = image_processor(PIL.Image.fromarray(RGB), return_tensors="pt")["pixel_values"]
    assert torch.equal(image_processor(RGB.astype(np.float32), return_tensors="pt")["pixel_values"], expected)
    large = np.asarray(make_image(32, 32))
    own = image_processor(large.astype(np.float32) / 255, do_rescale=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(own, image_processor(large, return_tensors="pt")["pixel_values"])


def test_a_16_bit_file_is_16_bit_however_dark_it_is(image_processor, tmp_path):
    (tmp_path / "dark.pgm").write_bytes(b"P5 3 2 65535\n" + GREY.astype(">u2").tobytes())
    assert np.asarray(image_processor.load_picture(tmp_path / "dark.pgm")).max() == 1
    PIL.Image.fromarray(GREY.astype(np.uint16)).save(tmp_path / "dark.png")
    assert np.asarray(image_processor.load_picture(tmp_path / "dark.png")).max() == 1


@pytest.mark.parametrize(
    "image",
    [
        np.full((4, 4, 3), 1.02, np.float32),  # an overshoot, and not a black image of 0 to 255
        np.full((4, 4, 3), -0.1),
        np.full((4, 4, 3), 256.0),
        np.full((4, 4, 3), np.nan),
        np.full((4, 4, 3), np.inf, np.float16),
        PIL.Image.fromarray(np.full((4, 4), 1.5, np.float32)),
        PIL.Image.fromarray(np.full((4, 4), -1.0, np.float32)),
        PIL.Image.fromarray(np.full((4, 4), np.nan, np.float32)),
        PIL.Image.fromarray(np.full((4, 4), -1, np.int32)),
        PIL.Image.fromarray(np.full((4, 4), 65536, np.int32)),
        np.full((4, 4, 3), 256, np.int32),
        np.full((4, 4, 3), -1, np.int8),
        np.full((4, 4, 3), 1j),
        np.full((4, 4, 3), None),
        torch.zeros(3, 4, 4, dtype=torch.complex64),
        torch.zeros(3, 4, 4).to_sparse(),
        torch.zeros(3, 4, 4, device="meta"),
    ],
    ids=lambda image: f"{type(image).__module__} {getattr(image, 'dtype', getattr(image, 'mode', ''))}",
)
def test_numbers_of_no_range_are_refused(image_processor, image):
    for call in (image_processor.load_picture, image_processor):
        with pytest.raises(ValueError, match="`images`"):
            call(image)


# ---- size ----


@pytest.mark.parametrize("name", ["uint8", "RGBA", "float32", "float64", "uint16", "bool"])
def test_memory_is_that_of_the_pixels(image_processor, name):
    """Beyond the array that is given and the result: no copy of the image in floating point."""
    values = np.random.default_rng(0).integers(0, 256, (1600, 2000, 4 if name == "RGBA" else 3), dtype=np.uint8)
    image = {
        "uint8": lambda: values, "RGBA": lambda: values, "float32": lambda: values / np.float32(255),
        "float64": lambda: values / 255, "uint16": lambda: values * np.uint16(257), "bool": lambda: values > 99,
    }[name]()  # fmt: skip
    for call in (image_processor.load_picture, lambda image: image_processor(image, max_num_patches=1024)):
        tracemalloc.start()
        call(image)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * values.size + 60 * 2**20


def test_maps_are_drawn_in_the_memory_of_the_map():
    depth = np.linspace(1, 9, 3_000_000, dtype=np.float32).reshape(1500, 2000)
    prediction = DensePrediction(predicted_depth=torch.from_numpy(depth))
    image = make_image(150, 200)
    for call in (lambda: colorize_depth(depth), lambda: prediction.overlay(image)):
        tracemalloc.start()
        drawn = call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * 3 * depth.size + 40 * 2**20
    colors = colorize_depth(depth)
    np.testing.assert_array_equal(colors[700:703], colorize_depth(depth[700:703], 1.0, 9.0))
    below = np.asarray(image.resize((2000, 1500), PIL.Image.Resampling.BILINEAR))
    expected = np.float32(0.55) * colors + np.float32(0.45) * below
    np.testing.assert_allclose(np.asarray(drawn), expected, atol=0.51)


def test_bands_are_the_whole(image_processor):
    """Large enough for several bands, and not a multiple of one."""
    pixels = [np.asarray(make_image(1120, 1312)), np.asarray(make_image(64, 96, seed=1))]
    inputs = image_processor(pixels, return_tensors="pt")
    expected = []
    for image in pixels:
        values = ((torch.from_numpy(image.copy()).permute(2, 0, 1).double() / 255).float() - 0.5) / 0.5
        grid = [edge // 32 for edge in image.shape[:2]]
        blocks = values.reshape(3, grid[0], 2, 16, grid[1], 2, 16).permute(1, 4, 2, 5, 3, 6, 0)
        expected.append(blocks.reshape(-1, 768))
    torch.testing.assert_close(inputs["pixel_values"], torch.cat(expected))
    assert inputs["image_grid_thw"].tolist() == [[1, 70, 82], [1, 4, 6]]


def test_a_limit_of_a_call_counts_before_decoding(image_processor, processor, tmp_path):
    (tmp_path / "a.png").write_bytes(PNG[:60])  # the header is there, the pixels are not
    model = make_model(processor)
    calls = (
        lambda image, **limit: image_processor(image, **limit),
        lambda image, **limit: image_processor.load_picture(image, **limit),
        lambda image, **limit: processor(images=image, text="<|image_pad|>", **limit),
        lambda image, **limit: model.predict_dense(image, task="depth", processor=processor, **limit),
        lambda image, **limit: model.encode_image(image, processor=processor, **limit),
    )
    for call in calls:
        for image in (str(tmp_path / "a.png"), PNG[:60], IMAGE, ARRAY):
            with pytest.raises(ValueError, match="`max_image_pixels` = 599 pixels"):
                call(image, max_image_pixels=599)
        call(IMAGE, max_image_pixels=600)
    # The crop around a box is larger than its image, and is not what the limit is for.
    box = (2, 2, 20, 15)
    mask = model.predict_dense(IMAGE, task="referring", box=box, processor=processor, max_image_pixels=600).mask
    assert mask.shape == (20, 30)


@pytest.mark.parametrize(
    "sizes",
    [5, None, "ab", [5], [(5,)], [(5, 5, 5)], [(5.7, 5)], [(float("nan"), 5)], [(float("inf"), 5)], [("5", "5")],
     [(0, 5)], [(-5, -5)], [(5, 5), (5, 5)], []],
)  # fmt: skip
def test_sizes_that_are_none_are_named(sizes):
    with pytest.raises((TypeError, ValueError), match="`target_sizes` must be one pair"):
        check_target_sizes(sizes, 1)


def test_sizes_have_a_bound(image_processor, processor):
    for form in (
        [(4, 5)],
        ((4, 5),),
        [[4.0, 5.0]],
        np.array([[4, 5]]),
        torch.tensor([[4, 5]]),
        [torch.tensor([4, 5])],
    ):
        assert check_target_sizes(form, 1) == [(4, 5)]
    message = "`target_sizes` has 100000x100000, which is 10000000000 pixels; accepted are at most 178956970"
    outputs = type("Outputs", (), {"logits": torch.zeros(1, 16, 2, 2), "predicted_depth": torch.zeros(1, 2, 2)})
    model = make_model(processor)
    for call in (
        lambda sizes: image_processor.post_process_semantic_segmentation(outputs, sizes),
        lambda sizes: image_processor.post_process_depth_estimation(outputs, sizes),
        lambda sizes: processor.post_process_depth_estimation(outputs, sizes),
        lambda sizes: model.predict_dense([IMAGE], task="depth", processor=processor, target_sizes=sizes),
    ):
        with pytest.raises(ValueError, match=message):
            call([(100_000, 100_000)])


def test_segments_are_counted_in_parts():
    generator = torch.Generator().manual_seed(0)
    segmentation = torch.tensor([-1, 3, 700, 40])[torch.randint(0, 4, (1100, 1300), generator=generator)]
    scores = torch.rand(segmentation.shape, generator=generator)
    rows = class_segments(segmentation, scores, {700: "sky", 3: "road", 40: "car", 5: "cat"})
    assert [row["id"] for row in rows] == [3, 40, 700] and [row["label"] for row in rows] == ["road", "car", "sky"]
    for row in rows:
        own = segmentation == row["id"]
        assert row["area"] == int(own.sum()) and row["score"] == pytest.approx(float(scores[own].double().mean()))
