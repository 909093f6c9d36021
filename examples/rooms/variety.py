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
"""Rooms of more variety than any catalogue: domain randomisation for photographs.

The classes, metres and instances are as exact as in other rooms. What a camera does to its picture (exposure, noise,
blur, ...) isn't here: a training draws that anew each time (`camera_effects` of `densemllm.training.samples`).
"""

import math
from dataclasses import replace

import numpy as np
from carpentry import MAKERS, make_curtain, make_mirror, make_thing
from catalogue import MadeModel, Model
from layout import (
    RECIPES,
    UNTINTED,
    Block,
    Camera,
    Furnisher,
    Hole,
    Light,
    Paint,
    Placed,
    Room,
    Slope,
    Sun,
    pools_of,
    toward,
    wall_spot,
)
from looks import CUTS, Change, random_color, random_paint
from maker import Maker


# How many of a class are made from a seed at full strength; the others are the catalogue's.
MADE = {
    "shelf": 0.75, "bed": 0.65, "sofa": 0.6, "cabinet": 0.6, "table": 0.45, "chair": 0.4, "lamp": 0.4,
    "radiator": 0.65, "screen": 0.6, "appliance": 0.6, "sink": 0.55, "toilet": 0.6, "plant": 0.35,
    "door": 0.6, "window": 0.6,
    "other": 0.6,
}  # fmt: skip
# Small things are looked at more often, as they have few pixels.
AIMS = {
    "lamp": 3.5, "screen": 2.5, "radiator": 4, "sink": 2, "toilet": 4, "plant": 4, "picture": 1.5, "person": 0.7,
    "bed": 1.5, "sofa": 1.5, "chair": 1.2, "table": 3,
}  # fmt: skip
KIND_SHARES = (0.2, 0.2, 0.18, 0.2, 0.12, 0.1)  # of the kinds of `RECIPES`
ANYWHERE = (
    "chair", "cabinet", "shelf", "floor lamp", "floor plant", "radiator", "wall screen", "wall table", "sofa",
    "picture", "rug", "person", "appliance", "sink", "toilet", "bed", "low table", "floor thing",
    "dining table", "desk", "desk", "floor plant",
)  # fmt: skip
FLOORS = {
    "planks": (0.06, 0.25), "herringbone": (0.05, 0.14), "parquet": (0.25, 0.5), "tiles": (0.1, 0.8),
    "checks": (0.1, 0.5), "hexagons": (0.1, 0.3), "marble": (0.5, 2.0), "terrazzo": (0.05, 0.2),
    "concrete": (0.5, 2.0), "carpet": (0.1, 0.5), "noise": (0.03, 0.2), "plain": (0.2, 0.5), "weave": (0.02,
    0.1), "damask": (0.3, 0.8),
    "plaid": (0.2, 0.6), "wood": (0.1, 0.4),
}  # fmt: skip
WALLS = {
    "plain": (0.1, 0.5), "plaster": (0.3, 1.0), "stripes": (0.04, 0.4), "damask": (0.1, 0.5), "dots": (0.05, 0.3),
    "bricks": (0.15, 0.3), "panels": (0.08, 0.4), "wainscot": (0.8, 1.4), "tiles": (0.08, 0.5), "concrete": (0.4, 2.0),
    "wood": (0.1, 0.4), "ramp": (0.5, 1.1), "noise": (0.05, 0.3), "zigzag": (0.1, 0.4), "blotches": (0.2, 1.0),
    "marble": (0.5, 2.0),
}  # fmt: skip
CEILINGS = {
    "plain": (0.1, 0.5), "plaster": (0.3, 1.0), "panels": (0.1, 0.4), "tiles": (0.4, 0.7), "concrete": (0.5, 2.0),
    "wood": (0.1, 0.3),
}  # fmt: skip
CANVASES = ("abstract", "scene", "blotches", "ramp", "plaid", "dots", "marble", "zigzag", "plain")
RUGS = ("abstract", "stripes", "checks", "noise", "carpet", "damask", "plaid", "zigzag", "dots", "weave", "plain")
LENDERS = ("cabinet", "chair", "sofa", "bed", "table", "shelf")  # of textures
MOST_THINGS = 200  # instances are numbered in eight bits
MOST_LIGHTS = 4  # each one is a ray for each pixel


