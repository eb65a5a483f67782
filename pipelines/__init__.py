"""The diffusers side: the pipeline and its scheduler."""

from .pipeline_unif2ace import UniF2acePipeline, UniF2acePipelineOutput
from .scheduling_unif2ace import UniF2aceScheduler, UniF2aceSchedulerOutput


__all__ = ["UniF2acePipeline", "UniF2acePipelineOutput", "UniF2aceScheduler", "UniF2aceSchedulerOutput"]
