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

    python train_hf.py --model_name_or_path MODEL --dataset DATA --id2label labels.json --output_dir out \
        --per_device_train_batch_size 8 --num_train_epochs 3
    python train_hf.py config.yaml --learning_rate 2e-5
    accelerate launch train_hf.py config.yaml

A configuration file (YAML or JSON) has the arguments by name; what stands after it on the command line wins. Data is
described in `data_densemllm.py`: an image and any of a class map, metric depth, a mask with its expression, and chat.
All that a sample has is supervised at once.
"""

import json
import os
import sys
from dataclasses import dataclass, field

import torch
import yaml
from transformers import BitsAndBytesConfig, HfArgumentParser, set_seed

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor
from densemllm.data_densemllm import (
    Augmentation,
    DenseCollator,
    DenseDataset,
    DenseIterableDataset,
    DenseSource,
    find_id2label,
    load_id2label,
    load_samples,
)
from densemllm.trainer_densemllm import DenseTrainer, DenseTrainingArguments


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "folder or Hub name of a DenseMLLM checkpoint to start from"}
    )
    vision_model: str | None = field(
        default=None, metadata={"help": "instead of it: a SigLIP2-NaFlex tower, with `text_model`"}
    )
    text_model: str | None = field(
        default=None, metadata={"help": "and any causal language model; see `from_pretrained_parts`"}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "run the code that the checkpoint's tokenizer brings"}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flash_attention_2, ..."})
    dtype: str = field(
        default="auto",
        metadata={
            "help": "of the weights: float32, bfloat16, float16, or auto: float32, but the checkpoint's own under "
            "`use_peft`. Steps of a usual learning rate are lost in weights of 16 bits; `--bf16` computes in them"
        },
    )
    freeze_vision_tower: bool = field(default=False, metadata={"help": "leave the vision tower as it is"})
    freeze_projector: bool = field(default=False, metadata={"help": "leave the projector as it is"})
    freeze_language_model: bool = field(
        default=False, metadata={"help": "leave the language model and its embeddings as they are"}
    )
    use_peft: bool = field(default=False, metadata={"help": "train LoRA adapters; the saved model has them merged in"})
    lora_r: int = field(default=16, metadata={"help": "rank of the adapters"})
    lora_alpha: int = field(default=32, metadata={"help": "scale of the adapters, times `lora_r`"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout before the adapters"})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "names of the layers with adapters; all linear ones of language model and projector"},
    )
    load_in_4bit: bool = field(default=False, metadata={"help": "4-bit base for `use_peft`; CUDA and bitsandbytes"})


@dataclass
class DataArguments:
    dataset: list[str] = field(metadata={"help": "one or several data sets, see `load_samples`"})
    dataset_weights: list[float] | None = field(default=None, metadata={"help": "how often each of them comes"})
    id2label: list[str] | None = field(
        default=None,
        metadata={"help": "JSON file from class id to name, one or one a data set; `id2label.json` in its folder"},
    )
    ignore_index: list[int] | None = field(
        default=None,
        metadata={"help": "value of pixels of `segmentation` that aren't annotated, one or one a data set; 255"},
    )
    depth_scale: list[float] | None = field(
        default=None,
        metadata={"help": "metres a unit of depth, one or one a data set; left out: floats are metres"},
    )
    depth_range: list[str] | None = field(
        default=None, metadata={"help": "row of the config's `depth_ranges`, one or one a data set"}
    )
    columns: list[str] | None = field(
        default=None,
        metadata={"help": "columns to learn from, joined by commas, one or one a data set; all of the schema"},
    )
    train_split: str = field(default="train", metadata={"help": "split to train on"})
    eval_split: str | None = field(default=None, metadata={"help": "split to evaluate on"})
    eval_dataset: str | None = field(default=None, metadata={"help": "its data set, where not the first of `dataset`"})
    streaming: bool = field(default=False, metadata={"help": "read while training; needs `max_steps`"})
    candidates: str = field(
        default="vocabulary", metadata={"help": "negatives of a segmentation: vocabulary, or labels only"}
    )
    min_label_share: float = field(
        default=0.0, metadata={"help": "share of a cell that a class, or the foreground, needs to be a label of it"}
    )
    max_corrupt_share: float = field(default=0.01, metadata={"help": "share of unreadable rows that is put up with"})
    random_scale: list[float] | None = field(
        default=None, metadata={"help": "augmentation: lowest and highest factor"}
    )
    crop_size: list[int] | None = field(default=None, metadata={"help": "augmentation: height and width in pixels"})
    flip_probability: float = field(default=0.0, metadata={"help": "augmentation: probability of mirroring"})
    color_jitter: float = field(default=0.0, metadata={"help": "augmentation: strength of colour changes"})


def parse_arguments(arguments: list[str] | None = None):
    """Arguments of the command line, with a configuration file's in front, as three dataclasses."""
    parser = HfArgumentParser((ModelArguments, DataArguments, DenseTrainingArguments), description=__doc__)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0].endswith((".yaml", ".yml", ".json")):
        name = arguments.pop(0)
        with open(name, encoding="utf-8") as file:
            values = json.load(file) if name.endswith(".json") else yaml.safe_load(file)
        actions = {action.dest: action for action in parser._actions}
        if not isinstance(values, dict) or set(values) - set(actions):
            unknown = sorted(set(values) - set(actions)) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"{name} must have arguments by name; unknown: {unknown}")
        for argument, value in values.items():
            actions[argument].required = False
            if actions[argument].nargs in ("+", "*") and value is not None and not isinstance(value, list):
                values[argument] = [value]
        parser.set_defaults(**values)
    return parser.parse_args_into_dataclasses(arguments)


