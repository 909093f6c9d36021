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
"""Dense maps and answers of a model that a vLLM server runs: see examples/serving.md.

The server gives the hidden states of the vision tokens (`/pooling`) and answers in words (`/v1/chat/completions`). All
else is done here, by the same code as in a process that has the model: which ids the labels are, their columns of the
output embedding, maps.
"""

import base64
import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import numpy as np
import PIL.Image
import torch
from safetensors import safe_open
from transformers.generation import GenerationConfig
from transformers.image_utils import SizeDict
from transformers.utils import cached_file

from .addresses import check_url
from .checks_densemllm import check_count, check_positive, check_text, shown
from .compat_densemllm import httpx
from .configuration_densemllm import DenseMLLMConfig, check_prompt_length
from .exif_densemllm import find_focal_lengths
from .generation_densemllm import MAX_NEW_TOKENS
from .image_encoding_densemllm import (
    EncodedImage,
    load_image,
    user_turn,
    with_focal_scale,
)
from .image_loading_densemllm import LOADING_KWARGS
from .image_processing_densemllm import DenseMLLMImageProcessor
from .loading_densemllm import CheckpointFiles
from .prediction_densemllm import DensePredictionMixin
from .processing_densemllm import DenseMLLMProcessor


WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD = "lm_head.weight"
# Arguments of the image processor that this process can carry out before an image is sent. The others say what numbers
# pixels become, which is the server's doing.
TAKEN_IMAGES_KWARGS = {"do_resize", "max_image_pixels", "max_num_patches", "resample", "scale", *LOADING_KWARGS}
# Answers after which the same request may well succeed: too many at once, a proxy, a server that is starting.
TRIED_AGAIN = (429, 502, 503, 504)
MAX_WAIT = 30.0  # seconds between two tries
# Arguments of `generate`, by the names that the chat endpoint has for them.
SAMPLING = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p", "min_new_tokens": "min_tokens",
    "repetition_penalty": "repetition_penalty", "num_return_sequences": "n",
}  # fmt: skip


