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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.data_loader import IterableDatasetShard
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, TrainOutput
from transformers.utils import logging

from ..compat_densemllm import CACHE_NAMES
from ..evaluation.metrics import greater_is_better
from ..evaluation.predict import evaluate_dense
from ..loss_densemllm import IGNORED, supervised_tokens
from ..supervision_densemllm import shift_codes
from ..tasks_densemllm import Classes, check_things, thing_keys
from .arguments import DenseTrainingArguments, check_arguments
from .checkpoints import (
    STATE_NAME,
    UNFINISHED,
    delete_all_but,
    delete_oldest,
    locked,
    replace_checkpoint,
    replace_model,
    writing,
)
from .collator import DenseCollator
from .datasets import DenseDataset, DenseIterableDataset, DenseSource, LikeSizesSampler
from .model_card import SHEET, SHOWN, class_scores, draw_predictions, make_model_card
from .optimizers import MuonWithAdamW, muon_factory, rates_of_parts, refuse_state_of_muon, with_groups_of_parts


if TYPE_CHECKING:
    import datasets
    import optuna


logger = logging.get_logger(__name__)

# Private parts of `Trainer` that are used here, as there is no public way; a test names one that disappears. Three are
# there as its checkpoints have no public hook between their first file and their last one.
# - `_save_checkpoint`: a checkpoint is written under another name, and gets its own when it is whole.
# - `_get_output_dir`: the folder in which it does so; with a hyperparameter search there is one for each trial.
# - `_train_batch_size`: what `auto_find_batch_size` has come to.
# - `_push_from_checkpoint`: an upload in the background must read the folder under the name that it keeps.
# - the argument `_internal_call` of `save_model`: tells a checkpoint's model from one that a user saves.

FIRST_STEPS = 10  # a run in which so many steps supervise nothing is stopped
# Sums of a step, averaged over the logged steps.
LOSSES, COUNTS = ("text_loss", "ntp_m_loss", "codebook_loss"), ("positives", "dense_tokens")
# Outputs that `predict` and `compute_metrics` don't get.
NO_PREDICTIONS = (*CACHE_NAMES, "hidden_states", "attentions", "image_hidden_states", *LOSSES)


class SetEpoch(TrainerCallback):
    """Tell the data set its epoch: the loader's own call is lost behind a sampler that has one of its own."""

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: DataLoader | None = None,
        **kwargs: Any,
    ) -> None:
        dataset = getattr(train_dataloader, "dataset", None)
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(int(state.epoch))


def learned_labels(
    sources: list[DenseSource | DenseCollator], collator: Callable[[list], dict]
) -> dict[int, str] | None:
    """The classes of all data sets together, id to name; `None` where none has any.

    Ids stay as they are where no two data sets contradict each other. Else the names are numbered from 0, in order.

    Args:
        sources: [`DenseSource`]s, or the collator alone for samples that have no source.
        collator: has the names for what brings none.
    """
    tables = []
    for source in sources:
        columns = getattr(source, "columns", None) or getattr(getattr(source, "data", None), "column_names", None)
        if columns is None or Classes.column in columns:
            own = source.id2label or getattr(collator, "id2label", None) or {}
            tables.append({int(key): " ".join(name.split()) for key, name in own.items()})
    pairs = list(dict.fromkeys(pair for table in tables for pair in table.items()))
    names = list(dict.fromkeys(name for _, name in pairs))
    if len(names) == len(pairs) == len(dict(pairs)):
        return dict(sorted(pairs)) or None
    return dict(enumerate(names))


def learned_things(sources: list[DenseSource | DenseCollator], collator: Callable[[list], dict]) -> list[str] | None:
    """Names of the classes of all data sets whose objects are told apart; `None` where nobody says it of any.
    Arguments as for [`learned_labels`]."""
    tables = []
    for source in sources:
        thing_labels = getattr(source, "thing_labels", None)
        if thing_labels is None:
            thing_labels = getattr(collator, "thing_labels", None)
        if thing_labels is None:
            continue
        own = getattr(source, "id2label", None) or getattr(collator, "id2label", None) or {}
        names = {int(key): " ".join(name.split()) for key, name in own.items()}
        if names:
            tables.append([names[key] for key in thing_keys(thing_labels, names)])
    return list(dict.fromkeys(name for table in tables for name in table)) if tables else None


