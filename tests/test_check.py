"""`densemllm check`: what is wrong or suspicious in a data set is found and named by row."""

import json

import numpy as np
import PIL.Image
import pytest
import torch

from densemllm.cli import main
from densemllm.depth_densemllm import DepthBins
from densemllm.training.check import CheckOptions, check_before_training, check_data
from densemllm.training.check_sheet import draw_sheet
from densemllm.training.datasets import DenseSource
from tiny import ID2LABEL, make_image, make_processor, make_samples


BINS = DepthBins({"near": {"mapping": "linear", "min_depth": 1.0, "max_depth": 2.0}}, "near", 1)


def of_map(column, values, seed=0, **more):
    values = np.asarray(values)
    return {"image": make_image(*values.shape[:2], seed), column: values, **more}


def found(rows, **options):
    """(kind, row) of what is found."""
    report = check_data({"train": rows}, CheckOptions(id2label=ID2LABEL, **options), progress=False)
    return [(finding.kind, finding.row) for finding in report.findings]


def good(seed=100):
    return of_map("segmentation", np.arange(64).reshape(8, 8) % 3, seed)


def full(value, dtype=np.uint8):
    return np.full((8, 8), value, dtype=dtype)


def saved(path, values, **options):
    PIL.Image.fromarray(values).save(path, **options)
    return str(path)


def test_sound_rows_are_counted():
    rows = [of_map("segmentation", full(0), 0), of_map("segmentation", full(1), 1)]
    rows[1]["segmentation"][:4] = 255
    rows[1]["depth"] = np.concatenate([full(0.0, np.float32)[:2], full(1.5, np.float32)[:4], full(9.0)[:2]])
    rows[1] |= {"focal_length": 50.0, "instances": np.arange(64).reshape(8, 8) // 32}
    report = check_data({"train": rows}, CheckOptions(id2label=ID2LABEL, depth_bins=BINS), progress=False)
    facts = report.to_dict()["splits"]["train"]
    assert not report.is_wrong and not report.findings
    assert (facts["rows"], facts["looked_at"], facts["rows_to_fix"]) == (2, 2, 0)
    assert facts["sizes"]["median"] == (8, 8)
    assert [(row["id"], row["pixels"], row["images"]) for row in facts["classes"]] == [
        (0, 64, 1), (1, 32, 1), (2, 0, 0)
    ]  # fmt: skip
    assert facts["ignored_share"] == 0.25
    assert (facts["depth"]["invalid_share"], facts["depth"]["outside_share"]) == (0.25, 0.25)
    assert facts["objects"]["largest"] == 1 and facts["focal_lengths"]["least"] == 50.0
    assert report.missing_classes() == [2]
    text = report.to_text()
    assert "2 red ball" in text and "25.0% of the pixels are ignored" in text and "1 to 2 m" in text


@pytest.mark.parametrize(
    "kind, row",
    [
        ("unknown_classes", of_map("segmentation", full(7))),
        ("two_values", of_map("segmentation", np.where(np.eye(8) > 0, 255, 0).astype(np.uint8))),
        ("all_ignored", of_map("segmentation", full(255))),
        ("different_size", {"image": make_image(8, 8, 1), "segmentation": np.zeros((9, 8), np.uint8)}),
        ("empty_mask", of_map("mask", full(0))),
        ("empty_expression", of_map("mask", full(1), expression=" ")),
        ("no_depth", of_map("depth", full(0, np.float32))),
        ("no_depth", of_map("depth", full(5, np.float32))),
        ("unusable", of_map("depth", full(5))),
        ("unusable", of_map("segmentation", full(0), focal_length=-1.0)),
        ("nothing_to_learn", {"image": make_image(8, 8, 1)}),
        ("unreadable", {"image": "not_there.png", "segmentation": full(0)}),
        ("unreadable", {"image": {"bytes": b"\xff\xd8\xff cut", "path": None}, "segmentation": full(0)}),
        ("duplicate", good(100)),
    ],
)
def test_each_thing_is_found_and_the_check_goes_on(kind, row):
    assert found([good(100), row, good(101)], depth_bins=BINS) == [(kind, 1)]


def test_what_nothing_is_learned_from_is_not_looked_at():
    assert found([good() | {"answer": "yes", "objects": 3}]) == []
    assert found([{"image": make_image(8, 8), "answer": 3}]) == [("nothing_to_learn", 0)]


def test_files_of_maps(tmp_path):
    image = PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    rows = [
        of_map("segmentation", full(0), 1) | {"segmentation": saved(tmp_path / "map.jpg", full(0))},
        of_map("depth", full(0), 2) | {"depth": saved(tmp_path / "depth.jpg", full(2))},
        {"image": str(tmp_path / "turned.png"), "segmentation": saved(tmp_path / "map.png", full(0))},
    ]
    kinds = found(rows, depth_scale=1.0)
    assert ("jpeg_map", 0) in kinds and ("unusable", 0) in kinds  # the schema refuses it
    assert ("jpeg_map", 1) in kinds
    assert ("orientation", 2) in kinds


def test_duplicates_between_splits():
    report = check_data({"train": [good(1), good(2)], "test": [good(2)]}, CheckOptions(ID2LABEL), progress=False)
    assert [(finding.kind, finding.split, finding.row) for finding in report.findings] == [
        ("duplicate_between_splits", "test", 0)
    ]
    assert "row 1 of train" in report.findings[0].message


def test_processes_find_the_same():
    rows = [good(seed) for seed in range(5)] + [of_map("segmentation", full(7))]
    reports = [
        check_data({"train": rows}, CheckOptions(ID2LABEL), num_workers=count, progress=False).to_dict()
        for count in (0, 2)
    ]
    assert reports[0] == reports[1]


def test_limit_takes_rows_from_all_over():
    rows = [good(seed) for seed in range(1, 10)] + [of_map("segmentation", full(7))]
    report = check_data({"train": rows}, CheckOptions(ID2LABEL), limit=2, progress=False)
    assert report.splits["train"].looked_at == 2 and [finding.row for finding in report.findings] == [9]


@pytest.mark.parametrize("options, message", [({"limit": 0}, "`limit`"), ({"num_workers": -1}, "`num_workers`")])
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        check_data({"train": [good()]}, **options)
    with pytest.raises(ValueError, match="ignore_index"):
        check_data({"train": [good()]}, CheckOptions(ID2LABEL, ignore_index=0))


def test_names_that_a_model_cannot_write():
    options = CheckOptions({0: "wall", 1: "wall "})
    with pytest.raises(ValueError, match="wall"):
        make_processor().label_token_ids(options.id2label)
    report = check_data({"train": [of_map("segmentation", full(0))]}, options, make_processor(), progress=False)
    assert [finding.kind for finding in report.findings] == ["names"] and report.is_wrong


@pytest.mark.parametrize("processor", [None, make_processor()])
def test_the_sheet_has_what_can_be_read(processor):
    splits = {"train": [*make_samples(3), {"image": "not_there.png", "segmentation": full(0)}]}
    splits["train"][0] |= of_map("mask", full(1), expression="the ball", segmentation=full(2))
    options = CheckOptions(ID2LABEL)
    report = check_data(splits, options, processor, progress=False)
    sheet = draw_sheet(splits, report, options, processor)
    assert sheet.height > 3 * 240 and len(np.unique(np.asarray(sheet))) > 100
    with pytest.raises(ValueError, match="can be read"):
        draw_sheet({"train": splits["train"][3:]}, report, options)


def test_before_training():
    source = DenseSource([good(1), of_map("segmentation", full(7))], id2label=ID2LABEL)
    state = torch.get_rng_state()
    check_before_training([source])
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match=r"none of 1 rows of `sources\[0\]`"):
        check_before_training([DenseSource([of_map("segmentation", full(7))], id2label=ID2LABEL)])


