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
"""What an evaluation has done, and of what: a run that was stopped goes on from there."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
import torch
from filelock import FileLock, Timeout

from ..configuration_densemllm import __version__
from ..files import check_outputs, whole_file
from ..processing_densemllm import DenseMLLMProcessor
from .arguments import EvaluationArguments


if TYPE_CHECKING:
    from ..modeling_densemllm import DenseMLLMForConditionalGeneration


OUTPUTS = ("results.json", "results.md", "confusion.png", "cases.png")
# Options that don't change a result, so that a run may go on with others.
FREE_OPTIONS = (
    "model", "data", "data_name", "output_dir", "save_every", "cases", "update_card", "overwrite", "trust_remote_code",
    "text_file", "baseline",
)  # fmt: skip
FINGERPRINT_ROWS = 100
# What `save_coco` writes into its folder; panopticapi looks for the images beside the file, under its name.
COCO_INSTANCES, COCO_PANOPTIC = "instances.json", "panoptic.json"
COCO_IMAGES = COCO_PANOPTIC.removesuffix(".json")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is whole as soon as it has its name."""
    with whole_file(path, overwrite=True) as staged:
        staged.write_bytes(content)


def make_fingerprint(
    args: EvaluationArguments, data: datasets.Dataset, id2label: dict[int, str] | None, device: torch.device
) -> dict:
    """What an evaluation is of, but for its weights and what is in its data: only the same one may go on.

    Args:
        data: the rows to evaluate on.
        id2label: class id to name.
    """
    options = {name: value for name, value in asdict(args).items() if name not in FREE_OPTIONS}
    more = {"task": sorted(args.task), "device": device.type, "samples": len(data), "id2label": id2label}
    return options | more | {"densemllm": __version__}


def data_digest(data: datasets.Dataset) -> str:
    """A digest of up to 100 rows from all over the data; of a file, its name, size and time of change."""
    digest = hashlib.sha256(repr((len(data), data.features)).encode())
    for row in np.unique(np.linspace(0, len(data) - 1, min(len(data), FINGERPRINT_ROWS)).astype(int)).tolist():
        for column, value in sorted(data[row].items()):
            if isinstance(value, dict) and "path" in value:  # an image
                value = value["path"] if value.get("bytes") is None else value["bytes"]
            if isinstance(value, str) and column != "expression" and os.path.isfile(value):
                stat = os.stat(value)
                value = (value, stat.st_size, stat.st_mtime_ns)
            if hasattr(value, "__array_interface__"):  # a map that was made: of an array, and of PIL's, repr isn't all
                value = np.asarray(value).tobytes()
            digest.update(value if isinstance(value, bytes) else repr((column, value)).encode())
    return digest.hexdigest()


def model_digest(model: "DenseMLLMForConditionalGeneration", processor: DenseMLLMProcessor) -> str:
    """A digest of all weights, the configuration and what the processor does."""
    elsewhere = ("_name_or_path", "transformers_version")  # the same model from another place, or saved by another
    config = {key: value for key, value in model.config.to_dict().items() if key not in elsewhere}
    vocabulary = sorted(processor.tokenizer.get_vocab().items())
    digest = hashlib.sha256(repr((config, processor.to_json_string(), processor.chat_template)).encode())
    digest.update(repr(vocabulary).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class State:
    """What an evaluation has done, in a folder: `run.json` says of what, and each `piece-*.json` has the results of
    some batches. A piece is written once and as a whole: a run that is killed loses at most what it had not written.
    Used in a `with` statement: one run at a time has it open.

    Args:
        folder: of the state; the results are beside it.
        overwrite: forget what is there.
        outputs: names of the results, which go with it then.
    """

    def __init__(self, folder: Path, overwrite: bool, outputs: tuple[str, ...] = OUTPUTS):
        self.folder = folder
        self.overwrite = overwrite
        self.outputs = outputs
        self.lock = FileLock(folder / ".lock")

    def __enter__(self) -> "State":
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    @property
    def goes_on(self) -> bool:
        """Whether there is something done to go on from."""
        return not self.overwrite and any(self.folder.glob("piece-*.json"))

    def check(self, fingerprint: dict) -> None:
        """Refuse to go on with something else.

        Raises:
            ValueError: an entry of `fingerprint` differs from the one that the state was begun with.
        """
        if not self.goes_on:
            return
        path = self.folder / "run.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        now = json.loads(json.dumps(fingerprint))
        changed = [key for key in now if key not in before or before[key] != now[key]]
        if changed:
            named = ", ".join(
                f"`{key}` has changed" if key.endswith("_digest") else f"`{key}` was {before.get(key)}, is {now[key]}"
                for key in changed
            )
            raise ValueError(
                f"{self.folder} has the state of another evaluation: {named}. Take another `output_dir`, or "
                "`--overwrite` to start anew"
            )

    def open(self, fingerprint: dict) -> list[dict]:
        """Begin, or go on: the pieces that are there.

        Raises:
            ValueError: as [`check`]; or another run has it open.
        """
        self.check(fingerprint)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(
                f"another evaluation is running in {self.folder.parent}: wait for it, or take another `output_dir`"
            ) from error
        if self.overwrite:  # the files of an evaluation, and nothing else that may be beside them
            for path in [*self.folder.glob("piece-*.json"), *(self.folder.parent / name for name in self.outputs)]:
                path.unlink(missing_ok=True)
        for path in self.folder.glob(".*.tmp*"):  # of a run that was killed
            path.unlink()
        write_atomically(self.folder / "run.json", json.dumps(fingerprint, indent=2).encode())
        return self.pieces()

    def pieces(self) -> list[dict]:
        """All pieces that are there."""
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.folder.glob("piece-*.json"))]

    def has(self, batch: int) -> bool:
        """Whether there is a piece that begins with a batch."""
        return self._path(batch).is_file()

    def _path(self, batch: int) -> Path:
        return self.folder / f"piece-{batch:08d}.json"

    def save(self, piece: dict) -> None:
        """Write a piece. Its first batch names it: no batch is done twice."""
        write_atomically(self._path(piece["batches"][0]), json.dumps(piece).encode())


def check_output_dir(args: EvaluationArguments, state: State) -> None:
    """Refuse to begin where files would be lost that are not an evaluation's, or that the data has.

    Raises:
        ValueError: there is such a file, or the folder can't be written to.
    """
    if state.goes_on:
        return
    outputs = [state.folder.parent / name for name in OUTPUTS]
    data = Path(args.data).resolve()
    inputs = [path for path in outputs if data in path.resolve().parents]  # a data set may have too many to list
    check_outputs(outputs, [*inputs, *filter(os.path.isfile, [args.data, args.id2label or ""])], args.overwrite,
                  "`output_dir`")  # fmt: skip


def check_coco_folder(args: EvaluationArguments, state: State) -> None:
    """Refuse to begin where `save_coco` would write over files that this evaluation hasn't made.

    Raises:
        ValueError: there is such a file, or the folder is the data's or can't be written to.
    """
    if args.save_coco is None or state.goes_on:
        return
    folder, data = Path(args.save_coco), Path(args.data).resolve()
    if data in (folder.resolve(), *folder.resolve().parents):
        raise ValueError(f"`save_coco` must not be in the folder of `data`, got {args.save_coco}")
    check_outputs([folder / COCO_PANOPTIC, folder / COCO_INSTANCES], [], args.overwrite, "`save_coco`")
    if not args.overwrite and any((folder / COCO_IMAGES).glob("*.png")):
        raise ValueError(f"`save_coco`: {folder / COCO_IMAGES} has PNGs already; give another name, or --overwrite")
