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
r"""Evaluate a DenseMLLM on annotated data.

    python evaluate_densemllm.py --model MODEL --data DATA --task segmentation depth
    python evaluate_densemllm.py config.yaml --max_depth 10 --crop nyu
    torchrun --nproc_per_node 8 evaluate_densemllm.py --model MODEL --data DATA --task referring

Tasks, and the columns of DATA that they need (see `data_densemllm.py`):
    segmentation  `segmentation`        mIoU, boundary IoU, pixel accuracy; all of `id2label` are candidates
    depth         `depth`               delta1 to delta3, AbsRel, RMSE, SILog
    referring     `mask`, `expression`  cIoU, gIoU, boundary IoU; or `instances`, `expressions` and
                                        `expression_instances`, of which one is drawn, the same in every run
    class_list    `segmentation`        precision, recall and F1 of the classes that the model names when asked

In the output folder:
    results.json   metrics, counts, options, versions, seconds
    results.md     the same as tables, with a row a class
    confusion.png  the confusion matrix, each row of it in percent
    cases.png      the best, the median and the worst images of each task
    state/         what is done: a run that was stopped goes on from there, in any number of processes

A configuration file (YAML or JSON) has the options by name; what stands after it on the command line wins. A folder
that has the state of other options, data or weights, or files of these names that no such state belongs to, is refused
unless `--overwrite` is given; then, too, files of the data stay.
"""

import hashlib
import json
import math
import os
import platform
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
import transformers
import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from filelock import FileLock, Timeout
from huggingface_hub import EvalResult, ModelCard
from tqdm.auto import tqdm
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

import densemllm
from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor
from densemllm.drawing_densemllm import colorize_depth, label_colors
from densemllm.evaluation_densemllm import (
    ClassListMetrics,
    DepthMetrics,
    ReferringMetrics,
    SegmentationMetrics,
    predict_batch,
)
from densemllm.files import USER_ERRORS, check_outputs, one_line, reading, whole_file
from densemllm.formats.folders import load_samples
from densemllm.formats.labels import find_id2label, load_id2label
from densemllm.targets_densemllm import check_ignore_index, index_values
from densemllm.training.datasets import warn_of_labels
from densemllm.training.maps import IGNORE_INDEX
from densemllm.training.model_card import METRIC_TASKS
from densemllm.training.samples import draw_expression, read_sample


# What annotates each task; the first that is there.
COLUMNS = {
    "segmentation": [("segmentation",)],
    "depth": [("depth",)],
    "referring": [("mask", "expression"), ("instances", "expressions", "expression_instances")],
    "class_list": [("segmentation",)],
}
SCORES = {"segmentation": "mean_iou", "depth": "delta1", "referring": "giou", "class_list": "f1"}  # of one image
# Task on the Hub and name of each metric, those of the Trainer's cards first.
METRIC_NAMES = {
    **METRIC_TASKS,
    "mean_boundary_iou": ("image-segmentation", "mean boundary IoU"),
    "delta2": ("depth-estimation", "delta2"),
    "delta3": ("depth-estimation", "delta3"),
    "silog": ("depth-estimation", "SILog (percent)"),
    "boundary_iou": ("image-segmentation", "referring boundary IoU"),
    "precision": ("image-text-to-text", "class list precision"),
    "recall": ("image-text-to-text", "class list recall"),
    "f1": ("image-text-to-text", "class list F1"),
}
# Options that don't change a result, so that a run may go on with others.
FREE_OPTIONS = (
    "model", "data", "data_name", "output_dir", "save_every", "cases", "update_card", "overwrite", "trust_remote_code",
)  # fmt: skip
# Options that a card names with the result, with the defaults that it doesn't.
CARD_OPTIONS = {
    "all": {"limit": None, "scale": None, "max_num_patches": None, "depth_range": None},
    "segmentation": {"refine": None},
    "depth": {"min_depth": None, "max_depth": None, "crop": "none", "depth_average": "pixels", "depth_align": "none"},
}
OUTPUTS = ("results.json", "results.md", "confusion.png", "cases.png")
FINGERPRINT_ROWS = 100
MAX_DRAWN_CLASSES = 150


