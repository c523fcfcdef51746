// The ops of the CUDA half; core/cuda.h says what they are.
#pragma once

#include "core/cuda.h"

namespace lolrt::cuda {

CudaOutcome kv_write(const KvWrite &op);
CudaOutcome frame_attention_workspace(const FrameAttention &op, uint64_t *bytes);
CudaOutcome frame_attention(const FrameAttention &op);
CudaOutcome modulated_norm(const ModulatedNorm &op);
CudaOutcome gelu(const Gelu &op);
CudaOutcome sampler_step(const SamplerStep &op);

}  // namespace lolrt::cuda
