"""Small random models, tokenizers and pictures that the tests are made of."""

import numpy as np
import PIL.Image
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from densemllm import (
    DenseMLLMConfig,
    DenseMLLMForConditionalGeneration,
    DenseMLLMImageProcessor,
    DenseMLLMProcessor,
    add_dense_tokens,
)


ID2LABEL = {0: "wall", 1: "floor", 2: "red ball"}
NUM_DEPTH_BINS = 16
DEPTH_RANGES = {
    "room": {"mapping": "linear", "min_depth": 0.0, "max_depth": 8.0},
    "road": {"mapping": "log", "min_depth": 0.5, "max_depth": 80.0, "focal_length": 100.0},
    "camera": {"mapping": "linear", "min_depth": 0.0, "max_depth": 4.0, "prompt": "depth of the camera data"},
}
TEXTS = ["the cat sat on the table beside a chair and a lamp", "wall floor ceiling sky tree cup plate red ball"] * 3

YOUTU = {
    "model_type": "youtu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "max_position_embeddings": 4096,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "window_size": 16,
    "fullatt_block_indexes": [1],
    "num_patches": 16,
}


def make_tokenizer(num_depth_bins: int = NUM_DEPTH_BINS, num_coordinates: int = 64) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<|pad|>",
        padding_side="left",
    )
    add_dense_tokens(fast, num_depth_bins, num_coordinates)
    return fast


def make_processor(image_processor=None, **kwargs) -> DenseMLLMProcessor:
    image_processor = image_processor or DenseMLLMImageProcessor(patch_size=4, merge_size=2, max_num_patches=1024)
    options = {
        "depth_ranges": DEPTH_RANGES,
        "default_depth_range": "room",
        "num_depth_bins": NUM_DEPTH_BINS,
        "referring_crop_size": 32,
    }
    return DenseMLLMProcessor(image_processor, make_tokenizer(), **{**options, **kwargs})


def make_config(processor: DenseMLLMProcessor, text: dict | None = None, vision: dict | None = None, **kwargs):
    tokenizer = processor.tokenizer
    text_config = {
        **(text or YOUTU),
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    options = {
        "image_token_id": processor.image_token_id,
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        "num_depth_bins": processor.num_depth_bins,
        "depth_ranges": processor.depth_ranges,
        "default_depth_range": processor.default_depth_range,
        "ntp_m_top_k": 8,
    }
    vision_config = {**VISION, **(vision or {})}
    return DenseMLLMConfig(text_config=text_config, vision_config=vision_config, **{**options, **kwargs})


def make_model(processor: DenseMLLMProcessor, seed: int = 0, **kwargs) -> DenseMLLMForConditionalGeneration:
    torch.manual_seed(seed)
    return DenseMLLMForConditionalGeneration(make_config(processor, **kwargs)).eval()


def make_image(height: int, width: int, seed: int = 0) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def answer_with(monkeypatch, owner, answer: str, asked: list | None = None) -> None:
    """Let every question that `owner`, a model or its class, asks have one answer; they are kept in `asked`."""

    def query(*arguments, **kwargs):
        images, text = arguments[isinstance(owner, type) :][:2]
        texts = [text] * len(images) if isinstance(images, list) and isinstance(text, str) else text
        if asked is not None:
            asked.extend(texts if isinstance(images, list) else [texts])
        return [answer] * len(images) if isinstance(images, list) else answer

    monkeypatch.setattr(owner, "query", query)


def assert_maps_agree(own: torch.Tensor, expected: torch.Tensor, share: float = 0.95) -> None:
    """Maps that an argmax decides, of two computations whose sums round differently (other batches, other kernels): a
    cell whose best two labels are nearly tied falls either way, and takes the pixels around it along."""
    assert own.shape == expected.shape and own.dtype == expected.dtype
    agree = torch.isclose(own, expected, rtol=1e-4, atol=1e-4) if own.is_floating_point() else own == expected
    assert float(agree.float().mean()) > share


def peak_bytes(call) -> int:
    """Bytes of tensors that are alive at once during a call on the CPU, at most."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    held = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def make_samples(count: int, seed: int = 0) -> list[dict]:
    """Annotated pictures of different sizes."""
    generator = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        height, width = (int(edge) for edge in generator.integers(16, 40, 2))
        samples.append(
            {
                "image": make_image(height, width, index),
                "segmentation": PIL.Image.fromarray(generator.integers(0, 3, (height, width)).astype(np.uint8)),
                "depth": generator.uniform(0.1, 8, (height, width)).astype(np.float32).tolist(),
            }
        )
    # Unequal work: one without depth, one with most of its pixels ignored.
    samples[0]["depth"] = None
    ignored = np.array(samples[1]["segmentation"])
    ignored[:, 8:] = 255
    samples[1]["segmentation"] = PIL.Image.fromarray(ignored)
    return samples
