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
"""Referring segmentation in lmms-eval: documents, answers to masks, and cIoU, gIoU and boundary IoU.

A document is one expression: `image`, `expression` and what it names. That is `mask`, an image of the foreground as in
a sample of densemllm, or COCO's run lengths; or `segmentation`, a polygon, as lmms-eval's RefCOCO has it.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from loguru import logger

from densemllm.answers_densemllm import decode_rle
from densemllm.evaluation.metrics import ReferringMetrics
from densemllm.formats.coco_index import object_mask
from densemllm.training.samples import read_sample


if TYPE_CHECKING:
    from datasets import Dataset


def doc_to_visual(doc: dict[str, Any]) -> list[PIL.Image.Image]:
    """The image of a document, upright RGB."""
    return [read_sample({"image": doc["image"]}, "document")["image"]]


def doc_to_text(doc: dict[str, Any]) -> str:
    """The expression alone: `densemllm` and `sam3` answer it with a mask."""
    return doc["expression"]


def doc_to_target(doc: dict[str, Any]) -> str:
    """The expression again: what is true is a mask, which has no place in a table."""
    return doc["expression"]


def one_row_each(data: "Dataset") -> "Dataset":
    """RefCOCO as lmms-eval has it, an object a row with all its expressions in `answer`, with a row for each
    `expression`, as published figures count them. Rows of one image stay together; `datasets` keeps the longer table
    in its cache, images included."""
    answers = data["answer"]
    rows = [row for row, texts in enumerate(answers) for _ in texts]
    return data.select(rows).add_column("expression", [text for texts in answers for text in texts])


def reference(doc: dict[str, Any]) -> np.ndarray:
    """What a document's expression names: booleans `[height, width]`, or `int8`, -1 where it isn't annotated.

    Raises:
        ValueError: there is neither `mask` nor `segmentation`, or nothing that can be read as one.
    """
    mask = doc.get("mask")
    if isinstance(mask, dict) and mask.get("counts") is not None:
        return decode_rle(mask)
    if mask is not None:
        return read_sample({"image": doc["image"], "mask": mask}, "document")["mask"]
    if not isinstance(doc.get("segmentation"), list):
        raise ValueError(f"the document must have `mask`, or a polygon as `segmentation`, got {sorted(doc)}")
    width, height = doc["image"].size
    return object_mask({"segmentation": doc["segmentation"]}, height, width, "document")


def read_answer(answer: str, size: tuple[int, int]) -> np.ndarray | None:
    """The mask that a model answered with: all of `masks` in the JSON text of lmms-eval's `sam3`, put together.

    Args:
        answer: `{"masks": [{"size": [H, W], "counts": "..."}, ...], ...}`; no mask is an empty one.
        size: `(height, width)` of the document's mask.

    Returns:
        booleans `[height, width]`; `None` where the answer is nothing of the kind, or of another size.
    """
    found = np.zeros(size, dtype=bool)
    try:
        for rle in json.loads(answer)["masks"]:
            mask = decode_rle(rle)
            if mask.shape != size:
                raise ValueError(f"a mask is {mask.shape}, but the document's is {size}")
            found |= mask
    except (KeyError, TypeError, ValueError) as error:
        logger.warning(f"an answer can't be read as masks ({error!r}): {answer[:200]!r}")
        return None
    return found


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """What one document adds to the sums of [`ReferringMetrics`], for each metric, and whether its answer couldn't be
    read; then nothing is hit, even where the expression names nothing."""
    true = reference(doc)
    found = read_answer(results[0] if results else "", true.shape)
    if found is None:
        sums = [1.0, 0.0, float((true > 0).sum()), 0.0, 0.0]
    else:
        sums = ReferringMetrics().count(torch.from_numpy(found), torch.from_numpy(true)).tolist()
    return {"ciou": sums, "giou": sums, "boundary_iou": sums, "unreadable": float(found is None)}


def _compute(name: str, sums: Sequence[Sequence[float]]) -> float:
    return ReferringMetrics().compute(torch.tensor(sums, dtype=torch.float64).sum(dim=0))[name]


def ciou(sums: Sequence[Sequence[float]]) -> float:
    """The intersections of all documents over their unions, in [0, 1]."""
    return _compute("ciou", sums)


def giou(sums: Sequence[Sequence[float]]) -> float:
    """The mean of each document's IoU, in [0, 1]."""
    return _compute("giou", sums)


def boundary_iou(sums: Sequence[Sequence[float]]) -> float:
    """The mean of each document's boundary IoU, in [0, 1]."""
    return _compute("boundary_iou", sums)


def unreadable(flags: Sequence[float]) -> float:
    """The share of answers that are no masks, in [0, 1]."""
    return float(np.mean(flags))
