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
r"""Render furnished rooms into a data set: pictures, classes, metres, instances, expressions, questions.

    apt-get install sweethome3d-furniture
    pip install -e ".[rooms]"
    python examples/rooms/render.py --split train --rooms 2000 --output_dir out/rooms/data

Writes `data/SPLIT-FIRST-LAST.parquet`... in the schema of `densemllm.training.datasets`, `id2label.json`, and a data
card. The same arguments and versions give the same rooms, views and texts. A shard that is there already is left as it
is, so a run that was stopped goes on. Test and validation rooms have furniture that no training room has.

`--variety 1` renders other rooms: of other shapes and sizes, with made, bent and painted furniture, other materials,
lights and cameras (`variety.py`), to train what is to see photographs.
"""

import argparse
import io
import json
import multiprocessing
import os
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from catalogue import FURNITURE, ID2LABEL, read_catalogue, split_models
from datasets import Dataset, Features, Image, Sequence, Value
from language import expressions, find_visible, questions
from layout import Furnisher, pools_of
from PIL import Image as Picture
from raycast import Scene
from tqdm.auto import tqdm
from variety import VariedFurnisher


DEPTH_SCALE = 0.002  # metres a unit: finer steps would only make the files larger
FIRST_SEEDS = {"train": 0, "validation": 1_000_000, "test": 2_000_000}
VIEWS_PER_ROOM = 2
FEATURES = Features(
    {
        "image": Image(), "segmentation": Image(), "depth": Image(), "instances": Image(), "mask": Image(),
        "expression": Value("string"), "messages": [{"role": Value("string"), "content": Value("string")}],
        "focal_length": Value("float32"), "expressions": Sequence(Value("string")),
        "expression_instances": Sequence(Value("int32")), "room": Value("int64"), "view": Value("int32"),
    }
)  # fmt: skip


def read_splits(furniture: Path = FURNITURE) -> dict[str, list]:
    """The models that rooms have a place for, by split."""
    return split_models([model for model in read_catalogue(furniture) if pools_of(model)])


def render_views(seed: int, furnisher: Furnisher, height: int, width: int) -> list[dict]:
    """The rows of one room: none where no camera finds a place from which the furnisher accepts a view."""
    room = furnisher(seed)
    scene = Scene(room)
    rows = []
    for view_number in range(VIEWS_PER_ROOM):
        rng = np.random.default_rng([20261124, seed, view_number])
        for _ in range(60):
            camera = furnisher.propose_camera(room, rng)
            if camera is not None and furnisher.accepts(room, *scene.glance(camera)):
                break
        else:
            continue
        camera, *size = furnisher.frame(camera, height, width, rng)
        view = scene.render(camera, *size, rng)
        visible = find_visible(room, view)
        said = expressions(visible)
        asked = questions(room, visible, rng)
        chosen = said[int(rng.integers(len(said)))] if said else None
        mask = None if chosen is None else (view.instances == chosen[1] + 1).astype(np.uint8) * 255
        messages = []
        for question, answer in asked[:3]:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append(
            {
                "image": _encoded(view.image, "JPEG"), "segmentation": _encoded(view.segmentation),
                "depth": _encoded(np.round(view.depth / DEPTH_SCALE).astype(np.uint16)),
                "instances": _encoded(view.instances.astype(np.uint8)),
                "mask": mask if mask is None else _encoded(mask),
                "expression": chosen and chosen[0], "messages": messages,
                "focal_length": camera.focal_length * size[1], "expressions": [text for text, _ in said],
                "expression_instances": [thing + 1 for _, thing in said], "room": seed, "view": view_number,
            }
        )  # fmt: skip
    return rows


