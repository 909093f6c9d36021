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

"""Metrics of dense prediction, gathered over a data set image by image."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..answers_densemllm import normalize_name
from ..targets_densemllm import IGNORE_INDEX, check_ignore_index, index_values


if TYPE_CHECKING:
    from accelerate import Accelerator


# Parts of the image on which depth is compared by convention: top, bottom, left and right as shares of its edges.
# "eigen" and "garg" are those for KITTI, "nyu" is rows 45 to 470 and columns 41 to 600 of NYUv2's 480x640.
CROPS = {
    "none": (0.0, 1.0, 0.0, 1.0),
    "eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "nyu": (45 / 480, 471 / 480, 41 / 640, 601 / 640),
}
BOUNDARY_WIDTH = 0.02  # share of the image's diagonal
ANGLE_STEP = 0.05  # degrees, of the histogram of [`NormalsMetrics`]


@dataclass(frozen=True)
class Metric:
    """What is said of a metric wherever it is named.

    Attributes:
        name: what tables and cards call it.
        hub_task: the task of the Hub under which a model card lists it.
        greater_is_better: whether more of it is better.
    """

    name: str
    hub_task: str
    greater_is_better: bool = True


# What the classes below compute, by its key in their results; cards list them in this order.
METRICS = {
    "mean_iou": Metric("mIoU", "image-segmentation"),
    "pixel_accuracy": Metric("pixel accuracy", "image-segmentation"),
    "delta1": Metric("delta1", "depth-estimation"),
    "abs_rel": Metric("AbsRel", "depth-estimation", greater_is_better=False),
    "rmse": Metric("RMSE (metres)", "depth-estimation", greater_is_better=False),
    "ciou": Metric("referring cIoU", "image-segmentation"),
    "giou": Metric("referring gIoU", "image-segmentation"),
    "mean_boundary_iou": Metric("mean boundary IoU", "image-segmentation"),
    "delta2": Metric("delta2", "depth-estimation"),
    "delta3": Metric("delta3", "depth-estimation"),
    "silog": Metric("SILog (percent)", "depth-estimation", greater_is_better=False),
    "boundary_iou": Metric("referring boundary IoU", "image-segmentation"),
    "precision": Metric("class list precision", "image-text-to-text"),
    "recall": Metric("class list recall", "image-text-to-text"),
    "f1": Metric("class list F1", "image-text-to-text"),
    # The Hub has no task of normals.
    "mean_angle": Metric("mean angle (degrees)", "depth-estimation", greater_is_better=False),
    "median_angle": Metric("median angle (degrees)", "depth-estimation", greater_is_better=False),
    "under_11_25": Metric("angle under 11.25 degrees", "depth-estimation"),
    "under_22_5": Metric("angle under 22.5 degrees", "depth-estimation"),
    "under_30": Metric("angle under 30 degrees", "depth-estimation"),
    "pq": Metric("PQ", "image-segmentation"),
    "sq": Metric("SQ", "image-segmentation"),
    "rq": Metric("RQ", "image-segmentation"),
    "pq_things": Metric("PQ of things", "image-segmentation"),
    "sq_things": Metric("SQ of things", "image-segmentation"),
    "rq_things": Metric("RQ of things", "image-segmentation"),
    "pq_stuff": Metric("PQ of stuff", "image-segmentation"),
    "sq_stuff": Metric("SQ of stuff", "image-segmentation"),
    "rq_stuff": Metric("RQ of stuff", "image-segmentation"),
    "mask_ap": Metric("mask AP", "image-segmentation"),
    "mask_ap50": Metric("mask AP50", "image-segmentation"),
    "mask_ap75": Metric("mask AP75", "image-segmentation"),
    "box_ap": Metric("box AP", "object-detection"),
    "box_ap50": Metric("box AP50", "object-detection"),
    "box_ap75": Metric("box AP75", "object-detection"),
    "pckh": Metric("PCKh@0.5", "keypoint-detection"),
    "counting_accuracy": Metric("counting accuracy", "visual-question-answering"),
    "counting_rmse": Metric("counting RMSE", "visual-question-answering", greater_is_better=False),
    "grounding_accuracy": Metric("grounding accuracy at IoU 0.5", "image-text-to-text"),
    "perplexity": Metric("perplexity of a text", "text-generation", greater_is_better=False),
    "choice_accuracy": Metric("multiple choice accuracy", "visual-question-answering"),
}
METRIC_NAMES = {key: (metric.hub_task, metric.name) for key, metric in METRICS.items()}
GREATER_IS_BETTER = {key: metric.greater_is_better for key, metric in METRICS.items()}


def greater_is_better(metric: str | None) -> bool | None:
    """Whether more of a metric is better; `None` for one that is none of ours. `metric` may stand behind the names of
    an evaluation and of a data set, as in `eval_kitti_abs_rel`."""
    if metric is None:
        return None
    words = metric.split("_")
    endings = ("_".join(words[start:]) for start in range(len(words)))
    return next((GREATER_IS_BETTER[ending] for ending in endings if ending in GREATER_IS_BETTER), None)


class DenseMetrics(ABC):
    """Sums over images from which the metrics follow: `totals` of parts of a data set can be added up.

    `totals` is a tensor of sums that are at least 0. A metric that follows from no sums keeps something else there,
    and has its own `is_empty`, `to_record`, `add_record` and `reduce`.
    """

    totals: Any

    @abstractmethod
    def count(self, prediction: Any, reference: Any) -> Any:
        """What one image adds to `totals`."""

    def add(self, prediction: Any, reference: Any) -> None:
        """Add one image, in the form that [`count`] takes."""
        self.totals += self.count(prediction, reference)

    @abstractmethod
    def compute(self, totals: Any = None) -> dict:
        """The metrics of all images that were added, or of other `totals`."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing was counted yet."""
        return not self.totals.any()

    def to_record(self, part: Any) -> list:
        """What [`count`] gave, in a form that JSON has: places and values of what is not 0."""
        part = part.flatten()
        places = part.nonzero()[:, 0]
        return [places.tolist(), part[places].tolist()]

    def add_record(self, record: list) -> None:
        """Add what [`to_record`] gave."""
        places, values = record
        totals = self.totals.view(-1)
        totals[torch.tensor(places, dtype=torch.long)] += torch.tensor(values, dtype=totals.dtype)

    def reduce(self, accelerator: "Accelerator") -> None:
        """Make `totals` those of all processes, in each of them; all have to call it."""
        self.totals = accelerator.reduce(self.totals.to(accelerator.device)).cpu()


