"""Planted bugs in attention's kernel of sm_80, in how its work is split and combined, and in its mass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from emulated import Emulated
from planted import NOT_ORDERED, UNDER_WAY, WRONG, Mutation, assert_found, found

pytestmark = pytest.mark.slow

WAIT = "        wait_for_copies<0>();\n        sync_block();\n        copy_tile(kValuesAt"
SECOND = "    wait_for_copies<0>();\n    sync_block();\n    begin_next_tile();"
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
    Mutation(
        "a large bias as it is",
        "(bias < -kMostBias ? -kMostBias : bias > kMostBias ? kMostBias : bias)",
        "bias",
        "not finite",
        "attention.cuh",
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


def batch(name: str, old: str, new: str, finds: str, file: str = "frame_attention.cuh", probe: bool = False) -> Mutation:
    return Mutation(name, old, new, finds, file, "frame_attention", probe, batched=True)


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
]  # fmt: skip
PARTS_MAX = "for (int part = 0; part < split.parts; ++part) max = fmaxf("
FRAME = "frame * op_.q.frame + token"
PAGE = "page_index * op_.page_stride + offset"
MUTATIONS += [
    Mutation("maximum of the first part", PARTS_MAX, PARTS_MAX.replace("split.parts", "1"), "not finite|numbers", COMBINE),
    Mutation("maximum of the last part", f"{PARTS_MAX}max, ", "for (int part = 0; part < split.parts; ++part) max = fmaxf(-INFINITY, ",
             "not finite|numbers", COMBINE),
    Mutation("mass by the maximum of the last part", "const float max = fmaxf(all.x, part.x);", "const float max = part.x;",
             "not finite|numbers: mass", "attention_mass.cuh", probe=True),
    Mutation("pages by 32 bits", PAGE, f"static_cast<int>({PAGE.removesuffix(' + offset')}) + offset", "outside every buffer|numbers"),
    Mutation("queries by 32 bits", FRAME, FRAME.replace("frame * op_.q.frame", "static_cast<int>(frame * op_.q.frame)"),
             "outside every buffer|numbers"),
    Mutation("outputs by 32 bits", "const int64_t element = frame", "const int element = frame", "outside every buffer|numbers",
             "attention.cuh"),
]  # fmt: skip
# Where the bias is looked at alone, what the table says is read as page 0.
COPIED = " + page_index * op_.page_stride + offset"
MUTATIONS += [
    replace(
        batch("page 0 for one that is not there", "op.page_table[page] < 0 || ", "", WRONG, "attention.cuh"),
        also=("frame_attention.cuh", COPIED, " + (page_index < 0 ? 0 : page_index) * op_.page_stride + offset"),
    )
]


def test_nothing_is_found_in_the_kernel_as_it_is(emulated_library: Emulated) -> None:
    assert found(emulated_library) == found(emulated_library, probe=True) == ""
    assert found(emulated_library, probe=True, batched=True) == ""
    emulated_library.settings()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_is_found(mutation: Mutation, emulated_library: Emulated, tmp_path: Path) -> None:
    assert_found(mutation, emulated_library, tmp_path)
