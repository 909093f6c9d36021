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
"""What the command line has to know of tasks and forms of files before torch is there: a table beside this file,
`tables.json`, that `tools/write_command_tables.py` writes from the tasks themselves, and a test compares with them."""

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any


FILE = Path(__file__).with_name("tables.json")


@dataclass(frozen=True)
class TaskRow:
    """What stands in a task's class; see `DenseTask`."""

    name: str
    about: str
    map_field: str
    options: tuple[str, ...]
    refinements: tuple[str, ...]
    needs: tuple[str, ...]


@dataclass(frozen=True)
class FormatRow:
    """A form of file; see `Format` of `saving_densemllm`. An empty list of `fields` is every map."""

    name: str
    about: str
    suffixes: tuple[str, ...]
    fields: tuple[str, ...]

    def takes(self, task: TaskRow) -> bool:
        """Whether the map of a task can be written so."""
        return not self.fields or task.map_field in self.fields


@dataclass(frozen=True)
class Tables:
    """All of it.

    Attributes:
        tasks, formats: rows by name.
        default_task: where none is named.
        short_commands: a command that is short for one task, and the task's name.
        sources: of normals.
        data_suffixes: of files of rows.
    """

    tasks: dict[str, TaskRow]
    formats: dict[str, FormatRow]
    default_task: str
    short_commands: dict[str, str]
    sources: tuple[str, ...]
    data_suffixes: tuple[str, ...]

    def tasks_with(self, option: str) -> list[str]:
        """Names of the tasks to which an argument of `predict_dense` says something."""
        return [name for name, row in self.tasks.items() if option in row.options]


@cache
def read_tables() -> Tables:
    """The table that is there."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    rows = {"tasks": TaskRow, "formats": FormatRow}
    for key, cls in rows.items():
        content[key] = {row["name"]: cls(**_tuples(row)) for row in content[key]}
    return Tables(**_tuples(content))


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}


def make_tables() -> dict[str, Any]:
    """The same from the tasks themselves, as JSON has it."""
    from ..formats.folders import FILE_KINDS
    from ..saving_densemllm import FORMATS
    from ..tasks_densemllm import DEFAULT_TASK, TASKS, Classes, Depth, Normals

    names = [name for name in TaskRow.__dataclass_fields__]
    tasks = [{name: getattr(task, name) for name in names} for task in TASKS.values()]
    formats = [
        {"name": name, **{key: value for key, value in asdict(form).items() if key != "needs_image"}}
        for name, form in FORMATS.items()
    ]
    content = {
        "tasks": tasks, "formats": formats, "default_task": DEFAULT_TASK,
        "short_commands": {"segment": Classes.name, Depth.name: Depth.name}, "sources": Normals.sources,
        "data_suffixes": list(FILE_KINDS),
    }  # fmt: skip
    return json.loads(json.dumps(content))


def list_tasks(as_json: bool) -> None:
    """Print the tasks that there are, and the forms of their files."""
    tables = read_tables()
    rows = {
        name: {
            "about": task.about,
            "options": list(task.options),
            "formats": [own for own, form in tables.formats.items() if form.takes(task)],
        }
        for name, task in tables.tasks.items()
    }
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for name, row in rows.items():
        print(f"{name}: {row['about']}")
        for kind in ("options", "formats"):
            print(f"  {kind}: {', '.join(row[kind])}")


__all__ = ["FILE", "FormatRow", "Tables", "TaskRow", "list_tasks", "make_tables", "read_tables"]
