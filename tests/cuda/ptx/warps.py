"""Instructions in which the lanes of a warp, or the threads of a block, meet. The machine runs them when all of them have arrived."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .operands import Execute, Mask, Operands, instruction
from .shared import LANES

if TYPE_CHECKING:
    from .machine import Machine

WARP, WARPGROUP, BLOCK = "warp", "warpgroup", "block"


def meeting(opcode: str) -> str | None:
    """Who must have arrived: the lanes of the WARP, the threads of the WARPGROUP or BLOCK, or only the thread that executes it."""
    if opcode == "bar.sync":
        return BLOCK
    if opcode.startswith(("wgmma", "setmaxnreg")):
        return WARPGROUP
    return WARP if ".sync" in opcode or opcode.startswith("barrier.cta") else None


def _check_all_lanes(x: Operands, mask: str) -> None:
    """A mask that is not a constant is treated as all lanes, because that is what the compiler makes from 0xffffffff."""
    if not mask.startswith("%") and mask not in ("-1", "0xffffffff"):
        raise x.error("unknown mask of lanes")


@instruction(r"bar\.sync")
def block_barrier(x: Operands) -> Execute:
    if len(x) != 1 or x[0] != "0":
        raise x.error("unknown barrier")
    return lambda m, mask: m.shared.meet_block(m.active(mask))


@instruction(r"bar\.warp\.sync")
def warp_barrier(x: Operands) -> Execute:
    _check_all_lanes(x, x[0])
    return lambda m, mask: m.shared.meet_warp(m.active(mask))


# The ISA's pseudocode of shfl: c holds the last lane (bits 0 to 4) and the lanes' segments (bits 8 to 12).
@instruction(r"shfl\.sync\.(bfly|idx)\.b32")
def exchange(x: Operands, mode: str) -> Execute:
    target, _, valid = x[0].partition("|")
    store, store_valid = x.write(target, "b32"), x.write(valid or "_", "pred")
    value, which, clamp, lanes = x.read(x[1], "b32"), x.read(x[2], "u32"), x.read(x[3], "u32"), x.read(x[4], "u32")

    def execute(m: Machine, mask: Mask) -> None:
        m.check_all(lanes(m), mask, "a mask of lanes that is not all")
        lane, c = m.lane, clamp(m)
        segment = c >> 8 & 31
        last = (lane & segment) | (c & 31 & ~segment)
        other = lane ^ (which(m) & 31) if mode == "bfly" else (lane & segment) | (which(m) & 31 & ~segment)
        inside = other <= last
        source = np.where(inside, other, lane) + m.first_lane
        store(m, value(m)[source], mask)
        store_valid(m, inside, mask)

    return execute


@instruction(r"vote\.sync\.(any|all)\.pred")
def vote(x: Operands, which: str) -> Execute:
    store, read, lanes = x.write(x[0], "pred"), x.read(x[1], "pred"), x.read(x[2], "u32")

    def execute(m: Machine, mask: Mask) -> None:
        m.check_all(lanes(m), mask, "a mask of lanes that is not all")
        votes = m.spread(read(m)).reshape(-1, LANES)
        store(m, np.repeat(votes.any(1) if which == "any" else votes.all(1), LANES), mask)

    return execute
