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
described in `training/samples.py`: an image and any of a class map, depth, a mask with its expression, and chat.
All that a sample has is supervised at once.

`--do_eval` (of `--eval_split`) and `--do_predict` (of `--test_split`) alone measure a model and train nothing. Exits
with 2 after a line on stderr where something can't be used.
"""

import json
import os
import sys
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from datasets.exceptions import DatasetsError
from transformers import BitsAndBytesConfig, HfArgumentParser, set_seed
from transformers.trainer_utils import get_last_checkpoint

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor
from densemllm.arguments import parse_with_file
from densemllm.formats.folders import DataOptions, open_samples
from densemllm.formats.labels import load_id2label
from densemllm.formats.options import settle_depth_ranges
from densemllm.formats.own_folders import OPTIONS
from densemllm.formats.registry import format_of
from densemllm.parts_densemllm import add_tokens_to
from densemllm.training.arguments import DenseTrainingArguments
from densemllm.training.check import check_before_training
from densemllm.training.checkpoints import STATE_NAME
from densemllm.training.collator import DenseCollator
from densemllm.training.datasets import DenseDataset, DenseIterableDataset, DenseSource
from densemllm.training.image_tokenizer import ImageTokenizer, add_codes
from densemllm.training.model_card import licence_of
from densemllm.training.samples import Augmentation
from densemllm.training.trainer import DenseTrainer


if TYPE_CHECKING:
    from peft import PeftModel


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(
        default=None,
        metadata={"aliases": ["--model"], "help": "folder or Hub name of a DenseMLLM checkpoint to start from"},
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
    num_coordinates: int | None = field(
        default=None,
        metadata={"help": "tokens of x and of y that the model gets where it has fewer, for `thing_labels`"},
    )
    num_normal_bins: int | None = field(
        default=None, metadata={"help": "tokens of directions that the model gets where it has fewer, for `normals`"}
    )
    num_image_codes: int | None = field(
        default=None,
        metadata={
            "help": "tokens of codes of a visual tokenizer that the model gets where it has none, for `codes`; as many"
            " as `image_tokenizer` has"
        },
    )
    image_tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "folder or Hub name of a visual tokenizer, any model with `encode(pixel_values)`, whose codes of "
            "the images are learned besides, see `training/image_tokenizer.py`; `trust_remote_code` holds for it, too"
        },
    )
    codebook_weight: float | None = field(
        default=None, metadata={"help": "weight of the codebook loss; that of the model's config, 0.5 in a new one"}
    )


@dataclass
class DataArguments:
    dataset: list[str] = field(
        metadata={
            "help": "one or several data sets, see `load_samples`. In a configuration file each may have options of "
            "its own, which go before those for all: {dataset: NAME:PATH, weight: 2, split: train, label_map: ...}"
        }
    )
    dataset_weights: list[float] | None = field(
        default=None, metadata={"help": "how often each of them comes; goes before the weights of their own"}
    )
    id2label: list[str] | None = field(
        default=None,
        metadata={"help": "JSON file from class id to name, one or one a data set; `id2label.json` in its folder"},
    )
    ignore_index: list[str] | None = field(
        default=None,
        metadata={
            "help": "value of pixels of `segmentation` that aren't annotated, or several joined by commas, one or one "
            "a data set; 255"
        },
    )
    column_map: list[str] | None = field(
        default=None,
        metadata={"help": "columns by the schema's names, image=pixel_values,depth=depth_map, one or one a data set"},
    )
    label_map: list[str] | None = field(
        default=None,
        metadata={"help": "class ids to merge and drop, 3=5,7=255, or a JSON or YAML file, one or one a data set"},
    )
    reduce_labels: bool = field(
        default=False, metadata={"help": "class 0 isn't annotated, and all others are one less"}
    )
    image_pattern: list[str] | None = field(
        default=None,
        metadata={"help": "of a folder's images, {stem}_leftImg8bit.png, one or one a data set, '' for none"},
    )
    mask_pattern: list[str] | None = field(
        default=None, metadata={"help": "of its class maps, {stem}_gtFine_labelIds.png; likewise"}
    )
    depth_pattern: list[str] | None = field(
        default=None, metadata={"help": "of its depth, {stem}_depth.png; likewise"}
    )
    label_colors: list[str] | None = field(
        default=None,
        metadata={"help": "file of the colours of its class maps, JSON, YAML or text; likewise"},
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
    thing_labels: list[str] | None = field(
        default=None,
        metadata={
            "help": "names or ids of classes whose objects are told apart, joined by commas, one or one a data set, "
            "'' for none, 'data' for those that a data set itself says; `instances` tell them"
        },
    )
    train_split: str = field(default="train", metadata={"help": "split to train on"})
    eval_split: str | None = field(
        default=None,
        metadata={"help": "split to evaluate on; left out: each entry of `dataset` with an `eval_split` of its own"},
    )
    test_split: str | None = field(
        default=None, metadata={"help": "split that `do_predict` measures, after an evaluation"}
    )
    eval_dataset: str | None = field(
        default=None, metadata={"help": "data set of `eval_split`, where not the first of `dataset`"}
    )
    model_id2label: str | None = field(
        default=None,
        metadata={"help": "JSON file of the saved model's class names; those of all data sets that it was trained on"},
    )
    streaming: bool = field(default=False, metadata={"help": "read while training; needs `max_steps`"})
    candidates: str = field(
        default="vocabulary", metadata={"help": "negatives of a segmentation: vocabulary, or labels only"}
    )
    min_label_share: float = field(
        default=0.0, metadata={"help": "share of a cell that a class, or the foreground, needs to be a label of it"}
    )
    max_corrupt_share: float = field(default=0.01, metadata={"help": "share of unreadable rows that is put up with"})
    skip_data_check: bool = field(
        default=False,
        metadata={"help": "don't look at some rows of each data set before training, see `densemllm check`"},
    )
    random_scale: list[float] | None = field(
        default=None, metadata={"help": "augmentation: lowest and highest factor"}
    )
    crop_size: list[int] | None = field(default=None, metadata={"help": "augmentation: height and width in pixels"})
    flip_probability: float = field(default=0.0, metadata={"help": "augmentation: probability of mirroring"})
    color_jitter: float = field(default=0.0, metadata={"help": "augmentation: strength of colour changes"})
    camera_effects: float = field(
        default=0.0,
        metadata={"help": "augmentation: strength of exposure, noise, blur, JPEG and what else cameras do"},
    )
    max_num_patches: int | None = field(
        default=None,
        metadata={"help": "of an image in a batch; larger ones are read smaller. What is saved keeps its own"},
    )
    own_options: list[dict] = field(init=False)  # of each data set, by name
    is_measured: bool = field(init=False, default=False)  # see `DenseSource`
    images_alone: bool = field(init=False, default=False)  # see `load_samples`

    def __post_init__(self) -> None:
        entries = [_read_entry(entry) for entry in self.dataset]
        self.dataset = [name for name, _ in entries]
        self.own_options = [options for _, options in entries]


# What may be said of one data set of several, and the types that a configuration file has for it. Its layout's further
# options come on top.
OWN_OPTIONS: dict[str, tuple[type, ...]] = {
    "weight": (int, float),
    "split": (str,),
    "eval_split": (str,),
    "id2label": (str,),
    "depth_scale": (int, float),
    "depth_range": (str,),
    "columns": (str, list),
    "ignore_index": (int, str, list),
    "thing_labels": (str, list),
    "column_map": (str, dict),
    "label_map": (str, dict),
    "reduce_labels": (bool,),
    **dict.fromkeys(OPTIONS, (str,)),
}


def _read_entry(entry: str) -> tuple[str, dict]:
    """A data set's name, and what is said of it alone.

    Args:
        entry: the name, or a JSON object with it as `dataset`, and options.

    Raises:
        ValueError: no such object, or an option that can't be given.
    """
    if not entry.lstrip().startswith("{"):
        return entry, {}
    try:
        options = json.loads(entry)
    except ValueError as error:
        raise ValueError(f"`dataset` must be a name or a JSON object, got {entry}: {error}") from error
    name = options.pop("dataset", None)
    if not isinstance(name, str):
        raise ValueError(f"`dataset` must have a name as `dataset` in each entry with options, got {entry}")
    layout = format_of(name)
    accepted = [*OWN_OPTIONS, *(name for name in (layout[0].options if layout else ()) if name not in OWN_OPTIONS)]
    options = {option: value for option, value in options.items() if value is not None}
    for option, value in options.items():
        if option not in accepted:
            raise ValueError(f"`{option}` can't be given for {name}; it takes {accepted}")
        kinds = OWN_OPTIONS.get(option, (object,))
        if not isinstance(value, kinds) or isinstance(value, bool) and kinds not in ((bool,), (object,)):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"`{option}` of {name} must be {expected}, got {value!r}")
    return name, options


def parse_arguments(
    arguments: list[str] | None = None,
) -> tuple[ModelArguments, DataArguments, DenseTrainingArguments]:
    """Arguments of the command line, with a configuration file's in front, as three dataclasses."""
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, DenseTrainingArguments),
        description=__doc__,
        usage="train_hf.py [CONFIG] [--ARGUMENT VALUE ...], see --help",
    )
    return parse_with_file(parser, arguments)


