"""
Fine-tune a checkpoint on a folder of faces: the command `unif2ace finetune`.

    unif2ace finetune --data my_faces/ --output my_faces_lora --trigger zora
    unif2ace generate "zora, a woman with a red hat" --model my_faces_lora -o face.png

What it writes: a LoRA adapter (or, with `--preset full`, a whole checkpoint) with its card and sample pictures; `run/`
beside them has the settings, the log, a sheet that sets training pictures beside what the model drew of their captions
before and after, and, until training is complete, the checkpoints to resume from.
"""

import os
import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from tqdm import tqdm
from transformers import set_seed

from ..modeling_unif2ace.layout_unif2ace import TASKS
from ..pipelines import UniF2acePipeline
from ..pipelines.files import read_json, replacing, write_json
from ..pipelines.hooks import card_writer
from ..pipelines.loading_unif2ace import BUNDLED_NAME
from ..pipelines.pictures import labelled_sheet, picture_grid, save_picture
from .adapters import changed_weights, lora_config, restrict_to_tasks
from .arguments import UniF2aceTrainingArguments
from .checkpoints import last_checkpoint
from .data.collator import UniF2aceCollator
from .data.language.captions import parse_caption
from .data.rows import FaceRows, TuningRows, read_faces
from .finetune_settings import FULL, FinetuneSettings
from .run_folder import LOG_FILE, package_versions
from .trainer import UniF2aceTrainer


SETTINGS_FILE, SUMMARY_FILE, PRIOR_FILE = "settings.json", "summary.json", "prior.safetensors"
PASSES = 8  # over the faces before their words repeat, where a face has several captions
ENCODE_BATCH, PRIOR_BATCH, SAMPLES = 32, 8, 6
OTHERS = 8  # pictures of the base model's own that are not learnt again: their loss says what is forgotten
SHEET_FILE, SHEET_SIDE = "sheet.png", 192


