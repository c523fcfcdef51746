"""Tensors of other libraries, which come over DLPack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from capsules import Capsule

from lolrt import _core


def test_numpy_torch_and_capsules_are_the_same_to_it() -> None:
    expected = np.zeros(6, dtype=np.float32)
    _core.normal(3, 1, 4, expected)
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
    """Outputs may not be read-only, and are not replaced by a copy that their owner would never see."""
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
    """All versions 1.x, and tensors without a version, have the same layout in the fields that are read. Nothing is known about others."""
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


def test_data_may_begin_within_their_buffer() -> None:
    """DLPack's byte_offset, and a negative stride."""
    x = Capsule((2, 2, 8), (-16, 8, 1), byte_offset=4 * 32)
    expected = torch.arange(64.0)
    expected[16:48] = torch.nn.functional.gelu(expected[16:48], approximate="tanh")
    _core.gelu(x)
    torch.testing.assert_close(torch.tensor(list(x.numbers)), expected)


def test_a_tensor_that_is_to_be_negated_is_refused() -> None:
    """torch's imaginary part of a conjugate refers to memory that holds its negative."""
    x = torch.ones(1, 4, 8, dtype=torch.complex64).mul(1 + 2j).conj().imag
    assert x.is_neg() and (x == -2).all()
    with pytest.raises(ValueError, match=r"^sample: its memory holds the negative"):
        _core.sampler_step(x.reshape(-1), 0.0, torch.zeros(32), 0.0, None, torch.zeros(32))
    out = torch.zeros(32)
    _core.sampler_step(x.resolve_neg().reshape(-1), 0.0, torch.zeros(32), 0.0, None, out)
    assert (out == -2).all()
