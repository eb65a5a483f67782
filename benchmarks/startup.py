"""
How long the command line takes before it works: CPU seconds of whole processes, the median of several runs.

    python benchmarks/startup.py
    python benchmarks/startup.py --runs 9 --into docs/inference.md

`generate` is given one step, so that its figure is start-up, loading and very little else. The floor is a process that
imports what every model of these libraries needs and does nothing: what is above it is ours, with the loading.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from reporting import machine, put_section, table


COMMAND = [sys.executable, "-m", "unif2ace.cli"]
FLOOR = "import torch; from transformers import AutoModel; from diffusers import DiffusionPipeline"


def child_cpu_seconds(command: list[str]) -> float:
    """CPU seconds, user and system, of one run of `command` with everything that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    """Print a Markdown table, or put it into a document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="runs of each command (default: %(default)s)")
    parser.add_argument("--into", type=Path, help="a document with a section `startup`")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        face = str(Path(folder) / "face.png")
        generate = [*COMMAND, "generate", "an old man", "-o", face, "--seed", "1", "--steps", "1"]
        subprocess.run(generate, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lines = {
            "`--help`": (0.3, [*COMMAND, "--help"]),
            "`--version`": (0.3, [*COMMAND, "--version"]),
            "a mistyped command": (0.3, [*COMMAND, "generte"]),
            "`finetune --help`": (0.5, [*COMMAND, "finetune", "--help"]),
            "`verify`": (1.0, [*COMMAND, "verify", face]),
            "`generate`, 1 step": (4.0, generate),
            f"floor: `{FLOOR}`": ("", [sys.executable, "-c", FLOOR]),
        }
        # by turns, so that what else the machine does falls on all of them
        seconds = {name: [] for name in lines}
        for _ in range(options.runs):
            for name, (_, line) in lines.items():
                seconds[name].append(child_cpu_seconds(line))
    rows = [[name, f"{statistics.median(seconds[name]):.2f}", aim] for name, (aim, _) in lines.items()]
    text = f"{table(['command', 'CPU seconds', 'aim'], rows)}\n\n{machine()}"
    if options.into is None:
        print(text)
    else:
        put_section(options.into, "startup", text)


if __name__ == "__main__":
    main()
