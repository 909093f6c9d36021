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

"""The card of a trained model: its results for the Hub's model index, how it is used, and how it was trained."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
import transformers
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import TrainerState, TrainingArguments

from ..evaluation.metrics import METRICS
from ..evaluation.report import LABEL_METRICS
from ..modeling_densemllm import DenseMLLMForConditionalGeneration
from ..processing_densemllm import DenseMLLMProcessor
from ..tasks_densemllm import Classes, Depth
from .check_sheet import beside, scaled, stack
from .optimizers import PARTS


TAGS = ("densemllm", "depth-estimation", "image-segmentation", "custom_code")
SHEET = "predictions.jpg"
SHOWN = 3  # samples on it
SETTINGS = (
    "learning_rate", "muon_learning_rate", *PARTS.values(), "lr_scheduler_type", "weight_decay", "seed", "bf16",
)  # fmt: skip


def as_list(value: str | Sequence[str] | None) -> list[str]:
    """One or several strings, or none, as a list."""
    return [value] if isinstance(value, str) else list(value or [])


def last_evaluations(state: TrainerState) -> dict[str, dict[str, float]]:
    """The last evaluation of each data set in the log of a training: its name (`""` where it has none, as with a
    single one) to its metrics by the names that they have there."""
    found = {}
    for row in reversed(state.log_history):
        losses = [key for key in row if key.startswith("eval_") and key.endswith("_loss")]
        if losses:
            prefix = "eval_" if "eval_loss" in losses else losses[0].removesuffix("loss")
            metrics = {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}
            found.setdefault(prefix[len("eval_") : -1], metrics)
    return dict(reversed(found.items()))


def results_of(evaluated: dict[str, float], dataset_name: str, dataset_type: str) -> list[EvalResult]:
    """An evaluation as the Hub's model index has it: the metrics that are there."""
    return [
        EvalResult(
            task_type=metric.hub_task,
            dataset_type=dataset_type,
            dataset_name=dataset_name,
            metric_type=key,
            metric_name=metric.name,
            metric_value=round(evaluated[key], 4),
        )
        for key, metric in METRICS.items()
        if evaluated.get(key) is not None
    ]


def class_scores(evaluated: Mapping[str, Any], classes: Mapping[int, str]) -> list[dict[str, Any]]:
    """What an evaluation says of each class.

    Args:
        evaluated: its metrics; those of `LABEL_METRICS` are lists in the order of the classes' ids, NaN where a class
            does not occur.
        classes: class id to name.

    Returns:
        a row for each class: `label`, and its metrics; none where there are no such metrics.
    """
    names = [name for _, name in sorted(classes.items())]
    columns = {key: evaluated.get(f"per_label_{key}") for key in LABEL_METRICS}
    columns = {key: values for key, values in columns.items() if values is not None and len(values) == len(names)}
    rows = [
        {"label": name, **{key: values[place] for key, values in columns.items()}} for place, name in enumerate(names)
    ]
    return rows if columns else []


def licence_of(folder: str | Path) -> str | None:
    """The licence that the card of a model folder names; `None` where it names none, or there is no card."""
    try:
        return ModelCard.load(Path(folder) / "README.md").data.license
    except (OSError, ValueError, yaml.YAMLError):
        return None


def draw_predictions(
    model: DenseMLLMForConditionalGeneration, processor: DenseMLLMProcessor, samples: Sequence[Mapping[str, Any]]
) -> PIL.Image.Image:
    """A sheet of samples, one below the other: the image, and of classes and depth what a model predicts in it, where
    the samples are annotated with them.

    Raises:
        ValueError: they are annotated with neither.
    """
    labels, strips = model.config.label_names, []
    tasks = [task for task in (Classes, Depth) if any(sample.get(task.column) is not None for sample in samples)]
    if not tasks:
        raise ValueError("no sample has classes or depth")
    for sample in samples:
        tile = scaled(sample["image"])
        maps = model.predict_dense(
            sample["image"],
            [task.name for task in tasks],
            labels=labels,
            processor=processor,
            target_sizes=(tile.height, tile.width),
            focal_length=sample.get("focal_length"),
        )
        strips.append(beside([tile, *(maps.to_pil(task.map_field, legend=True) for task in tasks)], []))
    return stack(strips)


def usage_section(model_name: str, base_model: str | None, classes: dict[int, str] | None) -> list[str]:
    """What the model is, and a few lines of code that use it."""
    base = f", fine-tuned from `{base_model}`" if base_model else ""
    code = [
        "from transformers import AutoModel\n",
        f'model = AutoModel.from_pretrained("{model_name}", trust_remote_code=True).eval()',
    ]
    if classes:
        code += [
            'result = model.predict_dense("photo.jpg", task=("segmentation", "depth"), labels=model.config.id2label)',
            "result.segmentation  # int64 [height, width], keys of `id2label`",
            "result.predicted_depth  # float32 [height, width], metres",
        ]
    else:
        code.append(
            'model.predict_dense("photo.jpg", task="depth").predicted_depth  # float32 [height, width], metres'
        )
    return [
        f"# {model_name}\n",
        f"A [DenseMLLM](https://arxiv.org/abs/2602.14134){base}: a multimodal language model whose vision tokens' "
        "logits are class maps, depth maps and masks.\n",
        "\n".join(["```python", *code, "```\n"]),
    ]


