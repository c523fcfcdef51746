// Policy for NEON, which every 64-bit ARM CPU has: 4 lanes, 32 registers. bfloat16 is widened to float32. What each member does:
// isa_scalar.h.
#pragma once

#include "cpu/bf16.h"
#include "cpu/operand.h"

#include <arm_neon.h>
#include <cstdint>
#include <cstring>

namespace lolrt {
namespace {

// Products of bytes, widened to 16 bits. What each member does: bytes.h.
struct NeonBytes {
  using Ints = int32x4_t;
  struct Words {  // of 16 bits: the bytes of the lower two lanes, and of the upper two
    int16x8_t low, high;
  };
  struct Unsigned : Words {};
  struct Signed : Words {};

  static Unsigned load_unsigned(const uint8_t *from) { return unsigned_words(vld1q_u8(from)); }
  static Signed load_signed(const int8_t *from) { return signed_words(vld1q_s8(from)); }
  static Unsigned broadcast_unsigned(const uint8_t *from) { return unsigned_words(vreinterpretq_u8_u32(broadcast(from))); }
  static Signed broadcast_signed(const int8_t *from) { return signed_words(vreinterpretq_s8_u32(broadcast(from))); }
  static Ints zero() { return vdupq_n_s32(0); }
  static void add_dot(const Unsigned &a, const Signed &b, Ints &sums) {
    sums = vaddq_s32(sums, vpaddq_s32(products(a.low, b.low), products(a.high, b.high)));
  }
  static float32x4_t to_float(Ints ints) { return vcvtq_f32_s32(ints); }
  static Ints truncated(float32x4_t x) { return vcvtq_s32_f32(x); }
  static Ints add(Ints a, Ints b) { return vaddq_s32(a, b); }
  static void store_bytes(uint8_t *to, Ints ints) {
    const uint16x4_t halves = vqmovun_s32(ints);
    const uint8x8_t bytes = vqmovn_u16(vcombine_u16(halves, halves));
    std::memcpy(to, &bytes, 4);
  }
  // The same four bytes in all lanes.
  static uint32x4_t broadcast(const void *from) {
    uint32_t word;
    std::memcpy(&word, from, sizeof word);
    return vdupq_n_u32(word);
  }

 private:
  static Unsigned unsigned_words(uint8x16_t bytes) {
    return {{vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes))), vreinterpretq_s16_u16(vmovl_high_u8(bytes))}};
  }
  static Signed signed_words(int8x16_t bytes) { return {{vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)}}; }
  // Sums of neighbours.
  static int32x4_t products(int16x8_t a, int16x8_t b) {
    return vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b));
  }
};

struct NeonIsa {
  static constexpr const char *name = "neon";
  static constexpr int width = 4;
  static constexpr int rows = 6;  // 24 accumulators, 4 columns, 1 number of a row of the 32 registers
  static constexpr int vecs = 4;

  using Vec = float32x4_t;

  template <class T>
  using Operand = Fp32Operand<NeonIsa>;

  using Bytes = NeonBytes;
  using FastBytes = void;
  using Tiles = void;

  static bool runs_here() { return true; }

