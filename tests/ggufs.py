"""GGUF files as the tools of ComfyUI-GGUF and llama.cpp write them, made with the `gguf` package, and their contents as this package
reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Tensors that these tools leave in float32 whatever type the others have (ComfyUI-GGUF, tools/convert.py and tools/lcpp.patch).
KEPT = ("modulation", "patch_embedding", "text_embedding", "time_projection", "time_embedding", "head")


def blocks_of(values: np.ndarray, kind: Any, seed: int) -> np.ndarray:
    """Values in blocks of a type. The package cannot make K-quants; for these the blocks are random, with values of about the same size."""
    from gguf import GGML_QUANT_SIZES
    from gguf.quants import dequantize, quantize

    if kind.name not in SCALES:
        return quantize(values, kind)
    block, size = GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (values.size // block, size), dtype=np.uint8)
    for begin in SCALES[kind.name]:
        blocks[:, begin : begin + 2] = (random.random((len(blocks), 1)) * 1e-3).astype(np.float16).view(np.uint8)
    assert np.isfinite(dequantize(blocks, kind)).all()
    return blocks.reshape(*values.shape[:-1], -1)


# K-quants, and where their blocks have float16 scales.
SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def kind_of(name: str, shape: tuple[int, ...], kind: str) -> str:
    """The type of a tensor in a file of type `kind`: tensors that are no matrix, are exempt, or have rows that do not divide into blocks
    get another type."""
    if len(shape) != 2 or any(kept in name for kept in KEPT):
        return "F32"
    return kind if shape[-1] % 256 == 0 or kind in ("F16", "BF16", "F32") else "Q8_0" if shape[-1] % 32 == 0 else "F16"


def save_gguf(
    path: Path, tensors: Mapping[str, Tensor], kind: str, architecture: str | None = "wan", fields: Mapping[str, Any] | None = None,
    original: tuple[str, ...] = (), by_ggml: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """Writes a file; returns its contents in float32, unpacked by the package. original: tensors that are stored in rows of 256 values,
    with their original shape. by_ggml: as stable-diffusion.cpp writes it, by a library whose tensors have at most four sizes, the outermost
    of which is not 1."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import dequantize

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, architecture or "none")
    if architecture is None:
        writer.kv_data[0].clear()  # stable-diffusion.cpp writes no such field at all
    for key, value in (fields or {}).items():
        writer.add_array(key, value) if isinstance(value, list) else writer.add_key_value(key, *value)
    held = {}
    for i, (name, tensor) in enumerate(tensors.items()):
        shape, values = tuple(tensor.shape), tensor.float().numpy()
        if name in original:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(shape))
            values = values.reshape(-1, 256)
        found = GGMLQuantizationType[kind if name in original else kind_of(name, shape, kind)]
        if by_ggml:
            values = values.reshape(-1, *shape[2:]) if len(shape) == 5 else values.reshape(shape[1:]) if shape[0] == 1 else values
        stored = blocks_of(values, found, i)
        writer.add_tensor(name, stored, raw_dtype=found)
        held[name] = torch.from_numpy(dequantize(stored, found).astype(np.float32).reshape(shape).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held
