"""UniF²ace for Hugging Face: one model that describes faces and generates them.

Importing the package is cheap: its names are imported when they are first used, and its classes are registered with
transformers' Auto classes (`AutoConfig`, `AutoModel`, `AutoModelForImageTextToText`, `AutoModelForMultimodalLM`,
`AutoProcessor`, `AutoImageProcessor`) and `pipeline` when those are first used, so that checkpoints of model type
`"unif2ace"` load without `trust_remote_code`.
"""

from importlib import import_module

from ._versions import check_installed, missing
from .modeling_unif2ace.auto_unif2ace import register_when_needed
from .pipelines import hooks


__version__ = "0.1.0"

# public name -> module that has it
_MODULE_OF = {
    "UniF2aceConfig": "modeling_unif2ace",
    "UniF2aceTextConfig": "modeling_unif2ace",
    "UniF2aceVQConfig": "modeling_unif2ace",
    "UniF2aceFaceEncoderConfig": "modeling_unif2ace",
    "UniF2aceForConditionalGeneration": "modeling_unif2ace",
    "UniF2aceModel": "modeling_unif2ace",
    "UniF2aceTextModel": "modeling_unif2ace",
    "UniF2aceVQModel": "modeling_unif2ace",
    "UniF2aceFaceEncoder": "modeling_unif2ace",
    "UniF2aceProcessor": "modeling_unif2ace",
    "UniF2aceImageProcessor": "modeling_unif2ace",
    "UniF2acePipeline": "pipelines",
    "UniF2acePipelineOutput": "pipelines",
    "UniF2aceScheduler": "pipelines",
    "detect_watermark": "pipelines",
    "read_provenance": "pipelines",
    "save_image": "pipelines",
    "UniF2aceTrainer": "training.trainer",
    "UniF2aceTrainingArguments": "training.arguments",
}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; see {__name__}.__all__ for its names")
    try:
        value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(missing(error, "train") or str(error), name=error.name) from error
    globals()[name] = value  # the next access is a plain look-up
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _publisher():
    """The one way to the Hub, for whoever is asked to publish."""
    try:
        from .hub_card.publish import publish
    except ModuleNotFoundError as error:
        raise OSError(missing(error, "train") or str(error)) from error
    return publish


def _card_writer():
    """Who writes the cards of fresh adapters."""
    from .hub_card.card import write_adapter_card

    return write_adapter_card


def _pipeline_code() -> dict[str, bytes]:
    """The code that goes into a saved pipeline's folder."""
    from .hub_card.remote_code import diffusers_code

    return diffusers_code()


check_installed()
hooks.register(publisher=_publisher, card_writer=_card_writer, code=_pipeline_code)
register_when_needed()
