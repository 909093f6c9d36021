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
r"""Images to patches: the PIL backend of the image processor against the torchvision one, on the same images.

    python benchmarks/image_processor.py [--quick] [--device cuda]

Smooth images in colour, decoded beforehand, of one size and of mixed sizes; the patches end on the device, where the
model reads them. Before anything is timed, the backends have to agree to within one of 255 levels. Ends with one line
of JSON, `pil_over_torchvision`: the time of the PIL backend over that of the other, for PIL images and for tensors
that are on the device. Without torchvision it says so and ends.
"""

import argparse
import json

import numpy as np
import PIL.Image
import torch
from measure import paired_seconds
from transformers.utils import is_torchvision_available

from densemllm import DenseMLLMImageProcessor


def make_image(height: int, width: int, seed: int) -> PIL.Image.Image:
    """Smooth noise in colour."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    return PIL.Image.fromarray(small).resize((width, height), PIL.Image.Resampling.BICUBIC)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="of torch; a loader's worker has 1")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller images, under a minute")
    args = parser.parse_args()
    if not is_torchvision_available():
        print("torchvision is not installed: there is nothing to compare the PIL backend with")
        return
    from densemllm.image_processing_torchvision_densemllm import DenseMLLMImageProcessorTorchvision

    torch.set_num_threads(args.threads)
    pil, own = DenseMLLMImageProcessor(), DenseMLLMImageProcessorTorchvision()
    count, edge = (4, 240) if args.quick else (args.images, 480)
    sizes = {
        "one size, resized": [(edge + 10, edge * 4 // 3 + 10)] * count,
        "one size, kept": [(edge // 32 * 32, edge // 24 * 32)] * count,
        "mixed sizes, resized": [(edge + 37 * seed % 200, edge * 4 // 3 + 53 * seed % 200) for seed in range(count)],
    }
    print(f"device {args.device}, {torch.get_num_threads()} threads, {count} images; torchvision's backend to PIL's")
    results = {}
    for name, rows in sizes.items():
        images = [make_image(*size, seed) for seed, size in enumerate(rows)]
        tensors = [torch.from_numpy(np.array(image)).to(args.device) for image in images]

        def with_pil(images=images) -> torch.Tensor:
            return pil(images, return_tensors="pt")["pixel_values"].to(args.device)

        def with_torchvision(images=images) -> torch.Tensor:
            return own(images, return_tensors="pt", device=args.device)["pixel_values"]

        def of_tensors(tensors=tensors) -> torch.Tensor:
            return own(tensors, return_tensors="pt")["pixel_values"]

        for way in (with_torchvision, of_tensors):
            furthest = float((way() - with_pil()).abs().max()) * 255 / 2
            if furthest > 1.001:
                raise SystemExit(f"{name}: the backends differ by {furthest:.2f} levels")
        times = paired_seconds(with_pil, with_torchvision, of_tensors, repeats=3 if args.quick else 7)
        ratios = [times[0] / own_time for own_time in times[1:]]
        print(
            f"  {name:22} PIL {times[0] * 1e3:7.1f} ms, torchvision {times[1] * 1e3:7.1f} ms ({ratios[0]:.2f} times "
            f"faster), of tensors {times[2] * 1e3:7.1f} ms ({ratios[1]:.2f})"
        )
        results[name] = {"images": round(ratios[0], 3), "tensors": round(ratios[1], 3)}
    print("\n" + json.dumps({"pil_over_torchvision": results}))


if __name__ == "__main__":
    main()
