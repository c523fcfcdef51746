"""Fuzzes the readers of checkpoints: for any bytes, a reader returns a whole model whose tensors lie inside the file, or raises
CheckpointError.

The first byte of an input chooses the type of the rest: a safetensors file, a .pt archive, the pickle inside of one, config.json, the
index of weights in several files, a .toml file that names the parts, a GGUF file, adapters, or their config. The other files of the
model are then valid. Keep inputs that break something in tests/data/fuzz; tests/test_malformed.py runs them again.
"""

from __future__ import annotations

import functools
import io
import json
import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from lolrt import DiTConfig
from lolrt.checkpoint import load_dit, load_taehv, load_vae
from lolrt.checkpoint.ggml import BLOCKS, TYPES
from lolrt.checkpoint.inspect import inspect
from lolrt.checkpoint.model_files import components_of, find_files
from lolrt.checkpoint.packed import Packed, stored
from lolrt.checkpoint.shapes import dit_shapes, taehv_shapes
from lolrt.checkpoint.tokenizer import read_tokenizer
from lolrt.errors import CheckpointError
from lolrt.models.vae.taehv import TAEHVConfig

TARGETS = ("safetensors", "archive", "pickle", "config", "index", "toml", "gguf", "lora", "adapter_config")
TENSORS = {
    "patch_embedding.weight": torch.zeros(8, 4, 1, 2, 2),
    "blocks.0.self_attn.q.weight": torch.zeros(8, 8),
    "blocks.0.self_attn.q.bias": torch.zeros(8, dtype=torch.bfloat16),
    "head.head.bias": torch.zeros(16),
}
# SentencePiece's file with four pieces and a rule (a becomes b), written out: kinds and lengths before each value.
PIECES = ((b"<pad>", 0.0, 3), (b"</s>", 0.0, 3), (b"<unk>", 0.0, 2), ("▁".encode(), -1.5, 1))
SPIECE = b"".join(
    b"\x0a" + bytes([len(text) + 9, 0x0A, len(text)]) + text + b"\x15" + struct.pack("<f", score) + bytes([0x18, kind])
    for text, score, kind in PIECES
)
TRIE = {96: 1 << 31, 97: 97 | 1 << 8 | 1 << 10}  # the leaf for "a", which points to the first text, and what leads to it
RULES = struct.pack("<257I", 1024, *(TRIE.get(i, 0) for i in range(256))) + b"b\0"
SPIECE += b"\x12\x02\x18\x01" + b"\x1a\x8b\x08\x12\x86\x08" + RULES + b"\x20\x01"  # a unigram model; extra spaces are removed
FP8 = torch.float8_e4m3fn
CONFIG = b'{"_class_name": "WanModel", "model_type": "t2v", "dim": 8, "num_heads": 1, "num_layers": 1, "patch_size": [1, 2, 2]}'
SHARDS = ("a.safetensors", "b.safetensors")
LORA_TOML = b'dit = "weights"\nlora = "adapters/adapters"\n'
ADAPTER_CONFIG = b'{"r": 2, "lora_alpha": 4, "use_rslora": true, "alpha_pattern": {"ffn.0": 2}, "peft_type": "LORA"}'
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


def other_adapters() -> dict[str, dict[str, Tensor]]:
    """One tensor of every kind that is read."""
    layer, pair = "diffusion_model.blocks.0.ffn.0", {"lora_down.weight": torch.zeros(2, 8), "lora_up.weight": torch.zeros(8, 2)}
    hada = {f"hada_w{i}_{side}": torch.ones(8, 2) if side == "a" else torch.ones(2, 8) for i in (1, 2) for side in "ab"}
    kinds = {
        "comfy": {**pair, "alpha": torch.tensor(1.0), "diff_b": torch.zeros(8)},
        "dora": {**pair, "dora_scale": torch.ones(8, 1)},
        "loha": hada,
        "lokr": {"lokr_w1": torch.ones(2, 2), "lokr_w2_a": torch.ones(4, 1), "lokr_w2_b": torch.ones(1, 4)},
    }
    found = {kind: {f"{layer}.{part}": tensor for part, tensor in parts.items()} for kind, parts in kinds.items()}
    kohya = {f"lora_unet_blocks_0_ffn_0.{part}": tensor for part, tensor in pair.items()}
    return {**found, "kohya": kohya, "modulation": {"blocks.0.diff_m": torch.zeros(1, 6, 8), "head.diff_m": torch.zeros(1, 2, 8)}}


