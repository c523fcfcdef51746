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

// Turns the pairs (2i, 2i + 1) of `rows` rows by the same (cos, sin) pairs of `cos_sin`; `count` channels, even, of `channels`
// that a row has. x(r) is a row, and y(r, i) where its channels from i on go. The result is rounded once to Value, the tensor's
// element type, however it is then stored. For the order of the roundings see lolrt.h; with (1, 0) it is the identity.
template <class Isa, class Value, class To, class X, class Y>
inline void rotate_rows(int rows, const X &x, const float *cos_sin, const Y &y, int64_t count, int64_t channels) {
  constexpr bool round_first = std::is_same<Value, Bf16>::value && std::is_same<To, float>::value;
  constexpr int W = Isa::width;
  const auto turned = [](typename Isa::Vec value, typename Isa::Vec angle) {
    value = Isa::rotate(value, angle);
    if constexpr (round_first) value = Isa::round_bf16(value);
    return value;
  };
  for (int64_t i = 0; i < count; i += W) {
    // The last vector is filled up with the identity, if the row is long enough.
    alignas(64) float last[W];
    const float *angles = cos_sin + i;
    if (i + W > count) {
      for (int64_t j = 0; j < W; ++j) last[j] = i + j < count ? angles[j] : j % 2 ? 0.0f : 1.0f;
      angles = last;
    }
    const typename Isa::Vec angle = Isa::load(angles);
    if (i + W <= channels) {
      for (int r = 0; r < rows; ++r)
        Isa::store(static_cast<To *>(y(r, i)), turned(Isa::load(static_cast<const Value *>(x(r)) + i), angle));
    } else {
      const int lanes = static_cast<int>(channels - i);
      for (int r = 0; r < rows; ++r) {
        Isa::store_n(static_cast<To *>(y(r, i)), turned(Isa::load_n(static_cast<const Value *>(x(r)) + i, lanes), angle), lanes);
      }
    }
  }
}

}  // namespace
}  // namespace lolrt
