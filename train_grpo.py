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
r"""Train a DenseMLLM's answers in words by rewards, with the GRPO trainer of TRL.

    python train_grpo.py --model_name_or_path MODEL --dataset DATA --id2label labels.json --output_dir out \
        --reward_funcs class_list_iou format --per_device_train_batch_size 8 --num_generations 8
    python train_grpo.py examples/configs/grpo.yaml --learning_rate 2e-6
    accelerate launch train_grpo.py examples/configs/grpo_dapo.yaml

A configuration file (YAML or JSON) has the arguments by name; what stands after it on the command line wins, and
`--config FILE` is another way to name it. The data sets are those of `train_hf.py`, with the same options. A sample is
asked about what it is annotated with, see `training/prompts.py`, and answers are rewarded by what is true there, see
`training/rewards.py`. `--dense_loss_weight` adds the loss of `train_hf.py`'s maps on the same images.

Needs TRL: `pip install densemllm[rl]`. Exits with 2 after a line on stderr where something can't be used.
"""

import json
import os
import sys
from dataclasses import dataclass, field, fields

import torch
from datasets import Dataset
from datasets.exceptions import DatasetsError
from transformers import set_seed


try:
    from trl import GRPOConfig, ModelConfig, TrlParser
except ImportError as error:
    raise ImportError(f"train_grpo.py needs TRL: `pip install densemllm[rl]` ({error})") from error

from densemllm import DenseMLLMProcessor
from densemllm.arguments import HelpFormatter, parse_with_file
from densemllm.formats.options import settle_depth_ranges
from densemllm.train_hf import (
    DataArguments,
    Evaluated,
    ModelArguments,
    check_output,
    find_checkpoint,
    make_datasets,
    make_model,
)
from densemllm.training.check import check_before_training
from densemllm.training.collator import DenseCollator
from densemllm.training.grpo import DenseGRPOTrainer, check_dense_options, make_rewards
from densemllm.training.prompts import choose_questions, make_prompts, need_measured
from densemllm.training.rewards import columns_of


@dataclass
class ScriptArguments(DataArguments):
    """Data sets as for `train_hf.py`, and what is rewarded."""

    reward_funcs: list[str] = field(
        default_factory=lambda: ["class_list_iou", "format"],
        metadata={
            "help": "rewards by name, see `training/rewards.py`, or `soft_overlong`; `reward_weights` weighs them"
        },
    )
    questions: list[str] | None = field(
        default=None,
        metadata={
            "help": "kinds of questions, see `training/prompts.py`; those that a reward compares with the truth"
        },
    )
    soft_punish_cache: int = field(
        default=64,
        metadata={
            "help": "for `soft_overlong`: how many of the last tokens of `max_completion_length` cost something"
        },
    )
    dense_loss_weight: float = field(
        default=0.0, metadata={"help": "of the NTP-M loss on the annotated images beside the rewards; 0: off"}
    )
    filter_groups: bool = field(
        default=False, metadata={"help": "leave out of the loss answers whose whole group has the same reward"}
    )
    share_prompts: bool = field(
        default=False,
        metadata={"help": "score a group's answers behind one prompt, which is read once for all of them"},
    )


# Options of `train_hf.py` and of TRL that mean nothing here, or would be wrong.
NOT_TAKEN = {
    "streaming": "questions are counted before they are asked",
    "random_scale": "what is true of places would not be scaled with the image",
    "crop_size": "what is true of places would not be cropped with the image",
    "flip_probability": "what is true of places would not be mirrored with the image",
    "max_num_patches": "the processor of the checkpoint says it for questions, too",
    "test_split": "measure the model with `evaluate_densemllm.py`",
    "model_id2label": "the model keeps its class names",
}
MODEL_OPTIONS_TAKEN = (
    "model_name_or_path", "dtype", "attn_implementation", "use_peft", "lora_r", "lora_alpha", "lora_dropout",
    "lora_target_modules", "load_in_4bit",
)  # fmt: skip


