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
"""Published evaluations, by name: data set, split, options, and what is reported of the released checkpoint."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..formats.coco import NEVER_ANNOTATED
from ..formats.registry import format_of
from .measured import ANSWERED, BOXES, COUNTS, DEPTH, MEASURED, POSES, REFERRED_BOX, REFERRING, SEGMENTATION
from .metrics import METRICS


if TYPE_CHECKING:
    from .arguments import EvaluationArguments


@dataclass(frozen=True)
class Protocol:
    """One published evaluation. It is data: whatever it says is an option of an evaluation that anyone may give.

    Attributes:
        format: layout of the data set, the NAME of `NAME:PATH`; see `docs/data.md`.
        splits: that are reported, the first where none is asked for.
        tasks: names in `MEASURED`.
        options: of an evaluation, by name, where they differ from its defaults.
        samples: of each split, as published.
        published: of each split, what is reported of Youtu-VL-4B-Instruct (arXiv 2601.19798): metric to value.
        note: what of the publication can't be done in the same way, or is not known.
    """

    format: str
    splits: tuple[str, ...]
    tasks: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    note: str | None = None

    def split(self, name: str) -> str:
        """A split by the name that it has here: validation and val are one."""
        other = {"validation": "val", "val": "validation"}.get(name, name)
        return name if name in self.splits or other not in self.splits else other

    @property
    def settings(self) -> dict[str, Any]:
        """All options that it says something of, by name."""
        return {"task": list(self.tasks), "split": self.splits[0], **self.options}


CLASSES = (SEGMENTATION.name, ANSWERED.name)
LABELS_NOTE = (
    "the figure is most likely of the labels that the model answers, of a prompt drawn from several that aren't "
    "published: one is asked here, unless `label_prompts` has more. Whether the dense CRF was on isn't known: it is "
    "off here"
)
REFERRING_NOTE = "the dense CRF that the report applies to a crop is not applied"


def _mean_iou(value: float, split: str = "validation") -> dict[str, dict[str, float]]:
    return {split: {"mean_iou": value}}


def _ciou(*values: float, splits: tuple[str, ...]) -> dict[str, dict[str, float]]:
    return {split: {"ciou": value} for split, value in zip(splits, values, strict=True)}


REFCOCO_SPLITS, REFCOCOG_SPLITS = ("validation", "testA", "testB"), ("validation", "test")
# Sources: Youtu-VL's report for scales, ranges and figures; mmsegmentation's data sets for classes; Eigen et al. 2014,
# Garg et al. 2016 and ZoeDepth for crops and caps; refer's README for splits.
PROTOCOLS = {
    "ade20k": Protocol(
        "ade20k", ("validation",), CLASSES, {"scale": 4.0, "shuffle_labels": True},
        {"validation": 2000}, _mean_iou(0.542), LABELS_NOTE,
    ),
    "coco_stuff": Protocol(
        "coco_stuff", ("validation",), CLASSES,
        {"scale": 3.0, "shuffle_labels": True, "extra_labels": sorted(NEVER_ANNOTATED)},
        {"validation": 5000}, _mean_iou(0.525), LABELS_NOTE,
    ),
    "context59": Protocol(
        "context59", ("validation",), CLASSES, {"scale": 3.0, "shuffle_labels": True},
        {"validation": 5105}, _mean_iou(0.604), LABELS_NOTE,
    ),
    "voc20": Protocol(
        "voc20", ("validation",), CLASSES, {"scale": 3.0, "shuffle_labels": True},
        {"validation": 1449}, _mean_iou(0.925), LABELS_NOTE,
    ),
    "cityscapes": Protocol(
        "cityscapes", ("validation",), CLASSES,
        {"scale": 2.0, "shuffle_labels": True, "tile": [1024, 2048], "tile_overlap": 0},
        {"validation": 500}, _mean_iou(0.704),
        LABELS_NOTE + ". A tile is a crop of 512x1024 pixels, 2x2 of them an image, and what is asked in words is "
        "asked of the whole image",
    ),
    "nyuv2": Protocol(
        "nyuv2", ("test",), (DEPTH.name,),
        {"scale": 3.0, "min_depth": 1e-3, "max_depth": 10.0, "crop": "nyu"},
        {"test": 654}, {"test": {"delta1": 0.904}},
        "of the raw depth; of the filled one it differs. The report does not say which was compared",
    ),
    "kitti_eigen": Protocol(
        "kitti", ("eigen_test",), (DEPTH.name,),
        {"min_depth": 1e-3, "max_depth": 80.0, "crop": "garg"},
        {"eigen_test": 652},
        note="the report has no figure; 652 of the split's 697 images have annotated depth",
    ),
    "ddad": Protocol(
        "ddad", ("val",), (DEPTH.name,), {"min_depth": 0.05, "max_depth": 120.0},
        {"val": 3950}, {"val": {"delta1": 0.876}},
        "3,950 frames are those of one camera; ZoeDepth compares up to 80 m within Garg's crop",
    ),
    "ibims1": Protocol(
        "ibims1", ("test",), (DEPTH.name,), {"min_depth": 1e-3, "max_depth": 10.0, "crop": "nyu"},
        {"test": 100},
        note="as ZoeDepth compares; others compare from 0.005 to 25 m without a crop",
    ),
    "cityscapes_depth": Protocol(
        "cityscapes_depth", ("validation",), (DEPTH.name,), {"min_depth": 1e-3, "max_depth": 80.0},
        {"validation": 500},
        note="the report leaves out regions at the left and at the bottom whose size it does not say; nothing is left "
        "out here. Its figure of 0.927 is that of a model fine-tuned on the data set",
    ),
    "refcoco": Protocol(
        "refcoco", REFCOCO_SPLITS, (REFERRING.name, REFERRED_BOX.name), {},
        {"validation": 10834, "testA": 5657, "testB": 5095},
        _ciou(0.807, 0.820, 0.784, splits=REFCOCO_SPLITS), REFERRING_NOTE,
    ),
    "refcoco+": Protocol(
        "refcoco+", REFCOCO_SPLITS, (REFERRING.name, REFERRED_BOX.name), {},
        {"validation": 10758, "testA": 5726, "testB": 4889},
        _ciou(0.762, 0.796, 0.714, splits=REFCOCO_SPLITS), REFERRING_NOTE,
    ),
    "refcocog": Protocol(
        "refcocog", REFCOCOG_SPLITS, (REFERRING.name, REFERRED_BOX.name), {},
        {"validation": 4896, "test": 9602},
        _ciou(0.765, 0.766, splits=REFCOCOG_SPLITS), REFERRING_NOTE,
    ),
    "coco_detection": Protocol(
        "coco_detection", ("validation",), (BOXES.name,), {"detection_scales": [1.0, 2.0, 3.0, 4.0]},
        {"validation": 5000},
        note="no figure stands in the sources at hand. The model is asked for all objects; names that aren't COCO's "
        "are left out",
    ),
    "mpii": Protocol(
        "mpii", ("validation",), (POSES.name,), {},
        {"validation": 2958},
        note="no figure stands in the sources at hand. Each person is cut out by its true box, 1.25 times as large",
    ),
    "tallyqa": Protocol(
        "tallyqa", ("test",), (COUNTS.name,), {},
        {"test": 38589},
        note="no figure stands in the sources at hand. The report enlarges images 2 or 2.5 times without saying which",
    ),
}  # fmt: skip
# Options that say where and how fast something is computed, and not what.
FREE = {
    "model", "data", "protocol", "output_dir", "batch_size", "device", "dtype", "attn_implementation",
    "trust_remote_code", "save_every", "save_coco", "cases", "update_card", "data_name", "overwrite",
}  # fmt: skip


def get_protocol(name: str) -> Protocol:
    """A row of [`PROTOCOLS`].

    Raises:
        ValueError: there is none of that name; the message lists all.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"`protocol` must be one of {sorted(PROTOCOLS)}, got {name!r}")
    return PROTOCOLS[name]


