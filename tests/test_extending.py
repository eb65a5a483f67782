"""The examples of docs/extending.md, each executed, each doing what the page says."""

import re
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from unif2ace import UniF2aceScheduler
from unif2ace.modeling_unif2ace import (
    UniF2aceConfig,
    UniF2aceForConditionalGeneration,
    configuration_unif2ace,
    get_preset,
    modeling_unif2ace,
    moe_unif2ace,
    sampling_unif2ace,
)
from unif2ace.modeling_unif2ace.objective_unif2ace import hide_codes
from unif2ace.training import adapters
from unif2ace.training.adapters import lora_config
from unif2ace.training.arguments import UniF2aceTrainingArguments
from unif2ace.training.finetune_settings import FinetuneSettings
from unif2ace.training.trainer import UniF2aceTrainer


PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")


def example(title):
    """What the code under a heading defines."""
    section = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]
    names = {}
    for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(compile(block, f"extending.md, {title}", "exec"), names)
    return names


def t2i_batch(config, rows=2):
    """A batch as the collator makes it: `<|t2i|> bos eos <|soi|> codes <|eoi|>`."""
    special = config.special_token_id
    codes = torch.randint(config.vq_config.codebook_size, (rows, config.num_image_tokens)) + config.image_code_offset
    start = torch.tensor([special("<|t2i|>"), 0, 1, special("<|soi|>")]).expand(rows, -1)
    input_ids = torch.cat([start, codes, torch.full((rows, 1), special("<|eoi|>"))], dim=1)
    labels = torch.full_like(input_ids, -100)
    task_ids = torch.zeros(rows, dtype=torch.long)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": labels,
        "task_ids": task_ids,
    }


def test_a_loss_term(model, tmp_path):
    kind = example("A loss term")["WithEntropy"]
    config = model.config
    torch.manual_seed(0)
    batch = hide_codes(t2i_batch(config), config)
    with torch.no_grad():
        plain = model(**batch)
        model.objective = kind(config)
        outputs = model(**batch)
    entropy = torch.special.entr(outputs.image_logits.softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(outputs.loss, plain.loss + 0.1 * entropy)

    args = UniF2aceTrainingArguments(
        str(tmp_path),
        max_steps=2,
        alpha=0.0,
        logging_steps=1,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        per_device_train_batch_size=2,
    )
    rows = t2i_batch(config, 4)
    rows = [{name: rows[name][i] for name in rows} | {"task": "t2i", "text": "x", "codes": [0]} for i in range(4)]

    def collate(rows):
        return {name: torch.stack([row[name] for row in rows]) for name in batch if name != "image_labels"}

    trainer = UniF2aceTrainer(
        model=model, args=args, objective=args.make_objective(config, kind), train_dataset=rows, data_collator=collate
    )
    trainer.train()
    for entry in trainer.state.log_history[:2]:
        total = entry["mask_loss"] + 0.1 * entry["entropy"] + 0.01 * entry["t2i_balance"]
        assert entry["loss"] == pytest.approx(total + 0.01 * entry["mmu_balance"], rel=1e-4)


def test_a_sampler(pipe):
    try:
        example("A sampler")
        scheduler = pipe.scheduler
        try:
            pipe.scheduler = UniF2aceScheduler(sampling="greedy")
            first, second = (
                pipe("a hat", generator=torch.Generator().manual_seed(seed), output_type="latent").images
                for seed in (0, 1)
            )
        finally:
            pipe.scheduler = scheduler
        assert torch.equal(first, second)  # no chance
        drawn = pipe("a hat", generator=torch.Generator().manual_seed(1), output_type="latent").images
        assert not torch.equal(first, drawn)
    finally:
        del sampling_unif2ace.SAMPLERS["greedy"]


def test_a_lora_preset(model, tmp_path):
    try:
        example("A LoRA preset")
        tuned = get_peft_model(model, lora_config(model.config, "resamplers", rank=2))
        names = {name.partition(".lora_")[0] for name, p in tuned.named_parameters() if p.requires_grad}
        assert len(names) == 3 * 4 and all(".resamplers." in name for name in names)
        assert FinetuneSettings("data", str(tmp_path), preset="resamplers").preset == "resamplers"
    finally:
        del adapters.PRESETS["resamplers"]


def test_a_feature_expert(monkeypatch):
    monkeypatch.setattr(moe_unif2ace, "FEATURES", dict(moe_unif2ace.FEATURES))
    monkeypatch.setattr(modeling_unif2ace, "FEATURES", moe_unif2ace.FEATURES)
    monkeypatch.setitem(configuration_unif2ace.SEQUENCE_EXPERTS, "mmu", configuration_unif2ace.SEQUENCE_EXPERTS["mmu"])
    example("A feature expert")
    fields = get_preset("tiny").to_dict()
    fields["text_config"] |= {"mmu_sequence_experts": ["copy", "copy", "face", "colour"]}
    torch.manual_seed(0)
    model = UniF2aceForConditionalGeneration(UniF2aceConfig(**fields)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    assert set(model.model.resamplers) == {"noise", "face", "colour"}
    layout = model.config.layout
    ids = torch.tensor([[layout.mmu, layout.soi, *[layout.mask] * layout.num_codes, layout.eoi, layout.bos]])
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    computed = model(input_ids=ids, pixel_values=pixels).logits
    given = model(input_ids=ids, pixel_values=pixels, colour_features=pixels.mean((2, 3))).logits
    assert torch.equal(computed, given)
    with pytest.raises(ValueError, match="2 colour features for 1 understanding"):
        model(input_ids=ids, pixel_values=pixels, colour_features=torch.zeros(2, 3))
