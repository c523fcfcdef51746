// Policy of plain C++: what every CPU can run, and the description of what a policy is.
//
// A policy gives the kernels a vector of `width` floats and the few operations they are written in. All members of a policy and
// all kernels live in an unnamed namespace: each instruction set is its own translation unit with its own compiler flags, and
// nothing compiled for one CPU may be shared with another's by the linker.
#pragma once

#include "cpu/bf16.h"
#include "cpu/bytes.h"
#include "cpu/operand.h"
#include "cpu/tiles_scalar.h"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace lolrt {
namespace {

// Pairs of bfloat16 that only a matrix tile multiplies; here they are rounded and stored.
template <class Isa>
struct ScalarPairOperand {
  using Vec = typename Isa::Vec;
  using Element = uint32_t;
  using Channel = Bf16;
  struct Reg {
    Vec first, second;
  };
  static constexpr int depth = 2;
  static constexpr int rows = 1;

  static Vec weight(Vec x) { return exp2<Isa, 6>(x); }
  static Reg narrow(const Vec (&weights)[depth]) { return {Isa::round_bf16(weights[0]), Isa::round_bf16(weights[1])}; }
  static Vec add(const Reg &weights, Vec sum) { return sum + weights.first + weights.second; }
  static void store(uint32_t *to, const Reg &reg) {
    auto *channels = reinterpret_cast<Bf16 *>(to);
    Isa::store(channels, reg.first);
    Isa::store(channels + Isa::width, reg.second);
  }
};

struct ScalarIsa {
  static constexpr const char *name = "scalar";
  static constexpr int width = 4;  // lanes; four floats fill the smallest vector register that a compiler may choose to use
  static constexpr int rows = 4;   // of a register block of the matrix product
  static constexpr int vecs = 2;   // vectors in a row of that block

  using Vec = float __attribute__((vector_size(16)));
  using Bits = uint32_t __attribute__((vector_size(16)));

  // The operand format for tensors of element type T.
  template <class T>
  using Operand = Fp32Operand<ScalarIsa>;

  // Products of bytes.
  using Bytes = PlainBytes<ScalarIsa>;
  using FastBytes = void;

  // The matrix tiles of frame_attention, and the operand format of what they multiply; void where the CPU has none.
  using Tiles = ScalarTiles;
  using TileOperand = ScalarPairOperand<ScalarIsa>;

  static bool runs_here() { return true; }

  static Vec zero() { return Vec{}; }
  static Vec set(float value) { return Vec{value, value, value, value}; }
  static Vec load(const float *from) {
    Vec vec;
    std::memcpy(&vec, from, sizeof vec);
    return vec;
  }
  static Vec load(const Bf16 *from) { return load_n(from, width); }
  // The first `lanes` lanes; the others are 0 and their memory is not touched.
  static Vec load_n(const float *from, int lanes) {
    Vec vec{};
    for (int i = 0; i < lanes; ++i) vec[i] = from[i];
    return vec;
  }
  static Vec load_n(const Bf16 *from, int lanes) {
    Bits bits{};
    for (int i = 0; i < lanes; ++i) bits[i] = static_cast<uint32_t>(from[i].bits) << 16;
    return reinterpret_cast<Vec>(bits);
  }
  static void store(float *to, Vec vec) { std::memcpy(to, &vec, sizeof vec); }
  static void store(Bf16 *to, Vec vec) { store_n(to, vec, width); }
  static void store_n(float *to, Vec vec, int lanes) {
    for (int i = 0; i < lanes; ++i) to[i] = vec[i];
  }
  static void store_n(Bf16 *to, Vec vec, int lanes) {
    const Bits bits = rounded_bits(vec) >> 16;
    for (int i = 0; i < lanes; ++i) to[i].bits = static_cast<uint16_t>(bits[i]);
  }
  // The lowest byte of each lane, as bits.
  static void store_bytes(uint8_t *to, Vec vec) { store_bytes_n(to, vec, width); }
  static void store_bytes_n(uint8_t *to, Vec vec, int lanes) {
    const Bits bits = reinterpret_cast<Bits>(vec);
    for (int i = 0; i < lanes; ++i) to[i] = static_cast<uint8_t>(bits[i]);
  }
  // To the nearest bfloat16, ties to even; still as floats.
  static Vec round_bf16(Vec vec) { return reinterpret_cast<Vec>(rounded_bits(vec) & 0xffff0000u); }

