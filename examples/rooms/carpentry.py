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
"""Furniture that is made from a seed: of boxes, cylinders and cushions, to the measures that furniture has.

A catalogue has 6 shelves to learn from; here are as many as seeds. Frame and units as in `catalogue.py`: x to the
right, y to the back, z up, the front looks along -y, metres.
"""

import math
from collections.abc import Callable

import numpy as np
from catalogue import MadeModel
from maker import Maker


def make_shelf(make: Maker, rng) -> MadeModel:
    width, depth, height = rng.uniform(0.4, 2.2), rng.uniform(0.2, 0.42), rng.uniform(0.7, 2.3)
    columns, boards = max(1, round(width / rng.uniform(0.35, 0.9))), max(2, round(height / rng.uniform(0.28, 0.45)))
    wood = make.paint("wood", "wood", "plain")
    thick, foot = rng.uniform(0.012, 0.04), rng.choice([0.0, rng.uniform(0.02, 0.15)])
    is_open = rng.random() < 0.3
    if not is_open:
        make.box((-width / 2, depth / 2 - 0.008, foot), (width / 2, depth / 2, height), make.same_or(wood, "plain"))
    edges = np.linspace(-width / 2, width / 2, columns + 1)
    for k, x in enumerate(edges):
        x = np.clip(x, -width / 2 + thick / 2, width / 2 - thick / 2)
        if is_open and k not in (0, columns):
            continue
        make.box((x - thick / 2, -depth / 2, 0), (x + thick / 2, depth / 2, height), wood)
    levels = np.linspace(foot, height - thick, boards)
    for z in levels:
        make.box((-width / 2, -depth / 2, z), (width / 2, depth / 2, z + thick), wood)
    fullness = rng.choice([0.0, 0.4, 0.8, 1.0])
    kinds = [make.paint("vivid", "plain", "fabric") for _ in range(6)]
    for low, high in zip(levels[:-1], levels[1:], strict=True):
        for left, right in zip(edges[:-1], edges[1:], strict=True):
            if rng.random() > fullness:
                continue
            _fill(make, rng, (left + thick, right - thick), low + thick, high - low - thick, depth, kinds)
    return make.finish("shelf", "shelf", top=height if height < 1.25 else None)


def _fill(make: Maker, rng, span, floor: float, room: float, depth: float, kinds: list[int]) -> None:
    """A compartment: books, boxes, a ball or a vase."""
    x, end = span[0], span[0] + (span[1] - span[0]) * rng.uniform(0.4, 1.0)
    if rng.random() < 0.75:
        tallest = room * rng.uniform(0.6, 0.9)
        while x < end - 0.02 and room > 0.12:
            thick = min(rng.uniform(0.012, 0.05), end - x)
            high = tallest * rng.uniform(0.75, 1)
            make.box((x, -depth / 2 + rng.uniform(0.01, 0.05), floor), (x + thick, depth / 2 - 0.03, floor + high),
                     int(rng.choice(kinds)))  # fmt: skip
            x += thick + 0.001
    else:
        wide = min(span[1] - span[0], depth, room) * rng.uniform(0.4, 0.8)
        middle = (span[0] + span[1]) / 2
        if rng.random() < 0.5:
            make.cushion((middle - wide / 2, -wide / 2, floor), (middle + wide / 2, wide / 2, floor + wide),
                         int(rng.choice(kinds)), rng.uniform(2, 8), 6)  # fmt: skip
        else:
            make.tube((middle, 0, floor), (middle, 0, floor + wide), wide / 3, int(rng.choice(kinds)), wide / 2, 10)


def _front(make: Maker, rng, width: float, low: float, high: float, y: float, material: int, knob: int,
           drawers: bool = True) -> None:  # fmt: skip
    """Doors and drawers on a front at `y`, with their handles."""
    columns = max(1, round(width / rng.uniform(0.35, 0.8)))
    rows = max(
        1, round((high - low) / rng.choice([rng.uniform(0.18, 0.3) if drawers else 1.0, rng.uniform(0.5, 1.4), 9.0]))
    )
    gap, handle = rng.uniform(0.003, 0.012), rng.integers(4)
    xs, zs = np.linspace(-width / 2, width / 2, columns + 1), np.linspace(low, high, rows + 1)
    for i in range(columns):
        for j in range(rows):
            left, right, bottom, top = xs[i] + gap, xs[i + 1] - gap, zs[j] + gap, zs[j + 1] - gap
            make.box((left, y - 0.018, bottom), (right, y, top), material)
            lies = right - left > top - bottom
            x = (left + right) / 2 if lies else (right - 0.05 if i % 2 == 0 else left + 0.05)
            z = (bottom + top) / 2
            reach = min(0.3 * max(right - left, top - bottom), 0.15)
            if handle == 0:
                make.cushion((x - 0.015, y - 0.05, z - 0.015), (x + 0.015, y - 0.015, z + 0.015), knob, 2, 5)
            elif handle == 1 and lies:
                make.box((x - reach, y - 0.045, z - 0.006), (x + reach, y - 0.03, z + 0.006), knob)
            elif handle == 1:
                make.box((x - 0.006, y - 0.045, z - reach), (x + 0.006, y - 0.03, z + reach), knob)


