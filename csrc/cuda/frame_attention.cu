// Launches frame_attention: which kernels, how the work is split, how much shared memory.
#include "attention_combine.cuh"
#include "attention_mass.cuh"
#include "frame_attention.cuh"
#include "frame_attention_sm90.h"
#include "kernels.h"

#include <device/launch.cuh>

#include <cinttypes>

namespace lolrt::cuda {
namespace {

using Kernel = void (*)(AttentionArgument);

// The kernels there are, in their two tilings and with and without the probe.
struct Choice {
  DType dtype, page_dtype;
  int64_t dim;
  Kernel kernel[2][2];  // [keys == 64][probe]
};

template <class Element, int Dim>
constexpr Choice choice(DType dtype) {
  return {dtype,
          dtype,
          Dim,
          {{frame_attention_kernel<Element, Element, Dim, 32, false>, frame_attention_kernel<Element, Element, Dim, 32, true>},
           {frame_attention_kernel<Element, Element, Dim, 64, false>, frame_attention_kernel<Element, Element, Dim, 64, true>}}};
}

const Choice kChoices[] = {
    choice<Bf16, 128>(DType::bfloat16),
    choice<Bf16, 64>(DType::bfloat16),
    choice<Fp16, 128>(DType::float16),
    {DType::bfloat16,
     DType::float8_e4m3fn,
     128,
     {{frame_attention_kernel<Bf16, Fp8, 128, 32, false>, frame_attention_kernel<Bf16, Fp8, 128, 32, true>}, {}}}};

// What every architecture has for one block, and sm_90, less 1 KB that the driver takes.
constexpr int64_t kMaxSharedBytes = 99 * 1024, kMaxSm90SharedBytes = 227 * 1024;

CudaOutcome check(const FrameAttention &op) {
  const int64_t rows = op.frames * op.tokens;
  if (op.heads > 65535 || op.pages > 65535 || op.frames > 65535 || rows > INT32_MAX / (op.heads * op.pages)) {
    return problem(LOLRT_UNSUPPORTED,
                   "frame_attention: %" PRId64 " heads, %" PRId64 " pages and %" PRId64
                   " rows of queries; there may be 65535 of the first two, and the product of all has to be below 2^31",
                   op.heads, op.pages, rows);
  }
  if (!rows_aligned(op.q) || !rows_aligned(op.out)) {
    return problem(LOLRT_UNSUPPORTED, "frame_attention: rows of q and out are not 16-byte aligned; copy them first");
  }
  if (!rows_aligned(element_bytes(op.page_dtype), op.pool, op.page_stride)) {
    return problem(LOLRT_UNSUPPORTED, "frame_attention: pages are not 16-byte aligned (128 bytes is best)");
  }
  if (!aligned(8, op.rotation)) return problem(LOLRT_UNSUPPORTED, "frame_attention: rotation is not 8-byte aligned");
  return kDone;
}

bool runs_on_warpgroups(const FrameAttention &op, const Device &device) {
  const auto stored_bytes = static_cast<int>(element_bytes(op.page_dtype));
  return cuda::runs_on_warpgroups(device.architecture, stored_bytes, static_cast<int>(op.dim));
}

WorkSplit split_of(const FrameAttention &op, const Device &device) {
  const int blocks = runs_on_warpgroups(op, device) ? 1 : 2;  // on a multiprocessor
  const int64_t tiles = (op.batch_frames() * op.tokens + kAttentionRows - 1) / kAttentionRows;
  return split_work(tiles, op.heads, op.pages, op.page_tokens, blocks * device.multiprocessors);
}

// Where things lie in the workspace: offsets in bytes.
struct Workspace {
  Workspace(const FrameAttention &op, const WorkSplit &split)
      : part_state(sizeof(float) * op.batch * split.cut * split.parts * kAttentionRows * op.dim),
        page_state(part_state + sizeof(float2) * op.batch * split.cut * split.parts * kAttentionRows),
        bytes(page_state + (op.mass ? sizeof(float2) * op.heads * op.pages * op.frames * op.tokens : 0)) {}

