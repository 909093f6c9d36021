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
"""What the page's buttons call: an upload to an image that the model has read, and from there to maps and answers."""

import math
import os
import shutil
import tempfile
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from densemllm import DenseMLLMForConditionalGeneration, DensePrediction, EncodedImage
from densemllm.app import limits, readings
from densemllm.client import DenseClient
from densemllm.exif_densemllm import exif_focal_length
from densemllm.files import one_line
from densemllm.task_base_densemllm import DenseRequest, DenseTask, PixelWords
from densemllm.tasks_densemllm import DEFAULT_TASK, TASKS, Depth

from .limits import PageError, TimeLimit


VIEW = 60  # degrees along the longer edge, where the focal length is not known
# What there is to download, of a map that can be written so: to look at, numbers, masks.
FORMS = (("side_by_side", ".png"), ("raw", "_numbers.png"), ("npz", ".npz"), ("coco", ".json"))
HINT = "Point at the image, or tap it, to read what is there."
# How the page calls the arguments of the model's methods, in labels and messages.
FIELDS = {
    "text": "find", "labels": "classes", "thing_labels": "objects told apart", "focal_length": "focal length",
    "refine": "edges", "messages": "the conversation", "images": "the image", "image": "the image",
}  # fmt: skip
Progress = Callable[..., Any]  # of a share in [0, 1], and `desc`


@dataclass
class Seen:
    """An upload as the model has read it.

    Attributes:
        encoded: what is predicted and asked from.
        focal_length: in pixels of its image, or `None`.
        beside: what tasks say of each place without being told more than names of classes: by task the names, and
            what was said.
    """

    encoded: EncodedImage
    focal_length: float | None
    beside: dict[str, tuple[Any, PixelWords]] = field(default_factory=dict)


@dataclass
class Shown:
    """A map as the page shows it.

    Attributes:
        image, drawn: the image, and the map laid over it, of the same size.
        legend: HTML.
        reading: HTML, see [`readings.reading`].
        about: what the map has, in a line.
        files: to download.
    """

    image: PIL.Image.Image
    drawn: PIL.Image.Image
    legend: str
    reading: str
    about: str
    files: list[str]


@dataclass
class Cloud:
    """Points in space.

    Attributes:
        shown: PLY file for the viewer, thinned out.
        file: PLY file with all points.
        about: how many they are, and what was assumed.
    """

    shown: str
    file: str
    about: str