def classes_section(classes: dict[int, str] | None, scores: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """The classes with their scores on each data set; the names alone where there are no scores."""
    if not classes:
        return []
    if not any(scores.values()):
        return [f"Its classes: {', '.join(classes.values())}.\n"]
    lines = []
    for name, rows in scores.items():
        columns = [key for key in LABEL_METRICS if any(key in row for row in rows)]
        if not columns:
            continue
        lines.append(f"\nIts classes on {name}:\n")
        lines.append(f"| class | {' | '.join(LABEL_METRICS[key] for key in columns)} |\n|---|" + "---|" * len(columns))
        for row in rows:
            values = [row.get(key) for key in columns]
            texts = ["-" if value is None or math.isnan(value) else f"{value:.4f}" for value in values]
            lines.append(f"| {row['label'].replace('|', chr(92) + '|')} | {' | '.join(texts)} |")
    return lines


def evaluation_section(
    evaluated: dict[str, float], results: list[EvalResult], dataset_name: str, step: int
) -> list[str]:
    """A table of the results and the loss."""
    return [
        f"\nOn {dataset_name}, after {step} steps:\n",
        "| metric | value |\n|---|---|",
        *[f"| {result.metric_name} | {result.metric_value} |" for result in results],
        f"| loss | {evaluated['loss']:.4f} |" if evaluated else "| not evaluated | |",
    ]


def training_section(args: TrainingArguments, state: TrainerState, dataset: Sequence[str]) -> list[str]:
    """A table of the data and the settings, and the versions."""
    samples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return [
        "\n## Training\n\n| setting | value |\n|---|---|",
        f"| steps | {state.global_step} ({state.epoch or 0:.2f} epochs) |",
        f"| samples a step | {samples} |",
        *([f"| data | {', '.join(dataset)} |"] if dataset else []),
        *[f"| {name} | {getattr(args, name)} |" for name in SETTINGS if getattr(args, name, None) is not None],
        f"\nTransformers {transformers.__version__}, PyTorch {torch.__version__}.\n",
    ]


def make_model_card(
    args: TrainingArguments,
    state: TrainerState,
    classes: dict[int, str] | None,
    model_name: str,
    base_model: str | None = None,
    dataset: str | Sequence[str] | None = None,
    dataset_tags: str | Sequence[str] | None = None,
    tags: str | Sequence[str] | None = None,
    evaluated_on: str | None = None,
    scores: Mapping[str, list[dict[str, Any]]] | None = None,
    sheet: str | None = None,
    **metadata: Any,
) -> ModelCard:
    """The card of a model.

    Args:
        args: of the training.
        state: of the training, whose last evaluation the card has, of each data set.
        classes: of the model, class id to name.
        model_name: its name.
        base_model: the name of the model that the training started from.
        dataset: name or names of the data, for people.
        dataset_tags: names of the data on the Hub.
        tags: further ones.
        evaluated_on: name of the data of an evaluation that has none; as `dataset` has it where left out.
        scores: [`class_scores`] of each evaluated data set, by its name as in the log (`""` where it has none).
        sheet: name of an image file beside the card, of [`draw_predictions`].
        metadata: further arguments of `ModelCardData`: `language`, `license`.
    """
    dataset_name = evaluated_on or ", ".join(as_list(dataset)) or "unknown"
    dataset_type = (as_list(dataset_tags) or ["custom"])[0]
    evaluations = {name or dataset_name: evaluated for name, evaluated in last_evaluations(state).items()}
    # The index tells data sets apart by their type, and not by their names.
    types = {name: dataset_type if len(evaluations) == 1 else name for name in evaluations}
    results = {name: results_of(evaluated, name, types[name]) for name, evaluated in evaluations.items()}
    tables = [
        evaluation_section(evaluations.get(name, {}), results.get(name, []), name, state.global_step)
        for name in evaluations or [dataset_name]
    ]
    scores = {name or dataset_name: rows for name, rows in (scores or {}).items()}
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation" if classes else "depth-estimation",
        tags=[*TAGS, *as_list(tags)],
        base_model=base_model,
        datasets=as_list(dataset_tags) or None,
        model_name=model_name,
        eval_results=[result for rows in results.values() for result in rows] or None,
        **metadata,
    )
    lines = [
        f"---\n{data.to_yaml()}\n---\n",
        *usage_section(model_name, base_model, classes),
        *([f"![Images of the validation data, and what the model sees in them]({sheet})\n"] if sheet else []),
        "## Evaluation",
        *[line for table in tables for line in table],
        *classes_section(classes, scores),
        *training_section(args, state, as_list(dataset)),
    ]
    return ModelCard("\n".join(lines))


__all__ = ["class_scores", "draw_predictions", "licence_of", "make_model_card"]
