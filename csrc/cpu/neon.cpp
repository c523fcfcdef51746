#include "cpu/isa_neon.h"

#include "cpu/kernels.h"

namespace lolrt {
extern const Kernels kNeonKernels;
const Kernels kNeonKernels = make_kernels<NeonIsa>();
}  // namespace lolrt
