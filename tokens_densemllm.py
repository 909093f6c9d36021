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
"""The tokens of DenseMLLM: their names, what they mean in words, and their ids in a tokenizer."""

from collections.abc import Iterable
from dataclasses import dataclass

from transformers.tokenization_utils_base import AddedToken, PreTrainedTokenizerBase


IMAGE_TOKEN = "<|image_pad|>"
BACKGROUND_LABEL = "<OTHERS>"
FOREGROUND_LABELS = ("<BG>", "<FG>")  # in this order: position 1 is the foreground
# What a token means, in words that every language model knows: a new embedding starts at the words' mean.
VISION_TOKENS = {
    "<|vision_start|>": "start of the image",
    "<|vision_end|>": "end of the image",
    IMAGE_TOKEN: "image",
}
# Of the text forms and the labels. `<mask>` and `<depth>` are plain text in the released vocabulary: whoever looks for
# them in an answer looks for text.
STRUCTURE_TOKENS = {
    "<ref>": "start of the name of an object",
    "</ref>": "end of the name of an object",
    "<box>": "start of the bounding box",
    "</box>": "end of the bounding box",
    "<ins>": "start of the instance",
    "</ins>": "end of the instance",
    "<poly>": "start of the polygon",
    "</poly>": "end of the polygon",
    "<mask>": "start of the mask",
    "</mask>": "end of the mask",
    "<depth>": "depth map",
    "<person>": "start of the person",
    "</person>": "end of the person",
    "<kpt>": "start of the key point",
    "</kpt>": "end of the key point",
    "<v_0.0>": "not visible",
    "<v_1.0>": "visible",
    BACKGROUND_LABEL: "other things",
    FOREGROUND_LABELS[0]: "background",
    FOREGROUND_LABELS[1]: "foreground object",
}


@dataclass(frozen=True)
class TokenScale:
    """Tokens that count along something: depth bins, coordinates.

    Attributes:
        template: of a token, with `{}` for its number.
        first: the lowest number.
        argument: of [`add_dense_tokens`]: how many there are.
        default: so many where the argument is left out.
        anchors: words for places along the scale, at equal distances from its first token to its last: new embeddings
            start on the path between the words' means.
    """

    template: str
    first: int
    argument: str
    default: int
    anchors: tuple[str, ...]

    def tokens(self, count: int) -> list[str]:
        """The first `count` of them, in order."""
        return [self.template.format(number) for number in range(self.first, self.first + count)]

    def count(self, vocabulary: dict[str, int]) -> int:
        """How many of them a vocabulary has, from the first on."""
        number = self.first
        while self.template.format(number) in vocabulary:
            number += 1
        return number - self.first


DEPTH_SCALE = TokenScale(
    "<custom_{}>", 1, "num_depth_bins", 1000,
    ("very near", "near", "at a middle distance", "far", "very far away"),
)  # fmt: skip
X_SCALE = TokenScale(
    "<x_{}>", 0, "num_coordinates", 2048, ("left edge", "left", "horizontal centre", "right", "right edge")
)
Y_SCALE = TokenScale(
    "<y_{}>", 0, "num_coordinates", 2048, ("top edge", "top", "vertical centre", "bottom", "bottom edge")
)
# The released vocabulary has 150,000 of them, whose names are not published.
CODE_SCALE = TokenScale("<image_code_{}>", 0, "num_image_codes", 0, ("part of an image", "part of a picture"))


def add_missing_tokens(tokenizer: PreTrainedTokenizerBase, counts: dict[TokenScale, int]) -> int:
    """Add the tokens that `tokenizer` lacks, in place; see [`add_dense_tokens`].

    Args:
        tokenizer: any tokenizer of transformers.
        counts: how many tokens of each scale; those that count alike stand side by side, as `<x_0>`, `<y_0>`, `<x_1>`.

    Returns:
        number of tokens that were added.
    """
    added = _add_tokens(tokenizer, VISION_TOKENS, special=True)
    added += _add_tokens(tokenizer, STRUCTURE_TOKENS)
    return added + add_scales(tokenizer, counts)


def add_scales(tokenizer: PreTrainedTokenizerBase, counts: dict[TokenScale, int]) -> int:
    """[`add_missing_tokens`] for the tokens of scales alone."""
    together: dict[str, list[list[str]]] = {}
    for scale, count in counts.items():
        together.setdefault(scale.argument, []).append(scale.tokens(count))
    tokens = [token for columns in together.values() for row in zip(*columns, strict=True) for token in row]
    return _add_tokens(tokenizer, tokens)


def code_ids_of(tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, int]:
    """The id of the first code of a visual tokenizer, and how many there are; `None` and 0 without any.

    Raises:
        ValueError: their ids don't follow each other.
    """
    vocabulary = tokenizer.get_vocab()
    count = CODE_SCALE.count(vocabulary)
    ids = [vocabulary[token] for token in CODE_SCALE.tokens(count)]
    if ids and ids != list(range(ids[0], ids[0] + count)):
        raise ValueError(f"`tokenizer` must have the ids of its {count} image codes one after another, got other ids")
    return (ids[0] if ids else None), count


def _add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str], special: bool = False) -> int:
    vocabulary = tokenizer.get_vocab()
    missing = [AddedToken(token, special=special, normalized=False) for token in tokens if token not in vocabulary]
    return tokenizer.add_tokens(missing, special_tokens=special)


def find_token_ids(tokenizer: PreTrainedTokenizerBase | None, tokens: list[str]) -> list[int]:
    """The ids of tokens.

    Raises:
        ValueError: the tokenizer lacks one.
    """
    # Once for all tokens: a tokenizer makes this dict anew each time, of a large vocabulary in a quarter of a second.
    vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
    for token in tokens:
        if token not in vocabulary:
            raise ValueError(
                f"`tokenizer` lacks the token {token!r}; `add_dense_tokens(tokenizer)` adds what is missing"
            )
    return [vocabulary[token] for token in tokens]


__all__ = [
    "BACKGROUND_LABEL",
    "CODE_SCALE",
    "DEPTH_SCALE",
    "FOREGROUND_LABELS",
    "IMAGE_TOKEN",
    "STRUCTURE_TOKENS",
    "VISION_TOKENS",
    "X_SCALE",
    "Y_SCALE",
    "TokenScale",
    "add_missing_tokens",
    "add_scales",
    "code_ids_of",
    "find_token_ids",
]
