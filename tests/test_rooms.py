"""The generator of rooms: what can be checked without its furniture, and with boxes in its place."""

import dataclasses
import io
import json
import math
import sys

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repository import require


pytest.importorskip("embreex", reason="the rooms' ray caster: pip install densemllm[rooms]")
sys.path.insert(0, str(require("examples/rooms")))
catalogue = pytest.importorskip("catalogue")
import carpentry  # noqa: E402
import language  # noqa: E402
import layout  # noqa: E402
import looks  # noqa: E402
import maker  # noqa: E402
import paints  # noqa: E402
import raycast  # noqa: E402
import render  # noqa: E402
import variety  # noqa: E402


SIZES = {
    "window": (1.2, 0.15, 1.2), "door": (0.9, 0.1, 2.0), "chair": (0.45, 0.5, 0.9),
    "table": (1.4, 0.8, 0.75), "sofa": (1.9, 0.9, 0.85), "bed": (1.6, 2.0, 0.6), "cabinet": (0.8, 0.5, 1.1),
    "shelf": (0.9, 0.35, 1.8), "lamp": (0.3, 0.3, 0.5), "plant": (0.5, 0.5, 1.1), "screen": (0.6, 0.1, 0.4),
    "appliance": (0.6, 0.6, 0.9), "sink": (0.6, 0.5, 0.9), "toilet": (0.4, 0.7, 0.8), "radiator": (1.0, 0.15, 0.6),
    "person": (0.5, 0.4, 1.7), "other": (0.2, 0.2, 0.2),
}  # fmt: skip


def make_models(count: int = 8) -> list:
    return [
        catalogue.Model(
            f"{label}{k}", label, label, size, size[2] if label in ("table", "cabinet") else None, 0.0, "me", "CC0",
            "", "", None,
        )
        for label, size in SIZES.items()
        for k in range(count)
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def boxes(monkeypatch):
    """Models of the catalogue are boxes: six sides, their front in another colour than the rest."""

    def load(model):
        if isinstance(model, catalogue.MadeModel):
            return model.mesh
        corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (0, 1)], dtype=np.float32)
        sides = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
        triangles = np.concatenate([sides[:, [0, 1, 2]], sides[:, [0, 2, 3]]])
        vertices = corners[triangles]
        edges = np.cross(vertices[:, 1] - vertices[:, 0], vertices[:, 2] - vertices[:, 0])
        normals = np.repeat((edges / np.linalg.norm(edges, axis=1, keepdims=True))[:, None], 3, axis=1)
        front = (np.arange(12) % 6 == 2).astype(np.int32)
        colors = np.array([[0.6, 0.1, 0.1], [0.1, 0.1, 0.6]], dtype=np.float32)
        uv = np.zeros((12, 3, 2), np.float32)
        return catalogue.Mesh(vertices, normals, uv, front, colors, np.ones(2, np.float32), [None, None])

    for module in (raycast, looks):
        monkeypatch.setattr(module, "load_mesh", load)


@pytest.mark.parametrize(
    ("name", "category", "label"),
    [
        ("Oak chair", "Living room", "chair"), ("Rattan armchair", "x", "chair"), ("Winchester sofa", "x", "sofa"),
        ("Coffee table", "x", "table"), ("Table tennis", "Miscellaneous", "other"), ("Wheelchair", "x", "other"),
        ("Doormat", "x", "rug"), ("Double French window 3 panes", "x", "window"), ("Window blind", "x", None),
        ("TV remote control", "x", None), ("City bus", "Vehicles", None), ("Female", "Characters", "person"),
        ("Bulldog", "Characters", None), ("Rattan sofa", "Exterior", "sofa"), ("Swimming pool", "Exterior", None),
    ],
)  # fmt: skip
def test_classes_come_from_names(name, category, label):
    assert catalogue.label_of(name, category) == label


