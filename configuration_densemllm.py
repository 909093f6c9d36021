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
"""Configuration of DenseMLLM (arXiv 2602.14134). The defaults are the geometry of `tencent/Youtu-VL-4B-Instruct`."""

import os
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto import modeling_auto

from .compat_densemllm import CACHE_NAMES
from .released_densemllm import RELEASED_LAYOUTS, RELEASED_TEXT_CONFIG, translate_config


__version__ = "0.2.0"  # of the package, and of this code where it travels with a checkpoint

# The auto classes that a saved checkpoint answers to: one table, as `register_for_auto_class` keeps a single name.
AUTO_MAP = {
    "AutoConfig": "configuration_densemllm.DenseMLLMConfig",
    "AutoModel": "modeling_densemllm.DenseMLLMForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_densemllm.DenseMLLMForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_densemllm.DenseMLLMForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_densemllm.DenseMLLMForConditionalGeneration",
    "AutoModelForDepthEstimation": "auto_models_densemllm.DenseMLLMForDepthEstimation",
    "AutoModelForSemanticSegmentation": "auto_models_densemllm.DenseMLLMForSemanticSegmentation",
    "AutoImageProcessor": "image_processing_densemllm.DenseMLLMImageProcessor",
    "AutoProcessor": "processing_densemllm.DenseMLLMProcessor",
}
CUSTOM_PIPELINES = {
    "dense-prediction": {"impl": "pipeline_densemllm.DensePredictionPipeline", "pt": ["AutoModel"]},
}
# In the place of transformers' pipelines of these names, which drop all arguments that they don't know without a word.
REPLACED_PIPELINES = {
    "depth-estimation": {
        "impl": "pipeline_densemllm.DenseDepthEstimationPipeline", "pt": ["AutoModelForDepthEstimation"],
    },
    "image-segmentation": {
        "impl": "pipeline_densemllm.DenseImageSegmentationPipeline", "pt": ["AutoModelForSemanticSegmentation"],
    },
    "object-detection": {"impl": "pipeline_densemllm.DenseObjectDetectionPipeline", "pt": ["AutoModel"]},
    "zero-shot-object-detection": {
        "impl": "pipeline_densemllm.DenseZeroShotObjectDetectionPipeline", "pt": ["AutoModel"],
    },
}  # fmt: skip
# What is not for this model, and what is for the same end.
OTHER_WAYS = {
    "mask-generation": (
        "`pipeline('image-segmentation', subtask='instance')` gives the masks of objects, and "
        "`predict_dense(image, task='referring', text=..., box=...)` that of one object"
    ),
    "zero-shot-image-classification": "`model.predict(image, task='classification', text=[...])` names the class",
}
# transformers' server and pipelines look a model up by name, in tables of the models that it has itself, and have no
# other way to a model whose code stands beside its checkpoint. The Auto classes don't read these rows.
NAMED_MODELS = {
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES": "DenseMLLMForConditionalGeneration",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": "DenseMLLMForConditionalGeneration",
    "MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES": "DenseMLLMForDepthEstimation",
    "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES": "DenseMLLMForSemanticSegmentation",
}


class CustomPipelines(dict):
    """`config.custom_pipelines`: the tasks for which `pipeline` runs the code that stands beside a checkpoint.

    It lists the one task that `pipeline` takes where none is named, and has [`REPLACED_PIPELINES`] for whoever asks
    for them. A task of ours that is registered in this process, as `import densemllm` does, is not one of them (`in`
    says no): its code is here already, and nobody has to trust another. A task that is not for this model is a
    `ValueError` that names what is, before a model is loaded.

    Args:
        replaced: the latter; none of a checkpoint whose code is older than they are.
    """

    def __init__(self, listed: dict, replaced: dict):
        super().__init__(listed)
        self.replaced = replaced

    def __reduce__(self) -> tuple[type, tuple[dict, dict]]:
        return type(self), (dict(self), self.replaced)

    def __contains__(self, task: object) -> bool:
        from transformers.pipelines import PIPELINE_REGISTRY  # of no use to whoever only reads a config, and slow

        if self.replaced and task in OTHER_WAYS:
            return True
        is_registered = task in PIPELINE_REGISTRY.get_supported_tasks()
        return task in self.replaced or (super().__contains__(task) and not is_registered)

    def __missing__(self, task: str) -> dict:
        if self.replaced and task in OTHER_WAYS:
            raise ValueError(f"`task` {task!r} is not one of a DenseMLLM; {OTHER_WAYS[task]}")
        return dict(self.replaced[task])


