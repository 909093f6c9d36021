"""The torchvision backend of the image processor gives what the PIL one gives, on the device that it is told."""

import json
import math
import os
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from transformers import AutoProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import is_torchvision_available

from densemllm import DenseMLLMImageProcessor, DenseMLLMProcessor
from densemllm.training.collator import DenseCollator
from tiny import assert_maps_agree, make_image, make_model, make_processor, make_samples


needs_torchvision = pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not here")
LEVEL = 2 / 255  # of 8 bits, after normalisation to -1..1


def make(**kwargs):
    from densemllm.image_processing_torchvision_densemllm import DenseMLLMImageProcessorTorchvision

    return DenseMLLMImageProcessorTorchvision(**kwargs)


def with_torchvision(processor: DenseMLLMProcessor) -> DenseMLLMProcessor:
    own = processor.image_processor
    sizes = {name: getattr(own, name) for name in ("patch_size", "merge_size", "max_num_patches")}
    return make_processor(image_processor=make(**sizes))


def assert_same(images, atol: float = 1e-5, **kwargs) -> None:
    """Both backends give the same; `atol` of 1e-5 is that of floating-point numbers in another order."""
    expected = DenseMLLMImageProcessor()(images, return_tensors="pt", **kwargs)
    own = make()(images, return_tensors="pt", **kwargs)
    assert set(own) == set(expected)
    assert torch.equal(own["image_grid_thw"], expected["image_grid_thw"])
    assert own["image_grid_thw"].dtype == torch.int64
    torch.testing.assert_close(own["pixel_values"], expected["pixel_values"], rtol=0, atol=atol)


# ---- opted into, never by itself ----


@pytest.mark.slow
def test_nothing_imports_it_unasked():
    code = (
        "import sys, densemllm; from densemllm import processing_densemllm, prediction_densemllm; "
        "from densemllm.training import datasets; "
        "sys.exit(any('torchvision_densemllm' in name for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL).returncode == 0


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is here")
def test_where_torchvision_is_missing_it_says_so(tmp_path):
    make_processor().save_pretrained(tmp_path)
    with pytest.raises(ImportError, match="(?i)torchvision"):
        DenseMLLMProcessor.from_pretrained(tmp_path, backend="torchvision")


def test_the_backend_is_one_of_two(tmp_path):
    make_processor().save_pretrained(tmp_path)
    assert type(DenseMLLMProcessor.from_pretrained(tmp_path).image_processor) is DenseMLLMImageProcessor
    own = DenseMLLMProcessor.from_pretrained(tmp_path, backend="pil")
    assert type(own.image_processor) is DenseMLLMImageProcessor
    with pytest.raises(ValueError, match="`backend` must be one of"):
        DenseMLLMProcessor.from_pretrained(tmp_path, backend="opencv")


# ---- the same patches ----


@needs_torchvision
def test_patches_are_merge_block_major_in_colour():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    inputs = make()(PIL.Image.fromarray(pixels), return_tensors="pt")
    values = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 * 2 - 1
    expected = values.reshape(3, 2, 2, 16, 3, 2, 16).permute(1, 4, 2, 5, 3, 6, 0).reshape(-1, 768)
    torch.testing.assert_close(inputs["pixel_values"], expected)
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 6]]
    assert_same(PIL.Image.fromarray(pixels))


@needs_torchvision
def test_an_orange_image_stays_orange_when_it_is_resized():
    inputs = make()(PIL.Image.new("RGB", (70, 50), (255, 128, 0)), return_tensors="pt")
    colours = inputs["pixel_values"].reshape(-1, 3)
    torch.testing.assert_close(colours, torch.tensor([1.0, 128 / 127.5 - 1, -1.0]).expand_as(colours))


@needs_torchvision
@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    cap=st.integers(4, 600),
    scale=st.sampled_from([0.1, 0.5, 1.0, 1.7]),
    seed=st.integers(0, 10**6),
)
def test_sizes_are_the_same_and_resized_pixels_within_a_level(height, width, cap, scale, seed):
    assert_same(make_image(height, width, seed), atol=LEVEL + 1e-5, max_num_patches=cap, scale=scale)


@needs_torchvision
@pytest.mark.parametrize("resample", ["NEAREST", "BILINEAR", "BICUBIC"])
def test_ways_to_resample(resample):
    image = make_image(80, 100)
    flat = PIL.Image.new("RGB", (80, 100), (10, 200, 90))
    way = PIL.Image.Resampling[resample]
    assert_same(flat, resample=way)
    if resample != "NEAREST":  # Pillow's takes other pixels
        assert_same(image, atol=LEVEL + 1e-5, resample=way)


