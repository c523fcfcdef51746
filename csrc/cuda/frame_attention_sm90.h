// The launch of the kernel in frame_attention_sm90.cuh.
#pragma once

#include "attention.cuh"

namespace lolrt::cuda {

// Shared memory of a block.
int64_t attention_sm90_shared_bytes(const FrameAttention &op);

// Queues the kernel on the op's stream; returns what is wrong, or NULL.
const char *launch_attention_sm90(const AttentionArgument &argument);

}  // namespace lolrt::cuda
