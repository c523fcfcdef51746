"""ldmatrix and mma. Which lane holds which element: ISA, "Matrix fragments for mma.m16n8k16 with floating point type" and "ldmatrix".

Products are exact and added in float64, then rounded once: hardware keeps fewer bits, the emulator rounds each addition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .operands import Array, Execute, Mask, Operands, instruction
from .parse import parts
from .shared import LANES

if TYPE_CHECKING:
    from .machine import Machine

LANE = np.arange(LANES)[:, None]
GROUP, MEMBER = LANE // 4, LANE % 4  # the ISA's groupID and threadID_in_group

# Row and column of element i of a lane's fragment, [lanes, elements].
_A, _B, _C = np.arange(8), np.arange(4), np.arange(4)
A_ROW, A_COLUMN = GROUP + 8 * (_A // 2 % 2), MEMBER * 2 + (_A & 1) + 8 * (_A // 4)
B_ROW, B_COLUMN = MEMBER * 2 + (_B & 1) + 8 * (_B // 2), GROUP + 0 * _B
C_ROW, C_COLUMN = GROUP + 8 * (_C // 2), MEMBER * 2 + (_C & 1)


def elements(words: Array, element: str) -> Array:
    """Pairs of 16-bit elements, the first in the low half of its word, as float64; the last dimension doubles."""
    halves = np.ascontiguousarray(words).view(np.uint16)
    if element == "f16":
        return halves.view(np.float16).astype(np.float64)
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)


@instruction(r"ldmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared\.b16")
def load_matrices(x: Operands, count: str, transposed: str | None) -> Execute:
    matrices = int(count)
    stores, address = [x.write(target, "b32") for target in parts(x[0])], x.address(x[1])
    if len(stores) != matrices:
        raise x.error("another number of registers")
    pair = MEMBER * 2 + np.arange(2)  # [lanes, 2]
    row, column = (pair, GROUP) if transposed else (GROUP, pair)

    def execute(m: Machine, mask: Mask) -> None:
        warps = m.active(mask).reshape(-1, LANES)
        lanes = warps[:, : 8 * matrices].ravel()  # lane 8 i + j has the address of row j of matrix i
        rows = m.shared.load(lanes, address(m)[lanes], np.dtype(np.uint16), 8, "ldmatrix").reshape(-1, matrices, 8, 8)
        m.counts["matrix_loads"] += len(warps)
        for i, store in enumerate(stores):
            words = np.ascontiguousarray(rows[:, i, row, column]).view(np.uint32)
            everywhere = np.zeros(m.threads, np.uint32)
            everywhere[warps] = words[..., 0]
            store(m, everywhere, mask)

    return execute


@instruction(r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(bf16|f16)\.(bf16|f16)\.f32")
def multiply_add(x: Operands, element: str, other: str) -> Execute:
    stores = [x.write(target, "f32") for target in parts(x[0])]
    a, b = ([x.read(source, "b32") for source in parts(x[i])] for i in (1, 2))
    c = [x.read(source, "f32") for source in parts(x[3])]
    if element != other or (len(stores), len(a), len(b), len(c)) != (4, 4, 2, 4):
        raise x.error("not the operands of mma")

    def execute(m: Machine, mask: Mask) -> None:
        warps = m.active(mask).reshape(-1, LANES)

        def fragment(reads: list) -> Array:  # [warps, lanes, registers]
            return np.stack([m.spread(read(m))[warps] for read in reads], -1)

        left, right = np.empty((len(warps), 16, 16)), np.empty((len(warps), 16, 8))
        left[:, A_ROW, A_COLUMN] = elements(fragment(a), element)
        right[:, B_ROW, B_COLUMN] = elements(fragment(b), element)
        total = np.matmul(left, right)[:, C_ROW, C_COLUMN] + fragment(c)
        m.counts["products"] += len(warps)
        for i, store in enumerate(stores):
            everywhere = np.zeros(m.threads, np.float32)
            everywhere[warps] = total[..., i]
            store(m, everywhere, mask)

    return execute
