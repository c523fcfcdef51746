"""What frame_attention should reach on an A100 and an H100: predicted from its machine code, not measured. `python -m bench.gpu.model`

Instructions of a tile (bench.sass) go to pipes with the rates that NVIDIA states. If all pipes work at once a tile takes as long as the
busiest; if nothing overlaps, the sum of the arithmetic ones. Reality is between:

    cycles = busiest + a (sum - busiest)

`a` is taken from a published kernel on the same machine, whose instructions are counted from its algorithm: FlashAttention-2, and for an
upper end on the H100 FlashAttention-3, which overlaps in more ways than our kernel does. What the model gives for other published kernels
is printed beside what they reached: that is its error.

Blocks are all alike and come in rounds: two share a multiprocessor, and a last round that does not give each of them two leaves blocks
alone there, where nothing overlaps.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from bench import sass
from lolrt.bench.table import aligned

SCHEDULERS, LANES = 4, 32  # of a multiprocessor; of a warp
PRODUCT_FLOP = 2 * 16 * 8 * 16  # of one HMMA.16816


@dataclass(frozen=True)
class Machine:
    """Rates per clock and multiprocessor where nothing else is said.

    Of arithmetic: CUDA C++ Best Practices Guide 13, table "Throughput of Native Arithmetic Instructions", columns 8.0 and 9.0 (before
    CUDA 13 in the Programming Guide, section Arithmetic Instructions). Conversions of two floats into a word (F2FP) are not in that
    table; they are taken to be as fast as comparisons. Of the rest: NVIDIA A100 Tensor Core GPU Architecture 1.0, table 4 and section
    A100 L2 cache; NVIDIA H100 Tensor Core GPU Architecture 1.04, table 3. It has no rate for the H100's L2 cache: taken is 6.65 TB/s,
    measured on an H100 SXM (a comment in openxla/xla, gpu_dot_fusion_cost_model.cc). Others measured 6.9 on an H100 PCIe and 9.7 on an
    H200 (te42kyfo/gpu-benches, gpu-l2-cache): `FAST_L2` bytes a cycle.
    """

    name: str
    architecture: str
    multiprocessors: int
    ghz: float
    tensor_flop: int
    float32: int
    """Results of add, multiply, multiply-add."""
    mma_share: float = 1.0
    """The share of the tensor cores' rate that mma.sync reaches: on Hopper 62.9 % (Luo et al., arXiv 2402.13499)."""
    other: int = 64
    """Results of integer and logic instructions, comparisons, minimum and maximum."""
    special: int = 16
    """Results of 2^x."""
    shared_bytes: int = 128
    l2_bytes: int = 5120
    """Bytes a cycle of all multiprocessors together."""
    dram_gb: int = 0

    @property
    def peak_tflops(self) -> float:
        return self.tensor_flop * self.multiprocessors * self.ghz / 1e3


A100 = Machine("A100", "sm_80", 108, 1.410, tensor_flop=2048, float32=64, dram_gb=2039)
FAST_L2 = 5300
H100 = Machine("H100", "sm_90a", 132, 1.830, tensor_flop=4096, float32=128, mma_share=0.629, l2_bytes=3634, dram_gb=3352)

_FLOAT = {"FFMA", "FADD", "FMUL"}
_NO_PIPE = {"NOP", "BRA", "BAR", "CALL", "DEPBAR", "LDGDEPBAR", "BSSY", "BSYNC", "S2R", "VOTE", "WARPGROUP", "SYNCS"}
# Bytes that a warp moves through shared memory. LDSM always loads four matrices here.
_SHARED = {"LDSM": 512, "LDGSTS": 512, "LDS": 512, "STS": 512, "SHFL": 128}
_ARITHMETIC = ("tensor", "special", "float32", "other")


def pipes(counts: Mapping[str, int], machine: Machine, warps: int = 4, mma: bool = True) -> dict[str, float]:
    """Cycles that each pipe is busy with what `warps` warps, the same number at each scheduler, do once. Without `mma` the products are
    WGMMA's, counted in units of HMMA, and copies are by TMA, counted in units of LDGSTS."""

    def results(names: set[str]) -> int:
        return LANES * warps * sum(counts.get(name, 0) for name in names)

    # What runs on the uniform datapath only takes its turn.
    elsewhere = {name for name in counts if name.startswith("U")} | _NO_PIPE | _FLOAT | set(_SHARED) | {"HMMA", "MUFU"}
    tensor_rate = machine.tensor_flop * (machine.mma_share if mma else 1.0)
    return {
        "tensor": counts.get("HMMA", 0) * PRODUCT_FLOP * warps / tensor_rate,
        "special": results({"MUFU"}) / machine.special,
        "float32": results(_FLOAT) / machine.float32,
        "other": results(set(counts) - elsewhere) / machine.other,
        "issue": sum(counts.values()) * warps / SCHEDULERS,
        "shared": sum(counts.get(name, 0) * size for name, size in _SHARED.items()) * warps / machine.shared_bytes,
        "L2": counts.get("LDGSTS", 0) * 512 * warps * machine.multiprocessors / machine.l2_bytes,
    }