  // Vectors of any type from and to memory of any type.
  template <class V>
  static V loaded(const void *from) {
    V vec;
    std::memcpy(&vec, from, sizeof vec);
    return vec;
  }
  template <class V>
  static void stored(void *to, V vec) {
    std::memcpy(to, &vec, sizeof vec);
  }
  // The lower halves of two vectors, and their upper ones.
  static Vec low_halves(Vec a, Vec b) {
    return vreinterpretq_f32_f64(vzip1q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
  }
  static Vec high_halves(Vec a, Vec b) {
    return vreinterpretq_f32_f64(vzip2q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
  }

  static Vec zero() { return vdupq_n_f32(0.0f); }
  static Vec set(float value) { return vdupq_n_f32(value); }
  static Vec load(const float *from) { return loaded<Vec>(from); }
  static Vec load(const Bf16 *from) { return vreinterpretq_f32_u32(vshll_n_u16(loaded<uint16x4_t>(from), 16)); }
  static Vec load_n(const float *from, int lanes) {
    float all[width] = {};
    copy_n(all, from, lanes);
    return load(all);
  }
  static Vec load_n(const Bf16 *from, int lanes) {
    Bf16 all[width] = {};
    copy_n(all, from, lanes);
    return load(all);
  }
  static void store(float *to, Vec vec) { stored(to, vec); }
  static void store(Bf16 *to, Vec vec) { stored(to, vshrn_n_u32(rounded_bits(vec), 16)); }
  static void store_n(float *to, Vec vec, int lanes) {
    float all[width];
    store(all, vec);
    copy_n(to, all, lanes);
  }
  static void store_n(Bf16 *to, Vec vec, int lanes) {
    Bf16 all[width];
    store(all, vec);
    copy_n(to, all, lanes);
  }
  static void store_bytes(uint8_t *to, Vec vec) {
    const uint16x4_t halves = vmovn_u32(vreinterpretq_u32_f32(vec));
    const uint8x8_t bytes = vmovn_u16(vcombine_u16(halves, halves));
    std::memcpy(to, &bytes, width);
  }
  static void store_bytes_n(uint8_t *to, Vec vec, int lanes) {
    uint8_t all[width];
    store_bytes(all, vec);
    copy_n(to, all, lanes);
  }
  static Vec round_bf16(Vec vec) { return vreinterpretq_f32_u32(high_half(rounded_bits(vec))); }

  static Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
  static Vec sub(Vec a, Vec b) { return vsubq_f32(a, b); }
  static Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
  static Vec div(Vec a, Vec b) { return vdivq_f32(a, b); }
  static Vec max(Vec a, Vec b) { return vmaxq_f32(a, b); }
  static Vec multiply_add(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
  static Vec multiply_add(float a, Vec b, Vec c) { return vfmaq_n_f32(c, b, a); }
  static float reduce_add(Vec vec) { return vaddvq_f32(vec); }
  static float reduce_max(Vec vec) { return vmaxvq_f32(vec); }
  static bool any_above(Vec vec, float bound) { return vmaxvq_u32(vcgtq_f32(vec, set(bound))) != 0; }
  static Vec first_n(Vec vec, int lanes, float other) {
    static constexpr int32_t numbers[width] = {0, 1, 2, 3};
    return vbslq_f32(vcgtq_s32(vdupq_n_s32(lanes), loaded<int32x4_t>(numbers)), vec, set(other));
  }

  struct Pairs {
    Vec first, second;
  };
  static Pairs load_pairs(const Bf16 *from) {
    const auto bits = loaded<uint32x4_t>(from);
    return {vreinterpretq_f32_u32(vshlq_n_u32(bits, 16)), vreinterpretq_f32_u32(high_half(bits))};
  }
  static Pairs load_pairs_n(const Bf16 *from, int pairs) {
    Bf16 all[2 * width] = {};
    std::memcpy(all, from, pairs * 2 * sizeof(Bf16));
    return load_pairs(all);
  }
  static Pairs round_bf16(const Pairs &x) { return {round_bf16(x.first), round_bf16(x.second)}; }
  static Vec narrow_pairs(const Pairs &x) {
    return vreinterpretq_f32_u32(vsriq_n_u32(rounded_bits(x.second), rounded_bits(x.first), 16));
  }
  static Pairs unzip(Vec low, Vec high) { return {vuzp1q_f32(low, high), vuzp2q_f32(low, high)}; }
  static Pairs rotate(const Pairs &x, const Pairs &angle) {
    return {vfmaq_f32(vnegq_f32(vmulq_f32(x.second, angle.second)), x.first, angle.first),
            vfmaq_f32(vmulq_f32(x.first, angle.second), x.second, angle.first)};
  }

  static Vec rotate(Vec x, Vec angle) {
    static constexpr float signs[width] = {-1.0f, 1.0f, -1.0f, 1.0f};
    const Vec sin = vmulq_f32(vtrn2q_f32(angle, angle), load(signs));
    return vfmaq_f32(vmulq_f32(vrev64q_f32(x), sin), x, vtrn1q_f32(angle, angle));
  }

  static void transpose(Vec (&tile)[width]) {
    const Vec even_low = vtrn1q_f32(tile[0], tile[1]), odd_low = vtrn2q_f32(tile[0], tile[1]);
    const Vec even_high = vtrn1q_f32(tile[2], tile[3]), odd_high = vtrn2q_f32(tile[2], tile[3]);
    tile[0] = low_halves(even_low, even_high);
    tile[1] = low_halves(odd_low, odd_high);
    tile[2] = high_halves(even_low, even_high);
    tile[3] = high_halves(odd_low, odd_high);
  }

  struct Split {
    Vec whole, rest;
  };
  // With 127 in what is added, the low bits are the exponent as a float has it.
  static Split split(Vec x) {
    x = vminq_f32(vmaxq_f32(x, set(-127.0f)), set(128.0f));  // a NaN passes
    const Vec floor = vrndmq_f32(x);
    return {vaddq_f32(floor, set(0x1.8p23f + 127.0f)), vsubq_f32(x, floor)};
  }
  static Vec scale(Vec value, Vec whole) {
    return vmulq_f32(value, vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(whole), 23)));
  }

  // The CPUs see by themselves that whole lines are written, and fetch none of them.
  static void stream_line(const void *from, void *to) { std::memcpy(to, from, 64); }
  static void fence() {}

  static void interleave(const uint16_t *first, const uint16_t *second, uint16_t *to, int64_t count) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
      const auto a = loaded<uint16x8_t>(first + i), b = loaded<uint16x8_t>(second + i);
      stored(to + 2 * i, vzip1q_u16(a, b));
      stored(to + 2 * i + 8, vzip2q_u16(a, b));
    }
    for (; i < count; ++i) {
      to[2 * i] = first[i];
      to[2 * i + 1] = second[i];
    }
  }

 protected:
  // Fewer than `width` values, in pieces of sizes that the compiler knows.
  template <class T>
  static void copy_n(T *to, const T *from, int lanes) {
    if (lanes & 2) std::memcpy(to, from, 2 * sizeof(T));
    if (lanes & 1) std::memcpy(to + (lanes & 2), from + (lanes & 2), sizeof(T));
  }

 private:
  static uint32x4_t high_half(uint32x4_t bits) { return vandq_u32(bits, vdupq_n_u32(0xffff0000u)); }
  // A NaN stays one without being rounded: arithmetic has made it a quiet one, whose mark is in the upper half.
  static uint32x4_t rounded_bits(Vec vec) {
    const uint32x4_t bits = vreinterpretq_u32_f32(vec), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t is_number = vceqq_f32(vec, vec);
    return vaddq_u32(bits, vandq_u32(is_number, vaddq_u32(odd, vdupq_n_u32(0x7fff))));
  }
};

}  // namespace
}  // namespace lolrt
