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
"""A look at a data set before training: what its rows have, and what in them is wrong or suspicious.

A row is read as training reads it (`SCHEMA` of `training/samples.py`); what that refuses is wrong, and what it takes,
but hardly anybody means, is suspicious.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from ..depth_densemllm import DepthBins
from ..object_tasks_densemllm import Foreground
from ..processing_densemllm import DenseMLLMProcessor
from ..targets_densemllm import IGNORE_INDEX, check_ignore_index, present_values
from ..tasks_densemllm import Classes, Depth, Panoptic
from .datasets import LARGE_IGNORED_SHARE, DenseSource
from .maps import LOSSY_FORMATS, CorruptFileError, Samples, exif_orientation, open_file
from .samples import IMAGE_PROCESSOR, MAPS, SCHEMA, ReadOptions, upright_sample


logger = logging.get_logger(__name__)

NOTHING_TO_LEARN = "nothing_to_learn"
# What is found, by name: whether it is wrong, so that the row can't be trained on, and what it is.
KINDS = {
    "unreadable": (True, "can't be read"),
    "unknown_classes": (True, "classes that `id2label` lacks"),
    "unusable": (True, "can't be used"),
    "different_size": (True, "image and map of different sizes"),
    "orientation": (False, "image and map of different EXIF orientations"),
    "jpeg_map": (False, "maps that are JPEG, which changes values"),
    "two_values": (False, "class maps of 0 and 255 alone: a mask, or one class and the rest ignored"),
    "all_ignored": (False, "class maps that are ignored everywhere"),
    "no_depth": (False, "depth that is invalid, or outside the range, everywhere"),
    "empty_mask": (False, "masks without an object"),
    "empty_expression": (True, "expressions without a word"),
    NOTHING_TO_LEARN: (False, "nothing to learn from"),
    "duplicate": (False, "the image of another row"),
    "duplicate_between_splits": (False, "the image of a row of another split"),
    "names": (True, "class names that the model can't write"),
}
SHOWN = 10  # rows of a kind in the text; the JSON has all
LOOKED_AT_BEFORE_TRAINING = 50
# Of the histogram of metres: a fixed scale, so that parts of a data set add up; 20 bars a decade.
EDGES = np.concatenate([[0], np.logspace(-3, 4, 141)])
BARS = 12


@dataclass(frozen=True)
class CheckOptions:
    """What rows are looked at with; see [`DenseSource`] for the fields that have its names.

    Args:
        columns: to look at; all of the schema where left out.
        depth_bins: with the range that depth must lie in; `None`: any depth is in range.
        find_duplicates: whether images are compared.
    """

    id2label: dict[int, str] | None = None
    depth_scale: float | None = None
    ignore_index: int = IGNORE_INDEX
    depth_range: str | None = None
    columns: Sequence[str] | None = None
    depth_bins: DepthBins | None = None
    find_duplicates: bool = True

    @property
    def read(self) -> ReadOptions:
        return ReadOptions(self.id2label, self.depth_scale, self.ignore_index)


@dataclass
class Finding:
    """Something wrong or suspicious.

    Args:
        kind: one of `KINDS`.
        split, row: where; `None`: it is of the whole data set.
        message: what it is.
    """

    kind: str
    split: str | None
    row: int | None
    message: str


@dataclass
class RowFacts:
    """What one row has; what can't be read of it is missing."""

    row: int
    columns: tuple[str, ...] = ()
    size: tuple[int, int] | None = None  # height, width of the upright image
    classes: dict[int, int] = field(default_factory=dict)  # pixels by class id, ignored ones with them
    metres: np.ndarray | None = None  # histogram
    depth: tuple[int, int, int] = (0, 0, 0)  # pixels, of which invalid, of which outside the range
    focal_length: float | None = None
    objects: int | None = None
    expressions: int = 0
    messages: int = 0
    digest: bytes | None = None
    found: list[tuple[str, str]] = field(default_factory=list)


# ---- one row ----


