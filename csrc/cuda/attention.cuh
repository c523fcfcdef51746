// What the kernels of frame_attention have in common: their arguments, and the arithmetic whose roundings are to be the same.
#pragma once

#include "core/ops.h"
#include "work_split.cuh"

#include <device/element.cuh>
#include <device/threads.cuh>

#include <cmath>

namespace lolrt::cuda {

constexpr float kLog2E = 0x1.715476p+0f;
// In powers of two; weights up to 2^8 lose no accuracy, and the output is almost never rescaled.
constexpr float kRescaleAbove = 8.0f;

// Whether an architecture has the kernel of frame_attention_sm90.cuh, which then takes the place of that of frame_attention.cuh.
// Its products read K and V in shared memory, where they have to be of the queries' type.
__host__ __device__ constexpr bool runs_on_warpgroups(int architecture, int stored_bytes, int dim) {
  return architecture == 900 && stored_bytes == 2 && dim == 128;
}

__host__ __device__ constexpr int rounded_pairs(int64_t pairs) { return static_cast<int>((pairs + 3) / 4 * 4); }

// Frames whose rows a tile may have.
constexpr int attention_frames(int64_t frames, int64_t tokens) {
  const int64_t touched = (kAttentionRows + tokens - 2) / tokens + 1;
  return static_cast<int>(touched < frames ? touched : frames);
}

struct AttentionArgument {
  FrameAttention op;
  int frames;             // of an entry of the batch
  int rows;               // of its queries
  int turned_chunks;      // of a query's row
  float score_scale;      // the scale times log2(e)
  int64_t head_elements;  // of K, and of V, of one head in a page
  int64_t values;         // elements from a page's K to its V
  int64_t scales;         // and to its scales, if it has any
  WorkSplit split;
  float2 *page_state;  // [batch][pages][heads][rows], for the mass: running maximum and sum of the weights at each page's end
  float2 *part_state;  // [batch][cut tiles' parts][128]: maximum and sum of the weights of a part's rows
  float *part_out;     // [batch][cut tiles' parts][128][dim]: their output, not divided by the sum
};

// What a block does. The grid's rows are the batch's entries, each of which is split as it would be alone. Pages are counted over
// all entries, as page table, rotation and bias have them.
__device__ __forceinline__ Segment segment_of(const AttentionArgument &argument, int block, int entry) {
  Segment segment = argument.split.segment(block);
  const int first = entry * argument.split.pages;
  segment.page += first;
  segment.pages_end += first;
  return segment;
}

// Whether a page is not there, and nothing of it may be read, or is left out for the head.
__device__ __forceinline__ bool passed_over(const FrameAttention &op, int head, int page) {
  return op.page_table[page] < 0 || (op.bias && op.bias[static_cast<int64_t>(page) * op.heads + head] == -INFINITY);
}

// The first page from `page` on that is not passed over; pages_end when there is none before. All who ask get the same answer.
__device__ __forceinline__ int next_page(const FrameAttention &op, int head, int page, int pages_end) {
  while (page < pages_end && passed_over(op, head, page)) ++page;
  return page;
}

// Of a page that is not passed over, times log2(e). NaN stays NaN.
__device__ __forceinline__ float page_bias(const FrameAttention &op, int head, int page) {
  if (!op.bias) return 0.0f;
  const float bias = op.bias[static_cast<int64_t>(page) * op.heads + head];
  return (bias < -kMostBias ? -kMostBias : bias > kMostBias ? kMostBias : bias) * kLog2E;
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

// What weights with respect to a maximum are multiplied by when it becomes `max`. Nothing has been weighed while it is -inf; it
// stays so when all scores are NaN.
__device__ __forceinline__ float rescaling(float from, float max) { return from == -INFINITY ? 0.0f : exp2_approx(from - max); }

// A row of an entry's q or out, by pairs of elements.
__device__ __forceinline__ uint32_t *row_words(const AttentionArgument &argument, const HeadRows &rows, int entry, int head,
                                               int row) {
  const int tokens = static_cast<int>(argument.op.tokens), frame = entry * argument.frames + row / tokens;
  const int64_t element = frame * rows.frame + row % tokens * rows.token + head * rows.head;
  return reinterpret_cast<uint32_t *>(static_cast<uint16_t *>(rows.data) + element);
}

// Stores a row that four lanes share, chunk by chunk of 8 channels; `row` is the tile's, `sum` this lane's part, and `pair(n)`
// its two channels of chunk n.
template <class Element, int Dim, class Pair>
__device__ __forceinline__ void store_row(const AttentionArgument &argument, const Segment &segment, int row, float max,
                                          float lane_sum, const Pair &pair) {
  const int quarter = static_cast<int>(threadIdx.x) % 4, entry = static_cast<int>(blockIdx.y);
  const float sum = row_sum(lane_sum);
  if (segment.part >= 0) {
    const int64_t part_row = argument.split.part_row(entry, segment.part, row);
    if (quarter == 0) argument.part_state[part_row] = {max, sum};
    auto *pairs = reinterpret_cast<float2 *>(argument.part_out + part_row * Dim) + quarter;
#pragma unroll
    for (int n = 0; n < Dim / 8; ++n) pairs[4 * n] = pair(n);
  } else if (segment.first_row + row < argument.rows) {
    // Where all pages are passed over there are no weights: the output is 0.
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    uint32_t *words = row_words(argument, argument.op.out, entry, segment.head, segment.first_row + row) + quarter;
#pragma unroll
    for (int n = 0; n < Dim / 8; ++n) {
      const float2 x = pair(n);
      words[4 * n] = pack<Element>(x.x * inverse, x.y * inverse);
    }
  }
}

}  // namespace lolrt::cuda
