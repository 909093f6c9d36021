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

"""The arguments of a training: those of `TrainingArguments`, and a learning rate for each part of the model."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.utils import logging

from ..evaluation.metrics import greater_is_better
from ..loading_densemllm import computes_bfloat16
from .optimizers import PARTS


logger = logging.get_logger(__name__)


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
    # `bool` though they may be `None`, so that `--do_train` alone can stand on a command line.
    do_train: bool = field(
        default=None, metadata={"help": "train; left out: unless `do_eval` or `do_predict` is asked for"}
    )
    do_eval: bool = field(
        default=None, metadata={"help": "evaluate; left out: where there is data for it, after a training"}
    )

    def __post_init__(self) -> None:
        if self.do_train is None:
            self.do_train = not (self.do_eval or self.do_predict)
        if not self.do_eval and self.eval_strategy != "no":
            self.do_eval = True  # as `TrainingArguments` has it
        if self.greater_is_better is None:
            self.greater_is_better = greater_is_better(self.metric_for_best_model)
        if (self.bf16 or self.bf16_full_eval) and not self.use_cpu and not torch.accelerator.is_available():
            self.use_cpu = True  # it would be used anyway, but `TrainingArguments` wants to be told so
        super().__post_init__()
        check_arguments(self)
        if self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy") and self.greater_is_better:
            self.lr_scheduler_kwargs = {"mode": "max", **(self.lr_scheduler_kwargs or {})}  # theirs is "min"
        self.remove_unused_columns = False
        for name in (*PARTS.values(), "muon_learning_rate"):
            if getattr(self, name) is not None and getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}")
        if self.muon_learning_rate is not None and any(getattr(self, name) is not None for name in PARTS.values()):
            raise ValueError(f"`muon_learning_rate` is one for all parts: leave out {', '.join(PARTS.values())}")
        # Packed images can't be cut at the first dimension, as dispatching a stream's batches would.
        self.accelerator_config.dispatch_batches = False


def warn_of_bfloat16(args: TrainingArguments) -> None:
    """Say that `bf16` makes a training slower where it does."""
    if args.bf16 and not computes_bfloat16("cpu" if args.use_cpu else args.device):
        logger.warning_once(
            "`bf16` is slower than float32 on this CPU, which emulates it: leave it out, or say `--bf16 false`."
        )


def check_arguments(args: TrainingArguments) -> None:
    """Raise a `ValueError` that names an argument of `TrainingArguments` that can't be used with this model."""
    warn_of_bfloat16(args)
    if args.torch_compile:
        raise ValueError(
            "`torch_compile` must be off: each batch has images of other sizes, and would be compiled anew"
        )
    if args.label_smoothing_factor:
        raise ValueError(
            f"`label_smoothing_factor` must be 0, got {args.label_smoothing_factor}: it would leave out NTP-M"
        )
    known = greater_is_better(args.metric_for_best_model)
    if known is not None and args.greater_is_better is not known:
        raise ValueError(
            f"`greater_is_better` must be {known} for `metric_for_best_model` {args.metric_for_best_model!r}, got "
            f"{args.greater_is_better}"
        )


__all__ = ["DenseTrainingArguments", "check_arguments", "warn_of_bfloat16"]
