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
"""RefCOCO, RefCOCO+, RefCOCOg and GRefCOCO: expressions for objects in COCO's images."""

import json
import pickle
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..object_tasks_densemllm import Foreground
from ..targets_densemllm import IGNORE_INDEX
from ..tasks_densemllm import Panoptic
from .base import Facts, Format, FormatSamples, check_split, find_file
from .coco import paint_order
from .coco_index import CocoIndex, image_size, index_json, object_mask


# By data set: who split it, splits, and how its file of expressions is called.
SPLITS = {
    "refcoco": ("unc", ("train", "validation", "testA", "testB"), "refs"),
    "refcoco+": ("unc", ("train", "validation", "testA", "testB"), "refs"),
    "refcocog": ("umd", ("train", "validation", "test"), "refs"),
    "grefcoco": ("unc", ("train", "validation", "testA", "testB"), "grefs"),
}
OFFICIAL = {"validation": "val"}  # names of splits in the files, where not ours
SENTENCES = ("each", "image")
# Where the images of 2014 are beside the annotations, from the folder of a data set up.
IMAGE_FOLDERS = ("train2014", "images/train2014", "images/mscoco/images/train2014", "coco/train2014")
PLAIN_TYPES = {(module, cls.__name__): cls for module in ("builtins", "__builtin__") for cls in (set, frozenset)} | {
    ("collections", "OrderedDict"): OrderedDict
}


class _PlainUnpickler(pickle.Unpickler):
    """Reads pickles of plain containers, texts and numbers. Whatever else a pickle names, which could be any code, is
    refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PLAIN_TYPES:
            raise pickle.UnpicklingError(f"it has {module}.{name}, which is no plain container, text or number")
        return PLAIN_TYPES[module, name]


def read_plain_pickle(path: str | Path) -> Any:
    """What a pickle of plain containers, texts and numbers has, without running any code that it names.

    Args:
        path: of the file; byte strings of Python 2 are taken for UTF-8.

    Raises:
        ValueError: the pickle is damaged, or has something else.
    """
    try:
        with open(path, "rb") as file:
            return _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
    except OSError:
        raise
    except Exception as error:  # of a damaged file, pickle raises whatever its bytes lead to
        raise ValueError(f"{path} can't be read as a pickle of plain containers ({error})") from error


def open_refcoco(
    name: str,
    path: str,
    split: str,
    sentences: str = "each",
    split_by: str | None = None,
    images: str | None = None,
) -> FormatSamples:
    """Expressions and the objects of COCO that they name, from `refs(unc).p` or `.json` and `instances.json`.

    Args:
        name: of the data set: "refcoco", "refcoco+", "refcocog" or "grefcoco".
        path: folder with the two files, or the folder above it, in which it is called `name`.
        split: "train", "validation", and "testA" and "testB", or "test" of RefCOCOg.
        sentences: `"each"`: every sentence is a sample, as all published figures count them, with `mask` and
            `expression`; the mask is empty where an expression of GRefCOCO names nothing. `"image"`: every image is
            one, with all its `expressions`, of which training draws one each time; where named objects overlap, the
            smaller ones win. Not for GRefCOCO, whose expressions name several objects.
        split_by: "unc", "umd" or "google", in the name of the file; "umd" for RefCOCOg, else "unc".
        images: folder of COCO's `train2014`; else looked for in `train2014`, `images/train2014`,
            `images/mscoco/images/train2014` and `coco/train2014` of the data set's folder and of the two above.

    Raises:
        ValueError: a file or folder that lacks, or a file with something else.
    """
    where = f"{name}:{path}"
    official, splits, prefix = SPLITS[name]
    check_split(split, splits, where)
    if sentences not in SENTENCES or (sentences == "image" and name == "grefcoco"):
        accepted = SENTENCES[:1] if name == "grefcoco" else SENTENCES
        raise ValueError(f"`sentences` must be one of {accepted} for {where}, got {sentences!r}")
    root = Path(path)
    stem = f"{prefix}({split_by or official})"
    if not any((root / f"{stem}{suffix}").is_file() for suffix in (".p", ".json")) and (root / name).is_dir():
        root = root / name
    refs_file = find_file(root, (f"{stem}.p", f"{stem}.json"), where)
    folder = _find_images(root, where) if images is None else Path(images)
    if not folder.is_dir():
        raise ValueError(f"{where}: the folder of the images, {folder}, isn't there")
    index = index_json(find_file(root, ("instances.json",), where), where)
    rows = _read_rows(refs_file, index, OFFICIAL.get(split, split), where)
    if not rows:
        raise ValueError(f"{where}: {refs_file} has no expressions of the split {split!r}")
    if sentences == "each":
        read = partial(_read_each, index, str(folder), where)
        return FormatSamples(rows, read, ("image", Foreground.column, "expression"), Facts())
    by_image: dict[int, list[tuple[tuple[int, ...], str]]] = {}
    for place, ids, text in rows:
        by_image.setdefault(place, []).append((ids, text))
    columns = ("image", Panoptic.column, "expressions", "expression_instances")
    return FormatSamples(list(by_image.items()), partial(_read_image, index, str(folder), where), columns, Facts())


def _find_images(root: Path, where: str) -> Path:
    root = root.absolute()
    for folder in (root, *root.parents[:2]):
        for name in IMAGE_FOLDERS:
            if (folder / name).is_dir():
                return folder / name
    raise ValueError(
        f"{where}: {root} or one of the two folders above it must have COCO's images in one of {IMAGE_FOLDERS}, or "
        "else `images` must be given"
    )


def _read_rows(file: Path, index: CocoIndex, split: str, where: str) -> list[tuple[int, tuple[int, ...], str]]:
    """Each sentence of a split as its image's place, the ids of the annotations that it names, and its words."""
    if file.suffix == ".p":
        refs = read_plain_pickle(file)
    else:
        try:
            refs = json.loads(file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{where}: {file} must be a JSON file ({error})") from error
    rows = []
    try:
        for ref in refs:
            if ref["split"] != split:
                continue
            named = ref["ann_id"] if isinstance(ref["ann_id"], (list, tuple)) else [ref["ann_id"]]
            ids = tuple(number for number in named if number is not None and number >= 0)  # -1: none
            place = index.places[ref["image_id"]]
            missing = set(ids) - set(index.ids[index.firsts[place] : index.firsts[place + 1]].tolist())
            if missing:
                raise ValueError(f"{where}: {index.path} lacks the annotations {sorted(missing)[:10]}")
            texts = (sentence.get("sent") or sentence["raw"] for sentence in ref["sentences"])
            rows += [(place, ids, text) for text in texts if text.strip()]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{where}: {file} must be a list of dicts with split, image_id, ann_id and sentences, of images that "
            f"{index.path} has ({error!r})"
        ) from error
    return rows


