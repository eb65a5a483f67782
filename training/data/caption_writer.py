"""
Captions and questions by large models, in the steps that made UniF²aceD-1M: a draft from a
vision model, the labels of an attribute classifier, a refined caption from both, questions from the caption.

Every request is kept with its answer in a log beside the output, so nothing is asked twice: neither after an
interruption nor when a later step failed. Faces that failed are named and tried again by the next run.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ...pipelines.files import parse_json, read_json, write_json
from .records import FaceRecord
from .sources import BrokenSamples, FaceStream


if TYPE_CHECKING:
    from ..chat_endpoint import ChatEndpoint

_FENCE = re.compile(r"^```(?:json)?\s*|\s*```$")
_LONGEST_WAIT = 60.0  # seconds between two attempts


# The prompts, after the steps that the paper describes (its own texts are not published). Each set has a version,
# which is kept with every caption; to change the words, add a version.


@dataclass(frozen=True)
class CaptionPrompts:
    """The texts of one version."""

    version: str  # its name
    system: str  # the system message of all requests
    draft: str  # asks for a description; {known} is the paragraph `known` or nothing
    known: str  # introduces a caption that the data set has, {caption}
    refine: str  # asks to correct a {draft} by {labels}
    questions: str  # asks for {count} questions about a {caption}


V1 = CaptionPrompts(
    version="1",
    system=(
        "You describe pictures of faces for a data set. Say only what can be seen. Do not name or guess who the "
        "person is, nor nationality, religion, health, wealth or character."
    ),
    draft=(
        "Describe the face in this picture in one paragraph of about 100 words, in plain English. Cover, where it can "
        "be seen: apparent gender and age; face shape and skin; hair colour, length, texture, hairline and bangs; "
        "eyebrows and eyes; nose; mouth and lips; beard, moustache and sideburns; make-up; glasses, jewellery, hat, "
        "mask and other things that are worn; expression and emotion; what the person is doing; direction of the head "
        "and gaze; light and background. Do not mention what is absent. {known}Answer with the paragraph alone."
    ),
    known="The data set says of this picture: [{caption}] Use it where the picture agrees. ",
    refine=(
        "Here is a description of the face in this picture:\n\n{draft}\n\nA classifier read these labels off the same "
        "picture:\n{labels}\n\nRewrite the description. Where description and labels differ, look at the picture and "
        "keep what it shows. Add what the labels mention and the picture shows but the description lacks; say "
        "briefly what the expression suggests, for example that the person seems to be talking or is slightly tired, "
        "if it can be seen. Keep it one paragraph of at most 120 words. Answer with the paragraph alone."
    ),
    questions=(
        "Here is a description of a face:\n\n{caption}\n\nWrite {count} different questions that can be answered from "
        "the description alone, with their answers: about appearance, about emotion and its signs, and about what the "
        "person is doing and why one can tell. Ask as somebody who sees the picture, not the description. Answers are "
        'short, one to twenty words. Answer with a JSON list alone: [{{"question": "...", "answer": "..."}}, ...]'
    ),
)
PROMPTS: dict[str, CaptionPrompts] = {V1.version: V1}
"""Version -> prompts."""


def write_labels(labels: Mapping[str, str]) -> str:
    """Labels as the prompt shows them, one a line; yes/no labels by name, those that do not hold as "not ..."."""
    named = [(name.replace("_", " "), value) for name, value in labels.items()]
    lines = [{"yes": f"- {name}", "no": f"- not {name}"}.get(value, f"- {name}: {value}") for name, value in named]
    return "\n".join(lines) or "- none"


# Writing


class AnswerError(ValueError):
    """A model's answer is not what was asked for."""


