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

import numpy as np
import torch
from tqdm.auto import tqdm

from .processing_densemllm import DenseMLLMProcessor


class SegmentationMetrics:
    """mIoU and pixel accuracy from one confusion matrix over the whole data set.

    Args:
        num_labels: number of classes.
        ignore_index: value of reference pixels that don't count.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255):
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        # Last column: predicted as none of the classes.
        self.totals = torch.zeros(num_labels, num_labels + 1, dtype=torch.long)

    def add(self, prediction: torch.Tensor, reference: torch.Tensor) -> None:
        """Add one image: class ids `[height, width]`; negative predictions are none of the classes."""
        prediction, reference = torch.as_tensor(prediction).long(), torch.as_tensor(reference).long()
        if prediction.shape != reference.shape:
            raise ValueError(f"`prediction` is {tuple(prediction.shape)}, but `reference` {tuple(reference.shape)}")
        counted = reference != self.ignore_index
        prediction, reference = prediction[counted], reference[counted]
        prediction = prediction.masked_fill(prediction < 0, self.num_labels)
        for name, values, high in (
            ("prediction", prediction, self.num_labels),
            ("reference", reference, self.num_labels - 1),
        ):
            if values.numel() and not (0 <= int(values.min()) and int(values.max()) <= high):
                raise ValueError(f"`{name}` has the class id {int(values.max())}; there are {self.num_labels} classes")
        cells = torch.bincount(reference * (self.num_labels + 1) + prediction, minlength=self.totals.numel())
        self.totals += cells.view_as(self.totals)

    def compute(self) -> dict:
        """`mean_iou` over the classes that occur in references or predictions, `pixel_accuracy`, and `per_label_iou`
        (NaN where a class does not occur)."""
        hits = self.totals[:, :-1].diagonal().double()
        union = self.totals.sum(dim=1) + self.totals[:, :-1].sum(dim=0) - self.totals[:, :-1].diagonal()
        iou = hits / union  # 0 / 0 is NaN: the class occurs nowhere
        return {
            "mean_iou": float(iou.nanmean()),
            "pixel_accuracy": float(hits.sum() / self.totals.sum()),
            "per_label_iou": iou.tolist(),
        }


class DepthMetrics:
    """Depth metrics over all valid pixels of a data set: the share with max(d / d*, d* / d) below 1.25, 1.25^2 and
    1.25^3, mean |d - d*| / d*, and the root of the mean squared difference in metres."""

    def __init__(self):
        self.totals = torch.zeros(6, dtype=torch.float64)

    def add(self, prediction: torch.Tensor, reference: torch.Tensor) -> None:
        """Add one image: metres `[height, width]`; reference pixels that are not finite and above 0 don't count."""
        prediction, reference = torch.as_tensor(prediction).double(), torch.as_tensor(reference).double()
        if prediction.shape != reference.shape:
            raise ValueError(f"`prediction` is {tuple(prediction.shape)}, but `reference` {tuple(reference.shape)}")
        counted = reference.isfinite() & (reference > 0)
        prediction, reference = prediction[counted].clamp(min=1e-6), reference[counted]
        ratio = torch.maximum(prediction / reference, reference / prediction)
        difference = (prediction - reference).abs()
        sums = [(ratio < 1.25**power).sum() for power in (1, 2, 3)]
        self.totals += torch.stack([counted.sum(), *sums, (difference / reference).sum(), difference.square().sum()])

    def compute(self) -> dict:
        """`delta1`, `delta2`, `delta3`, `abs_rel` and `rmse` (metres); NaN without a valid pixel."""
        delta1, delta2, delta3, abs_rel, square = (self.totals[1:] / self.totals[0]).tolist()
        return {"delta1": delta1, "delta2": delta2, "delta3": delta3, "abs_rel": abs_rel, "rmse": square**0.5}


