"""Fixtures that several test files share. (Pytest runs with `--confcutdir=tests`: see pyproject.toml.)"""

import copy
import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from local_hub import TOKEN, LocalHub
from safetensors.torch import load_file

from unif2ace.modeling_unif2ace import UniF2aceForConditionalGeneration, get_preset


@pytest.fixture(scope="module")
def built():
    """A fresh `tiny` model in evaluation mode; not to be changed: `model` is a copy for each test."""
    torch.manual_seed(0)
    return UniF2aceForConditionalGeneration(get_preset("tiny")).eval()


@pytest.fixture
def model(built):
    """A copy of `built` for one test."""
    return copy.deepcopy(built)


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
    from unif2ace.training.convert_run import convert_showo
    from unif2ace.training.convert_showo import ExpertChoice

    folder = tmp_path_factory.mktemp("showo-converted") / "dense"
    convert_showo(destination=folder, experts=ExpertChoice("none"), **showo_sources)
    return folder


@pytest.fixture(scope="session")
def showo(showo_folder):
    """The recorded checkpoint as a model; not to be changed."""
    return UniF2aceForConditionalGeneration.from_pretrained(showo_folder).eval()
