# Copyright 2026 The densemllm authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""`densemllm`: every form of file from every kind of input, each what the calls in Python give."""

import json
from fractions import Fraction

import numpy as np
import PIL.Image
import pytest

from densemllm import DenseMLLMForConditionalGeneration
from densemllm.cli import main
from densemllm.commands.inputs import find_inputs
from tiny import ID2LABEL, make_image, make_model, make_processor


NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli_forms")
    processor = make_processor(referring_prompt="find {text}")
    make_model(processor, id2label=ID2LABEL, thing_labels=["red ball"]).save_pretrained(path / "model")
    processor.save_pretrained(path / "model")
    (path / "images").mkdir()
    for number, name in enumerate(NAMES):
        make_image(30, 50, number).save(path / "images" / f"{name}.png")
    return path


@pytest.fixture(scope="module")
def model(folder):
    return DenseMLLMForConditionalGeneration.from_pretrained(folder / "model").eval()


def run(folder, *arguments) -> int:
    return main([str(argument) for argument in (*arguments, "--model", folder / "model", "--device", "cpu")])


@pytest.mark.parametrize(
    ("form", "name", "needs"),
    [
        ("side_by_side", "x.png", None), ("palette", "x.png", None), ("png", "x.png", None), ("npz", "x.npz", None),
        ("json", "x.json", None), ("coco", "x.json", None), ("geojson", "x.geojson", "shapely"),
        ("yolo", "x.txt", "shapely"),
    ],
)  # fmt: skip
def test_a_form_is_what_save_writes(folder, model, tmp_path, form, name, needs):
    if needs:
        pytest.importorskip(needs)
    image = folder / "images/a.png"
    assert run(folder, "segment", image, "--format", form, "--out", tmp_path / name) == 0
    own = tmp_path / "own" / name
    model.predict_dense(image, labels=ID2LABEL).save(own, form, image=image)
    if form == "npz":
        assert np.array_equal(np.load(tmp_path / name)["segmentation"], np.load(own)["segmentation"])
    else:
        assert (tmp_path / name).read_bytes() == own.read_bytes()


def test_points_and_several_tasks(folder, model, tmp_path):
    image = folder / "images/a.png"
    assert run(folder, "depth", image, "--focal_length", "60", "--out", tmp_path / "x.ply") == 0
    model.predict_dense(image, task="depth", focal_length=60.0).save(
        tmp_path / "own.ply", focal_length=60, image=image
    )
    assert (tmp_path / "x.ply").read_bytes() == (tmp_path / "own.ply").read_bytes()
    tasks = ["--task", "segmentation", "depth"]
    assert run(folder, "predict", image, *tasks, "--focal_length", "60", "--out", tmp_path / "both.ply") == 0
    assert run(folder, "predict", image, *tasks, "--out", tmp_path / "x.npz") == 0
    assert set(np.load(tmp_path / "x.npz")) == {"segmentation", "predicted_depth"}
    assert run(folder, "predict", image, *tasks, "--format", "side_by_side", "--out", tmp_path / "x.png") == 0
    with PIL.Image.open(tmp_path / "x.png") as sheet:
        assert sheet.width > 150


@pytest.mark.parametrize("source", ["pattern", "folder"])
def test_coco_of_several_images_is_one_file(folder, model, tmp_path, source):
    tools = pytest.importorskip("pycocotools.coco")
    images = folder / "images/*.png" if source == "pattern" else folder / "images"
    assert run(folder, "segment", images, "--format", "coco", "--out", tmp_path / "out") == 0
    coco = tools.COCO(tmp_path / "out/coco.json")
    assert sorted(row["file_name"] for row in coco.imgs.values()) == [f"{name}.png" for name in NAMES]
    for row in coco.imgs.values():
        expected = model.predict_dense(folder / "images" / row["file_name"], labels=ID2LABEL).segmentation.numpy()
        for annotation in coco.imgToAnns[row["id"]]:
            found = coco.annToMask(annotation).astype(bool)
            assert (found == (expected == annotation["category_id"])).mean() > 0.95