def look_at_row(data: Samples, row: int, options: CheckOptions) -> RowFacts:
    """What a row has; nothing that is wrong with it raises an error."""
    facts = RowFacts(row)
    try:
        values = {
            name: value
            for name, value in data[row].items()
            if name in SCHEMA
            and value is not None
            and name in (options.columns or SCHEMA)
            and not SCHEMA[name].is_measured
        }
    except Exception as error:  # whatever a reader meets in its files
        facts.found.append(("unreadable", f"row {row}: {type(error).__name__}: {error}"))
        return facts
    facts.columns = tuple(name for name in values if name != "image")
    if not any(SCHEMA[name].is_learned for name in facts.columns):
        facts.found.append((NOTHING_TO_LEARN, f"row {row} has the columns {sorted(values)}"))
    if "image" not in values:
        facts.found.append(("unusable", f"row {row} has no `image`"))
        return facts
    try:
        facts.digest = _digest(values["image"]) if options.find_duplicates else None
    except OSError:
        pass  # opening it will tell
    sample = _read_maps(_open_files(values, facts), facts)
    if sample is not None:
        facts.size = (sample["image"].height, sample["image"].width)
        _look_at_maps(sample, facts, options)
        _look_at_texts(values, facts)
        _read_columns(sample, facts, options)
    return facts


def _digest(image: Any) -> bytes:
    """Of the file's bytes, or of an image in memory its pixels."""
    content = image
    if isinstance(image, dict):
        content = image.get("bytes") if image.get("bytes") is not None else image.get("path")
    if isinstance(content, (str, os.PathLike)):
        if not os.path.isfile(content):
            return hashlib.blake2b(str(content).encode(), digest_size=16).digest()
        with open(content, "rb") as file:
            content = file.read()
    if not isinstance(content, bytes):
        pixels = np.asarray(content)
        content = str(pixels.shape).encode() + pixels.tobytes()
    return hashlib.blake2b(content, digest_size=16).digest()


def _open_files(values: dict, facts: RowFacts) -> dict:
    """The values with images and maps opened, without those that can't be."""
    opened = {}
    for name, value in values.items():
        is_file = isinstance(value, (dict, str, os.PathLike)) and (name == "image" or name in MAPS)
        if is_file and not str(value).startswith(("http://", "https://", "data:")):
            where = f"row {facts.row}, column `{name}`"
            try:
                most = IMAGE_PROCESSOR.max_image_pixels if name == "image" else None
                value = open_file(value, where, name, most)
            except (ValueError, OSError) as error:
                facts.found.append(_found_by(error))
                continue
        opened[name] = value
    return opened


def _found_by(error: Exception) -> tuple[str, str]:
    """What an error of opening a file is: of a damaged file, or of one that holds something else."""
    return "unreadable" if isinstance(error, (CorruptFileError, OSError)) else "unusable", str(error)


def _read_maps(opened: dict, facts: RowFacts) -> dict | None:
    """The sample with upright image and maps, without the maps that don't fit; `None` without an image."""
    if "image" not in opened:
        return None
    where = f"row {facts.row}"
    try:
        sample = upright_sample({"image": opened["image"]}, where, IMAGE_PROCESSOR)
    except (ValueError, TypeError, OSError) as error:
        facts.found.append(_found_by(error))
        return None
    own = exif_orientation(opened["image"])
    for name, value in opened.items():
        if name not in MAPS:
            sample.setdefault(name, value)
            continue
        if getattr(value, "format", None) in LOSSY_FORMATS:
            facts.found.append(("jpeg_map", f"{where}, column `{name}`: it is a JPEG"))
        turned = exif_orientation(value)
        if turned != own:
            said = f"{where}, column `{name}`: its EXIF orientation is {turned}, the image's {own}"
            facts.found.append(("orientation", said))
        try:
            sample[name] = upright_sample({"image": opened["image"], name: value}, where, IMAGE_PROCESSOR)[name]
        except (ValueError, TypeError, OSError) as error:
            fits = sorted(np.shape(value)[:2]) == sorted((sample["image"].height, sample["image"].width))
            facts.found.append(("unusable" if fits else "different_size", str(error)))
    return sample