def data_of(protocol: Protocol, data: str) -> str:
    """`data` as the layout of the protocol reads it: a path gets its name in front."""
    return data if format_of(data) is not None else f"{protocol.format}:{data}"


def compare_protocol(args: "EvaluationArguments", samples: int) -> dict[str, Any] | None:
    """What an evaluation has in common with its protocol, if it has one.

    Args:
        args: as the user gave them, before what the data say of themselves was filled in.
        samples: that are evaluated.

    Returns:
        `name`; `published`, metric to value, of the split; `differs`, of each option that isn't the protocol's, what
        is given and what the protocol has; and `note`. `None` without a protocol.
    """
    if args.protocol is None:
        return None
    protocol = get_protocol(args.protocol)
    expected = {name: protocol.settings.get(name, default) for name, default in args.defaults().items()}
    given = {name: getattr(args, name) for name in expected if name not in FREE}
    differs = {name: [value, expected[name]] for name, value in given.items() if value != expected[name]}
    split = protocol.split(args.split)
    if split in protocol.splits:
        differs.pop("split", None)
    layout = args.data.partition(":")[0]
    if layout != protocol.format:
        differs["data"] = [args.data, f"{protocol.format}:PATH"]
    official = protocol.samples.get(split)
    if official is not None and official != samples:
        differs["samples"] = [samples, official]
    return {
        "name": args.protocol,
        "published": protocol.published.get(split, {}),
        "differs": differs,
        "note": protocol.note,
    }


def describe_protocol(comparison: dict[str, Any]) -> str:
    """What [`compare_protocol`] found, in a few lines."""
    lines = [f"Protocol {comparison['name']}."]
    lines += [
        f"- `{name}` differs: {given}, the protocol has {expected}"
        for name, (given, expected) in comparison["differs"].items()
    ]
    if comparison["published"]:
        values = ", ".join(f"{METRICS[key].name} {value}" for key, value in comparison["published"].items())
        lines.append(f"- Published of the 4B model: {values}.")
    if comparison["note"]:
        lines.append(f"- Note: {comparison['note']}.")
    return "\n".join(lines)


def describe_protocols() -> str:
    """All protocols as a Markdown table."""
    lines = ["| protocol | data | splits | tasks | options | published (4B) |", "|---|---|---|---|---|---|"]
    for name, protocol in PROTOCOLS.items():
        options = ", ".join(f"{key} {_brief(value)}" for key, value in protocol.options.items())
        figures = "; ".join(
            f"{METRICS[key].name} {value}" + (f" ({split})" if len(protocol.published) > 1 else "")
            for split, values in protocol.published.items()
            for key, value in values.items()
        )
        tasks = ", ".join(MEASURED[task].name for task in protocol.tasks)
        cells = (name, f"`{protocol.format}:`", ", ".join(protocol.splits), tasks, options or "-", figures or "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _brief(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], str):
        return f"{len(value)} more"
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


__all__ = ["PROTOCOLS", "Protocol", "compare_protocol", "data_of", "describe_protocol", "describe_protocols",
           "get_protocol"]  # fmt: skip
