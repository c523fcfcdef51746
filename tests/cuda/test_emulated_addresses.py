"""Addresses beyond 2^31 elements and 4 GiB, for every op of csrc/cuda, emulated, and interpreted from what nvcc makes of it, as in
tests/test_addresses.py. Contiguous tensors of that size are not computed completely: only the last blocks of a launch run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from emulated import Emulated, Manner
from fp8 import FP8
from interpreted import Interpreted
from sparse import APART, apart, sparse
from torch import Tensor

whole = pytest.mark.whole

HEADS, TOKENS, DIM = 2, 5, 128
BF16 = torch.bfloat16


def randn(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def attend(cuda: Emulated, t: dict[str, Tensor]) -> None:
    cuda.frame_attention(q=t["q"], pages=t["pages"], page_table=torch.tensor([2, 0], dtype=torch.int32), page_tokens=TOKENS, out=t["out"])


def write(cuda: Emulated, t: dict[str, Tensor]) -> None:
    weight, table = torch.ones(HEADS, DIM, dtype=BF16), torch.tensor([2, 0], dtype=torch.int32)
    cuda.kv_write(q=t["q"], k=t["k"], v=t["v"], q_weight=weight, eps=1e-6, q_out=t["out"], pages=t["pages"], page_table=table)


def norm(cuda: Emulated, t: dict[str, Tensor]) -> None:
    ones = torch.ones(1, DIM)
    cuda.modulated_norm(
        x=t["out2"], residual=t["x"], gate=randn(2, DIM, dtype=torch.float32), scale=ones, shift=ones, out=t["out"], eps=1e-6
    )


OPS: dict[str, Callable[[Emulated, dict[str, Tensor]], None]] = {
    "frame_attention": attend,
    "frame_attention of 8 bits": attend,
    "kv_write": write,
    "kv_write of 8 bits": write,
    "modulated_norm": norm,
    "gelu": lambda cuda, t: cuda.gelu(t["out"]),
}


def tensors(cuda: Emulated, op: str) -> dict[str, Tensor]:
    heads, rows = (2, TOKENS, HEADS, DIM), (2, TOKENS, DIM)
    pages = randn(3, cuda.page_elements(FP8 if "8 bits" in op else BF16, TOKENS, HEADS, DIM), dtype=FP8 if "8 bits" in op else BF16)
    if op.startswith("frame_attention"):
        return {"q": randn(*heads), "pages": pages, "out": torch.zeros(heads, dtype=BF16)}
    if op.startswith("kv_write"):
        return {name: randn(*heads) for name in ("q", "k", "v", "out")} | {"pages": pages}
    return {"gelu": {"out": randn(*rows)}, "modulated_norm": {name: randn(*rows) for name in ("x", "out", "out2")}}[op]


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def compare(cuda: Emulated, op: str) -> None:
    packed = tensors(cuda, op)
    OPS[op](cuda, packed)
    for name, x in packed.items():
        for dim in range(1 if name == "pages" else x.ndim - 1):
            far = tensors(cuda, op)
            far[name] = apart(far[name].view(torch.uint8), dim).view(FP8) if x.dtype == FP8 else apart(far[name], dim)
            OPS[op](cuda, far)
            assert all(torch.equal(bits(far[each]), bits(packed[each])) for each in packed), f"{name}, dimension {dim}"


@whole
@pytest.mark.parametrize(("op", "architecture"), [*((op, 800) for op in OPS), ("frame_attention", 860), ("frame_attention", 900)])
def test_rows_that_are_far_apart(emulated_library: Emulated, op: str, architecture: int) -> None:
    emulated_library.settings(architecture=architecture)
    compare(emulated_library, op)
    emulated_library.settings()


@whole
@pytest.mark.parametrize("op", OPS)
def test_rows_that_are_far_apart_as_compiled(ptx: Interpreted, op: str) -> None:
    compare(ptx, op)


@whole
def test_pages_that_are_far_apart_as_compiled_for_sm_90(ptx_of_sm90: Interpreted) -> None:
    compare(ptx_of_sm90, "frame_attention")


@whole
@pytest.mark.parametrize("op", OPS)
def test_tensors_that_begin_at_an_offset(emulated_library: Emulated, op: str) -> None:
    """As DLPack permits: a pointer to other numbers, a `byte_offset`, and no strides if there are no gaps."""
    packed = tensors(emulated_library, op)
    OPS[op](emulated_library, packed)
    within = {name: beside_others(x) for name, x in tensors(emulated_library, op).items()}
    emulated_library.manner = Manner(by_offset=True)
    try:
        OPS[op](emulated_library, within)
    finally:
        emulated_library.manner = Manner()
    assert all(torch.equal(bits(within[each]), bits(packed[each])) for each in packed)


def beside_others(x: Tensor) -> Tensor:
    """The same, 128 bytes after the start of memory with other numbers."""
    count = x.numel() * x.element_size()
    memory = torch.randint(0, 100, (count + 256,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    memory[128 : 128 + count] = bits(x).flatten()
    return memory[128 : 128 + count].view(x.dtype).view(x.shape)


@pytest.fixture(params=["emulated", "compiled"])
def last_block(request: pytest.FixtureRequest, emulated_library: Emulated) -> Iterator[Emulated]:
    """Runs only the last block of each launch."""
    if request.param == "emulated":
        emulated_library.settings(last_blocks=1)
        yield emulated_library
        emulated_library.settings()
    else:
        ptx = request.getfixturevalue("ptx")
        ptx.last_blocks = 1
        yield ptx
        ptx.last_blocks = 0


@whole
def test_a_sampler_step_of_more_elements(last_block: Emulated) -> None:
    sample, velocity, noise, out = (sparse(APART, dtype=torch.float32) for _ in range(4))
    for x in (sample, velocity, noise):
        x[-64:] = randn(64, dtype=torch.float32)
    last_block.sampler_step(level=0.9, after=0.3, sample=sample, velocity=velocity, noise=noise, out=out)
    expected = torch.zeros(64)
    last_block.sampler_step(level=0.9, after=0.3, sample=sample[-64:], velocity=velocity[-64:], noise=noise[-64:], out=expected)
    assert torch.equal(out[-64:], expected) and expected.any()


@whole
def test_a_rotation_of_more_elements(last_block: Emulated) -> None:
    """Of the queries of very many tokens; only the last block runs."""
    tokens, pairs = 2**24, 64 + 1
    q, out = (sparse(tokens, 2 * 72, dtype=BF16).view(1, tokens, 1, 2 * 72) for _ in range(2))
    rotation = sparse(tokens, pairs, 2, dtype=torch.float32)
    assert rotation.numel() > 2**31
    q[:, -4:], rotation[-4:] = randn(1, 4, 1, 2 * 72), randn(4, pairs, 2, dtype=torch.float32)
    last_block.kv_write(q=q, rotation=rotation, eps=1e-6, q_out=out)
    expected = torch.empty(1, 4, 1, 2 * 72, dtype=BF16)
    last_block.kv_write(q=q[:, -4:], rotation=rotation[-4:], eps=1e-6, q_out=expected)
    assert torch.equal(out[:, -4:], expected) and expected.any()


@pytest.mark.slow
def test_attention_to_a_page_of_more_elements(last_block: Emulated) -> None:
    """With very many heads, K of the last head lies beyond 2^31 elements, and V beyond that."""
    heads, tokens = 4096, 4112
    part = heads * tokens * DIM
    pool = sparse(1, last_block.page_elements(BF16, tokens, heads, DIM), dtype=BF16)
    assert part > 2**31
    k, v = (pool[0, start : start + part].view(heads, tokens, DIM) for start in (0, part))
    k[-1], v[-1] = randn(tokens, DIM), randn(tokens, DIM)
    q, out = torch.zeros(1, 1, heads, DIM, dtype=BF16), torch.zeros(1, 1, heads, DIM, dtype=BF16)
    q[..., -1, :] = randn(1, 1, DIM)
    table = torch.zeros(1, dtype=torch.int32)
    last_block.frame_attention(q=q, pages=pool, page_table=table, page_tokens=tokens, out=out)
    one = torch.cat([k[-1:].flatten(), v[-1:].flatten()])[None]
    expected = torch.zeros(1, 1, 1, DIM, dtype=BF16)
    last_block.frame_attention(q=q[:, :, -1:], pages=one, page_table=table, page_tokens=tokens, out=expected)
    assert torch.equal(out[:, :, -1:], expected) and expected.any()
