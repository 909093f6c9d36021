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
"""Panoptic and instance segmentation: PQ, mask AP, and files in the formats of COCO.

One image is a pair: a map of segments, integers `[height, width]`, and its `segments_info`, a row a segment with `id`,
the segment's value in the map, and `label_id`, its class, as transformers' `post_process_panoptic_segmentation` gives
them. Values of the map that have no row (there -1 or 0) are no segment; rows that no pixel has are left out. A row of
a reference may have `iscrowd`: true where it stands for several objects that nobody told apart.
"""

import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object

from ..answers_densemllm import decode_rle, encode_rle
from ..checks_densemllm import shown
from ..files import check_outputs, whole_file
from ..saving_densemllm import bounding_box, numbers_to_rgb
from .metrics import DenseMetrics


if TYPE_CHECKING:
    from accelerate import Accelerator


Segments = tuple[Any, Sequence[dict]]  # the map of segments, an array or a tensor, and its rows

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).round(2).tolist())  # of the IoU, over which COCO's AP is averaged
MAX_DETECTIONS = 100  # of an image and class, by COCO's rule
MAX_SEGMENTS = 2**24 - 1  # what three bytes of a pixel can tell apart, but for 0


class PanopticMetrics(DenseMetrics):
    """PQ, SQ and RQ (Kirillov et al. 2019, "Panoptic segmentation"), as panopticapi computes them.

    A predicted and a true segment of the same class match if their IoU is above 0.5; pixels where the reference has no
    segment are left out of the union. With TP matches, FP predicted and FN true segments without one, SQ is the mean
    IoU of the matches, RQ is TP / (TP + FP / 2 + FN / 2), and PQ is SQ times RQ. A crowd is never matched or missed,
    and a prediction is not counted as false if more than half of it lies where the reference has no segment, or a
    crowd of the same class. The three are averaged over the classes that have any of TP, FP and FN.

    Args:
        label_ids: the ids of the classes, in the order of the results.
        thing_ids: which of them are countable; the others are stuff.
    """

    def __init__(self, label_ids: Iterable[int], thing_ids: Iterable[int]):
        self.label_ids = _check_labels(label_ids)
        thing_ids = set(thing_ids)
        unknown = sorted(thing_ids - set(self.label_ids))
        if unknown:
            raise ValueError(f"`thing_ids` must be among the {len(self.label_ids)} `label_ids`, got {unknown[:10]}")
        self.is_thing = torch.tensor([key in thing_ids for key in self.label_ids])
        # Of each class the sum of the matches' IoU, TP, FP and FN.
        self.totals = torch.zeros(len(self.label_ids), 4, dtype=torch.float64, device="cpu")

    def count(self, prediction: Segments, reference: Segments) -> torch.Tensor:
        """What one image adds: pairs of a map of segments and its rows, see this module."""
        (predicted, predicted_rows), (true, true_rows) = _read_both(prediction, reference)
        totals = torch.zeros_like(self.totals)
        columns = len(predicted_rows) + 1
        pixels = np.bincount((true * columns + predicted).ravel(), minlength=(len(true_rows) + 1) * columns)
        pixels = pixels.reshape(len(true_rows) + 1, columns)  # row and column 0: no segment
        predicted_areas, true_areas, void = pixels.sum(axis=0)[1:], pixels.sum(axis=1)[1:], pixels[0, 1:]
        predicted_labels = np.array(self._columns("prediction", predicted_rows), dtype=int)
        true_labels = np.array(self._columns("reference", true_rows), dtype=int)
        is_crowd = np.array([bool(row.get("iscrowd", False)) for row in true_rows], dtype=bool)

        inside = pixels[1:, 1:]
        same = true_labels[:, None] == predicted_labels
        iou = inside / (true_areas[:, None] + predicted_areas - void - inside)
        matches = (iou > 0.5) & same & ~is_crowd[:, None]  # above one half, no segment has more than one
        ignored = void + (inside * (same & is_crowd[:, None])).sum(axis=0)
        is_false = ~matches.any(axis=0) & (ignored <= 0.5 * predicted_areas)
        is_missed = ~matches.any(axis=1) & ~is_crowd
        hit, _ = np.nonzero(matches)
        for place, labels, values in (
            (0, true_labels[hit], iou[matches]),
            (1, true_labels[hit], np.ones(len(hit))),
            (2, predicted_labels[is_false], np.ones(is_false.sum())),
            (3, true_labels[is_missed], np.ones(is_missed.sum())),
        ):
            totals[:, place].index_add_(0, torch.from_numpy(labels), torch.from_numpy(values))
        return totals

    def _columns(self, name: str, rows: Sequence[dict]) -> list[int]:
        unknown = [row["label_id"] for row in rows if row["label_id"] not in self.label_ids]
        if unknown:
            raise ValueError(
                f"`{name}` has the class id {unknown[0]}, which is none of the {len(self.label_ids)} classes"
            )
        return [self.label_ids.index(row["label_id"]) for row in rows]

    def compute(self, totals: torch.Tensor | None = None) -> dict:
        """`pq`, `sq` and `rq` in [0, 1], over all classes, and with `_things` and `_stuff` behind the name over these;
        `per_label_pq`, `per_label_sq` and `per_label_rq` in the order of `label_ids`. NaN where no class, or not this
        one, has a segment; the SQ of a class without a match is 0."""
        iou, hits, false, missed = (self.totals if totals is None else totals).cpu().double().unbind(dim=1)
        rates = hits / (hits + 0.5 * false + 0.5 * missed)  # 0 / 0 is NaN
        qualities = torch.where(rates == 0, 0.0, iou / hits)
        per_label = {"pq": qualities * rates, "sq": qualities, "rq": rates}
        results = {}
        for ending, chosen in (("", slice(None)), ("_things", self.is_thing), ("_stuff", ~self.is_thing)):
            results |= {f"{name}{ending}": float(values[chosen].nanmean()) for name, values in per_label.items()}
        return results | {f"per_label_{name}": values.tolist() for name, values in per_label.items()}


