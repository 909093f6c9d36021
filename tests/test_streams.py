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
"""Streams that are shared out among workers and processes, and what is read before the first step."""

from collections import Counter

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate.data_loader import IterableDatasetShard
from datasets import Dataset, Image
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Trainer

from densemllm.training import datasets
from densemllm.training.arguments import DenseTrainingArguments
from densemllm.training.collator import DenseCollator
from densemllm.training.datasets import DenseDataset, DenseIterableDataset, DenseSource, LikeSizesSampler
from densemllm.training.samples import Augmentation
from densemllm.training.trainer import DenseTrainer
from tiny import make_image, make_model, make_processor


def numbered(count, start=0):
    """Samples that are known by their colour."""
    mask = PIL.Image.fromarray(np.eye(8, dtype=np.uint8))
    return [{"image": PIL.Image.new("RGB", (8, 8), (start + k, 0, 0)), "mask": mask} for k in range(count)]


def stream(count, shards, start=0):
    rows = Dataset.from_list(numbered(count, start))
    for column in ("image", "mask"):
        rows = rows.cast_column(column, Image(decode=False))
    return rows.to_iterable_dataset(num_shards=shards)


def color(sample):
    return sample["image"].getpixel((0, 0))[0]


class Worker:
    """What `get_worker_info` says in a loader's worker."""

    def __init__(self, number, count):
        self.id, self.num_workers, self.seed, self.dataset = number, count, 0, None


def read_part(monkeypatch, dataset, worker=0, workers=0, limit=None):
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: Worker(worker, workers) if workers else None)
    found = []
    for sample in dataset:
        found.append(color(sample))
        if len(found) == limit:
            break
    return found


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 12), shards=st.integers(1, 5), workers=st.integers(0, 4), processes=st.integers(1, 3),
    plain=st.booleans(),
)  # fmt: skip
def test_every_row_is_read_once_by_all_together(count, shards, workers, processes, plain):
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = []
        for process in range(processes):
            data = numbered(count) if plain else stream(count, min(shards, count))
            dataset = DenseIterableDataset(DenseSource(data))
            dataset.split_by_process(process, processes)
            for worker in range(workers or 1):
                found += read_part(monkeypatch, dataset, worker, workers)
        assert sorted(found) == list(range(count))


@pytest.mark.parametrize("shards", [(1, 4), (2, 3), (4, 4)])
def test_no_worker_ends_for_want_of_a_shard(monkeypatch, shards):
    """Each worker mixes by the weights, whatever shards the sources have."""
    sources = [DenseSource(stream(20, shards[0]), 1.0), DenseSource(stream(20, shards[1], 100), 3.0)]
    dataset, found = DenseIterableDataset(sources, repeat=True), Counter()
    for worker in range(4):
        own = read_part(monkeypatch, dataset, worker, 4, limit=80)
        assert len(own) == 80
        assert 0.1 < sum(value < 100 for value in own) / 80 < 0.4
        found.update(set(own))
    assert sorted(found) == [*range(20), *range(100, 120)] and set(found.values()) == {1}


@pytest.mark.parametrize("repeat", [False, True])
def test_a_part_without_any_row_of_a_source_goes_on_with_the_others(monkeypatch, repeat):
    sources = [DenseSource(stream(2, 1), 1.0), DenseSource(stream(40, 4, 100), 1.0)]
    dataset = DenseIterableDataset(sources, repeat=repeat)
    for worker in (2, 3):
        own = read_part(monkeypatch, dataset, worker, 4, limit=30)
        assert set(own) == {100 + worker + 4 * k for k in range(10)} or len(set(own)) == 10
        assert len(own) == (30 if repeat else 10)
    assert read_part(monkeypatch, DenseIterableDataset(DenseSource(stream(2, 1)), repeat=True), 3, 4) == []


@pytest.mark.parametrize(("count", "shards", "parts"), [(24, 3, 2), (24, 5, 4), (63, 31, 3), (64, 32, 3)])
def test_parts_have_like_sizes(monkeypatch, count, shards, parts):
    dataset = DenseIterableDataset(DenseSource(stream(count, shards)))
    sizes = [len(read_part(monkeypatch, dataset, part, parts)) for part in range(parts)]
    assert sum(sizes) == count and max(sizes) <= 1.1 * min(sizes) + 1


