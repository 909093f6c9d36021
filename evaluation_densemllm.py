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

import torch


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
        self.confusion = torch.zeros(num_labels, num_labels + 1, dtype=torch.long)

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
        cells = torch.bincount(reference * (self.num_labels + 1) + prediction, minlength=self.confusion.numel())
        self.confusion += cells.view_as(self.confusion)

    def compute(self) -> dict:
        """`mean_iou` over the classes that occur in references or predictions, `pixel_accuracy`, and `per_label_iou`
        (NaN where a class does not occur)."""
        hits = self.confusion[:, :-1].diagonal().double()
        union = self.confusion.sum(dim=1) + self.confusion[:, :-1].sum(dim=0) - self.confusion[:, :-1].diagonal()
        iou = hits / union  # 0 / 0 is NaN: the class occurs nowhere
        return {
            "mean_iou": float(iou.nanmean()),
            "pixel_accuracy": float(hits.sum() / self.confusion.sum()),
            "per_label_iou": iou.tolist(),
        }


class DepthMetrics:
    """Depth metrics over all valid pixels of a data set: the share with max(d / d*, d* / d) below 1.25, 1.25^2 and
    1.25^3, mean |d - d*| / d*, and the root of the mean squared difference in metres."""

    def __init__(self):
        self.pixels = 0
        self.sums = torch.zeros(5, dtype=torch.float64)

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
        self.sums += torch.stack([*sums, (difference / reference).sum(), difference.square().sum()])
        self.pixels += int(counted.sum())

    def compute(self) -> dict:
        """`delta1`, `delta2`, `delta3`, `abs_rel` and `rmse` (metres); NaN without a valid pixel."""
        means = self.sums / self.pixels if self.pixels else self.sums * float("nan")
        delta1, delta2, delta3, abs_rel, square = means.tolist()
        return {"delta1": delta1, "delta2": delta2, "delta3": delta3, "abs_rel": abs_rel, "rmse": square**0.5}


__all__ = ["DepthMetrics", "SegmentationMetrics"]
