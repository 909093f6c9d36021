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
import unicodedata

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from densemllm import DenseMLLMImageProcessor, DenseMLLMProcessor, add_dense_tokens
from densemllm.answers_densemllm import normalize_name, parse_refs
from densemllm.targets_densemllm import nearest_resize
from tiny import DEPTH_RANGES, NUM_DEPTH_BINS, make_image, make_processor


PROCESSOR = make_processor()


@pytest.fixture
def processor():
    return PROCESSOR


def word_tokenizer(**kwargs):
    """A tokenizer of whole words, which knows few of them."""
    words = {"<unk>": 0, "<eos>": 1, "cat": 2, "dog": 3, "red": 4, "ball": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>")


# ---- labels ----


def test_names_are_the_tokenizers_own_sub_words(processor):
    names = ["wall", "a rather long name", "floor"]
    expected = [processor.tokenizer(name, add_special_tokens=False)["input_ids"] for name in names]
    assert processor.label_token_ids(names) == expected and len(expected[1]) > 1


def test_rules_for_names(processor):
    assert processor.normalize_labels(["  Red\t  Ball ", "<OTHERS>"]) == {0: "red ball", 1: "<OTHERS>"}
    assert processor.normalize_labels({7: "Cat", 2: "dog"}) == {7: "cat", 2: "dog"}  # keys and order stay
    assert processor.label_token_ids(["SKY"]) == processor.label_token_ids(["sky"])


@settings(max_examples=300, deadline=None)
@given(name=st.text(max_size=12))
@example(name="Cafe\u0301")
@example(name="\u0130stanbul \u212b \u1e9e\u03a3")
def test_all_spellings_of_a_name_are_one(name):
    """Canonically equivalent texts look alike, and no caller sees which one an editor or a file system wrote."""
    spellings = {normalize_name(unicodedata.normalize(form, f"  {name} \t")) for form in ("NFC", "NFD")}
    assert spellings == {normalize_name(name)} == {normalize_name(normalize_name(name))}


def test_composed_and_decomposed_names_are_one_class(processor):
    composed, decomposed = "caf\u00e9", "Cafe\u0301"
    assert processor.normalize_labels({4: decomposed}) == {4: composed}
    assert processor.label_token_ids([decomposed]) == processor.label_token_ids([composed])
    with pytest.raises(ValueError, match="twice"):
        processor.normalize_labels([composed, decomposed])
    assert parse_refs(f"<ref>{decomposed}</ref><ref>{composed}</ref>") == [composed]
    found = processor.post_process_detection(f"<ref>{decomposed}</ref><box><x_1><y_1><x_9><y_9></box>", (9, 9), (9, 9))
    assert found["labels"] == [composed]
    assert processor.post_process_run_length(f"<ref>{decomposed}</ref><mask>(0,1)</mask>", (1, 1))["labels"] == {
        0: "Caf\u00e9"
    }
    for asked, answer in ((composed, decomposed), (decomposed, composed)):
        assert processor.post_process_classification(f"A {answer}.", ["bar", asked])["label"] == asked
        question, _ = processor.answer_task("counting", asked)
        assert unicodedata.is_normalized("NFC", question)


@pytest.mark.parametrize(
    "error, message, labels",
    [
        (TypeError, "list of names", "cat"),
        (TypeError, "list of names", 3),
        (TypeError, "list of names", None),
        (TypeError, "strings", ["cat", 3]),
        (ValueError, "empty", []),
        (ValueError, "empty", {}),
        (ValueError, "empty name", ["cat", "  "]),
        (ValueError, "twice", ["cat", " Cat"]),
        (ValueError, "keys", {-1: "cat"}),
        (ValueError, "keys", {"0": "cat"}),
    ],
)
def test_labels_that_can_not_be_used_are_named(processor, error, message, labels):
    with pytest.raises(error, match=f"`labels`.*{message}"):
        processor.label_token_ids(labels)


def test_a_name_without_tokens_is_named():
    tokenizer = word_tokenizer()
    add_dense_tokens(tokenizer, 4, 0)
    processor = DenseMLLMProcessor(DenseMLLMImageProcessor(), tokenizer, num_depth_bins=4)
    assert processor.label_token_ids(["red ball"]) == [[4, 5]]
    with pytest.raises(ValueError, match="'zebra'.*no tokens"):
        processor.label_token_ids(["cat", "zebra"])


# ---- tokens ----


def test_any_tokenizer_can_be_turned_into_one_of_densemllm():
    tokenizer = word_tokenizer()
    with pytest.raises(ValueError, match="image_pad"):
        DenseMLLMProcessor(DenseMLLMImageProcessor(), tokenizer)
    before = len(tokenizer)
    added = add_dense_tokens(tokenizer, 5, 3)
    assert len(tokenizer) == before + added
    assert add_dense_tokens(tokenizer, 5, 3) == 0
    assert add_dense_tokens(tokenizer, 7, 3) == 2  # only what is missing
    ids = tokenizer.convert_tokens_to_ids(["<custom_1>", "<custom_7>", "<FG>", "<BG>", "<ref>", "<OTHERS>", "<x_2>"])
    assert len(set(ids)) == 7 and min(ids) >= before
    assert tokenizer.decode(tokenizer("<ref>cat</ref>")["input_ids"], skip_special_tokens=True).replace(" ", "") == (
        "<ref>cat</ref>"
    )


def test_missing_depth_tokens_are_named():
    processor = make_processor()
    few = make_processor(num_depth_bins=NUM_DEPTH_BINS + 1)
    assert len(processor.depth_token_ids) == NUM_DEPTH_BINS
    with pytest.raises(ValueError, match=f"<custom_{NUM_DEPTH_BINS + 1}>"):
        _ = few.depth_token_ids


# ---- depth ----


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(sorted(DEPTH_RANGES)),
    part=st.floats(0, 1),
    focal_length=st.sampled_from([None, 50.0, 100.0, 430.0]),
)
def test_bins_and_back_is_half_a_bin_off_at_most(name, part, focal_length):
    processor, row = PROCESSOR, DEPTH_RANGES[name]
    scale = row["focal_length"] / focal_length if focal_length and row.get("focal_length") else 1.0
    low, high = row["min_depth"], row["max_depth"]
    if row["mapping"] == "log":
        depth = low * (high / low) ** part
    else:
        depth = max(low + part * (high - low), 1e-6)
    depth = min(max(depth, low), high)
    bins = processor.depth_to_bins(depth / scale * (1 - 1e-12), name, focal_length)
    if bins == 0:
        assert depth / scale * scale * (1 - 1e-12) < low  # rounding left the range
        return
    back = float(processor.bins_to_depth(bins, name, focal_length)) * scale
    if row["mapping"] == "log":
        assert abs(np.log(back / depth)) <= np.log(high / low) / NUM_DEPTH_BINS / 2 + 1e-5
    else:
        assert abs(back - depth) <= (high - low) / NUM_DEPTH_BINS / 2 + 1e-5


