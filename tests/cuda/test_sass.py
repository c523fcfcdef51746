"""The code that nvcc made of the kernels, checked without running it: the machine code of every architecture in the built library.

The turn of frame_attention's inner loop that does a whole tile is compared, instruction by instruction, with the least that the
algorithm takes. A clock would not show which instruction costs time; and there is no GPU here to time.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import in_flight
import pytest
from commands import output_of
from emulated import ROOT
from test_build import ARCHITECTURES

from bench import sass

pytestmark = pytest.mark.whole

TOLERANCE = 0.05  # over the floor
WARP_ROWS, LANES, BLOCK_THREADS = 32, 32, 128
# nvcc 13.0 puts a NOP after almost every second HMMA of sm_120; they take issue slots but do nothing.
IDLE = {"NOP"}
LOCAL_MEMORY = {"LDL", "STL"}
OTHER_MEMORY = {"LD", "ST", "LDG", "STG", "LDS", "STS", "ATOM", "ATOMG", "ATOMS", "RED"}

# Made up: a loop with two paths, one with a product and an idle slot, the other with two products, the first of them in an inner loop.
LISTING = """
arch = sm_80
		Function : _Z4made
        /*0000*/                   MOV R1, c[0x0][0x28] ;                        /* 0x00000a0000017a02 */
                                                                                 /* 0x000fe40000000f00 */
        /*0010*/                   LDSM.16.M88.4 R4, [R2] ;                      /* 0x000000000204783b */
        /*0020*/              @!P0 BRA 0x60 ;                                    /* 0x0000004000008947 */
        /*0030*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;          /* 0x000000060408723c */
        /*0040*/              @!PT LDS RZ, [RZ] ;                                /* 0x00000000fffff984 */
        /*0050*/                   BRA 0xa0 ;                                    /* 0x0000005000007947 */
        /*0060*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;          /* 0x000000060408723c */
        /*0070*/               @P1 BRA 0x60 ;                                    /* 0xffffffe000001947 */
        /*0080*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;          /* 0x000000060408723c */
        /*0090*/                   FADD R8, R8, R9 ;                             /* 0x0000000908087221 */
        /*00a0*/               @P2 BRA 0x10 ;                                    /* 0xffffff6000002947 */
        /*00b0*/                   EXIT ;                                        /* 0x000000000000794d */
        /*00c0*/                   BRA 0xc0;                                     /* 0xfffffff000007947 */
"""

# Made up: a loop, one of whose turns waits at the function's end, and continues where it was.
WAITING = """
arch = sm_90a
		Function : _Z4wait
        /*0000*/                   MOV R1, c[0x0][0x28] ;                        /* 0x00000a0000017a02 */
        /*0010*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R2], R3 ; /* 0x00000003020075a7 */
        /*0020*/              @!P0 BRA 0x60 ;                                    /* 0x0000004000008947 */
        /*0030*/                   HGMMA.64x112x16.F32 R8, R4, gdesc[UR4], R8 ;  /* 0x01a00004040879f0 */
        /*0040*/               @P1 BRA 0x10 ;                                    /* 0xffffffc000001947 */
        /*0050*/                   EXIT ;                                        /* 0x000000000000794d */
        /*0060*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R2], R3 ; /* 0x00000003020075a7 */
        /*0070*/              @!P0 BRA 0x60 ;                                    /* 0x0000004000008947 */
        /*0080*/                   BRA 0x30 ;                                    /* 0x0000004000007947 */
