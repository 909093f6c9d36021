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
"""What a prediction is written as comes back: polygons, COCO, YOLO, palettes, points, and files that are whole."""

import io
import json
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densemllm import DensePrediction
from densemllm.answers_densemllm import decode_rle
from densemllm.drawing_densemllm import add_names, add_scale, label_colors
from densemllm.normals_densemllm import depth_to_normals
from densemllm.polygons_densemllm import joined_ring, segment_polygons, simple_rings
from densemllm.saving_densemllm import FORMATS
from tiny import make_image


NAMES = {0: "wall", 1: "floor", 2: "red ball"}


def of_classes(values: np.ndarray) -> DensePrediction:
    keys = [key for key in np.unique(values).tolist() if key >= 0]
    rows = [
        {"id": key, "label_id": key, "label": NAMES[key], "score": 0.5, "area": int((values == key).sum())}
        for key in keys
    ]
    return DensePrediction(segmentation=torch.tensor(values), segments_info=rows, labels=NAMES)


def ring_with_a_hole() -> np.ndarray:
    """A square with two holes, a second part that touches it at a corner, and pixels that are none of the classes."""
    values = np.full((24, 30), -1)
    values[2:20, 3:21] = 1
    values[5:8, 6:10] = 0
    values[12:16, 13:17] = 2
    values[20:23, 21:27] = 1
    return values


@pytest.fixture
def classes():
    return of_classes(ring_with_a_hole())


@pytest.fixture
def depth():
    metres = torch.linspace(1, 4, 24)[:, None].repeat(1, 30)
    return DensePrediction(predicted_depth=metres)


def rasterise(tools, rings, size) -> np.ndarray:
    parts = tools.frPyObjects([np.asarray(ring).ravel().tolist() for ring in rings], *size)
    return tools.decode(tools.merge(parts)).astype(bool)


maps = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6)).map(
    lambda given: np.random.default_rng(given[2]).integers(-1, 3, given[:2])
)


@settings(max_examples=40, deadline=None)
@given(maps)
def test_polygons_are_exactly_their_pixels(values):
    pytest.importorskip("shapely")
    tools = pytest.importorskip("pycocotools.mask")
    shapes = segment_polygons(values, 0)
    assert list(shapes) == [key for key in np.unique(values).tolist() if key >= 0]
    for key, shape in shapes.items():
        mask = values == key
        assert shape.is_valid and shape.area == mask.sum()
        rings = simple_rings(shape)
        assert np.array_equal(rasterise(tools, rings, mask.shape), mask)
        assert np.array_equal(rasterise(tools, [joined_ring(rings)], mask.shape), mask)


def test_smooth_polygons_differ_at_the_borders_only_and_leave_no_gaps():
    shapely = pytest.importorskip("shapely")
    tools = pytest.importorskip("pycocotools.mask")
    y, x = np.mgrid[:80, :100]
    values = np.where((x - 40) ** 2 + (y - 40) ** 2 < 900, 1, 0)
    values[(x - 45) ** 2 + (y - 35) ** 2 < 100] = 2
    exact, shapes = segment_polygons(values, 0), segment_polygons(values, 1.0)
    assert sum(shapely.get_num_coordinates(list(shapes.values()))) < 0.6 * sum(
        shapely.get_num_coordinates(list(exact.values()))
    )
    whole = shapely.union_all(list(shapes.values()))
    assert whole.area == pytest.approx(80 * 100) and sum(shape.area for shape in shapes.values()) == pytest.approx(
        80 * 100
    )
    for key, shape in shapes.items():
        assert shape.is_valid
        wrong = rasterise(tools, simple_rings(shape), values.shape) != (values == key)
        near = np.zeros_like(wrong)
        near[:, 1:] |= values[:, 1:] != values[:, :-1]
        near[1:] |= values[1:] != values[:-1]
        for _ in range(2):
            near[:-1] |= near[1:]
            near[:, :-1] |= near[:, 1:]
        assert not (wrong & ~near).any()


