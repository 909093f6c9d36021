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
"""Predictions of a whole data set, in any number of processes, into one folder: `densemllm predict FOLDER`.

What is written, of each image by its name, which is its path within a folder, or its number:

    png      `TASK/NAME.png`, numbers as the command's help says of `--format raw`
    npz      `NAME.npz`, an array a map: `segmentation`, `predicted_depth`, `mask`, `normals`
    coco     `coco.json`: images, categories and annotations, a row a segment, with compressed run lengths, or polygons
    others   `TASK/NAME.SUFFIX`, a form of `DensePrediction.save`: overlay, side_by_side, geojson, yolo, ply...
    parquet  `part-NUMBER.parquet`: `name`, and of each task its PNG, as the `Image` feature of `datasets` has it

`predictions.json`, the last, lists all images, those that could not be read with the reason. `state/` says what is
done: a run that was stopped goes on from there.
"""

import io
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
from accelerate import PartialState
from tqdm.auto import tqdm

from .checks_densemllm import check_count
from .configuration_densemllm import __version__
from .evaluation.state import State, write_atomically
from .exif_densemllm import EXIF, exif_focal_length
from .files import reading
from .formats.folders import open_rows
from .image_encoding_densemllm import load_image
from .modeling_densemllm import DenseMLLMForConditionalGeneration
from .prediction_densemllm import DensePrediction
from .saving_densemllm import FORMATS as FILE_FORMATS
from .saving_densemllm import OBJECT, SEGMENTS, merge_coco
from .tasks_densemllm import TASKS


FORMATS = tuple(dict.fromkeys(("png", "npz", "coco", "parquet", *FILE_FORMATS)))
# Of files that Pillow can read, and not only write.
IMAGE_SUFFIXES = frozenset(
    suffix for suffix, kind in PIL.Image.registered_extensions().items() if kind in PIL.Image.OPEN
)
SUMMARY = "predictions.json"
# Forms that have all images in one file, and its name; the PNGs of the second are in the folder of its name.
PANOPTIC = "coco_panoptic"
COCO = {"coco": "coco.json", PANOPTIC: f"{PANOPTIC}.json"}
# Forms that this module writes; the others are those of `DensePrediction.save`.
OWN_FORMATS = ("png", "npz", "coco", PANOPTIC, "parquet")


