// mbarrier: a barrier in shared memory that counts arrivals of threads and bytes of bulk copies. Its phases alternate in parity,
// the first has 0; a phase ends when all arrivals and all bytes that were announced for it have come.
#pragma once

#include <device/async_copy.cuh>

namespace lolrt::cuda {

using Barrier = uint64_t;

// By one thread.
__device__ __forceinline__ void init_barrier(Barrier *barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// What the thread has initialised is there for bulk copies and, after a barrier of the block, for the other threads.
__device__ __forceinline__ void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory"); }

// What the thread wrote before is there for those who wait for the phase.
__device__ __forceinline__ void arrive(Barrier *barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier)) : "memory");
}

// The same; the phase does not end before so many bytes more have come.
__device__ __forceinline__ void arrive_expecting(Barrier *barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Waits until the phase of that parity is over: the one under way, or the one before it, which is over.
__device__ __forceinline__ void wait_for_phase(Barrier *barrier, int parity) {
  uint32_t over;
  do {
    asm volatile(
        "{\n"
        "  .reg .pred over;\n"
        "  mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 over, [%1], %2;\n"
        "  selp.b32 %0, 1, 0, over;\n"
        "}\n"
        : "=r"(over)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (over == 0);
}

}  // namespace lolrt::cuda
