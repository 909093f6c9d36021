"""Conversion of a released checkpoint: one writer for a folder, and mistakes in words."""

import json
import os
import resource
import subprocess
import sys
import threading

import pytest
import released
from safetensors.torch import load_file

from densemllm import DenseMLLMForConditionalGeneration
from densemllm import convert_youtu_vl_to_densemllm as conversion
from densemllm.convert_youtu_vl_to_densemllm import convert, main, rename


@pytest.fixture
def source(tmp_path):
    return released.make_source(tmp_path / "source")[1]


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stored(folder) -> dict:
    return {key: weight for file in folder.glob("*.safetensors") for key, weight in load_file(file).items()}


@pytest.mark.slow
def test_the_second_of_two_conversions_ends_with_a_sentence(source, tmp_path, monkeypatch, capsys):
    started, go_on = threading.Event(), threading.Event()
    write = conversion.write_weights

    def waiting(*args):
        write(*args)
        started.set()
        assert go_on.wait(600)

    monkeypatch.setattr(conversion, "write_weights", waiting)
    released.make_source(tmp_path / "other", seed=1)
    thread = threading.Thread(target=convert, args=(str(tmp_path / "source"), str(tmp_path / "out")))
    thread.start()
    try:
        assert started.wait(600)
        monkeypatch.setattr(conversion, "write_weights", write)
        assert main([str(tmp_path / "other"), str(tmp_path / "out")]) == 1
        assert "is being written by another process" in capsys.readouterr().err
        code = "import sys; from densemllm.convert_youtu_vl_to_densemllm import main; sys.exit(main(sys.argv[1:]))"
        run = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "other", tmp_path / "out"], capture_output=True, text=True
        )
        assert run.returncode == 1 and "is being written by another process" in run.stderr
        assert main([str(tmp_path / "other"), str(tmp_path / "elsewhere")]) == 0  # another folder is free
    finally:
        go_on.set()
        thread.join()
    assert names(tmp_path) == ["elsewhere", "other", "out", "source"]
    assert all((stored(tmp_path / "out")[rename(key)] == weight).all() for key, weight in source.items())
    DenseMLLMForConditionalGeneration.from_pretrained(tmp_path / "out")


def test_what_appears_in_the_meantime_is_not_replaced(source, tmp_path, monkeypatch, capsys):
    write = conversion.write_weights

    def disturbed(*args):
        write(*args)
        (tmp_path / "out").mkdir()
        (tmp_path / "out/notes.txt").write_text("mine")

    monkeypatch.setattr(conversion, "write_weights", disturbed)
    assert main([str(tmp_path / "source"), str(tmp_path / "out")]) == 1
    assert "out can't be written" in capsys.readouterr().err
    assert names(tmp_path) == ["out", "source"] and names(tmp_path / "out") == ["notes.txt"]


def test_what_a_killed_run_left_is_removed_and_nothing_else(source, tmp_path):
    for name in (".out.0123456789ab.unfinished", ".out.notes.unfinished", "out.unfinished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("half")
    assert main([str(tmp_path / "source"), str(tmp_path / "out")]) == 0
    assert names(tmp_path) == [".out.notes.unfinished", "out", "out.unfinished", "source"]


def test_a_full_disk_leaves_nothing(source, tmp_path, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(path.stat().st_size for path in (tmp_path / "source").glob("*.safetensors"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, hard))
    try:
        assert main([str(tmp_path / "source"), str(tmp_path / "out")]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "out can't be written" in capsys.readouterr().err and names(tmp_path) == ["source"]


def cut(path):
    path.write_bytes(path.read_bytes()[: os.path.getsize(path) // 2])


@pytest.mark.parametrize(
    ("broken", "word"),
    [
        (lambda folder: cut(folder / "config.json"), "config.json"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "config.json"),
        (lambda folder: cut(folder / "tokenizer.json"), "source"),
        (lambda folder: cut(min(folder.glob("*.safetensors"))), ".safetensors"),
        (lambda folder: min(folder.glob("*.safetensors")).write_bytes(b""), ".safetensors"),
        (lambda folder: cut(folder / "model.safetensors.index.json"), "source"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"), "weight_map"),
        (lambda folder: (folder / "generation_config.json").write_text("{"), "generation_config.json"),
        (lambda folder: (folder / "README.md").write_text("---\nlicense: [1\n---\n"), "source"),
    ],
)
def test_a_broken_source_is_said_without_a_traceback(source, tmp_path, capsys, broken, word):
    broken(tmp_path / "source")
    assert main([str(tmp_path / "source"), str(tmp_path / "out")]) == 1
    text = capsys.readouterr().err
    assert "Traceback" not in text and word in text.strip().splitlines()[-1]
    assert names(tmp_path) == ["source"]


@pytest.mark.parametrize("fields", [{"hidden_size": "wide"}, {"num_hidden_layers": -1}, {"vision_config": 3}])
def test_fields_of_the_wrong_type_are_said_without_a_traceback(tmp_path, capsys, fields):
    released.make_source(tmp_path / "source")
    config = json.loads((tmp_path / "source/config.json").read_text())
    (tmp_path / "source/config.json").write_text(json.dumps({**config, **fields}))
    assert main([str(tmp_path / "source"), str(tmp_path / "out")]) == 1
    text = capsys.readouterr().err
    assert "Traceback" not in text and ("source" in text or next(iter(fields)) in text)
    assert names(tmp_path) == ["source"]
