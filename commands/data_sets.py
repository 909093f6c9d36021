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
"""`densemllm predict` of a data set: what it needs beyond that of files, `datasets` first, is imported with it."""

import argparse
from pathlib import Path

from ..data_prediction import SUMMARY, PredictionJob, predict_dataset
from ..evaluation.run import start_process
from .predict import open_model


def predict_data(args: argparse.Namespace, data: str) -> None:
    """Write the maps of all images of a data set."""
    job = PredictionJob(
        data, Path(args.out), tuple(args.task), args.format, args.split, args.column, args.batch_size,
        args.save_every, overwrite=args.overwrite, suffix=args.suffix, polygons=args.polygons,
        tolerance=args.tolerance, palette=args.palette,
    )  # fmt: skip
    process, device = start_process(args)
    args.device = str(device)
    model, job.options = open_model(args)
    found = predict_dataset(model, job)
    if process.is_main_process and not found["images"]:
        print(f"{args.out}: all {found['done']} images were done already")
    elif process.is_main_process:
        rate = found["images"] / max(found["seconds"], 1e-9)
        print(
            f"{args.out}: {found['images']} images in {found['seconds']:.1f} s, {rate:.2f} images/s"
            + (f"; {found['skipped']} could not be read, see {SUMMARY}" if found["skipped"] else "")
        )
    process.wait_for_everyone()
