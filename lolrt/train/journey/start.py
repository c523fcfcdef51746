"""What a training that goes on from an exported model takes from it: the codec, the VAE, and the weights of the DiT.

Momentum is not kept: it would be as large as the weights, and is there again after some dozens of steps.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from lolrt.checkpoint.load import load_dit
from lolrt.models.dit import CausalDiT
from lolrt.train.journey.export import CODEC


def take_over(folder: Path, work: Path) -> None:
    """Puts codec, VAE and log of the model in `folder` into `work`, where they are not there yet; the DiT is for `start_from`."""
    if not (work / "pca.pt").exists():
        torch.save(load_file(folder / CODEC), work / "pca.pt")
        torch.save({"averaged": {name: x.float() for name, x in load_file(folder / "vae.safetensors").items()}}, work / "vae.pt")
        (work / "training.log").write_bytes((folder / "training.log").read_bytes())


def start_from(folder: Path, model: CausalDiT) -> None:
    model.load_state_dict(load_dit(folder, torch.float32).state_dict())
