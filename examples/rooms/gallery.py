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
r"""A sheet of what a model sees: picture, classes, depth and a referred object, beside what is there.

    python examples/rooms/gallery.py --data out/rooms/data --split test --out gallery.png

Takes evenly spaced rows of the split, not chosen ones; `--photos` adds pictures without annotations.
"""

import argparse
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch

from densemllm import DenseMLLMForConditionalGeneration, DensePrediction
from densemllm.files import OVERWRITE_HELP, check_outputs_of_script
from densemllm.formats.folders import load_samples
from densemllm.formats.labels import load_id2label
from densemllm.loading_densemllm import choose_dtype
from densemllm.task_base_densemllm import REFINEMENTS
from densemllm.training.samples import read_sample


EDGE = 208  # pixels of a tile
GAP = 6


def overlay(image: PIL.Image.Image, field: str, values, names: dict[int, str]) -> PIL.Image.Image:
    prediction = DensePrediction(**{field: torch.as_tensor(values)}, labels=names)
    if field == "predicted_depth":
        return prediction.to_pil(field)
    return prediction.overlay(image, field, alpha=0.7)


def draw_row(tiles: list[tuple[str, PIL.Image.Image]]) -> PIL.Image.Image:
    row = PIL.Image.new("RGB", (len(tiles) * (EDGE + GAP) + GAP, EDGE + 22), "white")
    draw = PIL.ImageDraw.Draw(row)
    for place, (title, tile) in enumerate(tiles):
        left = GAP + place * (EDGE + GAP)
        draw.text((left, 4), title, fill="black")
        tile = tile.copy()
        tile.thumbnail((EDGE, EDGE))
        row.paste(tile, (left, 20))
    return row


def describe(prediction: DensePrediction, reference: dict) -> list[str]:
    correct = prediction.segmentation.numpy() == reference["segmentation"]
    depth, expected = prediction.predicted_depth.numpy(), reference["depth"]
    good = np.maximum(depth / expected, expected / depth) < 1.25
    return [f"classes, {100 * correct.mean():.0f} % right", f"depth, delta1 {good.mean():.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/densemllm-rooms")
    parser.add_argument("--data", default="examples/rooms/sample", help="folder that render.py wrote")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--rows", type=int, default=5, help="number of rooms")
    parser.add_argument("--depth_scale", type=float, default=0.002, help="metres a unit")
    parser.add_argument("--refine", choices=REFINEMENTS, help="of classes, or guided of depth, too")
    parser.add_argument("--photos", nargs="*", default=[], help="pictures without annotations")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args()
    check_outputs_of_script(parser, [args.out], [*args.photos, args.data], args.overwrite)
    model = DenseMLLMForConditionalGeneration.from_pretrained(args.model, dtype=choose_dtype("auto", "cpu")).eval()
    id2label = load_id2label(str(Path(args.data) / "id2label.json"))
    data = load_samples(args.data, args.split)
    # Only what has an expression shows every task.
    told = [place for place, text in enumerate(data["expression"]) if text]
    rows = []
    for place in np.linspace(0, len(told) - 1, args.rows).astype(int):
        sample = read_sample(data[told[place]], id2label=id2label, depth_scale=args.depth_scale)
        image, focal_length = sample["image"], sample["focal_length"]
        seen = model.predict_dense(
            image, ("segmentation", "depth"), labels=id2label, focal_length=focal_length, refine=args.refine
        )
        found = model.predict_dense(image, "referring", text=sample["expression"], focal_length=focal_length)
        titles, classes = describe(seen, sample), sample["segmentation"].astype(int)
        rows.append(
            draw_row([
                ("a room with unseen furniture", image),
                ("classes that are there", overlay(image, "segmentation", classes, id2label)),
                (titles[0], seen.overlay(image, "segmentation", alpha=0.7)),
                ("depth that is there", overlay(image, "predicted_depth", sample["depth"], id2label)),
                (titles[1], seen.to_pil("predicted_depth")),
                (sample["expression"], found.overlay(image, "mask")),
            ])
        )  # fmt: skip
    for name in args.photos:
        image = model.get_processor().image_processor.load_picture(name)
        encoded = model.encode_image(image, scale=min(1.0, 256 / max(image.size)))
        seen = model.predict_dense(encoded, ("segmentation", "depth"), labels=id2label, refine=args.refine)
        depth = f"depth, {float(seen.predicted_depth.min()):.1f} to {float(seen.predicted_depth.max()):.1f} m"
        rows.append(
            draw_row([
                (Path(name).name, image),
                ("classes", seen.overlay(image, "segmentation", alpha=0.7)),
                (depth, seen.to_pil("predicted_depth")),
            ])
        )  # fmt: skip
    sheet = PIL.Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(args.out)
    print(f"{len(rows)} rows in {args.out}")


if __name__ == "__main__":
    main()