def test_a_coco_file_is_read_by_pycocotools(classes, tmp_path):
    tools = pytest.importorskip("pycocotools.coco")
    for polygons in (False, True):
        if polygons:
            pytest.importorskip("shapely")
        content = classes.to_coco("a.jpg", 7, polygons=polygons, tolerance=0)
        (tmp_path / "coco.json").write_text(json.dumps(content))
        coco = tools.COCO(tmp_path / "coco.json")
        assert coco.imgs[7] == {"id": 7, "file_name": "a.jpg", "height": 24, "width": 30}
        assert {key: row["name"] for key, row in coco.cats.items()} == NAMES
        assert sorted(row["category_id"] for row in coco.anns.values()) == [0, 1, 2]
        for row in coco.anns.values():
            mask = classes.segmentation.numpy() == row["category_id"]
            assert np.array_equal(coco.annToMask(row).astype(bool), mask) and row["area"] == mask.sum()
            y, x = np.nonzero(mask)
            assert row["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1] and row["iscrowd"] == 0


def test_a_panoptic_file_says_which_pixel_is_whose():
    values = ring_with_a_hole()
    rows = [
        {"id": 1, "label_id": 5, "label": "chair", "score": 0.5, "area": 1, "box": (0, 0, 1, 1), "isthing": True},
        {"id": 2, "label_id": 5, "label": "chair", "score": 0.5, "area": 1, "box": (0, 0, 1, 1), "isthing": True},
        {"id": 0, "label_id": 3, "label": "wall", "score": 0.5, "area": 1, "box": (0, 0, 1, 1), "isthing": False},
    ]
    prediction = DensePrediction(segmentation=torch.tensor(values), segments_info=rows, labels={3: "wall", 5: "chair"})
    content, png = prediction.to_coco_panoptic("deep/a.jpg", 3)
    (annotation,) = content["annotations"]
    assert annotation["image_id"] == 3 and annotation["file_name"] == "deep/a.png"
    assert content["categories"] == [
        {"id": 3, "name": "wall", "isthing": 0},
        {"id": 5, "name": "chair", "isthing": 1},
    ]
    numbers = np.asarray(png).astype(int) @ (1, 256, 65536)
    for segment, row in zip(annotation["segments_info"], rows, strict=True):
        assert np.array_equal(numbers == segment["id"], values == row["id"])
        assert segment["category_id"] == row["label_id"] and segment["area"] == (values == row["id"]).sum()
    assert ((numbers == 0) == (values < 0)).all()


def test_geojson_has_holes_and_parts(classes):
    shapely = pytest.importorskip("shapely")
    content = json.loads(json.dumps(classes.to_geojson(tolerance=0)))
    for feature in content["features"]:
        shape = shapely.from_geojson(json.dumps(feature["geometry"]))
        mask = classes.segmentation.numpy() == feature["properties"]["label_id"]
        assert shape.is_valid and shape.area == mask.sum() == feature["properties"]["area"]
        assert feature["properties"]["label"] == NAMES[feature["id"]]
    floor = content["features"][1]["geometry"]
    assert floor["type"] == "MultiPolygon" and sorted(len(part) for part in floor["coordinates"]) == [1, 3]


def test_labels_of_yolo_give_the_masks_back(classes):
    pytest.importorskip("shapely")
    tools = pytest.importorskip("pycocotools.mask")
    lines = classes.to_yolo(tolerance=0).splitlines()
    assert [int(line.split()[0]) for line in lines] == [0, 1, 2]
    for line in lines:
        number, *corners = line.split()
        corners = np.array(corners, dtype=float).reshape(-1, 2)
        assert corners.min() >= 0 and corners.max() <= 1
        mask = rasterise(tools, [corners * (30, 24)], (24, 30))
        assert np.array_equal(mask, classes.segmentation.numpy() == int(number))


def test_a_mask_is_a_segment_of_its_own(tmp_path):
    mask = torch.tensor(ring_with_a_hole() == 1)
    prediction = DensePrediction(mask=mask, scores=torch.where(mask, 0.75, 0.25))
    (row,) = prediction.to_coco(label="the ring")["annotations"]
    assert np.array_equal(decode_rle(row["segmentation"]), mask.numpy()) and row["score"] == 0.75
    assert prediction.to_coco(label="the ring")["categories"] == [{"id": 1, "name": "the ring"}]
    assert DensePrediction(mask=torch.zeros(4, 5, dtype=torch.bool)).to_coco()["annotations"] == []
    image = prediction.to_palette()
    assert np.array_equal(np.asarray(image), np.where(mask, 1, 255))


def test_palettes_show_colours_and_hold_numbers(classes):
    image = classes.to_palette()
    values = classes.segmentation.numpy()
    assert image.mode == "P" and np.array_equal(np.asarray(image), np.where(values < 0, 255, values))
    assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(classes.to_pil()))
    own = np.asarray(classes.to_palette(palette={"floor": (1, 2, 3)}).convert("RGB"))
    assert (own[values == 1] == (1, 2, 3)).all()
    many = DensePrediction(segmentation=torch.tensor([[255, 0]]), segments_info=[], labels={})
    with pytest.raises(ValueError, match="numbers to 254, got 255"):
        many.to_palette()


