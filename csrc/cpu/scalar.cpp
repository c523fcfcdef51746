#include "cpu/isa_scalar.h"

#include "cpu/kernels.h"

namespace lolrt {
extern const Kernels kScalarKernels;
const Kernels kScalarKernels = make_kernels<ScalarIsa>();
}  // namespace lolrt