class SegmentationMetrics(DenseMetrics):
    """mIoU, boundary IoU and pixel accuracy from one confusion matrix over the whole data set.

    The boundary IoU of a class compares only the pixels of prediction and of reference that [`boundary_region`] finds.

    Args:
        num_labels: number of classes.
        ignore_index: value of reference pixels that don't count; no class.
        label_ids: the ids of the classes, in the order of the results; 0, 1, ..., `num_labels` - 1 where left out.
    """

    def __init__(self, num_labels: int, ignore_index: int = IGNORE_INDEX, label_ids: Sequence[int] | None = None):
        if num_labels < 1:
            raise ValueError(f"`num_labels` must be at least 1, got {num_labels}")
        if label_ids is not None and (len(set(label_ids)) != num_labels or min(label_ids) < 0):
            raise ValueError(
                f"`label_ids` must be {num_labels} different ids of at least 0, got {list(label_ids)[:10]}"
            )
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.label_ids = list(range(num_labels) if label_ids is None else label_ids)
        self._columns = {key: column for column, key in enumerate(self.label_ids)}
        check_ignore_index(ignore_index, {key: f"class {key}" for key in self.label_ids})
        # The confusion matrix, and for each class pixels of both boundaries, of the prediction's, of the reference's.
        self.totals = torch.zeros(num_labels, num_labels + 4, dtype=torch.long)

    @property
    def confusion(self) -> torch.Tensor:
        """Pixels, `int64 [num_labels, num_labels + 1]`: a row a class of the reference, a column a predicted class;
        the last column: predicted as none of the classes."""
        return self.totals[:, : self.num_labels + 1]

    def count(self, prediction: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """What one image adds: class ids `[height, width]`; negative predictions are none of the classes."""
        prediction, reference = (torch.as_tensor(values).cpu().long() for values in (prediction, reference))
        _check_shapes(prediction, reference)
        counted = reference != self.ignore_index
        # An ignored area, -1 from here on, is no part of either, so that its outline is one of both.
        prediction = self._places("prediction", prediction, counted & (prediction >= 0))
        prediction = prediction.masked_fill(counted & (prediction < 0), self.num_labels)
        reference = self._places("reference", reference, counted)
        columns = self.num_labels + 1
        cells = torch.bincount(reference[counted] * columns + prediction[counted], minlength=self.num_labels * columns)
        edges = [boundary_region(values) & counted for values in (prediction, reference)]
        both = edges[0] & edges[1] & (prediction == reference)
        boundaries = [
            torch.bincount(values[edge], minlength=columns)[: self.num_labels]
            for values, edge in ((reference, both), (prediction, edges[0]), (reference, edges[1]))
        ]
        return torch.cat([cells.view(self.num_labels, columns), torch.stack(boundaries, dim=1)], dim=1)

    def _places(self, name: str, values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        """Class ids as places in `label_ids`, -1 where they don't count."""
        present, places = index_values(values[counted].numpy())
        unknown = [key for key in present.tolist() if key not in self._columns]
        if unknown:
            raise ValueError(
                f"`{name}` has the class id {unknown[-1]}, which is none of the {self.num_labels} classes"
            )
        columns = torch.tensor([self._columns[key] for key in present.tolist()], dtype=torch.long)
        result = torch.full_like(values, -1)
        result[counted] = columns[torch.from_numpy(places)]
        return result

    def compute(self, totals: torch.Tensor | None = None) -> dict:
        """`mean_iou` and `mean_boundary_iou` over the classes that occur in references or predictions,
        `pixel_accuracy`, and `per_label_iou` and `per_label_boundary_iou` (in the order of `label_ids`, NaN where a
        class does not occur)."""
        totals = self.totals if totals is None else totals
        confusion, boundaries = totals[:, : self.num_labels + 1], totals[:, self.num_labels + 1 :]
        hits = confusion[:, :-1].diagonal()
        iou = hits / (confusion.sum(dim=1) + confusion[:, :-1].sum(dim=0) - hits).cpu().double()  # 0 / 0 is NaN
        boundary_iou = boundaries[:, 0] / (boundaries[:, 1] + boundaries[:, 2] - boundaries[:, 0]).cpu().double()
        return {
            "mean_iou": float(iou.nanmean()),
            "pixel_accuracy": float(hits.sum() / confusion.sum().cpu().double()),
            "mean_boundary_iou": float(boundary_iou.nanmean()),
            "per_label_iou": iou.tolist(),
            "per_label_boundary_iou": boundary_iou.tolist(),
        }


class DepthMetrics(DenseMetrics):
    """Depth metrics over the valid pixels of images: the share with max(d / d*, d* / d) below 1.25, 1.25^2 and
    1.25^3, AbsRel, the mean of |d - d*| / d*, RMSE, the root of the mean squared difference in metres, and SILog.

    SILog is 100 sqrt(mean(e^2) - mean(e)^2) with e = ln d - ln d* over the pixels of an image, averaged over the
    images: Eigen et al. 2014, "Depth map prediction from a single image using a multi-scale deep network", equation 1,
    as KITTI reports it, in percent. A factor on all of an image's depths doesn't change it.

    Args:
        min_depth, max_depth: only reference pixels between the two, in metres, count, and predictions are clamped to
            them; no limit where left out.
        crop: a name in `CROPS`: the part of the image that counts.
        average: `"images"`: every image with a valid pixel weighs the same, as in the literature (RMSE is then the
            mean of the images' roots); `"pixels"`: every valid pixel of the data set does.
        align: `"median"` multiplies each image's prediction by the ratio of the medians over its valid pixels, before
            any clamping, for predictions whose scale means nothing (Zhou et al. 2017, arXiv 1704.07813, section 4.1).
    """

    def __init__(
        self,
        min_depth: float | None = None,
        max_depth: float | None = None,
        crop: str = "none",
        average: str = "images",
        align: str = "none",
    ):
        low, high = 0.0 if min_depth is None else min_depth, math.inf if max_depth is None else max_depth
        if not 0 <= low < high:
            raise ValueError(
                f"`min_depth` and `max_depth` must be 0 <= min < max metres, got {min_depth}, {max_depth}"
            )
        if crop not in CROPS:
            raise ValueError(f"`crop` must be one of {sorted(CROPS)}, got {crop!r}")
        if average not in ("pixels", "images"):
            raise ValueError(f"`average` must be 'pixels' or 'images', got {average!r}")
        if align not in ("none", "median"):
            raise ValueError(f"`align` must be 'none' or 'median', got {align!r}")
        self.min_depth, self.max_depth, self.crop, self.average, self.align = low, high, crop, average, align
        # Images, the sum of their SILogs, weights, and the weighted sums of the other metrics.
        self.totals = torch.zeros(8, dtype=torch.float64, device="cpu")

    def count(self, prediction: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """What one image adds: metres `[height, width]`; reference pixels that are not finite and above 0 don't
        count."""
        # Sums over many pixels; on the CPU, as MPS has no float64.
        prediction, reference = (torch.as_tensor(values).cpu().double() for values in (prediction, reference))
        _check_shapes(prediction, reference)
        top, bottom, left, right = (
            math.floor(share * edge + 1e-6)
            for share, edge in zip(CROPS[self.crop], np.repeat(reference.shape, 2).tolist(), strict=True)
        )
        prediction, reference = prediction[top:bottom, left:right], reference[top:bottom, left:right]
        counted = reference.isfinite() & (reference > self.min_depth) & (reference < self.max_depth)
        pixels = int(counted.sum())
        if not pixels:
            return torch.zeros_like(self.totals)
        prediction, reference = prediction[counted], reference[counted]
        if self.align == "median":
            prediction = prediction * (reference.median() / prediction.median().clamp(min=1e-6))
        prediction = prediction.clamp(max(self.min_depth, 1e-6), self.max_depth)
        ratio = torch.maximum(prediction / reference, reference / prediction)
        difference = (prediction - reference).abs()
        sums = [(ratio < 1.25**power).sum() for power in (1, 2, 3)]
        sums = torch.stack([*sums, (difference / reference).sum(), difference.square().sum()])
        silog = 100 * (prediction.log() - reference.log()).std(correction=0)
        weight = torch.tensor(pixels, dtype=torch.float64, device="cpu")
        if self.average == "images":
            sums, weight = sums / pixels, torch.ones_like(weight)
            sums[-1] = sums[-1].sqrt()
        return torch.cat([torch.stack([torch.ones_like(weight), silog, weight]), sums])

    def compute(self, totals: torch.Tensor | None = None) -> dict:
        """`delta1`, `delta2`, `delta3`, `abs_rel`, `rmse` (metres), `silog` (percent); NaN without a valid pixel."""
        totals = self.totals if totals is None else totals
        delta1, delta2, delta3, abs_rel, rmse = (totals[3:] / totals[2]).tolist()
        return {
            "delta1": delta1,
            "delta2": delta2,
            "delta3": delta3,
            "abs_rel": abs_rel,
            "rmse": rmse**0.5 if self.average == "pixels" else rmse,
            "silog": float(totals[1] / totals[0]),
        }


class ReferringMetrics(DenseMetrics):
    """cIoU, gIoU and boundary IoU of masks: the intersections of all images over their unions, the mean of each
    image's IoU, and the mean of each image's IoU of the two [`boundary_region`]s."""

    def __init__(self) -> None:
        self.totals = torch.zeros(5, dtype=torch.float64, device="cpu")

    def count(self, prediction: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """What one image adds: booleans `[height, width]`. Two empty masks agree. Pixels where an integer reference is
        below 0 don't count."""
        prediction, reference = torch.as_tensor(prediction).cpu().bool(), torch.as_tensor(reference).cpu()
        _check_shapes(prediction, reference)
        counted = reference >= 0
        # An ignored area is no part of either, so that its outline is one of both.
        edges = [boundary_region(torch.where(counted, mask, -1)) & counted for mask in (prediction, reference > 0)]
        prediction, reference = prediction & counted, (reference > 0) & counted

        def overlap(one, other):
            intersection, union = (one & other).sum().item(), (one | other).sum().item()
            return intersection, union, intersection / union if union else 1.0

        edges = [mask & edge for mask, edge in zip((prediction, reference), edges, strict=True)]
        return torch.tensor(
            [1, *overlap(prediction, reference), overlap(*edges)[2]], dtype=torch.float64, device="cpu"
        )

    def compute(self, totals: torch.Tensor | None = None) -> dict:
        """`ciou`, `giou` and `boundary_iou`; NaN without an image."""
        count, intersection, union, *sums = (self.totals if totals is None else totals).tolist()
        giou, boundary_iou = (total / count if count else math.nan for total in sums)
        return {"ciou": intersection / union if union else math.nan, "giou": giou, "boundary_iou": boundary_iou}


class ClassListMetrics(DenseMetrics):
    """Precision, recall and F1 between the names that were given and those that are true, micro-averaged: hits,
    misses and false alarms are counted over all images before the ratio."""

    def __init__(self) -> None:
        self.totals = torch.zeros(4, dtype=torch.long)

    def count(self, prediction: Iterable[str], reference: Iterable[str]) -> torch.Tensor:
        """What one image adds: names, in any order; compared as [`normalize_name`] makes them."""
        for name, names in (("prediction", prediction), ("reference", reference)):
            if isinstance(names, str):
                raise ValueError(f"`{name}` must be a list of names, got the string {names!r}")
        given, true = ({normalize_name(name) for name in names} for names in (prediction, reference))
        return torch.tensor([1, len(given & true), len(given - true), len(true - given)])

    def compute(self, totals: torch.Tensor | None = None) -> dict:
        """`precision`, `recall` and `f1`; NaN where there is nothing to divide by."""
        _, hits, false, missed = (self.totals if totals is None else totals).cpu().double()
        return {
            "precision": float(hits / (hits + false)),
            "recall": float(hits / (hits + missed)),
            "f1": float(2 * hits / (2 * hits + false + missed)),
        }


class NormalsMetrics(DenseMetrics):
    """Mean and median of the angle between predicted and true normals, and the shares of pixels with an angle below
    11.25, 22.5 and 30 degrees (Fouhey et al. 2013, "Data-driven 3D primitives for single image understanding").

    Every valid pixel of the data set weighs the same, as is the custom on NYUv2 and ScanNet. The median is read from a
    histogram with steps of 0.05 degrees, so that parts of a data set can be added up: it is within a step of the exact
    one, and nearer where many pixels share the step, in which it is interpolated.
    """

    THRESHOLDS = {"under_11_25": 11.25, "under_22_5": 22.5, "under_30": 30.0}

    def __init__(self) -> None:
        # Pixels, the sum of their angles in degrees, how many are below each threshold, and the histogram.
        self.totals = torch.zeros(
            2 + len(self.THRESHOLDS) + round(180 / ANGLE_STEP), dtype=torch.float64, device="cpu"
        )

    def count(self, prediction: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """What one image adds: vectors `[height, width, 3]` in the same axes, of any length above 0. Pixels whose
        reference is not finite or (0, 0, 0) don't count; where only the prediction is, the angle is 180 degrees."""
        prediction, reference = (torch.as_tensor(values).cpu().double() for values in (prediction, reference))
        if prediction.shape != reference.shape:
            raise ValueError(f"`prediction` is {tuple(prediction.shape)}, but `reference` {tuple(reference.shape)}")
        if prediction.ndim != 3 or prediction.shape[2] != 3:
            raise ValueError(f"`prediction` is {tuple(prediction.shape)}, but must be [height, width, 3]")
        counted = _is_direction(reference)
        prediction, reference = prediction[counted], reference[counted]
        # Unlike the arc cosine, exact for small angles too.
        sine = torch.linalg.cross(prediction, reference).norm(dim=-1)
        angles = torch.atan2(sine, (prediction * reference).sum(dim=-1)).rad2deg()
        angles[~_is_direction(prediction)] = 180
        bins = round(180 / ANGLE_STEP)
        histogram = torch.bincount((angles / ANGLE_STEP).long().clamp(max=bins - 1), minlength=bins)
        below = [(angles < threshold).sum().item() for threshold in self.THRESHOLDS.values()]
        sums = torch.tensor([len(angles), angles.sum().item(), *below], dtype=torch.float64, device="cpu")
        return torch.cat([sums, histogram])

    def compute(self, totals: torch.Tensor | None = None) -> dict:
        """`mean_angle` and `median_angle` in degrees, `under_11_25`, `under_22_5` and `under_30` as shares in [0, 1];
        NaN without a valid pixel."""
        pixels, *sums = (self.totals if totals is None else totals)[: 2 + len(self.THRESHOLDS)].tolist()
        histogram = (self.totals if totals is None else totals)[2 + len(self.THRESHOLDS) :].cpu().double()
        mean, *shares = (value / pixels if pixels else math.nan for value in sums)
        return {
            "mean_angle": mean,
            "median_angle": _median(histogram),
            **dict(zip(self.THRESHOLDS, shares, strict=True)),
        }


def boundary_region(labels: torch.Tensor) -> torch.Tensor:
    """Pixels near the outline of their own region: the region minus its erosion (Cheng et al. 2021, "Boundary IoU").

    The erosion takes d = 2 % of the image's diagonal (at least 1 pixel) off by a square, d steps in each direction;
    what is outside the image belongs to no region.

    Args:
        labels: integers or booleans `[height, width]`; all regions are treated at once.

    Returns:
        `bool [height, width]`
    """
    height, width = labels.shape
    d = max(1, round(BOUNDARY_WIDTH * math.hypot(height, width)))
    framed = torch.nn.functional.pad(labels.long(), (d, d, d, d), value=-(2**31))

    # A pixel survives if no two neighbours in the square around it differ: counted with running sums, whose cost
    # doesn't depend on d.
    def changes(differ, rows, columns):
        sums = torch.nn.functional.pad(differ.int(), (1, 0, 1, 0)).cumsum(0, dtype=torch.int32).cumsum(1)
        return sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]

    beside = changes(framed[:, 1:] != framed[:, :-1], 2 * d + 1, 2 * d)
    below = changes(framed[1:] != framed[:-1], 2 * d, 2 * d + 1)
    return (beside + below) > 0


def _check_shapes(prediction: torch.Tensor, reference: torch.Tensor) -> None:
    if prediction.shape != reference.shape:
        raise ValueError(f"`prediction` is {tuple(prediction.shape)}, but `reference` {tuple(reference.shape)}")
    if prediction.ndim != 2:
        raise ValueError(f"`prediction` is {tuple(prediction.shape)}, but must be [height, width]")


def _is_direction(vectors: torch.Tensor) -> torch.Tensor:
    return vectors.isfinite().all(dim=-1) & vectors.any(dim=-1)


def _median(histogram: torch.Tensor) -> float:
    """Where half of the pixels are below, in degrees: those of a step are taken to lie evenly in it."""
    up_to = histogram.cumsum(0)
    half = float(up_to[-1]) / 2
    if half == 0:
        return math.nan
    step = int(torch.searchsorted(up_to, half))
    return ANGLE_STEP * (step + 1 - (float(up_to[step]) - half) / float(histogram[step]))


__all__ = [
    "CROPS",
    "GREATER_IS_BETTER",
    "METRICS",
    "METRIC_NAMES",
    "ClassListMetrics",
    "DenseMetrics",
    "DepthMetrics",
    "Metric",
    "NormalsMetrics",
    "ReferringMetrics",
    "SegmentationMetrics",
    "boundary_region",
    "greater_is_better",
]
