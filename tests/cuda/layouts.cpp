// What the emulator's tensor core and the attention kernel's swizzle take for granted, for test_layouts.py to compare with CuTe;
// and how attention's work is split, for test_work_split.py.
#include "frame_attention.cuh"
#include "frame_attention_sm90_shared.cuh"
#include "lolrt/lolrt.h"

#include <device/launch.cuh>
#include <device/matrix.cuh>
#include <device/threads.cuh>

#include <algorithm>

namespace lolrt::cuda {
namespace {

// Words by lane, as the instructions take and give them; matrices are four of 8 rows of 8 elements.
struct Warp {
  const uint32_t (*a)[4], (*b)[2];
  const uint4 *matrices;
  float (*d)[4];
  uint32_t (*loaded)[4], (*loaded_transposed)[4];
};

void use_tensor_core(const Warp warp) {
  const unsigned lane = threadIdx.x;
  auto *shared = reinterpret_cast<uint4 *>(shared_memory());
  shared[lane] = warp.matrices[lane];
  sync_warp();
  load_matrices(warp.loaded[lane], shared + lane);
  load_matrices_transposed(warp.loaded_transposed[lane], shared + lane);
  multiply_add<Bf16>(warp.d[lane], warp.a[lane], warp.b[lane][0], warp.b[lane][1]);
}

constexpr int kColumnsBytes = 2 * kGroupBytes;  // of 16 rows of 64 columns

// The same of a warpgroup; `b` is shared memory from a multiple of 1024 bytes on.
struct Warpgroup {
  const uint32_t (*a)[4];
  const unsigned char *b;
  float (*rows)[kSm90Keys / 2], (*columns)[kSm90Dim / 2];
};

void use_warpgroup(const Warpgroup all) {
  const unsigned thread = threadIdx.x;
  unsigned char *shared = shared_memory();
  for (int at = static_cast<int>(thread) * 16; at < kBoxBytes; at += kWarpgroupThreads * 16) {
    *reinterpret_cast<uint4 *>(shared + at) = *reinterpret_cast<const uint4 *>(all.b + at);
  }
  uint32_t a[4];
  float rows[kSm90Keys / 2] = {}, columns[kSm90Dim / 2] = {};
  std::copy_n(all.a[thread], 4, a);
  simt::fence_proxy();
  sync_block();
  fence_products();
  multiply_rows<Bf16>(rows, a, matrix_descriptor(shared, 0), false);
  multiply_add_columns<Bf16>(columns, a, matrix_descriptor(shared, kColumnsBytes));
  commit_product_group();
  wait_for_products<0>();
  std::copy_n(rows, kSm90Keys / 2, all.rows[thread]);
  std::copy_n(columns, kSm90Dim / 2, all.columns[thread]);
}

constexpr Target kTarget{{LOLRT_DEVICE_CUDA, 0}, nullptr};

const char *problem_of(const CudaOutcome &outcome) { return outcome.status == LOLRT_OK ? nullptr : outcome.text; }

}  // namespace
}  // namespace lolrt::cuda

using namespace lolrt::cuda;

// Returns what is wrong, or NULL.
extern "C" LOLRT_API const char *layouts_use_tensor_core(const uint32_t (*a)[4], const uint32_t (*b)[2], const uint4 *matrices,
                                                         float (*d)[4], uint32_t (*loaded)[4], uint32_t (*loaded_transposed)[4]) {
  const Grid grid{1, 1, 1, kWarpLanes, kWarpLanes * sizeof(uint4)};
  return problem_of(launch("layouts", use_tensor_core, grid, kTarget, Warp{a, b, matrices, d, loaded, loaded_transposed}));
}

// Products of 64 x 16 with the 16 x 112 matrix whose columns are rows in b, and with the 16 x 128 one whose rows are.
extern "C" LOLRT_API const char *layouts_use_warpgroup(const uint32_t (*a)[4], const unsigned char *b,
                                                       float (*rows)[kSm90Keys / 2], float (*columns)[kSm90Dim / 2]) {
  const Grid grid{1, 1, 1, kWarpgroupThreads, kBoxBytes};
  return problem_of(launch("layouts", use_warpgroup, grid, kTarget, Warpgroup{a, b, rows, columns}));
}

// Bytes from the start of a tile of shared memory to 8 elements of a row.
extern "C" LOLRT_API int layouts_attention_at(int dim, int row, int chunk) {
  return dim == 64 ? chunk_at<128>(row, chunk) : chunk_at<256>(row, chunk);
}

// How work is dealt out: the segments of all blocks; returns how many blocks there are.
extern "C" LOLRT_API int layouts_split(int64_t head_tiles, int64_t heads, int64_t pages, int64_t page_tokens, int64_t slots,
                                       int32_t *cut, Segment *segments) {
  const WorkSplit split = split_work(head_tiles, heads, pages, page_tokens, slots);
  *cut = split.cut;
  for (int block = 0; block < split.blocks(); ++block) segments[block] = split.segment(block);
  return split.blocks();
}
