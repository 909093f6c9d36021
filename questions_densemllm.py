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
"""Questions about images in words: free ones, chats, and questions whose answers become objects."""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import PIL.Image
import torch
from transformers.generation import GenerationConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.logging import tqdm

from .chat_densemllm import read_parts
from .checks_densemllm import FocalLengths, check_choice, check_count, check_text, one_an_image, shown
from .compat_densemllm import cache_argument
from .configuration_densemllm import check_prompt_length
from .exif_densemllm import find_focal_lengths
from .generation_densemllm import (
    can_ask_together,
    can_join,
    can_start_from_cache,
    check_assistant,
    generation_options,
    has_window,
    join_caches,
    pad_left,
    padding_id,
    without_padding,
)
from .image_encoding_densemllm import (
    EncodedImage,
    ImageEncodingMixin,
    ImageOrEncoded,
    _length_groups,
    at_places,
    check_processor,
    load_image,
    load_images,
    user_turn,
    with_focal_scale,
)
from .processing_densemllm import DenseMLLMProcessor


Message = Mapping[str, Any]  # `{"role": ..., "content": ...}`
MAX_FILLING = 1.5  # tokens of a padded batch that is read as a whole, over those of its rows, at most


@dataclass
class _Question:
    """What is asked about one image of a list.

    Attributes:
        entry: the RGB image, or one that is encoded already.
        images_kwargs: of the image processor, for this image.
        head, tail: `int64 [n]`, the ids of the prompt before and after the vision tokens.
        encoded: the image as the model read it, while it is asked about.
    """

    entry: PIL.Image.Image | EncodedImage
    images_kwargs: dict[str, Any]
    head: torch.Tensor
    tail: torch.Tensor
    encoded: EncodedImage | None = None

    @property
    def key(self) -> tuple:
        """Questions about the same image, read alike, have the same."""
        return id(self.entry), *sorted(self.images_kwargs.items())

    @property
    def prefix(self) -> torch.Tensor:
        """`int64 [n]`, the ids up to the last vision token."""
        tokens = self.encoded.input_ids[0, -len(self.encoded.image_features) :]
        return torch.cat([self.head, tokens.to(self.head.device)])

    @property
    def is_cached(self) -> bool:
        """Whether the image's cache holds the beginning of this prompt."""
        return self.encoded.past_key_values is not None and self.has_own_head

    @property
    def has_own_head(self) -> bool:
        """Whether the text before the image is that with which it was encoded."""
        own = self.encoded.input_ids[0, : -len(self.encoded.image_features)]
        return torch.equal(own.to(self.head.device), self.head)


