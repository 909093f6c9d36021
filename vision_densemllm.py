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
"""The vision tower: a SigLIP2 encoder over packed patches; and the base class that all models share."""

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from .compat_densemllm import CACHE_NAMES
from .configuration_densemllm import DenseMLLMConfig, DenseMLLMVisionConfig
from .loading_densemllm import check_loaded_weights


MLP_CHUNK_ELEMENTS = 2**22  # intermediate states at a time without autograd: 16 MB in float32
MLP_CHUNK_ON_DEVICES = 2**26  # 128 MB in half precision: some thousands of patches, enough to keep a GPU busy


class AttentionSegments(NamedTuple):
    """Which patches of a packed batch attend to each other: segments, sorted so that those of one length stand next to
    each other and are computed as one dense batch. No mask is ever built, so memory is linear in the segments.

    Attributes:
        shapes: `(count, length)` of each run of segments with the same length.
        order: `[n_patches]`, the patches in the segments' order; `None` where that is the patches' own.
        inverse: `[n_patches]`, back from there; `None` with `order`.
        cos, sin: `[n_patches, head_dim]` rotary factors in the segments' order; `None` without rotary positions.
    """

    shapes: list[tuple[int, int]]
    order: torch.Tensor | None
    inverse: torch.Tensor | None
    cos: torch.Tensor | None
    sin: torch.Tensor | None


def check_image_grid(image_grid_thw: torch.Tensor, n_patches: int, merge_size: int) -> list[tuple[int, int]]:
    """`image_grid_thw` as a list of (patches high, patches wide).

    Raises:
        ValueError: it is not `[n_images, 3]` of `(1, h, w)`, an edge is not a multiple of `merge_size`, or the patches
            don't add up to `n_patches`.
    """
    if image_grid_thw is None or image_grid_thw.ndim != 2 or image_grid_thw.shape[-1] != 3:
        given = None if image_grid_thw is None else tuple(image_grid_thw.shape)
        raise ValueError(f"`image_grid_thw` must be [n_images, 3], got {given}")
    rows = image_grid_thw.tolist()
    for t, height, width in rows:
        if t != 1 or height < 1 or width < 1 or height % merge_size or width % merge_size:
            raise ValueError(
                f"`image_grid_thw` must have rows (1, h, w) with h and w multiples of {merge_size}, got "
                f"{(t, height, width)}"
            )
    if sum(height * width for _, height, width in rows) != n_patches:
        raise ValueError(
            f"`image_grid_thw` has {sum(height * width for _, height, width in rows)} patches, `pixel_values` has "
            f"{n_patches}"
        )
    return [(height, width) for _, height, width in rows]


def grid_on_host(image_grid_thw: torch.Tensor | None) -> torch.Tensor | None:
    """`image_grid_thw` on the CPU, where its sizes are read: on a device, each look at them would be a wait."""
    return image_grid_thw.cpu() if isinstance(image_grid_thw, torch.Tensor) else image_grid_thw


def _runs(lengths: list[int]) -> list[tuple[int, int]]:
    shapes: list[tuple[int, int]] = []
    for length in lengths:
        count = shapes.pop()[0] if shapes and shapes[-1][1] == length else 0
        shapes.append((count + 1, length))
    return shapes


