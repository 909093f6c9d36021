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
"""What an evaluation found, in tables and images: results as JSON and Markdown, the confusion matrix, and cases."""

import json
import math
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
import transformers
import yaml
from huggingface_hub import EvalResult, ModelCard

from ..configuration_densemllm import __version__
from .arguments import EvaluationArguments
from .language import describe_kept
from .measured import MEASURED, MeasuredTask, Settings, segment_ids
from .metrics import METRICS, DenseMetrics, SegmentationMetrics
from .panels import GREY, PANELS, make_font, shorten
from .panoptic import Segments, coco_instances, save_coco_panoptic, segments_of_coco
from .protocols import describe_protocol
from .state import COCO_IMAGES, COCO_INSTANCES, COCO_PANOPTIC, write_atomically


MAX_DRAWN_CLASSES = 150
KEPT_LINE = re.compile(r"^Text kept: .*$", re.MULTILINE)
# Options that a card names with the result of any task, with the defaults that it doesn't.
# What the metrics compute for each class, by the ending of its key `per_label_...`.
LABEL_METRICS = {
    "iou": "IoU", "boundary_iou": "boundary IoU", "pq": "PQ", "sq": "SQ", "rq": "RQ", "mask_ap": "mask AP",
    "box_ap": "box AP",
}  # fmt: skip
CARD_OPTIONS = {
    "protocol": None, "limit": None, "scale": None, "max_num_patches": None, "depth_range": None, "tile": None,
    "tile_overlap": None,
}  # fmt: skip


# ---- images ----


