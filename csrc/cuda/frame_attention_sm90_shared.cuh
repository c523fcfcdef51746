// What the warps of frame_attention_sm90.cuh share: the argument, sizes, and where things lie in shared memory.
#pragma once

#include "attention.cuh"
#include "matrix_descriptor.cuh"

#include <device/bulk_copy.cuh>
#include <device/warpgroup.cuh>

namespace lolrt::cuda {

constexpr int kSm90Dim = 128, kSm90Keys = 112;
constexpr int kSm90Stages = 2;  // tiles of keys, tiles of values, and pages that there is room for
constexpr int kSm90RowThreads = 2 * kWarpgroupThreads;
constexpr int kSm90Threads = kSm90RowThreads + kWarpgroupThreads;
// Of a thread: 168 for each at the launch are as many as these for a third and for two thirds of them.
constexpr int kSm90CopyRegisters = 40, kSm90RowRegisters = 232;
// A box of 64 channels, the 128 bytes within which a copy permutes.
constexpr int kBoxChannels = 64, kBoxBytes = kSm90Keys * kBoxChannels * 2;
constexpr int kTileBytes = kSm90Dim / kBoxChannels * kBoxBytes;
static_assert(kSm90Keys % 16 == 0, "a product takes 16 keys' values");
static_assert(kBoxBytes % kGroupBytes == 0, "matrices begin with a group");

// Products of 16 channels in which queries are rotated.
__host__ __device__ constexpr int turned_steps(int turned_chunks) { return (turned_chunks + 1) / 2; }

struct Sm90Argument {
  AttentionArgument attention;
  TensorMap keys, values;
  int whole_blocks;  // of an entry: those that have its whole tiles among them; each that follows has one part of a tile
  int tile_frames;   // whose rows a tile may have
};

// Calls each(number) for the segments of this block, one after another.
template <class Each>
__device__ __forceinline__ void for_each_segment(const Sm90Argument &argument, const Each &each) {
  const int block = static_cast<int>(blockIdx.x), part = block - argument.whole_blocks, whole = argument.attention.split.whole;
  int number = part < 0 ? block : whole + part;
  do {
    each(number);
    number += argument.whole_blocks;
  } while (number < whole);
}

__device__ __forceinline__ Segment segment_of(const AttentionArgument &argument, int number) {
  return segment_of(argument, number, static_cast<int>(blockIdx.y));
}

// What the rows' warps are told about a page; the rotation, float2 [frames][8 * steps], follows.
struct PageNotice {
  int page;    // -1: the segment has none any more
  float bias;  // times log2(e)
  int unused[2];
};

// Where things lie in shared memory.
class Sm90Shared {
 public:
  __host__ __device__ static constexpr int bytes(int steps, int frames) {
    return kPagesAt(steps) + kSm90Stages * notice_bytes(steps, frames);
  }

  __device__ __forceinline__ explicit Sm90Shared(int steps, int frames)
      : base_(shared_memory()), pages_(base_ + kPagesAt(steps)), notice_bytes_(notice_bytes(steps, frames)) {}

  __device__ __forceinline__ unsigned char *keys(int stage) const { return base_ + stage * kTileBytes; }
  __device__ __forceinline__ unsigned char *values(int stage) const { return base_ + (kSm90Stages + stage) * kTileBytes; }
  __device__ __forceinline__ Barrier *keys_full(int stage) const { return barrier(0, stage); }
  __device__ __forceinline__ Barrier *keys_free(int stage) const { return barrier(1, stage); }
  __device__ __forceinline__ Barrier *values_full(int stage) const { return barrier(2, stage); }
  __device__ __forceinline__ Barrier *values_free(int stage) const { return barrier(3, stage); }
  __device__ __forceinline__ Barrier *page_full(int stage) const { return barrier(4, stage); }
  __device__ __forceinline__ Barrier *page_free(int stage) const { return barrier(5, stage); }
  // The four words of a thread that holds rows, for a step of 16 channels.
  __device__ __forceinline__ uint4 *unrotated(int step, int thread) const {
    return reinterpret_cast<uint4 *>(base_ + kUnrotatedAt) + step * kSm90RowThreads + thread;
  }
  __device__ __forceinline__ PageNotice *notice(int stage) const {
    return reinterpret_cast<PageNotice *>(pages_ + stage * notice_bytes_);
  }
  __device__ __forceinline__ float2 *rotation(int stage) const { return reinterpret_cast<float2 *>(notice(stage) + 1); }

 private:
  static constexpr int kBarriersAt = 2 * kSm90Stages * kTileBytes, kUnrotatedAt = kBarriersAt + 128;
  __host__ __device__ static constexpr int kPagesAt(int steps) { return kUnrotatedAt + steps * kSm90RowThreads * 16; }
  __host__ __device__ static constexpr int notice_bytes(int steps, int frames) {
    return static_cast<int>(sizeof(PageNotice)) + frames * steps * 8 * static_cast<int>(sizeof(float2));
  }
  __device__ __forceinline__ Barrier *barrier(int kind, int stage) const {
    return reinterpret_cast<Barrier *>(base_ + kBarriersAt) + kind * kSm90Stages + stage;
  }

  unsigned char *const base_, *const pages_;
  const int notice_bytes_;
};

// Which of the stages the tile or page of that number uses, and the parity of the phase in which it is filled.
__device__ __forceinline__ int stage_of(int number) { return number % kSm90Stages; }
__device__ __forceinline__ int parity_of(int number) { return number / kSm90Stages % 2; }

}  // namespace lolrt::cuda