def gguf(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], fields: dict[str, tuple[int, bytes]]) -> bytes:
    """A GGUF file. tensors: type, shape and bytes, by name; fields: type and bytes, by key."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    numbers = {name: number for number, name in TYPES.items()}
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    header += b"".join(text(key) + struct.pack("<I", kind) + value for key, (kind, value) in fields.items())
    data = b""
    for name, (kind, shape, content) in tensors.items():
        header += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), numbers[kind], len(data))
        data += content + bytes(-len(content) % 32)
    return header + bytes(-len(header) % 32) + data


def ggufs() -> dict[str, bytes]:
    """A DiT in floats, and part of a text encoder with one matrix of every block format, and a tokenizer."""
    plain = {name: ("F16", tuple(tensor.shape), bytes(2 * tensor.numel())) for name, tensor in whole_model().items()}
    blocks = {
        f"enc.blk.{i}.attn_q.weight": (kind, (2, 256), bytes(512 // BLOCKS[kind].values * BLOCKS[kind].bytes))
        for i, kind in enumerate(BLOCKS)
    }
    norms = {f"enc.blk.{i}.attn_norm.weight": ("F32", (8,), bytes(32)) for i in range(len(BLOCKS))}
    table = {"token_embd.weight": ("Q8_0", (3, 32), bytes(3 * 34))}
    tokens = b"".join(struct.pack("<Q", len(token)) + token for token in (b"<pad>", b"</s>", b"<unk>"))
    tokenizer = {
        "general.architecture": (8, struct.pack("<Q", 9) + b"t5encoder"),
        "comfy.gguf.orig_shape.token_embd.weight": (9, struct.pack("<IQii", 5, 2, 3, 32)),
        "tokenizer.ggml.model": (8, struct.pack("<Q", 2) + b"t5"),
        "tokenizer.ggml.tokens": (9, struct.pack("<IQ", 8, 3) + tokens),
        "tokenizer.ggml.scores": (9, struct.pack("<IQfff", 6, 3, 0, 0, 0)),
        "tokenizer.ggml.token_type": (9, struct.pack("<IQiii", 5, 3, 3, 3, 2)),
        "tokenizer.ggml.eos_token_id": (4, struct.pack("<I", 1)),
    }
    sizes = {"patch_embedding.weight": (16, 1, 2, 2), "blocks.0.modulation": (6, 8), "head.modulation": (2, 8)}
    sizes |= {"head.head.weight": (8, 8), "head.head.bias": (8,)}  # of two channels
    of_ggml = {name: ("F16", shape, bytes(2 * math.prod(shape))) for name, shape in sizes.items()}
    return {
        "dit": gguf(plain, {"general.architecture": (8, struct.pack("<Q", 3) + b"wan")}),
        "sizes": gguf(plain | of_ggml, {}),
        "text": gguf({**blocks, **norms, **table}, tokenizer),
    }


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
    """The records of a valid archive."""
    with zipfile.ZipFile(io.BytesIO(archive_of(TENSORS))) as archive:
        return [(record.filename, archive.read(record)) for record in archive.infolist()]


def with_pickle(pickle: bytes) -> bytes:
    """A valid archive, except for its pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in records():
            archive.writestr(name, pickle if name.endswith("data.pkl") else content)
    return buffer.getvalue()


