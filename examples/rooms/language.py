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
"""What can be said of a view: expressions that fit one thing in it and no other, and questions with their answers.

Every statement is a predicate over what is visible, checked on all things of the view: with a margin, so that nobody
could see it otherwise. Where that can't be told (a colour between two names, a thing of a few pixels), nothing is
said: a single pixel of a second chair is enough to make "the chair" ambiguous.
"""

from dataclasses import dataclass

import numpy as np
from catalogue import LABELS
from layout import Room
from raycast import View


MIN_PIXELS = 150  # of a thing that is named
ASIDE = 0.08  # of the picture's width, between things that are left and right of each other
BEHIND = 0.35  # metres, between things that are behind each other
NUMBERS = "no one two three four five six seven eight nine ten".split()
# An opening or a picture can't stand behind or beside something in a way that people would say.
FLAT = ("window", "door", "picture", "rug", "lamp")


@dataclass(frozen=True)
class Visible:
    """A thing as it is seen: `thing` is its place in `Room.things`, `x` and `y` its middle as shares of the picture's
    edges, `depth` its median in metres."""

    thing: int
    label: str
    pixels: int
    x: float
    y: float
    depth: float
    color: str | None
    support: int | None

    @property
    def named(self) -> bool:
        return self.pixels >= MIN_PIXELS and self.label != "other"


def one(label: str) -> str:
    return f"{'an' if label[0] in 'aeiou' else 'a'} {label}"


def plural(label: str) -> str:
    return {"shelf": "shelves", "person": "people"}.get(label, label + "s")


def color_name(pixels: np.ndarray) -> str | None:
    """The colour that three in five of the pixels (uint8 `[n, 3]`) have, if there is one."""
    values = pixels.astype(np.float32) / 255
    high, low = values.max(axis=1), values.min(axis=1)
    spread = high - low
    saturation = spread / np.maximum(high, 1e-6)
    red, green, blue = values.T
    safe = np.maximum(spread, 1e-6)
    hue = (
        np.select(
            [high == red, high == green],
            [((green - blue) / safe) % 6, (blue - red) / safe + 2],
            (red - green) / safe + 4,
        )
        * 60
    )
    grey = saturation < 0.16
    strong = (saturation > 0.4) & (high > 0.22)
    tests = {
        "black": high < 0.2, "white": grey & (high > 0.78), "grey": grey & (high > 0.28) & (high < 0.7),
        "red": strong & ((hue < 14) | (hue > 345)), "brown": strong & (hue > 16) & (hue < 45) & (high < 0.62),
        "orange": strong & (hue > 18) & (hue < 38) & (high > 0.75) & (saturation > 0.6),
        "yellow": strong & (hue > 46) & (hue < 66) & (high > 0.6), "green": strong & (hue > 80) & (hue < 165),
        "blue": strong & (hue > 195) & (hue < 255), "purple": strong & (hue > 262) & (hue < 315),
    }  # fmt: skip
    for name, test in tests.items():
        if test.mean() >= 0.6:
            return name
    return None


def find_visible(room: Room, view: View) -> list[Visible]:
    """The things of a view, even where only a glimpse of them is seen."""
    height, width = view.instances.shape
    found = []
    for number in np.unique(view.instances[view.instances > 0]).tolist():
        rows, columns = np.nonzero(view.instances == number)
        own = room.things[number - 1]
        found.append(
            Visible(
                number - 1, own.label, len(rows), float(columns.mean() / width), float(rows.mean() / height),
                float(np.median(view.depth[rows, columns])), color_name(view.image[rows, columns]), own.support,
            )
        )  # fmt: skip
    return found


def expressions(visible: list[Visible]) -> list[tuple[str, int]]:
    """Expressions with the place in `Room.things` of the one thing that each of them fits."""
    named = [own for own in visible if own.named]
    alone = {own.label: own for own in named if sum(other.label == own.label for other in visible) == 1}
    found = []
    for own in named:
        others = [other for other in visible if other.label == own.label and other is not own]
        name = own.label
        if not others:
            found.append((f"the {name}", own.thing))
        if own.color is not None and all(other.color not in (None, own.color) for other in others):
            found.append((f"the {own.color} {name}", own.thing))
        if others:
            if all(own.x < other.x - ASIDE for other in others):
                found.append((f"the {name} on the left", own.thing))
            if all(own.x > other.x + ASIDE for other in others):
                found.append((f"the {name} on the right", own.thing))
            if len(others) == 2:
                left, right = sorted(other.x for other in others)
                if left + ASIDE < own.x < right - ASIDE:
                    found.append((f"the {name} in the middle", own.thing))
            if all(own.depth < other.depth - BEHIND for other in others):
                found.append((f"the nearest {name}", own.thing))
            if all(own.depth > other.depth + BEHIND for other in others):
                found.append((f"the farthest {name}", own.thing))
        for mark in alone.values():
            if mark is own or mark.label in FLAT or own.label in FLAT:
                continue
            for words, fits, may_fit in _RELATIONS:
                if fits(own, mark) and not any(may_fit(other, mark) for other in others):
                    found.append((f"the {name} {words} the {mark.label}", own.thing))
    return found


def _left(own, mark, margin=ASIDE):
    return own.x < mark.x - margin


def _behind(own, mark, margin=BEHIND):
    return own.depth > mark.depth + margin and abs(own.x - mark.x) < 0.2


# Words, the test for the thing that is meant, and the looser one that no other may pass.
_RELATIONS = (
    ("left of", _left, lambda own, mark: _left(own, mark, -ASIDE)),
    ("right of", lambda own, mark: _left(mark, own), lambda own, mark: _left(mark, own, -ASIDE)),
    ("behind", _behind, lambda own, mark: own.depth > mark.depth - BEHIND),
    ("in front of", lambda own, mark: _behind(mark, own), lambda own, mark: own.depth < mark.depth + BEHIND),
    ("on", lambda own, mark: own.support == mark.thing, lambda own, mark: own.support == mark.thing),
)


def questions(room: Room, visible: list[Visible], rng: np.random.Generator) -> list[tuple[str, str]]:
    """Questions about a view with their answers, in random order."""
    asked = []
    counts = {label: sum(own.label == label for own in visible) for label in LABELS}
    clear = {label: all(own.named for own in visible if own.label == label) for label in LABELS}
    things = [label for label in LABELS if label not in ("floor", "wall", "ceiling")]
    for label in things:
        if counts[label] and clear[label] and counts[label] < len(NUMBERS):
            asked.append((f"How many {plural(label)} are there?", NUMBERS[counts[label]]))
    present = [label for label in things if counts[label] and clear[label]]
    absent = [label for label in things if not counts[label]]
    for pool, answer in ((present, "yes"), (absent, "no")):
        if pool:
            asked.append((f"Is there {one(pool[int(rng.integers(len(pool)))])}?", answer))
    for own in visible:
        if own.named and counts[own.label] == 1:
            if own.color is not None:
                asked.append((f"What color is the {own.label}?", own.color))
            if own.label not in FLAT:
                beside = [o for o in visible if o.named and o.label not in FLAT and _left(o, own)]
                if len(beside) == 1:
                    asked.append((f"What is left of the {own.label}?", one(beside[0].label)))
                on_top = [o for o in visible if o.support == own.thing]
                if len(on_top) == 1 and on_top[0].named:
                    asked.append((f"What is on the {own.label}?", one(on_top[0].label)))
    if room.kind:
        asked.append(("What kind of room is this?", room.kind))
    order = rng.permutation(len(asked))
    return [asked[place] for place in order]
