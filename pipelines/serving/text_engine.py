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
from jinja2 import TemplateError
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .image_engine import EngineClosedError, QueueFullError


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


@dataclass(eq=False)
class _Answer:
    request: TextRequest
    listener: Listener
    cancelled: threading.Event = field(default_factory=threading.Event)
    prompt_tokens: int = 0
    tokens: list[int] = field(default_factory=list)
    sent: int = 0  # characters
    done: bool = False

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

    def __init__(self, answers: list[_Answer], decode: Callable[[list[int]], str], end_ids: set[int]):
        self.answers, self.decode, self.end_ids = answers, decode, end_ids
        self.prompt_seen = False

    def put(self, value: torch.Tensor):
        """The prompt first, then the next token of every row."""
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        for answer, token in zip(self.answers, value.tolist(), strict=True):
            answer.take(token, self.decode, self.end_ids)

    def end(self):
        """Nothing is buffered."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        return torch.tensor([answer.is_over for answer in self.answers], device=input_ids.device)


class TextEngine:
    """
    Answers for many callers with one model, in a thread of its own.

    Args:
        pipe ([`UniF2acePipeline`]): Its model may make pictures in another thread at the same time.
        max_batch_size (`int`, *optional*, defaults to 8): Answers in one batch.
        max_waiting (`int`, *optional*, defaults to 64): Requests that may wait; `submit` refuses more.
    """

    def __init__(self, pipe: "UniF2acePipeline", max_batch_size: int = 8, max_waiting: int = 64):
        self.pipe = pipe
        self.max_batch_size = max_batch_size
        self.max_waiting = max_waiting
        self._waiting: deque[_Answer] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._seconds_per_batch = 1.0
        self.num_active = 0
        self._end_ids = _end_ids(pipe.transformer.generation_config, pipe.transformer.config.text_config)
        self._thread = threading.Thread(target=self._run, name="text-engine", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether requests can be answered."""
        return self._thread.is_alive() and not self._closing

    def submit(self, request: TextRequest, listener: Listener) -> threading.Event:
        """
        Take a request in.

        Args:
            request (`TextRequest`): The conversation.
            listener (`Callable`):
                Called in the engine's thread with each [`TextPiece`], the last of which has a `finish_reason`; or once
                with an exception: `ValueError` says what is wrong with the request, `TimeoutError` that its deadline
                passed.

        Returns:
            `threading.Event`: setting it drops the request.

        Raises:
            QueueFullError: if too many requests wait.
            EngineClosedError: if the engine has been closed.
        """
        answer = _Answer(request, listener)
        with self._changed:
            if self._closing:
                raise EngineClosedError("the service is shutting down")
            if len(self._waiting) >= self.max_waiting:
                batches = len(self._waiting) / self.max_batch_size
                raise QueueFullError(max(1.0, batches * self._seconds_per_batch))
            self._waiting.append(answer)
            self._changed.notify()
        return answer.cancelled

    def close(self, timeout: float | None = 10):
        """Requests that wait or are under way end with `EngineClosedError`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)

    def _run(self):
        try:
            while batch := self._next_batch():
                start = time.monotonic()
                self.num_active = len(batch)
                self._answer(batch)
                self.num_active = 0
                self._seconds_per_batch += 0.3 * (time.monotonic() - start - self._seconds_per_batch)
        finally:
            with self._changed:
                self._closing = True
                left, self._waiting = list(self._waiting), deque()
            for answer in left:
                answer.listener(EngineClosedError("the service is shutting down"))

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
        # each conversation is prepared alone, so that a bad one spoils no other
        ready, rows = [], []
        for answer in answers:
            if answer.is_over:
                self._end(answer)
                continue
            try:
                inputs = self._prepare([answer.request])
                answer.prompt_tokens = inputs["input_ids"].shape[1]
                _check_length(answer, self.pipe.transformer.config.text_config.max_position_embeddings)
            except TemplateError as error:  # of the chat template, about the conversation
                answer.listener(ValueError(str(error)))
                continue
            except Exception as error:
                answer.listener(error)
                continue
            ready.append(answer)
            rows.append("pixel_values" in inputs)
        # a batch has pictures in all of its rows or in none
        for with_picture in (True, False):
            group = [answer for answer, has in zip(ready, rows, strict=True) if has == with_picture]
            if group:
                self._generate(group)

    def _generate(self, answers: list[_Answer]):
        request = answers[0].request
        sampling = {"do_sample": False}
        if request.temperature > 0:
            sampling = {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p}
        pieces = _Pieces(answers, self._decode, self._end_ids)
        stopping = _StopWhenClosing(self)
        try:
            with torch.inference_mode():
                self.pipe.transformer.generate(
                    **self._prepare([answer.request for answer in answers]),
                    max_new_tokens=request.max_new_tokens,
                    streamer=pieces,
                    stopping_criteria=StoppingCriteriaList([pieces, stopping]),
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
            answer.listener(EngineClosedError("the service is shutting down"))
        else:
            answer.listener(TimeoutError("the time for this request is over"))

    def _prepare(self, requests: list[TextRequest]):
        return self.pipe.processor.apply_chat_template(
            [request.messages for request in requests],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
            sanitize_control_tokens=True,
        ).to(self.pipe._execution_device, self.pipe.transformer.dtype)

    def _decode(self, tokens: list[int]) -> str:
        return self.pipe.processor.tokenizer.decode(tokens, skip_special_tokens=True).lstrip()


class _StopWhenClosing(StoppingCriteria):
    def __init__(self, engine: TextEngine):
        self.engine = engine

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        return torch.full((len(input_ids),), self.engine._closing, device=input_ids.device)


def _end_ids(generation_config, text_config) -> set[int]:
    ids = generation_config.eos_token_id
    if ids is None:
        ids = text_config.eos_token_id
    return set(ids) if isinstance(ids, (list, tuple)) else {ids}


def _check_length(answer: _Answer, limit: int):
    wanted = answer.request.max_new_tokens
    if answer.prompt_tokens + wanted > limit:
        raise ValueError(
            f"the conversation takes {answer.prompt_tokens} tokens and the answer up to {wanted}, but the model reads "
            f"{limit}: shorten the conversation or lower max_tokens"
        )


__all__ = ["TextEngine", "TextPiece", "TextRequest"]