def test_points_are_where_the_pixels_are(depth):
    cloud = depth.to_pointcloud(50.0)
    assert cloud.points.dtype == np.float32 and cloud.points.shape == (24 * 30, 3) and len(cloud) == 720
    assert cloud.colors.dtype == np.uint8 and cloud.colors.shape == (720, 3) and cloud.normals is None
    points = cloud.points.reshape(24, 30, 3)
    assert np.allclose(points[..., 2], depth.predicted_depth)
    assert np.allclose(points[0, 0], [(0.5 - 15) / 50, (0.5 - 12) / 50, 1.0], atol=1e-6)
    # Seen by a camera of that focal length, each is at the middle of its pixel again.
    y, x = np.mgrid[:24, :30] + 0.5
    assert np.allclose(points[..., 0] / points[..., 2] * 50 + 15, x, atol=1e-4)
    assert np.allclose(points[..., 1] / points[..., 2] * 50 + 12, y, atol=1e-4)
    scene = make_image(24, 30)
    assert np.array_equal(depth.to_pointcloud(50.0, scene).colors.reshape(24, 30, 3), np.asarray(scene))
    depth.predicted_depth[3, 4], depth.predicted_depth[5, 6] = 0, torch.nan
    assert len(depth.to_pointcloud(50.0, scene)) == 718


def test_a_ply_file_has_what_its_header_says(depth, tmp_path):
    depth.normals = depth_to_normals(depth.predicted_depth, 50.0)
    scene = make_image(24, 30)
    depth.save(tmp_path / "a.ply", focal_length=50.0, image=scene)
    header, _, content = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"] and "element vertex 720" in lines
    names = [line.split()[1:] for line in lines if line.startswith("property")]
    kinds = {"float": "<f4", "uchar": "u1"}
    rows = np.frombuffer(content, dtype=[(name, kinds[kind]) for kind, name in names])
    cloud = depth.to_pointcloud(50.0, scene)
    assert np.array_equal(np.stack([rows[axis] for axis in "xyz"], 1), cloud.points)
    assert np.array_equal(np.stack([rows[name] for name in ("red", "green", "blue")], 1), cloud.colors)
    normals = np.stack([rows[name] for name in ("nx", "ny", "nz")], 1)
    assert np.array_equal(normals, cloud.normals)
    assert ((normals * cloud.points).sum(axis=1) <= 1e-6).all()  # they face the camera


def test_every_form_is_written_and_nothing_is_written_over(classes, depth, tmp_path):
    pytest.importorskip("shapely")
    classes.predicted_depth = depth.predicted_depth
    scene = make_image(24, 30)
    scene.save(tmp_path / "scene.png")
    for name, form in FORMATS.items():
        for suffix in form.suffixes:
            path = tmp_path / "new" / f"{name}{suffix}"
            options = {"image": tmp_path / "scene.png", "focal_length": 40.0}
            written = classes.save(path, name, **options)
            assert path in written and all(own.stat().st_size for own in written)
            before = path.read_bytes()
            with pytest.raises(FileExistsError, match=f"{name}.* is there already"):
                classes.save(path, name, **options)
            assert path.read_bytes() == before
            classes.save(path, name, overwrite=True, **options)
    assert not list((tmp_path / "new").glob(".*"))
    with np.load(tmp_path / "new/npz.npz") as arrays:
        assert set(arrays) == {"segmentation", "predicted_depth"}
    assert json.loads((tmp_path / "new/palette.labels.json").read_text()) == {str(k): v for k, v in NAMES.items()}
    assert json.loads((tmp_path / "new/coco.json").read_text())["images"][0]["file_name"] == "scene.png"


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.png", "picture"), ("a.npy", "npy"), ("a.json", "json"), ("a.npz", "npz"), ("a.JPG", "picture")],
)  # fmt: skip
def test_a_file_has_the_form_of_its_suffix(classes, tmp_path, name, form):
    classes.save(tmp_path / name)
    classes.save(tmp_path / f"own_{name}", form)
    assert (tmp_path / name).read_bytes() == (tmp_path / f"own_{name}").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("a.tif",), ValueError, "`path` must end in one of"),
        (("a.png", "parquet"), ValueError, "`format` must be one of"),
        (("a.png", "coco"), ValueError, "`path` must end in .json for `format` 'coco'"),
        (("a.png", "overlay"), ValueError, "`image` is needed"),
        (("a.ply",), ValueError, "`focal_length` is needed"),
        (("a.png", "picture", False, None, "mask"), ValueError, "`field` must be one of"),
        (("a.geojson", None, False, None, None, None, None, -1.0), ValueError, "`tolerance` must be"),
        (("a.geojson", None, False, None, None, None, None, "1"), TypeError, "`tolerance` must be"),
        (("a.geojson", None, False, None, None, None, None, 1.0, 5), TypeError, "`label` must be"),
    ],
)
def test_what_cannot_be_saved_is_said(classes, tmp_path, arguments, error, words):
    with pytest.raises(error, match=words):
        classes.save(tmp_path / arguments[0], *arguments[1:])
    assert not list(tmp_path.iterdir())


