// lolrt_gelu: checks the descriptor and hands it to the kernels.
#include "core/checks.h"
#include "core/cuda.h"
#include "core/status.h"

using namespace lolrt;

namespace {

Gelu checked(const lolrt_gelu_desc &desc) {
  Checker check("gelu", Devices::cpu_and_cuda);
  Gelu op{};
  op.dtype = check.type("x", desc.x);
  op.target = {check.device(), desc.stream};
  const View x = check.output("x", desc.x, op.dtype, {{"frames"}, {"tokens"}, {"channels"}}, Layout::strided);
  op.x = {x.data<void>(), x.stride(0), x.stride(1)};
  op.frames = x.size(0);
  op.tokens = x.size(1);
  op.channels = x.size(2);
  return op;
}

}  // namespace

lolrt_status lolrt_gelu(const lolrt_gelu_desc *desc) {
  return guarded([&] {
    Checker("gelu").descriptor(desc, desc ? desc->struct_size : 0, sizeof *desc);
    const Gelu op = checked(*desc);
    if (!run_on_cuda(&CudaKernels::gelu, op)) kernels().gelu(op);
  });
}
