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
"""The chat template of DenseMLLM, and messages in transformers' form."""

from collections.abc import Mapping
from typing import Any


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


__all__ = ["CHAT_TEMPLATE", "read_parts"]
