"""What Prometheus reads at `/metrics`."""

import time
from typing import TYPE_CHECKING

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send


if TYPE_CHECKING:
    from .image_engine import ImageEngine
    from .text_engine import TextEngine


class ServiceMetrics:
    """Counters of one service, in a registry of their own so that several can live in one process."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self):
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory and CPU time, under Prometheus' usual names
        self.requests = Counter("unif2ace_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "unif2ace_request_seconds",
            "Time until the answer began.",
            ["route"],
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
            registry=registry,
        )
        self.pictures = Counter("unif2ace_pictures", "Pictures made.", registry=registry)
        self.tokens = Counter("unif2ace_completion_tokens", "Tokens of text made.", registry=registry)
        self.batch = Histogram(
            "unif2ace_step_batch_size",
            "Pictures that shared a denoising step.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self._work = Gauge("unif2ace_work", "Pictures and texts under way.", ["kind", "state"], registry=registry)

    def watch(self, images: "ImageEngine", texts: "TextEngine"):
        """Read the lengths of the queues whenever somebody asks."""
        for kind, engine in (("image", images), ("text", texts)):
            self._work.labels(kind, "active").set_function(lambda engine=engine: engine.num_active)
            self._work.labels(kind, "waiting").set_function(lambda engine=engine: engine.num_waiting)

    def count_step(self, num_pictures: int):
        """A denoising step of so many pictures was made."""
        self.batch.observe(num_pictures)

    def count_request(self, route: str, status: int, seconds: float):
        """A request was answered; `seconds` until the answer began."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def render(self) -> bytes:
        """All of it as text."""
        return generate_latest(self.registry)


class RequestMetrics:
    """Middleware that counts and times requests, by route and not by address, which a client chooses."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        """Handle one request, or hand on what is none."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, seconds = time.monotonic(), 500, None

        async def watch(message: Message):
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status, seconds = message["status"], time.monotonic() - start
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            self.metrics.count_request(route, status, time.monotonic() - start if seconds is None else seconds)


__all__ = ["RequestMetrics", "ServiceMetrics"]