# How metres become depth bins, one row a data set (paper, section on depth tokens). A row with a `prompt` is a known
# camera: its prompt stands before the image, so that the vision tokens can read it. A row with a `focal_length`
# (pixels) is an open-world one: images are scaled to that focal length.
RELEASED_DEPTH_RANGES = {
    "nyuv2": {
        "mapping": "linear",
        "min_depth": 0.0,
        "max_depth": 10.0,
        "prompt": "Please estimate the depth of this image from the NYUv2 dataset.",
    },
    "cityscapes": {
        "mapping": "linear",
        "min_depth": 0.0,
        "max_depth": 80.0,
        "prompt": "Please estimate the depth of this image from the Cityscapes dataset.",
    },
    "ddad": {
        "mapping": "linear",
        "min_depth": 0.05,
        "max_depth": 120.0,
        "prompt": "Please estimate the depth of this image from the DDAD dataset.",
    },
    "open_world": {"mapping": "log", "min_depth": 0.5, "max_depth": 100.0, "focal_length": 2000.0},
}


def default_depth_range_of(depth_ranges: dict, given: str | None = None) -> str | None:
    """The row that is used when a caller names none: the one given, else `open_world`, else the first of the table."""
    if given is not None or not depth_ranges:
        return given
    return "open_world" if "open_world" in depth_ranges else next(iter(depth_ranges))


def check_depth_ranges(depth_ranges: dict, default_depth_range: str) -> None:
    """Raise a `ValueError` that names the row and the entry if a table of depth ranges can't be used.

    Args:
        depth_ranges: name to row; a row has `mapping` ("linear" or "log"), `min_depth` and `max_depth` in metres, and
            optionally `prompt` (text before the image) and `focal_length` (pixels).
        default_depth_range: the row that is used when a caller names none.
    """
    if not isinstance(depth_ranges, dict) or not depth_ranges:
        raise ValueError(f"`depth_ranges` must be a dict with at least one row, got {depth_ranges!r}")
    for name, row in depth_ranges.items():
        where = f"`depth_ranges[{name!r}]`"
        if not isinstance(row, dict):
            raise ValueError(f"{where} must be a dict, got {row!r}")
        unknown = set(row) - {"mapping", "min_depth", "max_depth", "prompt", "focal_length"}
        if unknown:
            raise ValueError(f"{where} has unknown entries {sorted(unknown)}")
        if row.get("mapping") not in ("linear", "log"):
            raise ValueError(f"{where} needs `mapping` 'linear' or 'log', got {row.get('mapping')!r}")
        low, high = row.get("min_depth"), row.get("max_depth")
        if not all(isinstance(value, (int, float)) for value in (low, high)) or not 0 <= low < high < float("inf"):
            raise ValueError(f"{where} needs 0 <= min_depth < max_depth in metres, got {low!r} and {high!r}")
        if row["mapping"] == "log" and low == 0:
            raise ValueError(f"{where} is logarithmic and needs min_depth > 0, got {low!r}")
        if row.get("prompt") is not None and not isinstance(row["prompt"], str):
            raise ValueError(f"{where} needs `prompt` as a string, got {row['prompt']!r}")
        focal_length = row.get("focal_length")
        is_length = isinstance(focal_length, (int, float)) and 0 < focal_length < float("inf")
        if focal_length is not None and not is_length:
            raise ValueError(f"{where} needs `focal_length` as a finite number > 0 of pixels, got {focal_length!r}")
    if default_depth_range not in depth_ranges:
        raise ValueError(f"`default_depth_range` must be one of {sorted(depth_ranges)}, got {default_depth_range!r}")


def translate_released_config(values: dict, ignored: "tuple[str, ...] | list[str]" = ()) -> dict:
    """The config of a checkpoint in one of [`RELEASED_LAYOUTS`], such as the flat one of
    `tencent/Youtu-VL-4B-Instruct`, as the fields of a [`DenseMLLMConfig`].

    Args:
        values: what its `config.json` holds.
        ignored: names of fields, as messages write them, to leave out without knowing what they do.

    Raises:
        ValueError: as for [`translate_config`], and with a message that lists all that is wrong.
    """
    # A tower of such a checkpoint has rotary positions.
    vision_fields = set(DenseMLLMVisionConfig.__dataclass_fields__) - {"position_embedding"}
    return translate_config(values, DenseMLLMConfig.model_type, vision_fields, ignored)


