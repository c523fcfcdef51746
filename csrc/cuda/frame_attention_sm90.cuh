// frame_attention on the warpgroup products of sm_90a; formula, tensors and roundings are those of frame_attention.cuh, at dim
// 128.
//
// A segment is 128 query rows of one head of one entry of the batch, the frames' rows one after another, and the keys of all
// pages or of some (work_split.cuh), in tiles of 112. As many blocks as the device has slots for have an entry's whole tiles
// among them, one after another: keys and values of the next are copied while the output of the last is stored. The parts of
// tiles that are cut are blocks of their own, which go to the slots that are free first. The 12 warps of a block:
//   0      copies tiles of keys and values (TMA)
//   1      says which page is next, with its bias and the block's rotation
//   4-7    rows 0-63: scores, weights and output in registers; the queries too, rotated for the page in hand
//   8-11   rows 64-127
// A tile never spans two pages; what the last one of a page lacks is filled with zeros by the copy, and its scores are masked.
//
// Shared memory, bytes at 3 frames of 1560 tokens and 22 pairs:
//   keys        2 x 112 x 128         57344   of two tiles; a tile is two boxes of 64 channels
//   values      2 x 112 x 128         57344
//   barriers    12                      128
//   unrotated   24 pairs x 128 rows   12288   the queries' first channels, each thread's own words
//   pages       2 x (16 + 2 frames)     800   number, bias, and (cos, sin) of 24 pairs for each frame; (1, 0) in the padding
//
// Each of those pairs has a barrier for being full and one for being free again. Who waits for whom:
//   warp 0 waits for a tile's memory to be free, announces the bytes, and begins its copies; they fill it
//   warp 1 waits for a page's memory to be free, writes it, and says that it is full
//   (warps 0 and 1 read page table and bias each for itself, and so pass over the same pages; the others go by the notices)
//   a warp of rows, for tile i of all segments' tiles:
//     a page begins: its notice is full -> rotate the queries, which no product reads now; free the notice
//     its warpgroup's turn -> keys of i full -> begin their product; values of i - 1 full -> begin theirs, with the weights of
//     i - 1; the next turn is the other warpgroup's
//     product with the keys over -> free them; weights of i, beside the product with the values
//     product with the values over -> free them; rescale the output, round the weights
//     a segment ends: the notice says so -> free it; values of i - 1 in the next turn; store the output
// Whoever has the turn waits for copies alone, of keys i and values i - 1, to where keys i - 2 and values i - 3 were. Its own
// warpgroup has freed those, and the other did before its last turn, at tile i - 1 or i. So each turn is passed on. Whoever waits
// for a notice does not have the turn, so the other goes on until it has freed the notices before.
#pragma once

#include "frame_attention_sm90_rows.cuh"

