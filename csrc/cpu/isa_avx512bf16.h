// Policy for AVX-512 with its bfloat16 extension: products of bfloat16 pairs. float32 tensors take the float32 format. What each
// member does: isa_scalar.h.
//
// The extension's conversions and products take subnormal numbers for 0.
#pragma once

#include "cpu/isa_avx512.h"

#include <type_traits>

namespace lolrt {
namespace {

// One lane of one step: the bfloat16 values of two adjacent k's.
template <class Isa>
struct Bf16PairOperand : RowSums<Isa> {
  using Vec = __m512;
  using Element = uint32_t;
  using Channel = Bf16;
  using Reg = __m512bh;
  static constexpr int depth = 2;

  static Reg load(const uint32_t *from) { return (Reg)_mm512_loadu_si512(from); }
  static Reg broadcast(const uint32_t *from) { return (Reg)_mm512_set1_epi32(static_cast<int>(*from)); }
  static Reg first_of_pair(Reg reg) { return (Reg)_mm512_and_si512((__m512i)reg, _mm512_set1_epi32(0xffff)); }
  static Vec multiply_add(Reg a, Reg b, Vec sums) { return _mm512_dpbf16_ps(sums, a, b); }
  // Half an ulp of bfloat16 is the same for all numbers from 1 to 2: with it in the polynomial, narrowing is to drop the low
  // bits, for which a shuffle will do (the conversion takes twice as long).
  static Vec weight(Vec x) { return exp2<Isa, 3>(x, 0x1p-8f); }
  static Reg narrow(const Vec (&weights)[depth]) {
    alignas(64) static constexpr uint16_t high_halves[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                             33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    return (Reg)_mm512_permutex2var_epi16((__m512i)weights[0], _mm512_load_si512(high_halves), (__m512i)weights[1]);
  }
  static Vec add(Reg weights, Vec sum) { return multiply_add(weights, (Reg)_mm512_set1_epi32(0x3f803f80), sum); }
  static void store(uint32_t *to, Reg reg) { _mm512_storeu_si512(to, (__m512i)reg); }
};

struct Avx512Bf16Isa : Avx512Isa {
  static constexpr const char *name = "avx512bf16";

  template <class T>
  using Operand = std::conditional_t<std::is_same<T, Bf16>::value, Bf16PairOperand<Avx512Bf16Isa>, Fp32Operand<Avx512Bf16Isa>>;

  static bool runs_here() { return Avx512Isa::runs_here() && __builtin_cpu_supports("avx512bf16"); }

  using Avx512Isa::store;
  using Avx512Isa::store_n;
  static void store(Bf16 *to, Vec vec) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), (__m256i)_mm512_cvtneps_pbh(vec)); }
  static void store_n(Bf16 *to, Vec vec, int lanes) {
    _mm256_mask_storeu_epi16(to, first_lanes(lanes), (__m256i)_mm512_cvtneps_pbh(vec));
  }
  static Vec round_bf16(Vec vec) { return widened((__m256i)_mm512_cvtneps_pbh(vec)); }
  static Pairs round_bf16(const Pairs &x) {
    const __m512i halves = narrowed(x), first = _mm512_slli_epi32(lane_numbers(), 16);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(width << 16));
    constexpr __mmask32 upper = 0xaaaaaaaa;
    return {_mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(upper, first, halves)),
            _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(upper, second, halves))};
  }
  static Vec narrow_pairs(const Pairs &x) {
    const __m512i first = lane_numbers(), second = _mm512_add_epi32(first, _mm512_set1_epi32(width));
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_or_si512(first, _mm512_slli_epi32(second, 16)), narrowed(x)));
  }

 private:
  static __m512i lane_numbers() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
  // All first halves, then all second ones.
  static __m512i narrowed(const Pairs &x) { return (__m512i)_mm512_cvtne2ps_pbh(x.second, x.first); }
};

}  // namespace
}  // namespace lolrt