def finetune(settings: FinetuneSettings, pipe: UniF2acePipeline | None = None, resume: bool = False) -> dict[str, Any]:
    """
    Fine-tune and write the result.

    Args:
        settings (`FinetuneSettings`): What to do.
        pipe (`UniF2acePipeline`, *optional*): The base, if it is loaded already; its model is changed.
        resume (`bool`, *optional*, defaults to `False`): Go on from the newest checkpoint in the output folder.

    Returns:
        `dict`: The summary that is also in `run/summary.json`: `settings`, `base`, `pictures`, `prior`, `parameters`
        (trained and all), `steps`, `seconds`, `first_loss`, `last_loss`, `changed`
        ([`~unif2ace.training.adapters.changed_weights`]), `measured` (name to `before` and `after`; see
        docs/finetuning.md), `prompts`, `samples`, `files`, `versions`. Of a run that Ctrl-C or SIGTERM ended, only
        `settings`, `steps` and `stopped_by`: it has left a checkpoint and no result.

    Raises:
        FileExistsError: if the output folder holds something and is not to be resumed.
        FileNotFoundError: if there are no faces, or nothing to resume.
        ValueError: if faces, base and settings do not fit together.
    """
    output, started = Path(settings.output), time.monotonic()
    run = output / "run"
    check_output(output, settings, resume)
    records = read_faces(settings.data, settings.trigger, settings.trigger_only)
    pipe = UniF2acePipeline.from_pretrained(settings.base) if pipe is None else pipe
    if pipe.get_list_adapters():
        raise ValueError(
            "the base is an adapter already; fuse it first (pipe.fuse_lora(), pipe.unload_lora_weights(), "
            "pipe.save_pretrained(FOLDER)) and start from that folder"
        )
    model, processor = pipe.transformer, pipe.processor
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / SETTINGS_FILE, asdict(settings))

    set_seed(settings.seed)
    codes = _encode(model, processor, records)
    count = settings.prior if settings.prior is not None else len(records) if settings.trigger else 0
    drawn = _prior(pipe, records, settings, count + OTHERS if "t2i" in settings.tasks else 0, run / PRIOR_FILE)
    prior, others = drawn[:count], [{"task": "t2i", "text": text, "codes": codes} for text, codes in drawn[count:]]
    shown = [record for record in records if record.captions][:SAMPLES]
    prompts = [record.captions[0] for record in shown] or ["a face"]
    before = _draw(pipe, prompts, settings.seed)
    faces = FaceRows(records, passes=PASSES, seed=settings.seed, features={"codes": codes})
    rows = TuningRows(faces, settings.tasks, prior * PASSES)

    base = _name_base(model, settings)
    tuned = _with_adapter(model, settings)
    trainer = _trainer(tuned, processor, rows, settings, run)
    trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    parameters = [trained, sum(p.numel() for p in tuned.parameters())]
    print(
        f"{len(records)} faces, {len(prior)} pictures of the base model; preset {settings.preset}, "
        f"{trained / 1e6:.2f}M of {parameters[1] / 1e6:.2f}M parameters learn",
        flush=True,
    )
    losses_of_others = [_loss(trainer, others)]
    # a run that was stopped before its first checkpoint begins again, with the pictures that it has drawn already
    go_on = resume and any(run.glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=str(last_checkpoint(run)) if go_on else None)
    if trainer.stopped_by is not None and trainer.state.global_step < settings.steps:
        return {"settings": asdict(settings), "steps": trainer.state.global_step, "stopped_by": trainer.stopped_by}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    changed = {} if settings.preset == FULL else changed_weights(tuned)
    if changed and not any(changed.values()):
        raise ValueError("the adapter has learnt nothing at all: check the data and the learning rate")

    losses_of_others.append(_loss(trainer, others))
    tuned.eval()
    after = _draw(pipe, prompts, settings.seed)
    judge = nullcontext() if settings.preset == FULL else tuned.disable_adapter()
    with judge:  # the base says what it sees in the pictures of both
        measured = {
            "loss of other pictures": losses_of_others,
            "likeness to the training pictures": _likeness(pipe, records, [before, after]),
            "attributes of the captions that the model sees": _attributes_seen(pipe, prompts, [before, after]),
        }
    summary = {
        "settings": asdict(settings),
        "base": base,
        "alpha": None if settings.preset == FULL else tuned.peft_config["default"].lora_alpha,
        "pictures": len(records),
        "prior": len(prior),
        "parameters": parameters,
        "steps": trainer.state.global_step,
        "seconds": round(time.monotonic() - started, 1),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "changed": changed,
        "measured": {
            name: {"before": round(values[0], 4), "after": round(values[1], 4)}
            for name, values in measured.items()
            if None not in values
        },
        "prompts": prompts,
        "samples": "samples.png",
        "device": str(model.device),
        "versions": package_versions(),
    }
    save_picture(picture_grid(after), output / "samples.png")
    rows = {"training": [record.image for record in shown], "before": before, "after": after}
    save_picture(labelled_sheet(rows, prompts, SHEET_SIDE), run / SHEET_FILE)  # in run/, which is never published
    _write_result(tuned, pipe, output, settings)
    write_json(run / SUMMARY_FILE, summary)  # the card is made of it
    if settings.preset != FULL:
        card_writer()(output)
    summary["files"] = sorted(path.name for path in output.iterdir() if path.is_file())
    write_json(run / SUMMARY_FILE, summary)
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return summary


