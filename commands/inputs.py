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
"""What the words of a command line stand for: images, a video or a data set; and what is written for them."""

import argparse
import glob
import json
import math
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..addresses import check_url
from ..files import check_outputs
from .parsers import CAMERA_OPTIONS, EXIF, ROWS
from .tables import TaskRow, read_tables


VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
VIDEO_FORMS = ("picture", "overlay", "side_by_side")
ONE_FILE = ("coco", "coco_panoptic")  # forms that have all images in one file
MANY_MAPS = ("npz", "side_by_side", "ply")  # forms that have the maps of several tasks
FILES_OF_NAMES = (".json", ".txt")


@dataclass
class Inputs:
    """What is read.

    Attributes:
        images: names of files; those of a data set are not looked for yet.
        video: a file of one.
        data: a data set: a folder, a file of rows, a name on the Hub.
    """

    images: list[str]
    video: str | None = None
    data: str | None = None


def find_inputs(words: list[str]) -> Inputs:
    """The files that the words of a command line mean.

    Raises:
        ValueError: a pattern that no file matches, or a video or a data set among images.
    """
    names: list[str] = []
    for word in words:
        if glob.has_magic(word) and not os.path.lexists(word):
            found = sorted(name for name in glob.glob(word, recursive=True) if os.path.isfile(name))
            if not found:
                raise ValueError(f"IMAGE: no file matches {word}")
            names += found
        else:
            names.append(word)
    videos = [name for name in names if Path(name).suffix.lower() in VIDEO_SUFFIXES]
    sets = [name for name in names if os.path.isdir(name) or Path(name).suffix.lower() in read_tables().data_suffixes]
    if len(names) > 1 and (videos or sets):
        kind = "a video" if videos else "a data set"
        raise ValueError(f"IMAGE must be image files, or {kind} alone, got {(videos or sets)[0]} among {len(names)}")
    if videos:
        if not os.path.isfile(names[0]):
            raise ValueError(f"IMAGE must be a file, got {names[0]}")
        return Inputs([], video=names[0])
    if sets or (len(names) == 1 and not os.path.isfile(names[0]) and not _is_image_name(names[0])):
        return Inputs([], data=names[0])
    return Inputs(names)


def image_suffixes() -> frozenset[str]:
    """Of files that Pillow can read, and not only write."""
    import PIL.Image

    return frozenset(suffix for suffix, kind in PIL.Image.registered_extensions().items() if kind in PIL.Image.OPEN)


def _is_image_name(name: str) -> bool:
    return Path(name).suffix.lower() in image_suffixes()


def check_images(names: list[str]) -> None:
    """Raise a `ValueError` for the first that is not an image, without decoding any."""
    import PIL.Image

    for name in names:
        if not os.path.isfile(name):
            raise ValueError(f"IMAGE must be a file, got {name}")
        try:
            PIL.Image.open(name).close()
        except (OSError, ValueError, TypeError, SyntaxError, PIL.Image.DecompressionBombError) as error:
            raise ValueError(f"IMAGE {name} is not an image that Pillow can read: {error}") from error


def check_video(args: argparse.Namespace, name: str) -> None:
    """Raise a `ValueError` for what can't be done with a video."""
    if args.focal_length == EXIF:
        raise ValueError(f"--focal_length must be in pixels for a video, got {EXIF}")
    out = Path(args.out)
    if args.format in ONE_FILE:
        raise ValueError(f"--format {args.format} is for images, not for a video: take json, or geojson")
    if out.suffix.lower() in VIDEO_SUFFIXES:
        check_files(args, [out], [name])
    elif out.suffix or out.is_file():
        raise ValueError(f"--out must be a video ({', '.join(VIDEO_SUFFIXES)}) or a folder, got {out}")
    elif out.is_dir() and any(out.glob(f"{glob.escape(Path(name).stem)}-*")) and not args.overwrite:
        raise ValueError(f"--out {out} has frames of {Path(name).name} already; give another folder, or --overwrite")


# ---- options ----


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
    if suffix in FILES_OF_NAMES:
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
    for name, unit in (("tile", " pixel"), ("batch_size", ""), ("save_every", "")):
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1{unit}, got {value}")
    threshold, tolerance = getattr(args, "threshold", None), getattr(args, "tolerance", 0)
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"--threshold must be in [0, 1], got {threshold}")
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"--tolerance must be a number of pixels of at least 0, got {tolerance}")


def check_options(args: argparse.Namespace) -> None:
    """Raise a `ValueError` for an option that is nothing to the tasks, or that lacks."""
    tables, named = read_tables(), " ".join(args.task)
    tasks = [tables.tasks[name] for name in args.task]
    taken = {name for task in tasks for name in task.options}
    others = {name for other in tables.tasks.values() for name in other.options if name in args} - set(CAMERA_OPTIONS)
    for name in sorted(others):
        if getattr(args, name) not in (None, False) and name not in taken:
            raise ValueError(f"--{name} is for --task {' and '.join(tables.tasks_with(name))}, not for {named}")
    _check_refine(args.refine, tasks)
    if args.depth_range is not None and "depth_range" not in taken and args.focal_length is None:
        raise ValueError(f"--depth_range says something to --task {named} with --focal_length only")
    for task in tasks:
        needed = [name for name in task.needs if name in args]
        if needed and not any(getattr(args, name) for name in needed):
            raise ValueError(f"--task {task.name} needs --{' or --'.join(needed)}")


