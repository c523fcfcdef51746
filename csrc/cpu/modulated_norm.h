// modulated_norm for one instruction set.
//
//   x = round_T(x + gate * residual) if there is a residual;  out = round_T((x - mean) * rsqrt(var + eps) * scale + shift)
//
// Tensors: x, residual, out T [frames, tokens, channels]; gate, scale, shift float32 [1 or frames, channels]. Mean and variance
// over the channels, of the x that is stored, the variance from the centred values. A row is read three times, from L1 after the
// first; a task is a few rows.
#pragma once

#include "core/ops.h"
#include "cpu/bf16.h"
#include "cpu/rows.h"

#include <cmath>
#include <cstdint>
#include <type_traits>

namespace lolrt {
namespace {

template <class Isa, class T>
class ModulatedNormKernel {
  using Vec = typename Isa::Vec;
  static constexpr int W = Isa::width;

 public:
  static void run(const ModulatedNorm &op) {
    const ModulatedNormKernel kernel(op);
    parallel_rows(op, [&](int64_t frame, int64_t token) { kernel.normalise(frame, token); });
  }

 private:
  // Partial sums of a row, so that one addition need not wait for the one before it.
  static constexpr int kSums = 4;
  struct Sums {
    Vec part[kSums];
    Sums() {
      for (Vec &vec : part) vec = Isa::zero();
    }
    float total() const { return Isa::reduce_add(Isa::add(Isa::add(part[0], part[1]), Isa::add(part[2], part[3]))); }
  };

  explicit ModulatedNormKernel(const ModulatedNorm &op) : op_(op) {}

  // f(column, sum, load, store, lanes) for every vector of a row; load and store touch the row's channels only.
  template <class F>
  void for_each_vector(const F &f) const {
    const auto load = [](const auto *from) { return Isa::load(from); };
    const auto store = [](auto *to, Vec value) { Isa::store(to, value); };
    int64_t c = 0;
    for (; c + kSums * W <= op_.channels; c += kSums * W) {
#pragma GCC unroll 4
      for (int sum = 0; sum < kSums; ++sum) f(c + sum * W, sum, load, store, W);
    }
    for (; c + W <= op_.channels; c += W) f(c, 0, load, store, W);
    if (c < op_.channels) {
      const int lanes = static_cast<int>(op_.channels - c);
      f(
          c, 0, [lanes](const auto *from) { return Isa::load_n(from, lanes); },
          [lanes](auto *to, Vec value) { Isa::store_n(to, value, lanes); }, lanes);
    }
  }

  void normalise(int64_t frame, int64_t token) const {
    T *x = op_.x.template row<T>(frame, token);
    Sums sum;
    if (op_.residual.data) {
      const T *residual = op_.residual.template row<const T>(frame, token);
      const float *gate = op_.gate.data ? op_.gate.data + frame * op_.gate.frame : nullptr;
      for_each_vector([&](int64_t c, int i, auto load, auto store, int) {
        const Vec by = gate ? load(gate + c) : Isa::set(1.0f);
        const Vec value = round(Isa::multiply_add(by, load(residual + c), load(x + c)));
        store(x + c, value);
        sum.part[i] = Isa::add(sum.part[i], value);
      });
    } else {
      for_each_vector([&](int64_t c, int i, auto load, auto, int) { sum.part[i] = Isa::add(sum.part[i], load(x + c)); });
    }
    const float channels = static_cast<float>(op_.channels);
    const Vec mean = Isa::set(sum.total() / channels);
    Sums squares;
    for_each_vector([&](int64_t c, int i, auto load, auto, int lanes) {
      Vec centred = Isa::sub(load(x + c), mean);
      if (lanes < W) centred = Isa::first_n(centred, lanes, 0.0f);
      squares.part[i] = Isa::multiply_add(centred, centred, squares.part[i]);
    });
    const Vec inverse = Isa::set(1.0f / std::sqrt(squares.total() / channels + op_.eps));
    const float *scale = op_.scale.data + frame * op_.scale.frame;
    const float *shift = op_.shift.data + frame * op_.shift.frame;
    T *out = op_.out.template row<T>(frame, token);
    for_each_vector([&](int64_t c, int, auto load, auto store, int) {
      const Vec unit = Isa::mul(Isa::sub(load(x + c), mean), inverse);
      store(out + c, Isa::multiply_add(unit, load(scale + c), load(shift + c)));
    });
  }

  static Vec round(Vec value) {
    if constexpr (std::is_same<T, Bf16>::value) {
      return Isa::round_bf16(value);
    } else {
      return value;
    }
  }

  const ModulatedNorm &op_;
};

}  // namespace
}  // namespace lolrt
