"""What the kernels should reach on two cores at the 1.3B shape, and how the measure of each target is read from a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.results import Results
from lolrt.bench.machine import multiplies_bf16
from lolrt.bench.row import Row

Spread = tuple[float, float, float]


@dataclass(frozen=True)
class Target:
    measure: str
    least: float
    wanted: str
    """The target in words."""
    read: Callable[[Row], Spread | None]
    """The measure of a row, with its quartiles; None for rows that the target is not about."""

    def measured(self, results: Results) -> list[tuple[str, Spread]]:
        """The kernels (and case) and the measure of each row with all threads."""
        most = max((row.threads for row in results.rows), default=0)
        found = [(row, self.read(row)) for row in results.rows if row.threads == most]
        return [(f"{row.isa}, {row.shape}", spread) for row, spread in found if spread is not None]


def fraction_of_peak(op: str, shape: str, dtype: str) -> Callable[[Row], Spread | None]:
    def read(row: Row) -> Spread | None:
        if (row.op, row.shape, row.dtype) != (op, shape, dtype) or not multiplies_bf16(row.isa):
            return None
        low, median, high = row.seconds
        return row.fraction * median / high, row.fraction, row.fraction * median / low

    return read


def ratio(op: str, dtype: str, peer: str, shapes: Iterable[str], *, wide: bool = False) -> Callable[[Row], Spread | None]:
    """Reads the ratio to the fastest peer whose name begins with `peer`. wide: only kernels at least as wide as AVX-512."""
    shapes = tuple(shapes)

    def read(row: Row) -> Spread | None:
        ratios = [spread for name, spread in row.ratios.items() if name.startswith(peer)]
        if row.op != op or row.dtype != dtype or row.shape not in shapes or not ratios or (wide and not multiplies_bf16(row.isa)):
            return None
        return min(ratios, key=lambda spread: spread[1])

    return read


TARGETS = (
    Target(
        "`frame_attention` bf16 / best bf16 matrix product of torch",
        0.88,
        "≥ 0.88, aim at 0.95",
        fraction_of_peak("frame_attention", "1.3B", "bfloat16"),
    ),
    Target(
        "torch (published RoPE + SDPA), the faster of bf16 and fp32 / `frame_attention` bf16",
        2.3,
        "≥ 2.3, aim at 2.6",
        ratio("frame_attention", "bfloat16", "RoPE + SDPA", ["1.3B"], wide=True),
    ),
    Target(
        "`frame_attention` bf16 / over pages of int8",
        1.5,
        "≥ 1.5, aim at 1.75",
        ratio("frame_attention", "bfloat16", "lolrt without int8 pages", ["1.3B, int8 pages"]),
    ),
    Target(
        "torch (published RoPE + SDPA), the faster of bf16 and fp32 / `frame_attention` over pages of int8",
        3.5,
        "≥ 3.5",
        ratio("frame_attention", "bfloat16", "RoPE + SDPA", ["1.3B, int8 pages"], wide=True),
    ),
    Target("the same in fp32, AVX-512", 1.1, "≥ 1.1", ratio("frame_attention", "float32", "RoPE + SDPA", ["1.3B"], wide=True)),
    Target("one DiT block, bf16, against the published one in torch", 1.8, "≥ 1.8", ratio("dit_pass", "bfloat16", "", ["1.3B, one layer"])),
    Target(
        "one chunk against the published model in torch, bf16", 1.5, "≥ 1.5", ratio("chunk", "bfloat16", "", ["tiny", "1.3B, one layer"])
    ),
    Target("`kv_write` / memcpy of the same bytes", 0.5, "≥ 0.5", ratio("kv_write", "bfloat16", "memcpy", ["1.3B"])),
    Target(
        "VAE decode of one latent frame, bf16, against diffusers with its cache",
        1.2,
        "≥ 1.2",
        ratio("vae_decode", "bfloat16", "diffusers", ["tiny", "Wan2.1, latent 15 x 26"]),
    ),
)