def seeds() -> dict[str, bytes]:
    """Valid inputs, by name."""
    diffusers = {"blocks.0.attn1.to_q.weight": torch.zeros(8, 8), "condition_embedder.time_proj.bias": torch.zeros(48)}
    vae = {"decoder.up_blocks.0.resnets.0.norm1.gamma": torch.zeros(4, 1, 1, 1), "encoder.conv_in.bias": torch.zeros(4)}
    text = {"shared.weight": torch.zeros(4, 8), "encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(8, 8)}
    taehv = {"encoder.0.weight": torch.zeros(2, 3, 3, 3), "decoder.1.weight": torch.zeros(4, 2, 3, 3)}
    small = taehv_shapes(TAEHVConfig(z_dim=2, encoder_width=2, decoder_widths=(2, 2, 2, 2)))
    found = {"safetensors-whole-taehv": b"\0" + save({name: torch.zeros(shape) for name, shape in small.items()})}
    spiece = {**text, "spiece_model": torch.tensor(list(SPIECE), dtype=torch.uint8)}
    partial = {"wan": TENSORS, "diffusers": diffusers, "vae": vae, "lora": adapters(), "text": text, "spiece": spiece, "taehv": taehv}
    found |= {f"safetensors-{name}": b"\0" + save(tensors) for name, tensors in {**partial, "model": whole_model()}.items()}
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
    found |= {f"gguf-{name}": b"\6" + content for name, content in ggufs().items()}
    found |= {f"lora-{kind}": b"\7" + save(tensors) for kind, tensors in {**other_adapters(), "peft": adapters()}.items()}
    found["adapter_config"] = b"\10" + ADAPTER_CONFIG
    return {**found, "config": b"\3" + CONFIG, "index": b"\4" + json.dumps({"weight_map": index}).encode(), "toml": b"\5" + TOML}


def run(data: bytes, folder: Path) -> None:
    """Runs one input; raises what a reader must not raise."""
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
                for weight in component.tensors.values():
                    if isinstance(weight, Packed) and not weight.fault:
                        assert weight.unpack(torch.float32).shape == weight.shape
                if component.tokenizer:
                    follow(read_tokenizer(component, None))
        found = inspect(place)
        assert all(line.isprintable() for line in found.lines())
        json.dumps(found.plain(), allow_nan=False)
    except CheckpointError as error:
        assert str(error).isprintable()
        return
    for load in (load_dit, load_vae, load_taehv):
        try:
            assert all(parameter.isfinite().all() for parameter in load(parts).parameters())
        except CheckpointError as error:
            assert str(error).isprintable()


def follow(tokenizer: dict[str, Any]) -> None:
    """Makes a tokenizer and uses it. The package tokenizers is not ours, and ends the process if we accept a broken description."""
    import tokenizers

    try:
        made = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
    except Exception:  # the library has no exception type of its own for them
        return
    made.encode("a ﬁne № </s> 日本語 \U0001f642")


def write(target: str, content: bytes, folder: Path) -> Path:
    """Writes the files of one input; returns the one to read."""
    weights, index, toml = folder / "weights", folder / "model.safetensors.index.json", folder / "model.toml"
    (folder / "config.json").write_bytes(content if target == "config" else CONFIG)
    if target == "pickle":
        content = with_pickle(content)
    weights.write_bytes(content if target in ("safetensors", "archive", "pickle", "gguf") else sound())
    if target in ("lora", "adapter_config"):
        beside = folder / "adapters"
        beside.mkdir(exist_ok=True)
        (beside / "adapters").write_bytes(content if target == "lora" else save(adapters()))
        (beside / "adapter_config.json").write_bytes(content if target == "adapter_config" else b"{}")
        toml.write_bytes(LORA_TOML)
    if target == "index":
        index.write_bytes(content)
        for shard, half in zip(SHARDS, halves(), strict=True):
            (folder / shard).write_bytes(half)
    if target == "toml":
        toml.write_bytes(content)
    return {"index": index, "toml": toml, "lora": toml, "adapter_config": toml}.get(target, weights)
