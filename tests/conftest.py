"""Fixtures that several test files share. (Pytest runs with `--confcutdir=tests`: see pyproject.toml.)"""

import copy
import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest


# Tiny models gain nothing from threads, which only wait for each other; the processes that tests start inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from hypothesis import settings
from local_hub import TOKEN, LocalHub
from safetensors.torch import load_file
from tiny_checkpoint import save_tiny_checkpoint, tiny_pipeline

from unif2ace.modeling_unif2ace import UniF2aceForConditionalGeneration, get_preset


# The same examples in every run; `pytest --hypothesis-profile=explore` looks for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("repeatable")


@pytest.fixture(scope="module")
def built():
    """A fresh `tiny` model in evaluation mode; not to be changed: `model` is a copy for each test."""
    torch.manual_seed(0)
    return UniF2aceForConditionalGeneration(get_preset("tiny")).eval()


@pytest.fixture
def model(built):
    """A copy of `built` for one test."""
    return copy.deepcopy(built)


@pytest.fixture(scope="module")
def pipe():
    """A pipeline of tiny size (`tiny_checkpoint.TEXTS` are the words that it knows); not to be changed."""
    return tiny_pipeline()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The same as a folder; not to be changed."""
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub for this process and its children: `hub.environment` is what children need."""
    with LocalHub() as hub:
        constants = {
            "HF_HUB_OFFLINE": False,
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": True,
        }
        for name, value in constants.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
        hub.environment = inherited | {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        yield hub


class ShowoRecordings:
    """
    Tensors recorded from the original Show-o on a tiny random checkpoint: `readme` describes them, `load` reads one.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.readme = json.loads((folder / "README.json").read_text(encoding="utf-8"))
        self.geometry = self.readme["geometry"]

    def load(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def about(self, name: str) -> dict:
        return self.readme["files"][f"{name}.safetensors"]


@pytest.fixture(scope="session")
def showo_recordings():
    """Read from the folder named in UNIF2ACE_FIXTURES (itself, or its `showo/`), else beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
    folder = Path(os.environ.get("UNIF2ACE_FIXTURES", beside))
    folder = folder / "showo" if (folder / "showo").is_dir() else folder
    if not (folder / "README.json").is_file():
        pytest.skip(f"no recordings of the original Show-o in {folder}: name their folder in UNIF2ACE_FIXTURES")
    return ShowoRecordings(folder)


@pytest.fixture(scope="session")
def showo_sources(showo_recordings, tmp_path_factory):
    """The arguments of `convert_showo` that bring the recorded checkpoint in, as downloads would lie on the disk."""
    folder, recordings = tmp_path_factory.mktemp("showo-sources"), showo_recordings
    for name in ("magvitv2", "phi"):
        (folder / name).mkdir()
    shutil.copytree(recordings.folder / "showo_ckpt", folder / "show-o")
    shutil.copy(
        recordings.folder / "magvitv2_state_dict.safetensors", folder / "magvitv2" / "pytorch_model.safetensors"
    )
    shutil.copy(recordings.folder / "base_tokenizer.json", folder / "phi" / "tokenizer.json")
    (folder / "phi" / "config.json").write_text(json.dumps(recordings.readme["phi_config"]))
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return {
        "source": folder / "show-o",
        "magvit": folder / "magvitv2",
        "text_model": folder / "phi",
        "max_text_length": recordings.geometry["max_seq"],
    }


@pytest.fixture(scope="session")
def showo_folder(showo_sources, tmp_path_factory):
    """The recorded checkpoint converted as it is, without experts."""
    from unif2ace.training.convert.showo import convert_showo
    from unif2ace.training.convert.showo_layout import ExpertChoice

    folder = tmp_path_factory.mktemp("showo-converted") / "dense"
    convert_showo(destination=folder, experts=ExpertChoice("none"), **showo_sources)
    return folder


@pytest.fixture(scope="session")
def showo(showo_folder):
    """The recorded checkpoint as a model; not to be changed."""
    return UniF2aceForConditionalGeneration.from_pretrained(showo_folder).eval()


@pytest.fixture(scope="session")
def talking_checkpoint(tmp_path_factory):
    """A new tiny model that has room for full captions, with a real tokenizer, saved as a pipeline."""
    from unif2ace import UniF2acePipeline, UniF2aceProcessor, UniF2aceScheduler
    from unif2ace.training.synthetic.painted.dataset import painted_face
    from unif2ace.training.train_text_tokenizer import build_tokenizer

    torch.manual_seed(0)
    config = get_preset("tiny")
    config.max_text_length, config.text_config.max_position_embeddings = 400, 1024  # its few words make long texts
    model = UniF2aceForConditionalGeneration(config).eval()
    texts = [text for index in range(20) for text in painted_face(index, "test", size=16).captions]
    tokenizer = build_tokenizer(texts, config.text_vocab_size, config.vq_config.num_bits)
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    UniF2acePipeline(model, UniF2aceScheduler(), UniF2aceProcessor.from_config(config, tokenizer)).save_pretrained(
        folder
    )
    return folder


class ChatServer(ThreadingHTTPServer):
    """Answers every request with the next of `replies`, the last one for ever; keeps what it was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), ChatHandler)
        self.replies, self.requests, self.lock = [], [], threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def next_reply(self, request):
        with self.lock:
            self.requests.append(request)
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return reply(request) if callable(reply) else reply


class ChatHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request["path"], request["key"] = self.path, self.headers["Authorization"]
        reply = self.server.next_reply(request)
        if isinstance(reply, bytes):  # not a chat completion at all
            return self.send(200, reply)
        if isinstance(reply, int):
            return self.send(reply, b'{"error": {"message": "as asked for"}}')
        content, reason = reply if isinstance(reply, tuple) else (reply, "stop")
        message = {"role": "assistant", "content": content}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": request["model"]}
        body["choices"] = [{"index": 0, "message": message, "finish_reason": reason}]
        self.send(200, json.dumps(body).encode())

    def send(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def chat_server():
    """A running [`ChatServer`]."""
    server = ChatServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
