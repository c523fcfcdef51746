"""Larger models of the family: of the 14B's shape, with two of its forty layers."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lolrt
from lolrt.checkpoint import find_files
from lolrt.checkpoint.shapes import dit_config, dit_shapes
from lolrt.cli import main
from lolrt.memory_plan import plan

pytestmark = pytest.mark.slow  # the two layers take 1.9 GB

# Wan2.1-T2V-14B's config.json, and so Krea Realtime's.
WHOLE = lolrt.DiTConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
PARAMETERS = 14_288_491_584  # the index of its float32 files states 57,153,966,336 bytes


@pytest.fixture(scope="module")
def krea(tmp_path_factory) -> Path:
    """In Krea Realtime's layout: one file of bfloat16, Wan's names under `model.`."""
    path = tmp_path_factory.mktemp("14b") / "krea-realtime-video-14b.safetensors"
    noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).bfloat16()
    tensors = {}
    for name, shape in dit_shapes(replace(WHOLE, num_layers=2)).items():
        count = math.prod(shape)
        values = noise.repeat(-(-count // len(noise)))[:count].view(shape)
        scale = (count / shape[0]) ** -0.5 if len(shape) > 1 else 0.02
        tensors[f"model.{name}"] = (values * scale).add_(1 if "norm" in name and name.endswith("weight") else 0)
    save_file(tensors, path)
    return path


def test_a_model_of_the_14b_is_planned_loaded_and_streams(krea, capsys):
    config = dit_config(find_files(krea).components(krea)[0])
    assert config == replace(WHOLE, num_layers=2) and config.head_dim == 128
    planned = plan(config, lolrt.VAEConfig(), 480, 832, passes=4)
    dit = lolrt.load_dit(krea, torch.bfloat16)
    with krea.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    assert planned.weights["DiT"] == sum(parameter.nbytes for parameter in dit.parameters()) == krea.stat().st_size - 8 - header
    stream = lolrt.LatentStream(dit, torch.randn(9, 4096), 8, 8, sampler=lolrt.Sampler(timesteps=(1000,)))
    chunks = torch.cat([chunk.latents for chunk in islice(stream, 2)])
    assert chunks.shape == (6, 16, 8, 8) and chunks.isfinite().all() and chunks.std() > 0.1
    assert main(["inspect", str(krea)]) == 0
    assert "dim 5120, ffn_dim 13824" in capsys.readouterr().out


def test_the_whole_14b_is_planned():
    shapes = dit_shapes(WHOLE)
    assert sum(map(math.prod, shapes.values())) == PARAMETERS
    assert plan(WHOLE, lolrt.VAEConfig(), 480, 832, passes=4).weights["DiT"] == 2 * PARAMETERS
