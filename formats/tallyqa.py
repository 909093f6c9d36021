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
"""TallyQA: questions about images whose answers are numbers."""

from functools import partial
from pathlib import Path
from typing import Any

from .base import Facts, Format, FormatSamples, check_split, find_file
from .coco_index import JsonList


# By split: its file, and what `issimple` is of its questions; `None`: either. Figures are published for both halves of
# the test split.
SPLITS: dict[str, tuple[str, bool | None]] = {
    "train": ("train.json", None),
    "test": ("test.json", None),
    "test_simple": ("test.json", True),
    "test_complex": ("test.json", False),
}


def open_tallyqa(path: str, split: str, images: str | None = None) -> FormatSamples:
    """TallyQA: `train.json` and `test.json`, lists of questions with `image` (`VG_100K/1.jpg`, `VG_100K_2/1.jpg`,
    `train2014/COCO_train2014_000000000009.jpg`...), `question` and `answer`. A question is a sample, and is read from
    the file when it is asked for.

    Args:
        path: folder of the two files.
        split: "train", "test", or "test_simple" and "test_complex", those of the test questions that `issimple` says.
        images: folder from which the paths of images go; `path` where left out.

    Raises:
        ValueError: a file or folder that lacks, or a file with something else.
    """
    where = f"tallyqa:{path}"
    name, is_simple = SPLITS[check_split(split, SPLITS, where)]
    file = find_file(path, (name,), where)
    folder = Path(path if images is None else images)
    if not folder.is_dir():
        raise ValueError(f"{where}: the folder of the images, {folder}, isn't there")
    questions = JsonList(file, where, None if is_simple is None else partial(_is_of_kind, is_simple))
    if not len(questions):
        raise ValueError(f"{where}: {file} has no questions of the split {split!r}")
    _read(questions, folder, where, 0, frozenset())  # names a file of something else before anything is done
    return FormatSamples(
        range(len(questions)), partial(_read, questions, folder, where), ("image", "question", "answer"), Facts()
    )


def _is_of_kind(is_simple: bool, entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("issimple"), bool):
        raise ValueError("each question must have `issimple`, true or false, for this split")
    return entry["issimple"] == is_simple


def _read(questions: JsonList, folder: Path, where: str, place: int, wanted: frozenset[str]) -> dict[str, Any]:
    entry = questions[place]
    try:
        return {
            "image": str(folder / entry["image"]),
            "question": entry["question"],
            "answer": entry["answer"],
        }
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{where}: {questions.path} must be a list of dicts with image, question and answer ({error!r}, entry "
            f"{place})"
        ) from error


FORMATS: dict[str, Format] = {
    "tallyqa": Format(open_tallyqa, tuple(SPLITS), "TallyQA's questions whose answers are numbers", ("images",)),
}


__all__ = ["FORMATS", "open_tallyqa"]
