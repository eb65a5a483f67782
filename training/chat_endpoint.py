"""
Any server that speaks OpenAI's chat protocol (OpenAI, DeepSeek, vLLM, SGLang, llama.cpp, Ollama, ...), for judges and
for whatever else asks a large model about faces.
"""

import base64
import hashlib
import io
import json
import os
import threading
import time
from pathlib import Path

from PIL import Image

from .._versions import need
from .run_folder import append_line, read_lines


KEY_VARIABLE = "OPENAI_API_KEY"


class ChatEndpointError(OSError):
    """The server could not be reached, refused, or gave no usable answer."""


class CutOffAnswerError(ChatEndpointError):
    """The answer is longer than `max_tokens`."""


class ChatEndpoint:
    """
    A model behind an OpenAI-compatible server.

    Failures that pass (no connection, time-outs, 429, 5xx) are tried again by the `openai` client, with growing waits
    or those that the server asks for.

    Args:
        url (`str`): The server's base, for example `"http://localhost:8000/v1"`.
        model (`str`): Name of the model on the server.
        api_key (`str`, *optional*): The key; the environment variable `OPENAI_API_KEY`, or none, when not given.
        temperature (`float`, *optional*, defaults to 0.2): Sampling temperature (0.2 as LLaVA's judge).
        max_tokens (`int`, *optional*, defaults to 512): Longest answer.
        timeout (`float`, *optional*, defaults to 120): Seconds to wait for an answer.
        max_retries (`int`, *optional*, defaults to 5): How often a request is tried again.
        requests_per_minute (`float`, *optional*): At most so many requests a minute; no limit when not given.
        log (`str` or `os.PathLike`, *optional*):
            A JSON-lines file that keeps every question with its answer. What is in it is not asked again.

    Raises:
        ImportError: if the `openai` client is not installed.
        ValueError: if `url` or `model` is empty.
    """

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str | None = None,
        temperature: float = 0.2,
        max_tokens: int = 512,
        timeout: float = 120.0,
        max_retries: int = 5,
        requests_per_minute: float | None = None,
        log: str | os.PathLike | None = None,
    ):
        if not url or not model:
            raise ValueError(f"url={url!r} and model={model!r}, expected the server's base and the model's name")
        openai = need("openai", "train")
        self.url, self.model = url, model
        self.temperature, self.max_tokens = temperature, max_tokens
        self.client = openai.OpenAI(
            base_url=url,
            # servers at home want no key, but the client insists on one
            api_key=api_key or os.environ.get(KEY_VARIABLE) or "none",
            timeout=timeout,
            max_retries=max_retries,
        )
        self._interval = 0.0 if requests_per_minute is None else 60 / requests_per_minute
        self._next, self._lock = 0.0, threading.Lock()
        self.log = None if log is None else Path(log)
        entries = read_lines(self.log) if self.log is not None and self.log.exists() else []
        self._known = {entry["key"]: entry["answer"] for entry in entries}

    def ask(self, prompt: str, image: Image.Image | None = None, system: str | None = None, seed: int = 0) -> str:
        """
        Ask one question.

        Args:
            prompt (`str`): The question.
            image (`PIL.Image.Image`, *optional*): A picture that it is about; sent as PNG.
            system (`str`, *optional*): The system message.
            seed (`int`, *optional*, defaults to 0): Sent along; the same question with another seed is another one.

        Returns:
            `str`: The answer.

        Raises:
            CutOffAnswerError: if the answer is cut off.
            ChatEndpointError: if there is none.
        """
        content: str | list = prompt
        if image is not None:
            content = [
                {"type": "image_url", "image_url": {"url": _data_url(image)}},
                {"type": "text", "text": prompt},
            ]
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": content})
        request = {
            "model": self.model,
            "messages": messages,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": seed,
        }
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        if key not in self._known:
            self._known[key] = self._send(request)
            self._write_log(key, prompt, system, seed, self._known[key])
        return self._known[key]

    def _send(self, request: dict) -> str:
        from openai import OpenAIError

        self._wait()
        try:
            completion = self.client.chat.completions.create(**request)
            choice = completion.choices[0]
            answer, reason = choice.message.content, choice.finish_reason
        except OpenAIError as error:
            raise ChatEndpointError(f"{self.url} ({self.model}): {type(error).__name__}: {error}") from error
        # a server that is none may answer with anything: text, JSON of another kind, or broken JSON
        except (ValueError, AttributeError, TypeError, IndexError, KeyError) as error:
            raise ChatEndpointError(f"{self.url} does not answer in OpenAI's chat format ({error})") from error
        if reason == "length":
            raise CutOffAnswerError(f"{self.url} ({self.model}): the answer is longer than {self.max_tokens} tokens")
        if not isinstance(answer, str) or not answer.strip():
            raise ChatEndpointError(f"{self.url} ({self.model}): the answer is empty (finish reason {reason!r})")
        return answer

    def _wait(self) -> None:
        """Keep to the limit of requests a minute, over all threads."""
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + self._interval
        time.sleep(max(0.0, start - time.monotonic()))

    def _write_log(self, key: str, prompt: str, system: str | None, seed: int, answer: str) -> None:
        if self.log is None:
            return
        entry = {"key": key, "model": self.model, "seed": seed, "system": system, "prompt": prompt, "answer": answer}
        with self._lock:
            append_line(self.log, entry)


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


__all__ = ["ChatEndpoint", "ChatEndpointError", "CutOffAnswerError"]
