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
r"""What `train_hf.py` wrote, as a checkpoint to publish: weights in bfloat16, a model card, the log and its curve.

    python examples/rooms/publish.py --trained out/rooms/pretrained/work out/rooms/trained out/rooms/finer \
        --rooms 2400 2400 2400 --processes 1 2 2 --output_dir checkpoints/densemllm-rooms
    python examples/rooms/publish.py --before checkpoints/densemllm-rooms --trained out/rooms/varied_trained \
        --rooms 2400 --processes 2 --share 0.3 --output_dir NEW_FOLDER
    python evaluate_densemllm.py --model checkpoints/densemllm-rooms --data out/rooms/data --split test \
        --depth_scale 0.002 --task segmentation depth referring class_list --update_card --data_name rooms
    python examples/rooms/gallery.py --refine guided --overwrite --out checkpoints/densemllm-rooms/gallery.png
"""

import argparse
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor
from densemllm.files import OVERWRITE_HELP, check_outputs_of_script


ROOM_WIDTH, ROOM_FOCAL_LENGTH = 256, 189  # pixels, of the rendered views; the median of their focal lengths

CARD = """
# densemllm-rooms

A small DenseMLLM ({parameters:.1f} million parameters, {size:.0f} MB) that segments images of furnished rooms into
{classes} classes, measures their depth in metres, and finds referred objects, all from the logits of its vision
tokens. It is the architecture of [DenseMLLM](https://arxiv.org/abs/2602.14134), scaled down: a vision tower with 2-D
RoPE and windows, a projector that joins 2x2 patches, and a language model with latent attention. A vision token is a
cell of {cell}x{cell} pixels.

![Images of rooms, what is there, and what the model sees](gallery.png)

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("checkpoints/densemllm-rooms", trust_remote_code=True).eval()
labels = model.config.id2label
seen = model.predict_dense("room.jpg", task=("segmentation", "depth"), labels=labels, focal_length=200.0)
found = model.predict_dense("room.jpg", task="referring", text="the chair on the left", focal_length=200.0)
model.query("room.jpg", "How many chairs are there?", focal_length=200.0)
```

`focal_length` is that of the image in pixels: the model sees each at {focal:.0f}. Without it, the image is taken
for one of that focal length, and should be some {width:.0f} pixels wide (`scale={width:.0f} / width` reads a larger
one so, which pipelines need too). Referred objects are found in one pass, with the expression before the image
(`referring_prompt` of the processor). `refine="guided"` moves the edges of maps to the image's, as in the sheet
above.

## Intended use

To try the package on, in seconds and on a CPU: its calls, pipelines, evaluation and fine-tuning. It shows that the
method works at a small size; it is not a model to rely on.

## Limits

It has seen rendered rooms only, with furniture from one catalogue. Photographs are far from what it knows. Small
things are missed: a cell has one class. Its words are those of the training questions.

## Training

On the Rooms data (`examples/rooms` of densemllm, rendered from furniture under CC-BY-3.0 and CC0, see its credits), on
two CPU cores, for {minutes:.0f} minutes: {samples:,} samples, {steps:,} steps, one run after the other:

| run | what learns | steps | samples a step | training rooms | peak learning rate of Muon |
|---|---|---|---|---|---|
{runs}

The tower learns classes and depth of its patches first; then classes, depth, masks and text are learned together, from
labels that have a quarter of their cell (`min_label_share`).{varied}
The validation and test rooms have furniture that no training room has. The commands stand in
`examples/rooms/README.md`.

![Losses of the whole model over the steps](training.png)
"""


# Of a checkpoint that was published, whose runs go on.
VARIED = """
From the fourth run on, varied rooms are seen, too (`render.py --variety`), by cameras of all kinds
(`--camera_effects`), and the centres of objects are learned.{mean}"""
MEAN = """ The published weights are {share:.0%} of what the last run
came to and {rest:.0%} of what it started from."""


class Runs(NamedTuple):
    """What trainings come to: rows of their table, samples and steps in all, minutes, and logs."""

    table: list[str]
    samples: int
    steps: int
    minutes: float
    history: list[dict]