class ServerError(RuntimeError):
    """A server that answered with something else than what it was asked for.

    Attributes:
        status: of HTTP, or `None` where the answer was no answer to the question.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


class OutputEmbedding:
    """The rows of a checkpoint's output embedding, read from its safetensors files when they are asked for.

    The weights have to be plain ones: of an adapter (LoRA), or quantised, the logits are not a product with rows.

    Args:
        checkpoint: folder or Hub name.
        config: of the model.
        options: of [`FILE_OPTIONS`], for the Hub.

    Raises:
        OSError: there are no safetensors files.
        ValueError: there is no output embedding in them, or not one that rows can be read from.
    """

    def __init__(self, checkpoint: str, config: DenseMLLMConfig, options: dict[str, Any]):
        text_config = config.get_text_config()
        shape = [text_config.vocab_size, text_config.hidden_size]
        self._rows: dict[int, torch.Tensor] = {}
        self._lock = threading.Lock()
        index = cached_file(checkpoint, WEIGHTS_INDEX, _raise_exceptions_for_missing_entries=False, **options)
        names = {None: WEIGHTS}
        if index is not None:
            names = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
            # Of a whole model, only the shard with the embedding is fetched.
            known = {HEAD: names[HEAD]} if HEAD in names else {k: v for k, v in names.items() if "embed" in k}
            names = known or names
        found = []
        for file in dict.fromkeys(names.values()):
            path = cached_file(checkpoint, file, **options)
            with safe_open(path, framework="pt") as weights:
                found += [
                    (key, path)
                    for key in weights.keys()
                    if list(weights.get_slice(key).get_shape()) == shape  # noqa: SIM118
                ]
        # Where it is tied to the input embedding, there is only that one, by a name that language models differ in.
        heads = [entry for entry in found if entry[0] == HEAD] or (found if config.tie_word_embeddings else [])
        if len(heads) != 1:
            named = ", ".join(key for key, _ in heads) or "none"
            raise ValueError(
                f"`checkpoint` {checkpoint} must have one output embedding of shape {shape} in its safetensors files "
                f"({HEAD}, or the input embedding where they are tied), found {named}"
            )
        self.name, self.path = heads[0]
        with safe_open(self.path, framework="pt") as weights:
            dtype = weights.get_slice(self.name).get_dtype()
        if dtype not in ("F32", "F16", "BF16", "F64"):
            raise ValueError(
                f"`checkpoint` {checkpoint} has an output embedding of {dtype}; accepted are plain floats"
            )

    def rows(self, token_ids: Sequence[int]) -> torch.Tensor:
        """`float32 [len(token_ids), hidden_size]`; each row is read once."""
        with self._lock:
            lacking = sorted(set(token_ids) - self._rows.keys())
            if lacking:
                with safe_open(self.path, framework="pt") as weights:
                    whole = weights.get_slice(self.name)
                    for run in np.split(lacking, np.flatnonzero(np.diff(lacking) != 1) + 1):  # such as depth tokens
                        values = whole[int(run[0]) : int(run[-1]) + 1].float()
                        self._rows |= zip(run.tolist(), values, strict=True)
            return torch.stack([self._rows[token_id] for token_id in token_ids])


class DenseClient(DensePredictionMixin):
    """What [`DenseMLLMForConditionalGeneration`] predicts and answers, of a model that a vLLM server runs.

    `predict_dense` and `encode_image` take the arguments of the model's own and give the same; they need a server that
    was started with `--runner pooling`. `query` and `chat` need one that was started without, `predict` and tasks that
    ask in words need both. No weights are loaded, but for the rows of the output embedding that labels need. Of the
    arguments of `generate`, `query` and `chat` take `temperature`, `top_p`, `top_k`, `min_p`, `min_new_tokens`,
    `repetition_penalty`, `num_return_sequences`, `do_sample` and `stop_strings`. What goes wrong with a server is a
    [`ServerError`], `ConnectionError` or `TimeoutError`.

    A server can't be told which pixels it should see in what size, so images are resized here, and sent as PNG.
    `batch_size` is how many requests are under way at once; the server makes batches of them.

    An [`EncodedImage`] of a client has no `image_features` and no cache: only a client can go on from it.

    Args:
        url: of the server, such as `http://localhost:8000`.
        checkpoint: folder or Hub name of what the server serves: its config, tokenizer, image processor and output
            embedding are read from there.
        chat_url: of the server for [`query`]; `url` where left out. A vLLM server gives maps or answers, not both.
        model: name of the model on the servers; the only one that a server has where left out.
        api_key: sent as a bearer token.
        timeout: seconds to wait for a server's answer to one request.
        retries: how often a request is sent again that was not answered, or refused for a time (HTTP 429, 502, 503,
            504). One that took longer than `timeout` is not.
        options: of [`FILE_OPTIONS`] (`revision`, `cache_dir`...), for a `checkpoint` on the Hub.

    Raises:
        ValueError, TypeError, OSError: an argument that can't be used, named. Servers are not asked before they are
            needed.
    """

    device = torch.device("cpu")  # of what is computed here

    def __init__(
        self,
        url: str,
        checkpoint: str | os.PathLike[str],
        chat_url: str | None = None,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
        retries: int = 2,
        **options: Any,
    ):
        self.url = check_url("url", check_text("url", url))
        self.chat_url = self.url if chat_url is None else check_url("chat_url", check_text("chat_url", chat_url))
        self.timeout = float(check_positive("timeout", timeout))
        self.retries = check_count("retries", retries, least=0)
        files = CheckpointFiles.of_call(checkpoint, options)
        unknown = sorted(
            set(options) - set(files.options) - {name for name, value in options.items() if value is None}
        )
        if unknown:
            raise TypeError(f"`{unknown[0]}` is not an argument of a DenseClient")
        self.name_or_path = files.path
        self.__dict__["_checkpoint_files"] = files
        self.config = DenseMLLMConfig.from_pretrained(files.path, **files.options)
        if self.config.vision_attention == "bidirectional":
            raise ValueError(
                f"`checkpoint` {files.path} has the `vision_attention` 'bidirectional', which vLLM can't serve"
            )
        self.output_embedding = OutputEmbedding(files.path, self.config, files.options)
        self.generation_config = GenerationConfig()
        self._models = {address: model for address in (self.url, self.chat_url)}
        self._models_lock = threading.Lock()
        headers = {} if api_key is None else {"Authorization": f"Bearer {check_text('api_key', api_key)}"}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.Client(timeout=self.timeout, headers=headers, limits=limits)
        self.get_processor()

    def close(self) -> None:
        """Close the connections; the client can't be used any more."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---- what the model does otherwise ----

    def label_logits(self, hidden_states: torch.Tensor, label_ids: list[list[int]]) -> torch.Tensor:
        """See [`ImageEncodingMixin.label_logits`]."""
        hidden_states = hidden_states.float()
        if not label_ids:
            return hidden_states.new_zeros(len(hidden_states), 0)
        vocab_size = self.config.get_text_config().vocab_size
        highest = max(token_id for ids in label_ids for token_id in ids)
        if highest >= vocab_size:
            raise ValueError(
                f"`processor` does not belong to this model: a label has the id {highest}, but the vocabulary has "
                f"{vocab_size}"
            )
        rows = self.output_embedding.rows([token_id for ids in label_ids for token_id in ids])
        columns = torch.stack([part.mean(dim=0) for part in rows.split([len(ids) for ids in label_ids])])
        return hidden_states @ columns.T

    def _encode(
        self, images, prompt, processor, batch_size, use_cache, per_image_kwargs, tiling=None
    ) -> list[EncodedImage]:  # fmt: skip
        if tiling is not None:
            raise ValueError("`tile` can't be given to a server, which reads an image as a whole")
        self._check_prompt_lengths(images, prompt, "", processor, per_image_kwargs)
        sent = [_resized(image, processor, kwargs) for image, kwargs in zip(images, per_image_kwargs, strict=True)]
        return self._read(images, sent, prompt, processor, batch_size)

    def _prefill_images(self, images, features, grids, prompts, processor, use_cache) -> list[EncodedImage]:
        """For another prompt, the images are sent once more, in the size of their grids."""
        cell = self.config.vision_config.patch_size * self.config.spatial_merge_size
        sizes = [(height * cell, width * cell) for height, width in grids]
        sent = [_to_size(image, size, processor, None) for image, size in zip(images, sizes, strict=True)]
        return self._read(images, sent, prompts, processor, len(images))

    def _read(self, images, sent, prompts, processor, batch_size) -> list[EncodedImage]:
        """What the server makes of images, `sent` being those that it gets, with a text before each or before all."""
        prompts = [prompts] * len(images) if isinstance(prompts, str) else prompts
        around = {prompt: self._prompt_ids(processor, prompt, "") for prompt in dict.fromkeys(prompts)}
        cell = self.config.vision_config.patch_size * self.config.spatial_merge_size
        hidden_size = self.config.get_text_config().hidden_size

        def read(index: int) -> EncodedImage:
            width, height = sent[index].size
            prompt = prompts[index]
            head, tail = around[prompt]
            grid = (height // cell, width // cell)
            n_tokens = math.prod(grid)
            body = {
                "messages": [_in_openai_form(user_turn(prompt), sent[index])],
                "task": "token_embed", "use_activation": False, "add_generation_prompt": True,
                "encoding_format": "bytes", "embed_dtype": "float32", "endianness": "little",
            }  # fmt: skip
            content = self._post(self.url, "/pooling", body, "is it a vLLM server with `--runner pooling`?").content
            length = len(head) + n_tokens + len(tail)
            if len(content) != 4 * length * hidden_size:
                raise ServerError(
                    f"{self.url}/pooling gave {len(content)} bytes, and not {length} tokens of {hidden_size} float32 "
                    f"numbers: does it serve {self.name_or_path}, and give all tokens "
                    '(`--pooler-config \'{"task": "token_embed", "tok_pooling_type": "ALL"}\'`)?'
                )
            values = np.frombuffer(content, dtype="<f4").reshape(length, hidden_size)
            own = values[len(head) : len(head) + n_tokens].astype(np.float32)
            input_ids = torch.cat([head, head.new_full((n_tokens,), self.config.image_token_id)])[None]
            return EncodedImage(
                hidden_states=torch.from_numpy(own),
                image_features=None,  # which stay with the server
                grid=grid,
                image=images[index],
                prompt=prompt,
                input_ids=input_ids,
            )

        return self._at_once(read, len(images), batch_size)

    def _answer_images(
        self, images, chat_of, processor, max_new_tokens, stop_at, focal_length, depth_range, batch_size, kwargs
    ) -> str | list[str] | list[list[str]]:  # fmt: skip
        """The server's answers to the chats that `chat_of` gives for the place of an image and the text before it."""
        single = not isinstance(images, (list, tuple))
        images = [images] if single else images
        batch_size = check_count("batch_size", batch_size)
        sampling = _sampling(kwargs, max_new_tokens, stop_at, processor)
        images, focal_lengths = find_focal_lengths(images, focal_length, processor.image_processor, {}, single)
        sent = []
        for place, (entry, focal) in enumerate(zip(images, focal_lengths, strict=True)):
            sent.append(self._as_sent(entry, chat_of, place, single, focal, depth_range, processor))

        def ask(index: int) -> list[str]:
            chat, sent_image, length = sent[index]
            fields = sampling
            if self.config.num_positions is not None:
                room = max(1, self.config.num_positions - length)
                fields = {**sampling, "max_completion_tokens": min(sampling["max_completion_tokens"], room)}
            answer = self._ask_server(sent_image, chat, fields)
            try:
                return [choice["message"]["content"] or "" for choice in answer["choices"]]
            except (KeyError, TypeError) as error:
                raise ServerError(f"{self.chat_url}/v1/chat/completions gave no answers: {shown(answer)}") from error

        answers = self._at_once(ask, len(images), batch_size)
        if sampling.get("n", 1) == 1:
            answers = [of_image[0] for of_image in answers]
        return answers[0] if single else answers

    def _as_sent(self, entry, chat_of, place, single, focal, depth_range, processor) -> tuple:
        """The chat about an image, the image as the server gets it, and the number of tokens of the prompt."""
        cell = self.config.vision_config.patch_size * self.config.spatial_merge_size
        prompt = ""
        if isinstance(entry, EncodedImage):
            prompt, size = entry.prompt, (entry.grid[0] * cell, entry.grid[1] * cell)
            sent_image = _to_size(entry.image, size, processor, None)
        else:
            image = load_image(entry, processor.image_processor, "`image`" if single else f"`image[{place}]`")
            sent_image = _resized(image, processor, with_focal_scale({}, processor, focal, depth_range))
        chat = chat_of(place, prompt)
        head, tail = self._chat_ids(processor, chat)
        length = len(head) + (sent_image.height // cell) * (sent_image.width // cell) + len(tail)
        check_prompt_length(length, self.config)
        return chat, sent_image, length

    def _ask_server(self, sent_image: PIL.Image.Image, chat: list[dict], fields: dict[str, Any]) -> Any:
        """What the chat endpoint answers, as it comes."""
        body = {
            "messages": [_in_openai_form(message, sent_image) for message in chat],
            "skip_special_tokens": True, "spaces_between_special_tokens": False, **fields,
        }  # fmt: skip
        hint = "is it a vLLM server without `--runner pooling`? `chat_url` says where answers come from"
        return self._json(self._post(self.chat_url, "/v1/chat/completions", body, hint))

    # ---- the servers ----

    @staticmethod
    def _at_once(function: Callable[[int], Any], count: int, batch_size: int) -> list:
        """`function` of 0 to `count`, `batch_size` of them under way at a time. The first error ends it."""
        if count <= 1:
            return [function(index) for index in range(count)]
        with ThreadPoolExecutor(min(count, batch_size)) as pool:
            futures = [pool.submit(function, index) for index in range(count)]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _model_of(self, address: str) -> str:
        """The name that a server has for its model."""
        with self._models_lock:
            if self._models[address] is None:
                listed = self._json(self._send("GET", address, "/v1/models", None, "is it a vLLM server?"))
                names = [row.get("id") for row in (listed.get("data") if isinstance(listed, Mapping) else None) or []]
                if len(names) != 1:
                    raise ServerError(f"`model` must be given: {address} has {names or 'no models'}")
                self._models[address] = names[0]
            return self._models[address]

    def _post(self, address: str, path: str, body: dict, hint: str):
        return self._send("POST", address, path, {"model": self._model_of(address), **body}, hint)

    def _send(self, method: str, address: str, path: str, body: dict | None, hint: str):
        """A server's answer to one request, asked for again where that may help.

        Raises:
            ConnectionError: it can't be reached.
            TimeoutError: it took longer than `timeout`.
            ServerError: it refused, or failed.
        """
        place = f"{address}{path}"
        for attempt in range(self.retries + 1):
            is_last, wait = attempt == self.retries, 0.25 * 2**attempt
            try:
                answer = self._http.request(method, place, json=body)
            except httpx.TimeoutException as error:
                raise TimeoutError(f"{place} did not answer within `timeout` = {self.timeout:g} seconds") from error
            except httpx.TransportError as error:
                if is_last:
                    raise ConnectionError(f"{place} can't be reached: {error or type(error).__name__}") from error
            else:
                if answer.status_code == 200:
                    return answer
                if answer.status_code not in TRIED_AGAIN or is_last:
                    raise ServerError(_said(place, answer, hint), answer.status_code)
                wait = _asked_wait(answer.headers.get("retry-after"), wait)
            time.sleep(min(wait, MAX_WAIT))
        raise AssertionError("not reached")

    @staticmethod
    def _json(answer) -> Any:
        try:
            return answer.json()
        except ValueError as error:
            raise ServerError(f"{answer.url} gave something else than JSON: {answer.text[:200]!r}") from error


def _said(place: str, answer, hint: str) -> str:
    """What a server says about what it refused, and `hint` where it doesn't know the path."""
    try:
        said = answer.json()
    except ValueError:
        said = answer.text
    if isinstance(said, Mapping) and isinstance(said.get("error"), Mapping):
        said, hint = said["error"].get("message", said), None
    hint = f"; {hint}" if hint is not None and answer.status_code in (404, 405) else ""
    return f"{place} answered with HTTP {answer.status_code}: {' '.join(str(said).split())[:600]}{hint}"


def _asked_wait(given: str | None, otherwise: float) -> float:
    try:
        return max(0.0, float(given))
    except (TypeError, ValueError):  # left out, or a date
        return otherwise


def _in_openai_form(message: dict, image: PIL.Image.Image) -> dict:
    """A message in OpenAI's form, with the image where its part is."""
    content = message["content"]
    if isinstance(content, str) or not any(part["type"] == "image" for part in content):
        return message
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    sent = {"type": "image_url", "image_url": {"url": url}}
    return {**message, "content": [sent if part["type"] == "image" else part for part in content]}


def _resized(image: PIL.Image.Image, processor: DenseMLLMProcessor, images_kwargs: dict) -> PIL.Image.Image:
    """An image in the size in which the model is to see it."""
    refused = sorted(set(images_kwargs) - TAKEN_IMAGES_KWARGS)
    if refused:
        raise ValueError(
            f"`{refused[0]}` can't be given to a server, whose own processor makes numbers of pixels; of the image "
            f"processor's arguments, it takes {sorted(TAKEN_IMAGES_KWARGS)}"
        )
    size = image.height, image.width
    kwargs = {name: value for name, value in images_kwargs.items() if value is not None}
    if kwargs.get("do_resize", processor.image_processor.do_resize):
        size = processor.image_processor.get_resized_size(*size, kwargs)
    return _to_size(image, size, processor, kwargs.get("resample"))


def _to_size(
    image: PIL.Image.Image, size: tuple[int, int], processor: DenseMLLMProcessor, resample: int | None
) -> PIL.Image.Image:
    """An image resized to `(height, width)` as the image processor does it.

    Raises:
        ValueError: the server's processor would resize it again.
    """
    again = processor.image_processor.get_resized_size(*size)
    if again != size:
        raise ValueError(
            f"an image of {size[0]}x{size[1]} pixels can't be given to a server, whose processor would make it "
            f"{again[0]}x{again[1]}: its `scale` is {processor.image_processor.scale:g}, its `max_num_patches` "
            f"{processor.image_processor.max_num_patches}"
        )
    if size == (image.height, image.width):
        return image
    resample = processor.image_processor.resample if resample is None else resample
    pixels = np.moveaxis(np.asarray(image), -1, 0)
    pixels = DenseMLLMImageProcessor().resize(pixels, SizeDict(height=size[0], width=size[1]), resample)
    return PIL.Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))


