"""Planted bugs in the CUDA kernels, and what finds each: a bug that nothing finds is a missing check.

A mutation is a change of the source, which is then compiled and emulated on a few small cases. What finds it is what the emulator
reports, or `numbers`: the rule of rule.py, the mass, or the bank conflicts.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import test_emulated_fp8 as casts
import test_emulated_rows as rows
import torch
from batched import NOT_THERE, BatchedAttention, compare
from commands import output_of
from emulated import LIBRARY, ROOT, SIMT, AbiError, Emulated
from rule import check, fp64
from test_emulated_attention import CudaAttention
from test_emulated_fp8 import Fp8Attention

pytestmark = pytest.mark.slow

KERNELS = ROOT / "csrc" / "cuda"
FLAGS = ["-xc++", "-std=c++17", "-O1", "-fno-thread-jumps", "-ffp-contract=off", "-fsanitize=thread", "-fPIC", "-fvisibility=hidden"]


@dataclass(frozen=True)
class Mutation:
    name: str
    old: str
    new: str
    finds: str
    """Regular expression of the report."""
    file: str = "frame_attention.cuh"
    kernel: str = "frame_attention"
    probe: bool = False
    batched: bool = False
    """Whether only calls with a batch are to find it."""
    also: tuple[str, str, str] | None = None
    """A second change: file, old, new."""


WAIT = "        wait_for_copies<0>();\n        sync_block();\n        copy_tile(kValuesAt"
SECOND = "    wait_for_copies<0>();\n    sync_block();\n    begin_next_tile();"
NOT_ORDERED = "race: .* are not ordered"
UNDER_WAY = "an access and a copy under way"
SPLIT, COMBINE, PRODUCTS = "work_split.cuh", "attention_combine.cuh", "attention_products.cuh"
MUTATIONS = [
    Mutation("no barrier before the scores", WAIT, WAIT.replace("sync_block();", ""), f"{NOT_ORDERED}|{UNDER_WAY}"),
    Mutation("no barrier before the values", SECOND, SECOND.replace("sync_block();", ""), f"{NOT_ORDERED}|{UNDER_WAY}"),
    Mutation("no wait for the keys", WAIT, WAIT.replace("wait_for_copies<0>();", ""), UNDER_WAY),
    Mutation("no wait for the values", SECOND, SECOND.replace("wait_for_copies<0>();", ""), UNDER_WAY),
    Mutation("wait for one group too few", SECOND, SECOND.replace("<0>", "<1>"), UNDER_WAY),
    Mutation(
        "the keys' memory given back early",
        SECOND,
        SECOND.replace("    sync_block();\n    begin_next_tile();", "    begin_next_tile();\n    sync_block();"),
        NOT_ORDERED,
    ),
    Mutation("no barrier of the warp after the rotation", "    sync_warp();\n", "", NOT_ORDERED),
    Mutation("swizzle by two bits", "(chunk ^ (row & 7))", "(chunk ^ (row & 3))", "numbers: .* bank conflicts", PRODUCTS),
    Mutation(
        "swizzle of another step",
        "(chunk_at<kRowBytes>(key_row, key_chunk) ^ (k << 4))",
        "(chunk_at<kRowBytes>(key_row, key_chunk) + (k << 4))",
        f"{UNDER_WAY}|numbers|outside",
        PRODUCTS,
    ),
    Mutation(
        "operands swapped", "scores[half][n], a[half], b[0], b[1])", "scores[half][n], a[half], b[1], b[0])", "numbers: error", PRODUCTS
    ),
    Mutation("values not transposed", "load_matrices_transposed(b,", "load_matrices(b,", "numbers: error", PRODUCTS),
    Mutation("no mask in the tail", "if (left < 16 * Groups) mask<Groups>(left, scores);", "", "numbers: error"),
    Mutation("tail off by one", "+ i < left) continue;", "+ i <= left) continue;", "numbers: error"),
    Mutation(
        "no zeros beyond the page",
        "valid ? from + i * kCopyRows * Dim : from - row * Dim, valid);",
        "from + i * kCopyRows * Dim, true);",
        "numbers|outside every buffer",
    ),
    Mutation("rotation the other way", "fmaf(x.x, cos, -(x.y * sin))", "fmaf(x.x, cos, x.y * sin)", "numbers: error", "attention.cuh"),
    Mutation("turned queries turned again", "            copy_queries(turned_chunks_);\n", "", "numbers: error"),
    Mutation(
        "rotation of the block's first frame",
        "rotation(row / static_cast<int>(op_.tokens) - first_frame())",
        "rotation(0)",
        "numbers: error",
    ),
    Mutation(
        "rotation of another head", "* op_.heads + head_;\n      for (int pair", "* op_.heads;\n      for (int pair", "numbers: error"
    ),
    Mutation("padding of the rotation left as it is", "    pad_rotation();\n", "", "numbers|not finite"),
    Mutation("page off by one", "page_index = op_.page_table[following];", "page_index = op_.page_table[page];", "numbers: error"),
    Mutation("sum not rescaled", "        sum_[half][r] *= factor;\n", "", "numbers: error"),
    Mutation("mass of all pages so far", "if (before >= begin) {", "if (false) {", "numbers: mass", "attention_mass.cuh", probe=True),
    Mutation("sum over half a warp", "mask < kWarpLanes; mask", "mask < kWarpLanes / 2; mask", "numbers", "rows.cuh", "kv_write"),
    Mutation("all frames to one page", "op.page_table[frame]", "op.page_table[0]", "accesses of two blocks", "kv_write.cu", "kv_write"),
    Mutation(
        "a large bias as it is",
        "(bias < -kMostBias ? -kMostBias : bias > kMostBias ? kMostBias : bias)",
        "bias",
        "not finite",
        "attention.cuh",
    ),
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
    Mutation("parts over each other", "number < 0 ? -1 : number}", "number < 0 ? -1 : number % cut}", "accesses of two blocks", SPLIT),
    Mutation("all parts from the first page on", "number < 0 ? 0 : number / cut * part_pages", "0", "numbers: error", SPLIT),
    Mutation("a part goes on to the end", "page + part_pages > pages ?", "page >= 0 ?", "numbers: error", SPLIT),
    Mutation("parts not put together", "split.cut > 0", "split.cut > 9", "not finite", "frame_attention.cu"),
    Mutation("parts of another tile", "(part) * split.cut * kAttentionRows", "(part) * kAttentionRows", "numbers: error", COMBINE),
    Mutation(
        "a part left out",
        "part = 0; part < split.parts; ++part) {\n        const float factor",
        "part = 1; part < split.parts; ++part) {\n        const float factor",
        "numbers",
        COMBINE,
    ),
    Mutation("outputs of parts not rescaled", "fmaf(x.x, factor, out.x)", "out.x + x.x", "numbers: error", COMBINE),
    Mutation("sums of parts not rescaled", "fmaf(state.y, rescaling(state.x, max), sum)", "sum + state.y", "numbers: error", COMBINE),
    Mutation("rows of a part stored for the output", "if (segment.part >= 0) {", "if (segment.part > 0) {", "not finite", "attention.cuh"),
    Mutation("mass since the first part", "split.part_begin(tile, page)", "0", "numbers: mass", "attention_mass.cuh", probe=True),
    Mutation("mass by the last part", "all.y * rescaling(all.x, max) + ", "", "numbers: mass", "attention_mass.cuh", probe=True),
    Mutation("no memory for the rotation", " + 8 * rounded_pairs(pairs) * attention_frames(frames, tokens)", "", "outside"),
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


def sm90(name: str, old: str, new: str, finds: str, file: str = "frame_attention_sm90_rows.cuh", probe: bool = False) -> Mutation:
    return Mutation(name, old, new, finds, file, "frame_attention_sm90", probe)


def swapped_release(lines: str) -> str:
    """The wait, the pin and the release, the release first."""
    wait, pin, release = lines.splitlines(keepends=True)
    return release + wait + pin


SCORES_OVER = "      wait_for_products<1>();\n      pin(scores_);\n      release(shared_.keys_free(stage_of(tile_)));\n"
OUT_OVER = "      wait_for_products<0>();\n      pin(out_);\n      release(shared_.values_free(stage_of(tile_ - 1)));\n"
FIRST_OVER = "    wait_for_products<0>();\n    pin(scores_);\n    release(shared_.keys_free(stage_of(tile_)));\n"
LAST_OVER = "    add_values();\n    wait_for_products<0>();\n"
KEYS_EXPECTED = "arrive_expecting(shared.keys_full(stage), kTileBytes);"
VALUES_EXPECTED = "arrive_expecting(shared.values_full(stage), kTileBytes);"
COPIES, SHARED = "frame_attention_sm90.cuh", "frame_attention_sm90_shared.cuh"
REGISTERS = "registers of a product under way"
MUTATIONS += [
    sm90("bytes not announced", KEYS_EXPECTED, "arrive(shared.keys_full(stage));", f"{UNDER_WAY}|numbers", COPIES),
    sm90("more bytes announced than come", VALUES_EXPECTED, VALUES_EXPECTED.replace("kTileBytes", "kTileBytes + 128"), "deadlock", COPIES),
    sm90(
        "half a tile copied",
        "channel < kSm90Dim; channel += kBoxChannels) {\n        copy_box(shared.values",
        "channel < kBoxChannels; channel += kBoxChannels) {\n        copy_box(shared.values",
        "deadlock",
        COPIES,
    ),
    sm90(
        "rows wait for the other parity",
        "wait_for_phase(shared_.keys_full(stage), parity_of(tile_))",
        "wait_for_phase(shared_.keys_full(stage), parity_of(tile_) ^ 1)",
        f"{UNDER_WAY}|{NOT_ORDERED}",
    ),
    sm90("copies wait for the other parity", "free = parity_of(tile) ^ 1;", "free = parity_of(tile);", "deadlock: .* at a phase", COPIES),
    sm90("copies do not wait for the keys' memory", "      wait_for_phase(shared.keys_free(stage), free);\n", "", "race: ", COPIES),
    sm90("nobody frees the values' memory", OUT_OVER, "".join(OUT_OVER.splitlines(True)[:2]), "deadlock"),
    # In the loop the copies wait for the values of the tile before, too, which are freed later: here they do not.
    sm90("first keys freed before their product is over", FIRST_OVER, swapped_release(FIRST_OVER), "race: "),
    sm90("values freed before their product is over", OUT_OVER, swapped_release(OUT_OVER), "race: "),
    sm90(
        "memory free when two warps say so",
        "init_barrier(free, kSm90RowThreads / kWarpLanes)",
        "init_barrier(free, 2)",
        "race: |deadlock",
        COPIES,
    ),
    sm90("no wait for the scores", SCORES_OVER, SCORES_OVER.replace("wait_for_products<1>();", ""), REGISTERS),
    sm90("wait for one group too few", OUT_OVER, OUT_OVER.replace("<0>", "<1>"), REGISTERS),
    sm90("no wait for the last values", LAST_OVER, "    add_values();\n", REGISTERS),
    sm90("no fence before the scores", "parity_of(tile_));\n    fence_products();", "parity_of(tile_));", "without a fence"),
    sm90("no fence before the values", "parity_of(tile_ - 1));\n    fence_products();", "parity_of(tile_ - 1));", "without a fence"),
    sm90("wrong stride from 64 columns to the next", "* kGroupBytes, kBoxBytes)", "* kGroupBytes, kGroupBytes)", "numbers|race"),
    sm90("half a step through the values", "values + group * 2 * kGroupBytes", "values + group * kGroupBytes", "numbers: error"),
    sm90("half a step through the keys", "channel % kBoxChannels * 2;", "channel % kBoxChannels;", "numbers: error"),
    sm90(
        "wrong stride from 8 rows to the next",
        "uint64_t{kGroupBytes >> 4} << 32",
        "uint64_t{kGroupBytes >> 5} << 32",
        "numbers",
        "matrix_descriptor.cuh",
    ),
    sm90("swizzle of 64 bytes", "uint64_t{1} << 62", "uint64_t{2} << 62", "numbers|outside|race", "matrix_descriptor.cuh"),
    sm90("no swizzle", "return kSwizzle128 | ", "return ", "numbers|outside|race", "matrix_descriptor.cuh"),
    sm90(
        "descriptor of another stage",
        "const int stage = stage_of(tile_ - 1);",
        "const int stage = stage_of(tile_);",
        f"race|numbers|{REGISTERS}",
    ),
    sm90(
        "scores added to the last ones",
        "matrix_descriptor(first, 0), step > 0)",
        "matrix_descriptor(first, 0), true)",
        "numbers|not finite",
    ),
    sm90("no mask in the tail", "if (left < kSm90Keys) mask(left);", "", "numbers: error"),
    sm90("tail off by one", "+ i >= left)", "+ i > left)", "numbers: error"),
    sm90(
        "no zeros beyond the page",
        "static_cast<uint64_t>(op.page_tokens), static",
        "static_cast<uint64_t>(op.page_tokens) + 8, static",
        "numbers|not finite|outside every buffer",
        "frame_attention_sm90.cu",
    ),
    sm90("pages of the first part announced", "int page = segment.page - 1;", "int page = -1;", "numbers|deadlock", COPIES),
    sm90(
        "keys of the first part copied",
        "next_page(op, segment.head, segment.page, pages_end)",
        "next_page(op, segment.head, 0, pages_end)",
        "numbers|deadlock|copies",
        COPIES,
    ),
    sm90("values of the keys' memory", "box_of(op, argument.values, ", "box_of(op, 0, ", "numbers: error", "frame_attention_sm90.cu"),
    sm90("page off by one", "    page_index = following;\n", "", "numbers: error", COPIES),
    sm90(
        "another head's keys",
        "channel, token,\n                 segment.head, page_index",
        "channel, token,\n                 0, page_index",
        "numbers: error",
        COPIES,
    ),
    sm90(
        "turned queries turned again",
        "const uint4 x = *shared_.unrotated(step, thread_);",
        "const uint4 x = {queries_[step][0], queries_[step][1], queries_[step][2], queries_[step][3]};",
        "numbers: error",
    ),
    sm90("rows of the rotation swapped", "table[i % 2][step * 8 + i / 2 * 4]", "table[1 - i % 2][step * 8 + i / 2 * 4]", "numbers: error"),
    sm90(
        "columns of the rotation swapped",
        "table[i % 2][step * 8 + i / 2 * 4]",
        "table[i % 2][step * 8 + (1 - i / 2) * 4]",
        "numbers: error",
    ),
    sm90(
        "queries rotated under their product",
        "      begin_scores();\n      add_values();\n",
        "      begin_scores();\n      rotate_queries(shared_.rotation(0));\n      add_values();\n",
        REGISTERS,
    ),
    sm90(
        "notice said to be full by one lane alone",
        "    sync_warp();\n    if (lane == 0) arrive(shared.page_full(stage));",
        "    if (lane == 0) arrive(shared.page_full(stage));",
        NOT_ORDERED,
        COPIES,
    ),
    sm90(
        "notice freed by one lane alone",
        "    sync_warp();\n    if (lane_ == 0) arrive(shared_.page_free(stage));",
        "    if (lane_ == 0) arrive(shared_.page_free(stage));",
        NOT_ORDERED,
    ),
    sm90("barriers not published", "    publish_barriers();\n", "", "not published", COPIES),
    sm90("no block barrier after the barriers are made", "  sync_block();\n", "", "not initialised|not ordered", COPIES),
    sm90("more registers than there are", "kSm90RowRegisters = 232", "kSm90RowRegisters = 240", "deadlock: .* at registers", SHARED),
    sm90("output not rescaled", "      if (raised) rescale();\n", "", "numbers: error"),
    sm90("sum not rescaled", "      sum_[r] *= factor_[r];\n", "", "numbers: error"),
    sm90(
        "weights in another order",
        "pack<Element>(scores_[group * 8 + i * 2], ",
        "pack<Element>(scores_[group * 8 + (i ^ 1) * 2], ",
        "numbers: error",
    ),
    sm90("no memory for the notices", " + kSm90Stages * notice_bytes(steps, frames);", ";", "outside", SHARED),
    sm90(
        "a lane's part of the sum",
        "const float sum = row_sum(sum_[r]);\n      const int row = row_of(r);\n      if (lane_ % 4",
        "const float sum = sum_[r];\n      const int row = row_of(r);\n      if (lane_ % 4",
        "numbers: mass",
        probe=True,
    ),
]


def batch(name: str, old: str, new: str, finds: str, file: str = "frame_attention.cuh", probe: bool = False) -> Mutation:
    return Mutation(name, old, new, finds, file, "frame_attention", probe, batched=True)


def batch90(name: str, old: str, new: str, finds: str, file: str = COPIES, probe: bool = False) -> Mutation:
    return Mutation(name, old, new, finds, file, "frame_attention_sm90", probe, batched=True)


NEXT_ANNOUNCED = "page = next_page(op, segment.head, page + 1, pages_end);\n    const int stage"
NEXT_COPIED = "page = next_page(op, segment.head, page + 1, pages_end);\n    const int following"
WRONG = "numbers|not finite|outside"
MUTATIONS += [
    batch("all entries begin at the first one's pages", "first = entry * argument.split.pages", "first = 0", WRONG, "attention.cuh"),
    batch("pages of the first entry's table", "op_.page_table[following]", "op_.page_table[following % op_.pages]", WRONG),
    batch("rotation as of a batch of one", "(static_cast<int64_t>(page) * argument_.frames +", "(page * op_.frames +", WRONG),
    batch("bias of the first entry", "bias = op.bias[static_cast<int64_t>(page) * op.heads", "bias = op.bias[page % op.pages * op.heads",
          WRONG, "attention.cuh"),
    batch("queries of the first entry", "static_cast<int>(blockIdx.y) * argument_.frames + (valid", "(valid", "numbers: error"),
    batch("output over the first entry's", "frame = entry * argument.frames + row / tokens", "frame = row / tokens",
          "accesses of two blocks", "attention.cuh"),
    batch("parts over the first entry's", "static_cast<int64_t>(entry) * (cut * parts)", "static_cast<int64_t>(0)",
          "accesses of two blocks", SPLIT),
    batch("states over the first entry's", "page_state[(page * op_.heads", "page_state[(page % op_.pages * op_.heads",
          "accesses of two blocks", probe=True),
    batch("mass as of a batch of one", "static_cast<int64_t>(argument.frames) + frame) * op.heads", "op.frames + frame) * op.heads",
          "outside|not finite|accesses of two blocks", "attention_mass.cuh", probe=True),
    batch("mass by the first entry's table", "passed_over(op, head, first + other)", "passed_over(op, head, other)", WRONG,
          "attention_mass.cuh", probe=True),
    batch("cut by how many neighbours there are", "blocks * device.multiprocessors)",
          "blocks * device.multiprocessors * (op.batch == 1 ? 1 : 0) + 1)", "bits depend on the neighbours", "frame_attention.cu"),
    batch90("rotation as of a batch of one", "(static_cast<int64_t>(page) * argument.frames +", "(page * op.frames +", WRONG),
    batch90("pages of the first entry's table", "page < pages_end ? op.page_table[page] : 0;\n    for",
            "page < pages_end ? op.page_table[page % op.pages] : 0;\n    for", WRONG),
    batch90("queries of the first entry", "op_.q, static_cast<int>(blockIdx.y), segment_.head", "op_.q, 0, segment_.head", "numbers: error",
            "frame_attention_sm90_rows.cuh"),
    batch90("a page passed over by the copies that the rows wait for", NEXT_COPIED, NEXT_COPIED.replace("page + 1", "page + 2"),
            "deadlock: .* at a phase"),
    batch90("a page announced that is not copied", NEXT_ANNOUNCED,
            NEXT_ANNOUNCED.replace("next_page(op, segment.head, page + 1, pages_end)", "page + 1"), "deadlock: .* at a phase|outside"),
    batch90("a page copied that is not announced", NEXT_COPIED,
            NEXT_COPIED.replace("next_page(op, segment.head, page + 1, pages_end)", "page + 1"), "numbers|outside|deadlock|copies"),
    batch90("rows begin at the first entry's pages", "if (page_ == segment_.pages_end)", "if (page_ == op_.pages)",
            "deadlock|numbers|outside", "frame_attention_sm90_rows.cuh"),
]  # fmt: skip
COPIED, COPIED_90 = " + page_index * op_.page_stride + offset", "    for (int token = 0; token < page_tokens; token += kSm90Keys, ++tile) {"
MUTATIONS += [
    replace(
        mutation,
        name=f"page 0 for {mutation.name}",
        old="op.page_table[page] < 0 || ",
        new="",
        finds=WRONG,
        file="attention.cuh",
        also=(mutation.file, mutation.old, mutation.new),
    )
    for mutation in (
        batch("one that is not there", COPIED, " + (page_index < 0 ? 0 : page_index) * op_.page_stride + offset", ""),
        batch90("one that is not there, by the boxes", COPIED_90, f"    if (page_index < 0) page_index = 0;\n{COPIED_90}", ""),
    )
]


def compile_mutant(mutation: Mutation, objects: Path, into: Path) -> Emulated:
    """The emulated half with one kernel of attention, changed, and of the others what has been compiled."""
    sources = Path(shutil.copytree(KERNELS, into / "cuda"))
    for file, old, new in ((mutation.file, mutation.old, mutation.new), *([mutation.also] if mutation.also else [])):
        changed = sources / file
        text = changed.read_text()
        assert text.count(old) == 1, f"{mutation.name}: what it changes is there {text.count(old)} times"
        changed.write_text(text.replace(old, new))
    unit = sources / f"{mutation.kernel}.cu"
    # Of attention one kernel is enough.
    if mutation.kernel in ("frame_attention", "frame_attention_fp8"):
        unit = sources / "frame_attention.cu"
        stored, keys, dtype = ("Bf16", 64, "bfloat16") if mutation.kernel == "frame_attention" else ("Fp8", 32, "float8_e4m3fn")
        kernel = f"frame_attention_kernel<Bf16, {stored}, 128, {keys}, {str(mutation.probe).lower()}>"
        both = f"{{{kernel}, {kernel}}}"
        one = f"kChoices[] = {{{{DType::bfloat16, DType::{dtype}, 128, {{{both}, {both}}}}}}};"
        text, count = re.subn(r"kChoices\[\] = .*?;", one, unit.read_text(), flags=re.DOTALL)
        assert count == 1
        unit.write_text(text)
    elif mutation.kernel == "frame_attention_sm90":
        kernel = "frame_attention_sm90_kernel<Element, {}>"
        chosen = f"probe ? {kernel.format('true')} : {kernel.format('false')}"
        text = unit.read_text()
        assert chosen in text and "kernel_of<Fp16>" in text
        one = kernel.format(str(mutation.probe).lower())
        unit.write_text(text.replace("kernel_of<Fp16>", "kernel_of<Bf16>").replace(chosen, one))
    csrc = ROOT / "csrc"
    output_of("g++", *FLAGS, f"-I{csrc}", f"-I{csrc / 'include'}", f"-I{SIMT}", f"-I{sources}", "-c", unit, "-o", into / "mutant.o")
    others = [path for path in objects.iterdir() if path.name != f"{unit.name}.o"]
    output_of("g++", "-shared", into / "mutant.o", *others, "-o", into / "liblolrt_cuda.so")
    return Emulated(Path(shutil.copy(LIBRARY, into)))


def attend(cuda: Emulated, probe: bool, rise: float, page_tokens: int, kind: type[CudaAttention] = CudaAttention) -> None:
    bias = rise * torch.arange(3.0)[:, None].repeat(1, 2)
    case = kind(torch.bfloat16, dim=128, tokens=40, page_tokens=page_tokens, pages=3, frames=2, heads=2, bias=bias, cuda=cuda)
    cuda.counts()
    out, mass = case.run(probe=probe)
    ref, ref_mass = case.oracle()
    assert torch.isfinite(out).all(), "not finite"
    check(out, case.torch(), ref, case.dim + case.pages * case.page_tokens)
    assert mass is None or np.abs(fp64(mass) - ref_mass).max() <= 2e-2, "mass"
    conflicts = cuda.counts()["bank_conflicts"]
    assert conflicts == 0, f"{conflicts} bank conflicts"


def attend_beside_a_large_bias(cuda: Emulated) -> None:
    bias = torch.tensor([[torch.finfo(torch.float32).min] * 2, [0.0] * 2])
    case = CudaAttention(torch.bfloat16, dim=128, tokens=9, page_tokens=20, pages=2, bias=bias, cuda=cuda)
    assert torch.isfinite(case.run()[0]).all(), "not finite"


def attend_in_batches(cuda: Emulated, probe: bool, page_tokens: int, table: list[list[int]]) -> None:
    compare(BatchedAttention(cuda, table=table, page_tokens=page_tokens), probes=(probe,))


def cases(cuda: Emulated, kernel: str, probe: bool, batched: bool) -> Iterator[Callable[[], None]]:
    """What raises AbiError or AssertionError when something is wrong."""
    none = NOT_THERE
    if batched:
        yield partial(attend_in_batches, cuda, probe, 20, [[2, none, 1], [none, 0, 2], [1, 2, none]])
        yield partial(attend_in_batches, cuda, probe, 260, [[1, none, 2], [0, 1, 0]])
    elif kernel == "frame_attention":
        for rise, page_tokens in ((0.0, 77), (6.0, 77), (0.0, 3), (1.0, 300)):
            yield partial(attend, cuda, probe, rise, page_tokens)
        yield partial(attend_beside_a_large_bias, cuda)
    elif kernel == "frame_attention_fp8":
        for rise, page_tokens in ((0.0, 77), (6.0, 77), (0.0, 3), (1.0, 300)):
            yield partial(attend, cuda, probe, rise, page_tokens, Fp8Attention)
    elif kernel == "kv_write_fp8":
        yield partial(casts.test_kv_write_is_torchs_cast, cuda, True, 150, 3, 10, 2)
        yield partial(casts.test_every_bfloat16_is_cast_as_by_torch, cuda, -100)
        yield partial(casts.test_what_has_no_scale_is_nan, cuda, torch.nan)
    elif kernel == "frame_attention_sm90":
        for rise, page_tokens in ((0.0, 250), (6.0, 130), (0.0, 3), (1.0, 300)):
            yield partial(attend, cuda, probe, rise, page_tokens)
    elif kernel == "kv_write":
        yield partial(rows.test_kv_write_matches_the_oracle, cuda, torch.bfloat16, True, 5, 4, 128, 10, 44)
    elif kernel == "modulated_norm":
        yield partial(rows.test_modulated_norm_matches_the_oracle, cuda, torch.bfloat16, True, True, 2, 9, 50)
    else:
        yield partial(rows.test_gelu_matches_the_oracle, cuda, torch.bfloat16, 3, 7, 70, 1)


def found(cuda: Emulated, kernel: str = "frame_attention", probe: bool = False, batched: bool = False) -> str:
    for seed, case in itertools.product((0, 1), cases(cuda, kernel, probe, batched)):
        cuda.settings(seed, 900 if kernel == "frame_attention_sm90" else 800, multiprocessors=3)
        try:
            case()
        except AbiError as error:
            return str(error)
        except AssertionError as error:
            return f"numbers: {error}"
    return ""


def test_nothing_is_found_in_the_kernel_as_it_is(emulated_library: Emulated) -> None:
    assert found(emulated_library) == found(emulated_library, probe=True) == ""
    assert found(emulated_library, "frame_attention_sm90") == found(emulated_library, "frame_attention_sm90", probe=True) == ""
    for kernel in ("frame_attention", "frame_attention_sm90"):
        assert found(emulated_library, kernel, probe=True, batched=True) == ""
    kernels = ("frame_attention_fp8", "kv_write", "kv_write_fp8", "modulated_norm", "gelu")
    assert {found(emulated_library, kernel) for kernel in kernels} == {""}
    emulated_library.settings()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_is_found(mutation: Mutation, emulated_library: Emulated, tmp_path: Path) -> None:
    report = found(
        compile_mutant(mutation, emulated_library.path.with_name("objects"), tmp_path), mutation.kernel, mutation.probe, mutation.batched
    )
    assert re.search(mutation.finds, report), f"found: {report or 'nothing'}"
