// Launches the kernel of sm_90a: tensor maps, how many blocks, how much shared memory.
#include "frame_attention_sm90.h"

#include "frame_attention_sm90.cuh"

#include <device/launch.cuh>

namespace lolrt::cuda {
namespace {

using Kernel = void (*)(Sm90Argument);

template <class Element>
Kernel kernel_of(bool probe) {
  return probe ? frame_attention_sm90_kernel<Element, true> : frame_attention_sm90_kernel<Element, false>;
}

// Of K, or of V with its offset in the page: [pages][heads][tokens][dim], in boxes of a tile's keys by 64 channels.
TensorBox box_of(const FrameAttention &op, int64_t offset, int64_t head_elements) {
  constexpr uint64_t kElementBytes = 2;
  return {static_cast<const char *>(op.pool) + offset * kElementBytes,
          {static_cast<uint64_t>(op.dim), static_cast<uint64_t>(op.page_tokens), static_cast<uint64_t>(op.heads),
           static_cast<uint64_t>(op.pool_pages)},
          {op.dim * kElementBytes, head_elements * kElementBytes, op.page_stride * kElementBytes},
          {kBoxChannels, kSm90Keys, 1, 1}};
}

}  // namespace

int64_t attention_sm90_shared_bytes(const FrameAttention &op) {
  return Sm90Shared::bytes(turned_steps(rounded_pairs(op.pairs) / 4), attention_frames(op.batch_frames(), op.tokens));
}

const char *launch_attention_sm90(const AttentionArgument &argument) {
  const FrameAttention &op = argument.op;
  Sm90Argument all{argument, {}, {}};
  const char *error = encode_tensor_map(&all.keys, box_of(op, 0, argument.head_elements));
  if (error == nullptr) error = encode_tensor_map(&all.values, box_of(op, argument.values, argument.head_elements));
  if (error != nullptr) return error;
  const Grid grid{static_cast<unsigned>(argument.split.blocks()), static_cast<unsigned>(op.batch), 1, kSm90Threads,
                  static_cast<unsigned>(attention_sm90_shared_bytes(op))};
  const bool probe = op.mass != nullptr;
  return launch(op.dtype == DType::bfloat16 ? kernel_of<Bf16>(probe) : kernel_of<Fp16>(probe), grid, op.target.stream, all);
}

}  // namespace lolrt::cuda