@pytest.mark.parametrize("source", ["pattern", "folder"])
def test_a_panoptic_file_of_several_images(folder, tmp_path, source):
    images = folder / "images/*.png" if source == "pattern" else folder / "images"
    words = ("--task", "panoptic", "--format", "coco_panoptic", "--out", tmp_path / "out")
    assert run(folder, "predict", images, *words) == 0
    content = json.loads((tmp_path / "out/coco_panoptic.json").read_text())
    assert len(content["images"]) == len(content["annotations"]) == 3
    things = {row["name"]: row["isthing"] for row in content["categories"]}
    assert things.get("wall", 0) == 0
    for row in content["annotations"]:
        with PIL.Image.open(tmp_path / "out/coco_panoptic" / row["file_name"]) as png:
            numbers = np.asarray(png).astype(int) @ (1, 256, 65536)
        for segment in row["segments_info"]:
            assert (numbers == segment["id"]).sum() == segment["area"]


@pytest.mark.parametrize("form", ["overlay", "side_by_side", "palette", "npz"])
def test_forms_of_a_data_set(folder, tmp_path, form, capsys):
    assert run(folder, "segment", folder / "images", "--format", form, "--out", tmp_path / "out") == 0
    suffix = ".npz" if form == "npz" else ".png"
    assert len(list((tmp_path / "out").rglob(f"?{suffix}"))) == 3
    assert "3 images in " in capsys.readouterr().out
    if form == "overlay":
        with PIL.Image.open(tmp_path / "out/segmentation/a.png") as image:
            assert image.size == (50, 30)


def test_images_of_one_name_in_several_folders_stay_apart(folder, tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a.png", "deep/a.png"):
        make_image(20, 30).save(tmp_path / name)
    assert run(folder, "segment", tmp_path / "**/*.png", "--format", "coco", "--out", tmp_path / "coco.json") == 0
    found = json.loads((tmp_path / "coco.json").read_text())
    assert sorted(row["file_name"] for row in found["images"]) == ["a.png", "deep/a.png"]
    words = ("--task", "panoptic", "--format", "coco_panoptic", "--out", tmp_path / "x.json")
    assert run(folder, "predict", tmp_path / "**/*.png", *words) == 2  # their PNGs would have one name


def test_yolo_has_its_names_beside_it(folder, tmp_path):
    pytest.importorskip("shapely")
    assert run(folder, "segment", folder / "images/*.png", "--format", "yolo", "--out", tmp_path / "out") == 0
    assert (tmp_path / "out/classes.txt").read_text().splitlines() == list(ID2LABEL.values())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.txt", "b.txt", "c.txt", "classes.txt"]
    assert run(folder, "segment", folder / "images/*.png", "--format", "yolo", "--out", tmp_path / "out") == 2


def test_patterns_and_folders(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    assert find_inputs(["images/[ab].png"]).images == ["images/a.png", "images/b.png"]
    assert find_inputs(["**/a.png"]).images == ["images/a.png"]
    assert find_inputs(["images"]).data == "images" and find_inputs(["rows.parquet"]).data == "rows.parquet"
    assert find_inputs(["someone/pictures"]).data == "someone/pictures" and find_inputs(["x.jpg"]).images == ["x.jpg"]
    (tmp_path / "a[1].png").touch()  # a name, and not a pattern
    assert find_inputs([str(tmp_path / "a[1].png")]).images == [str(tmp_path / "a[1].png")]
    for words, message in (
        (["*.gif"], "no file matches"),
        (["images/a.png", "images"], "or a data set alone"),
        (["images/a.png", "film.mp4"], "or a video alone"),
        (["film.mp4"], "must be a file"),
    ):
        with pytest.raises(ValueError, match=message):
            find_inputs(words)


@pytest.fixture(scope="module")
def film(folder):
    av = pytest.importorskip("av")
    path = folder / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(24000, 1001))
        stream.width, stream.height, stream.pix_fmt = 50, 30, "yuv420p"
        for number in range(5):
            container.mux(stream.encode(av.VideoFrame.from_image(make_image(30, 50, number))))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("command", "form", "width"),
    [("segment", "overlay", 50), ("segment", "side_by_side", 108), ("depth", "picture", None), ("depth", None, None)],
)
def test_a_video_of_a_video(folder, film, tmp_path, capsys, command, form, width):
    import av

    words = ["--format", form] if form else []
    assert run(folder, command, film, "--batch_size", "2", "--out", tmp_path / "x.mp4", *words) == 0
    assert "5 frames, 23.98 a second" in capsys.readouterr().out
    with av.open(str(tmp_path / "x.mp4")) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert stream.average_rate == Fraction(24000, 1001) and len(frames) == 5
        assert frames[0].height == 30 and (width is None or frames[0].width == width)
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]


