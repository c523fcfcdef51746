// Which kernels run: one table per instruction set, chosen once.
#include "core/ops.h"
#include "core/status.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

namespace lolrt {

extern const Kernels kScalarKernels;
#if LOLRT_X86
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512Bf16Kernels;
extern const Kernels kAmxKernels;
#elif LOLRT_ARM
extern const Kernels kNeonKernels;
extern const Kernels kNeonBf16Kernels;
#endif

namespace {

// Best first.
const Kernels *const kBuilt[] = {
#if LOLRT_X86
    &kAmxKernels, &kAvx512Bf16Kernels, &kAvx512Kernels, &kAvx2Kernels,
#elif LOLRT_ARM
    &kNeonBf16Kernels, &kNeonKernels,
#endif
    &kScalarKernels};

const std::string &names() {
  static const std::string text = [] {
    std::string list;
    for (const Kernels *set : kBuilt) {
      if (set->runs_here()) list += (list.empty() ? "" : ",") + std::string(set->isa);
    }
    return list;
  }();
  return text;
}

const Kernels *find(const char *name) {
  for (const Kernels *set : kBuilt) {
    if ((name == nullptr || std::strcmp(set->isa, name) == 0) && set->runs_here()) return set;
  }
  return nullptr;
}

// The set in use; NULL if LOLRT_ISA asked for one that cannot run here.
std::atomic<const Kernels *> &current() {
  static std::atomic<const Kernels *> set{find(std::getenv("LOLRT_ISA"))};
  return set;
}

}  // namespace

const Kernels &kernels() {
  const Kernels *set = current();
  if (set == nullptr) {
    fail(LOLRT_INVALID_ARGUMENT, "LOLRT_ISA is \"%s\"; this build and CPU have: %s", std::getenv("LOLRT_ISA"), names().c_str());
  }
  return *set;
}

}  // namespace lolrt

using namespace lolrt;

const char *lolrt_isas(void) { return names().c_str(); }

const char *lolrt_isa(void) {
  const Kernels *set = current();
  return set ? set->isa : "none";
}

lolrt_status lolrt_set_isa(const char *name) {
  return guarded([&] {
    const Kernels *set = name ? find(name) : nullptr;
    if (set == nullptr) {
      fail(LOLRT_INVALID_ARGUMENT, "set_isa: \"%s\"; this build and CPU have: %s", name ? name : "NULL", names().c_str());
    }
    current() = set;
  });
}
