"""Exports `journey`: its settings, and its model folder, from which another training can go on."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from lolrt.models.dit import DiTConfig
from lolrt.models.vae.layers import VAEConfig
from lolrt.train import export as layout
from lolrt.train.codec_pca import load_codec
from lolrt.train.journey.world import FILLER, FPS, HEIGHT, VOCABULARY, WIDTH

CODEC = "codec.safetensors"
ROPE = {"spread": "stratified"}
# By eye: with fresh noise in every pass, as `tiny` has it, all that is far away becomes a blur; following the flow keeps windows and trees.
SAMPLER = {**layout.SAMPLER, "method": "euler"}
EXAMPLE_PROMPTS = [
    "a red car driving slowly through the town on a clear day",
    "a white horse galloping fast through the desert at dusk in clear light",
    "a yellow bus driving fast through the city at night in the rain",
    "a blue balloon drifting slowly over the hills at dawn in fog",
    "a green car driving fast along the sea at noon in clear weather",
    "a white bus driving slowly through the forest by day in snow",
    "a red balloon drifting fast over the sea at sunset in clear skies",
    "a yellow horse galloping slowly through the town at night in snow",
]


def export(work: Path, out: Path, dit: DiTConfig, vae: VAEConfig, seed: int, *, with_dit: bool = True) -> None:
    """Writes the model whose checkpoints are in `work` to `out`. Its DiT is in 8 bits, so that the package stays small. with_dit:
    whether to write it; otherwise the one in `out` stays."""
    settings = {
        "name": "journey", "fps": FPS, "height": HEIGHT, "width": WIDTH,
        "sampler": SAMPLER, "rope": ROPE, "example_prompts": EXAMPLE_PROMPTS,
    }  # fmt: skip
    layout.export(
        out, dit=dit, dit_weights=work / "dit.pt" if with_dit else None, vae=vae, vae_weights=work / "vae.pt", seed=seed,
        vocabulary=VOCABULARY, filler=FILLER, settings=settings, in_8_bits=True,
    )  # fmt: skip
    save_file({name: torch.as_tensor(value).clone() for name, value in vars(load_codec(work)).items()}, out / CODEC)
    (out / CODEC).chmod(0o644)  # safetensors writes files that only the owner can read
    shutil.copyfile(work / "training.log", out / "training.log")
