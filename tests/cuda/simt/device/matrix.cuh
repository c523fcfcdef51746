// The emulator's csrc/cuda/device/matrix.cuh.
#pragma once

#include <device/async_copy.cuh>
#include <device/element.cuh>

namespace lolrt::cuda {

__forceinline__ void load_matrices(uint32_t (&words)[4], const void *row) { simt::load_matrices(words, row, false); }
__forceinline__ void load_matrices_transposed(uint32_t (&words)[4], const void *row) { simt::load_matrices(words, row, true); }

template <class Element>
__forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  simt::multiply_add(d, a, b0, b1, value_of<Element>);
}

}  // namespace lolrt::cuda
