// The element type bfloat16, as bits. Arithmetic happens in float, in the policies.
#pragma once

#include <cstdint>

namespace lolrt {

struct Bf16 {
  uint16_t bits;
};

}  // namespace lolrt
