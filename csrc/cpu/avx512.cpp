#include "cpu/isa_avx512.h"

#include "cpu/kernels.h"

namespace lolrt {
extern const Kernels kAvx512Kernels;
const Kernels kAvx512Kernels = make_kernels<Avx512Isa>();
}  // namespace lolrt
