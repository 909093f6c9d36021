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

"""Annotated samples: from data sets of any kind, checked, augmented, mixed, and made into batches for training.

A sample is a dict. `image` is needed, and any of the others supervise it, all at once:

| column | type | meaning |
|---|---|---|
| `image` | picture | what the model sees |
| `segmentation` | picture or integers `[H, W]` | class ids, keys of the source's `id2label`, or `ignore_index` (255) |
| `depth` | metres, floats `[H, W]`; or a picture or other units, and `depth_scale`, metres a unit | 0 is invalid |
| `mask` | picture or booleans `[H, W]` | foreground: not 0, of shades of grey the brighter half; see [`read_mask`] |
| `expression` | string | names the object of `mask`; without it, `mask` is the picture's one foreground |
| `instances` | picture or integers `[H, W]` | numbers of objects |
| `expressions`, `expression_instances` | lists | names of objects in `instances`, see [`draw_expression`] |
| `messages` | list of `{"role", "content"}` | ordinary chat; every answer of the assistant is learned |
| `focal_length` | float, pixels | of `image`, for a depth range that has a focal length |

A picture is a PIL image, a path, or what the `Image` feature of `datasets` gives; a map may also be a file of numbers:
`.npy`, `.npz`, `.mat` (with scipy), TIFF. Maps have the upright image's size: see `maps_densemllm.py` for the rule of
EXIF orientations.
"""

import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import torch
from datasets import Dataset, DatasetDict, Image, IterableDataset, config, load_dataset, load_from_disk
from datasets.distributed import split_dataset_by_node
from datasets.fingerprint import Hasher
from transformers.utils import logging

from ..image_processing_densemllm import DenseMLLMImageProcessor
from ..prediction_densemllm import crop_box
from ..processing_densemllm import (
    TASKS,
    DenseMLLMProcessor,
    check_ignore_index,
    nearest_resize,
    present_values,
    read_parts,
)
from .maps import (
    IGNORE_INDEX,
    MAPS,
    CorruptFileError,
    Samples,
    open_file,
    read_mask,
    read_metres,
    upright_sample,
)


logger = logging.get_logger(__name__)

COLUMNS = ("image", *MAPS, "expression", "expressions", "expression_instances", "messages", "focal_length")
LOOKED_AT = 100  # rows of class maps, before any is learned
LARGE_IGNORED_SHARE = 0.5
# Files that systems leave in folders, and folders of such.
LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir"}
FILE_KINDS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv"}
PICTURES = DenseMLLMImageProcessor()  # transparent and 16-bit pictures are trained on as they are predicted on
SIDES = re.compile(r"\b(left|right)(most|hand|ward|wards)?\b", re.IGNORECASE)
COLORS = re.compile(
    r"\b(colou?rs?|coloured|colored|black|white|gr[ae]y|red|orange|yellow|green|blue|purple|violet|pink|brown|beige|"
    r"dark|light|bright)(er|est|ish)?\b",
    re.IGNORECASE,
)


@dataclass
class DenseSource:
    """One data set of a mixture.

    Args:
        data: sequence of samples, or an `IterableDataset` of `datasets` for [`DenseIterableDataset`].
        weight: how often its samples come, against the others' weights. `None` in all sources: as often as they are.
        id2label: class id to name, for `segmentation`.
        depth_scale: metres a unit of `depth`. `None`: floats are metres, and integers are refused.
        depth_range: row of the processor's `depth_ranges`; its default row where left out.
        columns: names of the columns to learn from; all of the schema where left out. One data set can so be several
            sources, such as one without expressions, which change what the vision tokens see.
        ignore_index: value of `segmentation` where it isn't annotated; no class of `id2label`. With 255 as a class,
            take another one, such as -1, which no image can have.
    """

    data: Samples | IterableDataset
    weight: float | None = None
    id2label: dict[int, str] | None = None
    depth_scale: float | None = None
    depth_range: str | None = None
    columns: Sequence[str] | None = None
    ignore_index: int = IGNORE_INDEX

    def __post_init__(self) -> None:
        check_ignore_index(self.ignore_index, self.id2label)
        if self.depth_scale is not None and not 0 < self.depth_scale < float("inf"):
            raise ValueError(f"`depth_scale` must be a number of metres > 0, got {self.depth_scale}")
        if self.columns is not None and ("image" not in self.columns or set(self.columns) - set(COLUMNS)):
            raise ValueError(f"`columns` must contain 'image' and be some of {COLUMNS}, got {self.columns}")