def _read_each(
    index: CocoIndex, images: str, where: str, row: tuple[int, tuple[int, ...], str], wanted: frozenset[str]
) -> dict[str, Any]:
    place, ids, expression = row
    path = str(Path(images) / index.files[place])
    sample = {"image": path, "expression": expression}
    if Foreground.column in wanted:
        size = image_size(index, place, path)
        mask = np.zeros(size, dtype=bool)
        for annotation in index.annotations_of(place, ids):
            mask |= object_mask(annotation, *size, where)
        sample[Foreground.column] = mask
    return sample


def _read_image(
    index: CocoIndex, images: str, where: str, row: tuple[int, list[tuple[tuple[int, ...], str]]], wanted: frozenset
) -> dict[str, Any]:
    place, named = row
    path = str(Path(images) / index.files[place])
    if wanted <= {"image"}:
        return {"image": path}
    size = image_size(index, place, path)
    numbers = np.zeros(size, dtype=np.int32)
    annotations = index.annotations_of(place, tuple({key for ids, _ in named for key in ids}))
    of_ids = {}
    for mask, annotation, number in paint_order(annotations, *size, IGNORE_INDEX, where):
        numbers[mask] = of_ids[annotation["id"]] = number
    seen = set(np.unique(numbers).tolist())  # what is covered altogether can't be asked for
    pairs = [(text, of_ids[ids[0]]) for ids, text in named if of_ids[ids[0]] in seen]
    return {
        "image": path,
        Panoptic.column: numbers,
        "expressions": [text for text, _ in pairs],
        "expression_instances": [number for _, number in pairs],
    }


FORMATS: dict[str, Format] = {
    name: Format(
        partial(open_refcoco, name),
        splits,
        "expressions for objects of COCO, and some for none"
        if prefix == "grefs"
        else "expressions for objects of COCO",
        ("sentences", "split_by", "images"),
    )
    for name, (_, splits, prefix) in SPLITS.items()
}


__all__ = ["FORMATS", "open_refcoco", "read_plain_pickle"]