namespace lolrt::cuda {

// Lane 0 of warp 0. The first to use a stage finds it free: the phase before the first is over and has parity 1.
__device__ __forceinline__ void copy_tiles(const Sm90Argument &argument, const Sm90Shared &shared, const Segment &segment,
                                           int &tile) {
  const FrameAttention &op = argument.attention.op;
  const int pages_end = segment.pages_end, page_tokens = static_cast<int>(op.page_tokens);
  int page = next_page(op, segment.head, segment.page, pages_end);
  int page_index = page < pages_end ? op.page_table[page] : 0;
  while (page < pages_end) {
    page = next_page(op, segment.head, page + 1, pages_end);
    const int following = page < pages_end ? op.page_table[page] : 0;
    for (int token = 0; token < page_tokens; token += kSm90Keys, ++tile) {
      const int stage = stage_of(tile), free = parity_of(tile) ^ 1;
      wait_for_phase(shared.keys_free(stage), free);
      arrive_expecting(shared.keys_full(stage), kTileBytes);
#pragma unroll
      for (int channel = 0; channel < kSm90Dim; channel += kBoxChannels) {
        copy_box(shared.keys(stage) + channel / kBoxChannels * kBoxBytes, &argument.keys, shared.keys_full(stage), channel, token,
                 segment.head, page_index);
      }
      wait_for_phase(shared.values_free(stage), free);
      arrive_expecting(shared.values_full(stage), kTileBytes);
#pragma unroll
      for (int channel = 0; channel < kSm90Dim; channel += kBoxChannels) {
        copy_box(shared.values(stage) + channel / kBoxChannels * kBoxBytes, &argument.values, shared.values_full(stage), channel,
                 token, segment.head, page_index);
      }
    }
    page_index = following;
  }
}

// Warp 1.
__device__ __forceinline__ void announce_pages(const AttentionArgument &argument, const Sm90Shared &shared,
                                               const Segment &segment, int lane, int &notices) {
  const FrameAttention &op = argument.op;
  const int tokens = static_cast<int>(op.tokens), first_frame = segment.first_row / tokens;
  const int frames = (min(segment.first_row + kAttentionRows, argument.rows) - 1) / tokens - first_frame + 1;
  const int pages_end = segment.pages_end, pairs = static_cast<int>(op.pairs);
  const int room = turned_steps(argument.turned_chunks) * 8;  // pairs with their padding
  int page = segment.page - 1;
  for (; page < pages_end; ++notices) {
    page = next_page(op, segment.head, page + 1, pages_end);
    const int stage = stage_of(notices);
    wait_for_phase(shared.page_free(stage), parity_of(notices) ^ 1);
    if (page < pages_end) {
      for (int frame = 0; frame < frames; ++frame) {
        const int64_t row = (static_cast<int64_t>(page) * argument.frames + first_frame + frame) * op.heads + segment.head;
        const auto *from = reinterpret_cast<const float2 *>(op.rotation) + row * pairs;
#pragma unroll 1  // there are not so many registers
        for (int pair = lane; pair < room; pair += kWarpLanes) {
          shared.rotation(stage)[frame * room + pair] = pair < pairs ? from[pair] : float2{1.0f, 0.0f};
        }
      }
    }
    if (lane == 0) {
      PageNotice *notice = shared.notice(stage);
      notice->page = page < pages_end ? page : -1;
      notice->bias = page < pages_end ? page_bias(op, segment.head, page) : 0.0f;
    }
    sync_warp();
    if (lane == 0) arrive(shared.page_full(stage));
  }
}

template <class Element, bool Probe>
__device__ __forceinline__ void attend_on_warpgroups(const Sm90Argument &argument) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarpLanes;
  const Sm90Shared shared(turned_steps(argument.attention.turned_chunks), argument.tile_frames);
  if (thread == 0) {
    for (int stage = 0; stage < kSm90Stages; ++stage) {
      for (Barrier *full : {shared.keys_full(stage), shared.values_full(stage), shared.page_full(stage)}) init_barrier(full, 1);
      for (Barrier *free : {shared.keys_free(stage), shared.values_free(stage), shared.page_free(stage)}) {
        init_barrier(free, kSm90RowThreads / kWarpLanes);
      }
    }
    publish_barriers();
  }
  sync_block();
  if (warp < kWarpgroupThreads / kWarpLanes) {
    give_registers_back<kSm90CopyRegisters>();
    if (thread == 0) {
      int tile = 0;
      for_each_segment(argument, [&](int number) { copy_tiles(argument, shared, segment_of(argument.attention, number), tile); });
    }
    if (warp == 1) {
      int notices = 0;
      for_each_segment(argument, [&](int number) {
        announce_pages(argument.attention, shared, segment_of(argument.attention, number), thread % kWarpLanes, notices);
      });
    }
  } else {
    take_registers<kSm90RowRegisters>();
    Sm90Rows<Element, Probe>(argument.attention, shared, thread - kWarpgroupThreads).run(argument);
  }
}

template <class Element, bool Probe>
__global__ void __launch_bounds__(kSm90Threads, 1) frame_attention_sm90_kernel(const __grid_constant__ Sm90Argument argument) {
  if constexpr (kArchitecture == 0 || runs_on_warpgroups(kArchitecture, sizeof(Element), kSm90Dim)) {
    attend_on_warpgroups<Element, Probe>(argument);
  } else {
    trap();
  }
}

}  // namespace lolrt::cuda
