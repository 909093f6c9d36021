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
r"""Views of varied rooms against views of plain ones: time to render, and the classes that they show.

    python benchmarks/rooms_render.py [--rooms 30]

Renders the same seeds with `--variety 0` and `--variety 1` in one process, after the furniture of both was read, and
counts the time of the processor, so that what else the machine does matters less. Needs `apt-get install
sweethome3d-furniture` and `pip install densemllm[rooms]`.

Ends with one line of JSON: views a second of each, their ratio `varied_over_plain`, and for each class the share of
the pixels, and of the views that show it.
"""

import argparse
import io
import json
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples/rooms"))
from catalogue import ID2LABEL  # noqa: E402
from layout import Furnisher  # noqa: E402
from render import read_splits, render_views  # noqa: E402
from variety import VariedFurnisher  # noqa: E402


FIRST_ROOM = 500


def render_rooms(furnisher: Furnisher, rooms: int, edge: int) -> tuple[list[dict], float]:
    """Rows, and views a second of the processor's time."""
    seeds = range(FIRST_ROOM, FIRST_ROOM + rooms)
    for seed in seeds:
        render_views(seed, furnisher, 16, 16)  # their furniture is read
    started = time.process_time()
    rows = [row for seed in seeds for row in render_views(seed, furnisher, edge, edge)]
    return rows, len(rows) / (time.process_time() - started)


def shares_of_classes(rows: list[dict]) -> dict[str, list[float]]:
    """Share of the pixels, and of the views, of each class."""
    pixels, views = Counter(), Counter()
    for row in rows:
        values = np.asarray(PIL.Image.open(io.BytesIO(row["segmentation"]["bytes"])))
        for key, count in zip(*np.unique(values, return_counts=True), strict=True):
            pixels[int(key)] += count / values.size
            views[int(key)] += 1
    names = {**ID2LABEL, 255: "none"}
    return {name: [round(counts[key] / len(rows), 4) for counts in (pixels, views)] for key, name in names.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=30)
    parser.add_argument("--edge", type=int, default=256, help="pixels")
    parser.add_argument("--quick", action="store_true", help="two rooms, to see that it runs")
    args = parser.parse_args()
    rooms = 2 if args.quick else args.rooms
    models = read_splits()["train"]
    results, speeds = {}, {}
    for name, furnisher in (("plain", Furnisher(models)), ("varied", VariedFurnisher(models))):
        rows, speeds[name] = render_rooms(furnisher, rooms, args.edge)
        results[name] = shares_of_classes(rows)
        print(f"{name}: {len(rows)} views, {speeds[name]:.2f} a second of the processor")
    print(f"{'':10} {'plain, pixels':>14} {'views':>7} {'varied, pixels':>15} {'views':>7}")
    for label, (pixels, views) in results["plain"].items():
        other = results["varied"][label]
        print(f"{label:10} {100 * pixels:13.1f} % {views:6.2f} {100 * other[0]:14.1f} % {other[1]:6.2f}")
    ratio = speeds["varied"] / speeds["plain"]
    print(json.dumps({**{f"{name}_views_a_second": round(speed, 2) for name, speed in speeds.items()},
                      "varied_over_plain": round(ratio, 2), "classes": results}))  # fmt: skip


if __name__ == "__main__":
    main()
