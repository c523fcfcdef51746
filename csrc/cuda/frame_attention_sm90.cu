// Launches the kernel of sm_90a: tensor maps, how many blocks, how much shared memory.
#include "frame_attention_sm90.h"

#include "frame_attention_sm90.cuh"

#include <device/launch.cuh>

#include <cinttypes>

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

CudaOutcome check_attention_sm90(const FrameAttention &op, const PageLayout &layout) {
  if (op.page_stride > 0 && op.page_stride % layout.key_head == 0) return kDone;
  return problem(LOLRT_UNSUPPORTED,
                 "frame_attention: pages are %" PRId64 " elements apart; on sm_90 that has to be a multiple of the %" PRId64
                 " of a head's keys, which the elements of a page are: copy the pool without what lies between",
                 op.page_stride, layout.key_head);
}

CudaOutcome launch_attention_sm90(const AttentionArgument &argument, int slots) {
  const FrameAttention &op = argument.op;
  const WorkSplit &split = argument.split;
  const int whole_blocks = split.whole < slots ? split.whole : slots;
  Sm90Argument all{argument, {}, {}, whole_blocks, attention_frames(argument.frames, op.tokens)};
  const char *error = encode_tensor_map(&all.keys, box_of(op, 0, argument.head_elements));
  if (error == nullptr) error = encode_tensor_map(&all.values, box_of(op, argument.values, argument.head_elements));
  if (error != nullptr) return problem(LOLRT_INTERNAL, "frame_attention: CUDA: %s", error);
  const Grid grid{static_cast<unsigned>(whole_blocks + split.cut * split.parts), static_cast<unsigned>(op.batch), 1, kSm90Threads,
                  static_cast<unsigned>(attention_sm90_shared_bytes(op))};
  const bool probe = op.mass != nullptr;
  const Kernel kernel = op.dtype == DType::bfloat16 ? kernel_of<Bf16>(probe) : kernel_of<Fp16>(probe);
  return launch("frame_attention", kernel, grid, op.target, all);
}

}  // namespace lolrt::cuda
