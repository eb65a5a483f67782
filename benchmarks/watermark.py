"""
Measure the watermark: what it costs in pixels, how often it is missed after each change, how often it is seen where it
is not.

    python benchmarks/watermark.py                    # 1000 held-out painted faces, 200 generated ones, two sizes
    python benchmarks/watermark.py --count 100 --false-alarm-keys 10

Misses are counted on generated faces of the bundled checkpoint (without `--generated 0`) and on painted ones; pictures
of 256 pixels are the same ones enlarged before marking. False alarms are counted on unmarked paintings, each searched
for many random keys, at a threshold that should give one in a hundred: the threshold in use (one in a million) is too
rare to count, so what is checked is that the calibration holds where it can be counted.
"""

import argparse
import io
import random
import sys
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from unif2ace import UniF2acePipeline
from unif2ace.pipelines import detect_watermark, embed_watermark
from unif2ace.pipelines.watermark_unif2ace import FALSE_ALARM_RATE
from unif2ace.training.data.captions import write_caption
from unif2ace.training.data.painted import attributes_of, load_rendered
from unif2ace.training.data.visibility import assumed_visible


SPLIT = "test"
COUNTED_RATE = 0.01


def jpeg(quality: int) -> Callable:
    """Through a JPEG file, with Pillow's chroma subsampling."""

    def change(image, rng):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

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
    "halved": resize(0.5),
    "turned by 2 degrees": lambda image, rng: image.rotate(2, Image.Resampling.BICUBIC),
    "noise of 5 grey levels": lambda image, rng: Image.fromarray(
        np.clip(np.asarray(image) + rng.normal(0, 5, np.asarray(image).shape), 0, 255).astype(np.uint8)
    ),
}


def generated(count: int, model: str | None) -> list[Image.Image]:
    """Faces that the checkpoint makes from held-out captions, without marks."""
    pipe = UniF2acePipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    images = []
    for start in tqdm(range(0, count, 10), desc="generating"):
        numbers = range(start, min(start + 10, count))
        attributes = [attributes_of(number, SPLIT) for number in numbers]
        texts = [write_caption(item, assumed_visible(item), random.Random(0)).text for item in attributes]
        images += pipe(texts, generator=[torch.Generator().manual_seed(n) for n in numbers], watermark=False).images
    return images


def psnr(image: Image.Image, marked: Image.Image) -> float:
    difference = np.asarray(image, dtype=float) - np.asarray(marked, dtype=float)
    return float(10 * np.log10(255**2 / (difference**2).mean()))


def wilson_upper(count: int, total: int) -> float:
    """Upper end of the 95 % Wilson interval of a share."""
    z, share = 1.96, count / total
    centre = share + z**2 / (2 * total)
    return (centre + z * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))) / (1 + z**2 / total)


def measure_misses(sets: dict[str, list[Image.Image]]) -> None:
    """Print what marking costs, and how often the mark is missed after each change."""
    print(f"threshold for one false alarm in {1 / FALSE_ALARM_RATE:,.0f}; misses of the watermark, in % of pictures")
    columns = [(name, side) for name in sets for side in (64, 256)]
    rows = {name: [] for name in ("pictures", "PSNR, dB: mean", "PSNR, dB: lowest", *CHANGES)}
    for name, side in columns:
        images = [image.resize((side, side), Image.Resampling.BICUBIC) for image in sets[name]]
        marked = [embed_watermark(image) for image in images]
        decibels = [psnr(image, with_mark) for image, with_mark in zip(images, marked, strict=True)]
        rows["pictures"].append(f"{len(images)}")
        rows["PSNR, dB: mean"].append(f"{np.mean(decibels):.1f}")
        rows["PSNR, dB: lowest"].append(f"{min(decibels):.1f}")
        rng = np.random.default_rng(0)
        for change_name, change in tqdm(CHANGES.items(), desc=f"{name} {side}"):
            missed = sum(not detect_watermark(change(image, rng)).found for image in marked)
            rows[change_name].append(f"{100 * missed / len(marked):.1f}")
    print("\n| after | " + " | ".join(f"{name}, {side} px" for name, side in columns) + " |")
    print("| --- |" + " ---: |" * len(columns))
    for label, cells in rows.items():
        print(f"| {label} | " + " | ".join(cells) + " |")


def count_false_alarms(sets: dict[str, list[Image.Image]], keys: int) -> None:
    """Print how often the mark is found where it is not."""
    print("\n| unmarked pictures | searched | alarms expected | alarms counted | share, 95 % upper |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, images in sets.items():
        for rate in (COUNTED_RATE, FALSE_ALARM_RATE):
            total = keys * len(images)
            alarms = sum(
                detect_watermark(image, key=f"key {key}", false_alarm_rate=rate).found
                for key in tqdm(range(keys), desc=f"false alarms, {name}")
                for image in images
            )
            upper = wilson_upper(alarms, total)
            print(f"| {name} | {total} at {rate:g} | {rate * total:g} | {alarms} | {upper:.2g} |")


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure the watermark: pixels, misses, false alarms.")
    parser.add_argument("--data", default="runs/painted", help="folder of the rendered faces (default: %(default)s)")
    parser.add_argument("--model", help="a checkpoint's folder (default: the bundled one)")
    parser.add_argument("--count", type=int, default=1000, help="painted faces (default: %(default)s)")
    parser.add_argument("--generated", type=int, default=200, help="generated faces (default: %(default)s)")
    parser.add_argument("--false-alarm-keys", type=int, default=20, help="keys for each face (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=("misses", "alarms"), default=("misses", "alarms"))
    options = parser.parse_args(arguments)

    painted = [
        Image.fromarray(pixels) for pixels in load_rendered(options.data, SPLIT, options.count)[: options.count]
    ]
    sets = {"painted": painted}
    if options.generated:
        sets["generated"] = generated(options.generated, options.model)

    if "misses" in options.parts:
        measure_misses(sets)
    if "alarms" in options.parts:
        count_false_alarms(sets, options.false_alarm_keys)
    return 0


if __name__ == "__main__":
    sys.exit(main())