def check_evaluated(dataset: Any) -> None:
    """Raise a `ValueError` that names a data set to evaluate on, one or one of a dict, of which no metric can be."""
    for name, own in (dataset if isinstance(dataset, dict) else {"eval_dataset": dataset}).items():
        sources = getattr(own, "sources", [])
        kinds = [(source.id2label, source.depth_range, source.ignore_index) for source in sources]
        if any(kind != kinds[0] for kind in kinds):
            raise ValueError(
                f"the sources of `{name}` differ in `id2label`, `depth_range` or `ignore_index`: no metric is of them "
                "all. Give a dict of data sets as `eval_dataset`"
            )


class DenseTrainer(Trainer):
    """`Trainer` for DenseMLLM.

    - The NTP-M loss is divided by the global count of supervised vision tokens (one counts once for each kind of
      annotation that it has), and the codebook loss by that of codes, as `Trainer` itself does with the text loss and
      its labels: the same data gives the same gradients however it is spread over accumulation steps, processes and
      batches.
    - `muon_learning_rate` trains the inner matrices with Muon.
    - `train_sampling_strategy="group_by_length"` makes batches of images of like sizes.
    - Logs all losses, positives and supervised vision tokens a step, and tokens a second.
    - Evaluation adds mIoU, delta1, cIoU and the like, by what the samples of `eval_dataset` are annotated with.
    - A checkpoint gets its name when it is whole: one that is there can be resumed from.
    - The model card has the results in its model index.

    - The model's `config.id2label` becomes what is trained: the classes of all sources of `train_dataset`; and its
      `config.thing_labels` those whose objects are told apart, where the sources say which.
    - A run whose first steps supervise nothing, or whose loss is not finite, stops with a `ValueError`.

    Takes what `Trainer` takes; `data_collator` is a [`DenseCollator`], `processing_class` its processor. `id2label`
    names the classes instead of those of the sources; class id to name, or `{}` to leave the config as it is.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        *,
        id2label: dict[int, str] | None = None,
        **kwargs: Any,
    ):
        if args is not None and not isinstance(args, DenseTrainingArguments):
            if greater_is_better(args.metric_for_best_model) is False:
                args.greater_is_better = False  # `TrainingArguments` takes all but a loss for the contrary
        if args is not None:
            check_arguments(args)
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("`compute_loss_func` must be left out: it would leave out NTP-M")
        super().__init__(model, args, **kwargs)
        self.model_accepts_loss_kwargs = True  # here both losses have their counts
        self.args.remove_unused_columns = False  # the collator needs them all
        self._id2label = id2label
        check_evaluated(self.eval_dataset)
        if self.args.n_gpu > 1:
            raise ValueError("packed images can't be split by DataParallel; use `torchrun` or `accelerate launch`")
        self.add_callback(SetEpoch())
        if getattr(self.args, "early_stopping_patience", None) is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))
        self._staging = False
        self._class_scores: dict[str, list[dict]] = {}  # of the last evaluation with each prefix
        self._reset_totals()
        self._locked: set[Path] = set()
        self._supervised, self._unsupervised_steps = False, 0
        self._logged_step = self._logged_at = None

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: "optuna.Trial | dict[str, Any] | None" = None,
        ignore_keys_for_eval: list[str] | None = None,
        **kwargs: Any,
    ) -> TrainOutput:
        """As `Trainer`'s.

        Raises:
            ValueError: another training writes into the folder, the first steps supervise nothing, or the loss is not
                finite.
        """
        self._supervised, self._unsupervised_steps = False, 0
        with self._lock(self._get_output_dir(trial)):
            self._name_what_is_learned()
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval, **kwargs)

    def _name_what_is_learned(self) -> None:
        """Put the classes of the data, and those whose objects are told apart, into the model's config."""
        sources = getattr(self.train_dataset, "sources", [self.data_collator])
        config = self.accelerator.unwrap_model(self.model).config
        things = learned_things(sources, self.data_collator)
        if things is not None:
            check_things(things, None, self.data_collator.processor)
        names = learned_labels(sources, self.data_collator) if self._id2label is None else self._id2label
        if names:
            config.id2label, config.label2id = dict(names), {name: key for key, name in names.items()}
        if things is not None and self._id2label != {}:
            config.thing_labels = things

    # ---- order ----

    def get_train_dataloader(self) -> DataLoader:
        """As `Trainer`'s, with `group_by_length` for a [`DenseDataset`]; of an endless stream, each process reads its
        part alone, not all to keep its batches."""
        dataset, args = self.train_dataset, self.args
        if not self._is_grouped(dataset):
            loader = super().get_train_dataloader()
            shard = loader.dataset
            if isinstance(shard, IterableDatasetShard) and isinstance(shard.dataset, DenseIterableDataset):
                if shard.dataset.repeat:
                    shard.dataset.split_by_process(shard.process_index, shard.num_processes)
                    shard.process_index, shard.num_processes = 0, 1
            return loader
        processor = self.processing_class
        focal_lengths = [
            processor.get_depth_range(source.depth_range or self.data_collator.depth_range).get("focal_length")
            for source in dataset.sources
        ]
        batch_size = self._train_batch_size
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size,
            sampler=LikeSizesSampler(dataset, batch_size * args.gradient_accumulation_steps, focal_lengths, args.seed),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            drop_last=args.dataloader_drop_last,
        )
        return self.accelerator.prepare(loader)

    def get_eval_dataloader(self, eval_dataset: "str | Dataset | datasets.Dataset | None" = None) -> DataLoader:
        """As `Trainer`'s; in order with `group_by_length`, too."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        with self._in_order(self.eval_dataset[dataset] if isinstance(dataset, str) else dataset):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: "Dataset | datasets.Dataset") -> DataLoader:
        """As `Trainer`'s; in order with `group_by_length`, too."""
        with self._in_order(test_dataset):
            return super().get_test_dataloader(test_dataset)

    def _is_grouped(self, dataset) -> bool:
        return self.args.train_sampling_strategy == "group_by_length" and isinstance(dataset, DenseDataset)

    @contextmanager
    def _in_order(self, dataset):
        # `Trainer` would look for lengths, which samples don't have; with any other strategy it goes in order.
        strategy = self.args.train_sampling_strategy
        if self._is_grouped(dataset):
            self.args.train_sampling_strategy = "sequential"
        try:
            yield
        finally:
            self.args.train_sampling_strategy = strategy

    # ---- losses ----

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """As `Trainer`'s; each batch also gets the counts of the NTP-M loss and of the codebook loss of all batches of
        the step."""
        # Labels at image placeholders are ignored by forward, and must not count.
        batches = map(self._without_image_labels, epoch_iterator)
        batches, num_items = super().get_batch_samples(batches, num_batches, device)
        counts = {name: self._count_items(batches, device, find) for name, find in self._supervised_by_count().items()}
        if not self._supervised and batches:
            self._look_for_supervision(num_items, *counts.values())
        for name, count in counts.items():
            if count is None:
                continue
            count = count.clamp(min=1).long()  # DeepSpeed rounds floats to its type
            if num_items is None:  # `Trainer` takes the mean over batches and processes then
                count = count / (len(batches) * self.args.world_size)
            batches = [{**batch, name: count} for batch in batches]
        return batches, num_items

    def _without_image_labels(self, batch: dict) -> dict:
        labels = batch.get("labels")
        if labels is None:
            return batch
        return {**batch, "labels": labels.masked_fill(labels == self.model.config.image_token_id, IGNORED)}

    def _supervised_by_count(self) -> dict[str, Callable[[dict], torch.Tensor | None]]:
        """By the argument of the forward that gets the count: of a batch, what of it is supervised, `bool`; `None`:
        nothing is."""
        image_token = self.accelerator.unwrap_model(self.model).config.image_token_id

        def dense(batch: dict) -> torch.Tensor | None:
            if "dense_targets" not in batch:
                return None
            return supervised_tokens(batch["dense_targets"], batch["dense_candidates"]).flatten()

        def codes(batch: dict) -> torch.Tensor | None:
            if "image_codes" not in batch:
                return None
            return shift_codes(batch["image_codes"], batch["input_ids"] == image_token) != IGNORED

        return {"num_dense_items_in_batch": dense, "num_code_items_in_batch": codes}

    def _count_items(
        self, batches: list, device: torch.device, find: Callable[[dict], torch.Tensor | None]
    ) -> torch.Tensor | None:
        # What is supervised in the place of labels: counted by `Trainer`'s own rule for several processes.
        rows = []
        for batch in batches:
            supervised = find(batch)
            if supervised is None:
                supervised = torch.zeros(0, dtype=torch.bool, device=device)
            labels = torch.where(supervised, 0, IGNORED)
            rows.append({"labels": torch.nn.functional.pad(labels, (1, 0), value=IGNORED)[None]})
        return super().get_batch_samples(iter(rows), len(rows), device)[1]

    def _look_for_supervision(self, *counts: torch.Tensor | None) -> None:
        """Stop a run whose first steps supervise nothing: it would go on to the end with a loss of 0."""
        count = sum(count.sum() for count in counts if count is not None)
        if self.args.world_size > 1:
            count = self.accelerator.gather(torch.as_tensor(count, device=self.args.device)).sum()
        self._supervised = bool(count > 0)
        self._unsupervised_steps += not self._supervised
        is_last = self.state.global_step + 1 >= self.state.max_steps
        if not self._supervised and (is_last or self._unsupervised_steps == FIRST_STEPS):
            raise ValueError(
                f"the first {self._unsupervised_steps} step(s) supervise nothing: no text is learned, and no pixel of "
                "the maps has a class, a depth in the range of `depth_range`, or a mask. See whether depth is in "
                "metres (else give `depth_scale`), and whether class ids are ignored"
            )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """As `Trainer`'s, with both losses logged.

        Raises:
            ValueError: a loss that is not finite while training.
        """
        if self._logged_at is None and model.training:
            self._logged_at, self._logged_step = time.monotonic(), self.state.global_step
        if num_items_in_batch is not None:
            num_items_in_batch = num_items_in_batch.clamp(min=1)
            for name, find in ({} if model.training else self._supervised_by_count()).items():
                if name not in inputs:
                    inputs = {**inputs, name: self._count_items([inputs], self.args.device, find).clamp(min=1)}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            if not torch.isfinite(loss):
                parts = ", ".join(
                    f"{name} {outputs[name].item():.4g}" for name in LOSSES if outputs.get(name) is not None
                )
                raise ValueError(
                    f"the loss of step {self.state.global_step + 1} is not finite ({parts}), and would spoil every "
                    "weight. Lower `learning_rate`, set `max_grad_norm`, or use `bf16` instead of `fp16`; checkpoints "
                    "from before are whole"
                )
            self._count(inputs, outputs)
        return (loss, outputs) if return_outputs else loss

    def _reset_totals(self) -> None:
        # All losses, and counts of positives, supervised tokens and tokens: whole numbers are exact, and MPS, which
        # has no float64, can add them up.
        self._totals = [
            torch.zeros(len(LOSSES), dtype=torch.float32),
            torch.zeros(len(COUNTS) + 1, dtype=torch.long),
        ]

    def _count(self, inputs: dict, outputs) -> None:
        zero = torch.zeros((), dtype=torch.float32, device=outputs["loss"].device)
        targets = inputs.get("dense_targets")
        losses = [zero if outputs.get(name) is None else outputs[name].detach().float() for name in LOSSES]
        counts = [
            zero.long() if targets is None else (targets >= 0).sum(),
            zero.long() if targets is None else supervised_tokens(targets, inputs["dense_candidates"]).sum(),
            inputs["attention_mask"].sum(),
        ]
        # Kept on the device: reading them here would make the host wait at every step.
        added = (torch.stack(losses), torch.stack(counts))
        self._totals = [total.to(own.device) + own for total, own in zip(self._totals, added, strict=True)]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `Trainer`'s, with what was counted since the last time."""
        best = self.state.best_model_checkpoint
        if "train_runtime" in logs and self.args.save_total_limit == 1 and self.args.should_save and best is not None:
            # `Trainer` deletes all checkpoints but the best one next, file by file.
            delete_all_but(best)
        if "loss" in logs and self._logged_at is not None:
            losses, counts = self._totals
            if self.args.world_size > 1:
                losses, counts = self.accelerator.reduce(losses), self.accelerator.reduce(counts)
                if not self.args.average_tokens_across_devices:
                    losses = losses / self.args.world_size  # they are means then, of each process
            *sums, tokens = losses.tolist() + counts.tolist()
            steps = max(self.state.global_step - self._logged_step, 1)
            logs |= {name: value / steps for name, value in zip(LOSSES + COUNTS, sums, strict=True)}
            if not logs["codebook_loss"]:  # nothing has codes, as in most trainings
                del logs["codebook_loss"]
            logs["tokens_per_second"] = tokens / max(time.monotonic() - self._logged_at, 1e-9)
            self._reset_totals()
            self._logged_at, self._logged_step = time.monotonic(), self.state.global_step
        super().log(logs, start_time)

    # ---- optimiser ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As `Trainer`'s, with the learning rates of parts or with Muon."""
        if self.optimizer is not None:
            return super().create_optimizer(model)
        given = self.optimizer_cls_and_kwargs
        self.optimizer_cls_and_kwargs = self._own_optimizer(self.model if model is None else model) or given
        try:
            optimizer = super().create_optimizer(model)
        finally:
            self.optimizer_cls_and_kwargs = given
        if isinstance(optimizer, torch.optim.Optimizer) and not isinstance(optimizer, MuonWithAdamW):
            optimizer.register_load_state_dict_pre_hook(refuse_state_of_muon)
        return optimizer

    def _own_optimizer(self, model) -> tuple | None:
        """Class and arguments for what [`DenseTrainingArguments`] adds; `None` where nothing of it is used."""
        args, decayed = self.args, set(self.get_decay_parameter_names(model))
        if getattr(args, "muon_learning_rate", None) is not None:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError("`muon_learning_rate` needs whole matrices: not with FSDP or DeepSpeed")
            return muon_factory(args, decayed)
        if rates_of_parts(args):
            cls, kwargs = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(args, model)
            return with_groups_of_parts(cls, kwargs, args, model, decayed)
        return None

    # ---- evaluation ----

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """As `Trainer`'s, but for predictions, which are token ids `int64 [batch_size, sequence_length]`.

        Position i has the id that the model holds most likely to follow it, and -100 where no label follows: logits of
        the whole vocabulary would be gigabytes an image. With `preprocess_logits_for_metrics`, they are what that
        makes of all logits.
        """
        if prediction_loss_only:
            return super().prediction_step(model, {**inputs, "skip_logits": True}, True, ignore_keys)
        ignore_keys = [*(ignore_keys or ()), *NO_PREDICTIONS]
        labels = inputs.get("labels")
        if self.preprocess_logits_for_metrics is not None or labels is None:
            return super().prediction_step(model, inputs, False, ignore_keys)
        is_followed = torch.nn.functional.pad(labels[:, 1:] != IGNORED, (0, 1))
        inputs = {**inputs, "logits_to_keep": is_followed}
        loss, logits, labels = super().prediction_step(model, inputs, False, ignore_keys)
        ids = torch.full_like(labels, IGNORED)
        ids[is_followed.to(ids.device)] = logits.reshape(-1, logits.shape[-1]).argmax(dim=-1).to(ids.dtype)
        return loss, ids, labels

    def evaluation_loop(
        self, dataloader: DataLoader, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
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
            classes = source.id2label or self.data_collator.id2label or {}
            self._class_scores[metric_key_prefix] = class_scores(metrics, classes)
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
        unfinished = Path(folder, UNFINISHED)
        staged, final = unfinished / name, Path(folder, name)
        if self.args.should_save:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = True
        try:
            with writing(unfinished):
                super()._save_checkpoint(model, trial)
        finally:
            self._staging = False
        self.accelerator.wait_for_everyone()  # all processes have written their part
        if self.state.best_global_step:
            # By its step, not by its path: that is of the folder's name when it was written.
            best = Path(folder, f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
            self.state.best_model_checkpoint = str(best) if best == final or best.is_dir() else None
        if self.args.should_save:
            self.state.save_to_json(str(staged / STATE_NAME))
            replace_checkpoint(final, staged)
            self._rotate_checkpoints(folder)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _rotate_checkpoints(self, folder: str) -> None:
        delete_oldest(folder, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._staging:
            super()._push_from_checkpoint(checkpoint_folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save model and processor, over an older model if there is one: whenever this is killed, the folder has the
        old model, the new one, or none that loads."""
        if _internal_call:
            return super().save_model(output_dir, _internal_call=True)
        output_dir = Path(self.args.output_dir if output_dir is None else output_dir)
        with self._lock(output_dir):
            staged = output_dir / UNFINISHED
            if self.args.should_save:
                shutil.rmtree(staged, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            with writing(staged):
                super().save_model(str(staged), _internal_call=True)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                replace_model(output_dir, staged)
            self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    @contextmanager
    def _lock(self, folder):
        """Refuse a second training or saving into a folder; `train` has its folder as long as it lasts.

        Raises:
            ValueError: another process, or another trainer, has it.
        """
        path = Path(folder).resolve()
        if path in self._locked or not self.args.should_save:
            yield
            return
        with locked(folder):
            self._locked.add(path)
            try:
                yield
            finally:
                self._locked.discard(path)

    # ---- model card ----

    def create_model_card(
        self, language: str | None = None, license: str | None = None, tags: str | list[str] | None = None,
        model_name: str | None = None, finetuned_from: str | None = None, tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None, dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None, evaluated_on: str | None = None,
    ) -> None:  # fmt: skip
        """Write `README.md` with the last evaluation as its model index; arguments as for `Trainer`'s, and
        `evaluated_on`, the name of the evaluated data where that is not `dataset`."""
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        card = make_model_card(
            self.args,
            self.state,
            getattr(self.accelerator.unwrap_model(self.model).config, "label_names", None),
            model_name or folder.resolve().name,
            finetuned_from,
            dataset,
            dataset_tags,
            tags,
            evaluated_on,
            {
                prefix.removeprefix("eval").removeprefix("_"): rows
                for prefix, rows in self._class_scores.items()
                if prefix.partition("_")[0] == "eval"
            },
            self._save_sheet(folder),
            language=language,
            license=license,
        )
        folder.mkdir(parents=True, exist_ok=True)
        card.save(folder / "README.md")

    def _save_sheet(self, folder: Path) -> str | None:
        """Write an image of what the model predicts for the first samples of the evaluation; its name, or `None` where
        there are none, or this process has a part of the model alone."""
        data = self.eval_dataset
        data = next(iter(data.values()), None) if isinstance(data, dict) else data
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if is_sharded or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            return None
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        try:
            samples = [data[place] for place in range(min(SHOWN, len(data)))]
            sheet = draw_predictions(model.eval(), self.data_collator.processor, samples)
            folder.mkdir(parents=True, exist_ok=True)
            sheet.save(folder / SHEET, quality=85)
        except Exception as error:  # a trained model must not end without a card for want of an image
            logger.warning(f"the card has no image of predictions: {error}")
            return None
        finally:
            model.train(was_training)
        return SHEET


__all__ = ["DenseTrainer"]
