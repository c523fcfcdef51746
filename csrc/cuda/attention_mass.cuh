// The probe's second kernel: attention mass from the rows' states at each page's end.
#pragma once

#include "attention.cuh"

namespace lolrt::cuda {

constexpr int kMassThreads = 128;

// mass[entry, page, frame, head] = mean over the frame's tokens of the weight that they spend on the page: what the sum of the
// weights has grown by on it, in its part of the tile, by the sum over all parts. A block is one such number.
__global__ void __launch_bounds__(kMassThreads) attention_mass_kernel(const __grid_constant__ AttentionArgument argument) {
  const FrameAttention &op = argument.op;
  const WorkSplit &split = argument.split;
  const int entry = static_cast<int>(blockIdx.y) / argument.frames, frame = static_cast<int>(blockIdx.y) % argument.frames;
  const int pages = split.pages, first = entry * pages;  // of the entry, among all entries' pages
  const int page = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.z);
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes, warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const auto left_out = [&](int other) { return passed_over(op, head, first + other); };
  // The last page before `end` that has been weighed; before `begin` when there is none.
  const auto last_before = [&](int end, int begin) {
    while (--end >= begin && left_out(end)) continue;
    return end;
  };
  const int tokens = static_cast<int>(op.tokens);
  float sum = 0.0f;
  for (int token = static_cast<int>(threadIdx.x); token < tokens && !left_out(page); token += kMassThreads) {
    const int row = frame * tokens + token, tile = head * split.head_tiles + row / kAttentionRows;
    const auto state_at = [&](int other) {
      return argument.page_state[((first + other) * op.heads + head) * argument.rows + row];
    };
    float2 all{-INFINITY, 0.0f};
    for (int begin = 0, end; begin < pages; begin = end) {
      end = split.part_end(tile, begin);
      const int last = last_before(end, begin);
      if (last < begin) continue;
      const float2 part = state_at(last);
      const float max = fmaxf(all.x, part.x);
      all = {max, all.y * rescaling(all.x, max) + part.y * rescaling(part.x, max)};
    }
    const float2 here = state_at(page);
    float weight = here.y * rescaling(here.x, all.x);
    const int begin = split.part_begin(tile, page), before = last_before(page, begin);
    if (before >= begin) {
      const float2 earlier = state_at(before);
      weight -= earlier.y * rescaling(earlier.x, all.x);
    }
    sum += weight / all.y;
  }
  for (int mask = 1; mask < kWarpLanes; mask *= 2) sum += exchange(sum, mask);
  auto *sums = reinterpret_cast<float *>(shared_memory());
  if (lane == 0) sums[warp] = sum;
  sync_block();
  if (threadIdx.x == 0) {
    float mass = 0.0f;
    for (int i = 0; i < kMassThreads / kWarpLanes; ++i) mass += sums[i];
    // The difference of two sums may round to less than nothing.
    op.mass[((first + page) * static_cast<int64_t>(argument.frames) + frame) * op.heads + head] =
        mass < 0.0f ? 0.0f : mass / static_cast<float>(op.tokens);
  }
}

}  // namespace lolrt::cuda
