// The emulator's csrc/cuda/device/threads.cuh.
#pragma once

#include <device/language.cuh>

namespace lolrt::cuda {

constexpr int kWarpLanes = 32;
constexpr int kArchitecture = 0;  // the launch decides

__forceinline__ unsigned char *shared_memory() { return simt::shared_memory(); }
__forceinline__ int computed_here(int value) { return value; }
__forceinline__ int same_in_warp(int value) { return value; }
__forceinline__ void trap() { __builtin_trap(); }
__forceinline__ void sync_block() { simt::sync_block(); }
template <int Threads>
__forceinline__ void sync_named(int barrier) {
  simt::sync_named(barrier, Threads);
}
template <int Threads>
__forceinline__ void arrive_named(int barrier) {
  simt::arrive_named(barrier, Threads);
}
__forceinline__ void sync_warp() { simt::sync_warp(); }
__forceinline__ float exchange(float value, int mask) { return simt::exchange(value, mask); }
__forceinline__ bool any_lane(bool predicate) { return simt::any_lane(predicate); }

}  // namespace lolrt::cuda