def test_a_shuffled_stream_is_shared_out_too(monkeypatch):
    dataset = DenseIterableDataset(DenseSource(stream(24, 3).shuffle(seed=0, buffer_size=8)))
    for epoch in range(2):
        dataset.set_epoch(epoch)
        parts = [read_part(monkeypatch, dataset, worker, 2) for worker in range(2)]
        assert sorted(parts[0] + parts[1]) == list(range(24)) and parts[0] != sorted(parts[0])


def test_workers_of_a_loader_share_the_rows():
    sources = [DenseSource(stream(12, 1)), DenseSource(stream(12, 3, 100))]
    loader = torch.utils.data.DataLoader(
        DenseIterableDataset(sources[0]), batch_size=3, num_workers=2, collate_fn=list
    )
    assert sorted(color(sample) for batch in loader for sample in batch) == list(range(12))
    loader = torch.utils.data.DataLoader(DenseIterableDataset(sources), batch_size=1, num_workers=2, collate_fn=list)
    found = [color(sample) for batch in loader for sample in batch]
    assert len(set(found)) == len(found) > 12


def test_rows_are_augmented_anew_in_every_part(monkeypatch):
    """The n-th rows of two parts are changed by different numbers."""
    row = {"image": make_image(8, 8), "mask": np.eye(8, dtype=np.uint8)}
    dataset = DenseIterableDataset(DenseSource([row] * 8), Augmentation(color_jitter=0.9))
    seen = []
    for worker in range(2):
        monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda worker=worker: Worker(worker, 2))
        seen += [np.asarray(sample["image"]).tobytes() for sample in dataset]
    assert len(seen) == len(set(seen)) == 8


@pytest.mark.parametrize("repeat", [False, True])
def test_a_process_decodes_its_own_samples_only(monkeypatch, tmp_path, repeat):
    read, processor = [], make_processor()

    def counted(row, *args):
        read.append(row)
        return original(row, *args)

    original = datasets.read_sample
    monkeypatch.setattr(datasets, "read_sample", counted)

    def of_process(trainer):
        shard = IterableDatasetShard(trainer.train_dataset, 2, num_processes=4, process_index=1)
        return torch.utils.data.DataLoader(shard, batch_size=2, collate_fn=list)

    monkeypatch.setattr(Trainer, "get_train_dataloader", of_process)
    args = DenseTrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, max_steps=3)
    dataset = DenseIterableDataset(DenseSource(stream(40, 1)), repeat=repeat)
    trainer = DenseTrainer(make_model(processor), args, train_dataset=dataset, data_collator=DenseCollator(processor))
    batches = [batch for batch, _ in zip(trainer.get_train_dataloader(), range(3), strict=False)]
    found = [color(sample) for batch in batches for sample in batch]
    assert len(batches) == 3 and len(set(found)) == 6
    if repeat:
        assert len(read) <= 8 and found == [1 + 4 * k for k in range(6)]
    else:  # it ends for all processes at once: each takes its part of the batches
        assert found == [2, 3, 10, 11, 18, 19]


def test_sizes_are_looked_up_while_training_and_once(monkeypatch):
    opened = []

    def counted(row, focal_length):
        opened.append(row["image"].size)
        return original(row, focal_length)

    original = datasets._image_area
    monkeypatch.setattr(datasets, "_image_area", counted)
    rows = [{"image": make_image(8 + k % 50, 8), "mask": np.ones((8 + k % 50, 8), bool)} for k in range(1000)]
    dataset = DenseDataset(DenseSource(rows))
    sampler = LikeSizesSampler(dataset, 4, [None], 0)
    order = iter(sampler)
    first = [next(order) for _ in range(4)]
    assert len(opened) == 200  # of 50 batches
    rest = list(order)
    assert sorted(first + rest) == list(range(1000)) and len(opened) == 1000
    assert list(sampler) == first + rest and len(opened) == 1000
    dataset.set_epoch(1)
    assert list(sampler) != first + rest and len(opened) == 1000
    assert dataset.estimated_lengths([None], [3, 1]) == [8.0 * 11, 8.0 * 9]
