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
"""Processor of DenseMLLM: prompts, labels and depth as vocabulary ids, annotations as multi-label targets, results."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import MultiModalData, ProcessorMixin
from transformers.tokenization_utils_base import AddedToken, PreTrainedTokenizerBase

from .answers_densemllm import (
    normalize_name,
    parse_counting,
    parse_detection,
    parse_grounding,
    parse_polygons,
    parse_pose,
    parse_run_length,
    plain_name,
)
from .checks_densemllm import Sizes, check_choice, check_positive, check_target_sizes, check_text
from .compat_densemllm import ProcessorDefaults
from .configuration_densemllm import AUTO_MAP, RELEASED_DEPTH_RANGES, check_depth_ranges
from .image_processing_densemllm import (
    MAX_SCALE,
    MIN_SCALE,
    AnyImage,
    DenseMLLMImageProcessor,
    class_chances,
    decode_depth_bins,
    decode_segmentation,
    resize_map,
)
from .refinement_densemllm import check_crf_options, refine_crf_argmax


if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Labels = list[str] | tuple[str, ...] | dict[int, str]  # names of classes, or `id2label`


# `{% generation %}` marks what an assistant says, the end of its text included. What can't be written is refused: the
# model would answer without it.
CHAT_TEMPLATE = (
    "{% if tools or documents %}"
    "{{ raise_exception('`tools` and `documents` are not taken: this chat template writes text and images only') }}"
    "{% endif %}"
    "{% if messages[0]['role'] != 'system' %}"
    "{{ bos_token or '' }}system\nYou are a helpful assistant.{{ eos_token or '' }}\n"
    "{% endif %}"
    "{% for message in messages %}"
    "{% if message['tool_calls'] %}"
    "{{ raise_exception('`tool_calls` are not taken: this chat template writes text and images only') }}"
    "{% endif %}"
    "{% set body %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% elif not message['content'] is defined or not message['content'] is iterable "
    "or message['content'] is mapping %}"
    "{{ raise_exception('the `content` of a message must be a string or a list of parts') }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if not part is mapping or not part['type'] is string %}"
    "{{ raise_exception('a part of `content` must be a dict with a `type`') }}"
    "{% elif part['type'] in ['image', 'image_url', 'input_image'] %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] in ['text', 'input_text', 'output_text'] and part['text'] is string %}"
    "{{ part['text'] }}"
    "{% else %}"
    "{{ raise_exception('a part of `content` must be an image or have a string as its `text`, got the `type` ' ~ "
    "part['type'] ~ '; known types are image, image_url, input_image, text, input_text and output_text') }}"
    "{% endif %}{% endfor %}{% endif %}"
    "{% endset %}"
    "{{ bos_token or '' }}{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ body }}{{ eos_token or '' }}{% endgeneration %}"
    "{% else %}{{ body }}{{ eos_token or '' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token or '' }}assistant\n{% endif %}"
)

IMAGE_TOKEN = "<|image_pad|>"
BACKGROUND_LABEL = "<OTHERS>"
FOREGROUND_LABELS = ("<BG>", "<FG>")  # in this order: position 1 is the foreground
# Tokens of the released vocabulary that the text forms and the labels are made of, but for coordinates and depth bins.
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", IMAGE_TOKEN)
STRUCTURE_TOKENS = (
    "<ref>", "</ref>", "<box>", "</box>", "<ins>", "</ins>", "<poly>", "</poly>", "<mask>", "</mask>", "<depth>",
    "<person>", "</person>", "<kpt>", "</kpt>", "<v_0.0>", "<v_1.0>", BACKGROUND_LABEL, *FOREGROUND_LABELS,
)  # fmt: skip
IGNORED = -100  # fills up `dense_targets`, as it does `labels`
KINDS = ("segmentation", "depth", "mask")  # of annotation


@dataclass(frozen=True)
class DenseTask:
    """One row of the task table: a task is a label set and a way to read it, nothing else.

    Attributes:
        label_set: where the label tokens come from: `"classes"` (the caller's labels), `"depth"` (the depth tokens) or
            `"foreground"` (`<BG>` and `<FG>`).
        question: prompt with which the model itself supplies what the caller left out (the class list, or the box of
            an expression); `None` where nothing is missing.
    """

    label_set: str
    question: str | None = None


TASKS = {
    "segmentation": DenseTask("classes", "Segment all objects in this image."),
    "depth": DenseTask("depth"),
    "referring": DenseTask(
        "foreground", "Please provide the bounding box coordinate of the region this sentence describes: {text}"
    ),
    "open_set": DenseTask("foreground", "Detect every objects that belongs to the following categories: {text}"),
}


@dataclass(frozen=True)
class AnswerTask:
    """One row of the table of tasks that are answered in words.

    Attributes:
        question: prompt with a `text` (`None`: the task takes none).
        plain_question: prompt without one (`None`: it is needed).
        parser: name of the processor's method that reads the answer.
    """

    question: str | None
    plain_question: str | None
    parser: str


# The wording of the first three is the released checkpoint's; that of the others is not published: `prompt` of
# `predict` takes another one.
ANSWER_TASKS = {
    "detection": AnswerTask(TASKS["open_set"].question, "Detect all objects in the provided image.",
                            "post_process_detection"),
    "grounding": AnswerTask(TASKS["referring"].question, None, "post_process_grounding"),
    "polygon": AnswerTask('Can you segment "{text}" in this image?', None, "post_process_polygons"),
    "pose": AnswerTask("Detect the pose of {text} in this image.", "Detect the pose of every person in this image.",
                       "post_process_pose"),
    "counting": AnswerTask("How many {text} are there in this image?", None, "post_process_counting"),
    "classification": AnswerTask("Which of these categories does this image belong to: {text}?", None,
                                 "post_process_classification"),
}  # fmt: skip


def add_dense_tokens(
    tokenizer: PreTrainedTokenizerBase, num_depth_bins: int = 1000, num_coordinates: int = 2048
) -> int:
    """Add the tokens of DenseMLLM that `tokenizer` lacks, so that any tokenizer can become a DenseMLLM one.

    The image tokens are added as special ones. The others (`<ref>`, `<FG>`, depth bins `<custom_1>`..., coordinates
    `<x_0>`...) are part of answers, so they are ordinary added tokens and stay when special tokens are skipped. The
    model's embeddings have to be resized afterwards: `model.resize_token_embeddings(len(tokenizer))`.

    Args:
        tokenizer: any tokenizer of transformers; changed in place.
        num_depth_bins: number of depth tokens.
        num_coordinates: number of x and of y coordinate tokens; 0 for none.

    Returns:
        number of tokens that were added.
    """
    plain = list(STRUCTURE_TOKENS)
    for k in range(num_coordinates):
        plain += [f"<x_{k}>", f"<y_{k}>"]
    plain += [f"<custom_{k}>" for k in range(1, num_depth_bins + 1)]
    vocabulary = tokenizer.get_vocab()
    added = 0
    for tokens, special in ((VISION_TOKENS, True), (plain, False)):
        missing = [AddedToken(token, special=special, normalized=False) for token in tokens if token not in vocabulary]
        added += tokenizer.add_tokens(missing, special_tokens=special)
    return added


def nearest_resize(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Nearest-neighbour resize of `[H, W]` by pixel centres: the labels' side of the resize that an image gets."""
    rows = ((np.arange(height) + 0.5) * (values.shape[0] / height)).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * (values.shape[1] / width)).astype(np.int64)
    return values[rows[:, None], columns[None, :]]


