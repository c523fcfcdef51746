"""frame_attention of csrc/cuda with a batch: emulated, and run on a GPU only if there is one. It is compared with the float64 oracle,
and each entry bit for bit with a call of its own. Whatever may not be read is NaN, and so are absent pages."""

from __future__ import annotations

import pytest
import torch
from batched import NOT_THERE, BatchedAttention, compare
from emulated import Emulated
from emulated_graph import Graph
from fp8 import FP8
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.whole

KINDS = {
    "bfloat16-128": dict(),
    "bfloat16-64": dict(dim=64),
    "float16-128": dict(dtype=torch.float16),
    "float8_e4m3fn": dict(page_dtype=FP8),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
N = NOT_THERE
# First, last, in between and all not there; pages that two entries share.
RAGGED = [[3, N, 1], [N, N, N], [N, 3, 0], [1, 2, 3]]


@kinds
@pytest.mark.parametrize(
    "shape",
    [
        dict(table=RAGGED, tokens=70, page_tokens=45, heads=1),  # two blocks an entry, the first with rows of two frames
        dict(table=[[2], [N], [0], [1], [0]], frames=1, tokens=5),  # a row for each frame
        dict(table=[[0, 1]], bias=False, pairs=0),  # a batch of one
    ],
    ids=["ragged", "a-row-for-each-frame", "one"],
)
def test_batches_match_the_oracle(cuda: Emulated, kind: dict, shape: dict) -> None:
    compare(BatchedAttention(cuda, **shape, **kind))


@pytest.mark.parametrize("kind", [KINDS["bfloat16-128"], KINDS["float8_e4m3fn"]], ids=["bfloat16-128", "float8_e4m3fn"])
def test_tiles_that_are_cut(cuda: Emulated, kind: dict) -> None:
    """An entry is cut as it would be alone, whatever its neighbours, into parts of two pages and one. Either part may have no page at
    all."""
    compare(BatchedAttention(cuda, table=[[2, 0, N], [N, N, 1], [N, 1, 2]], page_tokens=260, heads=1, **kind))


def test_whole_tiles_and_one_that_is_cut(emulated_library: Emulated) -> None:
    """Alone, two tiles fill the two slots and the third is cut in two. The six tiles of two entries would fill them without a cut."""
    emulated_library.settings(multiprocessors=1)
    case = BatchedAttention(emulated_library, table=[[1, 0], [N, 0]], tokens=130, page_tokens=512, heads=1)
    compare(case)
    emulated_library.counts()
    case.run()
    assert emulated_library.counts()["blocks"] == 2 * (2 + 2 + 8)  # of each entry; 8 combine the parts
    emulated_library.settings()


def test_a_batch_of_one_has_the_bits_of_no_batch(cuda: Emulated) -> None:
    case = BatchedAttention(cuda, table=[[2, 0, 1]], tokens=40, page_tokens=77)
    for probe in (False, True):
        out, mass = case.run(probe)
        expected, expected_mass = case.run_alone(0, probe)
        assert torch.equal(out, expected) and (mass is None or torch.equal(mass[0], expected_mass))


def test_pages_that_are_not_there_change_no_bit(cuda: Emulated) -> None:
    """If no tile is cut, wherever they stand among the others."""
    without = BatchedAttention(cuda, table=[[2, 0]], tokens=20, page_tokens=30)
    case = BatchedAttention(cuda, table=[[N, 2, N, N, 0, N]], tokens=20, page_tokens=30)
    there = case.there[0]
    case.q, case.pool = without.q, without.pool
    case.rotation[0, there], case.biases[0, there] = without.rotation[0], without.biases[0]
    (out, mass), (expected, expected_mass) = case.run(probe=True), without.run(probe=True)
    assert torch.equal(out, expected) and torch.equal(mass[0, there], expected_mass[0])


def test_output_over_the_queries(cuda: Emulated) -> None:
    case = BatchedAttention(cuda, table=RAGGED)
    expected, _ = case.run()
    case.run(out=case.q)  # each query is read before its row is written
    assert torch.equal(case.q, expected)


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_batches_of_any_geometry(cuda: Emulated, data: st.DataObject) -> None:
    batch, pages = data.draw(st.integers(1, 4), "batch"), data.draw(st.integers(1, 3), "pages")
    table = [[data.draw(st.integers(-1, 3)) for _ in range(pages)] for _ in range(batch)]
    compare(
        BatchedAttention(
            cuda,
            table=table,
            **data.draw(st.sampled_from(list(KINDS.values())), "kind"),
            frames=data.draw(st.integers(1, 3), "frames"),
            tokens=data.draw(st.integers(2, 70), "tokens"),
            heads=data.draw(st.integers(1, 2), "heads"),
            page_tokens=data.draw(st.integers(1, 90), "page_tokens"),
            pairs=data.draw(st.integers(0, 32), "pairs"),
            bias=data.draw(st.booleans(), "bias"),
        )
    )


@pytest.mark.parametrize("architecture", [800, 900])
def test_a_captured_call_serves_windows_that_fill_up(emulated_library: Emulated, architecture: int) -> None:
    """Table, rotation and bias are overwritten before a replay; shapes and addresses stay."""
    emulated_library.settings(architecture=architecture)
    case = BatchedAttention(emulated_library, table=[[2, N, N], [1, 0, N]])
    out = torch.empty(case.q.shape, dtype=case.dtype)
    with Graph(emulated_library) as graph:
        case.run(out=out)
    for table in ([[2, 1, N], [1, 0, 2]], [[N] * 3, [N, 0, 2]]):
        full = BatchedAttention(emulated_library, table=table)
        for place, value in ((case.page_table, full.page_table), (case.rotation, full.rotation), (case.biases, full.biases)):
            place.copy_(value)
        graph.replay()
        assert torch.equal(out, case.run()[0])
        assert torch.isfinite(out).all()
    emulated_library.settings()


def test_a_batch_costs_what_its_pages_cost(emulated_library: Emulated) -> None:
    """An absent page costs no product, and entries side by side cost what each costs alone."""
    products = []
    for table in ([[0]], [[0, N, N]], [[0], [1]], [[0, N], [N, 1]], [[N, N]]):
        emulated_library.counts()
        BatchedAttention(emulated_library, table=table, heads=1, bias=False).run()
        products.append(emulated_library.counts()["products"])
    one = products[0]
    assert one > 0 and products == [one, one, 2 * one, 2 * one, 0]
