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
r"""Every task of the released 4B model on one picture, with one load and one reading of the picture.

    python convert_youtu_vl_to_densemllm.py tencent/Youtu-VL-4B-Instruct youtu-vl
    python examples/youtu_vl.py --model youtu-vl --image photo.jpg --labels person car tree --text "the red car"

Writes one picture a task and `answers.json` into `--output_dir`. Any DenseMLLM checkpoint works; how good the answers
are is up to its training.
"""

import argparse
import json
import time
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import torch
from tqdm.auto import tqdm

from densemllm import DenseMLLMConfig, DenseMLLMForConditionalGeneration
from densemllm.drawing_densemllm import label_colors
from densemllm.files import OVERWRITE_HELP, check_outputs_of_script


def draw_answer(image: PIL.Image.Image, answer: dict) -> PIL.Image.Image:
    """Boxes, polygons, key points and points of an answer in words, drawn into the picture."""
    picture = image.copy()
    draw = PIL.ImageDraw.Draw(picture)
    labels = answer.get("labels") or []
    colors = [tuple(int(channel) for channel in color) for color in label_colors(64)]
    for index, box in enumerate(answer.get("boxes", [])):
        color = colors[index % len(colors)]
        draw.rectangle([float(edge) for edge in box], outline=color, width=2)
        if index < len(labels) and labels[index]:
            draw.text((float(box[0]) + 3, float(box[1]) + 1), labels[index], fill=color)
    for index, instance in enumerate(answer.get("polygons", [])):
        for polygon in instance:
            if len(polygon) > 1:
                draw.polygon([tuple(map(float, point)) for point in polygon], outline=colors[index % len(colors)])
    for person in answer.get("keypoints", []):
        for x, y, visible in person.tolist():
            if visible:
                draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colors[1])
    for x, y in torch.as_tensor(answer.get("points", [])).reshape(-1, 2).tolist():
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], outline=colors[0], width=2)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of a DenseMLLM checkpoint")
    parser.add_argument("--image", required=True)
    parser.add_argument("--labels", nargs="+", default=["person", "car", "tree", "building", "sky"])
    parser.add_argument("--text", default="the object in the middle", help="expression of one object")
    parser.add_argument("--focal_length", type=float, help="of the picture in pixels, for open-world depth")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max_new_tokens", type=int, default=512, help="length of an answer in words, at most")
    parser.add_argument("--output_dir", type=Path, default=Path("out/youtu_vl"))
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args()
    dense = {
        "segmentation": {"task": "segmentation", "labels": args.labels},
        "segmentation_with_others": {"task": "segmentation", "labels": [*args.labels, "<OTHERS>"]},
        "segmentation_own_classes": {"task": "segmentation"},
        "referring": {"task": "referring", "text": args.text},
        "open_set": {"task": "open_set", "labels": args.labels},
    }
    depth_ranges = DenseMLLMConfig.from_pretrained(args.model).depth_ranges
    for name in depth_ranges:
        dense[f"depth_{name}"] = {"task": "depth", "depth_range": name}
        if depth_ranges[name].get("focal_length") and args.focal_length:
            dense[f"depth_{name}"]["focal_length"] = args.focal_length
    answers = {"detection": args.labels, "grounding": args.text, "polygon": args.text, "pose": None,
               "counting": args.labels[0], "classification": args.labels}  # fmt: skip
    outputs = [args.output_dir / f"{name}.png" for name in (*dense, *answers)]
    outputs.append(args.output_dir / "answers.json")
    check_outputs_of_script(parser, outputs, [args.image], args.overwrite, "--output_dir")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = DenseMLLMForConditionalGeneration.from_pretrained(args.model, dtype=args.dtype).eval().to(device)
    encoded = model.encode_image(args.image)
    image = encoded.image
    args.output_dir.mkdir(parents=True, exist_ok=True)
    report = {}
    for name, options in tqdm(dense.items(), desc="dense tasks"):
        started = time.perf_counter()
        # A picture that is scaled to a focal length has to be read again.
        prediction = model.predict_dense(image if "focal_length" in options else encoded, **options)
        prediction.overlay(image).save(args.output_dir / f"{name}.png")
        report[name] = {"seconds": time.perf_counter() - started, "text": prediction.text}
        if prediction.segments_info is not None:
            rows = prediction.segments_info
            report[name]["segments"] = [{"label": row["label"], "area": row["area"]} for row in rows]
        if prediction.predicted_depth is not None:
            depth = prediction.predicted_depth
            report[name]["metres"] = [float(depth.min()), float(depth.median()), float(depth.max())]
    for task, text in tqdm(answers.items(), desc="answers in words"):
        started = time.perf_counter()
        answer = model.predict(encoded, task=task, text=text, max_new_tokens=args.max_new_tokens)
        draw_answer(image, answer).save(args.output_dir / f"{task}.png")
        kept = {name: answer[name] for name in ("text", "labels", "label", "count", "unparsed") if name in answer}
        report[task] = {"seconds": time.perf_counter() - started, **kept}
    (args.output_dir / "answers.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(f"{len(dense) + len(answers)} pictures and answers.json in {args.output_dir}")


if __name__ == "__main__":
    main()
