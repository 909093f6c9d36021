"""The chat template: what it writes, what it refuses, and its marks around what an assistant says."""

import base64
import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from transformers import ProcessorMixin

from densemllm.training.collator import DenseCollator
from densemllm.training.samples import read_sample
from tiny import make_image, make_model, make_processor


PROCESSOR = make_processor()
MASKS_WITH_IMAGES = hasattr(ProcessorMixin, "_adjust_assistant_masks_indices")
END = "<|end_of_text|>"
PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def processor():
    return PROCESSOR


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def as_data_uri(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


UNKNOWN = {
    "video": {"type": "video", "url": "clip.mp4"},
    "audio": {"type": "audio", "path": "sound.wav"},
    "file": {"type": "input_file", "file_id": "f"},
    "no type": {"text": "hi"},
    "string": "hi",
    "none": None,
    "text without text": {"type": "text"},
    "text under another name": {"type": "text", "content": "hi"},
    "image with a capital": {"type": "Image"},
}


@pytest.mark.parametrize("options", [{}, {"tokenize": True, "return_dict": True}], ids=["text", "ids"])
@pytest.mark.parametrize("part", UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_parts_are_refused(processor, part, options):
    with pytest.raises((ValueError, TemplateError), match="part"):
        processor.apply_chat_template(user({"type": "text", "text": "what?"}, part), **options)


@pytest.mark.parametrize("part", UNKNOWN.values(), ids=UNKNOWN)
def test_the_template_alone_refuses_unknown_parts(processor, part):
    """As servers use it, who bring their own code for images."""
    with pytest.raises(TemplateError, match="part"):
        processor.tokenizer.apply_chat_template(user(part), chat_template=processor.chat_template, tokenize=False)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ({"role": "user"}, {}),
        ({"role": "user", "content": None}, {}),
        ({"role": "user", "content": 3}, {}),
        ({"role": "user", "content": {"type": "text", "text": "hi"}}, {}),
        ({"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}, {}),
        ({"role": "user", "content": "hi"}, {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        ({"role": "user", "content": "hi"}, {"documents": [{"title": "a", "text": "b"}]}),
    ],
)
def test_what_the_template_cannot_write_is_refused(processor, message, options):
    with pytest.raises(TemplateError, match="`content`|`tool_calls`|`tools`"):
        processor.apply_chat_template([message], **options)


@pytest.mark.parametrize("nested", [False, True], ids=["one chat", "batch"])
def test_openai_parts_are_read_as_our_own(processor, nested):
    image = make_image(20, 30)
    uri = as_data_uri(image)
    forms = [
        [{"type": "image", "image": image}, {"type": "text", "text": "what?"}],
        [{"type": "image_url", "image_url": {"url": uri, "detail": "high"}}, {"type": "text", "text": "what?"}],
        [{"type": "image_url", "image_url": uri}, {"type": "text", "text": "what?"}],
        [{"type": "input_image", "image_url": uri}, {"type": "input_text", "text": "what?"}],
        [{"type": "input_image", "image_url": {"url": uri}}, {"type": "output_text", "text": "what?"}],
    ]
    inputs = []
    for form in forms:
        chat = user(*form)
        before = copy.deepcopy(chat)
        inputs.append(
            processor.apply_chat_template(
                [chat, chat] if nested else chat, tokenize=True, return_dict=True, return_tensors="pt"
            )
        )
        assert chat[0]["content"][1:] == before[0]["content"][1:] and len(chat[0]["content"]) == 2, "the caller's chat"
    for own in inputs[1:]:
        for name, value in inputs[0].items():
            torch.testing.assert_close(own[name], value, rtol=0, atol=0)
    for form in forms:  # the template by itself
        text = processor.tokenizer.apply_chat_template(
            user(*form), chat_template=processor.chat_template, tokenize=False
        )
        assert f"user\n{PLACEHOLDER}what?{END}\n" in text


def test_an_image_by_its_id_elsewhere_is_refused(processor):
    with pytest.raises(ValueError, match="file_id"):
        processor.apply_chat_template(user({"type": "input_image", "file_id": "file-1"}))


parts = st.one_of(
    st.sampled_from([{"type": "image"}, {"type": "image_url"}, {"type": "input_image"}]),
    st.builds(
        lambda kind, text: {"type": kind, "text": text},
        st.sampled_from(["text", "input_text", "output_text"]),
        st.text("abc é\n{%}", max_size=8),
    ),
)
contents = st.one_of(st.text("abc é\n{%}", max_size=8), st.lists(parts, max_size=4))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), contents), min_size=1, max_size=5))
def test_everything_of_a_chat_is_written_once_and_in_order(turns):
    chat = [{"role": role, "content": content} for role, content in turns]
    expected = "" if turns[0][0] == "system" else f"<|begin_of_text|>system\nYou are a helpful assistant.{END}\n"
    answers = []
    for role, content in turns:
        body = content
        if not isinstance(content, str):
            body = "".join(part["text"] if "text" in part else PLACEHOLDER for part in content)
        expected += f"<|begin_of_text|>{role}\n{body}{END}\n"
        answers += [body + END] if role == "assistant" else []
    assert PROCESSOR.apply_chat_template(chat) == expected
    assert (
        PROCESSOR.tokenizer.apply_chat_template(chat, chat_template=PROCESSOR.chat_template, tokenize=False)
        == expected
    )