def check_output(model_args: ModelArguments, data_args: DataArguments, args: DenseTrainingArguments) -> None:
    """Refuse an output folder in which a training would write over, or delete, what it starts from."""
    output = Path(args.output_dir)
    inputs = {name: getattr(model_args, name) for name in ("model_name_or_path", "vision_model", "text_model")}
    inputs = [(name, folder) for name, folder in inputs.items() if folder is not None]
    inputs += [("dataset", _path_of(name)) for name in data_args.dataset]
    inputs += [("eval_dataset", _path_of(data_args.eval_dataset))] if data_args.eval_dataset is not None else []
    for name, folder in inputs:
        if not output.exists() or not os.path.isdir(folder):
            continue
        if os.path.samefile(output, folder):
            raise ValueError(f"`output_dir` must not be the folder of `{name}`, {folder}: it would be written over")
        is_checkpoint = os.path.samefile(output, Path(folder).resolve().parent) and name == "model_name_or_path"
        if is_checkpoint and args.do_train and args.resume_from_checkpoint is None:
            raise ValueError(
                f"`output_dir` has the checkpoint `{name}`, {folder}, which a new training may delete: take another "
                f"folder, or go on with `--resume_from_checkpoint {folder}`"
            )


def _path_of(dataset: str) -> str:
    found = format_of(dataset)
    return dataset if found is None else found[1]


