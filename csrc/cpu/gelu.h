// gelu for one instruction set.
//
//   x = round_T(x / (1 + 2^(-k x (1 + 0.044715 x^2)))),  k = 2 sqrt(2 / pi) log2(e)
//
// which is GELU's tanh form x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), with one exponential and no cancellation.
//
// Tensor: x T [frames, tokens, channels], in place, read and written once; a task is a few rows.
#pragma once

#include "core/ops.h"
#include "cpu/bf16.h"
#include "cpu/exp2.h"
#include "cpu/rows.h"

#include <cstdint>
#include <type_traits>

namespace lolrt {
namespace {

template <class Isa, class T>
class GeluKernel {
  using Vec = typename Isa::Vec;
  static constexpr int W = Isa::width;
  static constexpr int exp2_degree = std::is_same<T, Bf16>::value ? 3 : 6;

 public:
  static void run(const Gelu &op) {
    parallel_rows(op, [&](int64_t frame, int64_t token) { apply(op.x.template row<T>(frame, token), op.channels); });
  }

 private:
  static void apply(T *x, int64_t channels) {
    int64_t c = 0;
    for (; c + W <= channels; c += W) Isa::store(x + c, gelu(Isa::load(x + c)));
    if (c < channels) {
      const int lanes = static_cast<int>(channels - c);
      Isa::store_n(x + c, gelu(Isa::load_n(x + c, lanes)), lanes);
    }
  }

  static Vec gelu(Vec x) {
    constexpr float k = 2.0f * 0.797884561f * 1.44269504f;
    // Below -9.7 the result is less than 1e-35 in size and the exponent would leave exp2's domain. In this order a NaN passes.
    x = Isa::max(Isa::set(-9.7f), x);
    const Vec factor = Isa::multiply_add(Isa::mul(x, x), Isa::set(-k * 0.044715f), Isa::set(-k));
    return Isa::div(x, Isa::add(Isa::set(1.0f), exp2<Isa, exp2_degree>(Isa::mul(x, factor))));
  }
};

}  // namespace
}  // namespace lolrt
