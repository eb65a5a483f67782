"""The card of a LoRA adapter, written from what its fine-tuning left behind."""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..training.adapters import PRESETS
from .card import loss_table


TEMPLATE = Path(__file__).parent / "templates" / "adapter_card.md.jinja"
BUNDLED_NAME = "unif2ace-faces"


def make_adapter_card(summary: Mapping, log: list[Mapping] = ()) -> ModelCard:
    """
    Make the card.

    Args:
        summary (`Mapping`): What [`~unif2ace.training.finetune.finetune`] returned.
        log (`list[Mapping]`, *optional*): Entries of its `log.jsonl`.

    Returns:
        `huggingface_hub.ModelCard`
    """
    settings, base = summary["settings"], summary["base"]
    bundled = base == BUNDLED_NAME
    on_hub = not bundled and not Path(base).is_absolute()
    trigger, name = settings["trigger"], Path(settings["output"]).name
    data = ModelCardData(
        library_name="peft",
        base_model=base if on_hub else None,
        pipeline_tag="text-to-image",
        tags=["unif2ace", "lora", "text-to-image", "face"],
        instance_prompt=trigger,
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=f"{name}: a UniF²ace adapter",
        base=Path(base).name if not on_hub else base,
        base_link=f"https://huggingface.co/{base}" if on_hub else "#use",
        load_base="" if bundled else repr(base),
        folder=name,
        adapter_name=(trigger or name).replace(".", "-").replace(" ", "-"),
        prompt=summary["prompts"][0],
        trigger=trigger,
        pictures=summary["pictures"],
        samples=bool(summary["samples"]),
        preset=settings["preset"],
        about_preset=PRESETS[settings["preset"]],
        rank=settings["rank"],
        alpha=summary["alpha"],
        tasks={"t2i": "generation", "mmu": "understanding"}.get("+".join(settings["tasks"]), "both tasks"),
        changed=summary["changed"],
        steps=summary["steps"],
        batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        seed=settings["seed"],
        minutes=f"{summary['seconds'] / 60:.1f}",
        device=summary["device"],
        prior=summary["prior"],
        losses=loss_table(list(log)),
        versions=", ".join(f"{package} {version}" for package, version in summary["versions"].items()),
    )
