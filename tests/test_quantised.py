"""Models whose weights are quantised, or offloaded until their layer is called."""

import accelerate
import pytest
import torch
from packaging.version import Version
from torch import nn
from transformers import BitsAndBytesConfig, QuantoConfig, TorchAoConfig

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMForDepthEstimation
from tiny import ID2LABEL, LLAMA, YOUTU, make_image, make_model, make_processor


# bitsandbytes packs 4-bit weights on a CPU in blocks of 64 by 32.
WIDE_TEXT = {
    **YOUTU, "hidden_size": 64, "intermediate_size": 64, "q_lora_rank": 64, "kv_lora_rank": 64, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32, "v_head_dim": 32,
}  # fmt: skip
WIDE_TOWER = {"hidden_size": 64, "intermediate_size": 64, "patch_size": 8, "window_size": 32}
IMAGES = [make_image(64, 80), make_image(48, 48, 1)]


@pytest.fixture(scope="module")
def processor():
    processor = make_processor()
    processor.image_processor.patch_size = 8
    return processor


@pytest.fixture(scope="module", params=["rope", "table"])
def checkpoint(processor, request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    vision = {**WIDE_TOWER, "position_embedding": request.param}
    model = make_model(processor, text=WIDE_TEXT, vision=vision, id2label=ID2LABEL)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def predict(model):
    options = {"labels": ID2LABEL, "depth_range": "room", "return_logits": True}
    return model.predict_dense(IMAGES, ("segmentation", "depth"), **options)


def torchao(folder, **kwargs):
    quantization = pytest.importorskip("torchao.quantization")
    config = TorchAoConfig(quantization.Int8DynamicActivationInt8WeightConfig(), **kwargs)
    return DenseMLLMForConditionalGeneration.from_pretrained(folder, quantization_config=config)


def torchao_in_place(folder):
    quantization = pytest.importorskip("torchao.quantization")
    model = DenseMLLMForConditionalGeneration.from_pretrained(folder)
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    return model


def quanto(folder):
    pytest.importorskip("optimum.quanto")
    config = QuantoConfig(weights="int8")
    return DenseMLLMForConditionalGeneration.from_pretrained(folder, quantization_config=config)


def quanto_in_place(folder):
    quanto = pytest.importorskip("optimum.quanto")
    model = DenseMLLMForConditionalGeneration.from_pretrained(folder)
    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)
    return model


def bitsandbytes(folder, dtype="auto", **kwargs):
    pytest.importorskip("bitsandbytes")
    config = BitsAndBytesConfig(**kwargs)
    return DenseMLLMForConditionalGeneration.from_pretrained(folder, quantization_config=config, dtype=dtype)


def dynamic(folder):
    model = DenseMLLMForConditionalGeneration.from_pretrained(folder)
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


