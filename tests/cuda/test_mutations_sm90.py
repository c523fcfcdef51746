"""Planted bugs in attention's kernel of sm_90a."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from emulated import Emulated
from planted import NOT_ORDERED, UNDER_WAY, WRONG, Mutation, assert_found, found

pytestmark = pytest.mark.slow


def sm90(name: str, old: str, new: str, finds: str, file: str = "frame_attention_sm90_rows.cuh", probe: bool = False) -> Mutation:
    return Mutation(name, old, new, finds, file, "frame_attention_sm90", probe)


def swapped_release(lines: str) -> str:
    """The wait, the pin and the release, the release first."""
    *before, wait, pin, release = lines.splitlines(keepends=True)
    return "".join([*before, release, wait, pin])


SCORES_OVER = "      wait_for_products<1>();\n      pin(scores_);\n      release(shared_.keys_free(stage_of(tile())));\n"
OUT_OVER = "      wait_for_products<0>();\n      pin(out_);\n      release(shared_.values_free(stage_of(tile() - 1)));\n"
FIRST_OVER = "    pass_turn();\n    wait_for_products<0>();\n    pin(scores_);\n    release(shared_.keys_free(stage_of(tile())));\n"
LAST_TURN = "    take_turn();\n    add_values();\n    pass_turn();\n"
LAST_OVER = f"{LAST_TURN}    wait_for_products<0>();\n"
LAST_FREED = "    pin(out_);\n    release(shared_.values_free(stage_of(tile() - 1)));\n  }\n"
TURN = "      take_turn();\n      begin_scores();\n      add_values();\n      pass_turn();\n"
FIRST_TURN = "    if (warpgroup() == 1) pass_turn();"
LAST_BACK = "    if (warpgroup() == 0) take_turn();"
KEYS_EXPECTED = "arrive_expecting(shared.keys_full(stage), kTileBytes);"
VALUES_EXPECTED = "arrive_expecting(shared.values_full(stage), kTileBytes);"
COPIES, SHARED = "frame_attention_sm90.cuh", "frame_attention_sm90_shared.cuh"
REGISTERS = "registers of a product under way"
MUTATIONS = [
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
        "wait_for_phase(shared_.keys_full(stage), parity_of(tile()))",
        "wait_for_phase(shared_.keys_full(stage), parity_of(tile()) ^ 1)",
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
    sm90("no wait for the last values", LAST_OVER, LAST_TURN, REGISTERS),
    sm90("nobody begins", FIRST_TURN, "", "deadlock: .* at a barrier"),
    sm90("both give the other the first turn", FIRST_TURN, "    pass_turn();", "turns|again|nobody waits"),
    sm90("the second warpgroup begins, and the first passes its turn on", FIRST_TURN, FIRST_TURN.replace("1", "0"), "deadlock|again"),
    sm90("the last turn is not taken back", LAST_BACK, "", "nobody waits"),
    sm90("both take the last turn back", LAST_BACK, "    take_turn();", "deadlock: .* at a barrier"),
    sm90("no turn taken", TURN, TURN.replace("      take_turn();\n", ""), "again"),
    sm90("a turn not passed on", TURN, TURN.replace("      pass_turn();\n", ""), "deadlock: .* at a barrier"),
    sm90("a turn not passed on after the last tile", LAST_TURN, LAST_TURN.replace("    pass_turn();\n", ""), "deadlock: .* at a barrier"),
    sm90(
        "a turn passed on before its products begin",
        TURN,
        "      take_turn();\n      pass_turn();\n      begin_scores();\n      add_values();\n",
        "turns",
    ),
    sm90("a turn for scores alone", TURN, "      take_turn();\n      begin_scores();\n      pass_turn();\n      add_values();\n", "turns"),
    sm90("each waits for the other's turn", "(1 + warpgroup());", "(2 - warpgroup());", "deadlock|again"),
    sm90("turns of one warpgroup's threads", "{ sync_named<kSm90RowThreads>", "{ sync_named<kWarpgroupThreads>", "other threads"),
    sm90("a page begun in a turn that is taken twice", TURN, "      take_turn();\n" + TURN, "deadlock|again"),
    sm90("no fence before the scores", "parity_of(tile()));\n    fence_products();", "parity_of(tile()));", "without a fence"),
    sm90("no fence before the values", "parity_of(tile() - 1));\n    fence_products();", "parity_of(tile() - 1));", "without a fence"),
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
        "const int stage = stage_of(tile() - 1);",
        "const int stage = stage_of(tile());",
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
        "const float sum = row_sum(sum_[r]);\n      const int row = segment.first_row + row_of(r);\n      if (lane_ % 4",
        "const float sum = sum_[r];\n      const int row = segment.first_row + row_of(r);\n      if (lane_ % 4",
        "numbers: mass",
        probe=True,
    ),
]


def batch90(name: str, old: str, new: str, finds: str, file: str = COPIES, probe: bool = False) -> Mutation:
    return Mutation(name, old, new, finds, file, "frame_attention_sm90", probe, batched=True)


NEXT_ANNOUNCED = "page = next_page(op, segment.head, page + 1, pages_end);\n    const int stage"
NEXT_COPIED = "page = next_page(op, segment.head, page + 1, pages_end);\n    const int following"
MUTATIONS += [
    batch90("rotation as of a batch of one", "(static_cast<int64_t>(page) * argument.frames +", "(page * op.frames +", WRONG),
    batch90("pages of the first entry's table", "page < pages_end ? op.page_table[page] : 0;\n    for",
            "page < pages_end ? op.page_table[page % op.pages] : 0;\n    for", WRONG),
    batch90("queries of the first entry", "op_.q, static_cast<int>(blockIdx.y), segment.head", "op_.q, 0, segment.head", "numbers: error",
            "frame_attention_sm90_rows.cuh"),
    batch90("a page passed over by the copies that the rows wait for", NEXT_COPIED, NEXT_COPIED.replace("page + 1", "page + 2"),
            "deadlock: .* at a phase"),
    batch90("a page announced that is not copied", NEXT_ANNOUNCED,
            NEXT_ANNOUNCED.replace("next_page(op, segment.head, page + 1, pages_end)", "page + 1"), "deadlock: .* at a phase|outside"),
    batch90("a page copied that is not announced", NEXT_COPIED,
            NEXT_COPIED.replace("next_page(op, segment.head, page + 1, pages_end)", "page + 1"), "numbers|outside|deadlock|copies"),
]  # fmt: skip
PAGE = "op.page_stride * kElementBytes}"
MUTATIONS += [
    sm90("pages by 32 bits", PAGE, "static_cast<uint32_t>(op.page_stride * kElementBytes)}", "outside every buffer|numbers|CUDA",
         "frame_attention_sm90.cu"),
]  # fmt: skip
COPIED = "    for (int token = 0; token < page_tokens; token += kSm90Keys, ++tile) {"
MUTATIONS += [
    replace(
        batch90("page 0 for one that is not there, by the boxes", "op.page_table[page] < 0 || ", "", WRONG, "attention.cuh"),
        also=(COPIES, COPIED, f"    if (page_index < 0) page_index = 0;\n{COPIED}"),
    )
]


def test_nothing_is_found_in_the_kernel_as_it_is(emulated_library: Emulated) -> None:
    for probe, batched in ((False, False), (True, False), (True, True)):
        assert found(emulated_library, "frame_attention_sm90", probe, batched) == ""
    emulated_library.settings()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_is_found(mutation: Mutation, emulated_library: Emulated, tmp_path: Path) -> None:
    assert_found(mutation, emulated_library, tmp_path)
