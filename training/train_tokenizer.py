"""
Trains the image tokenizer on pictures, then turns pictures into codes.

    python -m unif2ace.training.train_tokenizer --config training/synthetic/configs/tokenizer-faces.yaml
    python -m unif2ace.training.train_tokenizer --config training/synthetic/configs/tokenizer-faces.yaml --encode

The first command resumes where it stopped. It leaves `final/` (weights averaged over training), `log.jsonl` and
`reconstructions.png` in the output folder. The second writes `<split>_codes.npy` beside each `<split>.npy`.
"""

import argparse
import json
import math
import shutil
import time
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from tqdm import tqdm

from ..modeling_unif2ace.image_tokenizer_unif2ace import UniF2aceVQModel, UniF2aceVQOutput
from ..modeling_unif2ace.presets_unif2ace import get_preset
from ..pipelines.files import replacing
from .evaluation.judge import UniF2aceJudge
from .synthetic.painted.dataset import load_rendered


SPLITS = ("train", "validation", "test")
VALIDATION_PICTURES = 128


@dataclass
class TokenizerTrainingArguments:
    """
    How to train an image tokenizer; the keys of the YAML file.

    Args:
        preset (`str`): Preset whose `vq_config` gives the shape.
        data (`str`): Folder with `train.npy` and `validation.npy`, uint8 `(count, side, side, 3)`.
        output (`str`): Folder for checkpoints, logs and the trained tokenizer.
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
        bf16 (`bool`, *optional*, defaults to `False`): Compute in bfloat16 (weights stay float32).
        threads (`int`, *optional*, defaults to 1): CPU threads.
        seed (`int`, *optional*, defaults to 0): Seed of weights and batches.
        log_every (`int`, *optional*, defaults to 50): Steps between two lines of the log.
        checkpoint_minutes (`float`, *optional*, defaults to 2.0): Minutes between validations and checkpoints.
    """

    preset: str
    data: str
    output: str
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


