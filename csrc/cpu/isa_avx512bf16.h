// Policy for AVX-512 with its bfloat16 extension: 16 lanes, 32 registers, products of bfloat16 pairs. float32 tensors take the
// same width through the float32 format. What each member does: isa_scalar.h.
//
// The extension's conversions and products take subnormal numbers for 0.
#pragma once

#include "cpu/bf16.h"
#include "cpu/operand.h"

#include <cstdint>
#include <immintrin.h>
#include <type_traits>

namespace lolrt {
namespace {

// One lane of one step: the bfloat16 values of two adjacent k's.
template <class Isa>
struct Bf16PairOperand {
  using Vec = __m512;
  using Element = uint32_t;
  using Channel = Bf16;
  using Reg = __m512bh;
  static constexpr int depth = 2;

  static Reg load(const uint32_t *from) { return (Reg)_mm512_loadu_si512(from); }
  static Reg broadcast(const uint32_t *from) { return (Reg)_mm512_set1_epi32(static_cast<int>(*from)); }
  static Reg ones() { return (Reg)_mm512_set1_epi32(0x3f803f80); }
  static Reg first_of_pair(Reg reg) { return (Reg)_mm512_and_si512((__m512i)reg, _mm512_set1_epi32(0xffff)); }
  static Vec multiply_add(Reg a, Reg b, Vec sum) { return _mm512_dpbf16_ps(sum, a, b); }
  // Half an ulp of bfloat16 is the same for all numbers from 1 to 2: with it in the polynomial, narrowing is to drop the low
  // bits, for which a shuffle will do (the conversion takes twice as long).
  static Vec weight(Vec x) { return exp2<Isa, 3>(x, 0x1p-8f); }
  static Reg narrow(const Vec (&weights)[depth]) {
    alignas(64) static constexpr uint16_t high_halves[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                             33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    return (Reg)_mm512_permutex2var_epi16((__m512i)weights[0], _mm512_load_si512(high_halves), (__m512i)weights[1]);
  }
  static void store(uint32_t *to, Reg reg) { _mm512_storeu_si512(to, (__m512i)reg); }
};

struct Avx512Bf16Isa {
  static constexpr const char *name = "avx512bf16";
  static constexpr int width = 16;
  static constexpr int rows = 6;  // 24 accumulators, 4 columns, 1 broadcast of the 32 registers
  static constexpr int vecs = 4;

  using Vec = __m512;

  template <class T>
  using Operand = std::conditional_t<std::is_same<T, Bf16>::value, Bf16PairOperand<Avx512Bf16Isa>, Fp32Operand<Avx512Bf16Isa>>;

  using Tiles = void;

  static bool runs_here() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("fma");
  }

  static __mmask16 first_lanes(int lanes) { return static_cast<__mmask16>((1u << lanes) - 1); }

  static Vec zero() { return _mm512_setzero_ps(); }
  static Vec set(float value) { return _mm512_set1_ps(value); }
  static Vec load(const float *from) { return _mm512_loadu_ps(from); }
  static Vec load(const Bf16 *from) { return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from))); }
  static Vec load_n(const float *from, int lanes) { return _mm512_maskz_loadu_ps(first_lanes(lanes), from); }
  static Vec load_n(const Bf16 *from, int lanes) { return widened(_mm256_maskz_loadu_epi16(first_lanes(lanes), from)); }
  static void store(float *to, Vec vec) { _mm512_storeu_ps(to, vec); }
  static void store(Bf16 *to, Vec vec) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), (__m256i)_mm512_cvtneps_pbh(vec)); }
  static void store_n(float *to, Vec vec, int lanes) { _mm512_mask_storeu_ps(to, first_lanes(lanes), vec); }
  static void store_n(Bf16 *to, Vec vec, int lanes) {
    _mm256_mask_storeu_epi16(to, first_lanes(lanes), (__m256i)_mm512_cvtneps_pbh(vec));
  }
  static Vec round_bf16(Vec vec) { return widened((__m256i)_mm512_cvtneps_pbh(vec)); }

  static Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
  static Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
  static Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
  static Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static float reduce_add(Vec vec) { return _mm512_reduce_add_ps(vec); }
  static float reduce_max(Vec vec) { return _mm512_reduce_max_ps(vec); }
  static bool any_above(Vec vec, float bound) { return _mm512_cmp_ps_mask(vec, _mm512_set1_ps(bound), _CMP_GT_OQ) != 0; }
  static Vec first_n(Vec vec, int lanes, float other) {
    return _mm512_mask_blend_ps(first_lanes(lanes), _mm512_set1_ps(other), vec);
  }

  static Vec rotate(Vec x, Vec angle) {
    const Vec swapped = _mm512_permute_ps(x, 0xb1);
    return _mm512_fmaddsub_ps(x, _mm512_moveldup_ps(angle), _mm512_mul_ps(swapped, _mm512_movehdup_ps(angle)));
  }

  static void transpose(Vec (&tile)[width]) {
    Vec pairs[width];
#pragma GCC unroll 8
    for (int i = 0; i < width; i += 2) {
      pairs[i] = _mm512_unpacklo_ps(tile[i], tile[i + 1]);
      pairs[i + 1] = _mm512_unpackhi_ps(tile[i], tile[i + 1]);
    }
    Vec quads[width];  // quads[4 i + j], 128-bit part p: lanes 4 p + j of rows 4 i to 4 i + 3
#pragma GCC unroll 4
    for (int i = 0; i < width; i += 4) {
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        quads[i + 2 * j] = _mm512_shuffle_ps(pairs[i + j], pairs[i + 2 + j], 0x44);
        quads[i + 2 * j + 1] = _mm512_shuffle_ps(pairs[i + j], pairs[i + 2 + j], 0xee);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Vec even_low = _mm512_shuffle_f32x4(quads[j], quads[j + 4], 0x88),
                odd_low = _mm512_shuffle_f32x4(quads[j], quads[j + 4], 0xdd);
      const Vec even_high = _mm512_shuffle_f32x4(quads[j + 8], quads[j + 12], 0x88),
                odd_high = _mm512_shuffle_f32x4(quads[j + 8], quads[j + 12], 0xdd);
      tile[j] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
      tile[j + 4] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
      tile[j + 8] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
      tile[j + 12] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
    }
  }

  struct Split {
    Vec whole, rest;
  };
  static Split split(Vec x) {
    return {x, _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF)};  // x - floor(x), 0 for infinities; scalef takes the floor itself
  }
  static Vec scale(Vec value, Vec whole) { return _mm512_scalef_ps(value, whole); }

  static void stream_line(const void *from, void *to) {
    _mm512_stream_si512(static_cast<__m512i *>(to), _mm512_load_si512(from));
  }
  static void fence() { _mm_sfence(); }

  static void interleave(const uint16_t *first, const uint16_t *second, uint16_t *to, int64_t count) {
    for (int64_t i = 0; i < count; i += width) {
      const __mmask16 lanes = first_lanes(count - i < width ? static_cast<int>(count - i) : width);
      const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, first + i));
      const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, second + i));
      _mm512_mask_storeu_epi32(to + 2 * i, lanes, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }

 private:
  static Vec widened(__m256i bits) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)); }
};

}  // namespace
}  // namespace lolrt
