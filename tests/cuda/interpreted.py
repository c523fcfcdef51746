"""The C ABI with the interpreter of PTX (`ptx`) as its CUDA half: nvcc compiles csrc/cuda, the launchers of the emulated build report
what they launch (kernel, grid, shared memory, argument), and the interpreter runs that on the tensors' own memory.
"""

from __future__ import annotations

import ctypes
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from commands import output_of
from emulated import ROOT, Emulated
from ptx import Kernel, Launch, Memory, Program, PtxError, kernels, run
from torch import Tensor

KERNELS = ROOT / "csrc" / "cuda"
UNITS = sorted(KERNELS.glob("*.cu"))
FLAGS = ["-ptx", "-std=c++17", "-fmad=false"]  # those of CMakeLists.txt


def compile_ptx(units: Iterable[Path], sources: Path = KERNELS, architecture: str = "80") -> dict[str, Kernel]:
    """The PTX that nvcc makes of some .cu files with the headers of `sources`."""
    flags = [*FLAGS, f"-arch=compute_{architecture}", *(f"-I{path}" for path in (sources, ROOT / "csrc", ROOT / "csrc" / "include"))]
    return {name: kernel for unit in units for name, kernel in kernels(output_of("nvcc", *flags, unit, "-o", "-")).items()}


def has_nvcc() -> bool:
    return shutil.which("nvcc") is not None


class Asked(ctypes.Structure):
    """`Launch` of tests/cuda/simt/simt.h."""

    _fields_ = (
        ("kernel", ctypes.c_void_p),
        ("blocks", ctypes.c_uint * 3),
        ("threads", ctypes.c_uint),
        ("shared_bytes", ctypes.c_uint),
        ("argument", ctypes.c_void_p),
        ("argument_bytes", ctypes.c_uint64),
        ("enter", ctypes.c_void_p),
    )


RUNNER = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(Asked))


def _signatures(mangled: list[str]) -> list[str]:
    """Names as in the source: nvcc names anonymous namespaces, g++ does not."""
    lines = output_of("c++filt", *mangled).splitlines()
    return [re.sub(r"_GLOBAL__N__\w+", "(anonymous namespace)", line) for line in lines]


class Interpreted(Emulated):
    """The ops on torch tensors on the CPU, by the PTX of one architecture."""

    def __init__(self, library: Path, found: dict[str, Kernel], architecture: int = 800) -> None:
        """found: kernels by their mangled names; architecture as in __CUDA_ARCH__."""
        super().__init__(library)
        self.architecture = architecture
        self.device = 0
        self.last_blocks = 0
        """As in `Emulated.settings`."""
        self.kernels = found
        self._kernels = dict(zip(_signatures(list(found)), found.values(), strict=True))
        self._programs: dict[str, Program] = {}
        self._names = self._host_names(library.with_name("liblolrt_cuda.so"))
        self._counts: Counter[str] = Counter()
        self._problem = ctypes.create_string_buffer(b"")
        self._failure: Exception | None = None
        self._runner = RUNNER(self._run)

    def counts(self) -> dict[str, int]:
        """Counts over all launches since the last call: those of the emulator, and `other_conflicts`, the bank conflicts of loads and
        stores."""
        counts, self._counts = self._counts, Counter()
        return counts

    def not_run(self) -> set[str]:
        """Signatures of the kernels that no call has run so far, without the empty ones, which have tiles of another architecture."""
        return {name for name, kernel in self._kernels.items() if kernel.code[0].opcode != "trap"} - set(self._programs)

    def _host_names(self, library: Path) -> dict[int, str]:
        """Signatures of the library's functions, by their addresses in this process."""
        symbols = [line.split() for line in output_of("nm", "--defined-only", library).splitlines()]
        known = {name: int(address, 16) for address, _, name in symbols if "kernel" in name or name == "lolrt_simt_runner"}
        runner = ctypes.cast(self._simt.lolrt_simt_runner, ctypes.c_void_p).value
        base = runner - known["lolrt_simt_runner"]
        return {base + address: name for address, name in zip(known.values(), _signatures(list(known)), strict=True)}

    def _call(self, op: str, kind: type[ctypes.Structure], arguments: dict[str, Any], *others: Tensor) -> None:
        storages = [x.untyped_storage() for x in (*arguments.values(), *others) if isinstance(x, Tensor)]
        self._memory = Memory([(storage.data_ptr(), storage.nbytes()) for storage in storages])
        self._failure = None
        self.runs_with(self._runner)
        self.settings(architecture=self.architecture, device=self.device)
        try:
            super()._call(op, kind, arguments, *others)
        finally:
            self.runs_with(None)
            self.settings()
            if self._failure is not None:
                raise self._failure

    def _run(self, asked: Any) -> int | None:
        """Called by the launchers; returns the address of an error text, or None. Errors of the interpreter itself are raised later."""
        try:
            launch = asked.contents
            name = self._names[launch.kernel]
            if name not in self._programs:
                self._programs[name] = Program(self._kernels[name])
            parameters = ctypes.string_at(launch.argument, launch.argument_bytes)
            what = Launch(tuple(launch.blocks), launch.threads, launch.shared_bytes, parameters)
            self._counts += run(self._programs[name], what, self._memory, self.last_blocks)
            self._counts["shared_bytes"] = max(self._counts["shared_bytes"], launch.shared_bytes)
            return None
        except PtxError as error:
            text = str(error)
        except Exception as error:
            self._failure, text = error, "the interpreter failed"
        self._problem = ctypes.create_string_buffer(text.encode())
        return ctypes.addressof(self._problem)
