"""Merges adapters into the weights of a DiT: W + strength * delta, summed over all adapters in float32 and rounded once."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from lolrt.checkpoint.adapter_config import AdapterConfig
from lolrt.checkpoint.adapter_names import OTHER, PARTS
from lolrt.checkpoint.deltas import Decomposed, Delta, Difference, Hadamard, Kronecker, LowRank
from lolrt.checkpoint.formats import Component
from lolrt.checkpoint.packed import give_back, unpacked
from lolrt.checkpoint.shapes import WEIGHT_DTYPES, Shapes, listed
from lolrt.errors import CheckpointError, Error

# The meaning of adapter tensors that are not in `PARTS`, by the beginning of the part's name.
OTHERS = {
    "lora_embedding": "adapters of an embedding",
    "lora_mid": "the middle factor of a convolution",
    "hada_t": "LoHa's factors of a convolution",
    "lokr_t": "LoKr's factors of a convolution",
    "oft": "OFT's rotations",
    "boft": "BOFT's rotations",
    "glora": "GLoRA's factors",
    "vera": "VeRA's factors",
}

# The factors of LoKr's two matrices. Each matrix is one tensor, or the product of two.
KRONECKER = {i: ((f"lokr_w{i}",), (f"lokr_w{i}_a", f"lokr_w{i}_b")) for i in (1, 2)}

# One or several files of adapters, as the user names them: "style.safetensors", or "style.safetensors:0.8" for a strength other than 1.
LoRAFiles: TypeAlias = "str | Path | Sequence[str | Path]"


class LoRAFile(NamedTuple):
    path: Path
    strength: float = 1.0

    def __str__(self) -> str:
        return f"{self.path.name}:{self.strength:g}"


def lora_files(given: LoRAFiles | None) -> list[LoRAFile]:
    """The files with their strengths. Raises `lolrt.Error` for a strength that is not a finite number."""
    texts = [] if given is None else [given] if isinstance(given, str | Path) else given
    return [_lora_file(str(text)) for text in texts]


def _lora_file(text: str) -> LoRAFile:
    path, colon, strength = text.rpartition(":")
    if not colon or Path(text).exists():
        return LoRAFile(Path(text))
    try:
        value = float(strength)
    except ValueError:
        return LoRAFile(Path(text))  # does not exist; reading it raises the error
    if not math.isfinite(value):
        raise Error(f"the strength of {path} is {strength}; expected a finite number, such as {path}:0.8")
    return LoRAFile(Path(path), value)


class LoRA:
    """All adapters of a `Component` of kind "lora": `deltas`, by the name of the tensor that each is added to.

    Raises `lolrt.CheckpointError` for a tensor or a field of the config that is not supported, because it could change the result.
    """

    def __init__(self, component: Component, strength: float = 1.0) -> None:
        self.source, self.strength = component.source, strength
        self.name = str(LoRAFile(component.source, strength))
        layers: dict[str, dict[str, Tensor]] = {}
        unknown = []
        for name, tensor in ((name, unpacked(weight)) for name, weight in component.tensors.items()):
            part = next((part for part in PARTS if name.endswith(f".{part}")), None)
            if part is None:
                unknown.append(name)
            else:
                layers.setdefault(name.removesuffix(f".{part}"), {})[part] = tensor
        if unknown:
            raise CheckpointError(
                f"{self.source} is no LoRA of a DiT that is understood here: it has {_what(unknown)} ({listed(unknown)}); merge it into "
                "its model with what trained it, and take that"
            )
        self.layers = sorted(layers)
        self._config = AdapterConfig(component.config, self.layers, component.source)
        self._faults: list[str] = []
        self.deltas: dict[str, list[Delta]] = {}
        for layer in self.layers:
            for name, delta in self._deltas(layer, layers[layer]):
                self.deltas.setdefault(name, []).append(delta)

    def check(self, expected: Shapes) -> None:
        """Raises `lolrt.CheckpointError` when adapters are incomplete, damaged, or for tensors that the model does not have; names all of
        them."""
        faults = list(self._faults)
        if strangers := self.deltas.keys() - expected.keys():
            faults.append(f"the model has no {listed(strangers)}")
        for name, deltas in self.deltas.items():
            for delta in deltas if name in expected else ():
                if fault := delta.fault(expected[name]):
                    faults.append(f"{_layer(name)} {fault}")
                elif not {tensor.dtype for tensor in delta.tensors} <= set(WEIGHT_DTYPES):
                    faults.append(f"{_layer(name)} is of a dtype that weights do not have")
        if faults:
            raise CheckpointError(f"{self.source}, a LoRA, does not fit the model: {'; '.join(faults)}")

    def kinds(self) -> dict[str, int]:
        """The number of adapters of each kind, the most frequent first."""
        return dict(Counter(str(delta) for deltas in self.deltas.values() for delta in deltas).most_common())

    def _deltas(self, layer: str, parts: Mapping[str, Tensor]) -> Iterator[tuple[str, Delta]]:
        """The deltas of a layer, each with the name of the tensor that it is added to. Errors are added to the faults."""
        weight = layer if layer.endswith("modulation") else f"{layer}.weight"
        rest = dict(parts)
        saved, magnitude, bias = rest.pop("alpha", None), rest.pop("magnitude", None), rest.pop("lora_B.bias", None)
        for part, name in ("diff", weight), ("diff_b", f"{layer}.bias"), ("diff_m", f"{layer}.modulation"):
            if part in rest:
                yield name, Difference(rest.pop(part))
        product = self._product(layer, rest, saved)
        if product is None:
            if rest or bias is not None or magnitude is not None or parts.keys() == {"alpha"}:
                there = ", ".join(sorted(parts.keys() - {"diff", "diff_b", "diff_m"}))
                self._faults.append(f"{layer} has {there}, of which no adapter can be made")
            return
        if bias is not None:
            yield f"{layer}.bias", Difference(bias, product.scale)
        if self._config.decomposed and magnitude is None:
            self._faults.append(f"{layer} lacks DoRA's magnitudes, which its config speaks of")
        yield weight, product if magnitude is None else Decomposed(product, magnitude)

    def _product(self, layer: str, factors: Mapping[str, Tensor], saved: Tensor | None) -> LowRank | Hadamard | Kronecker | None:
        """The delta that the factors of a layer form; None if they form none."""

        def taken(*names: str) -> tuple[Tensor, ...]:
            return tuple(factors[name] for name in names if name in factors)

        if factors.keys() == {"lora_A", "lora_B"}:
            a, b = factors["lora_A"], factors["lora_B"]
            return LowRank(a, b, self._config.scale(layer, a.shape[:1].numel(), saved)) if a.numel() else None
        if factors.keys() == {f"hada_w{i}_{side}" for i in (1, 2) for side in "ab"}:
            (a1, a2), (b1, b2) = taken("hada_w1_a", "hada_w2_a"), taken("hada_w1_b", "hada_w2_b")
            return Hadamard((a1, a2), (b1, b2), self._config.scale(layer, b1.shape[:1].numel(), saved)) if b1.numel() else None
        for w1, w2 in itertools.product(KRONECKER[1], KRONECKER[2]):
            if factors.keys() == {*w1, *w2}:
                split = [taken(*w)[1] for w in (w2, w1) if len(w) == 2]
                if all(b.numel() for b in split):
                    rank = split[0].shape[:1].numel() if split else None
                    return Kronecker(taken(*w1), taken(*w2), self._config.scale(layer, rank, saved))
        return None


class Adapters:
    """Several files of adapters for one DiT, each with its strength."""

    def __init__(self, loras: Sequence[LoRA]) -> None:
        self.loras = tuple(loras)

    def __str__(self) -> str:
        return ", ".join(str(lora.source) for lora in self.loras)

    def check(self, expected: Shapes) -> None:
        """See `LoRA.check`."""
        for lora in self.loras:
            lora.check(expected)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the files, each with its strength."""
        return tuple(lora.name for lora in self.loras)

    @property
    def changed(self) -> set[str]:
        """The names of the tensors that the adapters change."""
        return {name for lora in self.loras for name in lora.deltas}

    def merge(self, name: str, weight: Tensor) -> Tensor:
        """A weight with all its deltas added, float32; the weight itself if there are none."""
        deltas = [(lora.strength, delta) for lora in self.loras for delta in lora.deltas.get(name, ())]
        if not deltas:
            return weight
        merged = base = weight.float()
        for strength, delta in deltas:
            added = delta.of(base)
            give_back(delta.tensors)
            merged = torch.add(merged, added, alpha=strength, out=added)
        return merged


def _layer(name: str) -> str:
    return name.removesuffix(".weight").removesuffix(".bias")


def _what(unknown: list[str]) -> str:
    """A description of unknown adapter tensors, for an error."""
    parts = [match["part"] for name in unknown if (match := OTHER.fullmatch(name))]
    found = [what for begin, what in OTHERS.items() if any(part.startswith(begin) for part in parts)]
    return ", ".join(found) or "tensors that are not understood here"