@dataclass
class Augmentation:
    """Changes of image and maps together. A sample with `messages` keeps its geometry, as its text may speak of
    places and of what there is; one with an `expression` isn't cropped, and isn't mirrored if that speaks of sides.

    Args:
        scale: lowest and highest factor of a random resize. Depth is divided by it: a larger picture of the same
            things is what the same camera sees from nearer.
        crop_size: `(height, width)` in pixels of a random crop; smaller pictures stay as they are.
        flip_probability: of mirroring left and right.
        color_jitter: brightness, contrast and saturation change by a factor of up to 1 plus or minus this, but where
            `expression` or `messages` speak of colours.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    crop_size: tuple[int, int] | None = None
    flip_probability: float = 0.0
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < float("inf"):
            raise ValueError(f"`scale` must be two factors, 0 < lowest <= highest, got {self.scale}")
        if self.crop_size is not None and (len(self.crop_size) != 2 or min(self.crop_size) < 1):
            raise ValueError(f"`crop_size` must be (height, width) in pixels, got {self.crop_size}")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"`flip_probability` must be in [0, 1], got {self.flip_probability}")
        if not 0 <= self.color_jitter < 1:
            raise ValueError(f"`color_jitter` must be in [0, 1), got {self.color_jitter}")

    def draw_scale(self, rng: np.random.Generator) -> float:
        """The factor of the random resize: what a call draws first from its generator."""
        return float(rng.uniform(*self.scale))

    def __call__(self, sample: dict, rng: np.random.Generator) -> dict:
        """A changed copy of a sample of [`read_sample`]."""
        sample = dict(sample)
        factor = self.draw_scale(rng)
        expression = sample.get("expression")
        said = [_text_of(message["content"]) for message in sample.get("messages") or ()]
        if self.color_jitter and not any(COLORS.search(text) for text in (expression or "", *said)):
            for enhance in (PIL.ImageEnhance.Brightness, PIL.ImageEnhance.Contrast, PIL.ImageEnhance.Color):
                sample["image"] = enhance(sample["image"]).enhance(1 + self.color_jitter * rng.uniform(-1, 1))
        if sample.get("messages"):
            return sample
        if self.scale != (1.0, 1.0):
            image = sample["image"]
            height, width = (max(1, round(edge * factor)) for edge in (image.height, image.width))
            sample["image"] = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
            _change_maps(sample, lambda values: nearest_resize(values, height, width))
            if sample.get("depth") is not None:
                sample["depth"] = sample["depth"] / np.float32(factor)
        if self.crop_size is not None and expression is None:
            image = sample["image"]
            height, width = min(self.crop_size[0], image.height), min(self.crop_size[1], image.width)
            top, left = rng.integers(image.height - height + 1), rng.integers(image.width - width + 1)
            sample["image"] = image.crop((left, top, left + width, top + height))
            _change_maps(sample, lambda values: values[top : top + height, left : left + width])
        if rng.random() < self.flip_probability and not SIDES.search(expression or ""):
            sample["image"] = PIL.ImageOps.mirror(sample["image"])
            _change_maps(sample, lambda values: values[:, ::-1])
        return sample


def draw_expression(sample: dict, rng: np.random.Generator, ignore_index: int = IGNORE_INDEX) -> dict:
    """A copy of a sample with one of its `expressions` as its `expression`, and the `mask` of what that names. Data
    sets do so anew each time with an augmentation; without one, where there is no `expression`. Where `instances` is
    `ignore_index`, and no expression names that number, the mask isn't annotated (-1)."""
    sample = dict(sample)
    instances, expressions, numbers = (
        sample.pop(column, None) for column in ("instances", "expressions", "expression_instances")
    )
    if instances is not None and expressions is not None and len(expressions):
        place = int(rng.integers(len(expressions)))
        mask, unknown = instances == numbers[place], instances == ignore_index
        if unknown.any() and ignore_index not in numbers:
            mask = np.where(unknown, -1, mask).astype(np.int8)
        sample |= {"expression": expressions[place], "mask": mask}
    return sample


def _change_maps(sample: dict, change) -> None:
    for column in MAPS:
        if sample.get(column) is not None:
            sample[column] = np.ascontiguousarray(change(sample[column]))


# ---- reading ----


