"""A real model of tiny size: as a pipeline, and as a checkpoint on disk (model, processor, scheduler)."""

from pathlib import Path

import torch

from unif2ace import UniF2aceForConditionalGeneration, UniF2acePipeline, UniF2aceProcessor, UniF2aceScheduler
from unif2ace.modeling_unif2ace import get_preset
from unif2ace.training.train_text_tokenizer import build_tokenizer


# Whose words the tokenizer knows; all others it spells.
TEXTS = [
    "a man with a hat and a beard",
    "a young woman with round glasses",
    "USER: \nDescribe this face. What is on his head? ASSISTANT:",
]


def tiny_pipeline(seed: int = 0, alignment: str = "whole") -> UniF2acePipeline:
    """A model with opinions: its logits are far from uniform, so that two models that differ say different things."""
    torch.manual_seed(seed)
    config = get_preset("tiny")
    config.face_config.alignment = alignment
    model = UniF2aceForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, config.text_config.pad_token_id
    tokenizer = build_tokenizer(TEXTS * 3, config.text_vocab_size, config.vq_config.num_bits)
    pipe = UniF2acePipeline(model, UniF2aceScheduler(), UniF2aceProcessor.from_config(config, tokenizer))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_tiny_checkpoint(folder: Path, seed: int = 0, alignment: str = "whole", **save_kwargs) -> Path:
    """The same on disk, in the layout of transformers, with a scheduler that is not the default one."""
    pipe = tiny_pipeline(seed, alignment)
    pipe.transformer.save_pretrained(folder, **save_kwargs)
    pipe.processor.save_pretrained(folder)
    UniF2aceScheduler(temperature=0.9).save_pretrained(folder / "scheduler")
    return folder
