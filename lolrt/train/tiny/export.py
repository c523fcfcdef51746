"""Writes a trained model in the layout that the runtime reads, and pictures of what it makes."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lolrt.models.dit import DiTConfig
from lolrt.models.vae.layers import VAEConfig
from lolrt.train.tiny.scenes import FPS, HEIGHT, WIDTH
from lolrt.train.tiny.text import vocabulary, word_table

# By eye: fresh noise in every pass heals objects better than following the flow, and six passes draw them cleaner than four.
# Twenty passes for the first chunk, which decides where the object is: with six, one in six starts as two that merge. These are the
# noise levels of twenty even steps at shift 3, said at shift 2.
SAMPLER = {
    "timesteps": [1000, 833, 667, 500, 333, 167],
    "first_timesteps": [round(3000 * k / (40 + k)) for k in range(20, 0, -1)],
    "shift": 2.0,
    "method": "renoise",
    "context_noise": 0.1,
}
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
    """Writes config, weights (bfloat16, Wan's names), text table and settings, from the checkpoints in `work` to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    wan = {"_class_name": "WanModel", "model_type": "t2v", "qk_norm": True, "cross_attn_norm": True}
    _write_json(out / "config.json", {**wan, **asdict(dit)})
    _write_weights(out / "diffusion_pytorch_model.safetensors", torch.load(work / "dit.pt")["averaged"])
    _write_json(out / "vae_config.json", asdict(vae))
    _write_weights(out / "vae.safetensors", torch.load(work / "vae.pt")["averaged"])
    words, table = word_table(seed)
    _write_json(out / "text.json", {"groups": vocabulary(), "words": words, "text_len": dit.text_len})
    _write_weights(out / "text.safetensors", {"embedding.weight": table})
    model = {"name": "tiny", "fps": FPS, "height": HEIGHT, "width": WIDTH, "sampler": SAMPLER, "example_prompts": EXAMPLE_PROMPTS}
    _write_json(out / "model.json", model)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _write_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: tensor.bfloat16().contiguous() for name, tensor in tensors.items()}, path)
    path.chmod(0o644)  # safetensors writes files that only their owner may read
