"""The emulator's tensor core and the kernel's swizzle against CuTe's description of the hardware, an independent source for what the
emulator assumes."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from cute import header, layout, named_layout, pycute, swizzle
from emulated import Emulated

pytestmark = pytest.mark.whole

LANES = range(32)


@pytest.fixture(scope="module")
def layouts(emulated_library: Emulated) -> ctypes.CDLL:
    library = ctypes.CDLL(str(emulated_library.path.with_name("liblayouts.so")))
    library.layouts_use_tensor_core.restype = library.layouts_use_warpgroup.restype = ctypes.c_char_p
    return library


def bf16_bits(x: np.ndarray) -> np.ndarray:
    """Small integers, which bfloat16 represents exactly."""
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def run(layouts: ctypes.CDLL, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    """One warp, with words by lane; words that are not given are zero."""
    words = {"a": (4, np.uint32), "b": (2, np.uint32), "matrices": (4, np.uint32), "d": (4, np.float32)}
    words |= {"loaded": (4, np.uint32), "loaded_transposed": (4, np.uint32)}
    all_arrays = {name: arrays.get(name, np.zeros((len(LANES), width), dtype)) for name, (width, dtype) in words.items()}
    problem = layouts.layouts_use_tensor_core(*(ctypes.c_void_p(array.ctypes.data) for array in all_arrays.values()))
    assert problem is None, problem
    return all_arrays


def test_product_of_fragments_is_that_of_the_matrices(layouts: ctypes.CDLL) -> None:
    text = header("mma_traits_sm80")
    of = {name: layout(text, "MMA_Traits<SM80_16x8x16_F32BF16BF16F32_TN>", f"{name}Layout") for name in "ABC"}
    rng = np.random.default_rng(5)
    a, b, c = (rng.integers(-8, 9, shape).astype(np.float64) for shape in ((16, 16), (16, 8), (16, 8)))

    def place(name: str, rows: int, lane: int, value: int) -> tuple[int, int]:
        """Row and column in a and c; column and row in b, whose layout is of its transpose."""
        return of[name](lane, value) % rows, of[name](lane, value) // rows

    fragment_a = np.array([[a[place("A", 16, lane, value)] for value in range(8)] for lane in LANES])
    fragment_b = np.array([[b.T[place("B", 8, lane, value)] for value in range(4)] for lane in LANES])
    fragment_c = np.array([[c[place("C", 16, lane, value)] for value in range(4)] for lane in LANES], np.float32)
    run(layouts, a=bf16_bits(fragment_a).view(np.uint32), b=bf16_bits(fragment_b).view(np.uint32), d=fragment_c)
    expected = a @ b + c
    assert (fragment_c == [[expected[place("C", 16, lane, value)] for value in range(4)] for lane in LANES]).all()


def test_matrices_are_loaded_to_the_lanes_that_the_hardware_loads_them_to(layouts: ctypes.CDLL) -> None:
    text = header("copy_traits_sm75")
    elements = np.arange(256, dtype=np.uint16)  # of lane l's row those from 8 l
    done = run(layouts, matrices=elements.view(np.uint32).reshape(32, 4))
    # CuTe counts bits, of the rows one after another.
    words = layout(text, "Copy_Traits<SM75_U32x4_LDSM_N>", "DstLayout")
    expected = [[elements.view(np.uint32)[words(lane, 32 * word) // 32] for word in range(4)] for lane in LANES]
    assert (done["loaded"] == expected).all()
    halves = layout(text, "Copy_Traits<SM75_U16x8_LDSM_T>", "DstLayout")
    expected = [[elements[halves(lane, 16 * half) // 16] for half in range(8)] for lane in LANES]
    assert (done["loaded_transposed"].view(np.uint16) == expected).all()


def test_product_of_a_warpgroup_is_that_of_the_matrices(layouts: ctypes.CDLL) -> None:
    """Fragments as CuTe defines them, and matrices in shared memory as it places them, by rows and by columns."""
    text = header("mma_traits_sm90_gmma")
    of_a = named_layout(text, "ALayout_64x16")
    permute = {name: swizzle(text, f"Layout_{name}_SW128_Atom_Bits") for name in ("K", "MN")}
    rng = np.random.default_rng(6)
    a, rows, columns = (rng.integers(-8, 9, shape).astype(np.float64) for shape in ((64, 16), (112, 64), (16, 128)))
    fragment_a = np.array([[a[of_a(thread, value) % 64, of_a(thread, value) // 64] for value in range(8)] for thread in range(128)])

    def product(matrix: np.ndarray, places: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """With the elements of the matrix at those bytes of shared memory."""
        memory = np.zeros(112 * 64, np.uint16)
        memory[np.array(places) // 2] = bf16_bits(matrix.ravel())
        results = np.zeros((128, 56), np.float32), np.zeros((128, 64), np.float32)
        arrays = (bf16_bits(fragment_a).view(np.uint32), memory, *results)
        problem = layouts.layouts_use_warpgroup(*(ctypes.c_void_p(array.ctypes.data) for array in arrays))
        assert problem is None, problem
        return results

    def expected(d: np.ndarray) -> np.ndarray:
        of_d = named_layout(text, "CLayout_64xN", d.shape[1])
        values = range(d.shape[1] // 2)
        return np.array([[d[of_d(thread, value) % 64, of_d(thread, value) // 64] for value in values] for thread in range(128)])

    # Rows of 64 elements, 128 bytes; of columns first those of 64, then the 64 after them.
    by_rows, _ = product(rows, [permute["K"](row * 128 + k * 2) for row in range(112) for k in range(64)])
    assert (by_rows == expected(a @ rows[:, :16].T)).all()
    places = [permute["MN"](n // 64 * 2048 + k * 128 + n % 64 * 2) for k in range(16) for n in range(128)]
    assert (product(columns, places)[1] == expected(a @ columns)).all()


@pytest.mark.parametrize("dim", [64, 128])
def test_swizzle_of_attention_is_cutes(layouts: ctypes.CDLL, dim: int) -> None:
    """That of rows of 128 bytes, which is TMA's and WGMMA's too; where rows are twice as long their number's bits are one further up."""
    of_128_bytes = swizzle(header("mma_traits_sm90_gmma"), "Layout_K_SW128_Atom_Bits")
    assert (of_128_bytes.bits, of_128_bytes.base) == (3, 4)
    permute = pycute.Swizzle(of_128_bytes.bits, of_128_bytes.base, of_128_bytes.shift + (dim == 128))
    chunks = dim // 8
    places = np.array([[layouts.layouts_attention_at(dim, row, chunk) for chunk in range(chunks)] for row in range(128)])
    assert (places == [[permute(row * 2 * dim + chunk * 16) for chunk in range(chunks)] for row in range(128)]).all()
    # No two chunks share a place, and the 8 rows of a matrix lie in all 32 banks of 4 bytes.
    assert len(np.unique(places)) == places.size
    groups = places.reshape(16, 8, chunks) // 16 % 8
    assert (np.sort(groups, axis=1) == np.arange(8)[:, None]).all()