"""


def softmax_floor(scores: int, rows: int) -> dict[str, int]:
    """Instructions that a warp needs between the products of a tile; scores and rows are those of which a lane has a part."""
    return {
        # Of a score: 2^x; scaled and less the row's maximum; into the row's sum. Of a row besides: its highest score scaled, compared
        # with the running maximum plus 8; and bias less maximum. (The last two could be kept, 8 registers that are not there: the
        # kernel of sm_80 has all 255.)
        "MUFU": scores,
        "FFMA": scores + rows,
        "FADD": scores + 2 * rows,
        "FSETP": rows,
        # The lane's own scores, then those of the three lanes that share the row, in two exchanges.
        "FMNMX": scores - rows + 2 * rows,
        "SHFL": 2 * rows,
        "VOTE": 1,
        # Two weights into a word.
        "F2FP": scores // 2,
        # Nothing is rescaled.
        "FMUL": 0,
    }


@dataclass(frozen=True)
class Tile:
    dim: int
    keys: int
    probe: bool

    work: ClassVar = ("HMMA", "LDGSTS")
    """What distinguishes a turn that does a whole tile from others."""
    others: ClassVar = 130
    """Instructions of a turn that have no floor: addresses, swizzles, loop and branches. Copies' 64-bit addresses and their steps are 60
    to 70 of them, exclusive-ors of swizzled addresses 14 at dim 128, branches and what they test 15."""

    def floor(self) -> dict[str, int]:
        """Instructions that a warp needs for a tile of keys, a lane having the scores of a part of 4 rows."""
        scores, rows = WARP_ROWS * self.keys // LANES, 4
        matrices = self.keys * self.dim  # elements of K, and of V
        return {
            # Two products; one instruction multiplies 16 x 16 by 16 x 8.
            "HMMA": 2 * WARP_ROWS * self.keys * self.dim // (16 * 16 * 8),
            # Each loads 512 bytes. The rows of Q are read again for each tile: with the output, scores and weights in them, the
            # registers have no place for Q.
            "LDSM": 2 * (WARP_ROWS * self.dim + 2 * matrices) // 512,
            # 16 bytes a thread, of the next tile's K and this one's V.
            "LDGSTS": 2 * 2 * matrices // (16 * BLOCK_THREADS),
            **softmax_floor(scores, rows),
            # The two barriers of a tile; the groups of its copies and the waits for them.
            "BAR": 2,
            "LDGDEPBAR": 2,
            "DEPBAR": 2,
        }


class Fp8Tile(Tile):
    """Of 32 keys of pages of 8-bit elements."""

    others: ClassVar = 130 + 2 * 128
    """Of each pair besides a shift and a mask, which are done by the same instructions as addresses."""

    def floor(self) -> dict[str, int]:
        elements = 2 * self.keys * self.dim  # of K and of V
        pairs = elements // 2 // LANES
        return super().floor() | {
            "LDSM": (2 * WARP_ROWS * self.dim + elements) // 512,
            "LDGSTS": elements // (16 * BLOCK_THREADS),
            # Of a pair its bytes as halves with their signs, moved to where bfloat16 has them, and times the scale.
            "PRMT": pairs,
            "HFMA2": pairs,
        }


class WarpgroupTile(Tile):
    """Of the kernel of sm_90a: a warpgroup has 64 rows, another warp copies."""

    work: ClassVar = ("HGMMA",)
    # Of 15 products the descriptors, most of them on the uniform datapath, are 90; branches and what they test 15; whose turn it is, and
    # the number of the tile among those of all segments, 10.
    others: ClassVar = 125

    def floor(self) -> dict[str, int]:
        scores, rows = 64 * self.keys // (4 * LANES), 2
        return {
            # One instruction multiplies 16 channels by all keys, or 16 keys' weights by all channels.
            "HGMMA": self.dim // 16 + self.keys // 16,
            **softmax_floor(scores, rows),
            # Of each product a fence and a wait.
            "WARPGROUP": 4,
            # Keys, and values, wait for and given back.
            "SYNCS": 4,
            # A turn, taken and passed on.
            "BAR": 2,
            "LDSM": 0,
        }


def tile_of(function: sass.Function) -> Tile | None:
    """None for other kernels, and for empty kernels: each architecture has one tile size."""
    if not any(i.name in ("HMMA", "HGMMA") for i in function.body):
        return None
    if match := re.search(r"frame_attention_kernelI\w+?[E_]Li(\d+)ELi(\d+)ELb([01])E", function.name):
        kind = Fp8Tile if "3Fp8" in function.name else Tile
        return kind(int(match[1]), int(match[2]), match[3] == "1")
    if match := re.search(r"frame_attention_sm90_kernelI\w+?ELb([01])E", function.name):
        return WarpgroupTile(128, 112, match[1] == "1")
    return None


def turn(function: sass.Function, tile: Tile) -> list[sass.Instruction]:
    """The path through the inner loop with a whole tile that is not the last of a page."""
    floor = tile.floor()
    loop = sass.innermost_loop(function, tile.work[0])
    return sass.shortest_way(loop, {name: floor[name] for name in tile.work})


def violations(function: sass.Function, tile: Tile) -> list[str]:
    """The errors in a kernel of attention, in words."""
    floor = tile.floor()
    found = sass.counts(turn(function, tile))
    # One of three operands does the work of two.
    found["FMNMX"] += 2 * found.pop("FMNMX3", 0)
    # From sm_90 on a product of pairs is an instruction of its own.
    if "HFMA2" in floor:
        found["HFMA2"] += found.pop("HMUL2", 0)
    wrong = [
        f"{name}: {found[name]} where {least} do" for name, least in floor.items() if not least <= found[name] <= least * (1 + TOLERANCE)
    ]
    others = sum(count for name, count in found.items() if name not in floor and name not in IDLE)
    if others > tile.others:
        wrong.append(f"others: {others}, at most {tile.others} are expected")
    wrong += [f"memory: {name} in the turn" for name in sorted(OTHER_MEMORY & set(found))]
    local = sum(i.name in LOCAL_MEMORY for i in function.body)
    return wrong + ([f"local memory: {local} accesses"] if local else [])


def test_ways_round_a_loop() -> None:
    (function,) = sass.functions(LISTING)
    assert (function.architecture, function.name, len(function.body)) == ("sm_80", "_Z4made", 13)
    outer, inner = sass.loops(function)
    assert (outer.start, outer.ends, inner.start, inner.ends) == (0x10, (0xA0,), 0x60, (0x70,))
    assert outer.contains(inner) and not inner.contains(outer)
    assert sass.innermost_loop(function, "HMMA") == inner and sass.innermost_loop(function, "LDSM") == outer

    def way(**at_least: int) -> list[int]:
        return [i.address for i in sass.shortest_way(outer, at_least)]

    assert way(HMMA=1) == [0x10, 0x20, 0x30, 0x40, 0x50, 0xA0]
    assert way(HMMA=2) == way(FADD=1) == [0x10, 0x20, 0x60, 0x70, 0x80, 0x90, 0xA0]
    with pytest.raises(ValueError, match=r"no way round the loop at 0x10 does \{'HMMA': 3\}"):
        way(HMMA=3)
    assert sass.counts(sass.shortest_way(outer, {"LDS": 1})) == {"LDSM": 1, "BRA": 3, "HMMA": 1, "NOP": 1}


def test_waiting_elsewhere_is_no_loop() -> None:
    (function,) = sass.functions(WAITING)
    assert [(loop.start, loop.ends) for loop in sass.loops(function)] == [(0x10, (0x40,)), (0x60, (0x70,))]
    assert sass.counts(sass.shortest_way(sass.innermost_loop(function, "HGMMA"), {"HGMMA": 1})) == {"SYNCS": 1, "BRA": 2, "HGMMA": 1}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_tile_takes_the_instructions_that_it_must(machine_code: list[sass.Function], architecture: str) -> None:
    kernels = {f: tile for f in machine_code if f.architecture == architecture and (tile := tile_of(f))}
    # bfloat16 of both dims, float16 of one, and pages of 8 bits, without the probe and with it.
    assert len(kernels) == 8
    assert {f.name: wrong for f, tile in kernels.items() if (wrong := violations(f, tile))} == {}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_the_probe_is_free_inside_a_page(machine_code: list[sass.Function], architecture: str) -> None:
    """The probe writes at a page's end; before that, it adds no instruction except for moves between registers."""
    lengths: dict[tuple[str, int, int], dict[bool, int]] = {}
    for function in machine_code:
        if function.architecture == architecture and (tile := tile_of(function)):
            key = (re.sub(r"ELb[01]E", "", function.name), tile.dim, tile.keys)
            lengths.setdefault(key, {})[tile.probe] = sum(i.name not in IDLE for i in turn(function, tile))
    assert len(lengths) == 4
    for key, length in lengths.items():
        assert length[True] <= length[False] * 1.03, key


