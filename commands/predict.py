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
"""`densemllm predict`, `segment`, `depth` and `ask`, once their arguments are checked."""

import argparse
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
from tqdm.auto import tqdm

from ..client import DenseClient
from ..exif_densemllm import EXIF, exif_focal_length
from ..modeling_densemllm import DenseMLLMForConditionalGeneration
from ..prediction_densemllm import DensePrediction
from ..saving_densemllm import FORMATS, OBJECT, merge_coco
from ..tasks_densemllm import TASKS
from ..whole_files_densemllm import whole_file
from .inputs import ONE_FILE, VIDEO_SUFFIXES, panoptic_png, parse_labels, yolo_names
from .models import load_model
from .parsers import CAMERA_OPTIONS
from .videos import FilmWriter, draw_frame, read_frames


MAX_NUMBER = 65534  # of a class in 16 bits, where 65535 is none
NUMBERS = ("raw", "png", "parquet")  # forms that have class numbers as a PNG

Model = DenseMLLMForConditionalGeneration | DenseClient


def open_model(args: argparse.Namespace) -> tuple[Model, dict[str, Any]]:
    """The model, and what `predict_dense` is told for all images alike."""
    labels = None if args.labels is None else parse_labels(args.labels)
    things = None if args.thing_labels is None else parse_labels(args.thing_labels, "--thing_labels")
    model = load_model(args)
    tasks = [TASKS[name] for name in args.task]
    if labels is None and any("labels" in task.options for task in tasks):
        labels = model.config.label_names
    is_png = args.format in NUMBERS and Path(args.out).suffix.lower() != ".npy"
    if is_png and isinstance(labels, dict) and max(labels, default=0) > MAX_NUMBER:
        raise ValueError(
            f"--format {args.format} is for class numbers to {MAX_NUMBER}, got {max(labels)}: take .npy or .json"
        )
    taken = {name for task in tasks for name in task.options if name in args}
    names = {"text", "scale", "tile", *CAMERA_OPTIONS, *taken}
    options = {name: getattr(args, name) for name in sorted(names)} | {"labels": labels, "thing_labels": things}
    return model, {name: value for name, value in options.items() if value is not None}


def predict_files(args: argparse.Namespace, names: list[str], paths: list[Path]) -> None:
    """Write a map of each image file, or one file of all of them."""
    model, options = open_model(args)
    image_processor = model.get_processor().image_processor
    scenes: deque[PIL.Image.Image] = deque()

    def opened() -> Iterator[Any]:
        for name in names:
            scenes.append(image_processor.load_picture(name))
            yield name if args.focal_length == EXIF else scenes[-1]  # what is loaded has no EXIF data

    found = _predict(args, model, opened(), options, len(names), len(names) > 1)
    contents, folder = [], os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in names])
    for number, (name, prediction) in enumerate(zip(names, found, strict=True)):
        scene = scenes.popleft()
        if args.format in ONE_FILE:
            in_folder = Path(os.path.abspath(name)).relative_to(folder)
            contents.append(_coco_of(args, prediction, in_folder, number + 1, paths[0]))
            continue
        focal_length = exif_focal_length(name) if args.focal_length == EXIF else args.focal_length
        _save(args, prediction, paths[number], scene, focal_length)
        found_in_it = "; ".join(TASKS[name].describe(prediction) for name in args.task)
        tqdm.write(f"{paths[number]}: {found_in_it}")
        if number == 0 and yolo_names(args) is not None:
            _write_yolo_names(yolo_names(args), prediction, args)
    if args.format in ONE_FILE:
        content = merge_coco(contents)
        with whole_file(paths[0], args.overwrite) as staged:
            staged.write_text(json.dumps(content), encoding="utf-8")
        print(f"{paths[0]}: {len(content['images'])} images, {len(content['annotations'])} annotations")


def predict_video(args: argparse.Namespace, name: str) -> None:
    """Write a video of the maps of one, or the maps of its frames into a folder."""
    frames = read_frames(Path(name))
    model, options = open_model(args)
    out, field = Path(args.out), TASKS[args.task[0]].map_field
    scenes: deque[PIL.Image.Image] = deque()

    def opened() -> Iterator[PIL.Image.Image]:
        for frame in frames.images:
            scenes.append(frame)
            yield frame

    found = _predict(args, model, opened(), options, frames.count, True)
    if out.suffix.lower() not in VIDEO_SUFFIXES:
        suffix, count = args.suffix or FORMATS[args.format].suffixes[0], 0
        for count, prediction in enumerate(found, 1):
            path = out / f"{Path(name).stem}-{count:06d}{suffix}"
            _save(args, prediction, path, scenes.popleft(), args.focal_length)
        print(f"{out}: maps of {count} frames")
        return
    limits = None
    with whole_file(out, args.overwrite) as staged, FilmWriter(staged, frames.rate) as film:
        for prediction in found:
            limits = limits or TASKS[args.task[0]].limits(prediction)
            film.add(draw_frame(prediction, scenes.popleft(), args.format, field, args.palette, limits))
    print(f"{out}: {film.count} frames, {float(frames.rate):.4g} a second")


def ask(args: argparse.Namespace) -> None:
    """Print the answer to a question."""
    camera = {"focal_length": args.focal_length, "depth_range": args.depth_range}
    model = load_model(args)
    print(model.query(args.images[0], args.question, max_new_tokens=args.max_new_tokens, **camera))


def _predict(
    args: argparse.Namespace,
    model: Model,
    images: Iterator[Any],
    options: dict[str, Any],
    count: int | None,
    shows_bar: bool,
) -> Iterable[DensePrediction]:
    """The prediction of each image, with a bar that counts them."""
    found = model.predict_dense(images, tuple(args.task), batch_size=args.batch_size, **options)
    return tqdm(found, total=count, desc=" ".join(args.task), unit=" images", disable=not shows_bar)


def _save(
    args: argparse.Namespace, prediction: DensePrediction, path: Path, scene: PIL.Image.Image, focal_length: Any
) -> None:
    prediction.save(
        path, args.format, args.overwrite, scene, None if len(args.task) > 1 else TASKS[args.task[0]].map_field,
        focal_length, args.palette, args.tolerance, args.text or OBJECT,
    )  # fmt: skip


def _coco_of(args: argparse.Namespace, prediction: DensePrediction, image: Path, number: int, path: Path) -> dict:
    """What COCO's file says of one image; its PNG, where it has one, is written at once."""
    if args.format == "coco":
        return prediction.to_coco(image.as_posix(), number, args.polygons, args.tolerance, args.text or OBJECT)
    content, png = prediction.to_coco_panoptic(image.as_posix(), number)
    content["annotations"][0]["file_name"] = panoptic_png(path, image).name
    with whole_file(panoptic_png(path, image), args.overwrite) as staged:
        png.save(staged)
    return content


def _write_yolo_names(path: Path, prediction: DensePrediction, args: argparse.Namespace) -> None:
    """The names of YOLO's classes, a line each, beside the files of the images."""
    names = list((prediction.labels or {0: args.text or OBJECT}).values())
    with whole_file(path, args.overwrite) as staged:
        staged.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