@dataclass
class EvaluationArguments:
    model: str = HfArg(aliases=["--model_name_or_path"], help="folder or Hub name of a DenseMLLM checkpoint")
    data: str = HfArg(aliases=["--dataset"], help="data set, see `load_samples`")
    task: list[str] = HfArg(help="one or several of segmentation, depth, referring and class_list")
    output_dir: str = HfArg(default="out/evaluation", help="folder of the results, and of the state to go on from")
    split: str = HfArg(default="validation", help="split of the data, where it has any")
    limit: int | None = HfArg(default=None, help="evaluate on so many samples, the first ones")
    batch_size: int = HfArg(default=8, help="images a forward pass, in each process")
    id2label: str | None = HfArg(
        default=None, help="JSON file from class id to name; `id2label.json` in the data's folder"
    )
    ignore_index: int = HfArg(
        default=IGNORE_INDEX, help="value of pixels that aren't annotated; no class of `id2label`"
    )
    depth_scale: float | None = HfArg(
        default=None, help="metres a unit of depth; left out: floats are metres, and integers are refused"
    )
    depth_range: str | None = HfArg(default=None, help="row of the config's `depth_ranges`; its default row")
    min_depth: float | None = HfArg(default=None, help="only depth beyond so many metres counts")
    max_depth: float | None = HfArg(default=None, help="only depth below so many metres counts (NYUv2: 10, KITTI: 80)")
    crop: str = HfArg(
        default="none", help="part of the image where depth counts: none, eigen and garg (KITTI), or nyu"
    )
    depth_average: str = HfArg(
        default="pixels", help="pixels: all valid pixels weigh the same; images: all images, as is the custom on NYUv2"
    )
    depth_align: str = HfArg(
        default="none", help="median: scale each predicted depth map so that its median is that of the reference"
    )
    scale: float | None = HfArg(default=None, help="factor on the images' size for a finer grid (the paper: ADE20K 4)")
    max_num_patches: int | None = HfArg(default=None, help="patches of an image at most; the processor's own number")
    refine: str | None = HfArg(default=None, help="crf: refine segmentations")
    device: str | None = HfArg(
        default=None, help="cpu, cuda, cuda:1...; with several processes cpu, or each its own where left out"
    )
    dtype: str = HfArg(default="auto", help="of the weights: auto, float32, bfloat16 or float16")
    attn_implementation: str | None = HfArg(default=None, help="sdpa, eager, flash_attention_2, ...")
    trust_remote_code: bool = HfArg(default=False, help="run the code that the checkpoint's tokenizer brings")
    save_every: int = HfArg(default=10, help="batches of a process between two pieces of the state")
    cases: int = HfArg(default=3, help="best, median and worst images to draw of each task, so many of each; 0: none")
    update_card: bool = HfArg(default=False, help="put the results into the model index of the model folder's card")
    data_name: str | None = HfArg(default=None, help="what the card calls the data; as `data` does where left out")
    overwrite: bool = HfArg(
        default=False, help="start anew in a folder that has an evaluation's files, which are replaced"
    )

    def __post_init__(self) -> None:
        self.task = [self.task] if isinstance(self.task, str) else list(self.task)
        unknown = set(self.task) - set(COLUMNS)
        if not self.task or unknown or len(set(self.task)) < len(self.task):
            raise ValueError(f"`task` must be of {sorted(COLUMNS)}, each once, got {self.task}")
        for name, least in (("batch_size", 1), ("limit", 1), ("save_every", 1), ("max_num_patches", 1), ("cases", 0)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}")
        for name in ("scale", "depth_scale"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be a number greater than 0, got {value}")
        if self.refine not in (None, "crf"):
            raise ValueError(f"`refine` must be 'crf' or left out, got {self.refine!r}")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"`dtype` must be auto, float32, bfloat16 or float16, got {self.dtype!r}")
        if self.update_card and not os.path.isdir(self.model):
            raise ValueError(f"`update_card` needs a `model` that is a local folder, got {self.model!r}")
        self.make_metrics(None)  # names what of cap, crop, average and align can't be used

    def make_metrics(self, id2label: dict[int, str] | None) -> dict:
        """The accumulator of each task."""
        keys = sorted(id2label) if id2label else [0 if self.ignore_index else 1]
        make = {
            "segmentation": lambda: SegmentationMetrics(len(keys), self.ignore_index, keys),
            "depth": lambda: DepthMetrics(
                self.min_depth, self.max_depth, self.crop, self.depth_average, self.depth_align
            ),
            "referring": ReferringMetrics,
            "class_list": ClassListMetrics,
        }
        return {task: make[task]() for task in self.task}


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def parse_arguments(arguments: list[str] | None = None) -> EvaluationArguments:
    """Arguments of the command line, with a configuration file's in front."""
    parser = HfArgumentParser(EvaluationArguments, description=__doc__, formatter_class=_HelpFormatter)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0].endswith((".yaml", ".yml", ".json")):
        name = arguments.pop(0)
        try:
            text = Path(name).read_text(encoding="utf-8-sig")
            values = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{name} is not a configuration file in {Path(name).suffix[1:]}: {error}") from error
        actions = {option.lstrip("-"): action for action in parser._actions for option in action.option_strings}
        if not isinstance(values, dict) or set(values) - set(actions):
            unknown = sorted(set(values) - set(actions)) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"{name} must have options by name; unknown: {unknown}")
        words = []  # in front of the others, and as these they are checked
        for option, value in values.items():
            if isinstance(value, dict):
                raise ValueError(f"{name}: `{option}` must be one value or a list, got {value}")
            if isinstance(value, list):
                words += [f"--{option}", *map(str, value)]
            elif value is not None:
                words.append(f"--{option}={value}")
        arguments = [*words, *arguments]
    return parser.parse_args_into_dataclasses(arguments)[0]


