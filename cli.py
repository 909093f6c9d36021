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

    densemllm predict photo.jpg --model MODEL --task depth --out depth.png
    densemllm predict photo.jpg --model MODEL --labels floor,wall,chair --out classes.png
    densemllm predict photo.jpg --model MODEL --task referring --text "the red chair" --out chair.png
    densemllm predict *.jpg --model MODEL --task depth --format raw --out depth/
    densemllm predict FOLDER --model MODEL --task segmentation depth --out maps/      (a data set, see below)
    densemllm segment photo.jpg --model MODEL --out classes.png     (predict --task segmentation)
    densemllm depth photo.jpg --model MODEL --out depth.npy         (predict --task depth)
    densemllm predict photo.jpg --model MODEL --task panoptic --thing_labels chair,table --out objects.png
    densemllm predict photo.jpg --model MODEL --task normals --source depth --focal_length 1200 --out normals.png
    densemllm ask photo.jpg "How many chairs are there?" --model MODEL
    densemllm segment photo.jpg --model MODEL --server URL --out classes.png   (a vLLM server, examples/serving.md)
    densemllm evaluate --model MODEL --data DATA --task depth       (evaluate_densemllm.py)
    densemllm check DATA --sheet check.png                          (look at a data set before training on it)
    densemllm env                                                   (versions and devices, for a bug report)

`python -m densemllm` is the same.

What is written is up to the name of `--out`, and to `--format`; it has the image's own size:

    .png, .jpg           an image in colours with a legend, or a scale in metres (near is bright)
    --format overlay     the colours laid over the image, without a legend
    .png --format raw    depth in millimetres, 16 bit (65535: 65.5 m or more); class numbers, 8 bit (255: none), or
                         16 bit with more than 255 classes (65535: none); an object's mask as 255 on 0; normals as
                         red, green and blue, of which 0 is -1 and 255 is 1
    .npy                 the array: depth in metres float32, class numbers int64 (-1: none), masks bool, normals
                         float32 [height, width, 3] (x to the right, y up, z to the camera)
    .json                classes, objects or the mask as COCO run lengths, with names and scores

IMAGE may also be one folder, file of rows (.parquet, .jsonl...), NAME:PATH or name on the Hub: all of its images are
predicted, in batches, by as many processes as `torchrun` or `accelerate launch` start; a run that was stopped goes on
where it was, and an image that can't be read is listed and left out. --out is a folder then, with

    --format png         TASK/NAME.png, numbers as of `raw`, of one or several tasks
    --format npz         NAME.npz, an array a map
    --format coco        coco.json: images, categories and annotations
    --format parquet     part-*.parquet: names, and the PNG of each task

An input is never written over, and a file that is there already only with --overwrite.

A class number is the name's place in --labels, from 0, or its number in a JSON object of --labels or in the
checkpoint's `id2label`. With --task open_set or panoptic each object has a number of its own. Training and evaluation
read raw PNGs as `segmentation` and, with a depth scale of 0.001, as `depth`.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from tqdm.auto import tqdm

from densemllm import DenseMLLMForConditionalGeneration, DensePrediction, __version__
from densemllm.client import DenseClient, check_url
from densemllm.data_prediction import FORMATS, IMAGE_SUFFIXES, SUMMARY, PredictionJob, predict_dataset
from densemllm.environment import describe_environment
from densemllm.evaluation.run import start_process
from densemllm.exif_densemllm import EXIF
from densemllm.files import OVERWRITE_HELP, USER_ERRORS, check_outputs, one_line, reading, whole_file
from densemllm.formats.folders import FILE_KINDS
from densemllm.image_loading_densemllm import open_image
from densemllm.object_tasks_densemllm import Foreground
from densemllm.task_base_densemllm import REFINEMENTS, DenseTask
from densemllm.tasks_densemllm import DEFAULT_TASK, TASKS, Classes, Depth, Normals, check_refine, tasks_with


