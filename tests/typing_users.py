"""A user's code, for `mypy --strict` against the installed package: what is public is annotated."""

from pathlib import Path
from typing import Any, assert_type

import numpy as np
import PIL.Image
import torch
from transformers import AutoTokenizer

import densemllm
from densemllm import (
    Augmentation,
    DenseCollator,
    DenseDataset,
    DenseMLLMConfig,
    DenseMLLMForConditionalGeneration,
    DenseMLLMForDepthEstimation,
    DenseMLLMForSemanticSegmentation,
    DenseMLLMImageProcessor,
    DenseMLLMProcessor,
    DenseMLLMVisionConfig,
    DenseMLLMVisionModel,
    DensePrediction,
    DensePredictionPipeline,
    DenseSource,
    DenseTrainer,
    DenseTrainingArguments,
    EncodedImage,
    add_dense_tokens,
    load_samples,
    ntp_m_loss,
)
from densemllm.evaluation.metrics import ClassListMetrics, DepthMetrics, ReferringMetrics, SegmentationMetrics
from densemllm.evaluation.predict import evaluate_dense


def load(path: Path) -> tuple[DenseMLLMForConditionalGeneration, DenseMLLMProcessor]:
    config = DenseMLLMConfig(vision_attention="bidirectional")
    assert_type(config.label_names, dict[int, str] | None)
    model = DenseMLLMForConditionalGeneration.from_pretrained(path, dtype=torch.bfloat16, strict=False)
    assert_type(model, DenseMLLMForConditionalGeneration)
    processor = DenseMLLMProcessor.from_pretrained(path)
    assert_type(processor, DenseMLLMProcessor)
    model.set_processor(processor)
    assert_type(model.get_processor(), DenseMLLMProcessor)
    assert_type(densemllm.__version__, str)
    return model, processor


def make_from_parts() -> None:
    tokenizer = AutoTokenizer.from_pretrained("text")
    assert_type(add_dense_tokens(tokenizer, num_depth_bins=100), int)
    vision = DenseMLLMVisionConfig(num_hidden_layers=2)
    model = DenseMLLMForConditionalGeneration.from_pretrained_parts(vision, "text", tokenizer=tokenizer)
    assert_type(model, DenseMLLMForConditionalGeneration)
    model.save_pretrained("model")
    assert_type(DenseMLLMVisionModel.from_pretrained("vision"), DenseMLLMVisionModel)
    assert_type(DenseMLLMForDepthEstimation.from_pretrained("model"), DenseMLLMForDepthEstimation)
    assert_type(DenseMLLMForSemanticSegmentation.from_pretrained("model"), DenseMLLMForSemanticSegmentation)


def predict_maps(
    model: DenseMLLMForConditionalGeneration, image: PIL.Image.Image, array: np.ndarray[Any, Any]
) -> None:
    one = model.predict_dense("photo.jpg", task="depth", focal_length=500.0)
    assert_type(one, DensePrediction)
    assert_type(one.predicted_depth, torch.Tensor | None)
    assert_type(one.to_pil(legend=True, palette="ade20k"), PIL.Image.Image)
    assert_type(one.overlay(image, alpha=0.5, palette={"wall": (120, 120, 120)}), PIL.Image.Image)
    assert_type(DensePrediction.from_dict(one.to_dict()), DensePrediction)
    files = ["a.jpg", "b.jpg"]
    many = model.predict_dense(files, task=("segmentation", "depth"), labels={0: "wall", 1: "floor"})
    assert_type(many, list[DensePrediction])
    assert_type(model.predict_dense([Path("a.jpg"), image, array, torch.zeros(3, 8, 8)]), list[DensePrediction])
    assert_type(model.predict_dense(image, "referring", text="the cup", target_sizes=(480, 640)), DensePrediction)
    assert_type(model.predict_dense(image, "referring", text=["the cup", "the chair"]), list[DensePrediction])
    assert_type(model.predict_dense(image, "referring", box=(0, 0, 10, 20)), DensePrediction)
    some = model.predict_dense(files, labels=["wall", "floor"], on_error="skip", scale=2.0)
    assert isinstance(some, list)
    print([prediction.segments_info for prediction in some if prediction is not None])


