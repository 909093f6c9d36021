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
"""A DenseMLLM from parts: any SigLIP2-NaFlex tower, any causal language model, and what joins them."""

import math
import os
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Siglip2VisionModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .checks_densemllm import check_count
from .configuration_densemllm import DenseMLLMConfig, DenseMLLMVisionConfig
from .image_processing_densemllm import DenseMLLMImageProcessor
from .loading_densemllm import check_loaded_weights
from .processing_densemllm import DenseMLLMProcessor
from .tasks_densemllm import SCALES, add_dense_tokens
from .tokens_densemllm import (
    CODE_SCALE,
    DEPTH_SCALE,
    STRUCTURE_TOKENS,
    VISION_TOKENS,
    X_SCALE,
    Y_SCALE,
    add_scales,
    code_ids_of,
)


VisionPart = str | os.PathLike[str] | PreTrainedModel | DenseMLLMVisionConfig | dict[str, Any]
TextPart = str | os.PathLike[str] | PreTrainedModel
Model = TypeVar("Model", bound=PreTrainedModel)


def load_vision_part(
    vision: VisionPart, dtype: str | torch.dtype, merge_size: int
) -> tuple[DenseMLLMVisionConfig, dict[str, torch.Tensor] | None]:
    """The tower's config, and its weights (`None`: a new tower)."""
    if isinstance(vision, (dict, DenseMLLMVisionConfig)):
        values = vision if isinstance(vision, dict) else vision.to_dict()
        return DenseMLLMVisionConfig(**{"spatial_merge_size": merge_size, **values}), None
    if isinstance(vision, (str, os.PathLike)):
        config = AutoConfig.from_pretrained(vision)
        if config.model_type not in ("siglip2", "siglip2_vision_model"):
            raise ValueError(
                f"`vision` must be a SigLIP2-NaFlex checkpoint ('siglip2' or 'siglip2_vision_model'), got {vision} of "
                f"type {config.model_type!r}"
            )
        source = vision
        vision, info = Siglip2VisionModel.from_pretrained(source, dtype=dtype, output_loading_info=True)
        # Without the pooling head, which stays behind.
        missing = {name for name in info["missing_keys"] if not name.removeprefix("vision_model.").startswith("head.")}
        check_loaded_weights(vision, {**info, "missing_keys": missing}, source, ("missing", "non_finite"))
    elif isinstance(vision, PreTrainedModel):
        vision = getattr(vision, "vision_model", vision)
    if getattr(getattr(vision, "config", None), "model_type", None) != "siglip2_vision_model":
        raise TypeError(
            "`vision` must be a folder or Hub name of a SigLIP2-NaFlex checkpoint, a `Siglip2VisionModel`, or the "
            f"config of a new tower, got {type(vision).__name__}"
        )
    source_config = vision.config
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "patch_size",
        "hidden_act", "layer_norm_eps", "attention_dropout", "num_patches",
    )  # fmt: skip
    config = DenseMLLMVisionConfig(
        **{name: getattr(source_config, name) for name in names},
        spatial_merge_size=merge_size,
        position_embedding="table",
        window_size=None,
        fullatt_block_indexes=[],
    )
    # The pooling head stays behind.
    state = {name.removeprefix("vision_model."): value for name, value in vision.state_dict().items()}
    return config, {name: value for name, value in state.items() if not name.startswith("head.")}


