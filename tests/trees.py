"""Small trees in the official layouts of data sets, as one folder `data` has them beside each other."""

import json
import pickle
from pathlib import Path

import numpy as np
import PIL.Image

from tiny import make_image


def write_map(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(values).save(path)


def write_image(path: Path, height: int, width: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image(height, width, seed).save(path)


def write_ade20k(root: Path, train: int = 6, validation: int = 2) -> None:
    """`images/` and `annotations/` with the codes 0 to 150, of which an image has a few."""
    for folder, prefix, count in (("training", "train", train), ("validation", "val", validation)):
        for number in range(count):
            name = f"{folder}/ADE_{prefix}_{number + 1:08d}"
            write_image(root / f"images/{name}.jpg", 24, 32, number)
            codes = np.zeros((24, 32), np.uint8)
            codes[4:], codes[:, 16:] = 1 + number, 150 - number
            write_map(root / f"annotations/{name}.png", codes)


def write_coco_stuff(root: Path, count: int = 6) -> None:
    """`train2017/` and `stuffthingmaps/train2017/`, where 255 isn't annotated."""
    for number in range(count):
        write_image(root / f"train2017/{number + 1:012d}.jpg", 24, 40, number)
        values = np.full((24, 40), 255, np.uint8)
        values[8:], values[:, 20:] = 0, 181  # person, wood
        write_map(root / f"stuffthingmaps/train2017/{number + 1:012d}.png", values)


def write_nyuv2(root: Path, train: int = 1, test: int = 1) -> None:
    """Folders of `rgb_*.jpg` and `sync_depth_*.png` in millimetres."""
    for split, count in (("train", train), ("test", test)):
        for number in range(count):
            write_image(root / split / "bathroom" / f"rgb_{number:05d}.jpg", 24, 32, number)
            depth = np.linspace(500, 5000, 24 * 32).reshape(24, 32).astype(np.uint16)
            write_map(root / split / "bathroom" / f"sync_depth_{number:05d}.png", depth)


def write_refcoco(root: Path, coco: Path, expressions: int = 3) -> None:
    """`refs(unc).p` and `instances.json` over one image of `train2014`, with an object for each expression."""
    name = "COCO_train2014_000000581857.jpg"
    write_image(coco / "train2014" / name, 24, 32)
    root.mkdir(parents=True)
    annotations, refs = [], []
    for number in range(expressions):
        x0, x1 = 8 * number, 8 * number + 8
        outline = [[x0, 4, x1, 4, x1, 20, x0, 20]]
        annotations.append(
            {"id": number + 1, "image_id": 581857, "category_id": 1, "iscrowd": 0, "segmentation": outline}
        )
        text = f"cup {number}"
        sentence = {"tokens": text.split(), "raw": text, "sent_id": number, "sent": text}
        refs.append(
            {"sent_ids": [number], "file_name": name, "ann_id": number + 1, "ref_id": number, "image_id": 581857,
             "split": "train", "sentences": [sentence], "category_id": 1}
        )  # fmt: skip
    image = {"id": 581857, "file_name": name, "height": 24, "width": 32}
    content = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    (root / "instances.json").write_text(json.dumps(content))
    (root / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))


def write_chat(path: Path, count: int = 4) -> None:
    """A file of rows with images beside it."""
    rows = []
    for number in range(count):
        write_image(path.parent / f"images/{number}.jpg", 24, 24, number)
        messages = [
            {"role": "user", "content": "What is on the table?"},
            {"role": "assistant", "content": f"{number} cups"},
        ]
        rows.append(json.dumps({"image": f"images/{number}.jpg", "messages": messages}))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_mixture(root: Path) -> None:
    """The data sets of `examples/configs/mixture.yaml` at the paths that it has: 6, 6, 1, 3 and 4 samples."""
    write_ade20k(root / "ADEChallengeData2016")
    write_coco_stuff(root / "coco")
    write_nyuv2(root / "nyuv2")
    write_refcoco(root / "refcoco", root / "coco")
    write_chat(root / "chat.jsonl")
