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
"""A configuration file in front of a command line: the same options, read and checked in the same way."""

import json
from dataclasses import dataclass, field

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from densemllm.arguments import parse_with_file


@dataclass
class Options:
    name: str = HfArg(default="none", aliases=["--called"])
    sizes: list[int] | None = field(default=None)
    share: float = field(default=0.5)
    names: list[str] = field(default_factory=list)
    off: bool = field(default=False)
    more: dict | str | None = field(default=None)
    several: None | str | list[str] = field(default=None)


def parse(folder, values, *more, kind="yaml"):
    """The options of a file, which has a text or values, with the words behind it."""
    if not isinstance(values, str):
        values = json.dumps(values) if kind == "json" else yaml.safe_dump(values)
    path = folder / f"options.{kind}"
    path.write_text(values, encoding="utf-8")
    return parse_with_file(HfArgumentParser(Options), [str(path), *more])[0]


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1)
names = words.filter(lambda word: not word.startswith("-"))


@settings(max_examples=40, deadline=None)
@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            "name": words, "sizes": st.lists(st.integers(0, 99), min_size=1, max_size=3), "off": st.booleans(),
            "share": st.floats(-1, 1), "names": st.lists(names, min_size=1, max_size=3),
            "several": st.lists(words, min_size=1, max_size=3),
        },
    )
)  # fmt: skip
def test_what_a_file_says_arrives(tmp_path_factory, values):
    """Any values: texts that begin with dashes or look like numbers, lists of one, numbers in any notation."""
    path = tmp_path_factory.mktemp("arguments")
    for kind in ("json", "yaml"):
        assert vars(parse(path, values, kind=kind)) == vars(Options()) | {"name": "none"} | values


def test_the_command_line_wins_and_aliases_count(tmp_path):
    values = {"called": "file", "sizes": [1, 2], "share": None, "names": []}
    args = parse(tmp_path, values, "--sizes", "3", "--off")
    assert (args.name, args.sizes, args.share, args.names, args.off) == ("file", [3], 0.5, [], True)
    assert parse_with_file(HfArgumentParser(Options), ["--name", "x.yaml"])[0].name == "x.yaml"  # no file in front


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("name: [a", "options.yaml is not a configuration file in yaml, it can't be read: "),
        ("- name", "must have options by name; unknown: list"),
        ({"names_": 1, 2: 3}, r"unknown: \[2, 'names_'\]"),
        ({"help": True}, r"unknown: \['help'\]"),
        ({"share": [1, 2]}, r"`share` must be one value, got \[1, 2\]"),
        ({"name": {"a": 1}}, "`name` must be one value or a list, got {'a': 1}"),
        ({"names": {"a": 1}}, "`names` must be one value or a list, got {'a': 1}"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        parse(tmp_path, values)


def test_a_dict_arrives_where_it_is_one(tmp_path):
    assert json.loads(parse(tmp_path, {"more": {"a": [1, 2]}}).more) == {"a": [1, 2]}  # its dataclass reads the text
