"""The config of adapters: adapter_config.json as peft writes it, or the config that diffusers writes into the file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lolrt.errors import CheckpointError

# Fields that the merge uses, or that only describe the training.
KNOWN = {
    "r", "alpha", "lora_alpha", "alpha_pattern", "rank_pattern",
    "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version", "lora_dropout",
    "rank_dropout", "module_dropout", "rank_dropout_scale", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "qalora_group_size", "megatron_core", "eva_config", "ensure_weight_tying", "decompose_both", "decompose_factor", "init_weights",
}  # fmt: skip
# Fields with the values that are supported. All other fields must be empty. (The initialisations pissa, olora, corda and loftq change the
# weights that the adapters are added to.)
VALUES: dict[str, tuple[tuple[type, Any], ...]] = {
    "use_rslora": ((bool, True),),
    "use_dora": ((bool, True),),
    "lora_bias": ((bool, True),),
    "peft_type": ((str, "LORA"), (str, "LOHA"), (str, "LOKR")),
    "bias": ((str, "none"),),
    "init_lora_weights": ((bool, True), (str, "gaussian"), (str, "orthogonal"), (str, "eva")),
}


class AdapterConfig:
    """The config of a file of adapters. values: its fields. layers: the layers that have adapters, under Wan's names. Raises
    `lolrt.CheckpointError` for a field that is not supported, because it could change the result."""

    def __init__(self, values: Mapping[str, Any], layers: Sequence[str], source: Path) -> None:
        self._values, self._layers, self._source = values, layers, source
        odd = [name for name, value in values.items() if name not in KNOWN and value and (type(value), value) not in VALUES.get(name, ())]
        if odd:
            told = ", ".join(f"{name} = {str(values[name])[:60]}" for name in odd)
            raise CheckpointError(
                f"the config of {source} says {told}, which is not understood here; merge the adapters into their "
                "model with what trained them, and take that"
            )
        self._alphas, self._ranks = self._pattern("alpha_pattern"), self._pattern("rank_pattern")

    @property
    def decomposed(self) -> bool:
        """Whether all adapters are DoRA adapters."""
        return bool(self._values.get("use_dora"))

    def scale(self, layer: str, rank: int | None, saved: Tensor | None) -> float:
        """The scale of a layer: alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732).

        alpha is `saved`, otherwise that of the config, otherwise r, which gives scale 1, as LongLive trains. rank: the rank of the
        factors; None if they have none, as in LoKr. Then r is that of the config, and without one the scale is 1, as LyCORIS trains.
        """
        alpha = self._alpha(layer, saved)
        if rank is None:
            rank = self._ranks.get(layer, self._values.get("r"))
            if rank is None:
                return 1.0
            if type(rank) is not int or rank < 1:
                raise CheckpointError(f"the config of {self._source}: the rank of {layer} is {str(rank)[:60]}; expected a number above 0")
        return (rank if alpha is None else alpha) / (math.sqrt(rank) if self._values.get("use_rslora") else rank)

    def _alpha(self, layer: str, saved: Tensor | None) -> float | None:
        """The alpha of a layer; None: it equals the rank."""
        if saved is None:
            alpha = self._alphas.get(layer, self._values.get("lora_alpha", self._values.get("alpha")))
        else:
            alpha = saved.item() if saved.numel() == 1 else f"a tensor {list(saved.shape)}"
        if alpha is not None and (type(alpha) not in (int, float) or not math.isfinite(alpha)):
            raise CheckpointError(f"{self._source}: alpha of {layer} is {str(alpha)[:60]}; expected a number")
        return alpha

    def _pattern(self, field: str) -> dict[str, Any]:
        """A field with a value for each layer, by the layer's name or the end of its name. The first entry that matches a layer counts."""
        pattern = self._values.get(field) or {}
        if not isinstance(pattern, dict):
            raise CheckpointError(f"the config of {self._source}: {field} is a {type(pattern).__name__}; expected an object")
        found: dict[str, Any] = {}
        for end, value in pattern.items():
            layers = [layer for layer in self._layers if f".{layer}".endswith(f".{end}")]
            if not layers:
                raise CheckpointError(f"the config of {self._source}: {field} has {end!r}, which is the end of no layer's name")
            found = dict.fromkeys(layers, value) | found
        return found
