// channel_norm for one instruction set.
//
//   out = round_U(silu(x * gamma * sqrt(channels) / max(|x|, 1e-12))),  silu(y) = y / (1 + exp(-y)), or without it
//
// Tensors: x T and out U [frames, rows, columns, channels], gamma float32 [channels]; |x| is the length of a pixel's channels. A
// pixel is read twice, the second time from L1; a task is one row of one frame of `out`, which may have a margin of zeros.
#pragma once

#include "core/ops.h"
#include "core/threads.h"
#include "cpu/bf16.h"
#include "cpu/exp2.h"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace lolrt {
namespace {

template <class Isa, class T>
class ChannelNormKernel {
  using Vec = typename Isa::Vec;
  static constexpr int W = Isa::width;

 public:
  static void run(const ChannelNorm &op) {
    const ChannelNormKernel kernel(op);
    const int64_t out_rows = op.rows + 2 * op.margin;
    parallel_for(op.frames * out_rows, lolrt_threads(), [&](int64_t task, int32_t) {
      const int64_t frame = task / out_rows, row = task % out_rows;
      if (op.out_dtype == DType::bfloat16) {
        kernel.template fill_row<Bf16>(frame, row);
      } else {
        kernel.template fill_row<float>(frame, row);
      }
    });
  }

 private:
  explicit ChannelNormKernel(const ChannelNorm &op) : op_(op) {}

  // Row `row` of out, margin included.
  template <class U>
  void fill_row(int64_t frame, int64_t row) const {
    const int64_t right = op_.margin + op_.columns;
    if (row < op_.margin || row >= op_.margin + op_.rows) {
      clear<U>(frame, row, 0, right + op_.margin);
    } else {
      clear<U>(frame, row, 0, op_.margin);
      normalise<U>(frame, row - op_.margin);
      clear<U>(frame, row, right, right + op_.margin);
    }
  }

  template <class U>
  void clear(int64_t frame, int64_t row, int64_t column, int64_t end) const {
    for (; column < end; ++column) {
      std::memset(op_.out.template pixel<U>(frame, row, column), 0, static_cast<size_t>(op_.channels) * sizeof(U));
    }
  }

  // Row `row` of x.
  template <class U>
  void normalise(int64_t frame, int64_t row) const {
    const int64_t whole = op_.channels / W * W;
    const int lanes = static_cast<int>(op_.channels - whole);
    const float root = std::sqrt(static_cast<float>(op_.channels));
    for (int64_t column = 0; column < op_.columns; ++column) {
      const T *x = op_.x.template pixel<const T>(frame, row, column);
      U *out = op_.out.template pixel<U>(frame, row + op_.margin, column + op_.margin);
      Vec squares = Isa::zero();
      for (int64_t c = 0; c < whole; c += W) {
        const Vec value = Isa::load(x + c);
        squares = Isa::multiply_add(value, value, squares);
      }
      if (lanes) {
        const Vec value = Isa::load_n(x + whole, lanes);
        squares = Isa::multiply_add(value, value, squares);
      }
      const float length = std::sqrt(Isa::reduce_add(squares));
      const Vec scale = Isa::set(root / (length < 1e-12f ? 1e-12f : length));
      for (int64_t c = 0; c < whole; c += W) {
        Isa::store(out + c, activate(Isa::mul(Isa::load(x + c), Isa::mul(scale, Isa::load(op_.gamma + c)))));
      }
      if (lanes) {
        const Vec gain = Isa::mul(scale, Isa::load_n(op_.gamma + whole, lanes));
        Isa::store_n(out + whole, activate(Isa::mul(Isa::load_n(x + whole, lanes), gain)), lanes);
      }
    }
  }

  Vec activate(Vec y) const {
    if (!op_.silu) return y;
    // Below -87 the exponential would leave float32's range; silu is 0 to 35 digits there. A NaN passes in this order.
    const Vec bounded = Isa::max(Isa::set(-87.0f), y);
    return Isa::div(y, Isa::add(Isa::set(1.0f), exp2<Isa, 6>(Isa::mul(bounded, Isa::set(-0x1.715476p+0f)))));
  }

  const ChannelNorm &op_;
};

}  // namespace
}  // namespace lolrt
