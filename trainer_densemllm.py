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
"""The Trainer of Hugging Face for DenseMLLM: exact normalisation of both losses, dense metrics, whole checkpoints."""

import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from accelerate.data_loader import IterableDatasetShard
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from transformers.utils import logging

from .data_densemllm import DenseDataset, DenseIterableDataset
from .evaluation_densemllm import evaluate_dense
from .loss_densemllm import supervised_tokens


logger = logging.get_logger(__name__)

PARTS = {
    "vision_tower": "vision_tower_learning_rate",
    "multi_modal_projector": "projector_learning_rate",
    "language_model": "language_model_learning_rate",
}
SETTINGS = (
    "learning_rate", "muon_learning_rate", *PARTS.values(), "lr_scheduler_type", "weight_decay", "seed", "bf16",
)  # fmt: skip
UNFINISHED = "unfinished"  # what is being written stands in a folder of this name, beside what is whole
STATE_NAME = "trainer_state.json"
LOGGED = ("text_loss", "ntp_m_loss", "positives", "dense_tokens")  # sums of a step, averaged over the logged steps
METRIC_TASKS = {
    "mean_iou": ("image-segmentation", "mIoU"),
    "pixel_accuracy": ("image-segmentation", "pixel accuracy"),
    "delta1": ("depth-estimation", "delta1"),
    "abs_rel": ("depth-estimation", "AbsRel"),
    "rmse": ("depth-estimation", "RMSE (metres)"),
    "ciou": ("image-segmentation", "referring cIoU"),
    "giou": ("image-segmentation", "referring gIoU"),
}


@dataclass
class DenseTrainingArguments(TrainingArguments):
    """`TrainingArguments` with a learning rate for each part of the model."""

    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "always off: the collator makes the model's inputs out of the samples' columns"},
    )
    vision_tower_learning_rate: float | None = field(
        default=None, metadata={"help": "peak learning rate of the vision tower; `learning_rate` where left out"}
    )
    projector_learning_rate: float | None = field(
        default=None, metadata={"help": "peak learning rate of the projector; `learning_rate` where left out"}
    )
    language_model_learning_rate: float | None = field(
        default=None, metadata={"help": "peak learning rate of the language model; `learning_rate` where left out"}
    )
    muon_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "peak learning rate of Muon for the matrices inside tower, projector and language model; AdamW "
            "with `learning_rate` keeps embeddings, norms and biases. Left out: AdamW for all"
        },
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "stop after so many evaluations without a better `metric_for_best_model`"}
    )

    def __post_init__(self):
        super().__post_init__()
        self.remove_unused_columns = False
        for name in (*PARTS.values(), "muon_learning_rate"):
            if getattr(self, name) is not None and getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}")
        if self.muon_learning_rate is not None and any(getattr(self, name) is not None for name in PARTS.values()):
            raise ValueError(f"`muon_learning_rate` is one for all parts: leave out {', '.join(PARTS.values())}")
        # Packed images can't be cut at the first dimension, as dispatching a stream's batches would.
        self.accelerator_config.dispatch_batches = False


