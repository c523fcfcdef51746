#include "cpu/isa_neonbf16.h"

#include "cpu/kernels.h"

namespace lolrt {
extern const Kernels kNeonBf16Kernels;
const Kernels kNeonBf16Kernels = make_kernels<NeonBf16Isa>();
}  // namespace lolrt
