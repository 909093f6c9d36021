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
r"""A page to try a model on: a picture in; classes, depth and a referred object out, side by side.

    pip install -e ".[demo]"
    python examples/app.py --model checkpoints/densemllm-rooms

A click into the picture or a map tells class and metres at that place.

Several people can use it at once: predictions wait for each other, all else goes on. A request is bounded: the upload
in bytes and pixels, the picture that the model reads by `--max_pixels`, names and words in number, and all of it by
`--seconds`. For the clicks, 3 to 4 bytes a pixel are kept of the last few dozen visitors, for a quarter of an hour.
"""

import argparse
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr
import numpy as np
import PIL.Image

from densemllm import DenseMLLMForConditionalGeneration, DensePrediction
from densemllm.files import one_line, reading


HINT = "Click into the picture or a map: class and metres at that place."
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_UPLOAD_BYTES = 20 * 2**20
MAX_UPLOAD_PIXELS = 50_000_000  # decoded, it has 150 MB
MAX_EDGE = 4096  # of what the model reads and the page shows
MAX_LABELS, MAX_CHARACTERS = 256, 10_000
FOCAL_LENGTHS = (0.05, 100)  # of the picture's longer edge; 170 degrees to half a degree
SESSION_SECONDS, MAX_SESSIONS = 15 * 60, 64
CENTIMETRES = 100


class TimeLimit:
    """Ends a request that takes too long, between two layers of the model: no thread can be ended from outside.

    Args:
        model: whose forward passes are watched.
        seconds: that a request may take.
    """

    def __init__(self, model, seconds: float):
        self.seconds = seconds
        self._own = threading.local()
        for module in model.modules():
            module.register_forward_pre_hook(self._check)

    def _check(self, *_) -> None:
        if time.monotonic() > getattr(self._own, "end", math.inf):
            raise TimeoutError

    @contextmanager
    def request(self) -> Iterator[None]:
        """What is done in the block, by this thread, is one request; `TimeoutError` where it takes too long."""
        self._own.end = time.monotonic() + self.seconds
        try:
            yield
        finally:
            self._own.end = math.inf


