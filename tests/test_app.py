"""The demo page, used as a person would: in a browser, with an upload, a click and a look."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from io import BytesIO

import numpy as np
import PIL.Image
import pytest

from repository import require
from tiny import ID2LABEL, make_image, make_model, make_processor


pytest.importorskip("gradio", reason="the page: pip install densemllm[demo]")
webdriver = pytest.importorskip("selenium.webdriver", reason="a browser's remote control: pip install selenium")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="apt-get install chromium chromium-driver")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    processor = make_processor(referring_prompt="find {text}")
    make_model(processor, id2label=ID2LABEL).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    make_image(60, 80).save(folder / "photo.png")
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        port = own.getsockname()[1]
    command = [sys.executable, require("examples/app.py"), "--model", folder / "model", "--port", str(port)]
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            time.sleep(0.5)
            with contextlib.suppress(OSError):
                urllib.request.urlopen(address, timeout=5).read()
                break
            assert server.poll() is None, (folder / "log").read_text()
        yield address, folder
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1400,1500")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def wait_for(found, seconds: float = 60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            value = found()
            if value:
                return value
        time.sleep(0.3)
    raise AssertionError("the page didn't show it in time")


@needs_browser
@pytest.mark.slow
def test_a_picture_is_uploaded_looked_at_and_probed(page, browser):
    address, folder = page
    by_css = webdriver.common.by.By.CSS_SELECTOR
    browser.get(address)
    look = wait_for(lambda: browser.find_element(by_css, "#look"))

    look.click()  # too early: told so in plain words
    wait_for(lambda: "There is no picture yet" in browser.find_element(by_css, "body").text)

    browser.find_element(by_css, "#picture input[type=file]").send_keys(str(folder / "photo.png"))
    wait_for(lambda: browser.find_element(by_css, "#picture img"))
    browser.find_element(by_css, "#text textarea, #text input").send_keys("the cat")
    look.click()
    images = {
        name: wait_for(lambda name=name: browser.find_element(by_css, f"#{name} img")) for name in ("classes", "depth")
    }
    wait_for(lambda: all(image.get_property("naturalWidth") > 80 for image in images.values()))  # with their legends
    words = wait_for(lambda: browser.find_element(by_css, "#words").text)
    assert "the cat" in words or "Nothing" in words

    images["depth"].click()
    probe = wait_for(lambda: "m" in browser.find_element(by_css, "#probe strong:last-of-type").text
                     and browser.find_element(by_css, "#probe").text)  # fmt: skip
    assert any(name in probe for name in [*ID2LABEL.values(), "none of them"]), probe
    with PIL.Image.open(BytesIO(images["depth"].screenshot_as_png)) as shot:
        assert np.asarray(shot.convert("RGB")).std() > 20  # a map is to be seen
    browser.save_screenshot(str(folder / "page.png"))
