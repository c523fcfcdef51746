// Asking the CUDA runtime for launches. The emulator's tests compile this file as it is, against a runtime that takes notes.
#pragma once

#include "core/ops.h"
#include "outcome.h"

#include <cuda_runtime.h>

namespace lolrt::cuda {

struct Grid {
  unsigned x, y, z;
  unsigned threads;       // of a block
  unsigned shared_bytes;  // of a block
};

// Tensor cores, shared memory and so tiles differ between architectures. `architecture` is what the code was made for that is
// loaded on the device, in the units of __CUDA_ARCH__: not the device's own where the driver has compiled PTX of an earlier one.
struct Device {
  int architecture, multiprocessors;
};

// What an op fails with when a call of the runtime does. The runtime keeps the error for whoever asks for the last one: that is
// this op, not the caller's next.
inline CudaOutcome runtime_failed(const char *operation, cudaError_t error) {
  cudaGetLastError();
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) {  // the latter also where there is none
    return problem(LOLRT_UNSUPPORTED,
                   "%s: a tensor is on CUDA, but the library finds no GPU or no driver for it (%s); use the CPU", operation,
                   cudaGetErrorString(error));
  }
  return problem(LOLRT_INTERNAL, "%s: CUDA: %s", operation, cudaGetErrorString(error));
}

// Kernels run on the current device; its memory is what they find there.
inline CudaOutcome check_current_device(const char *operation, const Target &target) {
  int current = 0;
  const cudaError_t error = cudaGetDevice(&current);
  if (error != cudaSuccess) return runtime_failed(operation, error);
  if (current == target.device.id) return kDone;
  return problem(LOLRT_UNSUPPORTED, "%s: the tensors are on CUDA device %d, but the current one is %d; make theirs current first",
                 operation, target.device.id, current);
}

// Of the current device, and of the code of one of the op's kernels there.
template <class Argument>
CudaOutcome find_device(const char *operation, const Target &target, void (*kernel)(Argument), Device *device) {
  const CudaOutcome current = check_current_device(operation, target);
  if (current.status != LOLRT_OK) return current;
  cudaFuncAttributes code{};
  cudaError_t error = cudaFuncGetAttributes(&code, kernel);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&device->multiprocessors, cudaDevAttrMultiProcessorCount, target.device.id);
  }
  device->architecture = 10 * code.ptxVersion;
  return error == cudaSuccess ? kDone : runtime_failed(operation, error);
}

// Queues kernel(argument) on the op's stream.
template <class Argument>
CudaOutcome launch(const char *operation, void (*kernel)(Argument), const Grid &grid, const Target &target,
                   const Argument &argument) {
  const CudaOutcome current = check_current_device(operation, target);
  if (current.status != LOLRT_OK) return current;
  cudaError_t error = cudaSuccess;
  if (grid.shared_bytes > 48 * 1024) {  // more has to be asked for
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared_bytes));
  }
  if (error == cudaSuccess) {
    void *arguments[] = {const_cast<Argument *>(&argument)};
    error = cudaLaunchKernel(kernel, dim3(grid.x, grid.y, grid.z), dim3(grid.threads), arguments, grid.shared_bytes,
                             static_cast<cudaStream_t>(target.stream));
  }
  return error == cudaSuccess ? kDone : runtime_failed(operation, error);
}

}  // namespace lolrt::cuda
