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
"""Images that the model has read: from any source to the hidden states of their vision tokens."""

import contextlib
import math
import sys
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, overload

import PIL.Image
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging

from .checks_densemllm import (
    FocalLengths,
    check_choice,
    check_count,
    check_flag,
    check_positive,
    check_text,
    plain,
    shown,
)
from .compat_densemllm import get_cache
from .configuration_densemllm import check_prompt_length
from .exif_densemllm import find_focal_lengths
from .image_processing_densemllm import AnyImage, DenseMLLMImageProcessor
from .loading_densemllm import CheckpointFiles, computes_bfloat16
from .numbers_densemllm import InputNumbers
from .processing_densemllm import DenseMLLMProcessor
from .records_densemllm import Record
from .tiles_densemllm import TiledMap, Tiling, check_tiling


logger = logging.get_logger(__name__)


@dataclass
class EncodedImage(Record):
    """An image that the model has read: start any number of label sets, maps and questions from it.

    It goes from process to process as a [`DensePrediction`] does. `to_dict` leaves the cache out, the largest part by
    far: [`query`] fills a new one from the image's features.

    Attributes:
        hidden_states: `[n_vision_tokens, hidden_size]`, of the vision tokens after the language model.
        image_features: `[n_vision_tokens, hidden_size]`, of the vision tokens before it.
        grid: `(height, width)` in vision tokens.
        image: upright, RGB.
        prompt: the text before the image.
        input_ids: `int64 [1, length]`, the prompt up to the last vision token.
        past_key_values: the key-value cache of `input_ids`, or `None`.
    """

    _left_out = ("past_key_values",)

    hidden_states: torch.Tensor
    image_features: torch.Tensor
    grid: tuple[int, int]
    image: PIL.Image.Image
    prompt: str
    input_ids: torch.Tensor
    past_key_values: Cache | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        """`(height, width)` of the image in pixels."""
        return self.image.height, self.image.width

    def query(self, text: str, **kwargs: Any) -> str | list[str]:
        """Ask the model that read the image about it; see its [`query`].

        Raises:
            ValueError: as there, and where that model is gone, or in another process.
        """
        return self._reader.query(self, text, **kwargs)

    def chat(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> str | list[str]:
        """The next answer of a chat of several turns with the model that read the image; see its [`chat`].

        Raises:
            ValueError, TypeError: as there, and where that model is gone, or in another process.
        """
        return self._reader.chat(self, messages, **kwargs)

    @property
    def _reader(self) -> Any:
        """What read the image. It is not a field: what goes to another process, or to a file, leaves it behind."""
        reader = vars(self).get("_reader_reference", lambda: None)()
        if reader is None:
            raise ValueError(
                "the model that read this image is gone, or in another process: ask one that has the same weights by "
                "`model.query(encoded, ...)` or `model.chat(encoded, ...)`"
            )
        return reader

    def _remember(self, reader: Any) -> Self:
        """The record itself, which [`query`] and [`chat`] ask `reader` about; it doesn't keep a model in memory."""
        vars(self)["_reader_reference"] = weakref.ref(reader)
        return self

    def __copy__(self) -> Self:
        copied = super().__copy__()
        vars(copied).update(vars(self))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_reader_reference"}


ImageOrEncoded = AnyImage | EncodedImage


class ImageEncodingMixin:
    """What [`DenseMLLMForConditionalGeneration`] needs to read images: its processor, and [`encode_image`]."""

    def get_processor(self, processor: DenseMLLMProcessor | None = None) -> DenseMLLMProcessor:
        """The processor of this model: the one that was set, or that was saved with its checkpoint.

        Args:
            processor: returned instead where it is given, after a check. A model that has none of its own keeps it.

        Raises:
            ValueError: the model has no processor, or the processor is another model's.
        """
        if processor is not None and not self._has_processor():
            self.set_processor(processor)
        return self._choose_processor(processor)

    def set_processor(self, processor: DenseMLLMProcessor) -> None:
        """Make `processor` that of this model, for all calls that are given none.

        Raises:
            ValueError: it is another model's.
        """
        self.__dict__["_processor"] = self._choose_processor(processor)

    @property
    def _input_device(self) -> torch.device:
        """Where inputs go. While weights are offloaded, `device` is "meta", and accelerate's hooks know where the
        layers compute."""
        if self.device.type != "meta":
            return self.device
        for module in self.modules():
            hook = getattr(module, "_hf_hook", None)
            for part in getattr(hook, "hooks", [hook]):
                device = getattr(part, "execution_device", None)
                if device is not None:
                    return torch.device(device)
        return torch.device("cpu")

    def _has_processor(self) -> bool:
        return self.__dict__.get("_processor") is not None or bool(self.name_or_path)

    def _choose_processor(self, processor: DenseMLLMProcessor | None) -> DenseMLLMProcessor:
        """That of one call: `processor`, or the model's own."""
        if processor is None:
            processor = self.__dict__.get("_processor")
        if processor is None:
            processor = self.__dict__["_processor"] = self._load_processor()
        for name, expected, given in (
            ("image_token_id", self.config.image_token_id, processor.image_token_id),
            ("spatial_merge_size", self.config.spatial_merge_size, processor.image_processor.merge_size),
            ("patch_size", self.config.vision_config.patch_size, processor.image_processor.patch_size),
            ("num_depth_bins", self.config.num_depth_bins, processor.num_depth_bins),
            ("depth_ranges", self.config.depth_ranges, processor.depth_ranges),
            ("default_depth_range", self.config.default_depth_range, processor.default_depth_range),
        ):
            if expected != given:
                raise ValueError(f"`processor` does not belong to this model: its `{name}` is {given}, not {expected}")
        return processor

    def _keep_checkpoint_files(self, path, options: dict) -> None:
        """Remember what `from_pretrained` was told, so that the processor is looked up in the same place."""
        if not self.name_or_path:
            return
        if self.name_or_path != str(path):  # an adapter's folder: the base model is what was loaded
            options = {name: value for name, value in options.items() if name not in ("revision", "subfolder")}
        self.__dict__["_checkpoint_files"] = CheckpointFiles.of_call(self.name_or_path, options)

    def _load_processor(self) -> DenseMLLMProcessor:
        if not self.name_or_path:
            raise ValueError("`processor` is needed: this model was not loaded from a checkpoint that has one")
        files = self.__dict__.get("_checkpoint_files") or CheckpointFiles.of_call(self.name_or_path, {})
        try:
            return DenseMLLMProcessor.from_pretrained(files.path, **files.options)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"`processor` is needed: none can be loaded from {files.path}, where the model comes from; save it "
                "beside the model (`processor.save_pretrained(folder)`), set it (`model.set_processor(processor)`), "
                f"or give it to the call ({error})"
            ) from error

    @overload
    def encode_image(
        self, images: AnyImage, prompt: str = ..., processor: DenseMLLMProcessor | None = ..., batch_size: int = ...,
        use_cache: bool = ..., focal_length: FocalLengths | None = ..., depth_range: str | None = ...,
        on_error: Literal["raise"] = ..., tile: int | tuple[int, int] | None = ..., tile_overlap: int | None = ...,
        **images_kwargs: Any,
    ) -> EncodedImage: ...  # fmt: skip

    @overload
    def encode_image(
        self, images: Sequence[AnyImage], prompt: str = ..., processor: DenseMLLMProcessor | None = ...,
        batch_size: int = ..., use_cache: bool = ..., focal_length: FocalLengths | None = ...,
        depth_range: str | None = ..., on_error: Literal["raise"] = ..., tile: int | tuple[int, int] | None = ...,
        tile_overlap: int | None = ..., **images_kwargs: Any,
    ) -> list[EncodedImage]: ...  # fmt: skip

    @overload
    def encode_image(
        self, images: AnyImage | Sequence[AnyImage], prompt: str = ..., processor: DenseMLLMProcessor | None = ...,
        batch_size: int = ..., use_cache: bool = ..., focal_length: FocalLengths | None = ...,
        depth_range: str | None = ..., on_error: str = ..., tile: int | tuple[int, int] | None = ...,
        tile_overlap: int | None = ..., **images_kwargs: Any,
    ) -> EncodedImage | list[EncodedImage | None] | None: ...  # fmt: skip

    @torch.no_grad()
    def encode_image(
        self,
        images: AnyImage | Sequence[AnyImage],
        prompt: str = "",
        processor: DenseMLLMProcessor | None = None,
        batch_size: int = 8,
        use_cache: bool = True,
        focal_length: FocalLengths | None = None,
        depth_range: str | None = None,
        on_error: str = "raise",
        tile: int | tuple[int, int] | None = None,
        tile_overlap: int | None = None,
        **images_kwargs: Any,
    ) -> EncodedImage | list[EncodedImage] | list[EncodedImage | None] | None:
        """Read images once, to predict and ask often.

        A vision token sees only what stands before it, so its hidden state is the same whatever is asked afterwards.

        Args:
            images: one image or a list of them, as for [`predict_dense`].
            prompt: text before the image, for depth of a known camera.
            processor: found from the checkpoint where left out.
            batch_size: images a forward pass.
            use_cache: keep the key-value cache, which [`query`] and class lists start from.
            focal_length, depth_range, on_error, tile, tile_overlap: as for [`predict_dense`]. What was read in tiles
                has no key-value cache; a question about it reads the features of all tiles as one image.
            images_kwargs: for the image processor (`scale`, `max_num_patches`...).

        Returns:
            one [`EncodedImage`], or a list for a list.

        Raises:
            ValueError, TypeError: an argument that can't be used, named; before anything is computed.
        """
        processor = self._choose_processor(check_processor(processor))
        prompt, use_cache = check_text("prompt", prompt), check_flag("use_cache", use_cache)
        batch_size = check_count("batch_size", batch_size)
        images_kwargs = check_images_kwargs(images_kwargs, processor)
        tiling = self._check_tiling(tile, tile_overlap, processor, images_kwargs)
        single = not isinstance(images, (list, tuple))
        images = [images] if single else images
        images, focal_lengths = find_focal_lengths(
            images, focal_length, processor.image_processor, images_kwargs, single
        )
        per_image_kwargs = [with_focal_scale(images_kwargs, processor, focal, depth_range) for focal in focal_lengths]
        loaded, places = load_images(images, processor, single, on_error, images_kwargs)
        per_image_kwargs = [per_image_kwargs[place] for place in places]
        encoded = self._encode(loaded, prompt, processor, batch_size, use_cache, per_image_kwargs, tiling)
        encoded = [image._remember(self) for image in encoded]
        return at_places(encoded, places, len(images), single)

    def _encode(
        self, images, prompt, processor, batch_size, use_cache, per_image_kwargs, tiling=None
    ) -> list[EncodedImage]:  # fmt: skip
        """[`encode_image`] of images with `per_image_kwargs`, one dict an image."""
        encoded = []
        if images and self.dtype == torch.bfloat16 and not computes_bfloat16(self._input_device):
            logger.warning_once(
                "The model's weights are bfloat16, which this CPU emulates slowly: `model.float()`, or "
                '`from_pretrained(..., dtype="float32")`, computes several times as fast.'
            )
        self._check_prompt_lengths(images, prompt, "", processor, per_image_kwargs, tiling)
        if tiling is not None:
            rows = zip(images, per_image_kwargs, strict=True)
            return [self._encode_tiles(image, prompt, processor, kwargs, tiling) for image, kwargs in rows]
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            inputs = [  # their size was checked when they were loaded; a crop is larger than what it is of
                processor.image_processor(
                    image, return_tensors="pt", **{**kwargs, "max_image_pixels": image.width * image.height}
                )
                for image, kwargs in zip(batch, per_image_kwargs[start : start + batch_size], strict=True)
            ]
            pixel_values, grid = (
                torch.cat([of_image[name] for of_image in inputs]) for name in ("pixel_values", "image_grid_thw")
            )
            # The sizes stay on the CPU, where they are read.
            features = self.model.get_image_features(
                pixel_values.to(self._input_device), grid, return_dict=True
            ).pooler_output
            merge_size = self.config.spatial_merge_size
            grids = [(height // merge_size, width // merge_size) for _, height, width in grid.tolist()]
            encoded += self._prefill_images(batch, features, grids, prompt, processor, use_cache)
        return encoded

    def _encode_tiles(self, image, prompt, processor, images_kwargs, tiling: Tiling) -> EncodedImage:
        """[`encode_image`] of one image, a tile after another: the model never has more than one of them."""
        merge_size = self.config.spatial_merge_size
        # The cap on patches is that of a tile, which was checked.
        sizes = {"max_image_pixels": image.width * image.height, "max_num_patches": sys.maxsize}
        inputs = processor.image_processor(image, return_tensors="pt", **{**images_kwargs, **sizes})
        grid = tuple(edge // merge_size for edge in inputs["image_grid_thw"][0, 1:].tolist())
        height, width = tiling.shown_of(grid)
        blocks = inputs["pixel_values"].unflatten(0, (*grid, merge_size**2))
        tile_grid = torch.tensor([[1, height * merge_size, width * merge_size]], device="cpu")  # where it is read
        hidden_states, image_features = TiledMap(tiling, grid), TiledMap(tiling, grid)
        for window in tiling.windows(grid):
            pixel_values = blocks[window].flatten(0, 2).to(self._input_device)
            features = self.model.get_image_features(pixel_values, tile_grid, return_dict=True).pooler_output
            tile = self._prefill_images([image], features, [(height, width)], prompt, processor, False)[0]
            hidden_states.add(window, tile.hidden_states)
            image_features.add(window, features[0])
        head, _ = self._prompt_ids(processor, prompt, "")
        tokens = head.new_full((math.prod(grid),), self.config.image_token_id)
        return EncodedImage(
            hidden_states=hidden_states.mean(tile.hidden_states.dtype),
            image_features=image_features.mean(features[0].dtype),
            grid=grid,
            image=image,
            prompt=prompt,
            input_ids=torch.cat([head, tokens])[None],
        )

    def _check_tiling(
        self, tile: Any, tile_overlap: int | None, processor: DenseMLLMProcessor, images_kwargs: dict
    ) -> Tiling | None:
        """The tiles that a call asks for, each no larger than an image may be."""
        merge_size = self.config.spatial_merge_size
        tiling = check_tiling(tile, tile_overlap, self.config.vision_config.patch_size * merge_size)
        most = images_kwargs.get("max_num_patches", processor.image_processor.max_num_patches)
        if tiling is not None and math.prod(tiling.tile) * merge_size**2 > most:
            raise ValueError(
                f"`tile` must have at most `max_num_patches` = {most} patches, got {shown(tile)}, which has "
                f"{math.prod(tiling.tile) * merge_size**2}"
            )
        if tiling is not None and not images_kwargs.get("do_resize", processor.image_processor.do_resize):
            raise ValueError("`tile` needs `do_resize`: the image is resized before it is cut")
        return tiling

    def _prefill_images(self, images, features, grids, prompts, processor, use_cache) -> list[EncodedImage]:
        """Run the language model over prompt and vision tokens of each image, those of like length together.

        Args:
            prompts: the text before each image, or before all of them.
        """
        prompts = [prompts] * len(images) if isinstance(prompts, str) else prompts
        heads = {prompt: self._prompt_ids(processor, prompt, "")[0] for prompt in dict.fromkeys(prompts)}
        heads = [heads[prompt] for prompt in prompts]
        lengths = [len(head) + len(feature) for head, feature in zip(heads, features, strict=True)]
        encoded: list[EncodedImage | None] = [None] * len(images)
        for group in _length_groups(lengths, 0.0 if use_cache else 0.1):
            # Shorter rows are filled up at the right, where a causal model's earlier positions never look.
            input_ids = heads[0].new_zeros(len(group), max(lengths[index] for index in group))
            for row, index in enumerate(group):
                input_ids[row, : len(heads[index])] = heads[index]
                input_ids[row, len(heads[index]) : lengths[index]] = self.config.image_token_id
            of_group = [features[index] for index in group]
            outputs = self.model(
                input_ids=input_ids,
                mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=of_group)},
                use_cache=use_cache,
                cache=(DynamicCache if use_cache else _PassingCache)(config=self.config.get_text_config()),
                input_numbers=InputNumbers(None, sum(map(len, of_group))),
            )
            for row, index in enumerate(group):
                encoded[index] = EncodedImage(
                    hidden_states=outputs.last_hidden_state[row, len(heads[index]) : lengths[index]],
                    image_features=features[index],
                    grid=grids[index],
                    image=images[index],
                    prompt=prompts[index],
                    input_ids=input_ids[row : row + 1, : lengths[index]],
                    past_key_values=get_cache(outputs) if use_cache else None,
                )
        return encoded

    def _check_prompt_lengths(self, images, prompt, question, processor, per_image_kwargs, tiling=None) -> None:
        """`ValueError` for an image, or a tile of it, whose tokens, with the text around it, are more than there are
        positions."""
        if self.config.num_positions is None or not images:
            return
        head, tail = self._prompt_ids(processor, prompt, question)
        around = len(head) + (len(tail) if question else 0)
        cell = self.config.vision_config.patch_size * self.config.spatial_merge_size
        for image, kwargs in zip(images, per_image_kwargs, strict=True):
            kwargs = {name: value for name, value in kwargs.items() if value is not None}
            if tiling is not None:
                kwargs["max_num_patches"] = sys.maxsize
            height, width = image.height, image.width
            if kwargs.get("do_resize", processor.image_processor.do_resize):
                height, width = processor.image_processor.get_resized_size(height, width, kwargs)
            grid = (height // cell, width // cell)
            check_prompt_length(around + math.prod(grid if tiling is None else tiling.shown_of(grid)), self.config)

    def _prompt_ids(self, processor, prompt: str, question: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The chat prompt's ids before and after the vision tokens."""
        wrong = (
            "`processor.chat_template` must write one image placeholder for an image, got {}; does the text contain "
            "{!r}?"
        )
        return self._ids_around_image(processor, [user_turn(prompt, question)], wrong)

    def _ids_around_image(self, processor, messages: list[dict], wrong: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A chat's ids before and after the vision tokens; found without asking the device.

        Args:
            wrong: message for a text with another number of placeholders than one: that number, and the placeholder.
        """
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        at = [place for place, token_id in enumerate(ids) if token_id == self.config.image_token_id]
        if len(at) != 1:
            raise ValueError(wrong.format(len(at), processor.image_token))
        ids = torch.tensor(ids, dtype=torch.long, device=self._input_device)
        return ids[: at[0]], ids[at[0] + 1 :]

    def label_logits(self, hidden_states: torch.Tensor, label_ids: list[list[int]]) -> torch.Tensor:
        """Score of each label: the mean of the logits of its sub-words (paper, section on decoding).

        Only the labels' columns of the output embedding are used, in one matrix product in float32, under autocast
        too.

        Args:
            hidden_states: `[n_tokens, hidden_size]`.
            label_ids: vocabulary ids of each label.

        Returns:
            `float32 [n_tokens, num_labels]`.

        Raises:
            ValueError: an id that the vocabulary lacks.
        """
        head = self.get_output_embeddings()
        is_plain = type(head) is nn.Linear and type(head.weight.data) is torch.Tensor and not head.weight.is_meta
        device = head.weight.device if is_plain else self._input_device
        hidden_states = hidden_states.to(device)
        highest = max((token_id for ids in label_ids for token_id in ids), default=-1)
        vocab_size = self.config.get_text_config().vocab_size
        if highest >= vocab_size:
            raise ValueError(
                f"`processor` does not belong to this model: a label has the id {highest}, but the vocabulary has "
                f"{vocab_size}"
            )
        with _without_autocast(device):
            if is_plain:
                return hidden_states.float() @ label_columns(head.weight, label_ids).T
            flat, label, counts = _flat_ids(label_ids, device)
            # An adapter, a quantised or an offloaded layer: only its own forward knows the logits, in its own type.
            dtype = next((p.dtype for p in head.parameters() if p.is_floating_point()), hidden_states.dtype)
            chunks = []
            for chunk in hidden_states.to(dtype).split(256):
                logits = head(chunk)
                chunks.append(logits[:, flat.to(logits.device)].float().to(device))
            logits = torch.cat(chunks)
            return logits.new_zeros(len(logits), len(label_ids)).index_add_(1, label, logits) / counts.T

    def _encode_entries(
        self, entries, prompt, use_cache, per_image_kwargs, processor, batch_size, tiling=None
    ) -> list[EncodedImage]:  # fmt: skip
        """Encode images with `per_image_kwargs`, one dict an entry. Encoded ones are taken as they are; for another
        prompt, it starts from their vision tokens."""
        fresh = [place for place, entry in enumerate(entries) if not isinstance(entry, EncodedImage)]
        images, kwargs = ([values[place] for place in fresh] for values in (entries, per_image_kwargs))
        fresh = iter(self._encode(images, prompt, processor, batch_size, use_cache, kwargs, tiling))
        encoded = []
        for entry in entries:
            if not isinstance(entry, EncodedImage):
                entry = next(fresh)
            elif entry.prompt != prompt:
                entry = self._prefill_images(
                    [entry.image], [entry.image_features], [entry.grid], prompt, processor, False
                )[0]
            encoded.append(entry)
        return encoded

    def _resized_size(self, encoded: EncodedImage) -> tuple[int, int]:
        """`(height, width)` in pixels of the image as the model saw it."""
        cell = self.config.vision_config.patch_size * self.config.spatial_merge_size
        return encoded.grid[0] * cell, encoded.grid[1] * cell


def user_turn(prompt: str, question: str = "") -> dict[str, Any]:
    """The message of a user about one image: the text before it, and what is asked."""
    before, after = ([{"type": "text", "text": text}] if text else [] for text in (prompt, question))
    return {"role": "user", "content": [*before, {"type": "image"}, *after]}


def _flat_ids(label_ids: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The ids of all labels, the place of each id's label, and how many ids each label has, `[num_labels, 1]`."""
    flat = torch.tensor([token_id for ids in label_ids for token_id in ids], dtype=torch.long, device=device)
    label = torch.tensor([k for k, ids in enumerate(label_ids) for _ in ids], dtype=torch.long, device=device)
    counts = torch.tensor([len(ids) for ids in label_ids], dtype=torch.long, device=device)[:, None]
    return flat, label, counts


def label_columns(weight: torch.Tensor, label_ids: list[list[int]]) -> torch.Tensor:
    """What stands for each label in a product with hidden states: the mean of its sub-words' columns, as the mean of
    logits is the logit of the mean column.

    Args:
        weight: `[vocab_size, hidden_size]`, of the output embedding.
        label_ids: vocabulary ids of each label.

    Returns:
        `float32 [num_labels, hidden_size]`.
    """
    flat, label, counts = _flat_ids(label_ids, weight.device)
    columns = weight[flat].float()
    if len(flat) == len(label_ids):
        return columns
    return columns.new_zeros(len(label_ids), columns.shape[1]).index_add_(0, label, columns) / counts


class _PassingCache(DynamicCache):
    """A cache that keeps nothing. Without any, the language model looks into the positions for several packed
    sequences, and the host waits for the device."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def check_processor(processor: DenseMLLMProcessor | None) -> DenseMLLMProcessor | None:
    """`processor`, or a `TypeError` for what is none."""
    # Not by its class: a checkpoint's own code is a second copy of this module.
    if processor is not None and not all(hasattr(processor, name) for name in ("image_processor", "depth_ranges")):
        raise TypeError(f"`processor` must be a DenseMLLMProcessor, got {type(processor).__name__}")
    return processor


def check_images_kwargs(images_kwargs: dict, processor: DenseMLLMProcessor) -> dict:
    """Arguments of the image processor by name and type, before an image is read; what is `None` is left out."""
    image_processor = processor.image_processor
    taken = set(image_processor.valid_kwargs.__annotations__) - {"return_tensors"}
    unknown = sorted(set(images_kwargs) - taken)
    if unknown:
        raise TypeError(
            f"`{unknown[0]}` is not an argument of this method, nor of the image processor: {sorted(taken)}"
        )
    values = {name: plain(value) for name, value in images_kwargs.items() if value is not None}
    if "scale" in values:
        values["scale"] = float(check_positive("scale", values["scale"]))
    for name, value in values.items():
        try:
            validate_typed_dict(image_processor.valid_kwargs, {name: value})
            if name == "resample":
                PIL.Image.Resampling(value)
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise TypeError(f"`{name}` can't be {shown(value)}: {error.__cause__ or error}") from error
        if name in ("patch_size", "merge_size") and value != getattr(image_processor, name):
            raise ValueError(f"`{name}` must be the model's own, {getattr(image_processor, name)}, got {shown(value)}")
    return values


def load_images(
    images: Sequence[ImageOrEncoded],
    processor: DenseMLLMProcessor,
    single: bool,
    on_error: str,
    images_kwargs: dict,
    encoded: bool = False,
) -> tuple[list, list[int]]:
    """Images as PIL images in RGB, and their places in the list. With `on_error="skip"` those that can't be read are
    warned of and left out. Where `encoded`, an [`EncodedImage`] is taken as it is."""
    check_choice("on_error", on_error, ("raise", "skip"))
    loaded, places = [], []
    for place, image in enumerate(images):
        try:
            is_read = encoded and isinstance(image, EncodedImage)
            name = "`images`" if single else f"`images[{place}]`"
            loaded.append(image if is_read else load_image(image, processor.image_processor, name, **images_kwargs))
            places.append(place)
        except (TypeError, ValueError) as error:
            if on_error == "raise":
                raise
            logger.warning(f"skipped: {error}")
    return loaded, places


def load_image(
    image: AnyImage, image_processor: DenseMLLMImageProcessor, name: str, **images_kwargs: Any
) -> PIL.Image.Image:
    """One image as a PIL image in RGB, or a `TypeError` or `ValueError` that begins with its `name`."""
    try:
        return image_processor.load_picture(image, **images_kwargs)
    except MemoryError:
        raise
    except Exception as error:  # the readers of many formats raise errors of many kinds
        reason = str(error)
        named = reason.startswith("`images` ")
        reason = f"{name} {reason.removeprefix('`images` ')}" if named else f"{name} can't be read: {reason}"
        raise (TypeError if isinstance(error, TypeError) else ValueError)(reason) from error


def at_places(results: list, places: list[int], count: int, single: bool) -> Any:  # a result, or a list of them
    """`results` at their places among `count` images, `None` at the others; of a single image not in a list."""
    found = dict(zip(places, results, strict=True))
    return found.get(0) if single else [found.get(place) for place in range(count)]


def with_focal_scale(
    images_kwargs: dict, processor: DenseMLLMProcessor, focal_length: float | None, depth_range: str | None
) -> dict:
    """Arguments of the image processor, with the scale that gives images the focal length of their depth range on
    top of the scale that they ask for."""
    if depth_range is not None:
        check_choice("depth_range", depth_range, processor.depth_ranges)  # whatever is asked for
    images_kwargs = dict(images_kwargs)
    scale = processor.get_scale(focal_length, depth_range)
    if scale is not None:
        images_kwargs["scale"] = scale * float(images_kwargs.get("scale", processor.image_processor.scale))
    return images_kwargs


def _length_groups(lengths: list[int], waste: float) -> list[list[int]]:
    """Indices grouped so that filling a group up to its longest adds at most `waste` of its own length."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and waste > 0:
            together = groups[-1] + [index]
            filled = lengths[together[0]] * len(together)
            if filled <= (1 + waste) * sum(lengths[i] for i in together):
                groups[-1] = together
                continue
        groups.append([index])
    return groups


__all__ = ["EncodedImage", "ImageEncodingMixin", "ImageOrEncoded", "label_columns", "load_image"]
