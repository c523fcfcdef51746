// Rows of a tensor as words of 32 bits, `width` at a time. A word is what lies side by side in a page's K: a float, or a pair of
// bfloat16 channels, which is computed with as two floats.
#pragma once

#include "cpu/bf16.h"

#include <cstdint>

namespace lolrt {
namespace {

template <class Isa, class T>
struct Words;

template <class Isa>
struct Words<Isa, float> {
  using Vec = typename Isa::Vec;
  static constexpr int depth = 1;  // channels of a word

  Vec value;

  static Words load(const float *from) { return {Isa::load(from)}; }
  static Words load_n(const float *from, int words) { return {Isa::load_n(from, words)}; }

  Words times(Vec factor) const { return {Isa::mul(value, factor)}; }
  Words times(const Words &factor) const { return {Isa::mul(value, factor.value)}; }
  Words rounded() const { return *this; }
  Words turned(const float *angles) const { return {Isa::rotate(value, Isa::load(angles))}; }
  Vec add_squares(Vec sum) const { return Isa::multiply_add(value, value, sum); }
  // As bits.
  Vec packed() const { return value; }

  // (cos, sin) pairs, one a pair of channels, to what `turned` reads; as many floats.
  static void store_angles(const float *cos_sin, float *to) { Isa::store(to, Isa::load(cos_sin)); }
};

template <class Isa>
struct Words<Isa, Bf16> {
  using Vec = typename Isa::Vec;
  using Pairs = typename Isa::Pairs;
  static constexpr int depth = 2;

  Pairs value;

  static Words load(const Bf16 *from) { return {Isa::load_pairs(from)}; }
  static Words load_n(const Bf16 *from, int words) { return {Isa::load_pairs_n(from, words)}; }

  Words times(Vec factor) const { return {{Isa::mul(value.first, factor), Isa::mul(value.second, factor)}}; }
  Words times(const Words &factor) const {
    return {{Isa::mul(value.first, factor.value.first), Isa::mul(value.second, factor.value.second)}};
  }
  Words rounded() const { return {Isa::round_bf16(value)}; }
  Words turned(const float *angles) const {
    return {Isa::rotate(value, Pairs{Isa::load(angles), Isa::load(angles + Isa::width)})};
  }
  Vec add_squares(Vec sum) const {
    return Isa::multiply_add(value.second, value.second, Isa::multiply_add(value.first, value.first, sum));
  }
  Vec packed() const { return Isa::narrow_pairs(value); }

  static void store_angles(const float *cos_sin, float *to) {
    const Pairs angles = Isa::unzip(Isa::load(cos_sin), Isa::load(cos_sin + Isa::width));
    Isa::store(to, angles.first);
    Isa::store(to + Isa::width, angles.second);
  }
};

}  // namespace
}  // namespace lolrt
