"""Planted bugs in the launches of kernels (csrc/cuda/device/launch.cuh and the launchers), and the test of test_runtime.py that finds
each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import planted
import pytest
import test_emulated_attention as attention
import test_runtime as runtime
from emulated import AbiError, Emulated, Manner

pytestmark = pytest.mark.slow

LAUNCH = "device/launch.cuh"


@dataclass(frozen=True)
class LaunchMutation:
    """`op` is the op that is called, from test_runtime.OPS."""

    name: str
    old: str
    new: str
    finds: str
    op: str = "gelu"
    kernel: str = "gelu"
    file: str = LAUNCH


def attends(name: str, old: str, new: str, finds: str, file: str = "frame_attention.cu", op: str = "attention") -> LaunchMutation:
    return LaunchMutation(name, old, new, finds, op, "frame_attention", file)


def attends_90(name: str, old: str, new: str, finds: str) -> LaunchMutation:
    return LaunchMutation(name, old, new, finds, "attention on sm_90", "frame_attention_sm90", "frame_attention_sm90.cu")


def fp8(name: str, old: str, new: str, finds: str) -> LaunchMutation:
    return LaunchMutation(name, old, new, finds, "kv_write of 8 bits", "kv_write_fp8", "kv_write_fp8.cu")


ALLOWED = "    error = cudaFuncSetAttribute(kernel,"
LAUNCHED = "    error = cudaLaunchKernel(kernel,"
CURRENT = "  if (current.status != LOLRT_OK) return current;\n  cudaError_t error = cudaSuccess;"
SIZE = "dim3(grid.x, grid.y, grid.z)"
WORKSPACE = "*bytes = Workspace(op, split_of(op, device)).bytes;\n  return found;"
REFUSED = "  if (error != nullptr) return problem"
GOES_ON = "DID NOT RAISE"
MUTATIONS = [
    LaunchMutation("the default stream", "static_cast<cudaStream_t>(target.stream)", "nullptr", "every launch"),
    LaunchMutation("the device is not compared", "current == target.device.id", "true", f"device: {GOES_ON}"),
    LaunchMutation("launched all the same", CURRENT, CURRENT.replace("return current", "(void)current"), "fail: |device: "),
    LaunchMutation("an error of the launch is not looked at", LAUNCHED, LAUNCHED.replace("error =", "(void)"), f"fail: {GOES_ON}"),
    LaunchMutation("an error stays with the runtime", "  cudaGetLastError();\n  return", "  return", "fail: assert 999 == 0"),
    LaunchMutation(
        "somebody else's error for the launch's", LAUNCHED, "    error = cudaGetLastError();\n" + LAUNCHED.replace("error =", "(void)"),
        "fail: |somebody"
    ),
    LaunchMutation("an error is taken from whoever will ask", LAUNCHED, f"    cudaGetLastError();\n{LAUNCHED}", "somebody"),
    attends("memory that was not asked for", "grid.shared_bytes > 48 * 1024", "grid.shared_bytes > 480 * 1024", "invalid argument", LAUNCH),
    attends("memory asked for of a constant", "static_cast<int>(grid.shared_bytes)", "64 * 1024", "invalid argument", LAUNCH),
    attends("memory refused and launched all the same", ALLOWED, ALLOWED.replace("error =", "(void)"), "fail: ", LAUNCH),
    attends("heads and frames of the mass swapped", "static_cast<unsigned>(op.frames), static_cast<unsigned>(op.heads),",
            "static_cast<unsigned>(op.heads), static_cast<unsigned>(op.frames),", "oracle: "),
    attends("a grid of rows one short", SIZE, "dim3(grid.x, grid.y > 1 ? grid.y - 1 : 1, grid.z)", "oracle: ", LAUNCH),
    attends("the mass although parts have failed", "if (outcome.status == LOLRT_OK && op.mass) {", "if (op.mass) {", f"fail: {GOES_ON}"),
    attends("parts although their kernel has failed", "if (outcome.status == LOLRT_OK && split.cut > 0) {", "if (split.cut > 0) {",
            f"fail: {GOES_ON}"),
    attends("no workspace where the device is not known", WORKSPACE, WORKSPACE.replace("return found", "return kDone"), "fail: "),
    attends("the tile of the device, not of the code",
            "  device->architecture = 10 * code.ptxVersion;",
            "  int major = 0, minor = 0;\n"
            "  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, target.device.id);\n"
            "  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, target.device.id);\n"
            "  device->architecture = 100 * major + 10 * minor;", "code: ", LAUNCH),
    attends("the tile of the code's binary", "code.ptxVersion", "code.binaryVersion", "code: ", LAUNCH),
    attends_90("a tensor map that was refused", REFUSED, REFUSED.replace("error != nullptr", "false"), "fail: "),
    attends_90("the second map hides that the first was refused", "  if (error == nullptr) error = encode", "  error = encode",
               f"fail: {GOES_ON}"),
    attends_90("pages that lie apart anyhow", "op.page_stride > 0 && op.page_stride % layout.key_head == 0", "true",
               "apart: .*not a multiple of the one before"),
    fp8("maxima fail in silence", "if (outcome.status == LOLRT_OK) outcome = launch(", "outcome = launch(", f"fail: {GOES_ON}"),
    fp8("scales fail in silence", "return outcome.status != LOLRT_OK ? outcome : launch(", "return launch(", f"fail: {GOES_ON}"),
]  # fmt: skip


def compile_mutant(mutation: LaunchMutation, objects: Path, into: Path) -> Emulated:
    change = planted.Mutation(mutation.name, mutation.old, mutation.new, mutation.finds, mutation.file, mutation.kernel, of_launch=True)
    return planted.compile_mutant(change, objects, into)


def checks(cuda: Emulated, op: str) -> Iterator[tuple[str, Callable[[], None]]]:
    cuda.manner = Manner(stream=runtime.STREAM)
    if op == "attention":
        yield "code", lambda: runtime.test_the_kernel_is_that_of_the_code_that_is_loaded(cuda, 860)
    yield "every launch", lambda: runtime.test_every_launch_is_on_the_stream_and_allowed_its_memory(cuda, op)
    yield "fail", lambda: runtime.test_any_call_may_fail(cuda, op)
    yield "somebody", lambda: runtime.test_an_error_of_somebody_elses_is_not_the_ops(cuda, op)
    yield "device", lambda: runtime.test_tensors_of_another_device_than_the_current_one(cuda, op)
    if op == "attention":
        cuda.settings(architecture=800, multiprocessors=2)
        shape = dict(tokens=12, pages=5, page_tokens=260, frames=2, heads=3)
        yield "oracle", lambda: attention.compare(attention.CudaAttention(attention.KINDS[0][0], dim=128, cuda=cuda, **shape))
    if op == "attention on sm_90":
        yield "apart", lambda: attention.test_pages_that_lie_apart(cuda, 900, 16, False)


def found(cuda: Emulated, op: str) -> str:
    for name, check in checks(cuda, op):
        try:
            check()
        except (AbiError, AssertionError, pytest.fail.Exception) as error:
            return f"{name}: {error}"
        finally:
            cuda.manner = Manner(stream=runtime.STREAM)
    return ""


@pytest.mark.parametrize("op", sorted({mutation.op for mutation in MUTATIONS}))
def test_nothing_is_found_in_the_launchers_as_they_are(op: str, emulated_library: Emulated) -> None:
    try:
        assert found(emulated_library, op) == ""
    finally:
        emulated_library.manner = Manner()
        emulated_library.settings()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_is_found(mutation: LaunchMutation, emulated_library: Emulated, tmp_path: Path) -> None:
    report = found(compile_mutant(mutation, emulated_library.path.with_name("objects"), tmp_path), mutation.op)
    assert re.search(mutation.finds, report, re.DOTALL), f"found: {report or 'nothing'}"
