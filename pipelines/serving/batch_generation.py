"""
`unif2ace generate --prompts`: a picture for every line of a list, by several processes if wanted, resumable.

Workers write pictures under hidden names. When one is whole, a line of `manifest.jsonl` says what it is, and only then
it gets its place, by the process that holds the folder: so a file that the manifest does not know is somebody else's,
and is never written over. What the manifest has need not be made again, if checkpoint and settings are the same. A
picture's seed comes from its id, so whoever makes it, and however often it is tried, it is the same.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ...modeling_unif2ace.provenance_unif2ace import describe_checkpoint
from ..files import only_run, replacing
from ..loading_unif2ace import bundled_checkpoint, fetch_checkpoint
from .prompt_list import BATCH_SIZE, PromptItem


if TYPE_CHECKING:
    from ..pipeline_unif2ace import UniF2acePipeline

MANIFEST = "manifest.jsonl"
LOCK = ".lock"
_PART = ".unif2ace-part-"
# Loads the pipeline of a run; a function of a module, since worker processes import it by name.
Load = Callable[["BatchOptions"], "UniF2acePipeline"]


@dataclass(frozen=True)
class BatchOptions:
    """
    Args:
        out (`Path`): Folder of the pictures and the manifest.
        model (`str`, *optional*): A checkpoint's folder or Hub repository; the bundled one when not given.
        device (`str`, *optional*): Where to run.
        format (`str`, *optional*, defaults to `"png"`): `"png"`, `"jpg"` or `"webp"`.
        workers (`int`, *optional*, defaults to 1): Processes; 1 runs in this one.
        engine (`str`, *optional*, defaults to `"auto"`):
            `"ray"` is Ray Data, `"processes"` a pool on this machine; `"auto"` takes Ray for several workers if it is
            installed.
        batch_size (`int`, *optional*, defaults to 8): Pictures in one forward pass.
        max_bad (`int`, *optional*, defaults to 10): Items that may fail before the run ends.
        overwrite (`bool`, *optional*, defaults to `False`):
            Make pictures again whose checkpoint or settings have changed, and replace files of other origin.
    """

    out: Path
    model: str | None = None
    device: str | None = None
    format: str = "png"
    workers: int = 1
    engine: str = "auto"
    batch_size: int = BATCH_SIZE
    max_bad: int = 10
    overwrite: bool = False

    @cached_property
    def checkpoint(self) -> dict[str, str | None]:
        """Name and revision of what makes the pictures, an adapter's own if it is one; fetched if need be."""
        folder = bundled_checkpoint() if self.model is None else fetch_checkpoint(self.model)
        return dict(zip(("checkpoint", "revision"), describe_checkpoint(str(folder)), strict=True))


@dataclass
class BatchSummary:
    """
    Counts of a run: pictures made, pictures that were there already, what failed, one sentence each, and whether it
    was interrupted.
    """

    made: int
    kept: int
    errors: list[str]
    interrupted: bool = False


class TooManyBadItems(ValueError):
    """More items failed than were allowed to."""


def generate_all(
    items: list[PromptItem], options: BatchOptions, load: Load, errors: list[str] | None = None
) -> BatchSummary:
    """
    Make the pictures that are not there yet.

    Args:
        items (`list[PromptItem]`): What to make.
        options (`BatchOptions`): How and where to.
        load (`Callable`):
            Gives the pipeline for the options; a function of a module, because other processes find it by its name.
        errors (`list[str]`, *optional*): What was wrong with the list itself; counts towards `max_bad`.

    The first Ctrl+C lets the batches at work come to their end, a second one stops at once; either way the same call
    goes on where this one stopped.

    Returns:
        [`BatchSummary`].

    Raises:
        TooManyBadItems: if more than `max_bad` items failed. What was made stays, and counts when tried again.
        ValueError: if a picture of other settings, of another checkpoint or of another origin has an item's name and
            `overwrite` is off, or another run writes to the folder.
        OSError: if the folder cannot be written, or there is no such checkpoint.
    """
    errors = list(errors or ())
    _check_count(errors, options)
    options.out.mkdir(parents=True, exist_ok=True)
    with only_run(options.out / LOCK), _open_manifest(options.out / MANIFEST) as manifest:
        for part in options.out.glob(f"{_PART}*"):  # what a run that was killed left
            part.unlink()
        done = read_manifest(options.out)
        todo = [item for item in items if not _is_done(item, done.get(item.id), options)]
        summary = BatchSummary(made=0, kept=len(items) - len(todo), errors=errors)
        if not todo:
            return summary
        with (
            tqdm(total=len(items), initial=summary.kept, desc="pictures", disable=not sys.stderr.isatty()) as bar,
            _soft_interrupt() as interrupt,
        ):
            for result in _results(_batches(todo, options.batch_size), options, load, interrupt):
                if "error" in result:
                    tqdm.write(result["error"], file=sys.stderr)
                    errors.append(result["error"])
                    _check_count(errors, options)
                else:
                    part = options.out / result.pop("part")
                    manifest.write(json.dumps(result) + "\n")
                    manifest.flush()
                    part.replace(options.out / result["file"])
                    summary.made += 1
                bar.update()
        os.fsync(manifest.fileno())
        summary.interrupted = interrupt.is_set()
    return summary


