// The table of kernels of one instruction set: each op for float and Bf16. Included last in the set's translation unit.
#pragma once

#include "cpu/channel_norm.h"
#include "cpu/conv3d.h"
#include "cpu/frame_attention.h"
#include "cpu/gelu.h"
#include "cpu/int8_attention.h"
#include "cpu/kv_write.h"
#include "cpu/kv_write_int8.h"
#include "cpu/modulated_norm.h"
#include "cpu/quantized_rows.h"
#include "cpu/sampler_step.h"
#include "cpu/tile_attention.h"

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
void kv_write(const KvWrite &op) {
  if (op.k.data && op.page_dtype == DType::int8) {
    run<Isa, Int8KvWriteKernel>(op);
  } else {
    run<Isa, KvWriteKernel>(op);
  }
}

template <class Isa, class Bytes, class Visit>
auto with_int8_attention(const FrameAttention &op, const Visit &visit) {
  if (op.dtype == DType::float32) return visit(static_cast<Int8AttentionKernel<Isa, Bytes, float> *>(nullptr));
  return visit(static_cast<Int8AttentionKernel<Isa, Bytes, Bf16> *>(nullptr));
}

// visit(kernel) with a null pointer of the kernel's type: on matrix tiles where the instruction set has them.
template <class Isa, class Visit>
auto with_attention(const FrameAttention &op, const Visit &visit) {
  if (op.page_dtype == DType::int8) {
    if constexpr (!std::is_void<typename Isa::FastBytes>::value) {
      if (Isa::FastBytes::runs_here()) return with_int8_attention<Isa, typename Isa::FastBytes>(op, visit);
    }
    return with_int8_attention<Isa, typename Isa::Bytes>(op, visit);
  }
  if (op.dtype == DType::float32) return visit(static_cast<FrameAttentionKernel<Isa, float> *>(nullptr));
  if constexpr (std::is_void<typename Isa::Tiles>::value) {
    return visit(static_cast<FrameAttentionKernel<Isa, Bf16> *>(nullptr));
  } else {
    return visit(static_cast<TileAttentionKernel<Isa, typename Isa::TileOperand, typename Isa::Tiles> *>(nullptr));
  }
}

template <class Isa>
uint64_t attention_workspace(const FrameAttention &op) {
  return with_attention<Isa>(op, [&](auto *kernel) { return std::remove_pointer_t<decltype(kernel)>::workspace_bytes(op); });
}

template <class Isa>
void attention(const FrameAttention &op) {
  with_attention<Isa>(op, [&](auto *kernel) { std::remove_pointer_t<decltype(kernel)>::run(op); });
}

template <class Isa>
constexpr Kernels make_kernels() {
  return {Isa::name,
          Isa::runs_here,
          kv_write<Isa>,
          attention_workspace<Isa>,
          attention<Isa>,
          run<Isa, ModulatedNormKernel, ModulatedNorm>,
          run<Isa, GeluKernel, Gelu>,
          run<Isa, QuantizeRowsKernel, QuantizeRows>,
          run<Isa, DequantizeRowsKernel, DequantizeRows>,
          SamplerStepKernel<Isa>::run,
          run<Isa, ChannelNormKernel, ChannelNorm>,
          Conv3dKernel<Isa>::run};
}

}  // namespace
}  // namespace lolrt
