"""The Python layer on the emulator: `lolrt.ops` with a second binding, whose CUDA half is the emulator's.

Without a GPU torch makes no tensors on CUDA, so the model's tensors lie on the CPU. Where `lolrt.ops` calls the binding, they are passed
as tensors on CUDA. Everything else is what ships: the same `_core` and liblolrt, copied into the folder of the emulated
liblolrt_cuda.so.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from emulated import CUDA, Emulated
from torch import Tensor

import lolrt
from lolrt import _core, ops

_PACKED_KEYS = ops._packed_keys
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


class OnCuda:
    """A torch tensor on the CPU that claims to be on CUDA, by DLPack's protocol, as an array of CuPy would. by_offset: with the start of
    its storage, and an offset."""

    def __init__(self, tensor: Tensor, by_offset: bool = False) -> None:
        self._tensor, self._by_offset = tensor, by_offset

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, 0

    def __dlpack__(self, *, stream: int | None = None) -> object:
        assert stream == -1, "somebody would wait"
        capsule = self._tensor.__dlpack__()
        managed = _capsule_pointer(capsule, b"dltensor")
        ctypes.cast(managed, ctypes.POINTER(ctypes.c_int32))[2] = CUDA  # the device's type, after the pointer to the data
        if self._by_offset:
            words = ctypes.cast(managed, ctypes.POINTER(ctypes.c_uint64))
            words[0], words[5] = self._tensor.untyped_storage().data_ptr(), self._tensor.storage_offset() * self._tensor.element_size()
        return capsule


class EmulatedCore:
    """Replaces `lolrt._core` where `lolrt.ops` calls it: the ops of CUDA, each under the emulator's checks."""

    def __init__(self, emulated: Emulated, core: ModuleType) -> None:
        self._emulated, self._core = emulated, core
        self.calls: dict[str, int] = {}

    def page_elements(self, dtype: str, tokens: int, heads: int, dim: int, device: str) -> int:
        return self._core.page_elements(dtype, tokens, heads, dim, "cuda")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._core, name)

        def call(*arguments: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            self._emulated.buffers([x for x in arguments if isinstance(x, Tensor)])
            return function(*(OnCuda(x) if isinstance(x, Tensor) else x for x in arguments))

        return call


def core_beside(library: Path) -> ModuleType:
    """A second `_core`, which calls the given copy of liblolrt.so.

    It looks up the library's functions first among those that the whole process sees, and only then in the library that it was linked
    against. Bindings that were loaded before, the first `_core` too, have already found their functions.
    """
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL | os.RTLD_NOW)
    binding = Path(_core.__file__)
    (library.parent / "lib").mkdir(exist_ok=True)
    shutil.copy(Path(lolrt.__file__).parent / "lib" / "liblolrt.so", library.parent / "lib")
    path = str(shutil.copy(binding, library.parent))
    spec = spec_from_file_location("emulated._core", path, loader=ExtensionFileLoader("emulated._core", path))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def computing_with(core: EmulatedCore | ModuleType) -> Iterator[None]:
    """While the context is open, `lolrt.ops` calls this."""
    before = ops._core, ops._packed_keys
    ops._core = ops.library._core = core
    ops._packed_keys = ops._row_keys if isinstance(core, EmulatedCore) else _PACKED_KEYS  # of pages that lie on the CPU
    try:
        yield
    finally:
        ops._core, ops._packed_keys = before
        ops.library._core = ops._core
