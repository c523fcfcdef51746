"""Quantises weights to 8 bits for `lolrt convert`, in formats that ComfyUI reads."""

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

# The same layers as in the public converters: attention and FFN of the blocks (LightX2V, tools/convert; ComfyUI-GGUF, tools/lcpp.patch).
# Embeddings, modulation, the head and the VAE stay floats.
LINEAR: dict[Kind, re.Pattern[str]] = {
    "dit": re.compile(r"blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.[02])\.weight"),
    "text_encoder": re.compile(r"blocks\.\d+\.(attn\.[qkvo]|ffn\.(gate\.0|fc1|fc2))\.weight"),
}

E4M3 = torch.float8_e4m3fn
MARK = "scaled_fp8"  # an empty tensor that shows how the scales of a file are stored
CONFIG = json.dumps({"format": "int8_tensorwise"}).encode()
LEAST_SCALE = 1e-30  # for a row or a weight of zeros

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def is_quantised(kind: Kind, name: str) -> bool:
    return kind in LINEAR and LINEAR[kind].fullmatch(name) is not None


def in_8_bits(
    form: Form, kind: Kind, shapes: Shapes, dtype: torch.dtype, tensors: Callable[[str], Tensor]
) -> tuple[Layout, Callable[[str], Tensor]]:
    """The layout of a file with the linear layers in 8 bits and all other tensors in `dtype`, and the function that returns each tensor in
    turn.

    tensors: returns each weight by its name, in float32 if it is to be quantised.
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
        if weight not in done:  # the other tensors of this weight come next
            done.clear()
            done[weight] = fp8_scaled(tensors(weight)) if form == "fp8_scaled" else int8(tensors(weight))
        return done[weight][i]

    return layout, part


def fp8_scaled(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest e4m3 values, and one scale for the whole weight, which maps its largest value to the format's largest. weight:
    float32."""
    most = torch.finfo(E4M3).max
    scale = (weight.abs().amax() / most).clamp(min=LEAST_SCALE)
    return (weight / scale).clamp_(-most, most).to(E4M3), scale


def int8(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest int8 values, a scale for each row, [rows, 1], and the JSON that describes the format. weight: float32."""
    scale = (weight.abs().amax(1, keepdim=True) / 127).clamp(min=LEAST_SCALE)
    return (weight / scale).round_().clamp_(-127, 127).to(torch.int8), scale, torch.frombuffer(bytearray(CONFIG), dtype=torch.uint8)
