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
r"""A small visual tokenizer, trained from nothing in minutes on a CPU: images to codes, and codes to images.

    python examples/train_image_tokenizer.py --data examples/rooms/sample --output_dir out/image_tokenizer
    python train_hf.py --image_tokenizer out/image_tokenizer ...

The network is `JanusVQVAE` of transformers at 0.9 million parameters, a code for each 8 x 8 pixels. It learns as IBQ
does (index backpropagation quantisation, arXiv 2412.02692): the chosen code is an argmax over the whole codebook, and
its gradient that of the softmax, so that all codes learn at each step. Codes have length 1: the one with the largest
cosine is the nearest, which `JanusVQVAE` looks up. Without a perceptual and an adversarial loss, which a
tokenizer that makes pictures needs besides.

Writes the tokenizer, `results.json` with what it reaches on the validation split, and `images.png` with images before
and after.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from transformers import JanusVQVAE, JanusVQVAEConfig, set_seed

from densemllm.files import OVERWRITE_HELP, check_outputs_of_script
from densemllm.formats.folders import load_samples
from densemllm.training.samples import read_sample


CELL = 8  # pixels of a code's edge: three halvings
COMMITMENT, ENTROPY = 0.25, 0.1  # weights beside the reconstruction
TEMPERATURE = 0.1  # of the softmax over cosines


def make_tokenizer(num_codes: int, grid: int) -> JanusVQVAE:
    """A new tokenizer, whose `decode` takes a square of `grid * grid` codes."""
    config = JanusVQVAEConfig(
        embed_dim=16, num_embeddings=num_codes, latent_channels=32, base_channels=32, channel_multiplier=[1, 1, 1, 2],
        num_res_blocks=1, num_patches=grid,
    )  # fmt: skip
    tokenizer = JanusVQVAE(config)
    with torch.no_grad():
        codebook = tokenizer.quantize.embedding.weight
        codebook.copy_(F.normalize(torch.randn_like(codebook), dim=1))
    return tokenizer


def ibq_losses(tokenizer: JanusVQVAE, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Reconstruction, commitment and entropy losses of `pixels [n, 3, height, width]` in [-1, 1]."""
    codebook = tokenizer.quantize.embedding.weight
    states = tokenizer.quant_conv(tokenizer.encoder(pixels)).permute(0, 2, 3, 1)  # [n, h, w, embed_dim]
    states = F.normalize(states, dim=-1)
    logits = states @ codebook.T / TEMPERATURE
    soft = logits.softmax(dim=-1)
    hard = F.one_hot(logits.argmax(dim=-1), len(codebook)).to(soft.dtype)
    chosen = (hard + soft - soft.detach()) @ codebook
    # What the encoder says is drawn to its code, and the code to it; and the soft choice to both.
    commitment = F.mse_loss(states, (hard @ codebook).detach()) + F.mse_loss(hard @ codebook, states.detach())
    # Sure of each cell, and all codes in use.
    own = -(soft * soft.clamp(min=1e-9).log()).sum(dim=-1).mean()
    mean = soft.flatten(0, 2).mean(dim=0)
    entropy = own + (mean * mean.clamp(min=1e-9).log()).sum()
    rebuilt = tokenizer.decoder(tokenizer.post_quant_conv(chosen.permute(0, 3, 1, 2)))
    return F.l1_loss(rebuilt, pixels) + F.mse_loss(rebuilt, pixels), commitment, entropy


def load_images(data: str, split: str, size: int, limit: int | None = None) -> torch.Tensor:
    """The images of a data set as `uint8 [n, 3, size, size]`."""
    rows = load_samples(data, split).select_columns(["image"])
    rows = rows.select(range(min(len(rows), limit or len(rows))))
    images = [read_sample(row)["image"].resize((size, size), PIL.Image.Resampling.BILINEAR) for row in rows]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def to_pixel_values(images: torch.Tensor) -> torch.Tensor:
    """`uint8` to floats in [-1, 1]."""
    return images.float() / 127.5 - 1


def draw_batch(images: torch.Tensor, count: int, crop: int) -> torch.Tensor:
    """Random crops, half of them mirrored, as pixel values."""
    crops = []
    for image in images[torch.randint(len(images), (count,))]:
        top, left = (int(torch.randint(edge - crop + 1, ())) for edge in image.shape[1:])
        part = image[:, top : top + crop, left : left + crop]
        crops.append(part.flip(-1) if torch.rand(()) < 0.5 else part)
    return to_pixel_values(torch.stack(crops))


