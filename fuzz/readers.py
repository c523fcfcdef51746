"""Fuzzes the readers of checkpoints: whatever the bytes, a reader gives tensors that lie inside the file, or a CheckpointError.

The first byte of an input chooses what the rest is: a safetensors file, a .pt archive, the pickle inside of one, or config.json.
Inputs that break something are to be kept in tests/data/fuzz, and run again by tests/test_malformed.py.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save

from lolrt.checkpoint.formats import KINDS
from lolrt.checkpoint.parts import components_of
from lolrt.checkpoint.shapes import expected_shapes, faults
from lolrt.errors import CheckpointError

TARGETS = ("safetensors", "archive", "pickle", "config")
TENSORS = {
    "patch_embedding.weight": torch.zeros(8, 4, 1, 2, 2),
    "blocks.0.self_attn.q.weight": torch.zeros(8, 8),
    "blocks.0.self_attn.q.bias": torch.zeros(8, dtype=torch.bfloat16),
    "head.head.bias": torch.zeros(16),
}


def archive_of(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def with_pickle(pickle: bytes) -> bytes:
    """A sound archive, but for its pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive_of(TENSORS))) as sound, zipfile.ZipFile(buffer, "w") as archive:
        for record in sound.infolist():
            archive.writestr(record.filename, pickle if record.filename.endswith("data.pkl") else sound.read(record))
    return buffer.getvalue()


def seeds() -> dict[str, bytes]:
    """Sound inputs, by name."""
    diffusers = {"blocks.0.attn1.to_q.weight": torch.zeros(8, 8), "condition_embedder.time_proj.bias": torch.zeros(48)}
    vae = {"decoder.up_blocks.0.resnets.0.norm1.gamma": torch.zeros(4, 1, 1, 1), "encoder.conv_in.bias": torch.zeros(4)}
    lora = {f"base_model.model.blocks.0.ffn.0.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"}
    contents = {"wan": TENSORS, "diffusers": diffusers, "vae": vae, "lora": lora}
    found = {f"safetensors-{name}": b"\0" + save(tensors) for name, tensors in contents.items()}
    for name, content in {**contents, "group": {"generator": {f"model.{n}": t for n, t in TENSORS.items()}, "step": 3}}.items():
        archive = archive_of(content)
        found[f"archive-{name}"] = b"\1" + archive
        with zipfile.ZipFile(io.BytesIO(archive)) as records:
            found[f"pickle-{name}"] = b"\2" + records.read(next(n for n in records.namelist() if n.endswith("data.pkl")))
    found["config"] = b'\3{"dim": 8, "num_heads": 1, "num_layers": 1, "patch_size": [1, 2, 2], "eps": 1e-6}'
    return found


def run(data: bytes, folder: Path) -> None:
    """One input; raises what a reader should not have raised."""
    if not data:
        return
    target, content = TARGETS[data[0] % len(TARGETS)], data[1:]
    weights, config = folder / "weights", folder / "config.json"
    config.unlink(missing_ok=True)
    if target == "config":
        config.write_bytes(content)
        content = save(TENSORS)
    elif target == "pickle":
        content = with_pickle(content)
    weights.write_bytes(content)
    try:
        for component in components_of(weights):
            assert component.kind in KINDS
            for tensor in component.tensors.values():
                assert tensor.nbytes <= len(content)
                tensor.contiguous().view(-1).view(torch.uint8).sum()  # every byte can be read
            if component.kind != "lora":
                faults(expected_shapes(component), component.tensors)
    except CheckpointError as error:
        assert "\n" not in str(error)
