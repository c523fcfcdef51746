// The emulator's csrc/cuda/device/bulk_copy.cuh.
#pragma once

#include "runtime.h"
#include "tensor_box.h"

#include <device/barrier.cuh>

namespace lolrt::cuda {

// As large as the driver's, so that kernels' arguments lie as on a GPU.
struct alignas(128) TensorMap : TensorBox {};

inline const char *encode_tensor_map(TensorMap *map, const TensorBox &box) {
  static_cast<TensorBox &>(*map) = box;
  return simt::call_fails("cuTensorMapEncodeTiled") ? "unknown error" : simt::tensor_problem(box);
}

__forceinline__ void copy_box(void *shared, const TensorMap *map, Barrier *barrier, int x, int y, int z, int w) {
  simt::copy_box(shared, *map, barrier, {x, y, z, w});
}

}  // namespace lolrt::cuda
