"""Planted bugs in csrc/cuda/device, whose inline PTX the emulator replaces by its own code and so cannot check. nvcc compiles the
changed header with one kernel, and the interpreter must find the bug: by a report, or by `numbers`: the rule of rule.py, or the bits."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import test_emulated_rows as rows
import test_mutations_launch as launchers
import torch
from emulated import AbiError
from interpreted import KERNELS, Interpreted, compile_ptx, has_nvcc
from ptx import Instruction, PtxError
from rule import check, name_of
from test_emulated_attention import CudaAttention
from test_emulated_fp8 import fp8_attention
from test_mutations_launch import compile_mutant as compile_mutant_of_launch

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not has_nvcc(), reason="there is no nvcc, whose PTX would be run")]


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    """The file, below csrc/cuda/device or one folder above."""
    old: str
    new: str
    finds: str
    """Regular expression for the report."""
    kernel: str = "frame_attention"
    dtype: torch.dtype = torch.bfloat16


UNDER_WAY = "an access and a copy under way"
PRODUCT = "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}"
MUTATIONS = [
    Mutation("operands of b swapped", "matrix.cuh", PRODUCT, PRODUCT.replace("%8, %9", "%9, %8"), "numbers"),
    Mutation("the same in fp16", "matrix.cuh", PRODUCT, PRODUCT.replace("%8, %9", "%9, %8"), "numbers", dtype=torch.float16),
    Mutation("operands of a swapped", "matrix.cuh", PRODUCT, PRODUCT.replace("%5, %6", "%6, %5"), "numbers"),
    Mutation("results swapped", "matrix.cuh", PRODUCT, PRODUCT.replace("%0, %1", "%1, %0"), "numbers"),
    Mutation("bf16 taken for fp16", "matrix.cuh", "f32.bf16.bf16.f32", "f32.f16.f16.f32", "numbers"),
    Mutation("fp16 taken for bf16", "matrix.cuh", "f32.f16.f16.f32", "f32.bf16.bf16.f32", "numbers", dtype=torch.float16),
    Mutation("values not transposed", "matrix.cuh", "x4.trans.shared", "x4.shared", "numbers"),
    Mutation("keys transposed", "matrix.cuh", "x4.shared", "x4.trans.shared", "numbers"),
    Mutation("matrices in another order", "matrix.cuh", "b16 {%0, %1, %2, %3}", "b16 {%0, %2, %1, %3}", "numbers"),
    Mutation("no wait for copies", "async_copy.cuh", '"cp.async.wait_group %0;\\n"', '"// %0\\n"', UNDER_WAY),
    Mutation("wait for one group too few", "async_copy.cuh", '"n"(Pending)', '"n"(Pending + 1)', UNDER_WAY),
    Mutation("group not closed", "async_copy.cuh", "cp.async.commit_group;", "", UNDER_WAY),
    Mutation("zeros for what is there", "async_copy.cuh", "valid ? 16 : 0", "valid ? 0 : 16", "numbers"),
    Mutation("half of an angle", "async_copy.cuh", "[%0], [%1], 8;", "[%0], [%1], 4;", "numbers"),
    Mutation("source and target swapped", "async_copy.cuh", "[%0], [%1], 16", "[%1], [%0], 16", "outside"),
    Mutation("no barrier of the block", "threads.cuh", "__syncthreads();", "", "race: .* are not ordered"),
    Mutation("no barrier of the warp", "threads.cuh", "__syncwarp();", "", "race: .* are not ordered"),
    Mutation("exchange with another lane", "threads.cuh", "value, mask)", "value, mask * 2)", "numbers"),
    Mutation("not for any lane but for all", "threads.cuh", "__any_sync", "__all_sync", "numbers"),
    Mutation("halves swapped", "element.cuh", '"f"(second), "f"(first)', '"f"(first), "f"(second)', "numbers"),
    Mutation("operands of 2^x swapped", "element.cuh", "ex2.approx.ftz.f32 %0, %1", "ex2.approx.ftz.f32 %1, %0", "numbers"),
    Mutation("another function", "element.cuh", "ex2.approx.ftz.f32", "lg2.approx.ftz.f32", "unknown instruction lg2", "gelu"),
    Mutation("cut off instead of rounded", "element.cuh", "cvt.rn.bf16x2", "cvt.rz.bf16x2", "numbers", "kv_write"),
    Mutation("words of a stored vector swapped", "element.cuh", "[%0], {%1, %2,", "[%0], {%2, %1,", "numbers", "gelu"),
    Mutation("half of a loaded vector", "element.cuh", "ld.global.v4.u32 {%0, %1, %2, %3}", "ld.global.v2.u32 {%0, %1}", "numbers", "gelu"),
    Mutation("halves of fp16 swapped", "element.cuh", "{low, high}", "{high, low}", "numbers", "gelu", torch.float16),
    Mutation("signs of bytes lost", "element.cuh", "kSign = 8", "kSign = 0", "numbers", "frame_attention_fp8"),
    Mutation(
        "bytes of another operand", "element.cuh", "prmt.b32 %0, %1, 0, %2", "prmt.b32 %0, 0, %1, %2", "numbers", "frame_attention_fp8"
    ),
    Mutation("pairs of fp16 multiplied", "element.cuh", "fma.rn.bf16x2", "fma.rn.f16x2", "unknown instruction", "frame_attention_fp8"),
    Mutation("another addend", "element.cuh", "0x80008000u", "0x3f803f80u", "numbers", "frame_attention_fp8"),
]


def sm90(name: str, file: str, old: str, new: str, finds: str) -> Mutation:
    return Mutation(name, file, old, new, finds, "frame_attention_sm90")


PRODUCTS, BARRIERS, BOXES, DESCRIPTORS = "warpgroup.cuh", "barrier.cuh", "bulk_copy.cuh", "../matrix_descriptor.cuh"
PRODUCT_UNDER_WAY = "registers of a product under way are touched|a product under way and a write are not ordered"
A = '"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])'
LAYOUT = "numbers|outside|race"
MUTATIONS += [
    sm90("operands of a swapped", PRODUCTS, A, '"r"(a[0]), "r"(a[2]), "r"(a[1]), "r"(a[3])', "numbers"),
    sm90("results swapped", PRODUCTS, '"%0, %1, %2,', '"%1, %0, %2,', "numbers"),
    sm90("keys transposed", PRODUCTS, "add, 1, 1, 0;", "add, 1, 1, 1;", LAYOUT),
    sm90("values not transposed", PRODUCTS, "%68, 1, 1, 1, 1;", "%68, 1, 1, 1, 0;", LAYOUT),
    sm90("scores never begun anew", PRODUCTS, "%60, add, 1, 1, 0;", "%60, 1, 1, 1, 0;", "numbers"),
    sm90("output begun anew for each product", PRODUCTS, "%68, 1, 1, 1, 1;", "%68, 0, 1, 1, 1;", "numbers"),
    sm90("bf16 taken for fp16", PRODUCTS, 'LOLRT_PRODUCTS(Bf16, "bf16")', 'LOLRT_PRODUCTS(Bf16, "f16")', "numbers"),
    sm90("no fence of registers", PRODUCTS, "wgmma.fence.sync.aligned;", "", "touched and no fence followed"),
    sm90("group not closed", PRODUCTS, "wgmma.commit_group.sync.aligned;", "", PRODUCT_UNDER_WAY),
    sm90("no wait for products", PRODUCTS, "wgmma.wait_group.sync.aligned %0;", "// %0", PRODUCT_UNDER_WAY),
    sm90("wait for one product too few", PRODUCTS, '"n"(Pending)', '"n"(Pending + 1)', PRODUCT_UNDER_WAY),
    sm90("registers taken, not given", PRODUCTS, "setmaxnreg.dec", "setmaxnreg.inc", "deadlock|registers a thread and asks for"),
    sm90("registers given, not taken", PRODUCTS, "setmaxnreg.inc", "setmaxnreg.dec", "registers a thread and asks for"),
    sm90("offsets of the descriptor swapped", DESCRIPTORS, "<< 32 |", "<< 16 |", LAYOUT),
    sm90("stride of 16 rows, not 8", DESCRIPTORS, "kGroupBytes >> 4}", "kGroupBytes >> 3}", LAYOUT),
    sm90("offset between columns in bytes", DESCRIPTORS, "next_columns >> 4", "next_columns", LAYOUT),
    sm90("swizzle of 64 bytes", DESCRIPTORS, "uint64_t{1} << 62", "uint64_t{2} << 62", LAYOUT),
    sm90("no swizzle", DESCRIPTORS, "uint64_t{1} << 62", "uint64_t{0} << 62", LAYOUT),
    sm90("the other parity", BARRIERS, '"r"(parity)', '"r"(parity ^ 1)', f"{UNDER_WAY}|deadlock"),
    sm90("tried, but not waited for", BARRIERS, "while (over == 0)", "while (false)", f"{UNDER_WAY}|more than the 1 arrivals"),
    sm90("no arrivals", BARRIERS, "mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];", "// %0", "deadlock: .* mbarrier.try_wait"),
    sm90("no bytes expected", BARRIERS, "arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;",
         "arrive.release.cta.shared::cta.b64 _, [%0]; // %1", f"{UNDER_WAY}|race"),
    sm90("barrier and bytes swapped", BARRIERS, "_, [%0], %1;", "_, [%1], %0;", "nobody has initialised|outside|not aligned"),
    sm90("arrivals and barrier swapped", BARRIERS, "[%0], %1;\\n\" ::\"r\"(shared_address(barrier)), \"r\"(arrivals)",
         "[%0], %1;\\n\" ::\"r\"(arrivals), \"r\"(shared_address(barrier))", "outside|not aligned"),
    sm90("a turn that is not waited for", "threads.cuh", "barrier.cta.sync.aligned", "barrier.cta.arrive.aligned",
         "again before all others|nobody waits"),
    sm90("a turn that is waited for to be taken", "threads.cuh", "barrier.cta.arrive.aligned", "barrier.cta.sync.aligned", "deadlock"),
    sm90("a turn of other threads", "threads.cuh", 'arrive.aligned %0, %1;\\n" ::"r"(barrier), "n"(Threads)',
         'arrive.aligned %0, %1;\\n" ::"r"(barrier), "n"(Threads / 2)', "nobody waits|other threads"),
    sm90("barriers not published", BARRIERS, "fence.mbarrier_init.release.cluster;", "", "no fence has published"),
    sm90("coordinates swapped", BOXES, "{%3, %4, %5, %6}", "{%3, %4, %6, %5}", "numbers"),
    sm90("channels and tokens swapped", BOXES, "{%3, %4, %5, %6}", "{%4, %3, %5, %6}", "numbers"),
    sm90("target and barrier swapped", BOXES, "[%0], [%1, {%3, %4, %5, %6}], [%2]", "[%2], [%1, {%3, %4, %5, %6}], [%0]",
         "initialised|not aligned"),
]  # fmt: skip


def compile_mutant(mutation: Mutation, library: Path, into: Path) -> Interpreted:
    """Its kernel; of attention only one."""
    sources = Path(shutil.copytree(KERNELS, into / "cuda"))
    changed = sources / "device" / mutation.file
    text = changed.read_text()
    assert mutation.old in text, f"{mutation.name}: what it changes is not there"
    changed.write_text(text.replace(mutation.old, mutation.new))
    unit = sources / f"{mutation.kernel.removesuffix('_fp8')}.cu"
    if mutation.kernel in ("frame_attention", "frame_attention_fp8"):
        element, dim, keys = ("Bf16", 64, 64) if mutation.dtype == torch.bfloat16 else ("Fp16", 128, 64)
        stored, dtype = element, name_of(mutation.dtype)
        page_dtype = dtype
        if mutation.kernel == "frame_attention_fp8":
            stored, page_dtype, dim, keys = "Fp8", "float8_e4m3fn", 128, 32
        kernel = f"frame_attention_kernel<{element}, {stored}, {dim}, {keys}, false>"
        both = f"{{{kernel}, {kernel}}}"
        one = f"kChoices[] = {{{{DType::{dtype}, DType::{page_dtype}, {dim}, {{{both}, {both}}}}}}};"
        text, count = re.subn(r"kChoices\[\] = .*?;", one, unit.read_text(), flags=re.DOTALL)
        assert count == 1
        unit.write_text(text)
    if mutation.kernel == "frame_attention_sm90":
        shipped = unit.read_text().replace("kernel_of<Fp16>(probe)", "nullptr")
        one = "  return frame_attention_sm90_kernel<Element, false>;"
        text, count = re.subn(r"  return probe \? .*?;", one, shipped, flags=re.DOTALL)
        assert count == 1
        unit.write_text(text)
        return Interpreted(library, compile_ptx([unit], sources, "90a"), 900)
    return Interpreted(library, compile_ptx([unit], sources))


def attend(cuda: Interpreted, dtype: torch.dtype, dim: int, page_tokens: int, pages: int, heads: int = 1) -> None:
    """Scores that rise from key to key, by more the later the query."""
    case = CudaAttention(dtype, dim=dim, tokens=40, page_tokens=page_tokens, pages=pages, frames=1, heads=heads, cuda=cuda)
    case.scale = 1.0
    case.k = (case.k * torch.linspace(0.1, 4, case.page_tokens)[:, None, None]).to(dtype)
    case.q = (case.q * torch.linspace(0.1, 4, case.tokens)[:, None, None]).to(dtype)
    case.write()
    out, _ = case.run()
    ref, _ = case.oracle()
    check(out, case.torch(), ref, case.dim)


def found(cuda: Interpreted, kernel: str, dtype: torch.dtype) -> str:
    try:
        if kernel == "frame_attention":
            attend(cuda, dtype, 64 if dtype == torch.bfloat16 else 128, 77, 2)
        elif kernel == "frame_attention_fp8":
            case = fp8_attention(cuda, tokens=9, page_tokens=20, pages=2, frames=1, heads=1)
            check(case.run()[0], case.torch(), case.oracle()[0], case.dim)
        elif kernel == "frame_attention_sm90":
            attend(cuda, dtype, 128, 150, 2, heads=3)  # of three tiles a block has two
        elif kernel == "kv_write":
            rows.test_kv_write_rounds_where_public_code_does(cuda)
        else:
            rows.test_gelu_matches_the_oracle(cuda, dtype, 1, 2, 264, 0)
    except (AbiError, PtxError) as error:
        return str(error)
    except AssertionError as error:
        return f"numbers: {error}"
    return ""


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        ("frame_attention", torch.bfloat16),
        ("frame_attention", torch.float16),
        ("frame_attention_fp8", torch.bfloat16),
        ("kv_write", None),
        ("gelu", torch.bfloat16),
    ],
)
def test_nothing_is_found_in_the_kernel_as_it_is(ptx: Interpreted, kernel: str, dtype: torch.dtype) -> None:
    assert found(ptx, kernel, dtype) == ""


def test_nothing_is_found_in_the_kernel_of_sm90_as_it_is(ptx_of_sm90: Interpreted) -> None:
    assert found(ptx_of_sm90, "frame_attention_sm90", torch.bfloat16) == ""


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_is_found(mutation: Mutation, ptx: Interpreted, tmp_path: Path) -> None:
    report = found(compile_mutant(mutation, ptx.path, tmp_path), mutation.kernel, mutation.dtype)
    assert re.search(mutation.finds, report), f"found: {report or 'nothing'}"


def test_the_tile_of_the_device_is_found(ptx: Interpreted, tmp_path: Path) -> None:
    """Planted in the launcher: the tile size follows the device's architecture, although the PTX of sm_80 is loaded. The kernel without
    code reports it."""
    (by_device,) = (mutation for mutation in launchers.MUTATIONS if mutation.name == "the tile of the device, not of the code")
    launcher = compile_mutant_of_launch(by_device, ptx.path.with_name("objects"), tmp_path)
    mutant = Interpreted(launcher.path, ptx.kernels)
    mutant.device = 860
    with pytest.raises(AbiError, match="has no code for this architecture: trap"):
        attend(mutant, torch.bfloat16, 128, 77, 2)


def reports_without(cuda: Interpreted, name: str, opcode: str, kernel: str) -> list[str]:
    """The reports when each of these instructions in turn is removed from a compiled kernel for bfloat16."""
    (mangled,) = (mangled for mangled in cuda.kernels if name in mangled)
    compiled = cuda.kernels[mangled]
    places = [place for place, instruction in enumerate(compiled.code) if instruction.opcode == opcode]
    assert places
    reports = []
    for place in places:
        code = list(compiled.code)
        code[place] = Instruction("mov.u32", ("_", "0"), "", "removed")
        mutant = Interpreted(cuda.path, {mangled: replace(compiled, code=code)}, cuda.architecture)
        reports.append(found(mutant, kernel, torch.bfloat16))
    return reports


@pytest.mark.parametrize("opcode", ["bar.sync", "bar.warp.sync", "cp.async.wait_group", "cp.async.commit_group"])
def test_each_of_them_is_missed(opcode: str, ptx: Interpreted) -> None:
    for report in reports_without(ptx, "frame_attention_kernelINS0_4Bf16ES2_Li64ELi64ELb0E", opcode, "frame_attention"):
        assert re.search(f"race: .* are not ordered|{UNDER_WAY}|nobody waits", report), report or "nothing"


@pytest.mark.parametrize(
    ("opcode", "finds"),
    [
        ("wgmma.commit_group.sync.aligned", PRODUCT_UNDER_WAY),
        ("wgmma.wait_group.sync.aligned", f"{PRODUCT_UNDER_WAY}|nobody waits"),
        ("mbarrier.arrive.release.cta.shared::cta.b64", "deadlock: .* mbarrier.try_wait"),
        ("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64", "deadlock: .* mbarrier.try_wait"),
        ("barrier.cta.arrive.aligned", "deadlock: .* barrier.cta.sync"),
        ("barrier.cta.sync.aligned", "again before all others|nobody waits"),
    ],
)
def test_each_of_them_is_missed_on_sm90(opcode: str, finds: str, ptx_of_sm90: Interpreted) -> None:
    for report in reports_without(ptx_of_sm90, "frame_attention_sm90_kernelINS0_4Bf16ELb0E", opcode, "frame_attention_sm90"):
        assert re.search(finds, report), report or "nothing"


def test_all_fences_of_products_but_one_are_missed(ptx_of_sm90: Interpreted) -> None:
    """In the loop, the fence of the scores comes first, and also fences the registers of the values."""
    reports = reports_without(ptx_of_sm90, "frame_attention_sm90_kernelINS0_4Bf16ELb0E", "wgmma.fence.sync.aligned", "frame_attention_sm90")
    assert [bool(report) for report in reports].count(False) == 1
    assert all(re.search("touched and no fence followed", report) for report in reports if report)


def test_the_emulator_compiles_none_of_these_files(ptx: Interpreted) -> None:
    """But the one that asks the runtime for launches."""
    headers = ptx.path.with_name("headers").read_text()
    assert "cuda/simt/device/matrix.cuh" in headers and set(re.findall(r"csrc/cuda/device/(\w+)", headers)) == {"launch"}