SUFFIXES = (".png", ".jpg", ".jpeg", ".npy", ".json")
MAX_NUMBER = 65534  # of a class in 16 bits, where 65535 is none
# Commands that are short for `predict --task`.
SHORT_COMMANDS = {"segment": Classes.name, Depth.name: Depth.name}
# Arguments of `predict_dense` that change how an image is read, whatever the task, where both are given.
CAMERA_OPTIONS = ("depth_range", "focal_length")
IMAGE_FORMS = ("picture", "overlay", "raw")
MASK_FIELDS = (Classes.map_field, Foreground.map_field)  # what run lengths can say


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
    shared.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="to run on; cuda where there is one"
    )
    shared.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
        help="of the weights; auto: as they are stored",
    )  # fmt: skip
    return shared


def _map_options() -> argparse.ArgumentParser:
    """Options of the commands that write maps."""
    dense = argparse.ArgumentParser(add_help=False)
    dense.add_argument("images", nargs="+", metavar="IMAGE", help="image files; or one data set, see below")
    dense.add_argument(
        "--out", required=True, type=Path, help="file to write; a folder for several images, with a file for each"
    )
    dense.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    dense.add_argument("--suffix", default=".png", choices=SUFFIXES, help="of the files in a folder")
    dense.add_argument(
        "--format", choices=(*IMAGE_FORMS, *FORMATS),
        help="of PNG and JPEG files: picture (where left out), overlay or raw; of a data set: png (where left out), "
        "npz, coco or parquet; see below",
    )  # fmt: skip
    dense.add_argument("--split", default="train", help="of a data set that has any")
    dense.add_argument("--column", help="of a data set that has its images in one of several columns")
    dense.add_argument("--batch_size", type=int, default=8, help="images of a data set a forward pass")
    dense.add_argument(
        "--save_every", type=int, default=64, help="images of a data set between two pieces of the state"
    )
    dense.add_argument(
        "--labels",
        help="class names: joined by commas; JSON, a list or an object from number to name; or a file, .json or .txt "
        "with a name a line (names with commas need one of these). Else the checkpoint's `id2label`, else the model "
        "names them",
    )
    dense.add_argument(
        "--labels_from_answer", action="store_true", help="only those of the classes compete that the model sees"
    )
    dense.add_argument(
        "--thing_labels",
        help="classes whose objects are told apart, in the forms of --labels; the checkpoint's own where left out",
    )
    dense.add_argument("--text", help="expression of the object to find")
    dense.add_argument("--threshold", type=float, help="pixels with a lower score, in [0, 1], get no class")
    dense.add_argument("--background", action="store_true", help="pixels may be none of the classes")
    dense.add_argument("--refine", choices=REFINEMENTS, help="move maps to the image's edges; crf: of classes")
    dense.add_argument(
        "--source", choices=Normals.sources,
        help="of normals: tokens of their own, or the slopes of the depth map, which need --focal_length",
    )  # fmt: skip
    dense.add_argument("--scale", type=float, help="resize the images by this factor first: a finer grid")
    dense.add_argument(
        "--tile", type=int, metavar="PIXELS", help="read images in square tiles of this edge, after --scale"
    )
    return dense


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="densemllm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"densemllm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared, dense = _shared_options(), _map_options()
    maps = {
        "parents": [shared, dense], "formatter_class": argparse.RawDescriptionHelpFormatter,
        "epilog": __doc__[__doc__.index("What is written") :],
    }  # fmt: skip
    predict = commands.add_parser("predict", **maps, help="a dense map of each image")
    predict.add_argument(
        "--task", choices=list(TASKS), default=[DEFAULT_TASK], nargs="+",
        help="; ".join(f"{name}: {task.about}" for name, task in TASKS.items()),
    )  # fmt: skip
    for command, name in SHORT_COMMANDS.items():
        commands.add_parser(command, **maps, help=f"predict --task {name}").set_defaults(task=[name])
    ask = commands.add_parser("ask", parents=[shared], help="a question about an image")
    ask.add_argument("images", nargs=1, metavar="IMAGE", help="image file")
    ask.add_argument("question", metavar="QUESTION")
    ask.add_argument("--max_new_tokens", type=int, default=256, help="length of the answer, at most")
    commands.add_parser("env", help="versions, devices and attention implementations, for a bug report")
    commands.add_parser(
        "check", add_help=False, help="what a data set has, and what is wrong with it; see its own --help"
    )
    commands.add_parser("evaluate", add_help=False, help="metrics on annotated data; see its own --help")
    return parser


