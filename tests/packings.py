"""Small DiTs in 8 bits, written as the public tools write them, each with the float weights that it represents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from layouts import random
from safetensors.torch import save_file
from torch import Tensor

from lolrt import DiTConfig
from lolrt.checkpoint.shapes import dit_shapes

# A size that is not a multiple of the block size, 128.
DIT = DiTConfig(dim=128, ffn_dim=160, freq_dim=64, text_dim=48, num_heads=1, num_layers=2)
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
COMFY = "model.diffusion_model."

# The result of a writer: the tensors of the file, its metadata, and the weights in float32.
Tensors = dict[str, Tensor]
Packed = tuple[Tensors, dict[str, str], Tensors]


def dit_tensors() -> Tensors:
    return random(dit_shapes(DIT))


def is_linear(name: str, tensor: Tensor) -> bool:
    """Whether the tools quantise a weight: only those of the linear layers of attention and FFN."""
    return tensor.ndim == 2 and ".weight" in name and ("attn" in name or "ffn" in name)


def product(values: Tensor, scale: Tensor) -> Tensor:
    """Values times scales, rounded once."""
    return (values.double() * scale.double()).float()


def each(
    tensors: Tensors, pack: Callable[[str, Tensor], tuple[Tensors, Tensor]], prefix: str = "", other: torch.dtype = torch.float32
) -> Packed:
    """pack: returns the tensors of a linear layer, by their suffix after the layer's name, and the weight that they represent."""
    file, meaning = {}, {}
    for name, tensor in tensors.items():
        if is_linear(name, tensor):
            parts, meaning[name] = pack(name, tensor)
            file |= {f"{prefix}{name.removesuffix('weight')}{part}": value.clone() for part, value in parts.items()}
        else:
            file[prefix + name] = tensor.to(other)
            meaning[name] = tensor.to(other).float()
    return file, {}, meaning


def floats(prefix: str, dtype: torch.dtype) -> Callable[[Tensors], Packed]:
    """Comfy-Org's repackaged files."""
    return lambda tensors: each(tensors, lambda _, w: ({"weight": w.to(dtype)}, w.to(dtype).float()), prefix, dtype)


def cast(dtype: torch.dtype, prefix: str = "") -> Callable[[Tensors], Packed]:
    """Kijai's raw casts."""
    return lambda tensors: each(tensors, lambda _, w: ({"weight": w.to(dtype)}, w.to(dtype).double().float()), prefix)


def scaled_fp8(shape: tuple[int, ...], prefix: str = "", scale_input: bool = False, mark: bool = True) -> Callable[[Tensors], Packed]:
    """ComfyUI's older form, as LightX2V's converter writes it too; shape: of a scale."""

    def pack(_: str, weight: Tensor) -> tuple[Tensors, Tensor]:
        scale = weight.abs().max() / torch.finfo(E4M3).max
        values = (weight / scale).clamp(-448, 448).to(E4M3)
        inputs = {"scale_input": torch.ones(shape)} if scale_input else {}
        return {"weight": values, "scale_weight": scale.reshape(shape), **inputs}, product(values, scale)

    def write(tensors: Tensors) -> Packed:
        file, metadata, meaning = each(tensors, pack, prefix, torch.float16)
        return (file | {f"{prefix}scaled_fp8": torch.zeros(2).to(E4M3)} if mark else file), metadata, meaning

    return write


