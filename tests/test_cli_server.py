"""`densemllm ... --server URL`: what is written is what the same command writes without it."""

import numpy as np
import pytest
import torch

from densemllm import DenseMLLMForConditionalGeneration
from densemllm.cli import main
from tiny import ID2LABEL, make_image, make_model, make_processor
from vllm_server import serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli_server")
    processor = make_processor(referring_prompt="find {text}")
    make_model(processor, id2label=ID2LABEL).save_pretrained(path / "model")
    processor.save_pretrained(path / "model")
    make_image(30, 50).save(path / "a.png")
    make_image(24, 40, 1).save(path / "b.png")
    return path


@pytest.fixture(scope="module")
def servers(folder):
    model = DenseMLLMForConditionalGeneration.from_pretrained(folder / "model").eval()
    with serving(model, pools=True) as pooling, serving(model, pools=False) as chatting:
        yield pooling, chatting


def run(folder, *arguments) -> int:
    return main([str(argument) for argument in (*arguments, "--model", folder / "model")])


@pytest.mark.parametrize(
    "arguments",
    [
        ["segment"],
        ["segment", "--labels", "wall,cat", "--scale", "2"],
        ["depth", "--depth_range", "road", "--focal_length", "80"],
        ["predict", "--task", "referring", "--text", "the red ball"],
    ],
)
def test_maps(folder, servers, tmp_path, arguments):
    command, *options = arguments
    images = [folder / "a.png", folder / "b.png"]
    common = [command, *images, *options, "--suffix", ".npy", "--out"]
    assert run(folder, *common, tmp_path / "own") == 0
    assert run(folder, *common, tmp_path / "served", "--server", servers[0].url) == 0
    for name in ("a.npy", "b.npy"):
        own, served = (torch.from_numpy(np.load(tmp_path / place / name)) for place in ("own", "served"))
        torch.testing.assert_close(served, own, atol=1e-5, rtol=0)


def test_answers(folder, servers, capsys):
    question = ["ask", folder / "a.png", "a cat?", "--max_new_tokens", "4"]
    assert run(folder, *question) == 0
    own = capsys.readouterr().out
    assert run(folder, *question, "--server", servers[1].url) == 0
    assert capsys.readouterr().out == own
    assert run(folder, *question, "--server", servers[0].url, "--chat_server", servers[1].url) == 0
    assert capsys.readouterr().out == own


def test_what_goes_wrong_is_one_line(folder, servers, tmp_path, capsys, monkeypatch):
    segment = ["segment", folder / "a.png", "--out", tmp_path / "a.png"]
    for options, message in (
        (["--server", "localhost"], "--server must be the address of a server"),
        (["--chat_server", servers[1].url], "--chat_server is given without --server"),
        (["--server", servers[0].url, "--dtype", "bfloat16"], "--dtype bfloat16 says nothing to --server"),
        (["--server", "http://127.0.0.1:9"], "http://127.0.0.1:9/v1/models can't be reached"),
        (["--server", servers[1].url], "HTTP 404"),
    ):
        assert run(folder, *segment, *options) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "a.png").exists()
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert run(folder, *segment, "--server", servers[0].url) == 0
    assert servers[0].seen[-1][1]["headers"]["Authorization"] == "Bearer secret"
