// lolrt_kv_write: checks the descriptor and hands it to the kernels.
#include "core/checks.h"
#include "core/cuda.h"
#include "core/status.h"

#include <cinttypes>

using namespace lolrt;

namespace {

// Two frames on one page would race.
void check_distinct(const KvWrite &op) {
  for (int64_t frame = 0; frame < op.frames; ++frame) {
    for (int64_t other = 0; other < frame; ++other) {
      if (op.page_table[other] == op.page_table[frame]) {
        fail(LOLRT_INVALID_ARGUMENT, "kv_write: frames %" PRId64 " and %" PRId64 " are both written to page %d", other, frame,
             op.page_table[frame]);
      }
    }
  }
}

KvWrite checked(const lolrt_kv_write_desc &desc) {
  Checker check("kv_write", Devices::cpu_and_cuda);
  const bool has_q = desc.q != nullptr || desc.q_out != nullptr;
  const bool has_kv = desc.k != nullptr || desc.v != nullptr;
  if (!has_q && !has_kv) fail(LOLRT_INVALID_ARGUMENT, "kv_write: neither q nor k and v are given");
  if (!(desc.eps >= 0.0f)) fail(LOLRT_INVALID_ARGUMENT, "kv_write: eps is %g; expected 0 or more", desc.eps);

  KvWrite op{};
  op.eps = desc.eps;
  const char *lead_name = has_q ? "q" : "k";
  const lolrt_tensor *lead_tensor = has_q ? desc.q : desc.k;
  op.dtype = check.type(lead_name, lead_tensor);
  op.target = {check.device(), desc.stream};
  const View lead = check(lead_name, lead_tensor, op.dtype, {{"frames"}, {"tokens"}, {"heads"}, {"dim"}}, Layout::strided);
  op.frames = lead.size(0);
  op.tokens = lead.size(1);
  op.heads = lead.size(2);
  op.dim = lead.size(3);
  check_page_sizes("kv_write", op.tokens, op.heads, op.dim);
  const auto same_shape = {Dim{"frames", op.frames}, Dim{"tokens", op.tokens}, Dim{"heads", op.heads}, Dim{"dim", op.dim}};
  const auto weight_shape = {Dim{"heads", op.heads}, Dim{"dim", op.dim}};
  View q_out;
  if (has_q) {
    op.q = head_rows(lead);
    q_out = check.output("q_out", desc.q_out, op.dtype, same_shape, Layout::strided);
    op.q_out = head_rows(q_out);
    if (desc.q_weight) op.q_weight = check("q_weight", desc.q_weight, op.dtype, weight_shape).data<void>();
  }
  if (has_kv) {
    op.k = head_rows(check("k", desc.k, op.dtype, same_shape, Layout::strided));
    op.v = head_rows(check("v", desc.v, op.dtype, same_shape, Layout::strided));
    if (desc.k_weight) op.k_weight = check("k_weight", desc.k_weight, op.dtype, weight_shape).data<void>();
    op.page_dtype = check_page_type("kv_write", desc.pages, op.dtype, op.dim);
    const PageLayout layout(op.target.device.type, op.page_dtype, op.tokens, op.heads, op.dim);
    const View pages = check_pages(check, "kv_write", desc.pages, op.page_dtype, layout, Access::write);
    op.pages = pages.data<void>();
    op.page_stride = pages.stride(0);
    const View page_table = check("page_table", desc.page_table, DType::int32, {{"frames", op.frames}});
    check.not_in("page_table", page_table.span(), "pages", pages.span());
    if (has_q) check.not_in("page_table", page_table.span(), "q_out", q_out.span());
    op.page_table = page_table.data<int32_t>();
    if (op.target.device.type == LOLRT_DEVICE_CPU) {
      check_page_table("kv_write", op.page_table, op.frames, pages.size(0));
      check_distinct(op);
    }
  }
  if (desc.rotation) {
    const View rotation = check("rotation", desc.rotation, DType::float32, {{"tokens", op.tokens}, {"pairs"}, {"2", 2}});
    op.rotation = rotation.data<float>();
    op.pairs = rotation.size(1);
    op.rotation_first_channel = desc.rotation_first_channel;
    if (op.rotation_first_channel < 0 || op.rotation_first_channel % 2 != 0 ||
        op.rotation_first_channel > op.dim - 2 * op.pairs) {
      fail(LOLRT_INVALID_ARGUMENT,
           "kv_write: rotation of %" PRId64 " pairs from channel %" PRId64
           " on; expected an even first channel and no channel beyond dim = %" PRId64,
           op.pairs, op.rotation_first_channel, op.dim);
    }
  }
  return op;
}

}  // namespace

lolrt_status lolrt_kv_write(const lolrt_kv_write_desc *desc) {
  return guarded([&] {
    Checker("kv_write").descriptor(desc, desc ? desc->struct_size : 0, sizeof *desc);
    const KvWrite op = checked(*desc);
    if (!run_on_cuda(&CudaKernels::kv_write, op)) kernels().kv_write(op);
  });
}