def make_cabinet(make: Maker, rng) -> MadeModel:
    kind = rng.choice(["wardrobe", "sideboard", "chest", "bedside", "hanging"], p=[0.3, 0.25, 0.2, 0.1, 0.15])
    ranges = {
        "wardrobe": ((0.8, 2.4), (0.45, 0.65), (1.7, 2.3)), "sideboard": ((0.9, 2.2), (0.35, 0.5), (0.45, 0.95)),
        "chest": ((0.4, 1.2), (0.35, 0.55), (0.7, 1.3)), "bedside": ((0.3, 0.55), (0.3, 0.45), (0.35, 0.65)),
        "hanging": ((0.4, 1.2), (0.28, 0.4), (0.5, 0.9)),
    }  # fmt: skip
    width, depth, height = (rng.uniform(*bounds) for bounds in ranges[kind])
    foot = 0.0 if kind == "hanging" else rng.choice([0.0, 0.05, rng.uniform(0.08, 0.22)])
    body = make.paint("wood", "plain")
    front = make.same_or(body, "plain", "wood", "vivid")
    make.box((-width / 2, -depth / 2 + 0.018, foot), (width / 2, depth / 2, height), body)
    if foot > 0.06:
        make.legs(width, depth - 0.02, foot, make.paint("metal", "wood"))
    elif foot:
        make.box((-width / 2 + 0.02, -depth / 2 + 0.06, 0), (width / 2 - 0.02, depth / 2, foot), body)
    _front(
        make, rng, width - 0.02, foot + 0.01, height - 0.01, -depth / 2 + 0.018, front, make.paint("metal", "plain")
    )
    name = "wall cabinet" if kind == "hanging" else "cabinet"
    top = height if height < 1.25 and kind != "hanging" else None
    return make.finish("cabinet", name, top, elevation=rng.uniform(1.35, 1.6) if kind == "hanging" else 0.0)


def make_bed(make: Maker, rng) -> MadeModel:
    width, depth = rng.choice([rng.uniform(0.8, 1.1), rng.uniform(1.35, 2.0)]), rng.uniform(1.85, 2.15)
    base, thick = rng.uniform(0.2, 0.4), rng.uniform(0.14, 0.28)
    frame = make.paint("wood", "fabric", "metal")
    if rng.random() < 0.5:
        make.legs(width, depth, base - 0.1, frame)
        make.box((-width / 2, -depth / 2, base - 0.12), (width / 2, depth / 2, base), frame)
    else:
        make.box((-width / 2, -depth / 2, rng.choice([0, 0.05])), (width / 2, depth / 2, base), frame)
    sheet = make.paint("light")
    top = base + thick
    make.cushion((-width / 2 + 0.01, -depth / 2 + 0.01, base - 0.05), (width / 2 - 0.01, depth / 2 - 0.02, top), sheet,
                 14)  # fmt: skip
    if rng.random() < 0.9:
        blanket = make.paint("fabric", "light", "vivid")
        end = depth / 2 - rng.choice([rng.uniform(0.4, 0.6), rng.uniform(0.8, 1.3)])
        make.cushion((-width / 2 - 0.02, -depth / 2 - 0.02, base - rng.uniform(0, 0.1)),
                     (width / 2 + 0.02, end, top + rng.uniform(0.02, 0.07)), blanket, 9)  # fmt: skip
    for place in np.linspace(-0.5, 0.5, 2) * width / 2 if width > 1.2 else (0.0,):
        pillow, wide = make.same_or(sheet, "fabric", "light"), rng.uniform(0.5, 0.7) * min(width, 1.0)
        make.cushion((place - wide / 2, depth / 2 - rng.uniform(0.42, 0.5), top - 0.02),
                     (place + wide / 2, depth / 2 - 0.05, top + rng.uniform(0.08, 0.17)), pillow, 2.6)  # fmt: skip
    if rng.random() < 0.75:
        high, material = top + rng.uniform(0.15, 0.7), make.same_or(frame, "fabric", "wood")
        if rng.random() < 0.7:
            make.box((-width / 2, depth / 2, 0), (width / 2, depth / 2 + 0.06, high), material)
        else:
            for x in np.linspace(-width / 2 + 0.03, width / 2 - 0.03, int(rng.integers(4, 12))):
                make.tube((x, depth / 2 + 0.02, 0.1), (x, depth / 2 + 0.02, high), 0.012, material, count=6)
            make.box((-width / 2, depth / 2, high - 0.05), (width / 2, depth / 2 + 0.04, high), material)
    if rng.random() < 0.3:
        make.box((-width / 2, -depth / 2 - 0.05, 0), (width / 2, -depth / 2, top + rng.uniform(-0.1, 0.2)), frame)
    return make.finish("bed", "bed")


