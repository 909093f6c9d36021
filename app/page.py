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
"""The page: its fields, and what their events call."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from densemllm.app import limits, readings
from densemllm.task_base_densemllm import CRF, GUIDED, DenseTask

from .demo import FIELDS, Demo, PageError, Shown, in_words, words_of


FOLDER = Path(__file__).parent
EXAMPLES = sorted(FOLDER.glob("examples/*.jpg"))
# Fonts that browsers have: the page asks no other host for anything.
THEME = gr.themes.Soft(
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
    font_mono=["ui-monospace", "Consolas", "monospace"],
)
# Fields that some tasks take and others don't.
TASK_FIELDS = ("text", "labels", "thing_labels")
MODEL_QUEUE = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "public"}
AT_ONCE = {"concurrency_limit": None, "queue": False, "show_progress": "hidden"}
NO_ANSWER = "(no answer)"
# On a phone the map is below the fields.
SHOW = "() => document.querySelector('#said').scrollIntoView({ behavior: 'smooth', block: 'nearest' }) ?? []"
START = "Choose an image and a task, then press “Predict”."
EDGES = {"as predicted": "", "guided by the image": GUIDED, "by a CRF": CRF}


def make_page(demo: Demo) -> gr.Blocks:
    """The page of a model."""
    with gr.Blocks(title="densemllm", analytics_enabled=False, delete_cache=(60, limits.FILE_SECONDS)) as page:
        gr.Markdown(
            "# densemllm\nMaps and answers from the vision tokens of a multimodal LLM, without a head or a decoder."
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                image = _upload_field(
                    label="image", elem_id="image", height=280, sources=["upload", "clipboard"], buttons=["fullscreen"]
                )
                if EXAMPLES:
                    gr.Examples([[str(path)] for path in EXAMPLES], [image], label="or a room", elem_id="examples")
                inputs = _task_fields(demo)
                look = gr.Button("Predict", variant="primary", elem_id="predict")
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                with gr.Tab("Map", id="map"):
                    shown = _map_tab()
                with gr.Tab("Questions", id="questions"):
                    chat = _chat_tab()
                if demo.can_measure:
                    with gr.Tab("In space", id="space"):
                        space = _space_tab()
        task, *fields = inputs
        focal_length = fields[-2]
        task.change(lambda name: _of_task(demo, name), [task], [task, *fields], **AT_ONCE, api_visibility="private")
        done = look.click(
            _predicting(demo), [image, *inputs], shown, show_progress_on=[look, shown[1]], api_name="predict",
            **MODEL_QUEUE,
        )  # fmt: skip
        done.then(None, js=SHOW, api_visibility="private")
        _connect_chat(demo, image, focal_length, chat)
        if demo.can_measure:
            button, *outputs = space
            button.click(
                _measuring(demo), [image, focal_length], outputs, show_progress_on=outputs[1], api_name="points",
                **MODEL_QUEUE,
            )  # fmt: skip
        # What was seen is not of another image. It waits for nobody's prediction.
        in_space = space[1:] if demo.can_measure else []

        def forget(path):
            points = ["", _hidden(), _hidden()] if in_space else []
            return [demo.camera(path), *_nothing_shown(), [], "", *points]

        cleared = [focal_length, *shown, *chat[:2], *in_space]
        image.change(forget, [image], cleared, api_name="forget", **AT_ONCE)
    return page


def launch(page: gr.Blocks, **kwargs: Any) -> tuple[Any, str, str | None]:
    """Serve the page with its bounds, by threads of their own.

    Args:
        page: of [`make_page`].
        kwargs: for gradio's own `launch`.

    Returns:
        the web application, its address, and its public address where there is one.
    """
    return page.queue(max_size=limits.MAX_QUEUE).launch(
        max_file_size=limits.MAX_UPLOAD_BYTES, theme=THEME, css_paths=FOLDER / "page.css", ssr_mode=False,
        footer_links=["api", "settings"], prevent_thread_lock=True, quiet=True, enable_monitoring=False,
        **kwargs,
    )  # fmt: skip


# ---- parts of the page ----


def _upload_field(**kwargs: Any) -> gr.Image:
    """An image field that hands on the uploaded file as it is: what is wrong with it is said by [`Demo.read`], where
    gradio's own reading would end in an error without words."""
    field = gr.Image(type="filepath", image_mode=None, **kwargs)
    field.preprocess = lambda payload: None if payload is None else payload.path
    return field


def _task_fields(demo: Demo) -> list[gr.components.Component]:
    """The task, and what is told it: words, names, focal length, edges."""
    first = demo.tasks[demo.first_task]
    is_shown = {name: name in first.options for name in TASK_FIELDS}
    task = gr.Radio(
        [(words_of(own), name) for name, own in demo.tasks.items()], value=demo.first_task, label="task",
        info=in_words(first.about), elem_id="task",
    )  # fmt: skip
    text = gr.Textbox(
        label=FIELDS["text"], placeholder="the chair on the left", elem_id="text", visible=is_shown["text"]
    )
    labels = gr.Textbox(
        label=FIELDS["labels"], value=demo.labels, info="one a line; empty: the model names them itself", lines=4,
        max_lines=8, elem_id="labels", visible=is_shown["labels"],
    )  # fmt: skip
    things = gr.Textbox(
        label=FIELDS["thing_labels"], value=demo.things, info="those of the classes that have objects, one a line",
        lines=2, max_lines=8, elem_id="things", visible=is_shown["thing_labels"],
    )  # fmt: skip
    with gr.Accordion("camera and edges", open=False):
        focal_length = gr.Textbox(
            label=FIELDS["focal_length"], info="in pixels, if it is known: makes metres right", placeholder="unknown",
            elem_id="focal_length",
        )  # fmt: skip
        refine = gr.Radio(
            _edges_of(first), value="", label=FIELDS["refine"], info="where maps change", elem_id="refine"
        )
    return [task, text, labels, things, focal_length, refine]


