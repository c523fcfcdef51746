"""The launchers' calls of the CUDA runtime: csrc/cuda/device/launch.cuh as it ships, with a runtime that records every call and can let
any of them fail (tests/cuda/simt/cuda_runtime.h). The kernels run on the emulator, not on a GPU."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from emulated import AbiError, Emulated, Manner, Note
from emulated_device import EmulatedCore
from fp8 import FP8
from interpreted import RUNNER
from sparse import sparse
from test_emulated_attention import CudaAttention
from torch import Tensor

pytestmark = pytest.mark.whole

STREAM = 0x5EED
LAUNCH, ALLOW = b"cudaLaunchKernel", b"cudaFuncSetAttribute"
INTERNAL, UNSUPPORTED = 4, 2
SOMEBODY_ELSES = 700  # an illegal address, which an earlier kernel has accessed
CUT = dict(dim=128, tokens=9, page_tokens=520, pages=2, frames=1, heads=1)


@pytest.fixture
def runtime(emulated_library: Emulated) -> Iterator[Emulated]:
    emulated_library.settings()
    emulated_library.manner = Manner(stream=STREAM)
    yield emulated_library
    emulated_library.manner = Manner()
    emulated_library.settings()


def attention(runtime: Emulated, probe: bool, **shape: int) -> Callable[[], Tensor]:
    case = CudaAttention(torch.bfloat16, cuda=runtime, **shape)

    def run() -> Tensor:
        out, mass = case.run(probe=probe)
        return torch.cat([out.float().flatten(), mass.flatten()]) if probe else out

    return run


def rows(runtime: Emulated, op: str) -> Callable[[], Tensor]:
    x = torch.randn(2, 5, 4, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    channels, ones = x.flatten(2), torch.ones(1, 512)
    table = torch.tensor([2, 0], dtype=torch.int32)

    def pages(dtype: torch.dtype) -> Tensor:
        return torch.zeros(3, runtime.page_elements(dtype, 5, 4, 128), dtype=torch.uint8 if dtype == FP8 else dtype).view(dtype)

    def run() -> Tensor:
        out = channels.clone()
        if op == "gelu":
            runtime.gelu(out)
        elif op == "modulated_norm":
            runtime.modulated_norm(x=channels, scale=ones, shift=ones, out=out, eps=1e-6)
        elif op == "sampler_step":
            out = out.float().flatten()
            runtime.sampler_step(level=0.9, after=0.3, sample=out, velocity=out.clone(), out=out)
        else:
            queries, pool = torch.zeros_like(x), pages(FP8 if op == "kv_write of 8 bits" else torch.bfloat16)
            runtime.kv_write(q=x, q_out=queries, k=x, v=x, pages=pool, page_table=table, eps=1e-6)
            return torch.cat([queries.view(torch.uint8).flatten(), pool.view(torch.uint8).flatten()])
        return out

    return run


@dataclass(frozen=True)
class Op:
    name: str
    """The name as messages have it."""
    launches: int
    make: Callable[[Emulated], Callable[[], Tensor]]
    architecture: int = 800


# With a tile that is cut and the probe, attention launches all of its kernels.
SMALL = dict(dim=64, tokens=9, page_tokens=20, pages=2, heads=2, frames=1)
OPS = {
    "attention": Op("frame_attention", 3, lambda runtime: attention(runtime, True, **CUT)),
    "attention on sm_90": Op("frame_attention", 3, lambda runtime: attention(runtime, True, **CUT), 900),
    "attention alone": Op("frame_attention", 1, lambda runtime: attention(runtime, False, **SMALL), 860),
    "kv_write": Op("kv_write", 1, lambda runtime: rows(runtime, "kv_write")),
    "kv_write of 8 bits": Op("kv_write", 4, lambda runtime: rows(runtime, "kv_write of 8 bits")),
    "modulated_norm": Op("modulated_norm", 1, lambda runtime: rows(runtime, "modulated_norm")),
    "gelu": Op("gelu", 1, lambda runtime: rows(runtime, "gelu")),
    "sampler_step": Op("sampler_step", 1, lambda runtime: rows(runtime, "sampler_step")),
}
ops = pytest.mark.parametrize("op", OPS)


def prepared(runtime: Emulated, op: str) -> Callable[[], Tensor]:
    runtime.settings(architecture=OPS[op].architecture)
    return OPS[op].make(runtime)


def launches(notes: list[Note]) -> list[Note]:
    return [note for note in notes if note.name == LAUNCH]


@ops
def test_every_launch_is_on_the_stream_and_allowed_its_memory(runtime: Emulated, op: str) -> None:
    run = prepared(runtime, op)
    run()
    notes = runtime.notes()
    assert len(launches(notes)) == OPS[op].launches
    assert {note.stream for note in launches(notes)} == {STREAM}
    assert {note.error for note in notes} == {0}
    for at, note in enumerate(notes):
        if note.name == LAUNCH and note.shared_bytes > 48 * 1024:
            before = notes[at - 1]
            assert (before.name, before.kernel, before.value) == (ALLOW, note.kernel, note.shared_bytes)


@ops
def test_any_call_may_fail(runtime: Emulated, op: str) -> None:
    """The op's own error comes, nothing is launched after it, the runtime keeps no error for the caller's next kernel, and the same call
    later gives the right bits."""
    run = prepared(runtime, op)
    expected = run()
    calls = len(runtime.notes())
    for n in range(1, calls + 1):
        runtime.restart_runtime(failing_call=n)
        with pytest.raises(AbiError, match=rf"^{OPS[op].name}: CUDA: unknown error$") as error:
            run()
        assert error.value.status == INTERNAL
        after = runtime.notes()[n:]
        assert launches(after) == [], f"call {n} of {calls}, {runtime.notes()[n - 1].name}"
        assert runtime.last_error() == 0
    runtime.restart_runtime()
    assert torch.equal(run(), expected)


@pytest.mark.parametrize("error", [35, 100], ids=["no driver", "no device"])
@ops
def test_without_a_gpu_the_op_is_unsupported(runtime: Emulated, op: str, error: int) -> None:
    """Whichever call of the runtime is the first to say so. A call of the driver cannot be."""
    run = prepared(runtime, op)
    run()
    for n, call in enumerate(runtime.notes(), 1):
        if not call.name.startswith(b"cuda"):
            continue
        runtime.restart_runtime(failing_call=n, error=error)
        with pytest.raises(AbiError, match=rf"^{OPS[op].name}: a tensor is on CUDA, but .* no GPU or no driver .*; use the CPU$") as raised:
            run()
        assert raised.value.status == UNSUPPORTED and runtime.last_error() == 0
    runtime.restart_runtime()


@ops
def test_an_error_of_somebody_elses_is_not_the_ops(runtime: Emulated, op: str) -> None:
    """The op does not clear it either, so others can still ask for it."""
    run = prepared(runtime, op)
    runtime.leave_error(SOMEBODY_ELSES)
    run()
    assert runtime.last_error() == SOMEBODY_ELSES


@ops
def test_tensors_of_another_device_than_the_current_one(runtime: Emulated, op: str) -> None:
    run = prepared(runtime, op)
    expected = run()
    runtime.manner = Manner(device=1, stream=STREAM)
    runtime.restart_runtime()
    with pytest.raises(AbiError, match=r": the tensors are on CUDA device 1, but the current one is 0; make theirs current") as error:
        run()
    assert error.value.status == UNSUPPORTED and launches(runtime.notes()) == []
    runtime.restart_runtime(device=1)
    assert torch.equal(run(), expected)
    assert {note.device for note in runtime.notes()} == {1}


def test_a_failure_keeps_no_tensor(runtime: Emulated, core: EmulatedCore) -> None:
    """Through the binding."""
    x = torch.zeros(1, 2, 8, dtype=torch.bfloat16)
    runtime.restart_runtime(failing_call=1)
    with pytest.raises(RuntimeError, match="gelu: CUDA: unknown error"):
        core.gelu(x)
    runtime.buffers([])
    alive = weakref.ref(x)
    del x
    gc.collect()
    assert alive() is None


def test_a_block_may_have_no_more_memory_than_the_device_gives(runtime: Emulated) -> None:
    """The replacement itself follows the table in the programming guide: sm_86 has less shared memory than code for sm_90 requests."""
    run = prepared(runtime, "attention on sm_90")
    runtime.settings(architecture=900, device=860)
    with pytest.raises(AbiError, match="frame_attention: CUDA: invalid argument"):
        run()
    assert launches(runtime.notes()) == [] and runtime.last_error() == 0


@pytest.mark.parametrize("device", [800, 860, 870, 890, 900, 1000, 1030, 1100, 1200, 1210])
def test_the_kernel_is_that_of_the_code_that_is_loaded(runtime: Emulated, device: int) -> None:
    """The driver may compile the PTX of compute_80 on every device, and then the tile is that of sm_80. Two kernels report the tile
    size."""
    case = CudaAttention(torch.bfloat16, dim=128, cuda=runtime, tokens=3, page_tokens=3, pages=1, frames=1, heads=1)
    kernels = {}
    for architecture in (800, 860, 900):
        runtime.settings(architecture=architecture)
        case.run()
        kernels[architecture] = launches(runtime.notes())[0].kernel
    assert len(set(kernels.values())) == 3
    runtime.settings(architecture=800, device=device)
    case.run()
    assert launches(runtime.notes())[0].kernel == kernels[800]


# ---- sizes at the limits of grids, with which no kernel is run ----


@pytest.fixture
def noted(runtime: Emulated) -> Iterator[Emulated]:
    runner = RUNNER(lambda _: None)
    runtime.runs_with(runner)
    yield runtime
    runtime.runs_with(None)


def grid(runtime: Emulated) -> tuple[int, ...]:
    """Of the one launch."""
    (launched,) = launches(runtime.notes())
    runtime.restart_runtime()
    return tuple(launched.blocks)


def test_rows_at_the_limit_of_a_grid(noted: Emulated) -> None:
    x = sparse(1, 2**32 + 1, 8, dtype=torch.bfloat16)
    most, ones = x[:, :-1], torch.ones(1, 8)
    noted.gelu(most)
    assert grid(noted) == (2**30, 1, 1)
    noted.modulated_norm(x=most, scale=ones, shift=ones, out=most)
    assert grid(noted) == (2**30, 1, 1)
    noted.sampler_step(level=0.9, after=0.0, sample=(values := sparse(2**34, dtype=torch.float32)), velocity=values, out=values)
    assert grid(noted) == (2**26, 1, 1)
    with pytest.raises(AbiError, match=r"gelu: 4294967297 rows; a grid has at most 2\^32"):
        noted.gelu(x)
    with pytest.raises(AbiError, match=r"modulated_norm: 4294967297 rows; a grid has at most 2\^32"):
        noted.modulated_norm(x=x, scale=ones, shift=ones, out=x)
    assert noted.notes() == []


def test_batches_and_pages_at_the_limit_of_a_grid(noted: Emulated) -> None:
    """65535 pages, which are cut into parts, or as many entries; and one more of each."""
    pool, most = torch.zeros(1, noted.page_elements(torch.bfloat16, 1, 1, 64), dtype=torch.bfloat16), 65535

    def attend(entries: int, pages: int) -> None:
        q, table = torch.zeros(entries, 1, 1, 64, dtype=torch.bfloat16), torch.zeros(entries, pages, dtype=torch.int32)
        mass = torch.zeros(entries, pages, 1, 1)
        noted.frame_attention(q=q, pages=pool, page_tokens=1, page_table=table, out=q, mass=mass)

    attend(most, 1)
    assert [tuple(note.blocks) for note in launches(noted.notes())] == [(1, most, 1), (1, most, 1)]
    noted.restart_runtime()
    attend(1, most)
    assert len(launches(noted.notes())) == 3
    for entries, pages in ((most + 1, 1), (1, most + 1)):
        noted.restart_runtime()
        with pytest.raises(AbiError, match=r"frame_attention: 1 heads, .* rows of queries; there may be 65535"):
            attend(entries, pages)
        assert launches(noted.notes()) == []