def _seat(make: Maker, rng, width: float, seats: int) -> None:
    """A sofa, or an armchair of one seat."""
    depth, sit, back = rng.uniform(0.75, 1.05), rng.uniform(0.36, 0.48), rng.uniform(0.65, 1.0)
    foot = rng.choice([0.0, rng.uniform(0.04, 0.16)])
    cloth = make.paint("fabric", "fabric", "plain", "vivid", "light")
    pad = make.same_or(cloth, "fabric", "light")
    arm = rng.choice([0.0, rng.uniform(0.07, 0.3)], p=[0.2, 0.8])
    rise, hard = sit + rng.uniform(0.08, 0.28), rng.choice([3.5, 6.0, 12.0])
    thick, pad_height = rng.uniform(0.12, 0.25), rng.uniform(0.1, 0.2)
    make.cushion((-width / 2, -depth / 2, foot), (width / 2, depth / 2, sit - pad_height + 0.02), cloth, 12)
    if foot:
        make.legs(width, depth, foot + 0.03, make.paint("wood", "metal"))
    make.cushion((-width / 2, depth / 2 - thick, foot), (width / 2, depth / 2, back), cloth, hard)
    for x in (-1, 1) if arm else ():
        make.cushion((x * width / 2, -depth / 2, foot), (x * (width / 2 - arm), depth / 2, rise), cloth, hard)
    edges = np.linspace(-width / 2 + arm, width / 2 - arm, seats + 1)
    behind = depth / 2 - thick
    with_backs, front = rng.random() < 0.75, -depth / 2 + rng.uniform(-0.03, 0.03)
    for left, right in zip(edges[:-1], edges[1:], strict=True):
        make.cushion((left, front, sit - pad_height), (right, behind, sit), pad, rng.choice([5.0, 10.0]))
        if with_backs:
            full = behind - rng.uniform(0.12, 0.22)
            make.cushion((left, full, sit - 0.03), (right, behind + 0.03, back + 0.03), pad, rng.choice([3.0, 6.0]))
    for _ in range(int(rng.integers(0, seats + 1))):  # loose ones
        x, wide = rng.uniform(-0.4, 0.4) * (width - 2 * arm), rng.uniform(0.3, 0.5)
        make.cushion((x - wide / 2, behind - 0.35, sit - 0.02), (x + wide / 2, behind - 0.15, sit + wide * 0.9),
                     make.paint("fabric", "vivid"), 2.5, 7)  # fmt: skip


def make_sofa(make: Maker, rng) -> MadeModel:
    seats = int(rng.integers(2, 5))
    width = seats * rng.uniform(0.55, 0.75) + rng.uniform(0.2, 0.4)
    _seat(make, rng, width, seats)
    if rng.random() < 0.2:  # a chaise
        side, long = rng.choice([-1, 1]), rng.uniform(1.2, 1.6)
        cloth = int(rng.integers(min(2, len(make.paints))))
        make.cushion((side * width / 2, -long, 0.03), (side * (width / 2 - 0.7), 0, 0.42), cloth, 10)
    return make.finish("sofa", "sofa")


def make_chair(make: Maker, rng) -> MadeModel:
    if rng.random() < 0.25:
        _seat(make, rng, rng.uniform(0.7, 1.0), 1)
        return make.finish("chair", "armchair")
    is_stool = rng.random() < 0.18
    width, depth = rng.uniform(0.36, 0.55), rng.uniform(0.36, 0.52)
    sit = rng.choice([rng.uniform(0.4, 0.5), rng.uniform(0.6, 0.78)], p=[0.85, 0.15])
    frame = make.paint("wood", "metal", "plain", "vivid")
    seat = make.same_or(frame, "fabric", "vivid", "wood")
    thick = rng.uniform(0.02, 0.08)
    if is_stool and rng.random() < 0.5:
        make.tube((0, 0, sit - thick), (0, 0, sit), width / 2, seat, count=18)
    else:
        make.cushion((-width / 2, -depth / 2, sit - thick), (width / 2, depth / 2, sit), seat, rng.choice([5.0, 20.0]))
    if rng.random() < 0.2:  # a column on a star or a plate
        make.tube((0, 0, 0.03), (0, 0, sit - thick), 0.025, frame, count=8)
        if rng.random() < 0.5:
            make.tube((0, 0, 0), (0, 0, 0.03), width * 0.45, frame, count=18)
        else:
            for turn in np.arange(5) * 2 * math.pi / 5:
                end = np.array([math.cos(turn), math.sin(turn), 0]) * width * 0.55
                make.tube((0, 0, 0.08), end + (0, 0, 0.04), 0.02, frame, 0.012, 6)
                make.cushion(end - (0.025, 0.025, 0), end + (0.025, 0.025, 0.05), frame, 2, 5)
    else:
        make.legs(width, depth, sit - thick / 2, frame, inset=rng.uniform(0.0, 0.05))
    if not is_stool:
        _chair_back(make, rng, width, depth, sit, frame, seat)
        if rng.random() < 0.25:
            for x in (-1, 1):
                make.box(
                    (x * width / 2, -depth / 3, sit + 0.2), (x * (width / 2 - 0.04), depth / 2, sit + 0.23), frame
                )
                make.box(
                    (x * width / 2, -depth / 3, sit), (x * (width / 2 - 0.03), -depth / 3 + 0.03, sit + 0.2), frame
                )
    return make.finish("chair", "stool" if is_stool else "chair")


