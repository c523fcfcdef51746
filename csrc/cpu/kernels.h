// The table of kernels of one instruction set: each op for float and Bf16. Included last in the set's translation unit.
#pragma once

#include "cpu/frame_attention.h"
#include "cpu/kv_write.h"
#include "cpu/modulated_norm.h"

namespace lolrt {
namespace {

template <class Isa, template <class, class> class Kernel, class Op>
void run(const Op &op) {
  if (op.dtype == DType::bfloat16) {
    Kernel<Isa, Bf16>::run(op);
  } else {
    Kernel<Isa, float>::run(op);
  }
}

template <class Isa>
uint64_t attention_workspace(const FrameAttention &op) {
  return op.dtype == DType::bfloat16 ? FrameAttentionKernel<Isa, Bf16>::workspace_bytes(op)
                                     : FrameAttentionKernel<Isa, float>::workspace_bytes(op);
}

template <class Isa>
constexpr Kernels make_kernels() {
  return {Isa::name,
          Isa::runs_here,
          run<Isa, KvWriteKernel, KvWrite>,
          attention_workspace<Isa>,
          run<Isa, FrameAttentionKernel, FrameAttention>,
          run<Isa, ModulatedNormKernel, ModulatedNorm>};
}

}  // namespace
}  // namespace lolrt