class InstanceMetrics(DenseMetrics):
    """AP of masks by COCO's definition, from `pycocotools`: over IoU from 0.5 to 0.95, at 0.5 and at 0.75.

    AP ranks the detections of all images, so that it doesn't follow from sums. `totals` is a list, to which an image
    adds a row for each class in it: what `pycocotools` matched there, in a form that JSON has. Parts of a data set are
    put together by joining their lists; of detections with the same score, the first in the list ranks first.

    Args:
        label_ids: the ids of the classes that count; segments of others, such as stuff, are left out.

    Raises:
        ImportError: `pycocotools` is not installed.
    """

    totals: list
    name = "mask_ap"  # of what [`compute`] gives
    iou_type = "segm"  # pycocotools' word for what is compared

    def __init__(self, label_ids: Iterable[int]):
        self.label_ids = _check_labels(label_ids)
        _cocoeval(self.label_ids, 1, self.iou_type)  # names what lacks before anything is predicted
        self.totals = []

    def count(self, prediction: Segments, reference: Segments) -> list[dict]:
        """What one image adds: pairs of a map of segments and its rows, see this module; those of the prediction have
        a `score`.

        Returns:
            a row a class that is in the image: `label_id`; `objects`, the number of true ones without crowds; and of
            each detection, best first, its score in `scores`, and in `matches` and `ignored` a number whose bit t
            tells whether it has found an object, and whether it doesn't count (it lies in a crowd), at the IoU
            `THRESHOLDS[t]`.
        """
        both = _read_both(prediction, reference)
        found, true = (_instances(0, *read, self.label_ids) for read in both)
        if any("score" not in row for row in found):
            raise ValueError("each row of `prediction` must have a `score`")
        return self._match(found, [{"iscrowd": 0, **row} for row in true], both[0][0].shape)

    def _match(self, found: list[dict], true: list[dict], size: tuple[int, int]) -> list[dict]:
        """What [`count`] gives, of COCO's rows of an image of that height and width."""
        evaluation = _cocoeval(self.label_ids, 1, self.iou_type)
        evaluation.cocoGt, evaluation.cocoDt = (_to_coco(rows, self.label_ids, size) for rows in (true, found))
        with redirect_stdout(io.StringIO()):
            evaluation.evaluate()
        return [
            {
                "label_id": int(result["category_id"]),
                "objects": len(result["gtIgnore"]) - int(np.sum(result["gtIgnore"])),
                "scores": [float(score) for score in result["dtScores"]],
                "matches": _to_bits(result["dtMatches"]),
                "ignored": _to_bits(result["dtIgnore"]),
            }
            for result in evaluation.evalImgs
            if result is not None  # neither a true nor a predicted one of this class
        ]

    @property
    def is_empty(self) -> bool:
        """Whether no image with a true or predicted object was added."""
        return not self.totals

    def to_record(self, part: list[dict]) -> list[dict]:
        """What [`count`] gave, in the form that JSON has."""
        return part

    def add_record(self, record: list[dict]) -> None:
        """Add what [`to_record`] gave."""
        self.totals += record

    def reduce(self, accelerator: "Accelerator") -> None:
        """Make `totals` those of all processes, in each of them."""
        self.totals = gather_object(self.totals)

    def compute(self, totals: list[dict] | None = None) -> dict:
        """`mask_ap`, the mean over classes and IoU thresholds, `mask_ap50` and `mask_ap75`, in [0, 1], over the
        classes that have a true object; `per_label_mask_ap` in the order of `label_ids`, NaN where there is none."""
        rows_of: dict[int, list] = {label: [] for label in self.label_ids}
        for row in self.totals if totals is None else totals:
            rows_of[row["label_id"]].append(row)
        images = max(map(len, rows_of.values()))
        evaluation = _cocoeval(self.label_ids, max(images, 1), self.iou_type)
        evaluation._paramsEval = evaluation.params
        evaluation.evalImgs = []  # of each class, its rows as those of images, whichever these are
        for label in evaluation.params.catIds:
            results = [_from_row(row) for row in rows_of[label]]
            evaluation.evalImgs += results + [None] * (max(images, 1) - len(results))
        with redirect_stdout(io.StringIO()):
            evaluation.accumulate()
        precision = evaluation.eval["precision"][:, :, :, 0, 0].mean(axis=1)  # [thresholds, classes], -1 without one
        precision = torch.from_numpy(np.where(precision < 0, math.nan, precision))
        per_label = dict(zip(evaluation.params.catIds, precision.mean(dim=0).tolist(), strict=True))
        return {
            self.name: float(precision.nanmean()),
            f"{self.name}50": float(precision[THRESHOLDS.index(0.5)].nanmean()),
            f"{self.name}75": float(precision[THRESHOLDS.index(0.75)].nanmean()),
            f"per_label_{self.name}": [per_label[label] for label in self.label_ids],
        }