def _chair_back(make: Maker, rng, width, depth, sit, frame: int, seat: int) -> None:
    high, lean, y = sit + rng.uniform(0.3, 0.6), rng.uniform(0, 0.1), depth / 2 - 0.02
    kind = rng.integers(4)
    if kind == 0:  # a pad
        make.cushion((-width / 2, y - 0.02, sit + rng.uniform(-0.02, 0.15)), (width / 2, y + 0.04, high), seat,
                     rng.choice([4.0, 10.0]))  # fmt: skip
        for x in (-1, 1):
            make.tube(
                (x * width * 0.4, y, sit - 0.02), (x * width * 0.4, y + 0.01, high - 0.05), 0.012, frame, count=6
            )
        return
    for x in (-1, 1):
        make.tube((x * (width / 2 - 0.015), y, sit - 0.03), (x * (width / 2 - 0.015), y + lean, high), 0.014, frame,
                  count=7)  # fmt: skip
    make.box((-width / 2, y + lean - 0.012, high - rng.uniform(0.04, 0.1)), (width / 2, y + lean + 0.012, high), frame)
    count = int(rng.integers(2, 6))
    if kind == 1:
        for z in np.linspace(sit + 0.1, high - 0.14, count):
            share = (z - sit) / (high - sit)
            make.box((-width / 2, y + lean * share - 0.01, z), (width / 2, y + lean * share + 0.01, z + 0.04), frame)
    else:
        for x in np.linspace(-width / 2 + 0.06, width / 2 - 0.06, count if kind == 2 else 1):
            wide = 0.008 if kind == 2 else width * 0.22
            make.box((x - wide, y + lean / 2 - 0.008, sit), (x + wide, y + lean / 2 + 0.008, high - 0.03), frame)


def make_table(make: Maker, rng) -> MadeModel:
    kind = rng.choice(["dining", "desk", "low", "side"], p=[0.4, 0.25, 0.2, 0.15])
    ranges = {
        "dining": ((0.8, 2.2), (0.75, 1.05), (0.7, 0.78)), "desk": ((0.9, 1.8), (0.5, 0.8), (0.7, 0.78)),
        "low": ((0.6, 1.3), (0.4, 0.8), (0.3, 0.5)), "side": ((0.35, 0.6), (0.35, 0.6), (0.45, 0.75)),
    }  # fmt: skip
    width, depth, height = (rng.uniform(*bounds) for bounds in ranges[kind])
    top = make.paint("wood", "wood", "plain", "stone", "light")
    thick, is_round = rng.uniform(0.012, 0.06), kind != "desk" and rng.random() < 0.3
    frame = make.same_or(top, "wood", "metal", "plain")
    if is_round:
        depth = width = min(width, 1.4)
        make.tube((0, 0, height - thick), (0, 0, height), width / 2, top, count=26)
    else:
        make.box((-width / 2, -depth / 2, height - thick), (width / 2, depth / 2, height), top)
    stand = rng.random()
    if is_round and stand < 0.6 or stand < 0.1:
        make.tube((0, 0, 0.02), (0, 0, height - thick), rng.uniform(0.03, 0.08), frame)
        make.tube((0, 0, 0), (0, 0, 0.03), 0.3 * width, frame)
    elif stand < 0.3 and not is_round:
        for x in (-1, 1):
            side, end = x * (width / 2 - 0.04), depth * 0.45
            make.box((side, -end, 0), (side - x * 0.03, end, height - thick), frame)  # fmt: skip
    else:
        inset = width * 0.16 if is_round else rng.uniform(0, 0.08)
        make.legs(width, depth, height - thick, frame, inset)
        if rng.random() < 0.5 and not is_round:
            make.box((-width / 2 + 0.05, -depth / 2 + 0.05, height - thick - rng.uniform(0.04, 0.1)),
                     (width / 2 - 0.05, depth / 2 - 0.05, height - thick), frame)  # fmt: skip
    if kind == "desk" and rng.random() < 0.5:
        side, wide = rng.choice([-1, 1]), 0.4
        make.box((side * (width / 2 - 0.03), -depth / 2 + 0.06, 0.06),
                 (side * (width / 2 - 0.03 - wide), depth / 2 - 0.03, height - thick), frame)  # fmt: skip
    if kind == "low" and rng.random() < 0.4 and not is_round:
        make.box((-width / 2 + 0.05, -depth / 2 + 0.05, 0.12), (width / 2 - 0.05, depth / 2 - 0.05, 0.14), top)
    return make.finish("table", f"{kind} table", top=height)