class DenseMLLMVisionEmbeddings(nn.Module):
    """Patch embedding, plus the position table of SigLIP2-NaFlex where the config asks for it."""

    def __init__(self, config: DenseMLLMVisionConfig):
        super().__init__()
        self.merge_size, self.num_patches = config.spatial_merge_size, config.num_patches
        self.patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        has_table = config.position_embedding == "table"
        self.position_embedding = nn.Embedding(config.num_patches, config.hidden_size) if has_table else None

    def forward(self, pixel_values: torch.Tensor, grids: list[tuple[int, int]]) -> torch.Tensor:
        hidden_states = self.patch_embedding(pixel_values)  # [n_patches, hidden_size]
        if self.position_embedding is None:
            return hidden_states
        device = hidden_states.device
        positions = {grid: self.resized_positions(*grid, device) for grid in dict.fromkeys(grids)}
        return hidden_states + torch.cat([positions[grid] for grid in grids])

    def resized_positions(self, height: int, width: int, device: torch.device) -> torch.Tensor:
        """The table resized to a grid, merge-block-major: `[height * width, hidden_size]`."""
        # Through the layer, as its weight may be quantised, or offloaded until the layer is called.
        table = self.position_embedding(torch.arange(self.num_patches, device=device))
        side, merge = math.isqrt(self.num_patches), self.merge_size
        table_2d = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        # Antialiased resizing is not there for half precision on every device.
        resized = F.interpolate(
            table_2d.float(), size=(height, width), mode="bilinear", align_corners=False, antialias=True
        )
        blocks = resized[0].reshape(-1, height // merge, merge, width // merge, merge)
        return blocks.permute(1, 3, 2, 4, 0).reshape(height * width, -1).to(table.dtype)


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    attn_weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    attn_weights = F.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    attn_weights = F.dropout(attn_weights, p=dropout, training=module.training)
    return torch.matmul(attn_weights, value).transpose(1, 2).contiguous(), attn_weights


class DenseMLLMVisionAttention(nn.Module):
    """Attention within segments of a packed batch of patches."""

    def __init__(self, config: DenseMLLMVisionConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, segments: AttentionSegments, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | tuple[torch.Tensor, ...] | None]:
        """`[n_patches, hidden_size]` to the same. Attention weights are `[segments, heads, length, length]`, one such
        tensor for each length of segments, with implementations that return them."""
        if segments.order is not None:
            hidden_states = hidden_states[segments.order]
        heads = (-1, self.num_heads, self.head_dim)
        query = self.q_proj(hidden_states).view(heads)  # [n_patches, heads, head_dim]
        key = self.k_proj(hidden_states).view(heads)
        value = self.v_proj(hidden_states).view(heads)
        if segments.cos is not None:
            # In float32: half precision loses the low frequencies' small angles.
            cos, sin = segments.cos[:, None], segments.sin[:, None]
            query = (query.float() * cos + rotate_half(query.float()) * sin).to(value.dtype)
            key = (key.float() * cos + rotate_half(key.float()) * sin).to(value.dtype)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        outputs, weights, start = [], [], 0
        for count, length in segments.shapes:
            end = start + count * length
            output, weight = attention_interface(
                self,
                *(x[start:end].view(count, length, *heads[1:]).transpose(1, 2) for x in (query, key, value)),
                attention_mask=None,
                dropout=self.config.attention_dropout if self.training else 0.0,
                scaling=self.scaling,
                is_causal=False,
                **kwargs,
            )
            outputs.append(output.reshape(end - start, -1))
            weights.append(weight)
            start = end
        output = self.out_proj(outputs[0] if len(outputs) == 1 else torch.cat(outputs))
        if segments.inverse is not None:
            output = output[segments.inverse]
        if weights[0] is None:
            return output, None
        return output, weights[0] if len(weights) == 1 else tuple(weights)


class DenseMLLMVisionMLP(nn.Module):
    def __init__(self, config: DenseMLLMVisionConfig):
        super().__init__()
        self.intermediate_size = config.intermediate_size
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            return self.feed_forward(hidden_states)
        # Patches by the ten thousands: the wide intermediate states would be the peak of a forward pass.
        elements = MLP_CHUNK_ELEMENTS if hidden_states.device.type == "cpu" else MLP_CHUNK_ON_DEVICES
        rows = max(1, elements // self.intermediate_size)
        chunks = [self.feed_forward(chunk) for chunk in hidden_states.split(rows)]
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks)

    def feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class DenseMLLMVisionLayer(GradientCheckpointingLayer):
    def __init__(self, config: DenseMLLMVisionConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = DenseMLLMVisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = DenseMLLMVisionMLP(config)

    def forward(
        self, hidden_states: torch.Tensor, segments: AttentionSegments, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        hidden_states = hidden_states + self.self_attn(self.layer_norm1(hidden_states), segments, **kwargs)[0]
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class DenseMLLMVisionEncoder(nn.Module):
    def __init__(self, config: DenseMLLMVisionConfig):
        super().__init__()
        self.layers = nn.ModuleList([DenseMLLMVisionLayer(config) for _ in range(config.num_hidden_layers)])
        self.gradient_checkpointing = False


class DenseMLLMPreTrainedModel(PreTrainedModel):
    config: DenseMLLMConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["DenseMLLMVisionEmbeddings", "DenseMLLMVisionLayer"]
    _skip_keys_device_placement = CACHE_NAMES
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Self:  # with `output_loading_info=True` a tuple of it and a dict, for the caller to cast
        """As for every model, but a checkpoint whose weights are not all those of the model is refused: it would
        predict with random ones.

        Args:
            strict (`bool`, *optional*): whether weights that are missing, unexpected or not finite raise an error.
                `False` loads the rest, as for training with new weights. Where left out, it is `True`, but `False`
                with `output_loading_info=True`, which lists them for the caller to look at (`non_finite_keys` beside
                the others). Weights of another shape are a matter of `ignore_mismatched_sizes`.

        Raises:
            ValueError: with the names of those weights.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        takes_mismatched = kwargs.pop("ignore_mismatched_sizes", False)
        model, info = super().from_pretrained(
            pretrained_model_name_or_path,
            *model_args,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are listed beside the others
            **kwargs,
        )
        strict = not wants_info if strict is None else strict
        refused = ("missing", "unexpected", "non_finite") if strict else ()
        if not takes_mismatched:
            refused += ("mismatched",)
        info = check_loaded_weights(
            model, info, pretrained_model_name_or_path, refused,
            "`strict=False` loads what is there all the same, `ignore_mismatched_sizes=True` replaces what has "
            "another shape",
        )  # fmt: skip
        return (model, info) if wants_info else model


class DenseMLLMVisionModel(DenseMLLMPreTrainedModel):
    """SigLIP2 encoder over packed patches of any number of images; its keys are those of `Siglip2VisionModel`."""

    config: DenseMLLMVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    base_model_prefix = "vision_model"
    _input_embed_layer = "patch_embedding"
    _can_record_outputs = {"hidden_states": DenseMLLMVisionLayer, "attentions": DenseMLLMVisionAttention}

    def __init__(self, config: DenseMLLMVisionConfig):
        super().__init__(config)
        self.embeddings = DenseMLLMVisionEmbeddings(config)
        self.encoder = DenseMLLMVisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    def rotary_factors(
        self, image_grid_thw: torch.Tensor, device: torch.device | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of the 2-D rotary positions, `float32 [n_patches, head_dim]`, merge-block-major, on
        `device`, or on that of the grid.

        The frequencies are worked out here at each call: a buffer of them would be left unset by loading on the meta
        device.
        """
        device = image_grid_thw.device if device is None else device
        dim = self.config.hidden_size // self.config.num_attention_heads // 2
        exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
        positions = get_vision_position_ids(grid_on_host(image_grid_thw), self.config.spatial_merge_size)
        positions = positions.to(device)  # [n_patches, 2]
        angles = positions[..., None] * (self.config.rope_theta**-exponents)  # [n_patches, 2, dim / 2]
        angles = angles.flatten(1).repeat(1, 2)
        return angles.cos(), angles.sin()

    def attention_segments(
        self, image_grid_thw: torch.Tensor, device: torch.device | None = None
    ) -> tuple[AttentionSegments, AttentionSegments]:
        """The segments of full and of windowed layers: whole images, and windows of `window_size` pixels. Their
        tensors are on `device`, or on that of the grid; the grid is read on the CPU."""
        config = self.config
        device, image_grid_thw = image_grid_thw.device if device is None else device, grid_on_host(image_grid_thw)
        has_factors = config.position_embedding == "rope"
        cos, sin = self.rotary_factors(image_grid_thw, device) if has_factors else (None, None)
        lengths = (image_grid_thw[:, 1] * image_grid_thw[:, 2]).tolist()
        full = AttentionSegments(_runs(lengths), None, None, cos, sin)
        if config.window_size is None:
            return full, full
        cells, ends = get_vision_window_index(
            image_grid_thw, config.spatial_merge_size, config.window_size, config.patch_size
        )
        unit = config.spatial_merge_size**2
        patches = (cells.cpu()[:, None] * unit + torch.arange(unit, device="cpu")).flatten()
        lengths = ends.diff().long()
        by_length = torch.argsort(lengths.repeat_interleave(lengths), descending=True, stable=True)
        order = patches[by_length]
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device="cpu")
        order, inverse = order.to(device), inverse.to(device)
        shapes = _runs(lengths.sort(descending=True).values.tolist())
        cos, sin = (None, None) if cos is None else (cos[order], sin[order])
        return full, AttentionSegments(shapes, order, inverse, cos, sin)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(n_patches, patch_size**2 * num_channels)`):
                Patches of all images, merge-block-major.
            image_grid_thw (`torch.LongTensor` of shape `(n_images, 3)`):
                Rows `(1, patches high, patches wide)`. On the CPU, where the image processor makes it, it is read
                without waiting for the device.

        Returns:
            `last_hidden_state` of shape `(n_patches, hidden_size)`, after the last layer norm, in the patches' order.
        """
        features = self.config.num_channels * self.config.patch_size**2
        if pixel_values.ndim != 2 or pixel_values.shape[-1] != features:
            raise ValueError(f"`pixel_values` must be [n_patches, {features}], got {tuple(pixel_values.shape)}")
        image_grid_thw = grid_on_host(image_grid_thw)
        grids = check_image_grid(image_grid_thw, pixel_values.shape[0], self.config.spatial_merge_size)
        # Quantised layers have weights of another type than they compute in; norms are never quantised.
        hidden_states = self.embeddings(pixel_values.to(self.post_layernorm.weight.dtype), grids)
        segments = self.attention_segments(image_grid_thw, hidden_states.device)
        return BaseModelOutputWithPooling(last_hidden_state=self.encode(hidden_states, *segments, **kwargs))

    def encode(
        self,
        hidden_states: torch.Tensor,
        full: AttentionSegments,
        windows: AttentionSegments,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Embedded patches through all layers, of which some attend within `full` segments and the others within
        `windows`: `[n_patches, hidden_size]` to the same."""
        for index, layer in enumerate(self.encoder.layers):
            segments = full if index in self.config.fullatt_block_indexes else windows
            hidden_states = layer(hidden_states, segments, **kwargs)
        return self.post_layernorm(hidden_states)


__all__ = ["DenseMLLMPreTrainedModel", "DenseMLLMVisionModel"]
