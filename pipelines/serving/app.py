"""The HTTP service: OpenAI's images, edits and chat, a page that says what runs, health, metrics."""

import asyncio
import base64
import html
import io
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from PIL import Image, ImageOps
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ...modeling_unif2ace.pictures_unif2ace import load_image, open_image
from ...modeling_unif2ace.provenance_unif2ace import generator_name, read_provenance, save_image
from ..files import parse_json
from ..seeds import picture_seeds
from .engine import EngineClosedError, QueueFullError
from .image_engine import ImageEngine, ImageRequest
from .limits import FORM, RequestLimits, error_body
from .metrics import RequestMetrics, ServiceMetrics
from .schemas import ChatBody, EditsBody, ImagesBody, Message
from .text_engine import PreparedText, TextEngine, TextPiece, TextRequest


if TYPE_CHECKING:
    from ..pipeline_unif2ace import UniF2acePipeline

logger = logging.getLogger(__name__)
DEFAULT_MAX_TOKENS = 160
MAX_FORM_FILES, MAX_FORM_FIELDS = 20, 60
# Nothing on it comes from another host, and nothing of a client's is on it.
PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>UniF²ace: {model}</title>
<style>body {{max-width: 44rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif}}
pre {{padding: 1rem; overflow-x: auto; background: #8882}} td {{padding-right: 1.5rem; vertical-align: top}}</style>
</head><body><h1>UniF²ace</h1>
<p><b>{model}</b> draws faces of {side} × {side} pixels from sentences, edits them and talks about them.
This is {version}, on {device}.</p>
<table><tr><td>POST /v1/images/generations</td><td>a face from a sentence</td></tr>
<tr><td>POST /v1/images/edits</td><td>a face changed by a sentence</td></tr>
<tr><td>POST /v1/chat/completions</td><td>words about a face</td></tr>
<tr><td><a href="v1/models">/v1/models</a></td><td>the model</td></tr>
<tr><td><a href="health">/health</a>, <a href="metrics">/metrics</a></td><td>for machines</td></tr></table>
<p>OpenAI's clients speak to it, with the address of this page and <code>/v1</code> as <code>base_url</code>{key}:</p>
<pre>curl {address}v1/images/generations -H 'Content-Type: application/json' \\
  -d '{{"prompt": "an old man with a grey beard", "seed": 7}}'</pre>
<p>Pictures carry an invisible watermark and say in their files that they are AI-generated.</p></body></html>
"""


@dataclass(frozen=True)
class ServiceLimits:
    """
    Args:
        max_batch_size (`int`, *optional*, defaults to 16): Pictures under way at once.
        max_text_batch_size (`int`, *optional*, defaults to 8): Texts generated at once.
        max_waiting (`int`, *optional*, defaults to 64): Pictures, and texts, that may wait; more get 429.
        max_body_bytes (`int`, *optional*, defaults to 8 MiB): Largest request.
        max_pixels (`int`, *optional*, defaults to 16,000,000): Most pixels of a picture that is sent.
        request_seconds (`float`, *optional*, defaults to 120): Time for a request, waiting included; then 504.
        body_seconds (`float`, *optional*, defaults to 30): Time for a body to arrive; then 408.
        max_bodies (`int`, *optional*, defaults to 16): So many largest bodies may be held at once; more get 503.
        num_preparers (`int`, *optional*, defaults to 2): Threads that tokenise texts and decode pictures.
    """

    max_batch_size: int = 16
    max_text_batch_size: int = 8
    max_waiting: int = 64
    max_body_bytes: int = 8 * 2**20
    max_pixels: int = 16_000_000
    request_seconds: float = 120
    body_seconds: float = 30
    max_bodies: int = 16
    num_preparers: int = 2


def create_app(
    pipe: "UniF2acePipeline",
    model_name: str = "unif2ace",
    limits: ServiceLimits | None = None,
    api_key: str | None = None,
) -> FastAPI:
    """
    The service as an ASGI application; its engines start and stop with it.

    Args:
        pipe ([`UniF2acePipeline`]): The model, on its device.
        model_name (`str`, *optional*, defaults to `"unif2ace"`): What `/v1/models` calls it.
        limits (`ServiceLimits`, *optional*): What is refused.
        api_key (`str`, *optional*): Wanted of every request under `/v1/`.
    """
    service = _Service(pipe, model_name, limits or ServiceLimits(), bool(api_key))

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        service.start()
        yield
        await run_in_threadpool(service.stop)

    # the pages that FastAPI makes of the interface fetch scripts from another host
    app = FastAPI(title="UniF²ace", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(
        RequestLimits,
        max_body_bytes=service.limits.max_body_bytes,
        body_seconds=service.limits.body_seconds,
        api_key=api_key,
        max_bodies=service.limits.max_bodies,
    )
    app.add_middleware(RequestMetrics, metrics=service.metrics)
    _add_error_handlers(app)
    app.get("/")(service.show_page)
    app.post("/v1/images/generations")(service.generate_images)
    app.post("/v1/images/edits")(service.edit_images)
    app.post("/v1/chat/completions")(service.complete_chat)
    app.get("/v1/models")(service.list_models)
    app.get("/v1/models/{name:path}")(service.show_model)
    app.get("/health")(service.health)
    app.get("/metrics")(service.show_metrics)
    app.state.service = service
    return app


def _add_error_handlers(app: FastAPI):
    def answer(status: int, message: str, param: str | None = None, headers: dict | None = None) -> JSONResponse:
        return JSONResponse(error_body(status, message, param), status, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def wrong_body(request: Request, error: RequestValidationError):
        # where several forms are allowed, the error deepest inside is about the form that was meant
        first = max(error.errors(), key=lambda item: len(item["loc"]))
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        message = first["msg"].removeprefix("Value error, ")
        return answer(400, f"{place or 'the body'}: {message}", place or None)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException):
        return answer(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(ValueError)
    async def wrong_value(request: Request, error: ValueError):
        return answer(400, str(error))

    @app.exception_handler(QueueFullError)
    async def busy(request: Request, error: QueueFullError):
        return answer(429, str(error), headers={"Retry-After": str(round(error.retry_after))})

    @app.exception_handler(EngineClosedError)
    async def closing(request: Request, error: EngineClosedError):
        return answer(503, str(error))

    @app.exception_handler(TimeoutError)
    async def late(request: Request, error: TimeoutError):
        return answer(504, str(error) or "the time for this request is over")

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception):
        logger.error("a request failed", exc_info=error)
        return answer(500, "the service failed; its log says why")


class _Service:
    """The handlers, with the engines that they share."""

    def __init__(self, pipe: "UniF2acePipeline", model_name: str, limits: ServiceLimits, needs_key: bool):
        self.pipe, self.model_name, self.limits, self.needs_key = pipe, model_name, limits, needs_key
        self.side = pipe.transformer.config.vq_config.resolution
        self.metrics = ServiceMetrics()
        self.started = int(time.time())
        self.images: ImageEngine | None = None
        self.texts: TextEngine | None = None
        # not the event loop's own pool, which everything else needs
        self.preparers = ThreadPoolExecutor(limits.num_preparers, thread_name_prefix="prepare")

    def start(self):
        limits = self.limits
        self.pipe.transformer.remember_unconditional_prompt()
        self.images = ImageEngine(self.pipe, limits.max_batch_size, limits.max_waiting, self.metrics.count_step)
        self.texts = TextEngine(self.pipe, limits.max_text_batch_size, limits.max_waiting)
        self.metrics.watch(self.images, self.texts)

    def stop(self):
        self.images.close()
        self.texts.close()
        self.preparers.shutdown(wait=False, cancel_futures=True)

    async def _prepared(self, request: Request, deadline: float, work: Callable, *arguments):
        """The result of work that is not the engines': not longer than until the deadline."""
        future = asyncio.wrap_future(self.preparers.submit(work, *arguments))
        return await _unless_gone(future, request, deadline)

    # Pictures

    async def generate_images(self, body: ImagesBody, request: Request):
        return await self._make_images(body, request)

    async def edit_images(self, request: Request):
        """A form with files, as OpenAI's clients send it, or JSON with `data:` addresses."""
        if request.headers.get("content-type", "").encode().startswith(FORM):
            try:
                form = await request.form(max_files=MAX_FORM_FILES, max_fields=MAX_FORM_FIELDS)
            except AssertionError as error:  # what Starlette says without the parser of forms
                raise HTTPException(501, 'forms need python-multipart here: pip install ".[serve]"') from error
            fields: dict = {}
            for name, value in form.multi_items():
                name = name.removesuffix("[]")
                value = value if isinstance(value, str) else await value.read()
                fields[name] = [*fields.get(name, []), value] if name == "image" else value
        else:
            fields = parse_json(await request.body(), "the body")
        try:
            body = EditsBody.model_validate(fields)
        except ValidationError as error:
            raise RequestValidationError(error.errors(include_input=False)) from error
        return await self._make_images(body, request)

    async def _make_images(self, body: ImagesBody, request: Request) -> dict:
        self._check_model(body.model)
        size = f"{self.side}x{self.side}"
        if body.size not in ("auto", size):
            raise ValueError(f"size is {body.size!r}, expected 'auto' or '{size}', the model's only one")
        deadline = time.monotonic() + self.limits.request_seconds
        given = await self._prepared(request, deadline, self._prepare_images, body)
        wanted = [
            ImageRequest(
                prompt=body.prompt,
                seed=seed,
                num_inference_steps=body.num_inference_steps,
                guidance_scale=body.guidance_scale,
                negative_prompt=body.negative_prompt,
                complete_prompt=body.complete_prompt,
                deadline=deadline,
                **given,
            )
            for seed in picture_seeds(body.seed, body.n)
        ]
        futures = [asyncio.wrap_future(future) for future in self.images.submit(wanted)]
        try:
            pictures = await _unless_gone(asyncio.gather(*futures), request, deadline)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        self.metrics.pictures.inc(len(pictures))
        encoded = await run_in_threadpool(self._encode, pictures, body)
        absent = {"revised_prompt": None, "url": None, "b64_json": None}
        return {
            "created": int(time.time()),
            "background": None,
            "output_format": body.output_format,
            "quality": None,
            "size": size,
            "usage": None,
            "data": [
                absent | _revised(picture) | {body.response_format: text, "seed": item.seed}
                for text, item, picture in zip(encoded, wanted, pictures, strict=True)
            ],
        }

    def _prepare_images(self, body: ImagesBody) -> dict:
        """What edits need besides; `ValueError` if a prompt does not fit into the model, or a picture is none."""
        texts = [body.prompt, body.negative_prompt, getattr(body, "source_prompt", None)]
        self.pipe.processor(text=[text for text in texts if text is not None], generation_mode="image")
        if not isinstance(body, EditsBody):
            return {}
        image = load_image(body.image[0], self.limits.max_pixels)
        if body.mask is None:
            return {"image": image, "source_prompt": body.source_prompt, "strength": body.strength}
        load_image(body.mask, self.limits.max_pixels)  # says what is wrong with it, if anything is
        with open_image(body.mask, self.limits.max_pixels) as mask:
            mask = ImageOps.invert(mask.convert("RGBA").getchannel("A"))
        if mask.getextrema()[1] < 128:
            raise ValueError("mask: nothing of it is transparent; make transparent what is to be repainted")
        return {"image": image, "mask": mask}

    @staticmethod
    def _encode(pictures: list[Image.Image], body: ImagesBody) -> list[str]:
        options = {} if body.output_format == "png" else {"quality": body.output_compression}
        texts = []
        for picture in pictures:
            file = io.BytesIO()
            save_image(picture, file, body.output_format.upper(), **options)
            text = base64.b64encode(file.getvalue()).decode()
            # an address that holds the picture itself: nothing is kept here that a client could fetch
            start = "" if body.response_format == "b64_json" else f"data:image/{body.output_format};base64,"
            texts.append(start + text)
        return texts

    # Texts

    async def complete_chat(self, body: ChatBody, request: Request):
        self._check_model(body.model)
        limit = body.max_completion_tokens or body.max_tokens or DEFAULT_MAX_TOKENS
        deadline = time.monotonic() + self.limits.request_seconds
        self.texts.check_room()
        wanted = await self._prepared(request, deadline, self._prepare_chat, body, limit, deadline)
        pieces: asyncio.Queue[TextPiece | Exception] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def listen(piece: TextPiece | Exception):
            if not loop.is_closed():
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        cancelled = self.texts.submit(wanted, listen)
        head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": self.model_name,
            "service_tier": None,
            "system_fingerprint": None,
        }
        try:
            # the first piece before the status: what is wrong with a request is known by then
            first = await _unless_gone(pieces.get(), request, deadline)
            if isinstance(first, Exception):
                raise first
            if body.stream:
                stream = self._stream(body, head, first, pieces, cancelled)
                return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
            text, last = first.text, first
            while last.finish_reason is None:
                last = await _unless_gone(pieces.get(), request, deadline)
                if isinstance(last, Exception):
                    raise last
                text += last.text
        except BaseException:
            cancelled.set()
            raise
        self.metrics.tokens.inc(last.completion_tokens)
        message = {"role": "assistant", "content": text.strip(), "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": last.finish_reason, "logprobs": None}
        return {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(last)}

    async def _stream(self, body, head, piece, pieces, cancelled) -> AsyncIterator[str]:
        head = {**head, "object": "chat.completion.chunk"}

        def event(delta: dict, finish_reason: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
            return f"data: {json.dumps({**head, 'choices': [choice], 'usage': None})}\n\n"

        try:
            yield event({"role": "assistant", "content": ""})
            while True:
                if isinstance(piece, Exception):
                    status = 504 if isinstance(piece, TimeoutError) else 503
                    yield f"data: {json.dumps(error_body(status, str(piece)))}\n\n"
                    return
                if piece.text:
                    yield event({"content": piece.text})
                if piece.finish_reason is not None:
                    break
                piece = await pieces.get()
            yield event({}, piece.finish_reason)
            if body.stream_options.include_usage:
                yield f"data: {json.dumps({**head, 'choices': [], 'usage': _usage(piece)})}\n\n"
            self.metrics.tokens.inc(piece.completion_tokens)
            yield "data: [DONE]\n\n"
        finally:  # also when the client has gone
            cancelled.set()

    def _prepare_chat(self, body: ChatBody, limit: int, deadline: float) -> PreparedText:
        """The conversation as the model reads it: its text first, so that no picture is decoded for nothing."""
        if time.monotonic() > deadline:  # it waited for its turn too long
            raise TimeoutError("the time for this request is over")
        settings = (limit, body.temperature, body.top_p, tuple(body.stop or ()), deadline)
        pictures = [part.image_url.url for part in _parts(body.messages) if part.type == "image_url"]
        if not pictures:
            return self.texts.prepare(TextRequest(_conversation(body.messages), *settings))
        self.texts.prepare(TextRequest(_conversation(body.messages, Image.new("RGB", (8, 8))), *settings))
        picture = load_image(pictures[0], self.limits.max_pixels)  # its header says its size, before it is decoded
        return self.texts.prepare(TextRequest(_conversation(body.messages, picture), *settings))

    # The rest

    def _check_model(self, name: str | None):
        if name is not None and name != self.model_name:
            raise HTTPException(404, f"there is no model {name[:100]!r}; this service has {self.model_name!r}")

    def _model(self) -> dict:
        return {"id": self.model_name, "object": "model", "created": self.started, "owned_by": "unif2ace"}

    async def show_page(self, request: Request) -> HTMLResponse:
        page = PAGE.format(
            model=html.escape(self.model_name),
            side=self.side,
            version=generator_name(),
            device=self.pipe._execution_device,
            address=html.escape(str(request.base_url)),
            key=" and the key as <code>api_key</code>" if self.needs_key else "",
        )
        return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})

    async def list_models(self):
        return {"object": "list", "data": [self._model()]}

    async def show_model(self, name: str):
        self._check_model(name)
        return self._model()

    async def health(self):
        images, texts = self.images, self.texts
        healthy = images.is_alive and texts.is_alive
        content = {
            "status": "ok" if healthy else "failed",
            "model": self.model_name,
            "images": {"active": images.num_active, "waiting": images.num_waiting},
            "texts": {"active": texts.num_active, "waiting": texts.num_waiting},
        }
        return JSONResponse(content, 200 if healthy else 503)

    async def show_metrics(self) -> Response:
        return PlainTextResponse(self.metrics.render(), media_type=self.metrics.content_type)


