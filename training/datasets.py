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

"""Data sets to train on: samples of one or several sources, mixed, augmented, and put in order."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
import PIL.Image
import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from transformers.utils import logging

from ..checks_densemllm import check_positive
from ..targets_densemllm import IGNORE_INDEX, check_ignore_index, present_values
from ..tasks_densemllm import Classes, Codes, Panoptic, thing_keys
from .maps import CorruptFileError, Samples, open_file
from .samples import COLUMNS, SCHEMA, Augmentation, draw_expression, read_sample


logger = logging.get_logger(__name__)

LOOKED_AT = 100  # rows of class maps, before any is learned
LARGE_IGNORED_SHARE = 0.5
UNCHANGED = ("messages", Codes.column)  # columns with which a sample keeps its size


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
        thing_labels: names or ids of the classes whose objects are told apart, by `instances` beside `segmentation`.
            `None`: of `instances`, only what `expressions` name is learned.
        is_measured: keep the columns, too, that are there for an evaluation alone: a reward compares with them.
    """

    data: Samples | IterableDataset
    weight: float | None = None
    id2label: dict[int, str] | None = None
    depth_scale: float | None = None
    depth_range: str | None = None
    columns: Sequence[str] | None = None
    ignore_index: int = IGNORE_INDEX
    thing_labels: Sequence[str | int] | None = None
    is_measured: bool = False

    def __post_init__(self) -> None:
        check_ignore_index(self.ignore_index, self.id2label)
        if self.thing_labels is not None:
            if self.id2label is None:
                raise ValueError("`thing_labels` needs `id2label`, a dict from class id to name")
            thing_keys(self.thing_labels, self.id2label)
        if self.depth_scale is not None and not 0 < self.depth_scale < float("inf"):
            raise ValueError(f"`depth_scale` must be a number of metres > 0, got {self.depth_scale}")
        if self.columns is not None and ("image" not in self.columns or set(self.columns) - set(COLUMNS)):
            raise ValueError(f"`columns` must contain 'image' and be some of {COLUMNS}, got {self.columns}")
        there = [SCHEMA[name] for name in getattr(self.data, "column_names", None) or () if name in SCHEMA]
        has_measured = any(column.is_measured for column in there)
        if has_measured and not self.is_measured and not any(column.is_learned for column in there):
            raise ValueError(
                f"`data` has nothing to learn from: its columns {self.data.column_names} are for an evaluation alone"
            )


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
        logger.warning(f"{where}: in `{Classes.column}` of {seen} rows, {'; '.join(facts)}")


def warn_of_labels(data: Samples, id2label: dict[int, str], ignore_index: int, where: str) -> None:
    """Warn of classes that never occur, and of a large share of ignored pixels, in up to 100 rows from all over the
    data: names, ids and `ignore_index` may belong to other maps. What can't be read isn't looked at.

    Args:
        data: sequence of samples.
        id2label, ignore_index: see [`DenseSource`].
        where: how messages name the data.
    """
    if hasattr(data, "select_columns"):
        if Classes.column not in data.column_names:
            return
        data = data.select_columns([Classes.column])
    use = _LabelUse(id2label, ignore_index)
    rows = np.unique(np.linspace(0, len(data) - 1, min(len(data), LOOKED_AT)).astype(int)).tolist()
    for row in rows:
        try:
            value = data[row].get(Classes.column)
            if value is None:
                continue
            if isinstance(value, (dict, str, os.PathLike, BytesIO, PIL.Image.Image)):
                value = open_file(value, where, Classes.column)
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
        sample = read_sample(
            row, where, settings.id2label, settings.depth_scale, settings.ignore_index, settings.is_measured
        )
        if self.augmentation is not None or "expression" not in sample:
            sample = draw_expression(sample, self._generator(source, index, 1), settings.ignore_index)
        if settings.thing_labels is None:
            sample.pop(Panoptic.column, None)  # what else it is there for has been drawn
        if self.augmentation is not None:
            sample = self.augmentation(sample, self._generator(source, index))
        # What the maps are now is the sample's own: depth is in metres.
        names = ("id2label", "depth_range", "ignore_index", "thing_labels")
        return sample | {name: getattr(settings, name) for name in names} | {"depth_scale": 1.0}