@needs_torchvision
def test_ways_to_resample_that_torch_lacks_are_refused():
    for way in (PIL.Image.Resampling.HAMMING, 5, 99):
        with pytest.raises(ValueError, match="`resample` must be one of .*BILINEAR"):
            make()(make_image(40, 40), resample=way)
    assert_same(make_image(64, 64), resample=PIL.Image.Resampling.HAMMING, do_resize=False)


@needs_torchvision
@pytest.mark.parametrize("disable_grouping", [None, True, False])
def test_images_of_one_size_in_a_batch_stay_in_order(disable_grouping):
    sizes = [(40, 70), (33, 20), (40, 70), (64, 64), (33, 20), (70, 40), (40, 70)]
    images = [make_image(*size, seed) for seed, size in enumerate(sizes)]
    assert_same(images, atol=LEVEL + 1e-5, disable_grouping=disable_grouping)
    processor = make()
    together = processor(images, return_tensors="pt", disable_grouping=disable_grouping)
    apart = [processor(image, return_tensors="pt") for image in images]
    for name in ("pixel_values", "image_grid_thw"):
        torch.testing.assert_close(together[name], torch.cat([own[name] for own in apart]), rtol=0, atol=1e-6)


@needs_torchvision
def test_images_of_one_size_are_resized_at_once(monkeypatch):
    processor, batches = make(), []
    resize = type(processor).resize
    monkeypatch.setattr(
        type(processor), "resize", lambda own, images, *args: batches.append(len(images)) or resize(own, images, *args)
    )
    processor([make_image(40, 70)] * 3 + [make_image(20, 20)] + [make_image(64, 64)] * 2, disable_grouping=False)
    assert sorted(batches) == [1, 3]  # those of 64x64 keep their size


# ---- the same images ----


def forms() -> dict:
    generator = np.random.default_rng(1)
    colours = generator.integers(0, 256, (32, 64, 3), dtype=np.uint8)
    clear = generator.integers(0, 256, (32, 64, 4), dtype=np.uint8)
    grey = colours[..., 0]
    arrays = {
        "uint8": colours,
        "uint8 channels first": np.ascontiguousarray(np.moveaxis(colours, -1, 0)),
        "grey": grey,
        "grey with channel": grey[..., None],
        "rgba": clear,
        "bool": grey > 100,
        "int32": colours.astype(np.int32),
        "int64": colours.astype(np.int64),
        "uint16": generator.integers(0, 65536, (32, 64, 3), dtype=np.uint16),
        "uint32": colours.astype(np.uint32),
        "float64": generator.random((32, 64, 3)),
        "float32": generator.random((32, 64, 3), dtype=np.float32),
        "float16": generator.random((32, 64, 3)).astype(np.float16),
        "float32 to 255": colours.astype(np.float32),
        "float32 rgba": clear.astype(np.float32) / 255,
        "upside down": colours[::-1],
        "read only": np.asarray(PIL.Image.fromarray(colours)),
    }
    tensors = {f"tensor {name}": torch.from_numpy(array.copy()) for name, array in arrays.items()}
    tensors["tensor bfloat16"] = tensors["tensor float32"].to(torch.bfloat16)
    tensors["tensor with gradient"] = tensors["tensor float32"].clone().requires_grad_()
    tensors["tensor view"] = tensors["tensor uint8"].permute(2, 0, 1)
    image = PIL.Image.fromarray(colours)
    pictures = {f"PIL {mode}": image.convert(mode) for mode in ("RGB", "L", "1", "P", "CMYK", "HSV", "YCbCr", "LA")}
    pictures["PIL RGBA"] = PIL.Image.fromarray(clear)
    pictures["PIL 16 bits"] = PIL.Image.fromarray(arrays["uint16"][..., 0])
    pictures["PIL float"] = PIL.Image.fromarray(arrays["float32"][..., 0])
    return {**arrays, **tensors, **pictures}


@needs_torchvision
@pytest.mark.parametrize("form", list(forms()))
def test_every_form_of_an_image_is_read_as_by_the_pil_backend(form):
    assert_same(forms()[form])


@needs_torchvision
def test_batched_tensors_and_mixed_lists():
    batch = torch.randint(0, 256, (3, 3, 40, 50), dtype=torch.uint8)
    assert_same(batch, atol=LEVEL + 1e-5)
    assert_same([])
    assert_same([batch[0], make_image(32, 32), np.asarray(make_image(40, 50)), batch[1] / 255], atol=LEVEL + 1e-5)