def draw_confusion(confusion: np.ndarray, names: list[str]) -> PIL.Image.Image:
    """An image of a confusion matrix in percent of each row.

    Args:
        confusion: pixels `[num_labels, num_labels + 1]`; rows: reference, columns: prediction, the last one: none.
        names: of the classes. Of more than 150, those with the most pixels are drawn.
    """
    totals = confusion.sum(axis=1)
    kept = np.arange(len(names))
    if len(names) > MAX_DRAWN_CLASSES:
        kept = np.sort(np.argsort(-totals, kind="stable")[:MAX_DRAWN_CLASSES])
    columns = np.r_[kept, len(names)] if confusion[:, -1].any() else kept
    count = len(kept)
    cell = 36 if count <= 16 else 22 if count <= 40 else 14
    font, small, title = make_font(11 if cell == 14 else 13), make_font(12), make_font(14)
    texts = [shorten(name, font, 170) for name in names] + ["(none)"]
    margin = 14 + math.ceil(max(font.getlength(text) for text in texts))
    left, top = 34 + margin, 52 + margin
    width, height = max(left + cell * len(columns) + 96, 420), max(top + cell * count, top + 130) + 16
    image = PIL.Image.new("RGB", (width, height), "white")
    draw = PIL.ImageDraw.Draw(image)
    note = f"; {count} of {len(names)} classes" if count < len(names) else ""
    draw.text((10, 8), f"Confusion matrix, percent of the reference's pixels{note}", fill="black", font=title)
    draw.text((left, 30), "predicted", fill=GREY, font=small)
    image.paste(_turned("reference", small, GREY), (8, top))
    for row, key in enumerate(kept):
        draw.text((left - 8, top + cell * row + cell // 2), texts[key], fill="black", font=font, anchor="rm")
    for column, key in enumerate(columns):
        label = _turned(texts[key], font)
        if label.width > cell:
            spare = (label.width - cell) // 2
            label = label.crop((spare, 0, spare + cell, label.height))
        x = left + cell * column + (cell - label.width) // 2
        image.paste(label, (x, top - 6 - label.height))
    shares = 100 * confusion / np.maximum(totals, 1)[:, None]
    shares[totals == 0] = np.nan
    _draw_cells(draw, shares[kept][:, columns], (left, top), cell, small)
    _draw_percent_scale(draw, (left + cell * len(columns) + 22, top), small)
    return image


def _turned(text: str, font, fill: str = "black") -> PIL.Image.Image:
    """A text that runs upwards."""
    label = PIL.Image.new("RGB", (math.ceil(font.getlength(text)) + 2, 18), "white")
    PIL.ImageDraw.Draw(label).text((0, 9), text, fill=fill, font=font, anchor="lm")
    return label.rotate(90, expand=True)


def _draw_cells(draw, shares: np.ndarray, corner: tuple[int, int], cell: int, font) -> None:
    """Percent `[rows, columns]` as coloured squares of `cell` pixels; NaN, of a class that the reference lacks, is
    grey."""
    left, top = corner
    for (row, column), share in np.ndenumerate(shares):
        x, y = left + cell * column, top + cell * row
        fill = (235, 235, 235) if math.isnan(share) else _blue(share)
        draw.rectangle([x, y, x + cell - 2, y + cell - 2], fill=fill)
        if cell == 36 and share >= 0.5:
            ink = "white" if share > 40 else "black"
            draw.text((x + cell // 2 - 1, y + cell // 2 - 1), f"{share:.0f}", fill=ink, font=font, anchor="mm")


def _draw_percent_scale(draw, corner: tuple[int, int], font) -> None:
    x, top = corner
    for step in range(101):
        draw.rectangle([x, top + 115 - step, x + 14, top + 116 - step], fill=_blue(step))
    for share in (0, 50, 100):
        draw.text((x + 20, top + 115 - share), f"{share} %", fill="black", font=font, anchor="lm")


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
        cases: `title`, `image` (RGB), `prediction`, `reference` (as the task's metrics take them), `expression` and
            `question` (or `None`).
        id2label: class id to name.
    """
    height, header, legend_width, gap = 168, 24, 190, 8
    font, title = make_font(12), make_font(14)
    widths = [min(round(case["image"].width * height / case["image"].height), 336) for case in cases]
    panel = max(widths)
    size = (3 * (panel + gap) + legend_width + gap, 2 * header + (height + header) * len(cases) + gap)
    sheet = PIL.Image.new("RGB", size, "white")
    draw = PIL.ImageDraw.Draw(sheet)
    draw.text((gap, 5), task, fill="black", font=title)
    for place, name in enumerate(("image", "reference", "prediction")):
        draw.text((gap + place * (panel + gap), header + 4), name, fill=GREY, font=font)
    for row, (case, width) in enumerate(zip(cases, widths, strict=True)):
        y = 2 * header + row * (height + header)
        draw.text((gap, y + 3), case["title"], fill="black", font=font)
        y += header - 2
        image = case["image"].resize((width, height), PIL.Image.Resampling.BILINEAR)
        panels, legend = PANELS[task](case, image, id2label)
        for place, part in enumerate((image, *panels)):
            sheet.paste(part, (gap + place * (panel + gap), y))
        x = gap + 3 * (panel + gap)
        for line, (color, text) in enumerate(legend[: height // 18]):
            if color is not None:
                draw.rectangle([x, y + 18 * line + 2, x + 12, y + 18 * line + 14], fill=color, outline=GREY)
            indent = 0 if color is None else 18
            draw.text((x + indent, y + 18 * line + 1), shorten(text, font, legend_width - 24), fill="black", font=font)
    return sheet


def _make_case(task: MeasuredTask, name: str, score: float, index: int, predict, read) -> dict:
    """What [`draw_cases`] draws of the sample of a row."""
    sample = read(index)
    ((_, _, prediction, reference),) = predict([sample], [task.name], batch_size=1)
    return {
        "title": f"{name}: {task.score_title} {score:.3f}, sample {index}",
        "image": sample["image"],
        "prediction": prediction,
        "reference": reference,
        "expression": sample.get("expression"),
        "question": sample.get("question"),
    }


def draw_sheet(
    tasks: Sequence[str],
    count: int,
    predict: Callable[..., list[tuple[int, str, Any, Any]]],
    read: Callable[[int], dict],
    id2label: dict[int, str] | None,
    scores: dict,
) -> PIL.Image.Image | None:
    """The best, median and worst images of each task, which are predicted once more.

    Args:
        tasks: their names.
        count: so many images of each kind.
        predict: [`predict_batch`] of samples, tasks and batch size.
        read: sample of a row.
        id2label: class id to name.
        scores: each task's (score, row).

    Returns:
        a sheet a task, side by side; `None` where there is none to draw.
    """
    sheets = []
    for task in tasks:
        cases = [
            _make_case(MEASURED[task], name, score, index, predict, read)
            for name, score, index in pick_cases(scores[task], count)
        ]
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


# ---- results ----


def make_results(
    args: EvaluationArguments,
    count: int,
    metrics: dict[str, DenseMetrics],
    scores: dict[str, list],
    id2label: dict[int, str] | None,
    processes: int,
    seconds: float,
) -> dict:
    """What `results.json` has.

    Args:
        args: the options.
        count: of all samples.
        metrics: each task's, with all images added.
        scores: each task's (score, row).
        id2label: class id to name.
        processes: how many there were.
        seconds: of prediction, of all processes.
    """
    results = {
        "model": args.model,
        "data": args.data,
        "samples": count,
        "images": {task: len(scores[task]) for task in args.task},
        "metrics": {},
        "options": {name: value for name, value in asdict(args).items() if name not in ("model", "data")},
        "versions": {
            "densemllm": __version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "accelerate": accelerate.__version__,
            "datasets": datasets.__version__,
            "python": platform.python_version(),
        },
        "processes": processes,
        "seconds": seconds,
    }
    label_rows: dict[int, dict] = {}
    for task, metric in metrics.items():
        values = metric.compute()
        results["metrics"][task] = {name: value for name, value in values.items() if not isinstance(value, list)}
        _add_label_columns(label_rows, metric, values, MEASURED[task].label_prefix)
    if label_rows:
        results["per_label"] = [
            {"id": key, "label": name, **label_rows[key]}
            for key, name in sorted(id2label.items())
            if key in label_rows
        ]
    return _plain(results)


def _add_label_columns(rows: dict[int, dict], metric: DenseMetrics, values: dict, prefix: str) -> None:
    """Add what a metric computes for each class to the rows of the classes, by their ids, with a `prefix` to names."""
    columns = {name: values[f"per_label_{name}"] for name in LABEL_METRICS if f"per_label_{name}" in values}
    if isinstance(metric, SegmentationMetrics) and not prefix:
        columns["pixels"] = metric.confusion.sum(dim=1).tolist()
    for name, column in columns.items():
        for key, value in zip(metric.label_ids, column, strict=True):
            rows.setdefault(key, {})[prefix + name] = value


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
    lines = [
        f"# {_cell(results['model'])} on {_cell(results['data'])}, {_cell(results['options']['split'])}\n",
        f"{results['samples']} samples, {results['seconds']:.0f} seconds of prediction.\n",
        *result_tables(results),
        "\n| option | value |\n|---|---|",
    ]
    lines += [f"| {name} | {_cell(value)} |" for name, value in results["options"].items() if value is not None]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return "\n".join([*lines, f"\n{versions}\n"])


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def result_tables(results: dict) -> list[str]:
    """The protocol, the metrics and each class's, in lines of Markdown."""
    lines = []
    published = results.get("protocol", {}).get("published", {})
    if "protocol" in results:
        lines.append(describe_protocol(results["protocol"]) + "\n")
    if "text" in results:
        facts = results["text"]
        lines.append(
            f"Text: {facts['tokens']} tokens; {facts['questions']} questions, of which a guess has "
            f"{facts['guess']:.4f} right.\n"
        )
    if "text_kept" in results:
        lines.append(describe_kept(results["text_kept"]) + "\n")
    extra = " published (4B) |" if published else ""
    lines.append(f"| task | metric | value |{extra} images |\n|---|---|---|{'---|' if extra else ''}---|")
    for task, values in results["metrics"].items():
        for name, value in values.items():
            figure = f" {published.get(name, '-')} |" if published else ""
            lines.append(f"| {task} | {METRICS[name].name} | {_text(value)} |{figure} {results['images'][task]} |")
    if "per_label" in results:
        prefixes = dict.fromkeys(task.label_prefix for task in MEASURED.values())
        titles = {
            prefix + key: f"{prefix}{name}".replace("_", " ")
            for prefix in prefixes
            for key, name in LABEL_METRICS.items()
        }
        titles["pixels"] = "pixels of the reference"
        names = [name for name in titles if any(name in row for row in results["per_label"])]
        lines += ["\n| class | " + " | ".join(titles[name] for name in names) + " |\n|---|" + "---|" * len(names)]
        for row in results["per_label"]:
            values = [row.get(name) for name in names]
            texts = [str(value) if isinstance(value, int) else _text(value) for value in values]
            lines += [f"| {_cell(row['label'])} | " + " | ".join(texts) + " |"]
    return lines


def write_results(
    folder: Path,
    results: dict,
    metrics: dict[str, DenseMetrics],
    id2label: dict[int, str] | None,
    cases: PIL.Image.Image | None,
) -> None:
    """Write what an evaluation found, each file as a whole; `results.json`, the last, says that all are there.

    Args:
        folder: of the results.
        results: of [`make_results`].
        metrics: each task's, with all images added.
        id2label: class id to name.
        cases: the best, median and worst images, if any.
    """
    for task, metric in metrics.items():
        if isinstance(metric, SegmentationMetrics) and not MEASURED[task].label_prefix:
            names = [name for _, name in sorted(id2label.items())]
            write_atomically(folder / "confusion.png", _png(draw_confusion(metric.confusion.numpy(), names)))
    if cases is not None:
        write_atomically(folder / "cases.png", _png(cases))
    write_atomically(folder / "results.md", to_markdown(results).encode())
    write_atomically(folder / "results.json", json.dumps(results, indent=2).encode())


def _png(image: PIL.Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_coco(folder: Path, segments: list[dict], settings: Settings) -> None:
    """Write what was found as COCO has it: `panoptic/*.png`, `instances.json`, and last `panoptic.json`.

    Args:
        folder: of the files; those of an earlier evaluation are replaced.
        segments: of each image, in the order of the samples, what [`segments_record`] gave.
        settings: with names and things.
    """
    for name in (COCO_PANOPTIC, COCO_INSTANCES):
        (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for record in segments for row in record["rows"] if row["category_id"] in settings.thing_ids]
    write_atomically(folder / COCO_INSTANCES, json.dumps(rows).encode())
    categories = [
        {"id": key, "name": settings.id2label[key], "isthing": int(key in settings.thing_ids)}
        for key in segment_ids(settings)
    ]
    maps = ((record["index"], segments_of_coco(record["rows"], record["size"])) for record in segments)
    save_coco_panoptic(maps, folder / COCO_PANOPTIC, folder / COCO_IMAGES, categories, overwrite=True)


def segments_record(index: int, prediction: Segments) -> dict:
    """What was found in the sample of a row, in a form that is saved: its index, size, and COCO's rows."""
    size = list(prediction[0].shape)
    return {"index": index, "size": size, "rows": coco_instances(index, prediction)}


# ---- card ----


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
    return ModelCard(
        "---\nlibrary_name: transformers\npipeline_tag: image-segmentation\ntags:\n- densemllm\n- custom_code\n---\n\n"
        f"# {name}\n"
    )


def _with_section(text: str, title: str, body: str) -> str:
    """The text of a card with the tables of an evaluation, in the place of older ones of the same `title`."""
    first, last = (f"<!-- evaluation{end}: {_cell(title).replace('--', '-')} -->" for end in ("", " end"))
    section = f"{first}\n## Evaluated on {_cell(title)}\n\n{body}\n{last}"
    before, found, rest = text.partition(first)
    if found and last in rest:
        return before + section + rest.partition(last)[2]
    return f"{text.rstrip()}\n\n{section}\n"


def update_card(folder: str, results: dict) -> None:
    """Put the metrics into the model index of the card of a model folder, and their tables, with each class's, into
    its text. What the card has of other data, splits or options stays; the value of the same metric, the tables of
    the same data and split, and the line that says whether text is kept, are replaced."""
    card, options = load_card(folder), results["options"]
    name = options["data_name"] or results["data"]
    merged = list(card.data.eval_results or [])
    for task, values in results["metrics"].items():
        shaped = CARD_OPTIONS | MEASURED[task].options
        shaped = {key: options[key] for key, default in shaped.items() if options[key] != default}
        if MEASURED[task].task is not None and shaped.get("refine") not in MEASURED[task].task.refinements:
            shaped.pop("refine", None)
        shaped |= MEASURED[task].facts
        for metric, value in values.items():
            if value is None:
                continue
            new = EvalResult(
                task_type=METRICS[metric].hub_task,
                # The index tells data sets apart by this field, and not by the next.
                dataset_type=name,
                dataset_name=name,
                dataset_split=options["split"],
                metric_type=metric,
                metric_name=METRICS[metric].name,
                metric_value=round(value, 4),
                metric_args=shaped or None,
            )
            merged = [result for result in merged if not result.is_equal_except_value(new)] + [new]
    card.data.model_name = card.data.model_name or Path(folder).resolve().name
    card.data.eval_results = merged
    card.text = _with_section(card.text, f"{name}, {options['split']}", "\n".join(result_tables(results)))
    if "text_kept" in results:
        line, before = describe_kept(results["text_kept"]), KEPT_LINE.search(card.text)
        card.text = (
            f"{card.text[: before.start()]}{line}{card.text[before.end() :]}"
            if before
            else f"{card.text.rstrip()}\n\n{line}\n"
        )
    write_atomically(Path(folder) / "README.md", str(card).encode())
