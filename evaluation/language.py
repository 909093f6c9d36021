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
"""What the language model still knows: the perplexity of a text, and questions with several answers to choose from."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..text_tasks_densemllm import COUNT_INSTRUCTION
from ..training.samples import text_of
from .metrics import DenseMetrics


if TYPE_CHECKING:
    from ..modeling_densemllm import DenseMLLMForConditionalGeneration
    from .measured import Settings


# Plain English about ordinary things, of which a language model knows something. Written for this project.
TEXT = """\
A kettle of water takes a few minutes to boil on a stove. Until then nothing seems to happen, although the water \
gets warmer all the time: small bubbles of air leave it first, and only later do the large bubbles of steam rise \
that make the sound by which everybody knows that the tea can be made. High in the mountains, where the air is \
thin, water boils before it is quite so hot, and eggs have to stay in it longer.

The river that runs through the town has been there for much longer than the houses. In spring, when the snow \
melts, it carries sand and branches with it, and the old bridge has been built again more than once. In summer \
children learn to swim below the mill. The miller's daughter used to say that a river is the only neighbour that \
never visits and always leaves.

If a train leaves at nine o'clock and needs three hours, it arrives at noon. Two and two are four, and half of ten \
is five. Monday comes after Sunday, and the last month of the year is December. The capital of France is Paris, the \
sun rises in the east, and ice is lighter than water, which is why it swims on lakes and leaves the fish some room \
below.

She opened the window, looked at the clouds, and decided to take an umbrella. "It will rain before the evening," \
she said to her brother, who did not believe it. He went without a coat and came home wet. Since then, when she \
says something about the weather, he listens.
"""
WINDOW = 1024  # tokens that are read at once
WRONG_ANSWERS = 3  # beside the right one, as far as there are some
# From what on text is not kept: more perplexity by this share, or less accuracy by so much.
MOST_RISE, MOST_DROP = 0.01, 0.01
MOST_NATS = 700  # whose exponential is still a number
FIGURES = ("perplexity", "choice_accuracy")


# ---- a fixed text ----


def read_text(path: str | None) -> str:
    """The text of a file, or the one of this module.

    Raises:
        ValueError: the file can't be read, or has no text.
    """
    if path is None:
        return TEXT
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`text_file` {path} can't be read as UTF-8 ({error})") from error
    if not text.strip():
        raise ValueError(f"`text_file` {path} has no text")
    return text


def digest_of(text: str) -> str:
    """Tells texts apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@torch.no_grad()
def text_likelihood(
    model: "DenseMLLMForConditionalGeneration", tokenizer: PreTrainedTokenizerBase, text: str
) -> tuple[float, int]:
    """The negative log-likelihood of a text, and how many tokens it is of.

    The text is read in stretches of up to 1024 tokens, or of as many as the model has positions; each begins with the
    tokenizer's first token where it has one, and otherwise its own first token isn't counted.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    size = min(WINDOW, model.config.num_positions or WINDOW) - len(start)
    total, count = 0.0, 0
    for first in range(0, len(ids), size):
        row = torch.tensor([[*start, *ids[first : first + size]]], device=model.device)
        n_tokens = row.shape[1] - 1
        if n_tokens:
            total += n_tokens * model(input_ids=row, labels=row, skip_logits=True).text_loss.item()
            count += n_tokens
    return total, count


# ---- questions with several answers ----


@dataclass(frozen=True)
class Answers:
    """All answers of a data set.

    Attributes:
        by_question: those that a question has anywhere, in the order in which they come.
        all: those of all questions.
    """

    by_question: Mapping[str, Sequence[str]] = field(default_factory=dict)
    all: Sequence[str] = ()


@dataclass(frozen=True)
class Choice:
    """A question about an image, and the answers to choose from, the right one first."""

    question: str
    answers: tuple[str, ...]


def questions_of(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The questions of a sample and their right answers: each turn of `messages` by itself; else `question` with the
    number that is its `answer`."""
    messages = [message for message in row.get("messages") or () if message["role"] != "system"]
    if messages:
        turns = zip(messages[::2], messages[1::2], strict=False)
        pairs = [(text_of(asked["content"]).strip(), text_of(told["content"]).strip()) for asked, told in turns]
        return [pair for pair in pairs if all(pair)]
    if row.get("question") is None or row.get("answer") is None:
        return []
    return [(f"{row['question'].strip()} {COUNT_INSTRUCTION}", str(row["answer"]))]


