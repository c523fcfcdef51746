// Puts the parts of the tiles that are cut together (work_split.cuh).
#pragma once

#include "attention.cuh"

namespace lolrt::cuda {

constexpr int kCombineThreads = 128, kCombineWarpRows = 4;  // a warp has its rows one after another
constexpr int kCombineRows = kCombineThreads / kWarpLanes * kCombineWarpRows;

// A block is `kCombineRows` rows of a tile of an entry that is cut; a lane has pairs of channels.
__global__ void __launch_bounds__(kCombineThreads) attention_combine_kernel(const __grid_constant__ AttentionArgument argument) {
  const WorkSplit &split = argument.split;
  const FrameAttention &op = argument.op;
  const int cut_tile = static_cast<int>(blockIdx.x), entry = static_cast<int>(blockIdx.z), dim = static_cast<int>(op.dim);
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes, warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const Segment tile = split.segment(split.whole + cut_tile);
  const int64_t first = split.part_row(entry, cut_tile, 0);  // of the tile's first part
  const int warp_row = static_cast<int>(blockIdx.y) * kCombineRows + warp * kCombineWarpRows;
  for (int row = warp_row; row < warp_row + kCombineWarpRows && tile.first_row + row < argument.rows; ++row) {
    const auto row_of_part = [&](int part) { return first + static_cast<int64_t>(part) * split.cut * kAttentionRows + row; };
    float max = -INFINITY, sum = 0.0f;
    for (int part = 0; part < split.parts; ++part) max = fmaxf(max, argument.part_state[row_of_part(part)].x);
    for (int part = 0; part < split.parts; ++part) {
      const float2 state = argument.part_state[row_of_part(part)];
      sum = fmaf(state.y, rescaling(state.x, max), sum);
    }
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    uint32_t *words = row_words(argument, op.out, entry, tile.head, tile.first_row + row);
    for (int pair = lane; pair < dim / 2; pair += kWarpLanes) {
      float2 out{0.0f, 0.0f};
      for (int part = 0; part < split.parts; ++part) {
        const float factor = rescaling(argument.part_state[row_of_part(part)].x, max);
        const float2 x = reinterpret_cast<const float2 *>(argument.part_out + row_of_part(part) * dim)[pair];
        out = {fmaf(x.x, factor, out.x), fmaf(x.y, factor, out.y)};
      }
      const float first = out.x * inverse, second = out.y * inverse;
      words[pair] = op.dtype == DType::bfloat16 ? pack<Bf16>(first, second) : pack<Fp16>(first, second);
    }
  }
}

}  // namespace lolrt::cuda
