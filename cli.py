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
r"""DenseMLLM from the command line.

    densemllm segment photo.jpg --model MODEL --out classes.png
    densemllm depth photo.jpg --model MODEL --out depth.png
    densemllm predict photo.jpg --model MODEL --task referring --text "the red chair" --out chair.png
    densemllm predict "photos/*.jpg" --model MODEL --task depth --format raw --out depth/    (in millimetres)
    densemllm predict FOLDER --model MODEL --task segmentation depth --out maps/             (a data set)
    densemllm depth film.mp4 --model MODEL --format side_by_side --out depth.mp4
    densemllm ask photo.jpg "How many chairs are there?" --model MODEL
    densemllm tasks --model MODEL                        what a checkpoint can do
    densemllm evaluate --model MODEL --data DATA --task depth
    densemllm check DATA --sheet check.png               look at a data set before training on it
    densemllm env                                        versions and devices, for a bug report

Each command has a --help of its own, with its options and an example. `python -m densemllm` is the same. A file that
is there already is replaced with --overwrite only; an input is never written over.
"""

import argparse
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from densemllm.addresses import find_model
from densemllm.commands import inputs, parsers
from densemllm.commands.inputs import parse_labels as parse_labels
from densemllm.commands.tables import list_tasks
from densemllm.files import USER_ERRORS, one_line


# Commands that read their arguments themselves: the module of their `main`, and what they are for.
OWN_COMMANDS = {
    "evaluate": ("evaluate_densemllm", "metrics on annotated data"),
    "check": ("training.check_command", "what a data set has, and what is wrong with it"),
    "app": ("app", "a page to try a checkpoint in a browser"),
    "serve": ("serve", "a server that answers as OpenAI's do"),
    "export": ("export", "the dense path as an ONNX file"),
}


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from densemllm import __version__

        print(f"densemllm {__version__}")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="densemllm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers.add_commands(commands)
    for name, (_, about) in OWN_COMMANDS.items():
        commands.add_parser(name, add_help=False, help=f"{about}; see its own --help")
    commands.add_parser("env", help="versions, devices and attention implementations, for a bug report")
    return parser


def predict(args: argparse.Namespace) -> None:
    """Write maps of images, of a video or of a data set. All that needs no model is checked first."""
    found = inputs.find_inputs(args.images)
    inputs.check_server(args)
    inputs.check_numbers(args)
    inputs.check_options(args)
    args.format = inputs.choose_format(args, found)
    inputs.check_extras(args, found)
    if found.data is not None:
        if args.server is not None:
            raise ValueError("--server is for image files; a data set is predicted by processes that have the model")
        if os.path.isfile(args.out):
            raise ValueError(f"--out must be a folder for a data set, got the file {args.out}")
        args.model = find_model(args.model)
        return _run("data_sets", "predict_data", args, found.data)
    if len(args.task) > 1 and args.format not in inputs.MANY_MAPS:
        raise ValueError(
            f"--task must be one for image files, and may be several for a data set or with --format "
            f"{', '.join(inputs.MANY_MAPS)}, got {args.task}"
        )
    if found.video is not None:
        inputs.check_video(args, found.video)
        args.model = find_model(args.model)
        return _run("predict", "predict_video", args, found.video)
    paths = inputs.find_outputs(args, found.images)
    inputs.check_files(args, paths, found.images)
    inputs.check_images(found.images)
    args.model = find_model(args.model)
    return _run("predict", "predict_files", args, found.images, paths)


def ask(args: argparse.Namespace) -> None:
    """Print the answer to a question."""
    inputs.check_server(args)
    inputs.check_numbers(args)
    inputs.check_images(args.images)
    if args.max_new_tokens < 1:
        raise ValueError(f"--max_new_tokens must be at least 1, got {args.max_new_tokens}")
    args.model = find_model(args.model)
    _run("predict", "ask", args)


def show_tasks(args: argparse.Namespace) -> None:
    """Print what tasks there are, or what a checkpoint can do."""
    if args.model is None:
        return list_tasks(args.json)
    args.model = find_model(args.model)
    return _run("checkpoints", "show_tasks", args)


def show_environment(args: argparse.Namespace) -> None:
    """Print what a bug report needs to know of this machine."""
    from densemllm.environment import describe_environment

    for name, value in describe_environment().items():
        print(f"{name}: {value}")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "ask": ask,
    "tasks": show_tasks,
    "env": show_environment,
}


def _run(module: str, name: str, *arguments: Any) -> None:
    """A function of `commands`, whose import brings torch and transformers."""
    from densemllm.commands.models import quiet

    with quiet():
        getattr(import_module(f"densemllm.commands.{module}"), name)(*arguments)


def _run_own(command: str, arguments: list[str]) -> int:
    """A command that reads its arguments itself. One that brings transformers finds our classes known there; another
    sees to that once its arguments are right."""
    module = import_module(f"densemllm.{OWN_COMMANDS[command][0]}")
    if "transformers" in sys.modules:
        from densemllm import register

        register()
    result = module.main(arguments)
    return result if isinstance(result, int) else 0


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0, or 2 after a line on stderr where something can't be used; 1 where `check` finds errors."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = make_parser()
    try:
        if arguments[:1] and arguments[0] in OWN_COMMANDS:
            return _run_own(arguments[0], arguments[1:])
        args = parser.parse_args(arguments)
        COMMANDS.get(args.command, predict)(args)
    except (*USER_ERRORS, ImportError) as error:  # of a package that an extra has
        print(f"{parser.prog} {arguments[0]}: {one_line(error)}", file=sys.stderr)
        return 2
    return 0
