"""The sizes of a model, found from its tensors and its config, and the tensors that a model of these sizes must have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn as nn
from torch.overrides import TorchFunctionMode

from lolrt.checkpoint import names
from lolrt.checkpoint.foreign import LONGEST, kind_of
from lolrt.checkpoint.formats import Component
from lolrt.checkpoint.packed import Packed, Weight
from lolrt.checkpoint.variants import refuse_variants
from lolrt.errors import CheckpointError, Error
from lolrt.models.dit import CausalDiT, DiTConfig
from lolrt.models.vae.layers import VAEConfig
from lolrt.models.vae.taehv import TAEHV, TAEHVConfig
from lolrt.models.vae.wan import CausalVAE

# Many published weights have no config. The shapes of the tensors show all sizes except that of the heads.
WAN_HEAD_DIM = 128

# No model has larger sizes: building one would only waste memory and time.
MOST_CHANNELS = 1 << 20
MOST = {"num_layers": names.MOST_LAYERS, "num_res_blocks": names.MOST_STAGES, "dim_mult": 1024}

DIFFUSERS_DIT = {"in_channels": "in_dim", "out_channels": "out_dim", "num_attention_heads": "num_heads"}
DIFFUSERS_VAE = {"base_dim": "dim", "temperal_downsample": "temporal_downsample"}

Shapes = dict[str, tuple[int, ...]]
Config = TypeVar("Config", DiTConfig, VAEConfig)


@dataclass(frozen=True)
class TextEncoderConfig:
    """The sizes of a UMT5 encoder; the defaults are those of UMT5-XXL."""

    vocab_size: int = 256384
    dim: int = 4096
    attention_dim: int = 4096
    ffn_dim: int = 10240
    num_heads: int = 64
    num_layers: int = 24
    num_buckets: int = 32


def read_text(path: Path) -> str:
    """The text in a file, with or without a byte order mark. Raises `OSError` and `ValueError`, and `lolrt.CheckpointError` if it is not a
    text file."""
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is no file; expected a text file")
    content = path.read_bytes()
    if kind := kind_of(content[:LONGEST]):
        raise CheckpointError(f"{path} is {kind}")
    return content.decode("utf-8-sig")


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_text(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist, and the model cannot be read without it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}); fetch the file again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}; expected a JSON object")
    return values


def read_config(path: Path, kind: type[Config]) -> Config:
    """Reads the fields of `kind` from a JSON config, under Wan's or diffusers' names. Other fields, about training or other runtimes, are
    ignored."""
    return with_values(kind(), read_json(path), path)


def with_values(config: Config, values: Mapping[str, Any], source: Path) -> Config:
    """`config` with the fields in `values`, under Wan's or diffusers' names."""
    terms = DIFFUSERS_DIT if isinstance(config, DiTConfig) else DIFFUSERS_VAE
    values = {terms.get(name, name): value for name, value in values.items()}
    if isinstance(config, DiTConfig) and "attention_head_dim" in values and "num_heads" in values:
        values["dim"] = _product(values["attention_head_dim"], values["num_heads"], source)
    known: dict[str, Any] = {}
    for field in fields(config):
        if (value := values.get(field.name)) is not None:
            known[field.name] = _checked(field.name, value, getattr(config, field.name), source)
    try:
        config = replace(config, **known)
    except Error as error:
        raise CheckpointError(f"{source}: {error}") from error
    if isinstance(config, VAEConfig) and len(config.temporal_downsample) != len(config.dim_mult) - 1:
        raise CheckpointError(
            f"{source}: {len(config.dim_mult)} resolutions have {len(config.dim_mult) - 1} halvings between them; temporal_downsample says "
            f"{list(config.temporal_downsample)}"
        )
    return config


def _product(a: Any, b: Any, source: Path) -> int:
    if type(a) is not int or type(b) is not int:
        raise CheckpointError(f"{source} is no config of this kind of model: {b!r} heads of {a!r} channels")
    return a * b


def _checked(name: str, value: Any, like: Any, source: Path) -> Any:
    """A value of a config, after a check that it has the type of `like` and a size that a model can have."""
    if isinstance(value, list | tuple) and (like is None or isinstance(like, tuple)):
        if not 0 < len(value) <= 64 or (name in ("patch_size", "rope_dims") and len(value) != 3):
            raise CheckpointError(f"{source} is no config of this kind of model: {name} has {len(value)} entries")
        return tuple(_checked(name, item, like[0] if like else 1, source) for item in value)
    if like is None or isinstance(like, tuple):
        fits = False
    elif isinstance(like, bool):
        fits = isinstance(value, bool)
    elif isinstance(like, int):
        fits = type(value) is int and (0 if name == "rope_dims" else 1) <= value <= MOST.get(name, MOST_CHANNELS)
    else:
        fits = type(value) in (int, float) and abs(value) < 1e6
    if not fits:
        raise CheckpointError(f"{source} is no config of this kind of model: {name} is {str(value)[:60]!r}")
    return value


def dit_config(component: Component) -> DiTConfig:
    """The config of a DiT, from its tensors, as far as they show it, and from the config beside them, which has priority.

    Raises `lolrt.CheckpointError` for a DiT with layers for other inputs than text and noise, and for impossible sizes.
    """
    refuse_variants(component)
    shape = _shapes_of(component)
    config = DiTConfig()
    dim, in_dim, *patch = shape.get("patch_embedding.weight", (config.dim, config.in_dim, *config.patch_size))
    found = {
        "ffn_dim": shape.get("blocks.0.ffn.0.weight", ())[:1],
        "freq_dim": shape.get("time_embedding.0.weight", ())[1:],
        "text_dim": shape.get("text_embedding.0.weight", ())[1:],
    }
    sizes = {name: value[0] for name, value in found.items() if value}
    outputs = shape.get("head.head.weight", (0,))[0]
    values = {
        **sizes, "dim": dim, "in_dim": in_dim, "patch_size": patch, "num_layers": _layers(shape), "num_heads": max(1, dim // WAN_HEAD_DIM),
        "out_dim": outputs // max(1, _volume(patch)) or config.out_dim,
    }  # fmt: skip
    if "dim" in component.config or "num_attention_heads" in component.config or dim % WAN_HEAD_DIM == 0:
        return with_values(config, {**values, **component.config}, component.source)
    raise CheckpointError(
        f"{component.source} has no config.json beside it, and {dim} channels are not whole heads of {WAN_HEAD_DIM}, as all of Wan's are; "
        "add one that says num_heads"
    )


def vae_config(component: Component) -> VAEConfig:
    """The config of a VAE, from its tensors and the config beside them; see `dit_config`."""
    refuse_variants(component)
    shape = _shapes_of(component)
    config = VAEConfig()
    stages = 1 + max((int(name.split(".")[2]) for name in shape if name.startswith("encoder.downsamples.")), default=-1)
    residuals, level, mult = 0, 0, [1]
    temporal: list[bool] = []
    dim = shape.get("encoder.conv1.weight", (config.dim,))[0] or config.dim
    counts: list[int] = []
    for i in range(min(stages, MOST_CHANNELS)):
        if f"encoder.downsamples.{i}.resample.1.weight" in shape:
            temporal.append(f"encoder.downsamples.{i}.time_conv.weight" in shape)
            counts.append(residuals)
            residuals, level = 0, level + 1
            mult.append(mult[-1])
        else:
            residuals += 1
            mult[level] = shape.get(f"encoder.downsamples.{i}.residual.6.weight", (dim * mult[level],))[0] // dim
    counts.append(residuals)
    values: dict[str, Any] = {"dim": dim, "z_dim": shape.get("conv2.weight", (config.z_dim,))[0]}
    if stages:
        values |= {"dim_mult": mult, "num_res_blocks": max(counts), **({"temporal_downsample": temporal} if temporal else {})}
    result = with_values(config, {**values, **component.config}, component.source)
    if not len(result.latents_mean) == len(result.latents_std) == result.z_dim:
        raise CheckpointError(
            f"{component.source} has {result.z_dim} latent channels; their mean and standard deviation, which only a config says, "
            f"are of {len(result.latents_mean)}"
        )
    return result


def text_encoder_config(component: Component) -> TextEncoderConfig:
    """The config of a UMT5 encoder, from its tensors."""
    refuse_variants(component)
    shape = _shapes_of(component)
    default = TextEncoderConfig()
    vocab_size, dim = _pair(shape, "token_embedding.weight", default.vocab_size, default.dim)
    num_buckets, num_heads = _pair(shape, "blocks.0.pos_embedding.embedding.weight", default.num_buckets, default.num_heads)
    ffn_dim, _ = _pair(shape, "blocks.0.ffn.fc1.weight", default.ffn_dim, dim)
    attention_dim, _ = _pair(shape, "blocks.0.attn.q.weight", default.attention_dim, dim)
    return TextEncoderConfig(vocab_size, dim, attention_dim, ffn_dim, num_heads, _layers(shape), num_buckets)


def taehv_config(component: Component) -> TAEHVConfig:
    """The config of a TAEHV, from its tensors."""
    refuse_variants(component)
    shape = _shapes_of(component)
    default = TAEHVConfig()
    first, z_dim = _pair(shape, "decoder.1.weight", default.decoder_widths[0], default.z_dim)
    width, _ = _pair(shape, "encoder.0.weight", default.encoder_width, 3)
    widths, growth = [first], []
    for level, (usual, stride) in enumerate(zip(default.decoder_widths[1:], default.decoder_growth, strict=True)):
        outputs, channels = _pair(shape, f"decoder.{7 + 6 * level}.conv.weight", stride, 1)
        growth.append(2 if outputs == 2 * channels else stride)
        widths.append(_pair(shape, f"decoder.{8 + 6 * level}.weight", usual, 1)[0])
    return TAEHVConfig(z_dim, width, (widths[0], widths[1], widths[2], widths[3]), (growth[0], growth[1], growth[2]))


def _shapes_of(component: Component) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in component.tensors.items()}


def _pair(shape: Shapes, name: str, *default: int) -> tuple[int, int]:
    found = shape.get(name, ())
    return (found[0], found[1]) if len(found) >= 2 else (default[0], default[1])


def _layers(shape: Shapes) -> int:
    numbers = {name.split(".")[1] for name in shape if name.startswith("blocks.")}
    return min(1 + max((int(number) for number in numbers if number.isdecimal() and len(number) < 5), default=0), names.MOST_LAYERS)


def _volume(sizes: list[int]) -> int:
    volume = 1
    for size in sizes:
        volume *= size
    return volume


def expected_shapes(component: Component) -> Shapes:
    """The shape of every tensor of a part of this kind and size, under Wan's names."""
    if component.kind == "dit":
        return dit_shapes(dit_config(component))
    if component.kind == "vae":
        return vae_shapes(vae_config(component))
    if component.kind == "text_encoder":
        return text_encoder_shapes(text_encoder_config(component))
    if component.kind == "taehv":
        return taehv_shapes(taehv_config(component))
    raise CheckpointError(f"{component.source} holds a {component}: which tensors there should be depends on the DiT")


