// The CUDA runtime as far as csrc/cuda/device/launch.cuh calls it, on the emulator: it takes notes of every call, and returns the
// errors that the runtime's reference says it would. Another API is not there, and so cannot be called unseen.
#pragma once

#include "simt.h"

#include <cstddef>

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorLaunchFailure = 719,  // here: what the emulator says
  cudaErrorUnknown = 999
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

struct cudaFuncAttributes {
  int ptxVersion, binaryVersion;
};

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = struct CUstream_st *;

cudaError_t cudaGetDevice(int *device);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetLastError();
const char *cudaGetErrorString(cudaError_t error);

namespace lolrt::simt {

cudaError_t get_attributes(cudaFuncAttributes *attributes, const void *kernel);
cudaError_t set_attribute(const void *kernel, cudaFuncAttribute attribute, int value);
cudaError_t launch(const Launch &launch, dim3 block, cudaStream_t stream);

}  // namespace lolrt::simt

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, Kernel *kernel) {
  return lolrt::simt::get_attributes(attributes, reinterpret_cast<const void *>(kernel));
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel *kernel, cudaFuncAttribute attribute, int value) {
  return lolrt::simt::set_attribute(reinterpret_cast<const void *>(kernel), attribute, value);
}

template <class Argument>
cudaError_t cudaLaunchKernel(void (*kernel)(Argument), dim3 grid, dim3 block, void **arguments, size_t shared_bytes,
                             cudaStream_t stream) {
  const auto enter = [](const void *all) {
    const auto *launch = static_cast<const lolrt::simt::Launch *>(all);
    reinterpret_cast<void (*)(Argument)>(const_cast<void *>(launch->kernel))(*static_cast<const Argument *>(launch->argument));
  };
  return lolrt::simt::launch({reinterpret_cast<const void *>(kernel),
                              {grid.x, grid.y, grid.z},
                              block.x,
                              static_cast<unsigned>(shared_bytes),
                              arguments[0],
                              sizeof(Argument),
                              enter},
                             block, stream);
}