def make_model(args: ModelArguments) -> tuple[DenseMLLMForConditionalGeneration, DenseMLLMProcessor]:
    """The model to train, parts frozen and adapters added, and its processor."""
    parts = (args.vision_model, args.text_model)
    if (args.model_name_or_path is None) == (None in parts) or (args.model_name_or_path and any(parts)):
        raise ValueError("either `model_name_or_path`, or both of `vision_model` and `text_model` must be given")
    dtype = "float32" if args.dtype == "auto" and not args.use_peft else args.dtype
    options = {"dtype": dtype, "attn_implementation": args.attn_implementation}
    if args.load_in_4bit:
        if not (torch.cuda.is_available() and args.use_peft):
            raise ValueError("`load_in_4bit` needs CUDA (with bitsandbytes) and `use_peft`")
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    if args.model_name_or_path is None:
        model = DenseMLLMForConditionalGeneration.from_pretrained_parts(*parts, **options)
        processor = model.get_processor()
    else:
        processor = DenseMLLMProcessor.from_pretrained(
            args.model_name_or_path, trust_remote_code=args.trust_remote_code
        )
        model = DenseMLLMForConditionalGeneration.from_pretrained(args.model_name_or_path, **options)
    frozen = (
        (args.freeze_vision_tower, [model.model.vision_tower]),
        (args.freeze_projector, [model.model.multi_modal_projector]),
        (args.freeze_language_model, [model.model.language_model, model.lm_head]),
    )
    if args.use_peft:
        return add_adapters(model, args, [part for freeze, parts in frozen if not freeze for part in parts]), processor
    for freeze, parts in frozen:
        for part in parts:
            part.requires_grad_(not freeze)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("every part is frozen: there is nothing to train")
    return model, processor


