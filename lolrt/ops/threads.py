"""The number of threads of the kernels and of torch."""

from __future__ import annotations

import os

import torch

from lolrt import _core
from lolrt.errors import Error, check_whole


def set_threads(threads: int) -> None:
    """Sets the number of threads of the kernels and of torch, for the whole process. The results of the kernels do not depend on it.

    Raises `lolrt.Error` for a number that the kernels do not accept.
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
    """Reduces torch's threads to the CPU quota of a container, unless OMP_NUM_THREADS sets their number. torch does not know the quota,
    and threads beyond it are stopped in turns, so that all wait for one another most of the time."""
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > _core.threads():
        torch.set_num_threads(_core.threads())
