"""
Fine-tune the bundled checkpoint on 20 pictures of one painted person, and measure what that gives and what it costs.

    python benchmarks/finetune_person.py --out runs/person
    python benchmarks/finetune_person.py --out runs/person --preset attention+experts --task t2i

Paints a person whom the checkpoint has never seen (the painter's identity parameters and the attributes that stay;
what is worn, hair, pose, light and expression differ from picture to picture), with captions that give a name and
leave unsaid what stays. Then runs `unif2ace finetune` and compares base and adapter:

- **identity**: cosine between the face encoder's embedding of a generated face and the mean embedding of the 20
  pictures, for new prompts with the name. What is possible is the same for new paintings of the person, as they are
  and through the image tokenizer; what is nothing is the same for other painted people.
- **what else**: the same prompts without the name; the loss of codes and answers on held-out painted faces.

Needs nothing but the package: some minutes on one CPU core. Writes a JSON file and a contact sheet into the
output folder and prints the table of `docs/finetuning.md`.
"""

import argparse
import random
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from reporting import put_section
from torch.nn import functional as F
from tqdm import tqdm

from unif2ace import UniF2acePipeline, UniF2aceTrainer, UniF2aceTrainingArguments
from unif2ace.modeling_unif2ace.pictures_unif2ace import load_image
from unif2ace.modeling_unif2ace.provenance_unif2ace import checkpoint_sha256
from unif2ace.pipelines.files import replacing, write_json, write_text
from unif2ace.training.data.collator import UniF2aceCollator
from unif2ace.training.data.language.captions import write_caption
from unif2ace.training.data.language.visibility import assumed_visible
from unif2ace.training.data.rows import FaceRows
from unif2ace.training.evaluation.results import interval, table
from unif2ace.training.evaluation.statistics import ratio_with_interval
from unif2ace.training.finetune import finetune
from unif2ace.training.finetune_settings import PRESETS, FinetuneSettings
from unif2ace.training.synthetic.painted.dataset import LASTING_ATTRIBUTES, painted_face, person_picture
from unif2ace.training.synthetic.painted.painter import paint


SPLIT = "test"  # people of this split are in no training set
OTHERS = 24
HELD_OUT = 24
UNSAID = frozenset(LASTING_ATTRIBUTES) - {"gender"}


def caption(attributes: dict[str, str], seed: str) -> str:
    """What changes from picture to picture, in words; the name has to carry what stays."""
    visible = {name: seen and name not in UNSAID for name, seen in assumed_visible(attributes).items()}
    return write_caption(attributes, visible, random.Random(seed), coverage=0.6).text


def paint_folder(folder: Path, person: int, count: int, name: str) -> None:
    """Pictures and captions of one person, as a user would have them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        attributes, identity = person_picture(person, number, SPLIT)
        with replacing(folder / f"{number:03d}.png") as part:
            paint(attributes, identity).save(part)
        write_text(folder / f"{number:03d}.txt", f"{name}, {caption(attributes, f'{person}-{number}')}\n")


def pixels_of(images: list[Image.Image]) -> torch.Tensor:
    """Pictures as (B, 3, R, R) in [-1, 1]."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def embed(pipe: UniF2acePipeline, images: list[Image.Image]) -> torch.Tensor:
    """Normalised embeddings of the bundled face encoder, (B, 128)."""
    return pipe.transformer.model.encode_face(pixels_of(images))


@torch.no_grad()
def reconstruct(pipe: UniF2acePipeline, images: list[Image.Image]) -> list[Image.Image]:
    """Pictures through the image tokenizer, which is the best that any generated picture can be."""
    codes = pipe.transformer.encode_images(pixels_of(images))
    return pipe.processor.post_process_multimodal_output(
        pipe.transformer.decode_image_tokens(codes), generation_mode="image"
    )


def generate(pipe: UniF2acePipeline, prompts: list[str], options, what: str) -> list[Image.Image]:
    """One picture of each prompt and seed; the seeds of a prompt follow each other."""
    seeds = options.seeds
    pictures = []
    for number, prompt in enumerate(tqdm(prompts, desc=what, leave=False)):
        generators = [torch.Generator().manual_seed(10_000 * seed + number) for seed in seeds]
        made = pipe([prompt] * len(seeds), generator=generators, num_inference_steps=options.inference_steps)
        pictures += made.images
    return pictures


def held_out_losses(pipe: UniF2acePipeline, folder: Path) -> dict[str, float]:
    """Loss of masked codes and of answers on painted faces of the test split, always with the same masks."""
    records = [painted_face(number, SPLIT) for number in range(HELD_OUT)]
    with torch.no_grad():
        codes = list(pipe.transformer.encode_images(pixels_of([record.image for record in records])))
    arguments = UniF2aceTrainingArguments(
        str(folder), per_device_eval_batch_size=16, use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False
    )
    trainer = UniF2aceTrainer(
        model=pipe.transformer,
        args=arguments,
        eval_dataset=FaceRows(records, features={"codes": codes}),
        data_collator=UniF2aceCollator.from_processor(pipe.processor, pipe.transformer.config),
    )
    metrics = trainer.evaluate()
    return {"codes": metrics["eval_mask_loss"], "answers": metrics["eval_mmu_loss"]}


