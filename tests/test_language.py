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
"""What the language model still knows: perplexity and multiple choice, before and after a training."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset

import densemllm.evaluation.language as language
from densemllm.evaluate_densemllm import main
from densemllm.evaluation.language import (
    Answers,
    Choice,
    TextMetrics,
    answer_likelihoods,
    choices_of,
    collect_answers,
    compare_text,
    describe_kept,
    text_likelihood,
)
from densemllm.evaluation.measured import Settings
from tiny import make_image, make_model, make_processor


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def model(processor):
    return make_model(processor)


def turn(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


SAMPLES = [
    {"messages": turn("Is there a cat?", "yes") + turn("What is it?", "a cup")},
    {"messages": turn("Is there a cat?", "no")},
    {"messages": [{"role": "system", "content": "be brief"}, *turn("What is it?", "a plate")]},
    {"question": "How many cups?", "answer": 2},
]


# ---- perplexity ----


@pytest.mark.parametrize("window", [1024, 9])
@pytest.mark.parametrize("has_start", [True, False])
def test_the_likelihood_of_a_text_is_the_plain_one(model, processor, window, has_start, monkeypatch):
    monkeypatch.setattr(language, "WINDOW", window)
    tokenizer = copy.deepcopy(processor.tokenizer)
    if not has_start:
        tokenizer.bos_token = None
    text = "the cat sat on the table beside a chair and a lamp, and saw nothing at all"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    size = window - has_start
    expected, count = 0.0, 0
    with torch.no_grad():
        for first in range(0, len(ids), size):
            row = [*([processor.tokenizer.bos_token_id] if has_start else []), *ids[first : first + size]]
            logits = model(input_ids=torch.tensor([row])).logits[0].double().log_softmax(dim=-1)
            expected -= sum(float(logits[place, row[place + 1]]) for place in range(len(row) - 1))
            count += len(row) - 1
    found = text_likelihood(model, tokenizer, text)
    assert found[1] == count and found[0] == pytest.approx(expected, rel=1e-5)


# ---- questions ----


def test_all_answers_of_a_data_set():
    answers = collect_answers(SAMPLES)
    counting = "How many cups? Output the final answer as a single number."
    assert answers.by_question == {
        "Is there a cat?": ("yes", "no"), "What is it?": ("a cup", "a plate"), counting: ("2",),
    }  # fmt: skip
    assert answers.all == ("yes", "no", "a cup", "a plate", "2")


def test_wrong_answers_are_of_the_same_question_where_it_has_some():
    settings = Settings(answers=collect_answers(SAMPLES))
    assert choices_of(SAMPLES[0], settings) == [
        Choice("Is there a cat?", ("yes", "no")), Choice("What is it?", ("a cup", "a plate")),
    ]  # fmt: skip
    (counted,) = choices_of(SAMPLES[3], settings)
    assert counted.answers[0] == "2" and len(counted.answers) == 4
    assert set(counted.answers[1:]) < {"yes", "no", "a cup", "a plate"}
    assert choices_of(SAMPLES[3], settings) == [counted]
    drawn = {choices_of({**SAMPLES[3], "row": row}, settings)[0].answers for row in range(20)}
    assert len(drawn) > 1
    assert choices_of(SAMPLES[3], Settings(answers=Answers({}, ("2",)))) == []
    assert choices_of({"messages": [{"role": "user", "content": "hm"}]}, settings) == []


def test_an_answer_has_the_likelihood_of_all_its_tokens_and_of_its_end(model, processor):
    image = make_image(16, 24)
    features = model.encode_image(image, processor=processor).image_features
    choice = Choice("what is it?", ("the cat", "a lamp beside the chair", "cup"))
    found = answer_likelihoods(model, choice, features, processor)
    content = [{"type": "image"}, {"type": "text", "text": choice.question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    for answer, own in zip(choice.answers, found, strict=True):
        inputs = processor(images=[image], text=[prompt], return_tensors="pt")
        tail = processor.tokenizer(answer, add_special_tokens=False)["input_ids"] + [processor.tokenizer.eos_token_id]
        length = inputs["input_ids"].shape[1]
        ids = torch.cat([inputs["input_ids"], torch.tensor([tail])], dim=1)
        with torch.no_grad():
            logits = model(
                input_ids=ids, pixel_values=inputs["pixel_values"], image_grid_thw=inputs["image_grid_thw"]
            ).logits[0].double().log_softmax(dim=-1)  # fmt: skip
        expected = sum(float(logits[length + place - 1, token]) for place, token in enumerate(tail))
        assert own == pytest.approx(expected, rel=1e-5)


def test_metrics_by_hand():
    metrics = TextMetrics()
    reference = [Choice("a", ("x", "y")), Choice("b", ("x", "y", "z", "w"))]
    assert all(math.isnan(value) for value in metrics.compute().values())
    metrics.add([[-1.0, -2.0], [-3.0, -4.0, -2.5, -9.0]], reference)
    metrics.add([[-1.0, -1.0]], reference[:1])  # as likely is not likelier
    metrics.add_text((3 * math.log(8), 3))
    assert metrics.compute() == {"perplexity": pytest.approx(8), "choice_accuracy": pytest.approx(1 / 3)}
    assert metrics.facts() == {"questions": 3, "guess": pytest.approx(1.25 / 3), "tokens": 3}
    again = TextMetrics()
    again.add_record(metrics.to_record(metrics.totals))
    assert again.compute() == metrics.compute()
    with pytest.raises(ValueError, match="a number for each answer"):
        metrics.count([[-1.0]], reference[:1])
    metrics.add_text((1e6, 1))
    assert metrics.compute()["perplexity"] == math.inf


@pytest.mark.parametrize(
    ("after", "kept", "line"),
    [
        ((15.1, 0.86), True, "yes: perplexity 15.000 to 15.100 (+0.7 %), multiple choice accuracy 0.8690 to 0.8600"),
        ((14.0, 0.9), True, "yes: perplexity 15.000 to 14.000 (-6.7 %)"),
        ((15.2, 0.869), False, "no: perplexity 15.000 to 15.200 (+1.3 %)"),
        ((15.0, 0.845), False, "0.8690 to 0.8450 (-0.0240)."),
        ((None, 0.9), False, "no: perplexity 15.000 to beyond all numbers"),
    ],
)
def test_text_is_kept_or_not(after, kept, line):
    before = {"perplexity": 15.0, "choice_accuracy": 0.869, "questions": 7}
    found = compare_text(before, {"perplexity": after[0], "choice_accuracy": after[1]}, 7)
    assert found["kept"] is kept and line in describe_kept(found)
    with pytest.raises(ValueError, match="of 7 questions, and here are 8"):
        compare_text(before, before, 8)


# ---- the script ----


@pytest.fixture(scope="module")
def made(model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    for name, seed in (("before", 0), ("after", 1)):
        make_model(processor, seed).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    rows = [{"image": make_image(16, 24, place), **sample} for place, sample in enumerate(SAMPLES[:3])]
    Dataset.from_list(rows).save_to_disk(folder / "data")
    Dataset.from_list([{"image": make_image(8, 8), **SAMPLES[3]}] * 2).save_to_disk(folder / "counts")
    return folder


def evaluate(made, name, output, *more, data="data"):
    return main(
        [
            "--model", str(made / name), "--data", str(made / data), "--task", "text", "--output_dir", str(output),
            "--device", "cpu", "--batch_size", "2", *map(str, more),
        ]
    )  # fmt: skip


def test_before_and_after(made, tmp_path, model, processor):
    before = evaluate(made, "before", tmp_path / "before")
    assert before["images"] == {"text": 3} and before["text"]["questions"] == 4 and before["text"]["guess"] == 0.5
    likelihood, tokens = text_likelihood(model, processor.tokenizer, language.TEXT)
    assert before["text"]["tokens"] == tokens
    assert before["metrics"]["text"]["perplexity"] == pytest.approx(math.exp(likelihood / tokens), rel=1e-5)
    assert "text_kept" not in before
    after = evaluate(made, "after", tmp_path / "after", "--baseline", tmp_path / "before", "--update_card")
    kept = after["text_kept"]
    assert kept["perplexity"] == [before["metrics"]["text"]["perplexity"], after["metrics"]["text"]["perplexity"]]
    line = describe_kept(kept)
    assert line in (tmp_path / "after/results.md").read_text()
    assert json.loads((tmp_path / "after/results.json").read_text())["text_kept"] == kept
    assert (tmp_path / "after/cases.png").exists()
    card = (made / "after/README.md").read_text()
    assert card.count("Text kept: ") == 1 and line in card and "perplexity of a text" in card
    # Once more, against itself: the line is another, and still one.
    again = evaluate(made, "after", tmp_path / "after", "--baseline", tmp_path / "after/results.json", "--update_card")
    assert again["text_kept"]["kept"] and again["metrics"] == after["metrics"]
    card = (made / "after/README.md").read_text()
    assert card.count("Text kept: ") == 1 and "Text kept: yes" in card


def test_a_text_of_ones_own_and_what_can_not_be_compared(made, tmp_path):
    (tmp_path / "own.txt").write_text("the cat sat on the table", encoding="utf-8")
    found = evaluate(made, "before", tmp_path / "own", "--text_file", tmp_path / "own.txt")
    assert found["text"]["tokens"] < 12
    with pytest.raises(ValueError, match="is of another text"):
        evaluate(made, "before", tmp_path / "a", "--baseline", tmp_path / "own")
    whole = evaluate(made, "before", tmp_path / "b")
    assert whole["text"]["questions"] == 4
    with pytest.raises(ValueError, match="is of another number of samples: 3 there, 2 here"):
        evaluate(made, "before", tmp_path / "c", "--baseline", tmp_path / "b", "--limit", 2)
    for name, content in (("no.json", "{"), ("other.json", "{}"), ("old.json", '{"metrics": {}, "samples": 3}')):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match="`baseline` must be the `results.json`"):
            evaluate(made, "before", tmp_path / "d", "--baseline", tmp_path / name)
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bytes.txt").write_bytes(np.arange(200, 255, dtype=np.uint8).tobytes())
    for name in ("empty.txt", "bytes.txt", "nowhere.txt"):
        with pytest.raises(ValueError, match="`text_file`"):
            evaluate(made, "before", tmp_path / "e", "--text_file", tmp_path / name)
    with pytest.raises(ValueError, match="`text_file` needs the `task` 'text'"):
        evaluate(made, "before", tmp_path / "f", "--task", "counting", "--text_file", tmp_path / "own.txt")


def test_counts_are_questions_too(made, tmp_path):
    with pytest.raises(ValueError, match="no sample of .* has messages, or question and answer"):
        evaluate(made, "before", tmp_path / "one", data="counts")  # one answer alone: there is no wrong one
