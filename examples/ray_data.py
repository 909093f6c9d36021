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
r"""Dense maps of a folder of images on a cluster, by Ray Data: as many copies of the model as there is room for.

    pip install "ray[data]"
    python examples/ray_data.py FOLDER --model MODEL --task segmentation depth --out maps/ --copies 2
    python examples/ray_data.py s3://bucket/photos --model MODEL --out s3://bucket/maps --copies 16 --gpus 1

Ray reads, shares out, tries again what failed and writes; each actor has a model. A row of the parquet files that are
written has the image's path, and of each task a PNG of numbers, as `densemllm predict --format raw` writes it.
"""

import argparse
import io

import numpy as np
import PIL.Image
import ray

from densemllm import DenseMLLMForConditionalGeneration
from densemllm.tasks_densemllm import DEFAULT_TASK, TASKS


class Predictor:
    """One copy of the model, in a process of its own.

    Args:
        model: folder or Hub name of a checkpoint.
        tasks: names of tasks.
        options: of `predict_dense`.
    """

    def __init__(self, model: str, tasks: tuple[str, ...], **options: object):
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        self.model = DenseMLLMForConditionalGeneration.from_pretrained(model, dtype="auto").to(device).eval()
        self.tasks, self.options = tasks, options

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        """Files as `read_binary_files` gives them, to their PNGs; `None` where a file is not an image."""
        found = self.model.predict_dense(list(batch["bytes"]), self.tasks, on_error="skip", **self.options)
        maps = {
            task: [None if prediction is None else _png(TASKS[task].to_numbers(prediction)) for prediction in found]
            for task in self.tasks
        }
        return {"path": list(batch["path"]), **maps}


def _png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def predict_files(
    folder: str, model: str, tasks: tuple[str, ...], copies: int = 1, gpus: float = 0, batch_size: int = 8,
    **options: object,
) -> "ray.data.Dataset":  # fmt: skip
    """The maps of all files of a folder, computed as they are read from the result.

    Args:
        folder: local, or on any storage that Ray reads.
        model, tasks, options: as for [`Predictor`].
        copies: of the model, on all machines together.
        gpus: of each copy.
        batch_size: images a forward pass.
    """
    return ray.data.read_binary_files(folder, include_paths=True).map_batches(
        Predictor, fn_constructor_args=(model, tasks), fn_constructor_kwargs=options, batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=copies), num_gpus=gpus,
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder of images")
    parser.add_argument("--model", required=True, help="folder or Hub name of a DenseMLLM checkpoint")
    parser.add_argument("--task", nargs="+", choices=list(TASKS), default=[DEFAULT_TASK])
    parser.add_argument("--labels", help="class names, joined by commas; the model names them where left out")
    parser.add_argument("--out", required=True, help="folder of the parquet files")
    parser.add_argument("--copies", type=int, default=1, help="of the model")
    parser.add_argument("--gpus", type=float, default=0, help="of each copy")
    parser.add_argument("--batch_size", type=int, default=8, help="images a forward pass")
    args = parser.parse_args(arguments)
    options = {} if args.labels is None else {"labels": args.labels.split(",")}
    found = predict_files(
        args.folder, args.model, tuple(args.task), args.copies, args.gpus, args.batch_size, **options
    )
    found.write_parquet(args.out)


if __name__ == "__main__":
    main()
