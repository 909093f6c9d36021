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
"""Furnished rooms: what stands where, and where the camera is. All of it follows from one seed.

Metres; the room is the box from the origin to `size`, z is up and the floor z = 0. Yaw turns about z; a model with yaw
0 looks along -y.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from catalogue import Mesh, Model


# Walls by the yaw of what stands with its back to them: at y = depth, x = 0, y = 0 and x = width.
WALL_YAWS = (0.0, math.pi / 2, math.pi, -math.pi / 2)
KEEP_FREE = 0.8  # metres in front of a door
LOW_TABLE = 0.6
SMALL_APPLIANCE = 0.5
# Things look like what they are in any colour; these don't.
UNTINTED = ("plant", "person", "screen")

# What rooms of each kind have: (what, lowest and highest number).
RECIPES: dict[str, tuple] = {
    "living room": (
        ("sofa", 1, 2), ("low table", 0, 1), ("chair", 0, 3), ("shelf", 0, 2), ("cabinet", 0, 2),
        ("wall screen", 0, 1), ("floor lamp", 0, 2), ("floor plant", 0, 2), ("radiator", 0, 1),
        ("person", 0, 1), ("floor thing", 0, 2),
        ("picture", 0, 3), ("rug", 0, 1),
    ),
    "bedroom": (
        ("bed", 1, 2), ("cabinet", 1, 2), ("wall table", 0, 2), ("chair", 0, 2), ("shelf", 0, 2), ("floor lamp", 0, 1),
        ("floor plant", 0, 1), ("wall screen", 0, 1), ("radiator", 0, 1), ("person", 0, 1), ("floor thing", 0, 2),
        ("picture", 0, 2), ("rug", 0, 2),
    ),
    "kitchen": (
        ("appliance", 2, 4), ("sink", 1, 2), ("cabinet", 1, 3), ("dining table", 0, 1), ("chair", 0, 1),
        ("floor plant", 0, 1), ("radiator", 0, 1), ("person", 0, 1), ("floor thing", 0, 2), ("picture", 0, 1),
    ),
    "bathroom": (
        ("sink", 1, 2), ("toilet", 1, 3), ("cabinet", 0, 2), ("appliance", 0, 2), ("radiator", 0, 1), ("chair", 0, 1),
        ("shelf", 0, 1), ("floor plant", 0, 1), ("person", 0, 1), ("floor thing", 0, 2), ("rug", 0, 1),
    ),
    "office": (
        ("desk", 1, 2), ("shelf", 1, 2), ("cabinet", 0, 2), ("chair", 0, 2), ("wall screen", 0, 1),
        ("floor lamp", 0, 1), ("floor plant", 0, 2), ("radiator", 0, 1), ("person", 0, 1), ("floor thing", 0, 1),
        ("picture", 0, 2),
    ),
    "dining room": (
        ("dining table", 1, 1), ("cabinet", 0, 2), ("shelf", 0, 1), ("chair", 0, 2), ("floor lamp", 0, 1),
        ("floor plant", 0, 2), ("radiator", 0, 1), ("person", 0, 1), ("picture", 0, 3), ("rug", 0, 1),
    ),
}  # fmt: skip
ROOM_SHARES = (0.22, 0.20, 0.18, 0.16, 0.14, 0.10)


@dataclass(frozen=True)
class Paint:
    """A procedural surface: `pattern` of `scale` metres between two linear colours."""

    base: tuple[float, float, float]
    accent: tuple[float, float, float]
    pattern: str = "plain"
    scale: float = 0.3
    seed: int = 0
    emission: float = 0.0


@dataclass
class Placed:
    """A thing in a room: a catalogue model, or a flat panel with a paint (pictures, rugs, what is behind a window)."""

    label: str
    name: str
    position: tuple[float, float, float]  # of the middle of its foot
    yaw: float
    size: tuple[float, float, float]  # width, depth, height before it is turned
    model: Model | None = None
    paint: Paint | None = None
    support: int | None = None  # place in `Room.things` of what it stands on
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factors of its colours
    change: Callable[[Mesh, tuple[float, float, float]], Mesh] | None = None  # of its mesh, given its size

    @property
    def box(self) -> np.ndarray:
        """Bounding box, float64 [2, 3]."""
        cosine, sine = abs(math.cos(self.yaw)), abs(math.sin(self.yaw))
        half = np.array([self.size[0] * cosine + self.size[1] * sine, self.size[0] * sine + self.size[1] * cosine]) / 2
        x, y, z = self.position
        return np.array([[x - half[0], y - half[1], z], [x + half[0], y + half[1], z + self.size[2]]])


@dataclass
class Light:
    """An area light: a rectangle from `corner` along two edges, with linear RGB radiance to the side of their cross
    product."""

    corner: np.ndarray
    edges: np.ndarray
    color: np.ndarray


@dataclass
class Sun:
    """Parallel light through an opening, a rectangle from `corner` along two edges: `direction` is towards the sun."""

    corner: np.ndarray
    edges: np.ndarray
    direction: np.ndarray
    color: np.ndarray


@dataclass
class Block:
    """A part of the building inside of the room's box: a corner that makes it L-shaped, a pillar, a beam, a skirting
    board. `box` is float64 [2, 3]; things keep off it if it is solid."""

    box: np.ndarray
    label: str
    paint: Paint
    is_solid: bool = True


@dataclass
class Slope:
    """A ceiling that comes down to one of the walls: `height` at the wall, the room's own from `reach` metres on."""

    wall: int
    reach: float
    height: float

    def height_over(self, box: np.ndarray, size: np.ndarray) -> float:
        """Lowest height of the ceiling over a box in a room of `size`."""
        axis = 1 if self.wall % 2 == 0 else 0
        nearest = size[axis] - box[1, axis] if self.wall in (0, 3) else box[0, axis]
        share = min(max(nearest / self.reach, 0.0), 1.0)
        return self.height + (float(size[2]) - self.height) * share


