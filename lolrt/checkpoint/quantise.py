"""Weights to 8 bits, in forms that ComfyUI reads: what `lolrt convert` writes of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from lolrt.checkpoint.names import Kind
from lolrt.checkpoint.safetensors_file import file_order
from lolrt.checkpoint.shapes import Shapes

Form = Literal["fp8_scaled", "int8"]
FORMS: tuple[Form, ...] = get_args(Form)

# The layers that the public converters quantise: attention and FFN of the blocks (LightX2V, tools/convert; ComfyUI-GGUF, tools/lcpp.patch).
# Embeddings, modulation, the head and the VAE stay floats.
LINEAR: dict[Kind, re.Pattern[str]] = {
    "dit": re.compile(r"blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.[02])\.weight"),
    "text_encoder": re.compile(r"blocks\.\d+\.(attn\.[qkvo]|ffn\.(gate\.0|fc1|fc2))\.weight"),
}

E4M3 = torch.float8_e4m3fn
MARK = "scaled_fp8"  # an empty tensor, which says of a file what its scales are
CONFIG = json.dumps({"format": "int8_tensorwise"}).encode()
LEAST_SCALE = 1e-30  # of a row or a weight of zeros

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def is_quantised(kind: Kind, name: str) -> bool:
    return kind in LINEAR and LINEAR[kind].fullmatch(name) is not None


def in_8_bits(
    form: Form, kind: Kind, shapes: Shapes, dtype: torch.dtype, tensors: Callable[[str], Tensor]
) -> tuple[Layout, Callable[[str], Tensor]]:
    """The tensors of a file in which the linear layers are in 8 bits and all others of `dtype`, and what gives each when its turn comes.

    tensors: gives each weight by its name, float32 where it is to be quantised.
    """
    layout: Layout = {MARK: (E4M3, (0,))} if form == "fp8_scaled" else {}
    parts: dict[str, tuple[str, int]] = {}
    for name in file_order(shapes):
        if not is_quantised(kind, name):
            layout[name] = dtype, shapes[name]
            continue
        layer, rows = name.removesuffix("weight"), shapes[name][0]
        if form == "fp8_scaled":
            made: Layout = {name: (E4M3, shapes[name]), f"{layer}scale_weight": (torch.float32, ())}
        else:
            scales = {f"{layer}weight_scale": (torch.float32, (rows, 1)), f"{layer}comfy_quant": (torch.uint8, (len(CONFIG),))}
            made = {name: (torch.int8, shapes[name]), **scales}
        parts |= {part: (name, i) for i, part in enumerate(made)}
        layout |= made
    done: dict[str, tuple[Tensor, ...]] = {}

    def part(name: str) -> Tensor:
        if name == MARK:
            return torch.empty(0, dtype=E4M3, device="cpu")
        if name not in parts:
            return tensors(name).to(dtype)
        weight, i = parts[name]
        if weight not in done:  # its other parts come next
            done.clear()
            done[weight] = fp8_scaled(tensors(weight)) if form == "fp8_scaled" else int8(tensors(weight))
        return done[weight][i]

    return layout, part


def fp8_scaled(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Values in e4m3, the nearest, and the scale of the whole weight: its largest value becomes the format's largest. weight: float32."""
    most = torch.finfo(E4M3).max
    scale = (weight.abs().amax() / most).clamp(min=LEAST_SCALE)
    return (weight / scale).clamp_(-most, most).to(E4M3), scale


def int8(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values in int8, the nearest, a scale a row, [rows, 1], and the JSON that says so. weight: float32."""
    scale = (weight.abs().amax(1, keepdim=True) / 127).clamp(min=LEAST_SCALE)
    return (weight / scale).round_().clamp_(-127, 127).to(torch.int8), scale, torch.frombuffer(bytearray(CONFIG), dtype=torch.uint8)
