// Policy for AVX2 with FMA: 8 lanes, 16 registers. bfloat16 is widened to float32. What each member does: isa_scalar.h.
#pragma once

#include "cpu/bf16.h"
#include "cpu/operand.h"

#include <cpuid.h>
#include <cstdint>
#include <cstring>
#include <immintrin.h>

namespace lolrt {
namespace {

// Products of bytes, widened to 16 bits, as the instruction for bytes adds up in 16 bits, which overflow. What each member does:
// bytes.h.
struct Avx2Bytes {
  using Ints = __m256i;
  struct Words {  // of 16 bits: the first and third byte of each lane, the second and fourth
    __m256i even, odd;
  };
  struct Unsigned : Words {};
  struct Signed : Words {};

  static Unsigned load_unsigned(const uint8_t *from) { return unsigned_words(loaded(from)); }
  static Signed load_signed(const int8_t *from) { return signed_words(loaded(from)); }
  static Unsigned broadcast_unsigned(const uint8_t *from) { return unsigned_words(broadcast(from)); }
  static Signed broadcast_signed(const int8_t *from) { return signed_words(broadcast(from)); }
  static Ints zero() { return _mm256_setzero_si256(); }
  static void add_dot(const Unsigned &a, const Signed &b, Ints &sums) {
    sums = add(sums, add(_mm256_madd_epi16(a.even, b.even), _mm256_madd_epi16(a.odd, b.odd)));
  }
  static __m256 to_float(Ints ints) { return _mm256_cvtepi32_ps(ints); }
  static Ints truncated(__m256 x) { return _mm256_cvttps_epi32(x); }
  static Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static void store_bytes(uint8_t *to, Ints ints) {
    const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(ints), _mm256_extracti128_si256(ints, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i *>(to), _mm_packus_epi16(halves, halves));
  }
  static __m256i loaded(const void *from) { return _mm256_loadu_si256(static_cast<const __m256i *>(from)); }
  // The same four bytes in all lanes.
  static __m256i broadcast(const void *from) {
    int32_t word;
    std::memcpy(&word, from, sizeof word);
    return _mm256_set1_epi32(word);
  }

 private:
  static Unsigned unsigned_words(__m256i bytes) {
    return {{_mm256_and_si256(bytes, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(bytes, 8)}};
  }
  static Signed signed_words(__m256i bytes) {
    return {{_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)}};
  }
};

#ifdef LOLRT_AVX_VNNI  // the compiler's assembler knows it
// Products of bytes (AVX-VNNI), not widened.
struct Avx2VnniBytes : Avx2Bytes {
  using Unsigned = __m256i;
  using Signed = __m256i;

  static bool runs_here() {
    static const bool has_it = [] {
      unsigned a, b, c, d;
      return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
    }();
    return has_it;
  }

  static Unsigned load_unsigned(const uint8_t *from) { return loaded(from); }
  static Signed load_signed(const int8_t *from) { return loaded(from); }
  static Unsigned broadcast_unsigned(const uint8_t *from) { return broadcast(from); }
  static Signed broadcast_signed(const int8_t *from) { return broadcast(from); }
  // Written out, so that the set compiles for CPUs that lack it.
  static void add_dot(Unsigned a, Signed b, Ints &sums) { asm(LOLRT_AVX_VNNI " %2, %1, %0" : "+x"(sums) : "x"(a), "x"(b)); }
};
#else
using Avx2VnniBytes = void;
#endif

struct Avx2Isa {
  static constexpr const char *name = "avx2";
  static constexpr int width = 8;
  static constexpr int rows = 6;  // 12 accumulators, 2 columns, 1 broadcast of the 16 registers
  static constexpr int vecs = 2;

  using Vec = __m256;

  template <class T>
  using Operand = Fp32Operand<Avx2Isa>;

  using Bytes = Avx2Bytes;
  using FastBytes = Avx2VnniBytes;
  using Tiles = void;

  static bool runs_here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