def dit_shapes(config: DiTConfig) -> Shapes:
    with unfilled():
        return {name: tuple(tensor.shape) for name, tensor in CausalDiT(config).state_dict().items()}


def vae_shapes(config: VAEConfig) -> Shapes:
    with unfilled():
        return {name: tuple(tensor.shape) for name, tensor in CausalVAE(config).state_dict().items()}


def text_encoder_shapes(config: TextEncoderConfig) -> Shapes:
    dim, inner, ffn = config.dim, config.attention_dim, config.ffn_dim
    block = {
        "norm1": (dim,), **{f"attn.{name}": (inner, dim) for name in "qkv"}, "attn.o": (dim, inner), "norm2": (dim,),
        "ffn.gate.0": (ffn, dim), "ffn.fc1": (ffn, dim), "ffn.fc2": (dim, ffn),
        "pos_embedding.embedding": (config.num_buckets, config.num_heads),
    }  # fmt: skip
    blocks = {f"blocks.{i}.{name}.weight": shape for i in range(config.num_layers) for name, shape in block.items()}
    return {"token_embedding.weight": (config.vocab_size, dim), **blocks, "norm.weight": (dim,)}


def taehv_shapes(config: TAEHVConfig) -> Shapes:
    with unfilled():
        return {name: tuple(tensor.shape) for name, tensor in TAEHV(config).state_dict().items()}