@dataclass
class Hole:
    """An opening in a wall, from `low` to `high` (metres along the wall, as it is drawn, and up): what is behind it is
    `depth` metres deep, and a room of its own where it `is_room`."""

    wall: int
    low: tuple[float, float]
    high: tuple[float, float]
    depth: float
    is_room: bool = False


@dataclass
class Camera:
    """Looks along `forward`; `focal_length` in units of the picture's width, `roll` in radians."""

    position: np.ndarray
    forward: np.ndarray
    focal_length: float
    roll: float = 0.0


@dataclass
class Room:
    kind: str  # empty where nobody could tell
    size: np.ndarray
    paints: dict[str, Paint]  # floor, ceiling, wall0 to wall3
    things: list[Placed] = field(default_factory=list)
    lights: list[Light] = field(default_factory=list)
    ambient: np.ndarray = field(default_factory=lambda: np.full(3, 0.3))
    reserved: list[np.ndarray] = field(default_factory=list)  # boxes that must stay free
    blocks: list[Block] = field(default_factory=list)
    slope: Slope | None = None
    holes: list[Hole] = field(default_factory=list)
    suns: list[Sun] = field(default_factory=list)
    light_passes: int = 2  # rays to each light, and half of those for what surfaces send, at each pixel
    gloss: dict[str, tuple[float, float]] = field(default_factory=dict)  # of paints: reflectance, roughness

    def is_free(self, box: np.ndarray, margin: float = 0.02, ignore: tuple[int, ...] = ()) -> bool:
        """Whether a box is inside of the room and touches no thing (rugs don't count) and no reserved space."""
        if (box[0] < -0.01).any() or (box[1] > self.size + 0.01).any():
            return False
        if self.slope is not None and box[1, 2] > self.slope.height_over(box, self.size):
            return False
        for block in self.blocks:
            if block.is_solid and (box[0] < block.box[1] - 1e-6).all() and (block.box[0] < box[1] - 1e-6).all():
                return False
        others = [thing.box for place, thing in enumerate(self.things) if thing.label != "rug" and place not in ignore]
        for other in [*others, *self.reserved]:
            if (box[0] < other[1] - 1e-6 + margin).all() and (other[0] < box[1] - 1e-6 + margin).all():
                return False
        return True

    def walls(self) -> list[tuple[np.ndarray, np.ndarray, float]]:
        """Where things can stand with their back to a wall: a start [2], an edge [2], and the yaw there. The four
        walls of the box, in the order of `WALL_YAWS`, and the faces of blocks that reach from the floor to 1.5 m."""
        width, depth = self.size[:2]
        found = [
            (np.array([0.0, depth]), np.array([width, 0.0]), WALL_YAWS[0]),
            (np.zeros(2), np.array([0.0, depth]), WALL_YAWS[1]),
            (np.zeros(2), np.array([width, 0.0]), WALL_YAWS[2]),
            (np.array([width, 0.0]), np.array([0.0, depth]), WALL_YAWS[3]),
        ]
        for block in self.blocks:
            (x0, y0, z0), (x1, y1, z1) = block.box
            if not block.is_solid or z0 > 0 or z1 < 1.5:
                continue
            faces = (
                (y0 > 0.01, (x0, y0), (x1 - x0, 0.0), WALL_YAWS[0]),
                (x1 < width - 0.01, (x1, y0), (0.0, y1 - y0), WALL_YAWS[1]),
                (y1 < depth - 0.01, (x0, y1), (x1 - x0, 0.0), WALL_YAWS[2]),
                (x0 > 0.01, (x0, y0), (0.0, y1 - y0), WALL_YAWS[3]),
            )
            found += [(np.array(start), np.array(edge), yaw) for is_seen, start, edge, yaw in faces if is_seen]
        return found


