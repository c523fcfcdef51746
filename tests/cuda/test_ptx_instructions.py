"""The interpreter of PTX itself: numbers against exact arithmetic, fragments against the layouts of the ISA written as loops, and small
kernels with a mistake, which the error must name."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from ptx import Launch, Memory, Program, PtxError, kernels, run

RNG = np.random.default_rng(5)
REGISTERS = ".reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<99>; .reg .b64 %d<9>;"
# %d1 is the thread's place in 32 words of input, %d2 that in 32 of output, both a row for each thread.
ROW = """
    mov.u32 %r1, %tid.x; mul.wide.u32 %d8, %r1, 128;
    ld.param.u64 %d1, [in]; ld.param.u64 %d2, [out]; add.s64 %d1, %d1, %d8; add.s64 %d2, %d2, %d8; mov.u32 %r2, memory;
"""


def execute(
    body: str, data: np.ndarray, threads: int = 32, shared_bytes: int = 4096, tensor_map: bytes = bytes(128)
) -> tuple[np.ndarray, Counter[str]]:
    """data: words [threads, 32], or numbers of that size; what the threads wrote, the same. The tensor map is the parameter `map`."""
    text = f"""
    .extern .shared .align 128 .b8 memory[];
    .visible .entry test(.param .u64 in, .param .u64 out, .param .align 64 .b8 map[128])
    {{ {REGISTERS} {ROW} {body} ret; }}"""
    out = np.full((threads, 32), 0xFFFFFFFF, np.uint32)
    pointers = np.array([data.ctypes.data, out.ctypes.data], np.uint64)
    parameters = pointers.tobytes().ljust(64, b"\0") + tensor_map
    memory = Memory([(array.ctypes.data, array.nbytes) for array in (data, out)])
    (kernel,) = kernels(text).values()
    return out, run(Program(kernel), Launch((1, 1, 1), threads, shared_bytes, parameters), memory)


def inputs(threads: int = 32) -> np.ndarray:
    return RNG.integers(0, 1 << 32, (threads, 32), dtype=np.uint32)


def column(values: np.ndarray, count: int = 1) -> np.ndarray:
    """Words [32, 32] whose first columns are these 32-bit values, [32, count]."""
    data = inputs()
    data[:, :count] = np.ascontiguousarray(values.reshape(32, count)).view(np.uint32)
    return data


LOAD = "ld.global.u32 %r3, [%d1]; ld.global.u32 %r4, [%d1+4]; ld.global.u32 %r5, [%d1+8];"


# ---- numbers ----


def signed(x: int) -> int:
    return x - (1 << 32) if x >> 31 else x


def towards_zero(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


@pytest.mark.parametrize(
    ("opcode", "function"),
    {
        "add.s32": lambda a, b: a + b,
        "sub.s32": lambda a, b: a - b,
        "mul.lo.s32": lambda a, b: a * b,
        "div.s32": lambda a, b: towards_zero(signed(a), signed(b)),
        "div.u32": lambda a, b: a // b,
        "rem.s32": lambda a, b: signed(a) - towards_zero(signed(a), signed(b)) * signed(b),
        "rem.u32": lambda a, b: a % b,
        "min.s32": lambda a, b: min(signed(a), signed(b)),
        "max.u32": max,
        "and.b32": lambda a, b: a & b,
        "or.b32": lambda a, b: a | b,
        "xor.b32": lambda a, b: a ^ b,
        "shl.b32": lambda a, b: a << min(b, 32),
        "shr.u32": lambda a, b: a >> min(b, 32),
        "shr.s32": lambda a, b: signed(a) >> min(b, 32),
    }.items(),
)
def test_integers(opcode: str, function: object) -> None:
    data = inputs()
    if opcode.startswith("sh"):
        data[:, 1] %= 40
    out, _ = execute(f"{LOAD} {opcode} %r6, %r3, %r4; st.global.u32 [%d2], %r6;", data)
    assert [int(x) for x in out[:, 0]] == [function(int(a), int(b)) & 0xFFFFFFFF for a, b in data[:, :2]]


def test_product_and_sum_of_integers() -> None:
    data = inputs()
    out, _ = execute(f"{LOAD} mad.lo.s32 %r6, %r3, %r4, %r5; st.global.u32 [%d2], %r6;", data)
    assert [int(x) for x in out[:, 0]] == [(int(a) * int(b) + int(c)) & 0xFFFFFFFF for a, b, c in data[:, :3]]


def test_wide_products_and_conversions() -> None:
    data = inputs()
    out, _ = execute(
        f"{LOAD} mul.wide.s32 %d3, %r3, %r4; mul.wide.u32 %d4, %r3, -2; cvt.s64.s32 %d5, %r3; cvt.u64.u32 %d6, %r3; cvt.u32.u64 %r6, %d3;"
        "mov.b64 {%r7, %r8}, %d3; mov.b64 %d7, {%r8, %r7}; cvt.rn.f32.s64 %r9, %d3;"
        "st.global.u64 [%d2], %d3; st.global.u64 [%d2+8], %d4; st.global.u64 [%d2+16], %d5; st.global.u64 [%d2+24], %d6;"
        "st.global.u32 [%d2+32], %r6; st.global.u64 [%d2+40], %d7; st.global.u32 [%d2+48], %r9;",
        data,
    )
    wide = out.view(np.uint64)
    for row, (a, b) in enumerate(data[:, :2].tolist()):
        product = signed(a) * signed(b)
        expected = [product, a * 0xFFFFFFFE, signed(a), a]
        assert wide[row, :4].tolist() == [x % (1 << 64) for x in expected]
        assert out[row, 8] == product % (1 << 32) and out[row, 10] == product >> 32 & 0xFFFFFFFF and out[row, 11] == out[row, 8]
        assert out.view(np.float32)[row, 12] == np.float32(product)


def test_fma_is_rounded_once() -> None:
    """Against rationals, in cases where a sum that is first rounded to float64 would be wrong, and where it cancels."""
    a, b = (RNG.standard_normal(32).astype(np.float32) for _ in range(2))
    c = (-a.astype(np.float64) * b).astype(np.float32)
    c[::2] = RNG.standard_normal(16) * 2.0 ** RNG.integers(-60, 60, 16)
    # Half way between two numbers of float32, but for 2^-56, which decides and which the float64 sum loses.
    a[:3], b[:3] = 2.0**-12 * (1 + 2.0**-16), [2.0**-12 * (1 - 2.0**-16), -(2.0**-12) * (1 - 2.0**-16), -(2.0**-13) * (1 - 2.0**-16)]
    c[:3] = [1 + 2.0**-23, -1 - 2.0**-23, 1 - 2.0**-24]
    out, _ = execute(f"{LOAD} fma.rn.f32 %r6, %r3, %r4, %r5; st.global.f32 [%d2], %r6;", column(np.stack([a, b, c], 1), 3))
    for x, y, z, result in zip(a, b, c, out.view(np.float32)[:, 0], strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        neighbours = [np.nextafter(result, np.float32(side)) for side in (-np.inf, np.inf)]
        error, others = abs(Fraction(float(result)) - exact), [abs(Fraction(float(n)) - exact) for n in neighbours]
        assert error <= min(others) and (error < min(others) or int(result.view(np.uint32)) % 2 == 0)


def test_fma_of_pairs_is_rounded_once() -> None:
    """As torch rounds float64, which represents these sums exactly: ties, subnormal factors and results, overflow, NaN and the signs of
    zeros."""
    words = RNG.integers(0, 1 << 32, (32, 3), dtype=np.uint32)
    words[:8, 2] = 0x80008000
    words[:8, 0] &= 0x87F087F0  # what a number of 8 bits becomes
    words[:8, 1] = 0x7C007D80
    words[8] = [0x00010001, 0x3F003F40, 0x80008000]  # subnormal numbers, half way and above
    words[9] = [0x3F813F81, 0x3F803F88, 0x80008000]
    words[10] = [0x7F7F7FC0, 0x40003F80, 0x00000000]
    words[11] = [0x80000000, 0x3F803F80, 0x80008000]
    words[12:, 0] = words[12:, 0] & 0x83FF83FF | 0x3C003C00
    words[12:, 1] = words[12:, 1] & 0x83FF83FF | 0x3C003C00
    words[12:, 2] = words[12:, 2] & 0x83FF83FF | 0x3C003C00
    out, _ = execute(f"{LOAD} fma.rn.bf16x2 %r6, %r3, %r4, %r5; st.global.u32 [%d2], %r6;", column(words, 3))
    a, b, c = (torch.from_numpy(np.ascontiguousarray(x).view(np.int16)).view(torch.bfloat16).double() for x in words.T)
    result = torch.from_numpy(out[:, 0].copy().view(np.int16)).view(torch.bfloat16)
    expected = (a * b + c).bfloat16()
    assert torch.equal(result.isnan(), expected.isnan()) and expected.isnan().any()
    there = ~expected.isnan()
    assert torch.equal(result[there].view(torch.int16), expected[there].view(torch.int16))


def test_bits_are_inserted() -> None:
    data = inputs()
    out, _ = execute(
        f"{LOAD} bfi.b32 %r6, %r3, %r4, 5, 11; mov.b64 %d3, {{%r3, %r4}}; mov.b64 %d4, {{%r4, %r5}}; bfi.b64 %d5, %d3, %d4, 1, 32;"
        "st.global.u32 [%d2], %r6; st.global.u64 [%d2+8], %d5;",
        data,
    )
    for (a, b, c), row, wide in zip(data[:, :3].tolist(), out, out.view(np.uint64), strict=True):
        assert row[0] == b & ~(0x7FF << 5) | (a & 0x7FF) << 5
        assert wide[1] == (b | c << 32) & ~(0xFFFFFFFF << 1) | a << 1


def test_bytes_are_permuted() -> None:
    """The sign of a byte if the selector's fourth bit is set; bits of the selector above the sixteenth are ignored."""
    data = inputs()
    out, _ = execute(f"{LOAD} prmt.b32 %r6, %r3, %r4, %r5; prmt.b32 %r7, %r3, 0, 41600; st.global.v2.u32 [%d2], {{%r6, %r7}};", data)
    for (a, b, selector), results in zip(data[:, :3].tolist(), out[:, :2].tolist(), strict=True):
        for result, word, by in zip(results, (a | b << 32, a), (selector, 0xA280), strict=True):
            for i in range(4):
                choice = by >> 4 * i & 15
                byte = word >> 8 * (choice & 7) & 255
                assert result >> 8 * i & 255 == ((255 if byte >> 7 else 0) if choice & 8 else byte)


