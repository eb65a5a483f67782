"""All that a checkpoint needs to run. Importing this package registers the classes with transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .any_to_any_unif2ace import TASK, UniF2aceAnyToAnyPipeline
from .checkpoint_unif2ace import UniF2aceCheckpointError
from .configuration_unif2ace import (
    UniF2aceConfig,
    UniF2aceFaceEncoderConfig,
    UniF2aceTextConfig,
    UniF2aceVQConfig,
)
from .face_encoder_unif2ace import UniF2aceFaceEncoder
from .image_processing_unif2ace import UniF2aceImageError, UniF2aceImageProcessor, load_image
from .image_tokenizer_unif2ace import UniF2aceVQModel
from .modeling_unif2ace import (
    UniF2aceForConditionalGeneration,
    UniF2aceModel,
    UniF2acePreTrainedModel,
    UniF2aceTextModel,
)
from .peft_unif2ace import register_peft_defaults
from .presets_unif2ace import PRESETS, get_preset
from .processing_unif2ace import UniF2aceProcessor


def register():
    """Make the Auto classes, PEFT's defaults and `pipeline` know ours; nothing needs `trust_remote_code` then."""
    for config, model in (
        (UniF2aceConfig, UniF2aceModel),
        (UniF2aceTextConfig, UniF2aceTextModel),
        (UniF2aceVQConfig, UniF2aceVQModel),
        (UniF2aceFaceEncoderConfig, UniF2aceFaceEncoder),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
    for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        auto_class.register(UniF2aceConfig, UniF2aceForConditionalGeneration, exist_ok=True)
    AutoImageProcessor.register(UniF2aceConfig, image_processor_classes={"pil": UniF2aceImageProcessor}, exist_ok=True)
    AutoProcessor.register(UniF2aceConfig, UniF2aceProcessor, exist_ok=True)
    register_peft_defaults()
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TASK, UniF2aceAnyToAnyPipeline, pt_model=(AutoModelForMultimodalLM,), type="multimodal"
        )


register()

__all__ = [
    "PRESETS",
    "UniF2aceAnyToAnyPipeline",
    "UniF2aceCheckpointError",
    "UniF2aceConfig",
    "UniF2aceFaceEncoder",
    "UniF2aceFaceEncoderConfig",
    "UniF2aceForConditionalGeneration",
    "UniF2aceImageError",
    "UniF2aceImageProcessor",
    "UniF2aceModel",
    "UniF2acePreTrainedModel",
    "UniF2aceProcessor",
    "UniF2aceTextConfig",
    "UniF2aceTextModel",
    "UniF2aceVQConfig",
    "UniF2aceVQModel",
    "get_preset",
    "load_image",
    "register",
]