  static Vec zero() { return _mm256_setzero_ps(); }
  static Vec set(float value) { return _mm256_set1_ps(value); }
  static Vec load(const float *from) { return _mm256_loadu_ps(from); }
  static Vec load(const Bf16 *from) { return widened(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))); }
  static Vec load_n(const float *from, int lanes) { return _mm256_maskload_ps(from, first_lanes(lanes)); }
  static Vec load_n(const Bf16 *from, int lanes) {
    alignas(16) Bf16 all[width] = {};
    copy_n(all, from, lanes);
    return load(all);
  }
  static void store(float *to, Vec vec) { _mm256_storeu_ps(to, vec); }
  static void store(Bf16 *to, Vec vec) { _mm_storeu_si128(reinterpret_cast<__m128i *>(to), narrowed(vec)); }
  static void store_n(float *to, Vec vec, int lanes) { _mm256_maskstore_ps(to, first_lanes(lanes), vec); }
  static void store_n(Bf16 *to, Vec vec, int lanes) {
    alignas(16) Bf16 all[width];
    store(all, vec);
    copy_n(to, all, lanes);
  }
  static void store_bytes(uint8_t *to, Vec vec) {
    const __m256i low = _mm256_and_si256(_mm256_castps_si256(vec), _mm256_set1_epi32(0xff));
    const __m256i halves = _mm256_packus_epi32(low, low);  // within each half
    const __m256i bytes = _mm256_packus_epi16(halves, halves);
    const __m256i joined = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
    _mm_storel_epi64(reinterpret_cast<__m128i *>(to), _mm256_castsi256_si128(joined));
  }
  static void store_bytes_n(uint8_t *to, Vec vec, int lanes) {
    uint8_t all[width];
    store_bytes(all, vec);
    std::memcpy(to, all, lanes);
  }
  static Vec round_bf16(Vec vec) { return _mm256_castsi256_ps(high_half(rounded_bits(vec))); }

