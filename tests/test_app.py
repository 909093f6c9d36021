"""The page in a browser, as wide as a desk's and as a phone's: an upload, every task, the slider, questions, points in
space, downloads."""

import shutil
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import densemllm
from densemllm import DenseMLLMForConditionalGeneration
from densemllm.tasks_densemllm import TASKS
from repository import require


pytest.importorskip("gradio", reason="the page: pip install densemllm[demo]")
playwright = pytest.importorskip("playwright.sync_api", reason="a browser's remote control: pip install playwright")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("apt-get install chromium", allow_module_level=True)
from densemllm.app.demo import Demo  # noqa: E402
from densemllm.app.page import launch, make_page  # noqa: E402


pytestmark = pytest.mark.slow

MODEL = require("checkpoints/densemllm-rooms")
PHOTO = Path(densemllm.__file__).parent / "app" / "examples" / "desk.jpg"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-unsafe-swiftshader"
).split()
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
NOT_OURS = "BJS -"  # the 3D viewer tries WebGPU first


@pytest.fixture(scope="module")
def model():
    return DenseMLLMForConditionalGeneration.from_pretrained(MODEL).eval()


@pytest.fixture(scope="module")
def address(model):
    page = make_page(Demo(model))
    _, address, _ = launch(page)
    yield address
    page.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as control:
        own = control.chromium.launch(executable_path=CHROMIUM, args=FLAGS, headless=True)
        yield own
        own.close()


@pytest.fixture(params=WIDTHS)
def page(request, browser, address):
    """The page, of which no part is wider than the window; and it asks no other host and reports no error."""
    width, height = WIDTHS[request.param]
    is_phone = request.param == "phone"
    context = browser.new_context(viewport={"width": width, "height": height}, is_mobile=is_phone, has_touch=is_phone)
    page, wrong = context.new_page(), []
    page.set_default_timeout(30_000)
    page.is_phone = is_phone
    page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    own = (address, "blob:", "data:")
    page.on("request", lambda asked: None if asked.url.startswith(own) else wrong.append(asked.url))
    page.goto(address)
    page.wait_for_selector("#predict")
    yield page
    assert not [line for line in wrong if NOT_OURS not in line]
    assert not page.query_selector_all(".toast-body") and not page.query_selector_all(".error")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def predict(page, task: str) -> None:
    """Choose a task, fill in what it needs, and wait for its map."""
    before = page.get_attribute("#place .reading", "data-maps")
    page.click(f"#task label:has-text('{task}')")
    if "text" in TASKS[task].needs:
        page.fill("#text textarea, #text input", "the table")
    page.click("#predict")
    page.wait_for_function(
        "before => (document.querySelector('#place .reading').dataset.maps ?? before) !== before", arg=before
    )
    page.locator("#view img").first.scroll_into_view_if_needed()
    page.wait_for_function(
        "[...document.querySelectorAll('#view img')].filter((image) => image.naturalWidth === 256).length === 2"
    )


def point_at(page, x: float, y: float) -> dict[str, str]:
    """What the page says is at a place, in shares of the image."""
    image = page.locator("#view img").first
    image.scroll_into_view_if_needed()
    box = image.bounding_box()
    edge = min(box["width"], box["height"])  # the image is square, in the middle of its box
    at = box["x"] + (box["width"] - edge) / 2 + x * edge, box["y"] + (box["height"] - edge) / 2 + y * edge
    (page.touchscreen.tap if page.is_phone else page.mouse.move)(*at)
    page.wait_for_selector("#place .reading span")
    rows = page.query_selector_all("#place .reading span")
    return {row.query_selector("small").inner_text(): row.query_selector("b").inner_text() for row in rows}


