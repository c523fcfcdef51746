// kv_write on CUDA.
//
//   x' = round_T(round_T(x * rsqrt(mean(x^2) + eps)) * weight), mean over all heads of a token; pairs of x' from
//   rotation_first_channel on are rotated and rounded to T once. Without a weight x' = x.
//
// Tensors: q, k, v, q_out T [frames, tokens, heads, dim]; weights T [heads, dim]; rotation float32 [tokens, pairs, 2]; K and V
// T [heads][tokens][dim] in each page. All rows are 16-byte aligned and dim is a multiple of 8. A warp takes all heads of a token
// of q, of k or of v (blockIdx.y); it reads the row twice, from L1 the second time. Pages of float8_e4m3fn: kv_write_fp8.cu.
#include "kernels.h"
#include "kv_write.cuh"
#include "kv_write_fp8.h"

#include <device/launch.cuh>

#include <cinttypes>

namespace lolrt::cuda {
namespace {

__global__ void __launch_bounds__(kRowThreads) kv_write_kernel(const __grid_constant__ KvArgument argument) {
  const KvWrite &op = argument.op;
  const int64_t row = row_of_warp();
  if (row >= op.frames * op.tokens) return;
  const int64_t frame = row / op.tokens, token = row % op.tokens;
  const int part = argument.first_part + static_cast<int>(blockIdx.y);
  const float scale = scale_of_token(argument, part, frame, token);
  uint16_t *page = part == kQueries ? nullptr
                                    : static_cast<uint16_t *>(op.pages) + op.page_table[frame] * op.page_stride +
                                          (part == kValues ? argument.values : 0);
  for_each_group(op.heads * op.dim, [&](int64_t c, int64_t) {
    const int64_t head = c / op.dim, channel = c % op.dim;
    const uint4 x = group_to_store(argument, part, scale, frame, token, head, channel);
    if (part == kQueries) {
      *const_cast<uint4 *>(group_at(op.q_out, frame, token, head, channel)) = x;
    } else {
      *reinterpret_cast<uint4 *>(page + head * argument.head_elements + token * op.dim + channel) = x;
    }
  });
}

}  // namespace

CudaOutcome kv_write(const KvWrite &op) {
  if (op.dim % kLaneChannels != 0) {
    return problem(LOLRT_UNSUPPORTED, "kv_write: dim is %" PRId64 "; on CUDA it is a multiple of 8", op.dim);
  }
  if (op.frames * op.tokens > kMaxRows) {
    return problem(LOLRT_UNSUPPORTED, "kv_write: %" PRId64 " rows; a grid has at most 2^32", op.frames * op.tokens);
  }
  if (!rows_aligned(op.q) || !rows_aligned(op.k) || !rows_aligned(op.v) || !rows_aligned(op.q_out) || !aligned(16, op.q_weight) ||
      !aligned(16, op.k_weight) || !rows_aligned(element_bytes(op.page_dtype), op.pages, op.page_stride)) {
    return problem(LOLRT_UNSUPPORTED,
                   "kv_write: rows of q, k, v, q_out, the weights or pages are not 16-byte aligned; copy them first");
  }
  if (!aligned(8, op.rotation)) return problem(LOLRT_UNSUPPORTED, "kv_write: rotation is not 8-byte aligned");
  const PageLayout layout(LOLRT_DEVICE_CUDA, op.page_dtype, op.tokens, op.heads, op.dim);
  const KvArgument argument{
      op, op.dtype == DType::bfloat16, op.q.data ? kQueries : kKeys, layout.key_head, layout.values, layout.scales};
  const bool fp8 = op.k.data && op.page_dtype == DType::float8_e4m3fn;
  const unsigned parts = (op.q.data ? 1u : 0u) + (op.k.data && !fp8 ? 2u : 0u);
  const Grid grid{row_blocks(op.frames, op.tokens), parts, 1, kRowThreads, 0};
  const CudaOutcome rows = parts > 0 ? launch("kv_write", kv_write_kernel, grid, op.target, argument) : kDone;
  return rows.status == LOLRT_OK && fp8 ? launch_kv_write_fp8(argument) : rows;
}

}  // namespace lolrt::cuda
