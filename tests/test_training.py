"""The collator, the trainer and the training script."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor
from densemllm.data_densemllm import DenseCollator
from densemllm.evaluation_densemllm import evaluate_dense
from densemllm.train_hf import main
from densemllm.trainer_densemllm import DenseTrainer
from tiny import make_image, make_model, make_processor


ID2LABEL = {0: "wall", 1: "floor", 2: "red ball"}


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def make_samples(count, seed=0):
    generator = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        height, width = (int(edge) for edge in generator.integers(16, 40, 2))
        samples.append(
            {
                "image": make_image(height, width, index),
                "segmentation": PIL.Image.fromarray(generator.integers(0, 3, (height, width)).astype(np.uint8)),
                "depth": generator.uniform(0.1, 8, (height, width)).astype(np.float32).tolist(),
            }
        )
    # Unequal work: one without depth, one with most of its pixels ignored.
    samples[0]["depth"] = None
    ignored = np.array(samples[1]["segmentation"])
    ignored[:, 8:] = 255
    samples[1]["segmentation"] = PIL.Image.fromarray(ignored)
    return samples


def arguments(folder, **kwargs):
    options = {"report_to": "none", "remove_unused_columns": False, "use_cpu": True, "save_strategy": "no"}
    return TrainingArguments(output_dir=str(folder), **{**options, **kwargs})


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_collated_answer_continues_the_prompt_of_generation(processor, padding_side):
    processor = make_processor()
    processor.tokenizer.padding_side = padding_side
    samples = make_samples(3)
    batch = DenseCollator(processor, ID2LABEL)(samples)
    for row, sample in enumerate(samples):
        labels = batch["labels"][row]
        present = [ID2LABEL[key] for key in ID2LABEL if key in np.unique(np.array(sample["segmentation"]))]
        answer = "The target categories include " + "".join(f"<ref>{name}</ref>" for name in present) + "."
        assert processor.tokenizer.decode(labels[labels != -100]) == answer + "<|end_of_text|>"
        own = batch["attention_mask"][row] == 1
        assert (batch["input_ids"][row][labels != -100] == labels[labels != -100]).all()
        text = processor.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "text", "text": "Segment all objects in this image."}],
                }
            ],
            add_generation_prompt=True,
        )
        prompt = processor(images=[sample["image"]], text=[text])["input_ids"][0]
        assert batch["input_ids"][row][own][: len(prompt)].tolist() == list(prompt)


def test_collator_takes_given_conversations(processor):
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": "a cat"},
    ]
    batch = DenseCollator(processor)([{"image": make_image(16, 16), "messages": messages}])
    labels = batch["labels"][0]
    assert processor.tokenizer.decode(labels[labels != -100]) == "a cat<|end_of_text|>"
    assert (batch["dense_candidates"] == -1).all()


def test_collator_puts_the_prompt_of_a_known_camera_before_the_image(processor):
    sample = {"image": make_image(16, 16), "depth": np.full((16, 16), 2.0)}
    ids = DenseCollator(processor, depth_range="camera")([sample])["input_ids"][0]
    before = ids[: int((ids == processor.image_token_id).nonzero()[0])]
    assert "depth of the camera data<|vision_start|>" in processor.tokenizer.decode(before)


def test_collator_needs_names_for_a_segmentation(processor):
    with pytest.raises(ValueError, match="`id2label` is needed"):
        DenseCollator(processor)(make_samples(2))


def test_accumulation_gives_the_same_step_as_one_batch(processor, tmp_path):
    weights = []
    for batch_size, steps in ((4, 1), (2, 2), (1, 4)):
        model = make_model(processor)
        trainer = DenseTrainer(
            model=model,
            args=arguments(
                tmp_path, per_device_train_batch_size=batch_size, gradient_accumulation_steps=steps, max_steps=1,
                optim="sgd", learning_rate=0.1, max_grad_norm=0, lr_scheduler_type="constant",
            ),
            train_dataset=make_samples(4),
            data_collator=DenseCollator(processor, ID2LABEL),
        )  # fmt: skip
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        trainer.train()
        weights.append({name: p.detach() - before[name] for name, p in model.named_parameters()})
    assert max(float(change.abs().max()) for change in weights[0].values()) > 1e-3
    for other in weights[1:]:
        for name, change in weights[0].items():
            torch.testing.assert_close(other[name], change, atol=1e-6, rtol=1e-4, msg=name)


def test_evaluation_counts_every_annotated_pixel(processor):
    model = make_model(processor)
    samples = make_samples(5)[1:]
    metrics = evaluate_dense(model, processor, samples, ID2LABEL, batch_size=3)
    hits = total = 0
    for sample in samples:
        predicted = model.predict_dense(sample["image"], labels=ID2LABEL, processor=processor).segmentation.numpy()
        reference = np.array(sample["segmentation"])
        hits += int(((predicted == reference) & (reference != 255)).sum())
        total += int((reference != 255).sum())
    assert metrics["pixel_accuracy"] == pytest.approx(hits / total, abs=1e-3)
    assert 0 <= metrics["delta1"] <= metrics["delta2"] <= metrics["delta3"] <= 1


@pytest.mark.slow
def test_the_script_trains_saves_and_evaluates(processor, tmp_path):
    make_model(processor).save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    Dataset.from_list(make_samples(6)[1:]).save_to_disk(tmp_path / "data")
    (tmp_path / "id2label.json").write_text(json.dumps(ID2LABEL))
    metrics = main(
        [
            "--model_name_or_path", str(tmp_path / "start"), "--dataset", str(tmp_path / "data"),
            "--id2label", str(tmp_path / "id2label.json"), "--output_dir", str(tmp_path / "out"),
            "--per_device_train_batch_size", "2", "--max_steps", "4", "--learning_rate", "1e-3",
            "--eval_split", "train", "--report_to", "none", "--use_cpu",
        ]
    )  # fmt: skip
    assert 0 <= metrics["eval_mean_iou"] <= 1 and metrics["train_loss"] > 0
    model = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path / "out")
    processor = DenseMLLMProcessor.from_pretrained(tmp_path / "out")
    again = evaluate_dense(model, processor, make_samples(6)[1:], ID2LABEL)
    assert again["mean_iou"] == pytest.approx(metrics["eval_mean_iou"], abs=1e-3)
    start = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path / "start")
    assert not torch.equal(start.lm_head.weight, model.lm_head.weight)