def _look_at_maps(sample: dict, facts: RowFacts, options: CheckOptions) -> None:
    where, ignore_index = f"row {facts.row}", options.ignore_index
    classes = sample.get(Classes.column)
    if classes is not None and np.issubdtype(classes.dtype, np.integer):
        present = present_values(classes).tolist()
        facts.classes = {key: int(np.count_nonzero(classes == key)) for key in present}
        if present == [0, 255]:
            facts.found.append(("two_values", f"{where}, column `{Classes.column}`: its values are 0 and 255"))
        if present == [ignore_index]:
            facts.found.append(("all_ignored", f"{where}, column `{Classes.column}`: all of it is {ignore_index}"))
    objects = sample.get(Panoptic.column)
    if objects is not None and np.issubdtype(objects.dtype, np.integer):
        facts.objects = len(set(present_values(objects).tolist()) - {0, ignore_index})


def _look_at_texts(values: dict, facts: RowFacts) -> None:
    texts = [values.get("expression"), *(values.get("expressions") or ())]
    texts = [text for text in texts if isinstance(text, str)]
    if not all(text.strip() for text in texts):
        facts.found.append(("empty_expression", f"row {facts.row} has an expression without a word"))
    facts.expressions = len(texts)
    facts.messages = len(values.get("messages") or ())


def _read_columns(sample: dict, facts: RowFacts, options: CheckOptions) -> None:
    """Each column by the schema's own rule; what that refuses is found, and what it gives is counted."""
    where = f"row {facts.row}"
    reported = {kind for kind, _ in facts.found}
    for name, column in SCHEMA.items():
        if name not in sample or name == "image":
            continue
        try:
            sample[name] = column.read(sample[name], sample, where, options.read)
        except (ValueError, TypeError, OSError) as error:
            unknown = name == Classes.column and options.id2label is not None and facts.classes
            kind = "unknown_classes" if unknown else "unusable"
            # A map that isn't there was reported; what refers to it isn't another thing to fix.
            dependent = name in ("expression", "expressions") and bool(
                reported & {"empty_expression", "unreadable", "different_size"}
            )
            if not dependent:
                facts.found.append((kind, str(error)))
            continue
        if name == Depth.column:
            _look_at_depth(sample, facts, options)
        if name == Foreground.column and not (sample[name] > 0).any():
            facts.found.append(("empty_mask", f"{where}, column `{name}`: nothing in it is an object"))
    focal_length = sample.get("focal_length")
    facts.focal_length = focal_length if isinstance(focal_length, float) else None


def _look_at_depth(sample: dict, facts: RowFacts, options: CheckOptions) -> None:
    metres = sample[Depth.column]
    valid = np.isfinite(metres) & (metres > 0)
    facts.metres = np.histogram(metres[valid], EDGES)[0]
    outside = 0
    if options.depth_bins is not None:
        try:
            # 0 is what no bin is for.
            bins = options.depth_bins.encode(metres, options.depth_range, sample.get("focal_length"))
            outside = int(np.count_nonzero(valid & (bins == 0)))
        except (ValueError, TypeError):
            pass  # the focal length's own check will tell
    facts.depth = (metres.size, int(np.count_nonzero(~valid)), outside)
    if sum(facts.depth[1:]) == metres.size:
        said = f"row {facts.row}, column `{Depth.column}`: no pixel of it can be learned"
        facts.found.append(("no_depth", said))


# ---- a split ----


class _Rows(torch.utils.data.Dataset):
    """The facts of rows, for a loader's processes."""

    def __init__(self, data: Samples, rows: list[int], options: CheckOptions):
        self.data, self.rows, self.options = data, rows, options

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> RowFacts:
        return look_at_row(self.data, self.rows[place], self.options)


def _as_it_is(facts: RowFacts) -> RowFacts:
    return facts


def spread(count: int, limit: int | None) -> list[int]:
    """Up to `limit` row numbers from all over `count` rows."""
    limit = count if limit is None else min(count, limit)
    return np.unique(np.linspace(0, count - 1, limit).astype(int)).tolist() if limit else []


