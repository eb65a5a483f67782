"""
The Space: the package's demo page.

Variables: `UNIF2ACE_MODEL` names a checkpoint, `UNIF2ACE_ADAPTERS` lists adapters as NAME=REPO,NAME=REPO.
"""

import os


try:  # before torch, which it changes
    import spaces  # on ZeroGPU hardware, where every function that computes asks for the GPU
except ImportError:
    on_device = {}
else:
    on_device = {"on_device": spaces.GPU(duration=60)}

import torch

from unif2ace import UniF2acePipeline
from unif2ace.pipelines.serving.demo_page import build_page, launch_page


model = os.environ.get("UNIF2ACE_MODEL") or None
adapters = [item.split("=", 1) for item in os.environ.get("UNIF2ACE_ADAPTERS", "").split(",") if item]

pipe = UniF2acePipeline.from_pretrained(model).to("cuda" if torch.cuda.is_available() else "cpu")
for name, repository in adapters:
    pipe.load_lora_weights(repository, adapter_name=name)
known = {} if model is None else {"model": model, "what": "its own data"}
page = build_page(pipe, adapters=[name for name, _ in adapters], **known, **on_device)

if __name__ == "__main__":
    launch_page(page)