def parse_arguments(arguments: list[str] | None = None) -> tuple[ScriptArguments, GRPOConfig, ModelConfig]:
    """Arguments of the command line, with a configuration file's in front, as three dataclasses.

    Raises:
        OSError, ValueError: a file or an option that can't be used.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--config" in words[:-1]:
        place = words.index("--config")
        words = [words[place + 1], *words[:place], *words[place + 2 :]]
    parser = TrlParser(
        (ScriptArguments, GRPOConfig, ModelConfig),
        description=__doc__,
        usage="train_grpo.py [CONFIG] [--ARGUMENT VALUE ...], see --help",
        formatter_class=HelpFormatter,
    )
    return parse_with_file(parser, words)


def check_taken(script_args: ScriptArguments, model_args: ModelConfig) -> None:
    """Raise a `ValueError` for an option that is there because it belongs to another script, or to other models."""
    for name, reason in NOT_TAKEN.items():
        if getattr(script_args, name):
            raise ValueError(f"`{name}` can't be given to train_grpo.py: {reason}")
    defaults = ModelConfig()
    for option in fields(ModelConfig):
        is_taken = option.name in MODEL_OPTIONS_TAKEN or not option.init
        if not is_taken and getattr(model_args, option.name) != getattr(defaults, option.name):
            raise ValueError(
                f"`{option.name}` can't be given; of TRL's options of models are taken {MODEL_OPTIONS_TAKEN}"
            )


def as_model_arguments(model_args: ModelConfig, args: GRPOConfig) -> ModelArguments:
    """TRL's options of models as those of `train_hf.py`."""
    options = {name: getattr(model_args, name) for name in MODEL_OPTIONS_TAKEN}
    dtype = options["dtype"] or "auto"
    dtype = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    return ModelArguments(**{**options, "dtype": dtype}, trust_remote_code=args.trust_remote_code)


def make_questions(
    data: Evaluated, kinds: list[str], processor: DenseMLLMProcessor
) -> Dataset | dict[str, Dataset] | None:
    """The questions about a data set, or about each of several."""
    if data is None:
        return None
    if isinstance(data, dict):
        return {name: make_questions(own, kinds, processor) for name, own in data.items()}
    return make_prompts(data, processor, kinds)


def save_trained(trainer: DenseGRPOTrainer, model_args: ModelArguments) -> None:
    """Save model and processor; adapters alone in a folder of their own, and the model with them merged in."""
    args = trainer.args
    if model_args.use_peft:
        trainer.model.save_pretrained(os.path.join(args.output_dir, "adapters"), is_main_process=args.should_save)
        if not model_args.load_in_4bit:  # merged into 4 bits, they would be rounded away
            trainer.model = trainer.model.merge_and_unload()
    trainer.save_model()
    trainer.save_state()


def main(arguments: list[str] | None = None) -> dict:
    """The script: train, save model and processor. Returns the metrics.

    Raises:
        ValueError, OSError: an argument, a data set or a model that can't be used, each named.
    """
    script_args, args, model_args = parse_arguments(arguments)
    check_taken(script_args, model_args)
    args.do_train = True
    model_args = as_model_arguments(model_args, args)
    rewards = make_rewards(script_args.reward_funcs, args.max_completion_length, script_args.soft_punish_cache)
    kinds = choose_questions(columns_of(rewards), script_args.questions)
    script_args.is_measured = need_measured(kinds)
    check_dense_options(script_args.dense_loss_weight, script_args.filter_groups, args.beta)
    check_output(model_args, script_args, args)
    checkpoint = find_checkpoint(model_args, args)
    set_seed(args.seed)
    train_samples, eval_samples = make_datasets(script_args, args.seed)
    if args.process_index == 0 and not script_args.skip_data_check and script_args.dense_loss_weight:
        check_before_training(train_samples.sources)
    model, processor = make_model(model_args)
    settle_depth_ranges([train_samples, eval_samples], processor)
    trainer = DenseGRPOTrainer(
        model=model,
        reward_funcs=rewards,
        args=args,
        train_dataset=make_questions(train_samples, kinds, processor),
        eval_dataset=make_questions(eval_samples, kinds, processor),
        processing_class=processor,
        dense_collator=DenseCollator(
            processor, candidates=script_args.candidates, min_label_share=script_args.min_label_share
        ),
        dense_loss_weight=script_args.dense_loss_weight,
        filter_groups=script_args.filter_groups,
        share_prompts=script_args.share_prompts,
    )
    metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    trainer.save_metrics("train", metrics)
    save_trained(trainer, model_args)
    if trainer.is_world_process_zero():
        print(json.dumps(metrics, indent=2))
    return metrics


def run(arguments: list[str] | None = None) -> int:
    """[`main`] as a command: 0, or 2 after a line on stderr where something can't be used."""
    try:
        main(arguments)
    except (ValueError, TypeError, OSError, DatasetsError) as error:
        print(f"train_grpo.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run())
