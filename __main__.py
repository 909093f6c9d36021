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
r"""DenseMLLM from the command line.

    python -m densemllm predict photo.jpg --model MODEL --task depth --out depth.png
    python -m densemllm predict photo.jpg --model MODEL --labels floor,wall,chair --out classes.png
    python -m densemllm predict photo.jpg --model MODEL --task referring --text "the red chair" --out chair.png
    python -m densemllm predict *.jpg --model MODEL --task depth --format raw --out depth/
    python -m densemllm segment photo.jpg --model MODEL --out classes.png     (predict --task segmentation)
    python -m densemllm depth photo.jpg --model MODEL --out depth.npy         (predict --task depth)
    python -m densemllm ask photo.jpg "How many chairs are there?" --model MODEL
    python -m densemllm evaluate --model MODEL --data DATA --task depth       (evaluate_densemllm.py)

What is written is up to the name of `--out`, and to `--format`:

    .png, .jpg           a picture in colours with a legend; with --format overlay laid over the image
    .png --format raw    numbers: depth in millimetres, 16 bit (0: not known, 65535: 65.5 m or more); classes as their
                         number plus one (0: none), 8 or 16 bit; the mask of an object as 255
    .npy                 the array: depth in metres float32, classes int64 (-1: none), masks bool
    .json                classes or the mask as COCO run lengths
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from tqdm.auto import tqdm

from densemllm import DenseMLLMForConditionalGeneration


FIELDS = {"segmentation": "segmentation", "open_set": "segmentation", "depth": "predicted_depth", "referring": "mask"}
SUFFIXES = (".png", ".jpg", ".jpeg", ".npy", ".json")
MILLIMETRES = 1000


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m densemllm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--model", required=True, help="folder or Hub name of a DenseMLLM checkpoint")
    shared.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    shared.add_argument("--dtype", default="auto", help="of the weights: auto, float32, bfloat16 or float16")
    dense = argparse.ArgumentParser(add_help=False)
    dense.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    dense.add_argument("--out", required=True, type=Path, help="file to write; a folder for several images")
    dense.add_argument(
        "--format", choices=("picture", "overlay", "raw"), default="picture", help="of PNG files; see above"
    )
    dense.add_argument("--labels", help="class names, joined by commas; the model's own where left out")
    dense.add_argument("--text", help="expression of the object to find")
    dense.add_argument("--depth_range", help="row of the checkpoint's `depth_ranges`")
    dense.add_argument("--focal_length", type=float, help="of the images, in pixels")
    dense.add_argument("--threshold", type=float, help="pixels with a lower score get no class")
    dense.add_argument("--background", action="store_true", help="pixels may be none of the classes")
    dense.add_argument("--refine", choices=("crf",), help="let near pixels of like colour agree on their class")
    dense.add_argument("--scale", type=float, help="resize the images by this factor first: a finer grid")
    dense.add_argument("--suffix", default=".png", choices=SUFFIXES, help="of the files in a folder")
    predict = commands.add_parser("predict", parents=[shared, dense], help="a dense map of each image")
    predict.add_argument("--task", choices=list(FIELDS), default="segmentation")
    commands.add_parser("segment", parents=[shared, dense], help="predict --task segmentation")
    commands.add_parser("depth", parents=[shared, dense], help="predict --task depth")
    ask = commands.add_parser("ask", parents=[shared], help="a question about an image")
    ask.add_argument("image", metavar="IMAGE")
    ask.add_argument("question", metavar="QUESTION")
    ask.add_argument("--max_new_tokens", type=int, default=256)
    commands.add_parser("evaluate", add_help=False, help="metrics on annotated data; see its own --help")
    return parser


def write_prediction(prediction, field: str, image: PIL.Image.Image, path: Path, form: str) -> None:
    """Write one map in the form that the file's name and `form` ask for; a file is there whole or not at all."""
    values = getattr(prediction, field).numpy()
    # The temporary file has the same suffix: it decides the form.
    handle, name = tempfile.mkstemp(suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        if path.suffix == ".npy":
            np.save(name, values)
        elif path.suffix == ".json":
            Path(name).write_text(json.dumps(prediction.to_rle()), encoding="utf-8")
        elif form == "raw":
            PIL.Image.fromarray(_numbers(values, field)).save(name)
        elif form == "overlay":
            prediction.overlay(image, field).save(name)
        else:
            prediction.to_pil(field, legend=True).save(name)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _numbers(values: np.ndarray, field: str) -> np.ndarray:
    if field == "predicted_depth":
        return np.clip(np.round(values * MILLIMETRES), 1, 65535).astype(np.uint16)
    if field == "mask":
        return values.astype(np.uint8) * 255
    return (values + 1).astype(np.uint8 if values.max() < 255 else np.uint16)


def check_arguments(args) -> list[Path]:
    """The file of each image; `ValueError`s name what can't be used."""
    missing = [name for name in args.images if not os.path.isfile(name)]
    if missing:
        raise ValueError(f"IMAGE must be a file, got {', '.join(missing)}")
    if args.task == "referring" and not args.text:
        raise ValueError("--task referring needs --text, the words for the object")
    if args.task != "referring" and args.text:
        raise ValueError(f"--text is for --task referring, not for {args.task}")
    if args.task == "open_set" and not args.labels:
        raise ValueError("--task open_set needs --labels")
    if len(args.images) > 1 or args.out.is_dir() or not args.out.suffix:
        stems = [Path(name).stem for name in args.images]
        if args.out.suffix and not args.out.is_dir():
            raise ValueError(f"--out must be a folder for several images, got {args.out}")
        twice = sorted({stem for stem in stems if stems.count(stem) > 1})
        if twice:
            raise ValueError(f"IMAGE: several files would be written to {twice[0]}{args.suffix}")
        paths = [args.out / f"{stem}{args.suffix}" for stem in stems]
    else:
        paths = [args.out]
    if paths[0].suffix.lower() not in SUFFIXES:
        raise ValueError(f"--out must end in one of {', '.join(SUFFIXES)}, got {args.out}")
    if args.format == "raw" and paths[0].suffix.lower() in (".jpg", ".jpeg"):
        raise ValueError("--format raw needs .png: JPEG changes numbers")
    if paths[0].suffix == ".json" and args.task == "depth":
        raise ValueError("--out .json is for classes and masks; depth is written as .npy or .png")
    return paths


def predict(args) -> None:
    args.task = {"segment": "segmentation", "depth": "depth"}.get(args.command) or args.task
    paths = check_arguments(args)
    model = DenseMLLMForConditionalGeneration.from_pretrained(args.model, dtype=args.dtype).eval().to(args.device)
    labels = [name for name in args.labels.split(",") if name.strip()] if args.labels is not None else None
    if labels is None and args.task == "segmentation" and not _names_are_generic(model.config.id2label):
        labels = {int(key): name for key, name in model.config.id2label.items()}
    options = {
        "labels": labels if FIELDS[args.task] == "segmentation" else None, "text": args.text,
        "background": args.background, "threshold": args.threshold, "depth_range": args.depth_range,
        "focal_length": args.focal_length, "refine": args.refine, "scale": args.scale,
    }  # fmt: skip
    options = {name: value for name, value in options.items() if value is not None}
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    pairs = list(zip(args.images, paths, strict=True))
    for name, path in tqdm(pairs, desc=args.task, disable=len(pairs) == 1):
        image = model.get_processor().image_processor.load_picture(name)
        prediction = model.predict_dense(image, task=args.task, **options)
        write_prediction(prediction, FIELDS[args.task], image, path, args.format)
        tqdm.write(f"{path}: {describe(prediction, FIELDS[args.task])}")


def _names_are_generic(id2label: dict) -> bool:
    return all(name == f"LABEL_{key}" for key, name in id2label.items())


def describe(prediction, field: str) -> str:
    """One line on what is in a map."""
    values = getattr(prediction, field)
    if field == "predicted_depth":
        return f"{float(values.min()):.2f} to {float(values.max()):.2f} m, median {float(values.median()):.2f} m"
    if field == "mask":
        return f"{100 * float(values.float().mean()):.1f} % of the image"
    rows = sorted(prediction.segments_info, key=lambda row: -row["area"])
    return ", ".join(f"{row['label']} {100 * row['area'] / values.numel():.1f} %" for row in rows) or "none of them"


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0, or 2 after a message where something can't be used."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] == "evaluate":
        from densemllm.evaluate_densemllm import main as evaluate

        evaluate(arguments[1:])
        return 0
    args = make_parser().parse_args(arguments)
    try:
        if args.command == "ask":
            if not os.path.isfile(args.image):
                raise ValueError(f"IMAGE must be a file, got {args.image}")
            model = DenseMLLMForConditionalGeneration.from_pretrained(args.model, dtype=args.dtype).eval()
            print(model.to(args.device).query(args.image, args.question, max_new_tokens=args.max_new_tokens))
        else:
            predict(args)
    except (ValueError, TypeError, OSError) as error:
        print(f"{make_parser().prog} {args.command}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