def _encoded(pixels: np.ndarray, form: str = "PNG") -> dict:
    buffer = io.BytesIO()
    # A PNG of the highest level is a tenth smaller, and takes ten times as long.
    options = {"quality": 90} if form == "JPEG" else {"compress_level": 6}
    Picture.fromarray(pixels).save(buffer, form, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def _start_worker(split: str, furniture: Path, variety: float) -> None:
    global _furnisher
    models = read_splits(furniture)[split]
    _furnisher = VariedFurnisher(models, variety) if variety else Furnisher(models)


def _work(seed: int, height: int, width: int) -> list[dict]:
    return render_views(seed, _furnisher, height, width)


def check_settings(folder: Path, settings: dict) -> None:
    """Write how the folder's rooms are rendered, or raise a `ValueError` where they were rendered otherwise."""
    file = folder / SETTINGS_NAME
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
    elif any((folder / "data").glob("*.parquet")):
        found = {**settings, "variety": 0.0}  # of a version that had nothing else
    else:
        found = None
    if found is not None and found != settings:
        raise ValueError(f"{folder} has rooms that were rendered with {found}, got {settings}: take another folder")
    if not file.is_file():
        _write(file, json.dumps(settings) + "\n")


def write_card(folder: Path, models: dict, variety: float = 0.0) -> None:
    """`README.md`: columns, splits, pixels of each class, licences; `CREDITS.md`: the models and their creators."""
    counts, rows = Counter(), Counter()
    for file in sorted((folder / "data").glob("*.parquet")):
        split = file.name.split("-")[0]
        for row in Dataset.from_parquet(str(file)).select_columns(["segmentation"]):
            rows[split] += 1
            values, own = np.unique(np.asarray(row["segmentation"]), return_counts=True)
            counts.update(dict(zip(values.tolist(), own.tolist(), strict=True)))
    total = sum(counts.values())
    files = {split: Counter(model.label for model in own) for split, own in models.items()}
    table = [
        f"| {key} | {name} | {counts[key]:,} | {100 * counts[key] / max(total, 1):.2f} % | "
        + " | ".join(str(files[split][name]) for split in FIRST_SEEDS) + " |"
        for key, name in ID2LABEL.items()
    ]  # fmt: skip
    splits = "\n".join(f"- split: {split}\n    path: data/{split}-*.parquet" for split in FIRST_SEEDS if rows[split])
    text = CARD.format(
        configs=splits.replace("\n- ", "\n  - "), table="\n".join(table), scale=DEPTH_SCALE,
        rows=", ".join(f"{count:,} {split}" for split, count in rows.items()),
        made=VARIED.format(variety=variety) if variety else PLAIN, limits=VARIED_LIMITS if variety else PLAIN_LIMITS,
    )  # fmt: skip
    _write(folder / "README.md", text)
    credit = [
        "# Credits",
        "",
        "The furniture, by key, name, creator and licence, as Debian's `sweethome3d-furniture` gives them.",
        "",
    ]
    credit += ["| key | name | creator | licence | split |", "|---|---|---|---|---|"]
    credit += [
        f"| {model.key} | {model.name} | {model.creator} | {model.licence} | {split} |"
        for split, own in models.items()
        for model in own
    ]
    _write(folder / "CREDITS.md", "\n".join(credit) + "\n")


CARD = """---
license: cc-by-3.0
task_categories:
- depth-estimation
- image-segmentation
language:
- en
pretty_name: Rooms
configs:
- config_name: default
  data_files:
  {configs}
---

# Rooms

Rendered pictures of furnished rooms with class map, metric depth, instances, referring expressions and questions.
Rows: {rows}. Made by `examples/rooms/render.py` of densemllm: rooms are furnished from a seed with models of Debian's
package `sweethome3d-furniture`, {made}

| column | meaning |
|---|---|
| `image` | JPEG, RGB |
| `segmentation` | PNG of class ids, see `id2label.json` |
| `depth` | 16-bit PNG, {scale} metres a unit along the optical axis |
| `instances` | PNG: number of the thing at each pixel, 0 for floor, walls and ceiling |
| `expression`, `mask` | words that fit one thing of the view, and that thing; empty where nothing is unambiguous |
| `expressions`, `expression_instances` | all such words, and the numbers of their things |
| `messages` | up to three questions about the view and their answers |
| `focal_length` | pixels |
| `room`, `view` | seed of the room, number of the view |

`segmentation`, `depth` and `instances` are those of the ray through the pixel's centre; through glass, of what is
behind it.

## Splits

The model files of every class are split by a hash of their keys into training, validation and test (the last three
columns, in files), so that validation and test rooms have furniture that no training room has. Training rooms have
seeds from 0, validation rooms from 1,000,000, test rooms from 2,000,000. Pictures and rugs are painted anew in every
room.

| id | class | pixels | share | train | validation | test |
|---|---|---|---|---|---|---|
{table}

## Licences

The furniture is CC-BY-3.0, CC-BY-3.0-US or CC0; `CREDITS.md` names the creator of every model. The pictures are
derived from it: CC-BY-3.0.

## Limits

{limits} Things of no class (a vase, a suitcase) are not annotated: 255 in
`segmentation`. Some classes have one or two models to test with: see the table.
"""
PLAIN = """lit by area lights and windows, and seen from eye height with a known focal length.
Floors, walls, pictures and rugs are procedural."""
VARIED = """bent, painted anew and mixed, and with furniture that
is made from the seed; of many shapes and sizes, materials and lights; seen by cameras of many focal lengths, as they
are held in hands (`--variety {variety:g}`). Floors, walls, pictures and rugs are procedural."""
PLAIN_LIMITS = """Rooms are boxes; doors are shut and lie on the wall; mirrors and metal don't reflect; windows show
a painted view; nobody has tidied up, and nobody lives there. Rendered again, a picture can differ by a few levels at a
few pixels of plants, where triangles coincide."""
VARIED_LIMITS = """Walls are at right angles; what reflects does so once; windows show a painted view; colours and
materials are drawn, so that many rooms are ones that nobody would furnish; people stand. Depth and class of a mirror
are its own."""
SETTINGS_NAME = "render.json"


def _write(path: Path, text: str) -> None:
    from densemllm.files import whole_file  # not above: each worker imports this file, and needs no torch

    with whole_file(path, overwrite=True) as staged:
        staged.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    from densemllm.files import whole_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=list(FIRST_SEEDS), default="train")
    parser.add_argument("--rooms", type=int, default=2000, help="number of rooms, with two views each")
    parser.add_argument("--first_room", type=int, default=0, help="first seed, counted from the split's own")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--height", type=int, default=256, help="pixels")
    parser.add_argument("--width", type=int, default=256, help="pixels")
    parser.add_argument(
        "--variety", type=float, default=0.0, help="strength in [0, 1] of domain randomisation, 0: off"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--rooms_per_shard", type=int, default=100)
    parser.add_argument("--furniture", type=Path, default=FURNITURE, help="folder with the *.sh3f archives")
    args = parser.parse_args(arguments)
    for name in ("rooms", "height", "width", "workers", "rooms_per_shard"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if not 0 <= args.variety <= 1:
        parser.error(f"--variety must be in [0, 1], got {args.variety}")
    first = FIRST_SEEDS[args.split] + args.first_room
    shards = range(first, first + args.rooms, args.rooms_per_shard)
    wanted = {(start, min(start + args.rooms_per_shard, first + args.rooms)) for start in shards}
    for file in (args.output_dir / "data").glob(f"{args.split}-*.parquet"):
        start, end = (int(part) for part in file.stem.split("-")[-2:])
        if (start, end) not in wanted and any(start < other[1] and other[0] < end for other in wanted):
            parser.error(f"{file} has some of these rooms already: delete it, or take another folder")
    try:
        models = read_splits(args.furniture)
    except FileNotFoundError as error:
        parser.error(str(error))
    try:
        (args.output_dir / "data").mkdir(parents=True, exist_ok=True)
        check_settings(args.output_dir, {"variety": args.variety, "height": args.height, "width": args.width})
    except ValueError as error:
        parser.error(str(error))
    started, views = time.perf_counter(), 0
    context = multiprocessing.get_context("spawn")
    with context.Pool(args.workers, _start_worker, (args.split, args.furniture, args.variety)) as pool:
        for start in tqdm(shards, desc=f"{args.split}, shards of {args.rooms_per_shard} rooms"):
            end = min(start + args.rooms_per_shard, first + args.rooms)
            file = args.output_dir / "data" / f"{args.split}-{start:07d}-{end:07d}.parquet"
            if file.is_file():
                continue
            rows = []
            for own in pool.imap(partial(_work, height=args.height, width=args.width), range(start, end), chunksize=2):
                rows += own
            columns = {name: [row[name] for row in rows] for name in FEATURES}  # of no rows, too
            with whole_file(file) as staged:
                Dataset.from_dict(columns, features=FEATURES).to_parquet(str(staged))
            views += len(rows)
    seconds = time.perf_counter() - started
    _write(args.output_dir / "id2label.json", json.dumps(ID2LABEL, indent=1) + "\n")
    write_card(args.output_dir, models, args.variety)
    if views:
        print(f"{views} views in {seconds:.0f} s: {views / seconds:.2f} a second on {args.workers} workers")


if __name__ == "__main__":
    main()
