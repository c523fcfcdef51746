"""What a case of the benchmarks is, and the sizes that cases have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lolrt.bench.measure import Run

BF16, FP32 = torch.bfloat16, torch.float32
_generator = torch.Generator().manual_seed(0)


@dataclass(frozen=True)
class Shape:
    """The sizes of the tensors of one chunk in one layer."""

    name: str
    rows: int
    columns: int
    heads: int
    axes: tuple[int, int, int]
    """The channels of a head that are rotated by time, row and column."""
    hidden: int
    """The channels between the linear layers of the feed-forward."""
    frames: int = 3
    pages: int = 12

    @property
    def tokens(self) -> int:
        return self.rows * self.columns

    @property
    def dim(self) -> int:
        return sum(self.axes)


TINY = Shape("tiny", 4, 6, 4, (44, 10, 10), hidden=1024)
WAN = Shape("1.3B", 30, 52, 12, (44, 42, 42), hidden=8960)
ONE_HEAD = replace(WAN, name="1.3B, one head", heads=1)
ONE_FRAME = replace(WAN, name="1.3B, one frame", frames=1)
ODD = Shape("odd", 7, 19, 3, (16, 12, 12), hidden=333, frames=2, pages=5)


@dataclass(frozen=True)
class Images:
    """The sizes of the VAE's tensors at one stage of the decoder."""

    name: str
    frames: int
    rows: int
    columns: int
    channels: int

    @property
    def elements(self) -> int:
        return self.frames * self.rows * self.columns * self.channels


TINY_IMAGES = Images("tiny", 4, 64, 96, 16)
WAN_IMAGES = Images("1.3B", 2, 120, 208, 192)
ODD_IMAGES = Images("odd", 1, 7, 9, 21)


@dataclass(frozen=True)
class Trial:
    """A case with its tensors: our callable and its peers, all ready to run."""

    ours: Run
    peers: Mapping[str, Run]


@dataclass(frozen=True)
class Case:
    op: str
    """A function of `lolrt.ops`, or the subject of a larger case."""
    shape: str
    dtype: torch.dtype
    flops: float
    bytes: float
    bound: Literal["flops", "bytes"]
    """Whether the rate counts FLOP or bytes."""
    make: Callable[[bool], Trial]
    """Makes the tensors. Its argument says whether to make peers with torch.compile, which takes long."""
    quick: bool = False
    """Whether a quick run includes it."""
    every_thread_count: bool = True
    """False for cases that take too long on one thread."""
    best_isa_only: bool = False
    runs_here: Callable[[], bool] = lambda: True
    """Whether this CPU has what the case needs."""
    roundings: int = 1
    """About how many times the result is rounded: the passes of a model."""

    @property
    def name(self) -> str:
        return f"{self.op}/{self.shape}"

    @property
    def tolerance(self) -> float:
        """How much a peer may differ from ours, relative to the root mean square of the result: only by rounding."""
        return {BF16: 0.05, FP32: 1e-3}[self.dtype] * self.roundings


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def random(*shape: int) -> Tensor:
    """Random numbers, the same on every device."""
    return torch.randn(shape, generator=_generator, device="cpu").to(torch.get_default_device())


def discard(_: object) -> None:
    """Drops a result, for runs whose layout differs from ours so that results cannot be compared."""