def _revised(picture: Image.Image) -> dict[str, str]:
    """OpenAI's name for the prompt that a picture was drawn from, where it is not the one that was sent."""
    text = read_provenance(picture).completed_prompt
    return {} if text is None else {"revised_prompt": text}


def _parts(messages: list[Message]) -> list:
    return [part for message in messages if not isinstance(message.content, str) for part in message.content]


def _conversation(messages: list[Message], picture: Image.Image | None = None) -> list[dict]:
    """Messages as the processor takes them; `picture` is the one that they hold."""
    converted = []
    for message in messages:
        content = message.content
        if not isinstance(content, str):
            content = [
                {"type": "text", "text": part.text} if part.type == "text" else {"type": "image", "image": picture}
                for part in content
            ]
        converted.append({"role": message.role, "content": content})
    return converted


async def _unless_gone(awaitable, request: Request, deadline: float):
    """Wait for something while the client does, and not longer than until the deadline."""
    task = asyncio.ensure_future(awaitable)
    gone = asyncio.ensure_future(_disconnection(request))
    try:
        remaining = max(0.0, deadline - time.monotonic())
        done, _ = await asyncio.wait({task, gone}, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            return task.result()
        if gone in done:
            raise HTTPException(499, "the client has gone")
        raise TimeoutError("the time for this request is over")
    finally:
        task.add_done_callback(_look_at)
        task.cancel()
        gone.cancel()


def _look_at(task: asyncio.Future):
    """Nobody waits for it any more, which asyncio would complain about."""
    if not task.cancelled():
        task.exception()


async def _disconnection(request: Request):
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _usage(piece: TextPiece) -> dict:
    prompt, completion = piece.prompt_tokens, piece.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


__all__ = ["ServiceLimits", "create_app"]