@given(
    st.lists(
        st.tuples(st.sampled_from([*catalogue.LABELS[3:], "other"]), st.integers(0, 10**6)), unique=True, max_size=80
    )
)
def test_splits_share_no_model_and_lose_none(keys):
    models = [catalogue.Model(f"{l}{k}", l, l, (1, 1, 1), None, 0, "", "", "", "", None) for l, k in keys]  # noqa: E741
    splits = catalogue.split_models(models)
    assert sorted(model.key for own in splits.values() for model in own) == sorted(model.key for model in models)
    assert catalogue.split_models(models[::-1]) == splits
    for label in {model.label for model in models}:
        count = {split: sum(model.label == label for model in own) for split, own in splits.items()}
        if sum(count.values()) >= 3:
            assert min(count.values()) >= 1 and count["train"] >= count["test"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_things_stand_in_the_room_and_not_in_each_other(seed):
    room = layout.Furnisher(make_models())(seed)
    boxes = [(thing, thing.box) for thing in room.things if thing.label != "rug" and thing.name != "view"]
    for place, (thing, box) in enumerate(boxes):
        assert (box[0] >= -0.02).all() and (box[1] <= room.size + 0.02).all(), thing
        for other, own in boxes[:place]:
            overlap = np.minimum(box[1], own[1]) - np.maximum(box[0], own[0])
            # Chairs may be pushed a little under the edge of their table's bounding box.
            assert overlap.min() < 0.03, (thing, other)
    for thing in room.things:
        if thing.support is not None and thing.name != "view":
            support = room.things[thing.support]
            assert thing.position[2] == pytest.approx(support.position[2] + support.model.top + 0.001)
            assert (thing.box[0, :2] >= support.box[0, :2] - 0.25).all()
        elif thing.model is not None and thing.label not in ("window", "lamp"):
            assert thing.position[2] == 0


def box_room() -> layout.Room:
    white = layout.Paint((0.8, 0.8, 0.8), (0.8, 0.8, 0.8))
    names = ("floor", "ceiling", "wall0", "wall1", "wall2", "wall3")
    room = layout.Room("office", np.array([4.0, 5.0, 2.5]), dict.fromkeys(names, white))
    room.lights.append(layout.Light(np.array([1.8, 2.3, 2.4]), np.array([[0, 0.4, 0], [0.4, 0, 0]]), np.full(3, 20.0)))
    return room


def test_depth_and_classes_are_exact_at_the_pixels_centres():
    room = box_room()
    chair = make_models(1)[2]
    room.things.append(layout.Placed("chair", "chair", (2.0, 3.0, 0.0), 0.0, chair.size, chair))
    camera = layout.Camera(np.array([2.0, 0.5, 1.5]), np.array([0.0, 1.0, 0.0]), 0.6)
    height = width = 64
    view = raycast.Scene(room).render(camera, height, width, np.random.default_rng(0))
    focal = 0.6 * width
    for row in range(0, height, 7):
        for column in range(0, width, 7):
            x, z = (column + 0.5 - width / 2) / focal, (height / 2 - row - 0.5) / focal
            # Metres along y at which the ray leaves the room, by the surface that it meets first.
            ends = {"wall": 4.5}
            ends["floor" if z < 0 else "ceiling"] = 1.5 / -z if z < 0 else 1.0 / z
            sides = (2.0 / abs(x)) if x else 99
            if sides < min(ends.values()):
                ends["wall"] = sides
            label, expected = min(ends.items(), key=lambda item: item[1])
            front = 3.0 - chair.size[1] / 2 - 0.5
            if abs(x * front) < chair.size[0] / 2 - 0.01 and -1.49 < z * front < chair.size[2] - 1.51:
                label, expected = "chair", front
            elif abs(x * 3) < 0.4 and z < 0:
                continue  # the chair's top and its edges
            assert catalogue.ID2LABEL[int(view.segmentation[row, column])] == label, (row, column)
            assert view.depth[row, column] == pytest.approx(expected, rel=1e-4)
            assert view.instances[row, column] == (1 if label == "chair" else 0)
    seen = view.image[view.instances == 1].reshape(-1, 3).astype(float).mean(axis=0)
    assert seen[2] > 1.5 * seen[0]  # its front, which is blue, looks at the camera


def test_a_thing_has_its_own_size_and_tint():
    room = box_room()
    chair = make_models(1)[2]
    size = tuple(1.5 * edge for edge in chair.size)
    room.things.append(layout.Placed("chair", "chair", (2.0, 3.0, 0.0), 0.3, size, chair, tint=(0.5, 1.0, 2.0)))
    solid = raycast.Scene(room).solid
    own = solid.thing == 0
    corners = solid.vertices[own].reshape(-1, 3)
    assert np.allclose([corners.min(axis=0), corners.max(axis=0)], room.things[0].box, atol=1e-5)
    assert np.allclose(np.unique(solid.color[own], axis=0), [[0.05, 0.1, 0.95], [0.3, 0.1, 0.2]])


def test_models_are_stretched_a_little():
    furnisher = layout.Furnisher(make_models())
    picked = [furnisher._pick("chair", np.random.default_rng(seed)) for seed in range(20)]
    assert len({model.size for model in picked}) == 20
    for model in picked:
        ratio = np.array(model.size) / SIZES["chair"]
        assert (0.85 < ratio).all() and (ratio < 1.16).all()


def test_a_thing_throws_a_shadow_and_light_falls_off():
    room = box_room()
    room.ambient = np.zeros(3)
    table = next(model for model in make_models(1) if model.label == "table")
    lit = raycast.Scene(room)
    room.things.append(layout.Placed("table", "table", (2.0, 2.4, 1.0), 0.0, table.size, table))
    shaded = raycast.Scene(room)
    points = np.array([[1.9, 2.4, 0.01], [3.8, 4.8, 0.01]], dtype=np.float32)
    normals = np.array([[0, 0, 1], [0, 0, 1]], dtype=np.float32)
    bright, dark = (
        np.mean([scene._irradiance(points, normals, np.random.default_rng(k)) for k in range(40)], axis=(0, 2))
        for scene in (lit, shaded)
    )
    assert bright[0] > 1.5 * bright[1]
    assert dark[0] < 0.05 * bright[0]


def test_the_same_seed_gives_the_same_bytes_and_rows_follow_the_schema():
    from densemllm.training.samples import read_sample

    furnisher = layout.Furnisher(make_models())
    first, second = (render.render_views(5, furnisher, 48, 64) for _ in range(2))
    assert first == second and first
    for row in first:
        sample = read_sample(row, id2label=catalogue.ID2LABEL, depth_scale=render.DEPTH_SCALE)
        assert sample["depth"].shape == (48, 64) and sample["depth"].min() > 0.1
        assert 0.5 * 64 / math.tan(math.radians(40)) <= row["focal_length"] <= 0.5 * 64 / math.tan(math.radians(27))
        if row["expression"] is not None:
            assert row["expression"] in row["expressions"] and sample["mask"].any()


def seen(label, x, depth, thing, pixels=500, color=None, support=None):
    return language.Visible(thing, label, pixels, x, 0.5, depth, color, support)


def test_expressions_by_hand():
    things = [
        seen("chair", 0.2, 2.0, 0, color="red"),
        seen("chair", 0.7, 3.0, 1, color="blue"),
        seen("table", 0.5, 2.5, 2),
        seen("lamp", 0.52, 2.4, 3, support=2),
    ]
    found = set(language.expressions(things))
    assert {
        ("the red chair", 0), ("the chair on the left", 0), ("the chair on the right", 1), ("the nearest chair", 0),
        ("the farthest chair", 1), ("the table", 2), ("the lamp", 3), ("the chair left of the table", 0),
    } <= found  # fmt: skip
    assert not any(text == "the chair" for text, _ in found)
    # A third chair of which little is seen, and whose colour can't be told, takes most of it away.
    less = set(language.expressions([*things, seen("chair", 0.1, 1.5, 4, pixels=20)]))
    assert not {("the red chair", 0), ("the chair on the left", 0), ("the nearest chair", 0)} & less
    assert ("the chair on the right", 1) in less and ("the farthest chair", 1) in less


visible_things = st.lists(
    st.builds(
        seen, st.sampled_from(["chair", "table", "sofa", "lamp"]), st.floats(0, 1), st.floats(0.5, 6),
        st.integers(0, 10**6), st.sampled_from([20, 500]), st.sampled_from([None, "red", "blue"]),
    ),
    max_size=7, unique_by=lambda own: own.thing,
)  # fmt: skip


@given(visible_things)
def test_no_expression_fits_two_things(things):
    found = language.expressions(things)
    for text, thing in found:
        assert [own for other, own in found if other == text] == [thing]
        label = next(own.label for own in things if own.thing == thing)
        assert f" {label}" in text
        rivals = [own for own in things if own.label == label and own.thing != thing]
        own = next(own for own in things if own.thing == thing)
        assert own.pixels >= language.MIN_PIXELS
        if text == f"the {label}":
            assert not rivals
        if text.startswith(f"the {own.color} {label}"):
            assert all(rival.color not in (None, own.color) for rival in rivals)
        if text.endswith("on the left"):
            assert all(rival.x > own.x for rival in rivals)
        if text.startswith("the farthest"):
            assert all(rival.depth < own.depth for rival in rivals)


@given(visible_things)
def test_counts_are_those_of_what_is_seen(things):
    room = box_room()
    for question, answer in language.questions(room, things, np.random.default_rng(0)):
        if question.startswith("How many"):
            label = next(own for own in catalogue.LABELS if question == f"How many {language.plural(own)} are there?")
            assert language.NUMBERS[sum(own.label == label for own in things)] == answer
        if question.startswith("Is there"):
            label = question.removeprefix("Is there ").split(" ", 1)[1].rstrip("?")
            assert f" {language.one(label)}?" in question
            assert any(own.label == label for own in things) == (answer == "yes")


@pytest.mark.parametrize(
    ("color", "name"),
    [((220, 30, 30), "red"), ((30, 40, 200), "blue"), ((20, 20, 20), "black"), ((240, 240, 240), "white"),
     ((128, 128, 128), "grey"), ((110, 65, 25), "brown"), ((40, 160, 50), "green"), ((190, 160, 150), None)],
)  # fmt: skip
def test_colors_have_names_where_they_are_clear(color, name):
    pixels = np.tile(np.array(color, dtype=np.uint8), (100, 1))
    assert language.color_name(pixels) == name
    half = np.concatenate([pixels[:50], np.tile(np.array([[0, 255, 255]], dtype=np.uint8), (50, 1))])
    assert language.color_name(half) is None


def test_rooms_are_not_rendered_into_two_files(tmp_path, capsys):
    first = render.FIRST_SEEDS["train"]
    (tmp_path / "out/data").mkdir(parents=True)
    (tmp_path / f"out/data/train-{first:07d}-{first + 60:07d}.parquet").touch()
    words = ["--output_dir", str(tmp_path / "out"), "--furniture", str(tmp_path)]
    for rooms, first_room, message in (
        (100, 0, "has some of these rooms"),
        (60, 0, "furniture"),
        (60, 60, "furniture"),
    ):
        with pytest.raises(SystemExit):
            render.main([*words, "--rooms", str(rooms), "--first_room", str(first_room)])
        assert message in capsys.readouterr().err


def test_missing_furniture_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        render.main(["--output_dir", str(tmp_path / "out"), "--furniture", str(tmp_path), "--rooms", "1"])
    assert "apt-get install sweethome3d-furniture" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def unpacked(row, column):
    return np.asarray(PIL.Image.open(io.BytesIO(row[column]["bytes"])))


@pytest.mark.parametrize(
    ("seed", "things", "places", "seen"),
    [
        (5, 13, 61.727621, ({0: 731, 1: 1406, 3: 286, 11: 114, 13: 38, 14: 50, 16: 341, 17: 106}, 3879782, 157.361,
                            39.2705)),
        (8, 15, 81.14429, ({0: 200, 1: 1011, 3: 820, 6: 112, 8: 826, 10: 103}, 3488573, 159.613, 45.5504)),
    ],
)  # fmt: skip
def test_rooms_without_variety_stay_what_they_are(seed, things, places, seen):
    """Numbers of the version before there was any: a published data set can be rendered again."""
    furnisher = layout.Furnisher(make_models())
    room = furnisher(seed)
    assert len(room.things) == things
    assert sum(np.sum(thing.position) + thing.yaw for thing in room.things) == pytest.approx(places, abs=1e-5)
    row = render.render_views(seed, furnisher, 48, 64)[0]
    labels, counts = np.unique(unpacked(row, "segmentation"), return_counts=True)
    expected, depth, mean, focal_length = seen
    assert dict(zip(labels.tolist(), counts.tolist(), strict=True)) == expected
    assert int(unpacked(row, "depth").astype(int).sum()) == pytest.approx(depth, abs=50)
    assert unpacked(row, "image").mean() == pytest.approx(mean, abs=0.3)
    assert row["focal_length"] == pytest.approx(focal_length, abs=1e-3)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.3, 1.0]))
