// What liblolrt_cuda.so exports.
#include "kernels.h"

#include "outcome.h"

#include <cstdarg>
#include <cstdio>

namespace lolrt::cuda {

CudaOutcome problem(lolrt_status status, const char *format, ...) {
  thread_local char text[512];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  return {status, text};
}

}  // namespace lolrt::cuda

extern "C" LOLRT_API const lolrt::CudaKernels *lolrt_cuda_kernels() {
  static constexpr lolrt::CudaKernels kernels{LOLRT_VERSION,
                                              lolrt::cuda::kv_write,
                                              lolrt::cuda::frame_attention_workspace,
                                              lolrt::cuda::frame_attention,
                                              lolrt::cuda::modulated_norm,
                                              lolrt::cuda::gelu,
                                              lolrt::cuda::sampler_step};
  return &kernels;
}
