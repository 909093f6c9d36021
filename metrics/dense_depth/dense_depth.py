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
"""delta1, delta2, delta3, AbsRel, RMSE and SILog of depth maps in metres."""

import datasets
import evaluate

from densemllm.evaluation.metrics import DepthMetrics


INPUTS = """
Args:
    predictions: metres `[height, width]` of each image.
    references: metres `[height, width]`; values that are not finite and above 0 don't count.
    min_depth, max_depth: limits of the references that count, in metres; predictions are clamped to them.
    crop: "none", "eigen", "garg" or "nyu": the part of the image that counts.
    average: "images" or "pixels": what weighs the same.
    align: "none", or "median": each image is scaled so that its median is that of the reference.
Returns:
    `delta1`, `delta2`, `delta3`, `abs_rel`, `rmse` (metres) and `silog` (percent).
"""


class DenseDepth(evaluate.Metric):
    def _info(self):
        rows = datasets.Sequence(datasets.Sequence(datasets.Value("float32")))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Eigen et al. 2014, arXiv:1406.2283",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": rows, "references": rows}),
        )

    def _compute(
        self, predictions, references, min_depth=None, max_depth=None, crop="none", average="images", align="none"
    ):
        metrics = DepthMetrics(min_depth, max_depth, crop, average, align)
        for prediction, reference in zip(predictions, references, strict=True):
            metrics.add(prediction, reference)
        return metrics.compute()
