"""The peak of memory while a model is loaded, for every layout, or gets other adapters: below 1.2 times the larger of its file and its
weights."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import layouts
import packings
import pytest
import torch
from ggufs import save_gguf
from packings import E4M3, KITCHEN, PACKINGS
from safetensors.torch import save_file
from spieces import train
from test_gguf import t5_names, tokenizer_fields
from torch import Tensor

import lolrt
from lolrt.checkpoint.shapes import Shapes, TextEncoderConfig, dit_shapes, taehv_shapes, text_encoder_shapes, vae_shapes
from lolrt.models.vae.taehv import TAEHVConfig

pytestmark = pytest.mark.slow  # files of 100 to 500 MB

# Large enough that one tensor, and the pieces in which tensors are unpacked, are a small part: 88 million parameters.
DIT = lolrt.DiTConfig(dim=1024, ffn_dim=3072, text_dim=64, num_heads=8, num_layers=5)
VAE = lolrt.VAEConfig(dim=64)
TAEHV = TAEHVConfig(encoder_width=256, decoder_widths=(768, 384, 192, 192))
TEXT_ENCODER = TextEncoderConfig(vocab_size=8192, dim=1024, attention_dim=1024, ffn_dim=2816, num_heads=16, num_layers=6)

# In a process of its own: its peak is that of the loading alone, once libraries have been loaded by a small model of the same layout.
LOADING = """
import gc, sys, torch, lolrt
from lolrt.checkpoint import read_component
from lolrt.checkpoint.load import with_lora
from lolrt.text.umt5 import UMT5Encoder

def resident(field):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(field))

def load(path):
    if kind == "dit":
        return lolrt.load_dit(path, getattr(torch, dtype))
    if kind == "vae":
        return lolrt.load_vae(path, dtype=getattr(torch, dtype))
    if kind in ("TAEHV", "LightTAE"):
        return lolrt.load_taehv(path, getattr(torch, dtype), raw_latents=kind == "LightTAE")
    if kind == "set_lora":
        return with_lora(plain, path + "/lora.safetensors")
    return UMT5Encoder(read_component(path, "text_encoder"), None)._model

kind, dtype, small, path = sys.argv[1:]
plain = None
for folder in (small, path):
    if kind == "set_lora":
        plain = lolrt.load_dit(folder + "/x.safetensors", getattr(torch, dtype))  # a stream's model, which stays until it has the other
    if folder == small:
        load(small)
gc.collect()
open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
before = resident("VmRSS")
model = load(path)
print(resident("VmHWM") - before, sum(parameter.nbytes for parameter in model.parameters()))
"""

Write = Callable[[Path, dict[str, Tensor]], object]


def values(shapes: Shapes) -> dict[str, Tensor]:
    """Values that differ and are cheap to make."""
    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02
    counts = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    return {name: noise.repeat(-(-count // len(noise)))[:count].view(shapes[name]) for name, count in counts.items()}


def in_floats(dtype: torch.dtype, prefix: str = "") -> Write:
    return lambda folder, tensors: save_file({prefix + n: t.to(dtype) for n, t in tensors.items()}, folder / "x.safetensors")


def packed(packing: Callable[[dict[str, Tensor]], packings.Packed]) -> Write:
    return lambda folder, tensors: packings.save(folder / "x.safetensors", packing(tensors))


def gguf(kind: str) -> Write:
    return lambda folder, tensors: save_gguf(folder / "x.gguf", tensors, kind)


def averaged(folder: Path, tensors: dict[str, Tensor]) -> None:
    """As FSDP saves Self-Forcing: two sets of weights in one file."""
    layouts.save_pt("generator_ema", layouts.fsdp, others=("generator",))(folder, {name: t.bfloat16() for name, t in tensors.items()})


def with_lora(folder: Path, tensors: dict[str, Tensor], dtype: torch.dtype = torch.bfloat16, rank: int = 4) -> None:
    """One adapter of every linear layer of the blocks."""
    in_floats(dtype)(folder, tensors)
    pairs = {}
    for name, tensor in tensors.items():
        if packings.is_linear(name, tensor):
            layer = f"diffusion_model.{name.removesuffix('.weight')}"
            pairs |= {
                f"{layer}.lora_A.weight": torch.zeros(rank, tensor.shape[1]),
                f"{layer}.lora_B.weight": torch.zeros(len(tensor), rank),
            }
    save_file(pairs, folder / "lora.safetensors")


def diffusers(folder: Path, tensors: dict[str, Tensor]) -> None:
    layouts.save_sharded(folder / "transformer", layouts.as_diffusers("dit", {name: t.bfloat16() for name, t in tensors.items()}))


DITS: dict[str, Write] = {
    "Wan, float32": in_floats(torch.float32),
    "Wan, bf16": in_floats(torch.bfloat16),
    "diffusers, shards": diffusers,
    "Self-Forcing, FSDP": averaged,
    **{name: packed(packing) for name, packing in {**PACKINGS, **KITCHEN}.items()},
    **{f"GGUF, {kind}": gguf(kind) for kind in ("F16", "BF16", "Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")},
}


def umt5(dtype: torch.dtype, names: str) -> Write:
    """With the tokenizer inside, as in ComfyUI's file. Weights in fp8 have no scales."""

    def write(folder: Path, tensors: dict[str, Tensor]) -> None:
        named = tensors if names == "Wan" else layouts.as_diffusers("text_encoder", tensors)
        file = {
            name: tensor.to(dtype if tensor.ndim > 1 else torch.bfloat16) for name, tensor in named.items() if "embed_tokens" not in name
        }
        save_file({**file, "spiece_model": torch.tensor(list(train(folder)), dtype=torch.uint8)}, folder / "x.safetensors")

    return write


