// Ops on rows of channels: a warp takes a row, its lanes 8 channels at a time. The element type is an argument, not a template's:
// these kernels wait for memory, and a select costs them nothing.
#pragma once

#include "core/ops.h"

#include <device/element.cuh>
#include <device/threads.cuh>

namespace lolrt::cuda {

constexpr int kRowThreads = 128;  // a block's; four rows
constexpr int kRowsOfBlock = kRowThreads / kWarpLanes;
constexpr int kLaneChannels = 8;  // 16 bytes

struct RowFormat {
  bool bf16;   // or float16
  bool whole;  // all rows are 16-byte aligned and hold whole groups of 8 channels
};

__device__ __forceinline__ float2 unpack(uint32_t word, bool bf16) { return bf16 ? unpack<Bf16>(word) : unpack<Fp16>(word); }

__device__ __forceinline__ uint32_t pack(float first, float second, bool bf16) {
  return bf16 ? pack<Bf16>(first, second) : pack<Fp16>(first, second);
}

// x rounded to the element type.
__device__ __forceinline__ float rounded(float x, bool bf16) { return unpack(pack(x, 0.0f, bf16), bf16).x; }

__device__ __forceinline__ void unpack(const uint4 &words, bool bf16, float (&x)[8]) {
  const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack(word[i], bf16);
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
}

__device__ __forceinline__ uint4 pack(const float (&x)[8], bool bf16) {
  return {pack(x[0], x[1], bf16), pack(x[2], x[3], bf16), pack(x[4], x[5], bf16), pack(x[6], x[7], bf16)};
}

// The next `count` channels of a row, at most 8; zeros beyond.
__device__ __forceinline__ void load(const uint16_t *from, int64_t count, RowFormat format, float (&x)[8]) {
  if (format.whole) {
    unpack(load_vector(from), format.bf16, x);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = i < count ? unpack(from[i], format.bf16).x : 0.0f;
  }
}

__device__ __forceinline__ void load(const float *from, int64_t count, RowFormat format, float (&x)[8]) {
  if (format.whole) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      const uint4 words = load_vector(from + i);
      x[i] = __uint_as_float(words.x), x[i + 1] = __uint_as_float(words.y);
      x[i + 2] = __uint_as_float(words.z), x[i + 3] = __uint_as_float(words.w);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = i < count ? from[i] : 0.0f;
  }
}

__device__ __forceinline__ void store(uint16_t *to, int64_t count, RowFormat format, const float (&x)[8]) {
  const uint4 words = pack(x, format.bf16);
  if (format.whole) {
    store_vector(to, words);
  } else {
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < count) to[i] = static_cast<uint16_t>(word[i / 2] >> (16 * (i % 2)));
    }
  }
}

// f(channel, count) for each group of channels that this lane takes.
template <class F>
__device__ __forceinline__ void for_each_group(int64_t channels, const F &f) {
  for (int64_t c = threadIdx.x % kWarpLanes * kLaneChannels; c < channels; c += kWarpLanes * kLaneChannels) {
    f(c, channels - c < kLaneChannels ? channels - c : kLaneChannels);
  }
}

// The sum over all lanes, the same bits in each.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int mask = 1; mask < kWarpLanes; mask *= 2) value += exchange(value, mask);
  return value;
}

// This warp's row of all frames' rows; may be beyond the last.
__device__ __forceinline__ int64_t row_of_warp() {
  return static_cast<int64_t>(blockIdx.x) * kRowsOfBlock + threadIdx.x / kWarpLanes;
}

// Blocks for so many rows.
inline unsigned row_blocks(int64_t frames, int64_t tokens) {
  return static_cast<unsigned>((frames * tokens + kRowsOfBlock - 1) / kRowsOfBlock);
}

constexpr int64_t kMaxRows = INT64_C(1) << 32;  // a grid has 2^31 - 1 blocks

}  // namespace lolrt::cuda
