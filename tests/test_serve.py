"""transformers' own server with a checkpoint of this package: chats about images over loopback."""

import base64
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager

import pytest

from densemllm import DenseMLLMForConditionalGeneration, serve
from repository import ROOT, require


CHECKPOINT, IMAGE = "checkpoints/densemllm-rooms", "examples/rooms/room.jpg"
QUESTION = "Which classes are in the image?"
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")
pytest.importorskip("openai")
require(CHECKPOINT)
require(IMAGE)


def chat(port: int, stream: bool) -> str:
    data = base64.b64encode((ROOT / IMAGE).read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}},
        {"type": "text", "text": QUESTION},
    ]
    body = {"model": str(ROOT / CHECKPOINT), "messages": [{"role": "user", "content": content}], "stream": stream}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps({**body, "max_tokens": 32}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read().decode()
    if not stream:
        return json.loads(text)["choices"][0]["message"]["content"]
    rows = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]
    return "".join(row["choices"][0]["delta"].get("content") or "" for row in rows)


@contextmanager
def served(monkeypatch, *options: str):
    """The port of a server that `main` runs in a thread; its exit status is checked at the end."""
    servers, ends = [], []

    def run(server, sockets=None, own=uvicorn.Server.run):
        servers.append(server)
        own(server, sockets)

    monkeypatch.setattr(uvicorn.Server, "run", run)
    arguments = [str(ROOT / CHECKPOINT), "--host", "127.0.0.1", "--port", "0", "--device", "cpu", *options]
    thread = threading.Thread(target=lambda: ends.append(serve.main(arguments)), daemon=True)
    thread.start()
    while thread.is_alive() and not (servers and servers[0].started):
        time.sleep(0.05)
    assert servers and servers[0].started
    yield servers[0].servers[0].sockets[0].getsockname()[1]
    servers[0].should_exit = True
    thread.join(30)
    assert ends == [0]


def test_a_chat_about_an_image(monkeypatch):
    model = DenseMLLMForConditionalGeneration.from_pretrained(ROOT / CHECKPOINT).eval()
    expected = model.query(ROOT / IMAGE, QUESTION, max_new_tokens=32)
    assert expected
    with served(monkeypatch) as port:
        assert chat(port, stream=False) == chat(port, stream=True) == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere/at-all"], "nowhere/at-all"),
        ([str(ROOT / "tests")], "config.json"),
        ([str(ROOT / CHECKPOINT), "--prt", "3"], "--prt"),
        ([str(ROOT / CHECKPOINT), "--attn-implementation", "fast"], "fast"),
    ],
)
def test_what_cannot_be_served_is_said_before_a_server_starts(arguments, said, capsys, monkeypatch):
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_: pytest.fail("a server started"))
    assert serve.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_help_is_that_of_the_server(capsys):
    assert serve.main(["--help"]) == 0
    assert "--port" in capsys.readouterr().out


PLAIN = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "densemllm" or name.startswith("densemllm."):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
from transformers.cli.transformers import main

sys.argv = ["transformers", "serve", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
def test_plain_transformers_serve_needs_the_flag_and_nothing_else(tmp_path):
    """In a process that has no such package: the code that stands beside the checkpoint is all there is."""
    process = subprocess.Popen(
        [
            sys.executable, "-c", PLAIN, str(ROOT / CHECKPOINT), "--trust-remote-code", "--host", "127.0.0.1",
            "--port", "0", "--device", "cpu",
        ],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if "running on" in line:
                break
        else:
            pytest.fail("".join(said))
        port = int(said[-1].split("127.0.0.1:")[1].split()[0])
        model = DenseMLLMForConditionalGeneration.from_pretrained(ROOT / CHECKPOINT).eval()
        expected = model.query(ROOT / IMAGE, QUESTION, max_new_tokens=32)
        assert chat(port, stream=False) == chat(port, stream=True) == expected
    finally:
        process.terminate()
        process.communicate(timeout=30)
