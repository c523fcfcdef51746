"""When does it pay to run one stream on several ranks? A model of the cost: `python -m bench.ranks [--link GB/S MICROSECONDS]`.

The seconds of a chunk's stages on one rank go in: those that docs/full-size.md measured on a CPU, or, for an H100, floating-point
operations over a rate that is predicted (attention, docs/gpu.md) or assumed. So does the link: bytes a second that a rank sends, and the
latency of an exchange. What comes out is predicted. Three ways are compared:

- Ulysses on all ranks (docs/distributed.md): linear layers and attention are divided, each layer exchanges twice in each pass, and
  decoding stays whole on one rank, after the passes.
- Ulysses on all ranks but one, which decodes a chunk while the next is made (`lolrt.send_latents`).
- Steps in a pipeline: each rank runs one pass of the sampler, on another chunk than the others. It makes other videos: a chunk sees the
  chunk before it as noisy as it is itself, and not clean. Nothing here can run it; it is in the table for its time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from lolrt.bench.table import aligned

RANKS = (1, 2, 3, 4, 5, 6, 7, 12, 13)
HEADS = 12  # which the ranks of Ulysses must divide


@dataclass(frozen=True)
class Link:
    gigabytes: float
    """A second, that a rank sends while it receives as much."""
    microseconds: float
    """From the call of an exchange until its first bytes are there."""


@dataclass(frozen=True)
class Chunk:
    """A chunk of Wan's 1.3B model of 3 frames at 480 x 832: the sizes, and the seconds of its stages on one rank."""

    name: str
    attention: float
    linear: float
    vae: float
    rest: float = 0.0
    """Of norms and activations, which the ranks divide as they divide tokens."""
    link: Link = Link(1.25, 50.0)
    passes: int = 5
    layers: int = 30
    tokens: int = 3 * 1560
    dim: int = 1536
    out_channels: int = 64
    """Of a token, of the model's output."""
    latent_bytes: int = 3 * 16 * 60 * 104 * 4
    element_bytes: int = 2

    @property
    def dit(self) -> float:
        return self.attention + self.linear + self.rest

    def sent(self, ranks: int) -> float:
        """Bytes that a rank sends to others in a pass: q, k, v and the output in each layer, and its tokens of the result."""
        own = self.tokens / ranks
        layer = 4 * own * self.dim * (ranks - 1) / ranks
        return self.element_bytes * (self.layers * layer + own * self.out_channels * (ranks - 1))

    def exchanges(self, ranks: int) -> float:
        """Seconds of all exchanges of a chunk."""
        if ranks == 1:
            return 0.0
        in_pass = self.sent(ranks) / self.link.gigabytes / 1e9 + (2 * self.layers + 1) * self.link.microseconds / 1e6
        return self.passes * in_pass

    def ulysses(self, ranks: int) -> float | None:
        """Seconds from one chunk to the next, decoding after the passes."""
        return None if HEADS % ranks else self.dit / ranks + self.exchanges(ranks) + self.vae

    def decoded_apart(self, ranks: int) -> float | None:
        """One of the ranks only decodes."""
        if ranks == 1 or HEADS % (ranks - 1):
            return None
        transfer = self.latent_bytes / self.link.gigabytes / 1e9 + self.link.microseconds / 1e6
        return max(self.dit / (ranks - 1) + self.exchanges(ranks - 1), self.vae + transfer)

    def pipeline(self, ranks: int) -> float | None:
        """A rank for each pass; the cache pass is not needed, as a rank's cache is of its own noise level. Another rank decodes."""
        steps = self.passes - 1
        return max(self.dit / self.passes, self.vae) if ranks == steps + 1 else None


MEASURED = Chunk("two cores of a Zen 4 each, measured (docs/full-size.md), 10 Gbit/s", 215.8, 151.6, 119.6, 4.1)
# Operations of docs/full-size.md. 542 TFLOP/s is predicted for our attention; 600 for linear layers and 200 for the VAE are assumed.
PREDICTED = Chunk("an H100 each, predicted, NVLink 4", 82.9 / 542, 58.5 / 600, 40.5 / 200, link=Link(450.0, 15.0))


def rows(chunk: Chunk) -> Iterator[list[str]]:
    yield ["ranks", "Ulysses", "Ulysses, one decodes", "steps in a pipeline", "exchanges of Ulysses"]
    alone = chunk.dit + chunk.vae
    for ranks in RANKS:
        ways = (chunk.ulysses(ranks), chunk.decoded_apart(ranks), chunk.pipeline(ranks))
        times = ["-" if seconds is None else f"{seconds:.3g} s ({alone / seconds:.2f}x)" for seconds in ways]
        yield [str(ranks), *times, "-" if ways[0] is None else f"{100 * chunk.exchanges(ranks) / ways[0]:.1f} %"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ranks", description="Predicts a stream on several ranks.")
    parser.add_argument("--link", nargs=2, type=float, metavar=("GB/S", "MICROSECONDS"), help="another link than each machine's own")
    arguments = parser.parse_args()
    for chunk in (MEASURED, PREDICTED):
        given = chunk if arguments.link is None else Chunk(**{**vars(chunk), "link": Link(*arguments.link)})
        print(f"{given.name}; {given.link.gigabytes:g} GB/s, {given.link.microseconds:g} us\n")
        print(aligned(list(rows(given)), []), "\n")


if __name__ == "__main__":
    main()