def make_folder(folder, values):
    for name in ("image", "segmentation"):
        (folder / name).mkdir(parents=True)
    for number, value in enumerate(values):
        make_image(8, 8, number).save(folder / "image" / f"{number}.png")
        saved(folder / "segmentation" / f"{number}.png", full(value))
    (folder / "id2label.json").write_text(json.dumps(ID2LABEL))
    return str(folder)


def test_command(tmp_path, capsys):
    data = make_folder(tmp_path / "data", [0, 1])
    sheet, report = tmp_path / "sheet.png", tmp_path / "fix.json"
    words = ["check", data, "--num_workers", "0", "--sheet", str(sheet), "--fix_report", str(report)]
    assert main(words) == 0
    assert "train: 2 rows" in capsys.readouterr().out
    assert PIL.Image.open(sheet).width > 0 and json.loads(report.read_text())["is_wrong"] is False
    assert main(words) == 2  # the files are there
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


def test_command_says_what_to_fix(tmp_path, capsys):
    data = make_folder(tmp_path / "data", [0, 7])
    report = tmp_path / "fix.json"
    assert main(["check", data, "--num_workers", "0", "--fix-report", str(report)]) == 1
    assert "WRONG: 1 x classes that `id2label` lacks (train 1)" in capsys.readouterr().out
    assert [(row["kind"], row["row"]) for row in json.loads(report.read_text())["to_fix"]] == [("unknown_classes", 1)]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--split", "other"], "other"),
        (["--depth_range", "nyuv2"], "--depth_range"),
        (["--depth_range", "2", "1"], "min_depth"),
        (["--limit", "0"], "limit"),
        (["--sheet", "sheet.txt"], "--sheet"),
        (["--depth_scale", "-1"], "--depth_scale"),
        (["--model", "not_there"], "--model"),
    ],
)
def test_command_with_bad_arguments(tmp_path, capsys, words, message):
    data = make_folder(tmp_path / "data", [0])
    assert main(["check", data, "--num_workers", "0", *words]) == 2
    assert message in capsys.readouterr().err