def read_manifest(out: str | Path) -> dict[str, dict[str, Any]]:
    """The newest entry of each id in a folder's manifest; lines that a broken-off run left incomplete are skipped."""
    path = Path(out) / MANIFEST
    entries = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):  # not at U+2028 and its like
            try:
                entry = json.loads(line)
                entries[entry["id"]] = entry
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
    return entries


class BatchWorker:
    """Makes pictures with one pipeline; lives in a process of the pool, or as an actor of Ray."""

    def __init__(self, options: BatchOptions, load: Load, threads: int | None = None):
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        self.options = options
        self.pipe = load(options)
        self.pipe.set_progress_bar_config(disable=True)

    def __call__(self, batch: list[PromptItem]) -> list[dict[str, Any]]:
        """Make a batch of equal settings. When it fails, each item is tried alone, so that a bad one is known."""
        try:
            return self._make(batch)
        except (ValueError, TypeError, RuntimeError) as error:
            if len(batch) == 1:
                return [{"id": batch[0].id, "error": f"line {batch[0].line} (id {batch[0].id}): {error}"}]
            return [result for item in batch for result in self([item])]

    def _make(self, batch: list[PromptItem]) -> list[dict[str, Any]]:
        import torch

        from ...modeling_unif2ace.provenance_unif2ace import save_image

        first = batch[0]
        images = self.pipe(
            [item.prompt for item in batch],
            guidance_scale=first.guidance,
            num_inference_steps=first.steps,
            generator=[torch.Generator().manual_seed(item.seed) for item in batch],
            negative_prompt=first.negative,
        ).images
        results = []
        for item, image in zip(batch, images, strict=True):
            name = f"{item.id}.{self.options.format}"
            part = self.options.out / f"{_PART}{os.getpid()}-{name}"
            with replacing(part) as hidden:
                save_image(image, hidden)
            digest = hashlib.sha256(part.read_bytes()).hexdigest()
            result = {**item.settings(), "file": name, "sha256": digest, **self.options.checkpoint}
            results.append({**result, "part": part.name})
        return results


# Which work is left


def _is_done(item: PromptItem, entry: dict[str, Any] | None, options: BatchOptions) -> bool:
    file = options.out / f"{item.id}.{options.format}"
    if not os.path.lexists(file):
        return False
    if entry is None or entry.get("file") != file.name:
        difference = "is none of this folder's pictures, as its manifest says"
    elif {name: entry.get(name) for name in item.settings()} != item.settings():
        difference = f"was made with other settings than line {item.line} asks for"
    elif entry.get("revision") != options.checkpoint["revision"]:
        difference = f"was made by another checkpoint ({entry.get('checkpoint')}, {entry.get('revision')})"
    else:  # a damaged one is made again
        return hashlib.sha256(file.read_bytes()).hexdigest() == entry.get("sha256")
    if options.overwrite:
        return False
    raise ValueError(f"{file} {difference}: choose another folder, or pass --overwrite to replace it")


def _batches(items: list[PromptItem], size: int) -> list[list[PromptItem]]:
    """Items of equal settings together, since a forward pass has one guidance and one number of steps."""

    def settings(item: PromptItem):
        return item.steps, item.guidance, item.negative or ""

    batches = []
    for _, group in groupby(sorted(items, key=settings), key=settings):
        group = list(group)
        batches += [group[start : start + size] for start in range(0, len(group), size)]
    return batches


