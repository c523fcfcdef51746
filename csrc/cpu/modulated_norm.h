// modulated_norm for one instruction set.
//
//   x = round_T(x + gate * residual) if there is a residual;  out = round_T((x - mean) * rsqrt(var + eps) * scale + shift)
//
// Tensors: x, residual, out T [frames, tokens, channels]; gate, scale, shift float32 [1 or frames, channels]. Mean and variance
// over the channels, of the x that is stored, the variance from the centred values. A row is read three times, from L1 after the
// first; a task is a few rows.
#pragma once

#include "core/ops.h"
#include "core/threads.h"
#include "cpu/bf16.h"
#include "cpu/tuning.h"

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
    const int64_t rows = op.frames * op.tokens;
    const int64_t rows_per_task = op.channels < kNormTaskElements ? kNormTaskElements / op.channels : 1;
    parallel_for((rows + rows_per_task - 1) / rows_per_task, lolrt_threads(), [&](int64_t task, int32_t) {
      const int64_t first = task * rows_per_task;
      const int64_t end = first + rows_per_task < rows ? first + rows_per_task : rows;
      for (int64_t row = first; row < end; ++row) kernel.normalise(row / op.tokens, row % op.tokens);
    });
  }

 private:
  explicit ModulatedNormKernel(const ModulatedNorm &op) : op_(op) {}

  // f(column, load, store) for every vector of a row; load and store touch the row's channels only.
  template <class F>
  void for_each_vector(const F &f) const {
    int64_t c = 0;
    for (; c + W <= op_.channels; c += W) {
      f(c, [](const auto *from) { return Isa::load(from); }, [](auto *to, Vec value) { Isa::store(to, value); }, W);
    }
    if (c < op_.channels) {
      const int lanes = static_cast<int>(op_.channels - c);
      f(
          c, [lanes](const auto *from) { return Isa::load_n(from, lanes); },
          [lanes](auto *to, Vec value) { Isa::store_n(to, value, lanes); }, lanes);
    }
  }

  void normalise(int64_t frame, int64_t token) const {
    T *x = op_.x.template row<T>(frame, token);
    Vec sum = Isa::zero();
    if (op_.residual.data) {
      const T *residual = op_.residual.template row<const T>(frame, token);
      const float *gate = op_.gate.data ? op_.gate.data + frame * op_.gate.frame : nullptr;
      for_each_vector([&](int64_t c, auto load, auto store, int) {
        const Vec by = gate ? load(gate + c) : Isa::set(1.0f);
        const Vec value = round(Isa::multiply_add(by, load(residual + c), load(x + c)));
        store(x + c, value);
        sum = Isa::add(sum, value);
      });
    } else {
      for_each_vector([&](int64_t c, auto load, auto, int) { sum = Isa::add(sum, load(x + c)); });
    }
    const float channels = static_cast<float>(op_.channels);
    const Vec mean = Isa::set(Isa::reduce_add(sum) / channels);
    Vec squares = Isa::zero();
    for_each_vector([&](int64_t c, auto load, auto, int lanes) {
      Vec centred = Isa::sub(load(x + c), mean);
      if (lanes < W) centred = Isa::first_n(centred, lanes, 0.0f);
      squares = Isa::multiply_add(centred, centred, squares);
    });
    const Vec inverse = Isa::set(1.0f / std::sqrt(Isa::reduce_add(squares) / channels + op_.eps));
    const float *scale = op_.scale.data + frame * op_.scale.frame;
    const float *shift = op_.shift.data + frame * op_.shift.frame;
    T *out = op_.out.template row<T>(frame, token);
    for_each_vector([&](int64_t c, auto load, auto store, int) {
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
