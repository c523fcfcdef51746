// The emulator's csrc/cuda/device/barrier.cuh.
#pragma once

#include <device/async_copy.cuh>

namespace lolrt::cuda {

using Barrier = uint64_t;

__forceinline__ void init_barrier(Barrier *barrier, int arrivals) { simt::init_barrier(barrier, arrivals); }
__forceinline__ void publish_barriers() { simt::publish_barriers(); }
__forceinline__ void arrive(Barrier *barrier) { simt::arrive(barrier, 0); }
__forceinline__ void arrive_expecting(Barrier *barrier, int bytes) { simt::arrive(barrier, bytes); }
__forceinline__ void wait_for_phase(Barrier *barrier, int parity) { simt::wait_for_phase(barrier, parity); }

}  // namespace lolrt::cuda
