// CUDA's additions to the language, as far as the kernels use them, for the emulator.
#pragma once

#include "simt.h"

#include <cmath>
#include <cstdint>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

namespace lolrt::cuda {

// Vectors move in one instruction, to and from multiples of their size. The compiler announces the accesses to their parts alone;
// so they say themselves where they are copied.
template <unsigned Bytes>
struct alignas(Bytes) Vector {
  Vector() = default;
  Vector(const Vector &from) { simt::check_vectors(this, &from, Bytes); }
  Vector &operator=(const Vector &from) {
    simt::check_vectors(this, &from, Bytes);
    return *this;
  }
};

struct float2 : Vector<8> {
  float x, y;
  float2() = default;
  float2(float x, float y) : x(x), y(y) {}
};
struct float4 : Vector<16> {
  float x, y, z, w;
};
struct uint4 : Vector<16> {
  uint32_t x, y, z, w;
  uint4() = default;
  uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) : x(x), y(y), z(z), w(w) {}
};

inline uint32_t __float_as_uint(float value) { return __builtin_bit_cast(uint32_t, value); }
inline float __uint_as_float(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline int min(int a, int b) { return a < b ? a : b; }

// Indices are asked for, not read: they are not the kernel's memory.
struct ThreadIndex {
  struct {
    operator unsigned() const { return simt::thread_index(); }
  } x;
};
struct BlockIndex {
  struct {
    operator unsigned() const { return simt::block_index().x; }
  } x;
  struct {
    operator unsigned() const { return simt::block_index().y; }
  } y;
  struct {
    operator unsigned() const { return simt::block_index().z; }
  } z;
};
inline constexpr ThreadIndex threadIdx{};
inline constexpr BlockIndex blockIdx{};

}  // namespace lolrt::cuda
