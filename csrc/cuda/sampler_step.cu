// sampler_step on CUDA.
//
//   clean = round_float32(sample - level * velocity), in float64;  out = (1 - after) * clean + after * noise, in float32
//
// Tensors: float32 [elements], each read or written once; a thread takes one element.
#include "kernels.h"
#include "outcome.h"

#include <device/launch.cuh>
#include <device/threads.cuh>

#include <cinttypes>

namespace lolrt::cuda {
namespace {

constexpr int kStepThreads = 256;

__global__ void __launch_bounds__(kStepThreads) sampler_step_kernel(const __grid_constant__ SamplerStep op) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kStepThreads + threadIdx.x;
  if (i >= op.elements) return;
  const float clean = static_cast<float>(static_cast<double>(op.sample[i]) - op.level * static_cast<double>(op.velocity[i]));
  const float keep = static_cast<float>(1.0 - op.after), add = static_cast<float>(op.after);
  op.out[i] = op.noise ? keep * clean + add * op.noise[i] : clean;
}

}  // namespace

CudaOutcome sampler_step(const SamplerStep &op) {
  const int64_t blocks = (op.elements + kStepThreads - 1) / kStepThreads;
  if (blocks > INT32_MAX) {
    return problem(LOLRT_UNSUPPORTED, "sampler_step: %" PRId64 " elements; a grid has at most 2^39", op.elements);
  }
  const Grid grid{static_cast<unsigned>(blocks), 1, 1, kStepThreads, 0};
  return launch("sampler_step", sampler_step_kernel, grid, op.target, op);
}

}  // namespace lolrt::cuda