@pytest.mark.parametrize("name", sorted(DEPTH_RANGES))
def test_every_bin_is_its_own_centre(processor, name):
    bins = torch.arange(1, NUM_DEPTH_BINS + 1)
    depth = processor.bins_to_depth(bins, name)
    assert depth.dtype == torch.float32 and bool((depth.diff() > 0).all())
    np.testing.assert_array_equal(processor.depth_to_bins(depth.numpy(), name), bins.numpy())


def test_invalid_depth_is_bin_zero(processor):
    depth = np.array([0.0, -1.0, np.nan, np.inf, 8.0, 8.01, 0.3])
    assert processor.depth_to_bins(depth, "room").tolist() == [0, 0, 0, 0, 16, 0, 1]
    assert processor.depth_to_bins(np.array([0.49, 0.5, 80.0, 80.1]), "road").tolist() == [0, 1, 16, 0]
    assert processor.bins_to_depth(torch.tensor([0]), "road").tolist() == [0.0]


def test_bad_depth_arguments_are_named(processor):
    with pytest.raises(ValueError, match="`bins` must lie in 0..16"):
        processor.bins_to_depth([17])
    with pytest.raises(ValueError, match="`depth_range` must be one of"):
        processor.depth_to_bins([1.0], "moon")
    for bad in (0.0, -3.0, float("nan")):
        with pytest.raises(ValueError, match="`focal_length`"):
            processor.depth_to_bins([1.0], "road", bad)
    for bad in (1e-5, 1e9):  # no camera's, and no scale's
        with pytest.raises(ValueError, match="`focal_length` must be from 0.0001 to 1e\\+08 pixels"):
            processor.get_scale(bad, "road")
    assert processor.get_scale(1e-5, "room") is None and processor.get_scale(50.0, "road") == 2.0


