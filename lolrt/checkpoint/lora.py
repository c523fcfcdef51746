"""LoRA adapters of a DiT, merged into its weights: W + alpha / r * B A, in float32, rounded once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lolrt.checkpoint.formats import Component
from lolrt.checkpoint.shapes import WEIGHT_DTYPES, Shapes
from lolrt.errors import CheckpointError


class LoRA:
    """The adapters of a `Component` of kind "lora", in peft's names.

    alpha is that of the layer (`<layer>.alpha`), else of the config beside it (adapter_config.json: lora_alpha, use_rslora), else r:
    scale 1, as LongLive trains. Source: LoRA (arXiv 2106.09685), sec. 4.1; rsLoRA (arXiv 2312.03732).
    """

    def __init__(self, component: Component) -> None:
        self.source: Path = component.source
        self._config: Mapping[str, object] = component.config
        self._tensors = {name.replace(".default.", "."): tensor for name, tensor in component.tensors.items()}
        self.layers = sorted({name.partition(".lora_")[0].removesuffix(".alpha") for name in self._tensors})

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
            raise CheckpointError(f"{self.source} does not fit the model: {'; '.join(faults)}")

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
        saved = self._tensors.get(f"{layer}.alpha")
        alpha = saved.item() if saved is not None and saved.numel() == 1 else self._config.get("lora_alpha", rank)
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise CheckpointError(f"{self.source}: alpha of {layer} is {alpha!r}; expected a number")
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") is True else rank)
