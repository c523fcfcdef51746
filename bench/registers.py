"""What this CPU's vector instructions reach from registers alone, on one core: `python -m bench.registers`, seconds; needs a C compiler.

These are the ceilings of the kernels: a multiply-add of float32, a product of pairs of bfloat16, a product of fours of bytes. Operations
are counted as 2 for each product and its sum. CPU time, the least of several turns.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import time
from pathlib import Path

from lolrt import _core

INSTRUCTIONS = {  # operations, and the kernel set that has it
    "vfmadd231ps": (32, "avx512"),
    "vdpbf16ps": (64, "avx512bf16"),
    "vpdpbusd": (128, "avx512"),
}
SUMS, LOOPS, TURNS = 16, 2_000_000, 9


def rate(instruction: str, operations: int, folder: Path) -> float:
    """Operations a second of independent sums."""
    body = "".join(f'"{instruction} %%zmm30, %%zmm31, %%zmm{i}\\n" ' for i in range(SUMS))
    clobbered = ", ".join(f'"xmm{i}"' for i in range(SUMS))
    source = folder / f"{instruction}.c"
    source.write_text(f'void run(long n) {{ __asm__ volatile("1: " {body} "dec %0\\n jnz 1b" : "+r"(n) : : {clobbered}); }}\n')
    library = source.with_suffix(".so")
    subprocess.run([os.environ.get("CC", "cc"), "-O2", "-mavx512f", "-shared", "-fPIC", source, "-o", library], check=True)
    run = ctypes.CDLL(str(library)).run
    run.argtypes = [ctypes.c_long]
    seconds = []
    for _ in range(TURNS):
        start = time.thread_time()
        run(LOOPS)
        seconds.append(time.thread_time() - start)
    return SUMS * LOOPS * operations / min(seconds)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for instruction, (operations, isa) in INSTRUCTIONS.items():
            if isa in _core.isas():
                print(f"{instruction}: {rate(instruction, operations, Path(folder)) / 1e9:.0f} G operations/s")


if __name__ == "__main__":
    main()
