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
r"""The photographs as a data set in the training schema, so that `evaluate_densemllm.py` measures on them.

    python examples/real_photos/write_data.py --output_dir ~/real_photos
    python evaluate_densemllm.py --model checkpoints/densemllm-rooms --data ~/real_photos --split kept_back \\
        --depth_scale 0.001 --dtype float32 --task segmentation depth

The folder must be outside of this repository: the photographs belong to their packages.
"""

import argparse
import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
from datasets import Dataset, Features, Image, Value
from outlines import CLASSES
from photographs import KEPT, LOOK, Photograph, add_arguments, photographs_of

from densemllm.files import OVERWRITE_HELP, check_outputs_of_script, whole_file


REPOSITORY = Path(__file__).resolve().parents[2]
DEPTH_SCALE = 0.001  # metres a unit
SPLITS = {LOOK: "to_look_at", KEPT: "kept_back"}
FEATURES = Features(
    {
        "image": Image(), "segmentation": Image(), "depth": Image(), "focal_length": Value("float32"),
        "name": Value("string"),
    }
)  # fmt: skip


def encode(image: PIL.Image.Image | np.ndarray) -> dict:
    """An image or a map as the PNG that a column of a data set has."""
    file = io.BytesIO()
    (PIL.Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def row_of(photograph: Photograph) -> dict:
    """A photograph as a row of `FEATURES`; depth that is unknown is 0."""
    millimetres = np.rint(photograph.depth / DEPTH_SCALE).clip(0, np.iinfo(np.uint16).max).astype(np.uint16)
    return {
        "image": encode(photograph.image),
        "segmentation": encode(photograph.classes),
        "depth": encode(millimetres),
        "focal_length": photograph.focal_length,
        "name": photograph.name,
    }


def card_of(splits: list[str]) -> str:
    """The head of a data card, from which `datasets` knows the splits."""
    lines = [f"  - split: {split}\n    path: {split}.parquet" for split in splits]
    return "---\nconfigs:\n- config_name: default\n  data_files:\n" + "\n".join(lines) + "\n---\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="a folder outside of this repository")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    add_arguments(parser)
    args = parser.parse_args()
    folder = args.output_dir.expanduser()
    if folder.resolve().is_relative_to(REPOSITORY):
        parser.error(f"--output_dir must be outside of the repository, {REPOSITORY}, got {folder}")
    names = ["README.md", "id2label.json", *(f"{split}.parquet" for split in SPLITS.values())]
    inputs = [own for own in (args.stereo_folder, args.kinect_file, args.outlines) if own]
    check_outputs_of_script(parser, [folder / name for name in names], inputs, args.overwrite)
    rows = {split: [] for split in SPLITS.values()}
    for photograph in photographs_of(parser, args):
        if photograph.group in SPLITS:
            rows[SPLITS[photograph.group]].append(row_of(photograph))
    rows = {split: found for split, found in rows.items() if found}
    if not rows:
        parser.error("none of the photographs has classes; --sources chooses the packages")
    for split, found in rows.items():
        with whole_file(folder / f"{split}.parquet", args.overwrite) as path:
            Dataset.from_list(found, features=FEATURES).to_parquet(path)
    texts = {"id2label.json": json.dumps(dict(enumerate(CLASSES)), indent=1) + "\n", "README.md": card_of(list(rows))}
    for name, text in texts.items():
        with whole_file(folder / name, args.overwrite) as path:
            path.write_text(text, encoding="utf-8")
    print(f"{', '.join(f'{len(found)} rows {split}' for split, found in rows.items())} in {folder}")


if __name__ == "__main__":
    main()
