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
"""What shows and stores the maps of an image: images, arrays, COCO, polygons, labels of YOLO, points in space."""

import io
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from .answers_densemllm import encode_rle
from .checks_densemllm import (
    check_choice,
    check_count,
    check_flag,
    check_number,
    check_share,
    check_text,
    plain,
    shown,
)
from .crops_densemllm import mask_corners
from .drawing_densemllm import Palette, beside, draw_outlines, label_colors
from .image_encoding_densemllm import EncodedImage, ImageOrEncoded, load_image
from .image_processing_densemllm import DenseMLLMImageProcessor
from .object_tasks_densemllm import Foreground
from .points_densemllm import PointCloud, depth_to_points
from .polygons_densemllm import joined_ring, segment_polygons, simple_rings
from .task_base_densemllm import Limits
from .tasks_densemllm import MAP_TASKS, Classes, DenseMaps, Depth
from .whole_files_densemllm import whole_file


OBJECT = "object"  # what the thing in a mask is called where nobody says
NOTHING = 255  # in a PNG with a palette: none of the classes
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
Writer = Callable[[Path], Any]  # of a file at a path
SEGMENTS = (Classes.map_field, Foreground.map_field)  # maps whose values are segments


@dataclass(frozen=True)
class Format:
    """A form of file.

    Attributes:
        about: what is in it.
        suffixes: that its files may have; the first where nobody says.
        fields: the maps of which one is needed; any where empty.
        needs_image: whether the image is a part of it.
    """

    about: str
    suffixes: tuple[str, ...]
    fields: tuple[str, ...] = ()
    needs_image: bool = False


# The forms of [`StoredMaps.save`]. The first form that takes a suffix is that of a file whose form nobody says.
FORMATS: dict[str, Format] = {
    "picture": Format("an image in colours with a legend, or a scale in metres (near is bright)", IMAGE_SUFFIXES),
    "overlay": Format("the colours laid over the image, without a legend", IMAGE_SUFFIXES, needs_image=True),
    "side_by_side": Format("the image, and the map with its legend at its right", IMAGE_SUFFIXES, needs_image=True),
    "raw": Format(
        "depth in millimetres, 16 bit (65535: 65.5 m or more); class numbers, 8 bit (255: none), or 16 bit with more "
        "than 255 classes (65535: none); an object's mask as 255 on 0; normals as red, green and blue, of which 0 is "
        "-1 and 255 is 1",
        (".png", ".npy"),
    ),
    "png": Format("the same as raw", (".png",)),
    "palette": Format(
        "class numbers, 8 bit (255: none), with the classes' colours; the names are beside it, in NAME.labels.json",
        (".png",), SEGMENTS,
    ),
    "npy": Format(
        "the array: depth in metres float32, class numbers int64 (-1: none), masks bool, normals float32 [height, "
        "width, 3] (x to the right, y up, z to the camera)",
        (".npy",),
    ),
    "npz": Format("the arrays of all maps by name, compressed", (".npz",)),
    "json": Format("classes, objects or the mask as COCO run lengths, with names and scores", (".json",), SEGMENTS),
    "coco": Format("COCO's images, categories and annotations, in one file", (".json",), SEGMENTS),
    "coco_panoptic": Format(
        "COCO's panoptic JSON and, beside it, its PNG", (".json",), (Classes.map_field,)
    ),
    "geojson": Format("polygons with holes, in pixels, with names and scores", (".geojson", ".json"), SEGMENTS),
    "yolo": Format("a line a segment: its class and its polygon, from 0 to 1", (".txt",), SEGMENTS),
    "ply": Format("coloured points in space, in metres; needs a focal length", (".ply",), (Depth.map_field,)),
}  # fmt: skip