def _check_count(errors: list[str], options: BatchOptions):
    if len(errors) > options.max_bad:
        raise TooManyBadItems(
            f"{len(errors)} bad items, {options.max_bad} are allowed (--max-bad); the last: {errors[-1]}"
        )


# Who does it


def _results(
    batches: list[list[PromptItem]], options: BatchOptions, load: Load, interrupt: threading.Event
) -> Iterator[dict[str, Any]]:
    if options.workers == 1 and options.engine != "ray":
        worker = BatchWorker(options, load)
        for batch in batches:
            if interrupt.is_set():
                return
            yield from worker(batch)
    elif options.engine == "ray" or (options.engine == "auto" and find_spec("ray") is not None):
        yield from _results_of_ray(batches, options, load, interrupt)
    else:
        yield from _results_of_pool(batches, options, load, interrupt)


_worker: BatchWorker | None = None


def _start_worker(options: BatchOptions, load: Load, threads: int):
    global _worker
    # Ctrl+C reaches the whole group of processes, but only the parent decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker = BatchWorker(options, load, threads)


def _work(batch: list[PromptItem]) -> list[dict[str, Any]]:
    return _worker(batch)


def _results_of_pool(
    batches: list[list[PromptItem]], options: BatchOptions, load: Load, interrupt: threading.Event
) -> Iterator[dict[str, Any]]:
    workers = min(options.workers, len(batches))
    threads = max(1, (os.cpu_count() or 1) // workers)
    # spawn: a fork of a process that has used torch's threads or CUDA can hang
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(options, load, threads)
    )
    try:
        with _interrupts_held():
            futures = [pool.submit(_work, batch) for batch in batches]
        left = set(futures)
        for future in as_completed(futures):
            left.discard(future)
            yield from future.result()
            if interrupt.is_set():
                # not by `as_completed`, which waits for cancelled ones for ever
                for at_work in [future for future in left if not future.cancel()]:
                    yield from at_work.result()
                return
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_held():
    """Ctrl+C waits until the end of the block. Processes that are started in it never get any."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _RayWorker:
    """Ray Data's view of a `BatchWorker`: columns in, columns out."""

    def __init__(self, options: BatchOptions, load: Load):
        self.worker = BatchWorker(options, load)

    def __call__(self, columns: dict[str, Any]) -> dict[str, list[str]]:
        batches = [[PromptItem(**item) for item in json.loads(text)] for text in columns["batch"]]
        return {"result": [json.dumps(result) for batch in batches for result in self.worker(batch)]}


def _results_of_ray(
    batches: list[list[PromptItem]], options: BatchOptions, load: Load, interrupt: threading.Event
) -> Iterator[dict[str, Any]]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    # JSON, because negative prompts may be absent: Ray's columns would have to guess the type
    rows = [{"batch": json.dumps([{**item.settings(), "line": item.line} for item in batch])} for batch in batches]
    context = DataContext.get_current()
    context.enable_progress_bars = False
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        workers = min(options.workers, len(batches))
        gpus = 1 if options.device is not None and options.device.startswith("cuda") else 0
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _RayWorker,
            fn_constructor_args=(options, load),
            batch_size=1,
            num_gpus=gpus,
            compute=ActorPoolStrategy(size=workers),
        )
        for row in results.iter_rows():
            yield json.loads(row["result"])
            if interrupt.is_set():
                return
    finally:
        if started:
            ray.shutdown()


# The folder, and the end


@contextmanager
def _soft_interrupt():
    """An event that the first Ctrl+C sets; the second one raises `KeyboardInterrupt` as usual."""
    interrupt = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield interrupt
        return

    def stop_softly(signum, frame):
        interrupt.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("finishing the batches at work; once more to stop at once", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, stop_softly)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _open_manifest(path: Path):
    """The manifest, to append to, after whatever a broken-off run left at its end."""
    torn = False
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
    with path.open("a", encoding="utf-8") as file:
        if torn:
            file.write("\n")
        yield file


__all__ = ["BatchOptions", "BatchSummary", "TooManyBadItems", "generate_all", "read_manifest"]
