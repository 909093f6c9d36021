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
"""The models of `AutoModelForDepthEstimation` and `AutoModelForSemanticSegmentation`: images in, maps out."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import DepthEstimatorOutput, SemanticSegmenterOutput

from .configuration_densemllm import class_names
from .image_encoding_densemllm import EncodedImage
from .modeling_densemllm import DenseMLLMForConditionalGeneration
from .tasks_densemllm import Classes, Depth
from .tokens_densemllm import BACKGROUND_LABEL


class _DenseMLLMForImage(DenseMLLMForConditionalGeneration):
    """A model that takes images alone, as the pipelines of transformers call it. Its weights are those of
    [`DenseMLLMForConditionalGeneration`]; its processor is that of the checkpoint."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
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

    def forward(self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> DepthEstimatorOutput:
        """
        Args:
            pixel_values: `[n_patches, features]`, packed.
            image_grid_thw: `int64 [n_images, 3]`.

        Returns:
            `predicted_depth`: a list of one `float32 [2 * grid_height, 2 * grid_width]` an image, in metres.
        """
        processor = self.get_processor()
        prompt = processor.get_depth_range().get("prompt") or ""
        label_ids = processor.task_label_ids(Depth.name)
        maps = []
        for logits in self._label_logits(pixel_values, image_grid_thw, prompt, label_ids):
            size = tuple(2 * edge for edge in logits.shape[1:])
            maps.append(processor.decode_dense(Depth.name, logits, size)[Depth.map_field])
        return DepthEstimatorOutput(predicted_depth=maps)


@dataclass
class DenseSegmenterOutput(SemanticSegmenterOutput):
    """`background_label`, `int64 [n_images]`: the number of `<OTHERS>` among the names, -1 without it."""

    background_label: torch.LongTensor | None = None


class DenseMLLMForSemanticSegmentation(_DenseMLLMForImage):
    """The classes of `config.id2label`, for `pipeline("image-segmentation")`."""

    def forward(self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> DenseSegmenterOutput:
        """
        Args:
            pixel_values: `[n_patches, features]`, packed.
            image_grid_thw: `int64 [n_images, 3]`.

        Returns:
            `logits`: a list of one `float32 [num_labels, grid_height, grid_width]` an image; row k is `id2label[k]`.

        Raises:
            ValueError: `config.id2label` has no names.
        """
        processor = self.get_processor()
        names = processor.normalize_labels(class_names(self.config))
        rest = next((key for key, name in names.items() if name == BACKGROUND_LABEL), -1)
        # What stands for the background is not read, as in `predict_dense`.
        read = {key: name for key, name in names.items() if key != rest}
        label_ids = processor.task_label_ids(Classes.name, read)
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

__all__ = ["DenseMLLMForDepthEstimation", "DenseMLLMForSemanticSegmentation"]
