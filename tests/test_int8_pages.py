"""Pages of int8: what kv_write makes of K and V, what attention makes of it, of every instruction set, and streams over such pages."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import frame_attention
from rule import DTYPES, cos_sin, empty_pages, fp64, name_of, unpack
from test_attention import ATTENTION_SHAPES, Attention
from torch import Tensor

import lolrt
from lolrt import _core, cli, ops

PROMPT = "a red balloon over the hills"


def int8_pages(count: int, tokens: int, heads: int, dim: int, fill: int = 77) -> Tensor:
    """A pool in which every byte that is not written stays `fill`."""
    return torch.full((count, ops.page_elements(torch.int8, tokens, heads, dim)), fill, dtype=torch.int8)


def read(page: Tensor, tokens: int, heads: int, dim: int) -> tuple[Tensor, ...]:
    """Codes of K, 0 to 255, and of V [tokens, heads, dim], and scales and middles of K and scales of V [heads, dim], by the layout that
    lolrt.h describes."""
    blocks, words, channels, groups = -(-tokens // 16), -(-dim // 4), -(-dim // 16), -(-tokens // 4)
    k_bytes, v_bytes, floats = heads * blocks * words * 64, heads * channels * groups * 64, heads * 3 * dim
    values = -(-k_bytes // 64) * 64
    scales = values + -(-v_bytes // 64) * 64
    assert page.numel() == scales + -(-4 * floats // 64) * 64
    k = page[:k_bytes].view(torch.uint8).view(heads, blocks, words, 16, 4).permute(1, 3, 0, 2, 4).reshape(blocks * 16, heads, words * 4)
    v = (
        page[values : values + v_bytes]
        .view(heads, channels, groups, 16, 4)
        .permute(2, 4, 0, 1, 3)
        .reshape(groups * 4, heads, channels * 16)
    )
    scale, middle, v_scale = page[scales : scales + 4 * floats].view(torch.float32).view(heads, 3, dim).unbind(1)
    return k[:tokens, :, :dim].long(), v[:tokens, :, :dim].long(), scale, middle, v_scale


def numbers(page: Tensor, tokens: int, heads: int, dim: int) -> tuple[Tensor, Tensor]:
    """K and V [tokens, heads, dim] that a page stands for, float64."""
    k, v, scale, middle, v_scale = read(page, tokens, heads, dim)
    return middle.double() + scale.double() * (k - 128), v_scale.double() * v


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("tokens, heads, dim", [(1, 1, 2), (16, 2, 8), (37, 3, 14), (24, 2, 64), (100, 1, 128), (35, 2, 256), (19, 4, 30)])
def test_kv_write_rounds_each_channel_by_its_own_range(dtype: torch.dtype, tokens: int, heads: int, dim: int) -> None:
    """Against what a page of the dtype itself has, which other tests hold to float64: normalised, weighted, turned."""
    k, v = normal(2, 3, tokens, heads, dim, seed=tokens, dtype=dtype)
    k = (k + 5 * normal(heads, dim, seed=1)).to(dtype)
    weight, rotation = normal(heads, dim, seed=2, dtype=dtype), cos_sin(normal(tokens, dim // 2, seed=3))
    table = torch.tensor([4, 0, 2], dtype=torch.int32)
    pages, exact = int8_pages(5, tokens, heads, dim), empty_pages(dtype, 5, tokens, heads, dim)
    for to in (pages, exact):
        ops.kv_write(k, v, to, table, weight=weight, rotation=rotation)
    assert (pages[[1, 3]] == 77).all()
    for page in table.tolist():
        x, y = (part.float() for part in unpack(exact[page], tokens, heads, dim))
        codes, v_codes, scale, middle, v_scale = read(pages[page], tokens, heads, dim)
        low, high = x.amin(0), x.amax(0)
        torch.testing.assert_close(middle, (low + high) / 2, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(scale, ((high - low) / 254).clamp_min(2.0**-100), rtol=1e-5, atol=0)
        torch.testing.assert_close(v_scale, (y.abs().amax(0) / 127).clamp_min(2.0**-100), rtol=1e-6, atol=0)
        # Exactly the nearest, but where the quotient is within its rounding of a half.
        for code, quotient in ((codes - 128, (x - middle) / scale), (v_codes, y / v_scale)):
            near = (quotient - quotient.floor() - 0.5).abs() < 1e-4
            assert torch.equal(code[~near].float(), quotient[~near].round()) and (code - quotient).abs().max() < 0.501


@pytest.mark.usefixtures("isa")
def test_channels_without_range_keep_their_number() -> None:
    k = torch.full((1, 20, 1, 8), 3.25)
    v = torch.zeros(1, 20, 1, 8)
    pages = int8_pages(1, 20, 1, 8)
    ops.kv_write(k, v, pages, torch.tensor([0], dtype=torch.int32))
    theirs = numbers(pages[0], 20, 1, 8)
    assert (theirs[0] == 3.25).all() and (theirs[1] == 0).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("what", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", ["k", "v", "q"])
def test_what_is_not_finite_is_not_swallowed(what: float, which: str) -> None:
    """Of one channel of K, the whole head; of V, the channel; of a query, its row."""
    case = Int8Attention(torch.float32, pages=2, tokens=7, page_tokens=20)
    x = getattr(case, which)
    x[(1, 5, 0, 3) if which != "q" else (0, 5, 0, 3)] = what
    case.write()
    out, _ = case.run()
    expected = torch.zeros(out.shape, dtype=torch.bool)
    expected[{"k": (slice(None), slice(None), 0), "v": (slice(None), slice(None), 0, 3), "q": (0, 5, 0)}[which]] = True
    assert torch.equal(out.isnan(), expected)


class Int8Attention(Attention):
    """A call whose pages are of int8; every byte that is not written stays 77."""

    def empty_pool(self) -> Tensor:
        return int8_pages(self.pages + 2, self.page_tokens, self.heads, self.dim)

    def stored(self) -> tuple[Tensor, Tensor]:
        """K and V that the pages stand for, float64 [pages, page_tokens, heads, dim]."""
        both = [numbers(self.pool[page], self.page_tokens, self.heads, self.dim) for page in self.page_table.tolist()]
        return torch.stack([k for k, _ in both]), torch.stack([v for _, v in both])

    def stored_oracle(self) -> tuple[np.ndarray, np.ndarray]:
        """Attention in float64 to what the pages stand for."""
        k, v = self.stored()
        rotation = fp64(self.rotation()) if self.pairs else None
        return frame_attention(fp64(self.q), k.numpy(), v.numpy(), rotation, fp64(self.bias), self.scale or None)


def relative(out: Tensor, ref: np.ndarray) -> float:
    return float(np.linalg.norm(fp64(out) - ref) / np.linalg.norm(ref))


def cosine(out: Tensor, ref: np.ndarray) -> float:
    return float((fp64(out) * ref).sum() / np.linalg.norm(fp64(out)) / np.linalg.norm(ref))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", ATTENTION_SHAPES, ids=lambda shape: "-".join(f"{k}{v}" for k, v in shape.items()) or "default")
def test_attention_is_near_the_oracle(dtype: torch.dtype, shape: dict) -> None:
    """To the K and V that were given. Scores of 0.5 * 8 times a normal number are rounded more coarsely."""
    case = Int8Attention(dtype, **shape)
    out, mass = case.run(probe=True)
    ref, ref_mass = case.oracle()
    least = 0.999 if not case.scale else 0.99
    assert cosine(out, ref) >= least and relative(out, ref) <= (2 * (1 - least)) ** 0.5
    assert np.abs(fp64(mass) - ref_mass).max() <= 2e-2
    torch.testing.assert_close(mass.sum(0), torch.ones(case.frames, case.heads), atol=2e-6 * case.pages, rtol=0)
    plain, _ = case.run()
    assert torch.equal(plain, out), "the probe changes the output"


@pytest.mark.whole
@pytest.mark.usefixtures("isa")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_attention_at_any_geometry(data: st.DataObject) -> None:
    dim = data.draw(st.integers(1, 66).map(lambda n: 2 * n) | st.sampled_from([32, 64, 96, 128, 256]), "dim")
    case = Int8Attention(
        torch.float32,
        frames=data.draw(st.integers(1, 3), "frames"),
        tokens=data.draw(st.integers(1, 110), "tokens"),
        heads=data.draw(st.integers(1, 3), "heads"),
        dim=dim,
        pages=data.draw(st.integers(1, 5), "pages"),
        page_tokens=data.draw(st.integers(1, 40) | st.integers(1, 600), "page_tokens"),
        pairs=data.draw(st.integers(0, dim // 2), "pairs"),
    )
    assert relative(case.run()[0], case.stored_oracle()[0]) <= 0.06


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("tokens, page_tokens, dim", [(1, 1, 2), (5, 3, 6), (13, 35, 30), (97, 513, 64), (7, 1030, 128), (50, 600, 256)])
def test_every_key_is_there_once(tokens: int, page_tokens: int, dim: int) -> None:
    """All weights are equal, but for their rounding to bytes, of one in 255. Values are 0 but for one key's, or 1."""
    case = Int8Attention(torch.float32, frames=1, tokens=tokens, page_tokens=page_tokens, dim=dim, pages=3, pairs=0)
    case.q.zero_()
    case.v.fill_(1.0)
    case.write()
    out, mass = case.run(probe=True)
    torch.testing.assert_close(out, torch.ones_like(out))
    torch.testing.assert_close(mass, torch.full_like(mass, 1 / 3))
    for token in {0, page_tokens // 2, page_tokens - 2, page_tokens - 1, *range(509, 514)} & set(range(page_tokens)):
        case.v.zero_()
        case.v[token % 3, token] = 1.0
        case.write()
        torch.testing.assert_close(case.run()[0], torch.full_like(out, 1 / (3 * page_tokens)), rtol=0.01, atol=0)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("scale", [1.0, 1e7])
@pytest.mark.parametrize("page_tokens", [24, 700])
def test_a_query_that_sees_one_key_gets_its_value(page_tokens: int, scale: float) -> None:
    """Each key has a direction of signs of its own, which codes hold exactly; the queries look for some of them. With the large scale,
    scores are 128 apart in float32."""
    case = Int8Attention(torch.float32, frames=1, tokens=9, page_tokens=page_tokens, dim=128, pages=2, pairs=0, scale=scale)
    case.k = normal(*case.k.shape, seed=5).sign()
    looked_for = [(page, token) for page in range(2) for token in (0, 1, 15, 16, page_tokens // 2, page_tokens - 1)][:9]
    case.q = torch.stack([case.k[page, token] for page, token in looked_for])[None]
    case.write()
    expected = torch.stack([case.stored()[1][page, token] for page, token in looked_for])
    assert (case.run()[0][0] - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.usefixtures("isa")
def test_keys_beside_one_that_all_turn_to_count_for_what_they_are() -> None:
    """255 keys have less than half a step of the largest weight each, and half as much as it together."""
    case = Int8Attention(torch.float32, frames=1, tokens=40, page_tokens=256, heads=1, dim=64, pages=1, pairs=0, scale=0.125)
    case.q[..., 0] = 8.0
    case.k[..., 0] = 0.0
    case.k[:, 9] = 0.0
    case.k[:, 9, :, 0] = 6.9
    case.k[..., 1:] *= 0.2
    case.write()
    ref, _ = case.oracle()
    assert relative(case.run()[0], ref) <= 0.06
    lost = fp64(case.v[0, 9]) - ref[0]
    assert np.linalg.norm(lost) / np.linalg.norm(ref) > 0.15  # if the others counted for nothing


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("width", [16, 32, 64])
def test_no_column_of_a_picture_is_rounded_one_way(width: int) -> None:
    """All keys but one have 0.4 of a step of the largest weight each. Each column has a channel of V of its own."""
    case = Int8Attention(torch.float32, frames=1, tokens=3, page_tokens=512, heads=1, dim=64, pages=1, pairs=0, scale=1.0)
    case.q.zero_()
    case.q[..., 0] = 1.0
    case.k.zero_()
    case.k[:, -1, :, 0] = float(np.log(255 / 0.4))
    case.v = F.one_hot(torch.arange(512) % width, 64)[None, :, None].float()
    case.v[:, -1] = 0.0
    case.write()
    columns = case.run()[0][0, 0, 0, :width]
    ref = torch.from_numpy(case.oracle()[0])[0, 0, 0, :width]
    assert (columns / ref - 1).abs().max() <= 0.5


@pytest.mark.usefixtures("isa")
def test_a_part_that_all_keys_share_costs_no_accuracy() -> None:
    """It is in the middles: rounding knows of what differs alone."""
    case = Int8Attention(torch.float32)
    case.k[..., ::3] += 50.0
    case.write()
    ref, _ = case.oracle()
    assert cosine(case.run()[0], ref) >= 0.999


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("page_tokens", [600, 20])
def test_scores_of_any_size(page_tokens: int) -> None:
    """Weights that underflow, and a maximum that rises within each page and from page to page, so that earlier sums are rescaled."""
    case = Int8Attention(torch.float32, pages=4, page_tokens=page_tokens, scale=1.0)
    case.k = case.k * torch.linspace(0.1, 4, page_tokens)[:, None, None]
    case.write()
    rising = torch.linspace(-200, 200, case.pages)[:, None].repeat(1, 2)
    largest = torch.finfo(torch.float32).max
    for bias in (None, rising, rising.flip(0), torch.full((4, 2), -largest), torch.full((4, 2), largest)):
        all_alike = bias is not None and bool((bias == bias[0, 0]).all())  # which changes nothing
        case.bias = None if all_alike else bias
        ref, ref_mass = case.stored_oracle()
        case.bias = bias
        out, mass = case.run(probe=True)
        assert cosine(out, ref) >= 0.97 and (mass >= 0).all() and np.abs(fp64(mass) - ref_mass).max() <= 0.1


@pytest.mark.usefixtures("isa")
def test_pages_that_are_left_out_or_not_there() -> None:
    bias = 3 * normal(5, 2, seed=3)
    bias[1, 0] = -torch.inf
    bias[:, 1] = -torch.inf
    case = Int8Attention(torch.float32, pages=5, page_tokens=21, bias=bias)
    out, mass = case.run(probe=True)
    assert cosine(out, case.oracle()[0]) >= 0.999
    assert (mass[1, :, 0] == 0).all() and (out[:, :, 1] == 0).all() and (mass[:, :, 1] == 0).all()
    case.page_table[3] = -1
    missing = case.run()[0]
    case.bias[3] = -torch.inf
    case.page_table[3] = 0
    assert torch.equal(case.run()[0], missing)


@pytest.mark.usefixtures("isa")
def test_no_bit_depends_on_padding_threads_or_neighbours() -> None:
    case = Int8Attention(torch.bfloat16, tokens=130, page_tokens=75, dim=70, frames=2, pages=3)
    _core.set_threads(1)
    expected, expected_mass = case.run(probe=True)
    _core.set_threads(3)
    case.pool = int8_pages(5, 75, 2, 70, fill=-128)
    case.write()
    out, mass = case.run(probe=True)
    assert torch.equal(out, expected) and torch.equal(mass, expected_mass)
    batch = ops.frame_attention(
        case.q, case.pool, torch.stack([case.page_table, case.page_table.flip(0)]), 75,
        rotation=torch.stack([case.rotation()[:, :1], case.rotation()[:, 1:].flip(0)]),
    )  # fmt: skip
    assert torch.equal(batch[:1], out[:1])


def test_instruction_sets_agree() -> None:
    """Integers are the same on all; only powers and the last products are rounded by each in its own order."""
    before = _core.isa()
    case = Int8Attention(torch.float32, tokens=50, page_tokens=530, dim=128, pages=2, frames=1)
    outs = []
    for isa in _core.isas():
        _core.set_isa(isa)
        again = Int8Attention(torch.float32, tokens=50, page_tokens=530, dim=128, pages=2, frames=1)
        assert torch.equal(again.pool, case.pool)
        outs.append(again.run()[0])
    _core.set_isa(before)
    for out in outs[1:]:
        assert relative(out, fp64(outs[0])) <= 1e-2


def test_mean_keys_are_those_of_the_numbers() -> None:
    k, v = normal(2, 1, 37, 3, 14, seed=8)
    pages = int8_pages(2, 37, 3, 14)
    ops.kv_write(k, v, pages, torch.tensor([1], dtype=torch.int32))
    torch.testing.assert_close(ops.mean_key(pages[1], 37, 3, 14), numbers(pages[1], 37, 3, 14)[0].mean(0).float(), rtol=1e-5, atol=1e-6)


def test_wrong_pages_are_refused() -> None:
    q = torch.zeros(1, 4, 1, 8)
    pages = int8_pages(2, 4, 1, 8)
    table = torch.tensor([0], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"pages: expected int8 \[pool_pages, page_elements=\d+\]"):
        ops.frame_attention(q, pages[:, :-1], table, 4)
    with pytest.raises(ValueError, match="pages: expected float32"):
        ops.frame_attention(q, pages.view(torch.uint8), table, 4)
    with pytest.raises(_core.UnsupportedError, match="int8 on the CPU alone"):
        _core.page_elements("int8", 4, 1, 8, "cuda")


def rollout(kv_dtype: torch.dtype | None, chunks: int = 4, **options: object) -> Tensor:
    pipe = lolrt.load("tiny", torch.float32)
    stream = pipe.latent_stream(PROMPT, kv_dtype=kv_dtype, **options)
    return torch.cat([chunk.latents for chunk in itertools.islice(stream, chunks)])


@pytest.mark.whole
@pytest.mark.parametrize(
    "options", [dict, lambda: dict(window=lolrt.Window(sink_frames=2, recent_frames=4, recall_frames=1))], ids=["plain", "recall"]
)
def test_a_stream_over_int8_pages_is_near_that_over_float32(one_thread: None, options: Callable[[], dict]) -> None:
    exact, ours = rollout(None, **options()), rollout(torch.int8, **options())
    difference = ((ours - exact).square().mean() / exact.square().mean()).sqrt()
    assert 0 < difference < 0.05


def test_a_stream_over_int8_pages_goes_on_with_the_same_bits(tmp_path, one_thread: None) -> None:
    pipe = lolrt.load("tiny", torch.float32)
    stream = pipe.stream(PROMPT, kv_dtype=torch.int8)
    next(stream)
    stream.save(tmp_path / "state")
    expected = next(stream)
    resumed = pipe.resume(tmp_path / "state")
    assert resumed.latent_stream.engine.pool.pages.dtype == torch.int8
    assert torch.equal(next(resumed).latents, expected.latents)


def test_the_command_line_plans_less_memory_for_them(capsys) -> None:
    def memory(*options: str) -> float:
        cli.main(["info", "--model", "tiny", *options])
        line = next(line for line in capsys.readouterr().out.splitlines() if "pages of 6 layers" in line)
        return float(line.split()[-2])

    assert memory("--kv", "int8") < 0.7 * memory()