def make_lamp(make: Maker, rng) -> MadeModel:
    kind = rng.choice(["floor", "table", "pendant"], p=[0.35, 0.35, 0.3])
    shade, stand = make.paint("light", "light", "fabric", "vivid"), make.paint("metal", "wood", "plain")
    wide, high = rng.uniform(0.18, 0.5), rng.uniform(0.12, 0.35)
    if kind == "pendant":
        drop = rng.uniform(0.05, 0.8)
        make.tube((0, 0, high), (0, 0, high + drop), 0.006, stand, count=5)
        make.tube((0, 0, high + drop - 0.02), (0, 0, high + drop), 0.05, stand, count=10)
        base = 0.0
    else:
        base = rng.uniform(1.1, 1.6) if kind == "floor" else rng.uniform(0.15, 0.45)
        foot = wide * rng.uniform(0.25, 0.45)
        make.tube((0, 0, 0), (0, 0, 0.025), foot, stand)
        if kind == "table" and rng.random() < 0.5:
            make.cushion((-foot * 0.8, -foot * 0.8, 0.02), (foot * 0.8, foot * 0.8, base), stand, 2, 8)
        else:
            make.tube((0, 0, 0), (0, 0, base), rng.uniform(0.008, 0.02), stand, count=8)
    form = rng.integers(3)
    if form == 0:
        make.cushion(
            (-wide / 2, -wide / 2, base), (wide / 2, wide / 2, base + high), shade, rng.choice([2.0, 4.0]), 10
        )
    else:
        make.tube((0, 0, base), (0, 0, base + high), wide / 2, shade, wide / 2 * rng.uniform(0.3, 1.0), 18)
    return make.finish("lamp", f"{kind} lamp", elevation=1.9 if kind == "pendant" else 0.0)


def make_radiator(make: Maker, rng) -> MadeModel:
    width, depth, height = rng.uniform(0.4, 1.8), rng.uniform(0.06, 0.16), rng.uniform(0.3, 0.9)
    if rng.random() < 0.15:
        width, height = rng.uniform(0.4, 0.6), rng.uniform(1.1, 1.8)
    skin, foot = make.paint("light", "light", "metal", "plain"), rng.uniform(0.06, 0.15)
    count = max(4, round(width / rng.uniform(0.04, 0.09)))
    form = rng.integers(3)
    if form == 0:  # a flat sheet with grooves
        make.box((-width / 2, -depth / 3, foot), (width / 2, depth / 3, foot + height), skin)
        for x in np.linspace(-width / 2 + 0.02, width / 2 - 0.02, count):
            make.box((x - 0.012, -depth / 2, foot + 0.03), (x + 0.012, -depth / 3, foot + height - 0.03), skin)
    else:  # columns, or rungs
        for place in np.linspace(-0.5, 0.5, count):
            if form == 1:
                x, half = place * (width - 0.04), 0.35 * width / count
                make.cushion((x - half, -depth / 2, foot), (x + half, depth / 2, foot + height), skin, 5, 6)
            else:
                z = foot + (place + 0.5) * (height - 0.03)
                make.box((-width / 2, -depth / 4, z), (width / 2, depth / 4, z + 0.35 * height / count), skin)
        for z in (foot + 0.06, foot + height - 0.06) if form == 1 else ():
            make.box((-width / 2, -0.015, z - 0.02), (width / 2, 0.015, z + 0.02), skin)
        for x in (-1, 1) if form == 2 else ():
            make.tube(
                (x * (width / 2 - 0.02), 0, foot), (x * (width / 2 - 0.02), 0, foot + height), 0.018, skin, count=8
            )
    for x in (-1, 1):
        make.box((x * (width / 2 - 0.06), -0.015, 0), (x * (width / 2 - 0.09), 0.015, foot + 0.02), skin)
    return make.finish("radiator", "radiator")


def make_screen(make: Maker, rng) -> MadeModel:
    hangs = rng.random() < 0.45
    width = rng.uniform(0.7, 1.5) if hangs else rng.uniform(0.35, 0.9)
    height, thick = width * rng.uniform(0.52, 0.68), rng.uniform(0.015, 0.06)
    shell, picture = make.paint("dark", "dark", "metal", "light"), make.paint("dark", "dark", "picture")
    foot = 0.0 if hangs else rng.uniform(0.03, 0.15)
    rim = rng.uniform(0.006, 0.03)
    make.box((-width / 2, -thick / 2, foot), (width / 2, thick / 2, foot + height), shell)
    make.box((-width / 2 + rim, -thick / 2 - 0.002, foot + rim), (width / 2 - rim, -thick / 2, foot + height - rim),
             picture)  # fmt: skip
    if not hangs and rng.random() < 0.3:  # a laptop
        make.box((-width / 2, -thick / 2 - height, 0), (width / 2, thick / 2, max(foot, 0.015)), shell)
    elif not hangs:
        make.box((-0.03, -0.01, 0), (0.03, 0.03, foot + height / 2), shell)
        make.box((-width * 0.25, -0.1, 0), (width * 0.25, 0.1, 0.012), shell)
    return make.finish("screen", "screen", elevation=rng.uniform(0.9, 1.4) if hangs else 0.0)


