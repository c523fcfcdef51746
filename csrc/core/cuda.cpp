#include "core/cuda.h"

#include "core/status.h"

#include <cstring>
#include <dlfcn.h>
#include <string>

namespace lolrt {
namespace {

constexpr char kBuild[] = LOLRT_VERSION " " LOLRT_SHARED_HEADERS;

struct Half {
  const CudaKernels *kernels = nullptr;
  std::string problem;
};

Half load() {
  Dl_info here{};
  dladdr(reinterpret_cast<void *>(&cuda_kernels), &here);
  const std::string self = here.dli_fname ? here.dli_fname : "";
  const std::string path = self.substr(0, self.rfind('/') + 1) + "liblolrt_cuda.so";
  Half half;
  void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // stays loaded for the life of the process
  if (library == nullptr) {
    half.problem = dlerror();
    return half;
  }
  const auto get = reinterpret_cast<const CudaKernels *(*)()>(dlsym(library, "lolrt_cuda_kernels"));
  const CudaKernels *found = get ? get() : nullptr;
  if (found != nullptr && std::strcmp(found->build, kBuild) == 0) {
    half.kernels = found;
  } else {
    half.problem = path + " is of build " + (found ? found->build : "?") + ", and liblolrt.so of " + kBuild;
  }
  return half;
}

}  // namespace

const CudaKernels &cuda_kernels() {
  static const Half half = load();
  if (half.kernels == nullptr) {
    fail(LOLRT_UNSUPPORTED, "a tensor is on CUDA, but this build's CUDA half does not load (%s): build with nvcc, or use the CPU",
         half.problem.c_str());
  }
  return *half.kernels;
}

void check_outcome(const CudaOutcome &outcome) {
  if (outcome.status != LOLRT_OK) fail(outcome.status, "%s", outcome.text);
}

}  // namespace lolrt