def read_published(folder: Path) -> Runs:
    """The trainings of a checkpoint that this script wrote."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| \d+ \| .*\|$", card, re.MULTILINE)
    minutes = re.search(r"for ([\d,]+) minutes", card)
    if not table or minutes is None:
        raise SystemExit(f"--before {folder} has no card of this script: no table of runs")
    counts = [[int(cell.replace(",", "")) for cell in row.split("|")[3:5]] for row in table]
    history = json.loads((folder / "training_log.json").read_text(encoding="utf-8"))
    return Runs(
        table, sum(steps * batch for steps, batch in counts), sum(steps for steps, _ in counts),
        float(minutes[1].replace(",", "")), history,
    )  # fmt: skip


def read_runs(before: Runs, folders: list[Path], rooms: list[int], processes: list[int]) -> Runs:
    """The trainings so far, and those of folders that `train_hf.py` wrote."""
    table, samples, steps, minutes, history = before
    table, history = list(table), list(history)
    for folder, count, per_step in zip(folders, rooms, processes, strict=True):
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        own, batch = state["log_history"], state["train_batch_size"] * per_step
        history += [{**row, "run": len(table), "step": row["step"] + steps} for row in own]
        rate = max(row["learning_rate"] for row in own if "learning_rate" in row)
        learns = "the whole model" if any("ntp_m_loss" in row for row in own) else "the tower"
        table.append(f"| {len(table) + 1} | {learns} | {state['global_step']:,} | {batch} | {count:,} | {rate:.2g} |")
        minutes += sum(row.get("train_runtime", 0) for row in own) / 60
        samples, steps = samples + batch * state["global_step"], steps + state["global_step"]
    return Runs(table, samples, steps, minutes, history)


@torch.no_grad()
def mix_weights(model: DenseMLLMForConditionalGeneration, before: Path, share: float) -> None:
    """Make the weights a mean of the model's, which count `share`, and of those that its training started from.

    A mean keeps more of what the first data taught, and takes of the second's as much as `share`: Wortsman et al.,
    Robust fine-tuning of zero-shot models, arXiv 2109.01903. Rows of tokens that were added stay as they are.
    """
    start = DenseMLLMForConditionalGeneration.from_pretrained(before, dtype=torch.float32).state_dict()
    for name, values in model.named_parameters():  # those that are tied come once
        own = start[name]
        values[: len(own)].lerp_(own, 1 - share)


def draw_curve(history: list[dict], path: Path) -> None:
    """The losses of the whole model; a gap where one run ended and the next began."""
    import matplotlib.pyplot as plt  # of the extra `rooms`; means of weights need none

    plt.switch_backend("Agg")

    rows = [row for row in history if "ntp_m_loss" in row]
    figure, axes = plt.subplots(figsize=(6, 3))
    for name, color in (("ntp_m_loss", "C0"), ("text_loss", "C1")):
        for number, run in enumerate(sorted({row["run"] for row in rows})):
            own = [row for row in rows if row["run"] == run]
            label = name if number == 0 else None
            axes.plot([row["step"] for row in own], [row[name] for row in own], color=color, label=label)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def link_code(folder: Path) -> None:
    """Within this repository, the code of a checkpoint is a link to the file that it is a copy of: one that can't grow
    old. Uploading follows links."""
    root = Path(__file__).resolve().parents[2]
    if root not in folder.resolve().parents:
        return
    for file in folder.glob("*.py"):
        file.unlink()
        file.symlink_to(os.path.relpath(root / file.name, folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--trained", type=Path, nargs="+", required=True, help="folders of the runs, the last one last"
    )
    parser.add_argument("--before", type=Path, help="the published checkpoint that the first run started at")
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="of the trained weights in a mean with those of --before; 1: they alone",
    )
    parser.add_argument("--rooms", type=int, nargs="+", required=True, help="training rooms of each run")
    parser.add_argument("--processes", type=int, nargs="+", help="of each run; one where left out")
    parser.add_argument("--minutes", type=float, help="of all runs; what the logs say where left out")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args()
    outputs = [args.output_dir / name for name in ("config.json", "model.safetensors", "README.md")]
    check_outputs_of_script(
        parser, outputs, [*args.trained, *([args.before] if args.before else [])], args.overwrite, "--output_dir"
    )
    if not 0 < args.share <= 1 or (args.share < 1 and args.before is None):
        raise SystemExit(f"--share must be above 0, at most 1, and 1 without --before, got {args.share}")
    if len(args.rooms) != len(args.trained):
        raise SystemExit(f"--rooms must have a number for each of {len(args.trained)} runs, got {args.rooms}")
    processes = args.processes or [1] * len(args.trained)
    if len(processes) != len(args.trained):
        raise SystemExit(f"--processes must have a number for each of {len(args.trained)} runs, got {processes}")
    card_path = args.output_dir / "README.md"
    if card_path.is_file() and "model-index" in (metadata_load(card_path) or {}):
        raise SystemExit(f"{card_path} has results of other weights: remove it first")
    before = Runs([], 0, 0, 0.0, []) if args.before is None else read_published(args.before)
    runs = read_runs(before, args.trained, args.rooms, processes)
    model = DenseMLLMForConditionalGeneration.from_pretrained(args.trained[-1], dtype=torch.float32).eval()
    if args.share != 1:
        mix_weights(model, args.before, args.share)
    model = model.bfloat16()
    for config in (model.config, model.config.text_config, model.config.vision_config):
        config.dtype = torch.bfloat16  # what those who load a part will ask for
    processor = DenseMLLMProcessor.from_pretrained(args.trained[-1])
    for link in args.output_dir.glob("*.py"):  # of an earlier checkpoint: saving would write through them
        if link.is_symlink():
            link.unlink()
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)
    link_code(args.output_dir)
    (args.output_dir / "training_log.json").write_text(json.dumps(runs.history, indent=1) + "\n", encoding="utf-8")
    draw_curve(runs.history, args.output_dir / "training.png")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    focal = processor.get_depth_range(None)["focal_length"]
    text = CARD.format(
        parameters=parameters / 1e6, size=2 * parameters / 1e6, classes=len(model.config.id2label),
        samples=runs.samples, steps=runs.steps, minutes=args.minutes or runs.minutes, runs="\n".join(runs.table),
        varied="" if args.before is None else VARIED.format(
            mean="" if args.share == 1 else MEAN.format(share=args.share, rest=1 - args.share)
        ),
        cell=processor.image_processor.patch_size * processor.image_processor.merge_size,
        focal=focal, width=round(focal * ROOM_WIDTH / ROOM_FOCAL_LENGTH, -1),
    )  # fmt: skip
    data = ModelCardData(
        license="apache-2.0", library_name="transformers", pipeline_tag="image-segmentation", language="en",
        tags=["densemllm", "depth-estimation", "referring-segmentation", "custom_code"],
        datasets=["rooms"], metrics=["mean_iou", "delta1", "ciou", "f1"], model_name="densemllm-rooms",
    )  # fmt: skip
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")
    card.save(card_path)
    print(f"{args.output_dir}: {parameters / 1e6:.2f} million parameters, {runs.steps} steps")


if __name__ == "__main__":
    main()
