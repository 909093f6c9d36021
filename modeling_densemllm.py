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
"""DenseMLLM (arXiv 2602.14134): projector, model and losses around a causal LM whose vision logits are dense maps."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.generation.utils import GenerateOutput
from transformers.masking_utils import create_causal_mask, create_masks_for_generate
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging

from .attention_densemllm import attention_in_blocks, vision_block_ids
from .compat_densemllm import ENCODES_IMAGES_FIRST, cache_argument, either_cache, get_cache, select_positions
from .configuration_densemllm import DenseMLLMConfig, check_prompt_length, is_for_vllm
from .numbers_densemllm import IGNORED, InputNumbers, read_forward_numbers
from .prediction_densemllm import DensePredictionMixin
from .released_densemllm import RELEASED_KEYS
from .supervision_densemllm import Losses, Supervision, check_loss_arguments
from .vision_densemllm import DenseMLLMPreTrainedModel, DenseMLLMVisionModel, grid_on_host


if TYPE_CHECKING:
    from .parts_densemllm import TextPart, VisionPart
    from .pipeline_densemllm import DensePredictionPipeline
    from .processing_densemllm import DenseMLLMProcessor


logger = logging.get_logger(__name__)

# Saving a checkpoint, and fetching one, take along the files that a file's text imports, run or not. The models that
# build on this file are named here for that alone: to import them would be a circle.
TRAVELS_ALONG = """
from .auto_models_densemllm import DenseMLLMForDepthEstimation, DenseMLLMForSemanticSegmentation
"""


class DenseMLLMMultiModalProjector(nn.Module):
    """`merge_size**2` patches to one vision token: RMSNorm, concatenate, two linear layers."""

    def __init__(self, config: DenseMLLMConfig):
        super().__init__()
        self.width = config.vision_config.hidden_size * config.spatial_merge_size**2
        self.norm = nn.RMSNorm(config.vision_config.hidden_size, eps=1e-6)
        self.linear_1 = nn.Linear(self.width, self.width)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(self.width, config.get_text_config().hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # [n_patches, vision width] -> [n_vision_tokens, merge_size**2 * vision width] -> [.., text width]
        hidden_states = self.norm(hidden_states).reshape(-1, self.width)
        return self.linear_2(self.act(self.linear_1(hidden_states)))


@dataclass
class DenseMLLMModelOutputWithPast(BaseModelOutputWithPast):
    r"""
    image_hidden_states (`torch.FloatTensor` of shape `(n_vision_tokens, hidden_size)`, *optional*):
        The projected vision tokens of all images, as they enter the language model.
    """

    image_hidden_states: torch.FloatTensor | None = None


@dataclass
class DenseMLLMCausalLMOutputWithPast(CausalLMOutputWithPast):
    r"""
    loss (`torch.FloatTensor` of shape `()`, *optional*): with `labels`, `dense_targets` or `image_codes`:
        `text_loss + config.ntp_m_weight * ntp_m_loss + config.codebook_weight * codebook_loss`, whichever are there.
    logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`, *optional*): next-token logits;
        of the positions in `logits_to_keep` only. Left out while training with a loss, see `skip_logits`.
    cache (`Cache`, *optional*): the key-value cache; `past_key_values` before transformers 5.24.
    hidden_states, attentions (`tuple[torch.FloatTensor]`, *optional*): of the language model, on request.
    image_hidden_states (`torch.FloatTensor` of shape `(n_vision_tokens, hidden_size)`, *optional*): the projected
        vision tokens.
    text_loss (`torch.FloatTensor` of shape `()`, *optional*): next-token loss, with `labels`.
    ntp_m_loss (`torch.FloatTensor` of shape `()`, *optional*): NTP-M loss before its weight, with `dense_targets`.
    codebook_loss (`torch.FloatTensor` of shape `()`, *optional*): codebook loss before its weight, with `image_codes`.
    """

    image_hidden_states: torch.FloatTensor | None = None
    text_loss: torch.FloatTensor | None = None
    ntp_m_loss: torch.FloatTensor | None = None
    codebook_loss: torch.FloatTensor | None = None


class DenseMLLMModel(DenseMLLMPreTrainedModel):
    """Vision tower, projector and the backbone of the language model."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.weight$"]  # of a whole checkpoint

    def __init__(self, config: DenseMLLMConfig):
        super().__init__(config)
        if is_for_vllm(config):  # which would leave its own output embedding unset
            self._keys_to_ignore_on_load_unexpected = None
        self.vision_tower = DenseMLLMVisionModel._from_config(config.vision_config)
        self.multi_modal_projector = DenseMLLMMultiModalProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.FloatTensor,
        image_grid_thw: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Vision tokens of packed images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(n_patches, patch_size**2 * num_channels)`): patches.
            image_grid_thw (`torch.LongTensor` of shape `(n_images, 3)`): rows `(1, patches high, patches wide)`.

        Returns:
            the tower's output, with `pooler_output` a list of one `(n_vision_tokens, hidden_size)` tensor an image.
        """
        image_grid_thw = grid_on_host(image_grid_thw)
        outputs = self.vision_tower(pixel_values, image_grid_thw, return_dict=True, **kwargs)
        features = self.multi_modal_projector(outputs.last_hidden_state)
        sizes = image_grid_thw.prod(dim=-1) // self.config.spatial_merge_size**2
        outputs.pooler_output = list(features.split(sizes.tolist()))
        return outputs

    def get_image_token_mask(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.FloatTensor | None
    ) -> torch.BoolTensor:
        """Which positions are image placeholders: `bool [batch_size, sequence_length]`."""
        if input_ids is not None:
            return input_ids == self.config.image_token_id
        image_token = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(image_token)).all(-1)

    def get_placeholder_mask(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.FloatTensor,
        image_features: torch.FloatTensor,
        n_placeholders: int | None = None,
    ) -> torch.BoolTensor:
        """Mask of the image placeholders, `bool [batch_size, sequence_length, 1]`.

        Raises:
            ValueError: their number, which is counted unless it is given, is not that of the vision tokens.
        """
        is_image = self.get_image_token_mask(input_ids, inputs_embeds).to(inputs_embeds.device)
        found = int(is_image.sum()) if n_placeholders is None else n_placeholders
        if found != image_features.shape[0]:
            raise ValueError(
                f"`input_ids` have {found} image placeholders, but the images have {image_features.shape[0]} vision "
                "tokens"
            )
        return is_image[..., None]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        mm_token_type_ids: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        past_key_values: Cache | None = None,
        input_numbers: InputNumbers | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DenseMLLMModelOutputWithPast:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): with one image placeholder a
                vision token, the images in the order of the placeholders.
            pixel_values (`torch.FloatTensor` of shape `(n_patches, patch_size**2 * num_channels)`): packed patches.
            image_grid_thw (`torch.LongTensor` of shape `(n_images, 3)`): rows `(1, patches high, patches wide)`.
            mm_token_type_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): 1 for image
                placeholders, 0 for text; read with `vision_attention="bidirectional"`, found from the placeholders
                where left out.
            mm_encoder_outputs (`dict`, *optional*): `{"image": output of get_image_features}` instead of
                `pixel_values`.
            cache, past_key_values (`Cache`, *optional*): the key-value cache, under either name.
            input_numbers (`InputNumbers`, *optional*): of a caller that knows them; else they are read, once.

        Raises:
            ValueError: not exactly one of `input_ids` and `inputs_embeds`, both of `pixel_values` and
                `mm_encoder_outputs`, both names of the cache, images that don't match their placeholders, or more
                positions than the language model has.
        """
        cache = either_cache(cache, past_key_values)
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of `input_ids` or `inputs_embeds`")
        for name, loss in (("dense_targets", "NTP-M"), ("image_codes", "codebook")):
            # A trainer that has a head of its own, such as TRL's `SFTTrainer`, hands on whatever the batch has.
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"`{name}` were given to the model without its head, whose outputs lack the {loss} loss: train "
                    "with `DenseTrainer` or `transformers.Trainer`, or add the loss of `loss_densemllm.py` and leave "
                    f"`{name}` out here"
                )
        if position_ids is None:
            check_prompt_length((input_ids if inputs_embeds is None else inputs_embeds).shape[1], self.config)
        image_outputs = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None and image_outputs is not None:
            raise ValueError("You cannot specify both `pixel_values` and `mm_encoder_outputs` at the same time")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if input_numbers is None and (pixel_values is not None or image_outputs is not None):
            is_image = self.get_image_token_mask(input_ids, inputs_embeds)
            input_numbers = read_forward_numbers(is_image, image_grid_thw, attention_mask)[0]
        if pixel_values is not None:
            image_outputs = self.get_image_features(pixel_values, input_numbers.grid, return_dict=True)

        # A mask of more dimensions, or one for each type of layer, was made before: that of a static cache. One new
        # position can't see a later one: decoding needs no mask of its own.
        is_padding = attention_mask is None or getattr(attention_mask, "ndim", None) == 2
        if is_padding and inputs_embeds.shape[1] > 1:
            seen = None if mm_token_type_ids is None else mm_token_type_ids == 1
            if seen is None and self.config.vision_attention == "bidirectional":
                seen = self.get_image_token_mask(input_ids, inputs_embeds)
            attention_mask = self._make_mask(inputs_embeds, attention_mask, position_ids, cache, seen, input_numbers)

        image_features = None
        if image_outputs is not None:
            image_features = torch.cat(list(image_outputs.pooler_output))
            image_features = image_features.to(inputs_embeds.device, inputs_embeds.dtype)
            n_placeholders = input_numbers.n_placeholders
            is_image = self.get_placeholder_mask(input_ids, inputs_embeds, image_features, n_placeholders)
            inputs_embeds = inputs_embeds.masked_scatter(is_image, image_features)

        with attention_in_blocks(self.language_model.config, inputs_embeds.device):
            outputs = self.language_model(
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **cache_argument(cache),
                **kwargs,
            )
        return DenseMLLMModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
            **cache_argument(get_cache(outputs)),
        )

    def _make_mask(self, inputs_embeds, attention_mask, position_ids, cache, is_image, numbers):
        """The mask of several new positions where the language model's own is not the one, or would make the host wait
        more often: it looks at the padding by itself, to leave the mask out where there is none."""
        config = self.config.get_text_config()
        arguments = {"config": config, "inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
        arguments |= {"position_ids": position_ids, **cache_argument(cache)}
        if self.config.vision_attention == "bidirectional":
            if not (numbers is not None and numbers.n_placeholders) and not bool(is_image.any()):
                return attention_mask
            past_length = int(cache.get_seq_length()) if cache is not None else 0
            return create_masks_for_generate(**arguments, block_sequence_ids=vision_block_ids(is_image, past_length))
        windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
        kinds = {*(getattr(config, "layer_types", None) or ()), *windows} - {"full_attention", None}
        if cache is None and numbers is not None and numbers.is_padded and not kinds:
            if config._attn_implementation == "sdpa" and attention_mask.shape == inputs_embeds.shape[:2]:
                blocks = attention_mask.new_full(attention_mask.shape, -1, dtype=torch.long)  # there are none
                return create_causal_mask(**arguments, block_sequence_ids=blocks)
        return attention_mask


class DenseMLLMForConditionalGeneration(DenseMLLMPreTrainedModel, DensePredictionMixin, GenerationMixin):
    """DenseMLLM with its output embedding: generates text, and predicts dense maps from its vision tokens' logits."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    # `transformers.Trainer` counts labels, but not what the NTP-M loss is divided by: it takes the mean of both losses
    # over accumulation steps and processes. `DenseTrainer` counts both.
    accepts_loss_kwargs = False

    def __init__(self, config: DenseMLLMConfig):
        super().__init__(config)
        self.model = DenseMLLMModel(config)
        text_config = config.get_text_config()
        self.lm_head = nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=False)
        # Language models differ in what they call their input embedding.
        embedding = self.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is embedding)
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.post_init()

    @classmethod
    def _from_config(cls, config: DenseMLLMConfig, **kwargs: Any) -> "Self | DenseMLLMModel":
        # vLLM makes the output embedding and the logits itself, and asks `AutoModel.from_config` for the rest.
        return (DenseMLLMModel if is_for_vllm(config) else super())._from_config(config, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *model_args: Any, **kwargs: Any
    ) -> Self:
        """As for every model; a checkpoint in the layout of `tencent/Youtu-VL-4B-Instruct` loads as it is."""
        kwargs.setdefault("key_mapping", RELEASED_KEYS)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._keep_checkpoint_files(pretrained_model_name_or_path, kwargs)
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As for every model. Weights keep the names that they have here: under a config of this type, those of the
        released checkpoint that a model was loaded from would be found by nobody."""
        super().save_pretrained(save_directory, *args, **{"save_original_format": False, **kwargs})

    @classmethod
    def from_pretrained_parts(cls, vision: "VisionPart", text: "TextPart", **kwargs: Any) -> Self:
        r"""
        A DenseMLLM to train from a vision tower and a language model that don't know each other yet.

        The language model answers text as before. The tokenizer gets the tokens of DenseMLLM that it lacks; their
        embeddings start at the mean of a description's words (depth bins: on a path from "very near" to "very far
        away"). The projector is new.

        Args:
            vision: folder or Hub name of a SigLIP2-NaFlex checkpoint, a `Siglip2VisionModel`, or the config of a new
                tower (`DenseMLLMVisionConfig` or `dict`).
            text: folder or Hub name of any causal language model, or such a model, which is then part of the new one.
            tokenizer (*optional*): the language model's, changed in place; needed beside a loaded `text`.
            dtype (*optional*, defaults to `"auto"`): of the weights; that of `text`'s checkpoint.
            attn_implementation (`str`, *optional*): as for `from_pretrained`.
            text_kwargs (`dict`, *optional*): for `AutoModelForCausalLM.from_pretrained` (`gguf_file`, `revision`...).
            image_processor (`DenseMLLMImageProcessor`, *optional*): defaults to one of the tower's patch size.
            num_depth_bins (`int`, defaults to 1000): number of depth tokens.
            num_coordinates (`int`, defaults to 2048): number of x and of y coordinate tokens.
            spatial_merge_size (`int`, defaults to 2): edge, in patches, of the block that becomes a vision token.
            depth_ranges, default_depth_range, referring_crop_size: as for `DenseMLLMProcessor`.
            kwargs: further fields of [`DenseMLLMConfig`], such as `vision_attention` and `ntp_m_top_k`, and numbers of
                tokens that [`add_dense_tokens`] takes, such as `num_normal_bins`.

        Returns:
            the model; `model.get_processor()` is its processor. Save both to have a checkpoint.

        Raises:
            TypeError, ValueError: parts that can't be used: another kind of tower, no tokenizer, a tokenizer with more
                tokens than the language model, an output embedding with a bias.
        """
        from .parts_densemllm import make_from_parts

        return make_from_parts(cls, vision, text, **kwargs)

    def as_pipeline(self, processor: "DenseMLLMProcessor | None" = None, **kwargs: Any) -> "DensePredictionPipeline":
        """This model, where it is, as a [`DensePredictionPipeline`]; `kwargs` are those of `pipeline` and of
        `predict_dense`."""
        # Imported here, as transformers' pipelines take long to load; the file travels with a checkpoint all the same.
        from .pipeline_densemllm import DensePredictionPipeline

        if getattr(self, "hf_device_map", None) is None:
            kwargs.setdefault("device", self.device)
        return DensePredictionPipeline(model=self, processor=self._choose_processor(processor), **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(
        self,
        pixel_values: torch.FloatTensor,
        image_grid_thw: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """See [`DenseMLLMModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, image_grid_thw, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        mm_token_type_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        dense_targets: torch.LongTensor | None = None,
        dense_candidates: torch.LongTensor | None = None,
        dense_candidate_ranges: torch.LongTensor | None = None,
        image_codes: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        num_dense_items_in_batch: torch.Tensor | int | None = None,
        num_code_items_in_batch: torch.Tensor | int | None = None,
        skip_logits: bool | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DenseMLLMCausalLMOutputWithPast:
        r"""
        Args:
            input_ids, pixel_values, image_grid_thw, mm_token_type_ids, mm_encoder_outputs, cache, past_key_values:
                see [`DenseMLLMModel.forward`].
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): next-token targets, -100
                where ignored. Those at image placeholders are ignored whatever they are.
            dense_targets (`torch.LongTensor` of shape `(n_vision_tokens, max_targets)`, *optional*): vocabulary ids
                that are true of each vision token, filled up with -100; see [`ntp_m_loss`] and
                `DenseMLLMProcessor.encode_annotations`, which also explain the next two.
            dense_candidates (`torch.LongTensor` of shape `(n_vision_tokens,)` or `(n_vision_tokens, n_kinds)`,
                *optional*).
            dense_candidate_ranges (`torch.LongTensor` of shape `(n_rows, n_ranges, 2)`, *optional*).
            image_codes (`torch.LongTensor` of shape `(n_vision_tokens,)`, *optional*): the code that a visual
                tokenizer gives to each vision token's cell, in 0..`config.num_image_codes` - 1; negative where
                ignored. A vision token learns that of the next one of its image, by a cross entropy among the codes.
            logits_to_keep (`int` or `torch.Tensor`, defaults to 0): the last so many positions (0: all), their
                indices, or a mask of shape `(batch_size, sequence_length)`.
            num_dense_items_in_batch (`int`, *optional*): divide the NTP-M loss by this count of supervised vision
                tokens (one counts once for each kind of annotation that it has: entries of `dense_candidates` that
                aren't -1), as `num_items_in_batch` does for the text loss. Needed with it.
            num_code_items_in_batch (`int`, *optional*): the same for the codebook loss: the number of vision tokens
                whose next one in the same image has a code.
            skip_logits (`bool`, *optional*): leave `logits` out; the losses don't need them. Default: while training
                with a loss.

        Returns:
            [`DenseMLLMCausalLMOutputWithPast`].

        Raises:
            ValueError: `dense_targets` or `image_codes` without what they need beside them, or that don't fit.
        """
        dense = (dense_targets, dense_candidates, dense_candidate_ranges)
        counts = (kwargs.get("num_items_in_batch"), num_dense_items_in_batch, num_code_items_in_batch)
        check_loss_arguments(dense, image_codes is not None, self.config.num_image_codes, counts)
        supervision = None
        is_supervised = labels is not None or dense_targets is not None or image_codes is not None
        if is_supervised and (input_ids is None) != (inputs_embeds is None):
            is_image = self.model.get_image_token_mask(input_ids, inputs_embeds)
            if labels is not None:
                labels = self._shift_labels(labels, is_image, kwargs.get("shift_labels"))
            dense, code_ids = None if dense_targets is None else dense, self.config.code_ids
            supervision = Supervision(is_image, image_grid_thw, attention_mask, labels, dense, image_codes, code_ids)
        outputs: DenseMLLMModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=either_cache(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            mm_token_type_ids=mm_token_type_ids,
            use_cache=use_cache,
            mm_encoder_outputs=mm_encoder_outputs,
            input_numbers=None if supervision is None else supervision.inputs,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if skip_logits is None:
            skip_logits = self.training and is_supervised
            if skip_logits and labels is None:
                # As a trainer calls it that keeps the labels for a loss of its own.
                logger.warning_once(
                    "`logits` are left out while training, and a loss that is computed from them would lack NTP-M: "
                    "take `loss` of the output, or give `skip_logits=False` and add `ntp_m_loss` and `codebook_loss`"
                )
        logits = None if skip_logits else self.lm_head(select_positions(hidden_states, logits_to_keep))

        loss, losses = None, Losses(None, None, None)
        if supervision is not None:
            losses = supervision.losses(hidden_states, self.lm_head, self.config.ntp_m_top_k, *counts)
            weights = (1.0, self.config.ntp_m_weight, self.config.codebook_weight)
            parts = [(weight, part) for weight, part in zip(weights, losses, strict=True) if part is not None]
            loss = sum(weight * part for weight, part in parts)
        return DenseMLLMCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            text_loss=losses.text,
            ntp_m_loss=losses.dense,
            codebook_loss=losses.codes,
            **cache_argument(get_cache(outputs)),
        )

    def _shift_labels(self, labels, is_image, shift_labels) -> torch.Tensor:
        """Labels of text alone, `[batch_size * sequence_length]`; `is_image` are the image placeholders."""
        if shift_labels is None:
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        # Trainers that make labels of `input_ids` don't mean these: vision tokens' logits are for dense maps.
        is_image = F.pad(is_image.to(shift_labels.device)[:, 1:], (0, 1))
        is_image = is_image | (shift_labels == self.config.image_token_id)
        return shift_labels.masked_fill(is_image, IGNORED).flatten()

    def generate(
        self, inputs: torch.Tensor | None = None, generation_config: GenerationConfig | None = None, **kwargs: Any
    ) -> GenerateOutput | torch.LongTensor:
        """As for every model that generates.

        Raises:
            ValueError: also where the prompt is longer than the language model's positions, or where
                `prefill_chunk_size` would cut an image whose tokens see each other.
        """
        self._check_prompt(inputs, generation_config, kwargs)
        if not ENCODES_IMAGES_FIRST:
            kwargs = self._with_repeated_images(inputs, generation_config, kwargs)
        return super().generate(inputs, generation_config=generation_config, **kwargs)

    @torch.no_grad()
    def _with_repeated_images(self, inputs, generation_config, kwargs: dict) -> dict:
        """The arguments of `generate` with encoded images, once for each beam and sequence of a prompt: repeated by
        `generate`, the patches of an image would each stand beside its own copies."""
        config = self.generation_config if generation_config is None else generation_config
        repeats = max(
            kwargs.get(name) or getattr(config, name, None) or 1 for name in ("num_beams", "num_return_sequences")
        )
        encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        input_ids, embeds = kwargs.get("input_ids", inputs), kwargs.get("inputs_embeds")
        has_prompt = isinstance(input_ids, torch.Tensor) or embeds is not None
        if repeats == 1 or not has_prompt or (encoded is None and kwargs.get("pixel_values") is None):
            return kwargs
        if encoded is None:
            encoded = self.get_image_features(kwargs["pixel_values"], kwargs.get("image_grid_thw"), return_dict=True)
        features = torch.cat(list(encoded.pooler_output))
        is_image = self.model.get_image_token_mask(None if embeds is not None else input_ids, embeds)
        if int(is_image.sum()) != len(features):
            return kwargs  # forward says so
        rows = features.split(is_image.sum(dim=1).tolist())
        repeated = BaseModelOutputWithPooling(pooler_output=[row for row in rows for _ in range(repeats)])
        kwargs = {name: value for name, value in kwargs.items() if name not in ("pixel_values", "image_grid_thw")}
        return {**kwargs, "mm_encoder_outputs": {"image": repeated}}

    def _check_prompt(self, inputs, generation_config, kwargs: dict) -> None:
        input_ids, embeds, mask = inputs, kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
        if input_ids is None:
            input_ids = kwargs.get("input_ids")
        prompt = embeds if embeds is not None else input_ids
        if not isinstance(prompt, torch.Tensor) or prompt.ndim < 2:
            return
        length = prompt.shape[1]
        mask = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
        if kwargs.get("position_ids") is None:
            check_prompt_length(length if mask is None else int(mask.sum(dim=1).max()), self.config)
        chunk = kwargs.get("prefill_chunk_size") or getattr(
            self.generation_config if generation_config is None else generation_config, "prefill_chunk_size", None
        )
        if not chunk or (ENCODES_IMAGES_FIRST and self.config.vision_attention != "bidirectional"):
            return
        cache = either_cache(kwargs.get("cache"), kwargs.get("past_key_values"))
        # `input_ids` go on from the cache, or hold what is in it, too.
        is_whole = mask is None or mask.shape[1] == length
        start = int(cache.get_seq_length()) if cache is not None and is_whole else 0
        is_image = self.model.get_image_token_mask(None if embeds is not None else input_ids, embeds)
        if not ENCODES_IMAGES_FIRST and bool(is_image[:, start:].any()):
            raise ValueError("`prefill_chunk_size` leaves images out in this version of transformers; leave it out")
        edges = range(start + chunk, length, chunk)
        if any(bool((is_image[:, edge - 1] & is_image[:, edge]).any()) for edge in edges):
            raise ValueError(
                f"`prefill_chunk_size` {chunk} would cut an image, whose tokens see each other with the config's "
                "`vision_attention` 'bidirectional'; leave it out, or take one whose chunks end between images"
            )

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, inputs_embeds: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        # With a static cache the mask is made before forward, from `mm_token_type_ids` alone.
        if self.config.vision_attention == "bidirectional" and kwargs.get("mm_token_type_ids") is None:
            use_embeds = inputs_embeds is not None and kwargs.get("is_first_iteration")
            is_image = self.model.get_image_token_mask(None if use_embeds else input_ids, inputs_embeds)
            kwargs["mm_token_type_ids"] = is_image.long()
        if not kwargs.get("is_first_iteration") and kwargs.get("use_cache", True):
            kwargs.pop("mm_encoder_outputs", None)  # of the prompt's images; not every version leaves them out itself
        return super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)

    @staticmethod
    def create_masks_for_generate(
        config: DenseMLLMConfig,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: Cache | None = None,
        position_ids: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Any:  # of the attention implementation: a tensor, a `BlockMask`, a dict of them by kind of layer, or `None`
        """The mask for a static cache; the vision tokens of an image see each other where the config says so."""
        cache, blocks = either_cache(cache, past_key_values), None
        if config.vision_attention == "bidirectional" and inputs_embeds.shape[1] > 1 and mm_token_type_ids is None:
            return attention_mask  # forward makes the mask, which knows the placeholders
        if config.vision_attention == "bidirectional" and mm_token_type_ids is not None:
            past_length = cache.get_seq_length() if cache is not None else 0
            blocks = vision_block_ids(mm_token_type_ids == 1, int(past_length))
        return create_masks_for_generate(
            config=config.get_text_config(),
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            block_sequence_ids=blocks,
            **cache_argument(cache),
        )


DenseMLLMForConditionalGeneration.register_for_auto_class("AutoModel")

try:
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as LORA_TARGETS
except ImportError:
    LORA_TARGETS = {}
# peft knows the model types that are part of transformers. Language models differ in the names of their layers; only a
# peft whose own table has more than lists of names takes this.
if any(isinstance(targets, str) for targets in LORA_TARGETS.values()):
    LORA_TARGETS.setdefault(DenseMLLMConfig.model_type, "all-linear")

__all__ = [
    "DenseMLLMForConditionalGeneration",
    "DenseMLLMModel",
]