def make_appliance(make: Maker, rng) -> MadeModel:
    kind = rng.choice(["fridge", "washer", "oven", "microwave"], p=[0.35, 0.25, 0.25, 0.15])
    ranges = {
        "fridge": ((0.5, 0.95), (0.55, 0.7), (0.85, 2.0)), "washer": ((0.5, 0.65), (0.5, 0.65), (0.82, 0.9)),
        "oven": ((0.5, 0.9), (0.55, 0.65), (0.82, 0.95)), "microwave": ((0.4, 0.55), (0.3, 0.42), (0.22, 0.34)),
    }  # fmt: skip
    width, depth, height = (rng.uniform(*bounds) for bounds in ranges[kind])
    skin = make.paint("light", "light", "metal", "dark", "vivid")
    dark, bright, front = make.paint("dark"), make.paint("metal"), -depth / 2
    make.box((-width / 2, front, 0), (width / 2, depth / 2, height), skin)
    if kind == "fridge":
        _front(make, rng, width, 0.05, height, front, skin, bright, drawers=False)
    elif kind == "washer":
        radius = width * rng.uniform(0.24, 0.34)
        make.tube((0, front, height * 0.48), (0, front - 0.03, height * 0.48), radius, bright, radius * 0.9, 24)
        make.tube((0, front - 0.025, height * 0.48), (0, front - 0.045, height * 0.48), radius * 0.75, dark, count=24)
        make.box((-width * 0.1, front - 0.005, height * 0.87), (width * 0.45, front, height * 0.95), dark)
    else:
        window = (-width * 0.45, width * (0.2 if kind == "microwave" else 0.45))
        make.box((window[0], front - 0.01, height * 0.15), (window[1], front, height * 0.72), dark)
        make.box((window[0], front - 0.04, height * 0.76), (window[1], front - 0.025, height * 0.79), bright)
        if kind == "oven":
            for x in np.linspace(-0.35, 0.35, 4) * width:
                make.tube((x, front, height * 0.88), (x, front - 0.025, height * 0.88), 0.018, dark, count=10)
                y = rng.uniform(0.15, 0.25) * depth * (1 if x > 0 else -1)
                make.tube((x, y, height), (x, y, height + 0.008), 0.08, dark, count=16)
    return make.finish("appliance", kind)


def make_sink(make: Maker, rng) -> MadeModel:
    width, depth, height = rng.uniform(0.45, 1.1), rng.uniform(0.4, 0.6), rng.uniform(0.78, 0.9)
    bowl, metal = make.paint("light", "light", "metal", "stone"), make.paint("metal")
    deep, rim = rng.uniform(0.1, 0.18), 0.04
    if rng.random() < 0.65:  # on a cabinet
        body = make.paint("wood", "plain", "light")
        make.box((-width / 2, -depth / 2 + 0.02, 0.06), (width / 2, depth / 2, height - deep), body)
        make.box((-width / 2 + 0.03, -depth / 2 + 0.08, 0), (width / 2 - 0.03, depth / 2, 0.06), body)
        _front(make, rng, width, 0.07, height - deep, -depth / 2 + 0.02, make.same_or(body, "plain"), metal)
    else:
        make.tube((0, depth * 0.1, 0), (0, depth * 0.1, height - deep), 0.09, bowl, 0.12)
    inner = (min(width, 0.6) / 2 - rim) * rng.uniform(0.8, 1)
    bounds = {
        "x": (-width / 2, -inner, inner, width / 2),
        "y": (-depth / 2, -depth / 2 + rim, depth / 2 - 0.1, depth / 2),
    }
    x, y = bounds["x"], bounds["y"]
    for low, high in (((x[0], y[0]), (x[1], y[3])), ((x[2], y[0]), (x[3], y[3])), ((x[1], y[0]), (x[2], y[1])),
                      ((x[1], y[2]), (x[2], y[3]))):  # fmt: skip
        make.box((*low, height - deep), (*high, height), bowl)
    make.box((x[1], y[1], height - deep), (x[2], y[2], height - deep + 0.015), bowl)
    tap = rng.uniform(0.12, 0.3)
    make.tube((0, depth / 2 - 0.05, height), (0, depth / 2 - 0.05, height + tap), 0.014, metal, count=8)
    make.tube((0, depth / 2 - 0.05, height + tap), (0, depth / 2 - 0.2, height + tap - 0.02), 0.012, metal, count=8)
    return make.finish("sink", "sink")