class Demo:
    """The model with what the page needs of it. No method changes what another visitor gets.

    Args:
        model: of the page; its processor reads no more than `max_pixels` of an image from then on.
        max_pixels: of an image; a larger one is made smaller first.
        seconds: that a request may take.
    """

    def __init__(
        self,
        model: DenseMLLMForConditionalGeneration | DenseClient,
        max_pixels: int = limits.MAX_PIXELS,
        seconds: float = limits.SECONDS,
    ):
        self.model = model
        self.max_pixels = max_pixels
        self.limit = TimeLimit(model, seconds)
        processor = model.get_processor()
        images = processor.image_processor
        patches = max(max_pixels // images.patch_size**2, images.merge_size**2)
        images.max_num_patches = min(images.max_num_patches, patches)
        self.tasks: dict[str, DenseTask] = {name: task for name, task in TASKS.items() if task.is_known(processor)}
        self.first_task = DEFAULT_TASK if DEFAULT_TASK in self.tasks else next(iter(self.tasks))
        self.can_measure = Depth.name in self.tasks
        self.names = model.config.label_names
        self.labels = "\n".join(one_line(name) for name in (self.names or {}).values())
        self.things = "\n".join(map(one_line, model.config.thing_labels or ()))
        self._seen: OrderedDict[tuple[str, str], Seen] = OrderedDict()
        self._folder = tempfile.TemporaryDirectory(prefix="densemllm-app-")
        self._folders: deque[str] = deque()

    # ---- what comes from the page ----

    def read(self, path: str | None) -> tuple[PIL.Image.Image, tuple[int, int]]:
        """The uploaded image, upright and as large as the model reads it, and its own size (width, height)."""
        if path is None:
            raise PageError("There is no image yet: upload one, or choose one of the examples.")
        try:
            with PIL.Image.open(path, formats=limits.FORMATS) as opened:
                if math.prod(opened.size) > limits.MAX_UPLOAD_PIXELS:
                    raise PIL.Image.DecompressionBombError(f"{opened.width} x {opened.height}")
                image = self.model.get_processor().image_processor.load_picture(opened)
        except PIL.Image.DecompressionBombError as error:
            most = limits.MAX_UPLOAD_PIXELS / 1e6
            raise PageError(
                f"The image is too large: at most {most:.0f} million pixels are taken ({error})."
            ) from error
        except Exception as error:  # decoders raise errors of many classes
            raise PageError(
                "The file can't be read as an image: it may be empty, cut off or of another kind. Taken are "
                f"{', '.join(limits.FORMATS)}."
            ) from error
        size, area = image.size, math.prod(image.size)
        scale = min(1.0, math.sqrt(self.max_pixels / area), min(limits.MAX_EDGE, self.max_pixels) / max(size))
        if scale < 1:
            width, height = (max(1, int(edge * scale)) for edge in size)
            image = image.resize((width, height), PIL.Image.Resampling.LANCZOS)
        return image, size

    def names_of(self, labels: str) -> list[str] | dict[int, str] | None:
        """The class names of the text field, one a line; the checkpoint's own with their numbers."""
        lines = _lines(FIELDS["labels"], labels, len(self.labels), len(self.names or ()))
        return self.names if lines == self.labels.splitlines() else lines or None

    @staticmethod
    def camera(path: str | None) -> str:
        """The focal length that the camera wrote into an upload, for its field; empty where it wrote none."""
        try:
            length = None if path is None else exif_focal_length(path)
        except (ValueError, TypeError):  # which is said when it is looked at
            length = None
        return "" if length is None else f"{length:.0f}"

    # ---- what the page asks ----

    def predict(
        self, path: str | None, task_name: str, text: str = "", labels: str = "", things: str = "",
        focal_length: str | None = "", refine: str | None = None, progress: Progress = lambda *_, **__: None,
    ) -> Shown:  # fmt: skip
        """A task's map of an upload.

        Args:
            path: of the upload.
            task_name: one of `tasks`.
            text: words for an object.
            labels, things: names, one a line.
            focal_length: in pixels of the upload.
            refine: as for `predict_dense`; none where empty.
            progress: told how far it is.

        Raises:
            PageError: what is wrong.
        """
        task = self.tasks[task_name]
        names, text = self.names_of(labels or ""), (text or "").strip()
        if len(text) > limits.MAX_CHARACTERS:
            raise PageError(f"What to find has {len(text)} characters; at most {limits.MAX_CHARACTERS} are taken.")
        given = {
            "text": text or None, "labels": names, "refine": refine or None,
            "thing_labels": _lines(FIELDS["thing_labels"], things or "", len(self.things)) or None,
        }  # fmt: skip
        lacking = [name for name in task.needs if name in given]
        if lacking and not any(given[name] for name in lacking):
            raise PageError(f"“{' or '.join(FIELDS[name] for name in lacking)}” is empty: {words_of(task)} needs it.")
        with self._request():
            seen = self._read(path, focal_length, progress)
            progress(0.6, desc=words_of(task))
            prediction = self._predict(seen, task, given)
            words, image = task.to_words(prediction), seen.encoded.image
            places = {words_of(task): readings.thin_out(words), **self._read_beside(seen, task, names)}
            values = getattr(prediction, task.map_field).numpy()
            is_scale = words.values is not None
            return Shown(
                image,
                prediction.overlay(image, task.map_field, alpha=1.0 if is_scale else 0.7),
                readings.legend(words, np.asarray(task.draw(prediction)), task.is_drawn(values)),
                readings.reading(HINT, places),
                task.describe(prediction) if is_scale else "",  # which other legends say
                save_files(prediction, image, os.path.join(self._new_folder(), f"{Path(path).stem}_{task.name}")),
            )

    def answer(
        self, path: str | None, messages: Sequence[Mapping[str, str]], focal_length: str | None = "",
        progress: Progress = lambda *_, **__: None,
    ) -> str:  # fmt: skip
        """The answer to the last of `messages`, the turns of a chat about an upload; errors as for [`predict`]."""
        characters = sum(len(message["content"]) for message in messages)
        if characters > limits.MAX_CHARACTERS:
            raise PageError(
                f"The conversation has {characters} characters; at most {limits.MAX_CHARACTERS} are taken."
            )
        if len(messages) > 2 * limits.MAX_TURNS:
            raise PageError(f"The conversation has {limits.MAX_TURNS} questions, and can't go on: clear it.")
        with self._request():
            seen = self._read(path, focal_length, progress)
            progress(0.7, desc="the answer")
            return self.model.chat(seen.encoded, list(messages), max_new_tokens=limits.MAX_NEW_TOKENS)

    def measure(
        self, path: str | None, focal_length: str | None = "", progress: Progress = lambda *_, **__: None
    ) -> Cloud:
        """The depth of an upload as points in space; errors as for [`predict`]."""
        with self._request():
            seen = self._read(path, focal_length, progress)
            progress(0.7, desc="the points")
            image, depth = seen.encoded.image, self.tasks[Depth.name]
            focal = seen.focal_length or max(image.size) / 2 / math.tan(math.radians(VIEW / 2))
            cloud = self._predict(seen, depth, {}).to_pointcloud(focal, image)
            start = os.path.join(self._new_folder(), Path(path).stem)
            cloud.save(f"{start}.ply")
            # As many points as a screen has room for. Viewers hold y for up, and look along -z.
            scale = math.sqrt(limits.MAX_POINTS / math.prod(image.size))
            size = tuple(max(1, int(edge * scale)) for edge in (image.height, image.width))
            shown = self._predict(seen, depth, {"target_sizes": size}).to_pointcloud(focal * scale, image)
            shown.points[:, 1:] *= -1
            shown.save(f"{start}_view.ply")
        about = f"{len(cloud)} points."
        if seen.focal_length is None:
            about += f" The focal length is not known: a view of {VIEW} degrees is assumed, so sizes may be wrong."
        return Cloud(f"{start}_view.ply", f"{start}.ply", about)

    # ---- steps of these ----

    @contextmanager
    def _request(self) -> Iterator[None]:
        """What goes wrong in the block is said in words, and it ends in time."""
        try:
            with self.limit.request():
                yield
        except PageError:
            raise
        except TimeoutError as error:
            raise PageError(f"It took more than {self.limit.seconds:.0f} seconds: try a smaller image.") from error
        except (MemoryError, torch.OutOfMemoryError) as error:
            self._seen.clear()
            raise PageError("There is not enough memory for it: try a smaller image.") from error
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            raise PageError(in_words(one_line(error))) from error

    def _read(self, path: str | None, focal_length: str | None, progress: Progress) -> Seen:
        """An upload as the model reads it; the last few are kept. One thread at a time comes here."""
        given = (focal_length or "").strip()
        key = (str(path), given)
        if key in self._seen:
            self._seen.move_to_end(key)
            return self._seen[key]
        image, size = self.read(path)
        own = None
        if given:
            own = check_focal_length(given, max(size)) * image.width / size[0]
        progress(0.1, desc="reading the image")
        seen = Seen(self.model.encode_image(image, focal_length=own), own)
        self._seen[key] = seen
        while len(self._seen) > limits.MAX_ENCODED:
            self._seen.popitem(last=False)
        return seen

    def _predict(self, seen: Seen, task: DenseTask, given: Mapping[str, Any]) -> DensePrediction:
        options = {"focal_length": seen.focal_length, **given}
        taken = {"target_sizes", *task.options}
        options = {name: value for name, value in options.items() if value is not None and name in taken}
        return self.model.predict_dense(seen.encoded, task=task.name, **options)

    def _read_beside(self, seen: Seen, shown: DenseTask, names: Any) -> dict[str, PixelWords]:
        """What other tasks say of each place: those that cost no further pass over the image and need no words."""
        processor, found = self.model.get_processor(), {}
        request = DenseRequest((0, 0), focal_length=seen.focal_length)
        fields = {shown.map_field}
        for task in self.tasks.values():
            is_asked = task.on_crops or ("labels" in task.options and names is None)
            if is_asked or task.map_field in fields or task.prompt(request, processor) != seen.encoded.prompt:
                continue
            asked = names if "labels" in task.options else None
            if task.name not in seen.beside or seen.beside[task.name][0] != asked:
                try:
                    prediction = self._predict(seen, task, {"labels": names})
                except ValueError:  # it needs what isn't there, such as a focal length
                    continue
                seen.beside[task.name] = asked, readings.thin_out(task.to_words(prediction))
            fields.add(task.map_field)
            found[words_of(task)] = seen.beside[task.name][1]
        return found

    def _new_folder(self) -> str:
        """For files to download. The page copies them when it shows them; so they are here for a few requests only."""
        while len(self._folders) >= limits.MAX_FOLDERS:
            shutil.rmtree(self._folders.popleft(), ignore_errors=True)
        self._folders.append(tempfile.mkdtemp(dir=self._folder.name))
        return self._folders[-1]


def save_files(prediction: DensePrediction, image: PIL.Image.Image, start: str) -> list[str]:
    """Write a prediction of one map in the forms that there are of it, to files whose paths begin with `start`."""
    written = []
    for form, suffix in FORMS:
        try:
            written += prediction.save(f"{start}{suffix}", form, image=image)
        except ValueError:  # masks of a map that has none
            continue
    return [str(path) for path in written]


def check_focal_length(text: str, edge: int) -> float:
    """A focal length in pixels of an image whose longer edge is `edge`, from what was typed."""
    low, high = (factor * edge for factor in limits.FOCAL_LENGTHS)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise PageError(
            f"The focal length must be {low:.0f} to {high:.0f} pixels for this image, or left empty, got "
            f"“{one_line(text)[:40]}”."
        )
    return value


def words_of(task: DenseTask) -> str:
    """How the page calls a task."""
    return task.name.replace("_", " ")


def in_words(text: str) -> str:
    """A sentence about arguments as one about the fields of the page."""
    text = text.removesuffix(", got None")
    for name, called in FIELDS.items():
        text = text.replace(f"`{name}`", f"“{called}”")
    text = text.replace("`", "")
    return text[:1].upper() + text[1:]


def _lines(name: str, text: str, own_characters: int = 0, own_count: int = 0) -> list[str]:
    """The names of a field, one a line; those of the checkpoint may be more than are taken otherwise."""
    if len(text) > limits.MAX_CHARACTERS + own_characters:
        raise PageError(f"“{name}” has {len(text)} characters; at most {limits.MAX_CHARACTERS} are taken.")
    lines = [one_line(line) for line in text.splitlines() if line.strip()]
    if len(lines) > max(limits.MAX_LABELS, own_count):
        raise PageError(f"“{name}” has {len(lines)} names; at most {limits.MAX_LABELS} are taken.")
    return lines
