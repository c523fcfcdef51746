#include "cpu/isa_amx.h"

#include "cpu/kernels.h"

namespace lolrt {
extern const Kernels kAmxKernels;
const Kernels kAmxKernels = make_kernels<AmxIsa>();
}  // namespace lolrt
