"""Fixtures that several test files share. (Pytest runs with `--confcutdir=tests`: see pyproject.toml.)"""

import copy
import os

import huggingface_hub
import pytest
import torch
from local_hub import TOKEN, LocalHub

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