# ---- data ----


def _columns_of(task: str) -> str:
    return ", or ".join(" and ".join(names) for names in COLUMNS[task])


def open_data(args: EvaluationArguments) -> tuple[datasets.Dataset, dict[int, str] | None]:
    """The rows to evaluate on, with the columns that the tasks need, and the names of the classes."""
    with reading(f"`data` {args.data}"):
        data = load_samples(args.data, args.split, whole=True)
    columns = {"image"}
    for task in args.task:
        there = [names for names in COLUMNS[task] if {"image", *names} <= set(data.column_names)]
        if not there:
            raise ValueError(
                f"`task` {task!r} needs the columns image, {_columns_of(task)}; {args.data} has {data.column_names}"
            )
        columns |= set(there[0])
    if "focal_length" in data.column_names:
        columns.add("focal_length")
    data = data.select_columns(sorted(columns))
    if args.limit is not None:
        data = data.select(range(min(args.limit, len(data))))
    if not len(data):
        raise ValueError(f"`data` {args.data} has no samples in the split {args.split!r}")
    if "segmentation" not in columns:
        return data, None
    file = args.id2label or find_id2label(args.data)
    if file is None:
        raise ValueError("`id2label` is needed for segmentation and class_list: a JSON file from class id to name")
    id2label = load_id2label(file)
    check_ignore_index(args.ignore_index, id2label)
    warn_of_labels(data, id2label, args.ignore_index, "data")
    return data, id2label


