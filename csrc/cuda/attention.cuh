// What the kernels of frame_attention have in common: their arguments, and the arithmetic whose roundings are to be the same.
#pragma once

#include "core/ops.h"

#include <device/element.cuh>
#include <device/threads.cuh>

#include <cmath>

namespace lolrt::cuda {

constexpr int kAttentionRows = 128;  // of a block
constexpr float kLog2E = 0x1.715476p+0f;
// In powers of two; weights up to 2^8 lose no accuracy, and the output is almost never rescaled.
constexpr float kRescaleAbove = 8.0f;

// Whether an architecture has the kernel of frame_attention_sm90.cuh, which then takes the place of that of frame_attention.cuh.
__host__ __device__ constexpr bool runs_on_warpgroups(int architecture, int dim) { return architecture == 900 && dim == 128; }

__host__ __device__ constexpr int rounded_pairs(int64_t pairs) { return static_cast<int>((pairs + 3) / 4 * 4); }

// Frames whose rows a block may have.
constexpr int attention_frames(int64_t frames, int64_t tokens) {
  const int64_t touched = (kAttentionRows + tokens - 2) / tokens + 1;
  return static_cast<int>(touched < frames ? touched : frames);
}

struct AttentionArgument {
  FrameAttention op;
  int rows;               // of the queries of all frames
  int turned_chunks;      // of a query's row
  float score_scale;      // the scale times log2(e)
  int64_t head_elements;  // of K, and of V, of one head in a page
  int64_t values;         // elements from a page's K to its V
  float2 *page_state;     // [heads][pages][rows], for the mass: running maximum and sum of the weights at each page's end
};

// The first page from `page` on that is not left out for the head; op.pages when there is none.
__device__ __forceinline__ int next_page(const FrameAttention &op, int head, int page) {
  if (op.bias) {
    while (page < op.pages && op.bias[static_cast<int64_t>(page) * op.heads + head] == -INFINITY) ++page;
  }
  return page;
}

template <class Element>
__device__ __forceinline__ uint32_t turn(uint32_t word, float cos, float sin) {
  const float2 x = unpack<Element>(word);
  return pack<Element>(fmaf(x.x, cos, -(x.y * sin)), fmaf(x.y, cos, x.x * sin));
}

// The sum over the four lanes that share a row.
__device__ __forceinline__ float row_sum(float value) {
  value += exchange(value, 1);
  return value + exchange(value, 2);
}

__device__ __forceinline__ float row_max(float value) {
  value = fmaxf(value, exchange(value, 1));
  return fmaxf(value, exchange(value, 2));
}

}  // namespace lolrt::cuda