def test_one_warp_copies_a_tile(machine_code: list[sass.Function]) -> None:
    """On sm_90a: two boxes of 64 channels of K and two of V; waits for both to be free, and announcements of both."""
    kernels = [f for f in machine_code if f.architecture == "sm_90a" and "frame_attention_sm90_kernel" in f.name]
    assert len(kernels) == 4
    for function in kernels:
        # ptxas makes a loop of each copy, because it cannot know that all lanes have the same operands.
        loop = min((loop for loop in sass.loops(function) if sass.counts(loop.body)["UTMALDG"] == 4), key=lambda loop: len(loop.body))
        found = sass.counts(sass.shortest_way(loop, {"UTMALDG": 4}))
        assert (found["UTMALDG"], found["SYNCS"]) == (4, 4) and found.total() <= 80, found


def without(function: sass.Function, at: int) -> sass.Function:
    """With an instruction there that does nothing."""
    body = tuple(replace(i, opcode="NOP", operands="", guard="") if i.address == at else i for i in function.body)
    return replace(function, body=body)


def test_nobody_touches_registers_of_products_under_way(machine_code: list[sass.Function]) -> None:
    """On sm_90a, on every path through the code; and if any of the waits is removed, this is found."""
    kernels = [f for f in machine_code if f.architecture == "sm_90a" and "frame_attention_sm90_kernel" in f.name]
    assert len(kernels) == 4
    for function in kernels:
        assert in_flight.violations(function) == [], function.name
    waits = [i.address for i in kernels[0].body if i.opcode.startswith("WARPGROUP.DEPBAR")]
    assert len(waits) == 4  # for a page's first scores; in the loop for scores and values; for the last values
    for wait in waits:
        assert in_flight.violations(without(kernels[0], wait)), f"{wait:#x}"


