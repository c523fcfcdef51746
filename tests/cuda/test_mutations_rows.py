"""Planted bugs in the kernels on rows, and in those that write and read pages of 8 bits."""

from __future__ import annotations

from pathlib import Path

import pytest
from emulated import Emulated
from planted import NOT_ORDERED, Mutation, assert_found, found

pytestmark = pytest.mark.slow

PRODUCTS = "attention_products.cuh"
MUTATIONS = [
    Mutation("sum over half a warp", "mask < kWarpLanes; mask", "mask < kWarpLanes / 2; mask", "numbers", "rows.cuh", "kv_write"),
    Mutation("all frames to one page", "op.page_table[frame]", "op.page_table[0]", "accesses of two blocks", "kv_write.cu", "kv_write"),
    Mutation("values over the keys", "(part == kValues ? argument.values : 0)", "0", "accesses of two blocks", "kv_write.cu", "kv_write"),
    Mutation(
        "mean of channels that are not there",
        "value[i] - mean : 0.0f",
        "value[i] - mean : -mean",
        "numbers",
        "modulated_norm.cu",
        "modulated_norm",
    ),
    Mutation(
        "a row's tail stored whole",
        "if (i < count) to[i] =",
        "to[i] =",
        "numbers",
        "rows.cuh",
        "gelu",
    ),
]


def fp8(name: str, old: str, new: str, finds: str, file: str = PRODUCTS, kernel: str = "frame_attention_fp8") -> Mutation:
    return Mutation(name, old, new, finds, file, kernel)


def cast(name: str, old: str, new: str, finds: str = "numbers") -> Mutation:
    return fp8(name, old, new, finds, "kv_write_fp8.cu", "kv_write_fp8")


