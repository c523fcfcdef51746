// lolrt_frame_attention: checks the descriptor and hands it to the kernels.
#include "core/checks.h"
#include "core/cuda.h"
#include "core/status.h"

#include <cinttypes>
#include <cmath>
#include <cstdio>

using namespace lolrt;

namespace {

void check_table(const FrameAttention &op, bool batched) {
  for (int64_t i = 0; i < op.batch * op.pages; ++i) {
    const int32_t entry = op.page_table[i];
    if (entry == kNoPage || (entry >= 0 && entry < op.pool_pages)) continue;
    char row[32] = "";
    if (batched) std::snprintf(row, sizeof row, "%" PRId64 ", ", i / op.pages);
    fail(LOLRT_INVALID_ARGUMENT,
         "frame_attention: page_table[%s%" PRId64 "] is %d; the pool has pages 0 to %" PRId64
         ", and -1 is a page that is not there",
         row, i % op.pages, entry, op.pool_pages - 1);
  }
}

FrameAttention checked(const lolrt_frame_attention_desc &desc) {
  Checker check("frame_attention", Devices::cpu_and_cuda);
  FrameAttention op{};
  op.dtype = check.type("q", desc.q);
  op.target = {check.device(), desc.stream};
  const View q = check("q", desc.q, op.dtype, {{"frames"}, {"tokens"}, {"heads"}, {"dim"}}, Layout::strided);
  op.q = head_rows(q);
  op.frames = q.size(0);
  op.tokens = q.size(1);
  op.heads = q.size(2);
  op.dim = q.size(3);
  op.page_tokens = desc.page_tokens;
  check_page_sizes("frame_attention", op.page_tokens, op.heads, op.dim);
  if (op.tokens > PageLayout::max_tokens) {
    fail(LOLRT_INVALID_ARGUMENT, "frame_attention: q has frames of %" PRId64 " tokens; expected %" PRId64 " at most", op.tokens,
         PageLayout::max_tokens);
  }
  const View out =
      check.output("out", desc.out, op.dtype,
                   {{"frames", op.frames}, {"tokens", op.tokens}, {"heads", op.heads}, {"dim", op.dim}}, Layout::strided);
  op.out = head_rows(out);
  op.page_dtype = check_page_type("frame_attention", desc.pages, op.dtype, op.dim);
  const PageLayout layout(op.target.device.type, op.page_dtype, op.page_tokens, op.heads, op.dim);
  const View pool = check_pages(check, "frame_attention", desc.pages, op.page_dtype, layout, Access::read);
  op.pool = pool.data<void>();
  op.pool_pages = pool.size(0);
  op.page_stride = pool.stride(0);
  const bool batched = desc.page_table && desc.page_table->ndim == 2;
  if (desc.page_table && !batched && desc.page_table->ndim != 1) {
    fail(LOLRT_INVALID_ARGUMENT, "frame_attention: page_table: expected int32 [pages] or [batch, pages], got %d dimensions",
         desc.page_table->ndim);
  }
  const View page_table = batched ? check("page_table", desc.page_table, DType::int32, {{"batch"}, {"pages"}})
                                  : check("page_table", desc.page_table, DType::int32, {{"pages"}});
  check.not_in("page_table", page_table.span(), "out", out.span());
  op.page_table = page_table.data<int32_t>();
  op.batch = batched ? page_table.size(0) : 1;
  op.pages = page_table.size(batched ? 1 : 0);
  if (op.frames % op.batch != 0) {
    fail(LOLRT_INVALID_ARGUMENT,
         "frame_attention: q has %" PRId64 " frames and page_table %" PRId64
         " rows; expected frames to be a multiple of them, the same number for each row",
         op.frames, op.batch);
  }
  if (op.target.device.type == LOLRT_DEVICE_CPU) check_table(op, batched);
  const Dim batch{"batch", op.batch}, pages{"pages", op.pages}, heads{"heads", op.heads};
  const Dim frames{batched ? "frames / batch" : "frames", op.batch_frames()};
  if (desc.rotation) {
    const View rotation =
        batched ? check("rotation", desc.rotation, DType::float32, {batch, pages, frames, heads, {"pairs"}, {"2", 2}})
                : check("rotation", desc.rotation, DType::float32, {pages, frames, heads, {"pairs"}, {"2", 2}});
    op.rotation = rotation.data<float>();
    op.pairs = rotation.size(batched ? 4 : 3);
    if (2 * op.pairs > op.dim) {
      fail(LOLRT_INVALID_ARGUMENT, "frame_attention: rotation has %" PRId64 " pairs, but dim = %" PRId64 " holds only %" PRId64,
           op.pairs, op.dim, op.dim / 2);
    }
  }
  if (desc.bias) {
    const View bias = batched ? check("bias", desc.bias, DType::float32, {batch, pages, heads})
                              : check("bias", desc.bias, DType::float32, {pages, heads});
    op.bias = bias.data<float>();
  }
  if (desc.mass) {
    const View mass = batched ? check.output("mass", desc.mass, DType::float32, {batch, pages, frames, heads})
                              : check.output("mass", desc.mass, DType::float32, {pages, frames, heads});
    check.not_in("page_table", page_table.span(), "mass", mass.span());
    if (mass.elements() > INT64_MAX / 64 / op.tokens) {
      fail(LOLRT_INVALID_ARGUMENT, "frame_attention: no memory holds what mass is added up of, for frames of %" PRId64 " tokens",
           op.tokens);
    }
    op.mass = mass.data<float>();
  }
  if (!(desc.scale >= 0.0f) || std::isinf(desc.scale)) {
    fail(LOLRT_INVALID_ARGUMENT, "frame_attention: scale is %g; expected a positive number, or 0 for 1 / sqrt(dim)", desc.scale);
  }
  op.workers = lolrt_threads();
  op.scale = desc.scale > 0.0f ? desc.scale : 1.0f / std::sqrt(static_cast<float>(op.dim));
  return op;
}

FrameAttention checked_descriptor(const lolrt_frame_attention_desc *desc) {
  Checker("frame_attention").descriptor(desc, desc ? desc->struct_size : 0, sizeof *desc);
  return checked(*desc);
}

uint64_t workspace_bytes(const FrameAttention &op) {
  if (op.target.device.type != LOLRT_DEVICE_CUDA) return kernels().frame_attention_workspace(op);
  uint64_t bytes = 0;
  check_outcome(cuda_kernels().frame_attention_workspace(op, &bytes));
  return bytes;
}

}  // namespace

