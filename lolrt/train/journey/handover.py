"""What a training hands over to one that goes on elsewhere: the codec, the VAE, and the averaged weights of the DiT.

Momentum is left behind: it is as large as the weights, and is there again after some dozens of steps.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lolrt.models.dit import CausalDiT
from lolrt.train.codec_pca import load_codec


def hand_over(work: Path, folder: Path) -> None:
    """Writes codec.safetensors (float32), and vae.safetensors and dit.safetensors (bfloat16) from the checkpoints in `work`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.as_tensor(value).clone() for name, value in vars(load_codec(work)).items()}, folder / "codec.safetensors")
    for name in ("vae", "dit"):
        averaged = torch.load(work / f"{name}.pt")["averaged"]
        save_file({key: value.bfloat16().contiguous() for key, value in averaged.items()}, folder / f"{name}.safetensors")
    (folder / "training.log").write_bytes((work / "training.log").read_bytes())
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes files that only the owner can read


def take_over(folder: Path, work: Path) -> None:
    """Puts codec, VAE and log into `work`, where they are not there yet; the DiT is for `start_from`."""
    if not (work / "pca.pt").exists():
        torch.save(load_file(folder / "codec.safetensors"), work / "pca.pt")
        torch.save({"averaged": {name: x.float() for name, x in load_file(folder / "vae.safetensors").items()}}, work / "vae.pt")
        (work / "training.log").write_bytes((folder / "training.log").read_bytes())


def start_from(folder: Path, model: CausalDiT) -> None:
    model.load_state_dict({name: x.float() for name, x in load_file(folder / "dit.safetensors").items()})
