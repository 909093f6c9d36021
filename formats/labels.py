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

"""Class names of a data set from files: which file has them, and what it says."""

import json
import re
from pathlib import Path

import yaml


FILE_NAMES = ("id2label.json", "id2label.txt", "id2label.yaml", "id2label.yml", "classes.txt", "classes.yaml")


def find_id2label(name: str) -> str | None:
    """The file of class names that a local data set brings: `id2label.json`, `classes.txt`... in its folder."""
    folder = Path(name).parent if Path(name).is_file() else Path(name)
    files = (folder / file for file in FILE_NAMES)
    return next((str(file) for file in files if file.is_file()), None)


def load_id2label(name: str) -> dict[int, str]:
    """Class id to name from a file.

    Args:
        name: a JSON file `{"0": "wall", ...}`; or a `.txt` file of the same, or with a class a line: an id and a name
            (`0: wall`) in all of them, or names alone, which are numbered from 0; or a YAML file of the same, or of a
            list of names, under `names` or `id2label` where there is such an entry. UTF-8, or what its byte order mark
            says.

    Raises:
        ValueError: the file has something else.
    """
    content = Path(name).read_bytes()
    try:
        text = content.decode(json.detect_encoding(content))
        is_list = str(name).lower().endswith(".txt") and not text.lstrip().startswith("{")
        if str(name).lower().endswith((".yaml", ".yml")):
            pairs = _pairs_of_yaml(text)
        else:
            pairs = _pairs_of_lines(text) if is_list else json.loads(text).items()
        labels = [(int(key), label) for key, label in pairs]
    except (AttributeError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{name} must be a JSON object from class id to name, the same in YAML, or a .txt of names ({error})"
        ) from error
    if not labels or any(not isinstance(label, str) or not label.strip() for _, label in labels):
        raise ValueError(f"{name} must have a name for each class id, got {labels[:10]}")
    if len(dict(labels)) < len(labels):
        raise ValueError(f"{name} has a class id twice")
    return dict(labels)


def _pairs_of_yaml(text: str) -> list[tuple[str | int, str]]:
    table = yaml.safe_load(text)
    if isinstance(table, dict):
        table = next((table[key] for key in ("id2label", "names") if key in table), table)
    return list(table.items() if isinstance(table, dict) else enumerate(table))


def _pairs_of_lines(text: str) -> list[tuple[str | int, str]]:
    lines = [line.strip() for line in text.strip().splitlines()]
    numbered = [re.fullmatch(r"(\d+)\s*[\s:=,;]\s*(.+)", line) for line in lines]
    if all(numbered):
        return [match.groups() for match in numbered]
    for line in lines:
        if "\t" in line or re.match(r"\d+\s*[:=,;]", line):
            raise ValueError(f"not all lines have an id and a name, but this one has columns: {line!r}")
    return list(enumerate(lines))


__all__ = ["find_id2label", "load_id2label"]