def test_frames_of_a_video(folder, film, model, tmp_path):
    assert run(folder, "depth", film, "--format", "npy", "--out", tmp_path / "frames") == 0
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == [f"film-{n:06d}.npy" for n in range(1, 6)]
    assert np.load(tmp_path / "frames/film-000001.npy").shape == (30, 50)
    assert run(folder, "depth", film, "--format", "npy", "--out", tmp_path / "frames") == 2


def test_what_a_video_cannot_be_is_said(folder, film, tmp_path, capsys):
    (folder / "broken.mp4").write_bytes(b"no film")
    (folder / "cut.mp4").write_bytes(film.read_bytes()[:300])
    for source, words, message in (
        (film, ["--format", "raw", "--out", tmp_path / "x.mp4"], "--format raw can't be a video"),
        (film, ["--out", tmp_path / "x.png"], "--out must be a video"),
        (film, ["--focal_length", "exif", "--out", tmp_path / "x.mp4"], "must be in pixels for a video"),
        (film, ["--out", film, "--overwrite"], "inputs are never written over"),
        (folder / "broken.mp4", ["--out", tmp_path / "x.mp4"], "is not a video that PyAV can read"),
        (folder / "cut.mp4", ["--out", tmp_path / "x.mp4"], "cut.mp4"),
    ):
        assert run(folder, "depth", source, *words) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["depth", "a.png", "--format", "geojson", "--out", "x.geojson"],
            "--format geojson is for --task segmentation",
        ),
        (["segment", "a.png", "--format", "coco", "--out", "x.txt"], "--format coco must be written as .json"),
        (["segment", "a.png", "--format", "parquet", "--out", "x.parquet"], "--format parquet is for a data set"),
        (["depth", "a.png", "--out", "x.ply"], "--format ply needs --focal_length"),
        (["segment", "a.png", "--out", "x.ply"], "--format ply is for --task depth, not for segmentation"),
        (["segment", "a.png", "--out", "x.mp4"], "--format picture must be written as .png"),
        (["segment", "a.png", "--tolerance", "-1", "--out", "x.geojson"], "--tolerance must be"),
        (["segment", "a.png", "--batch_size", "0", "--out", "x.png"], "--batch_size must be"),
        (["segment", "a.png", "--suffix", ".npy", "--format", "coco", "--out", "x"], "--format coco must be"),
    ],
)
def test_mistakes_are_said_before_the_model_is_looked_for(folder, tmp_path, capsys, arguments, words):
    arguments = [str(folder / "images/a.png") if own == "a.png" else own for own in arguments]
    arguments = [str(tmp_path / own) if own.startswith("x") else own for own in arguments]
    assert main([*arguments, "--model", str(tmp_path / "none")]) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_only_what_was_written_is_said(folder, tmp_path, capsys):
    assert run(folder, "segment", folder / "images/a.png", "--out", tmp_path / "x.png") == 0
    said = capsys.readouterr()
    assert said.err == "" and said.out.startswith(f"{tmp_path / 'x.png'}: ") and said.out.count("\n") == 1
    assert run(folder, "segment", folder / "images/*.png", "--out", tmp_path / "out") == 0
    said = capsys.readouterr()
    assert "images/s" in said.err and "weights" not in said.err and said.out.count("\n") == 3