# How far logits may be off, as a share of the largest.
QUANTISED = {
    "dynamic": (dynamic, 0.1),
    "torchao": (torchao, 0.1),
    "torchao-in-place": (torchao_in_place, 0.1),
    "quanto": (quanto, 0.1),
    "quanto-in-place": (quanto_in_place, 0.1),
    "bitsandbytes-4bit": (lambda folder: bitsandbytes(folder, load_in_4bit=True), 0.5),
    "bitsandbytes-4bit-bfloat16": (
        lambda folder: bitsandbytes(
            folder, torch.bfloat16, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        ),
        0.5,
    ),
    # The CPU's 8-bit kernel takes no batches, so not the language model.
    "bitsandbytes-8bit": (
        lambda folder: bitsandbytes(
            folder,
            load_in_8bit=True,
            llm_int8_skip_modules=["model.language_model", "lm_head"],
            llm_int8_threshold=0.0,
        ),
        0.1,
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_models_predict(checkpoint, kind):
    make, tolerance = QUANTISED[kind]
    whole = predict(DenseMLLMForConditionalGeneration.from_pretrained(checkpoint))
    model = make(checkpoint).eval()
    for own, expected in zip(predict(model), whole, strict=True):
        for task, logits in expected.logits.items():
            assert own.logits[task].dtype == torch.float32
            assert (own.logits[task] - logits).abs().max() < tolerance * logits.abs().max()
        assert own.predicted_depth.shape == expected.predicted_depth.shape
    encoded = model.encode_image(IMAGES[0])
    logits = model.get_output_embeddings()(encoded.hidden_states)[:, [3, 5]].float()
    torch.testing.assert_close(model.label_logits(encoded.hidden_states, [[3], [5]]), logits, atol=0.1, rtol=0.02)
    assert isinstance(model.query(encoded, "what is there?", max_new_tokens=3), str)


def test_what_must_stay_whole_is_not_quantised(tmp_path, processor):
    """By default: the output embedding, whose columns are read one by one, and what it is tied to."""
    for text, tied in ((WIDE_TEXT, True), ({**LLAMA, "hidden_size": 64, "intermediate_size": 64}, False)):
        folder = tmp_path / str(tied)
        make_model(processor, text=text, vision=WIDE_TOWER, tie_word_embeddings=tied).save_pretrained(folder)
        model = bitsandbytes(folder, load_in_4bit=True)
        assert type(model.lm_head) is nn.Linear and model.lm_head.weight.dtype == torch.float32
        assert type(model.model.vision_tower.embeddings.patch_embedding) is not nn.Linear


def cpu_offload(folder, model_class, other):
    return accelerate.cpu_offload(model_class.from_pretrained(folder), execution_device=torch.device("cpu"))


def cpu_offload_by_default(folder, model_class, other):
    return accelerate.cpu_offload(model_class.from_pretrained(folder))


def disk_offload(folder, model_class, other):
    return accelerate.disk_offload(model_class.from_pretrained(folder), other)


def device_map(folder, model_class, other):
    parts = {"model.vision_tower": "disk", "model.multi_modal_projector": "cpu", "model.language_model": "disk"}
    return model_class.from_pretrained(folder, device_map={**parts, "lm_head": "disk"}, offload_folder=other)


def all_on_disk(folder, model_class, other):
    return model_class.from_pretrained(folder, device_map={"": "disk"}, offload_folder=other)


OFFLOADED = (cpu_offload, cpu_offload_by_default, disk_offload, device_map, all_on_disk)


@pytest.mark.parametrize("make", OFFLOADED)
def test_offloaded_models_predict(checkpoint, tmp_path, make):
    if make in OFFLOADED[3:] and Version(accelerate.__version__) < Version("1.15"):
        pytest.skip(
            "an older accelerate reads other weights from the disk, of another shape, or refuses the whole model"
        )
    whole = DenseMLLMForConditionalGeneration.from_pretrained(checkpoint)
    expected = predict(whole)
    model = make(checkpoint, DenseMLLMForConditionalGeneration, tmp_path)
    assert model.lm_head.weight.is_meta
    for own, other in zip(predict(model), expected, strict=True):
        torch.testing.assert_close(own.predicted_depth, other.predicted_depth)
        for task, logits in other.logits.items():
            torch.testing.assert_close(own.logits[task], logits)
    answer = {"task": "detection", "max_new_tokens": 3}
    assert model.predict(IMAGES[0], **answer)["text"] == whole.predict(IMAGES[0], **answer)["text"]
    box = torch.tensor([3.0, 4, 40, 50])
    own = model.predict_dense(IMAGES[0], "referring", box=box)
    assert torch.equal(own.mask, whole.predict_dense(IMAGES[0], "referring", box=box).mask)


@pytest.mark.parametrize("make", OFFLOADED[:3])
def test_pipelines_of_offloaded_models(checkpoint, tmp_path, make):
    model = make(checkpoint, DenseMLLMForConditionalGeneration, tmp_path)
    pipe = model.as_pipeline()
    inputs = {"image": IMAGES[0], "box": torch.tensor([3.0, 4, 40, 50])}
    whole = DenseMLLMForConditionalGeneration.from_pretrained(checkpoint).as_pipeline()
    assert torch.equal(pipe(inputs, task="referring")["mask"], whole(inputs, task="referring")["mask"])
    depth = make(checkpoint, DenseMLLMForDepthEstimation, tmp_path / "depth")
    given = depth.get_processor().image_processor(IMAGES, return_tensors="pt")
    whole = DenseMLLMForDepthEstimation.from_pretrained(checkpoint)
    with torch.no_grad():
        for own, other in zip(depth(**given).predicted_depth, whole(**given).predicted_depth, strict=True):
            torch.testing.assert_close(own, other)


def test_pixels_are_computed_in_the_type_of_the_tower(checkpoint):
    model = DenseMLLMForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.bfloat16)
    given = model.get_processor().image_processor(IMAGES, return_tensors="pt")
    assert given["pixel_values"].dtype == torch.float32
    with torch.no_grad():
        features = model.get_image_features(**given).pooler_output
    assert all(own.dtype == torch.bfloat16 for own in features)
