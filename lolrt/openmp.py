"""Sets how torch's OpenMP threads wait for one another. libgomp reads the setting when torch is imported, so `import lolrt` must come
first."""

from __future__ import annotations

import os
import sys

# How often a waiting thread spins before it sleeps: longer than most gaps between the ops of a model. Median times of a chunk of the
# embedded model, two runs each (2026-11-25, two cores): sleeping at once 214 and 214 ms, this value 128 and 117 ms, libgomp's default 122
# and 118 ms. With both cores busy with other processes: 521 and 518 ms, 320 and 334 ms, and for the default 489 ms (one run), because
# threads that spin for long keep threads with work from running. When other processes use the cores, threads spin far less, by a second
# team that sleeps (csrc/bridges/torch_threads.h).
WAIT = {"GOMP_SPINCOUNT": "10000"}


def spin_briefly() -> None:
    """Sets it for this process and its children, unless the environment has a setting or torch is imported already."""
    if "OMP_WAIT_POLICY" not in os.environ and "torch" not in sys.modules:
        for name, value in WAIT.items():
            os.environ.setdefault(name, value)
