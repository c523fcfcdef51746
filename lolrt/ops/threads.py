"""How many threads the kernels and torch use."""

from __future__ import annotations

import torch

from lolrt import _core
from lolrt.errors import Error


def set_threads(threads: int) -> None:
    """Uses this many threads in the kernels and in torch, in the whole process; the kernels' results do not depend on it.

    Raises `lolrt.Error` for a number that the kernels do not take.
    """
    try:
        _core.set_threads(threads)
    except ValueError as error:
        raise Error(str(error)) from None
    torch.set_num_threads(threads)