# ---- state ----


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is whole as soon as it has its name."""
    with whole_file(path, overwrite=True) as staged:
        staged.write_bytes(content)


def data_digest(data: datasets.Dataset) -> str:
    """A digest of up to 100 rows from all over the data; of a file, its name, size and time of change."""
    digest = hashlib.sha256(repr((len(data), data.features)).encode())
    for row in np.unique(np.linspace(0, len(data) - 1, min(len(data), FINGERPRINT_ROWS)).astype(int)).tolist():
        for column, value in sorted(data[row].items()):
            if isinstance(value, dict):  # a picture
                value = value["path"] if value.get("bytes") is None else value["bytes"]
            if isinstance(value, str) and column != "expression" and os.path.isfile(value):
                stat = os.stat(value)
                value = (value, stat.st_size, stat.st_mtime_ns)
            digest.update(value if isinstance(value, bytes) else repr((column, value)).encode())
    return digest.hexdigest()


def model_digest(model: DenseMLLMForConditionalGeneration, processor: DenseMLLMProcessor) -> str:
    """A digest of all weights, the configuration and what the processor does."""
    elsewhere = ("_name_or_path", "transformers_version")  # the same model from another place, or saved by another
    config = {key: value for key, value in model.config.to_dict().items() if key not in elsewhere}
    vocabulary = sorted(processor.tokenizer.get_vocab().items())
    digest = hashlib.sha256(repr((config, processor.to_json_string(), processor.chat_template)).encode())
    digest.update(repr(vocabulary).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class State:
    """What an evaluation has done, in a folder: `run.json` says of what, and each `piece-*.json` has the results of
    some batches. A piece is written once and as a whole: a run that is killed loses at most what it had not written.
    Used in a `with` statement: one run at a time has it open.

    Args:
        folder: of the state; the results are beside it.
        overwrite: forget what is there.
    """

    def __init__(self, folder: Path, overwrite: bool):
        self.folder = folder
        self.overwrite = overwrite
        self.lock = FileLock(folder / ".lock")

    def __enter__(self) -> "State":
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    @property
    def goes_on(self) -> bool:
        """Whether there is something done to go on from."""
        return not self.overwrite and any(self.folder.glob("piece-*.json"))

    def check(self, fingerprint: dict) -> None:
        """Refuse to go on with something else.

        Raises:
            ValueError: an entry of `fingerprint` differs from the one that the state was begun with.
        """
        if not self.goes_on:
            return
        path = self.folder / "run.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        now = json.loads(json.dumps(fingerprint))
        changed = [key for key in now if key not in before or before[key] != now[key]]
        if changed:
            named = ", ".join(
                f"`{key}` has changed" if key.endswith("_digest") else f"`{key}` was {before.get(key)}, is {now[key]}"
                for key in changed
            )
            raise ValueError(
                f"{self.folder} has the state of another evaluation: {named}. Take another `output_dir`, or "
                "`--overwrite` to start anew"
            )

    def open(self, fingerprint: dict) -> list[dict]:
        """Begin, or go on: the pieces that are there.

        Raises:
            ValueError: as [`check`]; or another run has it open.
        """
        self.check(fingerprint)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(
                f"another evaluation is running in {self.folder.parent}: wait for it, or take another `output_dir`"
            ) from error
        if self.overwrite:  # the files of an evaluation, and nothing else that may be beside them
            for path in [*self.folder.glob("piece-*.json"), *(self.folder.parent / name for name in OUTPUTS)]:
                path.unlink(missing_ok=True)
        for path in self.folder.glob(".*.tmp*"):  # of a run that was killed
            path.unlink()
        write_atomically(self.folder / "run.json", json.dumps(fingerprint, indent=2).encode())
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.folder.glob("piece-*.json"))]

    def save(self, piece: dict) -> None:
        """Write a piece. Its first batch names it: no batch is done twice."""
        write_atomically(self.folder / f"piece-{piece['batches'][0]:08d}.json", json.dumps(piece).encode())


# ---- pictures ----


def _font(size: int):
    return PIL.ImageFont.load_default(size)


def _short(text: str, font, width: int) -> str:
    """`text`, cut off where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def draw_confusion(confusion: np.ndarray, names: list[str]) -> PIL.Image.Image:
    """A picture of a confusion matrix in percent of each row.

    Args:
        confusion: pixels `[num_labels, num_labels + 1]`; rows: reference, columns: prediction, the last one: none.
        names: of the classes. Of more than 150, those with the most pixels are drawn.
    """
    totals = confusion.sum(axis=1)
    shares = 100 * confusion / np.maximum(totals, 1)[:, None]
    kept = np.arange(len(names))
    if len(names) > MAX_DRAWN_CLASSES:
        kept = np.sort(np.argsort(-totals, kind="stable")[:MAX_DRAWN_CLASSES])
    columns = np.r_[kept, len(names)] if confusion[:, -1].any() else kept
    count = len(kept)
    cell = 36 if count <= 16 else 22 if count <= 40 else 14
    font, small, title = _font(11 if cell == 14 else 13), _font(12), _font(14)
    texts = [_short(name, font, 170) for name in names] + ["(none)"]
    margin = 14 + math.ceil(max(font.getlength(text) for text in texts))
    left, top = 34 + margin, 52 + margin
    width, height = max(left + cell * len(columns) + 96, 420), max(top + cell * count, top + 130) + 16
    picture = PIL.Image.new("RGB", (width, height), "white")
    draw = PIL.ImageDraw.Draw(picture)
    note = f"; {count} of {len(names)} classes" if count < len(names) else ""
    draw.text((10, 8), f"Confusion matrix, percent of the reference's pixels{note}", fill="black", font=title)
    draw.text((left, 30), "predicted", fill="#666666", font=small)

    def turned(text, font, fill="black"):
        label = PIL.Image.new("RGB", (math.ceil(font.getlength(text)) + 2, 18), "white")
        PIL.ImageDraw.Draw(label).text((0, 9), text, fill=fill, font=font, anchor="lm")
        return label.rotate(90, expand=True)

    picture.paste(turned("reference", small, "#666666"), (8, top))
    for row, key in enumerate(kept):
        draw.text((left - 8, top + cell * row + cell // 2), texts[key], fill="black", font=font, anchor="rm")
    for column, key in enumerate(columns):
        label = turned(texts[key], font)
        if label.width > cell:
            spare = (label.width - cell) // 2
            label = label.crop((spare, 0, spare + cell, label.height))
        x = left + cell * column + (cell - label.width) // 2
        picture.paste(label, (x, top - 6 - label.height))
    for row, key in enumerate(kept):
        for column, other in enumerate(columns):
            x, y = left + cell * column, top + cell * row
            share = float(shares[key, other])
            fill = _blue(share) if totals[key] else (235, 235, 235)  # the class is nowhere in the reference
            draw.rectangle([x, y, x + cell - 2, y + cell - 2], fill=fill)
            if cell == 36 and share >= 0.5:
                ink = "white" if share > 40 else "black"
                draw.text((x + cell // 2 - 1, y + cell // 2 - 1), f"{share:.0f}", fill=ink, font=small, anchor="mm")
    x = left + cell * len(columns) + 22
    for step in range(101):
        draw.rectangle([x, top + 115 - step, x + 14, top + 116 - step], fill=_blue(step))
    for share in (0, 50, 100):
        draw.text((x + 20, top + 115 - share), f"{share} %", fill="black", font=small, anchor="lm")
    return picture


def _blue(share: float) -> tuple[int, int, int]:
    """White for 0 percent to dark blue for 100; the root shows small shares too."""
    part = math.sqrt(min(max(share, 0), 100) / 100)
    return tuple(round(a + (b - a) * part) for a, b in zip((250, 250, 250), (8, 48, 107), strict=True))


def pick_cases(scores: list[tuple[float, int]], count: int) -> list[tuple[str, float, int]]:
    """The best, the median and the worst of (score, index), up to `count` of each and none twice, the best first."""
    ordered = sorted((pair for pair in scores if not math.isnan(pair[0])), key=lambda pair: (-pair[0], pair[1]))
    each = min(count, max(1, len(ordered) // 3)) if ordered else 0
    middle = (len(ordered) - each) // 2
    places = {"best": range(each), "median": range(middle, middle + each)}
    places["worst"] = range(len(ordered) - each, len(ordered))
    picked, seen = [], set()
    for name, rows in places.items():
        for row in rows:
            if row not in seen:
                seen.add(row)
                picked.append((name, *ordered[row]))
    return picked


def draw_cases(task: str, cases: list[dict], id2label: dict[int, str] | None) -> PIL.Image.Image:
    """A sheet of a task: a row a case, with image, reference, prediction and a legend.

    Args:
        task: name of the task.
        cases: `title`, `image` (RGB picture), `prediction`, `reference` (as the task's metrics take them) and
            `expression` (or `None`).
        id2label: class id to name.
    """
    height, header, legend_width, gap = 168, 24, 190, 8
    font, title = _font(12), _font(14)
    widths = [min(round(case["image"].width * height / case["image"].height), 336) for case in cases]
    panel = max(widths)
    size = (3 * (panel + gap) + legend_width + gap, 2 * header + (height + header) * len(cases) + gap)
    sheet = PIL.Image.new("RGB", size, "white")
    draw = PIL.ImageDraw.Draw(sheet)
    draw.text((gap, 5), task, fill="black", font=title)
    for place, name in enumerate(("image", "reference", "prediction")):
        draw.text((gap + place * (panel + gap), header + 4), name, fill="#666666", font=font)
    for row, (case, width) in enumerate(zip(cases, widths, strict=True)):
        y = 2 * header + row * (height + header)
        draw.text((gap, y + 3), case["title"], fill="black", font=font)
        y += header - 2
        image = case["image"].resize((width, height), PIL.Image.Resampling.BILINEAR)
        panels, legend = _PANELS[task](case, image, id2label)
        for place, part in enumerate((image, *panels)):
            sheet.paste(part, (gap + place * (panel + gap), y))
        x = gap + 3 * (panel + gap)
        for line, (color, text) in enumerate(legend[: height // 18]):
            if color is not None:
                draw.rectangle([x, y + 18 * line + 2, x + 12, y + 18 * line + 14], fill=color, outline="#666666")
            indent = 0 if color is None else 18
            draw.text((x + indent, y + 18 * line + 1), _short(text, font, legend_width - 24), fill="black", font=font)
    return sheet


def _segmentation_panels(case, image, id2label):
    maps = [np.asarray(case[name]).astype(np.int64) for name in ("reference", "prediction")]
    keys = sorted(id2label)
    places_of = {key: place for place, key in enumerate(keys)}
    colors = np.zeros((len(keys) + 1, 3), np.uint8)  # ignored, or none of the classes: black
    colors[:-1] = label_colors(len(keys))
    panels, counts = [], np.zeros(len(colors), np.int64)
    for values in maps:
        present, places = index_values(values)
        values = np.array([places_of.get(key, len(keys)) for key in present.tolist()])[places]
        counts += np.bincount(values.ravel(), minlength=len(colors))
        panels.append(PIL.Image.fromarray(colors[values]).resize(image.size, PIL.Image.Resampling.NEAREST))
    names = [*(id2label[key] for key in keys), "ignored or none"]
    there = [place for place in np.argsort(-counts, kind="stable").tolist() if counts[place]]
    return panels, [(tuple(colors[place].tolist()), names[place]) for place in there]


def _depth_panels(case, image, id2label):
    reference, prediction = np.asarray(case["reference"]), np.asarray(case["prediction"])
    valid = np.isfinite(reference) & (reference > 0)
    low, high = (float(end(reference[valid])) for end in (np.min, np.max))
    colors = [colorize_depth(np.where(valid, reference, high), low, high), colorize_depth(prediction, low, high)]
    colors[0][~valid] = 0
    panels = [PIL.Image.fromarray(values).resize(image.size, PIL.Image.Resampling.NEAREST) for values in colors]
    steps = np.linspace(low, high, 6)
    ends = colorize_depth(steps[None], low, high)[0].tolist()
    return panels, [(tuple(color), f"{step:.1f} m") for color, step in zip(ends, steps, strict=True)]


def _referring_panels(case, image, id2label):
    panels, pixels = [], np.asarray(image, dtype=np.float32)
    for name, color in (("reference", (60, 200, 90)), ("prediction", (235, 90, 60))):
        mask = PIL.Image.fromarray((np.asarray(case[name]) > 0).astype(np.uint8) * 255).resize(image.size)
        inside = (np.asarray(mask) > 0)[..., None]
        mixed = np.where(inside, 0.4 * pixels + 0.6 * np.array(color), 0.45 * pixels)
        panels.append(PIL.Image.fromarray(mixed.round().astype(np.uint8)))
    lines, font = [""], _font(12)
    for word in f'"{case["expression"]}"'.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= 160 else [*lines, word]
    return panels, [(None, line) for line in lines if line]


def _class_list_panels(case, image, id2label):
    given, true = case["prediction"], case["reference"]
    panels, font = [], _font(12)
    for names, others, wrong in ((true, given, "#999999"), (given, true, "#c0392b")):
        panel = PIL.Image.new("RGB", image.size, "#f4f4f4")
        draw = PIL.ImageDraw.Draw(panel)
        per_column = max(1, (image.height - 8) // 16)
        shown = list(names)
        if len(shown) > 2 * per_column:
            shown[2 * per_column - 1 :] = [f"and {len(shown) - 2 * per_column + 1} more"]
        for line, name in enumerate(shown):
            column, row = divmod(line, per_column)
            color = "#1e7b3a" if name in others else wrong
            text = _short(name, font, image.width // 2 - 10)
            draw.text((6 + column * (image.width // 2), 4 + 16 * row), text, fill=color, font=font)
        panels.append(panel)
    return panels, [("#1e7b3a", "named and there"), ("#999999", "there, not named"), ("#c0392b", "named, not there")]


_PANELS = {
    "segmentation": _segmentation_panels,
    "depth": _depth_panels,
    "referring": _referring_panels,
    "class_list": _class_list_panels,
}


# ---- results ----


def _plain(value):
    """For JSON, which has no NaN: `null`."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def to_markdown(results: dict) -> str:
    """The results as Markdown tables."""

    def cell(text):
        return str(text).replace("|", "\\|").replace("\n", " ")

    lines = [
        f"# {cell(results['model'])} on {cell(results['data'])}, {cell(results['options']['split'])}\n",
        f"{results['samples']} samples, {results['seconds']:.0f} seconds of prediction.\n",
        "| task | metric | value | images |\n|---|---|---|---|",
    ]
    for task, values in results["metrics"].items():
        lines += [
            f"| {task} | {METRIC_NAMES[name][1]} | {_text(value)} | {results['images'][task]} |"
            for name, value in values.items()
        ]
    if "per_label" in results:
        lines += ["\n| class | IoU | boundary IoU | pixels of the reference |\n|---|---|---|---|"]
        lines += [
            f"| {cell(row['label'])} | {_text(row['iou'])} | {_text(row['boundary_iou'])} | {row['pixels']} |"
            for row in results["per_label"]
        ]
    lines += ["\n| option | value |\n|---|---|"]
    lines += [f"| {name} | {cell(value)} |" for name, value in results["options"].items() if value is not None]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return "\n".join([*lines, f"\n{versions}\n"])


def load_card(folder: str) -> ModelCard:
    """The card of a model folder, or a new one.

    Raises:
        ValueError: its metadata can't be read.
    """
    path = Path(folder) / "README.md"
    if path.is_file():
        try:
            return ModelCard.load(path)
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"`update_card`: the metadata of {path} can't be read ({error})") from error
    name = Path(folder).resolve().name
    return ModelCard(f"---\nlibrary_name: transformers\ntags:\n- densemllm\n---\n\n# {name}\n")


def update_card(folder: str, results: dict) -> None:
    """Put the metrics into the model index of the card of a model folder. What the card has of other data, splits or
    options stays; the value of the same metric is replaced."""
    card, options = load_card(folder), results["options"]
    name = options["data_name"] or results["data"]
    merged = list(card.data.eval_results or [])
    for task, values in results["metrics"].items():
        shaped = CARD_OPTIONS["all"] | CARD_OPTIONS.get(task, {})
        shaped = {key: options[key] for key, default in shaped.items() if options[key] != default}
        for metric, value in values.items():
            if value is None:
                continue
            new = EvalResult(
                task_type=METRIC_NAMES[metric][0],
                # The index tells data sets apart by this field, and not by the next.
                dataset_type=name,
                dataset_name=name,
                dataset_split=options["split"],
                metric_type=metric,
                metric_name=METRIC_NAMES[metric][1],
                metric_value=round(value, 4),
                metric_args=shaped or None,
            )
            merged = [result for result in merged if not result.is_equal_except_value(new)] + [new]
    card.data.model_name = card.data.model_name or Path(folder).resolve().name
    card.data.eval_results = merged
    write_atomically(Path(folder) / "README.md", str(card).encode())


# ---- the script ----


def evaluate_pending(
    args: EvaluationArguments,
    predict: Callable[..., list[tuple[int, str, Any, Any]]],
    read: Callable[[int], dict],
    count: int,
    metrics: dict,
    state: State,
    todo: list[int],
) -> list[dict]:
    """Evaluate batches and save them piece by piece.

    Args:
        predict: [`predict_batch`] of samples, tasks and batch size.
        read: sample of a row.
        count: of all samples.
        todo: numbers of the batches: number n has the samples from n * `batch_size`.

    Returns:
        the pieces: `batches`, `seconds`, and `records`, of each sample and task its `index`, `task`, `score` (of this
        image alone) and `part` (places and values of what it adds to the metric's `totals`).
    """
    pieces, piece = [], {"batches": [], "seconds": 0.0, "records": []}
    for number in tqdm(todo, desc="evaluating", disable=not PartialState().is_main_process):
        started = time.monotonic()
        rows = range(number * args.batch_size, min((number + 1) * args.batch_size, count))
        predicted = predict([read(row) for row in rows], args.task, batch_size=args.batch_size)
        for position, task, prediction, reference in predicted:
            part = metrics[task].count(prediction, reference)
            places = part.flatten().nonzero()[:, 0]
            piece["records"].append(
                {
                    "index": rows[position],
                    "task": task,
                    "score": metrics[task].compute(part)[SCORES[task]],
                    "part": [places.tolist(), part.flatten()[places].tolist()],
                }
            )
        piece["batches"].append(number)
        piece["seconds"] += time.monotonic() - started
        if len(piece["batches"]) == args.save_every or number == todo[-1]:
            state.save(piece)
            pieces.append(piece)
            piece = {"batches": [], "seconds": 0.0, "records": []}
    return pieces


def add_up(metrics: dict, records: list[dict]) -> dict[str, list[tuple[float, int]]]:
    """Add all records to the metrics' totals, in the order of the samples: sums of floats are then the same however
    the samples were shared out. Returns each task's (score, index)."""
    scores = {task: [] for task in metrics}
    for record in sorted(records, key=lambda record: record["index"]):
        totals = metrics[record["task"]].totals.view(-1)
        places, values = record["part"]
        totals[torch.tensor(places, dtype=torch.long)] += torch.tensor(values, dtype=totals.dtype)
        scores[record["task"]].append((record["score"], record["index"]))
    return scores


def draw_sheet(
    args: EvaluationArguments,
    predict: Callable[..., list[tuple[int, str, Any, Any]]],
    read: Callable[[int], dict],
    id2label: dict[int, str] | None,
    scores: dict,
) -> PIL.Image.Image | None:
    """The best, median and worst images of each task, which are predicted once more; `None` without any."""
    sheets = []
    for task in args.task:
        cases = []
        for name, score, index in pick_cases(scores[task], args.cases):
            sample = read(index)
            ((_, _, prediction, reference),) = predict([sample], [task], batch_size=1)
            metric = METRIC_NAMES[SCORES[task]][1] if task != "referring" else "IoU"
            cases.append(
                {
                    "title": f"{name}: {metric} {score:.3f}, sample {index}",
                    "image": sample["image"],
                    "prediction": prediction,
                    "reference": reference,
                    "expression": sample.get("expression"),
                }
            )
        if cases:
            sheets.append(draw_cases(task, cases, id2label))
    if not sheets:
        return None
    size = (sum(sheet.width for sheet in sheets), max(sheet.height for sheet in sheets))
    whole, left = PIL.Image.new("RGB", size, "white"), 0
    for sheet in sheets:
        whole.paste(sheet, (left, 0))
        left += sheet.width
    return whole


def check_output_dir(args: EvaluationArguments, state: State) -> None:
    """Refuse to begin where files would be lost that are not an evaluation's, or that the data has.

    Raises:
        ValueError: there is such a file, or the folder can't be written to.
    """
    outputs = [state.folder.parent / name for name in OUTPUTS]
    if state.goes_on:
        return
    data = Path(args.data).resolve()
    inputs = [path for path in outputs if data in path.resolve().parents]  # a data set may have too many to list
    check_outputs(outputs, [*inputs, *filter(os.path.isfile, [args.data, args.id2label or ""])], args.overwrite,
                  "`output_dir`")  # fmt: skip


def _png(picture: PIL.Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def main(arguments: list[str] | None = None) -> dict:
    """The script. Returns what `results.json` has, in every process."""
    args = parse_arguments(arguments)
    # Whoever is ready first waits for the slowest.
    use_cpu = args.device == "cpu" or not torch.accelerator.is_available()
    process = PartialState(cpu=use_cpu, timeout=timedelta(hours=6))
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
    with State(Path(args.output_dir) / "state", args.overwrite) as state:
        return evaluate(args, process, device, state)


def evaluate(args: EvaluationArguments, process: PartialState, device: torch.device, state: State) -> dict:
    """Evaluate, and write what is missing of the results. Returns what `results.json` has, in every process."""
    data, id2label = open_data(args)
    if args.update_card:
        load_card(args.model)
    folder = state.folder.parent
    if process.is_main_process:
        check_output_dir(args, state)
    fingerprint = {name: value for name, value in asdict(args).items() if name not in FREE_OPTIONS}
    fingerprint |= {"task": sorted(args.task), "device": device.type, "samples": len(data), "id2label": id2label}
    fingerprint["densemllm"] = densemllm.__version__
    if process.is_main_process:
        fingerprint["data_digest"] = data_digest(data)
        state.check(fingerprint)

    with reading(f"`model` {args.model}"):
        processor = DenseMLLMProcessor.from_pretrained(args.model, trust_remote_code=args.trust_remote_code)
    if "depth" in args.task:
        processor.get_depth_range(args.depth_range)
    if id2label is not None:
        processor.label_token_ids(id2label)
    with reading(f"`model` {args.model}"):
        model = DenseMLLMForConditionalGeneration.from_pretrained(
            args.model, dtype=args.dtype, attn_implementation=args.attn_implementation
        )
    model = model.to(device).eval()
    before: list = [None]
    if process.is_main_process:
        before = [state.open(fingerprint | {"model_digest": model_digest(model, processor)})]
    # Which batches are to be done is one process's word, for all.
    before = broadcast_object_list(before)[0]
    done = {number for piece in before for number in piece["batches"]}
    todo = [number for number in range(math.ceil(len(data) / args.batch_size)) if number not in done]
    todo = todo[process.process_index :: process.num_processes]
    metrics = args.make_metrics(id2label)
    images_kwargs = {"scale": args.scale, "max_num_patches": args.max_num_patches}
    predict = partial(
        predict_batch,
        model,
        processor,
        id2label=id2label,
        depth_range=args.depth_range,
        refine=args.refine,
        ignore_index=args.ignore_index,
        **{name: value for name, value in images_kwargs.items() if value is not None},
    )

    def read(row: int) -> dict:
        sample = read_sample(data[row], f"row {row}", id2label, args.depth_scale, args.ignore_index)
        if "expression" in sample:
            return sample
        return draw_expression(sample, np.random.default_rng(row), args.ignore_index)

    pieces = before + gather_object(evaluate_pending(args, predict, read, len(data), metrics, state, todo))
    scores = add_up(metrics, [record for piece in pieces for record in piece["records"]])
    for task in args.task:
        if not scores[task]:
            raise ValueError(f"`task` {task!r}: no sample of {args.data} has {_columns_of(task)}")

    results = {
        "model": args.model,
        "data": args.data,
        "samples": len(data),
        "images": {task: len(scores[task]) for task in args.task},
        "metrics": {},
        "options": {name: value for name, value in asdict(args).items() if name not in ("model", "data")},
        "versions": {
            "densemllm": densemllm.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "accelerate": accelerate.__version__,
            "datasets": datasets.__version__,
            "python": platform.python_version(),
        },
        "processes": process.num_processes,
        "seconds": sum(piece["seconds"] for piece in pieces),
    }
    for task, metric in metrics.items():
        values = metric.compute()
        results["metrics"][task] = {name: value for name, value in values.items() if not isinstance(value, list)}
        if task == "segmentation":
            results["per_label"] = [
                {
                    "id": key,
                    "label": name,
                    "iou": values["per_label_iou"][place],
                    "boundary_iou": values["per_label_boundary_iou"][place],
                    "pixels": int(metric.confusion[place].sum()),
                }
                for place, (key, name) in enumerate(sorted(id2label.items()))
            ]
    results = _plain(results)
    if process.is_main_process:
        if "segmentation" in metrics:
            confusion = metrics["segmentation"].confusion.numpy()
            picture = draw_confusion(confusion, [name for _, name in sorted(id2label.items())])
            write_atomically(folder / "confusion.png", _png(picture))
        sheet = draw_sheet(args, predict, read, id2label, scores)
        if sheet is not None:
            write_atomically(folder / "cases.png", _png(sheet))
        write_atomically(folder / "results.md", to_markdown(results).encode())
        write_atomically(folder / "results.json", json.dumps(results, indent=2).encode())
        if args.update_card:
            update_card(args.model, results)
        print((folder / "results.md").read_text(encoding="utf-8"))
    process.wait_for_everyone()
    return results


def run(arguments: list[str] | None = None) -> int:
    """[`main`] for a shell: 0, or 2 after a line on stderr where something can't be used."""
    try:
        main(arguments)
    except USER_ERRORS as error:
        print(f"{Path(sys.argv[0]).name}: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    code = run()
    if code == 0:  # or else the other processes may wait for this one, and it for them
        PartialState().destroy_process_group()
    sys.exit(code)
