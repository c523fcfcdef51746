"""Phases, windows, pools, noise, and what the extension says about bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from capsules import Capsule
from hypothesis import given, settings
from hypothesis import strategies as st

from lolrt import _core

# 120 digits, enough for any float64 up to 2^32 times 2^64.
PI = Fraction(
    "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798214808651328230664709"
)


def increments(radians: list[float]) -> list[int]:
    out = np.zeros(len(radians), dtype=np.uint64)
    _core.phase_increments(np.array(radians, dtype=np.float64), out)
    return out.tolist()


def table(turns: list[int], offsets: list[int]) -> np.ndarray:
    out = np.full((len(offsets), 1, 1, len(turns), 2), np.nan, dtype=np.float32)
    _core.rotation_table(np.array([turns], dtype=np.uint64), np.array(offsets, dtype=np.int64)[:, None], out)
    return out[:, 0, 0]


def exact_cos_sin(turns: Fraction) -> tuple[float, float]:
    """cos and sin of a number of turns in [-1/2, 1/2], by their series in 60 digits."""
    with localcontext() as context:
        context.prec = 60
        x = 2 * turns * PI
        angle = Decimal(x.numerator) / Decimal(x.denominator)
        term, cos, sin = Decimal(1), Decimal(0), Decimal(0)
        for n in range(60):
            sign = 1 if n % 4 < 2 else -1
            cos, sin = (cos + sign * term, sin) if n % 2 == 0 else (cos, sin + sign * term)
            term = term * angle / (n + 1)
        return float(cos), float(sin)


# ---- phases ----------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-(2.0**32), 2.0**32), min_size=1, max_size=20))
def test_increments_are_exact(radians: list[float]) -> None:
    for value, turns in zip(radians, increments(radians), strict=True):
        # Rounded half away from zero on the magnitude; a tie never happens, the number being irrational.
        magnitude = math.floor(abs(Fraction(value)) / (2 * PI) * 2**64 + Fraction(1, 2))
        assert turns == (magnitude if value >= 0 else -magnitude) % 2**64


def test_increments_reject_what_has_no_phase() -> None:
    for value in (math.nan, math.inf, -1e10):
        with pytest.raises(ValueError, match=r"radians_per_frame\[1\]"):
            increments([1.0, value])


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8), st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4))
def test_rotation_tables_are_rounded_once(turns: list[int], offsets: list[int]) -> None:
    got = table(turns, offsets)
    for i, offset in enumerate(offsets):
        for j, increment in enumerate(turns):
            phase = (increment * offset + 2**63) % 2**64 - 2**63
            exact = exact_cos_sin(Fraction(phase, 2**64))
            # Half a unit of float32; before it, float64 rounds the phase, 2 pi and their product of up to pi.
            np.testing.assert_allclose(got[i, j], exact, rtol=2**-24 * 1.0001, atol=1e-15)


def test_rotation_by_nothing_is_the_identity() -> None:
    assert (table([2**63 + 12345, 1, 0], [0])[0] == [1, 0]).all()
    assert (table([0], [1, -(2**63), 10**18])[:, 0] == [1, 0]).all()


def test_rotation_depends_on_the_offset_only_modulo_a_turn() -> None:
    turns = increments([1.0, 0.3, 1e-4])
    assert (table(turns, [5]) == table(turns, [5 - 2**64 + 2**64])).all()
    assert (table([1 << 60], [3]) == table([1 << 60], [3 + 16 * 10**9])).all()


def test_phases_stay_exact_for_half_a_year() -> None:
    """16 million latent frames: rounding the increment is all the error there is."""
    frames, radians = 16_000_000, 0.7
    exact = exact_cos_sin((Fraction(radians) * frames / (2 * PI) + Fraction(1, 2)) % 1 - Fraction(1, 2))
    np.testing.assert_allclose(table(increments([radians]), [frames])[0, 0], exact, atol=2**-24)


# ---- noise -----------------------------------------------------------------------------------------------------------------


def normal(seed: int, frame: int, step: int, *shape: int) -> np.ndarray:
    out = np.full(shape, np.nan, dtype=np.float32)
    _core.normal(seed, frame, step, out)
    return out


def test_noise_is_standard_normal() -> None:
    draws = normal(1, 0, 0, 1_000_000).astype(np.float64)
    bound = 5 / math.sqrt(draws.size)  # 5 standard errors
    assert abs(draws.mean()) < bound
    assert abs(draws.var() - 1) < bound * math.sqrt(2)
    assert abs((draws**3).mean()) < bound * math.sqrt(15)
    assert abs((draws**4).mean() - 3) < bound * math.sqrt(96)
    for quantile in (0.5, 1.0, 2.0, 3.0):
        share = math.erfc(quantile / math.sqrt(2))
        assert abs((np.abs(draws) > quantile).mean() - share) < bound * math.sqrt(share)
    neighbours = draws.reshape(-1, 4)
    assert np.abs(np.corrcoef(neighbours.T) - np.eye(4)).max() < 2 * bound


def test_noise_depends_on_its_key_alone() -> None:
    first = normal(7, 5, 1, 2, 3, 4)
    normal(8, 5, 1, 100)
    assert (normal(7, 5, 1, 24) == first.ravel()).all()
    assert (normal(7, 5, 1, 1000)[:24] == first.ravel()).all()


def test_noise_of_different_keys_is_independent() -> None:
    keys = [(0, 0, 0), (1, 0, 0), (2**32, 0, 0), (0, 1, 0), (0, 2**32, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    draws = np.stack([normal(*key, 20_000) for key in keys])
    assert np.abs(np.corrcoef(draws) - np.eye(len(keys))).max() < 5 / math.sqrt(20_000)


def test_noise_wants_a_contiguous_float32_tensor() -> None:
    with pytest.raises(ValueError, match=r"normal: out: expected float32 .* got float64"):
        _core.normal(0, 0, 0, np.zeros(3))
    with pytest.raises(ValueError, match="stride 2"):
        _core.normal(0, 0, 0, torch.zeros(6)[::2])


# ---- pools and windows -----------------------------------------------------------------------------------------------------


class NaiveWindow:
    """The policy in one line: of the frames so far, the first `sinks` and the last `recent` of the others."""

    def __init__(self, sinks: int, recent: int) -> None:
        self.sinks, self.recent = sinks, recent
        self.history: list[int] = []

    def frames(self) -> list[int]:
        return self.history[: self.sinks] + self.history[self.sinks :][-self.recent :]


@settings(max_examples=200)
@given(st.integers(0, 4), st.integers(1, 9), st.integers(-(10**12), 10**12), st.lists(st.integers(1, 6), max_size=30), st.data())
def test_window_follows_its_policy(sinks: int, recent: int, start: int, chunks: list[int], data: st.DataObject) -> None:
    pool = _core.Pool(sinks + recent)
    window, naive = _core.Window(pool, sinks, recent), NaiveWindow(sinks, recent)
    page_of: dict[int, int] = {}
    next_frame = start
    for frames in chunks:
        before = window.read()
        if next_frame + frames - max(next_frame, start + sinks) > recent:
            with pytest.raises(ValueError, match="window_advance"):
                window.advance(next_frame, frames)
            assert window.read() == before
            continue
        window.advance(next_frame, frames)
        naive.history += range(next_frame, next_frame + frames)
        pages, held = window.read()
        assert held == naive.frames()
        assert len(set(pages)) == len(pages) == len(window) and pool.free_pages == sinks + recent - len(pages)
        # A frame keeps its page as long as it is held: nothing is ever moved.
        assert all(page_of.get(frame, page) == page for frame, page in zip(held, pages, strict=True))
        page_of = dict(zip(held, pages, strict=True))
        window.advance(next_frame, frames)
        assert window.read() == (pages, held)
        next_frame += frames
        wrong = data.draw(st.integers(start - 3, next_frame + 5).filter(lambda f, n=next_frame, c=frames: f not in (n, n - c)))
        with pytest.raises(ValueError, match="window_advance"):
            window.advance(wrong, frames)
        if data.draw(st.booleans()):
            pool = _core.Pool(sinks + recent)
            window = _core.Window(pool, sinks, recent)
            window.restore(held)
            page_of = dict(zip(held, window.read()[0], strict=True))


@pytest.mark.parametrize(
    "frames",
    [[], [3, 3], [0, 2], [0, 1, 2, 5, 7], [0, 1, 2, 2], [0, 1, 2, 7, 8], list(range(13)), [5, 6, 4], [0, 1, 3, 4, 5, 6, 7, 8, 9]],
)
def test_only_what_a_window_can_hold_is_restored(frames: list[int]) -> None:
    pool = _core.Pool(20)
    window = _core.Window(pool, 3, 4)
    with pytest.raises(ValueError, match="window_restore"):
        window.restore(frames)
    assert len(window) == 0 and pool.free_pages == 20


def test_a_pool_gives_each_page_once() -> None:
    pool = _core.Pool(3)
    assert [pool.acquire() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(MemoryError, match="all 3 pages"):
        pool.acquire()
    pool.release(1)
    assert pool.free_pages == 1 and pool.acquire() == 1
    pool.release(2)
    for page in (2, 3, -1):
        with pytest.raises(ValueError, match=f"page {page} of 3 is not taken"):
            pool.release(page)


def test_windows_share_a_pool_and_give_their_pages_back() -> None:
    pool = _core.Pool(5)
    first, second = _core.Window(pool, 1, 2), _core.Window(pool, 1, 2)
    first.advance(0, 3)
    with pytest.raises(MemoryError, match="needs 3 pages, the pool of 5 has 2 free"):
        second.advance(0, 3)
    assert len(second) == 0
    second.advance(0, 2)
    del first
    assert pool.free_pages == 3
    del pool  # the window keeps it
    second.advance(2, 1)
    assert second.read()[1] == [0, 1, 2]


def test_a_retained_page_outlasts_its_window() -> None:
    pool = _core.Pool(4)
    window = _core.Window(pool, 1, 2)
    window.advance(0, 3)
    page = window.read()[0][1]
    pool.retain(page)
    window.advance(3, 1)
    assert pool.free_pages == 0 and page not in window.read()[0]
    # The frame that would leave now gives its page back, the retained one does not come with it.
    window.advance(4, 1)
    pool.retain(window.read()[0][1])
    before = window.read()
    with pytest.raises(MemoryError, match="needs 1 pages, the pool of 4 has 0 free"):
        window.advance(5, 1)
    assert window.read() == before
    pool.release(page)
    window.advance(5, 1)
    del window
    assert pool.free_pages == 3
    for wrong in (page, 4, -1):
        with pytest.raises(ValueError, match=f"pool_retain: page {wrong} of 4 is not taken"):
            pool.retain(wrong)


# ---- bad input: one line that says what is wrong, and nothing written --------------------------------------------------------


def attention_arguments() -> dict[str, object]:
    frames, tokens, heads, dim, pages, pairs = 2, 5, 3, 8, 4, 2
    return dict(
        q=torch.zeros(frames, tokens, heads, dim),
        pages=torch.zeros(6, _core.page_elements("float32", tokens, heads, dim)),
        page_table=torch.tensor([0, 5, 2, 3], dtype=torch.int32),
        page_tokens=tokens,
        rotation=torch.zeros(pages, frames, heads, pairs, 2),
        bias=torch.zeros(pages, heads),
        scale=0.0,
        out=torch.full((frames, tokens, heads, dim), 7.0),
        mass=torch.full((pages, frames, heads), 7.0),
        workspace=torch.zeros(1 << 20, dtype=torch.uint8),
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("q", None, "q is missing"),
        ("q", torch.zeros(2, 5, 3, 8, dtype=torch.float64), "q: expected float32 or bfloat16, got float64"),
        ("q", torch.zeros(2, 5, 24), r"q: expected float32 \[frames, tokens, heads, dim\], got float32 \[2, 5, 24\]"),
        ("q", torch.zeros(2, 5, 3, 16)[..., ::2], r"q: .*innermost.* strides \[240, 48, 16, 2\]"),
        ("q", torch.zeros(2, 0, 3, 8), r"q: expected .* got float32 \[2, 0, 3, 8\]"),
        ("q", torch.zeros(2, 5, 3, 7), "dim is 7"),
        ("q", torch.zeros(2, 5, 3, 258), "dim is 258"),
        ("pages", torch.zeros(6, 100), r"pages: expected float32 \[pool_pages, page_elements=\d+\], got float32 \[6, 100\]"),
        ("pages", torch.zeros(6, 512, dtype=torch.bfloat16), "pages: expected float32"),
        ("page_table", torch.tensor([0, 1], dtype=torch.int64), "page_table: expected int32"),
        ("page_table", torch.tensor([0, 1, 2, 6], dtype=torch.int32), r"page_table\[3\] is 6; the pool has pages 0 to 5"),
        ("page_table", torch.tensor([-2, 1, 2, 3], dtype=torch.int32), r"page_table\[0\] is -2"),
        ("page_tokens", 0, "pages of 0 tokens"),
        ("page_tokens", 2**62, "pages of 4611686018427387904 tokens"),
        ("page_tokens", 500, "pages: expected"),
        ("rotation", torch.zeros(4, 2, 3, 5, 2), "rotation has 5 pairs, but dim = 8 holds only 4"),
        ("rotation", torch.zeros(4, 1, 3, 2, 2), r"rotation: expected float32 \[pages=4, frames=2, heads=3, pairs, 2=2\]"),
        ("rotation", torch.zeros(2, 4, 3, 2, 2).transpose(0, 1), "rotation: expected a contiguous tensor"),
        ("bias", torch.zeros(3, 4), "bias: expected"),
        ("scale", -1.0, "scale is -1"),
        ("scale", math.nan, "scale is"),
        ("scale", math.inf, "scale is inf"),
        ("out", torch.zeros(1, 5, 3, 8).expand(2, 5, 3, 8), r"out is written, but .* shape \[2, 5, 3, 8\] with strides \[0, "),
        ("out", torch.zeros(124).as_strided((2, 5, 3, 8), (4, 24, 8, 1)), "out is written, but its elements share memory"),
        ("out", None, "out is missing"),
        ("mass", torch.zeros(4, 2, 2), "mass: expected"),
        ("workspace", torch.zeros(100, dtype=torch.uint8), r"workspace has \d+ bytes .* expected \d+"),
        ("workspace", None, "workspace has 0 bytes"),
        ("workspace", torch.zeros(1 << 18), "workspace: expected a contiguous uint8"),
    ],
)
def test_frame_attention_says_what_is_wrong(name: str, value: object, message: str) -> None:
    arguments = attention_arguments()
    _core.frame_attention(**arguments)  # right as it is
    arguments = attention_arguments() | {name: value}
    with pytest.raises((ValueError, _core.UnsupportedError), match=f"^frame_attention: {message}") as error:
        _core.frame_attention(**arguments)
    assert "\n" not in str(error.value)
    for output in {"out", "mass"} - {name}:
        assert (arguments[output] == 7).all()


def batch_arguments() -> dict[str, object]:
    batch, frames, heads, pages, pairs = 3, 2, 3, 4, 2
    arguments = attention_arguments()
    tokens, dim = arguments["q"].shape[1::2]
    return arguments | dict(
        q=torch.zeros(batch * frames, tokens, heads, dim),
        page_table=torch.tensor([[0, 5, 2, 3], [1, -1, 0, -1], [-1, -1, -1, -1]], dtype=torch.int32),
        rotation=torch.zeros(batch, pages, frames, heads, pairs, 2),
        bias=torch.zeros(batch, pages, heads),
        out=torch.full((batch * frames, tokens, heads, dim), 7.0),
        mass=torch.full((batch, pages, frames, heads), 7.0),
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("q", torch.zeros(7, 5, 3, 8), r"out: expected float32 \[frames=7, "),
        ("page_table", torch.zeros(4, 4).int(), "q has 6 frames and page_table 4 rows; expected frames to be a multiple"),
        ("page_table", torch.zeros(12, 4).int(), "q has 6 frames and page_table 12 rows"),
        ("page_table", torch.zeros(4).int(), r"rotation: expected float32 \[pages=4, frames=6, heads=3, pairs, 2=2\], got"),
        (
            "page_table",
            torch.zeros(3, 5).int(),
            r"rotation: expected float32 \[batch=3, pages=5, frames / batch=2, heads=3, pairs, 2=2\], got",
        ),
        ("page_table", torch.zeros(3, 4, 1).int(), r"page_table: expected int32 \[pages\] or \[batch, pages\], got 3 dimensions"),
        ("page_table", torch.zeros(()).int(), r"page_table: expected int32 \[pages\] or \[batch, pages\], got 0 dimensions"),
        ("page_table", torch.zeros(3, 4), r"page_table: expected int32 \[batch, pages\], got float32 \[3, 4\]"),
        ("page_table", torch.zeros(3, 0).int(), r"page_table: expected int32 \[batch, pages\], got int32 \[3, 0\]"),
        ("page_table", torch.zeros(4, 3).int().T, "page_table: expected a contiguous tensor"),
        (
            "page_table",
            torch.tensor([[0, 1, 2, 3], [0, -1, -2, 3], [0, 1, 2, 3]]).int(),
            r"page_table\[1, 2\] is -2; the pool has pages 0 to 5, and -1 is a page that is not there",
        ),
        ("page_table", torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3], [6, 1, 2, 3]]).int(), r"page_table\[2, 0\] is 6"),
        ("rotation", torch.zeros(3, 4, 6, 3, 2, 2), r"rotation: expected .* got float32 \[3, 4, 6, 3, 2, 2\]"),
        ("rotation", torch.zeros(4, 3, 2, 3, 2, 2), "rotation: expected"),
        ("rotation", torch.zeros(4, 6, 3, 2, 2), "rotation: expected"),
        ("rotation", torch.zeros(3, 4, 2, 3, 5, 2), "rotation has 5 pairs, but dim = 8 holds only 4"),
        ("bias", torch.zeros(4, 3), r"bias: expected float32 \[batch=3, pages=4, heads=3\], got float32 \[4, 3\]"),
        ("bias", torch.zeros(3, 3, 4), "bias: expected"),
        ("mass", torch.zeros(3, 4, 6, 3), r"mass: expected float32 \[batch=3, pages=4, frames / batch=2, heads=3\], got"),
        ("mass", torch.zeros(4, 6, 3), "mass: expected"),
        ("mass", torch.zeros(1, 4, 2, 3).expand(3, 4, 2, 3), "mass: expected a contiguous tensor"),
        ("workspace", torch.zeros(100, dtype=torch.uint8), r"workspace has \d+ bytes .* expected \d+"),
    ],
)
def test_frame_attention_says_what_is_wrong_with_a_batch(name: str, value: object, message: str) -> None:
    _core.frame_attention(**batch_arguments())  # right as it is
    arguments = batch_arguments() | {name: value}
    with pytest.raises(ValueError, match=f"^frame_attention: {message}") as error:
        _core.frame_attention(**arguments)
    assert "\n" not in str(error.value)
    for output in {"out", "mass"} - {name}:
        assert (arguments[output] == 7).all()


def kv_arguments() -> dict[str, object]:
    frames, tokens, heads, dim = 2, 5, 3, 8
    return dict(
        q=torch.ones(frames, tokens, heads, dim),
        k=torch.ones(frames, tokens, heads, dim),
        v=torch.ones(frames, tokens, heads, dim),
        q_weight=torch.ones(heads, dim),
        k_weight=torch.ones(heads, dim),
        eps=1e-6,
        rotation=torch.ones(tokens, 2, 2),
        rotation_first_channel=4,
        q_out=torch.full((frames, tokens, heads, dim), 7.0),
        pages=torch.full((4, _core.page_elements("float32", tokens, heads, dim)), 7.0),
        page_table=torch.tensor([0, 3], dtype=torch.int32),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(q=None), "q is missing"),
        (dict(q_out=None), "q_out is missing"),
        (dict(v=None), "v is missing"),
        (dict(k=None), "k is missing"),
        (dict(q=None, q_out=None, k=None, v=None), "neither q nor k and v"),
        (dict(k=torch.ones(2, 5, 3, 8, dtype=torch.bfloat16)), "k: expected float32 .* got bfloat16"),
        (dict(v=torch.ones(2, 6, 3, 8)), r"v: expected float32 \[frames=2, tokens=5, heads=3, dim=8\]"),
        (dict(q_weight=torch.ones(24)), r"q_weight: expected float32 \[heads=3, dim=8\]"),
        (dict(eps=-1.0), "eps is -1"),
        (dict(rotation=torch.ones(4, 2, 2)), "rotation: expected"),
        (dict(rotation_first_channel=3), "rotation of 2 pairs from channel 3"),
        (dict(rotation_first_channel=6), "rotation of 2 pairs from channel 6"),
        (dict(rotation_first_channel=-2), "rotation of 2 pairs from channel -2"),
        (dict(page_table=torch.tensor([1, 1], dtype=torch.int32)), "frames 0 and 1 are both written to page 1"),
        (dict(page_table=torch.tensor([1, 4], dtype=torch.int32)), r"page_table\[1\] is 4"),
        (dict(page_table=torch.tensor([1, -1], dtype=torch.int32)), r"page_table\[1\] is -1; the pool has pages 0 to 3$"),
        (dict(page_table=None), "page_table is missing"),
        (dict(pages=None), "pages is missing"),
    ],
)
def test_kv_write_says_what_is_wrong(changes: dict, message: str) -> None:
    _core.kv_write(**kv_arguments())  # right as it is
    arguments = kv_arguments() | changes
    with pytest.raises(ValueError, match=f"^kv_write: {message}"):
        _core.kv_write(**arguments)
    for name in {"q_out", "pages"} - set(changes):
        assert (arguments[name] == 7).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(x=torch.ones(3, 4)), r"x: expected float32 \[frames, tokens, channels\]"),
        (dict(gate=torch.ones(2, 4), residual=None), "gate is given, but no residual"),
        (dict(residual=torch.ones(2, 3, 5)), "residual: expected"),
        (dict(scale=torch.ones(3, 4)), r"scale: expected float32 \[1 or frames=2, channels=4\]"),
        (dict(shift=torch.ones(2, 4, dtype=torch.bfloat16)), "shift: expected float32"),
        (dict(scale=None), "scale is missing"),
        (dict(eps=math.nan), "eps is"),
        (dict(x=torch.ones(1, 3, 4).expand(2, 3, 4)), "x is written, but its elements share memory"),
    ],
)
def test_modulated_norm_says_what_is_wrong(changes: dict, message: str) -> None:
    def arguments() -> dict[str, object]:
        ones = dict.fromkeys(("gate", "scale", "shift"), torch.ones(1, 4))
        return dict(x=torch.ones(2, 3, 4), residual=torch.ones(2, 3, 4), eps=1e-6, out=torch.full((2, 3, 4), 7.0), **ones)

    _core.modulated_norm(**arguments())
    wrong = arguments() | changes
    with pytest.raises(ValueError, match=f"^modulated_norm: {message}"):
        _core.modulated_norm(**wrong)
    assert (wrong["out"] == 7).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: _core.page_elements("float64", 1, 1, 2), ValueError, '"float64"'),
        (lambda: _core.page_elements("float16", 1, 1, 2), ValueError, "expected float32 or bfloat16, got float16"),
        (lambda: _core.page_elements("bfloat16", 1, 1, 2, "tpu"), ValueError, '"cpu" or "cuda", got "tpu"'),
        (lambda: _core.page_elements("float32", 1, 1, 3), _core.UnsupportedError, "dim is 3"),
        (lambda: _core.set_isa("z80"), ValueError, r'"z80"; this build and CPU have: .*scalar'),
        (lambda: _core.set_threads(0), ValueError, "0 threads"),
        (lambda: _core.Pool(0), ValueError, "pages is 0"),
        (lambda: _core.Window(_core.Pool(1), 1, 0), ValueError, "recent_frames 0"),
        (lambda: _core.phase_increments(np.zeros(2), np.zeros(3, np.uint64)), ValueError, "2 radians, but out has 3"),
        (lambda: _core.phase_increments(np.zeros(2), np.zeros(2)), ValueError, "out: expected a contiguous uint64"),
        (lambda: _core.normal(0, 0, 0, "out"), TypeError, "^out: expected a tensor .* got str"),
        (lambda: _core.Window(None, 1, 1), TypeError, "incompatible constructor arguments"),
        (lambda: _core.Pool.__new__(_core.Pool).acquire(), ValueError, "pool_acquire: a pointer is NULL"),
        (lambda: _core.Pool.__new__(_core.Pool).release(0), ValueError, "pool is NULL"),
        (lambda: _core.Window.__new__(_core.Window).advance(0, 1), ValueError, "window is NULL"),
        (lambda: _core.Window.__new__(_core.Window).read(), ValueError, "a pointer is NULL"),
        (lambda: _core.Window(_core.Pool.__new__(_core.Pool), 1, 1), RuntimeError, "holder|held"),
        (lambda: _core.Window.read(None), TypeError, "incompatible function arguments"),
        (lambda: _core.Pool.acquire(None), TypeError, "incompatible function arguments"),
    ],
)
def test_other_calls_say_what_is_wrong(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# ---- tensors from anywhere ---------------------------------------------------------------------------------------------------


def test_numpy_torch_and_capsules_are_the_same_to_it() -> None:
    expected = normal(3, 1, 4, 6)
    tensor, capsuled = torch.zeros(6), torch.zeros(6)
    _core.normal(3, 1, 4, tensor)
    _core.normal(3, 1, 4, capsuled.__dlpack__())
    _core.normal(3, 1, 4, torch.nn.Parameter(parameter := torch.zeros(6), requires_grad=False))
    for got in (tensor, capsuled, parameter):
        assert (got.numpy() == expected).all()
    view = torch.zeros(10)
    _core.normal(3, 1, 4, view[2:8])
    assert (view.numpy() == [0, 0, *expected, 0, 0]).all()


def test_an_array_that_is_only_read_may_be_read_only() -> None:
    """But none is written, nor is a copy that its owner would never see."""
    turns, offsets = np.array([[1 << 60]], dtype=np.uint64), np.array([[3]], dtype=np.int64)
    expected = np.zeros((1, 1, 1, 1, 2), dtype=np.float32)
    _core.rotation_table(turns, offsets, expected)
    out = np.zeros_like(expected)
    for array in (turns, offsets):
        array.flags.writeable = False
    _core.rotation_table(turns, offsets, out)
    assert (out == expected).all() and out.any()
    out.flags.writeable = False
    with pytest.raises(ValueError, match=r"^out: it is written, but its memory is read-only"):
        _core.rotation_table(turns, offsets, out)
    copied = Capsule((1, 4, 8), version=(1, 0), flags=2)
    with pytest.raises(ValueError, match=r"^x: it is written, but what came over DLPack is a copy"):
        _core.gelu(copied)
    assert list(copied.numbers) == list(range(64))


def test_versions_of_dlpack() -> None:
    """All of version 1 are alike in what is read, and one without a version too; of others nothing is known."""
    plain = Capsule((1, 4, 8))
    _core.gelu(plain.capsule)
    for version in ((1, 0), (1, 99)):
        same = Capsule((1, 4, 8), version=version)
        _core.gelu(same)
        assert list(same.numbers) == list(plain.numbers) != list(range(64))
    for version in ((0, 0), (2, 0), (9, 1)):
        other = Capsule((1, 4, 8), version=version, ndim=2**31 - 1, data=8, shape=8)
        with pytest.raises(ValueError, match=f"^x: DLPack of version {version[0]}; expected version 1"):
            _core.gelu(other)


def test_what_is_no_capsule_of_a_tensor() -> None:
    taken = torch.zeros(1, 4, 8).__dlpack__()
    torch.from_dlpack(taken)

    class Strange:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

        def __dlpack__(self, **options: object) -> object:
            return None

    for nothing in (taken, Strange()):
        with pytest.raises(ValueError, match=r"^x: expected a DLPack capsule"):
            _core.gelu(nothing)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (Capsule((1, 4, 8), ndim=2**31 - 1), "got float32 of 2147483647 dimensions"),
        (Capsule((1, 4, 8), ndim=-1), "got float32 without a shape"),
        (Capsule((1, 4, 8), shape=None), "got float32 without a shape"),
        (Capsule((1, 4, 8), data=None, byte_offset=4), "its data pointer is NULL"),
        (Capsule((1, 4, 8), byte_offset=2), "not aligned"),
        (Capsule((2, 4, 8), (2**62, 8, 1)), "no memory holds"),
        (Capsule((1, 4, 8), lanes=2), "float32x2"),
    ],
)
def test_what_a_capsule_may_say(tensor: Capsule, message: str) -> None:
    with pytest.raises(ValueError, match=f"^gelu: x: .*{message}|^gelu: x: expected float32 or bfloat16, got {message}"):
        _core.gelu(tensor.capsule)
    assert list(tensor.numbers) == list(range(64))


def test_a_capsule_without_a_shape_is_no_vector() -> None:
    for wrong in (Capsule((4,), bits=64, shape=None), Capsule((-1,), bits=64)):
        with pytest.raises(ValueError, match="radians: expected a contiguous float64"):
            _core.phase_increments(wrong.capsule, np.zeros(4, np.uint64))
    for wrong in (Capsule((64,), code=1, bits=8, shape=None), Capsule((-(2**62),), code=1, bits=8)):
        with pytest.raises(ValueError, match="workspace: expected a contiguous uint8"):
            _core.frame_attention(**attention_arguments() | {"workspace": wrong.capsule})


def test_data_may_begin_within_their_buffer() -> None:
    """DLPack's byte_offset, and rows that go backwards."""
    x = Capsule((2, 2, 8), (-16, 8, 1), byte_offset=4 * 32)
    expected = torch.arange(64.0)
    expected[16:48] = torch.nn.functional.gelu(expected[16:48], approximate="tanh")
    _core.gelu(x)
    torch.testing.assert_close(torch.tensor(list(x.numbers)), expected)


def test_a_tensor_that_is_to_be_negated_is_refused() -> None:
    """torch's imaginary part of a conjugate is memory that holds the opposite of it."""
    x = torch.ones(1, 4, 8, dtype=torch.complex64).mul(1 + 2j).conj().imag
    assert x.is_neg() and (x == -2).all()
    with pytest.raises(ValueError, match=r"^sample: its memory holds the negative"):
        _core.sampler_step(x.reshape(-1), 0.0, torch.zeros(32), 0.0, None, torch.zeros(32))
    out = torch.zeros(32)
    _core.sampler_step(x.resolve_neg().reshape(-1), 0.0, torch.zeros(32), 0.0, None, out)
    assert (out == -2).all()