  static Vec add(Vec a, Vec b) { return a + b; }
  static Vec sub(Vec a, Vec b) { return a - b; }
  static Vec mul(Vec a, Vec b) { return a * b; }
  static Vec div(Vec a, Vec b) { return a / b; }
  static Vec max(Vec a, Vec b) { return a > b ? a : b; }
  // a * b + c, rounded once or twice, whichever is faster.
  static Vec multiply_add(Vec a, Vec b, Vec c) { return a * b + c; }
  static Vec multiply_add(float a, Vec b, Vec c) { return a * b + c; }
  static float reduce_add(Vec vec) { return (vec[0] + vec[2]) + (vec[1] + vec[3]); }
  static float reduce_max(Vec vec) {
    const float low = vec[0] > vec[1] ? vec[0] : vec[1], high = vec[2] > vec[3] ? vec[2] : vec[3];
    return low > high ? low : high;
  }
  static bool any_above(Vec vec, float bound) { return vec[0] > bound || vec[1] > bound || vec[2] > bound || vec[3] > bound; }
  // The first `lanes` lanes of vec, `other` in the rest.
  static Vec first_n(Vec vec, int lanes, float other) {
    for (int i = lanes; i < width; ++i) vec[i] = other;
    return vec;
  }

  // `width` pairs of bfloat16, as floats.
  struct Pairs {
    Vec first, second;
  };
  static Pairs load_pairs(const Bf16 *from) { return load_pairs_n(from, width); }
  // The first `pairs` pairs; the others are 0 and their memory is not touched.
  static Pairs load_pairs_n(const Bf16 *from, int pairs) {
    Pairs x{};
    for (int i = 0; i < pairs; ++i) {
      x.first[i] = load_n(from + 2 * i, 1)[0];
      x.second[i] = load_n(from + 2 * i + 1, 1)[0];
    }
    return x;
  }
  static Pairs round_bf16(const Pairs &x) { return {round_bf16(x.first), round_bf16(x.second)}; }
  // Rounded to bfloat16 and side by side again: the lanes are bits.
  static Vec narrow_pairs(const Pairs &x) {
    return reinterpret_cast<Vec>((rounded_bits(x.first) >> 16) | (rounded_bits(x.second) & 0xffff0000u));
  }
  // The lanes of (low, high) with even and with odd numbers.
  static Pairs unzip(Vec low, Vec high) { return {Vec{low[0], low[2], high[0], high[2]}, Vec{low[1], low[3], high[1], high[3]}}; }

  // Turns the pairs (x0, x1) of x by the pairs (cos, sin) of angle; see lolrt.h for the formula, whose fma is a fused one.
  static Vec rotate(Vec x, Vec angle) {
    Vec y;
    for (int i = 0; i < width; i += 2) {
      y[i] = std::fma(x[i], angle[i], -(x[i + 1] * angle[i + 1]));
      y[i + 1] = std::fma(x[i + 1], angle[i], x[i] * angle[i + 1]);
    }
    return y;
  }

  static Pairs rotate(const Pairs &x, const Pairs &angle) {
    Pairs y;
    for (int i = 0; i < width; ++i) {
      y.first[i] = std::fma(x.first[i], angle.first[i], -(x.second[i] * angle.second[i]));
      y.second[i] = std::fma(x.second[i], angle.first[i], x.first[i] * angle.second[i]);
    }
    return y;
  }

  // Turns the rows of a square tile into columns; the lanes are moved as they are, whatever their bits mean.
  static void transpose(Vec (&tile)[width]) {
    for (int i = 0; i < width; ++i) {
      for (int j = 0; j < i; ++j) {
        const float swapped = tile[i][j];
        tile[i][j] = tile[j][i];
        tile[j][i] = swapped;
      }
    }
  }

  // x = whole + rest with rest in [0, 1] for exp2; `whole` in the form that `scale` wants. Adding 1.5 * 2^23 leaves the rounded
  // integer in the low bits. Where `whole` is -127 the scale is 0, where it is 128 infinity.
  struct Split {
    Vec whole, rest;
  };
  static Split split(Vec x) {
    const Vec magic = set(0x1.8p23f);
    x = x < -126.5f ? set(-126.5f) : x > 128.0f ? set(128.0f) : x;
    const Vec whole = (x - 0.5f) + magic;
    return {whole, x - (whole - magic)};
  }
  // value * 2^whole.
  static Vec scale(Vec value, Vec whole) {
    const Bits exponent = (reinterpret_cast<Bits>(whole) << 23) + (127u << 23);
    return value * reinterpret_cast<Vec>(exponent);
  }

  // Copies a cache line to where nobody reads it soon, past the caches if that is possible. Other threads see it after fence().
  static void stream_line(const void *from, void *to) { std::memcpy(to, from, 64); }
  static void fence() {}

  // to[i] = (first[i], second[i]) for `count` pairs of bfloat16, as bits.
  static void interleave(const uint16_t *first, const uint16_t *second, uint16_t *to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      to[2 * i] = first[i];
      to[2 * i + 1] = second[i];
    }
  }

 private:
  static Bits rounded_bits(Vec vec) {
    const Bits bits = reinterpret_cast<Bits>(vec);
    const Bits rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    return vec == vec ? rounded : bits | 0x400000u;  // a NaN stays one
  }
};

}  // namespace
}  // namespace lolrt
