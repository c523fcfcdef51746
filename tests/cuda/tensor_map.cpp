// A replacement for the driver that csrc/cuda/device/bulk_copy.cuh calls: records what it is asked to encode. Compiled by the
// host's compiler, for which the header's device functions are only declarations.
#include <cuda_runtime.h>

std::size_t __cvta_generic_to_shared(const void *);

#include <device/bulk_copy.cuh>

#include <cstring>

struct Asked {
  char name[64];
  std::uint32_t version;
  std::uint32_t type, rank;
  const void *data;
  std::uint64_t sizes[4], strides[3];
  std::uint32_t box[4], steps[4];
  std::uint32_t interleave, swizzle, fill;
};

namespace {

enum Driver { kUsual, kNoDriver, kTooOld, kRefuses };

Driver driver;
Asked asked;
cudaError_t last;  // what the runtime keeps for whoever asks next

CUresult encode(CUtensorMap *, CUtensorMapDataType type, cuuint32_t rank, void *data, const cuuint64_t *sizes,
                const cuuint64_t *strides, const cuuint32_t *box, const cuuint32_t *steps, CUtensorMapInterleave interleave,
                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  asked.type = type;
  asked.rank = rank;
  asked.data = data;
  std::memcpy(asked.sizes, sizes, sizeof asked.sizes);
  std::memcpy(asked.strides, strides, sizeof asked.strides);
  std::memcpy(asked.box, box, sizeof asked.box);
  std::memcpy(asked.steps, steps, sizeof asked.steps);
  asked.interleave = interleave;
  asked.swizzle = swizzle;
  asked.fill = fill;
  return driver == kRefuses ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

}  // namespace

extern "C" {

const char *cudaGetErrorString(cudaError_t) { return "no driver"; }

cudaError_t cudaGetLastError() {
  const cudaError_t error = last;
  last = cudaSuccess;
  return error;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **entry, unsigned version, unsigned long long,
                                             cudaDriverEntryPointQueryResult *found) {
  if (driver == kNoDriver) return last = cudaErrorInsufficientDriver;
  std::strncpy(asked.name, name, sizeof asked.name - 1);
  asked.version = version;
  *entry = driver == kTooOld ? nullptr : reinterpret_cast<void *>(&encode);
  *found = driver == kTooOld ? cudaDriverEntryPointVersionNotSufficent : cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

const char *ask(const lolrt::TensorBox *box, int of, Asked *to) {
  driver = static_cast<Driver>(of);
  asked = {};
  lolrt::cuda::TensorMap map;
  const char *problem = lolrt::cuda::encode_tensor_map(&map, *box);
  *to = asked;
  return last == cudaSuccess ? problem : "an error is left with the runtime";
}
}
