"""The C ABI with the emulator as its CUDA half: `tests/cuda/CMakeLists.txt` builds liblolrt_cuda.so from csrc/cuda and simt. A copy of
liblolrt.so beside it loads it when a tensor claims to be on CUDA. Here such tensors are torch's on the CPU.

All test runs of a checkout build in one folder, one after another. Each loads its own copies, which no later build overwrites.

What is emulated is not run on a GPU: docs/gpu.md says what the emulator checks and what it cannot know.
"""

from __future__ import annotations

import ctypes
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from commands import output_of
from torch import Tensor

import lolrt
from lolrt import _core

ROOT = Path(__file__).parents[2]
SIMT = ROOT / "tests" / "cuda" / "simt"
LIBRARY = Path(lolrt.__file__).parent / "lib" / "liblolrt.so"

CUDA = 2
_CODES = {
    torch.float32: (2, 32), torch.float16: (2, 16), torch.bfloat16: (4, 16), torch.float8_e4m3fn: (10, 8), torch.int32: (0, 32),
}  # fmt: skip


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_P, _I64, _F32 = ctypes.POINTER(_Tensor), ctypes.c_int64, ctypes.c_float


def _descriptor(name: str, **fields: Any) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": [("struct_size", ctypes.c_uint32), *fields.items()]})


# In the order of lolrt.h.
_KvWrite = _descriptor(
    "KvWrite", eps=_F32, q=_P, k=_P, v=_P, q_weight=_P, k_weight=_P, rotation=_P, rotation_first_channel=_I64, q_out=_P, pages=_P,
    page_table=_P, stream=ctypes.c_void_p,
)  # fmt: skip
_FrameAttention = _descriptor(
    "FrameAttention", scale=_F32, q=_P, pages=_P, page_table=_P, page_tokens=_I64, rotation=_P, bias=_P, out=_P, mass=_P,
    workspace=ctypes.c_void_p, workspace_bytes=ctypes.c_uint64, stream=ctypes.c_void_p,
)  # fmt: skip
_ModulatedNorm = _descriptor("ModulatedNorm", eps=_F32, x=_P, residual=_P, gate=_P, scale=_P, shift=_P, out=_P, stream=ctypes.c_void_p)
_Gelu = _descriptor("Gelu", x=_P, stream=ctypes.c_void_p)
_SamplerStep = _descriptor(
    "SamplerStep", level=ctypes.c_double, after=ctypes.c_double, sample=_P, velocity=_P, noise=_P, out=_P, stream=ctypes.c_void_p
)


class AbiError(Exception):
    """A call's status, which is not LOLRT_OK, and the text of lolrt_last_error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Manner:
    """How a call is made."""

    device: int = 0
    """The device of its tensors."""
    stream: int = 0
    by_offset: bool = False
    """Passes tensors by the start of their storage and `byte_offset`, without strides if they have no gaps, as DLPack permits."""

    def view(self, tensor: Tensor) -> _Tensor:
        code, bits = _CODES[tensor.dtype]
        sizes = ctypes.c_int64 * tensor.ndim
        device = (ctypes.c_int32 * 2)(CUDA, self.device)
        offset = tensor.storage_offset() * tensor.element_size() if self.by_offset else 0
        strides = None if self.by_offset and tensor.is_contiguous() else sizes(*tensor.stride())
        return _Tensor(tensor.data_ptr() - offset, device, tensor.ndim, code, bits, 1, sizes(*tensor.shape), strides, offset)


def describe(kind: type[ctypes.Structure], arguments: dict[str, Any], manner: Manner = Manner()) -> ctypes.Structure:
    fields = {name: ctypes.pointer(manner.view(value)) if isinstance(value, Tensor) else value for name, value in arguments.items()}
    return kind(struct_size=ctypes.sizeof(kind), stream=manner.stream, **fields)


class Note(ctypes.Structure):
    """A call of the CUDA runtime: `Note` of tests/cuda/simt/runtime.h."""

    _fields_ = (
        ("name", ctypes.c_char * 32),
        ("kernel", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
        ("blocks", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_uint32),
        ("shared_bytes", ctypes.c_uint32),
        ("device", ctypes.c_int32),
        ("value", ctypes.c_int32),
        ("error", ctypes.c_int32),
    )


class Abi:
    """liblolrt by its C ABI; a failure raises AbiError."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.lolrt_last_error.restype = ctypes.c_char_p

    def __call__(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, f"lolrt_{function}")(*arguments)
        if status != 0:
            raise AbiError(status, self._library.lolrt_last_error().decode())

    def page_elements(self, dtype: torch.dtype, tokens: int, heads: int, dim: int) -> int:
        code, bits = _CODES[dtype]
        elements = ctypes.c_int64()
        packed = ctypes.c_uint32(code | bits << 8 | 1 << 16)  # lolrt_dtype by value
        self("page_elements", CUDA, packed, *map(ctypes.c_int64, (tokens, heads, dim)), ctypes.byref(elements))
        return elements.value

    def gelu(self, x: Tensor) -> None:
        self("gelu", ctypes.byref(describe(_Gelu, {"x": x})))


