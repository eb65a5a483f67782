"""
Measure the watermark: what it costs in pixels, how often it is missed after each change, how often it is seen where it
is not.

    python benchmarks/watermark.py                    # 300 held-out painted faces, 100 generated ones, three sizes
    python benchmarks/watermark.py --count 100 --generated 0 --false-alarm-keys 10
    python benchmarks/watermark.py --sides 64 --keep runs/watermark.json --into docs/provenance.md
    python benchmarks/watermark.py --parts --pair docs/provenance.png    # only draw the pair: unmarked, marked

Misses are counted on generated faces of the bundled checkpoint (without `--generated 0`) and on painted ones; pictures
of more than 64 pixels are the same ones enlarged before marking. False alarms are counted on unmarked faces, each
searched for many random keys, at a threshold that should give one in a hundred: the threshold in use (one in a
million) is too rare to count, so what is checked is that the calibration holds where it can be counted.

With `--keep FILE` a run that was broken off goes on where it stopped, and other runs add to what was counted. Each
size has a table of its own, so that sizes can be measured on different numbers of pictures.
"""

import argparse
import hashlib
import io
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from reporting import put_section, table
from tqdm import tqdm

from unif2ace import UniF2acePipeline
from unif2ace.modeling_unif2ace import watermark_unif2ace
from unif2ace.modeling_unif2ace.pictures_unif2ace import load_image
from unif2ace.modeling_unif2ace.provenance_unif2ace import checkpoint_sha256
from unif2ace.modeling_unif2ace.watermark_unif2ace import FALSE_ALARM_RATE
from unif2ace.pipelines import detect_watermark, embed_watermark
from unif2ace.pipelines.files import write_json
from unif2ace.training.data.language.captions import write_caption
from unif2ace.training.data.language.visibility import assumed_visible
from unif2ace.training.synthetic.faces import Faces
from unif2ace.training.synthetic.painted.dataset import attributes_of


SPLIT = "test"
SIDES = (64, 128, 256)
COUNTED_RATE = 0.01
CHUNK = 50  # pictures counted at once
FLAT = 2  # grey levels by which the brightness of 5 x 5 pixels differs at most, where a picture counts as flat
ZOOM = 8


def jpeg(quality: int) -> Callable:
    """Through a JPEG file, with Pillow's chroma subsampling."""

    def change(image, rng):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return load_image(file.getvalue())

    return change


def crop(share: float) -> Callable:
    """Cut away a share of the width and of the height, at a random place."""

    def change(image, rng):
        width, height = (round(side * (1 - share)) for side in image.size)
        left, top = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
        return image.crop((left, top, left + width, top + height))

    return change


def resize(factor: float) -> Callable:
    """Bicubic."""

    def change(image, rng):
        size = [round(side * factor) for side in image.size]
        return image.resize(size, Image.Resampling.BICUBIC)

    return change


def both(first: Callable, second: Callable) -> Callable:
    return lambda image, rng: second(first(image, rng), rng)


CHANGES: dict[str, Callable] = {
    "none (PNG)": lambda image, rng: image,
    "JPEG quality 90": jpeg(90),
    "10 % crop": crop(0.1),
    "10 % crop, JPEG quality 90": both(crop(0.1), jpeg(90)),
    "JPEG quality 75": jpeg(75),
    "JPEG quality 50": jpeg(50),
    "25 % crop": crop(0.25),
    "50 % crop": crop(0.5),
    "mirrored": lambda image, rng: ImageOps.mirror(image),
    "enlarged twice": resize(2),
    "enlarged twice, JPEG quality 90": both(resize(2), jpeg(90)),
    "enlarged by 1.1": resize(1.1),
    "enlarged by 1.25": resize(1.25),
    "enlarged by 1.37, JPEG quality 90": both(resize(1.37), jpeg(90)),
    "enlarged by 1.37, 10 % crop": both(resize(1.37), crop(0.1)),
    "enlarged by 2.5": resize(2.5),
    "made smaller by 0.8": resize(0.8),
    "halved": resize(0.5),
    "turned by 2 degrees": lambda image, rng: image.rotate(2, Image.Resampling.BICUBIC),
    "noise of 5 grey levels": lambda image, rng: Image.fromarray(
        np.clip(np.asarray(image) + rng.normal(0, 5, np.asarray(image).shape), 0, 255).astype(np.uint8)
    ),
}


