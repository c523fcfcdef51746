"""What a config says of adapters: adapter_config.json as peft writes it, or what diffusers writes into the file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lolrt.errors import CheckpointError

# Fields that the sum takes into account, or that say how it was trained.
KNOWN = {
    "r", "alpha", "lora_alpha", "alpha_pattern", "rank_pattern",
    "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version", "lora_dropout",
    "rank_dropout", "module_dropout", "rank_dropout_scale", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "qalora_group_size", "megatron_core", "eva_config", "ensure_weight_tying", "decompose_both", "decompose_factor", "init_weights",
}  # fmt: skip
# Fields with values that are understood. All others have to be empty. (Adapters that begin as pissa, olora, corda or loftq change what they
# are added to.)
VALUES: dict[str, tuple[tuple[type, Any], ...]] = {
    "use_rslora": ((bool, True),),
    "use_dora": ((bool, True),),
    "lora_bias": ((bool, True),),
    "peft_type": ((str, "LORA"), (str, "LOHA"), (str, "LOKR")),
    "bias": ((str, "none"),),
    "init_lora_weights": ((bool, True), (str, "gaussian"), (str, "orthogonal"), (str, "eva")),
}


class AdapterConfig:
    """values: the fields; layers: those that adapters are of, under Wan's names. Raises `lolrt.CheckpointError` for a field that is not
    understood: it would change the weights in a way that is not known here."""

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
        """Whether all adapters are DoRA's."""
        return bool(self._values.get("use_dora"))

    def scale(self, layer: str, rank: int | None, saved: Tensor | None) -> float:
        """alpha / r of a layer, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732).

        alpha is `saved`, else that of the config, else r: scale 1, as LongLive trains. rank: of the factors; None where they have none, as
        of LoKr: then r is that of the config, and without one the scale is 1, as LyCORIS trains.
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
        """None: it is the rank."""
        if saved is None:
            alpha = self._alphas.get(layer, self._values.get("lora_alpha", self._values.get("alpha")))
        else:
            alpha = saved.item() if saved.numel() == 1 else f"a tensor {list(saved.shape)}"
        if alpha is not None and (type(alpha) not in (int, float) or not math.isfinite(alpha)):
            raise CheckpointError(f"{self._source}: alpha of {layer} is {str(alpha)[:60]}; expected a number")
        return alpha

    def _pattern(self, field: str) -> dict[str, Any]:
        """Layers, by their whole name or the end of it, to the value of each; the first that names a layer counts."""
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
