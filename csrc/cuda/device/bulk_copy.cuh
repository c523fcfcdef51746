// TMA: bulk copies of boxes of a tensor into shared memory, and the maps that describe such tensors.
//
// In shared memory a box is rows of 128 bytes, the first dimension's; their 16-byte chunks are permuted by the lowest three bits
// of the row (swizzle of 128 bytes: bits 4-6 of an address are xored with its bits 7-9), as the matrix product reads them.
#pragma once

#include "tensor_box.h"

#include <device/barrier.cuh>

#include <cuda.h>
#include <cuda_runtime.h>

namespace lolrt::cuda {

using TensorMap = CUtensorMap;

// Returns what is wrong, or NULL. The driver's function is asked for by name: the library is not linked to the driver.
inline const char *encode_tensor_map(TensorMap *map, const TensorBox &box) {
  void *entry = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess) {
    cudaGetLastError();  // it is not the caller's next call that has failed
    return cudaGetErrorString(error);
  }
  if (found != cudaDriverEntryPointSuccess) return "the driver has no cuTensorMapEncodeTiled: it is older than CUDA 12";
  constexpr cuuint32_t steps[4] = {1, 1, 1, 1};
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry)(
      map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, const_cast<void *>(box.data), box.sizes, box.strides, box.box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "cuTensorMapEncodeTiled refuses the tensor";
}

// Begins to copy the box whose first element has these coordinates, to an address of 1024 bytes; all its bytes, zeros among them,
// count for the barrier's phase. By one thread; the map is in the kernel's parameters.
__device__ __forceinline__ void copy_box(void *shared, const TensorMap *map, Barrier *barrier, int x, int y, int z, int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];\n" ::
          "r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}

}  // namespace lolrt::cuda