class SetEpoch(TrainerCallback):
    """Tell the data set its epoch: the loader's own call is lost behind a sampler that has one of its own."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        dataset = getattr(train_dataloader, "dataset", None)
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(int(state.epoch))


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` and `torch.optim.AdamW` as one, which schedulers and checkpoints take for any other.

    Muon gives a matrix's update orthonormal rows or columns, so that what few samples ask for isn't drowned by what
    all of them do (https://kellerjordan.github.io/posts/muon); it is scaled to the size of AdamW's, and takes like
    learning rates.

    Args:
        muon: its parameter groups, of matrices.
        adamw: its parameter groups, of all others.
        betas: of AdamW.
        eps: of AdamW.
    """

    def __init__(self, muon: list[dict], adamw: list[dict], betas: tuple[float, float], eps: float):
        self.parts = {
            "muon": torch.optim.Muon(muon, adjust_lr_fn="match_rms_adamw"),
            "adamw": torch.optim.AdamW(adamw, betas=betas, eps=eps),
        }
        super().__init__([group for part in self.parts.values() for group in part.param_groups], {})
        self._share()

    @classmethod
    def of_parameters(
        cls, muon: list, decayed: list, others: list, learning_rate: float, muon_learning_rate: float,
        weight_decay: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
    ) -> "MuonWithAdamW":  # fmt: skip
        """Muon for the matrices `muon`, AdamW for the other two; `others` without weight decay."""
        return cls(
            [{"params": muon, "lr": muon_learning_rate, "weight_decay": weight_decay}],
            [
                {"params": decayed, "lr": learning_rate, "weight_decay": weight_decay},
                {"params": others, "lr": learning_rate, "weight_decay": 0.0},
            ],
            betas,
            eps,
        )

    def _share(self) -> None:
        # The very groups of both: a scheduler that sets a rate here sets it there.
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]

    @property
    def state(self) -> dict:
        """What both know of their parameters; a copy, so that looking at it adds nothing."""
        return {name: values for part in self.parts.values() for name, values in part.state.items()}

    @state.setter
    def state(self, value) -> None:
        """`Optimizer.__init__` sets an empty one."""

    def step(self, closure=None):
        loss = None if closure is None else closure()
        for part in self.parts.values():
            part.step()
        return loss

    def state_dict(self) -> dict:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict) -> None:
        if set(state_dict) != set(self.parts):
            raise ValueError(
                "the checkpoint's optimizer is another one than Muon and AdamW: it was trained without "
                "`muon_learning_rate`, go on so"
            )
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self._share()


