"""Assembles weights from several tensors of a file: 8-bit values, their scales, and the description of their format."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lolrt.checkpoint.mapped import is_mapped, mark
from lolrt.checkpoint.packed import Packed, Weight
from lolrt.checkpoint.quantised import QUANTISED, Quantised
from lolrt.errors import CheckpointError

# The suffixes after a layer's name: of values, of the scales that belong to them, and of tensors that matter only for 8-bit activations.
SCALES = {"weight": ("weight_scale", "scale_weight"), "int8_weight": ("scale",)}
CONFIG = "comfy_quant"
OF_ACTIVATIONS = ("input_scale", "scale_input")

# Tensors beside a layer's values that show a format that is not supported, and the name of that format.
FOREIGN = (
    (r"(weight|input)_global_scale|input_absmax", "NVFP4 (4 bits) as of LightX2V"),
    (r"quantized_weight_(values|scale_factors|amax|metadata)", "4o6 (4 bits) as of fouroversix"),
    (r"weight_scale_2", "NVFP4 (4 bits)"),
    (r"weight_(s_rel|s_channel|codebook)", "W4A8 (4 bits)"),
    (r"pre_quant_scale", "AWQ, with scales of the activations"),
    (r"weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+)", "the packing of bitsandbytes"),
    (r"qweight|qzeros|wscales|weight_zeros", "4 bits"),
)
KNOWN_PARTS = (*SCALES, *(name for names in SCALES.values() for name in names), CONFIG, *OF_ACTIVATIONS)
PART = re.compile(rf"(?P<layer>.+?)\.(?P<part>{'|'.join((*KNOWN_PARTS, *(names for names, _ in FOREIGN)))})", re.DOTALL)

# Tensors that belong to no weight: the mark of a whole file in ComfyUI's older form, and ComfyUI's preference for attention.
MARKS = re.compile(r"(.*\.)?(scaled_fp8|comfy_attention\.config)", re.DOTALL)

# The supported formats of ComfyUI's JSON, and the dtype of each.
FORMATS = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2, "int8_tensorwise": torch.int8}
FOREIGN_FORMATS = {
    "nvfp4": "NVFP4 (4 bits)",
    "mxfp8": "MXFP8 (a power of two for each 32 values)",
    "convrot_w4a4": "convrot (rotated, 4 bits)",
    "asym_w4a8_int8": "W4A8 (4 bits)",
    "awq_w4a16": "AWQ (4 bits)",
}
WITHOUT_EFFECT = {"format", "params", "full_precision_matrix_mult", "convrot_groupsize"}
MOST_CONFIG_BYTES = 1 << 16  # the same limit as in stable-diffusion.cpp

# The entry in the header of a safetensors file that describes the formats of its layers.
HEADER_ENTRY = "_quantization_metadata"
MOST_WRAPPERS = 8


class Foreign(Packed):
    """A weight in a form that is not supported. example: the tensor that shows the form."""

    def __init__(self, form: str, example: str, stored: Iterable[Tensor]) -> None:
        self.form, self.fault, self.example, self.stored = form, form, example, tuple(stored)
        self.shape = tuple(self.stored[0].shape)

    def rows(self, first: int, last: int) -> Tensor:
        raise CheckpointError(f"a weight in {self.form} cannot be unpacked")


def assemble(tensors: Mapping[str, Weight], source: Path) -> dict[str, Weight]:
    """The weights in the tensors of a file: a `Packed` for values with their scales; all other tensors unchanged.

    Only names, dtypes, shapes and JSON are read. A tensor that belongs to no weight keeps its name, and is reported later as unexpected.
    """
    layers: dict[str, dict[str, str]] = {}
    plain = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    for name in plain:
        if match := PART.fullmatch(name):
            layers.setdefault(match["layer"], {})[match["part"]] = name
    weights: dict[str, Weight] = dict(tensors)
    for layer, names in layers.items():
        weight = _weight(layer, {part: plain[name] for part, name in names.items()}, source)
        if weight is not None:
            for name in names.values():
                del weights[name]
            if isinstance(weight, Foreign):
                weights.pop(f"{layer}.alpha", None)  # LightX2V's scale of the activations
            weights[f"{layer}.weight"] = weight
    return {name: _cast(name, weight, source) for name, weight in weights.items() if not MARKS.fullmatch(name)}


def mark_unscaled(weights: Collection[Weight]) -> None:
    """Marks fp8 matrices without a scale as faulty, if other matrices of the same model have one."""
    found = [weight for weight in weights if isinstance(weight, Quantised)]
    if not all(weight.is_raw for weight in found):
        for weight in found:
            if weight.is_raw and len(weight.shape) > 1:
                weight.fault = weight.fault or "no scale, while others have one"


def _cast(name: str, weight: Weight, source: Path) -> Weight:
    """An fp8 tensor as a packed weight; other tensors unchanged."""
    if isinstance(weight, Tensor) and weight.dtype in QUANTISED and weight.is_floating_point():
        return Quantised(name, source, weight, None)
    return weight


def _weight(layer: str, parts: Mapping[str, Tensor], source: Path) -> Packed | None:
    """The packed weight that the tensors of a layer form; None if they form none."""
    for part in parts:
        if form := next((form for names, form in FOREIGN if re.fullmatch(names, part)), None):
            return Foreign(form, f"{layer}.{part}", parts.values())
    form = next((form for form in SCALES if form in parts), None)
    if form is None:
        return None
    values, config = parts[form], parts.get(CONFIG)
    scales = [parts[name] for name in SCALES[form] if name in parts]
    scale = scales[0] if scales else None
    if config is None:
        if values.dtype == torch.uint8 and scales:
            return Foreign("4 bits", f"{layer}.{form}", parts.values())
        if values.dtype not in QUANTISED or not (scales or values.dtype == torch.int8):
            return None
        return Quantised(f"{layer}.weight", source, values, scale, "two scales" if len(scales) > 1 else "")
    said = _json(config)
    if said is None:
        return Quantised(f"{layer}.weight", source, values, scale, f"{CONFIG} is no JSON object, or longer than 64 KiB")
    if foreign := _foreign(said):
        return Foreign(foreign, f"{layer}.{CONFIG}", parts.values())
    return _as_said(f"{layer}.weight", source, values, scale, said)


def _as_said(name: str, source: Path, values: Tensor, scale: Tensor | None, said: Mapping[str, Any]) -> Quantised:
    """A weight whose format is given by ComfyUI's JSON."""
    dtype = FORMATS[said["format"]]
    odd = [f"{key} = {str(value)[:60]}" for key, value in said.items() if key not in WITHOUT_EFFECT and value]
    fault = f"{CONFIG} says {', '.join(odd)}, which is not understood here" if odd else "" if scale is not None else "no scale"
    if values.dtype == torch.uint8 and dtype.is_floating_point:  # older tools wrote plain bytes, because the dtype did not exist
        values = mark(values.view(dtype)) if is_mapped(values) else values.view(dtype)
    if values.dtype != dtype:
        fault = fault or f"values of {str(values.dtype).removeprefix('torch.')}, while {CONFIG} says {said['format']}"
    return Quantised(name, source, values, scale, fault)


