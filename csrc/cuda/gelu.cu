// gelu on CUDA.
//
//   x = round_T(x / (1 + 2^(-k x (1 + 0.044715 x^2)))),  k = 2 sqrt(2 / pi) log2(e)
//
// which is GELU's tanh form x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), with one exponential and no cancellation.
//
// Tensor: x T [frames, tokens, channels], in place, read and written once. Rows as in rows.cuh.
#include "kernels.h"
#include "outcome.h"
#include "rows.cuh"

#include <device/launch.cuh>

#include <cinttypes>

namespace lolrt::cuda {
namespace {

struct Argument {
  Gelu op;
  RowFormat format;
};

__device__ __forceinline__ float gelu_of(float x) {
  constexpr float k = 2.0f * 0.797884561f * 1.44269504f;
  // Below -9.7 the result is less than 1e-35 in size. A NaN passes.
  x = x < -9.7f ? -9.7f : x;
  return x / (1.0f + exp2_approx(x * fmaf(x * x, -k * 0.044715f, -k)));
}

__global__ void __launch_bounds__(kRowThreads) gelu_kernel(const __grid_constant__ Argument argument) {
  const Gelu &op = argument.op;
  const int64_t row = row_of_warp();
  if (row >= op.frames * op.tokens) return;
  auto *x = static_cast<uint16_t *>(op.x.data) + row / op.tokens * op.x.frame + row % op.tokens * op.x.token;
  for_each_group(op.channels, [&](int64_t c, int64_t count) {
    float value[8];
    load(x + c, count, argument.format, value);
#pragma unroll
    for (float &v : value) v = gelu_of(v);
    store(x + c, count, argument.format, value);
  });
}

}  // namespace

CudaOutcome gelu(const Gelu &op) {
  if (op.frames * op.tokens > kMaxRows) {
    return problem(LOLRT_UNSUPPORTED, "gelu: %" PRId64 " rows; a grid has at most 2^32", op.frames * op.tokens);
  }
  const bool whole = op.channels % kLaneChannels == 0 && rows_aligned(2, op.x.data, op.x.frame, op.x.token);
  const Grid grid{row_blocks(op.frames, op.tokens), 1, 1, kRowThreads, 0};
  return launch("gelu", gelu_kernel, grid, op.target, Argument{op, {op.dtype == DType::bfloat16, whole}});
}

}  // namespace lolrt::cuda
