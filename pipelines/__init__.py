"""The diffusers side: the pipeline and its scheduler, and the marks that its pictures carry."""

from .pipeline_unif2ace import UniF2acePipeline, UniF2acePipelineOutput
from .provenance_unif2ace import Provenance, read_provenance, save_image
from .regions_unif2ace import FACE_PARTS
from .scheduling_unif2ace import UniF2aceScheduler, UniF2aceSchedulerOutput
from .watermark_unif2ace import WatermarkReading, detect_watermark, embed_watermark


__all__ = [
    "FACE_PARTS",
    "Provenance",
    "UniF2acePipeline",
    "UniF2acePipelineOutput",
    "UniF2aceScheduler",
    "UniF2aceSchedulerOutput",
    "WatermarkReading",
    "detect_watermark",
    "embed_watermark",
    "read_provenance",
    "save_image",
]