def load_text_part(
    text: TextPart, tokenizer: PreTrainedTokenizerBase | None, dtype: str | torch.dtype, text_kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The language model and its tokenizer."""
    if isinstance(text, (str, os.PathLike)):
        files = {name: value for name, value in text_kwargs.items() if name in ("gguf_file", "revision", "subfolder")}
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(text, **files)
        source = text
        text, info = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True, **text_kwargs)
        check_loaded_weights(text, info, source, ("missing", "non_finite"))
    elif not (isinstance(text, PreTrainedModel) and text.get_output_embeddings() is not None):
        raise TypeError(
            "`text` must be a folder or Hub name of a causal language model, or such a model, got "
            f"{type(text).__name__}"
        )
    if tokenizer is None:
        raise ValueError("`tokenizer` is needed beside a `text` that is a loaded model")
    head = text.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        raise ValueError(f"`text` must have a linear output embedding without a bias, got {head}")
    words = tokenizer.get_vocab()
    if max(words.values()) >= head.out_features:
        raise ValueError(
            f"`tokenizer` does not belong to `text`: it has the id {max(words.values())}, but the vocabulary has "
            f"{head.out_features}"
        )
    return text, tokenizer


@torch.no_grad()
def start_new_rows(
    weight: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    old_ids: dict[str, int],
    described: dict[str, list[int]],
) -> None:
    """Give the rows of added tokens a sensible start, in place.

    A token that is described becomes the mean of its description's rows. Tokens of a scale, such as depth bins, lie on
    a path through the means of its anchors, such as from near to far. A mean's logit is the mean of its words' logits,
    so thousands of new tokens take next to no probability from text. (Scaled to the length of the rows that were
    there, they would: the means share the direction that all rows have.)

    Args:
        weight: `[vocab_size, hidden_size]`, input or output embedding.
        tokenizer: with the added tokens.
        old_ids: token to id, before they were added.
        described: description to ids, before they were added.
    """

    def mean_row(text: str) -> torch.Tensor:
        return weight[torch.tensor(described[text], device=weight.device)].float().mean(dim=0)

    vocabulary, descriptions = tokenizer.get_vocab(), {**VISION_TOKENS, **STRUCTURE_TOKENS}
    places = {}
    for scale in SCALES:
        tokens = scale.tokens(scale.count(vocabulary))
        places |= {token: (scale.anchors, (k + 0.5) / len(tokens)) for k, token in enumerate(tokens)}
    paths = {anchors: torch.stack([mean_row(text) for text in anchors]) for anchors, _ in places.values()}
    for token, token_id in vocabulary.items():
        if token in old_ids:
            continue
        if token in places:
            anchors, place = places[token]
            place = place * (len(anchors) - 1)
            first = min(int(place), len(anchors) - 2)
            row = torch.lerp(paths[anchors][first], paths[anchors][first + 1], place - first)
        else:
            row = mean_row(descriptions[token])
        weight[token_id] = row.to(weight.dtype)


@torch.no_grad()
def start_projector(projector: nn.Module, embeddings: torch.Tensor) -> None:
    """New weights with which vision tokens enter the language model at the size of its own embeddings.

    Args:
        projector: the model's.
        embeddings: `[n, hidden_size]`, some outputs of the input embedding.
    """
    width = projector.linear_1.in_features
    nn.init.ones_(projector.norm.weight)
    # Normalised features have a mean square of 1, so do the first layer's outputs, and 0.425 after the GELU.
    nn.init.normal_(projector.linear_1.weight, std=1 / math.sqrt(width))
    size = embeddings.float().square().mean()
    nn.init.normal_(projector.linear_2.weight, std=math.sqrt(float(size) / (0.425 * width)))
    nn.init.zeros_(projector.linear_1.bias)
    nn.init.zeros_(projector.linear_2.bias)


def describe_new_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Description to ids of all that new tokens start from, in the words that a tokenizer has without them."""
    texts = (
        *VISION_TOKENS.values(),
        *STRUCTURE_TOKENS.values(),
        *(text for scale in SCALES for text in scale.anchors),
    )
    return {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts}


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase, num_depth_bins: int, num_coordinates: int, **counts: int
) -> None:
    """Add the tokens that are missing, and have prompts padded as generation needs it, in place."""
    add_dense_tokens(tokenizer, num_depth_bins, num_coordinates, **counts)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"


def is_tied(text: PreTrainedModel) -> bool:
    """Whether a language model's output embedding is its input embedding."""
    return text.get_output_embeddings().weight is text.get_input_embeddings().weight


def make_config(
    vision_config: DenseMLLMVisionConfig, text: PreTrainedModel, processor: DenseMLLMProcessor, tied: bool,
    **config_kwargs: Any,
) -> DenseMLLMConfig:  # fmt: skip
    """The config of a tower, a language model and a processor; `config_kwargs` are further fields of it."""
    convert = processor.tokenizer.convert_tokens_to_ids
    first_code, num_codes = code_ids_of(processor.tokenizer)
    config = DenseMLLMConfig(
        vision_config=vision_config,
        text_config=text.config,
        image_token_id=processor.image_token_id,
        vision_start_token_id=convert("<|vision_start|>"),
        vision_end_token_id=convert("<|vision_end|>"),
        num_depth_bins=processor.num_depth_bins,
        depth_ranges=processor.depth_ranges,
        default_depth_range=processor.default_depth_range,
        tie_word_embeddings=tied,
        image_code_token_id=first_code,
        num_image_codes=num_codes,
        **config_kwargs,
    )
    config.text_config.tie_word_embeddings = tied
    return config


def join_parts(
    model_class: type[Model], config: DenseMLLMConfig, text: PreTrainedModel,
    vision_state: dict[str, torch.Tensor] | None, attn_implementation: str | None,
) -> Model:  # fmt: skip
    """A model around the language model itself, with a tower that has `vision_state` (`None`: new weights). Its
    projector has no values yet.

    Raises:
        TypeError: the language model's backbone is not the one that `AutoModel` builds.
    """
    options = {"dtype": text.dtype, "attn_implementation": attn_implementation}
    with torch.device("meta"):  # no weights for what is there already
        model = model_class._from_config(config, **options)
    if type(model.model.language_model) is not type(text.base_model):
        raise TypeError(f"`text` must be a model whose backbone `AutoModel` builds, got {type(text).__name__}")
    model.model.language_model = text.base_model
    model.lm_head.weight = text.get_output_embeddings().weight
    device = model.lm_head.weight.device
    model.model.vision_tower = type(model.model.vision_tower)._from_config(config.vision_config, **options).to(device)
    if vision_state is not None:
        model.model.vision_tower.load_state_dict(vision_state)
    model.model.multi_modal_projector.to_empty(device=device)
    model.tie_weights()
    return model