def find_checkpoint(model_args: ModelArguments, args: DenseTrainingArguments) -> str | None:
    """The folder to go on from; `None`: from the start."""
    resume = args.resume_from_checkpoint
    if resume is None or str(resume).lower() in ("false", "no", ""):
        return None
    if str(resume).lower() in ("true", "yes"):
        resume = get_last_checkpoint(args.output_dir) if os.path.isdir(args.output_dir) else None
        if resume is None:
            raise ValueError(f"`resume_from_checkpoint`: `output_dir` {args.output_dir} has no checkpoint")
    folder = Path(resume)
    if not (folder / STATE_NAME).is_file():
        raise ValueError(f"`resume_from_checkpoint` must be a checkpoint of a training: {resume} has no {STATE_NAME}")
    adapters = folder / "adapter_config.json"
    if adapters.is_file():
        if not model_args.use_peft:
            raise ValueError(f"{resume} has LoRA adapters: go on with `--use_peft`, as it was trained")
        written = json.loads(adapters.read_text(encoding="utf-8"))
        for name, argument in (("r", "lora_r"), ("lora_alpha", "lora_alpha")):
            if written.get(name) != getattr(model_args, argument):
                given = getattr(model_args, argument)
                raise ValueError(f"{resume} was trained with `--{argument} {written.get(name)}`, got {given}")
    elif model_args.use_peft and (folder / "config.json").is_file():
        raise ValueError(f"{resume} was trained without `--use_peft`: go on so")
    return str(resume)