class Furnisher:
    """Makes rooms out of a split's models."""

    def __init__(self, models: list[Model]):
        self.pools: dict[str, list[Model]] = {}
        for model in models:
            for pool in pools_of(model):
                self.pools.setdefault(pool, []).append(model)

    def __call__(self, seed: int) -> Room:
        """The room of a seed."""
        rng = np.random.default_rng([20261124, seed])
        kind = str(rng.choice(list(RECIPES), p=ROOM_SHARES))
        small = 0.8 if kind in ("bathroom", "kitchen") else 1.0
        size = np.array([rng.uniform(3.0, 5.5) * small, rng.uniform(3.0, 5.0) * small, rng.uniform(2.4, 2.9)])
        room = Room(kind, size, _make_paints(rng, kind))
        self._openings(room, rng)
        for what, low, high in RECIPES[kind]:
            for _ in range(int(rng.integers(low, high + 1))):
                self._place(room, what, rng)
        self._ceiling_lamps(room, rng)
        for index in range(len(room.things)):
            self._on_top(room, index, rng)
        for thing in room.things:
            if thing.model is not None and thing.label not in UNTINTED and rng.random() < 0.6:
                thing.tint = tuple(float(channel) for channel in np.exp(rng.normal(-0.25, 0.45, 3)).clip(0.15, 1.3))
        _make_lights(room, rng)
        return room

    def propose_camera(self, room: Room, rng) -> Camera | None:
        """See [`propose_camera`]."""
        return propose_camera(room, rng)

    def frame(self, camera: Camera, height: int, width: int, rng) -> tuple[Camera, int, int]:
        """The camera, and rows and columns of its picture where `height` x `width` is asked for."""
        return camera, height, width

    def accepts(self, room: Room, things: np.ndarray, depth: np.ndarray) -> bool:
        """Whether a view is shown, by its glance (`Scene.glance`): three things, and enough of them, not too near."""
        furnished = len(np.unique(things[things >= 0])) >= 3 and (things >= 0).mean() > 0.25
        return bool(furnished and np.percentile(depth, 20) > 1.0)

    def _pick(self, pool: str, rng) -> Model | None:
        """A model of a pool, stretched a little: there are more chairs than the catalogue has."""
        models = self.pools.get(pool)
        if not models:
            return None
        model = models[int(rng.integers(len(models)))]
        factors = rng.uniform(0.93, 1.07) * rng.uniform(0.93, 1.07, 3)
        width, depth, height = (float(edge * factor) for edge, factor in zip(model.size, factors, strict=True))
        top = None if model.top is None else float(model.top * factors[2])
        return replace(model, size=(width, depth, height), top=top)

    def _openings(self, room: Room, rng) -> None:
        for pool, low, high in (("door", 0, 1), ("window", 0, 3)):
            for _ in range(int(rng.integers(low, high + 1))):
                model = self._pick(pool, rng)
                if model is None or model.size[2] > room.size[2] - 0.1:
                    continue
                foot = 0.0 if pool == "door" or model.size[2] > 1.8 else float(rng.uniform(0.8, 1.0))
                foot = min(foot, room.size[2] - 0.1 - model.size[2])
                placed = self._against_wall(room, model, rng, foot)
                if placed is None:
                    continue
                if pool == "window":
                    width, _, height = model.size
                    room.things.append(
                        Placed(
                            "window", "view", toward(placed, -model.size[1] / 2 + 0.004, 0.03 * height), placed.yaw,
                            (0.94 * width, 0.002, 0.94 * height),
                            paint=Paint((0.75, 0.85, 1.0), (0.35, 0.5, 0.3), "view", height,
                                        int(rng.integers(1 << 30)), float(rng.uniform(0.5, 1.1))),
                            support=len(room.things) - 1,
                        )
                    )  # fmt: skip
                free = placed.box.copy()
                free[:, 2] = (0.05, 1.9) if pool == "door" else (foot + 0.1, foot + model.size[2])
                reach = np.array([math.sin(placed.yaw), -math.cos(placed.yaw)]) * (
                    KEEP_FREE if pool == "door" else 0.3
                )
                free[0, :2], free[1, :2] = free[0, :2] + np.minimum(reach, 0), free[1, :2] + np.maximum(reach, 0)
                room.reserved.append(free)

    def _place(self, room: Room, what: str, rng) -> None:
        if what == "picture":
            self._panel(room, rng, "picture")
        elif what == "rug":
            self._panel(room, rng, "rug")
        elif what in ("chair", "person"):
            self._free_standing(room, self._pick(what, rng), rng)
        elif what == "dining table":
            self._table_with_chairs(room, rng, against_wall=False)
        elif what == "desk":
            self._table_with_chairs(room, rng, against_wall=True)
        elif what == "low table":
            sofas = [thing for thing in room.things if thing.label == "sofa"]
            model = self._pick("low table", rng)
            if sofas and model is not None:
                away = sofas[0].size[1] / 2 + model.size[1] / 2 + rng.uniform(0.25, 0.5)
                x, y, _ = toward(sofas[0], away, 0)
                self._add(room, model, (x, y, 0.0), sofas[0].yaw)
        elif what in ("floor plant", "floor lamp", "floor thing"):
            self._in_a_corner(room, self._pick(what, rng), rng)
        else:
            model = self._pick({"wall table": "table"}.get(what, what), rng)
            if model is not None:
                self._against_wall(room, model, rng, model.elevation)

    def _add(self, room: Room, model: Model, position, yaw: float, ignore=(), margin: float = 0.02) -> Placed | None:
        placed = Placed(model.label, model.name, tuple(map(float, position)), float(yaw), model.size, model)
        if not room.is_free(placed.box, margin, ignore):
            return None
        room.things.append(placed)
        return placed

    def _against_wall(self, room: Room, model: Model, rng, foot: float = 0.0) -> Placed | None:
        foot = min(foot, room.size[2] - model.size[2] - 0.02)
        if foot < 0:
            return None
        for _ in range(16):
            position, yaw = wall_spot(room, model.size, rng, 0.0 if foot > 0 or model.label == "door" else 0.02)
            if position is not None:
                placed = self._add(room, model, (*position, foot), yaw)
                if placed is not None:
                    return placed
        return None

    def _in_a_corner(self, room: Room, model: Model | None, rng) -> None:
        if model is None:
            return
        reach = max(model.size[:2]) / 2 + 0.05
        for _ in range(12):
            corner = rng.integers(0, 2, 2)
            spot = np.where(corner, room.size[:2] - reach, reach) + (0.5 - corner) * rng.exponential(0.5, 2)
            if self._add(room, model, (*spot, 0.0), rng.uniform(-math.pi, math.pi)) is not None:
                return

    def _free_standing(self, room: Room, model: Model | None, rng) -> None:
        if model is None:
            return
        middle = room.size[:2] / 2
        for _ in range(12):
            spot = rng.uniform(0.5, room.size[:2] - 0.5)
            to_middle = middle - spot
            yaw = math.atan2(to_middle[0], -to_middle[1]) + rng.normal(0, 0.6)
            if self._add(room, model, (*spot, 0.0), yaw, margin=0.1) is not None:
                return

    def _table_with_chairs(self, room: Room, rng, against_wall: bool) -> None:
        table = self._pick("table", rng)
        if table is None:
            return
        if against_wall:
            placed = self._against_wall(room, table, rng)
        else:
            placed = None
            for _ in range(12):
                spot = room.size[:2] * rng.uniform(0.35, 0.65, 2)
                placed = self._add(room, table, (*spot, 0.0), rng.choice(WALL_YAWS), margin=0.3)
                if placed is not None:
                    break
        if placed is None:
            return
        chair = self._pick("chair", rng)
        if chair is None or chair.size[2] > 1.4:
            return
        width, depth, _ = table.size
        spots = [(0.0, 1)] if width < 1.2 or against_wall else [(-width / 4, 1), (width / 4, 1)]
        if not against_wall:
            spots += [(along, -1) for along, _ in spots]
        for along, side in spots:
            if rng.random() < 0.2:
                continue
            away = depth / 2 + chair.size[1] / 2 + rng.uniform(0.02, 0.2)
            x, y, _ = toward(placed, away * side, 0, along)
            yaw = placed.yaw + (math.pi if side > 0 else 0.0) + rng.normal(0, 0.12)
            self._add(room, chair, (x, y, 0.0), yaw, margin=-0.02)

    def _panel(self, room: Room, rng, label: str) -> None:
        paint = _random_paint(
            rng, ("abstract", "stripes", "checks", "noise") if label == "rug" else ("abstract", "scene")
        )
        if label == "rug":
            size = (rng.uniform(0.8, 2.4), rng.uniform(0.6, 1.8), 0.012)
            spot = room.size[:2] * rng.uniform(0.3, 0.7, 2)
            placed = Placed("rug", "rug", (*spot, 0.0), rng.choice(WALL_YAWS), size, paint=paint)
            others = [thing.box for thing in room.things if thing.label == "rug"]
            inside = (placed.box[0, :2] > 0).all() and (placed.box[1, :2] < room.size[:2]).all()
            if inside and not any((placed.box[0] < o[1]).all() and (o[0] < placed.box[1]).all() for o in others):
                room.things.append(placed)
            return
        size = (rng.uniform(0.3, 1.2), 0.03, rng.uniform(0.3, 0.9))
        for _ in range(10):
            position, yaw = wall_spot(room, size, rng, 0.0)
            foot = min(rng.uniform(1.1, 1.6), room.size[2] - size[2] - 0.1)
            if position is not None:
                placed = Placed("picture", "picture", (*position, float(foot)), yaw, size, paint=paint)
                if room.is_free(placed.box, 0.05):
                    room.things.append(placed)
                    return

    def _ceiling_lamps(self, room: Room, rng) -> None:
        model = self._pick("ceiling lamp", rng)
        if model is not None and model.size[2] < room.size[2] - 1.7 and rng.random() < 0.7:
            spot = room.size[:2] * rng.uniform(0.4, 0.6, 2)
            self._add(room, model, (*spot, room.size[2] - model.size[2] - 0.005), 0.0)

    def _on_top(self, room: Room, index: int, rng) -> None:
        """Small things on a table or a cabinet, at the height that the catalogue gives for its surface."""
        support = room.things[index]
        if support.model is None or support.model.top is None or support.label not in ("table", "cabinet", "shelf"):
            return
        if support.position[2] + support.model.top > 1.3:
            return
        for _ in range(int(rng.integers(1, 4))):
            model = self._pick(
                str(
                    rng.choice(
                        ["table lamp", "small plant", "screen", "small appliance", "small thing"],
                        p=[0.28, 0.2, 0.25, 0.12, 0.15],
                    )
                ),
                rng,
            )
            if model is None:
                continue
            reach = [(own - other) / 2 * 0.8 for own, other in zip(support.size[:2], model.size[:2], strict=True)]
            if min(reach) <= 0:
                continue
            along, away = (float(rng.uniform(-edge, edge)) for edge in reach)
            position = toward(support, away, support.model.top + 0.001, along)
            yaw = support.yaw + (rng.normal(0, 0.3) if model.label == "screen" else rng.uniform(-math.pi, math.pi))
            placed = self._add(room, model, position, yaw, ignore=(index,), margin=0.01)
            if placed is not None:
                placed.support = index


