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
r"""Pretrain the tower of `make_model.py` on what each patch shows: the paper's tower comes pretrained, too.

    python examples/rooms/pretrain_tower.py --model_name_or_path out/rooms/untrained --data out/rooms/data \
        --output_dir out/rooms/pretrained

Each patch of 8x8 pixels learns the shares of the classes in it and its depth, by one linear layer on the tower's
output, which is thrown away afterwards. A step takes 0.6 of the time of one of the whole model
(`benchmarks/rooms_step.py`), and a patch says more than the cell of 16x16 pixels that a vision token stands for.
Writes the whole model with that tower, and the processor, for `train_hf.py`. The same command goes on where it was
stopped.
"""

import argparse
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor
from densemllm.files import OVERWRITE_HELP, check_outputs_of_script
from densemllm.formats.folders import load_samples
from densemllm.formats.labels import load_id2label
from densemllm.loading_densemllm import computes_bfloat16
from densemllm.targets_densemllm import nearest_resize
from densemllm.training.datasets import DenseDataset, DenseSource
from densemllm.training.optimizers import MuonWithAdamW
from densemllm.training.samples import Augmentation
from densemllm.training.trainer import SetEpoch


WEIGHT_DECAY = 0.05


class PatchCollator:
    """Samples to packed patches with `shares`, `float32 [n_patches, num_labels]`, the share of its known pixels that
    each class has (0 where none is known), and `log_depth`, `float32 [n_patches]`, the mean logarithm of metres at
    the focal length of the depth range (NaN where none is known)."""

    def __init__(self, processor: DenseMLLMProcessor, num_labels: int):
        self.processor, self.num_labels = processor, num_labels

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        image_processor, pictures, shares, log_depths = self.processor.image_processor, [], [], []
        for sample in samples:
            # As `DenseCollator` and `predict_dense` resize it.
            picture, scale = sample["image"], self.processor.get_scale(sample["focal_length"])
            height, width = image_processor.get_resized_size(picture.height, picture.width, {"scale": scale})
            pictures.append(picture.resize((width, height), PIL.Image.Resampling.BILINEAR))
            classes = self.patches_of(sample["segmentation"], height, width)  # [n_patches, pixels of a patch]
            found = np.stack([(classes == label).sum(axis=1) for label in range(self.num_labels)], axis=1)
            shares.append(found / found.sum(axis=1, keepdims=True).clip(min=1))
            # Whole cells make a picture a little larger than its focal length asks for: what is seen is as near.
            nearer = (height * width / (sample["image"].height * sample["image"].width)) ** 0.5 / scale
            depth = self.patches_of(sample["depth"] / nearer, height, width)
            known = depth > 0
            log_depth = np.log(depth.clip(min=1e-3)).sum(axis=1, where=known)
            log_depths.append(np.where(known.any(axis=1), log_depth / known.sum(axis=1).clip(min=1), np.nan))
        inputs = image_processor(images=pictures, return_tensors="pt")
        return {
            **inputs,
            "shares": torch.from_numpy(np.concatenate(shares)).float(),
            "log_depth": torch.from_numpy(np.concatenate(log_depths)).float(),
        }

    def patches_of(self, values: np.ndarray, height: int, width: int) -> np.ndarray:
        image_processor = self.processor.image_processor
        values = nearest_resize(values, height, width)[None]
        return image_processor.patchify(values, image_processor.patch_size, image_processor.merge_size)[0]


class TowerWithHeads(nn.Module):
    """The tower and one linear layer, whose loss is the cross entropy of the classes' shares plus the absolute error
    of the logarithm of metres."""

    def __init__(self, tower: nn.Module, num_labels: int):
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(tower.config.hidden_size, num_labels + 1)

    def forward(self, pixel_values, image_grid_thw, shares, log_depth) -> dict[str, torch.Tensor]:
        scores = self.head(self.tower(pixel_values, image_grid_thw).last_hidden_state).float()
        known = ~log_depth.isnan()
        depth_loss = F.l1_loss(scores[known, -1], log_depth[known])
        return {"loss": F.cross_entropy(scores[:, :-1], shares) + depth_loss}


def make_optimizer(model: TowerWithHeads, learning_rate: float, muon_learning_rate: float) -> MuonWithAdamW:
    """As `DenseTrainer` makes it: Muon for the matrices between hidden states."""
    ends = {id(model.head.weight), id(model.tower.get_input_embeddings().weight)}
    groups = {"muon": [], "decayed": [], "others": []}
    for parameter in model.parameters():
        matrix = "decayed" if id(parameter) in ends else "muon"
        groups[matrix if parameter.ndim == 2 else "others"].append(parameter)
    rates = {"learning_rate": learning_rate, "muon_learning_rate": muon_learning_rate}
    return MuonWithAdamW.of_parameters(**groups, **rates, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="folder that make_model.py wrote")
    parser.add_argument("--data", type=Path, required=True, help="folder that render.py wrote")
    parser.add_argument("--output_dir", type=Path, required=True, help="where model and processor are saved")
    parser.add_argument("--max_steps", type=int, default=3000)
    parser.add_argument("--batch_size", type=int, default=16, help="of each process")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="of AdamW")
    parser.add_argument("--muon_learning_rate", type=float, default=5e-3)
    parser.add_argument("--depth_scale", type=float, default=0.002, help="metres a unit of the data's depth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args(arguments)
    work = args.output_dir / "work"  # a run of this command that goes on replaces its own model
    outputs = [args.output_dir / name for name in ("config.json", "model.safetensors")]
    inputs, overwrite = [args.model_name_or_path], args.overwrite or work.is_dir()
    check_outputs_of_script(parser, outputs, inputs, overwrite, "--output_dir")
    set_seed(args.seed)
    processor = DenseMLLMProcessor.from_pretrained(args.model_name_or_path)
    # torch's attention in blocks takes longer than plain products here, for windows of 64 patches most of all.
    model = DenseMLLMForConditionalGeneration.from_pretrained(args.model_name_or_path, attn_implementation="eager")
    id2label = load_id2label(str(args.data / "id2label.json"))
    source = DenseSource(
        load_samples(str(args.data), "train"), None, id2label, args.depth_scale,
        columns=("image", "segmentation", "depth", "focal_length"),
    )  # fmt: skip
    augmentation = Augmentation(scale=(0.54, 0.94), flip_probability=0.5, color_jitter=0.5)
    learner = TowerWithHeads(model.model.vision_tower, len(id2label))
    training_args = TrainingArguments(
        output_dir=str(work), max_steps=args.max_steps, per_device_train_batch_size=args.batch_size,
        bf16=torch.cuda.is_available() or computes_bfloat16("cpu"),
        lr_scheduler_type="cosine", warmup_steps=100, max_grad_norm=1.0, dataloader_num_workers=1,
        dataloader_persistent_workers=True,
        remove_unused_columns=False, logging_steps=50, save_steps=100, save_total_limit=1, report_to="none",
        seed=args.seed, use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    trainer = Trainer(
        learner, training_args, data_collator=PatchCollator(processor, len(id2label)),
        train_dataset=DenseDataset(source, augmentation, seed=args.seed),
        optimizers=(make_optimizer(learner, args.learning_rate, args.muon_learning_rate), None),
        callbacks=[SetEpoch()],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)) if work.is_dir() else None)
    trainer.save_state()
    if trainer.is_world_process_zero():
        model.save_pretrained(args.output_dir)
        processor.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
