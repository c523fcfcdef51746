// How wgmma is told where a matrix of 16-bit elements lies in shared memory: PTX ISA, "matrix descriptor". Rows of 128 bytes,
// eight to a group of 1024, chunks permuted as bulk copies leave them (device/bulk_copy.cuh).
#pragma once

#include <device/async_copy.cuh>

namespace lolrt::cuda {

// Bytes of a group of eight rows; each begins at a multiple of them.
constexpr int kGroupBytes = 1024;

// b from `first` on. Where its rows are its columns in memory (K-major) a group is 8 columns by 64 elements, and a step along the
// rows is one of `first`, within 128 bytes. Where memory has its rows (transposed) a group is 8 rows by 64 columns, and
// `next_columns` bytes lie between 64 columns and the 64 after them.
__device__ __forceinline__ uint64_t matrix_descriptor(const void *first, int next_columns) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  const uint64_t start = (shared_address(first) & 0x3ffff) >> 4;
  return kSwizzle128 | uint64_t{kGroupBytes >> 4} << 32 | static_cast<uint64_t>(next_columns >> 4) << 16 | start;
}

}  // namespace lolrt::cuda
