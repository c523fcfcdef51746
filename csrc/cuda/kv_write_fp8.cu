// kv_write to pages of float8_e4m3fn: x' of kv_write.cu, divided by its head's scale and rounded.
//
// The scale follows from the largest |x'| of the head in the page, which takes three kernels, one after another:
//   maxima     a warp to a row: the largest |x'| of each head in the row, float32, where the row's first bytes will be
//   scales     a block to a head of a page's K or V: the largest of these; its scale
//   quantise   a warp to a row: x' once more, in 8 bits
// So what is kept from one to the next is in the page itself, and no order of threads or blocks shows in the result.
//
// K and V are [heads][tokens][128] bytes in each page, the order of channels that of core/page_layout.h; a lane has 16 channels.
#include "kv_write_fp8.h"

#include "kv_write.cuh"

#include <device/launch.cuh>

namespace lolrt::cuda {
namespace {

constexpr int kDim = 128, kGroup = 16, kHeadLanes = kDim / kGroup;
constexpr int kLeastExponent = -100, kMostExponent = 7;  // of a scale
constexpr float kWider = 0x1p120f;                       // attention_products.cuh

__device__ __forceinline__ int part_of_block() { return kKeys + static_cast<int>(blockIdx.y); }

__device__ __forceinline__ uint8_t *page_of(const KvArgument &argument, int64_t frame) {
  return static_cast<uint8_t *>(argument.op.pages) + argument.op.page_table[frame] * argument.op.page_stride;
}

__device__ __forceinline__ uint8_t *row_at(const KvArgument &argument, int part, int64_t frame, int64_t head, int64_t token) {
  return page_of(argument, frame) + (part == kValues ? argument.values : 0) + head * argument.head_elements + token * kDim;
}

__device__ __forceinline__ float *scale_at(const KvArgument &argument, int part, int64_t frame, int64_t head) {
  return reinterpret_cast<float *>(page_of(argument, frame) + argument.scales) + 2 * head + (part == kValues ? 1 : 0);
}

// NaN when one of them is.
__device__ __forceinline__ float larger(float a, float b) { return a > b || a != a ? a : b; }

// f(head, channel, is there) for each group of 16 channels that this lane takes; of a head that is not there for some, so that
// all lanes come as often.
template <class F>
__device__ __forceinline__ void for_each_group_of_16(int64_t heads, const F &f) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  for (int64_t head = lane / kHeadLanes; head - lane / kHeadLanes < heads; head += kWarpLanes / kHeadLanes) {
    f(head, lane % kHeadLanes * kGroup, head < heads);
  }
}

__global__ void __launch_bounds__(kRowThreads) kv_write_maxima_kernel(const __grid_constant__ KvArgument argument) {
  const KvWrite &op = argument.op;
  const int64_t row = row_of_warp();
  if (row >= op.frames * op.tokens) return;
  const int64_t frame = row / op.tokens, token = row % op.tokens;
  const int part = part_of_block();
  const float scale = scale_of_token(argument, part, frame, token);
  for_each_group_of_16(op.heads, [&](int64_t head, int channel, bool there) {
    float most = 0.0f;
#pragma unroll
    for (int i = 0; i < kGroup && there; i += 8) {
      float x[8];
      unpack(group_to_store(argument, part, scale, frame, token, head, channel + i), true, x);
#pragma unroll
      for (float value : x) most = larger(most, fabsf(value));
    }
#pragma unroll
    for (int mask = 1; mask < kHeadLanes; mask *= 2) most = larger(most, exchange(most, mask));
    if (there && channel == 0) *reinterpret_cast<float *>(row_at(argument, part, frame, head, token)) = most;
  });
}

// The least power of two with which `most` does not pass 448, the largest number of e4m3; NaN when there is none.
__device__ __forceinline__ float scale_for(float most) {
  const uint32_t bits = __float_as_uint(most);
  int exponent = static_cast<int>(bits >> 23) - 127 - 8 + ((bits & 0x7fffff) > 0x600000 ? 1 : 0);  // 448 is 1.75 * 2^8
  if (exponent > kMostExponent) return __uint_as_float(0x7fffffff);
  if (exponent < kLeastExponent) exponent = kLeastExponent;
  return __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23);
}