def umt5_gguf(folder: Path, tensors: dict[str, Tensor]) -> None:
    import sentencepiece

    fields = tokenizer_fields(sentencepiece.SentencePieceProcessor(model_proto=train(folder)))
    save_gguf(folder / "x.gguf", {t5_names(name): tensor for name, tensor in tensors.items()}, "Q8_0", "t5encoder", fields)


def umt5_scaled(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Comfy-Org's fp8_e4m3fn_scaled."""
    file: dict[str, Tensor] = {"spiece_model": torch.tensor(list(train(folder)), dtype=torch.uint8), "scaled_fp8": torch.zeros(2).to(E4M3)}
    for name, tensor in layouts.as_diffusers("text_encoder", tensors).items():
        if "SelfAttention" in name or "DenseReluDense" in name:
            file |= {name: (tensor * 100).to(E4M3), f"{name.removesuffix('weight')}scale_weight": torch.tensor(0.01)}
        elif name != "encoder.embed_tokens.weight":
            file[name] = tensor.half()
    save_file(file, folder / "x.safetensors")


TEXT_ENCODERS: dict[str, Write] = {
    "bf16 with Wan's names": umt5(torch.bfloat16, "Wan"),
    "fp16 of ComfyUI": umt5(torch.float16, "transformers"),
    "fp8 of Kijai": umt5(E4M3, "Wan"),
    "fp8_scaled of ComfyUI": umt5_scaled,
    "GGUF": umt5_gguf,
}
VAES: dict[str, Write] = {
    "Wan2.1_VAE.pth": lambda folder, tensors: torch.save(tensors, folder / "x.pth"),
    "ComfyUI, fp16": in_floats(torch.float16),
    "Kijai, bf16": in_floats(torch.bfloat16, "model."),
    "fp8": in_floats(E4M3),
    "diffusers": lambda folder, tensors: save_file(layouts.as_diffusers("vae", tensors), folder / "x.safetensors"),
}

TAEHVS: dict[str, Write] = {
    "taew2_1.pth": lambda folder, tensors: torch.save({name: tensor.half() for name, tensor in tensors.items()}, folder / "x.pth"),
    "safetensors, fp16": in_floats(torch.float16),
    "safetensors, float32": in_floats(torch.float32),
}
ADAPTED: dict[str, Write] = {
    "bf16": with_lora,
    "float32": lambda folder, tensors: with_lora(folder, tensors, torch.float32),
}


def peak(kind: str, dtype: str, write: Write, shapes: Shapes, small: Shapes, folder: Path) -> None:
    for name, of in (("small", small), ("large", shapes)):
        (folder / name).mkdir(parents=True)
        write(folder / name, values(of))
    file = max(path.stat().st_size for path in (folder / "large").rglob("*") if path.is_file())
    # malloc then gives large blocks back at once. Otherwise what it keeps for later differs from run to run, by the largest tensor.
    variables = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
    command = [sys.executable, "-c", LOADING, kind, dtype, folder / "small", folder / "large"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=variables)
    shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr[-2000:]
    most, weights = map(int, done.stdout.split())
    assert weights >= 100e6, "it is large enough to be measured"
    assert most < 1.2 * max(file, weights), f"{most / 1e6:.0f} MB for a file of {file / 1e6:.0f} and weights of {weights / 1e6:.0f}"


@pytest.mark.parametrize("layout", DITS)
def test_a_dit(layout, tmp_path):
    if layout in KITCHEN:
        pytest.importorskip("comfy_kitchen")
    peak("dit", "bfloat16", DITS[layout], dit_shapes(DIT), dit_shapes(packings.DIT), tmp_path / "x")


def test_a_base_and_a_lora_almost_as_large(tmp_path):
    """Of LongLive's rank. What merges one weight takes a few times its size, so there are more layers here."""
    shapes = dit_shapes(replace(DIT, num_layers=10))
    peak("dit", "bfloat16", partial(with_lora, rank=256), shapes, dit_shapes(packings.DIT), tmp_path / "x")


@pytest.mark.parametrize("layout", TEXT_ENCODERS)
def test_a_text_encoder(layout, tmp_path):
    for name in ("transformers", "ftfy", "sentencepiece"):
        pytest.importorskip(name)
    shapes = (text_encoder_shapes(config) for config in (TEXT_ENCODER, layouts.TEXT_ENCODER))
    peak("text_encoder", "bfloat16", TEXT_ENCODERS[layout], *shapes, tmp_path / "x")


@pytest.mark.parametrize("layout", VAES)
def test_a_vae(layout, tmp_path):
    peak("vae", "bfloat16", VAES[layout], vae_shapes(VAE), vae_shapes(layouts.VAE), tmp_path / "x")


@pytest.mark.parametrize("kind", ["TAEHV", "LightTAE"])
@pytest.mark.parametrize("layout", TAEHVS)
def test_a_small_decoder(kind, layout, tmp_path):
    peak(kind, "bfloat16", TAEHVS[layout], taehv_shapes(TAEHV), taehv_shapes(TAEHVConfig()), tmp_path / "x")


@pytest.mark.parametrize("layout", ADAPTED)
def test_other_adapters_of_a_stream(layout, tmp_path):
    """The weights that they change are there twice until the stream has the new ones; nothing else is."""
    peak("set_lora", "bfloat16", ADAPTED[layout], dit_shapes(DIT), dit_shapes(packings.DIT), tmp_path / "x")
