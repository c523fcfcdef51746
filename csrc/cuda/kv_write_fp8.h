// How kv_write.cu has pages of float8_e4m3fn written, in kv_write_fp8.cu.
#pragma once

#include "outcome.h"

namespace lolrt::cuda {

struct KvArgument;

// The keys and values of the op.
CudaOutcome launch_kv_write_fp8(const KvArgument &argument);

}  // namespace lolrt::cuda
