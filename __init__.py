"""DenseMLLM (arXiv 2602.14134) for Hugging Face Transformers: a multimodal LLM that predicts dense maps by itself."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any


# Names by their module, which is imported when one is asked for (PEP 562). Each stands among the imports for type
# checkers, too.
NAMES = {
    "DenseDepthEstimationPipeline": ".pipeline_densemllm",
    "DenseImageSegmentationPipeline": ".pipeline_densemllm",
    "DenseMLLMConfig": ".configuration_densemllm",
    "DenseMLLMForConditionalGeneration": ".modeling_densemllm",
    "DenseMLLMForDepthEstimation": ".auto_models_densemllm",
    "DenseMLLMForSemanticSegmentation": ".auto_models_densemllm",
    "DenseMLLMImageProcessor": ".image_processing_densemllm",
    "DenseMLLMModel": ".modeling_densemllm",
    "DenseMLLMPreTrainedModel": ".vision_densemllm",
    "DenseMLLMProcessor": ".processing_densemllm",
    "DenseMLLMVisionConfig": ".configuration_densemllm",
    "DenseMLLMVisionModel": ".vision_densemllm",
    "DenseObjectDetectionPipeline": ".pipeline_densemllm",
    "DensePrediction": ".prediction_densemllm",
    "DensePredictionPipeline": ".pipeline_densemllm",
    "DenseZeroShotObjectDetectionPipeline": ".pipeline_densemllm",
    "EncodedImage": ".image_encoding_densemllm",
    "add_dense_tokens": ".tasks_densemllm",
    "ntp_m_loss": ".loss_densemllm",
}
# What trains and measures: that needs `datasets` and the Trainer, which predictions don't.
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
    from .auto_models_densemllm import DenseMLLMForDepthEstimation as DenseMLLMForDepthEstimation
    from .auto_models_densemllm import DenseMLLMForSemanticSegmentation as DenseMLLMForSemanticSegmentation
    from .configuration_densemllm import DenseMLLMConfig as DenseMLLMConfig
    from .configuration_densemllm import DenseMLLMVisionConfig as DenseMLLMVisionConfig
    from .formats.folders import load_samples as load_samples
    from .image_encoding_densemllm import EncodedImage as EncodedImage
    from .image_processing_densemllm import DenseMLLMImageProcessor as DenseMLLMImageProcessor
    from .loss_densemllm import ntp_m_loss as ntp_m_loss
    from .modeling_densemllm import DenseMLLMForConditionalGeneration as DenseMLLMForConditionalGeneration
    from .modeling_densemllm import DenseMLLMModel as DenseMLLMModel
    from .pipeline_densemllm import DenseDepthEstimationPipeline as DenseDepthEstimationPipeline
    from .pipeline_densemllm import DenseImageSegmentationPipeline as DenseImageSegmentationPipeline
    from .pipeline_densemllm import DenseObjectDetectionPipeline as DenseObjectDetectionPipeline
    from .pipeline_densemllm import DensePredictionPipeline as DensePredictionPipeline
    from .pipeline_densemllm import DenseZeroShotObjectDetectionPipeline as DenseZeroShotObjectDetectionPipeline
    from .prediction_densemllm import DensePrediction as DensePrediction
    from .processing_densemllm import DenseMLLMProcessor as DenseMLLMProcessor
    from .tasks_densemllm import add_dense_tokens as add_dense_tokens
    from .training.arguments import DenseTrainingArguments as DenseTrainingArguments
    from .training.collator import DenseCollator as DenseCollator
    from .training.datasets import DenseDataset as DenseDataset
    from .training.datasets import DenseIterableDataset as DenseIterableDataset
    from .training.datasets import DenseSource as DenseSource
    from .training.image_tokenizer import ImageTokenizer as ImageTokenizer
    from .training.samples import Augmentation as Augmentation
    from .training.samples import read_sample as read_sample
    from .training.trainer import DenseTrainer as DenseTrainer
    from .vision_densemllm import DenseMLLMPreTrainedModel as DenseMLLMPreTrainedModel
    from .vision_densemllm import DenseMLLMVisionModel as DenseMLLMVisionModel

    __version__: str
else:  # type checkers would take any name for one that is there

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            value = _find_version()
        elif name in NAMES or name in LAZY_NAMES:
            register()
            value = getattr(import_module({**NAMES, **LAZY_NAMES}[name], __name__), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value  # looked up once
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *NAMES, *LAZY_NAMES, "__version__"})


def register() -> None:
    """Let transformers know the classes: its Auto classes load checkpoints without `trust_remote_code` from then on,
    and `pipeline` has the task `dense-prediction`. Importing the package does it, but for the command line, which
    does it once it knows what to do. Repeating it is free."""
    from .registration import register_all

    register_all()


def _is_command() -> bool:
    """Whether this process is `densemllm ...` or `python -m densemllm ...`: its help, and what it says of mistakes,
    should not wait for torch and transformers, which take seconds to import."""
    started = getattr(sys, "argv", None) or [""]
    if started[0] == "-m":  # a package on its way to be run: this one, or one of its modules
        return "densemllm" in sys.orig_argv
    return Path(started[0]).stem == "densemllm" or Path(started[0]).parts[-2:] == ("densemllm", "__main__.py")


def _find_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("densemllm")
    except PackageNotFoundError:  # a folder on the path, not installed
        from .configuration_densemllm import __version__ as own

        return own


if not _is_command():
    register()


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
    "DenseObjectDetectionPipeline",
    "DensePrediction",
    "DensePredictionPipeline",
    "DenseZeroShotObjectDetectionPipeline",
    "EncodedImage",
    "add_dense_tokens",
    "ntp_m_loss",
    "register",
]