def read_pictures(pictures: np.ndarray, rows: np.ndarray) -> torch.FloatTensor:
    """Pictures of the render cache, uint8 `(count, side, side, 3)`, as `(len(rows), 3, side, side)` in [-1, 1]."""
    return torch.from_numpy(pictures[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1


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
    }
    if judge is not None:
        parts["perceptual"] = perceptual_error(judge, output.reconstruction, pixels)
    loss = sum(getattr(args, f"{name}_weight") * value for name, value in parts.items())
    return loss, {name: value.item() for name, value in parts.items()}


@torch.no_grad()
def validate(model: UniF2aceVQModel, pictures: np.ndarray) -> dict[str, float]:
    """PSNR in dB: mean over pictures, of the worst tenth, at edges; number and perplexity of codes in use."""
    psnr, edge_error, codes = [], [], []
    for start in range(0, min(VALIDATION_PICTURES, len(pictures)), 16):
        pixels = read_pictures(pictures, np.arange(start, min(start + 16, len(pictures))))
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
def draw_reconstructions(model: UniF2aceVQModel, pictures: np.ndarray, path: Path, count: int = 16, scale: int = 4):
    """Writes a PNG of originals (odd rows) above their reconstructions (even rows), eight in a row, enlarged."""
    pixels = read_pictures(pictures, np.arange(min(count, len(pictures))))
    decoded = model.decode(model.encode(pixels))
    rows = []
    for start in range(0, len(pixels), 8):
        rows += [torch.cat(list(part[start : start + 8]), dim=2) for part in (pixels, decoded)]
    widest = max(row.shape[2] for row in rows)
    sheet = torch.cat([F.pad(row, (0, widest - row.shape[2])) for row in rows], dim=1)
    sheet = ((sheet + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(sheet)
    image.resize((image.width * scale, image.height * scale), Image.NEAREST).save(path)


class TokenizerTrainer:
    """Trains a [`UniF2aceVQModel`]; see [`TokenizerTrainingArguments`]."""

    def __init__(self, args: TokenizerTrainingArguments):
        self.args, self.output = args, Path(args.output)
        self.output.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(args.threads)
        torch.manual_seed(args.seed)
        if args.initial is None:
            self.model = UniF2aceVQModel(get_preset(args.preset).vq_config)
        else:
            self.model = UniF2aceVQModel.from_pretrained(args.initial)
        self.model.encoder.requires_grad_(not args.freeze_encoder)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        if args.bf16:  # in which CPUs convolve faster, in this layout
            self.model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=args.weight_decay
        )
        self.train, self.validation = load_rendered(args.data, "train"), load_rendered(args.data, "validation")
        self.judge = None
        if args.perceptual_weight > 0:
            self.judge = UniF2aceJudge.from_pretrained(args.judge).eval().requires_grad_(False)
        self.step, self.seconds = 0, 0.0
        self._resume()

    def _resume(self):
        # a crash between the two renames of `save` leaves only the older checkpoint
        for folder in (self.output / "checkpoint", self.output / "checkpoint.old"):
            if folder.exists():
                self.model.load_state_dict(load_file(folder / "model.safetensors"))
                self.average = load_file(folder / "average.safetensors")
                self.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
                state = json.loads((folder / "state.json").read_text())
                self.step, self.seconds = state["step"], state["seconds"]
                return

    def save(self):
        """Writes a checkpoint that is either whole or absent."""
        new, current, old = (self.output / name for name in ("checkpoint.new", "checkpoint", "checkpoint.old"))
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        save_file(
            {name: value.contiguous() for name, value in self.model.state_dict().items()}, new / "model.safetensors"
        )
        save_file(self.average, new / "average.safetensors")
        torch.save(self.optimizer.state_dict(), new / "optimizer.pt")
        (new / "state.json").write_text(json.dumps({"step": self.step, "seconds": self.seconds}))
        shutil.rmtree(old, ignore_errors=True)
        if current.exists():
            current.rename(old)
        new.rename(current)
        shutil.rmtree(old, ignore_errors=True)

    @property
    def progress(self) -> float:
        """Share of training that is done, 0 to 1."""
        if self.args.steps is not None:
            return min(1.0, self.step / self.args.steps)
        return min(1.0, self.seconds / (60 * self.args.minutes))

    @property
    def learning_rate(self) -> float:
        warm = min(1.0, (self.step + 1) / self.args.warmup_steps)
        return self.args.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * self.progress))

    def averaged_model(self) -> UniF2aceVQModel:
        """A model with the weights averaged over training."""
        model = UniF2aceVQModel(self.model.config)
        model.load_state_dict(self.average)
        return model.eval()

    def _training_step(self) -> dict[str, float]:
        # the step's own generator: a resumed run draws the batches that an uninterrupted one would
        rng = np.random.default_rng((self.args.seed, self.step))
        pixels = read_pictures(self.train, rng.integers(len(self.train), size=self.args.batch_size))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        with torch.autocast("cpu", torch.bfloat16, enabled=self.args.bf16):
            loss, parts = tokenizer_loss(self.model(pixels), pixels, self.args, self.judge)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.args.max_grad_norm)
        self.optimizer.step()
        self.step += 1
        decay = min(self.args.ema_decay, self.step / (self.step + 10))
        for name, value in self.model.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)
        return {"loss": loss.item(), "grad_norm": norm.item(), **parts}

    def _log(self, values: dict):
        line = {"step": self.step, "minutes": round(self.seconds / 60, 2), **values}
        line = {name: float(f"{value:.5g}") for name, value in line.items()}
        text = json.dumps(line)
        tqdm.write(text)
        with open(self.output / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(text + "\n")

    def _validate(self):
        model = self.averaged_model()
        self._log(validate(model, self.validation))
        draw_reconstructions(model, self.validation, self.output / "reconstructions.png")

    def run(self) -> UniF2aceVQModel:
        """Trains to the end and saves `final/`; returns the averaged model."""
        last, last_saved, recent = time.monotonic(), self.seconds, []
        with tqdm(total=1000, initial=round(1000 * self.progress), unit="‰", mininterval=10) as bar:
            while self.progress < 1:
                recent.append(self._training_step())
                now = time.monotonic()
                self.seconds, last = self.seconds + now - last, now
                if self.step % self.args.log_every == 0:
                    mean = {name: float(np.mean([values[name] for values in recent])) for name in recent[0]}
                    self._log({**mean, "learning_rate": self.learning_rate, "pictures": len(self.train)})
                    recent = []
                    bar.update(round(1000 * self.progress) - bar.n)
                if self.seconds - last_saved > 60 * self.args.checkpoint_minutes:
                    last_saved = self.seconds
                    self.save()
                    self._validate()
                    # painting may still be going on: training begins with the first pictures
                    self.train = load_rendered(self.args.data, "train")
        self.save()
        self._validate()
        model = self.averaged_model()
        model.save_pretrained(self.output / "final")
        return model


@torch.no_grad()
def encode_split(model: UniF2aceVQModel, folder: str | Path, split: str, batch_size: int = 32) -> Path:
    """
    Codes of all pictures of a split, written to `<split>_codes.npy` as uint16 `(count, tokens)`.

    Raises:
        FileNotFoundError: if the split is not painted yet.
    """
    pictures = load_rendered(folder, split)
    codes = np.empty((len(pictures), model.config.grid_size**2), dtype=np.uint16)
    for start in tqdm(range(0, len(pictures), batch_size), desc=f"encoding {split}", mininterval=10):
        rows = np.arange(start, min(start + batch_size, len(pictures)))
        codes[rows] = model.encode(read_pictures(pictures, rows)).numpy()
    path = Path(folder) / f"{split}_codes.npy"
    with replacing(path) as part:
        np.save(part, codes)
    return path


def main(argv: list[str] | None = None):
    """The command."""
    parser = argparse.ArgumentParser(
        description="Train the image tokenizer, or turn pictures into its codes.",
        epilog="Example: python -m unif2ace.training.train_tokenizer "
        "--config training/synthetic/configs/tokenizer-faces.yaml",
    )
    parser.add_argument("--config", required=True, help="YAML file with the keys of TokenizerTrainingArguments")
    parser.add_argument(
        "--encode", action="store_true", help="write the codes of all splits with the trained tokenizer"
    )
    options = parser.parse_args(argv)
    args = TokenizerTrainingArguments.from_yaml(options.config)
    if options.encode:
        torch.set_num_threads(args.threads)
        model = UniF2aceVQModel.from_pretrained(Path(args.output) / "final").eval()
        for split in SPLITS:
            print(encode_split(model, args.data, split))
    else:
        TokenizerTrainer(args).run()


if __name__ == "__main__":
    main()
