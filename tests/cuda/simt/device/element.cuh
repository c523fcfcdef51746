// The emulator's csrc/cuda/device/element.cuh.
#pragma once

#include <device/language.cuh>

namespace lolrt::cuda {

struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};
struct Fp8 {
  uint8_t bits;
};

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  return __builtin_bit_cast(To, from);
}

template <class Element>
inline float value_of(uint16_t bits);
template <>
inline float value_of<Bf16>(uint16_t bits) {
  return bits_as<float>(static_cast<uint32_t>(bits) << 16);
}
template <>
inline float value_of<Fp16>(uint16_t bits) {
  return static_cast<float>(bits_as<_Float16>(bits));
}

template <class Element>
inline uint16_t bits_of(float value);
template <>
inline uint16_t bits_of<Bf16>(float value) {
  const auto bits = bits_as<uint32_t>(value);
  return value == value ? static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : 0x7fff;
}
template <>
inline uint16_t bits_of<Fp16>(float value) {
  return bits_as<uint16_t>(static_cast<_Float16>(value));
}

template <class Element>
inline float2 unpack(uint32_t word) {
  return {value_of<Element>(static_cast<uint16_t>(word)), value_of<Element>(static_cast<uint16_t>(word >> 16))};
}

template <class Element>
inline uint32_t pack(float first, float second) {
  return bits_of<Element>(first) | static_cast<uint32_t>(bits_of<Element>(second)) << 16;
}

template <class Element>
inline uint32_t multiply_pairs(uint32_t a, uint32_t b) {
  const float2 x = unpack<Element>(a), y = unpack<Element>(b);
  return pack<Element>(x.x * y.x, x.y * y.y);
}

template <int First, int Second>
inline uint32_t sign_extended_bytes(uint32_t word) {
  const auto byte = [&](int i) { return static_cast<uint32_t>(static_cast<int8_t>(word >> (8 * i))); };
  return (byte(First) & 0xffff) | byte(Second) << 16;
}

inline uint4 load_vector(const void *global) { return *static_cast<const uint4 *>(global); }
inline void store_vector(void *global, const uint4 &words) { *static_cast<uint4 *>(global) = words; }

inline float exp2_approx(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;
}

}  // namespace lolrt::cuda
