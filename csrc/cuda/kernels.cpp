// What liblolrt_cuda.so exports.
#include "kernels.h"

extern "C" LOLRT_API const lolrt::CudaKernels *lolrt_cuda_kernels() {
  static constexpr lolrt::CudaKernels kernels{LOLRT_VERSION " " LOLRT_SHARED_HEADERS,
                                              lolrt::cuda::kv_write,
                                              lolrt::cuda::frame_attention_workspace,
                                              lolrt::cuda::frame_attention,
                                              lolrt::cuda::modulated_norm,
                                              lolrt::cuda::gelu,
                                              lolrt::cuda::sampler_step};
  return &kernels;
}
