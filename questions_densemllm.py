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
"""Questions about images in words: free ones, and those whose answers become objects."""

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from transformers.generation import GenerationConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .checks_densemllm import FocalLengths, check_choice, check_count, check_text, one_an_image, shown
from .compat_densemllm import cache_argument
from .configuration_densemllm import check_prompt_length
from .exif_densemllm import find_focal_lengths
from .generation_densemllm import can_start_from_cache, check_assistant, copy_cache, generation_options
from .image_encoding_densemllm import (
    EncodedImage,
    ImageEncodingMixin,
    ImageOrEncoded,
    at_places,
    check_processor,
    load_image,
    load_images,
    with_focal_scale,
)
from .processing_densemllm import DenseMLLMProcessor


class QuestionMixin(ImageEncodingMixin):
    """What [`DenseMLLMForConditionalGeneration`] answers in words: [`query`] and [`predict`]."""

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
            stop_at: a text that ends the answer, such as a token of the vocabulary.
            focal_length, depth_range: of an image that isn't encoded yet, as for [`predict_dense`].
            kwargs: for `generate`, `generation_config` among them; greedy decoding unless told otherwise. Not taken
                are the model's inputs, and what asks for more than text (`return_dict_in_generate`...).

        Returns:
            the answer, or a list for a list; a list of answers for each image with `num_return_sequences`. Structural
            tokens such as `<ref>` stay, special ones don't.

        Raises:
            ValueError: an argument that isn't taken, or more tokens than the language model has positions for.
        """
        processor = self._choose_processor(check_processor(processor))
        single = not isinstance(image, (list, tuple))
        count = 1 if single else len(image)
        accepted = "a question, or one an image"
        texts = one_an_image("text", text, count, lambda value: check_text("text", value, accepted))
        if None in texts:
            raise TypeError(f"`text` must be {accepted}, got {shown(text)}")
        images = [image] if single else image
        images, focal_lengths = find_focal_lengths(images, focal_length, processor.image_processor, {}, single)
        if not single:
            rows = zip(images, texts, focal_lengths, strict=True)
            return [
                self.query(entry, question, processor, max_new_tokens, stop_at, focal, depth_range, **kwargs)
                for entry, question, focal in rows
            ]
        image = images[0]
        config, kwargs = generation_options(self.generation_config, kwargs, max_new_tokens)
        check_assistant(kwargs.get("assistant_model"), self)
        start_from_cache = can_start_from_cache(config, kwargs)
        if isinstance(image, EncodedImage):
            encoded = image
        else:
            image = load_image(image, processor.image_processor, "`image`")
            images_kwargs = with_focal_scale({}, processor, focal_lengths[0], depth_range)
            self._check_prompt_lengths([image], "", texts[0], processor, [images_kwargs])
            encoded = self._encode([image], "", processor, 1, start_from_cache, [images_kwargs])[0]
        _, tail = self._prompt_ids(processor, encoded.prompt, texts[0])
        input_ids = torch.cat([encoded.input_ids.to(tail.device), tail[None]], dim=1)
        length = input_ids.shape[1]
        check_prompt_length(length, self.config)
        if self.config.num_positions is not None and config.max_new_tokens is not None:
            config.max_new_tokens = min(config.max_new_tokens, self.config.num_positions - length + 1)
        if stop_at is not None:
            _stop_at(config, stop_at, processor)
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
        processor = self._choose_processor(check_processor(processor))
        for name in text if isinstance(text, (list, tuple)) else [] if text is None else [text]:
            check_text("text", name, "a phrase or a list of names")
        prompt = None if prompt is None else check_text("prompt", prompt)
        question, parse = processor.answer_task(task, text, prompt)
        if (generation_options(self.generation_config, kwargs)[0].num_return_sequences or 1) > 1:
            raise ValueError("`num_return_sequences` must be 1: `predict` gives one answer an image")
        max_new_tokens = check_count("max_new_tokens", max_new_tokens)
        single = not isinstance(images, (list, tuple))
        images = [images] if single else images
        if depth_range is not None:
            check_choice("depth_range", depth_range, processor.depth_ranges)
        images, focal_lengths = find_focal_lengths(images, focal_length, processor.image_processor, {}, single)
        entries, places = load_images(images, processor, single, on_error, {}, encoded=True)
        results = []
        for entry, place in zip(entries, places, strict=True):
            camera = {"focal_length": focal_lengths[place], "depth_range": depth_range}
            is_encoded = isinstance(entry, EncodedImage)
            encoded = entry if is_encoded else self.encode_image(entry, processor=processor, **camera)
            answer = self.query(encoded, question, processor, max_new_tokens, **kwargs)
            results.append({"text": answer, **parse(answer, encoded.image_size, self._resized_size(encoded))})
        return at_places(results, places, len(images), single)


def _stop_at(config: GenerationConfig, text: str, processor: DenseMLLMProcessor) -> None:
    """Let an answer end with a text: by its id where it is a token, as the end of the text does."""
    token_id = processor.tokenizer.get_vocab().get(text)
    if token_id is None:
        texts = config.stop_strings
        config.stop_strings = [*([texts] if isinstance(texts, str) else texts or []), text]
    else:
        ends = config.eos_token_id
        config.eos_token_id = [*([ends] if isinstance(ends, int) else ends or []), token_id]


__all__ = ["QuestionMixin"]