def make_toilet(make: Maker, rng) -> MadeModel:
    width, depth, sit = rng.uniform(0.34, 0.42), rng.uniform(0.5, 0.62), rng.uniform(0.38, 0.46)
    china = make.paint("light", "light", "light", "vivid")
    lid = make.same_or(china, "dark", "wood", "light")
    hangs = rng.random() < 0.3
    make.cushion((-width / 2, -depth / 2, sit * 0.45), (width / 2, depth / 2 - 0.05, sit), china, 2.6)
    if hangs:
        make.box((-width * 0.4, depth * 0.2, sit * 0.4), (width * 0.4, depth / 2, sit - 0.03), china)
    else:
        make.tube((0, 0, 0), (0, 0, sit * 0.8), width * 0.32, china, width * 0.42)
        make.box((-width * 0.25, 0, 0), (width * 0.25, depth / 2, sit * 0.7), china)
    make.cushion((-width / 2, -depth / 2, sit - 0.02), (width / 2, depth / 2 - 0.12, sit + 0.03), lid, 3.0)
    if rng.random() < 0.3:  # the lid is up
        make.cushion((-width / 2, depth / 2 - 0.15, sit), (width / 2, depth / 2 - 0.1, sit + width), lid, 3.0)
    if not hangs:
        make.cushion((-width / 2 - 0.02, depth / 2 - 0.14, sit - 0.04), (width / 2 + 0.02, depth / 2 + 0.03,
                     sit + rng.uniform(0.3, 0.42)), china, 12)  # fmt: skip
    return make.finish("toilet", "toilet")


def make_plant(make: Maker, rng) -> MadeModel:
    high = rng.choice([rng.uniform(0.15, 0.5), rng.uniform(0.7, 1.9)])
    pot, green = make.paint("plain", "stone", "vivid", "light"), [make.paint("leaf") for _ in range(2)]
    wide = rng.uniform(0.4, 0.7) * max(0.25, min(high, 1.0))
    radius = wide * rng.uniform(0.25, 0.4)
    foot = radius * rng.uniform(1.2, 2.2)
    make.tube((0, 0, 0), (0, 0, foot), radius * rng.uniform(0.6, 1), pot, radius)
    make.tube((0, 0, foot - 0.02), (0, 0, foot + 0.001), radius * 0.9, make.paint("dark"))
    form = rng.integers(3)
    stems = int(rng.integers(12, 40))
    for k in range(stems):
        turn, rise = rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 1.0)
        out = np.array([math.cos(turn), math.sin(turn), 0.0])
        across = np.array([-math.sin(turn), math.cos(turn), 0.0])
        if form == 0:  # blades from the ground
            base, tip = (
                np.array([0, 0, foot]),
                out * wide * rng.uniform(0.3, 0.8) + (0, 0, foot + (high - foot) * rise),
            )
            half = across * rng.uniform(0.008, 0.03) * (1 + high)
        else:  # leaves on stems, or a crown on a trunk
            start = rise if form == 1 else 0.7 + 0.3 * rise
            base = np.array([0, 0, foot + (high - foot) * start * 0.9]) + out * wide * (0.15 if form == 2 else 0.05)
            reach = wide * rng.uniform(0.3, 0.6)
            tip = base + out * reach + (0, 0, reach * rng.uniform(-0.6, 0.7))
            half = across * reach * rng.uniform(0.15, 0.4)
        middle = base + 0.5 * (tip - base) + (0, 0, 0.08 * np.linalg.norm(tip - base))
        points = np.stack([np.stack([base, base]), np.stack([middle - half, middle + half]), np.stack([tip, tip])])
        normal = np.cross(tip - base, half)
        normal = normal / max(np.linalg.norm(normal), 1e-9) * np.sign(normal[2] or 1)
        make.surface(points, np.broadcast_to(normal, points.shape), green[k % 2])
    if form:
        make.tube((0, 0, foot), (0, 0, high * 0.9), 0.008 + 0.012 * (form == 2), make.paint("wood"), count=6)
    return make.finish("plant", "plant")


def make_door(make: Maker, rng) -> MadeModel:
    width, height = rng.uniform(0.7, 1.05), rng.uniform(1.95, 2.15)
    leaf = make.paint("light", "wood", "plain", "vivid")
    frame, metal = make.same_or(leaf, "light", "wood"), make.paint("metal")
    rim, thick = rng.uniform(0.04, 0.09), 0.05
    for x in (-1, 1):
        make.box((x * width / 2, -thick / 2, 0), (x * (width / 2 - rim), thick / 2, height), frame)
    make.box((-width / 2, -thick / 2, height - rim), (width / 2, thick / 2, height), frame)
    inner, top = width / 2 - rim, height - rim
    make.box((-inner, -0.005, 0.005), (inner, thick / 2, top), leaf)
    rows = int(rng.integers(0, 4))
    columns = int(rng.integers(1, 3))
    glass = make.paint("light", "dark") if rng.random() < 0.25 else leaf
    for low, high in zip(np.linspace(0.12, top, rows + 1)[:-1], np.linspace(0.12, top, rows + 1)[1:], strict=True):
        for k in range(columns):
            left = -inner + 2 * inner * k / columns
            make.box((left + 0.07, -0.012, low + 0.03), (left + 2 * inner / columns - 0.07, 0, high - 0.1), glass)
    side = rng.choice([-1, 1])
    make.tube((side * (inner - 0.06), -0.06, 1.02), (side * (inner - 0.18), -0.06, 1.02), 0.01, metal, count=6)
    make.tube((side * (inner - 0.06), 0, 1.02), (side * (inner - 0.06), -0.06, 1.02), 0.012, metal, count=6)
    return make.finish("door", "door")


