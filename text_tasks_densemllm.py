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
"""Tasks that are answered in words: what the model is asked, and how its answer becomes an object."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .answers_densemllm import (
    MPII_KEYPOINTS,
    parse_counting,
    parse_detection,
    parse_grounding,
    parse_polygons,
    parse_pose,
    plain_name,
)
from .checks_densemllm import check_text, shown
from .object_tasks_densemllm import Foreground, OpenSet


@dataclass(frozen=True)
class TextTask:
    """One row of the table of tasks that are answered in words.

    Attributes:
        question: prompt with a `text`; `None`: the task takes none.
        plain_question: prompt without one; `None`: it is needed.
        parse: reads an answer: a function of (answer, image_size, resized_size, names), sizes as for
            [`parse_grounding`], `names` those that were asked for.
    """

    question: str | None
    plain_question: str | None
    parse: Callable[[str, tuple[int, int], tuple[int, int], list[str]], dict[str, Any]]

    def ask(self, name: str, text: str | Iterable[str] | None, prompt: str | None) -> tuple[str, list[str]]:
        """The question, and the names that it asks for.

        Args:
            name: of the task, for messages.
            text: a phrase, or a list of names.
            prompt: the question in other words, with `{text}` where `text` belongs.

        Raises:
            ValueError: a `text` that is missing, or an empty one.
        """
        names = [text] if isinstance(text, str) else list(text or [])
        if any(not isinstance(entry, str) or not entry.strip() for entry in names):
            raise ValueError(f"`text` must be a phrase or a list of names, got {text!r}")
        question = prompt or (self.question if names else self.plain_question)
        if question is None or ("{text}" in question and not names):
            raise ValueError(f"`text` is needed for the task {name!r}")
        names = [plain_name(check_text("text", entry)) for entry in names]
        return question.replace("{text}", ",".join(names)), names


def find_class(answer: str, names: list[str] | None) -> dict[str, Any]:
    """The class that an answer names.

    Args:
        answer: of the model.
        names: the classes that may be meant; `None`: any.

    Returns:
        `label`: the name that comes first in the answer, upper and lower case alike, the longest of those that start
        at one place; one inside of a longer word only where no name stands alone. `None` if there is none. Without
        `names`, the answer itself, without a full stop at its end.
    """
    answer = plain_name(answer)
    if names is None:
        return {"label": answer.rstrip(".").rstrip() or None}
    spellings = [(name, plain_name(name)) for name in names]
    for edge in ("\\b", ""):
        found = []
        for name, words in spellings:
            if not words:
                continue
            start, end = (edge if letter.isalnum() else "" for letter in (words[0], words[-1]))
            match = re.search(start + re.escape(words) + end, answer, re.IGNORECASE)
            if match:
                found.append((match.start(), -len(words), name))
        if found:
            return {"label": min(found)[2]}
    return {"label": None}


def _without_names(parse: Callable[[str, tuple[int, int], tuple[int, int]], dict]) -> Callable[..., dict[str, Any]]:
    return lambda answer, image_size, resized_size, names: parse(answer, image_size, resized_size)


# Word for word those of the released checkpoint (Youtu-VL report, arXiv 2601.19798, appendix A.1, and its authors'
# demo), but for that of a pose of one thing, which is not published; `prompt` of `predict` takes another one.
POSE_QUESTION = (
    "Detect all persons and their poses from the image within the class set of MPII Human Pose Dataset. The output "
    "format should be a JSON-like string, containing person instances. Each person instance is enclosed in "
    "<person>...</person> tags. Within each person instance, provide the bounding box using <box>...</box> tags and "
    "their 16 keypoints using <kpt>...</kpt> tags. The bounding box is defined by <x_x1><y_y1><x_x2><y_y2> tags, and "
    "each keypoint is defined by <x_...><y_...><v_...> tags, where x, y are coordinates and v is visibility. The "
    "joints must be in this specific order: "
    + ", ".join(f"({number}) {joint.replace(' ', '_')}" for number, joint in enumerate(MPII_KEYPOINTS))
    + ". Please output all detected persons with their bounding boxes and keypoints."
)
COUNT_INSTRUCTION = "Output the final answer as a single number."
CLASS_QUESTION = (
    "What is the category of the primary object in this image? Answer the question with a single word or phrase."
)
# Names of tasks that an evaluation measures, or a reward.
DETECTION, GROUNDING, POSE, COUNTING, POLYGON = "detection", "grounding", "pose", "counting", "polygon"
TEXT_TASKS = {
    DETECTION: TextTask(
        OpenSet.question, "Detect all objects in the provided image.",
        _without_names(parse_detection),
    ),
    GROUNDING: TextTask(
        Foreground.question, None,
        _without_names(parse_grounding),
    ),
    POLYGON: TextTask(
        'Can you segment "{text}" in this image?', None,
        _without_names(parse_polygons),
    ),
    POSE: TextTask(
        "Detect the pose of {text} in this image.", POSE_QUESTION,
        _without_names(parse_pose),
    ),
    COUNTING: TextTask(
        f"How many {{text}} are there in the image? {COUNT_INSTRUCTION}", None,
        _without_names(parse_counting),
    ),
    "classification": TextTask(
        CLASS_QUESTION, CLASS_QUESTION, lambda answer, _image, _resized, names: find_class(answer, names or None),
    ),
}  # fmt: skip
# Another wording of counting in the same report: the boxes are in the answer, and are counted.
DETECT_THEN_COUNT = "How many {text} can you see in the image? First detect each one, then count the number."


def get_text_task(name: str) -> TextTask:
    """A row of the table, or a `ValueError` that names the accepted ones."""
    if not isinstance(name, str) or name not in TEXT_TASKS:
        raise ValueError(f"`task` must be one of {sorted(TEXT_TASKS)}, got {shown(name)}")
    return TEXT_TASKS[name]


__all__ = [
    "COUNTING",
    "COUNT_INSTRUCTION",
    "DETECTION",
    "DETECT_THEN_COUNT",
    "GROUNDING",
    "POLYGON",
    "POSE",
    "TEXT_TASKS",
    "TextTask",
    "find_class",
    "get_text_task",
]