class Pictures(Sequence):
    """Unmarked faces in chunks of `CHUNK`, made when they are asked for; `made_by` says what of."""

    def __init__(self, name: str, made_by: str, count: int, make: Callable[[range], list[Image.Image]]):
        self.name, self.made_by, self.count, self.make = name, made_by, count, make
        self.made: dict[int, list[Image.Image]] = {}

    def __len__(self) -> int:
        return -(-self.count // CHUNK)

    def __getitem__(self, chunk: int) -> list[Image.Image]:
        if chunk not in self.made:
            self.made[chunk] = self.make(self.numbers(chunk))
        return self.made[chunk]

    def numbers(self, chunk: int) -> range:
        return range(chunk * CHUNK, min((chunk + 1) * CHUNK, self.count))


def painted(data: str, count: int) -> Pictures:
    """Held-out painted faces."""
    pixels = Faces(data, SPLIT, count).pictures(range(count))
    return Pictures("painted", "painted", count, lambda numbers: [Image.fromarray(pixels[n]) for n in numbers])


def generated(count: int, model: str | None) -> Pictures:
    """Faces that the checkpoint makes from held-out captions, without marks."""
    pipe = UniF2acePipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)

    def make(numbers: range) -> list[Image.Image]:
        attributes = [attributes_of(number, SPLIT) for number in numbers]
        texts = [write_caption(item, assumed_visible(item), random.Random(0)).text for item in attributes]
        images = []
        for start in tqdm(range(0, len(texts), 10), desc="generating"):
            generators = [torch.Generator().manual_seed(number) for number in numbers[start : start + 10]]
            images += pipe(texts[start : start + 10], generator=generators, watermark=False).images
        return images

    made_by = f"generated by {checkpoint_sha256(pipe.config._name_or_path)[:12]}"
    return Pictures("generated", made_by, count, make)


class Counts:
    """What was counted, by detector, set, size and chunk; kept in a file if there is one."""

    def __init__(self, file: Path | None):
        self.file = file
        self.detector = hashlib.sha256(Path(watermark_unif2ace.__file__).read_bytes()).hexdigest()[:12]
        self.known = json.loads(file.read_text(encoding="utf-8")) if file is not None and file.is_file() else {}

    def of(self, pictures: Pictures, what: str, function: Callable[[list[Image.Image], int], dict]) -> list[dict]:
        """What `function` counts in each chunk of some pictures, where it is not known yet."""
        found = []
        for chunk in tqdm(range(len(pictures)), desc=f"{pictures.name}, {what}"):
            numbers = pictures.numbers(chunk)
            name = f"{self.detector} {what}, {pictures.made_by} {numbers.start}-{numbers.stop}"
            if name not in self.known:
                self.known[name] = function(pictures[chunk], chunk)
                if self.file is not None:
                    write_json(self.file, self.known)
            found.append(self.known[name])
        return found


def psnr(image: Image.Image, marked: Image.Image) -> float:
    difference = np.asarray(image, dtype=float) - np.asarray(marked, dtype=float)
    return float(10 * np.log10(255**2 / (difference**2).mean()))


def changes_on_flat_ground(image: Image.Image, marked: Image.Image) -> list[int]:
    """How many pixels of flat ground change by 0, 1, 2, ... grey levels."""
    luma = np.asarray(image.convert("L"), dtype=int)
    flat = np.zeros(luma.shape, dtype=bool)
    flat[2:-2, 2:-2] = np.ptp(np.lib.stride_tricks.sliding_window_view(luma, (5, 5)), axis=(2, 3)) <= FLAT
    difference = np.abs(np.asarray(marked, dtype=int) - np.asarray(image, dtype=int))
    return np.bincount(difference[flat].ravel(), minlength=256).tolist()


def draw_pair(image: Image.Image, file: Path):
    """A picture before and after marking, side by side and `ZOOM` times enlarged."""
    pair = Image.new("RGB", (2 * image.width, image.height))
    pair.paste(image, (0, 0))
    pair.paste(embed_watermark(image), (image.width, 0))
    pair.resize((ZOOM * pair.width, ZOOM * pair.height), Image.Resampling.NEAREST).save(file, optimize=True)


def wilson_upper(count: int, total: int) -> float:
    """Upper end of the 95 % Wilson interval of a share."""
    z, share = 1.96, count / total
    centre = share + z**2 / (2 * total)
    return (centre + z * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))) / (1 + z**2 / total)


def count_misses(images: list[Image.Image], side: int, seed: int) -> dict:
    """Of some pictures: PSNR of each, changes on flat ground, and how many lose the mark by each change."""
    images = [image.resize((side, side), Image.Resampling.BICUBIC) for image in images]
    marked = [embed_watermark(image) for image in images]
    rng = np.random.default_rng(seed)
    missed = {
        name: sum(not detect_watermark(change(image, rng)).found for image in marked)
        for name, change in CHANGES.items()
    }
    pairs = list(zip(images, marked, strict=True))
    flat = np.sum([changes_on_flat_ground(*pair) for pair in pairs], axis=0).tolist()
    return {"psnr": [round(psnr(*pair), 2) for pair in pairs], "flat": flat, "missed": missed}


