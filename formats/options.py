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
"""What a user says of any data set: which columns its samples are read from, and which of its class ids mean what."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import PIL.ExifTags
import PIL.Image
from datasets import Image, IterableDataset
from transformers.utils import logging

from ..checks_densemllm import check_choice
from ..files import read_json_or_yaml
from ..object_tasks_densemllm import Foreground
from ..targets_densemllm import IGNORE_INDEX, check_ignore_index
from ..tasks_densemllm import Classes, Depth
from ..training.maps import LOSSY_FORMATS, exif_orientation, open_file
from ..training.samples import COLUMNS, MAPS, SCHEMA, read_objects
from .base import Facts


if TYPE_CHECKING:
    from ..processing_densemllm import DenseMLLMProcessor


logger = logging.get_logger(__name__)

# What columns of the schema are called elsewhere: by data sets on the Hub, by transformers, by files of webdataset.
OTHER_NAMES = {
    "image": ("pixel_values", "img", "picture", "jpg", "jpeg", "webp", "image.jpg", "image.png", "png"),
    Classes.column: (
        "annotation", "annotations", "label", "labels", "semantic_segmentation", "segmentation_mask", "label_map",
        "semantic_mask", "seg", "seg.png", "label.png", "segmentation.png", "annotation.png", "png",
    ),
    Depth.column: ("depth_map", "depths", "depth.png", "depth.npy", "depth.tiff"),
    Foreground.column: ("mask.png", "object_mask"),
    "expression": ("caption", "sentence", "referring_expression"),
    "messages": ("conversation", "conversations"),
}  # fmt: skip


# ---- columns ----


def read_column_map(value: "str | Mapping[str, str] | None") -> dict[str, str]:
    """Column of the schema to the data set's own name for it.

    Args:
        value: `image=pixel_values,segmentation=label`, or a dict of the same.

    Raises:
        ValueError: a column that the schema lacks, or a name that stands for two.
    """
    if value is None:
        return {}
    if isinstance(value, str):
        pairs = [part.partition("=") for part in value.split(",")]
        if not all(column.strip() and equals and name.strip() for column, equals, name in pairs):
            raise ValueError(f"`column_map` must be column=name, joined by commas, got {value!r}")
        value = {column.strip(): name.strip() for column, _, name in pairs}
    if not isinstance(value, Mapping):
        raise TypeError(f"`column_map` must be a dict or column=name, joined by commas, got {value!r}")
    unknown = sorted(set(value) - set(COLUMNS))
    if unknown:
        raise ValueError(f"`column_map` must map columns of {COLUMNS}, got {unknown[0]!r}: as image=pixel_values")
    if len(set(value.values())) < len(value):
        raise ValueError(f"`column_map` must have each name once, got {dict(value)}")
    return dict(value)


def find_columns_elsewhere(names: Sequence[str], features: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """Columns of the schema that a data set lacks, to those of its columns that may be what they are; maps and images
    only where they are stored as such."""
    found = {}
    for column, others in OTHER_NAMES.items():
        if column in names:
            continue
        is_stored = column == "image" or column in MAPS
        found[column] = [
            other
            for other in others
            if other in names and not (is_stored and _is_plain(features, other)) and other not in COLUMNS
        ]
    # A PNG is the image where nothing else is.
    if len(found.get("image", ())) > 1 and "png" in found["image"]:
        found["image"].remove("png")
    if "png" in found.get("image", ()) and "png" in found.get(Classes.column, ()):
        found[Classes.column].remove("png")
    return {column: others for column, others in found.items() if others}


def _is_plain(features: Mapping[str, Any] | None, name: str) -> bool:
    """Whether a column has one number or class a row, and so no image."""
    dtype = getattr((features or {}).get(name), "dtype", None)
    return isinstance(dtype, str) and dtype.startswith(("int", "uint", "float", "bool"))


def complete_column_map(
    column_map: dict[str, str], names: Sequence[str], features: Mapping[str, Any] | None, where: str,
    images_alone: bool = False,
) -> dict[str, str]:  # fmt: skip
    """`column_map`, with the columns that have another known name where a data set can't be learned from without. One
    with columns for an evaluation alone stays as it is; so does one with images alone where these are enough.

    Raises:
        ValueError: a name that the data set lacks, or nothing to learn from; the message says what may be meant.
    """
    lacking = [name for name in column_map.values() if name not in names]
    if lacking:
        raise ValueError(f"`column_map` must name columns of {where}, {list(names)}, got {lacking[0]!r}")
    taken = set(column_map.values())
    there = {*column_map, *(name for name in names if name not in taken)}
    if _is_enough(there):
        return column_map
    rest = [name for name in names if name not in taken]
    meant = {
        column: others
        for column, others in find_columns_elsewhere([*rest, *column_map], features).items()
        if column not in column_map
    }
    certain = {column: others[0] for column, others in meant.items() if len(others) == 1}
    if len(set(certain.values())) == len(certain) and _is_enough({*there, *certain}):
        logger.warning(f"{where}: {', '.join(f'`{name}` is read as `{column}`' for column, name in certain.items())}")
        return column_map | certain
    if set(meant) <= {"image"} and _is_for_evaluation(there):
        return column_map
    if images_alone and "image" in {*there, *certain}:
        return column_map | ({"image": certain["image"]} if "image" in certain else {})
    hint = ",".join(f"{column}={'|'.join(others)}" for column, others in meant.items())
    said = f"; `column_map` says which are meant, such as {hint}" if hint else ""
    raise ValueError(f"{where} has nothing to learn from: its columns are {list(names)}, see {COLUMNS}{said}")


def _is_enough(names: Iterable[str]) -> bool:
    names = set(names)
    return "image" in names and any(column.is_learned and name in names for name, column in SCHEMA.items())


def _is_for_evaluation(names: set[str]) -> bool:
    return "image" in names and any(column.is_measured and name in names for name, column in SCHEMA.items())


# ---- class ids ----


def read_ignore_index(value: "int | str | Sequence[int] | None") -> tuple[int, ...] | None:
    """One or several values, as a number, a list, or joined by commas.

    Raises:
        ValueError: something that isn't integers.
    """
    if value is None or isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return None if value is None else (int(value),)
    parts = value.split(",") if isinstance(value, str) else value
    try:
        found = tuple(int(part) for part in parts)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`ignore_index` must be integers, joined by commas, got {value!r}") from error
    if not found:
        raise ValueError("`ignore_index` must be one integer or several, got none")
    return found


def read_label_map(value: "str | Path | Mapping | None") -> dict[int, int | str | None]:
    """Class id to what it becomes: another id, the name of a class, or `None`, not annotated.

    Args:
        value: `3=5,7=255`; a dict; or a JSON or YAML file of one. Empty and `null` are `None`.

    Raises:
        ValueError: an id that is no integer, or a file that has something else.
    """
    if value is None:
        return {}
    given = value
    if isinstance(value, (str, Path)) and (Path(value).suffix.lower() in (".json", ".yaml", ".yml")):
        try:
            value = read_json_or_yaml(value)
        except ValueError as error:
            raise ValueError(f"`label_map` {given} can't be read: {error}") from error
    elif isinstance(value, (str, Path)):
        pairs = [part.partition("=") for part in str(value).split(",")]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError(f"`label_map` must be a .json or .yaml file, or id=id joined by commas, got {given!r}")
        value = {key.strip(): new.strip() for key, _, new in pairs}
    if not isinstance(value, Mapping):
        raise ValueError(f"`label_map` must have class ids by class id, got {given!r}")
    try:
        return {int(key): _read_new_label(new) for key, new in value.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"`label_map` must have class ids by class id, got {given!r} ({error})") from error


def _read_new_label(new: Any) -> int | str | None:
    if new is None or new in ("", "null", "none"):
        return None
    if isinstance(new, bool) or not isinstance(new, (int, str)):
        raise ValueError(f"{new!r} is neither an id nor a name")
    if isinstance(new, str):
        return int(new) if new.strip().lstrip("-").isdecimal() else new.strip()
    return new


@dataclass(frozen=True)
class ClassIds:
    """What becomes of the ids that class maps are stored with: first the values that aren't annotated, then the ids
    one less, then the table.

    Attributes:
        table: id to id.
        reduce: 0 becomes `ignore_index`, and the others one less, as with transformers' `do_reduce_labels`.
        ignored: stored values that aren't annotated.
        ignore_index: what they become.
    """

    table: Mapping[int, int]
    reduce: bool
    ignored: tuple[int, ...]
    ignore_index: int

    @property
    def changes(self) -> bool:
        """Whether any id becomes another one."""
        return self.reduce or bool(self.table) or set(self.ignored) != {self.ignore_index}

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Ids `[H, W]` as `int32`."""
        unknown = np.isin(values, self.ignored)
        values = values.astype(np.int64)
        if self.reduce:
            unknown |= values == 0
            values = values - 1
        changed = values.copy()
        for old, new in self.table.items():
            changed[values == old] = new
        changed[unknown] = self.ignore_index
        return changed.astype(np.int32)

    def read(self, value: Any) -> Any:
        """A class map of a row, in whatever form, with the ids changed; how it is turned and stored is kept. What
        can't be a map is left to [`read_sample`], which says what is wrong."""
        if value is None:
            return None
        if isinstance(value, (dict, str, Path)) or hasattr(value, "getvalue"):
            value = open_file(value, "the data set's rows", Classes.column)
        values = np.asarray(value)
        if getattr(value, "format", None) in LOSSY_FORMATS or not np.issubdtype(values.dtype, np.integer):
            return value
        return keep_origin(self(values), value)