def coco_instances(image_id: int | str, prediction: Segments, label_ids: Iterable[int] | None = None) -> list[dict]:
    """The segments of an image as COCO has detections, for a JSON file that `pycocotools.coco.COCO.loadRes` reads.

    Args:
        image_id: of the image in the data set.
        prediction: a map of segments and its rows, see this module.
        label_ids: only segments of these classes, the things; all where left out.

    Returns:
        a row a segment: `image_id`, `category_id`, `segmentation` (compressed run lengths), `area` (pixels), `bbox`
        (x, y, width, height), and `score` and `iscrowd` where the segment has them.
    """
    return _instances(image_id, *_read("prediction", prediction), label_ids)


def segments_of_coco(rows: Sequence[dict], size: Sequence[int]) -> Segments:
    """The inverse of [`coco_instances`] of one image: its map of segments, numbered from 1, and their rows.

    Args:
        rows: with `category_id` and `segmentation`; where masks overlap, the last one is seen.
        size: `(height, width)` of the image in pixels.
    """
    values = np.zeros(tuple(size), dtype=np.int64)
    for number, row in enumerate(rows, 1):
        values[decode_rle(row["segmentation"])] = number
    return values, [
        {
            "id": number,
            "label_id": row["category_id"],
            **{name: row[name] for name in ("score", "iscrowd") if name in row},
        }
        for number, row in enumerate(rows, 1)
    ]


