from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lolrt

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """Inputs and outputs of the public code on random weights (tests/data/README.md)."""
    return DATA


@pytest.fixture(scope="session")
def small_dit() -> lolrt.CausalDiT:
    """A DiT of 2 layers and 2 heads of 128, in float32."""
    return lolrt.load_dit(DATA / "self_forcing_dmd_small.pt", torch.float32)


@pytest.fixture(scope="session")
def rollout_inputs() -> dict[str, torch.Tensor]:
    return load_file(DATA / "rollout_inputs.safetensors")


@pytest.fixture(scope="session")
def tiny() -> lolrt.Pipeline:
    return lolrt.load("tiny")