class ReferringMetrics:
    """cIoU and gIoU of masks: the intersections of all images over their unions, and the mean of each image's IoU."""

    def __init__(self):
        self.totals = torch.zeros(4, dtype=torch.float64)

    def add(self, prediction: torch.Tensor, reference: torch.Tensor) -> None:
        """Add one image: booleans `[height, width]`. Two empty masks agree."""
        prediction, reference = torch.as_tensor(prediction).bool(), torch.as_tensor(reference).bool()
        if prediction.shape != reference.shape:
            raise ValueError(f"`prediction` is {tuple(prediction.shape)}, but `reference` {tuple(reference.shape)}")
        intersection, union = (prediction & reference).sum().item(), (prediction | reference).sum().item()
        self.totals += torch.tensor([1, intersection, union, intersection / union if union else 1.0])

    def compute(self) -> dict:
        """`ciou` and `giou`; NaN without an image."""
        count, intersection, union, iou = self.totals.tolist()
        ciou = intersection / union if union else float("nan")
        return {"ciou": ciou, "giou": iou / count if count else float("nan")}


def evaluate_dense(
    model,
    processor: DenseMLLMProcessor,
    samples,
    id2label: dict[int, str] | None = None,
    depth_range: str | None = None,
    batch_size: int = 8,
    accelerator=None,
) -> dict:
    """Metrics of `predict_dense` on annotated samples, at the annotations' own size.

    Args:
        model: a [`DenseMLLMForConditionalGeneration`].
        processor: its processor.
        samples: sequence of samples with `image` and any of `segmentation`, `depth`, and `mask` with `expression`; see
            [`DenseDataset`].
        id2label: class id to name; segmentation is left out without it.
        depth_range: as for `predict_dense`.
        batch_size: images a forward pass.
        accelerator (`accelerate.Accelerator`, *optional*): share the samples among its processes; each returns the
            metrics over all of them.

    Returns:
        what [`SegmentationMetrics`], [`DepthMetrics`] and [`ReferringMetrics`] compute, of those that had a sample.
    """
    was_training = model.training
    model.eval()
    metrics = {"depth": DepthMetrics(), "referring": ReferringMetrics()}
    if id2label:
        metrics["segmentation"] = SegmentationMetrics(max(id2label) + 1)
    first, processes = (accelerator.process_index, accelerator.num_processes) if accelerator is not None else (0, 1)
    indices = range(first, len(samples), processes)
    starts = range(0, len(indices), batch_size)
    options = {"processor": processor, "batch_size": batch_size}
    for start in tqdm(starts, desc="evaluating", leave=False, disable=first > 0):
        # Images with the same annotations share a forward pass.
        groups: dict[tuple, list[dict]] = {}
        for index in indices[start : start + batch_size]:
            sample = samples[index]
            tasks = [
                task
                for task, column in (("segmentation", "segmentation"), ("depth", "depth"), ("referring", "expression"))
                if task in metrics and sample.get(column) is not None
            ]
            for shared in (tuple(task for task in tasks if task != "referring"), ("referring",)):
                if shared and set(shared) <= set(tasks):
                    groups.setdefault(shared, []).append(sample)
        for tasks, group in groups.items():
            field = {"referring": "mask"}.get(tasks[0], tasks[0])
            predictions = model.predict_dense(
                [sample["image"] for sample in group],
                task=tasks,
                labels=id2label if "segmentation" in tasks else None,
                text=[sample["expression"] for sample in group] if "referring" in tasks else None,
                depth_range=depth_range,
                target_sizes=[np.asarray(sample[field]).shape for sample in group],
                **options,
            )
            for sample, prediction in zip(group, predictions, strict=True):
                if "segmentation" in tasks:
                    metrics["segmentation"].add(prediction.segmentation, np.array(sample["segmentation"]))
                if "depth" in tasks:
                    depth = np.array(sample["depth"], dtype=np.float32)
                    metrics["depth"].add(prediction.predicted_depth, depth)
                if "referring" in tasks:
                    metrics["referring"].add(prediction.mask, np.array(sample["mask"]) > 0)
    results = {}
    for metric in metrics.values():
        if processes > 1:
            metric.totals = accelerator.reduce(metric.totals.to(accelerator.device)).cpu()
        if metric.totals.sum() > 0:
            results |= metric.compute()
    model.train(was_training)
    return results


__all__ = ["DepthMetrics", "ReferringMetrics", "SegmentationMetrics", "evaluate_dense"]
