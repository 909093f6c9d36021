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
"""What is measured how: the tasks of an evaluation in one table, and the options that its metrics take."""

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from transformers.hf_argparser import HfArg

from ..answers_densemllm import parse_refs
from ..formats.options import read_ignore_index
from ..processing_densemllm import DenseMLLMProcessor
from ..targets_densemllm import IGNORE_INDEX, present_values
from ..tasks_densemllm import Classes
from ..tokens_densemllm import BACKGROUND_LABEL
from ..training.maps import read_mask, read_metres
from .metrics import METRICS, ClassListMetrics, DenseMetrics, DepthMetrics, ReferringMetrics, SegmentationMetrics


@dataclass(frozen=True)
class Settings:
    """How samples are read and compared, whatever the task.

    Attributes:
        id2label: class id to name; `None` where no task needs it.
        names: the same names as the model writes them, from [`DenseMLLMProcessor.normalize_labels`].
        ignore_index: value of pixels that are not annotated, for samples that don't bring their own.
        depth_scale: metres a unit of depth, for samples that don't bring their own.
        depth_range: row of the config's `depth_ranges`; its default row where left out.
        refine: as for `predict_dense`.
        min_depth, max_depth, crop, depth_average, depth_align: as for [`DepthMetrics`].
    """

    id2label: dict[int, str] | None = None
    names: dict[int, str] = field(default_factory=dict)
    ignore_index: int = IGNORE_INDEX
    depth_scale: float | None = None
    depth_range: str | None = None
    refine: str | None = None
    min_depth: float | None = None
    max_depth: float | None = None
    crop: str = "none"
    depth_average: str = "pixels"
    depth_align: str = "none"

    def ignored(self, sample: dict) -> int:
        """The value of pixels of a sample that are not annotated."""
        return sample.get("ignore_index", self.ignore_index)


def _no_arguments(samples: list[dict], settings: Settings) -> dict:
    return {}


def _no_check(processor: DenseMLLMProcessor, settings: Settings) -> None:
    return None


@dataclass(frozen=True)
class MeasuredTask:
    """A task as an evaluation sees it: what annotates it, what is asked, and what is compared by which metric.

    Attributes:
        name: of the task, in options and results.
        columns: what annotates an image: alternatives, of which a data set must have one. The first is that of a
            sample as [`read_sample`] gives it; its map, whose size predictions get, is in front.
        make_metrics: settings to the accumulator of the task's metrics.
        score: key of the metric by which images are compared with each other.
        reference: sample and settings to what is true, as the metrics take it; `None`: nothing is known.
        prediction: of a [`DensePrediction`], or of the answer to `question`, to what the metrics take.
        arguments: samples and settings to what `predict_dense` needs to know beside images, sizes and cameras.
        question: asked in words instead of `predict_dense`.
        answer_options: arguments of `query` for it.
        alone: whether the task needs a forward pass of its own; all others of an image share one.
        needs_labels: whether classes are compared, so that their names are needed.
        check: processor and settings; raises a `ValueError` where the two don't fit.
        options: options of an evaluation that change this task's results, with their defaults: a card names those
            that differ.
        score_name: what `score` is called where it is that of one image; as tables call it where left out.
    """

    name: str
    columns: tuple[tuple[str, ...], ...]
    make_metrics: Callable[[Settings], DenseMetrics]
    score: str
    reference: Callable[[dict, Settings], Any]
    prediction: Callable[[Any], Any]
    arguments: Callable[[list[dict], Settings], dict] = _no_arguments
    question: str | None = None
    answer_options: dict[str, Any] = field(default_factory=dict)
    alone: bool = False
    needs_labels: bool = False
    check: Callable[[DenseMLLMProcessor, Settings], object] = _no_check
    options: dict[str, Any] = field(default_factory=dict)
    score_name: str | None = None

    @property
    def score_title(self) -> str:
        """What `score` of one image is called."""
        return self.score_name or METRICS[self.score].name

    def columns_text(self) -> str:
        """The alternatives of `columns` in words."""
        return ", or ".join(" and ".join(names) for names in self.columns)

    def annotates(self, sample: dict) -> bool:
        """Whether a sample, as [`read_sample`] gives it, has this task's annotation."""
        return all(sample.get(column) is not None for column in self.columns[0])


def _check_labels(processor: DenseMLLMProcessor, settings: Settings) -> None:
    if settings.id2label is not None:
        processor.label_token_ids(settings.id2label)


def _make_segmentation_metrics(settings: Settings) -> SegmentationMetrics:
    # Without names, which only a check of the other options lacks, any class will do that isn't ignored.
    keys = sorted(settings.id2label) if settings.id2label else [0 if settings.ignore_index else 1]
    return SegmentationMetrics(len(keys), settings.ignore_index, keys)


def _make_depth_metrics(settings: Settings) -> DepthMetrics:
    return DepthMetrics(
        settings.min_depth, settings.max_depth, settings.crop, settings.depth_average, settings.depth_align
    )


def _true_metres(sample: dict, settings: Settings) -> Any:
    return read_metres(sample["depth"], sample.get("depth_scale", settings.depth_scale), "column `depth`")


def _true_names(sample: dict, settings: Settings) -> list[str] | None:
    """The names of the classes that are in an image."""
    present = present_values(sample["segmentation"]).tolist()
    if set(present) <= {settings.ignored(sample)}:
        return None
    names = [settings.names.get(key, BACKGROUND_LABEL) for key in present]
    return [name for name in names if name != BACKGROUND_LABEL]