def _sampling(kwargs: dict, max_new_tokens: int | None, stop_at: str | None, processor) -> dict[str, Any]:
    """Arguments of `query` as fields of a request.

    Raises:
        ValueError: one that a server doesn't take.
    """
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    fields: dict[str, Any] = {"temperature": 0.0}
    length = kwargs.pop("max_new_tokens", None) if max_new_tokens is None else max_new_tokens
    fields["max_completion_tokens"] = check_count("max_new_tokens", MAX_NEW_TOKENS if length is None else length)
    do_sample = kwargs.pop("do_sample", False)
    stops = kwargs.pop("stop_strings", [])
    unknown = sorted(set(kwargs) - set(SAMPLING))
    if unknown:
        raise ValueError(
            f"`{unknown[0]}` is not taken by the `query` of a client; of the arguments of `generate` these are: "
            f"{sorted([*SAMPLING, 'do_sample', 'max_new_tokens', 'stop_strings'])}"
        )
    given = {SAMPLING[name]: value for name, value in kwargs.items()}
    if do_sample:
        fields |= {"temperature": 1.0, **given}
    else:
        fields |= {name: value for name, value in given.items() if name in ("n", "min_tokens", "repetition_penalty")}
    stops = [stops] if isinstance(stops, str) else list(stops)
    if stop_at is not None:
        token_id = processor.tokenizer.get_vocab().get(check_text("stop_at", stop_at))
        if token_id is None:
            stops.append(stop_at)
        else:
            fields["stop_token_ids"] = [token_id]
    if stops:
        fields["stop"] = stops
    if stops or stop_at is not None:
        fields["include_stop_str_in_output"] = True  # as `generate` does
    return fields


__all__ = ["DenseClient", "OutputEmbedding", "ServerError"]
