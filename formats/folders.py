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
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Image, IterableDataset, config, load_dataset, load_from_disk
from datasets.fingerprint import Hasher
from transformers.utils import logging

from ..tasks_densemllm import Codes
from ..training.samples import MAPS
from .base import Facts, FormatSamples
from .labels import find_id2label, load_id2label
from .options import PreparedSamples, complete_column_map, facts_of, prepare, read_column_map
from .own_folders import is_own_folder, open_folder
from .registry import format_of, open_format


logger = logging.get_logger(__name__)

FILE_KINDS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv"}
FILES = ("image", *MAPS, Codes.column)  # columns that may be paths


def load_samples(
    name: str,
    split: str = "train",
    streaming: bool = False,
    whole: bool = False,
    column_map: "str | Mapping[str, str] | None" = None,
    images_alone: bool = False,
    **options: Any,
) -> Any:
    """A split of a data set, its images not yet decoded.

    Args:
        name: `NAME:PATH` of a layout that is known by name, such as `ade20k:PATH` (see `docs/data.md`); a folder that
            `save_to_disk` wrote; a folder with `images/` (or `image/`) and maps beside it, see [`open_folder`]; a file
            of rows (parquet, arrow, json, jsonl or csv), which is the split "train", with paths from its folder; or
            whatever `datasets.load_dataset` takes: a Hub name, a folder of parquet files, an image folder with
            metadata...
        split: name of the split; "train" for data without splits.
        streaming: read while training; see [`DenseIterableDataset`].
        whole: take a data set of `save_to_disk` that has no splits for whatever `split` says.
        column_map: column of the schema to the data's own name for it; where it lacks columns to learn from, other
            names that are known and can only mean one are taken by themselves.
        images_alone: whether there need not be anything to learn from but images: a tokenizer makes codes of them.
        options: further ones that the layout takes, such as `mask_pattern` and `label_colors` of a folder.

    Raises:
        ValueError: a split that the data lacks, an option that can't be given for it, or nothing to learn from.
    """
    data = _open(name, split, streaming, whole, options)
    names, features = data.column_names, data.features
    column_map = read_column_map(column_map)
    if names:
        column_map = complete_column_map(column_map, names, features, name, images_alone)
    for column, feature in (features or {}).items():
        if isinstance(feature, Image):
            data = data.cast_column(column, Image(decode=False))
    data = prepare(data, column_map) if column_map else data
    if Path(name).is_file() and any(_is_text(features, column_map.get(column, column)) for column in FILES):
        change = partial(_resolve_paths, Path(name).resolve().parent)
        return data.map(change) if streaming else PreparedSamples(data, {}, change, facts_of(data))
    return data


def open_rows(name: str, split: str) -> Dataset | FormatSamples:
    """A split of a data set as [`load_samples`] opens it, whatever columns it has; images aren't decoded.

    Raises:
        ValueError: a split that the data lacks.
    """
    data = _open(name, split, False, True, {})
    for column, feature in (data.features or {}).items():
        if isinstance(feature, Image):
            data = data.cast_column(column, Image(decode=False))
    return data


def _is_text(features: Mapping[str, Any] | None, name: str) -> bool:
    return getattr((features or {}).get(name), "dtype", None) in ("string", "large_string")


def _resolve_paths(folder: Path, row: dict) -> dict:
    """Paths of a file of rows that are there beside the file, from its folder; what is there as it is stays."""
    texts = {name: row[name] for name in FILES if isinstance(row.get(name), str)}
    found = {name: str(folder / text) for name, text in texts.items() if "://" not in text and len(text) < 4096}
    return row | {name: path for name, path in found.items() if Path(path).is_file()}


def _open(
    name: str, split: str, streaming: bool, whole: bool, options: dict[str, Any]
) -> Dataset | IterableDataset | FormatSamples:
    opened = open_format(name, split, **{key: value for key, value in options.items() if value is not None})
    folder = Path(name)
    if opened is None and not _is_saved(folder) and is_own_folder(folder):
        opened = open_folder(folder, split, **options)
    if opened is not None:
        return _stream_of(opened, name) if streaming else opened
    unknown = [key for key, value in options.items() if value is not None]
    if unknown:
        raise ValueError(f"`{unknown[0]}` can't be given for {name}, which is no folder with images/ in it")
    if _is_saved(folder):
        data = _saved(folder, split, whole)
        return data.to_iterable_dataset() if streaming else data
    if folder.suffix.lower() in FILE_KINDS or folder.is_file():
        return _rows_of_file(folder, split, streaming)
    return load_dataset(name, split=split, streaming=streaming, cache_dir=_cache_of(folder))


def _is_saved(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("state.json", "dataset_dict.json"))


def _stream_of(samples: FormatSamples, name: str) -> IterableDataset:
    """A folder's samples as a stream, from rows that are no more than paths."""
    if not isinstance(samples.rows, Dataset):
        raise ValueError(f"`streaming` must be off for {name}: its rows are read when they are asked for")
    stream = samples.rows.to_iterable_dataset()
    if any(column in MAPS for column in samples.column_names):
        stream = stream.map(partial(samples.read, wanted=frozenset(samples.column_names)))
    stream.facts = samples.facts
    return stream


@dataclass(frozen=True)
class DataOptions:
    """What a user says of one data set; what is left out is what the data set says of itself.

    Attributes:
        column_map, label_map, reduce_labels, ignore_index: see [`prepare`].
        id2label: file of class names, see [`load_id2label`].
        depth_scale, depth_range: see [`DenseSource`].
        images_alone: see [`load_samples`].
        layout: further options that the layout takes by name, see [`load_samples`].
    """

    column_map: str | None = None
    label_map: str | None = None
    reduce_labels: bool = False
    ignore_index: Any = None
    id2label: str | None = None
    depth_scale: float | None = None
    depth_range: str | None = None
    images_alone: bool = False
    layout: Mapping[str, Any] = field(default_factory=dict)


def open_samples(
    name: str, split: str, said: DataOptions, streaming: bool = False, whole: bool = False
) -> tuple[Any, Facts]:
    """A split of a data set as its user wants it read, and what is known of it: by the user's word, else by its own.

    Args:
        name, split, streaming, whole: see [`load_samples`].
        said: what the user says.

    Raises:
        ValueError: see [`load_samples`] and [`prepare`].
    """
    layout = dict(said.layout)
    file = said.id2label or find_id2label(name)
    names = None if file is None else load_id2label(file)
    found = format_of(name)
    if names is not None and layout.get("label_colors") is not None:
        # Colours that are said by name.
        if found is None or "id2label" in found[0].options:
            layout["id2label"] = names
    data = load_samples(name, split, streaming, whole, said.column_map, said.images_alone, **layout)
    data = prepare(data, None, said.label_map, said.reduce_labels, said.ignore_index, names)
    facts = facts_of(data)
    if said.depth_scale is not None:
        facts = replace(facts, depth_scale=said.depth_scale)
    if said.depth_range is not None:
        facts = replace(facts, depth_range=said.depth_range)
    return data, facts


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


__all__ = ["load_samples", "open_rows"]
