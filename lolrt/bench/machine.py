"""Describes the machine of a benchmark, and limits a process to one of its instruction sets."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from lolrt.openmp import WAIT

CPU_FEATURES = ("fma", "f16c", "avx2", "avx512f", "avx512bw", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16", "i8mm")

# For kernels without an entry, the libraries may use all instructions of the CPU. oneDNN's limit does not bind MKL, which computes the
# bfloat16 products inside scaled dot product attention; of MKL's names, AVX512_E2 is the one with bfloat16 and without AMX. With kernels
# for AVX-512 oneDNN keeps VNNI, which layers in int8 need and float products do not use.
_LIBRARY_LIMITS = {
    "avx512bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "MKL_ENABLE_INSTRUCTIONS": "AVX512_E2"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}


def environment(isa: str) -> dict[str, str]:
    """The environment variables that limit our kernels, and torch with its libraries, to one instruction set. All are read on import."""
    return {"LOLRT_ISA": isa, **WAIT, **_LIBRARY_LIMITS.get(isa, {})}


def isas() -> list[str]:
    """The kernel sets to measure on this machine, the best first. The portable set is left out: it is made for correctness, not for
    speed."""
    from lolrt import _core

    return [isa for isa in _core.isas() if isa != "scalar"] or ["scalar"]


def multiplies_bf16(isa: str) -> bool:
    return isa in ("amx", "avx512bf16", "neonbf16")


def cpu_features() -> list[str]:
    """The features of the CPU that matter to our kernels and to torch; empty if the system does not list them."""
    try:
        listed = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return [feature for feature in CPU_FEATURES if feature in listed]


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def cores() -> int:
    """The number of CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_compiler() -> bool:
    """Whether there is a compiler for the CPU code that torch.compile generates."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def describe() -> dict[str, str]:
    """The header of a table: machine, features, instruction sets in use, versions."""
    import torch

    import lolrt
    from lolrt import _core

    isa = _core.isa()
    limits = " ".join(f"{name}={os.environ[name]}" for name in _LIBRARY_LIMITS.get(isa, {}) if name in os.environ)
    return {
        "cpu": f"{cpu_model()}, {cores()} cores",
        "features": " ".join(cpu_features()) or "unknown",
        "kernels": f"{isa}; torch's libraries: {limits or 'not limited'}",
        "versions": f"lolrt {lolrt.__version__}, torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}",
    }
