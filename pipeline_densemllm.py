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
"""Pipelines: `dense-prediction`, and the models behind `depth-estimation` and `image-segmentation`."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import Pipeline
from transformers.modeling_outputs import DepthEstimatorOutput, SemanticSegmenterOutput
from transformers.pipelines.base import GenericTensor

from .modeling_densemllm import DenseMLLMForConditionalGeneration
from .prediction_densemllm import EncodedImage
from .processing_densemllm import BACKGROUND_LABEL


class DensePredictionPipeline(Pipeline):
    """`pipeline("dense-prediction")`: [`predict_dense`] for single images, lists, generators and data sets.

    The arguments of `predict_dense` in `OPTIONS` can be given with each call; all but `task`, which is `pipeline`'s
    own, when the pipeline is made, too. An input is an image (PIL, path, URL, array, tensor), or a dict with `image`
    and any of `text`, `box` and `focal_length`, which differ between images.

    Returns for every image a dict of what the tasks fill in: `segmentation`, `segments_info`, `labels`,
    `predicted_depth` (metres), `depth` (PIL picture of it, near is bright), `mask`, `box`, `scores`, `logits`, `text`;
    shapes and types are those of [`DensePrediction`].
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    OPTIONS = (
        "task", "labels", "text", "box", "background", "threshold", "depth_range", "focal_length", "refine",
        "return_logits", "target_sizes", "scale", "max_num_patches",
    )  # fmt: skip
    OWN = ("text", "box", "focal_length")

    def __init__(self, *args, task: str = "dense-prediction", **kwargs):
        if task != "dense-prediction":
            raise ValueError(f"`task` {task!r} has to be given with each call: pipe(images, task={task!r})")
        super().__init__(*args, task=task, **kwargs)
        if self.device.type == "meta":  # of a model whose weights are offloaded
            self.device = self.model._input_device

    def save_pretrained(self, save_directory, **kwargs):
        """Model and processor, as a checkpoint that works alone."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def _sanitize_parameters(self, **kwargs):
        unknown = sorted(set(kwargs) - set(self.OPTIONS))
        if unknown:
            raise TypeError(f"{unknown} can't be given to this pipeline; it takes {list(self.OPTIONS)}")
        _check_text(kwargs.get("text"))
        return {}, kwargs, {}

    def preprocess(self, inputs) -> dict:
        own = dict(inputs) if isinstance(inputs, dict) else {"image": inputs}
        unknown = sorted(set(own) - {"image", *self.OWN})
        if unknown or own.get("image") is None:
            raise ValueError(f"an input must have `image` and may have {list(self.OWN)}, got {sorted(own)}")
        _check_text(own.get("text"))
        if own.get("box") is not None and np.ndim(own["box"]) != 1:
            raise ValueError(f"`box` must be one box (x0, y0, x1, y1) in pixels an input, got {own['box']!r}")
        picture = self.processor.image_processor.load_picture(own.pop("image"))
        # In lists, so that batches of them are lists as well.
        return {"images": [picture], "own": [own]}

    def _forward(self, model_inputs: dict, **options) -> dict[str, GenericTensor]:
        images, own = (_flat(model_inputs[name]) for name in ("images", "own"))
        options = {"task": "segmentation", "processor": self.processor, **options}
        if len({frozenset(row) for row in own}) > 1:  # no one call has what only some of them have
            found = [self.model.predict_dense(image, **options | row) for image, row in zip(images, own, strict=True)]
        else:
            options |= {name: [row[name] for row in own] for name in own[0]}
            found = self.model.predict_dense(images, batch_size=len(images), **options)
        return {"predictions": found}

    def postprocess(self, model_outputs: dict) -> dict:
        (prediction,) = _flat(model_outputs["predictions"])
        fields = {name: value for name, value in vars(prediction).items() if value is not None}
        if prediction.predicted_depth is not None:
            fields["depth"] = prediction.to_pil("predicted_depth")
        return fields


def _check_text(text) -> None:
    if not isinstance(text, (str, type(None))):
        raise ValueError(
            f"`text` must be one expression; inputs {{'image': ..., 'text': ...}} have one each, got {text!r}"
        )


def _flat(values) -> list:
    """A batch of lists of one, or one such list, as a list."""
    values = values if isinstance(values, list) else [values]
    return [own for value in values for own in (value if isinstance(value, list) else [value])]


class _DenseMLLMForImage(DenseMLLMForConditionalGeneration):
    """A model that takes pictures alone, as the pipelines of transformers call it. Its weights are those of
    [`DenseMLLMForConditionalGeneration`]; its processor is that of the checkpoint."""

    def save_pretrained(self, save_directory, **kwargs):
        """The model, and the processor without which it can't tell what to look for."""
        processor = self.get_processor()  # nothing is written where there is none
        super().save_pretrained(save_directory, **kwargs)
        processor.save_pretrained(save_directory, **kwargs)

    def _label_logits(self, pixel_values, image_grid_thw, prompt: str, label_ids: list[list[int]]):
        """Label logits of each image, `float32 [num_labels, grid_height, grid_width]`."""
        features = self.model.get_image_features(pixel_values, image_grid_thw, return_dict=True).pooler_output
        merge_size = self.config.spatial_merge_size
        grids = [(height // merge_size, width // merge_size) for _, height, width in image_grid_thw.tolist()]
        encoded: list[EncodedImage] = self._prefill_images(
            [None] * len(grids), features, grids, prompt, self.get_processor(), False
        )
        return [self.label_logits(image.hidden_states, label_ids).T.unflatten(1, image.grid) for image in encoded]


class DenseMLLMForDepthEstimation(_DenseMLLMForImage):
    """Depth in the checkpoint's default range, for `pipeline("depth-estimation")`."""

    def forward(self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, **kwargs) -> DepthEstimatorOutput:
        """
        Args:
            pixel_values: `[n_patches, features]`, packed.
            image_grid_thw: `int64 [n_images, 3]`.

        Returns:
            `predicted_depth`: a list of one `float32 [2 * grid_height, 2 * grid_width]` an image, in metres.
        """
        processor = self.get_processor()
        prompt = processor.get_depth_range().get("prompt") or ""
        label_ids = processor.task_label_ids("depth", None)
        maps = []
        for logits in self._label_logits(pixel_values, image_grid_thw, prompt, label_ids):
            size = tuple(2 * edge for edge in logits.shape[1:])
            maps.append(processor.decode_dense("depth", logits, size)["predicted_depth"])
        return DepthEstimatorOutput(predicted_depth=maps)


@dataclass
class DenseSegmenterOutput(SemanticSegmenterOutput):
    """`background_label`, `int64 [n_images]`: the number of `<OTHERS>` among the names, -1 without it."""

    background_label: torch.LongTensor | None = None


class DenseMLLMForSemanticSegmentation(_DenseMLLMForImage):
    """The classes of `config.id2label`, for `pipeline("image-segmentation")`."""

    def forward(self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, **kwargs) -> DenseSegmenterOutput:
        """
        Args:
            pixel_values: `[n_patches, features]`, packed.
            image_grid_thw: `int64 [n_images, 3]`.

        Returns:
            `logits`: a list of one `float32 [num_labels, grid_height, grid_width]` an image; row k is `id2label[k]`.

        Raises:
            ValueError: `config.id2label` has no names.
        """
        if self.config.label_names is None:
            raise ValueError(
                "`config.id2label` names no classes; set it (`model.config.id2label = {0: 'wall', ...}`), or give "
                "`labels` to `predict_dense` or pipeline('dense-prediction')"
            )
        processor = self.get_processor()
        names = processor.normalize_labels(self.config.label_names)
        rest = next((key for key, name in names.items() if name == BACKGROUND_LABEL), -1)
        # What stands for the background is not read, as in `predict_dense`.
        read = {key: name for key, name in names.items() if key != rest}
        label_ids = processor.task_label_ids("segmentation", read)
        rows = torch.tensor(list(read), device=pixel_values.device)
        maps = []
        for logits in self._label_logits(pixel_values, image_grid_thw, "", label_ids):
            # A number without a name is never chosen.
            full = logits.new_full((max(names) + 1, *logits.shape[1:]), torch.finfo(logits.dtype).min)
            maps.append(full.index_copy(0, rows, logits))
        return DenseSegmenterOutput(logits=maps, background_label=torch.full((len(maps),), rest))


# Saving one of them must not put it in the place of the model that `AutoModel` gives.
DenseMLLMForDepthEstimation.register_for_auto_class("AutoModelForDepthEstimation")
DenseMLLMForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")

__all__ = ["DenseMLLMForDepthEstimation", "DenseMLLMForSemanticSegmentation", "DensePredictionPipeline"]
