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
import io
import math
import struct
import zlib

import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings

from densemllm import DenseMLLMImageProcessor
from densemllm.decoding_densemllm import decode_depth_bins, decode_segmentation
from densemllm.image_processing_densemllm import get_resized_size
from tiny import make_image


@pytest.fixture(scope="module")
def image_processor():
    return DenseMLLMImageProcessor()


class Outputs:
    def __init__(self, logits):
        self.logits = logits


# ---- size ----


@pytest.mark.parametrize(
    "size, cap, expected",
    [
        ((480, 640), 36864, (480, 640)),
        ((481, 641), 36864, (512, 672)),
        ((1, 1), 36864, (32, 32)),
        ((100, 100), 4, (32, 32)),
        ((512, 512), 900, (480, 480)),  # scale 0.92 is the first that fits: 471 pixels, rounded up
    ],
)
def test_resize_rule(size, cap, expected):
    assert get_resized_size(*size, 32, 16, cap) == expected


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 20000),
    width=st.integers(1, 20000),
    cap=st.integers(4, 40000),
    scale=st.floats(0.01, 5, allow_nan=False),
)
@example(height=1, width=20000, cap=4, scale=1.0)
@example(height=10000, width=10, cap=64, scale=4.0)
def test_no_more_patches_than_asked_for(height, width, cap, scale):
    resized = get_resized_size(height, width, 32, 16, cap, scale)
    assert all(edge % 32 == 0 and edge >= 32 for edge in resized)
    assert resized[0] // 16 * (resized[1] // 16) <= cap


def one_step_after_another(height, width, cap, scale):
    """The released processor's rule, and ours below a scale of 0.01, as they are told."""
    first, step = scale, 0
    while True:
        resized = tuple(max(1, math.ceil(edge * scale / 32)) * 32 for edge in (height, width))
        if resized[0] // 16 * (resized[1] // 16) <= cap:
            return resized
        step += 1
        scale = first - 0.02 * step if first - 0.02 * step > 0.01 else scale * 0.98


@settings(max_examples=400, deadline=None)
@given(
    height=st.integers(1, 30000),
    width=st.integers(1, 30000),
    cap=st.integers(4, 50000),
    scale=st.floats(1e-6, 30) | st.integers(1, 1500).map(lambda steps: 0.02 * steps + 0.01),
)
@example(height=9, width=30000, cap=4, scale=0.03)
@example(height=480, width=640, cap=36864, scale=100.0)
@example(height=2, width=2, cap=4, scale=30.03)
def test_the_scale_is_that_of_trying_every_step(height, width, cap, scale):
    assert get_resized_size(height, width, 32, 16, cap, scale) == one_step_after_another(height, width, cap, scale)


@pytest.mark.parametrize("size", [(480, 640), (1, 1), (1, 10**9), (10**6, 10**6)])
@pytest.mark.parametrize("scale", [1e6, 123456.789, 1e-6])
def test_the_size_is_found_in_few_steps(size, scale, monkeypatch):
    calls = []
    monkeypatch.setattr(math, "ceil", lambda value, ceil=math.ceil: calls.append(value) or ceil(value))
    resized = get_resized_size(*size, 32, 16, 36864, scale)
    assert resized[0] // 16 * (resized[1] // 16) <= 36864 and len(calls) < 2000


@settings(max_examples=50, deadline=None)
@given(height=st.integers(1, 3000), width=st.integers(1, 3000), cap=st.integers(100, 40000))
def test_scale_is_lowered_in_steps_of_two_hundredths(height, width, cap):
    for step in range(49):
        scale = 1 - 0.02 * step
        expected = [max(1, math.ceil(edge * scale / 32)) * 32 for edge in (height, width)]
        if expected[0] * expected[1] // 256 <= cap:
            assert get_resized_size(height, width, 32, 16, cap) == tuple(expected)
            return


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (1000, 2)])
def test_images_of_extreme_shapes(image_processor, size):
    inputs = image_processor(make_image(*size), max_num_patches=64, return_tensors="pt")
    (_, height, width), patches = inputs["image_grid_thw"][0].tolist(), inputs["pixel_values"]
    assert patches.shape == (height * width, 768) and height * width <= 64 and height % 2 == width % 2 == 0


