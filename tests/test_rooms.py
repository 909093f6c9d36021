"""The generator of rooms: what can be checked without its furniture, and with boxes in its place."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repository import require


pytest.importorskip("embreex", reason="the rooms' ray caster: pip install densemllm[rooms]")
sys.path.insert(0, str(require("examples/rooms")))
catalogue = pytest.importorskip("catalogue")
import language  # noqa: E402
import layout  # noqa: E402
import raycast  # noqa: E402
import render  # noqa: E402


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
    """Models are boxes: six sides, their front in another colour than the rest."""

    def load(model):
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

    monkeypatch.setattr(raycast, "load_mesh", load)


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
