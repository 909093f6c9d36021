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

r"""Train a DenseMLLM with the Trainer of Hugging Face.

    python train_hf.py --model_name_or_path MODEL --dataset DATA --id2label labels.json \
        --output_dir out --per_device_train_batch_size 8 --num_train_epochs 3

A sample has an `image` and any of: `segmentation` (class ids `[height, width]`, 255 is ignored), `depth` (metres
`[height, width]`, 0 is invalid), `mask` (foreground `[height, width]`) and `messages` (chat with its last answer to
learn). All that is there is supervised at once.
"""

import json
import os
from dataclasses import dataclass, field

import numpy as np
import torch
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from tqdm.auto import tqdm
from transformers import HfArgumentParser, Trainer, TrainingArguments, set_seed

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor
from densemllm.data_densemllm import DenseCollator
from densemllm.evaluation_densemllm import DepthMetrics, SegmentationMetrics
from densemllm.loss_densemllm import supervised_tokens


class DenseTrainer(Trainer):
    """`Trainer` that divides the NTP-M loss by the global count of supervised vision tokens, as `Trainer` itself does
    with the text loss and its labels: the same data gives the same gradients however it is spread over accumulation
    steps and processes."""

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        # Both counts travel as one tensor through the Trainer's own code, which only hands it on to `compute_loss`.
        counts = torch.zeros(2, dtype=torch.long)
        for batch in batch_samples:
            if "labels" in batch:
                counts[0] += (batch["labels"][..., 1:] != -100).sum().cpu()
            if "dense_targets" in batch:
                counts[1] += supervised_tokens(batch["dense_targets"], batch["dense_candidates"]).sum().cpu()
        counts = counts.to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            counts = self.accelerator.gather(counts[None]).sum(dim=0)
        return counts.clamp(min=1)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if num_items_in_batch is not None:
            inputs = {**inputs, "num_dense_items_in_batch": num_items_in_batch[1]}
            num_items_in_batch = num_items_in_batch[0]
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def evaluate_dense(
    model: DenseMLLMForConditionalGeneration,
    processor: DenseMLLMProcessor,
    samples,
    id2label: dict[int, str] | None = None,
    depth_range: str | None = None,
    batch_size: int = 8,
) -> dict:
    """mIoU and depth metrics of `predict_dense` on annotated samples, at the annotations' own size.

    Args:
        model, processor: what is measured.
        samples: sequence of samples with `image` and `segmentation`, `depth` or both.
        id2label: class id to name; segmentation is left out without it.
        depth_range: as for `predict_dense`.
        batch_size: images a forward pass.

    Returns:
        what [`SegmentationMetrics`] and [`DepthMetrics`] compute.
    """
    model.eval()
    segmentation = SegmentationMetrics(max(id2label) + 1) if id2label else None
    depth = DepthMetrics()
    for start in tqdm(range(0, len(samples), batch_size), desc="evaluating", leave=False):
        batch = [samples[index] for index in range(start, min(start + batch_size, len(samples)))]
        tasks = [
            name for name in ("segmentation", "depth")
            if batch[0].get(name) is not None and (name == "depth" or id2label)
        ]  # fmt: skip
        predictions = model.predict_dense(
            [sample["image"] for sample in batch], task=tuple(tasks), labels=id2label, depth_range=depth_range,
            target_sizes=[np.asarray(sample[tasks[0]]).shape for sample in batch], processor=processor,
            batch_size=batch_size,
        )  # fmt: skip
        for sample, prediction in zip(batch, predictions, strict=True):
            if "segmentation" in tasks:
                segmentation.add(prediction.segmentation, torch.as_tensor(np.array(sample["segmentation"])))
            if "depth" in tasks:
                depth.add(prediction.predicted_depth, torch.as_tensor(np.array(sample["depth"], dtype=np.float32)))
    return {**(segmentation.compute() if segmentation else {}), **(depth.compute() if depth.pixels else {})}


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "folder or Hub name of a DenseMLLM checkpoint"})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "run the code that the checkpoint's tokenizer brings"}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flash_attention_2, ..."})
    dtype: str = field(default="auto", metadata={"help": "auto, float32, bfloat16 or float16"})


@dataclass
class DataArguments:
    dataset: str = field(metadata={"help": "folder of `save_to_disk`, or whatever `load_dataset` takes"})
    id2label: str | None = field(default=None, metadata={"help": "JSON file: class id to name"})
    depth_range: str | None = field(default=None, metadata={"help": "row of the config's `depth_ranges`"})
    train_split: str = field(default="train", metadata={"help": "split to train on"})
    eval_split: str | None = field(default=None, metadata={"help": "split to evaluate on after training"})
    candidates: str = field(
        default="vocabulary", metadata={"help": "negatives of a segmentation: vocabulary, or labels only"}
    )


def load_split(name: str, split: str) -> Dataset:
    """A split of a folder that `save_to_disk` wrote, or of whatever `load_dataset` takes."""
    if not os.path.isdir(name) or not any(
        os.path.isfile(os.path.join(name, file)) for file in ("state.json", "dataset_dict.json")
    ):
        return load_dataset(name, split=split)
    data = load_from_disk(name)
    if isinstance(data, DatasetDict):
        if split not in data:
            raise ValueError(f"`dataset` has the splits {sorted(data)}, not {split!r}")
        return data[split]
    return data


def main(arguments: list[str] | None = None) -> dict:
    """The script: train, save model and processor, evaluate. Returns the metrics."""
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    model_args, data_args, args = parser.parse_args_into_dataclasses(arguments)
    args.remove_unused_columns = False  # the collator makes the model's inputs out of the samples' columns
    if args.n_gpu > 1:
        raise ValueError("packed images can't be split by DataParallel; use `torchrun` or `accelerate launch`")
    set_seed(args.seed)
    id2label = None
    if data_args.id2label is not None:
        with open(data_args.id2label, encoding="utf-8") as file:
            id2label = {int(key): name for key, name in json.load(file).items()}

    processor = DenseMLLMProcessor.from_pretrained(
        model_args.model_name_or_path, trust_remote_code=model_args.trust_remote_code
    )
    model = DenseMLLMForConditionalGeneration.from_pretrained(
        model_args.model_name_or_path, dtype=model_args.dtype, attn_implementation=model_args.attn_implementation
    )
    trainer = DenseTrainer(
        model=model,
        args=args,
        train_dataset=load_split(data_args.dataset, data_args.train_split),
        data_collator=DenseCollator(processor, id2label, data_args.depth_range, data_args.candidates),
        processing_class=processor,
    )
    metrics = dict(trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics)
    trainer.save_model()  # with the processor
    if data_args.eval_split is not None and trainer.is_world_process_zero():
        data = load_split(data_args.dataset, data_args.eval_split)
        metrics |= evaluate_dense(
            model, processor, data, id2label, data_args.depth_range, args.per_device_eval_batch_size
        )
        trainer.save_metrics("all", metrics, combined=False)
        print(json.dumps({name: value for name, value in metrics.items() if not isinstance(value, list)}, indent=2))
    return metrics


if __name__ == "__main__":
    main()
