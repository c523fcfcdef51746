"""Readers of published weights. Strict: every missing, unexpected and mis-shaped tensor is named, and half a model is never returned."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lolrt.dit import CausalDiT, DiTConfig
from lolrt.errors import CheckpointError
from lolrt.vae import CausalVAE
from lolrt.vae_layers import VAEConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"

# Where training code keeps the generator's weights in a .pt file, the first that is there; the averaged ones come first.
GENERATORS = ("generator_ema", "generator", "model")

# Weights of Self-Forcing's family come without a config; everything but the head size shows in the tensors' shapes.
SELF_FORCING_HEAD_DIM = 128

Config = TypeVar("Config", DiTConfig, VAEConfig)


def load_dit(path: str | Path, dtype: torch.dtype = torch.bfloat16) -> CausalDiT:
    """Loads a DiT: a folder in Wan's layout (config.json, diffusion_pytorch_model.safetensors) or a Self-Forcing .pt file.

    dtype: torch.bfloat16 or torch.float32, of the weights and of all activations. Raises `lolrt.CheckpointError` when files are missing
    or damaged, when tensors are missing, unexpected or mis-shaped (all are named), or when a value is not finite.
    """
    path = Path(path)
    if path.is_dir():
        config = read_config(path / "config.json", DiTConfig)
        tensors = read_safetensors(path / WEIGHTS)
    elif path.is_file():
        tensors = read_self_forcing(path)
        config = infer_dit_config(tensors, path)
    else:
        raise CheckpointError(f"{path} does not exist; expected a folder with config.json and {WEIGHTS}, or a .pt file")
    with unfilled():
        model = CausalDiT(config)
    return assign(model, tensors, dtype, path)


def load_vae(weights: str | Path, config: VAEConfig, dtype: torch.dtype = torch.bfloat16) -> CausalVAE:
    """Loads a Wan VAE from .safetensors or .pth; raises as `load_dit` does."""
    weights = Path(weights)
    tensors = read_safetensors(weights) if weights.suffix == ".safetensors" else read_pickle(weights)
    with unfilled():
        model = CausalVAE(config)
    return assign(model, tensors, dtype, weights)


def read_config(path: Path, kind: type[Config]) -> Config:
    """The fields of a JSON config that `kind` has; others are facts about training or other runtimes."""
    values = read_json(path)
    names = {field.name for field in fields(kind)}
    known: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if name in names}
    try:
        return kind(**known)
    except (TypeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path} is no config of this kind of model: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist, and the model cannot be read without it") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}); fetch the file again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}; expected a JSON object")
    return values


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, mapped rather than read."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist, and the model cannot be read without it")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error}); fetch it again") from error


def read_pickle(path: Path) -> dict[str, Any]:
    """A .pt or .pth file, tensors and plain containers only: nothing in it is ever run."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is damaged or no plain checkpoint ({reason}); fetch it again") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}; expected a dictionary of tensors")
    return loaded


def read_self_forcing(path: Path) -> dict[str, Tensor]:
    """The generator of a Self-Forcing .pt file, under Wan's names."""
    loaded = read_pickle(path)
    for generator in GENERATORS:
        if isinstance(loaded.get(generator), dict):
            return {name.removeprefix("model."): tensor for name, tensor in loaded[generator].items()}
    raise CheckpointError(
        f"{path} has {', '.join(map(str, list(loaded)[:5]))}; expected one of {', '.join(GENERATORS)}, as Self-Forcing writes"
    )


def infer_dit_config(tensors: dict[str, Tensor], path: Path) -> DiTConfig:
    """Reads a DiT's sizes off its tensors."""
    try:
        dim, in_dim, *patch = tensors["patch_embedding.weight"].shape
        layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
        return DiTConfig(
            dim=dim,
            ffn_dim=tensors["blocks.0.ffn.0.weight"].shape[0],
            freq_dim=tensors["time_embedding.0.weight"].shape[1],
            text_dim=tensors["text_embedding.0.weight"].shape[1],
            in_dim=in_dim,
            out_dim=tensors["head.head.weight"].shape[0] // (patch[0] * patch[1] * patch[2]),
            num_heads=dim // SELF_FORCING_HEAD_DIM,
            num_layers=layers,
            patch_size=(patch[0], patch[1], patch[2]),
        )
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path} is no causal Wan DiT: {error} is missing or of another form") from error


class _NoInitialisation(TorchFunctionMode):
    """Leaves new parameters as they are: filling tensors on the meta device does nothing but import a second's worth of modules."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.uniform_, torch.Tensor.normal_, nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def unfilled() -> Iterator[None]:
    """Modules that are made inside have parameters with a shape and nothing else."""
    with _NoInitialisation(), torch.device("meta"):
        yield


Model = TypeVar("Model", bound=nn.Module)


def assign(model: Model, tensors: dict[str, Tensor], dtype: torch.dtype, source: Path) -> Model:
    """Gives a model that was built on the meta device its weights, after checking all of them."""
    if dtype not in (torch.bfloat16, torch.float32):
        raise CheckpointError(f"dtype is {dtype}; expected torch.bfloat16 or torch.float32")
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    faults = []
    for fault, names in (("missing", expected.keys() - tensors.keys()), ("unexpected", tensors.keys() - expected.keys())):
        if names:
            faults.append(f"{fault}: {', '.join(sorted(names))}")
    shapes = [
        f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if shapes:
        faults.append(f"of another shape: {', '.join(shapes)}")
    if faults:
        raise CheckpointError(f"{source} does not hold this model's tensors; {'; '.join(faults)}")
    broken = [name for name in expected if not all(map(torch.isfinite, torch.aminmax(tensors[name])))]  # NaN is passed on by both
    if broken:
        raise CheckpointError(f"{source} has values that are not finite, in {', '.join(sorted(broken))}; fetch the file again")
    model.load_state_dict({name: tensors[name].to(dtype) for name in expected}, assign=True)
    return model.requires_grad_(False).eval()
