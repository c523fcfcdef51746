"""The extension's errors for bad input: one line that says what is wrong, and nothing is written."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from capsules import Capsule

from lolrt import _core


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


def test_a_capsule_without_a_shape_is_no_vector() -> None:
    for wrong in (Capsule((4,), bits=64, shape=None), Capsule((-1,), bits=64), Capsule((4,), bits=64, byte_offset=4)):
        with pytest.raises(ValueError, match="radians: expected a contiguous float64"):
            _core.phase_increments(wrong.capsule, np.zeros(4, np.uint64))
    for wrong in (Capsule((64,), code=1, bits=8, shape=None), Capsule((-(2**62),), code=1, bits=8)):
        with pytest.raises(ValueError, match="workspace: expected a contiguous uint8"):
            _core.frame_attention(**attention_arguments() | {"workspace": wrong.capsule})
