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
"""The evaluation itself: open data, check, load, predict, add up, write."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm

from ..addresses import find_model
from ..configuration_densemllm import DenseMLLMConfig
from ..files import reading
from ..formats.folders import DataOptions, open_samples
from ..formats.options import choose_depth_range
from ..formats.own_folders import OPTIONS
from ..loading_densemllm import choose_dtype
from ..modeling_densemllm import DenseMLLMForConditionalGeneration
from ..processing_densemllm import DenseMLLMProcessor
from ..targets_densemllm import check_ignore_index
from ..training.datasets import warn_of_labels
from ..training.samples import draw_expression, read_sample
from .arguments import EvaluationArguments
from .language import compare_text, digest_of, read_baseline, read_text
from .measured import LANGUAGE, MEASURED, Settings
from .metrics import DenseMetrics
from .predict import predict_samples
from .protocols import compare_protocol, describe_protocol
from .report import draw_sheet, load_card, make_results, segments_record, update_card, write_coco, write_results
from .state import State, check_coco_folder, check_output_dir, data_digest, make_fingerprint, model_digest


def main(args: EvaluationArguments) -> dict:
    """Evaluate, in any number of processes. Returns what `results.json` has, in every process.

    Raises:
        ValueError, OSError: an option, a data set or a model that can't be used, each named.
    """
    find_model(args.model)  # a name that is wrong is known in a second, and not after the data was read
    process, device = start_process(args)
    with State(Path(args.output_dir) / "state", args.overwrite) as state:
        return evaluate(args, process, device, state)


def start_process(args: EvaluationArguments) -> tuple[PartialState, torch.device]:
    """This process among all of the launch, and its device.

    Raises:
        ValueError: processes that don't know of each other, or a device that is not there.
    """
    use_cpu = args.device == "cpu" or not torch.accelerator.is_available()
    process = PartialState(cpu=use_cpu, timeout=timedelta(hours=6))  # whoever is ready first waits for the slowest
    if process.num_processes != int(os.environ.get("WORLD_SIZE", 1)):
        raise ValueError(
            f"{os.environ['WORLD_SIZE']} processes were launched that don't know of each other; use torchrun"
        )
    if process.num_processes > 1 and args.device not in (None, "cpu", process.device.type):
        raise ValueError(f"`device` must be 'cpu' or left out with several processes, got {args.device!r}")
    try:
        device = process.device if args.device is None or process.num_processes > 1 else torch.device(args.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`device` {args.device!r} can't be used here ({error})") from error
    return process, device


def evaluate(args: EvaluationArguments, process: PartialState, device: torch.device, state: State) -> dict:
    """Evaluate, and write what is missing of the results. Returns what `results.json` has, in every process.

    Args:
        args: the options.
        process: this process, of all that share the data.
        device: where the model runs.
        state: what is done already, beside which the results are written.
    """
    asked = args
    data, id2label, args = open_data(args)
    comparison = compare_protocol(asked, len(data))
    settings = args.settings(id2label)
    baseline = None
    if LANGUAGE.name in args.task:
        settings = replace(settings, text=read_text(args.text_file))
        if args.baseline is not None:
            baseline = read_baseline(args.baseline, digest_of(settings.text), len(data))
    fingerprint = make_fingerprint(args, data, id2label, device)
    if args.update_card:
        load_card(args.model)
    if process.is_main_process:
        check_output_dir(args, state)
        check_coco_folder(args, state)
        fingerprint["data_digest"] = data_digest(data)
        state.check(fingerprint)
    if comparison is not None and process.is_main_process:
        print(describe_protocol(comparison))
    processor, settings = open_processor(args, settings)
    check_cameras(args, data, settings)
    for task in args.task:
        settings = MEASURED[task].survey(data, settings)
    model = load_model(args, device)
    before = open_state(process, state, fingerprint, model, processor)

    read, predict = partial(read_row, data, settings), make_predict(args, model, processor, settings)
    metrics = args.make_metrics(settings)
    todo = share_out(before, math.ceil(len(data) / args.batch_size), process)
    pieces = before + gather_object(evaluate_pending(args, predict, read, len(data), metrics, state, todo))
    scores = add_up(metrics, [record for piece in pieces for record in piece["records"]])
    for task in args.task:
        if not scores[task]:
            raise ValueError(f"`task` {task!r}: no sample of {args.data} has {MEASURED[task].columns_text()}")

    for task in args.task:
        if MEASURED[task].once is not None:
            MEASURED[task].once(model, processor, settings, metrics[task])
    seconds = sum(piece["seconds"] for piece in pieces)
    results = make_results(args, len(data), metrics, scores, id2label, process.num_processes, seconds)
    if comparison is not None:
        results["protocol"] = comparison
    if LANGUAGE.name in metrics:
        facts, figures = metrics[LANGUAGE.name].facts(), results["metrics"][LANGUAGE.name]
        results["text"] = {"task": LANGUAGE.name, "digest": digest_of(settings.text), **facts}
        if baseline is not None:
            results["text_kept"] = compare_text(baseline, figures, facts["questions"])
    if process.is_main_process:
        sheet = draw_sheet(args.task, args.cases, predict, read, id2label, scores)
        folder = state.folder.parent
        write_results(folder, results, metrics, id2label, sheet)
        if args.save_coco is not None:
            segments = [record for piece in pieces for record in piece["segments"]]
            write_coco(Path(args.save_coco), sorted(segments, key=lambda record: record["index"]), settings)
        if args.update_card:
            update_card(args.model, results)
        print((folder / "results.md").read_text(encoding="utf-8"))
    process.wait_for_everyone()
    return results


# ---- data and model ----


def open_data(args: EvaluationArguments) -> tuple[Any, dict[int, str] | None, EvaluationArguments]:
    """The rows to evaluate on, with the columns that the tasks need, the names of the classes, and the options with
    what the data says of itself where they say nothing.

    Raises:
        ValueError: data without such columns or rows, or classes without names.
    """
    names = {entry.name for entry in fields(DataOptions)} - {"layout", "images_alone"}
    layout = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    said = DataOptions(**{name: getattr(args, name) for name in names}, layout=layout)
    with reading(f"`data` {args.data}"):
        data, facts = open_samples(args.data, args.split, said, whole=True)
    known = {name: getattr(facts, name) for name in ("depth_scale", "depth_range", "ignore_index")}
    if args.depth_range is None and facts.depth_range is not None:
        with reading(f"`model` {args.model}"):
            config = DenseMLLMConfig.from_pretrained(args.model)
        known["depth_range"] = choose_depth_range(
            None, facts.depth_range, config.depth_ranges, config.default_depth_range
        )
    args = replace(args, **known)
    data = data.select_columns(find_columns(args, data.column_names))
    if args.limit is not None:
        data = data.select(range(min(args.limit, len(data))))
    if not len(data):
        raise ValueError(f"`data` {args.data} has no samples in the split {args.split!r}")
    if not any(MEASURED[task].needs_labels for task in args.task):
        return data, None, args
    id2label = facts.id2label
    if id2label is None:
        tasks = " and ".join(task.name for task in MEASURED.values() if task.needs_labels)
        raise ValueError(f"`id2label` is needed for {tasks}: a JSON file from class id to name")
    check_ignore_index(args.ignore_index, id2label)
    warn_of_labels(data, id2label, args.ignore_index, "data")
    return data, id2label, args


def find_columns(args: EvaluationArguments, there: list[str]) -> list[str]:
    """The columns that the tasks need, of those that a data set has.

    Raises:
        ValueError: it has none of what annotates a task.
    """
    columns = {"image", "focal_length"} & set(there)
    for task in args.task:
        found = [names for names in MEASURED[task].columns if {"image", *names} <= set(there)]
        if not found:
            raise ValueError(
                f"`task` {task!r} needs the columns image, {MEASURED[task].columns_text()}; {args.data} has {there}"
            )
        columns |= set(found[0])
    return sorted(columns)


def read_row(data: datasets.Dataset, settings: Settings, row: int) -> dict:
    """The sample of a row, with one of its expressions, the same in every run, where it has several."""
    sample = read_sample(
        data[row], f"row {row}", settings.id2label, settings.depth_scale, settings.ignore_index, measured=True
    )
    if "expression" not in sample:
        sample = draw_expression(sample, np.random.default_rng(row), settings.ignore_index)
    return {**sample, "row": row, "depth_scale": 1.0}  # it is in metres now


def open_processor(args: EvaluationArguments, settings: Settings) -> tuple[DenseMLLMProcessor, Settings]:
    """The processor, and the settings with what the model's files say, once it is clear that it can do the tasks.

    Raises:
        ValueError: its files can't be loaded, or it can't do a task.
    """
    with reading(f"`model` {args.model}"):
        processor = DenseMLLMProcessor.from_pretrained(args.model, trust_remote_code=args.trust_remote_code)
        config = DenseMLLMConfig.from_pretrained(args.model)
    for task in args.task:
        MEASURED[task].check(processor, settings)
        settings = MEASURED[task].prepare(settings, config, processor)
    return processor, settings


def check_cameras(args: EvaluationArguments, data: datasets.Dataset, settings: Settings) -> None:
    """Raise a `ValueError` where a task needs focal lengths and the data have none."""
    for task in args.task:
        if MEASURED[task].needs_camera(settings) and "focal_length" not in data.column_names:
            raise ValueError(
                f"`task` {task!r} of this model needs the column focal_length, in pixels; {args.data} has none"
            )


def load_model(args: EvaluationArguments, device: torch.device) -> DenseMLLMForConditionalGeneration:
    """The model on its device.

    Raises:
        ValueError: it can't be loaded.
    """
    with reading(f"`model` {args.model}"):
        model = DenseMLLMForConditionalGeneration.from_pretrained(
            args.model, dtype=choose_dtype(args.dtype, device), attn_implementation=args.attn_implementation
        )
    return model.to(device).eval()


# ---- predicting ----


def open_state(
    process: PartialState,
    state: State,
    fingerprint: dict,
    model: DenseMLLMForConditionalGeneration,
    processor: DenseMLLMProcessor,
) -> list[dict]:
    """The pieces that are there, which is the main process's word for all."""
    before: list = [None]
    if process.is_main_process:
        before = [state.open(fingerprint | {"model_digest": model_digest(model, processor)})]
    return broadcast_object_list(before)[0]


