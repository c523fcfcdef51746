"""The tensors that adapters add to a weight, one class for each kind: checked against the weight's shape, and computed in float32.

Sources: LoRA (arXiv 2106.09685, sec. 4.1), DoRA (arXiv 2402.09353, eq. 5), LoHa (FedPara, arXiv 2108.06098, prop. 1), LoKr (LyCORIS,
arXiv 2309.14859, sec. 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Delta(Protocol):
    @property
    def tensors(self) -> Iterable[Tensor]:
        """The tensors that it is computed from."""

    def fault(self, shape: Shape) -> str | None:
        """The reason why it cannot be added to a weight of this shape, as the rest of a sentence that begins with the layer's name."""

    def of(self, weight: Tensor) -> Tensor:
        """The tensor to add to a weight, float32, in its shape. weight: the weight without any adapter, float32."""

    def __str__(self) -> str: ...


@dataclass(frozen=True)
class LowRank:
    """LoRA, scale * B A: a is [rank, inputs], or [rank, channels, ...] for a convolution; b is [outputs, rank], possibly followed by sizes
    of 1."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.a, self.b

    def fault(self, shape: Shape) -> str | None:
        rank, inputs = self.a.shape[:1], tuple(self.a.shape[1:])
        fits = len(shape) > 1 and inputs in (shape[1:], (math.prod(shape[1:]),)) and tuple(self.b.shape[:2]) == (*shape[:1], *rank)
        if fits and self.b.numel() == math.prod(self.b.shape[:2]) > 0:
            return None
        return f"has A {list(self.a.shape)} and B {list(self.b.shape)} for a weight {list(shape)}"

    def of(self, weight: Tensor) -> Tensor:
        return (self.b.float().flatten(1) @ self.a.float().flatten(1)).mul_(self.scale).view_as(weight)

    def __str__(self) -> str:
        return f"LoRA of rank {self.a.shape[:1].numel()}, scale {self.scale:g}"


@dataclass(frozen=True)
class Hadamard:
    """LoHa, scale * (w1_a w1_b) o (w2_a w2_b): each a is [outputs, rank], each b is [rank, inputs]."""

    a: tuple[Tensor, Tensor]
    b: tuple[Tensor, Tensor]
    scale: float

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.a, *self.b)

    def fault(self, shape: Shape) -> str | None:
        if all(_fits(_product_shape(a, b), shape) for a, b in zip(self.a, self.b, strict=True)):
            return None
        factors = ", ".join(str(list(x.shape)) for pair in zip(self.a, self.b, strict=True) for x in pair)
        return f"has LoHa's factors {factors} for a weight {list(shape)}"

    def of(self, weight: Tensor) -> Tensor:
        first, second = (a.float() @ b.float() for a, b in zip(self.a, self.b, strict=True))
        return first.mul_(second).mul_(self.scale).view_as(weight)

    def __str__(self) -> str:
        return f"LoHa of rank {self.b[0].shape[:1].numel()}, scale {self.scale:g}"


@dataclass(frozen=True)
class Kronecker:
    """LoKr, scale * w1 (x) w2: each factor is one tensor, or the product of two."""

    w1: tuple[Tensor, ...]
    w2: tuple[Tensor, ...]
    scale: float

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.w1, *self.w2)

    def fault(self, shape: Shape) -> str | None:
        first, second = (_product_shape(*w) if len(w) == 2 else tuple(w[0].shape) for w in (self.w1, self.w2))
        if first is not None and second is not None and len(first) == 2 and len(second) >= 2:
            whole = first[0] * second[0], first[1] * second[1], *second[2:]
            if whole == shape or _fits((whole[0], math.prod(whole[1:])), shape):
                return None
        factors = ", ".join(str(list(x.shape)) for x in self.tensors)
        return f"has LoKr's factors {factors} for a weight {list(shape)}"

    def of(self, weight: Tensor) -> Tensor:
        first, second = (w[0].float() @ w[1].float() if len(w) == 2 else w[0].float() for w in (self.w1, self.w2))
        first = first.view(*first.shape, *(1 for _ in second.shape[2:]))
        return torch.kron(first, second).mul_(self.scale).view_as(weight)

    def __str__(self) -> str:
        return f"LoKr, scale {self.scale:g}"


@dataclass(frozen=True)
class Difference:
    """A full difference: scale * a tensor in the shape of the weight."""

    values: Tensor
    scale: float = 1.0

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)

    def fault(self, shape: Shape) -> str | None:
        return None if tuple(self.values.shape) == shape else f"has a difference {list(self.values.shape)} for {list(shape)}"

    def of(self, weight: Tensor) -> Tensor:
        return self.values.float() * self.scale

    def __str__(self) -> str:
        return "difference"


@dataclass(frozen=True)
class Decomposed:
    """DoRA: the sum of the weight and `inner`, with each row scaled to the length in `magnitude`, [outputs], [outputs, 1], or [1, outputs,
    1, ...] for a convolution. If `magnitude` is [1, inputs], the columns are scaled instead."""

    inner: Delta
    magnitude: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.inner.tensors, self.magnitude)

    def _by_rows(self, shape: Shape) -> bool | None:
        size = tuple(self.magnitude.shape)
        if self.magnitude.numel() == shape[0] and shape[0] in (size[:1] if len(size) < 3 else size[:2]):
            return True
        return False if size == (1, math.prod(shape[1:])) else None

    def fault(self, shape: Shape) -> str | None:
        if found := self.inner.fault(shape):
            return found
        return f"has DoRA's magnitudes {list(self.magnitude.shape)} for a weight {list(shape)}" if self._by_rows(shape) is None else None

    def of(self, weight: Tensor) -> Tensor:
        whole = (weight + self.inner.of(weight)).flatten(1)
        along = 1 if self._by_rows(tuple(weight.shape)) else 0
        lengths = torch.linalg.vector_norm(whole, dim=along, keepdim=True)
        return (self.magnitude.float().view_as(lengths) / lengths * whole).view_as(weight) - weight

    def __str__(self) -> str:
        return f"{self.inner}, DoRA"


def _product_shape(a: Tensor, b: Tensor) -> Shape | None:
    """The shape of a matrix product; None if the shapes do not match."""
    return (len(a), b.shape[1]) if a.ndim == b.ndim == 2 and a.shape[1] == len(b) and a.numel() and b.numel() else None


def _fits(matrix: Shape | None, shape: Shape) -> bool:
    """Whether a matrix has as many rows and values as a weight of this shape."""
    return len(shape) > 1 and matrix == (shape[0], math.prod(shape[1:]))
