// The launch of the kernel in frame_attention_sm90.cuh.
#pragma once

#include "attention.cuh"
#include "outcome.h"

namespace lolrt::cuda {

// Shared memory of a block.
int64_t attention_sm90_shared_bytes(const FrameAttention &op);

// What its boxes of the pool want of that beyond what the other kernel does.
CudaOutcome check_attention_sm90(const FrameAttention &op, const PageLayout &layout);

// Queues the kernel on the op's stream. `slots`: blocks that run at once.
CudaOutcome launch_attention_sm90(const AttentionArgument &argument, int slots);

}  // namespace lolrt::cuda