@needs_torchvision
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    make_image(32, 64).save(tmp_path / "a.png", exif=exif)
    assert_same(tmp_path / "a.png")


@needs_torchvision
def test_steps_can_be_left_out():
    numbers = torch.rand(3, 64, 64) * 3 - 1
    assert_same(numbers, do_resize=False, do_rescale=False)
    assert_same(numbers, do_rescale=False, do_normalize=False)
    image = make_image(64, 32)
    assert_same(image, do_normalize=False)
    assert_same(image, do_rescale=False, do_normalize=False, atol=1e-4)
    assert_same(image, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7], rescale_factor=1 / 128)
    assert_same(image, patch_size=8, merge_size=4)
    assert_same(image.convert("L"), do_convert_rgb=False, image_mean=0.5, image_std=0.5)
    # The PIL backend cuts floating-point numbers down to whole levels before it resizes them.
    assert_same(torch.rand(3, 40, 50), do_rescale=False, atol=2 * LEVEL)


@needs_torchvision
@pytest.mark.parametrize(
    "image, kwargs",
    [
        ("there/is/no/such.png", {}),
        (3, {}),
        (np.zeros((0, 4, 3), np.uint8), {}),
        (torch.zeros(3, 0, 4, dtype=torch.uint8), {}),
        (torch.full((3, 4, 4), math.nan), {}),
        (torch.full((3, 4, 4), 1.5), {}),
        (torch.full((3, 4, 4), 300), {}),
        (torch.full((3, 4, 4), -1), {}),
        (torch.zeros(3, 4, 4, dtype=torch.complex64), {}),
        (torch.zeros(3, 4, 4).to_sparse(), {}),
        (torch.zeros(3, 40, 40, dtype=torch.uint8), {"max_image_pixels": 100}),
        (torch.zeros(3, 40, 40, dtype=torch.uint8), {"do_resize": False}),
        (torch.zeros(3, 64, 64, dtype=torch.uint8), {"do_resize": False, "max_num_patches": 4}),
        (torch.full((4, 32, 32), 3.0), {"do_rescale": False}),
        (torch.zeros(32, 32, 5), {"input_data_format": "channels_last"}),
        (torch.zeros(3, 40, 40, dtype=torch.uint8), {"max_num_patches": 3}),
        (torch.zeros(3, 40, 40, dtype=torch.uint8), {"patch_size": 0}),
        (torch.zeros(3, 40, 40, dtype=torch.uint8), {"scale": -1.0}),
    ],
)
def test_what_the_pil_backend_refuses_is_refused_in_its_words(image, kwargs):
    with pytest.raises((ValueError, TypeError)) as expected:
        DenseMLLMImageProcessor()(image, **kwargs)
    with pytest.raises(expected.type) as own:
        make()(image, **kwargs)
    assert str(own.value).replace("torch.", "") == str(expected.value).replace("torch.", "")


# ---- devices ----


@needs_torchvision
def test_the_outputs_are_on_the_device_that_is_asked_for():
    for image in (make_image(40, 50), np.asarray(make_image(40, 50)), torch.zeros(3, 40, 50, dtype=torch.uint8)):
        inputs = make()([image, image], return_tensors="pt", device="meta")  # a device that every machine has
        assert inputs["pixel_values"].device.type == "meta" and inputs["pixel_values"].shape == (2 * 16, 768)
    inputs = make()(make_image(40, 50), return_tensors="pt", device=torch.device("cpu"))
    assert inputs["pixel_values"].device.type == "cpu"
    with pytest.raises(ValueError, match="`device` must be .*'nowhere'"):
        make()(make_image(40, 50), device="nowhere")


@needs_torchvision
def test_tensors_stay_where_they_are_and_take_the_others_along():
    there = torch.zeros(3, 40, 50, dtype=torch.uint8, device="meta")
    grey = torch.zeros(32, 32, dtype=torch.bool, device="meta")
    for images in ([there], [grey], [make_image(64, 64), there, make_image(40, 50)]):
        inputs = make()(images, return_tensors="pt")
        assert inputs["pixel_values"].device.type == "meta"
        assert inputs["image_grid_thw"].device.type == "cpu" and len(inputs["image_grid_thw"]) == len(images)


# ---- in its places ----