def _map_tab() -> list[gr.components.Component]:
    """What a prediction fills, see [`_shown`]."""
    said = gr.HTML(readings.message(START), elem_id="said")
    view = gr.ImageSlider(
        visible=False,
        show_label=False,
        interactive=False,
        elem_id="view",
        buttons=["fullscreen"],
        max_height=640,
        format="png",
    )
    place = gr.HTML(
        readings.reading("", {}), elem_id="place", js_on_load=(FOLDER / "reading.js").read_text(encoding="utf-8"),
        target="#view",
    )  # fmt: skip
    legend = gr.HTML(elem_id="legend")
    files = gr.File(label="files", file_count="multiple", interactive=False, elem_id="files", visible=False)
    return [said, view, place, legend, files]


def _chat_tab() -> list[gr.components.Component]:
    chat = gr.Chatbot(
        show_label=False, height=380, elem_id="chat", render_markdown=False, buttons=["copy"], feedback_options=None,
        placeholder="Ask about the image. The questions before are remembered.", allow_tags=True,
    )  # fmt: skip
    said = gr.HTML(elem_id="chat_said")
    with gr.Row():
        question = gr.Textbox(
            show_label=False, container=False, placeholder="How many chairs are there?", scale=4, elem_id="question",
            max_length=limits.MAX_CHARACTERS, min_width=180,
        )  # fmt: skip
        send = gr.Button("Ask", variant="primary", scale=1, min_width=70, elem_id="ask")
    return [chat, said, question, send]


def _space_tab() -> list[gr.components.Component]:
    gr.Markdown("Every pixel at its depth. Drag to turn, scroll or pinch to come closer.")
    show = gr.Button("Show the points", variant="primary", elem_id="show_points")
    said = gr.HTML(elem_id="space_said")
    cloud = gr.Model3D(visible=False, show_label=False, elem_id="cloud", height=460, interactive=False)
    file = gr.File(label="files", interactive=False, elem_id="cloud_file", visible=False)
    return [show, said, cloud, file]


# ---- what events call ----


def _edges_of(task: DenseTask) -> list[tuple[str, str]]:
    return [(said, value) for said, value in EDGES.items() if value in ("", *task.refinements)]


def _of_task(demo: Demo, name: str) -> list[Any]:
    """The fields as a task wants them."""
    task = demo.tasks[name]
    visible = [gr.update(visible=field in task.options) for field in TASK_FIELDS]
    return [gr.update(info=in_words(task.about)), *visible, gr.update(), gr.update(choices=_edges_of(task), value="")]


def _hidden() -> dict[str, Any]:
    return gr.update(value=None, visible=False)


def _nothing_shown(wrong: str = "") -> list[Any]:
    said = readings.message(wrong, is_error=True) if wrong else readings.message(START)
    return [said, _hidden(), readings.reading("", {}), "", _hidden()]


def _shown(found: Shown) -> list[Any]:
    view = gr.update(value=(found.image, found.drawn), visible=True)
    files = gr.update(value=found.files, visible=bool(found.files))
    return [readings.message(found.about), view, found.reading, found.legend, files]


def _predicting(demo: Demo) -> Callable[..., list[Any]]:
    def predict(path, name, text, labels, things, focal_length, refine, progress=gr.Progress()):  # noqa: B008 - gradio's way
        try:
            return _shown(demo.predict(path, name, text, labels, things, focal_length, refine, progress))
        except PageError as error:
            return _nothing_shown(str(error))

    return predict


def _connect_chat(demo: Demo, image: gr.Image, focal_length: gr.Textbox, parts: list[gr.components.Component]) -> None:
    chat, said, question, send = parts

    def ask(path, text, turns, focal_length, progress=gr.Progress()):  # noqa: B008 - gradio's way
        if not (text or "").strip():
            return gr.skip(), "", gr.skip()
        turns = [*turns, {"role": "user", "content": text.strip()}]
        try:
            answer = demo.answer(path, [_plain(turn) for turn in turns], focal_length, progress)
        except PageError as error:
            return gr.skip(), readings.message(str(error), is_error=True), gr.skip()
        return [*turns, {"role": "assistant", "content": answer or NO_ANSWER}], "", ""

    gr.on(
        [send.click, question.submit], ask, [image, question, chat, focal_length], [chat, said, question],
        show_progress_on=chat, api_name="ask", **MODEL_QUEUE,
    )  # fmt: skip
    chat.clear(lambda: "", None, [said], api_visibility="private", **AT_ONCE)


def _plain(turn: dict[str, Any]) -> dict[str, str]:
    """A turn of gradio's, whose content may be in parts, as one of words alone."""
    content = turn["content"]
    parts = [content] if isinstance(content, (str, dict)) else content
    words = [part if isinstance(part, str) else str(part.get("text") or "") for part in parts]
    return {"role": turn["role"], "content": "\n".join(words)}


def _measuring(demo: Demo) -> Callable[..., list[Any]]:
    def measure(path, focal_length, progress=gr.Progress()):  # noqa: B008 - gradio's way
        try:
            cloud = demo.measure(path, focal_length, progress)
        except PageError as error:
            return [readings.message(str(error), is_error=True), _hidden(), _hidden()]
        shown, whole = gr.update(value=cloud.shown, visible=True), gr.update(value=cloud.file, visible=True)
        return [readings.message(cloud.about), shown, whole]

    return measure
