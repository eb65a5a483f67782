"""The diffusers side: the pipeline and its scheduler, and the marks that its pictures carry.

Names are imported when they are first used: reading a watermark needs neither torch nor diffusers.
"""

from importlib import import_module


# public name -> module that has it
_MODULE_OF = {
    "FACE_PARTS": ".regions_unif2ace",
    "Provenance": "..modeling_unif2ace.provenance_unif2ace",
    "UniF2aceBlocks": ".modular_unif2ace",
    "UniF2acePipeline": ".pipeline_unif2ace",
    "UniF2acePipelineOutput": ".pipeline_unif2ace",
    "UniF2aceScheduler": ".scheduling_unif2ace",
    "UniF2aceSchedulerOutput": ".scheduling_unif2ace",
    "WatermarkReading": "..modeling_unif2ace.watermark_unif2ace",
    "bundled_checkpoint": ".loading_unif2ace",
    "detect_watermark": "..modeling_unif2ace.watermark_unif2ace",
    "embed_watermark": "..modeling_unif2ace.watermark_unif2ace",
    "read_provenance": "..modeling_unif2ace.provenance_unif2ace",
    "save_image": "..modeling_unif2ace.provenance_unif2ace",
    "save_modular_pipeline": ".modular_unif2ace",
}

__all__ = [*_MODULE_OF]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; see {__name__}.__all__ for its names")
    value = getattr(import_module(_MODULE_OF[name], __name__), name)
    globals()[name] = value  # the next access is a plain look-up
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