def write_prediction(
    prediction: DensePrediction,
    task: DenseTask,
    image: PIL.Image.Image,
    path: Path,
    form: str,
    overwrite: bool = False,
) -> None:
    """Write one map in the form that the file's name and `form` ask for; a file is there whole or not at all."""
    suffix = path.suffix.lower()
    with whole_file(path, overwrite) as staged:
        if suffix == ".npy":
            with open(staged, "wb") as file:  # given a name, numpy would add a suffix to `.NPY`
                np.save(file, getattr(prediction, task.map_field).numpy())
        elif suffix == ".json":
            staged.write_text(json.dumps(prediction.to_rle()), encoding="utf-8")
        elif form == "raw":
            PIL.Image.fromarray(task.to_numbers(prediction)).save(staged)
        elif form == "overlay":
            prediction.overlay(image, task.map_field).save(staged)
        else:
            prediction.to_pil(task.map_field, legend=True).save(staged)


def parse_labels(text: str, option: str = "--labels") -> list[str] | dict[int, str]:
    """The class names of an option: a list, or a dict where they have numbers.

    Args:
        text: names joined by commas; JSON, a list of names or an object from number to name; or the name of a file,
            `.json` of that form or `.txt` with a name a line.
        option: how messages name it.

    Raises:
        ValueError: neither.
    """
    source, suffix = option, Path(text).suffix.lower()
    if suffix in (".json", ".txt"):
        source = f"{option} {text}"
        try:
            text = Path(text).read_text(encoding="utf-8-sig")  # some editors put a mark in front
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{source} can't be read: {error}") from error
        if suffix == ".txt":
            return [line for line in text.splitlines() if line.strip()]
    elif not text.lstrip().startswith(("[", "{")):
        return [name for name in text.split(",") if name.strip()]
    try:
        names = json.loads(text)
        names = {int(key): name for key, name in names.items()} if isinstance(names, dict) else names
        kept = names.values() if isinstance(names, dict) else names
        if not isinstance(names, (dict, list)) or not all(isinstance(name, str) for name in kept):
            raise ValueError(f"it has {json.dumps(names)[:80]}")
    except ValueError as error:
        raise ValueError(f"{source} must be a JSON list of names or an object from number to name: {error}") from error
    return names


def check_images(names: list[str]) -> None:
    """Raise a `ValueError` for the first that is not an image, without decoding any."""
    for name in names:
        if not os.path.isfile(name):
            raise ValueError(f"IMAGE must be a file, got {name}")
        open_image(name).close()


def check_server(args: argparse.Namespace) -> None:
    """Raise a `ValueError` for options that no server can follow."""
    if args.server is None and args.chat_server is not None:
        raise ValueError("--chat_server is given without --server, which gives the maps")
    if args.server is not None and args.dtype != "auto":
        raise ValueError(f"--dtype {args.dtype} says nothing to --server: its own --dtype is what it computes in")
    for option in ("server", "chat_server"):
        if getattr(args, option) is not None:
            check_url(f"--{option}", getattr(args, option))


def check_numbers(args: argparse.Namespace) -> None:
    """Raise a `ValueError` for a number that no image has, before a model is loaded."""
    for name in ("scale", "focal_length"):
        value = getattr(args, name, None)
        if value not in (None, EXIF) and not 0 < value < math.inf:
            raise ValueError(f"--{name} must be a finite number greater than 0, got {value}")
    if getattr(args, "tile", None) is not None and args.tile < 1:
        raise ValueError(f"--tile must be at least 1 pixel, got {args.tile}")
    threshold = getattr(args, "threshold", None)
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"--threshold must be in [0, 1], got {threshold}")


def check_options(args: argparse.Namespace) -> None:
    """Raise a `ValueError` for an option that is nothing to the tasks, or that lacks."""
    tasks, named = [TASKS[name] for name in args.task], " ".join(args.task)
    taken = {name for task in tasks for name in task.options}
    others = {name for other in TASKS.values() for name in other.options if name in args} - set(CAMERA_OPTIONS)
    for name in sorted(others):
        if getattr(args, name) not in (None, False) and name not in taken:
            raise ValueError(f"--{name} is for --task {' and '.join(tasks_with(name))}, not for {named}")
    check_refine(getattr(args, "refine", None), tasks)
    if args.depth_range is not None and "depth_range" not in taken and args.focal_length is None:
        raise ValueError(f"--depth_range says something to --task {named} with --focal_length only")
    for task in tasks:
        needed = [name for name in task.needs if name in args]
        if needed and not any(getattr(args, name) for name in needed):
            raise ValueError(f"--task {task.name} needs --{' or --'.join(needed)}")


