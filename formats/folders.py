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

"""Data sets in folders of files, in files of rows, and on the Hub: a split of rows, their images not yet decoded."""

import glob
from pathlib import Path

from datasets import Dataset, DatasetDict, Image, IterableDataset, config, load_dataset, load_from_disk
from datasets.fingerprint import Hasher
from transformers.utils import logging

from ..training.samples import COLUMNS, MAPS, SCHEMA
from .base import FormatSamples
from .registry import open_format


logger = logging.get_logger(__name__)

# Files that systems leave in folders, and folders of such.
LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir"}
FILE_KINDS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv"}


def load_samples(
    name: str, split: str = "train", streaming: bool = False, whole: bool = False
) -> Dataset | IterableDataset | FormatSamples:
    """A split of a data set, its images not yet decoded.

    Args:
        name: `NAME:PATH` of a layout that is known by name, such as `ade20k:PATH` (see `docs/data.md`); a folder that
            `save_to_disk` wrote; a folder with `image/` (and `segmentation/`, `depth/`, `mask/` beside
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
    opened = open_format(name, split)
    if opened is not None:
        if streaming:
            raise ValueError(f"`streaming` must be off for {name}: its rows are read when they are asked for")
        return opened
    folder = Path(name)
    if any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
        data = _saved(folder, split, whole)
        data = data.to_iterable_dataset() if streaming else data
    elif any((root / "image").is_dir() for root in (folder / split, folder)):
        data = _files_of_folder(folder, split)
        data = data.to_iterable_dataset() if streaming else data
    elif folder.suffix.lower() in FILE_KINDS or folder.is_file():
        data = _rows_of_file(folder, split, streaming)
    elif splits := sorted(path.parent.name for path in folder.glob("*/image") if path.is_dir()):
        raise ValueError(f"`split` must be one of {splits}, the folders of {name}, got {split!r}")
    else:
        data = load_dataset(name, split=split, streaming=streaming, cache_dir=_cache_of(folder))
    names = data.column_names
    if names and not any(column.is_learned and name in names for name, column in SCHEMA.items()):
        raise ValueError(f"{name} has nothing to learn from: its columns are {names}, see {COLUMNS}")
    for column, feature in (data.features or {}).items():
        if isinstance(feature, Image):
            data = data.cast_column(column, Image(decode=False))
    return data


def _saved(folder: Path, split: str, whole: bool) -> Dataset:
    """A split of what `save_to_disk` wrote."""
    data = load_from_disk(str(folder))
    if isinstance(data, DatasetDict):
        if split not in data:
            raise ValueError(f"`split` must be one of {sorted(data)}, the splits of {folder}, got {split!r}")
        return data[split]
    if split not in ("train", str(data.split)):
        if not whole:
            raise ValueError(f"`split` must be 'train', all that {folder} has, got {split!r}")
        logger.warning(f"{folder} has no splits: all of it is taken for {split!r}")
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


def _files_of_folder(folder: Path, split: str) -> Dataset:
    """The paths of a folder with `image/` and maps beside it, or of its folder for the split; a row for each image."""
    root = folder / split if (folder / split / "image").is_dir() else folder
    if root == folder and split != "train":
        raise ValueError(f"`split` must be 'train', all that {folder} has without a folder for it, got {split!r}")
    columns = {name: _files_by_stem(root / name) for name in ("image", *MAPS) if (root / name).is_dir()}
    unmatched = {stem for files in columns.values() for stem in files} - set(columns["image"])
    if unmatched:
        raise ValueError(f"{root / 'image'} lacks the pictures of {sorted(unmatched)[:10]}, which are annotated")
    if not columns["image"]:
        raise ValueError(f"{root / 'image'} is empty")
    return Dataset.from_dict({name: [files.get(stem) for stem in columns["image"]] for name, files in columns.items()})


def _files_by_stem(folder: Path) -> dict[str, str]:
    """The files of a folder, at any depth, by their path in it without suffix: what the files of one sample share."""
    files = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if path.is_dir() or any(part.startswith(".") or part.lower() in LITTER for part in place.parts):
            continue
        stem = place.with_suffix("").as_posix()
        if stem in files:
            raise ValueError(f"{folder} has two files of the sample {stem!r}")
        files[stem] = str(path)
    return files


__all__ = ["load_samples"]
