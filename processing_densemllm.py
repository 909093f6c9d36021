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
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import MultiModalData, ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

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
from .chat_densemllm import CHAT_TEMPLATE, read_parts
from .checks_densemllm import Sizes, check_choice, check_share, check_text
from .compat_densemllm import ProcessorDefaults
from .configuration_densemllm import AUTO_MAP, RELEASED_DEPTH_RANGES, DenseMLLMConfig, default_depth_range_of
from .depth_densemllm import DepthBins
from .image_processing_densemllm import AnyImage, DenseMLLMImageProcessor
from .loading_densemllm import FILE_OPTIONS
from .refinement_densemllm import check_crf_options
from .targets_densemllm import IGNORED, Targets, cell_targets, id_ranges, pad_ragged, stack_ranges
from .task_base_densemllm import DenseRequest, Labels, ThingLabels
from .tasks_densemllm import ANNOTATED_TASKS, add_dense_tokens, check_refine, get_task
from .text_tasks_densemllm import find_class, get_text_task
from .tokens_densemllm import BACKGROUND_LABEL, DEPTH_SCALE, FOREGROUND_LABELS, IMAGE_TOKEN, TokenScale, find_token_ids


if TYPE_CHECKING:
    from numpy.typing import ArrayLike


DEPTH_FIELDS = ("depth_ranges", "default_depth_range", "num_depth_bins")  # of the config, and of the processor


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
            `from_pretrained` reads this and the next two from the config where that stands beside.
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
        (self.image_token_id,) = find_token_ids(tokenizer, [self.image_token])
        self.depth_ranges = {
            name: dict(row) for name, row in (RELEASED_DEPTH_RANGES if depth_ranges is None else depth_ranges).items()
        }
        self.default_depth_range = default_depth_range_of(self.depth_ranges, default_depth_range)
        self.num_depth_bins = num_depth_bins
        _ = self.depth_bins  # checks them
        self.referring_crop_size = referring_crop_size
        if referring_prompt is not None and "{text}" not in referring_prompt:
            raise ValueError(f"`referring_prompt` must contain '{{text}}', got {referring_prompt!r}")
        self.referring_prompt = referring_prompt
        self.crf_options = check_crf_options(crf_options or {})
        # Saving leaves this entry behind and loading drops it: a processor is the same before and after either.
        self.auto_map = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    @classmethod
    def get_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As for every processor; the depth ranges are those of the model's config where it stands beside."""
        values, rest = super().get_processor_dict(pretrained_model_name_or_path, **dict(kwargs))
        files = {name: kwargs[name] for name in FILE_OPTIONS if kwargs.get(name) is not None}
        try:
            config, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **files)
        except (OSError, ValueError):  # a processor by itself
            return values, rest
        if config.get("model_type") == DenseMLLMConfig.model_type:
            values |= {name: config[name] for name in DEPTH_FIELDS if config.get(name) is not None}
        return values, rest

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
            images_kwargs = {**kwargs, **(kwargs.get("images_kwargs") or {})}
            images = self.image_processor.fetch_images(images, **images_kwargs)
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
            TypeError: `labels` is not a list or a dict, or a name not a string.
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

    def known_label_ids(self, labels: Labels) -> list[list[int]]:
        """[`label_token_ids`], kept: the same names come with every image and every sample."""
        key = ("labels", len(self.tokenizer), tuple(self.normalize_labels(labels).values()))
        if key not in self._memo:
            self._memo[key] = self.label_token_ids(labels)
        return self._memo[key]

    def token_ids(self, tokens: Sequence[str]) -> list[int]:
        """The ids of tokens, kept.

        Raises:
            ValueError: the tokenizer lacks one; see [`add_dense_tokens`].
        """
        key = ("tokens", *tokens)
        if key not in self._memo:
            self._memo[key] = find_token_ids(self.tokenizer, list(tokens))
        return self._memo[key]

    def scale_token_ids(self, scale: TokenScale, count: int | None = None) -> list[int]:
        """The ids of the tokens of a scale in their order, kept.

        Args:
            scale: of tokens.
            count: so many of them; all that the tokenizer has where left out.

        Raises:
            ValueError: the tokenizer lacks one of `count`.
        """
        key = ("scale", scale, count)
        if key not in self._memo:
            if count is None:
                count = scale.count(self.tokenizer.get_vocab())
            self._memo[key] = find_token_ids(self.tokenizer, scale.tokens(count))
        return self._memo[key]

    @property
    def depth_token_ids(self) -> list[int]:
        """The ids of the depth tokens `<custom_1>`... in the order of the bins.

        Raises:
            ValueError: the tokenizer lacks one; see [`add_dense_tokens`].
        """
        return self.scale_token_ids(DEPTH_SCALE, self.num_depth_bins)

    @property
    def foreground_token_ids(self) -> list[int]:
        """The ids of `<BG>` and `<FG>`, in this order."""
        return self.token_ids(FOREGROUND_LABELS)

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

    @cached_property
    def _memo(self) -> dict:
        return {}

    def forget_tokens(self) -> None:
        """Read the tokenizer anew: what is kept of it is out of date once tokens were added to it."""
        for name in ("_memo", "_added_token_names", "_text_token_ids"):
            self.__dict__.pop(name, None)

    @property
    def depth_bins(self) -> DepthBins:
        """How metres become bins, as this processor's ranges say."""
        return DepthBins(self.depth_ranges, self.default_depth_range, self.num_depth_bins)

    def get_depth_range(self, name: str | None = None) -> dict:
        """The row of `depth_ranges` by its name (the default row for `None`).

        Raises:
            ValueError: there is no such row.
        """
        return self.depth_bins.row(name)

    def get_scale(self, focal_length: float | None, depth_range: str | None = None) -> float | None:
        """See `DepthBins.scale`."""
        return self.depth_bins.scale(focal_length, depth_range)

    def depth_to_bins(
        self, depth: "ArrayLike", depth_range: str | None = None, focal_length: float | None = None
    ) -> np.ndarray:
        """Metres to depth bins.

        Args:
            depth: array of metres, any shape. Values that are not finite, not above 0, or outside the range are
                invalid.
            depth_range: row of `depth_ranges`.
            focal_length: in pixels, of the image as the model gets it. In a range with a focal length of its own,
                depth is multiplied by `range's / focal_length` first, which makes it the depth that the same image
                has in a camera of the range's focal length. `None`: it is that focal length.

        Returns:
            `int64` array of the same shape: 1..`num_depth_bins`, and 0 where invalid.
        """
        return self.depth_bins.encode(depth, depth_range, focal_length)

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
        return self.depth_bins.decode(bins, depth_range, focal_length)

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
                foreground, or `int8`: 1, 0 for the background, and -1 where it isn't annotated; `normals`: floats
                `[height, width, 3]`, see [`normals_to_bins`]; `instances`: integers `[height, width]`, numbers of
                objects, 0 and below where there is none and `ignore_index` where they aren't annotated, beside a
                `segmentation`, with `thing_labels`, names or keys of the classes whose objects are told apart
                (default: all that have numbers); `codes`: integers `[height, width]`, the code that a visual tokenizer
                gives to each vision token, negative where ignored.
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
            annotation (classes, depth, foreground, normals, x and y of centres), -1 where it has none.
            `dense_candidate_ranges`: `int64 [n_rows, max_ranges, 2]`, ids that are annotated (M_i in the paper) as
            half-open ranges; ranges that only fill up are empty, (0, 0).
            `image_codes`, where any image has codes: `int64 [n_vision_tokens]`, -100 where there is none.

        Raises:
            ValueError: an entry that is unknown, of the wrong shape or type, a class id that `id2label` lacks, or a
                number of annotations that is not the number of images.
        """
        grids = [tuple(int(edge) for edge in grid) for grid in image_grid_thw]
        if len(annotations) != len(grids):
            raise ValueError(
                f"`annotations` must be one dict an image, got {len(annotations)} for {len(grids)} images"
            )
        check_choice("candidates", candidates, ("vocabulary", "labels"))
        check_share("min_label_share", min_label_share)
        merge_size, patch_size = self.image_processor.merge_size, self.image_processor.patch_size
        sizes = [(grid_height * patch_size, grid_width * patch_size) for _, grid_height, grid_width in grids]
        kinds = [
            self._annotation_targets(annotation, f"`annotations[{index}]`", candidates, size)
            for index, (annotation, size) in enumerate(zip(annotations, sizes, strict=True))
        ]
        n_kinds = max([1, *map(len, kinds)])
        tokens, ids, rows, tables, offset = [], [], [], [], 0
        table_rows: dict[tuple, int] = {}
        for of_image, size in zip(kinds, sizes, strict=True):
            n_tokens = math.prod(size) // (patch_size * merge_size) ** 2
            row = np.full((n_tokens, n_kinds), -1, dtype=np.int64)
            for column, targets in enumerate(of_image):
                kind_tokens, kind_ids = cell_targets(targets, size, patch_size * merge_size, min_label_share)
                tokens.append(kind_tokens + offset)
                ids.append(kind_ids)
                if targets.annotated not in table_rows:
                    table_rows[targets.annotated] = len(tables)
                    tables.append(self._annotated_ranges(targets.annotated))
                row[kind_tokens, column] = table_rows[targets.annotated]
            rows.append(row)
            offset += n_tokens
        cell = patch_size * merge_size
        codes = [
            self._next_codes(annotation, f"`annotations[{index}]`", (height // cell, width // cell))
            for index, (annotation, (height, width)) in enumerate(zip(annotations, sizes, strict=True))
        ]
        has_codes = any((own != IGNORED).any() for own in codes)
        return {
            "dense_targets": pad_ragged(tokens, ids, offset),
            "dense_candidates": torch.from_numpy(np.concatenate(rows or [np.zeros((0, n_kinds), dtype=np.int64)])),
            "dense_candidate_ranges": stack_ranges(tables),
            **({"image_codes": torch.from_numpy(np.concatenate(codes))} if has_codes else {}),
        }

    def _next_codes(self, annotation: dict, where: str, grid: tuple[int, int]) -> np.ndarray:
        """The code of each vision token of an image, `int64 [n_vision_tokens]`, -100 where there is none."""
        for task in ANNOTATED_TASKS:
            if annotation.get(task.column) is not None:
                codes = task.encode_next(annotation, self, f"{where[:-1]}[{task.column!r}]`", grid)
                if codes is not None:
                    return codes
        return np.full(math.prod(grid), IGNORED, dtype=np.int64)

    def _annotation_targets(
        self, annotation: dict, where: str, candidates: str, size: tuple[int, int]
    ) -> list[Targets]:
        """The kinds of targets that an image's annotation makes."""
        known = {entry for task in ANNOTATED_TASKS for entry in (task.column, *task.column_options)}
        unknown = set(annotation) - known
        if unknown:
            raise ValueError(f"{where} has unknown entries {sorted(unknown)}")
        return [
            targets
            for task in ANNOTATED_TASKS
            if annotation.get(task.column) is not None
            for targets in task.encode(annotation, self, f"{where[:-1]}[{task.column!r}]`", candidates, size)
        ]

    def _annotated_ranges(self, sets: tuple) -> np.ndarray:
        """The union of sets of ids as ranges: kept, as a vocabulary is large and the sets are always the same."""
        key = ("ranges", sets)
        if key not in self._memo:
            ids = [self._text_token_ids if one == "text" else np.array(one, dtype=np.int64) for one in sets]
            self._memo[key] = id_ranges(np.unique(np.concatenate(ids)))
        return self._memo[key]

    # ---- outputs ----

    def task_label_ids(
        self, task: str, labels: Labels | None = None, resized_size: tuple[int, int] | None = None
    ) -> list[list[int]]:
        """The vocabulary ids of a task's labels: of `labels` for classes, else of the task's own tokens. Which tokens
        the coordinates are goes by `resized_size`, `(height, width)` in pixels of the image as the model gets it."""
        request = DenseRequest(
            size=(0, 0), labels=None if labels is None else self.normalize_labels(labels), resized_size=resized_size
        )
        return get_task(task).label_ids(request, self)

    def decode_dense(
        self, task: str, logits: torch.Tensor, size: tuple[int, int], labels: Labels | None = None,
        background: bool = False, threshold: float | None = None, depth_range: str | None = None,
        focal_length: float | None = None, refine: str | None = None, image: PIL.Image.Image | None = None,
        source: str | None = None, thing_labels: ThingLabels | None = None,
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
            refine: as for `predict_dense`, of what the task takes; needs `image`, the RGB image.
            source, thing_labels: as for `predict_dense`.

        Returns:
            the fields of a [`DensePrediction`] that the task fills in, maps on the device of `logits`.
        """
        cell = self.image_processor.patch_size * self.image_processor.merge_size
        resized_size = (logits.shape[1] * cell, logits.shape[2] * cell)
        request = DenseRequest(
            size=tuple(size), image_size=resized_size, resized_size=resized_size, image=image, background=background,
            labels=None if labels is None else self.normalize_labels(labels), threshold=threshold,
            depth_range=depth_range, focal_length=focal_length, refine=refine, source=source,
            thing_labels=None if thing_labels is None else tuple(thing_labels),
        )  # fmt: skip
        dense_task = get_task(task)
        check_refine(refine, [dense_task])
        dense_task.check(request, self)
        dense_task.check_image(request, self)
        count = len(dense_task.label_ids(request, self))
        if len(logits) != count:
            raise ValueError(f"`logits` must have a row for each of {count} labels of the task, got {len(logits)}")
        return dense_task.finish(dense_task.decode(logits, request, self))

    def answer_task(
        self, task: str, text: str | Iterable[str] | None = None, prompt: str | None = None
    ) -> tuple[str, Callable[[str, tuple[int, int], tuple[int, int]], dict[str, Any]]]:
        """The question of a task that is answered in words, and the function that reads the answer.

        Args:
            task: a row of [`TEXT_TASKS`].
            text: a phrase, or a list of names.
            prompt: the question in other words, with `{text}` where `text` belongs.

        Returns:
            the question, and a function of (answer, image_size, resized_size).

        Raises:
            ValueError: an unknown task, or a `text` that is missing.
        """
        row = get_text_task(task)
        question, names = row.ask(task, text, prompt)
        return question, lambda answer, *sizes: row.parse(answer, *(sizes or ((0, 0), (0, 0))), names)

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
        """See [`find_class`]."""
        return find_class(text, names)

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
        self, outputs: Any, target_sizes: Sizes | None = None
    ) -> list[dict[str, torch.Tensor]]:
        """See [`DenseMLLMImageProcessor.post_process_depth_estimation`]; [`decode_dense`] reads logits."""
        return self.image_processor.post_process_depth_estimation(outputs, target_sizes)

    def post_process_image_text_to_text(
        self,
        generated_outputs: "torch.Tensor | np.ndarray | list[list[int]]",
        skip_special_tokens: bool = True,
        **kwargs: Any,
    ) -> list[str]:
        """Generated ids to texts; structural tokens such as `<ref>` stay."""
        return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)


def _image_processor_class(backend: str | None) -> type:
    if check_choice("backend", backend or "pil", ("pil", "torchvision")) == "pil":
        return DenseMLLMImageProcessor
    # Imported here as torchvision may be missing; and saving a checkpoint copies what is imported anywhere.
    from .image_processing_torchvision_densemllm import DenseMLLMImageProcessorTorchvision

    return DenseMLLMImageProcessorTorchvision


DenseMLLMProcessor.register_for_auto_class()

__all__ = ["DenseMLLMProcessor", "add_dense_tokens"]
