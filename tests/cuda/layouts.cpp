// What the emulator's tensor core and the attention kernel's swizzle take for granted, for test_layouts.py to compare with CuTe.
#include "frame_attention.cuh"
#include "lolrt/lolrt.h"

#include <device/launch.cuh>
#include <device/matrix.cuh>
#include <device/threads.cuh>

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

}  // namespace
}  // namespace lolrt::cuda

using namespace lolrt::cuda;

// Returns what is wrong, or NULL.
extern "C" LOLRT_API const char *layouts_use_tensor_core(const uint32_t (*a)[4], const uint32_t (*b)[2], const uint4 *matrices,
                                                         float (*d)[4], uint32_t (*loaded)[4], uint32_t (*loaded_transposed)[4]) {
  return launch(use_tensor_core, Grid{1, 1, 1, kWarpLanes, kWarpLanes * sizeof(uint4)}, nullptr,
                Warp{a, b, matrices, d, loaded, loaded_transposed});
}

// Bytes from the start of a tile of shared memory to 8 elements of a row.
extern "C" LOLRT_API int layouts_attention_at(int dim, int row, int chunk) {
  return dim == 64 ? AttentionBlock<Bf16, 64, 64, false>::at(row, chunk) : AttentionBlock<Bf16, 128, 64, false>::at(row, chunk);
}
