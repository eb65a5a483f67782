"""The command `unif2ace demo`."""

import argparse
import os
import tempfile
from pathlib import Path

from .common import add_model_arguments, load_pipeline


EXAMPLES = """\
examples:
  unif2ace demo
  unif2ace demo --adapter glasses=runs/glasses --adapter hats=runs/hats --port 8080
"""


def add_arguments(parser: argparse.ArgumentParser):
    """The arguments of the command."""
    add_model_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="an adapter that visitors may compare; may be given several times",
    )
    parser.add_argument("--browser", action="store_true", help="open the page in a browser")


def run(arguments: argparse.Namespace):
    """Show the page until interrupted."""
    adapters = dict(_adapter(text) for text in arguments.adapter)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with tempfile.TemporaryDirectory(prefix="unif2ace-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read when gradio is imported; gone with the command
        from ..pipelines.serving.demo_page import build_page, launch_page

        pipe = load_pipeline(arguments)
        pipe.set_progress_bar_config(disable=True)
        for name, place in adapters.items():
            pipe.load_lora_weights(place, adapter_name=name)
        known = {} if arguments.model is None else {"model": Path(arguments.model).name, "what": "its own data"}
        page = build_page(pipe, adapters=list(adapters), **known)
        launch_page(page, server_name=arguments.host, server_port=arguments.port, inbrowser=arguments.browser)


def _adapter(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if not (name and equals and place):
        raise ValueError(f"--adapter {text!r} is not NAME=FOLDER")
    return name, place