@pytest.mark.parametrize(("element", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_pairs_are_rounded(element: str, dtype: torch.dtype) -> None:
    """The first source is the high half; to nearest as torch does it, towards zero never larger."""
    x = RNG.standard_normal((32, 2)).astype(np.float32) * np.float32(2.0) ** RNG.integers(-30, 20, (32, 2)).astype(np.float32)
    x[0], x[1] = [1 + 2.0**-8, 1 + 3 * 2.0**-8], [1 + 2.0**-11, 1 + 3 * 2.0**-11]  # half way
    x[2] = [np.nan, np.inf]
    body = f"cvt.rn.{element}x2.f32 %r6, %r3, %r4; cvt.rz.{element}x2.f32 %r7, %r3, %r4; st.global.v2.u32 [%d2], {{%r6, %r7}};"
    out, _ = execute(LOAD + body, column(x, 2))
    near, cut = (torch.from_numpy(out[:, i : i + 1].copy().view(np.int16)).view(dtype).flip(1) for i in range(2))
    expected = torch.from_numpy(x).to(dtype)
    assert torch.equal(near.nan_to_num(7.0), expected.nan_to_num(7.0))
    finite = torch.from_numpy(x).abs()[3:]
    assert (cut[3:].double().abs() <= finite).all()
    following = (cut[3:].abs().view(torch.int16) + 1).view(dtype)
    assert (following.double() > finite).all()


def test_floats() -> None:
    x = RNG.standard_normal((32, 3)).astype(np.float32)
    x[0], x[1], x[2, 0], x[3, 0] = np.nan, [np.nan, 1, 1], 3e-39, -140
    body = """max.f32 %r6, %r3, %r4; div.rn.f32 %r7, %r3, %r4; rcp.rn.f32 %r8, %r3; ex2.approx.ftz.f32 %r9, %r3;
        setp.gt.f32 %p1, %r3, %r4; selp.b32 %r10, 1, 0, %p1; setp.neu.f32 %p2, %r3, %r4; selp.b32 %r11, 1, 0, %p2;
        st.global.v4.f32 [%d2], {%r6, %r7, %r8, %r9}; st.global.v2.u32 [%d2+16], {%r10, %r11};"""
    out, _ = execute(LOAD + body, column(x, 3))
    a, b = torch.from_numpy(x[:, 0]), torch.from_numpy(x[:, 1])
    results = torch.from_numpy(out.view(np.float32))
    torch.testing.assert_close(results[:, 0], torch.fmax(a, b), equal_nan=True, atol=0, rtol=0)
    torch.testing.assert_close(results[:, 1], a / b, equal_nan=True, atol=0, rtol=0)
    torch.testing.assert_close(results[:, 2], 1 / a, equal_nan=True, atol=0, rtol=0)
    assert results[2, 3] == 1 and results[3, 3] == 0, "subnormal inputs and results are zero"
    exact = torch.exp2(a.double())
    assert (((results[:, 3] - exact) / exact).abs()[4:] <= 2.0**-22).all()
    assert out[:, 4].tolist() == (a > b).int().tolist() and out[:, 5].tolist() == (a != b).int().tolist()


def test_doubles() -> None:
    """Sums and products in float64 that float32 cannot represent, rounded to float32 at the end."""
    x = RNG.standard_normal((32, 3)).astype(np.float32)
    body = """cvt.f64.f32 %d3, %r3; cvt.f64.f32 %d4, %r4; cvt.f64.f32 %d5, %r5; mul.rn.f64 %d6, %d3, %d4; sub.rn.f64 %d6, %d6, %d5;
        add.rn.f64 %d6, %d6, 0d3FD5555555555555; cvt.rn.f32.f64 %r6, %d6; st.global.f64 [%d2], %d6; st.global.f32 [%d2+8], %r6;"""
    out, _ = execute(LOAD + body, column(x, 3))
    a, b, c = (x.astype(np.float64)[:, i] for i in range(3))
    expected = a * b - c + 1 / 3
    assert (out.view(np.float64)[:, 0] == expected).all() and (out.view(np.float32)[:, 2] == expected.astype(np.float32)).all()


def test_narrow_values_in_wide_registers() -> None:
    data = inputs()
    body = """ld.global.u16 %r3, [%d1+2]; ld.global.s16 %r4, [%d1+2]; ld.global.u8 %h1, [%d1]; mov.b32 {%h2, %h3}, %r3;
        st.global.u32 [%d2], %r3; st.global.u32 [%d2+4], %r4; st.global.u16 [%d2+8], %h1; st.global.u16 [%d2+10], %r3;
        st.global.u16 [%d2+12], %h3;"""
    out, _ = execute(body, data)
    high = data[:, 0] >> 16
    assert (out[:, 0] == high).all() and (out[:, 1] == high.astype(np.int16).astype(np.int32).view(np.uint32)).all()
    assert (out[:, 2] == (data[:, 0] & 0xFF | high << 16)).all() and (out[:, 3] == 0xFFFF0000).all()


# ---- ways ----


def test_threads_that_part_meet_again() -> None:
    """Loops of a different length in each lane, in which the code that jumps back lies after the code that goes on; then the whole warp
    exchanges."""
    body = """
        mov.u32 %r3, 0; mov.u32 %r4, 0; bra.uni HEAD;
    NEXT: add.s32 %r3, %r3, 1;
    HEAD: setp.gt.u32 %p1, %r3, %r1; @%p1 bra DONE; and.b32 %r5, %r3, 1; setp.eq.s32 %p2, %r5, 0; @%p2 bra EVEN; bra.uni NEXT;
    DONE: shfl.sync.bfly.b32 %r6|%p3, %r4, 1, 31, -1; st.global.u32 [%d2], %r6; @!%p3 st.global.u32 [%d2+4], 9; ret;
    EVEN: add.s32 %r4, %r4, %r3; { .reg .b32 low; mov.b32 low, 1; add.s32 %r4, %r4, low; } bra.uni NEXT;
    """
    out, _ = execute(body, inputs(64), threads=64)
    sums = [sum(i + 1 for i in range(0, thread + 1, 2)) for thread in range(64)]
    assert out[:, 0].tolist() == [sums[thread ^ 1] for thread in range(64)] and (out[:, 1] == 0xFFFFFFFF).all()


def test_a_lane_is_read_by_its_warp() -> None:
    """Lane 3 of the warp, and of each eight lanes."""
    body = """
        shfl.sync.idx.b32 %r3, %r1, 3, 31, -1; shfl.sync.idx.b32 %r4, %r1, 3, 6175, -1;
        st.global.u32 [%d2], %r3; st.global.u32 [%d2+4], %r4;
    """
    out, _ = execute(body, inputs(64), threads=64)
    assert out[:, :2].tolist() == [[thread // 32 * 32 + 3, thread // 8 * 8 + 3] for thread in range(64)]


@pytest.mark.parametrize(("which", "function"), [("any", any), ("all", all)])
def test_vote_is_of_the_warp(which: str, function: object) -> None:
    body = f"setp.gt.u32 %p1, %r1, 20; vote.sync.{which}.pred %p2, %p1, -1; selp.b32 %r3, 1, 0, %p2; st.global.u32 [%d2], %r3;"
    out, _ = execute(body, inputs(96), threads=96)
    assert out[:, 0].tolist() == [function(t > 20 for t in range(w * 32, w * 32 + 32)) for w in range(3) for _ in range(32)]


# ---- matrices ----


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_are_loaded_by_the_layout_of_the_isa(transposed: bool) -> None:
    """Lane 8 i + j names row j of matrix i; lane l gets elements 2 (l % 4) and the next of row l / 4, of the transpose or not."""
    data = inputs()
    trans = ".trans" if transposed else ""
    # Row l of the 32 is put where lane l names it: rows of 16 bytes in another order.
    body = f"""xor.b32 %r3, %r1, 5; shl.b32 %r3, %r3, 4; add.s32 %r3, %r3, %r2; ld.global.v4.u32 {{%r4, %r5, %r6, %r7}}, [%d1];
        st.shared.v4.u32 [%r3], {{%r4, %r5, %r6, %r7}}; bar.warp.sync -1;
        ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r8, %r9, %r10, %r11}}, [%r3];
        ldmatrix.sync.aligned.m8n8.x2{trans}.shared.b16 {{%r12, %r13}}, [%r3];
        st.global.v4.u32 [%d2], {{%r8, %r9, %r10, %r11}}; st.global.v2.u32 [%d2+16], {{%r12, %r13}};"""
    out, counts = execute(body, data)
    rows, halves = data.view(np.uint16), out.view(np.uint16)
    for lane in range(32):
        for matrix in range(4):
            for i in range(2):
                row, element = lane // 4, lane % 4 * 2 + i
                if transposed:
                    row, element = element, row
                assert halves[lane, 2 * matrix + i] == rows[8 * matrix + row, element]
    assert (out[:, 4:6] == out[:, :2]).all()
    assert counts["matrix_loads"] == 2 and counts["bank_conflicts"] == 0


def fragment_element(name: str, lane: int, i: int) -> tuple[int, int]:
    """Row and column of element i, as the ISA has them: PTX ISA 9.0, "Matrix Fragments for mma.m16n8k16 with floating point type"."""
    group, member = lane >> 2, lane % 4
    if name == "a":
        return group if i in (0, 1, 4, 5) else group + 8, member * 2 + (i & 1) + (0 if i < 4 else 8)
    if name == "b":
        return member * 2 + (i & 1) + (0 if i < 2 else 8), group
    return group if i < 2 else group + 8, member * 2 + (i & 1)


@pytest.mark.parametrize(("element", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_product_of_matrices(element: str, dtype: torch.dtype) -> None:
    """Of small integers, whose product is exact; two warps, each with its own."""
    matrices = {name: RNG.integers(-9, 9, (2, *shape)) for name, shape in (("a", (16, 16)), ("b", (16, 8)), ("c", (16, 8)))}
    data = np.zeros((64, 32), np.uint32)
    for thread in range(64):

        def fragment(name: str, count: int, thread: int = thread) -> torch.Tensor:
            return torch.tensor([float(matrices[name][thread // 32][fragment_element(name, thread % 32, i)]) for i in range(count)])

        data[thread, :6] = torch.cat([fragment("a", 8), fragment("b", 4)]).to(dtype).view(torch.int32).numpy().view(np.uint32)
        data[thread, 8:12] = fragment("c", 4).numpy().view(np.uint32)
    body = f"""ld.global.v4.u32 {{%r3, %r4, %r5, %r6}}, [%d1]; ld.global.v2.u32 {{%r7, %r8}}, [%d1+16];
        ld.global.v4.f32 {{%r9, %r10, %r11, %r12}}, [%d1+32];
        mma.sync.aligned.m16n8k16.row.col.f32.{element}.{element}.f32 {{%r9, %r10, %r11, %r12}}, {{%r3, %r4, %r5, %r6}}, {{%r7, %r8}},
            {{%r9, %r10, %r11, %r12}};
        st.global.v4.f32 [%d2], {{%r9, %r10, %r11, %r12}};"""
    out, counts = execute(body, data, threads=64)
    results = out.view(np.float32)
    for warp in range(2):
        expected = matrices["a"][warp] @ matrices["b"][warp] + matrices["c"][warp]
        for lane in range(32):
            assert results[32 * warp + lane, :4].tolist() == [expected[fragment_element("d", lane, i)] for i in range(4)]
    assert counts["products"] == 2


# ---- copies ----

ADDRESS = "shl.b32 %r3, %r1, 4; add.s32 %r3, %r3, %r2;"
COPY = f"{ADDRESS} cp.async.cg.shared.global [%r3], [%d1], 16; cp.async.commit_group;"
READ = "ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r3]; st.global.v4.u32 [%d2], {%r4, %r5, %r6, %r7};"


def test_copies_arrive_and_fill_with_zeros() -> None:
    data = inputs()
    body = f"""{ADDRESS} and.b32 %r8, %r1, 1; shl.b32 %r8, %r8, 4; cp.async.cg.shared.global [%r3], [%d1], 16, %r8;
        cp.async.ca.shared.global [%r3+512], [%d1+8], 8; cp.async.commit_group; cp.async.commit_group; cp.async.wait_group 1;
        {READ} ld.shared.v2.u32 {{%r9, %r10}}, [%r3+512]; st.global.v2.u32 [%d2+16], {{%r9, %r10}};"""
    out, counts = execute(body, data)
    assert (out[1::2, :4] == data[1::2, :4]).all() and (out[::2, :4] == 0).all() and (out[:, 4:6] == data[:, 2:4]).all()
    assert counts["copies"] == 64


def test_bank_conflicts_are_counted() -> None:
    """Lanes 4, 8 or 64 bytes apart, by a store and a load; rows of matrices 16, 32 or 128 bytes apart, of four matrices."""
    body = "shl.b32 %r3, %r1, {shift}; add.s32 %r3, %r3, %r2; st.shared.u32 [%r3], %r1; bar.sync 0; ld.shared.u32 %r4, [%r3];"
    for shift, turns in ((2, 1), (3, 2), (6, 16)):
        _, counts = execute(body.format(shift=shift), inputs())
        assert counts["other_conflicts"] == 2 * (turns - 1)
    _, counts = execute("ld.shared.u32 %r4, [%r2];", inputs())
    assert counts["other_conflicts"] == 0, "all lanes read one word"
    rows = "shl.b32 %r3, %r1, {shift}; add.s32 %r3, %r3, %r2; ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r4, %r5, %r6, %r7}}, [%r3];"
    for shift, turns in ((4, 1), (5, 2), (7, 8)):
        _, counts = execute(rows.format(shift=shift), inputs())
        assert counts["bank_conflicts"] == 4 * (turns - 1)


# The second warp reads what the first one writes, and the first goes on.
TURN = """
    shl.b32 %r3, %r1, 2; and.b32 %r3, %r3, 127; add.s32 %r3, %r3, %r2; mov.b32 %r9, 3; setp.ge.u32 %p1, %r1, 32; @%p1 bra SECOND;
    st.shared.u32 [%r3], %r1; barrier.cta.arrive.aligned %r9, 64; bra END;
    SECOND: barrier.cta.sync.aligned 3, 64; ld.shared.u32 %r4, [%r3]; st.global.u32 [%d2], %r4; END:
"""


def test_named_barriers() -> None:
    out, _ = execute(TURN, inputs(64), threads=64)
    assert (out[32:, 0] == np.arange(32)).all()


# ---- mistakes ----

NEIGHBOUR = "shl.b32 %r3, %r1, 2; add.s32 %r3, %r3, %r2; xor.b32 %r4, %r3, {other};"


MISTAKES = {
    "no barrier": (NEIGHBOUR.format(other=128) + "st.shared.u32 [%r3], %r1; ld.shared.u32 %r5, [%r4];", "a write and a read after it"),
    "of the warp alone": (
        NEIGHBOUR.format(other=128) + "st.shared.u32 [%r3], %r1; bar.warp.sync -1; ld.shared.u32 %r5, [%r4];",
        "race: a write and a read after it are not ordered",
    ),
    "no barrier in the warp": (NEIGHBOUR.format(other=4) + "st.shared.u32 [%r3], %r1; ld.shared.u32 %r5, [%r4];", "a write and a read"),
    "written while read": (NEIGHBOUR.format(other=128) + "ld.shared.u32 %r5, [%r3]; st.shared.u32 [%r4], %r1;", "a read and a write"),
    "read by all": ("ld.shared.u32 %r5, [%r2]; setp.eq.s32 %p1, %r1, 40; @%p1 st.shared.u32 [%r2], %r1;", "thread 40: .* a read and a"),
    "read by others too": (
        "setp.ge.u32 %p1, %r1, 32; @%p1 ld.shared.u32 %r5, [%r2]; setp.eq.s32 %p2, %r1, 63; @%p2 st.shared.u32 [%r2], %r1;",
        "thread 63: race: a read and a write after it",
    ),
    "read by another before": (
        "setp.eq.s32 %p1, %r1, 62; setp.eq.s32 %p2, %r1, 63; @%p1 ld.shared.u32 %r5, [%r2]; @%p2 ld.shared.u32 %r5, [%r2];"
        "@%p2 st.shared.u32 [%r2], %r1;",
        "thread 63: race: a read and a write after it",
    ),
    "one word": ("st.shared.u32 [%r2], %r1;", "two writes of one instruction"),
    "two writers": (NEIGHBOUR.format(other=4) + "st.shared.u32 [%r3], %r1; st.shared.u32 [%r4], %r1;", "two writes"),
    "no wait": (COPY + READ, "an access and a copy under way"),
    "wait for too few": (COPY + "cp.async.wait_group 1; bar.sync 0;" + READ, "an access and a copy under way"),
    "nobody waits": (COPY, "copies that nobody waits for"),
    "not closed": (COPY.replace("cp.async.commit_group;", "") + "cp.async.wait_group 0;", "copies that nobody waits for"),
    "no barrier after the wait": (
        COPY + "cp.async.wait_group 0; xor.b32 %r3, %r3, 512;" + READ,
        "race: a write and a read after it are not ordered",
    ),
    "copied over what is read": (ADDRESS + "ld.shared.u32 %r4, [%r2+20];" + COPY, "a read and a write after it"),
    "a copy of some bytes": (COPY.replace("16; ", "16, 12; "), "a copy of 12 to 12 of 16 bytes is not known"),
    "a copy from outside": (COPY.replace("[%d1]", "[%d1+8192]"), "outside every buffer"),
    "a copy to an odd place": (COPY.replace("[%r3]", "[%r3+4]"), "not aligned to 16 bytes"),
    "outside the buffer": ("st.global.u32 [%d2+8192], %r1;", "thread 0: address 0x[0-9a-f]+ is outside every buffer, 4 bytes: st.global"),
    "before the buffer": ("ld.global.u32 %r3, [%d1+-4];", "outside every buffer"),
    "across its end": ("ld.global.v2.u32 {%r3, %r4}, [%d2+124];", "outside every buffer|not aligned"),
    "odd address": ("ld.global.v2.u32 {%r3, %r4}, [%d1+4];", "not aligned to 8 bytes"),
    "a register that nobody has written": ("ld.global.u32 %r3, [%d7];", "outside every buffer"),
    "outside shared memory": ("ld.shared.u32 %r3, [%r2+4096];", "byte 4096 is outside the 4096 bytes of shared memory"),
    "odd in shared memory": ("ld.shared.v4.u32 {%r3, %r4, %r5, %r6}, [%r2+8];", "not aligned to 16 bytes"),
    "outside the parameters": ("ld.param.u64 %d3, [in+192];", "byte 192 is outside the 192 bytes of parameters"),
    "a lane that is not there": ("setp.eq.s32 %p1, %r1, 5; @%p1 ret; bar.warp.sync -1;", "deadlock.* 31 at bar.warp.sync -1; 33 of 64"),
    "a thread that is not there": ("setp.eq.s32 %p1, %r1, 5; @%p1 ret; bar.sync 0;", "deadlock.* 63 at bar.sync 0"),
    "a turn that is not waited for": (TURN.replace("barrier.cta.sync.aligned 3, 64;", ""), "a write and a read after it are not ordered"),
    "a turn that nobody takes": (
        TURN.replace("barrier.cta.sync.aligned 3, 64; ld.shared.u32 %r4, [%r3];", ""),
        "barrier 3 and nobody waits",
    ),
    "a turn that nobody gives": (TURN.replace("barrier.cta.arrive.aligned %r9, 64;", ""), "deadlock: .* 32 at barrier.cta.sync"),
    "another turn": (TURN.replace("aligned 3, 64", "aligned 4, 64"), "deadlock: .* 32 at barrier.cta.sync"),
    "a turn that is given twice": (TURN.replace("bra END", "barrier.cta.arrive.aligned %r9, 64; bra END"), "again before all others"),
    "a turn of one warp": (TURN.replace("sync.aligned 3, 64", "sync.aligned 3, 32"), "64 threads have come to barrier 3 of 32"),
    "a turn given by some": (TURN.replace("barrier.cta.arrive", "setp.eq.u32 %p2, %r1, 3; @%p2 bra END; barrier.cta.arrive"), "deadlock"),
    "no such barrier": (TURN.replace("%r9, 3;", "%r9, 16;"), "there is no barrier 16"),
    "a barrier of some lanes": (TURN.replace("%r9, 64;", "%r9, 40;"), "unknown barrier"),
    "two places": (
        "setp.lt.s32 %p1, %r1, 5; @%p1 bra OTHER; bar.warp.sync -1; ret; OTHER: shfl.sync.bfly.b32 %r3, %r1, 1, 31, -1;",
        "deadlock: threads wait for ever: 5 at shfl.*; 27 at bar.warp.sync -1; 32 of 64",
    ),
    "some lanes": ("vote.sync.any.pred %p1, %p1, 15;", "a mask of lanes that is not all"),
    "unknown": ("lg2.approx.f32 %r3, %r4;", "unknown instruction lg2.approx.f32"),
    "unknown modifier": ("fma.rm.f32 %r3, %r4, %r4, %r4;", "unknown instruction fma.rm.f32"),
    "unknown type": ("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r3, %r4}, {%r3}, {%r3}, {%r3};", "unknown instruction mma"),
    "other types": (
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32 {%r3, %r4, %r5, %r6}, {%r3, %r4, %r5, %r6}, {%r3, %r4}, {%r3, %r4, %r5, %r6};",
        "not the operands of mma",
    ),
    "unknown special register": ("mov.u32 %r3, %clock;", "unknown operand %clock"),
    "narrow register": ("add.s64 %d3, %d3, %r1;", "%r1 is narrower than .s64"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake: str) -> None:
    body, problem = MISTAKES[mistake]
    with pytest.raises(PtxError, match=problem):
        execute(body, inputs(64), threads=64)