  static Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
  static Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
  static Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
  static Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
  static Vec multiply_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static Vec multiply_add(float a, Vec b, Vec c) { return multiply_add(set(a), b, c); }
  static float reduce_add(Vec vec) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(vec), _mm256_extractf128_ps(vec, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static float reduce_max(Vec vec) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(vec), _mm256_extractf128_ps(vec, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }
  static bool any_above(Vec vec, float bound) {
    return _mm256_movemask_ps(_mm256_cmp_ps(vec, _mm256_set1_ps(bound), _CMP_GT_OQ)) != 0;
  }
  static Vec first_n(Vec vec, int lanes, float other) {
    return _mm256_blendv_ps(_mm256_set1_ps(other), vec, _mm256_castsi256_ps(first_lanes(lanes)));
  }

  struct Pairs {
    Vec first, second;
  };
  static Pairs load_pairs(const Bf16 *from) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)), _mm256_castsi256_ps(high_half(bits))};
  }
  static Pairs load_pairs_n(const Bf16 *from, int pairs) {
    alignas(32) Bf16 all[2 * width] = {};
    std::memcpy(all, from, pairs * 2 * sizeof(Bf16));
    return load_pairs(all);
  }
  static Pairs round_bf16(const Pairs &x) { return {round_bf16(x.first), round_bf16(x.second)}; }
  static Vec narrow_pairs(const Pairs &x) {
    const __m256i low = _mm256_srli_epi32(rounded_bits(x.first), 16);
    return _mm256_castsi256_ps(_mm256_or_si256(low, high_half(rounded_bits(x.second))));
  }
  static Pairs unzip(Vec low, Vec high) {
    const auto in_order = [](Vec vec) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(vec), 0xd8)); };
    return {in_order(_mm256_shuffle_ps(low, high, 0x88)), in_order(_mm256_shuffle_ps(low, high, 0xdd))};
  }
  static Pairs rotate(const Pairs &x, const Pairs &angle) {
    return {_mm256_fmsub_ps(x.first, angle.first, _mm256_mul_ps(x.second, angle.second)),
            _mm256_fmadd_ps(x.second, angle.first, _mm256_mul_ps(x.first, angle.second))};
  }

  static Vec rotate(Vec x, Vec angle) {
    const Vec swapped = _mm256_permute_ps(x, 0xb1);
    return _mm256_fmaddsub_ps(x, _mm256_moveldup_ps(angle), _mm256_mul_ps(swapped, _mm256_movehdup_ps(angle)));
  }

  static void transpose(Vec (&tile)[width]) {
    Vec pairs[width];
#pragma GCC unroll 4
    for (int i = 0; i < width; i += 2) {
      pairs[i] = _mm256_unpacklo_ps(tile[i], tile[i + 1]);
      pairs[i + 1] = _mm256_unpackhi_ps(tile[i], tile[i + 1]);
    }
    Vec quads[width];
#pragma GCC unroll 2
    for (int i = 0; i < width; i += 4) {
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        quads[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + 2 + j], 0x44);
        quads[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + 2 + j], 0xee);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      tile[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
      tile[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
    }
  }

  struct Split {
    Vec whole, rest;
  };
  static Split split(Vec x) {
    const Vec magic = _mm256_set1_ps(0x1.8p23f);
    x = _mm256_min_ps(_mm256_set1_ps(128.0f), _mm256_max_ps(_mm256_set1_ps(-126.5f), x));  // in this order a NaN passes
    const Vec whole = _mm256_add_ps(_mm256_sub_ps(x, _mm256_set1_ps(0.5f)), magic);
    return {whole, _mm256_sub_ps(x, _mm256_sub_ps(whole, magic))};
  }
  static Vec scale(Vec value, Vec whole) {
    const __m256i exponent = _mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(whole), 23), _mm256_set1_epi32(127 << 23));
    return _mm256_mul_ps(value, _mm256_castsi256_ps(exponent));
  }

  static void stream_line(const void *from, void *to) {
    const auto *half = static_cast<const __m256i *>(from);
    _mm256_stream_si256(static_cast<__m256i *>(to), _mm256_load_si256(half));
    _mm256_stream_si256(static_cast<__m256i *>(to) + 1, _mm256_load_si256(half + 1));
  }
  static void fence() { _mm_sfence(); }

  static void interleave(const uint16_t *first, const uint16_t *second, uint16_t *to, int64_t count) {
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
      const __m256i a = _mm256_permute4x64_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(first + i)), 0xd8);
      const __m256i b = _mm256_permute4x64_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(second + i)), 0xd8);
      _mm256_storeu_si256(reinterpret_cast<__m256i *>(to + 2 * i), _mm256_unpacklo_epi16(a, b));
      _mm256_storeu_si256(reinterpret_cast<__m256i *>(to + 2 * i + 16), _mm256_unpackhi_epi16(a, b));
    }
    for (; i < count; ++i) {
      to[2 * i] = first[i];
      to[2 * i + 1] = second[i];
    }
  }

 private:
  // Fewer than `width` values, in pieces of sizes that the compiler knows.
  static void copy_n(Bf16 *to, const Bf16 *from, int lanes) {
    for (int piece = width / 2, done = 0; piece > 0; piece /= 2) {
      if (lanes & piece) {
        std::memcpy(to + done, from + done, piece * sizeof(Bf16));
        done += piece;
      }
    }
  }
  static __m256i first_lanes(int lanes) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static __m256i high_half(__m256i bits) { return _mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0xffff0000u))); }
  static Vec widened(__m128i bits) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)); }
  // A NaN stays one without being rounded: arithmetic has made it a quiet one, whose mark is in the upper half.
  static __m256i rounded_bits(Vec vec) {
    const __m256i bits = _mm256_castps_si256(vec);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(vec, vec, _CMP_UNORD_Q));
    return _mm256_add_epi32(bits, _mm256_andnot_si256(is_nan, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))));
  }
  static __m128i narrowed(Vec vec) {
    const __m256i high = _mm256_srli_epi32(rounded_bits(vec), 16);
    const __m256i packed = _mm256_packus_epi32(high, high);  // within each half
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
  }
};

}  // namespace
}  // namespace lolrt
