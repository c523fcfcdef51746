// The emulator's csrc/cuda/device/async_copy.cuh.
#pragma once

#include <device/language.cuh>

namespace lolrt::cuda {

inline uint32_t shared_address(const void *shared) { return simt::shared_address(shared); }
__forceinline__ void copy_async(void *shared, const void *global) { simt::copy_async(shared, global, 16, true); }
__forceinline__ void copy_async(void *shared, const void *global, bool valid) { simt::copy_async(shared, global, 16, valid); }
__forceinline__ void copy_async_8(void *shared, const void *global) { simt::copy_async(shared, global, 8, true); }
__forceinline__ void commit_copy_group() { simt::commit_copy_group(); }
template <int Pending>
__forceinline__ void wait_for_copies() {
  simt::wait_for_copies(Pending);
}

}  // namespace lolrt::cuda
