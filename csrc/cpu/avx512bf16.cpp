#include "cpu/isa_avx512bf16.h"

#include "cpu/kernels.h"

namespace lolrt {
extern const Kernels kAvx512Bf16Kernels;
const Kernels kAvx512Bf16Kernels = make_kernels<Avx512Bf16Isa>();
}  // namespace lolrt
