// modulated_norm on CUDA.
//
//   x = round_T(x + gate * residual) if there is a residual;  out = round_T((x - mean) * rsqrt(var + eps) * scale + shift)
//
// Tensors: x, residual, out T [frames, tokens, channels]; gate, scale, shift float32 [1 or frames, channels]. Mean and variance
// over the channels, of the x that is stored, the variance from the centred values. Rows as in rows.cuh; a row is read three
// times, from L1 after the first, each lane what it has written itself.
#include "kernels.h"
#include "outcome.h"
#include "rows.cuh"

#include <device/launch.cuh>

#include <cinttypes>

namespace lolrt::cuda {
namespace {

struct Argument {
  ModulatedNorm op;
  RowFormat format;
};

__device__ __forceinline__ uint16_t *row_at(const ChannelRows &rows, int64_t frame, int64_t token) {
  return static_cast<uint16_t *>(rows.data) + frame * rows.frame + token * rows.token;
}

__global__ void __launch_bounds__(kRowThreads) modulated_norm_kernel(const __grid_constant__ Argument argument) {
  const ModulatedNorm &op = argument.op;
  const RowFormat format = argument.format;
  const int64_t row = row_of_warp();
  if (row >= op.frames * op.tokens) return;
  const int64_t frame = row / op.tokens, token = row % op.tokens;
  uint16_t *x = row_at(op.x, frame, token);

  float sum = 0.0f;
  if (op.residual.data) {
    const uint16_t *residual = row_at(op.residual, frame, token);
    for_each_group(op.channels, [&](int64_t c, int64_t count) {
      float value[8], added[8], gate[8];
      load(x + c, count, format, value);
      load(residual + c, count, format, added);
      if (op.gate.data) load(op.gate.data + frame * op.gate.frame + c, count, format, gate);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        value[i] = rounded(op.gate.data ? fmaf(gate[i], added[i], value[i]) : added[i] + value[i], format.bf16);
        sum += value[i];
      }
      store(x + c, count, format, value);
    });
  } else {
    for_each_group(op.channels, [&](int64_t c, int64_t count) {
      float value[8];
      load(x + c, count, format, value);
#pragma unroll
      for (float v : value) sum += v;
    });
  }
  const float mean = warp_sum(sum) / static_cast<float>(op.channels);

  float squares = 0.0f;
  for_each_group(op.channels, [&](int64_t c, int64_t count) {
    float value[8];
    load(x + c, count, format, value);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float centred = i < count ? value[i] - mean : 0.0f;
      squares = fmaf(centred, centred, squares);
    }
  });
  const float inverse = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(op.channels) + op.eps);

  uint16_t *out = row_at(op.out, frame, token);
  for_each_group(op.channels, [&](int64_t c, int64_t count) {
    float value[8], scale[8], shift[8];
    load(x + c, count, format, value);
    load(op.scale.data + frame * op.scale.frame + c, count, format, scale);
    load(op.shift.data + frame * op.shift.frame + c, count, format, shift);
#pragma unroll
    for (int i = 0; i < 8; ++i) value[i] = fmaf((value[i] - mean) * inverse, scale[i], shift[i]);
    store(out + c, count, format, value);
  });
}

bool whole(const ChannelRows &rows) { return rows_aligned(2, rows.data, rows.frame, rows.token); }
bool whole(const FrameVector &vector) { return rows_aligned(4, vector.data, vector.frame); }

}  // namespace

CudaOutcome modulated_norm(const ModulatedNorm &op) {
  if (op.frames * op.tokens > kMaxRows) {
    return problem(LOLRT_UNSUPPORTED, "modulated_norm: %" PRId64 " rows; a grid has at most 2^32", op.frames * op.tokens);
  }
  const bool all_whole = op.channels % kLaneChannels == 0 && whole(op.x) && whole(op.residual) && whole(op.out) &&
                         whole(op.gate) && whole(op.scale) && whole(op.shift);
  const Grid grid{row_blocks(op.frames, op.tokens), 1, 1, kRowThreads, 0};
  return launch("modulated_norm", modulated_norm_kernel, grid, op.target, Argument{op, {op.dtype == DType::bfloat16, all_whole}});
}

}  // namespace lolrt::cuda