lolrt_status lolrt_frame_attention_workspace(const lolrt_frame_attention_desc *desc, uint64_t *bytes) {
  return guarded([&] {
    const FrameAttention op = checked_descriptor(desc);
    if (bytes == nullptr) fail(LOLRT_INVALID_ARGUMENT, "frame_attention_workspace: bytes is NULL");
    *bytes = workspace_bytes(op);
  });
}

lolrt_status lolrt_frame_attention(const lolrt_frame_attention_desc *desc) {
  return guarded([&] {
    FrameAttention op = checked_descriptor(desc);
    const uint64_t needed = workspace_bytes(op);
    const bool given = desc->workspace != nullptr && reinterpret_cast<uintptr_t>(desc->workspace) % 64 == 0;
    if (needed > 0 && (!given || desc->workspace_bytes < needed)) {
      fail(LOLRT_INVALID_ARGUMENT,
           "frame_attention: workspace has %" PRIu64 " bytes at %p; expected %" PRIu64
           " or more, 64-byte aligned (frame_attention_workspace says how many)",
           desc->workspace_bytes, desc->workspace, needed);
    }
    const auto table = reinterpret_cast<uintptr_t>(op.page_table), workspace = reinterpret_cast<uintptr_t>(desc->workspace);
    Checker("frame_attention")
        .not_in("page_table", {table, table + op.batch * op.pages * sizeof *op.page_table}, "workspace",
                {workspace, workspace + needed});
    op.workspace = desc->workspace;
    if (!run_on_cuda(&CudaKernels::frame_attention, op)) kernels().frame_attention(op);
  });
}