def pools_of(model: Model) -> list[str]:
    """Where in a room a model can go."""
    width, depth, height = model.size
    label, name = model.label, model.name.lower()
    if label == "lamp":
        if "wall" in name:
            return []
        if model.elevation > 1.2 or "chandelier" in name or "pendant" in name:
            return ["ceiling lamp"]
        return ["floor lamp"] if height > 0.9 else ["table lamp"]
    if label == "plant":
        return ["floor plant"] if height > 0.6 else ["small plant"]
    if label == "table":
        return ["low table"] if height < LOW_TABLE else ["table"]
    if label == "screen":
        return ["wall screen"] if model.elevation > 0 else ["screen"] if height < 0.7 else []
    if label == "appliance":
        return ["small appliance"] if height < SMALL_APPLIANCE else ["appliance"]
    if label == "other":
        if model.elevation > 0 or max(model.size) > 1.9:
            return []
        if max(width, depth) < 0.45 and 0.04 < height < 0.5:
            return ["small thing"]
        return ["floor thing"] if height > 0.25 and max(width, depth) < 1.3 else []
    if label in ("picture", "rug"):
        return []  # there are too few of them: rooms have painted ones
    return [label]


def toward(placed: Placed, away: float, up: float, along: float = 0.0) -> tuple[float, float, float]:
    """A place in front of a thing: `away` metres to its front, `along` to its side, `up` above its foot."""
    front = np.array([math.sin(placed.yaw), -math.cos(placed.yaw)])
    side = np.array([math.cos(placed.yaw), math.sin(placed.yaw)])
    x, y = np.array(placed.position[:2]) + away * front + along * side
    return float(x), float(y), placed.position[2] + up


