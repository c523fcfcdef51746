"""How many threads the kernels and torch use."""

from __future__ import annotations

import torch

from lolrt import _core
from lolrt.errors import Error


def set_threads(threads: int) -> None:
    """Uses this many threads in the kernels and in torch, in the whole process; the kernels' results do not depend on it."""
    if threads < 1:
        raise Error(f"threads is {threads}; expected 1 or more")
    torch.set_num_threads(threads)
    _core.set_threads(threads)
