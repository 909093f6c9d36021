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
"""The released checkpoint's layout at small dimensions, and what it computes, in plain torch: nothing of the package
is used here but its test tokenizer."""

import json
import math

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import YoutuConfig, YoutuForCausalLM

from tiny import make_tokenizer


PATCH, MERGE = 4, 2
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "patch_size": PATCH,
    "window_size": 16,
    "fullatt_block_indexes": [1, 3],
    "spatial_merge_size": MERGE,
    "out_hidden_size": 40,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "num_channels": 3,
}
TEXT = {
    "hidden_size": 40,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_interleave": True,
}


def make_weights(config: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random weights under the original names."""

    def random(*shape, scale=1.0):
        return torch.randn(*shape, generator=generator) * scale / math.sqrt(shape[-1])

    vision, weights = config["vision_config"], {}
    width, wide = vision["hidden_size"], vision["intermediate_size"]

    def linear(name, rows, columns):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = random(rows, columns), random(rows, scale=0.3)

    def norm(name, size, bias=True):
        weights[f"{name}.weight"] = 1 + random(size, scale=0.3)
        if bias:
            weights[f"{name}.bias"] = random(size, scale=0.3)

    tower = "siglip2.vision_model"
    linear(f"{tower}.embeddings.patch_embedding", width, 3 * vision["patch_size"] ** 2)
    for index in range(vision["num_hidden_layers"]):
        layer = f"{tower}.encoder.layers.{index}"
        norm(f"{layer}.layer_norm1", width)
        norm(f"{layer}.layer_norm2", width)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{layer}.self_attn.{name}", width, width)
        linear(f"{layer}.mlp.fc1", wide, width)
        linear(f"{layer}.mlp.fc2", width, wide)
    norm(f"{tower}.post_layernorm", width)
    merged = width * vision["spatial_merge_size"] ** 2
    norm("merger.ln_q", width, bias=False)
    linear("merger.mlp.0", merged, merged)
    linear("merger.mlp.2", config["hidden_size"], merged)
    size, heads = config["hidden_size"], config["num_attention_heads"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    weights["model.embed_tokens.weight"] = torch.randn(config["vocab_size"], size, generator=generator)
    norm("model.norm", size, bias=False)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        norm(f"{layer}.input_layernorm", size, bias=False)
        norm(f"{layer}.post_attention_layernorm", size, bias=False)
        shapes = {
            "self_attn.q_a_proj": (config["q_lora_rank"], size),
            "self_attn.q_b_proj": (heads * (nope + rope), config["q_lora_rank"]),
            "self_attn.kv_a_proj_with_mqa": (config["kv_lora_rank"] + rope, size),
            "self_attn.kv_b_proj": (heads * (nope + value), config["kv_lora_rank"]),
            "self_attn.o_proj": (size, heads * value),
            "mlp.gate_proj": (config["intermediate_size"], size),
            "mlp.up_proj": (config["intermediate_size"], size),
            "mlp.down_proj": (size, config["intermediate_size"]),
        }
        for name, shape in shapes.items():
            weights[f"{layer}.{name}.weight"] = random(*shape)
        norm(f"{layer}.self_attn.q_a_layernorm", config["q_lora_rank"], bias=False)
        norm(f"{layer}.self_attn.kv_a_layernorm", config["kv_lora_rank"], bias=False)
    return weights


def make_source(folder, shards: int = 3, head: bool = False, dtype=torch.float32, seed: int = 0, **fields):
    """Write a checkpoint in the original layout; returns its config and its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(num_depth_bins=1000, num_coordinates=64)
    tokenizer.save_pretrained(folder)
    ids = tokenizer.get_vocab()
    config = {
        "model_type": "youtu_vl",
        "architectures": ["YoutuVLForConditionalGeneration"],
        "auto_map": {"AutoModel": "modeling_youtu_vl.YoutuVLForConditionalGeneration"},
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.57.1",
        **TEXT,
        "rope_theta": 500000.0,
        "rope_scaling": None,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_config": dict(VISION),
        **fields,
    }
    (folder / "config.json").write_text(json.dumps(config))
    generation = {"do_sample": True, "temperature": 0.1, "top_p": 0.001, "repetition_penalty": 1.05}
    generation["eos_token_id"] = config["eos_token_id"]
    (folder / "generation_config.json").write_text(json.dumps(generation))
    image_settings = {"image_processor_type": "Siglip2ImageProcessorFast", "processor_class": "YoutuVLProcessor",
                      "patch_size": PATCH, "max_num_patches": 4096, "resample": 2, "image_mean": [0.5, 0.5, 0.5],
                      "image_std": [0.5, 0.5, 0.5], "rescale_factor": 1 / 255, "do_resize": True}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(image_settings))
    weights = make_weights(config, torch.Generator().manual_seed(seed))
    weights = {name: weight.to(dtype) for name, weight in weights.items()}
    if head:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    names = sorted(weights)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        own = names[number::shards]
        save_file({name: weights[name] for name in own}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return config, weights


def patchify(image: PIL.Image.Image) -> tuple[torch.Tensor, tuple[int, int]]:
    """An image as patches `[n, features]`, merge-block-major, and its grid in patches."""
    cell = PATCH * MERGE
    height, width = (math.ceil(edge / cell) * cell for edge in (image.height, image.width))
    pixels = np.asarray(image.resize((width, height), PIL.Image.Resampling.BILINEAR), dtype=np.float32)
    pixels = torch.from_numpy((pixels / 255 - 0.5) / 0.5).permute(2, 0, 1)
    blocks = pixels.reshape(3, height // cell, MERGE, PATCH, width // cell, MERGE, PATCH)
    patches = blocks.permute(1, 4, 2, 5, 3, 6, 0).reshape(-1, PATCH * PATCH * 3)
    return patches, (height // PATCH, width // PATCH)


def tower(weights: dict, patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The vision encoder over one image: rotary positions and windows by an explicit mask."""
    height, width = grid
    heads = VISION["num_attention_heads"]
    dim = VISION["hidden_size"] // heads
    # Row and column of each patch, in merge-block-major order.
    index = (
        torch.arange(height * width).reshape(height // MERGE, MERGE, width // MERGE, MERGE).transpose(1, 2).flatten()
    )
    row, column = index // width, index % width
    frequency = 10000.0 ** (-torch.arange(0, dim // 2, 2) / (dim // 2))
    angle = torch.cat([row[:, None] * frequency, column[:, None] * frequency], dim=1).repeat(1, 2)
    span = VISION["window_size"] // PATCH
    window = row // span * 10_000 + column // span
    same_window = window[:, None] == window[None, :]

    def apply(name, x):
        name = f"siglip2.vision_model.{name}"
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name, x):
        name = f"siglip2.vision_model.{name}"
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    def rotate(x):
        return x * angle.cos() + torch.cat([-x[..., dim // 2 :], x[..., : dim // 2]], dim=-1) * angle.sin()

    x = apply("embeddings.patch_embedding", patches)
    for number in range(VISION["num_hidden_layers"]):
        layer = f"encoder.layers.{number}"
        y = norm(f"{layer}.layer_norm1", x)
        query, key, value = (
            apply(f"{layer}.self_attn.{name}", y).view(-1, heads, dim).transpose(0, 1)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        scores = rotate(query) @ rotate(key).transpose(1, 2) / math.sqrt(dim)
        if number not in VISION["fullatt_block_indexes"]:
            scores = scores.masked_fill(~same_window, float("-inf"))
        y = (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)
        x = x + apply(f"{layer}.self_attn.out_proj", y)
        y = F.gelu(apply(f"{layer}.mlp.fc1", norm(f"{layer}.layer_norm2", x)), approximate="tanh")
        x = x + apply(f"{layer}.mlp.fc2", y)
    return norm("post_layernorm", x)


def merger(weights: dict, features: torch.Tensor) -> torch.Tensor:
    """Four patches to one vision token."""
    x = features * torch.rsqrt(features.square().mean(-1, keepdim=True) + 1e-6) * weights["merger.ln_q.weight"]
    x = x.reshape(-1, features.shape[-1] * MERGE**2)
    x = F.gelu(F.linear(x, weights["merger.mlp.0.weight"], weights["merger.mlp.0.bias"]))
    return F.linear(x, weights["merger.mlp.2.weight"], weights["merger.mlp.2.bias"])


def language_model(config: dict, weights: dict) -> YoutuForCausalLM:
    """transformers' own, with the weights under `model.`."""
    fields = {name: config[name] for name in (*TEXT, "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    model = YoutuForCausalLM(YoutuConfig(**fields, rope_parameters=rope, tie_word_embeddings=True)).eval()
    own = {name: weight for name, weight in weights.items() if name.startswith("model.")}
    missing, unexpected = model.load_state_dict(own, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return model


@torch.no_grad()
def vision_logits(config: dict, weights: dict, tokenizer, image: PIL.Image.Image, prompt: str = ""):
    """Logits of the vision tokens over the vocabulary, `[n_vision_tokens, vocab_size]`, and the grid of tokens."""
    patches, grid = patchify(image)
    features = merger(weights, tower(weights, patches, grid))
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    text = f"{bos}system\nYou are a helpful assistant.{eos}\n{bos}user\n{prompt}<|vision_start|>"
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    model = language_model(config, weights)
    embeds = torch.cat([model.get_input_embeddings()(ids), features])[None]
    return model(inputs_embeds=embeds).logits[0, len(ids) :], (grid[0] // MERGE, grid[1] // MERGE)