def make_window(make: Maker, rng) -> MadeModel:
    kind = rng.random()
    width = rng.uniform(0.5, 1.4) if kind < 0.6 else rng.uniform(1.4, 2.8)
    height = rng.uniform(0.6, 1.5) if kind < 0.8 else rng.uniform(1.9, 2.2)
    frame, rim, thick = make.paint("light", "light", "wood", "dark", "plain"), rng.uniform(0.03, 0.08), 0.06
    for x in (-1, 1):
        make.box((x * width / 2, -thick / 2, 0), (x * (width / 2 - rim), thick / 2, height), frame)
    for z in (0, height - rim):
        make.box((-width / 2, -thick / 2, z), (width / 2, thick / 2, z + rim), frame)
    bar = rim * rng.uniform(0.3, 0.9)
    for x in np.linspace(-width / 2, width / 2, max(1, round(width / rng.uniform(0.4, 1.2))) + 1)[1:-1]:
        make.box((x - bar / 2, -thick / 3, rim), (x + bar / 2, thick / 3, height - rim), frame)
    for z in np.linspace(0, height, max(1, round(height / rng.uniform(0.4, 2.0))) + 1)[1:-1]:
        make.box((-width / 2 + rim, -thick / 3, z - bar / 2), (width / 2 - rim, thick / 3, z + bar / 2), frame)
    glass = make.paint("light", opacity=0.1)
    make.box((-width / 2 + rim, 0, rim), (width / 2 - rim, 0.004, height - rim), glass)
    return make.finish("window", "window")


def make_thing(make: Maker, rng, edge: float) -> MadeModel:
    """Something of no class, some `edge` metres large: boxes, cylinders, balls and lumps, alone or stacked."""
    height = 0.0
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        skin = make.paint("vivid", "plain", "fabric", "wood", "metal", "light", "dark", "stone")
        wide, deep, high = edge * rng.uniform(0.35, 1.0, 3)
        form = rng.integers(5)
        low, top = (-wide / 2, -deep / 2, height), (wide / 2, deep / 2, height + high)
        if form == 0:
            make.box(low, top, skin)
        elif form == 1:
            make.tube((0, 0, height), (0, 0, height + high), wide / 2, skin, wide / 2 * rng.uniform(0.3, 1.2), 16)
        elif form == 2:
            make.cushion(low, top, skin, rng.uniform(2, 3))
        elif form == 3:  # a lump
            for _ in range(4):
                shift, share = np.array([*rng.uniform(-0.25, 0.25, 2) * edge, 0]), rng.uniform(0.5, 0.9)
                make.cushion(np.array(low) + shift, np.array(low) + shift + np.array([wide, deep, high]) * share, skin,
                             rng.uniform(2, 4), 7)  # fmt: skip
        else:  # a tray or an open box
            for x in (-1, 1):
                make.box((x * wide / 2, -deep / 2, height), (x * (wide / 2 - 0.01), deep / 2, height + high), skin)
                make.box((-wide / 2, x * deep / 2, height), (wide / 2, x * (deep / 2 - 0.01), height + high), skin)
            make.box(low, (wide / 2, deep / 2, height + 0.01), skin)
        height += high
    return make.finish("other", "thing")


def make_curtain(make: Maker, rng, height: float) -> MadeModel:
    width, waves = rng.uniform(0.25, 0.9), rng.integers(3, 8)
    cloth = make.paint("fabric", "light", "vivid")
    along = np.linspace(0, 1, 8 * waves + 1)
    fold = np.sin(along * 2 * math.pi * waves)
    points = np.stack([(along - 0.5) * width, 0.04 * fold, 0 * along], axis=1)
    rise = 0.08 * math.pi * waves / width * np.cos(along * 2 * math.pi * waves)
    slope = np.stack([-rise, 0 * along - 1, 0 * along],
                     axis=1)  # fmt: skip
    normals = -slope / np.linalg.norm(slope, axis=1, keepdims=True)
    make.surface(np.stack([points, points + (0, 0, height)], axis=1), np.stack([normals, normals], axis=1), cloth)
    return make.finish("other", "curtain")


def make_mirror(make: Maker, rng) -> MadeModel:
    width, height = rng.uniform(0.3, 1.0), rng.uniform(0.4, 1.6)
    frame, glass, rim = make.paint("wood", "metal", "light", "dark"), make.paint("light"), rng.uniform(0.01, 0.06)
    make.gloss[glass] = (0.88, 0.0)
    make.box((-width / 2, 0, 0), (width / 2, 0.03, height), frame)
    make.box((-width / 2 + rim, -0.002, rim), (width / 2 - rim, 0, height - rim), glass)
    return make.finish("other", "mirror")


MAKERS: dict[str, Callable[[Maker, np.random.Generator], MadeModel]] = {
    "shelf": make_shelf, "cabinet": make_cabinet, "bed": make_bed, "sofa": make_sofa, "chair": make_chair,
    "table": make_table, "lamp": make_lamp, "radiator": make_radiator, "screen": make_screen,
    "appliance": make_appliance, "sink": make_sink, "toilet": make_toilet, "plant": make_plant, "door": make_door,
    "window": make_window,
}  # fmt: skip
