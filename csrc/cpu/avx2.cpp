#include "cpu/isa_avx2.h"

#include "cpu/kernels.h"

namespace lolrt {
extern const Kernels kAvx2Kernels;
const Kernels kAvx2Kernels = make_kernels<Avx2Isa>();
}  // namespace lolrt