@lru_cache(maxsize=64)
def _permutation(length: int, *seeds: int) -> np.ndarray:
    return np.random.default_rng(seeds).permutation(length)


class DenseDataset(_Mixture, torch.utils.data.Dataset):
    """Samples of one or several sources, read and augmented when they are asked for (in the loader's workers).

    An epoch has as many samples as the sources together, shared out by their weights: a source that is asked for more
    than it has goes round again, one that is asked for less goes on in the next epoch where it stopped.

    A row with an image that can't be read is reported once, and the next row of its source stands in for it.

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
            if source.id2label is not None and Classes.column in (source.columns or COLUMNS):
                warn_of_labels(source.data, source.id2label, source.ignore_index, f"`sources[{number}]`")
        # Shared with the loader's workers.
        self.corrupt = [torch.zeros(length, dtype=torch.bool).share_memory_() for length in lengths]

    def __len__(self) -> int:
        return sum(self.counts)

    def estimated_lengths(
        self, focal_lengths: "list[float | None]", indices: "Sequence[int] | None" = None
    ) -> list[float]:
        """What samples of this epoch are to the model, in pixels: known without decoding their images. A crop, which
        makes all of one size, isn't looked at. Each image is opened once, the first time that it is asked for.

        Args:
            focal_lengths: of each source's depth range, to which its images are resized; `None`: they aren't.
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
                area = _image_area(header, focal_lengths[source])
                self._areas[source][row] = (area, not any(_is_there(header.get(name)) for name in UNCHANGED))
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
            if Classes.column in sample and uses[source].rows < LOOKED_AT:
                uses[source].add(sample[Classes.column])
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


# ---- order ----


def _headers(source: DenseSource) -> tuple[Sequence, list[str]]:
    """The rows of a source, and the names of the columns that tell the size of an image and whether it is changed;
    without the others where that saves reading them."""
    data, columns = source.data, source.columns or COLUMNS
    wanted = [name for name in ("image", "focal_length", *UNCHANGED) if name in columns]
    if hasattr(data, "select_columns"):
        wanted = [name for name in wanted if name in data.column_names]
        data = data.select_columns(wanted)
    return data, wanted


def _is_there(value) -> bool:
    return value is not None and (not hasattr(value, "__len__") or len(value) > 0)


def _image_area(row: dict, focal_length: float | None) -> float:
    """Pixels of a row's image at the given focal length, 0 where it can't be read."""
    value = row["image"]
    if isinstance(value, np.ndarray):
        height, width = value.shape[:2]
    else:
        try:
            if isinstance(value, dict):
                value = BytesIO(value["bytes"]) if value.get("bytes") is not None else value["path"]
            image = value if isinstance(value, PIL.Image.Image) else PIL.Image.open(value)
            width, height = image.size
        except Exception:  # whatever it is: reading the row will tell what is wrong with it
            return 0.0
    own = row.get("focal_length")
    if own is None or focal_length is None:
        return width * height
    try:
        return width * height * (focal_length / check_positive("focal_length", own)) ** 2
    except (TypeError, ValueError):  # reading the row will tell what is wrong with it
        return width * height


class LikeSizesSampler(torch.utils.data.Sampler):
    """Indices of a [`DenseDataset`] in random order, with samples of like sizes next to each other, so that little of
    a batch is padding. The order depends on seed and epoch alone.

    Args:
        dataset: the data set.
        batch_size: samples of one update.
        focal_lengths: see `DenseDataset.estimated_lengths`.
        seed: of the order.
    """

    def __init__(self, dataset: DenseDataset, batch_size: int, focal_lengths: list, seed: int):
        self.dataset, self.batch_size, self.focal_lengths, self.seed = dataset, batch_size, focal_lengths, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.dataset.epoch)
        order = torch.randperm(len(self.dataset), generator=generator).tolist()
        # Part by part, as large as in transformers' own grouping: the first step doesn't wait for all images.
        size = self.batch_size * max(1, min(len(order) // (4 * self.batch_size), 50))
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            lengths = self.dataset.estimated_lengths(self.focal_lengths, indices)
            by_length = sorted(zip(lengths, indices, strict=True), key=lambda pair: pair[0], reverse=True)
            yield from (index for _, index in by_length)


__all__ = ["DenseDataset", "DenseIterableDataset", "DenseSource", "LikeSizesSampler", "warn_of_labels"]