def collect_answers(rows: Iterable[Mapping[str, Any]]) -> Answers:
    """All answers that are right somewhere in a data set."""
    by_question: dict[str, dict[str, None]] = {}
    for row in rows:
        for question, answer in questions_of(row):
            by_question.setdefault(question, {})[answer] = None
    every = dict.fromkeys(answer for answers in by_question.values() for answer in answers)
    return Answers({question: tuple(answers) for question, answers in by_question.items()}, tuple(every))


def choices_of(sample: Mapping[str, Any], settings: "Settings") -> list[Choice]:
    """The questions of a sample, each with up to three wrong answers: those that the same question has elsewhere in
    the data, or, where it has no other, those of other questions. Drawn for each row, the same in every run; a
    question without a wrong answer is left out."""
    found = []
    for turn, (question, right) in enumerate(questions_of(sample)):
        rng = np.random.default_rng((settings.seed, sample.get("row", 0), turn))
        same = [answer for answer in settings.answers.by_question.get(question, ()) if answer != right]
        wrong = same or [answer for answer in settings.answers.all if answer != right]
        drawn = rng.permutation(len(wrong))[:WRONG_ANSWERS].tolist()
        if drawn:
            found.append(Choice(question, (right, *(wrong[place] for place in drawn))))
    return found


@torch.no_grad()
def answer_likelihoods(
    model: "DenseMLLMForConditionalGeneration",
    choice: Choice,
    features: torch.Tensor,
    processor: Any,
) -> list[float]:
    """The log-likelihood of each answer as a whole, its end included: what the model would say with that probability,
    and nothing after it.

    Args:
        model: the model.
        choice: question and answers.
        features: `[n_vision_tokens, hidden_size]`, the image before the language model.
        processor: of the model.
    """
    tokenizer = processor.tokenizer
    content = [{"type": "image"}, {"type": "text", "text": choice.question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    prompt = prompt.replace(processor.image_token, processor.image_token * len(features), 1)
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    tails = [tokenizer(answer, add_special_tokens=False)["input_ids"] + end for answer in choice.answers]
    length = len(head) + max(map(len, tails))
    ids = torch.full((len(tails), length), tokenizer.pad_token_id or 0)
    told = torch.zeros(ids.shape, dtype=torch.bool)
    for row, tail in enumerate(tails):
        ids[row, : len(head) + len(tail)] = torch.tensor(head + tail)
        told[row, len(head) : len(head) + len(tail)] = True
    is_read = torch.arange(length) < torch.tensor([len(head) + len(tail) for tail in tails])[:, None]
    ids, told = ids.to(model.device), told.to(model.device)
    logits = model(
        input_ids=ids,
        attention_mask=is_read.long().to(model.device),
        mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=[features] * len(tails))},
        logits_to_keep=torch.nn.functional.pad(told[:, 1:], (0, 1)),
    ).logits
    logits = logits.reshape(-1, logits.shape[-1]).float()
    own = logits.log_softmax(dim=-1).gather(1, ids[told][:, None])[:, 0].double()
    return [float(part.sum()) for part in own.split([len(tail) for tail in tails])]


def ask_choices(
    model: "DenseMLLMForConditionalGeneration", samples: list[dict], settings: "Settings", options: dict[str, Any]
) -> list[list[list[float]]]:
    """Of each question of each sample the log-likelihoods of its answers, the right one first."""
    found = []
    for sample in samples:
        choices = choices_of(sample, settings)
        if not choices:
            found.append([])
            continue
        camera = {"focal_length": sample.get("focal_length"), "depth_range": settings.depth_range}
        encoded = model.encode_image(sample["image"], use_cache=False, **camera, **options)
        features = encoded.image_features
        found.append([answer_likelihoods(model, choice, features, options["processor"]) for choice in choices])
    return found


def true_choices(sample: dict, settings: "Settings") -> list[Choice] | None:
    """The questions of a sample; `None` where it has none that can be chosen at."""
    return choices_of(sample, settings) or None