def keep_origin(values: np.ndarray, origin: Any) -> Any:
    """Integers `[H, W]` in the place of an image: with its orientation tag and format."""
    if not isinstance(origin, PIL.Image.Image):
        return values
    image = PIL.Image.fromarray(np.ascontiguousarray(values, dtype=np.int32))
    image.format = origin.format
    if exif_orientation(origin) != 1:
        image.getexif()[PIL.ExifTags.Base.Orientation] = exif_orientation(origin)
    return image


def make_class_ids(
    label_map: dict[int, int | str | None],
    reduce_labels: bool,
    ignore_index: tuple[int, ...],
    id2label: dict[int, str] | None,
) -> tuple[ClassIds, dict[int, str] | None]:
    """The change of ids, and the names of the classes after it.

    Args:
        label_map: of [`read_label_map`].
        reduce_labels: see [`ClassIds`]. `id2label` and `label_map` have the ids after it.
        ignore_index: stored values that aren't annotated.
        id2label: names of the ids before `label_map`.

    Raises:
        ValueError: `label_map` has an id that `id2label` lacks, or makes one of an id that has no name.
    """
    names = None if id2label is None else dict(id2label)
    ids: dict[str, int] = {}
    for key in sorted(names or {}):
        ids.setdefault(names[key], key)
    unknown = sorted(set(label_map) - set(names)) if names is not None else []
    if unknown:
        raise ValueError(f"`label_map` has the id {unknown[0]}, which `id2label` lacks")
    named = {key: new for key, new in label_map.items() if isinstance(new, str)}
    for key in sorted(named):  # a name of its own belongs to the lowest id that gets it
        ids.setdefault(named[key], key)
    drops = {*ignore_index, *([] if names is not None and IGNORE_INDEX in names else [IGNORE_INDEX])}
    valid = set(names or ())
    moves = {key: ids[new] if isinstance(new, str) else new for key, new in label_map.items()}
    dropped = {key for key, new in moves.items() if new is None or (new in drops and new not in valid)}
    for key, new in moves.items():
        if key not in dropped and names is not None and new not in names:
            raise ValueError(f"`label_map` makes {key} to {new}, which `id2label` lacks, and which isn't ignored")
    if names is not None:
        kept = {moves.get(key, key) for key in names if key not in dropped}
        names = {key: name for key, name in names.items() if key in kept}
        names |= {ids[name]: name for name in named.values()}
    elif named and all(isinstance(new, (str, type(None))) for new in label_map.values()):
        names = {ids[name]: name for name in named.values()}
    takes = names or {}
    if label_map or reduce_labels or len(ignore_index) > 1:
        choices = [value for value in (*ignore_index, IGNORE_INDEX, -1) if value not in takes]
        ignored = next(value for value in choices if value != 0 or not reduce_labels)
    else:
        ignored = ignore_index[0]
    check_ignore_index(ignored, names)
    table = {key: ignored if key in dropped else new for key, new in moves.items() if key in dropped or new != key}
    return ClassIds(table, reduce_labels, ignore_index, ignored), names