def cycles(busy: Mapping[str, float], overlap: float) -> float:
    """Cycles of work that takes these cycles in each pipe. `overlap` is `a` above: 0 is full overlap, 1 none."""
    busiest = max(busy.values())
    return busiest + overlap * max(sum(busy[pipe] for pipe in _ARITHMETIC) - busiest, 0.0)


@dataclass(frozen=True)
class Work:
    """A block's phases in the order of time: the number of times, and the instructions of each warp."""

    parts: tuple[tuple[int, Mapping[str, int]], ...]
    flop: float
    """FLOP that the caller asked for, without what the hardware multiplies in padding."""
    warps: int = 4
    resident: int = 2
    """Blocks that share a multiprocessor."""
    mma: bool = True

    def cycles(self, machine: Machine, overlap: float) -> float:
        return sum(times * cycles(pipes(counts, machine, self.warps, self.mma), overlap) for times, counts in self.parts)


def rounds(work: Work, blocks: int, machine: Machine, overlap: float) -> float:
    """Cycles of a number of equal blocks."""
    together = work.resident * work.cycles(machine, overlap)
    full, rest = divmod(blocks, work.resident * machine.multiprocessors)
    last = 0.0 if rest == 0 else together if rest > machine.multiprocessors or work.resident == 1 else work.cycles(machine, 1.0)
    return full * together + last


