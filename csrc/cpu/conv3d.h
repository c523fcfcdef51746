// conv3d for one instruction set.
//
//   out[f, y, x] = bias + residual[f, y, x] + sum over t, i, j of weight[t, i, j] * x[f + t - past_frames, y + i, x + j]
//
// Tensors: float32, channels last; weights packed in blocks of 16 output channels (lolrt.h). A direct convolution: a register
// block of pixels of one row by one or two vectors of output channels is accumulated over all taps and input channels, the pixels
// being broadcast. The taps of one row of the kernel are adjacent in memory on both sides, so they are one long sum. The kernel
// reads frames through pointers, so past and new frames need not be joined; padding is the caller's, so there are no borders.
//
// A task is one row of one frame for the channels of one register block; tasks of the same channels follow one another, so that
// their weights (27 * in * 128 bytes at most) stay in L2.
#pragma once

#include "core/ops.h"
#include "core/threads.h"

#include <cstdint>

namespace lolrt {
namespace {

template <class Isa>
class Conv3dKernel {
  using Vec = typename Isa::Vec;
  static constexpr int W = Isa::width;
  static constexpr int B = Conv3d::block;
  static constexpr int accumulators = Isa::rows * Isa::vecs;

 public:
  static void run(const Conv3d &op) {
    const Conv3dKernel kernel(op);
    const int vectors = static_cast<int>((op.out_channels + W - 1) / W);
    const int64_t groups = (vectors + 1) / 2, rows = op.frames * op.rows;
    parallel_for(groups * rows, lolrt_threads(), [&](int64_t task, int32_t) {
      const int64_t first = task / rows * 2 * W, frame = task % rows / op.rows, row = task % op.rows;
      if (op.out_channels - first > W) {
        kernel.convolve<2, accumulators / 2>(first, frame, row, 0);
      } else {
        kernel.convolve<1, accumulators>(first, frame, row, 0);
      }
    });
  }

 private:
  explicit Conv3dKernel(const Conv3d &op) : op_(op) {}

  // The row's pixels from `column` on: as many register blocks as fit, then blocks of half the size.
  template <int Vecs, int Pixels>
  void convolve(int64_t first, int64_t frame, int64_t row, int64_t column) const {
    for (; column + Pixels <= op_.columns; column += Pixels) block<Vecs, Pixels>(first, frame, row, column);
    if constexpr (Pixels > 1) convolve<Vecs, Pixels / 2>(first, frame, row, column);
  }

  template <int Vecs, int Pixels>
  void block(int64_t first, int64_t frame, int64_t row, int64_t column) const {
    const int64_t in = op_.in_channels, steps = op_.kernel_columns * in;
    const int64_t kernel_rows = op_.kernel_frames * op_.kernel_rows;
    const float *weight[Vecs];
    Vec sum[Pixels][Vecs];
#pragma GCC unroll 2
    for (int v = 0; v < Vecs; ++v) {
      const int64_t channel = first + v * W;
      weight[v] = op_.weight + channel / B * kernel_rows * steps * B + channel % B;
      const Vec bias = Isa::load(op_.bias + channel);
#pragma GCC unroll 24
      for (int p = 0; p < Pixels; ++p) sum[p][v] = bias;
    }
    for (int64_t t = 0; t < op_.kernel_frames; ++t) {
      const Conv3d::Frame x = op_.frame(frame + t);
      if (x.data == nullptr) continue;  // zeros
      for (int64_t i = 0; i < op_.kernel_rows; ++i) {
        const int64_t skipped = (t * op_.kernel_rows + i) * steps * B;
        // One pointer for every three pixels, so that all addresses fit into the general registers.
        const float *from[(Pixels + 2) / 3];
#pragma GCC unroll 8
        for (int g = 0; g < (Pixels + 2) / 3; ++g) from[g] = x.data + (row + i) * x.row + (column + 3 * g) * in;
        for (int64_t step = 0; step < steps; ++step) {
          Vec by[Vecs];
#pragma GCC unroll 2
          for (int v = 0; v < Vecs; ++v) by[v] = Isa::load(weight[v] + skipped + step * B);
#pragma GCC unroll 24
          for (int p = 0; p < Pixels; ++p) {
            const float pixel = from[p / 3][p % 3 * in];
#pragma GCC unroll 2
            for (int v = 0; v < Vecs; ++v) sum[p][v] = Isa::multiply_add(pixel, by[v], sum[p][v]);
          }
#pragma GCC unroll 8
          for (int g = 0; g < (Pixels + 2) / 3; ++g) ++from[g];
        }
      }
    }
#pragma GCC unroll 24
    for (int p = 0; p < Pixels; ++p) {
#pragma GCC unroll 2
      for (int v = 0; v < Vecs; ++v) finish(sum[p][v], first + v * W, frame, row, column + p);
    }
  }

  void finish(Vec sum, int64_t channel, int64_t frame, int64_t row, int64_t column) const {
    float *out = op_.out.pixel<float>(frame, row, column) + channel;
    const float *residual = op_.residual.data ? op_.residual.pixel<const float>(frame, row, column) + channel : nullptr;
    const int64_t left = op_.out_channels - channel;
    if (left >= W) {
      Isa::store(out, residual ? Isa::add(sum, Isa::load(residual)) : sum);
    } else {
      const int lanes = static_cast<int>(left);
      Isa::store_n(out, residual ? Isa::add(sum, Isa::load_n(residual, lanes)) : sum, lanes);
    }
  }

  const Conv3d &op_;
};

}  // namespace
}  // namespace lolrt