@dataclass
class PredictionJob:
    """What is predicted of a data set.

    Attributes:
        data: a folder of images at any depth, or a data set, see [`load_samples`].
        out: folder of the results.
        tasks: names of tasks that `predict_dense` takes together.
        form: one of `FORMATS`.
        split: of a data set that has any.
        column: of its images; the only one that has images where left out.
        batch_size: images a forward pass.
        save_every: images between two pieces of the state.
        options: arguments of `predict_dense`, the same for all images.
        overwrite: start anew in a folder that has results.
        suffix: of the files of an image, where its form has several.
        polygons: segments of `coco` as polygons.
        tolerance, palette: as for `DensePrediction.save`.
    """

    data: str
    out: Path
    tasks: tuple[str, ...]
    form: str = "png"
    split: str = "train"
    column: str | None = None
    batch_size: int = 8
    save_every: int = 64
    options: dict[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    suffix: str | None = None
    polygons: bool = False
    tolerance: float = 1.0
    palette: str | None = None

    def __post_init__(self) -> None:
        if self.form not in FORMATS:
            raise ValueError(f"`form` must be one of {FORMATS}, got {self.form!r}")
        check_count("batch_size", self.batch_size)
        check_count("save_every", self.save_every)
        unknown = sorted(set(self.tasks) - set(TASKS))
        if unknown or not self.tasks:
            raise ValueError(f"`tasks` must be of {sorted(TASKS)}, got {list(self.tasks)}")
        without = [name for name in self.tasks if TASKS[name].map_field not in SEGMENTS]
        if self.form in COCO and (without or len(self.tasks) > 1):
            raise ValueError(
                f"`form` {self.form!r} is for one task that finds segments or a mask, not for {self.tasks}"
            )
        form = FILE_FORMATS.get(self.form)
        for name in self.tasks if form is not None and form.fields else ():
            if TASKS[name].map_field not in form.fields:
                raise ValueError(f"`form` {self.form!r} can't be of the task {name!r}")
        if self.suffix is not None and (form is None or self.suffix not in form.suffixes):
            raise ValueError(f"`suffix` must be one that the form {self.form!r} has, got {self.suffix!r}")
        if Path(self.data).is_dir() and Path(self.data).resolve() in (self.out.resolve(), *self.out.resolve().parents):
            raise ValueError(f"`out` must not be in the folder of `data`, got {self.out}")


class Images:
    """The images of a folder or a data set, opened one at a time, each with a name.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, data: str, split: str, column: str | None):
        folder = Path(data)
        files = sorted(path for path in folder.rglob("*") if _is_image(folder, path)) if folder.is_dir() else []
        self.rows: Any = None
        if files and not (folder / "state.json").is_file():
            self.names = [path.relative_to(folder).as_posix() for path in files]
            self.files = files
        else:
            with reading(f"data {data}"):
                rows = open_rows(data, split)
            self.column = column or _image_column(rows, data)
            self.rows = rows.select_columns([self.column])
            self.names = [f"{number:08d}" for number in range(len(rows))]
        if not self.names:
            raise ValueError(f"data {data} has no images")
        stems: dict[str, str] = {}
        for name in self.names:
            stem = name_of(name)
            if stem in stems:
                raise ValueError(f"data {data}: {stems[stem]} and {name} would be written to the same file, {stem}")
            stems[stem] = name

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> Any:
        """An image in a form that `predict_dense` takes."""
        if self.rows is None:
            return str(self.files[number])
        stored = self.rows[number][self.column]
        if isinstance(stored, dict):  # as `datasets` stores an image
            return stored["path"] if stored.get("bytes") is None else stored["bytes"]
        return stored


def name_of(name: str) -> str:
    """The name of an image's results: without the suffix of its file."""
    return Path(name).with_suffix("").as_posix() if Path(name).suffix.lower() in IMAGE_SUFFIXES else name


def _is_image(folder: Path, path: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden and path.is_file()


def _image_column(rows: Any, data: str) -> str:
    names = list(rows.column_names)
    found = [name for name, feature in (rows.features or {}).items() if isinstance(feature, datasets.Image)]
    if "image" in names or len(found) == 1:
        return "image" if "image" in names else found[0]
    raise ValueError(f"`column` is needed: which of the columns of {data}, {names}, has the images")


def predict_dataset(model: DenseMLLMForConditionalGeneration, job: PredictionJob) -> dict[str, Any]:
    """Predict all images that aren't predicted yet, and write what is missing of the results.

    Every process of a launch calls it, with a model of its own; they share the images.

    Args:
        model: with its processor.
        job: what is predicted.

    Returns:
        `images`, `skipped` and `seconds` of this run, and `done`, all images that are predicted now, in every process.

    Raises:
        ValueError: an argument that can't be used, a data set without images, or results of something else.
    """
    process = PartialState()
    images = Images(job.data, job.split, job.column)
    model.predict_dense([], job.tasks, **job.options)  # what can't be asked is said before anything is written
    fingerprint = {
        "data": job.data, "split": job.split, "column": job.column, "images": len(images), "tasks": list(job.tasks),
        "form": job.form, "options": _plain(job.options), "save_every": job.save_every, "model": model.name_or_path,
        "densemllm": __version__, "suffix": job.suffix, "polygons": job.polygons, "tolerance": job.tolerance,
        "palette": job.palette,
    }  # fmt: skip
    with State(job.out / "state", job.overwrite, outputs=(SUMMARY, *COCO.values())) as state:
        if process.is_main_process:
            _check_out(job, state)
            state.open(fingerprint)
        process.wait_for_everyone()
        count = math.ceil(len(images) / job.save_every)
        todo = [number for number in range(count) if not state.has(number)]
        process.wait_for_everyone()  # all have seen the same before one of them goes on
        started = time.monotonic()
        mine = todo[process.process_index :: process.num_processes]
        _predict_pieces(model, job, images, state, mine)
        process.wait_for_everyone()
        seconds = time.monotonic() - started
        done = [row for piece in state.pieces() for row in piece["rows"]]
        fresh = [row for row in done if row["number"] // job.save_every in set(todo)]
        if process.is_main_process:
            _write_summary(job, done)
        process.wait_for_everyone()
    skipped = sum("error" in row for row in fresh)
    return {"images": len(fresh), "skipped": skipped, "seconds": seconds, "done": len(done)}


def _check_out(job: PredictionJob, state: State) -> None:
    """Refuse to begin in a folder that has something else."""
    there = sorted(path.name for path in job.out.iterdir()) if job.out.is_dir() else []
    if there and not (state.folder / "run.json").is_file() and not job.overwrite:
        raise ValueError(
            f"`out` {job.out} has {there[0]} already, of no run that was stopped; give another folder, or --overwrite"
        )


def _predict_pieces(
    model: DenseMLLMForConditionalGeneration, job: PredictionJob, images: Images, state: State, pieces: list[int]
) -> None:
    """Predict and write the images of these pieces, one piece after another."""
    numbers = [
        number
        for piece in pieces
        for number in range(piece * job.save_every, min((piece + 1) * job.save_every, len(images)))
    ]
    is_main = PartialState().is_main_process
    bar = tqdm(total=len(numbers), desc="predicting", unit=" images", disable=not is_main)
    rows: list[dict] = []
    kept: list[dict] = []
    started = time.monotonic()
    for number, (prediction, error) in zip(numbers, _predictions(model, job, images, numbers), strict=True):
        row = {"number": number, "name": images.names[number]}
        if prediction is None:
            rows.append({**row, "error": error})
        else:
            if job.form in OWN_FORMATS:
                row, record = _write_image(job, row, prediction)
            else:
                record = _save_image(job, images, row, prediction, model)
            rows.append(row)
            kept += [] if record is None else [record]
        bar.update()
        piece = number // job.save_every
        if number + 1 == len(images) or (number + 1) // job.save_every > piece:
            if job.form == "parquet":
                _write_parquet(job, piece, kept)
            state.save({"batches": [piece], "rows": rows, "seconds": time.monotonic() - started})
            rows, kept, started = [], [], time.monotonic()
    bar.close()


def _predictions(
    model: DenseMLLMForConditionalGeneration, job: PredictionJob, images: Images, numbers: list[int]
) -> Iterator[tuple[DensePrediction | None, str | None]]:
    """The prediction of each image, or why it can't be read."""
    image_processor = model.get_processor().image_processor
    errors: dict[int, str] = {}

    def opened() -> Iterator[Any]:
        for number in numbers:
            try:
                image = images[number]
                if job.options.get("focal_length") != EXIF:  # which is read from the file itself
                    image = load_image(image, image_processor, images.names[number])
                yield image
            except (OSError, TypeError, ValueError) as error:
                errors[number] = str(error)
                yield b""  # which no image is

    found = model.predict_dense(opened(), job.tasks, on_error="skip", batch_size=job.batch_size, **job.options)
    for number, prediction in zip(numbers, found, strict=True):
        yield prediction, errors.get(number, "it can't be read") if prediction is None else None


# ---- what is written ----


def _write_image(job: PredictionJob, row: dict, prediction: DensePrediction) -> tuple[dict, dict | None]:
    """Write what is written of one image by itself. Returns its row, and what the piece's file needs."""
    stem, tasks = name_of(row["name"]), [TASKS[name] for name in job.tasks]
    if job.form == "png":
        for task in tasks:
            write_atomically(job.out / task.name / f"{stem}.png", _png(task.to_numbers(prediction)))
    elif job.form == "npz":
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{task.map_field: getattr(prediction, task.map_field).numpy() for task in tasks})
        write_atomically(job.out / f"{stem}.npz", buffer.getvalue())
    elif job.form == "parquet":
        maps = {task.name: {"bytes": _png(task.to_numbers(prediction)), "path": None} for task in tasks}
        return row, {"name": row["name"], **maps}
    else:
        content, png = _coco_of(job, row, prediction)
        if png is not None:
            buffer = io.BytesIO()
            png.save(buffer, "PNG")
            write_atomically(job.out / PANOPTIC / content["annotations"][0]["file_name"], buffer.getvalue())
        # Of the categories those that are there: a list of all of them an image is much.
        used = {row["category_id"] for row in annotation_rows(content)}
        content["categories"] = [category for category in content["categories"] if category["id"] in used]
        return {**row, "coco": content}, None
    return row, None


def _coco_of(job: PredictionJob, row: dict, prediction: DensePrediction) -> tuple[dict, PIL.Image.Image | None]:
    """What COCO's file says of one image, and the PNG that belongs to it, if there is one."""
    if job.form == PANOPTIC:
        content, png = prediction.to_coco_panoptic(row["name"], row["number"])
        content["annotations"][0]["file_name"] = f"{name_of(row['name'])}.png"
        return content, png
    label = job.options.get("text") or OBJECT
    return prediction.to_coco(row["name"], row["number"], job.polygons, job.tolerance, label), None


def annotation_rows(content: dict) -> list[dict]:
    """The rows of segments of COCO's file, of which a panoptic one has a list for each image."""
    return [one for row in content["annotations"] for one in row.get("segments_info", [row])]


def _save_image(
    job: PredictionJob, images: Images, row: dict, prediction: DensePrediction,
    model: DenseMLLMForConditionalGeneration,
) -> None:  # fmt: skip
    """Write one image's maps in a form of `DensePrediction.save`."""
    form, stored = FILE_FORMATS[job.form], images[row["number"]]
    needs_scene = form.needs_image or job.form == "ply"
    scene = load_image(stored, model.get_processor().image_processor, row["name"]) if needs_scene else None
    focal_length = job.options.get("focal_length")
    focal_length = exif_focal_length(stored) if focal_length == EXIF else focal_length
    for name in job.tasks:
        prediction.save(
            job.out / name / f"{name_of(row['name'])}{job.suffix or form.suffixes[0]}", job.form, True, scene,
            TASKS[name].map_field, focal_length, job.palette, job.tolerance, job.options.get("text") or OBJECT,
        )  # fmt: skip


def _png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def _write_parquet(job: PredictionJob, piece: int, records: list[dict]) -> None:
    features = datasets.Features({"name": datasets.Value("string"), **{name: datasets.Image() for name in job.tasks}})
    columns = {name: [record[name] for record in records] for name in features}
    buffer = io.BytesIO()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(buffer)
    write_atomically(job.out / f"part-{piece:08d}.parquet", buffer.getvalue())


def _write_summary(job: PredictionJob, rows: list[dict]) -> None:
    rows = sorted(rows, key=lambda row: row["number"])
    if job.form in COCO:
        content = merge_coco([row["coco"] for row in rows if "coco" in row])
        write_atomically(job.out / COCO[job.form], json.dumps(content).encode())
    listed = [{key: row[key] for key in ("name", "error") if key in row} for row in rows]
    job_options = {
        **{key: value for key, value in asdict(job).items() if key != "out"},
        "options": _plain(job.options),
    }
    summary = {"densemllm": __version__, "job": job_options, "images": listed}
    write_atomically(job.out / SUMMARY, json.dumps(summary, indent=2).encode())


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(options, default=str))


__all__ = ["FORMATS", "PredictionJob", "predict_dataset"]
