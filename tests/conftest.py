"""Shared fixtures."""

import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch.utils.tensorboard  # noqa: F401  its own imports warn


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
