// What the kernels of kv_write have in common: their argument, and a projected group of channels.
#pragma once

#include "rows.cuh"

namespace lolrt::cuda {

enum Part { kQueries, kKeys, kValues };

struct KvArgument {
  KvWrite op;
  bool bf16;
  int first_part;         // of those that are there
  int64_t head_elements;  // of K, and of V, of one head in a page
  int64_t values;         // elements from a page's K to its V
  int64_t scales;         // and to its scales, if it has any
};

__device__ __forceinline__ const HeadRows &rows_of(const KvWrite &op, int part) {
  return part == kQueries ? op.q : part == kKeys ? op.k : op.v;
}

__device__ __forceinline__ const uint16_t *weight_of(const KvWrite &op, int part) {
  return static_cast<const uint16_t *>(part == kQueries ? op.q_weight : part == kKeys ? op.k_weight : nullptr);
}

__device__ __forceinline__ const uint4 *group_at(const HeadRows &rows, int64_t frame, int64_t token, int64_t head,
                                                 int64_t channel) {
  return reinterpret_cast<const uint4 *>(static_cast<const uint16_t *>(rows.data) + frame * rows.frame + token * rows.token +
                                         head * rows.head + channel);
}

// The projected group of 8 channels from `channel` of a head on; scale is 1 / rms of the token.
__device__ __forceinline__ uint4 project(const KvArgument &argument, const uint4 &x, const uint16_t *weight, float scale,
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

// 1 / rms of a token, over all heads; 1 where nothing is normalised. All lanes of the warp take part.
__device__ __forceinline__ float scale_of_token(const KvArgument &argument, int part, int64_t frame, int64_t token) {
  const KvWrite &op = argument.op;
  if (!weight_of(op, part)) return 1.0f;
  const int64_t channels = op.heads * op.dim;
  float squares = 0.0f;
  for_each_group(channels, [&](int64_t c, int64_t) {
    float value[8];
    unpack(*group_at(rows_of(op, part), frame, token, c / op.dim, c % op.dim), argument.bf16, value);
#pragma unroll
    for (float v : value) squares = fmaf(v, v, squares);
  });
  return 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(channels) + op.eps);
}

// The group as it is stored: projected, or as it is, of values.
__device__ __forceinline__ uint4 group_to_store(const KvArgument &argument, int part, float scale, int64_t frame, int64_t token,
                                                int64_t head, int64_t channel) {
  const uint4 x = *group_at(rows_of(argument.op, part), frame, token, head, channel);
  if (part == kValues) return x;
  const uint16_t *weight = weight_of(argument.op, part);
  return project(argument, x, weight ? weight + head * argument.op.dim + channel : nullptr, scale, token, channel);
}

}  // namespace lolrt::cuda
