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
"""cIoU, gIoU and boundary IoU of masks."""

import datasets
import evaluate

from densemllm.evaluation.metrics import ReferringMetrics


INPUTS = """
Args:
    predictions: booleans `[height, width]` of each image.
    references: booleans `[height, width]`.
Returns:
    `ciou`, the intersections of all images over their unions, `giou`, the mean of each image's IoU, and
    `boundary_iou`, the mean of each image's.
"""


class ReferringSegmentation(evaluate.Metric):
    def _info(self):
        rows = datasets.Sequence(datasets.Sequence(datasets.Value("bool")))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Boundary IoU: Cheng et al. 2021, arXiv:2103.16562",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": rows, "references": rows}),
        )

    def _compute(self, predictions, references):
        metrics = ReferringMetrics()
        for prediction, reference in zip(predictions, references, strict=True):
            metrics.add(prediction, reference)
        return metrics.compute()
