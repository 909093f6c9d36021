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
"""A checkpoint and the classes drawn by hand: which it has names for, and what it sees in a photograph."""

import numpy as np
import torch
from outlines import CLASSES, IGNORE_INDEX
from photographs import Photograph

from densemllm import DenseMLLMForConditionalGeneration, DensePrediction


def load(name: str) -> DenseMLLMForConditionalGeneration:
    """A checkpoint in float32, so that its numbers are the same everywhere."""
    return DenseMLLMForConditionalGeneration.from_pretrained(name, dtype=torch.float32).eval()


def labels_of(model: DenseMLLMForConditionalGeneration) -> dict[int, str]:
    """The classes drawn by hand that a checkpoint has a name for, by their place in `CLASSES`; all of them where it
    has no list of names.

    Raises:
        ValueError: it has none of them.
    """
    names = model.config.id2label
    known = None if names is None else {str(name).strip().lower() for name in names.values()}
    labels = {place: name for place, name in enumerate(CLASSES) if known is None or name in known}
    if not labels:
        raise ValueError(f"the checkpoint must have names among {list(CLASSES)}, got {sorted(known)[:20]}")
    return labels


def see(
    model: DenseMLLMForConditionalGeneration, photograph: Photograph, labels: dict[int, str], refine: str | None
) -> DensePrediction:
    """Classes and depth of a photograph; all of `labels` compete."""
    task = ("segmentation", "depth")
    return model.predict_dense(
        photograph.image, task, labels=labels, focal_length=photograph.focal_length, refine=refine
    )


def reference_classes(photograph: Photograph, labels: dict[int, str]) -> np.ndarray:
    """What was drawn of `labels`; all else is ignored."""
    return np.where(np.isin(photograph.classes, list(labels)), photograph.classes, IGNORE_INDEX)
