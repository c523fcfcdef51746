// The CUDA half of the library: liblolrt_cuda.so beside liblolrt.so, loaded when the first tensor on CUDA comes. Without it, or
// without a driver, the CPU's kernels work as always.
#pragma once

#include "core/ops.h"

namespace lolrt {

// The result of a launch; `text` says what was wrong, in a buffer of the calling thread.
struct CudaOutcome {
  lolrt_status status;
  const char *text;
};

// The functions of liblolrt_cuda.so. They check what only a CUDA kernel requires, and queue the op on its stream.
struct CudaKernels {
  // The version, and a hash of the headers that both libraries are built from. If it is not liblolrt.so's, the rest of this
  // struct and the ops may be other ones, and nothing of it is read. So this stays first.
  const char *build;
  CudaOutcome (*kv_write)(const KvWrite &);
  CudaOutcome (*frame_attention_workspace)(const FrameAttention &, uint64_t *bytes);
  CudaOutcome (*frame_attention)(const FrameAttention &);
  CudaOutcome (*modulated_norm)(const ModulatedNorm &);
  CudaOutcome (*gelu)(const Gelu &);
  CudaOutcome (*sampler_step)(const SamplerStep &);
};

// Fails if there is no CUDA half.
const CudaKernels &cuda_kernels();

// Fails unless the outcome is LOLRT_OK.
void check_outcome(const CudaOutcome &outcome);

// Returns false, without doing anything, if the op is not on CUDA.
template <class Op>
bool run_on_cuda(CudaOutcome (*CudaKernels::*kernel)(const Op &), const Op &op) {
  if (op.target.device.type != LOLRT_DEVICE_CUDA) return false;
  check_outcome((cuda_kernels().*kernel)(op));
  return true;
}

}  // namespace lolrt
