"""
What can be chosen of a fine-tuning: presets and settings. Light, since `unif2ace finetune --help` shows them.
"""

from dataclasses import dataclass, field

from ..modeling_unif2ace.peft_unif2ace import ATTENTION_MODULES


@dataclass(frozen=True)
class LoraPreset:
    """
    What LoRA adapts. An entry of `PRESETS` is a choice of `unif2ace finetune --preset`.

    Args:
        about (`str`): One sentence for `--help` and the card.
        modules (`tuple[str, ...]`, *optional*): Patterns of whole names of linear layers, as PEFT reads a string.
        shared_experts (`bool`, *optional*, defaults to `False`): Also the shared experts of the tuned tasks.
        parameters (`tuple[str, ...]`, *optional*): Ends of names of fused parameters, such as `EXPERT_PARAMETERS`.
    """

    about: str
    modules: tuple[str, ...] = ()
    shared_experts: bool = False
    parameters: tuple[str, ...] = ()


EXPERT_PARAMETERS = ("mlp.experts.up_proj", "mlp.experts.down_proj")
PRESETS = {
    "attention": LoraPreset("LoRA on the attention of every layer; both tasks share it", (ATTENTION_MODULES,)),
    "attention+experts": LoraPreset(
        "LoRA on attention and on the shared and routed experts of the trained tasks",
        (ATTENTION_MODULES,),
        shared_experts=True,
        parameters=EXPERT_PARAMETERS,
    ),
    "experts": LoraPreset(
        "LoRA on the experts of the trained tasks alone: the other task computes what it did, bit for bit",
        shared_experts=True,
        parameters=EXPERT_PARAMETERS,
    ),
}
LORA_LEARNING_RATE, LEARNING_RATES = 1e-3, {"full": 1e-4}
FULL, ABOUT_FULL = "full", "all weights but the frozen encoders; writes a whole checkpoint"  # no LoRA at all


@dataclass
class FinetuneSettings:
    """
    All that decides a fine-tuning.

    Args:
        data (`str`): The folder of faces; see [`~unif2ace.training.data.rows.read_faces`].
        output (`str`): Where the result goes; a folder that does not exist yet, or is empty.
        base (`str`, *optional*): Checkpoint to start from, a folder or a repository; the bundled one by default.
        preset (`str`, *optional*, defaults to `"attention"`): What to change: one of `PRESETS`, or `"full"`.
        tasks (`list[str]`, *optional*): `"t2i"` (generation), `"mmu"` (understanding) or both, the default.
        trigger (`str`, *optional*): A name for who is to be seen.
        trigger_only (`bool`, *optional*, defaults to `False`): Go on where most or all pictures have only it.
        steps (`int`, *optional*, defaults to 200): Optimizer steps.
        batch_size (`int`, *optional*, defaults to 8): Rows of a step.
        learning_rate (`float`, *optional*): 1e-3, for the preset `"full"` 1e-4, with a cosine to zero.
        rank (`int`, *optional*, defaults to 16): LoRA's rank.
        prior (`int`, *optional*):
            Pictures of the base model's own, made of the captions without the trigger, that are learnt again so that
            other prompts keep their meaning. As many as there are faces by default, if there is a trigger.
        seed (`int`, *optional*, defaults to 0): Seed of everything.
        save_steps (`int`, *optional*, defaults to 100): Steps between checkpoints to resume from.
        bf16 (`bool`, *optional*, defaults to `False`): Compute in bfloat16 where that is safe; weights stay float32.
    """

    data: str
    output: str
    base: str | None = None
    preset: str = "attention"
    tasks: list[str] = field(default_factory=lambda: list(_tasks()))
    trigger: str | None = None
    trigger_only: bool = False
    steps: int = 200
    batch_size: int = 8
    learning_rate: float | None = None
    rank: int = 16
    prior: int | None = None
    seed: int = 0
    save_steps: int = 100
    bf16: bool = False

    def __post_init__(self):
        known = _tasks()
        if self.preset not in (*PRESETS, FULL):
            raise ValueError(f"preset {self.preset!r}, expected one of {', '.join((*PRESETS, FULL))}")
        if not self.tasks or not set(self.tasks) <= set(known):
            raise ValueError(f"tasks are {self.tasks}, expected some of {', '.join(known)}")
        if self.preset == FULL and set(self.tasks) != set(known):
            raise ValueError("preset 'full' changes what both tasks share: tune both, or choose a LoRA preset")
        if self.trigger is not None and not self.trigger.strip():
            raise ValueError("the trigger is empty, expected a name")
        for name in ("steps", "batch_size", "rank", "save_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}, expected at least 1")
        if self.batch_size < len(self.tasks):
            raise ValueError(f"batch_size={self.batch_size} has no room for {len(self.tasks)} tasks")
        if self.learning_rate is None:
            self.learning_rate = LEARNING_RATES.get(self.preset, LORA_LEARNING_RATE)
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate}, expected more than 0")
        if self.prior is not None and self.prior < 0:
            raise ValueError(f"prior={self.prior}, expected 0 or more")


def _tasks() -> tuple[str, ...]:
    from ..modeling_unif2ace.layout_unif2ace import TASKS  # whose module needs torch

    return TASKS


__all__ = ["ABOUT_FULL", "EXPERT_PARAMETERS", "FULL", "PRESETS", "FinetuneSettings", "LoraPreset"]