MUTATIONS += [
    fp8("channels of keys in the order of values", "widen<0, 1>(word, factors.keys)", "widen<0, 2>(word, factors.keys)", "numbers: error"),
    fp8("halves of a step swapped", "b0 = widen<0, 1>(word, factors.keys), b1 =", "b1 = widen<0, 1>(word, factors.keys), b0 =",
        "numbers: error"),
    fp8("steps swapped", "n % 2 * 2 + step]", "n % 2 * 2 + 1 - step]", "numbers: error"),
    fp8("channels of values swapped", "low0 = widen<0, 2>", "low0 = widen<1, 3>", "numbers: error"),
    fp8("keys of values swapped", "low0 = widen<0, 2>(words[2 * c],", "low0 = widen<2, 0>(words[2 * c],", "numbers: error"),
    fp8("signs lost", "0x87f087f0u", "0x07f007f0u", "numbers: error"),
    fp8("last bits lost", "0x87f087f0u", "0x87e087e0u", "numbers: error"),
    fp8("no scale of keys", "keys = scales[0] * 0x1p120f", "keys = 0x1p120f", "numbers: error"),
    fp8("no scale of values", "values = scales[1] * 0x1p120f", "values = 0x1p120f", "numbers: error"),
    fp8("scales of keys and values swapped", "{pack<Bf16>(keys, keys), pack<Bf16>(values, values)}",
        "{pack<Bf16>(values, values), pack<Bf16>(keys, keys)}", "numbers: error"),
    fp8("scales of another head", "+ 2 * head_;", ";", "numbers: error", "frame_attention.cuh"),
    fp8("scales of the first page", "factors_ = Products::factors(scales_at(page_index));",
        "factors_ = Products::factors(scales_at(op_.page_table[0]));", "numbers: error", "frame_attention.cuh"),
    fp8("half a step through the keys", "key_chunk) ^ (pair << 5))", "key_chunk) ^ (pair << 4))", "numbers: error"),
    fp8("no zeros beyond the page", "valid ? from + i * kCopyRows * Dim : from - row * Dim, valid);", "from + i * kCopyRows * Dim, true);",
        "numbers|not finite|outside every buffer", "frame_attention.cuh"),
    cast("maximum over half a head", "mask < kHeadLanes; mask", "mask < kHeadLanes / 2; mask"),
    cast("maximum over the first half of a group", "i < kGroup && there; i += 8", "i < 8 && there; i += 8"),
    cast("maximum over half a warp's rows", "mask < kWarpLanes; mask", "mask < kWarpLanes / 2; mask"),
    cast("maximum over one warp's rows", "warp < kRowThreads / kWarpLanes; ++warp", "warp < 1; ++warp"),
    cast("no barrier before the warps' maxima are read", "  sync_block();\n", "", NOT_ORDERED),
    cast("maximum of another head", "row_at(argument, part, frame, head, token)));", "row_at(argument, part, frame, 0, token)));"),
    cast("scale too small by a power", "> 0x600000 ? 1 : 0)", "> 0x600000 ? 0 : 0)"),
    cast("no least scale", "if (exponent < kLeastExponent) exponent = kLeastExponent;", ""),
    cast("scales of keys and values swapped", "(part == kValues ? 1 : 0)", "(part == kValues ? 0 : 1)"),
    cast("cut off instead of rounded", "(magnitude + 0x7ffff + (magnitude >> 20 & 1)) >> 20", "magnitude >> 20"),
    cast("ties away from zero", "0x7ffff + (magnitude >> 20 & 1)", "0x80000"),
    cast("subnormal numbers flushed", "return (magnitude + 0x7ffff", "return magnitude < 0x800000 ? 0 : (magnitude + 0x7ffff"),
    cast("NaN swallowed", "a > b || a != a ? a : b", "a > b ? a : b"),
    cast("channels of keys as they come", "code[c + 1] << 8 | code[c + 8] << 16 |", "code[c + 8] << 8 | code[c + 1] << 16 |"),
    cast("values not where they belong", "(part == kValues ? argument.values : 0)", "0", "accesses of two blocks"),
]  # fmt: skip
BEYOND = "outside every buffer|numbers|accesses of two blocks"
MUTATIONS += [
    Mutation("a row of the norm stored whole", "if (i < count) to[i] =", "to[i] =", "numbers", "rows.cuh", "modulated_norm"),
    Mutation("rows that are not aligned by vectors", "rows_aligned(2, op.x.data, op.x.frame, op.x.token)", "true", "not aligned",
             "gelu.cu", "gelu"),
    Mutation("rows by 32 bits", "row / op.tokens * op.x.frame", "static_cast<int>(row / op.tokens * op.x.frame)", BEYOND, "gelu.cu",
             "gelu"),
    Mutation("rows by 32 bits", "frame * rows.frame + token * rows.token;", "static_cast<int>(frame * rows.frame + token * rows.token);",
             BEYOND, "modulated_norm.cu", "modulated_norm"),
    Mutation("pages by 32 bits", "op.page_table[frame] * op.page_stride", "static_cast<int>(op.page_table[frame] * op.page_stride)", BEYOND,
             "kv_write.cu", "kv_write"),
    Mutation("heads by 32 bits", "head * rows.head + channel", "static_cast<int>(head * rows.head) + channel", BEYOND, "kv_write.cuh",
             "kv_write"),
    Mutation("pages of 8 bits by 32", "argument.op.page_table[frame] * argument.op.page_stride",
             "static_cast<int>(argument.op.page_table[frame] * argument.op.page_stride)", BEYOND, "kv_write_fp8.cu", "kv_write_fp8"),
    Mutation("elements by 32 bits", "const int64_t i = static_cast<int64_t>(blockIdx.x) * kStepThreads + threadIdx.x",
             "const int i = static_cast<int>(blockIdx.x * kStepThreads + threadIdx.x)", BEYOND, "sampler_step.cu", "sampler_step"),
]  # fmt: skip


def test_nothing_is_found_in_the_kernel_as_it_is(emulated_library: Emulated) -> None:
    kernels = ("frame_attention_fp8", "kv_write", "kv_write_fp8", "modulated_norm", "gelu", "sampler_step")
    assert {found(emulated_library, kernel) for kernel in kernels} == {""}
    emulated_library.settings()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_is_found(mutation: Mutation, emulated_library: Emulated, tmp_path: Path) -> None:
    assert_found(mutation, emulated_library, tmp_path)