def kitchen(layout: str, says: str, header: bool = False, prefix: str = COMFY, **options: object) -> Callable[[Tensors], Packed]:
    """ComfyUI's own library quantises the weights, and also gives the values that they represent. header: formats are in the header,
    instead of JSON beside each layer."""

    def pack(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
        from comfy_kitchen.tensor import QuantizedTensor

        packed = QuantizedTensor.from_float(weight, layout, **options)
        parts = {key.removeprefix("x."): value for key, value in packed.state_dict("x.weight").items()}
        config = {} if header else {"comfy_quant": torch.tensor(list(json.dumps({"format": says}).encode()), dtype=torch.uint8)}
        return {**parts, **config, "input_scale": torch.tensor(1.5)}, packed.dequantize()

    def write(tensors: Tensors) -> Packed:
        file, _, meaning = each(tensors, pack, prefix, torch.bfloat16)
        layers = {f"{prefix}{name.removesuffix('.weight')}": {"format": says} for name, w in tensors.items() if is_linear(name, w)}
        metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})} if header else {}
        return (
            file | {f"{prefix}blocks.0.self_attn.comfy_attention.config": torch.tensor(list(b"{}"), dtype=torch.uint8)},
            metadata,
            meaning,
        )

    return write


def lightx2v(dtype: torch.dtype) -> Callable[[Tensors], Packed]:
    """Self-Forcing-FP8 and its int8 counterpart: one scale per row."""

    def pack(_: str, weight: Tensor) -> tuple[Tensors, Tensor]:
        most = torch.finfo(E4M3).max if dtype == E4M3 else 127
        scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-5) / most
        values = weight / scale
        values = values.clamp(-448, 448).to(dtype) if dtype == E4M3 else values.round().clamp(-128, 127).to(dtype)
        return {"weight": values, "weight_scale": scale}, product(values, scale)

    return lambda tensors: each(tensors, pack, "model.", torch.bfloat16)


def turbo(tensors: Tensors) -> Packed:
    """TurboDiffusion's int8: one scale per block of 128 x 128; blocks are smaller at the edges."""

    def pack(_: str, weight: Tensor) -> tuple[Tensors, Tensor]:
        out, inner = weight.shape
        scale = torch.empty(-(-out // 128), -(-inner // 128))
        values, meaning = torch.empty(out, inner, dtype=torch.int8), torch.empty(out, inner)
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                block = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
                scale[i, j] = weight[block].abs().max() / 127
                values[block] = (weight[block] / scale[i, j]).round().to(torch.int8)
                meaning[block] = product(values[block], scale[i, j])
        return {"int8_weight": values, "scale": scale}, meaning

    return each(tensors, pack, "", torch.bfloat16)


PACKINGS: dict[str, Callable[[Tensors], Packed]] = {
    "ComfyUI, bf16": floats(COMFY, torch.bfloat16),
    "ComfyUI, fp16": floats(COMFY, torch.float16),
    "fp8 e4m3, raw": cast(E4M3),
    "fp8 e5m2, raw, in ComfyUI's wrapper": cast(E5M2, COMFY),
    "fp8_scaled": scaled_fp8(()),
    "fp8_scaled, in ComfyUI's wrapper, with scales of the activations": scaled_fp8((1,), COMFY, scale_input=True),
    "fp8_scaled, without its mark": scaled_fp8((1,), mark=False),
    "LightX2V, fp8": lightx2v(E4M3),
    "LightX2V, int8": lightx2v(torch.int8),
    "TurboDiffusion, int8": turbo,
}
KITCHEN: dict[str, Callable[[Tensors], Packed]] = {
    "comfy_quant, fp8 e4m3": kitchen("TensorCoreFP8Layout", "float8_e4m3fn"),
    "comfy_quant, fp8 e4m3, in the header": kitchen("TensorCoreFP8Layout", "float8_e4m3fn", header=True),
    "comfy_quant, fp8 e5m2": kitchen("TensorCoreFP8Layout", "float8_e5m2", dtype=E5M2),
    "comfy_quant, int8": kitchen("TensorWiseINT8Layout", "int8_tensorwise"),
    "comfy_quant, int8 by rows": kitchen("TensorWiseINT8Layout", "int8_tensorwise", per_channel=True),
    "comfy_quant, int8 by rows, in the header": kitchen(
        "TensorWiseINT8Layout", "int8_tensorwise", header=True, prefix="", per_channel=True
    ),
}  # fmt: skip


def save(path: Path, packed: Packed) -> Path:
    file, metadata, _ = packed
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(file, path, metadata)
    return path
