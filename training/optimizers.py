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

"""Optimizers: Muon with AdamW as one, and a learning rate for each part of the model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from ..loading_densemllm import computes_bfloat16


PARTS = {
    "vision_tower": "vision_tower_learning_rate",
    "multi_modal_projector": "projector_learning_rate",
    "language_model": "language_model_learning_rate",
}


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with its update as large as AdamW's, in float32 where bfloat16 is slow.

    torch's orthogonalizes in bfloat16, which a CPU with AVX2 emulates: `benchmarks/bfloat16_on_cpu.py`. State and
    parameter groups are torch's.
    """

    def __init__(self, params: list[dict]):
        super().__init__(params, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if all(computes_bfloat16(p.device) for group in self.param_groups for p in group["params"]):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            momentum, decay = group["momentum"], group["weight_decay"]
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                average = self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix.grad))
                average.lerp_(matrix.grad, 1 - momentum)
                update = matrix.grad.lerp(average, momentum) if group["nesterov"] else average
                update = orthogonalized(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                matrix.mul_(1 - group["lr"] * decay)
                matrix.add_(update, alpha=-0.2 * group["lr"] * max(matrix.shape) ** 0.5)
        return loss


def orthogonalized(
    matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """The matrix with its singular values at about 1, `[m, n]`: Newton-Schulz steps of the fifth degree, in float32.

    As `torch.optim.Muon`; coefficients and derivation: https://kellerjordan.github.io/posts/muon.
    """
    first, third, fifth = coefficients
    wide = matrix.float() if matrix.shape[0] <= matrix.shape[1] else matrix.float().mT
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = first * wide + (third * gram + fifth * gram @ gram) @ wide
    return (wide if matrix.shape[0] <= matrix.shape[1] else wide.mT).to(matrix.dtype)


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
            "muon": Muon(muon),
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
    def state(self, value: dict) -> None:
        """`Optimizer.__init__` sets an empty one."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
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


class MuonFactory:
    """Makes a [`MuonWithAdamW`] for a model: what `Trainer` calls an optimizer factory."""

    def __call__(self, model: nn.Module, decayed: set[str], **kwargs: Any) -> MuonWithAdamW:
        """`decayed`: names of the parameters with weight decay; the others as for `MuonWithAdamW.of_parameters`."""
        # What goes in and comes out is not a map between hidden states.
        ends = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
        for part in model.modules():
            if isinstance(part, PreTrainedModel):
                ends += [part.get_input_embeddings(), part.get_output_embeddings()]
        ends = {id(module.weight) for module in ends if module is not None}
        groups = {"muon": [], "decayed": [], "others": []}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                inner = parameter.ndim == 2 and name in decayed and id(parameter) not in ends
                groups["muon" if inner else "decayed" if name in decayed else "others"].append(parameter)
        return MuonWithAdamW.of_parameters(**groups, **kwargs)


def refuse_state_of_muon(optimizer: torch.optim.Optimizer, state_dict: dict) -> None:
    """Hook of an optimizer's `load_state_dict`: a checkpoint of [`MuonWithAdamW`] is named instead of its keys."""
    if set(state_dict) == {"muon", "adamw"}:
        raise ValueError(
            "the checkpoint has the state of Muon and AdamW: it was trained with `muon_learning_rate`, go on so"
        )


def muon_factory(args: TrainingArguments, decayed: set[str]) -> tuple[type, dict[str, Any]]:
    """Class and arguments of the optimizer, as `Trainer` takes them, for `args.muon_learning_rate`; `decayed` are the
    names of the parameters with weight decay."""
    return MuonFactory, {
        "decayed": decayed, "learning_rate": args.learning_rate, "weight_decay": args.weight_decay,
        "muon_learning_rate": args.muon_learning_rate, "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
    }  # fmt: skip


def rates_of_parts(args: TrainingArguments) -> dict[str, float]:
    """The learning rates that `args` have for parts of the model, by the part; none for `TrainingArguments`."""
    rates = {part: getattr(args, name, None) for part, name in PARTS.items()}
    return {part: rate for part, rate in rates.items() if rate is not None}


def with_groups_of_parts(
    cls: type, kwargs: dict[str, Any], args: TrainingArguments, model: nn.Module, decayed: set[str]
) -> tuple[type, dict[str, Any]]:
    """Class and arguments of an optimizer, as `Trainer` takes them, with a group of parameters for each learning rate
    of [`rates_of_parts`] and weight decay.

    Args:
        cls, kwargs: the optimizer and its arguments without them.
        args: with the learning rates.
        model: whose parameters are trained.
        decayed: names of the parameters with weight decay.

    Raises:
        ValueError: the optimizer makes groups of its own.
    """
    if not isinstance(cls, type) or {"params", "model", "optimizer_dict"} & set(kwargs):
        raise ValueError(f"`optim` {args.optim} makes groups of its own: leave out {', '.join(PARTS.values())}")
    rates = rates_of_parts(args)
    groups: dict[tuple[float, float], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # The output embedding belongs to the language model, whether it is tied or not.
            part = next((part for part in PARTS if part in name), "language_model")
            rate = rates.get(part, args.learning_rate)
            groups.setdefault((rate, args.weight_decay if name in decayed else 0.0), []).append(parameter)
    groups = [{"params": own, "lr": rate, "weight_decay": decay} for (rate, decay), own in groups.items()]
    return cls, {**kwargs, "params": groups}


__all__ = ["MuonFactory", "MuonWithAdamW"]
