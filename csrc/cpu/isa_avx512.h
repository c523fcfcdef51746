// Policy for AVX-512 (its F, BW, DQ and VL parts): 16 lanes, 32 registers. bfloat16 is widened to float32. What each member does:
// isa_scalar.h.
#pragma once

#include "cpu/bf16.h"
#include "cpu/operand.h"

#include <cstdint>
#include <cstring>
#include <immintrin.h>

namespace lolrt {
namespace {

// Products of bytes, widened to 16 bits as for AVX2. What each member does: bytes.h.
struct Avx512Bytes {
  using Ints = __m512i;
  struct Words {  // of 16 bits: the first and third byte of each lane, the second and fourth
    __m512i even, odd;
  };
  struct Unsigned : Words {};
  struct Signed : Words {};

  static Unsigned load_unsigned(const uint8_t *from) { return unsigned_words(_mm512_loadu_si512(from)); }
  static Signed load_signed(const int8_t *from) { return signed_words(_mm512_loadu_si512(from)); }
  static Unsigned broadcast_unsigned(const uint8_t *from) { return unsigned_words(broadcast(from)); }
  static Signed broadcast_signed(const int8_t *from) { return signed_words(broadcast(from)); }
  static Ints zero() { return _mm512_setzero_si512(); }
  static void add_dot(const Unsigned &a, const Signed &b, Ints &sums) {
    sums = add(sums, add(_mm512_madd_epi16(a.even, b.even), _mm512_madd_epi16(a.odd, b.odd)));
  }
  static __m512 to_float(Ints ints) { return _mm512_cvtepi32_ps(ints); }
  static Ints truncated(__m512 x) { return _mm512_cvttps_epi32(x); }
  static Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static void store_bytes(uint8_t *to, Ints ints) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm512_cvtusepi32_epi8(ints));
  }
  // The same four bytes in all lanes.
  static __m512i broadcast(const void *from) {
    int32_t word;
    std::memcpy(&word, from, sizeof word);
    return _mm512_set1_epi32(word);
  }

 private:
  static Unsigned unsigned_words(__m512i bytes) {
    return {{_mm512_and_si512(bytes, _mm512_set1_epi16(0xff)), _mm512_srli_epi16(bytes, 8)}};
  }
  static Signed signed_words(__m512i bytes) {
    return {{_mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8), _mm512_srai_epi16(bytes, 8)}};
  }
};

// Products of bytes (AVX512-VNNI), not widened.
struct Avx512VnniBytes : Avx512Bytes {
  using Unsigned = __m512i;
  using Signed = __m512i;

  static bool runs_here() { return __builtin_cpu_supports("avx512vnni"); }

  static Unsigned load_unsigned(const uint8_t *from) { return _mm512_loadu_si512(from); }
  static Signed load_signed(const int8_t *from) { return _mm512_loadu_si512(from); }
  static Unsigned broadcast_unsigned(const uint8_t *from) { return broadcast(from); }
  static Signed broadcast_signed(const int8_t *from) { return broadcast(from); }
  // Written out, so that the set compiles for CPUs that lack it; and from the intrinsic GCC 12 makes spills.
  static void add_dot(Unsigned a, Signed b, Ints &sums) { asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b)); }
};

struct Avx512Isa {
  static constexpr const char *name = "avx512";
  static constexpr int width = 16;
  static constexpr int rows = 6;  // 24 accumulators, 4 columns, 1 broadcast of the 32 registers
  static constexpr int vecs = 4;

  using Vec = __m512;

  template <class T>
  using Operand = Fp32Operand<Avx512Isa>;

  using Bytes = Avx512Bytes;
  using FastBytes = Avx512VnniBytes;
  using Tiles = void;