def _instances(
    image_id: int | str, places: np.ndarray, rows: list[dict], label_ids: Iterable[int] | None
) -> list[dict]:
    kept = None if label_ids is None else set(label_ids)
    results = []
    for place, row in enumerate(rows, 1):
        if kept is None or row["label_id"] in kept:
            mask = places == place
            results.append(
                {
                    "image_id": image_id,
                    "category_id": int(row["label_id"]),
                    "segmentation": encode_rle(mask),
                    "area": int(mask.sum()),
                    "bbox": bounding_box(mask),
                }
            )
            if row.get("score") is not None:
                results[-1]["score"] = float(row["score"])
            if "iscrowd" in row:
                results[-1]["iscrowd"] = int(row["iscrowd"])
    return results


def save_coco_panoptic(
    predictions: Iterable[tuple[int | str, Segments]],
    path_json: str | os.PathLike,
    folder_png: str | os.PathLike,
    categories: Sequence[dict],
    overwrite: bool = False,
) -> None:
    """Write panoptic segmentations as COCO has them: a PNG an image, in which the colour of a segment is its number
    R + 256 G + 256^2 B, black is no segment, and one JSON file about all of them. `panopticapi` reads both.

    The segments of an image are numbered anew, 1, 2, ..., in the order of their rows. The JSON file is written last.

    Args:
        predictions: of each image its id in the data set, and the map of segments and its rows, see this module; may
            be a generator. A whole number as id names the PNG with 12 digits, as in COCO; a string names it as it is.
        path_json: the JSON file.
        folder_png: the folder of the PNGs; is made where it lacks. Beside `name.json`, panopticapi looks for `name`.
        categories: a dict a class: `id`, `name` and `isthing` (1 or 0), as in COCO.
        overwrite: whether files that are there already are replaced.

    Raises:
        ValueError: a category or an image id can't be used, a segment's class is no category, or `path_json` is there
            already.
        OSError: a file can't be written, or a PNG is there already.
    """
    label_ids = _check_categories(categories)
    check_outputs([path_json], overwrite=overwrite, argument="`path_json`")
    images, annotations = [], []
    for image_id, prediction in predictions:
        places, rows = _read("predictions", prediction)
        unknown = [row["label_id"] for row in rows if row["label_id"] not in label_ids]
        if unknown:
            raise ValueError(f"`predictions` has the class id {unknown[0]} in {image_id!r}, which is no category")
        name = _png_name(image_id)
        with whole_file(Path(folder_png) / name, overwrite) as staged:
            numbers_to_rgb(places).save(staged)
        images.append({"id": image_id, "file_name": name, "height": places.shape[0], "width": places.shape[1]})
        segments_info = []
        for place, row in enumerate(rows, 1):
            mask = places == place
            segments_info.append(
                {
                    "id": place,
                    "category_id": int(row["label_id"]),
                    "area": int(mask.sum()),
                    "bbox": bounding_box(mask),
                    "iscrowd": int(row.get("iscrowd", 0)),
                }
            )
        annotations.append({"image_id": image_id, "file_name": name, "segments_info": segments_info})
    content = {"images": images, "annotations": annotations, "categories": list(categories)}
    with whole_file(path_json, overwrite) as staged:
        staged.write_text(json.dumps(content), encoding="utf-8")


# ---- reading and checking ----


def _read(name: str, segments: Segments) -> tuple[np.ndarray, list[dict]]:
    """A map of places in the rows, `int64 [height, width]`, counted from 1, 0 where there is none; and the rows, those
    without a pixel left out.

    Raises:
        ValueError: it is not integers `[height, width]` with rows that have an `id` of their own and a `label_id`.
    """
    if not isinstance(segments, (tuple, list)) or len(segments) != 2:
        raise ValueError(f"`{name}` must be a pair, a map of segments and its rows, got {shown(segments)}")
    values, rows = segments
    values = np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values)
    if values.ndim != 2 or values.dtype.kind not in "iu":
        raise ValueError(f"`{name}` must have a map of integers [height, width], got {shown(values)}")
    if any(key not in row for row in rows for key in ("id", "label_id")):
        raise ValueError(f"`{name}`: each row must have an `id` and a `label_id`, got {shown(list(rows))}")
    row_of = {int(row["id"]): row for row in rows}
    if len(row_of) < len(rows):
        raise ValueError(f"`{name}`: each row must have an `id` of its own, got {[row['id'] for row in rows][:10]}")
    if len(rows) > MAX_SEGMENTS:
        raise ValueError(f"`{name}` must have at most {MAX_SEGMENTS} rows, got {len(rows)}")
    present, inverse = np.unique(values, return_inverse=True)
    there = set(present.tolist())
    kept = {key: row for key, row in row_of.items() if key in there}
    place_of = {key: place for place, key in enumerate(kept, 1)}
    places = np.array([place_of.get(key, 0) for key in present.tolist()], dtype=np.int64)
    return places[inverse.reshape(values.shape)], list(kept.values())


