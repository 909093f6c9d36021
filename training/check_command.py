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
r"""Look at a data set before training on it.

    densemllm check DATA --id2label labels.json --depth_scale 0.001
    densemllm check DATA --split train validation --model MODEL --sheet check.png --fix_report fix.json

Prints what the rows have and what is wrong or suspicious, by row number. Exits with 1 where something has to be fixed
(rows that can't be read, classes without a name), and with 2 after a line on stderr for arguments that can't be used.
"""

import argparse
import json
import os
from pathlib import Path

from ..addresses import find_model
from ..depth_densemllm import DepthBins
from ..files import OVERWRITE_HELP, check_outputs, reading, whole_file
from ..formats.folders import load_samples
from ..formats.labels import find_id2label, load_id2label
from ..processing_densemllm import DenseMLLMProcessor
from ..targets_densemllm import IGNORE_INDEX
from .check import CheckOptions, check_data
from .check_sheet import draw_sheet
from .maps import Samples


GIVEN = "given"  # the name of a range that the command line has


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        prog="densemllm check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATA", help="data set, as for train_hf.py: a folder, a file, a Hub name")
    parser.add_argument("--split", nargs="+", default=["train"], help="one or several; train")
    parser.add_argument("--limit", type=int, help="look at that many rows of each split, from all over it")
    parser.add_argument("--num_workers", type=int, default=min(4, os.cpu_count() or 1), help="processes that read")
    parser.add_argument("--id2label", help="file from class id to name; that in the data set's folder where left out")
    parser.add_argument("--ignore_index", type=int, help=f"class id of what isn't annotated; {IGNORE_INDEX}")
    parser.add_argument("--depth_scale", type=float, help="metres a unit of depth; left out: floats are metres")
    parser.add_argument(
        "--depth_range", nargs="+", help="MIN MAX in metres; or, with --model, a name of its `depth_ranges`"
    )
    parser.add_argument("--model", help="folder or Hub name of a checkpoint: its ranges, tokens and sizes of images")
    parser.add_argument("--columns", help="columns to look at, joined by commas; all")
    parser.add_argument("--sheet", type=Path, help="image to write, of ten samples with their annotations laid over")
    parser.add_argument(
        "--fix_report", "--fix-report", "--report", type=Path, help="JSON file to write, with the rows to fix"
    )
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, or 1 where something in the data has to be fixed.

    Raises:
        ValueError, OSError: an argument that can't be used.
    """
    args = make_parser().parse_args(arguments)
    _check_files(args)
    processor = None
    if args.model is not None:
        find_model(args.model)
        with reading(f"--model {args.model}"):
            processor = DenseMLLMProcessor.from_pretrained(args.model)
    depth_range, depth_bins = _read_range(args.depth_range, processor)
    splits = {}
    for split in dict.fromkeys(args.split):
        with reading(f"DATA {args.data}"):
            splits[split] = load_samples(args.data, split)
    options = _read_options(args, splits, depth_range, depth_bins)
    report = check_data(splits, options, processor, args.limit, args.num_workers)
    print(report.to_text())
    if args.fix_report is not None:
        with whole_file(args.fix_report, args.overwrite) as staged:
            staged.write_text(json.dumps(report.to_dict(), indent=1), encoding="utf-8")
    if args.sheet is not None:
        sheet = draw_sheet(splits, report, options, processor)
        with whole_file(args.sheet, args.overwrite) as staged:
            sheet.save(staged)
    return int(report.is_wrong)


def _check_files(args: argparse.Namespace) -> None:
    if args.sheet is not None and args.sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"--sheet must end in .png, .jpg or .jpeg, got {args.sheet}")
    inputs = [path for path in (args.data.partition(":")[2] or args.data, args.id2label, args.model) if path]
    for argument in ("sheet", "fix_report"):
        if getattr(args, argument) is not None:
            check_outputs([getattr(args, argument)], inputs, args.overwrite, f"--{argument}")
    if args.sheet is not None and args.sheet == args.fix_report:
        raise ValueError(f"--sheet and --fix_report must be two files, got {args.sheet}")


def _read_range(given: list[str] | None, processor: DenseMLLMProcessor | None) -> tuple[str | None, DepthBins | None]:
    """The name of a depth range, and the table that has it."""
    if given is not None and len(given) == 2:
        try:
            low, high = map(float, given)
        except ValueError:
            raise ValueError(f"--depth_range must be MIN MAX in metres, or a name, got {' '.join(given)}") from None
        row = {"mapping": "linear", "min_depth": low, "max_depth": high}
        return GIVEN, DepthBins({GIVEN: row}, GIVEN, 1)
    if processor is None:
        if given is not None:
            raise ValueError(f"--depth_range must be MIN MAX in metres without --model, got {' '.join(given)}")
        return None, None
    if given is not None and len(given) > 2:
        raise ValueError(f"--depth_range must be MIN MAX in metres, or a name, got {' '.join(given)}")
    name = None if given is None else given[0]
    processor.depth_bins.row(name)
    return name, processor.depth_bins


def _read_options(
    args: argparse.Namespace, splits: dict[str, Samples], depth_range: str | None, depth_bins: DepthBins | None
) -> CheckOptions:
    """What the command line says, then the data set itself, then its folder."""
    facts = next((data.facts for data in splits.values() if hasattr(data, "facts")), None)
    file = args.id2label or (find_id2label(args.data) if facts is None else None)
    id2label = load_id2label(file) if file is not None else getattr(facts, "id2label", None)
    ignore_index = getattr(facts, "ignore_index", IGNORE_INDEX) if args.ignore_index is None else args.ignore_index
    depth_scale = getattr(facts, "depth_scale", None) if args.depth_scale is None else args.depth_scale
    if depth_scale is not None and not 0 < depth_scale < float("inf"):
        raise ValueError(f"--depth_scale must be a number of metres > 0, got {depth_scale}")
    columns = None if args.columns is None else args.columns.split(",")
    if columns is not None and "image" not in columns:
        raise ValueError(f"--columns must contain image, got {args.columns}")
    return CheckOptions(id2label, depth_scale, ignore_index, depth_range, columns, depth_bins)


__all__ = ["main"]