def wall_spot(room: Room, size, rng, gap: float):
    """A place with the back to a wall, and the yaw there; `None` where the wall is too short."""
    walls = room.walls()
    start, edge, yaw = walls[int(rng.integers(len(walls)))]
    width, depth = size[:2]
    length = float(edge.sum())
    if length < width + 0.02:
        return None, None
    along = rng.uniform(width / 2 + 0.01, length - width / 2 - 0.01)
    back = depth / 2 + gap
    position = start + edge / length * along + np.round([math.sin(yaw), -math.cos(yaw)]) * back
    return tuple(map(float, position)), yaw


def _random_color(rng, low: float, high: float, saturation: float) -> tuple[float, float, float]:
    value = rng.uniform(low, high)
    tint = rng.normal(0, saturation, 3)
    return tuple(float(channel) for channel in np.clip(value * (1 + tint - tint.mean()), 0.02, 0.95))


def _random_paint(rng, patterns) -> Paint:
    return Paint(
        _random_color(rng, 0.05, 0.7, 0.7), _random_color(rng, 0.05, 0.8, 0.7), str(rng.choice(patterns)),
        float(rng.uniform(0.05, 0.4)), int(rng.integers(1 << 30)),
    )  # fmt: skip


def _make_paints(rng, kind: str) -> dict[str, Paint]:
    wet = kind in ("bathroom", "kitchen")
    pattern = str(
        rng.choice(["tiles", "checks", "planks"] if wet else ["planks", "planks", "noise", "tiles", "plain"])
    )
    wood = np.array([0.42, 0.24, 0.11]) * rng.uniform(0.4, 1.8)
    base = tuple(np.clip(wood, 0.02, 0.8)) if pattern == "planks" else _random_color(rng, 0.1, 0.6, 0.12)
    accent = tuple(np.clip(np.array(base) * rng.uniform(0.5, 0.9), 0.02, 0.9))
    scale = {"planks": rng.uniform(0.08, 0.2), "tiles": rng.uniform(0.2, 0.6), "checks": rng.uniform(0.2, 0.5)}
    paints = {"floor": Paint(base, accent, pattern, float(scale.get(pattern, 0.05)), int(rng.integers(1 << 30)))}
    white = _random_color(rng, 0.75, 0.92, 0.03)
    paints["ceiling"] = Paint(white, white, "plain", 0.1, int(rng.integers(1 << 30)))
    shared = _random_color(rng, 0.35, 0.88, 0.1)
    wall_pattern = str(rng.choice(["tiles", "plain"] if wet else ["plain", "plain", "stripes", "noise"]))
    for wall in range(4):
        color = shared if rng.random() < 0.85 else _random_color(rng, 0.15, 0.8, 0.4)
        accent = tuple(np.clip(np.array(color) * rng.uniform(0.75, 1.1), 0.02, 0.95))
        scale = rng.uniform(0.1, 0.3) if wall_pattern != "noise" else 0.08
        paints[f"wall{wall}"] = Paint(color, accent, wall_pattern, float(scale), int(rng.integers(1 << 30)))
    return paints