def _read_both(prediction: Segments, reference: Segments) -> list[tuple[np.ndarray, list[dict]]]:
    """[`_read`] of both, which must be of one size."""
    both = [_read(name, pair) for name, pair in (("prediction", prediction), ("reference", reference))]
    sizes = [places.shape for places, _ in both]
    if sizes[0] != sizes[1]:
        raise ValueError(f"`prediction` is {sizes[0]}, but `reference` {sizes[1]}")
    return both


def _check_labels(label_ids: Iterable[int]) -> list[int]:
    label_ids = list(label_ids)
    if not label_ids or len(set(label_ids)) < len(label_ids):
        raise ValueError(f"`label_ids` must be different ids, at least one, got {label_ids[:10]}")
    return label_ids


def _check_categories(categories: Sequence[dict]) -> set[int]:
    for row in categories:
        if not {"id", "name", "isthing"} <= set(row) or row["isthing"] not in (0, 1):
            raise ValueError(f"`categories`: each must have `id`, `name` and `isthing` (1 or 0), got {shown(row)}")
    return set(_check_labels(row["id"] for row in categories))


def _png_name(image_id: int | str) -> str:
    name = f"{image_id:012d}.png" if isinstance(image_id, int) else f"{image_id}.png"
    if Path(name).name != name or "\\" in name:
        raise ValueError(f"`predictions`: an image id must be a whole number or a file's name, got {image_id!r}")
    return name


# ---- pycocotools ----


def _cocoeval(label_ids: Sequence[int], images: int, iou_type: str) -> Any:
    """`COCOeval` for these classes and so many images, of any size of object.

    Args:
        iou_type: "segm" or "bbox".

    Raises:
        ImportError: `pycocotools` is not installed.
    """
    try:
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        what = {"segm": "masks", "bbox": "boxes"}[iou_type]
        raise ImportError(f"the AP of {what} needs pycocotools: `pip install pycocotools`") from error
    evaluation = COCOeval(iouType=iou_type)
    evaluation.params.imgIds, evaluation.params.catIds = list(range(images)), sorted(label_ids)
    evaluation.params.iouThrs = np.array(THRESHOLDS)
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.params.maxDets = [MAX_DETECTIONS]
    return evaluation


def _to_coco(rows: list[dict], label_ids: Sequence[int], size: tuple[int, int]) -> Any:
    """The rows of one image, of that height and width, as pycocotools' `COCO`."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": [{"id": 0, "height": size[0], "width": size[1]}],
        "annotations": [{"id": number, **row} for number, row in enumerate(rows, 1)],
        "categories": [{"id": label} for label in label_ids],
    }
    with redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _from_row(row: dict) -> dict:
    """A row of [`InstanceMetrics`] as an entry of `COCOeval.evalImgs`."""
    bits = 1 << np.arange(len(THRESHOLDS))[:, None]
    matches, ignored = (np.array(row[name], dtype=np.int64)[None] & bits != 0 for name in ("matches", "ignored"))
    return {
        "dtScores": row["scores"],
        "dtMatches": matches,
        "dtIgnore": ignored,
        "gtIgnore": np.zeros(row["objects"], dtype=bool),
    }


def _to_bits(flags: np.ndarray) -> list[int]:
    """`[thresholds, detections]`, zero or not, to a number a detection."""
    return ((flags != 0) * (1 << np.arange(len(flags)))[:, None]).sum(axis=0).tolist()


__all__ = [
    "InstanceMetrics",
    "PanopticMetrics",
    "Segments",
    "coco_instances",
    "save_coco_panoptic",
    "segments_of_coco",
]
