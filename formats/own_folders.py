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
"""A folder of one's own: images, and beside them class maps, depth and other maps of the same names."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets import Dataset

from ..files import read_json_or_yaml
from ..tasks_densemllm import Classes, Depth
from ..training.maps import LOSSY_FORMATS
from ..training.samples import MAPS
from .base import Facts, Format, FormatSamples
from .labels import find_id2label, load_id2label
from .options import keep_origin


# Files that systems leave in folders, and folders of such.
LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir"}
# Folders by column; the schema's own name comes first.
FOLDERS = {
    "image": ("image", "images", "img", "imgs"),
    **{name: (name,) for name in MAPS},
    Classes.column: (Classes.column, "segmentations", "masks", "labels", "annotations"),
    Depth.column: (Depth.column, "depths"),
}
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
NO_CLASS = ("ignore", "void", "unlabeled", "border")  # names of what isn't annotated
COLOR = re.compile(r"(\d{1,3})\s*[\s,;]\s*(\d{1,3})\s*[\s,;]\s*(\d{1,3})")


# ---- which files ----


def find_image_folders(root: Path) -> dict[str, Path]:
    """The folders of images by split; `""` is one that has no folder for splits."""
    found = {}
    known = {name: split for split, names in SPLITS.items() for name in names}
    for name in FOLDERS["image"]:
        for folder in sorted(root.glob(f"*/{name}")):
            if folder.is_dir():
                found.setdefault(folder.parent.name, folder)
        if (root / name).is_dir():
            inner = [path for path in sorted((root / name).iterdir()) if path.is_dir() and path.name in known]
            for folder in inner:
                found.setdefault(folder.name, folder)
            if not inner:
                found.setdefault("", root / name)
    return found


def is_own_folder(root: Path) -> bool:
    """Whether there are images in a folder of a known name, which no image folder of `datasets` has its classes in."""
    folders = find_image_folders(root)
    return any(_annotation_folders(root, split, folder) for split, folder in folders.items()) or any(
        folder.name == "image" or folder.parent.name == "image" for folder in folders.values()
    )


def _annotation_folders(root: Path, split: str, images: Path) -> dict[str, Path]:
    """The folders of maps by column that belong to a folder of images."""
    found = {}
    for column in MAPS:
        for name in FOLDERS.get(column, (column,)):
            places = (root / split / name, root / name / split) if split else (root / name,)
            folder = next((place for place in places if place.is_dir()), None)
            if folder is not None:
                found[column] = folder
                break
    return found


def _choose_split(root: Path, split: str) -> tuple[str, Path]:
    folders = find_image_folders(root)
    if not folders:
        raise ValueError(f"{root} must have one of the folders {', '.join(FOLDERS['image'])}")
    for name in (split, *SPLITS.get(split, ())):
        if name in folders:
            return name, folders[name]
    if "" not in folders:
        raise ValueError(f"`split` must be one of {sorted(folders)}, the folders of {root}, got {split!r}")
    if split != "train":
        raise ValueError(f"`split` must be 'train', all that {root} has without a folder for it, got {split!r}")
    return "", folders[""]


def files_by_stem(folder: Path, pattern: str | None = None) -> dict[str, str]:
    """The files of a folder, at any depth, by their path in it without suffix, or by what `{stem}` stands for in a
    pattern: what the files of one sample share.

    Args:
        folder: of the files.
        pattern: file name with `{stem}`, such as `{stem}_gtFine_labelIds.png`; others are left out. Its suffix may be
            left out.

    Raises:
        ValueError: two files of one sample, or a pattern without `{stem}`.
    """
    matcher = None
    if pattern is not None:
        if pattern.count("{stem}") != 1 or "/" in pattern:
            raise ValueError(f"a pattern must be a file name with one {{stem}} in it, got {pattern!r}")
        matcher = re.compile(r"(.+)".join(re.escape(part) for part in pattern.split("{stem}")))
    files: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if path.is_dir() or any(part.startswith(".") or part.lower() in LITTER for part in place.parts):
            continue
        stem = place.with_suffix("").as_posix()
        if matcher is not None:
            match = matcher.fullmatch(place.name) or matcher.fullmatch(place.stem)
            if match is None:
                continue
            stem = (place.parent / match[1]).as_posix()
        if stem in files:
            raise ValueError(f"{folder} has two files of the sample {stem!r}: a pattern says which is meant")
        files[stem] = str(path)
    return files


def _suggest_pattern(unmatched: Sequence[str], stems: Iterable[str]) -> str:
    """A hint for files that are named as the images with something behind."""
    stems = set(stems)
    for name in unmatched[:10]:
        for end in range(len(name) - 1, 0, -1):
            if name[:end] in stems:
                return f"; a pattern such as {{stem}}{name[end:]} says what belongs together"
    return ""


# ---- class maps in colours ----


@dataclass(frozen=True)
class LabelColors:
    """Which colour of a class map is which class.

    Attributes:
        ids: colour as one number, 65536 R + 256 G + B, to class id.
        source: how messages name it.
        id2label: class id to name, where the table has names.
    """

    ids: Mapping[int, int]
    source: str
    id2label: dict[int, str] | None = None

    def __call__(self, image: PIL.Image.Image, where: str) -> np.ndarray:
        """Class ids `[H, W]` of an image in colours.

        Raises:
            ValueError: a colour that the table lacks.
        """
        rgb = np.asarray(image.convert("RGB")).astype(np.int32)
        present, places = np.unique(rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2], return_inverse=True)
        unknown = [color for color in present.tolist() if color not in self.ids]
        if unknown:
            colors = [(color >> 16, color >> 8 & 255, color & 255) for color in unknown[:5]]
            raise ValueError(f"{where}: it has the colours {colors}, which `label_colors` {self.source} lacks")
        table = np.array([self.ids[color] for color in present.tolist()], dtype=np.int32)
        return table[places].reshape(rgb.shape[:2])


def load_label_colors(
    value: "str | Path | Mapping", id2label: dict[int, str] | None = None, ignore_index: int = 255
) -> LabelColors:
    """The colours of classes.

    Args:
        value: a dict, or a JSON or YAML file, from class id or name to `[r, g, b]` (or `"#rrggbb"`, or a list of
            several colours); or a text file with an id or a name and three numbers a line, in either order.
        id2label: tells the ids of names; those of a table of names count from 0 where left out.
        ignore_index: the id of the names `ignore`, `void`, `unlabeled` and `border` that are no class.

    Raises:
        ValueError: what isn't such a table, a colour that is there twice, or a name that `id2label` lacks.
    """
    named = str(value) if isinstance(value, (str, Path)) else "(a dict)"
    entries = list(value.items()) if isinstance(value, Mapping) else _read_colors(Path(value))
    ids = {} if id2label is None else {name: key for key, name in id2label.items()}
    colors, names = {}, {}
    for key, written in entries:
        key = int(key) if isinstance(key, int) or str(key).strip().isdecimal() else str(key).strip()
        if isinstance(key, str):
            if key in ids or id2label is None and key.lower() not in NO_CLASS:
                names[key] = ids.setdefault(key, len(ids))
                key = ids[key]
            elif key.lower() in NO_CLASS:
                key = ignore_index
            else:
                raise ValueError(f"`label_colors` {named} has the name {key!r}, which `id2label` lacks")
        for color in _colors_of(written, named):
            if colors.setdefault(color, key) != key:
                raise ValueError(f"`label_colors` {named} has the colour #{color:06x} of two classes")
    if not colors:
        raise ValueError(f"`label_colors` {named} has no colours")
    return LabelColors(colors, named, {key: name for name, key in names.items()} or None)


def _colors_of(written: Any, named: str) -> list[int]:
    if isinstance(written, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", written.strip()):
        return [int(written.strip()[1:], 16)]
    if (
        isinstance(written, (list, tuple))
        and len(written) == 3
        and all(isinstance(part, int) and 0 <= part <= 255 for part in written)
    ):
        return [written[0] << 16 | written[1] << 8 | written[2]]
    if isinstance(written, (list, tuple)) and written and not isinstance(written[0], int):
        return [color for one in written for color in _colors_of(one, named)]
    raise ValueError(f"`label_colors` {named} must have colours [r, g, b] of 0 to 255 or '#rrggbb', got {written!r}")


def _read_colors(path: Path) -> list[tuple[Any, Any]]:
    if path.suffix.lower() in (".json", ".yaml", ".yml"):
        try:
            table = read_json_or_yaml(path)
        except ValueError as error:
            raise ValueError(f"`label_colors` {path} can't be read: {error}") from error
        if not isinstance(table, dict):
            raise ValueError(f"`label_colors` {path} must have colours by class, got {type(table).__name__}")
        return list(table.items())
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines()):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = COLOR.search(line) if not re.match(r"\s*\d+\D+\d+\D+\d+\D+\d+\s*$", line) else None
        if match is None:  # an id in front of three numbers
            parts = re.split(r"[\s,;:]+", line.strip())
            if len(parts) == 4 and all(part.isdecimal() for part in parts):
                entries.append((parts[0], [int(part) for part in parts[1:]]))
                continue
            if number == 0:  # names of columns
                continue
            raise ValueError(f"`label_colors` {path} must have a class and three numbers a line, got {line!r}")
        key = line[: match.start()].strip(" \t,;:=") or re.split(r"[:,;]", line[match.end() :].strip(" \t,;:="))[0]
        entries.append((key.strip(), [int(part) for part in match.groups()]))
    return entries


# ---- samples ----


def read_class_map(path: str, colors: LabelColors | None) -> Any:
    """A file of class ids: its path, or an array of ids where they are stored as colours.

    Raises:
        ValueError: colours that no table explains.
    """
    try:
        with PIL.Image.open(path) as opened:
            by_color = opened.mode in ("RGB", "RGBA", "LA") or opened.mode in ("P", "PA") and colors is not None
            if not by_color or opened.format in LOSSY_FORMATS:
                return path
            opened.load()
            image = opened.copy()
            image.format = opened.format
            image.getexif().update(opened.getexif())
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError):
        return path  # no image, or damaged: reading the sample says so
    if colors is not None:
        return keep_origin(colors(image, path), image)
    values = np.asarray(image.convert("RGB"))
    if (values != values[..., :1]).any():
        raise ValueError(f"{path} is a class map in colours: `label_colors` must say which class each of them is")
    return keep_origin(values[..., 0], image)  # grey, saved as RGB


def _read_row(colors: LabelColors | None, row: Mapping[str, Any], wanted: frozenset[str]) -> dict[str, Any]:
    row = {name: row[name] for name in wanted if name in row}
    if row.get(Classes.column) is not None:
        row[Classes.column] = read_class_map(row[Classes.column], colors)
    return row


def open_folder(
    path: str | Path,
    split: str = "train",
    image_pattern: str | None = None,
    mask_pattern: str | None = None,
    depth_pattern: str | None = None,
    label_colors: "str | Path | Mapping | None" = None,
    id2label: dict[int, str] | None = None,
) -> FormatSamples:
    """The samples of a folder with `images/` and maps beside it, a row for each image.

    Args:
        path: the folder. The split is a folder in it or in each of its folders (`train/images`, `images/train`).
        split: its name; `val` and `training` are known, too. "train" for a folder without splits.
        image_pattern, mask_pattern, depth_pattern: file names of images, class maps and depth, see [`files_by_stem`].
        label_colors: of class maps in colours, see [`load_label_colors`].
        id2label: class id to name; from `id2label.json`, `classes.txt`... in the folder where left out.

    Raises:
        ValueError: folders or images that lack, or files that don't belong together.
    """
    root = Path(path)
    name, images = _choose_split(root, split)
    folders = _annotation_folders(root, name, images)
    patterns = {"image": image_pattern, Classes.column: mask_pattern, Depth.column: depth_pattern}
    columns = {
        column: files_by_stem(folder, patterns.get(column)) for column, folder in {"image": images, **folders}.items()
    }
    unmatched = sorted({stem for files in columns.values() for stem in files} - set(columns["image"]))
    if unmatched and columns["image"]:
        hint = _suggest_pattern(unmatched, columns["image"])
        raise ValueError(f"{images} lacks the pictures of {unmatched[:10]}, which are annotated{hint}")
    if not columns["image"]:
        raise ValueError(f"{images} is empty" + (f" but for {image_pattern}" if image_pattern else ""))
    bare = [column for column, files in columns.items() if not files and patterns.get(column) is not None]
    if bare:
        raise ValueError(f"{folders[bare[0]]} has no file of the pattern {patterns[bare[0]]!r}")
    if id2label is None and (file := find_id2label(str(root))) is not None:
        id2label = load_id2label(file)
    colors = None if label_colors is None else load_label_colors(label_colors, id2label)
    facts = Facts(id2label if colors is None or id2label is not None else colors.id2label)
    rows = Dataset.from_dict({name: [files.get(stem) for stem in columns["image"]] for name, files in columns.items()})
    return FormatSamples(rows, partial(_read_row, colors), list(columns), facts)


OPTIONS = ("image_pattern", "mask_pattern", "depth_pattern", "label_colors")
FORMATS = {
    "folder": Format(open_folder, None, "a folder of one's own: images/ with masks/, depth/ ... beside it", OPTIONS)
}


__all__ = ["FORMATS", "OPTIONS", "LabelColors", "files_by_stem", "is_own_folder", "load_label_colors", "open_folder"]
