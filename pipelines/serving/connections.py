"""
What bounds connections before a request is there: how long a client may take to say what it wants, and how many
connections one client and all clients hold. uvicorn has no such limits, so its protocol gets them here.
"""

import json
from collections import defaultdict
from dataclasses import dataclass

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from .limits import error_body


@dataclass(frozen=True)
class ConnectionLimits:
    """
    Args:
        header_seconds (`float`, *optional*, defaults to 10): Time from the first byte, or from the connection, until a
            request's headers are there; then 408.
        idle_seconds (`float`, *optional*, defaults to 5): How long a connection is kept after an answer.
        max_connections (`int`, *optional*, defaults to 1000): Connections of all clients.
        max_per_client (`int`, *optional*, defaults to 256): Connections of one address. All clients of a proxy have
            the same one.

    Where a limit is reached, the oldest connection without a request makes room for the new one; when all have one,
    the new one gets 503.
    """

    header_seconds: float = 10
    idle_seconds: float = 5
    max_connections: int = 1000
    max_per_client: int = 256


class _Connections:
    """All connections of one server, oldest first, by address."""

    def __init__(self, limits: ConnectionLimits):
        self.limits = limits
        self._all: dict = {}  # as an ordered set
        self._of: dict[str, dict] = defaultdict(dict)

    def enter(self, connection) -> bool:
        """Take a connection in, for which another one may have to go; `False` if there is no room."""
        address = connection.address
        for group, limit in (
            (self._of[address], self.limits.max_per_client),
            (self._all, self.limits.max_connections),
        ):
            if len(group) >= limit:
                silent = next((other for other in group if not other.is_busy), None)
                if silent is None:
                    self._forget_empty(address)
                    return False
                silent.refuse(503, "the connection was closed to make room: send the request again")
                self.leave(silent)
        self._all[connection] = self._of[address][connection] = None
        return True

    def leave(self, connection):
        """A connection is closed."""
        self._all.pop(connection, None)
        self._of[connection.address].pop(connection, None)
        self._forget_empty(connection.address)

    def _forget_empty(self, address: str):
        if not self._of[address]:
            del self._of[address]


def server_config(app, host: str, port: int, limits: ConnectionLimits | None = None, **options) -> uvicorn.Config:
    """
    uvicorn's configuration with the limits above.

    Args:
        app (`ASGIApp`): The service.
        host (`str`), port (`int`): Where to listen.
        limits ([`ConnectionLimits`], *optional*): What is refused.
        options: Further ones of `uvicorn.Config`.
    """
    limits = limits or ConnectionLimits()
    connections = _Connections(limits)

    class GuardedProtocol(AutoHTTPProtocol):
        """A connection that has to say what it wants in time. All errors are in OpenAI's form."""

        header_timer = None
        address = "unknown"

        @property
        def is_busy(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def connection_made(self, transport):
            super().connection_made(transport)
            self.address = self.client[0] if self.client else "unknown"
            if not connections.enter(self):
                self.refuse(503, "too many connections: try again later")
                return
            self._start_timer()

        def connection_lost(self, exc):
            self._stop_timer()
            connections.leave(self)
            super().connection_lost(exc)

        def data_received(self, data):
            super().data_received(data)
            if self.is_busy:
                self._stop_timer()
            elif self.header_timer is None and self.timeout_keep_alive_task is None:
                self._start_timer()  # the next request of a connection that was kept

        def on_response_complete(self):
            super().on_response_complete()
            self._stop_timer()

        def send_400_response(self, msg):
            self.refuse(400, "this is no HTTP request that can be read: check the client")

        def refuse(self, status: int, message: str):
            """Answer without a request, and hang up."""
            self._stop_timer()
            body = json.dumps(error_body(status, message)).encode()
            phrase = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}[status]
            head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            if not self.transport.is_closing():
                self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
                self.transport.close()

        def _start_timer(self):
            self._stop_timer()
            self.header_timer = self.loop.call_later(limits.header_seconds, self._too_late)

        def _stop_timer(self):
            if self.header_timer is not None:
                self.header_timer.cancel()
                self.header_timer = None

        def _too_late(self):
            self.header_timer = None
            if not self.is_busy:
                self.refuse(408, f"no request came within {limits.header_seconds:g} s")

    return uvicorn.Config(
        app,
        host,
        port,
        http=GuardedProtocol,
        ws="none",
        timeout_keep_alive=limits.idle_seconds,
        proxy_headers=False,  # nothing here asks where a client is, and any client could write it
        **options,
    )


__all__ = ["ConnectionLimits", "server_config"]