@dataclass
class SplitFacts:
    """What the rows of a split have together. Sizes are `(height, width)` in pixels, with as many rows each."""

    rows: int
    looked_at: int = 0
    bad_rows: int = 0
    sizes: Counter = field(default_factory=Counter)
    annotated: Counter = field(default_factory=Counter)  # rows by column
    combinations: Counter = field(default_factory=Counter)  # rows by all of their columns
    class_pixels: Counter = field(default_factory=Counter)
    class_images: Counter = field(default_factory=Counter)
    metres: np.ndarray = field(default_factory=lambda: np.zeros(len(EDGES) - 1, dtype=np.int64))
    depth: np.ndarray = field(default_factory=lambda: np.zeros(3, dtype=np.int64))
    focal_lengths: Counter = field(default_factory=Counter)
    objects: Counter = field(default_factory=Counter)  # rows by number of objects
    expressions: int = 0
    messages: int = 0
    tokens: Counter = field(default_factory=Counter)  # rows by number of vision tokens

    def add(self, facts: RowFacts) -> None:
        """Add what a row has."""
        self.looked_at += 1
        self.bad_rows += any(KINDS[kind][0] for kind, _ in facts.found)
        self.annotated.update(facts.columns)
        self.combinations[facts.columns] += 1
        if facts.size is not None:
            self.sizes[facts.size] += 1
        self.class_pixels.update(facts.classes)
        self.class_images.update(facts.classes.keys())
        if facts.metres is not None:
            self.metres += facts.metres
            self.depth += facts.depth
        if facts.focal_length is not None:
            self.focal_lengths[facts.focal_length] += 1
        if facts.objects is not None:
            self.objects[facts.objects] += 1
        self.expressions += facts.expressions
        self.messages += facts.messages

    def ignored_share(self, ignore_index: int) -> float:
        """Of the pixels of class maps."""
        return self.class_pixels[ignore_index] / max(1, self.class_pixels.total())

    def to_dict(self, id2label: dict[int, str] | None, ignore_index: int) -> dict[str, Any]:
        """Plain values, for JSON."""
        keys = sorted(({*(id2label or ()), *self.class_pixels}) - {ignore_index})
        found = {"rows": self.rows, "looked_at": self.looked_at, "rows_to_fix": self.bad_rows}
        found["sizes"] = spread_of(self.sizes, lambda size: size[0] * size[1])
        found["columns"] = dict(self.annotated)
        found["combinations"] = [
            {"columns": list(names), "rows": rows} for names, rows in self.combinations.most_common()
        ]
        if self.class_pixels:
            found["classes"] = [
                {
                    "id": key,
                    "name": (id2label or {}).get(key),
                    "pixels": self.class_pixels[key],
                    "images": self.class_images[key],
                }
                for key in keys
            ]
            found["ignored_share"] = self.ignored_share(ignore_index)
        if self.depth[0]:
            pixels, invalid, outside = self.depth.tolist()
            found[Depth.column] = {
                "invalid_share": invalid / pixels,
                "outside_share": outside / pixels,
                "histogram": [
                    {"from": float(low), "to": float(high), "pixels": count}
                    for low, high, count in zip(EDGES[:-1], EDGES[1:], self.metres.tolist(), strict=True)
                    if count
                ],
            }
        if self.focal_lengths:
            found["focal_lengths"] = spread_of(self.focal_lengths) | {"rows": self.focal_lengths.total()}
        if self.objects:
            found["objects"] = spread_of(self.objects)
        if self.tokens:
            found["vision_tokens"] = spread_of(self.tokens)
        return found | {"expressions": self.expressions, "messages": self.messages}