SEGMENTATION = MeasuredTask(
    "segmentation",
    columns=(("segmentation",),),
    make_metrics=_make_segmentation_metrics,
    score="mean_iou",
    reference=lambda sample, settings: sample["segmentation"],
    prediction=lambda prediction: prediction.segmentation,
    arguments=lambda samples, settings: {"labels": settings.id2label, "refine": settings.refine},
    needs_labels=True,
    check=_check_labels,
    options={"refine": None},
)
DEPTH = MeasuredTask(
    "depth",
    columns=(("depth",),),
    make_metrics=_make_depth_metrics,
    score="delta1",
    reference=_true_metres,
    prediction=lambda prediction: prediction.predicted_depth,
    check=lambda processor, settings: processor.get_depth_range(settings.depth_range),
    options={"min_depth": None, "max_depth": None, "crop": "none", "depth_average": "pixels", "depth_align": "none"},
)
REFERRING = MeasuredTask(
    "referring",
    columns=(("mask", "expression"), ("instances", "expressions", "expression_instances")),
    make_metrics=lambda settings: ReferringMetrics(),
    score="giou",
    reference=lambda sample, settings: read_mask(sample["mask"], settings.ignored(sample)),
    prediction=lambda prediction: prediction.mask,
    arguments=lambda samples, settings: {"text": [sample["expression"] for sample in samples]},
    alone=True,
    score_name="IoU",
)
CLASS_LIST = MeasuredTask(
    "class_list",
    columns=(("segmentation",),),
    make_metrics=lambda settings: ClassListMetrics(),
    score="f1",
    reference=_true_names,
    prediction=parse_refs,
    question=Classes.question,
    answer_options=Classes.answer_options,
    alone=True,
    needs_labels=True,
    check=_check_labels,
)
MEASURED = {task.name: task for task in (SEGMENTATION, DEPTH, REFERRING, CLASS_LIST)}


@dataclass
class EvaluationArguments:
    """The options of an evaluation, as the command line has them.

    Raises:
        ValueError: an option that can't be used, by its name.
    """

    model: str = HfArg(aliases=["--model_name_or_path"], help="folder or Hub name of a DenseMLLM checkpoint")
    data: str = HfArg(aliases=["--dataset"], help="data set, see `load_samples`")
    task: list[str] = HfArg(help=f"one or several of {', '.join(MEASURED)}")
    output_dir: str = HfArg(default="out/evaluation", help="folder of the results, and of the state to go on from")
    split: str = HfArg(default="validation", help="split of the data, where it has any")
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
    crop: str = HfArg(
        default="none", help="part of the image where depth counts: none, eigen and garg (KITTI), or nyu"
    )
    depth_average: str = HfArg(
        default="pixels", help="pixels: all valid pixels weigh the same; images: all images, as is the custom on NYUv2"
    )
    depth_align: str = HfArg(
        default="none", help="median: scale each predicted depth map so that its median is that of the reference"
    )
    scale: float | None = HfArg(default=None, help="factor on the images' size for a finer grid (the paper: ADE20K 4)")
    max_num_patches: int | None = HfArg(default=None, help="patches of an image at most; the processor's own number")
    refine: str | None = HfArg(default=None, help="crf: refine segmentations")
    device: str | None = HfArg(
        default=None, help="cpu, cuda, cuda:1...; with several processes cpu, or each its own where left out"
    )
    dtype: str = HfArg(default="auto", help="of the weights: auto, float32, bfloat16 or float16")
    attn_implementation: str | None = HfArg(default=None, help="sdpa, eager, flash_attention_2, ...")
    trust_remote_code: bool = HfArg(default=False, help="run the code that the checkpoint's tokenizer brings")
    save_every: int = HfArg(default=10, help="batches of a process between two pieces of the state")
    cases: int = HfArg(default=3, help="best, median and worst images to draw of each task, so many of each; 0: none")
    update_card: bool = HfArg(default=False, help="put the results into the model index of the model folder's card")
    data_name: str | None = HfArg(default=None, help="what the card calls the data; as `data` does where left out")
    overwrite: bool = HfArg(
        default=False, help="start anew in a folder that has an evaluation's files, which are replaced"
    )

    def __post_init__(self) -> None:
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
        if self.refine not in (None, "crf"):
            raise ValueError(f"`refine` must be 'crf' or left out, got {self.refine!r}")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"`dtype` must be auto, float32, bfloat16 or float16, got {self.dtype!r}")
        if self.update_card and not os.path.isdir(self.model):
            raise ValueError(f"`update_card` needs a `model` that is a local folder, got {self.model!r}")
        self.make_metrics(None)  # names what of cap, crop, average and align can't be used

    def settings(self, id2label: dict[int, str] | None) -> Settings:
        """What of the options says how samples are read and compared.

        Args:
            id2label: class id to name, from the file of that name.
        """
        options = asdict(self)
        if not isinstance(self.ignore_index, int):  # before the data was opened
            options["ignore_index"] = (read_ignore_index(self.ignore_index) or (IGNORE_INDEX,))[0]
        names = {entry.name for entry in fields(Settings)} & set(options) - {"id2label"}
        return Settings(id2label, **{name: options[name] for name in names})

    def make_metrics(self, id2label: dict[int, str] | None) -> dict[str, DenseMetrics]:
        """The accumulator of each task."""
        settings = self.settings(id2label)
        return {task: MEASURED[task].make_metrics(settings) for task in self.task}