def check_output(output: Path, settings: FinetuneSettings, resume: bool) -> None:
    """
    Refuse to write over anything, or to resume what is finished or was something else.

    Raises:
        OSError, ValueError: then; the message says what to do.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("fine-tuning runs in one process: start it without torchrun, or use `unif2ace train`")
    run = output / "run"
    if resume:
        if (run / SUMMARY_FILE).is_file():
            raise FileExistsError(f"the fine-tuning in {output} is finished; choose another output folder")
        if not (run / SETTINGS_FILE).is_file():
            raise FileNotFoundError(f"{output} holds no fine-tuning to resume; run without --resume")
        before = read_json(run / SETTINGS_FILE)
        now = asdict(settings)
        differing = [name for name in now if name not in ("output", "save_steps") and now[name] != before.get(name)]
        if differing:
            name = differing[0]
            raise ValueError(
                f"the run in {output} was started with {name}={before.get(name)!r}, not {now[name]!r}: resume it with "
                "the same settings, or start another one"
            )
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        unfinished = (run / SETTINGS_FILE).is_file() and not (run / SUMMARY_FILE).is_file()
        hint = ", or go on with --resume" if unfinished else ""
        raise FileExistsError(f"{output} exists and is not empty; choose another output folder{hint}")


def _name_base(model, settings: FinetuneSettings) -> str:
    """What the adapter will call its base: a folder by its whole path, so that it is found from anywhere."""
    base = BUNDLED_NAME if settings.base is None else settings.base
    if settings.base is not None and Path(settings.base).is_dir():
        base = str(Path(settings.base).resolve())
    model.name_or_path = base
    model.config._name_or_path = base
    return base


def _with_adapter(model, settings: FinetuneSettings):
    """The model with the weights of the preset ready to learn."""
    if settings.preset == FULL:
        return model.requires_grad_(True)
    tuned = get_peft_model(model, lora_config(model.config, settings.preset, settings.tasks, settings.rank))
    restrict_to_tasks(tuned, settings.tasks)
    return tuned


@torch.no_grad()
def _encode(model, processor, records) -> list[torch.Tensor]:
    """Image codes (N,) of each face."""
    codes = []
    for start in tqdm(range(0, len(records), ENCODE_BATCH), desc="encoding faces", leave=False):
        images = [record.image for record in records[start : start + ENCODE_BATCH]]
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        codes += list(model.encode_images(pixels.to(model.device)).cpu())
    return codes


def _prior(
    pipe: UniF2acePipeline, records, settings: FinetuneSettings, count: int, file: Path
) -> list[tuple[str, torch.Tensor]]:
    """Prompts that do not name the person, with the codes that the base model draws; kept for a resumption."""
    if not count:
        return []
    captions = [caption for record in records for caption in record.captions]
    if settings.trigger:
        captions = [_without(caption, settings.trigger) for caption in captions]
    captions = [caption for caption in dict.fromkeys(captions) if caption] or ["a face"]
    texts = [captions[i % len(captions)] for i in range(count)]
    codes = _kept_codes(file)
    if codes is None or len(codes) != count:
        drawn = []
        for start in tqdm(range(0, count, PRIOR_BATCH), desc="drawing what the model knows", leave=False):
            numbers = range(start, min(start + PRIOR_BATCH, count))
            drawn.append(_draw(pipe, [texts[i] for i in numbers], settings.seed + start, "latent").cpu())
        codes = torch.cat(drawn)
        with replacing(file) as part:
            save_file({"codes": codes}, part)
    return list(zip(texts, codes, strict=True))


def _kept_codes(file: Path) -> torch.Tensor | None:
    """The codes that a run drew before it was broken off; `None` if the file is absent or damaged."""
    try:
        return load_file(file)["codes"]
    except (OSError, ValueError, KeyError, SafetensorError):
        return None


def _without(caption: str, trigger: str) -> str:
    """`caption` without the name and the comma behind it."""
    place = caption.lower().find(trigger.lower())
    if place < 0:
        return caption
    return (caption[:place] + caption[place + len(trigger) :].lstrip(" ,:")).strip()


def _draw(pipe: UniF2acePipeline, prompts: list[str], seed: int, output_type: str = "pil"):
    """One picture (or its codes) of each prompt; what the model cannot read of one is cut, as in training."""
    tokenizer, limit = pipe.processor.tokenizer, pipe.processor.max_text_length - 2
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        texts.append(prompt if len(ids) <= limit else tokenizer.decode(ids[: limit - 2]))
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    pipe.set_progress_bar_config(disable=True)
    return pipe(texts, generator=generators, output_type=output_type).images


def _loss(trainer: UniF2aceTrainer, rows: list[dict]) -> float | None:
    """Cross-entropy of masked codes, with the same masks each time; `None` without rows."""
    return trainer.evaluate(rows, metric_key_prefix="others")["others_mask_loss"] if rows else None


@torch.no_grad()
def _likeness(pipe: UniF2acePipeline, records, drawn: list[list[Image.Image]]) -> list[float | None]:
    """Mean cosine of the face encoder's embeddings to the mean of the training pictures; `None` without an encoder."""

    def embed(images):
        inputs = pipe.processor.image_processor(images, return_tensors="pt").to(pipe.transformer.device)
        return pipe.transformer.model.encode_face(inputs["pixel_values"], inputs.get("face_pixel_values"))

    if pipe.transformer.model.face_encoder is None:
        return [None] * len(drawn)
    known = torch.cat([embed([record.image for record in records[i : i + 32]]) for i in range(0, len(records), 32)])
    center = F.normalize(known.mean(0), dim=0)
    return [(embed(images) @ center).mean().item() for images in drawn]


