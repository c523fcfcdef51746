"""The interpreter's instructions of sm_90a: products of warpgroups, bulk copies, mbarriers. Numbers are integers and results exact.
Layouts are written as loops from the ISA's text, and compared with CuTe's if its headers are installed."""

from __future__ import annotations

import re
import struct
from collections import Counter

import numpy as np
import pytest
import torch
from ptx import PtxError, descriptors, matrices, warpgroups
from ptx.shared import SHARED_AT
from test_ptx_instructions import RNG, execute

pytestmark = pytest.mark.whole

BARRIER = 16384
"""Offset of the barrier; the matrices lie before it."""
COLUMNS = 64
D = ", ".join(f"%r{number}" for number in range(40, 40 + COLUMNS // 2))

# Threads write 64 bytes each to shared memory; then d is 1, and a is what they have written.
STORE = """
    shl.b32 %r3, %r1, 6; add.s32 %r3, %r3, %r2;
""" + "".join(
    f"ld.global.v4.u32 {{%r4, %r5, %r6, %r7}}, [%d1+{at}]; st.shared.v4.u32 [%r3+{at}], {{%r4, %r5, %r6, %r7}};" for at in (0, 16, 32, 48)
)
PUBLISH = "fence.proxy.async; bar.sync 0;"
OPERANDS = "ld.global.v4.u32 {%r20, %r21, %r22, %r23}, [%d1+64];" + "".join(f"mov.b32 {name}, 0f3F800000;" for name in D.split(","))
FENCE, CLOSE, WAIT = (f"wgmma.{name};" for name in ("fence.sync.aligned", "commit_group.sync.aligned", "wait_group.sync.aligned 0"))
RESULT = "".join(f"st.global.v4.u32 [%d2+{16 * i}], {{{', '.join(D.split(', ')[4 * i : 4 * i + 4])}}};" for i in range(COLUMNS // 8))
MODES = {"none": (0, 16), "128": (1, 128), "64": (2, 64), "32": (3, 32)}
"""Bits 62 and 63, and bytes of an atom's row."""


def descriptor(mode: str, leading: int, stride: int) -> str:
    """Of the start of shared memory, into %d3."""
    bits = MODES[mode][0] << 62 | stride >> 4 << 32 | leading >> 4 << 16
    return f"cvt.u64.u32 %d3, %r2; shr.u64 %d3, %d3, 4; or.b64 %d3, %d3, {bits};"


def product(transposed: bool = False, adds: int = 1, element: str = "bf16") -> str:
    return (
        f"wgmma.mma_async.sync.aligned.m64n{COLUMNS}k16.f32.{element}.{element} {{{D}}}, {{%r20, %r21, %r22, %r23}}, %d3, {adds}, 1, 1, "
        f"{int(transposed)};"
    )


def small_numbers(threads: int, dtype: torch.dtype = torch.bfloat16) -> np.ndarray:
    """Words [threads, 32] of pairs."""
    return torch.from_numpy(RNG.integers(-7, 8, (threads, 64))).to(dtype).view(torch.int32).numpy().view(np.uint32)


def element_of_b(memory: np.ndarray, mode: str, leading: int, stride: int, transposed: bool, column: int, row: int) -> float:
    """By the ISA's canonical layouts, from the elements of shared memory."""
    span = MODES[mode][1]
    if transposed:
        along, across = column % (span // 2) * 2, column // (span // 2)
        at = along + row % 8 * span + (across * stride + row // 8 * leading if mode == "none" else across * leading + row // 8 * stride)
    else:
        at = column % 8 * span + column // 8 * stride + (row % 8 * 2 + row // 8 * leading if mode == "none" else row * 2)
    at += SHARED_AT
    at ^= (at >> 7) % 8 % (span // 16) << 4
    return memory[(at - SHARED_AT) // 2]


@pytest.mark.parametrize(("element", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
@pytest.mark.parametrize(
    ("mode", "leading", "stride", "transposed"),
    [("128", 0, 1024, False), ("64", 0, 512, False), ("32", 0, 256, False), ("none", 1024, 128, False), ("128", 0, 1024, True),
     ("64", 1024, 512, True), ("32", 512, 256, True), ("none", 128, 256, True)],
)  # fmt: skip
def test_product_of_a_warpgroup(element: str, dtype: torch.dtype, mode: str, leading: int, stride: int, transposed: bool) -> None:
    """Two of them with the same b, each with its own a: rows 16 w + g and 16 w + g + 8 of warp w."""
    data = small_numbers(256, dtype)
    body = STORE + PUBLISH + OPERANDS + descriptor(mode, leading, stride) + FENCE + product(transposed, 1, element) + CLOSE + WAIT + RESULT
    out, counts = execute(body, data, threads=256, shared_bytes=BARRIER)
    memory, words = (torch.from_numpy(x.copy().view(np.int16)).view(dtype).double().numpy() for x in (data[:, :16], data[:, 16:20]))
    layout = (memory.ravel(), mode, leading, stride, transposed)
    b = np.array([[element_of_b(*layout, column, row) for column in range(COLUMNS)] for row in range(16)])
    results = out.view(np.float32)
    for thread in range(0, 256, 5):
        for half in range(2):
            row = [words[thread // 4 * 4 + k % 8 // 2, k // 8 * 4 + half * 2 + k % 2] for k in range(16)]
            expected = row @ b + 1
            for n in range(COLUMNS // 8):
                for i in range(2):
                    assert results[thread, 4 * n + 2 * half + i] == expected[8 * n + thread % 4 * 2 + i]
    assert counts["warpgroup_products"] == 8


def test_products_of_a_group_add_up() -> None:
    """The first product discards the earlier contents of d."""
    data = small_numbers(128)
    body = STORE + PUBLISH + OPERANDS + descriptor("128", 0, 1024) + FENCE + "{0}" + product() + CLOSE + product() + CLOSE + WAIT + RESULT
    once, _ = execute(body.replace("{0}", "").replace(product() + CLOSE, "", 1), data, threads=128, shared_bytes=BARRIER)
    thrice, _ = execute(body.replace("{0}", product(adds=0)), data, threads=128, shared_bytes=BARRIER)
    assert (thrice.view(np.float32) == 3 * (once.view(np.float32) - 1)).all()


def test_conflicts_of_products() -> None:
    """An atom's 8 rows lie in all banks; unpermuted rows of 128 bytes, which a stride of 128 between chunks makes, all in the same."""
    body = STORE + PUBLISH + OPERANDS + descriptor("128", 0, 1024) + FENCE + product() + CLOSE + WAIT
    _, counts = execute(body, small_numbers(128), threads=128, shared_bytes=BARRIER)
    assert counts["bank_conflicts"] == 0
    rows = descriptors.chunks(1024 >> 4 << 32, 16, transposed=False)
    assert descriptors.conflicts(rows + np.arange(16)[:, None] % 8 * 112, transposed=False) == 4 * 7


# ---- CuTe ----


def canonical(text: str, transposed: bool, mode: str, leading: int, stride: int, columns: int) -> tuple[object, object]:
    """The layout that CuTe's comment on descriptors gives, in chunks' elements, and its swizzle."""
    cute = pytest.importorskip("cute")
    kind = {"none": "INTERLEAVE", "32": "B32", "64": "B64", "128": "B128"}[mode]
    lines = re.findall(rf"\* LayoutType::{kind}\s*: Swizzle<(\d),(\d),(\d)> o smem_ptr o (\(\(\S+\)):(\(\(.*\)\))\s*\n", text)
    bits, base, shift, shape, strides = next(line for line in lines if line[3].startswith("((T" if transposed else "((8,m)"))
    groups = columns * 2 // MODES[mode][1] if transposed else columns // 8
    names = {"T": 8, "m": groups, "k": 2, "LBO": leading // 2, "SBO": stride // 2}

    def numbers(layout: str) -> tuple:
        return eval(re.sub(r"(\d)T", r"\1*T", layout), names)

    return cute.pycute.Layout(numbers(shape), numbers(strides)), cute.pycute.Swizzle(int(bits), int(base), int(shift))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transposed", [False, True])
def test_descriptors_are_cutes(mode: str, transposed: bool) -> None:
    cute = pytest.importorskip("cute")
    leading, stride = 8192, 1024
    layout, swizzle = canonical(cute.header("mma_traits_sm90_gmma"), transposed, mode, leading, stride, COLUMNS)
    found = descriptors.chunks(MODES[mode][0] << 62 | stride >> 4 << 32 | leading >> 4 << 16, COLUMNS, transposed)
    for column in range(0, COLUMNS, 8 if transposed else 1):
        for row in range(0, 16, 1 if transposed else 8):
            at = swizzle(2 * layout(column, row))
            assert at == (found[row, column // 8] if transposed else found[column, row // 8])


def test_fragments_are_cutes() -> None:
    cute = pytest.importorskip("cute")
    text = cute.header("mma_traits_sm90_gmma")
    a = cute.parse(re.search(r"using ALayout_64x16\s*=\s*(.*?);", text, re.DOTALL)[1])
    c = cute.parse(re.search(r"using CLayout_64xN\s*=\s*(.*?);", text, re.DOTALL)[1].replace("Int<N/8>", str(COLUMNS // 8)))
    rows, columns = (np.broadcast_to(x, (128, COLUMNS // 2)) for x in warpgroups.fragment(COLUMNS))
    for thread in range(128):
        assert [c(thread, i) for i in range(COLUMNS // 2)] == (rows[thread] + 64 * columns[thread]).tolist()
        lane = thread % 32
        of_a = matrices.A_ROW[lane] + thread // 32 * 16 + 64 * matrices.A_COLUMN[lane]
        assert [a(thread, i) for i in range(8)] == of_a.tolist()


# ---- bulk copies ----

SIZES, STRIDES = (48, 5, 3, 2), (128, 640, 1920)


def tensor_map(address: int, box: tuple[int, ...] = (64, 8, 1, 1)) -> bytes:
    return struct.pack("Q4Q3Q4I", address, *SIZES, *STRIDES, *box).ljust(128, b"\0")


def copy(x: int, y: int, z: int, w: int, target: str = "%r2") -> str:
    return (
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        f"[{target}], [%d5, {{{x}, {y}, {z}, {w}}}], [%r10];"
    )


MAKE = f"""add.s32 %r10, %r2, {BARRIER}; mov.u64 %d5, map; setp.eq.s32 %p1, %r1, 0; mov.u32 %r11, 1024;
    @!%p1 bra MADE; mbarrier.init.shared::cta.b64 [%r10], 1; fence.mbarrier_init.release.cluster; MADE: bar.sync 0;"""
EXPECT = "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%r10], %r11;"
AWAIT = """AGAIN: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p2, [%r10], {parity}; @!%p2 bra AGAIN;"""
READ = "shl.b32 %r3, %r1, 3; add.s32 %r3, %r3, %r2; ld.shared.v2.u32 {%r4, %r5}, [%r3]; st.global.v2.u32 [%d2], {%r4, %r5};"


def by_thread_0(body: str) -> str:
    return f"@!%p1 bra COPIED; {body} COPIED: "


def execute_copies(body: str, box: tuple[int, ...] = (64, 8, 1, 1), threads: int = 128) -> tuple[np.ndarray, np.ndarray, Counter[str]]:
    """The input, as elements [w, z, y, x] of which SIZES are there; what the threads wrote."""
    data = RNG.integers(1, 1 << 16, (128, 64), dtype=np.uint16).view(np.uint32)
    out, counts = execute(MAKE + body, data, threads=threads, shared_bytes=BARRIER + 64, tensor_map=tensor_map(data.ctypes.data, box))
    return data[:30].view(np.uint16).reshape(2, 3, 5, 64), out, counts


@pytest.mark.parametrize("at", [(0, 0, 0, 0), (0, 2, 1, 1), (-3, -2, 2, 0), (8, 0, 3, 0), (64, 0, 0, 0)])
def test_boxes_are_permuted_and_filled_with_zeros(at: tuple[int, int, int, int]) -> None:
    tensor, out, counts = execute_copies(by_thread_0(EXPECT + copy(*at)) + AWAIT.format(parity=0) + READ)
    memory = out[:, :2].copy().view(np.uint16).ravel()
    for y in range(8):
        for x in range(64):
            place = [at[0] + x, at[1] + y, at[2], at[3]]
            inside = all(0 <= each < size for each, size in zip(place, SIZES, strict=True))
            byte = y * 128 + x * 2
            byte ^= (byte >> 7 & 7) << 4
            assert memory[byte // 2] == (tensor[tuple(place[::-1])] if inside else 0)
    assert counts["boxes"] == 1


def test_a_box_of_many_rows() -> None:
    """The second dimension's are the fastest."""
    tensor, out, _ = execute_copies(by_thread_0(EXPECT + copy(0, 1, 0, 1)) + AWAIT.format(parity=0) + READ, (64, 4, 2, 1))
    rows = out[:, :2].copy().view(np.uint16).reshape(8, 8, 8)
    for row in range(8):
        expected = tensor[1, row // 4, 1 + row % 4].copy()
        expected[48:] = 0
        assert (rows[row, np.arange(8) ^ row].ravel() == expected).all()


def test_phases_alternate() -> None:
    """Two copies one after the other, the second after all threads have read the first."""
    second = f"bar.sync 0; @!%p1 bra SECOND; {EXPECT} {copy(0, 0, 1, 0)} SECOND: "
    body = by_thread_0(EXPECT + copy(0, 0, 0, 0)) + AWAIT.format(parity=0) + READ + second
    tensor, out, _ = execute_copies(body + AWAIT.format(parity=1).replace("AGAIN", "LATER") + READ.replace("[%d2]", "[%d2+8]"))
    assert (out[:8, :2].copy().view(np.uint16).ravel()[:32] == tensor[0, 0, 0, :32]).all()
    assert (out[:8, 2:4].copy().view(np.uint16).ravel()[:32] == tensor[0, 1, 0, :32]).all()


def test_the_first_try_before_the_end_fails() -> None:
    """Without a copy, nothing ends."""
    _, out, _ = execute_copies(
        by_thread_0(EXPECT + copy(0, 0, 0, 0))
        + "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p2, [%r10], 0; selp.b32 %r4, 1, 0, %p2;"
        + AWAIT.format(parity=0)
        + "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p2, [%r10], 0; selp.b32 %r5, 1, 0, %p2;"
        + "st.global.v2.u32 [%d2], {%r4, %r5};"
    )
    assert (out[:, 0] == 0).all() and (out[:, 1] == 1).all()


def test_registers_move_when_others_give_them_back() -> None:
    """The first of three warpgroups waits for the registers that the last gives back."""
    body = """shr.u32 %r3, %r1, 7; setp.eq.s32 %p1, %r3, 0; setp.eq.s32 %p2, %r3, 2; @%p2 bra GIVE; @!%p1 bra REST;
        setmaxnreg.inc.sync.aligned.u32 240; bra.uni REST; GIVE: setmaxnreg.dec.sync.aligned.u32 {0}; REST: st.global.u32 [%d2], %r3;"""
    data = small_numbers(384)
    out, _ = execute(body.replace("{0}", "96"), data, threads=384)
    assert (out[:, 0] == np.arange(384) // 128).all()
    with pytest.raises(PtxError, match=r"deadlock: threads wait for ever: 128 at setmaxnreg\.inc"):
        execute(body.replace("{0}", "104"), data, threads=384)
    two = "setp.lt.u32 %p1, %r1, 256; @!%p1 bra GIVE; setmaxnreg.inc.sync.aligned.u32 {0}; ret; GIVE: setmaxnreg.dec.sync.aligned.u32 40;"
    execute(two.replace("{0}", "232"), data, threads=384)
    with pytest.raises(PtxError, match=r"deadlock: threads wait for ever: 128 at setmaxnreg\.inc"):
        execute(two.replace("{0}", "240"), data, threads=384)


# ---- mistakes ----

PREPARED = STORE + PUBLISH + OPERANDS + descriptor("128", 0, 1024)
WHOLE = PREPARED + FENCE + product() + CLOSE + WAIT + RESULT
MISTAKES_OF_PRODUCTS = {
    "no fence before the first": (WHOLE.replace(FENCE, ""), "touched and no fence followed"),
    "no fence after a change of a": (
        WHOLE.replace(RESULT, "mov.b32 %r20, 0;" + product() + CLOSE + WAIT),
        "thread 0: registers of a product were touched and no fence followed: wgmma.mma_async",
    ),
    "no fence after reading d": (WHOLE + product() + CLOSE + WAIT, "touched and no fence followed"),
    "no wait": (WHOLE.replace(WAIT, ""), "registers of a product under way are touched: st.global"),
    "wait for one group too few": (WHOLE.replace("aligned 0", "aligned 1"), "registers of a product under way are touched"),
    "not closed": (WHOLE.replace(CLOSE, ""), "registers of a product under way are touched"),
    "a changed under way": (WHOLE.replace(WAIT, "mov.b32 %r21, 0;" + WAIT), "registers of a product under way are touched"),
    "nobody waits": (WHOLE.replace(WAIT + RESULT, ""), "products that nobody waits for"),
    "b changed under way": (WHOLE.replace(WAIT, "st.shared.u32 [%r3], %r1;" + WAIT), "a product under way and a write are not ordered"),
    "b stored and not fenced": (WHOLE.replace("fence.proxy.async;", ""), "no fence.proxy.async between them"),
    "b stored without a barrier": (WHOLE.replace("bar.sync 0;", ""), "no fence.proxy.async|a write and a product after it are not ordered"),
    "b outside": (WHOLE.replace(FENCE, "add.s64 %d3, %d3, 2048;" + FENCE), "outside the 16384 bytes of shared memory"),
    "threads that differ": (WHOLE.replace(FENCE, "cvt.u64.u32 %d4, %r1; add.s64 %d3, %d3, %d4;" + FENCE), "name different matrices"),
    "a warp that is not there": ("setp.lt.u32 %p3, %r1, 32; @%p3 ret;" + FENCE, "deadlock: .* 96 at wgmma.fence"),
    "signs": (WHOLE.replace(", 1, 1, 1, 0;", ", 1, -1, 1, 0;"), "a sign of a or b is not known"),
    "registers too few": ("setmaxnreg.dec.sync.aligned.u32 20;", "registers come by 8, from 24 to 256"),
    "registers that are not had": ("setmaxnreg.dec.sync.aligned.u32 256;", "has 248 registers a thread and asks for 256"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES_OF_PRODUCTS)
def test_mistakes_of_products_are_named(mistake: str) -> None:
    body, problem = MISTAKES_OF_PRODUCTS[mistake]
    with pytest.raises(PtxError, match=problem):
        execute(body, small_numbers(128), threads=128, shared_bytes=BARRIER)


COPIED = by_thread_0(EXPECT + copy(0, 0, 0, 0)) + AWAIT.format(parity=0) + READ
MISTAKES_OF_COPIES = {
    "no wait": (COPIED.replace(AWAIT.format(parity=0), ""), "an access and a copy under way are not ordered"),
    "the other parity": (COPIED.replace(AWAIT.format(parity=0), AWAIT.format(parity=1)), "an access and a copy under way"),
    "nobody waits": (by_thread_0(EXPECT + copy(0, 0, 0, 0)), "bulk copies that nobody waits for"),
    "more bytes announced": (COPIED.replace("%r11;", "2048;", 1), "deadlock: .* 128 at mbarrier.try_wait"),
    "no bytes announced": (
        COPIED.replace(EXPECT, "mbarrier.arrive.release.cta.shared::cta.b64 _, [%r10];"), "an access and a copy under way"),
    "nobody arrives": (COPIED.replace(EXPECT, ""), "deadlock: .* 128 at mbarrier.try_wait"),
    "too many arrive": (
        COPIED.replace(EXPECT, EXPECT + "mbarrier.arrive.release.cta.shared::cta.b64 _, [%r10];"), "more than the 1 arrivals"),
    "over what others read": (
        "bar.sync 0;" + READ + COPIED.replace("AGAIN", "AFTER"), "thread 0: race: a read and a write after it are not ordered"),
    "over a store": (
        "st.shared.u32 [%r2+64], %r1;".join(["@%p1 ", by_thread_0(EXPECT + copy(0, 0, 0, 0)) + AWAIT.format(parity=0)]),
        "no fence.proxy.async between them"),
    "an odd target": (COPIED.replace("[%r2]", "[%r2+64]"), "not aligned to 128 bytes"),
    "a target outside": (COPIED.replace("[%r2]", "[%r2+15872]"), "byte 16895 is outside the 16448 bytes"),
    "a map elsewhere": (COPIED.replace("[%d5,", "[%d1,"), "outside the 192 bytes of parameters"),
    "no barrier there": (COPIED.replace("[%r10]", "[%r10+8]"), "nobody has initialised it"),
    "a barrier that is read": ("ld.shared.u32 %r4, [%r10];", "an access to an mbarrier by another instruction"),
    "a parity of 2": (COPIED.replace(AWAIT.format(parity=0), AWAIT.format(parity=2)), "a parity of 2"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES_OF_COPIES)
def test_mistakes_of_copies_are_named(mistake: str) -> None:
    body, problem = MISTAKES_OF_COPIES[mistake]
    with pytest.raises(PtxError, match=problem):
        execute_copies(body)


@pytest.mark.parametrize(
    ("removed", "problem"),
    [
        ("fence.mbarrier_init.release.cluster;", "no fence has published"),
        ("MADE: bar.sync 0;", "a barrier was made and used|nobody has init"),
    ],
)
def test_mistakes_of_barriers_are_named(removed: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "MAKE", MAKE.replace(removed, "MADE: " if "MADE" in removed else ""))
    with pytest.raises(PtxError, match=problem):
        execute_copies(COPIED)
