"""Translates names of tensors by rules: between Wan's own, which the runtime uses, and those of diffusers (DiT, VAE) and transformers
(UMT5 encoder).

A table has one line for each module. The name of a tensor is that of the module plus its leaf (weight, bias, gamma). Note: Wan's `norm3`
is diffusers' `norm2`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal

Kind = Literal["dit", "vae", "text_encoder", "taehv", "lora"]
Pairs = Iterator[tuple[str, str]]

# No model has larger layer numbers: a table for them would only waste memory.
MOST_LAYERS = 1000
MOST_STAGES = 16

DIT = (
    ("patch_embedding", "patch_embedding"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("head.modulation", "scale_shift_table"),
    ("head.head", "proj_out"),
)
DIT_BLOCK = (
    ("modulation", "scale_shift_table"),
    *((f"{wan}.{a}", f"{other}.{b}") for wan, other in (("self_attn", "attn1"), ("cross_attn", "attn2")) for a, b in (
        ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"), ("norm_q", "norm_q"), ("norm_k", "norm_k")
    )),
    ("norm3", "norm2"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
)  # fmt: skip

# The two names of UMT5's embedding table mean the same tensor.
UMT5 = (("token_embedding", "shared"), ("token_embedding", "encoder.embed_tokens"), ("norm", "encoder.final_layer_norm"))
UMT5_BLOCK = (
    ("norm1", "layer.0.layer_norm"),
    *((f"attn.{name}", f"layer.0.SelfAttention.{name}") for name in "qkvo"),
    ("norm2", "layer.1.layer_norm"),
    ("ffn.gate.0", "layer.1.DenseReluDense.wi_0"),
    ("ffn.fc1", "layer.1.DenseReluDense.wi_1"),
    ("ffn.fc2", "layer.1.DenseReluDense.wo"),
    ("pos_embedding.embedding", "layer.0.SelfAttention.relative_attention_bias"),
)

VAE = (("conv1", "quant_conv"), ("conv2", "post_quant_conv"))
VAE_CODER = (("conv1", "conv_in"), ("head.0", "norm_out"), ("head.2", "conv_out"))
VAE_RESIDUAL = (
    ("residual.0", "norm1"), ("residual.2", "conv1"), ("residual.3", "norm2"), ("residual.6", "conv2"), ("shortcut", "conv_shortcut")
)  # fmt: skip
VAE_RESAMPLE = (("resample.1", "resample.1"), ("time_conv", "time_conv"))
VAE_ATTENTION = (("norm", "norm"), ("to_qkv", "to_qkv"), ("proj", "proj"))


def to_diffusers(kind: Kind, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Maps Wan's names to diffusers' (transformers' for the text encoder): one name each, two for UMT5's embedding table. Unknown names
    are left out."""
    names = list(names)
    table: dict[str, tuple[str, ...]] = {}
    for wan, other in modules(kind, names):
        table[wan] = (*table.get(wan, ()), other)
    return {name: found for name in names if (found := _renamed(name, table))}


def to_wan(kind: Kind, names: Iterable[str]) -> dict[str, str]:
    """Maps diffusers' names (transformers' for the text encoder) to Wan's. Unknown names are left out."""
    names = list(names)
    table: dict[str, tuple[str, ...]] = {other: (wan,) for wan, other in modules(kind, names)}
    return {name: found[0] for name in names if (found := _renamed(name, table))}


def _renamed(name: str, table: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    if name.endswith(("modulation", "scale_shift_table")):  # parameters that belong to no submodule
        return table.get(name, ())
    module, _, leaf = name.rpartition(".")
    return tuple(f"{other}.{leaf}" for other in table.get(module, ())) if leaf in ("weight", "bias", "gamma") else ()


def modules(kind: Kind, names: Iterable[str]) -> Pairs:
    """Every module of a model of this kind, under both names. The size of the model follows from `names`, which may be in either layout."""
    if kind == "dit":
        yield from DIT
        yield from _blocks(DIT_BLOCK, "blocks", "blocks", _count(r"blocks\.(\d+)\.", names))
    elif kind == "text_encoder":
        yield from UMT5
        yield from _blocks(UMT5_BLOCK, "blocks", "encoder.block", _count(r"(?:blocks|encoder\.block)\.(\d+)\.", names))
    elif kind == "vae":
        yield from VAE
        for coder in ("encoder", "decoder"):
            yield from _inside(VAE_CODER, coder, coder)
            yield from _inside(VAE_RESIDUAL, f"{coder}.middle.0", f"{coder}.mid_block.resnets.0")
            yield from _inside(VAE_ATTENTION, f"{coder}.middle.1", f"{coder}.mid_block.attentions.0")
            yield from _inside(VAE_RESIDUAL, f"{coder}.middle.2", f"{coder}.mid_block.resnets.1")
        for i in range(_count(r"encoder\.(?:downsamples|down_blocks)\.(\d+)\.", names)):
            yield from _inside(VAE_RESIDUAL + VAE_RESAMPLE, f"encoder.downsamples.{i}", f"encoder.down_blocks.{i}")
        for wan, other in _upsamples(list(names)):
            yield from _inside(VAE_RESAMPLE if "upsamplers" in other else VAE_RESIDUAL, wan, other)


def _upsamples(names: list[str]) -> Pairs:
    """The stages of the decoder: a single list in Wan, one block for each resolution in diffusers. A stage has residual blocks and, except
    for the last, an upsampler."""
    residuals = min(_count(r"decoder\.up_blocks\.\d+\.resnets\.(\d+)\.", names), MOST_STAGES)
    levels = min(_count(r"decoder\.up_blocks\.(\d+)\.", names), MOST_STAGES)
    if not levels:
        stages = _count(r"decoder\.upsamples\.(\d+)\.", names)
        resamples = [int(found[1]) for name in names if (found := re.match(r"decoder\.upsamples\.(\d{1,4})\.resample", name))]
        residuals = min(resamples, default=stages)
        levels = -(-stages // (residuals + 1))
    for level in range(levels):
        first = level * (residuals + 1)
        for i in range(residuals):
            yield f"decoder.upsamples.{first + i}", f"decoder.up_blocks.{level}.resnets.{i}"
        if level < levels - 1:
            yield f"decoder.upsamples.{first + residuals}", f"decoder.up_blocks.{level}.upsamplers.0"


def _blocks(table: tuple[tuple[str, str], ...], wan: str, other: str, count: int) -> Pairs:
    for i in range(count):
        yield from _inside(table, f"{wan}.{i}", f"{other}.{i}")


def _inside(table: tuple[tuple[str, str], ...], wan: str, other: str) -> Pairs:
    return ((f"{wan}.{a}", f"{other}.{b}") for a, b in table)


def _count(pattern: str, names: Iterable[str]) -> int:
    """One more than the largest number that the pattern's group finds in the names."""
    found = (re.match(pattern, name) for name in names)
    return min(1 + max((int(match[1]) for match in found if match and len(match[1]) < 5), default=-1), MOST_LAYERS)