def make_model(
    args: ModelArguments, image_tokenizer: ImageTokenizer | None = None
) -> tuple[DenseMLLMForConditionalGeneration, DenseMLLMProcessor]:
    """The model to train, parts frozen and adapters added, and its processor; with the codes of `image_tokenizer`."""
    parts = (args.vision_model, args.text_model)
    if (args.model_name_or_path is None) == (None in parts) or (args.model_name_or_path and any(parts)):
        raise ValueError("either `model_name_or_path`, or both of `vision_model` and `text_model` must be given")
    counts = {name: getattr(args, name) for name in ("num_coordinates", "num_normal_bins", "num_image_codes")}
    counts = {name: count for name, count in counts.items() if count is not None}
    if counts and args.use_peft:
        raise ValueError(f"`{next(iter(counts))}` can't be given with `use_peft`: adapters train no embeddings")
    dtype = "float32" if args.dtype == "auto" and not args.use_peft else args.dtype
    options = {"dtype": dtype, "attn_implementation": args.attn_implementation}
    if args.load_in_4bit:
        if not (torch.cuda.is_available() and args.use_peft):
            raise ValueError("`load_in_4bit` needs CUDA (with bitsandbytes) and `use_peft`")
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    try:
        if args.model_name_or_path is None:
            model = DenseMLLMForConditionalGeneration.from_pretrained_parts(*parts, **options, **counts)
            processor = model.get_processor()
        else:
            processor = DenseMLLMProcessor.from_pretrained(
                args.model_name_or_path, trust_remote_code=args.trust_remote_code
            )
            model = DenseMLLMForConditionalGeneration.from_pretrained(args.model_name_or_path, **options)
    except Exception as error:  # files that are cut, of other shapes, of another model: each library has its own
        name = args.model_name_or_path or " and ".join(parts)
        raise ValueError(f"{name} can't be loaded: {error}") from error
    if counts and args.model_name_or_path is not None:
        add_tokens_to(model, processor, **counts)
    if image_tokenizer is not None:
        add_codes(model, processor, image_tokenizer, trains_embeddings=not args.use_peft)
    if args.codebook_weight is not None:
        model.config.codebook_weight = args.codebook_weight
        model.config.validate_fields()
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


def add_adapters(model: DenseMLLMForConditionalGeneration, args: ModelArguments, parts: list) -> "PeftModel":
    """LoRA adapters on the linear layers of the given parts, or on those that are named; the rest is frozen."""
    from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training

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
    # With its task, `AutoPeftModelForCausalLM` loads a folder of adapters; without, peft would import the module of
    # this model's class by its name, which it does for packages that it knows alone.
    config = LoraConfig(
        r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout, target_modules=targets,
        task_type=TaskType.CAUSAL_LM,
    )  # fmt: skip
    return get_peft_model(model, config)


