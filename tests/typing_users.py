"""A user's code, for `mypy --strict` against the installed package: what is public is annotated."""

from typing import Any, assert_type

import torch

import densemllm
from densemllm import DenseMLLMConfig, DenseMLLMForConditionalGeneration, DenseMLLMProcessor, DensePrediction


def use(path: str) -> None:
    config = DenseMLLMConfig(vision_attention="bidirectional")
    assert_type(config.label_names, dict[int, str] | None)
    model = DenseMLLMForConditionalGeneration.from_pretrained(path)
    assert_type(model, DenseMLLMForConditionalGeneration)
    processor = DenseMLLMProcessor.from_pretrained(path)
    assert_type(processor.normalize_labels(["wall", "floor"]), dict[int, str])

    one = model.predict_dense("photo.jpg", task="depth", focal_length=500.0)
    assert_type(one, DensePrediction)
    assert_type(one.predicted_depth, torch.Tensor | None)
    many = model.predict_dense(["a.jpg", "b.jpg"], task=("segmentation", "depth"), labels={0: "wall", 1: "floor"})
    assert_type(many, list[DensePrediction])
    encoded = model.encode_image("photo.jpg")
    assert_type(model.query(encoded, "what is it?"), str)
    found = model.predict("photo.jpg", task="detection")
    assert_type(found, dict[str, Any])
    assert_type(densemllm.__version__, str)
