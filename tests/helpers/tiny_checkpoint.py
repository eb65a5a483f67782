"""A real checkpoint of tiny size on disk: model, processor, scheduler."""

from pathlib import Path

import torch

from unif2ace import UniF2aceForConditionalGeneration, UniF2aceProcessor, UniF2aceScheduler
from unif2ace.modeling_unif2ace import get_preset
from unif2ace.training.train_text_tokenizer import build_tokenizer


TEXTS = [
    "a man with a hat and a beard",
    "a young woman with round glasses",
    "USER: \nDescribe this face. What is on his head? ASSISTANT:",
]


def save_tiny_checkpoint(folder: Path, seed: int = 0, **save_kwargs) -> Path:
    """A model with opinions: its logits are far from uniform, so that two models that differ say different things."""
    torch.manual_seed(seed)
    config = get_preset("tiny")
    model = UniF2aceForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, config.text_config.pad_token_id
    model.save_pretrained(folder, **save_kwargs)
    tokenizer = build_tokenizer(TEXTS * 3, config.text_vocab_size, config.vq_config.num_bits)
    UniF2aceProcessor.from_config(config, tokenizer).save_pretrained(folder)
    UniF2aceScheduler(temperature=0.9).save_pretrained(folder / "scheduler")
    return folder
