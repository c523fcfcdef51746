// cp.async: copies from global to shared memory that run beside the thread. A thread's copies belong to the group that it closes
// next; what they wrote is there for it when it has waited for the group, and for other threads after a barrier that follows.
#pragma once

#include <cstdint>

namespace lolrt::cuda {

__device__ __forceinline__ uint32_t shared_address(const void *shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// 16 bytes, both sides aligned to them.
__device__ __forceinline__ void copy_async(void *shared, const void *global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(shared_address(shared)), "l"(global) : "memory");
}

// The same, or zeros where the source is not valid; then it is not read, but is an address inside some tensor all the same.
__device__ __forceinline__ void copy_async(void *shared, const void *global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

// 8 bytes, both sides aligned to them.
__device__ __forceinline__ void copy_async_8(void *shared, const void *global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;\n" ::"r"(shared_address(shared)), "l"(global) : "memory");
}

__device__ __forceinline__ void commit_copy_group() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until no more than the `Pending` youngest groups of the thread are under way.
template <int Pending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
}

}  // namespace lolrt::cuda
