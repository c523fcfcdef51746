"""How torch's OpenMP threads wait for one another. libgomp reads it when torch is imported, so `import lolrt` sets it if it comes first."""

from __future__ import annotations

import os
import sys

# Spins before a thread sleeps: longer than most gaps between the ops of a model. Medians of a chunk of the embedded model in two runs each
# (2026-11-25, two cores): sleeping at once 214 and 214 ms, so 128 and 117, as libgomp does by itself 122 and 118; with both cores taken by
# others 521 and 518, so 320 and 334, as libgomp does 489 (one run): what spins for long keeps those that have work from running. While
# others have the cores, threads spin far less, by a second team that sleeps (csrc/python/torch_threads.h).
WAIT = {"GOMP_SPINCOUNT": "10000"}


def spin_briefly() -> None:
    """For this process and those that it starts, unless its environment says otherwise, or torch is there already."""
    if "OMP_WAIT_POLICY" not in os.environ and "torch" not in sys.modules:
        for name, value in WAIT.items():
            os.environ.setdefault(name, value)