def test_maps_that_lack_are_named(depth, classes):
    for call in (depth.to_coco, depth.to_geojson, depth.to_yolo, depth.to_palette):
        with pytest.raises(ValueError, match="there is no mask and no segmentation"):
            call()
    with pytest.raises(ValueError, match="`field` must be one of"):
        classes.to_pointcloud(50.0)
    for wrong in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="`focal_length` must be"):
            depth.to_pointcloud(wrong)
    with pytest.raises(TypeError, match="`focal_length` must be"):
        depth.to_pointcloud("50")
    with pytest.raises(ValueError, match="`image_id` must be"):
        classes.to_coco(image_id=-1)


def test_without_shapely_the_extra_is_named(classes, monkeypatch):
    monkeypatch.setitem(sys.modules, "shapely", None)
    with pytest.raises(ImportError, match=r"densemllm\[polygons\]"):
        classes.to_geojson()
    assert classes.to_coco()["annotations"]  # run lengths need nothing


def test_side_by_side_and_notebooks(classes, depth):
    scene = make_image(48, 60)
    classes.predicted_depth = depth.predicted_depth
    sheet = classes.side_by_side(scene)
    assert np.array_equal(np.asarray(sheet)[:24, :30], np.asarray(scene.resize((30, 24), PIL.Image.BILINEAR)))
    assert sheet.width > classes.side_by_side(scene, "segmentation").width > 60
    assert np.array_equal(
        np.asarray(classes.side_by_side(scene, "segmentation"))[:24, 38:68],
        np.asarray(classes.overlay(scene, "segmentation", 0.75)),
    )
    with PIL.Image.open(io.BytesIO(classes._repr_png_())) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image)[:24, :30], np.asarray(classes.to_pil()))
    assert DensePrediction()._repr_png_() is None
    with pytest.raises(ValueError, match="`field` must be one of"):
        DensePrediction().side_by_side(scene)


def test_objects_have_outlines():
    values = np.zeros((20, 20), dtype=np.int64)
    values[:, 10:] = 1
    rows = [
        {"id": key, "label_id": 0, "label": "chair", "score": 0.5, "area": 200, "box": (0, 0, 1, 1)} for key in (0, 1)
    ]
    objects = DensePrediction(segmentation=torch.tensor(values), segments_info=rows, labels={0: "chair"})
    scene = np.zeros((20, 20, 3), np.uint8)
    drawn, plain = (np.asarray(objects.overlay(scene, outlines=outlines)) for outlines in (None, False))
    assert (drawn[:, 10] == 255).all() and not (plain == 255).all(axis=2).any()
    assert np.array_equal(np.delete(drawn, 10, axis=1), np.delete(plain, 10, axis=1))


@pytest.mark.parametrize(
    ("size", "count"),
    [((16, 16), 12), ((40, 300), 60), ((300, 40), 60), ((300, 400), 1), ((300, 400), 150), ((1500, 2000), 12)],
)
def test_legends_fit(size, count):
    image = PIL.Image.fromarray(np.zeros((*size, 3), np.uint8))
    rows = [(f"class {number}", color) for number, color in enumerate(label_colors(count))]
    sheet = np.asarray(add_names(image, rows))
    assert np.array_equal(sheet[: size[0], : size[1]], np.asarray(image))
    right = sheet[:, size[1] :]
    for _, color in rows:
        assert (right == color).all(axis=2).sum() > 50  # its box is there as a whole
    ink = (right != 255).any(axis=2)
    assert not ink[-1].any() and not ink[:, -1].any()  # nothing is cut off
    assert right.shape[1] <= max(2.5 * size[1], 900)
    scale = np.asarray(add_scale(image, 0.5, 123.456))
    assert not (scale[:, -1] != 255).any()
