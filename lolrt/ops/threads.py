"""How many threads the kernels and torch use."""

from __future__ import annotations

import os

import torch

from lolrt import _core
from lolrt.errors import Error, check_whole


def set_threads(threads: int) -> None:
    """Uses this many threads in the kernels and in torch, in the whole process; the kernels' results do not depend on it.

    Raises `lolrt.Error` for a number that the kernels do not take.
    """
    check_whole(threads=threads)
    try:
        _core.set_threads(threads)
    except ValueError as error:
        raise Error(str(error)) from None
    torch.set_num_threads(threads)


def compute_alone() -> None:
    """In a process that was forked: the threads of the one before are not there, and GNU's OpenMP, which torch computes with, would wait
    for them for ever. On one thread it asks for none."""
    set_threads(1)


def respect_quota() -> None:
    """Takes from torch the threads that the quota of a container does not let run, of which torch knows nothing, unless OMP_NUM_THREADS
    says how many there are to be: threads that are stopped in turns wait for one another most of the time."""
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > _core.threads():
        torch.set_num_threads(_core.threads())