def _check_choice(config: PreTrainedConfig, name: str, accepted: tuple[str, ...]) -> None:
    if getattr(config, name) not in accepted:
        raise ValueError(f"`{name}` must be one of {accepted}, got {getattr(config, name)!r}")


# What the sizes of a config may be at most: far above any model, and low enough that a number of a broken or hostile
# file is named before something is built of it.
MAX_SIZES = {
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "num_hidden_layers": 1000,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**14,
    "q_lora_rank": 2**17,
    "kv_lora_rank": 2**17,
    "qk_nope_head_dim": 2**14,
    "qk_rope_head_dim": 2**14,
    "v_head_dim": 2**14,
    "vocab_size": 2**24,
    "max_position_embeddings": 10**8,
    "num_channels": 2**10,
    "patch_size": 2**10,
    "spatial_merge_size": 2**6,
    "num_patches": 2**20,
    "window_size": 2**12,
    "num_depth_bins": 2**16,
    "ntp_m_top_k": 2**24,
}


def _check_sizes(config: PreTrainedConfig | dict, prefix: str = "") -> None:
    """Raise a `ValueError` that names the field if one of [`MAX_SIZES`] that `config` has is out of its range."""
    # What was given, under the model's own names: reading an attribute raises where it differs between layers.
    values, names = (config, {}) if isinstance(config, dict) else (vars(config), config.attribute_map)
    for name, limit in MAX_SIZES.items():
        value = values.get(names.get(name, name))
        for size in value if isinstance(value, (list, tuple)) else [value]:  # some models have one a layer
            if isinstance(size, (int, float)) and not 1 <= size <= limit:
                raise ValueError(f"`{prefix}{name}` must be in 1..{limit}, got {value!r}")


def _check_positive(config: PreTrainedConfig, *names: str) -> None:
    for name in names:
        if not 0 < getattr(config, name) < float("inf"):
            raise ValueError(f"`{name}` must be a finite number greater than 0, got {getattr(config, name)!r}")


def _check_activation(config: PreTrainedConfig, name: str) -> None:
    if getattr(config, name) not in ACT2FN:
        raise ValueError(f"`{name}` must be one of {sorted(ACT2FN)}, got {getattr(config, name)!r}")


