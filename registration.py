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
"""What transformers is told of this package."""

from functools import cache

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForDepthEstimation,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSemanticSegmentation,
    AutoProcessor,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17 hides it without torchvision
from transformers.pipelines import PIPELINE_REGISTRY

from .auto_models_densemllm import DenseMLLMForDepthEstimation, DenseMLLMForSemanticSegmentation
from .configuration_densemllm import DenseMLLMConfig
from .image_processing_densemllm import DenseMLLMImageProcessor
from .modeling_densemllm import DenseMLLMForConditionalGeneration
from .pipeline_densemllm import DensePredictionPipeline
from .processing_densemllm import DenseMLLMProcessor


@cache
def register_all() -> None:
    """See `densemllm.register`."""
    AutoConfig.register(DenseMLLMConfig.model_type, DenseMLLMConfig, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        auto_class.register(DenseMLLMConfig, DenseMLLMForConditionalGeneration, exist_ok=True)
    AutoModelForDepthEstimation.register(DenseMLLMConfig, DenseMLLMForDepthEstimation, exist_ok=True)
    AutoModelForSemanticSegmentation.register(DenseMLLMConfig, DenseMLLMForSemanticSegmentation, exist_ok=True)
    AutoImageProcessor.register(DenseMLLMConfig, DenseMLLMImageProcessor, exist_ok=True)
    AutoProcessor.register(DenseMLLMConfig, DenseMLLMProcessor, exist_ok=True)
    PIPELINE_REGISTRY.register_pipeline("dense-prediction", DensePredictionPipeline, pt_model=AutoModel)
