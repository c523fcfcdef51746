"""The arithmetic of bench.gpu.model, on cases that were computed by hand, and the work that it reads from the built kernels."""

from __future__ import annotations

import pytest

from bench import sass
from bench.gpu import model

# Two multiprocessors; a warp's instruction takes a scheduler 1 cycle in float32, 2 in the others, 8 for 2^x, 8 for a product.
SMALL = model.Machine("small", "sm_80", 2, 1.0, tensor_flop=2048, float32=128, l2_bytes=128, dram_gb=64)


def work(cycles: int, resident: int = 2) -> model.Work:
    """Work on two pipes, with the cycles that each is busy."""
    return model.Work(((1, {"HMMA": cycles // 8, "MUFU": cycles // 8}),), flop=1000.0, resident=resident)


def test_peaks_are_those_of_the_data_sheets() -> None:
    assert model.A100.peak_tflops == pytest.approx(312, rel=1e-3)
    assert model.H100.peak_tflops == pytest.approx(989, rel=1e-3)


def test_pipes() -> None:
    counts = {"HMMA": 10, "MUFU": 3, "FFMA": 5, "FADD": 1, "IADD3": 4, "UIADD3": 7, "NOP": 2, "LDSM": 6, "LDGSTS": 1, "SHFL": 2}
    assert model.pipes(counts, SMALL) == {
        "tensor": 80, "special": 24, "float32": 6, "other": 8, "issue": 41,
        "shared": (7 * 512 + 2 * 128) * 4 / 128, "L2": 512 * 4 * 2 / 128,
    }  # fmt: skip
    assert model.pipes({"HMMA": 10}, SMALL, warps=8)["tensor"] == 160
    slow = model.Machine("slow", "sm_90a", 2, 1.0, tensor_flop=2048, float32=128, mma_share=0.5)
    assert model.pipes({"HMMA": 10}, slow)["tensor"] == 160 and model.pipes({"HMMA": 10}, slow, mma=False)["tensor"] == 80


@pytest.mark.parametrize(("overlap", "expected"), [(0.0, 100.0), (0.5, 130.0), (1.0, 160.0)])
def test_cycles_lie_between_the_busiest_pipe_and_the_sum(overlap: float, expected: float) -> None:
    busy = {"tensor": 100.0, "special": 40.0, "float32": 15.0, "other": 5.0, "issue": 90.0, "shared": 70.0, "L2": 0.0}
    assert model.cycles(busy, overlap) == expected
    # Memory is not part of the sum, but may be the busiest pipe.
    assert model.cycles(busy | {"shared": 300.0}, overlap) == 300.0


@pytest.mark.parametrize(("blocks", "expected"), [(1, 160), (2, 160), (3, 240), (4, 240), (5, 400), (6, 400), (7, 480), (8, 480)])
def test_rounds(blocks: int, expected: float) -> None:
    """Two blocks together take 2 x 120 cycles at an overlap of a half, one alone 160."""
    assert model.rounds(work(80), blocks, SMALL, 0.5) == expected


def test_rounds_of_blocks_that_have_a_multiprocessor_to_themselves() -> None:
    assert [model.rounds(work(80, resident=1), blocks, SMALL, 0.5) for blocks in (1, 2, 3)] == [120, 120, 240]


def test_split() -> None:
    """5 tiles of 3 pages on 4 slots: 4 are whole, one is cut into 3, so that a slot has 4 pages: 4 x 2 x 120 / 3 cycles. 3 parts of 100
    bytes are written and read, at 64 bytes a cycle."""
    assert model.split(work(80), 5, 3, SMALL, 0.5, 100) == pytest.approx(320 + 2 * 3 * 100 / 64)


def test_what_fills_its_rounds_is_not_cut() -> None:
    assert model.split(work(80), 8, 3, SMALL, 0.5, 100) == model.rounds(work(80), 8, SMALL, 0.5)


def test_blocks_of_a_cluster_come_in_pairs() -> None:
    """37 tiles of a head are 38, which takes a slot 42 pages instead of 41; where only copies take time, these take half of it."""
    shape, copies = model.Shape(), model.Work(((1, {"LDGSTS": 8}),), 1000.0, 8, 1, mma=False)
    alone = model.split(copies, shape.blocks, shape.pages, model.H100, 1.0, 0)
    assert model.of_clusters(copies, shape, 1.0, 0)["cut, copies shared by two"] == pytest.approx(alone * 42 / 41 / 2)


def test_fraction_of_the_peak() -> None:
    assert model.fraction(work(80), 4, SMALL, 100.0) == 4 * 1000 / (2 * 2048 * 100)


def test_tile_of_flash_attention() -> None:
    (part,) = model.FA2_A100.work.parts
    times, counts = part
    assert times == 256 and sum(counts.values()) == 910
    assert [counts[name] for name in ("HMMA", "LDSM", "LDGSTS", "MUFU")] == [256, 80, 16, 68]
    # One tile is 128 x 64 keys x 128 channels, twice multiplied and added.
    assert model.FA2_A100.work.flop == 256 * 4 * 128 * 64 * 128 == 256 * 4 * counts["HMMA"] * model.PRODUCT_FLOP


@pytest.mark.parametrize(
    "published", [model.FA2_A100, model.FA2_H100, model.FA3_H100], ids=lambda published: f"{published.name}-{published.machine.name}"
)
def test_calibration_gives_what_was_published(published: model.Published) -> None:
    overlap = published.overlap()
    assert 0 < overlap < 1
    assert published.predicted(overlap) == pytest.approx(published.reached)


@pytest.mark.whole
@pytest.mark.parametrize("machine", [model.A100, model.H100], ids=["A100", "H100"])
def test_work_of_pages_of_8_bits(machine_code: list[sass.Function], machine: model.Machine) -> None:
    """On both GPUs the kernel of sm_80, with 32 keys per tile: the same number of products, half the copies, and each warp converts each
    pair."""
    shape = model.Shape()
    work = model.frame_attention(model.kernel(machine_code, machine, fp8_pages=True), shape)
    counted = {name: sum(times * counts[name] for times, counts in work.parts) for name in ("HMMA", "LDGSTS", "PRMT")}
    whole, tail = divmod(shape.tokens, 32)
    tiles = shape.pages * (whole + (0.5 if tail <= 16 else 1.0))
    assert (work.warps, tail) == (4, 24) and counted["HMMA"] == counted["PRMT"] == tiles * 128
    # 16 bytes a thread, of K and of V; of each page besides the queries' turned chunks and the rotation.
    assert counted["LDGSTS"] >= shape.pages * (whole + 1) * 4


@pytest.mark.whole
@pytest.mark.parametrize(("machine", "keys"), [(model.A100, 64), (model.H100, 112)], ids=["A100", "H100"])
@pytest.mark.parametrize("tokens", [1560, 1536, 1568])
def test_work_of_the_kernel_is_read_from_its_code(
    machine_code: list[sass.Function], machine: model.Machine, keys: int, tokens: int
) -> None:
    shape = model.Shape(tokens=tokens)
    ours = model.frame_attention(model.kernel(machine_code, machine), shape)
    products = sum(times * counts["HMMA"] for times, counts in ours.parts)
    # Per page: whole tiles of 128 rows, keys and channels, twice multiplied, by all warps together; for the tail another one or, of the
    # A100, half of one.
    tile = 4 * 128 * keys * 128 // model.PRODUCT_FLOP // ours.warps
    whole, tail = divmod(tokens, keys)
    assert products == shape.pages * (whole * tile + (0 if tail == 0 else tile // 2 if keys == 64 and tail <= 32 else tile))
    assert sum(times for times, counts in ours.parts if counts["HMMA"]) == shape.pages * -(-tokens // keys)
    # Blocks of 128 rows multiply the rows that are there and, in the last of a head, some that are not.
    asked = 128 * shape.pages * tokens * 4 * 128 * (3 * tokens / 128) / -(-3 * tokens // 128)
    assert ours.flop == pytest.approx(asked)
    # The rotation: 6 chunks stored by each thread; or 3 steps of a word and four angles, and the page's notice.
    counted = {name: sum(times * counts[name] for times, counts in ours.parts) for name in ("STS", "LDS")}
    assert counted["STS"] == shape.pages * 6 if keys == 64 else counted == {"STS": 0, "LDS": shape.pages * 16}