  static bool runs_here() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
  }

  static __mmask16 first_lanes(int lanes) { return static_cast<__mmask16>((1u << lanes) - 1); }

  static Vec zero() { return _mm512_setzero_ps(); }
  static Vec set(float value) { return _mm512_set1_ps(value); }
  static Vec load(const float *from) { return _mm512_loadu_ps(from); }
  static Vec load(const Bf16 *from) { return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from))); }
  static Vec load_n(const float *from, int lanes) { return _mm512_maskz_loadu_ps(first_lanes(lanes), from); }
  static Vec load_n(const Bf16 *from, int lanes) { return widened(_mm256_maskz_loadu_epi16(first_lanes(lanes), from)); }
  static void store(float *to, Vec vec) { _mm512_storeu_ps(to, vec); }
  static void store(Bf16 *to, Vec vec) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), narrowed(vec)); }
  static void store_n(float *to, Vec vec, int lanes) { _mm512_mask_storeu_ps(to, first_lanes(lanes), vec); }
  static void store_n(Bf16 *to, Vec vec, int lanes) { _mm256_mask_storeu_epi16(to, first_lanes(lanes), narrowed(vec)); }
  static void store_bytes(uint8_t *to, Vec vec) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm512_cvtepi32_epi8(_mm512_castps_si512(vec)));
  }
  static void store_bytes_n(uint8_t *to, Vec vec, int lanes) {
    _mm512_mask_cvtepi32_storeu_epi8(to, first_lanes(lanes), _mm512_castps_si512(vec));
  }
  static Vec round_bf16(Vec vec) { return _mm512_castsi512_ps(high_half(rounded_bits(vec))); }

  static Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
  static Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
  static Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
  static Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static Vec multiply_add(float a, Vec b, Vec c) { return multiply_add(set(a), b, c); }
  static float reduce_add(Vec vec) { return _mm512_reduce_add_ps(vec); }
  static float reduce_max(Vec vec) { return _mm512_reduce_max_ps(vec); }
  static bool any_above(Vec vec, float bound) { return _mm512_cmp_ps_mask(vec, _mm512_set1_ps(bound), _CMP_GT_OQ) != 0; }
  static Vec first_n(Vec vec, int lanes, float other) {
    return _mm512_mask_blend_ps(first_lanes(lanes), _mm512_set1_ps(other), vec);
  }

  struct Pairs {
    Vec first, second;
  };
  static Pairs load_pairs(const Bf16 *from) { return widened_pairs(_mm512_loadu_si512(from)); }
  static Pairs load_pairs_n(const Bf16 *from, int pairs) {
    return widened_pairs(_mm512_maskz_loadu_epi32(first_lanes(pairs), from));
  }
  static Pairs round_bf16(const Pairs &x) { return {round_bf16(x.first), round_bf16(x.second)}; }
  static Vec narrow_pairs(const Pairs &x) {
    const __m512i low = _mm512_srli_epi32(rounded_bits(x.first), 16);
    return _mm512_castsi512_ps(_mm512_or_si512(low, high_half(rounded_bits(x.second))));
  }
  static Pairs unzip(Vec low, Vec high) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    return {_mm512_permutex2var_ps(low, even, high), _mm512_permutex2var_ps(low, odd, high)};
  }
  static Pairs rotate(const Pairs &x, const Pairs &angle) {
    return {_mm512_fmsub_ps(x.first, angle.first, _mm512_mul_ps(x.second, angle.second)),
            _mm512_fmadd_ps(x.second, angle.first, _mm512_mul_ps(x.first, angle.second))};
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

 protected:
  static Vec widened(__m256i bits) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)); }

 private:
  static __m512i high_half(__m512i bits) { return _mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xffff0000u))); }
  static Pairs widened_pairs(__m512i bits) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)), _mm512_castsi512_ps(high_half(bits))};
  }
  static __m512i rounded_bits(Vec vec) {
    const __m512i bits = _mm512_castps_si512(vec), lowest = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(lowest, _mm512_set1_epi32(0x7fff)));
    const __mmask16 numbers = _mm512_cmp_ps_mask(vec, vec, _CMP_ORD_Q);
    return _mm512_mask_mov_epi32(_mm512_or_si512(bits, _mm512_set1_epi32(0x400000)), numbers, rounded);  // a NaN stays one
  }
  static __m256i narrowed(Vec vec) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded_bits(vec), 16)); }
};

}  // namespace
}  // namespace lolrt
