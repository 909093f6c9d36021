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
r"""A sheet of what a checkpoint sees in the photographs of stereodemo that may be looked at.

    python examples/real_photos/sheet.py --model checkpoints/densemllm-rooms --out sheet.png

A row for each: the photograph, the classes drawn by hand, the classes that are seen, the depth of the stereo pair, the
depth that is seen. Near is bright; each depth has its own scale, from its second to its 98th percentile, which stands
above it. What is ignored or unknown is grey. The photographs that are kept back are never drawn.
"""

import argparse

import numpy as np
import PIL.Image
import PIL.ImageDraw
from checkpoint import labels_of, load, reference_classes, see
from outlines import CLASSES, IGNORE_INDEX
from photographs import LOOK, add_arguments, photographs_of

from densemllm.drawing_densemllm import colorize_depth, label_colors
from densemllm.files import OVERWRITE_HELP, check_outputs_of_script, whole_file
from densemllm.task_base_densemllm import REFINEMENTS


WIDTH, GAP, TITLE, LEGEND = 200, 4, 14, 20  # pixels
GREY = 190
COLORS_OF_FILE = 200  # of the whole sheet: a small file


def color_classes(classes: np.ndarray) -> np.ndarray:
    """Places in `CLASSES` in colours, `uint8 [height, width, 3]`; grey where ignored."""
    table = np.full((256, 3), GREY, np.uint8)
    table[: len(CLASSES)] = label_colors(len(CLASSES))
    return table[np.where(classes < 0, IGNORE_INDEX, classes)]


def color_depth(depth: np.ndarray) -> tuple[np.ndarray, str]:
    """Metres in colours, grey where unknown; and the ends of their scale, in words."""
    low, high = np.percentile(depth[depth > 0], (2, 98)).tolist()
    colors = colorize_depth(depth, low, high)
    colors[depth <= 0] = GREY
    return colors, f"{low:.1f} to {high:.1f} m"


def draw_legend(width: int) -> PIL.Image.Image:
    """The names of the classes in their colours."""
    legend = PIL.Image.new("RGB", (width, LEGEND), "white")
    pen = PIL.ImageDraw.Draw(legend)
    step = width // len(CLASSES)
    colors = label_colors(len(CLASSES)).tolist()
    for place, (name, color) in enumerate(zip(CLASSES, colors, strict=True)):
        left = GAP + place * step
        pen.rectangle([left, 5, left + 10, 15], fill=tuple(color), outline="black")
        pen.text((left + 14, 4), name, fill="black")
    return legend


def draw_row(titles: list[str], images: list[np.ndarray]) -> PIL.Image.Image:
    """Images side by side with their titles above."""
    height = round(WIDTH * images[0].shape[0] / images[0].shape[1])
    row = PIL.Image.new("RGB", (len(images) * (WIDTH + GAP) + GAP, height + TITLE), "white")
    pen = PIL.ImageDraw.Draw(row)
    for place, (title, image) in enumerate(zip(titles, images, strict=True)):
        left = GAP + place * (WIDTH + GAP)
        smooth = place in (0, len(images) - 1)  # maps with holes stay as they are
        resample = PIL.Image.Resampling.BILINEAR if smooth else PIL.Image.Resampling.NEAREST
        pen.text((left, 1), title, fill="black")
        row.paste(PIL.Image.fromarray(image).resize((WIDTH, height), resample), (left, TITLE))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/densemllm-rooms")
    parser.add_argument("--refine", choices=REFINEMENTS, help="of classes and depth")
    parser.add_argument("--out", required=True, help="image file to write")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    add_arguments(parser, sources=("stereodemo",))
    args = parser.parse_args()
    inputs = [own for own in (args.model, args.stereo_folder, args.outlines) if own]
    check_outputs_of_script(parser, [args.out], inputs, args.overwrite)
    photographs = [own for own in photographs_of(parser, args) if own.group == LOOK]
    if not photographs:
        parser.error("none of --sources has a photograph to look at")
    model = load(args.model)
    labels = labels_of(model)
    rows = []
    for photograph in photographs:
        seen = see(model, photograph, labels, args.refine)
        expected, expected_ends = color_depth(photograph.depth)
        depth, ends = color_depth(seen.predicted_depth.numpy())
        classes = [reference_classes(photograph, labels), seen.segmentation.numpy()]
        tiles = {
            photograph.name: np.asarray(photograph.image),
            "classes drawn": color_classes(classes[0]),
            "classes seen": color_classes(classes[1]),
            f"depth of the pair, {expected_ends}": expected,
            f"depth seen, {ends}": depth,
        }
        rows.append(draw_row(list(tiles), list(tiles.values())))
    rows.insert(0, draw_legend(rows[0].width))
    sheet = PIL.Image.new("RGB", (rows[0].width, sum(row.height for row in rows) + GAP), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    with whole_file(args.out, args.overwrite) as path:
        # Few colours, without dithering: photographs are grey, and maps have few.
        sheet.quantize(COLORS_OF_FILE, dither=PIL.Image.Dither.NONE).save(path, optimize=True)
    print(f"{len(photographs)} photographs in {args.out}")


if __name__ == "__main__":
    main()
