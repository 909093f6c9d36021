"""`densemllm`: what is there stays, and a mistake is one line and not a traceback."""

import json
import os
import resource
import shutil

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from densemllm import DenseMLLMForConditionalGeneration
from densemllm.cli import main, parse_labels
from tiny import ID2LABEL, make_image, make_model, make_processor


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli_files")
    processor = make_processor()
    make_model(processor, id2label=ID2LABEL).save_pretrained(path / "model")
    processor.save_pretrained(path / "model")
    return path / "model"


@pytest.fixture(scope="module")
def model(made):
    return DenseMLLMForConditionalGeneration.from_pretrained(made).eval()


@pytest.fixture
def source(tmp_path):
    """A folder with two images."""
    (tmp_path / "source").mkdir()
    make_image(30, 50).save(tmp_path / "source/a.png")
    make_image(24, 40, 1).save(tmp_path / "source/b.jpg")
    return tmp_path / "source"


def run(model, *arguments) -> int:
    return main([str(argument) for argument in (*arguments, "--model", model)])


def contents(folder) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def said(capsys) -> str:
    """The last line on stderr; there must be no traceback before it."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text.strip().splitlines()[-1]


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
@pytest.mark.parametrize("form", ["folder", "same name", "other path", "symlink", "hard link", "linked folder"])
def test_an_input_is_never_written_over(made, source, tmp_path, capsys, form, more):
    image = source / "a.png"
    out = {
        "folder": source, "same name": image, "other path": source / ".." / "source" / "a.png",
        "symlink": tmp_path / "link.png", "hard link": tmp_path / "hard.png", "linked folder": tmp_path / "linked",
    }[form]  # fmt: skip
    if form == "symlink":
        out.symlink_to(image)
    elif form == "hard link":
        os.link(image, out)
    elif form == "linked folder":
        out.symlink_to(source)
    before = contents(tmp_path)
    assert run(made, "depth", image, "--out", out, *more) == 2
    assert "inputs are never written over" in said(capsys)
    assert contents(tmp_path) == before


def test_no_input_is_written_over_by_the_map_of_another(made, source, capsys):
    (source / "maps").mkdir()
    shutil.copy(source / "a.png", source / "maps/b.png")
    before = contents(source)
    images = [source / "maps/b.png", source / "a.png"]
    assert run(made, "segment", *images, "--out", source, "--overwrite") == 2
    assert "a.png is" in said(capsys) and contents(source) == before


def test_files_of_the_model_and_of_labels_are_inputs(made, source, tmp_path, capsys):
    own = tmp_path / "model"
    shutil.copytree(made, own)
    (tmp_path / "names.json").write_text('["wall", "floor"]')
    before = contents(tmp_path)
    for out, more in ((own / "config.json", []), (tmp_path / "names.json", ["--labels", tmp_path / "names.json"])):
        assert run(own, "segment", source / "a.png", "--out", out, "--overwrite", *more) == 2
        assert "inputs are never written over" in said(capsys) and contents(tmp_path) == before


def test_a_file_that_is_there_is_replaced_with_overwrite_only(made, model, source, tmp_path, capsys):
    out = tmp_path / "maps"
    out.mkdir()
    (out / "b.npy").write_text("mine")
    arguments = ["depth", source / "a.png", source / "b.jpg", "--suffix", ".npy", "--out", out]
    assert run(made, *arguments) == 2
    assert "b.npy is there already" in said(capsys) and "--overwrite" in main.__globals__["__doc__"]
    assert contents(out) == {(out / "b.npy").relative_to(out): b"mine"}  # nothing of the first image, either
    assert run(made, *arguments, "--overwrite") == 0
    for name in ("a.png", "b.jpg"):
        depth = model.predict_dense(source / name, task="depth").predicted_depth
        assert np.array_equal(np.load((out / name).with_suffix(".npy")), depth.numpy())
    assert len(list(out.iterdir())) == 2


def test_two_images_of_one_name_are_both_named(made, source, capsys):
    (source / "more").mkdir()
    shutil.copy(source / "b.jpg", source / "more/a.jpg")
    before = contents(source)
    assert run(made, "depth", source / "a.png", source / "more/a.jpg", "--out", source / "maps") == 2
    line = said(capsys)
    assert str(source / "a.png") in line and str(source / "more/a.jpg") in line and contents(source) == before


def test_a_place_that_cannot_be_written_is_named_before_the_model_is_loaded(source, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert run(tmp_path / "no_model", "depth", source / "a.png", "--out", tmp_path / "file/x.png") == 2
    assert "file/x.png" in said(capsys) and (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_said_with_the_name_and_leaves_nothing(made, source, tmp_path, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # 30 x 50 numbers are more
    try:
        assert run(made, "depth", source / "a.png", "--out", tmp_path / "new/x.npy") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    line = said(capsys)
    assert "x.npy can't be written" in line and ".tmp" not in line
    assert not list((tmp_path / "new").iterdir())


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def change_weight(folder):
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("mlp.fc1.bias"))
    save_file({**weights, name: weights[name][:-1].clone()}, folder / "model.safetensors", metadata={"format": "pt"})


def cut(folder, name, share=0.6):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * share)])


BROKEN = {
    "another type": lambda folder: change_config(folder, model_type="bert"),
    "a field of the wrong type": lambda folder: change_config(folder, num_depth_bins="many"),
    "a part of the wrong type": lambda folder: change_config(folder, vision_config=[1, 2]),
    "an unknown language model": lambda folder: change_config(folder, text_config={"model_type": "no_such"}),
    "a config that is a list": lambda folder: (folder / "config.json").write_text("[1, 2]"),
    "a cut config": lambda folder: cut(folder, "config.json"),
    "a weight of another shape": change_weight,
    "cut weights": lambda folder: cut(folder, "model.safetensors"),
    "empty weights": lambda folder: cut(folder, "model.safetensors", 0),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "a cut tokenizer": lambda folder: cut(folder, "tokenizer.json"),
    "a tokenizer of something else": lambda folder: (folder / "tokenizer.json").write_text('{"a": 1}'),
    "a cut processor": lambda folder: cut(folder, "processor_config.json"),
    "no processor": lambda folder: [file.unlink() for file in [*folder.glob("*token*"), *folder.glob("*proc*.json")]],
}


@pytest.mark.parametrize("broken", list(BROKEN))
@pytest.mark.parametrize("command", ["depth", "ask", "evaluate"])
def test_a_broken_checkpoint_is_said_in_one_line(made, source, tmp_path, capsys, broken, command):
    folder = tmp_path / "broken"
    shutil.copytree(made, folder)
    BROKEN[broken](folder)
    if command == "evaluate":
        (tmp_path / "data/validation/image").mkdir(parents=True)
        (tmp_path / "data/validation/depth").mkdir()
        shutil.copy(source / "a.png", tmp_path / "data/validation/image/a.png")
        PIL.Image.fromarray(np.full((30, 50), 2000, np.uint16)).save(tmp_path / "data/validation/depth/a.png")
    more = {
        "depth": [source / "a.png", "--out", tmp_path / "out/x.png"], "ask": [source / "a.png", "what?"],
        "evaluate": ["--data", tmp_path / "data", "--task", "depth", "--depth_scale", "0.001", "--device", "cpu",
                     "--output_dir", tmp_path / "out"],
    }[command]  # fmt: skip
    assert run(folder, command, *more) == 2
    line = said(capsys)
    assert len(line) < 1000 and str(folder) in line and line.startswith(f"densemllm {command}: ")
    assert not (tmp_path / "out").exists()


def test_a_device_without_memory_is_refused(made, source, tmp_path, capsys):
    assert run(made, "depth", source / "a.png", "--out", tmp_path / "x.png", "--device", "meta") == 2
    assert "--device meta" in said(capsys) and not (tmp_path / "x.png").exists()


NAMES = ["door, double door", "Floor", "tête", "a\tb"]


def test_names_with_commas_come_as_json_or_in_a_file(tmp_path, monkeypatch):
    numbered = {3: NAMES[0], 7: NAMES[1]}
    assert parse_labels("wall,red ball") == ["wall", "red ball"]
    assert parse_labels(" " + json.dumps(NAMES)) == NAMES
    assert parse_labels(json.dumps(numbered)) == numbered
    for encoding in ("utf-8", "utf-8-sig"):  # with a byte order mark, too
        (tmp_path / "list.json").write_text(json.dumps(NAMES, ensure_ascii=False), encoding=encoding)
        (tmp_path / "numbered.JSON").write_text(json.dumps(numbered), encoding=encoding)
        (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n\n", encoding=encoding, newline="\r\n")
        assert parse_labels(str(tmp_path / "list.json")) == parse_labels(str(tmp_path / "names.txt")) == NAMES
        assert parse_labels(str(tmp_path / "numbered.JSON")) == numbered
    (tmp_path / "wall").mkdir()  # a folder or a file of that name is nothing to a name
    monkeypatch.chdir(tmp_path)
    assert parse_labels("wall") == ["wall"]


def test_a_number_that_a_raw_file_cannot_hold_is_refused(made, source, tmp_path, capsys):
    arguments = ["segment", source / "a.png", "--format", "raw", "--out", tmp_path / "x.png", "--labels"]
    assert run(made, *arguments, '{"70000": "wall", "1": "floor"}') == 2
    assert "65534" in said(capsys) and not (tmp_path / "x.png").exists()


@settings(max_examples=50)
@given(st.lists(st.text(min_size=1)), st.dictionaries(st.integers(0, 10**6), st.text(min_size=1)))
def test_any_names_come_back_from_json(names, numbered):
    assert parse_labels(json.dumps(names)) == parse_labels(json.dumps(names, ensure_ascii=False)) == names
    assert parse_labels(json.dumps(numbered)) == numbered


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('["wall", 3]', '["wall", 3]'), ('{"a": "wall"}', "'a'"), ('["wall"', "JSON"), ('{"0": ["wall"]}', '["wall"]'),
        ("none.json", "none.json"), ("none.txt", "none.txt"), ("word.json", "word.json"), ("bytes.txt", "bytes.txt"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_labels_is_said(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "word.json").write_text('"wall"')
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00wall")
    with pytest.raises(ValueError, match="--labels") as error:
        parse_labels(text)
    assert words in str(error.value)


def test_numbers_of_names_with_commas_do_not_shift(made, model, source, tmp_path):
    names = {0: "the cat, sat", 2: "red ball"}
    assert run(made, "segment", source / "a.png", "--out", tmp_path / "x.npy", "--labels", json.dumps(names)) == 0
    expected = model.predict_dense(source / "a.png", labels=names).segmentation.numpy()
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected) and set(np.unique(expected)) <= set(names)
