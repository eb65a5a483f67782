"""
The whole way of a full-size Show-o checkpoint, with random weights: write it to disk as the original would, convert
it, load the result, draw a picture, answer a question. Prints seconds and peak memory of each stage, a process each.

    python benchmarks/convert_full_size.py --folder runs/full-size

Needs about 20 GB of disk (30 with upcycle) and 8 GB of memory. "resident" counts the pages of mapped files too,
which the system takes back when it needs them; "own" is what it cannot take back.
"""

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch


GB = 1e9
NUM_STEPS = 2
NEW_TOKENS = 8
STAGES = ("write", "convert", "use", "upcycle")


def write_source(folder: Path):
    """A checkpoint of `showlab/show-o`'s shape, `showlab/magvitv2`'s, and a tokenizer of Phi-1.5's size."""
    from safetensors.torch import save_file

    from unif2ace.modeling_unif2ace import get_preset
    from unif2ace.training.convert.showo_layout import codebook_tables, magvit_shapes, showo_config, showo_shapes

    config = get_preset("showo-256")
    generator = torch.Generator().manual_seed(0)

    def random(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        # a file of its own behind each tensor, so that the whole model never has to be in memory
        backing = folder / "tensors" / name
        tensor = torch.from_file(str(backing), shared=True, size=torch.Size(shape).numel()).view(shape)
        tensor.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.02, generator=generator)
        return tensor

    for name in ("show-o", "magvitv2", "phi", "tensors"):
        (folder / name).mkdir(parents=True)
    images = {name: random(name, shape) for name, shape in magvit_shapes(config.vq_config).items()}
    save_file(images | codebook_tables(config.vq_config), folder / "magvitv2" / "pytorch_model.safetensors")
    write_tokenizer(folder / "phi", config.text_vocab_size)
    (folder / "show-o" / "config.json").write_text(json.dumps(showo_config(config)))
    weights = {name: random(name, shape) for name, shape in showo_shapes(config).items()}
    torch.save(weights, folder / "show-o" / "pytorch_model.bin")
    shutil.rmtree(folder / "tensors")


def write_tokenizer(folder: Path, size: int):
    """A byte-level tokenizer with as many ids as Phi-1.5's, most of them unused."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    unused = [f"<|unused_{number}|>" for number in range(size - len(alphabet) - 1)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<|endoftext|>", *unused)])
    tokenizer.save(str(folder / "tokenizer.json"))


def use(folder: Path):
    """One picture and one answer."""
    from unif2ace import UniF2acePipeline

    start = time.perf_counter()
    pipe = UniF2acePipeline.from_pretrained(folder)
    print(f"  loaded in {time.perf_counter() - start:.0f} s", flush=True)
    start = time.perf_counter()
    picture = pipe("a smiling old man", num_inference_steps=NUM_STEPS, generator=torch.Generator().manual_seed(0))
    size, seconds = picture.images[0].size, time.perf_counter() - start
    print(f"  a picture of {size[0]} x {size[1]} in {NUM_STEPS} steps with guidance: {seconds:.0f} s", flush=True)
    start = time.perf_counter()
    answer = pipe.answer(picture.images[0], "Is he happy?", max_new_tokens=NEW_TOKENS)
    seconds = time.perf_counter() - start
    print(f"  an answer of at most {NEW_TOKENS} tokens: {seconds:.0f} s, {answer[:40]!r}", flush=True)


def measured(title: str, command: list[str]):
    """Run a process and print its time and the peak of its memory."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    peaks, done = {"VmHWM": 0, "RssAnon": 0}, threading.Event()

    def watch():
        while not done.wait(0.1):
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            for line in status.splitlines():
                name, _, value = line.partition(":")
                if name in peaks:
                    peaks[name] = max(peaks[name], int(value.split()[0]) * 1024)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    done.set()
    watcher.join()
    if code:
        sys.exit(f"{title} failed with exit code {code}")
    print(
        f"{title}: {time.perf_counter() - start:.0f} s, peak memory {peaks['VmHWM'] / GB:.2f} GB resident, "
        f"{peaks['RssAnon'] / GB:.2f} GB own",
        flush=True,
    )


def size_of(folder: Path) -> str:
    """Size of a folder's files."""
    return f"{sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()) / GB:.2f} GB"


def main():
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/full-size"), help="where to work (%(default)s)")
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=STAGES,
        default=STAGES[:3],
        help="what to do, with what earlier stages left in the folder (default: %(default)s; upcycle: with experts)",
    )
    parser.add_argument("--keep", action="store_true", help="leave the files there")
    parser.add_argument("--here", choices=("write", "use"), help=argparse.SUPPRESS)  # a stage in its own process
    options = parser.parse_args()
    source, converted, experts = (options.folder / name for name in ("source", "showo-256", "unif2ace"))
    if options.here is not None:
        return write_source(source) if options.here == "write" else use(converted)

    def stage(name: str) -> list[str]:
        return [sys.executable, __file__, "--folder", str(options.folder), "--here", name]

    def convert(destination: Path, *more: str) -> list[str]:
        return [
            *(sys.executable, "-m", "unif2ace.cli", "convert", "showo", str(source / "show-o"), str(destination)),
            *("--magvit", str(source / "magvitv2"), "--text-model", str(source / "phi"), *more),
        ]

    if "write" in options.stages:
        measured("write the source", stage("write"))
        shard = (source / "show-o" / "pytorch_model.bin").stat().st_size
        print(f"  its largest shard: {shard / GB:.2f} GB, times 1.3: {1.3 * shard / GB:.2f} GB", flush=True)
    if "convert" in options.stages:
        measured("convert, --preset showo-256", convert(converted, "--preset", "showo-256"))
        print(f"  the result: {size_of(converted)}", flush=True)
    if "use" in options.stages:
        measured("load, draw, answer", stage("use"))
    if "upcycle" in options.stages:
        command = convert(experts, "--preset", "unif2ace-1.8b", "--dtype", "bfloat16")
        measured("convert, --preset unif2ace-1.8b --dtype bfloat16", command)
        print(f"  the result: {size_of(experts)}", flush=True)
    if not options.keep:
        shutil.rmtree(options.folder)
    return None


if __name__ == "__main__":
    main()