@contextmanager
def build_folder(build: Path = ROOT / "build" / "emulated") -> Iterator[Path]:
    """The folder in which all test runs of a checkout build. While the context is open, no other run builds."""
    build.mkdir(parents=True, exist_ok=True)
    with (build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the lock is held until the file is closed
        yield build


def build(into: Path) -> Path:
    """Compiles the changed sources of the emulated half, and copies it into a folder that belongs to this run: ninja and the linker
    overwrite libraries in place, and a process that has loaded one then crashes. Returns a copy of liblolrt.so that finds the other.
    `objects` are the emulated half's, for linking with a changed kernel; `headers` says which were compiled."""
    with build_folder() as folder:
        output_of("cmake", "-S", ROOT / "tests" / "cuda", "-B", folder, "-G", "Ninja", f"-DLOLRT_VERSION={_core.version()}")
        output_of("cmake", "--build", folder)
        for name in ("liblolrt_cuda.so", "liblayouts.so", "test_simt"):
            shutil.copy(folder / name, into)
        (into / "objects").mkdir()
        for path in folder.rglob("lolrt_cuda.dir/**/*.o"):
            shutil.copy(path, into / "objects")
        (into / "headers").write_text(output_of("ninja", "-C", folder, "-t", "deps"))
    return Path(shutil.copy(LIBRARY, into))


class Emulated:
    """The ops, on torch tensors on the CPU that stand for tensors on CUDA; every call runs under the emulator's checks."""

    def __init__(self, library: Path) -> None:
        self.path = library
        self._abi = Abi(library)
        self._simt = ctypes.CDLL(str(library.with_name("liblolrt_cuda.so")))
        self._simt.lolrt_simt_run.restype = ctypes.c_char_p
        self.manner = Manner()
        self.settings()

    def settings(self, seed: int = 0, architecture: int = 800, multiprocessors: int = 2, device: int = 0, last_blocks: int = 0) -> None:
        """With a seed other than 0, threads, blocks and copies come in a random order. architecture, as in __CUDA_ARCH__, is the one
        that the loaded code was made for; device is the GPU's own, by default the same. last_blocks: how many blocks of each launch run,
        its last ones; 0 runs all."""
        self._simt.lolrt_simt_settings(ctypes.c_uint64(seed), architecture, multiprocessors, device, last_blocks)
        self.restart_runtime()

    def restart_runtime(self, device: int = 0, failing_call: int = 0, error: int = 999) -> None:
        """Resets the CUDA runtime, with this device current. The call with this number, counted from 1, will fail with this error, by
        default cudaErrorUnknown."""
        self._simt.lolrt_simt_restart_runtime(device, failing_call, error)

    def notes(self) -> list[Note]:
        """Calls of the CUDA runtime since its reset."""
        notes = (Note * self._simt.lolrt_simt_notes(None, 0))()
        self._simt.lolrt_simt_notes(notes, len(notes))
        return list(notes)

    def last_error(self) -> int:
        """The error that the runtime would return to the next caller who asks."""
        return self._simt.lolrt_simt_last_error()

    def leave_error(self, error: int) -> None:
        """Sets an error in the runtime, as if other code had left it there."""
        self._simt.lolrt_simt_leave_error(error)

    def counts(self) -> dict[str, int]:
        """Counts over all launches since the last call."""
        names = (
            "blocks", "products", "matrix_loads", "bank_conflicts", "copies", "shared_bytes", "warpgroup_products", "boxes",
            "warpgroup_turns",
        )  # fmt: skip
        values = (ctypes.c_uint64 * len(names))()
        self._simt.lolrt_simt_counts(ctypes.byref(values))
        return dict(zip(names, values, strict=True))

    def runs_with(self, runner: Any) -> None:
        """A `Runner` of tests/cuda/simt/simt.h that runs launches instead of the emulator; None: the emulator again."""
        self._simt.lolrt_simt_runner(runner)

    def launch(self, kept: ctypes.Structure) -> None:
        """Runs a launch that such a runner has kept."""
        problem = self._simt.lolrt_simt_run(ctypes.byref(kept))
        assert problem is None, problem.decode()

    def page_elements(self, dtype: torch.dtype, tokens: int, heads: int, dim: int) -> int:
        return self._abi.page_elements(dtype, tokens, heads, dim)

    def kv_write(self, **arguments: Any) -> None:
        self._call("kv_write", _KvWrite, arguments)

    def frame_attention(self, **arguments: Any) -> None:
        needed = ctypes.c_uint64()
        self._abi("frame_attention_workspace", ctypes.byref(describe(_FrameAttention, arguments, self.manner)), ctypes.byref(needed))
        workspace = torch.full((needed.value // 4 + 16,), torch.nan)
        start = -(-workspace.data_ptr() // 64) * 64
        space = {"workspace": start if needed.value else None, "workspace_bytes": needed.value}
        self._call("frame_attention", _FrameAttention, arguments | space, workspace)

    def modulated_norm(self, **arguments: Any) -> None:
        self._call("modulated_norm", _ModulatedNorm, arguments)

    def gelu(self, x: Tensor) -> None:
        self._call("gelu", _Gelu, {"x": x})

    def sampler_step(self, **arguments: Any) -> None:
        self._call("sampler_step", _SamplerStep, arguments)

    def buffers(self, tensors: list[Tensor]) -> None:
        """The memory that the next calls may access: that of these tensors."""
        self.tensors = tensors
        storages = [x.untyped_storage() for x in tensors]
        starts = (ctypes.c_void_p * len(storages))(*(storage.data_ptr() for storage in storages))
        sizes = (ctypes.c_uint64 * len(storages))(*(storage.nbytes() for storage in storages))
        self._simt.lolrt_simt_buffers(starts, sizes, len(storages))

    def _call(self, op: str, kind: type[ctypes.Structure], arguments: dict[str, Any], *others: Tensor) -> None:
        self.buffers([x for x in (*arguments.values(), *others) if isinstance(x, Tensor)])
        self._abi(op, ctypes.byref(describe(kind, arguments, self.manner)))