# ---- what the build's flags leave in the code ----

DIVIDES = ("gelu_kernel", "kv_write_kernel", "modulated_norm_kernel", "attention_mass_kernel")
ROUNDED_TWICE = ("sampler_step_kernel",)
"""Has products and sums, of which the source fuses none."""


def approximations(function: sass.Function) -> list[str]:
    """Instructions of code that may round in other ways: fused, without subnormal numbers, by approximate functions."""
    opcodes = [i.opcode for i in function.body]
    wrong = {opcode for opcode in opcodes if opcode.startswith("FFMA") and ".FTZ" in opcode}
    wrong |= {opcode for opcode in opcodes if opcode.startswith(("MUFU.SQRT", "MUFU.SIN", "MUFU.COS", "MUFU.TANH"))}
    if any(name in function.name for name in ROUNDED_TWICE):
        wrong |= {opcode for opcode in opcodes if opcode.startswith(("DFMA", "FFMA")) or ".FTZ" in opcode}
    # Tells numbers whose quotient takes more care.
    if any(name in function.name for name in DIVIDES) and "FCHK" not in opcodes:
        wrong.add("a division without FCHK")
    return sorted(wrong)


def test_nothing_is_rounded_as_the_compiler_likes(machine_code: list[sass.Function]) -> None:
    assert {(f.architecture, f.name): wrong for f in machine_code if (wrong := approximations(f))} == {}
    for name in (*DIVIDES, *ROUNDED_TWICE):
        assert {f.architecture for f in machine_code if name in f.name} == ARCHITECTURES, name


def test_no_kernel_touches_local_memory(machine_code: list[sass.Function]) -> None:
    assert {(f.architecture, f.name) for f in machine_code if any(i.name in LOCAL_MEMORY for i in f.body)} == set()


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize(
    ("kernel", "others"),
    # A pair of the rotation, the number of a page; a float of the gate, scale or shift of a row that is not whole.
    [("kv_write", {"64", ""}), ("modulated_norm", {""}), ("gelu", set())],
)
def test_rows_move_by_16_bytes(machine_code: list[sass.Function], kernel: str, others: set[str], architecture: str) -> None:
    """What is not a multiple of 8 channels goes by elements; nothing goes by parts of 16 bytes."""
    (body,) = (f.body for f in machine_code if f.architecture == architecture and f"{kernel}_kernel" in f.name)

    def sizes(name: str) -> set[str]:
        return {i.opcode.removeprefix(f"{name}.E").removeprefix(".") for i in body if i.name == name}

    assert sizes("STG") <= {"128", "U16"} and sizes("LDG") <= {"128", "U16"} | others


# ---- planted ----


@dataclass(frozen=True)
class Mutation:
    name: str
    old: str
    new: str
    finds: str
    file: str = "frame_attention.cuh"


