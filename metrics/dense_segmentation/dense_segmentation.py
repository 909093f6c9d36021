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
"""mIoU, boundary IoU and pixel accuracy of class maps from one confusion matrix over all images."""

import datasets
import evaluate

from densemllm.evaluation.metrics import SegmentationMetrics


INPUTS = """
Args:
    predictions: class ids `[height, width]` of each image; negative: none of the classes.
    references: class ids `[height, width]`; images may differ in size.
    num_labels: number of classes.
    ignore_index: value of reference pixels that don't count; no class.
    label_ids: the ids of the classes, in the order of the results; 0, 1, ..., num_labels - 1 where left out.
Returns:
    `mean_iou`, `mean_boundary_iou`, `pixel_accuracy`, and `per_label_iou` and `per_label_boundary_iou`, with NaN where
    a class does not occur.
"""


class DenseSegmentation(evaluate.Metric):
    def _info(self):
        rows = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Boundary IoU: Cheng et al. 2021, arXiv:2103.16562",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": rows, "references": rows}),
        )

    def _compute(self, predictions, references, num_labels, ignore_index=255, label_ids=None):
        metrics = SegmentationMetrics(num_labels, ignore_index, label_ids)
        for prediction, reference in zip(predictions, references, strict=True):
            metrics.add(prediction, reference)
        return metrics.compute()