def ask(model: DenseMLLMForConditionalGeneration, images: list[PIL.Image.Image]) -> None:
    encoded = model.encode_image("photo.jpg")
    assert_type(encoded, EncodedImage)
    assert_type(encoded.image_size, tuple[int, int])
    assert_type(model.encode_image(images, focal_length=[500.0, None]), list[EncodedImage])
    assert_type(model.query(encoded, "what is it?"), str)
    assert_type(model.query(images, ["what is it?", "where is it?"], max_new_tokens=20), list[str])
    turns = [{"role": "user", "content": "what is it?"}]
    assert_type(model.chat(encoded, turns), str)
    assert_type(model.chat(images, [turns, turns]), list[str])
    assert_type(model.predict("photo.jpg", task="detection"), dict[str, Any])
    assert_type(model.predict(images, task="counting", text="cups"), list[dict[str, Any]])
    several = model.query(encoded, "what is it?", num_return_sequences=2, do_sample=True)
    assert_type(several, str | list[str] | list[list[str]])


def process(processor: DenseMLLMProcessor, image: PIL.Image.Image) -> None:
    assert_type(processor.normalize_labels(["wall", "floor"]), dict[int, str])
    assert_type(processor.label_token_ids({0: "wall", 7: "floor"}), list[list[int]])
    assert_type(processor.bins_to_depth(processor.depth_to_bins([1.0, 2.5])), torch.Tensor)
    assert_type(processor.encode_annotations([{}], torch.tensor([[1, 4, 4]])), dict[str, torch.Tensor])
    assert_type(processor.post_process_detection("", (480, 640), (480, 640)), dict[str, Any])
    assert_type(DenseMLLMImageProcessor(max_num_patches=1024).load_picture("photo.jpg"), PIL.Image.Image)


def use_pipeline(model: DenseMLLMForConditionalGeneration, images: list[PIL.Image.Image]) -> None:
    pipe = model.as_pipeline(batch_size=4)
    assert_type(pipe, DensePredictionPipeline)
    print(pipe("photo.jpg", task="depth")["predicted_depth"])
    for prediction in pipe(images, labels=["wall", "floor"]):
        print(prediction["segmentation"])


def train(model: DenseMLLMForConditionalGeneration, processor: DenseMLLMProcessor) -> None:
    source = DenseSource(load_samples("rooms"), id2label={0: "wall", 1: "floor"})
    dataset = DenseDataset(source, Augmentation(flip_probability=0.5))
    args = DenseTrainingArguments(output_dir="out", muon_learning_rate=1e-3)
    trainer = DenseTrainer(model, args, train_dataset=dataset, data_collator=DenseCollator(processor))
    print(trainer.train().training_loss)
    targets, candidates, ranges = torch.tensor([[3]]), torch.tensor([[0]]), torch.tensor([[[0, 9]]])
    assert_type(ntp_m_loss(torch.zeros(1, 9), targets, candidates, ranges, top_k=4), torch.Tensor)


def measure(
    model: DenseMLLMForConditionalGeneration, processor: DenseMLLMProcessor, samples: list[dict[str, Any]]
) -> None:
    maps = torch.zeros(4, 4, dtype=torch.long)
    segmentation, depth = SegmentationMetrics(num_labels=2), DepthMetrics()
    referring, names = ReferringMetrics(), ClassListMetrics()
    segmentation.add(maps, maps)
    depth.add(maps.float(), maps.float())
    referring.add(maps.bool(), maps.bool())
    names.add(["wall"], ["wall", "floor"])
    print(segmentation.compute(), depth.compute(), referring.compute(), names.compute())
    print(evaluate_dense(model, processor, samples, {0: "wall", 1: "floor"})["mean_iou"])
