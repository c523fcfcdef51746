// The emulator's csrc/cuda/device/warpgroup.cuh.
#pragma once

#include <device/element.cuh>

namespace lolrt::cuda {

constexpr int kWarpgroupThreads = 128;

template <int Registers>
__forceinline__ void give_registers_back() {
  simt::set_registers(Registers, false);
}
template <int Registers>
__forceinline__ void take_registers() {
  simt::set_registers(Registers, true);
}

__forceinline__ void fence_products() { simt::fence_products(); }
__forceinline__ void commit_product_group() { simt::commit_product_group(); }
template <int Pending>
__forceinline__ void wait_for_products() {
  simt::wait_for_products(Pending);
}

// Memory stands for registers here, and the emulator sees each access to it.
template <int Count>
__forceinline__ void pin(float (&)[Count]) {}

template <class Element>
__forceinline__ void multiply_rows(float (&d)[56], const uint32_t (&a)[4], uint64_t b, bool add) {
  simt::begin_product(d, 112, a, b, false, add, value_of<Element>);
}

template <class Element>
__forceinline__ void multiply_add_columns(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  simt::begin_product(d, 128, a, b, true, true, value_of<Element>);
}

}  // namespace lolrt::cuda
