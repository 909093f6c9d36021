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
"""ADE20K, the scene parsing benchmark of 150 classes, as `ADEChallengeData2016` has it.

What is read of `ade20k:PATH`, PATH being `ADEChallengeData2016` or the folder that it stands in:

- `images/training/*.jpg` and `images/validation/*.jpg`;
- `annotations/training/*.png` and `annotations/validation/*.png`, where 0 is no class and 1 to 150 are the classes;
  here these are 0 to 149, and 0 becomes 255.

Names are the first of each class's list (`building`, not `building;edifice`), in the order of the benchmark.
"""

from functools import partial

from ..drawing_densemllm import PALETTES
from .base import Facts, Format, FormatSamples, check_split, find_folder
from .class_maps import check_complete, find_root, from_one, list_files, read_classes


ID2LABEL = dict(enumerate(PALETTES["ade20k"]))
CODES = from_one(len(ID2LABEL))
FOLDERS = {"train": "training", "validation": "validation"}


def open_ade20k(path: str, split: str) -> FormatSamples:
    """The samples of a split, with `image` and `segmentation`.

    Args:
        path: `ADEChallengeData2016`, or the folder that it stands in.
        split: "train" or "validation".

    Raises:
        ValueError: another split, or files that lack.
    """
    where = f"ade20k:{path}"
    folder = FOLDERS[check_split(split, FOLDERS, where)]
    root = find_root(path, ("ADEChallengeData2016",), "images", where)
    images = find_folder(root, (f"images/{folder}",), where)
    annotations = find_folder(root, (f"annotations/{folder}",), where)
    image_files, map_files = list_files(images, (".jpg",)), list_files(annotations, (".png",))
    check_complete(image_files, map_files, annotations, where)
    check_complete(map_files, image_files, images, where)
    rows = [(file, map_files[name]) for name, file in image_files.items()]
    return FormatSamples(rows, partial(_read, where), ("image", "segmentation"), Facts(ID2LABEL))


def _read(where: str, row: tuple[str, str], wanted: frozenset[str]) -> dict:
    image, classes = row
    sample = {"image": image}
    if "segmentation" in wanted:
        sample["segmentation"] = read_classes(classes, CODES, where)
    return sample


FORMATS = {
    "ade20k": Format(
        open_ade20k,
        tuple(FOLDERS),
        "ADE20K, 150 classes: ADEChallengeData2016 with images/ and annotations/, each with training/ and validation/",
    )
}

__all__ = ["FORMATS", "open_ade20k"]
