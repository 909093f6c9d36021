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
"""A sheet of samples with their annotations laid over, as the model gets them."""

import textwrap
from collections.abc import Iterator

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from ..drawing_densemllm import add_names, add_scale, colorize_depth, label_colors, normals_to_colors
from ..object_tasks_densemllm import Foreground
from ..processing_densemllm import DenseMLLMProcessor
from ..targets_densemllm import nearest_resize
from ..tasks_densemllm import Classes, Depth, Normals
from .check import CheckOptions, Report, spread
from .collator import DenseCollator
from .maps import Samples
from .samples import MAPS, draw_expression, read_sample, text_of


HEIGHT, MARGIN, LINE, CHARACTERS = 240, 8, 14, 150
ALPHA = 0.55  # of a map over its image
SAMPLES = 10
FOREGROUND = {1: "object", -1: "not annotated"}


def draw_sheet(
    splits: dict[str, Samples],
    report: Report,
    options: CheckOptions,
    processor: DenseMLLMProcessor | None = None,
    count: int = SAMPLES,
) -> PIL.Image.Image:
    """Samples from all over the splits, one below the other; rows that can't be trained on are left out.

    Args:
        splits, options: as for [`check_data`].
        report: what it found.
        processor: of a model: image and maps have the sizes and crops, and the words, that it is trained on. As they
            are stored where left out.
        count: of samples, at most.

    Raises:
        ValueError: there is no row to draw.
    """
    broken = {(finding.split, finding.row) for finding in report.findings}
    places = [(split, row) for split, data in splits.items() for row in range(len(data))]
    sound = [place for place in places if place not in broken] or places
    strips = []
    for split, row in (sound[number] for number in spread(len(sound), count)):
        try:
            strips.append(_draw_sample(splits[split][row], split, row, options, processor))
        except (ValueError, TypeError, OSError):  # of a row that wasn't looked at, or isn't sound
            continue
    if not strips:
        raise ValueError("no row of those that were to be drawn can be read")
    return stack(strips)


def _draw_sample(row: dict, split: str, place: int, options: CheckOptions, processor) -> PIL.Image.Image:
    read = options.read
    row = {name: value for name, value in row.items() if name in (options.columns or row)}
    sample = read_sample(row, f"row {place}", read.id2label, read.depth_scale, read.ignore_index)
    stored, objects = sample["image"].size, {name: sample[name] for name in MAPS if name in sample}
    if "expression" not in sample:
        sample = draw_expression(sample, np.random.default_rng(place), read.ignore_index)
    lines, strips = [f"{split} {place}: {stored[0]} x {stored[1]} pixels"], []
    for image, maps, texts in _seen(sample, objects, options, processor):
        tiles = [scaled(image), *(_draw_map(image, name, values, options) for name, values in maps.items())]
        said = f"seen with {image.width} x {image.height} pixels. " if processor is not None else ""
        lines += textwrap.wrap(said + " ".join(texts), CHARACTERS, max_lines=4)
        strips.append(beside(tiles, lines))
        lines = []
    return stack(strips)


def _seen(sample: dict, objects: dict, options: CheckOptions, processor) -> Iterator[tuple]:
    """Images with their maps, of one size, and texts."""
    if processor is None:
        texts = [sample["expression"]] if sample.get("expression") else []
        texts += [f"{message['role']}: {text_of(message['content'])}" for message in sample.get("messages") or ()]
        yield sample["image"], {**objects, **{name: sample[name] for name in MAPS if name in sample}}, texts
        return
    own = {"id2label": options.id2label, "depth_range": options.depth_range, "ignore_index": options.ignore_index}
    collator = DenseCollator(processor)
    for image, annotation, texts in collator.entries({**sample, **own, "depth_scale": 1.0}):
        height, width = processor.image_processor.get_resized_size(image.height, image.width)
        maps = {name: nearest_resize(annotation[name], height, width) for name in MAPS if name in annotation}
        resized = image.resize((width, height), PIL.Image.Resampling(processor.image_processor.resample))
        yield resized, maps, [text.replace("\n", " ") for text in texts if text]


def _draw_map(image: PIL.Image.Image, name: str, values: np.ndarray, options: CheckOptions) -> PIL.Image.Image:
    """A map over its image, with its legend or scale."""
    if name == Depth.column:
        valid = np.isfinite(values) & (values > 0)
        low, high = (float(end(values[valid])) if valid.any() else 0.0 for end in (np.min, np.max))
        colors = colorize_depth(np.where(valid, values, low), low, high)
        return add_scale(laid_over(image, colors, valid), low, high)
    if name == Normals.column:
        return laid_over(image, normals_to_colors(values), np.abs(values).sum(axis=-1) > 0)
    values = values.astype(np.int64)
    names = {Classes.column: options.id2label or {}, Foreground.column: FOREGROUND}.get(name, {})
    ignored = -1 if name == Foreground.column else options.ignore_index
    drawn = (values != ignored) & (values >= 0)
    if name == Foreground.column:
        drawn &= values > 0
    numbers, places = np.unique(np.where(drawn, values, 0), return_inverse=True)
    colors = label_colors(numbers, None, names)
    tile = laid_over(image, colors[places.reshape(values.shape)], drawn)
    there = set(np.unique(values[drawn]).tolist())
    rows = [
        (names.get(number, f"{name} {number}"), color)
        for number, color in zip(numbers.tolist(), colors, strict=True)
        if number in there
    ]
    if (values == ignored).any():
        rows.append(("ignored", np.full(3, 255)))
    return add_names(tile, rows) if rows else tile


def laid_over(image: PIL.Image.Image, colors: np.ndarray, drawn: np.ndarray) -> PIL.Image.Image:
    """Colours over an image where they are `drawn`, at the sheet's height."""
    below = np.asarray(image.convert("RGB"), dtype=np.float32)
    over = np.where(drawn[..., None], ALPHA * colors + (1 - ALPHA) * below, below)
    return scaled(PIL.Image.fromarray(over.round().astype(np.uint8)))


def scaled(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image at the sheet's height; larger pixels stay pixels, which show the model's grid."""
    width = min(3 * HEIGHT, max(1, round(image.width * HEIGHT / image.height)))
    enlarged = image.height < HEIGHT
    return image.resize((width, HEIGHT), PIL.Image.Resampling.NEAREST if enlarged else PIL.Image.Resampling.BILINEAR)


def beside(tiles: list[PIL.Image.Image], lines: list[str]) -> PIL.Image.Image:
    """Tiles in a row, below lines of text."""
    top = LINE * len(lines) + MARGIN
    width = max(sum(tile.width + MARGIN for tile in tiles), 6 * max(map(len, lines), default=0))
    strip = PIL.Image.new("RGB", (width, top + max(tile.height for tile in tiles)), "white")
    draw, font = PIL.ImageDraw.Draw(strip), PIL.ImageFont.load_default()
    for place, line in enumerate(lines):
        draw.text((2, place * LINE), line, fill="black", font=font)
    left = 0
    for tile in tiles:
        strip.paste(tile, (left, top))
        left += tile.width + MARGIN
    return strip


def stack(strips: list[PIL.Image.Image]) -> PIL.Image.Image:
    """Strips one below the other."""
    height = sum(strip.height + MARGIN for strip in strips)
    sheet = PIL.Image.new("RGB", (max(strip.width for strip in strips), height), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height + MARGIN
    return sheet


__all__ = ["beside", "draw_sheet", "laid_over", "scaled", "stack"]
