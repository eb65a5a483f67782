"""What bounds a request before its content is looked at: who may send one, how many bytes, how slowly."""

import asyncio
import hmac
import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...modeling_unif2ace.pictures_unif2ace import shorten


# A few bytes of JSON become an object of hundreds: what separates values is counted before they are made.
MAX_JSON_MARKS = 60_000
_JSON_MARKS = (b",", b":", b"[", b"{")
FORM = b"multipart/form-data"
# Of messages that say what was wrong: a client's own words are not sent back whole.
MAX_MESSAGE = 400


class RequestLimits:
    """
    Middleware that refuses requests without the key, with too large a body, or whose body comes too slowly; and that
    answers a request which the end of the service breaks off.

    Args:
        app (`ASGIApp`): What handles the others.
        max_body_bytes (`int`): Largest body; counted while it arrives, whatever its header says.
        body_seconds (`float`): Time in which a body must have arrived.
        api_key (`str`, *optional*): Wanted as `Authorization: Bearer ...` under `/v1/`; none when not given.
        max_bodies (`int`, *optional*, defaults to 16): So many largest bodies may be held at once; more get 503.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body_bytes: int,
        body_seconds: float,
        api_key: str | None = None,
        max_bodies: int = 16,
    ):
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.body_seconds = body_seconds
        self.api_key = api_key
        self.free_bytes = max_bodies * max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        """Handle one request, or hand on what is none."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watch(message: Message):
            nonlocal started
            started = True
            await send(message)

        held = _Held(self)
        try:
            await self._handle(scope, receive, watch, held)
        except asyncio.CancelledError:  # the server's time to finish requests is over
            if not started:
                await _refuse(send, 503, "the service is shutting down")
        finally:
            held.give_back()

    async def _handle(self, scope: Scope, receive: Receive, send: Send, held: "_Held"):
        headers = dict(scope["headers"])
        if self.api_key is not None and scope["path"].startswith("/v1/"):
            expected = f"Bearer {self.api_key}".encode()
            if not hmac.compare_digest(headers.get(b"authorization", b""), expected):
                await _refuse(send, 401, "the API key is missing or wrong: send it as Authorization: Bearer KEY")
                return
        if b"content-length" in headers and b"transfer-encoding" in headers:  # a proxy may believe the other one
            await _refuse(send, 400, "the request states its length twice: send Content-Length or Transfer-Encoding")
            return
        too_large = f"the body is larger than {self.max_body_bytes} bytes: send a smaller picture"
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_body_bytes:
            await _refuse(send, 413, too_large)
            return
        # the whole body first: a handler that has begun could not be stopped with a proper answer
        body = bytearray()
        try:
            async with asyncio.timeout(self.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    part = message.get("body", b"")
                    body += part
                    more = message.get("more_body", False)
                    if len(body) > self.max_body_bytes:
                        await _refuse(send, 413, too_large)
                        return
                    if not held.take(len(part)):
                        await _refuse(send, 503, "the service holds too many requests: try again later")
                        return
        except TimeoutError:
            await _refuse(send, 408, f"the body did not arrive within {self.body_seconds:g} s")
            return
        is_form = headers.get(b"content-type", b"").startswith(FORM)  # which is never read as JSON
        if not is_form and sum(map(body.count, _JSON_MARKS)) > MAX_JSON_MARKS:
            await _refuse(send, 400, f"the body has more than {MAX_JSON_MARKS} values: send fewer messages and parts")
            return
        body, replayed = bytes(body), False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()  # a disconnection, when it comes
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)


class _Held:
    """The bytes that one request takes of what all of them may hold."""

    def __init__(self, limits: RequestLimits):
        self.limits, self.size = limits, 0

    def take(self, size: int) -> bool:
        if size > self.limits.free_bytes:
            return False
        self.limits.free_bytes -= size
        self.size += size
        return True

    def give_back(self):
        self.limits.free_bytes += self.size
        self.size = 0


def error_body(status: int, message: str, param: str | None = None) -> dict:
    """An error in OpenAI's form. What a client sent is in it for at most `MAX_MESSAGE` characters."""
    message, param = shorten(message, MAX_MESSAGE), param and shorten(param, 100)
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


async def _refuse(send: Send, status: int, message: str):
    body = json.dumps(error_body(status, message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # the rest of the body is not read, so the connection cannot be used again
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


__all__ = ["FORM", "RequestLimits", "error_body"]