class VariedFurnisher(Furnisher):
    """Makes rooms out of a split's models, and of much else.

    Args:
        models: of the catalogue.
        strength: in (0, 1]: how much of what is drawn is varied, and how far.
    """

    def __init__(self, models: list[Model], strength: float = 1.0):
        if not 0 < strength <= 1:
            raise ValueError(f"`strength` must be in (0, 1], got {strength}")
        super().__init__(models)
        self.strength = strength
        self.models: dict[str, list[Model]] = {}
        for model in models:
            self.models.setdefault(model.label, []).append(model)
        self.lenders = [model for label in LENDERS for model in self.models.get(label, ())]

    def __call__(self, seed: int) -> Room:
        """The room of a seed; another one than a [`Furnisher`] makes of it."""
        rng = np.random.default_rng([20261127, seed])
        kind = str(rng.choice(list(RECIPES), p=KIND_SHARES))
        size = self._size(rng)
        room = Room(kind, size, self._paints(rng, size))
        if self._is(rng, 0.5):
            room.gloss["floor"] = (float(rng.choice([0.02, 0.04, 0.08])), float(rng.uniform(0, 0.06)))
        self._shape(room, rng)
        for _ in range(1 + int(size[0] * size[1] > 30)):
            self._openings(room, rng)
        if self._is(rng, 0.25):
            self._doorway(room, rng)
        self._set_into_walls(room, rng)
        self._edges(room, rng)
        self._furnish(room, kind, rng)
        self._change(room, rng)
        self._light(room, rng)
        return room

    def _is(self, rng, probability: float) -> bool:
        return rng.random() < probability * self.strength

    # ---- the building ----

    def _size(self, rng) -> np.ndarray:
        if not self._is(rng, 1.0):
            return np.array([rng.uniform(3.0, 5.5), rng.uniform(3.0, 5.0), rng.uniform(2.4, 2.9)])
        edges = np.clip(np.exp(rng.normal(math.log(4.3), 0.42, 2)), 2.0, 12.0)
        low, high = ((2.2, 2.8), (2.8, 3.5), (3.5, 4.5))[int(rng.choice(3, p=[0.65, 0.25, 0.1]))]
        return np.array([*edges, rng.uniform(low, high)])

    def _paints(self, rng, size: np.ndarray) -> dict[str, Paint]:
        paints = {"floor": _paint_of(rng, FLOORS, (0.03, 0.75), rng.choice([0.1, 0.4]))}
        if paints["floor"].pattern in ("planks", "herringbone", "parquet", "wood"):
            paints["floor"] = replace(random_paint(rng, "wood"), pattern=paints["floor"].pattern,
                                      scale=paints["floor"].scale)  # fmt: skip
        white = self._is(rng, 0.3)
        top = {"plain": CEILINGS["plain"]} if rng.random() < 0.65 else CEILINGS
        paints["ceiling"] = _paint_of(rng, top, (0.1, 0.8) if white else (0.6, 0.92), 0.25 if white else 0.04)
        plain = {"plain": WALLS["plain"], "plaster": WALLS["plaster"]}
        bright = (0.06, 0.9) if self._is(rng, 0.5) else (0.4, 0.9)
        shared = _paint_of(rng, plain if rng.random() < 0.5 else WALLS, bright, rng.choice([0.06, 0.15, 0.4]))
        if shared.pattern == "ramp":
            shared = replace(shared, scale=float(size[2]) / 4)
        other = _paint_of(rng, WALLS, (0.06, 0.9), 0.4)
        for wall in range(4):
            paints[f"wall{wall}"] = other if rng.random() < 0.12 else shared
        return paints

    def _shape(self, room: Room, rng) -> None:
        """What makes a room other than a box."""
        width, depth, height = room.size
        wall, white = room.paints["wall0"], room.paints["ceiling"]
        if self._is(rng, 0.3) and min(width, depth) > 2.8:  # L-shaped
            cut = rng.uniform(0.25, 0.55, 2) * room.size[:2]
            low = np.where(rng.integers(0, 2, 2), room.size[:2] - cut, 0.0)
            room.blocks.append(Block(np.array([[*low, 0.0], [*(low + cut), height]]), "wall", wall))
        elif self._is(rng, 0.2) and min(width, depth) > 2.5 and height > 2.3:
            side = int(rng.integers(4))
            reach = rng.uniform(0.3, 0.9) * float(room.size[1 if side % 2 == 0 else 0])
            room.slope = Slope(side, reach, float(rng.uniform(0.9, min(2.0, height - 0.2))))
        if self._is(rng, 0.2) and min(width, depth) > 3.0:  # a chimney breast or a pillar at a wall
            spot = rng.uniform(0.5, width - 1.5)
            low, deep = np.array([spot, rng.choice([0.0, depth])]), rng.uniform(0.2, 0.5)
            low[1] = 0.0 if low[1] == 0 else depth - deep
            end = low + (rng.uniform(0.4, 1.4), deep)
            room.blocks.append(Block(np.array([[*low, 0.0], [*np.minimum(end, room.size[:2]), height]]), "wall", wall))
        if self._is(rng, 0.1) and min(width, depth) > 4.0:  # a pillar in the room
            thick, low = rng.uniform(0.2, 0.5), room.size[:2] * rng.uniform(0.25, 0.7, 2)
            room.blocks.append(Block(np.array([[*low, 0.0], [*(low + thick), height]]), "wall", wall))
        if self._is(rng, 0.15) and room.slope is None and height > 2.35:  # beams
            thick, deep = rng.uniform(0.08, 0.2), rng.uniform(0.1, 0.25)
            paint = random_paint(rng, "wood") if rng.random() < 0.6 else white
            for y in np.linspace(0, depth, int(rng.integers(2, 6)) + 1)[1:-1]:
                box = np.array([[0.0, y - thick / 2, height - deep], [width, y + thick / 2, height - 0.001]])
                room.blocks.append(Block(box, "ceiling", paint))

    def _doorway(self, room: Room, rng) -> None:
        """An opening without a door, and a bare room behind it."""
        size = (
            rng.uniform(0.8, min(2.0, 0.5 * room.size[:2].min())),
            0.02,
            min(rng.uniform(1.95, 2.3), room.size[2] - 0.1),
        )
        for _ in range(8):
            position, yaw = wall_spot(room, size, rng, 0.0)
            if position is None:
                continue
            placed = Placed("wall", "doorway", (*position, 0.0), yaw, tuple(map(float, size)))
            wall = _wall_of(room, placed)
            if wall is not None and room.is_free(placed.box):
                low, high = _along(room, placed, wall)
                room.holes.append(Hole(wall, (low, 0.0), (high, size[2]), float(rng.uniform(1.0, 4.0)), is_room=True))
                room.reserved.append(_before(placed, 0.8))
                return

    def _set_into_walls(self, room: Room, rng) -> None:
        """Windows and doors are set into their walls, and some doors stand open."""
        for place, thing in enumerate(list(room.things)):
            wall = _wall_of(room, thing) if thing.label in ("window", "door") and thing.name != "view" else None
            if wall is None:
                continue
            back = float(rng.uniform(0.03, 0.25)) if thing.label == "window" else float(rng.uniform(0.02, 0.12))
            front = np.array([math.sin(thing.yaw), -math.cos(thing.yaw)])
            x, y, z = thing.position
            is_door = thing.label == "door"
            low, high = _along(room, thing, wall)
            inset = min(0.01, thing.size[0] / 8)
            bottom = 0.0 if z < 0.02 and is_door else z + inset
            room.holes.append(
                Hole(wall, (low + inset, bottom), (high - inset, z + thing.size[2] - inset),
                     float(rng.uniform(0.8, 3.0)) if is_door else back + 0.002, is_room=is_door)
            )  # fmt: skip
            thing.position = (float(x - front[0] * back), float(y - front[1] * back), z)
            if is_door and self._is(rng, 0.3):
                _open(thing, rng)
            for view in room.things:
                if view.name == "view" and view.support == place:
                    at = toward(thing, -thing.size[1] / 2 + 0.004, 0.0)
                    view.position, view.size = at, (thing.size[0], 0.002, thing.size[2])
                    view.paint = _outside(rng, thing.size[2])

    def _edges(self, room: Room, rng) -> None:
        """Skirting boards and cornices."""
        height = room.size[2]
        bands = []
        if self._is(rng, 0.65):
            bands.append((0.0, rng.uniform(0.04, 0.16), rng.uniform(0.008, 0.018)))
        if self._is(rng, 0.25) and room.slope is None:
            bands.append((height - rng.uniform(0.04, 0.14), height, rng.uniform(0.02, 0.06)))
        for low, high, thick in bands:
            paint = random_paint(rng, str(rng.choice(["light", "light", "wood", "plain"])))
            for wall, (start, edge, yaw) in enumerate(room.walls()[:4]):
                length = float(edge.sum())
                cuts = []
                for hole in room.holes:
                    if hole.wall == wall and hole.low[1] < high and hole.high[1] > low:
                        ends = (
                            (hole.low[0], hole.high[0])
                            if wall in (0, 1)
                            else (length - hole.high[0], length - hole.low[0])
                        )
                        cuts.append(ends)
                at = 0.0
                for begin, end in [*sorted(cuts), (length, length)]:
                    if begin > at:
                        inwards = np.round([math.sin(yaw), -math.cos(yaw)]) * thick
                        a = start + edge / length * at
                        b = start + edge / length * begin + inwards
                        box = np.array([[*np.minimum(a, b), low], [*np.maximum(a, b), high]])
                        room.blocks.append(Block(box, "wall", paint, is_solid=False))
                    at = max(at, end)

    # ---- things ----

    def _pick(self, pool: str, rng) -> Model | None:
        """A model of a pool that was made, or one of the catalogue, stretched."""
        models = self.pools.get(pool)
        if not models:
            return None
        label = models[0].label
        if self._is(rng, MADE.get(label, 0.0)):
            for _ in range(8):
                if label == "other":
                    made = make_thing(
                        Maker(rng), rng, rng.uniform(0.06, 0.3) if pool == "small thing" else rng.uniform(0.3, 0.9)
                    )
                else:
                    made = MAKERS[label](Maker(rng), rng)
                if pool in pools_of(made) or label == "other":
                    return made
        model = models[int(rng.integers(len(models)))]
        spread = 0.04 if label in ("person", "door") else 0.11
        factors = np.exp(np.clip(rng.normal(0, spread, 3) * self.strength + rng.normal(0, 0.06), -0.35, 0.35))
        width, depth, height = (float(edge * factor) for edge, factor in zip(model.size, factors, strict=True))
        top = None if model.top is None else float(model.top * factors[2])
        return replace(model, size=(width, depth, height), top=top)

    def _furnish(self, room: Room, kind: str, rng) -> None:
        density = float(rng.choice([0.0, 0.5, 1.0, 2.0], p=[0.04, 0.16, 0.5, 0.3])) if self._is(rng, 1.0) else 1.0
        if density == 0:
            room.kind = ""  # nobody could tell
        factor = density * min(max(float(room.size[0] * room.size[1]) / 16, 0.8), 3.0)
        if density and self._is(rng, 0.4):  # before there is no place for one
            self._place(room, str(rng.choice(["dining table", "desk"])), rng)
        for what, low, high in RECIPES[kind]:
            wanted = rng.integers(low, high + 1) * (min(factor, 1) if what == "person" else factor)
            for _ in range(int(wanted + rng.random())):
                self._place(room, what, rng)
        if self._is(rng, 0.6):
            for what in rng.choice(ANYWHERE, int(rng.integers(2, 9))):
                self._place(room, str(what), rng)
        if density and self._is(rng, 0.6):
            for what in rng.choice(["radiator", "floor lamp", "picture", "floor plant", "floor plant", "rug"], 3):
                self._place(room, str(what), rng)
        for _ in range(1 + int(room.size[0] * room.size[1] > 25) if density or rng.random() < 0.5 else 0):
            self._ceiling_lamps(room, rng)
        for index in range(len(room.things)):
            if len(room.things) < MOST_THINGS:
                self._on_top(room, index, rng)
        if density:
            for _ in range(int(rng.poisson(1.5 * self.strength))):
                self._free_standing(room, make_thing(Maker(rng), rng, rng.uniform(0.1, 0.6)), rng)
        if self._is(rng, 0.25):
            self._against_wall(room, make_mirror(Maker(rng), rng), rng, float(rng.uniform(0.0, 1.2)))
        if self._is(rng, 0.4):
            self._curtains(room, rng)
        del room.things[MOST_THINGS:]

    def _curtains(self, room: Room, rng) -> None:
        for window in [thing for thing in room.things if thing.label == "window" and thing.name != "view"]:
            wall = _wall_of(room, window, reach=0.6)
            if wall is None:
                continue
            top = min(window.position[2] + window.size[2] + rng.uniform(0.05, 0.3), float(room.size[2]) - 0.02)
            foot = 0.02 if rng.random() < 0.6 else max(window.position[2] - rng.uniform(0, 0.2), 0.02)
            for side in (-1, 1):
                cloth = make_curtain(Maker(rng), rng, top - foot)
                start, _, yaw = room.walls()[wall]
                front = np.array([math.sin(yaw), -math.cos(yaw)])
                flat = np.array(
                    toward(window, 0.0, 0.0, side * (window.size[0] / 2 + cloth.size[0] * rng.uniform(-0.2, 0.4)))[:2]
                )
                flat += front * (float((start - flat) @ front) + cloth.size[1] / 2 + 0.02)
                hung = Placed(cloth.label, cloth.name, (*map(float, flat), foot), yaw, cloth.size, cloth)
                if _is_clear(room, hung.box):
                    room.things.append(hung)

    def _change(self, room: Room, rng) -> None:
        """Colours, shapes and materials of what stands there."""
        for thing in room.things:
            if thing.label in ("picture", "rug"):
                thing.paint = _canvas(rng, CANVASES if thing.label == "picture" else RUGS)
            if thing.model is None or isinstance(thing.model, MadeModel):
                continue
            if thing.label not in UNTINTED and rng.random() < 0.4:
                thing.tint = tuple(float(channel) for channel in np.exp(rng.normal(-0.25, 0.45, 3)).clip(0.15, 1.3))
            if self._is(rng, 0.85):
                thing.change = self._changed(thing, rng)

    def _changed(self, thing: Placed, rng) -> Change:
        """Another look for a thing of the catalogue."""
        partner, donors = None, ()
        level = thing.model.top is None or abs(thing.model.top - thing.size[2]) < 0.02  # things may stand on it
        if thing.label in CUTS and level and self._is(rng, 0.35):
            pools = pools_of(thing.model)
            partner = _one_of(rng, [model for model in self.models[thing.label] if pools_of(model) == pools])
        if self.lenders:
            donors = tuple(_one_of(rng, self.lenders) for _ in range(2))
        return Change(int(rng.integers(1 << 30)), thing.label, self.strength, partner, donors)

    # ---- light ----

    def _light(self, room: Room, rng) -> None:
        """Lamps below the ceiling, lit lamps, daylight and sun through windows, or little of all that."""
        lights: list[Light] = []
        is_night = self._is(rng, 0.25)
        day = float(np.exp(rng.uniform(math.log(0.4), math.log(5.0))))
        for view in room.things:
            if view.name != "view":
                continue
            view.paint = replace(
                view.paint, emission=0.03 if is_night else float(rng.uniform(0.4, 1.0)) * max(day, 0.6) ** 0.7
            )
            side = np.array([math.cos(view.yaw), math.sin(view.yaw), 0]) * view.size[0]
            front = np.array([math.sin(view.yaw), -math.cos(view.yaw), 0])
            corner = np.array(view.position) - side / 2 + front * 0.3
            edges = np.array([side, [0, 0, view.size[2]]])
            if not is_night:
                sky = np.array([0.85, 0.93, 1.0]) ** rng.uniform(-1, 3)
                lights.append(Light(corner, edges, sky * day * rng.uniform(0.8, 2.0)))
                if not room.suns and self._is(rng, 0.4):
                    room.suns.append(_sun(rng, view, side, front))
        count = int(rng.choice(5, p=[0.25, 0.35, 0.2, 0.1, 0.1] if lights else [0, 0.55, 0.25, 0.1, 0.1]))
        lights = [lights[place] for place in rng.permutation(len(lights))[: MOST_LIGHTS - min(count, 2)]]
        hanging = [thing for thing in room.things if thing.label == "lamp" and thing.position[2] > 1.3]
        for place in range(min(count, MOST_LIGHTS - len(lights))):
            lights.append(_ceiling_light(room, rng, hanging[place] if place < len(hanging) else None, count))
        standing = [thing for thing in room.things if thing.label == "lamp" and thing.position[2] <= 1.3]
        if standing and len(lights) < MOST_LIGHTS and self._is(rng, 0.4):
            lamp = standing[int(rng.integers(len(standing)))]
            x, y, z = lamp.position
            corner = np.array([x - 0.1, y - 0.1, z + lamp.size[2] + 0.03])
            lights.append(
                Light(corner, np.array([[0.2, 0, 0], [0, 0.2, 0]]), _warmth(rng, 0.6) * rng.uniform(20, 120))
            )
        room.lights = lights
        room.light_passes = 1  # photographs have noise
        room.ambient = _warmth(rng, 0.3) * float(rng.uniform(0.12, 0.6) if lights else rng.uniform(0.3, 0.6))

    # ---- cameras ----

    def propose_camera(self, room: Room, rng) -> Camera | None:
        """A camera as it is held: mostly at eye height, at times at a child's or above the head, level or tilted, near
        what it looks at or across the room; `None` if this try failed."""
        if not self._is(rng, 1.0):
            return super().propose_camera(room, rng)
        height = float(rng.normal(1.5, 0.15)) if rng.random() < 0.7 else float(rng.uniform(0.35, 2.3))
        position = np.array([*rng.uniform(0.2, room.size[:2] - 0.2), min(height, float(room.size[2]) - 0.25)])
        box = np.stack([position - (0.2, 0.2, 0.35), position + (0.2, 0.2, 0.15)])
        if not _is_clear(room, box):
            return None
        shown = [thing for thing in room.things if thing.name != "view" and thing.label not in ("rug", "other")]
        if shown and rng.random() < 0.85:
            weights = np.array([AIMS.get(thing.label, 1.0) for thing in shown])
            way = shown[int(rng.choice(len(shown), p=weights / weights.sum()))].box.mean(axis=0) - position
            distance = math.hypot(*way[:2])
            if not 0.8 < distance < 8.0:
                return None
            yaw = math.atan2(way[1], way[0]) + rng.normal(0, 0.2)
            pitch = math.atan2(way[2], distance) + rng.normal(0.08, 0.15)
        else:
            way = room.size[:2] * rng.uniform(0.2, 0.8, 2) - position[:2]
            yaw, pitch = math.atan2(way[1], way[0]) + rng.normal(0, 0.4), rng.normal(-0.08, 0.2)
        pitch = min(max(pitch, math.radians(-55)), math.radians(25))
        forward = np.array([math.cos(yaw) * math.cos(pitch), math.sin(yaw) * math.cos(pitch), math.sin(pitch)])
        # 0.6 to 2 times the focal length of a picture of 68 degrees.
        return Camera(
            position, forward, 0.74 * float(np.exp(rng.uniform(math.log(0.6), math.log(2.0)))), _leaning(rng)
        )

    def frame(self, camera: Camera, height: int, width: int, rng) -> tuple[Camera, int, int]:
        """Upright and lying formats of as many pixels; the focal length is what it is in a square."""
        shape = float(rng.choice([1.0, 4 / 3, 3 / 4, 3 / 2, 16 / 9])) if self._is(rng, 0.6) else 1.0
        columns, rows = round(width * math.sqrt(shape) / 8) * 8, round(height / math.sqrt(shape) / 8) * 8
        if shape == 1.0:
            columns, rows = width, height
        focal_length = camera.focal_length * math.sqrt(height * width) / columns
        return replace(camera, focal_length=focal_length), rows, columns

    def accepts(self, room: Room, things: np.ndarray, depth: np.ndarray) -> bool:
        """Whether a view is shown: not right before something, and with things in it where the room has some."""
        if np.percentile(depth, 10) < 0.55 or np.median(depth) < 1.2 or (depth > 100).any() or (depth <= 0).any():
            return False
        wanted = min(3, len(room.things) // 3)
        return bool(len(np.unique(things[things >= 0])) >= wanted and (things >= 0).mean() >= 0.07 * wanted)


# ---- parts of the above ----


def _paint_of(rng, patterns: dict[str, tuple[float, float]], values: tuple[float, float], spread: float) -> Paint:
    pattern = str(rng.choice(list(patterns)))
    base = random_color(rng, *values, float(spread))
    if pattern in ("checks", "stripes", "damask", "plaid", "wainscot", "zigzag", "blotches") and rng.random() < 0.5:
        accent = random_color(rng, *values, float(spread))
    else:
        factor = rng.uniform(0.5, 0.95) if rng.random() < 0.85 else rng.uniform(1.05, 1.8)
        accent = tuple(float(min(channel * factor, 0.93)) for channel in base)
    return Paint(
        base, accent, pattern, float(np.exp(rng.uniform(*np.log(patterns[pattern])))), int(rng.integers(1 << 30))
    )


def _one_of(rng, models: list[Model]) -> Model | None:
    return models[int(rng.integers(len(models)))] if models else None


def _canvas(rng, patterns: tuple[str, ...]) -> Paint:
    pattern = str(rng.choice(patterns))
    return Paint(random_color(rng, 0.03, 0.8, 0.6), random_color(rng, 0.03, 0.8, 0.6), pattern,
                 float(np.exp(rng.uniform(math.log(0.04), math.log(0.5)))), int(rng.integers(1 << 30)))  # fmt: skip


def _outside(rng, height: float) -> Paint:
    """What is behind a window: sky over treetops or roofs, a bright haze, a wall."""
    sky = tuple(float(channel) for channel in np.array([0.75, 0.85, 1.0]) ** rng.uniform(-0.5, 2))
    sky = tuple(min(channel, 1.0) for channel in sky)
    ground = random_color(rng, 0.03, 0.5, 0.4) if rng.random() < 0.6 else (0.3, 0.42, 0.22)
    pattern = str(rng.choice(["view", "view", "ramp", "bricks", "plain"], p=[0.35, 0.25, 0.2, 0.08, 0.12]))
    scale = {"view": height, "ramp": height / 3, "bricks": rng.uniform(0.05, 0.15)}.get(pattern, 0.5)
    base, accent = (ground, sky) if pattern == "ramp" else (sky, ground)
    return Paint(base, accent, pattern, float(scale), int(rng.integers(1 << 30)))


def _warmth(rng, spread: float) -> np.ndarray:
    """The colour of a light, from candle to overcast sky."""
    warm = rng.uniform(-spread * 0.4, spread)
    return np.array([1.0 + 0.2 * warm, 1.0 - 0.25 * warm, 1.0 - 0.8 * warm])


def _ceiling_light(room: Room, rng, lamp: Placed | None, count: int) -> Light:
    extent = rng.uniform(0.1, 0.8) if count < 3 else rng.uniform(0.06, 0.2)
    for _ in range(20):
        middle = np.array(lamp.position[:2]) if lamp is not None else room.size[:2] * rng.uniform(0.15, 0.85, 2)
        height = float(room.size[2]) - 0.03 if lamp is None else max(1.6, lamp.position[2] - 0.05)
        spot = np.array([[*(middle - extent / 2), height - 0.01], [*(middle + extent / 2), height]])
        if room.slope is not None:
            height = min(height, room.slope.height_over(spot, room.size) - 0.03)
        if lamp is not None or not any(
            ((b.box[0, :2] < spot[1, :2]) & (spot[0, :2] < b.box[1, :2])).all() for b in room.blocks
        ):
            break
    corner = np.array([*(middle - extent / 2), height])
    area = float(room.size[0] * room.size[1])
    power = rng.uniform(2, 8) * max(area / 16, 0.7) / max(count, 1) ** 0.6
    return Light(corner, np.array([[0, extent, 0], [extent, 0, 0]]), _warmth(rng, 0.55) * power / extent**2)


def _sun(rng, view: Placed, side: np.ndarray, front: np.ndarray) -> Sun:
    elevation, aside = math.radians(rng.uniform(12, 55)), rng.uniform(-0.9, 0.9)
    out = -front + aside * side / np.linalg.norm(side)
    out /= np.linalg.norm(out)
    direction = np.array([*(out[:2] * math.cos(elevation)), math.sin(elevation)])
    corner = np.array(view.position) - side / 2 + front * 0.012
    color = np.array([1.0, 0.9, 0.75]) ** rng.uniform(0.3, 2) * rng.uniform(2, 10)
    return Sun(corner, np.array([side, [0, 0, view.size[2]]]), direction, color)


def _open(thing: Placed, rng) -> None:
    """Turn a door about its hinge, into the room behind it."""
    side, angle = rng.choice([-1, 1]), math.radians(rng.uniform(20, 100))
    along = np.array([math.cos(thing.yaw), math.sin(thing.yaw)])
    hinge = np.array(thing.position[:2]) + side * thing.size[0] / 2 * along
    yaw = thing.yaw - side * angle
    middle = hinge - side * thing.size[0] / 2 * np.array([math.cos(yaw), math.sin(yaw)])
    thing.position, thing.yaw = (*map(float, middle), thing.position[2]), yaw


def _wall_of(room: Room, thing: Placed, reach: float = 0.03) -> int | None:
    """Which of the four walls is at the back of a thing, at most `reach` metres from it; `None`: none of them."""
    for wall, (start, _, yaw) in enumerate(room.walls()[:4]):
        front = np.array([math.sin(yaw), -math.cos(yaw)])
        gap = float((np.array(thing.position[:2]) - start) @ front) - thing.size[1] / 2
        if abs(thing.yaw - yaw) < 1e-6 and abs(gap) <= reach:
            return wall
    return None


def _along(room: Room, thing: Placed, wall: int) -> tuple[float, float]:
    """Where a thing begins and ends along its wall, as the wall is drawn: from the left as seen from the room."""
    start, edge, yaw = room.walls()[wall]
    if wall in (2, 3):
        start, edge = start + edge, -edge
    middle = float((np.array(thing.position[:2]) - start) @ edge / np.linalg.norm(edge))
    return middle - thing.size[0] / 2, middle + thing.size[0] / 2


def _before(thing: Placed, reach: float) -> np.ndarray:
    """The box in front of an opening."""
    box = thing.box.copy()
    way = np.array([math.sin(thing.yaw), -math.cos(thing.yaw)]) * reach
    box[0, :2], box[1, :2] = box[0, :2] + np.minimum(way, 0), box[1, :2] + np.maximum(way, 0)
    box[0, 2] = 0.05
    return box


def _is_clear(room: Room, box: np.ndarray) -> bool:
    """Whether a box is in the room and touches neither a thing (but rugs) nor the building; it may be where nothing is
    to be put."""
    return replace(room, reserved=[]).is_free(box, 0.0)


def _leaning(rng) -> float:
    """A small angle in radians, as of a hand that holds a camera: mostly under 3 degrees."""
    return math.radians(float(np.clip(rng.standard_t(3) * 1.6, -18, 18)))
