"""DenseMLLM (arXiv 2602.14134) for Hugging Face Transformers: a multimodal LLM that predicts dense maps by itself."""

from importlib.metadata import PackageNotFoundError, version

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
from .configuration_densemllm import DenseMLLMConfig, DenseMLLMVisionConfig
from .image_encoding_densemllm import EncodedImage
from .image_processing_densemllm import DenseMLLMImageProcessor
from .loss_densemllm import ntp_m_loss
from .modeling_densemllm import DenseMLLMForConditionalGeneration, DenseMLLMModel
from .pipeline_densemllm import (
    DenseDepthEstimationPipeline,
    DenseImageSegmentationPipeline,
    DensePredictionPipeline,
)
from .prediction_densemllm import DensePrediction
from .processing_densemllm import DenseMLLMProcessor, add_dense_tokens
from .vision_densemllm import DenseMLLMPreTrainedModel, DenseMLLMVisionModel


try:
    __version__ = version("densemllm")
except PackageNotFoundError:  # a folder on the path, not installed
    from .configuration_densemllm import __version__ as __version__

# With the package imported, the Auto classes know these without `trust_remote_code`.
AutoConfig.register(DenseMLLMConfig.model_type, DenseMLLMConfig, exist_ok=True)
for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(DenseMLLMConfig, DenseMLLMForConditionalGeneration, exist_ok=True)
AutoModelForDepthEstimation.register(DenseMLLMConfig, DenseMLLMForDepthEstimation, exist_ok=True)
AutoModelForSemanticSegmentation.register(DenseMLLMConfig, DenseMLLMForSemanticSegmentation, exist_ok=True)
AutoImageProcessor.register(DenseMLLMConfig, DenseMLLMImageProcessor, exist_ok=True)
AutoProcessor.register(DenseMLLMConfig, DenseMLLMProcessor, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline("dense-prediction", DensePredictionPipeline, pt_model=AutoModel)

__all__ = [
    "DenseDepthEstimationPipeline",
    "DenseImageSegmentationPipeline",
    "DenseMLLMConfig",
    "DenseMLLMForConditionalGeneration",
    "DenseMLLMForDepthEstimation",
    "DenseMLLMForSemanticSegmentation",
    "DenseMLLMImageProcessor",
    "DenseMLLMModel",
    "DenseMLLMPreTrainedModel",
    "DenseMLLMProcessor",
    "DenseMLLMVisionConfig",
    "DenseMLLMVisionModel",
    "DensePrediction",
    "DensePredictionPipeline",
    "EncodedImage",
    "add_dense_tokens",
    "ntp_m_loss",
]
