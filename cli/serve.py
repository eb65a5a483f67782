"""The command `unif2ace serve`."""

import argparse
import ipaddress
import os
import sys
from pathlib import Path

from .common import add_model_arguments, load_pipeline, positive_int


EXAMPLES = """\
examples:
  unif2ace serve
  UNIF2ACE_API_KEY=secret unif2ace serve --host 0.0.0.0 --port 8000 --max-batch 32

  curl http://127.0.0.1:8000/v1/images/generations -H 'Content-Type: application/json' \\
    -d '{"prompt": "an old man with a grey beard", "seed": 7}'

Speaks OpenAI's images/generations and chat/completions; /health and /metrics are for machines (docs/serving.md).
"""
KEY_VARIABLE = "UNIF2ACE_API_KEY"


def add_arguments(parser: argparse.ArgumentParser):
    """The arguments of the command."""
    add_model_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--name", help="what /v1/models calls the model (default: the checkpoint's name)")
    parser.add_argument(
        "--max-batch", type=positive_int, default=16, metavar="N", help="pictures at once (default: %(default)s)"
    )
    parser.add_argument(
        "--max-waiting",
        type=positive_int,
        default=64,
        metavar="N",
        help="pictures, and texts, that may wait; more get status 429 (default: %(default)s)",
    )
    parser.add_argument(
        "--max-body-mb", type=positive_int, default=8, metavar="N", help="largest request (default: %(default)s)"
    )
    parser.add_argument(
        "--max-pixels",
        type=positive_int,
        default=16_000_000,
        metavar="N",
        help="largest picture that is read (default: %(default)s)",
    )
    parser.add_argument(
        "--max-connections",
        type=positive_int,
        default=256,
        metavar="N",
        help="connections of one address; raise it behind a proxy (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout", type=positive_int, default=120, metavar="S", help="seconds for a request (default: %(default)s)"
    )


def run(arguments: argparse.Namespace):
    """Serve until interrupted."""
    import uvicorn

    from ..pipelines.serving.app import ServiceLimits, create_app
    from ..pipelines.serving.connections import ConnectionLimits, server_config

    api_key = os.environ.get(KEY_VARIABLE) or None
    if api_key is None and not _is_loopback(arguments.host):
        warning = (
            f"warning: whoever reaches {arguments.host} can use this service; set {KEY_VARIABLE} to ask for a key"
        )
        print(warning, file=sys.stderr)
    limits = ServiceLimits(
        max_batch_size=arguments.max_batch,
        max_waiting=arguments.max_waiting,
        max_body_bytes=arguments.max_body_mb * 2**20,
        max_pixels=arguments.max_pixels,
        request_seconds=arguments.timeout,
    )
    name = arguments.name or Path(arguments.model or "unif2ace-faces").name
    app = create_app(load_pipeline(arguments), name, limits, api_key)
    connections = ConnectionLimits(max_per_client=arguments.max_connections)
    config = server_config(
        app,
        arguments.host,
        arguments.port,
        connections,
        log_level="warning" if arguments.quiet else "info",
        timeout_graceful_shutdown=10,
    )
    uvicorn.Server(config).run()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