def move_slider(page) -> None:
    page.locator("#view").scroll_into_view_if_needed()
    handle, view = page.locator("#view [data-testid=slider]"), page.locator("#view").bounding_box()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, view["y"] + view["height"] / 2
    if page.is_phone:
        finger = page.context.new_cdp_session(page)
        for kind, at in (("touchStart", x), ("touchMove", x + 30), ("touchMove", x + 60), ("touchEnd", None)):
            points = [] if at is None else [{"x": at, "y": y}]
            finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    else:
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 60, y, steps=4)
        page.mouse.up()
    assert handle.bounding_box()["x"] == pytest.approx(box["x"] + 60, abs=8)


def test_a_visit(page, model, tmp_path):
    page.click("#predict")  # too early: one sentence says so
    page.wait_for_selector(".said.wrong")
    assert page.inner_text("#said") == "There is no image yet: upload one, or choose one of the examples."

    page.click("button:has-text('camera and edges')")
    focal_length = page.locator("#focal_length input, #focal_length textarea")
    assert focal_length.input_value() == "" and focal_length.get_attribute("placeholder") == "unknown"
    page.click("#examples button >> nth=0")
    page.wait_for_selector("#image img")
    playwright.expect(focal_length).to_have_value("171")
    page.click("#image button[aria-label='Remove Image']")
    page.set_input_files("#image input[type=file]", PHOTO)
    playwright.expect(focal_length).to_have_value("164")

    known = [name for name, task in TASKS.items() if task.is_known(model.get_processor())]
    assert page.locator("#task label").all_inner_texts() == known
    seen = model.predict_dense(
        PHOTO, task=("segmentation", "depth"), labels=model.config.label_names, focal_length=164.0
    )
    for name in known:
        predict(page, name)
        for x, y in ((0.5, 0.8), (0.22, 0.3)):
            found, row, column = point_at(page, x, y), int(y * 256), int(x * 256)
            assert next(iter(found)) == name
            near = seen.segmentation[row - 2 : row + 3, column - 2 : column + 3].unique().tolist()
            assert found["segmentation"] in [model.config.label_names[key] for key in near]
            metres = float(seen.predicted_depth[row, column])
            assert float(found["depth"].removesuffix(" m")) == pytest.approx(metres, rel=0.1)
        assert page.locator("#legend li, #legend .scale span").count() > 1
        with page.expect_download() as started:
            page.click("#files a >> nth=0")
        started.value.save_as(tmp_path / "map.png")
        with PIL.Image.open(tmp_path / "map.png") as sheet:
            assert started.value.suggested_filename == f"desk_{name}.png" and np.asarray(sheet).std() > 10
    move_slider(page)

    page.click("button[role=tab]:has-text('Questions')")
    question = page.locator("#question textarea, #question input")
    for count, text in enumerate(("How many tables are there?", "What color is the table?"), 1):
        question.fill(text)
        page.click("#ask") if count == 1 else page.keyboard.press("Enter")
        playwright.expect(question).to_have_value("")  # once it is answered
        assert text in page.inner_text("#chat")
    turns = [{"role": "user", "content": "How many tables are there?"}]
    assert model.chat(PHOTO, turns, focal_length=164.0) in page.inner_text("#chat").splitlines()

    page.click("#image button[aria-label='Remove Image']")  # and nothing of it is left
    playwright.expect(page.locator("#chat")).not_to_contain_text("How many")
    page.click("button[role=tab]:has-text('Map')")
    playwright.expect(page.locator("#view")).to_be_hidden()
    assert page.inner_text("#legend") == "" and focal_length.input_value() == ""


@pytest.mark.parametrize("page", ["desktop"], indirect=True)
def test_points_are_shown_in_space(page):
    page.set_input_files("#image input[type=file]", PHOTO)
    page.wait_for_selector("#image img")
    page.click("button[role=tab]:has-text('In space')")
    page.click("#show_points")
    page.wait_for_selector("#cloud_file a")
    assert page.inner_text("#space_said") == "65536 points."
    page.wait_for_selector("#cloud canvas")
    for _ in range(60):
        with PIL.Image.open(BytesIO(page.locator("#cloud canvas").screenshot())) as shot:
            if np.asarray(shot.convert("RGB")).std() > 10:
                return
        time.sleep(0.25)
    pytest.fail("nothing is drawn")