def _foreign(said: Mapping[str, Any]) -> str | None:
    """The description of a format that is not supported; None if it is supported."""
    found = said.get("format")
    if not isinstance(found, str) or found not in FORMATS:
        return FOREIGN_FORMATS.get(str(found), f"a format that is not known here, {str(found)[:60]!r}")
    params = said.get("params")
    if said.get("convrot") or (isinstance(params, dict) and params.get("convrot")):
        return "convrot (rotated int8)"
    return None


def _json(config: Tensor) -> dict[str, Any] | None:
    if config.dtype != torch.uint8 or not 0 < config.numel() <= MOST_CONFIG_BYTES:
        return None
    try:
        values = json.loads(config.contiguous().view(-1).numpy().tobytes())
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def with_header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. For each layer whose format is in the header, a tensor with this description is added, as ComfyUI
    does.

    The names of layers in the header may lack the prefix of the tensors' names. Raises `lolrt.CheckpointError` for a damaged entry.
    """
    if HEADER_ENTRY not in metadata:
        return dict(tensors)
    try:
        layers = json.loads(metadata[HEADER_ENTRY])["layers"]
        said = {name: {"format": value} if isinstance(value, str) else {**value} for name, value in layers.items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source} has {HEADER_ENTRY} that list no layers in JSON; fetch it again") from error
    whole = {name: name for name in tensors}
    for name in tensors:
        for i in range(1, min(name.count("."), MOST_WRAPPERS) + 1):
            whole.setdefault(name.split(".", i)[-1], name)
    described = dict(tensors)
    for layer, value in said.items():
        name = whole.get(f"{layer}.weight", f"{layer}.weight").removesuffix("weight") + CONFIG
        described.setdefault(name, torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8))
    return described