class LikeSizesSampler(torch.utils.data.Sampler):
    """Indices of a [`DenseDataset`] in random order, with samples of like sizes next to each other, so that little of
    a batch is padding. The order depends on seed and epoch alone.

    Args:
        dataset: the data set.
        batch_size: samples of one update.
        focal_lengths: see `DenseDataset.estimated_lengths`.
        seed: of the order.
    """

    def __init__(self, dataset, batch_size: int, focal_lengths: list, seed: int):
        self.dataset, self.batch_size, self.focal_lengths, self.seed = dataset, batch_size, focal_lengths, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed + self.dataset.epoch)
        order = torch.randperm(len(self.dataset), generator=generator).tolist()
        # Part by part, as large as in transformers' own grouping: the first step doesn't wait for all pictures.
        size = self.batch_size * max(1, min(len(order) // (4 * self.batch_size), 50))
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            lengths = self.dataset.estimated_lengths(self.focal_lengths, indices)
            by_length = sorted(zip(lengths, indices, strict=True), key=lambda pair: pair[0], reverse=True)
            yield from (index for _, index in by_length)


class DenseTrainer(Trainer):
    """`Trainer` for DenseMLLM.

    - The NTP-M loss is divided by the global count of supervised vision tokens (one counts once for each kind of
      annotation that it has), as `Trainer` itself does with the text loss and its labels: the same data gives the same
      gradients however it is spread over accumulation steps, processes and batches.
    - `muon_learning_rate` trains the inner matrices with Muon.
    - `train_sampling_strategy="group_by_length"` makes batches of pictures of like sizes.
    - Logs both losses, positives and supervised vision tokens a step, and tokens a second.
    - Evaluation adds mIoU, delta1, cIoU and the like, by what the samples of `eval_dataset` are annotated with.
    - A checkpoint gets its name when it is whole: one that is there can be resumed from.
    - The model card has the results in its model index.

    Takes what `Trainer` takes; `data_collator` is a [`DenseCollator`], `processing_class` its processor.
    """

    def __init__(self, model=None, args=None, **kwargs):
        super().__init__(model, args, **kwargs)
        self.args.remove_unused_columns = False  # the collator needs them all
        if self.args.label_smoothing_factor:
            raise ValueError(
                f"`label_smoothing_factor` must be 0, got {self.args.label_smoothing_factor}: it would leave out NTP-M"
            )
        evaluated = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval_dataset": self.eval_dataset}
        for name, dataset in evaluated.items():
            sources = getattr(dataset, "sources", [])
            kinds = [(source.id2label, source.depth_range, source.ignore_index) for source in sources]
            if any(kind != kinds[0] for kind in kinds):
                raise ValueError(
                    f"the sources of `{name}` differ in `id2label`, `depth_range` or `ignore_index`: no metric is of "
                    "them all. Give a dict of data sets as `eval_dataset`"
                )
        if self.args.n_gpu > 1:
            raise ValueError("packed images can't be split by DataParallel; use `torchrun` or `accelerate launch`")
        self.add_callback(SetEpoch())
        if getattr(self.args, "early_stopping_patience", None) is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))
        self._staging = False
        self._totals = torch.zeros(len(LOGGED) + 1, dtype=torch.float64, device="cpu")
        self._logged_step = self._logged_at = None

    # ---- order ----

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(dataset, DenseDataset):
            return super()._get_train_sampler(train_dataset)
        processor = self.processing_class
        focal_lengths = [
            processor.get_depth_range(source.depth_range or self.data_collator.depth_range).get("focal_length")
            for source in dataset.sources
        ]
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LikeSizesSampler(dataset, batch_size, focal_lengths, self.args.seed)

    def _get_eval_sampler(self, eval_dataset):
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(eval_dataset, DenseDataset):
            return super()._get_eval_sampler(eval_dataset)
        # In order, as `Trainer` does without that strategy; accelerate shares the batches among processes.
        return torch.utils.data.SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """The Trainer's own. Of an endless stream, each process reads its part alone, not all to keep its batches."""
        loader = super().get_train_dataloader()
        shard = loader.dataset
        if isinstance(shard, IterableDatasetShard) and isinstance(shard.dataset, DenseIterableDataset):
            if shard.dataset.repeat:
                shard.dataset.split_by_process(shard.process_index, shard.num_processes)
                shard.process_index, shard.num_processes = 0, 1
        return loader

    # ---- losses ----

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
        if self._logged_at is None and model.training:
            self._logged_at, self._logged_step = time.monotonic(), self.state.global_step
        if num_items_in_batch is not None:
            inputs = {**inputs, "num_dense_items_in_batch": num_items_in_batch[1]}
            num_items_in_batch = num_items_in_batch[0]
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            self._count(inputs, outputs)
        return (loss, outputs) if return_outputs else loss

    def _count(self, inputs: dict, outputs) -> None:
        zero = torch.zeros((), device=outputs["loss"].device)
        targets = inputs.get("dense_targets")
        counts = [
            zero if outputs.get("text_loss") is None else outputs["text_loss"].detach(),
            zero if outputs.get("ntp_m_loss") is None else outputs["ntp_m_loss"].detach(),
            zero if targets is None else (targets >= 0).sum(),
            zero if targets is None else supervised_tokens(targets, inputs["dense_candidates"]).sum(),
            inputs["attention_mask"].sum(),
        ]
        # Kept on the device: reading them here would make the host wait at every step.
        self._totals = self._totals.to(zero.device) + torch.stack([count.to(self._totals.dtype) for count in counts])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._logged_at is not None:
            totals = self._totals
            if self.args.world_size > 1:
                totals = self.accelerator.reduce(totals)
                if not self.args.average_tokens_across_devices:
                    totals[:2] /= self.args.world_size  # the losses are means then, of each process
            *sums, tokens = totals.tolist()
            steps = max(self.state.global_step - self._logged_step, 1)
            logs |= {name: value / steps for name, value in zip(LOGGED, sums, strict=True)}
            logs["tokens_per_second"] = tokens / max(time.monotonic() - self._logged_at, 1e-9)
            self._totals = torch.zeros_like(self._totals)
            self._logged_at, self._logged_step = time.monotonic(), self.state.global_step
        super().log(logs, start_time)

    # ---- optimiser ----

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        fresh = self.optimizer is None
        if fresh and getattr(self.args, "muon_learning_rate", None) is not None:
            self.optimizer = self._create_muon(self.model if model is None else model)
        optimizer = super().create_optimizer(model)
        rates = {part: getattr(self.args, name, None) for part, name in PARTS.items()}
        if not fresh or all(rate is None for rate in rates.values()):
            return optimizer
        names = {id(p): name for name, p in (self.model if model is None else model).named_parameters()}
        groups = []
        for group in optimizer.param_groups:
            by_rate = {}
            for parameter in group["params"]:
                # The output embedding belongs to the language model, whether it is tied or not.
                part = next((part for part in PARTS if part in names[id(parameter)]), "language_model")
                rate = group["lr"] if rates[part] is None else rates[part]
                by_rate.setdefault(rate, []).append(parameter)
            groups += [{**group, "params": params, "lr": rate} for rate, params in by_rate.items()]
        optimizer.param_groups[:] = groups
        return optimizer

    def _create_muon(self, model) -> MuonWithAdamW:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("`muon_learning_rate` needs whole matrices: not with FSDP or DeepSpeed")
        # What goes in and comes out is no map between hidden states.
        ends = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
        for part in model.modules():
            if isinstance(part, PreTrainedModel):
                ends += [part.get_input_embeddings(), part.get_output_embeddings()]
        ends = {id(module.weight) for module in ends if module is not None}
        decayed = set(self.get_decay_parameter_names(model))
        groups = {"muon": [], "decayed": [], "others": []}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                inner = parameter.ndim == 2 and name in decayed and id(parameter) not in ends
                groups["muon" if inner else "decayed" if name in decayed else "others"].append(parameter)
        args = self.args
        return MuonWithAdamW.of_parameters(
            **groups, learning_rate=args.learning_rate, muon_learning_rate=args.muon_learning_rate,
            weight_decay=args.weight_decay, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon,
        )  # fmt: skip

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except KeyError as error:  # of AdamW's `load_state_dict`
            path = os.path.join(checkpoint, "optimizer.pt")
            if not os.path.isfile(path) or set(torch.load(path, weights_only=True)) != {"muon", "adamw"}:
                raise
            raise ValueError(
                f"{checkpoint} has the state of Muon and AdamW: it was trained with `muon_learning_rate`, go on so"
            ) from error

    # ---- evaluation ----

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        if prediction_loss_only:
            inputs = {**inputs, "skip_logits": True}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def evaluation_loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs):
        started = time.monotonic()
        samples = dataloader.dataset
        epoch = getattr(samples, "epoch", None)
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if isinstance(samples, torch.utils.data.IterableDataset):
            logger.warning_once("`eval_dataset` is a stream: no dense metrics, which need its length")
        elif self.is_fsdp_enabled or self.is_deepspeed_enabled:
            logger.warning_once("no dense metrics while the model is sharded; run `evaluate_dense` on the saved one")
        else:
            source = getattr(samples, "sources", [self.data_collator])[0]
            if epoch is not None:
                samples.set_epoch(0)  # the same drawn expressions each time
            metrics = evaluate_dense(
                self.accelerator.unwrap_model(self.model),
                self.data_collator.processor,
                samples,
                source.id2label or self.data_collator.id2label,
                source.depth_range or self.data_collator.depth_range,
                self.args.per_device_eval_batch_size,
                self.accelerator,
                self.data_collator.depth_scale,
                source.ignore_index,
            )
            scalars = {name: value for name, value in metrics.items() if not isinstance(value, list)}
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in scalars.items()})
        if epoch is not None:
            samples.set_epoch(epoch)  # the data may be those in training
        if self._logged_at is not None:
            self._logged_at += time.monotonic() - started  # tokens a second are those of training
        return output

    # ---- saving ----

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, UNFINISHED) if self._staging else folder

    def _save_checkpoint(self, model, trial) -> None:
        """Write a checkpoint under another name first: a kill in the middle leaves the ones before as they were, and
        nothing that looks like one of them."""
        folder = self._get_output_dir(trial)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staged, final = os.path.join(folder, UNFINISHED, name), os.path.join(folder, name)
        if self.args.should_save:
            shutil.rmtree(os.path.join(folder, UNFINISHED), ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = False
        self.accelerator.wait_for_everyone()  # all processes have written their part
        if self.state.best_global_step:
            # By its step, not by its path: that is of the folder's name when it was written.
            best = os.path.join(folder, f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
            self.state.best_model_checkpoint = best if best == final or os.path.isdir(best) else None
        if self.args.should_save:
            self.state.save_to_json(os.path.join(staged, STATE_NAME))
            if os.path.isdir(final):  # of a run that was resumed from before it
                shutil.rmtree(final)
            os.replace(staged, final)
            os.rmdir(os.path.join(folder, UNFINISHED))
            rotate_checkpoints(
                output_dir=folder,
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(final)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._staging:
            super()._push_from_checkpoint(checkpoint_folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save model and processor; files get their names in `output_dir` when all of them are whole."""
        if _internal_call:
            return super().save_model(output_dir, _internal_call=True)
        output_dir = Path(self.args.output_dir if output_dir is None else output_dir)
        staged = output_dir / UNFINISHED
        if self.args.should_save:
            shutil.rmtree(staged, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        super().save_model(str(staged), _internal_call=True)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            # What names the others comes last.
            for path in sorted(staged.iterdir(), key=lambda path: path.name == "config.json"):
                target = output_dir / path.name
                if target.is_dir():
                    shutil.rmtree(target)
                os.replace(path, target)
            staged.rmdir()
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    # ---- model card ----

    def create_model_card(
        self, language=None, license=None, tags=None, model_name=None, finetuned_from=None, tasks=None,
        dataset_tags=None, dataset=None, dataset_args=None,
    ) -> None:  # fmt: skip
        """Write `README.md` with the last evaluation as its model index; arguments as for `Trainer`'s."""
        if not self.is_world_process_zero():
            return
        args = self.args
        model_name = model_name or Path(args.output_dir).resolve().name

        def as_list(value):
            return [value] if isinstance(value, str) else list(value or [])

        dataset_name = ", ".join(as_list(dataset)) or "unknown"
        evaluated = next((row for row in reversed(self.state.log_history) if "eval_loss" in row), {})
        results = [
            EvalResult(
                task_type=task,
                dataset_type=(as_list(dataset_tags) or ["custom"])[0],
                dataset_name=dataset_name,
                metric_type=metric,
                metric_name=name,
                metric_value=round(evaluated[f"eval_{metric}"], 4),
            )
            for metric, (task, name) in METRIC_TASKS.items()
            if evaluated.get(f"eval_{metric}") is not None
        ]
        card = ModelCardData(
            language=language,
            license=license,
            library_name="transformers",
            pipeline_tag="image-text-to-text",
            tags=[
                "densemllm",
                "depth-estimation",
                "image-segmentation",
                *([tags] if isinstance(tags, str) else tags or []),
            ],
            base_model=finetuned_from,
            datasets=as_list(dataset_tags) or None,
            model_name=model_name,
            eval_results=results or None,
        )
        base = f", fine-tuned from `{finetuned_from}`" if finetuned_from else ""
        lines = [
            f"---\n{card.to_yaml()}\n---\n\n# {model_name}\n",
            f"A [DenseMLLM](https://arxiv.org/abs/2602.14134){base}: a multimodal language model whose vision tokens' "
            "logits are class maps, depth maps and masks.\n",
            "```python\nfrom transformers import AutoModel\n",
            f'model = AutoModel.from_pretrained("{model_name}", trust_remote_code=True).eval()',
            'model.predict_dense("photo.jpg", task="depth").predicted_depth  # metres\n```\n',
            f"## Evaluation\n\nOn {dataset_name}, after {self.state.global_step} steps:\n",
            "| metric | value |\n|---|---|",
            *[f"| {result.metric_name} | {result.metric_value} |" for result in results],
            f"| loss | {evaluated['eval_loss']:.4f} |" if evaluated else "| not evaluated | |",
            "\n## Training\n\n| setting | value |\n|---|---|",
            f"| steps | {self.state.global_step} ({self.state.epoch or 0:.2f} epochs) |",
            f"| samples a step | {args.train_batch_size * args.gradient_accumulation_steps * args.world_size} |",
            *[f"| {name} | {getattr(args, name)} |" for name in SETTINGS if getattr(args, name, None) is not None],
            f"\nTransformers {transformers.__version__}, PyTorch {torch.__version__}.\n",
        ]
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        ModelCard("\n".join(lines)).save(Path(args.output_dir) / "README.md")


__all__ = ["DenseTrainer", "DenseTrainingArguments"]
