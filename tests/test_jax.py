"""The ops through JAX, jitted and not: the bits of `lolrt.ops`, memory that is updated in place, and JAX's errors."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lolrt import ops

pytestmark = pytest.mark.slow  # JAX is not installed for the others: `make test-slow` does it

jax = pytest.importorskip("jax", reason="JAX is not installed")
jnp = jax.numpy

FRAMES, TOKENS, HEADS, DIM, PAGES, POOL = 2, 21, 3, 32, 4, 6


@pytest.fixture(scope="module")
def lolrt_jax() -> Any:
    import lolrt.jax

    return lolrt.jax


@pytest.fixture(params=[False, True], ids=["called", "jitted"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Calls a function of arrays."""
    return lambda function, *arrays: (jax.jit(function) if request.param else function)(*arrays)


def to_jax(x: torch.Tensor) -> Any:
    bits = {torch.bfloat16: torch.int16}.get(x.dtype, x.dtype)
    array = x.contiguous().view(bits).numpy()
    return jnp.array(array.view(jnp.bfloat16) if x.dtype == torch.bfloat16 else array)


def same(array: Any, x: torch.Tensor) -> bool:
    return np.array_equal(np.asarray(array).view(np.uint8), x.contiguous().view(torch.uint8).numpy())


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def case(request: pytest.FixtureRequest) -> SimpleNamespace:
    torch.manual_seed(0)
    dtype = request.param
    q, k, v = torch.randn(3, FRAMES, TOKENS, HEADS, DIM).to(dtype)
    angle = torch.rand(PAGES, FRAMES, HEADS, DIM // 2) * 6
    elements = ops.page_elements(dtype, TOKENS, HEADS, DIM)
    return SimpleNamespace(
        q=q, k=k, v=v, weight=torch.rand(HEADS, DIM).to(dtype), pages=torch.randn(POOL, elements).to(dtype),
        spatial=torch.stack([angle[0, 0, 0].cos(), angle[0, 0, 0].sin()], -1).expand(TOKENS, -1, -1).contiguous(),
        write_table=torch.tensor([4, 1], dtype=torch.int32), page_table=torch.tensor([5, 0, 1, 4], dtype=torch.int32),
        rotation=torch.stack([angle.cos(), angle.sin()], -1), bias=torch.randn(PAGES, HEADS),
    )  # fmt: skip


def test_pages_and_attention_have_the_same_bits(lolrt_jax: Any, run: Callable[..., Any], case: SimpleNamespace) -> None:
    expected = case.pages.clone()
    ops.kv_write(case.k, case.v, expected, case.write_table, weight=case.weight, rotation=case.spatial)
    write = lambda k, v, pages, table, weight, rotation: lolrt_jax.kv_write(k, v, pages, table, weight=weight, rotation=rotation)  # noqa: E731
    before = to_jax(case.pages)
    pages = run(write, *map(to_jax, (case.k, case.v)), before, *map(to_jax, (case.write_table, case.weight, case.spatial)))
    assert same(pages, expected) and same(before, case.pages), "arrays of JAX do not change"

    mass = torch.empty(PAGES, FRAMES, HEADS)
    q = ops.normalize_queries(case.q, weight=case.weight)
    wanted = ops.frame_attention(q, expected, case.page_table, TOKENS, rotation=case.rotation, bias=case.bias, mass=mass)

    def attend(q: Any, weight: Any, pages: Any, table: Any, rotation: Any, bias: Any) -> Any:
        q = lolrt_jax.normalize_queries(q, weight=weight)
        return lolrt_jax.frame_attention(q, pages, table, TOKENS, rotation=rotation, bias=bias, probe=True)

    out, found = run(attend, *map(to_jax, (case.q, case.weight)), pages, *map(to_jax, (case.page_table, case.rotation, case.bias)))
    assert same(out, wanted) and same(found, mass)


def test_a_batch_of_sessions(lolrt_jax: Any, run: Callable[..., Any], case: SimpleNamespace) -> None:
    table = torch.tensor([[5, 0, -1], [1, 4, 2]], dtype=torch.int32)
    mass = torch.empty(2, 3, 1, HEADS)
    wanted = ops.frame_attention(case.q, case.pages, table, TOKENS, mass=mass)
    attend = partial(lolrt_jax.frame_attention, page_tokens=TOKENS, probe=True)
    out, found = run(attend, *map(to_jax, (case.q, case.pages, table)))
    assert same(out, wanted) and same(found, mass)


def test_rows_have_the_same_bits(lolrt_jax: Any, run: Callable[..., Any], case: SimpleNamespace) -> None:
    x, residual = (part.flatten(2).contiguous() for part in (case.q, case.k))
    gate, scale, shift = torch.randn(3, 1, HEADS * DIM)
    expected = x.clone()
    wanted = ops.modulated_norm(expected, scale, shift, residual=residual, gate=gate, eps=1e-5)
    norm = lambda x, r, g, a, b: lolrt_jax.modulated_norm(x, a, b, residual=r, gate=g, eps=1e-5)  # noqa: E731
    updated, out = run(norm, *map(to_jax, (x, residual, gate, scale, shift)))
    assert same(out, wanted) and same(updated, expected)
    alone, out = run(lolrt_jax.modulated_norm, *map(to_jax, (x, scale, shift)))
    assert same(alone, x) and same(out, ops.modulated_norm(x.clone(), scale, shift))
    activated = x.clone()
    ops.gelu(activated)
    assert same(run(lolrt_jax.gelu, to_jax(x)), activated)
    sample, velocity, noise = torch.randn(3, 4, 5)
    step = lambda s, v, n: lolrt_jax.sampler_step(s, 0.7, v, after=0.3, noise=n)  # noqa: E731
    assert same(run(step, *map(to_jax, (sample, velocity, noise))), ops.sampler_step(sample, 0.7, velocity, after=0.3, noise=noise))


def test_attention_on_plain_arrays(lolrt_jax: Any, run: Callable[..., Any], case: SimpleNamespace) -> None:
    k, v = torch.randn(2, PAGES, TOKENS, HEADS, DIM).to(case.q.dtype)
    wanted, mass = ops.attention(case.q, k, v, case.rotation, case.bias, probe=True)
    out, found = run(partial(lolrt_jax.attention, probe=True), *map(to_jax, (case.q, k, v, case.rotation, case.bias)))
    assert same(out, wanted) and same(found, mass)


def test_donated_pages_are_written_where_they_are(lolrt_jax: Any, case: SimpleNamespace) -> None:
    write = jax.jit(lolrt_jax.kv_write, donate_argnums=2)
    pages = to_jax(case.pages)
    where = pages.unsafe_buffer_pointer()
    written = write(*map(to_jax, (case.k, case.v)), pages, to_jax(case.write_table))
    assert written.unsafe_buffer_pointer() == where


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.gelu(jnp.zeros(3)), r"gelu: x: expected float32 \[frames, tokens, channels\], got float32 \[3\]"),
        (lambda m: m.gelu(jnp.zeros((1, 2, 4), jnp.int16)), "type of numbers that no op takes"),
        (lambda m: m.frame_attention(jnp.zeros((1, 2, 3, 4)), jnp.zeros((2, 3)), jnp.zeros(1, jnp.int32), 2), "frame_attention: pages"),
        (lambda m: m.frame_attention(jnp.zeros((1, 2, 3, 5)), jnp.zeros((2, 3)), jnp.zeros(1, jnp.int32), 2), "dim"),
    ],
)
def test_mistakes_are_errors_of_jax(lolrt_jax: Any, run: Callable[..., Any], call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match=message):
        jax.block_until_ready(run(lambda: call(lolrt_jax)))
    assert same(lolrt_jax.gelu(jnp.zeros((1, 2, 4))), torch.zeros(1, 2, 4)), "goes on"


