"""What the benchmarks of inference share: CPU time, peak memory, the machine in words, tables put into a document."""

import platform
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from unif2ace.pipelines.files import write_text


def cpu_seconds(function: Callable):
    """What `function()` returns, and the CPU seconds of this process that it took (not disturbed by other ones)."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def peak_memory_gb() -> float:
    """The most memory that this process has held so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def machine() -> str:
    """The machine and the versions in one sentence."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
        names, speeds = (
            re.findall(r"^model name\s*: (.+)$", text, re.M),
            re.findall(r"^cpu MHz\s*: (\S+)$", text, re.M),
        )
        model = f"{len(names)} × {names[0]} at {float(speeds[0]) / 1000:.1f} GHz" if names and speeds else model
    return (
        f"{model} ({torch.backends.cpu.get_cpu_capability()}), shared with other work; {torch.get_num_threads()} "
        f"thread; Python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}."
    )


def table(header: list[str], rows: list[list]) -> str:
    """A Markdown table whose first column is text and whose other columns are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in cells)} |" for cells in lines)


def put_section(path: Path, name: str, text: str):
    """
    Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->` in a document.

    Raises:
        ValueError: if the document has no such place.
    """
    document = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    if document.count(begin) != 1 or document.count(end) != 1:
        raise ValueError(f"{path} has no section between <!-- {name} --> and <!-- /{name} -->: add both lines")
    before, rest = document.split(begin)
    write_text(path, f"{before}{begin}{text.strip()}{end}{rest.split(end)[1]}")
