"""A row of the table: the measurements of a case, as plain numbers for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lolrt import _core
from lolrt.bench.case import Case, dtype_name
from lolrt.bench.measure import Race, Spread
from lolrt.bench.peaks import Peak

HEADER = ("case", "dtype", "isa", "threads", "n", "time", "iqr", "rate", "of peak", "times as fast as its peers (quartiles)")
LEFT = (0, 1, 2, 9)  # columns of words


@dataclass(frozen=True)
class Row:
    name: str
    op: str
    shape: str
    dtype: str
    isa: str
    threads: int
    n: int
    """Rounds."""
    seconds: tuple[float, float, float]
    """Lower quartile, median, upper quartile."""
    flops: float
    bytes: float
    bound: str
    """The unit of the rate: "flops" or "bytes"."""
    peak: float
    """Best rate of torch's own products or copies, FLOP/s or bytes/s."""
    peak_name: str
    ratios: dict[str, tuple[float, float, float]]
    """Each peer's time divided by ours: lower quartile, median, upper quartile of the rounds."""

    @property
    def rate(self) -> float:
        return (self.flops if self.bound == "flops" else self.bytes) / self.seconds[1]

    @property
    def fraction(self) -> float:
        """The rate as a share of the peak."""
        return self.rate / self.peak

    @classmethod
    def of(cls, case: Case, race: Race, peak: Peak, threads: int) -> Row:
        return cls(
            name=case.name,
            op=case.op,
            shape=case.shape,
            dtype=dtype_name(case.dtype),
            isa=_core.isa(),
            threads=threads,
            n=len(race.times),
            seconds=as_tuple(Spread.of(race.times)),
            flops=case.flops,
            bytes=case.bytes,
            bound=case.bound,
            peak=peak.rate,
            peak_name=peak.name,
            ratios={name: as_tuple(spread) for name, spread in race.ratios().items()},
        )

    def cells(self) -> Sequence[str]:
        """The row as text, under `HEADER`."""
        low, median, high = self.seconds
        unit = "GFLOP/s" if self.bound == "flops" else "GB/s"
        ratios = "; ".join(f"{name} {mid:.2f} ({lo:.2f}-{hi:.2f})" for name, (lo, mid, hi) in self.ratios.items())
        return (
            self.name, self.dtype, self.isa, str(self.threads), str(self.n), duration(median), f"{(high - low) / median:.0%}",
            f"{self.rate / 1e9:.3g} {unit}", f"{self.fraction:.0%}", ratios,
        )  # fmt: skip


def as_tuple(spread: Spread) -> tuple[float, float, float]:
    return spread.low, spread.median, spread.high


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