class _NoInitialisation(TorchFunctionMode):
    """Skips the initialisation of parameters. On the meta device it has no effect, except that its imports take a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.uniform_, torch.Tensor.normal_, nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def unfilled() -> Iterator[None]:
    """A context manager: modules built inside have parameters without memory, only shapes."""
    with _NoInitialisation(), torch.device("meta"):
        yield


def faults(expected: Shapes, tensors: Mapping[str, Weight]) -> list[str]:
    """The differences between `tensors` and the expected ones, one clause for each kind: missing tensors, unexpected ones, wrong shapes,
    dtypes that weights cannot have, and damaged packed weights."""
    clauses = []
    for fault, wrong in (("missing", expected.keys() - tensors.keys()), ("unexpected", tensors.keys() - expected.keys())):
        if wrong:
            clauses.append(f"{fault}: {listed(wrong)}")
    shared = [(name, shape, tensors[name]) for name, shape in expected.items() if name in tensors]
    shapes = [f"{name} {list(tensor.shape)} instead of {list(shape)}" for name, shape, tensor in shared if tuple(tensor.shape) != shape]
    if shapes:
        clauses.append(f"of another shape: {', '.join(shapes)}")
    dtypes: list[str] = []
    damaged: dict[str, list[str]] = {}
    for name, _, tensor in shared:
        if isinstance(tensor, Packed):
            damaged.setdefault(tensor.fault, []).append(name)
        elif tensor.dtype not in WEIGHT_DTYPES:
            dtypes.append(f"{name} {str(tensor.dtype).removeprefix('torch.')}")
    if dtypes:
        clauses.append(f"of a dtype that weights do not have: {', '.join(dtypes)}")
    return clauses + [f"packed, with {fault}: {listed(names)}" for fault, names in damaged.items() if fault]


def listed(names: Iterable[str]) -> str:
    """The names in order, separated by commas. Three or more that differ only in the number of a block become one:
    blocks.{0-39}.ffn.0.bias."""
    groups: dict[tuple[str, str], dict[int, str]] = {}
    for name in sorted(names):
        head, number, tail = (
            match.groups() if (match := re.fullmatch(r"(.*?\.)(0|[1-9]\d{0,3})(\..*)", name, re.DOTALL)) else (name, "0", "")
        )
        groups.setdefault((head, tail), {})[int(number)] = name
    told: list[tuple[str, str]] = []
    for (head, tail), numbered in groups.items():
        numbers = sorted(numbered)
        if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
            told.append((numbered[numbers[0]], f"{head}{{{numbers[0]}-{numbers[-1]}}}{tail}"))
        else:
            told += [(name, name) for name in numbered.values()]
    return ", ".join(text for _, text in sorted(told))


WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