@pytest.mark.parametrize(("before", "version"), [("MINOR 0", "0.0"), ("MAJOR 1", "1.")])
def test_a_jax_of_another_version_is_told(before: str, version: str, tmp_path: Path) -> None:
    """And it goes on without lolrt. Handlers that were built for an older minor version are XLA's to take."""
    headers = shutil.copytree(jax.ffi.include_dir(), tmp_path / "include")
    header = headers / "xla" / "ffi" / "api" / "c_api.h"
    header.write_text(re.sub(rf"(#define XLA_FFI_API_){before[:-1]}\d+", rf"\g<1>{before}", header.read_text()))
    script = f"""
import jax
jax.ffi.include_dir = lambda: {str(headers)!r}
try:
    import lolrt.jax
except ImportError as error:
    print(error)
assert jax.numpy.ones(2).sum() == 2
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    told = (
        rf"lolrt.jax was built for version \d\.\d of XLA's FFI, and jaxlib [\d.]+ has {version}\d?: update jaxlib, or build lolrt with it"
        r" \(pip install .*\)\n"
    )
    assert done.returncode == 0 and re.fullmatch(told, done.stdout), done.stdout + done.stderr


def test_a_jax_without_the_interface_is_told() -> None:
    done = subprocess.run([sys.executable, "-c", "import jax; del jax.ffi; import lolrt.jax"], capture_output=True, text=True)
    assert done.stderr.endswith(f"lolrt.jax needs jax 0.5 or newer, and this is jax {jax.__version__}: pip install -U 'jax[cpu]'\n")


def test_the_example_runs() -> None:
    example = Path(__file__).parent.parent / "examples" / "embed_jax" / "block.py"
    done = subprocess.run([sys.executable, example], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("12 pages") == 3, done.stdout + done.stderr
