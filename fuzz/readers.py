"""Fuzzes the readers of checkpoints: whatever the bytes, a reader gives a whole model whose tensors lie inside the file, or a
CheckpointError.

The first byte of an input chooses what the rest is: a safetensors file, a .pt archive, the pickle inside of one, config.json, the index
of weights in several files, or a .toml file that names the parts. The other files are sound then. Inputs that break something are to be
kept in tests/data/fuzz, and run again by tests/test_malformed.py.
"""

from __future__ import annotations

import functools
import io
import json
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from lolrt import DiTConfig
from lolrt.checkpoint import load_dit
from lolrt.checkpoint.inspect import inspect
from lolrt.checkpoint.model_files import components_of, find_files
from lolrt.checkpoint.packed import stored
from lolrt.checkpoint.shapes import dit_shapes
from lolrt.errors import CheckpointError

TARGETS = ("safetensors", "archive", "pickle", "config", "index", "toml")
TENSORS = {
    "patch_embedding.weight": torch.zeros(8, 4, 1, 2, 2),
    "blocks.0.self_attn.q.weight": torch.zeros(8, 8),
    "blocks.0.self_attn.q.bias": torch.zeros(8, dtype=torch.bfloat16),
    "head.head.bias": torch.zeros(16),
}
FP8 = torch.float8_e4m3fn
CONFIG = b'{"dim": 8, "num_heads": 1, "num_layers": 1, "patch_size": [1, 2, 2], "eps": 1e-6}'
SHARDS = ("a.safetensors", "b.safetensors")
TOML = b'dit = "weights"\nweights = "generator"\nfps = 16\nexample_prompts = ["a"]\n[sampler]\ntimesteps = [1000, 500]\nshift = 5.0\n'


@functools.cache
def whole_model() -> dict[str, Tensor]:
    """The smallest DiT that loads."""
    sizes = DiTConfig(dim=8, ffn_dim=8, freq_dim=4, text_dim=4, in_dim=1, out_dim=1, num_heads=1, num_layers=1)
    return {name: torch.zeros(shape) for name, shape in dit_shapes(sizes).items()}


@functools.cache
def sound() -> bytes:
    return save(whole_model())


@functools.cache
def halves() -> list[bytes]:
    return [save(dict(list(whole_model().items())[i::2])) for i in range(2)]


def adapters() -> dict[str, Tensor]:
    return {f"base_model.model.blocks.0.ffn.0.lora_{side}.weight": torch.zeros(2, 8) if side == "A" else torch.zeros(8, 2) for side in "AB"}


def packed(form: str) -> dict[str, Tensor]:
    """The whole model with its matrices in 8 bits."""
    found: dict[str, Tensor] = {"scaled_fp8": torch.zeros(2).to(FP8)} if form == "fp8_scaled" else {}
    for name, tensor in whole_model().items():
        layer = name.removesuffix(".weight")
        if tensor.ndim != 2 or layer == name:
            found[name] = tensor
        elif form == "blocks":
            found |= {f"{layer}.int8_weight": tensor.to(torch.int8), f"{layer}.scale": torch.ones(1, 1)}
        elif form == "rows":
            found |= {name: tensor.to(FP8), f"{layer}.weight_scale": torch.ones(len(tensor), 1)}
        elif form == "comfy_quant":
            said = torch.tensor(list(b'{"format": "int8_tensorwise"}'), dtype=torch.uint8)
            found |= {name: tensor.to(torch.int8), f"{layer}.weight_scale": torch.ones(()), f"{layer}.comfy_quant": said}
        else:
            found |= {name: tensor.to(FP8), f"{layer}.scale_weight": torch.ones(()), f"{layer}.scale_input": torch.ones(())}
    return found


