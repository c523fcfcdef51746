// Policy for NEON with the extensions for bfloat16, a product of 2 x 4 by 4 x 2 numbers in one instruction, and for bytes (I8MM),
// which CPUs with the first have too. float32 tensors take the float32 format. What each member does: isa_scalar.h.
//
// The products of bfloat16, unlike its conversions, take subnormal numbers for 0.
#pragma once

#include "cpu/isa_neon.h"

#include <type_traits>
#if defined(__APPLE__)
#  include <sys/sysctl.h>
#else
#  include <sys/auxv.h>
#endif

namespace lolrt {
namespace {

// One lane of one step: the bfloat16 values of four adjacent k's. A page has them in pairs, so they are brought together first.
template <class Isa>
struct Bf16QuadOperand {
  using Vec = float32x4_t;
  using Element = uint64_t;
  using Channel = Bf16;
  // Of four lanes; or sixteen weights of a row.
  struct Reg {
    bfloat16x8_t low, high;
  };
  // Two rows of the lower two lanes, and of the upper two.
  struct Sums {
    Vec low, high;
  };
  static constexpr int depth = 4;
  static constexpr int rows = 2;

  static Reg load(const uint64_t *from) {
    return {Isa::template loaded<bfloat16x8_t>(from), Isa::template loaded<bfloat16x8_t>(from + 2)};
  }
  static bfloat16x8_t broadcast(const uint64_t *from) { return Isa::template loaded<bfloat16x8_t>(from); }
  static Sums zero_sums() { return {Isa::zero(), Isa::zero()}; }
  static Sums load_sums(const float *from, int64_t row) {
    const Vec first = Isa::load(from), second = Isa::load(from + row);
    return {Isa::low_halves(first, second), Isa::high_halves(first, second)};
  }
  static void store_sums(float *to, int64_t row, const Sums &sums) {
    Isa::store(to, Isa::low_halves(sums.low, sums.high));
    Isa::store(to + row, Isa::high_halves(sums.low, sums.high));
  }
  static Sums multiply_add(bfloat16x8_t a, const Reg &b, const Sums &sums) {
    return {vbfmmlaq_f32(sums.low, a, b.low), vbfmmlaq_f32(sums.high, a, b.high)};
  }

  static void repack(const Bf16 *pairs, int64_t count, uint64_t *to) {
    constexpr int64_t lanes = PageLayout::block_tokens;
    for (; count > 0; count -= depth, pairs += depth * lanes, to += lanes) {
      for (int64_t lane = 0; lane < lanes; lane += Isa::width) {
        auto first = Isa::template loaded<uint32x4_t>(pairs + 2 * lane), second = vdupq_n_u32(0);
        if (count > 2) second = Isa::template loaded<uint32x4_t>(pairs + 2 * lanes + 2 * lane);
        // What is beyond the last one is padding and may be NaN.
        if (count == 1) first = vandq_u32(first, vdupq_n_u32(0xffff));
        if (count == 3) second = vandq_u32(second, vdupq_n_u32(0xffff));
        Isa::stored(to + lane, vzip1q_u32(first, second));
        Isa::stored(to + lane + 2, vzip2q_u32(first, second));
      }
    }
  }

  // As on AVX-512, half an ulp in the polynomial rounds, and narrowing drops the lower halves.
  static Vec weight(Vec x) { return exp2<Isa, 3>(x, 0x1p-8f); }
  static Reg narrow(const Vec (&weights)[depth]) {
    return {high_halves(weights[0], weights[1]), high_halves(weights[2], weights[3])};
  }
  static Vec add(const Reg &weights, Vec sum) {
    uint16x8_t bits = vdupq_n_u16(0x3f80);
    asm("" : "+w"(bits));  // where GCC 12 knows the number, it writes that of float16
    const auto ones = vreinterpretq_bf16_u16(bits);
    return vbfdotq_f32(vbfdotq_f32(sum, weights.low, ones), weights.high, ones);
  }
  static void store(uint64_t *to, const Reg &weights) {
    const uint64x2_t low = vreinterpretq_u64_bf16(weights.low), high = vreinterpretq_u64_bf16(weights.high);
    to[0] = vgetq_lane_u64(low, 0);
    to[rows] = vgetq_lane_u64(low, 1);
    to[2 * rows] = vgetq_lane_u64(high, 0);
    to[3 * rows] = vgetq_lane_u64(high, 1);
  }

 private:
  // Of the 32 bits of each lane.
  static bfloat16x8_t high_halves(Vec a, Vec b) {
    return vreinterpretq_bf16_u16(vuzp2q_u16(vreinterpretq_u16_f32(a), vreinterpretq_u16_f32(b)));
  }
};

// Products of bytes, not widened.
struct NeonDotBytes : NeonBytes {
  using Unsigned = uint8x16_t;
  using Signed = int8x16_t;

  static Unsigned load_unsigned(const uint8_t *from) { return vld1q_u8(from); }
  static Signed load_signed(const int8_t *from) { return vld1q_s8(from); }
  static Unsigned broadcast_unsigned(const uint8_t *from) { return vreinterpretq_u8_u32(broadcast(from)); }
  static Signed broadcast_signed(const int8_t *from) { return vreinterpretq_s8_u32(broadcast(from)); }
  static void add_dot(Unsigned a, Signed b, Ints &sums) { sums = vusdotq_s32(sums, a, b); }
};

struct NeonBf16Isa : NeonIsa {
  static constexpr const char *name = "neonbf16";
  static constexpr int rows = 12;  // 24 accumulators, 4 registers of columns (2 for float32), 1 of rows
  static constexpr int vecs = 2;

  template <class T>
  using Operand = std::conditional_t<std::is_same<T, Bf16>::value, Bf16QuadOperand<NeonBf16Isa>, Fp32Operand<NeonBf16Isa>>;

  using Bytes = NeonDotBytes;

  static bool runs_here() {
#if defined(__APPLE__)
    const auto has = [](const char *name) {
      int yes = 0;
      size_t bytes = sizeof yes;
      return sysctlbyname(name, &yes, &bytes, nullptr, 0) == 0 && yes;
    };
    return has("hw.optional.arm.FEAT_BF16") && has("hw.optional.arm.FEAT_I8MM");
#else
    constexpr unsigned long both = 1ul << 14 | 1ul << 13;  // HWCAP2_BF16 and HWCAP2_I8MM, which older headers lack
    return (getauxval(AT_HWCAP2) & both) == both;
#endif
  }

  using NeonIsa::store;
  using NeonIsa::store_n;
  static void store(Bf16 *to, Vec vec) { stored(to, narrowed(vec)); }
  static void store_n(Bf16 *to, Vec vec, int lanes) {
    Bf16 all[width];
    store(all, vec);
    copy_n(to, all, lanes);
  }
  static Vec round_bf16(Vec vec) { return vreinterpretq_f32_u32(vshll_n_u16(narrowed(vec), 16)); }
  static Pairs round_bf16(const Pairs &x) { return {round_bf16(x.first), round_bf16(x.second)}; }
  static Vec narrow_pairs(const Pairs &x) {
    const uint16x4_t first = narrowed(x.first), second = narrowed(x.second);
    return vreinterpretq_f32_u16(vcombine_u16(vzip1_u16(first, second), vzip2_u16(first, second)));
  }

 private:
  static uint16x4_t narrowed(Vec vec) { return vreinterpret_u16_bf16(vcvt_bf16_f32(vec)); }
};

}  // namespace
}  // namespace lolrt
