// lolrt_modulated_norm: checks the descriptor and hands it to the kernels.
#include "core/cuda.h"
#include "core/ops.h"
#include "core/status.h"

using namespace lolrt;

namespace {

ChannelRows channel_rows(const View &view) { return {view.data<void>(), view.stride(0), view.stride(1)}; }

FrameVector frame_vector(const Checker &check, const char *name, const lolrt_tensor *tensor, const ModulatedNorm &op) {
  const bool shared = tensor != nullptr && tensor->ndim == 2 && tensor->shape != nullptr && tensor->shape[0] == 1;
  const View view = check(name, tensor, DType::float32, {{"1 or frames", shared ? 1 : op.frames}, {"channels", op.channels}});
  return {view.data<float>(), shared ? 0 : op.channels};
}

ModulatedNorm checked(const lolrt_modulated_norm_desc &desc) {
  Checker check("modulated_norm", Devices::cpu_and_cuda);
  ModulatedNorm op{};
  if (!(desc.eps >= 0.0f)) fail(LOLRT_INVALID_ARGUMENT, "modulated_norm: eps is %g; expected 0 or more", desc.eps);
  if (desc.gate && !desc.residual) fail(LOLRT_INVALID_ARGUMENT, "modulated_norm: gate is given, but no residual");
  op.eps = desc.eps;
  op.dtype = check.type("x", desc.x);
  op.target = {check.device(), desc.stream};
  const auto any_shape = {Dim{"frames"}, Dim{"tokens"}, Dim{"channels"}};
  const View x = desc.residual ? check.output("x", desc.x, op.dtype, any_shape, Layout::strided)
                               : check("x", desc.x, op.dtype, any_shape, Layout::strided);
  op.x = channel_rows(x);
  op.frames = x.size(0);
  op.tokens = x.size(1);
  op.channels = x.size(2);
  const auto shape = {Dim{"frames", op.frames}, Dim{"tokens", op.tokens}, Dim{"channels", op.channels}};
  if (desc.residual) op.residual = channel_rows(check("residual", desc.residual, op.dtype, shape, Layout::strided));
  if (desc.gate) op.gate = frame_vector(check, "gate", desc.gate, op);
  op.scale = frame_vector(check, "scale", desc.scale, op);
  op.shift = frame_vector(check, "shift", desc.shift, op);
  op.out = channel_rows(check.output("out", desc.out, op.dtype, shape, Layout::strided));
  return op;
}

}  // namespace

lolrt_status lolrt_modulated_norm(const lolrt_modulated_norm_desc *desc) {
  return guarded([&] {
    Checker("modulated_norm").descriptor(desc, desc ? desc->struct_size : 0, sizeof *desc);
    const ModulatedNorm op = checked(*desc);
    if (!run_on_cuda(&CudaKernels::modulated_norm, op)) kernels().modulated_norm(op);
  });
}
