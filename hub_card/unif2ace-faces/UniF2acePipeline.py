# What `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` runs: the package's pipeline
import unif2ace
import unif2ace.modeling_unif2ace.modeling_unif2ace
import unif2ace.modeling_unif2ace.processing_unif2ace
import unif2ace.pipelines.scheduling_unif2ace


class UniF2acePipeline(unif2ace.UniF2acePipeline):
    pass