def test_varied_things_stand_in_the_room_and_not_in_each_other(seed, strength):
    room = variety.VariedFurnisher(make_models(), strength)(seed)
    assert len(room.things) <= variety.MOST_THINGS and len(room.lights) <= variety.MOST_LIGHTS
    assert 2.0 <= room.size[:2].min() and room.size[:2].max() <= 12.0 and 2.2 <= room.size[2] <= 4.5
    boxes = [(thing, thing.box) for thing in room.things if thing.label not in ("rug", "window", "door")]
    for place, (thing, box) in enumerate(boxes):
        assert (box[0] >= -0.02).all() and (box[1] <= room.size + 0.02).all(), thing
        if room.slope is not None:
            assert box[1, 2] <= room.slope.height_over(box, room.size) + 1e-6, thing
        solid = [block.box for block in room.blocks if block.is_solid]
        for own in [*(other for _, other in boxes[:place]), *solid]:
            assert (np.minimum(box[1], own[1]) - np.maximum(box[0], own[0])).min() < 0.03, thing


def odd_room() -> layout.Room:
    """L-shaped, with a ceiling that slopes, a window set into a wall and a room behind a doorway."""
    room = box_room()
    grey = layout.Paint((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    room.blocks.append(layout.Block(np.array([[2.5, 3.0, 0.0], [4.0, 5.0, 2.5]]), "wall", grey))
    room.slope = layout.Slope(1, 1.5, 1.2)  # down to the wall x = 0
    room.holes.append(layout.Hole(3, (3.0, 0.8), (4.0, 1.8), 0.2))  # the wall x = 4, from y = 5 on: y from 1 to 2
    room.holes.append(layout.Hole(0, (1.6, 0.0), (2.4, 2.0), 1.5, is_room=True))  # the wall y = 5
    return room


@pytest.mark.parametrize(
    ("position", "forward", "roll"),
    [((2.0, 0.4, 1.5), (0.05, 1.0, -0.1), 0.0), ((2.2, 1.0, 1.4), (-1.0, 0.3, 0.2), 0.2),
     ((1.0, 1.2, 1.5), (1.0, 0.15, -0.15), -0.3)],
)  # fmt: skip
def test_every_pixel_of_an_odd_room_lies_on_a_surface_of_its_class(position, forward, roll):
    room, height, width = odd_room(), 48, 64
    forward = np.array(forward) / np.linalg.norm(forward)
    camera = layout.Camera(np.array(position), forward, 0.7, roll)
    view = raycast.Scene(room).render(camera, height, width, np.random.default_rng(0))
    right = np.cross(forward, (0, 0, 1.0))
    right /= np.linalg.norm(right)
    # A camera that rolls by an angle to its left sees the image turn about its centre by it.
    row, column = np.mgrid[0:height, 0:width] + 0.5
    x, y = (column - width / 2) / (0.7 * width), (height / 2 - row) / (0.7 * width)
    x, y = x * math.cos(roll) - y * math.sin(roll), x * math.sin(roll) + y * math.cos(roll)
    ways = forward + x[..., None] * right + y[..., None] * np.cross(right, forward)
    points = position + ways * view.depth[..., None]
    x, y, z = np.moveaxis(points, -1, 0)

    def near(values, expected):
        return np.abs(values - expected) < 2e-3

    thick = raycast.WALL_THICKNESS
    slope = near(z, 1.2 + 1.3 * np.clip(x / 1.5, 0, 1))
    surfaces = {
        "floor": near(z, 0), "ceiling": near(z, 2.5) | slope,
        "wall": near(x, 0) | near(x, 4) | near(y, 0) | near(y, 5) | near(x, 2.5) | near(y, 3)
        | near(z, 0.8) | near(z, 1.8) | near(z, 2.0) | near(y, 6.5 + thick) | near(x, 1.6) | near(x, 2.4)
        | near(x, 0.8) | near(x, 3.2) | near(y, 1) | near(y, 2),
    }  # fmt: skip
    seen = view.depth > 0
    assert (~seen).sum() < 0.12 * seen.size  # through the window, nothing
    for label, fits in surfaces.items():
        own = seen & (view.segmentation == catalogue.LABEL2ID[label])
        assert fits[own].all(), label
    assert (view.segmentation[seen] == catalogue.LABEL2ID["wall"]).any()
    if position[0] == 2.0:
        assert (y[seen] > 5.1).any() and near(y, 3)[seen].any()  # into the next room, and the face of the block
    if roll == 0.2:
        assert slope[seen & ~near(z, 2.5)].any()


def test_the_sun_comes_through_its_opening_only():
    room = box_room()
    room.lights, room.ambient = [], np.zeros(3)
    way = np.array([0.0, 1.0, 1.0]) / math.sqrt(2)
    room.suns.append(layout.Sun(np.array([1.5, 5.0, 1.0]), np.array([[1.0, 0, 0], [0, 0, 1.0]]), way, np.full(3, 2.0)))
    room.holes.append(layout.Hole(0, (1.5, 1.0), (2.5, 2.0), 0.1))
    scene = raycast.Scene(room)
    points = np.array([[2.0, 3.5, 0.01], [2.0, 2.5, 0.01], [1.0, 3.5, 0.01]], dtype=np.float32)
    light = scene._irradiance(points, np.tile(np.float32([0, 0, 1]), (3, 1)), np.random.default_rng(0))
    assert light[0] == pytest.approx(2.0 / math.sqrt(2), rel=1e-4) and (light[1:] == 0).all()


def test_a_mirror_shows_what_is_before_it_and_keeps_its_own_depth():
    room = box_room()
    red = layout.Paint((0.8, 0.05, 0.05), (0.8, 0.05, 0.05))
    room.paints = {**room.paints, "wall2": red}  # behind the camera
    mirror = carpentry.make_mirror(maker.Maker(np.random.default_rng(0)), np.random.default_rng(0))
    room.things.append(layout.Placed("other", "mirror", (2.0, 4.9, 0.8), 0.0, (1.5, 0.03, 1.2), mirror))
    camera = layout.Camera(np.array([2.0, 2.0, 1.4]), np.array([0.0, 1.0, 0.0]), 0.8)
    view = raycast.Scene(room).render(camera, 32, 32, np.random.default_rng(0))
    middle = np.s_[12:20, 12:20]
    assert (view.instances[middle] == 1).all() and (view.segmentation[middle] == 255).all()
    assert view.depth[middle] == pytest.approx(4.9 - 0.016 - 2.0, abs=0.01)
    red_seen = view.image[middle].astype(float).mean(axis=(0, 1))
    assert red_seen[0] > 1.5 * red_seen[1]


@pytest.mark.parametrize("label", list(carpentry.MAKERS))
def test_made_furniture_has_the_measures_of_its_class(label):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        model = carpentry.MAKERS[label](maker.Maker(rng), rng)
        assert model.label == label and layout.pools_of(model) == layout.pools_of(dataclasses.replace(model))
        lowest, highest = {
            "shelf": (0.2, 2.4), "bed": (0.4, 2.4), "sofa": (0.6, 4.0), "table": (0.25, 2.3), "chair": (0.3, 1.3),
        }.get(label, (0.02, 2.9))  # fmt: skip
        assert all(lowest * 0.5 <= edge <= highest for edge in model.size), (seed, model.size)
        corners = model.mesh.vertices.reshape(-1, 3)
        np.testing.assert_allclose(corners.min(axis=0), [-0.5, -0.5, 0], atol=1e-4)
        np.testing.assert_allclose(corners.max(axis=0), [0.5, 0.5, 1], atol=1e-4)
        assert np.isfinite(model.mesh.normals).all() and len(model.mesh.paints) > model.mesh.material.max()
        assert model.top is None or 0 < model.top <= model.size[2] + 1e-6


def test_the_same_seed_makes_the_same_piece():
    first, second = (carpentry.make_shelf(maker.Maker(rng), rng) for rng in map(np.random.default_rng, (3, 3)))
    assert first == second and (first.mesh.vertices == second.mesh.vertices).all()


def a_cushion():
    make = maker.Maker(np.random.default_rng(0))
    make.cushion((-0.3, -0.2, 0), (0.3, 0.2, 0.5), make.paint("plain"), 2.0, 24)
    return make.finish("other", "cushion").mesh


@pytest.mark.parametrize("change", [looks.mirrored, lambda mesh: looks.bent(mesh, 0.25, 0.15)])
def test_changed_meshes_keep_their_box_and_their_normals(change):
    mesh = change(a_cushion())
    corners = mesh.vertices.reshape(-1, 3)
    np.testing.assert_allclose([corners.min(axis=0), corners.max(axis=0)], [[-0.5, -0.5, 0], [0.5, 0.5, 1]], atol=0.02)
    edges = np.cross(mesh.vertices[:, 1] - mesh.vertices[:, 0], mesh.vertices[:, 2] - mesh.vertices[:, 0])
    area = np.linalg.norm(edges, axis=1)
    smooth = mesh.normals.mean(axis=1)
    smooth /= np.linalg.norm(smooth, axis=1, keepdims=True)
    large = area > np.median(area) * 0.3
    agree = np.abs((edges[large] / area[large, None] * smooth[large]).sum(axis=1))
    assert np.quantile(agree, 0.05) > 0.97


def test_triangles_that_coincide_are_left_out_and_parts_are_put_together():
    mesh = a_cushion()
    twice = dataclasses.replace(
        mesh, **{name: np.concatenate([getattr(mesh, name)] * 2) for name in ("vertices", "normals", "uv", "material")}
    )
    assert len(looks.without_doubles(twice).vertices) == len(looks.without_doubles(mesh).vertices)
    table, other = (carpentry.make_table(maker.Maker(rng), rng).mesh for rng in map(np.random.default_rng, (1, 2)))
    joined = looks.put_together(table, other, 0.86)
    assert len(joined.colors) == len(table.colors) + len(other.colors) == len(joined.paints)
    assert joined.vertices[..., 2].max() == pytest.approx(1) and joined.material.max() < len(joined.colors)


@pytest.mark.parametrize("pattern", list(paints.PATTERNS))
def test_patterns_stay_between_their_colors(pattern):
    places = np.random.default_rng(0).uniform(0, 5, (4000, 2)).astype(np.float32)
    colors = paints.painted(layout.Paint((0.2, 0.4, 0.6), (0.6, 0.5, 0.3), pattern, 0.5, 4), places)
    assert colors.shape == (4000, 3) and (colors > 0).all() and (colors < 0.8).all()
    assert (colors.std(axis=0) > 0.002).all()


def test_varied_views_follow_the_schema_and_the_seed():
    from densemllm.training.samples import read_sample

    furnisher = variety.VariedFurnisher(make_models(), 1.0)
    first, second = (render.render_views(3, furnisher, 48, 64) for _ in range(2))
    assert first == second and first
    for seed in range(4):
        for row in render.render_views(seed, furnisher, 48, 64):
            sample = read_sample(row, id2label=catalogue.ID2LABEL, depth_scale=render.DEPTH_SCALE)
            height, width = sample["depth"].shape
            assert 0.8 < height * width / (48 * 64) < 1.25
            # 0.6 to 2 times what 0.74 of the edge of a square gives.
            assert 0.42 < row["focal_length"] / math.sqrt(48 * 64) < 1.55
            assert (sample["depth"] > 0).mean() > 0.99 and sample["depth"].max() < 25


def test_nobody_is_asked_what_kind_a_bare_room_is():
    room, rng = box_room(), np.random.default_rng(0)
    assert ("What kind of room is this?", "office") in language.questions(room, [], rng)
    assert "What kind of room is this?" not in dict(language.questions(dataclasses.replace(room, kind=""), [], rng))


@pytest.mark.parametrize("strength", [0, -1, 1.5])
def test_strengths_out_of_range_are_named(strength):
    with pytest.raises(ValueError, match="`strength` must be"):
        variety.VariedFurnisher(make_models(), strength)


def test_folders_do_not_mix_settings(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train-0000000-0000100.parquet").touch()
    settings = {"variety": 1.0, "height": 256, "width": 256}
    with pytest.raises(ValueError, match="were rendered with"):
        render.check_settings(tmp_path, settings)  # rooms of a version without settings
    assert not (tmp_path / "render.json").exists()
    render.check_settings(tmp_path, {**settings, "variety": 0.0})
    assert json.loads((tmp_path / "render.json").read_text())["variety"] == 0
    with pytest.raises(ValueError, match="another folder"):
        render.check_settings(tmp_path, {**settings, "variety": 0.5})
    with pytest.raises(SystemExit):
        render.main(["--output_dir", str(tmp_path / "out"), "--variety", "2"])
    assert "--variety must be in [0, 1]" in capsys.readouterr().err
