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
"""The parsers of the commands that ask a model: each shows the options that its tasks take, and an example."""

import argparse
from collections.abc import Iterable
from typing import Any

from ..files import OVERWRITE_HELP
from .tables import TaskRow, read_tables


EXIF = "exif"  # in the place of a focal length
ROWS = "parquet"  # the form of results that only a data set has
# Options that change how an image is read, whatever the task, where both are given.
CAMERA_OPTIONS = ("depth_range", "focal_length")
WIDTH = 118
EXAMPLES = {
    "predict": r"""
    densemllm predict photo.jpg --model MODEL --task normals --source depth --focal_length exif --out normals.png
    densemllm predict "photos/*.jpg" --model MODEL --task referring --text "the chair" --out chairs/
    densemllm predict FOLDER --model MODEL --task segmentation depth --out maps/   (a data set)
""",
    "segment": r"""
    densemllm segment photo.jpg --model MODEL --labels floor,wall,chair --out classes.png
    densemllm segment "photos/*.jpg" --model MODEL --format geojson --out polygons/
    densemllm segment film.mp4 --model MODEL --format overlay --out classes.mp4
""",
    "depth": r"""
    densemllm depth photo.jpg --model MODEL --out depth.png
    densemllm depth photo.jpg --model MODEL --focal_length exif --out room.ply
    densemllm depth film.mp4 --model MODEL --format side_by_side --out depth.mp4
""",
    "ask": r"""
    densemllm ask photo.jpg "How many chairs are there?" --model MODEL
""",
    "tasks": r"""
    densemllm tasks --model MODEL
""",
}
CLASS_NUMBERS = """
A class number is the name's place in --labels, from 0, or its number in a JSON object of --labels or in the
checkpoint's `id2label`. With tasks that find objects each object has a number of its own.
"""
FILES = """
Training and evaluation read raw PNGs as `segmentation` and, with a depth scale of 0.001, as `depth`. An input is never
written over, and a file that is there already only with --overwrite.
"""
INPUTS = """
IMAGE is one or several of
    image files          photo.jpg
    patterns, quoted     "photos/**/*.jpg"
    one video            film.mp4 (`pip install 'densemllm[video]'`): a video with --out NAME.mp4 in the forms picture,
                         overlay and side_by_side, which keeps the frames' rate; else a folder of the frames' maps
    one data set         a folder, a file of rows (.parquet, .jsonl...), NAME:PATH or a name on the Hub: all of its
                         images are predicted, in batches, by as many processes as `torchrun` or `accelerate launch`
                         start; a run that was stopped goes on where it was, and an image that can't be read is listed
                         and left out. --out is a folder then, with TASK/NAME.SUFFIX of one or several tasks

What is written is up to the name of --out, and to --format; maps have the image's own size:
"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=WIDTH)


def describe_formats(tasks: Iterable[TaskRow]) -> str:
    """What is in each form of file that one of these tasks can be written in, as text."""
    tasks, lines = list(tasks), []
    for name, form in read_tables().formats.items():
        if any(form.takes(task) for task in tasks):
            kinds = ", ".join(form.suffixes[:1] if len(form.suffixes) > 3 else form.suffixes)
            lines += _hang(f"    {name + ' (' + kinds + ')':28}", form.about)
    return "\n".join([*lines, *_hang(f"    {ROWS:28}", "of a data set: rows of names, and the PNG of each task")])


def _hang(first: str, text: str) -> list[str]:
    """A text in lines that stand below each other behind `first`."""
    lines, line = [], first
    for word in text.split():
        if len(line) + 1 + len(word) > WIDTH:
            lines.append(line)
            line = " " * len(first)
        line += (" " if line.strip() and len(line) > len(first) else "") + word
    return [*lines, line]


def _shared_options() -> argparse.ArgumentParser:
    """Options of all commands that ask a model."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--model", required=True, help="folder or Hub name of a DenseMLLM checkpoint")
    shared.add_argument(
        "--focal_length", type=lambda text: text if text == EXIF else float(text), metavar="PIXELS",
        help="of the images, in pixels; exif: of each image, as its camera wrote it into the file",
    )  # fmt: skip
    shared.add_argument("--depth_range", help="row of the checkpoint's `depth_ranges`, such as nyuv2")
    shared.add_argument(
        "--server",
        metavar="URL",
        help="a vLLM server that runs the checkpoint, which computes in the place of this process; --model says where "
        "the checkpoint's small files are. An API key is read from the variable VLLM_API_KEY",
    )
    shared.add_argument(
        "--chat_server",
        metavar="URL",
        help="the server for questions, where that of --server gives maps (`--runner pooling`)",
    )
    shared.add_argument("--device", help="to run on; left out: cuda where there is one, else cpu")
    shared.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
        help="of the weights; auto: as they are stored, float32 on a CPU that only emulates bfloat16",
    )  # fmt: skip
    return shared


