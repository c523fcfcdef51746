// What a tensor map of a bulk copy says: a tensor of 16-bit elements in global memory, and the box of it that a copy brings.
#pragma once

#include <cstdint>

namespace lolrt {

struct TensorBox {
  const void *data;     // aligned to 16 bytes
  uint64_t sizes[4];    // elements; the first dimension is contiguous. What lies beyond is 0
  uint64_t strides[3];  // bytes, of the second dimension on; multiples of 16
  uint32_t box[4];      // elements
};

}  // namespace lolrt