@needs_torchvision
def test_saved_files_name_no_backend(tmp_path):
    own = make(max_num_patches=64, patch_size=8, scale=1.5, device="cpu")
    DenseMLLMImageProcessor(max_num_patches=64, patch_size=8, scale=1.5).save_pretrained(tmp_path / "pil")
    own.save_pretrained(tmp_path / "own")
    saved = [json.loads((tmp_path / name / "preprocessor_config.json").read_text()) for name in ("own", "pil")]
    assert saved[0] == saved[1]
    assert {path.name for path in (tmp_path / "pil").iterdir()} <= {path.name for path in (tmp_path / "own").iterdir()}
    for loader in (AutoImageProcessor, DenseMLLMImageProcessor):
        loaded = loader.from_pretrained(tmp_path / "own")
        assert type(loaded) is DenseMLLMImageProcessor and loaded.to_dict() == own.to_dict()
    back = type(own).from_pretrained(tmp_path / "pil")
    assert type(back) is type(own) and back.backend == "torchvision" and back.to_dict() == own.to_dict()
    assert (back.max_num_patches, back.patch_size, back.scale) == (64, 8, 1.5)


@needs_torchvision
def test_a_processor_takes_it_and_is_loaded_with_it(tmp_path):
    processor = make_processor()
    own = with_torchvision(processor)
    own.save_pretrained(tmp_path)
    text = "<|vision_start|><|image_pad|><|vision_end|>what is it?"
    expected = processor(images=[make_image(16, 24)], text=[text], return_tensors="pt")
    assert type(DenseMLLMProcessor.from_pretrained(tmp_path).image_processor) is DenseMLLMImageProcessor
    for loader in (DenseMLLMProcessor, AutoProcessor):
        loaded = loader.from_pretrained(tmp_path, backend="torchvision")
        assert type(loaded.image_processor) is type(own.image_processor)
        inputs = loaded(images=[make_image(16, 24)], text=[text], return_tensors="pt")
        for name in expected:
            torch.testing.assert_close(inputs[name], expected[name], rtol=0, atol=1e-5)
        assert loaded.to_dict() == own.to_dict()


@needs_torchvision
def test_maps_and_answers_are_those_of_the_pil_backend():
    processor = make_processor()
    model, own = make_model(processor), with_torchvision(processor)
    images = [
        make_image(30, 50),
        make_image(45, 21, 1),
        torch.from_numpy(np.array(make_image(30, 50, 2))).movedim(-1, 0),
    ]
    call = {"task": ("segmentation", "depth"), "labels": ["wall", "floor", "red ball"]}
    expected = model.predict_dense(images, processor=processor, **call)
    for scale in ({}, {"device": "cpu"}):
        for one, other in zip(model.predict_dense(images, processor=own, **call, **scale), expected, strict=True):
            assert_maps_agree(one.segmentation, other.segmentation)
            assert_maps_agree(one.predicted_depth, other.predicted_depth)


@needs_torchvision
def test_a_collator_takes_it():
    processor = make_processor()
    samples = make_samples(3)
    id2label = {0: "wall", 1: "floor", 2: "red ball"}
    expected, batch = (
        DenseCollator(one)([{**sample, "id2label": id2label} for sample in samples])
        for one in (processor, with_torchvision(processor))
    )
    for name, value in expected.items():
        torch.testing.assert_close(batch[name], value, rtol=0, atol=LEVEL + 1e-5)


REMOTE = r"""
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "densemllm" or name.startswith("densemllm."):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
import PIL.Image, torch
from transformers import AutoModel, AutoProcessor

folder = sys.argv[1]
own = AutoProcessor.from_pretrained(folder, trust_remote_code=True, backend="torchvision")
pil = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert (own.image_processor.backend, pil.image_processor.backend) == ("torchvision", "pil")
image = PIL.Image.new("RGB", (50, 30), (255, 128, 0))
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
maps = [model.predict_dense(image, labels=["wall", "floor"], processor=one).segmentation for one in (own, pil)]
assert torch.equal(*maps)
own.save_pretrained(sys.argv[2])
model.save_pretrained(sys.argv[2])
"""


@needs_torchvision
@pytest.mark.slow
def test_it_travels_with_a_checkpoint(tmp_path):
    processor = make_processor()
    make_model(processor).save_pretrained(tmp_path / "first")
    processor.save_pretrained(tmp_path / "first")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for source, target in (("first", "second"), ("second", "third")):
        done = subprocess.run(
            [sys.executable, "-c", REMOTE, str(tmp_path / source), str(tmp_path / target)],
            cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        assert {path.name for path in (tmp_path / target).iterdir()} == {
            path.name for path in (tmp_path / source).iterdir()
        }
        own, other = ((tmp_path / name / "processor_config.json").read_text() for name in (source, target))
        assert own == other
