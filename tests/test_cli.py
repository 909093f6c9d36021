"""`densemllm`: what is written is what the calls give."""

import json
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
import transformers

from densemllm import DenseMLLMForConditionalGeneration, __version__
from densemllm.answers_densemllm import decode_rle
from densemllm.cli import main
from densemllm.formats.folders import load_samples
from densemllm.training.samples import read_sample
from tiny import ID2LABEL, assert_maps_agree, make_image, make_model, make_processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli")
    processor = make_processor(referring_prompt="find {text}")
    make_model(processor, id2label=ID2LABEL).save_pretrained(path / "model")
    processor.save_pretrained(path / "model")
    make_image(30, 50).save(path / "a.png")
    make_image(24, 40, 1).save(path / "b.png")
    return path


@pytest.fixture(scope="module")
def model(folder):
    return DenseMLLMForConditionalGeneration.from_pretrained(folder / "model").eval()


def run(folder, *arguments) -> int:
    return main([str(argument) for argument in (*arguments, "--model", folder / "model")])


def test_depth_in_every_form(folder, model, tmp_path, capsys):
    expected = model.predict_dense(folder / "a.png", task="depth")
    depth = expected.predicted_depth.numpy()
    assert run(folder, "predict", folder / "a.png", "--task", "depth", "--out", tmp_path / "d.npy") == 0
    assert np.array_equal(np.load(tmp_path / "d.npy"), depth)
    assert f"median {float(expected.predicted_depth.median()):.2f} m" in capsys.readouterr().out
    assert run(folder, "depth", folder / "a.png", "--format", "raw", "--out", tmp_path / "raw.png") == 0
    with PIL.Image.open(tmp_path / "raw.png") as picture:
        assert picture.mode.startswith("I;16")
        assert np.abs(np.asarray(picture) / 1000 - depth).max() <= 0.0005 + 1e-6
    assert run(folder, "depth", folder / "a.png", "--out", tmp_path / "d.png") == 0
    with PIL.Image.open(tmp_path / "d.png") as picture:
        assert np.array_equal(np.asarray(picture)[:30, :50], np.asarray(expected.to_pil()))
        assert picture.width > 50  # the scale
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.npy", "d.png", "raw.png"]


def test_classes_in_every_form(folder, model, tmp_path):
    expected = model.predict_dense(folder / "a.png", labels=["wall", "floor"])
    options = ["segment", folder / "a.png", "--labels", "wall,floor", "--out"]
    assert run(folder, *options, tmp_path / "s.npy") == 0
    assert np.array_equal(np.load(tmp_path / "s.npy"), expected.segmentation.numpy())
    assert run(folder, *options, tmp_path / "s.png", "--format", "raw") == 0
    with PIL.Image.open(tmp_path / "s.png") as picture:
        assert picture.mode == "L" and np.array_equal(np.asarray(picture), expected.segmentation.numpy())
    assert run(folder, *options, tmp_path / "s.json") == 0
    for row in json.loads((tmp_path / "s.json").read_text()):
        assert np.array_equal(decode_rle(row["segmentation"]), expected.segmentation.numpy() == row["category_id"])
    assert run(folder, *options, tmp_path / "s.PNG") == 0
    with PIL.Image.open(tmp_path / "s.PNG") as picture:
        assert np.array_equal(np.asarray(picture)[:30, :50], np.asarray(expected.to_pil()))
        assert picture.width > 50  # the legend
    assert run(folder, *options, tmp_path / "o.png", "--format", "overlay") == 0
    with PIL.Image.open(tmp_path / "o.png") as picture, PIL.Image.open(folder / "a.png") as image:
        assert np.array_equal(np.asarray(picture), np.asarray(expected.overlay(image)))
    # Without labels, the checkpoint's own names.
    assert run(folder, "segment", folder / "a.png", "--out", tmp_path / "own.npy") == 0
    own = model.predict_dense(folder / "a.png", labels=ID2LABEL).segmentation
    assert np.array_equal(np.load(tmp_path / "own.npy"), own.numpy())


def test_raw_classes_where_there_is_none_and_where_there_are_many(folder, model, tmp_path):
    options = ["segment", folder / "a.png", "--format", "raw", "--overwrite", "--out", tmp_path / "s.png"]
    score = float(model.predict_dense(folder / "a.png", labels=ID2LABEL).scores.median())
    assert run(folder, *options, "--threshold", score) == 0
    expected = model.predict_dense(folder / "a.png", labels=ID2LABEL, threshold=score).segmentation.numpy()
    with PIL.Image.open(tmp_path / "s.png") as picture:
        values = np.asarray(picture)
    assert np.array_equal(values, np.where(expected < 0, 255, expected)) and (values == 255).any()
    names = [f"cat {k}" for k in range(300)]
    assert run(folder, *options, "--threshold", 0.01, "--labels", ",".join(names)) == 0
    expected = model.predict_dense(folder / "a.png", labels=names, threshold=0.01).segmentation.numpy()
    with PIL.Image.open(tmp_path / "s.png") as picture:
        assert picture.mode.startswith("I;16")
        assert np.array_equal(np.asarray(picture), np.where(expected < 0, 65535, expected))