# ---- annotations ----


def grid_of(processor, height, width):
    return processor.image_processor(make_image(height, width), return_tensors="pt")["image_grid_thw"]


def sets(encoded):
    """Targets of each token as a set, and the annotated ids of each token as a set (`None`: not supervised), or a
    list of those of each kind of annotation where there are several."""
    targets = [{i for i in row if i != -100} for row in encoded["dense_targets"].tolist()]
    ranges = [
        {i for start, end in row for i in range(start, end)} for row in encoded["dense_candidate_ranges"].tolist()
    ]
    annotated = [[None if row < 0 else ranges[row] for row in own] for own in encoded["dense_candidates"].tolist()]
    return targets, [own[0] if len(own) == 1 else own for own in annotated]


def brute_force(values, label_ids, ignored, grid, share=0.0, cell=8):
    """The labels that occur in each cell of the resized map."""
    values = nearest_resize(values, int(grid[0, 1]) * 4, int(grid[0, 2]) * 4)
    found = []
    for top in range(0, values.shape[0], cell):
        for left in range(0, values.shape[1], cell):
            window = values[top : top + cell, left : left + cell]
            keys, counts = np.unique(window[window != ignored], return_counts=True)
            needed = min(share * counts.sum(), max(counts, default=0))
            inside = {key for key, count in zip(keys.tolist(), counts, strict=True) if count >= needed}
            found.append({i for key in inside for i in label_ids[key]})
    return found


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    candidates=st.sampled_from(["vocabulary", "labels"]),
    share=st.sampled_from([0.0, 0.25, 0.6, 1.0]),
)
def test_segmentation_targets_are_the_labels_of_each_cell(seed, size, candidates, share):
    processor = PROCESSOR
    names = {0: "wall", 3: "red ball", 4: "floor", 9: "a red cup"}  # two share a sub-word
    generator = np.random.default_rng(seed)
    values = generator.choice([0, 3, 4, 9, 255, 255], (size[0] // 7 + 1, size[1] // 7 + 1)).repeat(7, 0).repeat(7, 1)
    values = values[: size[0], : size[1]].astype(np.uint8)
    grid = grid_of(processor, *size)
    annotation = {"segmentation": values, "id2label": names}
    targets, annotated = sets(encoded := processor.encode_annotations([annotation], grid, candidates, share))
    ids = dict(zip(names, processor.label_token_ids(names), strict=True))
    assert targets == brute_force(values, ids, 255, grid, share)
    assert encoded["dense_targets"].shape[1] <= sum(len(v) for v in ids.values())
    tokenizer = processor.tokenizer
    own = {i for label in ids.values() for i in label}
    if candidates == "vocabulary":
        own |= set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder)
        own |= {tokenizer.convert_tokens_to_ids("<OTHERS>")}
    assert all(a == (own if t else None) for t, a in zip(targets, annotated, strict=True))
    assert own.isdisjoint(processor.depth_token_ids)


def test_depth_targets_know_the_depth_tokens_only(processor):
    depth = np.random.default_rng(0).uniform(-1, 9, (24, 40)).astype(np.float32)
    depth[:8, :8], depth[0, 9] = 0, np.nan
    grid = grid_of(processor, 24, 40)
    targets, annotated = sets(processor.encode_annotations([{"depth": depth, "depth_range": "room"}], grid))
    ids = [[]] + [[i] for i in processor.depth_token_ids]
    assert targets == brute_force(processor.depth_to_bins(depth, "room"), ids, 0, grid)
    assert targets[0] == set() and annotated[0] is None
    assert annotated[1] == set(processor.depth_token_ids)


def test_mask_targets_are_foreground_and_background(processor):
    mask = np.zeros((16, 24), bool)
    mask[:, 12:] = True
    targets, annotated = sets(processor.encode_annotations([{"mask": mask}], grid_of(processor, 16, 24)))
    background, foreground = processor.foreground_token_ids
    assert targets == [{background}, {background, foreground}, {foreground}] * 2
    assert annotated == [{background, foreground}] * 6
    mask[:, 11] = True
    targets, _ = sets(processor.encode_annotations([{"mask": mask}], grid_of(processor, 16, 24), min_label_share=0.5))
    assert targets == [{background}, {foreground}, {foreground}] * 2


def test_a_share_of_a_cell_is_checked_and_not_asked_of_depth(processor):
    grid = grid_of(processor, 8, 8)
    with pytest.raises(ValueError, match="min_label_share"):
        processor.encode_annotations([{}], grid, min_label_share=1.5)
    annotation = {"depth": np.linspace(1, 7, 64, dtype=np.float32).reshape(8, 8), "depth_range": "room"}
    every, most = (processor.encode_annotations([annotation], grid, min_label_share=share) for share in (0.0, 0.9))
    assert torch.equal(every["dense_targets"], most["dense_targets"])


def test_what_is_not_annotated_is_never_a_candidate(processor):
    size = (16, 16)
    segmentation, depth = np.full(size, 255, np.uint8), np.zeros(size, np.float32)
    segmentation[:8], depth[:, :8] = 0, 1.0
    annotation = {"segmentation": segmentation, "id2label": {0: "wall"}, "depth": depth, "depth_range": "room"}
    _, annotated = sets(processor.encode_annotations([annotation], grid_of(processor, *size), "labels"))
    wall, bins = set(processor.label_token_ids(["wall"])[0]), set(processor.depth_token_ids)
    assert annotated == [[wall, bins], [wall, None], [None, bins], [None, None]]


def test_images_of_a_batch_stand_one_after_another(processor):
    mask = np.ones((8, 8), bool)
    grid = torch.cat([grid_of(processor, 8, 8), grid_of(processor, 16, 8), grid_of(processor, 8, 8)])
    encoded = processor.encode_annotations([{"mask": mask}, {}, {"mask": ~mask}], grid)
    background, foreground = processor.foreground_token_ids
    assert sets(encoded)[0] == [{foreground}, set(), set(), {background}]
    empty = processor.encode_annotations([{}, {}, {}], grid)
    assert empty["dense_targets"].shape == (4, 0) and empty["dense_candidates"].tolist() == [[-1]] * 4


@pytest.mark.parametrize(
    "message, annotation",
    [
        ("unknown entries", {"labels": 3}),
        (r"\[height, width\]", {"mask": np.zeros((2, 2, 1), bool)}),
        (r"\[height, width\]", {"depth": np.zeros((0, 2))}),
        ("booleans", {"mask": np.zeros((2, 2), np.uint8)}),
        ("numbers", {"depth": np.full((2, 2), "a")}),
        ("id2label", {"segmentation": np.zeros((2, 2), int)}),
        ("integers", {"segmentation": np.zeros((2, 2)), "id2label": {0: "wall"}}),
        (r"class ids \[7\]", {"segmentation": np.full((2, 2), 7), "id2label": {0: "wall"}}),
        ("`depth_range`", {"depth": np.ones((2, 2)), "depth_range": "moon"}),
    ],
)
def test_bad_annotations_are_named(processor, message, annotation):
    with pytest.raises(ValueError, match=message):
        processor.encode_annotations([annotation], grid_of(processor, 8, 8))


def test_annotations_and_images_must_be_as_many(processor):
    with pytest.raises(ValueError, match="`annotations` must be one dict an image, got 2 for 1"):
        processor.encode_annotations([{}, {}], grid_of(processor, 8, 8))
    with pytest.raises(ValueError, match="`candidates`"):
        processor.encode_annotations([{}], grid_of(processor, 8, 8), candidates="all")


# ---- chat ----


def chat(text="what is it?"):
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def test_chat_template_has_the_released_form(processor):
    text = processor.apply_chat_template(chat(), add_generation_prompt=True)
    assert text == (
        "<|begin_of_text|>system\nYou are a helpful assistant.<|end_of_text|>\n<|begin_of_text|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|>what is it?<|end_of_text|>\n<|begin_of_text|>assistant\n"
    )


def test_placeholders_are_expanded_to_one_a_vision_token(processor):
    images = [make_image(20, 30), make_image(8, 8)]
    text = processor.apply_chat_template(chat(), add_generation_prompt=True)
    inputs = processor(images=images, text=[text, text], padding=True, return_tensors="pt")
    counts = (inputs["image_grid_thw"].prod(dim=1) // 4).tolist()
    assert (inputs["input_ids"] == processor.image_token_id).sum(dim=1).tolist() == counts == [12, 1]
    torch.testing.assert_close(inputs["mm_token_type_ids"] == 1, inputs["input_ids"] == processor.image_token_id)
    sizes = [(image.height, image.width) for image in images]
    numbers = processor._get_num_multimodal_tokens(image_sizes=sizes)
    assert numbers["num_image_tokens"] == counts
    assert numbers["num_image_patches"] == inputs["image_grid_thw"].prod(dim=1).tolist()


@pytest.mark.parametrize("text", ["no image", "<|image_pad|><|image_pad|>"])
def test_as_many_images_as_placeholders(processor, text):
    with pytest.raises(ValueError, match=r"`text` must have one <\|image_pad\|> an image, got (0|2) for 1 images"):
        processor(images=[make_image(8, 8)], text=[text], return_tensors="pt")


def test_saved_and_loaded_is_the_same(tmp_path):
    processor = make_processor(referring_prompt="find {text} here", crf_options={"color_sigma": 5.0, "iterations": 2})
    processor.save_pretrained(tmp_path)
    loaded = DenseMLLMProcessor.from_pretrained(tmp_path)
    text = processor.apply_chat_template(chat(), add_generation_prompt=True)
    arguments = {"images": [make_image(20, 30)], "text": [text], "return_tensors": "pt"}
    own, expected = loaded(**arguments), processor(**arguments)
    assert own.keys() == expected.keys()
    for name in own:
        torch.testing.assert_close(own[name], expected[name], rtol=0, atol=0)
    for name in (
        "depth_ranges", "default_depth_range", "num_depth_bins", "referring_crop_size", "referring_prompt",
        "crf_options", "chat_template",
    ):  # fmt: skip
        assert getattr(loaded, name) == getattr(processor, name)
    with pytest.raises(ValueError, match="`referring_prompt` must contain '{text}', got 'find it'"):
        make_processor(referring_prompt="find it")


@pytest.mark.parametrize(
    "options", [{"colour_sigma": 5.0}, {"color_sigma": -1.0}, {"iterations": "two"}, ["iterations"]]
)
def test_crf_options_that_cannot_be_used(options):
    with pytest.raises(ValueError, match="`crf_options`"):
        make_processor(crf_options=options)


# ---- answers ----


def test_classification_takes_whole_words_first(processor):
    find = processor.post_process_classification
    assert find("The category of this image is dog.", ["cat", "dog"])["label"] == "dog"
    assert find("Cats and dogs", ["dog", "cat"])["label"] == "cat"  # no word alone
    assert find("a dining table", ["table", "dining table"])["label"] == "dining table"
    assert find("C++ code", ["c++", "c"])["label"] == "c++"
    assert find("none", ["cat"])["label"] is None
    _, parse = processor.answer_task("classification", ["cat", " red  ball"])
    assert parse("It is a red ball")["label"] == "red ball"


def test_the_vocabulary_is_looked_through_once(processor, monkeypatch):
    """Tokenizers make the dict of their vocabulary anew each time: of 280,000 tokens and 1,000 bins, for minutes."""
    fresh, calls = make_processor(), []
    vocabulary = fresh.tokenizer.get_vocab()
    monkeypatch.setattr(fresh.tokenizer, "get_vocab", lambda: calls.append(0) or vocabulary)
    assert fresh.depth_token_ids == processor.depth_token_ids and len(calls) == 1


def test_parse_refs():
    text = "The target categories include <ref>Road</ref><ref> traffic  light</ref> and <ref>road</ref><ref>cut"
    assert parse_refs(text) == ["road", "traffic light"]
    for junk in ("", "<ref></ref>", "<ref>" * 20000, "</ref><ref>" * 20000, "<ref>a<b</ref>"):
        assert parse_refs(junk) == []
