// quantize_rows and dequantize_rows for one instruction set.
//
//   scale = max(max|x| / 127, 2^-100);  q = 128 + round(x / scale)
//   out = round_T(x * scale + bias)
//
// Tensors: [frames, tokens, channels], a scale for each row of channels. A row that is quantised is read twice, the second time
// from L1; a task is a few rows.
#pragma once

#include "core/ops.h"
#include "cpu/bf16.h"
#include "cpu/rows.h"

#include <cstdint>
#include <cstring>
#include <limits>

namespace lolrt {
namespace {

template <class Isa, class T>
class QuantizeRowsKernel {
  using Vec = typename Isa::Vec;
  static constexpr int W = Isa::width;

 public:
  static void run(const QuantizeRows &op) {
    parallel_rows(op, [&](int64_t frame, int64_t token) {
      quantize(op.x.template row<const T>(frame, token), op.channels, op.q.template row<uint8_t>(frame, token),
               op.scale + frame * op.tokens + token);
    });
  }

 private:
  static constexpr int kZero = 128;
  static constexpr float kLeastScale = 0x1p-100f;

  static void quantize(const T *x, int64_t channels, uint8_t *q, float *scale) {
    Vec most = Isa::zero(), not_finite = Isa::zero();  // 0, or NaN in a lane that had a number that is not finite
    const auto look = [&](Vec value) {
      most = Isa::max(Isa::max(value, Isa::sub(Isa::zero(), value)), most);
      not_finite = Isa::multiply_add(value, Isa::zero(), not_finite);
    };
    int64_t c = 0;
    for (; c + W <= channels; c += W) look(Isa::load(x + c));
    const int rest = static_cast<int>(channels - c);
    if (rest > 0) look(Isa::load_n(x + c, rest));
    if (Isa::reduce_add(not_finite) != 0.0f) {
      *scale = std::numeric_limits<float>::quiet_NaN();
      std::memset(q, kZero, channels);
      return;
    }
    const float largest = Isa::reduce_max(most) / 127.0f;
    *scale = largest > kLeastScale ? largest : kLeastScale;
    // Adding 1.5 * 2^23 leaves the rounded integer in the low bits.
    const Vec inverse = Isa::set(1.0f / *scale), magic = Isa::set(0x1.8p23f + kZero);
    const auto rounded = [&](Vec value) { return Isa::add(Isa::mul(value, inverse), magic); };
    for (c = 0; c + W <= channels; c += W) Isa::store_bytes(q + c, rounded(Isa::load(x + c)));
    if (rest > 0) Isa::store_bytes_n(q + c, rounded(Isa::load_n(x + c, rest)), rest);
  }
};

template <class Isa, class T>
class DequantizeRowsKernel {
  using Vec = typename Isa::Vec;
  static constexpr int W = Isa::width;

 public:
  static void run(const DequantizeRows &op) {
    parallel_rows(op, [&](int64_t frame, int64_t token) {
      dequantize(op.x.template row<const float>(frame, token), Isa::set(op.scale[frame * op.tokens + token]), op.bias,
                 op.channels, op.out.template row<T>(frame, token));
    });
  }

 private:
  static void dequantize(const float *x, Vec scale, const float *bias, int64_t channels, T *out) {
    int64_t c = 0;
    for (; c + W <= channels; c += W) Isa::store(out + c, Isa::multiply_add(Isa::load(x + c), scale, Isa::load(bias + c)));
    if (c < channels) {
      const int rest = static_cast<int>(channels - c);
      Isa::store_n(out + c, Isa::multiply_add(Isa::load_n(x + c, rest), scale, Isa::load_n(bias + c, rest)), rest);
    }
  }
};

}  // namespace
}  // namespace lolrt
