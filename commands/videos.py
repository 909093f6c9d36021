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
"""Videos in and out, a frame at a time, by PyAV."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import PIL.Image

from ..drawing_densemllm import beside
from ..prediction_densemllm import DensePrediction
from ..saving_densemllm import SEGMENTS
from ..tasks_densemllm import MAP_TASKS


NEEDS = "videos need PyAV: `pip install 'densemllm[video]'`"
CODECS = {".webm": "libvpx-vp9"}  # of a container that takes no H.264
MAP_WEIGHT = 0.75  # of a map over its image beside which the image itself is


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(NEEDS) from error
    return av


@dataclass
class Frames:
    """The frames of a video.

    Attributes:
        images: RGB, upright, one after another.
        rate: frames a second, on average.
        count: how many there are by what the file says; `None` where it doesn't.
    """

    images: Iterator[PIL.Image.Image]
    rate: Fraction
    count: int | None


def read_frames(path: Path) -> Frames:
    """Open a video; its frames are decoded when their turn comes.

    Raises:
        ImportError: PyAV is not installed.
        ValueError: it is not a video that PyAV can read.
    """
    av = _av()
    try:
        container = av.open(str(path))
        stream = container.streams.video[0]
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"IMAGE {path} is not a video that PyAV can read: {error}") from error
    stream.thread_type = "AUTO"

    def images() -> Iterator[PIL.Image.Image]:
        with container:
            try:
                for frame in container.decode(stream):
                    image = frame.to_image()
                    turn = round(getattr(frame, "rotation", 0) or 0)  # degrees, as phones write it beside the frames
                    yield image.rotate(turn, expand=True) if turn else image
            except av.error.FFmpegError as error:
                raise ValueError(f"IMAGE {path}: a frame can't be decoded: {error}") from error

    return Frames(images(), stream.average_rate or Fraction(25), stream.frames or None)


class FilmWriter:
    """A video that is written a frame at a time, each of the size of the first. To be used in a `with` statement.

    Args:
        path: the file; its suffix says the container.
        rate: frames a second.
    """

    def __init__(self, path: Path, rate: Fraction):
        self.av, self.path, self.rate = _av(), path, rate
        self.count = 0
        self.container: Any = None
        self.stream: Any = None

    def __enter__(self) -> Self:
        self.container = self.av.open(str(self.path), "w")
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        with suppress(*([] if kind is None else [Exception])):  # what went wrong first is said
            if self.stream is not None:
                self.container.mux(self.stream.encode())
            self.container.close()

    def add(self, image: PIL.Image.Image) -> None:
        """Append a frame. Its edges are made even, as video codecs need it."""
        if self.stream is None:
            codec = CODECS.get(self.path.suffix.lower(), "libx264")
            self.stream = self.container.add_stream(codec, rate=self.rate, options={"crf": "18"})
            self.stream.width, self.stream.height = (edge + edge % 2 for edge in image.size)
            self.stream.pix_fmt = "yuv420p"
        sheet = PIL.Image.new("RGB", (self.stream.width, self.stream.height), "white")
        sheet.paste(image)
        self.container.mux(self.stream.encode(self.av.VideoFrame.from_image(sheet)))
        self.count += 1


def draw_frame(
    prediction: DensePrediction,
    scene: PIL.Image.Image,
    form: str,
    field: str,
    palette: str | None,
    limits: tuple[float, float] | None,
) -> PIL.Image.Image:
    """A frame of a video of maps, of one size for all frames: without the names of what is in this frame only, and
    with the scale of the first.

    Args:
        form: "picture", "overlay" or "side_by_side".
        field: the map.
        limits: ends of the scale; the frame's own where left out.
    """
    if form == "overlay":
        return prediction.overlay(scene, field, palette=palette, limits=limits)
    has_scale = MAP_TASKS[field].limits(prediction) is not None
    panel = prediction.to_pil(field, has_scale, palette, limits)
    if form == "picture":
        return panel
    if field in SEGMENTS:
        panel = prediction.overlay(scene, field, MAP_WEIGHT, palette)
    return beside([scene, panel])


__all__ = ["FilmWriter", "Frames", "draw_frame", "read_frames"]
