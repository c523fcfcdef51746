// The CUDA half of the library: liblolrt_cuda.so beside liblolrt.so, loaded when the first tensor on CUDA comes. A machine
// without it, or without a driver, computes on the CPU as if it did not exist.
#pragma once

#include "core/ops.h"

namespace lolrt {

// How a launch went; `text` says what was wrong, in a buffer of the calling thread.
struct CudaOutcome {
  lolrt_status status;
  const char *text;
};

// What liblolrt_cuda.so gives. Its functions check what only a CUDA kernel asks for, and queue the op on its stream.
struct CudaKernels {
  const char *version;  // that of liblolrt.so, or the two do not belong together
  CudaOutcome (*kv_write)(const KvWrite &);
  CudaOutcome (*frame_attention_workspace)(const FrameAttention &, uint64_t *bytes);
  CudaOutcome (*frame_attention)(const FrameAttention &);
  CudaOutcome (*modulated_norm)(const ModulatedNorm &);
  CudaOutcome (*gelu)(const Gelu &);
  CudaOutcome (*sampler_step)(const SamplerStep &);
};

// Fails when there is no CUDA half.
const CudaKernels &cuda_kernels();

// Fails unless the outcome is LOLRT_OK.
void check_outcome(const CudaOutcome &outcome);

// False when the op is not on CUDA, and then it has done nothing.
template <class Op>
bool run_on_cuda(CudaOutcome (*CudaKernels::*kernel)(const Op &), const Op &op) {
  if (op.target.device.type != LOLRT_DEVICE_CUDA) return false;
  check_outcome((cuda_kernels().*kernel)(op));
  return true;
}

}  // namespace lolrt