@torch.no_grad()
def measure(tokenizer: JanusVQVAE, images: torch.Tensor) -> tuple[dict, torch.Tensor]:
    """What the tokenizer reaches, and the images that it makes of its codes, `uint8`."""
    codes, rebuilt = [], []
    for image in images:
        found = tokenizer.encode(to_pixel_values(image[None]))
        ids = found.image_tokens.view(1, -1)
        codes.append(ids.flatten())
        rebuilt.append(((tokenizer.decode(ids).clamp(-1, 1) + 1) * 127.5).round().byte())
    codes, rebuilt = torch.cat(codes), torch.cat(rebuilt)
    shares = torch.bincount(codes, minlength=tokenizer.config.num_embeddings).double() / len(codes)
    error = (rebuilt.double() - images.double()).square().mean(dim=(1, 2, 3)).clamp(min=1e-9)
    return {
        "images": len(images),
        "psnr": float((10 * (255**2 / error).log10()).mean()),
        "codes_in_use": int((shares > 0).sum()),
        "code_perplexity": math.exp(-float((shares * shares.clamp(min=1e-12).log()).sum())),
    }, rebuilt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="examples/rooms/sample", help="data set, see `load_samples`")
    parser.add_argument("--split", default="train", help="to train on")
    parser.add_argument("--eval_split", default="validation", help="to measure on")
    parser.add_argument("--output_dir", type=Path, default=Path("out/image_tokenizer"))
    parser.add_argument("--num_codes", type=int, default=256)
    parser.add_argument("--image_size", type=int, default=96, help="edge of the images, before a crop, in pixels")
    parser.add_argument("--grid", type=int, default=8, help="codes along an edge of the images that it will decode")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=8, help="crops a step")
    parser.add_argument("--crop_size", type=int, default=64, help="edge of a crop in pixels")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--eval_images", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args()
    for name in ("num_codes", "image_size", "grid", "steps", "batch_size", "crop_size", "eval_images"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.crop_size % CELL or args.crop_size > args.image_size:
        parser.error(f"--crop_size must be a multiple of {CELL}, {args.image_size} at most, got {args.crop_size}")
    outputs = [args.output_dir / name for name in ("config.json", "model.safetensors", "results.json", "images.png")]
    check_outputs_of_script(parser, outputs, overwrite=args.overwrite, argument="--output_dir")
    set_seed(args.seed)
    images = load_images(args.data, args.split, args.image_size)
    evaluated = load_images(args.data, args.eval_split, CELL * args.grid, args.eval_images)
    tokenizer = make_tokenizer(args.num_codes, args.grid).train()
    print(f"{sum(p.numel() for p in tokenizer.parameters()) / 1e6:.1f} M parameters, {len(images)} images")
    optimizer = torch.optim.AdamW(tokenizer.parameters(), args.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.steps, pct_start=0.05)
    log, codebook = [], tokenizer.quantize.embedding.weight
    for step in range(args.steps):
        parts = ibq_losses(tokenizer, draw_batch(images, args.batch_size, args.crop_size))
        loss = sum(weight * part for weight, part in zip((1.0, COMMITMENT, ENTROPY), parts, strict=True))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            codebook.copy_(F.normalize(codebook, dim=1))
        log.append([part.item() for part in parts])
        if (step + 1) % 50 == 0:
            means = np.mean(log[-50:], axis=0)
            print(f"step {step + 1}: " + " ".join(f"{value:.3f}" for value in means), flush=True)
    tokenizer.eval()
    results, rebuilt = measure(tokenizer, evaluated)
    tokenizer.save_pretrained(args.output_dir)
    results["reconstruction_loss"] = [float(np.mean([row[0] for row in part])) for part in (log[:20], log[-20:])]
    (args.output_dir / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    rows = torch.cat([torch.cat([*evaluated[:8]], dim=2), torch.cat([*rebuilt[:8]], dim=2)], dim=1)
    PIL.Image.fromarray(rows.permute(1, 2, 0).numpy()).save(args.output_dir / "images.png")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
