"""
Trains the image tokenizer on the faces of a folder, then turns these into codes.

    python -m unif2ace.training.synthetic.train_tokenizer --config training/synthetic/configs/tokenizer-faces.yaml
    python -m unif2ace.training.synthetic.train_tokenizer --config ... --encode

The first command resumes where it stopped. It leaves `final/` (weights averaged over training), `log.jsonl` and
`reconstructions.png` in the output folder. The second writes the folder `encoded`: everything that the model learns
from, small enough to be carried to another machine (see [`encode_faces`]).
"""

import argparse
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch.nn import functional as F

from ...modeling_unif2ace.configuration_unif2ace import UniF2aceVQConfig
from ...modeling_unif2ace.image_tokenizer_unif2ace import UniF2aceVQModel, UniF2aceVQOutput
from ...modeling_unif2ace.presets_unif2ace import get_preset
from ..arguments import RunArguments
from ..evaluation.judge import UniF2aceJudge
from ..part_trainer import ENDLESS, METRICS_FILE, PartTask, PartTrainer
from .faces import SPLITS, Faces, encode_faces


VALIDATION_PICTURES, WATCHED_PICTURES = 128, 32


@dataclass
class TokenizerTrainingArguments:
    """
    How to train an image tokenizer; the keys of the YAML file.

    Args:
        preset (`str`): Preset whose `vq_config` gives the shape.
        data (`str`): Folder of the faces, see [`~unif2ace.training.synthetic.faces.Faces`].
        output (`str`): Folder for checkpoints, logs and the trained tokenizer.
        vq (`dict`, *optional*): Fields of the preset's `vq_config` to change, `{"num_bits": 12}`.
        encoded (`str`, *optional*): Folder that `--encode` writes.
        webp_quality (`int`, *optional*): Quality of the pictures in it; as they are when not given.
        initial (`str`, *optional*): Folder of a tokenizer to start from instead of random weights.
        freeze_encoder (`bool`, *optional*, defaults to `False`):
            Train the decoder only: pictures keep their codes, so models trained on these codes stay valid.
        minutes (`float`, *optional*): Length of training in minutes of wall-clock time, over all resumptions.
        steps (`int`, *optional*): Length of training in steps. Give either `minutes` or `steps`.
        batch_size (`int`, *optional*, defaults to 8): Pictures in a step.
        learning_rate (`float`, *optional*, defaults to 2e-3): Highest learning rate of AdamW.
        warmup_steps (`int`, *optional*, defaults to 100): Steps over which the learning rate rises to it.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled weight decay.
        max_grad_norm (`float`, *optional*, defaults to 1.0): Longest gradient.
        ema_decay (`float`, *optional*, defaults to 0.998): Decay of the average of weights that is kept.
        l1_weight (`float`, *optional*, defaults to 1.0): Weight of the absolute error.
        mse_weight (`float`, *optional*, defaults to 2.0): Weight of the squared error.
        edge_weight (`float`, *optional*, defaults to 3.0): How much more errors at the strongest edges count.
        gradient_weight (`float`, *optional*, defaults to 0.5): Weight of the error of neighbours' differences.
        perceptual_weight (`float`, *optional*, defaults to 0.0): Weight of the error of a judge's feature maps.
        judge (`str`, *optional*): Folder of the frozen [`UniF2aceJudge`] for that term.
        commitment_weight (`float`, *optional*, defaults to 0.05): Weight of the commitment term.
        entropy_weight (`float`, *optional*, defaults to 0.02): Weight of the entropy term.
        decorrelation_weight (`float`, *optional*, defaults to 0.0): Weight of the term that parts the bits' meanings.
        bf16 (`bool`, *optional*, defaults to `False`): Compute in bfloat16 (weights stay float32).
        threads (`int`, *optional*, defaults to 1): CPU threads.
        seed (`int`, *optional*, defaults to 0): Seed of weights and batches.
        log_every (`int`, *optional*, defaults to 50): Steps between two lines of the log.
        checkpoint_minutes (`float`, *optional*, defaults to 2.0): Minutes between validations and checkpoints.
    """

    preset: str
    data: str
    output: str
    vq: dict[str, Any] | None = None
    encoded: str | None = None
    webp_quality: int | None = None
    initial: str | None = None
    freeze_encoder: bool = False
    minutes: float | None = None
    steps: int | None = None
    batch_size: int = 8
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.998
    l1_weight: float = 1.0
    mse_weight: float = 2.0
    edge_weight: float = 3.0
    gradient_weight: float = 0.5
    perceptual_weight: float = 0.0
    judge: str | None = None
    commitment_weight: float = 0.05
    entropy_weight: float = 0.02
    decorrelation_weight: float = 0.0
    bf16: bool = False
    threads: int = 1
    seed: int = 0
    log_every: int = 50
    checkpoint_minutes: float = 2.0

    def __post_init__(self):
        if (self.minutes is None) == (self.steps is None):
            raise ValueError(f"minutes={self.minutes} and steps={self.steps}: give one of the two, it ends training")
        if self.freeze_encoder and self.initial is None:
            raise ValueError("freeze_encoder=True without `initial` would keep random codes; name a trained tokenizer")
        if self.perceptual_weight > 0 and self.judge is None:
            raise ValueError(
                f"perceptual_weight={self.perceptual_weight} needs `judge`, the folder of a trained UniF2aceJudge; "
                "name one or set the weight to 0"
            )

    @classmethod
    def from_yaml(cls, path: str | Path) -> "TokenizerTrainingArguments":
        """Reads a YAML file; raises `ValueError` when it has a key that does not exist or lacks a needed one."""
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(given) - known)
        if unknown:
            raise ValueError(f"{path}: unknown keys {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        absent = sorted({"preset", "data", "output"} - set(given))
        if absent:
            raise ValueError(f"{path}: the keys {', '.join(absent)} are missing")
        return cls(**given)


def differences(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences of neighbouring pixels, downwards and to the right."""
    return pixels[:, :, 1:] - pixels[:, :, :-1], pixels[:, :, :, 1:] - pixels[:, :, :, :-1]


def edge_strength(pixels: torch.Tensor) -> torch.Tensor:
    """How much an image changes around each pixel, 0 to 1, as `(batch, 1, height, width)`."""
    down, right = (part.abs().amax(1, keepdim=True) for part in differences(pixels))
    strength = torch.maximum(F.pad(down, (0, 0, 0, 1)), F.pad(right, (0, 1)))
    return F.max_pool2d(strength, 3, stride=1, padding=1).clamp(max=1)


def perceptual_error(judge: UniF2aceJudge, reconstruction: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """
    How differently a frozen judge sees two batches: mean absolute error of its feature maps, each divided by its own
    mean, as in perceptual losses (Johnson et al., arXiv 1603.08155).
    """
    with torch.no_grad():
        wanted = judge.feature_maps(pixels)
    given = judge.feature_maps(reconstruction)
    errors = [F.l1_loss(one, other) / (other.abs().mean() + 1e-6) for one, other in zip(given, wanted, strict=True)]
    return torch.stack(errors).mean()


def decorrelation(hidden: torch.Tensor) -> torch.Tensor:
    """
    Mean squared correlation of two bits of `hidden` (batch, bits, height, width), 0 to 1.

    The entropy term sees one bit at a time: it is content with bits that all say "bright". They are told apart in the
    end without this term, too, but late.
    """
    bits = torch.tanh(hidden.float()).transpose(0, 1).flatten(1)
    bits = F.normalize(bits - bits.mean(1, keepdim=True), dim=1)
    correlation = (bits @ bits.T).square()
    return (correlation.sum() - correlation.diagonal().sum()) / (len(bits) * (len(bits) - 1))


def tokenizer_loss(
    output: UniF2aceVQOutput,
    pixels: torch.Tensor,
    args: TokenizerTrainingArguments,
    judge: UniF2aceJudge | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """
    The loss and its parts.

    Eyes, mouths and glasses are few pixels between strong edges: the weight map and the gradient term make them count
    as much as the large flat areas, which are easy.
    """
    error = output.reconstruction - pixels
    weight = 1 + args.edge_weight * edge_strength(pixels)
    weight = weight / weight.mean()
    parts = {
        "l1": (weight * error.abs()).mean(),
        "mse": (weight * error.square()).mean(),
        "gradient": sum(part.abs().mean() for part in differences(error)),
        "commitment": output.commitment_loss,
        "entropy": output.entropy_loss,
        "decorrelation": decorrelation(output.hidden),
    }
    if judge is not None:
        parts["perceptual"] = perceptual_error(judge, output.reconstruction, pixels)
    loss = sum(getattr(args, f"{name}_weight") * value for name, value in parts.items())
    return loss, {name: value.item() for name, value in parts.items()}


@torch.no_grad()
def validate(model: UniF2aceVQModel, faces: Faces, most: int = VALIDATION_PICTURES) -> dict[str, float]:
    """PSNR in dB: mean over pictures, of the worst tenth, at edges; number and perplexity of codes in use."""
    psnr, edge_error, codes = [], [], []
    count = min(most, len(faces))
    for start in range(0, count, 16):
        pixels = faces.pixels(range(start, min(start + 16, count))).to(model.device)
        found = model.encode(pixels)
        error = (model.decode(found) - pixels).square() / 4  # of a range of 2
        psnr += (-10 * error.mean((1, 2, 3)).log10()).tolist()
        edges = (edge_strength(pixels) > 0.5).expand_as(error)
        edge_error.append(error[edges].mean().item())
        codes.append(found)
    share = torch.bincount(torch.cat(codes).flatten(), minlength=model.config.codebook_size).double()
    share = share / share.sum()
    return {
        "psnr": float(np.mean(psnr)),
        "psnr_worst_tenth": float(np.mean(sorted(psnr)[: max(1, len(psnr) // 10)])),
        "psnr_edges": -10 * math.log10(np.mean(edge_error)),
        "codes_used": int((share > 0).sum()),
        "code_perplexity": float(torch.exp(-torch.xlogy(share, share).sum())),
    }


@torch.no_grad()
def draw_reconstructions(model: UniF2aceVQModel, faces: Faces, path: Path, count: int = 16, scale: int = 2):
    """Writes a PNG of originals (odd rows) above their reconstructions (even rows), eight in a row, enlarged."""
    pixels = faces.pixels(range(min(count, len(faces)))).to(model.device)
    decoded = model.decode(model.encode(pixels))
    rows = []
    for start in range(0, len(pixels), 8):
        rows += [torch.cat(list(part[start : start + 8]), dim=2) for part in (pixels, decoded)]
    widest = max(row.shape[2] for row in rows)
    sheet = torch.cat([F.pad(row, (0, widest - row.shape[2])) for row in rows], dim=1)
    sheet = ((sheet + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(sheet)
    image.resize((image.width * scale, image.height * scale), Image.NEAREST).save(path)


def shape_of(args: TokenizerTrainingArguments) -> UniF2aceVQConfig:
    """The shape that the arguments ask for."""
    return UniF2aceVQConfig(**get_preset(args.preset).vq_config.to_dict() | (args.vq or {}))


class TokenizerTask(PartTask):
    """An image tokenizer on the pictures of a folder; see [`TokenizerTrainingArguments`]."""

    def __init__(self, args: TokenizerTrainingArguments):
        self.args, self.output = args, Path(args.output)
        torch.manual_seed(args.seed)
        if args.initial is None:
            self.model = UniF2aceVQModel(shape_of(args))
        else:
            self.model = UniF2aceVQModel.from_pretrained(args.initial)
        self.model.encoder.requires_grad_(not args.freeze_encoder)
        if args.bf16:  # in which CPUs convolve faster, in this layout
            self.model.to(memory_format=torch.channels_last)
        self.trained = self.model
        self.judge = None
        if args.perceptual_weight > 0:
            self.judge = UniF2aceJudge.from_pretrained(args.judge).eval().requires_grad_(False)
        self.faces, self.validation = Faces(args.data), Faces(args.data, "validation")

    def reload(self) -> None:
        """More faces may still be made: training begins with the first."""
        self.faces.reload()

    def loss(self, rng, batch_size, progress):
        pixels = self.faces.pixels(rng.integers(len(self.faces), size=batch_size)).to(self.device)
        judge = None if self.judge is None else self.judge.to(self.device)
        return tokenizer_loss(self.model(pixels), pixels, self.args, judge)

    def watch(self) -> dict[str, float]:
        return validate(self.model, self.validation, WATCHED_PICTURES)

    def evaluate(self) -> dict:
        draw_reconstructions(self.model, self.validation, self.output / "reconstructions.png")
        return validate(self.model, self.validation)


def train_tokenizer(args: TokenizerTrainingArguments) -> UniF2aceVQModel:
    """
    Train an image tokenizer to its end, going on where an earlier call stopped.

    Args:
        args (`TokenizerTrainingArguments`): How.

    Returns:
        `UniF2aceVQModel`: With the weights averaged over training, as in the folder `final`.
    """
    output = Path(args.output)
    final = output / "final"
    if not (output / METRICS_FILE).is_file():  # which is written last
        torch.set_num_threads(args.threads)
        run = RunArguments(
            output_dir=str(output),
            max_minutes=args.minutes,
            max_steps=ENDLESS if args.steps is None else args.steps,
            per_device_train_batch_size=1,
            learning_rate=args.learning_rate,
            warmup_steps=args.warmup_steps,
            weight_decay=args.weight_decay,
            max_grad_norm=args.max_grad_norm,
            adam_beta2=0.99,
            ema_decay=args.ema_decay,
            bf16=args.bf16,
            use_cpu=not torch.cuda.is_available(),
            seed=args.seed,
            logging_steps=args.log_every,
            save_strategy="no",
            save_total_limit=1,
            train_sampling_strategy="sequential",
            dataloader_pin_memory=False,
        )
        PartTrainer(TokenizerTask(args), run, args.batch_size, args.checkpoint_minutes).run()
    return UniF2aceVQModel.from_pretrained(final).eval()


def main(argv: list[str] | None = None):
    """The command."""
    parser = argparse.ArgumentParser(
        description="Train the image tokenizer, or turn pictures into its codes.",
        epilog="Example: python -m unif2ace.training.synthetic.train_tokenizer "
        "--config training/synthetic/configs/tokenizer-faces.yaml",
    )
    parser.add_argument("--config", required=True, help="YAML file with the keys of TokenizerTrainingArguments")
    parser.add_argument(
        "--encode", action="store_true", help="write the codes of all splits with the trained tokenizer"
    )
    options = parser.parse_args(argv)
    args = TokenizerTrainingArguments.from_yaml(options.config)
    if options.encode:
        if args.encoded is None:
            parser.exit(1, f"error: {options.config} does not say where to: give `encoded`, a folder\n")
        torch.set_num_threads(args.threads)
        model = UniF2aceVQModel.from_pretrained(Path(args.output) / "final").eval()
        if torch.cuda.is_available():
            model = model.cuda()
        for split in SPLITS:
            encode_faces(model, args.data, args.encoded, split, args.webp_quality)
        size = sum(path.stat().st_size for path in Path(args.encoded).glob("*.parquet"))
        print(f"{args.encoded}: {size / 1e6:.1f} MB")
    else:
        train_tokenizer(args)


if __name__ == "__main__":
    main()
