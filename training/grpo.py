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
"""TRL's `GRPOTrainer` for DenseMLLM: rewards of answers in words, and NTP-M beside them that keeps the maps."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..loss_densemllm import supervised_tokens
from ..modeling_densemllm import vision_block_ids
from ..tasks_densemllm import ANNOTATED_TASKS
from ..vision_densemllm import DenseMLLMVisionModel
from .arguments import warn_of_bfloat16
from .collator import DenseCollator
from .equal_images import EqualImagesOnce, first_equals
from .prompts import PromptReader
from .rewards import get_rewards
from .shared_prompts import check_shared_prompts, pack_answers


try:
    from trl import GRPOTrainer
    from trl.rewards import get_soft_overlong_punishment
except ImportError as error:
    raise ImportError(f"reinforcement learning needs TRL: `pip install densemllm[rl]` ({error})") from error

# Private parts of `GRPOTrainer` that are used here, as there is no public way; a test names one that disappears.
# - `_generate_and_score_completions`: a batch of rows with their answers, from which the samples come along.
# - `_prepare_inputs`: where such a batch has been cut into those of the steps, `_buffered_inputs`.
# - `_compute_loss`: the loss of one of these.
# - `_get_per_token_logps_and_entropies`: how it scores answers.
# - `_metrics`: what is logged.

OVERLONG = "soft_overlong"  # of `reward_funcs`: TRL's own, as it is in tokens
ALIKE = 1e-3  # below which advantages are none: those of a group whose rewards are all the same, but for rounding


def make_rewards(names: Sequence[str], max_completion_length: int, soft_punish_cache: int) -> list[Callable]:
    """The functions that `reward_funcs` names: those of `training/rewards.py`, and `soft_overlong`.

    Args:
        names: of the rewards.
        max_completion_length: tokens of an answer, at most.
        soft_punish_cache: the last so many of them cost something: up to 1 less (Yu et al. 2025, "DAPO").

    Raises:
        ValueError: a name that there isn't, or one that comes twice; or more tokens that cost something than an answer
            has.
    """
    own = [name for name in names if name != OVERLONG]
    if own == list(names):
        return list(get_rewards(own))
    if len(own) < len(names) - 1:
        raise ValueError(f"`reward_funcs` must have each name once, got {list(names)}")
    if not 0 < soft_punish_cache <= max_completion_length:
        raise ValueError(
            f"`soft_punish_cache` must be at least 1 and at most `max_completion_length` = {max_completion_length}, "
            f"got {soft_punish_cache}"
        )
    found = {reward.__name__: reward for reward in get_rewards(own)}
    found[OVERLONG] = get_soft_overlong_punishment(max_completion_length, soft_punish_cache)
    return [found[name] for name in names]


def check_dense_options(dense_loss_weight: float, filter_groups: bool, beta: float) -> None:
    """Raise a `ValueError` for options of [`DenseGRPOTrainer`] that can't be used."""
    if not 0 <= dense_loss_weight < float("inf"):
        raise ValueError(f"`dense_loss_weight` must be at least 0, got {dense_loss_weight}")
    if filter_groups and beta:
        raise ValueError(f"`filter_groups` needs `beta` = 0, got {beta}")


class SetEpoch(TrainerCallback):
    """Tell the samples behind the questions their epoch."""

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        reader = reader_of(getattr(train_dataloader, "dataset", None))
        if reader is not None:
            reader.samples.set_epoch(int(state.epoch))


def reader_of(dataset: Any) -> PromptReader | None:
    """What reads the rows of a data set of [`make_prompts`]; `None` of any other."""
    format_of = getattr(dataset, "format", None)
    transform = (format_of or {}).get("format_kwargs", {}).get("transform")
    return transform if isinstance(transform, PromptReader) else None


