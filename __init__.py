"""DenseMLLM (arXiv 2602.14134) for Hugging Face Transformers: a multimodal LLM that predicts dense maps by itself."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

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
from .processing_densemllm import DenseMLLMProcessor
from .tasks_densemllm import add_dense_tokens
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

# What trains and measures, by its module: imported when it is asked for (PEP 562), as that needs `datasets` and the
# Trainer, which predictions don't. Each name stands among the imports for type checkers, too.
LAZY_NAMES = {
    "Augmentation": ".training.samples",
    "DenseCollator": ".training.collator",
    "DenseDataset": ".training.datasets",
    "DenseIterableDataset": ".training.datasets",
    "DenseSource": ".training.datasets",
    "DenseTrainer": ".training.trainer",
    "DenseTrainingArguments": ".training.arguments",
    "ImageTokenizer": ".training.image_tokenizer",
    "load_samples": ".formats.folders",
    "read_sample": ".training.samples",
}
if TYPE_CHECKING:
    from .formats.folders import load_samples as load_samples
    from .training.arguments import DenseTrainingArguments as DenseTrainingArguments
    from .training.collator import DenseCollator as DenseCollator
    from .training.datasets import DenseDataset as DenseDataset
    from .training.datasets import DenseIterableDataset as DenseIterableDataset
    from .training.datasets import DenseSource as DenseSource
    from .training.image_tokenizer import ImageTokenizer as ImageTokenizer
    from .training.samples import Augmentation as Augmentation
    from .training.samples import read_sample as read_sample
    from .training.trainer import DenseTrainer as DenseTrainer
else:  # type checkers would take any name for one that is there

    def __getattr__(name: str) -> Any:
        if name not in LAZY_NAMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(LAZY_NAMES[name], __name__), name)
        globals()[name] = value  # looked up once
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *LAZY_NAMES})


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
