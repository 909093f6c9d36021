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
r"""From a start to the first sample of a data set of COCO's size: pycocotools' index against ours.

    python benchmarks/coco_json.py [--quick]

Writes a synthetic `instances_train2017.json` with as many images and annotations as COCO has (118,000 and 860,000,
polygons of COCO's length) into a folder that is deleted afterwards, and opens it each way in a process of its own: all
annotations as Python's dicts, as `pycocotools.coco.COCO` has them, and the index of `formats/coco_index.py`, which
knows where they stand. Either way the objects of one image are painted at the end, and the two maps have to agree.
Both import the same beforehand, whose time and memory are said by themselves. Ends with one line of JSON: seconds
from the start and for reading alone, peak memory, and ratios of what reading takes beyond the imports.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image


HEIGHT, WIDTH = 480, 640
NUM_CLASSES = 80
POINTS = 26  # of a polygon: what makes the file as large as COCO's
SHAPES = 1_000  # outlines, of which each annotation has one
BATCH = 10_000  # annotations written together


def outlines() -> list[str]:
    """Polygons around a centre, as JSON."""
    generator = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    radii = generator.uniform(20, 90, (SHAPES, 1)) * generator.uniform(0.8, 1.2, (SHAPES, POINTS))
    centers = generator.uniform((100, 100), (WIDTH - 100, HEIGHT - 100), (SHAPES, 2))
    points = np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=-1) + centers[:, None]
    return [json.dumps(shape.reshape(1, -1).round(2).tolist()) for shape in points]


def write_tree(root: Path, num_images: int, num_annotations: int) -> Path:
    """The JSON file, and the one image that is looked at."""
    (root / "annotations").mkdir()
    (root / "train2017").mkdir()
    images = [
        {
            "license": 3,
            "file_name": f"{number:012d}.jpg",
            "coco_url": f"http://images.cocodataset.org/train2017/{number:012d}.jpg",
            "height": HEIGHT,
            "width": WIDTH,
            "date_captured": "2013-11-14 11:18:45",
            "id": number,
        }
        for number in range(num_images)
    ]
    categories = [{"supercategory": "thing", "id": key, "name": f"thing {key}"} for key in range(1, NUM_CLASSES + 1)]
    shapes, generator = outlines(), np.random.default_rng(1)
    owners = generator.integers(0, num_images, num_annotations)
    owners[0] = 0
    path = root / "annotations" / "instances_train2017.json"
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'{{"info": {{"year": 2017}}, "licenses": [], "images": {json.dumps(images)}, "annotations": [')
        for first in range(0, num_annotations, BATCH):
            texts = [
                f'{{"segmentation": {shapes[number % SHAPES]}, "area": {1000 + number / 7:.4f}, "iscrowd": 0, '
                f'"image_id": {owners[number]}, "bbox": [100.5, 80.25, 51.13, 62.47], '
                f'"category_id": {number % NUM_CLASSES + 1}, "id": {number}}}'
                for number in range(first, min(first + BATCH, num_annotations))
            ]
            file.write((", " if first else "") + ", ".join(texts))
        file.write(f'], "categories": {json.dumps(categories)}}}')
    PIL.Image.new("RGB", (WIDTH, HEIGHT)).save(root / "train2017" / images[0]["file_name"])
    return path


def first_with_pycocotools(root: Path) -> np.ndarray:
    """The class map of the first image, from pycocotools' index."""
    from pycocotools.coco import COCO

    coco = COCO(root / "annotations" / "instances_train2017.json")
    classes = np.full((HEIGHT, WIDTH), 255, dtype=np.int32)
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=coco.getImgIds()[:1]))
    masks = [coco.annToMask(annotation) for annotation in annotations]
    for place in sorted(range(len(masks)), key=lambda place: -int(masks[place].sum())):
        classes[masks[place] > 0] = annotations[place]["category_id"]
    return classes


def first_with_own(root: Path) -> np.ndarray:
    """The class map of the first image, read as a checked sample of `coco:PATH`."""
    from densemllm.formats.folders import load_samples
    from densemllm.training.samples import read_sample

    data = load_samples(f"coco:{root}")
    return read_sample(data[0], id2label=data.facts.id2label)["segmentation"]


def import_all() -> None:
    """What either way needs, and no data."""
    import pycocotools.coco  # noqa: F401

    import densemllm.formats.coco
    import densemllm.formats.folders
    import densemllm.training.samples  # noqa: F401


WAYS = {"pycocotools": first_with_pycocotools, "densemllm": first_with_own}


def peak_gb() -> float:
    """Peak memory of this process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def measured(way: str, root: Path, queue) -> None:
    """Seconds and peak GB of the imports, the same until the first sample is there, and its map."""
    start = time.perf_counter()
    import_all()
    imported = (time.perf_counter() - start, peak_gb())
    classes = WAYS[way](root)
    queue.put((imported, (time.perf_counter() - start, peak_gb()), classes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--annotations", type=int, default=860_000)
    parser.add_argument("--quick", action="store_true", help="a twentieth of it, under a minute")
    args = parser.parse_args()
    if args.quick:
        args.images, args.annotations = args.images // 20, args.annotations // 20
    context = multiprocessing.get_context("spawn")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        size = write_tree(Path(folder), args.images, args.annotations).stat().st_size
        print(f"{args.images} images, {args.annotations} annotations, {size / 1e6:.0f} MB")
        for way in WAYS:
            queue = context.Queue()
            process = context.Process(target=measured, args=(way, Path(folder), queue))
            process.start()
            found[way] = queue.get()
            process.join()
            (before, held), (spent, peak), _ = found[way]
            print(
                f"  {way:12} {spent:6.2f} s, {spent - before:6.2f} of them reading; {peak:5.2f} GB, imports {held:.2f}"
            )
    np.testing.assert_array_equal(found["densemllm"][2], found["pycocotools"][2])
    results = {"megabytes": size / 1e6}
    for way, ((before, held), (spent, peak), _) in found.items():
        results |= {f"{way}_seconds": spent, f"{way}_reading_seconds": spent - before}
        results |= {f"{way}_peak_gb": peak, f"{way}_reading_gb": peak - held}
    for what in ("reading_seconds", "reading_gb"):
        results[f"pycocotools_over_densemllm_{what}"] = results[f"pycocotools_{what}"] / results[f"densemllm_{what}"]
    print("\n" + json.dumps({name: round(value, 3) for name, value in results.items()}))


if __name__ == "__main__":
    main()
