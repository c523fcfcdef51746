// kv_write on CUDA.
//
//   x' = round_T(round_T(x * rsqrt(mean(x^2) + eps)) * weight), mean over all heads of a token; pairs of x' from
//   rotation_first_channel on are rotated and rounded to T once. Without a weight x' = x.
//
// Tensors: q, k, v, q_out T [frames, tokens, heads, dim]; weights T [heads, dim]; rotation float32 [tokens, pairs, 2]; K and V
// T [heads][tokens][dim] in each page. All rows are 16-byte aligned and dim is a multiple of 8. A warp takes all heads of a token
// of q, of k or of v (blockIdx.y); it reads the row twice, from L1 the second time.
#include "kernels.h"
#include "outcome.h"
#include "rows.cuh"

#include <device/launch.cuh>

#include <cinttypes>

namespace lolrt::cuda {
namespace {

enum Part { kQueries, kKeys, kValues };

struct Argument {
  KvWrite op;
  bool bf16;
  int first_part;         // of those that are there
  int64_t head_elements;  // of K, and of V, of one head in a page
  int64_t values;         // elements from a page's K to its V
};

__device__ __forceinline__ const uint4 *group_at(const HeadRows &rows, int64_t frame, int64_t token, int64_t head,
                                                 int64_t channel) {
  return reinterpret_cast<const uint4 *>(static_cast<const uint16_t *>(rows.data) + frame * rows.frame + token * rows.token +
                                         head * rows.head + channel);
}

// The projected group of 8 channels from `channel` of a head on; scale is 1 / rms of the token.
__device__ __forceinline__ uint4 project(const Argument &argument, const uint4 &x, const uint16_t *weight, float scale,
                                         int64_t token, int64_t channel) {
  const KvWrite &op = argument.op;
  float value[8];
  unpack(x, argument.bf16, value);
  if (weight) {
    float by[8];
    unpack(*reinterpret_cast<const uint4 *>(weight), argument.bf16, by);
#pragma unroll
    for (int i = 0; i < 8; ++i) value[i] = rounded(rounded(value[i] * scale, argument.bf16) * by[i], argument.bf16);
  }
  if (op.rotation) {
    const int64_t first_pair = (channel - op.rotation_first_channel) / 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t pair = first_pair + i;
      if (pair < 0 || pair >= op.pairs) continue;
      const float2 angle = reinterpret_cast<const float2 *>(op.rotation)[token * op.pairs + pair];
      const float x0 = value[2 * i], x1 = value[2 * i + 1];
      value[2 * i] = fmaf(x0, angle.x, -(x1 * angle.y));
      value[2 * i + 1] = fmaf(x1, angle.x, x0 * angle.y);
    }
  }
  return pack(value, argument.bf16);
}

__global__ void __launch_bounds__(kRowThreads) kv_write_kernel(const __grid_constant__ Argument argument) {
  const KvWrite &op = argument.op;
  const int64_t row = row_of_warp();
  if (row >= op.frames * op.tokens) return;
  const int64_t frame = row / op.tokens, token = row % op.tokens, channels = op.heads * op.dim;
  const int part = argument.first_part + static_cast<int>(blockIdx.y);
  const HeadRows &from = part == kQueries ? op.q : part == kKeys ? op.k : op.v;
  const auto *weight = static_cast<const uint16_t *>(part == kQueries ? op.q_weight : part == kKeys ? op.k_weight : nullptr);
  float scale = 1.0f;
  if (weight) {
    float squares = 0.0f;
    for_each_group(channels, [&](int64_t c, int64_t) {
      float value[8];
      unpack(*group_at(from, frame, token, c / op.dim, c % op.dim), argument.bf16, value);
#pragma unroll
      for (float v : value) squares = fmaf(v, v, squares);
    });
    scale = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(channels) + op.eps);
  }
  uint16_t *page = part == kQueries ? nullptr
                                    : static_cast<uint16_t *>(op.pages) + op.page_table[frame] * op.page_stride +
                                          (part == kValues ? argument.values : 0);
  for_each_group(channels, [&](int64_t c, int64_t) {
    const int64_t head = c / op.dim, channel = c % op.dim;
    const uint4 x = *group_at(from, frame, token, head, channel);
    if (part == kQueries) {
      *const_cast<uint4 *>(group_at(op.q_out, frame, token, head, channel)) =
          project(argument, x, weight ? weight + c : nullptr, scale, token, channel);
    } else {
      auto *to = reinterpret_cast<uint4 *>(page + head * argument.head_elements + token * op.dim + channel);
      *to = part == kValues ? x : project(argument, x, weight ? weight + c : nullptr, scale, token, channel);
    }
  });
}

}  // namespace

CudaOutcome kv_write(const KvWrite &op) {
  if (op.dim % kLaneChannels != 0) {
    return problem(LOLRT_UNSUPPORTED, "kv_write: dim is %" PRId64 "; on CUDA it is a multiple of 8", op.dim);
  }
  if (op.frames * op.tokens > kMaxRows) {
    return problem(LOLRT_UNSUPPORTED, "kv_write: %" PRId64 " rows; a grid has at most 2^32", op.frames * op.tokens);
  }
  if (!rows_aligned(op.q) || !rows_aligned(op.k) || !rows_aligned(op.v) || !rows_aligned(op.q_out) || !aligned(16, op.q_weight) ||
      !aligned(16, op.k_weight) || !rows_aligned(2, op.pages, op.page_stride)) {
    return problem(LOLRT_UNSUPPORTED,
                   "kv_write: rows of q, k, v, q_out, the weights or pages are not 16-byte aligned; copy them first");
  }
  if (!aligned(8, op.rotation)) return problem(LOLRT_UNSUPPORTED, "kv_write: rotation is not 8-byte aligned");
  const PageLayout layout(LOLRT_DEVICE_CUDA, op.dtype, op.tokens, op.heads, op.dim);
  const unsigned parts = (op.q.data ? 1u : 0u) + (op.k.data ? 2u : 0u);
  const Grid grid{row_blocks(op.frames, op.tokens), parts, 1, kRowThreads, 0};
  const Argument argument{op, op.dtype == DType::bfloat16, op.q.data ? kQueries : kKeys, layout.key_head, layout.values};
  return launched("kv_write", launch(kv_write_kernel, grid, op.place.stream, argument));
}

}  // namespace lolrt::cuda