def measure_misses(sets: list[Pictures], side: int, counts: Counts) -> str:
    """A table of what marking costs, and how often the mark is missed after each change."""
    below = "0.0 means below (95 %, Wilson)"
    costs = ("PSNR, dB: mean", "PSNR, dB: lowest", "change on flat ground, grey levels: root mean square", "largest")
    columns, rows = [], {name: [] for name in ("pictures", *costs, *CHANGES, below)}
    for pictures in sets:
        found = counts.of(pictures, f"misses at {side} px", lambda images, seed: count_misses(images, side, seed))
        decibels = [value for part in found for value in part["psnr"]]
        total = len(decibels)
        columns.append(f"{pictures.name}, {side} px")
        rows["pictures"].append(f"{total}")
        flat = np.sum([part["flat"] for part in found], axis=0)
        levels = np.flatnonzero(flat)
        mean_square = (flat * np.arange(256) ** 2).sum() / max(flat.sum(), 1)
        values = np.mean(decibels), min(decibels), np.sqrt(mean_square), levels.max(initial=0)
        for name, value in zip(costs, values, strict=True):
            rows[name].append(f"{value:.1f}")
        rows[below].append(f"{100 * wilson_upper(0, total):.1f}")
        for change in CHANGES:
            rows[change].append(f"{100 * sum(part['missed'][change] for part in found) / total:.1f}")
    return table(["after", *columns], [[label, *cells] for label, cells in rows.items()])


def count_alarms(images: list[Image.Image], keys: int) -> dict:
    """Of some unmarked pictures: searches for random keys, and alarms at both rates."""
    rates = (COUNTED_RATE, FALSE_ALARM_RATE)
    thresholds = [detect_watermark(images[0], false_alarm_rate=rate).threshold for rate in rates]
    # at the lower rate the search does not end before the higher threshold
    scores = [
        detect_watermark(image, key=f"key {key}", false_alarm_rate=FALSE_ALARM_RATE).score
        for key in range(keys)
        for image in images
    ]
    alarms = {str(rate): sum(score >= at for score in scores) for rate, at in zip(rates, thresholds, strict=True)}
    return {"searched": len(scores), "alarms": alarms}


def measure_alarms(sets: list[Pictures], keys: int, counts: Counts) -> str:
    """A table of how often the mark is found where it is not."""
    rows = []
    for pictures in sets:
        found = counts.of(pictures, f"alarms for {keys} keys", lambda images, _: count_alarms(images, keys))
        total = sum(part["searched"] for part in found)
        for rate in (COUNTED_RATE, FALSE_ALARM_RATE):
            alarms = sum(part["alarms"][str(rate)] for part in found)
            upper = f"{wilson_upper(alarms, total):.2g}"
            rows.append([pictures.name, f"{total} at {rate:g}", f"{rate * total:g}", alarms, upper])
    return table(["unmarked pictures", "searched", "alarms expected", "alarms counted", "share, 95 % upper"], rows)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure the watermark: pixels, misses, false alarms.")
    parser.add_argument("--data", default="runs/painted", help="folder of the rendered faces (default: %(default)s)")
    parser.add_argument("--model", help="a checkpoint's folder (default: the bundled one)")
    parser.add_argument("--count", type=int, default=300, help="painted faces (default: %(default)s)")
    parser.add_argument("--generated", type=int, default=100, help="generated faces (default: %(default)s)")
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES, help="pixels (default: 64 128 256)")
    parser.add_argument("--false-alarm-keys", type=int, default=20, help="keys for each face (default: %(default)s)")
    parser.add_argument("--parts", nargs="*", choices=("misses", "alarms"), default=("misses", "alarms"))
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep what was counted, and go on from there")
    parser.add_argument("--into", type=Path, metavar="FILE", help="put the tables into this document")
    parser.add_argument("--pair", type=Path, metavar="FILE", help="draw a face before and after marking, enlarged")
    options = parser.parse_args(arguments)

    counts = Counts(options.keep)
    sets = [painted(options.data, options.count)] if options.count else []
    if options.generated:
        sets.append(generated(options.generated, options.model))
    if options.pair is not None:
        draw_pair(sets[-1][0][0], options.pair)
    tables = {}
    if "misses" in options.parts:
        tables |= {f"misses-{side}": measure_misses(sets, side, counts) for side in options.sides}
    if "alarms" in options.parts:
        tables["alarms"] = measure_alarms(sets, options.false_alarm_keys, counts)
    for name, text in tables.items():
        print(f"\n{name}, threshold for one false alarm in {1 / FALSE_ALARM_RATE:,.0f}\n\n{text}")
        if options.into is not None:
            put_section(options.into, name, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
