"""LoRA adapters of a DiT, merged into its weights: W + alpha / r * B A, in float32, rounded once."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lolrt.checkpoint.formats import Component
from lolrt.checkpoint.names import ADAPTER
from lolrt.checkpoint.shapes import WEIGHT_DTYPES, Shapes, listed
from lolrt.errors import CheckpointError

PARTS = ("lora_A.weight", "lora_B.weight", "alpha")

# What tensors other than those would do to a layer, to which the sum above does not come.
OTHERS = {
    "lora_magnitude_vector": "DoRA's magnitudes",
    "dora_scale": "DoRA's magnitudes",
    "lora_B": "a bias of an adapter",
    "lora_up": "a bias of an adapter",
    "lora_embedding": "adapters of an embedding",
    "diff": "differences of whole weights or biases",
    "hada": "LoHa's factors",
    "lokr": "LoKr's factors",
    "oft": "OFT's rotations",
}

# Fields of the config that the sum takes into account, or that say how it was trained.
KNOWN = {
    "r", "lora_alpha", "alpha_pattern", "rank_pattern",
    "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version", "lora_dropout",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "qalora_group_size", "megatron_core",
    "eva_config", "ensure_weight_tying",
}  # fmt: skip
# Fields with values that are understood. All others have to be empty. (Adapters that begin as pissa, olora, corda or loftq change what they
# are added to.)
VALUES = {
    "use_rslora": ((bool, True),),
    "peft_type": ((str, "LORA"),),
    "bias": ((str, "none"),),
    "init_lora_weights": ((bool, True), (str, "gaussian"), (str, "orthogonal"), (str, "eva")),
}


class LoRA:
    """The adapters of a `Component` of kind "lora".

    alpha is that of the layer (`<layer>.alpha`), else of its config (peft's, adapter_config.json: alpha_pattern, lora_alpha, use_rslora),
    else r: scale 1, as LongLive trains. Source: LoRA (arXiv 2106.09685), sec. 4.1; rsLoRA (arXiv 2312.03732).
    Raises `lolrt.CheckpointError` for a tensor or a field of the config that is not understood: it would change the weights in a way that
    is not known here.
    """

    def __init__(self, component: Component) -> None:
        self.source: Path = component.source
        self._config: Mapping[str, Any] = component.config
        self._tensors = component.tensors
        unknown = [name for name in self._tensors if not name.endswith(tuple(f".{part}" for part in PARTS))]
        if unknown:
            raise CheckpointError(
                f"{self.source} is no plain LoRA of a DiT: it has {_what(unknown)} ({listed(unknown)}); merge it into its model with what "
                "trained it, and take that"
            )
        odd = [
            name for name, value in self._config.items() if name not in KNOWN and value and (type(value), value) not in VALUES.get(name, ())
        ]
        if odd:
            told = ", ".join(f"{name} = {str(self._config[name])[:60]}" for name in odd)
            raise CheckpointError(
                f"the config of {self.source} says {told}, which is not understood here; merge the adapters into their "
                "model with what trained them, and take that"
            )
        self.layers = sorted({name.removesuffix(f".{part}") for name in self._tensors for part in PARTS if name.endswith(f".{part}")})
        self._pattern = self._read_pattern()
        self._alphas = {layer: self._alpha(layer) for layer in self.layers}

    def check(self, expected: Shapes) -> None:
        """Raises `lolrt.CheckpointError` when an adapter is incomplete, broken, or none of a layer of the model's."""
        faults = []
        for layer in self.layers:
            a, b = (self._tensors.get(f"{layer}.lora_{side}.weight") for side in "AB")
            shape = expected.get(f"{layer}.weight")
            if shape is None or a is None or b is None:
                faults.append(f"{layer} {'is no layer of the model' if shape is None else 'lacks one of lora_A and lora_B'}")
            elif a.ndim != 2 or len(a) == 0 or (tuple(b.shape), a.shape[1:]) != ((shape[0], len(a)), shape[1:]):
                faults.append(f"{layer} has A {list(a.shape)} and B {list(b.shape)} for a weight {list(shape)}")
            elif not {a.dtype, b.dtype} <= set(WEIGHT_DTYPES):
                faults.append(f"{layer} is of a dtype that weights do not have")
        if faults:
            raise CheckpointError(f"{self.source}, a LoRA, does not fit the model: {'; '.join(faults)}")

    def merge(self, name: str, weight: Tensor) -> Tensor:
        """The weight with its adapter, float32; the weight itself where it has none."""
        layer = name.removesuffix(".weight")
        a, b = (self._tensors.get(f"{layer}.lora_{side}.weight") for side in "AB")
        if a is None or b is None or layer == name:
            return weight
        return torch.addmm(weight.float(), b.float(), a.float(), alpha=self._scale(layer, len(a)))

    def describe(self) -> str:
        """Ranks and scales."""
        found = {layer: self._tensors.get(f"{layer}.lora_A.weight") for layer in self.layers}
        ranks = {layer: len(a) for layer, a in found.items() if a is not None and a.ndim == 2}
        scales = sorted({self._scale(layer, rank) for layer, rank in ranks.items() if rank})
        return f"rank {', '.join(map(str, sorted(set(ranks.values()))))}, scale {', '.join(f'{scale:g}' for scale in scales)}"

    def _scale(self, layer: str, rank: int) -> float:
        alpha = self._alphas[layer]
        return (rank if alpha is None else alpha) / (math.sqrt(rank) if self._config.get("use_rslora") else rank)

    def _alpha(self, layer: str) -> float | None:
        """None: it is the rank."""
        saved = self._tensors.get(f"{layer}.alpha")
        if saved is None:
            alpha = self._pattern.get(layer, self._config.get("lora_alpha"))
        else:
            alpha = saved.item() if saved.numel() == 1 else f"a tensor {list(saved.shape)}"
        if alpha is not None and (type(alpha) not in (int, float) or not math.isfinite(alpha)):
            raise CheckpointError(f"{self.source}: alpha of {layer} is {str(alpha)[:60]}; expected a number")
        return alpha

    def _read_pattern(self) -> dict[str, Any]:
        """alpha_pattern: layers, by their whole name or the end of it, to the alpha of each; the first that names a layer counts."""
        pattern = self._config.get("alpha_pattern") or {}
        if not isinstance(pattern, dict):
            raise CheckpointError(f"the config of {self.source}: alpha_pattern is a {type(pattern).__name__}; expected an object")
        found: dict[str, Any] = {}
        for end, alpha in pattern.items():
            layers = [layer for layer in self.layers if f".{layer}".endswith(f".{end}")]
            if not layers:
                raise CheckpointError(f"the config of {self.source}: alpha_pattern has {end!r}, which is the end of no layer's name")
            found = dict.fromkeys(layers, alpha) | found
        return found


def _what(unknown: list[str]) -> str:
    """What tensors of an adapter are, in words."""
    parts = [match["part"] for name in unknown if (match := ADAPTER.fullmatch(name))]
    found = [what for part, what in OTHERS.items() if any(re.fullmatch(rf"{part}([._].*)?", other) for other in parts)]
    return ", ".join(dict.fromkeys(found)) or "tensors that are not understood here"