def read_sample(
    row: dict,
    where: str = "sample",
    id2label: dict[int, str] | None = None,
    depth_scale: float | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> dict:
    """A row of a data set as a checked sample: an upright RGB image, `segmentation` as integers, `depth` as float32
    metres, `mask` as booleans (or as [`read_mask`] says), all of one size. Columns that the schema doesn't know are
    left out.

    Args:
        row: the row; see this module's table.
        where: how messages name it.
        id2label, depth_scale, ignore_index: see [`DenseSource`].

    Raises:
        CorruptFileError: a picture can't be read.
        ValueError: anything else that doesn't follow the schema; the message names row and column.
    """
    check_ignore_index(ignore_index, id2label)
    sample = {column: row[column] for column in COLUMNS if row.get(column) is not None}
    if "image" not in sample:
        raise ValueError(f"{where} has no `image`; its columns are {sorted(row)}")
    sample = upright_sample(sample, where, PICTURES)
    if "segmentation" in sample:
        _check_segmentation(sample["segmentation"], id2label, ignore_index, f"{where}, column `segmentation`")
    if "depth" in sample:
        sample["depth"] = read_metres(sample["depth"], depth_scale, f"{where}, column `depth`")
    if "mask" in sample:
        sample["mask"] = read_mask(sample["mask"], ignore_index)
    if "expressions" in sample:
        _check_expressions(sample, where)
    if "expression" in sample:
        if not isinstance(sample["expression"], str) or not sample["expression"].strip():
            raise ValueError(f"{where}, column `expression`: it must be a text, got {sample['expression']!r}")
        if "mask" not in sample:
            raise ValueError(f"{where} has an `expression` but no `mask` of what it names")
    if "messages" in sample:
        _check_messages(sample["messages"], f"{where}, column `messages`")
        try:
            sample["messages"] = read_parts(sample["messages"])
        except ValueError as error:
            raise ValueError(f"{where}, column `messages`: {error}") from None
    focal_length = sample.get("focal_length")
    if focal_length is not None and not (isinstance(focal_length, (int, float)) and 0 < focal_length < float("inf")):
        raise ValueError(f"{where}, column `focal_length`: it must be a number of pixels > 0, got {focal_length!r}")
    return sample


def _headers(source: DenseSource) -> tuple[Sequence, list[str]]:
    """The rows of a source, and the names of the columns that tell the size of a picture and whether it is changed;
    without the others where that saves reading them."""
    data, columns = source.data, source.columns or COLUMNS
    wanted = [name for name in ("image", "focal_length", "messages") if name in columns]
    if hasattr(data, "select_columns"):
        wanted = [name for name in wanted if name in data.column_names]
        data = data.select_columns(wanted)
    return data, wanted


def _picture_area(row: dict, focal_length: float | None) -> float:
    """Pixels of a row's picture at the given focal length, 0 where it can't be read."""
    value = row["image"]
    if isinstance(value, np.ndarray):
        height, width = value.shape[:2]
    else:
        try:
            if isinstance(value, dict):
                value = BytesIO(value["bytes"]) if value.get("bytes") is not None else value["path"]
            picture = value if isinstance(value, PIL.Image.Image) else PIL.Image.open(value)
            width, height = picture.size
        except Exception:  # whatever it is: reading the row will tell what is wrong with it
            return 0.0
    own = row.get("focal_length")
    usable = isinstance(own, (int, float)) and 0 < own < float("inf")  # if not, reading the row will tell
    scale = focal_length / own if usable and focal_length is not None else 1.0
    return width * height * scale**2


def _check_expressions(sample: dict, where: str) -> None:
    texts, numbers = sample["expressions"], sample.get("expression_instances")
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{where}, column `expressions`: it must be a list of texts, got {texts!r}")
    if "instances" not in sample or not np.issubdtype(sample["instances"].dtype, np.integer):
        raise ValueError(f"{where} has `expressions` but no `instances`, a map of integers that tells what they name")
    if numbers is None or len(numbers) != len(texts):
        raise ValueError(
            f"{where}, column `expression_instances`: it must have a number for each of {len(texts)} expressions, got "
            f"{numbers!r}"
        )
    missing = set(numbers) - set(np.unique(sample["instances"]).tolist())
    if missing:
        raise ValueError(f"{where}, column `expression_instances`: `instances` lacks {sorted(missing)}")


def _check_segmentation(values: np.ndarray, id2label: dict[int, str] | None, ignore_index: int, where: str) -> None:
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{where}: it must be integers, got {values.dtype}")
    if id2label is None:
        raise ValueError(f"{where}: `id2label` is needed, a dict from class id to name")
    unknown = set(present_values(values).tolist()) - set(id2label) - {ignore_index}
    if unknown and min(unknown) < 0:
        raise ValueError(
            f"{where}: class ids must be at least 0, or `ignore_index` = {ignore_index}, got {min(unknown)}"
        )
    if unknown:
        raise ValueError(
            f"{where}: it has the class ids {sorted(unknown)[:10]}, which `id2label` lacks, and which aren't "
            f"`ignore_index` = {ignore_index}"
        )


def _check_messages(messages, where: str) -> None:
    if not isinstance(messages, (list, tuple)) or not all(
        isinstance(message, dict) and {"role", "content"} <= set(message) for message in messages
    ):
        raise ValueError(f"{where}: it must be a list of dicts with `role` and `content`")
    roles = [message["role"] for message in messages if message["role"] != "system"]
    expected = [("user", "assistant")[index % 2] for index in range(len(roles))]
    if not roles or len(roles) % 2 or roles != expected:
        raise ValueError(f"{where}: user and assistant must take turns and the assistant have the last, got {roles}")


def load_samples(
    name: str, split: str = "train", streaming: bool = False, whole: bool = False
) -> Dataset | IterableDataset:
    """A split of a data set, its pictures not yet decoded.

    Args:
        name: a folder that `save_to_disk` wrote; a folder with `image/` (and `segmentation/`, `depth/`, `mask/` beside
            it, files of one sample having one stem, in the same sub-folder if there are any; in a folder with the
            split's name, if there is one); a file of rows (parquet, arrow, json, jsonl or csv), which is the split
            "train"; or whatever `datasets.load_dataset` takes: a Hub name, a folder of parquet files, an image folder
            with metadata...
        split: name of the split; "train" for data without splits.
        streaming: read while training; see [`DenseIterableDataset`].
        whole: take a data set of `save_to_disk` that has no splits for whatever `split` says.

    Raises:
        ValueError: a split that the data lacks, or nothing to learn from.
    """
    folder = Path(name)
    if any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
        data = load_from_disk(name)
        if isinstance(data, DatasetDict):
            if split not in data:
                raise ValueError(f"`split` must be one of {sorted(data)}, the splits of {name}, got {split!r}")
            data = data[split]
        elif split not in ("train", str(data.split)):
            if not whole:
                raise ValueError(f"`split` must be 'train', all that {name} has, got {split!r}")
            logger.warning(f"{name} has no splits: all of it is taken for {split!r}")
        data = data.to_iterable_dataset() if streaming else data
    elif any((root / "image").is_dir() for root in (folder / split, folder)):
        root = folder / split if (folder / split / "image").is_dir() else folder
        if root == folder and split != "train":
            raise ValueError(f"`split` must be 'train', all that {name} has without a folder for it, got {split!r}")
        data = _plain_folder(root)
        data = data.to_iterable_dataset() if streaming else data
    elif folder.suffix.lower() in FILE_KINDS or folder.is_file():
        data = _rows_of_file(folder, split, streaming)
    elif splits := sorted(path.parent.name for path in folder.glob("*/image") if path.is_dir()):
        raise ValueError(f"`split` must be one of {splits}, the folders of {name}, got {split!r}")
    else:
        data = load_dataset(name, split=split, streaming=streaming, cache_dir=_cache_of(folder))
    if not set(MAPS + ("messages",)) & set(data.column_names or MAPS):
        raise ValueError(f"{name} has nothing to learn from: its columns are {data.column_names}, see {COLUMNS}")
    for column, feature in (data.features or {}).items():
        if isinstance(feature, Image):
            data = data.cast_column(column, Image(decode=False))
    return data


def _rows_of_file(path: Path, split: str, streaming: bool) -> Dataset | IterableDataset:
    if not path.is_file():
        raise ValueError(f"the data set {path} is no file that is there")
    if path.suffix.lower() not in FILE_KINDS:
        raise ValueError(f"the data set {path} must be a folder, a name on the Hub, or a file {', '.join(FILE_KINDS)}")
    if split != "train":
        raise ValueError(f"`split` must be 'train', the one split of a single file, {path}, got {split!r}")
    return load_dataset(
        FILE_KINDS[path.suffix.lower()], data_files=glob.escape(str(path)), split=split, streaming=streaming
    )


def _cache_of(folder: Path) -> str | None:
    """A cache for the files that a local folder with a card has now. `datasets` looks at the card's patterns only, and
    gives the rows that it has cached, whatever was added to the folder or changed since. What was cached of an earlier
    state stays until it is deleted, as `datasets` does it for folders without a card."""
    if not (folder / "README.md").is_file():
        return None
    files = ((path, path.stat()) for path in sorted(folder.resolve().rglob("*")) if path.is_file())
    state = [(str(path), status.st_size, status.st_mtime_ns) for path, status in files]
    return str(Path(config.HF_DATASETS_CACHE) / f"densemllm-{Hasher.hash(state)}")


def _plain_folder(root: Path) -> Dataset:
    columns = {column: {} for column in ("image", *MAPS) if (root / column).is_dir()}
    for column, files in columns.items():
        for path in sorted((root / column).rglob("*")):
            place = path.relative_to(root / column)
            if path.is_dir() or any(part.startswith(".") or part.lower() in LITTER for part in place.parts):
                continue
            stem = place.with_suffix("").as_posix()
            if stem in files:
                raise ValueError(f"{root / column} has two files of the sample {stem!r}")
            files[stem] = str(path)
    unmatched = {stem for files in columns.values() for stem in files} - set(columns["image"])
    if unmatched:
        raise ValueError(f"{root / 'image'} lacks the pictures of {sorted(unmatched)[:10]}, which are annotated")
    if not columns["image"]:
        raise ValueError(f"{root / 'image'} is empty")
    return Dataset.from_dict(
        {column: [files.get(stem) for stem in columns["image"]] for column, files in columns.items()}
    )


def find_id2label(name: str) -> str | None:
    """The file of class names that a local data set brings: `id2label.json` or `id2label.txt` in its folder."""
    folder = Path(name).parent if Path(name).is_file() else Path(name)
    files = (folder / file for file in ("id2label.json", "id2label.txt"))
    return next((str(file) for file in files if file.is_file()), None)


def load_id2label(name: str) -> dict[int, str]:
    """Class id to name from a file.

    Args:
        name: a JSON file `{"0": "wall", ...}`; or a `.txt` file of the same, or with a class a line: an id and a name
            (`0: wall`) in all of them, or names alone, which are numbered from 0. UTF-8, or what its byte order mark
            says.

    Raises:
        ValueError: the file has something else.
    """
    content = Path(name).read_bytes()
    try:
        text = content.decode(json.detect_encoding(content))
        is_list = str(name).lower().endswith(".txt") and not text.lstrip().startswith("{")
        pairs = _pairs_of_lines(text) if is_list else json.loads(text).items()
        labels = [(int(key), label) for key, label in pairs]
    except (AttributeError, ValueError) as error:
        raise ValueError(
            f"{name} must be a JSON object from class id to name, or a .txt of names ({error})"
        ) from error
    if not labels or any(not isinstance(label, str) or not label.strip() for _, label in labels):
        raise ValueError(f"{name} must have a name for each class id, got {labels[:10]}")
    if len(dict(labels)) < len(labels):
        raise ValueError(f"{name} has a class id twice")
    return dict(labels)


def _pairs_of_lines(text: str) -> list[tuple[str | int, str]]:
    lines = [line.strip() for line in text.strip().splitlines()]
    numbered = [re.fullmatch(r"(\d+)\s*[\s:=,;]\s*(.+)", line) for line in lines]
    if all(numbered):
        return [match.groups() for match in numbered]
    for line in lines:
        if "\t" in line or re.match(r"\d+\s*[:=,;]", line):
            raise ValueError(f"not all lines have an id and a name, but this one has columns: {line!r}")
    return list(enumerate(lines))


# ---- what the class maps have ----


class _LabelUse:
    """Which classes the maps of a source have, and how much of them is ignored."""

    def __init__(self, id2label: dict[int, str], ignore_index: int):
        self.id2label, self.ignore_index = id2label, ignore_index
        self.rows, self.share, self.found = 0, 0.0, set()

    def add(self, values: np.ndarray) -> None:
        self.rows += 1
        self.share += float((values == self.ignore_index).mean())
        self.found.update(present_values(values).tolist())

    def warn(self, where: str, total: int | None) -> None:
        """Say what may be a mistake; `total` rows are there (`None`: unknown)."""
        if not self.rows:
            return
        missing = [f"{key} ({name})" for key, name in sorted(self.id2label.items()) if key not in self.found]
        share = self.share / self.rows
        if not missing and share <= LARGE_IGNORED_SHARE:
            return
        facts = []
        if missing:
            names = ", ".join(missing[:10]) + ("..." if len(missing) > 10 else "")
            facts.append(f"{len(missing)} of {len(self.id2label)} classes of `id2label` never occur: {names}")
        if share:
            facts.append(f"{share:.0%} of the pixels are ignored, as `ignore_index` is {self.ignore_index}")
        seen = f"all {total}" if self.rows == total else f"{self.rows} of {total or 'many'}"
        logger.warning(f"{where}: in `segmentation` of {seen} rows, {'; '.join(facts)}")


def warn_of_labels(data: Samples, id2label: dict[int, str], ignore_index: int, where: str) -> None:
    """Warn of classes that never occur, and of a large share of ignored pixels, in up to 100 rows from all over the
    data: names, ids and `ignore_index` may belong to other maps. What can't be read isn't looked at.

    Args:
        data: sequence of samples.
        id2label, ignore_index: see [`DenseSource`].
        where: how messages name the data.
    """
    if hasattr(data, "select_columns"):
        if "segmentation" not in data.column_names:
            return
        data = data.select_columns(["segmentation"])
    use = _LabelUse(id2label, ignore_index)
    rows = np.unique(np.linspace(0, len(data) - 1, min(len(data), LOOKED_AT)).astype(int)).tolist()
    for row in rows:
        try:
            value = data[row].get("segmentation")
            if value is None:
                continue
            if isinstance(value, (dict, str, os.PathLike, BytesIO, PIL.Image.Image)):
                value = open_file(value, where, "segmentation")
            values = np.asarray(value)
        except (ValueError, OSError, SyntaxError):  # reading the row will tell what is wrong with it
            continue
        if values.size and np.issubdtype(values.dtype, np.integer):
            use.add(values)
    use.warn(where, use.rows if len(rows) == len(data) else len(data))


# ---- mixing ----


class _Mixture:
    def __init__(self, sources, augmentation, max_corrupt_share, seed) -> None:
        self.sources = [sources] if isinstance(sources, DenseSource) else list(sources)
        if not self.sources:
            raise ValueError("`sources` is empty; at least one is needed")
        weights = [source.weight for source in self.sources]
        if any(weight is not None for weight in weights) and not all(weight and weight > 0 for weight in weights):
            raise ValueError(f"`weight` must be greater than 0 in every source or in none, got {weights}")
        if not 0 <= max_corrupt_share <= 1:
            raise ValueError(f"`max_corrupt_share` must be in [0, 1], got {max_corrupt_share}")
        self.augmentation = augmentation
        self.max_corrupt_share = max_corrupt_share
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()  # with workers that outlive an epoch

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Order, rows and augmentation of another epoch; the Trainer calls it."""
        self._epoch.fill_(int(epoch))

    def _generator(self, source: int, index: int, *stream: int) -> np.random.Generator:
        """It depends on nothing but the place in the data, so that a resumed run sees the same."""
        return np.random.default_rng([self.seed, self.epoch, source, index, *stream])

    def _sample(self, row: dict, source: int, where: str, index: int) -> dict:
        settings = self.sources[source]
        if settings.columns is not None:
            row = {column: row.get(column) for column in settings.columns}
        sample = read_sample(row, where, settings.id2label, settings.depth_scale, settings.ignore_index)
        if self.augmentation is not None or "expression" not in sample:
            sample = draw_expression(sample, self._generator(source, index, 1), settings.ignore_index)
        if self.augmentation is not None:
            sample = self.augmentation(sample, self._generator(source, index))
        # What the maps are now is the sample's own: depth is in metres.
        own = {name: getattr(settings, name) for name in ("id2label", "depth_range", "ignore_index")}
        return sample | own | {"depth_scale": 1.0}


@lru_cache(maxsize=64)
def _permutation(length: int, *seeds: int) -> np.ndarray:
    return np.random.default_rng(seeds).permutation(length)


class DenseDataset(_Mixture, torch.utils.data.Dataset):
    """Samples of one or several sources, read and augmented when they are asked for (in the loader's workers).

    An epoch has as many samples as the sources together, shared out by their weights: a source that is asked for more
    than it has goes round again, one that is asked for less goes on in the next epoch where it stopped.

    A row with a picture that can't be read is reported once, and the next row of its source stands in for it.

    Args:
        sources: one [`DenseSource`] or several.
        augmentation: an [`Augmentation`], or `None`.
        max_corrupt_share: a larger share of unreadable rows raises a `ValueError` that names them.
        seed: of order and augmentation.
    """

    def __init__(
        self,
        sources: "DenseSource | Sequence[DenseSource]",
        augmentation: Augmentation | None = None,
        max_corrupt_share: float = 0.01,
        seed: int = 0,
    ):
        super().__init__(sources, augmentation, max_corrupt_share, seed)
        lengths = [len(source.data) for source in self.sources]
        if not all(lengths):
            raise ValueError(f"`sources` must not be empty, got {lengths} samples")
        self.counts = lengths
        if self.sources[0].weight is not None:
            edges = np.cumsum([0, *(source.weight for source in self.sources)])
            edges = np.round(edges / edges[-1] * sum(lengths)).astype(int)
            self.counts = np.diff(edges).tolist()
        self._areas = self._headers = None
        for number, source in enumerate(self.sources):
            if source.id2label is not None and "segmentation" in (source.columns or COLUMNS):
                warn_of_labels(source.data, source.id2label, source.ignore_index, f"`sources[{number}]`")
        # Shared with the loader's workers.
        self.corrupt = [torch.zeros(length, dtype=torch.bool).share_memory_() for length in lengths]

    def __len__(self) -> int:
        return sum(self.counts)

    def estimated_lengths(
        self, focal_lengths: "list[float | None]", indices: "Sequence[int] | None" = None
    ) -> list[float]:
        """What samples of this epoch are to the model, in pixels: known without decoding their pictures. A crop, which
        makes all of one size, isn't looked at. Each picture is opened once, the first time that it is asked for.

        Args:
            focal_lengths: of each source's depth range, to which its pictures are resized; `None`: they aren't.
            indices: of the samples; all where left out.
        """
        if self._areas is None:
            self._areas = [{} for _ in self.sources]
            self._headers = [_headers(source) for source in self.sources]
        lengths = []
        for index in range(len(self)) if indices is None else indices:
            source, row = self._locate(index)
            if row not in self._areas[source]:
                data, wanted = self._headers[source]
                header = data[row]
                header = {name: header.get(name) for name in wanted}
                area = _picture_area(header, focal_lengths[source])
                self._areas[source][row] = (area, not header.get("messages"))
            area, resized = self._areas[source][row]
            if resized and self.augmentation is not None:
                area *= self.augmentation.draw_scale(self._generator(source, index)) ** 2
            lengths.append(area)
        return lengths

    def _locate(self, index: int) -> tuple[int, int]:
        source = 0
        while index >= self.counts[source]:
            index -= self.counts[source]
            source += 1
        count, length = self.counts[source], len(self.sources[source].data)
        if count == length:
            return source, index
        turn, place = divmod(self.epoch * count + index, length)
        return source, int(_permutation(length, self.seed, source, turn)[place])

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} samples")
        source, row = self._locate(index)
        data = self.sources[source].data
        for step in range(len(data)):
            place = (row + step) % len(data)
            where = f"row {place}" if len(self.sources) == 1 else f"source {source}, row {place}"
            try:
                return self._sample(data[place], source, where, index)
            except CorruptFileError as error:
                self._report(source, place, error)
        raise ValueError(f"`sources[{source}]` has no row that can be read")

    def _report(self, source: int, place: int, error: Exception) -> None:
        if not self.corrupt[source][place]:
            self.corrupt[source][place] = True
            logger.warning(f"skipped: {error}")
        found = [(number, row) for number, flags in enumerate(self.corrupt) for row in flags.nonzero()[:, 0].tolist()]
        total = sum(map(len, self.corrupt))
        if len(found) > self.max_corrupt_share * total:
            named = ", ".join(f"row {row} of source {number}" for number, row in found[:10])
            raise ValueError(
                f"{len(found)} of {total} rows can't be read, a share larger than `max_corrupt_share` = "
                f"{self.max_corrupt_share}: {named}{'...' if len(found) > 10 else ''}. The last: {error}"
            ) from error


class DenseIterableDataset(_Mixture, torch.utils.data.IterableDataset):
    """The same for sources that are read as a stream, `datasets.IterableDataset`s: the source of each sample is drawn
    by weight, and the stream ends with the first source that does. Each of a loader's workers reads a part of every
    source, however many shards it has.

    Args:
        sources, augmentation, max_corrupt_share, seed: as for [`DenseDataset`]. The share is that of the rows seen so
            far, or of the first hundred.
        repeat: a source that ends begins anew, and the stream never ends: to train on, where the Trainer takes all
            steps for one epoch and skips those that a resumed run has made.
    """

    def __init__(
        self,
        sources: "DenseSource | Sequence[DenseSource]",
        augmentation: Augmentation | None = None,
        max_corrupt_share: float = 0.01,
        seed: int = 0,
        repeat: bool = False,
    ):
        super().__init__(sources, augmentation, max_corrupt_share, seed)
        self.repeat = repeat
        self._process, self._processes = 0, 1

    def __iter__(self) -> Iterator[dict]:
        worker = torch.utils.data.get_worker_info()
        workers, own = (1, 0) if worker is None else (worker.num_workers, worker.id)
        parts, part = self._processes * workers, self._process * workers + own
        rng = np.random.default_rng([self.seed, self.epoch, part])
        weights = np.array([source.weight or 1.0 for source in self.sources])
        turns, counts = [0] * len(self.sources), [0] * len(self.sources)
        streams = [self._stream(source, 0, part, parts) for source in range(len(self.sources))]
        uses = [_LabelUse(source.id2label or {}, source.ignore_index) for source in self.sources]
        seen = corrupt = 0
        while weights.any():
            source = rng.choice(len(streams), p=weights / weights.sum()) if len(streams) > 1 else 0
            place, row = next(streams[source], (None, None))
            if place is None and self.repeat and counts[source]:
                turns[source] += 1
                streams[source] = self._stream(source, turns[source], part, parts)
                place, row = next(streams[source], (None, None))
            if place is None:
                if part == 0 and uses[source].rows < LOOKED_AT:
                    uses[source].warn(f"`sources[{source}]`", uses[source].rows)
                if counts[source] or parts == 1:
                    return
                weights[source] = 0  # it has fewer rows than there are parts: the others go on without it
                continue
            seen += 1
            counts[source] += 1
            try:
                where = f"source {source}, row {place} of the stream"
                sample = self._sample(row, source, where, (counts[source] - 1) * parts + part)
            except CorruptFileError as error:
                corrupt += 1
                logger.warning(f"skipped: {error}")
                if corrupt > self.max_corrupt_share * max(seen, 100):
                    raise ValueError(
                        f"{corrupt} of the first {seen} rows can't be read, a share larger than `max_corrupt_share` = "
                        f"{self.max_corrupt_share}. The last: {error}"
                    ) from error
                continue
            if "segmentation" in sample and uses[source].rows < LOOKED_AT:
                uses[source].add(sample["segmentation"])
                if part == 0 and uses[source].rows == LOOKED_AT:
                    uses[source].warn(f"`sources[{source}]`", None)
            yield sample

    def split_by_process(self, process: int, processes: int) -> None:
        """Read the own share of the rows only: that of one of several processes, each of which has this data set.
        [`DenseTrainer`] calls it for a data set that repeats."""
        self._process, self._processes = process, processes

    def _stream(self, source: int, turn: int, part: int, parts: int) -> Iterator[tuple[int, dict]]:
        """The rows of one part of a source, numbered."""
        data = self.sources[source].data
        if hasattr(data, "set_epoch"):  # another order of what is shuffled
            data.set_epoch(self.epoch + turn)
        if parts == 1:
            return enumerate(data)
        if not isinstance(data, IterableDataset):
            return ((place, row) for place, row in enumerate(data) if place % parts == part)
        # Parts of like sizes, as one that ends sooner begins its rows anew more often: whole shards where there are
        # many, or as many for each part; else each part reads all rows, and keeps one of `parts`.
        if data.num_shards >= 10 * parts:
            data = data.shard(num_shards=parts, index=part)
        else:
            data = split_dataset_by_node(data, rank=part, world_size=parts)
        # In batches of one: iterated row by row, it would share out its shards among the loader's workers once more.
        return enumerate({name: values[0] for name, values in batch.items()} for batch in data.iter(batch_size=1))


# ---- batches ----


class DenseCollator:
    """Samples to one batch for [`DenseMLLMForConditionalGeneration.forward`]: packed patches, padded text, targets.

    A sample has one conversation: its `messages`; else, with an `expression`, the question for the object's box; else,
    with a `segmentation`, the question for its classes, in the released checkpoint's words. An `expression` adds a
    second picture, as `predict_dense` will see it: the crop around the object, whose vision tokens learn its mask.
    With a processor's `referring_prompt` it stands before the picture instead, whose vision tokens learn the mask.
    Depth in a range with a prompt is learned from the picture with that prompt alone, as `predict_dense` asks for it:
    once more where the sample has anything else.

    Args:
        processor: of the model.
        id2label, depth_range, depth_scale, ignore_index: see [`DenseSource`], for samples that don't bring their own,
            such as those of a plain data set.
        candidates, min_label_share: see `DenseMLLMProcessor.encode_annotations`.
    """

    def __init__(
        self,
        processor: DenseMLLMProcessor,
        id2label: dict[int, str] | None = None,
        depth_range: str | None = None,
        candidates: str = "vocabulary",
        min_label_share: float = 0.0,
        depth_scale: float | None = None,
        ignore_index: int = IGNORE_INDEX,
    ):
        self.processor = processor
        self.id2label = None if id2label is None else processor.normalize_labels(id2label)
        self.depth_range = depth_range
        check_ignore_index(ignore_index, self.id2label)
        self.depth_scale, self.ignore_index = depth_scale, ignore_index
        self.candidates, self.min_label_share = candidates, min_label_share
        self._vocabulary = processor.tokenizer.get_vocab()

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        processor = self.processor
        entries = [entry for sample in samples for entry in self.entries(sample)]
        images, annotations, conversations = zip(*entries, strict=True)
        inputs = processor(images=list(images), text=[texts[0] for texts in conversations])
        ids, labels = [], []
        for prompt_ids, (_, *texts) in zip(inputs["input_ids"], conversations, strict=True):
            row, learned = list(prompt_ids), [-100] * len(prompt_ids)
            for turn, text in enumerate(texts):
                # Each piece apart, as in generation, where a prompt is tokenised before there is an answer.
                piece = processor.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
                is_answer = turn % 2 == 0
                if is_answer and piece and processor.tokenizer.eos_token_id is not None:
                    piece = piece + [processor.tokenizer.eos_token_id]
                row += piece
                learned += piece if is_answer else [-100] * len(piece)
            ids.append(torch.tensor(row))
            labels.append(torch.tensor(learned))
        pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True, padding_side=processor.tokenizer.padding_side)
        grid = torch.as_tensor(np.asarray(inputs["image_grid_thw"]))
        return {
            "input_ids": pad(ids, padding_value=processor.tokenizer.pad_token_id or 0),
            "attention_mask": pad([torch.ones_like(row) for row in ids], padding_value=0),
            "labels": pad(labels, padding_value=-100),
            "pixel_values": torch.as_tensor(np.asarray(inputs["pixel_values"])),
            "image_grid_thw": grid,
            **processor.encode_annotations(list(annotations), grid, self.candidates, self.min_label_share),
        }

    def entries(self, sample: dict) -> list[tuple[PIL.Image.Image, dict, list[str]]]:
        """A sample as (picture, its annotations, its conversation) once or more: prompt, answer, next prompt..."""
        sample = upright_sample(sample, "a sample", self.processor.image_processor)
        original = picture = sample["image"]
        ignore_index = sample.get("ignore_index", self.ignore_index)
        depth_range = sample.get("depth_range") or self.depth_range
        picture, focal_length = self._at_focal_length(picture, sample, depth_range)
        annotation, first = {}, []
        if sample.get("segmentation") is not None:
            id2label = self.id2label if sample.get("id2label") is None else sample["id2label"]
            if id2label is None:
                raise ValueError("`id2label` is needed: the data has a `segmentation`")
            annotation |= {"segmentation": sample["segmentation"], "id2label": id2label, "ignore_index": ignore_index}
        if sample.get("depth") is not None:
            metres = read_metres(sample["depth"], sample.get("depth_scale", self.depth_scale), "column `depth`")
            depth = {"depth": metres, "depth_range": depth_range, "focal_length": focal_length}
            prompt = self.processor.get_depth_range(depth_range).get("prompt")
            if prompt:
                first = [(picture, depth, self._texts([{"role": "user", "content": ""}], prompt))]
                if not annotation and sample.get("mask") is None and not sample.get("messages"):
                    return first
            else:
                annotation |= depth
        mask = None if sample.get("mask") is None else read_mask(sample["mask"], ignore_index)
        expression = sample.get("expression")
        one_pass = self.processor.referring_prompt is not None
        if expression is None or mask is None or one_pass or not (mask > 0).any():
            if mask is not None and (expression is None or one_pass):
                annotation["mask"] = mask
            return [*first, (picture, annotation, self.conversation(sample, annotation))]
        rows, columns = (np.flatnonzero((mask > 0).any(axis=axis)) for axis in (1, 0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        crop, (x0, y0, x1, y1) = crop_box(original, box, self.processor.referring_crop_size)
        scales = (picture.width / original.width, picture.height / original.height) * 2
        box = [edge * scale for edge, scale in zip(box, scales, strict=True)]
        whole = (picture, annotation, self.conversation(sample, annotation, self._box_text(box, picture)))
        cropped = (crop, {"mask": mask[y0:y1, x0:x1]}, self._texts([{"role": "user", "content": ""}]))
        return [*first, whole, cropped]

    def _box_text(self, box: list[float], picture: PIL.Image.Image) -> str | None:
        """A box in pixels as coordinate tokens, which count the pixels of the resized picture."""
        height, width = self.processor.image_processor.get_resized_size(picture.height, picture.width)
        scales = (width / picture.width, height / picture.height) * 2
        x0, y0, x1, y1 = (
            min(int(edge * scale), most - 1)
            for edge, scale, most in zip(box, scales, (width, height) * 2, strict=True)
        )
        tokens = [f"<x_{x0}>", f"<y_{y0}>", f"<x_{x1}>", f"<y_{y1}>"]
        if not all(token in self._vocabulary for token in tokens):
            return None
        return f"<box>{''.join(tokens)}</box>"

    def _at_focal_length(self, picture: PIL.Image.Image, sample: dict, depth_range: str | None):
        """The picture as `predict_dense` resizes it for its focal length, and the focal length that it has then."""
        focal_length = sample.get("focal_length")
        scale = self.processor.get_scale(focal_length, depth_range)
        if scale is None:
            return picture, None
        height, width = self.processor.image_processor.get_resized_size(
            picture.height, picture.width, {"scale": scale}
        )
        resized = picture.resize((width, height), PIL.Image.Resampling(self.processor.image_processor.resample))
        # The processor's own scale comes on top.
        height, width = self.processor.image_processor.get_resized_size(height, width)
        return resized, focal_length * (height * width / (picture.height * picture.width)) ** 0.5

    def conversation(self, sample: dict, annotation: dict, answer: str | None = None) -> list[str]:
        """Prompt, answer, next prompt, ... of a sample; a prompt alone where there is no text. `answer` is its
        expression's box."""
        before = None  # the text in front of the picture
        if sample.get("expression") and "mask" in annotation:
            before = self.processor.referring_prompt.replace("{text}", sample["expression"].strip())
        if sample.get("messages"):
            return self._texts(sample["messages"], before)
        if answer is not None:
            question = TASKS["referring"].question.format(text=sample["expression"].strip())
        elif "segmentation" in annotation:
            present = set(present_values(annotation["segmentation"]).tolist())
            names = self.processor.normalize_labels(annotation["id2label"])
            refs = "".join(f"<ref>{name}</ref>" for key, name in names.items() if key in present)
            if not refs:  # all of it is ignored: what there is isn't known
                return self._texts([{"role": "user", "content": ""}], before)
            question = TASKS["segmentation"].question
            answer = f"The target categories include {refs}."
        else:
            return self._texts([{"role": "user", "content": ""}], before)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return self._texts(messages, before)

    def _texts(self, messages: list[dict], before: str | None = None) -> list[str]:
        """A chat as prompt, answer, next prompt, ...; the first user message gets the picture if none is there, and
        the text before it."""
        messages = read_parts([dict(message) for message in messages])
        user = next(message for message in messages if message["role"] == "user")
        if isinstance(user["content"], str):
            user["content"] = [{"type": "text", "text": user["content"]}] if user["content"] else []
        if not any(part["type"] == "image" for part in user["content"]):
            user["content"] = [{"type": "image"}, *user["content"]]
        if before:
            user["content"] = [{"type": "text", "text": before}, *user["content"]]
        template, eos = self.processor.apply_chat_template, self.processor.tokenizer.eos_token or ""
        texts, done = [], ""
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            kinds = set() if isinstance(message["content"], str) else {part["type"] for part in message["content"]}
            if kinds - {"text"}:
                raise ValueError(f"`messages` must have answers that are text, got parts of type {sorted(kinds)}")
            prompt = template(messages[:turn], add_generation_prompt=True)
            texts += [prompt.removeprefix(done).removeprefix(eos if texts else ""), _text_of(message["content"])]
            done = prompt + texts[-1]
        return texts or [template(messages, add_generation_prompt=True)]


def _text_of(content) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


__all__ = [
    "Augmentation",
    "CorruptFileError",
    "DenseCollator",
    "DenseDataset",
    "DenseIterableDataset",
    "DenseSource",
    "find_id2label",
    "load_id2label",
    "load_samples",
    "read_sample",
    "warn_of_labels",
]
