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
"""The options of an evaluation."""

import math
import os
from dataclasses import asdict, dataclass, fields
from typing import Any

from transformers.hf_argparser import HfArg

from ..answers_densemllm import normalize_name
from ..formats.options import read_ignore_index
from ..targets_densemllm import IGNORE_INDEX
from ..task_base_densemllm import REFINEMENTS
from ..tasks_densemllm import Normals
from ..tiles_densemllm import check_tiling
from .measured import INSTANCES, LANGUAGE, MEASURED, PANOPTIC, Settings
from .metrics import DenseMetrics
from .protocols import PROTOCOLS, data_of, get_protocol


# Options that a protocol may say, and what they are where it doesn't.
DEFAULTS = {
    "split": "validation", "crop": "none", "depth_average": "images", "depth_align": "none", "mirror": False,
    "shuffle_labels": False, "detection_scales": [1.0],
}  # fmt: skip


@dataclass
class EvaluationArguments:
    """The options of an evaluation, as the command line has them.

    Raises:
        ValueError: an option that can't be used, by its name.
    """

    model: str = HfArg(aliases=["--model_name_or_path"], help="folder or Hub name of a DenseMLLM checkpoint")
    data: str = HfArg(aliases=["--dataset"], help="data set, see `load_samples`")
    task: list[str] | None = HfArg(default=None, help=f"one or several of {', '.join(MEASURED)}")
    protocol: str | None = HfArg(
        default=None,
        help=f"a published evaluation, which says what the options below leave out: {', '.join(PROTOCOLS)}",
    )
    output_dir: str = HfArg(default="out/evaluation", help="folder of the results, and of the state to go on from")
    split: str | None = HfArg(default=None, help="split of the data, where it has any; validation where left out")
    limit: int | None = HfArg(default=None, help="evaluate on so many samples, the first ones")
    batch_size: int = HfArg(default=8, help="images a forward pass, in each process")
    id2label: str | None = HfArg(
        default=None, help="JSON file from class id to name; `id2label.json` in the data's folder"
    )
    ignore_index: str | None = HfArg(
        default=None, help="value of pixels that aren't annotated, or several joined by commas; the data's own, or 255"
    )
    column_map: str | None = HfArg(
        default=None, help="columns by the schema's names: image=pixel_values,depth=depth_map"
    )
    label_map: str | None = HfArg(default=None, help="class ids to merge and drop: 3=5,7=255, or a JSON or YAML file")
    reduce_labels: bool = HfArg(default=False, help="class 0 isn't annotated, and all others are one less")
    image_pattern: str | None = HfArg(default=None, help="of a folder's images, such as {stem}_leftImg8bit.png")
    mask_pattern: str | None = HfArg(default=None, help="of its class maps, such as {stem}_gtFine_labelIds.png")
    depth_pattern: str | None = HfArg(default=None, help="of its depth, such as {stem}_depth.png")
    label_colors: str | None = HfArg(default=None, help="file of the colours of its class maps: JSON, YAML or text")
    depth_scale: float | None = HfArg(
        default=None, help="metres a unit of depth; left out: floats are metres, and integers are refused"
    )
    depth_range: str | None = HfArg(default=None, help="row of the config's `depth_ranges`; its default row")
    min_depth: float | None = HfArg(default=None, help="only depth beyond so many metres counts")
    max_depth: float | None = HfArg(default=None, help="only depth below so many metres counts (NYUv2: 10, KITTI: 80)")
    crop: str | None = HfArg(
        default=None, help="part of the image where depth counts: none, eigen and garg (KITTI), or nyu"
    )
    depth_average: str | None = HfArg(
        default=None, help="images: all images weigh the same, as in the literature; pixels: all valid pixels"
    )
    depth_align: str | None = HfArg(
        default=None, help="median: scale each predicted depth map so that its median is that of the reference"
    )
    mirror: bool | None = HfArg(default=None, help="average the depth of an image and of its mirror image")
    scale: float | None = HfArg(default=None, help="factor on the images' size for a finer grid (the paper: ADE20K 4)")
    max_num_patches: int | None = HfArg(default=None, help="patches of an image at most; the processor's own number")
    tile: list[int] | None = HfArg(
        default=None,
        help="read images in tiles: their edge, or height and width, in pixels after `scale`",
    )
    tile_overlap: int | None = HfArg(default=None, help="pixels that tiles share; an eighth of the shorter edge")
    refine: str | None = HfArg(default=None, help="guided, or crf for classes: move maps to the image's edges")
    extra_labels: list[str] | None = HfArg(
        default=None, help="names of classes that compete though nothing is annotated with them, joined by commas"
    )
    shuffle_labels: bool | None = HfArg(
        default=None, help="names in an order of its own for each image, where the model is asked about them in words"
    )
    label_prompts: list[str] | None = HfArg(
        default=None, help="what it is asked then, with {text} for the names; one is drawn for each image"
    )
    seed: int = HfArg(default=0, help="of what is drawn for each image")
    thing_labels: list[str] | None = HfArg(
        default=None,
        help="names or ids of classes whose objects are told apart, joined by commas; the config's `thing_labels`",
    )
    normals_source: str | None = HfArg(
        default=None, help="tokens or depth; left out: tokens of normals where the model has them"
    )
    detection_scales: list[float] | None = HfArg(
        default=None,
        help="factors on the images' size at which objects are detected, whose boxes are put together (the report of "
        "the released checkpoint: 1 2 3 4)",
    )
    text_file: str | None = HfArg(
        default=None, help="UTF-8 file whose perplexity is measured; a short one of this project where left out"
    )
    baseline: str | None = HfArg(
        default=None,
        help="results.json of an earlier evaluation, such as that of the model before training, to say whether its "
        "text is kept",
    )
    device: str | None = HfArg(
        default=None, help="cpu, cuda, cuda:1...; with several processes cpu, or each its own where left out"
    )
    dtype: str = HfArg(
        default="auto",
        help="of the weights: float32, bfloat16, float16, or auto: as they are stored, float32 on a CPU that only "
        "emulates bfloat16",
    )
    attn_implementation: str | None = HfArg(default=None, help="sdpa, eager, flash_attention_2, ...")
    trust_remote_code: bool = HfArg(default=False, help="run the code that the checkpoint's tokenizer brings")
    save_every: int = HfArg(default=10, help="batches of a process between two pieces of the state")
    save_coco: str | None = HfArg(
        default=None, help="folder for what is found of panoptic maps and instances, in COCO's formats"
    )
    cases: int = HfArg(default=3, help="best, median and worst images to draw of each task, so many of each; 0: none")
    update_card: bool = HfArg(default=False, help="put the results into the model index of the model folder's card")
    data_name: str | None = HfArg(default=None, help="what the card calls the data; as `data` does where left out")
    overwrite: bool = HfArg(
        default=False, help="start anew in a folder that has an evaluation's files, which are replaced"
    )

    def __post_init__(self) -> None:
        self._fill_in()
        self.task = [self.task] if isinstance(self.task, str) else list(self.task)
        unknown = set(self.task) - set(MEASURED)
        if not self.task or unknown or len(set(self.task)) < len(self.task):
            raise ValueError(f"`task` must be of {sorted(MEASURED)}, each once, got {self.task}")
        for name, least in (("batch_size", 1), ("limit", 1), ("save_every", 1), ("max_num_patches", 1), ("cases", 0)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}")
        for name in ("scale", "depth_scale"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be a number greater than 0, got {value}")
        if self.normals_source not in (None, *Normals.sources):
            raise ValueError(
                f"`normals_source` must be one of {list(Normals.sources)} or left out, got {self.normals_source!r}"
            )
        if self.refine not in (None, *REFINEMENTS):
            raise ValueError(f"`refine` must be one of {list(REFINEMENTS)} or left out, got {self.refine!r}")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"`dtype` must be auto, float32, bfloat16 or float16, got {self.dtype!r}")
        if self.update_card and not os.path.isdir(self.model):
            raise ValueError(f"`update_card` needs a `model` that is a local folder, got {self.model!r}")
        if self.save_coco is not None and self.segments_task is None:
            raise ValueError(f"`save_coco` needs a `task` of {[PANOPTIC.name, INSTANCES.name]}, got {self.task}")
        if self.mirror and all(MEASURED[task].average is None for task in self.task):
            averaged = [name for name, task in MEASURED.items() if task.average is not None]
            raise ValueError(f"`mirror` needs a `task` of {averaged}, got {self.task}")
        for name in ("text_file", "baseline"):
            if getattr(self, name) is not None and LANGUAGE.name not in self.task:
                raise ValueError(f"`{name}` needs the `task` {LANGUAGE.name!r}, got {self.task}")
        check_tiling(self.tile, self.tile_overlap, 1)
        if any(prompt.count("{text}") != 1 for prompt in self.label_prompts or []):
            raise ValueError(f"`label_prompts` must have {{text}} once each, got {self.label_prompts}")
        self.make_metrics(self.settings(None))  # names what of cap, crop, average and align can't be used

    def _fill_in(self) -> None:
        """Say what is left out: as the protocol has it, or else by default."""
        if self.protocol is None and self.task is None:
            raise ValueError(f"`task` is needed where no `protocol` says it: one or several of {sorted(MEASURED)}")
        if self.protocol is not None:
            protocol = get_protocol(self.protocol)
            self.data = data_of(protocol, self.data)
            for name, value in protocol.settings.items():
                if getattr(self, name) is None:
                    setattr(self, name, value)
        for name, value in DEFAULTS.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.tile is not None and len(self.tile) == 1:
            self.tile = [*self.tile, *self.tile]

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """What each option is where neither the user nor a protocol says something."""
        return {entry.name: DEFAULTS.get(entry.name, entry.default) for entry in fields(cls)}

    def settings(self, id2label: dict[int, str] | None) -> Settings:
        """What of the options says how samples are read and compared.

        Args:
            id2label: class id to name, from the file of that name.
        """
        options = asdict(self)
        if not isinstance(self.ignore_index, int):  # before the data was opened
            options["ignore_index"] = (read_ignore_index(self.ignore_index) or (IGNORE_INDEX,))[0]
        if self.extra_labels is not None:
            options["extra_labels"] = tuple(_split_names(self.extra_labels, {}))
        if self.label_prompts is not None:
            options["label_prompts"] = tuple(self.label_prompts)
        names = {entry.name for entry in fields(Settings)} & set(options) - {"id2label", "thing_labels"}
        names -= {name for name in ("extra_labels", "label_prompts") if options[name] is None}
        things = None if self.thing_labels is None else tuple(_split_names(self.thing_labels, id2label or {}))
        return Settings(id2label, thing_labels=things, **{name: options[name] for name in names})

    @property
    def segments_task(self) -> str | None:
        """The first of the tasks that find segments, if any: all of them find the same."""
        return next((name for name in self.task if MEASURED[name].task is PANOPTIC.task), None)

    def make_metrics(self, settings: Settings) -> dict[str, DenseMetrics]:
        """The accumulator of each task."""
        return {task: MEASURED[task].make_metrics(settings) for task in self.task}


def _split_names(texts: list[str], id2label: dict[int, str]) -> list[str | int]:
    """The names or ids of classes in texts, which are joined by commas. What is a class's name, with commas in it or
    of digits alone, is one."""
    known = {normalize_name(name) for name in id2label.values()}
    parts = [part for text in texts for part in ([text] if normalize_name(text) in known else text.split(","))]
    return [
        int(part) if part.strip().isdecimal() and normalize_name(part) not in known else part.strip()
        for part in parts
        if part.strip()
    ]


__all__ = ["EvaluationArguments"]
