"""
Texts for many callers: requests of equal sampling settings that wait at the same time are generated as one batch, and
every caller gets the text piece by piece.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F
from transformers import BatchFeature, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .engine import Engine, EngineClosedError


if TYPE_CHECKING:
    from ..pipeline_unif2ace import UniF2acePipeline

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextRequest:
    """
    One conversation to go on with.

    Args:
        messages (`list[dict]`): As `apply_chat_template` takes them, pictures as PIL pictures in `{"type": "image"}`.
        max_new_tokens (`int`, *optional*, defaults to 160): Longest answer.
        temperature (`float`, *optional*, defaults to 0.0): 0 is greedy.
        top_p (`float`, *optional*, defaults to 1.0): Share of probability that is sampled from.
        stop (`tuple[str, ...]`, *optional*): Texts that end the answer, and are left out of it.
        deadline (`float`, *optional*): `time.monotonic()` after which nobody waits any more.
    """

    messages: list[dict]
    max_new_tokens: int = 160
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    deadline: float = float("inf")

    @property
    def settings(self) -> tuple:
        """Requests that agree in this can share a batch."""
        return self.max_new_tokens, self.temperature, self.top_p


@dataclass(frozen=True)
class TextPiece:
    """
    What an answer grows by.

    Args:
        text (`str`): New text; may be empty at the end.
        finish_reason (`str`, *optional*): `"stop"` or `"length"` in the last piece.
        prompt_tokens (`int`): Tokens of the conversation, the picture's among them.
        completion_tokens (`int`): Tokens of the answer so far.
    """

    text: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


Listener = Callable[[TextPiece | Exception], None]


@dataclass(frozen=True)
class PreparedText:
    """
    A request whose conversation the model can read, made by `TextEngine.prepare`.

    Args:
        request (`TextRequest`): The request.
        inputs (`dict[str, torch.Tensor]`): Of the model's `generate`, one row without padding, on the CPU.
    """

    request: TextRequest
    inputs: dict[str, torch.Tensor]


class _Cancellation(threading.Event):
    """Set by who does not want the answer any more; a request that waits leaves the queue at once."""

    def __init__(self, leave: Callable[[], None]):
        super().__init__()
        self._leave = leave

    def set(self):
        super().set()
        self._leave()


@dataclass(eq=False)
class _Answer:
    prepared: PreparedText
    listener: Listener
    cancelled: threading.Event = field(default_factory=threading.Event)
    tokens: list[int] = field(default_factory=list)
    sent: int = 0  # characters
    done: bool = False

    @property
    def request(self) -> TextRequest:
        return self.prepared.request

    @property
    def prompt_tokens(self) -> int:
        return self.prepared.inputs["input_ids"].shape[1]

    def take(self, token: int, decode: Callable[[list[int]], str], end_ids: set[int]):
        """A new token: tell the listener what became readable."""
        if self.done:
            return
        if token in end_ids:
            self._finish(decode(self.tokens), "stop")
            return
        self.tokens.append(token)
        text = decode(self.tokens)
        places = [place for stop in self.request.stop if (place := text.find(stop)) >= 0]
        if places:
            self._finish(text[: min(places)], "stop")
        elif len(self.tokens) >= self.request.max_new_tokens:
            self._finish(text, "length")
        else:
            # what may still become a stop text or the rest of a character is held back
            held = max((len(stop) - 1 for stop in self.request.stop), default=0)
            ready = len(text.rstrip("\ufffd")) - held
            if ready > self.sent:
                self._tell(text[self.sent : ready])
                self.sent = ready

    def _finish(self, text: str, reason: str):
        self.done = True
        self._tell(text[self.sent :].rstrip(), reason)

    def _tell(self, text: str, reason: str | None = None):
        self.listener(TextPiece(text, reason, self.prompt_tokens, len(self.tokens)))

    @property
    def is_over(self) -> bool:
        return self.done or self.cancelled.is_set() or self.request.deadline < time.monotonic()


class _Pieces(BaseStreamer, StoppingCriteria):
    """Hands the tokens of a batch to its answers, and stops rows that nobody waits for any more."""

    def __init__(self, answers: list[_Answer], engine: "TextEngine"):
        self.answers, self.engine = answers, engine
        self.prompt_seen = False

    def put(self, value: torch.Tensor):
        """The prompt first, then the next token of every row."""
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        for answer, token in zip(self.answers, value.tolist(), strict=True):
            answer.take(token, self.engine._decode, self.engine._end_ids)

    def end(self):
        """Nothing is buffered."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        over = [answer.is_over or self.engine._closing for answer in self.answers]
        return torch.tensor(over, device=input_ids.device)


