"""frame_attention of csrc/cuda: emulated, and run on a GPU only if there is one. It is compared with the float64 oracle by the rule of
rule.py, and tests check what its bits must not depend on. A call fails if the emulator finds an error, such as a race."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from emulated import AbiError, Emulated
from gpu import Gpu
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rule import check, fp64, name_of
from test_attention import Attention, check_scores_of_any_size
from torch import Tensor

pytestmark = pytest.mark.whole

KINDS = [(torch.bfloat16, 128), (torch.bfloat16, 64), (torch.float16, 128)]
kinds = pytest.mark.parametrize(("dtype", "dim"), KINDS, ids=[f"{name_of(dtype)}-{dim}" for dtype, dim in KINDS])


@dataclass
class CudaAttention(Attention):
    """The same inputs in the page layout of CUDA's kernels: rows of K, then rows of V, without gaps; unused pages are NaN."""

    cuda: Emulated | Gpu | None = None

    def empty_pool(self) -> Tensor:
        elements = self.cuda.page_elements(self.dtype, self.page_tokens, self.heads, self.dim)
        return torch.full((self.pages + 2, elements), torch.nan, dtype=self.dtype)

    def write(self) -> None:
        count = self.heads * self.page_tokens * self.dim
        values = -(-count // 32) * 32
        for page, k, v in zip(self.page_table.tolist(), self.k, self.v, strict=True):
            self.pool[page, :count] = k.transpose(0, 1).flatten()
            self.pool[page, values : values + count] = v.transpose(0, 1).flatten()

    def run(self, rotation: Tensor | None = None, probe: bool = False, out: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        rotation = self.rotation() if rotation is None and self.pairs else rotation
        out = torch.full_like(self.q, torch.nan) if out is None else out
        mass = torch.full((self.pages, self.frames, self.heads), torch.nan) if probe else None
        self.cuda.frame_attention(
            scale=self.scale, q=self.q, pages=self.pool, page_table=self.page_table, page_tokens=self.page_tokens, rotation=rotation,
            bias=self.bias, out=out, mass=mass,
        )  # fmt: skip
        return out, mass


def compare(case: CudaAttention) -> None:
    out, mass = case.run(probe=True)
    ref, ref_mass = case.oracle()
    check(out, case.torch(), ref, case.dim + case.pages * case.page_tokens)
    assert np.abs(fp64(mass) - ref_mass).max() <= (2e-2 if case.dtype == torch.bfloat16 else 2e-3)
    assert (mass >= 0).all()
    torch.testing.assert_close(mass.sum(0), torch.ones(case.frames, case.heads), atol=2e-6 * case.pages, rtol=0)
    assert torch.equal(case.run()[0], out), "the probe changes the output"


SHAPES = [
    dict(tokens=24, page_tokens=24, pages=12),
    dict(tokens=1, page_tokens=1, pages=1, frames=1, heads=3),
    dict(tokens=70, page_tokens=77, pages=3, frames=2),  # a block of two frames, a tail in the tile's first half
    dict(tokens=150, page_tokens=64, pages=2, frames=1, heads=1),  # two blocks, whole tiles
    dict(tokens=3, page_tokens=113, pages=2, heads=1, frames=7, pairs=0),
    dict(tokens=5, page_tokens=31, pages=2, heads=1, pairs=32),
    dict(tokens=2, page_tokens=9, pages=2, heads=1, frames=70, pairs=1),  # 64 frames in a block
    dict(tokens=5, page_tokens=30, pages=3, scale=0.5),
]


def name_of_shape(shape: dict) -> str:
    return "-".join(f"{name}{size}" for name, size in shape.items())


shapes = pytest.mark.parametrize("shape", SHAPES, ids=name_of_shape)


@kinds
@shapes
def test_attention_matches_the_oracle(cuda: Emulated, dtype: torch.dtype, dim: int, shape: dict) -> None:
    compare(CudaAttention(dtype, dim=dim, cuda=cuda, **shape))


def test_the_published_page(cuda: Emulated) -> None:
    """1560 tokens and 22 pairs, as at 480 x 832: 24 tiles of 64 keys and half a tile, or 49 of 32."""
    compare(CudaAttention(torch.bfloat16, dim=128, tokens=5, page_tokens=1560, pages=2, heads=1, frames=2, cuda=cuda))


@kinds
def test_a_tile_that_is_cut(cuda: Emulated, dtype: torch.dtype, dim: int) -> None:
    """Tiles are cut into parts of two pages, two and one; with two slots, of three and two."""
    compare(CudaAttention(dtype, dim=dim, tokens=12, pages=5, page_tokens=260, heads=1, cuda=cuda))


def test_whole_tiles_and_one_that_is_cut(cuda: Emulated) -> None:
    compare(CudaAttention(torch.bfloat16, dim=128, tokens=130, pages=2, page_tokens=520, heads=1, frames=2, cuda=cuda))


def test_cut_tiles_leave_pages_out(cuda: Emulated) -> None:
    """For one head all pages of a part are left out, and the last page of another part; for the other head all but one; for the last
    head all."""
    bias = 9 * torch.randn(5, 3, generator=torch.Generator().manual_seed(4))
    bias[[0, 1, 3], 0] = bias[[0, 1, 2, 4], 1] = bias[:, 2] = -torch.inf
    case = CudaAttention(torch.bfloat16, dim=128, tokens=20, pages=5, page_tokens=256, heads=3, bias=bias, cuda=cuda)
    out, mass = case.run(probe=True)
    assert (out[:, :, 2] == 0).all() and (mass[:, :, 2] == 0).all()
    assert torch.equal(case.run()[0], out)
    case.bias = bias.index_fill(1, torch.tensor(2), 0.0)  # a head without pages has no oracle
    ref, ref_mass = case.oracle()
    check(out[:, :, :2], case.torch()[:, :, :2], ref[:, :, :2], 128)
    assert np.abs(fp64(mass)[:, :, :2] - ref_mass[:, :, :2]).max() <= 2e-2


def test_nan_in_a_part_is_not_swallowed(cuda: Emulated) -> None:
    case = CudaAttention(torch.bfloat16, dim=128, pages=3, tokens=7, page_tokens=300, cuda=cuda)
    case.k[2, 5, 0, 3] = torch.nan
    case.write()
    out, _ = case.run()
    assert out[:, :, 0].isnan().all() and not out[:, :, 1].isnan().any()


@pytest.mark.parametrize("architecture", [800, 900])
def test_same_bits_for_the_same_split(emulated_library: Emulated, architecture: int) -> None:
    """In any order of blocks, because parts are added in the order of their pages."""
    case = CudaAttention(torch.bfloat16, dim=128, tokens=10, pages=4, page_tokens=260, heads=1, cuda=emulated_library)
    outputs = []
    for multiprocessors, seed in ((1, 0), (3, 0), (3, 1), (3, 2)):
        emulated_library.settings(seed, architecture, multiprocessors)
        emulated_library.counts()
        outputs.append(case.run(probe=True))
        # A tile, or its parts; the kernel that combines parts, 16 rows per block; the mass of each page and frame.
        parts = {1: 2 if architecture == 800 else 1, 3: 2}[multiprocessors]
        assert emulated_library.counts()["blocks"] == parts + 8 * (parts > 1) + 4 * case.frames
    emulated_library.settings()
    for out, mass in outputs[2:]:
        assert torch.equal(out, outputs[1][0]) and torch.equal(mass, outputs[1][1])
    torch.testing.assert_close(outputs[0][0], outputs[1][0], atol=2**-7 * outputs[0][0].abs().max().item(), rtol=0)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_attention_at_any_geometry(cuda: Emulated, data: st.DataObject) -> None:
    """Remainders of every kind: of query blocks, key tiles, rotated chunks, pages."""
    dtype, dim = data.draw(st.sampled_from(KINDS), "kind")
    compare(
        CudaAttention(
            dtype,
            dim=dim,
            frames=data.draw(st.integers(1, 3), "frames"),
            tokens=data.draw(st.integers(2, 90), "tokens"),
            heads=data.draw(st.integers(1, 2), "heads"),
            pages=data.draw(st.integers(1, 3), "pages"),
            page_tokens=data.draw(st.integers(1, 140), "page_tokens"),
            pairs=data.draw(st.integers(0, dim // 2), "pairs"),
            cuda=cuda,
        )
    )


def test_a_window_of_sinks_alone(cuda: Emulated) -> None:
    """Half a year after the last remaining page."""
    case = CudaAttention(torch.bfloat16, dim=64, pages=3, tokens=20, page_tokens=20, cuda=cuda)
    case.page_frames = torch.arange(3)
    case.query_frames = 63_072_000 + torch.arange(3)
    compare(case)


@kinds
def test_bias_is_added_to_the_scores(cuda: Emulated, dtype: torch.dtype, dim: int) -> None:
    bias = 3 * torch.randn(5, 2, generator=torch.Generator().manual_seed(3))
    bias[0, 1] = bias[1, 0] = bias[4, 0] = -torch.inf
    case = CudaAttention(dtype, dim=dim, pages=5, tokens=9, page_tokens=21, bias=bias, cuda=cuda)
    out, mass = case.run(probe=True)
    ref, ref_mass = case.oracle()
    check(out, case.torch(), ref, dim)
    assert np.abs(fp64(mass) - ref_mass).max() <= 2e-2
    assert (mass.transpose(1, 2)[bias == -torch.inf] == 0).all()


@kinds
@pytest.mark.parametrize("bias", [-1e9, torch.finfo(torch.float32).min, torch.finfo(torch.float32).max])
def test_a_finite_bias_may_be_of_any_size(cuda: Emulated, dtype: torch.dtype, dim: int, bias: float) -> None:
    """Such a bias shuts out some pages, including the first, or all others; if all pages have it, nothing changes. Beside it scores are
    below the last place of float32, and the bias times log2(e) may be infinite."""
    check_a_finite_bias(CudaAttention(dtype, dim=dim, tokens=11, pages=3, page_tokens=40, scale=1.0, cuda=cuda), bias)


def check_a_finite_bias(case: CudaAttention, bias: float) -> None:
    (ref, ref_mass), baseline = case.oracle(), case.torch()
    case.bias = torch.full((case.pages, 2), bias)
    out, mass = case.run(probe=True)
    check(out, baseline, ref, case.dim)
    assert np.abs(fp64(mass) - ref_mass).max() <= 5e-2
    case.bias[1] = 0
    out, mass = case.run(probe=True)
    shut = case.bias < case.bias.max()
    case.bias = torch.zeros(case.pages, 2).masked_fill(shut, -torch.inf)  # beside such a bias float64 has no room for scores either
    ref, ref_mass = case.oracle()
    check(out, case.torch(), ref, case.dim)
    assert (mass.transpose(1, 2)[shut] == 0).all() and np.abs(fp64(mass) - ref_mass).max() <= 5e-2


def test_a_head_without_pages_gives_zeros(cuda: Emulated) -> None:
    bias = torch.zeros(3, 2)
    bias[:, 1] = -torch.inf
    out, mass = CudaAttention(torch.bfloat16, tokens=7, pages=3, bias=bias, cuda=cuda).run(probe=True)
    assert (out[:, :, 1] == 0).all() and (mass[:, :, 1] == 0).all()
    assert (out[:, :, 0] != 0).any() and torch.isfinite(out).all()


@kinds
def test_scores_of_any_size(cuda: Emulated, dtype: torch.dtype, dim: int) -> None:
    case = CudaAttention(dtype, dim=dim, tokens=11, pages=3, page_tokens=150, heads=2, scale=1.0, cuda=cuda)
    check_scores_of_any_size(case, 5e-2)


CUT = dict(tokens=3, frames=1, page_tokens=512, heads=2)  # one part per page, if there are enough slots


@pytest.mark.parametrize("architecture", [800, 860, 900])
def test_scores_of_any_size_in_tiles_that_are_cut(emulated_library: Emulated, architecture: int) -> None:
    """The maximum over all parts may be in any of them: the first, the last or one between."""
    emulated_library.settings(architecture=architecture, multiprocessors=4)
    case = CudaAttention(torch.bfloat16, dim=128, pages=3, scale=1.0, cuda=emulated_library, **CUT)
    assert case.run()[0].isfinite().all() and emulated_library.counts()["blocks"] > case.heads, "nothing is cut"
    check_scores_of_any_size(case, 5e-2)
    for page in range(3):
        case.bias = torch.full((3, 2), -300.0)
        case.bias[page] = 300.0
        out, mass = case.run(probe=True)
        ref, ref_mass = case.oracle()
        check(out, case.torch(), ref, case.dim)
        assert np.abs(fp64(mass) - ref_mass).max() <= 5e-2
    emulated_library.settings()


@pytest.mark.parametrize("bias", [-1e9, torch.finfo(torch.float32).min, torch.finfo(torch.float32).max])
def test_a_finite_bias_of_any_size_in_tiles_that_are_cut(emulated_library: Emulated, bias: float) -> None:
    emulated_library.settings(multiprocessors=4)
    case = CudaAttention(torch.bfloat16, dim=64, pages=2, cuda=emulated_library, **CUT)
    check_a_finite_bias(case, bias)
    emulated_library.settings()


def test_nan_in_use_is_not_swallowed(cuda: Emulated) -> None:
    case = CudaAttention(torch.bfloat16, pages=2, tokens=7, page_tokens=40, cuda=cuda)
    case.k[1, 5, 0, 3] = torch.nan
    case.write()
    out, _ = case.run()
    assert out[:, :, 0].isnan().all() and not out[:, :, 1].isnan().any()


@kinds
def test_same_bits_at_any_frame_and_wherever_the_pages_lie(cuda: Emulated, dtype: torch.dtype, dim: int) -> None:
    case = CudaAttention(dtype, dim=dim, tokens=10, page_tokens=35, pages=4, cuda=cuda)
    expected, _ = case.run()
    assert torch.equal(case.run(case.rotation(shift_frames=10**9))[0], expected)
    elements = case.pool.shape[1]
    wide = torch.full((20, elements + case.page_tokens * dim), torch.nan, dtype=dtype)[:, 8 : 8 + elements]
    placed = torch.randperm(20)[: case.pages].int()
    wide[placed.long()] = case.pool[case.page_table.long()]
    case.pool, case.page_table = wide, placed
    assert torch.equal(case.run()[0], expected)


@pytest.mark.parametrize(("architecture", "gap", "fits"), [(800, 16, True), (900, 35 * 128, True), (900, 16, False)])
def test_pages_that_lie_apart(emulated_library: Emulated, architecture: int, gap: int, fits: bool) -> None:
    """On sm_90 the pool is a tensor map, and the driver accepts only strides that are multiples of one another."""
    emulated_library.settings(architecture=architecture)
    case = CudaAttention(torch.bfloat16, dim=128, tokens=10, page_tokens=35, pages=2, cuda=emulated_library)
    expected, _ = case.run()
    wide = torch.full((len(case.pool), case.pool.shape[1] + gap), torch.nan, dtype=torch.bfloat16)
    wide[:, :-gap] = case.pool
    case.pool = wide[:, :-gap]
    if fits:
        assert torch.equal(case.run()[0], expected)
    else:
        with pytest.raises(AbiError, match=r"pages are 17936 elements apart; on sm_90 that has to be a multiple of the 4480 of a") as error:
            case.run()
        assert error.value.status == 2
    emulated_library.settings()


def check_turns(cuda: Emulated) -> None:
    """On sm_90 the warpgroups begin products in turn: the first scores; of each further tile its scores and the values of the one before;
    the last values."""
    case = CudaAttention(torch.bfloat16, dim=128, tokens=9, page_tokens=130, pages=2, heads=2, frames=1, cuda=cuda)
    cuda.counts()
    case.run()
    assert cuda.counts()["warpgroup_turns"] == case.heads * 2 * (2 * case.pages + 1), "turns"


def check_tiles_one_after_another(cuda: Emulated) -> None:
    """On sm_90 a block does several whole tiles. The bits do not depend on how many; here tiles have two frames or one, and heads all
    pages, some or none, so that they have 3, 2 or no tiles of keys."""
    bias = torch.zeros(3, 3)
    bias[1, 0] = bias[:, 1] = -torch.inf
    case = CudaAttention(torch.bfloat16, dim=128, tokens=50, page_tokens=20, pages=3, heads=3, frames=3, bias=bias, cuda=cuda)
    expected: list[Tensor] = []
    for seed, multiprocessors, blocks in ((0, 64, 6), (0, 1, 1), (1, 1, 1), (2, 4, 4)):
        cuda.settings(seed, 900, multiprocessors)
        cuda.counts()
        out, mass = case.run(probe=True)
        assert cuda.counts()["blocks"] == blocks + case.pages * case.frames * case.heads
        expected = expected or [out, mass]
        assert torch.equal(out, expected[0]) and torch.equal(mass, expected[1]), "other bits"
    case.bias[:, 1] = 0  # a head without pages has no oracle
    ref, _ = case.oracle()
    check(out[:, :, ::2], case.torch()[:, :, ::2], ref[:, :, ::2], case.dim)
    assert (out[:, :, 1] == 0).all()


def test_tiles_one_after_another(emulated_library: Emulated) -> None:
    check_tiles_one_after_another(emulated_library)
    emulated_library.settings()


def test_warpgroups_take_turns_in_any_order_of_threads(emulated_library: Emulated) -> None:
    for seed in range(4):
        emulated_library.settings(seed, 900)
        check_turns(emulated_library)
    emulated_library.settings()


@pytest.mark.parametrize(("architecture", "dim"), [(800, 64), (900, 128)])
def test_same_bits_in_any_order_of_threads(emulated_library: Emulated, architecture: int, dim: int) -> None:
    emulated_library.settings(0, architecture)
    case = CudaAttention(torch.bfloat16, dim=dim, tokens=60, page_tokens=270, pages=2, heads=1, cuda=emulated_library)
    out, mass = case.run(probe=True)
    for seed in (1, 2, 3):
        emulated_library.settings(seed, architecture)
        again, mass_again = case.run(probe=True)
        assert torch.equal(again, out) and torch.equal(mass_again, mass)
    emulated_library.settings()


def test_rotation_by_zero_changes_no_bit(cuda: Emulated) -> None:
    case = CudaAttention(torch.bfloat16, tokens=9, pages=3, cuda=cuda)
    identity = torch.zeros(case.pages, case.frames, case.heads, case.pairs, 2)
    identity[..., 0] = 1
    rotated, _ = case.run(identity)
    assert torch.equal(replace(case, pairs=0).run()[0], rotated)


@kinds
def test_strided_queries_and_outputs(cuda: Emulated, dtype: torch.dtype, dim: int) -> None:
    case = CudaAttention(dtype, dim=dim, tokens=13, pages=3, cuda=cuda)
    expected, _ = case.run()
    packed = torch.randn(case.frames, case.heads, case.tokens, 3 * dim).to(dtype)
    before = packed.clone()
    view = packed[..., dim : 2 * dim].transpose(1, 2)
    view.copy_(case.q)
    case.q = view
    assert torch.equal(case.run()[0], expected)
    case.run(out=view)  # each query is read before its row is written
    assert torch.equal(view, expected)
    outside = torch.ones(3 * dim, dtype=torch.bool)
    outside[dim : 2 * dim] = False
    assert torch.equal(packed[..., outside], before[..., outside])


@kinds
def test_no_bank_conflicts(emulated_library: Emulated, dtype: torch.dtype, dim: int) -> None:
    case = CudaAttention(dtype, dim=dim, tokens=128, page_tokens=70, pages=1, frames=1, heads=1, cuda=emulated_library)
    emulated_library.counts()
    case.run()
    counts = emulated_library.counts()
    # A full tile and one whose first half suffices; 4 warps of 2 x 16 rows.
    k_steps, chunks = dim // 16, dim // 8
    assert counts["products"] == 4 * 2 * (k_steps * (8 + 4) + chunks * (4 + 2))
    assert counts["matrix_loads"] == 4 * (k_steps * (2 + 4 + 2 + 2) + chunks // 2 * (4 + 2))
    assert counts["bank_conflicts"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(dim=32, pairs=4), r"no kernel for bfloat16 and dim 32; there are bfloat16 with 64 or 128 and float16 with 128"),
        (dict(dtype=torch.float16, dim=64), "no kernel for float16 and dim 64"),
        (dict(dim=128, tokens=1, frames=200, page_tokens=3, pages=1, pairs=64), "does not fit into shared memory"),
    ],
)
def test_what_there_is_no_kernel_for(cuda: Emulated, changes: dict, message: str) -> None:
    with pytest.raises(AbiError, match=f"^frame_attention: .*{message}"):
        CudaAttention(**dict(dtype=torch.bfloat16, cuda=cuda) | changes).run()


def test_tensors_that_do_not_fit(cuda: Emulated) -> None:
    case = CudaAttention(torch.bfloat16, tokens=3, pages=2, cuda=cuda)
    q = torch.zeros(case.q.numel() + 1, dtype=torch.bfloat16)[1:].view_as(case.q)
    with pytest.raises(AbiError, match="rows of q and out are not 16-byte aligned"):
        replace(case).run(out=q)
    case.pool = case.pool[:, 1:-1]
    with pytest.raises(AbiError, match="pages: expected bfloat16"):
        case.run()
    case.q = case.q.float()
    with pytest.raises(AbiError, match="q: expected bfloat16 or float16, got float32"):
        case.run()