def _one_each(args: DataArguments, name: str) -> list:
    """An argument that is one, or one a data set, as one a data set."""
    values = getattr(args, name) or [None]
    if len(values) not in (1, len(args.dataset)):
        raise ValueError(f"`{name}` must be one, or one a data set, got {len(values)} for {len(args.dataset)}")
    return values * (len(args.dataset) // len(values))


def _options_of_sources(args: DataArguments) -> dict[str, list]:
    """What is said of the data sets, one entry a data set by the option's name."""
    options = {
        name: _one_each(args, name)
        for name in (
            "id2label",
            "depth_scale",
            "depth_range",
            "columns",
            "ignore_index",
            "thing_labels",
            "column_map",
            "label_map",
            *OPTIONS,
        )  # fmt: skip
    }
    for name in ("reduce_labels", "is_measured", "images_alone"):
        options[name] = [getattr(args, name)] * len(args.dataset)
    options["layout"] = [{} for _ in args.dataset]
    for place, own in enumerate(args.own_options):
        for name, value in own.items():
            if name in options:
                options[name][place] = value
            elif name not in OWN_OPTIONS:
                options["layout"][place][name] = value
    options["thing_labels"] = [
        _names_or_ids(things) if isinstance(things, str) and things else things for things in options["thing_labels"]
    ]
    options["columns"] = [
        names.split(",") if isinstance(names, str) and names else names for names in options["columns"]
    ]
    return options


OWN_THINGS = "data"  # of `--thing_labels`: those that the data set itself says


def _names_or_ids(joined: str) -> list[str | int]:
    return [int(part) if part.strip().isdecimal() else part for part in joined.split(",")]


def _make_source(name: str, split: str, options: dict, weight: float | None = None, streaming: bool = False):
    """A data set to read samples from, with what is said of it."""
    said = {option: options[option] for option in DataOptions.__dataclass_fields__ if option in options}
    said["layout"] = {option: options[option] for option in OPTIONS if options[option]} | options["layout"]
    data, facts = open_samples(name, split, DataOptions(**said), streaming)
    return DenseSource(
        data,
        weight,
        facts.id2label,
        facts.depth_scale,
        options["depth_range"],  # `settle_depth_ranges` knows what else there is
        options["columns"],
        facts.ignore_index,
        facts.thing_labels if options["thing_labels"] == [OWN_THINGS] else options["thing_labels"] or None,
        options["is_measured"],
    )


Evaluated = DenseDataset | dict[str, DenseDataset] | None


def make_datasets(args: DataArguments, seed: int) -> tuple[DenseDataset | DenseIterableDataset, Evaluated]:
    """The mixture to train on, and what to evaluate on, see [`make_evaluation_datasets`]."""
    if args.dataset_weights is not None and len(args.dataset_weights) != len(args.dataset):
        raise ValueError(f"`dataset_weights` must be one a data set, got {len(args.dataset_weights)}")
    augmentation = Augmentation(
        tuple(args.random_scale or (1.0, 1.0)),
        None if args.crop_size is None else tuple(args.crop_size),
        args.flip_probability,
        args.color_jitter,
        args.camera_effects,
    )
    options = _options_of_sources(args)
    weights = args.dataset_weights or [own.get("weight") for own in args.own_options]
    sources = [
        _make_source(
            name,
            args.own_options[place].get("split", args.train_split),
            {option: values[place] for option, values in options.items()},
            weights[place],
            args.streaming,
        )
        for place, name in enumerate(args.dataset)
    ]
    if args.streaming:
        train = DenseIterableDataset(sources, augmentation, args.max_corrupt_share, seed, repeat=True)
    else:
        train = DenseDataset(sources, augmentation, args.max_corrupt_share, seed)
    return train, make_evaluation_datasets(args, seed)


def make_evaluation_datasets(args: DataArguments, seed: int) -> Evaluated:
    """The `eval_split` of one data set; else those of all entries of `dataset` that have one of their own, by name: of
    the layout, or of the folder or file; else `None`."""
    if args.eval_split is not None:
        return make_evaluation_dataset(args, args.eval_split, seed)
    options, found = _options_of_sources(args), {}
    for place, (dataset, own) in enumerate(zip(args.dataset, args.own_options, strict=True)):
        if "eval_split" in own:
            said = {option: values[place] for option, values in options.items()}
            source = _make_source(dataset, own["eval_split"], said)
            first = dataset.partition(":")[0] if format_of(dataset) else Path(dataset).stem
            names = (f"{first}_{number}" if number > 1 else first for number in count(1))
            name = next(name for name in names if name not in found)
            found[name] = DenseDataset(source, None, args.max_corrupt_share, seed)
    return found or None


def make_evaluation_dataset(args: DataArguments, split: str, seed: int) -> DenseDataset:
    """A split of `eval_dataset`, or of the first of `dataset`, with the settings that it is trained with."""
    options = _options_of_sources(args)
    name = args.eval_dataset or args.dataset[0]
    places = [place for place, own in enumerate(args.dataset) if own == name]
    if not places:
        for option, values in options.items():
            if any(value != values[0] for value in values):
                raise ValueError(f"`eval_dataset` {name} is none of `dataset`: which `{option}` has it, of {values}?")
        places = [0]
    own = {option: values[places[0]] for option, values in options.items()}
    learned = [options["columns"][place] for place in places]
    own["columns"] = None if None in learned else list(dict.fromkeys(column for names in learned for column in names))
    return DenseDataset(_make_source(name, split, own), None, args.max_corrupt_share, seed)


def hub_name(name: str) -> str | None:
    """A model's name, if it is one on the Hub and no folder: a card can't refer to a folder."""
    return None if os.path.isdir(name) else name


def check_asked(data_args: DataArguments, args: DenseTrainingArguments) -> None:
    """Raise a `ValueError` where nothing is asked for, or a measurement without a split to measure on."""
    if not (args.do_train or args.do_eval or args.do_predict):
        raise ValueError("there is nothing to do: `do_train`, `do_eval` and `do_predict` are all off")
    has_own = any("eval_split" in own for own in data_args.own_options)
    for asked, split in (("do_eval", "eval_split"), ("do_predict", "test_split")):
        if getattr(args, asked) and getattr(data_args, split) is None and not (has_own and asked == "do_eval"):
            raise ValueError(f"`{asked}` needs `{split}`, the split to measure on")


def make_asked_datasets(
    data_args: DataArguments, args: DenseTrainingArguments
) -> tuple[DenseDataset | DenseIterableDataset | None, Evaluated, DenseDataset | None]:
    """The data sets to train on, to evaluate on and to predict, each `None` where it isn't asked for."""
    train_dataset = eval_dataset = test_dataset = None
    if args.do_train:
        train_dataset, eval_dataset = make_datasets(data_args, args.seed)
    elif args.do_eval:
        eval_dataset = make_evaluation_datasets(data_args, args.seed)
    if args.do_predict:
        test_dataset = make_evaluation_dataset(data_args, data_args.test_split, args.seed)
    return train_dataset, eval_dataset, test_dataset


def save_trained(trainer: DenseTrainer, model_args: ModelArguments) -> None:
    """Save what was trained before it is measured: the model, or the adapters alone in a folder of their own."""
    args = trainer.args
    if model_args.use_peft:
        adapters = os.path.join(args.output_dir, "adapters")
        trainer.model.save_pretrained(adapters, is_main_process=args.should_save)
    else:
        trainer.save_model()
    trainer.save_state()


def save_measured(trainer: DenseTrainer, model_args: ModelArguments, data_args: DataArguments) -> None:
    """Save what comes last: the model with its adapters merged in, the log with the measurements, and the card."""
    if model_args.use_peft:
        if not model_args.load_in_4bit:  # merged into 4 bits, they would be rounded away
            trainer.model = trainer.model.merge_and_unload()
        trainer.save_model()
    trainer.save_state()
    source = model_args.model_name_or_path or model_args.text_model
    evaluated_on = None if trainer.eval_dataset is None else data_args.eval_dataset or data_args.dataset[0]
    trainer.create_model_card(
        finetuned_from=hub_name(source), dataset=data_args.dataset, evaluated_on=evaluated_on,
        license=licence_of(source) if os.path.isdir(source) else None,
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> dict:
    """The script: train, save model, processor and card, evaluate. Returns the metrics.

    Raises:
        ValueError, OSError: an argument, a data set or a model that can't be used, each named.
    """
    model_args, data_args, args = parse_arguments(arguments)
    check_asked(data_args, args)
    check_output(model_args, data_args, args)
    checkpoint = find_checkpoint(model_args, args) if args.do_train else None
    set_seed(args.seed)
    data_args.images_alone = model_args.image_tokenizer is not None  # which makes something to learn of them
    train_dataset, eval_dataset, test_dataset = make_asked_datasets(data_args, args)
    if train_dataset is not None and args.process_index == 0 and not data_args.skip_data_check:
        check_before_training(train_dataset.sources, images_alone=data_args.images_alone)
    names = None if data_args.model_id2label is None else load_id2label(data_args.model_id2label)
    image_tokenizer = None
    if model_args.image_tokenizer is not None:
        image_tokenizer = ImageTokenizer.from_pretrained(
            model_args.image_tokenizer, model_args.trust_remote_code, model_args.num_image_codes
        )
        if args.dataloader_num_workers == 0:  # else it runs in processes that have no accelerator
            image_tokenizer.model.to(args.device)
    model, processor = make_model(model_args, image_tokenizer)
    settle_depth_ranges([train_dataset, eval_dataset, test_dataset], processor)
    trainer = DenseTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=DenseCollator(
            processor,
            candidates=data_args.candidates,
            min_label_share=data_args.min_label_share,
            image_tokenizer=image_tokenizer,
            max_num_patches=data_args.max_num_patches,
        ),
        processing_class=processor,
        id2label=names,
    )
    metrics = {}

    def keep(split: str, values: dict) -> None:
        metrics.update(values)
        trainer.save_metrics(split, values)

    if args.do_train:
        keep("train", trainer.train(resume_from_checkpoint=checkpoint).metrics)
        save_trained(trainer, model_args)
    if eval_dataset is not None and args.do_eval is not False:
        keep("eval", trainer.evaluate())
    if test_dataset is not None:
        keep("predict", trainer.evaluate(test_dataset, metric_key_prefix="predict"))
    if args.do_train:
        save_measured(trainer, model_args, data_args)
    if trainer.is_world_process_zero():
        print(json.dumps(metrics, indent=2))
    return metrics


def run(arguments: list[str] | None = None) -> int:
    """[`main`] as a command: 0, or 2 after a line on stderr where something can't be used."""
    try:
        main(arguments)
    except (ValueError, TypeError, OSError, DatasetsError, KeyError) as error:
        # A metric that no evaluation has is the one KeyError that is a user's.
        if isinstance(error, KeyError) and "metric_for_best_model" not in str(error):
            raise
        message = str(error)
        if "Original Traceback" in message:  # of a worker that reads data
            message = message.strip().splitlines()[-1].partition(": ")[2]
        print(f"train_hf.py: {' '.join(message.split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run())
