// The probe's second kernel: attention mass from the rows' states at each page's end.
#pragma once

#include "attention.cuh"

namespace lolrt::cuda {

constexpr int kMassThreads = 128;

// mass[page, frame, head] = mean over the frame's tokens of the weight that they spend on the page: what the sum of the weights
// has grown by on it. A block is one such number.
__global__ void __launch_bounds__(kMassThreads) attention_mass_kernel(const __grid_constant__ AttentionArgument argument) {
  const FrameAttention &op = argument.op;
  const int64_t page = blockIdx.x, frame = blockIdx.y, head = blockIdx.z, rows = op.frames * op.tokens;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes, warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const auto left_out = [&](int64_t other) { return op.bias && op.bias[other * op.heads + head] == -INFINITY; };
  float sum = 0.0f;
  if (!left_out(page)) {
    int64_t last = op.pages - 1, before = page - 1;
    while (left_out(last)) --last;
    while (before >= 0 && left_out(before)) --before;
    const float2 *state = argument.page_state + head * op.pages * rows + frame * op.tokens;
    for (int64_t token = threadIdx.x; token < op.tokens; token += kMassThreads) {
      const float2 all = state[last * rows + token], here = state[page * rows + token];
      float weight = here.y * exp2_approx(here.x - all.x);
      if (before >= 0) {
        const float2 earlier = state[before * rows + token];
        weight -= earlier.y * exp2_approx(earlier.x - all.x);
      }
      sum += weight / all.y;
    }
  }
  for (int mask = 1; mask < kWarpLanes; mask *= 2) sum += exchange(sum, mask);
  auto *sums = reinterpret_cast<float *>(shared_memory());
  if (lane == 0) sums[warp] = sum;
  sync_block();
  if (threadIdx.x == 0) {
    float mass = 0.0f;
    for (int i = 0; i < kMassThreads / kWarpLanes; ++i) mass += sums[i];
    // The difference of two sums may round to less than nothing.
    op.mass[(page * op.frames + frame) * op.heads + head] = mass < 0.0f ? 0.0f : mass / static_cast<float>(op.tokens);
  }
}

}  // namespace lolrt::cuda