def share_out(pieces: list[dict], count: int, process: PartialState) -> list[int]:
    """The numbers of the batches, of `count`, that are not in `pieces` and that this process is to do."""
    done = {number for piece in pieces for number in piece["batches"]}
    return [number for number in range(count) if number not in done][process.process_index :: process.num_processes]


def make_predict(
    args: EvaluationArguments,
    model: DenseMLLMForConditionalGeneration,
    processor: DenseMLLMProcessor,
    settings: Settings,
) -> Callable[..., list[tuple[int, str, Any, Any]]]:
    """[`predict_samples`] of samples, tasks and batch size."""
    names = ("scale", "max_num_patches", "tile", "tile_overlap")
    images_kwargs = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if settings.id2label:
        settings = replace(settings, names=processor.normalize_labels(settings.id2label))
    return partial(predict_samples, model, processor, settings=settings, **images_kwargs)


def evaluate_pending(
    args: EvaluationArguments,
    predict: Callable[..., list[tuple[int, str, Any, Any]]],
    read: Callable[[int], dict],
    count: int,
    metrics: dict[str, DenseMetrics],
    state: State,
    todo: list[int],
) -> list[dict]:
    """Evaluate batches and save them piece by piece.

    Args:
        predict: [`predict_samples`] of samples, tasks and batch size.
        read: sample of a row.
        count: of all samples.
        todo: numbers of the batches: number n has the samples from n * `batch_size`.

    Returns:
        the pieces: `batches`, `seconds`, and `records`, of each sample and task its `index`, `task`, `score` (of this
        image alone) and `part` (what it adds to the metric, from [`DenseMetrics.to_record`]);
        and with `save_coco` `segments`, of each sample [`segments_record`].
    """
    pieces, piece = [], _new_piece()
    for number in tqdm(todo, desc="evaluating", disable=not PartialState().is_main_process):
        started = time.monotonic()
        rows = range(number * args.batch_size, min((number + 1) * args.batch_size, count))
        predicted = predict([read(row) for row in rows], args.task, batch_size=args.batch_size)
        for position, task, prediction, reference in predicted:
            piece["records"].append(make_record(metrics[task], task, rows[position], prediction, reference))
            if args.save_coco is not None and task == args.segments_task:
                piece["segments"].append(segments_record(rows[position], prediction))
        piece["batches"].append(number)
        piece["seconds"] += time.monotonic() - started
        if len(piece["batches"]) == args.save_every or number == todo[-1]:
            state.save(piece)
            pieces.append(piece)
            piece = _new_piece()
    return pieces


def _new_piece() -> dict:
    return {"batches": [], "seconds": 0.0, "records": [], "segments": []}


def make_record(metric: DenseMetrics, task: str, row: int, prediction: Any, reference: Any) -> dict:
    """What one image adds to a metric, in a form that is saved."""
    part = metric.count(prediction, reference)
    return {
        "index": row,
        "task": task,
        "score": metric.compute(part)[MEASURED[task].score],
        "part": metric.to_record(part),
    }


def add_up(metrics: dict[str, DenseMetrics], records: list[dict]) -> dict[str, list[tuple[float, int]]]:
    """Add all records to the metrics' totals, in the order of the samples: sums of floats are then the same however
    the samples were shared out. Returns each task's (score, index)."""
    scores = {task: [] for task in metrics}
    for record in sorted(records, key=lambda record: record["index"]):
        metrics[record["task"]].add_record(record["part"])
        scores[record["task"]].append((record["score"], record["index"]))
    return scores
