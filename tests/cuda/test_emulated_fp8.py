"""Pages of float8_e4m3fn: emulated, and run on a GPU only if there is one. kv_write is compared with torch's own cast, bit by bit, and
attention with the float64 oracle on the contents of the pages, by the rule of rule.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from emulated import AbiError, Emulated
from fp8 import DIM, FP8, dequantised, fill, parts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rule import check, cos_sin, fp64
from test_attention import check_scores_of_any_size
from test_emulated_attention import CudaAttention, compare, shapes
from torch import Tensor

pytestmark = pytest.mark.whole

BF16 = torch.bfloat16


class Fp8Attention(CudaAttention):
    """The same inputs, with magnitudes that differ between pages, heads, and K and V. k and v become the values that the pages keep,
    which are exact in bfloat16. Unused pages are NaN."""

    def __post_init__(self) -> None:
        self.dtype, self.dim = BF16, DIM
        self.scaled = False
        super().__post_init__()

    def empty_pool(self) -> Tensor:
        elements = self.cuda.page_elements(FP8, self.page_tokens, self.heads, self.dim)
        return torch.full((self.pages + 2, elements), torch.nan, dtype=FP8)

    def write(self) -> None:
        if not self.scaled:
            page, head = torch.arange(self.pages)[:, None, None, None], torch.arange(self.heads)[:, None]
            self.k, self.v = self.k * 2.0 ** ((page + head) % 3 - 1), self.v * 2.0 ** ((2 * page + head) % 5 - 2)
            self.scaled = True
        for page, k, v in zip(self.page_table.tolist(), self.k, self.v, strict=True):
            fill(self.pool[page], k, v)
        self.k, self.v = (torch.stack([dequantised(page) for page in x]) for x in (self.k, self.v))


def fp8_attention(cuda: Emulated, **shape: object) -> Fp8Attention:
    return Fp8Attention(BF16, cuda=cuda, **shape)


@shapes
def test_attention_matches_the_oracle(cuda: Emulated, shape: dict) -> None:
    compare(fp8_attention(cuda, **shape))


def test_the_published_page(cuda: Emulated) -> None:
    compare(fp8_attention(cuda, tokens=5, page_tokens=1560, pages=2, heads=1, frames=2))


def test_tiles_that_are_cut(cuda: Emulated) -> None:
    """Tiles are cut into parts of two pages, two and one; with two slots, of three and two. And one tile is cut beside a whole one."""
    compare(fp8_attention(cuda, tokens=12, pages=5, page_tokens=260, heads=1))
    compare(fp8_attention(cuda, tokens=130, pages=2, page_tokens=520, heads=1, frames=2))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_attention_at_any_geometry(cuda: Emulated, data: st.DataObject) -> None:
    draw = {
        name: data.draw(st.integers(*limits), name)
        for name, limits in dict(frames=(1, 3), tokens=(2, 90), heads=(1, 3), pages=(1, 3), page_tokens=(1, 140), pairs=(0, 64)).items()
    }
    compare(fp8_attention(cuda, **draw))


def test_a_window_of_sinks_alone(cuda: Emulated) -> None:
    case = fp8_attention(cuda, pages=3, tokens=20, page_tokens=20)
    case.page_frames = torch.arange(3)
    case.query_frames = 63_072_000 + torch.arange(3)
    compare(case)


def test_bias_is_added_to_the_scores(cuda: Emulated) -> None:
    bias = 3 * torch.randn(5, 2, generator=torch.Generator().manual_seed(3))
    bias[0, 1] = bias[1, 0] = bias[4, 0] = -torch.inf
    case = fp8_attention(cuda, pages=5, tokens=9, page_tokens=21, bias=bias)
    out, mass = case.run(probe=True)
    ref, ref_mass = case.oracle()
    check(out, case.torch(), ref, DIM)
    assert np.abs(fp64(mass) - ref_mass).max() <= 2e-2
    assert (mass.transpose(1, 2)[bias == -torch.inf] == 0).all()


@pytest.mark.parametrize("channel", [0, 9])
def test_small_numbers_beside_a_large_one(cuda: Emulated, channel: int) -> None:
    """One channel decides the scales, so that the numbers of the others are subnormal; no query reads that channel."""
    case = fp8_attention(cuda, tokens=11, pages=3, page_tokens=50, pairs=0, scale=0.2)
    case.q[..., channel] = 0
    case.k[..., channel] = case.v[..., channel] = 2.0**13
    case.write()
    out, _ = case.run()
    others = torch.arange(DIM) != channel
    small = case.k[..., others].abs() / 2**5  # in units of the scale
    assert ((small > 0) & (small < 2**-6)).float().mean() > 0.2
    check(out[..., others], case.torch()[..., others], case.oracle()[0][..., others], DIM)


def test_scores_of_any_size(cuda: Emulated) -> None:
    check_scores_of_any_size(fp8_attention(cuda, tokens=11, pages=3, page_tokens=150, heads=2, scale=1.0), 5e-2)


@pytest.mark.parametrize("part", ["k", "v"])
def test_nan_in_use_is_not_swallowed(cuda: Emulated, part: str) -> None:
    case = fp8_attention(cuda, pages=2, tokens=7, page_tokens=40)
    getattr(case, part)[1, 5, 0, 3] = torch.nan
    case.write()
    out, _ = case.run()
    assert out[:, :, 0].isnan().all() and not out[:, :, 1].isnan().any()


def test_same_bits_at_any_frame_and_wherever_the_pages_lie(cuda: Emulated) -> None:
    case = fp8_attention(cuda, tokens=10, page_tokens=35, pages=4)
    expected, _ = case.run()
    assert torch.equal(case.run(case.rotation(shift_frames=10**9))[0], expected)
    wide = torch.full((20, case.pool.shape[1] + 32), torch.nan, dtype=FP8)[:, 16:-16]
    placed = torch.randperm(20)[: case.pages].int()
    wide[placed.long()] = case.pool[case.page_table.long()]
    case.pool, case.page_table = wide, placed
    assert torch.equal(case.run()[0], expected)


@pytest.mark.parametrize("architecture", [800, 890, 900])
def test_same_bits_in_any_order_of_threads(emulated_library: Emulated, architecture: int) -> None:
    case = fp8_attention(emulated_library, tokens=60, page_tokens=270, pages=2, heads=1)
    outputs = []
    for seed in (0, 1, 2):
        emulated_library.settings(seed, architecture)
        outputs.append(torch.stack([x.flatten()[: case.q.numel()].float() for x in case.run(probe=True)[:1]]))
    emulated_library.settings()
    assert torch.equal(outputs[1], outputs[0]) and torch.equal(outputs[2], outputs[0])


def test_no_bank_conflicts(emulated_library: Emulated) -> None:
    case = fp8_attention(emulated_library, tokens=128, page_tokens=70, pages=1, frames=1, heads=1)
    emulated_library.counts()
    case.run()
    counts = emulated_library.counts()
    # Two full tiles and one whose first half suffices; 4 warps of 2 x 16 rows, steps of 16 channels.
    assert counts["products"] == 4 * 2 * (8 * (4 + 4 + 2) + 16 * (2 + 2 + 1))
    assert counts["matrix_loads"] == 4 * (8 * 2 * 3 + 4 * (2 + 2 + 1) + 4 * (2 + 2 + 1))
    assert counts["bank_conflicts"] == 0


def write(cuda: Emulated, k: Tensor, v: Tensor, page_dtype: torch.dtype, **options: object) -> Tensor:
    """Pages [frames, page_elements] of k and v, written in reverse order into a larger pool, whose other pages stay NaN."""
    frames, tokens, heads, _ = k.shape
    pool = torch.full((frames + 2, cuda.page_elements(page_dtype, tokens, heads, DIM)), torch.nan, dtype=page_dtype)
    table = torch.arange(frames, 0, -1, dtype=torch.int32)
    cuda.kv_write(k=k, v=v, pages=pool, page_table=table, **options)
    assert pool[[0, -1]].isnan().all()
    return pool[table.long()]


def expected_pages(k: Tensor, v: Tensor, elements: int) -> Tensor:
    pages = torch.full((len(k), elements), torch.nan, dtype=FP8)
    for page, *kv in zip(pages, k, v, strict=True):
        fill(page, *kv)
    return pages


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("tokens", "heads", "pairs", "first"), [(5, 3, 42, 44), (1, 1, 0, 0), (150, 5, 10, 2), (3, 12, 64, 0)])
def test_kv_write_is_torchs_cast(cuda: Emulated, normalise: bool, tokens: int, heads: int, pairs: int, first: int) -> None:
    """Compared with the numbers that bfloat16 pages hold, bit by bit; padding is not written."""
    generator = torch.Generator().manual_seed(tokens)
    # Thirds of one linear layer's output; magnitudes that differ by frame and head.
    by_head = 2.0 ** torch.randint(-30, 6, (2, 1, 2, heads, 1), generator=generator)
    q, k, v = torch.randn(2, tokens, 3, heads, DIM, generator=generator).bfloat16().unbind(2)
    k, v = (torch.stack([k, v], 2) * by_head).bfloat16().unbind(2)
    weight = torch.randn(heads, DIM, generator=generator).bfloat16() if normalise else None
    angles = cos_sin(6 * torch.rand(tokens, pairs, generator=generator).double()).float() if pairs else None
    options = dict(eps=1e-6, k_weight=weight, rotation=angles, rotation_first_channel=first)
    wide = write(cuda, k, v, BF16, **options)
    count, values = heads * tokens * DIM, -(-heads * tokens * DIM // 32) * 32
    keys = wide[:, :count].view(2, heads, tokens, DIM).transpose(1, 2)
    assert torch.equal(wide[:, values : values + count].view(2, heads, tokens, DIM).transpose(1, 2), v)
    pages = write(cuda, k, v, FP8, **options)
    assert torch.equal(pages.view(torch.uint8), expected_pages(keys, v, pages.shape[1]).view(torch.uint8))

    q_out = torch.full((2, tokens, heads, DIM), torch.nan, dtype=BF16)
    both = write(cuda, k, v, FP8, q=q, q_weight=weight, q_out=q_out, **options)
    alone = torch.full_like(q_out, torch.nan)
    cuda.kv_write(q=q, q_weight=weight, q_out=alone, **{name: x for name, x in options.items() if name != "k_weight"})
    assert torch.equal(both.view(torch.uint8), pages.view(torch.uint8)) and torch.equal(q_out, alone)


@pytest.mark.parametrize("exponent", [-100, -3, 7])
def test_every_bfloat16_is_cast_as_by_torch(cuda: Emulated, exponent: int) -> None:
    """All numbers within the range of a scale of 2^exponent, with both signs, including subnormal ones."""
    numbers = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(BF16)
    numbers = numbers[numbers.abs() <= 448 * 2.0**exponent]
    numbers = torch.nn.functional.pad(numbers.float(), (0, -len(numbers) % DIM), value=448 * 2.0**exponent).bfloat16()
    v = numbers.view(1, -1, 1, DIM)
    pages = write(cuda, torch.zeros_like(v), v, FP8)
    assert torch.equal(pages.view(torch.uint8), expected_pages(torch.zeros_like(v), v, pages.shape[1]).view(torch.uint8))
    scales = parts(pages[0], v.shape[1], 1)[2]
    assert scales.tolist() == [[2.0**-100, 2.0**exponent]]


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf, 448 * 2.0**7 + 256, 1e38])
def test_what_has_no_scale_is_nan(cuda: Emulated, number: float) -> None:
    k, v = torch.randn(2, 1, 40, 3, DIM).bfloat16()
    k[0, 37, 1, 100] = number
    v[0, 2, 2, 15] = number
    (page,) = write(cuda, k, v, FP8)
    assert parts(page, 40, 3)[2].isnan().tolist() == [[False, False], [True, False], [False, True]]


def test_what_there_is_no_kernel_for(cuda: Emulated) -> None:
    x = torch.zeros(1, 3, 2, DIM)
    table = torch.zeros(1, dtype=torch.int32)
    pages = torch.zeros(1, cuda.page_elements(FP8, 3, 2, DIM), dtype=FP8)
    with pytest.raises(AbiError, match="kv_write: pages of float8_e4m3fn go with bfloat16 and dim 128, not float16 and dim 128"):
        cuda.kv_write(k=x.half(), v=x.half(), pages=pages, page_table=table)
    q = x[..., :64].bfloat16()
    with pytest.raises(AbiError, match=r"frame_attention: pages of float8_e4m3fn go with .*, not bfloat16 and dim 64") as error:
        cuda.frame_attention(q=q, pages=pages, page_table=table, page_tokens=3, out=q.clone())
    assert error.value.status == 2
    with pytest.raises((AbiError, RuntimeError), match="page_elements: dim is 64; pages of float8_e4m3fn have 128"):
        cuda.page_elements(FP8, 3, 2, 64)
    with pytest.raises(AbiError, match=r"pages: expected float8_e4m3fn \[pool_pages, page_elements=1600\], got float8_e4m3fn \[1, 1599\]"):
        cuda.kv_write(k=x.bfloat16(), v=x.bfloat16(), pages=pages[:, :-1], page_table=table)
    case = fp8_attention(cuda, tokens=3, pages=2, page_tokens=3)
    case.pool = torch.zeros(4, case.pool.shape[1] + 8, dtype=FP8)[:, 8:]
    with pytest.raises(AbiError, match="pages are not 16-byte aligned"):
        case.run()
