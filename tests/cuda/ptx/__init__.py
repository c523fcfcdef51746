"""An interpreter of PTX on NumPy: it runs what nvcc has made of the kernels, instruction by instruction, without a GPU.

The emulator (tests/cuda/simt) compiles the kernels' C++ with its own `device` headers; here the inline PTX of csrc/cuda/device and the
compiler's own code run, so that a swapped operand or a wrong modifier shows. Text -> `parse` -> `program` (basic blocks of
instructions, made by the families: `arithmetic`, `moves`, `warps`, `copies`, `matrices`, and those of sm_90a, `barriers`, `boxes`,
`warpgroups`) -> `machine`, which runs all threads of some blocks side by side on `memory` and `shared`. An instruction that no family
knows is an error that names it.

Semantics are those of NVIDIA's "Parallel Thread Execution ISA", version 9.0; sections are named where it is not obvious.
"""

from .machine import Launch, run
from .memory import Memory
from .parse import Instruction, Kernel, PtxError, kernels
from .program import Program

__all__ = ["Instruction", "Kernel", "Launch", "Memory", "Program", "PtxError", "kernels", "run"]
