"""The checkpoint under test: it generates, describes and answers in batches, in one process or in several."""

import hashlib
import json
import logging
import multiprocessing
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from tqdm import tqdm

from ...modeling_unif2ace.provenance_unif2ace import checkpoint_sha256
from ...pipelines import UniF2acePipeline
from ...pipelines.files import replacing
from .metrics.fit import answer_log_probability


logger = logging.getLogger(__name__)


_pipe: UniF2acePipeline | None = None  # of a worker process


def picture_seed(seed: int, index: int) -> int:
    """The seed of picture number `index` in a run with `seed`: it does not depend on the size of the batches."""
    return 1_000_000 * seed + index


@cache
def code_sha256() -> str:
    """Hash of the code that makes pictures and texts: what an older version made is not what this one makes."""
    package, digest = Path(__file__).parents[2], hashlib.sha256()
    for path in sorted([*(package / "modeling_unif2ace").glob("*.py"), *(package / "pipelines").glob("*.py")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class Subject:
    """
    A checkpoint and how to run it.

    Args:
        repo (`str` or `os.PathLike`, *optional*): A folder or Hub repository; the bundled checkpoint when not given.
        revision (`str`, *optional*): Branch, tag or commit of a Hub repository.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where it runs.
        batch_size (`int`, *optional*, defaults to 25): Pictures or questions at once; changes no result.
        workers (`int`, *optional*, defaults to 1):
            Processes that work side by side, each with its own copy of the checkpoint. On a CPU several with few
            threads are faster than one with many; on an accelerator one is right.
        store (`str` or `os.PathLike`, *optional*):
            Folder that keeps generated pictures, so that an interrupted run goes on and later parts reuse them.
        progress (`bool`, *optional*, defaults to `True`): Whether to show progress bars.

    Raises:
        OSError: if there is no such checkpoint.
        ValueError: if a number is below 1.
    """

    def __init__(
        self,
        repo: str | os.PathLike | None = None,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        batch_size: int = 25,
        workers: int = 1,
        store: str | os.PathLike | None = None,
        progress: bool = True,
    ):
        for name, value in (("batch_size", batch_size), ("workers", workers)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        download = {} if revision is None else {"revision": revision}
        self.pipe = UniF2acePipeline.from_pretrained(repo, **download).to(device)
        self.pipe.set_progress_bar_config(disable=True)
        name = self.pipe.config._name_or_path
        self.folder = Path(name)
        self.revision = None
        if not self.folder.is_dir():  # it has just been downloaded; the folder of a snapshot is named by its commit
            self.folder = Path(snapshot_download(name, local_files_only=True, **download))
            self.revision = self.folder.name
        self.name = "bundled" if repo is None else str(repo)
        self.batch_size, self.workers, self.progress = batch_size, workers, progress
        self.store = None if store is None else Path(store)
        self._device, self._load = device, (name, download, str(device))
        self._pool: ProcessPoolExecutor | None = None
        self._sha256: str | None = None

    @property
    def sha256(self) -> str:
        """Hash of the checkpoint's configurations, tokenizer and weights."""
        if self._sha256 is None:
            self._sha256 = checkpoint_sha256(self.folder)
        return self._sha256

    @property
    def resolution(self) -> int:
        """Side of its pictures, in pixels."""
        return self.pipe.transformer.config.vq_config.resolution

    def close(self) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __enter__(self) -> "Subject":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def generate(
        self, texts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float, description: str = "generating"
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Generate a face for each text.

        Args:
            texts (`list[str]`): What the faces look like.
            seeds (`list[int]`): The seed of each.
            steps (`int`): Decoding steps.
            guidance (`float`): Guidance scale, in diffusers' meaning.
            description (`str`, *optional*): What the progress bar says.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: uint8 pictures `(count, side, side, 3)` and their codes `(count, tokens)`.
        """
        batches = [(list(texts[part]), list(seeds[part])) for part in self._slices(len(texts))]
        found: list[tuple[np.ndarray, np.ndarray] | None] = []
        for batch in batches:
            path = self._stored(batch, steps, guidance)
            found.append(_kept(path) if path is not None and path.exists() else None)
        missing = [place for place, pictures in enumerate(found) if pictures is None]
        tasks = [(*batches[place], steps, guidance) for place in missing]
        made = self._run(_generate, tasks, [len(task[0]) for task in tasks], description)
        for place, (pictures, codes) in zip(missing, made, strict=True):
            found[place] = pictures, codes
            path = self._stored(batches[place], steps, guidance)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as part:
                    np.savez(part, pictures=pictures, codes=codes)
        pictures, codes = zip(*found, strict=True)
        return np.concatenate(pictures), np.concatenate(codes)

    def _stored(self, batch: tuple[list[str], list[int]], steps: int, guidance: float) -> Path | None:
        """Where pictures of a batch are kept: the name says all that decides them."""
        if self.store is None:
            return None
        scheduler = {name: value for name, value in self.pipe.scheduler.config.items() if not name.startswith("_")}
        what = [code_sha256(), self.sha256, scheduler, *batch, steps, guidance]
        return self.store / f"{hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()[:32]}.npz"

    def answer(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        max_new_tokens: int = 160,
        order: Sequence | None = None,
        description: str = "asking",
    ) -> list[str]:
        """
        Ask a question about each picture; greedy decoding.

        Args:
            images (`list[PIL.Image.Image]`):
                The pictures, one for each question. One that is given several times, as the same object, is read once.
            questions (`list[str]`): The questions.
            max_new_tokens (`int`, *optional*, defaults to 160): Longest answer, in tokens.
            order (`list`, *optional*):
                Sort keys: what is asked together. A batch takes as long as its longest question and answer.
            description (`str`, *optional*): What the progress bar says.

        Returns:
            `list[str]`: The answers, in the order of the questions.
        """
        images = list(images)  # held here, because pictures are told apart by their identity
        keys = [len(text) for text in questions] if order is None else order
        by_picture: dict[int, list[int]] = {}
        for place in sorted(range(len(questions)), key=lambda place: keys[place]):
            by_picture.setdefault(id(images[place]), []).append(place)
        # a task holds all questions about its pictures, so that each picture is read once
        tasks, parts, pictures = [], [], list(by_picture)
        for part in self._slices(len(pictures)):
            rows = {picture: row for row, picture in enumerate(pictures[part])}
            part = sorted((place for picture in rows for place in by_picture[picture]), key=lambda place: keys[place])
            faces = [images[by_picture[picture][0]] for picture in rows]
            about = [rows[id(images[place])] for place in part]
            tasks.append((faces, about, [questions[place] for place in part], max_new_tokens, self.batch_size))
            parts.append(part)
        answers = [""] * len(questions)
        for part, texts in zip(parts, self._run(_answer, tasks, list(map(len, parts)), description), strict=True):
            for place, text in zip(part, texts, strict=True):
                answers[place] = text
        return answers

    def describe(self, images: Sequence[Image.Image], description: str = "describing") -> list[str]:
        """Describe each picture; greedy decoding."""
        tasks = [(list(images[part]),) for part in self._slices(len(images))]
        texts = self._run(_describe, tasks, [len(task[0]) for task in tasks], description)
        return [text for batch in texts for text in batch]

    def log_probabilities(
        self, images: Sequence[Image.Image], questions: Sequence[str], options: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """For each picture and question the mean log-probability of the tokens of each option as the answer."""
        parts = self._slices(len(questions))
        tasks = [(list(images[part]), list(questions[part]), list(options[part])) for part in parts]
        found = self._run(_log_probabilities, tasks, [len(task[1]) for task in tasks], "weighing options")
        return [of_question for batch in found for of_question in batch]

    def fit(self, text: str) -> str:
        """See [`fit_text`]."""
        return fit_text(self.pipe.processor, text)

    def _slices(self, count: int) -> list[slice]:
        return [slice(start, min(start + self.batch_size, count)) for start in range(0, count, self.batch_size)]

    def _run(self, function: Callable, tasks: list[tuple], sizes: list[int], description: str) -> Iterator:
        with tqdm(total=sum(sizes), desc=description, disable=not self.progress, smoothing=0.1) as bar:
            if self.workers == 1 or len(tasks) < 2:
                results = (function(self.pipe, *task) for task in tasks)
            else:
                results = self._workers().map(_in_worker, [function] * len(tasks), tasks)
            for size, result in zip(sizes, results, strict=True):
                bar.update(size)
                yield result

    def _workers(self) -> ProcessPoolExecutor:
        if self._pool is None:
            threads = max(1, torch.get_num_threads() // self.workers)
            self._pool = ProcessPoolExecutor(
                self.workers,
                # a forked copy of a process that has threads may hang
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(*self._load, threads),
            )
        return self._pool


def fit_text(processor, text: str) -> str:
    """
    The text, or as many of its sentences from the first on as a model reads (or words, if not even one).

    Args:
        processor ([`UniF2aceProcessor`]): The model's processor.
        text (`str`): A prompt.

    Raises:
        ValueError: if the first word alone is too long.
    """
    limit = processor.max_text_length - 2  # begin and end

    def fits(part: str) -> bool:
        return len(processor.tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]) <= limit

    if fits(text):
        return text
    sentences = re.split(r"(?<=[.!?;])\s+", text)
    words = sentences[0].split()
    for pieces in (sentences, words):
        count = max((n for n in range(1, len(pieces) + 1) if fits(" ".join(pieces[:n]))), default=0)
        if count:
            return " ".join(pieces[:count])
    raise ValueError(f"the word {words[0]!r} is longer than the {limit} tokens that the model reads")


def _start_worker(name: str, download: dict, device: str, threads: int) -> None:
    global _pipe
    torch.set_num_threads(threads)
    _pipe = UniF2acePipeline.from_pretrained(name, **download).to(device)
    _pipe.set_progress_bar_config(disable=True)


def _in_worker(function: Callable, task: tuple):
    return function(_pipe, *task)


def _generate(pipe: UniF2acePipeline, texts: list[str], seeds: list[int], steps: int, guidance: float):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    # as arrays: what is measured is the model's own pixels, without a watermark
    output = pipe(texts, guidance_scale=guidance, num_inference_steps=steps, generator=generators, output_type="np")
    return (output.images * 255).round().astype(np.uint8), output.codes.cpu().numpy()


def _answer(
    pipe: UniF2acePipeline,
    faces: list[Image.Image],
    about: list[int],
    questions: list[str],
    max_new_tokens: int,
    batch_size: int,
) -> list[str]:
    if len(faces) < len(questions):
        faces = pipe.prefill(faces)
    answers = []
    for start in range(0, len(questions), batch_size):
        part = slice(start, start + batch_size)
        answers += pipe.answer([faces[row] for row in about[part]], questions[part], max_new_tokens=max_new_tokens)
    return answers


def _log_probabilities(
    pipe: UniF2acePipeline, images: list[Image.Image], questions: list[str], options: list[list[str]]
) -> list[list[float]]:
    return [
        [answer_log_probability(pipe.transformer, pipe.processor, image, question, option) for option in of_question]
        for image, question, of_question in zip(images, questions, options, strict=True)
    ]


def _describe(pipe: UniF2acePipeline, images: list[Image.Image]) -> list[str]:
    return pipe.describe(images)


def _kept(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Pictures and codes that an earlier run kept; `None`, and a warning, if the file is damaged."""
    try:
        with np.load(path) as kept:
            return kept["pictures"], kept["codes"]
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        logger.warning("%s is damaged (%s): its pictures are made again", path, error)
        return None


__all__ = ["Subject", "code_sha256", "fit_text", "picture_seed"]
