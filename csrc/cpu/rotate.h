// Rotation of channel pairs, and conversion of rows between element types.
#pragma once

#include "cpu/bf16.h"

#include <cstdint>
#include <type_traits>

namespace lolrt {
namespace {

// y = x for `count` channels, From to To. From bfloat16 to float it is exact.
template <class Isa, class From, class To>
inline void convert(const From *x, To *y, int64_t count) {
  int64_t i = 0;
  for (; i + Isa::width <= count; i += Isa::width) Isa::store(y + i, Isa::load(x + i));
  if (i < count) Isa::store_n(y + i, Isa::load_n(x + i, static_cast<int>(count - i)), static_cast<int>(count - i));
}

// Turns the pairs (2i, 2i + 1) of x by the (cos, sin) pairs of `cos_sin`; `count` channels, even. x and y may be the same row.
// The result is rounded once to Value, the tensor's element type, however it is then stored. For the order of the roundings see
// lolrt.h; with (1, 0) it is the identity.
template <class Isa, class Value, class To>
inline void rotate(const Value *x, const float *cos_sin, To *y, int64_t count) {
  constexpr bool round_first = std::is_same<Value, Bf16>::value && std::is_same<To, float>::value;
  const auto turned = [](typename Isa::Vec value, typename Isa::Vec angle) {
    value = Isa::rotate(value, angle);
    if constexpr (round_first) value = Isa::round_bf16(value);
    return value;
  };
  int64_t i = 0;
  for (; i + Isa::width <= count; i += Isa::width) Isa::store(y + i, turned(Isa::load(x + i), Isa::load(cos_sin + i)));
  if (i < count) {
    const int lanes = static_cast<int>(count - i);
    Isa::store_n(y + i, turned(Isa::load_n(x + i, lanes), Isa::load_n(cos_sin + i, lanes)), lanes);
  }
}

}  // namespace
}  // namespace lolrt