def _add_file_options(parser: argparse.ArgumentParser, tasks: list[TaskRow]) -> None:
    """What is read, and what is written."""
    formats = read_tables().formats
    taken = [name for name, form in formats.items() if any(form.takes(task) for task in tasks)]
    suffixes = list(dict.fromkeys(suffix for name in taken for suffix in formats[name].suffixes))
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, patterns, a video, a data set; below")
    parser.add_argument(
        "--out", required=True, help="file to write; a folder for several images, with a file for each"
    )
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    parser.add_argument(
        "--format", choices=(*formats, ROWS), metavar="FORM",
        help=f"of what is written, {', '.join(taken)}; left out: by the name of --out. See below",
    )  # fmt: skip
    parser.add_argument(
        "--suffix", choices=list(dict.fromkeys(own for form in formats.values() for own in form.suffixes)),
        metavar="SUFFIX", help=f"of the files in a folder: {', '.join(suffixes)}; left out: the form's first, .png",
    )  # fmt: skip
    parser.add_argument("--batch_size", type=int, default=8, help="images a forward pass; 8")
    parser.add_argument(
        "--palette", choices=("ade20k", "cityscapes", "voc"), help="colours of classes, by their names"
    )
    parser.add_argument(
        "--polygons", action="store_true", help="of coco: polygons, and not run lengths"
    ) if "coco" in taken else parser.set_defaults(polygons=False)
    parser.add_argument(
        "--tolerance", type=float, default=1.0, metavar="PIXELS",
        help="how far the edges of polygons may move; 1.0; 0: exactly the pixels"
        if "geojson" in taken else argparse.SUPPRESS,
    )  # fmt: skip
    rows = parser.add_argument_group("data sets")
    rows.add_argument("--split", default="train", help="of a data set that has any; train")
    rows.add_argument("--column", help="of a data set that has its images in one of several columns")
    rows.add_argument("--save_every", type=int, default=64, help="images between two pieces of the state; 64")


def _add_task_options(parser: argparse.ArgumentParser, tasks: list[TaskRow]) -> None:
    """What says something to a task; what says nothing to any of these is known, to be refused by name."""
    taken = {option for task in tasks for option in task.options}
    group = parser.add_argument_group("what is asked")

    def add(name: str, help: str, **options: Any) -> None:
        group.add_argument(f"--{name}", help=help if name in taken else argparse.SUPPRESS, **options)

    add(
        "labels",
        "class names: joined by commas; JSON, a list or an object from number to name; or a file, .json or .txt with "
        "a name a line (names with commas need one of these). Else the checkpoint's `id2label`, else the model names "
        "them",
    )
    add("labels_from_answer", "only those of the classes compete that the model sees", action="store_true")
    add(
        "thing_labels",
        "classes whose objects are told apart, in the forms of --labels; the checkpoint's own where left out",
    )
    add("text", "expression of the object to find")
    add("threshold", "pixels with a lower score, in [0, 1], get no class", type=float)
    add("background", "pixels may be none of the classes", action="store_true")
    moves = list(dict.fromkeys(name for task in tasks for name in task.refinements))
    choices = list(dict.fromkeys(name for task in read_tables().tasks.values() for name in task.refinements))
    add("refine", f"move maps to the image's edges: {' or '.join(moves)}", choices=choices, metavar="HOW")
    add(
        "source", "of normals: tokens of their own, or the slopes of the depth map, which need --focal_length",
        choices=read_tables().sources,
    )  # fmt: skip
    group.add_argument("--scale", type=float, help="resize the images by this factor first: a finer grid")
    group.add_argument(
        "--tile", type=int, metavar="PIXELS", help="read images in square tiles of this edge, after --scale"
    )


def add_commands(commands: Any) -> None:
    """Add the parsers of these commands to the subparsers of `densemllm`."""
    tables, shared = read_tables(), _shared_options()
    chosen = {"predict": None, **tables.short_commands}
    for command, name in chosen.items():
        tasks = list(tables.tasks.values()) if name is None else [tables.tasks[name]]
        about = "dense maps of images" if name is None else f"{tables.tasks[name].about}: predict --task {name}"
        numbers = [CLASS_NUMBERS.rstrip()] if any("labels" in task.options for task in tasks) else []
        parser = commands.add_parser(
            command, parents=[shared], formatter_class=_Formatter, help=about,
            description=f"{about}\n{EXAMPLES.get(command, '')}",
            epilog="\n".join([INPUTS.rstrip(), describe_formats(tasks), *numbers, FILES]),
        )  # fmt: skip
        _add_file_options(parser, tasks)
        _add_task_options(parser, tasks)
        if name is not None:
            parser.set_defaults(task=[name])
        else:
            parser.add_argument(
                "--task", choices=list(tables.tasks), default=[tables.default_task], nargs="+", metavar="TASK",
                help="; ".join(f"{own}: {task.about}" for own, task in tables.tasks.items()),
            )  # fmt: skip
    ask = commands.add_parser(
        "ask", parents=[shared], formatter_class=_Formatter, help="a question about an image",
        description=f"a question about an image\n{EXAMPLES['ask']}",
    )  # fmt: skip
    ask.add_argument("images", nargs=1, metavar="IMAGE", help="image file")
    ask.add_argument("question", metavar="QUESTION")
    ask.add_argument("--max_new_tokens", type=int, default=256, help="length of the answer, at most; 256")
    tasks = commands.add_parser(
        "tasks", formatter_class=_Formatter, help="what a checkpoint can do",
        description="what a checkpoint can do: its tasks, classes, depth ranges and prompts; without --model, all "
        f"tasks that there are\n{EXAMPLES['tasks']}",
    )  # fmt: skip
    tasks.add_argument("--model", help="folder or Hub name of a DenseMLLM checkpoint; no weights are read")
    tasks.add_argument("--json", action="store_true", help="as JSON, for programs")