// Blocks are frames, K and V, and heads.
__global__ void __launch_bounds__(kRowThreads) kv_write_scales_kernel(const __grid_constant__ KvArgument argument) {
  const int64_t frame = blockIdx.x, head = blockIdx.z;
  const int part = part_of_block(), thread = static_cast<int>(threadIdx.x);
  float most = 0.0f;
  for (int64_t token = thread; token < argument.op.tokens; token += kRowThreads) {
    most = larger(most, *reinterpret_cast<const float *>(row_at(argument, part, frame, head, token)));
  }
#pragma unroll
  for (int mask = 1; mask < kWarpLanes; mask *= 2) most = larger(most, exchange(most, mask));
  auto *of_warps = reinterpret_cast<float *>(shared_memory());
  if (thread % kWarpLanes == 0) of_warps[thread / kWarpLanes] = most;
  sync_block();
  if (thread == 0) {
    for (int warp = 1; warp < kRowThreads / kWarpLanes; ++warp) most = larger(most, of_warps[warp]);
    *scale_at(argument, part, frame, head) = scale_for(most);
  }
}

// x in e4m3, rounded to nearest, ties to even, when `factor` is 2^-120 by its scale. The product has the exponents of e4m3 in
// their own place, so that its upper bits are the result, for subnormal numbers as well.
__device__ __forceinline__ uint32_t narrow(float x, float factor) {
  const uint32_t bits = __float_as_uint(x * factor), magnitude = bits & 0x7fffffff;
  return (magnitude + 0x7ffff + (magnitude >> 20 & 1)) >> 20 | bits >> 24 & 0x80;
}

__global__ void __launch_bounds__(kRowThreads) kv_write_quantise_kernel(const __grid_constant__ KvArgument argument) {
  const KvWrite &op = argument.op;
  const int64_t row = row_of_warp();
  if (row >= op.frames * op.tokens) return;
  const int64_t frame = row / op.tokens, token = row % op.tokens;
  const int part = part_of_block();
  const float scale = scale_of_token(argument, part, frame, token);
  for_each_group_of_16(op.heads, [&](int64_t head, int channel, bool there) {
    if (!there) return;
    const float factor = 1.0f / kWider / *scale_at(argument, part, frame, head);
    uint32_t code[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; i += 8) {
      float x[8];
      unpack(group_to_store(argument, part, scale, frame, token, head, channel + i), true, x);
#pragma unroll
      for (int j = 0; j < 8; ++j) code[i + j] = narrow(x[j], factor);
    }
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int c = 2 * i;  // and c + 1, c + 8 and c + 9
      words[i] = part == kKeys ? code[c] | code[c + 1] << 8 | code[c + 8] << 16 | code[c + 9] << 24
                               : code[c] | code[c + 8] << 8 | code[c + 1] << 16 | code[c + 9] << 24;
    }
    store_vector(row_at(argument, part, frame, head, token) + channel, {words[0], words[1], words[2], words[3]});
  });
}

}  // namespace

CudaOutcome launch_kv_write_fp8(const KvArgument &argument) {
  const KvWrite &op = argument.op;
  const Grid rows{row_blocks(op.frames, op.tokens), 2, 1, kRowThreads, 0};
  const Grid heads{static_cast<unsigned>(op.frames), 2, static_cast<unsigned>(op.heads), kRowThreads,
                   kRowThreads / kWarpLanes * sizeof(float)};
  CudaOutcome outcome = launch("kv_write", kv_write_maxima_kernel, rows, op.target, argument);
  if (outcome.status == LOLRT_OK) outcome = launch("kv_write", kv_write_scales_kernel, heads, op.target, argument);
  return outcome.status != LOLRT_OK ? outcome : launch("kv_write", kv_write_quantise_kernel, rows, op.target, argument);
}

}  // namespace lolrt::cuda
