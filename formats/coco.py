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
"""COCO: objects (`instances_*.json`), panoptic maps, COCO-Stuff, and any JSON file of COCO's kind."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from transformers.utils import logging

from ..targets_densemllm import IGNORE_INDEX
from ..tasks_densemllm import Classes, Panoptic
from ..tokens_densemllm import BACKGROUND_LABEL
from .base import Facts, Format, FormatSamples, check_split, find_file, find_folder
from .coco_index import CocoIndex, image_size, index_json, number_objects, object_mask


logger = logging.get_logger(__name__)

SPLITS = ("train", "validation")
SHORT = {"train": "train", "validation": "val"}
YEARS = ("2017", "2014")
COLUMNS = ("image", Classes.column, Panoptic.column)
BACKGROUNDS = ("ignore", "class")
# Folders that other tools make for a split, with the annotations beside the images.
OWN_FOLDERS = {"validation": ("validation", "valid", "val")}
OWN_FILES = ("_annotations.coco.json", "annotations.json", "instances.json")
# The 182 names of COCO-Stuff. The value in a map is the place here, an id of COCO less 1.
STUFF_NAMES = tuple(
    name.strip()
    for name in """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
    street sign,
    stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, hat, backpack,
    umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
    baseball glove, skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife, spoon, bowl,
    banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed,
    mirror, dining table, window, desk, toilet, door, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven,
    toaster, sink, refrigerator, blender, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, hair brush,
    banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other,
    ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence,
    floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other,
    grass, gravel, ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin,
    net, paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock,
    roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw,
    structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other,
    wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood""".split(
        ","
    )
)
# Of these, COCO never annotated any: 171 are left.
NEVER_ANNOTATED = frozenset(
    "street sign, hat, shoe, eye glasses, plate, mirror, window, desk, door, blender, hair brush".split(", ")
)


# ---- objects ----


def open_coco(path: str, split: str, background: str = "ignore", images: str | None = None) -> FormatSamples:
    """COCO's objects: `annotations/instances_{train,val}2017.json` (or 2014) and the images' folder `train2017`.

    Every object is painted into `segmentation` with its class's official id (1 to 90, 80 of them) and into
    `instances` with a number; large ones first, so that what lies on them stays visible. The class of a crowd is
    known, its objects aren't: they are ignored in `instances`.

    Args:
        path: folder of the data set.
        split: "train" or "validation".
        background: what pixels without an object are: `"ignore"` leaves them out, as they are stuff, which this file
            doesn't annotate; `"class"` makes them a class of their own, `<OTHERS>`.
        images: folder of the images, where it is another one.

    Raises:
        ValueError: a file or folder that lacks, or a file with something else.
    """
    where = f"coco:{path}"
    return _open_objects(*_find_instances(path, split, images, where), background, where)


def _find_instances(path: str, split: str, images: str | None, where: str) -> tuple[Path, Path]:
    """The file of the objects of a split, and the folder of its images."""
    root, short = Path(path), SHORT[check_split(split, SPLITS, where)]
    file = find_file(
        root,
        [f"{folder}instances_{short}{year}.json" for year in YEARS for folder in ("annotations/", "")],
        where,
    )
    return file, Path(images) if images else _images_of_split(root, short, file.stem[-4:], where)


def open_coco_json(path: str, split: str, background: str = "ignore", images: str | None = None) -> FormatSamples:
    """Any JSON file with COCO's `images`, `annotations` and `categories`.

    Args:
        path: the file, in whose name `{split}` stands for the split; or a folder with a folder for each split
            (`train`, and `validation`, `valid` or `val`) that has its `_annotations.coco.json`, `annotations.json` or
            `instances.json` beside its images. A file without `{split}` is all there is, for whatever split.
        split: name of the split.
        background: see [`open_coco`].
        images: folder of the images; else they are in the file's folder, in `images` there or beside it, or in the
            folder above.

    Raises:
        ValueError: see [`open_coco`].
    """
    where = f"coco_json:{path}"
    file = Path(path.replace("{split}", split))
    if file.is_dir():
        folders = [name for name in OWN_FOLDERS.get(split, (split,)) if (file / name).is_dir()]
        if folders:
            file = find_file(file / folders[0], OWN_FILES, where)
        elif split != "train":
            raise ValueError(f"`split` must be one of the folders of {where}, got {split!r}")
        else:
            file = find_file(file, OWN_FILES, where)
    elif not file.is_file():
        raise ValueError(f"{where}: {file} must be a JSON file, or a folder with one for each split")
    elif split != "train" and "{split}" not in path:
        logger.warning(f"{where} has no splits: all of it is taken for {split!r}")
    return _open_objects(file, None if images is None else Path(images), background, where)


def _open_objects(file: Path, images: Path | None, background: str, where: str) -> FormatSamples:
    if background not in BACKGROUNDS:
        raise ValueError(f"`background` must be one of {BACKGROUNDS}, got {background!r}")
    index = index_json(file, where)
    boxes = len(index.ids) - index.outlined
    if boxes and not index.outlined:
        raise ValueError(f"{where}: {file} must have the `segmentation` of its objects; it has only boxes")
    if boxes:
        logger.warning(f"{where}: {boxes} of {len(index.ids)} objects have no `segmentation`, and are left out")
    if images is None:
        images = _find_images(file, index.files[0], where)
    elif not images.is_dir():
        raise ValueError(f"{where}: the folder of the images, {images}, isn't there")
    id2label = index.id2label
    ignore_index = -1 if IGNORE_INDEX in id2label else IGNORE_INDEX  # a large set may have that class
    things = tuple(id2label.values())
    rest = ignore_index
    if background == "class":
        rest = 0 if 0 not in id2label else max(id2label) + 1
        if rest == ignore_index:
            rest += 1
        id2label = {rest: BACKGROUND_LABEL, **id2label}
    read = partial(_read_objects, index, str(images), rest, ignore_index, where)
    facts = Facts(id2label, ignore_index, thing_labels=things)
    return FormatSamples(range(len(index.files)), read, COLUMNS, facts)


def _read_objects(
    index: CocoIndex, images: str, rest: int, ignore_index: int, where: str, place: int, wanted: frozenset[str]
) -> dict[str, Any]:
    path = str(Path(images) / index.files[place])
    if not wanted & {Classes.column, Panoptic.column}:
        return {"image": path}
    height, width = image_size(index, place, path)
    classes = np.full((height, width), rest, dtype=np.int32)
    numbers = np.zeros((height, width), dtype=np.int32)
    annotations = index.annotations(place)
    for mask, annotation, number in paint_order(annotations, height, width, ignore_index, where):
        classes[mask] = annotation["category_id"]
        numbers[mask] = ignore_index if annotation.get("iscrowd") else number
    return {"image": path, Classes.column: classes, Panoptic.column: numbers}


def paint_order(
    annotations: list[dict[str, Any]], height: int, width: int, ignore_index: int, where: str
) -> Iterator[tuple[np.ndarray, dict[str, Any], int]]:
    """Objects in the order in which they are painted over each other: crowds, then from the largest to the smallest.

    Returns:
        Of each object its pixels `[height, width]`, its annotation, and its number: from 1 on as they stand in the
        file, but not `ignore_index`.
    """
    numbers = number_objects(len(annotations), ignore_index)
    masks = [object_mask(annotation, height, width, where) for annotation in annotations]
    objects = zip(masks, annotations, numbers, strict=True)
    return iter(sorted(objects, key=lambda entry: (not entry[1].get("iscrowd"), -entry[0].sum())))


# ---- boxes ----


def open_coco_detection(path: str, split: str, images: str | None = None) -> FormatSamples:
    """COCO's objects as boxes: `objects` of every image, crowds marked, from the files of [`open_coco`]. For an
    evaluation: nothing is learned from boxes.

    Args:
        path, split, images: see [`open_coco`].

    Raises:
        ValueError: a file or folder that lacks, or a file with something else.
    """
    where = f"coco_detection:{path}"
    file, folder = _find_instances(path, split, images, where)
    if not folder.is_dir():
        raise ValueError(f"{where}: the folder of the images, {folder}, isn't there")
    index = index_json(file, where)
    read = partial(_read_boxes, index, str(folder), where)
    return FormatSamples(range(len(index.files)), read, ("image", "objects"), Facts(index.id2label))


def _read_boxes(index: CocoIndex, images: str, where: str, place: int, wanted: frozenset[str]) -> dict[str, Any]:
    sample: dict[str, Any] = {"image": str(Path(images) / index.files[place])}
    if "objects" in wanted:
        annotations = index.annotations(place)
        try:
            sample["objects"] = {
                "bbox": [annotation["bbox"] for annotation in annotations],
                "category": [annotation["category_id"] for annotation in annotations],
                "area": [annotation.get("area") for annotation in annotations],
                "iscrowd": [annotation.get("iscrowd", 0) for annotation in annotations],
            }
        except KeyError as error:
            raise ValueError(
                f"{where}: {index.path} has an annotation of {index.files[place]} without {error}"
            ) from error
    return sample


# ---- panoptic ----


def open_coco_panoptic(path: str, split: str, images: str | None = None) -> FormatSamples:
    """COCO's panoptic maps: `annotations/panoptic_{train,val}2017.json` and the folder of the same name with PNG files
    in which a colour is a segment. Things and stuff are in `segmentation`, 133 classes by their official ids; things
    are in `instances`, numbered in the order of the JSON file. Crowds are ignored in both.

    Args:
        path, split, images: see [`open_coco`].

    Raises:
        ValueError: a file or folder that lacks, or a file with something else.
    """
    root, short = Path(path), SHORT[check_split(split, SPLITS, f"coco_panoptic:{path}")]
    where = f"coco_panoptic:{path}"
    file = find_file(root, [f"{folder}panoptic_{short}2017.json" for folder in ("annotations/", "")], where)
    maps = find_folder(file.parent, (file.stem,), where)
    folder = Path(images) if images else _images_of_split(root, short, "2017", where)
    index = index_json(file, where)
    things = {category["id"] for category in index.categories if category.get("isthing")}
    id2label = index.id2label
    rows = np.flatnonzero(np.diff(index.firsts)).tolist()
    read = partial(_read_panoptic, index, str(folder), str(maps), frozenset(things), where)
    facts = Facts(id2label, thing_labels=tuple(id2label[key] for key in id2label if key in things))
    return FormatSamples(rows, read, COLUMNS, facts)


def _read_panoptic(
    index: CocoIndex, images: str, maps: str, things: frozenset[int], where: str, place: int, wanted: frozenset[str]
) -> dict[str, Any]:
    path = str(Path(images) / index.files[place])
    if not wanted & {Classes.column, Panoptic.column}:
        return {"image": path}
    annotation = index.annotations(place)[0]
    file = Path(maps) / annotation["file_name"]
    with PIL.Image.open(file) as image:
        colors = np.asarray(image.convert("RGB")).astype(np.int32)
    ids = colors @ np.array([1, 1 << 8, 1 << 16], dtype=np.int32)
    segments = annotation["segments_info"]
    things_here = [segment["id"] for segment in segments if segment["category_id"] in things]
    numbers = dict(zip(things_here, number_objects(len(things_here), IGNORE_INDEX), strict=True))
    values = {0: (IGNORE_INDEX, 0)}  # a colour of its own for what isn't annotated
    for segment in segments:
        is_crowd = segment.get("iscrowd")
        known = (segment["category_id"], numbers.get(segment["id"], 0))
        values[segment["id"]] = (IGNORE_INDEX, IGNORE_INDEX) if is_crowd else known
    present, inverse = np.unique(ids, return_inverse=True)
    unknown = sorted(set(present.tolist()) - set(values))
    if unknown:
        raise ValueError(f"{where}: {file} has the segments {unknown[:10]}, which {index.path} lacks")
    table = np.array([values[key] for key in present.tolist()], dtype=np.int32)
    classes, objects = table[inverse.reshape(ids.shape)].transpose(2, 0, 1)
    return {"image": path, Classes.column: classes, Panoptic.column: objects}


# ---- COCO-Stuff ----


def open_coco_stuff(path: str, split: str, names: str = "annotated", images: str | None = None) -> FormatSamples:
    """COCO-Stuff's maps of things and stuff: `stuffthingmaps/{train,val}2017` (or `stuffthingmaps_trainval2017`, or
    `annotations`) with PNG files, in which a value is an official id less 1, and 255 isn't annotated.

    Args:
        path, split, images: see [`open_coco`].
        names: `"annotated"`: the 171 classes that occur; `"all"`: 182, with the 11 of COCO that nobody annotated.

    Raises:
        ValueError: a folder that lacks.
    """
    if names not in ("annotated", "all"):
        raise ValueError(f"`names` must be 'annotated' or 'all', got {names!r}")
    root, short = Path(path), SHORT[check_split(split, SPLITS, f"coco_stuff:{path}")]
    where = f"coco_stuff:{path}"
    tops = ("stuffthingmaps", "stuffthingmaps_trainval2017", "annotations")
    maps = find_folder(root, [f"{top}/{short}2017" for top in tops], where)
    folder = Path(images) if images else _images_of_split(root, short, "2017", where)
    stems = sorted(file.stem for file in maps.glob("*.png") if not file.stem.endswith("_labelTrainIds"))
    if not stems:
        raise ValueError(f"{where}: {maps} must have PNG files, named as the images are")
    id2label = {value: name for value, name in enumerate(STUFF_NAMES) if names == "all" or name not in NEVER_ANNOTATED}
    return FormatSamples(
        stems, partial(_read_stuff, str(folder), str(maps)), ("image", Classes.column), Facts(id2label)
    )


def _read_stuff(images: str, maps: str, stem: str, wanted: frozenset[str]) -> dict[str, Any]:
    return {"image": str(Path(images) / f"{stem}.jpg"), Classes.column: str(Path(maps) / f"{stem}.png")}


# ---- folders ----


def _images_of_split(root: Path, short: str, year: str, where: str) -> Path:
    return find_folder(root, (f"{short}{year}", f"images/{short}{year}"), where)


def _find_images(file: Path, first: str, where: str) -> Path:
    """The folder in which the first image of a JSON file is."""
    folders: Iterable[Path] = (
        file.parent, file.parent / "images", file.parent.parent / "images", file.parent.parent,
    )  # fmt: skip
    found = next((folder for folder in folders if (folder / first).is_file()), None)
    if found is None:
        raise ValueError(
            f"{where}: the image {first} must be in one of {[str(folder) for folder in folders]}, or in the folder "
            "`images`, which may be given"
        )
    return found


FORMATS: dict[str, Format] = {
    "coco": Format(open_coco, SPLITS, "COCO's objects: polygons, run lengths, crowds", ("background", "images")),
    "coco_detection": Format(open_coco_detection, SPLITS, "COCO's objects as boxes, crowds marked", ("images",)),
    "coco_json": Format(open_coco_json, None, "any JSON file of COCO's kind", ("background", "images")),
    "coco_panoptic": Format(open_coco_panoptic, SPLITS, "COCO's panoptic maps, things and stuff", ("images",)),
    "coco_stuff": Format(open_coco_stuff, SPLITS, "COCO-Stuff's maps of 171 classes", ("names", "images")),
}


__all__ = [
    "FORMATS",
    "NEVER_ANNOTATED",
    "STUFF_NAMES",
    "open_coco",
    "open_coco_detection",
    "open_coco_json",
    "open_coco_panoptic",
    "open_coco_stuff",
    "paint_order",
]
