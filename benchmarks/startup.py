"""
How long the command line takes before it works: CPU seconds of whole processes, the median of several runs.

    python benchmarks/startup.py
    python benchmarks/startup.py --runs 9

`generate` is given one step, so that its figure is start-up, loading and very little else.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


TARGETS = {"--help": 0.3, "--version": 0.3, "a mistyped command": 0.3, "verify": 1.0, "generate (1 step)": 4.0}


def child_cpu_seconds(command: list[str]) -> float:
    """CPU seconds, user and system, of one run of `command` with everything that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="runs of each command (default: %(default)s)")
    runs = parser.parse_args().runs
    command = [sys.executable, "-m", "unif2ace.cli"]
    with tempfile.TemporaryDirectory() as folder:
        face = str(Path(folder) / "face.png")
        generate = [*command, "generate", "an old man", "-o", face, "--seed", "1", "--steps", "1"]
        subprocess.run(generate, check=True, stdout=subprocess.DEVNULL)
        lines = {
            "--help": [*command, "--help"],
            "--version": [*command, "--version"],
            "a mistyped command": [*command, "generte"],
            "verify": [*command, "verify", face],
            "generate (1 step)": generate,
        }
        print("| command | CPU seconds | aim |\n| --- | ---: | ---: |")
        for name, line in lines.items():
            seconds = statistics.median(child_cpu_seconds(line) for _ in range(runs))
            print(f"| {name} | {seconds:.2f} | {TARGETS[name]:g} |")


if __name__ == "__main__":
    main()
