"""What bounds a request before its content is looked at: who may send one, how many bytes, how slowly."""

import asyncio
import hmac
import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class RequestLimits:
    """
    Middleware that refuses requests without the key, with too large a body, or whose body comes too slowly.

    Args:
        app (`ASGIApp`): What handles the others.
        max_body_bytes (`int`): Largest body; counted while it arrives, whatever its header says.
        body_seconds (`float`): Time in which a body must have arrived.
        api_key (`str`, *optional*): Wanted as `Authorization: Bearer ...` under `/v1/`; none when not given.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, body_seconds: float, api_key: str | None = None):
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.body_seconds = body_seconds
        self.api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        """Handle one request, or hand on what is none."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self.api_key is not None and scope["path"].startswith("/v1/"):
            expected = f"Bearer {self.api_key}".encode()
            if not hmac.compare_digest(headers.get(b"authorization", b""), expected):
                await _refuse(send, 401, "the API key is missing or wrong: send it as Authorization: Bearer KEY")
                return
        too_large = f"the body is larger than {self.max_body_bytes} bytes: send a smaller picture"
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_body_bytes:
            await _refuse(send, 413, too_large)
            return
        # the whole body first: a handler that has begun could not be stopped with a proper answer
        body = b""
        try:
            async with asyncio.timeout(self.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self.max_body_bytes:
                        await _refuse(send, 413, too_large)
                        return
        except TimeoutError:
            await _refuse(send, 408, f"the body did not arrive within {self.body_seconds:g} s")
            return
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()  # a disconnection, when it comes
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)


def error_body(status: int, message: str, param: str | None = None) -> dict:
    """An error in OpenAI's form."""
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


__all__ = ["RequestLimits", "error_body"]
