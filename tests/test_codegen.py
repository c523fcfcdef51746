"""The inner loops as the compiler left them: a guard against silent regressions that needs no clock."""

from __future__ import annotations

import shutil

import pytest

from bench import codegen
from lolrt import _core

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


@pytest.fixture(scope="module")
def loops() -> list[codegen.Loop]:
    if not shutil.which("objdump") or "avx2" not in _core.isas():
        pytest.skip("needs objdump and x86")
    return codegen.hot_loops(codegen.disassemble(codegen.LIBRARY))


def test_counts_a_loop():
    (loop,) = codegen.hot_loops(BLOCK.replace("{SPILL}", ""))
    assert (loop.policy, loop.element, loop.kernel, loop.start) == ("Avx512", "float32", "multiply", 0x1010)
    assert loop.counts == {"multiply_add": 6, "load": 2, "broadcast": 3, "other": 3}
    assert (loop.instructions, loop.accumulators, loop.floor) == (14, 6, 11)


def test_sees_a_spill():
    spill = "\n    1043:\tvmovaps %zmm3,-0x40(%rsp)\n    1044:\tvmovaps -0x40(%rsp),%zmm3"
    (loop,) = codegen.hot_loops(BLOCK.replace("{SPILL}", spill))
    assert (loop.counts["spill"], loop.counts["reload"], loop.counts["load"]) == (1, 1, 2)


def test_a_polynomial_is_no_product():
    moves = "".join(f"\n    1043:\tvmovaps %zmm9,%zmm{register}" for register in range(4))
    assert codegen.hot_loops(BLOCK.replace("{SPILL}", moves)) == []


@pytest.mark.whole
def test_every_policy_has_its_products(loops):
    found = {(loop.policy.lower(), loop.element) for loop in loops}
    products = {"avx2": [], "avx512": [], "avx512bf16": ["bfloat16"], "amx": ["bfloat16 tiles"]}
    for isa in products.keys() & set(_core.isas()):
        assert {(isa, element) for element in ["float32", *products[isa]]} <= found


@pytest.mark.whole
def test_no_inner_loop_spills(loops):
    assert [loop for loop in loops if loop.counts["spill"] or loop.counts["reload"]] == []


def test_the_loops_of_attention_multiply(loops):
    """Hardly more operand loads than the squarest block of these accumulators needs, and few other instructions."""
    for loop in loops:
        if loop.kernel not in ("FrameAttention", "TileAttention", "multiply"):
            continue
        assert loop.operand_loads <= 1.5 * (loop.floor - loop.counts["multiply_add"]), loop
        if loop.element != "bfloat16 tiles":
            assert loop.instructions <= 1.5 * loop.floor, loop
            assert loop.share >= (0.4 if loop.policy == "Avx2" else 0.5), loop