def add_adapters(model: DenseMLLMForConditionalGeneration, args: ModelArguments, parts: list):
    """LoRA adapters on the linear layers of the given parts, or on those that are named; the rest is frozen."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    targets = args.lora_target_modules
    if targets is None:
        adapted = {id(module) for part in parts if part is not model.model.vision_tower for module in part.modules()}
        targets = [
            name
            for name, module in model.named_modules()
            if id(module) in adapted and isinstance(module, torch.nn.Linear) and module is not model.lm_head
        ]
    if args.load_in_4bit:
        model = prepare_model_for_kbit_training(model)
    config = LoraConfig(
        r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout, target_modules=targets
    )
    return get_peft_model(model, config)


def make_datasets(args: DataArguments, seed: int):
    """The mixture to train on, and the data set to evaluate on or `None`."""

    def one_each(name, values):
        values = values or [None]
        if len(values) not in (1, len(args.dataset)):
            raise ValueError(f"`{name}` must be one, or one a data set, got {len(values)} for {len(args.dataset)}")
        return values * (len(args.dataset) // len(values))

    def labels(folder, file):
        file = file or find_id2label(folder)
        return None if file is None else load_id2label(file)

    if args.dataset_weights is not None and len(args.dataset_weights) != len(args.dataset):
        raise ValueError(f"`dataset_weights` must be one a data set, got {len(args.dataset_weights)}")
    augmentation = Augmentation(
        tuple(args.random_scale or (1.0, 1.0)),
        None if args.crop_size is None else tuple(args.crop_size),
        args.flip_probability,
        args.color_jitter,
    )
    files, ranges = one_each("id2label", args.id2label), one_each("depth_range", args.depth_range)
    scales, ignored = one_each("depth_scale", args.depth_scale), one_each("ignore_index", args.ignore_index or [255])
    columns = [names and names.split(",") for names in one_each("columns", args.columns)]
    sources = [
        DenseSource(
            load_samples(name, args.train_split, args.streaming),
            weight,
            labels(name, file),
            scale,
            row,
            own,
            ignore_index,
        )
        for name, weight, file, scale, row, own, ignore_index in zip(
            args.dataset,
            args.dataset_weights or [None] * len(args.dataset),
            files,
            scales,
            ranges,
            columns,
            ignored,
            strict=True,
        )
    ]
    if args.streaming:
        train = DenseIterableDataset(sources, augmentation, args.max_corrupt_share, seed, repeat=True)
    else:
        train = DenseDataset(sources, augmentation, args.max_corrupt_share, seed)
    if args.eval_split is None:
        return train, None
    name = args.eval_dataset or args.dataset[0]
    places = [place for place, own in enumerate(args.dataset) if own == name]
    if not places:
        options = {"id2label": files, "depth_scale": scales, "depth_range": ranges, "columns": columns}
        for option, values in (options | {"ignore_index": ignored}).items():
            if any(value != values[0] for value in values):
                raise ValueError(f"`eval_dataset` {name} is none of `dataset`: which `{option}` has it, of {values}?")
        places = [0]
    first = places[0]
    learned = [columns[place] for place in places]
    learned = None if None in learned else list(dict.fromkeys(column for own in learned for column in own))
    evaluation = DenseSource(
        load_samples(name, args.eval_split), None, labels(name, files[first]), scales[first], ranges[first], learned,
        ignored[first],
    )  # fmt: skip
    return train, DenseDataset(evaluation, None, args.max_corrupt_share, seed)


def hub_name(name: str) -> str | None:
    """A model's name, if it is one on the Hub and no folder: a card can't refer to a folder."""
    return None if os.path.isdir(name) else name


def main(arguments: list[str] | None = None) -> dict:
    """The script: train, evaluate, save model, processor and card. Returns the metrics."""
    model_args, data_args, args = parse_arguments(arguments)
    set_seed(args.seed)
    train_dataset, eval_dataset = make_datasets(data_args, args.seed)
    model, processor = make_model(model_args)
    trainer = DenseTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=DenseCollator(
            processor, candidates=data_args.candidates, min_label_share=data_args.min_label_share
        ),
        processing_class=processor,
    )
    resume = args.resume_from_checkpoint
    metrics = dict(trainer.train(resume_from_checkpoint=resume == "True" or resume).metrics)
    if eval_dataset is not None:
        metrics |= trainer.evaluate()
    if model_args.use_peft:
        adapters = os.path.join(args.output_dir, "adapters")
        trainer.model.save_pretrained(adapters, is_main_process=args.should_save)
        if not model_args.load_in_4bit:  # merged into 4 bits, they would be rounded away
            trainer.model = trainer.model.merge_and_unload()
    trainer.save_model()
    trainer.save_metrics("all", metrics, combined=False)
    trainer.save_state()
    base = hub_name(model_args.model_name_or_path or model_args.text_model)
    trainer.create_model_card(finetuned_from=base, dataset=data_args.dataset)
    if trainer.is_world_process_zero():
        print(json.dumps(metrics, indent=2))
    return metrics


if __name__ == "__main__":
    main()
