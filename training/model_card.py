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

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import TrainerState, TrainingArguments

from ..evaluation.metrics import METRICS
from .optimizers import PARTS


TAGS = ("densemllm", "depth-estimation", "image-segmentation")
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


def usage_section(model_name: str, base_model: str | None, classes: dict[int, str] | None) -> list[str]:
    """What the model is, a few lines of code that use it, and its classes."""
    base = f", fine-tuned from `{base_model}`" if base_model else ""
    return [
        f"# {model_name}\n",
        f"A [DenseMLLM](https://arxiv.org/abs/2602.14134){base}: a multimodal language model whose vision tokens' "
        "logits are class maps, depth maps and masks.\n",
        "```python\nfrom transformers import AutoModel\n",
        f'model = AutoModel.from_pretrained("{model_name}", trust_remote_code=True).eval()',
        'model.predict_dense("photo.jpg", task="depth").predicted_depth  # metres\n```\n',
        *([f"Its classes: {', '.join(classes.values())}.\n"] if classes else []),
    ]


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
        metadata: further arguments of `ModelCardData`: `language`, `license`.
    """
    dataset_name = evaluated_on or ", ".join(as_list(dataset)) or "unknown"
    dataset_type = (as_list(dataset_tags) or ["custom"])[0]
    evaluations = {name or dataset_name: evaluated for name, evaluated in last_evaluations(state).items()}
    results = {name: results_of(evaluated, name, dataset_type) for name, evaluated in evaluations.items()}
    tables = [
        evaluation_section(evaluations.get(name, {}), results.get(name, []), name, state.global_step)
        for name in evaluations or [dataset_name]
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
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
        "## Evaluation",
        *[line for table in tables for line in table],
        *training_section(args, state, as_list(dataset)),
    ]
    return ModelCard("\n".join(lines))


__all__ = ["make_model_card"]
