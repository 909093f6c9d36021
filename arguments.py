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
"""Options of a script: a configuration file in front of a command line."""

import json
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from .files import read_json_or_yaml


SUFFIXES = (".yaml", ".yml", ".json")


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """A description as it is written, and the defaults of those options that have any."""

    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def parse_with_file(parser: HfArgumentParser, arguments: list[str] | None = None) -> tuple[Any, ...]:
    """The dataclasses of a parser from a command line, in front of which may stand a configuration file.

    What follows the file wins. The file's values become words of the command line, so that both are checked alike. A
    value of `null` or an empty list counts as left out.

    Args:
        parser: of the dataclasses.
        arguments: the command line, of this process where left out. A first word that ends in `.yaml`, `.yml` or
            `.json` is the file's name; the file has options by name, as the command line has them without dashes.

    Returns:
        an instance of each dataclass.

    Raises:
        OSError: the file is not there.
        ValueError: it can't be read, or has an option that there isn't, or a value that no option takes.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0].endswith(SUFFIXES):
        name = arguments.pop(0)
        arguments = [*_read_words(parser, name, _read_file(name)), *arguments]
    return parser.parse_args_into_dataclasses(arguments)


def _read_file(name: str) -> Any:
    try:
        return read_json_or_yaml(name)
    except ValueError as error:
        kind = Path(name).suffix[1:]
        raise ValueError(f"{name} is not a configuration file in {kind}, it can't be read: {error}") from error


def _read_words(parser: HfArgumentParser, name: str, values: Any) -> list[str]:
    """The words of the command line that say what a file does; what no word can say becomes a default."""
    types = {field: kind for cls in parser.dataclass_types for field, kind in get_type_hints(cls).items()}
    # By all names of an option, its aliases with them.
    fields = {word.lstrip("-"): action.dest for action in parser._actions for word in action.option_strings}
    fields = {option: field for option, field in fields.items() if field in types}
    if not isinstance(values, dict) or set(values) - set(fields):
        unknown = sorted(set(values) - set(fields), key=str) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{name} must have options by name; unknown: {unknown}")
    words = []
    for option, value in values.items():
        kind = types[fields[option]]
        if isinstance(value, list) and "list" not in str(kind):
            raise ValueError(f"{name}: `{option}` must be one value, got {value}")
        if isinstance(value, dict) and _takes(str, kind) and "dict" not in str(kind).lower():
            # As a word it would be taken for a text.
            raise ValueError(f"{name}: `{option}` must be one value or a list, got {value}")
        if isinstance(value, list) and get_origin(kind) is not list and _takes(str, kind):
            parser.set_defaults(**{fields[option]: value})  # a list, or one word of the command line
        else:
            words += _as_words(option, value)
    return words


def _takes(cls: type, kind: Any) -> bool:
    return kind is cls or cls in get_args(kind)


def _as_words(option: str, value: Any) -> list[str]:
    if value is None or value == []:
        return []
    values = value if isinstance(value, list) else [value]
    first, *more = (json.dumps(one) if isinstance(one, (dict, list)) else str(one) for one in values)
    return [f"--{option}", first, *more] if more else [f"--{option}={first}"]