@dataclass
class CaptionWriter:
    """
    Writes the captions of one face after another.

    Args:
        vision ([`~unif2ace.training.chat_endpoint.ChatEndpoint`]): The model that sees pictures: drafts and refines.
        text ([`~unif2ace.training.chat_endpoint.ChatEndpoint`], *optional*):
            The model that writes questions; `vision` when not given.
        labels (`Callable`, *optional*):
            Picture to labels. When not given, the record's own labels are used (a label table), or none.
        prompts ([`CaptionPrompts`], *optional*): The texts.
        num_questions (`int`, *optional*, defaults to 8): Questions to ask for, as many as the paper's data have.
        attempts (`int`, *optional*, defaults to 4): How often a step is tried.
        earlier_attempts (`int`, *optional*, defaults to 0):
            Attempts of earlier runs. Their answers are in the log, good and bad ones: they are read first.
        backoff (`float`, *optional*, defaults to 2.0): Seconds before the second attempt; doubled for each further.
    """

    vision: "ChatEndpoint"
    text: "ChatEndpoint | None" = None
    labels: Callable[[Any], Mapping[str, str]] | None = None
    prompts: CaptionPrompts = V1
    num_questions: int = 8
    attempts: int = 4
    earlier_attempts: int = 0
    backoff: float = 2.0
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)

    def write(self, record: FaceRecord) -> dict[str, Any]:
        """
        All steps for one face.

        Returns:
            `dict`: `file_name`, `captions` (the refined one), `conversations` (questions and answers), `draft`,
            `labels`, `known` (the data set's caption, if it had one), `models` and the `prompts` version.

        Raises:
            OSError: if the endpoint fails at every attempt.
            AnswerError: if its answers are not usable.
        """
        prompts = self.prompts
        # words that the template engine made of labels are no human caption
        known = record.captions[0] if record.captions and not (record.attributes or record.labels) else None
        hint = prompts.known.format(caption=known) if known else ""
        labels = dict(self.labels(record.image) if self.labels else record.labels)
        draft = self._ask(self.vision, prompts.draft.format(known=hint), record.image, _paragraph)
        caption = draft
        if labels:
            request = prompts.refine.format(draft=draft, labels=write_labels(labels))
            caption = self._ask(self.vision, request, record.image, _paragraph)
        questions = []
        if self.num_questions:
            request = prompts.questions.format(caption=caption, count=self.num_questions)
            questions = self._ask(self.text or self.vision, request, None, parse_questions)
        return {
            "file_name": record.id,
            "captions": [caption],
            "conversations": questions,
            "draft": draft,
            "labels": labels,
            "known": known,
            "models": {"vision": self.vision.model, "text": (self.text or self.vision).model},
            "prompts": prompts.version,
        }

    def stop(self) -> None:
        """Let waiting attempts end at once."""
        self._stop.set()

    def _ask(self, endpoint: "ChatEndpoint", prompt: str, image: Any, parse: Callable[[str], Any]) -> Any:
        """The parsed answer. A further attempt has another seed: the same question would get the same answer."""
        last = self.earlier_attempts + self.attempts - 1
        for attempt in range(last + 1):
            try:
                return parse(endpoint.ask(prompt, image, self.prompts.system, seed=attempt))
            except (OSError, AnswerError):  # a ChatEndpointError is an OSError
                if attempt == last or self._stop.is_set():
                    raise
                if attempt >= self.earlier_attempts:
                    self._stop.wait(min(self.backoff * 2 ** (attempt - self.earlier_attempts), _LONGEST_WAIT))
        raise AssertionError("unreachable: the last attempt returns or raises")


def _paragraph(answer: str) -> str:
    text = " ".join(answer.split())
    if len(text.split()) < 5:
        raise AnswerError(f"the answer is {text!r}, expected a paragraph")
    return text


def parse_questions(answer: str) -> list[dict[str, str]]:
    """
    The questions in a model's answer: a JSON list of `{"question", "answer"}`, alone, fenced, or within other text.

    Raises:
        AnswerError: if there is no such list, or an entry lacks a text.
    """
    text = _FENCE.sub("", answer.strip())
    start, stop = text.find("["), text.rfind("]")
    try:
        entries = parse_json(text[start : stop + 1]) if 0 <= start < stop else None
    except ValueError as error:
        raise AnswerError(f"the answer holds JSON that is broken ({error}): {answer[:80]!r}") from error
    if not isinstance(entries, list) or not entries:
        raise AnswerError(f"the answer holds no JSON list: {answer[:80]!r}")
    questions: list[dict[str, str]] = []
    for entry in entries:
        pair = [entry.get(name) for name in ("question", "answer")] if isinstance(entry, dict) else [None]
        if not all(isinstance(part, str) and part.strip() for part in pair):
            raise AnswerError(f"the answer has the entry {entry!r}, expected a question and an answer")
        questions.append({"question": pair[0].strip(), "answer": pair[1].strip()})
    return list({item["question"]: item for item in questions}.values())


