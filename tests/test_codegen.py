"""The inner loops as the compiler left them: a guard against silent regressions that needs no clock."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench import codegen

# A made-up function of two loops: a block of 3 x 2 accumulators, inside a loop that is not innermost, and a loop that copies.
BLOCK = """
0000000000001000 <void lolrt::multiply<lolrt::Avx512Isa>()>:
    1000:	xor    %edx,%edx
    1010:	vmovups (%rsi,%rdx,1),%zmm4
    1017:	vmovups 0x40(%rsi,%rdx,1),%zmm5
    101e:	vbroadcastss (%rdi),%zmm6
    1024:	vfmadd231ps %zmm4,%zmm6,%zmm0
    102a:	vfmadd231ps %zmm5,%zmm6,%zmm1
    1030:	vbroadcastss 0x40(%rdi),%zmm6
    1036:	vfmadd231ps %zmm4,%zmm6,%zmm2
    103c:	vfmadd231ps %zmm5,%zmm6,%zmm3
    1040:	vbroadcastss 0x80(%rdi),%zmm6
    1041:	vfmadd231ps %zmm4,%zmm6,%zmm7
    1042:	vfmadd231ps %zmm5,%zmm6,%zmm8{SPILL}
    1045:	add    $0x80,%rdx
    1046:	cmp    %rdx,%rcx
    1049:	jne    1010 <void lolrt::multiply<lolrt::Avx512Isa>()+0x10>
    104b:	jmp    1000 <void lolrt::multiply<lolrt::Avx512Isa>()>
    1050:	vmovups (%rsi),%zmm4
    1056:	vmovups %zmm4,(%rdi)
    105c:	jne    1050 <void lolrt::multiply<lolrt::Avx512Isa>()+0x50>
    105e:	ret
"""

# The same loop for 64-bit ARM.
BLOCK_AARCH64 = """
liblolrt.so:     file format elf64-littleaarch64

0000000000001000 <void lolrt::multiply<lolrt::NeonIsa>()>:
    1000:	mov	x3, #0x0                   	// #0
    1010:	ldp	q4, q5, [x1]
    1014:	ldr	s6, [x0, x4, lsl #2]
    1018:	fmla	v0.4s, v4.4s, v6.s[0]
    101c:	fmla	v1.4s, v5.4s, v6.s[0]
    1020:	ld1r	{v6.4s}, [x0]
    1024:	fmla	v2.4s, v4.4s, v6.4s
    1028:	fmla	v3.4s, v5.4s, v6.4s
    102c:	ldr	s6, [x0, x5]
    1030:	fmla	v7.4s, v4.4s, v6.s[0]
    1034:	fmla	v16.4s, v5.4s, v6.s[0]{SPILL}
    1040:	add	x1, x1, #0x40
    1044:	cbnz	x3, 1010 <void lolrt::multiply<lolrt::NeonIsa>()+0x10>
    1048:	b.ne	1000 <void lolrt::multiply<lolrt::NeonIsa>()>  // b.any
    104c:	ret
"""

AARCH64 = Path(__file__).parents[1] / "build" / "aarch64" / "liblolrt.so"


@pytest.fixture(scope="module", params=[codegen.LIBRARY, AARCH64], ids=["installed", "aarch64"])
def library(request: pytest.FixtureRequest) -> Path:
    """The one in use, and the one for 64-bit ARM."""
    if not request.param.exists():
        pytest.skip("make aarch64 builds the library for 64-bit ARM")
    if not shutil.which(codegen.objdump_for(request.param)):
        pytest.skip(f"needs {codegen.objdump_for(request.param)}")
    return request.param


@pytest.fixture(scope="module")
def loops(library: Path) -> list[codegen.Loop]:
    return codegen.hot_loops(codegen.disassemble(library))


def test_counts_a_loop():
    (loop,) = codegen.hot_loops(BLOCK.replace("{SPILL}", ""))
    assert (loop.policy, loop.element, loop.kernel, loop.start) == ("Avx512", "float32", "multiply", 0x1010)
    assert loop.counts == {"multiply_add": 6, "load": 2, "broadcast": 3, "other": 3}
    assert (loop.instructions, loop.accumulators, loop.floor) == (14, 6, 11)


def test_sees_a_spill():
    spill = "\n    1043:\tvmovaps %zmm3,-0x40(%rsp)\n    1044:\tvmovaps -0x40(%rsp),%zmm3"
    (loop,) = codegen.hot_loops(BLOCK.replace("{SPILL}", spill))
    assert (loop.counts["spill"], loop.counts["reload"], loop.counts["load"]) == (1, 1, 2)


def test_counts_a_loop_for_arm():
    (loop,) = codegen.hot_loops(BLOCK_AARCH64.replace("{SPILL}", ""))
    assert (loop.policy, loop.element, loop.kernel, loop.start) == ("Neon", "float32", "multiply", 0x1010)
    assert loop.counts == {"multiply_add": 6, "load": 1, "broadcast": 3, "other": 2}
    assert (loop.instructions, loop.accumulators, loop.floor) == (12, 6, 11)
    spill = "\n    1038:	stp	q3, q2, [sp, #160]\n    103c:	ldr	q3, [sp, #160]"
    (loop,) = codegen.hot_loops(BLOCK_AARCH64.replace("{SPILL}", spill))
    assert (loop.counts["spill"], loop.counts["reload"], loop.counts["load"]) == (1, 1, 1)


def test_a_polynomial_is_no_product():
    moves = "".join(f"\n    1043:\tvmovaps %zmm9,%zmm{register}" for register in range(4))
    assert codegen.hot_loops(BLOCK.replace("{SPILL}", moves)) == []


@pytest.mark.whole
def test_every_policy_has_its_products(library, loops):
    if codegen.is_aarch64(library):
        products = {"Neon": [], "NeonBf16": ["bfloat16"]}
    else:
        products = {"Avx2": [], "Avx512": ["bytes"], "Avx512Bf16": ["bfloat16", "bytes"], "Amx": ["bfloat16 tiles", "bytes"]}
    assert {(policy, element) for policy in products for element in ["float32", *products[policy]]} <= {
        (loop.policy, loop.element) for loop in loops
    }


@pytest.mark.whole
def test_no_inner_loop_spills(loops):
    assert [loop for loop in loops if loop.counts["spill"] or loop.counts["reload"]] == []


def test_the_loops_of_attention_multiply(loops):
    """Hardly more operand loads than the squarest block of these accumulators needs, and few other instructions."""
    for loop in loops:
        if loop.kernel not in ("FrameAttention", "TileAttention", "Int8Attention", "multiply"):
            continue
        assert loop.operand_loads <= 1.5 * (loop.floor - loop.counts["multiply_add"]), loop
        if loop.element != "bfloat16 tiles":
            assert loop.instructions <= 1.5 * loop.floor, loop
            # In the block of three vectors of bytes, which the last columns alone take, GCC 12 copies sums from register to register.
            copies = loop.element == "bytes" and loop.counts["multiply_add"] < 24
            assert loop.share >= (0.35 if copies else 0.4 if loop.policy == "Avx2" else 0.5), loop
