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
r"""The images of `docs/`: what the checkpoint of the repository sees in its room, one image a task.

python tools/make_docs_images.py --out docs/images --overwrite
"""

import argparse
from pathlib import Path

import PIL.Image

from densemllm import DenseMLLMForConditionalGeneration
from densemllm.files import OVERWRITE_HELP, check_outputs_of_script
from densemllm.loading_densemllm import choose_dtype


ROOM, CHECKPOINT, FOCAL_LENGTH = "examples/rooms/room.jpg", "checkpoints/densemllm-rooms", 172.0
LABELS = ["floor", "wall", "ceiling", "window", "door", "chair", "table", "cabinet"]
SIZE = 384  # pixels of the room's edges, for legends that can be read
MAPS = {
    "segmentation": {"labels": LABELS, "refine": "guided"},
    "depth": {"refine": "guided"},
    "referring": {"text": "the table"},
    "normals": {"source": "depth"},
    "panoptic": {"refine": "guided"},  # with the classes of the checkpoint
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args()
    paths = {name: args.out / f"{name}.png" for name in MAPS}
    check_outputs_of_script(parser, list(paths.values()), [ROOM, CHECKPOINT], args.overwrite)
    args.out.mkdir(parents=True, exist_ok=True)
    model = DenseMLLMForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=choose_dtype("auto", "cpu")).eval()
    with PIL.Image.open(ROOM) as file:
        image = file.convert("RGB")
    shown = image.resize((SIZE, SIZE), PIL.Image.Resampling.LANCZOS)
    for name, options in MAPS.items():
        prediction = model.predict_dense(
            image, task=name, focal_length=FOCAL_LENGTH, target_sizes=(SIZE, SIZE), **options
        )
        prediction.side_by_side(shown).quantize(256).save(paths[name], optimize=True)
        print(f"{paths[name]}: {paths[name].stat().st_size >> 10} kB")


if __name__ == "__main__":
    main()