def read_done(path: Path) -> dict[str, dict[str, Any]]:
    """The faces that an output file has captions of; half a line at its end is passed over."""
    done = {}
    if path.exists():
        with open(path, "rb") as file:  # lines end at \n alone
            for line in file:
                try:
                    entry = parse_json(line)
                    done[entry["file_name"]] = entry
                except (ValueError, KeyError, TypeError):
                    continue
    return done


def write_captions(
    stream: FaceStream,
    output: Path,
    writer: CaptionWriter,
    workers: int = 4,
    limit: int | None = None,
    max_failed: int = 20,
    progress: bool = True,
) -> tuple[int, BrokenSamples]:
    """
    Write the captions of a data set, one JSON line a face, going on where an earlier run stopped.

    Args:
        stream ([`FaceStream`]): The data set; captions are not needed.
        output (`Path`): The file. Lines are added to it as faces are done, in no certain order.
        writer ([`CaptionWriter`]): Writes one face.
        workers (`int`, *optional*, defaults to 4): Faces that are written at a time.
        limit (`int`, *optional*): Most faces to have in the file.
        max_failed (`int`, *optional*, defaults to 20): Faces that may fail before the run ends; -1 for any number.
        progress (`bool`, *optional*, defaults to `True`): Show a bar.

    Returns:
        How many faces were written by this run, and those that failed.

    Raises:
        TooManyBrokenSamplesError: if more faces failed.
    """
    done = read_done(output)
    report = output.with_suffix(".report.json")
    if report.exists():
        writer.earlier_attempts = read_json(report)["attempts"]
    failed = BrokenSamples(f"captions of {stream.name}", max_failed)
    output.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    waiting: dict[Future, str] = {}
    started = time.monotonic()

    def collect(file, until: int) -> None:
        """Write down what is ready, until at most `until` faces are being written."""
        nonlocal written
        while len(waiting) > until:
            ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                name = waiting.pop(future)
                try:
                    entry = future.result()
                except (OSError, ValueError) as error:
                    failed.add(name, error)
                    continue
                # a run that was killed may have left half a line
                file.write("\n" + json.dumps(entry, ensure_ascii=False))
                file.flush()
                written += 1
                bar.update()

    with (
        output.open("a", encoding="utf-8") as file,
        tqdm(initial=len(done), desc="captions", unit="face", disable=None if progress else True) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        try:
            for record in _todo(stream, done):
                if limit is not None and len(done) + written + len(waiting) >= limit:
                    break
                waiting[pool.submit(writer.write, record)] = record.id
                collect(file, workers - 1)
            collect(file, 0)
        except BaseException:
            writer.stop()
            for future in waiting:
                future.cancel()
            raise
        finally:
            _write_report(report, writer, written + len(done), failed, time.monotonic() - started)
    return written, failed


def _todo(stream: FaceStream, done: Mapping[str, Any]) -> Iterator[FaceRecord]:
    for record in stream:
        if not record.id:
            raise ValueError(f"{stream.name} has no names for its pictures: name the column with --columns id=...")
        if record.id not in done:
            yield record


def _write_report(path: Path, writer: CaptionWriter, faces: int, failed: BrokenSamples, seconds: float) -> None:
    """What a reader of the captions has to know: models, the words of the prompts, failures."""
    write_json(
        path,
        {
            "faces": faces,
            "failed": failed.state_dict(),
            "vision": {"url": writer.vision.url, "model": writer.vision.model},
            "text": {"url": (writer.text or writer.vision).url, "model": (writer.text or writer.vision).model},
            "prompts": vars(writer.prompts),
            "num_questions": writer.num_questions,
            "attempts": writer.earlier_attempts + (writer.attempts if failed.count else 0),
            "seconds": round(seconds, 1),
        },
    )


def classifier_labels(folder: Path, threshold: float) -> Callable[[Any], dict[str, str]]:
    """The labels that a classifier of `unif2ace data classifier` is sure of, as far as it is better than guessing."""
    from .attribute_classifier import load_classifier, read_labels

    model, names = load_classifier(folder)
    lock = threading.Lock()

    def labels(image) -> dict[str, str]:
        with lock:
            return read_labels(model, image, threshold, names)

    return labels
