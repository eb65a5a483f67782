"""All that a checkpoint needs to run. The names below are imported when they are first used."""

from importlib import import_module


# public name -> module that has it
_MODULE_OF = {
    "PRESETS": "presets",
    "UniF2aceAnyToAnyPipeline": "any_to_any",
    "UniF2aceCheckpointError": "checkpoint",
    "UniF2aceConfig": "configuration",
    "UniF2aceFaceEncoder": "face_encoder",
    "UniF2aceFaceEncoderConfig": "configuration",
    "UniF2aceForConditionalGeneration": "modeling",
    "UniF2aceImageError": "pictures",
    "UniF2aceImageProcessor": "image_processing",
    "UniF2aceModel": "modeling",
    "UniF2acePreTrainedModel": "modeling",
    "UniF2aceProcessor": "processing",
    "UniF2aceTextConfig": "configuration",
    "UniF2aceTextModel": "modeling",
    "UniF2aceVQConfig": "configuration",
    "UniF2aceVQModel": "image_tokenizer",
    "get_preset": "presets",
    "load_image": "pictures",
    "register": "auto",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; see {__name__}.__all__ for its names")
    value = getattr(import_module(f".{_MODULE_OF[name]}_unif2ace", __name__), name)
    globals()[name] = value  # the next access is a plain look-up
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