def _attributes_seen(pipe: UniF2acePipeline, prompts: list[str], drawn: list[list[Image.Image]]) -> list[float | None]:
    """
    Share of the attributes which the prompts state that the model states, too, when it describes the pictures; `None`
    where the prompts state none.
    """
    stated = [parse_caption(prompt) for prompt in prompts]
    count = sum(map(len, stated))
    if not count:
        return [None] * len(drawn)
    shares = []
    for images in drawn:
        seen = [parse_caption(text).items() for text in pipe.describe(images)]
        shares.append(sum(len(want.items() & read) for want, read in zip(stated, seen, strict=True)) / count)
    return shares


def _trainer(model, processor, rows: TuningRows, settings: FinetuneSettings, run: Path) -> UniF2aceTrainer:
    both = len(settings.tasks) == len(TASKS)
    arguments = UniF2aceTrainingArguments(
        output_dir=str(run),
        seed=settings.seed,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=min(20, settings.steps // 10),
        weight_decay=0.0,
        # three of four rows are pictures to draw: generation is what most people tune for
        t2i_fraction=max(0.75, 1 / settings.batch_size) if both else None,
        # routers start from what they have learnt: no exploration, no balance loss to pull at them
        sequence_router_noise=0.0,
        sequence_dense_steps=0,
        t2i_balance_coef=0.0,
        mmu_balance_coef=0.0,
        logging_steps=max(1, min(10, settings.steps // 10)),
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=2,
        dataloader_pin_memory=False,
        use_cpu=model.device.type == "cpu",
        bf16=settings.bf16,
    )
    trainer = UniF2aceTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=UniF2aceCollator.from_processor(processor, model.config),
    )
    trainer.keep_log(run / LOG_FILE)
    return trainer


def _write_result(model, pipe: UniF2acePipeline, output: Path, settings: FinetuneSettings):
    """The adapter, or the whole checkpoint; written aside first, so that the folder is whole or has none."""
    part = output / "run" / "result.part"
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    if settings.preset == FULL:
        pipe.processor.save_pretrained(part)
        pipe.scheduler.save_pretrained(part / "scheduler")
    (part / "README.md").unlink(missing_ok=True)  # PEFT's is empty; ours follows
    marker = "config.json" if settings.preset == FULL else "adapter_config.json"
    for path in sorted(part.iterdir(), key=lambda path: path.name == marker):  # last what says that it is there
        if path.is_file():
            path.chmod(0o644)  # safetensors makes files that nobody else can read
        path.replace(output / path.name)
    part.rmdir()


__all__ = ["check_output", "finetune"]
