"""Fixtures that several test files share. (Pytest runs with `--confcutdir=tests`: see pyproject.toml.)"""

import copy

import pytest
import torch

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
