"""Arguments of UniF²ace training."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from ..modeling_unif2ace.configuration_unif2ace import UniF2aceConfig
from ..modeling_unif2ace.moe_unif2ace import SEQUENCE_ROUTINGS
from ..modeling_unif2ace.objective_unif2ace import BALANCE_SCOPES, WEIGHTINGS, UniF2aceObjective
from ..modeling_unif2ace.sampling_unif2ace import MaskSchedule
from ..pipelines.regions_unif2ace import region_box


def region_weights(weights: Mapping[str, float], grid_size: int) -> torch.FloatTensor:
    """
    Factors of the codes' losses, mean 1.

    Eyes, brows, nose and mouth hold most of what a description says, but are a quarter of a picture's codes, and the
    large areas around them are learnt first. A factor that depends on the place alone changes what is learnt first,
    not what a code's probability should be. Ours: the paper weighs all codes alike.

    Args:
        weights (`Mapping[str, float]`):
            Weight of the codes under each facial part (`FACE_PARTS` of `pipelines/regions_unif2ace.py`), relative to
            those under none, by their centres; where parts overlap the largest holds.
        grid_size (`int`): Codes along one side of a picture.

    Returns:
        `torch.FloatTensor` of shape `(grid_size²,)`.

    Raises:
        ValueError: if there is no such part, or a weight is not positive.
    """
    centres = (torch.arange(grid_size) + 0.5) / grid_size
    found = torch.zeros(grid_size, grid_size)
    for part, weight in weights.items():
        if not weight > 0:
            raise ValueError(f"region_weights gives {part!r} the weight {weight}, expected more than 0")
        left, top, right, bottom = region_box(part)
        rows, columns = (centres > top) & (centres < bottom), (centres > left) & (centres < right)
        found[rows[:, None] & columns] = found[rows[:, None] & columns].clamp(min=weight)
    found[found == 0] = 1.0  # under no part
    return (found / found.mean()).flatten()


@dataclass
class RunArguments(TrainingArguments):
    r"""
    [`~transformers.TrainingArguments`] of a run that can be stopped and go on.

    Args:
        ema_decay (`float`, *optional*):
            Decay of the moving average of the weights that is evaluated and finally saved; off when not given. It is
            warmed up as t/(9 + t).
        max_minutes (`float`, *optional*):
            Stop after so much training time, a resumed run's earlier parts included, and let the learning rate follow
            a cosine over the time, ending at zero. `max_steps` still holds.

    Defaults that differ from transformers': `remove_unused_columns=False`, `report_to="none"`, `adam_beta2=0.98`,
    `lr_scheduler_type="cosine"`, `logging_nan_inf_filter=False` (a loss that is not a number should be seen).
    """

    ema_decay: float | None = field(default=None, metadata={"help": "Decay of the averaged weights; off if not set."})
    max_minutes: float | None = field(default=None, metadata={"help": "Training time, in minutes."})

    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator needs every column."})
    report_to: None | str | list[str] = field(default="none", metadata={"help": "Where to report to."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Beta2 of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide losses that are not numbers."})

    def __post_init__(self):
        super().__post_init__()
        if self.ema_decay is not None and not 0 <= self.ema_decay <= 1:
            raise ValueError(f"ema_decay={self.ema_decay}, expected 0 to 1")
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise ValueError(f"max_minutes={self.max_minutes}, expected more than 0")


@dataclass
class UniF2aceTrainingArguments(RunArguments):
    r"""
    [`RunArguments`] with the arguments of the two tasks.

    > Parameters that control the loss

    Args:
        alpha (`float`, *optional*, defaults to `0.01`): Weight of D3Diff's score term (paper section 3.2).
        mask_weight (`float`, *optional*, defaults to `1.0`): Weight of D3Diff's mask term.
        weighting (`str`, *optional*, defaults to `"inverse_ratio"`):
            Weight of the score term over the mask ratio: `"inverse_ratio"`, `"elbo"` or `"dse"`.
        weighting_power (`float`, *optional*, defaults to `1.0`):
            The power of 1/λ in `"inverse_ratio"`, continuous: at 0 the score term is the plain cross-entropy; see
            `score_weight`.
        mask_schedule (`str`, *optional*, defaults to `"cosine"`): The `MaskSchedule` of training, `"linear"`, ...
        region_weights (`dict[str, float]`, *optional*):
            Weights of the codes under facial parts, as `{"eyes": 4, "mouth": 4}`, relative to all others; see
            [`region_weights`]. All count alike, as in the paper, when not given. `mask_loss` is logged without them.
        mmu_weight (`float`, *optional*, defaults to `1.0`): Weight of the understanding loss.
        t2i_balance_coef (`float`, *optional*, defaults to `0.01`):
            Weight of the balance loss of the text-to-image group's routers.
        mmu_balance_coef (`float`, *optional*, defaults to `0.01`): Likewise for the understanding group.
        t2i_sequence_balance_coef, mmu_sequence_balance_coef (`float`, *optional*, defaults to `0.0`):
            Likewise for the sequence-level routers. Not in the paper.
        balance_scope (`str`, *optional*, defaults to `"step"`):
            What the expert loads of the balance loss are counted over. `"step"`: all micro-batches and processes of
            the optimizer step before, so that the loss does not depend on how a step is split. `"micro_batch"`: the
            micro-batch itself, as in Switch and Mixtral; then it does.

    > Parameters that control the data and the noise

        condition_dropout (`float`, *optional*, defaults to `0.1`):
            Share of text-to-image rows trained without their text, for guidance.
        sequence_routing (`str`, *optional*, defaults to `"straight_through"`):
            What the sequence routers learn from: `"straight_through"`, all experts of a group, used or not, or
            `"top_k"`, those that were used; see `UniF2aceSequenceMoE`.
        sequence_dense_steps (`int`, *optional*, defaults to `1000`):
            Steps over which the sequence experts go from a mixture of all to the best few, linearly; at most half of
            the training's. 0 for models whose experts are trained.
        sequence_dense_rise (`float`, *optional*, defaults to `0.1`):
            Share of these steps in which the mixture comes in first, linearly from nothing, so that training begins at
            the function of converted weights. At 0 it is there at once.
        sequence_router_noise (`float`, *optional*, defaults to `0.25`):
            Largest standard deviation of the noise on the sequence routers' logits, which explores. It is zero at the
            first step, so that training begins at the function of converted weights, rises, and falls back to zero.
        sequence_router_noise_steps (`int`, *optional*, defaults to `1000`): Steps that this takes.
        without (`list[str]`, *optional*, defaults to `[]`):
            Kinds of experts, `"clip"` and `"face"`, that may stay without features: training is refused if the model
            has such experts and neither an encoder nor the data provides what they need.
        t2i_fraction (`float`, *optional*):
            Share of text-to-image rows in every batch; the data set needs a column `task` or an attribute `tasks`.
            Rows are only shuffled when not given.

    > Parameters that control the run

        muon_learning_rate (`float`, *optional*):
            Train the weight matrices with Muon at this learning rate, everything else with AdamW at `learning_rate`
            (`optimizers.py`). All with the optimizer that `optim` names when not given.
        hub_license (`str`, *optional*):
            Licence of the weights, as the Hub names it (`"apache-2.0"`); needed with `push_to_hub=True`.
    """

    alpha: float = field(default=0.01, metadata={"help": "Weight of D3Diff's score term."})
    mask_weight: float = field(default=1.0, metadata={"help": "Weight of D3Diff's mask term."})
    weighting: str = field(default="inverse_ratio", metadata={"help": "Weight of the score term over the mask ratio."})
    weighting_power: float = field(default=1.0, metadata={"help": "Power of the inverse mask ratio in it."})
    mask_schedule: str = field(default="cosine", metadata={"help": "Mask schedule: cosine, linear, pow, ..."})
    region_weights: dict[str, float] | None = field(
        default=None, metadata={"help": "Weights of codes by facial part."}
    )
    mmu_weight: float = field(default=1.0, metadata={"help": "Weight of the understanding loss."})
    t2i_balance_coef: float = field(default=0.01, metadata={"help": "Weight of the balance loss, text-to-image."})
    mmu_balance_coef: float = field(default=0.01, metadata={"help": "Weight of the balance loss, understanding."})
    t2i_sequence_balance_coef: float = field(default=0.0, metadata={"help": "The same for sequence-level experts."})
    mmu_sequence_balance_coef: float = field(default=0.0, metadata={"help": "The same for sequence-level experts."})
    balance_scope: str = field(default="step", metadata={"help": "Loads over a step or a micro_batch."})
    condition_dropout: float = field(default=0.1, metadata={"help": "Share of prompts trained without text."})
    sequence_routing: str = field(default="straight_through", metadata={"help": "What sequence routers learn from."})
    sequence_dense_steps: int = field(default=1000, metadata={"help": "Steps from a mixture of all experts to few."})
    sequence_dense_rise: float = field(default=0.1, metadata={"help": "Share of these steps until it is a mixture."})
    sequence_router_noise: float = field(default=0.25, metadata={"help": "Largest noise on sequence routers' logits."})
    sequence_router_noise_steps: int = field(default=1000, metadata={"help": "Steps until that noise is zero."})
    without: list[str] = field(default_factory=list, metadata={"help": "Experts that may lack features: clip, face."})
    t2i_fraction: float | None = field(default=None, metadata={"help": "Share of text-to-image rows in a batch."})
    muon_learning_rate: float | None = field(default=None, metadata={"help": "Muon's, of the weight matrices."})
    hub_license: str | None = field(default=None, metadata={"help": "Licence of the weights on the Hub."})

    def __post_init__(self):
        super().__post_init__()
        choices = {
            "weighting": WEIGHTINGS,
            "balance_scope": BALANCE_SCOPES,
            "sequence_routing": SEQUENCE_ROUTINGS,
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name}={value!r}, expected one of {', '.join(map(repr, allowed))}")
        MaskSchedule(self.mask_schedule)  # says which there are
        for name in (
            "alpha",
            "mask_weight",
            "weighting_power",
            "mmu_weight",
            "t2i_balance_coef",
            "mmu_balance_coef",
            "t2i_sequence_balance_coef",
            "mmu_sequence_balance_coef",
            "sequence_router_noise",
            "sequence_router_noise_steps",
            "sequence_dense_steps",
        ):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"{name}={value}, expected 0 or more")
        if not 0 <= self.sequence_dense_rise < 1:
            raise ValueError(f"sequence_dense_rise={self.sequence_dense_rise}, expected 0 or more and less than 1")
        unknown = set(self.without) - {"clip", "face"}
        if unknown:
            raise ValueError(f"without={self.without}, expected some of 'clip', 'face'")
        for name in ("condition_dropout", "t2i_fraction"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value}, expected 0 to 1")
        if self.muon_learning_rate is not None and self.muon_learning_rate <= 0:
            raise ValueError(f"muon_learning_rate={self.muon_learning_rate}, expected more than 0")
        if self.push_to_hub and self.hub_license is None:  # better now than when training is over
            raise ValueError(
                'push_to_hub=True needs hub_license, the licence of the weights: "apache-2.0", "mit", ...'
            )

    def make_objective(
        self, config: UniF2aceConfig, kind: type[UniF2aceObjective] = UniF2aceObjective
    ) -> UniF2aceObjective:
        """The paper's objective for a model of `config`, or one of another `kind`, with these arguments' weights."""
        code_weights = None
        if self.region_weights:
            code_weights = region_weights(self.region_weights, config.vq_config.grid_size)
        return kind(
            config,
            alpha=self.alpha,
            mask_weight=self.mask_weight,
            weighting=self.weighting,
            weighting_power=self.weighting_power,
            schedule=self.mask_schedule,
            mmu_weight=self.mmu_weight,
            t2i_balance_coef=self.t2i_balance_coef,
            mmu_balance_coef=self.mmu_balance_coef,
            t2i_sequence_balance_coef=self.t2i_sequence_balance_coef,
            mmu_sequence_balance_coef=self.mmu_sequence_balance_coef,
            balance_scope=self.balance_scope,
            code_weights=code_weights,
        )