class Demo:
    """What the page's buttons call.

    Args:
        model: of the page; its processor reads no more than `max_pixels` of a picture from then on.
        max_pixels: of a picture; a larger one is made smaller first.
        seconds: that a request may take.
    """

    def __init__(self, model: DenseMLLMForConditionalGeneration, max_pixels: int = 2**20, seconds: float = 60):
        self.model = model
        self.max_pixels = max_pixels
        self.limit = TimeLimit(model, seconds)
        processor = model.get_processor().image_processor
        patches = max(max_pixels // processor.patch_size**2, processor.merge_size**2)
        processor.max_num_patches = min(processor.max_num_patches, patches)
        self.names = model.config.label_names
        self.labels = "\n".join(one_line(name) for name in (self.names or {}).values())

    def read(self, path: str | None) -> tuple[PIL.Image.Image, tuple[int, int]]:
        """The uploaded picture, upright and as large as the model reads it, and its own size (width, height)."""
        if path is None:
            raise gr.Error("There is no picture yet: drop one into the box at the left.")
        try:
            with PIL.Image.open(path, formats=FORMATS) as opened:
                if math.prod(opened.size) > MAX_UPLOAD_PIXELS:
                    raise PIL.Image.DecompressionBombError(f"{opened.width} x {opened.height}")
                picture = self.model.get_processor().image_processor.load_picture(opened)
        except PIL.Image.DecompressionBombError as error:
            raise gr.Error(
                f"The picture is too large: at most {MAX_UPLOAD_PIXELS / 1e6:.0f} million pixels are taken ({error})."
            ) from error
        except Exception as error:  # decoders raise errors of many classes
            raise gr.Error(
                f"The file can't be read as a picture: it may be empty, cut off or of another kind. Taken are "
                f"{', '.join(FORMATS)}."
            ) from error
        size, area = picture.size, math.prod(picture.size)
        scale = min(1.0, math.sqrt(self.max_pixels / area), min(MAX_EDGE, self.max_pixels) / max(size))
        if scale < 1:
            picture = picture.resize([max(1, int(edge * scale)) for edge in size], PIL.Image.Resampling.LANCZOS)
        return picture, size

    def names_of(self, labels: str) -> "list[str] | dict[int, str] | None":
        """The class names of the text field, one a line; the checkpoint's own with their numbers."""
        if len(labels) > MAX_CHARACTERS + len(self.labels):
            raise gr.Error(f"The classes have {len(labels)} characters; at most {MAX_CHARACTERS} are taken.")
        lines = [one_line(line) for line in labels.splitlines() if line.strip()]
        if lines == self.labels.splitlines():
            return self.names
        if len(lines) > max(MAX_LABELS, len(self.names or ())):
            raise gr.Error(f"There are {len(lines)} classes; at most {MAX_LABELS} are taken.")
        return lines or None

    def look(self, path, labels: str, text: str, focal_length, progress=gr.Progress()):  # noqa: B008 - gradio's way
        """Maps of a picture: pictures of classes, depth and the object, a line of words, and what the probe reads."""
        picture, size = self.read(path)
        names, text = self.names_of(labels or ""), (text or "").strip()
        if len(text) > MAX_CHARACTERS:
            raise gr.Error(f"What to find has {len(text)} characters; at most {MAX_CHARACTERS} are taken.")
        focal_length = float(focal_length) if focal_length else None
        if focal_length is not None:
            low, high = (factor * max(size) for factor in FOCAL_LENGTHS)
            if not low <= focal_length <= high:
                raise gr.Error(f"The focal length must be {low:.0f} to {high:.0f} pixels for this picture.")
            focal_length *= picture.width / size[0]
        try:
            with self.limit.request():
                progress(0.1, desc="reading the picture")
                encoded = self.model.encode_image(picture, focal_length=focal_length)
                progress(0.5, desc="classes")
                classes = self.model.predict_dense(encoded, task="segmentation", labels=names)
                progress(0.7, desc="depth")
                depth = self.model.predict_dense(encoded, task="depth", focal_length=focal_length)
                found, words = None, ""
                if text:
                    progress(0.85, desc="the object")
                    found = self.model.predict_dense(encoded, task="referring", text=text)
                    share = 100 * float(found.mask.float().mean())
                    words = f"“{text}” covers {share:.1f} % of the picture." if share else "Nothing of it was found."
        except TimeoutError as error:
            raise gr.Error(f"It took more than {self.limit.seconds:.0f} seconds: try a smaller picture.") from error
        except MemoryError as error:
            raise gr.Error("There is not enough memory for it: try a smaller picture.") from error
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            raise gr.Error(str(error)) from error
        state = {
            "segmentation": classes.segmentation.numpy().astype(
                np.min_scalar_type(-1 - max(classes.labels, default=0))  # -1, and the highest key
            ),
            "centimetres": (depth.predicted_depth * CENTIMETRES).round().clamp(0, 65535).numpy().astype(np.uint16),
            "labels": classes.labels,
            "size": size,
        }
        object_picture = None if found is None else found.overlay(picture, "mask")
        return (
            _with_legend(classes, picture), depth.to_pil("predicted_depth", legend=True), object_picture, words, state,
            HINT,
        )  # fmt: skip

    @staticmethod
    def probe(state: dict | None, event: gr.SelectData) -> str:
        """Class and metres at the place of a click, `event.index` (x, y) in pixels of a map."""
        if not state:
            return "Nothing to read: press “Look”."
        x, y = (int(place) for place in event.index)
        height, width = state["segmentation"].shape
        if not (0 <= x < width and 0 <= y < height):
            return HINT
        label = state["labels"].get(int(state["segmentation"][y, x]), "none of them")
        return f"({x}, {y}): **{label}**, **{state['centimetres'][y, x] / CENTIMETRES:.2f} m**"

    @staticmethod
    def probe_picture(state: dict | None, event: gr.SelectData) -> str:
        """As [`probe`], in pixels of the uploaded picture."""
        if state:
            height, width = state["segmentation"].shape
            x, y = (int(place) for place in event.index)
            event.index = (x * width // state["size"][0], y * height // state["size"][1])
        return Demo.probe(state, event)


def _upload_field(**kwargs) -> gr.Image:
    """An image field that hands on the uploaded file as it is: what is wrong with it is said by [`Demo.read`], where
    gradio's own reading would end in an error without words."""
    field = gr.Image(type="filepath", image_mode=None, **kwargs)
    field.preprocess = lambda payload: None if payload is None else payload.path
    return field


def _with_legend(classes: DensePrediction, picture: PIL.Image.Image) -> PIL.Image.Image:
    """The classes laid over the picture, and their names at the right."""
    sheet = classes.to_pil("segmentation", legend=True)
    sheet.paste(classes.overlay(picture, "segmentation", alpha=0.7))
    return sheet


def make_page(demo: Demo) -> gr.Blocks:
    # Uploads and maps are files, too.
    with gr.Blocks(title="densemllm", analytics_enabled=False, delete_cache=(60, 2 * SESSION_SECONDS)) as page:
        gr.Markdown("# densemllm\nClasses, metres and referred objects from the vision tokens of a multimodal LLM.")
        state = gr.State(time_to_live=SESSION_SECONDS)
        with gr.Row():
            with gr.Column(scale=1):
                picture = _upload_field(label="picture", elem_id="picture")
                text = gr.Textbox(label="find", placeholder="the chair on the left", elem_id="text")
                labels = gr.Textbox(
                    label="classes", value=demo.labels, info="one a line; empty: the model names them itself", lines=4,
                    max_lines=12, elem_id="labels",
                )  # fmt: skip
                focal_length = gr.Number(
                    label="focal length in pixels", info="if it is known: makes metres right", value=None
                )
                look = gr.Button("Look", variant="primary", elem_id="look")
            with gr.Column(scale=2):
                probe = gr.Markdown(HINT, elem_id="probe")
                with gr.Row():
                    classes = gr.Image(label="classes", interactive=False, elem_id="classes", format="png")
                    depth = gr.Image(label="depth", interactive=False, elem_id="depth", format="png")
                found = gr.Image(label="object", interactive=False, elem_id="object", format="png")
                words = gr.Markdown(elem_id="words")
        shown = [classes, depth, found, words, state, probe]
        look.click(demo.look, [picture, labels, text, focal_length], shown, concurrency_limit=1, api_name="look")
        # What was seen is not of another picture. Clicks wait for nobody's predictions.
        at_once = {"concurrency_limit": None, "queue": False}
        picture.change(lambda: (None, None, None, "", None, HINT), None, shown, api_name="forget", **at_once)
        picture.select(demo.probe_picture, [state], [probe], **at_once)
        for own in (classes, depth):
            own.select(demo.probe, [state], [probe], **at_once)
    return page


def launch(page: gr.Blocks, **kwargs):
    """Serve the page with its bounds; `kwargs` are for gradio's own `launch`."""
    return page.queue(max_size=32).launch(
        max_file_size=MAX_UPLOAD_BYTES, state_session_capacity=MAX_SESSIONS, **kwargs
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/densemllm-rooms", help="folder or Hub name of a checkpoint")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: all of this machine's")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--max_pixels", type=int, default=2**20, help="a larger picture is made smaller first")
    parser.add_argument("--seconds", type=float, default=60, help="that a request may take")
    args = parser.parse_args()
    for name in ("max_pixels", "seconds"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name} must be greater than 0, got {getattr(args, name)}")
    try:
        with reading(f"--model {args.model}"):
            model = DenseMLLMForConditionalGeneration.from_pretrained(args.model).eval()
            demo = Demo(model, args.max_pixels, args.seconds)
        launch(make_page(demo), server_name=args.host, server_port=args.port)
    except (ValueError, OSError) as error:  # a port that is taken, too
        parser.error(one_line(error))


if __name__ == "__main__":
    main()
