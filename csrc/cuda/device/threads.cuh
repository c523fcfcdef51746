// How the threads of a warp and of a block meet. All of them take part in each call.
#pragma once

#include <cuda_runtime.h>

namespace lolrt::cuda {

constexpr int kWarpLanes = 32;

// The architecture that this pass of the compiler makes code for, in the units of __CUDA_ARCH__; 0 on the host.
#ifdef __CUDA_ARCH__
constexpr int kArchitecture = __CUDA_ARCH__;
#else
constexpr int kArchitecture = 0;
#endif

// What the launch asked for, aligned to 1024 bytes.
__device__ __forceinline__ unsigned char *shared_memory() {
  extern __shared__ __align__(1024) unsigned char memory[];
  return memory;
}

// The value; what is computed from it is not moved out of a loop, where it would hold registers.
__device__ __forceinline__ int computed_here(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// A value that all lanes have, which the compiler then knows. What is computed from it may occupy registers of the warp, not of
// each lane.
__device__ __forceinline__ int same_in_warp(int value) { return __shfl_sync(0xffffffffu, value, 0); }

// In a kernel that has no code for this architecture: an error, where nobody would see that the output was never written.
__device__ __forceinline__ void trap() { __trap(); }

// After it each thread sees what the others of its block wrote before.
__device__ __forceinline__ void sync_block() { __syncthreads(); }

// A barrier of some of the block's warps; 0 is the block's, and there are 15 others. It is over when so many threads have come,
// whoever they are, and begins anew. Then those who wait see what all who have come wrote before. Those who arrive do not wait.
template <int Threads>
__device__ __forceinline__ void sync_named(int barrier) {
  asm volatile("barrier.cta.sync.aligned %0, %1;\n" ::"r"(barrier), "n"(Threads) : "memory");
}
template <int Threads>
__device__ __forceinline__ void arrive_named(int barrier) {
  asm volatile("barrier.cta.arrive.aligned %0, %1;\n" ::"r"(barrier), "n"(Threads) : "memory");
}

// The same as sync_block within a warp.
__device__ __forceinline__ void sync_warp() { __syncwarp(); }

// The value of lane ^ mask.
__device__ __forceinline__ float exchange(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

__device__ __forceinline__ bool any_lane(bool predicate) { return __any_sync(0xffffffffu, predicate); }

}  // namespace lolrt::cuda
