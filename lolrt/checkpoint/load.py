"""Loads models from checkpoints. Loading is strict: errors name every missing, unexpected and mis-shaped tensor, and a partial model is
never returned."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import torch
import torch.nn as nn
from torch import Tensor

from lolrt.checkpoint.formats import Component
from lolrt.checkpoint.lora import Adapters, LoRA, LoRAFiles, lora_files
from lolrt.checkpoint.mapped import WatchedFiles, check_whole_file
from lolrt.checkpoint.model_files import ModelFiles, find_files, read_component, weight_files
from lolrt.checkpoint.origin import Origin, origin_of
from lolrt.checkpoint.packed import Packed, Weight, give_back, unpacked
from lolrt.checkpoint.quantise import int8
from lolrt.checkpoint.quantised import Quantised
from lolrt.checkpoint.safetensors_file import file_order, group_of
from lolrt.checkpoint.shapes import Shapes, dit_config, expected_shapes, faults, listed, taehv_config, unfilled, vae_config
from lolrt.errors import CheckpointError, Error
from lolrt.models.dit import CausalDiT, LinearChoice
from lolrt.models.int8_linear import Int8Linear
from lolrt.models.vae.layers import VAEConfig
from lolrt.models.vae.taehv import TAEHV
from lolrt.models.vae.wan import CausalVAE
from lolrt.ops import CPU
from lolrt.ops.device import usable
from lolrt.ops.int8 import check_int8

Model = TypeVar("Model", bound=nn.Module)


def load_dit(
    path: str | Path | ModelFiles,
    dtype: torch.dtype = torch.bfloat16,
    lora: LoRAFiles | None = None,
    group: str | None = None,
    device: str | torch.device = "cpu",
    linear: LinearChoice = "full",
    mapped: bool = False,
) -> CausalDiT:
    """Loads a DiT from a checkpoint of any known layout (docs/checkpoints.md), and merges its LoRAs, if there are any.

    path: a folder, a file, or a TOML file. lora: one or several files of adapters, added to the LoRA of the model itself:
    "style.safetensors", or "style.safetensors:0.8" for a strength other than 1. dtype: of the weights and all activations, torch.bfloat16
    or torch.float32. group: which weights of a training checkpoint to use; by default the averaged ones, but with a LoRA the others,
    because it is trained on them. device, linear, mapped: as in `lolrt.load`; on CUDA dtype must be torch.bfloat16.
    Raises `lolrt.Error` when the device cannot be used or mapping is not possible, and `lolrt.CheckpointError` when files are missing or
    damaged, when tensors are missing, unexpected or mis-shaped (all are named), or when a value is not finite.
    """
    found, files = usable(device, dtype), find_files(path)
    if mapped and (found != CPU or linear == "int8"):
        raise Error("mapped=True uses weights as they are in the file; a GPU and layers of int8 need weights of their own")
    if linear == "int8":
        check_int8(found)
    component, adapters = read_dit(files, lora, group)
    origin = origin_of(files, component, frozenset(adapters.changed if adapters else ()))
    with unfilled():
        model = CausalDiT(dit_config(component), linear)
    model.watched_files = WatchedFiles(weight_files(component.source)) if mapped else None
    return _as_adapted(assign(model, component.tensors, dtype, component.source, adapters, found, mapped), adapters, origin)


def with_lora(dit: CausalDiT, lora: LoRAFiles | None) -> CausalDiT:
    """A copy of a loaded DiT with these adapters (see `load_dit`) instead of the ones given before. `dit` is unchanged.

    The weights that the old or the new adapters change are read from the model's files again, so that they have the same bits as after
    `load_dit`; all others are shared. Raises `lolrt.Error` for a DiT that was not loaded from files, `lolrt.CheckpointError` if the files
    have changed since, and the errors of `load_dit`.
    """
    origin = dit.origin
    if not isinstance(origin, Origin):
        raise Error("this DiT was not loaded from files, to which set_lora goes back: load it with lolrt.load or lolrt.load_dit")
    component = origin.dit()
    adapters = Adapters([*origin.own_adapters(), *given_adapters(lora)])
    again = origin.changed | adapters.changed
    kept = {name: tensor.detach() for name, tensor in dit.state_dict().items() if name not in again}
    with unfilled():
        model = CausalDiT(dit.config, dit.linear)
    model.watched_files = dit.watched_files
    assign(model, component.tensors, dit.dtype, component.source, adapters, dit.device, kept=kept)
    return _as_adapted(model, adapters, replace(origin, changed=frozenset(adapters.changed)))


def check_lora(files: ModelFiles, lora: LoRAFiles | None) -> None:
    """Raises the errors of `load_dit` for invalid or mismatched adapters, before anything is loaded. Does not read their values."""
    if lora:
        component, adapters = read_dit(files, lora)
        if adapters:
            adapters.check(expected_shapes(component))


def _as_adapted(model: CausalDiT, adapters: Adapters | None, origin: Origin) -> CausalDiT:
    model.adapters, model.origin = adapters.names if adapters else (), origin
    model.prepare()
    return model


def given_adapters(lora: LoRAFiles | None) -> list[LoRA]:
    """The adapters in files, with their strengths. Raises `lolrt.Error`, and `lolrt.CheckpointError` for a file without adapters."""
    return [LoRA(read_component(file.path, "lora"), file.strength) for file in lora_files(lora)]


def read_dit(path: str | Path | ModelFiles, lora: LoRAFiles | None = None, group: str | None = None) -> tuple[Component, Adapters | None]:
    """A DiT and the adapters to merge into it; arguments and errors as in `load_dit`."""
    files = find_files(path)
    own = [LoRA(read_component(files, "lora"))] if files.lora else []
    loras = own + given_adapters(lora)
    return read_component(files, "dit", group, averaged=not loras), Adapters(loras) if loras else None


def load_vae(
    path: str | Path | ModelFiles, config: VAEConfig | None = None, dtype: torch.dtype = torch.bfloat16, device: str | torch.device = "cpu"
) -> CausalVAE:
    """Loads a Wan VAE. Without a config, its sizes follow from the tensors. Raises the errors of `load_dit`."""
    found = usable(device, dtype)
    component = read_component(path, "vae")
    with unfilled():
        model = CausalVAE(config or vae_config(component))
    return assign(model, component.tensors, dtype, component.source, device=found)


def load_taehv(
    path: str | Path | ModelFiles,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    *,
    raw_latents: bool = False,
) -> TAEHV:
    """Loads a TAEHV. Its sizes follow from the tensors. raw_latents: as in `TAEHVConfig`, for LightTAE. Raises the errors of `load_dit`."""
    found = usable(device, dtype)
    component = read_component(path, "taehv")
    config = replace(taehv_config(component), raw_latents=raw_latents)
    with unfilled():
        model = TAEHV(config)
    return assign(model, component.tensors, dtype, component.source, device=found)


def assign(
    model: Model,
    tensors: Mapping[str, Weight],
    dtype: torch.dtype,
    source: Path,
    lora: Adapters | None = None,
    device: torch.device = CPU,
    mapped: bool = False,
    kept: Mapping[str, Tensor] = MappingProxyType({}),
) -> Model:
    """Sets the weights of a model that was built `unfilled`, after checking all of them. Returns the model, ready for inference.

    The weights are copies, with q, k and v of a layer side by side; those of an `Int8Linear` are in 8 bits. Each is made in one pass from
    the file's pages, which are then released. mapped: on the CPU, tensors of this dtype stay mapped, so they change if the file is written,
    and each other one is converted into its own memory. kept: weights that are used without a copy, except where they lie side by side with
    others that are not kept.
    """
    if dtype not in (torch.bfloat16, torch.float32):
        raise CheckpointError(f"dtype is {dtype}; expected torch.bfloat16 or torch.float32")
    in_8_bits = {f"{name}.weight": f"{name}.weight_scale" for name, module in model.named_modules() if isinstance(module, Int8Linear)}
    scales = set(in_8_bits.values())
    expected: Shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in scales}
    if wrong := faults(expected, tensors):
        raise CheckpointError(f"{source} does not hold this model's tensors; {'; '.join(wrong)}")
    if lora:
        lora.check(expected)
    weights: dict[str, Tensor] = {}
    tied: dict[int, Tensor] = {}
    broken = []
    for _, group in itertools.groupby(file_order(expected), key=group_of):
        names = list(group)
        if kept.keys() >= set(names):
            weights |= {name: kept[name] for weight in names for name in (weight, in_8_bits.get(weight, weight))}
            continue
        if names[0] in in_8_bits:
            for name in names:
                if (quantised := weight_in_8_bits(tensors[name], name, lora)) is None:
                    broken.append(name)
                else:
                    weights[name], weights[in_8_bits[name]] = quantised
            continue
        room = None if mapped else torch.empty(sum(math.prod(expected[name]) for name in names), dtype=dtype, device=device)
        for name in names:
            if room is None:
                found = tied.get(id(tensors[name]))
                made = weight(tensors[name], dtype, name, lora) if found is None else found
                if made is not None:
                    tied[id(tensors[name])] = made
            else:
                count = math.prod(expected[name])
                made = weight(tensors[name], dtype, name, lora, room[:count].view(expected[name]))
                room = room[count:]
            if made is None:
                broken.append(name)
            else:
                weights[name] = made
    check_whole_file(source)
    if broken:
        among = f", or what {lora} adds to them" if lora and lora.changed & set(broken) else ""
        raise CheckpointError(f"{source} has values that are not finite, in {listed(broken)}{among}; fetch the file again")
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(False).eval()


def weight(found: Weight, dtype: torch.dtype, name: str = "", lora: Adapters | None = None, out: Tensor | None = None) -> Tensor | None:
    """A mapped or packed weight in this dtype, merged with its adapters; None if it has values that are not finite.

    It is written to `out`, if given. Without `out`, a mapped weight that needs no change is returned as it is.
    """
    adapted = lora is not None and name in lora.changed
    if isinstance(found, Packed) and not adapted and (out is None or out.device == CPU):
        made = found.unpack(dtype, out)
    else:
        tensor = found.unpack(torch.float32) if isinstance(found, Packed) else found
        merged = lora.merge(name, tensor) if lora else tensor
        made = merged.to(dtype).contiguous() if out is None else out.copy_(merged)
        if made.data_ptr() % dtype.itemsize:  # a mapped tensor that is not aligned, after a header of odd length
            made = made.clone()
    if isinstance(found, Packed) or made.data_ptr() != found.data_ptr():
        give_back([found])
    finite = made.numel() == 0 or all(map(torch.isfinite, torch.aminmax(made)))  # both propagate NaN
    return made if finite else None


def weight_in_8_bits(found: Weight, name: str, lora: Adapters | None = None) -> tuple[Tensor, Tensor] | None:
    """A weight as int8 values and a scale for each row, float32 [rows]; None if it has values that are not finite.

    int8 values with a scale for the weight or for each row are taken as they are in the file. All others are quantised from float32, after
    adapters have been merged.
    """
    adapted = lora is not None and name in lora.changed
    stored = found.int8_rows() if isinstance(found, Quantised) and not adapted else None
    if stored is None:
        whole = unpacked(found).float()
        merged = lora.merge(name, whole) if lora else whole
        if not merged.isfinite().all():
            return None
        values, scale, _ = int8(merged)
        stored = values, scale[:, 0]
    made = stored[0].clone(memory_format=torch.contiguous_format), stored[1].clone(memory_format=torch.contiguous_format)
    give_back([found])
    return made