class TextMetrics(DenseMetrics):
    """Perplexity of a text, and the share of questions whose right answer is likelier than each wrong one."""

    def __init__(self) -> None:
        # Questions, right ones, those that a guess has right, and the text's negative log-likelihood and its tokens.
        self.totals = torch.zeros(5, dtype=torch.float64, device="cpu")

    def count(self, prediction: list[list[float]], reference: list[Choice]) -> torch.Tensor:
        """What one sample adds: log-likelihoods of the answers to each question, the right one's first."""
        if [len(row) for row in prediction] != [len(choice.answers) for choice in reference]:
            raise ValueError(
                "`prediction` must have a number for each answer of `reference`, got "
                f"{[len(row) for row in prediction]} for {[len(choice.answers) for choice in reference]}"
            )
        right = sum(row[0] > max(row[1:]) for row in prediction)
        guessed = sum(1 / len(row) for row in prediction)
        return torch.tensor([len(prediction), right, guessed, 0, 0], dtype=torch.float64, device="cpu")

    def add_text(self, likelihood: tuple[float, int]) -> None:
        """Add what [`text_likelihood`] gave."""
        self.totals[3:] += torch.tensor(likelihood, dtype=torch.float64, device="cpu")

    def compute(self, totals: torch.Tensor | None = None) -> dict:
        """`perplexity`, at least 1, and `choice_accuracy` in [0, 1]; NaN where there is nothing of it."""
        questions, right, _, nll, tokens = (self.totals if totals is None else totals).tolist()
        mean = nll / tokens if tokens else math.nan
        return {
            "perplexity": math.inf if mean > MOST_NATS else math.exp(mean),
            "choice_accuracy": right / questions if questions else math.nan,
        }

    def facts(self) -> dict[str, Any]:
        """What the figures are of: `questions`, the accuracy of a `guess`, and `tokens` of the text."""
        questions, _, guessed, _, tokens = self.totals.tolist()
        return {"questions": int(questions), "guess": guessed / max(questions, 1), "tokens": int(tokens)}


# ---- before and after ----


def read_baseline(path: str, digest: str, samples: int) -> dict[str, Any]:
    """The figures of an earlier evaluation of the same text and data.

    Args:
        path: its `results.json`, or the folder that has it.
        digest: of the text.
        samples: how many there are.

    Returns:
        `perplexity`, `choice_accuracy` and `questions`.

    Raises:
        ValueError: there is no such file, or it is of something else.
    """
    file = Path(path) / "results.json" if Path(path).is_dir() else Path(path)
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        facts = results["text"]
        figures = {name: float(results["metrics"][facts["task"]][name]) for name in FIGURES}
        before = {"digest": facts["digest"], "samples": results["samples"]}
        figures["questions"] = facts["questions"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"`baseline` must be the `results.json` of an evaluation of text, got {path}") from error
    for name, now in {"digest": digest, "samples": samples}.items():
        if before[name] != now:
            what = {"digest": "text", "samples": "number of samples"}[name]
            raise ValueError(f"`baseline` {path} is of another {what}: {before[name]} there, {now} here")
    return figures


def compare_text(before: Mapping[str, Any], after: Mapping[str, float | None], questions: int) -> dict[str, Any]:
    """Whether text is kept: `kept`, and before and after of both figures.

    Raises:
        ValueError: the questions are others.
    """
    if before["questions"] != questions:
        raise ValueError(f"`baseline` is of {before['questions']} questions, and here are {questions}")
    pairs = {name: [before[name], after[name]] for name in FIGURES}
    low, high = pairs["perplexity"]
    is_kept = high is not None and high / low - 1 <= MOST_RISE  # None: it is not finite
    drop = before["choice_accuracy"] - after["choice_accuracy"]
    return {"kept": bool(is_kept and drop <= MOST_DROP), **pairs}


def describe_kept(kept: Mapping[str, Any]) -> str:
    """[`compare_text`] in one line."""
    (low, high), (before, after) = kept["perplexity"], kept["choice_accuracy"]
    rise = "beyond all numbers" if high is None else f"{high:.3f} ({100 * (high / low - 1):+.1f} %)"
    return (
        f"Text kept: {'yes' if kept['kept'] else 'no'}: perplexity {low:.3f} to {rise}, "
        f"multiple choice accuracy {before:.4f} to {after:.4f} ({after - before:+.4f})."
    )


__all__ = [
    "Answers",
    "Choice",
    "TextMetrics",
    "ask_choices",
    "collect_answers",
    "compare_text",
    "describe_kept",
    "digest_of",
    "read_baseline",
    "read_text",
    "text_likelihood",
    "true_choices",
]