  uint64_t part_state, page_state, bytes;
};

}  // namespace

CudaOutcome frame_attention_workspace(const FrameAttention &op, uint64_t *bytes) {
  Device device{};
  const CudaOutcome found = find_device("frame_attention", op.target, attention_combine_kernel, &device);
  if (found.status == LOLRT_OK) *bytes = Workspace(op, split_of(op, device)).bytes;
  return found;
}

CudaOutcome frame_attention(const FrameAttention &op) {
  const Choice *choice = nullptr;
  for (const Choice &candidate : kChoices) {
    if (candidate.dtype == op.dtype && candidate.page_dtype == op.page_dtype && candidate.dim == op.dim) choice = &candidate;
  }
  if (choice == nullptr) {
    return problem(LOLRT_UNSUPPORTED,
                   "frame_attention: no kernel for %s and dim %" PRId64
                   "; there are bfloat16 with 64 or 128 and float16 with 128",
                   op.dtype == DType::bfloat16 ? "bfloat16" : "float16", op.dim);
  }
  const CudaOutcome checked = check(op);
  if (checked.status != LOLRT_OK) return checked;
  Device device{};
  const CudaOutcome found = find_device("frame_attention", op.target, attention_combine_kernel, &device);
  if (found.status != LOLRT_OK) return found;
  const auto dim = static_cast<int>(op.dim), stored_bytes = static_cast<int>(element_bytes(op.page_dtype));
  const int keys = attention_keys(device.architecture, stored_bytes);
  const bool warpgroups = runs_on_warpgroups(op, device);
  const int64_t shared_bytes = warpgroups
                                   ? attention_sm90_shared_bytes(op)
                                   : attention_shared_bytes(dim, keys, stored_bytes, op.batch_frames(), op.tokens, op.pairs);
  if (shared_bytes > (warpgroups ? kMaxSm90SharedBytes : kMaxSharedBytes)) {
    return problem(LOLRT_UNSUPPORTED,
                   "frame_attention: the rotation of %d frames of %" PRId64 " tokens by %" PRId64
                   " pairs does not fit into shared memory: give fewer frames at a time",
                   attention_frames(op.batch_frames(), op.tokens), op.tokens, op.pairs);
  }
  const PageLayout layout(LOLRT_DEVICE_CUDA, op.page_dtype, op.page_tokens, op.heads, op.dim);
  if (const CudaOutcome boxes = warpgroups ? check_attention_sm90(op, layout) : kDone; boxes.status != LOLRT_OK) return boxes;
  const WorkSplit split = split_of(op, device);
  const Workspace offsets(op, split);
  auto *workspace = static_cast<char *>(op.workspace);
  const AttentionArgument argument{op,
                                   static_cast<int>(op.batch_frames()),
                                   static_cast<int>(op.batch_frames() * op.tokens),
                                   rounded_pairs(op.pairs) / 4,
                                   op.scale * kLog2E,
                                   layout.key_head,
                                   layout.values,
                                   layout.scales,
                                   split,
                                   reinterpret_cast<float2 *>(workspace + offsets.page_state),
                                   reinterpret_cast<float2 *>(workspace + offsets.part_state),
                                   reinterpret_cast<float *>(workspace)};
  const auto batch = static_cast<unsigned>(op.batch);
  const Grid grid{static_cast<unsigned>(split.blocks()), batch, 1, kAttentionThreads, static_cast<unsigned>(shared_bytes)};
  CudaOutcome outcome =
      warpgroups ? launch_attention_sm90(argument, device.multiprocessors)
                 : launch("frame_attention", choice->kernel[keys == 64][op.mass != nullptr], grid, op.target, argument);
  if (outcome.status == LOLRT_OK && split.cut > 0) {
    const Grid rows{static_cast<unsigned>(split.cut), kAttentionRows / kCombineRows, batch, kCombineThreads, 0};
    outcome = launch("frame_attention", attention_combine_kernel, rows, op.target, argument);
  }
  if (outcome.status == LOLRT_OK && op.mass) {
    const Grid masses{static_cast<unsigned>(op.pages), static_cast<unsigned>(op.frames), static_cast<unsigned>(op.heads),
                      kMassThreads, kMassThreads / kWarpLanes * sizeof(float)};
    outcome = launch("frame_attention", attention_mass_kernel, masses, op.target, argument);
  }
  return outcome;
}

}  // namespace lolrt::cuda
