// lolrt_sampler_step: checks the descriptor and hands it to the kernels.
#include "core/checks.h"
#include "core/cuda.h"
#include "core/status.h"

using namespace lolrt;

namespace {

SamplerStep checked(const lolrt_sampler_step_desc &desc) {
  Checker check("sampler_step", Devices::cpu_and_cuda);
  check.on_device_of("sample", desc.sample);
  SamplerStep op{};
  op.target = {check.device(), desc.stream};
  op.level = desc.level;
  op.after = desc.after;
  const View sample = check("sample", desc.sample, DType::float32, {{"elements"}});
  op.elements = sample.size(0);
  op.sample = sample.data<float>();
  const Dim elements{"elements", op.elements};
  op.velocity = check("velocity", desc.velocity, DType::float32, {elements}).data<float>();
  if (desc.noise) op.noise = check("noise", desc.noise, DType::float32, {elements}).data<float>();
  op.out = check.output("out", desc.out, DType::float32, {elements}).data<float>();
  return op;
}

}  // namespace

lolrt_status lolrt_sampler_step(const lolrt_sampler_step_desc *desc) {
  return guarded([&] {
    Checker("sampler_step").descriptor(desc, desc ? desc->struct_size : 0, sizeof *desc);
    const SamplerStep op = checked(*desc);
    if (!run_on_cuda(&CudaKernels::sampler_step, op)) kernels().sampler_step(op);
  });
}
