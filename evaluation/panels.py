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
from .measured import (
    ANSWERED,
    BOXES,
    CLASS_LIST,
    COUNTS,
    DEPTH,
    INSTANCES,
    LANGUAGE,
    NAMED,
    NORMALS,
    PANOPTIC,
    POSES,
    REFERRED_BOX,
    REFERRING,
    SEGMENTATION,
)
from .text_metrics import HEAD_SHARE


GREY, RIGHT, WRONG = "#666666", "#1e7b3a", "#c0392b"
# Pairs of MPII's joints that are drawn as joined.
LIMBS = (
    (0, 1), (1, 2), (2, 6), (3, 6), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9), (10, 11), (11, 12), (12, 7), (7, 13),
    (13, 14), (14, 15),
)  # fmt: skip


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
    return panels, _text_lines(f'"{case["expression"]}"')


def _text_lines(text: str) -> list[tuple[None, str]]:
    """A text as lines of a legend."""
    lines, font = [""], make_font(12)
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= 160 else [*lines, word]
    return [(None, line) for line in lines if line]


def _class_list_panels(case, image, id2label):
    given, true = case["prediction"], case["reference"]
    panels, font = [], make_font(12)
    for names, others, wrong in ((true, given, "#999999"), (given, true, WRONG)):
        panel = PIL.Image.new("RGB", image.size, "#f4f4f4")
        draw = PIL.ImageDraw.Draw(panel)
        per_column = max(1, (image.height - 8) // 16)
        shown = list(names)
        if len(shown) > 2 * per_column:
            shown[2 * per_column - 1 :] = [f"and {len(shown) - 2 * per_column + 1} more"]
        for line, name in enumerate(shown):
            column, row = divmod(line, per_column)
            color = RIGHT if name in others else wrong
            text = shorten(name, font, image.width // 2 - 10)
            draw.text((6 + column * (image.width // 2), 4 + 16 * row), text, fill=color, font=font)
        panels.append(panel)
    return panels, [(RIGHT, "named and there"), ("#999999", "there, not named"), (WRONG, "named, not there")]


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


def _counting_panels(case, image, id2label):
    true, given = case["reference"], case["prediction"]
    panels, font = [], make_font(48)
    for number, color in ((true, "black"), (given, RIGHT if given == true else WRONG)):
        panel = PIL.Image.new("RGB", image.size, "#f4f4f4")
        text = "-" if number is None else str(number)
        text = shorten(text, font, image.width - 8)
        PIL.ImageDraw.Draw(panel).text((image.width // 2, image.height // 2), text, fill=color, font=font, anchor="mm")
        panels.append(panel)
    return panels, _text_lines(case["question"] or "")


def _draw_boxes(case, image, boxes, colors) -> PIL.Image.Image:
    """A copy of the image as it is drawn with boxes, whose places are those of the image itself."""
    panel = image.copy()
    draw, (across, down) = PIL.ImageDraw.Draw(panel), _factors(case, image)
    for (x0, y0, x1, y1), color in zip(boxes, colors, strict=True):
        draw.rectangle([x0 * across, y0 * down, x1 * across, y1 * down], outline=color, width=2)
    return panel


def _factors(case, image) -> tuple[float, float]:
    return image.width / case["image"].width, image.height / case["image"].height


def _detection_panels(case, image, id2label):
    keys = sorted(id2label)
    color_of = dict(zip(keys, map(tuple, label_colors(len(keys)).tolist()), strict=True))
    panels, there = [], {}
    for name in ("reference", "prediction"):
        labels = np.asarray(case[name]["labels"]).tolist()
        panels.append(_draw_boxes(case, image, np.asarray(case[name]["boxes"]).tolist(), map(color_of.get, labels)))
        there |= dict.fromkeys(labels)
    return panels, [(color_of[key], id2label[key]) for key in there]


def _grounding_panels(case, image, id2label):
    boxes = [[] if case[name] is None else [case[name]] for name in ("reference", "prediction")]
    colors = ((60, 200, 90), (235, 90, 60))  # as those of masks
    panels = [_draw_boxes(case, image, own, [color] * len(own)) for own, color in zip(boxes, colors, strict=True)]
    return panels, _text_lines(f'"{case["expression"]}"')


def _pose_panels(case, image, id2label):
    """Joints and what joins them: those of the prediction that are right, or not, as the metric has it."""
    person, found = case["reference"], case["prediction"]
    true = np.asarray(person["keypoints"], dtype=np.float64)
    panels, factors = [], np.array(_factors(case, image))
    for joints in (true, found):
        panel = image.copy()
        panels.append(panel)
        if joints is None:
            continue
        draw, points = PIL.ImageDraw.Draw(panel), [tuple(point) for point in (joints[:, :2] * factors).tolist()]
        is_right = np.linalg.norm(joints[:, :2] - true[:, :2], axis=1) <= HEAD_SHARE * person["head_size"]
        drawn = [place for place in range(len(true)) if true[place, 2] > 0 or joints is found]
        for start, end in LIMBS:
            if {start, end} <= set(drawn):
                draw.line([points[start], points[end]], fill="white", width=1)
        for place in drawn:
            color = GREY if true[place, 2] == 0 else RIGHT if is_right[place] else WRONG
            (x, y), radius = points[place], 3
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color)
    return panels, [(RIGHT, "joint, or a right one"), (WRONG, "wrong joint"), (GREY, "not annotated")]


def _choice_panels(case, image, id2label):
    panels, font = [], make_font(12)
    likelihoods = zip(case["reference"], case["prediction"], strict=True)
    rows = [
        (choice.answers[0], choice.answers[int(np.argmax(own))], own[0] > max(own[1:])) for choice, own in likelihoods
    ]
    for told, color in ((0, None), (1, RIGHT)):
        panel = PIL.Image.new("RGB", image.size, "#f4f4f4")
        for line, row in enumerate(rows[: image.height // 18]):
            fill = "black" if color is None else color if row[2] else WRONG
            text = shorten(f"{line + 1}. {row[told]}", font, image.width - 8)
            PIL.ImageDraw.Draw(panel).text((4, 4 + 18 * line), text, fill=fill, font=font)
        panels.append(panel)
    questions = [f"{number}. {choice.question}" for number, choice in enumerate(case["reference"], 1)]
    return panels, [(None, line) for line in questions]


# Of each task: case, the image as it is drawn and class id to name to the images of reference and prediction, and the
# legend: colour (or `None`) and text of each line.
PANELS = {
    SEGMENTATION.name: _segmentation_panels,
    ANSWERED.name: _segmentation_panels,
    NAMED.name: _segmentation_panels,
    DEPTH.name: _depth_panels,
    REFERRING.name: _referring_panels,
    CLASS_LIST.name: _class_list_panels,
    NORMALS.name: _normals_panels,
    PANOPTIC.name: _segment_panels,
    INSTANCES.name: partial(_segment_panels, things_only=True),
    COUNTS.name: _counting_panels,
    BOXES.name: _detection_panels,
    POSES.name: _pose_panels,
    REFERRED_BOX.name: _grounding_panels,
    LANGUAGE.name: _choice_panels,
}


__all__ = ["GREY", "PANELS", "make_font", "shorten"]
