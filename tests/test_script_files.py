"""Example scripts and tools: what is there stays."""

import runpy
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densemllm.files import check_outputs, whole_file
from repository import ROOT, require
from tiny import make_image, make_model, make_processor


SCRIPTS = {
    "examples/youtu_vl.py": ["--model", "{model}", "--image", "{image}"],
    "examples/quickstart.py": ["--quick", "--image", "{image}"],
    "examples/start_from_parts.py": ["--text_model", "{model}"],
    "examples/ablation.py": [],
    "examples/rooms/make_model.py": ["--data", "examples/rooms/sample"],
    "examples/rooms/pretrain_tower.py": ["--model_name_or_path", "{model}", "--data", "examples/rooms/sample"],
    "examples/rooms/gallery.py": ["--photos", "{image}"],
    "examples/rooms/reward_curve.py": ["run={model}"],
    "examples/synthetic_rooms.py": [],
    "tools/check_parity.py": ["record", "{model}", "{image}"],
}
FILE = {"examples/rooms/gallery.py": "gallery.png", "examples/synthetic_rooms.py": "rooms.png",
        "examples/rooms/reward_curve.py": "rewards.png",
        "tools/check_parity.py": "reference.safetensors", "examples/youtu_vl.py": "pose.png",
        "examples/rooms/make_model.py": "config.json", "examples/rooms/pretrain_tower.py": "model.safetensors",
        "examples/quickstart.py": "predictions.png"}  # fmt: skip


def contents(folder) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scripts") / "model"
    processor = make_processor()
    make_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def start(model, monkeypatch, capsys):
    """Run a script that has to end with a line on stderr, which is returned."""

    def run(script, image, out: Path, *more) -> str:
        words = [word.format(model=model, image=image) for word in SCRIPTS[script]]
        if script == "tools/check_parity.py":
            words.append(out)
        elif FILE.get(script) in ("gallery.png", "rewards.png", "rooms.png"):
            words += ["--out", out]
        else:
            words += ["--output_dir", out.parent]
        require(script)
        monkeypatch.chdir(ROOT)
        monkeypatch.syspath_prepend(str((ROOT / script).parent))
        monkeypatch.setattr(sys, "argv", [script, *map(str, words), *more])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(require(script)), run_name="__main__")
        assert end.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return run


@pytest.mark.parametrize("script", list(SCRIPTS))
def test_a_file_that_is_there_is_named_and_stays(start, tmp_path, script):
    out = tmp_path / "out" / FILE.get(script, "results.json")
    out.parent.mkdir()
    out.write_text("mine")
    make_image(24, 32).save(tmp_path / "photo.png")
    before = contents(tmp_path)
    line = start(script, tmp_path / "photo.png", out)
    assert out.name in line and "is there already" in line and contents(tmp_path) == before


def test_an_image_in_the_output_folder_is_never_written_over(start, tmp_path):
    (tmp_path / "out").mkdir()
    image = tmp_path / "out/pose.png"
    make_image(24, 32).save(image)
    before = contents(tmp_path)
    assert "inputs are never written over" in start("examples/youtu_vl.py", image, image, "--overwrite")
    assert contents(tmp_path) == before


def test_the_folder_of_the_own_model_is_refused(start, model):
    before = contents(model)
    line = start("examples/rooms/pretrain_tower.py", None, model / "config.json", "--overwrite")
    assert "inputs are never written over" in line and contents(model) == before


def test_nothing_is_made_while_outputs_are_checked(tmp_path):
    check_outputs([tmp_path / "a/b/c.png", tmp_path / "d.png"], [tmp_path / "none.png"])
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="more than once"):
        check_outputs([tmp_path / "d.png", tmp_path / "a/../d.png"])
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="there already"):
        check_outputs([tmp_path / "dangling"])


NAMES = [
    "a.png",
    "b.png",
    "sub/a.png",
    "sub/../b.png",
    "link.png",
    "hard.png",
    "linked/a.png",
    "new.png",
    "sub/new.png",
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(NAMES)), st.lists(st.sampled_from(NAMES)), st.booleans())
def test_what_is_let_through_loses_nothing(inputs, outputs, overwrite):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sub").mkdir()
        for file in ("a.png", "b.png", "sub/a.png"):
            (folder / file).write_text(file)
        (folder / "link.png").symlink_to(folder / "a.png")
        (folder / "linked").symlink_to(folder / "sub")
        (folder / "hard.png").hardlink_to(folder / "b.png")
        read = {file: (folder / file).read_bytes() for file in inputs if (folder / file).exists()}
        before = contents(folder)
        try:
            check_outputs([folder / file for file in outputs], [folder / file for file in inputs], overwrite)
        except ValueError:
            assert contents(folder) == before
            return
        for number, file in enumerate(outputs):
            with whole_file(folder / file, overwrite) as staged:
                staged.write_text(f"output {number}")
        assert read == {file: (folder / file).read_bytes() for file in read}
        assert all((folder / file).read_text() == f"output {number}" for number, file in enumerate(outputs))
        if not overwrite:
            assert before.items() <= contents(folder).items()


def test_a_file_gets_its_name_at_the_end_or_not_at_all(tmp_path):
    path = tmp_path / "new/a.txt"
    with pytest.raises(KeyboardInterrupt), whole_file(path) as staged:
        staged.write_text("half")
        assert staged.suffix == ".txt" and not path.exists()
        raise KeyboardInterrupt
    assert not list(path.parent.iterdir())
    with whole_file(path) as staged:
        staged.write_text("whole")
    with pytest.raises(FileExistsError, match="a.txt is there already"), whole_file(path) as staged:
        staged.write_text("another")  # it appeared after it was looked for
    assert contents(tmp_path) == {Path("new/a.txt"): b"whole"}
    with whole_file(path, overwrite=True) as staged:
        staged.write_text("another")
    assert contents(tmp_path) == {Path("new/a.txt"): b"another"}