SECOND = "    wait_for_copies<0>();\n    sync_block();\n    begin_next_tile();"
MUTATIONS = [
    Mutation("an array that the compiler has to keep in memory", SECOND,
             "    volatile float kept[2];\n    kept[left & 1] = bias;\n" + SECOND, "local memory"),
    Mutation("matrices of keys loaded by twos, not fours", "multiply_add<Element>(scores[half][n + 1], a[half], b[2], b[3]);",
             "load_matrices(b, keys + (chunk_at<kRowBytes>(key_row, key_chunk) ^ (k << 4)) + (n + 1) * 8 * kRowBytes);\n"
             "          multiply_add<Element>(scores[half][n + 1], a[half], b[0], b[1]);", "LDSM: .* where 80 do",
             "attention_products.cuh"),
    Mutation("rescaled at every tile", "if (any_lane(raise)) raise_max(high);", "raise_max(high);", "FMUL: .* where 0 do"),
    Mutation("one barrier more", SECOND, SECOND.replace("sync_block();", "sync_block();\n    sync_block();"), "BAR: 3 where 2 do"),
    Mutation("a weight computed twice", "          sum_[half][r] += first;",
             "          sum_[half][r] += exp2_approx(scores[half][n][2 * r] * c + shift);", "MUFU: .* where 64 do"),
    Mutation("three blocks where two fit", "__launch_bounds__(kAttentionThreads, 2)", "__launch_bounds__(kAttentionThreads, 3)",
             "local memory"),
]  # fmt: skip


@pytest.fixture(scope="module")
def nvcc(disassembler: None) -> str:
    found = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if found is None:
        pytest.skip("there is no nvcc")
    return found


def compile_one(nvcc: str, into: Path, mutation: Mutation | None = None) -> sass.Function:
    """The kernel of sm_80 for bfloat16, dim 128, as the build compiles it."""
    sources = Path(shutil.copytree(ROOT / "csrc" / "cuda", into / "cuda"))
    if mutation is not None:
        kernel = sources / mutation.file
        text = kernel.read_text()
        assert text.count(mutation.old) == 1, f"what is to be changed is there {text.count(mutation.old)} times"
        kernel.write_text(text.replace(mutation.old, mutation.new))
    unit = into / "one.cu"
    unit.write_text("""#include "frame_attention.cuh"
template __global__ void lolrt::cuda::frame_attention_kernel<lolrt::cuda::Bf16, lolrt::cuda::Bf16, 128, 64, false>(
    const __grid_constant__ lolrt::cuda::AttentionArgument);
""")
    csrc = ROOT / "csrc"
    includes = [f"-I{folder}" for folder in (sources, csrc, csrc / "include")]
    output_of(nvcc, "-cubin", "-arch=sm_80", "-std=c++17", "-O3", "-fmad=false", *includes, unit, "-o", into / "one.cubin")
    (function,) = (f for f in sass.functions(sass.disassemble(into / "one.cubin")) if tile_of(f))
    return function


def test_nothing_is_found_in_the_kernel_as_it_is(nvcc: str, tmp_path: Path) -> None:
    function = compile_one(nvcc, tmp_path)
    assert violations(function, Tile(128, 64, False)) == []


@pytest.mark.parametrize(
    ("unit", "flags", "finds"),
    [
        ("sampler_step", ["-fmad=false", "--use_fast_math"], "FMUL.FTZ"),
        ("sampler_step", ["-fmad=true"], "DFMA"),
        ("modulated_norm", ["-fmad=false", "--use_fast_math"], "FFMA.FTZ"),
        ("modulated_norm", ["-fmad=false", "-prec-div=false"], "a division without FCHK"),
        ("modulated_norm", ["-fmad=false", "-prec-sqrt=false"], "MUFU.SQRT"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else value,
)
def test_flags_that_let_it_are_found(nvcc: str, unit: str, flags: list[str], finds: str, tmp_path: Path) -> None:
    csrc = ROOT / "csrc"
    includes = [f"-I{folder}" for folder in (csrc / "cuda", csrc, csrc / "include")]
    output_of(nvcc, "-cubin", "-arch=sm_80", "-std=c++17", *flags, *includes, csrc / "cuda" / f"{unit}.cu", "-o", tmp_path / "one.cubin")
    (function,) = sass.functions(sass.disassemble(tmp_path / "one.cubin"))
    assert finds in approximations(function)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_waste_is_found(mutation: Mutation, nvcc: str, tmp_path: Path) -> None:
    wrong = violations(compile_one(nvcc, tmp_path, mutation), Tile(128, 64, False))
    assert any(re.match(mutation.finds, line) for line in wrong), wrong
