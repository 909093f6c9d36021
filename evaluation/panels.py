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
"""How a case is drawn: what is true and what was predicted of one image, side by side."""

from functools import partial

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from ..drawing_densemllm import colorize_depth, label_colors, normals_to_colors
from ..targets_densemllm import index_values
from .measured import CLASS_LIST, DEPTH, INSTANCES, NORMALS, PANOPTIC, REFERRING, SEGMENTATION


GREY = "#666666"


def make_font(size: int) -> PIL.ImageFont.ImageFont | PIL.ImageFont.FreeTypeFont:
    """The font of tables and sheets, `size` pixels high."""
    return PIL.ImageFont.load_default(size)


def shorten(text: str, font: PIL.ImageFont.ImageFont | PIL.ImageFont.FreeTypeFont, width: int) -> str:
    """`text`, cut off where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _segmentation_panels(case, image, id2label):
    maps = [np.asarray(case[name]).astype(np.int64) for name in ("reference", "prediction")]
    keys = sorted(id2label)
    places_of = {key: place for place, key in enumerate(keys)}
    colors = np.zeros((len(keys) + 1, 3), np.uint8)  # ignored, or none of the classes: black
    colors[:-1] = label_colors(len(keys))
    panels, counts = [], np.zeros(len(colors), np.int64)
    for values in maps:
        present, places = index_values(values)
        values = np.array([places_of.get(key, len(keys)) for key in present.tolist()])[places]
        counts += np.bincount(values.ravel(), minlength=len(colors))
        panels.append(PIL.Image.fromarray(colors[values]).resize(image.size, PIL.Image.Resampling.NEAREST))
    names = [*(id2label[key] for key in keys), "ignored or none"]
    there = [place for place in np.argsort(-counts, kind="stable").tolist() if counts[place]]
    return panels, [(tuple(colors[place].tolist()), names[place]) for place in there]


def _depth_panels(case, image, id2label):
    reference, prediction = np.asarray(case["reference"]), np.asarray(case["prediction"])
    valid = np.isfinite(reference) & (reference > 0)
    low, high = (float(end(reference[valid])) for end in (np.min, np.max))
    colors = [colorize_depth(np.where(valid, reference, high), low, high), colorize_depth(prediction, low, high)]
    colors[0][~valid] = 0
    panels = [PIL.Image.fromarray(values).resize(image.size, PIL.Image.Resampling.NEAREST) for values in colors]
    steps = np.linspace(low, high, 6)
    ends = colorize_depth(steps[None], low, high)[0].tolist()
    return panels, [(tuple(color), f"{step:.1f} m") for color, step in zip(ends, steps, strict=True)]


def _referring_panels(case, image, id2label):
    panels, pixels = [], np.asarray(image, dtype=np.float32)
    for name, color in (("reference", (60, 200, 90)), ("prediction", (235, 90, 60))):
        mask = PIL.Image.fromarray((np.asarray(case[name]) > 0).astype(np.uint8) * 255).resize(image.size)
        inside = (np.asarray(mask) > 0)[..., None]
        mixed = np.where(inside, 0.4 * pixels + 0.6 * np.array(color), 0.45 * pixels)
        panels.append(PIL.Image.fromarray(mixed.round().astype(np.uint8)))
    lines, font = [""], make_font(12)
    for word in f'"{case["expression"]}"'.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= 160 else [*lines, word]
    return panels, [(None, line) for line in lines if line]


def _class_list_panels(case, image, id2label):
    given, true = case["prediction"], case["reference"]
    panels, font = [], make_font(12)
    for names, others, wrong in ((true, given, "#999999"), (given, true, "#c0392b")):
        panel = PIL.Image.new("RGB", image.size, "#f4f4f4")
        draw = PIL.ImageDraw.Draw(panel)
        per_column = max(1, (image.height - 8) // 16)
        shown = list(names)
        if len(shown) > 2 * per_column:
            shown[2 * per_column - 1 :] = [f"and {len(shown) - 2 * per_column + 1} more"]
        for line, name in enumerate(shown):
            column, row = divmod(line, per_column)
            color = "#1e7b3a" if name in others else wrong
            text = shorten(name, font, image.width // 2 - 10)
            draw.text((6 + column * (image.width // 2), 4 + 16 * row), text, fill=color, font=font)
        panels.append(panel)
    return panels, [("#1e7b3a", "named and there"), ("#999999", "there, not named"), ("#c0392b", "named, not there")]


def _normals_panels(case, image, id2label):
    maps = (np.asarray(case[name], dtype=np.float32) for name in ("reference", "prediction"))
    panels = []
    for normals in maps:
        lengths = np.linalg.norm(normals, axis=-1, keepdims=True)
        known = np.isfinite(lengths) & (lengths > 0)
        colors = normals_to_colors(np.where(known, normals / np.where(known, lengths, 1), 0)) * known  # else black
        panels.append(PIL.Image.fromarray(colors.astype(np.uint8)).resize(image.size, PIL.Image.Resampling.NEAREST))
    axes = {"to the right": (1, 0, 0), "up": (0, 1, 0), "to the camera": (0, 0, 1)}
    legend = [(tuple(normals_to_colors(np.array(axis, np.float32)).tolist()), name) for name, axis in axes.items()]
    return panels, [*legend, ((0, 0, 0), "not known")]


def _segment_panels(case, image, id2label, things_only=False):
    """Classes in their colours, the objects of one in shades of it, with dark outlines."""
    keys = sorted(id2label)
    color_of = dict(zip(keys, label_colors(len(keys)).tolist(), strict=True))
    panels, areas = [], dict.fromkeys(keys, 0)
    for name in ("reference", "prediction"):
        values, rows = np.asarray(case[name][0]).astype(np.int32), case[name][1]
        small = np.asarray(PIL.Image.fromarray(values).resize(image.size, PIL.Image.Resampling.NEAREST))
        panel, counts = np.zeros((*small.shape, 3), np.uint8), dict.fromkeys(keys, 0)
        for row in rows:
            inside, key = small == row["id"], row["label_id"]
            if row["isthing"] or not things_only:
                panel[inside] = _shade(color_of[key], counts[key] if row["isthing"] else 0)
                counts[key] += 1
                areas[key] += int(inside.sum())
        edges = np.zeros(small.shape, bool)
        edges[:, 1:] |= small[:, 1:] != small[:, :-1]
        edges[1:] |= small[1:] != small[:-1]
        panel[edges] = 0
        panels.append(PIL.Image.fromarray(panel))
    there = sorted((key for key in keys if areas[key]), key=lambda key: -areas[key])
    return panels, [*((tuple(color_of[key]), id2label[key]) for key in there), ((0, 0, 0), "no segment")]


def _shade(color: list[int], number: int) -> list[int]:
    """The colour of a class for its first object, then lighter and darker ones in turn."""
    target, share = (255, 0)[number % 2], (0.0, 0.45, 0.35, 0.65, 0.55)[number % 5]
    return [round(channel + (target - channel) * share) for channel in color]


# Of each task: case, the image as it is drawn and class id to name to the images of reference and prediction, and the
# legend: colour (or `None`) and text of each line.
PANELS = {
    SEGMENTATION.name: _segmentation_panels,
    DEPTH.name: _depth_panels,
    REFERRING.name: _referring_panels,
    CLASS_LIST.name: _class_list_panels,
    NORMALS.name: _normals_panels,
    PANOPTIC.name: _segment_panels,
    INSTANCES.name: partial(_segment_panels, things_only=True),
}


__all__ = ["GREY", "PANELS", "make_font", "shorten"]