class QuestionMixin(ImageEncodingMixin):
    """What [`DenseMLLMForConditionalGeneration`] answers in words: [`query`], [`chat`] and [`predict`]."""

    @overload
    def query(
        self, image: ImageOrEncoded | Sequence[ImageOrEncoded], text: str | Sequence[str],
        processor: DenseMLLMProcessor | None = ..., max_new_tokens: int | None = ..., stop_at: str | None = ...,
        focal_length: FocalLengths | None = ..., depth_range: str | None = ..., batch_size: int = ..., *,
        num_return_sequences: int, **kwargs: Any,
    ) -> str | list[str] | list[list[str]]: ...  # fmt: skip

    @overload
    def query(
        self, image: ImageOrEncoded, text: str | Sequence[str], processor: DenseMLLMProcessor | None = ...,
        max_new_tokens: int | None = ..., stop_at: str | None = ..., focal_length: FocalLengths | None = ...,
        depth_range: str | None = ..., batch_size: int = ..., **kwargs: Any,
    ) -> str: ...  # fmt: skip

    @overload
    def query(
        self, image: Sequence[ImageOrEncoded], text: str | Sequence[str], processor: DenseMLLMProcessor | None = ...,
        max_new_tokens: int | None = ..., stop_at: str | None = ..., focal_length: FocalLengths | None = ...,
        depth_range: str | None = ..., batch_size: int = ..., **kwargs: Any,
    ) -> list[str]: ...  # fmt: skip

    @torch.no_grad()
    def query(
        self, image: ImageOrEncoded | Sequence[ImageOrEncoded], text: str | Sequence[str],
        processor: DenseMLLMProcessor | None = None, max_new_tokens: int | None = None, stop_at: str | None = None,
        focal_length: FocalLengths | None = None, depth_range: str | None = None, batch_size: int = 8, **kwargs: Any,
    ) -> str | list[str] | list[list[str]]:  # fmt: skip
        """Ask about images in words.

        Args:
            image: an image, as for [`predict_dense`], or an [`EncodedImage`], or a list of these, each of which is
                asked about by itself. An image that stands in the list several times in a row is read once.
            text: the question; of a list of images one, or one an image.
            processor: found from the checkpoint where left out.
            max_new_tokens: length of the answer, at most; 256 where `kwargs` don't say it either. It ends, too, where
                the language model's positions do.
            stop_at: a text that ends the answer, such as a token of the vocabulary.
            focal_length, depth_range: of an image that isn't encoded yet, as for [`predict_dense`].
            batch_size: questions of a list that are answered at once; a list that is longer shows its progress. The
                answers are those of single calls (to rounding, which in half precision may turn a near-tie). So
                questions are answered one after another where a batch would change what they get: with sampling, an
                assistant, a streamer, functions of the caller's (`logits_processor`, `stopping_criteria`,
                `prefix_allowed_tokens_fn`), options that read or count the whole prompt (`max_length`,
                `repetition_penalty`, `no_repeat_ngram_size`...), a `cache_implementation`, and a language model with
                layers other than full and sliding-window attention.
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
        accepted = "a question, or one an image"
        texts = one_an_image("text", text, 1 if single else len(image), lambda one: check_text("text", one, accepted))
        if None in texts:
            raise TypeError(f"`text` must be {accepted}, got {shown(text)}")
        return self._answer_images(
            image, lambda place, prompt: [user_turn(prompt, texts[place])], processor, max_new_tokens, stop_at,
            focal_length, depth_range, batch_size, kwargs,
        )  # fmt: skip

    @overload
    def chat(
        self, image: ImageOrEncoded | Sequence[ImageOrEncoded],
        messages: Sequence[Message] | Sequence[Sequence[Message]], processor: DenseMLLMProcessor | None = ...,
        max_new_tokens: int | None = ..., stop_at: str | None = ..., focal_length: FocalLengths | None = ...,
        depth_range: str | None = ..., batch_size: int = ..., *, num_return_sequences: int, **kwargs: Any,
    ) -> str | list[str] | list[list[str]]: ...  # fmt: skip

    @overload
    def chat(
        self, image: ImageOrEncoded, messages: Sequence[Message], processor: DenseMLLMProcessor | None = ...,
        max_new_tokens: int | None = ..., stop_at: str | None = ..., focal_length: FocalLengths | None = ...,
        depth_range: str | None = ..., batch_size: int = ..., **kwargs: Any,
    ) -> str: ...  # fmt: skip

    @overload
    def chat(
        self, image: Sequence[ImageOrEncoded], messages: Sequence[Sequence[Message]],
        processor: DenseMLLMProcessor | None = ..., max_new_tokens: int | None = ..., stop_at: str | None = ...,
        focal_length: FocalLengths | None = ..., depth_range: str | None = ..., batch_size: int = ..., **kwargs: Any,
    ) -> list[str]: ...  # fmt: skip

    @torch.no_grad()
    def chat(
        self, image: ImageOrEncoded | Sequence[ImageOrEncoded],
        messages: Sequence[Message] | Sequence[Sequence[Message]], processor: DenseMLLMProcessor | None = None,
        max_new_tokens: int | None = None, stop_at: str | None = None, focal_length: FocalLengths | None = None,
        depth_range: str | None = None, batch_size: int = 8, **kwargs: Any,
    ) -> str | list[str] | list[list[str]]:  # fmt: skip
        """The next answer of a chat of several turns about an image.

        Args:
            image: as for [`query`].
            messages: the turns so far, `{"role": "user", "content": "What is on the table?"}` and so on, the last of
                them not of the assistant; or, for a list of images, a list of such lists, one an image. The image
                stands before the first words of the user (after the `prompt` with which it was encoded), or where
                a part `{"type": "image"}` is; no other image can be in them.
            processor, max_new_tokens, stop_at, focal_length, depth_range, batch_size, kwargs: as for [`query`].

        Returns:
            as for [`query`]. To go on, append the answer, as the assistant's, and the next question to `messages`.

        Raises:
            ValueError, TypeError: as for [`query`], and `messages` that are not such a chat.
        """
        processor = self._choose_processor(check_processor(processor))
        chats = read_chats(image, messages)
        return self._answer_images(
            image, lambda place, prompt: chat_with_image(chats[place], prompt), processor, max_new_tokens, stop_at,
            focal_length, depth_range, batch_size, kwargs,
        )  # fmt: skip

    def _answer_images(
        self, images, chat_of, processor, max_new_tokens, stop_at, focal_length, depth_range, batch_size, kwargs
    ) -> str | list[str] | list[list[str]]:  # fmt: skip
        """[`query`] and [`chat`] with `chat_of`, a function from the place of an image and the text before it to the
        chat about it."""
        batch_size = check_count("batch_size", batch_size)
        single = not isinstance(images, (list, tuple))
        images = [images] if single else images
        images, focal_lengths = find_focal_lengths(images, focal_length, processor.image_processor, {}, single)
        config, arguments = generation_options(self.generation_config, kwargs, max_new_tokens)
        check_assistant(arguments.get("assistant_model"), self)
        if stop_at is not None:
            _stop_at(config, check_text("stop_at", stop_at), processor)
        loaded: dict[int, PIL.Image.Image] = {}  # the same object again is the same image
        questions = []
        for place, (image, focal) in enumerate(zip(images, focal_lengths, strict=True)):
            if id(image) not in loaded:
                name = "`image`" if single else f"`image[{place}]`"
                is_read = isinstance(image, EncodedImage)
                loaded[id(image)] = image if is_read else load_image(image, processor.image_processor, name)
            entry = loaded[id(image)]
            prompt = entry.prompt if isinstance(entry, EncodedImage) else ""
            images_kwargs = with_focal_scale({}, processor, focal, depth_range)
            questions.append(_Question(entry, images_kwargs, *self._chat_ids(processor, chat_of(place, prompt))))
        answers = list(self._answer(questions, processor, config, arguments, batch_size))
        if (config.num_return_sequences or 1) == 1:
            answers = [own[0] for own in answers]
        return answers[0] if single else answers

    def _answer(
        self, questions: list[_Question], processor: DenseMLLMProcessor, config: GenerationConfig, arguments: dict,
        batch_size: int,
    ) -> Iterator[list[str]]:  # fmt: skip
        """The answers to each question, in their order, `batch_size` questions at a time."""
        for question in questions:
            self._check_question(question, processor)
        start_from_cache = can_start_from_cache(config, arguments)
        is_together = can_ask_together(config, arguments, self.model.language_model)
        if config.stop_strings and (not config.eos_token_id or padding_id(config, processor.tokenizer) is None):
            is_together = False  # `generate` wouldn't fill up what has ended, or nobody could tell with what
        known: dict[tuple, EncodedImage] = {}
        with tqdm(
            total=len(questions), desc="questions", leave=False, disable=len(questions) <= batch_size
        ) as progress:
            for start in range(0, len(questions), batch_size):
                batch = questions[start : start + batch_size]
                known = self._encode_questions(batch, known, processor, batch_size, start_from_cache, is_together)
                answers: dict[int, list[str]] = {}
                for places in self._groups(batch, config, is_together, start_from_cache):
                    rows = [batch[place] for place in places]
                    own = self._generate(rows, processor, config, arguments, start_from_cache)
                    answers |= zip(places, own, strict=True)
                    progress.update(len(rows))
                for place, question in enumerate(batch):
                    yield answers[place]
                    question.encoded = None

    def _check_question(self, question: _Question, processor: DenseMLLMProcessor) -> None:
        """`ValueError` for a prompt with more tokens than there are positions."""
        cell = self.config.vision_config.patch_size * self.config.spatial_merge_size
        height, width = self._seen_size(question.entry, processor, question.images_kwargs)
        tokens = (height // cell) * (width // cell)
        check_prompt_length(len(question.head) + tokens + len(question.tail), self.config)

    def _seen_size(
        self, entry: PIL.Image.Image | EncodedImage, processor: DenseMLLMProcessor, images_kwargs: dict[str, Any]
    ) -> tuple[int, int]:
        """`(height, width)` in pixels of an image as the model sees it, or saw it."""
        if isinstance(entry, EncodedImage):
            return self._resized_size(entry)
        if not processor.image_processor.do_resize:
            return entry.height, entry.width
        return processor.image_processor.get_resized_size(entry.height, entry.width, images_kwargs)

    def _encode_questions(
        self, batch: list[_Question], known: dict[tuple, EncodedImage], processor, batch_size, start_from_cache,
        is_together,
    ) -> dict[tuple, EncodedImage]:  # fmt: skip
        """Read the images of a batch of questions, each once, but for those that are `known`."""
        count = Counter(question.key for question in batch)
        first = {question.key: question for question in reversed(batch)}
        fresh = [
            one for key, one in first.items() if key not in known and not isinstance(one.entry, EncodedImage)
        ]  # fmt: skip
        images, kwargs = [one.entry for one in fresh], [one.images_kwargs for one in fresh]
        read = self._encode(images, "", processor, batch_size, start_from_cache, kwargs)
        found = {one.key: encoded for one, encoded in zip(fresh, read, strict=True)}
        for key, one in first.items():
            encoded = found.get(key) or known.get(key) or one.entry
            # Of an image that is asked about once, features are as good: they are read with the question in one pass.
            if start_from_cache and encoded.past_key_values is None and (count[key] > 1 or not is_together):
                encoded = self._prefill_images([encoded.image], [encoded.image_features], [encoded.grid],
                                               encoded.prompt, processor, use_cache=True)[0]  # fmt: skip
            found[key] = encoded
        for question in batch:
            question.encoded = found[question.key]
        return found

    def _groups(
        self, batch: list[_Question], config: GenerationConfig, is_together: bool, start_from_cache: bool
    ) -> list[list[int]]:
        """Places of the questions that are generated together: of answers with room alike, all from caches or none,
        and with no gap between tokens that a sliding window counts."""
        if not is_together:
            return [[place] for place in range(len(batch))]
        lengths = [len(question.prefix) + len(question.tail) for question in batch]
        groups: dict[tuple, list[int]] = {}
        for place, (question, length) in enumerate(zip(batch, lengths, strict=True)):
            cache = question.encoded.past_key_values if start_from_cache and question.is_cached else None
            if cache is None:
                layout = None
            elif can_join(cache):
                layout = "gaps" if not has_window(cache) else len(question.tail)
            else:
                layout = "alone", place
            groups.setdefault((self._room(config, length), cache is None, layout), []).append(place)
        found = []
        for (_, reads_all, _), places in groups.items():
            waste = MAX_FILLING - 1
            split = _length_groups([lengths[place] for place in places], waste) if reads_all else [range(len(places))]
            found += [[places[index] for index in own] for own in split]
        return found

    def _room(self, config: GenerationConfig, length: int) -> int | None:
        """How many tokens an answer to a prompt of `length` tokens may have."""
        if self.config.num_positions is None or config.max_new_tokens is None:
            return config.max_new_tokens
        return min(config.max_new_tokens, self.config.num_positions - length + 1)  # the last one needs no position

    def _generate(
        self, questions: list[_Question], processor: DenseMLLMProcessor, config: GenerationConfig, arguments: dict,
        start_from_cache: bool,
    ) -> list[list[str]]:  # fmt: skip
        """The answers to each of some questions, which are one batch, filled up on the left."""
        prefixes, tails = [one.prefix for one in questions], [one.tail for one in questions]
        config = copy.copy(config)
        config.max_new_tokens = self._room(config, len(prefixes[0]) + len(tails[0]))
        if start_from_cache and all(one.is_cached for one in questions):
            repeats = max(config.num_beams or 1, config.num_return_sequences or 1)
            start = cache_argument(join_caches([one.encoded.past_key_values for one in questions], repeats))
            parts = [prefixes, tails]  # the cache ends where the tails begin
        else:
            features = [one.encoded.image_features.to(self._input_device) for one in questions]
            start = {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=features)}}
            parts = [[torch.cat(row) for row in zip(prefixes, tails, strict=True)]]
        filling = int(self.config.image_token_id == 0)  # any id but that of an image: nothing looks there
        input_ids = torch.cat([pad_left(rows, filling) for rows in parts], dim=1)
        attention_mask = torch.cat([pad_left([torch.ones_like(row) for row in rows], 0) for rows in parts], dim=1)
        if len(questions) > 1:
            config.pad_token_id = padding_id(config, processor.tokenizer)
        output = self.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=config,
            **{"tokenizer": processor.tokenizer, **start, **arguments},
        )[:, input_ids.shape[1] :]
        if len(questions) > 1:
            output = without_padding(output, config.eos_token_id)
        answers = processor.post_process_image_text_to_text(output)
        count = config.num_return_sequences or 1
        return [answers[place : place + count] for place in range(0, len(answers), count)]

    def _chat_ids(self, processor: DenseMLLMProcessor, messages: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
        """A chat's ids before and after the vision tokens; see `_prompt_ids`."""
        wrong = "a chat must be written with one image placeholder, got {}; does it contain {!r}?"
        return self._ids_around_image(processor, messages, wrong)

    @overload
    def predict(
        self, images: ImageOrEncoded, task: str, text: str | Sequence[str] | None = ..., prompt: str | None = ...,
        processor: DenseMLLMProcessor | None = ..., max_new_tokens: int = ...,
        focal_length: FocalLengths | None = ..., depth_range: str | None = ..., on_error: Literal["raise"] = ...,
        batch_size: int = ..., **kwargs: Any,
    ) -> dict[str, Any]: ...  # fmt: skip

    @overload
    def predict(
        self, images: Sequence[ImageOrEncoded], task: str, text: str | Sequence[str] | None = ...,
        prompt: str | None = ..., processor: DenseMLLMProcessor | None = ..., max_new_tokens: int = ...,
        focal_length: FocalLengths | None = ..., depth_range: str | None = ..., on_error: Literal["raise"] = ...,
        batch_size: int = ..., **kwargs: Any,
    ) -> list[dict[str, Any]]: ...  # fmt: skip

    @overload
    def predict(
        self, images: ImageOrEncoded | Sequence[ImageOrEncoded], task: str, text: str | Sequence[str] | None = ...,
        prompt: str | None = ..., processor: DenseMLLMProcessor | None = ..., max_new_tokens: int = ...,
        focal_length: FocalLengths | None = ..., depth_range: str | None = ..., on_error: str = ...,
        batch_size: int = ..., **kwargs: Any,
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
        batch_size: int = 8,
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
            batch_size: images that are asked about at once, as for [`query`].
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
        max_new_tokens = check_count("max_new_tokens", max_new_tokens)
        batch_size = check_count("batch_size", batch_size)
        if (generation_options(self.generation_config, kwargs)[0].num_return_sequences or 1) > 1:
            raise ValueError("`num_return_sequences` must be 1: `predict` gives one answer an image")
        single = not isinstance(images, (list, tuple))
        images = [images] if single else images
        if depth_range is not None:
            check_choice("depth_range", depth_range, processor.depth_ranges)
        images, focal_lengths = find_focal_lengths(images, focal_length, processor.image_processor, {}, single)
        entries, places = load_images(images, processor, single, on_error, {}, encoded=True)
        cameras = [focal_lengths[place] for place in places]
        answers = self.query(
            entries, question, processor, max_new_tokens, focal_length=cameras, depth_range=depth_range,
            batch_size=batch_size, **kwargs,
        )  # fmt: skip
        results = []
        for entry, focal, answer in zip(entries, cameras, answers, strict=True):
            image = entry.image if isinstance(entry, EncodedImage) else entry
            resized_size = self._seen_size(entry, processor, with_focal_scale({}, processor, focal, depth_range))
            results.append({"text": answer, **parse(answer, (image.height, image.width), resized_size)})
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


def read_chats(
    image: ImageOrEncoded | Sequence[ImageOrEncoded], messages: Sequence[Message] | Sequence[Sequence[Message]]
) -> list[list[dict]]:
    """The chat about each image, its parts in transformers' form.

    Raises:
        ValueError, TypeError: not one for each image, or not a chat whose next answer can be asked for.
    """
    single = not isinstance(image, (list, tuple))
    chats = [messages] if single else messages
    if not isinstance(chats, (list, tuple)) or len(chats) != (1 if single else len(image)):
        raise ValueError(f"`messages` must be a list of messages for each image, got {shown(messages)}")
    return [_check_chat(chat) for chat in chats]


def _check_chat(messages: Sequence[Message]) -> list[dict]:
    """A chat whose next answer can be asked for, its parts in transformers' form."""
    accepted = "`messages` must be a list of dicts with a `role` and `content`"
    if not isinstance(messages, (list, tuple)) or not all(isinstance(message, Mapping) for message in messages):
        raise TypeError(f"{accepted}, got {shown(messages)}")
    chat = read_parts(messages)
    roles = [message.get("role") for message in chat]
    if "user" not in roles or roles[-1] == "assistant" or any("content" not in message for message in chat):
        raise ValueError(f"{accepted}, one of the user's among them, and not end with the assistant's; got {roles}")
    images = [
        part for message in chat if isinstance(message["content"], list)
        for part in message["content"] if part["type"] == "image"
    ]  # fmt: skip
    if len(images) > 1 or any(len(part) > 1 for part in images):
        raise ValueError(
            "`messages` can have one part {'type': 'image'}, where the image of this call stands, got "
            f"{shown(images)}"
        )
    return chat


def chat_with_image(chat: list[dict], prompt: str) -> list[dict]:
    """A chat with its image: where it says so, or before the first words of the user, with `prompt` before it."""
    contents = [
        [{"type": "text", "text": message["content"]}] if isinstance(message["content"], str) else message["content"]
        for message in chat
    ]
    if not any(part["type"] == "image" for content in contents for part in content):
        first = [message["role"] for message in chat].index("user")
        before = [{"type": "text", "text": prompt}] if prompt else []
        contents[first] = [*before, {"type": "image"}, *contents[first]]
    return [{**message, "content": content} for message, content in zip(chat, contents, strict=True)]


__all__ = ["QuestionMixin", "chat_with_image", "read_chats"]
