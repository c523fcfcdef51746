#include "runtime.h"

#include "cuda_runtime.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace lolrt::simt {
namespace {

constexpr int kDevices = 2;
constexpr unsigned kWithoutAsking = 48 * 1024;  // of shared memory

struct Runtime {
  int device = 0, failing_call = 0, calls = 0;
  cudaError_t failure = cudaErrorUnknown, last = cudaSuccess;
  std::vector<Note> notes;
  std::map<const void *, unsigned> allowed;  // of shared memory, by kernel
  std::string problem;                       // of the last launch
};

Runtime &runtime() {
  static Runtime instance;
  return instance;
}

// Of the device: 100 * major + 10 * minor.
int capability() { return settings().device != 0 ? settings().device : settings().architecture; }

// Shared memory that a block may ask for. CUDA C++ programming guide, technical specifications per compute capability.
unsigned most_shared_bytes() {
  const int of = capability();
  if (of == 800 || of == 870) return 163 * 1024;
  return of >= 900 && of < 1200 ? 227 * 1024 : 99 * 1024;
}

// Records the call, and returns `error`, unless this is the call that must fail.
cudaError_t noted(Note note, const char *call, cudaError_t error) {
  Runtime &r = runtime();
  if (++r.calls == r.failing_call) error = r.failure;
  if (error != cudaSuccess) r.last = error;
  std::strncpy(note.call, call, sizeof note.call - 1);
  note.device = r.device;
  note.error = error;
  r.notes.push_back(note);
  return error;
}

// CUDA C++ programming guide, the same table; also refuses shared memory that the kernel has not been permitted.
cudaError_t launch_error(const Launch &launch, const dim3 &block) {
  const Index &grid = launch.blocks;
  const bool empty = grid.x == 0 || grid.y == 0 || grid.z == 0 || block.x == 0 || block.y == 0 || block.z == 0;
  const bool large = grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535 || block.x * block.y * block.z > 1024;
  if (empty || large) return cudaErrorInvalidConfiguration;
  const auto found = runtime().allowed.find(launch.kernel);
  const unsigned allowed = found == runtime().allowed.end() ? kWithoutAsking : std::max(found->second, kWithoutAsking);
  return launch.shared_bytes > allowed ? cudaErrorInvalidValue : cudaSuccess;
}

}  // namespace

void restart_runtime(int device, int failing_call, int error) {
  runtime() = {};
  runtime().device = device;
  runtime().failing_call = failing_call;
  runtime().failure = static_cast<cudaError_t>(error);
}

int read_notes(Note *notes, int most) {
  const auto &all = runtime().notes;
  std::copy_n(all.begin(), std::min(static_cast<int>(all.size()), most), notes);
  return static_cast<int>(all.size());
}

int last_error() { return runtime().last; }
void leave_error(int error) { runtime().last = static_cast<cudaError_t>(error); }

bool call_fails(const char *call) {
  const cudaError_t before = runtime().last;
  const bool fails = noted({}, call, cudaSuccess) != cudaSuccess;
  runtime().last = before;  // the driver leaves nothing with the runtime
  return fails;
}

cudaError_t get_attributes(cudaFuncAttributes *attributes, const void *kernel) {
  Note note{};
  note.kernel = kernel;
  const cudaError_t error = noted(note, "cudaFuncGetAttributes", cudaSuccess);
  if (error == cudaSuccess) *attributes = {settings().architecture / 10, capability() / 10};
  return error;
}

cudaError_t set_attribute(const void *kernel, cudaFuncAttribute, int value) {
  Note note{};
  note.kernel = kernel;
  note.value = value;
  const bool fits = value >= 0 && static_cast<unsigned>(value) <= most_shared_bytes();
  const cudaError_t error = noted(note, "cudaFuncSetAttribute", fits ? cudaSuccess : cudaErrorInvalidValue);
  if (error == cudaSuccess) runtime().allowed[kernel] = static_cast<unsigned>(value);
  return error;
}

cudaError_t launch(const Launch &launch, dim3 block, cudaStream_t stream) {
  Note note{};
  note.kernel = launch.kernel;
  note.stream = stream;
  note.blocks = launch.blocks;
  note.threads = launch.threads;
  note.shared_bytes = launch.shared_bytes;
  const cudaError_t error = noted(note, "cudaLaunchKernel", launch_error(launch, block));
  if (error != cudaSuccess) return error;
  const char *problem = runner() != nullptr ? runner()(&launch) : run(launch);
  if (problem == nullptr) return cudaSuccess;
  runtime().problem = problem;
  return runtime().last = cudaErrorLaunchFailure;
}

}  // namespace lolrt::simt

using namespace lolrt::simt;

cudaError_t cudaGetDevice(int *device) {
  const cudaError_t error = noted({}, "cudaGetDevice", cudaSuccess);
  if (error == cudaSuccess) *device = runtime().device;
  return error;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
  const bool there = device >= 0 && device < kDevices;
  const cudaError_t error = noted({}, "cudaDeviceGetAttribute", there ? cudaSuccess : cudaErrorInvalidDevice);
  if (error != cudaSuccess) return error;
  *value = attribute == cudaDevAttrMultiProcessorCount      ? settings().multiprocessors
           : attribute == cudaDevAttrComputeCapabilityMajor ? capability() / 100
                                                            : capability() / 10 % 10;
  return error;
}

cudaError_t cudaGetLastError() { return std::exchange(runtime().last, cudaSuccess); }

const char *cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorLaunchFailure:
      return runtime().problem.c_str();
    default:
      return "unknown error";
  }
}