# ---- a data set with both ----


class PreparedSamples(Sequence):
    """The samples of another sequence, with columns by the schema's names and class ids as they are learned.

    Args:
        data: sequence of rows.
        column_map: column of the schema to the rows' own name for it.
        change: a function of a row, with the schema's names, that gives the row to learn from.
        facts: what is known of the samples after that.
    """

    features: Mapping[str, Any] = {}

    def __init__(self, data: Any, column_map: Mapping[str, str], change: Callable[[dict], dict], facts: Facts):
        self.data, self.column_map, self.change, self.facts = data, dict(column_map), change, facts

    @property
    def column_names(self) -> list[str]:
        """Columns of the samples; of a list of rows, those of the first."""
        names = getattr(self.data, "column_names", None)
        names = list(names if names is not None else self.data[0])
        return rename_columns(names, self.column_map)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.change(rename_row(self.data[index], self.column_map))

    def select(self, indices: Iterable[int]) -> Self:
        """The samples at `indices`."""
        indices = list(indices)
        data = self.data.select(indices) if hasattr(self.data, "select") else [self.data[index] for index in indices]
        return type(self)(data, self.column_map, self.change, self.facts)

    def select_columns(self, names: Sequence[str]) -> Self:
        """The same with these columns alone; what only the others need is not opened."""
        unknown = sorted(set(names) - set(self.column_names))
        if unknown:
            raise ValueError(f"`names` must be some of {self.column_names}, got {unknown}")
        own = [self.column_map.get(name, name) for name in names]
        data = self.data
        if hasattr(data, "select_columns"):
            data = data.select_columns(own)
        else:
            data = [{name: row.get(name) for name in own} for row in data]
        return type(self)(data, {name: self.column_map[name] for name in names if name in self.column_map},
                          self.change, self.facts)  # fmt: skip


