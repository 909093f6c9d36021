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
"""Precision, recall and F1, micro-averaged, between lists of names and the names that are true."""

import datasets
import evaluate

from densemllm.evaluation.metrics import ClassListMetrics


INPUTS = """
Args:
    predictions: names that were given for each image.
    references: names that are true of it.
Returns:
    `precision`, `recall` and `f1`.
"""


class ClassList(evaluate.Metric):
    def _info(self):
        names = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": names, "references": names}),
        )

    def _compute(self, predictions, references):
        metrics = ClassListMetrics()
        for prediction, reference in zip(predictions, references, strict=True):
            metrics.add(prediction, reference)
        return metrics.compute()