def archive_of(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@functools.cache
def records() -> list[tuple[str, bytes]]:
    """Of a sound archive."""
    with zipfile.ZipFile(io.BytesIO(archive_of(TENSORS))) as archive:
        return [(record.filename, archive.read(record)) for record in archive.infolist()]


def with_pickle(pickle: bytes) -> bytes:
    """A sound archive, but for its pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in records():
            archive.writestr(name, pickle if name.endswith("data.pkl") else content)
    return buffer.getvalue()


def seeds() -> dict[str, bytes]:
    """Sound inputs, by name."""
    diffusers = {"blocks.0.attn1.to_q.weight": torch.zeros(8, 8), "condition_embedder.time_proj.bias": torch.zeros(48)}
    vae = {"decoder.up_blocks.0.resnets.0.norm1.gamma": torch.zeros(4, 1, 1, 1), "encoder.conv_in.bias": torch.zeros(4)}
    text = {"shared.weight": torch.zeros(4, 8), "encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(8, 8)}
    taehv = {"encoder.0.weight": torch.zeros(2, 3, 3, 3), "decoder.1.weight": torch.zeros(4, 2, 3, 3)}
    partial = {"wan": TENSORS, "diffusers": diffusers, "vae": vae, "lora": adapters(), "text": text, "taehv": taehv}
    found = {f"safetensors-{name}": b"\0" + save(tensors) for name, tensors in {**partial, "model": whole_model()}.items()}
    found |= {f"safetensors-{form}": b"\0" + save(packed(form)) for form in ("fp8_scaled", "comfy_quant", "rows", "blocks")}
    layers = {name.removesuffix(".weight"): {"format": "float8_e4m3fn"} for name in packed("rows") if f"{name}_scale" in packed("rows")}
    found["safetensors-header"] = b"\0" + save(packed("rows"), {"_quantization_metadata": json.dumps({"layers": layers})})
    found["archive-rows"] = b"\1" + archive_of({"generator": packed("rows")})
    trained = {"generator": {f"model.{n}": t for n, t in whole_model().items()}, "generator_lora": adapters(), "step": 3}
    for name, content in {**partial, "trained": trained}.items():
        archive = archive_of(content)
        found[f"archive-{name}"] = b"\1" + archive
        with zipfile.ZipFile(io.BytesIO(archive)) as whole:
            found[f"pickle-{name}"] = b"\2" + whole.read(next(n for n in whole.namelist() if n.endswith("data.pkl")))
    index = {name: SHARDS[i % 2] for i, name in enumerate(whole_model())}
    return {**found, "config": b"\3" + CONFIG, "index": b"\4" + json.dumps({"weight_map": index}).encode(), "toml": b"\5" + TOML}


def run(data: bytes, folder: Path) -> None:
    """One input; raises what a reader should not have raised."""
    if not data:
        return
    place = write(TARGETS[data[0] % len(TARGETS)], data[1:], folder)
    try:
        parts = find_files(place)
        places = (parts.dit, parts.lora, parts.vae, parts.text_encoder, parts.taehv)
        for file in {place for place in places if place is not None}:
            for component in components_of(file):
                for tensor in stored(component.tensors).values():
                    assert tensor.nbytes <= sum(path.stat().st_size for path in folder.iterdir())
                    tensor.contiguous().view(-1).view(torch.uint8).sum()  # every byte can be read
        assert all(line.isprintable() for line in inspect(place))
        assert all(parameter.isfinite().all() for parameter in load_dit(place).parameters())
    except CheckpointError as error:
        assert str(error).isprintable()


def write(target: str, content: bytes, folder: Path) -> Path:
    """The files of one input; returns the one to read."""
    weights, index, toml = folder / "weights", folder / "model.safetensors.index.json", folder / "model.toml"
    (folder / "config.json").write_bytes(content if target == "config" else CONFIG)
    if target == "pickle":
        content = with_pickle(content)
    weights.write_bytes(content if target in ("safetensors", "archive", "pickle") else sound())
    if target == "index":
        index.write_bytes(content)
        for shard, half in zip(SHARDS, halves(), strict=True):
            (folder / shard).write_bytes(half)
    if target == "toml":
        toml.write_bytes(content)
    return {"index": index, "toml": toml}.get(target, weights)
