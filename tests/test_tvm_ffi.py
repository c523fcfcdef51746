"""The ops through TVM-FFI's own loader: the bits of `lolrt.ops`, the host's memory, and the host's errors."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import tvm_ffi
from commands import output_of

import lolrt
from lolrt import _core, ops

FRAMES, TOKENS, HEADS, DIM, PAGES, POOL = 2, 21, 3, 32, 4, 6


@pytest.fixture(scope="module")
def module() -> Any:
    return tvm_ffi.load_module(lolrt.library())


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def case(request: pytest.FixtureRequest) -> SimpleNamespace:
    """Tensors of one call of every op on pages."""
    torch.manual_seed(0)
    dtype = request.param
    q, k, v = torch.randn(3, FRAMES, TOKENS, HEADS, DIM).to(dtype)
    elements = ops.page_elements(dtype, TOKENS, HEADS, DIM)
    angle = torch.rand(PAGES, FRAMES, HEADS, DIM // 2) * 6
    return SimpleNamespace(
        q=q, k=k, v=v, weight=torch.rand(HEADS, DIM).to(dtype), dtype=dtype,
        spatial=torch.stack([angle[0, 0, 0].cos(), angle[0, 0, 0].sin()], -1).expand(TOKENS, -1, -1).contiguous(),
        pages=torch.randn(POOL, elements).to(dtype), write_table=torch.tensor([4, 1], dtype=torch.int32),
        page_table=torch.tensor([5, 0, 1, 4], dtype=torch.int32),
        rotation=torch.stack([angle.cos(), angle.sin()], -1), bias=torch.randn(PAGES, HEADS),
    )  # fmt: skip


def test_pages_are_written_where_they_are(module: Any, case: SimpleNamespace) -> None:
    expected, found = case.pages.clone(), case.pages.clone()
    ops.kv_write(case.k, case.v, expected, case.write_table, weight=case.weight, rotation=case.spatial)
    module.kv_write(1e-6, None, case.k, case.v, None, case.weight, case.spatial, 0, None, found, case.write_table)
    assert torch.equal(found, expected) and not torch.equal(found, case.pages)
    out = torch.empty_like(case.q)
    module.kv_write(1e-6, case.q, None, None, case.weight, None, case.spatial, 0, out, None, None)
    assert torch.equal(out, ops.normalize_queries(case.q, weight=case.weight, rotation=case.spatial))


def test_attention_has_the_same_bits(module: Any, case: SimpleNamespace) -> None:
    mass = torch.empty(PAGES, FRAMES, HEADS)
    expected = ops.frame_attention(case.q, case.pages, case.page_table, TOKENS, rotation=case.rotation, bias=case.bias, mass=mass)
    out, found_mass = torch.empty_like(case.q), torch.empty_like(mass)
    tensors = (0.0, case.q, case.pages, case.page_table, TOKENS, case.rotation, case.bias, out, found_mass)
    needed = module.frame_attention_workspace(*tensors)
    workspace = torch.empty(needed + 1, dtype=torch.uint8)[1:]  # not aligned
    module.frame_attention(*tensors, workspace)
    assert torch.equal(out, expected) and torch.equal(found_mass, mass)
    if needed > 64:
        with pytest.raises(ValueError, match="frame_attention: workspace"):
            module.frame_attention(*tensors, workspace[:1])


def test_rows_have_the_same_bits(module: Any) -> None:
    torch.manual_seed(1)
    x, residual = torch.randn(2, FRAMES, TOKENS, 48)
    gate, scale, shift = torch.randn(3, 1, 48)
    expected, found, out = x.clone(), x.clone(), torch.empty_like(x)
    wanted = ops.modulated_norm(expected, scale, shift, residual=residual, gate=gate, eps=1e-5)
    module.modulated_norm(1e-5, found, residual, gate, scale, shift, out)
    assert torch.equal(out, wanted) and torch.equal(found, expected)
    module.modulated_norm(1, found, None, None, scale, shift, out)  # a whole number is a number
    assert torch.equal(out, ops.modulated_norm(expected, scale, shift, eps=1.0))
    ops.gelu(expected)
    module.gelu(found)
    assert torch.equal(found, expected)
    sample, velocity, noise = torch.randn(3, 100)
    out = torch.empty(100)
    module.sampler_step(0.7, 0.3, sample, velocity, noise, out)
    assert torch.equal(out, ops.sampler_step(sample, 0.7, velocity, after=0.3, noise=noise))


def test_images_have_the_same_bits(module: Any) -> None:
    torch.manual_seed(2)
    x, gamma = torch.randn(3, 6, 8, 16), torch.rand(16)
    expected, found = torch.empty(2, 3, 8, 10, 16)
    ops.channel_norm(x, gamma, expected, silu=True)
    module.channel_norm(True, x, gamma, found)
    assert torch.equal(found, expected)
    weight, bias = ops.pack_convolution(torch.randn(20, 16, 3, 3, 3), torch.randn(20))
    past, expected, found = torch.randn(2, 8, 10, 16), torch.empty(3, 6, 8, 20), torch.empty(3, 6, 8, 20)
    ops.conv3d(found_image := torch.randn(3, 8, 10, 16), weight, bias, expected, past=past)
    module.conv3d(past, found_image, weight, bias, None, found)
    assert torch.equal(found, expected)


def test_phases_noise_and_pages(module: Any) -> None:
    expected, found = np.empty((2, 50), dtype=np.float32)
    _core.normal(2**63 - 1, -3, 2, expected)
    module.normal(2**63 - 1, -3, 2, found)
    assert (found == expected).all()
    turns, offsets = np.array([[3, 2**63]], dtype=np.uint64), np.array([[5], [-7]], dtype=np.int64)
    expected, found = np.empty((2, 2, 1, 1, 2, 2), dtype=np.float32)
    _core.rotation_table(turns, offsets, expected)
    module.rotation_table(turns, offsets, found)
    assert (found == expected).all()
    of = module.page_elements(tvm_ffi.device("cpu"), tvm_ffi.dtype("bfloat16"), TOKENS, HEADS, DIM)
    assert of == ops.page_elements(torch.bfloat16, TOKENS, HEADS, DIM)


def test_numpy_and_the_hosts_own_tensors_are_taken_as_they_are(module: Any) -> None:
    array = np.linspace(-2, 2, 32, dtype=np.float32).reshape(1, 2, 16)
    expected = torch.from_numpy(array.copy())
    ops.gelu(expected)
    module.gelu(array)
    assert (array == expected.numpy()).all()
    ops.gelu(expected)
    module.gelu(tvm_ffi.from_dlpack(array))  # an object of the host's, with its tensor inside
    assert (array == expected.numpy()).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.gelu(torch.zeros(3)), ValueError, r"gelu: x: expected float32 \[frames, tokens, channels\], got float32 \[3\]"),
        (lambda m: m.gelu(torch.zeros(1, 2, 3, dtype=torch.int64)), ValueError, "gelu: x: expected"),
        (lambda m: m.gelu(3), TypeError, "gelu: x: expected a tensor, got"),
        (lambda m: m.gelu(None), TypeError, "gelu: x: expected a tensor, got"),
        (lambda m: m.gelu(), TypeError, "gelu: expected 1 arguments, got 0"),
        (lambda m: m.gelu(torch.zeros(1, 2, 3), 1), TypeError, "gelu: expected 1 arguments, got 2"),
        (lambda m: m.normal(0.5, 0, 0, torch.zeros(3)), TypeError, "normal: seed: expected a whole number"),
        (lambda m: m.normal(0, 0, 2**31, torch.zeros(3)), ValueError, "normal: step is 2147483648"),
        (lambda m: m.sampler_step("1", 0, *torch.zeros(2, 4), None, torch.zeros(4)), TypeError, "sampler_step: level: expected a number"),
        (lambda m: m.channel_norm(1, *torch.zeros(2, 4), None), TypeError, "channel_norm: out: expected a tensor"),
        (lambda m: m.page_elements(0, tvm_ffi.dtype("float32"), 1, 1, 2), TypeError, "page_elements: device: expected a device"),
        (lambda m: m.page_elements(tvm_ffi.device("cpu"), 0, 1, 1, 2), TypeError, "page_elements: dtype: expected a data type"),
        (lambda m: m.page_elements(tvm_ffi.device("cpu"), tvm_ffi.dtype("float32"), 0, 1, 2), ValueError, "tokens"),
    ],
)
def test_mistakes_are_errors_of_the_host(module: Any, call: Callable[[Any], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(module)
    x = torch.ones(1, 1, 4)
    module.gelu(x)  # goes on
    assert (x < 1).all()


class TensorArgument(ctypes.Structure):
    """A TVMFFIAny with a tensor: 7, a DLTensor; 70, an object of the host."""

    _fields_ = (("type", ctypes.c_int32), ("padding", ctypes.c_uint32), ("tensor", ctypes.c_void_p))


@pytest.mark.parametrize("kind", [7, 70])
def test_a_tensor_that_is_a_null_pointer_is_none(module: Any, kind: int) -> None:
    """As C++ hosts may pass one; each in its turn, beside tensors that are there."""
    library = ctypes.CDLL(str(lolrt.library()))
    library.lolrt_last_error.restype = ctypes.c_char_p
    shape = (ctypes.c_int64 * 1)(1)
    # A DLTensor of one uint8: data, device, ndim, dtype, shape, strides, byte_offset.
    there = np.zeros(1, [("data", "u8"), ("device", "i4", 2), ("ndim", "i4"), ("dtype", "u1", 4), ("rest", "u8", 3)])
    there[0] = (ctypes.addressof(shape), (1, 0), 1, (1, 8, 1, 0), (ctypes.addressof(shape), 0, 0))
    # T: a tensor that must be there; t: one that may be none.
    kinds_of = {
        "kv_write": "-tttttt-ttt", "frame_attention": "-TTT-ttTtt", "frame_attention_workspace": "-TTT-ttTt", "gelu": "T",
        "modulated_norm": "-TttTTT", "sampler_step": "--TTtT", "channel_norm": "-TTT", "conv3d": "tTTTtT", "rotation_table": "TTT",
        "normal": "---T",
    }  # fmt: skip
    for op, kinds in kinds_of.items():
        for null in (number for number, letter in enumerate(kinds) if letter in "tT"):
            given = [TensorArgument(7, 0, there.ctypes.data) if letter in "tT" else TensorArgument(1, 0, 1) for letter in kinds]
            given[null] = TensorArgument(kind, 0, None)
            result = TensorArgument()
            call = getattr(library, f"__tvm_ffi_{op}")
            assert call(None, (TensorArgument * len(given))(*given), len(given), ctypes.byref(result)) == -1
            text = library.lolrt_last_error().decode()
            assert text.startswith(op.removesuffix("_workspace")), op
            assert ("expected a tensor, got none" in text) == (kinds[null] == "T"), text


# A host of some version, which prints the error that it is told.
HOST = r"""
#include <stdint.h>
#include <stdio.h>
void TVMFFIGetVersion(uint32_t *version) { version[0] = MAJOR, version[1] = MINOR, version[2] = 3; }
void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) { printf("%s: %s", kind, message); }
int __tvm_ffi_gelu(void *, const void *arguments, int32_t count, void *result);
int main(void) {
  uint64_t result[2];
  return __tvm_ffi_gelu(NULL, NULL, 0, result) == -1 ? 0 : 1;
}
"""


@pytest.mark.whole
@pytest.mark.parametrize("version", [(0, 0), (0, 1), (0, 2), (1, 1)])
def test_a_host_of_another_version_is_told(version: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "host.c").write_text(HOST)
    folder = lolrt.library().parent
    numbers = [f"-D{name}={number}" for name, number in zip(("MAJOR", "MINOR"), version, strict=True)]
    link = [f"-L{folder}", "-llolrt", f"-Wl,-rpath,{folder}", "-rdynamic"]
    output_of("cc", *numbers, tmp_path / "host.c", *link, "-o", tmp_path / "host")
    told = "RuntimeError: gelu: lolrt {} is built for TVM-FFI 0.1, and this process has TVM-FFI {}.{}.3: install apache-tvm-ffi 0.1"
    expected = "TypeError: gelu: expected 1 arguments, got 0" if version == (0, 1) else told.format(_core.version(), *version)
    assert output_of(tmp_path / "host").startswith(expected)


def test_other_threads_of_python_run_meanwhile(module: Any) -> None:
    out, counts, done = torch.empty(1 << 22), [], threading.Event()

    def count() -> None:
        while not done.is_set():
            counts.append(None)

    other = threading.Thread(target=count)
    other.start()
    while not counts:
        pass
    before = len(counts)
    module.normal(0, 0, 0, out)
    during = len(counts) - before
    done.set()
    other.join()
    assert during > 1000, "the call kept Python's lock"
