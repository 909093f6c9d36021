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
"""What maps look like: colours of labels and of depth, legends and scales."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from .checks_densemllm import plain, shown


# A name of a known palette, colours (three integers) by name or number of their class, or `[n, 3]`.
Palette = str | dict[str, Any] | dict[int, Any] | Sequence[Sequence[int]] | np.ndarray


# sRGB, in the order of the numbers of labels; made by `tools/make_palette.py`. Any two of the first 150, and black and
# white, are at least 10 apart in CIEDE2000, any two of all at least 8; about 2 is the least that people see.
_COLORS = (
    "c000ff e03800 388800 0088c8 d8a000 88ff00 880840 ff88a8 00c0b0 604800 001888 005850 787080 b8b0ff a0a090 "
    "ffb898 80d8ff 782000 fff0a0 b8ffd0 183000 0050f8 e81858 280028 a07860 a0b038 686858 784088 f878ff 588888 "
    "504040 18c060 ffd8f8 ff8000 807800 b0a0b0 300800 b86098 8078c8 084860 70ffff ff7060 008860 302000 a05800 "
    "006020 905860 303050 b0d0c8 002828 7000d8 789868 70a8ff f0ff00 00a8c8 e0d0b8 b01028 485888 a89058 b8c898 "
    "785038 404030 00ff90 506870 b80080 c08080 c0c8d8 506008 ffd800 ffc880 889098 ff00c8 b088c0 580068 000020 "
    "583048 e0c8c8 f8ffe0 c07800 c0a088 00f0c8 d0f898 b05848 4078ff 283038 086898 507058 ffa8e8 806838 68c800 "
    "683030 80c8a0 00d0e0 f84890 b070ff d88860 d0f0ff ffb8b8 8050c8 605068 90b0c0 88a898 707848 886898 281820 "
    "101800 9098c0 a83800 583008 003878 888078 c8b870 ff0030 107078 38a880 08b0f8 480020 385038 304848 100048 "
    "788878 a800b8 789018 483880 d06000 d0d858 a08090 706058 ff6020 8890ff a89800 585860 884068 88b868 687890 "
    "404008 d89850 00a0a0 e878c0 b82058 20a800 d0fff8 b858c8 d0c8f0 580000 d8a8c0 800060 1030c8 ff6078 388098 "
    "b0d0ff 88e078 c06078 987000 605038 109848 d8a0f8 7060ff 78b8b8 d0a098 003828 804000 002038 90e0d0 5068c0 "
    "f0e8f8 508048 e00880 ffa000 d0b820 707878 e840ff c0c0b8 7090b0 ffd8c0 904030 98e0e8 909068 d06848 281810 "
    "887070 007058 ff9090 800020 d018b0 d85858 ffa060 482010 d00010 589078 585830 9088a0 001820 482858 781098 "
    "a09898 108078 404860 00e828 6898a8 705050 685890 a86038 707098 500040 0050b0 c888a0 c0b090 706000 ffc028 "
    "a09078 506058 607800 383028 b08818 e0f0e8 28d898 986880 a07038 c0a8d8 a04898 387010 a0a8b8 a890e8 282800 "
    "503828 004820 a88880 fff0c8 305010 c0e0c0 506838 903840 a8e048 6838ff a0a868 00e0d8 f0d070 805800 e0e8b0 "
    "e0b890 b04878 4800a8 5050b8 c0b0a8 ff9878 2090ff 185860 182058 98b0d8 202030 403040 f8e8e0 a00000 906050 "
    "70a800 "
)
COLORS = np.array([list(bytes.fromhex(color)) for color in _COLORS.split()], dtype=np.uint8)


def _voc_color(number: int) -> tuple[int, int, int]:
    """The colour of a class of PASCAL VOC: the bits of its number, dealt out to the channels from the highest."""
    channels = [0, 0, 0]
    for place in range(24):
        channels[place % 3] |= (number >> place & 1) << 7 - place // 3
    return tuple(channels)


_VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# The classes of ADE20K's scene parsing benchmark by the first of their names, with the colours of its own table.
_ADE20K = (
    "wall 787878, building b47878, sky 06e6e6, floor 503232, tree 04c803, ceiling 787850, road 8c8c8c, bed cc05ff, "
    "windowpane e6e6e6, grass 04fa07, cabinet e005ff, sidewalk ebff07, person 96053d, earth 787846, door 08ff33, "
    "table ff0652, mountain 8fff8c, plant ccff04, curtain ff3307, chair cc4603, car 0066c8, water 3de6fa, "
    "painting ff0633, sofa 0b66ff, shelf ff0747, house ff09e0, sea 0907e6, mirror dcdcdc, rug ff095c, "
    "field 7009ff, armchair 08ffd6, seat 07ffe0, fence ffb806, desk 0aff47, rock ff290a, wardrobe 07ffff, "
    "lamp e0ff08, bathtub 6608ff, railing ff3d06, cushion ffc207, base ff7a08, box 00ff14, column ff0829, "
    "signboard ff0599, chest of drawers 0633ff, counter eb0cff, sand a09614, sink 00a3ff, skyscraper 8c8c8c, "
    "fireplace fa0a0f, refrigerator 14ff00, grandstand 1fff00, path ff1f00, stairs ffe000, runway 99ff00, "
    "case 0000ff, pool table ff4700, pillow 00ebff, screen door 00adff, stairway 1f00ff, river 0bc8c8, "
    "bridge ff5200, bookcase 00fff5, blind 003dff, coffee table 00ff70, toilet 00ff85, flower ff0000, book ffa300, "
    "hill ff6600, bench c2ff00, countertop 008fff, stove 33ff00, palm 0052ff, kitchen island 00ff29, "
    "computer 00ffad, swivel chair 0a00ff, boat adff00, bar 00ff99, arcade machine ff5c00, hovel ff00ff, "
    "bus ff00f5, towel ff0066, light ffad00, truck ff0014, tower ffb8b8, chandelier 001fff, awning 00ff3d, "
    "streetlight 0047ff, booth ff00cc, television receiver 00ffc2, airplane 00ff52, dirt track 000aff, "
    "apparel 0070ff, pole 3300ff, land 00c2ff, bannister 007aff, escalator 00ffa3, ottoman ff9900, bottle 00ff0a, "
    "buffet ff7000, poster 8fff00, stage 5200ff, van a3ff00, ship ffeb00, fountain 08b8aa, conveyer belt 8500ff, "
    "canopy 00ff5c, washer b800ff, plaything ff001f, swimming pool 00b8ff, stool 00d6ff, barrel ff0070, "
    "basket 5cff00, waterfall 00e0ff, tent 70e0ff, bag 46b8a0, minibike a300ff, cradle 9900ff, oven 47ff00, "
    "ball ff00a3, food ffcc00, step ff008f, tank 00ffeb, trade name 85ff00, microwave ff00eb, pot f500ff, "
    "animal ff007a, bicycle fff500, lake 0abed4, dishwasher d6ff00, screen 00ccff, blanket 1400ff, "
    "sculpture ffff00, hood 0099ff, sconce 0029ff, vase 00ffcc, traffic light 2900ff, tray 29ff00, ashcan ad00ff, "
    "fan 00f5ff, pier 4700ff, crt screen 7a00ff, plate 00ffb8, monitor 005cff, bulletin board b8ff00, "
    "shower 0085ff, radiator ffd600, glass 19c2c2, clock 66ff00, flag 5c00ff"
)
# The colours that data sets give to their own classes, by name.
PALETTES = {
    "ade20k": {row[:-7]: tuple(bytes.fromhex(row[-6:])) for row in _ADE20K.split(", ")},
    "voc": {name: _voc_color(number) for number, name in enumerate(_VOC_NAMES)},
    "cityscapes": {
        "road": (128, 64, 128), "sidewalk": (244, 35, 232), "building": (70, 70, 70), "wall": (102, 102, 156),
        "fence": (190, 153, 153), "pole": (153, 153, 153), "traffic light": (250, 170, 30),
        "traffic sign": (220, 220, 0), "vegetation": (107, 142, 35), "terrain": (152, 251, 152),
        "sky": (70, 130, 180), "person": (220, 20, 60), "rider": (255, 0, 0), "car": (0, 0, 142),
        "truck": (0, 0, 70), "bus": (0, 60, 100), "train": (0, 80, 100), "motorcycle": (0, 0, 230),
        "bicycle": (119, 11, 32),
    },
}  # fmt: skip


def label_colors(
    numbers: int | Sequence[int] | np.ndarray, palette: Palette | None = None, names: dict[int, str] | None = None
) -> np.ndarray:
    """Colours of labels, the same in every call.

    Args:
        numbers: of the labels, integers of at least 0; or their count, for 0, 1, 2...
        palette: `None`, a table of 256 colours that are well apart, from its beginning again for larger numbers;
            `"ade20k"`, `"voc"` or `"cityscapes"`, that data set's own colours by the names of its classes; a dict from
            name or number to colour; or colours `[n, 3]` by number. A label that it lacks has its colour of the table.
        names: of the labels by number, for a palette that goes by name.

    Returns:
        `uint8 [n, 3]`, red, green and blue.

    Raises:
        ValueError: a palette that is none of these, or a colour that is not three integers in 0 to 255.
    """
    numbers = np.arange(numbers) if np.ndim(numbers) == 0 else np.asarray(numbers, dtype=np.int64)
    colors = COLORS[numbers % len(COLORS)]
    if palette is not None:
        own, names = _check_palette(palette), names or {}
        for place, number in enumerate(numbers.tolist()):
            name = _plain_name(names.get(number, ""))
            first = re.split("[,;]", name)[0].strip()  # ADE20K's own names are lists: "building, edifice"
            colors[place] = next((own[key] for key in (number, name, first) if key in own), colors[place])
    return colors


def _check_palette(palette) -> dict:
    """A palette as a dict from number or name to colour, or a `ValueError`."""
    given = PALETTES.get(palette) if isinstance(palette, str) else plain(palette)
    rows = dict(enumerate(given)) if isinstance(given, list) else given
    rows = {_plain_name(key): plain(color) for key, color in rows.items()} if isinstance(rows, dict) else {None: None}
    for color in rows.values():
        numbers = color if isinstance(color, list) and len(color) == 3 else [None]
        if not all(type(channel) is int and 0 <= channel <= 255 for channel in numbers):
            raise ValueError(
                f"`palette` must be None, one of {sorted(PALETTES)}, a dict from name or number to colour, or colours "
                f"[n, 3], of integers in 0 to 255, got {shown(palette)}"
            )
    return rows


def _plain_name(name):
    """A name without regard to upper and lower case and white space; anything else as it is."""
    return " ".join(name.lower().split()) if isinstance(name, str) else name


def depth_to_gray(depth: np.ndarray) -> PIL.Image.Image:
    """Metres `[height, width]` as `transformers`' depth estimation draws them: an image of mode `L` from 0, the least
    of the map, to 255, the most, so that far is bright. Black where all are the same."""
    low, high = float(depth.min()), float(depth.max())
    return PIL.Image.fromarray(((depth - low) / max(high - low, 1e-6) * 255).astype(np.uint8))


def colorize_depth(depth: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Metres `[height, width]` to `uint8 [height, width, 3]`: near is bright yellow, far is dark violet.

    Args:
        depth: metres.
        low, high: ends of the scale; the map's own where left out.
    """
    low = float(depth.min()) if low is None else low
    high = float(depth.max()) if high is None else high
    anchors = np.array([[10, 7, 34], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float64)
    at = np.linspace(0, 1, len(anchors))
    colors = np.empty((*depth.shape, 3), np.uint8)
    for band, out in zip(*(np.array_split(whole, 1 + depth.size // 2**20) for whole in (depth, colors)), strict=True):
        position = np.clip((high - band) / max(high - low, 1e-6), 0, 1)
        for channel in range(3):
            out[..., channel] = np.interp(position, at, anchors[:, channel]).round()
    return colors


def _text_size(image: PIL.Image.Image) -> int:
    """The height of letters beside an image, in pixels: to be read when the image is seen as a whole."""
    return max(11, round(min(image.size) / 36))


def add_names(image: PIL.Image.Image, rows: list[tuple[str, np.ndarray]]) -> PIL.Image.Image:
    """The image with a legend at its right: in as many columns as its height asks for, and below its end only where
    these would be wider than the image itself."""
    size = _text_size(image)
    font = PIL.ImageFont.load_default(size)
    box, step, gap = size, round(1.5 * size), size // 2
    per_column = max(1, (image.height - 4) // step)
    widths = _column_widths(rows, per_column, font, box + 3 * gap)
    while len(widths) > 1 and sum(widths) > max(image.width, 20 * size):
        per_column += 1
        widths = _column_widths(rows, per_column, font, box + 3 * gap)
    height = max(image.height, min(per_column, len(rows)) * step + 4)
    sheet = PIL.Image.new("RGB", (image.width + sum(widths), height), "white")
    sheet.paste(image)
    draw, left = PIL.ImageDraw.Draw(sheet), image.width + gap
    for column, width in enumerate(widths):
        for place, (name, color) in enumerate(rows[column * per_column : (column + 1) * per_column]):
            top = place * step + 4
            draw.rectangle([left, top, left + box, top + box], fill=tuple(int(c) for c in color), outline="black")
            draw.text((left + box + gap, top + box / 2), name, fill="black", font=font, anchor="lm")
        left += width
    return sheet


def _column_widths(rows: list[tuple[str, np.ndarray]], per_column: int, font: Any, beside: int) -> list[int]:
    columns = [rows[start : start + per_column] for start in range(0, len(rows), per_column)]
    return [beside + max(math.ceil(font.getlength(name)) for name, _ in column) for column in columns]


def add_scale(image: PIL.Image.Image, low: float, high: float) -> PIL.Image.Image:
    """The image of a depth map with its scale in metres at the right."""
    size = _text_size(image)
    font, gap, bar = PIL.ImageFont.load_default(size), size // 2, max(16, size)
    height = max(image.height, 2 * size)
    count = max(2, min(6, height // (3 * size)))
    texts = [f"{low + (high - low) * place / (count - 1):.2f} m" for place in range(count)]
    width = 3 * gap + bar + math.ceil(max(font.getlength(text) for text in texts))
    sheet = PIL.Image.new("RGB", (image.width + width, height), "white")
    sheet.paste(image)
    ramp = np.linspace(low, high, height)[:, None].repeat(bar, axis=1)
    left = image.width + gap
    sheet.paste(PIL.Image.fromarray(colorize_depth(ramp, low, high)), (left, 0))
    draw = PIL.ImageDraw.Draw(sheet)
    for place, text in enumerate(texts):
        middle = min(max(place * (height - 1) / (count - 1), size / 2 + 1), height - size / 2 - 1)
        draw.text((left + bar + gap, middle), text, fill="black", font=font, anchor="lm")
    return sheet


def beside(panels: Sequence[PIL.Image.Image]) -> PIL.Image.Image:
    """Images from left to right, on white."""
    gap = 8
    width = sum(panel.width for panel in panels) + gap * (len(panels) - 1)
    sheet = PIL.Image.new("RGB", (width, max(panel.height for panel in panels)), "white")
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, 0))
        left += panel.width + gap
    return sheet


def draw_outlines(colors: np.ndarray, values: np.ndarray) -> None:
    """Draw the borders between different numbers, of which one at least is not below 0, in white into a map's image.

    Args:
        colors: `uint8 [height, width, 3]`; changed in place.
        values: integers or booleans `[height, width]`.
    """
    values = values.astype(np.int64)
    border = np.zeros(values.shape, dtype=bool)
    border[:, 1:] |= (values[:, 1:] != values[:, :-1]) & (np.maximum(values[:, 1:], values[:, :-1]) >= 0)
    border[1:] |= (values[1:] != values[:-1]) & (np.maximum(values[1:], values[:-1]) >= 0)
    for _ in range(round(min(values.shape) / 400)):  # thicker in large images
        border[:-1] |= border[1:]
        border[:, :-1] |= border[:, 1:]
    colors[border] = 255


def draw_labels(
    values: np.ndarray, names: dict[int, str], more_names: dict[int, str], legend: bool, palette: Palette | None
) -> PIL.Image.Image:
    """A map of numbers in colours, those below 0 black.

    Args:
        values: integers `[height, width]`.
        names: of the numbers, which a palette may go by.
        more_names: for the legend only.
        legend: add the names at the right.
        palette: as for [`label_colors`].
    """
    numbers, places = np.unique(values, return_inverse=True)
    colors = np.zeros((len(numbers), 3), np.uint8)
    colors[numbers >= 0] = label_colors(numbers[numbers >= 0], palette, names)
    image = PIL.Image.fromarray(colors[places.reshape(values.shape)])
    if not legend:
        return image
    # A name once, in the order of its number: where each object has a colour, each object.
    by_number = dict(zip(numbers.tolist(), colors, strict=True))
    rows = {**names, **more_names}.items()
    return add_names(image, [(name, by_number[number]) for number, name in rows if number in by_number])


def draw_depth(depth: np.ndarray, legend: bool, low: float, high: float) -> PIL.Image.Image:
    """A map of metres in colours, near is bright, from `low` to `high`; with `legend` a scale at the right."""
    image = PIL.Image.fromarray(colorize_depth(depth, low, high))
    return add_scale(image, low, high) if legend else image


def normals_to_colors(normals: np.ndarray) -> np.ndarray:
    """Unit vectors `[..., 3]` as colours, `uint8 [..., 3]`: -1 to 1 becomes 0 to 255, as in files of normals."""
    return np.round((np.clip(normals, -1, 1) + 1) * 127.5).astype(np.uint8)