def split(work: Work, blocks: int, pages: int, machine: Machine, overlap: float, partial_bytes: int) -> float:
    """Cycles when the tiles that do not fill a round are cut by pages, as csrc/cuda/work_split.cuh does: each block takes the slot that
    is free first. Parts are written, and read again by the kernel that combines them, at the rate of the memory."""
    slots = work.resident * machine.multiprocessors
    full, rest = divmod(blocks, slots)
    last, parts = min((_last_pages(rest, pages, part, slots), -(-pages // part)) for part in range(1, pages + 1)) if rest else (0, 1)
    combined = 0.0 if parts == 1 else 2 * rest * parts * partial_bytes / (machine.dram_gb / machine.ghz)
    return (full * pages + last) * work.resident * work.cycles(machine, overlap) / pages + combined


def _last_pages(tiles: int, pages: int, part: int, slots: int) -> int:
    """Pages of the slot that does the most."""
    free = [0] * slots
    for first in range(0, pages, part):
        for _ in range(tiles):
            heapq.heapreplace(free, free[0] + min(part, pages - first))
    return max(free)


def fraction(work: Work, blocks: int, machine: Machine, taken: float) -> float:
    """Share of the tensor cores' peak."""
    return work.flop * blocks / (machine.tensor_flop * machine.multiprocessors * taken)


# ---- published kernels, counted from their algorithms ----


def flash(rows: int, keys: int, dim: int, tiles: int, warps: int, resident: int, mma: bool, addresses: int) -> Work:
    """A tile of FlashAttention as in its papers: the output is rescaled in each tile. `addresses`: the other instructions of a warp; FA2
    2.8.3 has 910 instructions per tile in total."""
    own = rows // warps  # rows of a warp
    scores, held = own * keys // LANES, own * 4 // LANES  # of a lane: scores, and rows that it has a part of
    counts = Counter(
        HMMA=4 * own * keys * dim // PRODUCT_FLOP,
        LDSM=2 * (own * dim + 2 * keys * dim) // 512 if mma else 0,
        LDGSTS=4 * keys * dim // (512 * warps) if mma else 0,
        MUFU=scores + held,
        FFMA=scores,
        FADD=scores,
        FMUL=own * dim // LANES + 2 * held,
        FMNMX=scores + 2 * held,
        F2FP=scores // 2,
        SHFL=2 * held,
        BAR=2,
        IADD3=addresses,
    )
    return Work(((tiles, counts),), 4.0 * rows * keys * dim * tiles, warps, resident, mma)


@dataclass(frozen=True)
class Published:
    """16 heads of 128 channels, 16384 tokens, no mask; blocks of 128 rows."""

    name: str
    machine: Machine
    work: Work
    tflops: float
    source: str
    blocks: int = field(default=16 * 16384 // 128)

    def predicted(self, overlap: float) -> float:
        return fraction(self.work, self.blocks, self.machine, rounds(self.work, self.blocks, self.machine, overlap))

    @property
    def reached(self) -> float:
        return self.tflops / self.machine.peak_tflops

    def overlap(self) -> float:
        """The factor that makes the model right for this kernel; time is linear in it."""
        none, all_, real = 1 / self.predicted(0.0), 1 / self.predicted(1.0), 1 / self.reached
        return (real - none) / (all_ - none)


_FA2 = flash(128, 64, 128, 16384 // 64, warps=4, resident=2, mma=True, addresses=112)
FA2_A100 = Published("FA2", A100, _FA2, 230, "arXiv 2307.08691, up to 73 % of the peak")
FA2_H100 = Published("FA2", H100, _FA2, 370, "arXiv 2407.08608, figure 5")
FA3_H100 = Published(
    "FA3", H100, flash(128, 176, 128, -(-16384 // 176), 8, 1, mma=False, addresses=60), 620, "pytorch/benchmark, pull request 2391"
)
TRITON_H100 = Published(
    "FA2 in Triton", H100, flash(128, 128, 128, 16384 // 128, 8, 1, mma=False, addresses=60), 477, "pytorch/benchmark, pull request 2391"
)


# ---- frame_attention ----


@dataclass(frozen=True)
class Shape:
    """One layer of one pass."""

    frames: int = 3
    tokens: int = 1560
    pages: int = 12
    heads: int = 12
    dim: int = 128
    turned: int = 6
    """Chunks of 8 channels that a page's rotation turns: 22 pairs, filled up to 24."""

    @property
    def blocks(self) -> int:
        return -(-self.frames * self.tokens // 128) * self.heads

    @property
    def flop(self) -> float:
        return 4.0 * self.frames * self.tokens * self.pages * self.tokens * self.heads * self.dim


def frame_attention(function: sass.Function, shape: Shape) -> Work:
    """A block's work, from the machine code of one of the two kernels."""
    if match := _MMA_KERNEL.search(function.name):
        return _by_mma(function, shape, int(match[2]), stored_bytes=1 if match[1] else 2)
    return _by_warpgroups(function, shape)


def _by_mma(function: sass.Function, shape: Shape, keys: int, stored_bytes: int) -> Work:
    """The whole tiles of a page; its first has the rotation, its last the copies for the next page."""
    loop = sass.innermost_loop(function, "HMMA")
    whole, rest = divmod(shape.tokens, keys)
    products = 4 * 32 * keys * shape.dim // PRODUCT_FLOP
    copies = 2 * stored_bytes * keys * shape.dim // (512 * 4)
    tile = sass.shortest_way(loop, {"HMMA": products, "LDGSTS": copies})
    # The rotation is a loop over chunks, gone through once in `first`; each of its turns stores what it has turned.
    turning = [inner for inner in sass.loops(function) if loop.contains(inner) and any(i.name == "STS" for i in inner.body)]
    turn = min(turning, key=lambda inner: len(inner.body)).body
    stores = sass.counts(turn)["STS"]
    first = sass.shortest_way(loop, {"HMMA": products, "LDGSTS": copies, "STS": stores})
    tail = products if rest == 0 or rest > keys // 2 else products // 2
    last = sass.shortest_way(loop, {"HMMA": tail, "LDGSTS": copies + shape.turned + 1})
    parts = (
        (shape.pages * (whole - 1 - (rest == 0)), sass.counts(tile)),
        (shape.pages, sass.counts(first)),
        (shape.pages * (shape.turned // stores - 1), sass.counts(turn)),
        (shape.pages, sass.counts(last)),
    )
    return Work(parts, shape.flop / shape.blocks)


def _by_warpgroups(function: sass.Function, shape: Shape, keys: int = 112) -> Work:
    """The tiles of a page, by eight warps of 16 rows; its first has the rotation. The last counts as a whole one; masking is left out,
    and so are the warps that copy, one instruction in thirty."""
    loop = sass.innermost_loop(function, "HGMMA")
    products = shape.dim // 16 + keys // 16
    # Of a page a word of its notice; of each 16 channels turned the four words and their angles.
    loads = 1 + 5 * -(-shape.turned // 2)
    counted = []
    for at_least in ({"HGMMA": products}, {"HGMMA": products, "LDS": loads}):
        counts = sass.counts(sass.shortest_way(loop, at_least))
        del counts["HGMMA"]
        counts["HMMA"] = 4 * 16 * keys * shape.dim // PRODUCT_FLOP
        counts["LDGSTS"] = 4 * keys * shape.dim // (512 * 8)
        counted.append(counts)
    tile, first = counted
    parts = ((shape.pages * (-(-shape.tokens // keys) - 1), tile), (shape.pages, first))
    return Work(parts, shape.flop / shape.blocks, warps=8, resident=1, mma=False)


_MMA_KERNEL = re.compile(r"frame_attention_kernelI\w*?4Bf16E(?:S2_|NS0_3(Fp8)E)Li128ELi(\d+)ELb0E")
_SM90_KERNEL = re.compile(r"frame_attention_sm90_kernelI\w*4Bf16ELb0E")


def kernel(functions: Iterable[sass.Function], machine: Machine, fp8_pages: bool = False) -> sass.Function:
    """The kernel that runs at dim 128, for bfloat16 and without the probe, on pages of bfloat16 or of 8 bits. Kernels for other
    architectures are in the library too, and empty."""

    def is_it(name: str) -> bool:
        by_mma = _MMA_KERNEL.search(name)
        return bool(by_mma[1]) == fp8_pages if by_mma else not fp8_pages and _SM90_KERNEL.search(name) is not None

    found = (f for f in functions if f.architecture == machine.architecture and is_it(f.name))
    return next(f for f in found if any(i.name in ("HMMA", "HGMMA") for i in f.body))


def table(shape: Shape = Shape()) -> list[list[str]]:
    """Published kernels, with the model's prediction for them, and ours."""
    rows = [["kernel", "machine", "predicted, not measured", "of peak", "published", "of peak", "predicted / published", "a"]]
    for calibrated in (FA2_A100, FA2_H100, FA3_H100):
        a, machine = calibrated.overlap(), calibrated.machine
        for other in (FA2_A100, FA2_H100, FA3_H100, TRITON_H100):
            if other.machine == machine and other is not calibrated:
                rows.append(_row(other.name, machine, other.predicted(a), a, other))
        functions = list(sass.functions(sass.disassemble(architecture=machine.architecture)))
        work = frame_attention(kernel(functions, machine), shape)
        partial = 128 * (shape.dim + 2) * 4
        fp8 = frame_attention(kernel(functions, machine, fp8_pages=True), shape)
        launches = {
            "a block a tile": rounds(work, shape.blocks, machine, a),
            "last tiles cut": split(work, shape.blocks, shape.pages, machine, a, partial),
            "8-bit pages, last tiles cut": split(fp8, shape.blocks, shape.pages, machine, a, partial),
            **(of_clusters(work, shape, a, partial) if machine == H100 else {}),
            "cut, all overlapped": split(work, shape.blocks, shape.pages, machine, 0.0, partial),
            "cut, none overlapped": split(work, shape.blocks, shape.pages, machine, 1.0, partial),
            "8-bit pages, cut, all overlapped": split(fp8, shape.blocks, shape.pages, machine, 0.0, partial),
            "8-bit pages, cut, none overlapped": split(fp8, shape.blocks, shape.pages, machine, 1.0, partial),
        }
        for name, taken in launches.items():
            rows.append(_row(f"ours, {name}", machine, fraction(work, shape.blocks, machine, taken), a))
        rows.append(_row(f"{calibrated.name}: gives a", machine, calibrated.predicted(a), a, calibrated))
    return rows


def of_clusters(work: Work, shape: Shape, a: float, partial: int) -> dict[str, float]:
    """Cycles on an H100 whose blocks read less from the L2 cache, or faster. Two blocks of a cluster take a tile of keys each from the same
    copy: half the bytes. They are neighbours of one head, so a head's tiles are filled up to pairs."""
    pairs = 2 * -(-shape.blocks // (2 * shape.heads)) * shape.heads
    halved, fast = replace(H100, l2_bytes=2 * H100.l2_bytes), replace(H100, l2_bytes=FAST_L2)
    return {
        "cut, copies shared by two": split(work, pairs, shape.pages, halved, a, partial),
        "cut, copies shared by two, all overlapped": split(work, pairs, shape.pages, halved, 0.0, partial),
        "cut, fast L2": split(work, shape.blocks, shape.pages, fast, a, partial),
    }


def _row(name: str, machine: Machine, predicted: float, a: float, published: Published | None = None) -> list[str]:
    peak = machine.peak_tflops
    reached = ["", "", ""]
    if published:
        reached = [f"{published.tflops:.0f} TFLOP/s", f"{published.reached:.1%}", f"{predicted / published.reached:.2f}"]
    return [name, machine.name, f"{predicted * peak:.0f} TFLOP/s", f"{predicted:.1%}", *reached, f"{a:.2f}"]


if __name__ == "__main__":
    print(aligned(table(), left=(0, 1)))