def test_what_is_written_can_be_trained_on(folder, model, tmp_path):
    (tmp_path / "image").mkdir()
    for name in ("a", "b"):
        PIL.Image.open(folder / f"{name}.png").save(tmp_path / "image" / f"{name}.png")
    images = [folder / "a.png", folder / "b.png"]
    assert run(folder, "segment", *images, "--format", "raw", "--out", tmp_path / "segmentation") == 0
    assert run(folder, "depth", *images, "--format", "raw", "--out", tmp_path / "depth") == 0
    for row, path in zip(load_samples(str(tmp_path)), images, strict=True):
        sample = read_sample(row, id2label=ID2LABEL, depth_scale=0.001)
        expected = model.predict_dense(path, task=("segmentation", "depth"), labels=ID2LABEL)
        assert_maps_agree(torch.tensor(sample["segmentation"]).long(), expected.segmentation)
        assert (np.abs(sample["depth"] - expected.predicted_depth.numpy()) < 0.0006).mean() > 0.95


def test_several_images_and_an_object(folder, model, tmp_path):
    options = ["--task", "referring", "--text", "the cat", "--suffix", ".npy", "--out", tmp_path / "masks"]
    assert run(folder, "predict", folder / "a.png", folder / "b.png", *options) == 0
    for name in ("a", "b"):
        mask = model.predict_dense(folder / f"{name}.png", task="referring", text="the cat").mask
        assert_maps_agree(torch.from_numpy(np.load(tmp_path / "masks" / f"{name}.npy")), mask)


def test_a_question(folder, model, capsys):
    assert run(folder, "ask", folder / "a.png", "what?", "--max_new_tokens", "4") == 0
    assert capsys.readouterr().out == model.query(folder / "a.png", "what?", max_new_tokens=4) + "\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "no.png", "--out", "x.png"], "no.png"),
        (["predict", "a.png", "--task", "referring", "--out", "x.png"], "--text"),
        (["predict", "a.png", "--text", "cat", "--out", "x.png"], "--text is for"),
        (["predict", "a.png", "--task", "open_set", "--out", "x.png"], "--labels"),
        (["segment", "a.png", "--out", "x.tif"], "--out must end in"),
        (["segment", "a.png", "b.png", "--out", "x.png"], "folder"),
        (["segment", "a.png", "a.png", "--out", "x"], "several files"),
        (["segment", "a.png", "--labels", "wall,wall", "--out", "x.png"], "wall"),
        (["segment", "a.png", "--labels", ",", "--out", "x.png"], "labels"),
        (["depth", "a.png", "--depth_range", "mars", "--out", "x.png"], "mars"),
        (["depth", "a.png", "--out", "x.json"], ".json"),
        (["depth", "a.png", "--format", "raw", "--out", "x.jpg"], ".png"),
        (["depth", "model/config.json", "--out", "x.png"], "config.json"),
        (["segment", "a.png", "--format", "overlay", "--out", "x.npy"], "overlay"),
        (["segment", "a.png", "--depth_range", "road", "--out", "x.png"], "with --focal_length only"),
        (["depth", "a.png", "--labels", "wall", "--out", "x.png"], "--labels is for"),
        (["depth", "a.png", "--device", "warp", "--out", "x.png"], "--device warp"),
        (["depth", "a.png", "--scale", "0", "--out", "x.png"], "--scale"),
        (["segment", "a.png", "--threshold", "nan", "--out", "x.png"], "--threshold"),
        (["ask", "a.png", "what?", "--focal_length", "-1"], "--focal_length"),
        (["ask", "no.png", "what?"], "no.png"),
        (["ask", "a.png", "what?", "--max_new_tokens", "0"], "--max_new_tokens"),
        (["evaluate", "--data", "nowhere", "--task", "depth", "--device", "warp"], "'warp'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(folder, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(folder)
    arguments = [str(tmp_path / own) if own.startswith("x") else own for own in arguments]
    assert run(folder, *arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "Loading weights" not in line]
    assert words in lines[-1] and not any("Traceback" in line for line in lines)
    assert not list(tmp_path.glob("*"))


def test_a_model_that_is_not_there_is_named(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert (
        main(["depth", str(folder / "a.png"), "--model", str(tmp_path / "none"), "--out", str(tmp_path / "x.png")])
        == 2
    )
    assert "none" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    arguments = ["depth", str(folder / "a.png"), "--model", str(tmp_path / "other"), "--out", str(tmp_path / "x.png")]
    assert main(arguments) == 2 and "type 'bert'" in capsys.readouterr().err
    shutil.copytree(folder / "model", tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"{}")
    arguments[3] = str(tmp_path / "broken")
    assert main(arguments) == 2 and "can't be loaded" in capsys.readouterr().err


@pytest.mark.slow
def test_as_a_module(folder, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "densemllm", "depth", folder / "a.png", "--model", folder / "model", "--out", "d.png"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and (tmp_path / "d.png").is_file(), done.stderr


def test_version_and_environment(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0 and capsys.readouterr().out.strip() == f"densemllm {__version__}"
    assert main(["env"]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["densemllm"] == __version__ and lines["transformers"] == transformers.__version__
    assert lines["torch"].startswith(torch.__version__.split("+")[0]) and "sdpa" in lines["attention"]
    assert {"Python", "device", "platform", "accelerate"} <= set(lines)


def test_help_says_what_is_written(capsys):
    for arguments, words in (
        (["--help"], ("evaluate", "millimetres")),
        (["predict", "--help"], ("--depth_range", "millimetres", "255: none")),
        (["evaluate", "--help"], ("--crop",)),
    ):
        with pytest.raises(SystemExit) as done:
            main(arguments)
        text = capsys.readouterr().out
        assert done.value.code == 0 and all(word in text for word in words)
