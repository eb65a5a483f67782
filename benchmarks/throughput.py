"""
The bundled checkpoint's speed: pictures and answers against batch size, time to the first token, peak memory.

    python benchmarks/throughput.py --into docs/inference.md
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from reporting import cpu_seconds, machine, peak_memory_gb, put_section, table

from unif2ace import UniF2acePipeline


TEXT = "a smiling old man with round glasses and a grey beard"


class FirstToken:
    """A streamer that notes when the first token was made."""

    def __init__(self):
        self.calls, self.at = 0, None

    def put(self, value):
        self.calls += 1
        if self.calls == 2:  # the first call holds the prompt
            self.at = time.process_time()

    def end(self):
        """Nothing to finish."""


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Measure throughput against batch size.")
    parser.add_argument("--model", help="a checkpoint's folder (default: the bundled one)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="default: 1 2 4 8 16")
    parser.add_argument("--steps", type=int, default=16, help="denoising steps (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each, of which the median counts")
    parser.add_argument("--into", type=Path, help="a document to put the table into, as docs/inference.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    before = peak_memory_gb()
    pipe = UniF2acePipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    loaded = peak_memory_gb()
    face = pipe(TEXT, num_inference_steps=2).images[0]
    length = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens}
    pipe.describe(face, max_new_tokens=2)
    rows = []
    for size in options.batch_sizes:
        drawn, written = [], []
        for _ in range(options.runs):
            drawn.append(cpu_seconds(lambda n=size: pipe([TEXT] * n, num_inference_steps=options.steps))[1])
            faces = [face.copy() for _ in range(size)]  # the same object would be read once
            written.append(cpu_seconds(lambda batch=faces: pipe.describe(batch, **length))[1])
        drawn, written = statistics.median(drawn), statistics.median(written)
        rows.append([size, f"{size / drawn:.2f}", f"{size * options.tokens / written:.0f}", f"{peak_memory_gb():.2f}"])
        print(" | ".join(map(str, rows[-1])), flush=True)
    first = []
    for _ in range(options.runs):
        streamer, start = FirstToken(), time.process_time()
        pipe.describe(face, max_new_tokens=2, min_new_tokens=2, streamer=streamer)
        first.append(streamer.at - start)
    header = [
        "batch size",
        f"pictures of {options.steps} steps a CPU second",
        "tokens a CPU second",
        "peak memory, GB",
    ]
    report = (
        f"Medians of {options.runs} runs.\n\n{table(header, rows)}\n\nTime to the first token of a description: "
        f"{statistics.median(first):.2f} CPU s. The process takes {before:.2f} GB before the checkpoint is loaded and "
        f"{loaded:.2f} GB after.\n\n{machine()}"
    )
    print(f"\n{report}")
    if options.into:
        put_section(options.into, "throughput", report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
