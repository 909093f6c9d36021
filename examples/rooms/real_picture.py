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
r"""A real photograph with metric depth, as a sanity check of a model that was trained on rendered rooms.

    pip install scikit-image
    python examples/rooms/real_picture.py --model checkpoints/densemllm-rooms --out motorcycle.png

The only real picture with metres that an installed package brings: the Middlebury motorcycle pair of scikit-image
(741x500, focal length 994.978 pixels, baseline 0.193001 m). One picture is no benchmark. Class maps of real rooms come
with no package.
"""

import argparse
import json

import numpy as np
import PIL.Image
import torch
from skimage import data

from densemllm import DenseMLLMForConditionalGeneration, DensePrediction
from densemllm.evaluation.metrics import DepthMetrics
from densemllm.files import OVERWRITE_HELP, check_outputs_of_script


FOCAL_LENGTH, BASELINE, OFFSET = 994.978, 0.193001, 31.086  # pixels, metres, pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/densemllm-rooms")
    parser.add_argument("--out", help="picture to write: photograph, depth that is there, depth that is seen")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args()
    if args.out is not None:
        check_outputs_of_script(parser, [args.out], [args.model], args.overwrite)
    left, _, disparity = data.stereo_motorcycle()
    depth = np.where(np.isfinite(disparity), FOCAL_LENGTH * BASELINE / (disparity + OFFSET), 0).astype(np.float32)
    known = depth > 0
    image = PIL.Image.fromarray(left)
    model = DenseMLLMForConditionalGeneration.from_pretrained(args.model).eval()
    seen = model.predict_dense(image, task="depth", focal_length=FOCAL_LENGTH).predicted_depth.numpy()
    constant = np.full_like(seen, np.median(depth[known]))
    results = {}
    for name, values, align in (
        ("as it is", seen, "none"), ("scaled to the median", seen, "median"), ("the median", constant, "none"),
    ):  # fmt: skip
        metric = DepthMetrics(align=align)
        metric.add(values, depth)
        results[name] = {key: round(metric.compute()[key], 3) for key in ("delta1", "abs_rel", "rmse")}
    if args.out is not None:
        maps = [
            DensePrediction(predicted_depth=values).to_pil(legend=True)
            for values in map(torch.from_numpy, (depth, seen))
        ]
        sheet = PIL.Image.new("RGB", (image.width + sum(own.width for own in maps), image.height), "white")
        left_edge = 0
        for own in (image, *maps):
            sheet.paste(own, (left_edge, 0))
            left_edge += own.width
        sheet.save(args.out)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
