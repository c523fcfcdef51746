// Launching a kernel on a stream: the one call that differs between a GPU and the emulator.
#pragma once

#include <cuda_runtime.h>

namespace lolrt::cuda {

struct Grid {
  unsigned x, y, z;
  unsigned threads;       // of a block
  unsigned shared_bytes;  // of a block
};

// Tensor cores, shared memory and so tiles differ between architectures: 100 * major + 10 * minor of the current device, or 0 and
// what is wrong.
struct Device {
  int architecture, multiprocessors;
  const char *problem;
};

inline Device current_device() {
  int device = 0, major = 0, minor = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return {0, 0, cudaGetErrorString(error)};
  return {100 * major + 10 * minor, multiprocessors, nullptr};
}

// Queues kernel(argument); returns what is wrong, or NULL.
template <class Argument>
const char *launch(void (*kernel)(Argument), const Grid &grid, void *stream, const Argument &argument) {
  cudaError_t error = cudaSuccess;
  if (grid.shared_bytes > 48 * 1024) {  // more has to be asked for
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared_bytes));
  }
  if (error == cudaSuccess) {
    kernel<<<dim3(grid.x, grid.y, grid.z), grid.threads, grid.shared_bytes, static_cast<cudaStream_t>(stream)>>>(argument);
    error = cudaGetLastError();
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace lolrt::cuda
