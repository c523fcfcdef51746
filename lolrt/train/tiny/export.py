"""Exports `tiny`: its settings, and its model folder."""

import shutil
from pathlib import Path

from lolrt.models.dit import DiTConfig
from lolrt.models.vae.layers import VAEConfig
from lolrt.train import export as layout
from lolrt.train.tiny.scenes import FILLER, FPS, HEIGHT, VOCABULARY, WIDTH

# Videos fall back to their beginning less than with drawn bases or plain RoPE (docs/collapse.md), and keep their subject no worse.
ROPE = {"spread": "stratified"}
EXAMPLE_PROMPTS = [
    "a red balloon drifting over the hills at dusk",
    "a white sailboat on the sea at night",
    "a blue car driving through the desert at noon",
    "a yellow balloon over the mountains at dawn",
    "a green boat sailing by the mountains at sunset",
    "a red car by the sea at sunrise",
    "a blue balloon over the dunes at night",
    "a yellow car driving through the hills by day",
]


def export(work: Path, out: Path, dit: DiTConfig, vae: VAEConfig, seed: int) -> None:
    """Writes the model whose checkpoints are in `work` to `out`."""
    own = {"sampler": layout.SAMPLER, "rope": ROPE, "example_prompts": EXAMPLE_PROMPTS}
    settings = {"name": "tiny", "fps": FPS, "height": HEIGHT, "width": WIDTH, **own}
    layout.export(
        out, dit=dit, dit_weights=work / "dit.pt", vae=vae, vae_weights=work / "vae.pt", seed=seed, vocabulary=VOCABULARY,
        filler=FILLER, settings=settings,
    )  # fmt: skip
    shutil.copyfile(work / "training.log", out / "training.log")