def test_marks_cover_what_an_assistant_says_in_words(processor):
    chat = [
        *user({"type": "text", "text": "what?"}), {"role": "assistant", "content": "a red ball"},
        {"role": "user", "content": "and?"}, {"role": "assistant", "content": [{"type": "text", "text": "a chair"}]},
    ]  # fmt: skip
    inputs = processor.tokenizer.apply_chat_template(
        chat, chat_template=processor.chat_template, return_dict=True, return_assistant_tokens_mask=True
    )
    said = [token for token, mask in zip(inputs["input_ids"], inputs["assistant_masks"], strict=True) if mask]
    assert processor.tokenizer.decode(said) == f"a red ball{END}a chair{END}"


@pytest.mark.skipif(not MASKS_WITH_IMAGES, reason="transformers shifts the masks behind an image before 5.23")
def test_marks_cover_what_an_assistant_says(processor):
    image = make_image(20, 30)
    chats = [
        [
            *user({"type": "image", "image": image}, {"type": "text", "text": "what?"}),
            {"role": "assistant", "content": "a red ball"},
            *user({"type": "text", "text": "and here?"}, {"type": "image", "image": make_image(16, 16)}),
            {"role": "assistant", "content": [{"type": "text", "text": "a chair"}]},
        ],
        [*user({"type": "image", "image": image}), {"role": "assistant", "content": "a lamp"}],
    ]
    inputs = processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt",
        processor_kwargs={"padding": True},
    )  # fmt: skip
    said = [
        processor.tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(inputs["input_ids"], inputs["assistant_masks"], strict=True)
    ]
    assert said == [f"a red ball{END}a chair{END}", f"a lamp{END}"]


@pytest.mark.parametrize("kind", ["input", "output"])
def test_openai_parts_in_the_messages_of_a_sample(processor, kind):
    collator = DenseCollator(processor)
    forms = [
        [{"type": "image"}, {"type": "text", "text": "what?"}],
        [{"type": "input_image"}, {"type": f"{kind}_text", "text": "what?"}],
        [{"type": f"{kind}_text", "text": "what?"}],  # the image comes first
    ]
    batches = [
        collator([{"image": make_image(16, 24), "messages": [
            {"role": "user", "content": form},
            {"role": "assistant", "content": [{"type": kind, "text": "a ball"} | {"type": f"{kind}_text"}]},
        ]}])
        for form in forms
    ]  # fmt: skip
    for batch in batches[1:]:
        assert torch.equal(batch["input_ids"], batches[0]["input_ids"])
        assert torch.equal(batch["labels"], batches[0]["labels"])
    assert processor.tokenizer.decode(batches[0]["labels"][batches[0]["labels"] != -100]) == f"a ball{END}"


def test_an_answer_that_is_not_text_is_refused(processor):
    messages = [*user({"type": "text", "text": "?"}), {"role": "assistant", "content": [{"type": "image"}]}]
    with pytest.raises(ValueError, match="`messages` must have answers that are text"):
        DenseCollator(processor)([{"image": make_image(16, 24), "messages": messages}])


def test_a_sample_with_unknown_parts_is_named():
    sample = {"image": make_image(16, 24), "messages": [
        *user({"type": "audio"}), {"role": "assistant", "content": "a ball"},
    ]}  # fmt: skip
    with pytest.raises(ValueError, match="row 3, column `messages`.*'audio'"):
        read_sample(sample, where="row 3")


# ---- labels made of `input_ids` ----


@pytest.mark.parametrize("given", ["input_ids", "inputs_embeds", "shift_labels"])
@pytest.mark.parametrize("junk", [None, 5], ids=["placeholders", "other ids"])
def test_labels_at_image_placeholders_are_ignored(processor, given, junk):
    model = make_model(processor)
    chat = [
        *user({"type": "image", "image": make_image(20, 30)}, {"type": "text", "text": "what?"}),
        {"role": "assistant", "content": "a red ball"},
    ]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    input_ids = inputs["input_ids"]
    is_image = input_ids == processor.image_token_id
    copied = input_ids if junk is None else input_ids.masked_fill(is_image, junk)
    with torch.no_grad():
        expected = model(**inputs, labels=input_ids.masked_fill(is_image, -100)).loss
        arguments = {**inputs, "labels": copied}
        if given == "inputs_embeds":
            arguments["inputs_embeds"] = model.get_input_embeddings()(arguments.pop("input_ids"))
        if given == "shift_labels":
            arguments["shift_labels"] = torch.nn.functional.pad(copied[:, 1:], (0, 1), value=-100)
        torch.testing.assert_close(model(**arguments).loss, expected, rtol=0, atol=0)


def test_embeddings_that_hold_the_image_already_have_placeholders_by_their_label(processor):
    model = make_model(processor)
    chat = [*user({"type": "image", "image": make_image(20, 30)}), {"role": "assistant", "content": "a red ball"}]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    input_ids = inputs["input_ids"]
    is_image = input_ids == processor.image_token_id
    with torch.no_grad():
        features = torch.cat(model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output)
        embeds = model.get_input_embeddings()(input_ids).masked_scatter(is_image[..., None], features)
        expected = model(**inputs, labels=input_ids.masked_fill(is_image, -100)).loss
        torch.testing.assert_close(model(inputs_embeds=embeds, labels=input_ids).loss, expected)