def rename_columns(names: Sequence[str], column_map: Mapping[str, str]) -> list[str]:
    """Names of columns by the schema; one of the same name that is not meant is left out."""
    back = {own: column for column, own in column_map.items()}
    return [back.get(name, name) for name in names if name in back or name not in column_map]


def rename_row(row: Mapping[str, Any], column_map: Mapping[str, str]) -> dict[str, Any]:
    """A row with its columns by the schema's names."""
    taken = set(column_map.values())
    rest = {name: value for name, value in row.items() if name not in column_map and name not in taken}
    return rest | {column: row.get(own) for column, own in column_map.items() if own in row}


def _change_row(class_ids: ClassIds, row: dict) -> dict:
    changed = dict(row)
    if row.get(Classes.column) is not None:
        changed[Classes.column] = class_ids.read(row[Classes.column])
    if row.get("objects") is not None:
        changed["objects"] = _change_objects(class_ids, row["objects"])
    return changed


def _change_objects(class_ids: ClassIds, value: Any) -> Any:
    """The objects of a row with their ids changed, without those whose class isn't annotated any more. What can't be
    read is left to [`read_sample`], which says what is wrong."""
    try:
        objects = read_objects(value, "the data set's rows")
    except ValueError:
        return value
    objects["category"] = class_ids(np.array(objects["category"], dtype=np.int64)).tolist()
    kept = [place for place, label in enumerate(objects["category"]) if label != class_ids.ignore_index]
    return {name: [values[place] for place in kept] for name, values in objects.items()}


def _as_it_is(row: dict) -> dict:
    return row


def _rename_and_change(column_map: Mapping[str, str], change: Callable[[dict], dict], row: dict) -> dict:
    return change(rename_row(row, column_map))


def facts_of(data: Any) -> Facts:
    """What a data set says of itself."""
    facts = getattr(data, "facts", None)
    return facts if isinstance(facts, Facts) else Facts()


def choose_depth_range(
    said: str | None, own: str | None, depth_ranges: Mapping[str, Mapping[str, Any]], default: str
) -> str | None:
    """The row of a model's `depth_ranges` for the depth of a data set: what the user says; else the row that the data
    set is known by; else, with a warning, the model's default. `None` where nobody says anything.

    Args:
        said: the user's word.
        own: the data set's, see [`Facts`].
        depth_ranges, default: the model's rows by name, and the name of its default one.

    Raises:
        ValueError: the user names a row that the model lacks.
    """
    if said is not None:
        return check_choice("depth_range", said, depth_ranges)
    if own is None or own in depth_ranges:
        return own
    row = depth_ranges[default]
    resized = f", images are resized to {row['focal_length']:g} pixels" if row.get("focal_length") else ""
    logger.warning(
        f"the model has no depth range {own!r}, which the data set is known by: its default, {default!r}, is taken "
        f"({row['min_depth']:g} to {row['max_depth']:g} m{resized}). Depth beyond is neither learned nor predicted, "
        f"and figures are not those of the range {own!r}. `depth_range` takes another of {sorted(depth_ranges)}"
    )
    return default


