"""The tensor maps that the driver's encoder is asked for, which the emulator does not need: tested with a driver that only records."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from commands import output_of
from emulated import ROOT
from interpreted import has_nvcc

pytestmark = pytest.mark.whole

HEADER = ROOT / "csrc" / "cuda" / "device" / "bulk_copy.cuh"

# NVIDIA, CUDA driver API, CUtensorMapDataType and its like. The kernel needs 16-bit elements as they are, rows of 128 bytes permuted as
# its matrix descriptors say, and zeros beyond the tensor.
UINT16, NO_INTERLEAVE, SWIZZLE_128_BYTES, ZEROS = 1, 0, 3, 0
USUAL, NO_DRIVER, TOO_OLD, REFUSES = range(4)


class Box(ctypes.Structure):
    """`TensorBox` of csrc/cuda/tensor_box.h."""

    _fields_ = (("data", ctypes.c_void_p), ("sizes", ctypes.c_uint64 * 4), ("strides", ctypes.c_uint64 * 3), ("box", ctypes.c_uint32 * 4))


class Asked(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 64),
        ("version", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("rank", ctypes.c_uint32),
        ("data", ctypes.c_void_p),
        ("sizes", ctypes.c_uint64 * 4),
        ("strides", ctypes.c_uint64 * 3),
        ("box", ctypes.c_uint32 * 4),
        ("steps", ctypes.c_uint32 * 4),
        ("interleave", ctypes.c_uint32),
        ("swizzle", ctypes.c_uint32),
        ("fill", ctypes.c_uint32),
    )


BOX = Box(4096, (128, 1560, 12, 15), (256, 399360, 9584640), (64, 112, 1, 1))


def built(folder: Path, sources: Path = ROOT / "csrc" / "cuda") -> ctypes.CDLL:
    if not has_nvcc():
        pytest.skip("there is no nvcc, which knows where the driver's headers are")
    library = folder / "libtensor_map.so"
    includes = [f"-I{path}" for path in (sources, ROOT / "csrc" / "cuda", ROOT / "csrc")]
    source = Path(__file__).with_name("tensor_map.cpp")
    output_of("nvcc", "-x", "c++", "-std=c++17", "-shared", "-Xcompiler=-fPIC", "-cudart=none", *includes, source, "-o", library)
    loaded = ctypes.CDLL(str(library))
    loaded.ask.restype = ctypes.c_char_p
    return loaded


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return built(tmp_path_factory.mktemp("tensor_map"))


def check(driver: ctypes.CDLL) -> None:
    asked = Asked()
    assert driver.ask(ctypes.byref(BOX), USUAL, ctypes.byref(asked)) is None
    assert (asked.name, asked.version) == (b"cuTensorMapEncodeTiled", 12000)
    assert (asked.data, asked.rank, asked.type) == (BOX.data, 4, UINT16)
    assert [list(values) for values in (asked.sizes, asked.strides, asked.box)] == [list(BOX.sizes), list(BOX.strides), list(BOX.box)]
    assert list(asked.steps) == [1, 1, 1, 1]
    assert (asked.interleave, asked.swizzle, asked.fill) == (NO_INTERLEAVE, SWIZZLE_128_BYTES, ZEROS)


def test_the_driver_is_asked_for_what_the_kernel_reads(driver: ctypes.CDLL) -> None:
    check(driver)


@pytest.mark.parametrize("of, hint", [(NO_DRIVER, b"no driver"), (TOO_OLD, b"older than CUDA 12"), (REFUSES, b"refuses the tensor")])
def test_what_the_driver_cannot_do_is_told(of: int, hint: bytes, driver: ctypes.CDLL) -> None:
    assert hint in driver.ask(ctypes.byref(BOX), of, ctypes.byref(Asked()))


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("CU_TENSOR_MAP_SWIZZLE_128B", "CU_TENSOR_MAP_SWIZZLE_64B"),
        ("CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE", "CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA"),
        ("CU_TENSOR_MAP_DATA_TYPE_UINT16", "CU_TENSOR_MAP_DATA_TYPE_FLOAT32"),
        ("steps[4] = {1, 1, 1, 1}", "steps[4] = {1, 2, 1, 1}"),
        ("map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4,", "map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 3,"),
        ("box.strides, box.box", "box.strides, steps"),
    ],
)
def test_a_planted_bug_is_found(right: str, wrong: str, tmp_path: Path) -> None:
    text = HEADER.read_text()
    assert text.count(right) == 1
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / HEADER.name).write_text(text.replace(right, wrong))
    driver = built(tmp_path, tmp_path)
    with pytest.raises(AssertionError):
        check(driver)