def _make_lights(room: Room, rng) -> None:
    """A light below the ceiling, and the windows where it is day; ambient light for what the rest of the sky gives."""
    warm = np.array([1.0, rng.uniform(0.75, 1.0), rng.uniform(0.5, 1.0)])
    lamps = [thing for thing in room.things if thing.label == "lamp" and thing.position[2] > 1.5]
    middle = np.array(lamps[0].position[:2]) if lamps else room.size[:2] * rng.uniform(0.3, 0.7, 2)
    height = room.size[2] - 0.03
    if lamps:  # its shade must not swallow its own light
        height = max(1.6, lamps[0].position[2] - 0.05)
    extent = rng.uniform(0.25, 0.8)
    corner = np.array([*(middle - extent / 2), height])
    edges = np.array([[0, extent, 0], [extent, 0, 0]])  # downwards
    room.lights.append(Light(corner, edges, warm * rng.uniform(3, 8) / extent**2))
    for thing in room.things:
        if thing.paint is not None and thing.paint.pattern == "view":
            side = np.array([math.cos(thing.yaw), math.sin(thing.yaw), 0]) * thing.size[0]
            front = np.array([math.sin(thing.yaw), -math.cos(thing.yaw), 0])
            corner = np.array(thing.position) - side / 2 + front * 0.3
            color = np.array([0.85, 0.93, 1.0]) * thing.paint.emission * rng.uniform(1, 3)
            room.lights.append(Light(corner, np.array([side, [0, 0, thing.size[2]]]), color))
    room.ambient = warm * rng.uniform(0.35, 0.6)