def _check_refine(refine: str | None, tasks: list[TaskRow]) -> None:
    """What `check_refine` of the tasks says, from the table of them."""
    if refine is None or any(refine in task.refinements for task in tasks):
        return
    rows = read_tables().tasks.values()
    names = sorted({name for row in rows for name in row.refinements})
    takers = {name: [row.name for row in rows if name in row.refinements] for name in names}
    accepted = ", or ".join(f"{name!r} with the task {' or '.join(map(repr, own))}" for name, own in takers.items())
    raise ValueError(f"`refine` must be None, or {accepted}, got {refine!r}")


# ---- what is written ----


def choose_format(args: argparse.Namespace, inputs: Inputs) -> str:
    """The form of what is written.

    Raises:
        ValueError: one that the map of the task, or the file of the name of `--out`, can't have.
    """
    tables = read_tables()
    suffix = (args.suffix or ("" if os.path.isdir(args.out) else Path(args.out).suffix)).lower()
    form = args.format
    if form is None and inputs.data is not None:
        form = "png"
    elif form is None and (suffix in VIDEO_SUFFIXES or not suffix):
        form = "picture"
    elif form is None:
        form = next((name for name, row in tables.formats.items() if suffix in row.suffixes), None)
        if form is None:
            known = dict.fromkeys(own for row in tables.formats.values() for own in row.suffixes)
            raise ValueError(f"--out must end in one of {', '.join(known)}, got {args.out}")
    if form == ROWS:
        if inputs.data is None:
            raise ValueError(f"--format {ROWS} is for a data set, not for image files")
        return form
    row, tasks = tables.formats[form], [tables.tasks[name] for name in args.task]
    refused = [task for task in tasks if not row.takes(task)]
    if refused and (form not in MANY_MAPS or len(refused) == len(tasks)):
        task = refused[0]
        if args.format is None and row.takes(tables.tasks[tables.default_task]):
            raise ValueError(f"--out {suffix} is for classes and masks; {task.name} is written as .npy or .png")
        takers = [other.name for other in tables.tasks.values() if row.takes(other)]
        raise ValueError(f"--format {form} is for --task {' and '.join(takers)}, not for {task.name}")
    is_film = inputs.video is not None and suffix in VIDEO_SUFFIXES
    if is_film and form not in VIDEO_FORMS:
        raise ValueError(f"--format {form} can't be a video: --out must be a folder, got {args.out}")
    if suffix and not is_film and suffix not in row.suffixes and not (inputs.data and args.suffix is None):
        raise ValueError(f"--format {form} must be written as {' or '.join(row.suffixes)}, got {suffix}")
    if form == "ply" and args.focal_length is None:
        raise ValueError("--format ply needs --focal_length, in pixels or exif")
    return form


def check_extras(args: argparse.Namespace, inputs: Inputs) -> None:
    """Raise a `ValueError` where a package lacks that only an extra has."""
    needed = []
    if args.format in ("geojson", "yolo") or (args.format == "coco" and args.polygons):
        needed.append(("shapely", "polygons", f"--format {args.format}" + " --polygons" * args.polygons))
    if inputs.video is not None:
        needed.append(("av", "video", f"a video, {inputs.video},"))
    for package, extra, what in needed:
        if find_spec(package) is None:
            raise ValueError(f"{what} needs the package {package}: pip install 'densemllm[{extra}]'")


def find_outputs(args: argparse.Namespace, images: list[str]) -> list[Path]:
    """The file to write for each image, or the one file of all of them.

    Raises:
        ValueError: `--out` is one file for several images, or two images would share a file.
    """
    out = Path(args.out)
    suffix = args.suffix or read_tables().formats[args.format].suffixes[0]
    if out.suffix and not out.is_dir():
        if len(images) > 1 and args.format not in ONE_FILE:
            raise ValueError(f"--out must be a folder for several images, got {out}")
        return [out]
    if args.format in ONE_FILE and len(images) > 1:
        return [out / f"{args.format}{suffix}"]
    sources: dict[str, str] = {}
    for name in images:
        stem = Path(name).stem
        if stem in sources:
            raise ValueError(f"IMAGE: several files would be written to {stem}{suffix}, of {sources[stem]} and {name}")
        sources[stem] = name
    return [out / f"{stem}{suffix}" for stem in sources]


def panoptic_png(path: Path, image: Path) -> Path:
    """The PNG of an image that belongs to COCO's panoptic file: in the folder in which panopticapi looks for it."""
    return path.with_suffix("") / f"{image.stem}.png"


def yolo_names(args: argparse.Namespace) -> Path | None:
    """The file of the names of YOLO's classes, in a folder of its labels."""
    is_folder = os.path.isdir(args.out) or not Path(args.out).suffix
    return Path(args.out) / "classes.txt" if args.format == "yolo" and is_folder else None


def check_files(args: argparse.Namespace, outputs: list[Path], inputs: list[str]) -> None:
    """Refuse to write over what is read, or over what is there; see `check_outputs`."""
    files = [name for name in (args.labels, args.thing_labels) if name is not None]
    read = [*inputs, args.model, *(name for name in files if Path(name).suffix.lower() in FILES_OF_NAMES)]
    beside = [path.with_suffix(".labels.json") for path in outputs if args.format == "palette"]
    if args.format == "coco_panoptic":
        beside += [panoptic_png(outputs[0], Path(name)) for name in inputs]
    if yolo_names(args) is not None:
        beside.append(yolo_names(args))
    check_outputs([*outputs, *beside], read, args.overwrite)