@pytest.mark.parametrize(
    "name, value", [("max_num_patches", 3), *(("scale", bad) for bad in (0.0, -1.0, math.nan, math.inf, 1.1e6, 1e-7))]
)
def test_size_arguments_are_checked(image_processor, name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        image_processor(make_image(40, 40), **{name: value})


# ---- patches ----


def test_patches_are_merge_block_major(image_processor):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    inputs = image_processor(PIL.Image.fromarray(pixels), return_tensors="pt")
    values = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 * 2 - 1
    expected = values.reshape(3, 2, 2, 16, 3, 2, 16).permute(1, 4, 2, 5, 3, 6, 0).reshape(-1, 768)
    torch.testing.assert_close(inputs["pixel_values"], expected)
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 6]]


def test_an_orange_image_stays_orange(image_processor):
    orange = PIL.Image.new("RGB", (64, 64), (255, 128, 0))
    colours = image_processor(orange, return_tensors="pt")["pixel_values"].reshape(-1, 3)
    torch.testing.assert_close(colours, torch.tensor([1.0, 128 / 127.5 - 1, -1.0]).expand_as(colours))


def test_images_are_packed_one_after_another(image_processor):
    images = [make_image(40, 70), make_image(33, 20, seed=1)]
    together = image_processor(images, return_tensors="pt")
    apart = [image_processor(image, return_tensors="pt") for image in images]
    for name in ("pixel_values", "image_grid_thw"):
        torch.testing.assert_close(together[name], torch.cat([inputs[name] for inputs in apart]), rtol=0, atol=0)


# ---- kinds of pictures ----


def pixels_of(image_processor, image):
    return np.asarray(image_processor.load_picture(image))


def test_every_form_of_a_picture_is_the_same(image_processor, tmp_path):
    image = make_image(20, 30)
    array = np.asarray(image)
    image.save(tmp_path / "a.png")
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [image, str(tmp_path / "a.png"), tmp_path / "a.png", array, tensor, tensor.float() / 255, array / 255]
    for form in forms:
        np.testing.assert_array_equal(pixels_of(image_processor, form), array)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(image_processor, tmp_path, orientation):
    image = make_image(8, 12)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(tmp_path / "a.png"))
    np.testing.assert_array_equal(pixels_of(image_processor, tmp_path / "a.png"), np.asarray(expected))
    assert expected.size == ((12, 8) if orientation <= 4 else (8, 12))


