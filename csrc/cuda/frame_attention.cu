// Launches frame_attention: which kernel, how many blocks, how much shared memory.
#include "attention_mass.cuh"
#include "frame_attention.cuh"
#include "frame_attention_sm90.h"
#include "kernels.h"
#include "outcome.h"

#include <device/launch.cuh>

#include <cinttypes>

namespace lolrt::cuda {
namespace {

using Kernel = void (*)(AttentionArgument);

// The kernels there are, in their two tilings and with and without the probe.
struct Choice {
  DType dtype;
  int64_t dim;
  Kernel kernel[2][2];  // [keys == 64][probe]
};

template <class Element, int Dim>
constexpr Choice choice(DType dtype) {
  return {dtype,
          Dim,
          {{frame_attention_kernel<Element, Dim, 32, false>, frame_attention_kernel<Element, Dim, 32, true>},
           {frame_attention_kernel<Element, Dim, 64, false>, frame_attention_kernel<Element, Dim, 64, true>}}};
}

const Choice kChoices[] = {choice<Bf16, 128>(DType::bfloat16), choice<Bf16, 64>(DType::bfloat16),
                           choice<Fp16, 128>(DType::float16)};

// What every architecture has for one block, and sm_90, less 1 KB that the driver takes.
constexpr int64_t kMaxSharedBytes = 99 * 1024, kMaxSm90SharedBytes = 227 * 1024;

CudaOutcome check(const FrameAttention &op) {
  const int64_t rows = op.frames * op.tokens;
  if (op.heads > 65535 || op.pages > 65535 || op.frames > 65535 || rows > INT32_MAX - kAttentionRows) {
    return problem(LOLRT_UNSUPPORTED,
                   "frame_attention: %" PRId64 " heads, %" PRId64 " pages and %" PRId64
                   " rows of queries; a grid has at most 65535, "
                   "65535 and 2^31",
                   op.heads, op.pages, rows);
  }
  if (!rows_aligned(op.q) || !rows_aligned(op.out)) {
    return problem(LOLRT_UNSUPPORTED, "frame_attention: rows of q and out are not 16-byte aligned; copy them first");
  }
  if (!rows_aligned(2, op.pool, op.page_stride)) {
    return problem(LOLRT_UNSUPPORTED, "frame_attention: pages are not 16-byte aligned (128 bytes is best)");
  }
  if (!aligned(8, op.rotation)) return problem(LOLRT_UNSUPPORTED, "frame_attention: rotation is not 8-byte aligned");
  return kDone;
}

}  // namespace

uint64_t frame_attention_workspace(const FrameAttention &op) {
  return op.mass ? sizeof(float2) * op.heads * op.pages * op.frames * op.tokens : 0;
}

CudaOutcome frame_attention(const FrameAttention &op) {
  const Choice *choice = nullptr;
  for (const Choice &candidate : kChoices) {
    if (candidate.dtype == op.dtype && candidate.dim == op.dim) choice = &candidate;
  }
  if (choice == nullptr) {
    return problem(LOLRT_UNSUPPORTED,
                   "frame_attention: no kernel for %s and dim %" PRId64
                   "; there are bfloat16 with 64 or 128 and float16 with 128",
                   op.dtype == DType::bfloat16 ? "bfloat16" : "float16", op.dim);
  }
  const CudaOutcome checked = check(op);
  if (checked.status != LOLRT_OK) return checked;
  const Device device = current_device();
  if (device.problem != nullptr) return problem(LOLRT_UNSUPPORTED, "frame_attention: CUDA: %s", device.problem);
  const int keys = attention_keys(device.architecture);
  const bool warpgroups = runs_on_warpgroups(device.architecture, static_cast<int>(op.dim));
  const int64_t shared_bytes = warpgroups
                                   ? attention_sm90_shared_bytes(op)
                                   : attention_shared_bytes(static_cast<int>(op.dim), keys, op.frames, op.tokens, op.pairs);
  if (shared_bytes > (warpgroups ? kMaxSm90SharedBytes : kMaxSharedBytes)) {
    return problem(LOLRT_UNSUPPORTED,
                   "frame_attention: the rotation of %d frames of %" PRId64 " tokens by %" PRId64
                   " pairs does not fit into shared memory: give fewer frames at a time",
                   attention_frames(op.frames, op.tokens), op.tokens, op.pairs);
  }
  const PageLayout layout(LOLRT_DEVICE_CUDA, op.dtype, op.page_tokens, op.heads, op.dim);
  const AttentionArgument argument{op,
                                   static_cast<int>(op.frames * op.tokens),
                                   rounded_pairs(op.pairs) / 4,
                                   op.scale * kLog2E,
                                   layout.key_head,
                                   layout.values,
                                   static_cast<float2 *>(op.workspace)};
  const auto blocks = static_cast<unsigned>((op.frames * op.tokens + kAttentionRows - 1) / kAttentionRows);
  const Grid grid{blocks, static_cast<unsigned>(op.heads), 1, kAttentionThreads, static_cast<unsigned>(shared_bytes)};
  const char *error = warpgroups ? launch_attention_sm90(argument)
                                 : launch(choice->kernel[keys == 64][op.mass != nullptr], grid, op.place.stream, argument);
  if (error == nullptr && op.mass) {
    const Grid masses{static_cast<unsigned>(op.pages), static_cast<unsigned>(op.frames), static_cast<unsigned>(op.heads),
                      kMassThreads, kMassThreads / kWarpLanes * sizeof(float)};
    error = launch(attention_mass_kernel, masses, op.place.stream, argument);
  }
  return launched("frame_attention", error);
}

}  // namespace lolrt::cuda