def propose_camera(room: Room, rng) -> Camera | None:
    """A camera at eye height that stands free and looks at one of the things, or `None` if this try failed."""
    shown = [thing for thing in room.things if thing.name != "view" and thing.label not in ("window", "door", "rug")]
    if not shown:
        return None
    target = shown[int(rng.integers(len(shown)))].box.mean(axis=0)
    position = np.array([*rng.uniform(0.3, room.size[:2] - 0.3), rng.uniform(1.2, 1.8)])
    way = target - position
    distance = math.hypot(*way[:2])
    if not 1.0 < distance < 3.5:
        return None
    box = np.stack([position - (0.3, 0.3, 0.6), position + (0.3, 0.3, 0.2)])
    for thing in room.things:
        own = thing.box
        if thing.label != "rug" and (box[0] < own[1]).all() and (own[0] < box[1]).all():
            return None
    yaw = math.atan2(way[1], way[0]) + rng.normal(0, 0.2)
    pitch = math.atan2(way[2], distance) + rng.normal(0.12, 0.15)
    pitch = min(max(pitch, math.radians(-35)), math.radians(8))
    forward = np.array([math.cos(yaw) * math.cos(pitch), math.sin(yaw) * math.cos(pitch), math.sin(pitch)])
    return Camera(position, forward, 0.5 / math.tan(math.radians(rng.uniform(55, 80)) / 2))