@strict
class DenseMLLMVisionConfig(PreTrainedConfig):
    r"""
    The vision tower: a SigLIP2 encoder over packed patches. The defaults are the released checkpoint's tower.
    `position_embedding="table"`, `window_size=None` is the original SigLIP2-NaFlex encoder.

    Args:
        hidden_size (`int`, defaults to 1152): width.
        intermediate_size (`int`, defaults to 4304): width of the feed-forward layers.
        num_hidden_layers (`int`, defaults to 27): number of layers.
        num_attention_heads (`int`, defaults to 16): attention heads.
        num_channels (`int`, defaults to 3): image channels.
        patch_size (`int`, defaults to 16): edge of a patch in pixels.
        spatial_merge_size (`int`, defaults to 2): edge, in patches, of the block that becomes one vision token.
        hidden_act (`str`, defaults to `"gelu_pytorch_tanh"`): activation of the feed-forward layers.
        layer_norm_eps (`float`, defaults to 1e-6): epsilon of the layer norms.
        attention_dropout (`float`, defaults to 0.0): dropout on attention weights in training.
        position_embedding (`str`, defaults to `"rope"`): `"rope"` (2-D rotary) or `"table"` (SigLIP2-NaFlex: a square
            learned table, resized bilinearly with antialiasing to each image's grid).
        num_patches (`int`, defaults to 256): entries of the table, a square number; used with `"table"` only.
        rope_theta (`float`, defaults to 10000.0): base of the rotary frequencies; used with `"rope"` only.
        window_size (`int`, *optional*, defaults to 256): edge, in pixels, of the attention windows; a multiple of
            `patch_size * spatial_merge_size`. `None`: full attention in every layer.
        fullatt_block_indexes (`list[int]`, defaults to `[7, 15, 23, 26]`): layers with full attention within each
            image. Without effect where `window_size` is `None`.
        initializer_range (`float`, defaults to 0.02): standard deviation of new weights.
    """

    model_type = "densemllm_vision"
    base_config_key = "vision_config"
    base_model_fsdp_plan = {"encoder.layers.*": "free_full_weight"}

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    num_channels: int = 3
    patch_size: int = 16
    spatial_merge_size: int = 2
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0
    position_embedding: str = "rope"
    num_patches: int = 256
    rope_theta: float | int = 10000.0
    window_size: int | None = 256
    fullatt_block_indexes: list[int] | tuple[int, ...] | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.fullatt_block_indexes is None:
            released = (7, 15, 23, 26)
            self.fullatt_block_indexes = [index for index in released if index < self.num_hidden_layers]
        self.fullatt_block_indexes = list(self.fullatt_block_indexes)
        super().__post_init__(**kwargs)
        self.validate_fields()  # here too: `@strict` wraps a validator's error into one that is not a ValueError

    def validate_fields(self) -> None:
        _check_choice(self, "position_embedding", ("rope", "table"))
        _check_sizes(self)
        _check_positive(self, "layer_norm_eps", "rope_theta")
        _check_activation(self, "hidden_act")
        if not 0 <= self.initializer_range < float("inf"):
            raise ValueError(f"`initializer_range` must be a finite number >= 0, got {self.initializer_range}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_attention_heads`, got {self.hidden_size} and "
                f"{self.num_attention_heads}"
            )
        if self.position_embedding == "rope" and (self.hidden_size // self.num_attention_heads) % 4:
            raise ValueError(
                "`position_embedding='rope'` needs `hidden_size / num_attention_heads` to be a multiple of 4, got "
                f"{self.hidden_size // self.num_attention_heads}"
            )
        if self.position_embedding == "table" and round(self.num_patches**0.5) ** 2 != self.num_patches:
            raise ValueError(f"`num_patches` must be a square number, got {self.num_patches}")
        if not 0 <= self.attention_dropout < 1:
            raise ValueError(f"`attention_dropout` must be in [0, 1), got {self.attention_dropout}")
        cell = self.patch_size * self.spatial_merge_size
        if self.window_size is not None and self.window_size % cell:
            raise ValueError(
                "`window_size` must be None or a multiple of `patch_size * spatial_merge_size` = "
                f"{cell} pixels, got {self.window_size}"
            )
        outside = [index for index in self.fullatt_block_indexes if not 0 <= index < self.num_hidden_layers]
        if outside:
            raise ValueError(
                f"`fullatt_block_indexes` must lie in 0..{self.num_hidden_layers - 1} (`num_hidden_layers` is "
                f"{self.num_hidden_layers}), got {outside}"
            )


@strict
class DenseMLLMConfig(PreTrainedConfig):
    r"""
    A DenseMLLM: vision tower, projector and any causal language model.

    Args:
        vision_config (`DenseMLLMVisionConfig` or `dict`, *optional*): the tower.
        text_config (`PreTrainedConfig` or `dict`, *optional*): any causal language model that `AutoModel` can build
            (`model_type` in the dict). Defaults to `youtu` at the released dimensions.
        image_token_id (`int`, defaults to 128264): the placeholder of one vision token.
        vision_start_token_id (`int`, defaults to 128262): the token before an image's placeholders.
        vision_end_token_id (`int`, defaults to 128263): the token after them.
        spatial_merge_size (`int`, *optional*): edge, in patches, of the block that becomes one vision token. `None`
            takes the tower's, and a given value is handed to the tower: the two are always the same.
        projector_hidden_act (`str`, defaults to `"gelu"`): activation of the projector.
        vision_attention (`str`, defaults to `"causal"`): `"causal"` as in the paper, or `"bidirectional"`: the vision
            tokens of one image see each other, text stays causal.
        ntp_m_top_k (`int`, defaults to 100): how many negatives a vision token gets in the NTP-M loss, those with the
            highest probability. The paper does not print its value.
        ntp_m_weight (`float`, defaults to 1.0): weight of the NTP-M loss against the text loss. The paper does not
            print its value.
        codebook_weight (`float`, defaults to 0.5): weight of the codebook loss, the next code of a visual tokenizer at
            each vision token, against the text loss; 0.5 as in the paper's first stage.
        num_image_codes (`int`, defaults to 0): number of ids of the vocabulary that are codes of a visual tokenizer.
        image_code_token_id (`int`, *optional*): the first of them; the others follow it.
        num_depth_bins (`int`, defaults to 1000): number of depth tokens.
        depth_ranges (`dict[str, dict]`, *optional*): how metres become bins, one named row a data set; see
            [`check_depth_ranges`]. Defaults to the released four: `nyuv2`, `cityscapes`, `ddad`, `open_world`.
        default_depth_range (`str`, *optional*): the row used when a caller names none; defaults to `open_world`, or to
            the first row of a table without it.
        thing_labels (`list[str]`, *optional*): names of the classes whose objects are told apart in a panoptic map.
        tie_word_embeddings (`bool`, defaults to `True`): whether the output embedding is the input embedding.

    Raises:
        ValueError: a value that can't be used; the message names the field, what was given and what is accepted. (A
            value of the wrong type raises `huggingface_hub.errors.StrictDataclassFieldValidationError`.)
    """

    model_type = "densemllm"
    base_model_fsdp_plan = {"multi_modal_projector": "free_full_weight"}  # tower and language model add their own
    sub_configs = {"vision_config": DenseMLLMVisionConfig, "text_config": AutoConfig}
    keys_to_ignore_at_inference = list(CACHE_NAMES)

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 128264
    vision_start_token_id: int = 128262
    vision_end_token_id: int = 128263
    spatial_merge_size: int | None = None
    projector_hidden_act: str = "gelu"
    vision_attention: str = "causal"
    ntp_m_top_k: int = 100
    ntp_m_weight: float | int = 1.0
    codebook_weight: float | int = 0.5
    num_image_codes: int = 0
    image_code_token_id: int | None = None
    num_depth_bins: int = 1000
    depth_ranges: dict | None = None
    default_depth_range: str | None = None
    thing_labels: list[str] | tuple[str, ...] | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.vision_config is None or isinstance(self.vision_config, dict):
            vision = dict(self.vision_config or {})
            if self.spatial_merge_size is not None:
                vision.setdefault("spatial_merge_size", self.spatial_merge_size)
            self.vision_config = DenseMLLMVisionConfig(**vision)
        if self.text_config is None or isinstance(self.text_config, dict):
            text = RELEASED_TEXT_CONFIG if self.text_config is None else self.text_config
            _check_sizes(text, "text_config.")  # before the text model's own config divides by one of them
            self.text_config = AutoConfig.for_model(**{"model_type": "youtu", **text})
        if self.depth_ranges is None:
            self.depth_ranges = {name: dict(row) for name, row in RELEASED_DEPTH_RANGES.items()}
        self.default_depth_range = default_depth_range_of(self.depth_ranges, self.default_depth_range)
        # A checkpoint that was loaded from the Hub carries "repo--module.Class": written back as it is, the folder
        # would depend on that repository.
        kwargs["auto_map"] = dict(AUTO_MAP)
        # A config that was read from a file, and says no version, is that of 0.1.0.
        is_older = "custom_pipelines" in kwargs and "densemllm_version" not in kwargs
        kwargs["custom_pipelines"] = CustomPipelines(
            {name: dict(row) for name, row in CUSTOM_PIPELINES.items()}, {} if is_older else REPLACED_PIPELINES
        )
        super().__post_init__(**kwargs)
        if self.spatial_merge_size is None:
            self.spatial_merge_size = self.vision_config.spatial_merge_size
        self.validate_fields()

    def to_dict(self) -> dict:
        """As for every config, with the version of the code that saving puts beside it."""
        return {**super().to_dict(), "densemllm_version": __version__}

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        values, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not set(values) - {"_commit_hash"}:
            # The defaults would take its place: those of the released model, with four billion random weights.
            raise OSError(f"{pretrained_model_name_or_path} has no config.json that says anything")
        model_type = values.get("model_type", cls.model_type)
        if model_type in RELEASED_LAYOUTS:
            values = translate_released_config(values)
        elif model_type != cls.model_type:
            # What it does not have would be filled up with the defaults: four billion random weights.
            raise ValueError(f"{pretrained_model_name_or_path} is a checkpoint of type {model_type!r}, not DenseMLLM")
        return values, kwargs

    @property
    def label_names(self) -> dict[int, str] | None:
        """`id2label` with integer keys; `None` where nobody has named the classes (`LABEL_0`, `LABEL_1`...)."""
        names = {int(key): name for key, name in (self.id2label or {}).items()}
        return None if all(name == f"LABEL_{key}" for key, name in names.items()) else names

    @property
    def code_ids(self) -> slice:
        """The stretch of the vocabulary that is the codes of a visual tokenizer; empty where there are none."""
        first = self.image_code_token_id or 0
        return slice(first, first + self.num_image_codes)

    @property
    def num_positions(self) -> int | None:
        """Length of the longest prompt that the language model has positions for; `None` where there is no bound."""
        text = self.get_text_config()
        length = getattr(text, "max_position_embeddings", None)
        if length is None:
            return None
        rope = getattr(text, "rope_parameters", None) or {}
        # One scaling of rotary positions, or one for each type of layer.
        scalings = [row for row in (rope, *rope.values()) if isinstance(row, dict) and row.get("factor")]
        stretched = [(row.get("original_max_position_embeddings") or length) * row["factor"] for row in scalings]
        return int(max([length, *stretched]))

    def validate_fields(self) -> None:
        _check_choice(self, "vision_attention", ("causal", "bidirectional"))
        # `model_type` and not the class: a checkpoint's own code is a second copy of this module.
        if self.vision_config.model_type != DenseMLLMVisionConfig.model_type:
            raise ValueError(
                f"`vision_config` must be a {DenseMLLMVisionConfig.model_type!r} config, got "
                f"{self.vision_config.model_type!r}"
            )
        if self.spatial_merge_size != self.vision_config.spatial_merge_size:
            raise ValueError(
                f"`spatial_merge_size` ({self.spatial_merge_size}) and `vision_config.spatial_merge_size` "
                f"({self.vision_config.spatial_merge_size}) must be the same"
            )
        _check_sizes(self)
        _check_sizes(self.get_text_config(), "text_config.")
        _check_activation(self, "projector_hidden_act")
        for name in ("ntp_m_weight", "codebook_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be a finite number >= 0, got {getattr(self, name)}")
        vocab_size = self.get_text_config().vocab_size
        first, count = self.image_code_token_id, self.num_image_codes
        if count < 0 or (count > 0 and (first is None or not 0 <= first <= vocab_size - count)):
            raise ValueError(
                "`num_image_codes` must be 0, or a number of ids from `image_code_token_id` on that are in the text "
                f"model's vocabulary (0..{vocab_size - 1}), got {count} from {first} on"
            )
        if not 0 <= self.image_token_id < vocab_size:
            raise ValueError(
                f"`image_token_id` must be in the text model's vocabulary (0..{vocab_size - 1}), got "
                f"{self.image_token_id}"
            )
        for name in ("vision_start_token_id", "vision_end_token_id"):
            if getattr(self, name) < 0 or getattr(self, name) == self.image_token_id:
                raise ValueError(
                    f"`{name}` must be >= 0 and differ from `image_token_id` ({self.image_token_id}), got "
                    f"{getattr(self, name)}"
                )
        check_depth_ranges(self.depth_ranges, self.default_depth_range)


def check_prompt_length(length: int, config: DenseMLLMConfig) -> None:
    """`ValueError` where a prompt of `length` tokens, those of its images among them, has too few positions."""
    if config.num_positions is not None and length > config.num_positions:
        raise ValueError(
            f"the prompt and its images have {length} tokens, more than the {config.num_positions} positions of the "
            "language model (`max_position_embeddings`); a lower `scale` or `max_num_patches` makes fewer tokens of "
            "an image"
        )


def is_for_vllm(config: DenseMLLMConfig) -> bool:
    """Whether vLLM builds a model of this config: it gives the language model an attention of its own, by this name.

    Raises:
        ValueError: the model's attention is one that vLLM would not compute.
    """
    if config.get_text_config()._attn_implementation != "vllm":
        return False
    if config.vision_attention == "bidirectional":
        raise ValueError(
            "`vision_attention` must be 'causal' in a checkpoint that vLLM serves, got 'bidirectional': vLLM's "
            "attention isn't told which tokens are of one image, and would be causal without a word. Serve it with "
            "transformers"
        )
    return True


def class_names(config: DenseMLLMConfig) -> dict[int, str]:
    """The names of `config.id2label` by their integer keys; a `ValueError` where nobody has named the classes."""
    if config.label_names is None:
        raise ValueError(
            "`config.id2label` names no classes; set it (`model.config.id2label = {0: 'wall', ...}`), or give "
            "`labels` to `predict_dense` or to the call of the pipeline"
        )
    return config.label_names


DenseMLLMConfig.register_for_auto_class()
for table, model_name in NAMED_MODELS.items():  # a test names one that disappears
    getattr(modeling_auto, table, {}).setdefault(DenseMLLMConfig.model_type, model_name)

__all__ = ["DenseMLLMConfig", "DenseMLLMVisionConfig"]