class StoredMaps(DenseMaps):
    """[`DenseMaps`] that can be looked at and written to files."""

    # ---- images ----

    def to_pil(
        self,
        field: str | None = None,
        legend: bool = False,
        palette: Palette | None = None,
        limits: Limits | None = None,
    ) -> PIL.Image.Image:
        """An image of one field: classes and the mask in colours, depth from near (bright) to far (dark).

        Args:
            field: `"segmentation"`, `"predicted_depth"`, `"mask"`...; the first that is there where left out.
            legend: add the names of the classes, or a scale in metres, at the right of the map.
            palette: colours of the classes, as for [`label_colors`]: a fixed table where left out, `"ade20k"`,
                `"voc"`, `"cityscapes"`, a dict from name or number to colour, or `[n, 3]`.
            limits: `(low, high)` in metres, the ends of the scale of depth, so that several images have one; those of
                the map where left out.
        """
        task = MAP_TASKS[self._field(field)]
        return task.draw(self, check_flag("legend", legend), palette, _check_limits(limits))

    def overlay(
        self,
        image: ImageOrEncoded,
        field: str | None = None,
        alpha: float = 0.55,
        palette: Palette | None = None,
        outlines: bool | None = None,
        limits: Limits | None = None,
    ) -> PIL.Image.Image:
        """The image of [`to_pil`] laid over `image`, resized to the map. Pixels without a label stay as they are.

        Args:
            image: of the scene, in any form that `predict_dense` takes.
            field: as for [`to_pil`].
            alpha: weight of the map in [0, 1].
            palette: as for [`to_pil`].
            outlines: draw the outlines of segments; where left out, of maps that tell objects apart.
            limits: as for [`to_pil`].
        """
        field, alpha = self._field(field), check_share("alpha", alpha)
        outlines = self._has_objects(field) if outlines is None else check_flag("outlines", outlines)
        colors = np.array(self.to_pil(field, palette=palette, limits=limits))
        scene = self._scene(image, field)
        values = getattr(self, field).cpu().numpy()
        drawn = MAP_TASKS[field].is_drawn(values)
        bands = (np.array_split(whole, 1 + drawn.size // 2**20) for whole in (colors, scene, drawn))
        for mixed, below, is_drawn in zip(*bands, strict=True):
            over = np.float32(alpha) * mixed + np.float32(1 - alpha) * below
            mixed[:] = np.where(is_drawn[..., None], over, below).round()
        if outlines and field in SEGMENTS:
            draw_outlines(colors, values)
        return PIL.Image.fromarray(colors)

    def side_by_side(
        self, image: ImageOrEncoded, field: str | None = None, palette: Palette | None = None
    ) -> PIL.Image.Image:
        """The image, and at its right each map with its legend; classes and masks are laid over the image.

        Args:
            image: of the scene, in any form that `predict_dense` takes; resized to the map.
            field: as for [`to_pil`]; all maps that are there where left out.
            palette: as for [`to_pil`].
        """
        fields = [name for name in MAP_TASKS if getattr(self, name) is not None] if field is None else [field]
        fields = [self._field(name) for name in fields or [None]]
        panels = [PIL.Image.fromarray(self._scene(image, fields[0]))]
        for name in fields:
            panel = self.to_pil(name, legend=True, palette=palette)
            if name in SEGMENTS:
                panel.paste(self.overlay(image, name, 0.75, palette))
            panels.append(panel)
        return beside(panels)

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows of it: the maps with their legends, at most 1024 pixels high and wide each."""
        fields = [name for name in MAP_TASKS if getattr(self, name) is not None]
        if not fields:
            return None
        panels = []
        for name in fields:
            panel = self.to_pil(name, legend=True)
            panel.thumbnail((1024, 1024))
            panels.append(panel)
        buffer = io.BytesIO()
        beside(panels).save(buffer, "PNG")
        return buffer.getvalue()

    def to_palette(self, field: str | None = None, palette: Palette | None = None) -> PIL.Image.Image:
        """Numbers of classes or objects as an image of mode `P`: viewers show the classes' colours, and programs read
        the numbers, as from the files of PASCAL VOC and Cityscapes. 255 is none of them, black; of a mask 1 is the
        object.

        Args:
            field: `"segmentation"` or `"mask"`; the first that is there where left out.
            palette: as for [`to_pil`].

        Raises:
            ValueError: a number above 254, which such an image can't hold.
        """
        values, rows = self._segments(field)
        if values.max(initial=0) >= NOTHING:
            raise ValueError(
                f"an image with a palette has numbers to {NOTHING - 1}, got {int(values.max())}: write raw numbers"
            )
        names = {**(self.labels or {}), **{row["id"]: row["label"] for row in rows}}
        colors = label_colors(NOTHING + 1, palette, names)
        colors[NOTHING] = 0
        image = PIL.Image.fromarray(np.where(values < 0, NOTHING, values).astype(np.uint8))
        image.putpalette(colors.tobytes())  # which makes it one of mode P
        return image

    # ---- segments ----

    def to_rle(self) -> "dict | list[dict]":
        """Masks as COCO's compressed run lengths, `{"size": [height, width], "counts": str}`, as `pycocotools` reads
        and writes them: of `mask`, or of each segment, in the form of its results.

        Returns:
            one dict for a mask; for a segmentation a list with `segmentation`, `category_id`, `category`, `score` and
            `area` of each row of `segments_info`.
        """
        if self.mask is not None:
            return encode_rle(self.mask.numpy())
        if self.segmentation is None:
            raise ValueError("there is no mask and no segmentation to encode")
        return [
            {
                "segmentation": encode_rle((self.segmentation == row["id"]).numpy()), "category_id": row["label_id"],
                "category": row["label"], "score": row["score"], "area": row["area"],
            }
            for row in self.segments_info
        ]  # fmt: skip

    def to_coco(
        self,
        file_name: str = "",
        image_id: int = 1,
        polygons: bool = False,
        tolerance: float = 1.0,
        label: str = OBJECT,
    ) -> dict[str, Any]:
        """A whole file of COCO annotations, as `pycocotools`, CVAT, Label Studio and FiftyOne read it.

        Args:
            file_name: of the image.
            image_id: of the image.
            polygons: segments as polygons, and not as compressed run lengths. COCO's have no holes: a segment with
                holes is cut through them into several.
            tolerance: of polygons, in pixels, see [`segment_polygons`].
            label: what the object of a mask is called.

        Returns:
            `images` (one), `categories` (all of `labels`) and `annotations`, a row a segment: `segmentation`, `bbox`
            (x, y, width, height in pixels), `area` (pixels), `iscrowd` (0) and `score`.

        Raises:
            ValueError: there are neither segments nor a mask, or an argument can't be used.
            ImportError: polygons, and shapely is not installed.
        """
        values, rows = self._segments(label=label)
        shapes = self._polygons(values, tolerance) if check_flag("polygons", polygons) else {}
        annotations = []
        for row in rows:
            mask = values == row["id"]
            segmentation = (
                [ring.ravel().round(3).tolist() for ring in simple_rings(shapes[row["id"]])]
                if polygons
                else encode_rle(mask)
            )
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image_id, "category_id": row["label_id"],
                    "segmentation": segmentation, "area": int(mask.sum()), "bbox": bounding_box(mask), "iscrowd": 0,
                    "score": row["score"],
                }
            )  # fmt: skip
        return {
            "images": [self._coco_image(file_name, image_id, values)],
            "annotations": annotations,
            "categories": [{"id": key, "name": name} for key, name in self._category_names(rows).items()],
        }

    def to_coco_panoptic(self, file_name: str = "", image_id: int = 1) -> tuple[dict[str, Any], PIL.Image.Image]:
        """COCO's form of panoptic segmentation, as `panopticapi` reads it.

        Args:
            file_name: of the image; the PNG that belongs to it has the same name with `.png`.
            image_id: of the image.

        Returns:
            the content of the JSON file: `images`, `annotations` with a `segments_info` of `id`, `category_id`,
            `area`, `bbox` and `iscrowd`, and `categories`, whose `isthing` is 1 where objects are told apart; and the
            PNG, RGB, in which the colour of a segment is its number R + 256 G + 256^2 B from 1, black is none.

        Raises:
            ValueError: there are no segments.
        """
        values, rows = self._segments(self._field(Classes.map_field))
        numbers = np.zeros(values.shape, dtype=np.int64)
        infos = []
        for place, row in enumerate(rows, 1):
            mask = values == row["id"]
            numbers[mask] = place
            infos.append(
                {
                    "id": place, "category_id": row["label_id"], "area": int(mask.sum()), "bbox": bounding_box(mask),
                    "iscrowd": 0,
                }
            )  # fmt: skip
        things = {row["label_id"] for row in rows if row.get("isthing", "box" in row)}
        png = Path(file_name or "image").with_suffix(".png").as_posix()
        content = {
            "images": [self._coco_image(file_name, image_id, values)],
            "annotations": [{"image_id": image_id, "file_name": png, "segments_info": infos}],
            "categories": [
                {"id": key, "name": name, "isthing": int(key in things)}
                for key, name in self._category_names(rows).items()
            ],
        }
        return content, numbers_to_rgb(numbers)

    def to_geojson(self, tolerance: float = 1.0, label: str = OBJECT) -> dict[str, Any]:
        """Segments as a `FeatureCollection` of GeoJSON (RFC 7946), as QGIS, QuPath and shapely read it; a `Polygon` or
        `MultiPolygon` each, with its holes. Coordinates are pixels and not degrees: x to the right, y down, (0, 0) the
        image's upper left corner.

        Args:
            tolerance: how far edges may move, in pixels, see [`segment_polygons`]; 0: exactly the pixels.
            label: what the object of a mask is called.

        Returns:
            features with the `properties` `id`, `label_id`, `label`, `score` and `area` (pixels).

        Raises:
            ValueError: there are neither segments nor a mask, or an argument can't be used.
            ImportError: shapely is not installed.
        """
        values, rows = self._segments(label=label)
        shapes = self._polygons(values, tolerance)
        features = []
        for row in rows:
            geometry = shapes[row["id"]]
            geometry = geometry if len(geometry.geoms) > 1 else geometry.geoms[0]
            properties = {name: row[name] for name in ("id", "label_id", "label", "score", "area")}
            features.append(
                {"type": "Feature", "geometry": geometry.__geo_interface__, "properties": properties, "id": row["id"]}
            )
        return {"type": "FeatureCollection", "features": features}

    def to_yolo(self, tolerance: float = 1.0) -> str:
        """Segments as the text of a label file of YOLO: a line a segment, its class and the corners of its polygon,
        `class x y x y ...`, divided by the image's width and height. A segment of several parts, or with holes, is one
        polygon that lines without an area join.

        Args:
            tolerance: how far edges may move, in pixels, see [`segment_polygons`].

        Returns:
            the lines. A class is the place of its name in `labels`, from 0; that of a mask is 0.

        Raises:
            ValueError: there are neither segments nor a mask, or an argument can't be used.
            ImportError: shapely is not installed.
        """
        values, rows = self._segments()
        shapes = self._polygons(values, tolerance)
        place_of = {key: place for place, key in enumerate(self._category_names(rows))}
        lines = []
        for row in rows:
            ring = joined_ring(simple_rings(shapes[row["id"]])) / values.shape[::-1]
            numbers = " ".join(f"{number:.6g}" for number in ring.clip(0, 1).ravel())
            lines.append(f"{place_of[row['label_id']]} {numbers}\n")
        return "".join(lines)

    # ---- space ----

    def to_pointcloud(self, focal_length: float, image: ImageOrEncoded | None = None) -> PointCloud:
        """The depth map as points in space, with normals where they were predicted, too.

        Args:
            focal_length: in pixels of the map, which are those of the image unless another size was asked for. The
                principal point is the map's centre.
            image: of the scene, whose colours the points get, in any form that `predict_dense` takes; those of the
                classes where left out and there are any, else those of the depth.

        Returns:
            `points` (`float32 [n, 3]`: metres; x to the right, y down, z forward), `colors` (`uint8 [n, 3]`) and
            `normals`; its `save` writes a PLY file.

        Raises:
            ValueError: there is no depth, or an argument can't be used.
        """
        depth = getattr(self, self._field(Depth.map_field)).cpu().numpy()
        if image is not None:
            colors = self._scene(image, Depth.map_field)
        else:
            colors = np.asarray(self.to_pil(Depth.map_field if self.segmentation is None else Classes.map_field))
        normals = None if self.normals is None else self.normals.cpu().numpy()
        return depth_to_points(depth, focal_length, colors, normals)

    # ---- files ----

    def save(
        self,
        path: str | os.PathLike,
        format: str | None = None,
        overwrite: bool = False,
        image: ImageOrEncoded | None = None,
        field: str | None = None,
        focal_length: float | None = None,
        palette: Palette | None = None,
        tolerance: float = 1.0,
        label: str = OBJECT,
    ) -> list[Path]:
        """Write the maps to a file, which is there whole or not at all.

        Args:
            path: the file. Folders that lack are made.
            format: `"picture"` (one map with its legend), `"overlay"`, `"side_by_side"`, `"palette"`
                ([`to_palette`], and the classes' names beside it in `NAME.labels.json`), `"raw"` or `"png"` (numbers
                of one map: classes, millimetres, directions), `"npy"` (one map), `"npz"` (all of them), `"json"`
                ([`to_rle`]), `"coco"`, `"coco_panoptic"` (with its PNG beside it), `"geojson"`, `"yolo"`, `"ply"`
                ([`to_pointcloud`]); by the suffix of `path` where left out.
            overwrite: whether a file that is there already is replaced.
            image: of the scene, which `"overlay"` and `"side_by_side"` need; for `"ply"`, whose colours the points
                get.
            field: the map, as for [`to_pil`].
            focal_length: in pixels, which `"ply"` needs.
            palette: as for [`to_pil`].
            tolerance: of polygons, in pixels, see [`segment_polygons`].
            label: what the object of a mask is called.

        Returns:
            the files that were written.

        Raises:
            ValueError, TypeError: an argument can't be used, or the maps that a format needs are not there.
            ImportError: polygons, and shapely is not installed.
            OSError: a file can't be written, or is there already.
        """
        path = Path(path)
        format = find_format(path, format)
        if image is None and FORMATS[format].needs_image:
            raise ValueError(f"`image` is needed for `format` {format!r}, got None")
        if focal_length is None and format == "ply":
            raise ValueError("`focal_length` is needed for `format` 'ply', in pixels, got None")
        is_file = isinstance(image, (str, os.PathLike)) and os.path.isfile(image)
        name = Path(image).name if is_file else path.stem
        as_array = path.suffix.lower() == ".npy"
        # What is to be written is made first: what can't be made leaves nothing.
        files = {
            "picture": lambda: {path: self.to_pil(field, legend=True, palette=palette).save},
            "overlay": lambda: {path: self.overlay(image, field, palette=palette).save},
            "side_by_side": lambda: {path: self.side_by_side(image, field, palette).save},
            "raw": lambda: {path: self._array_writer(field) if as_array else self._numbers(field).save},
            "png": lambda: {path: self._numbers(field).save},
            "palette": lambda: self._palette_files(path, field, palette, label),
            "npy": lambda: {path: self._array_writer(field)},
            "npz": lambda: {path: self._arrays_writer()},
            "json": lambda: {path: _json_writer(self.to_rle())},
            "coco": lambda: {path: _json_writer(self.to_coco(name, tolerance=tolerance, label=label))},
            "coco_panoptic": lambda: self._panoptic_files(path, name),
            "geojson": lambda: {path: _json_writer(self.to_geojson(tolerance, label))},
            "yolo": lambda: {path: _text_writer(self.to_yolo(tolerance))},
            "ply": lambda: {path: self.to_pointcloud(focal_length, image).save},
        }[format]()
        taken = [place for place in files if os.path.lexists(place) and not overwrite]
        if taken:
            raise FileExistsError(f"{taken[0]} is there already; give another name, or allow to overwrite it")
        for place, write in files.items():
            with whole_file(place, overwrite) as staged:
                write(staged)
        return list(files)

    # ---- parts ----

    def _field(self, field: str | None) -> str:
        there = [name for name in MAP_TASKS if getattr(self, name) is not None]
        return there[0] if field is None and there else check_choice("field", field, there)

    def _scene(self, image: ImageOrEncoded, field: str) -> np.ndarray:
        """The image in the size of a map, `uint8 [height, width, 3]`."""
        image = image.image if isinstance(image, EncodedImage) else image
        scene = load_image(image, DenseMLLMImageProcessor(), "`image`")  # upright, as it was seen
        height, width = getattr(self, field).shape[:2]
        return np.asarray(scene.resize((width, height), PIL.Image.Resampling.BILINEAR))

    def _has_objects(self, field: str) -> bool:
        return field == Classes.map_field and any("box" in row for row in self.segments_info or [])

    def _numbers(self, field: str | None) -> PIL.Image.Image:
        return PIL.Image.fromarray(MAP_TASKS[self._field(field)].to_numbers(self))

    def _array_writer(self, field: str | None) -> Writer:
        values = getattr(self, self._field(field)).cpu().numpy()

        def write(path: Path) -> None:
            with open(path, "wb") as file:  # given a name, numpy would add a suffix to `.NPY`
                np.save(file, values)

        return write

    def _arrays_writer(self) -> Writer:
        self._field(None)  # there is one
        maps = {name: getattr(self, name) for name in MAP_TASKS}
        arrays = {name: values.cpu().numpy() for name, values in maps.items() if values is not None}

        def write(path: Path) -> None:
            with open(path, "wb") as file:
                np.savez_compressed(file, **arrays)

        return write

    def _palette_files(self, path: Path, field: str | None, palette: Palette | None, label: str) -> dict[Path, Writer]:
        """The image, and the names of its numbers: of objects, or of all classes that were asked for."""
        _, rows = self._segments(field, label)
        are_classes = all(row["id"] == row["label_id"] for row in rows) and self.labels is not None
        names = self.labels if are_classes else {row["id"]: row["label"] for row in rows}
        content = {str(key): name for key, name in names.items()}
        return {path: self.to_palette(field, palette).save, path.with_suffix(".labels.json"): _json_writer(content)}

    def _panoptic_files(self, path: Path, name: str) -> dict[Path, Writer]:
        content, png = self.to_coco_panoptic(name)
        place = path.with_suffix(".png")
        content["annotations"][0]["file_name"] = place.name
        return {place: png.save, path: _json_writer(content)}

    def _segments(self, field: str | None = None, label: str = OBJECT) -> tuple[np.ndarray, list[dict]]:
        """A map of the `id`s of segments, `int64 [height, width]`, -1 where there is none; and a row for each that has
        a pixel, with `id`, `label_id`, `label`, `score` and `area`."""
        label = check_text("label", label)
        there = [name for name in SEGMENTS if getattr(self, name) is not None]
        if field is None and not there:
            raise ValueError("there is no mask and no segmentation, of which segments could be written")
        field = there[0] if field is None else check_choice("field", field, there)
        values = getattr(self, field).cpu().numpy()
        if values.dtype != np.bool_:
            present = set(np.unique(values).tolist())
            return values.astype(np.int64), [row for row in self.segments_info or [] if row["id"] in present]
        area = int(values.sum())
        scores = self.scores if not isinstance(self.scores, dict) else None
        score = 1.0 if scores is None else float(scores.cpu().numpy()[values].mean()) if area else 0.0
        row = {"id": 1, "label_id": 1, "label": label, "score": score, "area": area}
        return np.where(values, 1, -1), [row] if area else []

    def _category_names(self, rows: list[dict]) -> dict[int, str]:
        """The names of categories by key, those that no segment has with them."""
        return {**(self.labels or {}), **{row["label_id"]: row["label"] for row in rows}}

    def _polygons(self, values: np.ndarray, tolerance: float) -> dict[int, Any]:
        accepted = "a number of pixels of at least 0"
        tolerance = check_number("tolerance", tolerance, accepted, lambda number: 0 <= number < float("inf"))
        return segment_polygons(values, tolerance)

    def _coco_image(self, file_name: str, image_id: int, values: np.ndarray) -> dict[str, Any]:
        file_name = check_text("file_name", file_name)
        height, width = values.shape
        return {
            "id": check_count("image_id", image_id, 0), "file_name": file_name, "height": height, "width": width,
        }  # fmt: skip


def find_format(path: str | os.PathLike, format: str | None = None) -> str:
    """The form of a file that is to be written, by its suffix where `format` is `None`.

    Raises:
        ValueError: an unknown form, or a suffix that it can't have.
    """
    suffix = Path(path).suffix.lower()
    if format is None:
        found = [name for name, form in FORMATS.items() if suffix in form.suffixes]
        if not found:
            known = sorted({suffix for form in FORMATS.values() for suffix in form.suffixes})
            raise ValueError(f"`path` must end in one of {', '.join(known)}, got {os.fspath(path)}")
        return found[0]
    check_choice("format", format, FORMATS)
    if suffix not in FORMATS[format].suffixes:
        accepted = " or ".join(FORMATS[format].suffixes)
        raise ValueError(f"`path` must end in {accepted} for `format` {format!r}, got {os.fspath(path)}")
    return format


def merge_coco(contents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The contents of several COCO files as one: annotations are numbered anew, and a category is there once.

    Args:
        contents: of [`StoredMaps.to_coco`] or [`StoredMaps.to_coco_panoptic`], images with ids of their own.
    """
    merged: dict[str, Any] = {
        name: [row for content in contents for row in content[name]] for name in ("images", "annotations")
    }
    for number, row in enumerate(merged["annotations"], 1):
        if "id" in row:
            row["id"] = number
    categories: dict[int, dict] = {}
    for row in (row for content in contents for row in content["categories"]):
        kept = categories.setdefault(row["id"], row)
        if "isthing" in row:
            kept["isthing"] = max(kept["isthing"], row["isthing"])
    return {**merged, "categories": [categories[key] for key in sorted(categories)]}


def bounding_box(mask: np.ndarray) -> list[int]:
    """`[x, y, width, height]` of the pixels of a mask that has any."""
    x0, y0, x1, y1 = mask_corners(mask)
    return [x0, y0, x1 - x0, y1 - y0]


def numbers_to_rgb(numbers: np.ndarray) -> PIL.Image.Image:
    """Numbers of segments, below 256^3, as COCO's panoptic PNGs have them: R + 256 G + 256^2 B."""
    rgb = np.stack([numbers >> shift & 255 for shift in (0, 8, 16)], axis=-1)
    return PIL.Image.fromarray(rgb.astype(np.uint8))


def _check_limits(limits: Limits | None) -> Limits | None:
    if limits is None:
        return None
    values = plain(limits)
    if not isinstance(values, list) or len(values) != 2:
        raise ValueError(f"`limits` must be None or (low, high) in metres, got {shown(limits)}")
    low, high = (check_number("limits", value, "two finite numbers of metres", math.isfinite) for value in values)
    if low > high:
        raise ValueError(f"`limits` must be (low, high) in metres, got {shown(limits)}")
    return low, high


def _json_writer(content: Any) -> Writer:
    return _text_writer(json.dumps(content))


def _text_writer(text: str) -> Writer:
    return lambda path: path.write_text(text, encoding="utf-8")


__all__ = ["FORMATS", "Format", "StoredMaps", "bounding_box", "find_format", "merge_coco", "numbers_to_rgb"]
