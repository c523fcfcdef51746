"""Writes a trained model in the folder layout of the runtime."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lolrt.checkpoint.quantise import int8
from lolrt.models.dit import DiTConfig
from lolrt.models.vae.layers import VAEConfig
from lolrt.train.text import Vocabulary, all_words, word_table

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


def export(
    out: Path, *, dit: DiTConfig, dit_weights: Path | None, vae: VAEConfig, vae_weights: Path, seed: int, vocabulary: Vocabulary,
    filler: list[str], settings: dict[str, Any], in_8_bits: bool = False,
) -> None:  # fmt: skip
    """Writes config, weights (bfloat16, Wan's names), text table and settings to `out`.

    dit_weights, vae_weights: checkpoints; their averaged weights are used. Without the DiT's, those in `out` stay. settings: the contents
    of model.json. in_8_bits: the matrices of the DiT are stored as int8 values with a scale for each row, in half the space.
    """
    out.mkdir(parents=True, exist_ok=True)
    wan = {"_class_name": "WanModel", "model_type": "t2v", "qk_norm": True, "cross_attn_norm": True}
    _write_json(out / "config.json", {**wan, **asdict(dit)})
    if dit_weights is not None:
        stored = _rows_in_8_bits if in_8_bits else _bfloat16
        _write_weights(out / "diffusion_pytorch_model.safetensors", stored(torch.load(dit_weights)["averaged"]))
    _write_json(out / "vae_config.json", asdict(vae))
    _write_weights(out / "vae.safetensors", _bfloat16(torch.load(vae_weights)["averaged"]))
    words, table = word_table(vocabulary, seed)
    _write_json(out / "text.json", {"groups": all_words(vocabulary, filler), "words": words, "text_len": dit.text_len})
    _write_weights(out / "text.safetensors", _bfloat16({"embedding.weight": table}))
    _write_json(out / "model.json", settings)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _bfloat16(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


def _rows_in_8_bits(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """All matrices but the head's in ComfyUI's int8 format; the rest in bfloat16."""
    stored = _bfloat16(tensors)
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and name.endswith(".weight") and not name.startswith("head."):
            layer = name.removesuffix("weight")
            stored[name], stored[f"{layer}weight_scale"], stored[f"{layer}comfy_quant"] = int8(tensor.float())
    return stored


def _write_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    path.chmod(0o644)  # safetensors writes files that only the owner can read