def prepare(
    data: Any,
    column_map: "str | Mapping[str, str] | None" = None,
    label_map: "str | Path | Mapping | None" = None,
    reduce_labels: bool = False,
    ignore_index: "int | str | Sequence[int] | None" = None,
    id2label: dict[int, str] | None = None,
) -> Any:
    """A data set with its columns and class ids as they are learned; nothing is read before a sample is asked for.

    Args:
        data: a `Dataset` or `IterableDataset` of `datasets`, a [`FormatSamples`], or a sequence of dicts.
        column_map: column of the schema to the data's own name for it, see [`read_column_map`].
        label_map: merges and drops class ids, see [`read_label_map`]: `3=5` makes 3 to 5, an id that becomes a value
            of `ignore_index` (or 255) or `None` is not annotated any more, and ids that get one name are one class.
        reduce_labels: 0 is not annotated, and all other ids are one less, as with transformers' `do_reduce_labels`;
            `id2label` and `label_map` have the ids after it.
        ignore_index: one or several values of class maps, as they are stored, that aren't annotated; what the data
            says of itself where left out, or 255.
        id2label: class id to name; what the data says of itself where left out.

    Returns:
        the data, with `facts` of what its samples are then: `id2label` without the classes that are gone, and the one
        value of what is not annotated. `data` itself where nothing is changed.

    Raises:
        ValueError: an option that can't be used, or names that the data lacks.
    """
    facts = facts_of(data)
    columns = read_column_map(column_map)
    ignored = read_ignore_index(ignore_index) or (facts.ignore_index,)
    names = facts.id2label if id2label is None else id2label
    class_ids, names = make_class_ids(read_label_map(label_map), bool(reduce_labels), ignored, names)
    facts = replace(facts, id2label=names, ignore_index=class_ids.ignore_index)
    change = partial(_change_row, class_ids) if class_ids.changes else _as_it_is
    if isinstance(data, IterableDataset):
        if columns or class_ids.changes:
            data = _prepare_stream(data, columns, change)
        data.facts = facts
        return data
    if not columns and not class_ids.changes and facts == facts_of(data):
        return data
    there = getattr(data, "column_names", None)
    lacking = [own for own in columns.values() if there is not None and own not in there]
    if lacking:
        raise ValueError(f"`column_map` must name columns of the data, {list(there)}, got {lacking[0]!r}")
    return PreparedSamples(data, columns, change, facts)


def _prepare_stream(
    data: IterableDataset, columns: Mapping[str, str], change: Callable[[dict], dict]
) -> IterableDataset:
    """Row by row while it is read; images stay as they are stored, so that their orientation is known."""
    for name, feature in (data.features or {}).items():
        if isinstance(feature, Image):
            data = data.cast_column(name, Image(decode=False))
    names = data.column_names
    return data.map(
        partial(_rename_and_change, columns, change), remove_columns=None if names is None else list(names)
    )


def settle_depth_ranges(datasets: list, processor: "DenseMLLMProcessor") -> None:
    """Say of all sources in which of the model's ranges their depth is learned, see [`choose_depth_range`].

    Args:
        datasets: those of a training; their sources have the user's word alone.
        processor: of the model.
    """
    chosen = {}
    datasets = [own for dataset in datasets for own in (dataset.values() if isinstance(dataset, dict) else [dataset])]
    for source in (source for dataset in datasets if dataset is not None for source in dataset.sources):
        is_learned = source.columns is None or Depth.column in source.columns
        case = (source.depth_range, facts_of(source.data).depth_range if is_learned else None)
        if case not in chosen:  # one warning for all
            chosen[case] = choose_depth_range(*case, processor.depth_ranges, processor.default_depth_range)
        source.depth_range = chosen[case]


__all__ = [
    "ClassIds",
    "PreparedSamples",
    "choose_depth_range",
    "complete_column_map",
    "facts_of",
    "keep_origin",
    "prepare",
    "read_column_map",
    "read_ignore_index",
    "read_label_map",
    "settle_depth_ranges",
]