class DenseGRPOTrainer(GRPOTrainer):
    """`GRPOTrainer` for DenseMLLM.

    Rewards of texts say nothing of the vision tokens' logits, from which maps are read, and may let them drift. With a
    `dense_loss_weight`, the NTP-M loss of the batch's annotated samples is added, each sample once a micro-batch. It
    is divided by the count of supervised vision tokens of all micro-batches of a step and all processes, as in
    [`DenseTrainer`]: of one batch the gradients are the same. An image is encoded once for all answers about it that a
    micro-batch has.

    Takes what `GRPOTrainer` takes; `train_dataset` is one of [`make_prompts`], `processing_class` a
    [`DenseMLLMProcessor`].

    Args:
        dense_collator: makes the batches of the NTP-M loss; needed for it.
        dense_loss_weight: of NTP-M beside the policy's loss, times the config's `ntp_m_weight`. 0: off.
        filter_groups: leave answers out whose whole group has the same reward. They have no gradient; left in, they
            count among the tokens by which the loss is divided. What DAPO does besides, to ask again until a batch is
            full of groups that differ, TRL doesn't have.
        share_prompts: score a micro-batch's answers to the same question behind one prompt, which is read once for all
            of them; see `training/shared_prompts.py`. For short answers about large images. Needs
            `attn_implementation` "eager" or "sdpa", and a language model of full attention. Questions without an image
            are scored one by one.

    Raises:
        ValueError: a weight below 0, one without a collator, `filter_groups` beside a KL term, which such answers
            have, too, or `share_prompts` with a language model that can't read them so.
    """

    def __init__(
        self,
        *args: Any,
        dense_collator: DenseCollator | None = None,
        dense_loss_weight: float = 0.0,
        filter_groups: bool = False,
        share_prompts: bool = False,
        **kwargs: Any,
    ):
        if dense_loss_weight and dense_collator is None:
            raise ValueError("`dense_loss_weight` needs a `dense_collator`")
        super().__init__(*args, **kwargs)
        check_dense_options(dense_loss_weight, filter_groups, self.beta)
        warn_of_bfloat16(self.args)
        self.dense_collator, self.dense_loss_weight = dense_collator, dense_loss_weight
        self.filter_groups = filter_groups
        self.share_prompts = share_prompts
        if share_prompts:
            check_shared_prompts(self.model.config.get_text_config())
        for model in (self.model, self.ref_model):
            for module in () if model is None else model.modules():  # beneath adapters, too
                if isinstance(module, DenseMLLMVisionModel):
                    EqualImagesOnce(module)
        self.add_callback(SetEpoch())

    # ---- groups ----

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return output
        if self.filter_groups:
            self._leave_out_groups_alike(output)
        if self.dense_loss_weight:
            output["samples"] = [(row["place"], row["sample"]) for row in inputs]
        return output

    def _leave_out_groups_alike(self, output: dict[str, Any]) -> None:
        own = output["advantages"]
        groups = self.accelerator.gather(own).view(-1, self.num_generations)  # a group may lie on two processes
        kept = (groups.abs().amax(dim=1) > ALIKE).repeat_interleave(self.num_generations)
        start = self.accelerator.process_index * len(own)
        output["completion_mask"] = output["completion_mask"] * kept[start : start + len(own), None]
        output["num_items_in_batch"] = self.accelerator.gather(output["completion_mask"].sum()).sum()
        self._metrics["train"]["groups_left_out"].append(1 - kept.float().mean().item())

    # ---- probabilities ----

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **inputs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        pixel_values = inputs.get("pixel_values")
        if not self.share_prompts or pixel_values is None or inputs.get("compute_aux_loss"):
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **inputs
            )
        grids = inputs["image_grid_thw"].split(inputs["num_images"])
        patches = pixel_values.split([int(own.prod(dim=1).sum()) for own in grids])
        values = []
        for start in range(0, len(input_ids), batch_size or len(input_ids)):
            rows = slice(start, start + (batch_size or len(input_ids)))
            values.append(
                self._score_behind_prompts(
                    model, input_ids[rows], attention_mask[rows], logits_to_keep, patches[rows], grids[rows]
                )
            )
        log_probs = torch.cat([own for own, _ in values])
        return log_probs, torch.cat([own for _, own in values]) if compute_entropy else None, None

    def _score_behind_prompts(
        self,
        model: nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        n_answer: int,
        patches: Sequence[torch.Tensor],
        grids: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-probabilities of the answers' tokens, and entropies there where the model computes them, both
        `[n_rows, n_answer]`. `patches` and `grids` are those of each row."""
        config, blocks = self.model.config, None
        if config.vision_attention == "bidirectional":
            blocks = vision_block_ids(input_ids == config.image_token_id, 0)
        images = first_equals(patches, [tuple(own.flatten().tolist()) for own in grids])
        prompts = first_equals(list(input_ids[:, :-n_answer]), images)
        packed = pack_answers(input_ids, attention_mask, n_answer, prompts, blocks)
        different = sorted(set(prompts))
        with self.accelerator.autocast():
            outputs = model(
                input_ids=packed.input_ids,
                attention_mask=packed.additive_mask(self.model.dtype),
                position_ids=packed.position_ids,
                pixel_values=torch.cat([patches[row] for row in different]),
                image_grid_thw=torch.cat([grids[row] for row in different]),
                labels=packed.labels,
                fused_lm_head=True,
            )
        entropies = None if outputs.entropy is None else packed.of_rows(outputs.entropy)  # a reference has none
        return packed.of_rows(outputs.log_probs), entropies

    # ---- the dense loss ----

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training and self.dense_loss_weight and "samples" in inputs:
            self._collate_samples(self._buffered_inputs)
        return inputs

    def _collate_samples(self, batches: list[dict[str, Any]]) -> None:
        """In the place of `samples` of each micro-batch: what the model gets of them, and what its loss is divided
        by."""
        count = torch.zeros((), dtype=torch.long, device=self.accelerator.device)
        for inputs in batches:
            samples = [_without_talk(sample) for sample in dict(inputs.pop("samples")).values()]
            annotated = [sample for sample in samples if any(task.is_annotated(sample) for task in ANNOTATED_TASKS)]
            # One at least: what is called on one process is called on all of them.
            batch = self.dense_collator(annotated or samples[:1])
            batch.pop("labels")  # the words are the rewards' matter
            count += supervised_tokens(batch["dense_targets"], batch["dense_candidates"]).sum().to(count.device)
            inputs["dense"] = batch
        # As TRL counts its own tokens: those of all micro-batches, in the share of them that a step has.
        count = self.accelerator.gather(count).sum()
        for inputs in batches:
            if count > 0:
                share = count / (self.accelerator.num_processes * len(batches))
                inputs["dense"]["num_dense_items_in_batch"] = share
            else:
                del inputs["dense"]

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super()._compute_loss(model, inputs)
        if self.model.training and inputs.get("dense"):
            batch = {name: value.to(self.accelerator.device) for name, value in inputs["dense"].items()}
            steps = self.current_gradient_accumulation_steps
            dense_loss = self.dense_loss(model, batch, batch.pop("num_dense_items_in_batch") * steps)
            whole = self.accelerator.gather(dense_loss.detach()).mean()
            self._metrics["train"]["ntp_m_loss"].append(whole.item() * steps)
            loss = loss + self.dense_loss_weight * dense_loss
        return loss

    def dense_loss(
        self, model: nn.Module, batch: dict[str, torch.Tensor], count: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The NTP-M loss of a batch, times the config's `ntp_m_weight`: a scalar.

        Args:
            model: as the trainer calls it.
            batch: of a [`DenseCollator`], without `labels`.
            count: of supervised vision tokens, by which the loss is divided; those of the batch where left out.
        """
        if count is not None:
            count = torch.as_tensor(count).clamp(min=1)
        with self.accelerator.autocast():
            return model(**batch, num_dense_items_in_batch=count, skip_logits=True).loss


def _without_talk(sample: dict) -> dict:
    """A sample without its own conversation, in which no vision token learns anything."""
    return {name: value for name, value in sample.items() if name != "messages"}


__all__ = ["DenseGRPOTrainer", "check_dense_options", "make_rewards"]