def sheet(path: Path, rows: list[list[Image.Image]]) -> None:
    """Pictures in rows, at twice their size."""
    side = 2 * rows[0][0].width
    grid = Image.new("RGB", (side * max(map(len, rows)), side * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            grid.paste(image.resize((side, side), Image.Resampling.NEAREST), (x * side, y * side))
    with replacing(path) as part:
        grid.save(part)


def measure(options: argparse.Namespace) -> dict:
    """Everything; see the top of this file."""
    started = time.monotonic()
    faces = options.out / "faces"
    paint_folder(faces, options.person, options.count, options.name)
    pipe = UniF2acePipeline.from_pretrained(options.base)
    pipe.set_progress_bar_config(disable=True)

    known = [load_image(path) for path in sorted(faces.glob("*.png"))]
    center = F.normalize(embed(pipe, known).mean(0), dim=0)
    new = [person_picture(options.person, options.count + number, SPLIT) for number in range(options.prompts)]
    paintings = [paint(*painting) for painting in new]
    plain = [caption(attributes, f"new-{number}") for number, (attributes, _) in enumerate(new)]
    named = [f"{options.name}, {text}" for text in plain]
    gender = new[0][0]["gender"]
    strangers = []
    other = options.person
    while len(strangers) < OTHERS:
        other += 1
        attributes, identity = person_picture(other, 0, SPLIT)
        if attributes["gender"] == gender:
            strangers.append(paint(attributes, identity))

    def similarity(images: list[Image.Image]) -> dict[str, float]:
        cosines = (embed(pipe, images) @ center).tolist()
        measured = ratio_with_interval(cosines, np.ones(len(cosines)))
        return {name: measured[name] for name in ("value", "low", "high")}

    results = {
        "new paintings of the person": similarity(paintings),
        "the same through the image tokenizer": similarity(reconstruct(pipe, paintings)),
        "paintings of other people of the gender": similarity(strangers),
    }
    pictures = {"base": generate(pipe, named, options, "base")}
    losses = {"base": held_out_losses(pipe, options.out / "trainer")}

    settings = FinetuneSettings(
        data=str(faces),
        output=str(options.out / "adapter"),
        preset=options.preset,
        tasks=["t2i", "mmu"] if options.task == "both" else [options.task],
        trigger=options.name,
        base=options.base,
        steps=options.steps,
        prior=options.prior,
        seed=options.seed,
    )
    summary = finetune(settings, resume=(options.out / "adapter").exists())
    if "stopped_by" in summary:
        raise OSError(f"stopped by {summary['stopped_by']}; the same command goes on")
    pipe.load_lora_weights(options.out / "adapter", adapter_name=options.name)
    pictures["adapter"] = generate(pipe, named, options, "adapter")
    pictures["adapter, without the name"] = generate(pipe, plain, options, "adapter, no name")
    losses["adapter"] = held_out_losses(pipe, options.out / "trainer")
    results |= {name: similarity(images) for name, images in pictures.items()}

    step = len(options.seeds)
    sheet(
        options.out / "sheet.png",
        [known[: options.prompts], paintings, pictures["base"][::step], pictures["adapter"][::step]],
    )
    return {
        "settings": {
            "base_sha256": checkpoint_sha256(pipe.config._name_or_path),
            "person": options.person,
            "pictures": options.count,
            "prompts": options.prompts,
            "inference_steps": options.inference_steps,
            "seeds": options.seeds,
            "preset": options.preset,
            "tasks": settings.tasks,
            "steps": options.steps,
            "prior": summary["prior"],
        },
        "similarity": results,
        "losses": losses,
        "training_minutes": summary["seconds"] / 60,
        "minutes": (time.monotonic() - started) / 60,
        "examples": named[:2],
    }


def report(results: dict) -> str:
    """The measured numbers as two tables, with what was done."""
    done = results["settings"]
    rows = [[name, interval(value)] for name, value in results["similarity"].items()]
    losses = results["losses"]
    other = [[name, *(f"{losses[model][name]:.3f}" for model in ("base", "adapter"))] for name in losses["base"]]
    tasks = "generation and understanding" if len(done["tasks"]) == 2 else done["tasks"][0]
    text = (
        f"Preset `{done['preset']}`, {tasks}, {done['steps']} steps, {done['pictures']} pictures and {done['prior']} "
        f"of the base model's own; {done['prompts']} new prompts, {len(done['seeds'])} seeds each, "
        f"{done['inference_steps']} sampling steps. Checkpoint `{done['base_sha256'][:12]}`."
    )
    return "\n\n".join(
        [
            text,
            table(["pictures", "cosine to the person [95 % interval]"], rows),
            table(["loss on other painted faces", "base", "adapter"], other),
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Fine-tune on one painted person and measure it.")
    parser.add_argument("--out", type=Path, default=Path("runs/person"), help="(default: %(default)s)")
    parser.add_argument("--base", help="checkpoint (default: the bundled one)")
    parser.add_argument("--person", type=int, default=5, help="number of the painted person (default: %(default)s)")
    parser.add_argument("--name", default="zora", help="what to call the person (default: %(default)s)")
    parser.add_argument("--count", type=int, default=20, help="pictures (default: %(default)s)")
    parser.add_argument("--preset", choices=list(PRESETS), default="attention")
    parser.add_argument("--task", choices=["t2i", "mmu", "both"], default="both")
    parser.add_argument("--steps", type=int, default=200, help="(default: %(default)s)")
    parser.add_argument("--prior", type=int, help="see `unif2ace finetune --help`")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=6, help="new prompts to draw (default: %(default)s)")
    parser.add_argument("--inference-steps", type=int, default=8, help="of a picture (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the pictures")
    parser.add_argument("--into", type=Path, help="a document to put tables and sheet into, as docs/finetuning.md")
    options = parser.parse_args(arguments)
    try:
        results = measure(options)
        write_json(options.out / "results.json", results)
        if options.into:
            put_section(options.into, "person", report(results))
            with replacing(options.into.with_suffix(".png")) as part:
                shutil.copyfile(options.out / "sheet.png", part)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report(results))
    print(f"{results['minutes']:.1f} minutes, of which {results['training_minutes']:.1f} of fine-tuning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
