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
"""`densemllm tasks`: what a checkpoint can do, without its weights."""

import argparse
import json
from typing import Any

from ..configuration_densemllm import DenseMLLMConfig
from ..files import reading
from ..processing_densemllm import DenseMLLMProcessor
from ..task_base_densemllm import DenseRequest
from ..tasks_densemllm import TASKS
from ..text_tasks_densemllm import TEXT_TASKS
from .parsers import WIDTH


LISTED = 200  # names of classes that are printed


def describe_checkpoint(model: str) -> dict[str, Any]:
    """What a checkpoint says that it can do, as JSON has it.

    Args:
        model: folder or Hub name.

    Returns:
        `tasks`: of each name whether its tokens are there, `missing`, why not, and `prompt`; `classes` (by number;
        `None`: the model names them), `thing_labels`, `depth_ranges` (rows by name), `default_depth_range`,
        `referring_prompt` and `questions` (of text tasks).

    Raises:
        ValueError: it can't be loaded.
    """
    with reading(f"--model {model}"):
        config = DenseMLLMConfig.from_pretrained(model)
        processor = DenseMLLMProcessor.from_pretrained(model)
    tasks = {name: _describe_task(task, config, processor) for name, task in TASKS.items()}
    classes = config.label_names
    return {
        "model": model,
        "tasks": tasks,
        "classes": None if classes is None else {str(key): name for key, name in classes.items()},
        "thing_labels": None if config.thing_labels is None else list(config.thing_labels),
        "depth_ranges": processor.depth_ranges,
        "default_depth_range": processor.default_depth_range,
        "referring_prompt": processor.referring_prompt,
        "questions": {name: task.plain_question or task.question for name, task in TEXT_TASKS.items()},
    }


def _describe_task(task: Any, config: DenseMLLMConfig, processor: DenseMLLMProcessor) -> dict[str, Any]:
    """Whether the tokens of a task are there, as the task itself finds out."""
    names = dict(config.label_names or {0: "thing"})
    request = DenseRequest(
        size=(0, 0), image_size=(1, 1), resized_size=(1, 1), labels=names, expression="{text}", focal_length=1.0,
        thing_labels=tuple(config.thing_labels or ()),
    )  # fmt: skip
    missing = None
    try:
        task.check(request, processor)
        if not task.is_known(processor) or not task.label_ids(request, processor):
            missing = "its tokens are not in the tokenizer"
    except ValueError as error:
        missing = str(error)
    return {"about": task.about, "missing": missing, "prompt": None if missing else task.prompt(request, processor)}


def show_tasks(args: argparse.Namespace) -> None:
    """Print what a checkpoint can do."""
    found = describe_checkpoint(args.model)
    if args.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{args.model}\n\nTasks")
    for name, row in found["tasks"].items():
        print(f"  {name:14}{row['about'] if row['missing'] is None else 'no: ' + row['missing']}")
        if row["prompt"]:
            print(f"  {'':14}asked as: {row['prompt']}")
    classes = found["classes"]
    if classes is None:
        print("\nClasses: the checkpoint has no list of its own; give --labels, or the model names what it sees")
    else:
        print(f"\nClasses ({len(classes)})")
        _print_wrapped([f"{key} {name}" for key, name in list(classes.items())[:LISTED]])
    if found["thing_labels"]:
        print("\nObjects of these are told apart")
        _print_wrapped(found["thing_labels"])
    print("\nDepth ranges, --depth_range")
    for name, row in found["depth_ranges"].items():
        camera = f", camera of {row['focal_length']:g} pixels" if row.get("focal_length") else ""
        default = ", where none is named" if name == found["default_depth_range"] else ""
        print(f"  {name:14}{row['min_depth']:g} to {row['max_depth']:g} m, {row['mapping']}{camera}{default}")
    print("\nQuestions of text tasks, `model.predict(image, task=...)`, or `densemllm ask`")
    for name, question in found["questions"].items():
        print(f"  {name:16}{question if len(question) < 96 else question[:93] + '...'}")


def _print_wrapped(entries: list[str]) -> None:
    line = " "
    for place, entry in enumerate(entries):
        entry += "," if place + 1 < len(entries) else ""
        if len(line) + len(entry) + 1 > WIDTH:
            print(line)
            line = " "
        line += f" {entry}"
    print(line)
