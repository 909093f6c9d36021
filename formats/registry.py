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
"""The layouts that are known by name: `NAME:PATH` in the place of a folder."""

from importlib import import_module

from .base import Format, FormatSamples, check_split


# Name to the module beside this one that has it, in its table `FORMATS`. A module is imported when one of its data
# sets is asked for.
MODULES: dict[str, str] = {
    "coco": "coco",
    "coco_detection": "coco",
    "coco_json": "coco",
    "coco_panoptic": "coco",
    "coco_stuff": "coco",
    "grefcoco": "refcoco",
    "refcoco": "refcoco",
    "refcoco+": "refcoco",
    "refcocog": "refcoco",
    "folder": "own_folders",
    "ade20k": "ade20k",
    "cityscapes": "cityscapes",
    "cityscapes_depth": "cityscapes",
    "context59": "pascal",
    "voc": "pascal",
    "voc20": "pascal",
    "ddad": "ddad",
    "ibims1": "ibims1",
    "kitti": "kitti",
    "mpii": "mpii",
    "nyuv2": "nyuv2",
    "tallyqa": "tallyqa",
}


def format_of(name: str) -> tuple[Format, str] | None:
    """The layout and the path that `NAME:PATH` says; `None` where there is no such name in front."""
    prefix, colon, path = name.partition(":")
    if not colon or prefix not in MODULES:
        return None
    module = import_module(f".{MODULES[prefix]}", __package__)
    return module.FORMATS[prefix], path


def open_format(name: str, split: str, **options: object) -> FormatSamples | None:
    """The samples of `NAME:PATH`; `None` where there is no such name in front.

    Raises:
        ValueError: a split that the data set lacks, an option that its layout doesn't take, or files that lack.
    """
    found = format_of(name)
    if found is None:
        return None
    layout, path = found
    unknown = sorted(set(options) - set(layout.options))
    if unknown:
        raise ValueError(f"`{unknown[0]}` can't be given for {name}; it takes {list(layout.options)}")
    if layout.splits is not None:
        if split not in layout.splits:  # the two names of one thing
            split = {"validation": "val", "val": "validation"}.get(split, split)
        check_split(split, layout.splits, name)
    return layout.open(path, split, **options)


__all__ = ["MODULES", "format_of", "open_format"]
