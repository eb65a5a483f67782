"""
Our classes in transformers' Auto classes, PEFT's defaults and `pipeline`, without importing any of them early.

`import unif2ace` must stay cheap, and `import unif2ace; AutoModel.from_pretrained(...)` must work. So each step
waits until the module of transformers that it writes into has been imported, by whatever way; if that happened before,
it is done at once. Does not travel as Hub code: there `auto_map` does this work.
"""

import sys
import threading
from collections.abc import Callable
from importlib import import_module
from importlib.abc import MetaPathFinder


def _register_configs():
    from transformers import AutoConfig

    from .configuration_unif2ace import (
        UniF2aceConfig,
        UniF2aceFaceEncoderConfig,
        UniF2aceTextConfig,
        UniF2aceVQConfig,
    )

    for config in (UniF2aceConfig, UniF2aceTextConfig, UniF2aceVQConfig, UniF2aceFaceEncoderConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_models():
    from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM

    from .face_encoder_unif2ace import UniF2aceFaceEncoder
    from .image_tokenizer_unif2ace import UniF2aceVQModel
    from .modeling_unif2ace import UniF2aceForConditionalGeneration, UniF2aceModel, UniF2aceTextModel

    for model in (UniF2aceModel, UniF2aceTextModel, UniF2aceVQModel, UniF2aceFaceEncoder):
        AutoModel.register(model.config_class, model, exist_ok=True)
    for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        auto_class.register(UniF2aceModel.config_class, UniF2aceForConditionalGeneration, exist_ok=True)


def _register_image_processor():
    from transformers import AutoImageProcessor

    from .configuration_unif2ace import UniF2aceConfig
    from .image_processing_unif2ace import UniF2aceImageProcessor

    AutoImageProcessor.register(UniF2aceConfig, image_processor_classes={"pil": UniF2aceImageProcessor}, exist_ok=True)


def _register_processor():
    from transformers import AutoProcessor

    from .configuration_unif2ace import UniF2aceConfig
    from .processing_unif2ace import UniF2aceProcessor

    AutoProcessor.register(UniF2aceConfig, UniF2aceProcessor, exist_ok=True)


def _register_peft_defaults():
    from .peft_unif2ace import register_peft_defaults

    register_peft_defaults()


def _register_pipeline():
    from transformers import AutoModelForMultimodalLM
    from transformers.pipelines import PIPELINE_REGISTRY

    from .any_to_any_unif2ace import TASK, UniF2aceAnyToAnyPipeline

    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TASK, UniF2aceAnyToAnyPipeline, pt_model=(AutoModelForMultimodalLM,), type="multimodal"
        )


_STEPS: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.image_processing_auto": _register_image_processor,
    "transformers.models.auto.processing_auto": _register_processor,
    "transformers.pipelines": _register_pipeline,
    "transformers.integrations.peft": _register_peft_defaults,
}
"""Module of transformers -> what is to be done once it is there."""

_WATCHED = ("transformers.", f"{__package__}.")
_done: set[str] = set()
_imports = threading.local()  # .depth: how many watched modules this thread is in the midst of importing


def register():
    """Make the Auto classes and `pipeline` know ours, now; nothing needs `trust_remote_code` then."""
    for name in _STEPS:
        import_module(name)
    _run_steps()


def register_when_needed():
    """[`register`], each part as soon as the module that it concerns is imported. Cheap: imports nothing itself."""
    if not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())
    _run_steps()


def _run_steps():
    """Every step that has not been done and whose module is there."""
    for name, step in _STEPS.items():
        if name not in _done and name in sys.modules:
            _done.add(name)
            try:
                step()
            except BaseException:
                _done.discard(name)
                raise


class _Watcher(MetaPathFinder):
    """
    Finds no module itself: lets the others find it, and runs the steps when the outermost import has ended. In the
    midst of one, transformers' modules and ours are incomplete and would not find each other's names.
    """

    def find_spec(self, name, path=None, target=None):
        if len(_done) == len(_STEPS) or not name.startswith(_WATCHED):
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            execute = spec.loader.exec_module

            def exec_module(module):
                _imports.depth = getattr(_imports, "depth", 0) + 1
                try:
                    execute(module)
                finally:
                    _imports.depth -= 1
                if not _imports.depth:
                    _run_steps()

            spec.loader.exec_module = exec_module
        return spec


__all__ = ["register", "register_when_needed"]