def test_modes_become_rgb(image_processor):
    grey = np.arange(0, 240, 40, dtype=np.uint8).reshape(2, 3)
    expected = np.stack([grey] * 3, axis=-1)
    np.testing.assert_array_equal(pixels_of(image_processor, PIL.Image.fromarray(grey)), expected)
    palette = PIL.Image.fromarray(expected).quantize()
    np.testing.assert_array_equal(pixels_of(image_processor, palette), np.asarray(palette.convert("RGB")))
    sixteen = PIL.Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(pixels_of(image_processor, sixteen), expected)
    np.testing.assert_array_equal(pixels_of(image_processor, PIL.Image.fromarray(grey.astype(np.float32))), expected)
    for dtype in (np.int16, np.int32, np.int64, np.uint32):
        np.testing.assert_array_equal(pixels_of(image_processor, expected.astype(dtype)), expected)
    assert image_processor.load_picture(expected.astype(np.int64)).getpixel((1, 0)) == (40, 40, 40)
    assert image_processor.load_picture(grey.astype(np.uint16) * 257).getpixel((1, 0)) == (40, 40, 40)
    with pytest.raises(ValueError, match="`images` has an array of int32 with values 0..300"):
        image_processor.load_picture(np.array([[0, 300]], dtype=np.int32))
    bilevel = PIL.Image.fromarray(grey > 100)
    np.testing.assert_array_equal(pixels_of(image_processor, bilevel)[..., 0], 255 * (grey > 100))
    cmyk = PIL.Image.fromarray(expected).convert("CMYK")
    np.testing.assert_array_equal(pixels_of(image_processor, cmyk), np.asarray(cmyk.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(image_processor, mode):
    colour = {"RGBA": (200, 100, 0), "LA": (100,)}[mode]
    clear = PIL.Image.new(mode, (4, 4), (*colour, 0))
    assert (pixels_of(image_processor, clear) == 255).all()
    solid = PIL.Image.new(mode, (4, 4), (*colour, 255))
    assert (pixels_of(image_processor, solid) == np.array(colour)).all()


def test_a_huge_picture_is_refused_before_it_is_decoded(image_processor, tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 10_000, 9_000, 8, 2, 0, 0, 0)  # the pixels themselves are not there
    path = tmp_path / "huge.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))
    with pytest.raises(ValueError, match="`max_image_pixels` = 1000000"):
        DenseMLLMImageProcessor(max_image_pixels=1_000_000).load_picture(path)
    with pytest.raises(ValueError, match="can't be decoded"):
        image_processor.load_picture(path)


def test_a_truncated_file_is_named(image_processor, tmp_path):
    buffer = io.BytesIO()
    make_image(64, 64).save(buffer, "PNG")
    path = tmp_path / "cut.png"
    path.write_bytes(buffer.getvalue()[:2000])
    for call in (image_processor.load_picture, image_processor):
        with pytest.raises(ValueError, match="cut.png"):
            call(path)


@pytest.mark.parametrize(
    "error, image",
    [
        (ValueError, "there/is/no/such.png"),
        (ValueError, np.zeros((0, 4, 3), np.uint8)),
        (ValueError, np.full((4, 4, 3), np.nan)),
        (ValueError, torch.full((3, 4, 4), float("inf"))),
        (ValueError, np.full((4, 4, 3), 7.0)),
        (ValueError, np.zeros((4, 4, 5), np.uint8)),
        (ValueError, np.zeros((2, 4, 4, 3), np.uint8)),
        (TypeError, 3),
        (TypeError, None),
    ],
)
def test_what_is_no_picture_is_refused(image_processor, error, image):
    with pytest.raises(error, match="`images`"):
        image_processor.load_picture(image)


# ---- maps ----


def brute_force(logits, size, background):
    chances = (logits / 4).sigmoid() if background else (logits / 0.2).softmax(dim=0)
    large = F.interpolate(chances[None], size=size, mode="bilinear", align_corners=False)[0]
    value, best = large.max(dim=0)
    if background:
        best, value = best.masked_fill(value <= 0.5, -1), value.clamp(min=0.5)
    return best, value


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    labels=st.integers(1, 9),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    background=st.booleans(),
)
def test_decode_segmentation_is_the_brute_force(seed, labels, grid, size, background):
    logits = torch.randn(labels, *grid, generator=torch.Generator().manual_seed(seed))
    own, scores = decode_segmentation(logits, size, background)
    best, value = brute_force(logits, size, background)
    torch.testing.assert_close(scores, value)
    assert own.dtype == torch.int64 and own.shape == size
    assert (own != best).float().mean() < 0.01 + 1e-9 or bool((value[own != best] - 0.5).abs().max() < 1e-6)


def test_decode_depth_bins_is_the_brute_force():
    logits = torch.randn(16, 3, 5)
    bins, scores = decode_depth_bins(logits)
    large = F.interpolate(logits[None], size=(6, 10), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(bins, large.argmax(dim=0) + 1)
    torch.testing.assert_close(scores, large.softmax(dim=0).amax(dim=0))


def test_post_processing_has_the_form_of_transformers(image_processor):
    logits = torch.randn(2, 4, 3, 5)
    maps = image_processor.post_process_semantic_segmentation(Outputs(logits))
    assert [tuple(m.shape) for m in maps] == [(3, 5), (3, 5)]
    torch.testing.assert_close(maps[0], logits[0].argmax(dim=0))
    sizes = [(9, 20), (7, 8)]
    maps = image_processor.post_process_semantic_segmentation(Outputs(logits), sizes)
    assert [tuple(m.shape) for m in maps] == sizes
    scored = image_processor.post_process_semantic_segmentation(
        Outputs(logits), sizes, return_segmentation_scores=True
    )
    assert [tuple(s.segmentation_scores.shape) for s in scored] == [(4, 9, 20), (4, 7, 8)]
    torch.testing.assert_close(scored[0].segmentation, maps[0])
    for bad in ([(9, 20)], [(9, 20), (0, 3)], [(9, 20), (3,)]):
        with pytest.raises(ValueError, match="`target_sizes`"):
            image_processor.post_process_semantic_segmentation(Outputs(logits), bad)
