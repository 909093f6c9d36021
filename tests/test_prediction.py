"""predict_dense, encode_image and query."""

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from densemllm import DenseMLLMImageProcessor, DenseMLLMProcessor, DensePrediction
from densemllm.answers_densemllm import decode_rle
from densemllm.crops_densemllm import crop_box
from densemllm.decoding_densemllm import class_probabilities, resize_map
from densemllm.refinement_densemllm import refine_crf
from tiny import (
    NUM_DEPTH_BINS,
    answer_with,
    assert_maps_agree,
    make_image,
    make_model,
    make_processor,
    make_tokenizer,
    peak_bytes,
)


LABELS = ["cat", "red ball", "sky", "table"]


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module", params=["causal", "bidirectional"])
def model(processor, request):
    model = make_model(processor, vision_attention=request.param)
    model.get_processor(processor)
    return model


@pytest.fixture(scope="module")
def causal(processor):
    model = make_model(processor)
    model.get_processor(processor)
    return model


def full_vision_logits(model, processor, image, prompt=""):
    """Logits of the vision tokens by an ordinary forward pass over the chat prompt, `[vocabulary, height, width]`."""
    content = ([{"type": "text", "text": prompt}] if prompt else []) + [{"type": "image"}]
    content += [{"type": "text", "text": "a question that must not matter"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[image], text=[text], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[inputs["input_ids"] == processor.image_token_id]
    _, height, width = inputs["image_grid_thw"][0].tolist()
    return logits.T.unflatten(1, (height // 2, width // 2))


def reference_scores(logits, ids):
    return torch.stack([logits[name_ids].mean(0) for name_ids in ids])


def assert_same(a: DensePrediction, b: DensePrediction):
    for field in ("segmentation", "predicted_depth", "mask", "scores"):
        one, other = getattr(a, field), getattr(b, field)
        assert (one is None) == (other is None)
        if isinstance(one, dict):
            for name in one:
                torch.testing.assert_close(one[name], other[name], atol=1e-4, rtol=1e-4)
        elif field == "scores" and one is not None:
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        elif one is not None:
            assert_maps_agree(one, other)


# ---- what is computed ----


def test_segmentation_is_the_method_over_full_logits(model, processor):
    image = make_image(30, 50)
    prediction = model.predict_dense(image, labels=LABELS, return_logits=True)
    scores = reference_scores(full_vision_logits(model, processor, image), processor.label_token_ids(LABELS))
    torch.testing.assert_close(prediction.logits, scores, atol=1e-4, rtol=1e-4)
    chances = (scores / 0.2).softmax(0)
    resized = F.interpolate(chances[None], size=(30, 50), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(prediction.scores, resized.amax(0), atol=1e-4, rtol=1e-4)
    assert prediction.segmentation.dtype == torch.int64
    assert_maps_agree(prediction.segmentation, resized.argmax(0))


def test_depth_is_the_method_over_full_logits(model, processor):
    image = make_image(32, 48)
    prediction = model.predict_dense(image, task="depth", return_logits=True)
    logits = full_vision_logits(model, processor, image)[processor.depth_token_ids]
    torch.testing.assert_close(prediction.logits, logits, atol=1e-4, rtol=1e-4)
    bins = F.interpolate(logits[None], scale_factor=2, mode="bilinear", align_corners=False)[0].argmax(0)
    metres = (bins + 0.5) * 8.0 / NUM_DEPTH_BINS
    expected = F.interpolate(metres[None, None], size=(32, 48), mode="bilinear", align_corners=False)[0, 0]
    assert prediction.predicted_depth.dtype == torch.float32
    assert_maps_agree(prediction.predicted_depth, expected)


def test_background_is_minus_one_and_others_has_its_own_value(causal):
    image = make_image(30, 50)
    plain = causal.predict_dense(image, labels=LABELS, background=True)
    named = causal.predict_dense(image, labels=["<OTHERS>", *LABELS])
    assert (plain.segmentation == -1).any() and (plain.segmentation >= 0).any()
    assert torch.equal(plain.segmentation + 1, named.segmentation)
    assert all(segment["label"] in LABELS for segment in plain.segments_info)


def test_labels_of_a_dict_keep_their_ids(causal):
    image = make_image(30, 50)
    by_position = causal.predict_dense(image, labels=LABELS)
    by_id = causal.predict_dense(image, labels={7: "cat", 40: "red ball", 3: "sky", 0: "table"})
    ids = torch.tensor([7, 40, 3, 0])
    assert torch.equal(by_id.segmentation, ids[by_position.segmentation])
    assert by_id.labels == {7: "cat", 40: "red ball", 3: "sky", 0: "table"}
    assert {segment["id"] for segment in by_id.segments_info} == set(by_id.segmentation.unique().tolist())


def test_segments_info_counts_the_pixels(causal):
    prediction = causal.predict_dense(make_image(30, 50), labels=LABELS)
    assert sum(segment["area"] for segment in prediction.segments_info) == 30 * 50
    for segment in prediction.segments_info:
        own = prediction.segmentation == segment["id"]
        assert segment["area"] == int(own.sum()) and segment["label"] == LABELS[segment["label_id"]]
        assert segment["score"] == pytest.approx(float(prediction.scores[own].double().mean()), abs=1e-5)


def test_threshold_leaves_others(causal):
    options = {"labels": [*LABELS, "<OTHERS>"]}
    plain = causal.predict_dense(make_image(30, 50), **options)
    strict = causal.predict_dense(make_image(30, 50), threshold=0.99, **options)
    others = plain.segmentation == len(LABELS)
    assert others.any() and (strict.segmentation[others] == len(LABELS)).all()
    assert (strict.segmentation[~others & (plain.scores < 0.99)] == -1).all()


def test_threshold_turns_uncertain_pixels_into_minus_one(causal):
    plain = causal.predict_dense(make_image(30, 50), labels=LABELS)
    strict = causal.predict_dense(make_image(30, 50), labels=LABELS, threshold=0.6)
    assert torch.equal(strict.segmentation, plain.segmentation.masked_fill(plain.scores < 0.6, -1))
    assert 0 < int((strict.segmentation == -1).sum()) < 30 * 50


def test_known_camera_reads_its_prompt_before_the_image(causal, processor):
    image = make_image(32, 48)
    prediction = causal.predict_dense(image, task="depth", depth_range="camera", return_logits=True)
    logits = full_vision_logits(causal, processor, image, prompt="depth of the camera data")
    torch.testing.assert_close(prediction.logits, logits[processor.depth_token_ids], atol=1e-4, rtol=1e-4)
    assert float(prediction.predicted_depth.max()) <= 4.0


def test_focal_length_scales_the_image_and_corrects_the_rest(causal):
    image = make_image(32, 48)
    doubled = causal.predict_dense(image, task="depth", depth_range="road", focal_length=50.0)
    by_hand = causal.predict_dense(image, task="depth", depth_range="road", scale=2.0)
    torch.testing.assert_close(doubled.predicted_depth, by_hand.predicted_depth)  # 100 px is the range's own
    options = {"task": "segmentation", "labels": LABELS, "return_logits": True, "depth_range": "road"}
    doubled, by_hand = (
        causal.predict_dense(image, **options, **own) for own in ({"focal_length": 50.0}, {"scale": 2.0})
    )
    torch.testing.assert_close(doubled.logits, by_hand.logits)
    capped = causal.predict_dense(image, task="depth", depth_range="road", focal_length=50.0, max_num_patches=96)
    same = causal.predict_dense(image, task="depth", depth_range="road", max_num_patches=96)
    torch.testing.assert_close(capped.predicted_depth, same.predicted_depth * 0.5)  # seen at 50 px, not at 100


def test_focal_length_scales_what_is_asked_in_words(causal, processor, monkeypatch):
    image, camera = make_image(32, 48), {"focal_length": 50.0, "depth_range": "road"}
    encoded = causal.encode_image(image, scale=2.0)
    assert causal.encode_image(image, **camera).grid == encoded.grid
    words = causal.query(encoded, "what is it?", max_new_tokens=6)
    assert causal.query(image, "what is it?", max_new_tokens=6, **camera) == words
    results = [causal.predict(entry, "counting", "cups", max_new_tokens=6, **own) for entry, own in
               ((image, camera), (encoded, {}))]  # fmt: skip
    assert results[0]["text"] == results[1]["text"]
    monkeypatch.setattr(processor.image_processor, "scale", 0.5)  # on top of it
    assert causal.encode_image(image, processor=processor, **camera).grid == causal.encode_image(image, scale=1.0).grid
    with pytest.raises(ValueError, match="`focal_length`"):
        causal.query(image, "what is it?", focal_length=0.0)


@settings(max_examples=8, deadline=None)
@given(focal_lengths=st.lists(st.none() | st.floats(40, 160), min_size=1, max_size=4), batch_size=st.integers(1, 3))
def test_each_image_can_have_its_own_focal_length(causal, focal_lengths, batch_size):
    images = [make_image(24 + 8 * place, 40) for place in range(len(focal_lengths))]
    options = {"task": ("segmentation", "depth"), "labels": LABELS, "depth_range": "road"}
    together = causal.predict_dense(images, focal_length=focal_lengths, batch_size=batch_size, **options)
    grids = [own.grid for own in causal.encode_image(images, focal_length=focal_lengths, depth_range="road")]
    for image, own, prediction, grid in zip(images, focal_lengths, together, grids, strict=True):
        alone = causal.predict_dense(image, focal_length=own, **options)
        assert_same(prediction, alone)
        assert grid == causal.encode_image(image, focal_length=own, depth_range="road").grid


# ---- once for many ----


def test_two_tasks_in_one_call_equal_two_calls(model):
    image = make_image(30, 50)
    both = model.predict_dense(image, task=("segmentation", "depth"), labels=LABELS, return_logits=True)
    segmentation = model.predict_dense(image, task="segmentation", labels=LABELS)
    depth = model.predict_dense(image, task="depth")
    assert torch.equal(both.segmentation, segmentation.segmentation)
    assert torch.equal(both.predicted_depth, depth.predicted_depth)
    assert torch.equal(both.scores["depth"], depth.scores)
    assert set(both.logits) == {"segmentation", "depth"}


def test_two_tasks_share_one_pass_where_the_prompt_allows(causal, monkeypatch):
    passes = []
    tower = type(causal.model.vision_tower)
    forward = tower.forward
    monkeypatch.setattr(tower, "forward", lambda self, *a, **k: passes.append(1) or forward(self, *a, **k))
    causal.predict_dense(make_image(30, 50), task=("segmentation", "depth"), labels=LABELS)
    assert len(passes) == 1
    causal.predict_dense(make_image(30, 50), task=("segmentation", "depth"), labels=LABELS, depth_range="camera")
    assert len(passes) == 2  # the text before the image differs, which the tower does not see


def test_expressions_of_an_image_share_the_tower_and_a_pass(causal, monkeypatch):
    """Where a processor has a `referring_prompt`, the expression stands before the image."""
    processor = make_processor(referring_prompt="Find {text}.")
    image, texts = make_image(30, 50), ["the cup", "a plate on the table", "it"]
    single = [causal.predict_dense(image, "referring", text=text, processor=processor) for text in texts]
    passes, reads = [], []
    tower, language_model = type(causal.model.vision_tower), type(causal.model.language_model)
    for owner, seen in ((tower, passes), (language_model, reads)):
        forward = owner.forward
        monkeypatch.setattr(
            owner,
            "forward",
            lambda self, *a, seen=seen, forward=forward, **k: seen.append(1) or forward(self, *a, **k),
        )
    together = causal.predict_dense(image, "referring", text=texts, processor=processor)
    assert len(passes) == 1 and len(reads) == 2  # the first, and the others at once
    for one, other in zip(together, single, strict=True):
        assert torch.allclose(one.scores, other.scores, atol=1e-4)
    encoded = causal.encode_image(image, processor=processor)
    for one, other in zip(
        causal.predict_dense(encoded, "referring", text=texts, processor=processor), single, strict=True
    ):
        assert torch.allclose(one.scores, other.scores, atol=1e-4)
    assert len(passes) == 2


@pytest.mark.parametrize("depth_range", ["room", "camera"])
def test_an_encoded_image_gives_what_a_fresh_call_gives(model, depth_range):
    image = make_image(30, 50)
    encoded = model.encode_image(image)
    for labels in (LABELS, ["cup", "plate"]):
        assert_same(model.predict_dense(encoded, labels=labels), model.predict_dense(image, labels=labels))
    options = {"task": "depth", "depth_range": depth_range}
    assert_same(model.predict_dense(encoded, **options), model.predict_dense(image, **options))
    assert model.query(encoded, "what is it?", max_new_tokens=6) == model.query(image, "what is it?", max_new_tokens=6)
    with pytest.raises(ValueError, match=r"\['scale'\] can't be given for images that are encoded"):
        model.predict_dense(encoded, labels=LABELS, scale=2.0)
    # Asking has not changed it.
    assert_same(model.predict_dense(encoded, labels=LABELS), model.predict_dense(image, labels=LABELS))


def test_a_second_query_runs_neither_tower_nor_language_model(causal, monkeypatch):
    encoded = causal.encode_image(make_image(30, 50))

    def refuse(*args, **kwargs):
        raise AssertionError("the image was read again")

    monkeypatch.setattr(type(causal.model), "forward", refuse)
    monkeypatch.setattr(type(causal.model.vision_tower), "forward", refuse)
    monkeypatch.setattr(type(causal.lm_head), "forward", refuse)  # full-vocabulary logits
    assert causal.predict_dense(encoded, task=("segmentation", "depth"), labels=LABELS).segmentation is not None


def test_query_equals_generate(model, processor):
    image = make_image(30, 50)
    content = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[image], text=[text], return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert model.query(image, "what is it?", max_new_tokens=8) == processor.post_process_image_text_to_text(ids)[0]


def test_a_batch_of_different_images_equals_single_calls(model):
    sizes = [(40, 56), (38, 57), (16, 90), (64, 8), (41, 55), (24, 24), (8, 8), (40, 56)]
    images = [make_image(*size, seed) for seed, size in enumerate(sizes)]
    options = {"task": ("segmentation", "depth"), "labels": LABELS, "return_logits": True}
    together = model.predict_dense(images, **options)
    for image, size, prediction in zip(images, sizes, together, strict=True):
        assert prediction.segmentation.shape == prediction.predicted_depth.shape == size
        alone = model.predict_dense(image, **options)
        for name in alone.logits:
            torch.testing.assert_close(prediction.logits[name], alone.logits[name], atol=1e-4, rtol=1e-4)
    for prediction, other in zip(together, model.predict_dense(images, batch_size=3, **options), strict=True):
        assert_same(prediction, other)


def test_encoded_and_fresh_images_mix_in_one_list(causal):
    images = [make_image(30, 50), make_image(24, 24, 1), make_image(16, 40, 2)]
    mixed = [images[0], causal.encode_image(images[1]), images[2]]
    for a, b in zip(
        causal.predict_dense(mixed, labels=LABELS), causal.predict_dense(images, labels=LABELS), strict=True
    ):
        assert_same(a, b)


# ---- classes and boxes that the model supplies ----


def test_the_model_names_the_classes_itself(causal, monkeypatch):
    image = make_image(30, 50)
    answer = (
        "The target categories include <ref>Sky</ref><ref>red  ball</ref><ref>sky</ref><ref></ref>, numbered <ref>c"
    )
    answer_with(monkeypatch, causal, answer)
    prediction = causal.predict_dense(image)
    assert prediction.labels == {0: "sky", 1: "red ball"} and prediction.text == answer
    assert_same(prediction, causal.predict_dense(image, labels=["sky", "red ball"]))


def test_no_named_class_is_an_empty_segmentation(causal, monkeypatch):
    answer_with(monkeypatch, causal, "I see nothing")
    prediction = causal.predict_dense(make_image(30, 50), return_logits=True)
    assert (prediction.segmentation == -1).all() and prediction.segments_info == [] and prediction.labels == {}
    assert prediction.logits.shape[0] == 0


def test_referring_reads_foreground_in_the_crop_and_pastes_it(causal, processor):
    image, box = make_image(60, 80), (20.0, 10.0, 50.0, 40.0)
    prediction = causal.predict_dense(image, task="referring", text="the red ball", box=box, return_logits=True)
    assert prediction.mask.shape == (60, 80) and prediction.mask.dtype == torch.bool and prediction.box == box
    outside = prediction.mask.clone()
    outside[7:43, 17:53] = False  # the box with a margin of a tenth on each side
    assert not outside.any()
    crop, place = crop_box(image, box, processor.referring_crop_size)
    assert place == (17, 7, 53, 43) and crop.size == (32, 32)
    logits = full_vision_logits(causal, processor, crop)[processor.foreground_token_ids]
    torch.testing.assert_close(prediction.logits, logits, atol=1e-4, rtol=1e-4)
    chances = F.interpolate(logits.softmax(0)[None], size=(32, 32), mode="bilinear", align_corners=False)[0]
    expected = F.interpolate(chances[1:2][None], size=(36, 36), mode="nearest-exact")[0, 0]
    torch.testing.assert_close(prediction.scores[7:43, 17:53], expected, atol=1e-4, rtol=1e-4)


def test_crop_has_the_box_drawn_and_its_short_edge_resized():
    crop, place = crop_box(PIL.Image.new("RGB", (100, 100)), (10, 20, 50, 40), short_edge=48)
    assert place == (6, 18, 54, 42) and crop.size == (96, 48)
    pixels = np.asarray(crop)
    assert pixels[:, :, 0].max() > 200 and pixels[:, :, 1].max() == 0  # a red line, nothing else
    thin, _ = crop_box(PIL.Image.new("RGB", (640, 480)), (0, 200, 640, 201), short_edge=48)
    assert thin.width * thin.height == pytest.approx(16 * 48**2, rel=0.05)


def test_referring_box_comes_from_the_answer_in_resized_pixels(causal, monkeypatch):
    image = make_image(30, 50)  # becomes 32 x 56
    answer_with(monkeypatch, causal, "<box><x_14><y_8><x_28><y_24></box>")
    prediction = causal.predict_dense(image, task="referring", text="the red ball")
    assert prediction.box == pytest.approx((14 * 50 / 56, 8 * 30 / 32, 28 * 50 / 56, 24 * 30 / 32))
    assert_same(prediction, causal.predict_dense(image, task="referring", box=prediction.box))


@pytest.mark.parametrize("answer", ["no idea", "<box><x_1><y_2>", "<box><x_9><y_9><x_9><y_20></box>"])
def test_an_answer_without_a_box_is_an_empty_mask(causal, monkeypatch, answer):
    answer_with(monkeypatch, causal, answer)
    prediction = causal.predict_dense(make_image(30, 50), task="referring", text="the red ball")
    assert prediction.box is None and not prediction.mask.any() and prediction.text == answer


def test_referring_in_one_pass_reads_foreground_after_the_expression(causal):
    processor = make_processor(referring_prompt="find {text}")
    images, texts = [make_image(60, 80), make_image(50, 40, 1)], ["the red ball", "a cat"]
    found = causal.predict_dense(images, task="referring", text=texts, processor=processor, return_logits=True)
    for image, text, prediction in zip(images, texts, found, strict=True):
        encoded = causal.encode_image(image, prompt=f"find {text}", processor=processor)
        logits = causal.label_logits(encoded.hidden_states, [[k] for k in processor.foreground_token_ids])
        torch.testing.assert_close(prediction.logits, logits.T.unflatten(1, encoded.grid))
        assert prediction.box is None and prediction.mask.shape == (image.height, image.width)
        chances = prediction.logits.softmax(0)[None]
        expected = F.interpolate(chances, size=prediction.mask.shape, mode="bilinear", align_corners=False)[0]
        assert torch.equal(prediction.mask, expected[1] > expected[0])
    assert not torch.allclose(found[0].logits, causal.predict_dense(
        images[0], task="referring", text="the blue cup", processor=processor, return_logits=True
    ).logits)  # fmt: skip
    # A box needs no words: the crop is read as ever.
    box = (20.0, 10.0, 50.0, 40.0)
    assert_same(*(causal.predict_dense(images[0], task="referring", box=box, processor=own)
                  for own in (processor, make_processor())))  # fmt: skip


def test_referring_in_a_batch_equals_single_calls(causal):
    images = [make_image(60, 80), make_image(50, 40, 1)]
    boxes = [(20, 10, 50, 40), (0, 0, 40, 20)]
    together = causal.predict_dense(images, task="referring", box=boxes)
    for image, box, prediction in zip(images, boxes, together, strict=True):
        assert_same(prediction, causal.predict_dense(image, task="referring", box=box))


# ---- images of every kind ----


def test_the_same_picture_in_every_form(causal, tmp_path):
    image = make_image(30, 50)
    image.save(tmp_path / "image.png")
    pixels = np.asarray(image)
    forms = [
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        pixels,
        torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        torch.from_numpy(pixels / 255).permute(2, 0, 1),
        image.convert("RGBA"),
    ]
    expected = causal.predict_dense(image, labels=LABELS)
    for form, prediction in zip(forms, causal.predict_dense(forms, labels=LABELS), strict=True):
        assert_same(prediction, expected), form


def test_exif_orientation_is_honoured(causal, tmp_path):
    image = make_image(30, 50)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    prediction = causal.predict_dense(tmp_path / "turned.png", labels=LABELS)
    assert prediction.segmentation.shape == (50, 30)
    assert_same(prediction, causal.predict_dense(image.rotate(-90, expand=True), labels=LABELS))


@pytest.mark.parametrize("size", [(1, 1), (1, 77), (77, 1), (1500, 3)])
def test_images_of_extreme_shapes(causal, size):
    prediction = causal.predict_dense(make_image(*size), task=("segmentation", "depth"), labels=LABELS)
    assert prediction.segmentation.shape == prediction.predicted_depth.shape == size


def test_target_sizes(causal):
    images = [make_image(30, 50), make_image(24, 24)]
    for prediction in causal.predict_dense(images, labels=LABELS, target_sizes=(11, 13)):
        assert prediction.segmentation.shape == (11, 13)
    sizes = [(5, 6), (70, 80)]
    predictions = causal.predict_dense(images, task="depth", target_sizes=sizes)
    assert [tuple(p.predicted_depth.shape) for p in predictions] == sizes
    assert causal.predict_dense([], labels=LABELS) == []


# ---- pictures of the result ----


def test_pictures_of_a_prediction(causal):
    image = make_image(30, 50)
    prediction = causal.predict_dense(image, task=("segmentation", "depth"), labels=LABELS, background=True)
    colors = np.asarray(prediction.to_pil())
    assert colors.shape == (30, 50, 3)
    assert (colors[prediction.segmentation.numpy() == -1] == 0).all()
    depth = prediction.predicted_depth.numpy()
    picture = np.asarray(prediction.to_pil("predicted_depth")).astype(int).sum(-1)
    assert picture[depth == depth.min()].min() > picture[depth == depth.max()].max()  # near is bright
    laid = np.asarray(prediction.overlay(image, alpha=1.0))
    unlabelled = prediction.segmentation.numpy() == -1
    assert (laid[unlabelled] == np.asarray(image)[unlabelled]).all()
    assert (laid[~unlabelled] == colors[~unlabelled]).all()
    turned = image.transpose(PIL.Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # upright again, as it was seen
    for scene in (turned, np.asarray(image)):
        np.testing.assert_array_equal(np.asarray(prediction.overlay(scene, alpha=0.5)),
                                      np.asarray(prediction.overlay(image, alpha=0.5)))  # fmt: skip
    found = causal.predict_dense(image, task="referring", box=(5, 5, 40, 25))
    black = (np.asarray(found.to_pil()) == 0).all(axis=-1)
    np.testing.assert_array_equal(black, ~found.mask.numpy())
    with pytest.raises(ValueError, match="`field` must be one of"):
        prediction.to_pil("mask")
    with pytest.raises(ValueError, match="`alpha`"):
        prediction.overlay(image, alpha=2)


# ---- bad input ----


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "`task` must be one of", {"task": "detection"}),
        (ValueError, "`task` must name", {"task": ()}),
        (ValueError, "`task` must name", {"task": ("depth", "depth")}),
        (ValueError, "has to be alone", {"task": ("depth", "referring"), "text": "x"}),
        (ValueError, "`labels` is empty", {"labels": []}),
        (ValueError, "'cat' twice", {"labels": ["cat", "Cat "]}),
        (ValueError, "empty name", {"labels": ["cat", " "]}),
        (TypeError, "`labels` must be a list", {"labels": "cat"}),
        (ValueError, "`depth_range` must be one of", {"task": "depth", "depth_range": "moon"}),
        (ValueError, "`focal_length`", {"task": "depth", "focal_length": -1.0}),
        (ValueError, "`focal_length` must be one, or one an image", {"task": "depth", "focal_length": [50.0, 60.0]}),
        (ValueError, "`threshold`", {"labels": LABELS, "threshold": 2}),
        (ValueError, "`target_sizes`", {"labels": LABELS, "target_sizes": [(0, 3)]}),
        (ValueError, "`batch_size`", {"labels": LABELS, "batch_size": 0}),
        (ValueError, "`text` must be an expression", {"task": "referring"}),
        (ValueError, "`text` must be an expression", {"task": "referring", "text": " "}),
        (ValueError, "`box` must", {"task": "referring", "box": (5, 5, 5, 9)}),
        (ValueError, "`box` must", {"task": "referring", "box": (100, 100, 200, 200)}),
        (ValueError, "one an image", {"task": "referring", "text": ["a", "b"], "box": [(0, 0, 9, 9)] * 3}),
        (ValueError, "has to be alone", {"task": ("depth", "open_set"), "labels": ["cat"]}),
        (ValueError, "`labels` is empty", {"task": "open_set"}),
        (ValueError, "`refine` must", {"task": "segmentation", "labels": ["cat"], "refine": "median"}),
        (ValueError, "`refine` must", {"task": "depth", "refine": "crf"}),
        (ValueError, "`return_logits`", {"task": "open_set", "labels": ["cat"], "return_logits": True}),
        (ValueError, "`depth_range` must be one of", {"labels": LABELS, "depth_range": "moon"}),
        (Exception, "max_num_patches", {"labels": LABELS, "max_num_patches": 1}),
    ],
)
def test_bad_arguments_are_named(causal, error, message, arguments):
    with pytest.raises(error, match=message):
        causal.predict_dense(make_image(30, 50), **arguments)


@pytest.mark.parametrize(
    ("error", "image"),
    [
        (TypeError, 3),
        (ValueError, "no/such/file.png"),
        (ValueError, np.zeros((0, 5, 3), dtype=np.uint8)),
        (ValueError, np.full((8, 8, 3), np.nan)),
        (ValueError, np.full((8, 8, 3), 200.0)),
        (ValueError, np.zeros((8, 8, 2), dtype=np.uint8)),
        (ValueError, torch.zeros(8, 8, 3, dtype=torch.uint8)),
        (ValueError, PIL.Image.new("RGB", (0, 0))),
    ],
)
def test_bad_images_are_refused(causal, error, image):
    with pytest.raises(error, match="`images`"):
        causal.predict_dense(image, labels=LABELS)


def test_a_truncated_file_is_refused_by_its_name(causal, tmp_path):
    make_image(64, 64).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "broken.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="broken.jpg"):
        causal.predict_dense(tmp_path / "broken.jpg", labels=LABELS)


def test_a_processor_of_another_model_is_refused(causal):
    image = make_image(30, 50)
    for other, name in (
        (make_processor(num_depth_bins=8), "num_depth_bins"),
        (make_processor(depth_ranges={"room": {"mapping": "linear", "min_depth": 0, "max_depth": 9}}), "depth_ranges"),
    ):
        with pytest.raises(ValueError, match=f"does not belong to this model: its `{name}`"):
            causal.predict_dense(image, labels=LABELS, processor=other)


def test_a_processor_given_for_one_call_is_that_of_this_call(causal, processor):
    other = make_processor()
    other.referring_crop_size = 64
    causal.predict_dense(make_image(16, 16), labels=LABELS, processor=other)
    assert causal.get_processor() is processor


def test_ranges_by_default_must_agree(processor):
    model = make_model(processor)
    model.config.default_depth_range = "road"
    with pytest.raises(ValueError, match="its `default_depth_range` is room, not road"):
        model.predict_dense(make_image(16, 16), task="depth", processor=processor)


def test_numbers_and_boxes_of_any_kind(causal):
    image = make_image(30, 50)
    expected = causal.predict_dense(image, labels=LABELS, scale=2.0)
    assert_same(causal.predict_dense(image, labels=LABELS, scale=2), expected)
    assert_same(causal.predict_dense(image, labels=LABELS, scale=None), causal.predict_dense(image, labels=LABELS))
    road = {"task": "depth", "depth_range": "road"}
    expected = causal.predict_dense(image, focal_length=80.0, **road)
    for value in (80, np.float32(80), torch.tensor(80.0), [80], np.array([80])):
        assert_same(causal.predict_dense(image, focal_length=value, **road), expected)
    expected = causal.predict_dense(image, task="referring", box=(5.0, 6.0, 30.0, 25.0))
    for box in (torch.tensor([5.0, 6, 30, 25]), np.array([5, 6, 30, 25]), tuple(np.array([5, 6, 30, 25]))):
        assert_same(causal.predict_dense(image, task="referring", box=box), expected)
    for boxes in (torch.tensor([[5.0, 6, 30, 25]] * 2), [np.array([5, 6, 30, 25])] * 2):
        for found in causal.predict_dense(image, task="referring", box=boxes):
            assert_same(found, expected)
    sizes = torch.tensor([[8, 9], [10, 11]])
    found = causal.predict_dense([image] * 2, labels=LABELS, target_sizes=sizes)
    assert [tuple(own.segmentation.shape) for own in found] == [(8, 9), (10, 11)]


def test_a_tokenizer_with_a_larger_vocabulary_is_refused(causal):
    other = make_processor()
    other.tokenizer.add_tokens(["zebra"])
    with pytest.raises(ValueError, match="the vocabulary has"):
        causal.predict_dense(make_image(30, 50), labels=["zebra"], processor=other)


def test_missing_depth_tokens_are_named(processor):
    image_processor = DenseMLLMImageProcessor(patch_size=4, merge_size=2)
    ranges = {"depth_ranges": processor.depth_ranges, "default_depth_range": "room"}
    bare = DenseMLLMProcessor(image_processor, make_tokenizer(num_depth_bins=0), num_depth_bins=16, **ranges)
    model = make_model(bare)
    with pytest.raises(ValueError, match="lacks the token '<custom_1>'"):
        model.predict_dense(make_image(30, 50), task="depth", processor=bare)


def test_a_model_without_a_checkpoint_needs_a_processor(processor):
    with pytest.raises(ValueError, match="`processor` is needed"):
        make_model(processor).predict_dense(make_image(30, 50), labels=LABELS)


def test_a_head_that_is_no_plain_linear_layer_is_asked_itself(processor):
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = make_model(processor)
    expected = model.predict_dense(make_image(30, 50), labels=LABELS, processor=processor, return_logits=True).logits
    model.lm_head.__class__ = Doubled
    doubled = model.predict_dense(make_image(30, 50), labels=LABELS, processor=processor, return_logits=True).logits
    torch.testing.assert_close(doubled, 2 * expected)


# ---- several objects, open sets, refinement ----


def test_several_boxes_of_one_image_are_read_together(causal):
    image, boxes = make_image(40, 48), [(2, 3, 20, 22), (10, 5, 40, 30), (0, 0, 48, 40)]
    together = causal.predict_dense(image, task="referring", box=boxes)
    assert len(together) == 3
    for prediction, box in zip(together, boxes, strict=True):
        assert_same(prediction, causal.predict_dense(image, task="referring", box=box))
    assert len(causal.predict_dense(image, task="referring", box=boxes, text=["a", "b", "c"])) == 3


def test_open_set_segments_what_it_detects(causal, monkeypatch):
    image = make_image(40, 48)
    answer = (
        "<ref>cat</ref><box><x_0><y_0><x_48><y_40></box><ref>unasked</ref><box><x_1><y_1><x_9><y_9></box>"
        "<ref>sky</ref><box><x_4><y_4><x_20><y_20></box><box><x_24><y_8><x_40><y_30></box>"
    )
    asked = []
    answer_with(monkeypatch, causal, answer, asked)
    prediction = causal.predict_dense(image, task="open_set", labels={7: "cat", 9: "Sky"})
    assert asked == ["Detect every objects that belongs to the following categories: cat,sky"]
    boxes = [(7, (0, 0, 48, 40)), (9, (4, 4, 20, 20)), (9, (24, 8, 40, 30))]
    masks = [(key, causal.predict_dense(image, task="referring", box=box).mask) for key, box in boxes]
    expected = torch.full((40, 48), -1)
    order = sorted(range(3), key=lambda index: -int(masks[index][1].sum()))
    for number, index in enumerate(order):
        expected[masks[index][1]] = number
    assert_maps_agree(prediction.segmentation, expected)  # crops in one batch, and one by one
    assert (expected >= 0).any()
    assert prediction.labels == {7: "cat", 9: "sky"} and prediction.text == answer
    for row in prediction.segments_info:
        assert row["label_id"] == masks[order[row["id"]]][0] and row["box"] == boxes[order[row["id"]]][1]
        assert row["area"] == int((prediction.segmentation == row["id"]).sum())
    nothing = causal.predict_dense(image, task="open_set", labels={7: "cat", 9: "sky"}, threshold=1.0)
    assert (nothing.segmentation == -1).all() and nothing.segments_info == []


def test_memory_of_an_open_set_does_not_grow_with_the_boxes(causal, monkeypatch):
    """But for the maps of the crops, which are as small as the model sees them."""
    image = make_image(400, 600)
    box = "<box><x_4><y_2><x_44><y_30></box>"
    peaks = []
    for count in (2, 24):
        answer = "<ref>cat</ref>" + box * count
        answer_with(monkeypatch, causal, answer)
        peaks.append(
            peak_bytes(lambda: causal.predict_dense(image, task="open_set", labels=["cat"], batch_size=1, scale=0.1))
        )
    assert peaks[1] < peaks[0] + 22 * 20_000 < peaks[0] + 2 * 400 * 600 * 4


def test_named_classes_end_where_the_mask_begins(causal, processor):
    """The released checkpoint goes on to write the mask in words: it is not waited for."""
    encoded = causal.encode_image(make_image(24, 32))
    free = causal.query(encoded, "what?", max_new_tokens=12)
    first = processor.tokenizer.tokenize(free)[2]
    stopped = causal.query(encoded, "what?", max_new_tokens=12, stop_at=first)
    assert free.startswith(stopped) and len(processor.tokenizer.tokenize(stopped)) <= 3


def test_others_in_the_named_classes_allow_a_background(causal, monkeypatch):
    image = make_image(24, 32)
    answer_with(monkeypatch, causal, "<ref>cat</ref><ref><OTHERS></ref><ref>sky</ref>")
    prediction = causal.predict_dense(image, task="segmentation")
    expected = causal.predict_dense(image, task="segmentation", labels=["cat", "sky"], background=True)
    assert torch.equal(prediction.segmentation, expected.segmentation)


@pytest.mark.parametrize("crf_options", [{}, {"bilateral_sigma": 4.0, "iterations": 2}])
@pytest.mark.parametrize("background", [False, True])
def test_crf_refines_the_class_probabilities(causal, processor, background, crf_options, monkeypatch):
    monkeypatch.setattr(causal.get_processor(), "crf_options", crf_options)
    image = make_image(24, 32)
    options = {"labels": LABELS, "background": background}
    plain = causal.predict_dense(image, return_logits=True, **options)
    refined = causal.predict_dense(image, refine="crf", **options)
    chances = torch.stack([resize_map(chance, (24, 32)) for chance in class_probabilities(plain.logits, background)])
    if background:
        chances = torch.cat([chances, torch.full((1, 24, 32), 0.5)])
    expected = refine_crf(chances / chances.sum(dim=0), image, **crf_options).argmax(dim=0)
    expected = expected.masked_fill(expected == len(LABELS), -1) if background else expected
    assert torch.equal(refined.segmentation, expected)
    assert refined.scores.min() >= 0 and refined.scores.max() <= 1


# ---- answers in words ----

ANSWERS = {
    "detection": "<ref>cat</ref><box><x_8><y_8><x_24><y_16></box>",
    "grounding": "<box><x_8><y_8><x_24><y_16></box>",
    "polygon": "The segmentation result is <ins><poly><x_8><y_8><x_24><y_8><x_24><y_16></poly></ins>.",
    "pose": "<person><box><x_8><y_8><x_24><y_16></box>" + "<kpt><x_8><y_8><v_1.0></kpt>" * 16 + "</person>",
    "counting": "<box><x_8><y_8><x_24><y_16></box>",
    "classification": "It is a cat.",
}


@pytest.mark.parametrize("task", list(ANSWERS))
def test_answers_become_objects_in_pixels_of_the_image(causal, monkeypatch, task):
    image = make_image(20, 30)  # the model sees 24 x 32
    answer_with(monkeypatch, causal, ANSWERS[task])
    result = causal.predict(image, task=task, text=["dog", "cat"])
    assert result["text"] == ANSWERS[task]
    box = torch.tensor([8 * 30 / 32, 8 * 20 / 24, 24 * 30 / 32, 16 * 20 / 24])
    if task == "classification":
        assert result["label"] == "cat"
    else:
        torch.testing.assert_close(result["boxes"][0], box)
    if task == "detection":
        assert result["labels"] == ["cat"]
    elif task == "counting":
        assert result["count"] == 1
    elif task == "pose":
        assert result["keypoints"].shape == (1, 16, 3)
    elif task == "polygon":
        assert result["masks"].shape == (1, 20, 30)
    assert len(causal.predict([image, image], task=task, text="cat")) == 2


def test_questions_of_answers_in_words(causal, processor, monkeypatch):
    asked = []
    answer_with(monkeypatch, causal, "", asked)
    causal.predict(make_image(16, 16), task="detection")
    causal.predict(make_image(16, 16), task="detection", text=["a", "b"])
    causal.predict(make_image(16, 16), task="grounding", text="the cat", prompt="Where is {text}?")
    assert asked == [
        "Detect all objects in the provided image.",
        "Detect every objects that belongs to the following categories: a,b",
        "Where is the cat?",
    ]
    for task, text, message in (
        ("tracking", None, "`task` must be one of"),
        ("grounding", None, "`text` is needed"),
        ("counting", ["cat", ""], "`text` must be"),
    ):
        with pytest.raises(ValueError, match=message):
            causal.predict(make_image(16, 16), task=task, text=text)


def test_masks_as_run_lengths(causal):
    mask = causal.predict_dense(make_image(20, 30), task="referring", box=(2, 2, 25, 18))
    np.testing.assert_array_equal(decode_rle(mask.to_rle()), mask.mask.numpy())
    prediction = causal.predict_dense(make_image(20, 30), labels=LABELS)
    rows = prediction.to_rle()
    assert sum(row["area"] for row in rows) == 20 * 30
    for row in rows:
        own = decode_rle(row["segmentation"])
        np.testing.assert_array_equal(own, prediction.segmentation.numpy() == row["category_id"])
    with pytest.raises(ValueError, match="no mask and no segmentation"):
        causal.predict_dense(make_image(20, 30), task="depth").to_rle()
