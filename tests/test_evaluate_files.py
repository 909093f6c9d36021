"""The evaluation script: what is there stays, and a mistake is one line and not a traceback."""

import json
import os
import resource
from pathlib import Path

import pytest
from datasets import Dataset

from densemllm.evaluate_densemllm import main, parse_arguments, run
from densemllm.evaluation.state import OUTPUTS, State, write_atomically
from tiny import make_model, make_processor, make_samples


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate_files")
    processor = make_processor()
    make_model(processor).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    Dataset.from_list([sample for sample in make_samples(3) if sample["depth"]]).save_to_disk(folder / "data")
    return folder


@pytest.fixture
def words(made, tmp_path):
    return [
        "--model", str(made / "model"), "--data", str(made / "data"), "--task", "depth", "--device", "cpu",
        "--cases", "0", "--output_dir", str(tmp_path / "out"),
    ]  # fmt: skip


def contents(folder) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", OUTPUTS)
def test_files_of_someone_else_are_replaced_with_overwrite_only(words, tmp_path, capsys, name):
    (tmp_path / "out/state").mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    (tmp_path / "out/state/notes.txt").write_text("mine, too")
    before = contents(tmp_path)
    assert run(words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert name in line and "--overwrite" in line and contents(tmp_path) == before
    assert run([*words, "--overwrite"]) == 0
    after = contents(tmp_path / "out")
    assert json.loads(after[Path("results.json")])["samples"] == 2
    assert after[Path("state/notes.txt")] == b"mine, too"  # never an evaluation's
    assert run(words) == 0  # its own files are no one else's: the same run once more


def test_files_of_the_data_are_never_written_over(made, words, tmp_path, capsys):
    data = tmp_path / "data"
    Dataset.load_from_disk(made / "data").save_to_disk(data)
    (data / "cases.png").write_bytes(b"an image of the data")
    before = contents(data)
    words[words.index("--data") + 1] = words[words.index("--output_dir") + 1] = str(data)
    for more in ([], ["--overwrite"]):
        assert run([*words, *more]) == 2
        assert "cases.png" in capsys.readouterr().err.strip().splitlines()[-1] and contents(data) == before


def test_a_full_disk_leaves_no_temporary_file(tmp_path):
    (tmp_path / "results.json").write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="results.json can't be written"):
            write_atomically(tmp_path / "results.json", b"n" * 8192)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(tmp_path) == {Path("results.json"): b"old"}


def test_what_a_killed_run_left_is_removed(tmp_path):
    state = State(tmp_path / "out/state", overwrite=False)
    state.folder.mkdir(parents=True)
    for name in (".abc.tmp.json", ".run.json.12.tmp"):
        (state.folder / name).write_text("half")
    with state:
        state.open({"task": ["depth"]})
        assert {path.name for path in state.folder.iterdir()} <= {"run.json", ".lock"}


def test_the_second_of_two_runs_in_a_folder_ends_with_a_sentence(words, tmp_path, capsys):
    with State(tmp_path / "out/state", overwrite=False) as state:
        state.open({})
        state.save({"batches": [0], "records": []})
        before = contents(tmp_path)
        for more in ([], ["--overwrite"]):
            assert run([*words, *more]) == 2
            line = capsys.readouterr().err.strip().splitlines()[-1]
            assert "another evaluation" in line and contents(tmp_path) == before
    assert run([*words, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.yaml", "model: [1", "c.yaml is not a configuration file in yaml"),
        ("c.json", '{"model": ', "c.json is not a configuration file in json"),
        ("c.yaml", "- a\n- b", "c.yaml must have options by name"),
        ("c.yaml", "model: {a: 1}", "`model` must be one value or a list"),
        ("none.yaml", None, "none.yaml"),
    ],
)
def test_a_configuration_file_that_cannot_be_used_is_named(tmp_path, capsys, monkeypatch, name, text, said):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / name).write_text(text)
    assert run([name]) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]


def test_values_of_a_configuration_file_are_checked_as_those_of_the_command_line(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("model: m\ndata: d\ntask: depth\nbatch_size: many\n")
    with pytest.raises(SystemExit):
        parse_arguments([str(tmp_path / "c.yaml")])
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--batch_size" in line and "invalid int value: 'many'" in line
    values = {"model": "m", "data": "d", "task": ["depth"], "update_card": False, "overwrite": True, "limit": None,
              "min_depth": 1e-3, "scale": 2}  # fmt: skip
    (tmp_path / "c.json").write_text(json.dumps(values), encoding="utf-8-sig")
    args = parse_arguments([str(tmp_path / "c.json"), "--data=-d"])
    assert (args.task, args.overwrite, args.update_card, args.limit) == (["depth"], True, False, None)
    assert (args.min_depth, args.scale, args.data) == (1e-3, 2.0, "-d")


def test_data_that_cannot_be_read_is_said_in_one_line(words, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 cut")
    for name in ("none", "empty", "cut.parquet"):
        words[words.index("--data") + 1] = str(tmp_path / name)
        assert run(words) == 2
        text = capsys.readouterr().err
        assert name in text.strip().splitlines()[-1] and "Traceback" not in text
    assert not os.path.exists(tmp_path / "out")
    with pytest.raises(ValueError):  # as a function it still raises
        main(words)


def test_a_wrong_model_is_known_before_the_data_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ["--model", "nobody/nothing", "--data", str(tmp_path / "nowhere"), "--output_dir", str(tmp_path / "out")]
    words += ["--task", "depth"]
    with pytest.raises(ValueError, match="--model nobody/nothing can't be loaded"):
        main(words)
    assert not (tmp_path / "out").exists()
