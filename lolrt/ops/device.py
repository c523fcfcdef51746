"""Devices: checks that the CPU or a CUDA device can run a model, and moves tensors to and from it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from lolrt import ops
from lolrt.errors import Error

# All CUDA kernels need tensor cores with bfloat16, and cp.async.
LEAST_CAPABILITY = (8, 0)


def usable(device: str | torch.device, dtype: torch.dtype = torch.bfloat16) -> torch.device:
    """The device with this name ("cpu", "cuda", "cuda:1"), with its index, after a test call of attention on it.

    Raises `lolrt.Error` for any other name, when there are no kernels for a model of this dtype, and when torch's CUDA support, the
    driver, the GPU or the CUDA part of this build is missing.
    """
    try:
        found = torch.device(device)
    except RuntimeError:
        found = torch.device("meta")
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type != "cuda":
        raise Error(f'device is {str(device)!r}; expected "cpu" or "cuda", or a GPU by its number, such as "cuda:1"')
    if dtype != torch.bfloat16:
        raise Error(f"dtype is {str(dtype).removeprefix('torch.')}; on CUDA models run in bfloat16: ask for that, or use the CPU")
    if torch.version.cuda is None:
        raise Error(
            f"device is {str(device)!r}, but torch {torch.__version__} is built without CUDA; install a CUDA build of it (pytorch.org), "
            "or use the CPU"
        )
    if not torch.cuda.is_available():
        raise Error(f"device is {str(device)!r}, but torch finds no GPU and driver; nvidia-smi says what there is, or use the CPU")
    index = torch.cuda.current_device() if found.index is None else found.index
    if index >= torch.cuda.device_count():
        raise Error(f"device is {str(device)!r}, but there are {torch.cuda.device_count()} GPUs, the first of which is cuda:0")
    found = torch.device("cuda", index)
    capability = torch.cuda.get_device_capability(found)
    if capability < LEAST_CAPABILITY:
        name, architecture = torch.cuda.get_device_name(found), "".join(map(str, capability))
        raise Error(f"{found} is a {name}, sm_{architecture}; the kernels need sm_80 (Ampere) or later: use another GPU, or the CPU")
    try:
        check_attention(found)
    except RuntimeError as error:
        raise Error(f"the kernels do not run on {found}: {error}") from error
    return found


def check_attention(device: torch.device) -> None:
    """Raises `RuntimeError` unless attention over equal values returns that value: code compiled for other GPUs may do nothing, without an
    error."""
    for dim in (128, 64):
        value = torch.full((1, 64, 1, dim), dim / 64, dtype=torch.bfloat16, device=device)  # differs by dim, to detect old results
        out = ops.attention(value, value, value, None)
        if not (isinstance(out, Tensor) and torch.equal(out, value)):
            raise RuntimeError(f"attention of dim {dim} writes no output; this build has no code for this GPU")


def upload(x: Tensor, device: torch.device) -> Tensor:
    """x on the device. A copy from the CPU to CUDA goes through pinned memory, on the current stream, and does not block."""
    if device.type != "cuda":
        return x.to(device)
    return (x if x.is_cuda else x.pin_memory()).to(device, non_blocking=True)


@dataclass(frozen=True)
class Coming:
    """Tensors on the CPU that may still be in transfer."""

    tensors: tuple[Tensor, ...]
    """The tensors. Their shapes are valid immediately, their values only after `result`."""
    arrived: torch.cuda.Event | None = None

    def result(self) -> tuple[Tensor, ...]:
        """Waits for the tensors and returns them."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tensors


def on_side_stream(work: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> Coming:
    """Runs work(*inputs) and brings the result to the CPU. On CUDA the work is queued on the device's side stream: after everything that
    is queued now, and in parallel with later work."""
    if not inputs[0].is_cuda:
        return Coming(work(*inputs))
    device = inputs[0].device
    queue = _queue(device)
    queue.wait_stream(torch.cuda.current_stream(device))
    for x in inputs:
        if x.is_cuda:
            x.record_stream(queue)
    with side_stream(device):
        results = work(*inputs)
        arriving = tuple(torch.empty(y.shape, dtype=y.dtype, pin_memory=True).copy_(y, non_blocking=True) for y in results)
        return Coming(arriving, queue.record_event())


def side_stream(device: torch.device) -> AbstractContextManager[object]:
    """A context manager: work inside is queued on the side stream of `on_side_stream`. Each device has one."""
    return torch.cuda.stream(_queue(device)) if device.type == "cuda" else nullcontext()


@functools.cache
def _queue(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def finish(device: torch.device) -> None:
    """Waits until all queued work of the device is done, so that times are valid."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