def find_outputs(args: argparse.Namespace) -> list[Path]:
    """The file to write for each image.

    Raises:
        ValueError: `--out` is one file for several images, or two images would share a file.
    """
    if len(args.images) == 1 and args.out.suffix and not args.out.is_dir():
        return [args.out]
    if args.out.suffix and not args.out.is_dir():
        raise ValueError(f"--out must be a folder for several images, got {args.out}")
    sources: dict[str, str] = {}
    for name in args.images:
        stem = Path(name).stem
        if stem in sources:
            raise ValueError(
                f"IMAGE: several files would be written to {stem}{args.suffix}, of {sources[stem]} and {name}"
            )
        sources[stem] = name
    return [args.out / f"{stem}{args.suffix}" for stem in sources]


def check_form(args: argparse.Namespace, suffix: str) -> None:
    """Raise a `ValueError` for a kind of file that can't hold the map in the form that is asked for."""
    if suffix not in SUFFIXES:
        raise ValueError(f"--out must end in one of {', '.join(SUFFIXES)}, got {args.out}")
    if args.format == "raw" and suffix in (".jpg", ".jpeg"):
        raise ValueError("--format raw needs .png or .npy: JPEG changes numbers")
    if args.format == "overlay" and suffix in (".npy", ".json"):
        raise ValueError(f"--format overlay is for images, not for {suffix}")
    if suffix == ".json" and TASKS[args.task[0]].map_field not in MASK_FIELDS:
        raise ValueError(f"--out .json is for classes and masks; {args.task[0]} is written as .npy or .png")


def check_arguments(args: argparse.Namespace) -> list[Path]:
    """The file of each image; `ValueError`s name what can't be used."""
    check_server(args)
    check_numbers(args)
    check_options(args)
    paths = find_outputs(args)
    check_form(args, paths[0].suffix.lower())
    files = [name for name in (args.labels, args.thing_labels) if name is not None]
    inputs = [*args.images, args.model, *(name for name in files if Path(name).suffix.lower() in (".json", ".txt"))]
    check_outputs(paths, inputs, args.overwrite)
    return paths


def load_model(args: argparse.Namespace) -> "DenseMLLMForConditionalGeneration | DenseClient":
    """The model on its device, or the server that has it.

    Raises:
        ValueError: it can't be loaded, or the device can't be used.
    """
    if args.server is not None:
        with reading(f"--model {args.model}"):
            return DenseClient(
                args.server, args.model, args.chat_server, api_key=os.environ.get("VLLM_API_KEY") or None
            )
    try:
        torch.empty(1, device=args.device).item()  # of a device without memory, too
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {args.device} can't be used here: {error}") from error
    with reading(f"--model {args.model}"):
        model = DenseMLLMForConditionalGeneration.from_pretrained(args.model, dtype=args.dtype)
        model.get_processor()
    return model.eval().to(args.device)


def is_data_set(args: argparse.Namespace) -> bool:
    """Whether IMAGE is a data set, and not image files."""
    if len(args.images) > 1:
        return False
    path = Path(args.images[0])
    is_image = path.suffix.lower() in IMAGE_SUFFIXES
    return path.is_dir() or path.suffix.lower() in FILE_KINDS or not (path.is_file() or is_image)


def predict(args: argparse.Namespace) -> None:
    """Write a map of each image."""
    if is_data_set(args):
        return predict_data(args)
    if len(args.task) > 1:
        raise ValueError(f"--task must be one for image files, and may be several for a data set, got {args.task}")
    args.format = args.format or IMAGE_FORMS[0]
    if args.format not in IMAGE_FORMS:
        raise ValueError(f"--format {args.format} is for a data set; of image files it is {', '.join(IMAGE_FORMS)}")
    task = TASKS[args.task[0]]
    paths = check_arguments(args)
    check_images(args.images)
    model, options = open_model(args)
    for name, path in tqdm(list(zip(args.images, paths, strict=True)), desc=task.name, disable=len(paths) == 1):
        image = model.get_processor().image_processor.load_picture(name)
        # What is loaded has no EXIF data.
        prediction = model.predict_dense(name if args.focal_length == EXIF else image, task=task.name, **options)
        write_prediction(prediction, task, image, path, args.format, args.overwrite)
        tqdm.write(f"{path}: {task.describe(prediction)}")