def _start_embeddings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, old_ids: dict[str, int],
    described: dict[str, list[int]],
) -> None:  # fmt: skip
    weights = {id(weight): weight for weight in (model.get_input_embeddings().weight, model.lm_head.weight)}
    for weight in weights.values():
        start_new_rows(weight, tokenizer, old_ids, described)


def add_tokens_to(model: PreTrainedModel, processor: DenseMLLMProcessor, **counts: int) -> int:
    """Add the tokens of a task to a checkpoint that lacks them, in place, to train it for the task. The rows of their
    embeddings start as [`start_new_rows`] says; all that is there stays as it is.

    Args:
        model: a DenseMLLM.
        processor: its processor.
        counts: number of tokens by the arguments of [`add_dense_tokens`]: `num_coordinates`, `num_normal_bins`,
            `num_image_codes`. Tokens that are there are none to add; none is taken away.

    Returns:
        number of tokens that were added.

    Raises:
        TypeError: a count that no task has, or one that is not a whole number. Depth bins are not among them: what a
            bin means depends on how many there are.
        ValueError: a count below 1.
    """
    accepted = sorted({scale.argument for scale in SCALES} - {DEPTH_SCALE.argument})
    unknown = sorted(set(counts) - set(accepted))
    if unknown:
        raise TypeError(f"`{unknown[0]}` is not an argument; accepted are {accepted}")
    for name, count in counts.items():
        check_count(name, count)
    tokenizer = processor.tokenizer
    for scale in set(SCALES) - {X_SCALE, Y_SCALE}:  # more coordinates leave the first ones what they are: pixels
        there = scale.count(tokenizer.get_vocab())
        if 0 < there < counts.get(scale.argument, 0):
            raise ValueError(f"`{scale.argument}` must be {there}, as the checkpoint has: more would be other bins")
    old_ids, described = dict(tokenizer.get_vocab()), describe_new_tokens(tokenizer)
    added = add_scales(tokenizer, {scale: counts[scale.argument] for scale in SCALES if scale.argument in counts})
    if len(tokenizer) > len(model.get_input_embeddings().weight):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    _start_embeddings(model, tokenizer, old_ids, described)
    if CODE_SCALE.argument in counts:
        model.config.image_code_token_id, model.config.num_image_codes = code_ids_of(tokenizer)
    processor.forget_tokens()
    return added


def start_new_weights(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, old_ids: dict[str, int],
    described: dict[str, list[int]],
) -> None:  # fmt: skip
    """Values for the rows of added tokens and for the projector, in place; arguments as for [`start_new_rows`]."""
    _start_embeddings(model, tokenizer, old_ids, described)
    rows = torch.tensor(sorted(set(old_ids.values()))[:4096], device=model.lm_head.weight.device)
    start_projector(model.model.multi_modal_projector, model.get_input_embeddings()(rows))


def make_from_parts(
    model_class: type[Model], vision: VisionPart, text: TextPart, tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str | torch.dtype = "auto", attn_implementation: str | None = None,
    text_kwargs: dict[str, Any] | None = None, image_processor: DenseMLLMImageProcessor | None = None,
    num_depth_bins: int = 1000, num_coordinates: int = 2048, spatial_merge_size: int = 2,
    depth_ranges: dict[str, dict[str, Any]] | None = None, default_depth_range: str | None = None,
    referring_crop_size: int = 1280, **config_kwargs: Any,
) -> Model:  # fmt: skip
    """See [`DenseMLLMForConditionalGeneration.from_pretrained_parts`]."""
    text_kwargs = {"attn_implementation": attn_implementation, **(text_kwargs or {})}
    vision_config, vision_state = load_vision_part(vision, dtype, spatial_merge_size)
    text, tokenizer = load_text_part(text, tokenizer, dtype, text_kwargs)
    old_ids, described = dict(tokenizer.get_vocab()), describe_new_tokens(tokenizer)
    counts = {scale.argument: config_kwargs.pop(scale.argument, scale.default) for scale in SCALES}
    counts |= {"num_depth_bins": num_depth_bins, "num_coordinates": num_coordinates}
    prepare_tokenizer(tokenizer, **counts)
    processor = DenseMLLMProcessor(
        image_processor or DenseMLLMImageProcessor(patch_size=vision_config.patch_size, merge_size=spatial_merge_size),
        tokenizer,
        depth_ranges=depth_ranges,
        default_depth_range=default_depth_range,
        num_depth_bins=num_depth_bins,
        referring_crop_size=referring_crop_size,
    )
    tied = is_tied(text)
    # Many models keep more rows than their tokenizer has tokens; those are never taken away.
    if len(tokenizer) > len(text.get_input_embeddings().weight):
        text.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = make_config(vision_config, text, processor, tied, spatial_merge_size=spatial_merge_size, **config_kwargs)
    model = join_parts(model_class, config, text, vision_state, attn_implementation)
    start_new_weights(model, tokenizer, old_ids, described)
    model.generation_config = text.generation_config
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.set_processor(processor)
    return model.eval()
