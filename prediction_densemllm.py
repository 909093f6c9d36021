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
"""Dense prediction with a DenseMLLM: read an image once, then labels, depth, masks and questions from there."""

import contextlib
import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging

from .answers_densemllm import encode_rle, parse_grounding
from .checks_densemllm import (
    Box,
    FocalLengths,
    Sizes,
    check_choice,
    check_corners,
    check_count,
    check_flag,
    check_positive,
    check_share,
    check_target_sizes,
    check_text,
    is_flat,
    one_an_image,
    plain,
    shown,
)
from .compat_densemllm import cache_argument, get_cache
from .configuration_densemllm import check_prompt_length
from .drawing_densemllm import Palette, add_names, add_scale, colorize_depth, label_colors
from .generation_densemllm import can_start_from_cache, check_assistant, copy_cache, generation_options
from .image_processing_densemllm import AnyImage, DenseMLLMImageProcessor, resize_map
from .loading_densemllm import CheckpointFiles
from .processing_densemllm import BACKGROUND_LABEL, DenseMLLMProcessor, Labels, get_task, parse_refs
from .records_densemllm import Record


logger = logging.get_logger(__name__)


@dataclass
class DensePrediction(Record):
    """Maps of one image, at its own size unless asked otherwise. Fields that the task does not fill in are `None`.

    A prediction goes from process to process as a pickle, or as [`to_dict`] and [`from_dict`]; where a checkpoint's
    own code is not loaded, a pickle of it is read as a `types.SimpleNamespace` of the fields.

    Attributes:
        segmentation (`torch.LongTensor [height, width]`): positions in `labels`, or its keys where a dict was given;
            -1 where none of them is chosen.
        segments_info (`list[dict]`): a row a segment: `id` and `label_id` (the value in `segmentation`), `label`,
            `score` (mean confidence), `area` (pixels), `was_fused` (always False).
        labels (`dict[int, str]`): the names asked for, or those that the model named, by their value.
        predicted_depth (`torch.FloatTensor [height, width]`): metres.
        mask (`torch.BoolTensor [height, width]`): the referred object.
        box (`tuple[float, float, float, float]`): of the referred object: x0, y0, x1, y1 in pixels of the image.
        scores (`torch.FloatTensor [height, width]`): confidence in [0, 1]: of the chosen label, of the depth bin, or
            of the foreground. With several tasks in one call a dict from task to map. That of a label compares it with
            the other labels of the call: it is not the probability that such a thing is in the image. A label alone
            has 1 everywhere, unless `background` or `<OTHERS>` gives it something to compete with.
        logits (`torch.FloatTensor [num_labels, grid_height, grid_width]`): label logits, with `return_logits=True`
            only. With several tasks in one call a dict from task to tensor.
        text (`str`): what the model answered where it was asked for a class list or a box.
    """

    segmentation: torch.Tensor | None = None
    segments_info: list[dict] | None = None
    labels: dict[int, str] | None = None
    predicted_depth: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    box: tuple[float, float, float, float] | None = None
    scores: "torch.Tensor | dict[str, torch.Tensor] | None" = None
    logits: "torch.Tensor | dict[str, torch.Tensor] | None" = None
    text: str | None = None

    def to_pil(
        self, field: str | None = None, legend: bool = False, palette: Palette | None = None
    ) -> PIL.Image.Image:
        """A picture of one field: classes and the mask in colours, depth from near (bright) to far (dark).

        Args:
            field: `"segmentation"`, `"predicted_depth"` or `"mask"`; the first that is there where left out.
            legend: add the names of the classes, or a scale in metres, at the right of the map.
            palette: colours of the classes, as for [`label_colors`]: a fixed table where left out, `"ade20k"`,
                `"voc"`, `"cityscapes"`, a dict from name or number to colour, or `[n, 3]`.
        """
        field, legend = self._field(field), check_flag("legend", legend)
        values = getattr(self, field).cpu().numpy()
        if field == "predicted_depth":
            picture = PIL.Image.fromarray(colorize_depth(values))
            return add_scale(picture, float(values.min()), float(values.max())) if legend else picture
        if field == "mask":
            values = np.where(values, 1, -1)  # what is not found is black, as what has no class
        names = {row["id"]: row["label"] for row in self.segments_info or []} if field == "segmentation" else {}
        numbers, places = np.unique(values, return_inverse=True)
        colors = np.zeros((len(numbers), 3), np.uint8)
        colors[numbers >= 0] = label_colors(numbers[numbers >= 0], palette, names)
        picture = PIL.Image.fromarray(colors[places.reshape(values.shape)])
        if not legend:
            return picture
        # A class once, in the order of its number: of an open set, where each object has a colour, each object.
        names |= {-1: "none of them"} if field == "segmentation" else {1: "found"}
        own = dict(zip(numbers.tolist(), colors, strict=True))
        return add_names(picture, [(name, own[number]) for number, name in names.items() if number in own])

    def to_rle(self) -> "dict | list[dict]":
        """Masks as COCO's compressed run lengths, `{"size": [height, width], "counts": str}`, as `pycocotools` reads
        and writes them: of `mask`, or of each segment, in the form of its results.

        Returns:
            one dict for a mask; for a segmentation a list with `segmentation`, `category_id`, `category`, `score` and
            `area` of each row of `segments_info`.
        """
        if self.mask is not None:
            return encode_rle(self.mask.numpy())
        if self.segmentation is None:
            raise ValueError("there is no mask and no segmentation to encode")
        return [
            {
                "segmentation": encode_rle((self.segmentation == row["id"]).numpy()), "category_id": row["label_id"],
                "category": row["label"], "score": row["score"], "area": row["area"],
            }
            for row in self.segments_info
        ]  # fmt: skip

    def overlay(
        self, image: AnyImage, field: str | None = None, alpha: float = 0.55, palette: Palette | None = None
    ) -> PIL.Image.Image:
        """The picture of [`to_pil`] laid over `image`, resized to the map. Pixels without a label stay as they are.

        Args:
            image: of the scene, in any form that `predict_dense` takes.
            field: as for [`to_pil`].
            alpha: weight of the map in [0, 1].
            palette: as for [`to_pil`].
        """
        field, alpha = self._field(field), check_share("alpha", alpha)
        colors = np.array(self.to_pil(field, palette=palette))
        picture = load_image(image, DenseMLLMImageProcessor(), "`image`")  # upright, as it was seen
        picture = np.asarray(picture.resize((colors.shape[1], colors.shape[0]), PIL.Image.Resampling.BILINEAR))
        values = getattr(self, field).cpu().numpy()
        bands = (np.array_split(whole, 1 + values.size // 2**20) for whole in (colors, picture, values))
        for mixed, below, own in zip(*bands, strict=True):
            drawn = own > 0 if field == "mask" else own >= 0
            over = np.float32(alpha) * mixed + np.float32(1 - alpha) * below
            mixed[:] = np.where(drawn[..., None], over, below).round()
        return PIL.Image.fromarray(colors)

    def _field(self, field: str | None) -> str:
        there = [name for name in ("segmentation", "predicted_depth", "mask") if getattr(self, name) is not None]
        return there[0] if field is None and there else check_choice("field", field, there)


@dataclass
class EncodedImage(Record):
    """An image that the model has read: start any number of label sets, maps and questions from it.

    It goes from process to process as a [`DensePrediction`] does. `to_dict` leaves the cache out, the largest part by
    far: [`query`] fills a new one from the image's features.

    Attributes:
        hidden_states: `[n_vision_tokens, hidden_size]`, of the vision tokens after the language model.
        image_features: `[n_vision_tokens, hidden_size]`, of the vision tokens before it.
        grid: `(height, width)` in vision tokens.
        image: the picture, upright, RGB.
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
        """`(height, width)` of the picture in pixels."""
        return self.image.height, self.image.width


ImageOrEncoded = AnyImage | EncodedImage


class DensePredictionMixin:
    """What [`DenseMLLMForConditionalGeneration`] does beyond forward and generate: `encode_image`, `predict_dense` and
    `query`. It needs nothing of the model but its backbone and its output embedding."""

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
            for own in getattr(hook, "hooks", [hook]):
                device = getattr(own, "execution_device", None)
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
        for name, own, given in (
            ("image_token_id", self.config.image_token_id, processor.image_token_id),
            ("spatial_merge_size", self.config.spatial_merge_size, processor.image_processor.merge_size),
            ("patch_size", self.config.vision_config.patch_size, processor.image_processor.patch_size),
            ("num_depth_bins", self.config.num_depth_bins, processor.num_depth_bins),
            ("depth_ranges", self.config.depth_ranges, processor.depth_ranges),
            ("default_depth_range", self.config.default_depth_range, processor.default_depth_range),
        ):
            if own != given:
                raise ValueError(f"`processor` does not belong to this model: its `{name}` is {given}, not {own}")
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
        on_error: Literal["raise"] = ..., **images_kwargs: Any,
    ) -> EncodedImage: ...  # fmt: skip

    @overload
    def encode_image(
        self, images: Sequence[AnyImage], prompt: str = ..., processor: DenseMLLMProcessor | None = ...,
        batch_size: int = ..., use_cache: bool = ..., focal_length: FocalLengths | None = ...,
        depth_range: str | None = ..., on_error: Literal["raise"] = ..., **images_kwargs: Any,
    ) -> list[EncodedImage]: ...  # fmt: skip

    @overload
    def encode_image(
        self, images: AnyImage | Sequence[AnyImage], prompt: str = ..., processor: DenseMLLMProcessor | None = ...,
        batch_size: int = ..., use_cache: bool = ..., focal_length: FocalLengths | None = ...,
        depth_range: str | None = ..., on_error: str = ..., **images_kwargs: Any,
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
            focal_length, depth_range, on_error: as for [`predict_dense`].
            images_kwargs: for the image processor (`scale`, `max_num_patches`...).

        Returns:
            one [`EncodedImage`], or a list for a list.

        Raises:
            ValueError, TypeError: an argument that can't be used, named; before anything is computed.
        """
        processor = self._choose_processor(_check_processor(processor))
        prompt, use_cache = check_text("prompt", prompt), check_flag("use_cache", use_cache)
        batch_size = check_count("batch_size", batch_size)
        images_kwargs = _check_images_kwargs(images_kwargs, processor)
        single = not isinstance(images, (list, tuple))
        images = [images] if single else images
        focal_lengths = one_an_image("focal_length", focal_length, len(images), _check_focal_length)
        scaled = [with_focal_scale(images_kwargs, processor, own, depth_range) for own in focal_lengths]
        pictures, places = _load_images(images, processor, single, on_error, images_kwargs)
        scaled = [scaled[place] for place in places]
        encoded = self._encode(pictures, prompt, processor, batch_size, use_cache, scaled)
        return _at_places(encoded, places, len(images), single)

    def _encode(self, pictures, prompt, processor, batch_size, use_cache, images_kwargs) -> list[EncodedImage]:
        """[`encode_image`] of pictures with `images_kwargs`, one dict a picture."""
        encoded = []
        self._check_prompt_lengths(pictures, prompt, "", processor, images_kwargs)
        for start in range(0, len(pictures), batch_size):
            batch = pictures[start : start + batch_size]
            inputs = [  # their size was checked when they were loaded; a crop is larger than what it is of
                processor.image_processor(
                    picture, return_tensors="pt", **{**own, "max_image_pixels": picture.width * picture.height}
                )
                for picture, own in zip(batch, images_kwargs[start : start + batch_size], strict=True)
            ]
            pixel_values, grid = (
                torch.cat([own[name] for own in inputs]) for name in ("pixel_values", "image_grid_thw")
            )
            features = self.model.get_image_features(
                pixel_values.to(self._input_device), grid.to(self._input_device), return_dict=True
            ).pooler_output
            merge_size = self.config.spatial_merge_size
            grids = [(height // merge_size, width // merge_size) for _, height, width in grid.tolist()]
            encoded += self._prefill_images(batch, features, grids, prompt, processor, use_cache)
        return encoded

    def _prefill_images(self, pictures, features, grids, prompt, processor, use_cache) -> list[EncodedImage]:
        """Run the language model over prompt and vision tokens of each image, images of like length together."""
        head, _ = self._prompt_ids(processor, prompt, "")
        encoded: list[EncodedImage | None] = [None] * len(pictures)
        for group in _length_groups([len(feature) for feature in features], 0.0 if use_cache else 0.1):
            longest = max(len(features[index]) for index in group)
            # Shorter rows are filled up at the right, where a causal model's earlier positions never look.
            input_ids = head.new_zeros(len(group), len(head) + longest)
            input_ids[:, : len(head)] = head
            for row, index in enumerate(group):
                input_ids[row, len(head) : len(head) + len(features[index])] = self.config.image_token_id
            outputs = self.model(
                input_ids=input_ids,
                mm_encoder_outputs={
                    "image": BaseModelOutputWithPooling(pooler_output=[features[index] for index in group])
                },
                use_cache=use_cache,
                cache=DynamicCache(config=self.config.get_text_config()) if use_cache else None,
            )
            for row, index in enumerate(group):
                length = len(head) + len(features[index])
                encoded[index] = EncodedImage(
                    hidden_states=outputs.last_hidden_state[row, len(head) : length],
                    image_features=features[index],
                    grid=grids[index],
                    image=pictures[index],
                    prompt=prompt,
                    input_ids=input_ids[row : row + 1, :length],
                    past_key_values=get_cache(outputs) if use_cache else None,
                )
        return encoded

    def _check_prompt_lengths(self, pictures, prompt, question, processor, images_kwargs) -> None:
        """`ValueError` for a picture whose tokens, with the text around it, are more than there are positions."""
        if self.config.num_positions is None or not pictures:
            return
        head, tail = self._prompt_ids(processor, prompt, question)
        around = len(head) + (len(tail) if question else 0)
        cell = self.config.vision_config.patch_size * self.config.spatial_merge_size
        for picture, own in zip(pictures, images_kwargs, strict=True):
            own = {name: value for name, value in own.items() if value is not None}
            height, width = picture.height, picture.width
            if own.get("do_resize", processor.image_processor.do_resize):
                height, width = processor.image_processor.get_resized_size(height, width, own)
            check_prompt_length(around + (height // cell) * (width // cell), self.config)

    def _prompt_ids(self, processor, prompt: str, question: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The chat prompt's ids before and after the vision tokens."""
        content = [{"type": "text", "text": prompt}] if prompt else []
        content += [{"type": "image"}] + ([{"type": "text", "text": question}] if question else [])
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        ids = torch.tensor(processor.tokenizer(text, add_special_tokens=False)["input_ids"], device=self._input_device)
        at = (ids == self.config.image_token_id).nonzero()[:, 0]
        if len(at) != 1:
            raise ValueError(
                f"`processor.chat_template` must write one image placeholder for an image, got {len(at)}; does the "
                f"text contain {processor.image_token!r}?"
            )
        return ids[: at[0]], ids[at[0] + 1 :]

    @overload
    def query(
        self, image: ImageOrEncoded | Sequence[ImageOrEncoded], text: str | Sequence[str],
        processor: DenseMLLMProcessor | None = ..., max_new_tokens: int | None = ..., stop_at: str | None = ...,
        focal_length: FocalLengths | None = ..., depth_range: str | None = ..., *, num_return_sequences: int,
        **kwargs: Any,
    ) -> str | list[str] | list[list[str]]: ...  # fmt: skip

    @overload
    def query(
        self, image: ImageOrEncoded, text: str | Sequence[str], processor: DenseMLLMProcessor | None = ...,
        max_new_tokens: int | None = ..., stop_at: str | None = ..., focal_length: FocalLengths | None = ...,
        depth_range: str | None = ..., **kwargs: Any,
    ) -> str: ...  # fmt: skip

    @overload
    def query(
        self, image: Sequence[ImageOrEncoded], text: str | Sequence[str], processor: DenseMLLMProcessor | None = ...,
        max_new_tokens: int | None = ..., stop_at: str | None = ..., focal_length: FocalLengths | None = ...,
        depth_range: str | None = ..., **kwargs: Any,
    ) -> list[str]: ...  # fmt: skip

    @torch.no_grad()
    def query(
        self, image: ImageOrEncoded | Sequence[ImageOrEncoded], text: str | Sequence[str],
        processor: DenseMLLMProcessor | None = None, max_new_tokens: int | None = None, stop_at: str | None = None,
        focal_length: FocalLengths | None = None, depth_range: str | None = None, **kwargs: Any,
    ) -> str | list[str] | list[list[str]]:  # fmt: skip
        """Ask about images in words.

        Args:
            image: an image, as for [`predict_dense`], or an [`EncodedImage`], or a list of these, each of which is
                asked about by itself.
            text: the question; of a list of images one, or one an image.
            processor: found from the checkpoint where left out.
            max_new_tokens: length of the answer, at most; 256 where `kwargs` don't say it either. It ends, too, where
                the language model's positions do.
            stop_at: a token of the vocabulary that ends the answer, as the end of the text does.
            focal_length, depth_range: of an image that isn't encoded yet, as for [`predict_dense`].
            kwargs: for `generate`, `generation_config` among them; greedy decoding unless told otherwise. Not taken
                are the model's inputs, and what asks for more than text (`return_dict_in_generate`...).

        Returns:
            the answer, or a list for a list; a list of answers for each image with `num_return_sequences`. Structural
            tokens such as `<ref>` stay, special ones don't.

        Raises:
            ValueError: an argument that isn't taken, or more tokens than the language model has positions for.
        """
        processor = self._choose_processor(_check_processor(processor))
        single = not isinstance(image, (list, tuple))
        count = 1 if single else len(image)
        accepted = "a question, or one an image"
        texts = one_an_image("text", text, count, lambda own: check_text("text", own, accepted))
        if None in texts:
            raise TypeError(f"`text` must be {accepted}, got {shown(text)}")
        focal_lengths = one_an_image("focal_length", focal_length, count, _check_focal_length)
        if not single:
            rows = zip(image, texts, focal_lengths, strict=True)
            return [
                self.query(own, own_text, processor, max_new_tokens, stop_at, focal, depth_range, **kwargs)
                for own, own_text, focal in rows
            ]
        config, kwargs = generation_options(self.generation_config, kwargs, max_new_tokens)
        check_assistant(kwargs.get("assistant_model"), self)
        start_from_cache = can_start_from_cache(config, kwargs)
        if isinstance(image, EncodedImage):
            encoded = image
        else:
            picture = load_image(image, processor.image_processor, "`image`")
            own = with_focal_scale({}, processor, focal_lengths[0], depth_range)
            self._check_prompt_lengths([picture], "", texts[0], processor, [own])
            encoded = self._encode([picture], "", processor, 1, start_from_cache, [own])[0]
        _, tail = self._prompt_ids(processor, encoded.prompt, texts[0])
        input_ids = torch.cat([encoded.input_ids.to(tail.device), tail[None]], dim=1)
        length = input_ids.shape[1]
        check_prompt_length(length, self.config)
        if self.config.num_positions is not None and config.max_new_tokens is not None:
            config.max_new_tokens = min(config.max_new_tokens, self.config.num_positions - length + 1)
        stop_id = None if stop_at is None else processor.tokenizer.convert_tokens_to_ids(stop_at)
        if stop_id is not None and stop_id != processor.tokenizer.unk_token_id:
            ends = config.eos_token_id
            config.eos_token_id = [*([ends] if isinstance(ends, int) else ends or []), stop_id]
        if start_from_cache:
            if encoded.past_key_values is None:
                encoded = self._prefill_images([encoded.image], [encoded.image_features], [encoded.grid],
                                               encoded.prompt, processor, use_cache=True)[0]  # fmt: skip
            repeats = max(config.num_beams or 1, config.num_return_sequences or 1)
            start = cache_argument(copy_cache(encoded.past_key_values, repeats))  # generate writes into it
        else:
            start = {
                "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=[encoded.image_features])}
            }
        output = self.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=config,
            **{"tokenizer": processor.tokenizer, **start, **kwargs},
        )
        answers = processor.post_process_image_text_to_text(output[:, length:])
        return answers if (config.num_return_sequences or 1) > 1 else answers[0]

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
        flat = torch.tensor([token_id for ids in label_ids for token_id in ids], dtype=torch.long, device=device)
        label = torch.tensor([k for k, ids in enumerate(label_ids) for _ in ids], dtype=torch.long, device=device)
        vocab_size = self.config.get_text_config().vocab_size
        if len(flat) and int(flat.max()) >= vocab_size:
            raise ValueError(
                f"`processor` does not belong to this model: a label has the id {int(flat.max())}, but the vocabulary "
                f"has {vocab_size}"
            )
        counts = torch.bincount(label, minlength=len(label_ids))[:, None]
        with _without_autocast(device):
            if is_plain:
                # The mean of logits is the logit of the mean column.
                columns = head.weight[flat].float()
                if len(flat) > len(label_ids):
                    sums = columns.new_zeros(len(label_ids), columns.shape[1]).index_add_(0, label, columns)
                    columns = sums / counts
                return hidden_states.float() @ columns.T
            # An adapter, a quantised or an offloaded layer: only its own forward knows the logits, in its own type.
            dtype = next((p.dtype for p in head.parameters() if p.is_floating_point()), hidden_states.dtype)
            chunks = []
            for chunk in hidden_states.to(dtype).split(256):
                logits = head(chunk)
                chunks.append(logits[:, flat.to(logits.device)].float().to(device))
            logits = torch.cat(chunks)
            return logits.new_zeros(len(logits), len(label_ids)).index_add_(1, label, logits) / counts.T

    @overload
    def predict_dense(
        self, images: ImageOrEncoded, task: str | tuple[str, ...] = ..., labels: Labels | None = ...,
        text: str | None = ..., box: Sequence[float] | None = ..., background: bool = ...,
        threshold: float | None = ..., depth_range: str | None = ..., focal_length: FocalLengths | None = ...,
        target_sizes: Sizes | None = ..., refine: str | None = ..., return_logits: bool = ...,
        processor: DenseMLLMProcessor | None = ..., batch_size: int = ..., on_error: Literal["raise"] = ...,
        **images_kwargs: Any,
    ) -> DensePrediction: ...  # fmt: skip

    @overload  # several objects of one image
    def predict_dense(
        self, images: ImageOrEncoded, task: str | tuple[str, ...] = ..., labels: Labels | None = ...,
        text: str | Sequence[str | None] | None = ..., box: Sequence[Box | None] | None = ..., background: bool = ...,
        threshold: float | None = ..., depth_range: str | None = ..., focal_length: FocalLengths | None = ...,
        target_sizes: Sizes | None = ..., refine: str | None = ..., return_logits: bool = ...,
        processor: DenseMLLMProcessor | None = ..., batch_size: int = ..., on_error: Literal["raise"] = ...,
        **images_kwargs: Any,
    ) -> list[DensePrediction]: ...  # fmt: skip

    @overload
    def predict_dense(
        self, images: Sequence[ImageOrEncoded], task: str | tuple[str, ...] = ..., labels: Labels | None = ...,
        text: str | Sequence[str | None] | None = ..., box: Box | Sequence[Box | None] | None = ...,
        background: bool = ..., threshold: float | None = ..., depth_range: str | None = ...,
        focal_length: FocalLengths | None = ..., target_sizes: Sizes | None = ..., refine: str | None = ...,
        return_logits: bool = ..., processor: DenseMLLMProcessor | None = ..., batch_size: int = ...,
        on_error: Literal["raise"] = ..., **images_kwargs: Any,
    ) -> list[DensePrediction]: ...  # fmt: skip

    @overload
    def predict_dense(
        self, images: ImageOrEncoded | Sequence[ImageOrEncoded], task: str | tuple[str, ...] = ...,
        labels: Labels | None = ..., text: str | Sequence[str | None] | None = ...,
        box: Box | Sequence[Box | None] | None = ..., background: bool = ..., threshold: float | None = ...,
        depth_range: str | None = ..., focal_length: FocalLengths | None = ..., target_sizes: Sizes | None = ...,
        refine: str | None = ..., return_logits: bool = ..., processor: DenseMLLMProcessor | None = ...,
        batch_size: int = ..., on_error: str = ..., **images_kwargs: Any,
    ) -> DensePrediction | list[DensePrediction] | list[DensePrediction | None] | None: ...  # fmt: skip

    @torch.no_grad()
    def predict_dense(
        self,
        images: ImageOrEncoded | Sequence[ImageOrEncoded],
        task: str | tuple[str, ...] = "segmentation",
        labels: Labels | None = None,
        text: str | Sequence[str | None] | None = None,
        box: Box | Sequence[Box | None] | None = None,
        background: bool = False,
        threshold: float | None = None,
        depth_range: str | None = None,
        focal_length: FocalLengths | None = None,
        target_sizes: Sizes | None = None,
        refine: str | None = None,
        return_logits: bool = False,
        processor: DenseMLLMProcessor | None = None,
        batch_size: int = 8,
        on_error: str = "raise",
        **images_kwargs: Any,
    ) -> DensePrediction | list[DensePrediction] | list[DensePrediction | None] | None:
        """Dense maps from the vision tokens' logits: the columns of the label tokens, and an argmax. No head.

        Args:
            images: a PIL image, a path, a numpy array `uint8 [height, width, 3]`, a torch tensor `[3, height, width]`
                (`uint8`, or floating point in [0, 1]), an [`EncodedImage`], or a list of these.
            task: `"segmentation"`, `"depth"`, `"referring"`, `"open_set"` (the model detects the boxes of each class
                and segments what is in them: `segmentation` then has an id for each object), or a tuple of the first
                two, which share one pass over the image where the text before the image is the same.
            labels: class names, or a dict from id to name. `None`: the model names the classes itself. Names that
                `config.id2label` lacks, where the model has one, are warned of once.
            text: expression of the object to find, for referring; one, or one an image; several for one image give a
                list.
            box: `(x0, y0, x1, y1)` in pixels of the image around that object, as for `text`. `None`: the model finds
                it from `text`.
            background: whether pixels may be none of the labels (-1); so, too, where `<OTHERS>` is one of them.
            threshold: pixels of a segmentation whose score is lower become -1; those of `<OTHERS>` stay.
            depth_range: row of `config.depth_ranges`; the config's default where left out.
            focal_length: of the image in pixels; one, or one an image (`None` where it is unknown). In a range with a
                focal length of its own, the image is scaled to that for every task, as far as the patch cap lets it,
                and depth is corrected for the rest.
            target_sizes: `(height, width)` of the maps, or one an image; the images' own sizes where left out.
            refine: `"crf"` lets near pixels of like colour agree on their class, for segmentation: [`refine_crf`] with
                the processor's `crf_options`.
            return_logits: keep the label logits on the grid of vision tokens; an open set has none.
            processor: found from the checkpoint where left out.
            batch_size: images a forward pass.
            on_error: `"raise"`, or `"skip"`: an image that can't be read is warned of, by its place in the list, and
                has `None` in the result, and all others are predicted.
            images_kwargs: for the image processor (`scale`, `max_num_patches`...).

        Returns:
            one [`DensePrediction`], or a list for a list; maps are on the CPU.

        Raises:
            ValueError, TypeError: an argument that can't be used, named; before anything is computed.
        """
        processor = self._choose_processor(_check_processor(processor))
        tasks = (task,) if isinstance(task, str) else task
        if not isinstance(tasks, (tuple, list)):
            raise TypeError(f"`task` must be a name or a tuple of names, got {shown(task)}")
        rows = {name: get_task(name) for name in tasks}
        if not tasks or len(rows) < len(tasks):
            raise ValueError(f"`task` must name at least one task, each once, got {task!r}")
        cropped = {"referring", "open_set"} & set(tasks)
        if cropped and len(tasks) > 1:
            raise ValueError(f"`task` {cropped.pop()!r} looks at crops of the image and has to be alone, got {task!r}")
        background, return_logits = check_flag("background", background), check_flag("return_logits", return_logits)
        batch_size = check_count("batch_size", batch_size)
        threshold = None if threshold is None else check_share("threshold", threshold)
        if "open_set" in tasks:
            processor.normalize_labels(labels if labels is not None else [])
            if return_logits:
                raise ValueError("`return_logits` can't be given with the task 'open_set': it has no one map")
        if refine is not None and not (isinstance(refine, str) and refine == "crf" and "segmentation" in tasks):
            raise ValueError(f"`refine` must be None, or 'crf' with the task 'segmentation', got {shown(refine)}")
        label_ids = {
            name: processor.task_label_ids(name, labels)
            for name, row in rows.items()
            if row.label_set != "classes" or labels is not None
        }
        images_kwargs = with_focal_scale(_check_images_kwargs(images_kwargs, processor), processor, None, depth_range)
        range_row = processor.get_depth_range(depth_range) if "depth" in tasks else {}
        single = not isinstance(images, (list, tuple))
        images = [images] if single else images
        focal_lengths = one_an_image("focal_length", focal_length, len(images), _check_focal_length)
        scaled = [with_focal_scale(images_kwargs, processor, own, depth_range) for own in focal_lengths]
        objects = _count_objects(text, box) if single and "referring" in tasks else None
        count = len(images) if objects is None else objects
        texts, boxes = _check_objects(text, box, count) if "referring" in tasks else ([None] * count, [None] * count)
        most = processor.image_processor.max_image_pixels
        sizes = None if target_sizes is None else check_target_sizes(target_sizes, count, most)
        if images_kwargs and images and all(isinstance(image, EncodedImage) for image in images):
            raise ValueError(f"{sorted(images_kwargs)} can't be given for images that are encoded already")
        if labels is not None and {"segmentation", "open_set"} & set(tasks):
            self._warn_of_unknown_labels(processor.normalize_labels(labels).values())

        entries, places = _load_images(images, processor, single, on_error, images_kwargs, encoded=True)
        if objects is not None:  # of one picture
            single, places = False, list(range(objects * len(entries)))
            entries, focal_lengths, scaled = (values * objects for values in (entries, focal_lengths, scaled))
        focal_lengths, scaled, texts, boxes = (
            [values[place] for place in places] for values in (focal_lengths, scaled, texts, boxes)
        )
        own_sizes = [
            entry.image_size if isinstance(entry, EncodedImage) else (entry.height, entry.width) for entry in entries
        ]
        sizes = own_sizes if sizes is None else [sizes[place] for place in places]
        boxes = [
            None if own is None else check_box(own, (width, height))
            for own, (height, width) in zip(boxes, own_sizes, strict=True)
        ]

        options = {"processor": processor, "batch_size": batch_size}
        if "referring" in tasks:
            predictions = self._predict_referring(
                entries, sizes, texts, boxes, label_ids["referring"], return_logits, options, images_kwargs, scaled
            )
            return _at_places(predictions, places, count, single)
        if "open_set" in tasks:
            predictions = self._predict_open_set(
                entries, sizes, labels, label_ids["open_set"], threshold, options, images_kwargs, scaled
            )
            return _at_places(predictions, places, count, single)

        predictions = [DensePrediction(scores={}, logits={}) for _ in entries]
        encodings: dict[str, list[EncodedImage]] = {}
        for name in tasks:
            is_depth = rows[name].label_set == "depth"
            prompt = range_row.get("prompt") or "" if is_depth else ""
            ask = rows[name].label_set == "classes" and labels is None
            if prompt not in encodings:
                encodings[prompt] = self._encode_entries(entries, prompt, ask, scaled, **options)
            for index, encoded in enumerate(encodings[prompt]):
                task_labels, ids = labels, label_ids.get(name)
                own_background = background
                if ask:
                    answer = self.query(encoded, rows[name].question, processor, stop_at=processor.mask_token)
                    predictions[index].text = answer
                    task_labels = parse_refs(answer)
                    own_background = background or BACKGROUND_LABEL in answer
                    ids = processor.label_token_ids(task_labels) if task_labels else []
                logits = self.label_logits(encoded.hidden_states, ids).T.unflatten(1, encoded.grid)
                fields = self._decode(name, logits, sizes[index], task_labels, encoded, processor, {
                    "background": own_background, "threshold": threshold, "depth_range": depth_range,
                    "focal_length": focal_lengths[index], "refine": refine,
                })  # fmt: skip
                predictions[index].scores[name] = fields.pop("scores")
                predictions[index].logits[name] = logits.cpu()
                for field, value in fields.items():
                    setattr(predictions[index], field, value)
        for prediction in predictions:
            if not return_logits:
                prediction.logits = None
            elif len(tasks) == 1:
                prediction.logits = prediction.logits[tasks[0]]
            if len(tasks) == 1:
                prediction.scores = prediction.scores[tasks[0]]
        return _at_places(predictions, places, count, single)

    def _warn_of_unknown_labels(self, names) -> None:
        """Warn of each name once that a model which knows its classes does not know, and of what may be meant."""
        if self.config.label_names is None:
            return
        known = {" ".join(name.lower().split()): name for name in self.config.label_names.values()}
        warned = self.__dict__.setdefault("_warned_labels", set(known) | {BACKGROUND_LABEL.lower()})
        unknown = [name for name in names if name.lower() not in warned]
        warned.update(name.lower() for name in unknown)
        hints = []
        for name in unknown[:10]:
            near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75)
            hints.append(f"{name!r} (did you mean {known[near[0]]!r}?)" if near else repr(name))
        if unknown:
            more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
            logger.warning(
                f"`labels` has names that are not among the {len(known)} classes of this model (`config.id2label`): "
                f"{', '.join(hints)}{more}; they compete for the pixels, though the model has not learned them"
            )

    def _encode_entries(
        self, entries, prompt, use_cache, images_kwargs, processor, batch_size
    ) -> list[EncodedImage]:  # fmt: skip
        """Encode pictures with `images_kwargs`, one dict an entry. Encoded images are taken as they are; for another
        prompt, it starts from their vision tokens."""
        fresh = [place for place, entry in enumerate(entries) if not isinstance(entry, EncodedImage)]
        pictures, own_kwargs = ([values[place] for place in fresh] for values in (entries, images_kwargs))
        fresh = iter(self._encode(pictures, prompt, processor, batch_size, use_cache, own_kwargs))
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

    def _decode(self, task, logits, size, labels, encoded, processor, options) -> dict:
        """[`DenseMLLMProcessor.decode_dense`] with the focal length that the model saw; maps on the CPU."""
        if get_task(task).label_set == "classes" and not labels:
            nothing = torch.full(tuple(size), -1, dtype=torch.long)
            return {"segmentation": nothing, "segments_info": [], "labels": {}, "scores": _empty_map(size)}
        if options.get("focal_length") is not None:
            cell = self.config.vision_config.patch_size * self.config.spatial_merge_size
            seen = math.sqrt(encoded.grid[0] * encoded.grid[1]) * cell / math.sqrt(math.prod(encoded.image_size))
            options = {**options, "focal_length": options["focal_length"] * seen}
        if get_task(task).label_set != "classes":
            options = {name: value for name, value in options.items() if name != "refine"}
        elif options.get("refine") is not None:
            options = {**options, "image": encoded.image}
        fields = processor.decode_dense(task, logits, tuple(size), labels, **options)
        if get_task(task).label_set == "classes":
            fields["labels"] = processor.normalize_labels(labels)
        return {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in fields.items()}

    def _predict_referring(
        self, entries, sizes, texts, boxes, label_ids, return_logits, options, images_kwargs, scaled
    ) -> list[DensePrediction]:
        """Ground the expression to a box, draw it, crop around it, and read foreground against background there; or
        read them off the whole picture, where the processor has a `referring_prompt`. `images_kwargs` are for crops,
        `scaled` for the whole pictures, one dict an entry."""
        processor = options["processor"]
        predictions, pairs = [], []
        for entry, own_text, own_box, size, own_kwargs in zip(entries, texts, boxes, sizes, scaled, strict=True):
            prediction = DensePrediction()
            picture = entry.image if isinstance(entry, EncodedImage) else entry
            if own_box is None and processor.referring_prompt is not None:
                prompt = processor.referring_prompt.replace("{text}", own_text.strip())
                encoded = self._encode_entries([entry], prompt, False, [own_kwargs], **options)[0]
                logits = self.label_logits(encoded.hidden_states, label_ids).T.unflatten(1, encoded.grid)
                fields = self._decode("referring", logits, size, None, encoded, processor, {})
                prediction.mask, prediction.scores = fields["mask"], fields["scores"]
                prediction.logits = logits.cpu() if return_logits else None
            elif own_box is None:
                encoded = self._encode_entries([entry], "", True, [own_kwargs], **options)[0]
                question = get_task("referring").question.format(text=own_text.strip())
                prediction.text = self.query(encoded, question, processor, max_new_tokens=32)
                own_box = self._grounded_box(prediction.text, encoded)
            prediction.box = own_box
            predictions.append(prediction)
            if own_box is not None:
                pairs.append((picture, own_box))
        found = self._segment_boxes(pairs, label_ids, images_kwargs, **options)
        for prediction, entry, size in zip(predictions, entries, sizes, strict=True):
            if prediction.mask is not None:
                continue
            picture = entry.image if isinstance(entry, EncodedImage) else entry
            mask, scores = (_empty_map((picture.height, picture.width)) for _ in range(2))
            if prediction.box is not None:
                own_mask, own_scores, place, logits = next(found)
                for whole, part in ((mask, own_mask.float()), (scores, own_scores)):
                    whole[_rows_and_columns(place)] = _at_place(part, place)
                prediction.logits = logits if return_logits else None
            if tuple(size) != tuple(mask.shape):
                mask, scores = (resize_map(whole, size, mode="nearest-exact") for whole in (mask, scores))
            prediction.mask, prediction.scores = mask > 0.5, scores
        return predictions

    def _segment_boxes(
        self, pairs: list[tuple[PIL.Image.Image, tuple]], label_ids, images_kwargs, processor, batch_size
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, tuple[int, int, int, int], torch.Tensor]]:
        """The core target of each box of an image: foreground, `bool`, and its probability, `float32`, both
        `[height, width]` of the resized crop; the crop's place in the image, and its logits. `batch_size` crops a
        forward pass."""
        for start in range(0, len(pairs), batch_size):
            batch = pairs[start : start + batch_size]
            crops, places = zip(*(crop_box(*pair, processor.referring_crop_size) for pair in batch), strict=True)
            encodings = self._encode(crops, "", processor, batch_size, False, [images_kwargs] * len(crops))
            for encoded, place in zip(encodings, places, strict=True):
                logits = self.label_logits(encoded.hidden_states, label_ids).T.unflatten(1, encoded.grid)
                fields = self._decode("referring", logits, encoded.image_size, None, encoded, processor, {})
                yield fields["mask"], fields["scores"], place, logits.cpu()

    def _predict_open_set(
        self, entries, sizes, labels, label_ids, threshold, options, images_kwargs, scaled
    ) -> list[DensePrediction]:
        """Detect the boxes of each class, and segment the core target of each box (paper, section on decoding)."""
        processor = options["processor"]
        names = processor.normalize_labels(labels)
        keys = {name: key for key, name in names.items()}
        question = get_task("open_set").question.format(text=",".join(names.values()))
        predictions, pairs = [], []
        for encoded in self._encode_entries(entries, "", True, scaled, **options):
            answer = self.query(encoded, question, processor, max_new_tokens=1024)
            found = processor.post_process_detection(answer, encoded.image_size, self._resized_size(encoded))
            boxes = [
                (keys[name], tuple(box))
                for name, box in zip(found["labels"], found["boxes"].tolist(), strict=True)
                if name in keys
            ]
            predictions.append((encoded, DensePrediction(text=answer, labels=names), boxes))
            pairs += [(encoded.image, box) for _, box in boxes]
        masks = self._segment_boxes(pairs, label_ids, images_kwargs, **options)
        for (encoded, prediction, boxes), size in zip(predictions, sizes, strict=True):
            instances = []  # as small as the crop was for the model: a map of the image's size for each would add up
            for key, box in boxes:
                mask, chances, place, _ = next(masks)
                area = int((_at_place(mask.float(), place) > 0.5).sum())
                instances.append((area, key, box, mask, chances, place))
            instances.sort(key=lambda instance: -instance[0])  # the smaller lies over the larger
            height, width = encoded.image_size
            segmentation, scores = torch.full((height, width), -1), _empty_map((height, width))
            for number, (_, _, _, mask, chances, place) in enumerate(instances):
                mask, chances = _at_place(mask.float(), place) > 0.5, _at_place(chances, place)
                if threshold is not None:
                    mask = mask & (chances >= threshold)
                own = _rows_and_columns(place)
                segmentation[own][mask], scores[own][mask] = number, chances[mask]
            if tuple(size) != (height, width):
                segmentation = resize_map(segmentation.float(), size, mode="nearest-exact").long()
                scores = resize_map(scores, size, mode="nearest-exact")
            prediction.segmentation, prediction.scores = segmentation, scores
            prediction.segments_info = []
            for number, (_, key, box, *_) in enumerate(instances):
                own = segmentation == number
                if own.any():
                    prediction.segments_info.append(
                        {
                            "id": number, "label_id": key, "label": names[key], "score": float(scores[own].mean()),
                            "area": int(own.sum()), "box": box, "was_fused": False,
                        }
                    )  # fmt: skip
        return [prediction for _, prediction, _ in predictions]

    def _resized_size(self, encoded: EncodedImage) -> tuple[int, int]:
        """`(height, width)` in pixels of the picture as the model saw it."""
        cell = self.config.vision_config.patch_size * self.config.spatial_merge_size
        return encoded.grid[0] * cell, encoded.grid[1] * cell

    @overload
    def predict(
        self, images: ImageOrEncoded, task: str, text: str | Sequence[str] | None = ..., prompt: str | None = ...,
        processor: DenseMLLMProcessor | None = ..., max_new_tokens: int = ...,
        focal_length: FocalLengths | None = ..., depth_range: str | None = ..., on_error: Literal["raise"] = ...,
        **kwargs: Any,
    ) -> dict[str, Any]: ...  # fmt: skip

    @overload
    def predict(
        self, images: Sequence[ImageOrEncoded], task: str, text: str | Sequence[str] | None = ...,
        prompt: str | None = ..., processor: DenseMLLMProcessor | None = ..., max_new_tokens: int = ...,
        focal_length: FocalLengths | None = ..., depth_range: str | None = ..., on_error: Literal["raise"] = ...,
        **kwargs: Any,
    ) -> list[dict[str, Any]]: ...  # fmt: skip

    @overload
    def predict(
        self, images: ImageOrEncoded | Sequence[ImageOrEncoded], task: str, text: str | Sequence[str] | None = ...,
        prompt: str | None = ..., processor: DenseMLLMProcessor | None = ..., max_new_tokens: int = ...,
        focal_length: FocalLengths | None = ..., depth_range: str | None = ..., on_error: str = ..., **kwargs: Any,
    ) -> dict[str, Any] | list[dict[str, Any] | None] | None: ...  # fmt: skip

    @torch.no_grad()
    def predict(
        self,
        images: ImageOrEncoded | Sequence[ImageOrEncoded],
        task: str,
        text: str | Sequence[str] | None = None,
        prompt: str | None = None,
        processor: DenseMLLMProcessor | None = None,
        max_new_tokens: int = 1024,
        focal_length: FocalLengths | None = None,
        depth_range: str | None = None,
        on_error: str = "raise",
        **kwargs: Any,
    ) -> dict[str, Any] | list[dict[str, Any]] | list[dict[str, Any] | None] | None:
        """Answers in words, as objects: prompt, [`query`], and the parser of what came.

        Args:
            images: as for [`predict_dense`].
            task: `"detection"`, `"grounding"`, `"polygon"`, `"pose"`, `"counting"` or `"classification"`.
            text: what to look for: a phrase, or a list of class names (for detection and classification). Needed but
                for detection and pose.
            prompt: the question in other words, with `{text}` where `text` belongs.
            processor: found from the checkpoint where left out.
            max_new_tokens: length of the answer, at most.
            focal_length, depth_range: of images that aren't encoded yet, as for [`predict_dense`].
            on_error: as for [`predict_dense`].
            kwargs: for [`query`]; one answer an image.

        Returns:
            a dict, or a list for a list, with `text`, the answer itself, and what its parser gives, in pixels of the
            image: see `DenseMLLMProcessor.post_process_detection` and the others.

        Raises:
            ValueError, TypeError: an unknown task, a `text` that is missing, or another argument that can't be used,
                named; before anything is computed.
        """
        processor = self._choose_processor(_check_processor(processor))
        for name in text if isinstance(text, (list, tuple)) else [] if text is None else [text]:
            check_text("text", name, "a phrase or a list of names")
        prompt = None if prompt is None else check_text("prompt", prompt)
        question, parse = processor.answer_task(task, text, prompt)
        if (generation_options(self.generation_config, kwargs)[0].num_return_sequences or 1) > 1:
            raise ValueError("`num_return_sequences` must be 1: `predict` gives one answer an image")
        max_new_tokens = check_count("max_new_tokens", max_new_tokens)
        single = not isinstance(images, (list, tuple))
        images = [images] if single else images
        focal_lengths = one_an_image("focal_length", focal_length, len(images), _check_focal_length)
        if depth_range is not None:
            check_choice("depth_range", depth_range, processor.depth_ranges)
        entries, places = _load_images(images, processor, single, on_error, {}, encoded=True)
        results = []
        for entry, place in zip(entries, places, strict=True):
            camera = {"focal_length": focal_lengths[place], "depth_range": depth_range}
            is_encoded = isinstance(entry, EncodedImage)
            encoded = entry if is_encoded else self.encode_image(entry, processor=processor, **camera)
            answer = self.query(encoded, question, processor, max_new_tokens, **kwargs)
            results.append({"text": answer, **parse(answer, encoded.image_size, self._resized_size(encoded))})
        return _at_places(results, places, len(images), single)

    def _grounded_box(self, answer: str, encoded: EncodedImage) -> tuple[float, float, float, float] | None:
        """The first box of an answer in pixels of the image; `None` if there is none."""
        boxes = parse_grounding(answer, encoded.image_size, self._resized_size(encoded))["boxes"].tolist()
        return tuple(boxes[0]) if boxes else None


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _rows_and_columns(place: tuple[int, int, int, int]) -> tuple[slice, slice]:
    x0, y0, x1, y1 = place
    return slice(y0, y1), slice(x0, x1)


def _at_place(part: torch.Tensor, place: tuple[int, int, int, int]) -> torch.Tensor:
    """The map of a crop, resized to the crop's own pixels."""
    x0, y0, x1, y1 = place
    return resize_map(part, (y1 - y0, x1 - x0), mode="nearest-exact")


def _empty_map(size: tuple[int, int]) -> torch.Tensor:
    return torch.zeros(tuple(size), dtype=torch.float32, device="cpu")  # whatever torch's defaults are


def _check_processor(processor):
    # Not by its class: a checkpoint's own code is a second copy of this module.
    if processor is not None and not all(hasattr(processor, name) for name in ("image_processor", "depth_ranges")):
        raise TypeError(f"`processor` must be a DenseMLLMProcessor, got {type(processor).__name__}")
    return processor


def _check_images_kwargs(images_kwargs: dict, processor: DenseMLLMProcessor) -> dict:
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


def _check_focal_length(focal_length) -> float:
    return check_positive("focal_length", focal_length, " of pixels")


def _count_objects(text, box) -> int | None:
    """How many objects of one image are asked for; `None` where it is one, and not a list."""
    if isinstance(text, (list, tuple)):
        return len(text)
    boxes = plain(box)
    return len(boxes) if isinstance(boxes, list) and not is_flat(boxes) else None


def _check_objects(text, box, count: int) -> tuple[list[str | None], list[tuple | None]]:
    """The expression and the box of each of `count` objects, at least one of the two."""
    accepted = "an expression, or one an image"
    texts = one_an_image("text", text, count, lambda own: check_text("text", own, accepted))
    boxes = one_an_image("box", box, count, lambda own: check_corners("box", own), is_flat)
    for own_text, own_box in zip(texts, boxes, strict=True):
        if own_box is None and not (own_text or "").strip():
            raise ValueError(f"`text` must be an expression where no `box` is given, got {own_text!r}")
    return texts, boxes


def _load_images(
    images, processor: DenseMLLMProcessor, single: bool, on_error: str, images_kwargs: dict, encoded: bool = False
) -> tuple[list, list[int]]:
    """Images as RGB pictures, and their places in the list. With `on_error="skip"` those that can't be read are
    warned of and left out. Where `encoded`, an [`EncodedImage`] is taken as it is."""
    check_choice("on_error", on_error, ("raise", "skip"))
    pictures, places = [], []
    for place, image in enumerate(images):
        try:
            is_read = encoded and isinstance(image, EncodedImage)
            name = "`images`" if single else f"`images[{place}]`"
            pictures.append(image if is_read else load_image(image, processor.image_processor, name, **images_kwargs))
            places.append(place)
        except (TypeError, ValueError) as error:
            if on_error == "raise":
                raise
            logger.warning(f"skipped: {error}")
    return pictures, places


def load_image(
    image: AnyImage, image_processor: DenseMLLMImageProcessor, name: str, **images_kwargs: Any
) -> PIL.Image.Image:
    """One image as an RGB picture, or a `TypeError` or `ValueError` that begins with its `name`."""
    try:
        return image_processor.load_picture(image, **images_kwargs)
    except MemoryError:
        raise
    except Exception as error:  # the readers of many formats raise errors of many kinds
        reason = str(error)
        named = reason.startswith("`images` ")
        reason = f"{name} {reason.removeprefix('`images` ')}" if named else f"{name} can't be read: {reason}"
        raise (TypeError if isinstance(error, TypeError) else ValueError)(reason) from error


def _at_places(results: list, places: list[int], count: int, single: bool):
    """`results` at their places among `count` images, `None` at the others; of a single image not in a list."""
    found = dict(zip(places, results, strict=True))
    return found.get(0) if single else [found.get(place) for place in range(count)]


def with_focal_scale(
    images_kwargs: dict, processor: DenseMLLMProcessor, focal_length: float | None, depth_range: str | None
) -> dict:
    """Arguments of the image processor, with the scale that gives pictures the focal length of their depth range on
    top of the scale that they ask for."""
    if depth_range is not None:
        check_choice("depth_range", depth_range, processor.depth_ranges)  # whatever is asked for
    images_kwargs = dict(images_kwargs)
    scale = processor.get_scale(focal_length, depth_range)
    if scale is not None:
        images_kwargs["scale"] = scale * float(images_kwargs.get("scale", processor.image_processor.scale))
    return images_kwargs


def check_box(box: Box, image_size: tuple[int, int]) -> tuple[float, float, float, float]:
    """`box` clipped to an image of `(width, height)` pixels, or a `ValueError` if it has no area there."""
    values = check_corners("box", box)
    width, height = image_size
    x0, x1 = (min(max(value, 0.0), float(width)) for value in values[0::2])
    y0, y1 = (min(max(value, 0.0), float(height)) for value in values[1::2])
    if not (x1 > x0 and y1 > y0):
        raise ValueError(f"`box` must have x0 < x1 and y0 < y1 within an image of {width}x{height}, got {values}")
    return x0, y0, x1, y1


def crop_box(
    image: PIL.Image.Image, box: tuple[float, float, float, float], short_edge: int, padding: float = 1.2
) -> tuple[PIL.Image.Image, tuple[int, int, int, int]]:
    """Draw `box` with a line of 1 px, cut out `padding` times its size and resize the short edge (paper, decoding); of
    a long thin one less, to no more than 16 times the pixels of a square one.

    Returns:
        the crop, and its place (x0, y0, x1, y1) in whole pixels of the image.
    """
    x0, y0, x1, y1 = box
    grow_x, grow_y = (padding - 1) / 2 * (x1 - x0), (padding - 1) / 2 * (y1 - y0)
    place = (
        max(0, math.floor(x0 - grow_x)),
        max(0, math.floor(y0 - grow_y)),
        min(image.width, math.ceil(x1 + grow_x)),
        min(image.height, math.ceil(y1 + grow_y)),
    )
    crop = image.crop(place)
    corners = [int(x0), int(y0), max(int(x0), math.ceil(x1) - 1), max(int(y0), math.ceil(y1) - 1)]
    corners = [corner - start for corner, start in zip(corners, place[:2] * 2, strict=True)]
    PIL.ImageDraw.Draw(crop).rectangle(corners, outline=(255, 0, 0), width=1)
    width, height = crop.size
    scale = min(short_edge / min(width, height), 4 * short_edge / math.sqrt(width * height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return crop.resize(size, PIL.Image.Resampling.BILINEAR), place


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


__all__ = ["DensePrediction", "DensePredictionMixin", "EncodedImage"]