def open_model(args: argparse.Namespace) -> tuple[DenseMLLMForConditionalGeneration, dict[str, Any]]:
    """The model, and what `predict_dense` is told for all images alike."""
    labels = None if args.labels is None else parse_labels(args.labels)
    things = None if args.thing_labels is None else parse_labels(args.thing_labels, "--thing_labels")
    model = load_model(args)
    tasks = [TASKS[name] for name in args.task]
    if labels is None and any("labels" in task.options for task in tasks):
        labels = model.config.label_names
    is_png = args.format not in ("picture", "overlay", "npz", "coco")
    if is_png and isinstance(labels, dict) and max(labels, default=0) > MAX_NUMBER:
        raise ValueError(
            f"--format {args.format} is for class numbers to {MAX_NUMBER}, got {max(labels)}: take .npy or .json"
        )
    taken = {name for task in tasks for name in task.options if name in args}
    names = {"text", "scale", "tile", *CAMERA_OPTIONS, *taken}
    options = {name: getattr(args, name) for name in sorted(names)} | {"labels": labels, "thing_labels": things}
    return model, {name: value for name, value in options.items() if value is not None}


def predict_data(args: argparse.Namespace) -> None:
    """Write the maps of all images of a data set."""
    if args.server is not None:
        raise ValueError("--server is for image files; a data set is predicted by processes that have the model")
    check_numbers(args)
    check_options(args)
    args.format = args.format or FORMATS[0]
    if args.format in IMAGE_FORMS:
        raise ValueError(f"--format {args.format} is for image files; of a data set it is {', '.join(FORMATS)}")
    if args.out.is_file():
        raise ValueError(f"--out must be a folder for a data set, got the file {args.out}")
    job = PredictionJob(
        args.images[0], args.out, tuple(args.task), args.format, args.split, args.column, args.batch_size,
        args.save_every, overwrite=args.overwrite,
    )  # fmt: skip
    process, device = start_process(args)
    args.device = str(device)
    model, job.options = open_model(args)
    found = predict_dataset(model, job)
    if process.is_main_process and not found["images"]:
        print(f"{args.out}: all {found['done']} images were done already")
    elif process.is_main_process:
        rate = found["images"] / max(found["seconds"], 1e-9)
        print(
            f"{args.out}: {found['images']} images in {found['seconds']:.1f} s, {rate:.2f} images/s"
            + (f"; {found['skipped']} could not be read, see {SUMMARY}" if found["skipped"] else "")
        )
    process.wait_for_everyone()


def ask(args: argparse.Namespace) -> None:
    """Print the answer to a question."""
    check_server(args)
    check_numbers(args)
    check_images(args.images)
    if args.max_new_tokens < 1:
        raise ValueError(f"--max_new_tokens must be at least 1, got {args.max_new_tokens}")
    camera = {"focal_length": args.focal_length, "depth_range": args.depth_range}
    print(load_model(args).query(args.images[0], args.question, max_new_tokens=args.max_new_tokens, **camera))


def show_environment(args: argparse.Namespace) -> None:
    """Print what a bug report needs to know of this machine."""
    for name, value in describe_environment().items():
        print(f"{name}: {value}")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0, or 2 after a line on stderr where something can't be used; 1 where `check` finds errors."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = make_parser()
    try:
        if arguments[:1] == ["check"]:
            from densemllm.training.check_command import main as check

            return check(arguments[1:])
        if arguments[:1] == ["evaluate"]:
            from densemllm.evaluate_densemllm import main as evaluate

            evaluate(arguments[1:])
            return 0
        args = parser.parse_args(arguments)
        {"ask": ask, "env": show_environment}.get(args.command, predict)(args)
    except USER_ERRORS as error:
        print(f"{parser.prog} {arguments[0]}: {one_line(error)}", file=sys.stderr)
        return 2
    return 0