class TextEngine(Engine):
    """
    Answers for many callers with one model, in a thread of its own.

    Args:
        pipe ([`UniF2acePipeline`]): Its model may make pictures in another thread at the same time.
        max_batch_size (`int`, *optional*, defaults to 8): Answers in one batch.
        max_waiting (`int`, *optional*, defaults to 64): Requests that may wait; `submit` refuses more.
    """

    seconds_each = 0.1

    def __init__(self, pipe: "UniF2acePipeline", max_batch_size: int = 8, max_waiting: int = 64):
        config, generation = pipe.transformer.config.text_config, pipe.transformer.generation_config
        end = config.eos_token_id if generation.eos_token_id is None else generation.eos_token_id
        self._end_ids = set(end) if isinstance(end, (list, tuple)) else {end}
        self.num_active = 0
        super().__init__(pipe, max_batch_size, max_waiting)

    def prepare(self, request: TextRequest) -> PreparedText:
        """
        Turn a conversation into what the model reads: in the caller's thread, so that a long one keeps nobody waiting.
        The picture, if any, is decoded last, and only its small copy is kept.

        Args:
            request (`TextRequest`): The conversation.

        Raises:
            ValueError: if the conversation is none, does not fit into the model, or its picture cannot be read.
        """
        inputs = self.pipe.read_conversations([request.messages], request.max_new_tokens)
        return PreparedText(request, dict(inputs))

    def submit(self, request: TextRequest | PreparedText, listener: Listener) -> threading.Event:
        """
        Take a request in.

        Args:
            request (`TextRequest` or `PreparedText`): The conversation, best prepared by `prepare`.
            listener (`Callable`):
                Called in the engine's thread with each [`TextPiece`], the last of which has a `finish_reason`; or once
                with an exception: `TimeoutError` says that the deadline passed.

        Returns:
            `threading.Event`: setting it drops the request.

        Raises:
            ValueError: if the request is wrong.
            QueueFullError: if too many requests wait.
            EngineClosedError: if the engine has been closed.
        """
        prepared = request if isinstance(request, PreparedText) else self.prepare(request)
        answer = _Answer(prepared, listener)
        answer.cancelled = _Cancellation(lambda: self._leave(answer))
        self._enter([answer])
        return answer.cancelled

    def _run(self):
        while batch := self._next_batch():
            start = time.monotonic()
            self.num_active = len(batch)
            self._answer(batch)
            self.num_active = 0
            seconds = (time.monotonic() - start) / self.max_batch_size
            self.seconds_each += 0.3 * (seconds - self.seconds_each)

    def _fail(self, answer: _Answer, error: Exception):
        answer.listener(error)

    def _next_batch(self) -> list[_Answer]:
        """The oldest request and what can go with it; empty at the end."""
        with self._changed:
            while not (self._closing or self._waiting):
                self._changed.wait()
            if self._closing:
                return []
            settings = self._waiting[0].request.settings
            batch = [answer for answer in self._waiting if answer.request.settings == settings][: self.max_batch_size]
            self._waiting = deque(answer for answer in self._waiting if answer not in batch)
        return batch

    def _answer(self, answers: list[_Answer]):
        waiting = [answer for answer in answers if not answer.is_over]
        for answer in answers:
            if answer not in waiting:
                self._end(answer)
        # a batch has pictures in all of its rows or in none
        for kind in sorted({frozenset(answer.prepared.inputs) for answer in waiting}, key=len):
            self._generate([answer for answer in waiting if frozenset(answer.prepared.inputs) == kind])

    def _generate(self, answers: list[_Answer]):
        request = answers[0].request
        sampling = {"do_sample": False}
        if request.temperature > 0:
            sampling = {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p}
        pieces = _Pieces(answers, self)
        try:
            with torch.inference_mode():
                self.pipe.transformer.generate(
                    **self._merge([answer.prepared.inputs for answer in answers]),
                    max_new_tokens=request.max_new_tokens,
                    streamer=pieces,
                    stopping_criteria=StoppingCriteriaList([pieces]),
                    **sampling,
                )
        except Exception as error:
            logger.exception("generating text failed")
            for answer in answers:
                if not answer.done:
                    answer.listener(error)
            return
        for answer in answers:
            self._end(answer)

    def _end(self, answer: _Answer):
        """Tell whoever still waits why there is no more."""
        if answer.done or answer.cancelled.is_set():
            return
        if self._closing:
            answer.listener(EngineClosedError())
        else:
            answer.listener(TimeoutError("the time for this request is over"))

    def _merge(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Rows of different length as one batch, padded on the left, on the model's device."""
        length = max(row["input_ids"].shape[1] for row in rows)
        padding = {"input_ids": self.pipe.transformer.config.text_config.pad_token_id}
        merged = {}
        for name in rows[0]:
            parts = [row[name] for row in rows]
            if parts[0].shape[:2] == rows[0]["input_ids"].shape:  # a number for each token
                parts = [F.pad(part, (length - part.shape[1], 0), value=padding.get(name, 0)) for part in parts]
            merged[name] = torch.cat(parts)
        return BatchFeature(merged).to(self.pipe._execution_device, self.pipe.transformer.dtype)

    def _decode(self, tokens: list[int]) -> str:
        return self.pipe.processor.tokenizer.decode(tokens, skip_special_tokens=True).lstrip()


__all__ = ["PreparedText", "TextEngine", "TextPiece", "TextRequest"]
