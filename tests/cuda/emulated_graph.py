"""CUDA graphs on the emulator: what a capture keeps and what a replay does, as far as that is possible without a GPU.

A capture keeps the launches of the kernels (which kernel, grid, block, shared memory, all bytes of the argument) and torch's operations
with their tensors and numbers. A replay runs them again on the same memory. So a number that changes from chunk to chunk keeps its value
from the captured chunk, as in a graph, and so does an address. A capture runs no kernel, and fails if the host would read what the
device has yet to compute.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from emulated import Emulated
from interpreted import RUNNER, Asked
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# Operations that give the host a value, or a shape that depends on values.
WAITING = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::equal", "aten::masked_select"}


class Graph(TorchDispatchMode):
    """Keeps the work that is done inside; `steps` lists it in a form that can be compared with that of another graph."""

    def __init__(self, emulated: Emulated) -> None:
        super().__init__()
        self._emulated = emulated
        self._actions: list[Callable[[], None]] = []
        self._steps: list[tuple[object, ...]] = []
        self._temporaries: list[Tensor] = []
        self._runner = RUNNER(self._keep_launch)

    def __enter__(self) -> Graph:
        self._emulated.runs_with(self._runner)
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._emulated.runs_with(None)

    def replay(self) -> None:
        for action in self._actions:
            action()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        assert name not in WAITING, f"{name} waits for the device"
        out = func(*args, **kwargs)
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in given]
        if func._schema.is_mutable:
            self._actions.append(lambda: func(*args, **kwargs))
        elif name.startswith("aten::empty"):
            self._actions.append(lambda: [x.view(torch.uint8).fill_(255) for x in made])  # the contents of this memory are undefined
        elif made:
            self._actions.append(lambda: _fill(made, func(*args, **kwargs)))
        self._temporaries += made
        self._steps.append((name, args, kwargs))
        return out

    def _keep_launch(self, asked: Any) -> None:
        launch = Asked.from_buffer_copy(asked.contents)
        argument = ctypes.create_string_buffer(ctypes.string_at(launch.argument, launch.argument_bytes), launch.argument_bytes)
        launch.argument = ctypes.addressof(argument)
        tensors = self._emulated.tensors

        def run() -> None:
            self._emulated.buffers(tensors)
            self._emulated.launch(launch)
            assert argument

        self._actions.append(run)
        self._steps.append(("launch", launch.kernel, tuple(launch.blocks), launch.threads, launch.shared_bytes, argument.raw))

    @property
    def launches(self) -> int:
        return sum(step[0] == "launch" for step in self._steps)

    def steps(self) -> list[tuple[object, ...]]:
        """The work in order. Addresses in memory that was allocated inside are replaced by the number of the allocation: in a graph's
        own memory, the n-th allocation always has the same address."""
        spans = []
        for n, x in enumerate(self._temporaries):
            storage = x.untyped_storage()
            spans.append((storage.data_ptr(), storage.data_ptr() + storage.nbytes(), n))

        def place(address: int) -> object:
            return next(((n, address - start) for start, end, n in spans if start <= address < end), address)

        def words(argument: bytes) -> list[object]:
            return [place(int.from_bytes(argument[i : i + 8], "little")) for i in range(0, len(argument), 8)]

        def described(x: Any) -> Any:
            return (place(x.data_ptr()), x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x

        return [(*step[:5], words(step[5])) if step[0] == "launch" else tree_map(described, step) for step in self._steps]  # type: ignore[arg-type]


def _fill(places: list[Tensor], out: Any) -> None:
    values = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
    for place, value in zip(places, values, strict=True):
        place.copy_(value)
