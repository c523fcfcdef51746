"""How torch's OpenMP threads wait for one another. libgomp reads it when torch is imported: it has to be set before."""

from __future__ import annotations

import os

# Spins before a thread sleeps, some 20 us: more than most gaps between the ops of a model. Sleeping at once costs a chunk of the embedded
# model half as much again on a quiet machine, and spinning for milliseconds, as is libgomp's way, keeps those that have work from
# running on a busy one (2026-11-25, two cores: 195 ms a chunk sleeping at once, 129 so, 130 spinning; with both cores taken 473, 399, and
# more than 3000).
WAIT = {"GOMP_SPINCOUNT": "10000"}


def spin_briefly() -> None:
    """For this process, unless its environment says otherwise."""
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in WAIT.items():
            os.environ.setdefault(name, value)
