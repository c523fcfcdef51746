"""Small models with random weights, written in each layout in which models are published."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lolrt import DiTConfig, VAEConfig
from lolrt.checkpoint.names import to_diffusers, to_wan
from lolrt.checkpoint.shapes import Shapes, TextEncoderConfig, dit_shapes, text_encoder_shapes, vae_shapes

DIT = DiTConfig(dim=256, ffn_dim=320, text_dim=48, num_heads=2, num_layers=2)
VAE = VAEConfig(dim=8)
TEXT_ENCODER = TextEncoderConfig(vocab_size=300, dim=32, attention_dim=48, ffn_dim=64, num_heads=3, num_layers=2)


DIT_SHAPES, VAE_SHAPES = dit_shapes(DIT), vae_shapes(VAE)


def random(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}


def dit_tensors(seed: int = 0) -> dict[str, Tensor]:
    return random(DIT_SHAPES, seed)


def vae_tensors() -> dict[str, Tensor]:
    return random(VAE_SHAPES)


def text_encoder_tensors() -> dict[str, Tensor]:
    return random(text_encoder_shapes(TEXT_ENCODER))


def taehv_tensors(surplus: bool = False) -> dict[str, Tensor]:
    """TAEHV's tensors in bf16: the layers that have weights, as its source lists them. `surplus`: a TGrow with more outputs than it
    needs."""
    tensors: dict[str, Tensor] = {}

    def convolution(name: str, channels: int, out: int, size: int = 3, bias: bool = True) -> None:
        tensors[f"{name}.weight"] = torch.full((out, channels, size, size), 0.1, dtype=torch.bfloat16)
        if bias:
            tensors[f"{name}.bias"] = torch.zeros(out, dtype=torch.bfloat16)

    def memory(name: str, n: int) -> None:
        for i, channels in ((0, 2 * n), (2, n), (4, n)):
            convolution(f"{name}.conv.{i}", channels, n)

    convolution("encoder.0", 3, 64)
    for pool, stride in ((2, 2), (7, 2), (12, 1)):
        convolution(f"encoder.{pool}.conv", 64 * stride, 64, 1, bias=False)
        convolution(f"encoder.{pool + 1}", 64, 64, bias=False)
        for i in range(pool + 2, pool + 5):
            memory(f"encoder.{i}", 64)
    convolution("encoder.17", 64, 16)
    convolution("decoder.1", 16, 256)
    for first, n, grown, after in ((3, 256, 512 if surplus else 256, 128), (9, 128, 256, 64), (15, 64, 128, 64)):
        for i in range(first, first + 3):
            memory(f"decoder.{i}", n)
        convolution(f"decoder.{first + 4}.conv", n, grown, 1, bias=False)
        convolution(f"decoder.{first + 5}", n, after, bias=False)
    convolution("decoder.22", 64, 3)
    return tensors


def lora_tensors(rank: int, seed: int = 5) -> dict[str, Tensor]:
    """Adapters of every Linear of the blocks, with peft's names."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in DIT_SHAPES.items():
        if name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2:
            layer = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{layer}.lora_A.weight"] = torch.randn(rank, shape[1], generator=generator) * 0.05
            tensors[f"{layer}.lora_B.weight"] = torch.randn(shape[0], rank, generator=generator) * 0.05
    return tensors


def as_diffusers(kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    names = to_diffusers(kind, tensors)  # type: ignore[arg-type]
    return {other: tensors[wan].clone() for wan, others in names.items() for other in others}


def as_wan(kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {wan: tensors[other] for other, wan in to_wan(kind, tensors).items()}  # type: ignore[arg-type]


def save_wan(folder: Path, tensors: dict[str, Tensor]) -> Path:
    """config.json, without text_dim, and one file, as Wan2.1-T2V-1.3B."""
    values = asdict(DIT)
    for name in ("text_dim", "rope_dims", "patch_size"):
        del values[name]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": "WanModel", "model_type": "t2v", **values}))
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return folder


def save_sharded(folder: Path, tensors: dict[str, Tensor], shards: int = 3, stem: str = "diffusion_pytorch_model") -> Path:
    folder.mkdir(parents=True)
    weight_map = {}
    for i in range(shards):
        names = list(tensors)[i::shards]
        file = f"{stem}-{i + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def save_diffusers(folder: Path, tensors: dict[str, Tensor]) -> Path:
    """The transformer of a diffusers folder, in shards."""
    save_sharded(folder / "transformer", as_diffusers("dit", tensors))
    heads = {"num_attention_heads": DIT.num_heads, "attention_head_dim": DIT.head_dim, "in_channels": 16, "out_channels": 16}
    sizes = {"ffn_dim": DIT.ffn_dim, "freq_dim": 256, "text_dim": DIT.text_dim, "num_layers": DIT.num_layers, "patch_size": [1, 2, 2]}
    (folder / "transformer" / "config.json").write_text(json.dumps({"_class_name": "WanTransformer3DModel", **heads, **sizes}))
    return folder


def save_pt(group: str | None, rename: Callable[[str], str], others: tuple[str, ...] = ()) -> Callable[[Path, dict[str, Tensor]], Path]:
    """A writer of .pt files with the weights in `group`, and different weights with the same names in `others`."""

    def save(folder: Path, tensors: dict[str, Tensor]) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        renamed = {rename(name): tensor for name, tensor in tensors.items()}
        content = renamed if group is None else {other: {name: -tensor for name, tensor in renamed.items()} for other in others}
        torch.save(content if group is None else {**content, group: renamed, "step": 1000, "optimizer": {"lr": 1e-5}}, folder / "x.pt")
        return folder / "x.pt"

    return save


def fsdp(name: str) -> str:
    """As FSDP saves a model that was wrapped as a whole and block by block."""
    first, _, rest = name.partition(".")
    number, _, inner = rest.partition(".")
    return "model._fsdp_wrapped_module." + (f"blocks.{number}._fsdp_wrapped_module.{inner}" if first == "blocks" else name)


def save_safetensors(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "weights of some model.safetensors")
    return folder / "weights of some model.safetensors"


DIT_LAYOUTS: dict[str, Callable[[Path, dict[str, Tensor]], Path]] = {
    "Wan": save_wan,
    "Wan, one file": save_safetensors,
    "diffusers": save_diffusers,
    "Self-Forcing": save_pt("generator_ema", "model.{}".format, others=("generator", "critic")),
    "Self-Forcing, FSDP": save_pt("generator_ema", fsdp, others=("generator",)),
    "net.": save_pt("generator", "net.{}".format, others=("critic",)),
    "LongLive base": save_pt("generator", "model.{}".format),
    "LongLive base, model": save_pt("model", "model.{}".format),
    "Causal-Forcing": save_pt("generator", "model._fsdp_wrapped_module.{}".format),
    "bare": save_pt(None, str),
}