def spread_of(counts: Counter, key: Callable[[Any], Any] | None = None) -> dict[str, Any]:
    """The least, the median and the largest of counted values, `None` of nothing."""
    values = sorted(counts, key=key)
    if not values:
        return {"least": None, "median": None, "largest": None}
    places = np.cumsum([counts[value] for value in values])
    median = values[int(np.searchsorted(places, (places[-1] + 1) // 2))]
    return {"least": values[0], "median": median, "largest": values[-1]}


# ---- the report ----


@dataclass
class Report:
    """What a data set has, and what of it is wrong or suspicious.

    Args:
        splits: what each split has.
        findings: in the order of `KINDS`, then of splits and rows.
        id2label, ignore_index: that the class maps were read with.
        depth_range: the row of a depth range that the depth was held against, or `None`.
    """

    splits: dict[str, SplitFacts]
    findings: list[Finding]
    id2label: dict[int, str] | None = None
    ignore_index: int = IGNORE_INDEX
    depth_range: dict[str, Any] | None = None

    @property
    def is_wrong(self) -> bool:
        """Whether something has to be fixed before training, such as a row that can't be read."""
        return any(KINDS[finding.kind][0] for finding in self.findings)

    def by_kind(self) -> dict[str, list[Finding]]:
        """What was found, by kind."""
        found = defaultdict(list)
        for finding in self.findings:
            found[finding.kind].append(finding)
        return dict(found)

    def missing_classes(self) -> list[int]:
        """Classes of `id2label` that occur in no row that was looked at, of data with class maps."""
        found = {key for facts in self.splits.values() for key in facts.class_pixels}
        return [key for key in sorted(self.id2label or ()) if key not in found] if found else []

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: `splits`, and `to_fix` and `suspicious`, lists of kind, split, row and message."""
        rows = [(KINDS[finding.kind][0], vars(finding)) for finding in self.findings]
        return {
            "is_wrong": self.is_wrong,
            "splits": {name: facts.to_dict(self.id2label, self.ignore_index) for name, facts in self.splits.items()},
            "missing_classes": self.missing_classes(),
            "depth_range": self.depth_range,
            "to_fix": [row for is_wrong, row in rows if is_wrong],
            "suspicious": [row for is_wrong, row in rows if not is_wrong],
        }

    def to_text(self) -> str:
        """What a person wants to know, in lines."""
        lines = []
        for name, facts in self.splits.items():
            lines += [*self._lines_of(name, facts), ""]
        missing = self.missing_classes()
        if missing:
            named = [f"{key} {self.id2label[key]}" for key in missing]
            lines += [f"{len(missing)} of {len(self.id2label)} classes never occur: {_some(named)}", ""]
        return "\n".join(lines + self.lines_of_findings())

    def lines_of_findings(self) -> list[str]:
        """A line for each kind of what was found, with its rows and the first message."""
        lines = []
        for kind, found in self.by_kind().items():
            is_wrong, about = KINDS[kind]
            places = [f"{each.split} {each.row}" for each in found if each.row is not None]
            rows = f" ({_some(places)})" if places else ""
            lines.append(f"{'WRONG' if is_wrong else 'suspicious'}: {len(found)} x {about}{rows}")
            lines.append(f"    {found[0].message}")
        return lines or ["nothing is wrong or suspicious"]

    def _lines_of(self, name: str, facts: SplitFacts) -> list[str]:
        seen = "all looked at" if facts.looked_at == facts.rows else f"{facts.looked_at} looked at"
        lines = [f"{name}: {facts.rows} rows, {seen}, {facts.bad_rows} to fix"]
        if facts.sizes:
            sizes = spread_of(facts.sizes, lambda size: size[0] * size[1]).items()
            said = ", ".join(f"{what} {size[1]} x {size[0]}" for what, size in sizes)
            lines.append(f"  images: {said} (width x height)")
        if facts.tokens:
            lines.append(f"  vision tokens: {_said(facts.tokens)}")
        for names, rows in facts.combinations.most_common(SHOWN):
            lines.append(f"  {rows} rows with {', '.join(names) or 'nothing'}")
        if len(facts.combinations) > 1:
            said = ", ".join(f"{column} {rows}" for column, rows in facts.annotated.most_common())
            lines.append(f"  rows by column: {said}")
        lines += _lines_of_classes(facts, self.id2label or {}, self.ignore_index)
        lines += _lines_of_depth(facts, self.depth_range)
        if facts.focal_lengths:
            lines.append(f"  focal length: {_said(facts.focal_lengths)} pixels, in {facts.focal_lengths.total()} rows")
        if facts.objects:
            lines.append(f"  objects a row: {_said(facts.objects)}")
        if facts.expressions or facts.messages:
            lines.append(f"  {facts.expressions} expressions, {facts.messages} messages")
        return lines


def _lines_of_classes(facts: SplitFacts, id2label: dict[int, str], ignore_index: int) -> list[str]:
    classes = Counter({key: count for key, count in facts.class_pixels.items() if key != ignore_index})
    if not facts.class_pixels:
        return []
    total = facts.class_pixels.total()
    share = facts.ignored_share(ignore_index)
    note = ": is `ignore_index` right?" if share > LARGE_IGNORED_SHARE else ""
    lines = [f"  {len(classes)} classes; {share:.1%} of the pixels are ignored ({ignore_index}){note}"]
    for key, count in classes.most_common():
        name = id2label.get(key, "UNKNOWN" if id2label else "")
        lines.append(f"    {key:>5} {name:<24.24} {count / total:7.2%} of pixels, {facts.class_images[key]:>6} images")
    return lines


def _lines_of_depth(facts: SplitFacts, depth_range: dict[str, Any] | None) -> list[str]:
    if not facts.depth[0]:
        return []
    pixels, invalid, outside = facts.depth.tolist()
    lines = [f"  depth: {invalid / pixels:.1%} of the pixels are 0 or invalid"]
    if depth_range is not None:
        low, high = depth_range["min_depth"], depth_range["max_depth"]
        at = f" at a focal length of {depth_range['focal_length']:g}" if depth_range.get("focal_length") else ""
        lines[0] += f", {outside / pixels:.1%} outside the range of {low:g} to {high:g} m{at}"
    there = np.flatnonzero(facts.metres)
    if not len(there):
        return lines
    # Bars of equal numbers of bins, so that they fill a screen's height.
    step = -(-(there[-1] + 1 - there[0]) // BARS)
    starts = range(int(there[0]), int(there[-1]) + 1, int(step))
    bars = [int(facts.metres[start : start + step].sum()) for start in starts]
    for start, bar in zip(starts, bars, strict=True):
        low, high = EDGES[start], EDGES[min(start + step, len(EDGES) - 1)]
        length = round(40 * bar / max(bars))
        lines.append(f"    {low:8.3g} to {high:8.3g} m {bar / sum(bars):6.1%} {'#' * length}".rstrip())
    return lines


def _said(counts: Counter) -> str:
    return ", ".join(f"{what} {value:g}" for what, value in spread_of(counts).items())


def _some(texts: list[str]) -> str:
    return ", ".join(texts[:SHOWN]) + (f"... {len(texts)} in all" if len(texts) > SHOWN else "")


# ---- the check ----


def check_data(
    splits: dict[str, Samples],
    options: CheckOptions | None = None,
    processor: DenseMLLMProcessor | None = None,
    limit: int | None = None,
    num_workers: int = 0,
    progress: bool = True,
) -> Report:
    """Look at the rows of a data set.

    Args:
        splits: name to samples; see [`load_samples`].
        options: what they are read with.
        processor: of a model, whose tokens and sizes of images are reported.
        limit: look at that many rows of each split, from all over it; at all where left out.
        num_workers: processes that read; 0: this one.
        progress: whether a bar shows how far it is.

    Raises:
        TypeError: `ignore_index` is not an integer.
        ValueError: `limit` or `num_workers` is too small, `splits` is empty, or `ignore_index` is a class.
    """
    options = CheckOptions() if options is None else options
    check_ignore_index(options.ignore_index, options.id2label)
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` must be at least 1, got {limit}")
    if num_workers < 0:
        raise ValueError(f"`num_workers` must be at least 0, got {num_workers}")
    if not splits:
        raise ValueError("`splits` is empty; at least one is needed")
    row_of_range = None if options.depth_bins is None else options.depth_bins.row(options.depth_range)
    report = Report({}, [], options.id2label, options.ignore_index, row_of_range)
    seen: dict[bytes, tuple[str, int]] = {}
    for name, data in splits.items():
        rows = spread(len(data), limit)
        report.splits[name] = SplitFacts(len(data))
        loader = torch.utils.data.DataLoader(
            _Rows(data, rows, options), batch_size=None, collate_fn=_as_it_is, num_workers=num_workers,
            generator=torch.Generator(),  # else it would draw from the one that a training has seeded
        )  # fmt: skip
        for facts in tqdm(loader, desc=name, total=len(rows), disable=not progress):
            _find_duplicate(facts, name, seen)
            report.splits[name].add(facts)
            report.findings += [Finding(kind, name, facts.row, message) for kind, message in facts.found]
            if processor is not None and facts.size is not None:
                report.splits[name].tokens[_vision_tokens(facts, processor, options.depth_range)] += 1
    if processor is not None and options.id2label is not None:
        try:
            processor.label_token_ids(options.id2label)
        except ValueError as error:
            report.findings.append(Finding("names", None, None, str(error)))
    order = {kind: place for place, kind in enumerate(KINDS)}
    report.findings.sort(key=lambda finding: order[finding.kind])
    return report


def _find_duplicate(facts: RowFacts, split: str, seen: dict[bytes, tuple[str, int]]) -> None:
    if facts.digest is None:
        return
    other, row = seen.setdefault(facts.digest, (split, facts.row))
    if (other, row) != (split, facts.row):
        kind = "duplicate" if other == split else "duplicate_between_splits"
        facts.found.append((kind, f"row {facts.row} of {split} has the image of row {row} of {other}"))


def _vision_tokens(facts: RowFacts, processor: DenseMLLMProcessor, depth_range: str | None) -> int:
    """Of the image as it is trained on: at the focal length of its depth range, then as the processor resizes it."""
    sizes = processor.image_processor
    try:
        scale = processor.get_scale(facts.focal_length, depth_range)
    except ValueError:  # a focal length that no camera has is found when the row is trained on
        scale = None
    size = facts.size if scale is None else sizes.get_resized_size(*facts.size, {"scale": scale})
    height, width = sizes.get_resized_size(*size)
    return height * width // (sizes.patch_size * sizes.merge_size) ** 2


def check_before_training(
    sources: Sequence[DenseSource], limit: int = LOOKED_AT_BEFORE_TRAINING, images_alone: bool = False
) -> None:
    """A bounded look at the data sets of a training, in this process: what is wrong or suspicious is logged.

    Args:
        sources: the data sets; streams are left alone.
        limit: rows of each.
        images_alone: whether images without anything to learn from are enough.

    Raises:
        ValueError: of a data set, no row that was looked at can be read.
    """
    for number, source in enumerate(sources):
        if not hasattr(source.data, "__len__"):
            continue
        options = CheckOptions(
            source.id2label, source.depth_scale, source.ignore_index, source.depth_range, source.columns,
            find_duplicates=False,
        )  # fmt: skip
        name = f"sources[{number}]"
        report = check_data({name: source.data}, options, limit=limit, progress=False)
        if images_alone:
            report.findings = [finding for finding in report.findings if finding.kind != NOTHING_TO_LEARN]
        facts = report.splits[name]
        broken = {finding.row for finding in report.findings if KINDS[finding.kind][0]}
        if facts.looked_at and len(broken) == facts.looked_at:
            first = next(finding for finding in report.findings if KINDS[finding.kind][0])
            raise ValueError(
                f"none of {facts.looked_at} rows of `{name}` that were looked at can be used; the first: "
                f"{first.message} (`densemllm check` tells more, `--skip_data_check` goes on)"
            )
        if report.findings:
            found = "\n".join(report.lines_of_findings())
            logger.warning(f"`{name}`: in {facts.looked_at} of {facts.rows} rows\n{found}")


__all__ = ["CheckOptions", "Finding", "Report", "SplitFacts", "check_before_training", "check_data"]