class DenseMLLMProcessor(ProcessorMixin):
    r"""
    Image processor and tokenizer of DenseMLLM in one, and the map between labels, metres and vocabulary ids.

    Calling it is as with every processor of transformers: `processor(images=..., text=..., return_tensors="pt")`
    gives `input_ids`, `attention_mask`, `mm_token_type_ids`, `pixel_values` and `image_grid_thw`; each `<|image_pad|>`
    of the text is expanded to one placeholder a vision token. `from_pretrained` takes `backend="torchvision"` for the
    image processor that works on any device, [`DenseMLLMImageProcessorTorchvision`]; left out, it is `"pil"`.

    Args:
        image_processor (`DenseMLLMImageProcessor` or `DenseMLLMImageProcessorTorchvision`): the image processor.
        tokenizer (`PreTrainedTokenizerBase`): a tokenizer that has `<|image_pad|>`; see [`add_dense_tokens`].
        chat_template (`str`, *optional*): Jinja template; defaults to the released checkpoint's form, with the
            tokenizer's own `bos_token` and `eos_token`.
        depth_ranges (`dict[str, dict]`, *optional*): how metres become bins; the model's config must have the same.
        default_depth_range (`str`, *optional*): the row used when a caller names none.
        num_depth_bins (`int`, defaults to 1000): number of depth tokens.
        referring_crop_size (`int`, defaults to 1280): short edge, in pixels, of the crop around a referred object.
        referring_prompt (`str`, *optional*): text before the image, with `{text}` for the expression. A model that was
            trained with one tells `<FG>` from `<BG>` on the whole image in one pass, and writes no box first: a way
            for models that are too small to write one. `None`: the paper's way, with a box and a crop.
        crf_options (`dict`, *optional*): arguments of [`refine_crf`] by name, for `refine="crf"`; its defaults.

    Raises:
        ValueError: the tokenizer lacks `<|image_pad|>`, a depth range can't be used, `referring_prompt` has no
            `{text}`, or [`refine_crf`] doesn't take `crf_options`.
    """

    return_mm_token_type_ids = True
    text_kwargs = {"return_token_type_ids": False}
    valid_processor_kwargs = ProcessorDefaults

    def __init__(
        self,
        image_processor: DenseMLLMImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | dict[str, str] | None = None,
        depth_ranges: dict | None = None,
        default_depth_range: str | None = None,
        num_depth_bins: int = 1000,
        referring_crop_size: int = 1280,
        referring_prompt: str | None = None,
        crf_options: dict | None = None,
    ):
        self.image_token = getattr(tokenizer, "image_token", IMAGE_TOKEN)
        (self.image_token_id,) = _token_ids(tokenizer, [self.image_token])
        self.depth_ranges = {
            name: dict(row) for name, row in (RELEASED_DEPTH_RANGES if depth_ranges is None else depth_ranges).items()
        }
        if default_depth_range is None:
            default_depth_range = "open_world" if "open_world" in self.depth_ranges else next(iter(self.depth_ranges))
        check_depth_ranges(self.depth_ranges, default_depth_range)
        self.default_depth_range = default_depth_range
        self.num_depth_bins = num_depth_bins
        self.referring_crop_size = referring_crop_size
        if referring_prompt is not None and "{text}" not in referring_prompt:
            raise ValueError(f"`referring_prompt` must contain '{{text}}', got {referring_prompt!r}")
        self.referring_prompt = referring_prompt
        self.crf_options = check_crf_options(crf_options or {})
        # Saving leaves this entry behind and loading drops it: a processor is the same before and after either.
        self.auto_map = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs) -> list[Any]:
        # Our own class and not AutoImageProcessor, which would ask for `trust_remote_code` to load this same code.
        image_processor_class = _image_processor_class(kwargs.pop("backend", None))
        image_processor = image_processor_class.from_pretrained(pretrained_model_name_or_path, **kwargs)
        # With no config at hand, AutoTokenizer would ask to run this checkpoint's code just to read one.
        kwargs.setdefault("config", PreTrainedConfig())
        tokenizer = cls._load_tokenizer_from_pretrained("tokenizer", pretrained_model_name_or_path, **kwargs)
        return [image_processor, tokenizer]

    @property
    def mask_token(self) -> str:
        """The token with which the released checkpoint begins a mask in words, after the names of its classes."""
        return "<mask>"

    @property
    def model_input_names(self) -> list[str]:
        return super().model_input_names + ["mm_token_type_ids"]

    def prepare_inputs_layout(
        self,
        images: AnyImage | Sequence[Any] | None = None,
        text: str | list[str] | list[list[str]] | None = None,
        videos: Any = None,
        audio: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        if images is not None:  # opened here, as it is done without the arguments of the call otherwise
            own = {**kwargs, **(kwargs.get("images_kwargs") or {})}
            images = self.image_processor.fetch_images(images, **own)
        return super().prepare_inputs_layout(images=images, text=text, videos=videos, audio=audio, **kwargs)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        merge_size = kwargs.get("merge_size") or self.image_processor.merge_size
        return self.image_token * (
            math.prod(int(edge) for edge in image_inputs["image_grid_thw"][image_idx]) // merge_size**2
        )

    def validate_inputs(
        self,
        images: AnyImage | Sequence[Any] | None = None,
        text: list[str] | list[list[str]] | None = None,
        videos: Any = None,
        audio: Any = None,
        **kwargs: Any,
    ) -> None:
        """As for every processor; images and their placeholders are counted here, as transformers before 5.23 doesn't.

        Raises:
            ValueError: there is nothing to process, or there are more or fewer placeholders than images.
        """
        if text is not None and all(isinstance(sample, str) for sample in text):
            placeholders = sum(sample.count(self.image_token) for sample in text)
            n_images = 0 if images is None else len(make_flat_list_of_images(images))
            if placeholders != n_images:
                raise ValueError(
                    f"`text` must have one {self.image_token} an image, got {placeholders} for {n_images} images"
                )
        super().validate_inputs(images=images, text=text, videos=videos, audio=audio, **kwargs)

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        """Number of placeholders and of patches of images of the given sizes (height, width), in pixels."""
        if image_sizes is None:
            return MultiModalData()
        images_kwargs = {**kwargs, **kwargs.get("images_kwargs", {})}
        images_kwargs = {name: value for name, value in images_kwargs.items() if value is not None}
        merge_size = images_kwargs.get("merge_size", self.image_processor.merge_size)
        patches = [self.image_processor.get_number_of_image_patches(*size, images_kwargs) for size in image_sizes]
        return MultiModalData(num_image_tokens=[n // merge_size**2 for n in patches], num_image_patches=patches)

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        *args: Any,
        **kwargs: Any,
    ) -> Any:  # texts, or what the processor makes of them, as the arguments ask
        """As for every processor; OpenAI's forms of image and text parts are taken too, see [`read_parts`].

        Raises:
            ValueError: a part of a message that has no `type`, or is audio or video.
            jinja2.TemplateError: anything else that the chat template can't write.
        """
        return super().apply_chat_template(read_parts(conversation), *args, **kwargs)

    # ---- labels and depth as vocabulary ids ----

    def normalize_labels(self, labels: Labels) -> dict[int, str]:
        """Label names in the form that is tokenised, by their key.

        Rules: a list's keys are its positions, a dict's its own integer keys (`id2label`); names become what
        [`normalize_name`] says: Unicode's composed form (NFC), words one blank apart, lower case, unless a name is a
        token by itself such as `<OTHERS>`; order is kept.

        Raises:
            TypeError: `labels` is no list or dict, or a name no string.
            ValueError: no labels, an empty name, a name given twice, a negative key.
        """
        if isinstance(labels, str) or not isinstance(labels, (dict, list, tuple)):
            raise TypeError(f"`labels` must be a list of names or a dict from id to name, got {type(labels).__name__}")
        items = labels.items() if isinstance(labels, dict) else enumerate(labels)
        names = {}
        for key, name in items:
            if not isinstance(name, str):
                raise TypeError(f"`labels` must have names that are strings, got {name!r}")
            check_text("labels", name, "names")
            if not isinstance(key, (int, np.integer)) or not 0 <= key < 2**63:
                raise ValueError(f"`labels` must have keys that are integers >= 0, got {key!r} for {name!r}")
            name = plain_name(name)
            names[int(key)] = name if name in self._added_token_names else normalize_name(name)
        if not names:
            raise ValueError("`labels` is empty; at least one name is needed")
        seen = {}
        for key, name in names.items():
            if not name:
                raise ValueError(f"`labels` has an empty name (key {key})")
            if name in seen:
                raise ValueError(f"`labels` has the name {name!r} twice (keys {seen[name]} and {key})")
            seen[name] = key
        return names

    def label_token_ids(self, labels: Labels) -> list[list[int]]:
        """The vocabulary ids of each label's sub-words, in the labels' order.

        Args:
            labels: as for [`normalize_labels`].

        Raises:
            ValueError: a name that the tokenizer can't write, or two names with the same ids.
        """
        names = self.normalize_labels(labels)
        ids = [self.tokenizer(name, add_special_tokens=False)["input_ids"] for name in names.values()]
        seen = {}
        for name, name_ids in zip(names.values(), ids, strict=True):
            if not name_ids or self.tokenizer.unk_token_id in name_ids:
                raise ValueError(f"`labels` has the name {name!r}, for which the tokenizer has no tokens")
            if tuple(name_ids) in seen:
                raise ValueError(
                    f"`labels` has {seen[tuple(name_ids)]!r} and {name!r}, which are the same tokens {name_ids}"
                )
            seen[tuple(name_ids)] = name
        return ids

    @cached_property
    def depth_token_ids(self) -> list[int]:
        """The ids of the depth tokens `<custom_1>`... in the order of the bins.

        Raises:
            ValueError: the tokenizer lacks one; see [`add_dense_tokens`].
        """
        return _token_ids(self.tokenizer, [f"<custom_{k}>" for k in range(1, self.num_depth_bins + 1)])

    @cached_property
    def foreground_token_ids(self) -> list[int]:
        """The ids of `<BG>` and `<FG>`, in this order."""
        return _token_ids(self.tokenizer, list(FOREGROUND_LABELS))

    @cached_property
    def _added_token_names(self) -> set[str]:
        return {token.content for token in self.tokenizer.added_tokens_decoder.values()}

    @cached_property
    def _text_token_ids(self) -> np.ndarray:
        """Ids that text is made of: the vocabulary without added tokens (image codes, coordinates, depth bins...), but
        with `<OTHERS>`."""
        vocabulary = self.tokenizer.get_vocab()
        ids = np.setdiff1d(list(vocabulary.values()), list(self.tokenizer.added_tokens_decoder))
        return np.union1d(ids, [vocabulary[BACKGROUND_LABEL]]) if BACKGROUND_LABEL in vocabulary else ids

    def get_depth_range(self, name: str | None = None) -> dict:
        """The row of `depth_ranges` by its name (the default row for `None`).

        Raises:
            ValueError: there is no such row.
        """
        name = self.default_depth_range if name is None else name
        if name not in self.depth_ranges:
            raise ValueError(f"`depth_range` must be one of {sorted(self.depth_ranges)}, got {name!r}")
        return self.depth_ranges[name]

    def get_scale(self, focal_length: float | None, depth_range: str | None = None) -> float | None:
        """The factor by which a picture of a known focal length, in pixels, is resized: to that of its depth range.
        `None`: it is left as it is, since either is unknown. `ValueError`: a focal length that no camera has."""
        if focal_length is None or not self.depth_ranges or not self.get_depth_range(depth_range).get("focal_length"):
            return None
        row = self.get_depth_range(depth_range)
        scale = _focal_scale(row, focal_length)
        if not MIN_SCALE <= scale <= MAX_SCALE:
            raise ValueError(
                f"`focal_length` must be from {row['focal_length'] / MAX_SCALE:g} to "
                f"{row['focal_length'] / MIN_SCALE:g} pixels for images of this depth range, got {focal_length}"
            )
        return scale

    def depth_to_bins(
        self, depth: "ArrayLike", depth_range: str | None = None, focal_length: float | None = None
    ) -> np.ndarray:
        """Metres to depth bins.

        Args:
            depth: array of metres, any shape. Values that are not finite, not above 0, or outside the range are
                invalid.
            depth_range: row of `depth_ranges`.
            focal_length: in pixels, of the image as the model gets it. In a range with a focal length of its own,
                depth is multiplied by `range's / focal_length` first, which makes it the depth that the same picture
                has in a camera of the range's focal length. `None`: it is that focal length.

        Returns:
            `int64` array of the same shape: 1..`num_depth_bins`, and 0 where invalid.
        """
        row = self.get_depth_range(depth_range)
        depth = np.asarray(depth, dtype=np.float64) * _focal_scale(row, focal_length)
        low, high = row["min_depth"], row["max_depth"]
        with np.errstate(invalid="ignore"):
            valid = np.isfinite(depth) & (depth > 0) & (depth >= low) & (depth <= high)
        depth = np.where(valid, depth, high)
        if row["mapping"] == "log":
            position = np.log(depth / low) / math.log(high / low)
        else:
            position = (depth - low) / (high - low)
        bins = np.clip((position * self.num_depth_bins).astype(np.int64) + 1, 1, self.num_depth_bins)
        return np.where(valid, bins, 0)

    def bins_to_depth(
        self, bins: "torch.Tensor | ArrayLike", depth_range: str | None = None, focal_length: float | None = None
    ) -> torch.Tensor:
        """Depth bins to metres: the bins' centres. The inverse of [`depth_to_bins`] to within half a bin.

        Args:
            bins: integers, any shape; 0 is invalid and becomes 0 metres.
            depth_range, focal_length: as for [`depth_to_bins`].

        Returns:
            `float32` tensor of metres, on the device of `bins`.

        Raises:
            ValueError: a bin outside 0..`num_depth_bins`.
        """
        row = self.get_depth_range(depth_range)
        bins = torch.as_tensor(bins)
        if bins.numel() and not (0 <= int(bins.min()) and int(bins.max()) <= self.num_depth_bins):
            raise ValueError(f"`bins` must lie in 0..{self.num_depth_bins}, got {int(bins.min())}..{int(bins.max())}")
        low, high = row["min_depth"], row["max_depth"]
        bin_numbers = torch.arange(1, self.num_depth_bins + 1, dtype=torch.float64, device="cpu")  # MPS has no float64
        position = (bin_numbers - 0.5) / self.num_depth_bins
        if row["mapping"] == "log":
            centres = low * torch.exp(position * math.log(high / low))
        else:
            centres = low + position * (high - low)
        centres = torch.cat([centres.new_zeros(1), centres / _focal_scale(row, focal_length)])
        return centres.float().to(bins.device)[bins.long()]

    # ---- annotations as targets ----

    def encode_annotations(
        self,
        annotations: list[dict],
        image_grid_thw: "torch.Tensor | np.ndarray | Sequence[Sequence[int]]",
        candidates: str = "vocabulary",
        min_label_share: float = 0.0,
    ) -> dict[str, torch.Tensor]:
        """Pixel annotations of images to sparse multi-label targets of their vision tokens (paper, NTP-M).

        Each map is resized as its image was (nearest neighbour), and every label that occurs in a token's cell is a
        target of that token; a name of several sub-words makes each of them one. Pixels without annotation count for
        nothing; a token whose cell has none is not supervised.

        Args:
            annotations: one dict an image, in the images' order; empty for an image without annotations. Entries:
                `segmentation`: integers `[height, width]`, with `id2label` (id to name) and `ignore_index` (default
                255); `depth`: metres `[height, width]`, invalid where not finite, not above 0 or outside the range,
                with `depth_range` and `focal_length` as in [`depth_to_bins`]; `mask`: booleans `[height, width]`, the
                foreground, or `int8`: 1, 0 for the background, and -1 where it isn't annotated.
            image_grid_thw: `[n_images, 3]` from the image processor.
            candidates: which ids are negatives where a segmentation is annotated: `"vocabulary"`, all text tokens, or
                `"labels"`, those of the other labels only.
            min_label_share: share of a cell's annotated pixels that a class, or the foreground, needs to be a target;
                the largest always is one. 0 is the paper's rule: a single pixel makes its class as much of a target as
                that of all others, and along an edge it is open which class wins. Depth bins, whose neighbours are
                nearly right, all count.

        Returns:
            `dense_targets`: `int64 [n_vision_tokens, max_targets]`, vocabulary ids, filled up with -100.
            `dense_candidates`: `int64 [n_vision_tokens, n_kinds]`, the token's row of the next one for each kind of
            annotation (at most 3: classes, depth, foreground), -1 where it has none.
            `dense_candidate_ranges`: `int64 [n_rows, max_ranges, 2]`, ids that are annotated (M_i in the paper) as
            half-open ranges; ranges that only fill up are empty, (0, 0).

        Raises:
            ValueError: an entry that is unknown, of the wrong shape or type, a class id that `id2label` lacks, or a
                number of annotations that is not the number of images.
        """
        grids = [tuple(int(edge) for edge in grid) for grid in image_grid_thw]
        if len(annotations) != len(grids):
            raise ValueError(
                f"`annotations` must be one dict an image, got {len(annotations)} for {len(grids)} images"
            )
        if candidates not in ("vocabulary", "labels"):
            raise ValueError(f"`candidates` must be 'vocabulary' or 'labels', got {candidates!r}")
        if not 0 <= min_label_share <= 1:
            raise ValueError(f"`min_label_share` must be in [0, 1], got {min_label_share}")
        merge_size, patch_size = self.image_processor.merge_size, self.image_processor.patch_size
        tokens, ids, rows, tables, offset = [], [], [], [], 0
        table_rows: dict[tuple, int] = {}
        n_kinds = max([1, *(sum(annotation.get(kind) is not None for kind in KINDS) for annotation in annotations)])
        for index, (annotation, (_, grid_height, grid_width)) in enumerate(zip(annotations, grids, strict=True)):
            unknown = set(annotation) - {
                "segmentation", "id2label", "ignore_index", "depth", "depth_range", "focal_length", "mask",
            }  # fmt: skip
            if unknown:
                raise ValueError(f"`annotations[{index}]` has unknown entries {sorted(unknown)}")
            size = (grid_height * patch_size, grid_width * patch_size)
            n_tokens = grid_height * grid_width // merge_size**2
            kinds = [
                self._encode_map(
                    index, annotation, kind, size, candidates, 0.0 if kind == "depth" else min_label_share
                )
                for kind in KINDS
                if annotation.get(kind) is not None
            ]
            row = np.full((n_tokens, n_kinds), -1, dtype=np.int64)
            for column, (kind_tokens, kind_ids, annotated) in enumerate(kinds):
                tokens.append(kind_tokens + offset)
                ids.append(kind_ids)
                if annotated not in table_rows:
                    table_rows[annotated] = len(tables)
                    tables.append(self._annotated_ranges(annotated))
                row[kind_tokens, column] = table_rows[annotated]
            rows.append(row)
            offset += n_tokens
        return {
            "dense_targets": _pad_ragged(tokens, ids, offset),
            "dense_candidates": torch.from_numpy(np.concatenate(rows or [np.zeros((0, n_kinds), dtype=np.int64)])),
            "dense_candidate_ranges": _stack_ranges(tables),
        }

    def _encode_map(
        self, index: int, annotation: dict, kind: str, size: tuple[int, int], candidates: str, min_label_share: float
    ) -> tuple[np.ndarray, np.ndarray, tuple]:
        """One annotated map to (token, id) pairs, each once, and the names of the sets of ids that it annotates."""
        where = f"`annotations[{index}][{kind!r}]`"
        values = np.asarray(annotation[kind])
        if values.ndim != 2 or 0 in values.shape:
            raise ValueError(f"{where} must be [height, width], got shape {values.shape}")
        if kind == "depth":
            if not np.issubdtype(values.dtype, np.number):
                raise ValueError(f"{where} must be numbers (metres), got {values.dtype}")
            values = self.depth_to_bins(values, annotation.get("depth_range"), annotation.get("focal_length"))
            label_ids = {k: [token_id] for k, token_id in enumerate(self.depth_token_ids, start=1)}
            ignored = 0
            annotated = (("own", tuple(self.depth_token_ids)),)
        elif kind == "mask":
            if values.dtype != np.bool_ and (values.dtype != np.int8 or set(present_values(values)) - {-1, 0, 1}):
                raise ValueError(f"{where} must be booleans, or `int8` of 1, 0 and -1, got {values.dtype}")
            label_ids = {k: [token_id] for k, token_id in enumerate(self.foreground_token_ids)}
            ignored = -1
            annotated = (("own", tuple(self.foreground_token_ids)),)
        else:
            id2label = annotation.get("id2label")
            if id2label is None:
                raise ValueError(f"{where} needs `id2label`, a dict from class id to name")
            if not np.issubdtype(values.dtype, np.integer):
                raise ValueError(f"{where} must be integers (class ids), got {values.dtype}")
            ignored = annotation.get("ignore_index", 255)
            check_ignore_index(ignored, id2label)
            names = self.normalize_labels(id2label)
            unknown = sorted(set(present_values(values).tolist()) - set(names) - {ignored})
            if unknown:
                raise ValueError(f"{where} has class ids {unknown[:10]} that `id2label` and `ignore_index` lack")
            # The same names come with every sample.
            key = ("labels", tuple(names.values()))
            if key not in self._memo:
                self._memo[key] = self.label_token_ids(id2label)
            named = self._memo[key]
            label_ids = dict(zip(names, named, strict=True))
            annotated = (("own", tuple(token_id for name_ids in named for token_id in name_ids)),)
            if candidates == "vocabulary":
                annotated += (("text",),)
        cell = self.image_processor.patch_size * self.image_processor.merge_size
        values = nearest_resize(values, *size)
        cells = (np.arange(size[0]) // cell)[:, None] * (size[1] // cell) + (np.arange(size[1]) // cell)[None, :]
        # By their place among the values that the map has: ids may be as large and as sparse as they like.
        present, places = index_values(values)
        n_cells, n_present = size[0] // cell * (size[1] // cell), len(present)
        places += cells * n_present
        if n_cells * n_present <= values.size:
            pixels = np.bincount(places.ravel())
            pairs = np.flatnonzero(pixels)
            pixels = pixels[pairs]
        else:  # a table of all pairs would be larger than the map
            pairs, pixels = np.unique(places, return_counts=True)
        tokens, values = np.divmod(pairs, n_present)
        annotated_pairs = present[values] != ignored
        tokens, values, pixels = tokens[annotated_pairs], values[annotated_pairs], pixels[annotated_pairs]
        if not len(tokens):
            return tokens, values, annotated
        most = np.zeros(n_cells, dtype=np.int64)
        np.maximum.at(most, tokens, pixels)
        needed = np.minimum(min_label_share * np.bincount(tokens, pixels, minlength=n_cells), most)
        kept = pixels >= needed[tokens]
        tokens, values = tokens[kept], values[kept]
        label_ids = [label_ids.get(value, []) for value in present.tolist()]
        lengths = np.array([len(entry) for entry in label_ids])
        starts = np.cumsum(lengths) - lengths
        counts = lengths[values]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        ids = np.concatenate([np.asarray(entry, dtype=np.int64) for entry in label_ids])
        ids = ids[np.repeat(starts[values], counts) + within]
        # Two labels of a cell may share a sub-word: each id once.
        tokens, ids = np.unique(np.stack([np.repeat(tokens, counts), ids]), axis=1)
        return tokens, ids, annotated

    def _annotated_ranges(self, names: tuple) -> np.ndarray:
        """The union of sets of ids as ranges: kept, as a vocabulary is large and the sets are always the same."""
        if names not in self._memo:
            sets = [self._text_token_ids if name == ("text",) else np.array(name[1]) for name in names]
            self._memo[names] = _ranges(np.unique(np.concatenate(sets)))
        return self._memo[names]

    @cached_property
    def _memo(self) -> dict:
        return {}

    # ---- outputs ----

    def task_label_ids(self, task: str, labels: Labels | None = None) -> list[list[int]]:
        """The vocabulary ids of a task's labels: of `labels` for classes, else of the task's own tokens."""
        label_set = get_task(task).label_set
        if label_set == "classes":
            return self.label_token_ids(labels)
        own = self.depth_token_ids if label_set == "depth" else self.foreground_token_ids
        return [[token_id] for token_id in own]

    def decode_dense(
        self, task: str, logits: torch.Tensor, size: tuple[int, int], labels: Labels | None = None,
        background: bool = False, threshold: float | None = None, depth_range: str | None = None,
        focal_length: float | None = None, refine: str | None = None, image: PIL.Image.Image | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Label logits of one image to maps of `size`, (height, width) in pixels (paper, section on decoding).

        Args:
            task: name of a task.
            logits: `[num_labels, grid_height, grid_width]`, in the order of [`task_label_ids`].
            size: of the maps.
            labels: as for [`normalize_labels`], for classes.
            background: whether pixels may be none of the labels (-1); so, too, where `<OTHERS>` is one of them.
            threshold: pixels of a segmentation with a lower score become -1; those of `<OTHERS>` stay.
            depth_range, focal_length: as for [`bins_to_depth`].
            refine: `"crf"`, for classes: [`refine_crf`] with `crf_options`; needs `image`, the RGB picture.

        Returns:
            the fields of a [`DensePrediction`] that the task fills in, maps on the device of `logits`.
        """
        label_set = get_task(task).label_set
        if label_set == "depth":
            bins, scores = decode_depth_bins(logits)
            depth = resize_map(self.bins_to_depth(bins, depth_range, focal_length), size)
            return {"predicted_depth": depth, "scores": resize_map(scores, size)}
        if label_set == "foreground":
            best, scores = decode_segmentation(logits, size, temperature=1.0)
            return {"mask": best == 1, "scores": torch.where(best == 1, scores, 1 - scores)}
        names = self.normalize_labels(labels)
        keys = list(names)
        others = [position for position, name in enumerate(names.values()) if name == BACKGROUND_LABEL]
        if others:
            # The background's own logit is not read: it wins wherever no label has a chance above one half.
            kept = [position for position in range(len(keys)) if position not in others]
            logits, rest, background = logits[kept], keys[others[0]], True
            keys = [keys[position] for position in kept]
        else:
            rest = -1
        if keys:
            if refine is None:
                best, scores = decode_segmentation(logits, size, background)
            else:
                best, scores = self._refined(logits, size, background, image)
            segmentation = torch.tensor([rest, *keys], device=best.device)[best.add_(1)]
        else:
            segmentation = torch.full(size, rest, dtype=torch.long, device=logits.device)
            scores = torch.full(size, 0.5, dtype=torch.float32, device=logits.device)
        if threshold is not None:
            segmentation = segmentation.masked_fill((scores < threshold) & (segmentation != rest), -1)
        return {
            "segmentation": segmentation,
            "scores": scores,
            "segments_info": _segments_info(segmentation, scores, names),
        }

    def _refined(self, logits: torch.Tensor, size: tuple[int, int], background: bool, image):
        """[`decode_segmentation`] with a CRF on the picture's pixels before the argmax."""
        chances = class_chances(logits, background)
        if background:
            chances = torch.cat([chances, torch.full_like(chances[:1], 0.5)])
        pixels = np.asarray(image.resize((size[1], size[0]), PIL.Image.Resampling.BILINEAR))
        best, scores = refine_crf_argmax(chances, pixels, **self.crf_options)
        return (best.masked_fill(best == len(logits), -1) if background else best), scores

    def answer_task(
        self, task: str, text: str | Iterable[str] | None = None, prompt: str | None = None
    ) -> tuple[str, Callable[[str, tuple[int, int], tuple[int, int]], dict[str, Any]]]:
        """The question of a task that is answered in words, and the function that reads the answer.

        Args:
            task: a row of the table.
            text: a phrase, or a list of names.
            prompt: the question in other words, with `{text}` where `text` belongs.

        Returns:
            the question, and a function of (answer, image_size, resized_size).

        Raises:
            ValueError: an unknown task, or a `text` that is missing.
        """
        if not isinstance(task, str) or task not in ANSWER_TASKS:
            raise ValueError(f"`task` must be one of {sorted(ANSWER_TASKS)}, got {task!r}")
        row = ANSWER_TASKS[task]
        names = [text] if isinstance(text, str) else list(text or [])
        if any(not isinstance(name, str) or not name.strip() for name in names):
            raise ValueError(f"`text` must be a phrase or a list of names, got {text!r}")
        question = prompt or (row.question if names else row.plain_question)
        if question is None or ("{text}" in question and not names):
            raise ValueError(f"`text` is needed for the task {task!r}")
        names = [plain_name(name) for name in names]
        question = question.replace("{text}", ",".join(names))
        parse = getattr(self, row.parser)
        if task == "classification":
            return question, lambda answer, *sizes: parse(answer, names)
        return question, parse

    def post_process_grounding(
        self, text: str, image_size: tuple[int, int], resized_size: tuple[int, int]
    ) -> dict[str, Any]:
        """See [`parse_grounding`]."""
        return parse_grounding(text, image_size, resized_size)

    def post_process_detection(
        self, text: str, image_size: tuple[int, int], resized_size: tuple[int, int]
    ) -> dict[str, Any]:
        """See [`parse_detection`]."""
        return parse_detection(text, image_size, resized_size)

    def post_process_polygons(
        self, text: str, image_size: tuple[int, int], resized_size: tuple[int, int]
    ) -> dict[str, Any]:
        """See [`parse_polygons`]."""
        return parse_polygons(text, image_size, resized_size)

    def post_process_pose(
        self, text: str, image_size: tuple[int, int], resized_size: tuple[int, int]
    ) -> dict[str, Any]:
        """See [`parse_pose`]."""
        return parse_pose(text, image_size, resized_size)

    def post_process_counting(
        self, text: str, image_size: tuple[int, int], resized_size: tuple[int, int]
    ) -> dict[str, Any]:
        """See [`parse_counting`]."""
        return parse_counting(text, image_size, resized_size)

    def post_process_run_length(self, text: str, image_size: tuple[int, int]) -> dict[str, Any]:
        """See [`parse_run_length`]."""
        return parse_run_length(text, image_size)

    def post_process_classification(self, text: str, names: list[str]) -> dict:
        """The class that an answer names.

        Args:
            text: the answer.
            names: the classes that were asked for.

        Returns:
            `label`: the name that comes first in the answer, upper and lower case alike, the longest of those that
            start at one place; one inside of a longer word only where no name stands alone. `None` if there is none.
        """
        text, spellings = plain_name(text), [(name, plain_name(name)) for name in names]
        for edge in ("\\b", ""):
            found = []
            for name, words in spellings:
                if not words:
                    continue
                start, end = (edge if letter.isalnum() else "" for letter in (words[0], words[-1]))
                match = re.search(start + re.escape(words) + end, text, re.IGNORECASE)
                if match:
                    found.append((match.start(), -len(words), name))
            if found:
                return {"label": min(found)[2]}
        return {"label": None}

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sizes | None = None,
        background: bool = False,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """See [`DenseMLLMImageProcessor.post_process_semantic_segmentation`]."""
        return self.image_processor.post_process_semantic_segmentation(
            outputs, target_sizes, background, return_segmentation_scores
        )

    def post_process_depth_estimation(
        self,
        outputs: Any,
        target_sizes: Sizes | None = None,
        depth_range: str | None = None,
        focal_length: float | None = None,
    ) -> list[dict[str, torch.Tensor]]:
        """Logits of the depth tokens to depth maps, in the form of transformers' own image processors.

        Args:
            outputs: object with `logits`, one `[num_depth_bins, grid_height, grid_width]` tensor an image (a list, or
                one tensor with a batch dimension).
            target_sizes: `(height, width)` in pixels, one an image; twice the grid where left out.
            depth_range, focal_length: as for [`bins_to_depth`].

        Returns:
            one `{"predicted_depth": float32 [height, width]}` an image, in metres.
        """
        if target_sizes is None:
            target_sizes = [(2 * logits.shape[-2], 2 * logits.shape[-1]) for logits in outputs.logits]
        sizes = check_target_sizes(target_sizes, len(outputs.logits), self.image_processor.max_image_pixels)
        options = {"depth_range": depth_range, "focal_length": focal_length}
        maps = [
            self.decode_dense("depth", logits, size, **options)["predicted_depth"]
            for logits, size in zip(outputs.logits, sizes, strict=True)
        ]
        return [{"predicted_depth": depth} for depth in maps]

    def post_process_image_text_to_text(
        self,
        generated_outputs: "torch.Tensor | np.ndarray | list[list[int]]",
        skip_special_tokens: bool = True,
        **kwargs: Any,
    ) -> list[str]:
        """Generated ids to texts; structural tokens such as `<ref>` stay."""
        return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)


def check_ignore_index(ignore_index: int, id2label: dict[int, str] | None) -> None:
    """Refuse a value for pixels without annotation that is a class, which would then be neither learned nor scored.

    Raises:
        TypeError: `ignore_index` is not an integer.
        ValueError: it is a key of `id2label`.
    """
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, (int, np.integer)):
        raise TypeError(f"`ignore_index` must be an integer, got {ignore_index!r}")
    if id2label is not None and ignore_index in id2label:
        raise ValueError(
            f"`ignore_index` must not be a class of `id2label`, got {ignore_index}, which is "
            f"{id2label[ignore_index]!r}; give another value, such as -1"
        )


def present_values(values: np.ndarray) -> np.ndarray:
    """The values of a map of integers, sorted; a table is much faster than sorting where they are small."""
    if not values.size or values.min() < 0 or values.max() > 2**16:
        return np.unique(values)
    return np.flatnonzero(np.bincount(values.ravel().astype(np.int64, copy=False)))


def index_values(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of a map of integers, sorted, and the index of each element's value among them, `int64`."""
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if high - low > 2**16:
        present, places = np.unique(values, return_inverse=True)
        return present, places.reshape(values.shape)
    places = values.astype(np.int64)
    if low:
        places -= low
    found = np.bincount(places.ravel())
    present = np.flatnonzero(found)
    table = np.zeros(len(found), dtype=np.int64)
    table[present] = np.arange(len(present))
    return present + low, table[places]


def read_parts(chat: Any) -> Any:
    """A chat with the parts of its messages in transformers' form.

    Args:
        chat: list of messages, or list of such lists. Besides transformers' own parts, OpenAI's are taken:
            `image_url`, `input_image`, `input_text` and `output_text`.

    Returns:
        the same in new lists and dicts; what isn't a message is left as it is.

    Raises:
        ValueError: a part that is not a dict with a `type`, or of a kind that this model doesn't read.
    """
    if isinstance(chat, (list, tuple)):
        return [read_parts(entry) for entry in chat]
    if isinstance(chat, Mapping) and isinstance(chat.get("content"), (list, tuple)):
        return {**chat, "content": [_read_part(part) for part in chat["content"]]}
    return chat


def _read_part(part) -> Mapping:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str) or kind in ("audio", "video"):
        given = repr(kind) if kind is not None else f"a {type(part).__name__} without one"
        raise ValueError(f"`content` must have parts that are dicts with a `type`, of images or text, got {given}")
    if kind in ("input_text", "output_text"):
        return {**part, "type": "text"}
    if kind in ("image_url", "input_image"):
        image = part.get("image_url")
        image = image.get("url") if isinstance(image, Mapping) else image
        if image is None and part.get("file_id") is not None:
            raise ValueError(f"`content` must have images as a URL, a path or base64, got a `file_id` in {kind!r}")
        return {"type": "image"} if image is None else {"type": "image", "url": image}
    return part


def get_task(name: str) -> DenseTask:
    """The row of the task table, or a `ValueError` that names the accepted ones."""
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(f"`task` must be one of {sorted(TASKS)} or a tuple of them, got {name!r}")
    return TASKS[name]


def parse_refs(text: str) -> list[str]:
    """Names in `<ref>name</ref>`, as [`normalize_name`] makes them, in order of appearance, each once."""
    names = (normalize_name(name) for name in re.findall(r"<ref>([^<]*)</ref>", text))
    return list(dict.fromkeys(name for name in names if name))


def _image_processor_class(backend: str | None) -> type:
    if check_choice("backend", backend or "pil", ("pil", "torchvision")) == "pil":
        return DenseMLLMImageProcessor
    # Imported here as torchvision may be missing; and saving a checkpoint copies what is imported anywhere.
    from .image_processing_torchvision_densemllm import DenseMLLMImageProcessorTorchvision

    return DenseMLLMImageProcessorTorchvision


def _token_ids(tokenizer, tokens: list[str]) -> list[int]:
    # Once for all tokens: a tokenizer makes this dict anew each time, of a large vocabulary in a quarter of a second.
    vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
    for token in tokens:
        if token not in vocabulary:
            raise ValueError(
                f"`tokenizer` lacks the token {token!r}; `add_dense_tokens(tokenizer)` adds what is missing"
            )
    return [vocabulary[token] for token in tokens]


def _focal_scale(row: dict, focal_length: float | None) -> float:
    if focal_length is None or row.get("focal_length") is None:
        return 1.0
    return row["focal_length"] / check_positive("focal_length", focal_length, " of pixels")


def _segments_info(segmentation: torch.Tensor, scores: torch.Tensor, names: dict[int, str]) -> list[dict]:
    keys = torch.tensor(sorted(names), device="cpu")
    areas = torch.zeros(len(keys), dtype=torch.long, device=keys.device)
    sums = torch.zeros(len(keys), dtype=torch.double, device="cpu")
    # In parts: sorting a map, or its scores in float64, takes several times its memory; and on the CPU: megapixels of
    # scores can't be summed in float32, and MPS has no float64.
    for ids, own in zip(segmentation.flatten().split(2**20), scores.flatten().split(2**20), strict=True):
        ids, own = ids.cpu(), own.cpu().double()
        place = torch.searchsorted(keys, ids[ids >= 0])
        areas += torch.bincount(place, minlength=len(keys))
        sums += torch.bincount(place, weights=own[ids >= 0], minlength=len(keys))
    return [
        {"id": key, "label_id": key, "label": names[key], "score": total / area, "area": area, "was_fused": False}
        for key, area, total in zip(keys.tolist(), areas.tolist(), sums.tolist(), strict=True)
        if area
    ]


def _ranges(ids: np.ndarray) -> np.ndarray:
    """Sorted unique ids to half-open ranges `[n_ranges, 2]`."""
    breaks = np.flatnonzero(np.diff(ids) != 1)
    return np.stack([ids[np.r_[0, breaks + 1]], ids[np.r_[breaks, len(ids) - 1]] + 1], axis=1)


def _stack_ranges(tables: list[np.ndarray]) -> torch.Tensor:
    stacked = np.zeros((len(tables), max((len(table) for table in tables), default=0), 2), dtype=np.int64)
    for row, table in enumerate(tables):
        stacked[row, : len(table)] = table
    return torch.from_numpy(stacked)


def _pad_ragged(tokens: list[np.ndarray], ids: list[np.ndarray], n_tokens: int) -> torch.Tensor:
    """(token, id) pairs to `[n_tokens, most ids of a token]`, filled up with -100."""
    tokens = np.concatenate([np.zeros(0, dtype=np.int64), *tokens])
    ids = np.concatenate([np.zeros(0, dtype=np.int64), *ids])
    order = np.argsort(tokens, kind="stable")
    tokens, ids = tokens[order], ids[order]
    counts = np.bincount(tokens, minlength=n_tokens)
    column = np.arange(len(tokens)) - np.repeat(np.cumsum(counts) - counts, counts)
    padded = np.full((n_tokens, counts.max(initial=0)), IGNORED, dtype=np.int64)
    padded[tokens, column] = ids
    return torch.from_numpy(padded)


DenseMLLMProcessor.register_for_auto_class()

__all__ = ["DenseMLLMProcessor", "add_dense_tokens"]
