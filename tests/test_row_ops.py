"""kv_write, modulated_norm, gelu, quantize_rows, dequantize_rows and sampler_step of every instruction set against the float64 oracle, by
the rule of rule.py."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rule import DTYPES, check, cos_sin, empty_pages, fp64, name_of, rope, unpack
from torch import Tensor

from lolrt import _core

pytestmark = pytest.mark.usefixtures("isa")


# ---- kv_write --------------------------------------------------------------------------------------------------------------


def public_projection(x: Tensor, weight: Tensor | None, eps: float, angles: Tensor | None, first: int) -> Tensor:
    """RMSNorm over all heads, weight and RoPE as in Wan's code; angles: float64 [tokens, pairs]."""
    if weight is not None:
        flat = x.flatten(2).float()
        flat = (flat * torch.rsqrt(flat.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.flatten()
        x = flat.view_as(x)
    if angles is not None:
        x = torch.cat([x[..., :first], rope(x[..., first:], angles[:, None])], -1)
    return x


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("tokens", "heads", "dim", "pairs", "first"),
    [(24, 4, 64, 10, 44), (33, 2, 128, 42, 44), (1, 3, 6, 0, 0), (17, 12, 128, 64, 0), (5, 2, 38, 5, 2), (16, 1, 2, 1, 0)],
)
def test_kv_write_matches_the_oracle(
    dtype: torch.dtype, normalise: bool, tokens: int, heads: int, dim: int, pairs: int, first: int
) -> None:
    generator = torch.Generator().manual_seed(tokens + dim)
    q, k, v = (3 * torch.randn(2, tokens, heads, dim, generator=generator).to(dtype) for _ in range(3))
    weights = [torch.randn(heads, dim, generator=generator).to(dtype) if normalise else None for _ in range(2)]
    angles = 6 * torch.rand(tokens, pairs, generator=generator).double() if pairs else None
    rotation = None if angles is None else cos_sin(angles).float()
    q_out = torch.full_like(q, torch.nan)
    pool = empty_pages(dtype, 4, tokens, heads, dim)
    table = torch.tensor([3, 1], dtype=torch.int32)
    _core.kv_write(q, k, v, *weights, 1e-6, rotation, first, q_out, pool, table)

    keys, values = (torch.stack(parts) for parts in zip(*(unpack(pool[page], tokens, heads, dim) for page in (3, 1)), strict=True))
    assert torch.equal(values, v)
    for out, x, weight in ((q_out, q, weights[0]), (keys, k, weights[1])):
        ref = oracle.project(fp64(x), fp64(weight), 1e-6, None if angles is None else fp64(cos_sin(angles)), first)
        check(out, public_projection(x, weight, 1e-6, angles, first), ref, heads * dim)
        if not normalise:
            still = [c for c in range(dim) if not first <= c < first + 2 * pairs]
            assert torch.equal(out[..., still], x[..., still])
    assert pool[[0, 2]].isnan().all()
    # Each half alone gives the same bits.
    q_alone, pool_alone = torch.empty_like(q), empty_pages(dtype, 4, tokens, heads, dim)
    _core.kv_write(q, None, None, weights[0], None, 1e-6, rotation, first, q_alone, None, None)
    _core.kv_write(None, k, v, None, weights[1], 1e-6, rotation, first, None, pool_alone, table)
    assert torch.equal(q_alone, q_out)
    assert torch.equal(pool_alone.view(torch.uint8), pool.view(torch.uint8))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_kv_write_at_any_geometry(dtype: torch.dtype, data: st.DataObject) -> None:
    """Remainders of every kind: of token blocks, of tiles that are transposed, of the vectors before, in and after the rotated channels."""
    pairs_of_head = data.draw(st.integers(1, 70), "dim / 2")
    tokens, heads, dim = data.draw(st.integers(1, 50), "tokens"), data.draw(st.integers(1, 3), "heads"), 2 * pairs_of_head
    pairs = data.draw(st.integers(1, pairs_of_head), "pairs")
    first = 2 * data.draw(st.integers(0, pairs_of_head - pairs), "first / 2")
    generator = torch.Generator().manual_seed(tokens + dim)
    q, k, v = torch.randn(1, tokens, 3, heads, dim, generator=generator).to(dtype).unbind(2)
    weight = torch.randn(heads, dim, generator=generator).to(dtype)
    angles = 6 * torch.rand(tokens, pairs, generator=generator).double()
    q_out, pool = torch.full((1, tokens, heads, dim), torch.nan, dtype=dtype), empty_pages(dtype, 1, tokens, heads, dim)
    table = torch.zeros(1, dtype=torch.int32)
    _core.kv_write(q, k, v, weight, weight, 1e-6, cos_sin(angles).float(), first, q_out, pool, table)
    keys, values = unpack(pool[0], tokens, heads, dim)
    assert torch.equal(values, v[0])
    for out, x in ((q_out, q), (keys[None], k)):
        ref = oracle.project(fp64(x), fp64(weight), 1e-6, fp64(cos_sin(angles)), first)
        check(out, public_projection(x, weight, 1e-6, angles, first), ref, heads * dim)
    assert pool.isnan().sum() == pool.numel() - 2 * tokens * heads * dim, "padding is not written"


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("dim", [128, 120])
def test_kv_write_of_many_megabytes_is_that_of_its_frames(dtype: torch.dtype, dim: int) -> None:
    """Large calls write past the caches; a call of one of their frames does not."""
    frames, tokens, heads = 3, 1571, 8
    k, v = torch.randn(2, frames, tokens, heads, dim).to(dtype)
    weight, rotation = torch.randn(heads, dim).to(dtype), cos_sin(6 * torch.rand(tokens, 20).double()).float()
    together, alone = (empty_pages(dtype, frames, tokens, heads, dim) for _ in range(2))
    assert together.nbytes > 16 << 20 and alone[0].nbytes < 16 << 20
    table = torch.arange(frames, dtype=torch.int32)
    _core.kv_write(None, k, v, None, weight, 1e-6, rotation, 44, None, together, table)
    for frame in range(frames):
        one = slice(frame, frame + 1)
        _core.kv_write(None, k[one], v[one], None, weight, 1e-6, rotation, 44, None, alone, table[one])
    assert torch.equal(together.view(torch.uint8), alone.view(torch.uint8))
    assert torch.equal(unpack(together[2], tokens, heads, dim)[1], v[2])


def test_kv_write_rounds_where_public_code_does() -> None:
    """Rounds after the norm, after the weight and after the rotation: all but the rarest results are the same bfloat16."""
    tokens, heads, dim = 100, 4, 128
    q = torch.randn(2, tokens, heads, dim).bfloat16()
    weight = torch.randn(heads, dim).bfloat16()
    angles = 6 * torch.rand(tokens, 42).double()
    out = torch.empty_like(q)
    _core.kv_write(q, None, None, weight, None, 1e-6, cos_sin(angles).float(), 44, out, None, None)
    different = out != public_projection(q, weight, 1e-6, angles, 44)
    assert different.float().mean() < 1e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_kv_write_takes_strided_projections(dtype: torch.dtype) -> None:
    """q, k and v as the thirds of one linear layer's output; the same bits for any number of threads."""
    tokens, heads, dim = 100, 2, 64
    qkv = torch.randn(3, tokens, 3, heads, dim).to(dtype)
    weight = torch.randn(heads, dim).to(dtype)
    rotation = cos_sin(torch.rand(tokens, 10).double()).float()
    table = torch.arange(3, dtype=torch.int32)

    def run(threads: int, *projections: Tensor) -> tuple[Tensor, Tensor]:
        _core.set_threads(threads)
        pool = empty_pages(dtype, 3, tokens, heads, dim)
        out = torch.empty(3, heads, tokens, dim, dtype=dtype).transpose(1, 2)
        _core.kv_write(*projections, weight, weight, 1e-6, rotation, 44, out, pool, table)
        return out, pool.view(torch.uint8)

    expected = run(1, *(x.contiguous() for x in qkv.unbind(2)))
    for threads in (1, 3):
        out, pool = run(threads, *qkv.unbind(2))
        assert torch.equal(out, expected[0]) and torch.equal(pool, expected[1])


# ---- modulated_norm --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(("with_residual", "with_gate"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("frames", "tokens", "channels"), [(3, 24, 256), (1, 7, 1536), (2, 33, 50), (2, 1, 3), (1, 100, 1)])
def test_modulated_norm_matches_the_oracle(
    dtype: torch.dtype, with_residual: bool, with_gate: bool, frames: int, tokens: int, channels: int
) -> None:
    generator = torch.Generator().manual_seed(channels)
    x, residual = (torch.randn(frames, tokens, channels, generator=generator).to(dtype) + 2 for _ in range(2))
    gate, scale, shift = (torch.randn(n, channels, generator=generator) for n in (frames, 1, frames))
    # The padding beside the rows of both holds numbers that would change the result if they were read as channels.
    wide = torch.randn(2, frames, tokens, channels + 3, generator=generator).to(dtype)
    beside = wide[..., channels:].clone()
    updated, out = wide[..., :channels]
    updated.copy_(x)
    _core.modulated_norm(updated, residual if with_residual else None, gate if with_gate else None, scale, shift, 1e-6, out)
    assert torch.equal(wide[..., channels:], beside)
    if not with_residual:
        assert torch.equal(updated, x)
    else:
        new_x, _ = oracle.modulated_norm(fp64(x), fp64(residual), fp64(gate) if with_gate else None, fp64(scale), fp64(shift), 1e-6)
        check(updated, x + (gate[:, None] if with_gate else torch.ones(1)).to(dtype) * residual, new_x, 1)
    # The norm is that of the x that was stored.
    _, ref = oracle.modulated_norm(fp64(updated), None, None, fp64(scale), fp64(shift), 1e-6)
    norm = F.layer_norm(updated, (channels,), eps=1e-6)
    check(out, norm * scale[:, None].to(dtype) + shift[:, None].to(dtype), ref, channels)
    in_place = updated.clone()
    _core.modulated_norm(in_place, None, None, scale, shift, 1e-6, in_place)
    assert torch.equal(in_place, out)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_modulated_norm_takes_strided_rows_and_any_threads(dtype: torch.dtype) -> None:
    x = torch.randn(3, 400, 64).to(dtype)
    ones, zeros = torch.ones(3, 64), torch.zeros(1, 64)
    expected = torch.empty_like(x)
    _core.set_threads(1)
    _core.modulated_norm(x, None, None, ones, zeros, 1e-6, expected)
    _core.set_threads(4)
    wide, out = torch.zeros(400, 3, 100).to(dtype), torch.zeros(3, 400, 70).to(dtype)
    wide[..., 20:84] = x.transpose(0, 1)
    _core.modulated_norm(wide[..., 20:84].transpose(0, 1), None, None, ones, zeros, 1e-6, out[..., :64])
    assert torch.equal(out[..., :64], expected) and (out[..., 64:] == 0).all()


# ---- gelu ------------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_gelu_matches_the_oracle(dtype: torch.dtype, data: st.DataObject) -> None:
    """Rows of any length inside wider ones, with values of any size; the numbers beside them do not change."""
    frames, tokens, channels = (data.draw(st.integers(1, most), name) for name, most in (("frames", 3), ("tokens", 40), ("channels", 70)))
    size = data.draw(st.sampled_from([0.01, 1.0, 4.0, 30.0]), "size")
    wide = torch.randn(frames, tokens, channels + 3, generator=torch.Generator().manual_seed(7)).to(dtype)
    beside = wide.clone()
    x = wide[..., 1 : 1 + channels]
    x.copy_(size * torch.randn(x.shape, generator=torch.Generator().manual_seed(channels)))
    before = x.clone()
    _core.gelu(x)
    check(x, F.gelu(before, approximate="tanh"), oracle.gelu(fp64(before)), 1)
    beside[..., 1 : 1 + channels] = x
    assert torch.equal(wide, beside)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_gelu_relative_error(dtype: torch.dtype) -> None:
    """For small results the rule of this file shows nothing. So this test checks that small inputs keep their relative accuracy: that of
    rounding the result, and of the factor 1 / (1 + 2^y), whose 2^y has a relative error of 7.5e-5 in bfloat16."""
    x = torch.cat([torch.logspace(-30, 0, 301), -torch.logspace(-30, 0, 301)])[None, None].to(dtype)
    ref = oracle.gelu(fp64(x))
    out = x.clone()
    _core.gelu(out)
    allowed = 2**-8 + 7.5e-5 if dtype == torch.bfloat16 else 2**-21
    assert (np.abs(fp64(out) - ref) <= allowed * np.abs(ref)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_gelu_far_out(dtype: torch.dtype) -> None:
    x = torch.tensor([torch.inf, 3e38, 1e20, 50.0, 0.0, -50.0, -1e20, -3e38, -torch.inf, torch.nan] * 2).to(dtype)
    out = x[None, None].clone()
    _core.gelu(out)
    assert torch.equal(out[0, 0, :5], x[:5])
    assert (out[0, 0, 5:9].abs() < 1e-30).all() and out[0, 0, 9].isnan()
    assert torch.equal(out[0, 0, 10:19], out[0, 0, :9])


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_gelu_gives_the_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    x = torch.randn(3, 301, 333).to(dtype)
    results = []
    for threads in (1, 2, 5):
        _core.set_threads(threads)
        results.append(x.clone())
        _core.gelu(results[-1])
    assert all(torch.equal(out, results[0]) for out in results)


# ---- quantize_rows, dequantize_rows -----------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_quantize_rows_matches_the_oracle(dtype: torch.dtype, data: st.DataObject) -> None:
    """Rows of any length within wider ones, of any size; what lies beside them stays as it is."""
    frames, tokens, channels = (data.draw(st.integers(1, most), name) for name, most in (("frames", 3), ("tokens", 40), ("channels", 70)))
    size = data.draw(st.sampled_from([1e-32, 0.01, 1.0, 1e30]), "size")
    generator = torch.Generator().manual_seed(channels)
    wide = (size * torch.randn(frames, tokens, channels + 3, generator=generator)).to(dtype)
    wide[..., 0], wide[..., -2:] = torch.nan, torch.inf
    x = wide[..., 1:-2]
    q, scale = torch.full(wide.shape, 7, dtype=torch.uint8), torch.full((frames, tokens), torch.nan)
    _core.quantize_rows(x, q[..., 1:-2], scale)
    exact, scales = oracle.quantize_rows(fp64(x))
    np.testing.assert_allclose(fp64(scale), scales, rtol=2**-23)
    # Half a step, and the roundings of 1 / scale and of its product with x, at most 127.
    assert np.abs(fp64(q[..., 1:-2]) - 128 - exact).max() <= 0.5 + 127 * 2**-22
    assert (q[..., 0] == 7).all() and (q[..., -2:] == 7).all()
    assert q[..., 1:-2].min() >= 1 and (size < 1e-20 or (np.abs(fp64(q[..., 1:-2]) - 128).max(-1) == 127).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_rows_that_are_not_finite_stay_so(dtype: torch.dtype) -> None:
    """Wherever in the row the number is; and the rows beside them do not notice. A row of zeros gives zeros."""
    x = torch.randn(1, 80, 37).to(dtype)
    bad = {3 + i: i for i in range(37)}
    for number, (row, column) in enumerate(bad.items()):
        x[0, row, column] = [torch.nan, torch.inf, -torch.inf][number % 3]
    x[0, 50] = 0
    q, scale = torch.empty(x.shape, dtype=torch.uint8), torch.empty(1, 80)
    _core.quantize_rows(x, q, scale)
    assert scale[0].isnan().tolist() == [row in bad for row in range(80)]
    assert (q[0, 50] == 128).all() and (q[0, list(bad)] == 128).all()
    out = torch.empty_like(x)
    _core.dequantize_rows(q.float() - 128, scale, torch.zeros(37), out)
    assert out[0].isnan().all(-1).tolist() == [row in bad for row in range(80)] and (out[0, 50] == 0).all()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.integers(1, 3), tokens=st.integers(1, 40), channels=st.integers(1, 70))
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_dequantize_rows_matches_the_oracle(dtype: torch.dtype, frames: int, tokens: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(channels)
    x = 1e6 * torch.randn(frames, tokens, channels + 1, generator=generator)[..., 1:]
    scale, bias = torch.rand(frames, tokens, generator=generator) * 1e-6, torch.randn(channels, generator=generator)
    wide = torch.full((frames, tokens, channels + 2), 5.0, dtype=dtype)
    _core.dequantize_rows(x, scale, bias, wide[..., 1:-1])
    check(wide[..., 1:-1], (x * scale[..., None] + bias).to(dtype), fp64(x) * fp64(scale)[..., None] + fp64(bias), 1)
    assert (wide[..., [0, -1]] == 5).all()
    if dtype == torch.float32:
        in_place = x.clone()
        _core.dequantize_rows(in_place, scale, bias, in_place)
        assert torch.equal(in_place, wide[..., 1:-1])


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_quantized_rows_have_the_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    x, bias = torch.randn(3, 301, 333).to(dtype), torch.randn(333)
    results = []
    for threads in (1, 2, 5):
        _core.set_threads(threads)
        q, scale, out = torch.empty(x.shape, dtype=torch.uint8), torch.empty(3, 301), torch.empty_like(x)
        _core.quantize_rows(x, q, scale)
        _core.dequantize_rows(q.float(), scale, bias, out)
        results.append((q, scale, out))
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))


# ---- sampler_step ----------------------------------------------------------------------------------------------------------


def public_step(sample: Tensor, level: float, velocity: Tensor, after: float, noise: Tensor | None) -> Tensor:
    """Self-Forcing's arithmetic: the clean sample in float64, the noise added in float32."""
    clean = (sample.double() - level * velocity.double()).float()
    return clean if noise is None else (1 - after) * clean + after * noise


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(elements=st.integers(1, 50_000), level=st.floats(0.01, 1.0), after=st.floats(0.0, 1.0), noisy=st.booleans(), shift=st.integers(0, 3))
def test_sampler_step_is_the_published_one(elements: int, level: float, after: float, noisy: bool, shift: int) -> None:
    """The same bits at any length and alignment, in place or not; and the oracle's value, whatever torch does."""
    generator = torch.Generator().manual_seed(elements)
    sample, velocity, fresh = torch.randn(3, elements + shift, generator=generator)[:, shift:]
    noise = fresh if noisy else None
    expected, ref = (
        public_step(sample, level, velocity, after, noise),
        oracle.sampler_step(fp64(sample), level, fp64(velocity), after, None if noise is None else fp64(noise)),
    )
    out = torch.full((elements + 2,), 3.0)
    _core.sampler_step(sample, level, velocity, after, noise, out[1:-1])
    assert torch.equal(out[1:-1], expected) and out[0] == out[-1] == 3
    assert np.abs(fp64(out[1:-1]) - ref).max() <= 2**-23 * (1 + np.abs(ref).max() + float(fresh.abs().max()))
    _core.sampler_step(sample, level, velocity, after, noise, sample)
    assert torch.equal(sample, expected)


def test_sampler_step_tells_what_does_not_fit() -> None:
    x = torch.zeros(6)
    for change, hint in (
        ({"velocity": torch.zeros(5)}, r"velocity: expected float32 \[elements=6\], got float32 \[5\]"),
        ({"noise": torch.zeros(6, dtype=torch.bfloat16)}, "noise: expected float32"),
        ({"sample": torch.zeros(12)[::2]}, "sample: expected a contiguous tensor"),
        ({"out": torch.zeros(1).expand(6)}, "out"),
    ):
        with pytest.raises(ValueError, match=hint):
            _core.sampler_step(**{"sample": x, "level": 0.5, "velocity": x, "after": 0.5, "noise": x, "out": torch.zeros(6)} | change)
