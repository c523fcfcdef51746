// The 16-bit element types, as bits in 32-bit words of two, the 8-bit one of pages, and the words and vectors that kernels move.
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

namespace lolrt::cuda {

struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};
struct Fp8 {  // e4m3fn
  uint8_t bits;
};

// The pair in a word; the first element is in the low half.
template <class Element>
__device__ __forceinline__ float2 unpack(uint32_t word);

template <>
__device__ __forceinline__ float2 unpack<Bf16>(uint32_t word) {
  return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
}

template <>
__device__ __forceinline__ float2 unpack<Fp16>(uint32_t word) {
  float2 pair;
  asm("{\n"
      "  .reg .b16 low, high;\n"
      "  mov.b32 {low, high}, %2;\n"
      "  cvt.f32.f16 %0, low;\n"
      "  cvt.f32.f16 %1, high;\n"
      "}\n"
      : "=f"(pair.x), "=f"(pair.y)
      : "r"(word));
  return pair;
}

// Rounded to nearest, ties to even.
template <class Element>
__device__ __forceinline__ uint32_t pack(float first, float second);

template <>
__device__ __forceinline__ uint32_t pack<Bf16>(float first, float second) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(word) : "f"(second), "f"(first));
  return word;
}

template <>
__device__ __forceinline__ uint32_t pack<Fp16>(float first, float second) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(word) : "f"(second), "f"(first));
  return word;
}

// The products of two pairs, rounded to nearest, ties to even; numbers and results may be subnormal.
template <class Element>
__device__ __forceinline__ uint32_t multiply_pairs(uint32_t a, uint32_t b);

template <>
__device__ __forceinline__ uint32_t multiply_pairs<Bf16>(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));  // sm_80 has no mul; + -0
  return product;
}

// Bytes First and Second of a word as two 16-bit integers with their signs; the first is in the low half.
template <int First, int Second>
__device__ __forceinline__ uint32_t sign_extended_bytes(uint32_t word) {
  constexpr int kSign = 8;  // of a byte, in all bits of the result's
  uint32_t pair;
  asm("prmt.b32 %0, %1, 0, %2;\n"
      : "=r"(pair)
      : "r"(word), "n"(First | (First | kSign) << 4 | Second << 8 | (Second | kSign) << 12));
  return pair;
}

// 16 bytes of global memory, aligned to them, in one instruction: where another branch moves the same bytes by elements, the
// compiler takes a plain access apart and shares the parts.
__device__ __forceinline__ uint4 load_vector(const void *global) {
  uint4 words;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(__cvta_generic_to_global(global))
               : "memory");
  return words;
}

__device__ __forceinline__ void store_vector(void *global, const uint4 &words) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};\n" ::"l"(__cvta_generic_to_global(global)), "r"(words.x), "r"(words.y),
               "r"(words.z), "r"(words.w)
               : "memory");
}

// 2^x to a relative error of 2^-22; results below the normal numbers are 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace lolrt::cuda
