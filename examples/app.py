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
"""

import argparse

import gradio as gr
import PIL.Image

from densemllm import DenseMLLMForConditionalGeneration, DensePrediction


HINT = "Click into the picture or a map: class and metres at that place."


class Demo:
    """What the page's buttons call."""

    def __init__(self, model: DenseMLLMForConditionalGeneration):
        self.model = model
        names = {int(key): name for key, name in model.config.id2label.items()}
        generic = all(name == f"LABEL_{key}" for key, name in names.items())
        self.labels = "" if generic else ", ".join(names.values())

    def look(self, picture, labels: str, text: str, focal_length, progress=gr.Progress()):  # noqa: B008 - gradio's way
        """Maps of a picture: pictures of classes, depth and the object, a line of words, and what the probe reads."""
        if picture is None:
            raise gr.Error("There is no picture yet: drop one into the box at the left.")
        names = [name.strip() for name in labels.split(",") if name.strip()] or None
        try:
            progress(0.1, desc="reading the picture")
            focal_length = float(focal_length) if focal_length else None
            encoded = self.model.encode_image(picture, focal_length=focal_length)
            progress(0.5, desc="classes")
            classes = self.model.predict_dense(encoded, task="segmentation", labels=names)
            progress(0.7, desc="depth")
            depth = self.model.predict_dense(encoded, task="depth", focal_length=focal_length)
            found, words = None, ""
            if text.strip():
                progress(0.85, desc="the object")
                found = self.model.predict_dense(encoded, task="referring", text=text)
                share = 100 * float(found.mask.float().mean())
                words = (
                    f"“{text.strip()}” covers {share:.1f} % of the picture." if share else "Nothing of it was found."
                )
        except (ValueError, TypeError, OSError) as error:
            raise gr.Error(str(error)) from error
        state = {
            "segmentation": classes.segmentation.numpy(),
            "depth": depth.predicted_depth.numpy(),
            "labels": classes.labels,
        }
        object_picture = None if found is None else found.overlay(picture, "mask")
        return (
            _with_legend(classes, picture), depth.to_pil("predicted_depth", legend=True), object_picture, words, state,
            HINT,
        )  # fmt: skip

    @staticmethod
    def probe(state: dict | None, event: gr.SelectData) -> str:
        """Class and metres at the place of a click, `event.index` (x, y) in pixels of the picture."""
        if not state:
            return "Nothing to read yet: press “Look” first."
        x, y = (int(place) for place in event.index)
        height, width = state["depth"].shape
        if not (0 <= x < width and 0 <= y < height):
            return HINT
        label = state["labels"].get(int(state["segmentation"][y, x]), "none of them")
        return f"({x}, {y}): **{label}**, **{state['depth'][y, x]:.2f} m**"


def _with_legend(classes: DensePrediction, picture: PIL.Image.Image) -> PIL.Image.Image:
    """The classes laid over the picture, and their names at the right."""
    sheet = classes.to_pil("segmentation", legend=True)
    sheet.paste(classes.overlay(picture, "segmentation", alpha=0.7))
    return sheet


def make_page(demo: Demo) -> gr.Blocks:
    with gr.Blocks(title="densemllm", analytics_enabled=False) as page:
        gr.Markdown("# densemllm\nClasses, metres and referred objects from the vision tokens of a multimodal LLM.")
        state = gr.State()
        with gr.Row():
            with gr.Column(scale=1):
                picture = gr.Image(type="pil", label="picture", elem_id="picture")
                text = gr.Textbox(label="find", placeholder="the chair on the left", elem_id="text")
                labels = gr.Textbox(
                    label="classes", value=demo.labels, info="empty: the model names them itself", lines=2
                )
                focal_length = gr.Number(
                    label="focal length in pixels", info="if it is known: makes metres right", value=None
                )
                look = gr.Button("Look", variant="primary", elem_id="look")
            with gr.Column(scale=2):
                probe = gr.Markdown(HINT, elem_id="probe")
                with gr.Row():
                    classes = gr.Image(label="classes", interactive=False, elem_id="classes")
                    depth = gr.Image(label="depth", interactive=False, elem_id="depth")
                found = gr.Image(label="object", interactive=False, elem_id="object")
                words = gr.Markdown(elem_id="words")
        shown = [classes, depth, found, words, state, probe]
        look.click(demo.look, [picture, labels, text, focal_length], shown)
        # What was seen is not of another picture.
        picture.change(lambda: (None, None, None, "", None, HINT), None, shown)
        for own in (picture, classes, depth):
            own.select(demo.probe, [state], [probe])
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/densemllm-rooms", help="folder or Hub name of a checkpoint")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: all of this machine's")
    parser.add_argument("--port", type=int, default=7860)
    args = parser.parse_args()
    model = DenseMLLMForConditionalGeneration.from_pretrained(args.model).eval()
    make_page(Demo(model)).queue().launch(server_name=args.host, server_port=args.port)


if __name__ == "__main__":
    main()
