// The emulator's csrc/cuda/device/bulk_copy.cuh.
#pragma once

#include "tensor_box.h"

#include <device/barrier.cuh>

namespace lolrt::cuda {

using TensorMap = TensorBox;

inline const char *encode_tensor_map(TensorMap *map, const TensorBox &box) {
  *map = box;
  return simt::tensor_problem(box);
}

__forceinline__ void copy_box(void *shared, const TensorMap *map, Barrier *barrier, int x, int y, int z, int w) {
  simt::copy_box(shared, *map, barrier, {x, y, z, w});
}

}  // namespace lolrt::cuda
